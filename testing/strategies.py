"""Hypothesis strategies for types, tensors, operator instances, graphs, kernels and schedules.

    @given(strategies.graphs(max_nodes=6).flatmap(lambda g: st.tuples(st.just(g), inputs_of(g))))

All draw through the operators' own samplers, so that a new operator takes part from the day it is declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from hypothesis import strategies as st

from ..ir.expr import TensorExpr
from ..ir.graph import Graph
from ..ir.loops import Lowered
from ..ir.nest import Nest
from ..ir.operator import Chooser, Operator, Reject, operator
from ..ir.target import Target
from ..ir.types import DTYPES, TensorType
from ..rewrite.loop_egraph import LoopEGraph, build
from .choosing import drawn_by
from .graphs import draw_graph
from .instances import Instance, draw_instance
from .kernels import Tree, draw_tree, lowered
from .stages import draw_staged
from .values import DOMAIN, Domain, array_of


def tensor_types(
    dtypes: Sequence[str] = ("f32",), max_rank: int = 4, max_extent: int = 6
) -> st.SearchStrategy[TensorType]:
    """Types of at most that rank, extents from 1."""
    shapes = st.lists(st.integers(1, max_extent), max_size=max_rank).map(tuple)
    return st.builds(TensorType, shapes, st.sampled_from(tuple(dtypes)))


def tensors(type: TensorType, domain: Domain = DOMAIN) -> st.SearchStrategy[np.ndarray]:
    """Arrays of the type, with values inside the domain; the simplest hold small integers."""

    def make(seed: int) -> np.ndarray:
        style = "integers" if seed % 4 == 0 else "uniform"
        return array_of(type, seed, domain, style).astype(DTYPES[type.dtype].numpy)

    return st.integers(0, 2**32 - 1).map(make)


def operator_instances(op: str | Operator) -> st.SearchStrategy[Instance]:
    """Legal applications of an operator: operand types, attributes, result type."""
    declared = operator(op) if isinstance(op, str) else op
    return drawn_by(lambda c: draw_instance(c, declared))


def graphs(max_nodes: int = 6) -> st.SearchStrategy[Graph]:
    """Small float32 graphs of one or two inputs and of constants, whose values stay around 1.

    `max_nodes` bounds the steps a graph is grown by; a step (a layer with its bias, a normalised sum) adds a
    few nodes.
    """
    return drawn_by(lambda c: draw_graph(c, max_nodes))


def inputs_of(graph: Graph) -> st.SearchStrategy[tuple[np.ndarray, ...]]:
    """Arguments for a graph."""
    return st.tuples(*(tensors(t) for t in graph.input_types))


def kernels() -> st.SearchStrategy[Lowered]:
    """Loop kernels: prologues, a contraction, reduction or map, epilogues; extents odd and prime too."""
    return trees().map(lambda t: lowered(t)).filter(lambda k: k is not None)  # type: ignore[arg-type, return-value]


def staged_exprs() -> st.SearchStrategy[TensorExpr]:
    """Tensor expressions of several stages, positive where their operands are."""
    return drawn_by(draw_staged)


def trees() -> st.SearchStrategy[Tree]:
    """Kernels that lower to one loop nest, with the operators they are composed of."""

    def draw(c: Chooser) -> Tree:
        tree = draw_tree(c)
        if lowered(tree) is None:
            raise Reject
        return tree

    return drawn_by(draw)


def schedules(kernel: Lowered, target: Target | None = None, threads: int = 1) -> st.SearchStrategy[Nest]:
    """Nests drawn uniformly from all that the kernel's Block e-graph holds, for this machine or `target`."""
    egraph = schedule_space(kernel, target, threads)
    if not egraph.programs[egraph.root]:
        return st.nothing()

    def sample(seed: int) -> Nest:
        nest = egraph.sample(np.random.default_rng(seed))
        assert nest is not None
        return nest

    return st.integers(0, 2**32 - 1).map(sample)


def schedule_space(kernel: Lowered, target: Target | None = None, threads: int = 1) -> LoopEGraph:
    """The Block e-graph that `schedules` samples; the last ones are kept."""
    from ..ir.target import host

    return _space(kernel, target or host(), threads)


@lru_cache(maxsize=64)
def _space(kernel: Lowered, target: Target, threads: int) -> LoopEGraph:
    return build(kernel, target, threads)
