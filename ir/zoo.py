"""The model zoo: networks of the literature with deterministic random weights, as plain JAX and as ONNX.

A model is declared once, as its input shape and a tuple of layers (`zoo_layers.py`); both forms are made from
that.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UnknownNameError
from .types import TensorType
from .zoo_layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    Layer,
    OnnxWriter,
    Relu,
    Shape,
    Weights,
    arrays,
    init,
    run_jax,
    total_macs,
    write_onnx,
)
from .zoo_networks import (
    alexnet,
    dcgan,
    densenet121,
    encoder,
    inception_v1,
    inception_v2,
    lstm,
    mobilenet_v1,
    mobilenet_v2,
    resnet,
    shufflenet,
    squeezenet,
    vgg19,
)
from .zoo_sequences import LstmStep

OPSET, IR_VERSION, SEED = 17, 8, 2020
IMAGE = (1, 3, 224, 224)


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
    Model("resnet18", "ResNet-18 (He 2015), inference batch norm", IMAGE, resnet((2, 2, 2, 2), False)),
    Model("resnet50", "ResNet-50 (He 2015), stride in the 3x3", IMAGE, resnet((3, 4, 6, 3), True)),
    Model("mobilenet_v1", "MobileNet (Howard 2017)", IMAGE, mobilenet_v1()),
    Model("mobilenet_v2", "MobileNetV2 (Sandler 2018)", IMAGE, mobilenet_v2()),
    Model("squeezenet", "SqueezeNet 1.1 (Iandola 2016)", IMAGE, squeezenet()),
    Model("shufflenet", "ShuffleNet 1x, 3 groups (Zhang 2017)", IMAGE, shufflenet()),
    Model("alexnet", "AlexNet with two groups (Krizhevsky 2012)", IMAGE, alexnet()),
    Model("vgg19", "VGG-19 (Simonyan 2014)", IMAGE, vgg19()),
    Model("densenet121", "DenseNet-121 (Huang 2016)", IMAGE, densenet121()),
    Model("inception_v1", "GoogLeNet (Szegedy 2014), without auxiliary heads", IMAGE, inception_v1()),
    Model("inception_v2", "Inception with batch norm (Ioffe 2015)", IMAGE, inception_v2()),
    Model("dcgan", "generator of DCGAN (Radford 2015), 64x64", (1, 100), dcgan()),
    Model("lstm_step", "one step of 2 LSTM layers of 512; rows: x, h1, c1, h2, c2", (5, 512), (LstmStep(512, 2),)),
    Model("lstm_seq", "2 LSTM layers of 512 over 16 steps, last output", (16, 1, 512), lstm(512, 2)),
    Model("bert_small", "encoder of 4 layers of 256, sequence 128 (Devlin 2018)", (1, 128, 256), encoder(4, 256, 4)),
    Model("bert_base", "encoder of 12 layers of 768, sequence 128 (Devlin 2018)", (1, 128, 768), encoder(12, 768, 12)),
)
ZOO: dict[str, Model] = {m.name: m for m in _MODELS}


def find(name: str) -> Model:
    """The declaration of a model. Raises `UnknownNameError` listing what there is."""
    if name not in ZOO:
        close = difflib.get_close_matches(name, ZOO, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownNameError(f"zoo model {name!r} does not exist; {hint}there are {', '.join(ZOO)}")
    return ZOO[name]


@lru_cache(maxsize=2)  # the large networks are of half a gigabyte
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
            sum(a.size for a in arrays(init(m.layers, None, m.shape))),
            total_macs(m.layers, m.shape),
            m.doc,
        )
        for m in ZOO.values()
    ]
