"""Stages: expressions with several reductions taken apart, lowered, and computed stage by stage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestegg.ir.errors import UnsupportedError
from nestegg.ir.expr import Scalar, TensorExpr, apply, reduce, when
from nestegg.ir.index import Axis, Index
from nestegg.ir.loops import SCRATCH_BYTES, LoopKernel, StagedKernel, lower
from nestegg.ir.reference import evaluate_expr
from nestegg.ir.types import TensorType
from nestegg.testing import evaluate_kernel, staged_exprs


def softmax(rows: int, columns: int) -> TensorExpr:
    def body(x):
        def row_max(i: Index, name: str) -> Scalar:
            k = Axis(name, columns)
            return reduce("max", [k], x[i, k])

        def at(i: Index, j: Index) -> Scalar:
            k = Axis("k", columns)
            total = reduce("sum", [k], apply("exp", x[i, k] - row_max(i, "l")))
            return apply("exp", x[i, j] - row_max(i, "m")) / total

        return at

    return TensorExpr.build([TensorType((rows, columns))], (rows, columns), body)


def test_softmax_has_three_stages_or_four():
    kernel = lower(softmax(6, 10))
    assert isinstance(kernel, StagedKernel)
    assert [a.extent for a in kernel.shared] == [6]
    recomputed, kept = kernel.sequences
    assert [kernel.stages[n].kind for n in recomputed] == ["max", "sum", ""]
    assert [kernel.stages[n].kind for n in kept] == ["max", "", "sum", ""]
    assert "exp" not in str(kernel.stages[kept[-1]].epilogue)
    x = np.random.default_rng(0).standard_normal((6, 10))
    want = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    np.testing.assert_allclose(evaluate_kernel(kernel, [x]), want.ravel(), rtol=1e-12)


def test_equal_reductions_are_one_stage_whatever_their_axes_are_called():
    x = TensorType((4, 5))

    def body(x):
        def total(i: Index, name: str) -> Scalar:
            k = Axis(name, 5)
            return reduce("sum", [k], x[i, k])

        return lambda i: total(i, "k") * total(i, "l")

    kernel = lower(TensorExpr.build([x], (4,), body))
    assert isinstance(kernel, LoopKernel), "one reduction, used twice"
    assert str(kernel.epilogue).replace("x-1[]", "acc") == "(acc * acc)"


def test_what_belongs_to_a_row_is_computed_once_a_row():
    def body(x):
        def at(i: Index, j: Index) -> Scalar:
            k = Axis("k", 7)
            square = reduce("sum", [k], x[i, k] * x[i, k])
            return x[i, j] * apply("rsqrt", square * (1 / 7) + 1e-6)

        return at

    kernel = lower(TensorExpr.build([TensorType((3, 7))], (3, 7), body))
    assert isinstance(kernel, StagedKernel)
    assert "rsqrt" in str(kernel.stages[0].epilogue)
    assert "rsqrt" not in str(kernel.stages[1].epilogue)


def test_results_between_stages_fit_the_stack_or_are_recomputed():
    longest = SCRATCH_BYTES // 4
    assert len(lower(softmax(2, longest // 2)).sequences) == 2
    assert len(lower(softmax(2, longest + 1)).sequences) == 1, "a row of exponentials does not fit"

    def body(x):
        def at(i: Index) -> Scalar:
            j, k = Axis("j", longest + 1), Axis("k", 3)
            return reduce("max", [j], apply("exp", reduce("sum", [k], x[i, j, k])))

        return at

    with pytest.raises(UnsupportedError, match="stages would keep"):
        lower(TensorExpr.build([TensorType((2, longest + 1, 3))], (2,), body))


def test_a_reduction_under_a_bounds_test_is_refused():
    def body(x):
        def at(i: Index, j: Index) -> Scalar:
            def total(row: Index, name: str) -> Scalar:
                k = Axis(name, 5)
                return reduce("sum", [k], x[row, k])

            shifted = when([(i - 1, 0, 4)], total(i - 1, "k"), apply("neg", x[i, j]))
            return shifted + total(i, "l") * 2.0

        return at

    with pytest.raises(UnsupportedError, match="bounds test"):
        lower(TensorExpr.build([TensorType((4, 5))], (4, 5), body))


@settings(max_examples=100)
@given(staged_exprs(), st.integers(0, 99))
def test_stages_keep_the_meaning(expr, seed):
    kernel = lower(expr)
    rng = np.random.default_rng(seed)
    arrays = [rng.uniform(0.5, 2, t.shape) for t in expr.inputs]
    want = np.asarray(evaluate_expr(expr, arrays, double=True)).ravel()
    np.testing.assert_allclose(evaluate_kernel(kernel, arrays), want, rtol=1e-9)
    if isinstance(kernel, StagedKernel):
        for sequence in kernel.sequences:
            one = StagedKernel(
                kernel.inputs, kernel.shared, kernel.stages, (sequence,), kernel.out_type, kernel.fill, kernel.across
            )
            np.testing.assert_allclose(evaluate_kernel(one, arrays), want, rtol=1e-9)
