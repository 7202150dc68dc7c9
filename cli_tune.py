"""The `nestegg tune` command: measure nests of a model's kernels, learn from them, keep them in a log.

Mounted by cli.py.

It may be stopped or killed at any moment; the same command goes on where the log ends.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from .cli_common import output_console, strict_json
from .cli_models import imported_model
from .ir.errors import NesteggError

if TYPE_CHECKING:
    from rich.console import Console

    from .costmodel.log import TuningLog
    from .costmodel.tuner import Progress
    from .costmodel.worker import Measurer
    from .ir.target import Target

from .ir.loops import Lowered

Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE", help="The tuning log; by default the one that optimize looks into."),
]

#: Trials that every kernel gets at least, if there are as many.
LEAST = 8


def tune(
    model: Annotated[
        str, typer.Argument(help="An .onnx file, zoo:NAME, package.module:factory, or a kernel's digest in the log.")
    ],
    trials: Annotated[
        int, typer.Option(help="Nests to measure, of all kernels together; those in the log count.")
    ] = 64,
    log: Log = None,
    threads: Annotated[int | None, typer.Option(help="Threads a kernel may run on; all CPUs by default.")] = None,
    strategy: Annotated[
        str, typer.Option(help="transferred, scratch, roofline or random: how nests are proposed.")
    ] = "transferred",
    limit: Annotated[float, typer.Option(metavar="SECONDS", help="After which a nest has failed.")] = 10.0,
    workers: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="Measure on the workers of a Dask scheduler.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the proposals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Tune a model's kernels: optimize uses the fastest nest measured of a kernel, whichever model it is in.

    Exit code: 0 done, 1 no nest could be measured, 2 bad input, 130 stopped.
    """
    if trials < 1 or limit <= 0:
        raise NesteggError(f"--trials {trials} --limit {limit:g}: give numbers above 0")
    from .costmodel.log import TuningLog, default_log

    where = log or default_log()
    console = output_console()
    with TuningLog(where) as store, _display(console, not as_json) as show:
        try:
            rows = _tuned(model, trials, store, threads, strategy, limit, workers, seed, show)
        except KeyboardInterrupt:
            typer.echo(f"stopped; {where} holds what was measured, and the same command goes on", err=True)
            raise typer.Exit(130) from None
        for line in store.refused:
            typer.echo(f"nestegg: refused {line}", err=True)
    if as_json:
        typer.echo(strict_json({"log": str(where), "kernels": rows}))
    else:
        console.print(f"{sum(r['trials'] for r in rows)} trials in {where}")
    if not any(r["trials"] > r["failed"] for r in rows):
        raise typer.Exit(1)


def _tuned(
    model: str,
    trials: int,
    store: TuningLog,
    threads: int | None,
    strategy: str,
    limit: float,
    workers: str | None,
    seed: int,
    show: Callable[[str, Progress], None],
) -> list[dict[str, Any]]:
    """Every kernel tuned, as a row of figures each."""
    from .compiler import Options
    from .costmodel.tuner import Tuner, shares
    from .costmodel.worker import Effort
    from .ir.records import digest
    from .ir.target import host

    target, used = host(), Options(threads=threads).workers
    kernels = _kernels(model, store, used)
    rows = []
    with contextlib.closing(_measurer(workers, target, used)) as measurer:
        wanted = shares([k.seconds for k in kernels], trials, LEAST)
        for named, count in zip(kernels, wanted, strict=True):
            effort = Effort(limit=limit)
            tuner = Tuner(named.kernel, target, used, store, measurer, strategy=strategy, effort=effort, seed=seed)
            show(named.name, tuner.progress)
            while (left := count - len(tuner.trials)) > 0 and tuner.step(left):
                show(named.name, tuner.progress)
            p = tuner.progress
            rows.append(
                {"name": named.name, "kernel": digest(named.kernel), "trials": p.trials, "failed": p.failed,
                 "best_us": p.best * 1e6, "gflops": p.gflops, "correlation": p.correlation}
            )  # fmt: skip
    return rows


class _Named(NamedTuple):
    """A kernel to be tuned, and its share of the model's predicted time."""

    name: str
    kernel: Lowered
    seconds: float


def _kernels(model: str, store: TuningLog, threads: int) -> list[_Named]:
    """The distinct kernels of what MODEL names, the costliest first."""
    from .compiler import Options, compile_graph

    if (known := store.kernel(model)) is not None:
        return [_Named(model, known, 1.0)]
    compiled = compile_graph(imported_model(model, {}), Options(threads=threads, log=store.path))
    found: dict[Lowered, _Named] = {}
    for call, row in zip(compiled.program.calls, compiled.found["kernels"], strict=True):
        if row["programs"] < 2:
            continue
        before = found.get(call.kernel)
        found[call.kernel] = _Named(
            before.name if before else call.name, call.kernel, call.seconds + (before.seconds if before else 0.0)
        )
    return sorted(found.values(), key=lambda k: -k.seconds)


def _measurer(workers: str | None, target: Target, threads: int) -> Measurer:
    if workers is None:
        from .costmodel.worker import Worker

        return Worker(target, threads)
    from .costmodel.fleet import Fleet

    return Fleet(workers, target, threads)


@contextlib.contextmanager
def _display(console: Console, wanted: bool) -> Iterator[Callable[[str, Progress], None]]:
    """A table that is renewed after every round; without a terminal, its last state."""
    from rich.live import Live
    from rich.table import Table

    rows: dict[str, Progress] = {}

    def table() -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        made.add_column("kernel", no_wrap=True)
        for column in ("trials", "failed", "best us", "GFLOP/s", "predicted vs measured"):
            made.add_column(column, justify="right", no_wrap=True)
        for name, p in rows.items():
            agreement = "" if math.isnan(p.correlation) else f"r = {p.correlation:.2f}"
            figures = (f"{p.best * 1e6:,.1f}", f"{p.gflops:,.1f}") if math.isfinite(p.best) else ("", "")
            made.add_row(name, str(p.trials), str(p.failed), *figures, agreement)
        return made

    if not wanted:
        yield lambda name, progress: None
        return
    with Live(table(), console=console, auto_refresh=False) as live:

        def show(name: str, progress: Progress) -> None:
            rows[name] = progress
            live.update(table(), refresh=console.is_terminal)

        yield show
    if not console.is_terminal:
        console.print()
