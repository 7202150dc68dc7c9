"""Composition of tensor expressions: a producer inlined where a consumer reads it. This is what fusion means.

    relu[i] = max(x0[i], 0)   after   matmul[i, j] = sum(k) x0[i, k] * x1[k, j]
      =>  [i, j] = max(sum(k) x0[i, k] * x1[k, j], 0)

Layout operators are index maps, so composing with them renumbers indices and leaves no trace in the arithmetic.
"""

from __future__ import annotations

import math
from functools import lru_cache

from .expr import (
    Const,
    Kept,
    Operand,
    Read,
    ReadAt,
    Reduce,
    Scalar,
    TensorExpr,
    Weighted,
    When,
    children,
    rebuild,
    rename,
    renumber,
    walk,
)
from .index import Axis, Index
from .stages import free
from .types import TensorType


@lru_cache(8192)
def compose(consumer: TensorExpr, position: int, producer: TensorExpr) -> TensorExpr:
    """`consumer` with input `position` computed by `producer`, whose inputs take that place in the list.

    The consumer must not read that input at computed positions (`reads_at`).
    """
    grown = len(producer.inputs) - 1
    number = {k: k if k < position else k + grown for k in range(len(consumer.inputs))}
    fresh = _apart(producer) if consumer.reduces else producer

    def go(s: Scalar) -> Scalar:
        if isinstance(s, Read):
            if s.input != position:
                return s if number[s.input] == s.input else Read(number[s.input], s.index, s.dtype)
            return _at(fresh, s.index, position)
        if isinstance(s, ReadAt):
            return ReadAt(number[s.input], s.base, go(s.offset), s.dtype)
        return rebuild(s, go, lambda i: i)

    inputs = consumer.inputs[:position] + producer.inputs + consumer.inputs[position + 1 :]
    return TensorExpr(inputs, consumer.axes, go(consumer.body)).canonical


@lru_cache(1024)
def _apart(e: TensorExpr) -> TensorExpr:
    """The expression with reduction axes that no consumer uses."""
    body = rename(e.body, {}, lambda a: Axis(f"{a.name}'", a.extent))
    return TensorExpr(e.inputs, e.axes, body)


def _at(e: TensorExpr, index: tuple[Index, ...], shift: int) -> Scalar:
    """The expression's element at `index`, its inputs numbered from `shift`."""
    mapping = dict(zip(e.axes, index, strict=True))
    memo: dict[int, Scalar] = {}

    def go(s: Scalar) -> Scalar:
        if id(s) not in memo:
            memo[id(s)] = moved(s)
        return memo[id(s)]

    def moved(s: Scalar) -> Scalar:
        if isinstance(s, Read):
            return Read(s.input + shift, tuple(i.substitute(mapping) for i in s.index), s.dtype)
        if isinstance(s, ReadAt):
            return ReadAt(s.input + shift, s.base.substitute(mapping), go(s.offset), s.dtype)
        return rebuild(s, go, lambda i: i.substitute(mapping))

    return go(e.body)


def merge_inputs(e: TensorExpr, same: dict[int, int]) -> TensorExpr:
    """The expression with input k replaced by input same[k] (k not in same stays), and the unused ones dropped."""
    target = [same.get(k, k) for k in range(len(e.inputs))]
    kept = sorted(set(target))
    number = {old: new for new, old in enumerate(kept)}
    body = renumber(e.body, lambda k: number[target[k]])
    return TensorExpr(tuple(e.inputs[k] for k in kept), e.axes, body).canonical


def is_map(e: TensorExpr) -> bool:
    """No reduction: each output element is computed on its own."""
    return not e.reduces


def is_filter(e: TensorExpr) -> bool:
    """Every reduction is a sum of elements with constant weights."""
    return bool(e.reduces) and all(isinstance(r.body, Weighted) for r in e.reduces)


def is_movement(e: TensorExpr) -> bool:
    """A map without arithmetic: elements are moved, repeated or replaced by constants."""
    return all(isinstance(s, (Read, Const, When)) for s in walk(e.body))


def reads_at(e: TensorExpr, position: int) -> bool:
    """Input `position` is read at computed positions: it has to lie in memory."""
    return any(isinstance(s, ReadAt) and s.input == position for s in walk(e.body))


def reads_once(e: TensorExpr, position: int) -> bool:
    """Input `position` is read at one index only, and no two output elements read the same element of it."""
    reads = [r for r in e.reads if r.input == position]
    if len(reads) != 1:
        return False
    seen: set[Axis] = set()
    for i in reads[0].index:
        seen |= i.axes
    return all(a.extent == 1 or a in seen for a in e.axes)


def reads_always(e: TensorExpr, position: int) -> bool:
    """Input `position` is read for every element, or is the only input: it is no part of a concatenation."""
    if len(e.inputs) == 1:
        return True
    todo = [e.body]
    while todo:
        s = todo.pop()
        if isinstance(s, Read) and s.input == position:
            return True
        if not isinstance(s, When):
            todo += children(s)
    return False


def streams(e: TensorExpr) -> bool:
    """No reduction takes more steps than an operand has elements (rows are summed; nothing is contracted)."""
    largest = max((t.size for t in e.inputs), default=0)
    return all(math.prod(a.extent for a in free(r.body)) <= largest for r in e.reduces)


def shares(e: TensorExpr, position: int) -> bool:
    """Input `position` is read along axes of the output only, and several elements (or steps of a reduction) share one
    of its elements."""
    reads = [r for r in e.reads if r.input == position]
    seen = {a for r in reads for i in r.index for a in i.axes}
    inside = {a for a in e.axes if a.extent != 1}
    reduced = {a for r in e.reduces for a in r.axes}
    return bool(reads) and seen <= inside and (seen < inside or bool(reduced))


def visits_once(e: TensorExpr, position: int) -> bool:
    """Input `position` is read at one index only, and each of its elements at most once in the whole computation."""
    reads = [r for r in e.reads if r.input == position]
    if len(reads) != 1:
        return False
    seen: set[Axis] = set()
    for i in reads[0].index:
        seen |= i.axes
    reduced = [a for r in e.reduces for a in r.axes]
    return all(a.extent == 1 or a in seen for a in (*e.axes, *reduced)) and all(i.is_affine for i in reads[0].index)


def keep(e: TensorExpr, position: int) -> TensorExpr:
    """The expression whose input `position` is copied before it is read, by a stage of its own."""

    def go(s: Scalar) -> Scalar:
        if isinstance(s, Read) and s.input == position:
            return Kept(s, s.dtype)
        return rebuild(s, go, lambda i: i)

    return TensorExpr(e.inputs, e.axes, go(e.body))


def identity(t: TensorType) -> TensorExpr:
    return TensorExpr.build([t], t.shape, lambda x: lambda *i: _read(x, i))


def _read(x: Operand, i: tuple[Index, ...]) -> Scalar:
    return x[i]


def has_nested_reduce(e: TensorExpr) -> bool:
    return any(isinstance(s, Reduce) for r in e.reduces for s in walk(r.body))
