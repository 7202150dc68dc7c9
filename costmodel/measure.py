"""Measured times of nests: a kernel compiled alone with one nest, run in a loop of machine code on buffers of its own.

Buffers are aligned to pages and stay the same for all nests of a kernel, so that two nests differ by nothing else.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from ..codegen import jit
from ..codegen.program import ENTRY, Buffer, KernelCall, Program
from ..ir.loops import Lowered
from ..ir.nest import Nest
from ..ir.target import Target, host
from ..ir.types import DTYPES, TensorType

PAGE = 4096
#: Seconds that a single run may take however little patience there is: a first run is cold, and has a call to itself.
SHORT = 5e-4

REPEAT = """
define void @repeat(ptr %entry, i64 %times, ptr %inputs, ptr %outputs, ptr %constants, ptr %arena) {
begin:
  br label %loop
loop:
  %i = phi i64 [0, %begin], [%next, %loop]
  call void %entry(ptr %inputs, ptr %outputs, ptr %constants, ptr %arena)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %times
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def alone(kernel: Lowered, nest: Nest, target: Target, threads: int = 1) -> Program:
    """A program of one kernel: its operands are the program's inputs."""
    buffers = [Buffer(t, "input", k) for k, t in enumerate(kernel.inputs)] + [Buffer(kernel.out_type, "output")]
    operands = tuple(range(len(kernel.inputs)))
    return Program(
        tuple(buffers), (KernelCall("kernel", kernel, nest, operands, len(operands), 0.0),), (), target, threads
    )


class Bench:
    """One kernel's operands, random, and a stop-watch for its nests."""

    def __init__(self, kernel: Lowered, target: Target, threads: int = 1, seed: int = 0) -> None:
        self.kernel, self.target, self.threads = kernel, target, threads
        rng = np.random.default_rng(seed)
        self.inputs = [_filled(t, rng) for t in kernel.inputs]
        self.output = _paged(kernel.out_type)
        self._in = (ctypes.c_void_p * max(len(self.inputs), 1))(*(a.ctypes.data for a in self.inputs))
        self._out = (ctypes.c_void_p * 1)(self.output.ctypes.data)

    def load(self, nest: Nest) -> Timer:
        """Compile a nest; the result times it."""
        program = alone(self.kernel, nest, self.target, self.threads)
        return Timer(program.load(), self)

    def seconds(self, nest: Nest, samples: int = 5, min_sample: float = 0.002, give_up: float = float("inf")) -> float:
        """Seconds of one run: the fastest of some samples that last at least `min_sample` seconds each.

        A nest whose first runs take more than `give_up` seconds (and more than `SHORT`) is not run again.
        """
        return self.load(nest).seconds(samples, min_sample, give_up)


class Timer:
    """A nest's machine code on its bench."""

    def __init__(self, loaded: jit.Loaded, bench: Bench) -> None:
        self._loaded, self._bench = loaded, bench  # they own the memory
        self._entry = loaded.symbols[ENTRY]

    def run(self, times: int) -> float:
        """Seconds that so many runs take together."""
        bench, repeat = self._bench, native_repeat()
        begun = time.perf_counter()
        repeat(self._entry, times, bench._in, bench._out, None, None)
        return time.perf_counter() - begun

    def seconds(self, samples: int, min_sample: float, give_up: float = float("inf")) -> float:
        first = self.run(1)
        if first > max(give_up, SHORT):
            return first
        once = self.run(1)
        times = max(1, round(min_sample / max(once, 1e-8)))
        return min(once, *(self.run(times) / times for _ in range(samples)))


@cache
def native_repeat() -> Callable[..., None]:
    """`repeat(entry, times, inputs, outputs, constants, arena)`: calls of a program's entry without Python in between.

    All arguments but `times` are addresses; see `codegen.native.Native`.
    """
    loaded = jit.load_object(jit.compile_object(REPEAT, host()), ("repeat",))
    return loaded.function("repeat", ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 4)


def _paged(t: TensorType) -> np.ndarray:
    size = max(t.nbytes, 1)
    raw = np.zeros(size + PAGE, np.uint8)
    start = -raw.ctypes.data % PAGE
    return raw[start : start + size][: t.nbytes].view(DTYPES[t.dtype].numpy)


def _filled(t: TensorType, rng: np.random.Generator) -> np.ndarray:
    out = _paged(t)
    drawn = rng.standard_normal(out.size) if out.dtype.kind == "f" else rng.integers(0, 2, out.size)
    out[:] = drawn.astype(out.dtype)
    return out
