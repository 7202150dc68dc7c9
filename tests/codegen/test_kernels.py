"""Machine code of kernels: any nest of the loop e-graph, drawn uniformly, computes what the kernel means."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import ir

from nestegg.codegen import jit
from nestegg.codegen.kernel_code import KernelCode
from nestegg.codegen.memory import aligned_bytes
from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.loops import LoopKernel, Lowered, described, lower
from nestegg.ir.nest import Nest
from nestegg.ir.operator import operator
from nestegg.ir.target import host
from nestegg.ir.types import DTYPES, TensorType
from nestegg.rewrite.loop_egraph import build
from nestegg.rewrite.saturate import Limits
from nestegg.testing import evaluate_kernel, kernels, schedules


def run(kernel: Lowered, nest: Nest, inputs: list[np.ndarray]) -> np.ndarray:
    """The kernel compiled with this nest, on these flat inputs."""
    module = ir.Module()
    code = KernelCode(module, "kernel", kernel, nest, host().lanes())
    code.emit().linkage = "external"
    loaded = jit.load_object(jit.compile_object(str(module), host()), ("kernel",))
    call = loaded.function("kernel", *[ctypes.c_void_p] * (len(inputs) + 1))
    out = aligned_bytes(max(kernel.out_type.nbytes, 1)).view(DTYPES[kernel.out_type.dtype].numpy)
    call(*(a.ctypes.data for a in inputs), out.ctypes.data)
    return out[: kernel.out_type.size].copy()


def random_inputs(kernel: Lowered, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(t: TensorType) -> np.ndarray:
        values = rng.uniform(0.5, 2, t.size) if DTYPES[t.dtype].kind == "float" else rng.integers(0, 2, t.size)
        return np.ascontiguousarray(values.astype(DTYPES[t.dtype].numpy))

    return [draw(t) for t in kernel.inputs]


def check(kernel: Lowered, nest: Nest, seed: int = 0) -> None:
    inputs = random_inputs(kernel, seed)
    want = evaluate_kernel(kernel, inputs)
    got = run(kernel, nest, inputs)
    scale = max(np.abs(np.asarray(want, np.float64)).max(initial=0), 1e-6)
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


@pytest.mark.parametrize("padding", [0, 1])
def test_uniformly_drawn_nests_of_a_convolution(padding: int) -> None:
    attrs = Attrs(
        strides=(2, 1), padding=((padding, padding),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 2), groups=1
    )
    kernel = lower(operator("conv").expr((TensorType((1, 3, 9, 11)), TensorType((6, 3, 3, 3))), attrs))
    egraph, rng = build(kernel, host()), np.random.default_rng(3)
    for _ in range(6):
        nest = egraph.sample(rng)
        assert nest is not None
        check(kernel, nest)


def test_a_cut_reduction_keeps_partial_results():
    kernel = matmul(4, 12, 32)
    egraph, rng = build(kernel, host()), np.random.default_rng(4)
    cut = [n for n in (egraph.sample(rng) for _ in range(300)) if n is not None and _cuts(n, len(kernel.spatial))]
    assert cut, "no sampled nest cuts the reduction outside its register tile"
    inputs = [a * 0.1 for a in random_inputs(kernel, 5)]
    want = np.exp(inputs[0].reshape(4, 12).astype(np.float64) @ inputs[1].reshape(12, 32)).ravel()
    for nest in cut[:5]:
        np.testing.assert_allclose(run(kernel, nest, inputs), want, rtol=1e-5)


def _cuts(nest: Nest, spatial: int) -> bool:
    from nestegg.ir.nest import Cat, For

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


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_nest_of_any_kernel(data: st.DataObject) -> None:
    kernel = data.draw(kernels())
    check(kernel, data.draw(schedules(kernel)), data.draw(st.integers(0, 99)))


@pytest.mark.slow
@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_nest_of_any_kernel_at_length(data: st.DataObject) -> None:
    kernel = data.draw(kernels())
    check(kernel, data.draw(schedules(kernel)), data.draw(st.integers(0, 99)))
