"""Loop kernels and schedules: lowering keeps the meaning, and every nest computes the same."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.expr import When
from nestegg.ir.loops import CHAIN, LoopKernel, described, lower
from nestegg.ir.nest import Cat, For, Nest, Tile, Vec, extents, points
from nestegg.ir.operator import operator
from nestegg.ir.target import TARGETS
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_egraph import build
from nestegg.testing import (
    Tree,
    evaluate_kernel,
    evaluate_nest,
    first_difference,
    in_numpy,
    schedule_space,
    schedules,
    tensors,
    trees,
)

SMALL = TARGETS["aarch64"]  # four lanes: tails and several vectors even in small kernels


def matmul(m: int, k: int, n: int) -> LoopKernel:
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    return lower(operator("dot").expr((TensorType((m, k)), TensorType((k, n))), attrs))


def values(tree: Tree, data: st.DataObject) -> tuple[list[np.ndarray], np.ndarray]:
    """Arguments for a kernel, and what its operators make of them, one by one."""
    arrays = {n: data.draw(tensors(t)) for n, t in tree.env.items()}
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in arrays.items()}
    return [arrays[n] for n in tree.names], in_numpy(tree.pattern, tree.env, wide).ravel()


def test_lowering_a_matrix_product():
    kernel = matmul(2, 3, 5)
    assert str(kernel.out) == "5*s0 + s1"
    assert (kernel.extents, kernel.kind) == ((2, 5, 3), "sum")
    x, y = np.arange(6.0).reshape(2, 3), np.arange(15.0).reshape(3, 5)
    np.testing.assert_array_equal(evaluate_kernel(kernel, [x, y]), (x @ y).ravel())


@settings(max_examples=150)
@given(trees(), st.data())
def test_lowering_keeps_the_meaning(tree, data):
    args, want = values(tree, data)
    got = evaluate_kernel(lower(tree.kernel.expr), args)
    assert first_difference(want, got) is None


@settings(max_examples=100)
@given(trees())
def test_axes_of_a_kernel(tree):
    kernel = lower(tree.kernel.expr)
    assume(isinstance(kernel, LoopKernel))
    assert all(a.extent > 1 for a in kernel.axes)
    assert len(set(kernel.axes)) == len(kernel.axes)
    written = {p: kernel.out.evaluate(dict(zip(kernel.spatial, p, strict=True)))
               for p in product(*(range(a.extent) for a in kernel.spatial))}  # fmt: skip
    assert len(set(written.values())) == len(written), "two results at one address"
    assert kernel.fill is not None or len(written) == kernel.out_type.size, "an element is never written"


@settings(max_examples=60)
@given(trees(), st.data(), st.sampled_from((1, 2)))
def test_every_schedule_computes_the_kernel(tree, data, threads):
    kernel = lower(tree.kernel.expr)
    assume(kernel.points <= 4000)
    args, want = values(tree, data)
    for _ in range(2):
        nest = data.draw(schedules(kernel, SMALL, threads))
        assert first_difference(want, evaluate_nest(kernel, nest, args)) is None, described(kernel, nest)


@settings(max_examples=60)
@given(trees(), st.data())
def test_schedules_are_exact_covers(tree, data):
    kernel = lower(tree.kernel.expr)
    assume(isinstance(kernel, LoopKernel))
    assume(kernel.points <= 4000)
    nest = data.draw(schedules(kernel, SMALL))
    assert extents(nest, len(kernel.axes)) == kernel.extents
    visits = Counter(points(nest, len(kernel.axes)))
    assert set(visits) == set(product(*map(range, kernel.extents)))
    assert set(visits.values()) <= {1}


@pytest.mark.parametrize("shape", [(13, 7, 19), (17, 1, 16), (1, 5, 1), (23, 4, 33), (6, 6, 48)])
@pytest.mark.parametrize("target", ["aarch64", "x86-64-v4"])
def test_schedules_of_awkward_extents(shape, target):
    kernel = matmul(*shape)
    egraph = build(kernel, TARGETS[target])
    rng = np.random.default_rng(0)
    for _ in range(5):
        nest = egraph.sample(rng)
        visits = list(points(nest, len(kernel.axes)))
        assert len(visits) == len(set(visits)) == kernel.points


def leaves(nest: Nest) -> list[Vec]:
    if isinstance(nest, Vec):
        return [nest]
    return leaves(nest.first) + leaves(nest.second) if isinstance(nest, Cat) else leaves(nest.body)


def tiles(nest: Nest) -> list[Tile]:
    if isinstance(nest, Vec):
        return []
    if isinstance(nest, Cat):
        return tiles(nest.first) + tiles(nest.second)
    return [nest] if isinstance(nest, Tile) else tiles(nest.body)


def loops(nest: Nest) -> list[For]:
    if isinstance(nest, Vec):
        return []
    if isinstance(nest, Cat):
        return loops(nest.first) + loops(nest.second)
    return [nest, *loops(nest.body)] if isinstance(nest, For) else loops(nest.body)


@settings(max_examples=40)
@given(trees(), st.data())
def test_schedules_fit_the_machine(tree, data):
    kernel = lower(tree.kernel.expr)
    assume(isinstance(kernel, LoopKernel))
    space = schedule_space(kernel, SMALL, 2).space
    nest = data.draw(schedules(kernel, SMALL, 2))
    assert all(v.lanes <= space.lanes for v in leaves(nest))
    for t in tiles(nest):
        block = extents(t.body, len(kernel.axes))[: len(kernel.spatial)]
        vectors = -(-block[t.vector] // space.lanes) if 0 <= t.vector < len(block) else 1
        others = int(np.prod([n for a, n in enumerate(block) if a != t.vector], dtype=int))
        assert others * vectors < space.registers
    assert all(f.axis < len(kernel.spatial) for f in loops(nest) if f.kind == "parallel")


@pytest.mark.parametrize("terms", [4096, 4099, 2 * 4099])
def test_long_sums_are_cut_into_short_chains(terms: int):
    """Those of a prime number of terms too, of which a part is cut off first."""
    egraph, rng = build(matmul(8, terms, 8), SMALL), np.random.default_rng(0)
    nests = [n for _ in range(100) if (n := egraph.sample(rng)) is not None]
    assert nests and max(extents(t.body, 3)[2] for n in nests for t in tiles(n)) <= CHAIN


@pytest.mark.slow
def test_a_long_sum_over_many_axes_has_a_schedule():
    """A convolution of 5x5 in two groups (AlexNet): no space of it that cuts its sums fits the limit."""
    lanes = 16
    attrs = Attrs(strides=(1, 1), padding=((2, 2),) * 2, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=2)
    conv = operator("conv").expr((TensorType((1, 96, 26, 26)), TensorType((256, 48, 5, 5))), attrs)
    blocks = operator("pack").expr((conv.type,), Attrs(axis=1, factor=lanes))
    assert build(lower(compose(blocks, 0, conv)), TARGETS["x86-64-v4"]).size > 0


def test_sums_of_integers_are_not_cut():
    attrs, x, w = Attrs(contract=((1,), (0,)), batch=((), ())), (8, 4096), (4096, 8)
    exact = lower(operator("dot").expr((TensorType(x, "i32"), TensorType(w, "i32")), attrs))
    assert not schedule_space(exact, SMALL, 2).space.chain


def test_loops_that_change_an_operands_vectors_are_unrolled_last():
    """Whichever axis the vectors are along: else the other operand's repeated elements are all alive at once."""
    rows, columns = 0, 1
    attrs = Attrs(contract=((0,), (0,)), batch=((), ()))
    kernel = lower(operator("dot").expr((TensorType((8, 32)), TensorType((8, 48))), attrs))
    space, egraph, rng = schedule_space(kernel, SMALL).space, build(kernel, SMALL), np.random.default_rng(1)
    assert [a.number for a in space.unrolled(columns)] == [2, rows, columns]
    assert [a.number for a in space.unrolled(rows)] == [2, columns, rows]
    met = set()
    for nest in (n for _ in range(60) if (n := egraph.sample(rng)) is not None):
        for tile in tiles(nest):
            order = [a.number for a in space.unrolled(tile.vector)]
            code = [f.axis for f in loops(tile.body) if f.kind == "unroll" and f.axis != tile.vector]
            assert code == sorted(code, key=order.index)
            met.add((tile.vector, len(code)))
    assert {(rows, 2), (columns, 2)} <= met


@pytest.mark.parametrize("outer", [0.0, 3.0])
def test_a_reduction_in_paddings_reads_inside_its_operand(outer):
    """Where a border's test fails, nothing is read: the operand may lie at the beginning of a page."""
    image = TensorType((4, 8, 8))
    pool = operator("window").expr(
        (image,),
        Attrs(kind="max", window=(1, 2, 2), strides=(1, 2, 2), padding=((0, 0),) * 3, dilation=(1, 1, 1)),
    )
    inner = operator("pad").expr((pool.type,), Attrs(low=(0, 1, 1), high=(0, 1, 1), interior=(0, 0, 0), value=0.0))
    whole = operator("pad").expr((inner.type,), Attrs(low=(0, 0, 2), high=(0, 1, 0), interior=(0, 0, 0), value=outer))
    kernel = lower(compose(whole, 0, compose(inner, 0, pool)))
    x = np.random.default_rng(0).standard_normal(image.shape)
    want = np.pad(x.reshape(4, 4, 2, 4, 2).max(axis=(2, 4)), ((0, 0), (1, 1), (1, 1)))
    want = np.pad(want, ((0, 0), (0, 1), (2, 0)), constant_values=outer)
    np.testing.assert_array_equal(evaluate_kernel(kernel, [x]), want.ravel())
    guarded = isinstance(kernel.update, When)
    assert guarded == (outer != 0), "paddings with one value are one padding, of which only the inside is computed"


def test_sampling_is_uniform():
    kernel = matmul(2, 2, 2)
    egraph = build(kernel, SMALL)
    count = egraph.programs[egraph.root]
    rng = np.random.default_rng(0)
    drawn = Counter(egraph.sample(rng) for _ in range(60 * count))
    assert len(drawn) == count
    assert min(drawn.values()) > 20
    assert max(drawn.values()) < 120


def test_schedules_of_a_single_result():
    kernel = lower(operator("reduce").expr((TensorType((30,)),), Attrs(kind="sum", axes=(0,))))
    assert kernel.spatial == ()
    x = np.arange(30.0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        nest = schedule_space(kernel, SMALL).sample(rng)
        assert evaluate_nest(kernel, nest, [x])[0] == x.sum()


def test_the_space_of_a_matrix_product_is_large():
    egraph = build(matmul(64, 64, 64), SMALL)
    assert egraph.report.stopped_by == "saturated"
    assert egraph.programs[egraph.root] > 10**6
