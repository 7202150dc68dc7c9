"""Composites: the operators of networks as compositions of primitives. The graph only ever holds the
primitives.

Each is declared once in the table `COMPOSITES`: a function from `Value`s to a `Value`, its JAX reference, and
a sampler. The functions are what the front ends call; the table is what tests and documentation read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import indexing, pooling  # noqa: F401 (add their rows)
from .canonical import (
    add,
    binary,
    broadcast,
    broadcast_to,
    cast,
    common_shape,
    concat,
    divide,
    dot,
    full_like,
    index_ramp,
    maximum,
    minimum,
    mul,
    reduce,
    reshape,
    select,
    slice_,
    sub,
    transpose,
    unary,
    uniform_of,
)
from .composite import COMPOSITES, Composite, Sample, along_axis, declare, in_jax, one_tensor
from .graph import Value
from .operator import Chooser, axis_in, require
from .types import DTYPES, TensorType

Pairs = Sequence[tuple[int, int]]

# --- activations ----------------------------------------------------------------------------------


def relu(x: Value) -> Value:
    return maximum(x, 0)


def clip(x: Value, low: float | None, high: float | None) -> Value:
    """min(max(x, low), high); None leaves that side open."""
    out = x if low is None else maximum(x, low)
    return out if high is None else minimum(out, high)


def leaky_relu(x: Value, slope: float) -> Value:
    return select(binary("ge", x, 0), x, mul(x, slope))


def elu(x: Value, alpha: float) -> Value:
    return select(binary("gt", x, 0), x, mul(expm1(minimum(x, 0)), alpha))


def selu(x: Value, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Value:
    return mul(elu(x, alpha), gamma)


def celu(x: Value, alpha: float) -> Value:
    return add(maximum(x, 0), minimum(mul(expm1(divide(minimum(x, 0), alpha)), alpha), 0))


def gelu(x: Value, approximate: bool) -> Value:
    """x * Phi(x); `approximate` by tanh."""
    if approximate:
        inner = mul(add(x, mul(mul(mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
        return mul(x, mul(add(unary("tanh", inner), 1), 0.5))
    return mul(mul(x, add(unary("erf", mul(x, math.sqrt(0.5))), 1)), 0.5)


def sigmoid(x: Value) -> Value:
    return unary("logistic", x)


def silu(x: Value) -> Value:
    return mul(x, sigmoid(x))


def hard_sigmoid(x: Value, alpha: float, beta: float) -> Value:
    """clip(alpha * x + beta, 0, 1)"""
    return clip(add(mul(x, alpha), beta), 0, 1)


def hard_swish(x: Value) -> Value:
    return mul(x, hard_sigmoid(x, 1 / 6, 0.5))


def softplus(x: Value) -> Value:
    """log(1 + exp(x)), without overflow."""
    return add(maximum(x, 0), unary("log1p", unary("exp", unary("neg", unary("abs", x)))))


def erfc(x: Value) -> Value:
    """1 - erf(x), to the precision of 1 (of halves, in float32): what is far smaller than that is lost."""
    wide = cast(x, "f32") if DTYPES[x.dtype].size < 4 else x
    return cast(sub(1, unary("erf", wide)), x.dtype)


def expm1(x: Value) -> Value:
    """exp(x) - 1 = tanh(x/2) (exp(x) + 1), accurate near 0."""
    return mul(unary("tanh", mul(x, 0.5)), add(unary("exp", x), 1))


def atan(x: Value) -> Value:
    """Arc tangent: of 1/x beyond 1; the angle halved twice; then the series, whose 8 terms are exact to 3e-13, and 12
    (for float64) to 1e-18."""
    size = unary("abs", x)
    far = binary("gt", size, 1)
    t = select(far, divide(full_like(x, 1), size), size)
    for _ in range(2):
        t = divide(t, add(unary("sqrt", add(mul(t, t), 1)), 1))
    square = mul(t, t)
    last = 23 if x.dtype == "f64" else 15
    series = full_like(x, 1 / last)
    for k in range(last - 2, 0, -2):
        series = sub(1 / k, mul(square, series))
    angle = mul(mul(series, t), 4)
    return mul(select(far, sub(math.pi / 2, angle), angle), unary("sign", x))


def asin(x: Value) -> Value:
    return mul(atan(divide(x, add(unary("sqrt", sub(1, mul(x, x))), 1))), 2)


def acos(x: Value) -> Value:
    return mul(atan(unary("sqrt", divide(sub(1, x), add(x, 1)))), 2)


#: Where log(2x) is asinh(x) and acosh(x) to the precision of the type, and x * x is still finite.
_FAR = {"f64": 1e8, "f32": 1e4, "bf16": 1e4, "f16": 1e2}


def asinh(x: Value) -> Value:
    """sign(x) log(a + sqrt(a^2 + 1)) of a = |x|, accurate near 0"""
    a = unary("abs", x)
    square = mul(a, a)
    grown = add(a, divide(square, add(unary("sqrt", add(square, 1)), 1)))
    return mul(_log_of_twice(a, unary("log1p", grown)), unary("sign", x))


def acosh(x: Value) -> Value:
    """log(x + sqrt(x^2 - 1)), accurate near 1; no number below it"""
    t = sub(x, 1)
    root = mul(unary("sqrt", t), unary("sqrt", add(t, 2)))
    return _log_of_twice(x, unary("log1p", add(t, root)))


def _log_of_twice(x: Value, near: Value) -> Value:
    """log(2x) where x is far from 1, `near` elsewhere."""
    return select(binary("gt", x, _FAR[x.dtype]), add(unary("log", x), math.log(2)), near)


def sinh(x: Value) -> Value:
    """(exp(x) - exp(-x)) / 2, accurate near 0; infinite only where the result is"""
    grown, shrunk = _halves_of_exp(x)
    far = mul(sub(grown, shrunk), unary("sign", x))
    near = mul(sub(expm1(x), expm1(unary("neg", x))), 0.5)
    return select(binary("gt", unary("abs", x), 1), far, near)


def cosh(x: Value) -> Value:
    """(exp(x) + exp(-x)) / 2, infinite only where the result is"""
    return add(*_halves_of_exp(x))


def _halves_of_exp(x: Value) -> tuple[Value, Value]:
    """exp(a) / 2 and exp(-a) / 2 of a = |x|, by way of exp(a / 2)."""
    root = unary("exp", mul(unary("abs", x), 0.5))
    half = mul(root, 0.5)
    return mul(half, root), divide(divide(full_like(x, 0.5), root), root)


def _hard_sigmoid_jax(x: Any, alpha: float, beta: float) -> Any:
    import jax.numpy as jnp

    return jnp.clip(alpha * x + beta, 0, 1)


declare(relu, in_jax("jax.nn.relu"), one_tensor)
declare(
    clip,
    lambda x, low, high: in_jax("jax.numpy.clip")(x, low, high),
    lambda c: one_tensor(c, low=c.pick((None, -1.0, 0.0)), high=c.pick((None, 1.0, 6.0))),
)
declare(
    leaky_relu,
    lambda x, slope: in_jax("jax.nn.leaky_relu")(x, slope),
    lambda c: one_tensor(c, slope=c.pick((0.01, 0.2))),
)
declare(
    elu, lambda x, alpha: in_jax("jax.nn.elu")(x, alpha), lambda c: one_tensor(c, alpha=c.pick((1.0, 0.5)))
)
declare(
    celu, lambda x, alpha: in_jax("jax.nn.celu")(x, alpha), lambda c: one_tensor(c, alpha=c.pick((1.0, 0.7)))
)
declare(selu, in_jax("jax.nn.selu"), one_tensor)
declare(gelu, in_jax("jax.nn.gelu"), lambda c: one_tensor(c, approximate=c.pick((False, True))))
declare(sigmoid, in_jax("jax.nn.sigmoid"), one_tensor)
declare(silu, in_jax("jax.nn.silu"), one_tensor)
declare(hard_sigmoid, _hard_sigmoid_jax, lambda c: one_tensor(c, alpha=0.2, beta=0.5))
declare(hard_swish, in_jax("jax.nn.hard_swish"), one_tensor)
declare(softplus, in_jax("jax.nn.softplus"), one_tensor)
declare(erfc, in_jax("jax.lax.erfc"), one_tensor)
declare(expm1, in_jax("jax.lax.expm1"), one_tensor)
declare(atan, in_jax("jax.numpy.arctan"), one_tensor)
declare(asin, in_jax("jax.numpy.arcsin"), one_tensor)
declare(acos, in_jax("jax.numpy.arccos"), one_tensor)
declare(asinh, in_jax("jax.numpy.arcsinh"), one_tensor)
declare(acosh, in_jax("jax.numpy.arccosh"), one_tensor)
declare(sinh, in_jax("jax.numpy.sinh"), one_tensor)
declare(cosh, in_jax("jax.numpy.cosh"), one_tensor)


# --- rounding and powers --------------------------------------------------------------------------


def trunc(x: Value) -> Value:
    return select(binary("lt", x, 0), unary("ceil", x), unary("floor", x))


def round_away(x: Value) -> Value:
    """To the nearest integer, ties away from zero. Exact: x less its integer part is."""
    whole = trunc(x)
    tie = binary("ge", unary("abs", sub(x, whole)), 0.5)
    return select(tie, add(whole, unary("sign", x)), whole)


def remainder(x: Value, y: Value) -> Value:
    """What is left of x after y is taken away as often as it fits, with x's sign.

    Of floats by way of float64, which is exact for float32 and less while x/y is below 2**28."""
    if DTYPES[x.dtype].kind != "float":
        return sub(x, mul(divide(x, y), y))
    wide, by = cast(x, "f64"), cast(y, "f64")
    times = trunc(divide(wide, by))
    rest = select(binary("eq", times, 0), wide, sub(wide, mul(times, by)))
    return cast(rest, x.dtype)


def round_even(x: Value) -> Value:
    """To the nearest integer, ties to even."""
    return unary("round", x)


def integer_power(x: Value, exponent: int) -> Value:
    """x to an integer power by repeated squaring; negative powers are the reciprocal."""
    if exponent < 0:
        one = full_like(x, 1)
        return divide(one, integer_power(x, -exponent))
    out, square = None, x
    while exponent:
        if exponent & 1:
            out = square if out is None else mul(out, square)
        exponent >>= 1
        if exponent:
            square = mul(square, square)
    return full_like(x, 1) if out is None else out


def power(x: Value, y: Value) -> Value:
    """x to the power y; small constant exponents become multiplications and square roots."""
    exponent = uniform_of(y)
    if exponent is not None and float(exponent).is_integer() and abs(exponent) <= 16:
        return broadcast_to(integer_power(x, int(exponent)), common_shape(x, y))
    if exponent in (0.5, -0.5):
        root = unary("sqrt" if exponent == 0.5 else "rsqrt", x)
        return broadcast_to(root, common_shape(x, y))
    return binary("pow", x, cast(y, x.dtype))


declare(trunc, in_jax("jax.numpy.trunc"), one_tensor)
declare(round_even, in_jax("jax.numpy.round"), one_tensor)
declare(round_away, in_jax("jax.lax.round"), one_tensor)
declare(
    integer_power,
    lambda x, exponent: in_jax("jax.lax.integer_pow")(x, exponent),
    lambda c: one_tensor(c, exponent=c.integer(-3, 6)),
)


# --- reductions -----------------------------------------------------------------------------------


def mean(x: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
    count = math.prod(x.shape[d] for d in axes)
    return divide(reduce("sum", x, axes, keepdims), count)


def softmax(x: Value, axis: int) -> Value:
    e = unary("exp", sub(x, reduce("max", x, (axis,), True)))
    return divide(e, reduce("sum", e, (axis,), True))


def log_softmax(x: Value, axis: int) -> Value:
    shifted = sub(x, reduce("max", x, (axis,), True))
    return sub(shifted, unary("log", reduce("sum", unary("exp", shifted), (axis,), True)))


def arg_best(x: Value, kind: str, axis: int, last: bool = False) -> Value:
    """i32 position of the first (or last) maximum or minimum (`kind`) along an axis, which disappears. NaN is both."""
    axis = axis_in(axis, x.type.rank)
    x = cast(x, "u8") if x.dtype == "bool" else x
    best = reduce(kind, x, (axis,), True)
    n = x.shape[axis]
    ramp = broadcast(index_ramp(x.builder, n, "i32"), x.shape, (axis,))
    none = full_like(ramp, -1 if last else n)
    hit = binary("eq", x, best)
    if DTYPES[x.dtype].kind == "float":  # `best` is NaN if any element is
        hit = binary("or", hit, binary("ne", x, x))
    return reduce("max" if last else "min", select(hit, ramp, none), (axis,))


def cumulative(x: Value, kind: str, axis: int, reverse: bool = False) -> Value:
    """Running sum, product, maximum or minimum: as a window (quadratic in the extent)."""
    axis = axis_in(axis, x.type.rank)
    n = x.shape[axis]
    window = tuple(n if d == axis else 1 for d in range(x.type.rank))
    edge = (0, n - 1) if reverse else (n - 1, 0)
    ones = (1,) * x.type.rank
    padding = tuple(edge if d == axis else (0, 0) for d in range(x.type.rank))
    return x.builder.op("window", x, kind=kind, window=window, strides=ones, padding=padding, dilation=ones)


def layer_norm(x: Value, scale: Value, shift: Value | None, axis: int, epsilon: float) -> Value:
    """Zero mean and unit variance over the axes from `axis` on, then scale and shift (broadcast)."""
    axes = tuple(range(axis_in(axis, x.type.rank), x.type.rank))
    centred = sub(x, mean(x, axes, True))
    variance = mean(mul(centred, centred), axes, True)
    out = mul(mul(centred, unary("rsqrt", add(variance, epsilon))), scale)
    return out if shift is None else add(out, shift)


def batch_norm(x: Value, scale: Value, shift: Value, mean: Value, variance: Value, epsilon: float) -> Value:
    """Inference: `x * broadcast(scale') + broadcast(shift')`; both are computed on vectors (axis 1)."""
    factor = mul(scale, unary("rsqrt", add(variance, epsilon)))
    offset = sub(shift, mul(mean, factor))
    return add(mul(x, broadcast(factor, x.shape, (1,))), broadcast(offset, x.shape, (1,)))


def _layer_norm_jax(x: Any, scale: Any, shift: Any, axis: int, epsilon: float) -> Any:
    import jax.numpy as jnp

    axes = tuple(range(axis % x.ndim, x.ndim))
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + epsilon) * scale + shift


def _batch_norm_jax(x: Any, scale: Any, shift: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    import jax.numpy as jnp

    s, b, m, v = (p.reshape((-1,) + (1,) * (x.ndim - 2)) for p in (scale, shift, mean, jnp.abs(variance)))
    return (x - m) / jnp.sqrt(v + epsilon) * s + b


def _batch_norm_positive(
    x: Value, scale: Value, shift: Value, mean: Value, variance: Value, epsilon: float
) -> Value:
    """`batch_norm` of |variance|, for samplers that cannot ask for positive operands."""
    return batch_norm(x, scale, shift, mean, unary("abs", variance), epsilon)


def _cumulative_jax(x: Any, kind: str, axis: int, reverse: bool) -> Any:
    import jax.lax

    names = {"sum": "cumsum", "prod": "cumprod", "max": "cummax", "min": "cummin"}
    return getattr(jax.lax, names[kind])(x, axis % x.ndim, reverse)


declare(
    mean,
    lambda x, axes, keepdims: x.mean(axes, keepdims=keepdims),
    lambda c: (
        [TensorType((2, 3, 4))],
        {"axes": c.pick(((0,), (1, 2), (0, 1, 2))), "keepdims": c.pick((False, True))},
    ),
)
declare(softmax, in_jax("jax.nn.softmax"), along_axis)
declare(log_softmax, in_jax("jax.nn.log_softmax"), along_axis)
declare(
    arg_best,
    lambda x, kind, axis: in_jax(f"jax.numpy.arg{kind}")(x, axis).astype("int32"),
    lambda c: ([TensorType((3, 4))], {"kind": c.pick(("max", "min")), "axis": c.integer(-2, 1)}),
)
declare(
    cumulative,
    _cumulative_jax,
    lambda c: (
        [TensorType((3, 4))],
        {
            "kind": c.pick(("sum", "prod", "max", "min")),
            "axis": c.integer(0, 1),
            "reverse": c.pick((False, True)),
        },
    ),
)
declare(
    layer_norm,
    _layer_norm_jax,
    lambda c: (
        [TensorType((2, 3, 4)), *[TensorType((3, 4) if (deep := c.integer(0, 1)) else (4,))] * 2],
        {"axis": -2 if deep else -1, "epsilon": 1e-5},
    ),
)
COMPOSITES["batch_norm"] = Composite(
    "batch_norm",
    _batch_norm_positive,
    _batch_norm_jax,
    lambda c: ([TensorType(c.pick(((2, 3, 4, 4), (1, 3, 5)))), *[TensorType((3,))] * 4], {"epsilon": 1e-3}),
)


# --- contractions ---------------------------------------------------------------------------------


def matmul(x: Value, y: Value) -> Value:
    """NumPy's `x @ y`: (..., m, k) by (..., k, n) with broadcast leading axes; vectors lose their axis."""
    require(x.type.rank > 0 and y.type.rank > 0, "matmul takes no scalars; multiply instead")
    if y.type.rank == 1:
        return dot(x, y, ((x.type.rank - 1,), (0,)))
    if x.type.rank == 1:
        out = matmul(reshape(x, (1, *x.shape)), y)
        return reshape(out, (*out.shape[:-2], out.shape[-1]))
    if all(n == 1 for n in y.shape[:-2]):
        out = dot(x, reshape(y, y.shape[-2:]), ((x.type.rank - 1,), (0,)))
        lead = max(y.type.rank - x.type.rank, 0)
        return reshape(out, (1,) * lead + out.shape)
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    n = len(lead)
    a = _with_batch(x, lead)
    b = _with_batch(y, lead)
    return dot(a, b, ((n + 1,), (n,)), (tuple(range(n)), tuple(range(n))))


def _with_batch(x: Value, lead: tuple[int, ...]) -> Value:
    shape = (*lead, *x.shape[-2:])
    return broadcast(x, shape, range(len(shape) - x.type.rank, len(shape)))


def gemm(
    x: Value,
    y: Value,
    bias: Value | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transpose_x: bool = False,
    transpose_y: bool = False,
) -> Value:
    """alpha x y + beta bias on matrices, each transposed if asked for; the bias broadcasts."""
    out = dot(x, y, ((0 if transpose_x else 1,), (1 if transpose_y else 0,)))
    out = out if alpha == 1 else mul(out, alpha)
    if bias is None or beta == 0:
        return out
    return add(out, bias if beta == 1 else mul(bias, beta))


def einsum(equation: str, *operands: Value) -> Value:
    """Einstein's sum (`numpy.einsum`): operands are multiplied from left to right, each product a `dot`.

    Raises `TypeRuleError` for an equation that does not fit the operands.
    """
    terms, result = _equation(equation, [v.type.rank for v in operands])
    parts = [_diagonal(v, t) for v, t in zip(operands, terms, strict=True)]
    (value, have), rest = parts[0], parts[1:]
    for k, (other, theirs) in enumerate(rest):
        wanted = {*result, *(label for _, later in rest[k + 1 :] for label in later)}
        value, have = _product(value, have, other, theirs, wanted)
    gone = [d for d, label in enumerate(have) if label not in result]
    value, have = reduce("sum", value, gone) if gone else value, [label for label in have if label in result]
    require(sorted(have) == sorted(result), f"{equation}: the result names an index that no operand has")
    return transpose(value, [have.index(label) for label in result])


def _equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of operands and result; `...` becomes digits, counted from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    require(len(terms) == len(ranks), f"{equation!r} is for {len(terms)} operands, {len(ranks)} given")
    spare = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)]
    digits = "9876543210"
    filled = [t.replace("...", digits[10 - n :]) if "..." in t else t for t, n in zip(terms, spare, strict=True)]
    most = max((n for t, n in zip(terms, spare, strict=True) if "..." in t), default=0)
    if not arrow:
        letters = "".join(filled)
        right = "..." * bool(most) + "".join(sorted(s for s in set(letters) if s.isalpha() and letters.count(s) == 1))
    for t, r in zip(filled, ranks, strict=True):
        require(len(t) == r, f"{equation!r} does not fit operands of ranks {tuple(ranks)}")
    return filled, right.replace("...", digits[10 - most :])


def _diagonal(x: Value, labels: str) -> tuple[Value, list[str]]:
    """The operand with each label once: of a repeated one, the diagonal (by a mask, summed)."""
    have = list(labels)
    for label in dict.fromkeys(labels):
        while have.count(label) > 1:
            p, q = [d for d, name in enumerate(have) if name == label][:2]
            n = x.shape[p]
            require(x.shape[q] == n, f"index {label!r} names axes of extents {n} and {x.shape[q]}")
            mask = broadcast(x.builder.constant(np.eye(n, dtype=bool)), x.shape, (p, q))
            x = reduce("sum", select(mask, x, full_like(x, 0)), (q,))
            have.pop(q)
    return x, have


def _product(x: Value, mine: list[str], y: Value, theirs: list[str], wanted: set[str]) -> tuple[Value, list[str]]:
    """Two operands multiplied; their shared indices that nobody wants are summed."""
    summed = [s for s in mine if s in theirs and s not in wanted]
    batch = [s for s in mine if s in theirs and s in wanted]
    x, y = (_squeezed(v, h, o, w) for v, h, o, w in ((x, mine, theirs, y), (y, theirs, mine, x)))
    pairs = [tuple(tuple(h.index(s) for s in group) for h in (mine, theirs)) for group in (summed, batch)]
    out = dot(x, y, pairs[0], pairs[1])
    rest = [s for s in mine if s not in theirs] + [s for s in theirs if s not in mine]
    return out, [*batch, *rest]


def _squeezed(x: Value, mine: list[str], theirs: list[str], other: Value) -> Value:
    """Axes of extent 1 under an index that is longer in the other operand are repeated."""
    sizes = dict(zip(theirs, other.shape, strict=True))
    return broadcast_to(x, [max(n, sizes.get(s, n)) if n == 1 else n for s, n in zip(mine, x.shape, strict=True)])


def bias_add(x: Value, bias: Value) -> Value:
    """A vector added along axis 1 (channels)."""
    return add(x, broadcast(bias, x.shape, (1,)))


def conv(
    x: Value,
    w: Value,
    strides: Sequence[int],
    padding: Pairs,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Value:
    """Cross-correlation of N,C,spatial by O,I,kernel."""
    ones = (1,) * len(strides)
    return x.builder.op(
        "conv",
        x,
        w,
        strides=tuple(strides),
        padding=tuple(tuple(p) for p in padding),
        lhs_dilation=tuple(lhs_dilation or ones),
        rhs_dilation=tuple(rhs_dilation or ones),
        groups=groups,
    )


def split(x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
    """Consecutive parts of the given sizes along an axis. Raises `TypeRuleError` if they do not add up."""
    axis = axis_in(axis, x.type.rank)
    require(sum(sizes) == x.shape[axis], f"sizes {tuple(sizes)} do not add up to axis {axis} of {x.type}")
    parts, begin = [], 0
    for n in sizes:
        start = [begin if d == axis else 0 for d in range(x.type.rank)]
        limit = [begin + n if d == axis else m for d, m in enumerate(x.shape)]
        parts.append(slice_(x, start, limit))
        begin += n
    return parts


def tile(x: Value, times: Sequence[int]) -> Value:
    """The tensor repeated along each axis (`numpy.tile` with one number an axis)."""
    pairs = [n for pair in zip(times, x.shape, strict=True) for n in pair]
    spread = broadcast(x, pairs, range(1, 2 * x.type.rank, 2))
    return reshape(spread, [t * n for t, n in zip(times, x.shape, strict=True)])


def take(x: Value, indices: np.ndarray, axis: int) -> Value:
    """Elements at constant positions along an axis, which the axes of `indices` replace (`numpy.take`)."""
    axis = axis_in(axis, x.type.rank)
    where = indices.reshape(-1).astype(int)
    require(bool(((where >= -x.shape[axis]) & (where < x.shape[axis])).all()), "an index is out of range")
    parts = []
    for begin, count, step in runs([int(w) % x.shape[axis] for w in where]):
        start = [begin if d == axis else 0 for d in range(x.type.rank)]
        limit = [begin + (count - 1) * step + 1 if d == axis else n for d, n in enumerate(x.shape)]
        parts.append(slice_(x, start, limit, [step if d == axis else 1 for d in range(x.type.rank)]))
    out = (
        concat(parts, axis)
        if parts
        else slice_(x, [0] * x.type.rank, [0 if d == axis else n for d, n in enumerate(x.shape)])
    )
    return reshape(out, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def runs(positions: list[int]) -> list[tuple[int, int, int]]:
    """Positions as (begin, count, step) arithmetic progressions with step > 0."""
    out: list[tuple[int, int, int]] = []
    for p in positions:
        if out:
            begin, count, step = out[-1]
            gap = p - (begin + (count - 1) * step)
            if gap > 0 and (count == 1 or gap == step):
                out[-1] = (begin, count + 1, gap)
                continue
        out.append((p, 1, 1))
    return out


def _matmul_sample(c: Chooser) -> Sample:
    shapes = (
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (4,)),
        ((4,), (2, 4, 3)),
        ((3, 4), (1, 1, 4, 2)),
    )
    return [TensorType(s) for s in c.pick(shapes)], {}


def _gemm_jax(
    x: Any, y: Any, bias: Any, alpha: float, beta: float, transpose_x: bool, transpose_y: bool
) -> Any:
    return alpha * ((x.T if transpose_x else x) @ (y.T if transpose_y else y)) + beta * bias


def _gemm_sample(c: Chooser) -> Sample:
    tx, ty = bool(c.integer(0, 1)), bool(c.integer(0, 1))
    bias = c.pick(((), (5,), (1, 5), (3, 1), (3, 5)))
    shapes = ((4, 3) if tx else (3, 4), (5, 4) if ty else (4, 5), bias)
    attrs = {"alpha": c.pick((1.0, 0.5)), "beta": c.pick((1.0, 2.0)), "transpose_x": tx, "transpose_y": ty}
    return [TensorType(s) for s in shapes], attrs


def _einsum_sample(c: Chooser) -> Sample:
    equation, *shapes = c.pick(
        (
            ("ij->ji", (3, 4)),
            ("ij->i", (3, 4)),
            ("bii->bi", (2, 3, 3)),
            ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
            ("i,i", (4,), (4,)),
            ("...ij,jk->...ik", (2, 3, 4), (4, 5)),
            ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
            ("ij,ij->ij", (2, 3), (2, 3)),
        )
    )
    return [TensorType(s) for s in shapes], {"equation": equation}


def einsum_of(*operands: Value, equation: str) -> Value:
    """`einsum` with the equation as an attribute."""
    return einsum(equation, *operands)


declare(einsum_of, lambda *x, equation: in_jax("jax.numpy.einsum")(equation, *x), _einsum_sample)
declare(matmul, in_jax("jax.numpy.matmul"), _matmul_sample)
declare(gemm, _gemm_jax, _gemm_sample)
declare(
    bias_add,
    lambda x, b: x + b.reshape((-1,) + (1,) * (x.ndim - 2)),
    lambda c: ([TensorType((2, 3, *(4,) * c.integer(0, 2))), TensorType((3,))], {}),
)
