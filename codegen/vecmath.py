"""Elementary functions of float32 as LLVM vector instructions of any width: no call, no branch, no table.

Every function covers all of float32, and its docstring states the greatest error in units in the last place
(ulp), measured where the target fuses multiply and add; `tests/codegen/test_vecmath.py` holds it to that.
Where an operator's name becomes one of these functions is decided in `scalar_ops.py`.

Coefficients without another source were fitted for this file: minimax in relative error by least squares in
float64 over 4,000 Chebyshev nodes, reweighted with the errors until they level (Lawson), then rounded to the
working format; those of `exp` and `log` were afterwards moved by single bits while that lowered the measured
greatest error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .llvm_types import has_feature

F32, F64 = ir.FloatType(), ir.DoubleType()
I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_FUSE = ("contract",)  # fmul + fadd may become one FMA (`llvm.fma` is a libm call on targets without it)


def type_of(value: ir.Value) -> Any:
    """`value.type`, which llvmlite does not declare on its base class."""
    return value.type


class Splat(ir.Constant):
    """A vector constant of equal elements, in LLVM's short form `splat (float 1.0)`."""

    def __init__(self, typ: ir.Type, number: float):
        super().__init__(typ, number)
        self.number = number

    def _get_reference(self) -> str:
        first = self.constant[0]
        return f"splat ({first.type} {first.get_reference()})"


@dataclass(frozen=True)
class Lanes:
    """Instructions over operands of one shape: `count` elements in a vector, or scalars if it is None.

    `b` is the `ir.IRBuilder`; llvmlite's decorators hide from type checkers what its methods return.
    """

    b: Any
    count: int | None

    @classmethod
    def of(cls, builder: ir.IRBuilder, value: ir.Value) -> Lanes:
        typ = type_of(value)
        return cls(builder, typ.count if isinstance(typ, ir.VectorType) else None)

    def type(self, element: ir.Type) -> ir.Type:
        return element if self.count is None else ir.VectorType(element, self.count)

    def const(self, number: float, element: ir.Type = F32) -> ir.Constant:
        return ir.Constant(element, number) if self.count is None else Splat(self.type(element), number)

    def like(self, number: float, x: ir.Value) -> ir.Constant:
        """A constant of x's type."""
        return self.const(number, type_of(x) if self.count is None else type_of(x).element)

    def _operands(self, x: ir.Value | float, y: ir.Value | float) -> tuple[ir.Value, ir.Value]:
        if not isinstance(x, ir.Value):
            assert isinstance(y, ir.Value)
            return self.like(x, y), y
        return x, y if isinstance(y, ir.Value) else self.like(y, x)

    # Arithmetic; one operand of each may be a Python number.

    def add(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fadd(*self._operands(x, y), flags=_FUSE)

    def sub(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fsub(*self._operands(x, y), flags=_FUSE)

    def difference(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        """As `sub`, of rounded operands: a difference to a maximum of products is not above 0, as it might be with a
        product that one instruction multiplies and subtracts from (a softmax of 1e10 would then be infinite)."""
        return self.b.fsub(*self._operands(x, y))

    def mul(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fmul(*self._operands(x, y), flags=_FUSE)

    def div(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fdiv(*self._operands(x, y))

    def fma(self, x: ir.Value, y: ir.Value | float, z: ir.Value | float) -> ir.Value:
        """x * y + z, fused where the target can."""
        return self.add(self.mul(x, y), z)

    def horner(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """The polynomial with these coefficients, that of x**0 first."""
        *rest, last = coefficients
        value: ir.Value = self.like(last, x)
        for c in reversed(rest):
            value = self.fma(value, x, c)
        return value

    # Comparison and choice.

    def less(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fcmp_ordered("<", *self._operands(x, y))

    def equal(self, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.fcmp_ordered("==", *self._operands(x, y))

    def where(self, condition: ir.Value, x: ir.Value | float, y: ir.Value | float) -> ir.Value:
        return self.b.select(condition, *self._operands(x, y))

    def at_most(self, x: ir.Value, bound: float) -> ir.Value:
        """min(x, bound) that passes NaN on; one `vminps`."""
        return self.where(self.less(bound, x), bound, x)

    def at_least(self, x: ir.Value, bound: float) -> ir.Value:
        """max(x, bound) that passes NaN on; one `vmaxps`."""
        return self.where(self.less(x, bound), bound, x)

    # Bits, and what LLVM names by intrinsics.

    def bits(self, x: ir.Value, element: ir.Type = I32) -> ir.Value:
        return self.b.bitcast(x, self.type(element))

    def from_bits(self, x: ir.Value, element: ir.Type = F32) -> ir.Value:
        return self.b.bitcast(x, self.type(element))

    def int(self, number: int, element: ir.Type = I32) -> ir.Constant:
        return self.const(number, element)

    def intrinsic(self, name: str, *args: ir.Value) -> ir.Value:
        """Call `llvm.<name>` for the operands' type (`declare_intrinsic` refuses vectors)."""
        typ = type_of(args[0])
        element = typ if self.count is None else typ.element
        suffix = element.intrinsic_name if self.count is None else f"v{self.count}{element.intrinsic_name}"
        return self.b.call(declare(self.b.module, f"llvm.{name}.{suffix}", typ, [typ] * len(args)), args)

    @property
    def scales(self) -> bool:
        """`scaled` is one instruction (Zen 4: 8.9 cycles for exp of 16 floats, 11.4 with two factors)."""
        return self.count is not None and self.count <= 16 and has_feature(self.b.module, "avx512vl")

    def scaled(self, x: ir.Value, n: ir.Value) -> ir.Value:
        """x * 2**n of float32 and integral n, rounded once: AVX-512's `vscalefps`, on a register of its next size."""
        assert self.count is not None
        width = next(w for w in (4, 8, 16) if w >= self.count)
        full = ir.VectorType(F32, width)
        mask = ir.IntType(16 if width == 16 else 8)
        rounding = [ir.Constant(I32, 4)] if width == 16 else []  # the current mode
        operands = [self._resized(a, width) for a in (x, n)]
        args = [*operands, ir.Constant(full, ir.Undefined), ir.Constant(mask, -1), *rounding]
        name = f"llvm.x86.avx512.mask.scalef.ps.{32 * width}"
        function = declare(self.b.module, name, full, [full, full, full, mask, *(I32 for _ in rounding)])
        return self._resized(self.b.call(function, args), self.count)

    def _resized(self, x: ir.Value, lanes: int) -> ir.Value:
        """The first `lanes` lanes, filled up with anything."""
        if type_of(x).count == lanes:
            return x
        places = ir.Constant(ir.VectorType(I32, lanes), [min(k, type_of(x).count) for k in range(lanes)])
        return self.b.shuffle_vector(x, ir.Constant(type_of(x), ir.Undefined), places)

    def abs(self, x: ir.Value) -> ir.Value:
        return self.intrinsic("fabs", x)

    def with_sign(self, x: ir.Value, sign: ir.Value) -> ir.Value:
        return self.intrinsic("copysign", x, sign)


def declare(module: ir.Module, name: str, result: ir.Type, args: Sequence[ir.Type]) -> ir.Function:
    """The function `name` of the module, declared when it is not there yet."""
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(result, args), name)
    return module.globals[name]


# ---- exponentials --------------------------------------------------------------------------------

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # Cephes' expf: n * _LN2_HIGH is exact for |n| < 2**15
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits of the mantissa
# exp(r) on |r| <= ln2 / 2, fitted for ulp (not relative) error.
_EXP = (
    1.0, 0.9999995231628418, 0.49999141693115234,
    0.16668078303337097, 0.04189877212047577, 0.008266057819128036,
)  # fmt: skip
# (2**r - 1) / r on |r| <= 1 / 2.
_EXP2M1 = (
    0.6931471824645996, 0.24022644758224487, 0.055503588169813156,
    0.009618348442018032, 0.001339069101959467, 0.00015403512225020677,
)  # fmt: skip


def _exp(v: Lanes, x: ir.Value) -> ir.Value:
    """exp(x) of x in [-104, 89] or NaN. 2**n is applied by one instruction where there is one, else in two factors, so
    that denormals are rounded once and n = 128 overflows only when it must."""
    if v.scales:
        n = v.sub(v.fma(x, _LOG2E, _ROUND), _ROUND)
        return v.scaled(v.horner(v.fma(n, -_LN2_LOW, v.fma(n, -_LN2_HIGH, x)), _EXP), n)
    bias = 254.0  # twice the exponent's bias: each factor gets one half of it and one half of n
    shifted = v.fma(x, _LOG2E, _ROUND + bias)
    n = v.sub(shifted, _ROUND + bias)
    r = v.fma(n, -_LN2_LOW, v.fma(n, -_LN2_HIGH, x))
    p = v.horner(r, _EXP)
    m = v.bits(shifted)
    half = v.b.lshr(m, v.int(1))
    low = v.from_bits(v.b.shl(half, v.int(23)))
    high = v.from_bits(v.b.shl(v.b.sub(m, half), v.int(23)))
    return v.mul(v.mul(p, low), high)


def exp(v: Lanes, x: ir.Value) -> ir.Value:
    """e**x within 2 ulp; overflows to inf from 88.72284, denormal below -87.34, 0 below -103.97."""
    return _exp(v, v.at_least(v.at_most(x, 89.0), -104.0))


def logistic(v: Lanes, x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x)) within 4 ulp, denormal results included: exp(-|x|) or 1, divided by 1 + exp(-|x|)."""
    e = _exp(v, v.at_least(v.b.fneg(v.abs(x)), -104.0))
    return v.div(v.where(v.less(x, 0.0), e, 1.0), v.add(e, 1.0))


def _exp2m1(v: Lanes, t: ir.Value) -> ir.Value:
    """2**t - 1 of t in [-44, 0] or NaN, within 2 ulp; -1 where it rounds to that. Reducing t is exact, and takes
    additions only, which on Zen 4 have pipes of their own (tanh of 16 floats: 15.0 -> 13.9 cycles, gelu 23.9 ->
    22.9)."""
    bias = v.like(_ROUND + 127.0, t)
    shifted = v.b.fadd(t, bias)  # not to be fused with the product that t may be
    r = v.b.fsub(t, v.b.fsub(shifted, bias))
    scale = v.from_bits(v.b.shl(v.bits(shifted), v.int(23)))
    return v.fma(v.mul(r, v.horner(r, _EXP2M1)), scale, v.sub(scale, 1.0))


def tanh(v: Lanes, x: ir.Value) -> ir.Value:
    """tanh(x) within 3 ulp, never beyond +-1: -m / (2 + m) with m = expm1(-2|x|), and the sign of x."""
    m = _exp2m1(v, v.at_least(v.mul(v.abs(x), -2.0 * _LOG2E), -43.0))
    return v.with_sign(v.div(m, v.add(m, 2.0)), x)


# log2(erfc(x)) / x on [0, 4], in error relative to erf.
_ERF = (
    -1.6279070377349854, -0.9184435606002808, -0.14832988381385803, 0.02787555754184723,
    -0.0002970494970213622, -0.0018056993139907718, 0.0005496043595485389, -5.872049950994551e-05,
)  # fmt: skip


def erf(v: Lanes, x: ir.Value) -> ir.Value:
    """erf(x) within 4 ulp, never beyond +-1: 1 - erfc(|x|) = 1 - 2**log2(erfc(|x|)), and the sign of x."""
    a = v.at_most(v.abs(x), 4.0)
    return v.with_sign(_exp2m1(v, v.mul(v.horner(a, _ERF), a)), x)


# ---- logarithms ----------------------------------------------------------------------------------

_SQRT_HALF = 0x3F3504F3  # the bits of the float32 sqrt(1/2)
_EXPONENT = -0x800000  # mask of sign and exponent
# (log(1 + f) - f) / f**2 for 1 + f in [sqrt(1/2), sqrt(2)].
_LOG = (
    -0.49999991059303284, 0.3333395719528198, -0.25001779198646545, 0.19962096214294434,
    -0.16570448875427246, 0.14917874336242676, -0.14307387173175812, 0.08734782040119171,
)  # fmt: skip


def _split(v: Lanes, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Of a positive normal x = m * 2**e with m in [sqrt(1/2), sqrt(2)): m, and e in the exponent's place."""
    bits = v.bits(x)
    exponent = v.b.and_(v.b.sub(bits, v.int(_SQRT_HALF)), v.int(_EXPONENT))
    return v.from_bits(v.b.sub(bits, exponent)), exponent


def _log(v: Lanes, x: ir.Value, f: ir.Value, e: ir.Value) -> ir.Value:
    """log(x), given x = (1 + f) * 2**e when x is positive and finite."""
    y = v.fma(v.mul(f, f), v.horner(f, _LOG), f)
    y = v.fma(e, math.log(2), y)
    y = v.where(v.less(0.0, x), y, v.where(v.equal(x, 0.0), v.const(-math.inf), v.const(math.nan)))
    return v.where(v.equal(x, math.inf), math.inf, y)


def log(v: Lanes, x: ir.Value) -> ir.Value:
    """ln(x) within 2 ulp, of denormals too; -inf at both zeros, NaN below."""
    tiny = v.less(x, 2.0**-126)
    m, exponent = _split(v, v.where(tiny, v.mul(x, 2.0**23), x))
    e = v.b.sitofp(v.b.ashr(exponent, v.int(23)), v.type(F32))
    return _log(v, x, v.sub(m, 1.0), v.where(tiny, v.sub(e, 23.0), e))


def log1p(v: Lanes, x: ir.Value) -> ir.Value:
    """ln(1 + x) within 2 ulp; -inf at -1, NaN below. What rounding 1 + x loses (Knuth's two-sum) is added to
    the reduced argument."""
    u = v.add(x, 1.0)
    shadow = v.sub(u, 1.0)
    lost = v.add(v.sub(x, shadow), v.sub(1.0, v.sub(u, shadow)))
    m, exponent = _split(v, u)
    e = v.b.sitofp(v.b.ashr(exponent, v.int(23)), v.type(F32))
    unscale = v.from_bits(v.b.sub(v.int(0x40000000), exponent))  # 2**(1 - e), a float for e = 128 too
    y = _log(v, u, v.fma(v.mul(lost, 0.5), unscale, v.sub(m, 1.0)), e)
    return v.with_sign(y, x)  # log1p(-0) is -0


# ---- sine and cosine -----------------------------------------------------------------------------

_HALF_PI_HIGH, _HALF_PI_LOW = 1.5707963267341256, 6.077100506506192e-11  # 33 bits, the rest
_ROUND64 = 6755399441055744.0  # 1.5 * 2**52
# (sin(r) - r) / r**3 and (cos(r) - 1 + r**2 / 2) / r**4 in powers of r**2, |r| <= pi / 4.
_SIN = (-0.16666653752326965, 0.008332112804055214, -0.00019508741388563067)
_COS = (0.04166664555668831, -0.0013887251261621714, 2.4425680749118328e-05)


def _circular(v: Lanes, x: ir.Value, quarters: int) -> ir.Value:
    """sin(x + quarters * pi/2). x less the nearest multiple k of pi/2 is taken in float64, exactly as far as
    k has 20 bits; k's two low bits say which of +-sin and +-cos of the rest it is."""
    wide = v.b.fpext(x, v.type(F64))
    shifted = v.fma(wide, 2 / math.pi, _ROUND64)
    k = v.sub(shifted, _ROUND64)
    rest = v.fma(k, -_HALF_PI_LOW, v.fma(k, -_HALF_PI_HIGH, wide))
    r = v.at_least(v.at_most(v.b.fptrunc(rest, v.type(F32)), 0.7854), -0.7854)
    s = v.mul(r, r)
    sine = v.fma(v.mul(v.horner(s, _SIN), s), r, r)
    cosine = v.fma(v.mul(s, s), v.horner(s, _COS), v.fma(s, -0.5, 1.0))
    quadrant = v.b.trunc(v.bits(shifted, I64), v.type(I32))
    if quarters:
        quadrant = v.b.add(quadrant, v.int(quarters))
    odd = v.b.icmp_unsigned("!=", v.b.and_(quadrant, v.int(1)), v.int(0))
    sign = v.b.shl(v.b.and_(quadrant, v.int(2)), v.int(30))
    return v.from_bits(v.b.xor(v.bits(v.where(odd, cosine, sine)), sign))


def sin(v: Lanes, x: ir.Value) -> ir.Value:
    """sin(x) within 2 ulp for |x| <= 1e6, within 1e-6 for |x| <= 2**30; beyond, some number in [-1, 1]."""
    return v.where(v.equal(x, 0.0), x, _circular(v, x, 0))  # sin(-0) is -0


def cos(v: Lanes, x: ir.Value) -> ir.Value:
    """cos(x) within 2 ulp for |x| <= 1e6, within 1e-6 for |x| <= 2**30; beyond, some number in [-1, 1]."""
    return _circular(v, x, 1)


# ---- powers --------------------------------------------------------------------------------------

_SQRT_HALF64 = 0x3FE6A09E00000000
# log2(1 + f) / f for 1 + f in [sqrt(1/2), sqrt(2)], within 1.7e-11.
_LOG2 = (
    1.4426950408887054, -0.7213475208687589, 0.4808983613955318, -0.36067367482752577, 0.28853729346887896,
    -0.24045316562355515, 0.20617535946258161, -0.1803006003103249, 0.1587698020250342, -0.14315647503862114,
    0.1447484542648536, -0.14283925278471615, 0.07737028152005306,
)  # fmt: skip
# 2**f for |f| <= 1/2, within 1.9e-9.
_EXP2 = (
    1.0000000005585945, 0.6931472058869264, 0.2402264686780372, 0.05550328450770806, 0.009618490396760408,
    0.0013400063313877336, 0.00015345696403371576,
)  # fmt: skip


def _log2_64(v: Lanes, a: ir.Value) -> ir.Value:
    """log2 of a float64 that is a float32's magnitude: -inf of 0, inf of inf, NaN of NaN."""
    bits = v.bits(a, I64)
    above = v.b.sub(bits, v.int(_SQRT_HALF64, I64))
    exponent = v.b.and_(above, v.int(-1 << 52, I64))
    f = v.sub(v.from_bits(v.b.sub(bits, exponent), F64), 1.0)
    e = v.b.sitofp(v.b.trunc(v.b.ashr(above, v.int(52, I64)), v.type(I32)), v.type(F64))
    y = v.fma(v.horner(f, _LOG2), f, e)
    y = v.where(v.equal(a, 0.0), -math.inf, y)
    return v.where(v.less(a, math.inf), y, a)


def _exp2_64(v: Lanes, t: ir.Value) -> ir.Value:
    """2**t in float64 for |t| < 1000 or NaN."""
    shifted = v.add(t, _ROUND64)
    p = v.horner(v.sub(t, v.sub(shifted, _ROUND64)), _EXP2)
    return v.from_bits(v.b.add(v.bits(p, I64), v.b.shl(v.bits(shifted, I64), v.int(52, I64))), F64)


def pow(v: Lanes, x: ir.Value, y: ir.Value) -> ir.Value:
    """x**y within 1 ulp, special cases as in C: 2**(y * log2|x|) in float64, negated if x < 0 and y odd."""
    magnitude = v.abs(x)
    log2 = _log2_64(v, v.b.fpext(magnitude, v.type(F64)))
    t = v.mul(v.b.fpext(y, v.type(F64)), log2)
    # Beyond +-200 float32 holds only 0 and inf.
    z = v.b.fptrunc(_exp2_64(v, v.at_least(v.at_most(t, 200.0), -200.0)), v.type(F32))
    half = v.mul(y, 0.5)
    whole = v.equal(v.intrinsic("floor", y), y)
    odd = v.b.and_(whole, v.b.fcmp_unordered("!=", v.intrinsic("floor", half), half))
    negative = v.b.and_(v.bits(x), v.int(-0x80000000))
    z = v.from_bits(v.b.or_(v.bits(z), v.where(odd, negative, v.int(0))))
    below = v.b.and_(v.less(x, 0.0), v.less(-math.inf, x))
    z = v.where(v.b.and_(below, v.b.not_(whole)), math.nan, z)
    one = v.b.or_(v.equal(x, 1.0), v.equal(y, 0.0))
    one = v.b.or_(one, v.b.and_(v.equal(x, -1.0), v.equal(v.abs(y), math.inf)))
    return v.where(one, 1.0, z)
