"""Operands for the tests of operators; instances are drawn by `nestegg.testing`'s chooser."""

from collections.abc import Sequence

import numpy as np

from nestegg.ir.types import DTYPES, TensorType
from nestegg.testing.choosing import HypothesisChooser

__all__ = ["HypothesisChooser", "tensors"]


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
