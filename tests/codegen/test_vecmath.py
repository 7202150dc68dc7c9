"""Scalar functions and casts in machine code: float32 functions within their stated ulp over all of float32,
and every row of the table against JAX for every dtype it takes.

Not here: which functions a kernel contains, and how their operands come from memory (test_kernels).
"""

import ctypes
import re
from dataclasses import replace
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
from llvmlite import ir
from scipy import special

from nestegg.codegen.jit import assembly, compile_object, load_object
from nestegg.codegen.lanes import Lanes
from nestegg.codegen.llvm_types import TargetModule, constant, load, memory_type, offset, register_type, store
from nestegg.codegen.scalar_ops import emit_cast, emit_scalar
from nestegg.ir.errors import TypeRuleError
from nestegg.ir.scalars import SCALARS
from nestegg.ir.target import TARGETS, host
from nestegg.ir.types import DTYPES, dtype_of, is_float

POINTER, I64 = ir.PointerType(), ir.IntType(64)
HERE = host()
LOG_MAX, LOG_TINY = 88.72284, -103.98  # where exp overflows, and where it rounds to 0


class Job(NamedTuple):
    """One loop to compile: `emit(builder, *operands)` of dtypes `inputs` gives `output`, by `lanes`."""

    name: str
    emit: object
    inputs: tuple[str, ...]
    output: str
    lanes: int = 16


def scalar_job(fn, dtype, lanes=16):
    row = SCALARS[fn]
    inputs = ("bool", dtype, dtype) if fn == "select" else (dtype,) * row.arity
    name = f"{fn}_{dtype}_{lanes}"
    return Job(name, lambda b, *x: emit_scalar(fn, b, x, dtype), inputs, row.dtype(inputs), lanes)


def cast_job(source, result, lanes=16):
    name = f"cast_{source}_{result}_{lanes}"
    return Job(name, lambda b, x: emit_cast(b, x, source, result), (source,), result, lanes)


def module_of(jobs, target=HERE):
    module = TargetModule("test", target.triple, target.features)
    for job in jobs:
        count = len(job.inputs)
        typ = ir.FunctionType(ir.VoidType(), [*[POINTER] * (count + 1), I64])
        function = ir.Function(module, typ, job.name)
        *pointers, n = function.args
        entry, body, done = (function.append_basic_block(name) for name in ("entry", "body", "done"))
        b = ir.IRBuilder(entry)
        b.branch(body)
        b.position_at_end(body)
        i = b.phi(I64)
        i.add_incoming(I64(0), entry)
        sources = zip(pointers[:-1], job.inputs, strict=True)
        args = [load(b, offset(b, p, i, d), d, job.lanes) for p, d in sources]
        result = job.emit(b, *args)
        assert result.type == register_type(job.output, job.lanes)
        store(b, result, offset(b, pointers[-1], i, job.output), job.output)
        i.add_incoming(following := b.add(i, I64(job.lanes)), b.block)
        b.cbranch(b.icmp_signed("<", following, n), body, done)
        b.position_at_end(done)
        b.ret_void()
    return str(module)


def compiled(jobs, target=HERE):
    """One NumPy function for each job, by its name, written for `target`."""
    code = load_object(compile_object(module_of(jobs, target), HERE), tuple(job.name for job in jobs))
    return {job.name: runner(code, job) for job in jobs}


def runner(code, job):
    function = code.function(job.name, *[ctypes.c_void_p] * (len(job.inputs) + 1), ctypes.c_int64)

    def run(*arrays):
        size = arrays[0].size
        padded = -(-size // job.lanes) * job.lanes
        held = [
            np.concatenate([a.astype(DTYPES[d].numpy, copy=False), np.zeros(padded - size, DTYPES[d].numpy)])
            for a, d in zip(arrays, job.inputs, strict=True)
        ]
        held.append(np.empty(padded, DTYPES[job.output].numpy))
        function(*(a.ctypes.data for a in held), padded)
        return held[-1][:size]

    return run


# ---- float32 within its bounds -------------------------------------------------------------------


class Bound(NamedTuple):
    """The stated greatest error in ulp, the function in float64, and where to look densely."""

    ulp: float
    exact: object
    dense: tuple[float, float]
    within: float = np.inf  # the bound holds for operands of at most this magnitude


BOUNDS = {
    "exp": Bound(2, np.exp, (LOG_TINY, LOG_MAX)),
    "log": Bound(2, np.log, (0.25, 4)),
    "log1p": Bound(2, np.log1p, (-1, 3)),
    "tanh": Bound(3, np.tanh, (-10, 10)),
    "logistic": Bound(4, special.expit, (LOG_TINY, 20)),
    "erf": Bound(4, special.erf, (-4.5, 4.5)),
    "sin": Bound(2, np.sin, (-30, 30), within=1e6),
    "cos": Bound(2, np.cos, (-30, 30), within=1e6),
    "sqrt": Bound(0.5, np.sqrt, (0, 4)),
    "rsqrt": Bound(1.5, lambda x: np.where(x == 0, np.copysign(np.inf, x), 1 / np.sqrt(x)), (0, 4)),
}
POW_ULP = 1
WIDTHS = (1, 13, 16, 40)
WITH_TABLES = tuple(fn for fn in BOUNDS if SCALARS[fn].table_cost is not None)


def edges():
    """Zeros, infinities, NaN, and around every power of two: one bit to either side, all of both signs."""
    powers = np.arange(0, 256, dtype=np.uint32) << 23
    near = np.concatenate([powers[1:] - 1, powers, powers + 1, np.uint32([0x7FC00000])])
    return np.concatenate([near, near | np.uint32(1 << 31)]).view(np.float32)


def all_of_float32(count, dense=(), seed=0):
    """Edge cases, random bit patterns, and uniform draws from the `dense` interval."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    drawn = rng.uniform(*(dense or (0, 1)), count if dense else 0).astype(np.float32)
    return np.concatenate([edges(), patterns, drawn])


def ulps(got, exact):
    """Distance of float32 results from exact ones in float64, in ulp; inf for a NaN on one side only."""
    limit = 2.0**128  # what float32's infinity stands for
    exact = np.clip(exact, -limit, limit)
    wide = np.clip(got.astype(np.float64), -limit, limit)
    ulp = 2.0 ** (np.clip(np.frexp(np.abs(exact))[1] - 1, -126, 127) - 23.0)
    nans = np.isnan(got).astype(int) + np.isnan(exact)
    return np.select([nans == 2, nans == 1], [0, np.inf], np.abs(wide - exact) / ulp)


@pytest.fixture(scope="module")
def f32():
    names = [*BOUNDS, "pow"]
    return compiled([scalar_job(fn, "f32", lanes) for fn in names for lanes in WIDTHS])


@pytest.fixture(scope="module")
def plain():
    """Functions that are written otherwise for machines that look up tables in registers."""
    return compiled([scalar_job(fn, "f32") for fn in WITH_TABLES], replace(HERE, features=""))


@pytest.mark.parametrize("fn", WITH_TABLES)
def test_error_is_within_the_stated_ulp_without_tables(plain, fn):
    check_error(plain, fn)


@pytest.mark.skipif(not HERE.tables, reason="this machine looks no tables up")
@pytest.mark.parametrize("fn", WITH_TABLES)
def test_tables_are_looked_up_by_an_instruction(fn):
    assert "vpermps" in assembly(module_of([scalar_job(fn, "f32")]), HERE)
    assert "vpermps" not in assembly(module_of([scalar_job(fn, "f32")], replace(HERE, features="")), HERE)


@pytest.mark.parametrize("fn", BOUNDS)
def test_error_is_within_the_stated_ulp(f32, fn):
    check_error(f32, fn)


def check_error(functions, fn):
    bound = BOUNDS[fn]
    x = all_of_float32(1_000_000, bound.dense)
    x = x[~(np.abs(x) > bound.within) | ~np.isfinite(x)]
    got = functions[f"{fn}_f32_16"](x)
    with np.errstate(all="ignore"):
        error = ulps(got, bound.exact(x.astype(np.float64)))
    worst = np.argmax(error)
    assert error[worst] <= bound.ulp, f"{fn}({x[worst]!r}) gave {got[worst]!r}, {error[worst]:.2f} ulp off"


def test_pow_is_within_the_stated_ulp(f32):
    rng = np.random.default_rng(1)
    special_cases = np.float32([0, 1, 2, 3, 0.5, 1 / 3, 1e-40, 1e38, 16777216, 33554432, np.inf, np.nan])
    special_cases = np.concatenate([special_cases, -special_cases])
    x, y = (grid.ravel() for grid in np.meshgrid(special_cases, special_cases))
    count = 500_000
    near_one = rng.uniform(0.9, 1.1, count), rng.uniform(-800, 800, count)
    moderate = np.exp(rng.uniform(-20, 20, count)), rng.uniform(-5, 5, count)
    whole = rng.uniform(-20, 20, count), rng.integers(-9, 9, count)
    drawn = np.concatenate([near_one, moderate, whole], axis=1).astype(np.float32)
    x = np.concatenate([x, all_of_float32(count), drawn[0]])
    y = np.concatenate([y, all_of_float32(count, seed=2), drawn[1]])
    got = f32["pow_f32_16"](x, y)
    with np.errstate(all="ignore"):
        error = ulps(got, np.power(x.astype(np.float64), y.astype(np.float64)))
    worst = np.argmax(error)
    label = f"{x[worst]!r} ** {y[worst]!r} gave {got[worst]!r}, {error[worst]:.2f} ulp off"
    assert error[worst] <= POW_ULP, label


@pytest.mark.parametrize("fn", ["sin", "cos"])
def test_large_angles_stay_sane(f32, fn):
    x = all_of_float32(300_000)
    got, exact = f32[f"{fn}_f32_16"](x), BOUNDS[fn].exact
    finite = np.isfinite(x)
    assert np.isnan(got[~finite]).all()
    assert (np.abs(got[finite]) <= 1).all()
    known = np.abs(x) <= 2.0**30
    assert np.abs(got[known] - exact(x[known].astype(np.float64))).max() <= 1e-6


@pytest.mark.parametrize("fn", ["tanh", "erf"])
def test_saturating_functions_never_pass_one(f32, fn):
    got = f32[f"{fn}_f32_16"](all_of_float32(200_000, (-12, 12)))
    assert np.nanmax(np.abs(got)) == 1
    near = np.arange(*np.float32([2, 12]).view(np.uint32), dtype=np.uint32).view(np.float32)  # every one of them
    assert f32[f"{fn}_f32_16"](near).max() == 1


def test_one_and_an_error_function_of_minus_one_cancel():
    """Products that an elementary function ends with are rounded, so that gelu(-1e10) is 0."""

    def emit(b, x):
        v = Lanes.of(b, x)
        return v.mul(x, v.add(emit_scalar("erf", b, [x], "f32"), 1.0))

    x = np.float32([-4, -100, -1e10, -3e38])
    assert np.all(compiled([Job("gelu", emit, ("f32",), "f32")])["gelu"](x) == 0)


@pytest.mark.parametrize("fn", ["tanh", "erf", "sin", "log1p", "sqrt"])
def test_zero_keeps_its_sign(f32, fn):
    assert np.signbit(f32[f"{fn}_f32_16"](np.float32([0.0, -0.0]))).tolist() == [False, True]


@pytest.mark.parametrize("fn", [*BOUNDS, "pow"])
def test_every_width_gives_the_same(f32, fn):
    x = all_of_float32(3000, (-5, 5))
    args = [x, np.roll(x, 7)][: SCALARS[fn].arity]
    wide = f32[f"{fn}_f32_16"](*args)
    for lanes in WIDTHS:
        np.testing.assert_array_equal(f32[f"{fn}_f32_{lanes}"](*args), wide)


@pytest.mark.parametrize("target", TARGETS)
def test_float32_functions_call_nothing(target):
    of_floats = [fn for fn, row in SCALARS.items() if "float" in row.kinds]
    jobs = [scalar_job(fn, "f32", lanes) for fn in of_floats for lanes in (13, 16)]
    jobs += [cast_job(*pair) for d in DTYPES if d != "f32" for pair in ((d, "f32"), ("f32", d))]
    text = assembly(module_of(jobs, TARGETS[target]), TARGETS[target])
    assert not re.findall(r"^\s+(?:callq?|blr?)\s+(\S+)", text, re.MULTILINE)


# ---- the table against JAX -----------------------------------------------------------------------


def samples(dtype, count=200):
    """Values of a dtype with its extremes; floats without denormals, which XLA flushes to zero."""
    rng = np.random.default_rng(3)
    kind, numpy = DTYPES[dtype].kind, DTYPES[dtype].numpy
    if kind == "bool":
        return rng.integers(0, 2, count).astype(numpy)
    if kind == "float":
        fixed = [0.0, -0.0, 1, -1, 0.5, -2.5, 3, np.inf, -np.inf, np.nan, 88, -90]
        return np.concatenate([fixed, rng.normal(0, 3, count)]).astype(numpy)
    info = np.iinfo(numpy)
    fixed = np.array([info.min, info.max, 0, 1, info.max // 2], numpy)
    return np.concatenate([fixed, rng.integers(info.min, info.max, count, numpy, endpoint=True)])


def operands(inputs):
    return [np.roll(samples(d)[:200], 11 * k) for k, d in enumerate(inputs)]


def assert_same(got, expected, label):
    expected = np.asarray(expected)
    assert got.dtype == expected.dtype, label
    if not is_float(got):
        np.testing.assert_array_equal(got, expected, label)
    else:
        name = dtype_of(got)
        digits = {"f16": 1e-3, "bf16": 8e-3, "f32": 2e-6, "f64": 1e-13}[name]
        tiny = ml_dtypes.finfo(got.dtype).tiny  # XLA flushes denormals
        wide = np.float64 if name == "f64" else np.float32  # which NumPy's comparison needs of bfloat16
        np.testing.assert_allclose(got.astype(wide), expected.astype(wide), digits, tiny, err_msg=label)


def test_float32_to_bfloat16_rounds_to_nearest_even_keeping_denormals():
    half = np.arange(0, 0x7F80, dtype=np.uint32) << 16  # every positive bfloat16
    near = np.concatenate([half + d for d in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    nans = np.uint32([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF])
    x = np.concatenate([near, nans]).astype(np.uint32).view(np.float32)
    x = np.concatenate([x, -x])
    got = compiled([cast_job("f32", "bf16")])["cast_f32_bf16_16"](x).astype(np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, x.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_float64_to_bfloat16_rounds_once():
    exact = np.arange(0x3000, 0x5000, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    ties = (exact[1:] + exact[:-1]) / 2
    even = exact[(np.arange(len(ties)) + 1) // 2 * 2]
    got = compiled([cast_job("f64", "bf16")])["cast_f64_bf16_16"]
    np.testing.assert_array_equal(got(ties).astype(np.float64), even)
    np.testing.assert_array_equal(got(np.nextafter(ties, 0)).astype(np.float64), exact[:-1])
    np.testing.assert_array_equal(got(np.nextafter(ties, 1e300)).astype(np.float64), exact[1:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("x64")
def test_every_row_has_an_emitter_for_every_dtype_of_its_kinds(dtype):
    rows = [row for row in SCALARS.values() if DTYPES[dtype].kind in row.kinds]
    jobs = [scalar_job(row.name, dtype, lanes) for row in rows for lanes in (1, 13, 16)]
    functions = compiled(jobs)
    args = {row.name: operands(scalar_job(row.name, dtype).inputs) for row in rows}
    reference = jax.jit(lambda args: {row.name: row.jax(*args[row.name]) for row in rows})(args)
    for job in jobs:
        row = job.name.split("_")[0]
        assert_same(functions[job.name](*args[row]), reference[row], job.name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("x64")
def test_casts_agree_with_jax(dtype):
    jobs = [cast_job(dtype, other, lanes) for other in DTYPES for lanes in (1, 13, 16)]
    functions = compiled(jobs)
    x = samples(dtype)
    if DTYPES[dtype].kind == "float":
        bounds = [2.0**k + d for k in (7, 8, 15, 16, 31, 32, 63) for d in (-1, -0.5, 0, 1)]
        with np.errstate(over="ignore"):
            x = np.concatenate([x, bounds, np.negative(bounds)]).astype(x.dtype)
    with np.errstate(all="ignore"):
        cast = jax.lax.convert_element_type
        reference = jax.jit(lambda x: {d: cast(x, DTYPES[d].numpy) for d in DTYPES})(x)
    for job in jobs:
        assert_same(functions[job.name](x), reference[job.output], job.name)


def test_float64_to_float16_rounds_once():
    rng = np.random.default_rng(4)
    half = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = (half[1:] + half[:-1]) / 2
    x = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, 1e9), rng.normal(0, 1e4, 100_000)])
    x = np.concatenate([x, -x, [65519.99999, 65520, np.inf, np.nan, 1e300, 1e-300]])
    got = compiled([cast_job("f64", "f16")])["cast_f64_f16_16"](x)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, x.astype(np.float16))


@pytest.mark.parametrize(("fn", "dtype"), [("exp", "i32"), ("lt", "bool"), ("neg", "u8"), ("and", "f32")])
def test_a_dtype_outside_the_row_is_refused(fn, dtype):
    with pytest.raises(TypeRuleError, match=f"{fn} does not take {dtype}"):
        module_of([scalar_job(fn, dtype)])


def test_relu_is_one_instruction():
    target = TARGETS["x86-64-v4"]
    zero = constant(0, "f32", 16)
    job = Job("relu", lambda b, x: emit_scalar("max", b, [x, zero], "f32"), ("f32",), "f32")
    body = re.findall(r"^\s+(v\w+)", assembly(module_of([job]), target), re.MULTILINE)
    assert [op for op in body if not op.startswith(("vmov", "vxor", "vzero"))] == ["vmaxps"]
    x = np.float32([-1, 2, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(compiled([job])["relu"](x), np.float32([0, 2, np.nan, np.inf, 0]))


def test_memory_and_register_types_of_a_bool_differ():
    assert (str(register_type("bool", 13)), str(memory_type("bool", 13))) == ("<13 x i1>", "<13 x i8>")
