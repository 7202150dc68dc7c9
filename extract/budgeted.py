"""Greedy extraction within budgets: what the budgets limit is given a price, and the price is raised until they hold.

    cost(n) + price * sum over the budgets of weight(n) / limit

(Lagrangian relaxation: at a price that just keeps the budgets, no other program of that cost keeps them better.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .flat import FlatEGraph, Int32Array
from .greedy import LocalSearch, greedy_choice
from .result import restrict

Checked = Sequence[tuple[npt.NDArray[np.float64], float]]
"""Budgets as arrays: the weight of each node, and the limit."""

_HALVINGS = 8
_DOUBLINGS = 24
_TOLERANCE = 1e-9


def within(budgets: Checked, nodes: npt.NDArray[np.integer]) -> bool:
    """Whether these nodes together keep the budgets."""
    return all(weights[nodes].sum() <= limit + _TOLERANCE * (1 + abs(limit)) for weights, limit in budgets)


def priced_choices(egraph: FlatEGraph, budgets: Checked, deadline: float) -> Iterator[Int32Array]:
    """Choices that keep the budgets, by a search for the lowest price that makes greedy extraction keep them."""
    share = sum((weights / max(limit, _TOLERANCE) for weights, limit in budgets), np.zeros(egraph.n_nodes))
    unit = max(float(egraph.node_cost[np.isfinite(egraph.node_cost) & (egraph.node_cost < 1e9)].sum()), 1.0)

    def at(price: float) -> tuple[Int32Array, bool]:
        choice = greedy_choice(egraph, (egraph.node_cost + price * share).tolist())
        kept = restrict(egraph, choice)
        return choice, within(budgets, kept[kept >= 0])

    choice, holds = at(0.0)
    low, high = 0.0, 0.0
    if not holds:
        high = unit / 2**_DOUBLINGS
        while not holds and high <= unit * 2**_DOUBLINGS:
            low, high = high, high * 4
            choice, holds = at(high)
    if not holds:
        return
    best = choice
    for _ in range(_HALVINGS):
        if time.perf_counter() > deadline or high == 0.0:
            break
        middle = (low + high) / 2
        choice, holds = at(middle)
        low, high = (low, middle) if holds else (middle, high)
        best = choice if holds else best
    yield best
    searched = LocalSearch(replace(egraph, node_cost=egraph.node_cost + high * share), best).run(deadline)
    kept = restrict(egraph, searched)
    if within(budgets, kept[kept >= 0]):
        yield searched
