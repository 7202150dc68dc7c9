"""Values that live in Python while egglog reasons about them: types, attribute records, kernels.

The e-graph holds small integers (`PyObject`s that pickle to the same bytes); a `Host` interns the values behind them
and runs conditions and attribute functions when egglog calls back through `dispatch`. One host is current at a time in
a thread, as an e-graph belongs to one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from ..ir.errors import NesteggError, RuleError


class _Current(threading.local):
    """The hosts of this thread, the current one last."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []


_current = _Current()

#: The integers 0..SMALL-1 are interned as themselves, so that egglog can pass its own numbers.
SMALL = 16


class Host:
    """An intern table and the functions that egglog may call, for one e-graph."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._ids: dict[tuple[type, Hashable], int] = {}
        self._functions: list[tuple[str, Callable[..., Any]]] = []
        self._results: dict[tuple[int, tuple[int, ...]], int | bool | str] = {}
        self.error: NesteggError | None = None
        for k in range(SMALL):
            self.intern(k)

    def intern(self, value: Hashable) -> int:
        key = (type(value), value)
        if key not in self._ids:
            self._ids[key] = len(self._values)
            self._values.append(value)
        return self._ids[key]

    def value(self, number: int) -> Any:
        return self._values[number]

    def function(self, name: str, f: Callable[..., Any]) -> int:
        """Register a function of interned values; it returns a bool, a text, or a value to intern."""
        self._functions.append((name, f))
        return len(self._functions) - 1

    @property
    def functions(self) -> int:
        """How many functions are registered."""
        return len(self._functions)

    def call(self, function: int, numbers: tuple[int, ...]) -> int | bool | str:
        key = (function, numbers)
        if key not in self._results:
            self._results[key] = self._compute(function, numbers)
        return self._results[key]

    def _compute(self, function: int, numbers: tuple[int, ...]) -> int | bool | str:
        name, f = self._functions[function]
        try:
            result = f(*(self._values[n] for n in numbers))
        except Exception as e:  # an exception may not pass through egglog: it is raised after the run
            if self.error is None:
                self.error = e if isinstance(e, NesteggError) else RuleError(f"{name}: {type(e).__name__}: {e}")
            return False
        return result if isinstance(result, (bool, str)) else self.intern(result)

    def __enter__(self) -> Host:
        _current.hosts.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.hosts.pop()


def dispatch(function: int, *numbers: int) -> int | bool | str:
    """Entry point of egglog's `py-call`."""
    return _current.hosts[-1].call(function, numbers)


def bind(function: int) -> Callable[..., int | bool | str]:
    """`dispatch` of one function: what a global of egglog's holds."""
    return partial(dispatch, function)


def bound(function: int) -> str:
    """A function of the host's, as egglog text."""
    return f"""(py-eval "__import__('{__name__}', fromlist=['bind']).bind({function})" (py-dict) (py-dict))"""


def prelude(host: Host) -> str:
    """egglog text that binds `$f0`, `$f1`, … to the host's functions, and `$nothing` to what they return for no value.

    What is written out in a rule is evaluated and pickled at each match; a global is not.
    """
    nothing = '(let $nothing (py-eval "False" (py-dict) (py-dict)))'
    return "\n".join([nothing, *(f"(let $f{k} {bound(k)})" for k in range(host.functions))])


def call_text(function: int, args: list[str]) -> str:
    return f"(py-call $f{function} {' '.join(args)})"


def test_text(function: int, args: list[str]) -> str:
    return f"(= true (py-to-bool {call_text(function, args)}))"
