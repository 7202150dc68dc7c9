"""What a composite declaration is, the table that holds them, and samplers that declarations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .graph import Value
from .operator import Chooser
from .types import TensorType

Sample = tuple[Sequence[TensorType], dict[str, Any]]


@dataclass(frozen=True)
class Composite:
    """A named composition.

    build(*values, **attrs): the primitives; reference(*arrays, **attrs): the result in JAX; sample(chooser):
    operand types and attributes of a legal instance.
    """

    name: str
    build: Callable[..., Value]
    reference: Callable[..., Any]
    sample: Callable[[Chooser], Sample]


COMPOSITES: dict[str, Composite] = {}


def declare(
    build: Callable[..., Value], reference: Callable[..., Any], sample: Callable[[Chooser], Sample]
) -> None:
    name = build.__name__
    COMPOSITES[name] = Composite(name, build, reference, sample)


def in_jax(path: str) -> Callable[..., Any]:
    """A function of JAX by its dotted name, loaded when it is called."""

    def call(*args: Any, **attrs: Any) -> Any:
        import importlib

        module, name = path.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)(*args, **attrs)

    return call


# Samplers use few distinct shapes: JAX compiles its reference anew for each.


def one_tensor(c: Chooser, **attrs: Any) -> Sample:
    return [TensorType(c.pick(((3, 4), ())))], attrs


def along_axis(c: Chooser) -> Sample:
    shape = c.pick(((2, 3, 4), (4,)))
    return [TensorType(shape)], {"axis": c.integer(-len(shape), len(shape) - 1)}
