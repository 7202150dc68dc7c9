"""The loop language: Blocks, the nests that fill them, and how a rule on them is authored.

A `Block(stage, phase, inside, vector, e0, e1, …)` stands for every nest of a stage that covers a rectangle of those
extents (stage `ALL`: of all stages, over the axes they share; a kernel of one stage has stage 0 only). `inside` is a
set of bits: the ends of padded axes that the block does not touch, so that its bounds tests are known to hold. Phases
only go forward (store -> parallel -> serial -> tile -> unroll, or serial -> tensor), so the e-graph is acyclic and each
e-node is derived once:

    store              whether results are stored through the caches or past them; of results that no cache holds
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
from itertools import product
from typing import Any

from ..ir.errors import RuleError
from ..ir.expr import Read, ReadAt, When, walk
from ..ir.index import Axis, Index, divisors
from ..ir.intrinsic import matches
from ..ir.loops import CHAIN, SCRATCH_BYTES, LoopKernel, Lowered, StagedKernel
from ..ir.nest import KINDS, WAYS
from ..ir.target import Target
from ..ir.types import DTYPES
from .saturate import KINDS as RULE_KINDS
from .saturate import EggRule

PHASES = ("store", "parallel", "ahead", "serial", "tile", "unroll", "tensor")
#: The phase in which nothing is left to choose. In a guided saturation, blocks of the others wait to be opened.
STRAIGHT = PHASES.index("unroll")
#: Uses of an input element from which on borders are not cut off: a 3x3 convolution of stride 2 to 32 channels has 72
#: (without the cuts it takes 1.6 times as long).
PADDED_REUSE = 96
#: Uses of an input element from which on it may be fetched ahead. Below, nothing is done meanwhile, and memory is busy
#: anyway (a row of 784 by 784x512: 16.8 us, fetching ahead 21.5; depthwise 56x56x128, nine uses: 63 and 71).
FETCHED_REUSE = 16
#: Terms that some pieces have at least, or the sum is not cut: storing and reading the results of a piece takes as long
#: as a few terms.
SHORTEST = 64
#: For which axes a rule is instantiated.
OVER = ("any", "spatial", "contiguous", "reduced", "walked", "padded", "fitted", "sequence", "none")
#: The stage number of blocks that all stages are still to fill.
ALL = -1


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
    counts). `beside`: the axes (their numbers) along which vectors of an operand are other ones in its next index.
    `below`, `above`: so many indices at its ends reach into padding, and `bit` is the number of the lower end in
    `Block.inside` (the upper end's is the next). `part`: so many indices are cut off first of a long sum whose extent
    has no divisors to make pieces of (0: none need be).
    """

    number: int
    extent: int
    reduces: bool
    contiguous: bool
    beside: tuple[int, ...] = ()
    below: int = 0
    above: int = 0
    bit: int = -1
    part: int = 0


@dataclass(frozen=True)
class Window:
    """A reduction axis (by its number) that takes results `along` a spatial axis through overlapping windows of an
    operand which is loaded in vectors."""

    axis: int
    along: int


@dataclass(frozen=True)
class Fit:
    """An intrinsic that is the kernel's update: `number` in the space; `axes`, `sizes` as in `nest.Intrin`, the lanes
    first."""

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
    """What rules may ask of kernel and target: axes, lanes, register and unrolling budgets, threads,
    intrinsics (`fits`), overlapping windows (`window`); whether results are so many that they might be stored past
    the caches (`overflows`), and whether a reduction works on a tensor of which the second cache holds little, or
    several stages do on one that no cache holds (`distant`).

    A kernel of several stages has the space of its shared axes, whose `parts` are the spaces of its stages;
    `sequences` are the orders in which they may run, each with the bytes of scratch it takes for one point.
    """

    axes: tuple[LoopAxis, ...]
    lanes: int
    registers: int
    unroll: int
    threads: int
    blocks_reduction: bool
    stage: int = 0
    parts: tuple[Space, ...] = ()
    sequences: tuple[tuple[tuple[int, ...], int], ...] = ()
    scratch: int = SCRATCH_BYTES
    fits: tuple[Fit, ...] = ()
    overflows: bool = False
    distant: bool = False
    chain: int = 0
    window: Window | None = None

    @property
    def first_phase(self) -> str:
        return "store" if self.overflows else "parallel"

    @property
    def serial_phase(self) -> str:
        """The first phase within a thread."""
        return "ahead" if self.distant else "serial"

    @property
    def views(self) -> tuple[Space, ...]:
        """The space itself, and those of the stages."""
        return (self, *self.parts)

    def of_stage(self, stage: int) -> Space:
        """The space of a stage, by its number."""
        return next(v for v in self.views if v.stage == stage)

    @property
    def rank(self) -> int:
        """Axes of a block: as many as the stage with most of them has."""
        return max(len(v.axes) for v in self.views)

    @property
    def spatial(self) -> tuple[LoopAxis, ...]:
        return tuple(a for a in self.axes if not a.reduces)

    @property
    def reduced(self) -> tuple[LoopAxis, ...]:
        return tuple(a for a in self.axes if a.reduces)

    def unrolled(self, vector: int) -> tuple[LoopAxis, ...]:
        """The order of unrolled loops around vectors along an axis (its number), outermost first: reductions, then axes
        that repeat the operand's vectors, then those that change them, so that few vectors are alive at a time. A
        window is innermost: what neighbouring results read is loaded once."""
        window = [a for a in self.axes if self.window is not None and a.number == self.window.axis]
        outer = [a for a in self.reduced if a not in window]
        return (*outer, *sorted(self.spatial, key=lambda a: (vector in a.beside, a.number)), *window)


def space(kernel: Lowered, target: Target, threads: int = 1) -> Space:
    """The schedule space of a kernel on a target."""
    fills = isinstance(kernel, LoopKernel) and kernel.fill is not None
    overflows = kernel.out_type.nbytes > target.caches[2] and not fills
    made = _staged_space if isinstance(kernel, StagedKernel) else _space
    return replace(made(kernel, target, threads), overflows=overflows)  # type: ignore[arg-type]


def _space(kernel: LoopKernel, target: Target, threads: int = 1) -> Space:
    n = len(kernel.spatial)
    # Where each element read under tests is used often, a padded copy costs little and the space stays small.
    reused = kernel.points > PADDED_REUSE * sum(kernel.inputs[k].size for k in tested_inputs(kernel))
    borders = {} if reused else padding(kernel)
    bits = {a: 2 * k for k, a in enumerate(borders)}
    widest = max(DTYPES[t].size for t in _dtypes(kernel))
    lanes = target.lanes(widest)
    fits = _fits(kernel, target, lanes)
    unit = _contiguous(kernel) | {kernel.axes[f.vector] for f in fits}
    chain, part = _pieces([a.extent for a in kernel.reduce]) if kernel.is_long_sum else (0, 0)
    axes = tuple(
        LoopAxis(k, a.extent, k >= n, a in unit, _beside(kernel, a, unit), *borders.get(a, (0, 0)), bits.get(a, -1))
        for k, a in enumerate(kernel.axes)
    )
    axes = tuple(replace(a, part=part) if a.reduces and a.extent > part else a for a in axes)
    depth = math.prod(a.extent for a in kernel.reduce)
    # A register tile streams (rows + columns) * depth elements; past the first-level cache, cutting the depth
    # may pay. Spaces of few axes are small enough to offer it always.
    streamed = (
        depth * widest * 2 > target.caches[0] and sum(t.nbytes for t in kernel.inputs) > target.caches[1]
    ) or len(axes) <= 3
    cut = streamed or chain > 0
    reads = [kernel.inputs[r.input] for r in kernel.update_reads if r.index[0].is_affine]
    worked_on = [t for t in reads if kernel.points >= FETCHED_REUSE * t.size]
    distant = bool(kernel.reduce) and any(t.nbytes > target.caches[1] // 2 for t in worked_on)
    window = None if fits else _window(kernel, unit)
    budgets = lanes, target.registers, 8 * target.registers, threads
    return Space(axes, *budgets, cut, fits=fits, distant=distant, chain=chain, window=window)


def _pieces(reduced: Sequence[int]) -> tuple[int, int]:
    """How many terms an accumulator may take of a sum over axes of these extents, and what is cut off the longest axis
    first (0: nothing). They are `CHAIN`, or what pieces that are not too short must have, as pieces are as long as
    divisors allow; where these allow none, the longest axis is cut at a multiple of a good length. (0, 0): no limit."""
    pieces = {math.prod(d) for d in product(*map(divisors, reduced))} - {math.prod(reduced)}
    least = min((n for n in pieces if n >= SHORTEST), default=0)
    longest, length = max(reduced), SHORTEST
    while length < longest / CHAIN:
        length *= 2
    part = (longest // length - 1) * length  # what is left is no shorter than a piece
    if (0 < least <= CHAIN) or longest <= CHAIN or longest - part > CHAIN:
        return (max(CHAIN, least) if least else 0), 0
    return CHAIN, part


def _window(kernel: LoopKernel, unit: set[Axis]) -> Window | None:
    """The last reduction axis whose windows overlap along an axis of the results; only where every such axis moves the
    operand (an axis that repeats its vectors makes more of them)."""
    for i in _loaded(kernel, unit):
        if not i.is_affine or not all(i.coefficient(a) for a in kernel.spatial):
            continue
        for r, s in product(reversed(kernel.reduce), (a for a in kernel.spatial if a not in unit)):
            step, move = i.coefficient(r), i.coefficient(s)
            if 0 < step and move % step == 0 and 0 < move < step * r.extent:
                return Window(kernel.axes.index(r), kernel.axes.index(s))
    return None


def _fits(kernel: LoopKernel, target: Target, lanes: int) -> tuple[Fit, ...]:
    found = (m for i in target.intrinsics if i.lanes == lanes for m in matches(i, kernel))
    return tuple(Fit(k, m.intrinsic.name, m.axes, m.intrinsic.sizes) for k, m in enumerate(found))


def _staged_space(kernel: StagedKernel, target: Target, threads: int) -> Space:
    axes = tuple(LoopAxis(k, a.extent, False, False) for k, a in enumerate(kernel.shared))
    parts = tuple(replace(_space(k, target), stage=n, distant=False) for n, k in enumerate(kernel.stages))
    sequences = tuple((q, kernel.scratch_bytes(q)) for q in kernel.sequences)
    budgets = target.lanes(), target.registers, 8 * target.registers, threads
    distant = any(t.nbytes > target.caches[2] for t in kernel.inputs)
    return Space(axes, *budgets, False, ALL, parts, sequences, kernel.room, distant=distant)


def _contiguous(kernel: LoopKernel) -> set[Axis]:
    addresses = [kernel.out, *(r.index[0] for r in (*kernel.update_reads, *kernel.epilogue_reads))]
    unit = {a for a in kernel.spatial if any(i.coefficient(a) == 1 for i in addresses)} or set(kernel.spatial)
    operands = [r.index[0] for r in kernel.update_reads if r.index[0].axes]

    def loads(a: Axis) -> bool:
        return all(i.is_affine and i.coefficient(a) in (0, 1) for i in operands)

    if not any(loads(a) and any(i.coefficient(a) for i in operands) for a in unit):
        walked = [i for i in operands if i.axes & set(kernel.reduce)]
        unit |= {a for a in kernel.reduce if loads(a) and all(i.coefficient(a) for i in walked)}
    return unit


def padding(kernel: LoopKernel) -> dict[Axis, tuple[int, int]]:
    """Spatial axis -> how many indices at its lower and at its upper end fail some bounds test.

    Only tests of one spatial axis count (the reduction axes take every value); an axis most of whose indices
    fail is left out.
    """
    found: dict[Axis, tuple[int, int]] = {}
    for axis, below, above in (t for b in tests(kernel) if (t := border(kernel, *b)) is not None):
        low, high = found.get(axis, (0, 0))
        found[axis] = (max(low, below), max(high, above))
    return {a: b for a in kernel.spatial if (b := found.get(a)) is not None and 2 * max(b) < a.extent}


def tests(kernel: LoopKernel) -> list[tuple[Index, int, int]]:
    """The bounds tests (index, least, one past the most) of a kernel's expressions."""
    parts = [s for s in (kernel.update, kernel.epilogue) if s is not None]
    return [b for s in parts for n in walk(s) if isinstance(n, When) for b in n.bounds]


def tested_inputs(kernel: LoopKernel) -> set[int]:
    """The inputs that are read under bounds tests."""
    parts = [s for s in (kernel.update, kernel.epilogue) if s is not None]
    tested = [n.then for s in parts for n in walk(s) if isinstance(n, When)]
    return {r.input for s in tested for r in walk(s) if isinstance(r, (Read, ReadAt))}


def border(kernel: LoopKernel, index: Index, lo: int, hi: int) -> tuple[Axis, int, int] | None:
    """(axis, below, above) of a bounds test of one spatial axis; None for another kind of test."""
    inside = [a for a in kernel.spatial if a in index.axes]
    if len(inside) != 1 or not index.is_affine or (c := index.coefficient(inside[0])) <= 0:
        return None
    axis = inside[0]
    least, most = index.substitute({axis: Index()}).range
    return axis, max(0, -((least - lo) // c)), max(0, axis.extent - 1 - (hi - 1 - most) // c)


def _beside(kernel: LoopKernel, a: Axis, unit: set[Axis]) -> tuple[int, ...]:
    """The numbers of the axes along which an operand is loaded in vectors that change with `a`."""
    return tuple(n for n, v in enumerate(kernel.axes) if any(i.coefficient(a) for i in _loaded(kernel, unit & {v})))


def _loaded(kernel: LoopKernel, unit: set[Axis]) -> list[Index]:
    """The addresses of operands that are loaded in vectors along some axis of `unit`."""
    addresses = [r.index[0] for r in kernel.update_reads]
    return [i for i in addresses if any(i.coefficient(v) == 1 for v in unit)]


def _dtypes(kernel: LoopKernel) -> set[str]:
    out = {kernel.epilogue.dtype, *(t.dtype for t in kernel.inputs)}
    if kernel.update is not None:
        out.add(kernel.update.dtype)
    return out - {"bool"} or {"u8"}


@dataclass
class Block:
    """A block with symbolic extents, as a rule sees it. Conditions accumulate as the rule asks."""

    phase: str
    inside: Size
    vector: Size
    extents: tuple[Size, ...]
    space: Space
    facts: list[str] = field(default_factory=list)
    stage: Size = Size("stage")
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
        self.facts.append(f"(cut stage {a.number} e{a.number} q rest)")
        return Size("q"), Size("rest")

    def border(self, a: LoopAxis) -> Size:
        """f for every useful width of a border that holds the padding at either end of the axis."""
        self.facts.append(f"(border stage {a.number} f)")
        return Size("f")

    def touches(self, bit: int) -> str:
        """The block is not known to keep clear of an end of a padded axis."""
        return (self.inside // (1 << bit) % 2).equals(0)

    def clear_of(self, bit: int) -> Block:
        """The same block, known to keep clear of an end of a padded axis."""
        return replace(self, inside=self.inside + (1 << bit))

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

    def of_stage(self, number: int) -> Block:
        """All of a stage's own axes over this block of the axes that the stages share."""
        s = self.space.parts[number]
        own = tuple(Size(str(a.extent)) for a in s.axes[len(self.extents) :])
        rank = replace(s, parts=self.space.parts)
        return replace(self, extents=self.extents + own, space=rank, stage=Size(str(number)), inside=Size("0"))

    @property
    def text(self) -> str:
        ones = (Size("1"),) * (self.space.rank - len(self.extents))
        extents = " ".join(e.text for e in (*self.extents, *ones))
        phase = PHASES.index(self.phase) + (self.fit.number if self.fit is not None else 0)
        return f"(Block {self.stage.text} {phase} {self.inside.text} {self.vector.text} {extents})"


def For(a: LoopAxis, trips: Size | int, kind: str, body: Block) -> str:
    """A loop over `axis` whose body covers `body`."""
    return f"(For {a.number} {Size.of(trips).text} {KINDS.index(kind)} {body.text})"


def Cat(a: LoopAxis, at: Size, first: Block, second: Block) -> str:
    """The first `at` indices of the axis, then the rest."""
    return f"(Cat {a.number} {at.text} {first.text} {second.text})"


def Store(how: str, body: Block) -> str:
    """How results are stored: a name of `nest.WAYS`."""
    return f"(Store {WAYS.index(how)} {body.text})"


def Tile(a: LoopAxis | None, body: Block) -> str:
    """Results in registers from here inward, vectorised along the axis."""
    return f"(Tile {-1 if a is None else a.number} {body.text})"


def Vec(b: Block, axis: Size | int, lanes: Size | int) -> str:
    """One vector operation. Stage and place of the block are part of it, or congruence would merge different blocks."""
    return f"(Vec stage {b.inside.text} {Size.of(axis).text} {Size.of(lanes).text})"


def Seq(blocks: Sequence[Block]) -> str:
    """Stages one after the other."""
    stages = [f"(Stage {b.stage.text} {b.text})" for b in blocks]
    text = stages.pop()
    while stages:
        text = f"(Seq {stages.pop()} {text})"
    return text


def Intrin(b: Block, lanes: Size | int) -> str:
    """One application of the block's intrinsic, of which so many lanes count."""
    return f"(Intrin stage {b.inside.text} {b.applied.number} {Size.of(lanes).text})"


@dataclass(frozen=True)
class LoopRule:
    """A rule of loop programs: `make(block, axis)` returns the nest (or Block) that the block may also be.

    It is instantiated for each axis that `over` admits (`any`, `spatial`, `contiguous`, `reduced`, `walked`,
    `padded`, or `none`: once, axis None), in each stage of the kernel; over `fitted`, for each `Fit` of an intrinsic;
    over `sequence`, for each order in which all stages may run. In the tensor phase, for each `Fit` besides
    (`block.applied`).
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

    def instances(self, s: Space, guided: bool = False) -> list[str]:
        """The rule as egglog text, one form an axis and stage; `guided`: for blocks that were opened."""
        views = (s,) if self.phase in ("store", "parallel", "ahead") else s.views
        opened = ["(open b)"] if guided and PHASES.index(self.phase) != STRAIGHT else []
        return [text for v in views for text in self._instances_in(v, s, opened)]

    def _instances_in(self, s: Space, whole: Space, opened: list[str]) -> list[str]:
        if not self.when(s):
            return []
        groups: dict[str, Sequence[Any]] = {
            "any": s.axes,
            "spatial": s.spatial,
            "contiguous": [a for a in s.spatial if a.contiguous],
            "reduced": s.reduced,
            "walked": [a for a in s.reduced if a.contiguous],
            "padded": [a for a in s.spatial if a.bit >= 0],
            "fitted": s.fits,
            "sequence": s.sequences,
            "none": (None,),
        }
        seen = replace(s, parts=whole.parts)
        known = [*opened, *([f"(= stage {s.stage})"] if whole.parts else [])]
        fits: Sequence[Fit | None] = s.fits if self.phase == "tensor" else (None,)
        return [self._instance(seen, a, fit, list(known)) for fit in fits for a in groups[self.over]]

    def _instance(self, s: Space, a: Any, fit: Fit | None, known: list[str]) -> str:
        names = tuple(Size(f"e{k}") for k in range(len(s.axes)))
        block = Block(self.phase, Size("i"), Size("v"), names, s, known, fit=fit)
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

    def render(self, s: Space, guided: bool = False) -> EggRule:
        text = "\n".join([f"(ruleset {self.name})", *self.instances(s, guided)])
        return EggRule(self.name, self.kind, self.name, text)


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
            f"(constructor Block (i64 i64 i64 i64 {sizes}) N)",
            "(constructor For (i64 i64 i64 N) N)",
            "(constructor Cat (i64 i64 N N) N)",
            "(constructor Tile (i64 N) N)",
            "(constructor Store (i64 N) N)",
            "(constructor Vec (i64 i64 i64 i64) N)",
            "(constructor Intrin (i64 i64 i64 i64) N)",
            "(constructor Seq (N N) N)",
            "(constructor Stage (i64 N) N)",
            "(relation open (N))",
            "(relation div (i64 i64 i64))",
            "(relation cut (i64 i64 i64 i64 i64))",
            "(relation border (i64 i64 i64))",
        ]
    )
