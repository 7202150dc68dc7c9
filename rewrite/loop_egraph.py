"""A kernel's schedules as an e-graph: saturated by the loop rules, read back once as flat arrays.

E-classes are the blocks still to be filled; e-nodes say what to do next. The arrays are in topological order of
levels (children first), so that extraction is a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np

from ..ir.errors import NesteggError
from ..ir.index import divisors
from ..ir.loops import Lowered
from ..ir.nest import KINDS, WAYS, Cat, For, Intrin, Nest, Seq, Stage, Store, Tile, Vec
from ..ir.target import Target
from .guided import Guide, saturate_guided
from .loop_language import ALL, PHASES, STRAIGHT, LoopAxis, LoopRule, Space, declarations, space
from .loop_rules import LOOP_RULES
from .rule import distinct
from .saturate import Engine, Limits, SaturationReport, saturate

LOOP_LIMITS = Limits(nodes=500_000, iterations=64, seconds=30.0)

#: E-nodes at most of a space that is saturated the best blocks first, because the whole does not fit its limits: more
#: seldom have a better nest (docs/cost-model.md), and each look at the e-graph takes longer.
GUIDED = 20_000

#: Widest border cut off a padded axis for its tests' sake.
BORDER_TILE = 14

#: Largest tile of an axis in a coarse space.
COARSE_TILE = 16

FOR, CAT, TILE, VEC, SEQ, STAGE, INTRIN, STORE, UNOPENED = range(9)
#: Columns of an e-node's row: after its class and operation, as the fields of `LoopEGraph`.
AXIS, COUNT, KIND, CHILD, OTHER = range(2, 7)
COLUMNS = 7
#: The arguments of a leaf's constructor have `Block.inside` here, which is the class's and no column (-1).
INSIDE = 1
#: Of every constructor its operation, and the column of each argument.
CONSTRUCTORS = {
    "For": (FOR, (AXIS, COUNT, KIND, CHILD)),
    "Cat": (CAT, (AXIS, COUNT, CHILD, OTHER)),
    "Tile": (TILE, (AXIS, CHILD)),
    "Vec": (VEC, (KIND, -1, AXIS, COUNT)),
    "Intrin": (INTRIN, (KIND, -1, AXIS, COUNT)),
    "Store": (STORE, (KIND, CHILD)),
    "Stage": (STAGE, (KIND, CHILD)),
    "Seq": (SEQ, (CHILD, OTHER)),
}
#: E-nodes without children that nests end in.
LEAVES = (VEC, INTRIN)
#: All e-nodes without children: while a guided saturation goes on, also the blocks that it has not opened.
TIPS = (*LEAVES, UNOPENED)


@dataclass(frozen=True)
class LoopEGraph:
    """The saturated e-graph of one kernel's schedules.

    Per e-class: `entered` (a loop or a tile leads to it, so straight-line code may begin there), `domain` (extents,
    one column an axis of its stage), `inside` (`Block.inside` of the vector operations below: the ends of padded axes
    that they keep clear of), `stage` (ALL where all stages are to come), `level` (children have lower ones).
    Per e-node: `owner` (its class), `op` (FOR, CAT, TILE, VEC, SEQ, STAGE, INTRIN, STORE), `axis` (of an INTRIN: its
    number in the `fits` of its stage), `count` (trips, cut or lanes), `kind` (number in `nest.KINDS`; of a leaf or a
    STAGE, the stage's; of a STORE, number in `nest.WAYS`), `child`, `other` (classes; -1 where there is none). E-nodes
    are sorted by level of owner.

    What a `Guide` is shown has e-nodes of one more kind: UNOPENED, a block that rules have not been applied to (`axis`:
    its vector axis, `count`: its phase, `kind`: its stage).
    """

    kernel: Lowered
    space: Space
    root: int
    entered: np.ndarray
    domain: np.ndarray
    inside: np.ndarray
    stage: np.ndarray
    level: np.ndarray
    owner: np.ndarray
    op: np.ndarray
    axis: np.ndarray
    count: np.ndarray
    kind: np.ndarray
    child: np.ndarray
    other: np.ndarray
    report: SaturationReport

    @property
    def enodes(self) -> int:
        return len(self.owner)

    @cached_property
    def by_class(self) -> list[np.ndarray]:
        order = np.argsort(self.owner, kind="stable")
        bounds = np.searchsorted(self.owner[order], np.arange(len(self.level) + 1))
        return [order[bounds[c] : bounds[c + 1]] for c in range(len(self.level))]

    @cached_property
    def programs(self) -> list[int]:
        """Number of distinct nests of each e-class (exact)."""
        count = [0] * len(self.level)
        for n in range(self.enodes):
            op = self.op[n]
            ways = int(op in LEAVES) if op in TIPS else count[self.child[n]]
            if self.other[n] >= 0:
                ways *= count[self.other[n]]
            count[self.owner[n]] += ways
        return count

    @cached_property
    def size(self) -> float:
        """Number of distinct nests of the whole kernel, in floating point (exact up to 2**53)."""
        count = np.zeros(len(self.level))
        bounds = np.searchsorted(self.level[self.owner], np.arange(self.level.max(initial=0) + 2))
        for lo, hi in zip(bounds[:-1], bounds[1:], strict=True):
            child, other = self.child[lo:hi], self.other[lo:hi]
            ways = np.where(child >= 0, count[child], 1.0) * np.where(other >= 0, count[other], 1.0)
            ways[self.op[lo:hi] == UNOPENED] = 0.0
            np.add.at(count, self.owner[lo:hi], ways)
        return float(count[self.root])

    def sample(self, rng: np.random.Generator) -> Nest | None:
        """A nest drawn uniformly from all that the e-graph holds; None if it holds none."""
        count = self.programs
        if not count[self.root]:
            return None

        def draw(c: int) -> Nest:
            pick = _randrange(rng, count[c])
            for n in self.by_class[c]:
                child, other = int(self.child[n]), int(self.other[n])
                ways = 1 if child < 0 else count[child] * (count[other] if other >= 0 else 1)
                if pick < ways:
                    return self.node(int(n), draw)
                pick -= ways
            raise AssertionError("counts of programs do not add up")

        return draw(self.root)

    def node(self, n: int, of: Any) -> Nest:
        """E-node n as a nest; `of(class)` gives the nests of its children."""
        op, axis, count = int(self.op[n]), int(self.axis[n]), int(self.count[n])
        if op == VEC:
            return Vec(axis, count)
        if op == INTRIN:
            fit = self.space.of_stage(int(self.kind[n])).fits[axis]
            return Intrin(fit.name, fit.axes, (count, *fit.sizes[1:]))
        if op == TILE:
            return Tile(axis, of(int(self.child[n])))
        if op == CAT:
            return Cat(axis, count, of(int(self.child[n])), of(int(self.other[n])))
        if op == SEQ:
            return Seq(of(int(self.child[n])), of(int(self.other[n])))
        if op == STORE:
            return Store(WAYS[self.kind[n]], of(int(self.child[n])))
        if op == STAGE:
            return Stage(int(self.kind[n]), of(int(self.child[n])))
        return For(axis, count, KINDS[self.kind[n]], of(int(self.child[n])))


def _randrange(rng: np.random.Generator, n: int) -> int:
    """Uniform in 0..n-1 for integers of any size."""
    bits = n.bit_length()
    while True:
        words = rng.integers(0, 1 << 32, size=bits // 32 + 1, dtype=np.uint64)
        value = 0
        for w in words:
            value = value << 32 | int(w)
        value >>= 32 * len(words) - bits
        if value < n:
            return value


def cuts(n: int, lanes: int, a: LoopAxis) -> list[int]:
    """Places at which to cut an extent without good factors: after the last whole vector, or the last whole tile; and
    what is cut off an axis of a long sum."""
    whole_vectors = not a.contiguous or n <= lanes or n % lanes == 0
    good_rows = a.reduces or n <= 14 or any(n % f == 0 for f in (4, 6, 7, 8, 9, 10, 12, 14))
    places = {a.part} if n == a.extent else set()
    places |= set() if whole_vectors else {n - n % (lanes * k) for k in (1, 2, 3, 4)}
    if not good_rows:
        places |= {n - n % k for k in (6, 8, 14)}
    return sorted(p for p in places if 0 < p < n)


def factors(n: int, coarse: bool, chain: int = 0) -> list[int]:
    """Sizes that a block of extent n may be peeled to: every proper divisor, or only 1, a tile's worth, and that of a
    sum of so many terms."""
    proper = [f for f in divisors(n) if f < n]
    if not coarse or not proper:
        return proper
    return sorted({max(f for f in proper if f <= most) for most in (1, COARSE_TILE, max(chain, 1))})


def borders(a: LoopAxis, coarse: bool) -> list[int]:
    """Widths of the border to cut off a padded axis: the least, and a tile's worth that divides the extent; in a coarse
    space none."""
    least = max(a.below, a.above)
    tiles = [f for f in divisors(a.extent) if least < f <= BORDER_TILE and 2 * f < a.extent]
    return [] if coarse else sorted({least, *tiles[-1:]})


def facts(s: Space, coarse: bool = False) -> str:
    """The relations `div` (useful factors), `cut` and `border` of every extent that can occur."""
    lines: list[str] = []
    extents: set[int] = set()
    chain = max(v.chain for v in s.views)
    for stage, a in ((v.stage, a) for v in s.views for a in v.axes):
        todo, seen = [a.extent], set()
        for f in borders(a, coarse) if a.bit >= 0 else ():
            lines.append(f"(border {stage} {a.number} {f})")
            todo += [f, a.extent - f, a.extent - 2 * f]
        while todo:
            n = todo.pop()
            if n in seen:
                continue
            seen.add(n)
            if n == a.extent or n > s.lanes:
                places = cuts(n, s.lanes, a) if n == a.extent or n < 4 * s.lanes else []
                lines += [f"(cut {stage} {a.number} {n} {q} {n - q})" for q in places]
                todo += [x for q in places for x in (q, n - q)]
            todo += divisors(n)
        extents |= seen
    lines += [f"(div {n} {f} {n // f})" for n in sorted(extents) for f in factors(n, coarse, chain)]
    return "\n".join(lines)


def build(
    kernel: Lowered,
    target: Target,
    threads: int = 1,
    rules: Sequence[LoopRule] = LOOP_RULES,
    limits: Limits = LOOP_LIMITS,
    guide: Guide | None = None,
) -> LoopEGraph:
    """Saturate the schedules of a kernel.

    If a limit stops it, the space is built again: the best blocks first, if there is a `guide`, with `GUIDED` e-nodes
    at most; and from few factors an axis, under the default limits, if no nest is complete. With a guide it is the one
    of these spaces whose best nest is predicted to be the fastest. If there is none at all, long sums are not cut. The
    report names the limit that was hit in any case.
    """
    egraph = _build(kernel, target, threads, rules, limits)
    stopped_by = egraph.report.stopped_by
    if stopped_by == "saturated":
        return egraph
    coarse = partial(_build, kernel, target, threads, rules, LOOP_LIMITS, coarse=True)
    if guide is not None:
        fewer = replace(limits, nodes=min(limits.nodes, GUIDED))
        egraph = min(build_guided(kernel, target, guide, threads, rules, fewer), coarse(), key=guide.seconds)
    elif not egraph.size:
        egraph = coarse()
    if not egraph.size:
        egraph = coarse(whole_sums=True)
    egraph.report.stopped_by = stopped_by
    return egraph


def build_guided(
    kernel: Lowered,
    target: Target,
    guide: Guide,
    threads: int = 1,
    rules: Sequence[LoopRule] = LOOP_RULES,
    limits: Limits = LOOP_LIMITS,
) -> LoopEGraph:
    """Saturate the schedules of a kernel, the best blocks first: of what a limit cuts off, the best is there."""
    return _build(kernel, target, threads, rules, limits, guide=guide)


def _build(
    kernel: Lowered,
    target: Target,
    threads: int,
    rules: Sequence[LoopRule],
    limits: Limits,
    coarse: bool = False,
    guide: Guide | None = None,
    whole_sums: bool = False,
) -> LoopEGraph:
    s = space(kernel, target, threads)
    if whole_sums:
        s = replace(s, chain=0, blocks_reduction=False)
    engine, guided = Engine(), guide is not None
    phases: list[list[Any]] = [
        [r.render(s, guided) for r in distinct(rules) if r.phase == p and r.instances(s)] for p in PHASES
    ]
    engine.load(declarations(s.rank), *(r.text for p in phases for r in p), facts(s, coarse))
    extents = [a.extent for a in s.axes] + [1] * (s.rank - len(s.axes))
    engine.run(f"(let $root (Block {s.stage} {PHASES.index(s.first_phase)} 0 -1 {' '.join(map(str, extents))}))")
    counted = ("Block", *CONSTRUCTORS)
    if guide is None:
        report = saturate(engine, phases, limits, counted=counted)
    else:
        read = partial(_read_back, kernel, s, engine, unopened=True)
        report = saturate_guided(engine, phases, limits, guide, read, counted)
    return _read_back(kernel, s, engine, report)


def _read_back(
    kernel: Lowered, s: Space, engine: Engine, report: SaturationReport, unopened: bool = False
) -> LoopEGraph:
    """The e-nodes as arrays. Blocks themselves are not read, as their domains follow from the nests that fill them;
    those that wait to be opened are, if wanted (`unopened`)."""
    egraph = engine.egraph
    tables = {name: f.rows for name, f in egraph.freeze().functions.items()}
    number, of = _Memo(egraph.value_to_i64), _Memo(lambda value: len(of))
    root = of[tables["$root"][0].output]
    parts = [_columns(name, tables[name], number, of) for name in CONSTRUCTORS]
    leaves = [r for name in ("Vec", "Intrin") for r in tables[name]]
    known = {of[r.output]: number[r.inputs[INSIDE]] for r in leaves}
    blocks: dict[int, tuple[int, ...]] = {}
    if unopened:
        opened = {of[r.inputs[0]] for r in tables["open"]}
        waiting: list[tuple[int, ...]] = []
        for r in tables["Block"]:
            c, (stage, phase, inside, vector, *extents) = of[r.output], r.inputs
            if c not in opened and c not in blocks and number[phase] != STRAIGHT:
                waiting.append((c, UNOPENED, number[vector], number[phase], number[stage], -1, -1))
                known[c], blocks[c] = number[inside], tuple(number[e] for e in extents)
        parts.append(np.array(waiting, np.int64).reshape(len(waiting), COLUMNS))
    return _assembled(kernel, s, np.concatenate(parts), len(of), root, known, report, blocks)


def _columns(name: str, rows: Sequence[Any], number: Mapping[Any, int], of: Mapping[Any, int]) -> np.ndarray:
    """The rows of a constructor's table as e-nodes: a column for each of the fields of `LoopEGraph`."""
    op, fields = CONSTRUCTORS[name]
    nodes = np.full((len(rows), COLUMNS), -1, np.int64)
    nodes[:, 0] = np.fromiter(map(of.__getitem__, map(attrgetter("output"), rows)), np.int64, len(rows))
    nodes[:, 1] = op
    cells = list(chain.from_iterable(map(attrgetter("inputs"), rows)))
    for k, field in enumerate(fields):
        if field >= 0:
            meaning = of if field in (CHILD, OTHER) else number
            nodes[:, field] = np.fromiter(map(meaning.__getitem__, cells[k :: len(fields)]), np.int64, len(rows))
    return nodes


def of_nests(
    kernel: Lowered, target: Target, threads: int, nests: Sequence[Nest]
) -> tuple[LoopEGraph, np.ndarray]:
    """An e-graph of just these nests of the kernel, one e-node an e-class, and the e-class of each nest.

    Raises `NesteggError` if a nest applies an intrinsic that the target lacks.
    """
    s = space(kernel, target, threads)
    table = _NestTable(s)
    whole = tuple((0, a.extent) for a in s.axes)
    roots = [table.add(n, s.stage, whole) for n in nests]
    report = SaturationReport()
    rows = np.array(table.rows, np.int64).reshape(len(table.rows), COLUMNS)
    egraph = _assembled(kernel, s, rows, len(rows), roots[0] if roots else 0, table.inside, report)
    return egraph, np.array(roots, np.int64)


class _NestTable:
    """Nests as rows of e-nodes. Equal parts over places that meet the same ends of padded axes are one row."""

    def __init__(self, s: Space) -> None:
        self.space = s
        self.rows: list[tuple[int, ...]] = []
        self.inside: dict[int, int] = {}
        self._known: dict[tuple[object, ...], int] = {}

    def add(self, n: Nest, stage: int, place: tuple[tuple[int, int], ...]) -> int:
        """The class of a nest over `place`: from where to where it goes along every axis."""
        if isinstance(n, Seq):
            return self._row(SEQ, -1, -1, -1, self.add(n.first, stage, place), self.add(n.second, stage, place))
        if isinstance(n, Store):
            return self._row(STORE, -1, -1, WAYS.index(n.how), self.add(n.body, stage, place), -1)
        if isinstance(n, Stage):
            axes = self.space.of_stage(n.number).axes
            body = self.add(n.body, n.number, tuple((0, a.extent) for a in axes))
            return self._row(STAGE, -1, -1, n.number, body, -1)
        if isinstance(n, Cat):
            lo, hi = place[n.axis]
            first, second = (
                self.add(part, stage, (*place[: n.axis], end, *place[n.axis + 1 :]))
                for part, end in ((n.first, (lo, lo + n.at)), (n.second, (lo + n.at, hi)))
            )
            return self._row(CAT, n.axis, n.at, -1, first, second)
        if isinstance(n, Tile):
            return self._row(TILE, n.vector, -1, -1, self.add(n.body, stage, place), -1)
        if isinstance(n, For):
            return self._row(FOR, n.axis, n.trips, KINDS.index(n.kind), self.add(n.body, stage, place), -1)
        clear = self._clear_ends(stage, place)
        made = self._row(VEC, n.axis, n.lanes, stage, -1, -1, clear) if isinstance(n, Vec) else self._row(
            INTRIN, self._fit(n, stage), n.sizes[0], stage, -1, -1, clear
        )  # fmt: skip
        self.inside[made] = clear
        return made

    def _row(self, *cells: int) -> int:
        if cells not in self._known:
            self._known[cells] = len(self.rows)
            self.rows.append((len(self.rows), *cells[:6]))
        return self._known[cells]

    def _clear_ends(self, stage: int, place: tuple[tuple[int, int], ...]) -> int:
        clear = 0
        for a, (lo, hi) in zip(self.space.of_stage(stage).axes, place, strict=True):
            if a.bit >= 0:
                clear |= (int(lo >= a.below) | int(hi <= a.extent - a.above) << 1) << a.bit
        return clear

    def _fit(self, n: Intrin, stage: int) -> int:
        for f in self.space.of_stage(stage).fits:
            if (f.name, tuple(f.axes)) == (n.name, tuple(n.axes)):
                return f.number
        raise NesteggError(f"nest applies {n.name} over axes {n.axes}, which the target or the kernel does not have")


NO_BLOCKS: Mapping[int, tuple[int, ...]] = MappingProxyType({})


def _assembled(
    kernel: Lowered,
    s: Space,
    nodes: np.ndarray,
    classes: int,
    root: int,
    known: dict[int, int],
    report: SaturationReport,
    blocks: Mapping[int, tuple[int, ...]] = NO_BLOCKS,
) -> LoopEGraph:
    """Rows (owner, op, axis, count, kind, child, other) as a `LoopEGraph`, children first. `known`: `inside` of the
    tips; `blocks`: extents of those that were not opened."""
    level = _levels(nodes, classes)
    nodes = nodes[np.argsort(level[nodes[:, 0]], kind="stable")]
    nodes, domain, stage = _fillable(nodes, level, classes, s, blocks)
    inside = _inside(nodes, level, classes, known)
    owner, op, axis, count, kind, child, other = (np.ascontiguousarray(nodes[:, k]) for k in range(COLUMNS))
    straight = _in_registers(nodes, classes)
    return LoopEGraph(
        kernel, s, root, straight, domain, inside, stage, level, owner, op, axis, count, kind, child, other, report
    )


class _Memo(dict[Any, int]):
    """A number for each value, made when first asked for (lookups stay in C: e-graphs have 10**5 rows)."""

    def __init__(self, make: Callable[[Any], int]) -> None:
        self.make = make

    def __missing__(self, value: Any) -> int:
        made = self[value] = self.make(value)
        return made


def _fillable(
    nodes: np.ndarray, level: np.ndarray, classes: int, s: Space, blocks: Mapping[int, tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The e-nodes that complete nests are made of, and every class's domain and stage, level by level from the
    leaves."""
    rank, shared = s.rank, len(s.axes)
    domain, stage = np.zeros((classes, rank), np.int64), np.full(classes, s.stage)
    whole = np.ones((classes, rank), np.int64)
    whole[list(blocks)] = list(blocks.values()) if rank and blocks else 1
    filled = np.zeros(classes, bool)
    kept: list[np.ndarray] = []
    bounds = np.searchsorted(level[nodes[:, 0]], np.arange(level.max(initial=0) + 2))
    for lo, hi in zip(bounds[:-1], bounds[1:], strict=True):
        part = nodes[lo:hi]
        op, child, other = (part[:, k] for k in (1, 5, 6))
        part = part[np.isin(op, TIPS) | (filled[child] & ((other < 0) | filled[other]))]
        owner, op, axis, count, kind, child, other = (part[:, k] for k in range(COLUMNS))
        leaf = np.isin(op, TIPS)
        shape = np.where(leaf[:, None], whole[owner], domain[child])
        axis = np.where((op == INTRIN) | (op == UNOPENED), -1, axis)
        at = np.arange(len(part))
        if rank:
            here = shape[at, axis]
            here = np.where(leaf, count, here)
            here = np.where(op == FOR, here * count, here)
            here = np.where(op == CAT, here + domain[other, axis], here)
            shape[at, axis] = np.where(axis >= 0, here, shape[at, axis])
            shape[op == STAGE, shared:] = 1
            _cover_applications(shape, part, s)
        domain[owner], filled[owner] = shape, True
        stage[owner] = np.where(leaf, kind, np.where(op == STAGE, ALL, stage[child]))
        kept.append(part)
    return np.concatenate(kept) if kept else nodes, domain, stage


def _cover_applications(shape: np.ndarray, nodes: np.ndarray, s: Space) -> None:
    """The domains of the nodes that are intrinsics: so many lanes, and what each lane reduces."""
    for k in np.flatnonzero(nodes[:, 1] == INTRIN):
        fit = s.of_stage(int(nodes[k, 4])).fits[nodes[k, 2]]
        shape[k] = 1
        shape[k, list(fit.axes)] = (nodes[k, 3], *fit.sizes[1:])


def _inside(nodes: np.ndarray, level: np.ndarray, classes: int, known: dict[int, int]) -> np.ndarray:
    """What is known of every class's place: what all vector operations below know."""
    inside = np.zeros(classes, np.int64)
    inside[list(known)] = list(known.values())
    bounds = np.searchsorted(level[nodes[:, 0]], np.arange(level.max(initial=0) + 2))
    for lo, hi in zip(bounds[:-1], bounds[1:], strict=True):
        owner, op, child, other = (nodes[lo:hi, k] for k in (0, 1, 5, 6))
        below = inside[child] & np.where(other >= 0, inside[other], inside[child])
        above = ~np.isin(op, TIPS)
        inside[owner[above]] = below[above]
    return inside


def _in_registers(nodes: np.ndarray, classes: int) -> np.ndarray:
    """Classes entered from a loop, a tile or a cut: straight-line code may begin there, but not inside unrolling."""
    entered = np.zeros(classes, bool)
    op, kind, child, other = nodes[:, 1], nodes[:, 4], nodes[:, 5], nodes[:, 6]
    loop = (op == FOR) & (kind != KINDS.index("unroll"))
    entered[child[loop | (op == TILE) | (op == CAT)]] = True
    entered[other[op == CAT]] = True
    return entered


def _levels(nodes: np.ndarray, classes: int) -> np.ndarray:
    """Longest path to a leaf; the e-graph is acyclic because phases only go forward and blocks only shrink."""
    nodes = nodes[np.argsort(nodes[:, 0], kind="stable")]
    owner, child, other = (np.ascontiguousarray(nodes[:, k]) for k in (0, CHILD, OTHER))
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    level = np.zeros(classes + 1, np.int64)
    level[-1] = -1  # where there is no child
    while len(nodes):
        new = np.maximum.reduceat(np.maximum(level[child], level[other]), starts) + 1
        if (new == level[owner[starts]]).all():
            break
        level[owner[starts]] = new
    return level[:-1]
