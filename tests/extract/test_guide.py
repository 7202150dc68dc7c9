"""Guided saturation: under small limits, the best Blocks are opened first, and what is left out is the rest."""

from __future__ import annotations

import numpy as np
import pytest

import nestegg
from nestegg.compiler import Options
from nestegg.costmodel.mlp import LearnedModel
from nestegg.costmodel.roofline import Roofline
from nestegg.extract.beam import extract_nests
from nestegg.extract.guide import BestFirst
from nestegg.extract.sampling import neighbour
from nestegg.extract.search import KernelSearch
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import LoopKernel, Lowered, lower
from nestegg.ir.nest import Nest
from nestegg.ir.operator import operator
from nestegg.ir.target import TARGETS
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import UNOPENED, LoopEGraph, build, build_guided
from nestegg.rewrite.saturate import Limits
from nestegg.testing import evaluate_kernel, evaluate_nest

from ..ir.test_stages import softmax

TARGET = TARGETS["x86-64-v4"]
MODEL = Roofline(TARGET)


def matmul(m: int, k: int, n: int) -> LoopKernel:
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    return lower(operator("dot").expr((TensorType((m, k)), TensorType((k, n))), attrs))


def padded_convolution() -> Lowered:
    return convolution((1, 2, 6, 6), (4, 2, 3, 3), 1)


def convolution(image: tuple[int, ...], weights: tuple[int, ...], groups: int) -> Lowered:
    attrs = Attrs(strides=(1, 1), padding=((1, 1),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=groups)
    return lower(operator("conv").expr((TensorType(image), TensorType(weights)), attrs))


def holds(egraph: LoopEGraph, nest: Nest) -> bool:
    """Whether the e-graph holds the nest."""
    return neighbour(egraph, nest, np.random.default_rng(0)) is not None


def seconds(egraph: LoopEGraph) -> float:
    return extract_nests(egraph, MODEL)[0].seconds


def test_a_small_limit_with_a_guide_gives_nearly_the_best_nest():
    kernel, limits = matmul(100, 300, 200), Limits(nodes=5000)
    whole, cut = build(kernel, TARGET), build(kernel, TARGET, limits=limits)
    guided = build(kernel, TARGET, limits=limits, guide=BestFirst(MODEL))
    assert whole.report.stopped_by == "saturated" and whole.report.enodes > 20 * limits.nodes
    assert guided.report.stopped_by == cut.report.stopped_by == "nodes"
    assert guided.report.enodes < 1.1 * limits.nodes
    assert seconds(guided) < 1.02 * seconds(whole) < seconds(cut)


@pytest.mark.parametrize("nodes", [40, 400, 3000])
def test_a_guide_makes_no_limit_worse(nodes):
    kernel, limits = matmul(96, 120, 144), Limits(nodes=nodes)
    assert seconds(build(kernel, TARGET, limits=limits, guide=BestFirst(MODEL))) <= seconds(
        build(kernel, TARGET, limits=limits)
    )


@pytest.mark.parametrize("model", [MODEL, LearnedModel(TARGET)], ids=["roofline", "learned"])
def test_what_was_opened_is_of_the_space_and_computes_the_kernel(model):
    kernel = matmul(12, 10, 24)
    egraph = build_guided(kernel, TARGET, BestFirst(model), limits=Limits(nodes=300))
    whole = build(kernel, TARGET)
    assert egraph.report.stopped_by == "nodes" and 0 < egraph.size < whole.size
    assert not (egraph.op == UNOPENED).any()
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(t.size) for t in kernel.inputs]
    want = evaluate_kernel(kernel, args)
    for _ in range(20):
        nest = egraph.sample(rng)
        assert nest is not None and holds(whole, nest)
        np.testing.assert_allclose(evaluate_nest(kernel, nest, args), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [lambda: matmul(12, 10, 24), lambda: lower(softmax(8, 24)), padded_convolution])
def test_without_a_limit_every_block_is_opened(make):
    kernel = make()
    egraph, whole = build_guided(kernel, TARGET, BestFirst(MODEL)), build(kernel, TARGET)
    assert egraph.report.stopped_by == whole.report.stopped_by == "saturated"
    assert egraph.programs[egraph.root] == whole.programs[whole.root]
    assert egraph.report.enodes == whole.report.enodes


def test_loops_inside_unrolled_code_may_lead_to_blocks_not_opened_yet():
    kernel = convolution((1, 4, 28, 28), (4, 1, 3, 3), 4)
    egraph = build_guided(kernel, TARGET, BestFirst(MODEL), limits=Limits(nodes=10_000))
    assert egraph.report.stopped_by == "nodes" and egraph.size


def test_guided_saturation_is_deterministic():
    first, second = (
        build_guided(matmul(24, 17, 32), TARGET, BestFirst(MODEL), limits=Limits(nodes=500)) for _ in range(2)
    )
    assert np.array_equal(first.owner, second.owner) and np.array_equal(first.child, second.child)


def test_hopes_are_seldom_above_what_blocks_take():
    """A block's optimistic cycles against those of its best nest, where both are known."""
    kernel = matmul(64, 48, 96)
    whole = build(kernel, TARGET)
    best, hope = np.inf, []

    class Noting(BestFirst):
        def ranked(self, egraph: LoopEGraph) -> np.ndarray:
            hope.append(self.seconds(egraph))
            return super().ranked(egraph)

    build_guided(kernel, TARGET, Noting(MODEL))
    best = seconds(whole)
    assert min(hope) > 0.5 * best
    assert max(hope) < 1.01 * best


def test_a_search_under_a_small_limit_is_guided():
    kernel, limits = matmul(100, 300, 200), Limits(nodes=5000)
    schedule = KernelSearch(MODEL, TARGET, limits=limits).schedule(kernel)
    assert schedule.stopped_by == "nodes"
    assert schedule.seconds == pytest.approx(seconds(build(kernel, TARGET, limits=limits, guide=BestFirst(MODEL))))


def test_a_program_compiled_under_a_small_limit_computes():
    x = np.random.default_rng(0).standard_normal((40, 56)).astype(np.float32)
    options = Options(threads=1, loop_limits=Limits(nodes=800), cache=False)
    compiled = nestegg.optimize(lambda x: x @ x.T, x, options=options)
    assert "nodes" in {k["stopped_by"] for k in compiled.report().to_json()["kernels"]}
    np.testing.assert_allclose(compiled(x), x @ x.T, rtol=1e-5, atol=1e-5)
