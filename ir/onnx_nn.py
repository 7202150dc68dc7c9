"""ONNX handlers of network layers: convolutions, pools, normalizations, quantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import canonical as ir
from . import composites as nn
from . import pooling
from .errors import UnsupportedError
from .graph import Value
from .onnx_ops import OnnxCall, onnx_op
from .operator import axis_in, require
from .types import DTYPES

Pairs = list[tuple[int, int]]


def _windows(
    c: OnnxCall, kernel: Sequence[int], extents: Sequence[int]
) -> tuple[list[int], Pairs, list[int]]:
    """Strides, padding and dilations of a convolution or pool; `auto_pad` resolved."""
    n = len(kernel)
    strides, dilations = c.attr("strides") or [1] * n, c.attr("dilations") or [1] * n
    mode = c.attr("auto_pad", "NOTSET")
    require(len(strides) == len(dilations) == n, f"strides and dilations need {n} entries")
    if mode in ("NOTSET", "VALID", ""):
        pads = (c.attr("pads") if mode != "VALID" else None) or [0] * 2 * n
        require(len(pads) == 2 * n, f"pads need {2 * n} entries")
        return strides, list(zip(pads[:n], pads[n:], strict=True)), dilations
    padding = []
    for k, s, d, extent in zip(kernel, strides, dilations, extents, strict=True):
        out = -(-extent // s)
        padding.append(_shared(max((out - 1) * s + (k - 1) * d + 1 - extent, 0), mode))
    return strides, padding, dilations


def _shared(total: int, mode: str) -> tuple[int, int]:
    """Padding at both ends; SAME_UPPER puts the odd element at the end."""
    small = total // 2
    return (small, total - small) if mode == "SAME_UPPER" else (total - small, small)


def _with_bias(c: OnnxCall, out: Value, k: int) -> Value:
    bias = c.optional(k)
    return out if bias is None else nn.bias_add(out, bias)


@onnx_op("Conv")
def _conv(c: OnnxCall) -> Value:
    x, w = c.value(0), c.value(1)
    require(
        x.type.rank == w.type.rank >= 3, f"input {x.type} and weights {w.type} must be of one rank, 3 or more"
    )
    strides, padding, dilations = _windows(c, w.shape[2:], x.shape[2:])
    return _with_bias(c, nn.conv(x, w, strides, padding, None, dilations, c.attr("group", 1)), 2)


@onnx_op("ConvTranspose")
def _conv_transpose(c: OnnxCall) -> Value:
    """The gradient of a convolution: a convolution of the spread input with the mirrored weights."""
    x, w, groups = c.value(0), c.value(1), c.attr("group", 1)
    n = x.type.rank - 2
    kernel, ones = w.shape[2:], [1] * n
    strides, dilations = c.attr("strides") or ones, c.attr("dilations") or ones
    padding = _transposed_padding(c, x.shape[2:], kernel, strides, dilations)
    grouped = ir.reshape(w, (groups, w.shape[0] // groups, *w.shape[1:]))
    swapped = ir.transpose(grouped, (0, 2, 1, *range(3, n + 3)))
    mirrored = ir.reverse(
        ir.reshape(swapped, (groups * w.shape[1], w.shape[0] // groups, *kernel)), range(2, n + 2)
    )
    return _with_bias(c, nn.conv(x, mirrored, ones, padding, strides, dilations, groups), 2)


def _transposed_padding(
    c: OnnxCall,
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Pairs:
    n = len(kernel)
    extra = c.attr("output_padding") or [0] * n
    mode, pads = c.attr("auto_pad", "NOTSET"), c.attr("pads") or [0] * 2 * n
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    wanted = c.attr("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [e * s for e, s in zip(extents, strides, strict=True)]
    if wanted is None:
        removed = list(zip(pads[:n], pads[n:], strict=True)) if mode != "VALID" else [(0, 0)] * n
    else:
        spans = zip(extents, strides, reach, extra, wanted[-n:], strict=True)
        removed = [_shared(s * (e - 1) + o + r + 1 - out, mode) for e, s, r, o, out in spans]
    return [(r - lo, r - hi + o) for r, (lo, hi), o in zip(reach, removed, extra, strict=True)]


def _pool_windows(c: OnnxCall, x: Value) -> tuple[list[int], list[int], Pairs, list[int], list[int]]:
    """Kernel, strides, padding, dilations, and how much padding `ceil_mode` added at the end of each axis."""
    kernel = c.attr("kernel_shape")
    require(len(kernel) == x.type.rank - 2, f"kernel_shape needs {x.type.rank - 2} entries")
    strides, padding, dilations = _windows(c, kernel, x.shape[2:])
    overhang = [0] * len(kernel)
    if c.attr("ceil_mode", 0):
        for d, n in enumerate(x.shape[2:]):
            low, high = padding[d]
            reach = (kernel[d] - 1) * dilations[d] + 1
            out = -(-(n + low + high - reach) // strides[d]) + 1
            out -= (out - 1) * strides[d] >= n + low
            overhang[d] = max((out - 1) * strides[d] + reach - (n + low + high), 0)
            padding[d] = (low, high + overhang[d])
    return kernel, strides, padding, dilations, overhang


@onnx_op("MaxPool")
def _max_pool(c: OnnxCall) -> Value:
    x = c.value()
    require(c.outputs == 1, "the indices of MaxPool are not supported")
    kernel, strides, padding, dilations, _ = _pool_windows(c, x)
    return pooling.max_pool(x, kernel, strides, padding, dilations)


@onnx_op("AveragePool")
def _average_pool(c: OnnxCall) -> Value:
    x = c.value()
    kernel, strides, padding, dilations, overhang = _pool_windows(c, x)
    return pooling.avg_pool(
        x, kernel, strides, padding, bool(c.attr("count_include_pad", 0)), dilations, overhang
    )


@onnx_op("LpPool")
def _lp_pool(c: OnnxCall) -> Value:
    x, p = c.value(), c.attr("p", 2)
    kernel, strides, padding, dilations, _ = _pool_windows(c, x)
    return _root(pooling.windowed(_powers(x, p), "sum", kernel, strides, padding, dilations), p)


def _powers(x: Value, p: int) -> Value:
    """|x| ** p"""
    return nn.integer_power(x if p % 2 == 0 else ir.unary("abs", x), p)


def _root(x: Value, p: int) -> Value:
    if p == 1:
        return x
    return ir.unary("sqrt", x) if p == 2 else ir.binary("pow", x, 1 / p)


@onnx_op("GlobalAveragePool")
def _global_average(c: OnnxCall) -> Value:
    return pooling.global_avg_pool(c.value())


@onnx_op("GlobalMaxPool")
def _global_max(c: OnnxCall) -> Value:
    return pooling.global_max_pool(c.value())


@onnx_op("GlobalLpPool")
def _global_lp(c: OnnxCall) -> Value:
    x, p = c.value(), c.attr("p", 2)
    return _root(ir.reduce("sum", _powers(x, p), range(2, x.type.rank), True), p)


@onnx_op("LRN")
def _lrn(c: OnnxCall) -> Value:
    """x / (bias + alpha/size * sum of squares of neighbouring channels) ** beta"""
    x, size = c.value(), c.attr("size")
    alpha, beta, bias = c.attr("alpha", 1e-4), c.attr("beta", 0.75), c.attr("bias", 1.0)
    ones = (1,) * x.type.rank
    edges = ((0, 0), ((size - 1) // 2, size // 2), *((0, 0),) * (x.type.rank - 2))
    window = (1, size, *ones[2:])
    total = x.builder.op(
        "window", ir.mul(x, x), kind="sum", window=window, strides=ones, padding=edges, dilation=ones
    )
    return ir.divide(x, ir.binary("pow", ir.add(ir.mul(total, alpha / size), bias), beta))


# --- normalizations -------------------------------------------------------------------------------


@onnx_op("BatchNormalization")
def _batch_norm(c: OnnxCall) -> list[Value]:
    if not c.attr("spatial", 1):
        raise UnsupportedError("only statistics over channels are supported; export the model with spatial=1")
    scale, shift, mean, variance = (c.value(k) for k in range(1, 5))
    epsilon = c.attr("epsilon", 1e-5)
    if not c.attr("training_mode", 0):
        return [nn.batch_norm(c.value(), scale, shift, mean, variance, epsilon)]
    x, keep = c.value(), c.attr("momentum", 0.9)
    axes = [d for d in range(x.type.rank) if d != 1]
    now = nn.mean(x, axes)
    centred = ir.sub(x, ir.broadcast(now, x.shape, (1,)))
    spread = nn.mean(ir.mul(centred, centred), axes)
    running = [ir.add(ir.mul(old, keep), ir.mul(new, 1 - keep)) for old, new in ((mean, now), (variance, spread))]
    return [nn.batch_norm(x, scale, shift, now, spread, epsilon), *running]


@onnx_op("InstanceNormalization")
def _instance_norm(c: OnnxCall) -> Value:
    x, axes = c.value(), tuple(range(2, c.value().type.rank))
    centred = ir.sub(x, nn.mean(x, axes, True))
    variance = nn.mean(ir.mul(centred, centred), axes, True)
    out = ir.mul(centred, ir.unary("rsqrt", ir.add(variance, c.attr("epsilon", 1e-5))))
    scaled = ir.mul(out, ir.broadcast(c.value(1), x.shape, (1,)))
    return ir.add(scaled, ir.broadcast(c.value(2), x.shape, (1,)))


@onnx_op("LayerNormalization")
def _layer_norm(c: OnnxCall) -> list[Value]:
    x, axis, epsilon = c.value(), c.attr("axis", -1), c.attr("epsilon", 1e-5)
    out = nn.layer_norm(x, c.value(1), c.optional(2), axis, epsilon)
    if c.outputs == 1:
        return [out]
    axes = tuple(range(axis_in(axis, x.type.rank), x.type.rank))
    mean = nn.mean(x, axes, True)
    centred = ir.sub(x, mean)
    spread = ir.unary("rsqrt", ir.add(nn.mean(ir.mul(centred, centred), axes, True), epsilon))
    return [out, mean, spread]


@onnx_op("RMSNormalization")
def _rms_norm(c: OnnxCall) -> Value:
    x, axis = c.value(), c.attr("axis", -1)
    axes = tuple(range(axis_in(axis, x.type.rank), x.type.rank))
    square = ir.add(nn.mean(ir.mul(x, x), axes, True), c.attr("epsilon", 1e-5))
    return ir.mul(ir.mul(x, ir.unary("rsqrt", square)), c.value(1))


@onnx_op("LpNormalization")
def _lp_norm(c: OnnxCall) -> Value:
    x, axis, p = c.value(), c.attr("axis", -1), c.attr("p", 2)
    require(p in (1, 2), "only p = 1 and 2")
    total = ir.reduce("sum", ir.unary("abs", x) if p == 1 else ir.mul(x, x), (axis,), True)
    norm = total if p == 1 else ir.unary("sqrt", total)
    zero = ir.binary("eq", norm, 0)
    return ir.divide(x, ir.select(zero, ir.full_like(norm, 1), norm))


# --- quantization ---------------------------------------------------------------------------------


def _along(x: Value, parameter: Value, axis: int) -> Value:
    """A scale or zero point spread over x: one for all, one per position of `axis`, or one per block along it."""
    if parameter.type.size == 1:
        return ir.broadcast(ir.reshape(parameter, ()), x.shape, ())
    axis = axis_in(axis, x.type.rank)
    if parameter.type.rank == 1:
        return ir.broadcast(parameter, x.shape, (axis,))
    n, blocks = x.shape[axis], parameter.shape[axis]
    size = -(-n // blocks)
    whole = parameter.type.rank == x.type.rank and size * blocks == n
    require(whole, f"blocks {parameter.type} do not divide {x.type}")
    split = (*x.shape[:axis], blocks, size, *x.shape[axis + 1 :])
    spread = ir.broadcast(parameter, split, [d for d in range(len(split)) if d != axis + 1])
    return ir.reshape(spread, x.shape)


@onnx_op("DequantizeLinear")
def _dequantize(c: OnnxCall) -> Value:
    x, scale, axis = c.value(0), c.value(1), c.attr("axis", 1)
    zero, step = _zero_of(c, 2), ir.uniform_of(scale)
    if zero is not None and scale.dtype == "f32" and DTYPES[x.dtype].kind in ("int", "uint"):
        if step is not None and step > 0:
            return c.builder.op("dequantize", x, scale=step, zero=zero, dtype="f32", loss=0.0)
        wide = c.builder.op("dequantize", x, scale=1.0, zero=zero, dtype="f32", loss=0.0)
        return ir.mul(wide, _along(x, scale, axis))
    wide = ir.cast(x, scale.dtype)
    if c.has(2):
        wide = ir.sub(wide, _along(x, ir.cast(c.value(2), scale.dtype), axis))
    return ir.mul(wide, _along(x, scale, axis))


def _zero_of(c: OnnxCall, k: int) -> int | None:
    """The zero point at operand k, if it is one number (0 if it is left out)."""
    if not c.has(k):
        return 0
    known = c.known(k)
    one = known is not None and known.size > 0 and known.dtype.kind in "iu" and bool((known == known.flat[0]).all())
    return int(known.flat[0]) if known is not None and one else None


@onnx_op("QuantizeLinear")
def _quantize(c: OnnxCall) -> Value:
    from onnx import helper

    x, scale, axis = c.value(0), c.value(1), c.attr("axis", 1)
    to = c.attr("output_dtype") or 2  # uint8
    zero = c.value(2) if c.has(2) else c.builder.constant(np.zeros((), helper.tensor_dtype_to_np_dtype(to)))
    step = ir.uniform_of(scale)
    if step is not None and step > 0 and scale.dtype == "f32":
        return _quantized(ir.cast(x, "f32"), zero, axis, _zero_of(c, 2), step)
    return _quantized(ir.divide(ir.cast(x, scale.dtype), _along(x, scale, axis)), zero, axis, _zero_of(c, 2))


def _quantized(x: Value, zero: Value, axis: int, point: int | None, scale: float = 1.0) -> Value:
    """Real numbers in steps of `scale`, rounded, moved by the zero point (`point` if it is one number), and saturated
    to its type."""
    bounds = np.iinfo(DTYPES[zero.dtype].numpy)
    low, high = int(bounds.min), int(bounds.max)
    if point is not None and DTYPES[x.dtype].kind == "float":
        step = {"scale": scale, "zero": point, "rounding": "even", "loss": 0.0}
        return x.builder.op("quantize", x, low=low, high=high, dtype=zero.dtype, **step)
    spread = _along(x, zero, axis)
    steps = x if scale == 1 else ir.divide(x, scale)
    shifted = ir.add(nn.round_even(steps), ir.cast(spread, x.dtype))
    return ir.cast(nn.clip(shifted, float(low), float(high)), zero.dtype)


def _shifted(c: OnnxCall, k: int, zero: int, axis: int) -> Value:
    """Operand k minus its zero point, in i32."""
    x = c.value(k)
    wide, number = ir.cast(x, "i32"), _zero_of(c, zero)
    if number is not None:
        return c.builder.op("affine", wide, factor=1, term=-number) if number else wide
    point: Any = c.value(zero)
    return ir.sub(wide, _along(x, ir.cast(point, "i32"), axis))


@onnx_op("MatMulInteger")
def _matmul_integer(c: OnnxCall) -> Value:
    return nn.matmul(_shifted(c, 0, 2, -2), _shifted(c, 1, 3, -1))


@onnx_op("ConvInteger")
def _conv_integer(c: OnnxCall) -> Value:
    x, w = _shifted(c, 0, 2, 1), _shifted(c, 1, 3, 0)
    strides, padding, dilations = _windows(c, w.shape[2:], x.shape[2:])
    return nn.conv(x, w, strides, padding, None, dilations, c.attr("group", 1))


@onnx_op("QLinearMatMul")
def _qlinear_matmul(c: OnnxCall) -> Value:
    """Exact in i32, then rescaled by a_scale * b_scale / y_scale and quantized again."""
    x, y = _shifted(c, 0, 2, -2), _shifted(c, 3, 5, -1)
    return _rescaled(c, nn.matmul(x, y), (1, 4, 6), 7, -1)


@onnx_op("QLinearConv")
def _qlinear_conv(c: OnnxCall) -> Value:
    x, w = _shifted(c, 0, 2, 1), _shifted(c, 3, 5, 0)
    strides, padding, dilations = _windows(c, w.shape[2:], x.shape[2:])
    total = _with_bias(c, nn.conv(x, w, strides, padding, None, dilations, c.attr("group", 1)), 8)
    return _rescaled(c, total, (1, 4, 6), 7, 1)


def _rescaled(c: OnnxCall, total: Value, scales: tuple[int, int, int], zero: int, axis: int) -> Value:
    """An i32 total in steps of the first two scales, in steps of the third."""
    first, second, result = (_along(total, ir.cast(c.value(k), "f32"), axis) for k in scales)
    steps = ir.mul(ir.cast(total, "f32"), ir.divide(ir.mul(first, second), result))
    return _quantized(steps, c.value(zero), axis, _zero_of(c, zero))
