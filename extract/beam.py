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

#: E-nodes that are scored at a time: so many that arrays of their states stay in the second cache.
PORTION = 8192


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
    """The best `width` partial nests of every block. `node_cost`: what the best that begins with each e-node costs.

    Of every block's best, `state` has the model's states, shape (e-classes, width, floats), `node` the e-nodes that
    they begin with, and `rank` which of the best of their parts they are made of.
    """

    def __init__(self, egraph: LoopEGraph, scorer: NestScorer, width: int) -> None:
        classes = len(egraph.level)
        self.egraph, self.scorer, self.width = egraph, scorer, width
        self.cost = np.full((classes, width), np.inf)
        self._columns = np.zeros((scorer.width, classes, width))  # scorers compute with one float of many states
        self.state = self._columns.transpose(1, 2, 0)
        self.node = np.full((classes, width), -1, np.int64)
        self.rank = np.zeros((classes, width, 2), np.int64)
        self.node_cost = np.full(egraph.enodes, np.inf)
        self.noting = scorer if isinstance(scorer, NotingScorer) else None
        self.note = np.zeros((classes, width, self.noting.notes if self.noting else 0), np.float32)

    def run(self) -> None:
        g = self.egraph
        bounds = np.searchsorted(g.level[g.owner], np.arange(g.level.max() + 2))
        for lo, hi in zip(bounds[:-1], bounds[1:], strict=True):
            nodes = lo + np.argsort(g.owner[lo:hi], kind="stable")
            for some in _portions(nodes, g.owner[nodes]) if hi > lo else ():
                self._fill(some)

    def _fill(self, nodes: np.ndarray) -> None:
        """The best of classes, of which `nodes` are all e-nodes, one class after the other."""
        cost = np.full((len(nodes), self.width), np.inf)
        states = np.zeros((self.scorer.width, *cost.shape))
        for op in (VEC, INTRIN, UNOPENED, FOR, TILE, CAT, SEQ, STAGE, STORE):
            at = np.flatnonzero(self.egraph.op[nodes] == op)
            if not len(at):
                continue
            n = nodes[at]
            state, alive = self._partial(op, n)
            ranks = state.shape[1]
            cost[at, :ranks] = np.where(alive, self.scorer.score(self.egraph.owner[n], state), np.inf)
            states[:, at, :ranks] = state.transpose(2, 0, 1)
        self.node_cost[nodes] = cost.min(axis=1)
        self._select(nodes, cost, states)

    def _partial(self, op: int, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(states, which of them are of nests) of partial nests that begin with the e-nodes `n`, all of them `op`."""
        if op in TIPS:
            state = (self.scorer.unopened(n) if op == UNOPENED else self.scorer.leaf(n))[:, None, :]
            return state, np.ones(state.shape[:2], bool)
        child, other = self.egraph.child[n], self.egraph.other[n]
        body, alive = self._states(child), np.isfinite(self.cost[child])
        if op in (CAT, SEQ):
            second = np.repeat(self._states(other)[:, :1], self.width, axis=1)
            join = self.scorer.cat if op == CAT else self.scorer.seq
            return join(n, body, second), alive & np.isfinite(self.cost[other][:, :1])
        step = {
            FOR: self.scorer.loop, TILE: self.scorer.tile, STAGE: self.scorer.stage, STORE: self.scorer.store
        }[op]  # fmt: skip
        return step(n, body), alive

    def _states(self, classes: np.ndarray) -> np.ndarray:
        return np.take(self._columns, classes, axis=1).transpose(1, 2, 0)

    def _select(self, nodes: np.ndarray, costs: np.ndarray, states: np.ndarray) -> None:
        """Keep the best partial nests of every class of `nodes`: of those that go on from an e-node with each of the
        best of its (first) part."""
        width = self.width * (SHORTLIST if self.noting else 1)
        enough = _enough(self.egraph.owner[nodes], costs, width)
        row, rank = np.nonzero(np.isfinite(costs) & (costs <= enough[:, None]))
        node, cost = nodes[row], costs[row, rank]
        owner = self.egraph.owner[node]
        order, place = _best(owner, cost, node, width)
        owner, node, cost, row, rank = owner[order], node[order], cost[order], row[order], rank[order]
        state = states[:, row, rank]
        if self.noting is not None and len(order):
            notes = self._notes(self.noting, node, state.T, rank)
            cost = self.noting.refine(owner, state.T, notes)
            self.node_cost[node] = np.inf
            np.minimum.at(self.node_cost, node, cost)
            order, place = _best(owner, cost, node, self.width)
            owner, node, cost, state, rank = owner[order], node[order], cost[order], state[:, order], rank[order]
            self.note[owner, place] = notes[order]
        self.cost[owner, place] = cost
        self._columns[:, owner, place] = state
        self.node[owner, place] = node
        self.rank[owner, place, 0] = rank

    def _notes(self, noting: NotingScorer, node: np.ndarray, state: np.ndarray, rank: np.ndarray) -> np.ndarray:
        child, other = self.egraph.child[node], self.egraph.other[node]
        below, beside = self.note[child, rank], self.note[other, 0]
        below[child < 0] = 0.0
        dearer = (other < 0) | (self.cost[child, rank] >= self.cost[other, 0])
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


def _starts(owner: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]]) if len(owner) else np.zeros(0, np.int64)


def _portions(nodes: np.ndarray, owner: np.ndarray) -> list[np.ndarray]:
    """Nodes in portions of about `PORTION`, none of which ends inside a class."""
    starts = _starts(owner)
    cuts = np.searchsorted(starts, np.arange(PORTION, len(nodes), PORTION))
    return np.split(nodes, np.unique(starts[cuts[cuts < len(starts)]]))


def _enough(owner: np.ndarray, costs: np.ndarray, width: int) -> np.ndarray:
    """For every row of `costs` what the best `width` costs of its owner's rows do not exceed."""
    starts = _starts(owner)
    number = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(owner)]))
    place = np.arange(len(owner)) - starts[number]
    together = np.full((len(starts), place.max(initial=0) + 1, costs.shape[1]), np.inf)
    together[number, place] = costs
    together = together.reshape(len(starts), -1)
    if together.shape[1] <= width:
        return np.full(len(owner), np.inf)
    return np.partition(together, width - 1, axis=1)[number, width - 1]


def _best(owner: np.ndarray, cost: np.ndarray, node: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(which, place): the best `width` partial nests of every owner, and what place each has among them."""
    order = np.lexsort((node, cost, owner))
    starts = _starts(owner[order])
    place = np.arange(len(owner)) - np.repeat(starts, np.diff(np.r_[starts, len(owner)]))
    top = place < width
    return order[top], place[top]
