"""Pooling composites over N, C, spatial tensors. An average is a window sum times a constant, or divided by
counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .canonical import broadcast, divide, mul, reduce, reshape
from .composite import Sample, declare
from .graph import Value
from .operator import Chooser
from .types import DTYPES, TensorType

Pairs = Sequence[tuple[int, int]]


def windowed(
    x: Value,
    kind: str,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> Value:
    """Reduction over each window of the spatial axes."""
    return x.builder.op(
        "window",
        x,
        kind=kind,
        window=(1, 1, *window),
        strides=(1, 1, *strides),
        padding=((0, 0), (0, 0), *padding),
        dilation=(1, 1, *dilation),
    )


def max_pool(
    x: Value,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int] | None = None,
) -> Value:
    """Largest element of each window over the spatial axes; the padding is below every element."""
    return windowed(x, "max", window, strides, padding, dilation or (1,) * len(window))


def avg_pool(
    x: Value,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    count_include_pad: bool = True,
    dilation: Sequence[int] | None = None,
    overhang: Sequence[int] | None = None,
) -> Value:
    """Mean of each window over the spatial axes.

    `count_include_pad`: padding counts as elements; otherwise a window is divided by the number of its
    elements inside the input. `overhang`: how much of each axis' high padding never counts (windows added by
    a rounded-up shape).
    """
    dilation = dilation or (1,) * len(window)
    total = windowed(x, "sum", window, strides, padding, dilation)
    over = overhang or (0,) * len(window)
    counted = [
        (lo, hi - k) if count_include_pad else (0, 0) for (lo, hi), k in zip(padding, over, strict=True)
    ]
    counts = _counts(x.shape[2:], window, strides, padding, dilation, counted)
    if (counts == counts.flat[0]).all():
        return mul(total, 1 / float(counts.flat[0]))
    inverse = x.builder.constant(counts.astype(DTYPES[x.dtype].numpy))
    return divide(total, broadcast(inverse, total.shape, range(2, total.type.rank)))


def _counts(
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    counted: Pairs,
) -> np.ndarray:
    """How many positions of each window lie inside the input extended by `counted`; one axis at a time."""
    out = np.ones((1,) * len(shape))
    for d, (n, w, s, (lo, hi), k) in enumerate(zip(shape, window, strides, padding, dilation, strict=True)):
        starts = np.arange((n + lo + hi - ((w - 1) * k + 1)) // s + 1) * s - lo
        where = starts[:, None] + np.arange(w) * k
        inside = ((where >= -counted[d][0]) & (where < n + counted[d][1])).sum(1)
        out = out * inside.reshape([-1 if e == d else 1 for e in range(len(shape))])
    return np.maximum(out, 1)


def global_avg_pool(x: Value) -> Value:
    """Mean over the spatial axes, which stay with extent 1."""
    axes = tuple(range(2, x.type.rank))
    out = mul(reduce("sum", x, axes), 1 / math.prod(x.shape[2:]))
    return reshape(out, x.shape[:2] + (1,) * len(axes))


def global_max_pool(x: Value) -> Value:
    return reduce("max", x, tuple(range(2, x.type.rank)), True)


def _pool_jax(x: Any, op: str, start: float, window: Any, strides: Any, padding: Any) -> Any:
    import jax.lax

    pads = ((0, 0), (0, 0), *padding)
    return jax.lax.reduce_window(x, start, getattr(jax.lax, op), (1, 1, *window), (1, 1, *strides), pads)


def _avg_pool_jax(x: Any, window: Any, strides: Any, padding: Any, count_include_pad: bool) -> Any:
    import jax.numpy as jnp

    total = _pool_jax(x, "add", 0.0, window, strides, padding)
    if count_include_pad:
        return total / math.prod(window)
    return total / _pool_jax(jnp.ones_like(x), "add", 0.0, window, strides, padding)


def _pool_sample(c: Chooser, **attrs: Any) -> Sample:
    padding = c.pick((((0, 0), (0, 0)), ((1, 1), (1, 0))))
    shape = c.pick(((1, 2, 6, 5), (2, 1, 4, 4)))
    return [TensorType(shape)], {
        "window": c.pick(((2, 2), (3, 2))),
        "strides": c.pick(((1, 1), (2, 2))),
        "padding": padding,
        **attrs,
    }


declare(max_pool, lambda x, **a: _pool_jax(x, "max", -math.inf, **a), _pool_sample)
declare(avg_pool, _avg_pool_jax, lambda c: _pool_sample(c, count_include_pad=c.pick((False, True))))
declare(global_avg_pool, lambda x: x.mean((2, 3), keepdims=True), lambda c: ([TensorType((2, 3, 4, 5))], {}))
declare(global_max_pool, lambda x: x.max((2, 3), keepdims=True), lambda c: ([TensorType((2, 3, 4, 5))], {}))
