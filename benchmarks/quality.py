"""How good the analytic cost model's pick is: the extracted nest against the best of 400 measured ones.

    python benchmarks/quality.py [--suites matmul,conv,depthwise,memory] [--only C2,512] [--random 200] [--best 200]

For the costliest kernel of each case: nests drawn uniformly from the loop e-graph and the best ones under the
model are measured alone, on the same buffers; the ten fastest and the extracted one are then measured again,
interleaved, and `slowdown` is the extracted nest's time over the best of these. One thread.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

if TYPE_CHECKING:
    from peers import Case


SUITES = "matmul,conv,depthwise,memory"
FINALISTS, ROUNDS = 10, 7

Suites = Annotated[str, typer.Option(help="comma-separated")]
Only = Annotated[str, typer.Option(help="cases whose name contains one of these (comma-separated)")]
Random = Annotated[int, typer.Option("--random", help="nests drawn uniformly")]
Best = Annotated[int, typer.Option("--best", help="nests best under the model")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Markdown = Annotated[bool, typer.Option("--markdown", help="print a table for docs/results.md")]


def main(
    suites: Suites = SUITES, only: Only = "", drawn: Random = 200, best: Best = 200, seed: int = 0,
    as_json: Json = False, as_markdown: Markdown = False,
) -> None:  # fmt: skip
    """The analytic model's pick against the best of many measured nests."""
    machine = pin(1)
    wanted = [o.strip() for o in only.split(",") if o.strip()]
    rows = []
    for case in _cases(suites.split(",")):
        if not wanted or any(o in case.name for o in wanted):
            print(f"{case.name} …", end=" ", file=sys.stderr, flush=True)
            rows.append(_quality(case, drawn, best, seed))
            print(f"{rows[-1]['slowdown']:.3f}", file=sys.stderr, flush=True)
    geomean = math.exp(statistics.fmean(math.log(r["slowdown"]) for r in rows))
    report = {
        "command": " ".join(["python", "benchmarks/quality.py", *sys.argv[1:]]),
        "machine": str(machine),
        "kernels": rows,
        "geomean": round(geomean, 3),
        "worst": max(r["slowdown"] for r in rows),
    }
    if as_json:
        print(json.dumps(report))
        return
    import harness

    header = ["kernel", "extracted us", "best us", "slowdown", "best is", "median of drawn", "nests", "space"]
    table = [
        [
            r["name"], f"{r['extracted_us']:.1f}", f"{r['best_us']:.1f}", f"{r['slowdown']:.2f}", r["best_is"],
            f"{r['median_drawn']:.0f}x", str(r["measured"]), f"{r['programs']:.0e}",
        ]
        for r in rows
    ]  # fmt: skip
    table.append(["geomean", "", "", f"{geomean:.3f}", "", "", "", ""])
    notes = [f"`{report['command']}`", str(machine)]
    if as_markdown:
        print(harness.markdown("analytic model", header, table, notes))
    else:
        harness.show("analytic model", header, table, notes)


def _cases(suites: list[str]) -> Iterator[Case]:
    import cases

    made = {
        "matmul": [
            lambda s=s: cases.matmul(*s) for s in (*((n, n, n) for n in cases.SQUARES), *cases.BERT, *cases.ODD)
        ],
        "conv": [lambda r=r: cases.convolution(*r) for r in cases.RESNET18],
        "depthwise": [lambda r=r: cases.depthwise(*r) for r in cases.MOBILENET],
        "memory": cases.MEMORY,
    }
    unknown = [s for s in suites if s not in made]
    if unknown:
        raise typer.BadParameter(f"suite {unknown[0]!r} does not exist; choose from {', '.join(made)}")
    for suite in suites:
        for make in made[suite]:
            yield make()


def _quality(case: Case, drawn: int, best: int, seed: int) -> dict[str, Any]:
    import numpy as np

    import nestegg
    from nestegg.costmodel.measure import Bench
    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.beam import extract_nests
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build

    compiled = nestegg.optimize(case.source.program(), *case.source.inputs, threads=1, cache=False)
    call = max(compiled.program.calls, key=lambda c: c.seconds)
    kernel = call.kernel
    egraph = build(kernel, host(), 1)
    bench, rng = Bench(kernel, host()), np.random.default_rng(seed)
    patience = 40 * bench.seconds(call.nest)
    predicted = [s.nest for s in extract_nests(egraph, Roofline(host()), width=best)] if best else []
    random = [n for _ in range(drawn) if (n := egraph.sample(rng)) is not None]
    times = {n: (bench.seconds(n, samples=3, give_up=patience), who) for who, group in
             (("drawn", random), ("predicted", predicted)) for n in dict.fromkeys(group)}  # fmt: skip
    finalists = [call.nest, *sorted(times, key=lambda n: times[n][0])[:FINALISTS]]
    timers = [bench.load(n) for n in finalists]
    again = [min(t) for t in zip(*([t.seconds(2, 0.003) for t in timers] for _ in range(ROUNDS)), strict=True)]
    winner = min(range(len(finalists)), key=lambda k: again[k])
    slowest = [t for t, who in times.values() if who == "drawn"]
    return {
        "name": case.name,
        "kernel": str(kernel),
        "extracted_us": again[0] * 1e6,
        "best_us": again[winner] * 1e6,
        "slowdown": round(again[0] / again[winner], 3),
        "best_is": "extracted" if finalists[winner] == call.nest else times[finalists[winner]][1],
        "best_nest": replace(call, nest=finalists[winner]).schedule,
        "extracted_nest": call.schedule,
        "median_drawn": statistics.median(slowest) / again[winner] if slowest else math.nan,
        "measured": len(times),
        "programs": egraph.size,
    }


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
