"""Residual networks on a CPU with a VTA: the integers against NumPy's, by a reference that knows nothing of either."""

from functools import cached_property

import numpy as np
import pytest

import nestegg
from nestegg.compiler import import_program
from nestegg.ir import zoo
from nestegg.ir.zoo_layers import Dense, Flatten, GlobalAvgPool, MaxPool, init, run_jax
from nestegg.ir.zoo_networks import _basic_block, _conv_bn_relu
from nestegg.vta.partition import Accelerator, Link
from nestegg.vta.timing import Board
from nestegg.vta.vectors import convolution

#: A clock and a link with which the accelerator computes all that it can.
FAST = {"board": Board(mhz=1e6), "link": Link(bandwidth=1e15, latency=0.0)}


def power_of_two(magnitude):
    return 2.0 ** np.ceil(np.log2(magnitude / 127))


class Reference:
    """The integers of a residual network, from its imported graph and the calibrated ranges: symmetric bytes with
    power-of-two scales, batch norms in the weights, biases and residuals in the sums, halves rounded upwards."""

    def __init__(self, graph, ranges, x):
        self.graph, self.ranges, self.x = graph, ranges.tensors, x
        self.nodes, self.known = graph.nodes, {}

    def constant(self, k):
        """The array that node k repeats, None if it is no constant."""
        node = self.nodes[k]
        return self.constant(node.inputs[0]) if node.op == "broadcast" else self.graph.constants.get(k)

    def scale(self, k):
        return power_of_two(self.ranges[k].magnitude)

    def bytes_of(self, k, scale=None):
        """Node k as bytes with a scale, its own if none is given."""
        key = k, scale or self.scale(k)
        if key not in self.known:
            self.known[key] = self._bytes_of(*key)
        return self.known[key]

    def _bytes_of(self, k, scale):
        node = self.nodes[k]
        if node.op == "input":
            return np.clip(np.floor(self.x[0].astype(np.float64) / scale + 0.5), -127, 127).astype(np.int64)
        if node.op == "window":  # its operand's bytes have its own scale
            pad = node.attrs.padding[2][0]
            x = np.pad(self.bytes_of(node.inputs[0], scale), ((0, 0), (pad, pad), (pad, pad)), constant_values=-128)
            seen = np.lib.stride_tricks.sliding_window_view(x, node.attrs.window[2:], (1, 2))
            return seen[:, :: node.attrs.strides[2], :: node.attrs.strides[3]].max((3, 4))
        sums, step = self.sums(node.inputs[0] if node.op == "max" else k)
        shift = int(np.log2(scale / step))
        return np.clip(sums + (1 << shift >> 1) >> shift, 0 if node.op == "max" else -127, 127)

    def sums(self, k):
        """Node k as sums of products, and their step."""
        a, b = self.nodes[k].inputs
        bias = self.constant(b)
        if bias is not None:
            return self.layer(self.nodes[a], bias)
        main, other = (a, b) if self.is_residual_of(b, a) else (b, a)
        sums, step = self.sums(main)
        return sums + self.bytes_of(other) * int(self.scale(other) / step), step

    def is_residual_of(self, k, main):
        """Whether node k is an activation, or a 1x1 convolution beside a larger one."""
        return self.nodes[k].op != "add" or self.taps(k) < self.taps(main)

    def taps(self, k):
        scaled = self.nodes[self.nodes[k].inputs[0]]
        conv = self.nodes[scaled.inputs[0]]
        return self.nodes[conv.inputs[1]].type.shape[2]

    def layer(self, scaled, bias):
        """A convolution whose results are multiplied by a factor for each channel, with a bias."""
        conv = self.nodes[scaled.inputs[0]]
        w = self.constant(conv.inputs[1]) * self.constant(scaled.inputs[1])[:, None, None, None]
        w_step = power_of_two(np.abs(w).max())
        integers = np.clip(np.round(w / w_step), -127, 127).astype(np.int64)
        step = self.scale(conv.inputs[0]) * w_step
        x = self.bytes_of(conv.inputs[0])
        total = convolution(x, integers, conv.attrs.strides[0], conv.attrs.padding[0][0])
        return total + np.round(bias / step).astype(np.int64)[:, None, None], step

    @cached_property
    def last(self):
        """The bytes of the last image, which is averaged."""
        return self.bytes_of(next(n.inputs[0] for n in self.nodes if n.op == "reduce"))


def partitioned(imported, budget, **options):
    rng = np.random.default_rng(1)
    shape = imported.graph.input_types[0].shape
    samples = rng.standard_normal((5, *shape)).astype(np.float32)
    ranges = nestegg.calibrate(imported, data=[samples[:4]])
    program = nestegg.optimize(imported, target="vta", accuracy_budget=budget, ranges=ranges, **options)
    return program, Reference(imported.graph, ranges, samples[4]), samples[4]


def check(program, reference, x, budget, kernels):
    """Every tensor of the accelerator is the reference's, the error is within the budget, and the report says why."""
    found = program.verify(x)
    assert found.ok and found.max_rel_err <= budget and found.vta_exact == found.vta_kernels == kernels
    made = program.integers(x)
    assert np.array_equal(made[-1][0], reference.last)
    expected = [a.astype(np.int8) for a in reference.known.values()]
    assert all(any(np.array_equal(m[0], e) for e in expected) for m in made)
    report = program.report()
    assert len(report["streams"]) == 1 and report["streams"][0]["kernels"] == kernels
    for k in report["kernels"]:
        assert ("on VTA" if k["side"] == "vta" else "on the CPU") in k["reason"]


def test_two_residual_blocks():
    layers = (
        *(*_conv_bn_relu(16, 3, 1, 1), MaxPool(3, 2, 1)),
        *(*_basic_block(16, 16, 1), *_basic_block(16, 32, 2)),
        *(GlobalAvgPool(), Flatten(), Dense(10)),
    )
    shape = (1, 3, 16, 16)
    weights = init(layers, np.random.default_rng(0), shape)
    imported = import_program(lambda x: run_jax(layers, weights, x), np.zeros(shape, np.float32))
    accelerator = Accelerator(effort=2, **FAST)
    program, reference, x = partitioned(imported, 0.1, accelerator=accelerator, threads=1)
    check(program, reference, x, 0.1, kernels=7)  # six convolutions with what follows them, and the pooling


@pytest.mark.slow
def test_resnet18():
    imported = import_program("zoo:resnet18")
    program, reference, x = partitioned(imported, 0.1, accelerator=Accelerator(host=100))
    assert zoo.find("resnet18").shape == imported.graph.input_types[0].shape
    check(program, reference, x, 0.1, kernels=21)
