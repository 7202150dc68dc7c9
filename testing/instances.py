"""Instances of patterns: types and attributes for every variable, drawn through the operators' own samplers.

A pattern is filled from its most demanding operand: that one is drawn freely, the sampler of the operator
above it says which types the other operands must have, and those are passed down to operators that can meet a
wish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir.attrs import Attrs
from ..ir.errors import TypeRuleError
from ..ir.operator import Chooser, Operator, Reject, operator
from ..ir.ops import some_shape
from ..ir.types import TensorType
from ..rewrite.pattern import Apply, Environment, Pattern, Record, Var, records, tensors, type_of
from ..rewrite.rule import GraphRule

#: Operators whose samplers can make a wanted result, besides the elementwise ones.
MAKES_WANTED = frozenset({"broadcast", "reshape", "transpose", "reverse"})
#: Element types that an instance may have instead of f32; the first is the one that failures shrink to.
VARIANTS = ("f32", "f32", "f32", "f64", "i32", "u8", "bool")
_DTYPES = {"f32"}


def obliging(op: str) -> bool:
    """The operator's sampler can be asked for a result type."""
    return op in MAKES_WANTED or operator(op).family == "elementwise"


@dataclass(frozen=True)
class Instance:
    """A legal application of an operator."""

    op: str
    types: tuple[TensorType, ...]
    attrs: Attrs
    result: TensorType

    def __str__(self) -> str:
        inside = ", ".join(map(str, self.types))
        return f"{self.op}({inside}{'; ' if len(self.attrs) else ''}{self.attrs!r}) : {self.result}"


def draw_instance(
    c: Chooser, op: Operator, known: Sequence[TensorType | None] = (), out: TensorType | None = None
) -> Instance:
    """A legal application, given some operands or the result. Raises `Reject` or `TypeRuleError`."""
    slots = list(known) or [None] * (c.integer(1, 3) if op.arity is None else op.arity)
    types, attrs = op.sample(c, slots, out)
    result = op.check(tuple(types), attrs)
    if any(k is not None and k != t for k, t in zip(slots, types, strict=True)) or out not in (None, result):
        raise Reject
    return Instance(op.name, tuple(types), attrs, result)


@dataclass
class Filling:
    """A binding in the making. `made`: the operator instances so far, which later ones may repeat."""

    chooser: Chooser
    env: dict[str, Any]
    made: list[Instance] = field(default_factory=list)

    def fill(self, p: Pattern, out: TensorType | None = None) -> TensorType:
        """Bind the pattern's variables; its type. Raises `Reject` where the samplers do not meet."""
        if isinstance(p, Var):
            have = self.env.setdefault(p.name, out or TensorType(some_shape(self.chooser)))
            if out not in (None, have):
                raise Reject
            return have
        known = [self.env.get(a.name) if isinstance(a, Var) else None for a in p.args]
        first = self._demanding(p, out)
        if first is not None:
            known[first] = self.fill(p.args[first])
        made = self._instance(p, known, out)
        self.made.append(made)
        if isinstance(p.attrs, Record):
            self.env[p.attrs.name] = made.attrs
        for k, (a, t) in enumerate(zip(p.args, made.types, strict=True)):
            if k != first:
                self.fill(a, t)
        return made.result

    def complete(self, p: Pattern) -> None:
        """Bind what is not bound yet."""
        if any(n not in self.env for n in (*tensors(p), *records(p))):
            self.fill(p)

    def _demanding(self, p: Apply, out: TensorType | None) -> int | None:
        """The operand to draw before the operator: one that cannot be asked for a type, or any."""
        nested = [k for k, a in enumerate(p.args) if isinstance(a, Apply)]
        stubborn = [k for k in nested if not _obliging_all(p.args[k])]
        if stubborn:
            return stubborn[0]
        return (
            self.chooser.pick(nested) if nested and out is None and self.chooser.integer(0, 1) == 0 else None
        )

    def _instance(self, p: Apply, known: list[TensorType | None], out: TensorType | None) -> Instance:
        bound = self.env.get(p.attrs.name) if isinstance(p.attrs, Record) else None
        same = [i for i in self.made if self._repeats(i, p, known, out, bound)]
        if same and self.chooser.integer(0, 3) > 0:
            return self.chooser.pick(same)
        declared = operator(p.op)
        fixed = isinstance(p.attrs, tuple) and bool(p.attrs)
        drawn = draw_instance(self.chooser, declared, known, None if fixed or bound is not None else out)
        attrs = drawn.attrs if bound is None else bound
        if fixed:
            attrs = Attrs(**{**attrs, **dict(p.attrs)})  # type: ignore[arg-type]
        result = declared.check(drawn.types, attrs)
        if out not in (None, result):
            raise Reject
        return Instance(p.op, drawn.types, attrs, result)

    def _repeats(
        self,
        i: Instance,
        p: Apply,
        known: list[TensorType | None],
        out: TensorType | None,
        bound: Attrs | None,
    ) -> bool:
        fits = len(known) == len(i.types) and all(k in (None, t) for k, t in zip(known, i.types, strict=True))
        attrs = dict(p.attrs) if isinstance(p.attrs, tuple) else bound or {}
        agrees = all(i.attrs.get(k) == v for k, v in attrs.items())
        return i.op == p.op and fits and agrees and out in (None, i.result)


def _obliging_all(p: Pattern) -> bool:
    return isinstance(p, Var) or (obliging(p.op) and all(map(_obliging_all, p.args)))


# --- bindings of a rule ------------------------------------------------------------------------------


def draw_binding(c: Chooser, rule: GraphRule) -> dict[str, Any]:
    """Types and attributes for which a rule's left sides are well-typed, whatever its condition says.

    From the rule's own sampler if it has one, but not only: what that never draws may be what the condition
    forgot.
    """
    lefts = [w.left for w in rule.rewrites]
    own = rule.draw is not None and c.pick((True, True, False))
    start = dict(rule.draw(c)) if own and rule.draw is not None else {}
    filling = Filling(c, start)
    for left in lefts:
        filling.complete(left)
    env = filling.env
    if own and c.integer(0, 2) == 2:
        env = _varied(c, env)
    env = _other_dtype(c, env, lefts)
    for left in lefts:
        type_of(left, env)
    return {n: env[n] for n in rule.variables if n in env}


def _other_dtype(c: Chooser, env: Mapping[str, Any], lefts: Sequence[Pattern]) -> dict[str, Any]:
    """The binding in another element type, if the left sides exist in it."""
    dtype = c.pick(VARIANTS)
    changed = {
        n: v.with_dtype(dtype) if isinstance(v, TensorType) and v.dtype in _DTYPES else v
        for n, v in env.items()
    }
    try:
        for left in lefts:
            type_of(left, changed)
    except TypeRuleError:
        return dict(env)
    return changed


def _varied(c: Chooser, env: Environment) -> dict[str, Any]:
    """A near miss of a binding: one attribute or one extent changed."""
    name = c.pick(sorted(env))
    value = env[name]
    if isinstance(value, TensorType):
        if not value.rank:
            raise Reject
        axis = c.integer(0, value.rank - 1)
        shape = tuple(c.integer(1, 4) if d == axis else n for d, n in enumerate(value.shape))
        return {**env, name: value.with_shape(shape)}
    if not len(value):
        raise Reject
    key = c.pick(tuple(value))
    return {**env, name: value.replace(**{key: _near(c, value[key])})}


def _near(c: Chooser, value: Any) -> Any:
    if isinstance(value, tuple) and value:
        at = c.integer(0, len(value) - 1)
        if all(isinstance(v, int) for v in value) and len(value) > 1 and c.integer(0, 1):
            other = c.integer(0, len(value) - 1)
            swapped = list(value)
            swapped[at], swapped[other] = value[other], value[at]
            return tuple(swapped)
        return tuple(_near(c, v) if k == at else v for k, v in enumerate(value))
    if isinstance(value, bool) or not isinstance(value, int):
        raise Reject
    return max(0, value + c.pick((1, -1)))


def binding_text(env: Environment) -> str:
    return ", ".join(f"{n}: {v}" if isinstance(v, TensorType) else f"{n} = ({v!r})" for n, v in env.items())
