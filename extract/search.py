"""The best nest of each distinct kernel, found once: saturate its loop e-graph, extract under a cost model, keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..ir.loops import Lowered
from ..ir.nest import Nest, Vec
from ..ir.target import Target
from ..rewrite.loop_egraph import LOOP_LIMITS, LoopEGraph, build
from ..rewrite.loop_language import LoopRule, Space, space
from ..rewrite.loop_rules import LOOP_RULES
from ..rewrite.saturate import Limits, SaturationReport
from .beam import NoSchedule, Sweep, swept
from .costmodel import CostModel

#: Loop e-graphs kept in memory at a time.
SPACES_KEPT = 24


#: Who chose a nest: the model that extraction runs under, the learned model, or a measurement.
ROOFLINE, LEARNED, TUNED = "roofline", "learned", "tuned"


@dataclass(frozen=True)
class Pick:
    """A nest, who chose it (`by`), and how many times faster it is predicted to be than the roofline's choice (if
    tuned: measured to be)."""

    nest: Nest
    by: str = ROOFLINE
    gain: float = 1.0


class NestPicker(Protocol):
    """Chooses a kernel's nest when its e-graph has been swept."""

    def pick(self, kernel: Lowered, sweep: Sweep) -> Pick: ...


class BestOfSweep:
    """The nest that is best under the model that the sweep was made with."""

    def pick(self, kernel: Lowered, sweep: Sweep) -> Pick:
        return Pick(sweep.best(sweep.egraph.root)[0].nest)


@dataclass(frozen=True)
class KernelSchedule:
    """What the search found for a kernel: its nest, predicted seconds, and the size of the space it was chosen from.

    `by`, `gain`: as in `Pick`. `seconds` are the model's of its own choice, so that kernels are compared by one model;
    only of a tuned one the measured gain is taken off.
    """

    nest: Nest
    seconds: float
    enodes: int
    programs: int
    stopped_by: str
    by: str = ROOFLINE
    gain: float = 1.0


class Schedules(Protocol):
    """Schedules that were found before, by earlier compilations."""

    def get(self, kernel: Lowered) -> KernelSchedule | None: ...

    def put(self, kernel: Lowered, schedule: KernelSchedule) -> None: ...


class Measured(Protocol):
    """Kernels' measured nests."""

    def overlaid(self, kernel: Lowered, schedule: KernelSchedule) -> KernelSchedule:
        """The schedule with the fastest nest that was measured of the kernel, if any was."""
        ...


class KernelSearch:
    """Searches kernels' loop e-graphs. `report` gathers the rules' figures over all of them.

    `store`: where schedules are looked up first, and kept; `remembered` is how many were found there. `picker`: who
    chooses the nest of a kernel that was swept. `measured`: what is known better than by any model.
    """

    def __init__(
        self,
        model: CostModel,
        target: Target,
        threads: int = 1,
        rules: Sequence[LoopRule] = LOOP_RULES,
        limits: Limits = LOOP_LIMITS,
        progress: Callable[[str], None] = lambda message: None,
        store: Schedules | None = None,
        picker: NestPicker | None = None,
        measured: Measured | None = None,
    ) -> None:
        self.picker, self.measured = picker or BestOfSweep(), measured
        self.model, self.target, self.threads = model, target, threads
        self.rules, self.limits, self.progress = tuple(rules), limits, progress
        self.schedules: dict[Lowered, KernelSchedule] = {}
        self.store, self.remembered = store, 0
        self.report = SaturationReport()
        self._spaces: dict[Space, LoopEGraph] = {}

    def bound(self, kernel: Lowered) -> float:
        return self.model.bound(kernel) if kernel.points else 0.0

    def search(self, kernels: Sequence[Lowered]) -> list[tuple[Nest, float] | None]:
        return list(map(self._best, kernels))

    def _best(self, kernel: Lowered) -> tuple[Nest, float] | None:
        try:
            found = self.schedule(kernel)
        except NoSchedule as e:
            self.progress(str(e))
            return None
        return found.nest, found.seconds

    def schedule(self, kernel: Lowered) -> KernelSchedule:
        """The best nest of one kernel. Raises `NoSchedule` if there is none within the limits."""
        if not kernel.points:  # an empty tensor: nothing to schedule
            self.schedules[kernel] = KernelSchedule(Vec(-1, 1), 0.0, 0, 1, "saturated")
        if kernel not in self.schedules:
            found = self._remembered(kernel) or self._searched(kernel)
            self.schedules[kernel] = self.measured.overlaid(kernel, found) if self.measured is not None else found
        return self.schedules[kernel]

    def _remembered(self, kernel: Lowered) -> KernelSchedule | None:
        found = None if self.store is None else self.store.get(kernel)
        self.remembered += found is not None
        return found

    def _searched(self, kernel: Lowered) -> KernelSchedule:
        self.progress(f"scheduling kernel {len(self.schedules) + 1} ({kernel.points} points)")
        egraph = self.egraph(kernel)
        sweep = swept(egraph, self.model)
        pick = self.picker.pick(kernel, sweep)
        seconds, size = float(sweep.best(egraph.root)[0].seconds), int(min(egraph.size, 1e300))
        found = KernelSchedule(pick.nest, seconds, egraph.enodes, size, egraph.report.stopped_by, pick.by, pick.gain)
        if self.store is not None:
            self.store.put(kernel, found)
        return found

    def egraph(self, kernel: Lowered) -> LoopEGraph:
        """The kernel's loop e-graph; kernels with the same space (epilogues differ, say) share one."""
        key = space(kernel, self.target, self.threads)
        if key not in self._spaces:
            if len(self._spaces) >= SPACES_KEPT:
                self._spaces.pop(next(iter(self._spaces)))
            self._spaces[key] = build(kernel, self.target, self.threads, self.rules, self.limits)
            self.report.absorb(self._spaces[key].report)
        return replace(self._spaces[key], kernel=kernel)
