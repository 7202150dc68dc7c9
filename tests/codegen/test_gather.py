"""Reads at computed positions in machine code: alone, fused with what computes positions and with what follows."""

import numpy as np
import pytest

import nestegg
from nestegg.ir.graph import GraphBuilder
from nestegg.ir.imported import ImportedProgram
from nestegg.ir.types import TensorType

RNG = np.random.default_rng(11)


def compiled(build, *types):
    b = GraphBuilder()
    graph = b.finish([build(*(b.input(t) for t in types))])
    return nestegg.optimize(ImportedProgram(graph, tuple(f"x{k}" for k in range(len(types))), ("y",)))


@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("dtype", ["i32", "i64", "u8"])
def test_rows_of_a_table(width, dtype):
    run = compiled(
        lambda x, k: x.builder.op("gather", x, k, axes=(0,), aligned=()),
        TensorType((50, width)),
        TensorType((33, 1), dtype),
    )
    x = RNG.standard_normal((50, width)).astype(np.float32)
    k = RNG.integers(0, 80, (33, 1)).astype({"i32": np.int32, "i64": np.int64, "u8": np.uint8}[dtype])
    np.testing.assert_array_equal(run(x, k), x[np.minimum(k[:, 0], 49)])


def test_positions_out_of_range_are_moved_to_the_ends():
    run = compiled(
        lambda x, k: x.builder.op("gather", x, k, axes=(0,), aligned=()), TensorType((4,)), TensorType((3, 1), "i64")
    )
    x = np.arange(4, dtype=np.float32)
    assert run(x, np.array([[-9], [2], [2**62]])).tolist() == [0.0, 2.0, 3.0]


def test_a_gather_fuses_with_its_positions_and_its_users_but_not_with_its_table():
    def build(x, k, y):
        table = x.builder.op("exp", x)
        rows = x.builder.op("gather", table, x.builder.op("add", k, k), axes=(0,), aligned=())
        return x.builder.op("reduce", x.builder.op("mul", x.builder.op("tanh", rows), y), kind="sum", axes=(1,))

    run = compiled(build, TensorType((20, 48)), TensorType((16, 1), "i64"), TensorType((16, 48)))
    assert len(run.program.calls) <= 3
    x, y = RNG.standard_normal((20, 48)).astype(np.float32), RNG.standard_normal((16, 48)).astype(np.float32)
    k = RNG.integers(0, 10, (16, 1))
    np.testing.assert_allclose(run(x, k, y), (np.tanh(np.exp(x)[2 * k[:, 0]]) * y).sum(1), rtol=1e-4, atol=1e-4)


def test_a_gather_under_a_bound_reads_nothing_outside():
    def build(x, k):
        rows = x.builder.op("gather", x, k, axes=(0,), aligned=())
        return x.builder.op("pad", rows, low=(3, 1), high=(2, 5), interior=(0, 0), value=7.0)

    run = compiled(build, TensorType((9, 12)), TensorType((6, 1), "i32"))
    x, k = RNG.standard_normal((9, 12)).astype(np.float32), RNG.integers(0, 9, (6, 1), np.int32)
    np.testing.assert_array_equal(run(x, k), np.pad(x[k[:, 0]], ((3, 2), (1, 5)), constant_values=7))


def test_an_embedding_from_jax():
    import jax.numpy as jnp

    table = RNG.standard_normal((100, 32)).astype(np.float32)
    tokens = RNG.integers(0, 100, (4, 6), np.int32)

    def encode(tokens):
        return jnp.tanh(jnp.asarray(table)[tokens])

    assert nestegg.optimize(encode, tokens).verify(tokens).ok
