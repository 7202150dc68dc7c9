"""The ten ResNet-18 convolutions on the VTA timing model, and the speed of the simulators: the tables of docs/vta.md.

    python benchmarks/vta_layers.py FILE      # resnet18_conv_programs.json, as it is or compressed

Every tiling whose sizes divide the layer's is built and timed (about a minute).
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nestegg.vta import functional, isa, vectors
from nestegg.vta.choose import Choice, choose
from nestegg.vta.config import DEFAULT, Memory
from nestegg.vta.conv import Tiling, layer_program
from nestegg.vta.errors import EncodingError, ProgramError
from nestegg.vta.isa import AluOp
from nestegg.vta.layer import Immediate, Layer
from nestegg.vta.lower import CompiledLayer, conv2d
from nestegg.vta.program import Program
from nestegg.vta.schedules import RULES, Space, build
from nestegg.vta.timing import SIM, simulate

CLIP = [Immediate(AluOp.SHR, 8), Immediate(AluOp.MAX, -127), Immediate(AluOp.MIN, 127)]
#: Smaller tiles are not tried: reset, ALU operations and micro-op loads would take more than products.
SMALLEST = 150


def empty(layer: Layer) -> tuple[bytes, bytes]:
    """Inputs and weights of zeros: data play no part in the timing."""
    sizes = (layer.inputs * layer.rows.size * layer.columns.size, layer.inputs * layer.outputs * layer.taps)
    return bytes(sizes[0] * DEFAULT.element_bytes(Memory.INP)), bytes(sizes[1] * DEFAULT.element_bytes(Memory.WGT))


def cycles(layer: Layer, tiling: Tiling) -> int:
    return simulate(layer_program(layer, tiling, *empty(layer), CLIP).stream).cycles


def tilings(layer: Layer) -> Iterator[Tiling]:
    def parts(n: int) -> list[int]:
        return [d for d in range(1, n + 1) if n % d == 0]

    extents = layer.outputs, layer.rows.outputs, layer.columns.outputs
    tiles = itertools.product(*map(parts, extents), (1, 2, 4, 8))
    for co, h, w, ci in tiles:
        fits = SMALLEST <= co * h * w and 2 * co * h * w <= DEFAULT.depth(Memory.ACC) and layer.inputs % ci == 0
        for skip in (False, True) if fits and layer.rows.taps == 1 and layer.rows.stride > 1 else (False,) * fits:
            if 2 * co <= layer.outputs:
                yield Tiling(co, h, w, ci, 2, "oc", False, skip)
                yield Tiling(co, h, w, ci, 2, "oc", True, skip)
            if 2 * h <= layer.rows.outputs:
                yield Tiling(co, h, w, ci, 2, "h", False, skip)


def best(layer: Layer) -> tuple[int, Tiling]:
    found = []
    for tiling in tilings(layer):
        try:
            found.append((cycles(layer, tiling), tiling))
        except (ProgramError, EncodingError):  # it does not fit the buffers
            continue
    return min(found, key=lambda f: f[0])


def layers(content: list[dict]) -> None:
    gains = []
    heads = "".join(f"{head:>10}" for head in ("recorded", "1 thread", "2 threads", "best"))
    print(f"{'layer':<22}{heads}{'busy':>8}{'at most':>8}  tiling")
    for v in content[::3]:
        layer = Layer.square(v["ci_blocks"], v["co_blocks"], v["h"], v["h"], v["k"], v["stride"], v["pad"])
        one = cycles(layer, Tiling(v["tco"], v["th"], v["tw"]))
        two = cycles(layer, Tiling(v["tco"], v["th"], v["tw"], 1, 2, v["axis"]))
        least, tiling = best(layer)
        recorded, ideal = v["cycles"]["16,1"], layer.macs
        overhead = (1 + len(CLIP)) * layer.outputs * layer.rows.outputs * layer.columns.outputs
        shares = f"{ideal / least:>8.1%}{ideal / (ideal + overhead):>8.1%}"
        print(f"{v['layer']:<22}{recorded:>10,}{one:>10,}{two:>10,}{least:>10,}{shares}  {tiling}", flush=True)
        gains.append(recorded / least)
    print(f"geometric mean of recorded / best: {math.exp(np.mean(np.log(gains))):.3f}")


def without_threads(compiled: CompiledLayer) -> Choice:
    """The best schedule of an e-graph without the rule for two virtual threads."""
    layer = compiled.layer
    egraph = build(Space(layer, DEFAULT, tuple(CLIP)), [r for r in RULES if r.name != "two_threads"])
    return choose(egraph, lambda t: layer_program(layer, t, *empty(layer), CLIP), SIM)


def extracted(content: list[dict]) -> None:
    """What extraction chooses, against the recorded streams and against no virtual threads. Weights are drawn: known
    small ones would make bounds of the epilogue unnecessary."""
    rng = np.random.default_rng(0)
    gains, hidden = [], []
    heads = "".join(f"{h:>10}" for h in ("recorded", "1 thread", "chosen", "busy", "read", "written", "schedules"))
    print(f"{'layer':<22}{heads}{'seconds':>9}  tiling")
    for v in content[::3]:
        weights = rng.integers(-128, 128, (v["co_blocks"] * 16, v["ci_blocks"] * 16, v["k"], v["k"]), np.int8)
        begun = time.process_time()
        compiled = conv2d(weights, (v["h"], v["h"]), stride=v["stride"], pad=v["pad"], shift=8, clip=(-127, 127))
        seconds = time.process_time() - begun
        recorded, one, r = v["cycles"]["16,1"], without_threads(compiled).cycles, compiled.report()
        bytes_moved = f"{r['read_bytes']:>10,}{r['written_bytes']:>10,}"
        figures = f"{recorded:>10,}{one:>10,}{r['cycles']:>10,}{r['utilisation']:>10.1%}{bytes_moved}"
        print(f"{v['layer']:<22}{figures}{r['schedules']:>10,}{seconds:>9.1f}  {r['tiling']}", flush=True)
        gains.append(recorded / r["cycles"])
        hidden.append(one / r["cycles"])
    means = [math.exp(np.mean(np.log(g))) for g in (gains, hidden)]
    print(f"geometric means: recorded / chosen {means[0]:.3f}, 1 thread / chosen {means[1]:.3f}")


def fastest(program: Program, vnni: bool) -> tuple[int, float]:
    """Micro-ops of a program, and the least processor time (seconds) of 20 runs of the functional simulator."""
    times = []
    for _ in range(20):
        begun = time.process_time()
        functional.run(program, vnni=vnni)
        times.append(time.process_time() - begun)
    return functional.Counters.of(program.stream, program.config).gemm_uops, min(times)


def simulators(path: Path) -> None:
    programs = [r.program for r in vectors.read(path)[::3]]
    for name, vnni in (("VNNI", True), ("without", False)):
        found = [fastest(program, vnni) for program in programs]
        each = ", ".join(f"{work / seconds / 1e6:.0f}" for work, seconds in found)
        total = sum(work for work, _ in found) / sum(seconds for _, seconds in found) / 1e6
        print(f"functional, {name}: {total:.0f} million micro-ops/s; layer by layer: {each}")
    streams = [p.stream[:-1] for p in programs] * 30
    stream = np.concatenate([*streams, isa.instruction(isa.Opcode.FINISH)])
    begun = time.process_time()
    simulate(stream)
    print(f"timing: {len(stream) / (time.process_time() - begun):,.0f} instructions/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    path = parser.parse_args().file
    raw = path.read_bytes()
    simulators(path)
    content = json.loads(gzip.decompress(raw) if raw[:2] == vectors.GZIP_MAGIC else raw)
    extracted(content)
    layers(content)


if __name__ == "__main__":
    main()
