"""Immutable values as JSON, and back: how kernels, nests and programs are kept on disk and told apart.

    For(axis=1, trips=4, kind="serial", body=Vec(1, 16))   <->   {"For": [1, 4, "serial", {"Vec": [1, 16]}]}

A codec knows a closed list of frozen dataclasses. Reading makes values of those classes and runs nothing else, so a
file that someone else wrote can at worst be refused. Equal values have equal texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from . import expr, index, loops, nest, types
from .errors import NesteggError


class Codec:
    """JSON of numbers, strings, None, tuples and the dataclasses `classes`, by their names."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {c.__name__: c for c in classes}
        self._fields = {c: tuple(f.name for f in fields(c)) for c in self._classes.values()}

    def extended(self, *classes: type) -> Codec:
        """The codec that knows `classes` too."""
        return Codec((*self._classes.values(), *classes))

    def dumps(self, value: Any) -> str:
        """The text of a value. Raises `TypeError` for what the codec does not know."""
        return json.dumps(self._plain(value), separators=(",", ":"))

    def loads(self, text: str) -> Any:
        """The value of a text. Raises `NesteggError` if it is not one that `dumps` writes."""
        try:
            return self._value(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise NesteggError(f"not a stored value: {type(e).__name__}: {e}") from None

    def _plain(self, v: Any) -> Any:
        if v is None or type(v) in (int, float, bool, str):
            return v
        if type(v) is tuple:
            return [self._plain(x) for x in v]
        names = self._fields.get(type(v))
        if names is None:
            raise TypeError(f"cannot be stored: {type(v).__name__}")
        return {type(v).__name__: [self._plain(getattr(v, n)) for n in names]}

    def _value(self, v: Any) -> Any:
        if isinstance(v, list):
            return tuple(map(self._value, v))
        if isinstance(v, dict):
            ((name, parts),) = v.items()
            return self._classes[name](*map(self._value, parts))
        return v


_EXPRESSIONS = (
    expr.Read, expr.ReadAt, expr.Const, expr.IndexValue, expr.Apply, expr.Cast, expr.Weighted, expr.When,
    expr.Reduce, expr.Kept,
)  # fmt: skip
_NESTS = (nest.Vec, nest.Intrin, nest.For, nest.Cat, nest.Tile, nest.Seq, nest.Stage, nest.Store)

_INDICES = (index.Axis, index.Quotient, index.Remainder, index.Index)

#: Kernels and their nests, and all that they hold.
KERNELS = Codec((types.TensorType, *_INDICES, *_EXPRESSIONS, *_NESTS, loops.LoopKernel, loops.StagedKernel))
