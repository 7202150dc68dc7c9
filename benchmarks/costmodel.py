"""How well cost models order the nests of kernels that they were not trained on: roofline, MLP, boosted trees.

    python benchmarks/costmodel.py [--measure] [--json]

For the costliest kernel of each held-out case (matmuls, ResNet-18's convolutions, MobileNet's depthwise ones,
memory-bound ones), 200 nests are measured: the roofline's best, ones drawn near them, ones drawn uniformly. All that
come near the best are measured again, in interleaved rounds. Measurements are kept in `benchmarks/data/held_out.sqlite`
and replayed; `--measure` makes those that are missing. Of every model: Kendall's tau between its scores and the times,
and its regret: the time of its pick over the best of the 200. The boosted trees (xgboost) learn the same correction of
the roofline from the same features and data (`benchmarks/data/training.sqlite`) as the shipped MLP. One thread.
"""

from __future__ import annotations

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

from pinning import pin

if TYPE_CHECKING:
    import numpy as np

    from nestegg.costmodel.fit import Samples
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.worker import Worker
    from nestegg.ir.loops import Lowered
    from nestegg.ir.nest import Nest

DATA = Path(__file__).parent / "data"
NESTS = 200
#: The roofline's best, nests drawn at (temperature, how many), and uniformly.
BEST, DRAWN, UNIFORM = 60, ((0.03, 25), (0.15, 40), (0.5, 35), (1e9, 10)), 40
#: The roofline's best as it is now, which are there in any case.
FIRST = 5
#: Nests that take at most so many times the best's time are measured again, interleaved, and how often.
NEAR, ROUNDS = 1.35, 3

Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


def cases() -> list[Any]:
    """The held-out cases, of the suites of `cases.py`."""
    import cases as suites

    matmuls = [*((n, n, n) for n in (64, 128, 256, 512)), (128, 768, 768), *suites.ODD[:3]]
    convolutions = [r for r in suites.RESNET18 if r[0] in ("C2", "C3", "C5", "C6", "C8", "C9", "C12")]
    memory = [suites.MEMORY[k] for k in (1, 6, 8, 9, 11, 14, 15, 19)]
    return [
        *(make() for make in memory),
        *(suites.depthwise(*d) for d in suites.MOBILENET[2:8:2]),
        *(suites.matmul(*m) for m in matmuls),
        *(suites.convolution(*c) for c in convolutions),
    ]


def kernels(names: tuple[str, ...] = ()) -> dict[str, Lowered]:
    """The costliest kernel of every held-out case (of those named), as the compiler lowers it."""
    import nestegg

    found = {}
    for case in cases():
        if names and case.name not in names:
            continue
        compiled = nestegg.optimize(case.source.program(), *case.source.inputs, threads=1, cost_model="roofline")
        found[case.name] = max(compiled.program.calls, key=lambda c: c.seconds).kernel
    return found


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(log: Path, seconds: float) -> None:
    """Measure what the log lacks, and write the names of the held-out kernels, which training leaves out."""
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.worker import Worker
    from nestegg.ir.records import digest
    from nestegg.ir.target import host

    begun = time.monotonic()
    wanted = kernels()
    lines = [f"{digest(k)} {name}" for name, k in wanted.items()]
    (DATA / "held_out.txt").write_text("\n".join(lines) + "\n")
    progress = log.with_suffix(".refined")
    done = set(progress.read_text().split()) if progress.exists() else set()
    with TuningLog(log) as store, Worker(host(), 1) as worker:
        for name, kernel in wanted.items():
            if time.monotonic() - begun > seconds:
                print(f"the time is over before {name}; run again to go on", file=sys.stderr)
                return
            if digest(kernel) not in done:
                print(f"{name}: {_measured(kernel, store, worker)} nests", file=sys.stderr, flush=True)
                with progress.open("a") as file:
                    file.write(digest(kernel) + "\n")


def _measured(kernel: Lowered, store: TuningLog, worker: Worker) -> int:
    """Nests of a kernel measured, those that come near the best several times: every measurement may have met
    somebody else's work. How many the log holds then."""
    from nestegg.costmodel.worker import TIMERS, Effort

    def put(nests: list[Nest], effort: Effort) -> dict[Nest, float]:
        for t in worker.measure(kernel, nests, effort):
            store.add(kernel, worker.target, 1, t)
        return {t.nest: t.seconds for t in store.trials(kernel, worker.target, 1)}

    drawn = _drawn(kernel)
    known = put(drawn[:FIRST], Effort())
    effort = Effort(samples=4, min_sample=0.001, give_up=10 * min(known.values()))
    lacking = [n for n in drawn if n not in known]
    known = put(lacking[: max(0, NESTS - len(known))], effort)
    near = [n for n, s in known.items() if s < NEAR * min(known.values())]
    for k in range(0, len(near), TIMERS):  # as many as the worker keeps compiled
        for _ in range(ROUNDS):
            known = put(near[k : k + TIMERS], Effort(samples=2, min_sample=0.002))
    return len(known)


def _drawn(kernel: Lowered) -> list[Nest]:
    """Distinct nests, the roofline's best first; as many as wanted if the kernel has so many."""
    import numpy as np

    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.beam import swept
    from nestegg.extract.sampling import Sampler
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build

    egraph, rng = build(kernel, host(), 1), np.random.default_rng(0)
    sweep = swept(egraph, Roofline(host()), BEST)
    sampler = Sampler(sweep)
    drawn = [sampler.draw(rng, t) for t, count in DRAWN for _ in range(count)]
    uniform = [n for _ in range(5 * UNIFORM) if (n := egraph.sample(rng)) is not None]
    return list(dict.fromkeys([*(s.nest for s in sweep.best(egraph.root)), *drawn, *uniform]))


# --- comparing ----------------------------------------------------------------------------------------------------


def compare(log: Path, training: Path) -> dict[str, Any]:
    """Every model's order of every held-out kernel's nests."""
    from nestegg.costmodel.fit import samples
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.mlp import shipped
    from nestegg.ir.records import digest
    from nestegg.ir.target import host

    names = dict(line.split(maxsplit=1) for line in (DATA / "held_out.txt").read_text().splitlines())
    with TuningLog(log) as store:
        measured = store.everything(host(), 1).items()
    held = {names[digest(k)]: samples(k, t, host(), 1) for k, t in measured if digest(k) in names}
    if not held:
        raise SystemExit(f"{log} holds no measurements of this machine; make them with --measure")
    ensemble, trees = shipped(), _trees(training)
    models = {
        "roofline": lambda s: s.prior,
        "mlp": lambda s: s.prior + ensemble.correction(s.features)[0],
        "xgboost": (lambda s: s.prior + trees(s.features)) if trees is not None else None,
    }
    rows = [
        {"name": name, "nests": len(s.measured), "best_us": math.exp(s.measured.min()) * 1e6,
         **{f"{m}_{what}": value for m, f in models.items() if f is not None
            for what, value in zip(("tau", "regret"), _judged(s, f(s)), strict=True)}}
        for name, s in held.items()
    ]  # fmt: skip
    summary = {
        m: {
            "tau": round(statistics.fmean(r[f"{m}_tau"] for r in rows), 3),
            "regret": round(math.exp(statistics.fmean(math.log(r[f"{m}_regret"]) for r in rows)), 4),
            "worst": round(max(r[f"{m}_regret"] for r in rows), 3),
        }
        for m, f in models.items()
        if f is not None
    }
    picks = [_guarded_regret(ensemble, s) for s in held.values()]
    summary["mlp as optimize uses it"] = {
        "regret": round(math.exp(statistics.fmean(map(math.log, picks))), 4), "worst": round(max(picks), 3)
    }  # fmt: skip
    return {"kernels": rows, "models": summary}


def _guarded_regret(ensemble: Any, s: Samples) -> float:
    """Regret of the nest that `optimize` would take of these: the roofline's, unless all members prefer another."""
    import numpy as np

    from nestegg.costmodel.pick import guarded

    order = np.argsort(s.prior, kind="stable")  # the roofline's choice first
    chosen, _ = guarded(ensemble, s.features[order], np.exp(s.prior[order]))
    return float(np.exp(s.measured[order[chosen]] - s.measured.min()))


def _judged(s: Samples, score: np.ndarray) -> tuple[float, float]:
    """(Kendall's tau, regret of the best-scored nest)."""
    import numpy as np
    from scipy.stats import kendalltau

    tau = kendalltau(score, s.measured).statistic
    return round(float(tau), 3), round(float(np.exp(s.measured[score.argmin()] - s.measured.min())), 4)


def _trees(training: Path) -> Any:
    """xgboost on the same features and data, learning the same correction; None if it is not installed."""
    try:
        import xgboost
    except ImportError:
        return None
    import numpy as np
    from training import family

    data = list(family(training).values())
    residual = [(s.measured - s.prior) - np.median(s.measured - s.prior) for s in data]
    near = [np.exp(-2.0 * (s.measured - s.measured.min())) + 0.05 for s in data]
    features, labels, weights = (np.concatenate(a) for a in ([s.features for s in data], residual, near))
    settings = {"max_depth": 6, "eta": 0.05, "subsample": 0.8, "colsample_bytree": 0.5, "seed": 0}
    trees = xgboost.train(settings, xgboost.DMatrix(features, labels, weight=weights), num_boost_round=400)
    return lambda x: trees.predict(xgboost.DMatrix(x))


def main(
    make: Annotated[bool, typer.Option("--measure", help="measure what is missing first")] = False,
    seconds: Annotated[float, typer.Option(help="of measuring; then run again")] = 1e9,
    log: Path = DATA / "held_out.sqlite",
    training: Path = DATA / "training.sqlite",
    as_json: Json = False,
) -> None:
    """Order of nests of held-out kernels under the roofline, the MLP and boosted trees."""
    machine = pin(1) if not make else None
    if make:
        measure(log, seconds)
    report = {
        "command": " ".join(["python", "benchmarks/costmodel.py", *sys.argv[1:]]),
        "machine": str(machine),
        **compare(log, training),
    }
    if as_json:
        print(json.dumps(report))
        return
    import harness

    models = [m for m, found in report["models"].items() if "tau" in found]
    header = ["kernel", "best us", *(f"{m} {what}" for m in models for what in ("tau", "regret"))]
    table = [
        [r["name"], f"{r['best_us']:.1f}", *(f"{r[f'{m}_{what}']:.3f}" for m in models for what in ("tau", "regret"))]
        for r in report["kernels"]
    ]
    table.append(
        ["mean, geomean", "", *(f"{report['models'][m][what]:.3f}" for m in models for what in ("tau", "regret"))]
    )
    harness.show("cost models on held-out kernels", header, table, [report["command"], report["machine"]])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
