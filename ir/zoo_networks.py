"""The networks of the model zoo as tuples of layers, each after the paper that its line in `zoo.py` names."""

from __future__ import annotations

from .zoo_layers import (
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Deconv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    Lrn,
    MaxPool,
    Relu,
    Relu6,
    Residual,
    Shuffle,
    Tanh,
    Unflatten,
)
from .zoo_sequences import Attention, Gelu, LastStep, LayerNorm, Linear, Lstm

Layers = tuple[Layer, ...]


def _conv_relu(channels: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1) -> Layers:
    return Conv(channels, kernel, stride, pad, groups=groups), Relu()


def _conv_bn(channels: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1, gain: float = 1.0) -> Layers:
    return Conv(channels, kernel, stride, pad, bias=False, groups=groups), BatchNorm(gain=gain)


def _conv_bn_relu(channels: int, kernel: int, stride: int = 1, pad: int = 0, groups: int = 1) -> Layers:
    return *_conv_bn(channels, kernel, stride, pad, groups), Relu()


def _repeated(*counted: tuple[int, Layers]) -> Layers:
    return tuple(layer for count, layers in counted for _ in range(count) for layer in layers)


# --- residual networks -------------------------------------------------------------------------------


def _basic_block(inputs: int, channels: int, stride: int) -> Layers:
    body = (*_conv_bn_relu(channels, 3, stride, 1), *_conv_bn(channels, 3, 1, 1, gain=0.5))
    plain = stride == 1 and inputs == channels
    return Residual(body, () if plain else _conv_bn(channels, 1, stride, gain=0.7)), Relu()


def _bottleneck(inputs: int, channels: int, stride: int) -> Layers:
    body = (
        *_conv_bn_relu(channels, 1),
        *_conv_bn_relu(channels, 3, stride, 1),
        *_conv_bn(4 * channels, 1, gain=0.5),
    )
    plain = stride == 1 and inputs == 4 * channels
    return Residual(body, () if plain else _conv_bn(4 * channels, 1, stride, gain=0.7)), Relu()


def resnet(depths: tuple[int, ...], bottleneck: bool) -> Layers:
    block, grown = (_bottleneck, 4) if bottleneck else (_basic_block, 1)
    layers: Layers = (*_conv_bn_relu(64, 7, 2, 3), MaxPool(3, 2, 1))
    inputs = 64
    for stage, depth in enumerate(depths):
        channels = 64 << stage
        for k in range(depth):
            layers += block(inputs, channels, 2 if stage and not k else 1)
            inputs = grown * channels
    return (*layers, GlobalAvgPool(), Flatten(), Dense(1000))


# --- small networks for phones -----------------------------------------------------------------------


def mobilenet_v1() -> Layers:
    layers: Layers = _conv_bn_relu(32, 3, 2, 1)
    inputs = 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for channels, stride in plan:
        layers += (*_conv_bn_relu(inputs, 3, stride, 1, groups=inputs), *_conv_bn_relu(channels, 1))
        inputs = channels
    return (*layers, GlobalAvgPool(), Flatten(), Dense(1000))


def mobilenet_v2() -> Layers:
    def block(inputs: int, channels: int, stride: int, expand: int) -> Layers:
        wide = inputs * expand
        grown = (*_conv_bn(wide, 1), Relu6()) if expand != 1 else ()
        body = (*grown, *_conv_bn(wide, 3, stride, 1, groups=wide), Relu6(), *_conv_bn(channels, 1, gain=0.7))
        return (Residual(body),) if stride == 1 and inputs == channels else body

    layers: Layers = (*_conv_bn(32, 3, 2, 1), Relu6())
    inputs = 32
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, channels, count, stride in plan:
        for k in range(count):
            layers += block(inputs, channels, 1 if k else stride, expand)
            inputs = channels
    return (*layers, *_conv_bn(1280, 1), Relu6(), GlobalAvgPool(), Flatten(), Dense(1000))


def squeezenet() -> Layers:
    def fire(squeezed: int, expanded: int) -> Layers:
        return *_conv_relu(squeezed, 1), Concat((_conv_relu(expanded, 1), _conv_relu(expanded, 3, 1, 1)))

    return (
        *(*_conv_relu(64, 3, 2), MaxPool(3, 2)),
        *(*fire(16, 64), *fire(16, 64), MaxPool(3, 2, 1)),
        *(*fire(32, 128), *fire(32, 128), MaxPool(3, 2, 1)),
        *(*fire(48, 192), *fire(48, 192), *fire(64, 256), *fire(64, 256)),
        *(*_conv_relu(1000, 1), GlobalAvgPool(), Flatten()),
    )


def shufflenet() -> Layers:
    groups = 3

    def unit(inputs: int, outputs: int, size: int, stride: int) -> Layers:
        narrow = outputs // 4
        first = 1 if inputs == 24 else groups
        last = outputs - inputs if stride == 2 else outputs
        body = (
            *_conv_bn_relu(narrow, 1, groups=first),
            Shuffle(groups, narrow, size),
            *_conv_bn(narrow, 3, stride, 1, groups=narrow),
            *_conv_bn(last, 1, groups=groups, gain=0.5),
        )
        return (Concat(((AvgPool(3, 2, 1),), body)) if stride == 2 else Residual(body)), Relu()

    layers: Layers = (*_conv_bn_relu(24, 3, 2, 1), MaxPool(3, 2, 1))
    inputs, size = 24, 56
    for channels, count in ((240, 4), (480, 8), (960, 4)):
        for k in range(count):
            layers += unit(inputs, channels, size, 1 if k else 2)
            size = size if k else size // 2
            inputs = channels
    return (*layers, GlobalAvgPool(), Flatten(), Dense(1000))


# --- large convolutional networks --------------------------------------------------------------------


def alexnet() -> Layers:
    return (
        *(*_conv_relu(96, 11, 4, 2), Lrn(), MaxPool(3, 2)),
        *(*_conv_relu(256, 5, 1, 2, groups=2), Lrn(), MaxPool(3, 2)),
        *(*_conv_relu(384, 3, 1, 1), *_conv_relu(384, 3, 1, 1, groups=2), *_conv_relu(256, 3, 1, 1, groups=2)),
        *(MaxPool(3, 2), Flatten(), Dense(4096), Relu(), Dense(4096), Relu(), Dense(1000)),
    )


def vgg19() -> Layers:
    layers: Layers = ()
    for channels, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        layers += (*_repeated((count, _conv_relu(channels, 3, 1, 1))), MaxPool(2, 2))
    return (*layers, Flatten(), Dense(4096), Relu(), Dense(4096), Relu(), Dense(1000))


def densenet121() -> Layers:
    growth, channels = 32, 64
    grow = (BatchNorm(), Relu(), *_conv_bn_relu(4 * growth, 1), Conv(growth, 3, 1, 1, bias=False))
    layers: Layers = (*_conv_bn_relu(64, 7, 2, 3), MaxPool(3, 2, 1))
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            channels //= 2
            layers += (BatchNorm(), Relu(), Conv(channels, 1, bias=False), AvgPool(2, 2))
        layers += (Concat(((), grow)),) * count
        channels += count * growth
    return (*layers, BatchNorm(), Relu(), GlobalAvgPool(), Flatten(), Dense(1000))


def inception_v1() -> Layers:
    def module(one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> Layers:
        return (
            Concat(
                (
                    _conv_relu(one, 1),
                    (*_conv_relu(three[0], 1), *_conv_relu(three[1], 3, 1, 1)),
                    (*_conv_relu(five[0], 1), *_conv_relu(five[1], 5, 1, 2)),
                    (MaxPool(3, 1, 1), *_conv_relu(pooled, 1)),
                )
            ),
        )

    return (
        *(*_conv_relu(64, 7, 2, 3), MaxPool(3, 2, 1), Lrn()),
        *(*_conv_relu(64, 1), *_conv_relu(192, 3, 1, 1), Lrn(), MaxPool(3, 2, 1)),
        *(*module(64, (96, 128), (16, 32), 32), *module(128, (128, 192), (32, 96), 64), MaxPool(3, 2, 1)),
        *(*module(192, (96, 208), (16, 48), 64), *module(160, (112, 224), (24, 64), 64)),
        *(*module(128, (128, 256), (24, 64), 64), *module(112, (144, 288), (32, 64), 64)),
        *(*module(256, (160, 320), (32, 128), 128), MaxPool(3, 2, 1)),
        *(*module(256, (160, 320), (32, 128), 128), *module(384, (192, 384), (48, 128), 128)),
        *(GlobalAvgPool(), Flatten(), Dense(1000)),
    )


def inception_v2() -> Layers:
    def module(one: int, three: tuple[int, int], double: tuple[int, int], pool: Layers) -> Layers:
        """`one` = 0: every branch halves the image, and the pool passes its channels through."""
        stride = 1 if one else 2
        return (
            Concat(
                (
                    *((_conv_bn_relu(one, 1),) if one else ()),
                    (*_conv_bn_relu(three[0], 1), *_conv_bn_relu(three[1], 3, stride, 1)),
                    (
                        *_conv_bn_relu(double[0], 1),
                        *_conv_bn_relu(double[1], 3, 1, 1),
                        *_conv_bn_relu(double[1], 3, stride, 1),
                    ),
                    pool,
                )
            ),
        )

    def averaged(channels: int) -> Layers:
        return AvgPool(3, 1, 1), *_conv_bn_relu(channels, 1)

    halved: Layers = (MaxPool(3, 2, 1),)
    return (
        *(*_conv_bn_relu(64, 7, 2, 3), MaxPool(3, 2, 1)),
        *(*_conv_bn_relu(64, 1), *_conv_bn_relu(192, 3, 1, 1), MaxPool(3, 2, 1)),
        *(*module(64, (64, 64), (64, 96), averaged(32)), *module(64, (64, 96), (64, 96), averaged(64))),
        *module(0, (128, 160), (64, 96), halved),
        *(*module(224, (64, 96), (96, 128), averaged(128)), *module(192, (96, 128), (96, 128), averaged(128))),
        *(*module(160, (128, 160), (128, 160), averaged(128)), *module(96, (128, 192), (160, 192), averaged(128))),
        *module(0, (128, 192), (192, 256), halved),
        *module(352, (192, 320), (160, 224), averaged(128)),
        *module(352, (192, 320), (192, 224), (MaxPool(3, 1, 1), *_conv_bn_relu(128, 1))),
        *(GlobalAvgPool(), Flatten(), Dense(1000)),
    )


def dcgan() -> Layers:
    layers: Layers = (Dense(1024 * 16), Unflatten((1024, 4, 4)), BatchNorm(), Relu())
    for channels in (512, 256, 128):
        layers += (Deconv(channels, 4, 2, 1), BatchNorm(), Relu())
    return (*layers, Deconv(3, 4, 2, 1, gain=0.3), Tanh())


# --- sequences ---------------------------------------------------------------------------------------


def lstm(hidden: int, count: int) -> Layers:
    return (*(Lstm(hidden) for _ in range(count)), LastStep())


def encoder(depth: int, width: int, heads: int) -> Layers:
    block: Layers = (
        *(Residual((Attention(heads),)), LayerNorm()),
        *(Residual((Linear(4 * width), Gelu(), Linear(width))), LayerNorm()),
    )
    return block * depth
