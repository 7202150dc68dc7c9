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
from .beam import NoSchedule, extract_nests
from .costmodel import CostModel

#: Loop e-graphs kept in memory at a time.
SPACES_KEPT = 24


@dataclass(frozen=True)
class KernelSchedule:
    """What the search found for a kernel: its nest, predicted seconds, and the size of the space it was chosen from."""

    nest: Nest
    seconds: float
    enodes: int
    programs: int
    stopped_by: str


class Schedules(Protocol):
    """Schedules that were found before, by earlier compilations."""

    def get(self, kernel: Lowered) -> KernelSchedule | None: ...

    def put(self, kernel: Lowered, schedule: KernelSchedule) -> None: ...


class KernelSearch:
    """Searches kernels' loop e-graphs. `report` gathers the rules' figures over all of them.

    `store`: where schedules are looked up first, and kept; `remembered` is how many were found there.
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
    ) -> None:
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
            self.schedules[kernel] = self._remembered(kernel) or self._searched(kernel)
        return self.schedules[kernel]

    def _remembered(self, kernel: Lowered) -> KernelSchedule | None:
        found = None if self.store is None else self.store.get(kernel)
        self.remembered += found is not None
        return found

    def _searched(self, kernel: Lowered) -> KernelSchedule:
        self.progress(f"scheduling kernel {len(self.schedules) + 1} ({kernel.points} points)")
        egraph = self._egraph(kernel)
        best = extract_nests(egraph, self.model)[0]
        found = KernelSchedule(
            best.nest, float(best.seconds), egraph.enodes, int(min(egraph.size, 1e300)), egraph.report.stopped_by
        )
        if self.store is not None:
            self.store.put(kernel, found)
        return found

    def _egraph(self, kernel: Lowered) -> LoopEGraph:
        """The kernel's loop e-graph; kernels with the same space (epilogues differ, say) share one."""
        key = space(kernel, self.target, self.threads)
        if key not in self._spaces:
            if len(self._spaces) >= SPACES_KEPT:
                self._spaces.pop(next(iter(self._spaces)))
            self._spaces[key] = build(kernel, self.target, self.threads, self.rules, self.limits)
            self.report.absorb(self._spaces[key].report)
        return replace(self._spaces[key], kernel=kernel)
