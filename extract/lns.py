"""Large neighbourhood search: where the whole 0/1 program is too big, re-decide one region of the program
optimally and leave the rest, then the next region.

The rest counts as paid: what the region may share with it is free. A region is itself a small e-graph,
simplified and solved as any other, so that a step can only make the program cheaper.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np

from .flat import FlatEGraph, Int32Array
from .result import dag_cost, validate

_FIRST_SIZE = 30
_SMALLEST_SIZE = 8
_NODES_PER_CLASS = 15
_STEP_SECONDS = 1.5
_QUICK_SECONDS = 0.3
_FRUITLESS_SWEEPS = 3
_TOLERANCE = 1e-9

SolveRegion = Callable[[FlatEGraph, Int32Array, float], Int32Array]
"""Solves a small e-graph: `(egraph, choice known to be valid, deadline) -> choice no worse`."""


class NeighbourhoodSearch:
    """Improves `choice`, which must have an acyclic node for *every* class that has a finite term: classes
    outside the program carry the node they would enter it with."""

    def __init__(self, egraph: FlatEGraph, choice: Int32Array, solve: SolveRegion, seed: int = 0) -> None:
        self.egraph, self.solve = egraph, solve
        self.choice: list[int] = choice.tolist()
        self.cost = dag_cost(egraph, choice)
        self.random = random.Random(seed)
        self.size = _FIRST_SIZE
        self.home: list[int] = egraph.node_class.tolist()
        self.stuck = False

    def run(self, deadline: float) -> Int32Array:
        """Step until `deadline` (`time.perf_counter`) or until whole sweeps at growing sizes gave nothing
        (`stuck`)."""
        fruitless = 0.0
        while time.perf_counter() < deadline and fruitless < _FRUITLESS_SWEEPS:
            active, users = self._program()
            centres = [cls for cls in active if len(self.egraph.nodes_of(cls)) > 1]
            if not centres:
                break
            region = self._region(self.random.choice(centres), users)
            begun, before = time.perf_counter(), self.cost
            self._step(region, min(deadline, begun + _STEP_SECONDS))
            self._adapt(time.perf_counter() - begun, len(active))
            better = self.cost < before - _TOLERANCE * (1.0 + before)
            fruitless = 0.0 if better else fruitless + len(region) / len(active)
        self.stuck = fruitless >= _FRUITLESS_SWEEPS
        return np.array(self.choice, np.int32)

    def _adapt(self, seconds: float, largest: int) -> None:
        if seconds < _QUICK_SECONDS:
            self.size = min(int(self.size * 1.15) + 1, largest)
        elif seconds > 0.9 * _STEP_SECONDS:
            self.size = max(int(self.size * 0.75), _SMALLEST_SIZE)

    def _program(self) -> tuple[list[int], dict[int, list[int]]]:
        """The classes of the program, and for each the classes whose node needs it."""
        users: dict[int, list[int]] = {root: [] for root in self.egraph.roots}
        order = list(users)
        for cls in order:
            for kid in self.egraph.child_sets[self.choice[cls]]:
                if kid not in users:
                    users[kid] = []
                    order.append(kid)
                users[kid].append(cls)
        return order, users

    def _region(self, centre: int, users: dict[int, list[int]]) -> set[int]:
        """Up to `size` classes of the program around `centre`, nearest first, neighbours in random order."""
        region, order = {centre}, [centre]
        for cls in order:
            near = [*self.egraph.child_sets[self.choice[cls]], *users[cls]]
            self.random.shuffle(near)
            for other in near:
                if other not in region and len(region) < self.size:
                    region.add(other)
                    order.append(other)
        return region

    def _step(self, region: set[int], deadline: float) -> None:
        sunk, entries = self._outside(region)
        small, nodes, classes = self._small(region, sunk, self._above(region, sunk), entries)
        place = {pair: position for position, pair in enumerate(nodes)}
        known = np.array([place[(cls, self.choice[cls])] for cls in classes], np.int32)
        solved = self.solve(small, known, deadline)
        trial = list(self.choice)
        for position, cls in enumerate(classes):
            if solved[position] >= 0:
                trial[cls] = nodes[solved[position]][1]
        array = np.array(trial, np.int32)
        cost = dag_cost(self.egraph, array)
        if cost < self.cost - _TOLERANCE * (1.0 + self.cost) and validate(self.egraph, array):
            # Classes outside the program need no care: they kept their nodes, and no class of a program leads
            # out of it, so that a cycle among them would have been there before.
            self.choice, self.cost = trial, cost

    def _outside(self, region: set[int]) -> tuple[set[int], list[int]]:
        """What the program needs without entering `region` (paid in any case), and where it enters it."""
        sunk: set[int] = set()
        entries: dict[int, None] = {}
        stack = list(self.egraph.roots)
        while stack:
            cls = stack.pop()
            if cls in region:
                entries[cls] = None
            elif cls not in sunk:
                sunk.add(cls)
                stack.extend(self.egraph.child_sets[self.choice[cls]])
        return sunk, list(entries)

    def _above(self, region: set[int], sunk: set[int]) -> set[int]:
        """The paid classes that need the region: a node of the region that uses one may close a cycle."""
        users: dict[int, list[int]] = {}
        for cls in sunk:
            for kid in self.egraph.child_sets[self.choice[cls]]:
                users.setdefault(kid, []).append(cls)
        above, stack = set(), list(region)
        while stack:
            for user in users.get(stack.pop(), ()):
                if user not in above:
                    above.add(user)
                    stack.append(user)
        return above

    def _small(
        self, region: set[int], sunk: set[int], above: set[int], entries: Sequence[int]
    ) -> tuple[FlatEGraph, list[tuple[int, int]], list[int]]:
        """The region as an e-graph: all nodes of its classes and of unused classes near them; farther ones
        keep their node. ``paid and not above -> no child at all; paid and above -> a free class with one
        node``."""
        kids, room = self.egraph.child_sets, _NODES_PER_CLASS * self.size
        classes, seen = list(entries), set(entries)
        nodes: list[tuple[int, int]] = []
        node_kids: list[list[int]] = []
        for cls in classes:
            fixed = cls in sunk or (cls not in region and len(nodes) > room)
            options = [self.choice[cls]] if fixed else self.egraph.nodes_of(cls).tolist()
            for node in options:
                if any(self.choice[kid] < 0 for kid in kids[node]):
                    continue
                needed = [kid for kid in kids[node] if kid not in sunk or kid in above]
                nodes.append((cls, node))
                node_kids.append(needed)
                fresh = [kid for kid in needed if kid not in seen]
                seen.update(fresh)
                classes.extend(fresh)
        local = {cls: position for position, cls in enumerate(classes)}
        costs = [0.0 if cls in sunk else float(self.egraph.node_cost[node]) for cls, node in nodes]
        small = FlatEGraph(
            node_class=np.array([local[cls] for cls, _ in nodes], np.int32),
            node_cost=np.array(costs, np.float64),
            child_ptr=np.cumsum([0] + [len(k) for k in node_kids]).astype(np.int32),
            child_class=np.array([local[kid] for k in node_kids for kid in k], np.int32),
            roots=tuple(local[cls] for cls in entries),
            node_name=tuple(str(node) for _, node in nodes),
            class_name=tuple(map(str, classes)),
        )
        return small, nodes, classes
