"""Targets: what rules, cost model and emitter need to know of a machine.

A target is declared once, as one `Target` row or by `host()`, which reads the machine it runs on. Throughputs are per
core and cycle; sizes are bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import NesteggError, UnknownNameError
from .intrinsic import Intrinsic, intrinsics_of

#: Bytes of a cache line, on all targets.
LINE = 64
#: LLVM's name of what a target has whose registers hold tables of 16 floats to look up (`codegen/lanes.py`).
TABLES = "avx512dq"


@dataclass(frozen=True)
class Target:
    """A CPU.

    `vector_bytes`: widest vector register; `registers`: how many there are; `fma_per_cycle`, `loads_per_cycle`,
    `stores_per_cycle`: full-width vector operations a cycle; `latency`: cycles of a fused multiply-add; `caches`:
    sizes of L1d, L2 and the share of L3 a core sees; `bandwidth`: bytes a cycle that one core draws from L2, L3 and
    memory; `ghz`: a nominal clock, to turn cycles into seconds. `triple`, `cpu`, `features` are LLVM's.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    fma_per_cycle: float
    loads_per_cycle: float
    stores_per_cycle: float
    latency: float
    caches: tuple[int, int, int]
    bandwidth: tuple[float, float, float]
    ghz: float = 3.0

    def lanes(self, size: int = 4) -> int:
        """Elements of `size` bytes in a vector register."""
        return max(1, self.vector_bytes // size)

    @property
    def tables(self) -> bool:
        """Elementary functions look up tables in registers."""
        return f"+{TABLES}" in self.features.split(",")

    @property
    def intrinsics(self) -> tuple[Intrinsic, ...]:
        """The declared instructions (`intrinsics.py`) that it has in its full width of 32-bit lanes."""
        return intrinsics_of(self.triple, self.features, self.lanes())


_ARM = "aarch64-unknown-linux-gnu"
_X86 = "x86_64-unknown-linux-gnu"
_V3 = "+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+popcnt"
_V4 = _V3 + ",+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"
_VNNI = _V4 + ",+avx512vnni,+avx512bf16"
_DOTS = "+neon,+dotprod,+i8mm,+bf16"
_ROWS = (
    Target("x86-64-v3", _X86, "x86-64-v3", _V3, 32, 16, 2, 2, 1, 4, (32768, 524288, 4 << 20), (32, 16, 8)),
    Target("x86-64-v4", _X86, "x86-64-v4", _V4, 64, 32, 1, 1, 0.5, 4, (32768, 1 << 20, 8 << 20), (32, 16, 8)),
    Target("x86-64-v4+vnni", _X86, "x86-64-v4", _VNNI, 64, 32, 1, 1, 0.5, 4, (32768, 1 << 20, 8 << 20), (32, 16, 8)),
    Target("aarch64", _ARM, "generic", "+neon", 16, 32, 2, 2, 1, 4, (65536, 1 << 20, 4 << 20), (32, 16, 8)),
    Target("aarch64+dotprod", _ARM, "generic", _DOTS, 16, 32, 2, 2, 1, 4, (65536, 1 << 20, 4 << 20), (32, 16, 8)),
)
TARGETS = {t.name: t for t in _ROWS}


def _cache_size(level: int, fallback: int) -> int:
    for entry in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, at = (entry / "type").read_text().strip(), int((entry / "level").read_text())
            size = (entry / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if at == level and kind != "Instruction":
            return int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
    return fallback


@cache
def host() -> Target:
    """The machine this runs on: LLVM's name and features for it, cache sizes from the operating system."""
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    triple = llvm.get_process_triple()
    flat, cpu = features.flatten(), llvm.get_host_cpu_name()
    caches = (_cache_size(1, 32768), _cache_size(2, 1 << 20), min(_cache_size(3, 8 << 20), 16 << 20))
    if not triple.startswith("x86_64"):
        return Target("host", triple, cpu, flat, 16, 32, 2, 2, 1, 4, caches, (32, 16, 8))
    if features.get("avx512f") and features.get("avx512vl"):
        full = 1.0 if cpu == "znver4" else 2.0  # Zen 4 issues a 512-bit operation as two halves
        # LLVM's scheduling model of znver4 reorders register tiles until they spill (82 stack references in a 512-cube
        # matmul; none with the generic model), so only the features are the machine's own.
        return Target("host", triple, "x86-64-v4", flat, 64, 32, full, full, full / 2, 4, caches, (32, 16, 8))
    if features.get("avx2") and features.get("fma"):
        return Target("host", triple, cpu, flat, 32, 16, 2, 2, 1, 4, caches, (32, 16, 8))
    return Target("host", triple, cpu, flat, 16, 16, 1, 1, 1, 8, caches, (16, 8, 4))


def available_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def require_runnable(t: Target) -> Target:
    """The target, if its code runs on this machine. Raises `NesteggError` for another architecture or features."""
    here = host()
    same = t.triple.split("-")[0] == here.triple.split("-")[0]
    if not same or not set(t.features.split(",")) <= set(here.features.split(",")):
        raise NesteggError(f"target {t.name!r}: this machine ({here.cpu}) cannot run its code; choose cpu")
    return t


def target(name: str) -> Target:
    """A target by name: `cpu` or `host` is this machine. Raises `UnknownNameError`."""
    if name in ("cpu", "host"):
        return host()
    if name not in TARGETS:
        raise UnknownNameError(f"target {name!r} does not exist; choose cpu, {', '.join(TARGETS)}")
    return TARGETS[name]
