"""C structs of others (CPython, NumPy, XLA) in emitted code: declared once, as ctypes, and read by a field's name."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from .llvm_types import I8, I32, I64, POINTER

Struct = type[ctypes.Structure]

#: How a field of a ctypes structure is loaded.
_FIELD: dict[type, ir.Type] = {
    ctypes.c_void_p: POINTER,
    ctypes.c_char_p: POINTER,
    ctypes.c_int8: I8,
    ctypes.c_int32: I32,
    ctypes.c_int64: I64,
}


def _field(struct: Struct, name: str) -> tuple[int, ir.Type | None]:
    kind = {f[0]: f[1] for f in struct._fields_}[name]
    return getattr(struct, name).offset, _FIELD.get(kind)


def address(b: ir.IRBuilder, pointer: ir.Value, struct: Struct, name: str) -> ir.Value:
    """Pointer to a field (for one that is a struct itself)."""
    at, _ = _field(struct, name)
    return b.gep(pointer, [ir.Constant(I64, at)], inbounds=True, source_etype=I8)


def get(b: ir.IRBuilder, pointer: ir.Value, struct: Struct, name: str) -> ir.Value:
    """The value of a field."""
    _, kind = _field(struct, name)
    return b.load(address(b, pointer, struct, name), typ=kind)


def put(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, struct: Struct, name: str) -> None:
    """Set a field."""
    b.store(value, address(b, pointer, struct, name))


def on_stack(b: ir.IRBuilder, struct: Struct) -> ir.Value:
    """Memory for a struct, until the function returns."""
    with b.goto_entry_block():
        memory = b.alloca(ir.ArrayType(I64, -(-ctypes.sizeof(struct) // 8)))
    memory.type = POINTER  # llvmlite's allocas still have typed pointers
    return memory


def element(b: ir.IRBuilder, table: ir.Value, index: ir.Value | int) -> ir.Value:
    """Where entry `index` of a table of pointers lies."""
    at = ir.Constant(I64, index) if isinstance(index, int) else index
    return b.gep(table, [at], inbounds=True, source_etype=POINTER)


@contextmanager
def counting(b: ir.IRBuilder, count: ir.Value) -> Iterator[ir.Value]:
    """A loop over 0 … count - 1 (count may be 0); yields the index, and the builder stands in the body."""
    before = b.block
    head, body, done = (b.append_basic_block(name) for name in ("head", "body", "done"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(ir.Constant(I64, 0), before)
    b.cbranch(b.icmp_signed("<", index, count), body, done)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, ir.Constant(I64, 1)), b.block)
    b.branch(head)
    b.position_at_end(done)
