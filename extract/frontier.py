"""Exact extraction by dynamic programming along the e-graph: what is left to be made decides what it costs.

Classes are settled from the roots down, in an order of their strongly connected components that keeps few open. A
*state* is the set of classes that are needed and not settled yet; of all ways to the same state the cheapest is kept. A
network is a chain of layers, so that few classes are open at a time however deep it is, and the last state's cost is
the optimum: no bound, no solver. A state that needs all that a cheaper one needs, and more, is dropped.

Where too many states are open (`STATES`) or a component has too many ways (`WAYS`), nothing is returned, and the 0/1
program takes over (`ilp.py`). Both limits are counts: results do not depend on the machine's speed.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from typing import NamedTuple

from .flat import FlatEGraph, Int32Array
from .part import Part, split
from .reduce import Reduction

STATES = 20_000
WAYS = 5_000
#: Fewer states than these are not worth comparing.
FEW = 64


class _TooMany(Exception):
    """The limits are reached."""


class _Way(NamedTuple):
    """How the classes of one component that a state needs are made: `below` is what they need of others, as bits."""

    below: int
    cost: float
    nodes: tuple[int, ...]


#: What has been chosen on the way to a state: the last component's nodes, and the choices before.
Chosen = tuple[tuple[int, ...], "Chosen"] | None


def frontier_choice(reduction: Reduction, deadline: float, most: int = STATES) -> Int32Array | None:
    """The cheapest DAG of an e-graph as far as it is simplified, or None if the limits (`most` open states among them)
    or the `deadline` (`time.perf_counter`) are reached first.

    The roots must have finite terms.
    """
    if time.perf_counter() > deadline:
        return None
    picked: dict[int, int] = {}
    try:
        for part in split(reduction):
            picked |= _cheapest(part, deadline, most)
    except _TooMany:
        return None
    return reduction.restore(picked)


def _cheapest(part: Part, deadline: float, most: int) -> dict[int, int]:
    egraph = part.egraph
    states: dict[int, tuple[float, Chosen]] = {_bits(egraph.roots): (0.0, None)}
    for component in _downwards(egraph):
        if len(states) > most or time.perf_counter() > deadline:
            raise _TooMany
        states = _Component(egraph, component, deadline).settle(states)
        if len(states) > FEW:
            states = _undominated(states)
    _, chosen = states[0]
    picked: dict[int, int] = {}
    while chosen is not None:
        nodes, chosen = chosen
        picked |= {part.class_id[egraph.node_class[n]]: part.node_id[n] for n in nodes}
    return picked


def _downwards(egraph: FlatEGraph) -> list[list[int]]:
    """The strongly connected components, each before all that it needs. Of those that may come next, the one that opens
    the fewest others is taken: branches that meet again (queries, keys, values) are settled one after the other, and
    not side by side, in all combinations of their states. Among equals, depth first."""
    home = egraph.scc.tolist()
    members: list[list[int]] = [[] for _ in range(max(home) + 1)]
    below: list[set[int]] = [set() for _ in members]
    for cls, component in enumerate(home):
        members[component].append(cls)
        kids = {kid for node in egraph.nodes_of(cls).tolist() for kid in egraph.child_sets[node]}
        below[component] |= {home[kid] for kid in kids} - {component}
    return [members[component] for component in _narrowest(below, {home[root] for root in egraph.roots})]


def _narrowest(below: Sequence[set[int]], opened: set[int]) -> list[int]:
    """The components in order, `opened` being open at first."""
    rank = {component: k for k, component in enumerate(_depth_first(below))}
    above: list[list[int]] = [[] for _ in below]
    for component, needed in enumerate(below):
        for other in needed:
            above[other].append(component)
    waiting = [len(users) for users in above]
    opens = [len(needed - opened) for needed in below]
    ready = [(opens[c], rank[c]) for c in rank if not waiting[c]]
    heapq.heapify(ready)
    by_rank, order, settled = list(rank), [], set()
    while ready:
        count, place = heapq.heappop(ready)
        component = by_rank[place]
        if component in settled or count != opens[component]:
            continue  # it was put in again when it came to open fewer
        settled.add(component)
        order.append(component)
        for other in below[component]:
            waiting[other] -= 1
            if not waiting[other]:
                heapq.heappush(ready, (opens[other], rank[other]))
        for other in below[component] - opened:
            opened.add(other)
            for user in above[other]:
                opens[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, (opens[user], rank[user]))
    return order


def _depth_first(below: Sequence[set[int]]) -> list[int]:
    """The components, each before those below it, what belongs together side by side."""
    order: list[int] = []
    seen: set[int] = set()
    for first in range(len(below)):
        if first in seen:
            continue
        seen.add(first)
        stack = [(first, iter(sorted(below[first])))]
        while stack:
            component, rest = stack[-1]
            fresh = next((c for c in rest if c not in seen), None)
            if fresh is None:
                order.append(component)
                stack.pop()
            else:
                seen.add(fresh)
                stack.append((fresh, iter(sorted(below[fresh]))))
    return order[::-1]


class _Component:
    """Classes that need each other (or one that does not), and how they can be made."""

    def __init__(self, egraph: FlatEGraph, classes: Sequence[int], deadline: float) -> None:
        self.egraph, self.inside, self.deadline = egraph, _bits(classes), deadline
        self.needs = {n: _bits(egraph.child_sets[n]) for c in classes for n in egraph.nodes_of(c).tolist()}
        self._ways: dict[int, list[_Way]] = {}

    def settle(self, states: dict[int, tuple[float, Chosen]]) -> dict[int, tuple[float, Chosen]]:
        """The states after this component, from those before it."""
        after = {state: found for state, found in states.items() if not state & self.inside}
        for state, (cost, chosen) in states.items():
            if needed := state & self.inside:
                rest = state ^ needed
                for way in self.ways(needed):
                    left, total = rest | way.below, cost + way.cost
                    known = after.get(left)
                    if known is None or total < known[0]:
                        after[left] = total, (way.nodes, chosen)
        return after

    def ways(self, needed: int) -> list[_Way]:
        """The ways to make the classes `needed` without a cycle, none of which costs and needs more than another."""
        if needed not in self._ways:
            found: dict[int, _Way] = {}
            for way in self._all_ways(needed):
                if way.below not in found or way.cost < found[way.below].cost:
                    found[way.below] = way
            kept: list[_Way] = []
            for way in sorted(found.values(), key=lambda w: (w.cost, w.below.bit_count(), w.below)):
                if not any(other.below & ~way.below == 0 for other in kept):
                    kept.append(way)
            self._ways[needed] = kept
        return self._ways[needed]

    def _all_ways(self, needed: int) -> list[_Way]:
        out: list[_Way] = []
        stack: list[tuple[int, dict[int, int], _Way]] = [(needed, {}, _Way(0, 0.0, ()))]
        tried = 0
        while stack:
            todo, made, way = stack.pop()
            tried += 1
            if tried > WAYS or time.perf_counter() > self.deadline:
                raise _TooMany
            if not todo:
                out.append(way)
                continue
            cls = todo.bit_length() - 1
            for node in self.egraph.nodes_of(cls).tolist():
                within = self.needs[node] & self.inside
                if _reaches(within, cls, made):
                    continue
                cost = way.cost + float(self.egraph.node_cost[node])
                further = _Way(way.below | self.needs[node] & ~self.inside, cost, (*way.nodes, node))
                settled = made | {cls: within}
                left = (todo | within) & ~_bits(settled)
                stack.append((left, settled, further))
        return out


def _reaches(classes: int, target: int, made: dict[int, int]) -> bool:
    """Whether the classes (bits) need `target` by what is made so far."""
    seen = 0
    while new := classes & ~seen:
        cls = new.bit_length() - 1
        if cls == target:
            return True
        seen |= 1 << cls
        classes |= made.get(cls, 0)
    return False


def _undominated(states: dict[int, tuple[float, Chosen]]) -> dict[int, tuple[float, Chosen]]:
    """The states without those that need one class more than another and cost no less."""
    return {state: found for state, found in states.items() if not _dominated(state, found[0], states)}


def _dominated(state: int, cost: float, states: dict[int, tuple[float, Chosen]]) -> bool:
    left, known = state, states.get
    while left:
        bit = left & -left
        left ^= bit
        other = known(state ^ bit)
        if other is not None and other[0] <= cost:
            return True
    return False


def _bits(classes: Sequence[int] | dict[int, int]) -> int:
    total = 0
    for cls in classes:
        total |= 1 << cls
    return total
