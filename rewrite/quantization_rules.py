"""Quantization as rewriting: real tensors as integers, products and convolutions of integers, and what cancels between.

    x                              ~>  dequantize(quantize(x))                               if calibrated
    conv(dequantize(q), w)         ~>  dequantize(conv(q, quantize(w / steps))) * steps      if calibrated
    quantize(move(x))              ->  move(quantize(x)),  quantize(relu(x)) -> quantize(x), …

Rules with `~>` are lossy. Each states its loss, the variance of the outputs' relative error that it causes, from what a
calibration says of the tensors it touches (`ir/calibration.py`):

- rounding to steps of s is an error of variance s²/12 in each element, and what lies outside the range adds its mean
  square: `loss = (s²/12 + clipped) * gain²`;
- weights rounded to steps of s_o in output channel o are an error of variance s_o²/12 * sum of the squares of the
  inputs in each result: `loss = mean(s_o²)/12 * energy * gain²`;
- a bias rounded to steps of s is the same error in all P results of its channel: `loss = P * s²/12 * gain²`.

Errors are taken for independent, so that variances add; a range observed on the calibration data may be left by others.
The rest are equations over the reals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.attrs import Attrs
from ..ir.calibration import Calibrated
from ..ir.errors import NesteggError
from ..ir.operator import Chooser
from ..ir.types import DTYPES, TensorType
from .pattern import Environment, Pattern, op
from .rule import GraphRule, rule

#: Levels on either side of zero of a signed byte, and of an unsigned one.
SIGNED, UNSIGNED = 127, 255


def _figures(loss: float) -> float:
    """A loss to three figures, so that estimates which differ by rounding are one."""
    return float(f"{loss:.2e}")


@dataclass(frozen=True)
class Scheme:
    """How tensors become bytes. Activations are symmetric around zero, or start at it.

    `power_of_two`: scales are powers of two and one for a whole tensor, and bytes are signed (accelerators that rescale
    by shifts); else weights have a scale for each output channel, and activations are unsigned bytes (`vpdpbusd`),
    those of both signs counted from 128.
    """

    power_of_two: bool = False

    @property
    def dtype(self) -> str:
        return "i8" if self.power_of_two else "u8"

    def zero(self, x: Calibrated) -> int:
        return 128 if not self.power_of_two and x.low < 0 else 0

    def low(self, x: Calibrated) -> int:
        return self.zero(x) - SIGNED if x.low < 0 else 0

    def high(self, x: Calibrated) -> int:
        return UNSIGNED if not self.power_of_two else SIGNED

    def scale(self, x: Calibrated) -> float:
        return self.step(x.magnitude, self.high(x) - self.zero(x))

    def step(self, magnitude: float, levels: int) -> float:
        """The step at which `levels` of them reach the magnitude."""
        if magnitude == 0:
            return 1.0
        exact = magnitude / levels
        return 2.0 ** math.ceil(math.log2(exact)) if self.power_of_two else exact


# --- samplers --------------------------------------------------------------------------------------------------------


def _conv_attrs(c: Chooser, groups: int = 1, padded: bool = True) -> Attrs:
    padding = tuple((c.integer(0, 1), c.integer(0, 1)) if padded else (0, 0) for _ in range(2))
    strides = (c.integer(1, 2), c.integer(1, 2))
    return Attrs(strides=strides, padding=padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=groups)


def _conv(c: Chooser, left: str, right: str) -> dict[str, Any]:
    groups = c.pick((1, 1, 2))
    depth, outputs = c.integer(1, 4), groups * c.integer(1, 3)
    kernel = (c.integer(1, 2), c.integer(1, 3))
    x = TensorType((c.integer(1, 2), groups * depth, *(n + c.integer(0, 2) for n in kernel)), left)
    return {"x": x, "w": TensorType((outputs, depth, *kernel), right), "c": _conv_attrs(c, groups)}


def _dot(c: Chooser, left: str, right: str) -> dict[str, Any]:
    m, k, n = (c.integer(1, 5) for _ in range(3))
    product = Attrs(contract=((1,), (0,)), batch=((), ()))
    return {"x": TensorType((m, k), left), "w": TensorType((k, n), right), "c": product}


@dataclass(frozen=True)
class Contraction:
    """What convolutions and products have in common: `apply(x, w, c)`, its weights' output axis, and its result's.

    draw(chooser, dtype of x, dtype of w): operands and attributes of a small one.
    """

    name: str
    apply: Callable[..., Any]
    weights_axis: int
    draw: Callable[[Chooser, str, str], dict[str, Any]]

    def fits(self, x: TensorType, w: TensorType, c: Attrs) -> bool:
        if self.name == "conv":
            return set(c.lhs_dilation) == {1}
        return w.rank == 2 and c.batch == ((), ()) and c.contract == ((x.rank - 1,), (0,))

    def result_axis(self, x: TensorType) -> int:
        return 1 if self.name == "conv" else x.rank - 1

    def shape(self, x: TensorType, w: TensorType, c: Attrs) -> tuple[int, ...]:
        from ..ir.operator import operator

        return operator(self.name).check((x.with_dtype(w.dtype), w), c).shape

    def reduced(self, w: TensorType) -> tuple[int, ...]:
        """The weights' axes other than that of output channels."""
        return tuple(d for d in range(w.rank) if d != self.weights_axis)

    def along_channels(self, vector: Pattern) -> Pattern:
        """A vector with an element for each output channel, spread over the result of (x, w, c)."""
        return op.broadcast(
            vector, shape=lambda x, w, c: self.shape(x, w, c), dims=lambda x: (self.result_axis(x),)
        )


@dataclass(frozen=True)
class Form:
    """A case of a rule, which is stated once for each: whether the left operand is `counted` from a zero other than 0,
    and whether there is padding."""

    counted: bool
    padded: bool

    def holds(self, a: Attrs, c: Attrs) -> bool:
        """Of a dequantization and a contraction."""
        return self.counted == bool(a.zero) and self.padded == any(any(p) for p in c.get("padding", ()))

    @property
    def suffix(self) -> str:
        return "_counted" * self.counted + "_padded" * self.padded


CONTRACTIONS = (
    Contraction("conv", lambda x, w, c: op.conv(x, w, c), 0, _conv),
    Contraction("dot", lambda x, w, c: op.dot(x, w, c), 1, _dot),
)

FORMS = [(k, Form(counted, padded)) for k in CONTRACTIONS for counted in (False, True) for padded in (False, True)]
#: Products have no padding.
FORMS = [(k, form) for k, form in FORMS if k.name == "conv" or not form.padded]


def _over_padded(x: Pattern, w: Pattern, value: Callable[..., float]) -> Pattern:
    """A padded convolution `c` of bytes x and signed bytes w in i32, with `value` for padding, which is stored:
    intrinsics test no bounds."""
    padded = op.pad(
        x,
        low=lambda c: (0, 0, *(p[0] for p in c.padding)),
        high=lambda c: (0, 0, *(p[1] for p in c.padding)),
        interior=lambda x: (0,) * x.rank,
        value=value,
    )
    return op.conv(
        op.cast(padded, dtype="i32"),
        w,
        strides=lambda c: c.strides,
        padding=lambda c: ((0, 0),) * len(c.padding),
        lhs_dilation=lambda c: c.lhs_dilation,
        rhs_dilation=lambda c: c.rhs_dilation,
        groups=lambda c: c.groups,
    )


# --- lossy: a calibrated tensor as bytes -----------------------------------------------------------------------------


def quantization_rules(scales: str = "any") -> tuple[GraphRule, ...]:
    """The lossy rules, for `any` scales or for `power-of-two` ones (with what only these need).

    Raises `NesteggError` for another word.
    """
    if scales not in ("any", "power-of-two"):
        raise NesteggError(f"scales={scales!r}: give 'any' or 'power-of-two'")
    scheme = Scheme(scales == "power-of-two")
    operands = [_quantize_operand(k, scheme) for k in CONTRACTIONS]
    if not scheme.power_of_two:
        return (*operands, *(_channel_weights(k, form) for k, form in FORMS))
    weights = (_tensor_weights(k, scheme) for k in CONTRACTIONS)
    sums = (_quantize_addend(scheme), _quantize_image(scheme))
    return (*operands, *weights, *sums, round_bias, relu_into_quantize)


def _named(f: Callable[..., Any], name: str) -> Callable[..., Any]:
    f.__name__ = name
    return f


def _through_bytes(x: Pattern, scheme: Scheme) -> Pattern:
    """dequantize(quantize(x)) of a calibrated tensor x."""

    def scale(x_calibrated: Calibrated) -> float:
        return scheme.scale(x_calibrated)

    def zero(x_calibrated: Calibrated) -> int:
        return scheme.zero(x_calibrated)

    def loss(x_calibrated: Calibrated) -> float:
        return _figures(x_calibrated.loss(scheme.scale(x_calibrated) ** 2 / 12 + x_calibrated.clipped))

    integers = op.quantize(
        x,
        scale=scale,
        zero=zero,
        low=lambda x_calibrated: scheme.low(x_calibrated),
        high=lambda x_calibrated: scheme.high(x_calibrated),
        dtype=scheme.dtype,
        rounding="up",
        loss=loss,
    )
    return op.dequantize(integers, scale=scale, zero=zero, dtype="f32", loss=0.0)


def _quantize_operand(kind: Contraction, scheme: Scheme) -> GraphRule:
    def fits(x: TensorType, w: TensorType, c: Attrs) -> bool:
        """A contraction of a calibrated tensor of floats with weights."""
        return x.dtype == "f32" and kind.fits(x, w, c)

    def quantize_operand(x, w, *, c):
        """x ~> dequantize(quantize(x)) where a contraction with constant weights reads it."""
        product = kind.apply(x, w, c)
        return product >> product, x >> _through_bytes(x, scheme)

    name = f"quantize_{kind.name}_input" + "_to_power_of_two" * scheme.power_of_two
    return rule(
        "precision",
        when=fits,
        const=("w",),
        varies=("x",),
        calibrated=("x",),
        draw=lambda c: kind.draw(c, "f32", "f32"),
    )(_named(quantize_operand, name))


def _quantize_addend(scheme: Scheme) -> GraphRule:
    def quantize_addend(t, x, *, a):
        """x ~> dequantize(quantize(x)) where it is added to sums of products: integers add integers."""
        total = op.add(op.dequantize(t, a), x)
        return total >> total, x >> _through_bytes(x, scheme)

    return rule(
        "precision",
        when=lambda t, a: t.dtype == "i32" and a.zero == 0,
        varies=("x",),
        calibrated=("x",),
        draw=_added,
    )(quantize_addend)


def _quantize_image(scheme: Scheme) -> GraphRule:
    def quantize_summed_image(x, *, a):
        """x ~> dequantize(quantize(x)) where an image is summed up: what makes it may then end in integers."""
        total = op.reduce(x, a)
        return total >> total, x >> _through_bytes(x, scheme)

    return rule(
        "precision",
        when=lambda x, a: x.dtype == "f32" and x.rank == 4 and a.kind == "sum" and a.axes == (2, 3),
        varies=("x",),
        calibrated=("x",),
        draw=lambda c: {
            "x": TensorType(tuple(c.integer(1, 3) for _ in range(4))),
            "a": Attrs(axes=(2, 3), kind="sum"),
        },
    )(quantize_summed_image)


def _added(c: Chooser) -> Environment:
    shape = tuple(c.integer(1, 4) for _ in range(2))
    a = Attrs(scale=c.pick((0.5, 0.015625)), zero=0, dtype="f32", loss=0.0)
    return {"t": TensorType(shape, "i32"), "x": TensorType(shape), "a": a}


# --- lossy: weights as signed bytes ----------------------------------------------------------------------------------


def _dequantized(kind: Contraction, left: str, counted: bool) -> Callable[[Chooser], Environment]:
    def draw(c: Chooser) -> Environment:
        zero = c.pick((128, 3)) if counted else 0
        return {**kind.draw(c, left, "f32"), "a": Attrs(scale=c.pick((0.5, 0.03125)), zero=zero, dtype="f32", loss=0.0)}

    return draw


def _total(kind: Contraction, form: Form, x: Pattern, w: Pattern, c: Any) -> Pattern:
    """The sums in i32 of bytes x, which a record `a` dequantizes, with signed bytes w. If x is counted from a zero:
    conv(q - zero, w) = conv(q padded with zero, w) - zero * (sums of w), so that bytes stay bytes."""
    wide = op.cast(w, dtype="i32")
    if form.padded:
        product = _over_padded(x, wide, lambda a: float(a.zero))
    else:
        product = kind.apply(op.cast(x, dtype="i32"), wide, c)
    if not form.counted:
        return product
    sums = op.reduce(wide, kind="sum", axes=lambda w: kind.reduced(w))
    return op.add(product, kind.along_channels(op.affine(sums, factor=lambda a: -a.zero, term=0)))


def _of_weights(kind: Contraction, form: Form | None) -> Callable[..., bool]:
    def fits(x: TensorType, w: TensorType, c: Attrs, a: Attrs, result_calibrated: Calibrated) -> bool:
        """A contraction of bytes with weights of floats, of which a calibration says how large its operands are."""
        suits = a.zero == 0 if form is None else form.holds(a, c)
        types = DTYPES[x.dtype].size == 1 and w.dtype == "f32"
        # A scale for each channel takes up those of a batch norm, wherever they are; one for all weights does not.
        energy = _energy(result_calibrated) if form is None else result_calibrated.energy
        return suits and types and kind.fits(x, w, c) and energy > 0

    return fits


def _energy(x: Calibrated) -> float:
    """Of a product or convolution whose weights may have taken up factors of its results."""
    return x.energy or x.scaled_energy


def _channel_weights(kind: Contraction, form: Form) -> GraphRule:
    def loss(a: Attrs, w: TensorType, w_value: np.ndarray, result_calibrated: Calibrated) -> float:
        steps = np.abs(w_value).max(axis=kind.reduced(w), initial=0.0) / SIGNED
        variance = float(np.mean(steps**2)) / 12 * result_calibrated.energy
        return _figures(a.loss + result_calibrated.loss(variance))

    def quantize_weights(x, w, *, a, c):
        """conv(dequantize(q), w) ~> dequantize(conv(q, quantize(w / steps))) * steps, a step for each channel."""
        steps = op.steps(w, axes=lambda w: kind.reduced(w), levels=float(SIGNED))
        spread = op.broadcast(steps, shape=lambda w: w.shape, dims=(kind.weights_axis,))
        integers = op.quantize(
            op.div(w, spread), scale=1.0, zero=0, low=-SIGNED, high=SIGNED, dtype="i8", rounding="even", loss=0.0
        )
        total = _total(kind, form, x, integers, c)
        scales = op.steps(w, axes=lambda w: kind.reduced(w), levels=lambda a: SIGNED / a.scale)
        real = op.dequantize(total, scale=1.0, zero=0, dtype="f32", loss=loss)
        return kind.apply(op.dequantize(x, a), w, c) >> op.mul(real, kind.along_channels(scales))

    return rule(
        "precision",
        when=_of_weights(kind, form),
        const=("w",),
        calibrated=("result",),
        values=("w",),
        draw=_dequantized(kind, "u8", form.counted),
    )(_named(quantize_weights, f"quantize_{kind.name}_weights{form.suffix}"))


def _tensor_weights(kind: Contraction, scheme: Scheme) -> GraphRule:
    def step(w_value: np.ndarray) -> float:
        return scheme.step(max(float(w_value.max(initial=0.0)), -float(w_value.min(initial=0.0))), SIGNED)

    def loss(a: Attrs, w_value: np.ndarray, result_calibrated: Calibrated) -> float:
        variance = step(w_value) ** 2 / 12 * _energy(result_calibrated)
        return _figures(a.loss + result_calibrated.loss(variance))

    def quantize_weights(x, w, *, a, c):
        """conv(dequantize(q), w) ~> dequantize(conv(q, quantize(w))), with one step, a power of two."""
        integers = op.quantize(
            w, scale=step, zero=0, low=-SIGNED, high=SIGNED, dtype="i8", rounding="even", loss=0.0
        )
        total = kind.apply(op.cast(x, dtype="i32"), op.cast(integers, dtype="i32"), c)
        return kind.apply(op.dequantize(x, a), w, c) >> op.dequantize(
            total, scale=lambda a, w_value: a.scale * step(w_value), zero=0, dtype="f32", loss=loss
        )

    return rule(
        "precision",
        when=_of_weights(kind, None),
        const=("w",),
        calibrated=("result",),
        values=("w",),
        draw=_dequantized(kind, "i8", False),
    )(_named(quantize_weights, f"quantize_{kind.name}_weights_to_power_of_two"))


def _bias(c: Chooser) -> Environment:
    n = c.integer(1, 4)
    shape = (c.integer(1, 2), n, *(c.integer(1, 3) for _ in range(2)))
    return {
        "x": TensorType(shape, "i32"),
        "s": TensorType((n,)),
        "a": Attrs(scale=c.pick((0.5, 0.015625)), zero=0, dtype="f32", loss=0.0),
        "b": Attrs(shape=shape, dims=(1,)),
    }


def _bias_loss(a: Attrs, x: TensorType, s: TensorType, result_calibrated: Calibrated) -> float:
    shared = x.size / max(s.size, 1)
    return _figures(a.loss + result_calibrated.loss(shared * a.scale**2 / 12))


@rule(
    "precision",
    when=lambda x, a: x.dtype == "i32" and a.zero == 0 and is_power_of_two(a.scale),
    const=("s",),
    calibrated=("result",),
    draw=_bias,
)
def round_bias(x, s, *, a, b):
    """dequantize(x) + bias ~> dequantize(x + quantize(bias)): the bias joins the integers, in their steps."""
    integers = op.quantize(
        s, scale=lambda a: a.scale, zero=0, low=-(1 << 30), high=1 << 30, dtype="i32", rounding="even", loss=0.0
    )
    return op.add(op.dequantize(x, a), op.broadcast(s, b)) >> op.dequantize(
        op.add(x, op.broadcast(integers, b)), scale=lambda a: a.scale, zero=0, dtype="f32", loss=_bias_loss
    )


def is_power_of_two(scale: float) -> bool:
    return math.frexp(scale)[0] == 0.5


# --- exact: contractions of quantized operands -----------------------------------------------------------------------


def _of_bytes(kind: Contraction, form: Form) -> Callable[..., bool]:
    def fits(x: TensorType, w: TensorType, c: Attrs, a: Attrs, e: Attrs) -> bool:
        """A contraction of bytes with signed bytes counted from zero."""
        of_bytes = DTYPES[x.dtype].size == DTYPES[w.dtype].size == 1 and form.holds(a, c)
        return of_bytes and e.zero == 0 and kind.fits(x, w, c)

    return fits


def _both_quantized(kind: Contraction, counted: bool, by_channel: bool) -> Callable[[Chooser], Environment]:
    def draw(c: Chooser) -> Environment:
        env = kind.draw(c, c.pick(("u8", "i8")), "i8")
        zero = 3 if counted else 0
        env |= {"a": Attrs(scale=0.5, zero=zero, dtype="f32", loss=0.0)}
        env["e"] = Attrs(scale=c.pick((1.0, 0.25)), zero=0, dtype="f32", loss=0.0)
        if by_channel:
            w = env["w"]
            env["s"] = TensorType((w.shape[kind.weights_axis],))
            env["b"] = Attrs(shape=w.shape, dims=(kind.weights_axis,))
        return env

    return draw


def _product(a: Attrs, e: Attrs) -> float:
    return a.scale * e.scale


def _both(a: Attrs, e: Attrs) -> float:
    return a.loss + e.loss


def _product_of_bytes(kind: Contraction, form: Form, x: Pattern, w: Pattern, c: Any) -> Pattern:
    total = _total(kind, form, x, w, c)
    return op.dequantize(total, scale=_product, zero=0, dtype="f32", loss=_both)


def _contract_bytes(kind: Contraction, form: Form) -> GraphRule:
    def contract_bytes(x, w, *, a, e, c):
        """conv(dequantize(q), dequantize(v)) -> dequantize(conv(q, v)): the sums of products are exact in i32."""
        return kind.apply(op.dequantize(x, a), op.dequantize(w, e), c) >> _product_of_bytes(kind, form, x, w, c)

    made = rule("algorithm", when=_of_bytes(kind, form), const=("w",), draw=_both_quantized(kind, form.counted, False))
    return made(_named(contract_bytes, f"{kind.name}_of_bytes{form.suffix}"))


def _contract_channels(kind: Contraction, form: Form) -> GraphRule:
    of_bytes = _of_bytes(kind, form)

    def fits(x: TensorType, w: TensorType, c: Attrs, a: Attrs, e: Attrs, b: Attrs) -> bool:
        """A contraction of bytes with signed bytes that have a scale for each output channel."""
        return of_bytes(x, w, c, a, e) and b.dims == (kind.weights_axis,)

    def contract_bytes(x, w, s, *, a, e, b, c):
        """conv(dequantize(q), dequantize(v) * s) -> dequantize(conv(q, v)) * s, s being a scale an output channel."""
        weights = op.mul(op.dequantize(w, e), op.broadcast(s, b))
        product = _product_of_bytes(kind, form, x, w, c)
        return kind.apply(op.dequantize(x, a), weights, c) >> op.mul(product, kind.along_channels(s))

    made = rule("algorithm", when=fits, const=("w", "s"), draw=_both_quantized(kind, form.counted, True))
    return made(_named(contract_bytes, f"{kind.name}_of_bytes_by_channel{form.suffix}"))


def _shifted(kind: Contraction) -> Callable[[Chooser], Environment]:
    def draw(c: Chooser) -> Environment:
        wide = Attrs(dtype="i32")
        shift = Attrs(factor=1, term=c.pick((-3, -128, 2)))
        return {**kind.draw(c, "u8", "i8"), "d": wide, "e": wide, "f": shift}

    return draw


def _fits_below(x: TensorType, f: Attrs) -> bool:
    bounds = np.iinfo(DTYPES[x.dtype].numpy) if DTYPES[x.dtype].kind in ("int", "uint") else None
    return bounds is not None and f.factor == 1 and f.term != 0 and bounds.min <= -f.term <= bounds.max


def _zero_out_of(kind: Contraction, padded: bool) -> GraphRule:
    def fits(x: TensorType, w: TensorType, c: Attrs, d: Attrs, e: Attrs, f: Attrs) -> bool:
        """A contraction in i32 of integers counted from a zero of their type."""
        suits = padded == any(any(p) for p in c.get("padding", ()))
        return suits and d.dtype == e.dtype == "i32" and kind.fits(x, w, c) and _fits_below(x, f)

    def zero_out(x, w, *, c, d, e, f):
        """conv(q - zero, w) -> conv(q padded with zero, w) - zero * (sums of w): bytes stay bytes."""
        wide = op.cast(w, e)
        sums = op.reduce(wide, kind="sum", axes=lambda w: kind.reduced(w))
        below = kind.along_channels(op.affine(sums, factor=lambda f: f.term, term=0))
        product = _over_padded(x, wide, lambda f: float(-f.term)) if padded else kind.apply(op.cast(x, d), wide, c)
        return kind.apply(op.affine(op.cast(x, d), f), wide, c) >> op.add(product, below)

    made = rule("algorithm", when=fits, const=("w",), draw=_shifted(kind))
    return made(_named(zero_out, f"zero_out_of_{kind.name}" + "_padded" * padded))


# --- exact: what quantization commutes with --------------------------------------------------------------------------


def _quantizes(c: Chooser) -> Attrs:
    zero = c.pick((0, 3))
    rounding = c.pick(("even", "up"))
    return Attrs(scale=0.5, zero=zero, low=zero, high=127, dtype="i8", rounding=rounding, loss=0.0)


def _dequantizes(c: Chooser) -> Attrs:
    return Attrs(scale=0.25, zero=c.pick((0, 2)), dtype="f32", loss=0.0)


def _relu(c: Chooser) -> Environment:
    return {"a": _quantizes(c)}


@rule(
    "algebra",
    when=lambda a, z_value: a.low == a.zero and not z_value.any(),
    const=("z",),
    values=("z",),
    draw=_relu,
)
def relu_into_quantize(x, z, *, a):
    """quantize(max(x, 0)) -> quantize(x), if it clips at zero itself"""
    return op.quantize(op.max(x, z), a) >> op.quantize(x, a)


def overlaps(p: Attrs) -> bool:
    """A maximum over windows of which none lies in the padding only."""
    axes = zip(p.window, p.padding, p.dilation, strict=True)
    return p.kind == "max" and all(max(pad) < n and d == 1 for n, pad, d in axes)


def _pooled(c: Chooser) -> Environment:
    window = (1, c.integer(1, 2), c.integer(1, 3))
    pool = Attrs(kind="max", window=window, strides=(1, 1, 2), padding=((0, 0), (0, 0), (0, 1)), dilation=(1,) * 3)
    x = TensorType((c.integer(1, 2), c.integer(2, 3), c.integer(3, 5)))
    return {"x": x, "p": pool, "a": _quantizes(c)}


@rule("algebra", when=overlaps, draw=_pooled)
def quantize_before_max_pool(x, *, p, a):
    """quantize(max pool(x)) -> max pool(quantize(x)): rounding keeps the order"""
    return op.quantize(op.window(x, p), a) >> op.window(op.quantize(x, a), p)


def _pooled_bytes(c: Chooser) -> Environment:
    env = dict(_pooled(c))
    return {**env, "x": env["x"].with_dtype("u8"), "a": _dequantizes(c)}


@rule("algebra", when=overlaps, draw=_pooled_bytes)
def max_pool_of_bytes(x, *, p, a):
    """max pool(dequantize(q)) -> dequantize(max pool(q))"""
    return op.window(op.dequantize(x, a), p) >> op.dequantize(op.window(x, p), a)


def _moving(name: str) -> tuple[GraphRule, GraphRule]:
    move = getattr(op, name)

    def quantize_before(x, *, m, a):
        """quantize(move(x)) -> move(quantize(x)): bytes are moved, not floats"""
        return op.quantize(move(x, m), a) >> move(op.quantize(x, a), m)

    def dequantize_after(x, *, m, a):
        """move(dequantize(q)) -> dequantize(move(q)): bytes are moved, not floats"""
        return move(op.dequantize(x, a), m) >> op.dequantize(move(x, m), a)

    before = rule("algebra", draw=lambda c: {"a": _quantizes(c)})
    after = rule("algebra", draw=lambda c: {"x": TensorType((2, 3), "u8"), "a": _dequantizes(c)})
    return before(_named(quantize_before, f"quantize_before_{name}")), after(
        _named(dequantize_after, f"{name}_of_bytes")
    )


def _padded(c: Chooser) -> Environment:
    pad = Attrs(low=(c.integer(0, 2),), high=(1,), interior=(0,), value=0.0)
    return {"x": TensorType((c.integer(1, 4),)), "p": pad, "a": _quantizes(c)}


def _padded_again(x: Pattern, value: Callable[[Attrs], float]) -> Pattern:
    return op.pad(x, low=lambda p: p.low, high=lambda p: p.high, interior=lambda p: p.interior, value=value)


@rule("algebra", when=lambda p, a: p.value == 0 and a.low <= a.zero <= a.high, draw=_padded)
def quantize_before_pad(x, *, p, a):
    """quantize(pad(x, 0)) -> pad(quantize(x), zero)"""
    return op.quantize(op.pad(x, p), a) >> _padded_again(op.quantize(x, a), lambda a: float(a.zero))


def _padded_bytes(c: Chooser) -> Environment:
    return {**_padded(c), "x": TensorType((c.integer(1, 4),), "u8"), "a": _dequantizes(c)}


@rule(
    "algebra",
    when=lambda p, a, x: p.value == 0 and np.iinfo(DTYPES[x.dtype].numpy).min <= a.zero,
    draw=_padded_bytes,
)
def pad_of_bytes(x, *, p, a):
    """pad(dequantize(q), 0) -> dequantize(pad(q, zero))"""
    return op.pad(op.dequantize(x, a), p) >> op.dequantize(_padded_again(x, lambda a: float(a.zero)), a)


def cancels(x: TensorType, a: Attrs, b: Attrs) -> bool:
    """To real numbers and back in the same steps, without clipping."""
    bounds = np.iinfo(DTYPES[x.dtype].numpy)
    same = (a.scale, a.zero, x.dtype, a.loss) == (b.scale, b.zero, b.dtype, 0)
    return same and b.low <= bounds.min and bounds.max <= b.high


def _back(c: Chooser) -> Environment:
    there = Attrs(scale=0.5, zero=3, dtype="f32", loss=0.0)
    back = Attrs(scale=0.5, zero=3, low=0, high=255, dtype="u8", rounding="even", loss=0.0)
    return {"x": TensorType((c.integer(1, 4),), "u8"), "a": there, "b": back}


@rule("algebra", when=cancels, draw=_back)
def quantize_dequantized(x, *, a, b):
    """quantize(dequantize(q)) -> q"""
    return op.quantize(op.dequantize(x, a), b) >> x


# --- exact: scales that are powers of two ----------------------------------------------------------------------------


def _ratio(coarse: Attrs, fine: Attrs) -> int | None:
    """k, if a step of the one is 2**k steps of the other, k >= 0."""
    mantissa, exponent = math.frexp(coarse.scale / fine.scale)
    return exponent - 1 if mantissa == 0.5 and 0 <= exponent - 1 < 24 else None


def _either(a: Attrs, b: Attrs) -> float:
    return a.loss + b.loss


def by_shift(x: TensorType, a: Attrs, b: Attrs) -> bool:
    """Sums in i32 to a type whose step is so many of theirs, a power of two."""
    return x.dtype == "i32" and a.zero == b.zero == 0 and b.rounding == "up" and _ratio(b, a) is not None


def _rescaled(c: Chooser) -> Environment:
    coarse = Attrs(scale=c.pick((0.5, 4.0)), zero=0, low=-127, high=127, dtype="i8", rounding="up", loss=0.0)
    fine = Attrs(scale=0.5, zero=0, dtype="f32", loss=0.0)
    return {"x": TensorType((c.integer(1, 4),), "i32"), "a": fine, "b": coarse}


@rule("algebra", when=by_shift, draw=_rescaled)
def requantize_by_shift(x, *, a, b):
    """quantize(dequantize(x)) -> clip((x + half a step) >> shift)"""
    return op.quantize(op.dequantize(x, a), b) >> op.requantize(
        x,
        shift=lambda a, b: _ratio(b, a),
        low=lambda b: b.low,
        high=lambda b: b.high,
        dtype=lambda b: b.dtype,
        loss=_either,
    )


def finer(x: TensorType, y: TensorType, a: Attrs, b: Attrs) -> bool:
    """Sums in i32 beside integers whose step is so many of theirs, a power of two."""
    return x.dtype == "i32" and a.zero == b.zero == 0 and _ratio(b, a) is not None and is_power_of_two(a.scale)


def _residual(c: Chooser) -> Environment:
    n = c.integer(1, 4)
    coarse = Attrs(scale=c.pick((0.5, 2.0)), zero=0, dtype="f32", loss=0.0)
    return {
        "x": TensorType((n,), "i32"),
        "y": TensorType((n,), "i8"),
        "a": Attrs(scale=0.5, zero=0, dtype="f32", loss=0.0),
        "b": coarse,
    }


def _sum_of_integers(x: Pattern, y: Pattern) -> Pattern:
    aligned = op.affine(op.cast(y, dtype="i32"), factor=lambda a, b: 1 << (_ratio(b, a) or 0), term=0)
    return op.dequantize(op.add(x, aligned), scale=lambda a: a.scale, zero=0, dtype="f32", loss=_either)


@rule("algebra", when=finer, draw=_residual)
def add_integers(x, y, *, a, b):
    """dequantize(x) + dequantize(y) -> dequantize(x + (y << k)): a residual sum stays in integers"""
    return op.add(op.dequantize(x, a), op.dequantize(y, b)) >> _sum_of_integers(x, y)


@rule("algebra", when=finer, draw=_residual)
def add_integers_after(x, y, *, a, b):
    """dequantize(y) + dequantize(x) -> dequantize(x + (y << k))"""
    return op.add(op.dequantize(y, b), op.dequantize(x, a)) >> _sum_of_integers(x, y)


def _movements() -> tuple[GraphRule, ...]:
    return tuple(r for name in ("reshape", "transpose", "slice") for r in _moving(name))


#: Equations about quantized tensors, whether a model says so or the lossy rules did.
INTEGER_RULES: tuple[GraphRule, ...] = (
    *(_contract_bytes(k, form) for k, form in FORMS),
    *(_contract_channels(k, form) for k, form in FORMS),
    *(_zero_out_of(k, form.padded) for k, form in FORMS if not form.counted),
    quantize_before_max_pool,
    max_pool_of_bytes,
    *_movements(),
    quantize_before_pad,
    pad_of_bytes,
    quantize_dequantized,
    requantize_by_shift,
    add_integers,
    add_integers_after,
)
