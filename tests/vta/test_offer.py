"""Offers: a price at once, a better one after the search, a program, or a reason; and what the quantization rules make
of a layer of floats is on offer."""

import jax
import numpy as np
from jax import lax

from nestegg.calibration import calibrate
from nestegg.compiler import import_program
from nestegg.ir.attrs import Attrs
from nestegg.ir.operator import operator
from nestegg.ir.reference import evaluate_expr
from nestegg.ir.types import TensorType
from nestegg.rewrite.graph_egraph import build
from nestegg.rewrite.graph_rules import graph_rules
from nestegg.rewrite.quantization_rules import quantization_rules
from nestegg.vta.config import Config
from nestegg.vta.network import RULES, offers
from nestegg.vta.offer import offer


def pooling(kind: str, channels: int = 24):
    even = {"padding": ((0, 0),) * 4, "dilation": (1,) * 4}
    attrs = Attrs(kind=kind, window=(1, 1, 2, 2), strides=(1, 1, 2, 2), **even)
    return operator("window").expr((TensorType((1, channels, 8, 8), "i8"),), attrs)


def test_a_price_and_a_program():
    found = offer(pooling("max"), effort=2)
    assert (found.reason, found.why_not) == ("", "")
    assert 0 < found.bound <= found.cycles < float("inf")
    assert found.seconds == found.cycles / 1e8
    x = np.random.default_rng(0).integers(-128, 128, (1, 24, 8, 8)).astype(np.int8)
    assert np.array_equal(found.kernel(x), evaluate_expr(found.expr, [x]))


def test_a_reason():
    found = offer(pooling("prod"))
    assert "reduces by prod" in found.reason
    assert (found.kernel, found.cycles) == (None, float("inf"))


def test_a_reason_that_the_search_finds():
    tiny = Config(log_inp_buff_size=5, log_acc_buff_size=7, log_wgt_buff_size=8)
    found = offer(pooling("max"), config=tiny)
    assert found.reason == ""
    assert found.cycles == float("inf")
    assert "no tiling" in found.why_not


def test_what_quantization_makes_of_a_layer_is_on_offer():
    rng = np.random.default_rng(0)
    w = [(rng.standard_normal(shape) / 10).astype(np.float32) for shape in ((16, 8, 3, 3), (16, 16, 3, 3))]
    bias = (rng.standard_normal(16) / 10).astype(np.float32)

    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1)] * 2)

    def network(x):
        return conv(jax.nn.relu(conv(x, w[0]) + bias[None, :, None, None]), w[1])

    x = rng.standard_normal((1, 8, 8, 8)).astype(np.float32)
    imported = import_program(network, x)
    ranges = calibrate(imported, data=[rng.standard_normal((4, 1, 8, 8, 8)).astype(np.float32)])
    rules = [*quantization_rules("power-of-two"), *graph_rules(16, (), True), RULES[-1]]
    egraph = build(imported.graph, rules, ranges=ranges)
    layer = TensorType((1, 16, 8, 8), "i8")
    found = [c.offer for c in offers(egraph) if c.offer is not None and egraph.classes[c.owner].type == layer]
    whole = [o for o in found if o.work.weights is not None]
    assert [step.name for step in whole[0].work.epilogue] == ["add", "shr", "max", "min"]
    assert whole[0].bound == 8 * 8 * (9 + 1 + 2 + 3)
