"""Loop programs: the schedule of a kernel as a term. The loop e-graph holds many at once; extraction picks one.

A nest covers a rectangular block of the kernel's domain (one extent an axis). `For` peels a loop off one axis:

    For(axis, trips, kind, body)      body covers the block with that axis divided by trips; step = what is left
    Cat(axis, at, first, second)      the first `at` indices of the axis, then the rest (tails)
    Tile(vector, body)                from here inward the results live in registers, vectorised along axis `vector`
    Vec(axis, lanes)                  the leaf: one vector operation over the remaining `lanes` indices of `axis`

A loop's step is the extent of its inner block along the axis, so bodies never need re-indexing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Union

PARALLEL, SERIAL, UNROLL = "parallel", "serial", "unroll"
KINDS = (PARALLEL, SERIAL, UNROLL)


@dataclass(frozen=True)
class Vec:
    """One vector operation over `lanes` consecutive indices of `axis` (`axis` -1: a single point)."""

    axis: int
    lanes: int


@dataclass(frozen=True)
class For:
    axis: int
    trips: int
    kind: str
    body: Nest


@dataclass(frozen=True)
class Cat:
    axis: int
    at: int
    first: Nest
    second: Nest


@dataclass(frozen=True)
class Tile:
    vector: int
    body: Nest


Nest = Union[Vec, For, Cat, Tile]  # noqa: UP007


def extents(nest: Nest, rank: int) -> tuple[int, ...]:
    """The block that a nest covers, one extent an axis."""
    if isinstance(nest, Vec):
        return tuple(nest.lanes if a == nest.axis else 1 for a in range(rank))
    if isinstance(nest, Tile):
        return extents(nest.body, rank)
    if isinstance(nest, Cat):
        a, b = extents(nest.first, rank), extents(nest.second, rank)
        return tuple(x + y if k == nest.axis else x for k, (x, y) in enumerate(zip(a, b, strict=True)))
    inner = extents(nest.body, rank)
    return tuple(n * nest.trips if k == nest.axis else n for k, n in enumerate(inner))


def points(nest: Nest, rank: int, offset: Sequence[int] | None = None) -> Iterator[tuple[int, ...]]:
    """Every point the nest visits, in order. The meaning of a nest: rules on nests must keep this a permutation."""
    base = tuple(offset) if offset is not None else (0,) * rank
    if isinstance(nest, Vec):
        for k in range(nest.lanes):
            yield tuple(b + k if a == nest.axis else b for a, b in enumerate(base))
    elif isinstance(nest, Tile):
        yield from points(nest.body, rank, base)
    elif isinstance(nest, Cat):
        yield from points(nest.first, rank, base)
        yield from points(nest.second, rank, tuple(b + nest.at if a == nest.axis else b for a, b in enumerate(base)))
    else:
        step = extents(nest.body, rank)[nest.axis]
        for t in range(nest.trips):
            yield from points(nest.body, rank, tuple(b + t * step if a == nest.axis else b for a, b in enumerate(base)))


def parallel(nest: Nest) -> bool:
    """The nest has a parallel loop."""
    if isinstance(nest, Cat):
        return parallel(nest.first) or parallel(nest.second)
    return not isinstance(nest, Vec) and ((isinstance(nest, For) and nest.kind == PARALLEL) or parallel(nest.body))


def text(nest: Nest, names: Sequence[str], indent: int = 0) -> str:
    """The nest as indented lines, axes by name."""
    pad = "  " * indent
    if isinstance(nest, Vec):
        return f"{pad}vector {names[nest.axis]} x{nest.lanes}" if nest.axis >= 0 else f"{pad}point"
    if isinstance(nest, Tile):
        along = f" along {names[nest.vector]}" if nest.vector >= 0 else ""
        return f"{pad}in registers{along}:\n{text(nest.body, names, indent + 1)}"
    if isinstance(nest, Cat):
        first, second = text(nest.first, names, indent + 1), text(nest.second, names, indent + 1)
        return f"{pad}{names[nest.axis]} below {nest.at}:\n{first}\n{pad}{names[nest.axis]} from {nest.at}:\n{second}"
    kind = "" if nest.kind == SERIAL else f"{nest.kind} "
    step = extents(nest.body, len(names))[nest.axis]
    by = f" by {step}" if step > 1 else ""
    return f"{pad}{kind}for {names[nest.axis]} in {nest.trips}{by}:\n{text(nest.body, names, indent + 1)}"
