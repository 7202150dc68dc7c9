"""The static memory plan: every intermediate tensor gets a place in one arena, shared by tensors never alive together.

Places are given from the largest tensor down, each at the lowest offset free during its life (first fit by size, as
in TensorFlow Lite's planner; Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.target import LINE

#: Bytes to multiples of which buffers are aligned: whole cache lines, which hold the widest vectors.
ALIGNMENT = LINE


def aligned_bytes(size: int) -> np.ndarray:
    """Uninitialised bytes whose first is aligned."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `size` bytes, alive from step `first` (which writes it) to step `last` (its last reader)."""

    name: int
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """`offsets` by tensor, arena size, the largest live set (no plan can be smaller), and the sum of all tensors."""

    offsets: dict[int, int]
    peak: int
    live: int
    total: int


def plan(tensors: Sequence[Lifetime]) -> MemoryPlan:
    """Place tensors; bytes, offsets aligned."""
    rounded = {t.name: -(-t.size // ALIGNMENT) * ALIGNMENT for t in tensors}
    placed: list[tuple[Lifetime, int]] = []
    for t in sorted(tensors, key=lambda t: (-t.size, t.first, t.name)):
        busy = sorted(
            (at, at + rounded[o.name]) for o, at in placed if o.first <= t.last and t.first <= o.last
        )
        offset = 0
        for begin, end in busy:
            if offset + rounded[t.name] <= begin:
                break
            offset = max(offset, end)
        placed.append((t, offset))
    offsets = {t.name: at for t, at in placed}
    peak = max((offsets[t.name] + rounded[t.name] for t in tensors), default=0)
    steps = {t.first for t in tensors}
    live = max((sum(rounded[t.name] for t in tensors if t.first <= s <= t.last) for s in steps), default=0)
    return MemoryPlan(offsets, peak, live, sum(rounded.values()))
