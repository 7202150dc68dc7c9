"""Winograd's convolutions: matrices, stated errors, where the rules apply, and that they are chosen and right."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nestegg
from nestegg.compiler import Options
from nestegg.ir.attrs import Attrs
from nestegg.ir.types import TensorType
from nestegg.rewrite.winograd import TILES, Tile, winograd_rules


@settings(max_examples=30)
@given(st.sampled_from(TILES), st.data())
def test_the_matrices_convolve(tile, data):
    numbers = st.floats(-4, 4, width=16)
    x = np.array(data.draw(st.lists(numbers, min_size=tile.size, max_size=tile.size)))
    w = np.array(data.draw(st.lists(numbers, min_size=tile.taps, max_size=tile.taps)))
    b, g, a = map(np.array, (tile.inputs, tile.weights, tile.results))
    np.testing.assert_allclose(a @ ((g @ w) * (b @ x)), np.correlate(x, w, "valid"), atol=1e-10)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_rounding_errors_stay_below_the_stated_gain(tile):
    """Of random data, a result's error is at most `gain` times that of adding up one by one, in the mean square."""
    rng, channels = np.random.default_rng(0), 32
    x = rng.standard_normal((400, channels, tile.size, tile.size)).astype(np.float32)
    w = rng.standard_normal((channels, tile.taps, tile.taps)).astype(np.float32)
    b, g, a = (np.array(m, np.float32) for m in (tile.inputs, tile.weights, tile.results))
    weights = np.einsum("ai,cij,bj->cab", g.astype(float), w.astype(float), g.astype(float)).astype(np.float32)
    inputs = np.einsum("cnaj,bj->cnab", np.einsum("ai,ncij->cnaj", b, x), b)
    products = (weights[:, None] * inputs).sum(0)
    got = np.einsum("nyb,xb->nyx", np.einsum("ya,nab->nyb", a, products), a)
    windows = np.lib.stride_tricks.sliding_window_view(x, (tile.taps, tile.taps), axis=(2, 3))
    exact = np.einsum("ncyxij,cij->nyx", windows.astype(float), w.astype(float))
    direct = np.moveaxis(windows * w[:, None, None], 1, 3).reshape(*exact.shape, -1).cumsum(-1)[..., -1]
    error, least = (np.sqrt(((v - exact) ** 2).mean(0).max()) for v in (got, direct))
    assert error <= tile.gain * least


@pytest.mark.parametrize("taps", [2, 3])
def test_larger_tiles_amplify_more(taps):
    gains = [t.gain for t in TILES if t.taps == taps]
    assert 1 < gains[0] and gains == sorted(gains)


def conv(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), feature_group_count=groups)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 32, 24, 24), (2, 48, 13, 18)], ids=str)
def test_a_convolution_is_winograd_s_and_right(shape):
    """With bias, a residual and relu around it, of extents that tiles divide and others."""
    w, bias = drawn(shape[1], shape[1], 3, 3) / 20, drawn(shape[1], 1, 1)
    compiled = nestegg.optimize(lambda x: jax.nn.relu(conv(x, w) + bias + x), drawn(*shape), threads=1)
    assert compiled.rounding_gain == Tile(4).gain
    assert compiled.verify().ok
    assert compiled.report().to_json()["rounding_gain"] == Tile(4).gain


def test_no_budget_no_winograd():
    w = drawn(32, 32, 3, 3)
    options = Options(threads=1, rounding_gain=1.0)
    compiled = nestegg.optimize(lambda x: conv(x, w), drawn(1, 32, 24, 24), options=options)
    assert compiled.rounding_gain == 1.0


def test_a_larger_budget_admits_larger_tiles():
    w = drawn(32, 32, 3, 3)
    compiled = nestegg.optimize(
        lambda x: conv(x, w), drawn(1, 32, 30, 30), options=Options(threads=1, rounding_gain=50.0)
    )
    assert compiled.rounding_gain == Tile(6).gain
    verified = compiled.verify()
    assert verified.ok and verified.max_rel_err < 1e-4


def test_a_transposed_convolution_is_winograd_s_phase_by_phase():
    w = drawn(64, 64, 4, 4) / 20

    def transposed(x):
        return jax.lax.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2))

    compiled = nestegg.optimize(transposed, drawn(1, 64, 16, 16), threads=1)
    assert compiled.rounding_gain > 1
    assert compiled.verify().ok


def test_conditions():
    small, four = winograd_rules(16)[:2]
    ones, none = (1, 1), ((0, 0), (0, 0))
    plain = Attrs(strides=ones, padding=none, lhs_dilation=ones, rhs_dilation=ones, groups=1)
    x, w = TensorType((1, 64, 58, 58)), TensorType((64, 64, 3, 3))
    assert four.holds({"x": x, "w": w, "c": plain}) and not small.holds({"x": x, "w": w, "c": plain})
    for attrs in (
        plain.replace(strides=(2, 2)),
        plain.replace(padding=((1, 1), (1, 1))),
        plain.replace(rhs_dilation=(2, 2)),
        plain.replace(groups=2),
    ):
        assert not four.holds({"x": x, "w": w, "c": attrs})
    for weights in ((64, 64, 5, 5), (60, 64, 3, 3), (64, 64, 1, 1)):
        assert not four.holds({"x": x, "w": TensorType(weights), "c": plain})
    deep = {"x": TensorType((1, 512, 9, 9)), "w": TensorType((512, 512, 3, 3)), "c": plain}
    assert small.holds(deep) and four.holds(deep)  # 36 weights for 9 are too many to read for four tiles: either
