"""Features: the same whether a nest is met in its e-graph or alone, complete for every kind of kernel, and quick."""

import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nestegg
from nestegg.costmodel.features import FEATURES, NOTES, FeatureScorer, describe
from nestegg.costmodel.roofline import Roofline
from nestegg.extract.beam import Sweep, extract_nests, swept
from nestegg.extract.costmodel import NotingScorer
from nestegg.extract.sampling import Sampler, neighbour
from nestegg.ir.records import dumps, load_nest
from nestegg.ir.target import host
from nestegg.rewrite.loop_egraph import build, of_nests
from nestegg.testing.strategies import kernels, schedules


def kernel_of(fn, *args):
    calls = nestegg.optimize(fn, *args, threads=1, cost_model="roofline").program.calls
    return max(calls, key=lambda c: c.seconds).kernel


@pytest.fixture(scope="module")
def matmul():
    w = np.ones((64, 96), np.float32)
    return kernel_of(lambda x: jax.nn.relu(x @ w), np.ones((48, 64), np.float32))


@pytest.fixture(scope="module")
def several(matmul):
    """A matmul, a padded depthwise convolution, a softmax (several stages), and a reduction."""
    k = np.ones((16, 1, 3, 3), np.float32)

    def depthwise(x):
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", feature_group_count=16)

    return [
        matmul,
        kernel_of(depthwise, np.ones((1, 16, 12, 12), np.float32)),
        kernel_of(lambda x: jax.nn.softmax(x, -1), np.ones((32, 40), np.float32)),
        kernel_of(lambda x: x.max(0), np.ones((40, 24), np.float32)),
    ]


def test_the_beam_under_it_is_the_rooflines(several):
    for kernel in several:
        egraph = build(kernel, host(), 1)
        scorer = FeatureScorer(egraph, host(), 1)
        assert isinstance(scorer, NotingScorer)
        sweep = Sweep(egraph, scorer, 6)
        sweep.run()
        assert sweep.best(egraph.root)[0] == extract_nests(egraph, Roofline(host()), 6)[0]


def test_a_nest_has_the_same_features_alone(several):
    for kernel in several:
        egraph = build(kernel, host(), 1)
        scorer = FeatureScorer(egraph, host(), 1)
        sweep = Sweep(egraph, scorer, 6)
        sweep.run()
        best = sweep.best(egraph.root)
        order = np.argsort(sweep.cost[egraph.root], kind="stable")[: len(best)]
        roots = np.full(len(best), egraph.root)
        inside = scorer.features(roots, sweep.state[egraph.root, order], sweep.note[egraph.root, order])
        alone, seconds = describe(kernel, host(), 1, [s.nest for s in best])
        np.testing.assert_allclose(inside, alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(seconds, [s.seconds for s in best], rtol=1e-9)


@given(kernels(), st.data())
def test_every_nest_has_finite_features(kernel, data):
    nests = [data.draw(schedules(kernel)) for _ in range(2)]
    features, seconds = describe(kernel, host(), 1, nests)
    assert features.shape == (2, len(FEATURES)) and np.isfinite(features).all()
    assert (seconds > 0).all()


def test_features_say_what_the_nest_does(matmul):
    egraph, rng = build(matmul, host(), 1), np.random.default_rng(0)
    nests = list(dict.fromkeys(egraph.sample(rng) for _ in range(40)))
    features, _ = describe(matmul, host(), 1, nests)
    column = dict(zip(FEATURES, features.T, strict=True))
    trips = [n.trips if hasattr(n, "trips") and n.kind == "serial" else 1 for n in nests]
    outer = sum(column[f"loop{k}_trips"] for k in range(7))
    assert (outer >= np.log2(trips) - 1e-4).all()
    assert (column["registers"] <= 1.0).all() and (column["registers"] > 0).all()
    assert len(np.unique(features, axis=0)) > len(nests) // 2


def test_nests_alone_are_an_e_graph(several):
    for kernel in several:
        egraph, rng = build(kernel, host(), 1), np.random.default_rng(1)
        nests = [egraph.sample(rng) for _ in range(5)]
        small, roots = of_nests(kernel, host(), 1, nests)
        assert len(set(small.owner.tolist())) == small.enodes

        def nest(c, of=small):
            return of.node(int(of.by_class[c][0]), nest)

        assert [nest(int(c)) for c in roots] == nests


def test_drawn_nests_belong_to_the_kernel(several):
    for kernel in several:
        egraph, rng = build(kernel, host(), 1), np.random.default_rng(2)
        sampler = Sampler(swept(egraph, Roofline(host())))
        for temperature in (0.01, 0.5, 1e9):
            nest = sampler.draw(rng, temperature)
            assert load_nest(dumps(nest), kernel) == nest
            other = neighbour(egraph, nest, rng, sampler)
            assert other is not None and load_nest(dumps(other), kernel) == other


def test_at_no_temperature_the_best_is_drawn(matmul):
    egraph = build(matmul, host(), 1)
    sweep = swept(egraph, Roofline(host()), 1)
    drawn = Sampler(sweep).draw(np.random.default_rng(0), 1e-9)
    assert describe(matmul, host(), 1, [drawn])[1][0] == pytest.approx(sweep.best(egraph.root)[0].seconds)


def test_twenty_thousand_partial_nests_a_second(matmul):
    egraph = build(matmul, host(), 1)
    scorer = FeatureScorer(egraph, host(), 1)
    sweep = Sweep(egraph, scorer, 6)
    begun = time.process_time()
    sweep.run()
    assert scorer.notes == len(NOTES)
    assert np.isfinite(sweep.cost).sum() / (time.process_time() - begun) > 20_000
