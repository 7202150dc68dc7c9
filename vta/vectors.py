"""Recorded programs: reading the vector files, running them on both simulators, and comparing.

Two forms are known: a JSON object with `vectors` (programs, a generator for their data, SHA-256 of the output area,
RTL cycles), and a JSON list of convolution layers (streams and RTL cycles; data are drawn here, and the output is
compared with an integer convolution in NumPy). Either may be compressed with gzip.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import DEFAULT, Memory
from .errors import ExecutionError, ProgramError
from .functional import PROFILES, run
from .layout import pack
from .program import Output, Program, Segment
from .timing import Board, simulate

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Recorded:
    """A program with what is known of it: its output's SHA-256 is in `program.outputs`, cycles by (latency, gap)."""

    name: str | int
    program: Program
    cycles: Mapping[tuple[int, int], int]


def read(path: Path) -> list[Recorded]:
    """The programs of a vector file of either form. Raises `ProgramError` if it is none."""
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if raw[:2] == GZIP_MAGIC else raw)
        if isinstance(content, dict):
            return [_generated(v, content["regions"]) for v in content["vectors"]]
        return [_convolution(v) for v in content]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ProgramError(f"{path}: no vectors can be read ({type(e).__name__}: {e})") from e


def compare(recorded: Recorded) -> dict[str, Any]:
    """Run a program on both simulators: `{id, output_equal, cycles, recorded_cycles}`, and `error` if it cannot run."""
    program = recorded.program
    row: dict[str, Any] = {"id": recorded.name, "output_equal": False, "cycles": {}}
    row["recorded_cycles"] = {_key(board): n for board, n in recorded.cycles.items()}
    try:
        result = run(program, PROFILES["strict-ext"])
        row["output_equal"] = all(
            hashlib.sha256(result.dram[o.address : o.address + o.size].tobytes()).hexdigest() == o.sha256
            for o in program.outputs
        )
        for latency, gap in recorded.cycles:
            timeline = simulate(program.stream, program.config, Board(latency, gap))
            row["cycles"][_key((latency, gap))] = timeline.cycles
    except ExecutionError as e:
        row["error"] = str(e)
    return row


def _key(board: tuple[int, int]) -> str:
    return f"{board[0]},{board[1]}"


def _cycles(recorded: Mapping[str, int]) -> dict[tuple[int, int], int]:
    found = {}
    for key, cycles in recorded.items():
        latency, gap = key.split(",")
        found[int(latency), int(gap)] = cycles
    return found


# --- programs with generated data -----------------------------------------------------------------


@cache
def generated_bytes(count: int, seed: int = 2026) -> bytes:
    """The files' generator: x' = (1103515245 x + 12345) mod 2^31, a byte is bits 16 to 23 of x'."""
    out, x = bytearray(count), seed
    for i in range(count):
        x = (1103515245 * x + 12345) & 0x7FFFFFFF
        out[i] = x >> 16 & 255
    return bytes(out)


def _generated(v: Mapping[str, Any], regions: Mapping[str, tuple[int, int]]) -> Recorded:
    longest = generated_bytes(max(size for _, size in regions.values()))
    program = Program(
        *(DEFAULT, bytes.fromhex(v["insns"]), v["insn_addr"], bytes.fromhex(v["uops"]), v["uop_addr"]),
        data=tuple(Segment(address, longest[:size]) for address, size in regions.values()),
        outputs=(Output("output", v["out_addr"], v["out_len"], v["out_sha256"]),),
    )
    return Recorded(v["id"], program, _cycles(v["cycles"]))


# --- convolution layers ---------------------------------------------------------------------------


def _convolution(v: Mapping[str, Any]) -> Recorded:
    """A layer of int8 activations and weights, shifted right by 8 and clipped to -127 … 127."""
    c, k, stride, pad, address = DEFAULT, v["k"], v["stride"], v["pad"], v["mem"]
    inputs, outputs, size = v["ci_blocks"] * c.block, v["co_blocks"] * c.block, v["h"]
    rng = np.random.default_rng(0)
    x = rng.integers(-128, 128, (inputs, size, size))
    w = rng.integers(-128, 128, (outputs, inputs, k, k))
    y = np.clip(convolution(x, w, stride, pad) >> 8, -127, 127)
    expected = pack(blocked(y, c.block), c, Memory.OUT)
    kernel = w.reshape(v["co_blocks"], c.block, v["ci_blocks"], c.block, k, k).transpose(0, 2, 4, 5, 1, 3)
    program = Program(
        *(c, bytes.fromhex(v["insns"]), address["insn"], bytes.fromhex(v["uops"]), address["uop"]),
        data=(
            Segment(address["inp"], pack(blocked(x, c.block), c, Memory.INP)),
            Segment(address["wgt"], pack(kernel, c, Memory.WGT)),
        ),
        outputs=(Output("output", address["out"], len(expected), hashlib.sha256(expected).hexdigest()),),
    )
    return Recorded(f"{v['layer']} {v['mode']}", program, _cycles(v["cycles"]))


def convolution(x: NDArray[np.int64], w: NDArray[np.int64], stride: int, pad: int) -> NDArray[np.int64]:
    """The reference: `[C, H, W]` and `[O, C, K, K]` to `[O, H', W']`, in int64, as sums over kernel positions."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    k = w.shape[2]
    height, width = ((n - k) // stride + 1 for n in padded.shape[1:])
    total = np.zeros((len(w), height, width), np.int64)
    for dy in range(k):
        for dx in range(k):
            seen = padded[:, dy : dy + height * stride : stride, dx : dx + width * stride : stride]
            total += np.tensordot(w[:, :, dy, dx], seen[:, :height, :width], 1)
    return total


def blocked(x: NDArray[np.int64], block: int) -> NDArray[np.int64]:
    """`[C, H, W]` as `[C / block, H, W, 1, block]`, the order of activations in DRAM."""
    channels, height, width = x.shape
    return x.reshape(channels // block, block, height, width).transpose(0, 2, 3, 1)[:, :, :, None]
