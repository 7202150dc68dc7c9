"""Networks of integers with random weights, to compile for the accelerator whole and to explore configurations with.

Factories as the command line takes them: `nestegg vta explore nestegg.testing.vta_networks:lenet`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

Factory = tuple[Callable[..., Any], tuple[np.ndarray, ...]]

#: Of ResNet-18's convolutions the distinct ones: inputs, outputs, height and width, window, stride.
RESNET18_LAYERS = (
    (64, 64, 56, 3, 1), (64, 128, 56, 3, 2), (64, 128, 56, 1, 2), (128, 128, 28, 3, 1), (128, 256, 28, 3, 2),
    (128, 256, 28, 1, 2), (256, 256, 14, 3, 1), (256, 512, 14, 3, 2), (256, 512, 14, 1, 2), (512, 512, 7, 3, 1),
)  # fmt: skip


def clipped(y: Any, shift: int, low: int, bits: int = 8) -> Any:
    """Sums to signed integers of so many bits."""
    top = (1 << (bits - 1)) - 1
    return jnp.clip(y >> shift, max(low, -top - 1), top).astype(jnp.int8)


def conv(x: Any, w: np.ndarray, pad: int = 0, stride: int = 1) -> Any:
    padding = [(pad, pad)] * 2
    return lax.conv_general_dilated(x, jnp.asarray(w), (stride, stride), padding, preferred_element_type=jnp.int32)


def pool(x: Any) -> Any:
    return lax.reduce_window(x, np.int8(-128), lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def lenet_of(bits: int, weight_bits: int) -> Callable[[Any], Any]:
    """LeNet-5 in integers of so many bits: five layers with weights, two of pooling."""
    rng, half = np.random.default_rng(3), 1 << (weight_bits - 1)

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-half, half, shape).astype(np.int8)

    w = [weights(6, 1, 5, 5), weights(16, 6, 5, 5), weights(120, 400), weights(84, 120), weights(10, 84)]
    b = [rng.integers(-500, 500, n).astype(np.int32) for n in (6, 16, 120, 84, 10)]
    down = [weight_bits + 1, weight_bits + 1, weight_bits + 2, weight_bits + 1, weight_bits]

    def network(x: Any) -> Any:
        h = pool(clipped(conv(x, w[0], 2) + b[0][None, :, None, None], down[0], 0, bits))
        h = pool(clipped(conv(h, w[1]) + b[1][None, :, None, None], down[1], 0, bits))
        h = h.reshape(len(x), 400)
        for k in (2, 3, 4):
            h = lax.dot_general(h, w[k], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
            h = clipped(h + b[k], down[k], 0 if k < 4 else -128, bits)
        return h

    return network


def lenet() -> Factory:
    """LeNet-5 of bytes, on one image."""
    return lenet_of(8, 8), (np.zeros((1, 1, 28, 28), np.int8),)


def resnet18_layers() -> Factory:
    """The ten convolutions of ResNet-18 that differ, side by side, each with shift and clip."""
    rng = np.random.default_rng(0)
    weights = [rng.integers(-127, 128, (o, i, k, k)).astype(np.int8) for i, o, _, k, _ in RESNET18_LAYERS]
    images = sorted({(i, n) for i, _, n, _, _ in RESNET18_LAYERS})

    def network(*x: Any) -> Any:
        given = dict(zip(images, x, strict=True))
        return [
            clipped(conv(given[i, n], w, k // 2, stride), 8, -127)
            for w, (i, _, n, k, stride) in zip(weights, RESNET18_LAYERS, strict=True)
        ]

    return network, tuple(np.zeros((1, channels, n, n), np.int8) for channels, n in images)
