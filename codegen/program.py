"""A whole program: kernels in order over planned buffers, one LLVM module, one entry, callable with pointers.

    void nestegg_run(ptr* inputs, ptr* outputs, ptr constants, ptr arena)
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llvmlite import ir

from ..ir.loops import LoopKernel
from ..ir.nest import Nest, parallel, text
from ..ir.target import Target
from ..ir.types import TensorType
from . import jit
from .kernel_code import KernelCode
from .llvm_types import I8, I32, I64, POINTER
from .memory import ALIGNMENT, Lifetime, MemoryPlan, plan
from .pool import pool_symbols

ENTRY = "nestegg_run"


@dataclass(frozen=True)
class Buffer:
    """Where a tensor lies. `space`: `input` or `output` (`index` is its number), `constant`, or `temporary`."""

    type: TensorType
    space: str
    index: int = 0


@dataclass(frozen=True)
class KernelCall:
    """A kernel with its nest, reading buffers `args` and writing buffer `result` (numbers in `Program.buffers`)."""

    name: str
    kernel: LoopKernel
    nest: Nest
    args: tuple[int, ...]
    result: int
    seconds: float

    @property
    def schedule(self) -> str:
        """The nest as text."""
        return text(self.nest, [a.name for a in self.kernel.axes])


@dataclass(frozen=True, eq=False)
class Program:
    """What extraction chose, ready to lower: buffers, calls in order, and the constants' arrays (by `Buffer.index`)."""

    buffers: tuple[Buffer, ...]
    calls: tuple[KernelCall, ...]
    constants: tuple[np.ndarray, ...]
    target: Target
    threads: int

    @property
    def forks(self) -> bool:
        """Some kernel runs in parallel, so the program calls the thread pool."""
        return any(parallel(c.nest) for c in self.calls)

    @cached_property
    def memory(self) -> MemoryPlan:
        """Places of the temporaries."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for step, call in enumerate(self.calls):
            for b in (*call.args, call.result):
                if self.buffers[b].space == "temporary":
                    first.setdefault(b, step)
                    last[b] = step
        return plan([Lifetime(b, self.buffers[b].type.nbytes, first[b], last[b]) for b in first])

    @cached_property
    def constant_offsets(self) -> tuple[int, ...]:
        offsets, at = [], 0
        for c in self.constants:
            offsets.append(at)
            at += -(-c.nbytes // ALIGNMENT) * ALIGNMENT
        return (*offsets, at)

    @cached_property
    def module(self) -> ir.Module:
        """The LLVM module."""
        module = ir.Module("nestegg")
        module.triple = self.target.triple
        functions: dict[tuple[LoopKernel, Nest], ir.Function] = {}
        for call in self.calls:
            key = (call.kernel, call.nest)
            if key not in functions:
                code = KernelCode(module, call.name, call.kernel, call.nest, self.target.lanes(), self.threads)
                functions[key] = code.emit()
        self._entry(module, functions)
        return module

    def _entry(self, module: ir.Module, functions: dict[tuple[LoopKernel, Nest], ir.Function]) -> None:
        entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 4), ENTRY)
        b = ir.IRBuilder(entry.append_basic_block("entry"))
        inputs, outputs, constants, arena = entry.args
        known: dict[int, ir.Value] = {}

        def at(base: ir.Value, offset: int) -> ir.Value:
            return b.gep(base, [ir.Constant(I64, offset)], inbounds=True, source_etype=I8)

        def pointer(n: int) -> ir.Value:
            if n not in known:
                buffer = self.buffers[n]
                if buffer.space in ("input", "output"):
                    table = inputs if buffer.space == "input" else outputs
                    slot = b.gep(table, [ir.Constant(I32, buffer.index)], inbounds=True, source_etype=POINTER)
                    known[n] = b.load(slot, typ=POINTER)
                elif buffer.space == "constant":
                    known[n] = at(constants, self.constant_offsets[buffer.index])
                else:
                    known[n] = at(arena, self.memory.offsets[n])
            return known[n]

        for call in self.calls:
            b.call(functions[call.kernel, call.nest], [pointer(n) for n in (*call.args, call.result)])
        b.ret_void()

    @cached_property
    def llvm(self) -> str:
        """The module as text."""
        return str(self.module)

    @cached_property
    def object(self) -> bytes:
        """The module as an object file."""
        return jit.compile_object(self.llvm, self.target)

    def load(self, code: bytes | None = None) -> jit.Loaded:
        """Its machine code (or `code`, an object made earlier) in this process, with the thread pool if it forks."""
        return jit.load_object(self.object if code is None else code, (ENTRY,), pool_symbols() if self.forks else {})

    def __str__(self) -> str:
        lines = []
        for call in self.calls:
            args = ", ".join(self._buffer_name(a) for a in call.args)
            lines.append(f"{self._buffer_name(call.result)} = {call.name}({args})")
            lines += ["  " + line for line in str(call.kernel).splitlines()[1:]]
            lines += ["    " + line for line in call.schedule.splitlines()]
        return "\n".join(lines)

    def _buffer_name(self, n: int) -> str:
        b = self.buffers[n]
        return f"{b.space}{b.index if b.space != 'temporary' else n}: {b.type}"


def aligned_bytes(size: int) -> np.ndarray:
    """Uninitialised bytes whose first is aligned to 64."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


class Executable:
    """A program's machine code in this process, with its constants and arena."""

    def __init__(self, program: Program, code: bytes | None = None) -> None:
        self._loaded = program.load(code)
        self._run = self._loaded.function(ENTRY, *[ctypes.c_void_p] * 4)
        self._constants = aligned_bytes(max(program.constant_offsets[-1], 1))
        for array, start in zip(program.constants, program.constant_offsets, strict=False):
            self._constants[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._constants_at = self._constants.ctypes.data
        self._arena_size = program.memory.peak
        self._free: list[_Frame] = []

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Run on contiguous arrays of the right types (not checked here)."""
        try:
            frame = self._free.pop()
        except IndexError:
            frame = _Frame(self._arena_size, len(inputs), len(outputs))
        try:
            for k, a in enumerate(inputs):
                frame.inputs[k] = a.__array_interface__["data"][0]
            for k, a in enumerate(outputs):
                frame.outputs[k] = a.__array_interface__["data"][0]
            self._run(frame.inputs, frame.outputs, self._constants_at, frame.address)
        finally:
            self._free.append(frame)


class _Frame:
    """What one call at a time uses: an arena and the tables of pointers."""

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        self.memory = aligned_bytes(max(size, 1))
        self.address = self.memory.ctypes.data
        self.inputs = (ctypes.c_void_p * max(inputs, 1))()
        self.outputs = (ctypes.c_void_p * max(outputs, 1))()
