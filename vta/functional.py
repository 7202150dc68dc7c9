"""What a program computes: bit-exact execution, without time.

Units go in any order that the tokens allow (by default the lowest one that can): a program without races gives the
same memory in each. Where the original implementations differ, a `Profile` says whose behaviour is wanted; the
canonical one refuses what they do not agree on. Nothing a program does can crash the simulator or keep it busy for
ever: every instruction is checked before it runs, a deadlock is reported with the instructions that wait, and work is
bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import isa
from .config import DEFAULT, INSTRUCTION_BYTES, UOP_BYTES, Config, Memory
from .errors import ExecutionError
from .interpreter import RANGES, Slot, kinds
from .isa import AluOp, Instruction, Opcode, Unit
from .kernels import kernels
from .layout import element_bits, element_shape, pack_lanes, signed_lanes
from .legality import CODES, PORTABLE_SHIFT, Finding, element_sizes, instruction_findings
from .program import Program
from .tokens import Dispatch, Queue, token_sets

#: Micro-op executions after which a program is stopped: some 10 s of machine time.
WORK_LIMIT = 1 << 32
#: Micro-op executions of one instruction that profiles with an own order of indices expand.
EXPANDED_LIMIT = 1 << 22
#: Faults that have a defined result on the functional level; the checker reports them.
_HARMLESS = frozenset({"V1101", "V501"})
#: A loop of one iteration.
_ONCE = (1, 0, 0, 0)
#: As plain numbers: to look an enumeration's member up takes as long as a short instruction.
_LOAD, _STORE, _GEMM, _ALU, _FINISH = map(int, (Opcode.LOAD, Opcode.STORE, Opcode.GEMM, Opcode.ALU, Opcode.FINISH))
_UOP, _WGT, _SHR = int(Memory.UOP), int(Memory.WGT), int(AluOp.SHR)
#: Types of lanes by their bytes.
_LANES = {1: np.dtype("<i1"), 2: np.dtype("<i2"), 4: np.dtype("<i4")}


@dataclass(frozen=True)
class Profile:
    """How one implementation behaves where they differ.

    `tolerates`: codes of the checker that it does not stop at. `strict`: STORE of an output that no ALU or GEMM
    instruction wrote last, and register shifts outside of 0 … 15, are errors. `own_out`: STORE reads a buffer of its
    own, which LOAD ACC and GEMM reset do not change. `shift`: how it reads an amount, "exact", "signed 5 bits" (-16 …
    15) or "low 5 bits" (with the sign kept). `zero_trips`: what 0 iterations mean. `wraps`: indices are taken modulo
    the buffer's depth. `source_immediate`: an immediate operation reads its source. `one_row`: micro-ops and weights
    are loaded without rows or padding.
    """

    name: str
    tolerates: frozenset[str] = frozenset()
    strict: bool = False
    isa_ext: bool = False
    own_out: bool = False
    reset_writes_dot: bool = False
    shift: str = "exact"
    negative_lanes_shift_right: bool = False
    zero_trips: int = 0
    wraps: bool = False
    source_immediate: bool = False
    one_row: bool = False
    only: Config | None = None

    @property
    def ordinary(self) -> bool:
        """Whether all that it does differently from the canonical one is to let something pass."""
        own = (self.own_out, self.reset_writes_dot, self.negative_lanes_shift_right, self.wraps, self.one_row)
        return not (any(own) or self.zero_trips or self.source_immediate) and self.shift == "exact"


_ANY_SHIFT = frozenset({"V701", "V703", "V801"})
PROFILES = {
    p.name: p
    for p in (
        Profile("strict", strict=True),
        Profile("strict-ext", strict=True, isa_ext=True),
        Profile("loose", isa_ext=True, tolerates=frozenset({"V703"})),
        Profile("fsim", isa_ext=True, tolerates=frozenset({"V201", "V202", "V404", "V405", "V703", "V801"})),
        Profile(
            *("hls", _ANY_SHIFT | {"V201", "V202", "V404", "V405"}),
            own_out=True, reset_writes_dot=True, shift="signed 5 bits", one_row=True,
        ),
        Profile(
            *("rtl", _ANY_SHIFT | {"V202", "V301", "V302", "V303"}),
            own_out=True, shift="low 5 bits", negative_lanes_shift_right=True, zero_trips=1 << 14, wraps=True,
            source_immediate=True, only=DEFAULT,
        ),
    )
}  # fmt: skip
STRICT = PROFILES["strict"]


@dataclass(frozen=True)
class Counters:
    """Bytes that a program moves between DRAM and each buffer, padding not counted, and micro-op executions."""

    inp_bytes: int
    wgt_bytes: int
    acc_bytes: int
    uop_bytes: int
    out_bytes: int
    gemm_uops: int
    alu_uops: int

    @classmethod
    def of(cls, s: isa.Stream, config: Config, zero_trips: int = 0) -> Counters:
        """Of a program that ran to its end; a reset is no execution."""
        moved = s["y_size"] * s["x_size"] * element_sizes(s, config)
        load, store, gemm, alu = (s["opcode"] == o for o in (Opcode.LOAD, Opcode.STORE, Opcode.GEMM, Opcode.ALU))
        outer, inner = (np.where(s[name] == 0, zero_trips, s[name]) for name in ("iter_out", "iter_in"))
        executed = outer * inner * np.maximum(s["uop_end"] - s["uop_bgn"], 0)

        def loaded(*memories: Memory) -> int:
            return int(moved[load & np.isin(s["memory"], memories)].sum())

        return cls(
            inp_bytes=loaded(Memory.INP),
            wgt_bytes=loaded(Memory.WGT),
            acc_bytes=loaded(Memory.ACC, Memory.ACC_8BIT),
            uop_bytes=loaded(Memory.UOP),
            out_bytes=int(moved[store].sum()),
            gemm_uops=int(executed[gemm & (s["reset"] == 0)].sum()),
            alu_uops=int(executed[alu].sum()),
        )


@dataclass(frozen=True)
class Result:
    """DRAM when no unit can go on, what was counted, and the tokens that are left in each queue."""

    dram: NDArray[np.uint8]
    counters: Counters
    tokens: dict[Queue, int]


def run(
    program: Program,
    profile: Profile = STRICT,
    *,
    choose: Callable[[Sequence[Unit]], Unit] | None = None,
    work_limit: int = WORK_LIMIT,
    vnni: bool = True,
    before: NDArray[np.uint8] | None = None,
) -> Result:
    """Execute a program. All on-chip buffers begin at zero; DRAM begins as `program.image(before)`.

    `choose` picks the unit that goes next among those that can, by default the lowest one. Raises `ExecutionError` with
    the checker's code if an instruction is not legal (for this profile), if units wait for each other, or after
    `work_limit` micro-ops.
    """
    if profile.only not in (None, program.config):
        raise ExecutionError("V1301", f"profile {profile.name} exists for {profile.only.name} only")
    if len(program.code) % INSTRUCTION_BYTES:
        raise ExecutionError("V1603", f"{len(program.code)} bytes")
    stream = program.stream
    for finding in instruction_findings(stream, program.config, program.dram_bytes, profile.isa_ext):
        if finding.error and finding.code not in profile.tolerates | _HARMLESS:
            raise _refused(finding)
    machine = _Machine(program.config, program.image(before), profile, work_limit, vnni)
    if choose is None and profile.ordinary:
        tokens = _Interpreter(machine, stream).run()
    else:
        tokens = _run_one_by_one(machine, stream, choose or (lambda ready: ready[0]))
    counters = Counters.of(stream, program.config, profile.zero_trips)
    return Result(machine.dram, counters, tokens)


def _run_one_by_one(
    machine: _Machine, stream: isa.Stream, choose: Callable[[Sequence[Unit]], Unit]
) -> dict[Queue, int]:
    """All instructions in Python, in an order that can be chosen; the tokens that are left."""
    rows, dispatch = isa.rows(stream), Dispatch(stream)
    finished = None
    while ready := dispatch.ready():
        index = dispatch.begin(choose(ready))
        machine.require_unfinished(index, finished)
        machine.execute(index, rows[index])
        dispatch.complete(index)
        if rows[index].opcode == _FINISH:
            finished = index
    _require_done(dispatch)
    return {q: dispatch.tokens[q] for q in Queue}


def _require_done(dispatch: Dispatch) -> None:
    if dispatch.stuck is not None:
        raise _refused(Finding("V1501", dispatch.stuck, dispatch.explain()))


class _Interpreter:
    """The loop in machine code over the instructions of a program, and what it leaves to Python."""

    def __init__(self, machine: _Machine, stream: isa.Stream) -> None:
        units = isa.units(stream)
        pops, self.pushes = token_sets(stream, units)
        self.machine, self.stream = machine, np.ascontiguousarray(stream)
        of_unit = [np.flatnonzero(units == u) for u in Unit]
        ends = np.cumsum([len(o) for o in of_unit])
        self.starts = ends - [len(o) for o in of_unit]
        self.state, self._kept = np.zeros(len(Slot), np.int64), []
        self._point(Slot.ROWS, self.stream, kinds(stream, machine.config), pops, self.pushes, np.concatenate(of_unit))
        self._point(Slot.DRAM, machine.dram, machine.acc, machine.state, machine.inp, machine.wgt)
        self._point(Slot.UOP_DST, *machine.uops.values(), machine.right, machine.zeros)
        self._point(Slot.RANGE_KEYS, *self._groups(machine.depth[Memory.UOP], machine.depth[Memory.WGT]))
        self.state[Slot.NEXT : Slot.NEXT + len(Unit)] = self.starts
        self.state[Slot.END : Slot.END + len(Unit)] = ends
        self.state[Slot.FINISHED], self.state[Slot.STRICT] = -1, machine.profile.strict
        self.state[Slot.WORK_LIMIT] = machine.work_limit

    def _point(self, first: Slot, *arrays: NDArray) -> None:
        """Put the addresses of arrays into the slots from `first` on."""
        self._kept += arrays
        self.state[first : first + len(arrays)] = [array.ctypes.data for array in arrays]

    def _groups(self, uops: int, weights: int) -> list[NDArray[np.int64]]:
        """The interpreter's memory for ranges of micro-ops in groups of one weight."""
        self.ranges = np.full((RANGES, 2), -1, np.int64)
        grouped = [np.empty((RANGES, uops + more), np.int64) for more in (0, 0, 0, 1)]
        chains = [np.full(weights, -1, np.int64), np.empty(weights, np.int64), np.empty(uops, np.int64)]
        return [self.ranges, np.empty((RANGES, 4), np.int64), *grouped, *chains]

    def run(self) -> dict[Queue, int]:
        """Run to the end; the tokens that are left. Raises `ExecutionError`."""
        state, address = self.state, self.state.ctypes.data
        while True:
            self.machine.kernels.execute(address)
            index = int(state[Slot.STOPPED])
            if index < 0:
                break
            self._in_python(index)
        left = state[Slot.TOKENS : Slot.TOKENS + len(Queue)].tolist()
        tokens = dict(zip(Queue, left, strict=True))
        if (state[Slot.NEXT : Slot.NEXT + len(Unit)] < state[Slot.END : Slot.END + len(Unit)]).any():
            self._explain(tokens)
        return tokens

    def _in_python(self, index: int) -> None:
        """Execute an instruction whose tokens have been taken, or say why not."""
        state, machine = self.state, self.machine
        finished = int(state[Slot.FINISHED])
        machine.require_unfinished(index, None if finished < 0 else finished)
        machine.work = int(state[Slot.WORK])
        machine.forget_micro_ops()
        machine.execute(index, Instruction._make(self.stream[index].item()))
        state[Slot.WORK] = machine.work
        self.ranges[...] = -1
        for q in Queue:
            state[Slot.TOKENS + q] += int(self.pushes[index]) >> q & 1

    def _explain(self, tokens: dict[Queue, int]) -> None:
        """Raise for units that wait for each other."""
        dispatch = Dispatch(self.stream)
        begun = self.state[Slot.NEXT : Slot.NEXT + len(Unit)] - self.starts
        dispatch.begun = dict(zip(Unit, begun.tolist(), strict=True))
        dispatch.tokens = {int(q): count for q, count in tokens.items()}
        _require_done(dispatch)


def run_all(programs: Sequence[Program], profile: Profile = STRICT) -> Result:
    """Execute programs one after another, each on the memory that the one before left; the last one's result."""
    result = run(programs[0], profile)
    for program in programs[1:]:
        result = run(program, profile, before=result.dram)
    return result


def _refused(finding: Finding) -> ExecutionError:
    return ExecutionError(finding.code, f"{CODES[finding.code].text} ({finding.detail})", finding.index)


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray:
    """Zeros whose address is a multiple of a cache line, so that no vector crosses one."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _pairs_by_output(weights: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """`[y, x, out, in]` to `[y, x, in / 2, out, 2]`, the order that GEMM kernels read."""
    y, x, out, reduced = weights.shape
    if weights.dtype == np.int8 and reduced > 1:
        # A pair moves as one 16-bit value: this is where LOAD WGT takes its time.
        pairs = np.ascontiguousarray(weights.view(np.int16).transpose(0, 1, 3, 2))
        return pairs.view(np.int8).reshape(y, x, reduced // 2, out, 2)
    return weights.reshape(y, x, out, -1, min(2, reduced)).transpose(0, 1, 3, 2, 4)


Loops = tuple[tuple[int, int], tuple[int, int]]


class _Uops:
    """What is known of a range of micro-ops: the largest index of each kind, whether dst = src everywhere, and the
    same micro-ops in groups of one weight.
    """

    def __init__(self, dst: NDArray[np.int64], src: NDArray[np.int64], wgt: NDArray[np.int64]) -> None:
        self.dst, self.src, self.wgt = int(dst.max()), int(src.max()), int(wgt.max())
        self.in_place = bool((dst == src).all())
        order = np.argsort(wgt, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(wgt[order])) + 1, len(wgt))
        self._arrays = (dst[order], src[order], wgt[order][ends - 1], np.append(0, ends))
        self.count, self.groups = len(dst), len(ends)
        self.addresses = [a.ctypes.data for a in self._arrays]


@dataclass
class _Machine:
    """The buffers, and one method for each kind of instruction."""

    config: Config
    dram: NDArray[np.uint8]
    profile: Profile
    work_limit: int
    vnni: bool

    def __post_init__(self) -> None:
        c = self.config
        depth = {m: c.depth(m) for m in Memory}
        pairs = max(1, c.block // 2)
        self.depth, self._uop_depth, self.work = depth, depth[Memory.UOP], 0
        self.kernels = kernels(c, self.vnni)
        self.acc = _aligned((depth[Memory.ACC], c.batch, c.block), np.int32)
        self.inp = _aligned((depth[Memory.INP], c.batch, 2 * pairs), np.int16)
        self.wgt = _aligned((depth[Memory.WGT], pairs, c.block, 2), np.int16)
        self.state = np.zeros(depth[Memory.ACC], np.uint8)
        self.out = np.zeros_like(self.acc) if self.profile.own_out else self.acc
        self._out = c.out_bits, c.element_bytes(Memory.OUT)
        self.uops = {name: np.zeros(depth[Memory.UOP], np.int64) for name in ("dst", "src", "wgt")}
        self._known: dict[tuple[int, int], _Uops] = {}
        self._dram = self.dram.data
        # Of each memory type that lanes are loaded from: the buffer, bytes and shape of an element, bits of a lane.
        buffers = {Memory.INP: self.inp, Memory.WGT: self.wgt, Memory.ACC: self.acc, Memory.ACC_8BIT: self.acc}
        self._forms = {
            int(m): (buffer, c.element_bytes(m), element_shape(c, m), element_bits(c, m))
            for m, buffer in buffers.items()
        }
        self._addresses = [a.ctypes.data for a in (self.acc, self.state, self.inp, self.wgt)]
        self._uop_addresses = {name: array.ctypes.data for name, array in self.uops.items()}
        # The right operand of an immediate operation: one element, at an index that stays 0.
        self.right = _aligned((c.batch, c.block), np.int32)
        self.zeros = np.zeros(depth[Memory.UOP], np.int64)
        self._right_address, self._zeros_address = self.right.ctypes.data, self.zeros.ctypes.data

    def execute(self, index: int, row: Instruction) -> None:
        opcode = row.opcode
        if opcode == _LOAD:
            if row.x_size:
                self._load(row)
        elif opcode == _STORE:
            if row.x_size:
                self._store(index, row)
        elif opcode == _GEMM:
            self._gemm(index, row)
        elif opcode == _ALU:
            self._alu(index, row)

    def require_unfinished(self, index: int, finished: int | None) -> None:
        """Raise if an instruction runs after FINISH and may not."""
        if finished is not None and self.profile.strict:
            raise _refused(Finding("V1404", finished, f"instruction {index} runs after it"))

    def forget_micro_ops(self) -> None:
        """Others have written to the micro-op buffer."""
        self._known.clear()

    # --- memory -----------------------------------------------------------------------------------

    def _source(self, row: Instruction, size: int, element: tuple[int, int], bits: int) -> NDArray[np.signedinteger]:
        """What a LOAD reads, `[y, x, rows, columns]` of signed lanes."""
        shape, start = (row.y_size, row.x_size, *element), row.dram_base * size
        strides = (row.x_stride * size, size)
        if bits >= 8:
            lane = bits // 8
            return np.ndarray(shape, _LANES[lane], self._dram, start, (*strides, element[1] * lane, lane))
        raw = np.ndarray((row.y_size, row.x_size, size), np.uint8, self._dram, start, (*strides, 1))
        return signed_lanes(raw.reshape(-1), bits).reshape(shape)

    def _load(self, row: Instruction) -> None:
        memory = row.memory
        if memory == _UOP:
            return self._load_uops(row)
        if self.profile.one_row and memory == _WGT:
            row = row._replace(y_pad_0=0, y_pad_1=0, x_pad_0=0, x_pad_1=0)
        height, width = row.y_pad_0 + row.y_size + row.y_pad_1, row.x_pad_0 + row.x_size + row.x_pad_1
        buffer, size, element, bits = self._forms[memory]
        if buffer is self.acc:
            where = slice(row.sram_base, row.sram_base + height * width)
            self._detach(where)
            self.state[where] = 0
        region = buffer[row.sram_base : row.sram_base + height * width].reshape(height, width, *buffer.shape[1:])
        if height * width > row.y_size * row.x_size:
            region[...] = 0
        inside = region[row.y_pad_0 : row.y_pad_0 + row.y_size, row.x_pad_0 : row.x_pad_0 + row.x_size]
        source = self._source(row, size, element, bits)
        if memory == _WGT:
            source = _pairs_by_output(source)
        inside[..., : source.shape[-1]] = source

    def _load_uops(self, row: Instruction) -> None:
        rows = 1 if self.profile.one_row else row.y_size
        self._known.clear()
        shape, strides = (rows, row.x_size, UOP_BYTES), (row.x_stride * UOP_BYTES, UOP_BYTES, 1)
        source = np.ndarray(shape, np.uint8, self._dram, row.dram_base * UOP_BYTES, strides)
        ops = isa.decode_uops(source.tobytes(), self.config).reshape(rows, row.x_size)
        pads = (0, 0, 0, 0) if self.profile.one_row else (row.y_pad_0, row.y_pad_1, row.x_pad_0, row.x_pad_1)
        for name, buffer in self.uops.items():
            values = np.pad(ops[name], (pads[:2], pads[2:])).reshape(-1)
            buffer[row.sram_base : row.sram_base + len(values)] = values

    def _store(self, index: int, row: Instruction) -> None:
        count = row.y_size * row.x_size
        where = slice(row.sram_base, row.sram_base + count)
        attached = self.state[where] == 1
        if self.profile.strict and not attached.all():
            element = row.sram_base + int(np.argmin(attached))
            raise _refused(Finding("V1601", index, f"output element {element}"))
        values = self.acc[where]
        if self.profile.own_out:
            values = np.where(attached[:, None, None], values, self.out[where])
        bits, size = self._out
        if bits >= 8:
            raw = values.astype(f"<i{bits // 8}").view(np.uint8)
        else:
            raw = pack_lanes(values.reshape(-1), bits)
        raw = raw.reshape(row.y_size, row.x_size * size)
        for y in range(row.y_size):  # in order: rows may overlap
            start = (row.dram_base + y * row.x_stride) * size
            self.dram[start : start + row.x_size * size] = raw[y]

    def _detach(self, where: slice) -> None:
        """Accumulators are about to change while OUT, if it is a buffer of its own, keeps what was written last."""
        if self.profile.own_out:
            kept = self.state[where] == 1
            self.out[where][kept] = self.acc[where][kept]

    # --- compute ----------------------------------------------------------------------------------

    def _loops(self, index: int, row: Instruction) -> tuple[int, int, int]:
        """Micro-ops and iterations, out and in, of an instruction; the work is limited."""
        count = row.uop_end - row.uop_bgn
        if count > 0 and row.uop_end > self._uop_depth:
            raise _refused(Finding("V201", index, f"uop {row.uop_bgn}:{row.uop_end}"))
        outer, inner = (n or self.profile.zero_trips for n in (row.iter_out, row.iter_in))
        executions = max(count, 0) * outer * inner
        self.work += executions
        if self.work > self.work_limit:
            raise _refused(Finding("V1602", index, f"{self.work} micro-ops"))
        return (count, outer, inner) if executions else (0, 0, 0)

    def _range(self, row: Instruction) -> _Uops:
        key = (row.uop_bgn, row.uop_end)
        if key not in self._known:
            self._known[key] = _Uops(*(array[row.uop_bgn : row.uop_end] for array in self.uops.values()))
        return self._known[key]

    def _fits(self, index: int, code: str, memory: Memory, top: int, loops: Loops) -> bool:
        """Whether the largest index of an operand is in its buffer. Raises unless the profile takes it modulo."""
        (outer, out), (inner, into) = loops
        last, depth = top + (outer - 1) * out + (inner - 1) * into, self.depth[memory]
        if last >= depth and not self.profile.wraps:
            raise _refused(Finding(code, index, f"{memory.name} {last} of {depth}"))
        return last < depth

    def _gemm(self, index: int, row: Instruction) -> None:
        count, outer, inner = self._loops(index, row)
        if not count:
            return
        known = self._range(row)
        fit = self._fits(
            *(index, "V301", Memory.ACC, known.dst),
            ((outer, row.dst_factor_out), (inner, row.dst_factor_in)),
        )
        if not row.reset or self.profile.reset_writes_dot:
            src = ((outer, row.src_factor_out), (inner, row.src_factor_in))
            wgt = ((outer, row.wgt_factor_out), (inner, row.wgt_factor_in))
            fit &= self._fits(index, "V302", Memory.INP, known.src, src)
            fit &= self._fits(index, "V303", Memory.WGT, known.wgt, wgt)
        out = (outer, row.dst_factor_out, row.src_factor_out, row.wgt_factor_out)
        into = (inner, row.dst_factor_in, row.src_factor_in, row.wgt_factor_in)
        if not fit:
            known = _Uops(*self._expanded(index, row, outer, inner))
            out = into = _ONCE
        if row.reset and self.profile.reset_writes_dot:
            self._reset_one_by_one(index, row, outer, inner)
        elif row.reset:
            self._detach(slice(None))
            self.kernels.reset(self._addresses[:2], known.addresses[0], known.count, out[:2], into[:2])
        else:
            self._accumulate(known, out, into)

    def _accumulate(self, known: _Uops, out: tuple[int, int, int, int], into: tuple[int, int, int, int]) -> None:
        free = [loop for loop in (out, into) if loop[3] == 0]
        held = max(free, default=_ONCE)
        rest = [loop for loop in (out, into) if loop is not held] + [_ONCE]
        self.kernels.gemm(self._addresses, known.addresses, known.groups, rest[0], rest[1], held[:3])

    def _expanded(self, index: int, row: Instruction, outer: int, inner: int) -> list[NDArray[np.int64]]:
        """dst, src and wgt of every iteration in order, modulo the buffers' depths."""
        count = row.uop_end - row.uop_bgn
        if count * outer * inner > EXPANDED_LIMIT:
            raise _refused(Finding("V1602", index, f"{count * outer * inner} micro-ops, one by one"))
        i, j = np.arange(outer)[:, None, None], np.arange(inner)[None, :, None]
        source = Memory.ACC if row.opcode == Opcode.ALU else Memory.INP
        factors = (
            ("dst", Memory.ACC, row.dst_factor_out, row.dst_factor_in),
            ("src", source, row.src_factor_out, row.src_factor_in),
            ("wgt", Memory.WGT, row.wgt_factor_out, row.wgt_factor_in),
        )
        found = []
        for name, memory, f_out, f_in in factors:
            each = self.uops[name][row.uop_bgn : row.uop_end] + i * f_out + j * f_in
            found.append(np.ascontiguousarray((each % self.depth[memory]).reshape(-1)))
        return found

    def _reset_one_by_one(self, index: int, row: Instruction, outer: int, inner: int) -> None:
        """The HLS design's: OUT gets what a GEMM would have given."""
        self._detach(slice(None))
        for d, s, w in zip(*self._expanded(index, row, outer, inner), strict=True):
            weight = self.wgt[w].transpose(1, 0, 2).reshape(self.config.block, -1)
            self.out[d] = self.acc[d] + self.inp[s].astype(np.int32) @ weight.T.astype(np.int32)
            self.acc[d] = self.state[d] = 0

    def _alu(self, index: int, row: Instruction) -> None:
        count, outer, inner = self._loops(index, row)
        if not count:
            return
        known, op = self._range(row), row.alu_op
        dst = (outer, row.dst_factor_out), (inner, row.dst_factor_in)
        src = (outer, row.src_factor_out), (inner, row.src_factor_in)
        fit = self._fits(index, "V301", Memory.ACC, known.dst, dst)
        fit &= self._fits(index, "V301", Memory.ACC, known.src, src)
        moved = row.use_imm and not (known.in_place and dst == src)
        if moved and "V801" not in self.profile.tolerates:
            raise _refused(Finding("V801", index, f"uop {row.uop_bgn}:{row.uop_end}"))
        slow = (moved and self.profile.source_immediate) or not fit
        if slow or (op == _SHR and not row.use_imm):
            return self._alu_one_by_one(index, row, outer, inner)
        right, indices = self._addresses[0], [self._uop_addresses[n] + 8 * row.uop_bgn for n in ("dst", "src")]
        if row.use_imm:
            self.right[...] = self._amount(op, row.imm)
            right, indices[1], src = self._right_address, self._zeros_address, ((outer, 0), (inner, 0))
        memories = (*self._addresses[:2], right)
        loops = [(trips, d, s) for (trips, d), (_, s) in zip(dst, src, strict=True)]
        self.kernels.alu(op, memories, indices, count, loops[0], loops[1])

    def _amount(self, op: int, imm: int) -> int:
        """The immediate that an operation uses."""
        if op != _SHR or self.profile.shift == "exact":
            return imm
        if self.profile.shift == "signed 5 bits":
            return (imm + 16) % 32 - 16
        return abs(imm) % 32 * (1 if imm >= 0 else -1)

    def _alu_one_by_one(self, index: int, row: Instruction, outer: int, inner: int) -> None:
        """Where operands must be looked at: register shifts, and the profiles' own ways of addressing."""
        op, profile = row.alu_op, self.profile
        dst, src, _ = self._expanded(index, row, outer, inner)
        self.right[...] = self._amount(op, row.imm)
        memories, address = (*self._addresses[:2], self._right_address), dst.ctypes.data
        for n, (d, s) in enumerate(zip(dst, src, strict=True)):
            if row.use_imm:
                self.acc[d] = self.acc[s if profile.source_immediate else d]
            else:
                self.right[...] = self._lanes(index, op, self.acc[s])
            self.kernels.alu(op, memories, (address + 8 * n, self._zeros_address), 1, _ONCE[:3], _ONCE[:3])

    def _lanes(self, index: int, op: int, lanes: NDArray[np.int32]) -> NDArray[np.int32]:
        """The right operand of a register operation as the profile sees it."""
        if op != _SHR:
            return lanes
        if self.profile.strict and ((lanes < 0) | (lanes > PORTABLE_SHIFT)).any():
            raise _refused(Finding("V703", index, f"lanes {lanes.min()} … {lanes.max()}"))
        return lanes & 31 if self.profile.negative_lanes_shift_right else lanes
