"""Seconds of graph saturation and of extraction where the costs of a model's kernels are known, but not its program.

    python benchmarks/graph_work.py resnet18 bert_small [--folder FOLDER]

A model is compiled once with a cache in FOLDER; its program is then taken out, and a new process, which has compiled
`mlp` before so that everything is imported, compiles the model again on one thread. CPU seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nestegg

#: Cheap to compile, and takes the imports of what compiles.
FIRST = "mlp"


def seconds_of(model: str, folder: Path) -> dict[str, float]:
    """CPU seconds of a compilation with what `folder` holds but for programs."""
    shutil.rmtree(folder / "programs", ignore_errors=True)
    compiled = nestegg.optimize(f"zoo:{model}", threads=1)
    assert not compiled.cached["hit"]
    return compiled.seconds


def measured(model: str, folder: Path) -> str:
    """A row of the table, by a process of its own: what compositions and loops it remembers are the model's alone."""
    run = [sys.executable, __file__, "--once", model, "--folder", str(folder)]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of graph work with kernel costs known.")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--folder", type=Path, help="of the cache: kept, so that costs are known the next time")
    parser.add_argument("--once", metavar="MODEL", help="measure a model whose kernels' costs the folder holds")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nestegg-graph-work-"))
    os.environ["NESTEGG_CACHE_DIR"] = str(folder)
    if options.once:
        time.perf_counter = time.process_time  # what a compilation says of itself is wall-clock time
        seconds_of(FIRST, folder)
        found = seconds_of(options.once, folder)
        parts = [found["graph saturation"], found["extraction and scheduling"]]
        print(f"| {options.once} | {' | '.join(f'{s:.2f}' for s in (*parts, sum(parts)))} |")
        return
    print("| model | saturation | extraction | both |\n| --- | ---: | ---: | ---: |")
    for model in options.models:
        seconds_of(model, folder)
        print(measured(model, folder), flush=True)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
