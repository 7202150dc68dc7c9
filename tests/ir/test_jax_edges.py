"""Where functions of JAX are easily got wrong: values that are no numbers, overflow, ties, positions out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nestegg.ir.errors import ImportFailure, UnsupportedError
from nestegg.ir.jax_frontend import from_jax
from nestegg.ir.reference import evaluate

from .test_jax_frontend import array, assert_same

NAN, INF = np.nan, np.inf
SPECIAL = [0, -0.0, 1, -1, 0.5, -1.5, 2.5, 0.49999997, 8388609, 1e-30, 3e38, -3e38, INF, -INF, NAN, 89.2, -89.2, 300]
FUNCTIONS = [lax.asinh, lax.acosh, lax.sinh, lax.cosh, lax.round, lax.atan, lax.sign, lax.neg]


def int32(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("fn", FUNCTIONS, ids=lambda fn: fn.__name__)
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_elementary_functions_over_the_whole_range(fn, dtype, x64):
    x = np.array(SPECIAL, dtype)
    (got,) = evaluate((program := from_jax(fn, x)).graph, program.flatten(x))
    want = np.asarray(jax.jit(fn)(x))
    np.testing.assert_allclose(got, want, rtol=16 * float(jnp.finfo(dtype).eps), atol=0)


@pytest.mark.parametrize("fn", [lax.neg, lax.sign], ids=lambda fn: fn.__name__)
def test_unsigned_integers(fn):
    assert_same(fn, np.array([0, 1, 200, 255], np.uint8))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_integer_division_by_0_and_by_minus_1_is_xlas(dtype):
    info = np.iinfo(dtype)
    x = np.array([info.min, info.min, info.max, 0, 7], dtype)
    y = np.array([0, info.max if info.min == 0 else -1, 0, 0, 2], dtype)
    assert_same(lambda x, y: (lax.div(x, y), lax.rem(x, y)), x, y)
    assert_same(lambda x: lax.div(x, jnp.full_like(x, y[1])), x)


def test_the_remainder_of_floats():
    x, y = np.array([7.5, -7.5, 3, INF, 0.3, 1e30], np.float32), np.array([2, 2, INF, 1, 0.1, 0], np.float32)
    assert_same(lambda x, y: (lax.rem(x, y), x % y), x, y)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_order_among_values_that_are_no_numbers(dtype):
    x = np.array([[3, NAN, -0.0, 0, INF, NAN, -INF, 3], [1] * 8, [NAN] * 8], dtype)
    assert_same(lambda x: (jnp.sort(x, 1), jnp.argsort(x, 1), jnp.sort(x, 1, descending=True)), x)
    assert_same(lambda x: lax.top_k(x, 3), x)
    assert_same(lambda x: (x.argmax(1), x.argmin(1), x.max(1), jnp.nanmax(x, 1)), x)


def test_reductions_of_bool():
    x = np.array([[True, False], [True, True]])
    assert_same(lambda x: (x.max(0), x.min(0), x.argmax(1), x.argmin(0), x.any(), x.all(1)), x)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("mode", [None, "clip", "fill", "drop"])
def test_positions_out_of_range(mode, known):
    x, where, new = array(5, 3), int32(-1, 2, -9, 5, 100), array(5, 3)

    def read_and_write(x, where, new):
        here = x.at[where]
        return here.get(mode=mode), here.add(new, mode=mode), here.min(new, mode=mode), here.multiply(new, mode=mode)

    if known:
        assert_same(lambda x, new: read_and_write(x, where, new), x, new)
    else:
        assert_same(read_and_write, x, where, new)


def test_of_updates_at_one_position_the_last_is_taken():
    assert_same(lambda x, where, new: x.at[where, 1].set(new), array(5, 3), int32(2, 3, 3, 2), array(4))


def test_the_gradient_of_a_grouped_convolution():
    def loss(x, w):
        return (lax.conv_general_dilated(x, w, (1, 2), [(1, 0), (2, 1)], feature_group_count=2) ** 2).sum()

    assert_same(jax.grad(loss, (0, 1)), array(2, 4, 6, 5), array(6, 2, 3, 2), tolerance=1e-4)


def test_windows_of_nothing():
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 1), "SAME")  # noqa: E731
    assert_same(pool, array(0, 4, 4))
    assert_same(pool, array(2, 0, 4))


def test_a_mask_of_infinities_is_no_damaged_weight():
    mask = np.triu(np.full((3, 3), -INF, np.float32), 1)
    assert_same(lambda x: jax.nn.softmax(x + mask), array(3, 3))


@pytest.mark.parametrize("values", [[1, 2, INF], [NAN, 0, 0]])
def test_weights_that_are_not_finite_are_refused(values):
    weights = np.array(values, np.float32)
    with pytest.raises(ImportFailure, match="not finite"):
        from_jax(lambda x: x + weights, array(3))


def test_random_numbers_drawn_inside_are_refused():
    with pytest.raises(UnsupportedError, match="pass them as an argument"):
        from_jax(lambda x: x * jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), array(3))
