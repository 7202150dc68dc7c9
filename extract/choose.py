"""Graph extraction: which kernels compute the outputs, with the costs of kernels taken from the loop level.

A kernel's cost is the best nest of its loop e-graph, which takes time to find; most kernels of a graph e-graph are
never worth it. So costs start as lower bounds, the best program is extracted, the kernels it uses are searched, and
the extraction is repeated until every kernel in the best program has its true cost. The others count with their lower
bound and a small allowance (`SLACK`), so that no program left aside is better by more than that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..ir.compose import merge_inputs
from ..ir.errors import UnsupportedError
from ..ir.expr import Const, Read, ReadAt, Scalar, TensorExpr, inputs_read, rebuild, renumber
from ..ir.loops import Lowered, lower
from ..ir.nest import Nest
from ..ir.scalars import SCALARS
from ..ir.types import DTYPES
from ..rewrite.graph_egraph import CallNode, EClass, GraphEGraph
from . import KnownCuts, extract
from .flat import EGraphBuilder
from .result import Budget, Extraction
from .search import Estimate

#: A kernel not searched yet is taken to cost this much more than its bound. The bound leaves out the loops around the
#: register tile; without the allowance, every near miss of the best program would be searched for a few per cent.
#: Kernels of several stages go without: there are few, and what they save is often no more.
SLACK = 1.1

#: Rounds of extracting and searching.
GREEDY_ROUNDS = 40
EXACT_ROUNDS = 4

#: Operators whose result holds its operand's elements and no others.
REPEATS = ("broadcast", "reshape")

#: Those, and the others whose result is one number throughout if their operands are.
UNIFORM = frozenset({*REPEATS, *SCALARS, "cast"})

#: Seconds to call a kernel, besides its work.
CALL_OVERHEAD = 5e-8


class KernelCosts(Protocol):
    """Where costs of kernels come from, in seconds."""

    def estimates(self, exprs: Sequence[TensorExpr]) -> list[Estimate]:
        """What is known of each expression's kernel before it is searched, a lower bound among it: quick."""
        ...

    def search(self, kernels: Sequence[Lowered]) -> list[tuple[Nest, float] | None]:
        """The best nest of each kernel and its predicted seconds, or None if it has none within the search's limits."""
        ...


@dataclass(frozen=True)
class Step:
    """A kernel applied: `args` are e-classes, `result` the e-class it makes."""

    kernel: Lowered
    args: tuple[int, ...]
    result: int
    nest: Nest | None
    seconds: float


@dataclass(frozen=True)
class GraphChoice:
    """The chosen program: steps in order, and the extraction's figures (its cost is in seconds).

    `unusable`: kernels set aside because their search ended without a schedule. `greedy_cost`: what greedy extraction
    makes of the same e-graph with the same costs. `loss`: the estimated variance of the outputs' relative error that
    its approximations cause.
    """

    steps: tuple[Step, ...]
    extraction: Extraction
    rounds: int
    searched: int
    unusable: int
    greedy_cost: float
    loss: float


@dataclass(frozen=True)
class Candidate:
    """A kernel that may make the e-class `owner` from the e-classes `args`; `number` counts the distinct kernels.

    `needs`: those of `args` that other kernels make, each once; inputs and constants are there. `alias`: it computes
    nothing. `least`: the seconds that it counts for before it is searched.
    """

    owner: int
    number: int
    args: tuple[int, ...]
    needs: tuple[int, ...]
    expr: TensorExpr
    alias: bool
    least: float
    loss: float = 0.0

    @property
    def kernel(self) -> Lowered:
        """What `expr` is lowered to, when first asked for: most candidates are never searched."""
        return lower(self.expr)

    @cached_property
    def reads(self) -> frozenset[int]:
        """The e-classes of `needs`."""
        return frozenset(self.needs)


def choose(
    egraph: GraphEGraph,
    costs: KernelCosts,
    *,
    method: str = "ilp",
    time_limit: float = 10.0,
    budget: float | None = None,
) -> GraphChoice:
    """Extract the program with the least predicted time, whose kernels' losses sum to at most `budget` if one is given.

    `time_limit`: seconds for all rounds of exact extraction together. Raises `NesteggError` if an output cannot be
    computed.
    """
    candidates = kernel_candidates(egraph, costs)
    seconds = {c.number: c.least for c in candidates}
    found: dict[int, tuple[Nest, float]] = {}
    unusable: set[int] = set()
    rounds, left, cuts = 0, time_limit, KnownCuts()

    def best_of(usable: Sequence[Candidate], how: str) -> tuple[Extraction, list[Candidate]]:
        """One extraction: an exact one may take half of the seconds that those before it left."""
        nonlocal left
        begun = time.perf_counter()
        found = _extract(egraph, usable, seconds, how, time_limit if how == "greedy" else left / 2, budget, cuts)
        if how != "greedy":
            left -= time.perf_counter() - begun
        return found

    def settle(how: str, most: int) -> tuple[Extraction, list[Candidate], bool]:
        """Extract and search until every kernel in the best program has its true cost, or the rounds run out."""
        nonlocal rounds
        while True:
            rounds, most = rounds + 1, most - 1
            usable = [c for c in candidates if c.number not in unusable] if unusable else candidates
            extraction, chosen = best_of(usable, how)
            todo = {c.number: c.kernel for c in chosen if not c.alias and c.number not in found}
            for n, result in zip(todo, costs.search(list(todo.values())), strict=True):
                if result is None:
                    unusable.add(n)
                else:
                    found[n], seconds[n] = result, result[1]
            if not todo or not most:
                return extraction, chosen, not todo

    # Greedy extraction is quick and finds most kernels worth searching; the last rounds are the method asked for.
    settle("greedy", GREEDY_ROUNDS)
    extraction, chosen, settled = settle(method, EXACT_ROUNDS)
    known = [c for c in candidates if c.alias or c.number in found]
    if not settled:  # the best program of the kernels searched so far
        extraction, chosen = best_of(known, method)
    greedy = extraction
    if method != "greedy":
        greedy, its = _extract(egraph, known, seconds, "greedy", time_limit, budget)
        if greedy.cost < extraction.cost:  # its local search had more time
            extraction, chosen = replace(extraction, choice=greedy.choice, cost=greedy.cost), its
    steps = [
        Step(c.kernel, c.args, c.owner, *(found.get(c.number) or (None, 0.0))) for c in _ordered(chosen)
    ]
    loss = sum(c.loss for c in chosen)
    return GraphChoice(tuple(steps), extraction, rounds, len(found), len(unusable), greedy.cost, loss)


def at_least(known: Estimate) -> float:
    """What a kernel counts for before it is searched, in seconds."""
    return 0.0 if known.alias else known.bound * (1.0 if known.staged else SLACK)


def _extract(
    egraph: GraphEGraph,
    candidates: Sequence[Candidate],
    seconds: Mapping[int, float],
    method: str,
    time_limit: float,
    budget: float | None,
    cuts: KnownCuts | None = None,
) -> tuple[Extraction, list[Candidate]]:
    b = EGraphBuilder()
    losses: list[float] = []
    for k, c in undominated(candidates, seconds):
        losses.append(c.loss)
        overhead = 0.0 if c.alias else CALL_OVERHEAD
        b.node(f"c{c.owner}", f"kernel{k}", (seconds[c.number] + overhead) * 1e6, [f"c{a}" for a in c.needs], str(k))
    have = {c.owner for c in candidates}
    for a in sorted({a for c in candidates for a in c.needs} | set(egraph.outputs)):
        if _is_there(egraph.classes[a]):
            b.node(f"c{a}", "leaf", 0.0, [], "leaf")
            losses.append(0.0)
        elif a not in have:
            b.node(f"c{a}", "unsupported", 1e12, [], "unsupported")
            losses.append(0.0)
    for o in dict.fromkeys(egraph.outputs):
        b.root(f"c{o}")
    flat = b.build()
    result = extract(flat, method, time_limit, loss_budgets(losses, budget), cuts)
    names = [flat.node_name[n] for n in result.choice if n >= 0]
    if "unsupported" in names:
        raise UnsupportedError("no kernel computes one of the tensors of this graph; see `graph` for its operators")
    chosen = [candidates[int(n)] for n in names if n != "leaf"]
    return replace(result, cost=result.cost * 1e-6, bound=result.bound * 1e-6), chosen


def undominated(
    candidates: Sequence[Candidate], seconds: Mapping[int, float]
) -> list[tuple[int, Candidate]]:
    """The candidates that may be part of a best program, numbered: none that reads all another reads, costs more and
    loses no less."""
    kept: dict[int, list[tuple[int, frozenset[int]]]] = {}
    least: dict[tuple[int, frozenset[int]], float] = {}  # most are dominated by one that reads the same
    for k in sorted(range(len(candidates)), key=lambda k: (seconds[candidates[k].number], k)):
        c = candidates[k]
        rivals, same = kept.setdefault(c.owner, []), (c.owner, c.reads)
        if least.get(same, math.inf) <= c.loss:
            continue
        least[same] = c.loss
        if not any(read <= c.reads and candidates[r].loss <= c.loss for r, read in rivals):
            rivals.append((k, c.reads))
    return [(k, candidates[k]) for k in sorted(k for rivals in kept.values() for k, _ in rivals)]


def loss_budgets(losses: Sequence[float], budget: float | None) -> list[Budget]:
    """The losses as shares of the budget: solvers round numbers as small as variances to 0."""
    if budget is None or not any(losses):
        return []
    if not budget:
        return [([float(loss > 0) for loss in losses], 0.0)]
    return [([min(loss / budget, 2.0) for loss in losses], 1.0)]


def _ordered(chosen: Sequence[Candidate]) -> list[Candidate]:
    """Topological order, depth first from the last: a tensor is made shortly before it is used."""
    makes = {c.owner: c for c in chosen}
    out: list[Candidate] = []
    done: set[int] = set()

    def visit(owner: int) -> None:
        if owner in done or owner not in makes:
            return
        done.add(owner)
        for a in makes[owner].args:
            visit(a)
        out.append(makes[owner])

    for c in chosen:
        visit(c.owner)
    return out


def kernel_candidates(egraph: GraphEGraph, costs: KernelCosts) -> list[Candidate]:
    """The lowerable kernel calls of every e-class that is not known at compile time, each once."""
    calls = [(owner, call) for owner in sorted(_reachable(egraph)) for call in _computing(egraph.classes[owner], owner)]
    canonical = _Canonical(_uniform(egraph))
    forms = [canonical(call) for _, call in calls]
    exprs = list(dict.fromkeys(expr for expr, _ in forms))
    known = dict(zip(exprs, costs.estimates(exprs), strict=True))
    numbers: dict[str, int] = {}
    out: dict[tuple[int, int, tuple[int, ...]], Candidate] = {}
    for (owner, call), (expr, order) in zip(calls, forms, strict=True):
        about = known[expr]
        if not about.signature:
            continue
        number, args = numbers.setdefault(about.signature, len(numbers)), tuple(call.args[k] for k in order)
        found = out.get((owner, number, args))
        if found is None or call.kernel.loss < found.loss:
            needs = tuple(a for a in dict.fromkeys(args) if not _is_there(egraph.classes[a]))
            made = Candidate(owner, number, args, needs, expr, about.alias, at_least(about), call.kernel.loss)
            out[owner, number, args] = made
    return list(out.values())


def _is_there(e: EClass) -> bool:
    """Whether a tensor is an input or known at compile time."""
    return e.const or e.input is not None


def _computing(e: EClass, owner: int) -> Iterator[CallNode]:
    """The calls that compute a tensor when the program runs."""
    if not _is_there(e):
        yield from (call for call in e.calls if owner not in call.args)


class _Canonical:
    """Canonical forms of calls: the expression, and the positions of the arguments it reads. Repeated layers make the
    same kernels."""

    def __init__(self, scalars: dict[int, float | int | bool]) -> None:
        self.scalars = scalars
        self.memo: dict[Any, tuple[TensorExpr, tuple[int, ...]]] = {}

    def __call__(self, call: CallNode) -> tuple[TensorExpr, tuple[int, ...]]:
        same = tuple(call.args.index(a) for a in call.args)
        literals = tuple((k, repr(self.scalars[a])) for k, a in enumerate(call.args) if a in self.scalars)
        key = (call.kernel.expr, same, literals)
        if key not in self.memo:
            expr, args = canonical_call(call, self.scalars)
            self.memo[key] = expr, tuple(call.args.index(a) for a in args)
        return self.memo[key]


def _reachable(egraph: GraphEGraph) -> set[int]:
    """The e-classes that some program of the outputs computes."""
    found, todo = set(egraph.outputs), list(egraph.outputs)
    while todo:
        e = egraph.classes[todo.pop()]
        if not _is_there(e):
            new = {a for call in e.calls for a in call.args} - found
            found |= new
            todo += sorted(new)
    return found


def _uniform(egraph: GraphEGraph) -> dict[int, float | int | bool]:
    """E-class -> value, for the tensors known at compile time that are one number throughout."""
    out: dict[int, float | int | bool] = {}
    for c, e in enumerate(egraph.classes):
        if e.constant is not None and egraph.constants[e.constant].size == 1:
            out[c] = egraph.constants[e.constant].reshape(()).item()
    todo = [(c, n) for c, e in enumerate(egraph.classes) for n in e.ops if n.op in UNIFORM]
    while ready := [(c, n) for c, n in todo if all(a in out for a in n.args)]:
        for c, n in ready:
            args = [np.asarray(out[a], DTYPES[egraph.classes[a].type.dtype].numpy) for a in n.args]
            value = SCALARS[n.op].jax(*args) if n.op in SCALARS else args[0]
            out[c] = np.asarray(value).astype(DTYPES[egraph.classes[c].type.dtype].numpy).item()
        todo = [(c, n) for c, n in todo if c not in out]
    return out


def canonical_call(
    call: CallNode, scalars: dict[int, float | int | bool]
) -> tuple[TensorExpr, tuple[int, ...]]:
    """A call with single numbers as literals, each argument once, and arguments in the order of their first reading."""
    expr, args = call.kernel.expr, call.args
    literal = {k: scalars[a] for k, a in enumerate(args) if a in scalars}
    if literal:
        expr = _with_literals(expr, literal)
    first: dict[int, int] = {}
    same = {k: first.setdefault(a, k) for k, a in enumerate(args)}
    order = list(dict.fromkeys(same[k] for k in inputs_read(expr.body)))
    body = renumber(expr.body, lambda k: order.index(same[k]))
    renumbered = TensorExpr(tuple(expr.inputs[k] for k in order), expr.axes, body)
    return merge_inputs(renumbered, {}), tuple(args[k] for k in order)


def _with_literals(expr: TensorExpr, literal: dict[int, float | int | bool]) -> TensorExpr:
    def go(s: Scalar) -> Scalar:
        if isinstance(s, (Read, ReadAt)) and s.input in literal:
            return Const(literal[s.input], s.dtype)
        return rebuild(s, go, lambda i: i)

    return TensorExpr(expr.inputs, expr.axes, go(expr.body))
