"""Checking rules: one call a rule, whatever its level, and the report of `nestegg check-rules`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..ir.errors import RuleError
from ..rewrite.catalogue import LoweringRule, Rule, all_rules, distinct, named
from ..rewrite.fusion_rules import FusionRule, StagingRule
from ..rewrite.loop_language import LoopRule
from ..rewrite.rule import GraphRule, load_rules
from .fusion_check import check_fusion_rule
from .graph_check import check_graph_rule
from .loop_check import check_loop_rule
from .lowering_check import check_lowering
from .staging_check import check_staging_rule

Status = Literal["proved", "tested", "refuted", "vacuous"]

EXAMPLES = 100
#: One example in so many is evaluated by the operators' JAX references too (at least `MIN_JAX`).
JAX_EVERY, MIN_JAX = 20, 4


@dataclass(frozen=True)
class RuleCheck:
    """The verdict on a rule.

    `status`: `refuted` comes with a `counterexample`, the smallest found; `vacuous` means that no drawn
    instance met the rule's condition, so that nothing is known; `tested` means that all `examples` passed.
    `proved` is reserved for checks that leave nothing out.
    """

    name: str
    kind: str
    level: str
    status: Status
    examples: int
    counterexample: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        return self.status in ("proved", "tested")

    def __str__(self) -> str:
        head = f"{self.name}: {self.status} ({self.examples} examples, {self.seconds:.1f} s)"
        return head if self.counterexample is None else f"{head}\n{self.counterexample}"


def check_rule(rule: Rule, examples: int = EXAMPLES, seed: int = 0) -> RuleCheck:
    """Test a rule on drawn instances; the same seed draws the same ones.

    Graph and fusion rules: both sides have one type and, in float64, one value, in NumPy for every example
    and in JAX for some. Loop rules: the nests they make visit every point of the block exactly once.
    """
    begun = time.perf_counter()
    count, counterexample = _run(rule, examples, seed)
    status: Status = "refuted" if counterexample else "tested" if count else "vacuous"
    return RuleCheck(
        rule.name, rule.kind, rule.level, status, count, counterexample, time.perf_counter() - begun
    )


def _run(rule: Rule, examples: int, seed: int) -> tuple[int, str | None]:
    """The number of examples that counted, and the counterexample."""
    in_jax = max(MIN_JAX, examples // JAX_EVERY)
    if isinstance(rule, LoopRule):
        outcome, blocks = check_loop_rule(rule, examples, seed)
        return max(blocks, outcome.examples), outcome.failure
    if isinstance(rule, GraphRule):
        found = check_graph_rule(rule, examples, in_jax, seed)
        return found.examples, found.failure
    if isinstance(rule, FusionRule):
        pairs = check_fusion_rule(rule, examples, in_jax, seed)
        return pairs.examples, pairs.failure
    if isinstance(rule, StagingRule):
        cases = check_staging_rule(rule, examples, seed)
        return cases.examples, cases.failure
    if isinstance(rule, LoweringRule):
        instances = check_lowering(examples, seed)
        return instances.examples, instances.failure
    raise RuleError(
        f"{rule!r} is not a rule; decorate a function with `@rule(kind)` or `@loop_rule(kind, phase=…)`"
    )


def check_rules(
    rules: Iterable[Rule],
    examples: int = EXAMPLES,
    seed: int = 0,
    progress: Callable[[RuleCheck], None] = lambda check: None,
) -> list[RuleCheck]:
    """Check several rules; `progress` is called after each."""
    out = []
    for r in rules:
        out.append(check_rule(r, examples, seed))
        progress(out[-1])
    return out


def to_json(checks: Sequence[RuleCheck]) -> dict[str, Any]:
    """`{"rules": [{name, kind, level, status, examples, counterexample}]}`."""
    fields = ("name", "kind", "level", "status", "examples", "counterexample")
    return {"rules": [{f: getattr(c, f) for f in fields} for c in checks]}


def shipped_rules() -> list[Rule]:
    """All rules that nestegg ships, as they are for this machine."""
    from ..ir.target import host

    return all_rules(host().lanes())


def rules_to_check(rule: str | None = None, rules_file: Path | None = None) -> list[Rule]:
    """The rules of a file, or else the shipped ones; only the one of that name if a name is given.

    Raises `RuleError` for a file that declares none or is malformed, `UnknownNameError` for an unknown name.
    """
    shipped = shipped_rules()
    own: list[Rule] = list(load_rules(rules_file)) if rules_file is not None else []
    distinct([*shipped, *own])
    if rule is not None:
        return [named(own or shipped, rule)]
    return own or shipped


def check_rules_command(
    rule: str | None = None,
    rules_file: Path | None = None,
    examples: int = EXAMPLES,
    progress: Callable[[RuleCheck], None] = lambda check: None,
) -> dict[str, Any]:
    """What `nestegg check-rules [--rule NAME] [--rules FILE] [--examples N] --json` prints.

    The command fails unless every status is `tested` or `proved`.
    """
    return to_json(check_rules(rules_to_check(rule, rules_file), examples, progress=progress))
