"""Schedules of kernels of several stages: every stage visits its points once, in order, and what is kept fits."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nestegg.ir.loops import SCRATCH_BYTES, StagedKernel, described, lower
from nestegg.ir.nest import Cat, For, Nest, Seq, extents, stages, visits
from nestegg.ir.target import TARGETS
from nestegg.rewrite.loop_egraph import build
from nestegg.testing import evaluate_kernel, evaluate_nest, first_difference, schedules, staged_exprs

from ..ir.test_stages import softmax

SMALL = TARGETS["aarch64"]


def blocks(nest: Nest, shared: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The blocks of shared axes that stages are run over, with the numbers of those stages."""
    if isinstance(nest, Seq):
        return [(extents(nest, shared), tuple(s.number for s in stages(nest)))]
    if isinstance(nest, Cat):
        return blocks(nest.first, shared) + blocks(nest.second, shared)
    return blocks(nest.body, shared) if isinstance(nest, For) else []


@settings(max_examples=60)
@given(staged_exprs(), st.data(), st.sampled_from((1, 2)))
def test_every_stage_covers_its_domain_in_order(expr, data, threads):
    kernel = lower(expr)
    assume(isinstance(kernel, StagedKernel) and kernel.points <= 4000)
    nest = data.draw(schedules(kernel, SMALL, threads))
    shared = len(kernel.shared)
    made: dict[tuple[int, tuple[int, ...]], int] = {}
    for when, (n, p) in enumerate(visits(nest, [len(k.axes) for k in kernel.stages], shared)):
        made.setdefault((n, p[:shared]), when)
    seen = Counter(visits(nest, [len(k.axes) for k in kernel.stages], shared))
    assert set(seen.values()) == {1}
    for block, sequence in blocks(nest, shared):
        assert sequence in kernel.sequences
        assert math.prod(block) * kernel.scratch_bytes(sequence) <= SCRATCH_BYTES
        for n in sequence:
            own = [range(a.extent) for a in kernel.stages[n].axes]
            assert {p for m, p in seen if m == n} == set(product(*own)), described(kernel, nest)
        for row in product(*map(range, kernel.extents)):
            begun = [made[n, row] for n in sequence]
            assert begun == sorted(begun)


@settings(max_examples=60)
@given(staged_exprs(), st.data())
def test_every_schedule_computes_the_kernel(expr, data):
    kernel = lower(expr)
    assume(isinstance(kernel, StagedKernel) and kernel.points <= 4000)
    arrays = [np.random.default_rng(0).uniform(0.5, 2, t.size) for t in kernel.inputs]
    nest = data.draw(schedules(kernel, SMALL))
    assert first_difference(evaluate_kernel(kernel, arrays), evaluate_nest(kernel, nest, arrays)) is None


@pytest.mark.parametrize("columns", [SCRATCH_BYTES // 4, SCRATCH_BYTES // 4 + 1, 10**6])
def test_rows_that_do_not_fit_the_scratch_are_recomputed(columns):
    kernel = lower(softmax(8, columns))
    egraph = build(kernel, TARGETS["x86-64-v4"])
    rng = np.random.default_rng(0)
    for _ in range(5):
        nest = egraph.sample(rng)
        for block, sequence in blocks(nest, 1):
            assert math.prod(block) * kernel.scratch_bytes(sequence) <= SCRATCH_BYTES


def test_both_ways_to_have_a_costly_value_are_in_one_e_graph():
    kernel = lower(softmax(1, 2))
    egraph = build(kernel, SMALL)
    rng = np.random.default_rng(0)
    drawn = {sequence for _ in range(50) for _, sequence in blocks(egraph.sample(rng), 0)}
    assert drawn == set(kernel.sequences)
