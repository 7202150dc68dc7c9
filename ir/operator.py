"""What an operator declaration is, and the table that holds them.

One `Operator` gives name, attributes, type rule, tensor expression, JAX reference and a sampler of legal instances.
Shape inference, the egglog constructor, the lowering to loops, the Hypothesis strategies and the documentation are
all derived from it. The tensor expression and the JAX reference are independent statements of the meaning; a
property test holds them against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from .attrs import Attrs
from .errors import TypeRuleError, UnknownNameError
from .expr import TensorExpr
from .types import TensorType

T = TypeVar("T")
Types = tuple[TensorType, ...]


class Chooser(Protocol):
    """A source of decisions for samplers; Hypothesis is behind it in tests, so that failures shrink."""

    def integer(self, lo: int, hi: int) -> int: ...

    def pick(self, options: Sequence[T]) -> T: ...


class Reject(Exception):
    """A sampler could not complete the given partial instance; the caller draws again."""


Known = Sequence[TensorType | None]
Sampler = Callable[[Chooser, Known, TensorType | None], tuple[Sequence[TensorType], Attrs]]


#: How a kernel may read an operator's result: as the rules of fusion find good (""), always through it ("always":
#: storing it only adds work), in the operand's blocks if it is a constant ("blocks"), never through it ("stored"), or
#: as a conversion of what is stored ("conversion").
INLININGS = ("", "always", "blocks", "stored", "conversion")


@dataclass(frozen=True)
class Operator:
    """One operator of the graph language.

    infer(types, attrs): the result type; raises `TypeRuleError`.
    expr(types, attrs): the tensor expression.
    reference(*arrays, **attrs): the result in JAX.
    sample(chooser, known inputs, wanted output): a legal instance; `known` holds None where the type is free.
    inlining: how kernels read a result of it, one of `INLININGS`; what the fusion rules ask.
    steps: whether the result jumps where an operand passes some value (`ScalarFn.steps`), by the attributes.
    folds: of constants it is computed at compile time; otherwise kernels may also read constants through it.
    """

    name: str
    attrs: tuple[str, ...]
    arity: int | None
    infer: Callable[[Types, Attrs], TensorType]
    expr: Callable[[Types, Attrs], TensorExpr]
    reference: Callable[..., Any]
    sample: Sampler
    doc: str
    family: str = "other"
    inlining: str = ""
    folds: bool = True
    steps: Callable[[Attrs], bool] | None = None

    def check(self, types: Types, attrs: Attrs) -> TensorType:
        """Result type, after checking arity and attribute names. Raises `TypeRuleError`."""
        if self.arity is not None and len(types) != self.arity:
            raise TypeRuleError(f"{self.name} takes {self.arity} operands, {len(types)} given")
        if tuple(attrs) != tuple(sorted(self.attrs)):
            raise TypeRuleError(f"{self.name} has attributes ({', '.join(self.attrs)}), given ({attrs!r})")
        try:
            return self.infer(types, attrs)
        except TypeRuleError as e:
            shown = ", ".join(map(str, types))
            raise TypeRuleError(f"{self.name}({shown}; {attrs!r}): {e}") from None


OPERATORS: dict[str, Operator] = {}


def declare(op: Operator) -> Operator:
    if op.name in OPERATORS:
        raise TypeRuleError(f"operator {op.name!r} is declared twice")
    if op.inlining not in INLININGS:
        raise TypeRuleError(f"operator {op.name!r}: inlining {op.inlining!r} is not one of {', '.join(INLININGS)}")
    OPERATORS[op.name] = op
    return op


def operator(name: str) -> Operator:
    """The declaration of an operator. Raises `UnknownNameError`."""
    from . import ops  # noqa: F401 (fills the table)

    if name not in OPERATORS:
        raise UnknownNameError(f"operator {name!r} does not exist; `nestegg.ir.operator.OPERATORS` lists them")
    return OPERATORS[name]


def require(condition: bool, message: str) -> None:
    """Raise `TypeRuleError(message)` unless the condition holds."""
    if not condition:
        raise TypeRuleError(message)


def axis_in(axis: int, rank: int) -> int:
    """An axis, which may count from the last one backwards (-1), counted from the first. Raises `TypeRuleError`."""
    require(-rank <= axis < rank, f"axis {axis} of a tensor of rank {rank}")
    return axis % rank
