"""Random small graphs in float32 to hold compiled programs against: well conditioned, values around 1.

A graph grows by moves, each a few operators as networks use them. Every value carries a bound; where a move
would leave it too large, `tanh` comes first. Discontinuous functions (comparisons, floor, sign) stay out: a
rounding error of the smallest kind would change their results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..ir.errors import TypeRuleError
from ..ir.graph import Graph, GraphBuilder, Value
from ..ir.operator import Chooser, Reject, operator
from ..ir.ops import some_shape
from ..ir.types import TensorType
from .choosing import retried
from .values import array_of

LARGEST = 16.0
BOUNDED = ("tanh", "logistic", "erf", "sin", "cos")
KEEPS_BOUND = ("neg", "abs")
#: Functions applied to |x| + 1/2 only, where they are smooth and small.
POSITIVE = ("sqrt", "rsqrt", "log", "log1p")
MOVEMENT = ("reshape", "transpose", "slice", "reverse", "pack", "unpack", "pad", "broadcast")


@dataclass
class Growing:
    """A graph under construction. `values`: what moves start from; `bound`: on their magnitudes."""

    c: Chooser
    builder: GraphBuilder = field(default_factory=GraphBuilder)
    values: list[Value] = field(default_factory=list)
    bound: dict[int, float] = field(default_factory=dict)

    def note(self, v: Value, bound: float) -> Value:
        if bound > LARGEST:
            v, bound = self.builder.op("tanh", v), 1.0
        self.bound[v.id] = min(bound, self.bound.get(v.id, bound))
        return v

    def constant(self, type: TensorType, scale: float = 1.0) -> Value:
        a = array_of(type, self.c.integer(0, 999), (-1.0, 1.0)) * scale
        return self.note(self.builder.constant(a.astype(np.float32)), scale)

    def other(self, like: Value) -> Value:
        """A second operand of that type: an earlier value, or a constant, perhaps broadcast."""
        same = [v for v in self.values if v.type == like.type]
        how = self.c.integer(0, 2)
        if how == 0 and same:
            return self.c.pick(same)
        if how == 1 and like.type.rank:
            axis = self.c.integer(0, like.type.rank - 1)
            row = self.constant(TensorType((like.shape[axis],)))
            return self.note(self.builder.op("broadcast", row, shape=like.shape, dims=(axis,)), 1.0)
        return self.constant(like.type)


def _unary(g: Growing, x: Value) -> Value:
    name = g.c.pick((*BOUNDED, *KEEPS_BOUND, "exp", *POSITIVE, "relu"))
    b = g.bound[x.id]
    if name == "relu":
        return g.note(g.builder.op("max", x, g.builder.full(x.shape, 0.0)), b)
    if name == "exp":
        return g.note(g.builder.op("exp", g.builder.op("sin", x)), math.e)
    if name in POSITIVE:
        return g.note(g.builder.op(name, g.builder.op("abs", x) + 0.5), math.sqrt(b + 1) + 1.5)
    return g.note(g.builder.op(name, x), 1.0 if name in BOUNDED else b)


def _binary(g: Growing, x: Value) -> Value:
    y = g.other(x)
    name = g.c.pick(("add", "mul", "sub", "max", "min"))
    a, b = (y, x) if name == "sub" and g.c.integer(0, 1) else (x, y)
    p, q = g.bound[x.id], g.bound[y.id]
    return g.note(g.builder.op(name, a, b), p * q if name == "mul" else p + q)


def _divide(g: Growing, x: Value) -> Value:
    divisor = g.builder.constant(np.abs(g.builder.constants[g.constant(x.type).id]) + np.float32(0.5))
    return g.note(g.builder.op("div", x, divisor), 2 * g.bound[x.id])


def _move(g: Growing, x: Value) -> Value:
    name = g.c.pick(MOVEMENT)
    _, attrs = operator(name).sample(g.c, [x.type], None)
    return g.note(g.builder.op(name, x, **attrs), max(1.0, g.bound[x.id]))


def _concat(g: Growing, x: Value) -> Value:
    y = g.other(x)
    if not x.type.rank:
        raise Reject
    axis = g.c.integer(0, x.type.rank - 1)
    return g.note(g.builder.op("concat", x, y, axis=axis), max(g.bound[x.id], g.bound[y.id]))


def _reduce(g: Growing, x: Value) -> Value:
    axes = tuple(d for d in range(x.type.rank) if g.c.integer(0, 1))
    kind = g.c.pick(("sum", "max", "min"))
    b = g.bound[x.id]
    if kind != "sum":
        return g.note(g.builder.op("reduce", x, kind=kind, axes=axes), b)
    count = math.prod(x.shape[d] for d in axes)
    total = g.builder.op("reduce", x, kind=kind, axes=axes)
    return g.note(total * (1 / count), b)


def _window(g: Growing, x: Value) -> Value:
    _, attrs = operator("window").sample(g.c, [x.type], None)
    b = g.bound[x.id]
    return g.note(
        g.builder.op("window", x, **attrs), b * math.prod(attrs.window) if attrs.kind == "sum" else b
    )


def _contract(g: Growing, x: Value) -> Value:
    """A convolution or dot, weights scaled by their fan-in; perhaps a bias and an activation."""
    name = "conv" if x.type.rank >= 3 and g.c.integer(0, 1) else "dot"
    types, attrs = operator(name).sample(g.c, [x.type, None], None)
    fan_in = (
        math.prod(types[1].shape[1:]) if name == "conv" else math.prod(x.shape[d] for d in attrs.contract[0])
    )
    y = g.builder.op(name, x, g.constant(types[1], 1 / fan_in), **attrs)
    y = g.note(y, g.bound[x.id])
    if y.type.rank >= 2 and g.c.integer(0, 1):
        bias = g.builder.op("broadcast", g.constant(TensorType((y.shape[1],))), shape=y.shape, dims=(1,))
        y = g.note(y + bias, g.bound[y.id] + 1)
    return _unary(g, y) if g.c.integer(0, 2) == 2 else y


def _softmax(g: Growing, x: Value) -> Value:
    from ..ir.composites import softmax

    if not x.type.rank:
        raise Reject
    return g.note(softmax(x, g.c.integer(0, x.type.rank - 1)), 1.0)


MOVES: tuple[Callable[[Growing, Value], Value], ...] = (
    _unary, _binary, _binary, _contract, _contract, _move, _move, _reduce, _window, _concat, _divide,
    _softmax,
)  # fmt: skip


def draw_graph(c: Chooser, max_nodes: int) -> Graph:
    """A graph of one or two inputs, grown by at most `max_nodes` moves; outputs are what nothing reads."""
    g = Growing(c)
    for k in range(c.integer(1, 2)):
        shape = g.values[0].shape if k and c.integer(0, 1) else some_shape(c, 1, 4, 6)
        g.values.append(g.note(g.builder.input(TensorType(shape)), 2.0))
    for _ in range(c.integer(1, max_nodes)):
        recent = g.values[-1 - c.integer(0, min(2, len(g.values) - 1))]
        try:
            v = retried(lambda c, x=recent: c.pick(MOVES)(g, x), c, 3)
        except (Reject, TypeRuleError):
            continue
        if v.type.size <= 4096 and v.id not in {o.id for o in g.values}:
            g.values.append(v)
    return _finished(g)


def _finished(g: Growing) -> Graph:
    read = {i for n in g.builder.nodes for i in n.inputs}
    outputs = [v for v in g.values if v.id not in read and v.id not in g.builder.inputs]
    last = next((v for v in reversed(g.values) if v.id not in g.builder.inputs), None)
    if last is None:
        raise Reject
    return g.builder.finish(outputs[-3:] or [last])
