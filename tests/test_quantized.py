"""Quantization end to end: a trained network keeps its accuracy, integers are exact, budgets are kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import helper

import nestegg
from nestegg.compiler import Options, compile_graph, import_program
from nestegg.ir.errors import CalibrationError
from nestegg.ir.graph import GraphBuilder
from nestegg.ir.imported import ImportedProgram
from nestegg.ir.types import TensorType
from nestegg.testing.digits import digits

from .ir.onnx_models import model_of

RNG = np.random.default_rng(0)
BATCH = 100


def integer_kernels(compiled):
    return sum("i8[" in str(call.kernel) and "sum(" in str(call.kernel) for call in compiled.program.calls)


# --- a trained LeNet -------------------------------------------------------------------------------------------------


def lenet(p, x):
    def conv(x, w, b):
        return jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), "VALID") + b[:, None, None])

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")

    x = pool(conv(pool(conv(x, *p[0])), *p[1]))
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ p[2][0] + p[2][1])
    return x @ p[3][0] + p[3][1]


@functools.cache
def trained():
    """A LeNet trained for some seconds: its parameters, and images and labels it has not seen."""
    rng = np.random.default_rng(1)
    shapes = [(6, 1, 5, 5), (16, 6, 5, 5), (256, 64), (64, 10)]
    fan_in = [25, 150, 256, 64]
    weights = [rng.standard_normal(s).astype(np.float32) * (2 / n) ** 0.5 for s, n in zip(shapes, fan_in, strict=True)]
    p = [(w, np.zeros(n, np.float32)) for w, n in zip(weights, (6, 16, 64, 10), strict=True)]
    images, labels = digits(2000, seed=2)

    def loss(p, x, y):
        return -jnp.take_along_axis(jax.nn.log_softmax(lenet(p, x)), y[:, None], 1).mean()

    @jax.jit
    def step(p, m, x, y):
        m = jax.tree.map(lambda a, g: 0.9 * a + g, m, jax.grad(loss)(p, x, y))
        return jax.tree.map(lambda a, g: a - 0.05 * g, p, m), m

    m = jax.tree.map(np.zeros_like, p)
    for _ in range(8):
        for k in range(0, len(images), BATCH):
            p, m = step(p, m, images[k : k + BATCH], labels[k : k + BATCH])
    return jax.tree.map(np.asarray, p), digits(1000, seed=3)


def accuracy(f, images, labels):
    batches = range(0, len(images), BATCH)
    right = sum((np.argmax(f(images[k : k + BATCH]), 1) == labels[k : k + BATCH]).sum() for k in batches)
    return right / len(images)


@pytest.mark.parametrize("scales", ["any", "power-of-two"])
def test_a_trained_lenet_loses_at_most_half_a_percent(scales):
    p, (images, labels) = trained()
    program = import_program(lambda x: lenet(p, x), images[:BATCH])
    ranges = nestegg.calibrate(program, data=[digits(200, seed=4)[0].reshape(2, BATCH, 1, 28, 28)])
    budget, kernels = (0.1, 3) if scales == "any" else (0.2, 2)
    compiled = compile_graph(program, Options(accuracy_budget=budget, ranges=ranges, scales=scales, threads=1))
    exact = accuracy(jax.jit(lambda x: lenet(p, x)), images, labels)
    assert exact > 0.95
    assert integer_kernels(compiled) >= kernels
    assert accuracy(compiled, images, labels) >= exact - 0.005
    found = compiled.verify(images[:BATCH])
    assert found.ok
    assert found.bar == pytest.approx(budget)
    assert found.xla_rel_err < found.max_rel_err


# --- budgets ---------------------------------------------------------------------------------------------------------


def mlp(sizes=(64, 96, 64, 48)):
    w = [RNG.standard_normal(s).astype(np.float32) / s[0] ** 0.5 for s in zip(sizes, sizes[1:], strict=False)]
    x = RNG.standard_normal((32, sizes[0])).astype(np.float32)
    return import_program(lambda x: jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2], x), x


@pytest.mark.parametrize("method", ["ilp", "greedy"])
def test_a_smaller_budget_leaves_more_in_floats(method):
    program, x = mlp()
    ranges = nestegg.calibrate(program, data=[x])
    spent = []
    for budget in (0.0, 0.008, 0.1):
        options = Options(accuracy_budget=budget, ranges=ranges, extraction=method, threads=1)
        compiled = compile_graph(program, options)
        assert compiled.accuracy.estimate <= budget * (1 + 1e-6)
        found = compiled.verify(x)
        assert found.ok
        spent.append((integer_kernels(compiled), compiled.accuracy.estimate, found.max_rel_err))
    assert spent[0][0] == 0
    assert spent[0][2] < 1e-5
    assert spent[0][0] < spent[2][0]
    assert spent[1][1] <= spent[2][1]
    assert spent[2][2] < 3 * spent[2][1]


def test_without_a_budget_nothing_lossy_fires():
    program, _ = mlp()
    compiled = compile_graph(program, Options(threads=1))
    assert integer_kernels(compiled) == 0
    assert not any("quantize" in r["name"] for r in compiled.found["graph"]["rules"])


def test_budget_and_ranges_come_together(tmp_path):
    program, x = mlp()
    with pytest.raises(CalibrationError, match="needs ranges"):
        compile_graph(program, Options(accuracy_budget=0.1))
    ranges = nestegg.calibrate(program, data=[x])
    with pytest.raises(CalibrationError, match="accuracy_budget only"):
        compile_graph(program, Options(ranges=ranges))
    with pytest.raises(CalibrationError, match="-1"):
        compile_graph(program, Options(accuracy_budget=-1, ranges=ranges))
    with pytest.raises(CalibrationError, match="another graph"):
        compile_graph(mlp((64, 32, 64, 48))[0], Options(accuracy_budget=0.1, ranges=ranges))


# --- integers are exact ----------------------------------------------------------------------------------------------


def conv_of_bytes(x, w, padding):
    """NumPy, in int64."""
    x = np.pad(x.astype(np.int64), [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w.astype(np.int64))


@pytest.mark.parametrize("channels", [3, 4, 16, 20])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_of_bytes_are_exact(channels, kernel):
    b = GraphBuilder()
    x = RNG.integers(0, 255, (1, channels, 9, 9), np.uint8)
    w = RNG.integers(-127, 127, (16, channels, kernel, kernel), np.int8)
    wide = [b.op("cast", v, dtype="i32") for v in (b.input(TensorType(x.shape, "u8")), b.constant(w))]
    pad = kernel // 2
    attrs = {"strides": (1, 1), "padding": ((pad, pad),) * 2, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    graph = b.finish([b.op("conv", *wide, groups=1, **attrs)])
    compiled = nestegg.optimize(ImportedProgram(graph, ("x",), ("y",)), threads=1)
    assert np.array_equal(compiled(x), conv_of_bytes(x, w, pad))


def residual_block():
    w = [RNG.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12 for _ in range(3)]
    bias = RNG.standard_normal((16, 1, 1)).astype(np.float32)

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)))

    def block(x):
        x = jax.nn.relu(conv(x, w[0]))
        y = jax.nn.relu(conv(x, w[1]) + bias)
        return jax.nn.relu(x + conv(y, w[2]) + bias)

    x = RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)
    return import_program(block, x), x


def test_power_of_two_scales_give_shifts():
    """What an accelerator takes is in the e-graph: sums in i32, a bias and a residual in integers, a shift, a clip."""
    program, x = residual_block()
    ranges = nestegg.calibrate(program, data=[x])
    options = Options(accuracy_budget=0.5, ranges=ranges, scales="power-of-two", threads=1)
    compiled = compile_graph(program, options)
    kernels = [line for line in compiled.texts["egraph.txt"].splitlines() if "-> i8[" in line]
    shifted = [k for k in kernels if "sum(" in k and "shr(" in k]
    assert any("f32" not in k for k in shifted)
    matches = {r["name"]: r["matches"] for r in compiled.found["graph"]["rules"]}
    for name in ("round_bias", "relu_into_quantize", "requantize_by_shift", "add_integers_after"):
        assert matches[name], name
    assert compiled.verify(x).ok


def test_a_quantized_residual_block_keeps_its_budget():
    program, x = residual_block()
    ranges = nestegg.calibrate(program, data=[x])
    compiled = compile_graph(program, Options(accuracy_budget=0.1, ranges=ranges, threads=1))
    assert integer_kernels(compiled) == 3
    assert compiled.verify(x).ok


# --- quantized ONNX models -------------------------------------------------------------------------------------------


def qdq_model(zero, by_channel):
    """x -> Q -> DQ -> Conv(DQ(w)) -> Relu -> Q -> DQ, and the same computed in NumPy, in exact integers."""
    x = RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)
    w = RNG.integers(-127, 127, (16, 8, 3, 3), np.int8)
    scale_w = (RNG.uniform(0.5, 1, 16) / 64 if by_channel else np.array(1 / 64)).astype(np.float32)
    scales = {"sx": np.array(1 / 32, np.float32), "sy": np.array(0.25, np.float32), "sw": scale_w}
    points = {"zx": np.array(zero, np.uint8), "zy": np.array(3, np.uint8)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["dw"], axis=0),
        helper.make_node("Conv", ["dx", "dw"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "sy", "zy"], ["y"]),
    ]
    model = model_of(nodes, {"x": x}, ["y"], {**scales, **points, "w": w}, opset=17)
    model.graph.output[0].type.tensor_type.elem_type = 2
    q = np.clip(np.round(x.astype(np.float64) * 32) + zero, 0, 255).astype(np.int64) - zero
    real = conv_of_bytes(q, w, 1) / 32 * scale_w.astype(np.float64).reshape(1, -1, 1, 1)
    return model, x, np.clip(np.round(np.maximum(real, 0) / 0.25) + 3, 0, 255)


@pytest.mark.parametrize("by_channel", [False, True], ids=["one scale", "by channel"])
@pytest.mark.parametrize("zero", [0, 128, 7])
def test_the_qdq_pattern_becomes_an_integer_kernel(zero, by_channel):
    model, x, want = qdq_model(zero, by_channel)
    compiled = nestegg.optimize(model, threads=1)
    assert integer_kernels(compiled) == 1
    assert compiled.accuracy is None
    assert np.array_equal(compiled(x), want)


def test_a_qlinear_convolution_is_an_integer_kernel():
    x = RNG.integers(0, 255, (1, 8, 6, 6), np.uint8)
    w = RNG.integers(-127, 127, (16, 8, 3, 3), np.int8)
    numbers = {"sx": 0.03, "sw": 0.02, "sy": 0.4}
    scales = {k: np.array(v, np.float32) for k, v in numbers.items()}
    points = {"zx": np.array(120, np.uint8), "zw": np.array(0, np.int8), "zy": np.array(100, np.uint8)}
    operands = ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"]
    node = helper.make_node("QLinearConv", operands, ["y"], pads=[1, 1, 1, 1])
    model = model_of([node], {"x": x}, ["y"], {**scales, **points, "w": w})
    model.graph.output[0].type.tensor_type.elem_type = 2
    compiled = nestegg.optimize(model, threads=1)
    assert integer_kernels(compiled) == 1
    real = conv_of_bytes(x.astype(np.int64) - 120, w, 1) * (0.03 * 0.02 / 0.4)
    away = np.abs(compiled(x).astype(int) - np.clip(np.round(real) + 100, 0, 255))
    assert away.max() <= 1  # a total within rounding of half a step may go either way
    assert (away > 0).mean() < 0.01
