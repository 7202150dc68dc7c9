"""ONNX' RNN, GRU and LSTM, unrolled over the sequence; the inputs' part of all gates is one product for all steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import canonical as ir
from . import composites as nn
from .graph import Value
from .onnx_ops import OnnxCall, onnx_op
from .operator import require
from .unrolling import at_step, require_steps, stacked

Function = Callable[[Value], Value]
States = tuple[Value, ...]
Cell = Callable[[Value, States], States]
"""(input's part of the gates at a step, states) -> next states, of which the first is the output."""

_PLAIN: dict[str, Function] = {
    "Tanh": lambda x: ir.unary("tanh", x),
    "Sigmoid": nn.sigmoid,
    "Relu": nn.relu,
    "Softsign": lambda x: ir.divide(x, ir.add(ir.unary("abs", x), 1)),
    "Softplus": nn.softplus,
}
_SHAPED: dict[str, tuple[Callable[[Value, float, float], Value], float, float]] = {
    "LeakyRelu": (lambda x, a, b: nn.leaky_relu(x, a), 0.01, 0.0),
    "ThresholdedRelu": (lambda x, a, b: ir.select(ir.binary("gt", x, a), x, ir.full_like(x, 0)), 1.0, 0.0),
    "ScaledTanh": (lambda x, a, b: ir.mul(ir.unary("tanh", ir.mul(x, b)), a), 1.0, 1.0),
    "HardSigmoid": (nn.hard_sigmoid, 0.2, 0.5),
    "Elu": (lambda x, a, b: nn.elu(x, a), 1.0, 0.0),
    "Affine": (lambda x, a, b: ir.add(ir.mul(x, a), b), 1.0, 0.0),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One direction of a recurrent node."""

    call: OnnxCall
    direction: int
    gates: int
    functions: Sequence[Function]

    @property
    def hidden(self) -> int:
        return self.call.value(2).shape[-1]

    def part(self, k: int) -> Value | None:
        """This direction's slice of operand k."""
        x = self.call.optional(k)
        if x is None:
            return None
        piece = at_step(x, self.direction)
        assert isinstance(piece, Value)
        return piece

    def given(self, k: int) -> Value:
        part = self.part(k)
        assert part is not None
        return part

    def split(self, x: Value, count: int) -> list[Value]:
        """Equal parts along the last axis."""
        return nn.split(x, -1, [x.shape[-1] // count] * count)

    def recur(self, h: Value, weights: Value) -> Value:
        """The state's part of gates: h @ weights.T"""
        return ir.dot(h, weights, ((1,), (1,)))

    def inputs(self, x: Value, recurrent_bias: bool = True) -> Value:
        """The input's part of all gates at all steps, biases included: (steps, batch, gates * hidden)."""
        out = ir.dot(x, self.given(1), ((2,), (1,)))
        bias = self.part(3)
        if bias is None:
            return out
        first, second = self.split(bias, 2)
        return ir.add(out, ir.add(first, second) if recurrent_bias else first)

    def clipped(self, x: Value) -> Value:
        limit = self.call.attr("clip")
        return x if limit is None else nn.clip(x, -limit, limit)


def _functions(c: OnnxCall, direction: int, defaults: Sequence[str]) -> list[Function]:
    count = len(defaults)
    names = (c.attr("activations") or list(defaults) * 2)[direction * count : (direction + 1) * count]
    alphas, betas = list(c.attr("activation_alpha") or []), list(c.attr("activation_beta") or [])
    out: list[Function] = []
    for k, name in enumerate(names):
        if name in _PLAIN:
            out.append(_PLAIN[name])
            continue
        require(name in _SHAPED, f"activation {name!r} is not supported")
        shape, alpha, beta = _SHAPED[name]
        place = direction * count + k
        a, b = (v[place] if place < len(v) else v[k] if k < len(v) else d for v, d in ((alphas, alpha), (betas, beta)))
        out.append(lambda x, f=shape, a=a, b=b: f(x, a, b))
    return out


def _rnn_cell(layer: Layer, x: Value) -> tuple[Value, Cell]:
    (f,) = layer.functions
    weights = layer.given(2)
    return layer.inputs(x), lambda gates, s: (f(layer.clipped(ir.add(gates, layer.recur(s[0], weights)))),)


def _gru_cell(layer: Layer, x: Value) -> tuple[Value, Cell]:
    f, g = layer.functions
    n, weights, bias = layer.hidden, layer.given(2), layer.part(3)
    gates_weights = ir.slice_(weights, (0, 0), (2 * n, n))
    new_weights = ir.slice_(weights, (2 * n, 0), (3 * n, n))
    recurrent = None if bias is None else layer.split(layer.split(bias, 2)[1], 3)
    after = bool(layer.call.attr("linear_before_reset", 0))

    def cell(gates: Value, s: States) -> States:
        (h,) = s
        both, new = ir.slice_(gates, (0, 0), (gates.shape[0], 2 * n)), ir.slice_(gates, (0, 2 * n), gates.shape)
        both = ir.add(both, layer.recur(h, gates_weights))
        if recurrent is not None:
            both = ir.add(both, ir.concat(recurrent[:2], 0))
        z, r = layer.split(f(layer.clipped(both)), 2)
        carried = layer.recur(h if after else ir.mul(r, h), new_weights)
        if recurrent is not None:
            carried = ir.add(carried, recurrent[2])
        candidate = g(layer.clipped(ir.add(new, ir.mul(r, carried) if after else carried)))
        return (ir.add(ir.mul(ir.sub(1, z), candidate), ir.mul(z, h)),)

    return layer.inputs(x, recurrent_bias=False), cell


def _lstm_cell(layer: Layer, x: Value) -> tuple[Value, Cell]:
    f, g, last = layer.functions
    weights, peepholes = layer.given(2), layer.part(7)
    coupled = bool(layer.call.attr("input_forget", 0))
    peep = None if peepholes is None else layer.split(peepholes, 3)

    def seen(gate: Value, c: Value, k: int) -> Value:
        return layer.clipped(gate if peep is None else ir.add(gate, ir.mul(c, peep[k])))

    def cell(gates: Value, s: States) -> States:
        h, c = s
        i, o, forget, new = layer.split(ir.add(gates, layer.recur(h, weights)), 4)
        i = f(seen(i, c, 0))
        forget = ir.sub(1, i) if coupled else f(seen(forget, c, 2))
        c = ir.add(ir.mul(forget, c), ir.mul(i, g(layer.clipped(new))))
        return ir.mul(f(seen(o, c, 1)), last(c)), c

    return layer.inputs(x), cell


_CELLS = {
    "RNN": (_rnn_cell, 1, ("Tanh",)),
    "GRU": (_gru_cell, 3, ("Sigmoid", "Tanh")),
    "LSTM": (_lstm_cell, 4, ("Sigmoid", "Tanh", "Tanh")),
}


@onnx_op("RNN", "GRU", "LSTM")
def _recurrent(c: OnnxCall) -> list[Value]:
    """(Y, Y_h) of each direction, and Y_c of an LSTM."""
    by_batch = bool(c.attr("layout", 0))
    x = ir.transpose(c.value(), (1, 0, 2)) if by_batch else c.value()
    require_steps(x.shape[0], f"the {c.op}")
    backward = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[c.attr("direction", "forward")]
    rows, finals = [], []
    for d, back in enumerate(backward):
        out, states = _direction(c, x, d, back, by_batch)
        rows.append(out)
        finals.append(states)
    y = stacked(c.builder, rows, 1)
    ends = [stacked(c.builder, column, 0) for column in zip(*finals, strict=True)]
    assert isinstance(y, Value)
    tensors = [e for e in ends if isinstance(e, Value)]
    if by_batch:
        return [ir.transpose(y, (2, 0, 1, 3)), *(ir.transpose(e, (1, 0, 2)) for e in tensors)]
    return [y, *tensors]


def _direction(c: OnnxCall, x: Value, d: int, back: bool, by_batch: bool) -> tuple[Value, States]:
    make, gates, defaults = _CELLS[c.op]
    layer = Layer(c, d, gates, _functions(c, d, defaults))
    projected, cell = make(layer, x)
    shape = (x.shape[1], layer.hidden)
    states = tuple(_start(layer, k, shape, by_batch) for k in ((5, 6) if c.op == "LSTM" else (5,)))
    lengths = c.optional(4)
    results: list[Value] = []
    steps = range(x.shape[0])
    for step in reversed(steps) if back else steps:
        now = at_step(projected, step)
        assert isinstance(now, Value)
        following = cell(now, states)
        out = following[0]
        if lengths is not None:  # past its end a sequence keeps its state and yields zeros
            inside = ir.broadcast(ir.binary("gt", lengths, step), shape, (0,))
            following = tuple(ir.select(inside, f, s) for f, s in zip(following, states, strict=True))
            out = ir.select(inside, out, ir.full_like(out, 0))
        states = following
        results.append(out)
    y = stacked(c.builder, results[::-1] if back else results)
    assert isinstance(y, Value)
    return y, states


def _start(layer: Layer, k: int, shape: tuple[int, int], by_batch: bool) -> Value:
    x = layer.call.optional(k)
    if x is None:
        return layer.call.builder.full(shape, 0, layer.call.value().dtype)
    piece = at_step(ir.transpose(x, (1, 0, 2)) if by_batch else x, layer.direction)
    assert isinstance(piece, Value)
    return piece
