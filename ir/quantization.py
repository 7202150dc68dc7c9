"""Operators of quantized programs: real numbers as integers of a step (`scale`) counted from `zero`, and back.

    real = scale * (q - zero)

Quantization is written with these and the integer operators that exist (`cast`, `conv`, `dot`, `add`): there is no
quantized convolution. `loss` changes no value: it is what the node costs of an accuracy budget, the variance of the
relative error that it is estimated to cause in the program's outputs (0: it is what the model says). Extraction adds
it up, so a rule that takes such a node away hands its loss on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .attrs import Attrs
from .expr import Operand, Scalar, TensorExpr, cast, reduce
from .expr import apply as apply_scalar
from .index import Axis, Index
from .operator import Chooser, Known, Operator, Types, declare, require
from .ops import some_shape
from .types import DTYPES, TensorType

#: How `quantize` rounds: ties to even (ONNX), or half upwards (a shift after adding half a step: what integers do).
ROUNDINGS = ("even", "up")
#: A graph that has one of these holds quantized tensors: the rules of integers apply to it.
QUANTIZED = frozenset({"quantize", "dequantize", "affine"})


def _elementwise(name: str, attrs: tuple[str, ...], infer: Any, scalar: Any, reference: Any, sample: Any, doc: str,
                 inlining: str = "") -> None:
    """Declare `out[i] = scalar(x[i], attrs)`."""

    def expr(t: Types, a: Attrs) -> TensorExpr:
        return TensorExpr.build(t, t[0].shape, lambda x: lambda *i: scalar(x[i], a))

    declare(Operator(name, attrs, 1, infer, expr, reference, sample, doc, "elementwise", inlining))


def _require_integers(dtype: str, low: int, high: int) -> None:
    require(dtype in DTYPES and DTYPES[dtype].kind in ("int", "uint"), f"dtype {dtype} is not an integer type")
    bounds = np.iinfo(DTYPES[dtype].numpy)
    require(bounds.min <= low <= high <= bounds.max, f"low {low} and high {high} do not lie in {dtype} in that order")


# --- quantize: real to integer ---------------------------------------------------------------------------------------


def _quantize_type(t: Types, a: Attrs) -> TensorType:
    require(DTYPES[t[0].dtype].kind == "float", f"quantize takes floats, {t[0]} given")
    require(a.scale > 0 and math.isfinite(a.scale), f"scale {a.scale} is not a positive number")
    require(a.rounding in ROUNDINGS, f"rounding {a.rounding!r} is not one of {', '.join(ROUNDINGS)}")
    require(a.loss >= 0, f"loss {a.loss} is negative")
    _require_integers(a.dtype, a.low, a.high)
    return t[0].with_dtype(a.dtype)


def _quantize_scalar(x: Scalar, a: Attrs) -> Scalar:
    steps = x if a.scale == 1 else x * (1.0 / a.scale)
    if a.rounding == "up":
        whole = apply_scalar("floor", steps + (a.zero + 0.5))
    else:
        whole = apply_scalar("round", steps)
        whole = whole + float(a.zero) if a.zero else whole
    return cast(apply_scalar("min", apply_scalar("max", whole, float(a.low)), float(a.high)), a.dtype)


def _quantize_reference(
    x: Any, scale: float, zero: int, low: int, high: int, dtype: str, rounding: str, loss: float
) -> Any:
    import jax.numpy as jnp

    steps = x * (1.0 / scale)
    whole = jnp.round(steps) + zero if rounding == "even" else jnp.floor(steps + (zero + 0.5))
    return jnp.clip(whole, low, high).astype(DTYPES[dtype].numpy_name)


def _some_scale(c: Chooser) -> float:
    return c.pick((1.0, 0.5, 0.25, 2.0))


def _quantize_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    shape = out.shape if out else some_shape(c)
    dtype = out.dtype if out else c.pick(("i8", "u8", "i32"))
    low, high = {"i8": (-127, 127), "u8": (0, 255)}.get(dtype, (-1000, 1000))
    zero = c.pick((0, 0, 3)) if dtype != "u8" else c.pick((0, 128))
    rounding = c.pick(ROUNDINGS)
    attrs = Attrs(scale=_some_scale(c), zero=zero, low=low, high=high, dtype=dtype, rounding=rounding, loss=0.0)
    return [known[0] or TensorType(shape)], attrs


_elementwise(
    "quantize",
    ("scale", "zero", "low", "high", "dtype", "rounding", "loss"),
    _quantize_type,
    _quantize_scalar,
    _quantize_reference,
    _quantize_sample,
    "clip(round(x / scale) + zero, low, high) as integers",
    inlining="stored",
)

# --- dequantize: integer to real -------------------------------------------------------------------------------------


def _dequantize_type(t: Types, a: Attrs) -> TensorType:
    require(DTYPES[t[0].dtype].kind in ("int", "uint"), f"dequantize takes integers, {t[0]} given")
    require(a.scale > 0 and math.isfinite(a.scale), f"scale {a.scale} is not a positive number")
    require(a.loss >= 0, f"loss {a.loss} is negative")
    require(a.dtype in DTYPES and DTYPES[a.dtype].kind == "float", f"dtype {a.dtype} is not a float type")
    return t[0].with_dtype(a.dtype)


def _dequantize_scalar(q: Scalar, a: Attrs) -> Scalar:
    real = cast(q, a.dtype)
    real = real - float(a.zero) if a.zero else real
    return real if a.scale == 1 else real * float(a.scale)


def _dequantize_reference(q: Any, scale: float, zero: int, dtype: str, loss: float) -> Any:
    return (q.astype(DTYPES[dtype].numpy_name) - zero) * scale


def _dequantize_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    shape = out.shape if out else some_shape(c)
    q = known[0] or TensorType(shape, c.pick(("i8", "u8", "i32")))
    zero = 128 if q.dtype == "u8" and c.integer(0, 1) else 0
    return [q], Attrs(scale=_some_scale(c), zero=zero, dtype="f32", loss=0.0)


_elementwise(
    "dequantize",
    ("scale", "zero", "dtype", "loss"),
    _dequantize_type,
    _dequantize_scalar,
    _dequantize_reference,
    _dequantize_sample,
    "scale * (q - zero) as floats",
    inlining="conversion",
)

# --- integers to fewer bits by a shift, as accelerators do it --------------------------------------------------------


def _requantize_type(t: Types, a: Attrs) -> TensorType:
    require(DTYPES[t[0].dtype].kind == "int", f"requantize takes signed integers, {t[0]} given")
    require(a.loss >= 0, f"loss {a.loss} is negative")
    require(0 <= a.shift < 8 * DTYPES[t[0].dtype].size - 1, f"shift {a.shift} is not within {t[0].dtype}")
    _require_integers(a.dtype, a.low, a.high)
    return t[0].with_dtype(a.dtype)


def _requantize_scalar(q: Scalar, a: Attrs) -> Scalar:
    shifted = apply_scalar("shr", q + (1 << (a.shift - 1)), a.shift) if a.shift else q
    return cast(apply_scalar("min", apply_scalar("max", shifted, a.low), a.high), a.dtype)


def _requantize_reference(q: Any, shift: int, low: int, high: int, dtype: str, loss: float) -> Any:
    import jax.numpy as jnp

    half = (1 << shift) >> 1
    return jnp.clip((q + half) // (1 << shift), low, high).astype(DTYPES[dtype].numpy_name)


def _requantize_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    dtype = out.dtype if out else c.pick(("i8", "u8"))
    low, high = (0, 255) if dtype == "u8" else (-127, 127)
    q = known[0] or TensorType(out.shape if out else some_shape(c), "i32")
    return [q], Attrs(shift=c.integer(0, 4), low=low, high=high, dtype=dtype, loss=0.0)


_elementwise(
    "requantize",
    ("shift", "low", "high", "dtype", "loss"),
    _requantize_type,
    _requantize_scalar,
    _requantize_reference,
    _requantize_sample,
    "clip((q + half a step) >> shift, low, high): quantize by a power of two, in integers",
    inlining="stored",
)

# --- helpers of the rules --------------------------------------------------------------------------------------------


def _affine_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0] or TensorType(out.shape if out else some_shape(c), out.dtype if out else c.pick(("f32", "i32")))
    return [x], Attrs(factor=c.integer(-2, 3), term=c.integer(-2, 3))


def _affine_type(t: Types, a: Attrs) -> TensorType:
    kind = DTYPES[t[0].dtype].kind
    require(kind != "bool", f"affine takes numbers, {t[0]} given")
    whole = isinstance(a.factor, int) and isinstance(a.term, int)
    require(kind == "float" or whole, f"factor {a.factor} and term {a.term} of integers are integers")
    return t[0]


def _affine_scalar(x: Scalar, a: Attrs) -> Scalar:
    number = float if DTYPES[x.dtype].kind == "float" else int
    scaled = x if a.factor == 1 else x * number(a.factor)
    return scaled + number(a.term) if a.term else scaled


_elementwise(
    "affine",
    ("factor", "term"),
    _affine_type,
    _affine_scalar,
    lambda x, factor, term: (x * factor + term).astype(x.dtype),
    _affine_sample,
    "factor * x + term, of numbers known where the program is written",
)


def _steps_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(DTYPES[x.dtype].kind == "float", f"steps takes floats, {x} given")
    require(all(0 <= d < x.rank for d in a.axes) and len(set(a.axes)) == len(a.axes), f"axes {a.axes} of {x}")
    require(a.levels > 0, f"levels {a.levels} is not positive")
    return x.with_shape(tuple(n for d, n in enumerate(x.shape) if d not in a.axes))


def _steps_expr(t: Types, a: Attrs) -> TensorExpr:
    axes = {d: Axis(f"k{d}", t[0].shape[d]) for d in a.axes}

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            rest = iter(i)
            where = tuple(Index.of(axes[d]) if d in axes else next(rest) for d in range(t[0].rank))
            largest = reduce("max", list(axes.values()), apply_scalar("abs", x[where]))
            empty = apply_scalar("eq", largest, 0.0)
            return apply_scalar("select", empty, largest + 1.0, largest * (1.0 / a.levels))

        return at

    return TensorExpr.build(t, _steps_type(t, a).shape, body)


def _steps_reference(x: Any, axes: Any, levels: float) -> Any:
    import jax.numpy as jnp

    largest = jnp.max(jnp.abs(x), axis=axes)
    return jnp.where(largest > 0, largest * (1.0 / levels), 1.0)


def _steps_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0] or TensorType(some_shape(c))
    return [x], Attrs(axes=tuple(d for d in range(x.rank) if c.integer(0, 1)), levels=c.pick((128.0, 8.0)))


declare(
    Operator(
        "steps",
        ("axes", "levels"),
        1,
        _steps_type,
        _steps_expr,
        _steps_reference,
        _steps_sample,
        "largest magnitude over the axes in so many levels (1 where all is zero): symmetric scales",
        "reduction",
    )
)
