"""A whole program: kernels in order over planned buffers, one LLVM module, one entry, callable with pointers.

    void nestegg_run(ptr* inputs, ptr* outputs, ptr constants, ptr arena)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from llvmlite import ir

from ..ir.errors import CallError
from ..ir.loops import Lowered, described
from ..ir.nest import Nest, parallel
from ..ir.target import Target
from ..ir.types import DTYPES, TensorType, dtype_of
from . import jit
from .ctypes_entry import CtypesEntry
from .kernel_code import KernelCode
from .llvm_types import I8, I32, I64, POINTER, TargetModule
from .memory import ALIGNMENT, Lifetime, MemoryPlan, aligned_bytes, plan
from .native import Native
from .pool import pool_symbols
from .python_entry import PythonEntry, unsupported

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
    kernel: Lowered
    nest: Nest
    args: tuple[int, ...]
    result: int
    seconds: float

    @property
    def schedule(self) -> str:
        """The nest as text."""
        return described(self.kernel, self.nest)


@dataclass(frozen=True, eq=False)
class MachineCode:
    """A program's object file and its constants, one block of bytes aligned to 64."""

    object: bytes
    constants: np.ndarray


def offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where arrays of these bytes begin in a block, and where the block ends."""
    ends = accumulate((-(-n // ALIGNMENT) * ALIGNMENT for n in sizes), initial=0)
    return tuple(ends)


@dataclass(frozen=True, eq=False)
class ConstantBlock:
    """Constants as machine code reads them: one block of aligned bytes, and the arrays in it (views)."""

    data: np.ndarray
    arrays: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, types: Sequence[TensorType], data: np.ndarray) -> ConstantBlock:
        """A block that holds arrays of these types."""
        starts = offsets([t.nbytes for t in types])
        arrays = (
            data[start : start + t.nbytes].view(DTYPES[t.dtype].numpy).reshape(t.shape)
            for t, start in zip(types, starts, strict=False)
        )
        return cls(data, tuple(arrays))

    @classmethod
    def empty(cls, types: Sequence[TensorType]) -> ConstantBlock:
        """A block for arrays of these types, to be filled in."""
        return cls.of(types, aligned_bytes(max(offsets([t.nbytes for t in types])[-1], 1)))


@dataclass(frozen=True, eq=False)
class Program:
    """What extraction chose, ready to lower: buffers, calls in order, the constants' arrays (by `Buffer.index`), and
    the block that they lie in, if they do."""

    buffers: tuple[Buffer, ...]
    calls: tuple[KernelCall, ...]
    constants: tuple[np.ndarray, ...]
    target: Target
    threads: int
    block: ConstantBlock | None = None

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
        return offsets([c.nbytes for c in self.constants])

    @cached_property
    def module(self) -> ir.Module:
        """The LLVM module."""
        module = TargetModule("nestegg", self.target.triple, self.target.features)
        functions: dict[tuple[Lowered, Nest], ir.Function] = {}
        for call in self.calls:
            key = (call.kernel, call.nest)
            if key not in functions:
                code = KernelCode(module, call.name, call.kernel, call.nest, self.target.lanes(), self.threads)
                functions[key] = code.emit()
        self._entry(module, functions)
        return module

    def _entry(self, module: ir.Module, functions: dict[tuple[Lowered, Nest], ir.Function]) -> None:
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

    @property
    def machine_code(self) -> MachineCode:
        """The object file, and the constants laid out as it reads them."""
        block = self.block
        if block is None:
            block = ConstantBlock.empty([TensorType(c.shape, dtype_of(c)) for c in self.constants])
            for place, array in zip(block.arrays, self.constants, strict=True):
                place[...] = array
        return MachineCode(self.object, block.data)

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


class Executable:
    """A program's machine code in this process, with its constants and arenas. Any number of threads may call it.

    inputs, outputs: the types of the arguments and results. bare: `entry.call` returns the only result itself.
    code: the program's machine code, if it was made before.
    `entry` is how Python calls it; `entry.kind` says whether in machine code or, and why, by ctypes. `native`: where
    it lies, for other machine code.
    """

    def __init__(
        self,
        program: Program,
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        bare: bool = False,
        code: MachineCode | None = None,
    ) -> None:
        self.code = code or program.machine_code
        loaded = program.load(self.code.object)
        owner = (loaded, self.code.constants)
        self.native = Native(loaded.symbols[ENTRY], self.code.constants.ctypes.data, program.memory.peak, owner)
        self.program, self.inputs, self.outputs = program, tuple(inputs), tuple(outputs)
        why = unsupported()
        self.entry: PythonEntry | CtypesEntry = (
            CtypesEntry(self.native, inputs, outputs, bare, why)
            if why
            else PythonEntry(self.native, inputs, outputs, bare, sum(c.seconds for c in program.calls))
        )

    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
        """Run into given arrays, none of which may overlap an output. Raises `CallError` if one does not match."""
        if self.entry.into(*inputs, *outputs) is None:
            types = ", ".join(map(str, self.inputs + self.outputs))
            raise CallError(
                f"run: takes {types} (inputs, then outputs) as aligned, C-contiguous, natively ordered NumPy arrays, "
                "outputs writeable; np.require makes such arrays"
            )
