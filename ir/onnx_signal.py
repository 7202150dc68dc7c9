"""ONNX handlers of signals: discrete Fourier transforms, as products with constant matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import canonical as ir
from . import composites as nn
from .graph import Value
from .onnx_ops import OnnxCall, onnx_op
from .operator import axis_in, require
from .types import DTYPES


@onnx_op("DFT")
def _dft(c: OnnxCall) -> Value:
    x = c.value()
    if c.opset < 20:
        axis = c.attr("axis", 1)
    else:
        axis = int(c.static(2, "the axis").item()) if c.has(2) else -2
    inverse, onesided = bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0))
    axis = axis_in(axis, x.type.rank)
    default = 2 * (x.shape[axis] - 1) if inverse and onesided else x.shape[axis]
    length = int(c.static(1, "the length").item()) if c.has(1) else default
    return _transformed(x, axis, length, inverse, onesided)


@onnx_op("STFT")
def _stft(c: OnnxCall) -> Value:
    """The transform of frames of the signal, each weighted by the window."""
    x, step = c.value(), int(c.static(1, "the frame step").item())
    length = int(c.static(3, "the frame length").item()) if c.has(3) else c.value(2).shape[0]
    window = c.optional(2)
    size = length if window is None else window.shape[0]
    frames = (x.shape[1] - size) // step + 1
    where = np.arange(frames)[:, None] * step + np.arange(size)
    cut = nn.take(x, where, 1)
    if window is not None:
        cut = ir.mul(cut, ir.broadcast(window, cut.shape, (2,)))
    return _transformed(cut, 2, length, False, bool(c.attr("onesided", 1)))


def _transformed(x: Value, axis: int, length: int, inverse: bool, onesided: bool) -> Value:
    """The transform along an axis of x, whose last axis holds the real part, or real and imaginary part."""
    require(x.shape[-1] in (1, 2), f"the last axis of {x.type} holds neither real nor complex numbers")
    units: list[Any] = [1, 1j][: x.shape[-1]]
    n = x.shape[axis]
    if inverse:
        transform = np.fft.irfft if onesided else np.fft.ifft
    else:
        transform = np.fft.fft
    images = np.stack([transform(np.eye(n) * unit, length, axis=1) for unit in units], 1)  # element, part, frequency
    if onesided and not inverse:
        images = images[:, :, : length // 2 + 1]
    parts = [images.real] if inverse and onesided else [images.real, images.imag]
    matrix = x.builder.constant(np.stack(parts, 3).astype(DTYPES[x.dtype].numpy))
    last = x.type.rank - 1
    out = ir.dot(x, matrix, ((axis, last), (0, 1)))  # the other axes of x, frequency, part
    order = list(range(last - 1))
    order.insert(axis, last - 1)
    return ir.transpose(out, [*order, last])
