"""What the compiler did, as data: `Report.to_json()` is what `nestegg optimize --json` prints.

Rendering as a table is in `cli.py`, as HTML in `report_html.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .extract.choose import SLACK
from .extract.search import LEARNED, ROOFLINE, TUNED
from .ir.nest import parallel

if TYPE_CHECKING:
    from .codegen.program import KernelCall, Program
    from .compiler import Compiled
    from .extract.choose import GraphChoice
    from .extract.search import KernelSchedule, KernelSearch
    from .ir.graph import Graph
    from .rewrite.graph_egraph import GraphEGraph

Json = dict[str, Any]

#: A compiled model may be this many times less accurate than XLA in the same precision.
ACCURACY_FACTOR = 4.0
ACCURACY_FLOOR = 1e-6


@dataclass(frozen=True)
class Accuracy:
    """The relative error of the outputs that a program was allowed, and what its approximations are estimated to
    cause."""

    budget: float
    estimate: float


@dataclass(frozen=True)
class Verification:
    """Largest error relative to the largest magnitude of each output, against float64: nestegg's and XLA's.

    bar: the error up to which the program is `ok`: its accuracy budget, or a multiple of XLA's error.
    """

    ok: bool
    max_rel_err: float
    xla_rel_err: float
    bar: float

    @staticmethod
    def of(
        got: Sequence[np.ndarray],
        peer: Sequence[np.ndarray],
        exact: Sequence[np.ndarray],
        accuracy: Accuracy | None = None,
        gain: float = 1.0,
    ) -> Verification:
        """`gain`: how much the program's algorithms may amplify rounding errors, by their own statement."""
        mine, xla = _error(got, exact), _error(peer, exact)
        bar = max(ACCURACY_FACTOR, gain) * xla + ACCURACY_FLOOR
        if accuracy is not None:
            bar = max(bar, accuracy.budget)
        return Verification(bool(mine <= bar), mine, xla, bar)


def _error(got: Sequence[np.ndarray], exact: Sequence[np.ndarray]) -> float:
    worst = 0.0
    for g, e in zip(got, exact, strict=True):
        g64, e64 = np.asarray(g, np.float64), np.asarray(e, np.float64)
        if not e64.size:
            continue
        same = (g64 == e64) | (np.isnan(g64) & np.isnan(e64))
        finite = np.isfinite(e64)
        scale = max(float(np.abs(e64[finite]).max(initial=0.0)), 1e-30)
        with np.errstate(invalid="ignore"):
            off = np.where(same, 0.0, np.abs(g64 - e64) / scale)
        worst = max(worst, float("inf") if np.isnan(off).any() else float(off.max()))
    return worst


@dataclass(frozen=True)
class Report:
    """`json` is the whole report; the rest of the code reads it from there."""

    json: dict[str, Any]

    @staticmethod
    def of(compiled: Compiled, verification: Verification | None) -> Report:
        c, kernels = compiled, compiled.found["kernels"]
        memory = c.program.memory
        return Report(
            {
                "source": c.imported.source,
                "target": c.program.target.cpu,
                "threads": c.program.threads,
                "rounding_gain": c.rounding_gain,
                "verify": None if verification is None else vars(verification),
                **c.found,
                "schedules": _schedules(kernels),
                "memory": {"peak": memory.peak, "largest_live_set": memory.live, "sum_of_tensors": memory.total},
                "predicted_us": sum(k["predicted_us"] for k in kernels),
                "cache": c.cached,
                "seconds": c.seconds,
                "compile_s": c.compile_s,
                "fallbacks": [],
            }
        )

    def to_json(self) -> dict[str, Any]:
        return self.json


def found_by(
    graph: Graph,
    egraph: GraphEGraph,
    choice: GraphChoice,
    program: Program,
    search: KernelSearch,
    accuracy: Accuracy | None = None,
) -> Json:
    """What both e-graphs and the extraction came to, as JSON: the part of a report that the cache keeps."""
    loops, schedules, e = search.report, search.schedules, choice.extraction
    return {
        "accuracy": None if accuracy is None else vars(accuracy),
        "graph": {
            "operators": graph.operator_counts,
            "enodes": egraph.enodes,
            "eclasses": len(egraph.classes),
            "seconds": egraph.report.seconds,
            "stopped_by": egraph.report.stopped_by,
            "growth": egraph.report.growth,
            "rules": [vars(s) for s in egraph.report.rules.values()],
        },
        "loops": {
            "enodes": loops.enodes,
            "seconds": loops.seconds,
            "stopped_by": loops.stopped_by,
            "kernels_searched": choice.searched,
            "kernels_remembered": search.remembered,
            "kernels_without_schedule": choice.unusable,
            "rules": [vars(s) for s in loops.rules.values()],
        },
        "kernels": [_kernel(call, schedules[call.kernel]) for call in program.calls],
        "extraction": {
            "method": e.method,
            "cost": e.cost,
            "greedy_cost": choice.greedy_cost,
            "bound": e.bound,
            "gap": e.gap,
            "optimal": e.optimal,
            "rounds": choice.rounds,
            "slack": SLACK,
        },
    }


def _kernel(call: KernelCall, schedule: KernelSchedule) -> Json:
    return {
        "name": call.name,
        "expression": str(call.kernel),
        "enodes": schedule.enodes,
        "programs": schedule.programs,
        "points": call.kernel.points,
        "schedule": call.schedule,
        "parallel": parallel(call.nest),
        "stopped_by": schedule.stopped_by,
        "predicted_us": call.seconds * 1e6,
        "chosen_by": schedule.by,
        "gain": schedule.gain,
    }


def _schedules(kernels: Sequence[Json]) -> Json:
    """Who chose the nests of how many kernels, and how many times faster they should be than the roofline's."""
    chosen = Counter(k["chosen_by"] for k in kernels)
    without = sum(k["predicted_us"] * (k["gain"] if k["chosen_by"] == TUNED else 1.0) for k in kernels)
    faster = sum(k["predicted_us"] / (k["gain"] if k["chosen_by"] == LEARNED else 1.0) for k in kernels)
    return {
        "chosen_by": {by: chosen[by] for by in (ROOFLINE, LEARNED, TUNED)},
        "gain": without / faster if faster else 1.0,
    }
