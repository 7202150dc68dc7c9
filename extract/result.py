"""What an extraction is: one e-node for each class it needs, its cost as a DAG, and how good that is known to
be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..ir.errors import NesteggError
from .flat import FlatEGraph, Int32Array

Choice: TypeAlias = "Int32Array | Mapping[int, int]"
Budget: TypeAlias = "tuple[Sequence[float], float]"
"""`(weight of each node, limit)`: the weights of the chosen nodes, each once, must not exceed the limit."""


class ExtractionError(NesteggError):
    """Nothing can be extracted: a root has only infinite terms, or no term keeps within the budgets."""


@dataclass(frozen=True, eq=False)
class Extraction:
    """A chosen program.

    `choice[c]` is the e-node that stands for class `c`, or -1 where the program does not need `c`.
    `cost` = sum of `node_cost` over the chosen nodes, each once however often it is used.
    `bound` <= the cost of every program (within the budgets); `optimal` says that none is cheaper than this.
    `method`: `tree`, `greedy`, or for an exact one what solved it: `frontier` (`frontier.py`) or `ilp`.
    `limit` is why that stayed open: "" (it did not), "time" or "heuristic". `seconds` is wall-clock time.
    """

    choice: Int32Array
    cost: float
    bound: float
    method: str
    seconds: float
    optimal: bool
    limit: str = ""

    @property
    def gap(self) -> float:
        """`(cost - bound) / cost`: 0 when proved optimal, 1 when nothing is known."""
        return 0.0 if self.optimal or self.cost <= 0.0 else max(0.0, (self.cost - self.bound) / self.cost)

    def __str__(self) -> str:
        state = "optimal" if self.optimal else f"gap {self.gap:.2%}"
        return (
            f"{self.method}: cost {self.cost:.10g}, bound {self.bound:.10g} ({state}), {self.seconds:.2f} s"
        )


def checked(egraph: FlatEGraph, budget: Budget) -> tuple[npt.NDArray[np.float64], float]:
    """A budget as an array and a number. Raises `ExtractionError` if it is malformed."""
    weights, limit = np.asarray(budget[0], np.float64), float(budget[1])
    if weights.shape != (egraph.n_nodes,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ExtractionError(
            f"a budget has weights of shape {weights.shape} or negative or non-finite ones: "
            f"give one finite weight >= 0 for each of the {egraph.n_nodes} e-nodes"
        )
    if math.isnan(limit):
        raise ExtractionError("a budget has the limit nan: give a number")
    return weights, limit


def as_array(egraph: FlatEGraph, choice: Choice) -> Int32Array:
    """`choice` as an array over all classes, -1 where it has none."""
    if not isinstance(choice, Mapping):
        return np.asarray(choice, np.int32)
    array = np.full(egraph.n_classes, -1, np.int32)
    for cls, node in choice.items():
        array[cls] = node
    return array


def restrict(egraph: FlatEGraph, choice: Int32Array) -> Int32Array:
    """`choice` with -1 for all classes that the roots do not reach through it."""
    kids, picked = egraph.child_sets, choice.tolist()
    kept = np.full(egraph.n_classes, -1, np.int32)
    stack = list(egraph.roots)
    while stack:
        cls = stack.pop()
        if kept[cls] < 0 and picked[cls] >= 0:
            kept[cls] = picked[cls]
            stack.extend(kids[picked[cls]])
    return kept


def dag_cost(egraph: FlatEGraph, choice: Int32Array) -> float:
    """The sum of the costs of the nodes that the roots reach through `choice`, each once."""
    kept = restrict(egraph, choice)
    return float(egraph.node_cost[kept[kept >= 0]].sum())


def validate(egraph: FlatEGraph, choice: Choice) -> bool:
    """Whether `choice` is a program: every root and every child of a chosen node that the roots reach has a
    node of its own class, and no class needs itself."""
    picked = as_array(egraph, choice).tolist()
    if len(picked) != egraph.n_classes:
        return False
    done: set[int] = set()
    open_path: set[int] = set()
    stack: list[tuple[int, bool]] = [(root, False) for root in egraph.roots]
    while stack:
        cls, leaving = stack.pop()
        if leaving:
            open_path.discard(cls)
            done.add(cls)
            continue
        if cls in done:
            continue
        node = picked[cls]
        if cls in open_path or not (0 <= node < egraph.n_nodes) or egraph.node_class[node] != cls:
            return False
        open_path.add(cls)
        stack.append((cls, True))
        stack.extend((kid, False) for kid in egraph.child_sets[node] if kid not in done)
    return True


def require_terms(egraph: FlatEGraph, choice: Int32Array) -> None:
    """Raise `ExtractionError` if a root got no node: all its terms are infinite."""
    for root in egraph.roots:
        if choice[root] < 0:
            raise ExtractionError(
                f"root e-class {egraph.class_name[root]!r} has no finite term: every e-node in it needs the "
                "class itself; add a leaf or a rule that breaks the cycle"
            )
