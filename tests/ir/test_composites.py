"""Composites: the primitives of each are its JAX reference; canonical forms are what rules expect."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestegg.ir import canonical as ir
from nestegg.ir import composites as nn
from nestegg.ir.composites import COMPOSITES
from nestegg.ir.errors import TypeRuleError
from nestegg.ir.graph import GraphBuilder
from nestegg.ir.reference import evaluate
from nestegg.ir.types import TensorType

from .chooser import HypothesisChooser, tensors


def text(build, *shapes):
    """The operators of a composite applied to inputs of the given shapes, in order, without attributes."""
    b = GraphBuilder()
    graph = b.finish([build(*(b.input(TensorType(s)) for s in shapes))])
    return [n.op for n in graph.nodes if n.op != "input"]


def agrees(name, data):
    composite = COMPOSITES[name]
    types, attrs = composite.sample(HypothesisChooser(data.draw))
    b = GraphBuilder()
    out = composite.build(*(b.input(t) for t in types), **attrs)
    arrays = tensors(types)
    (got,) = evaluate(b.finish([out]), arrays, double=True)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        want = np.asarray(composite.reference(*map(jax.numpy.asarray, arrays), **attrs))
    assert got.shape == want.shape == out.shape
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)  # constants of the graph are float32


@pytest.mark.parametrize("name", COMPOSITES)
def test_primitives_are_the_reference(name):
    @settings(max_examples=4)
    @given(st.data())
    def run(data):
        agrees(name, data)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPOSITES)
def test_primitives_are_the_reference_on_many_instances(name):
    @settings(max_examples=40)
    @given(st.data())
    def run(data):
        agrees(name, data)

    run()


def test_relu_is_max_with_broadcast_zero():
    assert text(nn.relu, (2, 3)) == ["constant", "broadcast", "max"]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bias_is_a_broadcast_vector_also_at_batch_one(batch):
    b = GraphBuilder()
    x, bias = b.input(TensorType((batch, 5))), b.input(TensorType((5,)))
    for out in (nn.bias_add(x, bias), ir.add(x, bias), ir.add(ir.reshape(bias, (1, 5)), x)):
        node = ir.source(out)
        spread = b.nodes[node.inputs[1]]
        assert (node.op, node.inputs[0], spread.op, spread.attrs.dims) == ("add", x.id, "broadcast", (1,))


def test_constants_come_second_and_comparisons_turn_around():
    b = GraphBuilder()
    x = b.input(TensorType((3,)))
    c = b.constant(np.arange(3, dtype=np.float32))
    assert ir.source(ir.mul(c, x)).inputs == (x.id, c.id)
    assert ir.source(ir.binary("lt", c, x)).op == "gt"
    assert ir.source(ir.sub(c, x)).inputs == (c.id, x.id)


def test_what_changes_nothing_is_not_emitted():
    b = GraphBuilder()
    x = b.input(TensorType((2, 3)))
    unchanged = [
        ir.reshape(ir.reshape(x, (6,)), (2, 3)),
        ir.transpose(ir.transpose(x, (1, 0)), (1, 0)),
        ir.broadcast(x, (2, 3), (0, 1)),
        ir.cast(x, "f32"),
        ir.pad(x, (0, 0), (0, 0)),
        ir.slice_(x, (0, 0), (2, 3)),
        ir.reverse(x, ()),
        ir.concat([x], 0),
    ]
    assert {v.id for v in unchanged} == {x.id}


def test_a_broadcast_of_a_broadcast_is_one():
    b = GraphBuilder()
    x = b.input(TensorType((3,)))
    out = ir.broadcast(ir.broadcast(x, (1, 3, 1), (1,)), (2, 3, 4), (0, 1, 2))
    assert ir.source(out).inputs == (x.id,)
    assert ir.source(out).attrs.dims == (1,)


def test_division_by_a_power_of_two_multiplies():
    assert text(lambda x: ir.divide(x, 4), (2,))[-1] == "mul"
    assert text(lambda x: ir.divide(x, 3), (2,))[-1] == "div"


def test_integers_divide_towards_zero():
    b = GraphBuilder()
    x, y = b.input(TensorType((4,), "i32")), b.input(TensorType((4,), "i32"))
    p, q = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    np.testing.assert_array_equal(evaluate(b.finish([ir.divide(x, y)]), [p, q])[0], [3, -3, -3, 3])


def test_split_and_take_are_slices():
    b = GraphBuilder()
    x = b.input(TensorType((2, 7)))
    parts = nn.split(x, -1, (3, 4))
    assert [p.shape for p in parts] == [(2, 3), (2, 4)]
    picked = nn.take(x, np.array([[0, 2], [4, -1]]), 1)
    a = np.arange(14, dtype=np.float32).reshape(2, 7)
    got = evaluate(b.finish([*parts, picked]), [a])
    for g, w in zip(got, [a[:, :3], a[:, 3:], a[:, [[0, 2], [4, -1]]]], strict=True):
        np.testing.assert_array_equal(g, w)
    with pytest.raises(TypeRuleError, match="do not add up"):
        nn.split(x, 1, (3, 3))
