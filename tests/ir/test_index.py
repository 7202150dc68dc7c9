"""Index expressions simplify; whatever they simplify to evaluates as the integers do."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.ir.index import Axis, Index

P, Q = Axis("i", 6), Axis("j", 8)


def test_a_reshape_and_its_inverse_cancel():
    flat = Index.of(P) * 8 + Q
    assert flat // 8 == Index.of(P)
    assert flat % 8 == Index.of(Q)
    assert str(flat) == "8*i + j"


def test_quotient_and_remainder_recombine():
    index = Index.of(Axis("n", 48))
    assert (index // 8) * 8 + index % 8 == index


def test_quotients_see_the_digits_of_a_flat_index():
    rows, columns = Axis("r", 14), Axis("c", 14)
    pixel = Index.of(rows) * 14 + columns
    assert pixel // 98 == Index.of(rows) // 7
    assert pixel % 98 == (Index.of(rows) % 7) * 14 + columns
    assert (pixel // 98) * 98 + pixel % 98 == pixel


def test_an_axis_of_extent_one_is_zero():
    assert Index.of(Axis("u", 1)) == Index()


@st.composite
def indices(draw, axes=(P, Q), depth=3):
    """An index built by random arithmetic, with the same arithmetic on integers."""
    if depth == 0 or draw(st.booleans()):
        axis = draw(st.sampled_from(axes))
        return Index.of(axis), lambda env: env[axis]
    x, fx = draw(indices(axes, depth - 1))
    kind = draw(st.sampled_from(("add", "scale", "shift", "quotient", "remainder")))
    if kind == "add":
        y, fy = draw(indices(axes, depth - 1))
        return x + y, lambda env: fx(env) + fy(env)
    k = draw(st.integers(1, 9))
    if kind == "scale":
        sign = draw(st.sampled_from((1, -1)))
        return x * (k * sign), lambda env: fx(env) * k * sign
    if kind == "shift":
        return x - k, lambda env: fx(env) - k
    return (x // k, lambda env: fx(env) // k) if kind == "quotient" else (x % k, lambda env: fx(env) % k)


def environments(*axes: Axis):
    for values in itertools.product(*(range(a.extent) for a in axes)):
        yield dict(zip(axes, values, strict=True))


@given(indices())
def test_simplification_keeps_the_value(pair):
    index, value = pair
    for env in environments(P, Q):
        assert index.evaluate(env) == value(env)


@given(indices())
def test_the_range_holds_every_value(pair):
    index, value = pair
    lo, hi = index.range
    assert all(lo <= value(env) <= hi for env in environments(P, Q))


@given(indices(), indices((Axis("u", 3), Axis("v", 2))))
def test_substitution_commutes_with_evaluation(outer, inner):
    index, value = outer
    fold, f = inner
    lo, hi = fold.range
    if not 0 <= lo <= hi < P.extent:  # substitution must respect the axis' range
        fold, f = fold % P.extent, lambda env, g=f: g(env) % P.extent
    out = index.substitute({P: fold})
    for env in environments(Q, Axis("u", 3), Axis("v", 2)):
        assert out.evaluate(env) == value({Q: env[Q], P: f(env)})


@pytest.mark.parametrize("d", [2, 3, 4, 12, 48])
def test_splitting_an_axis_by_any_factor_recombines(d):
    n = Index.of(Axis("n", 48))
    assert (n // d) * d + n % d == n
