"""The machine's limits, measured with code emitted here: multiply-add peaks, memory bandwidth, clock.

    python benchmarks/limits.py [--threads 2] [--json]

No operand of a peak kernel comes from memory and no result depends on another, so nothing but the execution
units limits it. Bandwidth kernels do nothing but read, write or copy a buffer of a size that fits one level.
A copy counts the bytes read and the bytes written. Several threads are Python threads: ctypes releases the
GIL.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import Pinned, cpu_flags, pin

#: Independent accumulators of a peak kernel: more than latency times throughput of any core, and they fit.
ACCUMULATORS = 24
#: Vectors a bandwidth kernel moves per round.
UNROLL = 16
#: Bytes of the buffer that stands for a level, as a share of that level's size.
SHARE = 0.5
DRAM_BYTES = 192 << 20


@dataclass(frozen=True)
class Peak:
    """A multiply-add instruction: IR of one application to accumulator %a, and its operations."""

    name: str
    operations: int
    type: str
    declare: str
    apply: str
    zero: str = "zeroinitializer"


def _peaks(lanes: int, flags: frozenset[str]) -> list[Peak]:
    v = f"<{lanes} x float>"
    one = f"<{lanes} x float> splat (float 0x3FF0000000000000)"
    small = f"<{lanes} x float> splat (float 0x3E80000000000000)"
    fma = f"@llvm.fma.v{lanes}f32"
    found = [
        Peak(
            "f32",
            2 * lanes,
            v,
            f"declare {v} {fma}({v}, {v}, {v})",
            f"call {v} {fma}({small}, {one}, {v} %a)",
        )
    ]
    if "avx512_vnni" in flags:
        call = "@llvm.x86.avx512.vpdpbusd.512"
        i32, i8 = "<16 x i32>", "<64 x i8>"
        operands = f"{i8} splat (i8 3), {i8} splat (i8 5)"
        declare = f"declare {i32} {call}({i32}, {i8}, {i8})"
        found.append(Peak("int8", 128, i32, declare, f"call {i32} {call}({i32} %a, {operands})"))
    if "avx512_bf16" in flags:
        call = "@llvm.x86.avx512bf16.dpbf16ps.512"
        f32, bf = "<16 x float>", "<32 x bfloat>"
        operands = f"{bf} splat (bfloat 0xR3F80), {bf} splat (bfloat 0xR3000)"
        declare = f"declare {f32} {call}({f32}, {bf}, {bf})"
        found.append(Peak("bf16", 64, f32, declare, f"call {f32} {call}({f32} %a, {operands})"))
    return found


def peak_ir(p: Peak) -> str:
    """`void run(ptr out, i64 rounds)`: ACCUMULATORS independent chains of the instruction."""
    n = range(ACCUMULATORS)
    phis = "\n".join(f"  %a{k} = phi {p.type} [{p.zero}, %entry], [%b{k}, %loop]" for k in n)
    body = "\n".join(f"  %b{k} = {p.apply.replace('%a', f'%a{k}')}" for k in n)
    stores = "\n".join(
        f"  %p{k} = getelementptr {p.type}, ptr %out, i64 {k}\n  store {p.type} %b{k}, ptr %p{k}, align 64"
        for k in n
    )
    return f"""
{p.declare}
define void @run(ptr %out, i64 %rounds) {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{phis}
{body}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %rounds
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}
"""


def stream_ir(kind: str, vector: int) -> str:
    """`void run(ptr from, ptr to, i64 bytes, i64 passes)`; `kind`: read, write, copy, stream (no cache)."""
    v = f"<{vector // 4} x i32>"
    lines, carried = [], []
    for k in range(UNROLL):
        at = f"%at{k}"
        lines.append(f"  {at} = add i64 %i, {k * vector}")
        if kind in ("read", "copy"):
            lines += [
                f"  %f{k} = getelementptr i8, ptr %from, i64 {at}",
                f"  %v{k} = load {v}, ptr %f{k}, align 64",
            ]
        if kind == "read":
            carried.append(k)
            lines.append(f"  %s{k} = or {v} %c{k}, %v{k}")
        else:
            value = f"%v{k}" if kind == "copy" else f"splat (i32 {k})"
            hint = ", !nontemporal !0" if kind == "stream" else ""
            lines += [
                f"  %t{k} = getelementptr i8, ptr %to, i64 {at}",
                f"  store {v} {value}, ptr %t{k}, align 64{hint}",
            ]
    outer = "\n".join(f"  %o{k} = phi {v} [zeroinitializer, %entry], [%s{k}, %again]" for k in carried)
    inner = "\n".join(f"  %c{k} = phi {v} [%o{k}, %pass], [%s{k}, %loop]" for k in carried)
    keep = "\n".join(
        f"  %k{k} = getelementptr {v}, ptr %to, i64 {k}\n  store {v} %s{k}, ptr %k{k}" for k in carried
    )
    body = "\n".join(lines)
    return f"""
define void @run(ptr %from, ptr %to, i64 %bytes, i64 %passes) {{
entry:
  br label %pass
pass:
  %n = phi i64 [0, %entry], [%n1, %again]
{outer}
  br label %loop
loop:
  %i = phi i64 [0, %pass], [%i1, %loop]
{inner}
{body}
  %i1 = add i64 %i, {UNROLL * vector}
  %more = icmp ult i64 %i1, %bytes
  br i1 %more, label %loop, label %again
again:
  %n1 = add i64 %n, 1
  %left = icmp ult i64 %n1, %passes
  br i1 %left, label %pass, label %done
done:
{keep}
  ret void
}}
!0 = !{{i32 1}}
"""


CLOCK_IR = """
define i64 @run(i64 %x, i64 %rounds) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %a = phi i64 [%x, %entry], [%h, %loop]
  %b = mul i64 %a, %a
  %c = mul i64 %b, %b
  %d = mul i64 %c, %c
  %e = mul i64 %d, %d
  %f = mul i64 %e, %e
  %g = mul i64 %f, %f
  %h = mul i64 %g, %g
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %rounds
  br i1 %more, label %loop, label %done
done:
  ret i64 %h
}
"""
#: Cycles of one round of CLOCK_IR on the usual cores: seven dependent 64-bit multiplications of three.
CLOCK_CYCLES = 21


@cache
def machine_code(text: str) -> tuple[int, Any]:
    """Address of `run` in freshly compiled IR, and what keeps it alive."""
    from nestegg.codegen.jit import compile_object, load_object
    from nestegg.ir.target import host

    loaded = load_object(compile_object(text, host()), ("run",))
    return loaded.symbols["run"], loaded


def function(text: str, *arguments: Any, result: Any = None) -> Callable[..., Any]:
    return ctypes.CFUNCTYPE(result, *arguments)(machine_code(text)[0])


def aligned(size: int, alignment: int = 4096) -> Any:
    """Zeroed bytes at a page's start (touched, so that they are there)."""
    import numpy as np

    raw = np.zeros(size + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    out = raw[start : start + size]
    out[:] = 0
    return out


def in_threads(cores: Sequence[int], work: Callable[[int], None]) -> float:
    """Seconds from the first start to the last end of `work(k)` in one thread a core, begun together."""
    if len(cores) == 1:
        begun = time.perf_counter()
        work(0)
        return time.perf_counter() - begun
    barrier = threading.Barrier(len(cores))
    times: list[tuple[float, float]] = []

    def body(k: int) -> None:
        os.sched_setaffinity(0, {cores[k]})
        barrier.wait()
        begun = time.perf_counter()
        work(k)
        times.append((begun, time.perf_counter()))

    threads = [threading.Thread(target=body, args=(k,)) for k in range(len(cores))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return max(e for _, e in times) - min(b for b, _ in times)


def best_rate(amount: float, run: Callable[[int], float], seconds: float = 0.002, samples: int = 30) -> float:
    """`amount` per second, best of several samples of about `seconds`; `run(times)` returns its seconds."""
    times = 1
    while (took := min(run(times) for _ in range(3))) < seconds / 2 and times < 1 << 34:
        times = max(times * 2, int(times * seconds / max(took, 1e-7)))
    best = took / times
    for _ in range(samples):
        time.sleep(0.0005)  # the next sample begins with a fresh time slice
        best = min(best, run(times) / times)
    return amount / best


@dataclass(frozen=True)
class Limits:
    """Limits of `threads` cores together: peaks in 1e9 operations, bandwidths in 1e9 bytes a second."""

    threads: int
    clock_ghz: float
    peaks: dict[str, float]
    levels: dict[str, int]
    bandwidth: dict[str, dict[str, float]]

    @cached_property
    def flops(self) -> float:
        """Single-precision operations per second."""
        return self.peaks["f32"] * 1e9

    def level(self, size: int) -> str:
        """The smallest level that holds `size` bytes (L1 and L2 count once a thread)."""
        for name, capacity in self.levels.items():
            if size <= capacity * (self.threads if name in ("L1", "L2") else 1):
                return name
        return "DRAM"

    def mixed_bandwidth(self, read: float, written: float, level: str) -> float:
        """Bytes per second of a kernel that reads and writes so much: the better of the rates measured for
        it.

        Reads and writes may overlap as in a copy, or follow one another; large streams may bypass the caches.
        """
        rates = self.bandwidth[level]
        total = read + written
        shared = min(read, written)
        write = max(rates["write"], rates.get("stream", 0.0))
        rest = read - shared, written - shared
        overlapped = 2 * shared / rates["copy"] + rest[0] / rates["read"] + rest[1] / write
        apart = read / rates["read"] + written / write
        return total / min(overlapped, apart) * 1e9


def peak_kernels() -> dict[str, tuple[float, Callable[..., None]]]:
    """Name -> (operations a round, `run(buffer, rounds)`) of every multiply-add this machine has."""
    from nestegg.ir.target import host

    out = {}
    for p in _peaks(host().lanes(), cpu_flags()[1]):
        run = function(peak_ir(p), ctypes.c_void_p, ctypes.c_int64)
        out[p.name] = (float(p.operations * ACCUMULATORS), run)
    return out


def measure_peaks(cores: Sequence[int]) -> dict[str, float]:
    out = {}
    buffers = [aligned(ACCUMULATORS * 64) for _ in cores]
    for name, (operations, run) in peak_kernels().items():

        def once(times: int, run: Callable[..., None] = run) -> float:
            return in_threads(cores, lambda k: run(buffers[k].ctypes.data, times))

        out[name] = best_rate(operations * len(cores), once) / 1e9
    return out


def measure_clock() -> float:
    run = function(CLOCK_IR, ctypes.c_int64, ctypes.c_int64, result=ctypes.c_int64)
    return best_rate(CLOCK_CYCLES, lambda times: in_threads((0,), lambda k: run(3, times))) / 1e9


def measure_bandwidth(cores: Sequence[int], size: int, dram: bool, vector: int) -> dict[str, float]:
    """GB/s of each kind; `size` bytes a thread, of which a copy reads half and writes half."""
    arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    step = UNROLL * vector
    whole = max(step, size // step * step)
    half = max(step, whole // 2 // step * step)
    buffers = [aligned(whole + step * 64) for _ in cores]
    out = {}
    for kind in ("read", "write", "copy", *(("stream",) if dram else ())):
        run = function(stream_ir(kind, vector), *arguments)
        moved = half if kind == "copy" else whole

        def once(times: int, run: Callable[..., None] = run, moved: int = moved, kind: str = kind) -> float:
            def work(k: int) -> None:
                base = buffers[k].ctypes.data
                spare = base + whole + step if kind == "read" else base
                run(base, base + half if kind == "copy" else spare, moved, times)

            return in_threads(cores, work)

        amount = (2 if kind == "copy" else 1) * moved * len(cores)
        out[kind] = best_rate(amount, once, samples=8 if dram else 24) / 1e9
    return out


def measure(pinned: Pinned, bandwidth: bool = True) -> Limits:
    """All limits of the pinned cores (about three seconds a thread count)."""
    from nestegg.ir.target import host

    t, n = host(), len(pinned.cores)
    levels: dict[str, int] = dict(zip(("L1", "L2", "L3"), t.caches, strict=True))
    found: dict[str, dict[str, float]] = {}
    if bandwidth:
        for name, size in levels.items():
            each = int(size * SHARE) // (n if name == "L3" else 1)
            found[name] = measure_bandwidth(pinned.cores, each, False, t.vector_bytes)
        found["DRAM"] = measure_bandwidth(pinned.cores, DRAM_BYTES // n, True, t.vector_bytes)
    return Limits(n, measure_clock(), measure_peaks(pinned.cores), levels, found)


def table(limits: Limits) -> Any:
    from rich.table import Table

    t = Table(title=f"limits of {limits.threads} thread(s); clock {limits.clock_ghz:.2f} GHz")
    for column in ("what", "limit", "per cycle and core"):
        t.add_column(column, justify="left" if column == "what" else "right")
    per = limits.clock_ghz * limits.threads
    for name, rate in limits.peaks.items():
        t.add_row(f"multiply-add {name}", f"{rate:.0f} Gop/s", f"{rate / per:.0f} ops")
    for level, rates in limits.bandwidth.items():
        for kind, rate in rates.items():
            t.add_row(f"{level} {kind}", f"{rate:.0f} GB/s", f"{rate / per:.1f} B")
    return t


def main(threads: int, as_json: bool) -> None:
    import json

    import rich

    limits = measure(pin(threads))
    if as_json:
        print(json.dumps(asdict(limits)))
    else:
        rich.print(table(limits))


if __name__ == "__main__":
    import typer

    def command(threads: int = 1, json: bool = typer.Option(False, "--json")) -> None:
        """Measure this machine's limits."""
        main(threads, json)

    typer.run(command)
