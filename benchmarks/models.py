"""Whole models of the zoo against their peers, in interleaved rounds of one run; compile times beside.

    python benchmarks/models.py mlp dqn resnet18 [--threads 1] [--peers jax,onnxruntime,openvino,tvm] [--json]

Everyone has the same weights and the same input. Results are checked against JAX in float64. The milliseconds
include each contestant's Python call. `ratio` is the best peer's time over nestegg's (above 1: nestegg is
faster). `--memory` prepares and runs each contestant in a process of its own besides: what stays resident, and the most
that ever was, above what the process held before (the model with its weights included).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import Pinned, pin

if TYPE_CHECKING:
    from harness import Timing
    from peers import Case

PEERS = ("jax", "onnxruntime", "openvino", "tvm")


def case(name: str) -> Case:
    """A zoo model as a case. Raises `NesteggError` for an unknown name."""
    import numpy as np
    from peers import Case, Form, OnnxForm, Source

    from nestegg.ir import zoo

    fn, inputs = zoo.jax_model(name)
    info = next(m for m in zoo.models() if m.name == name)
    arrays = tuple(np.asarray(a) for a in inputs)

    def exact() -> np.ndarray:
        from nestegg.compiler import import_program
        from nestegg.ir.reference import evaluate

        return np.asarray(evaluate(import_program(fn, *arrays).graph, list(arrays), double=True)[0])

    return Case(
        name=name,
        flops=2.0 * info.macs,
        read=4.0 * info.parameters + sum(a.nbytes for a in arrays),
        written=0.0,
        forms=(Form("", fn, arrays),),
        source=Source(lambda: fn, arrays),
        onnx=(OnnxForm("", lambda: zoo.onnx_model(name), arrays),),
        exact=exact,
    )


def measure(name: str, pinned: Pinned, peers: list[str], rounds: int, gap_us: float) -> dict[str, Any]:
    import harness
    import peers as makers

    def progress(message: str) -> None:
        typer.echo(f"{time.strftime('%H:%M:%S')} {name}: {message}", err=True)

    this = case(name)
    progress("compiling")
    made = makers.contestants(this, ["nestegg", *peers], pinned.threads)
    plan = harness.Plan(rounds=rounds, gap=gap_us * 1e-6, limit=60.0)
    timings = harness.run(made, this.reference, plan, this.tolerance, progress)
    rival, mine = harness.best_peer(timings, "nestegg", peers), harness.best_of(timings, "nestegg")
    assert mine is not None
    compared = rival is not None and bool(mine.times)
    best = {
        c: t
        for c in ("nestegg", "nestegg call", "nestegg kernel", *peers)
        if (t := harness.best_of(timings, c))
    }

    def each(value: Any) -> dict[str, Any]:
        return {c: value(t) for c, t in best.items() if t.times}

    return {
        "name": name,
        "ms": each(lambda t: round(t.median * 1e3, 4)),
        "min_ms": each(lambda t: round(t.best * 1e3, 4)),
        "ratio_best_peer": round(harness.ratio(rival, mine), 3) if compared and rival else None,
        "ratio_of_minima": round(rival.best / mine.best, 3) if compared and rival else None,
        "best_peer": str(rival) if rival else None,
        "gflops": each(lambda t: round(this.flops / t.median / 1e9, 1)),
        "compile_s": each(_setup),
        "max_rel_err": each(lambda t: t.rel_err),
        "variants": {str(t): round(t.median * 1e3, 4) for t in timings if t.times},
        "errors": {str(t): t.error for t in timings if t.error},
        "disturbed": {str(t): t.disturbed for t in timings if t.disturbed},
    }


def memory(name: str, who: str, threads: int) -> dict[str, float] | None:
    """MiB that a contestant adds to a process of its own, or None if it fails there."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply(_memory, (name, who, threads))
        except Exception:
            return None


def _memory(name: str, who: str, threads: int) -> dict[str, float]:
    import harness
    import peers as makers

    this = case(name)
    for form in this.onnx:
        form.model()
    before = _resident()
    first = makers.contestants(this, [who], threads)[0]
    if isinstance(first, harness.Timing):
        raise RuntimeError(first.error)
    for _ in range(3):
        first.call()
    after = _resident()
    peak = float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    return {"resident_mib": round(after - before, 1), "peak_mib": round(peak - before, 1)}


def _resident() -> float:
    """MiB of this process in memory."""
    return float(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def _setup(t: Timing) -> float:
    return round(t.setup_s, 3)


def table(report: dict[str, Any]) -> tuple[str, list[str], list[list[str]], list[str]]:
    """Title, header, rows, notes."""

    def number(x: float | None, digits: int = 3, missing: str = "-") -> str:
        return missing if x is None else f"{x:.{digits}f}"

    peers = report["peers"]
    compiles = [f"{c} compile s" for c in ("nestegg", *peers)]
    header = ["model", "nestegg ms", *(f"{p} ms" for p in peers), "ratio", "of minima", "GFLOP/s", *compiles]
    rows = []
    for m in report["models"]:
        rows.append([
            m["name"],
            number(m["ms"].get("nestegg"), missing="failed"),
            *(number(m["ms"].get(p), missing="failed") for p in peers),
            number(m["ratio_best_peer"], 2),
            number(m["ratio_of_minima"], 2),
            number(m["gflops"].get("nestegg"), 1),
            *(number(m["compile_s"].get(c), 2) for c in ("nestegg", *peers)),
        ])  # fmt: skip
    rows.append(
        ["geomean", *[""] * (1 + len(peers)), number(report["geomean_ratio"], 2), *[""] * (3 + len(peers))]
    )
    notes = [
        f"`{report['command']}`",
        f"{report['machine']}; multiply-add peak {report['peak_gflops']:.0f} GFLOP/s; "
        + ", ".join(f"{k} {v}" for k, v in report["versions"].items()),
    ]
    for m in report["models"]:
        notes += [f"{m['name']}: {who} failed: {why}" for who, why in m["errors"].items()]
        if m.get("memory"):
            held = {who: f"{v['resident_mib']:.0f} (peak {v['peak_mib']:.0f})" for who, v in m["memory"].items() if v}
            notes.append(f"{m['name']}: MiB resident: " + ", ".join(f"{who} {text}" for who, text in held.items()))
        if m["disturbed"]:
            notes.append(f"{m['name']}: {sum(m['disturbed'].values())} samples disturbed by other processes")
    return "models: batch 1, float32", header, rows, notes


def main(
    names: Annotated[list[str], typer.Argument(help="models of the zoo (`nestegg zoo` lists them)")],
    threads: Annotated[int, typer.Option(help="threads, each bound to a core")] = 1,
    peers: Annotated[str, typer.Option(help="comma-separated")] = ",".join(PEERS),
    rounds: Annotated[int, typer.Option(help="samples a contestant")] = 15,
    gap_us: Annotated[float, typer.Option(help="microseconds of idleness before every call")] = 0,
    with_memory: Annotated[bool, typer.Option("--memory", help="measure memory, each in its own process")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="print a table for docs/results.md")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="write a bar chart of the ratios (PNG)")] = None,
) -> None:
    """Time zoo models against their peers."""
    wanted = [p.strip() for p in peers.split(",") if p.strip()]
    unknown = [p for p in wanted if p not in PEERS]
    if unknown:
        raise typer.BadParameter(f"peer {unknown[0]!r} does not exist; choose from {', '.join(PEERS)}")
    pinned = pin(threads)
    import harness
    import limits

    from nestegg import NesteggError
    from nestegg.ir import zoo

    try:
        for name in names:
            zoo.find(name)
    except NesteggError as error:
        raise typer.BadParameter(str(error)) from None
    peak = limits.measure(pinned, bandwidth=False).peaks["f32"]
    found = [measure(name, pinned, wanted, rounds, gap_us) for name in names]
    if with_memory:
        for m in found:
            m["memory"] = {who: memory(m["name"], who, threads) for who in ("nestegg", *wanted)}
    ratios = [m["ratio_best_peer"] for m in found if m["ratio_best_peer"]]
    report = {
        "command": " ".join(["python", "benchmarks/models.py", *sys.argv[1:]]),
        "machine": str(pinned),
        "threads": threads,
        "peers": wanted,
        "peak_gflops": round(peak, 1),
        "versions": harness.versions("numpy", "jax", "onnxruntime", "openvino", "apache-tvm", "llvmlite"),
        "models": found,
        "geomean_ratio": round(harness.geomean(ratios), 3) if ratios else None,
    }
    if plot is not None:
        series = {p: [_relative(m, p) for m in found] for p in ("nestegg", *wanted)}
        harness.bars(plot, f"models: {pinned}", "speed relative to the best peer", names, series, 1.0)
    if as_json:
        print(json.dumps(report))
    elif as_markdown:
        print(harness.markdown(*table(report)))
    else:
        harness.show(*table(report))


def _relative(m: dict[str, Any], column: str) -> float:
    peers = [v for c, v in m["ms"].items() if not c.startswith("nestegg")]
    return min(peers) / m["ms"][column] if peers and column in m["ms"] else float("nan")


if __name__ == "__main__":
    typer.run(main)
