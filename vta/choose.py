"""Extraction of a layer's schedule: an estimate for all of the e-graph, the timing model for the best.

The estimate is the time of the busiest unit: products and ALU operations with their pipelines, loads with their
latencies, stores, and what cannot overlap (the first loads, the last store). It is summed up along the e-graph,
children first, of every e-class the best few schedules kept; then programs are built of the best and timed exactly.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Protocol

from .config import Memory
from .conv import Tiling
from .errors import EncodingError, ProgramError
from .layer import Window, addends, cycles_a_result, products_a_result
from .program import Program
from .schedules import AXES, CHANNELS, COLUMNS, REDUCED, ROWS, Node, ScheduleEGraph, Space
from .timing import BEAT_BYTES, LOAD_OVERHEAD, PIPELINE, Board, simulate

#: Schedules that are kept of each e-class.
KEPT = 12
#: Programs that are built and timed, if the caller does not say.
EFFORT = 32


@dataclass(frozen=True)
class Estimate:
    """A schedule of a block and its cycles: of each unit in all, of the first loads and of the last store.

    `paired`: of compute and load unit together, where the loads of a tile come in `steps`: they run only one step
    ahead, so a slow step is not made up for while the ALU works.
    `input_stays`, `weights_stay`: the block needs one tile of them only, which then need not be loaded again.
    """

    tiling: Tiling
    compute: float
    input: float
    weights: float
    store: float
    first: float
    last: float
    input_stays: bool
    weights_stay: bool
    steps: int = 1
    paired: float = 0.0

    @property
    def cycles(self) -> float:
        load = self.input + self.weights
        if self.tiling.threads == 1:
            return self.compute + load + self.store
        return max(self.compute, load, self.store, self.paired) + self.first + self.last


class Tilings(Protocol):
    """Choices that were made before, by a text that says of what: layer, epilogue, accelerator, effort."""

    def get(self, key: str, /) -> Choice | None: ...

    def put(self, key: str, choice: Choice, /) -> None: ...


class InMemory:
    """Choices of this process."""

    def __init__(self) -> None:
        self._choices: dict[str, Choice] = {}

    def get(self, key: str) -> Choice | None:
        return self._choices.get(key)

    def put(self, key: str, choice: Choice) -> None:
        self._choices[key] = choice


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from how many schedules. `refused`: of the programs that were to be timed, those that the
    instruction set cannot express (a field or a micro-op kernel too long)."""

    tiling: Tiling
    cycles: int
    estimated: float
    schedules: int
    enodes: int
    timed: int
    refused: int


class _Extraction:
    def __init__(self, egraph: ScheduleEGraph, board: Board) -> None:
        self.egraph, self.board = egraph, board
        self.space: Space = egraph.space
        self.found: dict[int, list[Estimate]] = {}

    def best(self, number: int) -> list[Estimate]:
        """The best schedules of an e-class, one for each tiling but for the order of its loops."""
        if number not in self.found:
            self.found[number] = self._select(number, KEPT)
        return self.found[number]

    def candidates(self, count: int) -> list[Estimate]:
        """The best schedules of the whole layer."""
        return self._select(self.egraph.root, count)

    def _select(self, number: int, count: int) -> list[Estimate]:
        best: dict[Tiling, Estimate] = {}
        for e in (e for node in self.egraph.nodes.get(number, ()) for e in self._schedules(node)):
            key = replace(e.tiling, order=Tiling.order)
            if key not in best or e.cycles < best[key].cycles:
                best[key] = e
        return heapq.nsmallest(count, best.values(), key=lambda e: e.cycles)

    def _schedules(self, node: Node) -> list[Estimate]:
        if node.op == "Tile":
            return [self._tile(*node.numbers)]
        below = self.best(node.child)
        if node.op == "Threads":
            return [self._threads(e, *node.numbers) for e in below]
        return [self._loop(e, *node.numbers) for e in below]

    def _loop(self, e: Estimate, axis: int, size: int) -> Estimate:
        trips = ceil(self.space.extents[axis] / size)
        if axis == REDUCED:
            once = trips == 1
            scaled = replace(e, input=e.input * trips, weights=e.weights * trips, compute=e.compute * trips)
            return replace(scaled, input_stays=once, weights_stay=once, steps=trips)
        input_stays = e.input_stays and axis == CHANNELS and e.tiling.share_input
        weights_stay = e.weights_stay and axis != CHANNELS
        name = AXES[axis]
        order = (name, *(a for a in e.tiling.order if a != name))
        return replace(
            e,
            tiling=replace(e.tiling, order=order),
            compute=e.compute * trips,
            input=e.input * (1 if input_stays else trips),
            weights=e.weights * (1 if weights_stay else trips),
            store=e.store * trips,
            paired=e.paired * trips,
            input_stays=input_stays,
            weights_stay=weights_stay,
        )

    def _threads(self, e: Estimate, count: int, axis: int, share: int) -> Estimate:
        t = replace(e.tiling, threads=count, axis="h" if axis == ROWS else "oc", share_input=bool(share))
        epilogue, products = self._epilogue(t) * count, e.compute * count
        inp, wgt = e.input * (1 if share else count), e.weights * count
        product, load = products / e.steps, (inp + wgt) / e.steps
        return replace(
            e,
            tiling=t,
            compute=products + epilogue,
            paired=(e.steps - 1) * max(product, load) + max(product + epilogue, load) if e.steps > 1 else 0.0,
            input=inp,
            weights=wgt,
            store=e.store * count,
            input_stays=e.input_stays and bool(share),
        )

    def _average(self, axis: int, size: int) -> float:
        """The size of an axis's tiles, the last one being smaller."""
        whole = self.space.extents[axis]
        return whole / ceil(whole / size)

    def _results(self, t: Tiling) -> float:
        return self._average(CHANNELS, t.co) * self._average(ROWS, t.h) * self._average(COLUMNS, t.w)

    def _epilogue(self, t: Tiling) -> float:
        """Reset, and what follows the products, of all images."""
        space = self.space
        cycles = cycles_a_result(space.layer, space.epilogue)
        return space.layer.images * (cycles * self._results(t) + (1 + len(space.epilogue)) * (PIPELINE + 1))

    def _tile(self, slots: int, inputs: int, skip: int, co: int, h: int, w: int, ci: int) -> Estimate:
        t, layer, config = Tiling(co, h, w, ci, skip_rows=bool(skip)), self.space.layer, self.space.config
        channels, steps = self._average(CHANNELS, co), self._average(REDUCED, ci)
        rows = self._read(layer.rows, h) / (layer.rows.stride if skip else 1)
        columns = self._read(layer.columns, w)
        planes = steps * ceil(channels / layer.group_outputs) * layer.images
        inp = planes * self._load(Memory.INP, rows * columns, rows)
        wgt = self._load(Memory.WGT, 1 if layer.uniform else channels * steps * layer.taps, channels)
        results = self._results(t) * layer.images
        extra = addends(self.space.epilogue) * channels * layer.images
        inp += extra * self._load(Memory.INP, self._results(t) / channels, self._average(ROWS, h))
        beats = max(1, config.element_bytes(Memory.OUT) // BEAT_BYTES)
        store = results * (beats + 1) + layer.images * channels * (3 + 1)
        products = products_a_result(layer) * steps / layer.group_inputs
        gemm = results * products + (PIPELINE + 1) * layer.images
        once = layer.images == 1
        wgt *= 1 if once or ci == layer.group_inputs else layer.images
        return Estimate(t, gemm, inp, wgt, store, inp + wgt, store, once, True)

    def _read(self, window: Window, size: int) -> float:
        """Inputs that exist along a window's axis, on the average over tiles of so many outputs."""
        tiles = range(0, window.outputs, size)
        return sum(window.load(first, min(size, window.outputs - first))[1] for first in tiles) / len(tiles)

    def _load(self, memory: Memory, elements: float, rows: float) -> float:
        beats = elements * self.space.config.element_bytes(memory) / BEAT_BYTES
        return max(self.board.latency + LOAD_OVERHEAD + beats * self.board.gap, beats + rows + 2) + 1


Make = Callable[[Tiling], Program]


def choose(egraph: ScheduleEGraph, make: Make, board: Board, effort: int = EFFORT) -> Choice:
    """The schedule with the least cycles of the timing model among the `effort` that are best by estimate.

    `make` builds the program of a tiling. Raises `ProgramError` if no schedule fits the accelerator.
    """
    candidates = _Extraction(egraph, board).candidates(effort)
    refused, best = 0, None
    for e in candidates:
        try:
            program = make(e.tiling)
        except (ProgramError, EncodingError):
            refused += 1
            continue
        cycles = simulate(program.stream, program.config, board).cycles
        if best is None or cycles < best[0]:
            best = cycles, e
    space = egraph.space
    if best is None:
        raise ProgramError(
            f"no tiling of {space.layer} runs on {space.config.name}: {len(candidates)} were built; "
            "take larger buffers, or a smaller layer"
        )
    enodes = sum(len(nodes) for nodes in egraph.nodes.values())
    cycles, e = best
    return Choice(e.tiling, cycles, e.cycles, egraph.programs(), enodes, len(candidates) - refused, refused)
