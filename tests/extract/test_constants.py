"""Constants of a chosen program: evaluated once each, kept where they are wanted, independent ones apart."""

import threading

import numpy as np
import pytest

from nestegg.extract import constants
from nestegg.extract.constants import constant_values
from nestegg.ir.attrs import EMPTY
from nestegg.ir.errors import NesteggError
from nestegg.ir.reference import fold
from nestegg.ir.types import TensorType
from nestegg.rewrite.graph_egraph import EClass, GraphEGraph, OpNode
from nestegg.rewrite.saturate import SaturationReport

F32 = TensorType((3,))


def egraph(*ops: tuple[OpNode, ...], given: int = 1) -> GraphEGraph:
    """`given` constants, then an e-class for each tuple of operators."""
    classes = [EClass(F32, const=True, constant=k) for k in range(given)]
    classes += [EClass(F32, const=True, ops=list(nodes)) for nodes in ops]
    arrays = [np.arange(3, dtype=np.float32) + 10 * k for k in range(given)]
    return GraphEGraph(classes, (), arrays, SaturationReport())


def apply(name: str, *args: int) -> OpNode:
    return OpNode(name, EMPTY, args)


def test_a_shared_constant_is_made_once_and_the_wanted_are_kept():
    g = egraph((apply("neg", 0),), (apply("exp", 1),), (apply("add", 1, 2),))
    made: list[str] = []

    def counted(op, args, attrs):
        made.append(op)
        return fold(op, args, attrs)

    place = {c: np.zeros(3, np.float32) for c in (3, 0)}

    def keep(c, value):
        place[c][...] = value
        return place[c]

    values = constant_values(g, [3, 0], counted, keep)
    assert sorted(made) == ["add", "exp", "neg"]
    assert all(values[c] is place[c] for c in (3, 0))
    x = np.arange(3, dtype=np.float32)
    np.testing.assert_allclose(values[3], np.exp(-x) - x, rtol=1e-6)
    np.testing.assert_array_equal(values[0], x)


@pytest.mark.parametrize("cpus", [1, 2])
def test_independent_constants_are_made_in_threads(monkeypatch, cpus):
    monkeypatch.setattr(constants, "available_cpus", lambda: cpus)
    g = egraph((apply("neg", 0),), (apply("neg", 1),), (apply("exp", 2),), (apply("exp", 3),), given=2)
    threads: set[int] = set()
    both = threading.Barrier(cpus)

    def met(op, args, attrs):
        if op == "neg":
            both.wait(20)
        threads.add(threading.get_ident())
        return fold(op, args, attrs)

    values = constant_values(g, [4, 5], met)
    assert len(threads) == cpus
    np.testing.assert_allclose(values[5], np.exp(-(np.arange(3) + 10.0)), rtol=1e-6)


def test_an_operator_that_needs_its_own_result_is_passed_over():
    assert constant_values(egraph((apply("neg", 1), apply("neg", 0))), [1], fold)[1][2] == -2
    with pytest.raises(NesteggError, match="e-class 1 cannot be evaluated"):
        constant_values(egraph((apply("neg", 1),)), [1], fold)
