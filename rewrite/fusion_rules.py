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
    ANY,
    MAX_STAGE_INPUTS,
    Kernel,
    epilogue,
    epilogue_layout,
    epilogue_residual,
    only_reader,
    prologue_alias,
    prologue_arithmetic,
    prologue_broadcast,
    prologue_filter,
    prologue_join,
    prologue_movement,
    prologue_of_reduction,
    prologue_unpack,
    prologue_widening,
    prologue_widening_integer,
    row_reduction,
    shared_operand,
    whole_prologue,
)


class _Conditional:
    """A rule that its condition `when` documents."""

    when: Callable[..., bool]

    @property
    def doc(self) -> str:
        return " ".join((self.when.__doc__ or "").split())

    @property
    def where(self) -> str:
        return f"{self.when.__code__.co_filename}:{self.when.__code__.co_firstlineno}"


@dataclass(frozen=True)
class FusionRule(_Conditional):
    """`Call(k, […, Call(p, ys) at i, …]) -> Call(fuse(k, i, p), [… ys in place of i …])` if `when(k, i, p)`.

    `consumer`, `producer`: traits (`kernel.TRAITS`) that k and p must have; e-matching joins on them before `when` is
    called. `const`: the tensor between them must be known at compile time. With `dominates`, the unfused call is
    subsumed: it can never be better, so nothing more is derived from it. With `widest`, only the kernels that fuse the
    most operators (of a genus: maps, row reductions, contractions) are considered, of either tensor, when the rules
    before it are done: one chain of fusions a tensor and genus. `renamed`: the tensor between must be nothing but an
    alias of others. `apart`: no other operand of the consumer may be computed from the tensor between, which is then
    needed in any case.
    """

    name: str
    when: Callable[[Kernel, int, Kernel], bool]
    consumer: str = "open"
    producer: str = ANY
    const: bool = False
    dominates: bool = False
    widest: bool = False
    sole: bool = False
    renamed: bool = False
    apart: bool = False
    kind: str = "fusion"
    level: str = "graph"

    @property
    def condition(self) -> str:
        constant = " and constant" if self.const else ""
        widest = " and both are their tensors' widest" if self.widest else ""
        widest += " and nothing else reads the tensor between" if self.sole else ""
        widest += " and the tensor between is an alias" if self.renamed else ""
        widest += " and no other operand needs the tensor between" if self.apart else ""
        return f"{self.when.__name__}({self.consumer} consumer, position, {self.producer} producer){constant}{widest}"

    def __str__(self) -> str:
        return f"{self.name}: Call(k, [.. Call(p, ys) ..]) -> Call(fuse(k, i, p), [.. ys])  if {self.condition}"


@dataclass(frozen=True)
class StagingRule(_Conditional):
    """`Call(k, xs) -> Call(k with operand i copied by a stage of its own, xs)` if `when(k, i)`, where neither operand i
    nor some other is known at compile time: constants are laid out as the operands that vary want it."""

    name: str
    when: Callable[[Kernel, int], bool]
    kind: str = "staging"
    level: str = "graph"

    @property
    def condition(self) -> str:
        return f"{self.when.__name__}(kernel, position) and neither the operand nor some other is constant"

    def __str__(self) -> str:
        return f"{self.name}: Call(k, xs) -> Call(keep(k, i), xs)  if {self.condition}"


STAGING_RULES = (StagingRule("keep_shared_operand", shared_operand),)

FUSION_RULES = (
    FusionRule("fuse_alias", prologue_alias, "open", "alias", dominates=True, renamed=True),
    FusionRule("fuse_broadcast_prologue", prologue_broadcast, "open_computing", "repeating", dominates=True),
    FusionRule("fuse_filter_prologue", prologue_filter, "filter", "filter", dominates=True),
    FusionRule("fuse_packed_constant", prologue_unpack, "open_computing", "unpacking", const=True, dominates=True),
    FusionRule("fuse_widening_integers", prologue_widening_integer, "open_computing", "converting", dominates=True),
    FusionRule("fuse_only_reader", only_reader, "map", ANY, dominates=True, sole=True),
    FusionRule("fuse_movement_prologue", prologue_movement, "open_of_few_joins", "moving"),
    FusionRule("fuse_join_prologue", prologue_join, "open_map", "joining"),
    FusionRule("fuse_arithmetic_prologue", prologue_arithmetic, "open_arithmetic", "computing_little"),
    FusionRule("fuse_reduction_prologue", prologue_of_reduction, "open_reduction", "computing"),
    FusionRule("fuse_widening_prologue", prologue_widening, "open", "converting"),
    FusionRule("fuse_epilogue", epilogue, "light_of_one", "reducing"),
    FusionRule("fuse_layout_epilogue", epilogue_layout, "light_layout", "reducing_unmoved"),
    FusionRule("fuse_residual_epilogue", epilogue_residual, "light_of_several", "reducing", apart=True),
    FusionRule("fuse_whole_prologue", whole_prologue, ANY, "map", widest=True),
    FusionRule("fuse_stage", row_reduction, ANY, "streaming", widest=True),
)

#: Rules of kernels.
KernelRule = FusionRule | StagingRule

#: Operand positions at which fusion is tried.
POSITIONS = range(MAX_STAGE_INPUTS)
