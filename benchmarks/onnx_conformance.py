"""ONNX' backend tests, as they ship in the onnx package, through nestegg: passed, wrong, error, unsupported.

    python benchmarks/onnx_conformance.py [--op NAME] [--kind node] [--reference] [--json]

Every test is run and counted; none is skipped by name. A result passes as ONNX' own runner judges it (shape, dtype,
the test's tolerances). `unsupported` is what nestegg refuses with `UnsupportedError`; everything else that yields no
result is an `error`, a crash or the time limit too: cases run in processes of their own. By default a case is
optimized and compiled to machine code; `--reference` evaluates the imported graph in JAX instead.

Node tests pass as inputs what models hold as constants (the shape of a Reshape, the axes of a Slice). Shapes being
static, an input that an operand which decides shapes is computed from is fixed to the test's value, and only then; the
summary says in how many cases, and in how many of those no input was left.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "real")
"""`real` are the networks that ship as `light_*.onnx`."""
STATUSES = ("pass", "wrong", "error", "unsupported")
ROUNDING = 2.0**-22
"""Two units in the last place of float32. ONNX' absolute tolerance, 1e-7, is less than that for elements above 0.5: a
sum that cancels to zero is then expected with the very rounding errors of the machine that made the test."""
MEMORY = 16 << 30  # bytes of address space a worker may have


@dataclass(frozen=True)
class Test:
    """A backend test: ONNX' own `TestCase`, and the operators of its model (empty until the file is read)."""

    name: str
    kind: str
    case: Any

    def uses(self, operator: str) -> bool:
        model = self.case.model if self.case.model is not None else _model_on_disk(self.case)[0]
        return any(n.op_type.lower() == operator.lower() for n in model.graph.node)


@dataclass
class Outcome:
    """What became of a test. `fixed`: the inputs that were made constants; `left`: how many inputs remained;
    `rounding`: it passed only within the rounding of the largest element."""

    name: str
    kind: str
    status: str
    detail: str = ""
    fixed: list[str] = field(default_factory=list)
    left: int = 0
    rounding: bool = False
    seconds: float = 0.0


# --- the tests ---------------------------------------------------------------------------------------


def load(kinds: list[str]) -> list[Test]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [Test(c.name, k, c) for k in kinds for c in load_model_tests(kind=k)]
    return sorted(found, key=lambda t: (KINDS.index(t.kind), t.name))


def _model_on_disk(case: Any) -> tuple[Any, Path]:
    import onnx

    if case.url is not None:
        path = Path(onnx.__file__).parent.parent / case.url
        return onnx.load(path), path
    return onnx.load(Path(case.model_dir) / "model.onnx"), Path(case.model_dir)


def data_sets(test: Test) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """(model, inputs, expected outputs) of each data set; what is no tensor comes as it is."""
    case = test.case
    if case.model is not None:
        for inputs, outputs in case.data_sets:
            yield case.model, [_array(x) for x in inputs], [_array(x) for x in outputs]
    elif case.url is not None:
        yield _light(case)
    else:
        model, folder = _model_on_disk(case)
        for where in sorted(folder.glob("test_data_set*")):
            yield model, _arrays(where, "input"), _arrays(where, "output")


def _light(case: Any) -> tuple[Any, list[Any], list[Any]]:
    """A network without weights of its own: inputs as ONNX' runner makes them, the expected output beside it."""
    from onnx.backend.test.runner import Runner

    model, path = _model_on_disk(case)
    weights = {t.name for t in model.graph.initializer}
    inputs = [Runner.generate_dummy_data(i) for i in model.graph.input if i.name not in weights]
    outputs = [_tensor(path.with_name(f"{path.stem}_output_{k}.pb")) for k in range(len(model.graph.output))]
    return model, inputs, outputs


def _arrays(folder: Path, what: str) -> list[Any]:
    return [_tensor(folder / f"{what}_{k}.pb") for k in range(len(list(folder.glob(f"{what}_*.pb"))))]


def _tensor(path: Path) -> Any:
    import onnx

    return onnx.numpy_helper.to_array(onnx.load_tensor(str(path)))


def _array(x: Any) -> Any:
    import onnx

    return onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else x


# --- one test ----------------------------------------------------------------------------------------


def run(test: Test, reference: bool) -> Outcome:
    """A test's outcome; exceptions become `unsupported` or `error`."""
    from nestegg.ir.errors import UnsupportedError

    out = Outcome(test.name, test.kind, "pass")
    begun = time.perf_counter()
    try:
        for model, inputs, expected in data_sets(test):
            got = _results(model, inputs, reference, out)
            difference = _difference(test, got, expected)
            if difference and not _difference(test, got, expected, allowance=ROUNDING):
                out.rounding, difference = True, ""
            out.detail = out.detail or difference
        out.status = "wrong" if out.detail else "pass"
    except UnsupportedError as e:
        out.status, out.detail = "unsupported", str(e)
    except Exception as e:
        out.status, out.detail = "error", f"{type(e).__name__}: {e}".split("\n")[0]
    out.seconds = time.perf_counter() - begun
    return out


def _results(model: Any, inputs: list[Any], reference: bool, out: Outcome) -> list[np.ndarray]:
    from nestegg.ir.reference import evaluate

    program, constants = _imported(model, inputs)
    out.fixed, out.left = list(constants), len(program.input_names)
    given = dict(zip((i.name for i in model.graph.input if i.name not in _weights(model)), inputs, strict=False))
    args = [np.asarray(given[name], order="C") for name in program.input_names]
    if reference:
        return evaluate(program.graph, args)
    from nestegg.compiler import Options, compile_graph
    from nestegg.rewrite.saturate import Limits

    limits = Limits(nodes=2_000, iterations=6, seconds=5.0)
    light = Options(graph_limits=limits, extraction="greedy", time_limit=1.0, cache=False)
    results = compile_graph(program, light)(*args)
    return list(results) if isinstance(results, tuple) else [results]


def _weights(model: Any) -> set[str]:
    return {t.name for t in model.graph.initializer}


def _imported(model: Any, inputs: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The program, and the inputs that had to be fixed: those that an operand deciding shapes is computed from."""
    from nestegg.ir.errors import NotConstantError
    from nestegg.ir.onnx_frontend import from_onnx

    names = [i.name for i in model.graph.input if i.name not in _weights(model)]
    given = dict(zip(names, inputs, strict=False))
    constants: dict[str, Any] = {}
    while True:
        shapes = {
            n: a.shape
            for n, a in given.items()
            if n not in constants and isinstance(a, np.ndarray) and _is_open(model, n)
        }
        try:
            return from_onnx(model, shapes, constants), constants
        except NotConstantError as e:
            more = [n for n in e.inputs if n not in constants and given[n].ndim <= 1]
            if not more:
                raise
            constants |= {n: given[n] for n in more}


def _is_open(model: Any, name: str) -> bool:
    tensor = next(i.type.tensor_type for i in model.graph.input if i.name == name)
    return not tensor.HasField("shape") or any(not d.HasField("dim_value") for d in tensor.shape.dim)


def _difference(test: Test, got: list[np.ndarray], expected: list[Any], allowance: float = 0.0) -> str:
    """How the results differ from those expected, as ONNX' runner would see it; empty if they do not.

    `allowance`: absolute error accepted beside the test's own, as a share of the largest element.
    """
    from onnx.backend.test.runner import Runner

    floats = [e for e in expected if isinstance(e, np.ndarray) and e.dtype.kind == "f"]
    largest = max((float(np.max(np.abs(e), where=np.isfinite(e), initial=0.0)) for e in floats), default=0.0)
    try:
        Runner.assert_similar_outputs(expected, got, test.case.rtol, test.case.atol + allowance * largest)
    except (AssertionError, TypeError, AttributeError) as e:
        return " ".join(str(e).split())[:300] or type(e).__name__
    return ""


# --- many tests, in processes ------------------------------------------------------------------------


def _work(tests: list[Test], reference: bool, channel: Connection) -> None:
    """A worker: test numbers in, outcomes out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    while (k := channel.recv()) is not None:
        channel.send(run(tests[k], reference))


class _Worker:
    """A process that runs one test at a time, and is replaced when it dies or overruns."""

    def __init__(self, tests: list[Test], reference: bool) -> None:
        self.tests, self.reference = tests, reference
        self.current: int | None = None
        self.begun = 0.0
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")  # the tests are inherited; JAX is not loaded yet
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(self.tests, self.reference, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, k: int) -> None:
        self.current, self.begun = k, time.perf_counter()
        self.channel.send(k)

    def take(self, limit: float) -> Outcome | None:
        """The outcome if there is one: the worker's own, or that it died or took longer than `limit` seconds."""
        assert self.current is not None
        test = self.tests[self.current]
        try:
            if self.channel.poll():
                outcome = self.channel.recv()
                self.current = None
                return outcome
        except (EOFError, OSError):
            return self._replaced(test, f"the process ended with code {self._end()}")
        if time.perf_counter() - self.begun > limit:
            self._end()
            return self._replaced(test, f"took longer than {limit:g} s")
        return None

    def _end(self) -> int | None:
        self.process.join(0.5)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        return self.process.exitcode

    def _replaced(self, test: Test, why: str) -> Outcome:
        self.current = None
        self.channel.close()
        self._start()
        return Outcome(test.name, test.kind, "error", why, seconds=time.perf_counter() - self.begun)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def run_all(tests: list[Test], reference: bool, processes: int, limit: float, log: Path | None = None) -> list[Outcome]:
    """The outcomes of all tests. Those that `log` holds are taken from there, the others are added to it."""
    outcomes = _logged(log, tests)
    known = {(o.kind, o.name) for o in outcomes}
    order = [k for k, t in enumerate(tests) if (t.kind, t.name) not in known]
    random.Random(0).shuffle(order)  # so that what an interrupted run has done stands for the whole
    workers = [_Worker(tests, reference) for _ in range(min(processes, len(order)))]
    waiting = iter(order)
    try:
        while len(outcomes) < len(tests):
            for w in workers:
                if w.current is None and (k := next(waiting, None)) is not None:
                    w.give(k)
            busy = [w for w in workers if w.current is not None]
            wait([w.channel for w in busy], timeout=0.5)
            done = [o for w in busy if (o := w.take(limit)) is not None]
            outcomes += done
            if log is not None:
                with log.open("a") as f:
                    f.writelines(json.dumps(asdict(o)) + "\n" for o in done)
            if done and len(outcomes) % 100 < len(done):
                print(f"{len(outcomes)} of {len(tests)}", file=sys.stderr, flush=True)
    finally:
        for w in workers:
            w.stop()
    return sorted(outcomes, key=lambda o: (KINDS.index(o.kind), o.name))


def _logged(log: Path | None, tests: list[Test]) -> list[Outcome]:
    if log is None or not log.exists():
        return []
    wanted = {(t.kind, t.name) for t in tests}
    found = [Outcome(**json.loads(line)) for line in log.read_text().splitlines()]
    return list({(o.kind, o.name): o for o in found if (o.kind, o.name) in wanted}.values())


# --- the table ---------------------------------------------------------------------------------------


def counts(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """One row a kind, and a last row for all."""
    rows = []
    for kind in (*dict.fromkeys(o.kind for o in outcomes), "all"):
        of = [o for o in outcomes if kind in (o.kind, "all")]
        count = Counter(o.status for o in of)
        passed = [o for o in of if o.status == "pass"]
        rows.append(
            {"tests": kind, "cases": len(of)}
            | {s: count[s] for s in STATUSES}
            | {"pass %": round(100 * count["pass"] / len(of), 1)}
            | {"passed with fixed inputs": sum(bool(o.fixed) for o in passed)}
            | {"within rounding": sum(o.rounding for o in passed)}
            | {"with none left": sum(bool(o.fixed) and not o.left for o in passed)}
        )
    return rows


def markdown(outcomes: list[Outcome]) -> str:
    rows = counts(outcomes)
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(r[h]) for h in head) + " |" for r in rows])


def main(
    op: Annotated[str | None, typer.Option(help="only tests whose model uses this operator")] = None,
    kind: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(KINDS)}; all by default")] = None,
    name: Annotated[str | None, typer.Option(help="only tests whose name contains this")] = None,
    reference: Annotated[bool, typer.Option(help="evaluate the graph in JAX, compile nothing")] = False,
    processes: Annotated[int, typer.Option(help="worker processes")] = 2,
    limit: Annotated[float, typer.Option(help="seconds for one test")] = 120.0,
    show: Annotated[bool, typer.Option(help="list the tests that did not pass")] = False,
    log: Annotated[Path | None, typer.Option(help="write outcomes to this file, and take those that it holds")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="all outcomes as JSON")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="the table with the command under it")] = False,
) -> None:
    """ONNX' backend tests through nestegg."""
    tests = load(kind or list(KINDS))
    tests = [t for t in tests if (name is None or name in t.name) and (op is None or t.uses(op))]
    if not tests:
        raise typer.BadParameter("no test matches")
    begun = time.perf_counter()
    outcomes = run_all(tests, reference, processes, limit, log)
    if as_json:
        print(json.dumps({"counts": counts(outcomes), "outcomes": [asdict(o) for o in outcomes]}, indent=1))
        return
    if as_markdown:
        arguments = [a for a in sys.argv[1:] if a != "--markdown"]
        print(markdown(outcomes), "", f"`{' '.join(['python benchmarks/onnx_conformance.py', *arguments])}`", sep="\n")
        return
    for o in outcomes:
        if (show and o.status != "pass") or o.status in ("wrong", "error"):
            print(f"{o.status:12}{o.name}: {o.detail}")
    print(markdown(outcomes))
    print(f"{time.perf_counter() - begun:.0f} s in {processes} processes")


if __name__ == "__main__":
    typer.run(main)
