"""Building programs: DRAM buffers, micro-op kernels, instructions and the tokens between them.

This is what a lowering calls. `Builder` collects a stream; `finish` closes it and gives a `Program`. Three things are
done for the caller:

- A micro-op kernel is kept on chip while there is room (the buffer is a ring) and loaded when it is not there; the
  first ones of a stream come with one LOAD at its begin, where they do not queue behind data. All micro-ops ever
  loaded stay in DRAM in an area that only grows: an evicted kernel cannot be overwritten before the LOAD that reads
  it has run.
- A token is carried by the instruction before it (a push) or after it (a pop) of its unit; where there is none, by a
  no-op.
- A stream that would grow beyond the instruction area is split: everything is waited for, and a new one begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import isa
from .config import DEFAULT, INSTRUCTION_BYTES, PAGE_BYTES, UOP_BYTES, Config, Memory
from .errors import ProgramError
from .isa import AluOp, Opcode, Unit
from .program import Output, Program, Segment
from .tokens import CONSUMER, POPS, PRODUCER, PUSHES, Queue

#: Instructions of one stream: the original runtime's area of 32 MiB.
STREAM_LIMIT = (32 << 20) // INSTRUCTION_BYTES
#: Micro-ops that the first LOAD of a stream may bring: some 500 cycles, while the first data are on their way.
PRELOAD_LIMIT = 1024
Uop = tuple[int, int, int]


@dataclass(frozen=True)
class Buffer:
    """A range of DRAM that begins at a page, so that its address is a whole number of elements of any kind."""

    name: str
    address: int
    size: int

    def element(self, config: Config, memory: Memory, offset: int = 0) -> int:
        """The `dram_base` of an element, counted from the buffer's begin."""
        return self.address // config.element_bytes(memory) + offset


@dataclass(frozen=True)
class Loop:
    """One of the two loops of a GEMM or ALU instruction: iterations, and what each adds to the indices."""

    trips: int = 1
    dst: int = 0
    src: int = 0
    wgt: int = 0


ONCE = Loop()


class Dram:
    """Buffers in whole pages from page 1 on; address 0 stays free, as in the original runtime."""

    def __init__(self) -> None:
        self._next = PAGE_BYTES
        self._data: list[Segment] = []

    def buffer(self, name: str, size: int, data: bytes | None = None) -> Buffer:
        """A new buffer of `size` bytes, with its first bytes if they are given."""
        if data is not None and len(data) > size:
            raise ProgramError(f"buffer {name}: {len(data)} bytes of data do not fit {size}")
        buffer = Buffer(name, self._next, size)
        self._next += max(1, math.ceil(size / PAGE_BYTES)) * PAGE_BYTES
        if data is not None:
            self._data.append(Segment(buffer.address, data))
        return buffer

    def holding(self, name: str, data: bytes) -> Buffer:
        """A new buffer with data that fill it."""
        return self.buffer(name, len(data), data)

    @property
    def data(self) -> tuple[Segment, ...]:
        return tuple(self._data)


@dataclass
class _UopCache:
    """Which kernels lie where in the micro-op buffer. A new one goes behind the last, or to 0 if it does not fit."""

    depth: int
    resident: dict[tuple[Uop, ...], int] = field(default_factory=dict)
    end: int = 0

    def place(self, kernel: tuple[Uop, ...]) -> int:
        """The position of a kernel that is not resident; those that it overlaps are evicted."""
        begin = self.end if self.end + len(kernel) <= self.depth else 0
        self.end = begin + len(kernel)
        overlapped = [k for k, at in self.resident.items() if at < self.end and begin < at + len(k)]
        for k in overlapped:
            del self.resident[k]
        self.resident[kernel] = begin
        return begin


class Builder:
    """One stream of instructions in the making. Instructions are appended in the order in which fetch reads them.

    Between them, `push` and `pop` say what must wait for what. A push belongs to the last instruction of its unit and
    a pop to the next; no-ops are added where one bit cannot carry two tokens.
    """

    def __init__(self, config: Config = DEFAULT, dram: Dram | None = None, limit: int = STREAM_LIMIT) -> None:
        self.config, self.dram, self.limit = config, dram or Dram(), limit
        self._rows: list[dict[str, int]] = []
        self._last: dict[Unit, int] = {}
        self._pending: dict[Unit, list[str]] = {u: [] for u in Unit}
        self._cache = _UopCache(config.depth(Memory.UOP))
        self._kernels: list[tuple[Uop, ...]] = []  # in the order of their LOADs, each as often as it was loaded
        self._loads: list[tuple[int, int]] = []  # (row, offset in the micro-op area)
        self._in_dram: dict[tuple[Uop, ...], int] = {}
        self._uop_count = self._preloaded = 0

    # --- instructions -----------------------------------------------------------------------------

    def load(
        self,
        memory: Memory,
        buffer: Buffer,
        offset: int,
        sram: int,
        rows: int,
        columns: int,
        stride: int,
        y_pad: tuple[int, int] = (0, 0),
        x_pad: tuple[int, int] = (0, 0),
    ) -> None:
        """Copy `rows` x `columns` elements, `stride` apart, to on-chip elements from `sram` on, with zeros around."""
        unit = Unit.LOAD if memory in (Memory.INP, Memory.WGT) else Unit.COMPUTE
        fields = self._transfer(memory, buffer, offset, sram, rows, columns, stride)
        pads = {"y_pad_0": y_pad[0], "y_pad_1": y_pad[1], "x_pad_0": x_pad[0], "x_pad_1": x_pad[1]}
        self._append(unit, {"opcode": Opcode.LOAD} | fields | pads)

    def store(self, buffer: Buffer, offset: int, sram: int, rows: int, columns: int, stride: int) -> None:
        """Copy `rows` x `columns` output elements that lie without gaps from `sram` on to rows `stride` apart."""
        fields = self._transfer(Memory.OUT, buffer, offset, sram, rows, columns, stride)
        self._append(Unit.STORE, {"opcode": Opcode.STORE} | fields)

    def _transfer(
        self, memory: Memory, buffer: Buffer, offset: int, sram: int, rows: int, columns: int, stride: int
    ) -> dict[str, int]:
        last = offset + (rows - 1) * stride + columns
        if offset < 0 or last * self.config.element_bytes(memory) > buffer.size:
            raise ProgramError(f"buffer {buffer.name}: elements {offset} … {last} leave its {buffer.size} bytes")
        return {
            "memory": memory,
            "sram_base": sram,
            "dram_base": buffer.element(self.config, memory, offset),
            "y_size": rows,
            "x_size": columns,
            "x_stride": stride,
        }

    def gemm(self, kernel: Iterable[Uop], outer: Loop = ONCE, inner: Loop = ONCE, reset: bool = False) -> None:
        """acc[dst] += inp[src] · wgt[wgt] for every micro-op and iteration, or acc[dst] = 0."""
        fields = self._loops(kernel, outer, inner) | {"opcode": Opcode.GEMM, "reset": int(reset)}
        self._append(Unit.COMPUTE, fields | {"wgt_factor_out": outer.wgt, "wgt_factor_in": inner.wgt})

    def alu(
        self,
        op: AluOp,
        kernel: Iterable[Uop],
        outer: Loop = ONCE,
        inner: Loop = ONCE,
        immediate: int | None = None,
    ) -> None:
        """acc[dst] = op(acc[dst], acc[src] or an immediate). An immediate operation is in place: src must be dst."""
        fields = self._loops(kernel, outer, inner) | {"opcode": Opcode.ALU, "alu_op": op}
        if immediate is not None:
            fields |= {"use_imm": 1, "imm": immediate}
        self._append(Unit.COMPUTE, fields)

    def _loops(self, kernel: Iterable[Uop], outer: Loop, inner: Loop) -> dict[str, int]:
        ops = tuple(kernel)
        begin = self._on_chip(ops)
        return {
            "uop_bgn": begin,
            "uop_end": begin + len(ops),
            "iter_out": outer.trips,
            "iter_in": inner.trips,
            "dst_factor_out": outer.dst,
            "dst_factor_in": inner.dst,
            "src_factor_out": outer.src,
            "src_factor_in": inner.src,
        }

    def _on_chip(self, kernel: tuple[Uop, ...]) -> int:
        """Where a kernel lies in the micro-op buffer, after a LOAD if it was not there."""
        if not 0 < len(kernel) <= self._cache.depth:
            raise ProgramError(f"a micro-op kernel of {len(kernel)}: the buffer holds {self._cache.depth}")
        if kernel in self._cache.resident:
            return self._cache.resident[kernel]
        begin = self._cache.place(kernel)
        if kernel not in self._in_dram:
            self._in_dram[kernel] = self._uop_count
            self._kernels.append(kernel)
            self._uop_count += len(kernel)
            if self._uop_count == self._cache.end <= PRELOAD_LIMIT:  # nothing came before on demand
                self._preloaded = self._uop_count
                return begin
        # Pops that wait for the instruction itself stay pending: the LOAD reads nothing that they protect.
        pending, self._pending[Unit.COMPUTE] = self._pending[Unit.COMPUTE], []
        sizes = {"sram_base": begin, "y_size": 1, "x_size": len(kernel), "x_stride": len(kernel)}
        self._append(Unit.COMPUTE, {"opcode": Opcode.LOAD, "memory": Memory.UOP} | sizes)
        self._loads.append((len(self._rows) - 1, self._in_dram[kernel]))
        self._pending[Unit.COMPUTE] = pending
        return begin

    def _append(self, unit: Unit, fields: dict[str, int]) -> None:
        if len(self._rows) >= self.limit:
            raise ProgramError(f"more than {self.limit} instructions: split the stream where no token is outstanding")
        pops = self._pending[unit]
        self._pending[unit] = []
        self._rows.append(fields | dict.fromkeys(pops, 1))
        self._last[unit] = len(self._rows) - 1

    # --- tokens -----------------------------------------------------------------------------------

    def push(self, queue: Queue) -> None:
        """When the last instruction of the queue's producer is done, add a token.

        Before → after: `gemm` … `gemm push_prev`, or a no-op with the bit if there is no instruction, if it carries
        the bit already, or if a pop is pending, which must come first.
        """
        unit = PRODUCER[queue]
        bit = next(name for name, q in PUSHES[unit] if q == queue)
        at = self._last.get(unit)
        if at is None or self._pending[unit] or self._rows[at].get(bit):
            self._no_op(unit)
            at = self._last[unit]
        self._rows[at][bit] = 1

    def pop(self, queue: Queue) -> None:
        """Let the next instruction of the queue's consumer wait for a token."""
        unit = CONSUMER[queue]
        bit = next(name for name, q in POPS[unit] if q == queue)
        if bit in self._pending[unit]:
            self._no_op(unit)
        self._pending[unit].append(bit)

    def _no_op(self, unit: Unit) -> None:
        opcode = Opcode.STORE if unit == Unit.STORE else Opcode.LOAD
        memory = {Unit.LOAD: Memory.INP, Unit.COMPUTE: Memory.UOP, Unit.STORE: Memory.OUT}[unit]
        self._append(unit, {"opcode": opcode, "memory": memory})

    def drain(self, waiting: Sequence[Queue]) -> None:
        """Wait for all units, so that what follows may use any place again. `waiting`: all tokens that are still in
        their queues."""
        for queue in waiting:
            self.pop(queue)
        # What compute does next comes after all loads and stores; load and store units go on when it has begun.
        for into in (Queue.L2C, Queue.S2C):
            if self._last.get(PRODUCER[into]) is not None:
                self.push(into)
                self.pop(into)
        for queue in (Queue.C2L, Queue.C2S):
            self.push(queue)
            self.pop(queue)

    # --- closing ----------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Instructions so far, and those that closing the stream takes at most."""
        return len(self._rows) + 8

    def finish(self, outputs: Sequence[Buffer] = (), wait_for: Sequence[Queue] = ()) -> Program:
        """Close the stream: wait for all units, then FINISH. `wait_for`: all tokens that are still in their queues.

        Raises `ProgramError` if a field does not fit; `check.check` of the result says whether it is sound.
        """
        for queue in wait_for:
            self.pop(queue)
        for unit in (Unit.LOAD, Unit.STORE):
            if self._pending[unit]:
                self._no_op(unit)
        for queue in (Queue.S2C, Queue.L2C):
            at = self._last.get(PRODUCER[queue])
            bit = next(name for name, q in PUSHES[PRODUCER[queue]] if q == queue)
            covered = at is None or (queue in wait_for and self._rows[at].get(bit))
            if not covered:
                self.push(queue)
                self.pop(queue)
        if self._pending[Unit.COMPUTE]:
            self._no_op(Unit.COMPUTE)
        self._append(Unit.COMPUTE, {"opcode": Opcode.FINISH})
        return self._program(outputs)

    def _program(self, outputs: Sequence[Buffer]) -> Program:
        ops = isa.encode_uops(isa.uops([op for kernel in self._kernels for op in kernel]), self.config)
        uops = self.dram.buffer("uops", len(ops))
        for row, offset in self._loads:
            self._rows[row]["dram_base"] = uops.address // UOP_BYTES + offset
        if self._preloaded:
            sizes = {"y_size": 1, "x_size": self._preloaded, "x_stride": self._preloaded}
            first = {"opcode": Opcode.LOAD, "memory": Memory.UOP, "dram_base": uops.address // UOP_BYTES}
            self._rows.insert(0, first | sizes)
        stream = np.zeros(len(self._rows), isa.INSTRUCTION)
        for index, fields in enumerate(self._rows):
            for name, value in fields.items():
                stream[name][index] = value
        code = isa.encode(stream, self.config)
        instructions = self.dram.buffer("instructions", len(code))
        results = tuple(Output(b.name, b.address, b.size) for b in outputs)
        return Program(
            *(self.config, code, instructions.address, ops, uops.address, self.dram.data, results),
        )


class Streams:
    """Several streams over one DRAM, for work that is too long for one. Each program continues where the last ended."""

    def __init__(self, config: Config = DEFAULT, limit: int = STREAM_LIMIT) -> None:
        self.config, self.dram, self.limit = config, Dram(), limit
        self.builder = Builder(config, self.dram, limit)
        self._done: list[Program] = []

    def split(self, room: int = 64) -> Builder:
        """The builder to go on with; a new one if the current stream has no room for that many instructions more.

        Call it where no token is outstanding.
        """
        if self.builder.count + room > self.limit:
            self._done.append(self.builder.finish())
            self.builder = Builder(self.config, self.dram, self.limit)
        return self.builder

    def finish(self, outputs: Sequence[Buffer] = ()) -> list[Program]:
        """All programs, in order; the last one has the outputs. `functional.run_all` runs them."""
        return [*self._done, self.builder.finish(outputs)]
