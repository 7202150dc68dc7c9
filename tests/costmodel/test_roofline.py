"""What the roofline says of parts of a kernel, and of scalar functions on different targets."""

from collections.abc import Iterator

import pytest

from nestegg.costmodel.roofline import Roofline, scalar_cost
from nestegg.extract.beam import extract_nests
from nestegg.ir.expr import Apply, Const
from nestegg.ir.loops import lower
from nestegg.ir.nest import Cat, For, Nest, Seq, Stage, Store, Tile, Vec
from nestegg.ir.target import TARGETS
from nestegg.rewrite.loop_egraph import build

from ..ir.test_stages import softmax

MACHINE, NARROW = TARGETS["x86-64-v4"], TARGETS["x86-64-v3"]


def vectors(nest: Nest) -> Iterator[int]:
    """Lanes of every leaf."""
    if isinstance(nest, Vec):
        yield nest.lanes
    elif isinstance(nest, Cat | Seq):
        yield from vectors(nest.first)
        yield from vectors(nest.second)
    else:
        assert isinstance(nest, For | Stage | Store | Tile)
        yield from vectors(nest.body)


def test_parts_of_what_a_cache_holds_are_chosen_by_their_cycles() -> None:
    """Rows of 1000 are whole vectors and a tail of 8, not vectors of 10, though the tail touches a line once more."""
    best = extract_nests(build(lower(softmax(64, 1000)), MACHINE), Roofline(MACHINE))[0]
    lanes = set(vectors(best.nest))
    assert {8, 16} <= lanes
    assert 10 not in lanes


@pytest.mark.parametrize("fn", ["exp", "logistic", "erf"])
def test_a_function_that_tables_make_cheaper_costs_less_where_there_are_tables(fn: str) -> None:
    value = Apply(fn, (Const(0.5, "f32"),), "f32")
    assert MACHINE.tables
    assert not NARROW.tables
    assert 1 < scalar_cost(value, MACHINE) < scalar_cost(value, NARROW)
