"""Intrinsics in machine code: nests that apply them compute what the kernel means, on targets that have them only."""

import ctypes
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import ir

from nestegg.codegen import jit
from nestegg.codegen.kernel_code import KernelCode
from nestegg.codegen.program import aligned_bytes
from nestegg.costmodel.roofline import Roofline
from nestegg.extract.beam import extract_nests
from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.intrinsic import INTRINSICS, Intrinsic, declare
from nestegg.ir.intrinsics import dot_lanes
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.nest import Intrin, Nest
from nestegg.ir.operator import operator
from nestegg.ir.target import TARGETS, Target, host
from nestegg.ir.types import DTYPES, TensorType
from nestegg.rewrite.loop_egraph import build

INT32 = ("u8", "i8", "i32", 4)
#: Operands' types, accumulator and depth of the intrinsics, by what a test asks for.
KINDS = {
    "u8_i8": INT32,
    "i8_i8": ("i8", "i8", "i32", 4),
    "u8_u8": ("u8", "u8", "i32", 4),
    "bf16": ("bf16", "bf16", "f32", 2),
}


def product(m: int, k: int, n: int, left: str, right: str, acc: str, depth: int, panel: int = 0) -> LoopKernel:
    """x[m, k] @ w[k, n], the weights stored as [k/depth, n, depth] or [n/panel, k/depth, panel, depth]."""
    types = (TensorType((m, k), acc), TensorType((k, n), acc))
    dot = operator("dot").expr(types, Attrs(contract=((1,), (0,)), batch=((), ())))
    x = operator("cast").expr((TensorType((m, k), left),), Attrs(dtype=acc))
    w = operator("cast").expr((TensorType((k, n), right),), Attrs(dtype=acc))
    if panel:
        registers = operator("unpack").expr((TensorType((n // panel, k // depth, panel, depth), right),), Attrs(axis=1))
        panels = operator("unpack").expr((registers.type,), Attrs(axis=0))
        turned = operator("transpose").expr((panels.type,), Attrs(perm=(1, 0)))
        stored = compose(turned, 0, compose(panels, 0, registers))
    else:
        stored = operator("unpack").expr((TensorType((k // depth, n, depth), right),), Attrs(axis=0))
    return lower(compose(compose(dot, 0, x), 1, compose(w, 0, stored)))


def packed(w: np.ndarray, depth: int, panel: int = 0) -> np.ndarray:
    k, n = w.shape
    width = panel or n
    return np.ascontiguousarray(w.reshape(k // depth, depth, n // width, width).transpose(2, 0, 3, 1))


def llvm_of(kernel: LoopKernel, nest: Nest, target: Target) -> str:
    module = ir.Module()
    module.triple = target.triple
    KernelCode(module, "kernel", kernel, nest, target.lanes()).emit().linkage = "external"
    return str(module)


def run(kernel: LoopKernel, nest: Nest, inputs: list[np.ndarray], target: Target) -> np.ndarray:
    loaded = jit.load_object(jit.compile_object(llvm_of(kernel, nest, target), target), ("kernel",))
    out = aligned_bytes(kernel.out_type.nbytes).view(DTYPES[kernel.out_type.dtype].numpy)
    pointers = [a.ctypes.data for a in (*inputs, out)]
    loaded.function("kernel", *[ctypes.c_void_p] * len(pointers))(*pointers)
    return out


def best(kernel: LoopKernel, target: Target) -> Nest:
    return extract_nests(build(kernel, target), Roofline(target))[0].nest


def leaves(nest: Nest) -> set[type]:
    inner = [getattr(nest, f) for f in ("body", "first", "second") if hasattr(nest, f)]
    return {type(nest)} if not inner else set().union(*map(leaves, inner))


def runs(name: str) -> bool:
    return any(i.name == name for i in host().intrinsics)


def extremes(rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> np.ndarray:
    info = np.iinfo(dtype)
    style = rng.integers(0, 3)
    if style == 0:
        return np.full(shape, info.max, dtype)
    if style == 1:
        return rng.choice(np.array([info.min, info.max, 0], dtype), shape)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


needs_vnni = pytest.mark.skipif(not runs("vpdpbusd_512"), reason="this machine has no AVX-512 VNNI")


@needs_vnni
def test_the_best_nest_of_a_byte_matmul_is_made_of_vpdpbusd():
    kernel = product(16, 64, 48, *INT32)
    nest = best(kernel, host())
    assert leaves(nest) == {Intrin}
    assert "vpdpbusd" in jit.assembly(llvm_of(kernel, nest, host()), host())
    x, w = np.full((16, 64), 255, np.uint8), np.full((64, 48), -128, np.int8)
    np.testing.assert_array_equal(run(kernel, nest, [x, packed(w, 4)], host()), 255 * -128 * 64)  # nothing saturates


@pytest.mark.parametrize(
    ("target", "kind", "depth", "instruction"),
    [
        ("x86-64-v4+vnni", "u8_i8", 4, "vpdpbusd"),
        ("x86-64-v4+vnni", "bf16", 2, "vdpbf16ps"),
        ("x86-64-v4", "u8_i8", 2, "vpmaddwd"),
        ("x86-64-v3", "u8_i8", 2, "vpmaddwd"),
        ("x86-64-v3", "i8_i8", 2, "vpmaddwd"),
        ("aarch64+dotprod", "u8_i8", 4, "usdot"),
        ("aarch64+dotprod", "i8_i8", 4, "sdot"),
        ("aarch64+dotprod", "u8_u8", 4, "udot"),
        ("aarch64+dotprod", "bf16", 2, "bfdot"),
    ],
)
def test_a_target_s_instruction_is_used(target, kind, depth, instruction):
    kernel = product(8, 16, 32, *KINDS[kind][:3], depth)
    nest = best(kernel, TARGETS[target])
    assert leaves(nest) == {Intrin}
    assert re.search(rf"\b{instruction}\b", jit.assembly(llvm_of(kernel, nest, TARGETS[target]), TARGETS[target]))


NEWER = {
    "x86-64-v3": r"vpdpbusd|vdpbf16ps|zmm",
    "x86-64-v4": r"vpdpbusd|vdpbf16ps",
    "aarch64": r"\b(us|u|s|bf)dot\b",
}


@pytest.mark.parametrize("target", NEWER)
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_s_code_uses_nothing_that_it_lacks(target, kind):
    machine = TARGETS[target]
    for depth in (2, 4):
        kernel = product(4, 16, 24, *KINDS[kind][:3], depth)
        egraph, rng = build(kernel, machine), np.random.default_rng(0)
        for nest in [best(kernel, machine), *(egraph.sample(rng) for _ in range(2))]:
            assert nest is not None
            assert not re.search(NEWER[target], jit.assembly(llvm_of(kernel, nest, machine), machine))


shapes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.one_of(st.integers(2, 40), st.sampled_from((48, 64, 96))))


@needs_vnni
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(shapes, st.booleans(), st.integers(0, 2**32 - 1))
def test_any_nest_of_a_byte_matmul_is_exact(shape, panels, seed):
    (m, quads, n), rng = shape, np.random.default_rng(seed)
    k, panel = 4 * quads, 16 if panels and n % 16 == 0 else 0
    kernel = product(m, k, n, *INT32, panel)
    x, w = extremes(rng, "uint8", (m, k)), extremes(rng, "int8", (k, n))
    nest = _tensorized(kernel, host(), rng)
    got = run(kernel, nest, [x, packed(w, 4, panel)], host())
    np.testing.assert_array_equal(got.reshape(m, n), x.astype(np.int32) @ w.astype(np.int32), str(nest))


def _tensorized(kernel: LoopKernel, target: Target, rng: np.random.Generator) -> Nest:
    """A nest drawn uniformly from those with an intrinsic, if some are found, else from all."""
    egraph = build(kernel, target)
    drawn = [egraph.sample(rng) for _ in range(12)]
    nests = [n for n in drawn if n is not None]
    return next((n for n in nests if Intrin in leaves(n)), nests[0])


@pytest.mark.skipif(not set(TARGETS["x86-64-v3"].features.split(",")) <= set(host().features.split(",")), reason="AVX2")
@pytest.mark.parametrize("kind", ["u8_i8", "i8_i8"])
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(shapes, st.integers(0, 2**32 - 1))
def test_avx2_is_exact_too(kind, shape, seed):
    (m, pairs, n), rng, target = shape, np.random.default_rng(seed), TARGETS["x86-64-v3"]
    left, right, acc, _ = KINDS[kind]
    kernel = product(m, 2 * pairs, n, left, right, acc, 2)
    x = extremes(rng, DTYPES[left].numpy_name, (m, 2 * pairs))
    w = extremes(rng, DTYPES[right].numpy_name, (2 * pairs, n))
    got = run(kernel, _tensorized(kernel, target, rng), [x, packed(w, 2)], target)
    np.testing.assert_array_equal(got.reshape(m, n), x.astype(np.int32) @ w.astype(np.int32))


@pytest.mark.skipif(not runs("vdpbf16ps_512"), reason="this machine has no AVX-512 BF16")
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(shapes, st.integers(0, 2**32 - 1))
def test_any_nest_of_a_bfloat16_matmul_is_within_its_tolerance(shape, seed):
    (m, pairs, n), rng = shape, np.random.default_rng(seed)
    k = 2 * pairs
    x = (rng.standard_normal((m, k)) * 2.0 ** rng.integers(-8, 8, (m, k))).astype(ml_dtypes.bfloat16)
    w = rng.standard_normal((k, n)).astype(ml_dtypes.bfloat16)
    kernel = product(m, k, n, *KINDS["bf16"])
    got = run(kernel, _tensorized(kernel, host(), rng), [x, packed(w, 2)], host()).reshape(m, n)
    wide = x.astype(np.float64), w.astype(np.float64)
    off = np.abs(got - wide[0] @ wide[1])
    assert (off <= k * 2.0**-24 * (np.abs(wide[0]) @ np.abs(wide[1]))).all()


@pytest.fixture
def declared_here(monkeypatch):
    """An instruction that no machine has: three int16 products a lane, by plain code."""
    monkeypatch.setattr("nestegg.ir.intrinsic.INTRINSICS", dict(INTRINSICS))
    arch, lanes = host().triple.split("-")[0], host().lanes()

    def emit(b, acc, x, y):
        wide = ir.VectorType(ir.IntType(32), 3 * lanes)
        products = b.mul(b.sext(x, wide), b.sext(y, wide))
        for k in range(3):
            places = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [3 * lane + k for lane in range(lanes)])
            acc = b.add(acc, b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), places))
        return acc

    return declare(Intrinsic("triples", dot_lanes(lanes, 3, "i16", "i16", "i32"), arch, (), emit, rate=9.0))


def test_one_declaration_is_all_that_an_intrinsic_takes(declared_here):
    """Its rule, its place in nests, its cost, its layout and its code follow."""
    import jax
    import jax.numpy as jnp

    import nestegg

    rng = np.random.default_rng(0)
    x, w = rng.integers(-32768, 32768, (5, 21), np.int16), rng.integers(-9, 9, (21, 37), np.int16)

    def product(x):
        return jax.lax.dot_general(x, jnp.asarray(w), (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)

    compiled = nestegg.optimize(product, x)
    assert "triples over" in str(compiled.program)
    assert "constant0: i16[1,7,37,3]" in str(compiled.program)
    np.testing.assert_array_equal(compiled(x), x.astype(np.int32) @ w.astype(np.int32))


def test_a_target_without_the_feature_never_sees_it(declared_here):
    assert declared_here in host().intrinsics
    assert declared_here not in TARGETS["aarch64"].intrinsics
    needy = replace(declared_here, name="needy", features=("no-such-feature",))
    assert declare(needy) not in host().intrinsics
