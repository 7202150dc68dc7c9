"""Small helpers to build the simulator's machine code: counted loops, conditions, addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from ..codegen.llvm_types import I8, I64, POINTER


def function(module: ir.Module, name: str, pointers: int, numbers: int) -> tuple[ir.IRBuilder, list, list]:
    """A function without a result; the builder at its start, its pointers and its numbers (int64)."""
    kind = ir.FunctionType(ir.VoidType(), [POINTER] * pointers + [I64] * numbers)
    made = ir.Function(module, kind, name)
    arguments = list(made.args)
    return ir.IRBuilder(made.append_basic_block("entry")), arguments[:pointers], arguments[pointers:]


def number(n: int) -> ir.Constant:
    return ir.Constant(I64, int(n))


@contextmanager
def loop(b: ir.IRBuilder, trips: ir.Value | int) -> Iterator[ir.Value]:
    """A counted loop around what is built inside, run at least once; yields the counter. One trip needs no loop."""
    if trips == 1:
        yield number(0)
        return
    before, body, end = b.block, b.append_basic_block("body"), b.append_basic_block("end")
    b.branch(body)
    b.position_at_end(body)
    counter = b.phi(I64)
    counter.add_incoming(number(0), before)
    yield counter
    following = b.add(counter, number(1))
    counter.add_incoming(following, b.block)
    b.cbranch(b.icmp_signed("<", following, number(trips) if isinstance(trips, int) else trips), body, end)
    b.position_at_end(end)


def address(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value | int, size: int) -> ir.Value:
    """The address of an element of `size` bytes."""
    index = number(index) if isinstance(index, int) else index
    return b.gep(pointer, [b.mul(index, number(size))], source_etype=I8)


def word(b: ir.IRBuilder, array: ir.Value, index: ir.Value | int) -> ir.Value:
    """An element of an array of int64."""
    return b.load(address(b, array, index, 8), typ=I64, align=8)


def put(b: ir.IRBuilder, value: ir.Value | int, array: ir.Value, index: ir.Value | int) -> None:
    """Set an element of an array of int64."""
    b.store(number(value) if isinstance(value, int) else value, address(b, array, index, 8), align=8)


def summed(b: ir.IRBuilder, first: ir.Value, *pairs: tuple[ir.Value, ir.Value]) -> ir.Value:
    """first + Σ counter · factor"""
    for counter, factor in pairs:
        first = b.add(first, b.mul(counter, factor))
    return first
