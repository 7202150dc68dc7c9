"""Tensor expressions as values: equal computations are equal, and what does not change stays the same object."""

import pickle
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from nestegg.ir.compose import compose
from nestegg.ir.expr import Const, Read, TensorExpr, apply, rebuild, reduce
from nestegg.ir.index import Axis, Index
from nestegg.ir.lazy import lazy
from nestegg.ir.types import TensorType

SQUARE = TensorType((4, 4))


def row_sums(*names: int) -> TensorExpr:
    """The sums of rows less their products, the reduction axes with these numbers."""
    i, axes = Axis("i0", 4), [Axis(f"r{n}", 4) for n in names]
    total, product = (
        reduce(kind, [a], Read(0, (Index.of(i), Index.of(a)), "f32"))
        for kind, a in zip(("sum", "prod"), axes, strict=True)
    )
    return TensorExpr((SQUARE,), (i,), total - product)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_reductions_are_named_by_their_order(names: list[int]):
    assert row_sums(*names).canonical == row_sums(0, 1)


def test_what_is_canonical_is_not_made_again():
    named = row_sums(0, 1)
    assert named.canonical is named


def test_a_reduction_that_is_read_twice_has_two_names():
    sums = TensorExpr.build(
        [SQUARE], (4,), lambda x: lambda i: reduce("sum", [Axis("r", 4)], x[i, Axis("r", 4)])
    )
    folded = TensorExpr.build([TensorType((4,))], (4,), lambda x: lambda i: x[i] + x[3 - Index.of(i)])
    composed = compose(folded, 0, sums)
    assert [a.name for r in composed.reduces for a in r.axes] == ["r0", "r1"]


def test_a_scalar_that_does_not_change_is_kept():
    body = row_sums(0, 1).body
    assert rebuild(body, lambda s: s, lambda i: i) is body
    assert rebuild(body, lambda s: apply("neg", s), lambda i: i) is not body


def test_lazy_values_are_computed_once():
    class Counted:
        times = 0

        @lazy
        def value(self) -> int:
            self.times += 1
            return self.times

    counted = Counted()
    assert (counted.value, counted.value, counted.times) == (1, 1, 1)


def test_what_is_kept_of_values_is_not_pickled():
    """Another process hashes strings otherwise."""
    i = Axis("i", 4)
    values = i, Index.of(i) * 2, Read(0, (Index.of(i),), "f32"), Const(1.0, "f32")
    for value in (*values, TensorExpr((TensorType((4,)),), (i,), values[2])):
        hash(value), str(value)
        again = pickle.loads(pickle.dumps(value))
        assert again == value
        assert "_hash" in vars(value)
        assert set(vars(again)) == {f.name for f in fields(value)}
        assert hash(again) == hash(value)
