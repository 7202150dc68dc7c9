"""An e-graph as flat NumPy arrays: exported once, then read by every extractor without touching Python
objects.

Holds the arrays and what follows from them (nodes of a class, users of a class, cycles). Holds no algorithm
that chooses anything: those are in `tree`, `greedy` and `ilp`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..ir.errors import EGraphFormatError

Int32Array = npt.NDArray[np.int32]
Float64Array = npt.NDArray[np.float64]

_PRINTED_NODES = 40


@dataclass(frozen=True, eq=False)
class FlatEGraph:
    """An e-graph: e-node `n` lies in class `node_class[n]`, costs `node_cost[n]` and needs the classes
    `child_class[child_ptr[n]:child_ptr[n + 1]]` (a class may be named twice, as in `mul(x, x)`).

    `node_op` is the operator each node is printed and written with; empty means the same as `node_name`.
    """

    node_class: Int32Array
    node_cost: Float64Array
    child_ptr: Int32Array
    child_class: Int32Array
    roots: tuple[int, ...]
    node_name: tuple[str, ...]
    class_name: tuple[str, ...]
    node_op: tuple[str, ...] = ()

    @property
    def n_nodes(self) -> int:
        """How many e-nodes there are."""
        return len(self.node_class)

    @property
    def n_classes(self) -> int:
        """How many e-classes there are."""
        return len(self.class_name)

    def children(self, node: int) -> Int32Array:
        """The child classes of `node`, in operand order."""
        return self.child_class[self.child_ptr[node] : self.child_ptr[node + 1]]

    def nodes_of(self, cls: int) -> Int32Array:
        """The nodes of class `cls`, in ascending order."""
        ptr, nodes = self.class_nodes
        return nodes[ptr[cls] : ptr[cls + 1]]

    def op(self, node: int) -> str:
        """The operator `node` is printed with."""
        return self.node_op[node] if self.node_op else self.node_name[node]

    @cached_property
    def class_nodes(self) -> tuple[Int32Array, Int32Array]:
        """`(ptr, nodes)`: class `c` holds `nodes[ptr[c]:ptr[c + 1]]`."""
        return _group(self.node_class, self.n_classes)

    @cached_property
    def child_sets(self) -> tuple[tuple[int, ...], ...]:
        """For each node its distinct child classes, in order of first use."""
        ptr, kids = self.child_ptr.tolist(), self.child_class.tolist()
        return tuple(tuple(dict.fromkeys(kids[a:b])) for a, b in zip(ptr, ptr[1:], strict=False))

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """For each class the nodes that name it as a child, each once, ascending."""
        found: list[list[int]] = [[] for _ in range(self.n_classes)]
        for node, kids in enumerate(self.child_sets):
            for kid in kids:
                found[kid].append(node)
        return tuple(map(tuple, found))

    @cached_property
    def scc(self) -> Int32Array:
        """For each class the id of its strongly connected component: two classes share an id exactly when
        each can reach the other, so that a cycle of choices can only run inside one id."""
        return strong_components(
            np.repeat(self.node_class, np.diff(self.child_ptr)), self.child_class, self.n_classes
        )

    def __str__(self) -> str:
        """One line a class, capped: ``x0 (root) = add(x1, x2) @1.5 | shl(x1) @1``."""
        lines = [f"e-graph: {self.n_nodes} e-nodes, {self.n_classes} e-classes, {len(self.roots)} roots"]
        shown, roots = 0, set(self.roots)
        for cls in range(self.n_classes):
            nodes = self.nodes_of(cls).tolist()
            if shown + len(nodes) > _PRINTED_NODES and shown:
                lines.append(
                    f"  ... {self.n_nodes - shown} e-nodes in {self.n_classes - cls} e-classes left out"
                )
                break
            left_out = f" | ... {len(nodes) - _PRINTED_NODES} more" if len(nodes) > _PRINTED_NODES else ""
            mark = " (root)" if cls in roots else ""
            terms = " | ".join(self._term(node) for node in nodes[:_PRINTED_NODES])
            lines.append(f"  {self.class_name[cls]}{mark} = {terms}{left_out}")
            shown += len(nodes)
        return "\n".join(lines)

    def _term(self, node: int) -> str:
        kids = ", ".join(self.class_name[kid] for kid in self.children(node))
        return (
            f"{self.op(node)}({kids}) @{self.node_cost[node]:g}"
            if kids
            else f"{self.op(node)} @{self.node_cost[node]:g}"
        )


def strong_components(source: npt.ArrayLike, target: npt.ArrayLike, n: int) -> Int32Array:
    """Component ids of the directed graph on `0..n-1` with an edge `source[i] -> target[i]`."""
    return _components(source, target, n, "strong")


def weak_components(source: npt.ArrayLike, target: npt.ArrayLike, n: int) -> Int32Array:
    """As `strong_components`, but an edge joins both ways."""
    return _components(source, target, n, "weak")


def _components(source: npt.ArrayLike, target: npt.ArrayLike, n: int, connection: str) -> Int32Array:
    from scipy.sparse import csr_matrix  # slow to load, and not every use of this room needs it
    from scipy.sparse.csgraph import connected_components

    source, target = np.asarray(source, np.int32), np.asarray(target, np.int32)
    graph = csr_matrix((np.ones(len(source), np.int8), (source, target)), shape=(n, n))
    return connected_components(graph, directed=True, connection=connection)[1].astype(np.int32)


def _group(keys: Int32Array, n: int) -> tuple[Int32Array, Int32Array]:
    counts = np.bincount(keys, minlength=n)
    ptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return ptr, np.argsort(keys, kind="stable").astype(np.int32)


@dataclass
class EGraphBuilder:
    """Collects classes and nodes by name, in any order, and freezes them into a `FlatEGraph`.

    >>> b = EGraphBuilder()
    >>> b.node("x", "leaf", 1.0); b.node("twice", "add", 2.0, ["x", "x"]); b.root("twice")
    >>> print(b.build())
    e-graph: 2 e-nodes, 2 e-classes, 1 roots
      x = leaf @1
      twice (root) = add(x, x) @2
    """

    _ids: dict[str, int] = field(default_factory=dict)
    _nodes: list[tuple[int, float, str, str, list[int]]] = field(default_factory=list)
    _roots: list[int] = field(default_factory=list)

    def class_id(self, name: str) -> int:
        """The number of the class called `name`, a new one if it is not known yet."""
        return self._ids.setdefault(name, len(self._ids))

    def node(
        self, cls: str, op: str, cost: float, children: Iterable[str] = (), name: str | None = None
    ) -> None:
        """Add an e-node to class `cls`; `name` defaults to its running number."""
        if not (cost >= 0.0 and np.isfinite(cost)):
            raise EGraphFormatError(f"e-node {op!r} of class {cls!r} costs {cost}: give a finite cost >= 0")
        home = self.class_id(cls)
        kids = [self.class_id(kid) for kid in children]
        self._nodes.append((home, float(cost), name or str(len(self._nodes)), op, kids))

    def root(self, cls: str) -> None:
        """Ask for class `cls` to be extracted."""
        if self.class_id(cls) not in self._roots:
            self._roots.append(self.class_id(cls))

    def build(self) -> FlatEGraph:
        """The e-graph collected so far. Raises `EGraphFormatError` if a named class has no node."""
        filled = {home for home, *_ in self._nodes}
        for name, cls in self._ids.items():
            if cls not in filled:
                raise EGraphFormatError(f"e-class {name!r} has no e-node: add one, or do not name the class")
        kids = [kid for *_, node_kids in self._nodes for kid in node_kids]
        ptr = np.cumsum([0] + [len(node[-1]) for node in self._nodes])
        return FlatEGraph(
            node_class=np.array([node[0] for node in self._nodes], np.int32),
            node_cost=np.array([node[1] for node in self._nodes], np.float64),
            child_ptr=ptr.astype(np.int32),
            child_class=np.array(kids, np.int32),
            roots=tuple(self._roots),
            node_name=tuple(node[2] for node in self._nodes),
            class_name=tuple(self._ids),
            node_op=tuple(node[3] for node in self._nodes),
        )
