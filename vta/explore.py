"""Which accelerator for a network: configurations and schedules searched together.

Every configuration gets its own schedules: the network's kernels are recognised, tiled and extracted anew for it, with
the timing model as cost. What is best depends on what hardware may cost, so the answer is a frontier: the points that
no other one beats in cycles, on-chip memory and multipliers at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ..ir.errors import NesteggError
from ..ir.graph import Graph
from ..rewrite.graph_egraph import GraphEGraph
from .choose import Tilings
from .config import DEFAULT, Config
from .errors import ConfigError
from .network import compile_egraph, network_egraph
from .timing import SIM, Board

#: Programs that are built and timed for each layer of each configuration.
EFFORT = 6


@dataclass(frozen=True)
class Point:
    """A configuration and what the network takes on it. `reason`: why it does not run there, "" if it does (then
    `cycles` is 0); `best`: no other point has at most its cycles, SRAM bytes and multipliers."""

    config: Config
    cycles: int
    utilisation: float = 0.0
    reason: str = ""
    best: bool = False

    @property
    def sram_bytes(self) -> int:
        return self.config.sram_bytes

    @property
    def macs(self) -> int:
        """Multipliers."""
        return self.config.macs

    @property
    def costs(self) -> tuple[int, int, int]:
        return self.cycles, self.sram_bytes, self.macs

    def to_json(self) -> dict[str, Any]:
        figures = {"name": self.config.name, "sram_bytes": self.sram_bytes, "macs": self.macs}
        return figures | {name: value for name, value in asdict(self).items() if name != "config"}


def configurations(
    base: Config = DEFAULT,
    blocks: Iterable[int] = (3, 4, 5),
    batches: Iterable[int] = (0, 1),
    halvings: Iterable[int] = (0, 1, 2),
) -> Iterator[Config]:
    """Legal configurations around one. `blocks`, `batches`: log2 values. `halvings`: how often input, weight and
    accumulator buffers are halved, each on its own. Where elements are larger, buffers hold fewer of them; what breaks
    a rule of the instruction set is left out."""
    for block, batch in product(blocks, batches):
        for inp, wgt, acc in product(tuple(halvings), repeat=3):
            try:
                yield replace(
                    base,
                    log_block=block,
                    log_batch=batch,
                    log_inp_buff_size=base.log_inp_buff_size - inp,
                    log_wgt_buff_size=base.log_wgt_buff_size - wgt,
                    log_acc_buff_size=base.log_acc_buff_size - acc,
                )
            except ConfigError:
                continue


def explore(
    graph: Graph,
    configs: Sequence[Config],
    board: Board = SIM,
    effort: int = EFFORT,
    progress: Callable[[str], None] = lambda message: None,
    tilings: Tilings | None = None,
) -> list[Point]:
    """A network of integers on every configuration, fewest cycles first; those on which it does not run come last.
    `tilings`: schedules that were found before."""
    egraph = network_egraph(graph)
    points = []
    for k, config in enumerate(configs):
        progress(f"{config.name} ({k + 1} of {len(configs)})")
        points.append(_point(egraph, config, board, effort, tilings))
    return sorted(frontier(points), key=lambda p: (bool(p.reason), p.costs))


def _point(egraph: GraphEGraph, config: Config, board: Board, effort: int, tilings: Tilings | None) -> Point:
    try:
        network = compile_egraph(egraph, config, board, effort, tilings)
    except NesteggError as e:
        return Point(config, 0, reason=str(e))
    return Point(config, network.cycles, network.utilisation)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points, those marked that no other one beats."""
    ran = [p for p in points if not p.reason]

    def beaten(p: Point) -> bool:
        return any(q.costs != p.costs and all(a <= b for a, b in zip(q.costs, p.costs, strict=True)) for q in ran)

    return [replace(p, best=not p.reason and not beaten(p)) for p in points]


def write_png(points: Sequence[Point], path: Path, title: str) -> None:
    """Draw cycles against on-chip memory, a colour for each number of multipliers; the frontier is filled. Raises
    `NesteggError` if matplotlib is not installed."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError as e:
        raise NesteggError(f"{path}: a PNG needs matplotlib; install nestegg[plot]") from e
    figure = figure_module.Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ran = [p for p in points if not p.reason]
    for number, macs in enumerate(sorted({p.macs for p in ran})):
        colour = f"C{number}"
        for best in (False, True):
            some = [p for p in ran if p.macs == macs and p.best == best]
            axes.scatter(
                [p.sram_bytes / 1024 for p in some], [p.cycles for p in some], s=36, marker="o", edgecolors=colour,
                facecolors=colour if best else "none", label=f"{macs} multipliers" if best else None,
            )  # fmt: skip
    axes.set(xlabel="on-chip memory (KiB)", ylabel="cycles", title=title, xscale="log", yscale="log")
    axes.legend(title="filled: beaten by none")
    figure.savefig(path, dpi=150)
