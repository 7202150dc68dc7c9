"""Tensor expressions: what an operator computes, element by element, in index notation.

    matmul[i, j] = sum(k) x0[i, k] * x1[k, j]

A `TensorExpr` names one axis per output dimension and a scalar `body`. Scalars read inputs at `Index` expressions,
apply functions of `scalars.py`, reduce over further axes, and choose by index bounds (`When`: padding). This is a
value language: no loops, no order, no layout; those are the business of nests (`nest.py`) and of rewrite rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Union

from .errors import TypeRuleError
from .index import Axis, Index, IndexLike
from .lazy import fields_of, hashed_once, lazy
from .scalars import COMBINERS, scalar
from .types import TensorType

Bound = tuple[Index, int, int]
"""(index, lo, hi): holds where lo <= index < hi."""


class _Ops:
    """Arithmetic sugar on scalars."""

    dtype: str

    def __add__(self, o: Scalar | float) -> Scalar:
        return apply("add", self, o)

    def __sub__(self, o: Scalar | float) -> Scalar:
        return apply("sub", self, o)

    def __mul__(self, o: Scalar | float) -> Scalar:
        return apply("mul", self, o)

    def __truediv__(self, o: Scalar | float) -> Scalar:
        return apply("div", self, o)

    def __neg__(self) -> Scalar:
        return apply("neg", self)

    @lazy
    def _hash(self) -> int:
        return hash((type(self).__name__, *(getattr(self, f) for f in self.__dataclass_fields__)))  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return self._hash

    __getstate__ = fields_of


@dataclass(frozen=True, eq=True)
class Read(_Ops):
    """Element of input number `input` at `index` (one `Index` a dimension, in bounds wherever it is evaluated)."""

    input: int
    index: tuple[Index, ...]
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"x{self.input}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True, eq=True)
class ReadAt(_Ops):
    """Element of input number `input` at the row-major position `base + offset`, of which `offset` (i64) is computed.

    The operator that makes it sees to it that the position lies inside the input, whatever `offset` is read from.
    """

    input: int
    base: Index
    offset: Scalar
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"x{self.input}[[{self.base} + {self.offset}]]"


@dataclass(frozen=True, eq=True)
class Const(_Ops):
    """A number. Equal ones are written alike: 0.0 is not -0.0, and nan is nan."""

    value: float | int | bool
    dtype: str
    __hash__ = _Ops.__hash__

    @lazy
    def _hash(self) -> int:
        return hash(("Const", repr(self.value), self.dtype))

    def __eq__(self, o: object) -> bool:
        return isinstance(o, Const) and self.dtype == o.dtype and repr(self.value) == repr(o.value)

    def __str__(self) -> str:
        return f"{self.value}"


@dataclass(frozen=True, eq=True)
class IndexValue(_Ops):
    """An index as a number (iota)."""

    index: Index
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"{self.dtype}({self.index})"


@dataclass(frozen=True, eq=True)
class Apply(_Ops):
    """A scalar function of `scalars.py` applied to operands."""

    fn: str
    args: tuple[Scalar, ...]
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        row = scalar(self.fn)
        if row.infix:
            return f"({self.args[0]} {row.infix} {self.args[1]})"
        return f"{self.fn}({', '.join(map(str, self.args))})"


@dataclass(frozen=True, eq=True)
class Cast(_Ops):
    """Conversion of dtype; float to integer truncates towards zero, as in C and JAX."""

    arg: Scalar
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"{self.dtype}({self.arg})"


@dataclass(frozen=True, eq=True)
class Weighted(_Ops):
    """`arg` times the entry of a table of constants at `index`; 0 where that entry is 0, whatever `arg` is.

    Code in which the index is known holds the entry itself, and nothing for an entry of 0.
    """

    table: tuple[float, ...]
    index: Index
    arg: Scalar
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"[{', '.join(f'{v:g}' for v in self.table)}][{self.index}] * {self.arg}"


@dataclass(frozen=True, eq=True)
class When(_Ops):
    """`then` where all bounds hold, else `otherwise`; outside, `then` is not evaluated (it may read out of bounds)."""

    bounds: tuple[Bound, ...]
    then: Scalar
    otherwise: Scalar
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        test = " and ".join(f"{lo} <= {i} < {hi}" for i, lo, hi in self.bounds)
        return f"({self.then} if {test} else {self.otherwise})"


@dataclass(frozen=True, eq=True)
class Reduce(_Ops):
    """Reduction of `body` over `axes`; `kind` is sum, max, min or prod; accumulated in `dtype`."""

    kind: str
    axes: tuple[Axis, ...]
    body: Scalar
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"{self.kind}({', '.join(f'{a}<{a.extent}' for a in self.axes)}) {self.body}"


@dataclass(frozen=True, eq=True)
class Kept(_Ops):
    """`arg`, computed by a stage of its own and kept until it is read: a block of it at a time, where it is shared."""

    arg: Scalar
    dtype: str
    __hash__ = _Ops.__hash__

    def __str__(self) -> str:
        return f"kept({self.arg})"


Scalar = Union[Read, ReadAt, Const, IndexValue, Apply, Cast, Weighted, When, Reduce, Kept]  # noqa: UP007


def apply(fn: str, *args: Any) -> Scalar:
    """Apply a scalar function; Python numbers become constants of the dtype of the other operands."""
    dtypes = [a.dtype for a in args if not isinstance(a, (int, float, bool))]
    operands = tuple(Const(a, dtypes[-1]) if isinstance(a, (int, float, bool)) else a for a in args)
    return Apply(fn, operands, scalar(fn).dtype(tuple(o.dtype for o in operands)))


def cast(arg: Scalar, dtype: str) -> Scalar:
    return arg if arg.dtype == dtype else Cast(arg, dtype)


def when(bounds: Sequence[tuple[IndexLike, int, int]], then: Scalar, otherwise: Scalar) -> Scalar:
    """`When` with the bounds that always hold dropped; `otherwise` alone if one never holds."""
    kept: list[Bound] = []
    for value, lo, hi in bounds:
        index = Index.of(value)
        least, most = index.range
        if least >= lo and most < hi:
            continue
        if most < lo or least >= hi:
            return otherwise
        kept.append((index, lo, hi))
    return When(tuple(dict.fromkeys(kept)), then, otherwise, then.dtype) if kept else then


def reduce(kind: str, axes: Sequence[Axis], body: Scalar) -> Scalar:
    """`Reduce` over the axes of extent other than 1 (an axis of extent 1 reads as index 0)."""
    if kind not in COMBINERS:
        raise TypeRuleError(f"reduction kind {kind!r} is not one of {', '.join(COMBINERS)}")
    kept = tuple(a for a in axes if a.extent != 1)
    return Reduce(kind, kept, body, body.dtype) if kept else body


@dataclass(frozen=True)
class Operand:
    """An input of a tensor expression under construction: `x[i, j]` reads it."""

    number: int
    type: TensorType

    def __getitem__(self, index: IndexLike | tuple[IndexLike, ...]) -> Scalar:
        parts = index if isinstance(index, tuple) else (index,)
        if len(parts) != self.type.rank:
            raise TypeRuleError(f"x{self.number}: {self.type} read with {len(parts)} indices")
        return Read(self.number, tuple(Index.of(p) for p in parts), self.type.dtype)

    def at(self, fixed: Mapping[int, IndexLike], computed: Mapping[int, Scalar]) -> Scalar:
        """The element at `fixed` positions of some axes and `computed` ones of the others, those moved into range."""
        base, offset = Index(), None
        for axis, stride in enumerate(self.type.strides):
            if axis in fixed:
                base = base + Index.of(fixed[axis]) * stride
                continue
            last = max(self.type.shape[axis] - 1, 0)
            place = apply("min", apply("max", cast(computed[axis], "i64"), 0), last) * stride
            offset = place if offset is None else offset + place
        if offset is None:
            raise TypeRuleError(f"x{self.number}: no axis of {self.type} is read at a computed position")
        return ReadAt(self.number, base, offset, self.type.dtype)


@hashed_once
@dataclass(frozen=True)
class TensorExpr:
    """A tensor by its elements: `out[axes] = body`, over inputs of the given types.

    Axes are named `i0, i1, …` by position and reduction axes `r0, r1, …` by order of appearance (`canonical`), so
    that equal computations are equal values.
    """

    inputs: tuple[TensorType, ...]
    axes: tuple[Axis, ...]
    body: Scalar

    @staticmethod
    def build(
        inputs: Sequence[TensorType], shape: Sequence[int], body: Callable[..., Callable[..., Scalar]]
    ) -> TensorExpr:
        """`body(*operands)` returns a function from the output's indices to a scalar."""
        axes = tuple(Axis(f"i{d}", n) for d, n in enumerate(shape))
        operands = [Operand(k, t) for k, t in enumerate(inputs)]
        scalar_body = body(*operands)(*(Index.of(a) for a in axes))
        return TensorExpr(tuple(inputs), axes, scalar_body).canonical

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a.extent for a in self.axes)

    @lazy
    def type(self) -> TensorType:
        return TensorType(self.shape, self.body.dtype)

    @lazy
    def canonical(self) -> TensorExpr:
        """The same expression with axes renamed by position and order of appearance."""
        axes = tuple(Axis(f"i{d}", a.extent) for d, a in enumerate(self.axes))
        if axes == self.axes and self._names_reductions_in_order:
            return self
        mapping = {a: Index.of(b) for a, b in zip(self.axes, axes, strict=True)}
        counter = iter(range(1 << 30))
        made = TensorExpr(self.inputs, axes, rename(self.body, mapping, lambda a: Axis(f"r{next(counter)}", a.extent)))
        made.__dict__["canonical"] = made
        return made

    @property
    def _names_reductions_in_order(self) -> bool:
        """Reductions, none inside another, are named as `canonical` does."""
        flat = not any(isinstance(s, Reduce) for r in self.reduces for s in walk(r.body))
        names = [a.name for r in self.reduces for a in r.axes]
        return flat and names == [f"r{k}" for k in range(len(names))]

    @lazy
    def reduces(self) -> tuple[Reduce, ...]:
        """The distinct reductions in the body, outermost first."""
        return tuple(dict.fromkeys(s for s in walk(self.body) if isinstance(s, Reduce)))

    @lazy
    def reads(self) -> tuple[Read, ...]:
        return tuple(dict.fromkeys(s for s in walk(self.body) if isinstance(s, Read)))

    @lazy
    def operations(self) -> int:
        """Number of distinct scalar operations in the body: a measure of its size."""
        return sum(1 for s in walk(self.body) if children(s))

    @lazy
    def _text(self) -> str:
        head = ", ".join(f"{a}<{a.extent}" for a in self.axes)
        args = ", ".join(f"x{k}: {t}" for k, t in enumerate(self.inputs))
        return f"({args}) -> {self.type}: out[{head}] = {self.body}"

    def __str__(self) -> str:
        return self._text


def children(s: Scalar) -> tuple[Scalar, ...]:
    if isinstance(s, Apply):
        return s.args
    if isinstance(s, (Cast, Weighted, Kept)):
        return (s.arg,)
    if isinstance(s, When):
        return (s.then, s.otherwise)
    if isinstance(s, Reduce):
        return (s.body,)
    if isinstance(s, ReadAt):
        return (s.offset,)
    return ()


def walk(s: Scalar) -> Iterator[Scalar]:
    """All distinct sub-scalars, outermost first."""
    seen: set[int] = set()
    stack = [s]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(reversed(children(node)))


@cache
def cost(s: Scalar, tables: bool = False) -> float:
    """Cost of a scalar's arithmetic in fused multiply-adds, each distinct operation once, on a target with or without
    `Target.tables`. Bounds tests are not arithmetic: what they cost depends on the schedule."""
    return sum(_own_cost(node, tables) for node in walk(s))


def _own_cost(s: Scalar, tables: bool) -> float:
    if isinstance(s, Apply):
        return scalar(s.fn).price(tables)
    if isinstance(s, Weighted):
        return sum(v != 0 for v in s.table) / len(s.table)
    return float(isinstance(s, Cast))


def rebuild(s: Scalar, f: Callable[[Scalar], Scalar], index: Callable[[Index], Index]) -> Scalar:
    """`s` with each child replaced by `f(child)` and each index by `index(…)`; bounds are simplified again. Where that
    changes nothing, `s` itself."""
    if isinstance(s, Read):
        places = tuple(index(i) for i in s.index)
        return s if _same(places, s.index) else Read(s.input, places, s.dtype)
    if isinstance(s, Apply):
        args = tuple(f(a) for a in s.args)
        return s if _same(args, s.args) else Apply(s.fn, args, s.dtype)
    if isinstance(s, ReadAt):
        base, offset = index(s.base), f(s.offset)
        return s if base is s.base and offset is s.offset else ReadAt(s.input, base, offset, s.dtype)
    if isinstance(s, IndexValue):
        return IndexValue(index(s.index), s.dtype)
    if isinstance(s, (Cast, Kept)):
        arg = f(s.arg)
        return s if arg is s.arg else type(s)(arg, s.dtype)
    if isinstance(s, Weighted):
        place, arg = index(s.index), f(s.arg)
        return s if place is s.index and arg is s.arg else Weighted(s.table, place, arg, s.dtype)
    if isinstance(s, When):
        places, parts = tuple(index(i) for i, _, _ in s.bounds), (f(s.then), f(s.otherwise))
        if _same(places, tuple(i for i, _, _ in s.bounds)) and _same(parts, (s.then, s.otherwise)):
            return s
        return when([(i, lo, hi) for i, (_, lo, hi) in zip(places, s.bounds, strict=True)], *parts)
    if isinstance(s, Reduce):
        body = f(s.body)
        return s if body is s.body else Reduce(s.kind, s.axes, body, s.dtype)
    return s


def _same(new: tuple[Any, ...], old: tuple[Any, ...]) -> bool:
    return all(n is o for n, o in zip(new, old, strict=True))


def renumber(s: Scalar, number: Callable[[int], int]) -> Scalar:
    """`s` with input k read as input `number(k)`."""

    def go(n: Scalar) -> Scalar:
        if isinstance(n, Read):
            return n if number(n.input) == n.input else Read(number(n.input), n.index, n.dtype)
        if isinstance(n, ReadAt):
            return ReadAt(number(n.input), n.base, go(n.offset), n.dtype)
        return rebuild(n, go, lambda i: i)

    return go(s)


def inputs_read(s: Scalar) -> tuple[int, ...]:
    """The inputs read anywhere in `s`, in order of appearance."""
    return tuple(dict.fromkeys(n.input for n in walk(s) if isinstance(n, (Read, ReadAt))))


def rename(s: Scalar, mapping: Mapping[Axis, Index], fresh: Callable[[Axis], Axis]) -> Scalar:
    """Substitute axes by indices; every reduction axis is renamed by `fresh` (equal reductions alike)."""
    memo: dict[tuple[Scalar, tuple[tuple[Axis, Index], ...]], Scalar] = {}

    def go(node: Scalar, env: dict[Axis, Index], scope: tuple[tuple[Axis, Index], ...]) -> Scalar:
        key = (node, scope)
        if key in memo:
            return memo[key]
        if isinstance(node, Reduce):
            named = tuple(map(fresh, node.axes))
            pairs = tuple((a, Index.of(b)) for a, b in zip(node.axes, named, strict=True))
            body = go(node.body, _substitution(env | dict(pairs)), scope + pairs)
            kept = named == node.axes and body is node.body
            out: Scalar = node if kept else Reduce(node.kind, named, body, node.dtype)
        else:
            out = rebuild(node, lambda c: go(c, env, scope), lambda i: i.substitute(env))
        memo[key] = out
        return out

    return go(s, _substitution(mapping), ())


def _substitution(mapping: Mapping[Axis, Index]) -> dict[Axis, Index]:
    """Without axes that stay as they are."""
    return {a: i for a, i in mapping.items() if i.terms != ((a, 1),) or i.constant}
