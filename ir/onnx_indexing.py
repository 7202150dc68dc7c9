"""ONNX handlers that read or write at computed positions: gathers, scatters, sorting, one-hot, sampling of grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from . import canonical as ir
from . import composites as nn
from . import indexing
from .graph import Value
from .onnx_ops import OnnxCall, onnx_op, widened
from .operator import axis_in, require
from .types import DTYPES, dtype_of

FEW = 16  # constant positions up to which slices are joined; beyond, a gather


@onnx_op("Gather")
def _gather(c: OnnxCall) -> Value:
    x, axis, where = c.value(), c.attr("axis", 0), c.known(1)
    if where is not None and len(nn.runs([int(w) for w in where.reshape(-1)])) <= FEW:
        return nn.take(x, where, axis)
    return indexing.take_at(x, c.value(1), axis)


@onnx_op("GatherElements")
def _gather_elements(c: OnnxCall) -> Value:
    return indexing.take_along(c.value(0), c.value(1), c.attr("axis", 0))


@onnx_op("GatherND")
def _gather_nd(c: OnnxCall) -> Value:
    return indexing.take_nd(c.value(0), c.value(1), c.attr("batch_dims", 0))


_REDUCTIONS = {"none": "replace", "add": "sum", "mul": "prod", "max": "max", "min": "min"}


@onnx_op("ScatterElements", "Scatter")
def _scatter_elements(c: OnnxCall) -> Value:
    kind = _REDUCTIONS[c.attr("reduction", "none")]
    return indexing.scatter_along(c.value(0), c.value(1), c.value(2), c.attr("axis", 0), kind)


@onnx_op("ScatterND")
def _scatter_nd(c: OnnxCall) -> Value:
    return indexing.scatter_nd(c.value(0), c.value(1), c.value(2), _REDUCTIONS[c.attr("reduction", "none")])


@onnx_op("TensorScatter")
def _tensor_scatter(c: OnnxCall) -> Value:
    """Updates of a cache: one window along an axis for each batch, from the position that operand 2 gives."""
    x, updates, axis = c.value(0), c.value(1), axis_in(c.attr("axis", -2), c.value(0).type.rank)
    n = x.shape[axis]
    ramp = ir.broadcast(ir.index_ramp(c.builder, updates.shape[axis], "i64"), updates.shape, (axis,))
    where = ramp
    if c.has(2):
        where = ir.add(ramp, ir.broadcast(ir.cast(c.value(2), "i64"), updates.shape, (0,)))
    if c.attr("mode", "linear") == "circular":
        where = ir.sub(where, ir.mul(ir.divide(where, n), n))
    return indexing.scatter_along(x, where, updates, axis, "replace")


@onnx_op("TopK")
def _top_k(c: OnnxCall) -> list[Value]:
    k = int(c.static(1, "k").item()) if c.opset >= 10 else c.attr("k")
    return list(indexing.best(c.value(), k, c.attr("axis", -1), bool(c.attr("largest", 1))))


@onnx_op("Compress")
def _compress(c: OnnxCall) -> Value:
    """Of a condition that is known: the selected positions."""
    x, axis = c.value(), c.attr("axis")
    kept = np.flatnonzero(c.static(1, "the condition"))
    return nn.take(ir.reshape(x, (x.type.size,)), kept, 0) if axis is None else nn.take(x, kept, axis)


@onnx_op("ReverseSequence")
def _reverse_sequence(c: OnnxCall) -> Value:
    """The first `lengths[b]` elements along the time axis in opposite order."""
    x, time, batch = c.value(), c.attr("time_axis", 0), c.attr("batch_axis", 1)
    step = ir.broadcast(ir.index_ramp(c.builder, x.shape[time], "i64"), x.shape, (time,))
    length = ir.broadcast(ir.cast(c.value(1), "i64"), x.shape, (batch,))
    mirrored = ir.sub(ir.sub(length, 1), step)
    return indexing.take_along(x, ir.select(ir.binary("lt", step, length), mirrored, step), time)


@onnx_op("EyeLike")
def _eye_like(c: OnnxCall) -> Value:
    from onnx import helper

    x, to = c.value(), c.attr("dtype")
    rows, columns = x.shape
    dtype = x.dtype if to is None else dtype_of(helper.tensor_dtype_to_np_dtype(to))
    return widened(c.builder.constant(np.eye(rows, columns, c.attr("k", 0), dtype=DTYPES[dtype].numpy)))


# --- sampling at real coordinates --------------------------------------------------------------------


@onnx_op("GridSample")
def _grid_sample(c: OnnxCall) -> Value:
    """x[n, c, spatial] read at the real coordinates grid[n, out..., d], of which the last is along the last axis."""
    x, grid = c.value(0), c.value(1)
    mode, padding, corners = c.attr("mode", "linear"), c.attr("padding_mode", "zeros"), bool(c.attr("align_corners", 0))
    spatial, count = x.shape[2:], len(x.shape) - 2
    parts = nn.split(grid, -1, (1,) * count)
    coordinates = []
    for d, n in enumerate(spatial):
        unit = ir.reshape(parts[count - 1 - d], grid.shape[:-1])
        scaled = ir.mul(ir.add(unit, 1), (n - 1) / 2) if corners else ir.sub(ir.mul(ir.add(unit, 1), n / 2), 0.5)
        coordinates.append(_folded(scaled, n, padding, corners))
    taps = [_taps(v, mode) for v in coordinates]
    return _weighted(x, taps, padding, corners)


Tap = tuple[Value, Value | None]
"""A whole coordinate and its weight (None: 1)."""


def _taps(v: Value, mode: str) -> list[Tap]:
    """The neighbours along one axis that take part, with their weights."""
    if mode == "nearest":
        return [(nn.round_even(v), None)]
    low = ir.unary("floor", v)
    rest = ir.sub(v, low)
    if mode in ("linear", "bilinear"):
        return [(low, ir.sub(1, rest)), (ir.add(low, 1), rest)]
    require(mode in ("cubic", "bicubic"), f"mode {mode!r} of GridSample is not supported")
    return [(ir.add(low, k), _cubic(ir.unary("abs", ir.sub(rest, k)), inner=k in (0, 1))) for k in (-1, 0, 1, 2)]


def _cubic(t: Value, inner: bool, a: float = -0.75) -> Value:
    """Keys' cubic convolution kernel at distance t, within 1 or between 1 and 2."""
    if inner:
        return ir.add(ir.mul(ir.mul(ir.sub(ir.mul(t, a + 2), a + 3), t), t), 1)
    return ir.sub(ir.mul(ir.add(ir.mul(ir.sub(ir.mul(t, a), 5 * a), t), 8 * a), t), 4 * a)


def _folded(v: Value, n: int, padding: str, corners: bool) -> Value:
    """Coordinates beyond the axis' ends moved into it, by clamping (`border`) or mirroring (`reflection`)."""
    low, high = (0.0, n - 1.0) if corners else (-0.5, n - 0.5)
    if padding == "border":
        beyond = ir.binary("or", ir.binary("lt", v, low), ir.binary("gt", v, high))
        return ir.select(beyond, nn.clip(v, 0, n - 1), v)
    return _mirrored(v, low, high) if padding == "reflection" else v


def _mirrored(v: Value, low: float, high: float) -> Value:
    """v folded into low..high, as a ray between two mirrors."""
    span = high - low
    if span <= 0:
        return ir.full_like(v, low)
    away = ir.unary("abs", ir.sub(v, low))
    times = ir.unary("floor", ir.mul(away, 1 / span))
    rest = ir.sub(away, ir.mul(times, span))
    odd = ir.sub(times, ir.mul(ir.unary("floor", ir.mul(times, 0.5)), 2))
    return ir.select(ir.binary("gt", odd, 0.5), ir.sub(high, rest), ir.add(rest, low))


def _weighted(x: Value, taps: Sequence[Sequence[Tap]], padding: str, corners: bool) -> Value:
    """The sum over all combinations of the axes' taps."""
    spatial = x.shape[2:]
    total: Value | None = None
    for combination in np.ndindex(*(len(t) for t in taps)):
        chosen = [taps[d][k] for d, k in enumerate(combination)]
        value = _corner(x, [place for place, _ in chosen], padding, corners)
        for weight in (w for _, w in chosen if w is not None):
            value = ir.mul(value, ir.broadcast(weight, value.shape, _beside_channels(value)))
        total = value if total is None else ir.add(total, value)
    assert total is not None and len(spatial) == len(taps)
    return total


def _beside_channels(value: Value) -> list[int]:
    """The axes of an n, c, spatial tensor without the channels."""
    return [0, *range(2, value.type.rank)]


def _corner(x: Value, places: Sequence[Value], padding: str, corners: bool) -> Value:
    """Elements at whole coordinates; outside they are zero, or moved inside first."""
    outside: Value | None = None
    whole = []
    for v, n in zip(places, x.shape[2:], strict=True):
        if padding == "zeros":
            beyond = ir.binary("or", ir.binary("lt", v, 0), ir.binary("gt", v, n - 1))
            outside = beyond if outside is None else ir.binary("or", outside, beyond)
        else:
            v = _folded(v, n, padding, corners)
        whole.append(ir.reshape(ir.cast(nn.clip(v, 0, n - 1), "i64"), (*v.shape, 1)))
    axes = range(2, x.type.rank)
    found = indexing.gather(x, ir.concat(whole, whole[0].type.rank - 1), axes, [(0, 0)])
    last = found.type.rank - 1
    value = ir.transpose(found, [0, last, *range(1, last)])
    if outside is None:
        return value
    return ir.select(ir.broadcast(outside, value.shape, _beside_channels(value)), ir.full_like(value, 0), value)


@onnx_op("Col2Im")
def _col2im(c: OnnxCall) -> Value:
    """Blocks laid over the image and added: every kernel position is one strided, shifted addend."""
    x = c.value()
    image, block = ([int(v) for v in c.static(k, what).reshape(-1)] for k, what in ((1, "the image"), (2, "the block")))
    n = len(image)
    strides, dilations = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    pads = c.attr("pads") or [0] * 2 * n
    padded = [e + lo + hi for e, lo, hi in zip(image, pads[:n], pads[n:], strict=True)]
    counts = [(e - (k - 1) * d - 1) // s + 1 for e, k, d, s in zip(padded, block, dilations, strides, strict=True)]
    channels = x.shape[1] // math.prod(block)
    patches = ir.reshape(x, (x.shape[0], channels, *block, *counts))
    total: Value | None = None
    for place in np.ndindex(*block):
        start = [0, 0, *place, *([0] * n)]
        limit = [*patches.shape[:2], *(p + 1 for p in place), *counts]
        piece = ir.reshape(ir.slice_(patches, start, limit), (x.shape[0], channels, *counts))
        low = [p * d for p, d in zip(place, dilations, strict=True)]
        spans = [(m - 1) * s + 1 for m, s in zip(counts, strides, strict=True)]
        high = [e - lo - span for e, lo, span in zip(padded, low, spans, strict=True)]
        spread = ir.pad(piece, [0, 0, *low], [0, 0, *high], [0, 0, *(s - 1 for s in strides)])
        total = spread if total is None else ir.add(total, spread)
    assert total is not None
    return ir.slice_(
        total, [0, 0, *pads[:n]], [*total.shape[:2], *(lo + e for lo, e in zip(pads[:n], image, strict=True))]
    )
