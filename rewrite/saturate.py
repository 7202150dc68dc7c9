"""The saturation driver, one for both levels: phases of rules under limits, with a report per rule.

Each rule runs as a ruleset of its own, one iteration at a time, so that its matches, new e-nodes and seconds are its
own and the limits are looked at between any two rules. Limits are counts before they are seconds: with the defaults,
results do not depend on the machine's speed unless the report says `seconds`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = (
    "algebra",
    "layout",
    "algorithm",
    "precision",
    "fusion",
    "staging",
    "lowering",
    "tiling",
    "vectorize",
    "tensorize",
    "unroll",
    "parallel",
    "stores",
    "prefetch",
)
"""What a rule may say it is about."""


@dataclass(frozen=True)
class Limits:
    """When saturation stops. `nodes`: e-nodes; `iterations`: rounds over a phase's rules; `seconds`: the seat belt.

    `matches`: a rule that finds more in one round backs off: it sits out the next `BAN` rounds, and each time it
    happens again, twice as many, at twice as many matches (Willsey et al., "egg", POPL 2021). 0: no rule backs off.
    """

    nodes: int = 1_000_000
    iterations: int = 64
    seconds: float = 60.0
    matches: int = 0


#: Rounds that a rule sits out when it first finds too much.
BAN = 2


@dataclass(frozen=True)
class EggRule:
    """A rule ready for egglog: `text` holds one or more `(rule …)` forms in ruleset `ruleset`. `needs`: tables that
    every match takes a row of; while one is empty, the rule is not run."""

    name: str
    kind: str
    ruleset: str
    text: str
    needs: tuple[str, ...] = ()


@dataclass
class RuleStats:
    """What one rule did. `enodes` are rows it added to the e-graph; `banned`: how often it had to back off."""

    name: str
    kind: str
    matches: int = 0
    enodes: int = 0
    seconds: float = 0.0
    banned: int = 0


@dataclass
class SaturationReport:
    """`stopped_by` is `saturated`, or the first limit hit: `nodes`, `iterations` or `seconds`."""

    stopped_by: str = "saturated"
    iterations: int = 0
    enodes: int = 0
    seconds: float = 0.0
    rules: dict[str, RuleStats] = field(default_factory=dict)
    growth: list[int] = field(default_factory=list)

    def absorb(self, other: SaturationReport) -> None:
        """Add another run's figures (the loop level's many e-graphs make one table)."""
        self.iterations += other.iterations
        self.enodes += other.enodes
        self.seconds += other.seconds
        if self.stopped_by == "saturated":
            self.stopped_by = other.stopped_by
        for name, s in other.rules.items():
            mine = self.rules.setdefault(name, RuleStats(name, s.kind))
            mine.matches += s.matches
            mine.enodes += s.enodes
            mine.seconds += s.seconds
            mine.banned += s.banned


#: Lines of egglog text parsed at a time.
PORTION = 8


class Engine:
    """An egglog e-graph driven through its text form."""

    def __init__(self) -> None:
        from egglog.bindings import EGraph

        self.egraph = EGraph()

    def run(self, text: str) -> list[Any]:
        return self.egraph.run_program(*self.egraph.parse_program(text))

    def load(self, *texts: str) -> None:
        """Run long texts in portions of some lines, none of which may go over a line's end.

        egglog keeps a copy of the whole text for every node it parses: 90 KB at once took 1.8 GB and 1.3 s; in
        portions, 0.1 GB and 0.1 s.
        """
        lines = [line for text in texts for line in text.splitlines()]
        for k in range(0, len(lines), PORTION):
            self.run("\n".join(lines[k : k + PORTION]))

    def sizes(self) -> dict[str, int]:
        """Rows of every table."""
        return dict(self.run("(print-size)")[0].sizes)

    def size(self, counted: Iterable[str] | None = None) -> int:
        """Rows of the tables `counted`, or of all."""
        return _total(self.sizes(), None if counted is None else set(counted))


def _total(sizes: Mapping[str, int], counted: set[str] | None) -> int:
    return sum(n for name, n in sizes.items() if counted is None or name in counted)


def saturate(
    engine: Engine,
    phases: Sequence[Sequence[EggRule]],
    limits: Limits,
    *,
    analyses: str = "",
    counted: Iterable[str] | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> SaturationReport:
    """Run each phase to saturation in turn. `analyses` names a ruleset saturated after every rule.

    What is cut short stays of use: phases of lowering rules, which only say how to compute what is there, run to their
    end whatever the limits.
    """
    run = _Run(engine, limits, analyses, None if counted is None else set(counted), after_step)
    for phase in phases:
        lowering = all(r.kind == "lowering" for r in phase)
        if lowering or not run.cut:
            run.phase(phase, Limits(nodes=sys.maxsize, seconds=math.inf) if lowering else limits)
    return run.finished()


class _Run:
    """One saturation: the e-graph, its report so far, and the limits of the whole."""

    def __init__(
        self, engine: Engine, limits: Limits, analyses: str, counted: set[str] | None, after_step: Callable[[], None]
    ) -> None:
        self.engine, self.counted, self.after_step = engine, counted, after_step
        self.report = SaturationReport()
        self.start = time.perf_counter()
        self.settle = f"(run-schedule (saturate (run {analyses})))" if analyses else ""
        self.tables = engine.sizes()
        self.size = _total(self.tables, counted)
        if self.settle:
            engine.run(self.settle)
            self.tables = engine.sizes()

    @property
    def cut(self) -> bool:
        """A limit of the whole e-graph was reached."""
        return self.report.stopped_by in ("nodes", "seconds")

    def phase(self, rules: Sequence[EggRule], limits: Limits) -> None:
        """Rounds over the rules until they find nothing new or a limit is reached."""
        report = self.report
        steps = [(r, report.rules.setdefault(r.name, RuleStats(r.name, r.kind))) for r in rules]
        resting = _BackOff(limits.matches)
        for number in range(1, limits.iterations + 1):
            report.iterations += 1
            active, limit = self._round(steps, resting, number, limits)
            report.growth.append(self.size)
            if limit:
                report.stopped_by = limit
            if limit or not (active or resting.wake(number)):
                return
        report.stopped_by = "iterations"

    def _round(
        self, steps: Sequence[tuple[EggRule, RuleStats]], resting: _BackOff, number: int, limits: Limits
    ) -> tuple[bool, str]:
        """Each rule once: whether something changed, and the limit that was reached, if any."""
        active = False
        for r, stats in steps:
            if resting.sits_out(r.name, number) or not all(self.tables[name] for name in r.needs):
                continue
            before = stats.matches
            changed = self._step(r, stats)
            resting.look_at(stats, stats.matches - before, number)
            active |= changed
            self.after_step()
            limit = _exceeded(limits, self.size, self.start)
            if limit:
                return active, limit
        return active, ""

    def _step(self, r: EggRule, stats: RuleStats) -> bool:
        """The rule once, and what follows from it; whether it changed something."""
        begun = time.perf_counter()
        report = self.engine.run(f"(run-schedule (run {r.ruleset}))")[0].report
        if self.settle and report.updated:
            self.engine.run(self.settle)
        stats.seconds += time.perf_counter() - begun
        stats.matches += sum(report.num_matches_per_rule.values())
        if report.updated:
            self.tables, before = self.engine.sizes(), self.size
            self.size = _total(self.tables, self.counted)
            stats.enodes += max(self.size - before, 0)
        return report.updated

    def finished(self) -> SaturationReport:
        self.report.enodes = self.size
        self.report.seconds = time.perf_counter() - self.start
        return self.report


class _BackOff:
    """Which rules of a phase sit out, and until which round."""

    def __init__(self, matches: int) -> None:
        self.matches = matches
        self.until: dict[str, int] = {}

    def sits_out(self, rule: str, round: int) -> bool:
        return round < self.until.get(rule, 0)

    def look_at(self, stats: RuleStats, found: int, round: int) -> None:
        """Ban the rule if it found too much in this round."""
        if self.matches and found > self.matches << stats.banned:
            self.until[stats.name] = round + 1 + (BAN << stats.banned)
            stats.banned += 1

    def wake(self, round: int) -> bool:
        """Let all rules go on that sit out, as the others are done; whether there were any."""
        waiting = any(round < until - 1 for until in self.until.values())
        self.until.clear()
        return waiting


def _exceeded(limits: Limits, size: int, start: float) -> str:
    if size > limits.nodes:
        return "nodes"
    return "seconds" if time.perf_counter() - start > limits.seconds else ""
