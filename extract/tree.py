"""Tree-optimal extraction: for each class the term whose size as a tree is least (a shared part counts each
time).

Knuth's generalisation of Dijkstra's algorithm: classes settle in order of cost, each node is looked at once,
and since a node is ready only after all its children have settled, cycles need no care.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from .flat import FlatEGraph, Int32Array


def bottom_up(
    egraph: FlatEGraph, score: Callable[[int], float], settle: Callable[[int, int], None] | None = None
) -> Int32Array:
    """For each class its first node in order of `score`, -1 for a class that has only infinite terms.

    `score(node)` is asked once, when all children of `node` have settled, and must be at least the score that
    each of them settled with. `settle(cls, node)` is told as soon as a class has its node.
    """
    home = egraph.node_class.tolist()
    waiting = [len(kids) for kids in egraph.child_sets]
    choice = [-1] * egraph.n_classes
    heap = [(score(node), node) for node, count in enumerate(waiting) if count == 0]
    heapq.heapify(heap)
    while heap:
        _, node = heapq.heappop(heap)
        cls = home[node]
        if choice[cls] >= 0:
            continue
        choice[cls] = node
        if settle is not None:
            settle(cls, node)
        for user in egraph.users[cls]:
            waiting[user] -= 1
            if waiting[user] == 0 and choice[home[user]] < 0:
                heapq.heappush(heap, (score(user), user))
    return np.array(choice, np.int32)


def tree_choice(egraph: FlatEGraph, node_cost: Sequence[float] | None = None) -> Int32Array:
    """The node of each class whose tree is cheapest: ``cost(n) = node_cost[n] + sum of cost(child)``, a child
    counted as often as it is named. `node_cost` stands in for the e-graph's own costs."""
    costs = egraph.node_cost.tolist() if node_cost is None else node_cost
    ptr, kids = egraph.child_ptr.tolist(), egraph.child_class.tolist()
    total = [0.0] * egraph.n_classes
    scores: dict[int, float] = {}

    def score(node: int) -> float:
        scores[node] = costs[node] + sum(total[kid] for kid in kids[ptr[node] : ptr[node + 1]])
        return scores[node]

    def settle(cls: int, node: int) -> None:
        total[cls] = scores[node]

    return bottom_up(egraph, score, settle)


def dearest_path(egraph: FlatEGraph) -> float:
    """A lower bound on every DAG: the largest of the roots' `dearest_paths`."""
    total = dearest_paths(egraph)
    return max((total[root] for root in egraph.roots), default=0.0)


def dearest_paths(egraph: FlatEGraph) -> list[float]:
    """For each class a lower bound on every DAG that makes it: ``bound(n) = node_cost[n] + the largest bound(child)``,
    the least over its nodes. Infinite for a class without a finite term."""
    costs = egraph.node_cost.tolist()
    total = [float("inf")] * egraph.n_classes

    def score(node: int) -> float:
        return costs[node] + max((total[kid] for kid in egraph.child_sets[node]), default=0.0)

    def settle(cls: int, node: int) -> None:
        total[cls] = score(node)

    bottom_up(egraph, score, settle)
    return total
