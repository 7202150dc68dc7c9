"""Which Blocks of a loop e-graph to open first: those through which the best whole nest may go, under a cost model.

The e-graph as it is gets swept like a complete one, with the model's optimistic state for every Block that was not
opened. First come the Blocks of the best nests found so, which brings those to completion. Then, from the root
downwards, a Block is as far behind as the least detour that leads to it: the sum, over a path, of how much dearer each
e-node is than the best of its e-class.
"""

from __future__ import annotations

import numpy as np

from ..rewrite.loop_egraph import CAT, FOR, SEQ, UNOPENED, LoopEGraph
from .beam import Sweep
from .costmodel import CostModel

#: What a Block gains, as a natural logarithm of cost, for every doubling of the trips of the loops that lead to it: of
#: Blocks that promise the same, those come first that are nearer to a complete nest.
DEPTH = 0.01
#: What it loses for being one part of a nest only, in terms of the logarithm of its share of the cost: however a short
#: tail is filled, the whole is about as good.
PART = 0.05


class BestFirst:
    """A `Guide` under a cost model. `width`: of the beam."""

    def __init__(self, model: CostModel, width: int = 2) -> None:
        self.model, self.width = model, width

    def ranked(self, egraph: LoopEGraph) -> np.ndarray:
        """The e-nodes UNOPENED, the most promising first."""
        sweep = Sweep(egraph, self.model.scorer(egraph), self.width)
        sweep.run()
        waiting, first = np.flatnonzero(egraph.op == UNOPENED), tips(sweep)
        owner = egraph.owner[waiting]
        points = egraph.domain[owner].prod(axis=1, dtype=float)
        return waiting[np.lexsort((waiting, points, detours(sweep)[owner], ~np.isin(waiting, first)))]

    def seconds(self, egraph: LoopEGraph) -> float:
        """What the best nest of an e-graph takes under the model; infinite if it holds none."""
        sweep = Sweep(egraph, self.model.scorer(egraph), self.width)
        sweep.run()
        return float(sweep.cost[egraph.root, 0])


def tips(sweep: Sweep) -> list[int]:
    """The e-nodes UNOPENED of the best nests of the whole kernel, each once, the best nest's first."""
    g, found = sweep.egraph, []
    todo = [(g.root, k) for k in reversed(range(sweep.width)) if np.isfinite(sweep.cost[g.root, k])]
    while todo:
        c, k = todo.pop()
        n = int(sweep.node[c, k])
        if g.op[n] == UNOPENED:
            found.append(n)
        parts = (int(p) for p in (g.child[n], g.other[n]) if p >= 0)
        todo += [(p, int(rank)) for p, rank in zip(parts, sweep.rank[c, k], strict=False)]
    return list(dict.fromkeys(found))


def detours(sweep: Sweep) -> np.ndarray:
    """For every e-class, how far behind the best whole nest that goes through it is; infinite where none does."""
    g = sweep.egraph
    best = sweep.cost[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.log(sweep.node_cost) - np.log(best[g.owner])
    step = np.where(np.isfinite(step), np.maximum(step, 0.0), np.inf)
    step = step - DEPTH * np.where(g.op == FOR, np.log2(np.maximum(g.count, 1)), 0.0)
    behind = np.full(len(g.level), np.inf)
    behind[g.root] = 0.0
    bounds = np.searchsorted(g.level[g.owner], np.arange(g.level.max() + 2))
    for lo, hi in reversed(list(zip(bounds[:-1], bounds[1:], strict=True))):
        here = behind[g.owner[lo:hi]] + step[lo:hi]
        joins = np.isin(g.op[lo:hi], (CAT, SEQ))
        for part, beside in ((g.child[lo:hi], g.other[lo:hi]), (g.other[lo:hi], g.child[lo:hi])):
            share = np.where(joins, best[part] / (best[part] + best[beside]), 1.0)
            there = part >= 0
            np.minimum.at(behind, part[there], (here - PART * np.log(share))[there])
    return behind
