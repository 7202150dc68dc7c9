"""JAX functions become graphs that compute the same: parameter trees, gradients, nested calls, primitives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nestegg.ir.errors import CallError, ImportFailure, UnsupportedError
from nestegg.ir.jax_frontend import from_jax
from nestegg.ir.reference import evaluate

RNG = np.random.default_rng(7)


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(fn, *args):
    """The imported graph evaluated by its reference, as the structure `fn` returns."""
    program = from_jax(fn, *args)
    return program.unflatten(evaluate(program.graph, program.flatten(*args)))


def assert_same(fn, *args, tolerance=1e-5):
    with jax.default_matmul_precision("highest"):
        want = jax.jit(fn)(*args)
    got = run(fn, *args)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


def test_a_function_of_arrays():
    assert_same(lambda x, w: jnp.tanh(x @ w), array(2, 3), array(3, 4))


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def network(variables, x):
    params = variables["params"]
    hidden = jax.nn.relu(dense(params["dense_0"], x))
    return {"logits": dense(params["dense_1"], hidden), "hidden": hidden}


def parameters():
    layers = {"dense_0": (3, 5), "dense_1": (5, 2)}
    return {"params": {k: {"kernel": array(*s), "bias": array(s[1])} for k, s in layers.items()}}


def test_a_flax_style_tree_of_parameters_keeps_its_structure():
    variables, x = parameters(), array(4, 3)
    program = from_jax(network, variables, x)
    assert "x0.params.dense_0.kernel" in program.input_names
    assert program.output_names == ("yhidden", "ylogits")
    assert_same(network, variables, x)


def test_arguments_of_another_structure_are_refused():
    program = from_jax(network, parameters(), array(4, 3))
    with pytest.raises(CallError, match="it was optimized for"):
        program.flatten({"params": {}}, array(4, 3))


def test_a_gradient_step_is_a_function_like_any_other():
    def loss(variables, x, y):
        logits = network(variables, x)["logits"]
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(logits), axis=-1))

    def step(variables, x, y):
        value, gradient = jax.value_and_grad(loss)(variables, x, y)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, variables, gradient)

    assert_same(step, parameters(), array(4, 3), np.eye(2, dtype=np.float32)[[0, 1, 1, 0]])


def test_nested_jit_custom_derivatives_and_checkpoint_are_inlined():
    @jax.jit
    def inner(x):
        return jax.nn.silu(x) + jax.checkpoint(jnp.sin)(x)

    @jax.custom_vjp
    def clipped(x):
        return jnp.clip(x, -1, 1)

    clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (g,))
    fn = jax.jit(lambda x: inner(inner(x)) * jax.nn.relu6(clipped(x)))
    assert_same(fn, array(3, 4))
    names = from_jax(fn, array(3, 4)).graph.operator_counts
    assert {"logistic", "sin", "max"} <= set(names)


def test_closed_over_arrays_are_constants_and_biases_broadcasts():
    w, b = array(3, 4), array(4)
    graph = from_jax(lambda x: jax.nn.relu(x @ w + b), array(1, 3)).graph
    assert [n.op for n in graph.nodes][2:] == [
        "dot",
        "constant",
        "broadcast",
        "add",
        "constant",
        "broadcast",
        "max",
    ]
    assert len(graph.inputs) == 1


def test_vmap_and_double_precision_inputs():
    assert_same(jax.vmap(lambda x, y: x @ y, in_axes=(0, None)), array(5, 2, 3), array(3, 4))


LAYOUTS = [
    ("NCHW", "OIHW", "NCHW"),
    ("NHWC", "HWIO", "NHWC"),
    ("HWNC", "HWIO", "NHWC"),
    ("NHWC", "OIHW", "NCHW"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: "-".join(x))
def test_convolutions_of_any_layout(layout):
    x = array(*({"N": 2, "C": 4, "H": 7, "W": 6}[d] for d in layout[0]))
    w = array(*({"O": 6, "I": 2, "H": 3, "W": 2}[d] for d in layout[1]))

    def fn(x, w):
        return lax.conv_general_dilated(
            x, w, (2, 1), ((1, 0), (2, 1)), (1, 2), (2, 1), layout, feature_group_count=2
        )

    assert_same(fn, x, w, tolerance=1e-4)


def test_the_gradient_of_a_convolution():
    def fn(x, w):
        return lax.conv(x, w, (2, 2), "SAME").sum()

    assert_same(jax.grad(fn, argnums=(0, 1)), array(2, 3, 6, 6), array(4, 3, 3, 3), tolerance=1e-4)


UNARY = {
    **{f.__name__: f for f in (jnp.abs, jnp.sign, jnp.floor, jnp.ceil, jnp.round, jnp.exp, jnp.expm1)},
    **{f.__name__: f for f in (jnp.sin, jnp.cos, jnp.tan, jnp.sinh, jnp.cosh, jnp.exp2, jnp.square)},
    **{f.__name__: f for f in (jax.nn.gelu, jax.nn.elu, jax.nn.softplus, jax.nn.softmax, jax.nn.swish)},
    **{f.__name__: f for f in (jnp.isfinite, jnp.isnan, lax.stop_gradient, lax.erf, lax.erfc)},
    "sqrt": lambda x: jnp.sqrt(abs(x)),
    "log": lambda x: jnp.log(abs(x)) + jnp.log1p(abs(x)) + lax.rsqrt(abs(x)),
    "powers": lambda x: x**3 + x**-2 + abs(x) ** 0.5 + abs(x) ** 1.7,
    "clip": lambda x: jnp.clip(x, -0.5, 0.5),
    "where": lambda x: jnp.where(x > 0, x, -x * 2),
    "logic": lambda x: ~(x > 0) & (x < 1) | (x == 0) ^ (x >= 2),
    "casts": lambda x: (x * 10).astype(jnp.int32) // 3 + (x * 10).astype(jnp.int32) % 4,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "select": lambda x: lax.select_n((x * 0.1).astype(jnp.int32) + 1, x, 2 * x, 3 * x),
}
MOVEMENT = {
    "reshape": lambda x: x.reshape(4, 3, 5)[..., None].squeeze(-1),
    "transpose": lambda x: x.transpose(2, 0, 1),
    "reverse": lambda x: x[:, ::-1],
    "slices": lambda x: x[1:, ::2, :3],
    "one index": lambda x: x[1] + x[-1],
    "indices": lambda x: x[:, jnp.array([0, 2, 2]), :],
    "pad": lambda x: jnp.pad(x, ((1, 0), (0, 2), (1, 1)), constant_values=2.0),
    "edge pad": lambda x: jnp.pad(x, ((1, 0), (0, 2), (1, 1)), "edge"),
    "interior pad": lambda x: lax.pad(x, 1.0, ((0, 0, 1), (-1, 0, 0), (0, 1, 2))),
    "concatenate": lambda x: jnp.concatenate([x, 2 * x, x[:, :1]], axis=1),
    "stack": lambda x: jnp.stack([x, x + 1], axis=-1),
    "split": lambda x: jnp.split(x, [1, 3], axis=2),
    "tile": lambda x: jnp.tile(x, (1, 2, 1)),
    "roll": lambda x: jnp.roll(x, 2, axis=1),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (0, 1, 9), (2, 2, 2)),
    "update": lambda x: x.at[:, 1:3].set(7.0),
    "scatter": lambda x: x.at[:, jnp.array([0, 2, 2])].add(x[:, :3]).at[1].set(0.5),
    "gradient of indices": jax.grad(lambda x: (x[:, jnp.array([0, 2, 2])] ** 2).sum()),
    "iota": lambda x: x + jnp.arange(5) * jnp.tri(4, 5),
    "mask": lambda x: jnp.where(jnp.tril(jnp.ones((4, 5), bool)), x, -jnp.inf).max(-1),
}
REDUCTIONS = {
    "sum": lambda x: x.sum((0, 2)),
    "mean and variance": lambda x: (x.mean(1), x.var(-1, keepdims=True)),
    "extremes": lambda x: (x.max(), x.min(0), x.prod(2)),
    "any and all": lambda x: ((x > 0).any(1), (x > -9).all()),
    "argmax": lambda x: (jnp.argmax(x, 1), jnp.argmin(x, -1)),
    "logsumexp": lambda x: jax.nn.logsumexp(x, axis=1),
    "cumulative": lambda x: (jnp.cumsum(x, 1), lax.cummax(x, 2, reverse=True)),
    "einsum": lambda x: jnp.einsum("bij,bkj->bik", x, x),
    "pool": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 1), "SAME"),
    "spread pool": lambda x: lax.reduce_window(
        x, 0.0, lax.add, (1, 2, 2), (1, 1, 2), "VALID", base_dilation=(1, 2, 1), window_dilation=(1, 1, 2)
    ),
    "identity pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 1), (1, 1, 1), "VALID"),
    "attention": lambda x: jax.nn.softmax(x @ x.swapaxes(1, 2) / 2.0) @ x,
}


@pytest.mark.parametrize("fn", [pytest.param(f, id=k) for k, f in (UNARY | MOVEMENT | REDUCTIONS).items()])
def test_primitives(fn):
    x = array(2 if fn in REDUCTIONS.values() else 3, 4, 5)
    assert_same(fn, x, tolerance=1e-4)


def test_integer_products_accumulate_wide():
    x, y = RNG.integers(-9, 9, (2, 3), np.int8), RNG.integers(-9, 9, (3, 2), np.int8)
    assert_same(lambda x, y: lax.dot(x, y, preferred_element_type=jnp.int32), x, y)


def test_an_unsupported_primitive_is_named_with_its_place():
    with pytest.raises(UnsupportedError) as e:
        from_jax(lambda x: lax.cumlogsumexp(x) + 1, array(5))
    assert "<lambda> (test_jax_frontend.py:" in str(e.value)
    assert "cumlogsumexp(float32[5]) is not supported" in str(e.value)
    assert "\n" not in str(e.value)


def test_what_jax_cannot_trace_is_refused():
    def branches(x):
        return x if x.sum() > 0 else -x

    with pytest.raises(ImportFailure, match="branches: JAX could not trace it"):
        from_jax(branches, array(2))


def test_weights_that_are_not_finite_are_refused():
    w = np.array([1, np.nan, 2], np.float32)
    with pytest.raises(ImportFailure, match=r"constant of shape \(3,\) holds values that are not finite"):
        from_jax(lambda x: x * w, array(3))


def test_an_unsupported_dtype_is_refused():
    with pytest.raises(UnsupportedError, match="argument x0: dtype complex64 is not supported"):
        from_jax(lambda x: x, np.zeros(2, np.complex64))
