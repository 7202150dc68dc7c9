"""The best nest of each distinct kernel, found once: saturate its loop e-graph, extract under a cost model, keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..ir.digest import digest
from ..ir.errors import UnsupportedError
from ..ir.expr import Kept, TensorExpr, walk
from ..ir.index import divisors
from ..ir.loops import Lowered, StagedKernel, lower
from ..ir.nest import Nest, Vec
from ..ir.serial import KERNELS
from ..ir.target import Target
from ..rewrite.loop_egraph import LOOP_LIMITS, LoopEGraph, build
from ..rewrite.loop_language import LoopRule, Space, space
from ..rewrite.loop_rules import LOOP_RULES
from ..rewrite.saturate import Limits, SaturationReport
from .beam import NoSchedule, Sweep, swept
from .costmodel import CostModel
from .guide import BestFirst

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


@dataclass(frozen=True)
class Estimate:
    """What is known of an expression's kernel before it is searched.

    `signature`: expressions that are one computation have one; "" where there is no loop computation. `alias`: nothing
    is computed. `staged`: it has several reductions. `bound`: seconds that no nest of it is predicted to beat.
    """

    signature: str
    alias: bool = False
    staged: bool = False
    bound: float = 0.0


class Schedules(Protocol):
    """What earlier compilations found: schedules of kernels, and estimates of expressions' kernels."""

    def get(self, kernel: Lowered, /) -> KernelSchedule | None: ...

    def put(self, kernel: Lowered, schedule: KernelSchedule, /) -> None: ...

    def estimates(self, exprs: Sequence[TensorExpr], /) -> list[Estimate | None]: ...

    def put_estimates(self, found: Mapping[TensorExpr, Estimate], /) -> None: ...


class Measured(Protocol):
    """Kernels' measured nests."""

    def overlaid(self, kernel: Lowered, schedule: KernelSchedule) -> KernelSchedule:
        """The schedule with the fastest nest that was measured of the kernel, if any was."""
        ...


@dataclass(frozen=True)
class Found:
    """What searching kernels of one space gave: of each its schedule, or why it has none; and the rules' figures."""

    schedules: tuple[KernelSchedule | str, ...]
    report: SaturationReport


#: Kernels whose schedules are of one space: they share a loop e-graph.
Group = Sequence[Lowered]


class Helpers(Protocol):
    """Who else searches."""

    def map(self, groups: Sequence[Group], here: Callable[[Group], Found]) -> list[Found]:
        """What is found of each group, by others or `here`: the same whoever does it."""
        ...


class Alone:
    """Nobody else does."""

    def map(self, groups: Sequence[Group], here: Callable[[Group], Found]) -> list[Found]:
        return list(map(here, groups))


class KernelSearch:
    """Searches kernels' loop e-graphs. `report` gathers the rules' figures over all of them.

    `store`: where schedules are looked up first, and kept; `remembered` is how many were found there. `picker`: who
    chooses the nest of a kernel that was swept. `measured`: what is known better than by any model. `helpers`: who
    searches kernels that are asked for together, besides this process.
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
        helpers: Helpers | None = None,
    ) -> None:
        self.picker, self.measured, self.helpers = picker or BestOfSweep(), measured, helpers or Alone()
        self.model, self.target, self.threads = model, target, threads
        self.rules, self.limits, self.progress = tuple(rules), limits, progress
        self.schedules: dict[Lowered, KernelSchedule] = {}
        self.store, self.remembered = store, 0
        self.report = SaturationReport()
        self._without: dict[Lowered, str] = {}
        self._reported: set[Space] = set()
        self._spaces: dict[Space, LoopEGraph] = {}

    def estimates(self, exprs: Sequence[TensorExpr]) -> list[Estimate]:
        """Of each expression's kernel. What earlier compilations found is neither lowered nor bounded again."""
        known = self.store.estimates(exprs) if self.store is not None else [None] * len(exprs)
        fresh = {expr: self._estimate(expr) for expr, found in zip(exprs, known, strict=True) if found is None}
        if fresh and self.store is not None:
            self.store.put_estimates(fresh)
        return [fresh[expr] if found is None else found for expr, found in zip(exprs, known, strict=True)]

    def _estimate(self, expr: TensorExpr) -> Estimate:
        try:
            kernel = lower(expr)
        except UnsupportedError:
            return Estimate("")
        signature = digest([KERNELS.dumps(kernel)])[:32]
        if kernel.is_alias:
            return Estimate(signature, alias=True)
        bound = self.model.bound(kernel) if kernel.points else 0.0
        staged = isinstance(kernel, StagedKernel) and not any(isinstance(s, Kept) for s in walk(expr.body))
        return Estimate(signature, staged=staged, bound=bound)

    def search(self, kernels: Sequence[Lowered]) -> list[tuple[Nest, float] | None]:
        groups = self._groups([k for k in dict.fromkeys(kernels) if not self._known(k)])
        for (where, group), found in zip(groups, self.helpers.map([g for _, g in groups], self.searched), strict=True):
            self._keep(where, group, found)
        schedules = [self.schedules.get(k) for k in kernels]
        return [None if s is None else (s.nest, s.seconds) for s in schedules]

    def schedule(self, kernel: Lowered) -> KernelSchedule:
        """The best nest of one kernel. Raises `NoSchedule` if there is none within the limits."""
        self.search([kernel])
        if kernel not in self.schedules:
            raise NoSchedule(self._without[kernel])
        return self.schedules[kernel]

    def _known(self, kernel: Lowered) -> bool:
        """Whether the kernel needs no search, or needs none any more."""
        if not kernel.points:  # an empty tensor: nothing to schedule
            self.schedules[kernel] = KernelSchedule(Vec(-1, 1), 0.0, 0, 1, "saturated")
        if kernel in self.schedules or kernel in self._without:
            return True
        found = None if self.store is None else self.store.get(kernel)
        if found is None:
            return False
        self.remembered += 1
        self.schedules[kernel] = self._overlaid(kernel, found)
        return True

    def _groups(self, kernels: Sequence[Lowered]) -> list[tuple[Space, Group]]:
        """Kernels by their space, the largest spaces first, so that those who share the work end together."""
        groups: dict[Space, list[Lowered]] = {}
        for k in kernels:
            groups.setdefault(space(k, self.target, self.threads), []).append(k)
        return sorted(groups.items(), key=lambda item: -_blocks(item[0]))

    def _keep(self, where: Space, group: Group, found: Found) -> None:
        if where not in self._reported:
            self._reported.add(where)
            self.report.absorb(found.report)
        for kernel, schedule in zip(group, found.schedules, strict=True):
            if isinstance(schedule, str):
                self.progress(schedule)
                self._without[kernel] = schedule
                continue
            if self.store is not None:
                self.store.put(kernel, schedule)
            self.schedules[kernel] = self._overlaid(kernel, schedule)

    def _overlaid(self, kernel: Lowered, found: KernelSchedule) -> KernelSchedule:
        return found if self.measured is None else self.measured.overlaid(kernel, found)

    def searched(self, group: Group) -> Found:
        """Search kernels of one space, in this process."""
        self.progress(f"scheduling {len(group)} kernel{'s' * (len(group) > 1)} ({group[0].points} points)")
        return Found(tuple(map(self._best, group)), self.egraph(group[0]).report)

    def _best(self, kernel: Lowered) -> KernelSchedule | str:
        egraph = self.egraph(kernel)
        try:
            sweep = swept(egraph, self.model)
        except NoSchedule as e:
            return str(e)
        pick = self.picker.pick(kernel, sweep)
        seconds, size = float(sweep.best(egraph.root)[0].seconds), int(min(egraph.size, 1e300))
        return KernelSchedule(pick.nest, seconds, egraph.enodes, size, egraph.report.stopped_by, pick.by, pick.gain)

    def egraph(self, kernel: Lowered) -> LoopEGraph:
        """The kernel's loop e-graph; kernels with the same space (epilogues differ, say) share one."""
        key = space(kernel, self.target, self.threads)
        if key not in self._spaces:
            if len(self._spaces) >= SPACES_KEPT:
                self._spaces.pop(next(iter(self._spaces)))
            guide = BestFirst(self.model)
            self._spaces[key] = build(kernel, self.target, self.threads, self.rules, self.limits, guide)
        return replace(self._spaces[key], kernel=kernel)


def _blocks(s: Space) -> int:
    """About how many blocks the e-graph of a space has: the combinations of its axes' divisors."""
    return sum(math.prod(len(divisors(a.extent)) for a in v.axes) for v in s.views)
