"""JAX' loops and branches: unrolled while importing, or both computed; and positions known only at run time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nestegg.ir.errors import UnsupportedError
from nestegg.ir.jax_frontend import from_jax
from nestegg.ir.reference import evaluate

RNG = np.random.default_rng(5)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def assert_same(fn, *args):
    program = from_jax(fn, *args)
    got = evaluate(program.graph, program.flatten(*args))
    for g, w in zip(got, jax.tree.leaves(jax.jit(fn)(*args)), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5)
    return program


def test_a_scan_is_unrolled():
    def sums(x):
        return lax.scan(lambda total, row: (total + row, total * row), jnp.zeros(3), x)

    program = assert_same(sums, array(4, 3))
    assert program.graph.operator_counts["add"] == 4


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_with_constants_and_a_direction(reverse):
    w = array(3, 3)
    assert_same(
        lambda x: lax.scan(lambda h, r: (jnp.tanh(h @ w + r), h), jnp.zeros(3), x, reverse=reverse), array(4, 3)
    )


def test_counted_loops():
    assert_same(lambda x: lax.fori_loop(0, 3, lambda k, v: v * 2 + k, x), array(2))
    assert_same(lambda x: lax.while_loop(lambda s: s[0] < 4, lambda s: (s[0] + 1, s[1] * x), (0, x))[1], array(2))


def test_gradients_through_a_scan():
    def loss(w):
        return lax.scan(lambda h, _: (jnp.tanh(w @ h), None), jnp.ones(3), None, length=3)[0].sum()

    assert_same(jax.grad(loss), array(3, 3))


def test_loops_of_unknown_or_great_length_are_refused():
    with pytest.raises(UnsupportedError, match="its condition depends on arguments; only loops of known length"):
        from_jax(lambda x: lax.while_loop(lambda v: v.sum() < 9, lambda v: v * 2, x), array(2))
    with pytest.raises(UnsupportedError, match="the scan runs 5000 steps; at most 1024 are unrolled"):
        from_jax(lambda x: lax.scan(lambda c, _: (c * 2, None), x, None, length=5000)[0], array(2))


@pytest.mark.parametrize("which", [-3, 0, 1, 7])
def test_branches(which):
    branches = [jnp.sin, jnp.cos, lambda x: x * 2]
    assert_same(lambda k, x: lax.switch(k, branches, x), np.int32(which), array(3))
    assert_same(lambda x: lax.cond(x.sum() > 0, lambda v: v, lambda v: -v, x), array(3))


X = array(5, 4, 3)
ROWS = np.array([[4, 0], [9, 2]], np.int32)
INDEXED = {
    "rows": (lambda x, k: x[k], ROWS),
    "columns": (lambda x, k: x[:, k % 4], ROWS),
    "two axes": (lambda x, k: x[k, :, k % 3], ROWS),
    "fill": (lambda x, k: jnp.take(x, k, axis=0, mode="fill", fill_value=7), ROWS),
    "along": (lambda x, k: jnp.take_along_axis(x, k[:, :, None] % 4, axis=1), np.tile(ROWS[:1], (5, 1))),
    "window": (lambda x, k: lax.dynamic_slice(x, (k[0, 0], k[1, 0], 0), (2, 3, 3)), ROWS),
    "update": (lambda x, k: lax.dynamic_update_slice(x, -x[:2, :3], (k[0, 1], k[0, 0], 0)), ROWS),
    "batches of windows": (lambda x, k: jax.vmap(lambda i: lax.dynamic_slice(x, (i, 0, 1), (2, 4, 2)))(k[0]), ROWS),
    "each its own": (lambda x, k: jax.vmap(lambda r, i: r[i])(x, k[:, 0]), np.tile(ROWS[:1], (5, 1))),
    "set": (lambda x, k: x.at[k[0]].set(1.0), ROWS),
    "add": (lambda x, k: x.at[k].add(2.0), ROWS),
    "embedding's gradient": (lambda x, k: jax.grad(lambda t: (jnp.tanh(t)[k] ** 2).sum())(x), ROWS),
    "best": (lambda x, k: lax.top_k(x * k[0, 1], 2), ROWS + 1),
    "sorted": (lambda x, k: jnp.sort(x, axis=1) * k[0, 0], ROWS),
    "argsorted": (lambda x, k: jnp.argsort(x, axis=1) * k[0, 0], ROWS),
}


@pytest.mark.parametrize("case", INDEXED)
def test_positions_at_run_time(case):
    fn, where = INDEXED[case]
    assert_same(fn, X, where)


def test_many_constant_positions_are_gathered():
    where = RNG.integers(0, 50, 200)
    program = assert_same(lambda x: x[where], array(50, 2))
    assert program.graph.operator_counts["gather"] == 1


@pytest.mark.parametrize("fn", [jnp.arcsin, jnp.arccos, jnp.arctan, jnp.arcsinh], ids=lambda f: f.__name__)
def test_inverse_functions(fn):
    assert_same(fn, np.linspace(-1, 1, 9, dtype=np.float32))


def test_shifts_of_signed_integers():
    x, by = np.array([-8, 7, 2**31 - 1], np.int32), np.array([1, 2, 31], np.int32)
    assert_same(lambda x, by: (x << by, x >> by, lax.shift_right_logical(x, by), x ^ by), x, by)
