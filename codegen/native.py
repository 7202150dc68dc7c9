"""Where a program's machine code lies in this process: what other machine code needs to call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Native:
    """The addresses of a program's entry (`program.ENTRY`) and constants, and the bytes of arena that a call needs.

    `owner` keeps code and constants in memory.
    """

    run: int
    constants: int
    arena: int
    owner: Any = None
