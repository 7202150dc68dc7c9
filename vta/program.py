"""A program: instructions, micro-ops and data with their addresses, and the folder it is kept in.

- `insns.bin`: instructions, 16 bytes each
- `uops.bin`: micro-ops, 4 bytes each
- `dram.bin`: the data, from `dram.address` on
- `meta.json`: configuration, addresses, outputs (with SHA-256 of what they should hold, if known)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import isa
from .config import Config
from .errors import ProgramError

#: DRAM that a program may have; a larger image is a mistake in an address.
MAX_DRAM = 1 << 30


class Segment(NamedTuple):
    """Bytes at a physical address."""

    address: int
    data: bytes


class Output(NamedTuple):
    """A region of DRAM that holds results at the end."""

    name: str
    address: int
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Program:
    """All that a VTA needs to run: `code` at `code_address`, `uops` at `uop_address`, `data`; addresses in bytes.

    `dram_bytes` is the size of the memory image, which begins at address 0. Raises `ProgramError` if something lies
    outside of it, or code, micro-ops and data overlap.
    """

    config: Config
    code: bytes
    code_address: int
    uops: bytes
    uop_address: int
    data: tuple[Segment, ...] = ()
    outputs: tuple[Output, ...] = ()
    dram_bytes: int = field(default=0)

    def __post_init__(self) -> None:
        ends = [s.address + len(s.data) for s in self._segments] + [o.address + o.size for o in self.outputs]
        if self.dram_bytes == 0:
            object.__setattr__(self, "dram_bytes", max(ends))
        starts = [s.address for s in self._segments] + [o.address for o in self.outputs]
        if not (0 <= min(starts) and max(ends) <= self.dram_bytes <= MAX_DRAM):
            span = f"{min(starts):#x} … {max(ends):#x}"
            raise ProgramError(f"code, data or outputs ({span}) lie outside a DRAM of {self.dram_bytes} bytes")
        placed = sorted(s for s in self._segments if s.data)
        for first, second in pairwise(placed):
            if first.address + len(first.data) > second.address:
                where = f"{first.address:#x} with {len(first.data)} bytes and {second.address:#x}"
                raise ProgramError(f"code, micro-ops or data overlap: {where}")

    @property
    def _segments(self) -> tuple[Segment, ...]:
        return (*self.data, Segment(self.uop_address, self.uops), Segment(self.code_address, self.code))

    @cached_property
    def stream(self) -> isa.Stream:
        """The instructions, decoded."""
        return isa.decode(self.code, self.config)

    def image(self, before: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """DRAM before the program runs, a new array: zeros and all that is given.

        With `before`, the memory that another program left, only instructions and micro-ops are added to it.
        """
        image = np.zeros(self.dram_bytes, np.uint8)
        segments = self._segments
        if before is not None:
            kept = before[: self.dram_bytes]
            image[: len(kept)] = kept
            segments = segments[len(self.data) :]
        for segment in segments:
            image[segment.address : segment.address + len(segment.data)] = np.frombuffer(segment.data, np.uint8)
        return image

    def save(self, folder: Path) -> None:
        """Write the four files."""
        folder.mkdir(parents=True, exist_ok=True)
        begin = min((s.address for s in self.data), default=0)
        end = max((s.address + len(s.data) for s in self.data), default=0)
        dram = np.zeros(end - begin, np.uint8)
        for segment in self.data:
            at = segment.address - begin
            dram[at : at + len(segment.data)] = np.frombuffer(segment.data, np.uint8)
        (folder / "insns.bin").write_bytes(self.code)
        (folder / "uops.bin").write_bytes(self.uops)
        (folder / "dram.bin").write_bytes(dram.tobytes())
        meta = {
            "config": self.config.to_json(),
            "insns": {"address": self.code_address},
            "uops": {"address": self.uop_address},
            "dram": {"address": begin, "bytes": self.dram_bytes},
            "outputs": [o._asdict() for o in self.outputs],
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Program:
        """Read the four files. Raises `ProgramError` if one is missing or malformed."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            parts = {name: (folder / f"{name}.bin").read_bytes() for name in ("insns", "uops", "dram")}
            return cls._from_parts(meta, parts)
        except (OSError, ValueError) as e:
            raise ProgramError(f"{folder}: no program can be read ({e})") from e
        except (KeyError, TypeError) as e:
            raise ProgramError(f"{folder}/meta.json: malformed ({type(e).__name__}: {e})") from e

    @classmethod
    def _from_parts(cls, meta: Mapping[str, Any], parts: Mapping[str, bytes]) -> Program:
        return cls(
            Config.from_json(meta["config"]),
            parts["insns"],
            meta["insns"]["address"],
            parts["uops"],
            meta["uops"]["address"],
            (Segment(meta["dram"]["address"], parts["dram"]),) if parts["dram"] else (),
            tuple(Output(**o) for o in meta["outputs"]),
            meta["dram"]["bytes"],
        )
