"""The way from Python into a program where the emitted entry cannot serve: the same checks in Python, a ctypes call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.types import DTYPES, TensorType
from .memory import aligned_bytes
from .native import Native


class CtypesEntry:
    """As `python_entry.PythonEntry`, a few microseconds slower. `why`: the reason it is used."""

    def __init__(
        self,
        native: Native,
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        bare: bool = False,
        why: str = "",
    ) -> None:
        self.kind = f"ctypes: {why}" if why else "ctypes"
        self._native, self._inputs, self._outputs, self._bare = native, tuple(inputs), tuple(outputs), bare
        self._run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(native.run)
        self._arenas: list[np.ndarray] = []

    def call(self, *inputs: Any) -> Any:
        """The results, or None if an argument does not match."""
        outputs = tuple(np.empty(t.shape, DTYPES[t.dtype].numpy) for t in self._outputs)
        return self.into(*inputs, *outputs)

    def into(self, *arrays: Any) -> Any:
        """Computes into the last of the arrays, and returns them; None if one does not match."""
        types = self._inputs + self._outputs
        split = len(self._inputs)
        if len(arrays) != len(types) or not all(map(_matches, arrays, types)):
            return None
        outputs = arrays[split:]
        if not all(o.flags.writeable for o in outputs):
            return None
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = aligned_bytes(max(self._native.arena, 1))
        try:
            self._run(_addresses(arrays[:split]), _addresses(outputs), self._native.constants, arena.ctypes.data)
        finally:
            self._arenas.append(arena)
        return outputs[0] if self._bare else outputs


def _matches(array: Any, want: TensorType) -> bool:
    return (
        type(array) is np.ndarray
        and array.dtype == DTYPES[want.dtype].numpy
        and array.shape == want.shape
        and array.flags.c_contiguous
        and array.flags.aligned
    )


def _addresses(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(len(arrays), 1))(*(a.ctypes.data for a in arrays))
