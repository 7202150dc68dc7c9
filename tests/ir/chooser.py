"""Hypothesis behind the `Chooser` that samplers draw from."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from nestegg.ir.types import DTYPES, TensorType

T = TypeVar("T")


class HypothesisChooser:
    """Draws integers and picks by Hypothesis, so that failing instances shrink."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw

    def integer(self, lo: int, hi: int) -> int:
        return self.draw(st.integers(lo, hi))

    def pick(self, options: Sequence[T]) -> T:
        return self.draw(st.sampled_from(list(options)))


def tensors(types: Sequence[TensorType], lo: float = -2.0, hi: float = 2.0) -> list[np.ndarray]:
    """Random values of the given types; floats in lo..hi, in double precision."""
    rng = np.random.default_rng(0)
    out = []
    for t in types:
        if DTYPES[t.dtype].kind == "float":
            out.append(rng.uniform(lo, hi, t.shape))
        else:
            out.append(rng.integers(0, 2, t.shape).astype(DTYPES[t.dtype].numpy))
    return out
