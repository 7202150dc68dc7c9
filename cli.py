"""The `nestegg` command: one function a sub-command, and the tables they print.

Everything slow (jax, egglog, onnx, llvmlite) is imported by the command that needs it, so that `--help` is
quick. Whatever the user did wrong is a `NesteggError`: one line on stderr and exit code 2.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import __version__
from .cli_common import output_console, plain, strict_json
from .cli_models import imported_model
from .cli_tune import Log, tune
from .cli_vta import vta
from .ir.errors import NesteggError

if TYPE_CHECKING:

    from .cache import Usage
    from .compiler import Compiled

FAILED, BAD_INPUT = 1, 2
VTA = "vta"


class _Group(TyperGroup):
    """Turns a `NesteggError` of any sub-command into one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except NesteggError as e:
            typer.echo(f"nestegg: {' '.join(str(e).split())}", err=True)
            raise typer.Exit(BAD_INPUT) from None
        except MemoryError as e:
            typer.echo(f"nestegg: the memory does not suffice for this input ({e}): give smaller shapes", err=True)
            raise typer.Exit(BAD_INPUT) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="nestegg: a tensor and loop-program optimizer built on equality saturation.",
)


app.add_typer(vta, name="vta")
app.command()(tune)


class Method(StrEnum):
    """How a program is extracted from an e-graph."""

    greedy = "greedy"
    ilp = "ilp"
    tree = "tree"


class Scales(StrEnum):
    """Which scales quantized tensors may have."""

    any = "any"
    power_of_two = "power-of-two"


class Clipping(StrEnum):
    """How a calibration takes the range of a tensor."""

    minmax = "minmax"
    percentile = "percentile"


RulesFiles = Annotated[
    list[Path] | None,
    typer.Option("--rules", metavar="FILE", help="A Python file of your rules; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def main() -> None:
    """Entry point of the `nestegg` script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nestegg {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- optimize -------------------------------------------------------------------------------------


@app.command()
def optimize(
    model: Annotated[str, typer.Argument(help="An .onnx file, zoo:NAME, or package.module:factory.")],
    target: Annotated[
        str, typer.Option(help="The machine to compile for: cpu is this one, vta the accelerator.")
    ] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="Threads the program may run on; all CPUs by default.")
    ] = None,
    rules: RulesFiles = None,
    cost_model: Annotated[
        str, typer.Option(help="learned: re-rank each kernel's best nests; roofline: the analytic model alone.")
    ] = "learned",
    log: Log = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write an HTML report.")] = None,
    as_json: Json = False,
    dump_phases_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every stage as text, and the object file.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME=1,3,224,224", help="Shape of an ONNX input.")
    ] = None,
    cache: Annotated[bool, typer.Option(help="Load what was compiled before, and keep what is compiled.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the random inputs that verify the result.")] = 0,
    dump: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --target vta: write the accelerator's programs.")
    ] = None,
    accuracy_budget: Annotated[
        float | None, typer.Option(metavar="E", help="Relative error that quantization may cause; needs --ranges.")
    ] = None,
    ranges: Annotated[Path | None, typer.Option(metavar="FILE", help="What `nestegg calibrate` wrote.")] = None,
    scales: Annotated[Scales, typer.Option(help="Scales of quantized tensors.")] = Scales.any,
    accelerator: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,…",
            help="With --target vta: config, board, mhz, bandwidth (bytes/s) and latency (s) of the link, and host: "
            "how many times slower than this machine the CPU beside it is.",
        ),
    ] = None,
) -> None:
    """Optimize a model, verify it against float64, and say what was done.

    A factory is a callable without arguments that returns (fn, example_args), fn being a JAX function.

    Exit code: 0 verified, 1 verification failed, 2 bad input.
    """
    _check_writable(report, dump_phases_to)
    _check_writable(None, dump)
    if dump is not None and target != VTA:
        raise NesteggError(f"--dump writes programs of the accelerator: give --target {VTA}, not {target}")
    if accelerator is not None and target != VTA:
        raise NesteggError(f"--accelerator describes what --target {VTA} compiles for; the target is {target}")
    shapes = _shapes(shape or [])
    if target == VTA and accuracy_budget is None and ranges is None:
        return _optimize_for_vta(model, shapes, dump, seed, accelerator or "", cache, as_json)
    if target == VTA:
        if dump_phases_to is not None or report is not None:
            raise NesteggError(
                "--report and --dump-phases-to are of programs for a CPU alone: leave them away (--dump writes the "
                "accelerator's programs)"
            )
        given = {"accuracy_budget": accuracy_budget, "ranges": ranges, "threads": threads, "cost_model": cost_model}
        given |= {"rules": tuple(rules or ()), "log": log, "cache": cache}
        return _optimize_partitioned(model, shapes, given, accelerator or "", dump, seed, as_json)
    with _all_prints_to_stderr(), _progress(not as_json) as progress:
        progress("importing")
        imported = imported_model(model, shapes)
        from .compiler import Options, compile_graph
        from .report_text import described

        options = Options(
            target,
            threads,
            tuple(rules or ()),
            cache=cache,
            cost_model=cost_model,
            log=log,
            accuracy_budget=accuracy_budget,
            ranges=ranges,
            scales=scales.value,
        )
        compiled = compile_graph(imported, options, progress)
        progress("verifying")
        compiled.verify(seed=seed)
        progress("measuring")
        found: dict[str, Any] = described(compiled) | {
            "version": __version__,
            "measured_us": _measure(compiled, seed),
        }
        if dump_phases_to is not None:
            progress("writing the stages")
            compiled.dump_to(dump_phases_to)
        if report is not None:
            progress("writing the report")
            from .report_html import write

            write(compiled, found, report)
    if as_json:
        typer.echo(strict_json(found))
    else:
        _print_optimized(found)
        for what, where in (("report", report), ("stages", dump_phases_to)):
            if where is not None:
                typer.echo(f"{what:<12} {where}")
    if not found["verify"]["ok"]:
        raise typer.Exit(FAILED)


def _optimize_for_vta(
    model: str,
    shapes: dict[str, tuple[int, ...]],
    dump: Path | None,
    seed: int,
    accelerator: str,
    cache: bool,
    as_json: bool,
) -> None:
    """A model of integers, all of it on the accelerator."""
    from .cli_vta import accelerator_named, compiled_network, print_network

    chosen = accelerator_named(accelerator)
    with _all_prints_to_stderr():
        imported = imported_model(model, shapes)
        network, found = compiled_network(imported, seed, dump, chosen.config, chosen.board, cache)
    if as_json:
        typer.echo(strict_json(found))
    else:
        print_network(found)
        if dump is not None:
            typer.echo(f"{'programs':<12} {dump}: {len(network.programs)}")
    if not found["exact"]:
        raise typer.Exit(FAILED)


def _optimize_partitioned(
    model: str,
    shapes: dict[str, tuple[int, ...]],
    options: dict[str, Any],
    accelerator: str,
    dump: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """A model of floats, quantized within its budget: each kernel on the CPU or the accelerator."""
    from .cli_vta import accelerator_named, print_partitioned

    chosen = accelerator_named(accelerator)
    with _all_prints_to_stderr(), _progress(not as_json) as progress:
        progress("importing")
        imported = imported_model(model, shapes)
        from .compiler import Options, compile_partitioned

        program = compile_partitioned(imported, Options(VTA, **options), chosen, progress)
        progress("verifying")
        program.verify(seed=seed)
        found = program.report()
        written = [] if dump is None else program.dump(dump, *program.example_inputs(seed))
    if as_json:
        typer.echo(strict_json(found))
    else:
        print_partitioned(found)
        if dump is not None:
            typer.echo(f"{'programs':<12} {dump}: {len(written)}")
    if not found["verify"]["ok"]:
        raise typer.Exit(FAILED)


def _shapes(options: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for option in options:
        name, found, sizes = option.rpartition("=")
        try:
            given = tuple(int(n) for n in sizes.split(",") if n)
        except ValueError:
            found, given = "", ()
        if not found or min(given, default=1) < 1:
            raise NesteggError(f"--shape {option}: write it as name=1,3,224,224, with sizes of 1 or more")
        if shapes.setdefault(name, given) != given:
            raise NesteggError(f"--shape {option}: {name!r} is given another shape before; give one")
    return shapes


def _check_writable(report: Path | None, folder: Path | None) -> None:
    """Find out before the work, not after it, that a result cannot be written."""
    try:
        if report is not None:
            report.parent.mkdir(parents=True, exist_ok=True)
            report.open("a").close()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise NesteggError(f"{e.filename}: cannot be written ({e.strerror}); choose another place") from None


def _measure(compiled: Compiled, seed: int, budget: float = 0.2) -> float:
    """Median microseconds of a run, of as many as fit the budget (seconds), at least 3."""
    import statistics
    import time

    import numpy as np

    from .ir.types import DTYPES

    inputs = compiled.example_inputs(seed)
    outputs = [np.empty(t.shape, DTYPES[t.dtype].numpy) for t in compiled.graph.output_types]
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 10_000):
        begun = time.perf_counter()
        compiled.executable.run(inputs, outputs)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


def _print_optimized(r: dict[str, Any]) -> None:
    from rich.table import Table

    from .report_text import accounted, amount, verification

    console = output_console()
    threads = f"{r['threads']} thread{'s' if r['threads'] > 1 else ''}"
    console.print(f"[bold]{plain(r['source'])}[/] on {r['target']}, {threads}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kernel", no_wrap=True)
    table.add_column("domain", no_wrap=True)
    table.add_column("computes", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("e-nodes", "programs", "predicted us"):
        table.add_column(name, justify="right", no_wrap=True)
    for k in r["kernels"]:
        counts = (f"{k['enodes']:,}", amount(k["programs"]), f"{k['predicted_us']:,.1f}")
        table.add_row(k["name"], k["domain"], plain(k["computes"]), *counts)
    console.print(table)
    lines = Table.grid(padding=(0, 2))
    lines.add_row()
    for what, text in accounted(r):
        lines.add_row(f"[bold]{what}[/]", plain(text))
    ok = r["verify"]["ok"]
    colour = "bold green" if ok else "bold red"
    lines.add_row(f"[{colour}]verify {'ok' if ok else 'FAILED'}[/]", verification(r))
    console.print(lines)


# --- calibrate ------------------------------------------------------------------------------------


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="An .onnx file, zoo:NAME, or package.module:factory.")],
    data: Annotated[Path, typer.Option(metavar="FILE.npz", help="Arrays by input name, one sample or several.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the ranges go (JSON).")],
    method: Annotated[Clipping, typer.Option(help="How ranges are taken.")] = Clipping.minmax,
    percentile: Annotated[float, typer.Option(help="Elements below the upper bound, per cent.")] = 99.99,
    shape: Annotated[
        list[str] | None, typer.Option(metavar="NAME=1,3,224,224", help="Shape of an ONNX input.")
    ] = None,
) -> None:
    """Measure the ranges of a model's tensors on example data, for `optimize --ranges FILE --accuracy-budget E`.

    Exit code: 0 written, 2 bad input.
    """
    _check_writable(output, None)
    with _all_prints_to_stderr():
        from .calibration import calibrate as measure

        imported = imported_model(model, _shapes(shape or []))
        ranges = measure(imported, data=data, method=method.value, percentile=percentile)
        ranges.save(output)
    typer.echo(f"{output}: {len(ranges.tensors)} tensors, {ranges.samples} samples, {ranges.method}")


# --- extract --------------------------------------------------------------------------------------


@app.command()
def extract(
    file: Annotated[Path, typer.Argument(help="An e-graph in the extraction-gym JSON format.")],
    method: Annotated[
        Method, typer.Option(help="greedy (DAG), ilp (optimal), tree (optimal tree).")
    ] = Method.ilp,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="When to stop improving.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Extract the cheapest program (as a DAG) from a serialized e-graph.

    Exit code: 0 a valid choice, 1 not valid, 2 bad input.
    """
    from .extract.gym import extract_file

    if not (math.isfinite(time_limit) and time_limit > 0):
        raise NesteggError(f"--time-limit {time_limit}: give a positive number of seconds")
    with _all_prints_to_stderr():
        found = extract_file(file, method.value, time_limit)
    if as_json:
        typer.echo(strict_json(found))
    else:
        cost, bound = found["cost"], found["bound"]
        gap = 0.0 if cost <= bound or cost == 0 else (cost - bound) / cost
        state = "optimal" if gap <= 1e-9 else f"gap {gap:.2%}"
        valid = "valid" if found["valid"] else "NOT VALID"
        typer.echo(f"cost {cost:.10g}, bound {bound:.10g} ({state}), {found['seconds']:.2f} s, {valid}")
    if not found["valid"]:
        raise typer.Exit(FAILED)


# --- rules ----------------------------------------------------------------------------------------


@app.command(name="rules")
def list_rules(rules: RulesFiles = None, as_json: Json = False) -> None:
    """List every rule: kind, level, condition and source line."""
    from .ir.target import host
    from .rewrite.catalogue import all_rules, distinct
    from .rewrite.rule import load_rules

    shipped = all_rules(host().lanes())
    mine = [r for file in rules or () for r in load_rules(file)]
    rows = [
        {
            "name": r.name,
            "kind": r.kind,
            "level": r.level,
            "condition": r.condition,
            "where": _relative(r.where),
            "doc": r.doc,
        }
        for r in distinct([*shipped, *mine])
    ]
    if as_json:
        typer.echo(strict_json({"rules": rows}))
        return
    from rich.table import Table

    console = output_console()
    for level in dict.fromkeys(r["level"] for r in rows):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (f"{level} rule", "kind", "where"):
            table.add_column(column, no_wrap=True)
        table.add_column("what it says, and when", ratio=1)
        for r in (r for r in rows if r["level"] == level):
            condition = "" if r["condition"] == "always" else f"\n[dim]if {plain(r['condition'])}[/]"
            table.add_row(r["name"], r["kind"], r["where"], plain(r["doc"]) + condition)
        console.print(table)
        console.print()
    console.print(f"{len(rows)} rules", style="bold")


@app.command(name="check-rules")
def check_rules(
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="Check this rule only.")] = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check the rules of this file, not the shipped ones.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Instances to draw for each rule.")] = 100,
    as_json: Json = False,
) -> None:
    """Test rules on drawn instances; show the smallest counterexample of a wrong one.

    Exit code: 0 every rule holds, 1 one is refuted or vacuous (its condition was never met), 2 bad input.
    """
    if examples < 1:
        raise NesteggError(f"--examples {examples}: give 1 or more")
    from .testing.check import check_rules_command

    with _all_prints_to_stderr(), _progress(not as_json) as progress:
        progress("checking rules")
        found = check_rules_command(rule, rules, examples, lambda c: progress(f"{c.name}: {c.status}"))
    wrong = [r for r in found["rules"] if r["status"] not in ("proved", "tested")]
    if as_json:
        typer.echo(strict_json(found))
    else:
        _print_checks(found["rules"], len(wrong))
    if wrong:
        raise typer.Exit(FAILED)


def _print_checks(checks: list[dict[str, Any]], wrong: int) -> None:
    from rich.table import Table

    console = output_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("rule", "level", "kind", "status"):
        table.add_column(column, no_wrap=True)
    table.add_column("examples", justify="right")
    for c in checks:
        colour = "green" if c["status"] in ("proved", "tested") else "red"
        table.add_row(c["name"], c["level"], c["kind"], f"[{colour}]{c['status']}[/]", f"{c['examples']:,}")
    console.print(table)
    for c in checks:
        if c["counterexample"]:
            console.print(f"\n[bold red]{c['name']}[/] is refuted:")
            console.print(plain(c["counterexample"]))
    style = "bold red" if wrong else "bold green"
    count = f"{len(checks)} rule{'s' if len(checks) != 1 else ''}"
    console.print(f"{count}, {wrong or 'none'} refuted or vacuous", style=style)


# --- zoo ------------------------------------------------------------------------------------------


@app.command()
def zoo(
    name: Annotated[str | None, typer.Argument(help="A model; without one, all are listed.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.onnx", help="Where to write.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in models, or write one as an ONNX file."""
    from .ir import zoo as models

    if name is not None:
        where = output or Path(f"{models.find(name).name}.onnx")
        _check_writable(where, None)
        models.write(name, where)
        line = f"{where}: {models.find(name).doc}"
        typer.echo(strict_json({"model": name, "file": str(where)}) if as_json else line)
        return
    if output is not None:
        raise NesteggError(f"-o {output}: say which model to write: nestegg zoo NAME -o {output}")
    rows = [
        {
            "name": m.name,
            "inputs": [str(t) for t in m.inputs],
            "parameters": m.parameters,
            "macs": m.macs,
            "doc": m.doc,
        }
        for m in models.models()
    ]
    if as_json:
        typer.echo(strict_json({"models": rows}))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "input"):
        table.add_column(column, no_wrap=True)
    for column in ("parameters", "multiply-adds"):
        table.add_column(column, justify="right")
    table.add_column("what it is")
    for r in rows:
        table.add_row(
            r["name"], plain(", ".join(r["inputs"])), f"{r['parameters']:,}", f"{r['macs']:,}", r["doc"]
        )
    output_console().print(table)


# --- cache ----------------------------------------------------------------------------------------

cache_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The folder of compiled programs and kernels' schedules."
)
app.add_typer(cache_app, name="cache")


@cache_app.command()
def info(as_json: Json = False) -> None:
    """Say where the cache is and what it holds."""
    from .cache import Cache

    cache = Cache()
    _print_usage(cache.usage(), cache.limit, as_json)


@cache_app.command()
def clear(as_json: Json = False) -> None:
    """Remove everything from the cache; prints what there was."""
    from .cache import Cache

    cache = Cache()
    _print_usage(cache.clear(), cache.limit, as_json)


def _print_usage(usage: Usage, limit: int, as_json: bool) -> None:
    if as_json:
        counts = {"entries": usage.entries, "bytes": usage.bytes}
        typer.echo(strict_json({"folder": str(usage.folder), **counts, "limit": limit}))
        return
    from .report_text import size

    for kind, count in usage.entries.items():
        typer.echo(f"{kind:<10} {count:>7,} {size(usage.bytes[kind]):>11}")
    typer.echo(f"{'folder':<10} {usage.folder} (kept below {size(limit)})")


# --- printing -------------------------------------------------------------------------------------


def _relative(where: str) -> str:
    """A source line of the package as seen from its root; others as they are."""
    root = f"{Path(__file__).absolute().parent}{os.sep}"
    return where.removeprefix(root)


@contextlib.contextmanager
def _all_prints_to_stderr() -> Iterator[None]:
    """What a user's module or a library prints does not get between us and who reads our output."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[str], None]]:
    """A line on stderr with the stage and the time so far, while it lasts and if somebody watches."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda message: None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda message: bar.update(task, description=plain(message))


if __name__ == "__main__":
    main()
