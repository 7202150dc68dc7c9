"""What the rules of quantization make with power-of-two scales is what the accelerator takes, bit for bit."""

import jax
import numpy as np
import pytest

import nestegg
from nestegg.compiler import import_program
from nestegg.extract.choose import canonical_call
from nestegg.extract.constants import constant_values
from nestegg.ir.reference import evaluate_expr, fold
from nestegg.rewrite.graph_egraph import build
from nestegg.rewrite.graph_rules import graph_rules
from nestegg.rewrite.quantization_rules import quantization_rules
from nestegg.vta.offer import offer

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def kernels():
    """The integer convolutions with bias, shift and clip in the e-graph of a float network: the kernel's expression,
    and the arrays of its constants."""
    w = [RNG.standard_normal((16, 16, 3, 3)).astype(np.float32) / 12 for _ in range(2)]
    bias = RNG.standard_normal((16, 1, 1)).astype(np.float32)

    def conv(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1)))

    x = RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)
    program = import_program(lambda x: conv(jax.nn.relu(conv(x, w[0]) + bias), w[1]), x)
    ranges = nestegg.calibrate(program, data=[x])
    egraph = build(program.graph, [*quantization_rules("power-of-two"), *graph_rules(16)], ranges=ranges)
    found = {}
    for c in egraph.classes:
        for n in c.calls if c.type.dtype == "i8" and not c.const else ():
            expr, args = canonical_call(n, {})
            if "sum(" in str(expr) and "f32" not in str(expr):
                known = [k for k, a in enumerate(args) if egraph.classes[a].const]
                values = constant_values(egraph, [args[k] for k in known], fold)
                found.setdefault(str(expr), (expr, {k: values[args[k]] for k in known}))
    return list(found.values())


def test_the_accelerator_takes_them(kernels):
    """All but those that write a border for the next kernel too: that is of use to the CPU only."""
    reasons = {offer(expr, constants).reason for expr, constants in kernels}
    assert reasons == {"", "writes a border around its results"}


def test_bit_for_bit(kernels):
    takes = [(e, c, o) for e, c in kernels if not (o := offer(e, c)).reason and len(e.inputs) == 3]
    expr, constants, offered = takes[0]
    x = RNG.integers(-127, 128, expr.inputs[0].shape).astype(np.int8)
    assert offered.kernel is not None
    arrays = [x if k == 0 else constants[k] for k in range(len(expr.inputs))]
    assert np.array_equal(offered.kernel(x), evaluate_expr(expr, arrays))
