"""The loop language: Blocks, the nests that fill them, and how a rule on them is authored.

A `Block(phase, vector, e0, e1, …)` stands for every nest that covers a rectangle of those extents. Phases
only go forward (parallel -> serial -> tile -> unroll, or serial -> tensor), so the e-graph is acyclic and each e-node is derived
once:

    parallel, serial   loops over memory; any order, any number of levels
    tile               results are in registers, vectorised along `vector`; loops here only reduce
    unroll             straight-line code; what remains is one vector operation
    tensor             tile and unroll in one, of an intrinsic's applications; a phase for each way in which one fits

A rule is a decorated function from a symbolic block and an axis to a nest over smaller blocks; it is
instantiated for every axis of a kernel and rendered to egglog arithmetic, without calls back into Python:

    @loop_rule("tiling", phase="serial")
    def peel(b, a):
        '''Block(e) -> For(a, e_a/f, Block(e with e_a := f)) for every useful factor f'''
        f, trips = b.factor(a)
        return For(a, trips, "serial", b.resized(a, f))
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..ir.errors import RuleError
from ..ir.index import Axis
from ..ir.intrinsic import matches
from ..ir.loops import LoopKernel
from ..ir.nest import KINDS
from ..ir.target import Target
from ..ir.types import DTYPES
from .saturate import KINDS as RULE_KINDS
from .saturate import EggRule

PHASES = ("parallel", "serial", "tile", "unroll", "tensor")
#: For which axes a rule is instantiated.
OVER = ("any", "spatial", "contiguous", "reduced", "walked", "fitted", "none")


@dataclass(frozen=True)
class Size:
    """An integer known when the rule runs: arithmetic builds expressions, comparisons conditions."""

    text: str

    @staticmethod
    def of(v: Size | int) -> Size:
        return v if isinstance(v, Size) else Size(str(v))

    def _op(self, op: str, o: Size | int) -> Size:
        return Size(f"({op} {self.text} {Size.of(o).text})")

    def __add__(self, o: Size | int) -> Size:
        return self._op("+", o)

    def __sub__(self, o: Size | int) -> Size:
        return self._op("-", o)

    def __mul__(self, o: Size | int) -> Size:
        return self._op("*", o)

    def __floordiv__(self, o: Size | int) -> Size:
        return self._op("/", o)

    def __mod__(self, o: Size | int) -> Size:
        return self._op("%", o)

    def __lt__(self, o: Size | int) -> str:
        return f"(< {self.text} {Size.of(o).text})"

    def __le__(self, o: Size | int) -> str:
        return f"(<= {self.text} {Size.of(o).text})"

    def __gt__(self, o: Size | int) -> str:
        return f"(> {self.text} {Size.of(o).text})"

    def __ge__(self, o: Size | int) -> str:
        return f"(>= {self.text} {Size.of(o).text})"

    def equals(self, o: Size | int) -> str:
        return f"(= {self.text} {Size.of(o).text})"

    def differs(self, o: Size | int) -> str:
        return f"(!= {self.text} {Size.of(o).text})"


@dataclass(frozen=True)
class LoopAxis:
    """An axis of the kernel at hand: number, full extent, whether it reduces, whether it may be vectorised.

    `contiguous`: some access walks neighbouring elements along it (if none does along any axis, every axis
    counts).
    """

    number: int
    extent: int
    reduces: bool
    contiguous: bool
    beside: bool = False


@dataclass(frozen=True)
class Fit:
    """An intrinsic that is the kernel's update: `number` in the space; `axes`, `sizes` as in `nest.Intrin`, lanes first."""

    number: int
    name: str
    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def vector(self) -> int:
        return self.axes[0]

    @property
    def lanes(self) -> int:
        return self.sizes[0]

    @property
    def depth(self) -> int:
        """Points that one lane reduces."""
        return math.prod(self.sizes[1:])

    def step(self, a: LoopAxis) -> int:
        """Extent of a reduction axis that one application takes; 1 of other axes."""
        return dict(zip(self.axes[1:], self.sizes[1:], strict=True)).get(a.number, 1)


@dataclass(frozen=True)
class Space:
    """What rules may ask of kernel and target: axes, lanes, register and unrolling budgets, threads, intrinsics."""

    axes: tuple[LoopAxis, ...]
    lanes: int
    registers: int
    unroll: int
    threads: int
    blocks_reduction: bool
    fits: tuple[Fit, ...] = ()

    @property
    def spatial(self) -> tuple[LoopAxis, ...]:
        return tuple(a for a in self.axes if not a.reduces)

    @property
    def reduced(self) -> tuple[LoopAxis, ...]:
        return tuple(a for a in self.axes if a.reduces)

    @property
    def unrolled(self) -> tuple[LoopAxis, ...]:
        """The order of unrolled loops, outermost first: reductions, then axes that repeat the operand's vectors, then
        those that change them, so that few vectors are alive at a time."""
        return (*self.reduced, *sorted(self.spatial, key=lambda a: (a.beside, a.number)))


def space(kernel: LoopKernel, target: Target, threads: int = 1) -> Space:
    """The schedule space of a kernel on a target."""
    n = len(kernel.spatial)
    widest = max(DTYPES[t].size for t in _dtypes(kernel))
    lanes = target.lanes(widest)
    fits = _fits(kernel, target, lanes)
    unit = _contiguous(kernel) | {kernel.axes[f.vector] for f in fits}
    beside = _beside(kernel, unit)
    axes = tuple(LoopAxis(k, a.extent, k >= n, a in unit, a in beside) for k, a in enumerate(kernel.axes))
    depth = math.prod(a.extent for a in kernel.reduce)
    # A register tile streams (rows + columns) * depth elements; past the first-level cache, cutting the depth
    # may pay. Spaces of few axes are small enough to offer it always.
    streamed = (
        depth * widest * 2 > target.caches[0] and sum(t.nbytes for t in kernel.inputs) > target.caches[1]
    ) or len(axes) <= 3
    return Space(axes, lanes, target.registers, 8 * target.registers, threads, streamed, fits)


def _fits(kernel: LoopKernel, target: Target, lanes: int) -> tuple[Fit, ...]:
    found = (m for i in target.intrinsics if i.lanes == lanes for m in matches(i, kernel))
    return tuple(Fit(k, m.intrinsic.name, m.axes, m.intrinsic.sizes) for k, m in enumerate(found))


def _contiguous(kernel: LoopKernel) -> set[Axis]:
    addresses = [kernel.out, *(r.index[0] for r in (*kernel.update_reads, *kernel.epilogue_reads))]
    unit = {a for a in kernel.spatial if any(i.coefficient(a) == 1 for i in addresses)} or set(kernel.spatial)
    operands = [r.index[0] for r in kernel.update_reads if r.index[0].axes]

    def loads(a: Axis) -> bool:
        return all(i.is_affine and i.coefficient(a) in (0, 1) for i in operands)

    if not any(loads(a) and any(i.coefficient(a) for i in operands) for a in unit):
        unit |= {a for a in kernel.reduce if loads(a) and all(i.coefficient(a) for i in operands)}
    return unit


def _beside(kernel: LoopKernel, unit: set[Axis]) -> set[Axis]:
    loaded = [r.index[0] for r in kernel.update_reads if any(r.index[0].coefficient(v) == 1 for v in unit)]
    return {a for a in kernel.spatial if any(i.coefficient(a) for i in loaded)}


def _dtypes(kernel: LoopKernel) -> set[str]:
    out = {kernel.epilogue.dtype, *(t.dtype for t in kernel.inputs)}
    return (out | {kernel.update.dtype}) - {"bool"} if kernel.update is not None else out - {"bool"} or {"u8"}


@dataclass
class Block:
    """A block with symbolic extents, as a rule sees it. Conditions accumulate as the rule asks."""

    phase: str
    vector: Size
    extents: tuple[Size, ...]
    space: Space
    facts: list[str] = field(default_factory=list)
    fit: Fit | None = None

    def extent(self, a: LoopAxis) -> Size:
        return self.extents[a.number]

    def require(self, *facts: str) -> None:
        """The rule applies only where these comparisons hold."""
        if not all(isinstance(f, str) for f in facts):
            raise TypeError("a condition compares sizes; write `x.equals(y)` and `x.differs(y)` for equality")
        self.facts.extend(facts)

    def factor(self, a: LoopAxis) -> tuple[Size, Size]:
        """(f, n/f) for every useful factor 1 <= f < n of the axis's extent n."""
        self.facts.append(f"(div e{a.number} f t)")
        return Size("f"), Size("t")

    def cut(self, a: LoopAxis) -> tuple[Size, Size]:
        """(q, n - q) for every useful place to cut an axis of awkward extent n."""
        self.facts.append(f"(cut {a.number} e{a.number} q rest)")
        return Size("q"), Size("rest")

    def resized(self, a: LoopAxis, size: Size | int) -> Block:
        new = tuple(Size.of(size) if k == a.number else e for k, e in enumerate(self.extents))
        return replace(self, extents=new)

    def into(self, phase: str, vector: LoopAxis | None = None, fit: Fit | None = None) -> Block:
        """The same block in a later phase (the tensor phase: of which intrinsic)."""
        return replace(self, phase=phase, vector=self.vector if vector is None else Size(str(vector.number)), fit=fit)

    @property
    def applied(self) -> Fit:
        """In the tensor phase: the intrinsic."""
        if self.fit is None:
            raise TypeError("only a block of the tensor phase has an intrinsic")
        return self.fit

    def product(self, axes: Sequence[LoopAxis]) -> Size:
        total = Size("1")
        for a in axes:
            total = self.extent(a) if total.text == "1" else total * self.extent(a)
        return total

    @property
    def text(self) -> str:
        inside = " ".join(e.text for e in self.extents)
        number = PHASES.index(self.phase) + (self.fit.number if self.fit is not None else 0)
        return f"(Block {number} {self.vector.text} {inside})"


def For(a: LoopAxis, trips: Size | int, kind: str, body: Block) -> str:
    """A loop over `axis` whose body covers `body`."""
    return f"(For {a.number} {Size.of(trips).text} {KINDS.index(kind)} {body.text})"


def Cat(a: LoopAxis, at: Size, first: Block, second: Block) -> str:
    """The first `at` indices of the axis, then the rest."""
    return f"(Cat {a.number} {at.text} {first.text} {second.text})"


def Tile(a: LoopAxis | None, body: Block) -> str:
    """Results in registers from here inward, vectorised along the axis."""
    return f"(Tile {-1 if a is None else a.number} {body.text})"


def Vec(axis: Size | int, lanes: Size | int) -> str:
    """One vector operation."""
    return f"(Vec {Size.of(axis).text} {Size.of(lanes).text})"


def Intrin(b: Block, lanes: Size | int) -> str:
    """One application of the block's intrinsic, of which so many lanes count."""
    return f"(Intrin {b.applied.number} {Size.of(lanes).text})"


@dataclass(frozen=True)
class LoopRule:
    """A rule of loop programs: `make(block, axis)` returns the nest (or Block) that the block may also be.

    It is instantiated for each axis that `over` admits (`any`, `spatial`, `contiguous`, `reduced`, or `none`:
    once, axis None; `fitted`: for each `Fit` of an intrinsic instead), in the tensor phase for each `Fit` besides
    (`block.fit`).
    """

    name: str
    kind: str
    phase: str
    over: str
    make: Callable[[Block, Any], str | Block]
    when: Callable[[Space], bool]
    doc: str
    where: str
    level: str = "loop"

    @property
    def condition(self) -> str:
        return f"{self.phase} phase, {self.over} axis" if self.over != "none" else f"{self.phase} phase"

    def __str__(self) -> str:
        return f"{self.name}: {self.doc}"

    def instances(self, s: Space) -> list[str]:
        """The rule as egglog text, one form an axis."""
        if not self.when(s):
            return []
        fits: Sequence[Fit | None] = s.fits if self.phase == "tensor" else (None,)
        return [self._instance(s, fit, a) for fit in fits for a in self._axes(s)]

    def _axes(self, s: Space) -> Sequence[LoopAxis | Fit | None]:
        groups: dict[str, Sequence[LoopAxis | Fit | None]] = {
            "any": s.axes,
            "spatial": s.spatial,
            "contiguous": [a for a in s.spatial if a.contiguous],
            "reduced": s.reduced,
            "walked": [a for a in s.reduced if a.contiguous],
            "fitted": s.fits,
            "none": (None,),
        }
        return groups[self.over]

    def _instance(self, s: Space, fit: Fit | None, a: LoopAxis | Fit | None) -> str:
        block = Block(self.phase, Size("v"), tuple(Size(f"e{k}") for k in range(len(s.axes))), s, fit=fit)
        before = block.text
        try:
            made = self.make(block, a)
        except Exception as e:
            raise RuleError(f"{self.where}: rule {self.name}: {type(e).__name__}: {e}") from None
        if not isinstance(made, (Block, str)):
            raise RuleError(f"{self.where}: rule {self.name}: returns {made!r}, not a nest or a block")
        facts = " ".join(block.facts)
        right = made.text if isinstance(made, Block) else made
        return f"(rule ((= b {before}) {facts}) ((union b {right})) :ruleset {self.name})"

    def render(self, s: Space) -> EggRule:
        return EggRule(
            self.name, self.kind, self.name, "\n".join([f"(ruleset {self.name})", *self.instances(s)])
        )


def loop_rule(
    kind: str, *, phase: str, over: str = "any", when: Callable[[Space], bool] = lambda s: True
) -> Callable[[Callable[..., str | Block]], LoopRule]:
    """Declare a loop rule. Raises `RuleError` naming the file and line of a malformed one."""

    def decorate(f: Callable[..., str | Block]) -> LoopRule:
        where = f"{f.__code__.co_filename}:{f.__code__.co_firstlineno}"
        for value, allowed, what in (
            (kind, RULE_KINDS, "kind"),
            (phase, PHASES, "phase"),
            (over, OVER, "over"),
        ):
            if value not in allowed:
                raise RuleError(
                    f"{where}: rule {f.__name__}: {what} {value!r} is not one of {', '.join(allowed)}"
                )
        if len(inspect.signature(f).parameters) != 2:
            raise RuleError(f"{where}: rule {f.__name__}: a loop rule takes a block and an axis")
        doc = " ".join((inspect.getdoc(f) or "").split())
        return LoopRule(f.__name__, kind, phase, over, f, when, doc, where)

    return decorate


def declarations(rank: int) -> str:
    """Sorts and constructors for kernels of `rank` axes."""
    sizes = "i64 " * rank
    return "\n".join(
        [
            "(sort N)",
            f"(constructor Block (i64 i64 {sizes}) N)",
            "(constructor For (i64 i64 i64 N) N)",
            "(constructor Cat (i64 i64 N N) N)",
            "(constructor Tile (i64 N) N)",
            "(constructor Vec (i64 i64) N)",
            "(constructor Intrin (i64 i64) N)",
            "(relation div (i64 i64 i64))",
            "(relation cut (i64 i64 i64 i64))",
        ]
    )
