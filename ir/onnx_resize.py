"""ONNX' Resize and Upsample: axis by axis, by constant weights.

Coordinates depend on shapes and scales only, which are known while importing. Along an axis, a result is a weighted
sum of elements: one (nearest), or a row of a matrix (linear, cubic). Matrices are dense: resizing by interpolation
does a multiply-add for every pair of an input and an output position of each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import canonical as ir
from . import composites as nn
from .graph import Value
from .onnx_ops import OnnxCall, onnx_op
from .operator import axis_in, require
from .types import DTYPES


@dataclass(frozen=True)
class Axis:
    """How one axis is resized. `roi`: start and end of the region, in shares of the axis."""

    n: int
    out: int
    scale: float
    roi: tuple[float, float]


@onnx_op("Resize", "Upsample")
def _resize(c: OnnxCall) -> Value:
    x = c.value()
    moved = [a for a in _axes(c, x) if a[1].out != a[1].n or a[1].scale != 1 or a[1].roi != (0.0, 1.0)]
    mode, outside = c.attr("mode", "nearest"), None
    dtype = x.dtype
    for d, axis in moved:
        places = _coordinates(c, axis)
        if mode == "nearest":
            x = nn.take(x, _nearest(c, axis, places), d)
        else:
            x = _interpolated(c, x, d, axis, places, mode)
        if c.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
            beyond = (places < 0) | (places > axis.n - 1)
            outside = _joined(outside, beyond, d, len(x.shape))
    x = _rounded(x, dtype)
    if outside is None or not outside.any():
        return x
    value = c.attr("extrapolation_value", 0.0)
    return ir.select(c.builder.constant(np.broadcast_to(outside, x.shape)), ir.full_like(x, value), x)


def _rounded(x: Value, dtype: str) -> Value:
    """Back to the input's type; integers are rounded."""
    if DTYPES[dtype].kind == "float" or x.dtype == dtype:
        return ir.cast(x, dtype)
    info = np.iinfo(DTYPES[dtype].numpy)
    return ir.cast(nn.clip(nn.round_even(x), int(info.min), int(info.max)), dtype)


def _joined(outside: np.ndarray | None, beyond: np.ndarray, axis: int, rank: int) -> np.ndarray:
    along = beyond.reshape([-1 if d == axis else 1 for d in range(rank)])
    return along if outside is None else outside | along


def _axes(c: OnnxCall, x: Value) -> list[tuple[int, Axis]]:
    """The axes named by the node, with the sizes or scales that it gives."""
    axes = [axis_in(a, x.type.rank) for a in c.attr("axes") or range(x.type.rank)]
    extents = [x.shape[d] for d in axes]
    scales, sizes = _wanted(c, extents)
    roi = [0.0] * len(axes) + [1.0] * len(axes)
    if c.attr("coordinate_transformation_mode") == "tf_crop_and_resize" and c.has(1):
        roi = [float(v) for v in c.static(1, "the region of interest")]
    n = len(axes)
    return [(d, Axis(extents[k], sizes[k], scales[k], (roi[k], roi[n + k]))) for k, d in enumerate(axes)]


def _wanted(c: OnnxCall, extents: Sequence[int]) -> tuple[list[float], list[int]]:
    if c.op == "Upsample" or c.opset < 11:
        given = c.static(1, "the scales") if c.has(1) else np.array(c.attr("scales"))
        scales = [float(v) for v in given.reshape(-1)]
    elif c.has(2) and (c.known(2) is None or c.static(2, "the scales").size):
        scales = [float(v) for v in c.static(2, "the scales").reshape(-1)]
    else:
        sizes = [int(v) for v in c.static(3, "the sizes").reshape(-1)]
        scales = [s / n for s, n in zip(sizes, extents, strict=True)]
        policy = c.attr("keep_aspect_ratio_policy", "stretch")
        if policy == "stretch":
            return scales, sizes
        one = (min if policy == "not_larger" else max)(scales)
        return [one] * len(sizes), [math.floor(one * n + 0.5) for n in extents]
    return scales, [math.floor(n * s) for n, s in zip(extents, scales, strict=True)]


def _coordinates(c: OnnxCall, a: Axis) -> np.ndarray:
    """Where in the input each result lies."""
    mode = c.attr("coordinate_transformation_mode", "half_pixel" if c.opset >= 11 else "asymmetric")
    if c.op == "Upsample":
        mode = "asymmetric"
    k = np.arange(a.out, dtype=np.float64)
    if mode == "asymmetric":
        return k / a.scale
    if mode == "align_corners":
        exact = a.scale * a.n
        return k * (a.n - 1) / (exact - 1) if a.out > 1 else np.zeros(1)
    if mode == "pytorch_half_pixel" and a.out == 1:
        return np.full(1, -0.5)
    if mode == "tf_half_pixel_for_nn":
        return (k + 0.5) / a.scale
    if mode == "half_pixel_symmetric":
        exact = a.scale * a.n
        return a.n / 2 * (1 - a.out / exact) + (k + 0.5) / a.scale - 0.5
    if mode == "tf_crop_and_resize":
        begin, end = a.roi
        if a.out == 1:
            return np.full(1, (begin + end) * (a.n - 1) / 2)
        return begin * (a.n - 1) + k * (end - begin) * (a.n - 1) / (a.out - 1)
    require(mode in ("half_pixel", "pytorch_half_pixel"), f"coordinate_transformation_mode {mode!r} is not supported")
    return (k + 0.5) / a.scale - 0.5


def _nearest(c: OnnxCall, a: Axis, places: np.ndarray) -> np.ndarray:
    mode = c.attr("nearest_mode", "round_prefer_floor" if c.opset >= 11 else "floor")
    if c.op == "Upsample":
        mode = "floor"
    rounding = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    return np.clip(rounding[mode](np.round(places, 9)).astype(int), 0, a.n - 1)


def _interpolated(c: OnnxCall, x: Value, d: int, a: Axis, places: np.ndarray, mode: str) -> Value:
    dtype = x.dtype if x.dtype == "f64" else "f32"
    matrix = c.builder.constant(_weights(c, a, places, mode).astype(DTYPES[dtype].numpy))
    out = ir.dot(ir.cast(x, dtype), matrix, ((d,), (1,)))
    last = out.type.rank - 1
    return ir.transpose(out, [*range(d), last, *range(d, last)])


def _weights(c: OnnxCall, a: Axis, places: np.ndarray, mode: str) -> np.ndarray:
    """Row of weights of each result; positions beyond the ends count for the end, or not at all."""
    require(mode in ("linear", "cubic"), f"mode {mode!r} of Resize is not supported")
    shrink = min(a.scale, 1.0) if c.attr("antialias", 0) else 1.0
    radius = (1 if mode == "linear" else 2) / shrink
    drop = bool(c.attr("exclude_outside", 0))
    out = np.zeros((a.out, a.n))
    for row, at in zip(out, places, strict=True):
        taps = np.arange(math.floor(at - radius) - 1, math.ceil(at + radius) + 2)
        distance = np.abs(taps - at) * shrink
        weight = np.maximum(1 - distance, 0) if mode == "linear" else _keys(distance, c.attr("cubic_coeff_a", -0.75))
        inside = (taps >= 0) & (taps < a.n)
        if drop:
            weight = np.where(inside, weight, 0.0)
        np.add.at(row, np.clip(taps, 0, a.n - 1), weight / weight.sum())
    return out


def _keys(t: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel of Keys (1981) at distances t >= 0."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
