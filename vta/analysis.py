"""What a timeline says: which unit waited for what, how busy the multipliers were, and what the limit was."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .config import Memory
from .isa import AluOp, Instruction, Opcode, Unit
from .legality import element_sizes
from .timing import Cause, Timeline

#: What the units' waiting means.
CAUSES = {
    Cause.FETCH: "instruction fetch",
    Cause.UNIT: "its own unit",
    Cause.L2C: "load->compute: data not loaded yet",
    Cause.C2L: "compute->load: buffer still in use",
    Cause.C2S: "compute->store: result not computed yet",
    Cause.S2C: "store->compute: result not stored yet",
}


@dataclass(frozen=True)
class Stall:
    """An instruction that began late: after how many idle cycles of its unit, for what, and whose doing it was."""

    index: int
    cycles: int
    cause: str
    after: int


@dataclass(frozen=True)
class Analysis:
    """Figures of one run. Cycles, bytes, and shares between 0 and 1.

    `busy`: cycles each unit worked. `idle`: cycles it waited, by cause. `queued`: cycles that LOADs waited for the read
    channel. `critical_path`: cycles by kind of instruction along the chain that the end waited for. `bounds`: the
    least cycles that computing, reading and writing take each by itself; `bound_by` is the largest of them, and
    `of_bound` how near the run came to it.
    """

    cycles: int
    milliseconds: float
    gemm_iterations: int
    utilisation: float
    gops: float
    read_bytes: dict[str, int]
    written_bytes: int
    busy: dict[str, int]
    idle: dict[str, dict[str, int]]
    queued: int
    critical_path: dict[str, int]
    bounds: dict[str, int]
    bound_by: str
    of_bound: float
    stalls: list[Stall]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def analyse(timeline: Timeline, stalls: int = 10) -> Analysis:
    """The figures of a timeline, with its longest stalls."""
    t, s = timeline, timeline.stream
    size = element_sizes(s, t.config) * s["y_size"] * s["x_size"]
    load, store = s["opcode"] == Opcode.LOAD, s["opcode"] == Opcode.STORE
    iterations = s["iter_out"] * s["iter_in"] * (s["uop_end"] - s["uop_bgn"])
    gemm = int(iterations[(s["opcode"] == Opcode.GEMM) & (s["reset"] == 0)].sum())
    duration = t.end - t.start
    busy = {u.name.lower(): int(duration[t.units == u].sum()) for u in Unit}
    read = {m.name.lower(): int(size[load & (s["memory"] == m)].sum()) for m in Memory if m != Memory.OUT}
    # A unit is free one cycle after its instruction's end: that much is not idling.
    compute = t.of_unit(Unit.COMPUTE)
    bounds = {
        "compute": busy["compute"] + max(0, len(compute) - 1),
        "read": sum(read.values()) // 8 * t.board.gap,
        "store": busy["store"],
    }
    bound_by = max(bounds, key=lambda name: bounds[name])
    return Analysis(
        cycles=t.cycles,
        milliseconds=t.milliseconds,
        gemm_iterations=gemm,
        utilisation=gemm / t.cycles,
        gops=2 * t.config.macs * gemm / t.cycles * t.board.mhz / 1000,
        read_bytes=read,
        written_bytes=int(size[store].sum()),
        busy=busy,
        idle={u.name.lower(): _idle(t, u) for u in Unit},
        queued=int(t.queued.sum()),
        critical_path=_by_kind(t),
        bounds=bounds,
        bound_by=bound_by,
        of_bound=bounds[bound_by] / t.cycles,
        stalls=_stalls(t, stalls),
    )


def _gaps(t: Timeline, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """Indices of a unit's instructions and the idle cycles before each."""
    of = t.of_unit(unit)
    free = np.append(0, t.end[of][:-1] + 1)[: len(of)]
    return of, t.start[of] - free


def _idle(t: Timeline, unit: Unit) -> dict[str, int]:
    of, gaps = _gaps(t, unit)
    found = {CAUSES[c]: int(gaps[t.cause[of] == c].sum()) for c in Cause}
    return {cause: cycles for cause, cycles in found.items() if cycles}


def _stalls(t: Timeline, count: int) -> list[Stall]:
    found = [(int(g), int(i)) for u in Unit for i, g in zip(*_gaps(t, u), strict=True) if g > 0]
    longest = sorted(found, key=lambda x: (-x[0], x[1]))[:count]
    return [Stall(i, g, CAUSES[Cause(int(t.cause[i]))], int(t.after[i])) for g, i in longest]


def kind(row: Instruction) -> str:
    """A short name of what an instruction does: `gemm`, `reset`, `alu.shr`, `load.inp`, `no-op`, …"""
    opcode = Opcode(row.opcode)
    match opcode:
        case Opcode.GEMM:
            return "reset" if row.reset else "gemm"
        case Opcode.ALU:
            return f"alu.{AluOp(row.alu_op).name.lower()}"
        case Opcode.LOAD | Opcode.STORE if not row.x_size:
            return "no-op"
        case Opcode.LOAD | Opcode.STORE:
            return f"{opcode.name.lower()}.{Memory(row.memory).name.lower()}"
    return "finish"


def _by_kind(t: Timeline) -> dict[str, int]:
    """Cycles of the critical path, each from the end of what it waited for to its own end."""
    total: Counter[str] = Counter()
    before = 0
    for index in t.critical_path():
        total[kind(t.rows[index])] += int(t.end[index]) - before
        before = int(t.end[index])
    return dict(total.most_common())
