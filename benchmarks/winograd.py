"""Convolutions of ResNet-18 by each algorithm: direct, and Winograd's with tiles of each size; time and error.

    python benchmarks/winograd.py [--only 56x56x64] [--markdown | --json]

A case is a chain of four convolutions with bias and relu, so that layers hand over what they like to each other; times
are of one layer. Each algorithm is forced by its rule being the only one that may apply. One thread, interleaved.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

#: Rows (and columns) and channels of the 3x3 convolutions of stride 1.
LAYERS = ((56, 64), (28, 128), (14, 256), (7, 512))
CHAIN = 4
HEADER = ("layer", "algorithm", "us", "speed", "GFLOP/s of direct", "predicted us", "largest error", "XLA's", "gain")


def layer(size: int, channels: int, rounds: int) -> list[dict[str, Any]]:
    """One row an algorithm."""
    import harness
    import jax
    import numpy as np

    import nestegg
    from nestegg.compiler import Options
    from nestegg.ir.target import host
    from nestegg.rewrite.winograd import TILES, winograd_rule

    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((CHAIN, channels, channels, 3, 3)) * (2 / (9 * channels)) ** 0.5
    weights = drawn.astype(np.float32)
    bias = rng.standard_normal((channels, 1, 1)).astype(np.float32)
    x = rng.standard_normal((1, channels, size, size)).astype(np.float32)

    def chain(x: Any) -> Any:
        for w in weights:
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, w, (1, 1), ((1, 1), (1, 1))) + bias)
        return x

    algorithms = {"direct": ()} | {
        f"F({t.m}x{t.m})": (winograd_rule(t, [t], host().lanes()),) for t in TILES if t.taps == 3
    }
    programs = {
        name: nestegg.optimize(chain, x, options=Options(threads=1, rounding_gain=1.0, rules=rules, cache=False))
        for name, rules in algorithms.items()
    }
    contestants = [harness.Contestant(n, "", lambda p=p: p(x), None) for n, p in programs.items()]
    times = {t.column: t.median / CHAIN for t in harness.run(contestants, None, harness.Plan(rounds=rounds))}
    rows = []
    for name, program in programs.items():
        verified = program.verify()
        applied = name == "direct" or program.rounding_gain > 1
        rows.append(
            {
                "layer": f"{size}x{size}x{channels}",
                "algorithm": name if applied else f"{name}: direct is predicted faster",
                "us": times[name] * 1e6,
                "speed": times["direct"] / times[name],
                "gflops": 2 * 9 * size**2 * channels**2 / times[name] / 1e9,
                "predicted_us": sum(c.seconds for c in program.program.calls) / CHAIN * 1e6,
                "max_rel_err": verified.max_rel_err,
                "xla_rel_err": verified.xla_rel_err,
                "gain": program.rounding_gain,
                "ok": verified.ok,
            }
        )
    return rows


def main(
    only: Annotated[str, typer.Option(help="one layer, as 56x56x64")] = "",
    rounds: Annotated[int, typer.Option(help="samples a contestant")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print a table for docs/results.md")] = False,
) -> None:
    """Time each algorithm on each layer."""
    machine = pin(1)
    import harness

    rows = [r for n, c in LAYERS if only in ("", f"{n}x{n}x{c}") for r in layer(n, c, rounds)]
    if as_json:
        print(json.dumps({"machine": str(machine), "rows": rows}))
        return
    table = [
        (
            r["layer"], r["algorithm"], f"{r['us']:.0f}", f"{r['speed']:.2f}", f"{r['gflops']:.0f}",
            f"{r['predicted_us']:.0f}", f"{r['max_rel_err']:.1e}", f"{r['xla_rel_err']:.1e}", f"{r['gain']:.1f}",
        )
        for r in rows
    ]  # fmt: skip
    notes = [f"`{' '.join(['python', 'benchmarks/winograd.py', *sys.argv[1:]])}`", str(machine)]
    if as_markdown:
        print(harness.markdown("3x3 convolutions of stride 1: a layer", HEADER, table, notes))
    else:
        harness.show("3x3 convolutions of stride 1: a layer", HEADER, table, notes)


if __name__ == "__main__":
    typer.run(main)
