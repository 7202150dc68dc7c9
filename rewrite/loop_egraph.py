"""A kernel's schedules as an e-graph: saturated by the loop rules, read back once as flat arrays.

E-classes are the blocks still to be filled; e-nodes say what to do next. The arrays are in topological order of
levels (children first), so that extraction is a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from ..ir.loops import LoopKernel
from ..ir.nest import KINDS, Cat, For, Nest, Tile, Vec
from ..ir.target import Target
from .loop_language import PHASES, LoopRule, Space, declarations, space
from .loop_rules import LOOP_RULES
from .saturate import Engine, Limits, SaturationReport, saturate

LOOP_LIMITS = Limits(nodes=400_000, iterations=64, seconds=30.0)

FOR, CAT, TILE, VEC = range(4)


@dataclass(frozen=True)
class LoopEGraph:
    """The saturated e-graph of one kernel's schedules.

    Per e-class: `phase` (number in `PHASES`), `domain` (extents, one column an axis), `level` (children have lower
    ones). Per e-node: `owner` (its class), `op` (FOR, CAT, TILE, VEC), `axis`, `count` (trips, cut or lanes), `kind`
    (number in `nest.KINDS`), `child`, `other` (classes; -1 where there is none). E-nodes are sorted by level of owner.
    """

    kernel: LoopKernel
    space: Space
    root: int
    phase: np.ndarray
    domain: np.ndarray
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
        bounds = np.searchsorted(self.owner[order], np.arange(len(self.phase) + 1))
        return [order[bounds[c] : bounds[c + 1]] for c in range(len(self.phase))]

    @cached_property
    def programs(self) -> list[int]:
        """Number of distinct nests of each e-class (exact)."""
        count = [0] * len(self.phase)
        for n in range(self.enodes):
            op = self.op[n]
            ways = 1 if op == VEC else count[self.child[n]]
            if op == CAT:
                ways *= count[self.other[n]]
            count[self.owner[n]] += ways
        return count

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
        if op == TILE:
            return Tile(axis, of(int(self.child[n])))
        if op == CAT:
            return Cat(axis, count, of(int(self.child[n])), of(int(self.other[n])))
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


def divisors(n: int) -> list[int]:
    small = [f for f in range(1, int(n**0.5) + 1) if n % f == 0]
    return sorted({*small, *(n // f for f in small)})


def cuts(n: int, lanes: int, contiguous: bool) -> list[int]:
    """Places at which to cut an extent without good factors: after the last whole vector, or the last whole tile."""
    whole_vectors = not contiguous or n <= lanes or n % lanes == 0
    good_rows = n <= 14 or any(n % f == 0 for f in (4, 6, 7, 8, 9, 10, 12, 14))
    places = set() if whole_vectors else {n - n % (lanes * k) for k in (1, 2, 3, 4)}
    if not good_rows:
        places |= {n - n % k for k in (6, 8, 14)}
    return sorted(p for p in places if 0 < p < n)


def facts(s: Space) -> str:
    """The relations `div` (useful factors) and `cut` of every extent that can occur."""
    lines: list[str] = []
    extents: set[int] = set()
    for a in s.axes:
        todo, seen = [a.extent], set()
        while todo:
            n = todo.pop()
            if n in seen:
                continue
            seen.add(n)
            if not a.reduces and (n == a.extent or n > s.lanes):
                places = cuts(n, s.lanes, a.contiguous) if n == a.extent or n < 4 * s.lanes else []
                lines += [f"(cut {a.number} {n} {q} {n - q})" for q in places]
                todo += [x for q in places for x in (q, n - q)]
            todo += divisors(n)
        extents |= seen
    lines += [f"(div {n} {f} {n // f})" for n in sorted(extents) for f in divisors(n) if f < n]
    return "\n".join(lines)


def build(
    kernel: LoopKernel,
    target: Target,
    threads: int = 1,
    rules: Sequence[LoopRule] = LOOP_RULES,
    limits: Limits = LOOP_LIMITS,
) -> LoopEGraph:
    """Saturate the schedules of a kernel."""
    s = space(kernel, target, threads)
    rank = len(s.axes)
    engine = Engine()
    phases: list[list[Any]] = [[r.render(s) for r in rules if r.phase == p and r.instances(s)] for p in PHASES]
    engine.run("\n".join([declarations(rank), *(r.text for p in phases for r in p), facts(s)]))
    root = f"(let $root (Block 0 -1 {' '.join(str(a.extent) for a in s.axes)}))"
    engine.run(root)
    report = saturate(engine, phases, limits, counted=("Block", "For", "Cat", "Tile", "Vec"))
    return _read_back(kernel, s, engine, report)


def _column(values: Any, cache: dict[Any, int], convert: Any) -> np.ndarray:
    def get(v: Any) -> int:
        if v not in cache:
            cache[v] = convert(v)
        return cache[v]

    return np.fromiter((get(v) for v in values), np.int64)


def _read_back(kernel: LoopKernel, s: Space, engine: Engine, report: SaturationReport) -> LoopEGraph:
    egraph = engine.egraph
    tables = {name: f.rows for name, f in egraph.freeze().functions.items()}
    ints: dict[Any, int] = {}
    classes: dict[Any, int] = {}

    def number(v: Any) -> int:
        return classes.setdefault(v, len(classes))

    rank = len(s.axes)
    blocks = tables["Block"]
    owner_of_block = np.array([number(r.output) for r in blocks], np.int64)
    flat = _column(chain.from_iterable(r.inputs for r in blocks), ints, egraph.value_to_i64).reshape(-1, rank + 2)
    parts: list[np.ndarray] = []

    def add(op: int, rows: Any, columns: dict[int, int]) -> None:
        if not rows:
            return
        out = np.full((len(rows), 7), -1, np.int64)
        out[:, 0] = [number(r.output) for r in rows]
        out[:, 1] = op
        for source, to in columns.items():
            out[:, to] = (
                [number(r.inputs[source]) for r in rows]
                if to >= 5
                else _column((r.inputs[source] for r in rows), ints, egraph.value_to_i64)
            )
        parts.append(out)

    add(FOR, tables["For"], {0: 2, 1: 3, 2: 4, 3: 5})
    add(CAT, tables["Cat"], {0: 2, 1: 3, 2: 5, 3: 6})
    add(TILE, tables["Tile"], {0: 2, 1: 5})
    add(VEC, tables["Vec"], {0: 2, 1: 3})
    nodes = np.concatenate(parts) if parts else np.zeros((0, 7), np.int64)
    phase = np.full(len(classes), 99, np.int64)
    np.minimum.at(phase, owner_of_block, flat[:, 0])
    domain = np.ones((len(classes), rank), np.int64)
    domain[owner_of_block] = flat[:, 2:]
    level = _levels(nodes, len(classes))
    nodes = nodes[np.argsort(level[nodes[:, 0]], kind="stable")]
    root = classes[tables["$root"][0].output]
    columns = [np.ascontiguousarray(nodes[:, k]) for k in range(7)]
    return LoopEGraph(kernel, s, root, phase, domain, level, *columns, report)


def _levels(nodes: np.ndarray, classes: int) -> np.ndarray:
    """Longest path to a leaf; the e-graph is acyclic because phases only go forward and blocks only shrink."""
    level = np.zeros(classes, np.int64)
    owner, child, other = nodes[:, 0], nodes[:, 5], nodes[:, 6]
    while True:
        below = np.maximum(np.where(child >= 0, level[child], -1), np.where(other >= 0, level[other], -1))
        new = level.copy()
        np.maximum.at(new, owner, below + 1)
        if (new == level).all():
            return level
        level = new
