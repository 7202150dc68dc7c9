"""What the learned model changes in the zoo: every kernel whose nest it chose, against the roofline's nest.

    python benchmarks/learned.py [--models resnet18,mobilenet_v1] [--json]

A model is compiled with the learned model (the graph program is the same without it); each kernel whose nest is not the
roofline's is measured alone with both nests, in interleaved rounds. `ratio`: the roofline's time over the learned
pick's (above 1: the learned model is faster); kernels whose nests agree count as 1. One thread.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from typing import Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

MODELS = "mlp,lenet,dqn,resnet18,mobilenet_v1,squeezenet,bert_small,lstm_step"
ROUNDS = 9


def compare(model: str) -> dict[str, Any]:
    """The kernels of a model: how many nests differ, the ratios, and the seconds that the ranking took."""
    import nestegg
    from nestegg.costmodel.measure import Bench
    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.beam import swept
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build

    begun = time.perf_counter()
    compiled = nestegg.optimize(f"zoo:{model}", threads=1, cache=False)
    seconds = time.perf_counter() - begun
    ratios = []
    kernels = {c.kernel: (c, row) for c, row in zip(compiled.program.calls, compiled.found["kernels"], strict=True)}
    for kernel, (call, row) in kernels.items():
        if row["chosen_by"] != "learned":
            continue
        egraph = build(kernel, host(), 1)
        usual = swept(egraph, Roofline(host(), 1)).best(egraph.root)[0].nest
        bench = Bench(kernel, host())
        timers = [bench.load(n) for n in (usual, call.nest)]
        times = [[t.seconds(1, 0.002) for t in timers] for _ in range(ROUNDS)]
        ratios.append((statistics.median(a / b for a, b in times), row["gain"]))
    every = [r for r, _ in ratios] + [1.0] * (len(kernels) - len(ratios))
    return {
        "model": model,
        "kernels": len(kernels),
        "changed": len(ratios),
        "geomean": round(math.exp(statistics.fmean(map(math.log, every))), 4),
        "worst": round(min(every), 3),
        "best": round(max(every), 3),
        "expected": round(math.exp(statistics.fmean([math.log(g) for _, g in ratios] or [0.0])), 3),
        "compile_s": round(seconds, 2),
        "ratios": [round(r, 3) for r, _ in ratios],
    }


def main(
    models: Annotated[str, typer.Option(help="comma-separated")] = MODELS,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
) -> None:
    """The learned model's nests against the roofline's, over the zoo's kernels."""
    machine = pin(1)
    rows = []
    for model in models.split(","):
        rows.append(compare(model))
        print(f"{model}: {rows[-1]}", file=sys.stderr, flush=True)
    total = sum(r["kernels"] for r in rows)
    geomean = math.exp(sum(math.log(r["geomean"]) * r["kernels"] for r in rows) / total)
    report = {
        "command": " ".join(["python", "benchmarks/learned.py", *sys.argv[1:]]),
        "machine": str(machine),
        "models": rows,
        "kernels": total,
        "geomean": round(geomean, 4),
        "worst": min(r["worst"] for r in rows),
    }
    if as_json:
        print(json.dumps(report))
        return
    import harness

    columns = ("kernels", "changed", "geomean", "worst", "best", "expected", "compile_s")
    table = [[r["model"], *(str(r[c]) for c in columns)] for r in rows]
    table.append(["all", str(total), "", f"{geomean:.3f}", str(report["worst"]), "", "", ""])
    harness.show("learned against roofline", ["model", *columns], table, [report["command"], report["machine"]])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
