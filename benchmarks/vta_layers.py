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
from nestegg.vta.config import DEFAULT, Memory
from nestegg.vta.conv import Conv2d, Tiling, convolution_program, macs
from nestegg.vta.errors import EncodingError, ProgramError
from nestegg.vta.isa import AluOp
from nestegg.vta.program import Program
from nestegg.vta.timing import simulate

CLIP = [(AluOp.SHR, 8), (AluOp.MAX, -127), (AluOp.MIN, 127)]
#: Smaller tiles are not tried: reset, ALU operations and micro-op loads would take more than products.
SMALLEST = 150


def cycles(layer: Conv2d, tiling: Tiling) -> int:
    sizes = (layer.inputs * layer.height * layer.width, layer.inputs * layer.outputs * layer.kernel**2)
    inputs, weights = (
        bytes(n * DEFAULT.element_bytes(m)) for n, m in zip(sizes, (Memory.INP, Memory.WGT), strict=True)
    )
    return simulate(convolution_program(layer, tiling, inputs, weights, CLIP).stream).cycles


def tilings(layer: Conv2d) -> Iterator[Tiling]:
    def parts(n: int) -> list[int]:
        return [d for d in range(1, n + 1) if n % d == 0]

    tiles = itertools.product(parts(layer.outputs), parts(layer.out_height), parts(layer.out_width), (1, 2, 4, 8))
    for co, h, w, ci in tiles:
        fits = SMALLEST <= co * h * w and 2 * co * h * w <= DEFAULT.depth(Memory.ACC) and layer.inputs % ci == 0
        for skip in (False, True) if fits and layer.kernel == 1 and layer.stride > 1 else (False,) * fits:
            if 2 * co <= layer.outputs:
                yield Tiling(co, h, w, ci, 2, "oc", False, skip)
                yield Tiling(co, h, w, ci, 2, "oc", True, skip)
            if 2 * h <= layer.out_height:
                yield Tiling(co, h, w, ci, 2, "h", False, skip)


def best(layer: Conv2d) -> tuple[int, Tiling]:
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
        layer = Conv2d(v["ci_blocks"], v["co_blocks"], v["h"], v["h"], v["k"], v["stride"], v["pad"])
        one = cycles(layer, Tiling(v["tco"], v["th"], v["tw"]))
        two = cycles(layer, Tiling(v["tco"], v["th"], v["tw"], 1, 2, v["axis"]))
        least, tiling = best(layer)
        recorded, ideal = v["cycles"]["16,1"], macs(layer)
        overhead = (1 + len(CLIP)) * layer.outputs * layer.out_height * layer.out_width
        shares = f"{ideal / least:>8.1%}{ideal / (ideal + overhead):>8.1%}"
        print(f"{v['layer']:<22}{recorded:>10,}{one:>10,}{two:>10,}{least:>10,}{shares}  {tiling}", flush=True)
        gains.append(recorded / least)
    print(f"geometric mean of recorded / best: {math.exp(np.mean(np.log(gains))):.3f}")


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
    layers(json.loads(gzip.decompress(raw) if raw[:2] == vectors.GZIP_MAGIC else raw))


if __name__ == "__main__":
    main()
