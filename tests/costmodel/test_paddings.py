"""Taps on padding are not computed, and not counted."""

import math

import numpy as np
import pytest

from nestegg.costmodel.access import BoundsTest
from nestegg.costmodel.features import describe
from nestegg.costmodel.roofline import Rates, Roofline
from nestegg.extract.beam import extract_nests
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.nest import SERIAL, UNROLL, For, Nest, Tile, Vec
from nestegg.ir.operator import operator
from nestegg.ir.target import target
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build

MACHINE = target("x86-64-v4")
OUTPUTS, ROWS, COLUMNS, INPUTS, DOWN, ALONG = range(6)


def convolution(padding: int, extent: int = 7) -> LoopKernel:
    """3x3 convolution to an image of 7x7 from 16 channels to 16."""
    image = TensorType((1, 16, extent + 2 - 2 * padding, extent + 2 - 2 * padding))
    attrs = Attrs(strides=(1, 1), padding=((padding,) * 2,) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1)
    return lower(operator("conv").expr((image, TensorType((16, 16, 3, 3))), attrs))


def nest(down: str, along: str) -> Nest:
    code: Nest = For(COLUMNS, 7, UNROLL, Vec(OUTPUTS, 16))
    for axis, kind, trips in ((ALONG, along, 3), (DOWN, down, 3)):
        code = For(axis, trips, kind, code) if kind == UNROLL else code
    code = For(INPUTS, 16, SERIAL, code)
    for axis, kind in ((ALONG, along), (DOWN, down)):
        code = For(axis, 3, SERIAL, code) if kind == SERIAL else code
    return For(ROWS, 7, SERIAL, Tile(OUTPUTS, code))


def seconds(padding: int, down: str, along: str) -> float:
    return float(describe(convolution(padding), MACHINE, 1, [nest(down, along)])[1][0])


def test_loops_and_straight_line_code_skip_paddings() -> None:
    """19 of 21 taps along each of the two axes lie in the image."""
    domain, inside = np.array([[16, 1, 7, 1, 1, 3]]), np.array([0])
    rates = Rates(convolution(1), MACHINE)
    assert math.isclose(rates._done(domain)[0], 19 / 21), "the code knows the columns"
    assert rates.rounds_made(np.array([DOWN]), domain, inside)[0] == 19 / 21, "the loop passes the rows"
    assert rates.rounds_made(np.array([ALONG]), domain, inside)[0] == 1
    assert seconds(1, SERIAL, UNROLL) < seconds(0, SERIAL, UNROLL) < seconds(1, UNROLL, UNROLL)


@pytest.mark.parametrize("padding", [0, 1])
def test_the_bound_is_no_greater_than_the_best_nest(padding: int) -> None:
    kernel, model = convolution(padding), Roofline(MACHINE)
    best = extract_nests(build(kernel, MACHINE), model)[0]
    assert model.bound(kernel) <= best.seconds


@pytest.mark.parametrize(
    ("columns", "taps", "share"),
    [
        (14, 3, 1 / 42),  # only the first tap of a tile's first column can be to the left of the image
        (14, 1, 1 / 14),  # whichever tap the loop around is at
        (1, 3, 1 / 3),
        (56, 3, 0),  # the code knows where its columns are
    ],
)
def test_tests_are_made_where_they_may_fail(columns: int, taps: int, share: float) -> None:
    """56 columns of stride 2 of an image of 112, in tiles: at the right nothing is padded."""
    test = BoundsTest((0, 1), (56, 3), clear=1, steps=(2, 1), constant=-1, lo=0, hi=112)
    blocks, inside = np.array([[columns, taps, 16]] * 2), np.array([0, 1])
    assert np.allclose(test.made(blocks, np.array([2, 2]), 16, inside), [share, 0])


def test_one_lane_that_may_fail_makes_the_test_of_its_vector() -> None:
    test = BoundsTest((0, 1), (64, 3), clear=None, steps=(1, 1), constant=-1, lo=0, hi=64)
    blocks, place = np.array([[16, 3], [48, 3], [48, 3]]), np.zeros(3, np.int64)
    made = test.made(blocks, np.array([0, 0, -1]), 16, place)
    assert np.allclose(made, [2 / 3, 2 / 9, 2 / 144])
