"""Layers compiled by extraction: any shape computes what int64 NumPy does, and ResNet-18's are at least as fast as the
published tilings."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nestegg.ir.expr import TensorExpr, cast, reduce
from nestegg.ir.index import Axis
from nestegg.ir.loops import lower
from nestegg.ir.types import TensorType
from nestegg.vta.check import check, errors
from nestegg.vta.config import DEFAULT, Config
from nestegg.vta.conv import Tiling
from nestegg.vta.errors import ProgramError
from nestegg.vta.gemm import fit, gemm, sums
from nestegg.vta.layer import Layer
from nestegg.vta.lower import CompiledLayer, conv2d, dense
from nestegg.vta.schedules import Space, build
from nestegg.vta.vectors import convolution as reference

DATA = Path(__file__).parent / "data"
LAYERS = json.loads(gzip.decompress((DATA / "resnet18_conv_programs.json.gz").read_bytes()))[::3]
INT4 = Config(log_inp_width=2, log_wgt_width=2, log_inp_buff_size=14, log_wgt_buff_size=17)
SMALL = Config(log_uop_buff_size=12, log_inp_buff_size=12, log_wgt_buff_size=14, log_acc_buff_size=13)
CONFIGS = [DEFAULT, INT4, SMALL, Config(log_batch=1), Config(log_block=5)]


def integers(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape)


def requantized(sums: np.ndarray, shift: int, config: Config) -> np.ndarray:
    top = (1 << (config.out_bits - 1)) - 1
    return np.clip(sums >> shift, -top - 1, top)


def assert_sound(compiled: CompiledLayer) -> None:
    assert errors(check(compiled.program)) == []
    report = compiled.report()
    assert report["schedules"] >= report["timed"] >= 1
    assert report["cycles"] >= compiled.layer.macs
    assert 0 < report["utilisation"] <= 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_convolution(data):
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    config, rng, kernel = data.draw(st.sampled_from(CONFIGS)), np.random.default_rng(pick(0, 99)), pick(1, 4)
    channels, filters, size = pick(1, 40), pick(1, 40), (pick(1, 9), pick(1, 9))
    stride, pad, shift = pick(1, 3), pick(0, kernel - 1), pick(0, 17)
    assume(min(size) + 2 * pad >= kernel)
    images = pick(1, config.batch)
    w = integers(rng, config.wgt_bits, (filters, channels, kernel, kernel))
    x = integers(rng, config.inp_bits, (images, channels, *size))
    bias = rng.integers(-9999, 9999, filters) if pick(0, 1) else None
    compiled = conv2d(w, size, stride=stride, pad=pad, bias=bias, shift=shift, config=config, effort=4)
    assert_sound(compiled)
    sums = np.stack([reference(image, w, stride, pad) for image in x])
    sums += 0 if bias is None else bias[:, None, None]
    assert np.array_equal(compiled(x), requantized(sums, shift, config))


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40), channels=st.integers(1, 70), filters=st.integers(1, 70),
    config=st.sampled_from(CONFIGS), biased=st.booleans(),
)  # fmt: skip
def test_any_product(rows, channels, filters, config, biased):
    rng = np.random.default_rng(rows)
    w, x = integers(rng, config.wgt_bits, (filters, channels)), integers(rng, config.inp_bits, (rows, channels))
    bias = rng.integers(-9999, 9999, filters) if biased else np.zeros(filters, int)
    compiled = dense(w, rows, bias=bias if biased else None, shift=5, config=config, effort=4)
    assert_sound(compiled)
    assert np.array_equal(compiled(x), requantized(x @ w.T + bias, 5, config))


def test_resnet18_is_at_least_as_fast_as_published():
    rng, gains = np.random.default_rng(0), []
    for v in LAYERS:
        channels, filters = v["ci_blocks"] * 16, v["co_blocks"] * 16
        w, x = integers(rng, 8, (filters, channels, v["k"], v["k"])), integers(rng, 8, (1, channels, v["h"], v["h"]))
        shape = {"stride": v["stride"], "pad": v["pad"]}
        compiled = conv2d(w, (v["h"], v["h"]), **shape, shift=8, clip=(-127, 127), effort=12)
        assert errors(check(compiled.program)) == []
        expected = np.clip(reference(x[0], w, **shape) >> 8, -127, 127)
        assert np.array_equal(compiled(x)[0], expected), v["layer"]
        recorded = v["cycles"]["16,1"]
        assert compiled.choice.cycles <= recorded, v["layer"]
        assert compiled.choice.tiling.threads == 2
        gains.append(recorded / compiled.choice.cycles)
    assert math.prod(gains) ** (1 / len(gains)) >= 1.05


def test_gemm_covers_the_blocks_of_a_layer():
    found = fit(lower(sums(Layer.square(4, 4, 56, 56, 3, pad=1), DEFAULT)), DEFAULT)
    assert found is not None
    assert (len(found.covered), found.trips) == (2, 4 * 4 * 56 * 56 * 9)
    batched = Config(log_batch=1)
    assert len(fit(lower(sums(Layer.square(4, 4, 56, 56, 3, pad=1), batched)), batched).covered) == 3
    assert "(i32(x0[0, r0]) * i32(x1[i1, r0]))" in str(gemm(DEFAULT))


def test_other_layouts_and_types_are_no_gemm():
    def product(w_index, dtype="i8"):
        r = Axis("r", 32)
        types = [TensorType((8, 32), dtype), TensorType((32, 32), "i8")]
        return TensorExpr.build(
            types, (8, 32),
            lambda x, w: lambda i, o: reduce("sum", [r], cast(x[i, r], "i32") * cast(w[w_index(o, r)], "i32")),
        )  # fmt: skip

    rows, columns = (lambda o, r: (o, r)), (lambda o, r: (r, o))
    for expr in (product(rows), product(columns), product(rows, "i16")):
        assert fit(lower(expr), DEFAULT) is None


def test_what_the_egraph_holds():
    egraph = build(Space(Layer.square(2, 2, 4, 4, 3, pad=1), DEFAULT))
    assert egraph.report.stopped_by == "saturated"
    tiles = [n.numbers for nodes in egraph.nodes.values() for n in nodes if n.op == "Tile"]
    assert (1, 1, 0, 2, 4, 4, 2) in tiles, "the whole layer at once"
    assert (2, 2, 0, 1, 4, 4, 1) in tiles, "two threads along channels, in steps of one input block"
    crowded = build(Space(Layer.square(2, 2, 16, 16, 3, pad=1), SMALL))
    for slots, inputs, _, o, y, x, c in (n.numbers for ns in crowded.nodes.values() for n in ns if n.op == "Tile"):
        assert slots * o * y * x <= 128
        assert inputs * c * (y + 2) * (x + 2) <= 256
        assert slots * o * c * 9 <= 64


def test_what_is_refused():
    w = np.zeros((16, 16, 3, 3), np.int8)
    for arguments, message in (
        ({"weights": w + 0.5}, "weights: float64"),
        ({"weights": w.astype(np.int64) + 128}, "do not fit 8 bits"),
        ({"weights": w[:, :, :2]}, "square kernel"),
        ({"size": (2, 2)}, "smaller than the kernel"),
        ({"shift": 32}, "shift 32"),
        ({"clip": (-200, 0)}, "clip -200"),
        ({"bias": np.zeros(3, int)}, "one number for each of 16"),
        ({"stride": 0}, "a stride is at least 1"),
    ):
        with pytest.raises(ProgramError, match=message):
            conv2d(**({"weights": w, "size": (8, 8)} | arguments))
    with pytest.raises(ProgramError, match="the kernel takes"):
        conv2d(w, (8, 8), effort=1)(np.zeros((1, 16, 8, 7), np.int8))
    tiny = Config(log_wgt_buff_size=8, log_inp_buff_size=8, log_acc_buff_size=10)
    with pytest.raises(ProgramError, match="no tiling"):
        conv2d(w, (8, 8), config=tiny)


def test_a_tiling_is_not_fixed():
    wide, deep = conv2d(np.ones((64, 16, 1, 1), int), (28, 28)), conv2d(np.ones((64, 256, 3, 3), int), (7, 7))
    assert isinstance(wide.choice.tiling, Tiling)
    assert wide.choice.tiling != deep.choice.tiling
