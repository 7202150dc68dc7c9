"""Extraction: choosing one program out of an e-graph.

e-graph (flat arrays)  --extract-->  one e-node for each class that the program needs
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..ir.garbage import no_collection
from .budgeted import priced_choices
from .flat import EGraphBuilder, FlatEGraph, Int32Array
from .greedy import LocalSearch, greedy_choice
from .gym import extract_file, read_gym, write_gym
from .part import KnownCuts
from .result import Budget, Extraction, ExtractionError, checked, dag_cost, require_terms, restrict, validate
from .tree import tree_choice

__all__ = [
    "Budget",
    "EGraphBuilder",
    "Extraction",
    "ExtractionError",
    "FlatEGraph",
    "KnownCuts",
    "extract",
    "extract_file",
    "read_gym",
    "validate",
    "write_gym",
]


def extract(
    egraph: FlatEGraph,
    method: str = "ilp",
    time_limit: float = 20.0,
    budgets: Sequence[Budget] = (),
    known: KnownCuts | None = None,
) -> Extraction:
    """Choose a cheap program: `"tree"` is optimal if nothing is shared, `"greedy"` sees sharing, `"ilp"` is
    optimal or says how far off it can be, and is never worse than the other two. `"greedy"` and `"ilp"` take
    `budgets`. `known`: cuts that `"ilp"` found in e-graphs whose classes bear the same names, to which it adds.

    Raises `ExtractionError` if a root has no finite term or nothing keeps within the budgets.
    """
    with no_collection():
        return _extract(egraph, method, time_limit, budgets, known)


def _extract(
    egraph: FlatEGraph, method: str, time_limit: float, budgets: Sequence[Budget], known: KnownCuts | None
) -> Extraction:
    if method == "ilp":
        from .ilp import ilp_extract  # HiGHS loads when it is used

        return ilp_extract(egraph, time_limit, budgets, known)
    if budgets and method == "tree":
        raise ExtractionError("method 'tree' cannot keep budgets: use 'ilp' or 'greedy'")
    start = time.perf_counter()
    if method == "tree":
        choice = tree_choice(egraph)
        require_terms(egraph, choice)
    elif method == "greedy" and budgets:
        choice = _greedy_within(egraph, budgets, start + time_limit)
    elif method == "greedy":
        choice = greedy_choice(egraph)
        require_terms(egraph, choice)
        choice = LocalSearch(egraph, choice).run(start + time_limit)
    else:
        raise ExtractionError(f"there is no extraction method {method!r}: use 'ilp', 'greedy' or 'tree'")
    cost = dag_cost(egraph, choice)
    seconds = time.perf_counter() - start
    return Extraction(
        restrict(egraph, choice), cost, 0.0, method, seconds, cost == 0.0, "heuristic" if cost else ""
    )


def _greedy_within(egraph: FlatEGraph, budgets: Sequence[Budget], deadline: float) -> Int32Array:
    require_terms(egraph, tree_choice(egraph))
    found = list(priced_choices(egraph, [checked(egraph, b) for b in budgets], deadline))
    if not found:
        raise ExtractionError("greedy extraction found no program within the budgets: raise a limit or use 'ilp'")
    return min(found, key=lambda choice: dag_cost(egraph, choice))
