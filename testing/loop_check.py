"""The property test of a loop rule: its nests visit each point of a block exactly once.

And it keeps the promises that the search and the emitter build on: blocks only shrink or go to a later phase
(the e-graph is acyclic), parallel loops run over results only, register tiles fit the registers, vectors fit
their lanes; stages run in an order that the kernel allows, and what they leave each other fits the scratch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..ir.index import divisors
from ..ir.nest import (
    KINDS,
    PARALLEL,
    WAYS,
    Cat,
    For,
    Intrin,
    Nest,
    Seq,
    Stage,
    Store,
    Tile,
    Vec,
    extents,
    points,
    stages,
    visits,
)
from ..ir.operator import Chooser, Reject
from ..rewrite.loop_egraph import borders, cuts, facts
from ..rewrite.loop_language import ALL, PHASES, Fit, LoopAxis, LoopRule, Space, Window, declarations
from ..rewrite.saturate import Engine
from .choosing import Outcome, Refuted, search

#: Blocks per drawn space, and points per block: the check is exhaustive for each, so they are small.
MAX_BLOCKS, MAX_POINTS = 24, 160

#: How many numbers a constructor of nests takes before its blocks.
NUMBERS = {"For": 3, "Cat": 2, "Tile": 1, "Vec": 4, "Intrin": 4, "Seq": 0, "Stage": 1, "Store": 1}

FULL_EXTENTS = (2, 3, 4, 5, 6, 7, 8, 9, 12, 17, 19, 23)


@dataclass(frozen=True)
class BlockCase:
    """A concrete block: phase (the last: of the space's first intrinsic), ends of padded axes it keeps clear of (bits),
    vector axis (-1: none yet), one extent an axis, the stage it is of."""

    phase: int
    inside: int
    vector: int
    extents: tuple[int, ...]
    stage: int = 0

    def __str__(self) -> str:
        vector = f", vector axis {self.vector}" if self.vector >= 0 else ""
        stage = " of all stages" if self.stage == ALL else ""
        return f"Block[{','.join(map(str, self.extents))}]{stage} in the {PHASES[self.phase]} phase{vector}"

    def term(self, rank: int) -> str:
        ones = (1,) * (rank - len(self.extents))
        numbers = (self.stage, self.phase, self.inside, self.vector, *self.extents, *ones)
        return f"(Block {' '.join(map(str, numbers))})"


@dataclass(frozen=True)
class LoopCase:
    """A schedule space and blocks of it."""

    space: Space
    blocks: tuple[BlockCase, ...]


def check_loop_rule(rule: LoopRule, examples: int, seed: int) -> tuple[Outcome[LoopCase], int]:
    """Search for a block that refutes the rule; with it, the number of blocks on which the rule acted."""
    acted = Counter[str]()

    def test(case: LoopCase) -> None:
        count = _test(rule, case)
        if not count:
            raise Reject
        acted["blocks"] += count

    outcome = search(lambda c: draw_case(c, rule), test, max(8, examples // 3), seed)
    return outcome, acted["blocks"]


# --- drawing -----------------------------------------------------------------------------------------


def draw_space(c: Chooser, fitted: bool = False) -> Space:
    """A schedule space of one to three axes on a small machine, with an intrinsic if wanted."""
    spatial = c.integer(0, 2) if c.integer(0, 5) == 5 else c.integer(1, 2)
    reduced = c.integer(0 if spatial else 1, 3 - spatial if spatial else 1)
    rank = spatial + min(reduced, 2)
    unit = c.integer(0, 2)
    axes = tuple(draw_axis(c, k, k >= spatial, unit != k) for k in range(rank))
    registers = c.pick((4, 8, 16))
    lanes = c.pick((2, 4, 1))
    fits = _draw_fit(c, axes, lanes) if fitted else ()
    blocks, overflows, distant = (bool(c.integer(0, 1)) for _ in range(3))
    budgets = lanes, registers, 8 * registers, c.pick((1, 2))
    windows = (None, Window(rank - 1, spatial - 1)) if 0 < spatial < rank and not fitted else (None,)
    return Space(axes, *budgets, blocks, fits=fits, overflows=overflows, distant=distant, window=c.pick(windows))


def _draw_fit(c: Chooser, axes: tuple[LoopAxis, ...], lanes: int) -> tuple[Fit, ...]:
    """An intrinsic along some axis of the results and one of the reduction."""
    results, reduced = [a.number for a in axes if not a.reduces], [a for a in axes if a.reduces]
    if not results or not reduced:
        raise Reject
    along = c.pick(reduced)
    depth = c.pick([f for f in divisors(along.extent) if f > 1])
    return (Fit(0, "drawn", (c.pick(results), along.number), (lanes, depth)),)


def draw_axis(c: Chooser, number: int, reduces: bool, contiguous: bool) -> LoopAxis:
    extent = c.pick(FULL_EXTENTS if number == 0 else FULL_EXTENTS[:7])
    axis = LoopAxis(number, extent, reduces, contiguous)
    below, above = c.pick(((0, 0), (1, 1), (1, 0), (0, 1), (2, 1)))
    if reduces:
        return replace(axis, part=c.integer(0, extent - 1))
    padded = 2 * max(below, above) < extent and below + above > 0
    return replace(axis, below=below, above=above, bit=2 * number) if padded else axis


def draw_staged_space(c: Chooser) -> Space:
    """A space of two or three stages that share none to two axes."""
    whole = draw_space(c)
    plain = {"contiguous": False, "beside": (), "below": 0, "above": 0, "bit": -1}  # as `loop_language` makes them
    shared = tuple(replace(a, **plain) for a in whole.spatial[: c.integer(0, 2)])
    parts = []
    for n in range(c.integer(2, 3)):
        own, reduced = c.integer(0, 1), c.integer(0, 1)
        extra = tuple(
            LoopAxis(len(shared) + d, c.pick(FULL_EXTENTS[:7]), d >= own, True) for d in range(own + reduced)
        )
        parts.append(replace(whole, axes=shared + extra, stage=n, window=None))
    order = tuple(range(len(parts)))
    sequences = tuple((q, c.pick((4, 8, 40))) for q in (order, order[::-1])[: c.integer(1, 2)])
    scratch = c.pick((40, 64, 1024))
    return replace(
        whole, axes=shared, stage=ALL, parts=tuple(parts), sequences=sequences, scratch=scratch, blocks_reduction=False
    )


def draw_case(c: Chooser, rule: LoopRule) -> LoopCase:
    fitted = rule.phase == "tensor" or rule.over == "fitted"
    s = draw_staged_space(c) if rule.over == "sequence" else draw_space(c, fitted)
    try:
        acts = rule.when(s)
    except Exception as e:
        raise Refuted(f"{space_text(s)}\nthe condition raises {type(e).__name__}: {e}") from None
    if not acts:
        raise Reject
    phase = PHASES.index(rule.phase)
    vectors = [a.number for a in s.axes if a.contiguous or not a.reduces] if phase >= PHASES.index("tile") else []
    shapes = [e for e in product(*(_options(a, s) for a in s.axes)) if _size(e) <= MAX_POINTS]
    if rule.phase == "tensor":  # whose blocks are whole applications
        (fit,) = s.fits
        vectors = [fit.vector]
        shapes = [e for e in shapes if all(e[a.number] % fit.step(a) == 0 for a in s.axes)]
    known = [0, *(1 << a.bit for a in s.axes if a.bit >= 0)]
    blocks = [BlockCase(phase, i, v, e, s.stage) for e in shapes for v in vectors or [-1] for i in known]
    start = c.integer(0, max(0, len(blocks) // MAX_BLOCKS))
    return LoopCase(s, tuple(blocks[start :: max(1, len(blocks) // MAX_BLOCKS)]))


def _options(a: LoopAxis, s: Space) -> list[int]:
    """Extents that a block of the axis may have: its factors, and those of the pieces it is cut into."""
    places = cuts(a.extent, s.lanes, a)
    pieces = {x for q in places for x in (q, a.extent - q)}
    if a.bit >= 0:
        pieces |= {x for f in borders(a, coarse=False) for x in (f, a.extent - f, a.extent - 2 * f)}
    return sorted({f for n in (a.extent, *pieces) for f in divisors(n)})


def _size(extents: tuple[int, ...]) -> int:
    n = 1
    for e in extents:
        n *= e
    return n


# --- running one step of egglog ----------------------------------------------------------------------


def _test(rule: LoopRule, case: LoopCase) -> int:
    """The number of blocks on which the rule acted. Raises `Refuted` with the smallest it gets wrong."""
    found = step(rule, case)
    acted = 0
    wrong: list[tuple[int, BlockCase, str]] = []
    for block, made in found.items():
        acted += bool(made)
        for m in made:
            fault = m.fault(case.space, block)
            if fault:
                wrong.append((_size(block.extents), block, f"{m}: {fault}"))
    if wrong:
        _, block, text = min(wrong, key=lambda w: (w[0], w[1].extents))
        raise Refuted(f"{space_text(case.space)}\n{block}\n-> {text}")
    return acted


def step(rule: LoopRule, case: LoopCase) -> dict[BlockCase, list[Made]]:
    """What one application of the rule equates each block with."""
    rank = case.space.rank
    engine = Engine()
    lets = [f"(let $b{k} {b.term(rank)})" for k, b in enumerate(case.blocks)]
    try:
        engine.load(declarations(rank), rule.render(case.space).text, facts(case.space), *lets)
        engine.run(f"(run-schedule (run {rule.name}))")
    except Exception as e:
        raise Refuted(f"{space_text(case.space)}\nthe rule fails: {e}") from None
    return _Reader(engine, case.space).made(case.blocks)


@dataclass(frozen=True)
class Made:
    """What a rule equates a block with: `nest` has the child blocks filled with plain loops.

    Not `is_nest`: just another block, of another phase.
    """

    nest: Nest
    children: tuple[BlockCase, ...]
    is_nest: bool = True

    def __str__(self) -> str:
        n, inner = self.nest, ", ".join(f"[{','.join(map(str, b.extents))}]" for b in self.children)
        if isinstance(n, Seq):
            return f"Seq(stages {', '.join(str(s.number) for s in stages(n))}, Blocks {inner})"
        if isinstance(n, Stage):
            return f"Stage({n.number}, Block{inner})"
        if isinstance(n, Vec):
            return f"Vec(axis {n.axis}, {n.lanes} lanes)"
        if isinstance(n, Intrin):
            return f"Intrin(axes {list(n.axes)}, extents {list(n.sizes)})"
        if not self.is_nest:
            return f"Block{inner} in the {PHASES[self.children[0].phase]} phase"
        if isinstance(n, Store):
            return f"Store({n.how}, Block{inner})"
        if isinstance(n, Tile):
            return f"Tile(vector axis {n.vector}, Block{inner})"
        if isinstance(n, Cat):
            return f"Cat(axis {n.axis} at {n.at}, Blocks {inner})"
        return f"For(axis {n.axis}, {n.trips} trips, {n.kind}, Block{inner})"

    def fault(self, s: Space, block: BlockCase) -> str:
        """What is wrong with it as a way to fill the block; empty if nothing is."""
        return _coverage(self.nest, s, block) or _progress(self.children, block) or _promises(self, s, block)


class _Reader:
    """The blocks and nests of an e-graph, as values."""

    def __init__(self, engine: Engine, space: Space) -> None:
        self._egraph = engine.egraph
        self._tables = {name: f.rows for name, f in engine.egraph.freeze().functions.items()}
        self._blocks: dict[Any, list[BlockCase]] = {}
        ranks = {v.stage: len(v.axes) for v in space.views}
        for row in self._tables["Block"]:
            stage, phase, inside, vector, *extents = self._ints(row.inputs)
            found = BlockCase(phase, inside, vector, tuple(extents[: ranks[stage]]), stage)
            self._blocks.setdefault(row.output, []).append(found)
        self._fits = space.fits

    def _ints(self, values: Any) -> list[int]:
        return [self._egraph.value_to_i64(v) for v in values]

    def made(self, blocks: tuple[BlockCase, ...]) -> dict[BlockCase, list[Made]]:
        out: dict[BlockCase, list[Made]] = {}
        for k, b in enumerate(blocks):
            owner = self._tables[f"$b{k}"][0].output
            others = [o for o in self._blocks[owner] if o != b]
            out[b] = [Made(plain(o.extents), (o,), False) for o in others] + list(self._nests(owner))
        return out

    def _nests(self, owner: Any) -> Iterator[Made]:
        rows = [(name, r) for name in NUMBERS for r in self._tables[name] if r.output == owner]
        for name, row in rows:
            numbers = self._ints(row.inputs[: NUMBERS[name]])
            if name == "Intrin":
                fit = self._fits[numbers[2]]
                yield Made(Intrin(fit.name, fit.axes, (numbers[3], *fit.sizes[1:])), ())
                continue
            for parts in product(*(list(self._fillings(v)) for v in row.inputs[NUMBERS[name] :])):
                yield Made(_nest(name, numbers, [n for n, _ in parts]), tuple(b for _, bs in parts for b in bs))

    def _fillings(self, owner: Any) -> Iterator[tuple[Nest, tuple[BlockCase, ...]]]:
        """A block filled with plain loops; of what is no block (a stage, stages in order), what it is made of."""
        for b in self._blocks.get(owner, ()):
            yield plain(b.extents), (b,)
        if owner not in self._blocks:
            for made in self._nests(owner):
                yield made.nest, made.children


def _nest(name: str, n: list[int], inner: list[Nest]) -> Nest:
    build: dict[str, Callable[[], Nest]] = {
        "For": lambda: For(n[0], n[1], KINDS[n[2]], inner[0]),
        "Cat": lambda: Cat(n[0], n[1], inner[0], inner[1]),
        "Tile": lambda: Tile(n[0], inner[0]),
        "Vec": lambda: Vec(n[2], n[3]),
        "Seq": lambda: Seq(inner[0], inner[1]),
        "Stage": lambda: Stage(n[0], inner[0]),
        "Store": lambda: Store(WAYS[n[0]], inner[0]),
    }
    return build[name]()


def plain(extents: tuple[int, ...]) -> Nest:
    """One loop an axis around single points: the simplest nest that covers a block."""
    nest: Nest = Vec(-1, 1)
    for a in reversed(range(len(extents))):
        nest = For(a, extents[a], "serial", nest)
    return nest


# --- what can be wrong -------------------------------------------------------------------------------


def _coverage(nest: Nest, s: Space, block: BlockCase) -> str:
    if stages(nest):
        return _stages_coverage(nest, s, block)
    return _exact(Counter(points(nest, len(block.extents))), block.extents)


def _stages_coverage(nest: Nest, s: Space, block: BlockCase) -> str:
    """Each stage visits its points over the block once, and after the stages before it."""
    visited = list(visits(nest, [len(v.axes) for v in s.parts], len(s.axes)))
    order = tuple(dict.fromkeys(n for n, _ in visited))
    if [n for n, _ in visited] != sorted((n for n, _ in visited), key=order.index):
        return "returns to a stage after another one has begun"
    if order not in [q for q, _ in s.sequences]:
        return f"runs stages {order}, which the kernel does not allow"
    for n in order:
        own = tuple(a.extent for a in s.parts[n].axes[len(s.axes) :])
        fault = _exact(Counter(p for m, p in visited if m == n), block.extents + own)
        if fault:
            return f"stage {n} {fault}"
    return ""


def _exact(visits: Counter[tuple[int, ...]], extents: tuple[int, ...]) -> str:
    wanted = set(product(*(range(e) for e in extents)))
    for p in sorted(wanted | set(visits)):
        if p not in wanted:
            return f"visits {list(p)}, which is outside the block"
        if visits[p] != 1:
            return f"visits {list(p)} {visits[p]} times"
    return ""


def _progress(children: tuple[BlockCase, ...], block: BlockCase) -> str:
    for child in children:
        if child.stage != block.stage:  # from all stages to one there is no way back
            continue
        smaller = child.extents != block.extents and all(
            x <= y for x, y in zip(child.extents, block.extents, strict=True)
        )
        if child.phase < block.phase:
            return "goes back to an earlier phase"
        if child.phase == block.phase and not smaller:
            return "the inner block is not smaller: the e-graph would have a cycle"
    return ""


def _promises(made: Made, s: Space, block: BlockCase) -> str:
    n, spatial = made.nest, {a.number for a in s.spatial}
    for number, child in enumerate(made.children):
        for a in s.axes:
            if a.bit >= 0 and (end := _unjustified(n, number, child.inside & ~block.inside, a)):
                return f"claims that a block keeps clear of the {end} end of axis {a.number}, which it may touch"
    if not made.is_nest:
        return ""
    if isinstance(n, Seq):
        order = tuple(x.number for x in stages(n))
        need = _size(block.extents) * dict(s.sequences)[order]
        return f"needs {need} bytes of scratch of {s.scratch}" if need > s.scratch else ""
    if isinstance(n, For) and n.kind == PARALLEL and n.axis not in spatial:
        return f"runs axis {n.axis} in parallel, which reduces: its results would race"
    if isinstance(n, (Tile, Vec)):
        axis = n.vector if isinstance(n, Tile) else n.axis
        walked = {a.number for a in s.reduced if a.contiguous}
        if axis not in spatial | walked and (spatial or axis != -1):
            return f"puts vectors along axis {axis}, which is neither an axis of the result nor walked by all operands"
    if isinstance(n, Intrin) and n.sizes[0] > s.fits[0].lanes:
        return f"{n.sizes[0]} lanes of an intrinsic that has {s.fits[0].lanes}"
    if isinstance(n, Vec) and n.lanes > s.lanes:
        return f"a vector of {n.lanes} lanes where registers have {s.lanes}"
    if isinstance(n, Tile):
        need = registers_of(s, block.extents, n.vector)
        return f"needs {need} registers of {s.registers}" if need > s.registers else ""
    return ""


def _unjustified(n: Nest, number: int, gained: int, a: LoopAxis) -> str:
    """Which end of an axis child `number` of a nest claims to keep clear of without a reason."""
    cut = n if isinstance(n, Cat) and n.axis == a.number else None
    if gained >> a.bit & 1 and not (cut and number == 1 and cut.at >= a.below):
        return "lower"
    rank = a.number + 1
    if gained >> a.bit + 1 & 1 and not (cut and number == 0 and extents(cut.second, rank)[a.number] >= a.above):
        return "upper"
    return ""


def registers_of(s: Space, extents: tuple[int, ...], vector: int) -> int:
    """Vector registers of a tile: one a result, a row of the vectorised operand, a broadcast element."""
    if vector >= len(s.spatial):
        return _size(tuple(extents[a.number] for a in s.spatial)) + 2
    vectors = -(-extents[vector] // s.lanes) if vector >= 0 else 1
    others = _size(tuple(extents[a.number] for a in s.spatial if a.number != vector))
    return others * vectors + vectors + 1


def space_text(s: Space) -> str:
    axes = ", ".join(
        f"{a.number}: {a.extent}{' reduces' if a.reduces else ''}{' contiguous' if a.contiguous else ''}"
        for a in s.axes
    )
    return f"axes {{{axes}}}, {s.lanes} lanes, {s.registers} registers, {s.threads} threads"
