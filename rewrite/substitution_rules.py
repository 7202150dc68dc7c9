"""Rules that change the shape of a computation: association, distribution, concatenation, parallel operators merged.

They hold in both directions, and saturating with them multiplies a graph (the sums of n terms alone are exponentially
many), so they are a class of their own: `SUBSTITUTIONS` derive what superoptimizers search for (the released rules of
TASO, Jia et al., SOSP 2019: `benchmarks/taso_rules.py`), on graphs of a few operators and under limits. Whole models
take those among them that cannot explode (`graph_rules.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from ..ir.attrs import Attrs
from ..ir.operator import Chooser
from ..ir.types import TensorType
from .linear import is_matmul
from .pattern import Environment, Pattern, Rewrite, op, records, tensors, type_of
from .rule import GraphRule, equation, rule

MATMUL = Attrs(contract=((1,), (0,)), batch=((), ()))

# --- samplers --------------------------------------------------------------------------------------------------------


def _sizes(c: Chooser, count: int) -> list[int]:
    return [c.integer(1, 4) for _ in range(count)]


def _chain(c: Chooser) -> Environment:
    i, j, k, n = _sizes(c, 4)
    return {"a": TensorType((i, j)), "b": TensorType((j, k)), "c": TensorType((k, n)), "d": MATMUL, "e": MATMUL}


def _left_summands(c: Chooser) -> Environment:
    i, j, k = _sizes(c, 3)
    return {"a": TensorType((i, j)), "b": TensorType((i, j)), "c": TensorType((j, k)), "d": MATMUL}


def _right_summands(c: Chooser) -> Environment:
    i, j, k = _sizes(c, 3)
    return {"a": TensorType((i, j)), "b": TensorType((j, k)), "c": TensorType((j, k)), "d": MATMUL}


def _rows(c: Chooser) -> Environment:
    i, h, j, k = _sizes(c, 4)
    return {"a": TensorType((i, j)), "b": TensorType((h, j)), "w": TensorType((j, k)), "d": MATMUL}


def _columns(c: Chooser) -> Environment:
    i, j, k, h = _sizes(c, 4)
    return {"x": TensorType((i, j)), "v": TensorType((j, k)), "w": TensorType((j, h)), "d": MATMUL}


def _inner(c: Chooser) -> Environment:
    i, j, k, h = _sizes(c, 4)
    x, v = TensorType((i, j)), TensorType((j, k))
    return {"x": x, "v": v, "y": TensorType((i, h)), "w": TensorType((h, k)), "d": MATMUL}


def _conv_attrs(groups: int = 1) -> Attrs:
    return Attrs(
        strides=(1, 1), padding=((1, 1), (0, 1)), lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=groups
    )


def _image(c: Chooser, batch: int = 1, channels: int = 2) -> TensorType:
    return TensorType((batch, channels, c.integer(2, 3), 3))


def _conv_images(c: Chooser) -> Environment:
    x, w = _image(c, c.integer(1, 2)), TensorType((c.integer(1, 3), 2, 3, 2))
    return {"x": x, "y": x, "w": w, "c": _conv_attrs()}


def _conv_batches(c: Chooser) -> Environment:
    env = _conv_images(c)
    return {**env, "y": TensorType((c.integer(1, 2), *env["x"].shape[1:]))}


def _conv_weights(c: Chooser) -> Environment:
    w = TensorType((c.integer(1, 3), 2, 3, 2))
    return {"x": _image(c), "v": w, "w": w, "c": _conv_attrs()}


def _conv_outputs(c: Chooser) -> Environment:
    env = _conv_weights(c)
    return {**env, "w": TensorType((c.integer(1, 3), *env["v"].shape[1:]))}


def _conv_channels(c: Chooser) -> Environment:
    x = _image(c)
    y = TensorType((1, c.integer(1, 3), *x.shape[2:]))
    v = TensorType((c.integer(1, 3), 2, 3, 2))
    return {"x": x, "y": y, "v": v, "w": TensorType((v.shape[0], y.shape[1], 3, 2)), "c": _conv_attrs()}


def _conv_groups(c: Chooser) -> Environment:
    x, w = _image(c), TensorType((c.integer(1, 3), 2, 3, 2))
    return {"x": x, "y": x, "v": w, "w": w, "c": _conv_attrs()}


def _pair(c: Chooser) -> Environment:
    """Two tensors that differ along one axis, twice."""
    rank = c.integer(1, 3)
    axis = c.integer(0, rank - 1)
    first = [*_sizes(c, rank)]
    second = [c.integer(1, 4) if k == axis else n for k, n in enumerate(first)]
    a, b = TensorType(tuple(first)), TensorType(tuple(second))
    return {"a": a, "b": a, "c": b, "d": b, "k": Attrs(axis=axis)}


def _four(c: Chooser) -> Environment:
    i, j, h, k = _sizes(c, 4)
    a, b, d, e = (TensorType(s) for s in ((i, j), (i, k), (h, j), (h, k)))
    return {"a": a, "b": b, "c": d, "d": e, "k": Attrs(axis=1), "m": Attrs(axis=0)}


def _along(draw: Callable[[Chooser], Environment], axis: int) -> Callable[[Chooser], Environment]:
    return lambda c: {**draw(c), "k": Attrs(axis=axis)}


# --- sums and products -----------------------------------------------------------------------------------------------


@rule("algebra")
def add_commutes(a, b):
    """a + b -> b + a"""
    return op.add(a, b) >> op.add(b, a)


@rule("algebra")
def multiply_commutes(a, b):
    """a * b -> b * a"""
    return op.mul(a, b) >> op.mul(b, a)


@equation("algebra")
def add_associates(a, b, c):
    """(a + b) + c = a + (b + c)"""
    return op.add(op.add(a, b), c) >> op.add(a, op.add(b, c))


@equation("algebra")
def multiply_associates(a, b, c):
    """(a * b) * c = a * (b * c)"""
    return op.mul(op.mul(a, b), c) >> op.mul(a, op.mul(b, c))


@equation("algebra")
def multiply_distributes(a, b, c):
    """a * (b + c) = a * b + a * c"""
    return op.mul(a, op.add(b, c)) >> op.add(op.mul(a, b), op.mul(a, c))


# --- products of matrices --------------------------------------------------------------------------------------------


def are_matmuls(d: Attrs, e: Attrs, a: TensorType, b: TensorType, c: TensorType) -> bool:
    """a @ b and b @ c, all of two axes."""
    return a.rank == 2 and d == e and is_matmul(d, a, b) and is_matmul(d, b, c)


def is_plain(d: Attrs, x: TensorType, w: TensorType) -> bool:
    """x @ w, both of two axes."""
    return x.rank == 2 and is_matmul(d, x, w)


@equation("algebra", when=are_matmuls, draw=_chain)
def matmul_associates(a, b, c, *, d, e):
    """(a @ b) @ c = a @ (b @ c)"""
    return op.dot(op.dot(a, b, d), c, e) >> op.dot(a, op.dot(b, c, e), d)


@equation("algebra", when=lambda d, a, c: is_plain(d, a, c), draw=_left_summands)
def matmul_distributes_left(a, b, c, *, d):
    """(a + b) @ c = a @ c + b @ c"""
    return op.dot(op.add(a, b), c, d) >> op.add(op.dot(a, c, d), op.dot(b, c, d))


@equation("algebra", when=lambda d, a, b: is_plain(d, a, b), draw=_right_summands)
def matmul_distributes_right(a, b, c, *, d):
    """a @ (b + c) = a @ b + a @ c"""
    return op.dot(a, op.add(b, c), d) >> op.add(op.dot(a, b, d), op.dot(a, c, d))


# --- concatenations --------------------------------------------------------------------------------------------------


@equation("algebra")
def concat_associates(a, b, c, *, k):
    """[[a, b], c] = [a, [b, c]]"""
    return op.concat(op.concat(a, b, k), c, k) >> op.concat(a, op.concat(b, c, k), k)


def is_grid(k: Attrs, m: Attrs, a: TensorType, b: TensorType, c: TensorType, d: TensorType) -> bool:
    """a and b make a row along k, c and d another, and the rows agree where they are cut."""
    return k.axis != m.axis and a.shape[k.axis] == c.shape[k.axis] and a.shape[m.axis] == b.shape[m.axis] and (
        b.shape[k.axis] == d.shape[k.axis] and c.shape[m.axis] == d.shape[m.axis]
    )


@rule("algebra", when=is_grid, draw=_four)
def concat_by_columns(a, b, c, d, *, k, m):
    """Rows of blocks are columns of blocks."""
    rows = op.concat(op.concat(a, b, k), op.concat(c, d, k), m)
    return rows >> op.concat(op.concat(a, c, m), op.concat(b, d, m), k)


@equation("algebra", when=lambda a, b, c, d: a == b and c == d, draw=_pair)
def concat_sums(a, b, c, d, *, k):
    """[a + b, c + d] = [a, c] + [b, d]"""
    return op.concat(op.add(a, b), op.add(c, d), k) >> op.add(op.concat(a, c, k), op.concat(b, d, k))


@equation("algebra", when=lambda a, b, c, d: a == b and c == d, draw=_pair)
def concat_products(a, b, c, d, *, k):
    """[a * b, c * d] = [a, c] * [b, d]"""
    return op.concat(op.mul(a, b), op.mul(c, d), k) >> op.mul(op.concat(a, c, k), op.concat(b, d, k))


@equation("algebra", when=lambda a, b, c, d: a == b and c == d, draw=_pair)
def concat_maxima(a, b, c, d, *, k):
    """[max(a, b), max(c, d)] = max([a, c], [b, d])"""
    return op.concat(op.max(a, b), op.max(c, d), k) >> op.max(op.concat(a, c, k), op.concat(b, d, k))


def _numbers(c: Chooser) -> Environment:
    env = _pair(c)
    p, q = (Attrs(shape=env[n].shape, dims=()) for n in ("a", "c"))
    return {"s": TensorType(()), "p": p, "q": q, "k": env["k"]}


def _joined(p: Attrs, q: Attrs, k: Attrs) -> tuple[int, ...]:
    return tuple(n + q.shape[k.axis] if a == k.axis else n for a, n in enumerate(p.shape))


@rule("algebra", when=lambda s: s.rank == 0, draw=_numbers)
def concat_numbers(s, *, p, q, k):
    """[s, s] -> s, repeated further"""
    wide = op.broadcast(s, shape=_joined, dims=())
    return op.concat(op.broadcast(s, p), op.broadcast(s, q), k) >> wide


def _maximum_of_parts(c: Chooser) -> Environment:
    env = _numbers(c)
    a, b = (TensorType(env[n].shape) for n in ("p", "q"))
    whole = Attrs(shape=_joined(env["p"], env["q"], env["k"]), dims=())
    return {"a": a, "b": b, "s": env["s"], "k": env["k"], "p": whole}


@rule("algebra", when=lambda s: s.rank == 0, draw=_maximum_of_parts)
def maximum_of_parts(a, b, s, *, k, p):
    """max([a, b], s) -> [max(a, s), max(b, s)], s a number"""
    first = op.max(a, op.broadcast(s, shape=lambda a: a.shape, dims=()))
    second = op.max(b, op.broadcast(s, shape=lambda b: b.shape, dims=()))
    return op.max(op.concat(a, b, k), op.broadcast(s, p)) >> op.concat(first, second, k)


@equation("algebra", when=lambda d, a, w, k: is_plain(d, a, w) and k.axis == 0, draw=_along(_rows, 0))
def concat_rows(a, b, w, *, d, k):
    """[a @ w, b @ w] = [a, b] @ w, by rows"""
    return op.concat(op.dot(a, w, d), op.dot(b, w, d), k) >> op.dot(op.concat(a, b, k), w, d)


@equation("algebra", when=lambda d, x, v, k: is_plain(d, x, v) and k.axis == 1, draw=_along(_columns, 1))
def concat_columns(x, v, w, *, d, k):
    """[x @ v, x @ w] = x @ [v, w], by columns"""
    return op.concat(op.dot(x, v, d), op.dot(x, w, d), k) >> op.dot(x, op.concat(v, w, k), d)


@equation("algebra", when=lambda d, x, v: is_plain(d, x, v) and x.shape[1] == v.shape[0], draw=_inner)
def concat_inner(x, v, y, w, *, d):
    """x @ v + y @ w = [x, y] @ [v, w], along the axis summed over"""
    long = op.dot(op.concat(x, y, axis=1), op.concat(v, w, axis=0), d)
    return op.add(op.dot(x, v, d), op.dot(y, w, d)) >> long


# --- convolutions ----------------------------------------------------------------------------------------------------


@equation("algebra", draw=_conv_images)
def conv_of_sum(x, y, w, *, c):
    """conv(x + y, w) = conv(x, w) + conv(y, w)"""
    return op.conv(op.add(x, y), w, c) >> op.add(op.conv(x, w, c), op.conv(y, w, c))


@equation("algebra", draw=_conv_weights)
def conv_by_sum(x, v, w, *, c):
    """conv(x, v + w) = conv(x, v) + conv(x, w)"""
    return op.conv(x, op.add(v, w), c) >> op.add(op.conv(x, v, c), op.conv(x, w, c))


@equation("algebra", when=lambda c, k: k.axis == 0, draw=_along(_conv_batches, 0))
def concat_images(x, y, w, *, c, k):
    """[conv(x, w), conv(y, w)] = conv([x, y], w), image by image"""
    return op.concat(op.conv(x, w, c), op.conv(y, w, c), k) >> op.conv(op.concat(x, y, k), w, c)


@equation("algebra", when=lambda c: c.groups == 1, draw=_conv_outputs)
def concat_outputs(x, v, w, *, c):
    """[conv(x, v), conv(x, w)] = conv(x, [v, w]), by output channels"""
    return op.concat(op.conv(x, v, c), op.conv(x, w, c), axis=1) >> op.conv(x, op.concat(v, w, axis=0), c)


@equation("algebra", when=lambda c, x, v: c.groups == 1 and x.shape[1] == v.shape[1], draw=_conv_channels)
def concat_channels(x, v, y, w, *, c):
    """conv(x, v) + conv(y, w) = conv([x, y], [v, w]), along the channels summed over"""
    long = op.conv(op.concat(x, y, axis=1), op.concat(v, w, axis=1), c)
    return op.add(op.conv(x, v, c), op.conv(y, w, c)) >> long


@rule("algebra", when=lambda c, x, y, v, w: c.groups == 1 and x == y and v == w, draw=_conv_groups)
def concat_groups(x, v, y, w, *, c):
    """[conv(x, v), conv(y, w)] -> conv([x, y], [v, w]) of two groups"""
    grouped = op.conv(
        op.concat(x, y, axis=1),
        op.concat(v, w, axis=0),
        strides=lambda c: c.strides,
        padding=lambda c: c.padding,
        lhs_dilation=lambda c: c.lhs_dilation,
        rhs_dilation=lambda c: c.rhs_dilation,
        groups=2,
    )
    return op.concat(op.conv(x, v, c), op.conv(y, w, c), axis=1) >> grouped


# --- parallel operators merged ---------------------------------------------------------------------------------------


def _with_type(patterns: tuple[Pattern, ...], made: Callable[[Sequence[TensorType]], Any]) -> Callable[..., Any]:
    """An attribute made from the types of patterns: a function of their variables."""
    names = dict.fromkeys(n for p in patterns for n in (*tensors(p), *records(p)))

    def attribute(**env: Any) -> Any:
        return made([type_of(p, env) for p in patterns])

    parameters = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in names]
    attribute.__signature__ = inspect.Signature(parameters)
    return attribute


def _parts(p: Pattern, q: Pattern, axis: int) -> tuple[Rewrite, Rewrite]:
    """p and q are the two parts of [p, q]: what computes both at once may compute them."""
    both = op.concat(p, q, axis=axis)

    def corner(of: Callable[[TensorType, TensorType], int], whole: bool) -> Callable[[Sequence[TensorType]], Any]:
        """The extents of p (or zeros) with `of` the two types along the axis."""
        return lambda t: tuple(of(*t) if k == axis else n * whole for k, n in enumerate(t[0].shape))

    def part(start: Callable[..., int], limit: Callable[..., int]) -> Pattern:
        return op.slice(
            both,
            start=_with_type((p, q), corner(start, False)),
            limit=_with_type((p, q), corner(limit, True)),
            strides=_with_type((p, q), lambda t: (1,) * t[0].rank),
        )

    first = part(lambda a, b: 0, lambda a, b: a.shape[axis])
    second = part(lambda a, b: a.shape[axis], lambda a, b: a.shape[axis] + b.shape[axis])
    return p >> first, q >> second


@rule("algebra", when=lambda d, a, w: is_plain(d, a, w), draw=_rows)
def parallel_rows(a, b, w, *, d):
    """Products with one matrix are the rows of one product."""
    return _parts(op.dot(a, w, d), op.dot(b, w, d), 0)


@rule("algebra", when=lambda d, x, v: is_plain(d, x, v), draw=_columns)
def parallel_columns(x, v, w, *, d):
    """Products of one matrix are the columns of one product."""
    return _parts(op.dot(x, v, d), op.dot(x, w, d), 1)


@rule("algebra", when=lambda x, y: x.shape[1:] == y.shape[1:], draw=_conv_batches)
def parallel_images(x, y, w, *, c):
    """Convolutions with the same weights are images of one."""
    return _parts(op.conv(x, w, c), op.conv(y, w, c), 0)


@rule("algebra", when=lambda c, v, w: c.groups == 1 and v.shape[1:] == w.shape[1:], draw=_conv_outputs)
def parallel_outputs(x, v, w, *, c):
    """Convolutions of the same image are output channels of one."""
    return _parts(op.conv(x, v, c), op.conv(x, w, c), 1)


def _parallel_maxima(axis: int) -> GraphRule:
    def alike(a: TensorType, b: TensorType, s: TensorType) -> bool:
        """Tensors that differ along the axis at most, against one number."""
        return s.rank == 0 and a.rank == b.rank > axis and all(
            n == m for k, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if k != axis
        )

    def draw(c: Chooser) -> Environment:
        shape = _sizes(c, c.integer(axis + 1, 3))
        a, b = (TensorType(tuple(c.integer(1, 4) if k == axis else n for k, n in enumerate(shape))) for _ in "ab")
        p, q = (Attrs(shape=t.shape, dims=()) for t in (a, b))
        return {"a": a, "b": b, "s": TensorType(()), "p": p, "q": q}

    def parallel_maxima(a, b, s, *, p, q):
        """Maxima with one number are parts of one."""
        return _parts(op.max(a, op.broadcast(s, p)), op.max(b, op.broadcast(s, q)), axis)

    parallel_maxima.__name__ = f"parallel_maxima_{axis}"
    return rule("algebra", when=alike, draw=draw)(parallel_maxima)


#: Every equation and rule of this file: what `benchmarks/taso_rules.py` derives with.
SUBSTITUTIONS: tuple[GraphRule, ...] = (
    add_commutes,
    multiply_commutes,
    *add_associates,
    *multiply_associates,
    *multiply_distributes,
    *matmul_associates,
    *matmul_distributes_left,
    *matmul_distributes_right,
    *concat_associates,
    concat_by_columns,
    *concat_sums,
    *concat_products,
    *concat_maxima,
    concat_numbers,
    maximum_of_parts,
    *concat_rows,
    *concat_columns,
    *concat_inner,
    *conv_of_sum,
    *conv_by_sum,
    *concat_images,
    *concat_outputs,
    *concat_channels,
    concat_groups,
    parallel_rows,
    parallel_columns,
    parallel_images,
    parallel_outputs,
    _parallel_maxima(0),
    _parallel_maxima(1),
)
