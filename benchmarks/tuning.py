"""How many trials a tuner needs: random search, the roofline's order, an MLP from scratch, the MLP transferred.

    python benchmarks/tuning.py [--only C2,512] [--seconds 300] [--json] [--csv FILE] [--png FILE]

Of each held-out kernel, every strategy of `costmodel/tuner.py` proposes nests, which are measured. `trials` is the
number until 95 % of the best known performance is reached, the best known being the fastest nest that any strategy or
`costmodel.py` measured of the kernel; a strategy that does not reach it counts as all its trials (`>`). Measurements
are kept in `benchmarks/data/tuning.sqlite`: a nest that two strategies propose is measured once, and a run replays what
is there. Strategies are run with the same seeds; their order does not matter. One thread.
"""

from __future__ import annotations

import csv
import json
import math
import os
import statistics
import sys
import time
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
#: Strategy -> how many trials it is given.
TRIALS = {"random": 192, "roofline": 64, "scratch": 128, "transferred": 64}
#: The cases of `costmodel.py` that are tuned.
CASES = ("256", "512", "128x768x768", "C2", "C6", "C9", "28x28x256", "softmax 1536x128")
REACHED = 0.95


class Remembering:
    """A measurer that looks into a log before it measures, and keeps what it measured."""

    def __init__(self, worker: Worker, store: TuningLog) -> None:
        self.worker, self.store = worker, store
        self.known: dict[Lowered, dict[Nest, Trial]] = {}

    def measure(self, kernel: Lowered, nests: list[Nest], effort: Effort) -> list[Trial]:
        target, threads = self.worker.target, self.worker.threads
        if kernel not in self.known:
            self.known[kernel] = {t.nest: t for t in self.store.trials(kernel, target, threads)}
        known = self.known[kernel]
        for t in self.worker.measure(kernel, [n for n in nests if n not in known], effort):
            self.store.add(kernel, target, threads, t)
            known[t.nest] = t
        return [known[n] for n in nests]

    def close(self) -> None:
        self.worker.close()


def run(cases: dict[str, Lowered], store: TuningLog, seconds: float, seeds: int) -> dict[str, Any]:
    """name -> strategy -> the times of its trials, in order, one list a seed."""
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.tuner import Tuner
    from nestegg.costmodel.worker import Effort, Worker
    from nestegg.ir.target import host

    begun, curves = time.monotonic(), {}
    with Worker(host()) as worker:
        measurer = Remembering(worker, store)
        for name, kernel in cases.items():
            curves[name] = {}
            for strategy, count in TRIALS.items():
                runs = []
                for seed in range(seeds):
                    if time.monotonic() - begun > seconds:
                        raise SystemExit(f"the time is over at {name}, {strategy}; run again to go on")
                    tuner = Tuner(
                        kernel, host(), 1, TuningLog(":memory:"), measurer, strategy=strategy, seed=seed,
                        effort=Effort(samples=6, min_sample=0.002, limit=5.0),
                    )  # fmt: skip
                    while (left := count - len(tuner.trials)) > 0 and tuner.step(left):
                        pass
                    runs.append([t.seconds for t in tuner.trials])
                curves[name][strategy] = runs
                found = " ".join(f"{min(r) * 1e6:.1f}" for r in runs)
                print(f"{name} {strategy}: {found} us", file=sys.stderr, flush=True)
    return curves


def best_known(cases: dict[str, Lowered], curves: dict[str, Any], held_out: Path) -> dict[str, float]:
    """Seconds of the fastest nest measured of each kernel, by any strategy or by costmodel.py."""
    from nestegg.costmodel.log import TuningLog
    from nestegg.ir.target import host

    best = {}
    with TuningLog(held_out) as store:
        for name, kernel in cases.items():
            others = [t.seconds for t in store.trials(kernel, host(), 1)]
            best[name] = min([*others, *(s for runs in curves[name].values() for r in runs for s in r)])
    return best


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
    """The share of the best known performance after every trial, one row each."""
    rows = []
    for name, by in curves.items():
        for strategy, runs in by.items():
            for seed, times in enumerate(runs):
                least = math.inf
                for trial, s in enumerate(times, 1):
                    least = min(least, s)
                    rows.append({"kernel": name, "strategy": strategy, "seed": seed, "trial": trial,
                                 "seconds": s, "share_of_best": best[name] / least})  # fmt: skip
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["kernel"] for r in rows))
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(14, 6), sharey=True, squeeze=False)
    for name, ax in zip(names, axes.flat, strict=False):
        for strategy in TRIALS:
            mine = [r for r in rows if r["kernel"] == name and r["strategy"] == strategy and r["seed"] == 0]
            ax.plot([r["trial"] for r in mine], [r["share_of_best"] for r in mine], label=strategy)
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
    seeds: int = 1,
    log: Path = DATA / "tuning.sqlite",
    held_out: Path = DATA / "held_out.sqlite",
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
        curves = run(cases, store, seconds, seeds)
    best = best_known(cases, curves, held_out)
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
