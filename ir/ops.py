"""The operator table: every primitive operator of graph programs, each declared once.

Elementwise operators are derived from `scalars.py`; the rest are one `declare(Operator(...))` each: type rule, tensor
expression, JAX reference, sampler, in adjacent lines. Convolutions are NC(spatial) with OI(kernel) weights; other
layouts are written with `transpose`, `pack` and `unpack`, which are operators, so that layout is a matter of rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .attrs import EMPTY, Attrs
from .expr import Const, Operand, Scalar, TensorExpr, cast, reduce, when
from .expr import apply as apply_scalar
from .index import Axis, Index, divisors
from .operator import Chooser, Known, Operator, Reject, Types, declare, require
from .scalars import COMBINERS, SCALARS, ScalarFn, neutral
from .types import DTYPES, TensorType

# --- helpers of samplers ---------------------------------------------------------------------------------------------


def some_shape(c: Chooser, lo_rank: int = 0, hi_rank: int = 4, hi: int = 6) -> tuple[int, ...]:
    return tuple(c.integer(1, hi) for _ in range(c.integer(lo_rank, hi_rank)))


def _input(c: Chooser, known: TensorType | None, lo_rank: int = 0, hi_rank: int = 4, hi: int = 6) -> TensorType:
    t = known or TensorType(some_shape(c, lo_rank, hi_rank, hi))
    if not lo_rank <= t.rank <= max(hi_rank, lo_rank):
        raise Reject
    return t


def _permutation(c: Chooser, n: int) -> tuple[int, ...]:
    rest, out = list(range(n)), []
    while rest:
        out.append(rest.pop(c.integer(0, len(rest) - 1)))
    return tuple(out)


# --- elementwise -----------------------------------------------------------------------------------------------------


def _elementwise(row: ScalarFn) -> Operator:
    def infer(types: Types, a: Attrs) -> TensorType:
        require(len({t.shape for t in types}) == 1, "operands must have one shape; broadcast first")
        return TensorType(types[0].shape, row.dtype(tuple(t.dtype for t in types)))

    def expr(types: Types, a: Attrs) -> TensorExpr:
        def body(*x: Operand) -> Callable[..., Scalar]:
            return lambda *i: apply_scalar(row.name, *(o[i] for o in x))

        return TensorExpr.build(types, types[0].shape, body)

    def sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
        given = next((t for t in (*known, out) if t is not None), None)
        shape = given.shape if given else some_shape(c)
        free = next(d for d, kind in (("f32", "float"), ("bool", "bool"), ("i32", "int")) if kind in row.kinds)
        dtypes = ["bool" if row.name == "select" and k == 0 else free for k in range(row.arity)]
        return [t or TensorType(shape, d) for t, d in zip(known, dtypes, strict=True)], EMPTY

    doc, steps = f"{row.name} of each element", (lambda a: True) if row.steps else None
    return Operator(row.name, (), row.arity, infer, expr, row.jax, sample, doc, "elementwise", steps=steps)


for _row in SCALARS.values():
    declare(_elementwise(_row))


def _cast_reference(x: Any, dtype: str) -> Any:
    return x.astype(DTYPES[dtype].numpy_name)


def _cast_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    shape = out.shape if out else some_shape(c)
    return [known[0] or TensorType(shape, c.pick(("f32", "i8")))], Attrs(dtype=out.dtype if out else "f32")


declare(
    Operator(
        "cast",
        ("dtype",),
        1,
        infer=lambda t, a: t[0].with_dtype(a.dtype),
        expr=lambda t, a: TensorExpr.build(t, t[0].shape, lambda x: lambda *i: cast(x[i], a.dtype)),
        reference=_cast_reference,
        sample=_cast_sample,
        doc="conversion of the element type; float to integer truncates",
        family="elementwise",
        inlining="conversion",
        folds=False,
        steps=lambda a: DTYPES[a.dtype].kind != "float",
    )
)

# --- movement: each output element is one input element (or padding) -----------------------------------------------


def _movement(
    name: str, attrs: tuple[str, ...], infer: Any, read: Any, reference: Any, sample: Any, doc: str, **traits: Any
) -> None:
    """Declare an operator `out[i] = x[read(x, attrs, *i)]`; `traits` as in `Operator`."""

    def expr(t: Types, a: Attrs) -> TensorExpr:
        return TensorExpr.build(t, infer(t, a).shape, lambda x: lambda *i: x[tuple(read(t[0], a, *i))])

    declare(Operator(name, attrs, 1, infer, expr, reference, sample, doc, "movement", **traits))


def _broadcast_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(len(a.dims) == x.rank, f"dims {a.dims} must name one output axis for each of the {x.rank} input axes")
    require(all(0 <= d < len(a.shape) for d in a.dims), f"dims {a.dims} exceed the rank of {a.shape}")
    require(list(a.dims) == sorted(set(a.dims)), f"dims {a.dims} must increase")
    require(all(n in (1, a.shape[d]) for n, d in zip(x.shape, a.dims, strict=True)), f"{x} does not fit {a.shape}")
    return x.with_shape(a.shape)


def _broadcast_read(x: TensorType, a: Attrs, *i: Index) -> list[Index]:
    return [Index() if n == 1 else i[d] for n, d in zip(x.shape, a.dims, strict=True)]


def _broadcast_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0]
    shape = out.shape if out else some_shape(c, lo_rank=max(1, x.rank if x else 0))
    if x is None:
        dims = tuple(d for d in range(len(shape)) if c.integer(0, 1))
        x = TensorType(tuple(shape[d] if c.integer(0, 4) else 1 for d in dims), out.dtype if out else "f32")
    else:
        dims, d = (), 0
        for n in x.shape:
            options = [k for k in range(d, len(shape)) if not out or n in (1, shape[k])]
            if not options:
                raise Reject
            dims += (c.pick(options),)
            d = dims[-1] + 1
        if out is None:
            shape = tuple(x.shape[dims.index(k)] if k in dims else n for k, n in enumerate(shape))
    return [x], Attrs(shape=shape, dims=dims)


def _broadcast_reference(x: Any, shape: Any, dims: Any) -> Any:
    import jax.lax

    return jax.lax.broadcast_in_dim(x, shape, dims)


_movement(
    "broadcast",
    ("shape", "dims"),
    _broadcast_type,
    _broadcast_read,
    _broadcast_reference,
    _broadcast_sample,
    "input axis k becomes output axis dims[k] (repeated if of extent 1); the other output axes repeat",
    inlining="always",
    folds=False,
)


def _unflatten(flat: Index, shape: Sequence[int]) -> list[Index]:
    out: list[Index] = []
    for n in reversed(shape):
        out.append(flat % n if n > 1 else Index())
        flat = flat // max(n, 1)
    return out[::-1]


def _reshape_read(x: TensorType, a: Attrs, *i: Index) -> list[Index]:
    strides = TensorType(a.shape).strides
    flat = Index()
    for index, stride in zip(i, strides, strict=True):
        flat = flat + index * stride
    return _unflatten(flat, x.shape)


def _reshape_type(t: Types, a: Attrs) -> TensorType:
    require(TensorType(a.shape).size == t[0].size, f"{t[0]} has {t[0].size} elements, shape {a.shape} another number")
    return t[0].with_shape(a.shape)


def _reshape_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    def regroup(shape: tuple[int, ...]) -> tuple[int, ...]:
        factors = [p for n in shape for p in _prime_factors(n)]
        factors = [factors[k] for k in _permutation(c, len(factors))]
        groups: list[int] = []
        for f in factors:
            if groups and c.integer(0, 1):
                groups[-1] *= f
            else:
                groups.append(f)
        return tuple(groups)

    x = known[0] or TensorType(regroup(out.shape) if out else some_shape(c))
    return [x], Attrs(shape=out.shape if out else regroup(x.shape))


def _prime_factors(n: int) -> list[int]:
    out, p = [], 2
    while n > 1:
        while n % p == 0:
            out.append(p)
            n //= p
        p += 1
    return out


_movement(
    "reshape",
    ("shape",),
    _reshape_type,
    _reshape_read,
    lambda x, shape: x.reshape(shape),
    _reshape_sample,
    "the same elements in row-major order under another shape",
    folds=False,
)


def _transpose_type(t: Types, a: Attrs) -> TensorType:
    require(sorted(a.perm) == list(range(t[0].rank)), f"perm {a.perm} is no permutation of the axes")
    return t[0].with_shape(tuple(t[0].shape[p] for p in a.perm))


def _transpose_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    if known[0] is None and out is not None:
        perm = _permutation(c, out.rank)
        shape = [0] * out.rank
        for d, p in enumerate(perm):
            shape[p] = out.shape[d]
        return [out.with_shape(tuple(shape))], Attrs(perm=perm)
    x = _input(c, known[0])
    return [x], Attrs(perm=_permutation(c, x.rank))


_movement(
    "transpose",
    ("perm",),
    _transpose_type,
    lambda x, a, *i: [i[a.perm.index(d)] for d in range(x.rank)],
    lambda x, perm: x.transpose(perm),
    _transpose_sample,
    "output axis d is input axis perm[d]",
    folds=False,
)


def _slice_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(len(a.start) == len(a.limit) == len(a.strides) == x.rank, "start, limit and strides need one entry an axis")
    bounds = zip(a.start, a.limit, a.strides, x.shape, strict=True)
    require(all(0 <= s <= e <= n and k > 0 for s, e, k, n in bounds), "0 <= start <= limit <= extent, stride > 0")
    return x.with_shape(tuple(-(-(e - s) // k) for s, e, k in zip(a.start, a.limit, a.strides, strict=True)))


def _slice_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0])
    start = tuple(c.integer(0, n - 1) for n in x.shape)
    limit = tuple(c.integer(s + 1, n) for s, n in zip(start, x.shape, strict=True))
    return [x], Attrs(start=start, limit=limit, strides=tuple(c.integer(1, 3) for _ in x.shape))


def _slice_reference(x: Any, start: Any, limit: Any, strides: Any) -> Any:
    import jax.lax

    return jax.lax.slice(x, start, limit, strides)


_movement(
    "slice",
    ("start", "limit", "strides"),
    _slice_type,
    lambda x, a, *i: [k * s + b for k, s, b in zip(i, a.strides, a.start, strict=True)],
    _slice_reference,
    _slice_sample,
    "elements start, start + stride, … below limit of each axis",
)


def _reverse_reference(x: Any, dims: Any) -> Any:
    import jax.lax

    return jax.lax.rev(x, dims)


def _reverse_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0] or out)
    return [x], Attrs(dims=tuple(d for d in range(x.rank) if c.integer(0, 1)))


def _reverse_type(t: Types, a: Attrs) -> TensorType:
    require(all(0 <= d < t[0].rank for d in a.dims), f"dims {a.dims} exceed the rank of {t[0]}")
    return t[0]


_movement(
    "reverse",
    ("dims",),
    _reverse_type,
    lambda x, a, *i: [Index.of(x.shape[d] - 1) - k if d in a.dims else k for d, k in enumerate(i)],
    _reverse_reference,
    _reverse_sample,
    "the named axes in opposite order",
    folds=False,
)


def _pack_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(0 <= a.axis < x.rank, f"axis {a.axis} exceeds the rank of {x}")
    require(a.factor > 0 and x.shape[a.axis] % a.factor == 0, f"factor {a.factor} must divide axis {a.axis} of {x}")
    return x.with_shape((*x.shape[: a.axis], x.shape[a.axis] // a.factor, *x.shape[a.axis + 1 :], a.factor))


def _pack_read(x: TensorType, a: Attrs, *i: Index) -> list[Index]:
    return [k * a.factor + i[-1] if d == a.axis else k for d, k in enumerate(i[:-1])]


def _pack_reference(x: Any, axis: int, factor: int) -> Any:
    split = x.reshape((*x.shape[:axis], x.shape[axis] // factor, factor, *x.shape[axis + 1 :]))
    return split.transpose([d for d in range(split.ndim) if d != axis + 1] + [axis + 1])


def _pack_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0], lo_rank=1)
    axis = c.integer(0, x.rank - 1)
    return [x], Attrs(axis=axis, factor=c.pick(divisors(x.shape[axis])))


_movement(
    "pack",
    ("axis", "factor"),
    _pack_type,
    _pack_read,
    _pack_reference,
    _pack_sample,
    "axis of extent n becomes n/factor in place, and factor as a new innermost axis (NCHW -> NCHW[factor]c)",
    inlining="stored",
)


def _unpack_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(x.rank >= 2 and 0 <= a.axis < x.rank - 1, f"axis {a.axis} must be an axis of {x} other than the last")
    shape = list(x.shape[:-1])
    shape[a.axis] *= x.shape[-1]
    return x.with_shape(tuple(shape))


def _unpack_read(x: TensorType, a: Attrs, *i: Index) -> list[Index]:
    f = x.shape[-1]
    return [k // f if d == a.axis else k for d, k in enumerate(i)] + [i[a.axis] % f]


def _unpack_reference(x: Any, axis: int) -> Any:
    order = list(range(x.ndim - 1))
    order.insert(axis + 1, x.ndim - 1)
    shape = list(x.shape[:-1])
    shape[axis] *= x.shape[-1]
    return x.transpose(order).reshape(shape)


def _unpack_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0], lo_rank=2)
    return [x], Attrs(axis=c.integer(0, x.rank - 2))


_movement(
    "unpack",
    ("axis",),
    _unpack_type,
    _unpack_read,
    _unpack_reference,
    _unpack_sample,
    "inverse of pack: the innermost axis joins `axis`",
    inlining="blocks",
    folds=False,
)


def _depth_to_space_type(t: Types, a: Attrs) -> TensorType:
    x, s = t[0], a.scale
    require(x.rank == 4, f"{x} is no image (batch, channels, rows, columns)")
    require(s > 0 and x.shape[1] % (s * s) == 0, f"scale {s}: its square must divide the channels of {x}")
    return x.with_shape((x.shape[0], x.shape[1] // (s * s), x.shape[2] * s, x.shape[3] * s))


def _depth_to_space_read(x: TensorType, a: Attrs, *i: Index) -> list[Index]:
    n, channel, row, column = i
    s, out = a.scale, x.shape[1] // (a.scale * a.scale)
    phase = (row % s) * s + column % s
    return [n, phase * out + channel, row // s, column // s]


def _depth_to_space_reference(x: Any, scale: int) -> Any:
    n, c, h, w = x.shape
    parts = x.reshape(n, scale, scale, c // scale**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // scale**2, h * scale, w * scale)


def _depth_to_space_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    if known[0] is not None:
        x = known[0]
        scales = [s for s in (1, 2, 3) if x.rank == 4 and x.shape[1] % (s * s) == 0]
        if not scales:
            raise Reject
        return [x], Attrs(scale=c.pick(scales))
    scale = c.integer(1, 3)
    shape = (c.integer(1, 2), c.integer(1, 2) * scale**2, c.integer(1, 3), c.integer(1, 3))
    return [TensorType(shape, out.dtype if out else "f32")], Attrs(scale=scale)


_movement(
    "depth_to_space",
    ("scale",),
    _depth_to_space_type,
    _depth_to_space_read,
    _depth_to_space_reference,
    _depth_to_space_sample,
    "groups of channels as the pixels of squares of scale x scale (ONNX' mode DCR); whoever reads it reads the image",
    inlining="stored",
)

# --- padding and concatenation -------------------------------------------------------------------------------------


def _pad_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(len(a.low) == len(a.high) == len(a.interior) == x.rank, "low, high and interior need one entry an axis")
    shape = tuple(
        lo + n + max(n - 1, 0) * k + hi for lo, n, k, hi in zip(a.low, x.shape, a.interior, a.high, strict=True)
    )
    require(min((*a.interior, 0)) >= 0 and min((*shape, 0)) >= 0, "padding removes more than there is")
    return x.with_shape(shape)


def _pad_expr(t: Types, a: Attrs) -> TensorExpr:
    x_type = t[0]

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            where = [k - lo for k, lo in zip(i, a.low, strict=True)]
            source = [k // (gap + 1) for k, gap in zip(where, a.interior, strict=True)]
            bounds = [(k, 0, n) for k, n in zip(source, x_type.shape, strict=True)]
            bounds += [(k % (gap + 1), 0, 1) for k, gap in zip(where, a.interior, strict=True) if gap]
            return when(bounds, x[tuple(source)], _const(a.value, x_type.dtype))

        return at

    return TensorExpr.build(t, _pad_type(t, a).shape, body)


def _const(value: float, dtype: str) -> Const:
    kind = DTYPES[dtype].kind
    return Const(bool(value) if kind == "bool" else float(value) if kind == "float" else int(value), dtype)


def _pad_reference(x: Any, low: Any, high: Any, interior: Any, value: float) -> Any:
    import jax.lax
    import jax.numpy as jnp

    return jax.lax.pad(x, jnp.asarray(value, x.dtype), list(zip(low, high, interior, strict=True)))


def _pad_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0])
    interior = tuple(c.integer(0, 2) if c.integer(0, 2) == 2 else 0 for _ in x.shape)
    high = tuple(c.integer(-1, 2) if n > 1 else c.integer(0, 2) for n in x.shape)
    return [x], Attrs(
        low=tuple(c.integer(0, 2) for _ in x.shape), high=high, interior=interior, value=float(c.integer(-1, 1))
    )


declare(
    Operator(
        "pad",
        ("low", "high", "interior", "value"),
        1,
        _pad_type,
        _pad_expr,
        _pad_reference,
        _pad_sample,
        "low and high (negative: removed) elements of `value` around, and `interior` between neighbours",
        "movement",
    )
)


def _concat_type(t: Types, a: Attrs) -> TensorType:
    require(0 < len(t) and all(0 <= a.axis < x.rank for x in t), f"axis {a.axis} exceeds the rank")
    rest = {(x.dtype, x.shape[: a.axis], x.shape[a.axis + 1 :]) for x in t}
    require(len(rest) == 1, "operands must agree in dtype and in all axes but the joined one")
    shape = list(t[0].shape)
    shape[a.axis] = sum(x.shape[a.axis] for x in t)
    return t[0].with_shape(tuple(shape))


def _concat_expr(t: Types, a: Attrs) -> TensorExpr:
    def body(*x: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            begin = sum(o.type.shape[a.axis] for o in x[:-1])
            shifted = lambda b: tuple(k - b if d == a.axis else k for d, k in enumerate(i))  # noqa: E731
            out = x[-1][shifted(begin)]
            for o in reversed(x[:-1]):
                begin -= o.type.shape[a.axis]
                out = when([(i[a.axis], begin, begin + o.type.shape[a.axis])], o[shifted(begin)], out)
            return out

        return at

    return TensorExpr.build(t, _concat_type(t, a).shape, body)


def _concat_reference(*x: Any, axis: int) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate(x, axis)


def _concat_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    given = next((t for t in known if t is not None), None)
    base = _input(c, given, lo_rank=1)
    axis = c.integer(0, base.rank - 1)

    def sized(n: int) -> TensorType:
        return base.with_shape((*base.shape[:axis], n, *base.shape[axis + 1 :]))

    count = len(known) or c.integer(1, 4)
    slots = list(known) or [None] * count
    return [t or sized(c.integer(1, 5)) for t in slots], Attrs(axis=axis)


declare(
    Operator(
        "concat",
        ("axis",),
        None,
        _concat_type,
        _concat_expr,
        _concat_reference,
        _concat_sample,
        "operands one after the other along an axis",
        "movement",
    )
)

# --- reductions ------------------------------------------------------------------------------------------------------


def _require_kind(kind: str, x: TensorType) -> None:
    require(kind in COMBINERS, f"kind {kind!r} is not one of {', '.join(COMBINERS)}")
    require(x.dtype != "bool" or kind in ("max", "min"), f"{kind} takes no bool operands; cast first")


def _reduce_type(t: Types, a: Attrs) -> TensorType:
    _require_kind(a.kind, t[0])
    require(all(0 <= d < t[0].rank for d in a.axes) and len(set(a.axes)) == len(a.axes), f"axes {a.axes} of {t[0]}")
    return t[0].with_shape(tuple(n for d, n in enumerate(t[0].shape) if d not in a.axes))


def _reduce_expr(t: Types, a: Attrs) -> TensorExpr:
    axes = {d: Axis(f"k{d}", t[0].shape[d]) for d in a.axes}

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            rest = iter(i)
            return reduce(
                a.kind,
                list(axes.values()),
                x[tuple(Index.of(axes[d]) if d in axes else next(rest) for d in range(t[0].rank))],
            )

        return at

    return TensorExpr.build(t, _reduce_type(t, a).shape, body)


def _reduce_reference(x: Any, kind: str, axes: Any) -> Any:
    import jax.numpy as jnp

    return {"sum": jnp.sum, "max": jnp.max, "min": jnp.min, "prod": jnp.prod}[kind](x, axis=axes, dtype=x.dtype) if (
        kind in ("sum", "prod")
    ) else {"max": jnp.max, "min": jnp.min}[kind](x, axis=axes)


def _reduce_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0])
    axes = tuple(d for d in range(x.rank) if c.integer(0, 1))
    return [x], Attrs(kind=c.pick(tuple(COMBINERS)), axes=axes)


declare(
    Operator(
        "reduce",
        ("kind", "axes"),
        1,
        _reduce_type,
        _reduce_expr,
        _reduce_reference,
        _reduce_sample,
        "sum, max, min or prod over the named axes, which disappear",
        "reduction",
    )
)


def _window_extent(n: int, window: int, stride: int, pad: tuple[int, int], dilation: int) -> int:
    return (n + pad[0] + pad[1] - ((window - 1) * dilation + 1)) // stride + 1


def _window_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    _require_kind(a.kind, x)
    lengths = {len(a.window), len(a.strides), len(a.padding), len(a.dilation), x.rank}
    require(len(lengths) == 1, "window, strides, padding and dilation need one entry an axis")
    require(min((*a.window, *a.strides, *a.dilation, 1)) >= 1, "window, strides and dilation are >= 1")
    shape = tuple(map(_window_extent, x.shape, a.window, a.strides, a.padding, a.dilation))
    fits = all(n >= 1 for n, given in zip(shape, x.shape, strict=True) if given)
    require(fits, f"window {a.window} exceeds the padded input {x}")
    return x.with_shape(tuple(max(n, 0) for n in shape))


def _window_expr(t: Types, a: Attrs) -> TensorExpr:
    x_type = t[0]
    axes = [Axis(f"w{d}", n) for d, n in enumerate(a.window)]

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            where = [
                k * s + Index.of(w) * dil - pad[0]
                for k, s, w, dil, pad in zip(i, a.strides, axes, a.dilation, a.padding, strict=True)
            ]
            bounds = [(k, 0, n) for k, n in zip(where, x_type.shape, strict=True)]
            outside = _const(neutral(a.kind, x_type.dtype), x_type.dtype)
            return reduce(a.kind, axes, when(bounds, x[tuple(where)], outside))

        return at

    return TensorExpr.build(t, _window_type(t, a).shape, body)


def _window_reference(x: Any, kind: str, window: Any, strides: Any, padding: Any, dilation: Any) -> Any:
    import jax.lax
    import numpy as np

    from .types import dtype_of

    fn = {"sum": jax.lax.add, "max": jax.lax.max, "min": jax.lax.min, "prod": jax.lax.mul}[kind]
    init = np.asarray(neutral(kind, dtype_of(x)), x.dtype)  # JAX differentiates only what it knows to be neutral
    return jax.lax.reduce_window(x, init, fn, window, strides, padding, window_dilation=dilation)


def _window_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0], lo_rank=1, hi=7)
    window = tuple(c.integer(1, min(3, n)) for n in x.shape)
    padding = tuple((c.integer(0, w - 1), c.integer(0, w - 1)) for w in window)
    dilation = tuple(c.integer(1, 2) if (w - 1) * 2 + 1 <= n else 1 for w, n in zip(window, x.shape, strict=True))
    strides = tuple(c.integer(1, 2) for _ in x.shape)
    kind = c.pick(("sum", "max", "min"))
    return [x], Attrs(kind=kind, window=window, strides=strides, padding=padding, dilation=dilation)


declare(
    Operator(
        "window",
        ("kind", "window", "strides", "padding", "dilation"),
        1,
        _window_type,
        _window_expr,
        _window_reference,
        _window_sample,
        "reduction over a sliding window (pooling); outside the input reads the neutral element",
        "reduction",
    )
)

# --- contractions ----------------------------------------------------------------------------------------------------


def _dot_free(rank: int, contract: Sequence[int], batch: Sequence[int]) -> list[int]:
    return [d for d in range(rank) if d not in contract and d not in batch]


def _dot_type(t: Types, a: Attrs) -> TensorType:
    x, y = t
    (cx, cy), (bx, by) = a.contract, a.batch
    require(x.dtype == y.dtype != "bool", "operands of one dtype other than bool; cast first")
    require(len(cx) == len(cy) and len(bx) == len(by), "contract and batch name axes in pairs")
    for axes, rank in (((*cx, *bx), x.rank), ((*cy, *by), y.rank)):
        distinct = len(set(axes)) == len(axes)
        require(distinct and all(0 <= d < rank for d in axes), f"axes {axes} of a rank-{rank} operand")
    for p, q in (*zip(cx, cy, strict=True), *zip(bx, by, strict=True)):
        require(x.shape[p] == y.shape[q], f"axis {p} of {x} meets axis {q} of {y}: extents differ")
    free = [x.shape[d] for d in _dot_free(x.rank, cx, bx)] + [y.shape[d] for d in _dot_free(y.rank, cy, by)]
    return x.with_shape((*(x.shape[d] for d in bx), *free))


def _dot_expr(t: Types, a: Attrs) -> TensorExpr:
    (cx, cy), (bx, by) = a.contract, a.batch
    fx, fy = _dot_free(t[0].rank, cx, bx), _dot_free(t[1].rank, cy, by)
    axes = [Axis(f"k{d}", t[0].shape[d]) for d in cx]

    def body(x: Operand, y: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            batch, rest_x, rest_y = i[: len(bx)], i[len(bx) : len(bx) + len(fx)], i[len(bx) + len(fx) :]

            def side(rank: int, c: Sequence[int], b: Sequence[int], f: Sequence[int], rest: Sequence[Index]) -> Any:
                where: dict[int, Index] = {d: Index.of(k) for d, k in zip(c, axes, strict=True)}
                where |= dict(zip(b, batch, strict=True)) | dict(zip(f, rest, strict=True))
                return tuple(where[d] for d in range(rank))

            return reduce(
                "sum", axes, x[side(t[0].rank, cx, bx, fx, rest_x)] * y[side(t[1].rank, cy, by, fy, rest_y)]
            )

        return at

    return TensorExpr.build(t, _dot_type(t, a).shape, body)


def _dot_reference(x: Any, y: Any, contract: Any, batch: Any) -> Any:
    import jax.lax

    return jax.lax.dot_general(x, y, (contract, batch), precision="highest", preferred_element_type=x.dtype)


def _dot_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = _input(c, known[0], lo_rank=1)
    used = _permutation(c, x.rank)
    nb = c.integer(0, min(1, x.rank - 1))
    nc = c.integer(1, max(1, min(2, x.rank - nb)))
    if known[1] is None:
        bx, cx = used[:nb], used[nb : nb + nc]
        y_axes = [x.shape[d] for d in (*bx, *cx)] + [c.integer(1, 5) for _ in range(c.integer(0, 2))]
        order = _permutation(c, len(y_axes))
        y = x.with_shape(tuple(y_axes[k] for k in order))
        by = tuple(order.index(k) for k in range(nb))
        cy = tuple(order.index(nb + k) for k in range(nc))
    else:
        y, bx, by = known[1], (), ()
        pairs = [(p, q) for p in range(x.rank) for q in range(y.rank) if x.shape[p] == y.shape[q]]
        if not pairs:
            raise Reject
        p, q = c.pick(pairs)
        cx, cy = (p,), (q,)
    return [x, y], Attrs(contract=(cx, cy), batch=(bx, by))


declare(
    Operator(
        "dot",
        ("contract", "batch"),
        2,
        _dot_type,
        _dot_expr,
        _dot_reference,
        _dot_sample,
        "sum of products over paired axes; result axes: batch, free axes of the left, free axes of the right",
        "contraction",
    )
)


def _conv_type(t: Types, a: Attrs) -> TensorType:
    x, w = t
    n = x.rank - 2
    require(x.rank == w.rank and n >= 1, "input is N,C,spatial and weights are O,I,kernel of the same rank")
    require(x.dtype == w.dtype != "bool", "operands of one dtype other than bool; cast first")
    lengths = {len(a.strides), len(a.padding), len(a.lhs_dilation), len(a.rhs_dilation)}
    require(lengths == {n}, f"strides, padding and dilations need {n} entries")
    require(min((*a.strides, *a.lhs_dilation, *a.rhs_dilation, a.groups)) >= 1, "strides, dilations, groups are >= 1")
    require(x.shape[1] == w.shape[1] * a.groups, f"{x.shape[1]} channels against {w.shape[1]} x {a.groups} groups")
    require(w.shape[0] % a.groups == 0, f"{w.shape[0]} output channels in {a.groups} groups")
    dilated = [(s - 1) * d + 1 for s, d in zip(x.shape[2:], a.lhs_dilation, strict=True)]
    spatial = tuple(map(_window_extent, dilated, w.shape[2:], a.strides, a.padding, a.rhs_dilation))
    require(min(spatial) >= 1, f"kernel {w.shape[2:]} exceeds the padded input {x}")
    return x.with_shape((x.shape[0], w.shape[0], *spatial))


def _conv_expr(t: Types, a: Attrs) -> TensorExpr:
    x_type, w_type = t
    channel = Axis("kc", w_type.shape[1])
    kernel = [Axis(f"k{d}", n) for d, n in enumerate(w_type.shape[2:])]
    per_group = w_type.shape[0] // a.groups

    def body(x: Operand, w: Operand) -> Callable[..., Scalar]:
        def at(n: Index, o: Index, *i: Index) -> Scalar:
            bounds, source = [], []
            dims = zip(
                i, kernel, a.strides, a.padding, a.lhs_dilation, a.rhs_dilation, x_type.shape[2:], strict=True
            )
            for k, r, stride, pad, dilate, spread, extent in dims:
                where = k * stride + Index.of(r) * spread - pad[0]
                bounds.append((where // dilate, 0, extent))
                if dilate > 1:
                    bounds.append((where % dilate, 0, 1))
                source.append(where // dilate)
            c = (o // per_group) * w_type.shape[1] + channel if a.groups > 1 else Index.of(channel)
            value = when(bounds, x[(n, c, *source)], _const(0, x_type.dtype))
            return reduce("sum", [channel, *kernel], value * w[(o, Index.of(channel), *map(Index.of, kernel))])

        return at

    return TensorExpr.build(t, _conv_type(t, a).shape, body)


def _conv_reference(
    x: Any, w: Any, strides: Any, padding: Any, lhs_dilation: Any, rhs_dilation: Any, groups: int
) -> Any:
    import jax.lax

    n = x.ndim
    numbers = jax.lax.ConvDimensionNumbers(tuple(range(n)), tuple(range(n)), tuple(range(n)))
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, lhs_dilation, rhs_dilation, numbers, groups, precision="highest"
    )


def _conv_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x, w = known
    n = (x.rank if x else w.rank if w else 2 + c.integer(1, 2)) - 2
    if n < 1:
        raise Reject
    groups = c.pick((1, 1, 1, 2)) if not (x and w) else 1
    if x is None:
        channels = (w.shape[1] if w else c.integer(1, 3)) * groups
        x = TensorType((c.integer(1, 2), channels, *(c.integer(3, 7) for _ in range(n))))
    if w is None:
        groups = groups if x.shape[1] % groups == 0 else 1
        out_channels = out.shape[1] if out else groups * c.integer(1, 4)
        if out_channels % groups:
            raise Reject
        w = TensorType((out_channels, x.shape[1] // groups, *(c.integer(1, min(3, s)) for s in x.shape[2:])))
    lhs = tuple(c.pick((1, 1, 1, 2)) for _ in range(n))
    rhs = tuple(c.pick((1, 1, 1, 2)) for _ in range(n))
    padding = tuple((c.integer(0, 2), c.integer(0, 2)) for _ in range(n))
    strides = tuple(c.integer(1, 2) for _ in range(n))
    attrs = Attrs(strides=strides, padding=padding, lhs_dilation=lhs, rhs_dilation=rhs, groups=groups)
    return [x, w], attrs


declare(
    Operator(
        "conv",
        ("strides", "padding", "lhs_dilation", "rhs_dilation", "groups"),
        2,
        _conv_type,
        _conv_expr,
        _conv_reference,
        _conv_sample,
        "cross-correlation, NC(spatial) by OI(kernel); lhs_dilation spreads the input (transposed convolution)",
        "contraction",
    )
)

from . import filter_bank, gather, quantization, quarters, tiles  # noqa: E402, F401 (add their operators)
