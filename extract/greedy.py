"""Greedy DAG extraction: as tree extraction, but a class carries the *set* of classes under it, so that a
part shared by two children of a node is paid once; then a local search that swaps one node at a time.

Not optimal: a class settles on its node without knowing who else will need the same parts. `ilp` knows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from .flat import FlatEGraph, Int32Array
from .tree import bottom_up

_FEW_BITS = 8
_TOLERANCE = 1e-9


def greedy_choice(egraph: FlatEGraph, node_cost: Sequence[float] | None = None) -> Int32Array:
    """The node of each class whose DAG is cheapest given what its children have settled on:
    ``cost(n) = node_cost[n] + sum of the costs of all classes under n, each once``."""
    return bottom_up_dag(egraph, egraph.node_cost.tolist() if node_cost is None else node_cost)


def bottom_up_dag(egraph: FlatEGraph, costs: Sequence[float]) -> Int32Array:
    """`greedy_choice` with given node costs. The set under a class is one Python integer whose bits are
    numbered in the order of settling: cheap classes have short integers, and a union is one machine-speed
    `|`."""
    under = [0] * egraph.n_classes
    total = [0.0] * egraph.n_classes
    bit_cost = np.zeros(egraph.n_classes)
    evaluated: dict[int, tuple[float, int]] = {}
    settled = 0

    def score(node: int) -> float:
        kids = sorted(egraph.child_sets[node], key=lambda kid: -total[kid])
        if not kids:
            union, cost = 0, 0.0
        else:
            union, cost = under[kids[0]], total[kids[0]]
        for kid in kids[1:]:
            fresh = under[kid] & ~union
            if fresh:
                cost += _weight(fresh, bit_cost)
                union |= fresh
        evaluated[node] = (costs[node] + cost, union)
        return costs[node] + cost

    def settle(cls: int, node: int) -> None:
        nonlocal settled
        total[cls], union = evaluated.pop(node)
        under[cls] = union | (1 << settled)
        bit_cost[settled] = costs[node]
        settled += 1

    return bottom_up(egraph, score, settle)


def _weight(bits: int, bit_cost: np.ndarray) -> float:
    """The sum of `bit_cost` over the set bits."""
    if bits.bit_count() > _FEW_BITS:
        packed = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), np.uint8)
        return float(bit_cost[np.flatnonzero(np.unpackbits(packed, bitorder="little"))].sum())
    total = 0.0
    while bits:
        top = bits.bit_length() - 1
        total += float(bit_cost[top])
        bits ^= 1 << top
    return total


class LocalSearch:
    """Swaps one node at a time while the program gets cheaper, with reference counts: taking a node out frees
    what only it used, putting one in pays only for what nobody used before.

    ``a = f(x); b = g(y)`` with `g(x)` in `b`'s class -> ``a = f(x); b = g(x)`` if `y` costs more.
    """

    def __init__(self, egraph: FlatEGraph, choice: Int32Array) -> None:
        self.egraph = egraph
        self.choice: list[int] = choice.tolist()
        self.cost: list[float] = egraph.node_cost.tolist()
        self.scc: list[int] = egraph.scc.tolist()
        self.uses = [0] * egraph.n_classes
        self.total = self._take(egraph.roots)

    def run(self, deadline: float, max_passes: int = 20) -> Int32Array:
        """The improved choice (over all classes, not only those needed); stops at `deadline`
        (`time.perf_counter`)."""
        usable = [
            [node for node in self.egraph.nodes_of(cls).tolist() if self._has_terms(node)]
            for cls in range(self.egraph.n_classes)
        ]
        for _ in range(max_passes):
            before = self.total
            for cls in range(self.egraph.n_classes):
                if self.uses[cls] and len(usable[cls]) > 1:
                    self._best_swap(cls, usable[cls])
                if cls % 64 == 0 and time.perf_counter() > deadline:
                    return np.array(self.choice, np.int32)
            if self.total >= before - _TOLERANCE * (1.0 + before):
                break
        return np.array(self.choice, np.int32)

    def _has_terms(self, node: int) -> bool:
        return all(self.choice[kid] >= 0 for kid in self.egraph.child_sets[node])

    def _take(self, classes: Sequence[int]) -> float:
        """Count one more use of each class; the cost of what was unused before."""
        paid, stack = 0.0, list(classes)
        while stack:
            cls = stack.pop()
            self.uses[cls] += 1
            if self.uses[cls] == 1:
                paid += self.cost[self.choice[cls]]
                stack.extend(self.egraph.child_sets[self.choice[cls]])
        return paid

    def _free(self, classes: Sequence[int]) -> float:
        """Undo `_take`; the cost of what is no longer used."""
        saved, stack = 0.0, list(classes)
        while stack:
            cls = stack.pop()
            self.uses[cls] -= 1
            if self.uses[cls] == 0:
                saved += self.cost[self.choice[cls]]
                stack.extend(self.egraph.child_sets[self.choice[cls]])
        return saved

    def _best_swap(self, cls: int, nodes: Sequence[int]) -> None:
        """Put the cheapest node into `cls`. What is new is taken before the old is let go, so that the parts that both
        need are never walked: a swap costs what it changes, not the whole program under it."""
        current = self.choice[cls]
        best, best_change = current, -_TOLERANCE * (1.0 + abs(self.cost[current]))
        for node in nodes:
            if node == current or self._reaches(node, cls):
                continue
            change = self._exchange(current, node)
            self._exchange(node, current)
            if change < best_change:
                best, best_change = node, change
        if best != current:
            self.choice[cls] = best
            self.total += self._exchange(current, best)

    def _exchange(self, old: int, new: int) -> float:
        """Count the uses of `new`'s children instead of `old`'s; by how much the program gets dearer."""
        kids = self.egraph.child_sets
        paid = self.cost[new] + self._take(kids[new])
        return paid - self.cost[old] - self._free(kids[old])

    def _reaches(self, node: int, cls: int) -> bool:
        """Whether the choices under `node` need `cls`: only its own strongly connected component can."""
        home = self.scc[cls]
        stack = [kid for kid in self.egraph.child_sets[node] if self.scc[kid] == home]
        seen = set(stack)
        while stack:
            kid = stack.pop()
            if kid == cls:
                return True
            for below in self.egraph.child_sets[self.choice[kid]]:
                if below not in seen and self.scc[below] == home:
                    seen.add(below)
                    stack.append(below)
        return False
