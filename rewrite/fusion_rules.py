"""Fusion: the rules that turn operators into kernels and kernels into larger kernels.

    op(x…)                        -> Call(kernel of op, [x…])                       lower_operator
    Call(k, [… Call(p, ys) …])    -> Call(k with p inlined, [… ys])                 the fuse_* rules

Every such rule is an equation whatever its condition says: inlining never changes values. The conditions keep the
e-graph small and the kernels lowerable; the property test composes random kernels and compares with running both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .kernel import (
    MAX_INPUTS,
    Kernel,
    epilogue,
    epilogue_residual,
    prologue_arithmetic,
    prologue_broadcast,
    prologue_movement,
)


@dataclass(frozen=True)
class FusionRule:
    """`Call(k, […, Call(p, ys) at i, …]) -> Call(fuse(k, i, p), [… without i, ys])` if `when(k, i, p)`.

    With `dominates`, the unfused call is subsumed: it can never be better, so nothing more is derived from it.
    """

    name: str
    when: Callable[[Kernel, int, Kernel], bool]
    dominates: bool = False
    kind: str = "fusion"
    level: str = "graph"

    @property
    def doc(self) -> str:
        return " ".join((self.when.__doc__ or "").split())

    @property
    def condition(self) -> str:
        return f"{self.when.__name__}(consumer, position, producer)"

    @property
    def where(self) -> str:
        return f"{self.when.__code__.co_filename}:{self.when.__code__.co_firstlineno}"

    def __str__(self) -> str:
        return f"{self.name}: Call(k, [.. Call(p, ys) ..]) -> Call(fuse(k, i, p), [.. ys])  if {self.condition}"


FUSION_RULES = (
    FusionRule("fuse_broadcast_prologue", prologue_broadcast, dominates=True),
    FusionRule("fuse_movement_prologue", prologue_movement),
    FusionRule("fuse_arithmetic_prologue", prologue_arithmetic),
    FusionRule("fuse_epilogue", epilogue),
    FusionRule("fuse_residual_epilogue", epilogue_residual),
)

#: Operand positions at which fusion is tried.
POSITIONS = range(MAX_INPUTS)
