"""Extraction on e-graphs that others made: costs against tree and greedy extraction, and the best known.

    python benchmarks/gym.py FOLDER [--time-limit 20] [--markdown]

FOLDER holds e-graphs in the extraction-gym JSON format and, if known, a README.md with a table whose first column is
the file's name and that has a column `best known DAG`. Exit code 1 if an extraction is not valid, or dearer than tree
or greedy extraction, or than the best known cost.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

HEADER = ["e-graph", "e-nodes", "e-classes", "tree", "greedy", "ILP", "best known", "gap %", "seconds", "fine"]


def best_known(folder: Path) -> dict[str, float]:
    """Costs by the beginning of a file's name, from the table of the folder's README."""
    readme = folder / "README.md"
    if not readme.exists():
        return {}
    table = [[c.strip() for c in line.strip("|").split("|")] for line in readme.read_text().splitlines() if "|" in line]
    column = table[0].index("best known DAG")
    return {row[0].rstrip("…"): float(row[column]) for row in table[2:]}


def examine(path: Path, known: dict[str, float], time_limit: float) -> tuple[list[str], bool]:
    """The row of one e-graph, and whether it is as it should be."""
    from nestegg.extract import extract, read_gym, validate
    from nestegg.extract.result import dag_cost

    egraph = read_gym(path)
    found = {how: extract(egraph, how, time_limit) for how in ("tree", "greedy", "ilp")}
    costs = {how: dag_cost(egraph, e.choice) for how, e in found.items()}
    wanted = next((cost for name, cost in known.items() if path.stem.startswith(name)), None)
    best, rounding = found["ilp"], 1e-5  # the table's costs have six digits
    limit = min(float(costs["tree"]), float(costs["greedy"]), float("inf") if wanted is None else wanted)
    cheap = costs["ilp"] <= limit * (1 + rounding)
    fine = cheap and validate(egraph, best.choice) and best.seconds <= time_limit + 1
    row = [path.stem, f"{egraph.n_nodes:,}", f"{egraph.n_classes:,}", *(f"{c:.7g}" for c in costs.values())]
    seen = "-" if wanted is None else f"{wanted:.7g}"
    return [*row, seen, f"{best.gap:.2%}", f"{best.seconds:.2f}", "yes" if fine else "NO"], fine


def main(
    folder: Annotated[Path, typer.Argument(help="a folder of e-graphs")],
    time_limit: Annotated[float, typer.Option(help="seconds for each")] = 20.0,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="a table for docs/results.md")] = False,
) -> None:
    """Extract from every e-graph of a folder."""
    import harness

    known, rows, fine = best_known(folder), [], True
    for path in sorted(folder.glob("*.json")):
        row, good = examine(path, known, time_limit)
        print(*row, file=sys.stderr)
        rows.append(row)
        fine &= good
    notes = [f"`{' '.join(['python benchmarks/gym.py', *sys.argv[1:]])}`"]
    if as_markdown:
        print(harness.markdown("extraction", HEADER, rows, notes))
    else:
        harness.show("extraction", HEADER, rows, notes)
    raise typer.Exit(0 if fine else 1)


if __name__ == "__main__":
    typer.run(main)
