"""Operands that no near cache holds are worth fetching ahead, where the second cache has room for them."""

from dataclasses import replace

import pytest

from nestegg.costmodel.features import describe
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import lower
from nestegg.ir.nest import AHEAD, SERIAL, UNROLL, For, Tile, Vec
from nestegg.ir.operator import operator
from nestegg.ir.target import target
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build

from ..ir.test_stages import softmax


def product(panels: int, rows: int = 48):
    """Rows of 1024 by panels of 16 columns: 64 KiB of weights each."""
    types = TensorType((rows, 1024)), TensorType((panels, 1024, 16))
    return lower(operator("dot").expr(types, Attrs(contract=((1,), (1,)), batch=((), ()))))


@pytest.mark.parametrize(("group", "pays"), [(4, True), (16, False)])  # 256 KiB an iteration, and 1 MiB
def test_fetching_ahead_pays_where_there_is_room(group: int, pays: bool) -> None:
    rows, panel, lane, depth = range(4)
    inner = For(depth, 16, UNROLL, For(rows, 6, UNROLL, For(panel, 4, UNROLL, Vec(lane, 16))))
    tiles = For(rows, 8, SERIAL, For(panel, group // 4, SERIAL, Tile(lane, For(depth, 64, SERIAL, inner))))
    nest = For(panel, 64 // group, SERIAL, tiles)
    plain, ahead = describe(product(64), target("x86-64-v4"), 1, [nest, replace(nest, kind=AHEAD)])[1]
    assert (ahead < plain) == pays


def test_it_is_offered_where_operands_are_far() -> None:
    machine = target("x86-64-v4")
    assert build(product(64), machine).space.distant
    assert not build(product(1), machine).space.distant
    assert not build(product(64, rows=1), machine).space.distant  # nothing to do meanwhile


def test_stages_fetch_rows_ahead_that_no_cache_holds() -> None:
    machine = target("x86-64-v4")
    rows = 2 * machine.caches[2] // 4096
    assert build(lower(softmax(rows, 1024)), machine).space.distant
    assert not build(lower(softmax(64, 1024)), machine).space.distant
