"""Strassen's product: its tables, what it states of rounding errors, and that programs use it.

Not here: the rules as equations (test_check), the operators against JAX (tests/ir/test_ops).
"""

import numpy as np
import pytest

import nestegg
from nestegg.ir.operator import operator
from nestegg.rewrite import strassen


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """By the tables, in the dtype of x."""
    cut, join = operator("to_quarters").reference, operator("from_quarters").reference
    left, right, result = (np.array(t, x.dtype) for t in (strassen.LEFT, strassen.RIGHT, strassen.RESULT))
    made = np.einsum("aq,qik->aik", left, cut(x)) @ np.einsum("aq,qjk->akj", right, cut(w.T))
    return join(np.einsum("qa,aij->qij", result, made))


def test_the_tables_make_a_product():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 9, (6, 10)), rng.integers(-9, 9, (10, 4))
    assert np.array_equal(product(x, w), x @ w)


def test_rounding_errors_grow_as_stated():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((128, 512)), rng.standard_normal((512, 128))
    narrow = x.astype(np.float32), w.astype(np.float32)
    exact = narrow[0].astype(np.float64) @ narrow[1].astype(np.float64)
    plain, fast = (np.std(made - exact) for made in (narrow[0] @ narrow[1], product(*narrow)))
    assert fast <= 1.5 * strassen.gain() * plain


@pytest.mark.parametrize("sides", [(127, 512, 512), (128, 520, 512), (2, 512, 512)])
def test_odd_quarters_and_thin_products_are_left_alone(sides: tuple[int, int, int]) -> None:
    assert strassen.pays(128, 512, 512, lanes=16)
    assert not strassen.pays(*sides, lanes=16)


def test_a_program_states_its_gain_unless_it_may_not_have_one():
    rng = np.random.default_rng(2)
    w = rng.standard_normal((1024, 1024), np.float32)
    x = rng.standard_normal((256, 1024), np.float32)
    options = nestegg.Options(threads=1)
    fast = nestegg.optimize(lambda x: x @ w, x, options=options)
    assert fast.rounding_gain == pytest.approx(strassen.gain())
    assert fast.verify().ok
    plain = nestegg.optimize(lambda x: x @ w, x, options=nestegg.Options(threads=1, rounding_gain=2.0))
    assert plain.rounding_gain == 1.0
