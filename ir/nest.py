"""Loop programs: the schedule of a kernel as a term. The loop e-graph holds many at once; extraction picks one.

A nest covers a rectangular block of the kernel's domain (one extent an axis). `For` peels a loop off one axis:

    For(axis, trips, kind, body)      body covers the block with that axis divided by trips; step = what is left
    Cat(axis, at, first, second)      the first `at` indices of the axis, then the rest (tails)
    Tile(vector, body)                from here inward the results live in registers, vectorised along axis `vector`
    Vec(axis, lanes)                  a leaf: one vector operation over the remaining `lanes` indices of `axis`
    Intrin(name, axes, sizes)         a leaf: one machine instruction (`intrinsic.py`) over those extents of those axes
    Seq(first, second)                in a kernel of several stages: first, then second, over the same shared block
    Stage(number, body)               that stage over the block; inside, axes are numbered as the stage numbers its own
    Store(how, body)                  outermost, if at all: how results are stored, through the caches or past them

A loop's step is the extent of its inner block along the axis, so bodies never need re-indexing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Union

PARALLEL, SERIAL, UNROLL, AHEAD = "parallel", "serial", "unroll", "ahead"
KINDS = (PARALLEL, SERIAL, UNROLL, AHEAD)
CACHED, STREAMED = "cached", "streamed"
WAYS = (CACHED, STREAMED)


@dataclass(frozen=True)
class Vec:
    """One vector operation over `lanes` consecutive indices of `axis` (`axis` -1: a single point)."""

    axis: int
    lanes: int


@dataclass(frozen=True)
class Intrin:
    """One application of an intrinsic: `axes` are the kernel's, `sizes` the extents covered (of the lanes at most the
    intrinsic's, of the others exactly)."""

    name: str
    axes: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class For:
    """A loop. `kind`: one of `KINDS`; an `ahead` loop is serial, and what its body loads in vectors is asked for, one
    iteration of this loop earlier, to come into the second cache."""

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


@dataclass(frozen=True)
class Seq:
    """`first`, then `second`: stages of one kernel over the same block of the axes they share."""

    first: Nest
    second: Nest


@dataclass(frozen=True)
class Stage:
    """Stage `number` of a kernel over a block. Its axes are the shared ones, then its own."""

    number: int
    body: Nest


@dataclass(frozen=True)
class Store:
    """The whole kernel, whose results are stored `cached`, or `streamed`: past the caches (non-temporal stores), which
    neither bring in lines to be overwritten nor displace what the caches hold."""

    how: str
    body: Nest


Nest = Union[Vec, Intrin, For, Cat, Tile, Seq, Stage, Store]  # noqa: UP007


def extents(nest: Nest, rank: int) -> tuple[int, ...]:
    """The block that a nest covers, one extent an axis."""
    if isinstance(nest, Vec):
        return tuple(nest.lanes if a == nest.axis else 1 for a in range(rank))
    if isinstance(nest, Intrin):
        sizes = dict(zip(nest.axes, nest.sizes, strict=True))
        return tuple(sizes.get(a, 1) for a in range(rank))
    if isinstance(nest, (Tile, Stage, Store)):
        return extents(nest.body, rank)
    if isinstance(nest, Seq):
        return extents(nest.first, rank)
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
    elif isinstance(nest, Intrin):
        for steps in product(*map(range, extents(nest, rank))):
            yield tuple(b + s for b, s in zip(base, steps, strict=True))
    elif isinstance(nest, (Tile, Store)):
        yield from points(nest.body, rank, base)
    elif isinstance(nest, Cat):
        yield from points(nest.first, rank, base)
        yield from points(nest.second, rank, _moved(base, nest.axis, nest.at))
    elif isinstance(nest, For):
        step = extents(nest.body, rank)[nest.axis]
        for t in range(nest.trips):
            yield from points(nest.body, rank, _moved(base, nest.axis, t * step))
    else:
        raise TypeError("a nest of several stages has no points of one domain; use `visits`")


def stages(nest: Nest) -> tuple[Stage, ...]:
    """The stages that a `Seq` runs, in order."""
    if isinstance(nest, Stage):
        return (nest,)
    return stages(nest.first) + stages(nest.second) if isinstance(nest, Seq) else ()


def visits(
    nest: Nest, ranks: Sequence[int], shared: int, offset: Sequence[int] | None = None
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every (stage, point of that stage) of a kernel whose stages have `ranks` axes and share the first `shared`."""
    base = tuple(offset) if offset is not None else (0,) * shared
    if isinstance(nest, Stage):
        own = (*base, *(0 for _ in range(ranks[nest.number] - shared)))
        yield from ((nest.number, p) for p in points(nest.body, ranks[nest.number], own))
    elif isinstance(nest, Seq):
        yield from visits(nest.first, ranks, shared, base)
        yield from visits(nest.second, ranks, shared, base)
    elif isinstance(nest, Store):
        yield from visits(nest.body, ranks, shared, base)
    elif isinstance(nest, Cat):
        yield from visits(nest.first, ranks, shared, base)
        yield from visits(nest.second, ranks, shared, _moved(base, nest.axis, nest.at))
    elif isinstance(nest, For):
        step = extents(nest.body, shared)[nest.axis]
        for t in range(nest.trips):
            yield from visits(nest.body, ranks, shared, _moved(base, nest.axis, t * step))


def _moved(base: tuple[int, ...], axis: int, by: int) -> tuple[int, ...]:
    return tuple(b + by if a == axis else b for a, b in enumerate(base))


def parallel(nest: Nest) -> bool:
    """The nest has a parallel loop."""
    if isinstance(nest, (Cat, Seq)):
        return parallel(nest.first) or parallel(nest.second)
    if isinstance(nest, (Vec, Intrin)):
        return False
    return (isinstance(nest, For) and nest.kind == PARALLEL) or parallel(nest.body)


def text(nest: Nest, names: Sequence[str], indent: int = 0, own: Sequence[Sequence[str]] = ()) -> str:
    """The nest as indented lines, axes by name; `own`: the names of each stage's axes."""
    pad = "  " * indent
    if isinstance(nest, Stage):
        return f"{pad}stage {nest.number}:\n{text(nest.body, own[nest.number], indent + 1)}"
    if isinstance(nest, Seq):
        return f"{text(nest.first, names, indent, own)}\n{text(nest.second, names, indent, own)}"
    if isinstance(nest, Vec):
        return f"{pad}vector {names[nest.axis]} x{nest.lanes}" if nest.axis >= 0 else f"{pad}point"
    if isinstance(nest, Intrin):
        covered = ", ".join(f"{names[a]} x{n}" for a, n in zip(nest.axes, nest.sizes, strict=True))
        return f"{pad}{nest.name} over {covered}"
    if isinstance(nest, Store):
        body = text(nest.body, names, indent, own)
        return f"{pad}results past the caches\n{body}" if nest.how == STREAMED else body
    if isinstance(nest, Tile):
        along = f" along {names[nest.vector]}" if nest.vector >= 0 else ""
        return f"{pad}in registers{along}:\n{text(nest.body, names, indent + 1, own)}"
    if isinstance(nest, Cat):
        first, second = text(nest.first, names, indent + 1, own), text(nest.second, names, indent + 1, own)
        return f"{pad}{names[nest.axis]} below {nest.at}:\n{first}\n{pad}{names[nest.axis]} from {nest.at}:\n{second}"
    kind = f"{nest.kind} " if nest.kind in (PARALLEL, UNROLL) else ""
    step = extents(nest.body, len(names))[nest.axis]
    by = f" by {step}" if step > 1 else ""
    fetching = ", fetching ahead" if nest.kind == AHEAD else ""
    head = f"{pad}{kind}for {names[nest.axis]} in {nest.trips}{by}{fetching}:"
    return f"{head}\n{text(nest.body, names, indent + 1, own)}"
