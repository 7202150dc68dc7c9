"""Graphs: built, shared, printed, pruned, evaluated."""

import numpy as np
import pytest

from nestegg.ir.errors import TypeRuleError
from nestegg.ir.graph import GraphBuilder
from nestegg.ir.reference import evaluate
from nestegg.ir.types import TensorType


def test_a_graph_is_built_printed_and_evaluated():
    b = GraphBuilder()
    x = b.input(TensorType((2, 3)))
    w = b.constant(np.ones((3, 4), np.float32), "w")
    graph = b.finish([b.op("dot", x, w, contract=((1,), (0,)), batch=((), ()))])
    assert str(graph).splitlines() == [
        "%0 = input(x0) : f32[2,3]",
        "%1 = constant(w) : f32[3,4]",
        "%2 = dot(%0, %1; batch=((),()), contract=((1),(0))) : f32[2,4]",
        "return %2",
    ]
    np.testing.assert_array_equal(evaluate(graph, [np.ones((2, 3), np.float32)])[0], np.full((2, 4), 3.0))


def test_equal_nodes_are_shared():
    b = GraphBuilder()
    x = b.input(TensorType((2,)))
    assert (x + 1.0).id == (x + 1.0).id
    assert b.constant(np.float32(2)).id == b.constant(np.float32(2)).id


def test_inputs_are_never_shared_or_pruned():
    b = GraphBuilder()
    x, y = b.input(TensorType((2,))), b.input(TensorType((2,)))
    assert x.id != y.id
    assert len(b.finish([y]).inputs) == 2


def test_what_no_output_needs_is_pruned():
    b = GraphBuilder()
    x = b.input(TensorType((2,)))
    _ = x * 3.0
    graph = b.finish([-x])
    assert graph.operator_counts == {"input": 1, "neg": 1}


def test_an_input_may_be_an_output_and_twice():
    b = GraphBuilder()
    x = b.input(TensorType((2,)))
    a = np.arange(2, dtype=np.float32)
    for out in evaluate(b.finish([x, x]), [a]):
        np.testing.assert_array_equal(out, a)


def test_double_evaluation_is_float64_throughout():
    b = GraphBuilder()
    x = b.input(TensorType((1,)))
    (out,) = evaluate(b.finish([x + 1e-12]), [np.ones(1, np.float32)], double=True)
    assert out.dtype == np.float64


def test_type_errors_name_operator_operands_and_reason():
    b = GraphBuilder()
    x = b.input(TensorType((2, 3)))
    with pytest.raises(TypeRuleError, match=r"transpose\(f32\[2,3\]; perm=\(0,0\)\): perm .* no permutation"):
        b.op("transpose", x, perm=(0, 0))


def test_values_of_two_graphs_do_not_mix():
    x, y = (GraphBuilder().input(TensorType((1,))) for _ in range(2))
    with pytest.raises(TypeRuleError, match="belongs to another graph"):
        _ = x + y


def test_constants_are_copied_if_somebody_may_write_to_them():
    weights = np.ones((2, 3), np.float32)
    view = weights[:]
    view.setflags(write=False)
    frozen = np.ones(6, np.float32) * 2
    frozen.setflags(write=False)
    b = GraphBuilder()
    kept = [b.constants[b.constant(a).id] for a in (weights, view, frozen.reshape(2, 3))]
    weights[0, 0] = 5
    assert kept[0][0, 0] == 1 and kept[1][0, 0] == 1
    assert np.shares_memory(kept[2], frozen)
    assert not any(a.flags.writeable for a in kept)
