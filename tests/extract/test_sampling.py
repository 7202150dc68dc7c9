"""Drawn nests fill the kernel's domain exactly; a neighbour differs in one block only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestegg.costmodel.roofline import Roofline
from nestegg.extract.beam import swept
from nestegg.extract.sampling import Sampler, draw_any, neighbour
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import lower
from nestegg.ir.nest import extents
from nestegg.ir.operator import operator
from nestegg.ir.target import TARGETS
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build

TARGET = TARGETS["x86-64-v4"]


@pytest.fixture(scope="module")
def sweep():
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    kernel = lower(operator("dot").expr((TensorType((12, 20)), TensorType((20, 48))), attrs))
    return swept(build(kernel, TARGET, 1), Roofline(TARGET))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([None, 0.01, 0.3, 1e9]))
def test_a_drawn_nest_covers_the_domain_and_has_neighbours(sweep, seed, temperature):
    rng, egraph = np.random.default_rng(seed), sweep.egraph
    nest = draw_any(egraph, rng) if temperature is None else Sampler(sweep).draw(rng, temperature)
    near = neighbour(egraph, nest, rng)
    assert near is not None
    assert extents(nest, 3) == extents(near, 3) == (12, 48, 20)


def test_cold_draws_are_the_best_nest(sweep):
    drawn = Sampler(sweep).draw(np.random.default_rng(0), 1e-6)
    assert drawn == sweep.best(sweep.egraph.root)[0].nest


def test_drawing_any_is_reproducible(sweep):
    once, again = ([draw_any(sweep.egraph, rng) for _ in range(5)] for rng in map(np.random.default_rng, (3, 3)))
    assert once == again
    assert len(set(once)) > 1
