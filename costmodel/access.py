"""The accesses of a kernel as strides, and the bytes and runs of memory that they touch over blocks of its domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from typing import NamedTuple

import numpy as np

from ..ir.index import Index
from ..ir.loops import LoopKernel
from ..ir.target import LINE
from ..ir.types import DTYPES

FAR_ROWS = 1024  # bytes from which short rows miss the prefetcher, the TLB and, at powers of two, their cache set
SCATTERED = 3.0  # what such rows cost: set by hand so that panels win where they measured faster (BERT matmuls: 1.2x)


@dataclass(frozen=True)
class BoundsTest:
    """A bounds test over the axes `axes` (their numbers), of these `extents`: of the index `constant` + `steps` times
    their values, which is to be in `lo` to `hi - 1`.

    Blocks that keep clear of the ends `clear` (bits of `Block.inside`; None: there are none) need not make it. `share`:
    the part of all points that pass; `skips`: the others are not computed. `looped`: the reduction axis (-1: none) of
    which loops make no rounds in which it fails.
    """

    axes: tuple[int, ...]
    extents: tuple[int, ...]
    clear: int | None
    looped: int = -1
    share: float = 1.0
    skips: bool = False
    steps: tuple[int, ...] = ()
    constant: int = 0
    lo: int = 0
    hi: int = 0

    def known(self, domain: np.ndarray) -> np.ndarray:
        """Straight-line code over a block knows where each of its points is."""
        return (domain[:, self.axes] == np.array(self.extents, np.int64)).all(axis=1) & bool(self.axes)

    def left_to_loop(self, domain: np.ndarray) -> np.ndarray:
        """Blocks of a single point along all axes of the test: the loop over `looped` around them passes it."""
        return (domain[:, self.axes] == 1).all(axis=1) & (self.looped >= 0)

    def inside(self, inside: np.ndarray) -> np.ndarray:
        """Blocks that keep clear of the ends at which it fails."""
        return np.zeros(len(inside), bool) if self.clear is None else (inside & self.clear) == self.clear

    def made(self, domain: np.ndarray, v: np.ndarray, lanes: int, inside: np.ndarray) -> np.ndarray:
        """Share of a block's vectors of `lanes` along the axes `v` (-1: single elements) for which straight-line code
        makes the test; the others pass wherever the block is."""
        without = self.inside(inside) | self.known(domain) | self.left_to_loop(domain)
        if not self.axes:
            return np.where(without, 0.0, 1.0)
        places = np.asarray(np.ravel_multi_index(tuple(domain[:, self.axes].T - 1), self.extents))
        out = np.zeros(len(domain))
        for along in (-1, *self.axes):
            rows = ~without & (v == along if along >= 0 else ~np.isin(v, self.axes))
            exposed = self._exposed[along]
            new = np.unique(places[rows][np.isnan(exposed[places[rows]])])
            for place, block in zip(new, np.stack(np.unravel_index(new, self.extents), axis=1) + 1, strict=True):
                exposed[place] = self._may_fail(block.tolist(), along, lanes)
            out[rows] = exposed[places[rows]]
        return out

    @cached_property
    def _exposed(self) -> dict[int, np.ndarray]:
        """Share of the vectors along an axis that may fail, for blocks of all extents; NaN: not asked for yet."""
        return {along: np.full(math.prod(self.extents), np.nan) for along in (-1, *self.axes)}

    def _may_fail(self, block: Sequence[int], along: int, lanes: int) -> float:
        """Share of the vectors along an axis, of a block of these extents, of which a lane fails at one of the places
        where the block may be."""
        least = furthest = np.full((), self.constant)
        for size, extent, step in zip(block, self.extents, self.steps, strict=True):
            within, start = step * np.arange(size), step * (extent - size)
            least = np.add.outer(least, within + min(start, 0))
            furthest = np.add.outer(furthest, within + max(start, 0))
        fails = (least < self.lo) | (furthest >= self.hi)
        if along >= 0:
            axis = self.axes.index(along)
            fails = np.logical_or.reduceat(fails, np.arange(0, fails.shape[axis], lanes), axis=axis)
        return float(fails.mean())


@dataclass(frozen=True)
class Access:
    """One access of a kernel: stride of every axis in bytes, element size, its kind, and the bounds tests made where it
    is read."""

    strides: np.ndarray
    size: int
    affine: bool
    tests: tuple[BoundsTest, ...] = ()

    @property
    def tested(self) -> bool:
        return bool(self.tests)

    @property
    def clear(self) -> int | None:
        """The ends (bits of `Block.inside`) that a block must keep clear of to make no test; None: it always does."""
        ends = [t.clear for t in self.tests]
        return None if None in ends else reduce(or_, (e for e in ends if e is not None), 0)

    def splits(self, vector: int) -> bool:
        """Vectors along the contiguous axis start anywhere in a cache line, because some row does."""
        return bool((self.strides % min(vector, LINE))[self.strides > self.size].any())


def access(kernel: LoopKernel, address: Index, dtype: str) -> Access:
    size = DTYPES[dtype].size
    strides = np.array([abs(address.coefficient(a)) * size for a in kernel.axes], np.int64)
    for atom, c in address.terms:  # an axis under a quotient or remainder: count it as strided
        for k, a in enumerate(kernel.axes):
            if not address.is_affine and a != atom and atom not in kernel.axes and a in atom.of.axes:  # type: ignore[union-attr]
                strides[k] = max(strides[k], abs(c) * size, size * 2)
    return Access(strides, size, address.is_affine)


class Runs(NamedTuple):
    """What an access touches over blocks: `rows` runs of neighbouring bytes, each `length` long; `far`: the rows lie so
    far apart that a short one costs more than its lines."""

    rows: np.ndarray
    length: np.ndarray
    far: np.ndarray


def runs(a: Access, domain: np.ndarray) -> Runs:
    """The runs of an access over blocks of the given extents (one row a block).

    Axes are taken from the smallest stride up: a stride within the run so far extends it (so overlapping windows
    count once), a larger one starts rows; rows whose own starts overlap (a sliding window) extend likewise.
    """
    run = np.full(len(domain), float(a.size))
    rows, pitch = np.ones(len(domain)), np.zeros(len(domain))
    outer = np.ones(len(domain))
    for k in np.argsort(a.strides, kind="stable"):
        stride = float(a.strides[k])
        if stride == 0:
            continue
        e = domain[:, k].astype(float)
        grows = (stride <= np.maximum(run, LINE)) & (pitch == 0)
        slides = ~grows & (pitch > 0) & (stride <= pitch * rows) & (stride % np.maximum(pitch, 1) == 0)
        starts = ~grows & ~slides & (e > 1)
        run = np.where(grows, run + stride * (e - 1), run)
        rows = np.where(slides, rows + (stride / np.maximum(pitch, 1)) * (e - 1), rows)
        outer = np.where(starts, outer * rows, outer)
        rows = np.where(starts, e, rows)
        pitch = np.where(starts, stride, pitch)
    return Runs(outer * rows, run, (pitch >= FAR_ROWS) & (rows > 1))


def footprint(a: Access, domain: np.ndarray, scattered: float = SCATTERED) -> np.ndarray:
    """Bytes of whole cache lines that an access touches over blocks of the given extents; short far rows cost
    `scattered` times as much."""
    rows, length, far = runs(a, domain)
    return rows * np.maximum(length, LINE) * np.where(far & (length <= 4 * LINE), scattered, 1.0)
