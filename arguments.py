"""Arguments of a call as the arrays machine code reads: taken as they are if they can be, else converted or refused."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .ir.errors import CallError
from .ir.types import DTYPES, TensorType

_DLPACK_CPU = 1  # kDLCPU of dlpack.h

#: Which kinds of dtype a Python number may stand for.
_KINDS_FOR: dict[type, tuple[str, ...]] = {bool: ("bool",), int: ("int", "uint", "float"), float: ("float",)}


def as_array(value: Any, want: TensorType, what: str) -> np.ndarray:
    """The argument as an aligned C-contiguous `ndarray` of the wanted type; `what` names it in messages.

    Nothing is copied if it is laid out so already: NumPy arrays, JAX arrays on CPU, and whatever exports DLPack or the
    buffer protocol. A Python number may stand for a rank-0 tensor if its kind fits, as in JAX. Raises `CallError` for
    another shape or dtype, and for what is no array.
    """
    array = _number(value, want) if type(value) in _KINDS_FOR else _viewed(value, want, what)
    dtype = DTYPES[want.dtype].numpy
    if array.shape != want.shape or array.dtype != dtype:
        doubled = array.dtype.itemsize == 8 and array.dtype.kind in "fiu" and array.dtype.itemsize == 2 * dtype.itemsize
        hint = " (without jax_enable_x64, JAX takes 64 bits for 32)" if doubled else ""
        raise CallError(
            f"{what} is {array.dtype}{list(array.shape)}; this program was optimized for {want}{hint}: "
            "convert it, or optimize again for the new type"
        )
    return np.require(array, requirements=["C", "A"]).view(dtype)  # equal dtypes may still be two (long and long long)


def _viewed(value: Any, want: TensorType, what: str) -> np.ndarray:
    """A NumPy view of an array of any library, or a new array of nested lists."""
    if isinstance(value, np.ma.MaskedArray):
        raise CallError(f"{what} is a masked array, whose mask the program would not see: give x.filled(value)")
    try:
        if isinstance(value, np.ndarray) or is_jax(value) or not hasattr(value, "__dlpack__"):
            return np.asarray(value)
        if value.__dlpack_device__()[0] == _DLPACK_CPU:
            return np.from_dlpack(value)
    except Exception as e:
        first = str(e).strip().split("\n")[0]
        raise CallError(f"{what} ({type(value).__name__}) cannot be read as {want}: {first}") from e
    raise CallError(f"{what} ({type(value).__name__}) does not lie in the CPU's memory: move it there")


def _number(value: bool | int | float, want: TensorType) -> np.ndarray:
    """A Python number as a tensor: in the wanted dtype if that is of rank 0, of such a kind, and holds it."""
    if want.rank == 0 and DTYPES[want.dtype].kind in _KINDS_FOR[type(value)]:
        try:
            return np.asarray(value, DTYPES[want.dtype].numpy)
        except OverflowError:
            pass  # refused, then, by its own dtype
    return np.asarray(value)


def is_jax(value: Any) -> bool:
    """Whether it is an array (or a tracer) of JAX, which is not imported for the question."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)
