"""How many trials a tuner needs: random search, the roofline's order, an MLP from scratch, the MLP transferred.

    python benchmarks/tuning.py [--only C2,512] [--seconds 300] [--seeds 2] [--json] [--csv FILE] [--png FILE]

Of each held-out kernel, every strategy of `costmodel/tuner.py` proposes nests, which are measured. `trials` is the
number until 95 % of the best known performance is reached, the best known being the fastest nest that any strategy
measured of the kernel. Random search takes, in 25 orders, from a pool of nests drawn block by
block from the kernel's schedule space (`extract/sampling.py: draw_any`; drawing all nests with the same probability is
far worse). A run that does not reach the 95 % counts as all its trials (`>`: a lower bound).

Measurements are kept in `benchmarks/data/tuning.sqlite`: a nest is measured once, whichever runs propose it, so that
strategies differ by what they propose and not by the noise they met. Finished runs are in `benchmarks/data/tuning.json`
(those of the transferred model by its weights' digest); a run that was cut short begins again and replays. One thread.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

if TYPE_CHECKING:
    from nestegg.costmodel.log import Trial, TuningLog
    from nestegg.costmodel.worker import Effort, Worker
    from nestegg.ir.loops import Lowered
    from nestegg.ir.nest import Nest

DATA = Path(__file__).parent / "data"
#: Strategy -> how many trials it is given; random search's are the pool.
TRIALS = {"random": 200, "transferred": 24, "roofline": 24, "scratch": 72}
#: Orders of the pool that random search takes.
ORDERS = 25
#: The cases of `costmodel.py` that are tuned.
CASES = ("512", "1x1000x2048", "C2", "C5", "28x28x256", "softmax 1536x128")
REACHED = 0.95
#: Nests of the pool measured at a time, and the patience with slow ones, as a tuner has it.
BATCH, PATIENCE = 8, 8.0
#: A nest this close to the best known is measured so many times more.
CLOSE, AGAIN = 1.1, 2


class Remembering:
    """A measurer that looks into a log before it measures, and keeps what it measured."""

    def __init__(self, worker: Worker, store: TuningLog) -> None:
        self.worker, self.store = worker, store
        self.known: dict[Lowered, dict[Nest, Trial]] = {}

    def measure(self, kernel: Lowered, nests: list[Nest], effort: Effort) -> list[Trial]:
        if kernel not in self.known:
            trials = self.store.trials(kernel, self.worker.target, self.worker.threads)
            self.known[kernel] = {t.nest: t for t in trials}
        known = self.known[kernel]
        fresh = self.worker.measure(kernel, [n for n in nests if n not in known], effort)
        self._keep(kernel, fresh)
        best = min((t.seconds for t in known.values()), default=math.inf)
        for _ in range(AGAIN):
            self._keep(kernel, self.worker.measure(kernel, [t.nest for t in fresh if t.seconds < CLOSE * best], effort))
        return [known[n] for n in nests]

    def _keep(self, kernel: Lowered, trials: list[Trial]) -> None:
        known = self.known[kernel]
        for t in trials:
            self.store.add(kernel, self.worker.target, self.worker.threads, t)
            if t.nest not in known or t.seconds < known[t.nest].seconds:
                known[t.nest] = t

    def close(self) -> None:
        self.worker.close()


class Runs:
    """Finished runs: seconds trial by trial, by kernel, strategy and seed. `path`: a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, key: str, make: Callable[[], list[float]]) -> list[float]:
        if key not in self.found:
            self.found[key] = make()
            new = self.path.with_suffix(".new")
            new.write_text(json.dumps(self.found))
            new.replace(self.path)
        return self.found[key]


def run(cases: dict[str, Lowered], store: TuningLog, finished: Runs, seconds: float, seeds: int) -> dict[str, Any]:
    """name -> strategy -> the times of its trials, in order, one list a seed."""
    from nestegg.costmodel.worker import Worker
    from nestegg.ir.records import digest
    from nestegg.ir.target import host

    until, curves = time.monotonic() + seconds, {name: {s: [] for s in TRIALS} for name in cases}
    with Worker(host()) as worker:
        measurer = Remembering(worker, store)
        for strategy, count in TRIALS.items():
            search = random_search if strategy == "random" else guided_search
            for seed in range(1 if strategy == "random" else seeds):
                for name, kernel in cases.items():
                    key = f"{digest(kernel)} {strategy}{_weights(strategy)} {count} {seed}"
                    times = finished.get(key, lambda: search(kernel, strategy, count, seed, measurer, until))  # noqa: B023
                    curves[name][strategy] += orders(times) if strategy == "random" else [times]
                    print(f"{strategy} {seed} {name}: {min(times) * 1e6:.1f} us", file=sys.stderr, flush=True)
    return curves


def _weights(strategy: str) -> str:
    """What names the weights that a strategy starts from."""
    from nestegg.costmodel.mlp import SHIPPED

    return hashlib.blake2b(SHIPPED.read_bytes(), digest_size=6).hexdigest() if strategy == "transferred" else ""


def random_search(
    kernel: Lowered, strategy: str, count: int, seed: int, measurer: Remembering, until: float
) -> list[float]:
    """The kernel's pool."""
    import numpy as np

    from nestegg.extract.sampling import draw_any
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build

    egraph, rng = build(kernel, host(), 1), np.random.default_rng(0)
    pool = list(dict.fromkeys(draw_any(egraph, rng) for _ in range(2 * count)))[:count]
    times: list[float] = []
    for k in range(0, len(pool), BATCH):
        _in_time(until, f"{strategy}, seed {seed}")
        best = min(times, default=math.inf)
        trials = measurer.measure(kernel, pool[k : k + BATCH], replace(_effort(), give_up=PATIENCE * best))
        times += [t.seconds for t in trials]
    return times


def orders(times: list[float]) -> list[list[float]]:
    """The pool in the orders in which random search might have come by it."""
    import numpy as np

    return [[times[k] for k in np.random.default_rng((1, n)).permutation(len(times))] for n in range(ORDERS)]


def guided_search(
    kernel: Lowered, strategy: str, count: int, seed: int, measurer: Remembering, until: float
) -> list[float]:
    """A tuner's trials."""
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.tuner import Tuner
    from nestegg.ir.target import host

    with TuningLog(":memory:") as log:
        tuner = Tuner(kernel, host(), 1, log, measurer, strategy=strategy, seed=seed, effort=_effort())
        while (left := count - len(tuner.trials)) > 0 and tuner.step(left):
            _in_time(until, f"{strategy}, seed {seed}")
    return [t.seconds for t in tuner.trials]


def _effort() -> Effort:
    from nestegg.costmodel.worker import Effort

    return Effort(samples=6, min_sample=0.002, limit=5.0)


def _in_time(until: float, at: str) -> None:
    if time.monotonic() > until:
        raise SystemExit(f"the time is over at {at}; run again to go on")


def best_known(cases: dict[str, Lowered], store: TuningLog) -> dict[str, float]:
    """name -> seconds of the fastest nest that is known."""
    from nestegg.ir.target import host

    return {name: min(t.seconds for t in store.trials(kernel, host(), 1)) for name, kernel in cases.items()}


def summary(curves: dict[str, Any], best: dict[str, float]) -> dict[str, Any]:
    """Trials to reach 95 % of the best known, of every kernel and strategy (medians over seeds), and geomeans."""
    rows = []
    for name, by in curves.items():
        row: dict[str, Any] = {"name": name, "best_us": best[name] * 1e6}
        for strategy, runs in by.items():
            trials = [next((k + 1 for k, s in enumerate(r) if s * REACHED <= best[name]), None) for r in runs]
            row[strategy] = statistics.median(t or TRIALS[strategy] for t in trials)
            row[f"{strategy}_reached"] = all(trials)
            row[f"{strategy}_first"] = statistics.median(best[name] / r[0] for r in runs)
        rows.append(row)
    geomeans = {s: round(math.exp(statistics.fmean(math.log(r[s]) for r in rows)), 2) for s in TRIALS}
    return {"kernels": rows, "trials": geomeans}


def curve_rows(curves: dict[str, Any], best: dict[str, float]) -> list[dict[str, Any]]:
    """The share of the best known performance wherever it rises, and at the end: one row each."""
    rows = []
    for name, by in curves.items():
        for strategy, runs in by.items():
            for seed, times in enumerate(runs):
                least = math.inf
                for trial, s in enumerate(times, 1):
                    if s < least or trial == len(times):
                        least = min(least, s)
                        rows.append({"kernel": name, "strategy": strategy, "seed": seed, "trial": trial,
                                     "seconds": least, "share_of_best": round(best[name] / least, 4)})  # fmt: skip
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["kernel"] for r in rows))
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(14, 6), sharey=True, squeeze=False)
    for name, ax in zip(names, axes.flat, strict=False):
        for number, strategy in enumerate(TRIALS):
            for seed in sorted({r["seed"] for r in rows if r["strategy"] == strategy})[:3]:
                mine = [r for r in rows if (r["kernel"], r["strategy"], r["seed"]) == (name, strategy, seed)]
                label = strategy if seed == 0 else None
                steps = [r["trial"] for r in mine], [r["share_of_best"] for r in mine]
                ax.step(*steps, where="post", label=label, color=f"C{number}", linewidth=1)
        ax.axhline(REACHED, color="grey", linewidth=0.5)
        ax.set_title(name, fontsize=9)
        ax.set_xscale("log", base=2)
        ax.set_ylim(0, 1.02)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel("trials")
    figure.supylabel("share of the best known performance")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(
    only: Annotated[str, typer.Option(help="cases whose name contains one of these (comma-separated)")] = "",
    seconds: Annotated[float, typer.Option(help="of measuring and training; then run again")] = 1e9,
    seeds: int = 2,
    log: Path = DATA / "tuning.sqlite",
    csv_file: Annotated[Path | None, typer.Option("--csv")] = None,
    png: Annotated[Path | None, typer.Option("--png")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
) -> None:
    """Trials to reach 95 % of the best known."""
    from costmodel import kernels
    from nestegg.costmodel.log import TuningLog

    wanted = [o for o in only.split(",") if o]
    cases = {n: k for n, k in kernels(CASES).items() if not wanted or any(o in n for o in wanted)}
    with TuningLog(log) as store:
        curves = run(cases, store, Runs(log.with_suffix(".json")), seconds, seeds)
        best = best_known(cases, store)
    report = {"command": " ".join(["python", "benchmarks/tuning.py", *sys.argv[1:]]), **summary(curves, best)}
    rows = curve_rows(curves, best)
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if png is not None:
        draw(rows, png)
    if as_json:
        print(json.dumps(report))
        return
    import harness

    table = [
        [r["name"], f"{r['best_us']:.1f}", *(f"{'' if r[f'{s}_reached'] else '>'}{r[s]:g}" for s in TRIALS)]
        for r in report["kernels"]
    ]
    table.append(["geomean", "", *(f"{report['trials'][s]:.1f}" for s in TRIALS)])
    harness.show("trials to 95 % of the best known", ["kernel", "best us", *TRIALS], table, [report["command"]])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
