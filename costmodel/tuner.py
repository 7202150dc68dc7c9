"""Tuning a kernel: propose nests, measure them, learn from them, again. All that is known is in the log.

A round's proposals are the best of a pool of nests under the model, some of them drawn at random instead. The pool is
the best of the roofline's beam, nests drawn near it, and neighbours of the fastest measured so far. Being killed at any
moment costs no more than the trials in flight: a new tuner reads the log and goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..extract.beam import Sweep, swept
from ..extract.sampling import Sampler, draw_any, neighbour
from ..ir.errors import NesteggError
from ..ir.expr import Apply
from ..ir.loops import Lowered, StagedKernel
from ..ir.nest import Nest
from ..ir.target import Target
from ..rewrite.loop_egraph import LoopEGraph, build
from .features import describe
from .fit import Training, fit, samples
from .log import Trial, TuningLog
from .mlp import Ensemble, shipped
from .roofline import Roofline
from .worker import Effort, Measurer

RANDOM, ROOFLINE, SCRATCH, TRANSFERRED = "random", "roofline", "scratch", "transferred"
#: How nests are proposed: drawn at random, block by block; the roofline's best; by a perceptron that starts from
#: nothing and knows only this kernel's trials (no roofline either); by the trained model, which goes on learning from
#: the kernel's trials.
STRATEGIES = (RANDOM, ROOFLINE, SCRATCH, TRANSFERRED)

#: Nests proposed in a round; share of them drawn at random; nests measured before the model learns from them.
BATCH, EPSILON, ENOUGH = 8, 0.15, 8
#: The pool: width of the roofline's beam, nests drawn at these temperatures, neighbours of so many of the fastest.
BEAM, DRAWN, PARENTS, NEIGHBOURS = 32, ((0.03, 24), (0.12, 40), (0.4, 40)), 4, 12
#: The scratch strategy's pool, wider as its model is weak: nests drawn at random, parents, neighbours of each.
ANY, KIN = 300, (8, 16)
#: How an ensemble learns from one kernel's trials; from scratch it needs longer.
REFINING = Training(steps=150, batch=1, rate=5e-4, decay=0.0)
LEARNING = Training(hidden=(32,), members=4, steps=300, batch=1, rate=4e-3, decay=0.1, prior=False)
#: A nest whose first run takes this many times the best known is not run again.
PATIENCE = 8.0


@dataclass(frozen=True)
class Progress:
    """A kernel's tuning so far. `correlation`: of logarithms of predicted and measured seconds, over the nests that
    were predicted before they were measured (NaN while there are few)."""

    trials: int
    failed: int
    best: float
    gflops: float
    correlation: float


class Tuner:
    """Tunes one kernel on what `measurer` measures; `step()` is one round."""

    def __init__(
        self,
        kernel: Lowered,
        target: Target,
        threads: int,
        log: TuningLog,
        measurer: Measurer,
        *,
        strategy: str = TRANSFERRED,
        effort: Effort = Effort(),  # noqa: B008
        weights: Ensemble | None = None,
        seed: int = 0,
    ) -> None:
        if strategy not in STRATEGIES:
            raise NesteggError(f"strategy {strategy!r} does not exist; choose {', '.join(STRATEGIES)}")
        self.kernel, self.target, self.threads = kernel, target, threads
        self.log, self.measurer, self.strategy, self.effort = log, measurer, strategy, effort
        self.trials = log.trials(kernel, target, threads)
        self.rng = np.random.default_rng((seed, len(self.trials)))
        self.start = (weights or shipped()) if strategy == TRANSFERRED else None
        self._foreseen: list[tuple[float, float]] = []
        self._model: Ensemble | None = self.start

    @cached_property
    def egraph(self) -> LoopEGraph:
        return build(self.kernel, self.target, self.threads)

    @cached_property
    def sweep(self) -> Sweep:
        return swept(self.egraph, Roofline(self.target, self.threads), BEAM)

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self.sweep)

    @property
    def progress(self) -> Progress:
        good = [t.seconds for t in self.trials if t.ok]
        best = min(good, default=math.inf)
        ahead = np.array(self._foreseen)
        correlation = float(np.corrcoef(ahead.T)[0, 1]) if len(ahead) > 2 and ahead.std(axis=0).all() else math.nan
        failed, gflops = len(self.trials) - len(good), operations(self.kernel) / best / 1e9
        return Progress(len(self.trials), failed, best, gflops, correlation)

    def step(self, most: int = BATCH) -> list[Trial]:
        """One round of at most `most` trials; none if every nest that can be proposed has been measured."""
        proposals = self.propose(min(most, BATCH))
        if not proposals:
            return []
        predicted = self._predict(proposals)
        best = self.progress.best
        effort = replace(self.effort, give_up=min(self.effort.give_up, PATIENCE * best))
        made = self.measurer.measure(self.kernel, proposals, effort)
        for trial, guess in zip(made, predicted, strict=True):
            self.log.add(self.kernel, self.target, self.threads, trial)
            if trial.ok:
                self._foreseen.append((guess, math.log(trial.seconds)))
        self.trials += made
        self._learn()
        return made

    def propose(self, count: int) -> list[Nest]:
        """Nests that have not been measured: the model's best of the pool, and some at random."""
        known = {t.nest for t in self.trials}
        pool = [n for n in dict.fromkeys(self._pool()) if n not in known]
        if self.strategy in (RANDOM, ROOFLINE):
            return pool[:count]
        untried = not self.trials
        at_random = 0 if untried else int(self.rng.binomial(count, EPSILON))
        order = np.argsort(self._predict(pool), kind="stable") if pool else []
        chosen = [pool[k] for k in order[: count - at_random]]
        rest = [pool[k] for k in order[count - at_random :]]
        self.rng.shuffle(rest)
        return [*chosen, *rest[:at_random]]

    def _pool(self) -> list[Nest]:
        if self.strategy == RANDOM:
            return [draw_any(self.egraph, self.rng) for _ in range(BATCH)]
        fastest = sorted((t for t in self.trials if t.ok), key=lambda t: t.seconds)
        if self.strategy == SCRATCH:
            parents, children = KIN
            drawn = [neighbour(self.egraph, t.nest, self.rng) for t in fastest[:parents] for _ in range(children)]
            anew = [draw_any(self.egraph, self.rng) for _ in range(ANY)]
            return [*anew, *(n for n in drawn if n is not None)]
        best = [s.nest for s in self.sweep.best(self.egraph.root)]
        drawn = [self.sampler.draw(self.rng, t) for t, count in DRAWN for _ in range(count)]
        if self.strategy == ROOFLINE:
            seconds = describe(self.kernel, self.target, self.threads, drawn)[1]
            return [*best, *(drawn[k] for k in np.argsort(seconds, kind="stable"))]
        parents = fastest[:PARENTS]
        near = [neighbour(self.egraph, t.nest, self.rng, self.sampler) for t in parents for _ in range(NEIGHBOURS)]
        return [*best, *drawn, *(n for n in near if n is not None)]

    def _predict(self, nests: Sequence[Nest]) -> np.ndarray:
        """Scores of nests, lower is better: predicted logarithms of seconds, up to a constant of the kernel."""
        features, seconds = describe(self.kernel, self.target, self.threads, nests)
        prior = np.log(seconds)
        if self._model is None:
            return self.rng.random(len(nests)) if self.strategy == SCRATCH else prior
        mean, doubt = self._model.correction(features)
        return mean + (0.0 if self.strategy == SCRATCH else prior) - 0.3 * doubt

    def _learn(self) -> None:
        if self.strategy in (RANDOM, ROOFLINE) or sum(t.ok for t in self.trials) < ENOUGH:
            return
        data = samples(self.kernel, self.trials, self.target, self.threads)
        how = LEARNING if self.strategy == SCRATCH else REFINING
        self._model = fit([data], how, self.start)


def operations(kernel: Lowered) -> int:
    """Arithmetic operations of a kernel, by which its GFLOP/s count: two a point of a sum of products, else one."""
    if isinstance(kernel, StagedKernel):
        return sum(operations(kernel.stages[n]) for n in kernel.sequences[0])
    product = isinstance(kernel.update, Apply) and kernel.update.fn == "mul" and kernel.kind == "sum"
    return kernel.points * (2 if product else 1)


def shares(seconds: Sequence[float], trials: int, least: int) -> list[int]:
    """Trials for each kernel, by the square roots of their times; the first ones get `least` before the rest any."""
    given = [0] * len(seconds)
    for k in range(len(seconds)):
        given[k] = min(least, trials - sum(given))
    rest, weights = trials - sum(given), [math.sqrt(s) for s in seconds]
    for k, w in enumerate(weights):
        given[k] += round(rest * w / sum(weights)) if rest > 0 else 0
    return given
