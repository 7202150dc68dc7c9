"""What makes one instruction illegal by itself, and the codes under which every fault of a program is reported.

The simulators and the checker share these rules. Rules about several instructions (tokens, races, micro-op contents)
are in `check.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import isa
from .config import Config, Memory
from .isa import TOKENS, AluOp, Opcode, Unit

#: LOAD INP of this many 8-byte beats overflows a counter of the original RTL, which then signals completion early.
INP_BEATS_LIMIT = 4096
#: Shift amounts on which all implementations agree.
PORTABLE_SHIFT = 15


class Code(NamedTuple):
    """One kind of fault: whether it is an error (or a warning), and what it says."""

    error: bool
    text: str


#: Every code the checker or a simulator can give; stable: a number is never used for something else.
CODES: dict[str, Code] = {
    "V101": Code(True, "the opcode does not exist"),
    "V102": Code(True, "the memory type is not legal for the opcode"),
    "V103": Code(True, "a token bit that the unit does not have"),
    "V104": Code(True, "a reserved bit is set"),
    "V105": Code(True, "the ALU opcode does not exist"),
    "V201": Code(True, "the range of micro-ops is empty or leaves the micro-op buffer"),
    "V202": Code(True, "a loop of no iterations"),
    "V301": Code(True, "an accumulator index leaves the buffer"),
    "V302": Code(True, "an input index leaves the buffer"),
    "V303": Code(True, "a weight index leaves the buffer"),
    "V304": Code(False, "micro-ops are used that were never loaded"),
    "V401": Code(True, "LOAD leaves the on-chip buffer"),
    "V402": Code(True, "STORE leaves the output buffer"),
    "V403": Code(True, "STORE with padding"),
    "V404": Code(True, "no rows although a row has elements"),
    "V405": Code(True, "LOAD UOP with several rows or padding"),
    "V406": Code(False, "LOAD WGT with padding, which the HLS design ignores"),
    "V501": Code(True, "the byte address is above 4 GiB"),
    "V601": Code(True, "DRAM is accessed outside of the image"),
    "V602": Code(True, "STORE overwrites instructions or micro-ops"),
    "V701": Code(True, "a shift by 32 bits or more"),
    "V702": Code(False, "a shift amount outside of -15 … 15, on which implementations differ"),
    "V703": Code(True, "a register shift by a lane outside of 0 … 15, on which implementations differ"),
    "V801": Code(True, "an immediate operation whose source is not its destination"),
    "V901": Code(True, "a race in an on-chip buffer"),
    "V902": Code(True, "a race in DRAM"),
    "V1001": Code(True, "an ALU iteration depends on the one before it"),
    "V1101": Code(True, "one LOAD INP of 4096 beats or more"),
    "V1201": Code(True, "more than 255 tokens can wait in a queue"),
    "V1202": Code(True, "the units' command queues fill up: fetch cannot go on"),
    "V1301": Code(True, "MUL or ACC_8BIT without the ISA extension"),
    "V1401": Code(True, "no FINISH"),
    "V1402": Code(True, "FINISH is not the last instruction"),
    "V1403": Code(True, "FINISH pops a token"),
    "V1404": Code(True, "work may be pending at FINISH"),
    "V1501": Code(True, "deadlock"),
    "V1502": Code(True, "tokens are left at the end"),
    "V1601": Code(True, "STORE of an output that no ALU or GEMM instruction wrote last"),
    "V1602": Code(True, "more work than the simulator's limit"),
    "V1603": Code(True, "the code is not a whole number of instructions"),
}


@dataclass(frozen=True)
class Finding:
    """A fault of a program: its code, the instruction (None: the whole program), and the values it was seen with."""

    code: str
    index: int | None
    detail: str

    @property
    def error(self) -> bool:
        return CODES[self.code].error

    def __str__(self) -> str:
        where = "program" if self.index is None else f"instruction {self.index}"
        return f"{self.code} {where}: {CODES[self.code].text} ({self.detail})"


#: Token bits of a unit that mean a queue, by unit. Others are illegal.
LEGAL_TOKENS = {
    Unit.LOAD: ("pop_next", "push_next"),
    Unit.COMPUTE: TOKENS,
    Unit.STORE: ("pop_prev", "push_prev"),
}


def instruction_findings(
    stream: isa.Stream, config: Config, dram_bytes: int, isa_ext: bool = False
) -> Iterator[Finding]:
    """Faults that one instruction has whatever stands around it, rule by rule.

    `isa_ext` allows MUL and ACC_8BIT. Reserved bits are lost in decoding: `isa.reserved_bits` finds them.
    """
    for rules in (_opcode_rules, _loop_rules, _memory_rules, _alu_rules):
        for code, wrong, detail in rules(stream, config, dram_bytes, isa_ext):
            for index in np.flatnonzero(wrong):
                yield Finding(code, int(index), detail(stream[index]))


_Rule = tuple[str, NDArray[np.bool_], Callable[[np.void], str]]


def _opcode_rules(s: isa.Stream, config: Config, dram_bytes: int, isa_ext: bool) -> Iterator[_Rule]:
    opcode, memory = s["opcode"], s["memory"]
    load, store = opcode == Opcode.LOAD, opcode == Opcode.STORE
    yield "V101", opcode > Opcode.ALU, lambda r: f"opcode {r['opcode']}"
    readable = np.isin(memory, (Memory.UOP, Memory.WGT, Memory.INP, Memory.ACC, Memory.ACC_8BIT))
    yield "V102", (load & ~readable) | (store & (memory != Memory.OUT)), lambda r: f"memory type {r['memory']}"
    extended = (load & (memory == Memory.ACC_8BIT)) | ((opcode == Opcode.ALU) & (s["alu_op"] == AluOp.MUL))
    yield "V1301", extended & (not isa_ext), lambda r: f"opcode {r['opcode']}"
    unit = isa.units(s)
    for u, legal in LEGAL_TOKENS.items():
        for token in set(TOKENS) - set(legal):
            yield "V103", (unit == u) & (s[token] != 0), lambda r, u=u, t=token: f"{t} in the {u.name.lower()} unit"


def _loop_rules(s: isa.Stream, config: Config, dram_bytes: int, isa_ext: bool) -> Iterator[_Rule]:
    loops = np.isin(s["opcode"], (Opcode.GEMM, Opcode.ALU))
    empty = (s["uop_bgn"] >= s["uop_end"]) | (s["uop_end"] > config.depth(Memory.UOP))
    yield "V201", loops & empty, lambda r: f"uop {r['uop_bgn']}:{r['uop_end']}"
    none = (s["iter_out"] < 1) | (s["iter_in"] < 1)
    yield "V202", loops & none, lambda r: f"iter {r['iter_out']},{r['iter_in']}"


def _memory_rules(s: isa.Stream, config: Config, dram_bytes: int, isa_ext: bool) -> Iterator[_Rule]:
    load, store, memory = s["opcode"] == Opcode.LOAD, s["opcode"] == Opcode.STORE, s["memory"]
    busy = s["x_size"] > 0
    load, store = load & busy, store & busy
    pads = s["x_pad_0"] + s["x_pad_1"] + s["y_pad_0"] + s["y_pad_1"] > 0

    def place(r: np.void) -> str:
        return f"sram {r['sram_base']}, dram {r['dram_base']:#x}, {r['y_size']} x {r['x_size']} elements"

    size, depth = _by_memory(memory, config)
    total = sram_elements(s)
    yield "V401", load & (s["sram_base"] + total > depth), place
    yield "V402", store & (s["sram_base"] + s["y_size"] * s["x_size"] > config.depth(Memory.OUT)), place
    yield "V403", store & pads, place
    yield "V404", (load | store) & (s["y_size"] == 0), place
    uop = load & (memory == Memory.UOP)
    yield "V405", uop & (pads | (s["y_size"] > 1)), place
    yield "V406", load & (memory == Memory.WGT) & pads, place
    last = s["dram_base"] + np.maximum(s["y_size"] - 1, 0) * s["x_stride"] + s["x_size"]
    yield "V501", (load | store) & (last * size > 1 << 32), place
    yield "V601", (load | store) & (last * size > dram_bytes), place
    beats = s["y_size"] * s["x_size"] * size // 8
    yield "V1101", load & (memory == Memory.INP) & (beats >= INP_BEATS_LIMIT), lambda r: f"{place(r)}"


def _by_memory(memory: NDArray[np.int64], config: Config) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bytes of an element and depth of the buffer for each memory type; 1 and 0 for types that do not exist."""
    sizes, depths = np.ones(8, np.int64), np.zeros(8, np.int64)
    for m in Memory:
        sizes[m], depths[m] = config.element_bytes(m), config.depth(m)
    return sizes[memory & 7], depths[memory & 7]


def element_sizes(stream: isa.Stream, config: Config) -> NDArray[np.int64]:
    """Bytes of a DRAM element of each LOAD or STORE."""
    return _by_memory(stream["memory"], config)[0]


def sram_elements(stream: isa.Stream) -> NDArray[np.int64]:
    """On-chip elements that each LOAD writes, padding included (0 if it is a no-op)."""
    rows = stream["y_pad_0"] + stream["y_size"] + stream["y_pad_1"]
    columns = stream["x_pad_0"] + stream["x_size"] + stream["x_pad_1"]
    return np.where(stream["x_size"] > 0, rows * columns, 0)


def _alu_rules(s: isa.Stream, config: Config, dram_bytes: int, isa_ext: bool) -> Iterator[_Rule]:
    alu = s["opcode"] == Opcode.ALU
    yield "V105", alu & (s["alu_op"] > AluOp.MUL), lambda r: f"ALU opcode {r['alu_op']}"
    amount = np.abs(s["imm"])
    shift = alu & (s["alu_op"] == AluOp.SHR) & (s["use_imm"] == 1)
    yield "V701", shift & (amount > 31), lambda r: f"by {r['imm']}"
    yield "V702", shift & (amount > PORTABLE_SHIFT) & (amount <= 31), lambda r: f"by {r['imm']}"
    moved = (s["dst_factor_out"] != s["src_factor_out"]) | (s["dst_factor_in"] != s["src_factor_in"])
    yield "V801", alu & (s["use_imm"] == 1) & moved, lambda r: "factors of source and destination differ"
