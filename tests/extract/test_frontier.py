"""Dynamic programming over frontiers: the optimum of small e-graphs and deep networks, nothing beyond its limits."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings

from nestegg.extract import EGraphBuilder, FlatEGraph, extract, frontier, validate
from nestegg.extract.frontier import frontier_choice
from nestegg.extract.reduce import Reduction
from nestegg.extract.result import dag_cost, restrict

from .graphs import brute_force, egraphs, stress


def layers(count: int) -> FlatEGraph:
    """``x0 -> x1 -> ...``: each tensor plain or in blocks (`b`), one made of the other at 1, and a layer's result made
    of its operand and of a product of two, one of which the next layer shares."""
    b = EGraphBuilder()
    b.node("x0", "input", 0.0)
    for k in range(count):
        x, y = f"x{k}", f"x{k + 1}"
        for a, c, price in ((x, y, 5.0), (f"{x}b", f"{y}b", 4.0), (x, f"{y}b", 4.5)):
            b.node(f"{c}'", "product", price, [a])
            b.node(c, "residual", 1.0, [f"{c}'", a])
        b.node(f"{x}b", "pack", 1.0, [x])
        b.node(x, "unpack", 1.0, [f"{x}b"])
    b.root(f"x{count}")
    return b.build()


def simplified(egraph: FlatEGraph) -> Reduction:
    reduction = Reduction(egraph)
    reduction.run(time.perf_counter() + 20)
    return reduction


def test_a_deep_network_is_solved_without_a_solver() -> None:
    egraph = layers(60)
    choice = frontier_choice(simplified(egraph), time.perf_counter() + 20)
    assert choice is not None and validate(egraph, restrict(egraph, choice))
    # The first layer packs as it computes, 58 stay in blocks, the last (plain only) is unpacked for.
    assert dag_cost(egraph, choice) == pytest.approx(5.5 + 58 * 5.0 + 1.0 + 6.0)
    result = extract(egraph)
    assert result.optimal and result.cost == pytest.approx(dag_cost(egraph, choice))
    assert result.method == "frontier"


@given(egraphs())
@settings(max_examples=300, deadline=None)
def test_it_is_the_optimum(egraph: FlatEGraph) -> None:
    best = brute_force(egraph)
    if math.isinf(best):
        return
    choice = frontier_choice(simplified(egraph), time.perf_counter() + 20)
    assert choice is not None
    kept = restrict(egraph, choice)
    assert validate(egraph, kept) and dag_cost(egraph, kept) == pytest.approx(best)


@pytest.mark.parametrize("limit", ["STATES", "WAYS"])
def test_beyond_the_limits_there_is_no_answer(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    egraph = stress(3, 60, 200, 0.3, 10)
    monkeypatch.setattr(frontier, limit, 0)
    assert frontier_choice(simplified(egraph), time.perf_counter() + 20) is None


def test_the_deadline_is_obeyed() -> None:
    assert frontier_choice(simplified(layers(5)), time.perf_counter() - 1) is None


def test_the_deadline_is_obeyed_inside_a_component() -> None:
    egraph = stress(3, 60, 200, 0.3, 10)
    component = frontier._Component(egraph, range(egraph.n_classes), time.perf_counter() - 1)
    with pytest.raises(frontier._TooMany):
        component.ways(1)


def branches(count: int, depth: int, layouts: int) -> FlatEGraph:
    """`count` chains of `depth` tensors that a last one reads, each in one of `layouts`, the same in a whole chain."""
    b = EGraphBuilder()
    for k in range(count):
        for d in range(depth):
            for w in range(layouts):
                b.node(f"x{k}.{d}.{w}", "step", 1.0 + (w + k) % layouts, [f"x{k}.{d + 1}.{w}"] if d + 1 < depth else [])
        for w in range(layouts):
            b.node(f"y{k}", "take", 1.0, [f"x{k}.0.{w}"])
    b.node("z", "join", 1.0, [f"y{k}" for k in range(count)])
    b.root("z")
    return b.build()


def test_branches_are_settled_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # Side by side, the states of the branches would be multiplied: 6 ** 5.
    egraph = branches(5, 4, 6)
    monkeypatch.setattr(frontier, "STATES", 100)
    reduction = Reduction(egraph)  # not simplified, or nothing would be left to choose
    choice = frontier_choice(reduction, time.perf_counter() + 20)
    assert choice is not None
    assert dag_cost(egraph, choice) == pytest.approx(1 + 5 * (1 + 4))
