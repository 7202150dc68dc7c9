"""Programs as text, both ways. Whatever bytes are disassembled, assembling the text gives the same bytes.

    .config 1x16_i8w8a32_15_15_18_17
    .dram 0x200000                             ; bytes of memory
    .uops 0x20000                              ; micro-ops, at this address: destination, source, weight
    uop 0 0 0
    .code 0x1000                               ; instructions, at this address
    load.uop sram=0 dram=0x8000 y=1 x=1 stride=1
    load.inp sram=0 dram=0x4000 y=14 x=14 stride=56 ypad=1,1 xpad=1,1 push_next
    gemm reset uop=0:1 iter=1,196 dst=0,1
    alu.shr uop=0:1 iter=1,196 dst=0,1 src=0,1 imm=8 push_next
    store.out sram=0 dram=0x10000 y=14 x=14 stride=56 pop_prev
    finish
    .data 0x40000 00ff01                       ; bytes in hexadecimal
    .output result 0x100000 3136

A field that is 0 may be left out. What has no name (an unknown opcode, a reserved bit) is written `raw` and 32 digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..ir.errors import NesteggError
from . import isa
from .config import DEFAULT, INSTRUCTION_BYTES, UOP_BYTES, Config, Memory
from .errors import AssemblyError
from .isa import TOKENS, AluOp, Opcode
from .program import Output, Program, Segment

_DATA_LINE = 32


class _Operand(NamedTuple):
    """How `key=value` or `key=value,value` reads and writes fields."""

    key: str
    fields: tuple[str, ...]
    form: str = "{}"


_MEMORY = (
    _Operand("sram", ("sram_base",)),
    _Operand("dram", ("dram_base",), "{:#x}"),
    _Operand("y", ("y_size",)),
    _Operand("x", ("x_size",)),
    _Operand("stride", ("x_stride",)),
    _Operand("ypad", ("y_pad_0", "y_pad_1"), "{},{}"),
    _Operand("xpad", ("x_pad_0", "x_pad_1"), "{},{}"),
)
_LOOPS = (
    _Operand("uop", ("uop_bgn", "uop_end"), "{}:{}"),
    _Operand("iter", ("iter_out", "iter_in"), "{},{}"),
    _Operand("dst", ("dst_factor_out", "dst_factor_in"), "{},{}"),
    _Operand("src", ("src_factor_out", "src_factor_in"), "{},{}"),
)
_OPERANDS = {
    Opcode.LOAD: _MEMORY,
    Opcode.STORE: _MEMORY,
    Opcode.GEMM: (*_LOOPS, _Operand("wgt", ("wgt_factor_out", "wgt_factor_in"), "{},{}")),
    # Without the flag `imm`, the immediate's bits are there and unused.
    Opcode.ALU: (*_LOOPS, _Operand("imm", ("imm",)), _Operand("unused_imm", ("imm",))),
    Opcode.FINISH: (),
}
_FLAGS = {Opcode.GEMM: ("reset", *TOKENS), Opcode.ALU: ("reset", *TOKENS)}


# --- writing --------------------------------------------------------------------------------------


def format_instruction(row: np.void) -> str:
    """One instruction of a stream as text. Raises ValueError if a code in it has no name."""
    opcode = Opcode(int(row["opcode"]))
    name = opcode.name.lower()
    if opcode in (Opcode.LOAD, Opcode.STORE):
        name += f".{Memory(int(row['memory'])).name.lower()}"
    elif opcode == Opcode.ALU:
        name += f".{AluOp(int(row['alu_op'])).name.lower()}"
    words = [name]
    unused = "unused_imm" if row["use_imm"] else "imm"
    for operand in _OPERANDS[opcode]:
        values = [int(row[f]) for f in operand.fields]
        wanted = any(values) or (operand.key == "imm" and row["use_imm"])
        if wanted and operand.key != unused:
            words.append(f"{operand.key}={operand.form.format(*values)}")
    words += [flag for flag in _FLAGS.get(opcode, TOKENS) if row[flag]]
    return " ".join(words)


def disassemble(code: bytes, config: Config = DEFAULT) -> list[str]:
    """One line for each instruction. Raises `EncodingError` if the length is no multiple of 16."""
    reserved = set(isa.reserved_bits(code, config).tolist())
    lines = []
    for index, row in enumerate(isa.decode(code, config)):
        raw = f"raw {code[index * INSTRUCTION_BYTES : (index + 1) * INSTRUCTION_BYTES].hex()}"
        try:
            lines.append(raw if index in reserved else format_instruction(row))
        except ValueError:
            lines.append(raw)
    return lines


def format_program(program: Program) -> str:
    """A whole program as text that `assemble` reads back."""
    return "\n".join(_program_lines(program)) + "\n"


def _program_lines(program: Program) -> Iterator[str]:
    yield f".config {program.config.name}"
    yield f".dram {program.dram_bytes:#x}"
    yield f".uops {program.uop_address:#x}"
    ops = isa.decode_uops(program.uops, program.config)
    again = isa.encode_uops(ops, program.config)
    for at, op in zip(range(0, len(again), UOP_BYTES), ops, strict=True):
        word = program.uops[at : at + UOP_BYTES]
        same = word == again[at : at + UOP_BYTES]
        yield f"uop {op['dst']} {op['src']} {op['wgt']}" if same else f".word {word.hex()}"
    yield f".code {program.code_address:#x}"
    yield from disassemble(program.code, program.config)
    for segment in program.data:
        for at in range(0, len(segment.data), _DATA_LINE):
            piece = segment.data[at : at + _DATA_LINE]
            if any(piece):
                yield f".data {segment.address + at:#x} {piece.hex()}"
    for o in program.outputs:
        yield " ".join([".output", o.name, f"{o.address:#x}", f"{o.size}", *([o.sha256] if o.sha256 else [])])


# --- reading --------------------------------------------------------------------------------------


@dataclass
class _Assembler:
    """What has been read so far."""

    config: Config = DEFAULT
    dram_bytes: int = 0
    code: bytearray = field(default_factory=bytearray)
    code_address: int = 0x1000
    uops: bytearray = field(default_factory=bytearray)
    uop_address: int = 0
    data: list[tuple[int, bytearray]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)

    def line(self, words: list[str]) -> None:
        head, rest = words[0], words[1:]
        directive = _DIRECTIVES.get(head)
        if directive is not None:
            directive(self, *rest)
        elif head == "uop":
            dst, src, wgt = (_number(w) for w in rest)
            self.uops += isa.encode_uops(isa.uops([(dst, src, wgt)]), self.config)
        elif head == "raw":
            self.code += _exactly(INSTRUCTION_BYTES, *rest)
        else:
            self.code += isa.encode(_instruction(words), self.config)

    def set_config(self, name: str) -> None:
        self.config = Config.from_name(name)

    def set_dram(self, size: str) -> None:
        self.dram_bytes = _number(size)

    def set_code(self, address: str) -> None:
        self.code_address = _number(address)

    def set_uops(self, address: str) -> None:
        self.uop_address = _number(address)

    def add_word(self, word: str) -> None:
        self.uops += _exactly(UOP_BYTES, word)

    def add_data(self, address: str, code: str) -> None:
        at = _number(address)
        if not self.data or self.data[-1][0] + len(self.data[-1][1]) != at:
            self.data.append((at, bytearray()))
        self.data[-1][1].extend(bytes.fromhex(code))

    def add_output(self, name: str, address: str, size: str, sha256: str | None = None) -> None:
        self.outputs.append(Output(name, _number(address), _number(size), sha256))


_DIRECTIVES: dict[str, Callable[..., None]] = {
    ".config": _Assembler.set_config,
    ".dram": _Assembler.set_dram,
    ".code": _Assembler.set_code,
    ".uops": _Assembler.set_uops,
    ".word": _Assembler.add_word,
    ".data": _Assembler.add_data,
    ".output": _Assembler.add_output,
}


def assemble(text: str) -> Program:
    """A program from its text. Raises `AssemblyError` with the line's number."""
    assembler = _Assembler()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition(";")[0].split()
        if not words:
            continue
        try:
            assembler.line(words)
        except (NesteggError, ValueError, TypeError, KeyError) as e:
            raise AssemblyError(f"line {number}: {line.strip()}: {_reason(e)}") from e
    a = assembler
    return Program(
        *(a.config, bytes(a.code), a.code_address, bytes(a.uops), a.uop_address),
        *(tuple(Segment(at, bytes(data)) for at, data in a.data), tuple(a.outputs), a.dram_bytes),
    )


def instructions(text: str) -> isa.Stream:
    """A stream from lines of instructions only. Raises `AssemblyError` with the line's number."""
    return assemble(text).stream


def _instruction(words: list[str]) -> isa.Stream:
    name, _, kind = words[0].partition(".")
    try:
        opcode = Opcode[name.upper()]
        fields = {
            Opcode.LOAD: lambda: {"memory": Memory[kind.upper()]},
            Opcode.STORE: lambda: {"memory": Memory[kind.upper()]},
            Opcode.ALU: lambda: {"alu_op": AluOp[kind.upper()]},
        }.get(opcode, dict)()
    except KeyError:
        raise AssemblyError(f"{words[0]}: no such instruction or directive") from None
    operands = {operand.key: operand for operand in _OPERANDS[opcode]}
    for word in words[1:]:
        key, given, value = word.partition("=")
        if not given and key in _FLAGS.get(opcode, TOKENS):
            fields[key] = 1
        elif given and key in operands:
            names = operands[key].fields
            values = [_number(v) for v in value.replace(":", ",").split(",")]
            fields |= zip(names, values, strict=True)
            if key == "imm":
                fields["use_imm"] = 1
        else:
            raise AssemblyError(f"{words[0]} has no operand {key}; it has {', '.join((*operands, *TOKENS))}")
    return isa.instruction(opcode, **fields)


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise AssemblyError(f"{text}: not a number") from None


def _exactly(size: int, text: str) -> bytes:
    code = bytes.fromhex(text)
    if len(code) != size:
        raise AssemblyError(f"{text}: give {2 * size} hexadecimal digits")
    return code


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, NesteggError) else f"wrong number or form of operands ({error})"
