"""What neighbouring results share of their operands' vectors is loaded, and counted, once."""

import numpy as np
import pytest

from nestegg.costmodel.features import describe
from nestegg.costmodel.roofline import Rates, Roofline
from nestegg.extract.beam import Sweep
from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.nest import SERIAL, UNROLL, For, Tile, Vec
from nestegg.ir.operator import operator
from nestegg.ir.target import target
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import of_nests

MACHINE = target("x86-64-v4")
ROWS, COLUMNS, CHANNELS, TAP = range(4)


def weighted(dilation: int) -> LoopKernel:
    """Weighted sums of 3 neighbours along the columns, channel by channel: 12 rows, 30 columns, 16 channels."""
    extent = 30 + 2 * dilation
    attrs = Attrs(strides=(1,), padding=((0, 0),), lhs_dilation=(1,), rhs_dilation=(dilation,), groups=16)
    conv = operator("conv").expr((TensorType((12, 16, extent)), TensorType((16, 1, 3))), attrs)
    x = operator("transpose").expr((TensorType((12, extent, 16)),), Attrs(perm=(0, 2, 1)))
    w = operator("transpose").expr((TensorType((1, 3, 16)),), Attrs(perm=(2, 0, 1)))
    y = operator("transpose").expr((conv.type,), Attrs(perm=(0, 2, 1)))
    return lower(compose(y, 0, compose(compose(conv, 0, x), 1, w)))


@pytest.mark.parametrize(
    ("dilation", "columns", "loads"),
    [(1, 10, 12), (1, 2, 4), (1, 1, 3), (1, 30, 90), (31, 10, 30)],  # 30 results leave a window no registers
)
def test_vectors_of_overlapping_windows_count_once(dilation: int, columns: int, loads: int) -> None:
    rates = Rates(weighted(dilation), MACHINE)
    cycles = rates.loads(rates.updates[0], np.array([[1, columns, 16, 3]]), np.array([CHANNELS]), np.array([0]))
    assert cycles * MACHINE.loads_per_cycle == loads


def test_tiles_along_overlapping_windows_are_better() -> None:
    window = For(TAP, 3, UNROLL, Vec(CHANNELS, 16))
    along = For(ROWS, 12, SERIAL, For(COLUMNS, 3, SERIAL, Tile(CHANNELS, For(COLUMNS, 10, UNROLL, window))))
    across = For(COLUMNS, 30, SERIAL, Tile(CHANNELS, For(ROWS, 12, UNROLL, window)))
    seconds = describe(weighted(1), MACHINE, 1, [along, across])[1]
    assert seconds[0] < seconds[1]


def test_rows_that_windows_share_come_into_a_cache_once() -> None:
    """3x3 taps over an image of 66 KiB, row after row: the first cache forgets the image, but not the last two rows."""
    attrs = Attrs(strides=(1, 1), padding=((0, 0),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1)
    kernel = lower(operator("conv").expr((TensorType((1, 1, 130, 130)), TensorType((1, 1, 3, 3))), attrs))
    tile = Tile(1, For(2, 3, UNROLL, For(3, 3, UNROLL, Vec(1, 16))))
    egraph, roots = of_nests(kernel, MACHINE, 1, [For(0, 128, SERIAL, For(1, 8, SERIAL, tile))])
    sweep = Sweep(egraph, Roofline(MACHINE).scorer(egraph), 1)
    sweep.run()
    image, result = 130 * 130 * 4, 128 * 128 * 4
    assert image + result <= sweep.state[roots[0], 0, 1] < 1.1 * (image + result)
