"""Drawing cases and shrinking the failing ones: samplers ask a `Chooser`, and Hypothesis is behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from ..ir.errors import TypeRuleError
from ..ir.operator import Chooser, Reject

T = TypeVar("T")
Case = TypeVar("Case")


class HypothesisChooser:
    """A `Chooser` whose decisions Hypothesis draws, and shrinks to lower ends and first options."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def integer(self, lo: int, hi: int) -> int:
        if hi < lo:
            raise Reject
        return lo if lo == hi else self._draw(_integers(lo, hi))

    def pick(self, options: Sequence[T]) -> T:
        return options[self.integer(0, len(options) - 1)]


@cache
def _integers(lo: int, hi: int) -> st.SearchStrategy[int]:
    return st.integers(lo, hi)


def retried(draw: Callable[[Chooser], Case], chooser: Chooser, tries: int = 12) -> Case:
    """The first of several draws that a sampler does not reject."""
    for _ in range(tries):
        try:
            return draw(chooser)
        except (Reject, TypeRuleError):
            continue
    raise Reject


def drawn_by(draw: Callable[[Chooser], Case], tries: int = 12) -> st.SearchStrategy[Case]:
    """The Hypothesis strategy of what a sampler draws."""

    @st.composite
    def cases(of: Any) -> Case:
        try:
            return retried(draw, HypothesisChooser(of), tries)
        except Reject:
            hypothesis.reject()

    return cases()


class Refuted(Exception):
    """A case that shows a rule to be wrong; the message is the counterexample."""


@dataclass
class Outcome(Generic[Case]):
    """What a search found: the cases that passed, and the smallest that did not, with its message."""

    passed: list[Case]
    failure: str | None = None
    smallest: Case | None = None

    @property
    def examples(self) -> int:
        return len(self.passed) + (self.failure is not None)


def search(
    draw: Callable[[Chooser], Case], test: Callable[[Case], None], examples: int, seed: int, tries: int = 12
) -> Outcome[Case]:
    """Test drawn cases until one is `Refuted`, then shrink it. The same seed draws the same cases.

    `draw` and `test` may `Reject` a case that does not count. `passed` holds the cases drawn up to the first
    failure.
    """
    outcome: Outcome[Case] = Outcome([])

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=tuple(HealthCheck),  # pyright: ignore[reportArgumentType]
        verbosity=Verbosity.quiet,
    )
    @hypothesis.given(drawn_by(draw, tries))
    def run(case: Case) -> None:
        try:
            test(case)
        except Reject:
            hypothesis.reject()
        except Refuted:
            outcome.smallest = case
            raise
        if outcome.smallest is None:
            outcome.passed.append(case)

    try:
        run()
    except Unsatisfiable:
        return outcome
    except Refuted as found:
        outcome.failure = str(found)
    return outcome
