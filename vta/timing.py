"""How long a program takes: the cycle recurrence of the pipelined RTL, instruction by instruction.

A unit begins an instruction when it has been dispatched, the unit is free, and the tokens it pops are there; loads
share one DRAM read channel, first come, first served. Data play no part. docs/vta.md says how the recurrence was
fitted and what it was held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import isa
from .config import DEFAULT, INSTRUCTION_BYTES, Config, Memory
from .errors import ExecutionError
from .isa import Opcode, Unit
from .legality import CODES, element_sizes, sram_elements
from .tokens import CONSUMER, Dispatch, Queue, token_lists

BEAT_BYTES = 8
#: Bytes of a burst of 256 beats; none crosses a multiple of its size.
BURST_BYTES = 2048
#: Instructions that fetch asks for at once, and that a unit's command queue holds.
FETCH_CHUNK, QUEUE_CAPACITY = 128, 512
#: Cycles from the start of a request to its first beat on top of the DRAM's latency: instructions, micro-ops, others.
FETCH_OVERHEAD, UOP_OVERHEAD, LOAD_OVERHEAD = 6, 5, 6
#: Cycles of GEMM and ALU pipelines on top of one or two for each iteration.
PIPELINE = 6
#: The cycle counter stops this much before FINISH is over.
FINISH_LAG = 2


class Board(NamedTuple):
    """Memory and clock: `latency` in cycles from request to first beat, `gap` cycles for each beat, megahertz."""

    latency: int = 16
    gap: int = 1
    mhz: float = 100.0


#: `sim` is the RTL simulation's default; `pynq` was calibrated on published layer times, less 0.2-0.3 ms of host work.
BOARDS = {"sim": Board(), "pynq": Board(40, 2)}
SIM = BOARDS["sim"]


class Cause(IntEnum):
    """Why an instruction did not begin earlier: its fetch, its unit's previous instruction, or a token."""

    FETCH = 0
    UNIT = 1
    # 2 + the token's `Queue`
    L2C = 2
    C2L = 3
    C2S = 4
    S2C = 5


_CONSUMER = [int(CONSUMER[q]) for q in Queue]


@dataclass(frozen=True)
class Work:
    """What each instruction costs by itself, in cycles: arrays of one entry an instruction.

    `fixed`: duration, of a LOAD the lower bound that its address generator sets; `beats`: 8-byte beats read; `latency`:
    cycles from a LOAD's start to its first beat; `priority`: of its request among simultaneous ones.
    """

    fixed: NDArray[np.int64]
    beats: NDArray[np.int64]
    latency: NDArray[np.int64]
    priority: NDArray[np.int64]

    @classmethod
    def of(cls, stream: isa.Stream, config: Config, board: Board) -> Work:
        s, opcode, memory = stream, stream["opcode"], stream["memory"]
        busy, size = s["x_size"] > 0, element_sizes(stream, config)
        load, store = (opcode == Opcode.LOAD) & busy, (opcode == Opcode.STORE) & busy
        iterations = s["iter_out"] * s["iter_in"] * np.maximum(s["uop_end"] - s["uop_bgn"], 0)
        fixed = np.ones(len(s), np.int64)
        fixed = np.where(opcode == Opcode.GEMM, iterations + PIPELINE, fixed)
        fixed = np.where(opcode == Opcode.ALU, iterations * (2 - s["use_imm"]) + PIPELINE, fixed)
        beats = np.where(load, _beats(s, size), 0)
        pads = sram_elements(s) - s["x_size"] * s["y_size"]
        # A row without padding beside it costs the generator one more cycle.
        rows = np.where(s["x_pad_0"] + s["x_pad_1"] > 0, 0, s["y_size"])
        fixed = np.where(load, beats + pads + rows + 2, fixed)
        fixed = np.where(store, _store_cycles(s, size), fixed)
        overhead = np.where(memory == Memory.UOP, UOP_OVERHEAD, LOAD_OVERHEAD)
        latency = np.where(load, board.latency + overhead + s["y_pad_0"], 0)
        # fetch (-1), then micro-ops, inputs, weights, accumulators
        order = np.array([0, 2, 1, 3, 3, 3, 3, 3])
        return cls(fixed, beats, latency, np.where(load, order[memory & 7], len(order)))


def _beats(s: isa.Stream, size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Beats that a LOAD reads; a row of micro-ops may begin in the middle of one."""
    offset = s["dram_base"] * size % BEAT_BYTES
    return s["y_size"] * -(-(s["x_size"] * size + offset) // BEAT_BYTES)


def _store_cycles(s: isa.Stream, size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Three cycles for each burst, and for each element its beats and a read of the output buffer."""
    rows = np.where((s["opcode"] == Opcode.STORE) & (s["x_size"] > 0), s["y_size"], 0)
    of = np.repeat(np.arange(len(s)), rows)
    row = np.arange(len(of)) - np.repeat(np.cumsum(rows) - rows, rows)
    begin = (s["dram_base"][of] + row * s["x_stride"][of]) * size[of]
    last = begin + s["x_size"][of] * size[of] - 1
    bursts = np.bincount(of, last // BURST_BYTES - begin // BURST_BYTES + 1, len(s)).astype(np.int64)
    return rows * s["x_size"] * (np.maximum(1, size // BEAT_BYTES) + 1) + 3 * bursts


@dataclass(frozen=True)
class Timeline:
    """When each instruction ran and what it waited for. Times are cycles since launch.

    `start` is an instruction's first busy cycle, `end` its first idle one; `cause` is the last thing it waited for
    before its start and `after` the instruction that provided it (-1: none); `queued` is the time a LOAD's request
    waited for the read channel.
    """

    stream: isa.Stream
    config: Config
    board: Board
    units: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    cause: NDArray[np.int64]
    after: NDArray[np.int64]
    queued: NDArray[np.int64]

    @cached_property
    def rows(self) -> list[isa.Instruction]:
        return isa.rows(self.stream)

    @cached_property
    def cycles(self) -> int:
        """What the hardware's cycle counter shows. Raises `ExecutionError` if the program has no FINISH."""
        finish = np.flatnonzero(self.stream["opcode"] == Opcode.FINISH)
        if not finish.size:
            raise ExecutionError("V1401", CODES["V1401"].text)
        return int(self.end[finish[0]]) - FINISH_LAG

    @property
    def milliseconds(self) -> float:
        return self.cycles / self.board.mhz / 1000

    def of_unit(self, unit: Unit) -> NDArray[np.int64]:
        """Indices of a unit's instructions, in order."""
        return np.flatnonzero(self.units == unit)

    def critical_path(self) -> list[int]:
        """The chain of instructions that the last one had to wait for, first to last."""
        path, index = [], int(np.argmax(self.end))
        while index >= 0:
            path.append(index)
            index = int(self.after[index])
        return path[::-1]


def simulate(stream: isa.Stream, config: Config = DEFAULT, board: Board = SIM) -> Timeline:
    """The timeline of a program. Raises `ExecutionError` V1501 or V1202 if it deadlocks.

    The model is of legal programs: `check.check` says whether this is one. Widths other than the default's are an
    extrapolation, since the RTL has only those.
    """
    run = _Run(stream, config, board)
    while run.step():
        pass
    if run.done < len(stream):
        _explain_deadlock(stream)
    arrays = (np.array(values, np.int64) for values in (run.start, run.end, run.cause, run.after, run.queued))
    return Timeline(stream, config, board, np.array(run.units, np.int64), *arrays)


def _explain_deadlock(stream: isa.Stream) -> None:
    dispatch = Dispatch(stream, QUEUE_CAPACITY)
    while ready := dispatch.ready():
        dispatch.complete(dispatch.begin(ready[0]))
    code = "V1202" if dispatch.fetched < len(stream) else "V1501"
    raise ExecutionError(code, f"{CODES[code].text} ({dispatch.explain()})", dispatch.stuck)


class _Run:
    """The state of a simulation. Events are taken in the order of their start times, so that the read channel serves
    requests first come, first served. Lists and plain integers throughout: this loop is what limits the speed.
    """

    def __init__(self, stream: isa.Stream, config: Config, board: Board) -> None:
        work, n = Work.of(stream, config, board), len(stream)
        self.units, self.pops, self.pushes = token_lists(stream)
        self.fixed, self.beats, self.latency = work.fixed.tolist(), work.beats.tolist(), work.latency.tolist()
        self.priority = work.priority.tolist()
        self.fetch_latency, self.gap = board.latency + FETCH_OVERHEAD, board.gap
        self.start, self.end, self.queued = [0] * n, [0] * n, [0] * n
        self.cause, self.after = [0] * n, [-1] * n
        self.pushed: list[list[tuple[int, int]]] = [[] for _ in Queue]  # (time, by) of every push so far
        self.popped = [0] * len(Queue)
        self.channel = 0  # the cycle from which the read channel is free
        self.done = 0
        # For each unit: its instructions that are dispatched, how many have begun, the end of the last one and its
        # index, and when the next begins as (time, priority, cause, after), None while that is not known.
        self.queue: list[list[int]] = [[], [], []]
        self.begun, self.free, self.last = [0, 0, 0], [0, 0, 0], [-1, -1, -1]
        self.next: list[tuple[int, int, int, int] | None] = [None, None, None]
        # Fetch: instruction i of a chunk arrives at `arrival + i`. Dispatch is in order.
        self.available = [0] * n
        self.fetched = self.dispatched = self.arrival = self.dispatch_time = 0
        self.request: int | None = 0

    def step(self) -> bool:
        """Begin the next instruction, or fetch the next chunk; False if nothing can go on."""
        best, unit = None, -1
        for u in (0, 1, 2):
            candidate = self.next[u]
            if candidate is not None and (best is None or candidate < best):
                best, unit = candidate, u
        if self.request is not None and self.fetched < len(self.units) and (best is None or self.request <= best[0]):
            self._fetch(self.request)
            return True
        if best is None:
            return False
        self._begin(unit, best)
        return True

    def _find_next(self, unit: int) -> None:
        """When a unit's next instruction begins, if that is known yet."""
        at, queue = self.begun[unit], self.queue[unit]
        if at >= len(queue):
            return
        index = queue[at]
        time, cause, after = self.available[index], 0, -1
        if self.free[unit] >= time:
            time, cause, after = self.free[unit], 1, self.last[unit]
        for q in self.pops[index]:
            pushes, k = self.pushed[q], self.popped[q]
            if k >= len(pushes):
                return
            ready, by = pushes[k]
            if ready > time:
                time, cause, after = ready, 2 + q, by
        self.next[unit] = (time, self.priority[index], cause, after)

    def _begin(self, unit: int, chosen: tuple[int, int, int, int]) -> None:
        index = self.queue[unit][self.begun[unit]]
        start, _, self.cause[index], self.after[index] = chosen
        self.start[index] = start
        self.end[index] = end = self._read(index, start) if self.beats[index] else start + self.fixed[index]
        self.begun[unit] += 1
        self.free[unit], self.last[unit] = end + 1, index
        for q in self.pops[index]:
            self.popped[q] += 1
        self.next[unit] = None
        self._find_next(unit)
        for q in self.pushes[index]:
            self.pushed[q].append((end + 1, index))
            consumer = _CONSUMER[q]
            if self.next[consumer] is None:
                self._find_next(consumer)
        self.done += 1
        if self.dispatched < self.fetched:
            self._dispatch(start)

    def _read(self, index: int, start: int) -> int:
        """The end of a LOAD that begins at `start`."""
        first = start + self.latency[index]
        if self.channel > first:  # the request waits in the queue, and its turn takes a cycle
            self.queued[index] = self.channel + 1 - first
            first = self.channel + 1
        self.channel = first + self.beats[index] * self.gap
        return max(self.channel - self.gap + 1, start + self.fixed[index])

    def _fetch(self, time: int) -> None:
        count = min(FETCH_CHUNK, len(self.units) - self.fetched)
        beats = count * (INSTRUCTION_BYTES // BEAT_BYTES)
        self.channel = max(time + self.fetch_latency, self.channel) + beats * self.gap
        self.arrival = self.channel - self.gap + 1 + 2 - self.fetched
        self.fetched += count
        self.request = None
        self._dispatch(0)

    def _dispatch(self, freed: int) -> None:
        """Dispatch what has arrived and has room. `freed`: when the queue that was full got a place."""
        while self.dispatched < self.fetched:
            index = self.dispatched
            unit = self.units[index]
            if len(self.queue[unit]) - self.begun[unit] >= QUEUE_CAPACITY:
                return
            self.dispatch_time = max(self.dispatch_time + 1, self.arrival + index, freed + 1)
            freed = 0
            self.available[index] = self.dispatch_time
            self.queue[unit].append(index)
            self.dispatched += 1
            if self.next[unit] is None:
                self._find_next(unit)
        self.request = self.dispatch_time + 1
