"""Every operator: its tensor expression and its JAX reference are the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nestegg.ir import ops, reference
from nestegg.ir.attrs import Attrs
from nestegg.ir.errors import TypeRuleError, UnknownNameError
from nestegg.ir.operator import OPERATORS, Reject, operator
from nestegg.ir.reference import apply_reference, evaluate_expr
from nestegg.ir.scalars import SCALARS
from nestegg.ir.types import DTYPES, TensorType

from .chooser import HypothesisChooser, tensors

# JAX compiles each new shape: elementwise operators get few examples here, and all of them in the slow run.
EXAMPLES = {"elementwise": 4, "movement": 14, "reduction": 10, "contraction": 10, "indexed": 14}


def drawn(name: str, data: st.DataObject) -> tuple[tuple[TensorType, ...], Attrs]:
    """Operands' types and attributes that the operator takes."""
    op, chooser = OPERATORS[name], HypothesisChooser(data.draw)
    arity = op.arity if op.arity is not None else chooser.integer(1, 3)
    try:
        types, attrs = op.sample(chooser, [None] * arity, None)
        op.check(tuple(types), attrs)
    except (Reject, TypeRuleError):
        assume(False)
        raise
    return tuple(types), attrs


def agrees(name: str, data: st.DataObject) -> None:
    """Draw an instance of the operator; hold its expression, on integers and reals, against its reference."""
    op = OPERATORS[name]
    types, attrs = drawn(name, data)
    out = op.check(types, attrs)
    lo, hi = (SCALARS[name].domain or (-2, 2)) if name in SCALARS else (-2, 2)
    arrays = tensors(types, lo, hi)
    with jax.enable_x64(True):
        want = np.asarray(apply_reference(name, [jnp.asarray(a) for a in arrays], attrs, double=True))
        got = evaluate_expr(op.expr(types, attrs), arrays)
    assert got.shape == want.shape == out.shape
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def check(name: str, examples: int) -> None:
    quiet = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=examples, suppress_health_check=quiet)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        agrees(name, data)

    run()


@pytest.mark.parametrize("name", OPERATORS)
def test_expression_is_the_reference(name):
    check(name, EXAMPLES.get(OPERATORS[name].family, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_expression_is_the_reference_on_many_instances(name):
    check(name, 100)


@pytest.mark.parametrize("name", [n for n, op in OPERATORS.items() if op.family in ("elementwise", "movement")])
def test_constants_are_folded_the_same_in_numpy_and_by_jax(name, monkeypatch):
    @settings(max_examples=4, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        types, attrs = drawn(name, data)
        lo, hi = (SCALARS[name].domain or (-2, 2)) if name in SCALARS else (-2, 2)
        arrays = [a.astype(DTYPES[t.dtype].numpy) for a, t in zip(tensors(types, lo, hi), types, strict=True)]
        monkeypatch.setattr(reference, "FOLDED_IN_NUMPY", 1 << 21)
        quick = reference.fold(name, arrays, attrs)
        monkeypatch.setattr(reference, "FOLDED_IN_NUMPY", -1)
        slow = reference.fold(name, arrays, attrs)
        assert quick.dtype == slow.dtype and quick.shape == slow.shape
        np.testing.assert_allclose(quick.astype(np.float64), slow.astype(np.float64), rtol=1e-6, atol=1e-12)

    run()


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_documented(name):
    op = operator(name)
    assert op.doc
    assert op.family in EXAMPLES


def test_an_unknown_operator_is_named():
    with pytest.raises(UnknownNameError, match="frobnicate"):
        operator("frobnicate")


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("add", [(2, 3), (3,)], "one shape; broadcast first"),
        ("add", [(2,)], "takes 2 operands, 1 given"),
    ],
)
def test_wrong_operands_are_refused_with_the_reason(name, shapes, message):
    with pytest.raises(TypeRuleError, match=message):
        operator(name).check(tuple(TensorType(s) for s in shapes), ops.EMPTY)
