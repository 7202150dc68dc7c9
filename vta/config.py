"""Configurations of the accelerator: widths, block sizes and buffers as log2 values, and what follows from them.

A configuration either keeps every rule of the instruction set or is refused with the rule named; no later module has
to ask whether a field fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ConfigError

UOP_BYTES, INSTRUCTION_BYTES = 4, 16
#: Buffers begin at a page, and an element that is larger than one would share its address with another.
PAGE_BYTES = 4096

_NAME = re.compile(r"(\d+)x(\d+)_i(\d+)w(\d+)a(\d+)_(\d+)_(\d+)_(\d+)_(\d+)")


class Memory(IntEnum):
    """Memory types, with the numbers that instructions carry."""

    UOP = 0
    WGT = 1
    INP = 2
    ACC = 3
    OUT = 4
    ACC_8BIT = 5


@dataclass(frozen=True)
class Config:
    """One accelerator. Every field is a log2: of bits (widths), of elements (batch, block) or of bytes (buffers).

    Raises `ConfigError` if it breaks a rule of the instruction set.
    """

    log_inp_width: int = 3
    log_wgt_width: int = 3
    log_acc_width: int = 5
    log_batch: int = 0
    log_block: int = 4
    log_uop_buff_size: int = 15
    log_inp_buff_size: int = 15
    log_wgt_buff_size: int = 18
    log_acc_buff_size: int = 17

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or not 0 <= value <= 32:
                raise ConfigError(f"{name.upper()}={value!r}: give a whole number from 0 to 32")
        for rule, kept, got in self._rules():
            if not kept:
                raise ConfigError(f"configuration {self.name} breaks the rule {rule}: {got}")

    def _rules(self) -> list[tuple[str, bool, str]]:
        """Every rule: what it says, whether it is kept, and the values it was given."""
        u, i, w, a = (self.log_depth(m) for m in (Memory.UOP, Memory.INP, Memory.WGT, Memory.ACC))
        bits = {m.name: self._log_element_bits(m) for m in (Memory.INP, Memory.WGT, Memory.ACC, Memory.OUT)}
        depths = f"U={u}, I={i}, W={w}, A={a}"
        return [
            ("LOG_ACC_WIDTH = 5 (int32 accumulators)", self.log_acc_width == 5, f"{self.log_acc_width}"),
            ("LOG_INP_WIDTH <= 4 (at most int16)", self.log_inp_width <= 4, f"{self.log_inp_width}"),
            ("LOG_WGT_WIDTH <= 4 (at most int16)", self.log_wgt_width <= 4, f"{self.log_wgt_width}"),
            ("an element is a whole number of bytes", min(bits.values()) >= 3, f"log2 bits {bits}"),
            ("an element is at most 4096 bytes", max(bits.values()) <= 15, f"log2 bits {bits}"),
            ("a buffer holds at least one element", min(u, i, w, a) >= 0, depths),
            ("A + max(A, I) + W <= 32 (a micro-op has 32 bits)", a + max(a, i) + w <= 32, f"{a + max(a, i) + w}"),
            ("2U + 37 <= 64 (the first word of GEMM and ALU)", 2 * u + 37 <= 64, f"{2 * u + 37}"),
            ("2(A + I + W) <= 64 (the second word of GEMM)", 2 * (a + i + w) <= 64, f"{2 * (a + i + w)}"),
            ("4A + 20 <= 64 (the second word of ALU)", 4 * a + 20 <= 64, f"{4 * a + 20}"),
        ]

    # --- sizes ------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Rows of the GEMM tile."""
        return 1 << self.log_batch

    @property
    def block(self) -> int:
        """Columns of the GEMM tile, and the length of its reduction."""
        return 1 << self.log_block

    @property
    def inp_bits(self) -> int:
        return 1 << self.log_inp_width

    @property
    def wgt_bits(self) -> int:
        return 1 << self.log_wgt_width

    @property
    def acc_bits(self) -> int:
        return 1 << self.log_acc_width

    @property
    def out_bits(self) -> int:
        """Outputs are as wide as inputs, so that one layer's output is the next one's input."""
        return self.inp_bits

    def _log_element_bits(self, memory: Memory) -> int:
        match memory:
            case Memory.UOP:
                return 5
            case Memory.WGT:
                return 2 * self.log_block + self.log_wgt_width
            case Memory.ACC:
                return self.log_batch + self.log_block + self.log_acc_width
            case Memory.INP | Memory.OUT:
                return self.log_batch + self.log_block + self.log_inp_width
            case Memory.ACC_8BIT:
                return self.log_batch + self.log_block + 3

    def element_bytes(self, memory: Memory) -> int:
        """Bytes of one element in DRAM."""
        return self._element_bytes[memory]

    @cached_property
    def _element_bytes(self) -> dict[Memory, int]:
        return {m: 1 << self._log_element_bits(m) >> 3 for m in Memory}

    def log_depth(self, memory: Memory) -> int:
        """log2 of the number of elements that the on-chip buffer holds (outputs are as many as accumulators)."""
        match memory:
            case Memory.UOP:
                log_bytes = self.log_uop_buff_size
            case Memory.INP:
                log_bytes = self.log_inp_buff_size
            case Memory.WGT:
                log_bytes = self.log_wgt_buff_size
            case Memory.ACC | Memory.OUT | Memory.ACC_8BIT:
                return self.log_acc_buff_size - self._log_element_bits(Memory.ACC) + 3
        return log_bytes - self._log_element_bits(memory) + 3

    def depth(self, memory: Memory) -> int:
        """Elements that the on-chip buffer holds."""
        return 1 << self.log_depth(memory)

    @property
    def sram_bytes(self) -> int:
        """Bytes of all on-chip buffers, the output buffer included."""
        held = (Memory.UOP, Memory.INP, Memory.WGT, Memory.ACC, Memory.OUT)
        return sum(self.depth(m) * self.element_bytes(m) for m in held)

    @property
    def macs(self) -> int:
        """Multiply-accumulates that a GEMM does each cycle."""
        return self.batch * self.block * self.block

    # --- names and files --------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The string that names bitstreams and tuning records: `1x16_i8w8a32_15_15_18_17`."""
        widths = f"i{self.inp_bits}w{self.wgt_bits}a{self.acc_bits}"
        buffers = (self.log_uop_buff_size, self.log_inp_buff_size, self.log_wgt_buff_size, self.log_acc_buff_size)
        return "_".join((f"{self.batch}x{self.block}", widths, *map(str, buffers)))

    @classmethod
    def from_name(cls, name: str) -> Config:
        """Read `1x16_i8w8a32_15_15_18_17`. Raises `ConfigError` if it is no such string or breaks a rule."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise ConfigError(f"configuration {name!r}: write it as 1x16_i8w8a32_15_15_18_17")
        batch, block, inp, wgt, acc, *buffers = map(int, found.groups())
        for value in (batch, block, inp, wgt, acc):
            if value == 0 or value & (value - 1):
                raise ConfigError(f"configuration {name!r}: {value} is not a power of two")
        logs = [value.bit_length() - 1 for value in (inp, wgt, acc, batch, block)]
        return cls(*logs, *buffers)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Config:
        """Read the JSON object of the original (`LOG_BATCH`, …). Labels and derived keys, if given, must agree."""
        known = {f.upper(): f for f in cls.__dataclass_fields__}
        derived = {"LOG_BLOCK_IN", "LOG_BLOCK_OUT", "LOG_OUT_WIDTH", "LOG_OUT_BUFF_SIZE"}
        unknown = set(values) - set(known) - derived - {"TARGET", "HW_VER"}
        if unknown:
            raise ConfigError(f"configuration key {min(unknown)}: no such key; known are {', '.join(known)}")
        config = cls(**{known[key]: value for key, value in values.items() if key in known})
        for key in derived & set(values):
            if values[key] != config._derived()[key]:
                raise ConfigError(f"{key}={values[key]}: follows from the others and is {config._derived()[key]}")
        return config

    def _derived(self) -> dict[str, int]:
        return {
            "LOG_BLOCK_IN": self.log_block,
            "LOG_BLOCK_OUT": self.log_block,
            "LOG_OUT_WIDTH": self.log_inp_width,
            "LOG_OUT_BUFF_SIZE": self.log_acc_buff_size + self.log_inp_width - self.log_acc_width,
        }

    def to_json(self) -> dict[str, int]:
        return {name.upper(): value for name, value in asdict(self).items()}

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read a JSON file of the original's form. Raises `ConfigError`."""
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path}: no configuration can be read ({e})") from e
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a configuration is a JSON object")
        return cls.from_json(values)


DEFAULT = Config()
