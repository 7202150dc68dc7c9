"""Machine code that runs a program's instructions: tokens, bounds, micro-ops, copies, and the loops of `kernels.py`.

It executes what is ordinary and legal, one instruction after another in a single call, and stops at the first
instruction that is not: Python executes that one (`functional.py`), or says what is wrong with it, and calls again. So
every rule that a program can break is stated once, in Python, and here is only whether it is kept.

The state is an array of int64, one for each `Slot`: addresses of the buffers, the tokens, and where each unit is.
Instructions are rows of int64 as `isa.INSTRUCTION` has them, of which static checks have looked at already: none leaves
DRAM or its on-chip buffer. What depends on micro-ops is tested here.
"""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ..codegen.llvm_types import I8, I32, I64, POINTER
from . import isa
from .config import UOP_BYTES, Config, Memory
from .emitting import address, loop, number, put, summed, word
from .isa import AluOp, Instruction, Opcode
from .layout import element_bits

I16 = ir.IntType(16)
QUEUES, UNITS = 4, 3
#: Ranges of micro-ops whose groups are remembered.
RANGES = 8
#: Lanes that are copied at once.
CHUNK = 16
_ROW_BYTES = isa.INSTRUCTION.itemsize


class Slot(IntEnum):
    """The words of the state."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count

    # Of the program: rows, a `Kind` each, the queues it pops from and pushes to (a bit each), and each unit's order.
    ROWS = auto()
    KINDS = auto()
    POPS = auto()
    PUSHES = auto()
    ORDER = auto()
    #: Places in ORDER: of each unit's next instruction, and behind its last.
    NEXT = auto()
    _NEXT_1 = auto()
    _NEXT_2 = auto()
    END = auto()
    _END_1 = auto()
    _END_2 = auto()
    TOKENS = auto()
    _TOKENS_1 = auto()
    _TOKENS_2 = auto()
    _TOKENS_3 = auto()
    #: The FINISH that has run, or -1; whether nothing may run after it, nor an output be stored that is none.
    FINISHED = auto()
    STRICT = auto()
    #: Micro-op executions so far, and how many may be.
    WORK = auto()
    WORK_LIMIT = auto()
    #: The instruction at which the loop stopped, its tokens taken; -1 if no unit could go on.
    STOPPED = auto()
    # Buffers.
    DRAM = auto()
    ACC = auto()
    STATE = auto()
    INP = auto()
    WGT = auto()
    UOP_DST = auto()
    UOP_SRC = auto()
    UOP_WGT = auto()
    #: The right operand of an immediate operation, and the indices of it (zeros).
    RIGHT = auto()
    ZEROS = auto()
    #: Of each remembered range: its ends, number of groups, largest indices; and its micro-ops in groups of one weight.
    RANGE_KEYS = auto()
    RANGE_FIGURES = auto()
    GROUPED_DST = auto()
    GROUPED_SRC = auto()
    GROUP_WGT = auto()
    GROUP_ENDS = auto()
    #: Chains of micro-ops of one weight: the first and the last of each weight (-1: none), the next of each micro-op.
    FIRST = auto()
    LAST = auto()
    FOLLOWING = auto()


class Kind(IntEnum):
    """What the loop does with an instruction."""

    PYTHON = 0
    NOTHING = auto()
    FINISH = auto()
    LOAD_UOP = auto()
    LOAD_INP = auto()
    LOAD_WGT = auto()
    LOAD_ACC = auto()
    LOAD_ACC_8BIT = auto()
    STORE = auto()
    GEMM = auto()
    RESET = auto()
    ALU_IMMEDIATE = auto()
    _ALU_IMMEDIATE_4 = ALU_IMMEDIATE + len(AluOp) - 1
    ALU_REGISTER = auto()
    _ALU_REGISTER_4 = ALU_REGISTER + len(AluOp) - 1


_LOADS = {
    Memory.UOP: Kind.LOAD_UOP,
    Memory.INP: Kind.LOAD_INP,
    Memory.WGT: Kind.LOAD_WGT,
    Memory.ACC: Kind.LOAD_ACC,
    Memory.ACC_8BIT: Kind.LOAD_ACC_8BIT,
}


def kinds(stream: isa.Stream, config: Config) -> NDArray[np.int64]:
    """The `Kind` of each instruction. Lanes of less than a byte, tiny blocks, and shifts by registers are Python's."""
    s, opcode = stream, stream["opcode"]
    found = np.full(len(s), Kind.PYTHON, np.int64)
    memory, busy = s["memory"], s["x_size"] > 0
    one_row = (s["y_size"] == 1) & (s["y_pad_0"] + s["y_pad_1"] + s["x_pad_0"] + s["x_pad_1"] == 0)
    for m, kind in _LOADS.items():
        able = one_row if m == Memory.UOP else (s["y_size"] > 0) & _whole_bytes(config, m)
        found[(opcode == Opcode.LOAD) & (memory == m) & able] = kind
    store = (opcode == Opcode.STORE) & (memory == Memory.OUT) & (s["y_size"] > 0)
    found[store & _whole_bytes(config, Memory.OUT)] = Kind.STORE
    found[np.isin(opcode, (Opcode.LOAD, Opcode.STORE)) & ~busy] = Kind.NOTHING
    found[opcode == Opcode.FINISH] = Kind.FINISH
    found[(opcode == Opcode.GEMM) & (s["reset"] == 0)] = Kind.GEMM
    found[(opcode == Opcode.GEMM) & (s["reset"] == 1)] = Kind.RESET
    by_register = (s["use_imm"] == 0) & (s["alu_op"] != AluOp.SHR)
    alu = (opcode == Opcode.ALU) & (s["alu_op"] < len(AluOp))
    found = np.where(alu & (s["use_imm"] == 1), Kind.ALU_IMMEDIATE + s["alu_op"], found)
    return np.where(alu & by_register, Kind.ALU_REGISTER + s["alu_op"], found)


def _whole_bytes(config: Config, memory: Memory) -> bool:
    return element_bits(config, memory) >= 8 and config.block >= 4


# --- code -----------------------------------------------------------------------------------------


def add_interpreter(module: ir.Module, config: Config) -> None:
    """Add `execute`, and a function for each kind of instruction, to a module that has the loops of `kernels.py`."""
    depths = {m: config.depth(m) for m in (Memory.UOP, Memory.INP, Memory.WGT, Memory.ACC)}
    steps: dict[int, ir.Function] = {Kind.LOAD_UOP: _load_uops(module, config)}
    for memory in (Memory.INP, Memory.WGT, Memory.ACC, Memory.ACC_8BIT):
        if _whole_bytes(config, memory):
            steps[_LOADS[memory]] = _load(module, config, memory)
    if _whole_bytes(config, Memory.OUT):
        steps[Kind.STORE] = _store(module, config)
    group = _group(module, depths)
    steps[Kind.GEMM] = _gemm(module, depths, group)
    steps[Kind.RESET] = _reset(module, depths)
    for op in AluOp:
        steps[Kind.ALU_IMMEDIATE + op] = _alu_immediate(module, config, depths, op)
        steps[Kind.ALU_REGISTER + op] = _alu_register(module, depths, op)
    _execute(module, steps)


class _Step:
    """A function (state, row) under construction, which tells whether it has executed the instruction."""

    def __init__(self, module: ir.Module, name: str) -> None:
        self.function = ir.Function(module, ir.FunctionType(I64, [POINTER, POINTER]), name)
        self.state, self.row = self.function.args
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    def field(self, name: str) -> ir.Value:
        return word(self.b, self.row, Instruction._fields.index(name))

    def get(self, slot: int) -> ir.Value:
        return word(self.b, self.state, slot)

    def set(self, slot: int, value: ir.Value | int) -> None:
        put(self.b, value, self.state, slot)

    def pointer(self, slot: int) -> ir.Value:
        return _pointer(self.b, self.state, slot)

    def require(self, kept: ir.Value) -> None:
        """Leave the instruction to Python unless a condition holds."""
        with self.b.if_then(self.b.not_(kept), likely=False):
            self.b.ret(number(0))

    def done(self) -> ir.Function:
        self.b.ret(number(1))
        return self.function


def _pointer(b: ir.IRBuilder, state: ir.Value, slot: int) -> ir.Value:
    return b.load(address(b, state, slot, 8), typ=POINTER, align=8)


def _largest(b: ir.IRBuilder, place: ir.Value, value: ir.Value) -> None:
    """Raise an int64 in memory to a value."""
    before = b.load(place, typ=I64, align=8)
    b.store(b.select(b.icmp_signed(">", value, before), value, before), place, align=8)


def _variable(b: ir.IRBuilder, value: int) -> ir.Value:
    place = b.alloca(I64)
    b.store(number(value), place, align=8)
    return place


# --- memory instructions --------------------------------------------------------------------------


def _load_uops(module: ir.Module, config: Config) -> ir.Function:
    step = _Step(module, "load_uops")
    b, bit = step.b, 0
    source = address(b, step.pointer(Slot.DRAM), step.field("dram_base"), UOP_BYTES)
    targets = [step.pointer(slot) for slot in (Slot.UOP_DST, Slot.UOP_SRC, Slot.UOP_WGT)]
    keys = step.pointer(Slot.RANGE_KEYS)
    with loop(b, 2 * RANGES) as k:
        put(b, -1, keys, k)
    with loop(b, step.field("x_size")) as n:
        packed = b.zext(b.load(address(b, source, n, UOP_BYTES), typ=I32, align=1), I64)
        place = b.add(step.field("sram_base"), n)
        for target, width in zip(targets, isa.uop_layout(config), strict=True):
            put(b, b.and_(b.lshr(packed, number(bit)), number((1 << width) - 1)), target, place)
            bit += width
    return step.done()


def _load(module: ir.Module, config: Config, memory: Memory) -> ir.Function:
    """LOAD of lanes: rows of elements, with zeros around them."""
    step = _Step(module, f"load_{memory.name.lower()}")
    b, (size, held, lanes) = step.b, _sizes(config, memory)
    rows = b.add(b.add(step.field("y_pad_0"), step.field("y_size")), step.field("y_pad_1"))
    columns = b.add(b.add(step.field("x_pad_0"), step.field("x_size")), step.field("x_pad_1"))
    first, count = step.field("sram_base"), b.mul(rows, columns)
    buffer = {Memory.INP: Slot.INP, Memory.WGT: Slot.WGT}.get(memory, Slot.ACC)
    region = address(b, step.pointer(buffer), first, held)
    if buffer == Slot.ACC:
        state = address(b, step.pointer(Slot.STATE), first, 1)
        with loop(b, count) as n:
            b.store(ir.Constant(I8, 0), address(b, state, n, 1))
    inside = b.mul(step.field("y_size"), step.field("x_size"))
    with b.if_then(b.icmp_signed(">", count, inside)), loop(b, count) as n, loop(b, held // CHUNK) as part:
        zeros = ir.Constant(ir.VectorType(I8, CHUNK), None)
        b.store(zeros, address(b, address(b, region, n, held), part, CHUNK), align=1)
    dram = address(b, step.pointer(Slot.DRAM), step.field("dram_base"), size)
    with loop(b, step.field("y_size")) as y:
        source = address(b, dram, b.mul(y, step.field("x_stride")), size)
        place = b.add(b.mul(b.add(step.field("y_pad_0"), y), columns), step.field("x_pad_0"))
        target = address(b, region, place, held)
        with loop(b, step.field("x_size")) as x:
            element, to = address(b, source, x, size), address(b, target, x, held)
            if memory == Memory.WGT:
                _copy_weights(b, config, element, to)
            else:
                _copy_lanes(b, element, to, lanes, 8 * size // lanes, 8 * held // lanes)
    return step.done()


def _sizes(config: Config, memory: Memory) -> tuple[int, int, int]:
    """Bytes of an element in DRAM and in the simulator's buffer, and its lanes."""
    rows = config.block if memory == Memory.WGT else config.batch
    lane = 2 if memory in (Memory.INP, Memory.WGT) else 4
    return config.element_bytes(memory), rows * config.block * lane, rows * config.block


def _copy_lanes(b: ir.IRBuilder, source: ir.Value, target: ir.Value, lanes: int, bits: int, to_bits: int) -> None:
    """Lanes side by side, with their sign."""
    chunk = min(lanes, CHUNK)
    before, after = (ir.VectorType(ir.IntType(n), chunk) for n in (bits, to_bits))
    for k in range(0, lanes, chunk):
        values = b.load(address(b, source, k * bits // 8, 1), typ=before, align=1)
        if bits != to_bits:
            values = b.sext(values, after) if bits < to_bits else b.trunc(values, after)
        b.store(values, address(b, target, k * to_bits // 8, 1), align=1)


def _copy_weights(b: ir.IRBuilder, config: Config, source: ir.Value, target: ir.Value) -> None:
    """`[out, in]` to `[in / 2, out, 2]` of 16 bits: four lanes of an output become two pairs."""
    n, bits = config.block, config.wgt_bits
    four, wide = ir.VectorType(ir.IntType(bits), 4), ir.VectorType(I16, 4)
    with loop(b, n) as out:
        row = address(b, source, out, n * bits // 8)
        for k in range(0, n, 4):
            lanes = b.load(address(b, row, k * bits // 8, 1), typ=four, align=1)
            lanes = lanes if bits == 16 else b.sext(lanes, wide)
            for half in (0, 1):
                mask = ir.Constant(ir.VectorType(I32, 2), [2 * half, 2 * half + 1])
                pair = b.shuffle_vector(lanes, ir.Constant(wide, ir.Undefined), mask)
                b.store(pair, address(b, target, b.add(number((k // 2 + half) * n), out), 4), align=2)


def _store(module: ir.Module, config: Config) -> ir.Function:
    """STORE: the low bits of accumulators; in strict mode, if an ALU or GEMM instruction wrote them last."""
    step = _Step(module, "store_out")
    b, (_, held, lanes), size = step.b, _sizes(config, Memory.ACC), config.element_bytes(Memory.OUT)
    rows, columns, first = step.field("y_size"), step.field("x_size"), step.field("sram_base")
    state, stale = address(b, step.pointer(Slot.STATE), first, 1), _variable(b, 0)
    with loop(b, b.mul(rows, columns)) as n:
        written = b.zext(b.load(address(b, state, n, 1), typ=I8), I64)
        b.store(b.or_(b.load(stale, typ=I64), b.xor(written, number(1))), stale)
    strict = b.icmp_signed("!=", step.get(Slot.STRICT), number(0))
    step.require(b.or_(b.not_(strict), b.icmp_signed("==", b.load(stale, typ=I64), number(0))))
    region = address(b, step.pointer(Slot.ACC), first, held)
    dram = address(b, step.pointer(Slot.DRAM), step.field("dram_base"), size)
    with loop(b, rows) as y, loop(b, columns) as x:
        source = address(b, region, b.add(b.mul(y, columns), x), held)
        target = address(b, dram, b.add(b.mul(y, step.field("x_stride")), x), size)
        _copy_lanes(b, source, target, lanes, 32, config.out_bits)
    return step.done()


# --- compute instructions -------------------------------------------------------------------------


class _Loops:
    """What GEMM and ALU have in common: a range of micro-ops and two loops with their factors."""

    def __init__(self, step: _Step, depth: int) -> None:
        b, self.step = step.b, step
        self.begin, self.end = step.field("uop_bgn"), step.field("uop_end")
        self.count = b.sub(self.end, self.begin)
        self.trips = {"out": step.field("iter_out"), "in": step.field("iter_in")}
        executions = b.mul(b.mul(self.count, self.trips["out"]), self.trips["in"])
        step.require(b.icmp_signed("<=", self.end, number(depth)))
        step.require(b.icmp_signed(">", self.count, number(0)))
        step.require(b.icmp_signed(">", executions, number(0)))
        self.work = b.add(step.get(Slot.WORK), executions)
        step.require(b.icmp_signed("<=", self.work, step.get(Slot.WORK_LIMIT)))

    def factor(self, operand: str, side: str) -> ir.Value:
        return self.step.field(f"{operand}_factor_{side}")

    def require_inside(self, operand: str, largest: ir.Value, depth: int) -> None:
        """That no index of an operand leaves its buffer."""
        b = self.step.b
        sides = [(b.sub(trips, number(1)), self.factor(operand, side)) for side, trips in self.trips.items()]
        self.step.require(b.icmp_signed("<", summed(b, largest, *sides), number(depth)))

    def largest(self, slot: int) -> ir.Value:
        b, found = self.step.b, _variable(self.step.b, 0)
        indices = address(b, self.step.pointer(slot), self.begin, 8)
        with loop(b, self.count) as n:
            _largest(b, found, word(b, indices, n))
        return b.load(found, typ=I64)

    def of(self, side: str, *operands: str) -> list[ir.Value]:
        """A loop as the kernels take it: iterations and factors."""
        return [self.trips[side], *(self.factor(operand, side) for operand in operands)]


def _grouped(b: ir.IRBuilder, state: ir.Value, place: ir.Value, depth: int) -> list[ir.Value]:
    """Where a remembered range has the dst and src of its micro-ops, the weight of each group, and the groups' ends."""
    slots = (Slot.GROUPED_DST, Slot.GROUPED_SRC, Slot.GROUP_WGT, Slot.GROUP_ENDS)
    sizes = (depth, depth, depth, depth + 1)
    return [
        address(b, _pointer(b, state, slot), b.mul(place, number(size)), 8)
        for slot, size in zip(slots, sizes, strict=True)
    ]


def _group(module: ir.Module, depths: dict[Memory, int]) -> ir.Function:
    """(state, begin, end) -> the place in which the range's micro-ops are in groups of one weight.

    Micro-ops are chained by weight, in the order in which weights first occur.
    """
    made = ir.Function(module, ir.FunctionType(I64, [POINTER, I64, I64]), "group")
    state, begin, end = made.args
    b, depth = ir.IRBuilder(made.append_basic_block("entry")), depths[Memory.UOP]
    place = b.and_(b.add(begin, end), number(RANGES - 1))
    keys = address(b, _pointer(b, state, Slot.RANGE_KEYS), b.mul(place, number(2)), 8)
    known = b.and_(b.icmp_signed("==", word(b, keys, 0), begin), b.icmp_signed("==", word(b, keys, 1), end))
    with b.if_then(known):
        b.ret(place)
    put(b, begin, keys, 0)
    put(b, end, keys, 1)
    uops = [address(b, _pointer(b, state, slot), begin, 8) for slot in (Slot.UOP_DST, Slot.UOP_SRC, Slot.UOP_WGT)]
    figures = address(b, _pointer(b, state, Slot.RANGE_FIGURES), b.mul(place, number(4)), 8)
    grouped = _grouped(b, state, place, depth)
    first, last, following = (_pointer(b, state, slot) for slot in (Slot.FIRST, Slot.LAST, Slot.FOLLOWING))
    for k in range(4):
        put(b, 0, figures, k)
    with loop(b, b.sub(end, begin)) as u:
        values = [word(b, array, u) for array in uops]
        for k, value in enumerate(values, 1):
            _largest(b, address(b, figures, k, 8), value)
        weight = values[2]
        with b.if_else(b.icmp_signed("<", word(b, first, weight), number(0))) as (new, old):
            with new:
                groups = word(b, figures, 0)
                put(b, weight, grouped[2], groups)
                put(b, b.add(groups, number(1)), figures, 0)
                put(b, u, first, weight)
            with old:
                put(b, u, following, word(b, last, weight))
        put(b, u, last, weight)
        put(b, -1, following, u)
    position, chained = _variable(b, 0), _variable(b, 0)
    put(b, 0, grouped[3], 0)
    with loop(b, word(b, figures, 0)) as g:
        weight = word(b, grouped[2], g)
        b.store(word(b, first, weight), chained, align=8)
        put(b, -1, first, weight)
        body, after = b.append_basic_block("chain"), b.append_basic_block("chained")
        b.branch(body)
        b.position_at_end(body)
        u, at = b.load(chained, typ=I64, align=8), b.load(position, typ=I64, align=8)
        for k in (0, 1):
            put(b, word(b, uops[k], u), grouped[k], at)
        b.store(b.add(at, number(1)), position, align=8)
        link = word(b, following, u)
        b.store(link, chained, align=8)
        b.cbranch(b.icmp_signed("<", link, number(0)), after, body)
        b.position_at_end(after)
        put(b, b.load(position, typ=I64, align=8), grouped[3], b.add(g, number(1)))
    b.ret(place)
    return made


def _gemm(module: ir.Module, depths: dict[Memory, int], group: ir.Function) -> ir.Function:
    """GEMM, with the longer of the loops that keep the weight innermost."""
    step = _Step(module, "gemm_instruction")
    b, depth = step.b, depths[Memory.UOP]
    loops = _Loops(step, depth)
    place = b.call(group, [step.state, loops.begin, loops.end])
    figures = address(b, step.pointer(Slot.RANGE_FIGURES), b.mul(place, number(4)), 8)
    operands = {"dst": Memory.ACC, "src": Memory.INP, "wgt": Memory.WGT}
    for k, (operand, memory) in enumerate(operands.items(), 1):
        loops.require_inside(operand, word(b, figures, k), depths[memory])
    step.set(Slot.WORK, loops.work)
    out, into, once = loops.of("out", *operands), loops.of("in", *operands), [number(n) for n in (1, 0, 0, 0)]
    out_keeps, in_keeps = (b.icmp_signed("==", y[3], number(0)) for y in (out, into))
    hold_out = b.and_(out_keeps, b.or_(b.not_(in_keeps), b.icmp_signed(">", out[0], into[0])))
    hold_in = b.and_(in_keeps, b.not_(hold_out))
    held_any = b.or_(hold_out, hold_in)

    def chosen(condition: ir.Value, one: list[ir.Value], other: list[ir.Value]) -> list[ir.Value]:
        return [b.select(condition, x, y) for x, y in zip(one, other, strict=True)]

    outer, middle = chosen(hold_out, into, out), chosen(held_any, once, into)
    inner = chosen(hold_out, out, chosen(hold_in, into, once))[:3]
    memories = [step.pointer(slot) for slot in (Slot.ACC, Slot.STATE, Slot.INP, Slot.WGT)]
    indices = _grouped(b, step.state, place, depth)
    b.call(module.get_global("gemm"), [*memories, *indices, word(b, figures, 0), *outer, *middle, *inner])
    return step.done()


def _reset(module: ir.Module, depths: dict[Memory, int]) -> ir.Function:
    step = _Step(module, "reset_instruction")
    b, loops = step.b, _Loops(step, depths[Memory.UOP])
    loops.require_inside("dst", loops.largest(Slot.UOP_DST), depths[Memory.ACC])
    step.set(Slot.WORK, loops.work)
    dst = address(b, step.pointer(Slot.UOP_DST), loops.begin, 8)
    memories = [step.pointer(slot) for slot in (Slot.ACC, Slot.STATE)]
    b.call(module.get_global("reset"), [*memories, dst, loops.count, *loops.of("out", "dst"), *loops.of("in", "dst")])
    return step.done()


def _alu_immediate(module: ir.Module, config: Config, depths: dict[Memory, int], op: AluOp) -> ir.Function:
    """An operation with a number, in place."""
    step = _Step(module, f"immediate_{op.name.lower()}")
    b, loops, lanes = step.b, _Loops(step, depths[Memory.UOP]), config.batch * config.block
    for side in loops.trips:
        step.require(b.icmp_signed("==", loops.factor("dst", side), loops.factor("src", side)))
    dst, src = (address(b, step.pointer(slot), loops.begin, 8) for slot in (Slot.UOP_DST, Slot.UOP_SRC))
    moved = _variable(b, 0)
    with loop(b, loops.count) as n:
        different = b.xor(word(b, dst, n), word(b, src, n))
        b.store(b.or_(b.load(moved, typ=I64), different), moved)
    step.require(b.icmp_signed("==", b.load(moved, typ=I64), number(0)))
    loops.require_inside("dst", loops.largest(Slot.UOP_DST), depths[Memory.ACC])
    step.set(Slot.WORK, loops.work)
    right, amount = step.pointer(Slot.RIGHT), b.trunc(step.field("imm"), I32)
    with loop(b, lanes) as n:
        b.store(amount, address(b, right, n, 4), align=4)
    memories = [step.pointer(Slot.ACC), step.pointer(Slot.STATE), right]
    sides = [[*loops.of(side, "dst"), number(0)] for side in loops.trips]
    indices = [dst, step.pointer(Slot.ZEROS)]
    kernel = module.get_global(f"alu_{op.name.lower()}")
    b.call(kernel, [*memories, *indices, loops.count, *sides[0], *sides[1]])
    return step.done()


def _alu_register(module: ir.Module, depths: dict[Memory, int], op: AluOp) -> ir.Function:
    """An operation of two accumulators."""
    step = _Step(module, f"register_{op.name.lower()}")
    b, loops = step.b, _Loops(step, depths[Memory.UOP])
    for operand, slot in (("dst", Slot.UOP_DST), ("src", Slot.UOP_SRC)):
        loops.require_inside(operand, loops.largest(slot), depths[Memory.ACC])
    step.set(Slot.WORK, loops.work)
    memories = [step.pointer(slot) for slot in (Slot.ACC, Slot.STATE, Slot.ACC)]
    indices = [address(b, step.pointer(slot), loops.begin, 8) for slot in (Slot.UOP_DST, Slot.UOP_SRC)]
    sides = [*loops.of("out", "dst", "src"), *loops.of("in", "dst", "src")]
    b.call(module.get_global(f"alu_{op.name.lower()}"), [*memories, *indices, loops.count, *sides])
    return step.done()


# --- the loop -------------------------------------------------------------------------------------


def _execute(module: ir.Module, steps: dict[int, ir.Function]) -> None:
    """(state): as long as a unit can begin an instruction, the lowest one does."""
    made = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER]), "execute")
    (state,) = made.args
    b = ir.IRBuilder(made.append_basic_block("entry"))
    head, begin, run, over, stop = (b.append_basic_block(n) for n in ("head", "begin", "run", "over", "stop"))
    slots = (Slot.ROWS, Slot.KINDS, Slot.POPS, Slot.PUSHES, Slot.ORDER)
    rows, kinds_, pops, pushes, order = (_pointer(b, state, slot) for slot in slots)
    b.branch(head)

    b.position_at_end(head)
    blocked = number(0)
    for q in range(QUEUES):
        empty = b.icmp_signed("==", word(b, state, Slot.TOKENS + q), number(0))
        blocked = b.or_(blocked, b.shl(b.zext(empty, I64), number(q)))
    ready = []
    for unit in range(UNITS):
        some, none = b.append_basic_block("some"), b.append_basic_block("none")
        place = word(b, state, Slot.NEXT + unit)
        b.cbranch(b.icmp_signed("<", place, word(b, state, Slot.END + unit)), some, none)
        b.position_at_end(some)
        candidate = word(b, order, place)
        waits = b.and_(word(b, pops, candidate), blocked)
        ready.append((candidate, number(unit), b.block))
        b.cbranch(b.icmp_signed("==", waits, number(0)), begin, none)
        b.position_at_end(none)
    put(b, -1, state, Slot.STOPPED)
    b.ret_void()

    b.position_at_end(begin)
    index, unit = b.phi(I64), b.phi(I64)
    for candidate, which, block in ready:
        index.add_incoming(candidate, block)
        unit.add_incoming(which, block)
    places = address(b, state, Slot.NEXT, 8)
    put(b, b.add(word(b, places, unit), number(1)), places, unit)
    _count(b, state, word(b, pops, index), -1)
    finished = b.icmp_signed(">=", word(b, state, Slot.FINISHED), number(0))
    strict = b.icmp_signed("!=", word(b, state, Slot.STRICT), number(0))
    b.cbranch(b.and_(finished, strict), stop, run)

    b.position_at_end(run)
    row = address(b, rows, index, _ROW_BYTES)
    choice = b.switch(word(b, kinds_, index), stop)
    for kind, function in steps.items():
        block = b.append_basic_block("step")
        choice.add_case(number(kind), block)
        b.position_at_end(block)
        b.cbranch(b.icmp_signed("!=", b.call(function, [state, row]), number(0)), over, stop)
    choice.add_case(number(Kind.NOTHING), over)
    finish = b.append_basic_block("finish")
    choice.add_case(number(Kind.FINISH), finish)
    b.position_at_end(finish)
    put(b, index, state, Slot.FINISHED)
    b.branch(over)

    b.position_at_end(over)
    _count(b, state, word(b, pushes, index), 1)
    b.branch(head)
    b.position_at_end(stop)
    put(b, index, state, Slot.STOPPED)
    b.ret_void()


def _count(b: ir.IRBuilder, state: ir.Value, queues: ir.Value, by: int) -> None:
    """Add tokens to the queues of a set."""
    for q in range(QUEUES):
        bit = b.and_(b.lshr(queues, number(q)), number(1))
        put(b, b.add(word(b, state, Slot.TOKENS + q), b.mul(bit, number(by))), state, Slot.TOKENS + q)
