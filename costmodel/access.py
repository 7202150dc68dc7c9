"""The accesses of a kernel as strides, and the bytes and runs of memory that they touch over blocks of its domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..ir.index import Index
from ..ir.loops import LoopKernel
from ..ir.target import LINE
from ..ir.types import DTYPES

FAR_ROWS = 1024  # bytes from which short rows miss the prefetcher, the TLB and, at powers of two, their cache set
SCATTERED = 3.0  # what such rows cost: set by hand so that panels win where they measured faster (BERT matmuls: 1.2x)


@dataclass(frozen=True)
class Access:
    """One access of a kernel: stride of every axis in bytes, element size, and its kind.

    `tested`: bounds are tested where it is read, except in blocks that keep clear of the ends `clear` (bits of
    `Block.inside`; None: everywhere).
    """

    strides: np.ndarray
    size: int
    affine: bool
    tested: bool = False
    clear: int | None = None

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


def footprint(a: Access, domain: np.ndarray) -> np.ndarray:
    """Bytes of whole cache lines that an access touches over blocks of the given extents; short far rows cost more."""
    rows, length, far = runs(a, domain)
    return rows * np.maximum(length, LINE) * np.where(far & (length <= 4 * LINE), SCATTERED, 1.0)
