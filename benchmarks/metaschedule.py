"""nestegg's tuner beside apache-tvm's MetaSchedule: the same kernel, the same number of trials, one thread.

    python benchmarks/metaschedule.py [--only 512,C2] [--trials 64] [--json] [--csv FILE]

The matrix product 512x512x512 and ResNet-18's convolution C2 (56x56, 64 to 64 channels, 3x3, with bias and relu; input
and output blocked by the vector's lanes). Weights may be packed beforehand by both: MetaSchedule rewrites the layout of
buffers that it is told are free of one. Both compute the convolution directly (nestegg's Winograd rules are left out),
and pad its input within what is timed.

MetaSchedule tunes in a process of its own, `BATCH` trials at a time, each batch within `LIMIT` seconds; one that does
not end is ended, with its processes, and tried once more; what was measured before it stays. Its builder's first job
imports TVM's tensor intrinsics, whose parsing takes 20 to 40 s where the core is shared. With the default limit of 30 s
a build, that job is ended with its process, the next process begins with the import again, and no candidate is ever
built (0.5 s each): this looked like a hang. `BUILD` leaves it the time.

Each tool searches with its own measurements, which the CSV holds, trial by trial. Then the best that each had found
after 1, 2, 4, … trials are timed by one loop, in interleaved rounds: the table. What a tool measured is kept in
`benchmarks/data/metaschedule` and not measured again.

apache-tvm 0.27 wants apache-tvm-ffi 0.1.14.post1: with 0.1.15.post2, MetaSchedule ends the process.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

if TYPE_CHECKING:
    from nestegg.codegen.program import KernelCall

DATA = Path(__file__).parent / "data" / "metaschedule"
ROUNDS, MIN_SAMPLE = 15, 0.01
#: Trials between which MetaSchedule learns, and after which it trusts its model (its default is 100).
BATCH = 16
#: Seconds for the build of one candidate, and for a batch of them.
BUILD, LIMIT = 200.0, 330.0
LANES = 16


@dataclass(frozen=True)
class Found:
    """What a tool measured: seconds trial by trial (infinite: failed), and what loads the schedule of a trial, as a
    function that gives the seconds of one run over a sample of so many seconds."""

    seconds: list[float]
    load: Callable[[int], Callable[[float], float]]

    def best(self, trials: int) -> int:
        """Which of the first `trials` trials is the fastest."""
        return min(range(min(trials, len(self.seconds))), key=lambda k: self.seconds[k])


# --- nestegg ------------------------------------------------------------------------------------------------------


def direct_calls(name: str) -> list[KernelCall]:
    """The kernels of the case as the compiler makes them with a convolution's definition as its algorithm, the
    costliest first (a convolution may have one besides that pads its input)."""
    import cases as suites

    import nestegg
    from nestegg.compiler import Options

    convolutions = {c[0]: c for c in suites.RESNET18}
    case = suites.convolution(*convolutions[name]) if name in convolutions else suites.matmul(*[int(name)] * 3)
    options = Options(threads=1, cost_model="roofline", rounding_gain=1.0)
    compiled = nestegg.optimize(case.source.program(), *case.source.inputs, options=options)
    return sorted(compiled.program.calls, key=lambda c: -c.seconds)


def nestegg_tuned(name: str, trials: int) -> Found:
    """The costliest kernel is tuned; the time of the others, as they are, is added to every trial's."""
    from nestegg.costmodel.log import TuningLog
    from nestegg.costmodel.measure import Bench
    from nestegg.costmodel.tuner import Tuner
    from nestegg.costmodel.worker import Effort, Worker
    from nestegg.ir.target import host

    call, *others = direct_calls(name)
    with TuningLog(DATA / "nestegg.sqlite") as log, Worker(host()) as worker:
        tuner = Tuner(call.kernel, host(), 1, log, worker, effort=Effort(limit=5.0))
        while (left := trials - len(tuner.trials)) > 0 and tuner.step(left):
            pass
    bench, made = Bench(call.kernel, host()), tuner.trials[:trials]
    rest = [Bench(c.kernel, host()).load(c.nest) for c in others]
    besides = sum(t.seconds(5, MIN_SAMPLE) for t in rest)

    def load(k: int) -> Callable[[float], float]:
        timers = [bench.load(made[k].nest), *rest]
        return lambda sample: sum(t.seconds(1, sample) for t in timers)

    return Found([t.seconds + besides for t in made], load)


# --- MetaSchedule -------------------------------------------------------------------------------------------------


def _product(n: int) -> Any:
    from tvm import te

    x, w = te.placeholder((n, n), name="x"), te.placeholder((n, n), name="w")
    k = te.reduce_axis((0, n), name="k")
    return te.create_prim_func([x, w, te.compute((n, n), lambda i, j: te.sum(x[i, k] * w[k, j], k), name="y")])


def _convolution(extent: int, inputs: int, outputs: int, window: int) -> Any:
    from tvm import te, tirx

    pad, blocks = window // 2, inputs // LANES
    x = te.placeholder((1, blocks, extent, extent, LANES), name="x")
    w = te.placeholder((outputs // LANES, blocks, window, window, LANES, LANES), name="w")
    bias = te.placeholder((outputs // LANES, LANES), name="bias")

    def padded(n: Any, c: Any, i: Any, j: Any, l: Any) -> Any:  # noqa: E741
        inside = tirx.all(i >= pad, i < extent + pad, j >= pad, j < extent + pad)
        return tirx.if_then_else(inside, x[n, c, i - pad, j - pad, l], 0.0)

    p = te.compute((1, blocks, extent + 2 * pad, extent + 2 * pad, LANES), padded, name="padded")
    c, r, s, l = (te.reduce_axis((0, e), name=a) for a, e in zip("crsl", (blocks, window, window, LANES), strict=True))  # noqa: E741
    shape = (1, outputs // LANES, extent, extent, LANES)
    y = te.compute(
        shape,
        lambda n, o, i, j, v: te.sum(p[n, c, i + r, j + s, l] * w[o, c, r, s, l, v], axis=[c, r, s, l]),
        name="conv",
    )
    z = te.compute(shape, lambda n, o, i, j, v: te.max(y[n, o, i, j, v] + bias[o, v], 0.0), name="relu")
    return te.create_prim_func([x, w, bias, z])


def workload(name: str) -> Any:
    """TVM's function of a case; its argument 1, the weights, may be laid out as the schedule likes."""
    import cases as suites
    import tvm

    convolutions = {c[0]: c for c in suites.RESNET18}
    if name in convolutions:
        _, extent, inputs, outputs, window, _, _ = convolutions[name]
        made = _convolution(extent, inputs, outputs, window)
    else:
        made = _product(int(name))
    return tvm.IRModule({"main": made.with_attr("layout_free_buffers", [1])})


def tune(name: str, trials: int) -> None:
    """Let MetaSchedule make so many more trials of a case; they are kept in its database."""
    from tvm.s_tir import meta_schedule as ms

    ms.tune_tir(
        workload(name), _target(), str(DATA / name), trials, num_trials_per_iter=BATCH, num_tuning_cores=1, seed=1,
        cost_model=ms.cost_model.XGBModel(num_warmup_samples=BATCH, num_tuning_cores=1),
        builder=ms.builder.LocalBuilder(max_workers=1, timeout_sec=BUILD), runner=ms.runner.LocalRunner(),
    )  # fmt: skip


def _target() -> Any:
    import llvmlite.binding as llvm
    import tvm

    return tvm.target.Target({"kind": "llvm", "mcpu": llvm.get_host_cpu_name(), "num-cores": 1})


def _records(name: str) -> list[str]:
    known = DATA / name / "database_tuning_record.json"
    return known.read_text().splitlines() if known.exists() else []


def _tuned_apart(name: str, trials: int) -> None:
    """Batches of trials, each in a process that may not take longer than `LIMIT`; what one that ends early or late has
    not measured is tried once more."""
    failures = 0
    while (done := len(_records(name))) < trials and failures < 2:
        code = f"import metaschedule; metaschedule.tune({name!r}, {min(BATCH, trials - done)})"
        where = os.path.dirname(os.path.abspath(__file__))
        child = subprocess.Popen([sys.executable, "-c", code], cwd=where, start_new_session=True)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(LIMIT)
        finally:
            with contextlib.suppress(ProcessLookupError):  # with those that it started
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        failures += len(_records(name)) == done
        print(f"{name}: MetaSchedule has {len(_records(name))} of {trials} trials", flush=True)


def tvm_tuned(name: str, trials: int) -> Found:
    """What MetaSchedule found. Raises `SystemExit` if it measured nothing."""
    import numpy as np
    import tvm
    from tvm.s_tir import meta_schedule as ms

    _tuned_apart(name, trials)
    lines, target = _records(name), _target()
    if not lines:
        raise SystemExit(f"{name}: MetaSchedule ended without a trial, twice")
    stored = ms.database.JSONDatabase(work_dir=str(DATA / name)).get_all_tuning_records()  # sorted by time
    chronological = [json.loads(line)[1][1] for line in lines]
    by_time = {tuple(float(t) for t in r.run_secs): r for r in stored}
    records = [by_time[tuple(map(float, seconds))] for seconds in chronological[:trials]]
    rng = np.random.default_rng(0)

    def load(k: int) -> Callable[[float], float]:
        schedule = tvm.s_tir.Schedule(records[k].workload.mod)
        records[k].trace.apply_to_schedule(schedule, remove_postproc=False)
        packed = tvm.s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(schedule.mod)
        main = packed["main"]  # its weights have the layout that the schedule chose
        shapes = [[int(n) for n in p.shape] for p in main.params]
        arguments = [tvm.runtime.tensor(rng.standard_normal(s).astype(np.float32)) for s in shapes]
        built = tvm.driver.build(packed, target=target)

        def seconds(sample: float) -> float:
            timed = built.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=round(sample * 1e3))
            return float(timed(*arguments).results[0])

        return seconds

    def mean(record: Any) -> float:
        found = [float(s) for s in record.run_secs or ()]
        return statistics.fmean(found) if found and max(found) < 1e5 else math.inf

    return Found([mean(r) for r in records], load)


# --- side by side -------------------------------------------------------------------------------------------------


def compare(name: str, trials: int) -> dict[str, Any]:
    """Both tools' curves, and the best after 1, 2, 4, … trials, timed in turns."""
    import cases as suites

    found = {"nestegg": nestegg_tuned(name, trials), "metaschedule": tvm_tuned(name, trials)}
    at = sorted({*(2**k for k in range(int(math.log2(trials)) + 1)), trials})
    wanted = {(tool, f.best(n)) for tool, f in found.items() for n in at}
    timers = {key: found[key[0]].load(key[1]) for key in sorted(wanted)}
    times: dict[Any, list[float]] = {key: [] for key in timers}
    for _ in range(ROUNDS):
        for key, timer in timers.items():
            times[key].append(timer(MIN_SAMPLE))
    made = (suites.matmul(512, 512, 512), *(suites.convolution(*c) for c in suites.RESNET18))
    flops = {c.name: c.flops for c in made}
    rows = []
    for n in at:
        mine, theirs = (times[tool, f.best(n)] for tool, f in found.items())
        rows.append({
            "trials": n, "nestegg": round(flops[name] / statistics.median(mine) / 1e9, 1),
            "metaschedule": round(flops[name] / statistics.median(theirs) / 1e9, 1),
            "ratio": round(statistics.median(b / a for a, b in zip(mine, theirs, strict=True)), 3),
        })  # fmt: skip
    curves = [
        {"case": name, "tool": tool, "trial": k + 1, "gflops": flops[name] / s / 1e9}
        for tool, f in found.items()
        for k, s in enumerate(f.seconds)
    ]
    return {"case": name, "at": rows, "curves": curves}


def main(
    only: Annotated[str, typer.Option(help="comma-separated: sizes of products, names of convolutions")] = "512,C2",
    trials: int = 64,
    csv_file: Annotated[Path | None, typer.Option("--csv")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
) -> None:
    """nestegg's tuner and MetaSchedule at equal trials."""
    machine = pin(1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and, on the way out, what it started
    os.environ["TVM_NUM_THREADS"] = "1"
    import harness

    DATA.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(sys.stderr):  # MetaSchedule writes what it does there
        found = [compare(name, trials) for name in only.split(",")]
    curves = [row for f in found for row in f.pop("curves")]
    if csv_file is not None:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, curves[0])
            writer.writeheader()
            writer.writerows(curves)
    report = {
        "command": " ".join(["python", "benchmarks/metaschedule.py", *sys.argv[1:]]),
        "machine": str(machine),
        "versions": harness.versions("apache-tvm", "xgboost", "llvmlite"),
        "cases": found,
    }
    if as_json:
        print(json.dumps(report))
        return
    header = ["case", "trials", "nestegg", "metaschedule", "ratio"]
    table = [[f["case"], *(str(r[c]) for c in header[1:])] for f in found for r in f["at"]]
    harness.show("best so far, GFLOP/s", header, table, [report["command"], report["machine"], report["versions"]])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
