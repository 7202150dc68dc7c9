"""Small e-graphs for the tests of this room: a Hypothesis strategy, brute force, a stress generator."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from nestegg.extract import EGraphBuilder, FlatEGraph, validate
from nestegg.extract.result import dag_cost


@st.composite
def egraphs(draw: st.DrawFn, max_classes: int = 6, max_nodes: int = 3) -> FlatEGraph:
    """E-graphs with cycles, self loops, repeated children, free nodes, perhaps roots without finite terms."""
    n = draw(st.integers(1, max_classes))
    builder = EGraphBuilder()
    for cls in range(n):
        builder.class_id(f"c{cls}")
    for cls in range(n):
        for _ in range(draw(st.integers(1, max_nodes))):
            kids = draw(st.lists(st.integers(0, n - 1), max_size=3))
            cost = draw(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 7.0]))
            builder.node(f"c{cls}", "f", cost, [f"c{kid}" for kid in kids])
    for root in draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2)):
        builder.root(f"c{root}")
    return builder.build()


def brute_force(egraph: FlatEGraph, weights: Sequence[float] | None = None, limit: float = math.inf) -> float:
    """The least DAG cost over all choices (within a budget); infinite if there is no program."""
    best = math.inf
    for nodes in itertools.product(*(egraph.nodes_of(cls).tolist() for cls in range(egraph.n_classes))):
        choice = np.array(nodes, np.int32)
        if validate(egraph, choice) and _spent(egraph, choice, weights) <= limit:
            best = min(best, dag_cost(egraph, choice))
    return best


def _spent(egraph: FlatEGraph, choice: np.ndarray, weights: Sequence[float] | None) -> float:
    if weights is None:
        return 0.0
    kept, stack = set(), list(egraph.roots)
    while stack:
        cls = stack.pop()
        if cls not in kept:
            kept.add(cls)
            stack.extend(egraph.child_sets[choice[cls]])
    return sum(weights[choice[cls]] for cls in kept)


def stress(seed: int, classes: int, nodes: int, back: float, window: int) -> FlatEGraph:
    """A random e-graph: a DAG through all classes, then nodes of which a share `back` has children in both
    directions, which makes one large strongly connected component."""
    rng, builder = random.Random(seed), EGraphBuilder()
    for cls in range(classes):
        builder.class_id(f"c{cls}")

    def below(cls: int) -> str:
        return f"c{max(0, cls - 1 - int(rng.expovariate(1 / window)))}"

    def near(cls: int) -> str:
        return f"c{min(classes - 1, max(0, cls + int(rng.gauss(0, window))))}"

    for cls in range(classes):
        kids = [below(cls) for _ in range(rng.choice((1, 2, 2)))] if cls > classes // 30 else []
        builder.node(f"c{cls}", "f", rng.choice((1, 1, 2, 10)), kids)
    for _ in range(nodes - classes):
        cls = rng.randrange(classes)
        kids = [near(cls) if rng.random() < back else below(cls) for _ in range(rng.choice((1, 2, 2)))]
        builder.node(f"c{cls}", "g", rng.choice((1, 1, 2, 10)), kids)
    builder.root(f"c{classes - 1}")
    return builder.build()
