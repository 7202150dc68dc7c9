"""Attributes computed when first asked for: as `functools.cached_property`, without the lock that it takes in Python
3.11 for every value (1.5 of 2 microseconds; an e-graph's kernels have hundreds of thousands)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")
C = TypeVar("C", bound=type)


class lazy(Generic[T]):
    """`@lazy` on a method without arguments: its value is kept in the instance."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute, self.name, self.__doc__ = compute, compute.__name__, compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> lazy[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> T | lazy[T]:
        if instance is None:
            return self
        value = instance.__dict__[self.name] = self.compute(instance)
        return value


def hashed_once(cls: C) -> C:
    """A frozen dataclass that computes its hash when first asked for."""
    compute = cast("Callable[[Any], int]", cls.__hash__)  # of the class: it takes the value

    def _hash(self: Any) -> int:
        return compute(self)

    made = {"_hash": lazy(_hash), "__hash__": lambda self: self._hash, "__getstate__": fields_of}
    for name, value in made.items():
        setattr(cls, name, value)
    return cls


def fields_of(self: Any) -> dict[str, Any]:
    """The state of a dataclass to pickle: its fields. What is kept beside them is left out: another process hashes
    strings otherwise."""
    return {f.name: getattr(self, f.name) for f in fields(self)}
