"""Every row of `ir.scalars.SCALARS`, and every cast, as LLVM instructions on scalars and vectors.

The meaning is JAX's: `max` and `min` pass NaN on, conversions to integers truncate and saturate (NaN becomes
0). It differs in two things that `==` does not see, each an instruction cheaper: max(-0, 0) may be -0, and
denormals are kept where XLA flushes them. float16 and bfloat16 are computed in float32 and rounded. The elementary
functions of float64 call libm once per element; those of float32 are in `vecmath.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from llvmlite import ir

from ..ir.scalars import scalar
from ..ir.types import DTYPES
from . import vecmath
from .lanes import F32, F64, I32, Lanes, declare, type_of
from .llvm_types import register_type

F16 = ir.HalfType()
_MANTISSA = {"f32": 24, "f64": 53}
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

Emit = Callable[..., ir.Value]


def emit_scalar(fn: str, builder: ir.IRBuilder, args: Sequence[ir.Value], dtype: str) -> ir.Value:
    """The scalar function `fn` of `args`: scalars, or vectors of one width, holding `dtype` (of `select`, the
    condition holds bools and `dtype` is that of the other two). Raises `TypeRuleError` where the table of
    functions does."""
    row = scalar(fn)
    row.dtype(("bool",) * (fn == "select") + (dtype,) * (len(args) - (fn == "select")))
    v = Lanes.of(builder, args[-1])
    if fn == "select":
        return v.b.select(*args)
    if dtype in ("f16", "bf16"):
        wide = emit_scalar(fn, builder, [emit_cast(builder, a, dtype, "f32") for a in args], "f32")
        return wide if row.result == "bool" else emit_cast(builder, wide, "f32", dtype)
    return _EMITTERS[dtype if DTYPES[dtype].kind == "float" else DTYPES[dtype].kind][fn](v, *args)


# ---- floats --------------------------------------------------------------------------------------


def _is_number(x: ir.Value) -> bool:
    """Whether x is a constant without NaN."""
    if not isinstance(x, ir.Constant):
        return False
    if isinstance(x.constant, list | tuple):
        return all(_is_number(e) for e in x.constant)
    return isinstance(x.constant, int | float) and not math.isnan(x.constant)


def _extremum(order: str, v: Lanes, x: ir.Value, y: ir.Value) -> ir.Value:
    """max (order ">") or min ("<"). `vmaxps(y, x)` yields x when either is NaN, so what is left is a NaN in
    y: nothing if y is a constant (a relu is one instruction), else a compare and a blend that wait for y
    only. In a reduction make x the accumulator."""
    if _is_number(x):
        x, y = y, x
    best = v.b.select(v.b.fcmp_ordered(order, y, x), y, x)
    return best if _is_number(y) else v.b.select(v.b.fcmp_unordered("uno", y, y), y, best)


def _compare_float(order: str, v: Lanes, x: ir.Value, y: ir.Value) -> ir.Value:
    return v.b.fcmp_unordered(order, x, y) if order == "!=" else v.b.fcmp_ordered(order, x, y)


def _sign(v: Lanes, x: ir.Value) -> ir.Value:
    """+-1, or x itself where that is a zero or NaN."""
    nonzero = v.b.fcmp_ordered("!=", x, v.like(0.0, x))
    return v.where(nonzero, v.with_sign(v.like(1.0, x), x), x)


def _libm(name: str, v: Lanes, *args: ir.Value) -> ir.Value:
    """libm's function of float64, element by element."""
    function = declare(v.b.module, name, F64, [F64] * len(args))
    if v.count is None:
        return v.b.call(function, args)
    result: ir.Value = ir.Constant(type_of(args[0]), ir.Undefined)
    for i in range(v.count):
        at = ir.Constant(I32, i)
        element = v.b.call(function, [v.b.extract_element(a, at) for a in args])
        result = v.b.insert_element(result, element, at)
    return result


def _logistic64(v: Lanes, x: ir.Value) -> ir.Value:
    e = _libm("exp", v, v.b.fneg(v.abs(x)))
    return v.div(v.where(v.less(x, 0.0), e, 1.0), v.add(e, 1.0))  # as vecmath.logistic


_FLOAT: dict[str, Emit] = {
    "add": Lanes.add,
    "sub": Lanes.difference,
    "mul": Lanes.mul,
    "div": Lanes.div,
    "max": partial(_extremum, ">"),
    "min": partial(_extremum, "<"),
    "neg": lambda v, x: v.b.fneg(x),
    "abs": Lanes.abs,
    "sign": _sign,
    "floor": lambda v, x: v.intrinsic("floor", x),
    "ceil": lambda v, x: v.intrinsic("ceil", x),
    "round": lambda v, x: v.intrinsic("roundeven", x),
    "sqrt": lambda v, x: v.intrinsic("sqrt", x),
    "reciprocal": lambda v, x: v.div(1.0, x),
    "rsqrt": lambda v, x: v.div(1.0, v.intrinsic("sqrt", x)),  # within 1.5 ulp
    **{name: partial(_compare_float, order) for name, order in _COMPARISONS.items()},
}
_ELEMENTARY = ("exp", "log", "log1p", "tanh", "logistic", "erf", "sin", "cos", "pow")
_F32: dict[str, Emit] = _FLOAT | {name: getattr(vecmath, name) for name in _ELEMENTARY}
_F64: dict[str, Emit] = _FLOAT | {name: partial(_libm, name) for name in _ELEMENTARY}
_F64["logistic"] = _logistic64


# ---- integers and bools --------------------------------------------------------------------------


def _icmp(v: Lanes, signed: bool, order: str, x: ir.Value, y: ir.Value) -> ir.Value:
    return (v.b.icmp_signed if signed else v.b.icmp_unsigned)(order, x, y)


def _abs_int(v: Lanes, x: ir.Value) -> ir.Value:
    """|x|; the smallest number stays what it is, as in JAX and NumPy."""
    return v.b.select(_icmp(v, True, "<", x, v.like(0, x)), v.b.neg(x), x)


def _sign_int(v: Lanes, x: ir.Value) -> ir.Value:
    zero = v.like(0, x)
    positive = v.b.zext(_icmp(v, True, ">", x, zero), type_of(x))
    return v.b.add(positive, v.b.sext(_icmp(v, True, "<", x, zero), type_of(x)))


def _bits(v: Lanes, x: ir.Value) -> int:
    return (type_of(x) if v.count is None else type_of(x).element).width


def _in_width(v: Lanes, x: ir.Value, by: ir.Value) -> ir.Value:
    """A shift by `by` leaves something of x (negative amounts are large ones, as in XLA)."""
    return _icmp(v, False, "<", by, v.like(_bits(v, x), by))


def _shift_left(v: Lanes, x: ir.Value, by: ir.Value) -> ir.Value:
    return v.b.select(_in_width(v, x, by), v.b.shl(x, by), v.like(0, x))


def _shift_right(signed: bool, v: Lanes, x: ir.Value, by: ir.Value) -> ir.Value:
    """Signed numbers keep their sign, whatever the amount."""
    inside = _in_width(v, x, by)
    if not signed:
        return v.b.select(inside, v.b.lshr(x, by), v.like(0, x))
    return v.b.ashr(x, v.b.select(inside, by, v.like(_bits(v, x) - 1, by)))


def _quotient(signed: bool, v: Lanes, x: ir.Value, y: ir.Value) -> ir.Value:
    """Truncated; by zero it is -1 (all bits set), and the smallest number by -1 itself, as in XLA. LLVM has no
    result for either."""
    one, minus = v.like(1, x), v.like(-1, x)
    by_zero = v.b.icmp_unsigned("==", y, v.like(0, y))
    safe = v.b.select(by_zero, one, y)
    if not signed:
        return v.b.select(by_zero, minus, v.b.udiv(x, safe))
    negated = v.b.icmp_unsigned("==", y, minus)
    done = v.b.select(negated, v.b.neg(x), v.b.sdiv(x, v.b.select(negated, one, safe)))
    return v.b.select(by_zero, minus, done)


def _integers(signed: bool) -> dict[str, Emit]:
    def pick(order: str) -> Emit:
        return lambda v, x, y: v.b.select(_icmp(v, signed, order, x, y), x, y)

    def compare(order: str) -> Emit:
        return lambda v, x, y: _icmp(v, signed, order, x, y)

    return {
        "add": lambda v, x, y: v.b.add(x, y),
        "sub": lambda v, x, y: v.b.sub(x, y),
        "mul": lambda v, x, y: v.b.mul(x, y),
        "max": pick(">"),
        "min": pick("<"),
        "neg": lambda v, x: v.b.neg(x),
        "abs": _abs_int,
        "sign": _sign_int,
        "and": lambda v, x, y: v.b.and_(x, y),
        "or": lambda v, x, y: v.b.or_(x, y),
        "xor": lambda v, x, y: v.b.xor(x, y),
        "not": lambda v, x: v.b.xor(x, v.like(-1, x)),
        "shl": _shift_left,
        "shr": partial(_shift_right, signed),
        "quotient": partial(_quotient, signed),
        **{name: compare(order) for name, order in _COMPARISONS.items()},
    }


_EMITTERS: dict[str, dict[str, Emit]] = {
    "f32": _F32,
    "f64": _F64,
    "int": _integers(signed=True),
    "uint": _integers(signed=False),
    "bool": _integers(signed=False),  # of which the table admits eq, ne, and, or, not
}


# ---- casts ---------------------------------------------------------------------------------------


def emit_cast(builder: ir.IRBuilder, value: ir.Value, from_dtype: str, to_dtype: str) -> ir.Value:
    """A scalar or vector of `from_dtype` as `to_dtype`, as JAX converts: floats to integers truncate and
    saturate, NaN becomes 0; integers to integers keep the low bits; to bool asks whether it is not zero (NaN
    is not)."""
    if from_dtype == to_dtype:
        return value
    v = Lanes.of(builder, value)
    if from_dtype == "bf16":
        return emit_cast(builder, _from_bf16(v, value), "f32", to_dtype)
    if to_dtype == "bf16":
        odd = from_dtype == "f64"
        return _to_bf16(v, _round_to_odd(v, value) if odd else emit_cast(builder, value, from_dtype, "f32"))
    source, result = DTYPES[from_dtype].kind, DTYPES[to_dtype].kind
    if result == "bool":
        unequal = v.b.fcmp_unordered if source == "float" else v.b.icmp_unsigned
        return unequal("!=", value, v.like(0, value))
    if source == "float":
        return (_float_to_float if result == "float" else _float_to_int)(v, value, from_dtype, to_dtype)
    if result == "float":
        return _int_to_float(v, value, source == "int", to_dtype)
    typ = v.type(register_type(to_dtype))
    size = 0 if source == "bool" else DTYPES[from_dtype].size
    if DTYPES[to_dtype].size == size:
        return value
    if DTYPES[to_dtype].size < size:
        return v.b.trunc(value, typ)
    return v.b.sext(value, typ) if source == "int" else v.b.zext(value, typ)


def _from_bf16(v: Lanes, value: ir.Value) -> ir.Value:
    """A bfloat16 is the upper half of a float32."""
    wide = v.b.zext(value, v.type(I32))
    return v.from_bits(v.b.shl(wide, v.like(16, wide)))


def _to_bf16(v: Lanes, value: ir.Value) -> ir.Value:
    """To nearest, ties to even, by integers: half of the last place, less one if that place is even, carries over.
    NaN stays quiet NaN. (`vcvtneps2bf16` would flush denormals.)"""
    bits = v.bits(value)
    odd = v.b.and_(v.b.lshr(bits, v.like(16, bits)), v.like(1, bits))
    rounded = v.b.add(v.b.add(bits, v.like(0x7FFF, bits)), odd)
    quiet = v.b.or_(bits, v.like(1 << 22, bits))
    picked = v.b.select(v.b.fcmp_unordered("uno", value, value), quiet, rounded)
    return v.b.trunc(v.b.lshr(picked, v.like(16, bits)), v.type(ir.IntType(16)))


def _int_to_float(v: Lanes, value: ir.Value, signed: bool, to_dtype: str) -> ir.Value:
    """By float32 to float16: it holds every integer that float16 does not overflow on."""
    typ = v.type(F32 if to_dtype == "f16" else register_type(to_dtype))
    wide = (v.b.sitofp if signed else v.b.uitofp)(value, typ)
    return v.b.fptrunc(wide, v.type(F16)) if to_dtype == "f16" else wide


def _float_to_float(v: Lanes, value: ir.Value, from_dtype: str, to_dtype: str) -> ir.Value:
    """Between float16 and float64 by float32: the direct conversions are calls into a library."""
    if to_dtype == "f64":
        if from_dtype == "f16":
            value = v.b.fpext(value, v.type(F32))
        return v.b.fpext(value, v.type(F64))
    if from_dtype == "f16":
        return v.b.fpext(value, v.type(F32))
    if to_dtype == "f32":
        return v.b.fptrunc(value, v.type(F32))
    narrow = _round_to_odd(v, value) if from_dtype == "f64" else value
    return v.b.fptrunc(narrow, v.type(F16))


def _round_to_odd(v: Lanes, value: ir.Value) -> ir.Value:
    """A float64 as float32, truncated and with the last bit set if that lost anything, so that rounding again
    is right (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008)."""
    nearest = v.b.fptrunc(value, v.type(F32))
    back = v.b.fpext(nearest, v.type(F64))
    too_far = v.b.zext(v.less(v.abs(value), v.abs(back)), v.type(I32))
    inexact = v.b.zext(v.b.fcmp_ordered("!=", value, back), v.type(I32))
    return v.from_bits(v.b.or_(v.b.sub(v.bits(nearest), too_far), inexact))


def _float_to_int(v: Lanes, value: ir.Value, from_dtype: str, to_dtype: str) -> ir.Value:
    """Clamped first, since LLVM leaves conversions out of range undefined (and makes scalars of
    `llvm.fptosi.sat`). A highest integer that the float type lacks is chosen afterwards."""
    if from_dtype == "f16":
        value, from_dtype = v.b.fpext(value, v.type(F32)), "f32"
    info = np.iinfo(DTYPES[to_dtype].numpy)
    low, high = int(info.min), int(info.max)
    signed, exact = low < 0, high.bit_length() <= _MANTISSA[from_dtype]
    x = v.where(v.less(float(low), value), value, float(low))  # NaN becomes low
    if exact:
        x = v.at_most(x, float(high))
    size = DTYPES[to_dtype].size
    register = v.type(I32 if size <= 4 else register_type(to_dtype))
    y = (v.b.fptosi if signed else v.b.fptoui)(x, register)
    if not exact:
        y = v.b.select(v.less(value, float(high + 1)), y, v.like(high, y))
    if signed or not exact:
        y = v.b.select(v.b.fcmp_ordered("ord", value, value), y, v.like(0, y))
    return v.b.trunc(y, v.type(register_type(to_dtype))) if size < 4 else y
