"""All shipped rules of both levels: what `nestegg rules` prints and `nestegg check-rules` tests."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.errors import UnknownNameError
from ..ir.intrinsic import all_intrinsics
from .fusion_rules import KernelRule
from .graph_rules import graph_rules
from .language import lowering_rules
from .loop_language import LoopRule
from .loop_rules import LOOP_RULES
from .quantization_rules import quantization_rules
from .rule import GraphRule, distinct
from .substitution_rules import SUBSTITUTIONS

__all__ = ["LoweringRule", "Rule", "all_rules", "distinct", "named"]


@dataclass(frozen=True)
class LoweringRule:
    """`op(x…) -> Call(kernel of op, [x…])`, for every operator (`language.lowering_rules`)."""

    name: str = "lower_operator"
    kind: str = "lowering"
    level: str = "graph"
    doc: str = "op(x…) -> Call(kernel of op, [x…]): an operator is run as its tensor expression says."
    condition: str = "always"

    @property
    def where(self) -> str:
        return f"{inspect.getsourcefile(lowering_rules)}:{inspect.getsourcelines(lowering_rules)[1]}"

    def __str__(self) -> str:
        return f"{self.name}: op(x…) -> Call(kernel of op, [x…])"


Rule = GraphRule | KernelRule | LoweringRule | LoopRule


def all_rules(lanes: int = 16) -> list[Rule]:
    """Every shipped rule, for vectors of `lanes` elements: name, kind, level, condition, doc, where."""
    lossy = {r.name: r for scales in ("any", "power-of-two") for r in quantization_rules(scales)}
    graph = (*graph_rules(lanes, all_intrinsics(lanes), gain=math.inf, threads=2), *SUBSTITUTIONS, *lossy.values())
    return [*graph, LoweringRule(), *LOOP_RULES]


def named(rules: Sequence[Rule], name: str) -> Rule:
    """The rule of that name. Raises `UnknownNameError`."""
    for r in rules:
        if r.name == name:
            return r
    raise UnknownNameError(
        f"rule {name!r} does not exist; choose one of {', '.join(sorted(r.name for r in rules))}"
    )
