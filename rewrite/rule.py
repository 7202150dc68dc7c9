"""How a rule is authored: a decorated Python function whose body is the two sides.

    @rule("algebra", when=lambda b: b.dims == (1,))
    def scale_into_conv(x, w, s, *, c, b):
        '''A per-channel factor after a convolution goes into its weights.'''
        return op.mul(op.conv(x, w, c), op.broadcast(s, b)) >> op.conv(x, op.mul(w, …), c)

Positional parameters are tensor variables, keyword-only ones attribute records. From this one declaration
come the egglog rewrite, the listing, the statistics line and the property test
(`nestegg.testing.check_rule`). Users write rules in their own files with the same decorator; nothing is
special about ours.
"""

from __future__ import annotations

import inspect
import runpy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..ir.errors import NesteggError, RuleError
from .fusion_rules import FusionRule, KernelRule, StagingRule
from .loop_language import LoopRule
from .pattern import (
    RESULT,
    Environment,
    Record,
    Rewrite,
    Var,
    calibrated_name,
    call,
    functions,
    parameters,
    records,
    tensors,
    value_name,
)
from .saturate import KINDS


@dataclass(frozen=True)
class GraphRule:
    """A rewrite rule of graph programs: an equation, or a `lossy` approximation.

    `when`: condition over types and attributes (None: always). `const`: tensor variables that must be known
    at compile time; `varies`: that must not. `rewrites`: the left and right sides (several lefts must match
    together). `draw`: optional sampler of instances for the property test, a function of a `Chooser` returning
    a partial binding. `calibrated`: tensor variables (or `result`, the left side) whose calibration it needs, as
    `x_calibrated`: the rule is then an approximation, whose right side states its `loss`, and applies only to tensors
    with a calibration, in programs with an accuracy budget. `values`: constant variables whose arrays it asks for, as
    `w_value`. `gain`: how many times larger than the left side's the right side's rounding errors may be.
    `dominates`: the left side can never be better; nothing more is derived from it. `rounds`: the sides may differ in
    the last bit, so that it does not apply to what an operator reads whose result then jumps (`Operator.steps`).
    """

    name: str
    kind: str
    doc: str
    variables: tuple[str, ...]
    rewrites: tuple[Rewrite, ...]
    when: Callable[..., bool] | None
    const: tuple[str, ...]
    draw: Callable[..., Environment] | None
    file: str
    line: int
    varies: tuple[str, ...] = ()
    calibrated: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    gain: float = 1.0
    dominates: bool = False
    rounds: bool = False
    level: str = "graph"

    @property
    def lossy(self) -> bool:
        return bool(self.calibrated)

    def holds(self, env: Environment) -> bool:
        return self.when is None or bool(call(self.when, env))

    @property
    def condition(self) -> str:
        """The condition as text."""
        parts = [f"{c} constant" for c in self.const] + [f"{v} not constant" for v in self.varies]
        parts += [f"{v} calibrated" for v in self.calibrated]
        if self.when is not None:
            parts.append(condition_text(self.when))
        if self.rounds:
            parts.append("nothing that jumps reads the result")
        if self.gain > 1:
            parts.append(f"rounding errors may grow {self.gain:.1f} times")
        return " and ".join(parts) or "always"

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.name}: " + "; ".join(map(str, self.rewrites)) + f"  if {self.condition}"


def condition_text(f: Callable[..., Any]) -> str:
    if f.__name__ != "<lambda>":
        return f"{f.__name__}({', '.join(parameters(f))})"
    try:
        source = inspect.getsource(f)
    except OSError:
        return f"<condition on {', '.join(parameters(f))}>"
    text = source[source.index("lambda") :].split(":", 1)[1].strip()
    depth = 0
    for k, ch in enumerate(text):
        depth += (ch in "([{") - (ch in ")]}")
        if depth < 0 or (ch == "," and depth == 0) or (ch == "\n" and depth == 0):
            return " ".join(text[:k].split())
    return " ".join(text.split())


def rule(
    kind: str,
    *,
    when: Callable[..., bool] | None = None,
    const: Sequence[str] = (),
    varies: Sequence[str] = (),
    calibrated: Sequence[str] = (),
    values: Sequence[str] = (),
    draw: Callable[..., Environment] | None = None,
    gain: float = 1.0,
    dominates: bool = False,
    rounds: bool = False,
) -> Callable[[Callable[..., Any]], GraphRule]:
    """Declare a graph rule. Raises `RuleError` naming the file and line of a malformed one."""

    def decorate(f: Callable[..., Any]) -> GraphRule:
        file, line = f.__code__.co_filename, f.__code__.co_firstlineno
        try:
            made = _make(f, kind, when, tuple(const), tuple(varies), draw, tuple(calibrated), tuple(values))
            return replace(made, file=file, line=line, gain=gain, dominates=dominates, rounds=rounds)
        except RuleError as e:
            raise RuleError(f"{file}:{line}: rule {f.__name__}: {e}") from None

    return decorate


def equation(
    kind: str, *, when: Callable[..., bool] | None = None, draw: Callable[..., Environment] | None = None
) -> Callable[[Callable[..., Rewrite]], tuple[GraphRule, GraphRule]]:
    """Declare a rule and its converse, `NAME` and `NAME_back`: `left -> right` and `right -> left`.

    Both sides must bind the same variables. Raises `RuleError` naming the file and line of a malformed one.
    """

    def decorate(f: Callable[..., Rewrite]) -> tuple[GraphRule, GraphRule]:
        there = rule(kind, when=when, draw=draw)(f)
        ((left, right),) = ((r.left, r.right) for r in there.rewrites)
        missing = {*tensors(left), *records(left)} ^ {*tensors(right), *records(right)}
        if missing or isinstance(right, Var) or any(True for _ in functions(right)):
            names = ", ".join(sorted(missing)) or "a function"
            raise RuleError(f"{there.where}: equation {there.name}: one side alone has {names}")
        back = replace(there, name=f"{there.name}_back", doc=f"{there.doc} (backwards)", rewrites=(right >> left,))
        return there, back

    return decorate


def _make(
    f: Any,
    kind: str,
    when: Any,
    const: tuple[str, ...],
    varies: tuple[str, ...],
    draw: Any,
    calibrated: tuple[str, ...],
    values: tuple[str, ...],
) -> GraphRule:
    if kind not in KINDS:
        raise RuleError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    signature = inspect.signature(f).parameters.values()
    tensor_vars = [p.name for p in signature if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    record_vars = [p.name for p in signature if p.kind is inspect.Parameter.KEYWORD_ONLY]
    try:
        body = f(*map(Var, tensor_vars), **{r: Record(r) for r in record_vars})
    except NesteggError as e:
        raise RuleError(str(e)) from None
    rewrites = (body,) if isinstance(body, Rewrite) else body
    if not isinstance(rewrites, tuple) or not all(isinstance(r, Rewrite) for r in rewrites) or not rewrites:
        raise RuleError("the body must return `left >> right`, or a tuple of those")
    found = {n for r in rewrites if not isinstance(r.left, Var) for n in tensors(r.left)}
    if any(isinstance(r.left, Var) and r.left.name not in found for r in rewrites):
        raise RuleError("the left side of a rule is a bare variable: it would match everything")
    bound = {n for r in rewrites for n in (*tensors(r.left), *records(r.left))}
    used = {n for r in rewrites for n in (*tensors(r.right), *records(r.right))}
    asked = {n for r in rewrites for g in (*functions(r.left), *functions(r.right)) for n in parameters(g)}
    asked |= set(parameters(when)) if when else set()
    asked -= {calibrated_name(v) for v in calibrated} | {value_name(v) for v in values}
    for names, what in (
        (used, "the right side uses"),
        (asked, "a condition or attribute asks for"),
        (set(const), "const names"),
        (set(varies), "varies names"),
        (set(calibrated) - {RESULT}, "calibrated names"),
        (set(values), "values names"),
    ):
        if names - bound:
            raise RuleError(f"{what} {', '.join(sorted(names - bound))}, which the left side does not bind")
    for r in rewrites:
        if any(True for _ in functions(r.left)):
            raise RuleError(
                "attributes on the left side are fixed values or one record variable, not functions"
            )
    doc = " ".join((inspect.getdoc(f) or "").split())
    variables = (*tensor_vars, *record_vars)
    return GraphRule(
        f.__name__, kind, doc, variables, rewrites, when, const, draw, "", 0, varies, calibrated, values
    )


def load_rules(path: str | Path) -> list[GraphRule | KernelRule | LoopRule]:
    """The rules that a Python file declares at its top level, of any level, in the order of their lines.

    Rules that it merely imports do not count. Raises `RuleError` naming the file and line at fault.
    """
    path = Path(path)
    if not path.is_file():
        raise RuleError(f"{path}: no such file of rules")
    try:
        names = runpy.run_path(str(path), run_name="nestegg_rules")
    except NesteggError:
        raise
    except SyntaxError as e:
        raise RuleError(f"{path}:{e.lineno}: {e.msg}") from None
    except Exception as e:
        line = _line_in(e, str(path))
        raise RuleError(f"{path}:{line}: {type(e).__name__}: {e}") from None
    values = [v for each in names.values() for v in (each if isinstance(each, tuple) else (each,))]  # equations are two
    rules = [v for v in values if isinstance(v, (GraphRule, FusionRule, StagingRule, LoopRule))]
    found = list({id(r): r for r in rules if Path(r.where.rpartition(":")[0]) == path}.values())
    if not found:
        raise RuleError(
            f"{path}: declares no rule; decorate a function with `@rule(kind)` or `@loop_rule(kind, phase=…)`"
        )
    return distinct(sorted(found, key=lambda r: int(r.where.rpartition(":")[2])))


class Named(Protocol):
    """What every rule of either level has."""

    @property
    def name(self) -> str: ...

    @property
    def where(self) -> str: ...


R = TypeVar("R", bound=Named)


def distinct(rules: Iterable[R]) -> list[R]:
    """The rules, if no two share a name. Raises `RuleError` naming both places."""
    seen: dict[str, R] = {}
    for r in rules:
        if seen.setdefault(r.name, r) is not r:
            raise RuleError(
                f"{r.where}: rule {r.name} is declared at {seen[r.name].where} already; rename one"
            )
    return list(seen.values())


def _line_in(error: BaseException, path: str) -> int:
    line, tb = 0, error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == path:
            line = tb.tb_lineno
        tb = tb.tb_next
    return line
