"""Guided saturation: what nests small limits give, the best blocks opened first, against what they gave before.

    python benchmarks/guided.py [--only depthwise,C2] [--limits 5000,20000,50000] [--json]

Kernels whose loop e-graphs are large. `whole`: saturated without a limit in the way. `plain`: under the limit, without
a guide, which leaves a coarse space of few factors an axis. `roofline`, `learned`: the blocks opened best first, as
that model sees them. Of each e-graph the nest is extracted that is best under the roofline. `predicted` is its time
under the roofline over that of the whole space's, `measured` the same of measured times (one loop, interleaved rounds,
one thread); `seconds` is what saturation took.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

if TYPE_CHECKING:
    from nestegg.ir.loops import Lowered
    from nestegg.rewrite.loop_egraph import LoopEGraph

LIMITS = "5000,20000,50000"
ROUNDS, SAMPLE = 9, 0.004
#: Names of cases, in `cases.py`; convolutions by their definition.
KERNELS = "100x300x200,509x251x127,28x28x256,56x56x128,C2,C9"


def kernel_of(name: str) -> Lowered:
    """The costliest kernel of a case."""
    import cases as suites

    import nestegg
    from nestegg.compiler import Options

    convolutions = {c[0]: c for c in suites.RESNET18}
    if name in convolutions:
        case = suites.convolution(*convolutions[name])
    else:
        made = (*(suites.depthwise(*d) for d in suites.MOBILENET), *(suites.matmul(*m) for m in suites.ODD))
        case = next(c for c in made if c.name == name)
    options = Options(threads=1, cost_model="roofline", rounding_gain=1.0)
    compiled = nestegg.optimize(case.source.program(), *case.source.inputs, options=options)
    return max(compiled.program.calls, key=lambda c: c.seconds).kernel


def spaces(kernel: Lowered, limits: list[int]) -> Iterator[tuple[str, int, Callable[[], LoopEGraph]]]:
    """(how, limit, what builds it) of every e-graph compared; the whole space first."""
    from nestegg.costmodel.mlp import LearnedModel
    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.guide import BestFirst
    from nestegg.ir.target import host
    from nestegg.rewrite.loop_egraph import build, build_guided
    from nestegg.rewrite.saturate import Limits

    target = host()
    yield "whole", 0, lambda: build(kernel, target, limits=Limits(nodes=4_000_000, seconds=120.0))
    for nodes in limits:
        fewer = Limits(nodes=nodes)
        yield "plain", nodes, lambda fewer=fewer: build(kernel, target, limits=fewer)
        for model in (Roofline(target), LearnedModel(target)):
            guide = BestFirst(model)
            yield model.name, nodes, lambda g=guide, f=fewer: build_guided(kernel, target, g, limits=f)


def compare(name: str, limits: list[int]) -> list[dict[str, Any]]:
    """The rows of a kernel."""
    from nestegg.costmodel.measure import Bench
    from nestegg.costmodel.roofline import Roofline
    from nestegg.extract.beam import extract_nests
    from nestegg.ir.target import host

    kernel = kernel_of(name)
    rows, nests = [], []
    for how, limit, make in spaces(kernel, limits):
        begun = time.perf_counter()
        egraph = make()
        seconds = time.perf_counter() - begun
        row = {"kernel": name, "how": how, "limit": limit, "enodes": egraph.report.enodes, "seconds": round(seconds, 2)}
        if egraph.size:
            best = extract_nests(egraph, Roofline(host()))[0]
            nests.append(best.nest)
            row["predicted_us"] = best.seconds * 1e6
        else:
            nests.append(None)
        rows.append(row)
    bench = Bench(kernel, host())
    timers = {n: bench.load(n) for n in dict.fromkeys(nests) if n is not None}
    times: dict[Any, list[float]] = {n: [] for n in timers}
    for _ in range(ROUNDS):
        for nest, timer in timers.items():
            times[nest].append(timer.seconds(1, SAMPLE))
    whole = times[nests[0]]
    for row, nest in zip(rows, nests, strict=True):
        if nest is not None:
            row["measured_us"] = round(statistics.median(times[nest]) * 1e6, 1)
            row["measured"] = round(statistics.median(a / b for a, b in zip(times[nest], whole, strict=True)), 3)
            row["predicted"] = round(row["predicted_us"] / rows[0]["predicted_us"], 3)
    return rows


def main(
    only: Annotated[str, typer.Option(help="comma-separated names of cases")] = KERNELS,
    limits: Annotated[str, typer.Option(help="comma-separated numbers of e-nodes")] = LIMITS,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
) -> None:
    """Nests found under small limits, guided and not."""
    machine = pin(1)
    rows = []
    for name in only.split(","):
        rows += compare(name, [int(n) for n in limits.split(",")])
        print(f"{name}: done", file=sys.stderr, flush=True)
    report = {
        "command": " ".join(["python", "benchmarks/guided.py", *sys.argv[1:]]),
        "machine": str(machine),
        "rows": rows,
    }
    if as_json:
        print(json.dumps(report))
        return
    import harness

    header = ["kernel", "how", "limit", "enodes", "seconds", "predicted", "measured", "measured_us"]
    table = [[str(r.get(c, "none")) for c in header] for r in rows]
    harness.show("guided saturation", header, table, [report["command"], report["machine"]])


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
    app.command()(main)
    app()
