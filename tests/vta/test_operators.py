"""Kernels of the graph on the accelerator: any that it takes computes, on the functional simulator and by a program
without a fault, what NumPy's reading of its tensor expression is; any other is refused with a reason."""

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from nestegg.ir.attrs import EMPTY, Attrs
from nestegg.ir.compose import compose, merge_inputs
from nestegg.ir.expr import Const, Read, Scalar, TensorExpr, apply, cast, rebuild
from nestegg.ir.operator import operator
from nestegg.ir.reference import evaluate_expr
from nestegg.ir.types import DTYPES, TensorType
from nestegg.vta.check import check, errors
from nestegg.vta.config import DEFAULT, Config
from nestegg.vta.lower import compile_kernel
from nestegg.vta.recognise import Operation, Unsuitable, recognise, simplified, with_small_factors

INT4 = Config(log_inp_width=2, log_wgt_width=2, log_inp_buff_size=14, log_wgt_buff_size=17)
CONFIGS = [DEFAULT, INT4, Config(log_batch=1), Config(log_block=5)]


def op(name: str, *shapes: tuple[int, ...], dtype: str = "i32", **attrs) -> TensorExpr:
    types = tuple(TensorType(shape, dtype) for shape in shapes)
    return operator(name).expr(types, Attrs(**attrs) if attrs else EMPTY)


def widened(expr: TensorExpr) -> TensorExpr:
    """The kernel with its 32-bit operands converted from 8 bits where they are read."""
    for k, t in enumerate(expr.inputs):
        if t.dtype == "i32":
            expr = compose(expr, k, _cast(t.shape))
    return expr


def _cast(shape: tuple[int, ...]) -> TensorExpr:
    return operator("cast").expr((TensorType(shape, "i8"),), Attrs(dtype="i32"))


def then(expr: TensorExpr, *steps: tuple[str, int], config: Config = DEFAULT) -> TensorExpr:
    """Functions with a number on each result, clipped to the accelerator's outputs, as 8 bits."""
    top, body = (1 << (config.out_bits - 1)) - 1, expr.body
    for fn, number in (*steps, ("max", -top - 1), ("min", top)):
        body = apply(fn, body, number)
    return TensorExpr(expr.inputs, expr.axes, cast(body, "i8"))


def conv(x: tuple[int, ...], w: tuple[int, ...], **attrs) -> TensorExpr:
    n = len(x) - 2
    every = {"strides": (1,) * n, "padding": ((0, 0),) * n, "lhs_dilation": (1,) * n, "rhs_dilation": (1,) * n}
    return widened(op("conv", x, w, **(every | {"groups": 1} | attrs)))


def window(x: tuple[int, ...], kind: str, window, strides, padding, dtype: str = "i8", dilation=None) -> TensorExpr:
    spread = dilation or (1,) * len(x)
    return op("window", x, dtype=dtype, kind=kind, window=window, strides=strides, padding=padding, dilation=spread)


def values(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(np.int8)


def assert_computes(expr: TensorExpr, config: Config, constants: tuple[int, ...] = (), seed: int = 0) -> None:
    """The compiled kernel's program is sound, and its result is the expression's."""
    rng, arrays = np.random.default_rng(seed), []
    for k, t in enumerate(expr.inputs):
        if t.dtype == "i32":
            arrays.append(rng.integers(-40000, 40000, t.shape).astype(np.int32))
        else:
            arrays.append(values(rng, t.shape, config.wgt_bits if k in constants else config.inp_bits))
    known = {k: arrays[k] for k in constants}
    try:
        kernel = compile_kernel(expr, known, config, effort=3)
    except Unsuitable as e:
        if "lie in the padding" not in str(e):
            raise
        reject()
    assert errors(check(kernel.program)) == []
    found = kernel(*(arrays[k] for k in kernel.free))
    expected = evaluate_expr(expr, arrays)
    assert found.dtype == expected.dtype == DTYPES[expr.type.dtype].numpy
    assert np.array_equal(found, expected)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_grouped_or_dilated_convolution(data):
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    config, groups = data.draw(st.sampled_from(CONFIGS)), data.draw(st.sampled_from([1, 1, 2, 3, 16, 20, 32]))
    cig, cog = (pick(1, 20), pick(1, 20)) if groups < 4 else (pick(1, 3), pick(1, 3))
    kernel, strides, spread = (pick(1, 3), pick(1, 3)), (pick(1, 2), pick(1, 3)), (pick(1, 2), pick(1, 2))
    padding = tuple((pick(0, 1), pick(0, 1)) for _ in range(2))
    size = (pick(2, 7), pick(2, 7))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    assume(all(n + sum(p) >= r and max(p) < r for n, p, r in zip(size, padding, reach, strict=True)))
    x, w = (pick(1, 3), groups * cig, *size), (groups * cog, cig, *kernel)
    expr = conv(x, w, strides=strides, padding=padding, rhs_dilation=spread, groups=groups)
    assert_computes(then(expr, ("shr", pick(1, 9)), config=config), config, (1,))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_transposed_convolution(data):
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    config, dilate = data.draw(st.sampled_from(CONFIGS)), (pick(1, 3), pick(1, 2))
    kernel = tuple(d + pick(0, 2) for d in dilate)
    padding = tuple((k - 1 - pick(0, min(1, k - 1)), k - 1) for k in kernel)
    x, w = (pick(1, 2), pick(1, 20), pick(2, 5), pick(2, 5)), (pick(1, 20), 0, *kernel)
    expr = conv(x, (w[0], x[1], *kernel), lhs_dilation=dilate, padding=padding)
    assert_computes(then(expr, ("shr", 7), config=config), config, (1,))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_pooling(data):
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    config, kind = data.draw(st.sampled_from(CONFIGS)), data.draw(st.sampled_from(["max", "sum"]))
    shape = (pick(1, 3), pick(1, 40), pick(2, 9), pick(2, 9))
    size = (pick(1, 3), pick(1, 3))
    strides, padding = (pick(1, 3), pick(1, 3)), tuple((pick(0, n // 2), pick(0, n // 2)) for n in size)
    assume(all(n + sum(p) >= k for n, p, k in zip(shape[2:], padding, size, strict=True)))
    attrs = ((1, 1, *size), (1, 1, *strides), ((0, 0), (0, 0), *padding))
    if kind == "max":
        expr = window(shape, kind, *attrs)
        expr = then(expr, config=config) if pick(0, 1) else expr
    else:
        expr = then(widened(window(shape, kind, *attrs, dtype="i32")), ("shr", pick(0, 4)), config=config)
    assert_computes(expr, config)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_elementwise_operator(data):
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    config = data.draw(st.sampled_from(CONFIGS))
    shape = tuple(pick(1, 20) for _ in range(pick(1, 4)))
    expr = data.draw(st.sampled_from([_cast(shape), *(widened(op(name, shape, shape)) for name in ("add", "sub"))]))
    fns = st.tuples(st.sampled_from(["max", "min", "add", "mul"]), st.sampled_from([-3, 0, 1, 4]))
    steps = [(fn, abs(n) or 1) if fn == "mul" else (fn, n) for fn, n in data.draw(st.lists(fns, max_size=3))]
    steps = [(fn, 4 if fn == "mul" and n == 3 else n) for fn, n in steps]
    assert_computes(then(expr, *steps, ("shr", pick(0, 3)), config=config), config)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_residual_and_bias(config):
    shape = (2, 20, 6, 6)
    product = conv(shape, (20, 20, 3, 3), padding=((1, 1), (1, 1)))
    biased = compose(op("add", shape, shape), 0, product)
    bias = operator("broadcast").expr((TensorType((20,), "i32"),), Attrs(shape=shape, dims=(1,)))
    biased = compose(biased, len(product.inputs), bias)
    shifted = then(biased, ("shr", 6), config=config)
    shifted = TensorExpr(shifted.inputs, shifted.axes, cast(shifted.body, "i32"))
    residual = compose(op("add", shape, shape), 0, shifted)
    whole = then(widened_last(residual), ("max", 0), config=config)
    assert [t.dtype for t in whole.inputs] == ["i8", "i8", "i32", "i8"]
    assert_computes(whole, config, (1, 2))


def widened_last(expr: TensorExpr) -> TensorExpr:
    return compose(expr, len(expr.inputs) - 1, _cast(expr.inputs[-1].shape))


def test_weights_that_are_one_number_need_no_operand():
    for channels, filters, groups, number in ((1, 1, 1, 1), (5, 5, 5, -3), (18, 1, 1, 2)):
        expr = conv((1, channels, 5, 5), (filters, channels // groups, 3, 3), groups=groups)
        filled = TensorExpr(expr.inputs, expr.axes, with_constant(expr.body, 1, Const(number, "i8")))
        assert_computes(then(merge_inputs(filled, {1: 0}), ("shr", 6)), DEFAULT)


def with_constant(s: Scalar, number: int, value: Const) -> Scalar:
    if isinstance(s, Read) and s.input == number:
        return value
    return rebuild(s, lambda c: with_constant(c, number, value), lambda i: i)


def test_products_of_two_activations():
    expr = widened(op("dot", (9, 40), (40, 21), contract=((1,), (0,)), batch=((), ())))
    assert_computes(then(expr, ("shr", 8)), DEFAULT)
    assert_computes(then(expr, ("shr", 8)), DEFAULT, (1,))
    assert_computes(then(expr, ("shr", 8)), DEFAULT, (0,))


def test_a_reshape_before_a_product_is_a_window_as_large_as_the_input():
    dot = widened(op("dot", (1, 400), (400, 33), contract=((1,), (0,)), batch=((), ())))
    reshape = operator("reshape").expr((TensorType((1, 16, 5, 5), "i8"),), Attrs(shape=(1, 400)))
    expr = then(compose(dot, 0, reshape), ("shr", 9))
    work = recognise(expr, DEFAULT, {1: np.ones((400, 33), np.int8)})
    assert (work.rows.taps, work.columns.taps, work.source[1].channel) == (5, 5, (1,))
    assert_computes(expr, DEFAULT, (1,))


def test_reasons():
    x = (1, 16, 8, 8)
    product = conv(x, (16, 16, 3, 3))
    known = {1: np.full((16, 16, 3, 3), 100, np.int8)}
    for expr, constants, reason in (
        (product, known, "do not fit the 8 bits that STORE writes"),
        (op("conv", x, (16, 16, 1, 1), dtype="f32", strides=(1, 1), padding=((0, 0), (0, 0)), lhs_dilation=(1, 1),
            rhs_dilation=(1, 1), groups=1), {}, "computes in f32"),
        (op("exp", x, dtype="f32"), {}, "computes in f32"),
        (then(op("add", x, x)), {}, "is i32; the accelerator takes signed integers of 8 bits"),
        (then(product, ("mul", 3)), known, "applies mul with 3"),
        (then(product, ("quotient", 7)), known, "applies quotient with 7"),
        (then(product, ("shr", 2)), {1: np.full((16, 16, 3, 3), 300)}, "weights 300 … 300 do not fit 8 bits"),
        (window(x, "prod", (1, 1, 2, 2), (1, 1, 2, 2), ((0, 0),) * 4), {}, "reduces by prod"),
    ):  # fmt: skip
        with pytest.raises(Unsuitable, match=reason):
            recognise(expr, DEFAULT, constants)


steps = st.lists(
    st.one_of(
        st.builds(Operation, st.sampled_from(["min", "max", "add"]), st.integers(-200, 200)),
        st.builds(Operation, st.just("shr"), st.integers(0, 6)),
    ),
    max_size=7,
)


def result(x: np.ndarray, chain, addend: np.ndarray | int = 0) -> np.ndarray:
    """What an epilogue makes of sums."""
    for o in chain:
        match o.name:
            case "min":
                x = np.minimum(x, o.value)
            case "max":
                x = np.maximum(x, o.value)
            case "shr":
                x = x >> o.value
            case "add":
                x = x + o.value
            case "addend":
                x = x + addend * o.value
    return x


@given(steps, st.integers(-3000, 0), st.integers(0, 3000))
def test_a_simplified_epilogue_computes_the_same(operations, low, high):
    every = np.arange(low, high + 1)
    fewer = simplified(operations, (low, high), (0, 0))
    assert len(fewer) <= len(operations)
    assert np.array_equal(result(every, fewer), result(every, operations))


@given(r=st.integers(0, 12), more=st.integers(0, 4), bias=st.integers(-5000, 5000), sign=st.sampled_from([1, -1]))
def test_a_residual_times_a_large_factor_is_added_after_a_part_of_the_shift(r, more, bias, sign):
    addend = Operation("addend", sign << r, operand=1)
    chain = [Operation("add", bias), addend, Operation("shr", r + more), Operation("max", 0), Operation("min", 127)]
    found = with_small_factors(chain, (-100_000, 100_000), (-128, 127), 8)
    assert all(abs(o.value) < 128 for o in found if o.name == "addend")
    rng = np.random.default_rng(r)
    x, y = rng.integers(-100_000, 100_000, 5000), rng.integers(-128, 128, 5000)
    assert np.array_equal(result(x, found, y), result(x, chain, y))


def test_a_large_factor_without_a_shift_is_refused():
    addend = Operation("addend", 256, operand=1)
    for chain, start in (
        ([addend], 1000), ([addend, Operation("shr", 1)], 1000), ([addend, Operation("shr", 8)], (1 << 31) - 2),
        ([Operation("addend", 129, operand=1), Operation("shr", 8)], 1000),
    ):  # fmt: skip
        with pytest.raises(Unsuitable, match="no weight of 8 bits"):
            with_small_factors(chain, (-start, start), (-128, 127), 8)


def test_bounds_that_follow_from_others_are_dropped():
    clip_then_relu = [Operation("shr", 8), Operation("max", -128), Operation("min", 127), Operation("max", 0)]
    expected = (Operation("shr", 8), Operation("max", 0), Operation("min", 127))
    assert simplified(clip_then_relu, (-(1 << 20), 1 << 20), (0, 0)) == expected
    assert simplified(clip_then_relu, (0, 1000), (0, 0)) == (Operation("shr", 8),)
