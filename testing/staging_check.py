"""The property test of a staging rule: the kernel with a stage more, as it is lowered, computes what it did without."""

from __future__ import annotations

import numpy as np

from ..ir.loops import StagedKernel, lower
from ..ir.operator import Chooser, Reject, operator
from ..ir.types import TensorType
from ..rewrite.fusion_rules import StagingRule
from ..rewrite.kernel import keep_operand
from .choosing import Outcome, Refuted, retried, search
from .graph_check import side_text
from .kernels import Tree, draw_op, one_operator, with_prologue
from .values import data_sets, evaluate_kernel, first_difference, in_numpy, says_something

Case = tuple[Tree, int]

#: Extents of an operand's last two axes.
LARGE = (16, 17, 19, 24)


def check_staging_rule(rule: StagingRule, examples: int, seed: int) -> Outcome[Case]:
    """Search for a kernel that the rule gives a stage and should not."""

    def draw(c: Chooser) -> Case:
        case = retried(_draw, c)
        if not _applies(rule, case):
            raise Reject
        return case

    return search(lambda c: retried(draw, c), lambda case: _holds(case, seed), examples, seed)


def _draw(c: Chooser) -> Case:
    """A contraction of large tensors, as such are drawn, perhaps with a prologue; and one of its operands."""
    op = draw_op(c, ("contraction",))
    large = TensorType((*(c.pick((1, 2, 3)) for _ in range(c.integer(0, 2))), c.pick(LARGE), c.pick(LARGE)))
    known: list[TensorType | None] = [None] * (operator(op).arity or 2)
    known[c.integer(0, len(known) - 1)] = large
    tree = with_prologue(c, one_operator(c, op, "x", known), "p")
    return tree, c.integer(0, len(tree.names) - 1)


def _applies(rule: StagingRule, case: Case) -> bool:
    """Whether the rule takes the kernel; an exception in its condition counts, so that the test reports it."""
    tree, i = case
    try:
        return rule.when(tree.kernel, i)
    except Exception as e:
        raise Refuted(f"{tree}, operand {i}\nthe condition raises {type(e).__name__}: {e}") from None


def _holds(case: Case, seed: int) -> None:
    tree, i = case
    kernel = lower(keep_operand(tree.kernel, i).expr)
    if not isinstance(kernel, StagedKernel):
        raise Refuted(f"{tree}, operand {i}\nhas no stages: {kernel}")
    informative = False
    for arrays in data_sets(tree.pattern, tree.env, seed):
        want = in_numpy(tree.pattern, tree.env, arrays)
        got = evaluate_kernel(kernel, [np.ravel(arrays[n]) for n in tree.names]).reshape(want.shape)
        at = first_difference(want, got)
        if at is not None:
            raise Refuted(f"{tree}, operand {i}\n{side_text('without', want, at)}\n{side_text('with', got, at)}")
        informative |= says_something(want)
    if not informative:
        raise Reject
