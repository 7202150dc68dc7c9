"""Which products and convolutions are plain: conditions that rules of several modules share."""

from __future__ import annotations

from ..ir.attrs import Attrs
from ..ir.types import TensorType


def is_matmul(d: Attrs, x: TensorType, w: TensorType) -> bool:
    """x[…, k] @ w[k, n]: no batch axes, last axis of x against the first of w."""
    return d.batch == ((), ()) and w.rank == 2 and d.contract == ((x.rank - 1,), (0,))


def is_plain_convolution(x: TensorType, w: TensorType, c: Attrs, taps: int) -> bool:
    """A convolution of float32 images with windows of `taps` x `taps` and stride 1, without padding (`conv_of_padded`
    brings that about), dilation or groups."""
    ones = {*c.strides, *c.lhs_dilation, *c.rhs_dilation, c.groups} == {1}
    square = x.rank == 4 and w.shape[2:] == (taps, taps) and x.dtype == w.dtype == "f32"
    return ones and square and set(c.padding) == {(0, 0)}
