"""JAX primitives at positions known only at run time: gather, scatter, dynamic slices, sorting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import canonical as ir
from . import composites as nn
from . import indexing
from .graph import Value
from .jax_primitives import Params, on_values
from .operator import require
from .types import DTYPES

if TYPE_CHECKING:
    pass


def gather(x: Value, where: Value, p: Params) -> Value:
    """`lax.gather` in general: windows of `slice_sizes` that begin at computed positions, moved inside x."""
    numbers, sizes = p["dimension_numbers"], list(p["slice_sizes"])
    batching = list(getattr(numbers, "operand_batching_dims", ()))
    beside = list(getattr(numbers, "start_indices_batching_dims", ()))
    mapped = list(numbers.start_index_map)
    fixed = [d for d in range(x.type.rank) if d not in mapped and d not in batching]
    x = ir.slice_(x, [0] * x.type.rank, [sizes[d] if d in fixed else n for d, n in enumerate(x.shape)])
    batch = where.shape[:-1]
    windows = [d for d in mapped if sizes[d] != 1]
    lead = (*batch, *(sizes[d] for d in windows))
    begins, inside = _begins(x, where, mapped, sizes, lead)
    places = []
    for d, begin in zip(mapped, begins, strict=True):
        if d in windows:
            begin = ir.add(begin, ir.broadcast(_ramp(x, sizes[d]), lead, (len(batch) + windows.index(d),)))
        places.append(ir.reshape(begin, (*lead, 1)))
    aligned = list(zip(batching, beside, strict=True))
    out = indexing.gather(x, ir.concat(places, len(lead)), mapped, aligned)
    if str(p["mode"]).endswith("FILL_OR_DROP"):
        out = _filled(out, inside, len(lead), p.get("fill_value"))
    return _ordered(out, numbers, windows, fixed, batch, sizes)


def _ramp(x: Value, n: int) -> Value:
    return ir.index_ramp(x.builder, n, "i64")


def _begins(
    x: Value, where: Value, mapped: Sequence[int], sizes: Sequence[int], lead: Sequence[int]
) -> tuple[list[Value], Value]:
    """Where the windows begin along each mapped axis, and whether they lay inside x as they were given."""
    inside: Value | None = None
    begins = []
    batch = where.shape[:-1]
    for d, part in zip(mapped, nn.split(where, -1, (1,) * len(mapped)), strict=True):
        begin, last = ir.cast(ir.reshape(part, batch), "i64"), x.shape[d] - sizes[d]
        fits = ir.binary("and", ir.binary("ge", begin, 0), ir.binary("le", begin, last))
        inside = fits if inside is None else ir.binary("and", inside, fits)
        begins.append(ir.broadcast(nn.clip(begin, 0, last), lead, range(len(batch))))
    assert inside is not None
    return begins, ir.broadcast(inside, lead, range(len(batch)))


def _filled(out: Value, inside: Value, lead: int, value: Any) -> Value:
    kind = DTYPES[out.dtype].kind
    if value is None:
        value = math.nan if kind == "float" else True if kind == "bool" else _least(out.dtype)
    return ir.select(ir.broadcast(inside, out.shape, range(lead)), out, ir.full_like(out, value))


def _least(dtype: str) -> int:
    info = np.iinfo(DTYPES[dtype].numpy)
    return int(info.min if info.min < 0 else info.max)


def _ordered(
    out: Value, numbers: Any, windows: Sequence[int], fixed: Sequence[int], batch: Sequence[int], sizes: Sequence[int]
) -> Value:
    """(batch, windows, fixed axes) as `lax.gather` orders them: operand axes at `offset_dims`, batch in between."""
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    kept = [d for d in range(len(sizes)) if d not in gone]
    place = {d: len(batch) + k for k, d in enumerate(windows)}
    place |= {d: len(batch) + len(windows) + k for k, d in enumerate(fixed)}
    unit = [d for d in kept if d not in place]  # mapped, of size 1: no axis in `out`
    grown = ir.reshape(out, (*out.shape, *(1 for _ in unit)))
    place |= {d: out.type.rank + k for k, d in enumerate(unit)}
    offset, rest = list(numbers.offset_dims), iter(range(len(batch)))
    order = [place[kept[offset.index(k)]] if k in offset else next(rest) for k in range(len(batch) + len(kept))]
    dropped = [k for k in range(grown.type.rank) if k not in order]
    moved = ir.transpose(grown, [*order, *dropped])
    return ir.reshape(moved, moved.shape[: len(order)])


def dynamic_update_slice(x: Value, update: Value, starts: Sequence[Value]) -> Value:
    """Elements inside the window come from the update, at their place minus the window's beginning."""
    inside: Value | None = None
    moved = update
    for d, (n, k) in enumerate(zip(x.shape, update.shape, strict=True)):
        if n == k:
            continue
        begin = nn.clip(ir.cast(ir.reshape(starts[d], ()), "i64"), 0, n - k)
        place = ir.sub(_ramp(x, n), ir.broadcast(begin, (n,), ()))
        fits = ir.binary("and", ir.binary("ge", place, 0), ir.binary("lt", place, k))
        fits = ir.broadcast(fits, x.shape, (d,))
        inside = fits if inside is None else ir.binary("and", inside, fits)
        moved = indexing.take_at(moved, nn.clip(place, 0, k - 1), d)
    return update if inside is None else ir.select(inside, moved, x)


def scatter(x: Value, where: Value, updates: Value, p: Params, kind: str) -> Value:
    """`lax.scatter` of whole rows: the window covers every axis of x that has no position."""
    numbers = p["dimension_numbers"]
    require(not getattr(numbers, "operand_batching_dims", ()), "with batching dimensions at computed positions")
    mapped = list(numbers.scatter_dims_to_operand_dims)
    rest = [d for d in range(x.type.rank) if d not in mapped]
    window = list(numbers.update_window_dims)
    whole = [updates.shape[k] for k in window] == [x.shape[d] for d in rest]
    require(sorted(numbers.inserted_window_dims) == sorted(mapped) and whole, "of parts of rows at computed positions")
    order = [*mapped, *rest]
    batch = [k for k in range(updates.type.rank) if k not in window]
    # Positions from the end do not exist here; what is out of range is dropped, or moved inside.
    place = _inside(where, x, mapped) if str(p["mode"]).endswith("CLIP") else _beyond(where, x, mapped)
    out = indexing.scatter_nd(ir.transpose(x, order), place, ir.transpose(updates, [*batch, *window]), kind)
    return ir.transpose(out, [order.index(d) for d in range(x.type.rank)])


def _inside(where: Value, x: Value, mapped: Sequence[int]) -> Value:
    """Positions with those out of range moved to the nearest in x."""
    last = x.builder.constant(np.array([x.shape[d] - 1 for d in mapped], np.int64))
    return ir.minimum(ir.maximum(ir.cast(where, "i64"), 0), last)


def _beyond(where: Value, x: Value, mapped: Sequence[int]) -> Value:
    """Positions with those out of range (along any axis) moved behind all of x."""
    wide = ir.cast(where, "i64")
    ends = x.builder.constant(np.array([x.shape[d] for d in mapped], np.int64))
    outside = ir.binary("or", ir.binary("lt", wide, 0), ir.binary("ge", wide, ends))
    any_outside = ir.reduce("max", ir.cast(outside, "u8"), (where.type.rank - 1,), True)
    return ir.select(ir.cast(any_outside, "bool"), ir.full_like(wide, x.type.size), wide)


@on_values("top_k")
def _top_k(p: Params, x: Value) -> list[Value]:
    axis = p.get("axis", -1)
    values, where = indexing.best(x, p["k"], axis, True)
    return [values, ir.cast(where, "i32")]


@on_values("sort")
def _sort(p: Params, *operands: Value) -> list[Value]:
    """By the first operand; quadratic in the extent."""
    require(p["num_keys"] == 1, "by several keys")
    axis = p["dimension"]
    values, where = indexing.best(operands[0], operands[0].shape[axis], axis, False)
    return [values, *(indexing.take_along(x, where, axis) for x in operands[1:])]
