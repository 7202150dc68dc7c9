"""What each ONNX operator becomes: one handler an operator in `HANDLERS`; attribute forms of opset 7 and
later.

A handler takes the `OnnxCall` and returns its output or outputs: nodes of the graph, or arrays known while
importing. Convolutions, pools and normalizations are in `onnx_nn.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import canonical as ir
from . import composites as nn
from .canonical import constant_of
from .errors import NotConstantError, UnsupportedError
from .graph import GraphBuilder, Value
from .operator import axis_in, require
from .types import DTYPES, dtype_of

Known = Value | np.ndarray
"""What a name in an ONNX graph stands for: a node, or an array known while importing."""


@dataclass(frozen=True, eq=False)
class OnnxCall:
    """One node to import: its operator, the opset it is to be read by, attributes, and operands (None: left
    out).
    """

    op: str
    opset: int
    attrs: dict[str, Any]
    ins: Sequence[Known | None]
    builder: GraphBuilder
    outputs: int

    def has(self, k: int) -> bool:
        return k < len(self.ins) and self.ins[k] is not None

    def value(self, k: int = 0) -> Value:
        """Operand k as a node. Raises `UnsupportedError` if it is missing."""
        x = self.ins[k] if self.has(k) else None
        if x is None:
            raise UnsupportedError(f"operand {k} is missing; run onnx.checker on the model")
        return x if isinstance(x, Value) else self.builder.constant(x)

    def known(self, k: int) -> np.ndarray | None:
        """Operand k if it is known while importing."""
        x = self.ins[k] if self.has(k) else None
        return constant_of(x) if isinstance(x, Value) else x

    def optional(self, k: int) -> Value | None:
        return self.value(k) if self.has(k) else None

    def static(self, k: int, what: str) -> np.ndarray:
        """Operand k as an array. Raises `NotConstantError` if it is only known at run time."""
        x = self.ins[k] if self.has(k) else None
        if x is None:
            raise UnsupportedError(f"{what} (operand {k}) is missing; run onnx.checker on the model")
        if isinstance(x, np.ndarray):
            return x
        known = constant_of(x)
        if known is None:
            raise not_constant(x, what)
        return known

    def ints(self, k: int, name: str, since: int) -> list[int] | None:
        """A list of integers that is attribute `name` before opset `since` and operand k from then on."""
        if self.opset < since:
            return self.attrs.get(name)
        return [int(v) for v in self.static(k, name).reshape(-1)] if self.has(k) else None

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    @property
    def values(self) -> list[Value]:
        return [self.value(k) for k in range(len(self.ins))]


def widened(x: Any) -> Any:
    """float16 and bfloat16 as float32, in which they are computed; anything else as it is."""
    if isinstance(x, Value):
        return ir.cast(x, "f32") if x.dtype in ("f16", "bf16") else x
    return x.astype(np.float32) if x.dtype.name in ("float16", "bfloat16") else x


def not_constant(x: Value, what: str) -> NotConstantError:
    """The error for an operand that has to be known while importing."""
    names = ir.inputs_of(x)
    shown = ", ".join(map(repr, names)) or "the graph"
    advice = f"it is computed from {shown}: export the model with static shapes, or fix the input (constants=)"
    return NotConstantError(f"{what} must be constant; {advice}", names)


Handler = Callable[[OnnxCall], Any]
HANDLERS: dict[str, Handler] = {}


def onnx_op(*names: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


# --- elementwise ----------------------------------------------------------------------------------

_UNARY = {
    **{
        name.capitalize(): name
        for name in [
            "neg",
            "abs",
            "sign",
            "floor",
            "ceil",
            "sqrt",
            "exp",
            "log",
            "tanh",
            "erf",
            "sin",
            "cos",
            "not",
        ]
    },
    "Sigmoid": "logistic",
}
_BINARY = {
    "Add": "add",
    "Sub": "sub",
    "Mul": "mul",
    "And": "and",
    "Or": "or",
    "Xor": "ne",
    "Equal": "eq",
    "Less": "lt",
    "LessOrEqual": "le",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "BitwiseAnd": "and",
    "BitwiseOr": "or",
    "BitwiseXor": "xor",
}
_FOLDS = {"Max": "max", "Min": "min", "Sum": "add"}
_SIMPLE: dict[str, Callable[[Value], Value]] = {
    "Relu": nn.relu,
    "Softplus": nn.softplus,
    "HardSwish": nn.hard_swish,
    "Round": nn.round_even,
    "BitwiseNot": lambda x: ir.unary("not", x),
    "Softsign": lambda x: ir.divide(x, ir.add(ir.unary("abs", x), 1)),
    "Reciprocal": lambda x: ir.divide(ir.full_like(x, 1), x),
    "Mish": lambda x: ir.mul(x, ir.unary("tanh", nn.softplus(x))),
    "Tan": lambda x: ir.divide(ir.unary("sin", x), ir.unary("cos", x)),
    "Sinh": nn.sinh,
    "Cosh": nn.cosh,
    "Asin": nn.asin,
    "Acos": nn.acos,
    "Atan": nn.atan,
    "Asinh": nn.asinh,
    "Acosh": nn.acosh,
    "Atanh": lambda x: ir.mul(ir.sub(ir.unary("log1p", x), ir.unary("log1p", ir.unary("neg", x))), 0.5),
    "IsNaN": lambda x: ir.binary("ne", x, x),
    "Identity": lambda x: x,
}
_PARAMETRIC: dict[str, Callable[[Value, OnnxCall], Value]] = {
    "LeakyRelu": lambda x, c: nn.leaky_relu(x, c.attr("alpha", 0.01)),
    "Elu": lambda x, c: nn.elu(x, c.attr("alpha", 1.0)),
    "Celu": lambda x, c: nn.celu(x, c.attr("alpha", 1.0)),
    "Selu": lambda x, c: nn.selu(
        x, c.attr("alpha", 1.67326319217681884), c.attr("gamma", 1.05070102214813232)
    ),
    "Gelu": lambda x, c: nn.gelu(x, c.attr("approximate", "none") == "tanh"),
    "Swish": lambda x, c: ir.mul(x, nn.sigmoid(ir.mul(x, a) if (a := c.attr("alpha", 1.0)) != 1 else x)),
    "HardSigmoid": lambda x, c: nn.hard_sigmoid(x, c.attr("alpha", 0.2), c.attr("beta", 0.5)),
    "ThresholdedRelu": lambda x, c: ir.select(
        ir.binary("gt", x, c.attr("alpha", 1.0)), x, ir.full_like(x, 0)
    ),
    "Cast": lambda x, c: _cast(x, c.attr("to")),
    "CastLike": lambda x, c: ir.cast(x, c.value(1).dtype),
}

for _name, _op in _UNARY.items():
    onnx_op(_name)(lambda c, op=_op: ir.unary(op, c.value()))
for _name, _op in _BINARY.items():
    onnx_op(_name)(lambda c, op=_op: ir.binary(op, c.value(0), _second(c)))
for _name, _simple in _SIMPLE.items():
    onnx_op(_name)(lambda c, f=_simple: f(c.value()))
for _name, _parametric in _PARAMETRIC.items():
    onnx_op(_name)(lambda c, f=_parametric: f(c.value(), c))
for _name, _op in _FOLDS.items():
    onnx_op(_name)(lambda c, op=_op: _folded(op, c.values))


def _second(c: OnnxCall) -> Value:
    """Operand 1 of an elementwise operator; before opset 7, attribute `axis` says where its axes begin."""
    y = c.value(1)
    if c.opset >= 7 or not c.attr("broadcast", 0) or c.attr("axis") is None:
        return y
    rank = c.value(0).type.rank
    return ir.reshape(y, (*y.shape, *(1,) * (rank - c.attr("axis") % rank - y.type.rank)))


def _folded(op: str, values: Sequence[Value]) -> Value:
    out = values[0]
    for v in values[1:]:
        out = ir.binary(op, out, v)
    return out


def _cast(x: Value, to: int) -> Value:
    from onnx import helper

    return widened(ir.cast(x, dtype_of(helper.tensor_dtype_to_np_dtype(to))))


@onnx_op("Mean")
def _mean(c: OnnxCall) -> Value:
    return ir.divide(_folded("add", c.values), len(c.ins))


@onnx_op("Div")
def _div(c: OnnxCall) -> Value:
    return ir.divide(c.value(0), _second(c))


@onnx_op("Pow")
def _pow(c: OnnxCall) -> Value:
    x, y = c.value(0), _second(c)
    if DTYPES[x.dtype].kind != "float" and ir.uniform_of(y) is None:
        return ir.cast(nn.power(ir.cast(x, "f64"), y), x.dtype)
    return nn.power(x, y)


@onnx_op("Mod")
def _mod(c: OnnxCall) -> Value:
    """Remainder with the divisor's sign, or (fmod) the dividend's."""
    x, y = c.value(0), c.value(1)
    rest = nn.remainder(x, y)
    if not c.attr("fmod", 0) and DTYPES[x.dtype].kind != "uint":
        crossed = ir.binary("ne", ir.binary("lt", rest, 0), ir.binary("lt", y, 0))
        rest = ir.select(ir.binary("and", crossed, ir.binary("ne", rest, 0)), ir.add(rest, y), rest)
    return rest


@onnx_op("Clip")
def _clip(c: OnnxCall) -> Value:
    x = c.value()
    low, high = (c.attr("min"), c.attr("max")) if c.opset < 11 else (c.optional(1), c.optional(2))
    out = x if low is None else ir.maximum(x, low)
    return out if high is None else ir.minimum(out, high)


@onnx_op("PRelu")
def _prelu(c: OnnxCall) -> Value:
    x = c.value()
    return ir.select(ir.binary("lt", x, 0), ir.mul(x, c.value(1)), x)


@onnx_op("Shrink")
def _shrink(c: OnnxCall) -> Value:
    x, bias, limit = c.value(), c.attr("bias", 0.0), c.attr("lambd", 0.5)
    high = ir.select(ir.binary("gt", x, limit), ir.sub(x, bias), ir.full_like(x, 0))
    return ir.select(ir.binary("lt", x, -limit), ir.add(x, bias), high)


@onnx_op("IsInf")
def _isinf(c: OnnxCall) -> Value:
    x, sides = c.value(), (c.attr("detect_positive", 1), c.attr("detect_negative", 1))
    if all(sides):
        return ir.binary("eq", ir.unary("abs", x), math.inf)
    return ir.binary("eq", x, math.inf if sides[0] else -math.inf) if any(sides) else ir.binary("ne", x, x)


@onnx_op("Where")
def _where(c: OnnxCall) -> Value:
    return ir.select(c.value(0), c.value(1), c.value(2))


@onnx_op("Dropout")
def _dropout(c: OnnxCall) -> list[Value]:
    if c.has(2) and (not isinstance(c.ins[2], np.ndarray) or c.ins[2].item()):
        raise UnsupportedError("training mode is not supported; export the model for inference")
    x = c.value()
    return [x, ir.full_like(x, True, "bool")]


@onnx_op("BitShift")
def _bit_shift(c: OnnxCall) -> Value:
    return ir.binary({"LEFT": "shl", "RIGHT": "shr"}[c.attr("direction")], c.value(0), c.value(1))


# --- shapes ---------------------------------------------------------------------------------------


@onnx_op("Range", "ConstantOfShape", "MelWeightMatrix", "HannWindow", "HammingWindow", "BlackmanWindow")
def _of_constants(c: OnnxCall) -> Value:
    """Operators whose operands decide the shape: all that can be done is done while importing."""
    for k in range(len(c.ins)):
        c.static(k, f"operand {k} of {c.op}")
    raise UnsupportedError("it cannot be computed while importing; run onnx.checker on the model")


@onnx_op("Shape")
def _shape(c: OnnxCall) -> np.ndarray:
    return np.array(c.value().shape[c.attr("start", 0) : c.attr("end")], np.int64)


@onnx_op("Size")
def _size(c: OnnxCall) -> np.ndarray:
    return np.array(c.value().type.size, np.int64)


@onnx_op("Reshape")
def _reshape(c: OnnxCall) -> Value:
    x = c.value()
    wanted = [int(n) for n in c.static(1, "the shape").reshape(-1)]
    if not c.attr("allowzero", 0):
        wanted = [x.shape[d] if n == 0 else n for d, n in enumerate(wanted)]
    if -1 in wanted:
        known = math.prod(n for n in wanted if n != -1)
        require(known > 0 and x.type.size % known == 0, f"{x.type} does not fit shape {wanted}")
        wanted[wanted.index(-1)] = x.type.size // known
    return ir.reshape(x, wanted)


@onnx_op("Flatten")
def _flatten(c: OnnxCall) -> Value:
    x = c.value()
    axis = c.attr("axis", 1)
    axis += x.type.rank if axis < 0 else 0
    return ir.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@onnx_op("Squeeze")
def _squeeze(c: OnnxCall) -> Value:
    x, axes = c.value(), c.ints(1, "axes", 13)
    gone = (
        {axis_in(a, x.type.rank) for a in axes} if axes is not None else {d for d, n in enumerate(x.shape) if n == 1}
    )
    require(all(x.shape[d] == 1 for d in gone), f"axes {sorted(gone)} of {x.type} are not all of extent 1")
    return ir.reshape(x, [n for d, n in enumerate(x.shape) if d not in gone])


@onnx_op("Unsqueeze")
def _unsqueeze(c: OnnxCall) -> Value:
    x, axes = c.value(), c.ints(1, "axes", 13) or []
    rank = x.type.rank + len(axes)
    fresh = {axis_in(a, rank) for a in axes}
    rest = iter(x.shape)
    return ir.reshape(x, [1 if d in fresh else next(rest) for d in range(rank)])


@onnx_op("Transpose")
def _transpose(c: OnnxCall) -> Value:
    x = c.value()
    return ir.transpose(x, c.attr("perm") or range(x.type.rank)[::-1])


@onnx_op("Expand")
def _expand(c: OnnxCall) -> Value:
    x = c.value()
    wanted = tuple(int(n) for n in c.static(1, "the shape").reshape(-1))
    return ir.broadcast_to(x, np.broadcast_shapes(x.shape, wanted))


@onnx_op("Tile")
def _tile(c: OnnxCall) -> Value:
    return nn.tile(c.value(), [int(n) for n in c.static(1, "the repeats").reshape(-1)])


@onnx_op("Concat")
def _concat(c: OnnxCall) -> Value:
    parts = c.values
    return ir.concat(parts, axis_in(c.attr("axis", 1), parts[0].type.rank))


@onnx_op("Split")
def _split(c: OnnxCall) -> list[Value]:
    x, axis = c.value(), c.attr("axis", 0)
    sizes = c.ints(1, "split", 13)
    if sizes is None:
        count = c.attr("num_outputs", c.outputs)
        n = x.shape[axis]
        size = -(-n // count)
        sizes = [size] * (count - 1) + [n - size * (count - 1)]
    return nn.split(x, axis, sizes)


@onnx_op("Slice")
def _slice(c: OnnxCall) -> Value:
    x = c.value()
    starts, ends = c.ints(1, "starts", 10) or [], c.ints(2, "ends", 10) or []
    axes = c.ints(3, "axes", 10) or list(range(len(starts)))
    steps = (c.ints(4, "steps", 10) if c.opset >= 10 else None) or [1] * len(starts)
    where = [range(n) for n in x.shape]
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        n = x.shape[axis]
        where[axis] = range(*slice(start, end, step).indices(n))
    backward = [d for d, r in enumerate(where) if r.step < 0]
    rising = [r[::-1] if r.step < 0 else r for r in where]
    begin = [r.start if len(r) else 0 for r in rising]
    limit = [r[-1] + 1 if len(r) else 0 for r in rising]
    plain = [r.step if len(r) > 1 else 1 for r in rising]
    return ir.reverse(ir.slice_(x, begin, limit, plain), backward)


@onnx_op("Pad")
def _pad(c: OnnxCall) -> Value:
    x = c.value()
    pads = c.ints(1, "pads", 11) or []
    axes = [axis_in(a, x.type.rank) for a in (c.ints(3, "axes", 18) or [])] if c.has(3) else list(range(x.type.rank))
    low, high = [0] * x.type.rank, [0] * x.type.rank
    for k, axis in enumerate(axes):
        low[axis], high[axis] = pads[k], pads[k + len(axes)]
    mode = c.attr("mode", "constant")
    if mode != "constant":
        return _pad_by_copies(x, low, high, mode)
    value = c.optional(2) if c.opset >= 11 else None
    number: Any = 0 if c.opset >= 11 else c.attr("value", 0.0)
    if value is not None:
        known = constant_of(value)
        if known is None:
            return _pad_with(x, low, high, value)
        number = known.item()
    return ir.pad(x, low, high, None, number)


def _pad_with(x: Value, low: Sequence[int], high: Sequence[int], value: Value) -> Value:
    """Padding by a value computed at run time."""
    inside = np.pad(
        np.ones([n + min(lo, 0) + min(hi, 0) for n, lo, hi in zip(x.shape, low, high, strict=True)], bool),
        [(max(lo, 0), max(hi, 0)) for lo, hi in zip(low, high, strict=True)],
    )
    return ir.select(x.builder.constant(inside), ir.pad(x, low, high), ir.reshape(value, ()))


def _pad_by_copies(x: Value, low: Sequence[int], high: Sequence[int], mode: str) -> Value:
    for axis in range(x.type.rank):
        inside = np.arange(max(-low[axis], 0), x.shape[axis] - max(-high[axis], 0))
        where = np.pad(inside, (max(low[axis], 0), max(high[axis], 0)), mode=mode)  # type: ignore[call-overload]
        x = nn.take(x, where, axis)
    return x


@onnx_op("DepthToSpace")
def _depth_to_space(c: OnnxCall) -> Value:
    x, b = c.value(), c.attr("blocksize")
    n, channels, h, w = x.shape
    if c.attr("mode", "DCR") == "DCR":
        return c.builder.op("depth_to_space", x, scale=b)
    out = ir.transpose(ir.reshape(x, (n, channels // b**2, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    return ir.reshape(out, (n, channels // b**2, h * b, w * b))


@onnx_op("SpaceToDepth")
def _space_to_depth(c: OnnxCall) -> Value:
    x, b = c.value(), c.attr("blocksize")
    n, channels, h, w = x.shape
    perm = (0, 3, 5, 1, 2, 4) if c.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    out = ir.transpose(ir.reshape(x, (n, channels, h // b, b, w // b, b)), perm)
    return ir.reshape(out, (n, channels * b**2, h // b, w // b))


@onnx_op("Trilu")
def _trilu(c: OnnxCall) -> Value:
    x = c.value()
    k = int(c.static(1, "the diagonal").item()) if c.has(1) else 0
    mask = (
        np.triu(np.ones(x.shape[-2:], bool), k)
        if c.attr("upper", 1)
        else np.tril(np.ones(x.shape[-2:], bool), k)
    )
    return ir.select(c.builder.constant(mask), x, ir.full_like(x, 0))


@onnx_op("OneHot")
def _one_hot(c: OnnxCall) -> Value:
    where, depth = c.value(0), int(c.static(1, "the depth").item())
    off, on = nn.split(c.value(2), 0, (1, 1))
    axis = axis_in(c.attr("axis", -1), where.type.rank + 1)
    shape = [*where.shape[:axis], depth, *where.shape[axis:]]
    index = ir.broadcast(where, shape, [d for d in range(len(shape)) if d != axis])
    wrapped = ir.select(ir.binary("lt", index, 0), ir.add(index, depth), index)
    ramp = ir.broadcast(ir.index_ramp(c.builder, depth, where.dtype), shape, (axis,))
    return ir.select(ir.binary("eq", wrapped, ramp), ir.reshape(on, ()), ir.reshape(off, ()))


# --- reductions and contractions ------------------------------------------------------------------


def _reduced(x: Value, axes: Sequence[int], keep: bool, op: str) -> Value:
    if op == "ReduceMean":
        return nn.mean(x, axes, keep)
    if op in ("ReduceMax", "ReduceMin"):
        kind = op[6:].lower()
        if x.dtype == "bool":
            return ir.cast(ir.reduce(kind, ir.cast(x, "u8"), axes, keep), "bool")
        return ir.reduce(kind, x, axes, keep)
    if op == "ReduceProd":
        return ir.reduce("prod", x, axes, keep)
    if op == "ReduceLogSumExp":
        top = ir.reduce("max", x, axes, True)
        total = ir.reduce("sum", ir.unary("exp", ir.sub(x, top)), axes, True)
        out = ir.add(ir.unary("log", total), top)
        return out if keep else ir.reshape(out, [n for d, n in enumerate(out.shape) if d not in axes])
    squares = op in ("ReduceL2", "ReduceSumSquare")
    total = ir.reduce(
        "sum", ir.unary("abs", x) if op == "ReduceL1" else ir.mul(x, x) if squares else x, axes, keep
    )
    last = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}.get(op)
    return ir.unary(last, total) if last else total


_REDUCTIONS = "Sum Mean Max Min Prod L1 L2 LogSum LogSumExp SumSquare"


@onnx_op(*(f"Reduce{name}" for name in _REDUCTIONS.split()))
def _reduce(c: OnnxCall) -> Value:
    x = c.value()
    axes = c.ints(1, "axes", 13 if c.op == "ReduceSum" else 18)
    if not axes:
        if c.attr("noop_with_empty_axes", 0):
            return _reduced(x, (), True, c.op)
        axes = list(range(x.type.rank))
    return _reduced(x, sorted(axis_in(a, x.type.rank) for a in axes), bool(c.attr("keepdims", 1)), c.op)


@onnx_op("ArgMax", "ArgMin")
def _arg(c: OnnxCall) -> Value:
    x, axis = c.value(), c.attr("axis", 0)
    best = nn.arg_best(x, c.op[3:].lower(), axis, bool(c.attr("select_last_index", 0)))
    out = ir.cast(best, "i64")
    kept = [1 if d == axis_in(axis, x.type.rank) else n for d, n in enumerate(x.shape)]
    return ir.reshape(out, kept) if c.attr("keepdims", 1) else out


@onnx_op("CumSum", "CumProd")
def _cumulative(c: OnnxCall) -> Value:
    x, axis = c.value(), axis_in(int(c.static(1, "the axis").item()), c.value().type.rank)
    kind, backward = c.op[3:].lower(), bool(c.attr("reverse", 0))
    if c.attr("exclusive", 0):
        low = [int(d == axis and not backward) for d in range(x.type.rank)]
        high = [int(d == axis and backward) for d in range(x.type.rank)]
        shifted = ir.pad(x, low, high, None, 1 if kind == "prod" else 0)
        x = ir.pad(shifted, [-n for n in high], [-n for n in low])
    return nn.cumulative(x, kind, axis, backward)


@onnx_op("Softmax", "LogSoftmax", "Hardmax")
def _softmax(c: OnnxCall) -> Value:
    """From opset 13 along one axis; before, over all axes from `axis` on."""
    functions = {"Softmax": nn.softmax, "LogSoftmax": nn.log_softmax, "Hardmax": _hardmax}
    x, axis = c.value(), c.attr("axis", 1 if c.opset < 13 else -1)
    if c.opset >= 13 or axis in (-1, x.type.rank - 1):
        return functions[c.op](x, axis)
    axis = axis_in(axis, x.type.rank)
    flat = ir.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return ir.reshape(functions[c.op](flat, 1), x.shape)


def _hardmax(x: Value, axis: int) -> Value:
    axis = axis_in(axis, x.type.rank)
    best = nn.arg_best(x, "max", axis)
    ramp = ir.broadcast(ir.index_ramp(x.builder, x.shape[axis], "i32"), x.shape, (axis,))
    where = ir.broadcast(best, x.shape, [d for d in range(x.type.rank) if d != axis])
    return ir.cast(ir.binary("eq", where, ramp), x.dtype)


@onnx_op("MatMul")
def _matmul(c: OnnxCall) -> Value:
    return nn.matmul(c.value(0), c.value(1))


@onnx_op("Einsum")
def _einsum(c: OnnxCall) -> Value:
    return nn.einsum(c.attr("equation"), *c.values)


@onnx_op("Gemm")
def _gemm(c: OnnxCall) -> Value:
    x, y = c.value(0), c.value(1)
    flags = bool(c.attr("transA", 0)), bool(c.attr("transB", 0))
    return nn.gemm(x, y, c.optional(2), c.attr("alpha", 1.0), c.attr("beta", 1.0), *flags)


from . import onnx_indexing, onnx_nn, onnx_recurrent, onnx_resize, onnx_signal  # noqa: E402, F401 (add handlers)
