"""Extraction against brute force, against e-graphs of others, and at size."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nestegg.extract import (
    EGraphBuilder,
    Extraction,
    ExtractionError,
    FlatEGraph,
    KnownCuts,
    extract,
    extract_file,
    ilp,
    validate,
)
from nestegg.extract.greedy import greedy_choice
from nestegg.extract.ilp import complete, solve_region
from nestegg.extract.lns import NeighbourhoodSearch
from nestegg.extract.part import split
from nestegg.extract.program import Program
from nestegg.extract.reduce import Reduction
from nestegg.extract.result import dag_cost, restrict
from nestegg.extract.tree import tree_choice

from .graphs import brute_force, egraphs, stress

DATA = Path(__file__).parent / "data"
BEST_KNOWN = {
    "babble_it10": 203,
    "egg_diff_power_harder": 6,
    "egg_integ_part2": 4,
    "eggcc-bril_simple_loop.bril": 13,
    "rover_box_filter_5iteration_egraph": 1819,
    "set_covering_test": 2,
    "tensat_resnet50_acyclic": 4.41599,
    "tensat_vgg_acyclic": 4.86677,
}


def shared_product() -> FlatEGraph:
    """``q = mul(x, w) @4, k = mul(x, v) @4``, or halves of one merged product @5: worth it only together."""
    b = EGraphBuilder()
    b.node("x", "x", 0)
    b.node("q", "mul", 4, ["x"])
    b.node("k", "mul", 4, ["x"])
    b.node("qk", "merged", 5, ["x"])
    b.node("q", "left", 0.5, ["qk"])
    b.node("k", "right", 0.5, ["qk"])
    b.root("q")
    b.root("k")
    return b.build()


def test_sharing_pays_only_for_the_ilp() -> None:
    egraph = shared_product()
    assert extract(egraph, "tree").cost == 8
    result = extract(egraph)
    assert (result.cost, result.bound, result.gap, result.optimal) == (6, 6, 0, True)
    assert "cost 6, bound 6 (optimal)" in str(result)


@pytest.fixture(params=["frontiers", "solver"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction as it is, and as it is where frontiers are too wide."""
    if request.param == "solver":
        monkeypatch.setattr(ilp, "frontier_choice", lambda *_: None)


SAME_WAY = [HealthCheck.function_scoped_fixture]


@given(egraph=egraphs())
@settings(max_examples=300, deadline=None, suppress_health_check=SAME_WAY)
def test_ilp_is_optimal(way: None, egraph: FlatEGraph) -> None:
    best = brute_force(egraph)
    if math.isinf(best):
        for method in ("ilp", "greedy", "tree"):
            with pytest.raises(ExtractionError, match="no finite term"):
                extract(egraph, method)
        return
    result = extract(egraph, time_limit=10)
    assert validate(egraph, result.choice)
    assert result.cost == pytest.approx(best) and result.optimal
    assert result.cost == pytest.approx(dag_cost(egraph, result.choice))
    for method in ("greedy", "tree"):
        other = extract(egraph, method)
        assert validate(egraph, other.choice) and best <= other.cost + 1e-9
        assert other.bound <= best


@given(egraphs(max_classes=5), st.data())
@settings(max_examples=120, deadline=None)
def test_budget(egraph: FlatEGraph, data: st.DataObject) -> None:
    weights = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=egraph.n_nodes, max_size=egraph.n_nodes)
    )
    limit = data.draw(st.integers(0, 6))
    best = brute_force(egraph, weights, limit)
    if math.isinf(best):
        with pytest.raises(ExtractionError):
            extract(egraph, budgets=[(weights, limit)])
        return
    result = extract(egraph, budgets=[(weights, limit)])
    chosen = result.choice[result.choice >= 0]
    assert result.cost == pytest.approx(best) and result.optimal
    assert np.asarray(weights)[chosen].sum() <= limit + 1e-6


@given(egraphs(max_classes=12, max_nodes=4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_neighbourhoods_keep_programs_valid(egraph: FlatEGraph, seed: int) -> None:
    choice = tree_choice(egraph)
    if any(choice[root] < 0 for root in egraph.roots):
        return
    start = complete(egraph, restrict(egraph, choice))
    search = NeighbourhoodSearch(egraph, start, solve_region, seed)
    search.size = 3
    found = search.run(time.perf_counter() + 0.1)
    assert validate(egraph, found) and dag_cost(egraph, found) <= dag_cost(egraph, choice) + 1e-9
    everything = FlatEGraph(**{**vars_of(egraph), "roots": tuple(np.flatnonzero(found >= 0).tolist())})
    assert validate(everything, found), "classes outside the program must stay acyclic as well"


def vars_of(egraph: FlatEGraph) -> dict:
    return {name: getattr(egraph, name) for name in FlatEGraph.__dataclass_fields__}


@pytest.mark.parametrize("name", BEST_KNOWN)
def test_best_known(way: None, name: str) -> None:
    result = extract_file(DATA / f"{name}.json", "ilp", 20)
    assert result["valid"]
    assert result["cost"] == pytest.approx(BEST_KNOWN[name], rel=1e-5)
    assert result["bound"] == pytest.approx(result["cost"])


def timed(egraph: FlatEGraph, limit: float) -> tuple[float, Extraction]:
    """Seconds of this process (other processes on the machine do not count), and what was found."""
    begun = time.process_time()
    result = extract(egraph, time_limit=limit)
    return time.process_time() - begun, result


@pytest.mark.parametrize("back", [0.0, 0.4], ids=["acyclic", "cyclic"])
def test_time_limit_at_size(back: float) -> None:
    egraph = stress(1, 8000, 33000, back, 60)
    if back:
        assert np.bincount(egraph.scc).max() > 5000
    least, _ = timed(egraph, 0.0)  # what any extraction takes here: this machine may be slow, this process large
    seconds, result = timed(egraph, 3.0)
    assert seconds < 3 + 1 + 1.5 * least
    assert validate(egraph, result.choice)
    assert result.bound <= result.cost and 0 <= result.gap <= 1
    assert result.cost <= min(dag_cost(egraph, tree_choice(egraph)), dag_cost(egraph, greedy_choice(egraph)))


def test_same_answer_twice() -> None:
    egraph = stress(3, 60, 200, 0.3, 10)
    first, second = extract(egraph), extract(egraph)
    assert first.optimal
    assert first.choice.tolist() == second.choice.tolist()


def test_validate_refuses() -> None:
    b = EGraphBuilder()
    b.node("a", "f", 1, ["b"])
    b.node("b", "g", 1, ["a"])
    b.node("b", "leaf", 1)
    b.root("a")
    egraph = b.build()
    assert validate(egraph, {0: 0, 1: 2})
    assert not validate(egraph, {0: 0, 1: 1}), "a cycle"
    assert not validate(egraph, {0: 0}), "a child without a node"
    assert not validate(egraph, {1: 2}), "a root without a node"
    assert not validate(egraph, {0: 2, 1: 2}), "a node of another class"


def test_refusals_say_what_to_do() -> None:
    egraph = shared_product()
    with pytest.raises(ExtractionError, match="use 'ilp', 'greedy' or 'tree'"):
        extract(egraph, "best")
    with pytest.raises(ExtractionError, match="cannot keep budgets: use 'ilp'"):
        extract(egraph, "tree", budgets=[([0.0] * egraph.n_nodes, 1)])
    with pytest.raises(ExtractionError, match="raise a limit"):
        extract(egraph, budgets=[([1.0] * egraph.n_nodes, 1)])
    with pytest.raises(ExtractionError, match="for each of the 6 e-nodes"):
        extract(egraph, budgets=[([-1.0] * egraph.n_nodes, 1)])


def test_shares_that_meet_further_down_are_paid_as_a_whole() -> None:
    """Without cuts below the root, the LP makes a quarter of `base` for each of four ways to the root."""
    b = EGraphBuilder()
    b.node("base", "leaf", 100.0)
    for k in range(4):
        b.node(f"a{k}", "one", 1.0, ["base"])
        b.node(f"b{k}", "two", 1.0, [f"a{k}"])
        b.node("root", f"way{k}", 0.0, [f"b{k}"])
    b.node("root", "direct", 103.0)
    b.root("root")
    egraph = b.build()
    part = split(Reduction(egraph), together=True)[0]
    program = Program(part)
    program.relax(time.perf_counter() + 10, [greedy_choice(part.egraph)])
    assert program.bound == pytest.approx(102.0)


@given(egraph=egraphs())
@settings(max_examples=50, deadline=None, suppress_health_check=SAME_WAY)
def test_cuts_of_one_e_graph_hold_in_another_with_other_costs(way: None, egraph: FlatEGraph) -> None:
    assume(not math.isinf(brute_force(egraph)))
    known = KnownCuts()
    extract(egraph, "ilp", 5.0, known=known)
    costs = np.random.default_rng(egraph.n_nodes).permutation(egraph.node_cost)
    other = replace(egraph, node_cost=costs)
    assert extract(other, "ilp", 5.0, known=known).cost == pytest.approx(extract(other, "ilp", 5.0).cost)
