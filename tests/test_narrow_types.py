"""Products of bytes and of bfloat16 from JAX to machine code: exact, or within float32's rounding, in every layout."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import nestegg
from nestegg.costmodel.roofline import Roofline
from nestegg.ir.target import host

RNG = np.random.default_rng(0)
VNNI = any(i.name == "vpdpbusd_512" for i in host().intrinsics)


def product(x, w, dtype):
    return jax.lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=dtype)


def integers(dtype, *shape):
    info = np.iinfo(dtype)
    values = RNG.integers(info.min, info.max, shape, dtype, endpoint=True)
    values[: max(1, shape[0] // 2)] = RNG.choice([info.min, info.max])
    return values


@pytest.mark.parametrize("left", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(8, 64, 96), (5, 7, 33), (1, 30, 251), (64, 4, 1)],
    ids=["panels", "odd", "vector", "column"],
)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "argument"])
def test_products_of_bytes_are_exact(left, m, k, n, constant):
    x, w = integers(left, m, k), integers("int8", k, n)
    want = x.astype(np.int32) @ w.astype(np.int32)
    if constant:
        compiled = nestegg.optimize(lambda x: product(x, jnp.asarray(w), jnp.int32), x)
        np.testing.assert_array_equal(compiled(x), want)
    else:
        compiled = nestegg.optimize(lambda x, w: product(x, w, jnp.int32), x, w)
        np.testing.assert_array_equal(compiled(x, w), want)


@pytest.mark.skipif(not VNNI, reason="this machine has no AVX-512 VNNI")
@pytest.mark.parametrize("left", ["uint8", "int8"])
@pytest.mark.parametrize("k", [256, 255])
def test_vpdpbusd_is_chosen(left, k):
    x, w = integers(left, 64, k), integers("int8", k, 128)
    compiled = nestegg.optimize(lambda x: product(x, jnp.asarray(w), jnp.int32), x)
    assert "vpdpbusd_512" in str(compiled.program)
    np.testing.assert_array_equal(compiled(x), x.astype(np.int32) @ w.astype(np.int32))


def test_an_epilogue_stays_in_registers():
    x, w = integers("uint8", 32, 64), integers("int8", 64, 48)
    scale = RNG.uniform(0.001, 0.01, 48).astype(np.float32)
    compiled = nestegg.optimize(lambda x: jax.nn.relu(product(x, jnp.asarray(w), jnp.int32) * scale), x)
    assert len(compiled.program.calls) == 1
    want = np.maximum((x.astype(np.int32) @ w.astype(np.int32)).astype(np.float32) * scale, 0)
    np.testing.assert_allclose(compiled(x), want, rtol=1e-6)


@pytest.mark.parametrize("result", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "k", "n"), [(8, 64, 96), (5, 7, 33)], ids=["panels", "odd"])
def test_products_of_bfloat16(m, k, n, result):
    x, w = (RNG.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((m, k), (k, n)))
    compiled = nestegg.optimize(lambda x: product(x, jnp.asarray(w), result), x)
    got, wide = np.asarray(compiled(x)), (x.astype(np.float64), w.astype(np.float64))
    assert got.dtype == np.dtype(result) and compiled.verify().ok
    bound = (k * 2.0**-24 + (2.0**-8 if result == "bfloat16" else 0)) * (np.abs(wide[0]) @ np.abs(wide[1]))
    assert (np.abs(got.astype(np.float64) - wide[0] @ wide[1]) <= bound).all()


@pytest.mark.skipif(not any("bf16" in i.name for i in host().intrinsics), reason="this machine has no AVX-512 BF16")
def test_products_of_bfloat16_of_odd_depth_apply_the_intrinsic():
    """The padding of an operand is not merged with its conversion, which the products take in."""
    x, w = (RNG.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((509, 251), (251, 127)))
    compiled = nestegg.optimize(lambda x: product(x, jnp.asarray(w), "float32"), x, threads=1)
    assert "bf16ps" in str(compiled.program)


def test_elementwise_bfloat16_is_float32_s_rounded_once():
    x = RNG.standard_normal((7, 33)).astype(ml_dtypes.bfloat16)
    got = np.asarray(nestegg.optimize(lambda x: jnp.exp(x), x)(x))
    want = np.exp(x.astype(np.float32)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("shape", [(64, 64, 64), (37, 52, 251), (1, 128, 96)])
def test_the_bound_of_a_product_of_bytes_is_below_its_schedule(shape):
    m, k, n = shape
    x, w = integers("uint8", m, k), integers("int8", k, n)
    compiled = nestegg.optimize(lambda x: product(x, jnp.asarray(w), jnp.int32), x)
    for call in compiled.program.calls:
        assert Roofline(host()).bound(call.kernel) <= call.seconds
