"""What each JAX primitive becomes: one entry a primitive in `PRIMITIVES`.

A handler takes the importer, the primitive's parameters and its operands (nodes, or arrays known while
importing), and returns the result or, for primitives with several results, a list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import canonical as ir
from . import composites as nn
from . import indexing
from .errors import UnsupportedError
from .graph import Value
from .operator import require
from .types import DTYPES, dtype_of

if TYPE_CHECKING:
    from .jax_frontend import JaxImporter

Params = dict[str, Any]
Handler = Callable[..., Any]
PRIMITIVES: dict[str, Handler] = {}
FEW = 64  # constant positions up to which slices are joined; beyond, a gather


def on_values(*names: str) -> Callable[[Handler], Handler]:
    """Register `handler(params, *values)`: every operand is a node."""

    def register(handler: Handler) -> Handler:
        def call(importer: JaxImporter, params: Params, *ins: Any) -> Any:
            return handler(params, *(importer.value(x) for x in ins))

        PRIMITIVES.update(dict.fromkeys(names, call))
        return handler

    return register


def on_importer(*names: str) -> Callable[[Handler], Handler]:
    """Register `handler(importer, params, *operands)`."""

    def register(handler: Handler) -> Handler:
        PRIMITIVES.update(dict.fromkeys(names, handler))
        return handler

    return register


def _static(x: Any, what: str) -> np.ndarray:
    if not isinstance(x, np.ndarray):
        raise UnsupportedError(f"{what} must be known while importing; make it a constant of the function")
    return x


# --- elementwise ----------------------------------------------------------------------------------

_UNARY = "abs floor ceil sqrt rsqrt exp log log1p tanh logistic erf sin cos not"
for _name in _UNARY.split():
    on_values(_name)(lambda p, x, op=_name: ir.unary(op, x))
for _name in ["add", "sub", "mul", "max", "min", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor"]:
    on_values(_name)(lambda p, x, y, op=_name: ir.binary(op, x, y))
for _name in ["copy", "copy_p", "stop_gradient", "device_put", "sharding_constraint", "pvary", "mesh_cast"]:
    on_values(_name)(lambda p, *x: x[0] if len(x) == 1 else list(x))

on_values("neg")(lambda p, x: ir.sub(0, x) if DTYPES[x.dtype].kind == "uint" else ir.unary("neg", x))
on_values("sign")(lambda p, x: ir.minimum(x, 1) if DTYPES[x.dtype].kind == "uint" else ir.unary("sign", x))
on_values("optimization_barrier")(lambda p, *x: list(x))
on_values("add_any")(lambda p, x, y: ir.add(x, y))
on_values("div")(lambda p, x, y: ir.divide(x, y))
on_values("pow")(lambda p, x, y: nn.power(x, y))
on_values("integer_pow")(lambda p, x: nn.integer_power(x, p["y"]))
on_values("square")(lambda p, x: ir.mul(x, x))
on_values("expm1")(lambda p, x: nn.expm1(x))
on_values("exp2")(lambda p, x: ir.unary("exp", ir.mul(x, math.log(2))))
on_values("erfc")(lambda p, x: nn.erfc(x))
on_values("tan")(lambda p, x: ir.divide(ir.unary("sin", x), ir.unary("cos", x)))
for _function in (nn.sinh, nn.cosh, nn.asin, nn.acos, nn.atan, nn.asinh, nn.acosh):
    on_values(_function.__name__)(lambda p, x, f=_function: f(x))
on_values("atanh")(
    lambda p, x: ir.mul(ir.sub(ir.unary("log1p", x), ir.unary("log1p", ir.unary("neg", x))), 0.5)
)
on_values("is_finite")(lambda p, x: ir.binary("lt", ir.unary("abs", x), math.inf))
on_values("convert_element_type")(lambda p, x: ir.cast(x, dtype_of(p["new_dtype"])))
on_values("clamp")(lambda p, low, x, high: ir.minimum(ir.maximum(x, low), high))


@on_values("round")
def _round(p: Params, x: Value) -> Value:
    if int(p["rounding_method"]) == 1:
        return nn.round_even(x)
    return nn.round_away(x)


@on_values("rem")
def _rem(p: Params, x: Value, y: Value) -> Value:
    require(x.dtype != "f64", "of float64 it is not supported")
    return nn.remainder(x, y)


on_values("shift_left")(lambda p, x, y: ir.binary("shl", x, y))
on_values("shift_right_arithmetic")(lambda p, x, y: ir.binary("shr", x, y))


@on_values("shift_right_logical")
def _shift_right_logical(p: Params, x: Value, y: Value) -> Value:
    bits = f"u{8 * DTYPES[x.dtype].size}"
    return ir.cast(ir.binary("shr", ir.cast(x, bits), ir.cast(y, bits)), x.dtype)


@on_importer("select_n")
def _select_n(importer: JaxImporter, p: Params, which: Any, *cases: Any) -> Any:
    if isinstance(which, np.ndarray) and (which == which.flat[0]).all():
        return cases[int(which.flat[0])]
    index = importer.value(which)
    values = [importer.value(c) for c in cases]
    if index.dtype == "bool":
        return ir.select(index, values[1], values[0])
    out = values[-1]
    for k in reversed(range(len(values) - 1)):
        out = ir.select(ir.binary("eq", index, k), values[k], out)
    return out


# --- movement -------------------------------------------------------------------------------------

on_values("broadcast_in_dim")(lambda p, x: ir.broadcast(x, p["shape"], p["broadcast_dimensions"]))
on_values("transpose")(lambda p, x: ir.transpose(x, p["permutation"]))
on_values("rev")(lambda p, x: ir.reverse(x, p["dimensions"]))
on_values("slice")(lambda p, x: ir.slice_(x, p["start_indices"], p["limit_indices"], p["strides"]))
on_values("concatenate")(lambda p, *x: ir.concat(x, p["dimension"]))
on_values("tile")(lambda p, x: nn.tile(x, p["reps"]))
on_values("split")(lambda p, x: nn.split(x, p["axis"], p["sizes"]))


@on_values("reshape")
def _reshape(p: Params, x: Value) -> Value:
    order = p.get("dimensions")
    return ir.reshape(x if order is None else ir.transpose(x, order), p["new_sizes"])


@on_values("stack")
def _stack(p: Params, *x: Value) -> Value:
    shape = list(x[0].shape)
    shape.insert(p["axis"], 1)
    return ir.concat([ir.reshape(v, shape) for v in x], p["axis"])


@on_values("squeeze")
def _squeeze(p: Params, x: Value) -> Value:
    return ir.reshape(x, [n for d, n in enumerate(x.shape) if d not in p["dimensions"]])


@on_values("expand_dims")
def _expand_dims(p: Params, x: Value) -> Value:
    shape = list(x.shape)
    for d in sorted(p["dimensions"]):
        shape.insert(d, 1)
    return ir.reshape(x, shape)


@on_importer("pad")
def _pad(importer: JaxImporter, p: Params, x: Any, value: Any) -> Value:
    low, high, interior = zip(*p["padding_config"], strict=True) if p["padding_config"] else ((), (), ())
    number = _static(value, "the padding value").item()
    return ir.pad(importer.value(x), low, high, interior, number)


@on_importer("dynamic_slice")
def _dynamic_slice(importer: JaxImporter, p: Params, x: Any, *starts: Any) -> Value:
    v, sizes = importer.value(x), p["slice_sizes"]
    if not all(isinstance(s, np.ndarray) for s in starts):
        return indexing.window_at(v, [importer.value(s) for s in starts], sizes)
    begin = _clamped(starts, v.shape, sizes)
    return ir.slice_(v, begin, [b + n for b, n in zip(begin, sizes, strict=True)])


def _clamped(starts: Sequence[Any], shape: Sequence[int], sizes: Sequence[int]) -> list[int]:
    where = [int(_static(s, "the start of a dynamic slice")) for s in starts]
    return [min(max(w, 0), n - k) for w, n, k in zip(where, shape, sizes, strict=True)]


@on_importer("dynamic_update_slice")
def _dynamic_update_slice(importer: JaxImporter, p: Params, x: Any, update: Any, *starts: Any) -> Value:
    v, u = importer.value(x), importer.value(update)
    if not all(isinstance(s, np.ndarray) for s in starts):
        return jax_indexing.dynamic_update_slice(v, u, [importer.value(s) for s in starts])
    return _updated(v, u, _clamped(starts, v.shape, u.shape), "replace")


def _updated(x: Value, update: Value, low: Sequence[int], how: str) -> Value:
    """`x` with the window at `low` replaced by `update`, or with `update` added to it."""
    high = [n - b - k for n, b, k in zip(x.shape, low, update.shape, strict=True)]
    spread = ir.pad(update, low, high)
    if how == "add":
        return ir.add(x, spread)
    inside = np.zeros(x.shape, bool)
    inside[tuple(slice(b, b + n) for b, n in zip(low, update.shape, strict=True))] = True
    return spread if inside.all() else ir.select(x.builder.constant(inside), spread, x)


def _scatter(importer: JaxImporter, p: Params, x: Any, indices: Any, updates: Any, how: str) -> Value:
    """At constant positions, one update after the other; updates out of range are dropped, or moved inside (clip)."""
    out, u = importer.value(x), importer.value(updates)
    if not isinstance(indices, np.ndarray) or math.prod(indices.shape[:-1]) > FEW:
        kind = {"replace": "replace", "add": "sum"}[how]
        return jax_indexing.scatter(out, importer.value(indices), u, p, kind)
    where = indices
    numbers = p["dimension_numbers"]
    require(not getattr(numbers, "operand_batching_dims", ()), "with batching dimensions")
    window = list(numbers.update_window_dims)
    batch = [d for d in range(u.type.rank) if d not in window]
    rows = where.reshape(-1, where.shape[-1])
    rest = iter(u.shape[d] for d in window)
    shape = [1 if d in numbers.inserted_window_dims else next(rest) for d in range(out.type.rank)]
    pieces = ir.reshape(ir.transpose(u, batch + window), (len(rows), *shape))
    for k, row in enumerate(rows):
        low = [0] * out.type.rank
        for d, s in zip(numbers.scatter_dims_to_operand_dims, row, strict=True):
            low[d] = int(s)
        if str(p["mode"]).endswith("CLIP"):
            low = [min(max(b, 0), n - m) for b, n, m in zip(low, out.shape, shape, strict=True)]
        if all(0 <= b <= n - m for b, n, m in zip(low, out.shape, shape, strict=True)):
            piece = ir.slice_(pieces, [k] + [0] * len(shape), [k + 1, *shape])
            out = _updated(out, ir.reshape(piece, shape), low, how)
    return out


on_importer("scatter")(lambda *operands: _scatter(*operands, how="replace"))
on_importer("scatter-add", "scatter_add")(lambda *operands: _scatter(*operands, how="add"))
for _name, _kind in {"scatter-mul": "prod", "scatter-min": "min", "scatter-max": "max"}.items():
    on_values(_name)(lambda p, x, where, u, kind=_kind: jax_indexing.scatter(x, where, u, p, kind))


@on_importer("gather")
def _gather(importer: JaxImporter, p: Params, x: Any, indices: Any) -> Value:
    """With a few constant positions: slices, joined."""
    v = importer.value(x)
    if not isinstance(indices, np.ndarray) or math.prod(indices.shape[:-1]) > FEW:
        return jax_indexing.gather(v, importer.value(indices), p)
    where = indices
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    if getattr(numbers, "operand_batching_dims", ()) or _fills(p, where, v.shape):
        return jax_indexing.gather(v, importer.value(indices), p)
    batch = where.shape[:-1]
    collapsed = set(numbers.collapsed_slice_dims)
    kept = [n for d, n in enumerate(sizes) if d not in collapsed]
    parts = []
    for row in where.reshape(-1, where.shape[-1]):
        start = [0] * v.type.rank
        for d, s in zip(numbers.start_index_map, row, strict=True):
            start[d] = min(max(int(s), 0), v.shape[d] - sizes[d])
        piece = ir.slice_(v, start, [s + n for s, n in zip(start, sizes, strict=True)])
        parts.append(ir.reshape(piece, (1, *kept)))
    require(bool(parts), "without positions")
    out = ir.reshape(ir.concat(parts, 0), (*batch, *kept))
    offset = list(numbers.offset_dims)
    order = iter(range(len(batch)))
    perm = [
        len(batch) + offset.index(d) if d in offset else next(order) for d in range(len(batch) + len(kept))
    ]
    return ir.transpose(out, perm)


def _fills(p: Params, where: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether the gather yields a fill value for positions that lie outside, and some do."""
    last = np.array([shape[d] - p["slice_sizes"][d] for d in p["dimension_numbers"].start_index_map])
    outside = bool(((where < 0) | (where > last)).any())
    return outside and str(p["mode"]).endswith("FILL_OR_DROP")


@on_importer("iota")
def _iota(importer: JaxImporter, p: Params) -> Value:
    dtype = dtype_of(p["dtype"])
    ramp = ir.index_ramp(importer.builder, p["shape"][p["dimension"]], dtype)
    return ir.broadcast(ramp, p["shape"], (p["dimension"],))


# --- reductions -----------------------------------------------------------------------------------

for _kind in ("sum", "max", "min", "prod"):
    on_values(f"reduce_{_kind}")(lambda p, x, kind=_kind: ir.reduce(kind, x, p["axes"]))
    on_values(f"cum{_kind}")(lambda p, x, kind=_kind: nn.cumulative(x, kind, p["axis"], p["reverse"]))


@on_values("reduce_and")
def _reduce_and(p: Params, x: Value) -> Value:
    return ir.reduce("min", x, p["axes"])


@on_values("reduce_or")
def _reduce_or(p: Params, x: Value) -> Value:
    return ir.reduce("max", x, p["axes"])


@on_values("argmax")
def _argmax(p: Params, x: Value) -> Value:
    return ir.cast(nn.arg_best(x, "max", p["axes"][0]), dtype_of(p["index_dtype"]))


@on_values("argmin")
def _argmin(p: Params, x: Value) -> Value:
    return ir.cast(nn.arg_best(x, "min", p["axes"][0]), dtype_of(p["index_dtype"]))


def _window(p: Params, x: Value, kind: str) -> Value:
    from .scalars import neutral

    gaps = [d - 1 for d in p["base_dilation"]]
    zeros = [0] * x.type.rank
    spread = ir.pad(x, zeros, zeros, gaps, neutral(kind, x.dtype))
    if all(n == 1 for n in p["window_dimensions"]) and all(k == 1 for k in p["window_strides"]):
        low, high = zip(*p["padding"], strict=True)
        return ir.pad(spread, low, high, None, neutral(kind, x.dtype))
    return x.builder.op(
        "window",
        spread,
        kind=kind,
        window=p["window_dimensions"],
        strides=p["window_strides"],
        padding=p["padding"],
        dilation=p["window_dilation"],
    )


for _kind in ("sum", "max", "min"):
    on_values(f"reduce_window_{_kind}")(lambda p, x, kind=_kind: _window(p, x, kind))


# --- contractions ---------------------------------------------------------------------------------


def _contracted(p: Params, contract: Callable[..., Value], *operands: Value) -> Value:
    """A contraction of the operands in the type that it accumulates in: the wanted one (integers are exact there), of
    halves float32, rounded once."""
    wanted = p.get("preferred_element_type")
    result = operands[0].dtype if wanted is None else dtype_of(wanted)
    wide = "f32" if result in ("f16", "bf16") else result
    return ir.cast(contract(*(ir.cast(x, wide) for x in operands)), result)


@on_values("dot_general")
def _dot_general(p: Params, x: Value, y: Value) -> Value:
    contract, batch = p["dimension_numbers"]
    return _contracted(p, lambda x, y: ir.dot(x, y, tuple(map(tuple, contract)), tuple(map(tuple, batch))), x, y)


@on_values("conv_general_dilated")
def _conv(p: Params, x: Value, w: Value) -> Value:
    numbers = p["dimension_numbers"]
    require(x.type.rank > 2, "without spatial axes")
    batches, features = p["batch_group_count"], p["feature_group_count"]

    def contract(x: Value, w: Value) -> Value:
        out = nn.conv(
            _batches_as_channels(ir.transpose(x, numbers.lhs_spec), batches),
            ir.transpose(w, numbers.rhs_spec),
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            max(features, batches),
        )
        return ir.transpose(out, [numbers.out_spec.index(d) for d in range(len(numbers.out_spec))])

    return _contracted(p, contract, x, w)


def _batches_as_channels(x: Value, groups: int) -> Value:
    """(groups * n, c, …) -> (n, groups * c, …): what a group of output channels reads is then a group of channels."""
    if groups == 1:
        return x
    batch, channels, *image = x.shape
    apart = ir.reshape(x, (groups, batch // groups, channels, *image))
    beside = ir.transpose(apart, (1, 0, *range(2, apart.type.rank)))
    return ir.reshape(beside, (batch // groups, groups * channels, *image))


from . import jax_control, jax_indexing  # noqa: E402, F401 (add their primitives)
