"""Loop extraction: the K best nests of every block, bottom-up over the loop e-graph, scored in batches.

A block's domain fixes the footprint of everything under it, so partial nests have complete features; a beam (rather
than the single best) matters because the objective, a maximum over resources, is not additive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.errors import NesteggError
from ..ir.nest import Nest
from ..rewrite.loop_egraph import CAT, FOR, INTRIN, SEQ, STAGE, STORE, TILE, TIPS, UNOPENED, VEC, LoopEGraph
from .costmodel import CostModel, NestScorer, NotingScorer

#: Of so many times the beam's width, chosen by their scores, a `NotingScorer` refines every block's best.
SHORTLIST = 2


@dataclass(frozen=True)
class ScoredNest:
    """A nest and its predicted seconds."""

    nest: Nest
    seconds: float


class NoSchedule(NesteggError):
    """Saturation was stopped by its limits before any nest of the whole kernel was there."""


def extract_nests(egraph: LoopEGraph, model: CostModel, width: int = 6) -> list[ScoredNest]:
    """The best `width` nests of the whole kernel, best first. Raises `NoSchedule` if the e-graph holds none."""
    return swept(egraph, model, width).best(egraph.root)


def swept(egraph: LoopEGraph, model: CostModel, width: int = 6) -> Sweep:
    """The e-graph with the best `width` partial nests of every block. Raises `NoSchedule` if the kernel has none."""
    sweep = Sweep(egraph, model.scorer(egraph), width)
    sweep.run()
    if not np.isfinite(sweep.cost[egraph.root]).any():
        raise NoSchedule(
            f"no schedule was found within the limits ({egraph.report.stopped_by}) for {egraph.kernel}"
        )
    return sweep


class Sweep:
    """The best `width` partial nests of every block. `node_cost`: what the best that begins with each e-node costs."""

    def __init__(self, egraph: LoopEGraph, scorer: NestScorer, width: int) -> None:
        classes = len(egraph.level)
        self.egraph, self.scorer, self.width = egraph, scorer, width
        self.cost = np.full((classes, width), np.inf)
        self.state = np.zeros((classes, width, scorer.width))
        self.node = np.full((classes, width), -1, np.int64)
        self.rank = np.zeros((classes, width, 2), np.int64)
        self.node_cost = np.full(egraph.enodes, np.inf)
        self.noting = scorer if isinstance(scorer, NotingScorer) else None
        self.note = np.zeros((classes, width, self.noting.notes if self.noting else 0), np.float32)

    def run(self) -> None:
        g = self.egraph
        bounds = np.searchsorted(g.level[g.owner], np.arange(g.level.max() + 2))
        for lo, hi in zip(bounds[:-1], bounds[1:], strict=True):
            if hi > lo:
                self._level(np.arange(lo, hi))

    def _level(self, nodes: np.ndarray) -> None:
        g, k = self.egraph, self.width
        states, costs, ranks, who = [], [], [], []

        def keep(n: np.ndarray, s: np.ndarray, alive: np.ndarray, r: np.ndarray) -> None:
            cost = np.where(alive, self.scorer.score(g.owner[n], s), np.inf)
            self.node_cost[n] = cost.min(axis=1)
            states.append(s.reshape(-1, self.scorer.width))
            costs.append(cost.reshape(-1))
            ranks.append(r.reshape(-1, 2))
            who.append(np.repeat(n, s.shape[1]))

        for op in (VEC, INTRIN, UNOPENED, FOR, TILE, CAT, SEQ, STAGE, STORE):
            n = nodes[g.op[nodes] == op]
            if not len(n):
                continue
            if op in TIPS:
                leaf = (self.scorer.unopened(n) if op == UNOPENED else self.scorer.leaf(n))[:, None, :]
                keep(n, leaf, np.ones(leaf.shape[:2], bool), np.zeros((len(n), 1, 2), np.int64))
                continue
            child = g.child[n]
            alive = np.isfinite(self.cost[child])
            rank = np.zeros((len(n), k, 2), np.int64)
            rank[:, :, 0] = np.arange(k)
            if op in (CAT, SEQ):
                other = g.other[n]
                second = np.repeat(self.state[other][:, :1], k, axis=1)
                alive &= np.isfinite(self.cost[other][:, :1])
                join = self.scorer.cat if op == CAT else self.scorer.seq
                keep(n, join(n, self.state[child], second), alive, rank)
            else:
                step = {
                    FOR: self.scorer.loop, TILE: self.scorer.tile, STAGE: self.scorer.stage, STORE: self.scorer.store
                }[op]  # fmt: skip
                keep(n, step(n, self.state[child]), alive, rank)
        self._select(
            nodes, np.concatenate(who), np.concatenate(costs), np.concatenate(states), np.concatenate(ranks)
        )

    def _select(
        self, nodes: np.ndarray, node: np.ndarray, cost: np.ndarray, state: np.ndarray, rank: np.ndarray
    ) -> None:
        """Keep the best of partial nests that begin with the e-nodes `node`, for every class of `nodes`."""
        owner = self.egraph.owner[node]
        width = self.width * (SHORTLIST if self.noting else 1)
        live = np.flatnonzero(np.isfinite(cost) & (cost <= self._enough(nodes, width)[owner]))
        order, place = _best(owner[live], cost[live], node[live], width)
        order = live[order]
        if self.noting is not None and len(order):
            node, state, rank, owner = node[order], state[order], rank[order], owner[order]
            notes = self._notes(self.noting, node, state, rank)
            cost = self.noting.refine(owner, state, notes)
            self.node_cost[node] = np.inf
            np.minimum.at(self.node_cost, node, cost)
            order, place = _best(owner, cost, node, self.width)
            self.note[owner[order], place] = notes[order]
        owner = owner[order]
        self.cost[owner, place] = cost[order]
        self.state[owner, place] = state[order]
        self.node[owner, place] = node[order]
        self.rank[owner, place] = rank[order]

    def _enough(self, nodes: np.ndarray, width: int) -> np.ndarray:
        """For every class, a cost that `width` partial nests of the nodes `nodes` do not exceed: the best of so many
        nodes."""
        owner, cost = self.egraph.owner[nodes], self.node_cost[nodes]
        order, place = _best(owner, cost, nodes, width)
        last = order[place == width - 1]
        out = np.full(len(self.egraph.level), np.inf)
        out[owner[last]] = cost[last]
        return out

    def _notes(self, noting: NotingScorer, node: np.ndarray, state: np.ndarray, rank: np.ndarray) -> np.ndarray:
        child, other = self.egraph.child[node], self.egraph.other[node]
        below, beside = self.note[child, rank[:, 0]], self.note[other, 0]
        below[child < 0] = 0.0
        dearer = (other < 0) | (self.cost[child, rank[:, 0]] >= self.cost[other, 0])
        return noting.note(node, state, below, beside, dearer)

    def best(self, root: int) -> list[ScoredNest]:
        out = []
        for k in range(self.width):
            if np.isfinite(self.cost[root, k]):
                out.append(ScoredNest(self._nest(root, k), self.scorer.total(self.state[root, k])))
        return sorted(out, key=lambda s: s.seconds)

    def _nest(self, c: int, k: int) -> Nest:
        n = int(self.node[c, k])
        ranks = iter(self.rank[c, k])
        return self.egraph.node(n, lambda child: self._nest(child, int(next(ranks))))


def _best(owner: np.ndarray, cost: np.ndarray, node: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(which, place): the best `width` partial nests of every owner, and what place each has among them."""
    order = np.lexsort((node, cost, owner))
    owner = owner[order]
    starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(owner) else np.zeros(0, np.int64)
    place = np.arange(len(owner)) - np.repeat(starts, np.diff(np.r_[starts, len(owner)]))
    top = place < width
    return order[top], place[top]
