"""Which nest of a searched kernel is used: the fastest measured, the learned model's, or the roofline's.

Extraction sweeps a kernel's e-graph under the roofline. `Learned` re-ranks the best of the sweep and nests drawn near
them, and departs from the roofline's choice only where the ensemble is sure of a gain (`guarded`); `Tuned` takes what a
tuning log holds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..extract.beam import Sweep
from ..extract.sampling import Sampler
from ..extract.search import LEARNED, TUNED, KernelSchedule, Pick
from ..ir.loops import Lowered
from ..ir.nest import Nest
from ..ir.records import digest
from ..ir.target import Target
from .features import describe
from .log import TuningLog
from .mlp import Ensemble, shipped

#: Nests of a kernel that are ranked: the best of the sweep, and so many drawn at these temperatures.
DRAWN = ((0.03, 12), (0.12, 16))
#: The roofline's choice is left where all but this share of members predict at least this gain. Cross-validated over
#: the training family, in three divisions into parts, no kernel loses more than a tenth so. With one doubter in eight
#: the mean gain is 0.1 % there instead of 0.01 %, and a kernel of squeezenet lost 12 %.
DOUBTERS, MARGIN = 0.0, 1.05
#: A nest that the roofline takes to be worse than this is not considered, whatever the ensemble says.
TRUST = 1.1
#: Kernels that take less (seconds) are left to the roofline: what they take is mostly their call.
SHORTEST = 1e-6
#: And those that take more: the training family has none (a sum of the columns of 64 MiB measured 2 to 4 times slower).
LONGEST = 3e-3


class Learned:
    """The learned model's pick. `weights`: by default those that come with nestegg."""

    def __init__(self, target: Target, threads: int = 1, weights: Ensemble | None = None) -> None:
        self.target, self.threads = target, threads
        self.ensemble = weights or shipped()

    def pick(self, kernel: Lowered, sweep: Sweep) -> Pick:
        best = sweep.best(sweep.egraph.root)[0]
        if not SHORTEST <= best.seconds <= LONGEST:
            return Pick(best.nest)
        usual, *others = candidates(sweep, kernel)
        features, seconds = describe(kernel, self.target, self.threads, [usual, *others])
        chosen, gain = guarded(self.ensemble, features, seconds)
        return Pick([usual, *others][chosen], LEARNED, gain) if chosen else Pick(usual)


def guarded(ensemble: Ensemble, features: np.ndarray, seconds: np.ndarray) -> tuple[int, float]:
    """(which nest, its mean predicted gain): the roofline's choice, which is number 0, or the one of the greatest gain
    among those of which all members but `DOUBTERS` predict `MARGIN`. `seconds` are the roofline's."""
    members = ensemble.members(features) + np.log(seconds)
    ahead = members[:, :1] - members  # of each member: how much faster each nest is than the roofline's choice
    sure = np.sort(ahead, axis=0)[int(DOUBTERS * len(ahead))] >= np.log(MARGIN)
    gain = np.where(sure & (seconds <= TRUST * seconds[0]), ahead.mean(axis=0), 0.0)
    chosen = int(gain.argmax())
    return chosen, float(np.exp(gain[chosen]))


def candidates(sweep: Sweep, kernel: Lowered) -> list[Nest]:
    """The nests of a kernel that are ranked, each once; the roofline's choice first. The same for the same kernel."""
    rng, sampler = np.random.default_rng(int(digest(kernel)[:8], 16)), Sampler(sweep)
    drawn = [sampler.draw(rng, t) for t, count in DRAWN for _ in range(count)]
    return list(dict.fromkeys([*(s.nest for s in sweep.best(sweep.egraph.root)), *drawn]))


class Tuned:
    """What a log holds, measured on this machine with so many threads. `state` names the log's present contents.

    A kernel's gain is that of the fastest nest over the one that the models pick, if that was measured too.
    """

    def __init__(self, log: str | Path, target: Target, threads: int) -> None:
        self.log, self.target, self.threads = log, target, threads
        with TuningLog(log) as store:
            self.known, self.state = store.measured(target, threads)

    def overlaid(self, kernel: Lowered, schedule: KernelSchedule) -> KernelSchedule:
        """The schedule with the fastest nest that was measured of the kernel, if any was."""
        if digest(kernel) not in self.known:
            return schedule
        with TuningLog(self.log) as store:
            trials = [t for t in store.trials(kernel, self.target, self.threads) if t.ok]
        if not trials:
            return schedule
        best = min(trials, key=lambda t: t.seconds)
        gain = next((t.seconds for t in trials if t.nest == schedule.nest), best.seconds) / best.seconds
        return replace(schedule, nest=best.nest, seconds=schedule.seconds / gain, by=TUNED, gain=gain)
