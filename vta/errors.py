"""What can go wrong with a VTA program or configuration: members of nestegg's one exception family."""

from __future__ import annotations

from ..ir.errors import NesteggError


class ConfigError(NesteggError):
    """A configuration of the accelerator breaks a rule; the message names the rule."""


class EncodingError(NesteggError):
    """A field does not fit its bits; the message names the instruction and the field."""


class AssemblyError(NesteggError):
    """A line of assembly text cannot be read; the message gives its number."""


class ProgramError(NesteggError):
    """A program file or folder is malformed; the message names the file."""


class ExecutionError(NesteggError):
    """A program cannot be executed. `code` is one of `legality.CODES`, `index` the instruction at fault."""

    def __init__(self, code: str, message: str, index: int | None = None) -> None:
        where = "" if index is None else f"instruction {index}: "
        super().__init__(f"{code} {where}{message}")
        self.code = code
        self.index = index
