"""What a machine instruction declares, and where in a kernel it fits.

An `Intrinsic` states its meaning as a tensor expression over registers, e.g. four-byte dot products in 16 lanes:

    (x0: u8[16,4], x1: s8[16,4]) -> i32[16]: out[n] = sum(k) i32(x0[n, k]) * i32(x1[n, k])

Everything else follows from the expression: the kernels it fits (`matches`), the blocks it fills and the rule that
puts it there (`rewrite/loop_rules.py`), the layout that weights should lie in (`rewrite/graph_rules.py`), what it
costs. The table is `intrinsics.py`; docs/adding-an-intrinsic.md is the page about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

from .errors import TypeRuleError, UnknownNameError
from .expr import Apply, Cast, Const, Read, Scalar, TensorExpr
from .index import Axis
from .loops import LoopKernel, lower

Emit = Callable[..., Any]
"""(llvmlite builder, accumulator, one register an input) -> the accumulator with the intrinsic's sum added."""

COMMUTATIVE = frozenset({"add", "mul", "max", "min"})


@dataclass(frozen=True)
class Intrinsic:
    """A machine instruction, or a short sequence of them.

    `expr`: what it adds to its accumulator, in a tensor expression with one reduction; each input is a register whose
    elements lie in row-major order. `arch`, `features`: LLVM's names of what a target must have. `emit`: its code.
    `rate`: how many of them start in the time of one full-width multiply-add. `repeat`: what it costs to fill a
    register with one lane's elements repeated, in full-width loads.
    """

    name: str
    expr: TensorExpr
    arch: str
    features: tuple[str, ...]
    emit: Emit
    rate: float = 1.0
    repeat: float = 1.0

    def __post_init__(self) -> None:
        k = self.kernel
        if k.update is None or len(k.spatial) != 1 or not k.reduce:
            raise TypeRuleError(f"intrinsic {self.name}: needs one axis of lanes and a reduction, declared {self.expr}")

    @cached_property
    def kernel(self) -> LoopKernel:
        """The expression as a loop computation: what `matches` compares with."""
        lowered = lower(self.expr)
        if not isinstance(lowered, LoopKernel):
            raise TypeRuleError(f"intrinsic {self.name}: is more than one reduction, declared {self.expr}")
        return lowered

    @property
    def lanes(self) -> int:
        return self.kernel.spatial[0].extent

    @property
    def sizes(self) -> tuple[int, ...]:
        """Extents of its axes: lanes, then what one lane reduces."""
        return self.kernel.extents

    @property
    def depth(self) -> int:
        """Elements that one lane reduces."""
        return self.kernel.points // self.lanes

    def __str__(self) -> str:
        return f"{self.name}: {self.expr}"


@dataclass(frozen=True)
class Match:
    """An intrinsic in a kernel: `axes` are the kernel's, one for each of the intrinsic's; `operands` the kernel's reads
    that fill its registers."""

    intrinsic: Intrinsic
    axes: tuple[int, ...]
    operands: tuple[Read, ...]


def matches(intrinsic: Intrinsic, kernel: LoopKernel) -> Iterator[Match]:
    """Every way in which the intrinsic is the kernel's update, its axes being axes of the kernel.

    A register is filled by neighbouring elements: the kernel's address must move along the intrinsic's axes as the
    register does, or, along the lanes, not at all (the same elements are repeated in every lane).
    """
    own = intrinsic.kernel
    number = {a: k for k, a in enumerate(kernel.axes)}
    for axes, operands in places(own, kernel, _fills_register):
        if any(r.index[0].coefficient(axes[own.spatial[0]]) for r in operands.values()):
            reads = tuple(operands[k] for k in range(len(own.inputs)))
            yield Match(intrinsic, tuple(number[axes[a]] for a in own.axes), reads)


Operands = dict[int, Read]
Axes = dict[Axis, Axis]
Walks = Callable[[Read, Read, Axes], bool]
"""(an instruction's read, a kernel's, the axes of the one as those of the other) -> whether they walk alike."""


def places(own: LoopKernel, kernel: LoopKernel, walks: Walks) -> Iterator[tuple[Axes, Operands]]:
    """Every way in which an instruction's update is the kernel's: the instruction's axes as axes of the kernel, of
    which the reduced ones are whole multiples, and the kernel's reads that are its operands."""
    if kernel.update is None or kernel.kind != own.kind or kernel.accumulator_dtype != own.accumulator_dtype:
        return
    for spatial in permutations(kernel.spatial, len(own.spatial)):
        for reduced in permutations(kernel.reduce, len(own.reduce)):
            if any(a.extent % b.extent for a, b in zip(reduced, own.reduce, strict=True)):
                continue
            axes = dict(zip(own.axes, (*spatial, *reduced), strict=True))
            operands = _unify(own.update, kernel.update, lambda mine, theirs, axes=axes: walks(mine, theirs, axes), {})
            if operands is not None:
                yield axes, operands


def _unify(
    own: Scalar | None, other: Scalar | None, alike: Callable[[Read, Read], bool], bound: Operands
) -> Operands | None:
    """The kernel's reads by number of the intrinsic's input, if the two scalars are the same computation."""
    if isinstance(own, Read) and isinstance(other, Read):
        fits = own.dtype == other.dtype and alike(own, other) and bound.get(own.input, other) == other
        return {**bound, own.input: other} if fits else None
    if isinstance(own, Cast) and isinstance(other, Cast) and own.dtype == other.dtype:
        return _unify(own.arg, other.arg, alike, bound)
    if isinstance(own, Const):
        return bound if own == other else None
    if isinstance(own, Apply) and isinstance(other, Apply) and own.fn == other.fn:
        orders = [other.args, other.args[::-1]] if own.fn in COMMUTATIVE else [other.args]
        for args in orders:
            found: Operands | None = bound
            for mine, theirs in zip(own.args, args, strict=True):
                found = None if found is None else _unify(mine, theirs, alike, found)
            if found is not None:
                return found
    return None


def _fills_register(own: Read, other: Read, axes: Axes) -> bool:
    register, address = own.index[0], other.index[0]
    if not address.is_affine:
        return False
    lanes, *reduced = axes
    steps = {a: (register.coefficient(a), address.coefficient(axes[a])) for a in axes}
    return steps[lanes][1] in (0, steps[lanes][0]) and all(steps[a][0] == steps[a][1] for a in reduced)


INTRINSICS: dict[str, Intrinsic] = {}


def declare(intrinsic: Intrinsic) -> Intrinsic:
    """Add to the table. Raises `TypeRuleError` if the name is taken."""
    if intrinsic.name in INTRINSICS:
        raise TypeRuleError(f"intrinsic {intrinsic.name!r} is declared twice")
    INTRINSICS[intrinsic.name] = intrinsic
    return intrinsic


def intrinsic(name: str) -> Intrinsic:
    """The declaration of an intrinsic. Raises `UnknownNameError`."""
    from . import intrinsics  # noqa: F401 (fills the table)

    if name not in INTRINSICS:
        raise UnknownNameError(f"intrinsic {name!r} does not exist; there are {', '.join(INTRINSICS)}")
    return INTRINSICS[name]


def all_intrinsics(lanes: int) -> tuple[Intrinsic, ...]:
    """The table's intrinsics of `lanes` lanes."""
    from . import intrinsics  # noqa: F401 (fills the table)

    return tuple(i for i in INTRINSICS.values() if i.lanes == lanes)


def intrinsics_of(triple: str, features: str, lanes: int) -> tuple[Intrinsic, ...]:
    """Those that a target of that triple and those features (as LLVM writes them) has: of several on the same types,
    the fastest."""
    arch, has = triple.split("-")[0], set(features.split(","))
    best: dict[tuple[str, ...], Intrinsic] = {}
    for i in all_intrinsics(lanes):
        if i.arch == arch and {f"+{f}" for f in i.features} <= has:
            types = (*(t.dtype for t in i.expr.inputs), i.kernel.accumulator_dtype)
            best[types] = max(best.get(types, i), i, key=lambda i: i.rate * i.depth)
    return tuple(best.values())
