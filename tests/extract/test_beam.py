"""Extraction of nests, block after block of a loop e-graph."""

import numpy as np
import pytest

from nestegg.costmodel.roofline import Roofline
from nestegg.extract import beam
from nestegg.extract.beam import extract_nests
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import lower
from nestegg.ir.operator import operator
from nestegg.ir.target import target
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build

MACHINE = target("x86-64-v4")


@pytest.mark.parametrize("portion", [1, 7, 100])
def test_nests_do_not_depend_on_how_many_e_nodes_are_scored_at_a_time(
    portion: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = Attrs(contract=((1,), (0,)), batch=((), ()))
    egraph = build(lower(operator("dot").expr((TensorType((12, 30)), TensorType((30, 24))), product)), MACHINE)
    whole = extract_nests(egraph, Roofline(MACHINE))
    assert len(whole) == 6
    monkeypatch.setattr(beam, "PORTION", portion)
    assert extract_nests(egraph, Roofline(MACHINE)) == whole


def test_the_best_costs_of_each_class_are_enough() -> None:
    rng = np.random.default_rng(0)
    owner, costs = np.repeat([3, 5, 8], [4, 1, 2]), rng.random((7, 6))
    enough = beam._enough(owner, costs, 6)
    for c in (3, 8):
        assert (np.sort(costs[owner == c], axis=None)[5] == enough[owner == c]).all()
    assert (costs[owner == 5] <= enough[owner == 5]).all()
