"""Attributes of an operator: an immutable, hashable record with attribute access and a canonical text form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def _freeze(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "__index__"):
        return int(value)
    raise TypeError(f"attribute value {value!r} is not a number, string or tuple of those")


class Attrs(Mapping[str, Any]):
    """`Attrs(strides=(2, 2), groups=1)`; equal if names and values are."""

    __slots__ = ("_hash", "_items")

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "_items", {k: _freeze(values[k]) for k in sorted(values)})
        object.__setattr__(self, "_hash", hash(tuple((k, repr(v)) for k, v in self._items.items())))

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self._items[name]
        except KeyError:
            raise AttributeError(f"no attribute {name!r} among {', '.join(self._items)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("attributes are immutable; use `replace`")

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attrs) and repr(self._items) == repr(other._items)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_make, (dict(self._items),))

    def replace(self, **values: Any) -> Attrs:
        return Attrs(**{**self._items, **values})

    def __repr__(self) -> str:
        return ", ".join(f"{k}={_text(v)}" for k, v in self._items.items())


def _make(items: dict[str, Any]) -> Attrs:
    return Attrs(**items)


def _text(v: Any) -> str:
    return "(" + ",".join(map(_text, v)) + ")" if isinstance(v, tuple) else str(v)


EMPTY = Attrs()
