"""Simplifications of an e-graph that keep a cheapest DAG: what the ILP need not see.

Each step is a rewrite of the e-graph; `fixed` remembers the node of every class that was decided on the way,
so that a solution of the small e-graph is a solution of the large one.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence

import numpy as np

from .flat import FlatEGraph, Int32Array, strong_components
from .tree import bottom_up

_TOLERANCE = 1e-9
_INLINE_GROWTH = 8
_MAX_ROUNDS = 30
_MAX_MUST_ROUNDS = 4
_MUST_NODE_LIMIT = 200_000


class Reduction:
    """A shrinking copy of an e-graph: `nodes[c]` are the live nodes of class `c`, `kids[n]` and `cost[n]`
    those of node `n` (a vector: the objective, then one weight for each budget), `roots` the classes that
    must be chosen, `base` the cost that is already certain, `dead` whether no program is left.
    """

    def __init__(self, egraph: FlatEGraph, weights: Sequence[Sequence[float]] = ()) -> None:
        self.egraph = egraph
        self.home: list[int] = egraph.node_class.tolist()
        columns = [egraph.node_cost.tolist(), *(list(map(float, w)) for w in weights)]
        self.cost: list[tuple[float, ...]] = list(zip(*columns, strict=True))
        self.zero = (0.0,) * len(columns)
        self.kids: list[frozenset[int]] = [frozenset(kids) for kids in egraph.child_sets]
        settled = bottom_up(egraph, lambda node: 0.0).tolist()
        self.nodes: dict[int, list[int]] = {
            cls: [n for n in egraph.nodes_of(cls).tolist() if all(settled[kid] >= 0 for kid in self.kids[n])]
            for cls in range(egraph.n_classes)
            if settled[cls] >= 0
        }
        self.roots = set(egraph.roots)
        self.fixed: dict[int, int] = {}
        self.compared: dict[int, list[tuple[int, frozenset[int]]]] = {}  # classes as they were without dominated nodes
        self.base = self.zero
        self.dead = False

    def run(self, deadline: float, upper: float = float("inf")) -> None:
        """Simplify until nothing changes. `upper` is the cost of a known program: nodes that only dearer ones
        hold are dropped. May leave no program at all if none is cheaper than `upper`."""
        for _ in range(_MAX_MUST_ROUNDS):
            self._cheap_rounds(deadline)
            if not self._only_finite():
                self.dead = True
                return
            must = self._must_sets(deadline)
            if must is None or not self._use_must(must, upper):
                return
        self.dead = not self._only_finite()
        self._drop_unreachable()

    def drop(self, nodes: set[int]) -> None:
        """Take out nodes that are known to be in no better program; `run` again afterwards."""
        self.nodes = {cls: [node for node in live if node not in nodes] for cls, live in self.nodes.items()}

    def restore(self, picked: dict[int, int]) -> Int32Array:
        """The choice on the original e-graph of a choice on this one."""
        choice = np.full(self.egraph.n_classes, -1, np.int32)
        for cls, node in (self.fixed | picked).items():
            choice[cls] = node
        return choice

    # The steps. Each says whether it changed something.

    def _cheap_rounds(self, deadline: float) -> None:
        for _ in range(_MAX_ROUNDS):
            self._drop_unreachable()
            changed = self._drop_self_loops()
            changed |= self._drop_dominated()
            changed |= self._drop_edges_to_roots()
            changed |= self._collapse_single()
            if not changed or time.perf_counter() > deadline:
                break
        self._drop_unreachable()

    def _drop_unreachable(self) -> None:
        stack, seen = [root for root in self.roots if root in self.nodes], set(self.roots)
        while stack:
            for node in self.nodes[stack.pop()]:
                for kid in self.kids[node]:
                    if kid not in seen:
                        seen.add(kid)
                        stack.append(kid)
        self.nodes = {cls: nodes for cls, nodes in self.nodes.items() if cls in seen}

    def _drop_self_loops(self) -> bool:
        """``x = add(x, zero) | leaf -> x = leaf``: a node that needs its own class is in no program."""
        changed = False
        for cls, nodes in self.nodes.items():
            kept = [node for node in nodes if cls not in self.kids[node]]
            changed |= len(kept) < len(nodes)
            self.nodes[cls] = kept
        return changed

    def _drop_dominated(self) -> bool:
        """``x = f(a) @1 | g(a, b) @2 -> x = f(a) @1``: a node that needs no more and costs no more serves as
        well."""
        changed = False
        for cls, nodes in self.nodes.items():
            if len(nodes) < 2 or self.compared.get(cls) == [(n, self.kids[n]) for n in nodes]:
                continue
            kept: list[int] = []
            for node in sorted(nodes, key=lambda n: (len(self.kids[n]), self.cost[n], n)):
                kids, cost = self.kids[node], self.cost[node]
                if not any(self.kids[n] <= kids and _no_dearer(self.cost[n], cost) for n in kept):
                    kept.append(node)
            changed |= len(kept) < len(nodes)
            self.nodes[cls] = sorted(kept)
            self.compared[cls] = [(n, self.kids[n]) for n in self.nodes[cls]]
        return changed

    def _drop_edges_to_roots(self) -> bool:
        """``root x; y = f(x, z) -> y = f(z)``: `x` is there anyway; kept inside a component, where it closes
        cycles."""
        scc, changed = self.components(), False
        for cls, nodes in self.nodes.items():
            for node in nodes:
                kids = self.kids[node]
                if not kids.isdisjoint(self.roots):
                    kept = frozenset(kid for kid in kids if kid not in self.roots or scc[kid] == scc[cls])
                    changed |= len(kept) < len(kids)
                    self.kids[node] = kept
        return changed

    def components(self) -> list[int]:
        """For each class the id of its strongly connected component among the live nodes."""
        edges = [(cls, kid) for cls, nodes in self.nodes.items() for node in nodes for kid in self.kids[node]]
        source, target = zip(*edges, strict=True) if edges else ((), ())
        return strong_components(source, target, self.egraph.n_classes).tolist()

    def _collapse_single(self) -> bool:
        """Decide classes with one node: ``x = f(a); y = g(x) @c | ... -> y = g(a) @(c + cost of f) | ...`` if
        `x` is free, certain (its cost goes to `base`) or used by that one node only (its cost goes there)."""
        users = self._users()
        changed = False
        for cls in [cls for cls, nodes in self.nodes.items() if len(nodes) == 1]:
            node = self.nodes[cls][0]
            if cls in self.kids[node]:
                continue
            if cls in self.roots:
                self.base = _plus(self.base, self.cost[node])
                self.cost[node] = self.zero
                changed |= self._inline(cls, node, users)
            elif self.cost[node] == self.zero:
                changed |= self._inline(cls, node, users)
            elif len(users.get(cls, ())) == 1:
                (user,) = users[cls]
                self.cost[user] = _plus(self.cost[user], self.cost[node])
                self.cost[node] = self.zero
                self._inline(cls, node, users)
                changed = True
        return changed

    def _users(self) -> dict[int, set[int]]:
        users: dict[int, set[int]] = {}
        for nodes in self.nodes.values():
            for node in nodes:
                for kid in self.kids[node]:
                    users.setdefault(kid, set()).add(node)
        return users

    def _inline(self, cls: int, node: int, users: dict[int, set[int]]) -> bool:
        """Put the children of the free `node`, the only one of `cls`, in the place of `cls`."""
        kids, here = self.kids[node], sorted(users.get(cls, ()))
        if (len(kids) - 1) * (len(here) - 1) > _INLINE_GROWTH:
            return False
        for user in here:
            self.kids[user] = (self.kids[user] - {cls}) | kids
        for kid in kids:
            users[kid] = (users.get(kid, set()) - {node}) | set(here)
        if cls in self.roots:
            self.roots.remove(cls)
            self.roots |= kids
        self.fixed[cls] = node
        del self.nodes[cls]
        users.pop(cls, None)
        return True

    def _must_sets(self, deadline: float) -> dict[int, int] | None:
        """For each class the classes that each of its programs holds, as bits:
        ``must(c) = {c} | intersection over nodes n of the union over kids k of must(k)``, greatest solution.
        None if the deadline came first (a half-done set would claim too much)."""
        if sum(map(len, self.nodes.values())) > _MUST_NODE_LIMIT:
            return None
        must: dict[int, int] = {}
        scc = self.components()
        parents: dict[int, set[int]] = {}
        for cls, nodes in self.nodes.items():
            for node in nodes:
                for kid in self.kids[node]:
                    parents.setdefault(kid, set()).add(cls)
        self.bit = {cls: position for position, cls in enumerate(self.nodes)}
        # By component, children first as SciPy numbers them: without cycles each class is looked at once.
        todo = [
            (scc[cls], self.bit[cls], cls)
            for cls, nodes in self.nodes.items()
            if any(not self.kids[n] for n in nodes)
        ]
        heapq.heapify(todo)
        queued = {cls for *_, cls in todo}
        steps = 0
        while todo:
            *_, cls = heapq.heappop(todo)
            queued.discard(cls)
            common = -1
            for node in self.nodes[cls]:
                common &= self._must_of_node(node, must)
            common |= 1 << self.bit[cls]
            if common >= 0 and common != must.get(cls):
                must[cls] = common
                for parent in parents.get(cls, set()) - queued:
                    queued.add(parent)
                    heapq.heappush(todo, (scc[parent], self.bit[parent], parent))
            steps += 1
            if steps % 256 == 0 and time.perf_counter() > deadline:
                return None
        return must

    def _must_of_node(self, node: int, must: dict[int, int]) -> int:
        """The union over the children; -1 (all bits: no claim yet) while a child is unknown."""
        union = 0
        for kid in self.kids[node]:
            union |= must.get(kid, -1)
        return union

    def _use_must(self, must: dict[int, int], upper: float) -> bool:
        """Drop nodes whose children need their own class, or which only too dear programs hold; take what the
        roots need as roots; drop nodes that dominate through what their rival needs indirectly."""
        classes = list(self.nodes)
        cheapest = np.array([min(self.cost[n][0] for n in self.nodes[cls]) for cls in classes])
        self.dearest = float(cheapest.max(initial=0.0))
        forced = 0
        for root in self.roots:
            forced |= must[root]
        sure = self.base[0] + _sum_bits(forced, cheapest)
        limit = upper + _TOLERANCE * (1.0 + abs(upper))
        changed = False
        for cls in classes:
            own = 1 << self.bit[cls]
            needs = {node: self._must_of_node(node, must) for node in self.nodes[cls]}
            kept = [node for node in self.nodes[cls] if not needs[node] & own]
            if upper < float("inf"):
                # A class that is certain has paid for its cheapest node already.
                paid = sure - (cheapest[self.bit[cls]] if forced & own else 0.0)
                kept = [
                    n
                    for n in kept
                    if self._affordable(limit - paid - self.cost[n][0], needs[n] & ~forced, cheapest)
                ]
            kept = self._undominated(kept, needs)
            changed |= len(kept) < len(self.nodes[cls])
            self.nodes[cls] = kept
        new_roots = {cls for cls in classes if forced >> self.bit[cls] & 1}
        changed |= new_roots != self.roots
        self.roots = new_roots
        return changed

    def _affordable(self, room: float, needs: int, cheapest: np.ndarray) -> bool:
        if needs.bit_count() * self.dearest <= room:
            return True
        return _sum_bits(needs, cheapest) <= room

    def _undominated(self, nodes: list[int], needs: dict[int, int]) -> list[int]:
        """The nodes that no other serves for: one that costs no more, and whose children they need too."""
        kept: list[tuple[int, int]] = []
        for node in sorted(nodes, key=lambda n: (self.cost[n], len(self.kids[n]), n)):
            beside, cost = ~needs[node], self.cost[node]
            if not any(not kids & beside and _no_dearer(self.cost[n], cost) for n, kids in kept):
                kept.append((node, sum(1 << self.bit[kid] for kid in self.kids[node])))
        return sorted(n for n, _ in kept)

    def _only_finite(self) -> bool:
        """Drop nodes over classes that have lost all their programs; whether the roots still have one."""
        settled: set[int] = set()
        waiting = {node: len(self.kids[node]) for nodes in self.nodes.values() for node in nodes}
        users = self._users()
        stack = [node for node, count in waiting.items() if count == 0]
        while stack:
            cls = self.home[stack.pop()]
            if cls in settled:
                continue
            settled.add(cls)
            for user in users.get(cls, ()):
                waiting[user] -= 1
                if waiting[user] == 0:
                    stack.append(user)
        self.nodes = {
            cls: [node for node in nodes if waiting[node] == 0]
            for cls, nodes in self.nodes.items()
            if cls in settled
        }
        return self.roots <= settled


def _no_dearer(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[0] and (len(a) == 1 or all(x <= y for x, y in zip(a, b, strict=True)))


def _plus(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _sum_bits(bits: int, values: np.ndarray) -> float:
    if not bits:
        return 0.0
    packed = np.frombuffer(bits.to_bytes((bits.bit_length() + 7) // 8, "little"), np.uint8)
    return float(values[np.flatnonzero(np.unpackbits(packed, bitorder="little"))].sum())
