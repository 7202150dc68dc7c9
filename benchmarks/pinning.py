"""Threads and cores of a benchmark process, fixed before any numerical library is loaded.

Import nothing heavy above a call of `pin`: OpenBLAS, OpenMP and XLA read their settings once, when they
start.

    one thread     the process is bound to one core; every pool is told 1
    n threads      the process is bound to n cores; every pool is told n

By library: OpenBLAS `OPENBLAS_NUM_THREADS`; OpenMP `OMP_NUM_THREADS`; XLA takes its pool's size from the
affinity of the process and from `NPROC`, and for one thread also
`XLA_FLAGS=--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1`; onnxruntime and OpenVINO are
told per session (`peers.py`).
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

#: Modules that must not be loaded yet when `pin` runs.
LATE = ("numpy", "jax", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Pinned:
    """What this process runs on."""

    threads: int
    cores: tuple[int, ...]
    cpu: str
    openblas_core: str

    def __str__(self) -> str:
        where = ", ".join(map(str, self.cores))
        return f"{self.cpu}, {self.threads} thread{'s' * (self.threads > 1)} on core {where}"


def cpu_flags() -> tuple[str, frozenset[str]]:
    """Model name and feature flags, as the operating system reports them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    rows: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        rows.setdefault(key.strip(), value.strip())  # all cores alike: the first speaks for them
    return rows.get("model name", platform.machine()), frozenset(rows.get("flags", "").split())


def pin(threads: int, openblas_core: str = "") -> Pinned:
    """Bind the process to `threads` cores and tell every library. `openblas_core`: OPENBLAS_CORETYPE, "" for
    its pick.

    The cores are the last ones the process may use: interrupts and other people's work gather on the first.
    """
    loaded = [m for m in LATE if m in sys.modules]
    if loaded:
        raise RuntimeError(f"pin() comes too late: {', '.join(loaded)} already loaded")
    free = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(free):
        raise SystemExit(
            f"--threads {threads}: this process may use {len(free)} cores; give 1 to {len(free)}"
        )
    cores = tuple(free[-threads:])
    os.sched_setaffinity(0, cores)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        os.environ[name] = str(threads)
    if threads == 1:
        single = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {single}".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("CI", "true")  # OpenVINO asks no consent and sends no telemetry
    if openblas_core:
        os.environ["OPENBLAS_CORETYPE"] = openblas_core
    return Pinned(threads, cores, cpu_flags()[0], openblas_core)


def openblas_kernels() -> str:
    """The kernels NumPy's OpenBLAS uses, once NumPy is loaded."""
    try:
        import numpy as np  # noqa: F401
        import threadpoolctl
    except ImportError:
        return "unknown"
    found = [
        i.get("architecture", "?") for i in threadpoolctl.threadpool_info() if i["internal_api"] == "openblas"
    ]
    return ", ".join(found) or "none"
