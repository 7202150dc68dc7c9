"""Index expressions of tensor expressions: affine in named axes, closed under floor-division and remainder.

An `Index` is a sum of integer multiples of atoms plus a constant. An atom is an `Axis`, or the quotient or
remainder of another `Index` by a positive constant. Constructors simplify with the known ranges of the axes, so
that `(48*o + i) // 48` is `o` when `i` is in 0..47: reshapes and layouts compose and cancel by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Union

from .lazy import hashed_once, lazy


@hashed_once
@dataclass(frozen=True)
class Axis:
    """A named iteration axis over 0..extent-1. Two axes are the same if name and extent are."""

    name: str
    extent: int

    def __str__(self) -> str:
        return self.name


@hashed_once
@dataclass(frozen=True)
class Quotient:
    """`floor(of / by)`, by > 0."""

    of: Index
    by: int

    @lazy
    def _text(self) -> str:
        return f"({self.of})//{self.by}"

    def __str__(self) -> str:
        return self._text


@hashed_once
@dataclass(frozen=True)
class Remainder:
    """`of mod by` in 0..by-1, by > 0."""

    of: Index
    by: int

    @lazy
    def _text(self) -> str:
        return f"({self.of})%{self.by}"

    def __str__(self) -> str:
        return self._text


Atom = Union[Axis, Quotient, Remainder]  # noqa: UP007 (used at run time before all names exist)
IndexLike = Union["Index", Axis, int]


def _order(atom: Atom) -> str:
    return "A" + atom.name if isinstance(atom, Axis) else f"{type(atom).__name__[0]}{atom}"


@hashed_once
@dataclass(frozen=True)
class Index:
    """`sum(coefficient * atom) + constant`, terms in canonical order without zero coefficients."""

    terms: tuple[tuple[Atom, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(value: IndexLike) -> Index:
        if isinstance(value, Index):
            return value
        if isinstance(value, Axis):
            return Index() if value.extent == 1 else Index(((value, 1),))
        return Index((), int(value))

    @staticmethod
    def _make(pairs: Iterable[tuple[Atom, int]], constant: int) -> Index:
        total: dict[Atom, int] = {}
        for atom, c in pairs:
            total[atom] = total.get(atom, 0) + c
        terms = [(a, c) for a, c in total.items() if c]
        if len(terms) > 1:
            terms.sort(key=lambda t: _order(t[0]))
        return _recombine(Index(tuple(terms), constant))

    def __add__(self, other: IndexLike) -> Index:
        o = Index.of(other)
        if not o.terms:
            return Index(self.terms, self.constant + o.constant)
        return Index._make(self.terms + o.terms, self.constant + o.constant)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: IndexLike) -> Index:
        return self + Index.of(other) * -1

    def __rsub__(self, other: IndexLike) -> Index:
        return Index.of(other) + self * -1

    def __mul__(self, k: int) -> Index:
        if k == 0:
            return Index()
        return Index(tuple((a, c * k) for a, c in self.terms), self.constant * k)

    __rmul__ = __mul__

    @lazy
    def range(self) -> tuple[int, int]:
        """Smallest and largest value (inclusive) over the ranges of the axes; exact for affine indices."""
        lo = hi = self.constant
        for atom, c in self.terms:
            a, b = _atom_range(atom)
            lo += min(c * a, c * b)
            hi += max(c * a, c * b)
        return lo, hi

    def __floordiv__(self, d: int) -> Index:
        if d == 1:
            return self
        lo, hi = self.range
        if lo // d == hi // d:
            return Index((), lo // d)
        out = tuple((a, c // d) for a, c in self.terms if c % d == 0)
        rest = Index(tuple((a, c) for a, c in self.terms if c % d), self.constant % d)
        whole = Index(out, self.constant // d)
        lo, hi = rest.range
        if 0 <= lo and hi < d:
            return whole
        if found := _digits(rest, d):
            high, _, base = found
            return whole + high // (d // base)
        return whole + _quotient(rest, d)

    def __mod__(self, d: int) -> Index:
        lo, hi = self.range
        if lo // d == hi // d:
            return self - lo // d * d
        rest = Index(tuple((a, c) for a, c in self.terms if c % d), self.constant % d)
        lo, hi = rest.range
        if 0 <= lo and hi < d:
            return rest
        if found := _digits(rest, d):
            high, low, base = found
            return high % (d // base) * base + low
        return _remainder(rest, d)

    def substitute(self, mapping: Mapping[Axis, Index]) -> Index:
        """Replace axes by index expressions."""
        if self.axes.isdisjoint(mapping):
            return self
        return self.map_atoms(lambda a: mapping[a] if a in mapping else Index.of(a))

    def map_atoms(self, f: Callable[[Axis], Index]) -> Index:
        pairs: list[tuple[Atom, int]] = []
        constant = self.constant
        for atom, c in self.terms:
            if isinstance(atom, Axis):
                new = f(atom)
            elif isinstance(atom, Quotient):
                new = atom.of.map_atoms(f) // atom.by
            else:
                new = atom.of.map_atoms(f) % atom.by
            pairs += [(a, k * c) for a, k in new.terms]
            constant += new.constant * c
        return Index._make(pairs, constant)

    @lazy
    def axes(self) -> frozenset[Axis]:
        found: set[Axis] = set()
        for atom, _ in self.terms:
            found |= {atom} if isinstance(atom, Axis) else atom.of.axes
        return frozenset(found)

    @lazy
    def is_affine(self) -> bool:
        return all(isinstance(a, Axis) for a, _ in self.terms)

    def coefficient(self, atom: Atom) -> int:
        return next((c for a, c in self.terms if a == atom), 0)

    def evaluate(self, env: Mapping[Axis, object]) -> object:
        """The value under `env` (ints or broadcastable integer arrays)."""
        total: object = self.constant
        for atom, c in self.terms:
            if isinstance(atom, Axis):
                v: object = env.get(atom, 0)
            elif isinstance(atom, Quotient):
                v = atom.of.evaluate(env) // atom.by  # type: ignore[operator]
            else:
                v = atom.of.evaluate(env) % atom.by  # type: ignore[operator]
            total = total + c * v  # type: ignore[operator]
        return total

    def __str__(self) -> str:
        parts = [str(a) if c == 1 else f"{c}*{a}" for a, c in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")


def _atom_range(atom: Atom) -> tuple[int, int]:
    if isinstance(atom, Axis):
        return 0, max(atom.extent - 1, 0)
    lo, hi = atom.of.range
    if isinstance(atom, Quotient):
        return lo // atom.by, hi // atom.by
    return 0, atom.by - 1


def _digits(of: Index, by: int) -> tuple[Index, Index, int] | None:
    """(high, low, base) with of = base * high + low and 0 <= low < base, for a base that divides `by`: quotient and
    remainder are high's, as those of 14i + j (j < 14) by 98 are those of i by 7."""
    for base in sorted({math.gcd(by, c) for _, c in of.terms} - {1, by}, reverse=True):
        low = Index(tuple((a, c) for a, c in of.terms if c % base), of.constant % base)
        least, most = low.range
        if 0 <= least and most < base:
            high = tuple((a, c // base) for a, c in of.terms if c % base == 0)
            return Index(high, of.constant // base), low, base
    return None


def _quotient(of: Index, by: int) -> Index:
    """`of // by` when it does not simplify arithmetically: (x//a)//b = x//ab, (x%m)//a = (x//a)%(m/a)."""
    if len(of.terms) == 1 and of.constant == 0:
        (atom, c) = of.terms[0]
        if c == 1 and isinstance(atom, Quotient):
            return atom.of // (atom.by * by)
        if c == 1 and isinstance(atom, Remainder) and atom.by % by == 0:
            return (atom.of // by) % (atom.by // by)
    return Index(((Quotient(of, by), 1),))


def _remainder(of: Index, by: int) -> Index:
    """`of % by` when it does not simplify arithmetically: (x%m)%d = x%d when d divides m."""
    if len(of.terms) == 1 and of.constant == 0:
        (atom, c) = of.terms[0]
        if c == 1 and isinstance(atom, Remainder) and atom.by % by == 0:
            return atom.of % by
    return Index(((Remainder(of, by), 1),))


def _recombine(index: Index) -> Index:
    """`d*(x//d) + x%d` back to `x`: a reshape followed by its inverse is the identity."""
    for atom, c in index.terms:
        if not isinstance(atom, Remainder):
            continue
        partner = atom.of // atom.by
        if len(partner.terms) != 1 or partner.constant or partner.terms[0][1] != 1:
            continue
        q = partner.terms[0][0]
        if index.coefficient(q) == c * atom.by:
            kept = [(a, k) for a, k in index.terms if a not in (atom, q)]
            return Index._make(kept + [(a, k * c) for a, k in atom.of.terms], index.constant + c * atom.of.constant)
    return index


def divisors(n: int) -> list[int]:
    """All divisors of a positive integer, in ascending order."""
    small = [f for f in range(1, int(n**0.5) + 1) if n % f == 0]
    return sorted({*small, *(n // f for f in small)})
