"""The static memory plan: every intermediate tensor gets a place in one arena, shared by tensors never alive together.

Places are given from the largest tensor down, each at the lowest offset free during its life (first fit by size, as
in TensorFlow Lite's planner; Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
While that takes more than the largest live set, the tensor that ends highest is placed first, and all the others again
(Joslin and Clements, "Squeaky Wheel Optimization", 1999).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.target import LINE

#: Bytes to multiples of which buffers are aligned: whole cache lines, which hold the widest vectors.
ALIGNMENT = LINE
#: Plans made at most.
PLANS = 100


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
    tensors = [replace(t, size=-(-t.size // ALIGNMENT) * ALIGNMENT) for t in tensors]
    steps = {t.first for t in tensors}
    live = max((sum(t.size for t in tensors if t.first <= s <= t.last) for s in steps), default=0)
    order = sorted(tensors, key=lambda t: (-t.size, t.first, t.name))
    rivals = {t.name: [o for o in tensors if o.first <= t.last and t.first <= o.last and o is not t] for t in tensors}
    best, peak = {}, math.inf if tensors else 0
    for _ in range(PLANS):
        if peak <= live:
            break
        offsets = _first_fit(order, rivals)
        highest = max(order, key=lambda t: offsets[t.name] + t.size)
        if offsets[highest.name] + highest.size < peak:
            best, peak = offsets, offsets[highest.name] + highest.size
        order.remove(highest)
        order.insert(0, highest)
    return MemoryPlan(best, int(peak), live, sum(t.size for t in tensors))


def _first_fit(order: Sequence[Lifetime], rivals: Mapping[int, Sequence[Lifetime]]) -> dict[int, int]:
    """Each tensor in order at the lowest offset that those of its `rivals` leave free which have a place already."""
    offsets: dict[int, int] = {}
    for t in order:
        offset = 0
        for begin, size in sorted((offsets[o.name], o.size) for o in rivals[t.name] if o.name in offsets):
            if offset + t.size <= begin:
                break
            offset = max(offset, begin + size)
        offsets[t.name] = offset
    return offsets
