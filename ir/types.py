"""Element types and tensor types. Shapes are static: a new shape is a new specialisation, as in JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import TypeRuleError

Kind = Literal["float", "int", "uint", "bool"]


@dataclass(frozen=True)
class DType:
    """An element type: its short name (`f32`), NumPy name, size in bytes and kind."""

    name: str
    numpy_name: str
    size: int
    kind: Kind

    @property
    def numpy(self) -> np.dtype:
        if self.name == "bf16":
            from ml_dtypes import bfloat16  # which makes NumPy know the name

            return np.dtype(bfloat16)
        return np.dtype(self.numpy_name)


_TABLE = (
    DType("f64", "float64", 8, "float"),
    DType("f32", "float32", 4, "float"),
    DType("f16", "float16", 2, "float"),
    DType("bf16", "bfloat16", 2, "float"),
    DType("i64", "int64", 8, "int"),
    DType("i32", "int32", 4, "int"),
    DType("i16", "int16", 2, "int"),
    DType("i8", "int8", 1, "int"),
    DType("u64", "uint64", 8, "uint"),
    DType("u32", "uint32", 4, "uint"),
    DType("u16", "uint16", 2, "uint"),
    DType("u8", "uint8", 1, "uint"),
    DType("bool", "bool", 1, "bool"),
)
DTYPES: dict[str, DType] = {d.name: d for d in _TABLE}
_FROM_NUMPY: dict[str, str] = {d.numpy_name: d.name for d in _TABLE}


def dtype_of(value: object) -> str:
    """The short name of a NumPy/JAX dtype or array. Raises `TypeRuleError` for a dtype outside the table."""
    name = np.dtype(getattr(value, "dtype", value)).name  # type: ignore[arg-type]
    if name not in _FROM_NUMPY:
        raise TypeRuleError(f"dtype {name} is not supported; convert to one of {', '.join(_FROM_NUMPY)}")
    return _FROM_NUMPY[name]


def is_float(array: np.ndarray) -> bool:
    """Whether an array holds floats (NumPy's `dtype.kind` does not count bfloat16)."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def is_damaged(array: np.ndarray) -> bool:
    """Whether an array of floats holds what weights never do: NaN, or infinities among different numbers.

    A mask, which holds one number and infinities, is not damaged.
    """
    if not is_float(array) or (finite := np.isfinite(array)).all():
        return False
    numbers = array[finite]
    return bool(np.isnan(array).any()) or bool((numbers != numbers[:1]).any())


@dataclass(frozen=True)
class TensorType:
    """Shape (sizes of the axes, outermost first) and element type of a tensor; prints as `f32[2,3]`."""

    shape: tuple[int, ...]
    dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TypeRuleError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if any(n < 0 for n in self.shape):
            raise TypeRuleError(f"shape {self.shape} has a negative extent")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].size

    @property
    def strides(self) -> tuple[int, ...]:
        """Row-major strides in elements."""
        out: list[int] = []
        step = 1
        for extent in reversed(self.shape):
            out.append(step)
            step *= extent
        return tuple(reversed(out))

    def with_shape(self, shape: tuple[int, ...]) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"
