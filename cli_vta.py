"""The `nestegg vta` sub-commands: programs of the accelerator as files, run, assembled, checked, timed; models of
integers compiled for it, and configurations explored.

A PROGRAM is a folder (`insns.bin`, `uops.bin`, `dram.bin`, `meta.json`) or a file of assembly text. Mounted by cli.py;
everything slow is imported by the command that needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .ir.errors import NesteggError, UnknownNameError

if TYPE_CHECKING:
    from .ir.imported import ImportedProgram
    from .stored import TilingStore
    from .vta.config import Config
    from .vta.network import Network
    from .vta.partition import Accelerator
    from .vta.program import Program
    from .vta.timing import Board

FAILED = 1
#: What `--accelerator` may set: the configuration, board and clock, the link to it (bytes a second, seconds), and how
#: many times slower than this machine the CPU beside it is.
ACCELERATOR_KEYS = ("config", "board", "mhz", "bandwidth", "latency", "host")

vta = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Programs for the VTA accelerator.")

ProgramPath = Annotated[Path, typer.Argument(metavar="PROGRAM", help="A program's folder, or its assembly text.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
BoardName = Annotated[
    str, typer.Option("--board", metavar="NAME", help="sim, pynq, or LATENCY,GAP in cycles, as in 64,1.")
]
IsaExt = Annotated[bool, typer.Option("--isa-ext", help="Allow MUL and LOAD ACC_8BIT.")]


def _program(path: Path) -> Program:
    from .vta.asm import assemble
    from .vta.errors import ProgramError
    from .vta.program import Program

    if path.is_dir():
        return Program.load(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ProgramError(f"{path}: neither a program's folder nor assembly text ({e})") from None
    return assemble(text)


def _board(name: str) -> Board:
    from .vta.timing import BOARDS, Board

    if name in BOARDS:
        return BOARDS[name]
    latency, found, gap = name.partition(",")
    if not (found and latency.isdecimal() and gap.isdecimal() and int(gap) > 0):
        raise UnknownNameError(f"--board {name}: choose {', '.join(BOARDS)}, or write LATENCY,GAP as in 64,1")
    return Board(int(latency), int(gap))


def _tilings() -> TilingStore:
    from .cache import Cache
    from .stored import TilingStore

    return TilingStore(Cache())


def accelerator_named(text: str) -> Accelerator:
    """The accelerator of `KEY=VALUE,…`. Raises `UnknownNameError` for a key or value that does not exist."""
    from .vta.config import DEFAULT, Config
    from .vta.partition import Accelerator, Link

    given: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        given[key] = value
    unknown = sorted(given.keys() - set(ACCELERATOR_KEYS))
    if unknown:
        raise UnknownNameError(f"--accelerator {text}: there is no {unknown[0]!r}; give {', '.join(ACCELERATOR_KEYS)}")

    def positive(key: str, default: float) -> float:
        try:
            value = float(given.get(key, default))
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf"):
            raise UnknownNameError(f"--accelerator {text}: {key} is a number above 0")
        return value

    board = _board(given.get("board", "sim"))
    board = board._replace(mhz=positive("mhz", board.mhz))
    usual = Link.of(board)
    link = Link(positive("bandwidth", usual.bandwidth), positive("latency", usual.latency))
    config = Config.from_name(given["config"]) if "config" in given else DEFAULT
    return Accelerator(config, board, link, host=positive("host", 1.0))


ConfigName = Annotated[
    str | None, typer.Option("--config", metavar="NAME", help="A configuration, as in 1x16_i8w8a32_15_15_18_17.")
]


def _is_model(name: str) -> bool:
    """Whether an argument names a model rather than a program's files."""
    return name.startswith("zoo:") or name.endswith(".onnx") or (":" in name and not Path(name).exists())


def compiled_network(
    imported: ImportedProgram, seed: int, dump: Path | None, config: Config, board: Board, cache: bool = True
) -> tuple[Network, dict[str, Any]]:
    """A model of integers compiled for the accelerator and run on random inputs: the network, and its report with
    whether the outputs are the graph's (`exact`). `dump`: where to write its programs; `cache`: use schedules that were
    found before, and keep those that are found."""
    import numpy as np

    from .ir.reference import evaluate
    from .vta.network import compile_network

    network = compile_network(imported.graph, config, board, tilings=_tilings() if cache else None)
    rng, half = np.random.default_rng(seed), 1 << (config.inp_bits - 1)
    inputs = [rng.integers(-half, half, t.shape).astype(np.int8) for t in imported.graph.input_types]
    found = network(*inputs) if dump is None else network.dump(dump, *inputs)
    expected = evaluate(imported.graph, inputs)
    exact = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return network, network.report() | {"exact": exact}


def print_network(r: dict[str, Any]) -> None:
    """The report of a network as a table."""
    typer.echo(f"{'kernel':<58}{'cycles':>10}{'busy':>8}{'read':>12}{'written':>10}")
    for k in r["kernels"]:
        moved = f"{k['read_bytes']:>12,}{k['written_bytes']:>10,}"
        typer.echo(f"{k['result']:<58}{k['cycles']:>10,}{k['utilisation']:>8.1%}{moved}")
    typer.echo(f"\n{'cycles':<12} {r['cycles']:,} on {r['config']}, multipliers busy {r['utilisation']:.1%}")
    typer.echo(f"{'streams':<12} {r['streams']}; packed by the CPU: {', '.join(r['packed_by_the_cpu'])}")
    typer.echo(f"{'outputs':<12} {'equal to' if r['exact'] else 'DIFFERENT from'} the integer reference")


def print_partitioned(r: dict[str, Any]) -> None:
    """The report of a program for a CPU and an accelerator."""
    t = r["target"]
    beside = f"beside a CPU {t['host']:g} times slower than this one" if t["host"] != 1 else "beside this CPU"
    typer.echo(f"{'compiled for':<12} {t['vta']} at {t['mhz']:g} MHz, {beside}\n")
    for k in r["kernels"]:
        typer.echo(f"{k['side']}  {k['result']:<22} {k['reason']}")
    for t in r["transfers"]:
        typer.echo(f"to {t['to']:<4} {t['tensor']:<20} {t['bytes']:,} bytes, {t['us']:.2f} us")
    us, v = r["predicted_us"], r["verify"]
    typer.echo(f"\n{'predicted':<12} {us['cpu']:.2f} us CPU, {us['vta']:.2f} VTA, {us['transfers']:.2f} transfers")
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in r["seconds"].items())
    typer.echo(f"{'compiled in':<12} {sum(r['seconds'].values()):.1f} s: {stages}")
    typer.echo(f"{'error':<12} {v['max_rel_err']:.3g} of {v['bar']:.3g} allowed")
    typer.echo(f"{'exact':<12} {v['vta_exact']} of {v['vta_kernels']} kernels of the accelerator")
    typer.echo(f"{'simulated':<12} {r['simulated']}")


@vta.command()
def run(
    program: Annotated[str, typer.Argument(help="A program's folder or assembly text, or a model of integers.")],
    profile: Annotated[
        str, typer.Option(metavar="NAME", help="Whose behaviour: strict, strict-ext, loose, fsim, hls, rtl.")
    ] = "strict",
    board: BoardName = "sim",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write each output region to DIR/NAME.bin.")
    ] = None,
    config: ConfigName = None,
    seed: Annotated[int, typer.Option(help="Seed of a model's random inputs.")] = 0,
    as_json: Json = False,
) -> None:
    """Run a program on both simulators: its outputs, what it moved and computed, and its cycles. A model (an .onnx
    file, zoo:NAME, package.module:factory) is compiled first, for --config, and compared with the integer reference.

    Exit code: 0 it ran and its outputs are as recorded (or nothing is recorded), 1 they differ, 2 it cannot run.
    """
    if _is_model(program):
        return _run_model(program, board, config, seed, as_json)
    import hashlib
    from dataclasses import asdict

    from .vta.analysis import analyse
    from .vta.functional import PROFILES
    from .vta.functional import run as execute
    from .vta.timing import simulate

    if profile not in PROFILES:
        raise UnknownNameError(f"--profile {profile}: choose {', '.join(PROFILES)}")
    loaded, timing = _program(Path(program)), _board(board)
    result = execute(loaded, PROFILES[profile])
    analysis = analyse(simulate(loaded.stream, loaded.config, timing))
    outputs = []
    for o in loaded.outputs:
        data = result.dram[o.address : o.address + o.size].tobytes()
        found = hashlib.sha256(data).hexdigest()
        expected = None if o.sha256 is None else found == o.sha256
        outputs.append({"name": o.name, "address": o.address, "bytes": o.size, "sha256": found, "expected": expected})
        if output is not None:
            _write(output / f"{o.name}.bin", data)
    counters = asdict(result.counters)
    if as_json:
        found = {"outputs": outputs, "counters": counters, "timing": analysis.to_json()}
        typer.echo(json.dumps(found))
    else:
        for o in outputs:
            verdict = {None: "", True: ", as expected", False: ", NOT as expected"}[o["expected"]]
            typer.echo(f"{o['name']:<12} {o['bytes']:,} bytes at {o['address']:#x}{verdict}")
            typer.echo(f"{'':<12} sha256 {o['sha256']}")
        typer.echo(f"{'counted':<12} {', '.join(f'{name} {n:,}' for name, n in counters.items())}")
        typer.echo(
            f"{'time':<12} {analysis.cycles:,} cycles ({analysis.milliseconds:.3f} ms at {timing.mhz:g} MHz), "
            f"multipliers busy {analysis.utilisation:.1%}, limit: {analysis.bound_by}"
        )
    if any(o["expected"] is False for o in outputs):
        raise typer.Exit(FAILED)


def _run_model(model: str, board: str, config: str | None, seed: int, as_json: bool) -> None:
    from .cli_models import imported_model
    from .vta.config import DEFAULT, Config

    chosen = Config.from_name(config) if config else DEFAULT
    _, found = compiled_network(imported_model(model, {}), seed, None, chosen, _board(board))
    if as_json:
        typer.echo(json.dumps(found))
    else:
        print_network(found)
    if not found["exact"]:
        raise typer.Exit(FAILED)


@vta.command()
def asm(
    text: Annotated[Path, typer.Argument(help="A file of assembly text.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write the program.")],
) -> None:
    """Assemble text to a program's folder."""
    program = _program(text)
    try:
        program.save(output)
    except OSError as e:
        raise NesteggError(f"{output}: cannot be written ({e.strerror}); choose another place") from None
    count = f"{len(program.stream)} instructions, {len(program.uops) // 4} micro-ops"
    typer.echo(f"{output}: {count}, {sum(len(s.data) for s in program.data):,} bytes of data")


@vta.command()
def disasm(
    program: Annotated[Path, typer.Argument(help="A program's folder, or a file of instructions alone (insns.bin).")],
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="Configuration of bare instructions: 1x16_i8w8a32_15_15_18_17.")
    ] = None,
) -> None:
    """Print a program as assembly text, which `nestegg vta asm` reads back."""
    from .vta.asm import disassemble, format_program
    from .vta.config import DEFAULT, Config

    if program.is_dir():
        typer.echo(format_program(_program(program)), nl=False)
        return
    try:
        code = program.read_bytes()
    except OSError as e:
        raise NesteggError(f"{program}: cannot be read ({e.strerror})") from None
    for line in disassemble(code, Config.from_name(config) if config else DEFAULT):
        typer.echo(line)


@vta.command()
def check(program: ProgramPath, isa_ext: IsaExt = False, as_json: Json = False) -> None:
    """Check a program without running it: legality, tokens, deadlocks, races. docs/vta.md lists the codes.

    Exit code: 0 no error (there may be warnings), 1 an error, 2 bad input.
    """
    from .vta.check import check as find
    from .vta.check import errors
    from .vta.legality import CODES

    loaded = _program(program)
    findings = find(loaded, isa_ext)
    wrong = errors(findings)
    if as_json:
        rows = [
            {"code": f.code, "error": f.error, "index": f.index, "text": CODES[f.code].text, "detail": f.detail}
            for f in findings
        ]
        typer.echo(json.dumps({"ok": not wrong, "findings": rows}))
    else:
        from .vta.asm import disassemble

        lines = disassemble(loaded.code, loaded.config) if len(loaded.code) % 16 == 0 else []
        for f in findings:
            typer.echo(f"{'error' if f.error else 'warning'} {f}")
            if f.index is not None:
                typer.echo(f"    {lines[f.index]}")
        typer.echo(f"{len(loaded.code) // 16} instructions, {len(wrong)} errors, {len(findings) - len(wrong)} warnings")
    if wrong:
        raise typer.Exit(FAILED)


@vta.command()
def trace(
    program: ProgramPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="By its suffix: .json (Chrome), .html or .png.")
    ],
    board: BoardName = "sim",
) -> None:
    """Write the timeline of a program: for chrome://tracing or Perfetto, as a page, or as a picture."""
    from .vta.check import check as find
    from .vta.check import errors
    from .vta.timing import simulate
    from .vta.trace import html, write_chrome, write_png

    if output.suffix not in (".json", ".html", ".png"):
        raise NesteggError(f"-o {output}: let the name end in .json, .html or .png")
    loaded, timing = _program(program), _board(board)
    for finding in errors(find(loaded, isa_ext=True)):
        raise NesteggError(f"{program}: {finding}; the timing model is of legal programs")
    timeline = simulate(loaded.stream, loaded.config, timing)
    try:
        match output.suffix:
            case ".json":
                write_chrome(timeline, output)
            case ".html":
                output.write_text(html(timeline, program.name))
            case _:
                write_png(timeline, output, program.name)
    except OSError as e:
        raise NesteggError(f"{output}: cannot be written ({e.strerror}); choose another place") from None
    typer.echo(f"{output}: {timeline.cycles:,} cycles, {len(timeline.stream)} instructions")


@vta.command()
def explore(
    model: Annotated[str, typer.Argument(help="A model of integers: .onnx, zoo:NAME or package.module:factory.")],
    blocks: Annotated[str, typer.Option(metavar="LIST", help="Sizes of the block, as in 8,16,32.")] = "8,16,32",
    batches: Annotated[str, typer.Option(metavar="LIST", help="Rows of a batch, as in 1,2.")] = "1,2",
    halvings: Annotated[
        str, typer.Option(metavar="LIST", help="How often each data buffer is halved, independently.")
    ] = "0,2",
    base: ConfigName = None,
    board: BoardName = "sim",
    effort: Annotated[int, typer.Option(help="Programs timed for each layer of each configuration.")] = 6,
    png: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw cycles against on-chip memory.")] = None,
    as_json: Json = False,
) -> None:
    """Compile a model for many configurations: cycles against on-chip memory and multipliers, and which are beaten by
    none."""
    from .cli_models import imported_model
    from .vta.config import DEFAULT, Config
    from .vta.explore import configurations, write_png
    from .vta.explore import explore as search

    start = Config.from_name(base) if base else DEFAULT
    sizes, rows = _log2("--blocks", blocks), _log2("--batches", batches)
    configs = list(configurations(start, sizes, rows, _numbers("--halvings", halvings)))
    if not configs:
        raise NesteggError("none of these configurations is legal: see `nestegg.vta.config`")
    shown = (lambda message: None) if as_json else lambda message: typer.echo(message, err=True)
    points = search(imported_model(model, {}).graph, configs, _board(board), effort, shown, _tilings())
    if png is not None:
        write_png(points, png, model)
    if as_json:
        typer.echo(json.dumps({"model": model, "points": [p.to_json() for p in points]}))
    else:
        typer.echo(f"{'':<2}{'configuration':<30}{'cycles':>12}{'busy':>8}{'SRAM bytes':>12}{'multipliers':>12}")
        for p in points:
            figures = f"{p.cycles:>12,}{p.utilisation:>8.1%}{p.sram_bytes:>12,}{p.macs:>12,}"
            typer.echo(f"{'*' if p.best else '':<2}{p.config.name:<30}{p.reason or figures}")
        typer.echo(f"* beaten by none, {sum(p.best for p in points)} of {len(points)}")


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(p.isdecimal() for p in parts):
        raise NesteggError(f"{option} {text}: write whole numbers with commas between them")
    return [int(p) for p in parts]


def _log2(option: str, text: str) -> list[int]:
    found = _numbers(option, text)
    if any(n == 0 or n & (n - 1) for n in found):
        raise NesteggError(f"{option} {text}: give powers of two")
    return [n.bit_length() - 1 for n in found]


@vta.command()
def vectors(file: Annotated[Path, typer.Argument(help="A file of recorded programs.")], as_json: Json = False) -> None:
    """Run recorded programs: are the outputs equal, and how far are the cycles from the recorded ones?

    Exit code: 0 all outputs are equal, 1 one differs or cannot run, 2 bad input.
    """
    from .vta.vectors import compare, read

    rows: list[dict[str, Any]] = [compare(recorded) for recorded in read(file)]
    if as_json:
        typer.echo(json.dumps({"programs": rows}))
    else:
        for row in rows:
            errors = {key: row["cycles"][key] - n for key, n in row["recorded_cycles"].items() if key in row["cycles"]}
            cycles = ", ".join(f"{key}: {row['cycles'][key]:,} ({error:+d})" for key, error in errors.items())
            state = "equal" if row["output_equal"] else row.get("error", "DIFFERENT")
            typer.echo(f"{row['id']!s:<28} output {state}, cycles {cycles}")
    if not all(row["output_equal"] for row in rows):
        raise typer.Exit(FAILED)


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as e:
        raise NesteggError(f"{path}: cannot be written ({e.strerror}); choose another place") from None
