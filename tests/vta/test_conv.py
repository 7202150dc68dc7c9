"""Convolutions as streams: any shape and tiling computes what int64 NumPy does; the published tilings of ResNet-18."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nestegg.vta.check import check
from nestegg.vta.config import DEFAULT, Config, Memory
from nestegg.vta.conv import DISTANCE, Axis, Tiling, fold, layer_program
from nestegg.vta.errors import ProgramError
from nestegg.vta.functional import run
from nestegg.vta.isa import AluOp
from nestegg.vta.layer import Immediate, Layer
from nestegg.vta.layout import pack
from nestegg.vta.program import Program
from nestegg.vta.timing import simulate
from nestegg.vta.vectors import blocked, convolution

DATA = Path(__file__).parent / "data"
LAYERS = json.loads(gzip.decompress((DATA / "resnet18_conv_programs.json.gz").read_bytes()))
READ_BYTES = [745472, 717824, 398848, 724992, 696320, 245248, 790528, 1280000, 217600, 2409472]
WRITTEN_BYTES = [200704, 100352, 100352, 100352, 50176, 50176, 50176, 25088, 25088, 25088]
INT4 = Config(log_inp_width=2, log_wgt_width=2, log_inp_buff_size=14, log_wgt_buff_size=17)


def build(layer: Layer, tiling: Tiling, config: Config = DEFAULT) -> tuple[Program, bytes]:
    """A program on random data, and the output it must give: shifted right by 4, not below 0, as many bits as fit."""
    rng, block = np.random.default_rng(0), config.block
    low_x, low_w = -(1 << (config.inp_bits - 1)), -(1 << (config.wgt_bits - 1))
    x = rng.integers(low_x, -low_x, (layer.inputs * block, layer.rows.size, layer.columns.size))
    w = rng.integers(low_w, -low_w, (layer.outputs * block, layer.inputs * block, layer.rows.taps, layer.rows.taps))
    y = np.maximum(convolution(x, w, layer.rows.stride, layer.rows.pad) >> 4, 0)
    shape = (layer.outputs, block, layer.inputs, block, layer.rows.taps, layer.rows.taps)
    weights = pack(w.reshape(shape).transpose(0, 2, 4, 5, 1, 3), config, Memory.WGT)
    epilogue = [Immediate(AluOp.SHR, 4), Immediate(AluOp.MAX, 0)]
    inputs = pack(blocked(x, block), config, Memory.INP)
    program = layer_program(layer, tiling, inputs, weights, epilogue, config)
    return program, pack(blocked(y, block), config, Memory.OUT)


def test_the_smallest_convolution():
    program, expected = build(Layer.square(1, 1, 4, 4, 3, pad=1), Tiling(1, 4, 4))
    out = program.outputs[0]
    assert check(program) == []
    assert run(program).dram[out.address : out.address + out.size].tobytes() == expected


@given(data=st.data())
def test_any_shape_and_tiling(data):
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel = pick(1, 4)
    layer = Layer.square(pick(1, 3), pick(1, 3), pick(1, 9), pick(1, 9), kernel, pick(1, 3), pick(0, kernel - 1))
    assume(layer.rows.outputs > 0 and layer.columns.outputs > 0)
    axis, threads = data.draw(st.sampled_from(["oc", "h"])), pick(1, 2)
    sizes = (pick(1, layer.outputs), pick(1, layer.rows.outputs), pick(1, layer.columns.outputs), pick(1, layer.inputs))
    skip = kernel == 1 and layer.rows.pad == 0 and data.draw(st.booleans())
    order = data.draw(st.permutations(Tiling.order))
    tiling = Tiling(*sizes, threads, axis, data.draw(st.booleans()), skip, (order[0], order[1], order[2]))
    program, expected = build(layer, tiling, data.draw(st.sampled_from([DEFAULT, INT4, Config(log_block=5)])))
    assert check(program) == []
    out = program.outputs[0]
    assert run(program).dram[out.address : out.address + out.size].tobytes() == expected


@pytest.mark.parametrize("number", range(10), ids=[v["layer"] for v in LAYERS[::3]])
def test_published_tilings(number):
    """Their traffic is the board's, and their time is not above the recorded one; a shared input saves traffic."""
    v = LAYERS[3 * number]
    layer = Layer.square(v["ci_blocks"], v["co_blocks"], v["h"], v["h"], v["k"], v["stride"], v["pad"])
    assert layer.macs == v["ideal"]
    epilogue = [Immediate(AluOp.SHR, 8), Immediate(AluOp.MAX, -127), Immediate(AluOp.MIN, 127)]
    empty = bytes(layer.inputs * v["h"] ** 2 * 16), bytes(layer.inputs * layer.outputs * v["k"] ** 2 * 256)

    def counted(tiling: Tiling) -> tuple[int, int, int]:
        program = layer_program(layer, tiling, *empty, epilogue)
        assert check(program) == []
        counters = run(program).counters
        assert counters.gemm_uops == v["ideal"]
        return counters.inp_bytes + counters.wgt_bytes, counters.out_bytes, simulate(program.stream).cycles

    published = Tiling(v["tco"], v["th"], v["tw"], 1, v["threads"], v["axis"])
    read, written, cycles = counted(published)
    assert (read, written) == (READ_BYTES[number], WRITTEN_BYTES[number])
    assert cycles <= v["cycles"]["16,1"]
    if v["axis"] == "oc":
        shared = counted(Tiling(v["tco"], v["th"], v["tw"], 1, v["threads"], v["axis"], share_input=True))
        assert shared[0] < read
        assert shared[2] <= v["cycles"]["16,1"]
    assert counted(Tiling(v["tco"], v["th"], v["tw"]))[2] > cycles, "one thread hides less"


@given(
    axes=st.lists(
        st.builds(Axis, *(st.integers(low, 6) for low in (1, 0, 0, 0))),
        min_size=1,
        max_size=5,
    )
)
def test_folding_keeps_every_iteration(axes):
    outer, inner, uops = fold(axes, (7, 5, 3))

    def indices(steps: list[tuple[int, tuple[int, int, int]]]) -> list[tuple[int, ...]]:
        found = [(7, 5, 3)]
        for extent, (d, s, w) in steps:
            found = [(a + i * d, b + i * s, c + i * w) for a, b, c in found for i in range(extent)]
        return sorted(found)

    expected = indices([(a.extent, (a.dst, a.src, a.wgt)) for a in axes])
    loops = [(loop.trips, (loop.dst, loop.src, loop.wgt)) for loop in (outer, inner)]
    found = sorted((d + i[0] - 7, s + i[1] - 5, w + i[2] - 3) for d, s, w in uops for i in indices(loops))
    assert found == expected


def test_micro_ops_in_a_row_differ_and_are_few():
    axes = [Axis(2, 448, 0, 9), Axis(3, 0, 58, 3), Axis(3, 0, 1, 1), Axis(8, 56, 58), Axis(56, 1, 1)]
    outer, inner, uops = fold(axes)
    assert {outer.trips, inner.trips} == {56, 3}
    assert len(uops) == 2 * 3 * 8
    destinations = [dst for dst, _, _ in uops]
    assert all(len(set(destinations[i : i + DISTANCE])) == DISTANCE for i in range(len(uops) - DISTANCE + 1))


def test_loops_that_are_one_are_merged():
    # A 1x1 convolution walks rows and columns as one: one loop, and no micro-op but one.
    outer, inner, uops = fold([Axis(4, 49, 0, 2), Axis(2, 0, 49, 1), Axis(7, 7, 7), Axis(7, 1, 1)])
    assert (outer.trips, inner.trips, len(uops)) == (49, 2, 4)


def test_what_is_on_chip_is_not_loaded_again():
    layer, size = Layer.square(1, 2, 8, 8, 1), 256
    outer, inner = (Tiling(1, 2, 8, order=("co", "h", "w")), Tiling(1, 2, 8, order=("h", "w", "co")))
    loaded = []
    for tiling in (outer, inner):
        program, expected = build(layer, tiling)
        result, out = run(program), program.outputs[0]
        assert result.dram[out.address : out.address + out.size].tobytes() == expected
        loaded.append(result.counters.wgt_bytes)
    assert loaded == [2 * size, 8 * size]


def test_rows_that_are_not_read_are_not_loaded():
    layer = Layer.square(1, 1, 8, 8, 1, stride=2)
    (all_rows, _), (some, expected) = build(layer, Tiling(1, 4, 4)), build(layer, Tiling(1, 4, 4, skip_rows=True))
    result, out = run(some), some.outputs[0]
    assert result.dram[out.address : out.address + out.size].tobytes() == expected
    assert (run(all_rows).counters.inp_bytes, result.counters.inp_bytes) == (7 * 7 * 16, 4 * 7 * 16)
    with pytest.raises(ProgramError, match="only windows of one row without padding"):
        build(Layer.square(1, 1, 8, 8, 3, stride=2), Tiling(1, 2, 2, skip_rows=True))


def test_a_tile_that_does_not_fit_is_refused():
    with pytest.raises(ProgramError, match="ACC: 4096 elements do not fit 2048"):
        layer_program(Layer.square(1, 2, 32, 32, 1), Tiling(2, 32, 32, threads=2, axis="h"), b"", b"")
