"""Element types in LLVM, in registers and in memory, and small helpers on typed builders.

Booleans are `i1` in registers and one byte in memory. Values are scalars, or vectors of a whole register tile row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir

from ..ir.scalars import neutral
from ..ir.types import DTYPES

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
#: Sizes of vectors that can be stored past the caches, at multiples of their size.
STREAMED_BYTES = (16, 32, 64)
_REGISTER = {
    "f64": ir.DoubleType(),
    "f32": ir.FloatType(),
    "f16": ir.HalfType(),
    "bf16": ir.IntType(16),  # its bits: llvmlite has no bfloat, and arithmetic is float32's
    "i64": I64,
    "i32": I32,
    "i16": ir.IntType(16),
    "i8": I8,
    "u64": I64,
    "u32": I32,
    "u16": ir.IntType(16),
    "u8": I8,
    "bool": I1,
}


class TargetModule(ir.Module):
    """A module for a target: it knows `features`, as LLVM writes them (`+avx2,-sse4a`), for code that asks."""

    def __init__(self, name: str, triple: str, features: str) -> None:
        super().__init__(name)
        self.triple, self.features = triple, frozenset(features.split(","))


def has_feature(module: ir.Module, feature: str) -> bool:
    """The module is for a target with this feature of LLVM's (of a module for no target nothing is known)."""
    return isinstance(module, TargetModule) and f"+{feature}" in module.features


def register_type(dtype: str, lanes: int = 1) -> ir.Type:
    """The type of a value of `dtype` in a register."""
    element = _REGISTER[dtype]
    return ir.VectorType(element, lanes) if lanes > 1 else element


def memory_type(dtype: str, lanes: int = 1) -> ir.Type:
    """The type of `dtype` in memory."""
    element = I8 if dtype == "bool" else _REGISTER[dtype]
    return ir.VectorType(element, lanes) if lanes > 1 else element


def lanes_of(value: ir.Value) -> int:
    return value.type.count if isinstance(value.type, ir.VectorType) else 1


def constant(value: float | int | bool, dtype: str, lanes: int = 1) -> ir.Constant:
    element = _REGISTER[dtype]
    if dtype == "bf16":
        converted = int(np.asarray(value, DTYPES[dtype].numpy).view(np.int16))
    else:
        converted = float(value) if DTYPES[dtype].kind == "float" else int(value)
    scalar = ir.Constant(element, converted)
    return ir.Constant(ir.VectorType(element, lanes), [scalar] * lanes) if lanes > 1 else scalar


def neutral_element(kind: str, dtype: str, lanes: int) -> ir.Constant:
    """The neutral element of a reduction, in every lane."""
    return constant(neutral(kind, dtype), dtype, lanes)


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """A scalar repeated in every lane (vectors and single lanes pass through)."""
    if lanes == 1 or isinstance(value.type, ir.VectorType):
        return value
    if isinstance(value, ir.Constant):
        return ir.Constant(ir.VectorType(value.type, lanes), [value] * lanes)
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [ir.Constant(I32, 0)] * lanes)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def widened(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """A vector (or a single element) as the first lanes of a longer one; the others hold anything."""
    if lanes_of(value) == lanes:
        return value
    if lanes_of(value) == 1:
        vector = ir.VectorType(value.type, lanes)
        return builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    return picked(builder, value, [min(k, lanes_of(value)) for k in range(lanes)])


def first_lanes(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """The first lanes of a vector; a single one is a scalar."""
    if lanes_of(value) == lanes:
        return value
    if lanes == 1:
        return builder.extract_element(value, ir.Constant(I32, 0))
    return picked(builder, value, range(lanes))


def picked(builder: ir.IRBuilder, value: ir.Value, lanes: Sequence[int], second: ir.Value | None = None) -> ir.Value:
    """The named lanes of a vector; those of a second one of its length count on."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), [ir.Constant(I32, k) for k in lanes])
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined) if second is None else second, mask)


def joined(builder: ir.IRBuilder, first: ir.Value, second: ir.Value) -> ir.Value:
    """The lanes of a vector, then those of one that is not longer."""
    lanes = lanes_of(first)
    return picked(builder, first, range(lanes + lanes_of(second)), widened(builder, second, lanes))


def load_repeated(builder: ir.IRBuilder, pointer: ir.Value, dtype: str, unit: int, times: int) -> ir.Value:
    """`unit` neighbouring elements, `times` in a row: one broadcast of their bits."""
    word = builder.load(pointer, typ=ir.IntType(8 * DTYPES[dtype].size * unit), align=DTYPES[dtype].size)
    return builder.bitcast(splat(builder, word, times), register_type(dtype, unit * times))


def offset(builder: ir.IRBuilder, pointer: ir.Value, elements: ir.Value | int, dtype: str) -> ir.Value:
    """Pointer advanced by a number of elements."""
    if isinstance(elements, int):
        if elements == 0:
            return pointer
        elements = ir.Constant(I64, elements)
    return builder.gep(pointer, [elements], inbounds=True, source_etype=memory_type(dtype))


def fetch(builder: ir.IRBuilder, pointer: ir.Value, distance: int) -> None:
    """Ask for the cache line `distance` bytes beyond a pointer, wherever that is, to come into the second cache."""
    module, name = builder.module, "llvm.prefetch.p0"
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32]), name)
    there = builder.gep(pointer, [ir.Constant(I64, distance)], source_etype=I8)
    read, second_cache, data = (ir.Constant(I32, v) for v in (0, 2, 1))
    builder.call(module.globals[name], [there, read, second_cache, data])


def load(builder: ir.IRBuilder, pointer: ir.Value, dtype: str, lanes: int = 1) -> ir.Value:
    value = builder.load(pointer, typ=memory_type(dtype, lanes), align=DTYPES[dtype].size)
    if dtype == "bool":
        zero = ir.Constant(memory_type("bool", lanes), None if lanes > 1 else 0)
        return builder.icmp_unsigned("!=", value, zero)
    return value


def store(
    builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, dtype: str, streamed_to: int | None = None
) -> None:
    """Store a value; `streamed_to`: past the caches, to a multiple of so many bytes, if that is a vector's own size."""
    if dtype == "bool":
        value = builder.zext(value, memory_type("bool", lanes_of(value)))
    stored = builder.store(value, pointer, align=DTYPES[dtype].size)
    size = lanes_of(value) * DTYPES[dtype].size
    if streamed_to is not None and size in STREAMED_BYTES and streamed_to % size == 0:
        stored.align = size
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
