"""What a kernel leaves unwritten of an output that is larger than its results: the padding, as runs of elements.

Only they are filled. Filling all of the output first would write, and bring in, every line twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.index import Axis, Index


@dataclass(frozen=True)
class Gap:
    """Runs of `length` elements: at `start`, and as often as the loops (stride, trips) around it say."""

    start: int
    length: int
    loops: tuple[tuple[int, int], ...] = ()

    def stores(self, lanes: int) -> int:
        """Vectors that it takes to fill it."""
        return math.prod(trips for _, trips in self.loops) * -(-self.length // lanes)


def gaps(out: Index, axes: Sequence[Axis], size: int, lanes: int) -> list[Gap]:
    """The elements of a buffer of `size` that no index `out` over the axes falls on; or the whole buffer, where those
    are no nested runs, or so short that it takes fewer vectors to fill it all."""
    whole = [Gap(0, size)]
    found = _between(out, axes, size)
    return whole if found is None or sum(g.stores(lanes) for g in found) > whole[0].stores(lanes) else found


def _between(out: Index, axes: Sequence[Axis], size: int) -> list[Gap] | None:
    if not out.is_affine or any(a.extent == 0 for a in axes):
        return None
    first, span, found = out.constant, 1, list[Gap]()
    moving = [(out.coefficient(a), a.extent) for a in axes if a.extent > 1]
    for stride, extent in sorted(moving):
        if stride < span:
            return None
        found = [replace(g, loops=((stride, extent), *g.loops)) for g in found]
        found.append(Gap(first + span, stride - span, ((stride, extent - 1),)))
        span += stride * (extent - 1)
    found += [Gap(0, first), Gap(first + span, size - first - span)]
    return [g for g in found if g.length]
