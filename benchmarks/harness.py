"""Fair timing of several contestants in one process: interleaved rounds, checked results, paired ratios.

A round times every contestant once, in an order that is shuffled each round. One timing (a sample) is so many
calls that it lasts `min_sample`; calls before it warm caches and wake pools. Between contestants the process
sleeps for `settle`, so that one pool's spinning workers do not steal another contestant's core. A sample
during which the process did not run for part of the time (processor time against wall time: another process
had the core) is taken again, a few times; what remains disturbed is counted.

`gap` sleeps between single calls instead, and times each call alone: how a program behaves that is not hot.

Ratios are medians of per-round ratios, so that a slow phase of the machine touches both sides of them.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

#: A sample that was disturbed is taken again at most so often.
RETRIES = 6
#: Share of a sample's time during which no thread of this process ran, from which on it counts as disturbed.
LOST = 0.02


@dataclass(frozen=True)
class Contestant:
    """One way to compute a case.

    column: who (`nestegg`, `jax`, …). variant: which way; a column's best variant counts. call: computes
    once, and returns when the result is there. output: the last call's result, in the case's canonical layout
    (None: not checked). repeat: as many calls as asked without Python in between, if there is such a thing.
    setup_s: seconds to prepare (compile) it.
    """

    column: str
    variant: str
    call: Callable[[], Any]
    output: Callable[[], np.ndarray] | None
    repeat: Callable[[int], Any] | None = None
    setup_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How to measure. rounds: samples a contestant. min_sample, settle, gap, limit: seconds."""

    rounds: int = 15
    min_sample: float = 0.002
    settle: float = 0.003
    gap: float = 0.0
    limit: float = 20.0
    seed: int = 0


@dataclass
class Timing:
    """What was measured of a contestant: seconds a call, one a round; or the first line of its error."""

    column: str
    variant: str
    times: list[float] = field(default_factory=list)
    setup_s: float = 0.0
    error: str = ""
    rel_err: float = float("nan")
    disturbed: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else float("inf")

    @property
    def best(self) -> float:
        return min(self.times, default=float("inf"))

    def __str__(self) -> str:
        return f"{self.column}/{self.variant}" if self.variant else self.column


def attempt(column: str, variant: str, make: Callable[[], Contestant]) -> Contestant | Timing:
    """A contestant, timed while it is made; or the report of why it could not be."""
    begun = time.perf_counter()
    try:
        made = make()
    except Exception as error:
        return Timing(column, variant, error=first_line(error))
    took = time.perf_counter() - begun
    return Contestant(column, variant, made.call, made.output, made.repeat, made.setup_s or took)


def first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0].strip()}"[:160]


def relative_error(got: np.ndarray, reference: np.ndarray) -> float:
    """Largest absolute error over the largest absolute value of the reference."""
    if got.shape != reference.shape:
        raise ValueError(f"the result is {got.shape}, the reference {reference.shape}")
    scale = float(np.abs(reference).max(initial=0.0)) or 1.0
    return float(np.abs(got.astype(np.float64) - reference).max(initial=0.0)) / scale


def run(
    contestants: Sequence[Contestant | Timing],
    reference: np.ndarray | None,
    plan: Plan,
    tolerance: float = 1e-4,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Timing]:
    """Check, then time, all contestants; who fails or computes something else is reported with the error."""
    timings: list[Timing] = []
    runners: list[tuple[Contestant, Timing, int]] = []
    for c in contestants:
        if isinstance(c, Timing):
            timings.append(c)
            continue
        t = Timing(c.column, c.variant, setup_s=c.setup_s)
        timings.append(t)
        try:
            progress(f"checking {t}")
            c.call()
            if reference is not None and c.output is not None:
                t.rel_err = relative_error(np.asarray(c.output()), reference)
                if not t.rel_err <= tolerance:
                    raise ArithmeticError(f"wrong result: relative error {t.rel_err:.1e}")
            runners.append((c, t, _repeats(c, plan)))
        except Exception as error:
            t.error = first_line(error)
    shuffle = random.Random(plan.seed)
    begun = time.perf_counter()
    for number in range(plan.rounds):
        progress(f"round {number + 1} of {plan.rounds}")
        for c, t, repeats in shuffle.sample(runners, len(runners)):
            time.sleep(plan.settle)
            seconds, disturbed = _gapped(c, plan) if plan.gap else _sample(c, repeats)
            t.times.append(seconds)
            t.disturbed += disturbed
        if time.perf_counter() - begun > plan.limit and number >= 2:
            break
    return timings


def _batch(c: Contestant, times: int) -> float:
    """Seconds of `times` calls."""
    if c.repeat is not None:
        begun = time.perf_counter()
        c.repeat(times)
        return time.perf_counter() - begun
    call = c.call
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - begun


def _repeats(c: Contestant, plan: Plan) -> int:
    """Calls that last `min_sample` together."""
    n = 1
    while (took := min(_batch(c, n) for _ in range(2))) < plan.min_sample and n < 1 << 20:
        n = max(n + 1, int(n * min(10.0, 1.2 * plan.min_sample / max(took, 1e-7))))
    return n


def _sample(c: Contestant, repeats: int) -> tuple[float, bool]:
    """Seconds a call, and whether every try was disturbed (then the fastest try counts)."""
    best = float("inf")
    for _ in range(RETRIES):
        _batch(c, max(1, repeats // 8))
        before = time.process_time()
        seconds = _batch(c, repeats)
        best = min(best, seconds / repeats)
        if time.process_time() - before > seconds * (1 - LOST):
            return best, False
        time.sleep(0.001)
    return best, True


def _gapped(c: Contestant, plan: Plan) -> tuple[float, bool]:
    """Median seconds of single calls, each after an idle gap."""
    took = []
    for _ in range(9):
        time.sleep(plan.gap)
        took.append(_batch(c, 1))
    return statistics.median(took), False


# --- results --------------------------------------------------------------------------------------


def best_of(timings: Sequence[Timing], column: str) -> Timing | None:
    """The fastest variant of a column; a failed one if none ran; None if it did not take part."""
    mine = [t for t in timings if t.column == column]
    return min(mine, key=lambda t: (bool(t.error), t.median), default=None)


def ratio(slower: Timing, faster: Timing) -> float:
    """How many times longer the first takes than the second: median over the rounds."""
    pairs = [a / b for a, b in zip(slower.times, faster.times, strict=False)]
    return statistics.median(pairs) if pairs else float("nan")


def best_peer(timings: Sequence[Timing], mine: str, peers: Sequence[str]) -> Timing | None:
    found = [t for p in peers if p != mine and (t := best_of(timings, p)) is not None and t.times]
    return min(found, key=lambda t: t.median, default=None)


def geomean(values: Sequence[float]) -> float:
    good = [v for v in values if v == v and 0 < v < float("inf")]
    return float(np.exp(np.mean(np.log(good)))) if good else float("nan")


def versions(*names: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


# --- presentation ---------------------------------------------------------------------------------

Rows = Sequence[Sequence[str]]


def show(title: str, header: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> None:
    """A rich table; the first column is text, the others numbers."""
    from rich.console import Console
    from rich.table import Table

    t = Table(title=title)
    for k, h in enumerate(header):
        t.add_column(h, justify="left" if k == 0 else "right")
    for row in rows:
        t.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a pipe or a file: as wide as the table
        console = Console(width=max(80, console.measure(t).maximum if console.width >= 200 else 200))
    console.print(t)
    for note in notes:
        console.print(note, highlight=False)


def markdown(title: str, header: Sequence[str], rows: Rows, notes: Sequence[str] = ()) -> str:
    """The same table for `docs/results.md`."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [f"**{title}**", ""]
    lines += ["| " + " | ".join(line) + " |" for line in (header, rule, *rows)]
    lines += ["", *[f"{n}  " for n in notes]]
    return "\n".join(lines)


def bars(
    path: Path,
    title: str,
    ylabel: str,
    names: Sequence[str],
    series: dict[str, list[float]],
    line: float | None = None,
) -> None:
    """A grouped bar chart as PNG; `line` is drawn across (the limit). Missing bars are NaN."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(max(7.0, 0.35 * len(names) * max(1, len(series)) + 2), 4.5))
    width = 0.8 / max(1, len(series))
    for k, (label, values) in enumerate(series.items()):
        axes.bar(
            [i + (k - (len(series) - 1) / 2) * width for i in range(len(names))], values, width, label=label
        )
    if line is not None:
        axes.axhline(line, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.legend(ncols=len(series), fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
