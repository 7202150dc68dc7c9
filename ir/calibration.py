"""What a calibration knows of a program's tensors: their ranges, and how much the outputs suffer from errors in them.

Measured by `nestegg.calibrate` on example data, stored as JSON, read by the quantization rules.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import CalibrationError
from .graph import Graph

FORMAT = "nestegg-ranges-2"


@dataclass(frozen=True)
class Calibrated:
    """A tensor of floats, over the calibration data.

    low, high: its range (the whole of it, or percentiles). clipped: mean square of what lies outside. gain: root mean
    square of the relative error of the outputs that independent errors of variance 1 in each element cause. energy: of
    a product or convolution, the mean over results of the sum of the squares of the left operand's elements in it
    (0 otherwise). scaled_energy: the same of a product or convolution times constants, as a batch norm makes it.
    """

    low: float
    high: float
    clipped: float
    gain: float
    energy: float = 0.0
    scaled_energy: float = 0.0

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    def loss(self, variance: float) -> float:
        """The variance of the outputs' relative error that independent errors of this variance here cause."""
        return variance * self.gain**2


@dataclass(frozen=True)
class Ranges:
    """Calibrated tensors of a graph by node number. `graph` is its digest, `peak` how many standard deviations the
    largest of the outputs' errors is expected to be."""

    graph: str
    method: str
    samples: int
    peak: float
    tensors: Mapping[int, Calibrated]

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        table = {str(k): asdict(t) for k, t in self.tensors.items()}
        head = {"format": FORMAT, "graph": self.graph, "method": self.method, "samples": self.samples}
        Path(path).write_text(json.dumps({**head, "peak": self.peak, "tensors": table}, indent=1) + "\n")

    @staticmethod
    def load(path: str | Path) -> Ranges:
        """Read what `save` wrote. Raises `CalibrationError` saying what is wrong with the file."""
        try:
            data = json.loads(Path(path).read_text())
        except OSError as e:
            advice = f"`nestegg calibrate MODEL --data FILE -o {path}` writes it"
            raise CalibrationError(f"{path}: {e.strerror}; {advice}") from None
        except ValueError as e:
            raise CalibrationError(f"{path} is not JSON: {e}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise CalibrationError(f"{path} is not a file of ranges ({FORMAT}): make one with `nestegg calibrate`")
        try:
            tensors = {int(k): _tensor(t) for k, t in data["tensors"].items()}
            return Ranges(data["graph"], data["method"], int(data["samples"]), float(data["peak"]), tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise CalibrationError(f"{path} is damaged ({type(e).__name__}: {e}): make it again") from None

    def require_of(self, graph: Graph) -> None:
        """Raise `CalibrationError` if the ranges are another graph's."""
        if digest(graph) != self.graph:
            raise CalibrationError(
                "the ranges were measured on another graph (other model, shapes or version): "
                "run `nestegg calibrate` again"
            )


def _tensor(entry: Any) -> Calibrated:
    values = {f.name: float(entry[f.name]) for f in fields(Calibrated)}
    if not all(map(math.isfinite, values.values())) or values["low"] > values["high"]:
        raise ValueError(f"{entry} is not a finite range")
    return Calibrated(**values)


def digest(graph: Graph) -> str:
    """Of the graph's operators, attributes and types, and its constants' values."""
    h = hashlib.sha256()
    for n in graph.nodes:
        h.update(f"{n.op}{n.inputs}{n.attrs!r}{n.type}\n".encode())
    for k in sorted(graph.constants):
        h.update(graph.constants[k].tobytes())
    return h.hexdigest()[:16]
