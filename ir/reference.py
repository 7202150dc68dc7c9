"""The reference: a graph evaluated operator by operator in JAX, in its own precision or in float64.

Also `evaluate_expr`, a direct NumPy reading of tensor expressions, which tests hold against the operators'
JAX references. Nothing here is ever part of a compiled program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .attrs import Attrs
from .expr import Apply, Cast, Const, IndexValue, Kept, Read, ReadAt, Reduce, Scalar, TensorExpr, Weighted, When
from .graph import CONSTANT, INPUT, Graph
from .index import Axis, Index
from .operator import operator
from .scalars import COMBINERS, scalar
from .types import DTYPES, TensorType, dtype_of, is_float


def evaluate(graph: Graph, args: Sequence[Any], double: bool = False) -> list[np.ndarray]:
    """The graph's outputs. With `double`, every float tensor is computed in, and stays, float64."""
    import jax

    def widen(a: np.ndarray) -> np.ndarray:
        return a.astype(np.float64) if double and is_float(a) else a

    with jax.enable_x64(True):
        env: dict[int, Any] = {}
        feed = dict(zip(graph.inputs, args, strict=True))
        for k, node in enumerate(graph.nodes):
            if node.op == INPUT:
                env[k] = jax.numpy.asarray(widen(np.asarray(feed[k])))
            elif node.op == CONSTANT:
                env[k] = jax.numpy.asarray(widen(graph.constants[k]))
            else:
                env[k] = apply_reference(node.op, [env[i] for i in node.inputs], node.attrs, double)
        return [np.asarray(env[o]) for o in graph.outputs]


def apply_reference(op: str, arrays: Sequence[Any], attrs: Attrs, double: bool = False) -> Any:
    """One operator's JAX reference; with `double`, a conversion to a float type goes to float64 instead."""
    if double and "dtype" in attrs and DTYPES[attrs.dtype].kind == "float":
        attrs = attrs.replace(dtype="f64")
    return operator(op).reference(*arrays, **attrs)


#: Elements up to which NumPy computes a constant sooner than XLA compiles an operator for a new shape (40 ms).
FOLDED_IN_NUMPY = 1 << 21


def fold(op: str, args: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    """One operator on constants, in float64, rounded once to the operator's type."""
    types = tuple(TensorType(a.shape, dtype_of(a)) for a in args)
    declared = operator(op)
    result = declared.check(types, attrs)
    moves = declared.family == "movement"
    plain = moves or (op in _NUMPY and all(map(is_float, args)))
    if plain and result.size <= FOLDED_IN_NUMPY:
        value = evaluate_expr(declared.expr(types, attrs), args, double=not moves)
    else:
        value = _folded_by_jax(op, args, attrs, double=not moves)
    return np.asarray(value.astype(DTYPES[result.dtype].numpy), order="C")  # ascontiguousarray would add an axis


def _folded_by_jax(op: str, args: Sequence[np.ndarray], attrs: Attrs, double: bool) -> np.ndarray:
    import jax

    with jax.enable_x64(True):
        wide = [a.astype(np.float64) if double and a.dtype == np.float32 else a for a in args]
        return np.asarray(apply_reference(op, wide, attrs, double))


def evaluate_expr(expr: TensorExpr, arrays: Sequence[np.ndarray], double: bool = False) -> np.ndarray:
    """The tensor that a tensor expression denotes, evaluated on index grids with NumPy.

    With `double`, every float of the expression is float64, whatever its dtype says (as
    `evaluate(double=True)`); otherwise float64 operands still widen the floats they meet.
    """
    rank = len(expr.axes)
    env = {
        a: np.arange(a.extent).reshape([-1 if k == d else 1 for k in range(rank)])
        for d, a in enumerate(expr.axes)
    }
    given = [a.astype(np.float64) if double and is_float(a) else a for a in arrays]
    with np.errstate(all="ignore"):
        out = _eval(expr.body, _Operands(given, double), env, rank)
    return np.broadcast_to(out, expr.shape).astype(
        DTYPES[expr.body.dtype].numpy if out.dtype.kind != "f" else out.dtype
    )


class _Operands:
    """The arrays that an expression reads, and whether its floats are all float64."""

    def __init__(self, arrays: Sequence[np.ndarray], double: bool) -> None:
        self.arrays, self.double = arrays, double

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(np.float64) if self.double and DTYPES[name].kind == "float" else DTYPES[name].numpy


def _eval(s: Scalar, x: _Operands, env: Mapping[Axis, np.ndarray], rank: int) -> np.ndarray:
    if isinstance(s, Read):
        a = x.arrays[s.input]
        if (view := _view(a, s.index, env, rank)) is not None:
            return view
        where = [np.asarray(i.evaluate(env)) for i in s.index]
        clipped = [np.clip(w, 0, max(n - 1, 0)) for w, n in zip(where, a.shape, strict=True)]
        return np.asarray(a[tuple(clipped)] if clipped else a)
    if isinstance(s, ReadAt):
        flat = x.arrays[s.input].reshape(-1)
        where = np.asarray(s.base.evaluate(env)) + _eval(s.offset, x, env, rank)
        return np.asarray(flat[np.clip(where, 0, max(flat.size - 1, 0))])
    if isinstance(s, Const):
        return np.asarray(s.value, x.dtype(s.dtype))
    if isinstance(s, IndexValue):
        return np.asarray(s.index.evaluate(env)).astype(x.dtype(s.dtype))
    if isinstance(s, Apply):
        args = [_eval(a, x, env, rank) for a in s.args]
        wide = next((a.dtype for a in args if a.dtype == np.float64), None)
        return np.asarray(_numpy(s.fn)(*[_like(a, wide) for a in args]))
    if isinstance(s, Cast):
        arg = _eval(s.arg, x, env, rank)
        keeps = DTYPES[s.dtype].kind == "float" and arg.dtype == np.float64
        return arg if keeps else arg.astype(x.dtype(s.dtype))
    if isinstance(s, Kept):
        return _eval(s.arg, x, env, rank)
    if isinstance(s, Weighted):
        # where a bounds test around it fails, the index may be outside of the table
        weight = np.take(np.asarray(s.table, x.dtype(s.dtype)), np.asarray(s.index.evaluate(env)), mode="clip")
        return np.where(weight == 0, 0, weight * _eval(s.arg, x, env, rank))
    if isinstance(s, When):
        inside = np.asarray(True)
        for index, lo, hi in s.bounds:
            v = np.asarray(index.evaluate(env))
            inside = inside & (v >= lo) & (v < hi)
        return np.where(inside, _eval(s.then, x, env, rank), _eval(s.otherwise, x, env, rank))
    return _eval_reduce(s, x, env, rank)


def _view(a: np.ndarray, index: Sequence[Index], env: Mapping[Axis, np.ndarray], rank: int) -> np.ndarray | None:
    """What is read if each dimension is walked as a whole, by an axis of its own: the array, dimensions moved."""
    place: list[int] = []
    for i, n in zip(index, a.shape, strict=True):
        axis, step = i.terms[0] if len(i.terms) == 1 else (None, 1)
        if n == 1 and not i.terms and not i.constant:
            continue
        if not isinstance(axis, Axis) or step != 1 or i.constant or axis.extent != n:
            return None
        place.append(int(np.argmax(env[axis].shape)))
    if len(set(place)) < len(place):
        return None
    shape = [1] * rank
    for d, n in zip(place, (n for n in a.shape if n != 1), strict=True):
        shape[d] = n
    return a.reshape([n for n in a.shape if n != 1]).transpose(np.argsort(place)).reshape(shape)


def _like(a: np.ndarray, wide: np.dtype | None) -> np.ndarray:
    """Float constants are widened next to float64 operands."""
    return a.astype(wide) if wide is not None and is_float(a) else a


_NUMPY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "sqrt": np.sqrt,
    "reciprocal": lambda a: 1 / a,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.bitwise_not,
    "select": np.where,
}


def _numpy(fn: str) -> Callable[..., Any]:
    """A scalar function in NumPy or SciPy; one that a user declared falls back to its JAX reference."""
    if fn in _NUMPY:
        return _NUMPY[fn]
    if fn in ("logistic", "erf"):
        import scipy.special

        return scipy.special.expit if fn == "logistic" else scipy.special.erf

    def by_jax(*args: np.ndarray) -> np.ndarray:
        import jax

        with jax.enable_x64(True):
            return np.asarray(scalar(fn).jax(*np.broadcast_arrays(*args)))

    return by_jax


def _eval_reduce(s: Reduce, x: _Operands, env: Mapping[Axis, np.ndarray], rank: int) -> np.ndarray:
    n = len(s.axes)
    inner: dict[Axis, np.ndarray] = {
        a: np.asarray(v).reshape((*np.shape(v), *[1] * n)) for a, v in env.items()
    }
    for d, a in enumerate(s.axes):
        inner[a] = np.arange(a.extent).reshape([1] * rank + [-1 if k == d else 1 for k in range(n)])
    body = _eval(s.body, x, inner, rank + n)
    full = (
        np.broadcast_to(body, (*body.shape[: body.ndim - n], *(a.extent for a in s.axes)))
        if body.ndim >= n
        else (np.broadcast_to(body, tuple(a.extent for a in s.axes)))
    )
    fn = {"add": np.sum, "max": np.max, "min": np.min, "mul": np.prod}[COMBINERS[s.kind]]
    axes = tuple(range(full.ndim - n, full.ndim))
    return np.asarray(
        fn(full, axis=axes, dtype=full.dtype) if s.kind in ("sum", "prod") else fn(full, axis=axes)
    )


def xla(graph: Graph) -> Any:
    """The graph as one `jax.jit` function in its own precision: what XLA makes of it, as NumPy arrays."""
    import jax

    def run(*args: Any) -> list[Any]:
        env: dict[int, Any] = dict(zip(graph.inputs, args, strict=True))
        for k, node in enumerate(graph.nodes):
            if node.op == CONSTANT:
                env[k] = jax.numpy.asarray(graph.constants[k])
            elif node.op != INPUT:
                env[k] = apply_reference(node.op, [env[i] for i in node.inputs], node.attrs)
        return [env[o] for o in graph.outputs]

    jitted = jax.jit(run)

    def call(*args: Any) -> list[np.ndarray]:
        with jax.enable_x64(True):
            return [np.asarray(o) for o in jitted(*args)]

    return call
