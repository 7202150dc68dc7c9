"""An independent piece of a reduced e-graph, with its cycle cuts: what one ILP is about.

After the reduction, edges to classes that are chosen anyway are gone, so that the rest falls into pieces
which share no class; each is solved on its own and the costs add up.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .flat import FlatEGraph, strong_components, weak_components
from .reduce import Reduction
from .tree import dearest_paths

_VIOLATION = 1e-4
_MAX_CUTS = 400
_MAX_LOOP = 60
_NESTED_CUTS = 20
_UNIT = 1_000_000
"""Flows are of integers: what a whole node counts."""

Cut = tuple[int, tuple[int, ...]]
"""`(j, S)`: if class `j` of the classes `S` is chosen, some chosen node of a class in `S` needs nothing in `S`. True of
any set of classes, for a program has no cycle; of use are sets that a fractional point breaks."""


class KnownCuts:
    """Cuts by the names of classes, kept from one e-graph to the next: they do not depend on costs."""

    def __init__(self) -> None:
        self._cuts: dict[tuple[str, frozenset[str]], None] = {}

    def of(self, part: Part) -> list[Cut]:
        """Those that say something of the part. Of a set of classes any subset makes a cut, too."""
        local = {name: cls for cls, name in enumerate(part.egraph.class_name)}
        found = {
            (local[head], tuple(sorted(local[c] for c in classes if c in local))): None
            for head, classes in self._cuts
            if head in local
        }
        return list(found)

    def add(self, part: Part, cuts: Sequence[Cut]) -> None:
        name = part.egraph.class_name
        self._cuts |= {(name[head], frozenset(name[c] for c in classes)): None for head, classes in cuts}


@dataclass(frozen=True, eq=False)
class Part:
    """A piece as an e-graph of its own: `egraph` with local numbers, `node_id` and `class_id` giving the
    original ones, `weights` the budget weights (a row for each budget), by local node."""

    egraph: FlatEGraph
    node_id: tuple[int, ...]
    class_id: tuple[int, ...]
    weights: npt.NDArray[np.float64]

    @cached_property
    def dearness(self) -> tuple[float, ...]:
        """What making each class costs at least."""
        return tuple(dearest_paths(self.egraph))

    @cached_property
    def loop_classes(self) -> frozenset[int]:
        """The classes that lie on some cycle."""
        sizes = np.bincount(self.egraph.scc, minlength=self.egraph.n_classes)
        return frozenset(np.flatnonzero(sizes[self.egraph.scc] > 1).tolist())

    def picked(self, choice: Sequence[int]) -> dict[int, int]:
        """A choice on the piece in original numbers."""
        return {self.class_id[cls]: self.node_id[node] for cls, node in enumerate(choice) if node >= 0}

    def exits(self, loop: Sequence[int]) -> list[int]:
        """The nodes in the classes of `loop` that need no class of it."""
        inside = set(loop)
        kids = self.egraph.child_sets
        return [
            node
            for cls in loop
            for node in self.egraph.nodes_of(cls).tolist()
            if inside.isdisjoint(kids[node])
        ]


def split(reduction: Reduction, together: bool = False) -> list[Part]:
    """The pieces of a reduced e-graph, small ones first; all in one if `together` (a budget couples them)."""
    classes = list(reduction.nodes)
    local = {cls: position for position, cls in enumerate(classes)}
    edges = [
        (local[c], local[k]) for c, nodes in reduction.nodes.items() for n in nodes for k in reduction.kids[n]
    ]
    if not classes:
        return []
    labels = np.zeros(len(classes), np.int32)
    if not together:
        source, target = zip(*edges, strict=True) if edges else ((), ())
        labels = weak_components(source, target, len(classes))
    groups: dict[int, list[int]] = {}
    for cls, label in zip(classes, labels.tolist(), strict=True):
        groups.setdefault(label, []).append(cls)
    parts = [_part(reduction, group) for group in groups.values()]
    return sorted(parts, key=lambda part: part.egraph.n_nodes)


def _part(reduction: Reduction, classes: list[int]) -> Part:
    local = {cls: position for position, cls in enumerate(classes)}
    nodes = [node for cls in classes for node in reduction.nodes[cls]]
    kids = [sorted(local[kid] for kid in reduction.kids[node]) for node in nodes]
    costs = np.array([reduction.cost[node] for node in nodes]).reshape(len(nodes), -1)
    names = reduction.egraph
    egraph = FlatEGraph(
        node_class=np.array([local[reduction.home[node]] for node in nodes], np.int32),
        node_cost=costs[:, 0].copy(),
        child_ptr=np.cumsum([0] + [len(k) for k in kids]).astype(np.int32),
        child_class=np.array([kid for node_kids in kids for kid in node_kids], np.int32),
        roots=tuple(local[cls] for cls in classes if cls in reduction.roots),
        node_name=tuple(names.node_name[node] for node in nodes),
        class_name=tuple(names.class_name[cls] for cls in classes),
    )
    return Part(egraph, tuple(nodes), tuple(classes), costs[:, 1:].T.copy())


def violated_cuts(part: Part, x: npt.NDArray[np.float64], limit: int = _MAX_CUTS) -> list[Cut]:
    """Cuts that the point `x` (a value for each node, perhaps fractional) breaks; none if `x` is integral and its
    program has no cycle."""
    return list(dict.fromkeys([*_cycle_cuts(part, x, limit), *_derivation_cuts(part, x)]))


def _cycle_cuts(part: Part, x: npt.NDArray[np.float64], limit: int) -> list[Cut]:
    """Cuts around cycles of the point's support.

    A cheapest cycle through class `j`, an edge `c -> d` costing the share of `c` that does *not* go to `d`,
    gives a loop `S`; the cut is ``sum of x over exits(S) >= sum of x over j``.
    """
    active = np.bincount(part.egraph.node_class, weights=x, minlength=part.egraph.n_classes)
    slack = _edge_slack(part, x, active)
    cuts: dict[tuple[int, ...], Cut] = {}
    for start in _by_activity(part, active, slack):
        loop = _cheapest_cycle(start, slack, active[start] - _VIOLATION)
        if loop is None:
            continue
        loop = tuple(sorted(_grow(part, x, loop)))
        head = max(loop, key=lambda cls: (active[cls], -cls))
        if loop not in cuts and x[part.exits(loop)].sum() < active[head] - _VIOLATION:
            cuts[loop] = (head, loop)
            if len(cuts) >= limit:
                break
    return list(cuts.values())


def _derivation_cuts(part: Part, x: npt.NDArray[np.float64]) -> list[Cut]:
    """Cuts between a root and the nodes that need nothing.

    Every program of a root holds a way down from it: from a class to its node, from a node to one of its children. If
    each node goes on to one child settled beforehand, a set of nodes that every way crosses is an ordinary cut, and a
    point that puts less than 1 on it pays for no program as a whole: shares of one that meet further down, where each
    class that needs the same tensor asks only for its own share. A minimal cut comes from a maximal flow.
    """
    active = np.bincount(part.egraph.node_class, weights=x, minlength=part.egraph.n_classes)
    dearness = part.dearness

    def least_active(kid: int) -> tuple[float, float]:
        return round(float(active[kid]), 6), -dearness[kid]

    def dearest(kid: int) -> tuple[float, float]:
        return -dearness[kid], float(active[kid])

    cuts: list[Cut] = []
    for order in (least_active, dearest):
        bottom = part.egraph.n_classes
        below = np.array([min(kids, key=order) if kids else bottom for kids in part.egraph.child_sets], np.int64)
        for root in part.egraph.roots:
            cuts += _minimal_cuts(part, x, root, below)
    return cuts


def _minimal_cuts(part: Part, x: npt.NDArray[np.float64], root: int, below: npt.NDArray[np.int64]) -> list[Cut]:
    """Broken cuts below a root, where node `n` goes on to class `below[n]` (past the last: to nothing). Cuts that share
    no node are found one after the other: what is cut counts as whole from then on."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    above, bottom = part.egraph.node_class, part.egraph.n_classes
    room = np.round(x * _UNIT).astype(np.int32)
    cuts: list[Cut] = []
    for _ in range(_NESTED_CUTS):
        used = room > 0
        ways = csr_matrix((room[used], (above[used], below[used])), shape=(bottom + 1, bottom + 1))
        flow = maximum_flow(ways, root, bottom)
        if flow.flow_value >= _UNIT * (1 - _VIOLATION):
            break
        left = ways - flow.flow
        left.data[left.data < 0] = 0
        left.eliminate_zeros()
        reached = breadth_first_order(left, root, return_predecessors=False)
        inside = np.zeros(bottom + 1, bool)
        inside[reached] = True
        loop = tuple(sorted(reached.tolist()))
        if x[part.exits(loop)].sum() < 1 - _VIOLATION:
            cuts.append((root, loop))
        room[inside[above] & ~inside[below]] = _UNIT
    return cuts


def _edge_slack(part: Part, x: np.ndarray, active: np.ndarray) -> dict[int, dict[int, float]]:
    """`slack[c][d]` = how much of class `c` is chosen by nodes that do not need `d`; only edges on cycles of
    the support, since nothing else can be in a broken cut's cycle."""
    flow: dict[int, dict[int, float]] = {}
    kids, home = part.egraph.child_sets, part.egraph.node_class
    for node in np.flatnonzero(x > 1e-6).tolist():
        cls = int(home[node])
        if cls in part.loop_classes:
            row = flow.setdefault(cls, {})
            for kid in kids[node]:
                if kid in part.loop_classes:
                    row[kid] = row.get(kid, 0.0) + float(x[node])
    edges = [(cls, kid) for cls, row in flow.items() for kid in row]
    if not edges:
        return {}
    source, target = zip(*edges, strict=True)
    scc = strong_components(source, target, part.egraph.n_classes)
    return {
        cls: {kid: max(0.0, float(active[cls]) - y) for kid, y in row.items() if scc[kid] == scc[cls]}
        for cls, row in flow.items()
    }


def _by_activity(part: Part, active: np.ndarray, slack: dict[int, dict[int, float]]) -> Iterator[int]:
    yield from sorted((cls for cls, row in slack.items() if row), key=lambda cls: (-active[cls], cls))


def _cheapest_cycle(start: int, slack: dict[int, dict[int, float]], limit: float) -> tuple[int, ...] | None:
    """The classes of the cheapest cycle through `start` if it costs less than `limit` (Dijkstra)."""
    heap, before, done = [(0.0, start, -1)], {}, set()
    while heap:
        cost, cls, origin = heapq.heappop(heap)
        if cls in done and cls != start:
            continue
        if cls == start and origin >= 0:
            loop = [origin]
            while loop[-1] != start:
                loop.append(before[loop[-1]])
            return tuple(loop)
        if cls in done:
            continue
        done.add(cls)
        before[cls] = origin
        for kid, weight in slack.get(cls, {}).items():
            if cost + weight < limit and (kid == start or kid not in done):
                heapq.heappush(heap, (cost + weight, kid, cls))
    return None


def _grow(part: Part, x: np.ndarray, loop: tuple[int, ...]) -> set[int]:
    """Add classes to the loop while that lowers the value of its exits: a tighter cut."""
    kids, inside = part.egraph.child_sets, set(loop)
    while len(inside) < _MAX_LOOP:
        gain: dict[int, float] = {}
        for node in part.exits(sorted(inside)):
            if x[node] > 1e-6:
                for kid in kids[node]:
                    if kid in part.loop_classes:
                        gain[kid] = gain.get(kid, 0.0) + float(x[node])
        best, best_gain = -1, 1e-6
        for cls, value in sorted(gain.items()):
            fresh = [n for n in part.egraph.nodes_of(cls).tolist() if x[n] > 1e-6]
            price = sum(float(x[n]) for n in fresh if inside.isdisjoint(kids[n]) and cls not in kids[n])
            if value - price > best_gain:
                best, best_gain = cls, value - price
        if best < 0:
            break
        inside.add(best)
    return inside
