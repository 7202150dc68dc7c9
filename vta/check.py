"""The static checker: is a program legal, free of deadlocks and races, and does it mean the same on every VTA?

`check` takes any bytes and gives findings, never an exception. What it proves holds at every speed of the units:
queues are counters, so which push a pop waits for is known, and "before" is a partial order that vector clocks
capture (of each instruction: how many instructions of each unit are certainly over when it begins). Codes are in
`legality.CODES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import isa
from .config import INSTRUCTION_BYTES, Config, Memory
from .isa import Instruction, Opcode, Unit
from .legality import Finding, instruction_findings
from .program import Program
from .timing import QUEUE_CAPACITY
from .tokens import CONSUMER, PRODUCER, Dispatch, Queue

#: Tokens that a queue of the RTL can count; further ones are lost.
TOKEN_CAPACITY = 255

Clock = tuple[int, int, int]
Loops = tuple[tuple[int, int], tuple[int, int]]


def check(program: Program, isa_ext: bool = False) -> list[Finding]:
    """All faults of a program, in the order of its instructions. `isa_ext` allows MUL and ACC_8BIT."""
    if len(program.code) % INSTRUCTION_BYTES:
        return [Finding("V1603", None, f"{len(program.code)} bytes")]
    stream = program.stream
    findings = list(instruction_findings(stream, program.config, program.dram_bytes, isa_ext))
    findings += [Finding("V104", int(i), "") for i in isa.reserved_bits(program.code, program.config)]
    findings += _finish_findings(stream)
    wrong = {f.index for f in findings if f.error}
    rows = isa.rows(stream)
    accesses, found = _accesses(program, rows, wrong)
    findings += found
    findings += _overwritten(program, accesses)
    findings += _order_findings(stream, accesses)
    unique = {(f.code, f.index): f for f in reversed(findings)}
    return sorted(unique.values(), key=lambda f: (f.index is None, f.index or 0, int(f.code[1:])))


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that forbid a program to run."""
    return [f for f in findings if f.error]


def _finish_findings(stream: isa.Stream) -> Iterator[Finding]:
    finish = np.flatnonzero(stream["opcode"] == Opcode.FINISH).tolist()
    if not finish:
        yield Finding("V1401", None, f"{len(stream)} instructions")
    for index in finish:
        if index != len(stream) - 1:
            yield Finding("V1402", index, f"{len(stream) - 1 - index} instructions follow")
        if stream[index]["pop_prev"] or stream[index]["pop_next"]:
            yield Finding("V1403", index, "it must not wait")


# --- what every instruction reads and writes ------------------------------------------------------


@dataclass
class Access:
    """What an instruction touches outside of its unit: buffer elements as masks, DRAM as byte ranges of rows."""

    reads: dict[Memory, NDArray[np.bool_]] = field(default_factory=dict)
    writes: dict[Memory, NDArray[np.bool_]] = field(default_factory=dict)
    dram: list[tuple[int, int]] = field(default_factory=list)
    gives_output: bool = False  # it writes OUT, as ALU and GEMM instructions do and LOAD ACC and reset do not


def _accesses(
    program: Program, rows: list[Instruction], wrong: set[int | None]
) -> tuple[list[Access | None], list[Finding]]:
    """The accesses of each instruction in turn (None of faulty ones), and the faults that depend on micro-ops."""
    compute = _MicroOps(program)
    accesses: list[Access | None] = []
    for index, row in enumerate(rows):
        if index in wrong:
            accesses.append(None)
        elif row.opcode in (Opcode.GEMM, Opcode.ALU):
            accesses.append(compute.access(index, row))
        else:
            if row.opcode == Opcode.LOAD and row.memory == Memory.UOP and row.x_size:
                compute.load(row)
            accesses.append(_memory_access(row, program.config))
    return accesses, compute.findings


def _memory_access(row: Instruction, config: Config) -> Access:
    access = Access()
    if row.opcode not in (Opcode.LOAD, Opcode.STORE) or not row.x_size:
        return access
    memory = Memory(row.memory)
    size = config.element_bytes(memory)
    access.dram = _row_ranges(row, size)
    height, width = row.y_pad_0 + row.y_size + row.y_pad_1, row.x_pad_0 + row.x_size + row.x_pad_1
    mask = np.zeros(config.depth(memory), bool)
    mask[row.sram_base : row.sram_base + height * width] = True
    if row.opcode == Opcode.STORE:
        access.reads[Memory.OUT] = mask
    elif memory in (Memory.INP, Memory.WGT):
        access.writes[memory] = mask
    elif memory in (Memory.ACC, Memory.ACC_8BIT):
        # The original simulator stores from the accumulators themselves.
        access.writes[Memory.OUT] = mask
    return access


def _row_ranges(row: Instruction, size: int) -> list[tuple[int, int]]:
    """DRAM bytes that a LOAD or STORE touches, rows that follow each other as one."""
    if row.x_stride == row.x_size:
        return [(row.dram_base * size, (row.dram_base + row.y_size * row.x_size) * size)]
    starts = [(row.dram_base + y * row.x_stride) * size for y in range(row.y_size)]
    return [(start, start + row.x_size * size) for start in starts]


class _MicroOps:
    """The micro-op buffer as Compute sees it, and what GEMM and ALU instructions reach through it."""

    def __init__(self, program: Program) -> None:
        self.config, self.image = program.config, program.image()
        depth = self.config.depth(Memory.UOP)
        self.ops = np.zeros(depth, isa.UOP)
        self.loaded = np.zeros(depth, bool)
        self.findings: list[Finding] = []

    def load(self, row: Instruction) -> None:
        code = self.image[row.dram_base * 4 : (row.dram_base + row.x_size) * 4].tobytes()
        where = slice(row.sram_base, row.sram_base + row.x_size)
        self.ops[where] = isa.decode_uops(code, self.config)
        self.loaded[where] = True

    def access(self, index: int, row: Instruction) -> Access | None:
        ops = self.ops[row.uop_bgn : row.uop_end]
        if not self.loaded[row.uop_bgn : row.uop_end].all():
            self.findings.append(Finding("V304", index, f"uop {row.uop_bgn}:{row.uop_end}"))
        dst: Loops = ((row.iter_out, row.dst_factor_out), (row.iter_in, row.dst_factor_in))
        src: Loops = ((row.iter_out, row.src_factor_out), (row.iter_in, row.src_factor_in))
        wgt: Loops = ((row.iter_out, row.wgt_factor_out), (row.iter_in, row.wgt_factor_in))
        operands = [("V301", Memory.ACC, ops["dst"], dst)]
        if row.opcode == Opcode.ALU:
            operands.append(("V301", Memory.ACC, ops["src"], src))
            self._alu_findings(index, row, ops)
        elif not row.reset:
            operands += [("V302", Memory.INP, ops["src"], src), ("V303", Memory.WGT, ops["wgt"], wgt)]
        fits = [self._fits(index, *operand) for operand in operands]  # all of them, to report all
        if not all(fits):
            return None
        acc_depth = self.config.depth(Memory.ACC)
        gives_output = row.opcode == Opcode.ALU or not row.reset
        access = Access(writes={Memory.OUT: _reach(ops["dst"], dst, acc_depth)}, gives_output=gives_output)
        if row.opcode == Opcode.GEMM:
            for _, memory, starts, loops in operands[1:]:
                access.reads[memory] = _reach(starts, loops, self.config.depth(memory))
        elif not row.use_imm:
            self._register_hazard(index, row, ops)
        return access

    def _fits(self, index: int, code: str, memory: Memory, starts: NDArray[np.int64], loops: Loops) -> bool:
        last = int(starts.max()) + sum((trips - 1) * factor for trips, factor in loops)
        depth = self.config.depth(memory)
        if last >= depth:
            self.findings.append(Finding(code, index, f"{memory.name} {last} of {depth}"))
        return last < depth

    def _alu_findings(self, index: int, row: Instruction, ops: NDArray[np.void]) -> None:
        if not row.use_imm:
            return
        if (ops["dst"] != ops["src"]).any():
            self.findings.append(Finding("V801", index, "micro-ops with different dst and src"))
        last, first = int(ops["dst"][-1]), int(ops["dst"][0])
        following = [first + row.dst_factor_in] if row.iter_in > 1 else []
        if row.iter_out > 1:
            following.append(first + row.dst_factor_out - (row.iter_in - 1) * row.dst_factor_in)
        if (np.diff(ops["dst"]) == 0).any() or last in following:
            self.findings.append(Finding("V1001", index, "the same destination twice in a row"))

    def _register_hazard(self, index: int, row: Instruction, ops: NDArray[np.void]) -> None:
        """Whether an iteration reads what the one before it wrote: s(n+1) = d(n)."""
        out, into = row.src_factor_out - row.dst_factor_out, row.src_factor_in - row.dst_factor_in
        wrap = np.array([ops["src"][0] - ops["dst"][-1]])
        within = _has_zero(ops["src"][1:] - ops["dst"][:-1], (row.iter_out, out), (row.iter_in, into))
        inner = _has_zero(wrap + row.src_factor_in, (row.iter_out, out), (row.iter_in - 1, into))
        back = row.src_factor_out - (row.iter_in - 1) * row.dst_factor_in
        if within or inner or _has_zero(wrap + back, (row.iter_out - 1, out), (1, 0)):
            self.findings.append(Finding("V1001", index, "a source that was the destination just before"))


def _reach(starts: NDArray[np.int64], loops: Loops, depth: int) -> NDArray[np.bool_]:
    """The elements start + i · factor + j · factor, as a mask; all are known to lie in the buffer."""
    mask = np.zeros(depth, bool)
    mask[starts] = True
    for trips, factor in loops:
        done = 1
        while factor and done < trips:  # doubling: the mask holds multiples 0 … done - 1
            step = min(done, trips - done)
            mask[step * factor :] |= mask[: depth - step * factor].copy()
            done += step
    return mask


def _has_zero(values: NDArray[np.int64], *loops: tuple[int, int]) -> bool:
    """Whether some value + i · factor + j · factor is 0."""
    if not values.size or any(trips < 1 for trips, _ in loops):
        return False
    first, second = (np.arange(trips if factor else 1) * factor for trips, factor in loops)
    return bool(np.isin(-values, np.add.outer(first, second)).any())


def _overwritten(program: Program, accesses: list[Access | None]) -> Iterator[Finding]:
    """STOREs into instructions or micro-ops, which fetch and LOAD UOP may have read or not."""
    fixed = [(program.code_address, program.code_address + len(program.code))]
    units = isa.units(program.stream)
    for index, access in enumerate(accesses):
        row = program.stream[index]
        if access and row["opcode"] == Opcode.LOAD and row["memory"] == Memory.UOP:
            fixed += access.dram
    for index in np.flatnonzero(units == Unit.STORE).tolist():
        access = accesses[index]
        ranges = access.dram if access else []
        if any(a < end and start < b for a, b in ranges for start, end in fixed):
            yield Finding("V602", index, f"DRAM {ranges[0][0]:#x} … {ranges[-1][1]:#x}")


# --- order ----------------------------------------------------------------------------------------


def _order_findings(stream: isa.Stream, accesses: list[Access | None]) -> Iterator[Finding]:
    """Deadlocks, tokens, and races: everything that depends on who waits for whom."""
    bounded = Dispatch(stream, QUEUE_CAPACITY)
    while ready := bounded.ready():
        bounded.complete(bounded.begin(ready[0]))
    if bounded.stuck is not None:
        code = "V1202" if bounded.fetched < len(stream) else "V1501"
        yield Finding(code, bounded.stuck, bounded.explain())
        return
    left = [f"{q.text} {bounded.tokens[q]}" for q in Queue if bounded.tokens[q]]
    if left:
        yield Finding("V1502", None, ", ".join(left))
    order, clocks = vector_clocks(stream)
    yield from _token_counts(stream, clocks)
    yield from _pending_at_finish(stream, clocks)
    yield from _stale_outputs(accesses, order)
    yield from _buffer_races(stream, accesses, order, clocks)
    yield from _dram_races(stream, accesses, order, clocks)


def vector_clocks(stream: isa.Stream) -> tuple[list[int], list[Clock]]:
    """An order in which a program can run, and of each instruction how many of each unit are over when it begins.

    The program must not deadlock.
    """
    dispatch, order = Dispatch(stream), []
    clocks: list[Clock] = [(0, 0, 0)] * len(stream)
    of_unit: dict[int, Clock] = dict.fromkeys(Unit, (0, 0, 0))
    pushed: dict[int, list[Clock]] = {q: [] for q in Queue}
    popped: dict[int, int] = dict.fromkeys(Queue, 0)
    while ready := dispatch.ready():
        index = dispatch.begin(ready[0])
        unit = dispatch.units[index]
        loads, computes, stores = of_unit[unit]
        for q in dispatch.pops[index]:
            other = pushed[q][popped[q]]
            popped[q] += 1
            loads, computes, stores = max(loads, other[0]), max(computes, other[1]), max(stores, other[2])
        clocks[index] = (loads, computes, stores)
        after = (loads + (unit == Unit.LOAD), computes + (unit == Unit.COMPUTE), stores + (unit == Unit.STORE))
        of_unit[unit] = after
        for q in dispatch.pushes[index]:
            pushed[q].append(after)
        dispatch.complete(index)
        order.append(index)
    return order, clocks


def _token_counts(stream: isa.Stream, clocks: list[Clock]) -> Iterator[Finding]:
    """Queues in which more tokens can wait than the hardware counts, if the consumer is as slow as it may be."""
    dispatch = Dispatch(stream)
    for queue in Queue:
        producer, consumer = PRODUCER[queue], CONSUMER[queue]
        popped = np.cumsum([0] + [queue in dispatch.pops[i] for i in dispatch.of_unit[consumer]])
        pushers = [i for i in dispatch.of_unit[producer] if queue in dispatch.pushes[i]]
        for count, index in enumerate(pushers, 1):
            waiting = count - int(popped[clocks[index][consumer]])
            if waiting > TOKEN_CAPACITY:
                yield Finding("V1201", index, f"{waiting} in {queue.text}")
                break


def _pending_at_finish(stream: isa.Stream, clocks: list[Clock]) -> Iterator[Finding]:
    units = isa.units(stream)
    last = len(stream) - 1
    if last < 0 or stream[last]["opcode"] != Opcode.FINISH:
        return
    for unit in (Unit.LOAD, Unit.STORE):
        count = int((units == unit).sum())
        if clocks[last][unit] < count:
            pending = int(np.flatnonzero(units == unit)[clocks[last][unit]])
            yield Finding("V1404", last, f"nothing orders it after instruction {pending}")


def _stale_outputs(accesses: list[Access | None], order: list[int]) -> Iterator[Finding]:
    """STOREs of elements that LOAD ACC or reset wrote last: on hardware, OUT holds something older."""
    valid: NDArray[np.bool_] | None = None
    for index in order:
        access = accesses[index]
        for masks in (access.writes, access.reads) if access else ():
            mask = masks.get(Memory.OUT)
            if mask is None or access is None:
                continue
            valid = np.zeros(len(mask), bool) if valid is None else valid
            if masks is access.writes:
                valid[mask] = access.gives_output
            elif not valid[mask].all():
                yield Finding("V1601", index, f"output element {int(np.flatnonzero(mask & ~valid)[0])}")


def _buffer_races(
    stream: isa.Stream, accesses: list[Access | None], order: list[int], clocks: list[Clock]
) -> Iterator[Finding]:
    """Pairs of a write and a read of the same element that no token orders.

    Each buffer has one unit that writes and one that reads, so the last access of each suffices: instructions of one
    unit are in order.
    """
    writer = {Memory.INP: Unit.LOAD, Memory.WGT: Unit.LOAD, Memory.OUT: Unit.COMPUTE}
    reader = {Memory.INP: Unit.COMPUTE, Memory.WGT: Unit.COMPUTE, Memory.OUT: Unit.STORE}
    written: dict[Memory, NDArray[np.int64]] = {}
    read: dict[Memory, NDArray[np.int64]] = {}
    units = isa.units(stream).tolist()
    for index in order:
        access = accesses[index]
        if access is None:
            continue
        turn = clocks[index][units[index]] + 1
        sides = ((access.writes, written, read, reader), (access.reads, read, written, writer))
        for touched, mine, others, other_unit in sides:
            for memory, mask in touched.items():
                ours = mine.setdefault(memory, np.zeros(len(mask), np.int64))
                theirs = others.setdefault(memory, np.zeros(len(mask), np.int64))
                latest = int(theirs[mask].max(initial=0))
                ours[mask] = turn
                if latest > clocks[index][other_unit[memory]]:
                    yield _race("V901", index, memory.name, other_unit[memory], latest, units)


def _race(code: str, index: int, what: str, unit: Unit, turn: int, units: list[int]) -> Finding:
    other = [i for i, u in enumerate(units) if u == unit][turn - 1]
    return Finding(code, index, f"{what}, with instruction {other}")


def _dram_races(
    stream: isa.Stream, accesses: list[Access | None], order: list[int], clocks: list[Clock]
) -> Iterator[Finding]:
    """STOREs and LOADs of the same bytes that no token orders. Bytes are taken in pieces between row ends."""
    units = isa.units(stream).tolist()
    stores = [r for i, a in enumerate(accesses) if a and units[i] == Unit.STORE for r in a.dram]
    if not stores:
        return
    low, high = min(a for a, _ in stores), max(b for _, b in stores)
    ranges = [[(a, b) for a, b in (x.dram if x else []) if a < high and low < b] for x in accesses]
    ends = np.unique([end for each in ranges for r in each for end in r])
    latest = {unit: np.zeros(len(ends), np.int64) for unit in Unit}
    for index in order:
        if not ranges[index]:
            continue
        unit = Unit(units[index])
        pieces = np.searchsorted(ends, ranges[index])
        others = (Unit.STORE,) if unit != Unit.STORE else (Unit.LOAD, Unit.COMPUTE)
        for other in others:
            turn = max(int(latest[other][a:b].max()) for a, b in pieces)
            if turn > clocks[index][other]:
                yield _race("V902", index, f"DRAM {ranges[index][0][0]:#x}", other, turn, units)
        for a, b in pieces:
            latest[unit][a:b] = clocks[index][unit] + 1
