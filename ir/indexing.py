"""Composites that read or write at computed positions, or sort: forms of `gather`, scatters, the k best.

A scatter is computed from its results: every element looks for the updates that are meant for it. That is work for
the number of elements times the number of positions, and it is the same work whatever the positions are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .canonical import (
    add,
    binary,
    broadcast,
    cast,
    concat,
    full_like,
    index_ramp,
    maximum,
    minimum,
    reduce,
    reshape,
    select,
    transpose,
)
from .composite import Sample, declare
from .graph import Value
from .operator import Chooser, axis_in, require
from .scalars import COMBINERS, neutral
from .types import DTYPES, TensorType


def from_end(where: Value, n: int) -> Value:
    """Positions along an axis of extent n, of which negative ones count from its end."""
    return select(binary("lt", where, 0), add(where, n), where)


def gather(x: Value, where: Value, axes: Sequence[int], aligned: Sequence[tuple[int, int]] = ()) -> Value:
    """The operator of that name: the last axis of `where` holds one position for each of `axes`."""
    return x.builder.op("gather", x, where, axes=tuple(axes), aligned=tuple(map(tuple, aligned)))


def take_at(x: Value, where: Value, axis: int) -> Value:
    """Elements at computed positions along an axis, which the axes of `where` replace (`numpy.take`)."""
    axis = axis_in(axis, x.type.rank)
    out = gather(x, reshape(from_end(where, x.shape[axis]), (*where.shape, 1)), (axis,))
    n = where.type.rank
    before, after = range(n, n + axis), range(n + axis, out.type.rank)
    return transpose(out, [*before, *range(n), *after])


def take_along(x: Value, where: Value, axis: int) -> Value:
    """out[i, j] = x[where[i, j], j], for axis 0 (`numpy.take_along_axis`; other axes may be shorter than x's)."""
    axis = axis_in(axis, x.type.rank)
    require(where.type.rank == x.type.rank, f"positions of rank {where.type.rank} in {x.type}")
    places = reshape(from_end(where, x.shape[axis]), (*where.shape, 1))
    return gather(x, places, (axis,), [(d, d) for d in range(x.type.rank) if d != axis])


def take_nd(x: Value, where: Value, batch: int) -> Value:
    """The last axis of `where` holds positions in the axes of x that follow the `batch` leading ones (GatherND)."""
    depth = where.shape[-1]
    extents = np.array(x.shape[batch : batch + depth])
    ends = cast(where.builder.constant(extents), where.dtype)
    places = select(binary("lt", where, 0), add(where, ends), where)
    return gather(x, places, range(batch, batch + depth), [(d, d) for d in range(batch)])


def window_at(x: Value, starts: Sequence[Value], sizes: Sequence[int]) -> Value:
    """The window of the given sizes that begins at computed positions, moved inside x (`lax.dynamic_slice`)."""
    axes = [d for d, (n, k) in enumerate(zip(x.shape, sizes, strict=True)) if n != k]
    shape = [sizes[d] for d in axes]
    places = []
    for p, d in enumerate(axes):
        begin = minimum(maximum(cast(starts[d], "i64"), 0), x.shape[d] - sizes[d])
        ramp = broadcast(index_ramp(x.builder, sizes[d], "i64"), shape, (p,))
        places.append(reshape(add(ramp, begin), (*shape, 1)))
    if not axes:
        return x
    out = gather(x, concat(places, len(axes)), axes)
    order = [*axes, *(d for d in range(x.type.rank) if d not in axes)]
    return transpose(out, [order.index(d) for d in range(x.type.rank)])


# --- scatters ----------------------------------------------------------------------------------------


def scatter_rows(x: Value, where: Value, updates: Value, kind: str) -> Value:
    """x[n, r] with the rows updates[m, r] put at, or combined with those at, where[m].

    `kind` is `replace` (the last of those at one position counts) or a reduction. Positions out of range are left out.
    """
    n, m = x.shape[0], where.shape[0]
    here = broadcast(index_ramp(x.builder, n, where.dtype), (n, m), (0,))
    hit = binary("eq", here, broadcast(where, (n, m), (1,)))
    if kind == "replace":
        return _replaced(x, hit, updates) if m else x
    shape = (n, m, x.shape[1])
    wide_hit, rows = broadcast(hit, shape, (0, 1)), broadcast(updates, shape, (1, 2))
    rest = full_like(rows, neutral(kind, x.dtype))
    return binary(COMBINERS[kind], x, reduce(kind, select(wide_hit, rows, rest), (1,)))


def _replaced(x: Value, hit: Value, updates: Value) -> Value:
    """Row i of x, or the last row j of the updates for which hit[i, j]."""
    ramp = broadcast(index_ramp(x.builder, hit.shape[1], "i32"), hit.shape, (1,))
    last = reduce("max", select(hit, ramp, full_like(ramp, -1)), (1,))
    placed = take_at(updates, maximum(last, 0), 0)
    return select(broadcast(binary("ge", last, 0), x.shape, (0,)), placed, x)


def scatter_along(x: Value, where: Value, updates: Value, axis: int, kind: str) -> Value:
    """out[where[i, j], j] = updates[i, j], for axis 0, over x (ScatterElements)."""
    axis = axis_in(axis, x.type.rank)
    shape = where.shape
    places = from_end(cast(where, "i64"), x.shape[axis])
    flat = _flat(
        [
            places if d == axis else broadcast(index_ramp(x.builder, shape[d], "i64"), shape, (d,))
            for d in range(len(shape))
        ],
        x.type.strides,
    )
    return _scatter_flat(x, flat, updates, kind)


def _flat(places: Sequence[Value], strides: Sequence[int]) -> Value:
    total = binary("mul", places[0], strides[0])
    for p, s in zip(places[1:], strides[1:], strict=True):
        total = add(total, binary("mul", p, s))
    return total


def _scatter_flat(x: Value, flat: Value, updates: Value, kind: str) -> Value:
    m = math.prod(flat.shape)
    rows = scatter_rows(reshape(x, (x.type.size, 1)), reshape(flat, (m,)), reshape(updates, (m, 1)), kind)
    return reshape(rows, x.shape)


def scatter_nd(x: Value, where: Value, updates: Value, kind: str) -> Value:
    """out[where[i]] = updates[i] over x; the last axis of `where` holds positions of x's leading axes (ScatterND)."""
    depth = where.shape[-1]
    rows, width = math.prod(x.shape[:depth]), math.prod(x.shape[depth:])
    lead = TensorType(x.shape[:depth])
    parts = []
    for k in range(depth):
        start, limit = [0] * where.type.rank, list(where.shape)
        start[-1], limit[-1] = k, k + 1
        piece = cast(
            where.builder.op("slice", where, start=tuple(start), limit=tuple(limit), strides=(1,) * len(start)), "i64"
        )
        parts.append(from_end(reshape(piece, where.shape[:-1]), x.shape[k]))
    flat = reshape(_flat(parts, lead.strides), (math.prod(where.shape[:-1]),))
    out = scatter_rows(reshape(x, (rows, width)), flat, reshape(updates, (flat.shape[0], width)), kind)
    return reshape(out, x.shape)


# --- order -------------------------------------------------------------------------------------------


def ranks(x: Value, largest: bool) -> Value:
    """i32 place of each element of the last axis in sorted order; equal ones in the order they come. NaN is largest."""
    n, shape = x.shape[-1], (*x.shape, x.shape[-1])
    last = len(shape) - 1
    place = broadcast(index_ramp(x.builder, n, "i32"), x.shape, (last - 1,))
    if DTYPES[x.dtype].kind == "float":
        nothing = binary("ne", x, x)
        x = select(nothing, full_like(x, math.inf), x)
        place = add(place, select(nothing, full_like(place, -n if largest else n), full_like(place, 0)))
    one, two = range(last), [*range(last - 1), last]
    mine, other = broadcast(x, shape, one), broadcast(x, shape, two)
    places = broadcast(place, shape, one), broadcast(place, shape, two)
    before = binary("gt" if largest else "lt", other, mine)
    tie = binary("and", binary("eq", other, mine), binary("lt", places[1], places[0]))
    return reduce("sum", cast(binary("or", before, tie), "i32"), (last,))


def best(x: Value, k: int, axis: int, largest: bool) -> tuple[Value, Value]:
    """The k largest (or smallest) elements along an axis, in order, and their i64 positions. Work is quadratic."""
    axis = axis_in(axis, x.type.rank)
    order = [*(d for d in range(x.type.rank) if d != axis), axis]
    moved = transpose(x, order)
    n, rank = moved.shape[-1], x.type.rank
    shape = (*moved.shape[:-1], k, n)
    places = broadcast(ranks(moved, largest), shape, [*range(rank - 1), rank])
    chosen = binary("eq", places, broadcast(index_ramp(x.builder, k, "i32"), shape, (rank - 1,)))
    ramp = broadcast(index_ramp(x.builder, n, "i64"), shape, (rank,))
    where = reduce("sum", select(chosen, ramp, full_like(ramp, 0)), (rank,))
    back = [order.index(d) for d in range(rank)]
    where = transpose(where, back)
    return take_along(x, where, axis), where


# --- declarations ------------------------------------------------------------------------------------
# Positions are given as real numbers, so that samplers need no integers: `_places` makes them legal.


def _places(x: Value, n: int) -> Value:
    return cast(minimum(maximum(binary("mul", x, n), -n), n - 1), "i64")


def _places_jax(x: Any, n: int) -> Any:
    import jax.numpy as jnp

    return jnp.clip(x * n, -n, n - 1).astype("int64")


def take_somewhere(x: Value, where: Value, axis: int) -> Value:
    """`take_at` of positions made from real numbers."""
    return take_at(x, _places(where, x.shape[axis]), axis)


def take_along_somewhere(x: Value, where: Value, axis: int) -> Value:
    """`take_along` of positions made from real numbers."""
    return take_along(x, _places(where, x.shape[axis]), axis)


def scatter_somewhere(x: Value, where: Value, updates: Value, kind: str) -> Value:
    """`scatter_rows` at positions made from real numbers."""
    return scatter_rows(x, _places(where, x.shape[0]), updates, kind)


def _scatter_jax(x: Any, where: Any, updates: Any, kind: str) -> Any:
    import jax.numpy as jnp

    places = _places_jax(where, x.shape[0])
    at, keep = x.at[places], (places >= 0)[:, None]
    methods = {"sum": at.add, "max": at.max, "min": at.min, "prod": at.multiply}
    return methods[kind](jnp.where(keep, updates, neutral(kind, "f64")))


def sorted_best(x: Value, k: int, axis: int, largest: bool) -> Value:
    """The values of `best`."""
    return best(x, k, axis, largest)[0]


def _sorted_best_jax(x: Any, k: int, axis: int, largest: bool) -> Any:
    import jax.numpy as jnp

    ordered = jnp.sort(x, axis=axis, descending=largest)
    return jnp.take(ordered, jnp.arange(k), axis=axis)


def _take_sample(c: Chooser) -> Sample:
    return [TensorType((3, 4)), TensorType(c.pick(((5,), (2, 3), ())))], {"axis": c.integer(0, 1)}


def _take_jax(x: Any, where: Any, axis: int) -> Any:
    import jax.numpy as jnp

    return jnp.take(x, _places_jax(where, x.shape[axis]), axis=axis, mode="wrap")


def _take_along_jax(x: Any, where: Any, axis: int) -> Any:
    import jax.numpy as jnp

    places = _places_jax(where, x.shape[axis])
    return jnp.take_along_axis(x, places % x.shape[axis], axis=axis)


declare(take_somewhere, _take_jax, _take_sample)
declare(take_along_somewhere, _take_along_jax, lambda c: ([TensorType((3, 4))] * 2, {"axis": c.integer(0, 1)}))
declare(
    scatter_somewhere,
    _scatter_jax,
    lambda c: (
        [TensorType((4, 2)), TensorType((3,)), TensorType((3, 2))],
        {"kind": c.pick(("sum", "max", "min", "prod"))},
    ),
)
declare(
    sorted_best,
    _sorted_best_jax,
    lambda c: ([TensorType((4, 3))], {"k": c.integer(1, 3), "axis": c.integer(0, 1), "largest": c.pick((False, True))}),
)
