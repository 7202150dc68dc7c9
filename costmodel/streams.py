"""Streams from memory: how often a nest begins to read or write rows that the prefetcher does not follow yet.

A long run of neighbouring lines arrives at the memory's rate; the beginning of one waits for it. Rows that a nest
walks side by side begin one by one, while rows that it walks one after another in memory's own order are one stream:
`for rows: for columns` is one, `for columns: for 16 rows` sixteen. (Sums of the rows of a 65536x256 matrix: 45 GB/s
row by row, 14 GB/s two to eight rows at a time; of a 4096x4096 one: 48 and 36; in the caches no difference.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.target import LINE
from .access import Access, runs

#: Bytes that memory could have moved while a stream begins: fitted to sums of rows of 1, 4, 16 and 64 KiB, of which
#: two to sixteen were walked side by side (2.0 to 5.3 KiB).
START = 3000.0
#: Short runs overlap: however many begin, they cost at most so many times the bytes moved (a transposition of
#: 4096x4096 that reads and writes single lines: 24 to 32 GB/s, where whole rows are copied at 40).
BROKEN = 2.0
#: Streams that are followed at a time: as many as a set of the first cache has ways, since rows that lie a power of two
#: apart fall into one (a row of 512 by panels of 2048 columns: 2 to 8 panels side by side 45 us, 16 of them 70).
FOLLOWED = 8
#: The same of rows that are stored past the caches, which no prefetcher need follow.
STORED_ROWS = 32
#: What beginning a row that is stored past the caches costs beyond that, in bytes: single lines of rows far apart
#: against runs of 4 to 32 lines (transpositions of 4096x4096 in blocks of every shape: 24.6 GB/s, and 27 to 30).
STORED = 28.0


@dataclass(frozen=True)
class Streams:
    """The streams of every buffer over the blocks of an e-graph: columns are buffers, rows e-classes.

    `strides`: bytes along every axis, shape (buffers, axes); `rows` and `run`: how many runs of neighbouring bytes a
    block consists of, and their length, shape (e-classes, buffers). The last buffer is written; a loop goes on with
    `written` rows of it at most.
    """

    strides: np.ndarray
    rows: np.ndarray
    run: np.ndarray
    written: int = FOLLOWED

    @staticmethod
    def of(accesses: Sequence[tuple[int, Access]], domain: np.ndarray, buffers: int) -> Streams:
        """Of (buffer, access) pairs over blocks of the extents `domain`; of several accesses the one of most rows."""
        strides = np.zeros((buffers, max(domain.shape[1], 1)))
        rows, run = np.zeros((len(domain), buffers)), np.zeros((len(domain), buffers))
        for number, a in accesses:
            found = runs(a, domain)
            more = found.rows > rows[:, number]
            rows[:, number] = np.where(more, found.rows, rows[:, number])
            run[:, number] = np.where(more, found.length, run[:, number])
            strides[number, : len(a.strides)] = np.maximum(strides[number, : len(a.strides)], a.strides)
        return Streams(strides, rows, run)

    @staticmethod
    def joined(parts: Sequence[Streams], axes: int) -> Streams:
        """Of stages together, along the first `axes`, which they share: of each buffer the stage with most rows."""
        rows, run = (np.stack([getattr(p, n) for p in parts]) for n in ("rows", "run"))
        most = rows.argmax(axis=0)[None]
        strides = np.max([p.strides[:, : max(axes, 1)] for p in parts], axis=0)
        return Streams(strides, np.take_along_axis(rows, most, 0)[0], np.take_along_axis(run, most, 0)[0])

    def loop(
        self, axis: np.ndarray, step: np.ndarray, trips: np.ndarray, child: np.ndarray, kept: np.ndarray,
        starts: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Streams begun by loops: over `axis`, in `trips` steps of `step` indices, around nests of the e-classes
        `child` that begin `starts` (loops, beam, buffers). `kept`: a cache holds what the body touches.

        A loop goes on with its body's streams if its step is a run's length, if these are few, and if the body walked
        each run as one; what it writes in several rows need not be, as no one waits for it.
        """
        jump, last = self.strides[:, axis] * step, len(self.strides) - 1
        begun = np.empty_like(starts)
        for buffer, far in enumerate(jump):
            before, rows = starts[:, :, buffer], self.rows[child, buffer]
            several = (rows > 1) & (rows <= (self.written if buffer == last else FOLLOWED))
            whole = np.where(several, math.inf if buffer == last else rows, 1.0)
            follows = (far > 0) & (far <= np.maximum(self.run[child, buffer], LINE))
            goes_on = follows[:, None] & (before <= whole[:, None]) | ((far == 0) & kept)[:, None]
            begun[:, :, buffer] = np.where(goes_on, before, before * trips[:, None])
        return begun
