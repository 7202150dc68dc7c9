"""Layers of the model zoo: each knows its weights, its plain JAX form and its ONNX form.

A layer maps a tensor of shape (N, C, spatial...) or (N, features) to another; a model is a tuple of layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Shape = tuple[int, ...]
Weights = dict[str, Any]
Random = np.random.Generator | None
"""Where weights come from; None: only their shapes are asked for, and no memory is taken."""


class Layer(Protocol):
    """weights(rng, shape): float32 arrays by name, He-scaled; out(shape): the output's shape; macs(shape):
    multiply-adds; jax(weights, x): the layer in plain JAX; onnx(model, weights, x): adds nodes, returns the
    output's name.
    """

    def weights(self, rng: Random, shape: Shape) -> Weights: ...

    def out(self, shape: Shape) -> Shape: ...

    def macs(self, shape: Shape) -> int: ...

    def jax(self, weights: Weights, x: Any) -> Any: ...

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str: ...


class OnnxWriter:
    """Collects the nodes and initializers of an ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, op: str, *inputs: str, **attrs: Any) -> str:
        from onnx import helper

        out = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=out, **attrs))
        return out

    def tensor(self, array: np.ndarray, name: str) -> str:
        from onnx import numpy_helper

        unique = f"{name}_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, unique))
        return unique


class NoWeights:
    def weights(self, rng: Random, shape: Shape) -> Weights:
        return {}

    def out(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return 0


def normal(rng: Random, shape: Shape, scale: float) -> np.ndarray:
    if rng is None:
        return np.broadcast_to(np.float32(0), shape)
    return _frozen((rng.standard_normal(shape) * scale).astype(np.float32))


def _uniform(rng: Random, shape: Shape, gain: float = 1.0) -> np.ndarray:
    """Numbers in 0.8..1.2, times `gain`."""
    if rng is None:
        return np.broadcast_to(np.float32(0), shape)
    return _frozen((gain * rng.uniform(0.8, 1.2, shape)).astype(np.float32))


def _frozen(array: np.ndarray) -> np.ndarray:
    """Weights that nobody writes to: importing takes them without a copy."""
    array.setflags(write=False)
    return array


def _pooled(n: int, kernel: int, stride: int, pad: int) -> int:
    return (n + 2 * pad - kernel) // stride + 1


@dataclass(frozen=True)
class Dense:
    """x @ w + b"""

    features: int

    def weights(self, rng: Random, shape: Shape) -> Weights:
        w = normal(rng, (shape[-1], self.features), math.sqrt(2 / shape[-1]))
        return {"w": w, "b": normal(rng, (self.features,), 0.1)}

    def out(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.features)

    def macs(self, shape: Shape) -> int:
        return math.prod(shape) * self.features

    def jax(self, weights: Weights, x: Any) -> Any:
        return x @ weights["w"] + weights["b"]

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node(
            "Gemm", x, model.tensor(weights["w"], "dense_w"), model.tensor(weights["b"], "dense_b")
        )


@dataclass(frozen=True)
class Conv:
    """2-D cross-correlation, NCHW by OIHW."""

    channels: int
    kernel: int
    stride: int = 1
    pad: int = 0
    bias: bool = True
    groups: int = 1

    def weights(self, rng: Random, shape: Shape) -> Weights:
        inputs = shape[1] // self.groups
        fan_in = inputs * self.kernel**2
        w = normal(rng, (self.channels, inputs, self.kernel, self.kernel), math.sqrt(2 / fan_in))
        return {"w": w} | ({"b": normal(rng, (self.channels,), 0.1)} if self.bias else {})

    def out(self, shape: Shape) -> Shape:
        spatial = (_pooled(n, self.kernel, self.stride, self.pad) for n in shape[2:])
        return (shape[0], self.channels, *spatial)

    def macs(self, shape: Shape) -> int:
        return math.prod(self.out(shape)) * shape[1] // self.groups * self.kernel**2

    def jax(self, weights: Weights, x: Any) -> Any:
        from jax import lax

        pad = ((self.pad, self.pad),) * 2
        y = lax.conv_general_dilated(x, weights["w"], (self.stride,) * 2, pad, feature_group_count=self.groups)
        return y + weights["b"].reshape(1, -1, 1, 1) if self.bias else y

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        inputs = [model.tensor(weights[k], f"conv_{k}") for k in weights]
        attrs = {"kernel_shape": [self.kernel] * 2, "strides": [self.stride] * 2, "pads": [self.pad] * 4}
        return model.node("Conv", x, *inputs, group=self.groups, **attrs)


@dataclass(frozen=True)
class Deconv:
    """2-D transposed convolution without bias, weights (inputs, outputs, kernel, kernel) as in ONNX."""

    channels: int
    kernel: int
    stride: int
    pad: int
    gain: float = 1.0

    def weights(self, rng: Random, shape: Shape) -> Weights:
        fan_in = shape[1] * self.kernel**2 / self.stride**2
        w = normal(rng, (shape[1], self.channels, self.kernel, self.kernel), self.gain * math.sqrt(2 / fan_in))
        return {"w": w}

    def out(self, shape: Shape) -> Shape:
        spatial = ((n - 1) * self.stride + self.kernel - 2 * self.pad for n in shape[2:])
        return (shape[0], self.channels, *spatial)

    def macs(self, shape: Shape) -> int:
        return math.prod(shape) * self.channels * self.kernel**2

    def jax(self, weights: Weights, x: Any) -> Any:
        from jax import lax

        border = self.kernel - 1 - self.pad
        around = [(border, border)] * 2
        mirrored = np.flip(weights["w"], (2, 3)).swapaxes(0, 1)
        return lax.conv_general_dilated(x, mirrored, (1, 1), around, lhs_dilation=(self.stride,) * 2)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        attrs = {"kernel_shape": [self.kernel] * 2, "strides": [self.stride] * 2, "pads": [self.pad] * 4}
        return model.node("ConvTranspose", x, model.tensor(weights["w"], "deconv_w"), **attrs)


@dataclass(frozen=True)
class BatchNorm:
    """Inference batch norm; `gain` scales the random scales (small at the end of a residual branch)."""

    gain: float = 1.0
    epsilon: float = 1e-5

    def weights(self, rng: Random, shape: Shape) -> Weights:
        n = (shape[1],)
        scale, variance = _uniform(rng, n, self.gain), _uniform(rng, n)
        return {"scale": scale, "shift": normal(rng, n, 0.1), "mean": normal(rng, n, 0.1), "var": variance}

    def out(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return math.prod(shape)

    def jax(self, weights: Weights, x: Any) -> Any:
        factor = weights["scale"] / np.sqrt(weights["var"] + np.float32(self.epsilon))
        offset = weights["shift"] - weights["mean"] * factor
        return x * factor.reshape(1, -1, 1, 1) + offset.reshape(1, -1, 1, 1)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        inputs = [model.tensor(weights[k], f"bn_{k}") for k in ("scale", "shift", "mean", "var")]
        return model.node("BatchNormalization", x, *inputs, epsilon=self.epsilon)


class Relu(NoWeights):
    def jax(self, weights: Weights, x: Any) -> Any:
        import jax

        return jax.nn.relu(x)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("Relu", x)


class Relu6(NoWeights):
    def jax(self, weights: Weights, x: Any) -> Any:
        import jax

        return jax.nn.relu6(x)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        bounds = [model.tensor(np.array(b, np.float32), "bound") for b in (0, 6)]
        return model.node("Clip", x, *bounds)


class Tanh(NoWeights):
    def jax(self, weights: Weights, x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.tanh(x)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("Tanh", x)


@dataclass(frozen=True)
class Lrn(NoWeights):
    """Local response normalization over `size` neighbouring channels (Krizhevsky 2012)."""

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75

    def jax(self, weights: Weights, x: Any) -> Any:
        from jax import lax

        around = ((0, 0), ((self.size - 1) // 2, self.size // 2), (0, 0), (0, 0))
        total = lax.reduce_window(x * x, 0.0, lax.add, (1, self.size, 1, 1), (1, 1, 1, 1), around)
        return x / (1.0 + total * (self.alpha / self.size)) ** self.beta

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("LRN", x, size=self.size, alpha=self.alpha, beta=self.beta, bias=1.0)


@dataclass(frozen=True)
class Shuffle(NoWeights):
    """`channels` in g groups, interleaved (ShuffleNet), over `size` x `size` pixels."""

    groups: int
    channels: int
    size: int

    def _split(self) -> tuple[int, ...]:
        return (self.groups, self.channels // self.groups, self.size, self.size)

    def jax(self, weights: Weights, x: Any) -> Any:
        return x.reshape((-1, *self._split())).swapaxes(1, 2).reshape(x.shape)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        split = model.node("Reshape", x, model.tensor(np.array((-1, *self._split()), np.int64), "groups"))
        mixed = model.node("Transpose", split, perm=[0, 2, 1, 3, 4])
        joined = np.array((-1, self.channels, self.size, self.size), np.int64)
        return model.node("Reshape", mixed, model.tensor(joined, "channels"))


@dataclass(frozen=True)
class Unflatten(NoWeights):
    """(N, features) as (N, C, spatial)."""

    shape: Shape

    def out(self, shape: Shape) -> Shape:
        return (shape[0], *self.shape)

    def jax(self, weights: Weights, x: Any) -> Any:
        return x.reshape(self.out(x.shape))

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("Reshape", x, model.tensor(np.array((-1, *self.shape), np.int64), "shape"))


class Flatten(NoWeights):
    def out(self, shape: Shape) -> Shape:
        return (shape[0], math.prod(shape[1:]))

    def jax(self, weights: Weights, x: Any) -> Any:
        return x.reshape(self.out(x.shape))

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("Flatten", x)


@dataclass(frozen=True)
class MaxPool(NoWeights):
    kernel: int
    stride: int
    pad: int = 0

    def out(self, shape: Shape) -> Shape:
        return (*shape[:2], *(_pooled(n, self.kernel, self.stride, self.pad) for n in shape[2:]))

    def jax(self, weights: Weights, x: Any) -> Any:
        from jax import lax

        pads = ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad))
        return lax.reduce_window(
            x, -np.inf, lax.max, (1, 1, self.kernel, self.kernel), (1, 1, self.stride, self.stride), pads
        )

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        attrs = {"kernel_shape": [self.kernel] * 2, "strides": [self.stride] * 2, "pads": [self.pad] * 4}
        return model.node("MaxPool", x, **attrs)


@dataclass(frozen=True)
class AvgPool(NoWeights):
    """Mean of kernel x kernel windows; padding counts as zeros."""

    kernel: int
    stride: int
    pad: int = 0

    def out(self, shape: Shape) -> Shape:
        return (*shape[:2], *(_pooled(n, self.kernel, self.stride, self.pad) for n in shape[2:]))

    def jax(self, weights: Weights, x: Any) -> Any:
        from jax import lax

        window, strides = (1, 1, self.kernel, self.kernel), (1, 1, self.stride, self.stride)
        pads = ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad))
        return lax.reduce_window(x, 0.0, lax.add, window, strides, pads) * (1 / self.kernel**2)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        attrs = {"kernel_shape": [self.kernel] * 2, "strides": [self.stride] * 2, "pads": [self.pad] * 4}
        return model.node("AveragePool", x, count_include_pad=1, **attrs)


class GlobalAvgPool(NoWeights):
    def out(self, shape: Shape) -> Shape:
        return (*shape[:2], 1, 1)

    def jax(self, weights: Weights, x: Any) -> Any:
        return x.sum((2, 3), keepdims=True) * (1 / math.prod(x.shape[2:]))

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("GlobalAveragePool", x)


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x); an empty shortcut is x itself."""

    body: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()

    def weights(self, rng: Random, shape: Shape) -> Weights:
        return {"body": init(self.body, rng, shape), "shortcut": init(self.shortcut, rng, shape)}

    def out(self, shape: Shape) -> Shape:
        for layer in self.body:
            shape = layer.out(shape)
        return shape

    def macs(self, shape: Shape) -> int:
        return total_macs(self.body, shape) + total_macs(self.shortcut, shape)

    def jax(self, weights: Weights, x: Any) -> Any:
        return run_jax(self.body, weights["body"], x) + run_jax(self.shortcut, weights["shortcut"], x)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        left = write_onnx(self.body, weights["body"], model, x)
        return model.node("Add", left, write_onnx(self.shortcut, weights["shortcut"], model, x))


@dataclass(frozen=True)
class Concat:
    """The results of all branches joined along the channels; an empty branch is x itself."""

    branches: tuple[tuple[Layer, ...], ...]

    def weights(self, rng: Random, shape: Shape) -> Weights:
        return {str(k): init(b, rng, shape) for k, b in enumerate(self.branches)}

    def out(self, shape: Shape) -> Shape:
        shapes = []
        for branch in self.branches:
            after = shape
            for layer in branch:
                after = layer.out(after)
            shapes.append(after)
        return (shape[0], sum(s[1] for s in shapes), *shapes[0][2:])

    def macs(self, shape: Shape) -> int:
        return sum(total_macs(b, shape) for b in self.branches)

    def jax(self, weights: Weights, x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.concatenate([run_jax(b, weights[str(k)], x) for k, b in enumerate(self.branches)], 1)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        parts = [write_onnx(b, weights[str(k)], model, x) for k, b in enumerate(self.branches)]
        return model.node("Concat", *parts, axis=1)


def init(layers: tuple[Layer, ...], rng: Random, shape: Shape) -> list[Weights]:
    """Random weights, one dictionary a layer (without a generator: empty ones of the right shapes)."""
    out = []
    for layer in layers:
        out.append(layer.weights(rng, shape))
        shape = layer.out(shape)
    return out


def total_macs(layers: tuple[Layer, ...], shape: Shape) -> int:
    total = 0
    for layer in layers:
        total += layer.macs(shape)
        shape = layer.out(shape)
    return total


def run_jax(layers: tuple[Layer, ...], weights: list[Weights], x: Any) -> Any:
    for layer, w in zip(layers, weights, strict=True):
        x = layer.jax(w, x)
    return x


def write_onnx(layers: tuple[Layer, ...], weights: list[Weights], model: OnnxWriter, x: str) -> str:
    for layer, w in zip(layers, weights, strict=True):
        x = layer.onnx(model, w, x)
    return x


def arrays(weights: Any) -> list[np.ndarray]:
    """All arrays in (nested) weights."""
    if isinstance(weights, np.ndarray):
        return [weights]
    parts = weights.values() if isinstance(weights, dict) else weights
    return [a for part in parts for a in arrays(part)]
