"""Zoo models in small integers against the same models in floats: error, integer kernels, time, in one interleaved run.

    python benchmarks/quantized.py lenet mlp resnet18 --budget 0.05

The models' weights are random, so what is measured is the error of the outputs, not of a task; the data are normal
deviates, of which the calibration sees others than the verification.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

#: Samples that the calibration sees.
SAMPLES = 4


def _compiled(program: Any, ranges: Any, budget: float | None, threads: int) -> Any:
    from nestegg.compiler import Options, compile_graph

    return compile_graph(program, Options(threads=threads, accuracy_budget=budget, ranges=ranges, cache=False))


def _contestant(name: str, compiled: Any, inputs: Sequence[Any]) -> Any:
    from harness import Contestant

    return Contestant(name, "", partial(compiled, *inputs), None)


def measured(name: str, budget: float, threads: int, rounds: int) -> list[str]:
    """A row of the table."""
    import harness
    import numpy as np

    import nestegg
    from nestegg.compiler import import_program

    program = import_program(f"zoo:{name}")
    rng = np.random.default_rng(1)
    data = [rng.standard_normal((SAMPLES, *t.shape)).astype(np.float32) for t in program.graph.input_types]
    ranges = nestegg.calibrate(program, data=data)
    small = _compiled(program, ranges, budget, threads)
    floats = _compiled(program, None, None, threads)
    inputs = floats.example_inputs(seed=2)
    error = small.verify(*inputs).max_rel_err
    contestants = [_contestant("integers", small, inputs), _contestant("floats", floats, inputs)]
    integers, real = harness.run(contestants, None, harness.Plan(rounds=rounds))
    ratios = [f / i for i, f in zip(integers.times, real.times, strict=True)]
    contracting = [c for c in small.program.calls if "sum(" in str(c.kernel)]
    of_bytes = [c for c in contracting if "i8[" in str(c.kernel)]
    return [
        name,
        f"{budget:g}",
        f"{small.accuracy.estimate:.4f}",
        f"{error:.4f}",
        f"{len(of_bytes)} of {len(contracting)}",
        f"{real.median * 1e3:.3f}",
        f"{integers.median * 1e3:.3f}",
        f"{statistics.median(ratios):.2f}",
        f"{real.best / integers.best:.2f}",
        f"{small.compile_s:.1f}",
        small.found["graph"]["stopped_by"],
    ]


HEADER = [
    *("model", "budget", "estimated", "error", "integer kernels", "floats ms", "integers ms", "ratio", "of minima"),
    *("compile s", "graph saturation"),
]


def main(
    names: Annotated[list[str], typer.Argument(help="models of the zoo")],
    budget: Annotated[float, typer.Option(help="relative error of the outputs allowed")] = 0.05,
    threads: Annotated[int, typer.Option(help="threads, each bound to a core")] = 1,
    rounds: Annotated[int, typer.Option(help="samples a contestant")] = 15,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print a table for docs/quantization.md")] = False,
) -> None:
    """Measure zoo models quantized by the rules."""
    pinned = pin(threads)
    import harness

    rows = [measured(name, budget, threads, rounds) for name in names]
    options = f"--budget {budget:g} --threads {threads}"
    notes = [f"`python benchmarks/quantized.py {' '.join(names)} {options}`", str(pinned)]
    title = "models in integers"
    if as_markdown:
        typer.echo(harness.markdown(title, HEADER, rows, notes))
    else:
        harness.show(title, HEADER, rows, notes)


if __name__ == "__main__":
    typer.run(main)
