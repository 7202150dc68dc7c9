"""Blocks transposed in registers: rows of one axis loaded as vectors, results along another.

A tile whose vectors run along one axis may read (or write) a tensor whose neighbours lie along another axis that the
tile unrolls. Element by element that costs a load and an insertion each; as whole rows and shuffles, a few
instructions a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llvmlite import ir

from .llvm_types import lanes_of, picked

Slot = tuple[int, ...]


def transposed(b: ir.IRBuilder, rows: Sequence[ir.Value]) -> list[ir.Value]:
    """The columns of a block: of R vectors of n lanes n vectors of R lanes. R and n are powers of two, 1 < n <= R."""
    n = lanes_of(rows[0])
    return _turned(b, [_joined(b, rows[k::n]) for k in range(n)])


def restored(b: ir.IRBuilder, columns: Sequence[ir.Value]) -> list[ir.Value]:
    """The rows of a block: of n vectors of R lanes R vectors of n lanes; undoes `transposed`."""
    n, height = len(columns), lanes_of(columns[0])
    blocks = _turned(b, columns)
    if n == height:
        return blocks
    return [picked(b, blocks[r % n], range(r // n * n, r // n * n + n)) for r in range(height)]


def _turned(b: ir.IRBuilder, block: Sequence[ir.Value]) -> list[ir.Value]:
    """n vectors, each of n x n blocks side by side: every block transposed (Eklundh, IEEE Trans. Comput. C-21, 1972:
    halves off the diagonal change places, then quarters, …)."""
    block, bit = list(block), 1
    width = lanes_of(block[0])
    while bit < len(block):
        for i in (i for i in range(len(block)) if not i & bit):
            upper, lower = block[i], block[i | bit]
            block[i] = picked(b, upper, [k - bit + width if k & bit else k for k in range(width)], lower)
            block[i | bit] = picked(b, upper, [k + width if k & bit else k + bit for k in range(width)], lower)
        bit *= 2
    return block


def _joined(b: ir.IRBuilder, parts: Sequence[ir.Value]) -> ir.Value:
    """Vectors end to end."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    first, second = _joined(b, parts[:half]), _joined(b, parts[half:])
    return picked(b, first, range(2 * lanes_of(first)), second)


def runs_along(slots: dict[Slot, int], axis: int) -> Iterator[tuple[list[Slot], int]]:
    """Slots (offset along every axis -> lanes) that follow one another along an axis, in runs of powers of two.

    Only runs of at least two and of at most as many slots as they have lanes, a power of two.
    """
    rows: dict[tuple[Slot, int], list[Slot]] = {}
    for slot, lanes in slots.items():
        if lanes > 1 and lanes & (lanes - 1) == 0:
            rows.setdefault(((*slot[:axis], *slot[axis + 1 :]), lanes), []).append(slot)
    for (_, lanes), row in rows.items():
        row.sort(key=lambda s: s[axis])
        start = 0
        while start < len(row):
            end = start + 1
            while end < len(row) and row[end][axis] == row[end - 1][axis] + 1:
                end += 1
            yield from ((part, lanes) for part in _powers_of_two(row[start:end], lanes))
            start = end


def _powers_of_two(run: list[Slot], most: int) -> Iterator[list[Slot]]:
    while len(run) > 1:
        n = min(1 << (len(run).bit_length() - 1), most)
        yield run[:n]
        run = run[n:]
