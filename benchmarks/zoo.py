"""Every model of the zoo, from both front ends: verified, without fallbacks; what compiling it takes, cold and warm.

    python benchmarks/zoo.py [NAME...] [--log FILE] [--seconds 300] [--markdown]

Each model is compiled three times in a cache folder of its own: cold; with the kernels' schedules known (graph
saturation and extraction are then all there is to do); and once more, when its machine code is loaded. The second front
end comes after the first in the same folder, so its cold compilation finds the schedules of the kernels that both have.
The run stops after `--seconds`, and goes on from `--log` when it is started again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

if TYPE_CHECKING:
    from nestegg.compiler import Compiled
    from nestegg.ir.imported import ImportedProgram

FRONT_ENDS = ("jax", "onnx")


@dataclass
class Outcome:
    """One model from one front end. Times in seconds; `graph_s` is saturation and extraction with known schedules."""

    model: str
    front_end: str
    threads: int
    ok: bool = False
    error: str = ""
    max_rel_err: float = 0.0
    xla_rel_err: float = 0.0
    fallbacks: int = 0
    operators: int = 0
    enodes: int = 0
    stopped_by: str = ""
    kernels: int = 0
    cold_s: float = 0.0
    saturation_s: float = 0.0
    graph_s: float = 0.0
    loaded_s: float = 0.0
    gap: float = 0.0
    greedy_over_ilp: float = 0.0
    peak: int = 0
    live: int = 0
    tensors: int = 0


def imported(name: str, front_end: str) -> ImportedProgram:
    from nestegg.compiler import import_program
    from nestegg.ir import zoo

    return import_program(f"zoo:{name}" if front_end == "jax" else zoo.onnx_model(name))


def timed(program: ImportedProgram, threads: int) -> tuple[Compiled, float]:
    from nestegg.compiler import Options, compile_graph

    begun = time.perf_counter()
    compiled = compile_graph(program, Options(threads=threads))
    return compiled, time.perf_counter() - begun


def measure(out: Outcome) -> None:
    """Compile, verify and fill in the figures."""
    from nestegg.cache import Cache

    program = imported(out.model, out.front_end)
    compiled, out.cold_s = timed(program, out.threads)
    found = compiled.verify()
    out.ok, out.max_rel_err, out.xla_rel_err = found.ok, found.max_rel_err, found.xla_rel_err
    report: dict[str, Any] = compiled.report().to_json()
    out.fallbacks, out.kernels = len(report["fallbacks"]), len(report["kernels"])
    graph, memory = report["graph"], report["memory"]
    out.operators, out.enodes = sum(graph["operators"].values()), graph["enodes"]
    out.stopped_by, out.gap = graph["stopped_by"], report["extraction"]["gap"]
    extraction = report["extraction"]
    out.greedy_over_ilp = extraction["greedy_cost"] / extraction["cost"]
    out.peak, out.live, out.tensors = memory["peak"], memory["largest_live_set"], memory["sum_of_tensors"]
    shutil.rmtree(Cache().folder / "programs")
    again, _ = timed(program, out.threads)
    out.saturation_s = again.seconds["graph saturation"]
    out.graph_s = out.saturation_s + again.seconds["extraction and scheduling"]
    loaded, out.loaded_s = timed(program, out.threads)
    assert loaded.cached["hit"], "the program comes from the cache"


def run(model: str, front_ends: list[str], threads: int) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NESTEGG_CACHE_DIR"] = folder
        for front_end in front_ends:
            out = Outcome(model, front_end, threads)
            try:
                measure(out)
            except Exception as e:
                out.ok, out.error = False, f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
            yield out


HEADER = [
    "model", "from", "verified", "error", "XLA's", "fallbacks", "operators", "e-nodes", "stopped by", "kernels",
    "cold s", "saturation s", "with extraction s", "loaded s", "gap %", "greedy / ILP", "arena / live", "sum MiB",
]  # fmt: skip


def rows(outcomes: list[Outcome]) -> list[list[str]]:
    return [
        [
            o.model, o.front_end, "yes" if o.ok else f"NO {o.error}", f"{o.max_rel_err:.1e}", f"{o.xla_rel_err:.1e}",
            str(o.fallbacks), f"{o.operators:,}", f"{o.enodes:,}", o.stopped_by, str(o.kernels), f"{o.cold_s:.1f}",
            f"{o.saturation_s:.2f}", f"{o.graph_s:.2f}", f"{o.loaded_s:.2f}", f"{o.gap:.2%}",
            f"{o.greedy_over_ilp:.4f}", f"{o.peak / max(o.live, 1):.2f}", f"{o.tensors / 2**20:.1f}",
        ]
        for o in outcomes
    ]  # fmt: skip


def main(
    names: Annotated[list[str] | None, typer.Argument(help="models of the zoo; all by default")] = None,
    front_ends: Annotated[str, typer.Option(help="comma-separated")] = ",".join(FRONT_ENDS),
    threads: Annotated[int, typer.Option(help="threads that the programs may run on")] = 1,
    seconds: Annotated[float, typer.Option(help="begin no model after this time")] = 1e9,
    log: Annotated[Path | None, typer.Option(help="add outcomes to this file, and take those that it holds")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="a table for docs/results.md")] = False,
) -> None:
    """Compile and verify the zoo."""
    import harness

    from nestegg.ir import zoo

    chosen = names or [m.name for m in zoo.models()]
    wanted = [(m, f) for m in chosen for f in front_ends.split(",")]
    known = [Outcome(**json.loads(line)) for line in log.read_text().splitlines()] if log and log.exists() else []
    done = {(o.model, o.front_end): o for o in known if o.threads == threads}
    begun = time.perf_counter()
    for model in chosen:
        todo = [f for m, f in wanted if m == model and (m, f) not in done]
        for o in run(model, todo, threads) if time.perf_counter() - begun < seconds else ():
            done[model, o.front_end] = o
            print(f"{model} from {o.front_end}: {'verified' if o.ok else o.error} {o.cold_s:.1f} s", file=sys.stderr)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(asdict(o)) + "\n")
    outcomes = [done[pair] for pair in wanted if pair in done]
    if as_json:
        print(json.dumps({"outcomes": [asdict(o) for o in outcomes]}))
    else:
        notes = [f"`{' '.join(['python benchmarks/zoo.py', *sys.argv[1:]])}`"]
        if as_markdown:
            print(harness.markdown("zoo", HEADER, rows(outcomes), notes))
        else:
            harness.show("zoo", HEADER, rows(outcomes), notes)
    if len(outcomes) < len(wanted):
        print(f"{len(wanted) - len(outcomes)} to do: start again with the same --log", file=sys.stderr)
        raise typer.Exit(3)
    if not all(o.ok and not o.fallbacks for o in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
