"""DAG-optimal extraction: by frontiers where few classes are open at a time (`frontier.py`), which most networks allow;
else simplify, split, and give each piece to HiGHS as a 0/1 program.

    minimise  sum cost[n] x[n]
    classes   z[c] = sum of x[n] over the nodes n of c, at most 1, and 1 for a root
    children  sum of x[n] over the nodes n of c that need d <= z[d]
    cuts      sum of x[n] over the exits of S >= z[j]   for sets S of classes and j in S, added when broken
    budgets   sum weight[n] x[n] <= limit

The cuts say that a program that enters a set of classes leaves it again; there are too many to write down, so they are
found in the LP's and the MIP's solutions: as shortest cycles, and as minimal cuts below a root (`part.py`). Every solve
starts from the best program known and the answer is never worse than greedy or tree extraction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .budgeted import priced_choices, within
from .flat import FlatEGraph, Int32Array
from .frontier import frontier_choice
from .greedy import LocalSearch, greedy_choice
from .lns import NeighbourhoodSearch
from .part import KnownCuts, Part, split
from .program import Program
from .reduce import Reduction
from .result import Budget, Extraction, ExtractionError, checked, dag_cost, require_terms, restrict, validate
from .tree import dearest_path, tree_choice

NARROW = 8_000
"""Open states up to which an e-graph is solved as it is."""
_FIRST_SHARE = 0.4
_FRONTIER_SHARE = 0.6
_HEURISTIC_SHARE = 0.15
_REDUCE_SHARE = 0.25
# Where in the time of one piece each phase ends.
_STARTS_UNTIL = 0.1
_LP_UNTIL = 0.5
_MIP_UNTIL = 0.6
_REGIONS_UNTIL = 0.7
_MIP_NODES = 4000
"""Larger pieces get neighbourhoods instead of a second MIP."""
_TOLERANCE = 1e-9


def ilp_extract(
    egraph: FlatEGraph, time_limit: float = 20.0, budgets: Sequence[Budget] = (), known: KnownCuts | None = None
) -> Extraction:
    """The cheapest DAG, or the best one found in `time_limit` seconds with a bound. `known`: cuts found in e-graphs
    like this one, to which those found now are added.

    Raises `ExtractionError` if a root has no finite term, or if no program keeps within the budgets (or none
    that does was found in time; the message says which).
    """
    start = time.perf_counter()
    deadline = start + time_limit
    checks = [checked(egraph, budget) for budget in budgets]
    best = _Best(egraph, checks)
    require_terms(egraph, tree_choice(egraph))
    reduction = Reduction(egraph, [weights.tolist() for weights, _ in checks])
    exact = None if checks else _exact_choice(reduction, start, time_limit)
    if exact is not None:
        best.offer(exact)
        assert best.choice is not None, "what the frontiers give is a program"
        return Extraction(best.choice, best.cost, best.cost, "frontier", time.perf_counter() - start, True)
    for choice in heuristic_choices(egraph, start + _HEURISTIC_SHARE * time_limit):
        best.offer(choice)
    if checks:
        for choice in priced_choices(egraph, checks, start + 2 * _HEURISTIC_SHARE * time_limit):
            best.offer(choice)
    bound, limit = _solve(reduction, best, deadline, known=known)
    bound = max(bound, dearest_path(egraph))
    seconds = time.perf_counter() - start
    if best.choice is None:
        raise ExtractionError(_no_program(bound, limit, time_limit))
    optimal = not limit or bound >= best.cost - _TOLERANCE * (1.0 + abs(best.cost))
    bound = best.cost if optimal else min(bound, best.cost)
    return Extraction(best.choice, best.cost, bound, "ilp", seconds, optimal, "" if optimal else limit)


def _exact_choice(reduction: Reduction, start: float, time_limit: float) -> Int32Array | None:
    """What frontiers give, of the e-graph as it is or else simplified: narrow ones need no simplification, which takes
    as long, and may widen them (a class that is collapsed leaves its users all that it needs)."""
    exact = frontier_choice(reduction, start + _FIRST_SHARE * time_limit, NARROW)
    if exact is None:
        deadline = start + _FRONTIER_SHARE * time_limit
        reduction.run(deadline)
        exact = frontier_choice(reduction, deadline)
    return exact


def heuristic_choices(egraph: FlatEGraph, deadline: float) -> list[Int32Array]:
    """Tree-optimal and greedy-DAG choices, and both after a local search."""
    plain = [tree_choice(egraph), greedy_choice(egraph)]
    require_terms(egraph, plain[0])
    return plain + [LocalSearch(egraph, choice).run(deadline) for choice in reversed(plain)]


class _Best:
    """The best valid program within the budgets so far."""

    def __init__(self, egraph: FlatEGraph, budgets: Sequence[tuple[npt.NDArray[np.float64], float]]) -> None:
        self.egraph, self.budgets = egraph, budgets
        self.choice: Int32Array | None = None
        self.cost = math.inf

    def offer(self, choice: Int32Array) -> None:
        kept = restrict(self.egraph, choice)
        nodes = kept[kept >= 0]
        cost = float(self.egraph.node_cost[nodes].sum())
        if cost < self.cost and within(self.budgets, nodes) and validate(self.egraph, kept):
            self.choice, self.cost = kept, cost


def _no_program(bound: float, limit: str, time_limit: float) -> str:
    if math.isinf(bound) or not limit:
        return "no program keeps within the budgets: raise a limit or add cheaper e-nodes"
    return f"no program within the budgets was found in {time_limit:g} s: raise the time limit or a budget"


def _solve(
    reduction: Reduction, best: _Best, deadline: float, deep: bool = True, known: KnownCuts | None = None
) -> tuple[float, str]:
    """Improve `best`; returns a lower bound and the reason why it may not be met ("" if the search was
    complete)."""
    if time.perf_counter() > deadline:
        return dearest_path(reduction.egraph), "time"
    now = time.perf_counter()
    reduction.run(now + _REDUCE_SHARE * (deadline - now), best.cost)
    if reduction.dead:
        return best.cost, ""
    bound, limit, picked = reduction.base[0], "", {}
    limits = [cap - spent for (_, cap), spent in zip(best.budgets, reduction.base[1:], strict=True)]
    parts = split(reduction, together=bool(best.budgets))
    nodes_left = sum(part.egraph.n_nodes for part in parts)
    for part in parts:
        now = time.perf_counter()
        share = now + (deadline - now) * part.egraph.n_nodes / nodes_left
        nodes_left -= part.egraph.n_nodes
        program = Program(part, limits, known.of(part) if known else ())
        _solve_part(program, best.choice, share, deep and not best.budgets)
        if known is not None:
            known.add(part, program.cuts)
        bound += program.bound
        limit = limit or program.limit
        if program.choice is None:
            return (bound, limit)
        picked |= part.picked(program.choice.tolist())
    best.offer(reduction.restore(picked))
    return bound, limit


def _solve_part(program: Program, known: Int32Array | None, deadline: float, deep: bool) -> None:
    """LP and MIP; where these do not close the gap soon, and `deep`, neighbourhoods, then the MIP again."""
    begun = time.perf_counter()

    def after(share: float) -> float:
        return begun + share * (deadline - begun)

    program.relax(after(_LP_UNTIL), _warm_starts(program.part, known, after(_STARTS_UNTIL)))
    program.search(after(_MIP_UNTIL) if deep else deadline)
    if not deep or program.closed or not program.limit or program.choice is None or time.perf_counter() > deadline:
        return
    again = program.part.egraph.n_nodes <= _MIP_NODES
    egraph = program.part.egraph
    search = NeighbourhoodSearch(egraph, complete(egraph, program.choice), solve_region)
    program.offer(search.run(after(_REGIONS_UNTIL) if again else deadline))
    if again or search.stuck:
        program.search(deadline)


def complete(egraph: FlatEGraph, choice: Int32Array) -> Int32Array:
    """`choice`, and for the classes it does not use the node they would enter that program with most
    cheaply."""
    costs = egraph.node_cost.copy()
    costs[choice[choice >= 0]] = 0.0
    return np.where(choice >= 0, choice, greedy_choice(egraph, costs.tolist())).astype(np.int32)


def solve_region(egraph: FlatEGraph, known: Int32Array, deadline: float) -> Int32Array:
    """A choice no worse than `known`, by simplification, LP and MIP."""
    best = _Best(egraph, ())
    best.offer(known)
    assert best.choice is not None, "the program around a region is valid"
    _solve(Reduction(egraph), best, deadline, deep=False)
    return best.choice


def _warm_starts(part: Part, known: Int32Array | None, deadline: float) -> list[Int32Array]:
    """Programs of a piece: greedy, tree, and the known program's nodes wherever the piece still has them."""
    egraph = part.egraph
    starts = [greedy_choice(egraph), tree_choice(egraph)]
    if known is not None:
        favoured = np.isin(np.array(part.node_id), known)
        starts.append(greedy_choice(egraph, (np.where(favoured, 1e-3, 1.0) * egraph.node_cost).tolist()))
    searched = [LocalSearch(egraph, choice).run(deadline) for choice in starts]
    return sorted(starts + searched, key=lambda choice: dag_cost(egraph, choice))
