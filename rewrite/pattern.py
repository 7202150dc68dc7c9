"""Patterns of graph rules: operators over variables, written as ordinary Python calls.

    op.mul(op.conv(x, w, c), op.broadcast(s, b)) >> op.conv(x, op.mul(w, op.broadcast(s, shape=…, dims=(0,))), c)

`x`, `w`, `s` stand for tensors, `c`, `b` for attribute records. On the left an operator's attributes are one record
variable, or fixed values by keyword; on the right also functions of the matched variables, named by their parameters:
`shape=lambda w: w.shape` (a tensor variable is seen as its `TensorType`, a record variable as its `Attrs`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

from ..ir.attrs import Attrs
from ..ir.errors import RuleError
from ..ir.graph import GraphBuilder, Value
from ..ir.operator import operator
from ..ir.types import TensorType
from .folded import Folded

Environment = Mapping[str, Any]
"""What a match binds: tensor variables to their `TensorType`, record variables to their `Attrs`; and, where the rule
asks for them, `x_calibrated` to a tensor's `Calibrated` and `w_value` to a constant's array."""

#: The left side itself, where calibrations are named.
RESULT = "result"


def calibrated_name(variable: str) -> str:
    return f"{variable}_calibrated"


def value_name(variable: str) -> str:
    return f"{variable}_value"


@dataclass(frozen=True)
class Rewrite:
    """One `left >> right` of a rule. A left side that is a variable stands for what another left side binds it to."""

    left: Pattern
    right: Pattern

    def __str__(self) -> str:
        return f"{self.left} -> {self.right}"


class _Arrow:
    def __rshift__(self, right: Pattern) -> Rewrite:
        assert isinstance(self, Var | Apply)
        return Rewrite(self, right)


@dataclass(frozen=True)
class Var(_Arrow):
    """A tensor variable."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Record:
    """An attribute-record variable."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Apply(_Arrow):
    """An operator applied to patterns. `attrs` is a record variable, or values and functions by attribute name."""

    op: str
    args: tuple[Pattern, ...]
    attrs: Record | tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        inside = ", ".join(map(str, self.args))
        if isinstance(self.attrs, Record):
            return f"{self.op}({inside}, {self.attrs})"
        shown = ", ".join(f"{k}={_source(v) if callable(v) else v}" for k, v in self.attrs)
        return f"{self.op}({inside}{', ' + shown if shown else ''})"


Pattern = Union[Var, Apply]  # noqa: UP007


def _source(f: Callable[..., Any]) -> str:
    return f"<{', '.join(parameters(f))}>"


def parameters(f: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(f).parameters)


def call(f: Callable[..., Any], env: Environment) -> Any:
    """Call a condition or attribute function with the variables that its parameters name."""
    return f(**{name: _seen(env[name]) for name in parameters(f)})


def _seen(value: Any) -> Any:
    return value.array if isinstance(value, Folded) else value


class _Operators:
    """`op.NAME(*patterns, record)` or `op.NAME(*patterns, attribute=value…)` builds an `Apply`."""

    def __getattr__(self, name: str) -> Callable[..., Apply]:
        if name.startswith("__"):
            raise AttributeError(name)
        declared = operator(name)

        def build(*args: Any, **attrs: Any) -> Apply:
            record: Any = tuple(sorted(attrs.items()))
            if args and isinstance(args[-1], Record):
                record, args = args[-1], args[:-1]
            if declared.arity is not None and len(args) != declared.arity:
                raise RuleError(f"{name} takes {declared.arity} operands, {len(args)} given")
            if not isinstance(record, Record) and set(attrs) != set(declared.attrs):
                wanted = ", ".join(declared.attrs) or "none"
                raise RuleError(f"{name} has attributes ({wanted}), given ({', '.join(attrs) or 'none'})")
            if any(not isinstance(a, (Var, Apply)) for a in args):
                raise RuleError(f"{name}: every operand is a tensor variable or an operator")
            return Apply(name, tuple(args), record)

        return build


op = _Operators()


def tensors(p: Pattern) -> Iterator[str]:
    """Names of the tensor variables, in order, with repeats."""
    if isinstance(p, Var):
        yield p.name
    else:
        for a in p.args:
            yield from tensors(a)


def applications(p: Pattern) -> Iterator[Apply]:
    """The operators applied, outermost first."""
    if isinstance(p, Apply):
        yield p
        for a in p.args:
            yield from applications(a)


def records(p: Pattern) -> Iterator[str]:
    if isinstance(p, Apply):
        if isinstance(p.attrs, Record):
            yield p.attrs.name
        for a in p.args:
            yield from records(a)


def functions(p: Pattern) -> Iterator[Callable[..., Any]]:
    if isinstance(p, Apply):
        if not isinstance(p.attrs, Record):
            yield from (v for _, v in p.attrs if callable(v))
        for a in p.args:
            yield from functions(a)


def resolve(p: Apply, env: Environment) -> Attrs:
    """The attributes of the top operator under a binding."""
    if isinstance(p.attrs, Record):
        return env[p.attrs.name]
    return Attrs(**{k: call(v, env) if callable(v) else v for k, v in p.attrs})


def type_of(p: Pattern, env: Environment) -> TensorType:
    """The type of a pattern under a binding. Raises `TypeRuleError` where an operator refuses its operands."""
    if isinstance(p, Var):
        return env[p.name]
    return operator(p.op).check(tuple(type_of(a, env) for a in p.args), resolve(p, env))


def instantiate(p: Pattern, env: Environment, builder: GraphBuilder, values: Mapping[str, Value]) -> Value:
    """The pattern as nodes of a graph, tensor variables taken from `values`."""
    if isinstance(p, Var):
        return values[p.name]
    args = [instantiate(a, env, builder, values) for a in p.args]
    return builder.op(p.op, *args, **resolve(p, env))
