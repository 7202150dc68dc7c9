"""Where a program's machine code lies in this process: what other machine code needs to call it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Native:
    """The addresses of a program's entry (`program.ENTRY`) and constants, and the bytes of arena that a call needs."""

    run: int
    constants: int
    arena: int
