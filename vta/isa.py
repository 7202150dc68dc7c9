"""Instructions and micro-ops: their fields, and their bits in any configuration.

A stream of instructions is a NumPy structured array with one row an instruction and one column a field
(`INSTRUCTION`); micro-ops are an array of `UOP`. Encoding and decoding go column by column. The place of a field is
computed from the packing rule (fields from the lowest bit on, and none crosses a 64-bit word), because the widths of
most depend on the configuration.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .config import INSTRUCTION_BYTES, UOP_BYTES, Config, Memory
from .errors import EncodingError


class Opcode(IntEnum):
    LOAD = 0
    STORE = 1
    GEMM = 2
    FINISH = 3
    ALU = 4


class AluOp(IntEnum):
    MIN = 0
    MAX = 1
    ADD = 2
    SHR = 3
    MUL = 4


class Unit(IntEnum):
    """The three units with a command queue, in the order that "prev" and "next" refer to."""

    LOAD = 0
    COMPUTE = 1
    STORE = 2


TOKENS = ("pop_prev", "pop_next", "push_prev", "push_next")
MEMORY_FIELDS = (
    *("memory", "sram_base", "dram_base", "y_size", "x_size", "x_stride"),
    *("y_pad_0", "y_pad_1", "x_pad_0", "x_pad_1"),
)
LOOP_FIELDS = ("reset", "uop_bgn", "uop_end", "iter_out", "iter_in")
FACTORS = ("dst_factor_out", "dst_factor_in", "src_factor_out", "src_factor_in")
GEMM_FIELDS = (*LOOP_FIELDS, *FACTORS, "wgt_factor_out", "wgt_factor_in")
ALU_FIELDS = (*LOOP_FIELDS, *FACTORS, "alu_op", "use_imm", "imm")
#: The fields of each opcode after the opcode and the four token bits.
FIELDS: dict[int, tuple[str, ...]] = {
    Opcode.LOAD: MEMORY_FIELDS,
    Opcode.STORE: MEMORY_FIELDS,
    Opcode.GEMM: GEMM_FIELDS,
    Opcode.FINISH: (),
    Opcode.ALU: ALU_FIELDS,
}


class Instruction(NamedTuple):
    """One row of a stream, as Python integers: the fields of every opcode, 0 where an opcode has no such field."""

    opcode: int
    pop_prev: int
    pop_next: int
    push_prev: int
    push_next: int
    memory: int
    sram_base: int
    dram_base: int
    y_size: int
    x_size: int
    x_stride: int
    y_pad_0: int
    y_pad_1: int
    x_pad_0: int
    x_pad_1: int
    reset: int
    uop_bgn: int
    uop_end: int
    iter_out: int
    iter_in: int
    dst_factor_out: int
    dst_factor_in: int
    src_factor_out: int
    src_factor_in: int
    wgt_factor_out: int
    wgt_factor_in: int
    alu_op: int
    use_imm: int
    imm: int


INSTRUCTION = np.dtype([(name, np.int64) for name in Instruction._fields])
UOP = np.dtype([("dst", np.int64), ("src", np.int64), ("wgt", np.int64)])

Stream = NDArray[np.void]


class Slot(NamedTuple):
    """Where a field lies: 64-bit word, lowest bit in it, number of bits, and whether it is signed."""

    word: int
    bit: int
    width: int
    signed: bool = False


def _pack(widths: list[tuple[str, int]]) -> dict[str, Slot]:
    slots, word, bit = {}, 0, 0
    for name, width in widths:
        if bit + width > 64:
            word, bit = word + 1, 0
        slots[name] = Slot(word, bit, width, name == "imm")
        bit += width
    return slots


@cache
def layout(config: Config, opcode: int) -> dict[str, Slot]:
    """The slots of an opcode's fields; of an unknown opcode, those that all instructions have."""
    u, i, w, a = (config.log_depth(m) for m in (Memory.UOP, Memory.INP, Memory.WGT, Memory.ACC))
    widths = [("opcode", 3), *((name, 1) for name in TOKENS)]
    memory = dict(zip(MEMORY_FIELDS, (3, 16, 32, 16, 16, 16, 4, 4, 4, 4), strict=True))
    loops = dict(zip(LOOP_FIELDS, (1, u, u + 1, 14, 14), strict=True))
    match opcode:
        case Opcode.LOAD | Opcode.STORE:
            widths += memory.items()
        case Opcode.GEMM:
            factors = zip(GEMM_FIELDS[len(LOOP_FIELDS) :], (a, a, i, i, w, w), strict=True)
            widths += [*loops.items(), *factors]
        case Opcode.ALU:
            rest = zip(ALU_FIELDS[len(LOOP_FIELDS) :], (a, a, a, a, 3, 1, 16), strict=True)
            widths += [*loops.items(), *rest]
    return _pack(widths)


# --- streams --------------------------------------------------------------------------------------


def instruction(opcode: Opcode, **fields: int) -> Stream:
    """A stream of one instruction; fields that are not given are 0. Raises `EncodingError` for an unknown field."""
    row = np.zeros(1, INSTRUCTION)
    row["opcode"] = opcode
    for name, value in fields.items():
        if name not in TOKENS and name not in FIELDS[opcode]:
            raise EncodingError(f"{opcode.name} has no field {name}; it has {', '.join((*TOKENS, *FIELDS[opcode]))}")
        row[name] = value
    return row


def rows(stream: Stream) -> list[Instruction]:
    """The instructions of a stream one by one."""
    return [Instruction._make(row) for row in stream.tolist()]


def encode(stream: Stream, config: Config) -> bytes:
    """Instructions as they lie in DRAM, 16 bytes each. Raises `EncodingError` if a field does not fit its bits."""
    words = np.zeros((len(stream), 2), np.uint64)
    for opcode in np.unique(stream["opcode"]):
        if opcode not in FIELDS:
            raise EncodingError(f"opcode {opcode}: only 0 to 4 exist")
        at = np.flatnonzero(stream["opcode"] == opcode)
        for name, slot in layout(config, int(opcode)).items():
            words[at, slot.word] |= _to_bits(stream[name][at], slot, name, at)
    return words.astype("<u8").tobytes()


def _to_bits(values: NDArray[np.int64], slot: Slot, name: str, at: NDArray[np.int64]) -> NDArray[np.uint64]:
    lowest = -(1 << (slot.width - 1)) if slot.signed else 0
    highest = lowest + (1 << slot.width) - 1
    wrong = np.flatnonzero((values < lowest) | (values > highest))
    if wrong.size:
        where, value = at[wrong[0]], values[wrong[0]]
        raise EncodingError(f"instruction {where}: {name}={value} is outside {lowest} … {highest}")
    return (values & ((1 << slot.width) - 1)).astype(np.uint64) << np.uint64(slot.bit)


def decode(code: bytes, config: Config) -> Stream:
    """Instructions from their bytes. It reads anything: opcodes that do not exist keep opcode and token bits only.

    Raises `EncodingError` if the length is no multiple of 16. Bits that no field covers are lost; `reserved_bits` says
    which instructions have some set.
    """
    words = _words(code)
    stream = np.zeros(len(words), INSTRUCTION)
    stream["opcode"] = words[:, 0] & np.uint64(7)
    for opcode in np.unique(stream["opcode"]):
        at = np.flatnonzero(stream["opcode"] == opcode)
        for name, slot in layout(config, int(opcode)).items():
            raw = words[at, slot.word] >> np.uint64(slot.bit)
            value = (raw & np.uint64((1 << slot.width) - 1)).astype(np.int64)
            if slot.signed:
                value -= (value >> (slot.width - 1)) << slot.width
            stream[name][at] = value
    return stream


def reserved_bits(code: bytes, config: Config) -> NDArray[np.int64]:
    """Indices of instructions with a bit set that belongs to no field."""
    words = _words(code)
    opcodes = (words[:, 0] & np.uint64(7)).astype(np.int64)
    masks = np.zeros((8, 2), np.uint64)
    for opcode in range(8):
        for slot in layout(config, opcode).values():
            masks[opcode, slot.word] |= np.uint64(((1 << slot.width) - 1) << slot.bit)
    return np.flatnonzero((words & ~masks[opcodes]).any(axis=1))


def _words(code: bytes) -> NDArray[np.uint64]:
    if len(code) % INSTRUCTION_BYTES:
        raise EncodingError(f"{len(code)} bytes are no whole number of {INSTRUCTION_BYTES}-byte instructions")
    return np.frombuffer(code, "<u8").reshape(-1, 2)


def units(stream: Stream) -> NDArray[np.int64]:
    """The `Unit` that executes each instruction. Unknown opcodes count as Compute's, where a FINISH would stand."""
    found = np.full(len(stream), Unit.COMPUTE, np.int64)
    memory = stream["memory"]
    found[(stream["opcode"] == Opcode.LOAD) & ((memory == Memory.INP) | (memory == Memory.WGT))] = Unit.LOAD
    found[stream["opcode"] == Opcode.STORE] = Unit.STORE
    return found


# --- micro-ops ------------------------------------------------------------------------------------


@cache
def uop_layout(config: Config) -> tuple[int, int, int]:
    """Bits of a micro-op's destination, source and weight index, lowest first."""
    a, i, w = (config.log_depth(m) for m in (Memory.ACC, Memory.INP, Memory.WGT))
    return a, max(a, i), w


def uops(rows: list[tuple[int, int, int]]) -> NDArray[np.void]:
    """Micro-ops from tuples (dst, src, wgt)."""
    return np.array(rows, UOP)


def encode_uops(ops: NDArray[np.void], config: Config) -> bytes:
    """Micro-ops as they lie in DRAM, 4 bytes each. Raises `EncodingError` if an index does not fit."""
    words, bit = np.zeros(len(ops), np.uint64), 0
    for name, width in zip(("dst", "src", "wgt"), uop_layout(config), strict=True):
        wrong = np.flatnonzero((ops[name] < 0) | (ops[name] >> width))
        if wrong.size:
            raise EncodingError(f"micro-op {wrong[0]}: {name}={ops[name][wrong[0]]} does not fit {width} bits")
        words |= ops[name].astype(np.uint64) << np.uint64(bit)
        bit += width
    return words.astype("<u4").tobytes()


def decode_uops(code: bytes, config: Config) -> NDArray[np.void]:
    """Micro-ops from their bytes. Raises `EncodingError` if the length is no multiple of 4."""
    if len(code) % UOP_BYTES:
        raise EncodingError(f"{len(code)} bytes are no whole number of {UOP_BYTES}-byte micro-ops")
    words = np.frombuffer(code, "<u4").astype(np.int64)
    ops, bit = np.zeros(len(words), UOP), 0
    for name, width in zip(("dst", "src", "wgt"), uop_layout(config), strict=True):
        ops[name] = words >> bit & ((1 << width) - 1)
        bit += width
    return ops
