"""Machine code of kernels: any nest of the loop e-graph, drawn uniformly, computes what the kernel means."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nestegg.codegen import jit
from nestegg.codegen.kernel_code import KernelCode
from nestegg.codegen.llvm_types import TargetModule
from nestegg.codegen.memory import aligned_bytes
from nestegg.codegen.pool import pool_symbols
from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.loops import LoopKernel, Lowered, StagedKernel, described, lower
from nestegg.ir.nest import (
    AHEAD,
    PARALLEL,
    SERIAL,
    STREAMED,
    UNROLL,
    Cat,
    For,
    Nest,
    Seq,
    Stage,
    Store,
    Tile,
    Vec,
    parallel,
)
from nestegg.ir.operator import operator
from nestegg.ir.target import LINE, host
from nestegg.ir.types import DTYPES, TensorType
from nestegg.rewrite.loop_egraph import LoopEGraph, build
from nestegg.rewrite.loop_rules import LOOP_RULES
from nestegg.rewrite.saturate import Limits
from nestegg.testing import evaluate_kernel, kernels, schedules, staged_exprs

from ..ir.test_stages import softmax
from ..rewrite.test_loops import tiles

#: This machine, as if its caches held hardly anything: nests that store past them or fetch ahead are drawn too.
CROWDED = replace(host(), caches=(host().caches[0], LINE, LINE))


def run(kernel: Lowered, nest: Nest, inputs: list[np.ndarray], threads: int = 1) -> np.ndarray:
    """The kernel compiled with this nest, on these flat inputs."""
    out = aligned_bytes(max(kernel.out_type.nbytes, 1)).view(DTYPES[kernel.out_type.dtype].numpy)
    run_into(kernel, nest, inputs, out, threads)
    return out[: kernel.out_type.size].copy()


def run_into(kernel: Lowered, nest: Nest, inputs: list[np.ndarray], out: np.ndarray, threads: int = 1) -> None:
    module = TargetModule("test", host().triple, host().features)
    code = KernelCode(module, "kernel", kernel, nest, host().lanes(), threads)
    code.emit().linkage = "external"
    loaded = jit.load_object(jit.compile_object(str(module), host()), ("kernel",), pool_symbols())
    call = loaded.function("kernel", *[ctypes.c_void_p] * (len(inputs) + 1))
    call(*(a.ctypes.data for a in inputs), out.ctypes.data)


def random_inputs(kernel: Lowered, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(t: TensorType) -> np.ndarray:
        values = rng.uniform(0.5, 2, t.size) if DTYPES[t.dtype].kind == "float" else rng.integers(0, 2, t.size)
        return np.ascontiguousarray(values.astype(DTYPES[t.dtype].numpy))

    return [draw(t) for t in kernel.inputs]


def check(kernel: Lowered, nest: Nest, seed: int = 0, threads: int = 1) -> None:
    inputs = random_inputs(kernel, seed)
    want = evaluate_kernel(kernel, inputs)
    got = run(kernel, nest, inputs, threads)
    scale = max(np.nanmax(np.abs(np.asarray(want, np.float64)), initial=0), 1e-6)
    shown = described(kernel, nest)
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=1e-4, atol=1e-5 * scale, err_msg=f"{kernel}\n{shown}")


def matmul(m: int, k: int, n: int) -> LoopKernel:
    types = (TensorType((m, k)), TensorType((k, n)))
    product = operator("dot").expr(types, Attrs(contract=((1,), (0,)), batch=((), ())))
    return lower(compose(operator("exp").expr((product.type,), Attrs()), 0, product))


def test_the_best_nest_of_a_matmul_multiplies():
    kernel = matmul(5, 7, 33)
    nest = build(kernel, host()).sample(np.random.default_rng(0))
    assert nest is not None
    inputs = [a * 0.1 for a in random_inputs(kernel, 1)]
    want = np.exp(inputs[0].reshape(5, 7).astype(np.float64) @ inputs[1].reshape(7, 33)).ravel()
    np.testing.assert_allclose(run(kernel, nest, inputs), want, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 5, 17), (48, 32, 40), (7, 64, 1)])
def test_uniformly_drawn_nests_of_matmuls(shape: tuple[int, int, int]) -> None:
    types = (TensorType(shape[:2]), TensorType(shape[1:]))
    kernel = lower(operator("dot").expr(types, Attrs(contract=((1,), (0,)), batch=((), ()))))
    egraph, rng = build(kernel, host()), np.random.default_rng(2)
    for _ in range(6):
        nest = egraph.sample(rng)
        assert nest is not None
        check(kernel, nest)


@pytest.mark.parametrize("padding", [0, 1, 2, 5])
def test_uniformly_drawn_nests_of_a_convolution(padding: int) -> None:
    """With paddings that some and that all taps of a window fall on."""
    attrs = Attrs(
        strides=(2, 1), padding=((padding, padding),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 2), groups=1
    )
    kernel = lower(operator("conv").expr((TensorType((1, 3, 9, 11)), TensorType((6, 3, 3, 3))), attrs))
    egraph, rng = build(kernel, host()), np.random.default_rng(3)
    for _ in range(6):
        nest = egraph.sample(rng)
        assert nest is not None
        check(kernel, nest)


def depthwise(channels: int, extent: int, stride: int = 1, padding: int = 0) -> LoopKernel:
    """Windows of 3x3, channel by channel, the channels last."""
    x = TensorType((1, channels, extent, extent))
    attrs = Attrs(
        strides=(stride,) * 2, padding=((padding,) * 2,) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=channels
    )
    conv = operator("conv").expr((x, TensorType((channels, 1, 3, 3))), attrs)
    last = operator("transpose").expr((TensorType((1, extent, extent, channels)),), Attrs(perm=(0, 3, 1, 2)))
    weights = operator("transpose").expr((TensorType((1, 3, 3, channels)),), Attrs(perm=(3, 0, 1, 2)))
    there = operator("transpose").expr((conv.type,), Attrs(perm=(0, 2, 3, 1)))
    return lower(compose(there, 0, compose(compose(conv, 0, last), 1, weights)))


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 1)])
def test_uniformly_drawn_nests_of_overlapping_windows(stride: int, padding: int) -> None:
    kernel = depthwise(19, 8, stride, padding)
    egraph, rng = build(kernel, host()), np.random.default_rng(6)
    assert egraph.space.window is not None
    for _ in range(6):
        nest = egraph.sample(rng)
        assert nest is not None
        check(kernel, nest)


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_uniformly_drawn_nests_of_padded_pooling(kind: str) -> None:
    attrs = Attrs(kind=kind, window=(1, 3, 2), strides=(1, 2, 1), padding=((0, 0), (1, 2), (1, 0)), dilation=(1, 2, 1))
    kernel = lower(operator("window").expr((TensorType((5, 11, 9)),), attrs))
    assert len(kernel.paddings) == 2
    for nest in drawn(build(kernel, host()), np.random.default_rng(10), 6):
        check(kernel, nest)


def test_taps_on_padding_are_not_computed() -> None:
    """A loop over rows of a window makes no rounds in the padding, and straight-line code leaves out its columns."""
    image, weights = TensorType((1, 4, 8, 8)), TensorType((16, 4, 3, 3))
    attrs = Attrs(strides=(1, 1), padding=((1, 1),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1)
    kernel = lower(operator("conv").expr((image, weights), attrs))
    outputs, rows, columns, inputs, down, along = range(6)
    code: Nest = For(along, 3, UNROLL, For(columns, 8, UNROLL, Vec(outputs, 16)))
    nest = For(rows, 8, SERIAL, Tile(outputs, For(down, 3, SERIAL, For(inputs, 4, SERIAL, code))))
    check(kernel, nest)
    text = _llvm(kernel, nest)
    assert text.count(" fmul ") == 3 * 8 - 2
    assert "select <16 x i1>" not in text and "select i1" not in text, "no value is chosen by a bounds test"


@pytest.mark.parametrize(("stride", "loads"), [(1, 3 * (6 + 3)), (2, 3 * (9 + 3))])
def test_overlapping_windows_are_loaded_once(stride: int, loads: int) -> None:
    """Of 4 neighbouring results: the 6 (stride 2: 9) vectors of a row that they read, and its 3 of weights."""
    kernel = depthwise(16, 3 + 3 * stride, stride)
    rows, columns, channels, down, along = range(5)
    window = For(columns, 4, UNROLL, For(along, 3, UNROLL, Vec(channels, 16)))
    nest = For(rows, 4, SERIAL, Tile(channels, For(down, 3, UNROLL, window)))
    check(kernel, nest)
    assert _llvm(kernel, nest).count(" load <16 x float>") == loads


def test_a_cut_reduction_keeps_partial_results():
    kernel = matmul(4, 12, 32)
    egraph, rng = build(kernel, host()), np.random.default_rng(4)
    cut = [n for n in drawn(egraph, rng, 300) if _cuts(n, len(kernel.spatial))]
    assert cut, "no sampled nest cuts the reduction outside its register tile"
    inputs = [a * 0.1 for a in random_inputs(kernel, 5)]
    want = np.exp(inputs[0].reshape(4, 12).astype(np.float64) @ inputs[1].reshape(12, 32)).ravel()
    for nest in cut[:5]:
        np.testing.assert_allclose(run(kernel, nest, inputs), want, rtol=1e-5)


def test_every_nest_of_a_short_sum_adds_in_the_same_order():
    """Wherever the sum is cut: what a main part computes and what a tail computes of equal columns must be equal."""
    kernel, rng = matmul(21, 192, 20), np.random.default_rng(6)
    uncut = [r for r in LOOP_RULES if r.name != "block_reduction"]
    nests = [n for rules in (LOOP_RULES, uncut) for n in drawn(build(kernel, host(), rules=rules), rng, 20)]
    nests = [n for n in nests if all(t.vector < len(kernel.spatial) for t in tiles(n))]
    assert {_cuts(n, len(kernel.spatial)) for n in nests} == {True, False}
    inputs = [a * 0.1 for a in random_inputs(kernel, 7)]
    first, *others = (run(kernel, nest, inputs) for nest in nests)
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_a_sum_of_a_prime_number_of_terms_is_summed_in_parts():
    kernel, rng = matmul(3, 2053, 20), np.random.default_rng(8)
    inputs = random_inputs(kernel, 9)
    want = np.exp(1e-3 * (inputs[0].reshape(3, 2053).astype(np.float64) @ inputs[1].reshape(2053, 20))).ravel()
    nests = drawn(build(kernel, host()), rng, 8)
    assert any(isinstance(n, Cat) and n.axis == 2 for n in nests)
    for nest in nests:
        np.testing.assert_allclose(run(kernel, nest, [inputs[0] * 1e-3, inputs[1]]), want, rtol=1e-5)


def drawn(egraph: LoopEGraph, rng: np.random.Generator, count: int) -> list[Nest]:
    return [n for n in (egraph.sample(rng) for _ in range(count)) if n is not None]


def _cuts(nest: Nest, spatial: int) -> bool:
    if isinstance(nest, For):
        return nest.axis >= spatial or _cuts(nest.body, spatial)
    return isinstance(nest, Cat) and (_cuts(nest.first, spatial) or _cuts(nest.second, spatial))


def test_a_limit_still_leaves_a_schedule():
    kernel = matmul(60, 48, 96)
    egraph = build(kernel, host(), limits=Limits(nodes=50))
    assert egraph.report.stopped_by == "nodes"
    nest = egraph.sample(np.random.default_rng(0))
    assert nest is not None
    inputs = [a * 0.01 for a in random_inputs(kernel, 6)]
    want = np.exp(inputs[0].reshape(60, 48).astype(np.float64) @ inputs[1].reshape(48, 96)).ravel()
    np.testing.assert_allclose(run(kernel, nest, inputs), want, rtol=1e-5)


@pytest.mark.parametrize("extent", [1, 13, 509, 4096])
def test_extreme_extents_have_schedules(extent: int) -> None:
    for shape in ((extent, 1, 1), (1, extent, 1), (1, 1, extent)):
        types = (TensorType(shape[:2]), TensorType(shape[1:]))
        kernel = lower(operator("dot").expr(types, Attrs(contract=((1,), (0,)), batch=((), ()))))
        nest = build(kernel, host()).sample(np.random.default_rng(7))
        assert nest is not None
        check(kernel, nest)


def made_parallel(nest: Nest, spatial: int, rng: np.random.Generator) -> Nest:
    """Some of the loops over results, at any depth outside the register tiles, run in parallel."""
    if isinstance(nest, Cat):
        first, second = (made_parallel(n, spatial, rng) for n in (nest.first, nest.second))
        return replace(nest, first=first, second=second)
    if isinstance(nest, Tile | Vec):
        return nest
    turns = nest.kind == SERIAL and nest.axis < spatial and rng.random() < 0.6
    return replace(nest, kind=PARALLEL if turns else nest.kind, body=made_parallel(nest.body, spatial, rng))


@pytest.mark.parametrize("threads", [1, 2])
def test_parallel_loops_anywhere_in_a_nest(threads: int) -> None:
    """Below serial loops, in both parts of a cut, inside one another, and around and inside partial results."""
    kernel, rng = matmul(13, 12, 40), np.random.default_rng(8)
    egraph, spatial = build(kernel, host()), len(kernel.spatial)
    nests = [n for n in (egraph.sample(rng) for _ in range(200)) if n is not None]
    chosen = [*nests[:8], *[n for n in nests if _cuts(n, spatial)][:4], *[n for n in nests if isinstance(n, Cat)][:4]]
    changed = [made_parallel(n, spatial, rng) for n in chosen]
    assert sum(map(parallel, changed)) > 8
    inputs = [a * 0.1 for a in random_inputs(kernel, 9)]
    want = np.exp(inputs[0].reshape(13, 12).astype(np.float64) @ inputs[1].reshape(12, 40)).ravel()
    for nest in changed:
        np.testing.assert_allclose(run(kernel, nest, inputs, threads), want, rtol=1e-5)


def test_a_serial_nest_has_the_same_code_for_any_number_of_threads():
    kernel = matmul(13, 12, 40)
    nest = build(kernel, host()).sample(np.random.default_rng(0))
    assert nest is not None

    def code(threads: int) -> str:
        module = TargetModule("test", host().triple, host().features)
        KernelCode(module, "kernel", kernel, nest, host().lanes(), threads).emit()
        return str(module)

    assert code(1) == code(2)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from((1, 2)))
def test_any_nest_of_any_kernel(data: st.DataObject, threads: int) -> None:
    kernel = data.draw(kernels())
    check(kernel, data.draw(schedules(kernel, CROWDED, threads)), data.draw(st.integers(0, 99)), threads)


@pytest.mark.slow
@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from((1, 2)))
def test_any_nest_of_any_kernel_at_length(data: st.DataObject, threads: int) -> None:
    kernel = data.draw(kernels())
    check(kernel, data.draw(schedules(kernel, CROWDED, threads)), data.draw(st.integers(0, 99)), threads)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from((1, 2)))
def test_any_nest_of_any_kernel_of_several_stages(data: st.DataObject, threads: int) -> None:
    kernel = lower(data.draw(staged_exprs()))
    check(kernel, data.draw(schedules(kernel, CROWDED, threads)), data.draw(st.integers(0, 99)), threads)


@pytest.mark.slow
@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(st.data(), st.sampled_from((1, 2)))
def test_any_nest_of_any_kernel_of_several_stages_at_length(data: st.DataObject, threads: int) -> None:
    kernel = lower(data.draw(staged_exprs()))
    check(kernel, data.draw(schedules(kernel, CROWDED, threads)), data.draw(st.integers(0, 99)), threads)


@pytest.mark.parametrize("skipped", [0, 1, 16])
@pytest.mark.parametrize("columns", [32, 40, 33])
def test_results_past_the_caches_wherever_the_output_begins(columns: int, skipped: int) -> None:
    """Vectors of which one begins at a multiple of its size, of which some do, and in memory that does not itself."""
    kernel = lower(operator("exp").expr((TensorType((8, columns)),), Attrs()))
    egraph, rng = build(kernel, CROWDED), np.random.default_rng(3)
    drawn = (egraph.sample(rng) for _ in range(40))
    nests = [n for n in drawn if isinstance(n, Store) and n.how == STREAMED]
    past = [n for n in nests if "!nontemporal" in _llvm(kernel, n)]
    assert past
    inputs = random_inputs(kernel, 1)
    for nest in (*past[:2], *nests[:2]):
        memory = aligned_bytes(4 * (kernel.out_type.size + skipped)).view(np.float32)
        run_into(kernel, nest, inputs, memory[skipped:])
        np.testing.assert_allclose(memory[skipped:], np.exp(inputs[0]), rtol=1e-5)


def test_an_ahead_loop_asks_for_its_next_operands() -> None:
    x, w = TensorType((6, 32)), TensorType((32, 64))
    kernel = lower(operator("dot").expr((x, w), Attrs(contract=((1,), (0,)), batch=((), ()))))
    far = replace(host(), caches=(host().caches[0], LINE, host().caches[2]))
    egraph, rng = build(kernel, far), np.random.default_rng(5)
    ahead = [n for n in (egraph.sample(rng) for _ in range(60)) if isinstance(n, For) and n.kind == AHEAD]
    asking = [n for n in ahead if n.axis == 1 and "llvm.prefetch" in _llvm(kernel, n)]
    assert asking and "fetching ahead" in described(kernel, asking[0])
    assert all("llvm.prefetch" not in _llvm(kernel, replace(n, kind=SERIAL)) for n in asking)
    for nest in ahead[:8]:
        check(kernel, nest, 1)


def test_the_last_stage_that_reads_an_input_asks_for_the_next_rows() -> None:
    """Which is the one of the exponentials, not that of the maximum before it, nor the sum's."""
    kernel = lower(softmax(12, 64))
    rows = For(0, 12, AHEAD, _softmax_of_a_row(kernel))
    check(kernel, rows)
    lines = _llvm(kernel, rows).splitlines()
    loads = [k for k, line in enumerate(lines) if " load <16 x float>" in line]
    asked = [k for k, line in enumerate(lines) if "call void @\"llvm.prefetch" in line]
    assert len(asked) == 4  # the vectors of a row, once each,
    assert sum(k < asked[0] for k in loads) == 4  # after the maximum has read them
    assert "prefetch" not in _llvm(kernel, replace(rows, kind=SERIAL))


def _softmax_of_a_row(kernel: Lowered) -> Nest:
    """Stages of the sequence that keeps the exponentials, over a row of four vectors."""
    assert isinstance(kernel, StagedKernel)
    row = Tile(1, For(1, 4, UNROLL, Vec(1, 16)))
    *first, last = max(kernel.sequences, key=len)
    nest: Nest = Stage(last, row)
    for number in reversed(first):
        nest = Seq(Stage(number, row), nest)
    return nest


FILTERS = ((1.0, 0.0, -2.5, 0.0), (0.0, -1.0, 1.0, 0.5), (0.0, 1.0, 1.0, 0.5))


def filtered(shape: tuple[int, ...], *axes: int) -> Lowered:
    """A filter bank along one axis, or along several, one after the other."""
    bank = operator("filter_bank")
    expr = bank.expr((TensorType(shape),), Attrs(axis=axes[0], filters=FILTERS, stride=2))
    for axis in axes[1:]:
        expr = compose(bank.expr((expr.type,), Attrs(axis=axis, filters=FILTERS, stride=2)), 0, expr)
    return lower(expr)


@pytest.mark.parametrize("kernel", [filtered((3, 8, 16), 1), filtered((10, 5), 0), filtered((6, 8, 19), 0, 1)])
def test_uniformly_drawn_nests_of_filter_banks(kernel: Lowered) -> None:
    egraph, rng = build(kernel, host()), np.random.default_rng(8)
    for _ in range(8):
        nest = egraph.sample(rng)
        assert nest is not None
        check(kernel, nest)


def test_weights_that_the_code_knows_are_part_of_it():
    """No table in memory, and no multiplication by 0 or 1, where the bank is straight-line code."""
    kernel = filtered((8, 16), 0)
    assert isinstance(kernel, LoopKernel)
    across, table, tap = kernel.spatial[-1], kernel.spatial[1], kernel.reduce[0]
    number = {a: k for k, a in enumerate(kernel.axes)}
    line = For(number[tap], 4, UNROLL, For(number[table], 3, UNROLL, Vec(number[across], 16)))
    nest = For(0, 3, SERIAL, Tile(number[across], line))
    check(kernel, nest)
    text = _llvm(kernel, nest)
    assert "table_" not in text and text.count(" fmul ") == 3
    dynamic = For(0, 3, SERIAL, For(1, 3, SERIAL, Tile(number[across], For(number[tap], 4, UNROLL, Vec(2, 16)))))
    check(kernel, dynamic)
    assert "table_" in _llvm(kernel, dynamic)


def _llvm(kernel: Lowered, nest: Nest) -> str:
    module = TargetModule("test", host().triple, host().features)
    KernelCode(module, "kernel", kernel, nest, host().lanes(), 1).emit()
    return str(module)


def test_a_weight_of_zero_takes_nothing_of_its_operand():
    kernel = filtered((4, 16), 0)
    nest = build(kernel, host()).sample(np.random.default_rng(0))
    assert nest is not None
    x = np.ones((4, 16), np.float32)
    x[1] = np.inf  # the first filter has a 0 there
    assert np.array_equal(run(kernel, nest, [x.ravel()]).reshape(3, 16)[0], np.full(16, -1.5, np.float32))
