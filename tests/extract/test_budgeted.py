"""Extraction within a budget: greedy keeps it, ILP keeps it and is never dearer, as an exhaustive search says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestegg.extract import EGraphBuilder, ExtractionError, dag_cost, extract, validate

METHODS = ("greedy", "ilp")


def chain(costs):
    """One class after the other, each with an exact node and a cheaper lossy one."""
    b = EGraphBuilder()
    weights = []
    for k, (dear, cheap, loss) in enumerate(costs):
        children = [f"c{k - 1}"] if k else []
        b.node(f"c{k}", "exact", dear, children)
        b.node(f"c{k}", "lossy", cheap, children)
        weights += [0.0, loss]
    b.root(f"c{len(costs) - 1}")
    return b.build(), weights


def spent(egraph, found, weights):
    return sum(weights[n] for n in found.choice if n >= 0)


@pytest.mark.parametrize("method", METHODS)
def test_the_best_use_of_a_budget(method):
    egraph, weights = chain([(10, 1, 1.0), (10, 1, 1.0), (10, 9, 1.0)])
    found = extract(egraph, method, budgets=[(weights, 2.0)])
    assert found.cost == 12
    assert validate(egraph, found.choice)


@pytest.mark.parametrize("method", METHODS)
def test_no_budget_no_loss(method):
    egraph, weights = chain([(10, 1, 1e-9), (10, 1, 1e-12)])
    assert extract(egraph, method, budgets=[([float(w > 0) for w in weights], 0.0)]).cost == 20


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_nothing_keeps_is_refused(method):
    b = EGraphBuilder()
    b.node("x", "lossy", 1.0)
    b.root("x")
    with pytest.raises(ExtractionError, match="budget"):
        extract(b.build(), method, budgets=[([2.0], 1.0)])


def test_trees_keep_no_budgets():
    egraph, weights = chain([(2, 1, 1.0)])
    with pytest.raises(ExtractionError, match="'ilp' or 'greedy'"):
        extract(egraph, "tree", budgets=[(weights, 1.0)])


COSTS = st.lists(
    st.tuples(st.integers(2, 9), st.integers(1, 8), st.integers(0, 5).map(float)), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(COSTS, st.integers(0, 12))
def test_budgets_are_kept_and_well_spent(costs, limit):
    egraph, weights = chain(costs)
    budget = [(weights, float(limit))]
    greedy, ilp = (extract(egraph, method, budgets=budget) for method in METHODS)
    best = min(
        sum(c[1] if lossy else c[0] for c, lossy in zip(costs, choice, strict=True))
        for choice in itertools.product((False, True), repeat=len(costs))
        if sum(c[2] for c, lossy in zip(costs, choice, strict=True) if lossy) <= limit
    )
    for found in (greedy, ilp):
        assert spent(egraph, found, weights) <= limit + 1e-6
        assert np.isclose(dag_cost(egraph, found.choice), found.cost)
    assert ilp.cost == pytest.approx(best)
    assert greedy.cost >= best
