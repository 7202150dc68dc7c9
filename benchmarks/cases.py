"""The suites' cases: each computation once as JAX, as ONNX, for NumPy, and as nestegg is given it.

matmul      squares, the shapes of BERT, odd shapes; weights are constants
product     products of two inputs, the second as it is and transposed
int8        the same of bytes: u8 activations, s8 weights, int32 results
bf16        the same of bfloat16 operands, float32 results
conv        the 12 distinct convolutions of ResNet-18 (Chen et al., "TVM", OSDI 2018), bias and relu
depthwise   the depthwise convolutions of MobileNet-v1 (Howard et al. 2017) with bias and relu
memory      elementwise chains, softmax, layer norm, gelu, reductions, transpose, in and out of cache
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from peers import Case, Form, OnnxForm, Source

SQUARES = (64, 128, 256, 512, 1024, 2048)
BERT = ((128, 768, 768), (128, 768, 3072), (128, 3072, 768))
ODD = ((509, 251, 127), (1, 1000, 2048), (100, 300, 200), (7, 13, 4099))

PRODUCTS = ((256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (32, 768, 768), *BERT)

#: Name, extent, input channels, output channels, kernel, stride, padding.
RESNET18 = (
    ("C1", 224, 3, 64, 7, 2, 3),
    ("C2", 56, 64, 64, 3, 1, 1),
    ("C3", 56, 64, 64, 1, 1, 0),
    ("C4", 56, 64, 128, 3, 2, 1),
    ("C5", 56, 64, 128, 1, 2, 0),
    ("C6", 28, 128, 128, 3, 1, 1),
    ("C7", 28, 128, 256, 3, 2, 1),
    ("C8", 28, 128, 256, 1, 2, 0),
    ("C9", 14, 256, 256, 3, 1, 1),
    ("C10", 14, 256, 512, 3, 2, 1),
    ("C11", 14, 256, 512, 1, 2, 0),
    ("C12", 7, 512, 512, 3, 1, 1),
)
#: Extent, channels, stride.
MOBILENET = (
    (112, 32, 1),
    (112, 64, 2),
    (56, 128, 1),
    (56, 128, 2),
    (28, 256, 1),
    (28, 256, 2),
    (14, 512, 1),
    (14, 512, 2),
    (7, 1024, 1),
)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def onnx_model(
    inputs: dict[str, np.ndarray],
    output: Sequence[int],
    nodes: Sequence[tuple[str, Sequence[str], str, dict[str, Any]]],
    constants: dict[str, np.ndarray] | None = None,
    result: str = "float32",
) -> Any:
    """An ONNX model; a node is (operator, inputs, output, attributes); the result is called `y`."""
    from onnx import helper, numpy_helper

    def typed(dtype: Any) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    graph = helper.make_graph(
        [helper.make_node(op, list(args), [out], **attrs) for op, args, out, attrs in nodes],
        "case",
        [helper.make_tensor_value_info(n, typed(a.dtype), a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", typed(result), list(output))],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# --- matmul ---------------------------------------------------------------------------------------


def matmul(m: int, k: int, n: int) -> Case:
    x, w = random(m, k), random(k, n, seed=1)

    def in_numpy() -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
        out = np.empty((m, n), np.float32)
        return lambda: np.matmul(x, w, out=out), lambda: out

    def fn(x: Any) -> Any:
        return x @ w

    def model() -> Any:
        return onnx_model({"x": x}, (m, n), [("MatMul", ("x", "w"), "y", {})], {"w": w})

    return Case(
        name=str(m) if m == k == n else f"{m}x{k}x{n}",
        flops=2.0 * m * k * n,
        read=4.0 * (m * k + k * n),
        written=4.0 * m * n,
        forms=(Form("", fn, (x,)),),
        source=Source(lambda: fn, (x,)),
        onnx=(OnnxForm("", model, (x,)),),
        numpy=in_numpy,
    )


def product(m: int, k: int, n: int, transposed: bool) -> Case:
    x, y = random(m, k), random(*((n, k) if transposed else (k, n)), seed=1)

    def fn(x: Any, y: Any) -> Any:
        return x @ (y.T if transposed else y)

    def in_numpy() -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
        out = np.empty((m, n), np.float32)
        return lambda: np.matmul(x, y.T if transposed else y, out=out), lambda: out

    def model() -> Any:
        return onnx_model({"a": x, "b": y}, (m, n), [("Gemm", ("a", "b"), "y", {"transB": int(transposed)})])

    return Case(
        name=(str(m) if m == k == n else f"{m}x{k}x{n}") + (" transposed" if transposed else ""),
        flops=2.0 * m * k * n,
        read=4.0 * (m * k + k * n),
        written=4.0 * m * n,
        forms=(Form("", fn, (x, y)),),
        source=Source(lambda: fn, (x, y)),
        onnx=(OnnxForm("", model, (x, y)),),
        numpy=in_numpy,
    )


def int8(m: int, k: int, n: int) -> Case:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (m, k), np.uint8), rng.integers(-128, 128, (k, n), np.int8)

    def fn(x: Any) -> Any:
        return _accumulated(x, w, np.int32)

    def model() -> Any:
        return onnx_model({"x": x}, (m, n), [("MatMulInteger", ("x", "w"), "y", {})], {"w": w}, "int32")

    return _narrow(m, k, n, x, fn, lambda: x.astype(np.float64) @ w.astype(np.float64), OnnxForm("", model, (x,)), 0.0)


def bf16(m: int, k: int, n: int) -> Case:
    import ml_dtypes

    x, w = (a.astype(ml_dtypes.bfloat16) for a in (random(m, k), random(k, n, seed=1)))
    wide = x.astype(np.float32), w.astype(np.float32)

    def fn(x: Any) -> Any:
        return _accumulated(x, w, np.float32)

    def model() -> Any:  # float32, which openvino converts: it takes no bfloat16
        return onnx_model({"x": wide[0]}, (m, n), [("MatMul", ("x", "w"), "y", {})], {"w": wide[1]})

    form = OnnxForm("bf16", model, (wide[0],), precision="bf16")
    return _narrow(m, k, n, x, fn, lambda: wide[0].astype(np.float64) @ wide[1].astype(np.float64), form, 1e-2)


def _accumulated(x: Any, w: np.ndarray, dtype: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jax.lax.dot_general(x, jnp.asarray(w), (((1,), (0,)), ((), ())), preferred_element_type=dtype)


def _narrow(
    m: int, k: int, n: int, x: np.ndarray, fn: Any, exact: Callable[[], np.ndarray], onnx: OnnxForm, tolerance: float
) -> Case:
    """A matmul of operands narrower than its float32 or int32 result."""
    return Case(
        name=str(m) if m == k == n else f"{m}x{k}x{n}",
        flops=2.0 * m * k * n,
        read=float(x.itemsize * (m * k + k * n)),
        written=4.0 * m * n,
        forms=(Form("", fn, (x,)),),
        source=Source(lambda: fn, (x,)),
        onnx=(onnx,),
        tolerance=tolerance,
        exact=exact,
    )


# --- convolutions ---------------------------------------------------------------------------------


def packed(a: np.ndarray, factor: int) -> np.ndarray:
    """NCHW to NCHW[factor]c."""
    n, c, h, w = a.shape
    return np.ascontiguousarray(a.reshape(n, c // factor, factor, h, w).transpose(0, 1, 3, 4, 2))


def unpacked(a: np.ndarray) -> np.ndarray:
    n, c, h, w, f = a.shape
    return np.ascontiguousarray(a.transpose(0, 1, 4, 2, 3).reshape(n, c * f, h, w))


def convolution(
    name: str,
    extent: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    pad: int,
    groups: int = 1,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Case:
    """A convolution with bias and relu; contestants may use a layout of their own at both ends."""
    x = random(1, inputs, extent, extent)
    w = random(
        outputs, inputs // groups, kernel, kernel, seed=1, scale=(inputs // groups * kernel**2) ** -0.5
    )
    bias = random(outputs, seed=2)
    size = (extent + 2 * pad - kernel) // stride + 1
    shape = (1, outputs, size, size)
    edges = ((pad, pad), (pad, pad))

    def nchw(v: Any) -> Any:
        import jax
        import jax.numpy as jnp

        y = jax.lax.conv_general_dilated(
            v, jnp.asarray(w, v.dtype), (stride, stride), edges, feature_group_count=groups
        )
        return jax.nn.relu(y + bias.reshape(1, -1, 1, 1))

    def nhwc(v: Any) -> Any:
        import jax
        import jax.numpy as jnp

        numbers = ("NHWC", "HWIO", "NHWC")
        weights = jnp.asarray(np.ascontiguousarray(w.transpose(2, 3, 1, 0)), v.dtype)
        y = jax.lax.conv_general_dilated(
            v, weights, (stride, stride), edges, dimension_numbers=numbers, feature_group_count=groups
        )
        return jax.nn.relu(y + bias)

    attrs = {
        "kernel_shape": [kernel, kernel],
        "strides": [stride, stride],
        "pads": [pad] * 4,
        "group": groups,
    }

    def model() -> Any:
        nodes = [("Conv", ("x", "w", "b"), "c", attrs), ("Relu", ("c",), "y", {})]
        return onnx_model({"x": x}, shape, nodes, {"w": w, "b": bias})

    def model_nhwc() -> Any:
        nodes = [
            ("Transpose", ("x",), "t", {"perm": [0, 3, 1, 2]}),
            ("Conv", ("t", "w", "b"), "c", attrs),
            ("Relu", ("c",), "r", {}),
            ("Transpose", ("r",), "y", {"perm": [0, 2, 3, 1]}),
        ]
        return onnx_model({"x": x_nhwc}, (1, size, size, outputs), nodes, {"w": w, "b": bias})

    def blocks() -> int:
        from nestegg.ir.target import host

        return host().lanes()

    lanes = blocks()
    block_input, block_output = inputs % lanes == 0, outputs % lanes == 0

    def graph() -> Any:
        from nestegg.ir.canonical import add, broadcast, maximum
        from nestegg.ir.graph import GraphBuilder
        from nestegg.ir.imported import ImportedProgram
        from nestegg.ir.types import TensorType

        g = GraphBuilder()
        v = g.input(TensorType(packed(x, lanes).shape if block_input else x.shape), "x")
        v = g.op("unpack", v, axis=1) if block_input else v
        ones = (1, 1)
        y = g.op(
            "conv", v, g.constant(w), strides=(stride, stride), padding=edges, lhs_dilation=ones,
            rhs_dilation=ones, groups=groups,
        )  # fmt: skip
        y = maximum(add(y, broadcast(g.constant(bias), shape, (1,))), 0)
        y = g.op("pack", y, axis=1, factor=lanes) if block_output else y
        return ImportedProgram(g.finish([y]), ("x",), ("y",), source=name)

    def from_nhwc(a: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(a.transpose(0, 3, 1, 2))

    x_nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    # onnxruntime's blocked tensors are declared as NCHW and hold NCHW16c
    x_blocked = packed(x, lanes).reshape(x.shape) if block_input else x

    def from_blocked(a: np.ndarray) -> np.ndarray:
        return unpacked(a.reshape(1, outputs // lanes, size, size, lanes))

    return Case(
        name=name,
        flops=2.0 * outputs * size * size * (inputs // groups) * kernel**2,
        read=4.0 * (x.size + w.size),
        written=4.0 * math.prod(shape),
        forms=(Form("NCHW", nchw, (x,)), Form("NHWC", nhwc, (x_nhwc,), from_nhwc)),
        source=Source(
            graph, (packed(x, lanes) if block_input else x,), unpacked if block_output else lambda a: a, options
        ),
        onnx=(
            OnnxForm("NCHW", model, (x,)),
            OnnxForm("NHWC", model_nhwc, (x_nhwc,), from_nhwc),
            *([OnnxForm("blocked", model, (x_blocked,), from_blocked, blocked=True)] if block_output else []),
        ),
    )


def depthwise(extent: int, channels: int, stride: int) -> Case:
    name = f"{extent}x{extent}x{channels}" + (f"/{stride}" if stride > 1 else "")
    return convolution(name, extent, channels, channels, 3, stride, 1, groups=channels)


# --- memory ---------------------------------------------------------------------------------------


def _memory(
    name: str,
    inputs: dict[str, np.ndarray],
    fn: Callable[..., Any],
    output: Sequence[int],
    nodes: Sequence[tuple[str, Sequence[str], str, dict[str, Any]]],
    in_numpy: Callable[..., Any] | None = None,
    constants: dict[str, np.ndarray] | None = None,
    flops_each: float = 1.0,
) -> Case:
    """`in_numpy(out, *inputs)` fills `out` (and may allocate)."""
    arrays = tuple(inputs.values())

    def numpy() -> tuple[Callable[[], Any], Callable[[], np.ndarray]]:
        fill, out = in_numpy, np.empty(tuple(output), np.float32)
        assert fill is not None
        return lambda: fill(out, *arrays), lambda: out

    read = 4.0 * sum(a.size for a in arrays)
    return Case(
        name=name,
        flops=flops_each * arrays[0].size,
        read=read,
        written=4.0 * math.prod(output),
        forms=(Form("", fn, arrays),),
        source=Source(lambda: fn, arrays),
        onnx=(OnnxForm("", lambda: onnx_model(inputs, output, nodes, constants), arrays),),
        numpy=numpy if in_numpy is not None else None,
        tolerance=1e-5,
    )


def chain(n: int) -> Case:
    a, b, c = (random(n, seed=k) for k in range(3))

    def fn(a: Any, b: Any, c: Any) -> Any:
        import jax

        return jax.nn.relu(a * b + c)

    def in_numpy(out: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
        np.multiply(a, b, out=out)
        np.add(out, c, out=out)
        np.maximum(out, 0, out=out)

    nodes = [("Mul", ("a", "b"), "p", {}), ("Add", ("p", "c"), "s", {}), ("Relu", ("s",), "y", {})]
    return _memory(
        f"relu(a*b+c) {_count(n)}", {"a": a, "b": b, "c": c}, fn, (n,), nodes, in_numpy, flops_each=3
    )


def exponential(n: int) -> Case:
    def fn(x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.exp(x)

    return _memory(
        f"exp {_count(n)}", {"x": random(n)}, fn, (n,), [("Exp", ("x",), "y", {})],
        lambda out, x: np.exp(x, out=out), flops_each=10,
    )  # fmt: skip


def gelu(rows: int, columns: int) -> Case:
    def fn(x: Any) -> Any:
        import jax

        return jax.nn.gelu(x, approximate=False)

    constants = {"r": np.float32(math.sqrt(0.5)), "one": np.float32(1), "half": np.float32(0.5)}
    nodes = [
        ("Mul", ("x", "r"), "s", {}),
        ("Erf", ("s",), "e", {}),
        ("Add", ("e", "one"), "f", {}),
        ("Mul", ("x", "f"), "g", {}),
        ("Mul", ("g", "half"), "y", {}),
    ]
    arrays = {k: np.asarray(v) for k, v in constants.items()}
    return _memory(
        f"gelu {rows}x{columns}", {"x": random(rows, columns)}, fn, (rows, columns), nodes, None, arrays, 20
    )


def softmax(rows: int, columns: int) -> Case:
    def fn(x: Any) -> Any:
        import jax

        return jax.nn.softmax(x, axis=-1)

    def in_numpy(out: np.ndarray, x: np.ndarray) -> None:
        np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
        np.exp(out, out=out)
        np.divide(out, out.sum(axis=-1, keepdims=True), out=out)

    nodes = [("Softmax", ("x",), "y", {"axis": -1})]
    x = random(rows, columns)
    return _memory(f"softmax {rows}x{columns}", {"x": x}, fn, (rows, columns), nodes, in_numpy, flops_each=14)


def layer_norm(rows: int, columns: int) -> Case:
    gain, shift = random(columns, seed=1), random(columns, seed=2)

    def fn(x: Any) -> Any:
        import jax
        import jax.numpy as jnp

        mean = jnp.mean(x, axis=-1, keepdims=True)
        centred = x - mean
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-5) * gain + shift

    def in_numpy(out: np.ndarray, x: np.ndarray) -> None:
        np.subtract(x, x.mean(axis=-1, keepdims=True), out=out)
        scale = np.sqrt(np.mean(out * out, axis=-1, keepdims=True) + np.float32(1e-5))
        np.divide(out, scale, out=out)
        np.multiply(out, gain, out=out)
        np.add(out, shift, out=out)

    nodes = [("LayerNormalization", ("x", "g", "s"), "y", {"axis": -1, "epsilon": 1e-5})]
    x = random(rows, columns)
    constants = {"g": gain, "s": shift}
    return _memory(
        f"layer norm {rows}x{columns}", {"x": x}, fn, x.shape, nodes, in_numpy, constants, flops_each=8
    )


def reduction(rows: int, columns: int, axis: int | None) -> Case:
    x = random(rows, columns)
    shape = {None: (), 0: (columns,), 1: (rows,)}[axis]

    def fn(x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.sum(x, axis=axis)

    axes = np.array([0, 1] if axis is None else [axis], np.int64)
    nodes = [("ReduceSum", ("x", "axes"), "y", {"keepdims": 0})]
    what = {None: "all of", 0: "columns of", 1: "rows of"}[axis]
    case = _memory(
        f"sum {what} {rows}x{columns}", {"x": x}, fn, shape, nodes,
        lambda out, x: np.sum(x, axis=axis, out=out), {"axes": axes},
    )  # fmt: skip
    object.__setattr__(case, "tolerance", 1e-3)  # a sum of many terms of either sign: relative to the result
    return case


def transpose(rows: int, columns: int) -> Case:
    def fn(x: Any) -> Any:
        return x.T

    nodes = [("Transpose", ("x",), "y", {"perm": [1, 0]})]
    x = random(rows, columns)
    return _memory(
        f"transpose {rows}x{columns}",
        {"x": x},
        fn,
        (columns, rows),
        nodes,
        lambda out, x: np.copyto(out, x.T),
    )


def _count(n: int) -> str:
    return f"{n >> 20}M" if n % (1 << 20) == 0 else f"{n >> 10}k"


MEMORY: tuple[Callable[[], Case], ...] = (
    *(lambda n=n: chain(n) for n in (2 << 10, 64 << 10, 1 << 20, 16 << 20)),
    *(lambda n=n: exponential(n) for n in (64 << 10, 1 << 20)),
    *(lambda r=r: gelu(r, 3072) for r in (128, 4096)),
    *(lambda r=r, c=c: softmax(r, c) for r, c in ((1536, 128), (128, 1000), (8192, 1024))),
    *(lambda r=r, c=c: layer_norm(r, c) for r, c in ((128, 768), (8192, 768))),
    *(lambda r=r, c=c, a=a: reduction(r, c, a) for r, c in ((256, 256), (4096, 4096)) for a in (None, 0, 1)),
    *(lambda n=n: transpose(n, n) for n in (256, 4096)),
)
