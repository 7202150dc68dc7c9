"""Nests drawn from a loop e-graph, good ones more often: what a tuner measures besides the best under the model.

In every block an e-node is drawn with probability proportional to `(its cost / the block's best cost) ** (-1 /
temperature)`, where an e-node's cost is that of the best partial nest that begins with it, under the model. Near
temperature 0 that is the best nest; at infinity every e-node of a block is as likely as the next (`draw_any`). That is
not the same as every nest being as likely (`LoopEGraph.sample`): most nests are those of the blocks that can be filled
in most ways, deep and cut to pieces, and hardly one in a thousand of them is any good.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..ir.nest import Cat, Intrin, Nest, Seq, Vec
from ..rewrite.loop_egraph import LoopEGraph
from .beam import Sweep


def draw_any(egraph: LoopEGraph, rng: np.random.Generator, block: int | None = None) -> Nest:
    """A nest, of the whole kernel or of a block (an e-class): in every block any e-node, as likely as the next."""

    def below(c: int) -> Nest:
        nodes = egraph.by_class[c]
        return egraph.node(int(nodes[rng.integers(len(nodes))]), below)

    return below(egraph.root if block is None else block)


class Sampler:
    """Draws nests from a swept e-graph."""

    def __init__(self, sweep: Sweep) -> None:
        self.g: LoopEGraph = sweep.egraph
        with np.errstate(divide="ignore"):
            self._log_cost = np.log(sweep.node_cost)

    def draw(self, rng: np.random.Generator, temperature: float, block: int | None = None) -> Nest:
        """A nest, of the whole kernel or of a block (an e-class). temperature: natural logarithm of the cost ratio at
        which an e-node is drawn 1/e as often."""

        def below(c: int) -> Nest:
            nodes = self.g.by_class[c]
            worse = self._log_cost[nodes] - self._log_cost[nodes].min()
            chance = np.where(np.isfinite(worse), np.exp(-worse / temperature), 0.0)
            at = np.searchsorted(np.cumsum(chance), rng.random() * chance.sum(), side="right")
            return self.g.node(int(nodes[min(at, len(nodes) - 1)]), below)

        return below(self.g.root if block is None else block)


def neighbour(
    egraph: LoopEGraph, nest: Nest, rng: np.random.Generator, sampler: Sampler | None = None, temperature: float = 0.5
) -> Nest | None:
    """The nest with one of its inner blocks filled anew: from the sampler, or with any e-nodes. None if the e-graph
    does not hold the nest (another version's rules may have made it)."""
    path = _path(egraph, nest, egraph.root)
    if path is None:
        return None
    at = int(rng.integers(len(path)))
    chosen = dict(path[:at])

    def below(c: int) -> Nest:
        if c in chosen:
            return egraph.node(chosen.pop(c), below)
        return draw_any(egraph, rng, c) if sampler is None else sampler.draw(rng, temperature, c)

    return below(egraph.root)


def _path(egraph: LoopEGraph, nest: Nest, c: int) -> list[tuple[int, int]] | None:
    """(e-class, e-node) of every part of a nest that fills the block c, the whole first; None if it does not."""
    for n in egraph.by_class[c].tolist():
        parts: list[Nest] = []
        # The e-node as a nest with the sought parts in their places: equal to the nest if the e-node is its first.
        want = iter(_parts(nest))

        def take(_: int, want: Iterator[Nest] = want, parts: list[Nest] = parts) -> Nest:
            parts.append(next(want, nest))
            return parts[-1]

        if egraph.node(n, take) != nest:
            continue
        below = [c for c in (int(egraph.child[n]), int(egraph.other[n])) if c >= 0]
        found = [_path(egraph, p, k) for p, k in zip(parts, below, strict=True)]
        if all(f is not None for f in found):
            return [(c, n), *(step for f in found if f is not None for step in f)]
    return None


def _parts(nest: Nest) -> tuple[Nest, ...]:
    if isinstance(nest, (Cat, Seq)):
        return (nest.first, nest.second)
    return () if isinstance(nest, (Vec, Intrin)) else (nest.body,)
