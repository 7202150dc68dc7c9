"""Networks of integers, whole on the accelerator: bit-exact on any configuration, in one stream where layouts agree,
and written out so that another VTA can run them."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nestegg.ir.jax_frontend import from_jax
from nestegg.ir.reference import evaluate
from nestegg.testing.vta_networks import clipped, conv, lenet_of
from nestegg.vta.check import check, errors
from nestegg.vta.config import DEFAULT, Config
from nestegg.vta.functional import run
from nestegg.vta.network import Network, compile_network
from nestegg.vta.program import Program
from nestegg.vta.recognise import Unsuitable

INT4 = Config(log_inp_width=2, log_wgt_width=2, log_inp_buff_size=14, log_wgt_buff_size=17)
CONFIGS = [
    DEFAULT,
    INT4,
    Config(log_wgt_width=2, log_wgt_buff_size=17),
    Config(log_batch=1),
    Config(log_block=5),
    Config(log_batch=2, log_block=3, log_inp_buff_size=16, log_wgt_buff_size=16, log_acc_buff_size=18),
    Config(log_uop_buff_size=12, log_inp_buff_size=12, log_wgt_buff_size=14, log_acc_buff_size=13),
]


def inputs(config: Config, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    half = 1 << (config.inp_bits - 1)
    return np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8)


def compiled(fn, x: np.ndarray, config: Config) -> tuple[Network, list[np.ndarray]]:
    graph = from_jax(fn, x).graph
    return compile_network(graph, config, effort=3), evaluate(graph, [x])


def assert_exact(network: Network, x: np.ndarray, expected: list[np.ndarray]) -> None:
    for program in network.programs:
        assert errors(check(program)) == []
    for found, wanted in zip(network(x), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_lenet_runs_whole_and_exactly(config):
    x = inputs(config, (max(2, config.batch), 1, 28, 28))
    network, expected = compiled(lenet_of(config.inp_bits, config.wgt_bits), x, config)
    assert_exact(network, x, expected)
    assert len(np.unique(expected[0])) > 3
    assert len(network.steps) == 7
    assert len(network.programs) == 1, "all layers in one stream: every tensor keeps its layout"
    report = network.report()
    assert report["packed_by_the_cpu"] == [f"i8[{len(x)},1,28,28]"]
    assert sum(k["cycles"] for k in report["kernels"]) >= report["cycles"] * 0.9


def residual_block(x):
    w = np.random.default_rng(1).integers(-128, 128, (2, 20, 20, 3, 3)).astype(np.int8)
    h = clipped(conv(x, w[0], 1), 9, 0, 8)
    return clipped((conv(h, w[1], 1) >> 7) + x.astype(jnp.int32) * 4, 2, 0, 8)


def test_a_residual_is_added_where_the_sums_are():
    x = inputs(DEFAULT, (1, 20, 8, 8))
    network, expected = compiled(residual_block, x, DEFAULT)
    assert_exact(network, x, expected)
    assert len(network.steps) == 2
    assert [len(s.kernel.work.addends) for s in network.steps] == [0, 1]


def test_operators_of_modern_networks_in_one_stream():
    """A strided convolution, two branches that meet, a depthwise convolution, a global average, a product."""
    rng = np.random.default_rng(0)
    shapes = ((16, 3, 3, 3), (32, 16, 3, 3), (32, 16, 1, 1), (32, 1, 3, 3), (10, 32))
    w = [rng.integers(-127, 128, shape).astype(np.int8) for shape in shapes]

    def rounded(y, shift, low=-127):
        return jnp.clip((y + (1 << (shift - 1))) >> shift, low, 127).astype(jnp.int8)

    def depthwise(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1)] * 2, preferred_element_type=jnp.int32, feature_group_count=len(kernel)
        )

    def network(x):
        h = rounded(conv(x, w[0], 1), 8, 0)
        a, b = rounded(conv(h, w[1], 1, 2), 9), rounded(conv(h, w[2], 0, 2), 8)
        h = rounded(a.astype(jnp.int32) * 2 + b.astype(jnp.int32), 1, 0)
        h = rounded(jnp.sum(rounded(depthwise(h, w[3]), 7, 0).astype(jnp.int32), (2, 3)), 4)
        return rounded(lax.dot_general(h, w[4], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32), 7)

    x = inputs(DEFAULT, (1, 3, 12, 12))
    made, expected = compiled(network, x, DEFAULT)
    assert_exact(made, x, expected)
    assert len(made.programs) == 1
    assert len(made.steps) == 7


def test_where_readers_disagree_the_cpu_packs():
    w = np.random.default_rng(1).integers(-128, 128, (8, 33)).astype(np.int8)

    def network(x):
        h = clipped(x.astype(jnp.int32) * 2, 1, 0, 8)
        y = lax.dot_general(h.T, w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
        return clipped(y, 7, -128, 8), h

    x = inputs(DEFAULT, (8, 12))
    made, expected = compiled(network, x, DEFAULT)
    assert_exact(made, x, expected)


def test_attention_like_products_of_activations():
    def network(q, k):
        scores = lax.dot_general(q, k, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        return clipped(scores, 8, -128, 8)

    q, k = inputs(DEFAULT, (12, 32)), inputs(DEFAULT, (20, 32), 1)
    graph = from_jax(network, q, k).graph
    made = compile_network(graph, effort=3)
    assert np.array_equal(made(q, k)[0], evaluate(graph, [q, k])[0])


def test_a_network_that_cannot_run_says_why():
    x = np.ones((1, 8), np.float32)
    with pytest.raises(Unsuitable, match=r"nothing on 1x16.* makes the tensor .*computes in f32"):
        compile_network(from_jax(jax.nn.relu, x).graph)


def test_a_dump_is_run_again(tmp_path):
    x = inputs(DEFAULT, (1, 1, 28, 28))
    network, expected = compiled(lenet_of(8, 8), x, DEFAULT)
    results = network.dump(tmp_path, x)
    assert np.array_equal(results[0], expected[0])
    program = Program.load(tmp_path)
    assert errors(check(program)) == []
    dram = run(program).dram
    for o in program.outputs:
        assert hashlib.sha256(dram[o.address : o.address + o.size].tobytes()).hexdigest() == o.sha256
    described = json.loads((tmp_path / "layouts.json").read_text())
    last = next(t for t in described["tensors"] if t["role"] == "output")
    assert described["outputs"][0]["values"] == expected[0].tolist()
    lanes = dram[last["address"] : last["address"] + 10].view(np.int8)
    assert np.array_equal(lanes, expected[0][0])
