"""A model for the command line: `nestegg optimize examples.model:make` (from the folder above).

A factory takes nothing and returns the function with example arguments; only their shapes and dtypes count.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A gated layer: softmax(x w) * sigmoid(x v), whose weights are arguments."""

    def gated(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.softmax(x @ w) * jax.nn.sigmoid(x @ v)

    x, w, v = np.zeros((16, 64)), np.zeros((64, 32)), np.zeros((64, 32))
    return gated, tuple(jnp.asarray(a, jnp.float32) for a in (x, w, v))
