"""Guided saturation: which Blocks the loop rules are applied to first, when a limit leaves no room for all of them.

Plain saturation applies each rule to every Block there is, so that a limit cuts off a space in the middle, however good
what is missing. Here every rule (but those of straight-line code, in which there is nothing to choose) asks for one
more fact, `(open b)`. Blocks are opened in batches, the most promising first, and between batches a `Guide` looks at
the e-graph as it is: what is filled has its cost under a model, and what is not opened yet the least it might have. So
the search is best-first over an AND-OR graph, as in AO* (Nilsson, "Principles of Artificial Intelligence", 1980), by
batches, and ends at the limit instead of at the first proof.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .saturate import EggRule, Engine, Limits, SaturationReport, saturate

if TYPE_CHECKING:
    from .loop_egraph import LoopEGraph

#: A batch is to make the e-graph this much larger, and is of at least so many Blocks.
GROWTH, LEAST = 0.3, 4


class Guide(Protocol):
    """Says which Blocks are promising."""

    def ranked(self, egraph: LoopEGraph) -> np.ndarray:
        """The e-nodes UNOPENED of an e-graph that is being saturated, those to open first at the front."""
        ...

    def seconds(self, egraph: LoopEGraph) -> float:
        """What the best nest of an e-graph is predicted to take."""
        ...


def saturate_guided(
    engine: Engine,
    phases: Sequence[Sequence[EggRule]],
    limits: Limits,
    guide: Guide,
    read: Callable[[SaturationReport], LoopEGraph],
    counted: Iterable[str],
) -> SaturationReport:
    """Open Blocks in the guide's order and saturate what is open, until all are or a limit is reached.

    `read` gives the e-graph as it is, with the Blocks that were not opened.
    """
    begun, counted = time.perf_counter(), tuple(counted)
    report, opened = SaturationReport(), 0
    size = first = engine.size(counted)
    terms = ["$root"]
    while True:
        engine.load(*(f"(open {t})" for t in terms))
        opened += len(terms)
        left = replace(limits, seconds=limits.seconds - (time.perf_counter() - begun))
        batch = saturate(engine, phases, left, counted=counted)
        report.absorb(batch)
        report.growth.append(size := engine.size(counted))
        if report.stopped_by != "saturated":
            break
        egraph = read(report)
        waiting = guide.ranked(egraph)
        if not len(waiting):
            break
        each = max((size - first) / opened, 1.0)
        wanted = max(LEAST, int(min(GROWTH * size, limits.nodes - size) / each))
        terms = [term(egraph, n) for n in waiting[:wanted]]
    report.enodes, report.seconds = size, time.perf_counter() - begun
    return report


def term(egraph: LoopEGraph, node: int) -> str:
    """An e-node UNOPENED as egglog writes its Block."""
    owner = egraph.owner[node]
    head = (egraph.kind[node], egraph.count[node], egraph.inside[owner], egraph.axis[node])
    return f"(Block {' '.join(str(int(n)) for n in (*head, *egraph.domain[owner]))})"
