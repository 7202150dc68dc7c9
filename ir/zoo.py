"""The model zoo: networks of the literature with deterministic random weights, as plain JAX and as ONNX.

A model is declared once, as its input shape and a tuple of layers (`zoo_layers.py`); both forms are made from
that.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UnknownNameError
from .types import TensorType
from .zoo_layers import (
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    MaxPool,
    OnnxWriter,
    Relu,
    Residual,
    Shape,
    Weights,
    arrays,
    init,
    run_jax,
    total_macs,
    write_onnx,
)

OPSET, IR_VERSION, SEED = 17, 8, 2020


@dataclass(frozen=True)
class Model:
    """A network: its name, one line about it, the shape of its float32 input and its layers."""

    name: str
    doc: str
    shape: Shape
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A line of the zoo's listing; `macs` are the multiply-adds of one inference."""

    name: str
    inputs: tuple[TensorType, ...]
    parameters: int
    macs: int
    doc: str


def _basic_block(inputs: int, channels: int, stride: int) -> tuple[Layer, ...]:
    body = (
        Conv(channels, 3, stride, 1, bias=False),
        BatchNorm(),
        Relu(),
        Conv(channels, 3, 1, 1, bias=False),
        BatchNorm(gain=0.5),
    )
    plain = stride == 1 and inputs == channels
    shortcut = () if plain else (Conv(channels, 1, stride, bias=False), BatchNorm(gain=0.7))
    return Residual(body, shortcut), Relu()


def _resnet18() -> tuple[Layer, ...]:
    layers: tuple[Layer, ...] = (Conv(64, 7, 2, 3, bias=False), BatchNorm(), Relu(), MaxPool(3, 2, 1))
    inputs = 64
    for channels in (64, 128, 256, 512):
        layers += _basic_block(inputs, channels, 1 if channels == 64 else 2) + _basic_block(
            channels, channels, 1
        )
        inputs = channels
    return (*layers, GlobalAvgPool(), Flatten(), Dense(1000))


_MODELS = (
    Model(
        "mlp",
        "perceptron 784-512-512-10",
        (1, 784),
        (Dense(512), Relu(), Dense(512), Relu(), Dense(10)),
    ),
    Model(
        "lenet",
        "LeNet-5 (LeCun 1998) with ReLU and average pools",
        (1, 1, 28, 28),
        (
            *(Conv(6, 5, 1, 2), Relu(), AvgPool(2, 2)),
            *(Conv(16, 5), Relu(), AvgPool(2, 2)),
            *(Flatten(), Dense(120), Relu(), Dense(84), Relu(), Dense(10)),
        ),
    ),
    Model(
        "dqn",
        "deep Q-network of Mnih et al. 2015 (Atari)",
        (1, 4, 84, 84),
        (
            *(Conv(32, 8, 4), Relu(), Conv(64, 4, 2), Relu(), Conv(64, 3), Relu()),
            *(Flatten(), Dense(512), Relu(), Dense(6)),
        ),
    ),
    Model("resnet18", "ResNet-18 (He 2015), inference batch norm", (1, 3, 224, 224), _resnet18()),
)
ZOO: dict[str, Model] = {m.name: m for m in _MODELS}


def find(name: str) -> Model:
    """The declaration of a model. Raises `UnknownNameError` listing what there is."""
    if name not in ZOO:
        close = difflib.get_close_matches(name, ZOO, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownNameError(f"zoo model {name!r} does not exist; {hint}there are {', '.join(ZOO)}")
    return ZOO[name]


@cache
def _weights(name: str) -> list[Weights]:
    model = find(name)
    return init(model.layers, np.random.default_rng(SEED), model.shape)


def example_input(name: str) -> np.ndarray:
    """A deterministic float32 input of the model."""
    return np.random.default_rng(SEED + 1).standard_normal(find(name).shape).astype(np.float32)


def jax_model(name: str) -> tuple[Callable[[Any], Any], tuple[np.ndarray, ...]]:
    """`(fn, example_args)`: a plain JAX function that closes over its weights. Raises `UnknownNameError`."""
    model, weights = find(name), _weights(name)

    def fn(x: Any) -> Any:
        return run_jax(model.layers, weights, x)

    fn.__name__ = name
    return fn, (example_input(name),)


def onnx_model(name: str) -> Any:
    """The same model, with the same weights, as an `onnx.ModelProto`. Raises `UnknownNameError`."""
    from onnx import TensorProto, helper

    model, writer = find(name), OnnxWriter()
    out = write_onnx(model.layers, _weights(name), writer, "x")
    shape = model.shape
    for layer in model.layers:
        shape = layer.out(shape)
    graph = helper.make_graph(
        writer.nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, model.shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)],
        writer.initializers,
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="nestegg")


def write(name: str, path: str | Path) -> None:
    """Write the model as an ONNX file. Raises `UnknownNameError`."""
    Path(path).write_bytes(onnx_model(name).SerializeToString(deterministic=True))


def models() -> list[ModelInfo]:
    """One line a model, in the order of the table."""
    return [
        ModelInfo(
            m.name,
            (TensorType(m.shape),),
            sum(a.size for a in arrays(_weights(m.name))),
            total_macs(m.layers, m.shape),
            m.doc,
        )
        for m in ZOO.values()
    ]
