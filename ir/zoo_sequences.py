"""Layers over sequences for the model zoo: LSTMs and transformer encoders. Batches are of one sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .zoo_layers import Dense, NoWeights, OnnxWriter, Random, Shape, Weights, normal


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _lstm_weights(rng: Random, inputs: int, hidden: int) -> Weights:
    """In ONNX' layout: gates input, output, forget, cell."""
    return {
        "w": normal(rng, (4 * hidden, inputs), math.sqrt(1 / inputs)),
        "r": normal(rng, (4 * hidden, hidden), math.sqrt(1 / hidden)),
        "b": normal(rng, (4 * hidden,), 0.1),
    }


def _cell(gates: Any, c: Any) -> tuple[Any, Any]:
    """(h, c) of the next step from the sum of the gates' parts."""
    import jax
    import jax.numpy as jnp

    i, o, f, g = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _lstm_node(model: OnnxWriter, weights: Weights, x: str, h: str, c: str, hidden: int) -> tuple[str, str, str]:
    """(Y, Y_h, Y_c) of an LSTM node over (steps, 1, features)."""
    from onnx import helper

    bias = np.concatenate([weights["b"], np.zeros_like(weights["b"])])
    parts = [model.tensor(a[None], f"lstm_{k}") for k, a in (("w", weights["w"]), ("r", weights["r"]), ("b", bias))]
    outs = [f"lstm_{len(model.nodes)}_{k}" for k in ("y", "h", "c")]
    node = helper.make_node("LSTM", [x, *parts, "", h, c], outs, name=outs[0], hidden_size=hidden)
    model.nodes.append(node)
    return outs[0], outs[1], outs[2]


@dataclass(frozen=True)
class Lstm:
    """(steps, 1, features) to (steps, 1, hidden), from a zero state."""

    hidden: int

    def weights(self, rng: Random, shape: Shape) -> Weights:
        return _lstm_weights(rng, shape[2], self.hidden)

    def out(self, shape: Shape) -> Shape:
        return (*shape[:2], self.hidden)

    def macs(self, shape: Shape) -> int:
        return shape[0] * shape[1] * 4 * self.hidden * (shape[2] + self.hidden)

    def jax(self, weights: Weights, x: Any) -> Any:
        import jax
        import jax.numpy as jnp

        gates = x @ weights["w"].T + weights["b"]
        zero = jnp.zeros((x.shape[1], self.hidden), x.dtype)

        def step(state: Any, now: Any) -> Any:
            h, c = state
            state = _cell(now + h @ weights["r"].T, c)
            return state, state[0]

        return jax.lax.scan(step, (zero, zero), gates)[1]

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        zero = model.tensor(np.zeros((1, 1, self.hidden), np.float32), "state")
        y, _, _ = _lstm_node(model, weights, x, zero, zero, self.hidden)
        return model.node("Squeeze", y, model.tensor(_ints(1), "direction"))


@dataclass(frozen=True)
class LstmStep:
    """One step of stacked LSTMs. Rows of (1 + 2 layers, hidden) are the input and h, c of each layer; so are the
    result's, whose first row is the output."""

    hidden: int
    layers: int

    def weights(self, rng: Random, shape: Shape) -> Weights:
        return {str(k): _lstm_weights(rng, self.hidden, self.hidden) for k in range(self.layers)}

    def out(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return self.layers * 8 * self.hidden**2

    def jax(self, weights: Weights, x: Any) -> Any:
        import jax.numpy as jnp

        out, states = x[:1], []
        for k in range(self.layers):
            w = weights[str(k)]
            h, c = x[1 + 2 * k : 2 + 2 * k], x[2 + 2 * k : 3 + 2 * k]
            out, c = _cell(out @ w["w"].T + w["b"] + h @ w["r"].T, c)
            states += [out, c]
        return jnp.concatenate([out, *states])

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        axis = model.tensor(_ints(0), "axis")
        shape = model.tensor(_ints(1, self.hidden), "row")
        rows = []
        for k in range(1 + 2 * self.layers):
            bounds = [model.tensor(_ints(n), "bound") for n in (k, k + 1)]
            rows.append(model.node("Unsqueeze", model.node("Slice", x, *bounds, axis), axis))
        out, states = rows[0], []
        for k in range(self.layers):
            _, out, c = _lstm_node(model, weights[str(k)], out, rows[1 + 2 * k], rows[2 + 2 * k], self.hidden)
            states += [model.node("Reshape", v, shape) for v in (out, c)]
        return model.node("Concat", states[-2], *states, axis=0)


class LastStep(NoWeights):
    """The last step of (steps, 1, features), as (1, features)."""

    def out(self, shape: Shape) -> Shape:
        return shape[1:]

    def jax(self, weights: Weights, x: Any) -> Any:
        return x[-1]

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        return model.node("Gather", x, model.tensor(np.array(-1, np.int64), "last"), axis=0)


# --- transformers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerNorm:
    """Zero mean and unit variance over the features, then scale and shift."""

    epsilon: float = 1e-5

    def weights(self, rng: Random, shape: Shape) -> Weights:
        n = (shape[-1],)
        return {"scale": 1 + normal(rng, n, 0.1), "shift": normal(rng, n, 0.1)}

    def out(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return 4 * math.prod(shape)

    def jax(self, weights: Weights, x: Any) -> Any:
        from jax import lax

        centred = x - x.mean(-1, keepdims=True)
        spread = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + self.epsilon)
        return centred * spread * weights["scale"] + weights["shift"]

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        inputs = [model.tensor(weights[k], f"norm_{k}") for k in ("scale", "shift")]
        return model.node("LayerNormalization", x, *inputs, epsilon=self.epsilon)


class Gelu(NoWeights):
    """x * Phi(x), by erf."""

    def jax(self, weights: Weights, x: Any) -> Any:
        import jax

        return jax.nn.gelu(x, approximate=False)

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        half, one, root = (model.tensor(np.array(v, np.float32), "gelu") for v in (0.5, 1.0, math.sqrt(0.5)))
        twice = model.node("Add", model.node("Erf", model.node("Mul", x, root)), one)
        return model.node("Mul", model.node("Mul", x, twice), half)


class Linear(Dense):
    """x @ w + b over (batch, sequence, features)."""

    def weights(self, rng: Random, shape: Shape) -> Weights:
        w = normal(rng, (shape[-1], self.features), math.sqrt(1 / shape[-1]))
        return {"w": w, "b": normal(rng, (self.features,), 0.1)}

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        w, b = (model.tensor(weights[k], f"linear_{k}") for k in ("w", "b"))
        return model.node("Add", model.node("MatMul", x, w), b)


@dataclass(frozen=True)
class Attention:
    """Self-attention of `heads` heads (Vaswani 2017) over (batch, sequence, features)."""

    heads: int

    def _parts(self, features: int) -> dict[str, Linear]:
        return {k: Linear(features) for k in ("q", "k", "v", "o")}

    def weights(self, rng: Random, shape: Shape) -> Weights:
        return {k: part.weights(rng, shape) for k, part in self._parts(shape[-1]).items()}

    def out(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return math.prod(shape) * (4 * shape[-1] + 2 * shape[-2])

    def jax(self, weights: Weights, x: Any) -> Any:
        import jax

        features = x.shape[-1]
        parts, width = self._parts(features), features // self.heads

        def heads(k: str) -> Any:
            return parts[k].jax(weights[k], x).reshape((*x.shape[:2], self.heads, width)).transpose(0, 2, 1, 3)

        q, k, v = (heads(name) for name in ("q", "k", "v"))
        scores = jax.nn.softmax((q @ k.transpose(0, 1, 3, 2)) * (1 / math.sqrt(width)), -1)
        return parts["o"].jax(weights["o"], (scores @ v).transpose(0, 2, 1, 3).reshape(x.shape))

    def onnx(self, model: OnnxWriter, weights: Weights, x: str) -> str:
        features = weights["q"]["w"].shape[0]
        parts, width = self._parts(features), features // self.heads
        split = model.tensor(_ints(0, 0, self.heads, width), "heads")

        def heads(k: str, perm: list[int]) -> str:
            return model.node("Transpose", model.node("Reshape", parts[k].onnx(model, weights[k], x), split), perm=perm)

        q, k, v = heads("q", [0, 2, 1, 3]), heads("k", [0, 2, 3, 1]), heads("v", [0, 2, 1, 3])
        factor = model.tensor(np.array(1 / math.sqrt(width), np.float32), "factor")
        scores = model.node("Softmax", model.node("Mul", model.node("MatMul", q, k), factor), axis=-1)
        mixed = model.node("Transpose", model.node("MatMul", scores, v), perm=[0, 2, 1, 3])
        return parts["o"].onnx(
            model, weights["o"], model.node("Reshape", mixed, model.tensor(_ints(0, 0, -1), "joined"))
        )
