"""Elementary functions of float32 as LLVM vector instructions of any width: no call, no branch, no table in memory.

Every function covers all of float32, and its docstring states the greatest error in units in the last place
(ulp), measured where the target fuses multiply and add; `tests/codegen/test_vecmath.py` holds it to that.
Where an operator's name becomes one of these functions is decided in `scalar_ops.py`. Where registers hold tables
(`Lanes.tables`), exp, logistic and erf look things up: cycles for 16 floats on Zen 4, before and after, in loops that
interleave 1 and 4 vectors: exp 9.0, 8.7 and 7.8, 7.4; logistic 13.2, 12.3 and 12.5, 11.7; erf 19.2, 18.1 and 10.4, 9.8.

Coefficients without another source were fitted for this file: minimax in relative error by least squares in
float64 over 4,000 Chebyshev nodes, reweighted with the errors until they level (Lawson), then rounded to the
working format; those of `exp` and `log` were afterwards moved by single bits while that lowered the measured
greatest error.
"""

from __future__ import annotations

import math

from llvmlite import ir

from .lanes import F32, F64, I32, I64, SIXTEEN, Lanes
from .segments import Segments

# ---- exponentials --------------------------------------------------------------------------------

_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # Cephes' expf: n * _LN2_HIGH is exact for |n| < 2**15
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits of the mantissa
_ROUND_SIXTEENTHS = _ROUND / SIXTEEN
# exp(r) on |r| <= ln2 / 2, fitted for ulp (not relative) error.
_EXP = (
    1.0, 0.9999995231628418, 0.49999141693115234,
    0.16668078303337097, 0.04189877212047577, 0.008266057819128036,
)  # fmt: skip
# (exp(r) - 1) / r on |r| <= ln2 / 32.
_EXPM1 = (1.0, 0.5, 0.16666667)
_POWERS = tuple(2.0 ** (k / SIXTEEN) for k in range(SIXTEEN))
# (2**r - 1) / r on |r| <= 1 / 2.
_EXP2M1 = (
    0.6931471824645996, 0.24022644758224487, 0.055503588169813156,
    0.009618348442018032, 0.001339069101959467, 0.00015403512225020677,
)  # fmt: skip


def _exp(v: Lanes, x: ir.Value) -> ir.Value:
    """exp(x) of x in [-104, 89] or NaN. 2**n is applied in two factors, so that denormals are rounded once and n = 128
    overflows only when it must."""
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


def _exp_by_table(v: Lanes, x: ir.Value) -> ir.Value:
    """exp(x) of any x: 2**n exp(r), n in sixteenths, whose fraction's power a table has. Where exp(x) is out of range n
    alone decides, and r, which may be anything, is bounded; NaN goes through n."""
    shifted = v.fma(x, _LOG2E, _ROUND_SIXTEENTHS)
    n = v.sub(shifted, _ROUND_SIXTEENTHS)
    r = v.within(v.fma(n, -_LN2_LOW, v.fma(n, -_LN2_HIGH, x)), 0.5)
    power = v.lookup(_POWERS, v.bits(shifted))
    return v.scaled(v.fma(v.mul(power, r), v.horner(r, _EXPM1), power), n)


def exp(v: Lanes, x: ir.Value) -> ir.Value:
    """e**x within 2 ulp; overflows to inf from 88.72284, denormal below -87.34, 0 below -103.97."""
    return _exp_by_table(v, x) if v.tables else _exp(v, v.at_least(v.at_most(x, 89.0), -104.0))


def logistic(v: Lanes, x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x)) within 4 ulp, denormal results included: exp(-|x|) or 1, divided by 1 + exp(-|x|)."""
    negative = v.b.fneg(v.abs(x))
    e = _exp_by_table(v, negative) if v.tables else _exp(v, v.at_least(negative, -104.0))
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


# erf(x) / x; erf(3.84) rounds to 1.
_ERF_QUOTIENT = Segments(lambda x: math.erf(x) / x, width=0.25, top=3.84, degree=4)


def erf(v: Lanes, x: ir.Value) -> ir.Value:
    """erf(x) within 4 ulp, never beyond +-1: x times a quotient in segments, or 1 - erfc(|x|) =
    1 - 2**log2(erfc(|x|)) and the sign of x."""
    if v.tables:
        a = v.at_most(v.abs(x), _ERF_QUOTIENT.top)
        return v.product(v.with_sign(a, x), _ERF_QUOTIENT.emit(v, a))
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
