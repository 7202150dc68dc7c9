"""Canonical forms: how every front end and composite writes a primitive, so that rewrite rules need one
pattern each.

Constants and broadcasts are the second operand of commutative operators. A broadcast's operand has no axis of
extent 1 and is no broadcast itself; reshapes and transposes do not follow one another; what would change
nothing (a reshape to the same shape, a zero padding, ...) is not emitted. Each function takes and returns
`Value`s of one `GraphBuilder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .errors import TypeRuleError
from .graph import CONSTANT, GraphBuilder, Node, Value
from .operator import axis_in, require
from .scalars import neutral
from .types import DTYPES

Operand = Value | float | int | bool
COMMUTATIVE = frozenset({"add", "mul", "max", "min", "eq", "ne", "and", "or"})
_MIRRORED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}


def source(x: Value) -> Node:
    """The node that computes `x`."""
    return x.builder.nodes[x.id]


def constant_of(x: Value) -> np.ndarray | None:
    """The array behind a constant node; None for anything computed."""
    return x.builder.constants.get(x.id)


def inputs_of(x: Value) -> tuple[str, ...]:
    """Names of the graph's inputs that `x` is computed from."""
    seen, stack = {x.id}, [x.id]
    while stack:
        for k in x.builder.nodes[stack.pop()].inputs:
            if k not in seen:
                seen.add(k)
                stack.append(k)
    return tuple(x.builder.nodes[k].label for k in x.builder.inputs if k in seen)


def uniform_of(x: Value) -> float | None:
    """The number that fills `x`, if it is a constant of one element or a broadcast of one."""
    node = source(x)
    array = x.builder.constants.get(node.inputs[0] if node.op == "broadcast" else x.id)
    return array.reshape(()).item() if array is not None and array.size == 1 else None


def _place(x: Value) -> int:
    node = source(x)
    if node.op != "broadcast":
        return 2 if node.op == CONSTANT else 0
    return 2 if x.builder.nodes[node.inputs[0]].op == CONSTANT else 1


def commute(x: Value, y: Value) -> tuple[Value, Value]:
    """The operands of a commutative operator in canonical order: computed, then broadcast, then constant."""
    return (y, x) if _place(x) > _place(y) else (x, y)


def full_like(x: Value, number: float | bool, dtype: str | None = None) -> Value:
    """A tensor of x's shape (and dtype, unless given) filled with a number."""
    return x.builder.full(x.shape, number, dtype or x.dtype)


def common_shape(*values: Value) -> tuple[int, ...]:
    """The shape they broadcast to. Raises `TypeRuleError` if there is none."""
    try:
        return np.broadcast_shapes(*(v.shape for v in values))
    except ValueError:
        raise TypeRuleError(
            f"{', '.join(str(v.type) for v in values)} do not broadcast to one shape"
        ) from None


def binary(op: str, x: Operand, y: Operand) -> Value:
    """An elementwise operator of two operands under NumPy's broadcasting; numbers take the other's dtype."""
    a = x if isinstance(x, Value) else full_like(_value(y), x)
    b = y if isinstance(y, Value) else full_like(_value(x), y)
    shape = common_shape(a, b)
    a, b = _spread(broadcast_to(a, shape), broadcast_to(b, shape))
    if op in COMMUTATIVE:
        a, b = commute(a, b)
    elif op in _MIRRORED and _place(a) > _place(b):
        op, a, b = _MIRRORED[op], b, a
    return a.builder.op(op, a, b)


def _spread(x: Value, y: Value) -> tuple[Value, Value]:
    """Write the operand that only gained axes of extent 1 as a broadcast (a bias, at batch 1), unless both
    did.
    """
    p, q = _narrow(x), _narrow(y)
    if p is None and q is not None:
        return x, _widen(q, y.shape)
    return (_widen(p, x.shape), y) if p is not None and q is None else (x, y)


def _narrow(x: Value) -> Value | None:
    """The tensor without axes of extent 1 that `x`, a constant or a reshape, is made of."""
    shape = tuple(n for n in x.shape if n != 1)
    node = source(x)
    if len(shape) == x.type.rank:
        return None
    if node.op == CONSTANT:
        return reshape(x, shape)
    inner = Value(x.builder, node.inputs[0]) if node.op == "reshape" else None
    return inner if inner is not None and inner.shape == shape else None


def _widen(x: Value, shape: tuple[int, ...]) -> Value:
    return x.builder.op("broadcast", x, shape=shape, dims=tuple(d for d, n in enumerate(shape) if n != 1))


def _value(x: Operand) -> Value:
    require(isinstance(x, Value), "one of the operands must be a tensor")
    assert isinstance(x, Value)
    return x


def add(x: Operand, y: Operand) -> Value:
    return binary("add", x, y)


def sub(x: Operand, y: Operand) -> Value:
    return binary("sub", x, y)


def mul(x: Operand, y: Operand) -> Value:
    return binary("mul", x, y)


def divide(x: Operand, y: Operand) -> Value:
    """x / y; by a power of two it is the (equal) multiplication. Integers truncate towards zero, as in C."""
    dtype = _value(x if isinstance(x, Value) else y).dtype
    if DTYPES[dtype].kind != "float":
        return _divide_integers(x, y, dtype)
    number = uniform_of(y) if isinstance(y, Value) else y
    if isinstance(x, Value) and number is not None and _is_power_of_two(number):
        return mul(x, full_like(y, 1 / number) if isinstance(y, Value) else 1 / number)
    return binary("div", x, y)


def _is_power_of_two(number: float) -> bool:
    return 2**-60 < abs(number) < 2**60 and abs(math.frexp(number)[0]) == 0.5


def _divide_integers(x: Operand, y: Operand, dtype: str) -> Value:
    """By way of float64, which is exact for integers of at most 32 bits and has vector instructions.

    As XLA does it: by 0 all bits are set, and the least integer by -1 is itself."""
    if DTYPES[dtype].size > 4:
        return binary("quotient", x, y)
    wide = [cast(v, "f64") if isinstance(v, Value) else v for v in (x, y)]
    out = cast(binary("div", *wide), dtype)
    divisors = constant_of(y) if isinstance(y, Value) else np.asarray(y)
    if divisors is None or (divisors == 0).any():
        ones = int(np.iinfo(DTYPES[dtype].numpy).max) if DTYPES[dtype].kind == "uint" else -1
        out = select(binary("eq", y, full_like(out, 0)), full_like(out, ones), out)
    if DTYPES[dtype].kind == "int" and (divisors is None or (divisors == -1).any()):
        out = select(binary("eq", y, full_like(out, -1)), sub(full_like(out, 0), x), out)
    return out


def maximum(x: Operand, y: Operand) -> Value:
    return binary("max", x, y)


def minimum(x: Operand, y: Operand) -> Value:
    return binary("min", x, y)


def unary(op: str, x: Value) -> Value:
    return x.builder.op(op, x)


def select(condition: Value, then: Value, otherwise: Value) -> Value:
    """Elementwise `then if condition else otherwise` under NumPy's broadcasting."""
    shape = common_shape(condition, then, otherwise)
    return then.builder.op("select", *(broadcast_to(v, shape) for v in (condition, then, otherwise)))


def cast(x: Value, dtype: str) -> Value:
    if x.dtype == dtype:
        return x
    array = constant_of(x)
    if array is not None and array.size == 1:
        return x.builder.constant(array.astype(DTYPES[dtype].numpy))
    return x.builder.op("cast", x, dtype=dtype)


def reshape(x: Value, shape: Sequence[int]) -> Value:
    """The elements under another shape. Raises `TypeRuleError` if their number differs."""
    shape = tuple(int(n) for n in shape)
    node = source(x)
    if node.op == "reshape":
        return reshape(Value(x.builder, node.inputs[0]), shape)
    if x.shape == shape:
        return x
    array = constant_of(x)
    if array is not None and array.size == math.prod(shape):
        return x.builder.constant(array.reshape(shape), node.label)
    if node.op == "broadcast" and not node.attrs.dims and x.type.size == math.prod(shape):
        return broadcast(Value(x.builder, node.inputs[0]), shape, ())
    return x.builder.op("reshape", x, shape=shape)


def broadcast(x: Value, shape: Sequence[int], dims: Sequence[int]) -> Value:
    """Input axis k becomes output axis dims[k]; the others repeat (`lax.broadcast_in_dim`)."""
    shape, dims = tuple(int(n) for n in shape), tuple(int(d) for d in dims)
    if x.shape == shape and dims == tuple(range(x.type.rank)):
        return x
    node = source(x)
    if node.op == "broadcast":
        return broadcast(Value(x.builder, node.inputs[0]), shape, [dims[d] for d in node.attrs.dims])
    if x.type.size == math.prod(shape) and all(n == shape[d] for n, d in zip(x.shape, dims, strict=True)):
        return reshape(x, shape)
    if 1 in x.shape:
        kept = [k for k, n in enumerate(x.shape) if n != 1]
        return broadcast(reshape(x, [x.shape[k] for k in kept]), shape, [dims[k] for k in kept])
    if node.op == "reshape" and (base := _without_units(x)) is not None:
        return broadcast(base, shape, dims)
    return x.builder.op("broadcast", x, shape=shape, dims=dims)


def _without_units(x: Value) -> Value | None:
    """The tensor that `x` (a reshape without unit axes) squeezes, if a broadcast made its unit axes."""
    inner = Value(x.builder, source(x).inputs[0])
    node = source(inner)
    if node.op != "broadcast" or tuple(n for n in inner.shape if n != 1) != x.shape:
        return None
    position = {d: k for k, d in enumerate(d for d, n in enumerate(inner.shape) if n != 1)}
    if any(d not in position for d in node.attrs.dims):
        return None
    base = Value(x.builder, node.inputs[0])
    return broadcast(base, x.shape, [position[d] for d in node.attrs.dims])


def broadcast_to(x: Value, shape: Sequence[int]) -> Value:
    """NumPy's broadcasting: axes are aligned at the right."""
    shape = tuple(shape)
    return broadcast(x, shape, range(len(shape) - x.type.rank, len(shape)))


def transpose(x: Value, perm: Sequence[int]) -> Value:
    """Output axis d is input axis perm[d]."""
    perm, node = tuple(int(p) for p in perm), source(x)
    if node.op == "transpose":
        return transpose(Value(x.builder, node.inputs[0]), [node.attrs.perm[p] for p in perm])
    if perm == tuple(range(x.type.rank)):
        return x
    if node.op == "broadcast" and not node.attrs.dims and sorted(perm) == list(range(x.type.rank)):
        return broadcast(Value(x.builder, node.inputs[0]), [x.shape[p] for p in perm], ())
    return x.builder.op("transpose", x, perm=perm)


def pad(
    x: Value,
    low: Sequence[int],
    high: Sequence[int],
    interior: Sequence[int] | None = None,
    value: float = 0.0,
) -> Value:
    """`value` before, after and between the elements; negative numbers remove elements."""
    interior = tuple(interior) if interior is not None else (0,) * x.type.rank
    if not (any(low) or any(high) or any(interior)):
        return x
    if not any(interior) and max((*low, *high)) <= 0:
        return slice_(x, [-n for n in low], [n + h for n, h in zip(x.shape, high, strict=True)])
    return x.builder.op("pad", x, low=tuple(low), high=tuple(high), interior=interior, value=value)


def slice_(
    x: Value, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None
) -> Value:
    """Elements start, start + stride, ... below limit of each axis."""
    start, limit = tuple(int(n) for n in start), tuple(int(n) for n in limit)
    steps = tuple(int(n) for n in strides) if strides is not None else (1,) * x.type.rank
    if not any(start) and limit == x.shape and all(k == 1 for k in steps):
        return x
    return x.builder.op("slice", x, start=start, limit=limit, strides=steps)


def reverse(x: Value, dims: Sequence[int]) -> Value:
    kept = tuple(sorted(d for d in dims if x.shape[d] > 1))
    return x.builder.op("reverse", x, dims=kept) if kept else x


def concat(parts: Sequence[Value], axis: int) -> Value:
    """Operands one after the other along an axis; empty ones are left out."""
    kept = [p for p in parts if p.shape[axis]] or list(parts[:1])
    return kept[0] if len(kept) == 1 else kept[0].builder.op("concat", *kept, axis=axis)


def reduce(kind: str, x: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
    """sum, max, min or prod over axes; they disappear, or stay with extent 1. Of bool, max is any and min is all."""
    if x.dtype == "bool":
        return cast(reduce(kind, cast(x, "u8"), axes, keepdims), "bool")
    axes = tuple(sorted(axis_in(d, x.type.rank) for d in axes)) if x.type.rank else ()
    moving = tuple(d for d in axes if x.shape[d] != 1)
    shape = [1 if d in axes else n for d, n in enumerate(x.shape) if keepdims or d not in axes]
    if x.type.size == 0 and moving:
        return x.builder.full(shape, neutral(kind, x.dtype), x.dtype)
    return reshape(x.builder.op("reduce", x, kind=kind, axes=moving) if moving else x, shape)


def dot(x: Value, y: Value, contract: tuple, batch: tuple = ((), ())) -> Value:
    """Sum of products over paired axes (`lax.dot_general`)."""
    return x.builder.op("dot", x, y, contract=contract, batch=batch)


def index_ramp(builder: GraphBuilder, n: int, dtype: str) -> Value:
    """0, 1, ..., n-1."""
    return builder.constant(np.arange(n, dtype=DTYPES[dtype].numpy))
