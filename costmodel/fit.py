"""Training of the learned cost model: JAX and optax, a pairwise ranking loss, an ensemble at once.

Of two nests of one kernel the faster should score better: the loss of a pair is the cross-entropy of "i is faster than
j" under a logistic function of the difference of their scores, weighted by how far apart their measured times are and
by how close the better one is to the kernel's best. Beside it stands what is wanted in the end: the logarithm of how
much slower than the best the pick is, in the mean over picks drawn with the softmax of the scores. What is learned is a
correction, so a fresh model is the roofline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from ..ir.loops import Lowered
from ..ir.target import Target
from .features import describe
from .log import Trial
from .mlp import CLIP, Ensemble

#: Times beyond this many times the kernel's best are taken to be no worse: how slow a bad nest is does not matter.
WORST = 30.0
#: How much of the trained correction is kept (`shrunk`). What an ensemble says of a kernel it never saw is right on
#: average and often too much. Cross-validated over the training family, a tenth to a third give picks of about the same
#: speed (`python benchmarks/training.py validate`); of these shares, this one gains most under the guard of `pick.py`.
SHARE = 0.15


@dataclass(frozen=True)
class Samples:
    """Measured nests of one kernel: `features` (n, len(FEATURES)), `prior` and `measured` (n,): logarithms of seconds,
    the roofline's and the fastest measured."""

    features: np.ndarray
    prior: np.ndarray
    measured: np.ndarray


def samples(kernel: Lowered, trials: Sequence[Trial], target: Target, threads: int) -> Samples:
    """The features of a kernel's trials (those that did not fail)."""
    good = [t for t in trials if t.ok]
    features, prior = describe(kernel, target, threads, [t.nest for t in good])
    measured = np.log([t.seconds for t in good])
    return Samples(features, np.log(prior), np.minimum(measured, measured.min(initial=np.inf) + np.log(WORST)))


@dataclass(frozen=True)
class Training:
    """How to train. `sharpness`: of the logistic function, per unit of log seconds. `focus`: how much more the order of
    a kernel's best nests matters, per unit of log seconds. `pick`: weight of the expected regret of the pick beside the
    ranking's loss. `steps`: of `batch` kernels each. `prior`: the scores start from the roofline; without it the model
    starts from nothing."""

    hidden: tuple[int, ...] = (64, 32)
    members: int = 8
    steps: int = 400
    batch: int = 8
    rate: float = 2e-3
    decay: float = 0.3
    sharpness: float = 12.0
    focus: float = 6.0
    pick: float = 1.0
    prior: bool = True
    seed: int = 0


def fit(data: Sequence[Samples], how: Training = Training(), start: Ensemble | None = None) -> Ensemble:
    """Train an ensemble, from scratch or from `start` (whose shape and scaling it keeps)."""
    import jax

    data = [s for s in data if len(s.measured) > 1]
    arrays = _padded(data, how.prior)
    centre, scale = (start.centre, start.scale) if start is not None else _scaling(data)
    x = np.clip((arrays[0] - centre) / scale, -CLIP, CLIP).astype(np.float32)
    params = [(w, b) for w, b in start.layers] if start is not None else _fresh(x.shape[-1], how)
    rng, members = np.random.default_rng(how.seed), len(params[0][0])
    # Every member sees its own resample of the kernels, or the members would agree where nothing was measured.
    drawn = rng.integers(0, len(data), (members, len(data)))
    picks = rng.integers(0, len(data), (how.steps, members, min(how.batch, len(data))))
    batches = np.take_along_axis(np.broadcast_to(drawn, (how.steps, *drawn.shape)), picks, axis=2).astype(np.int32)
    run = _run(how.rate, how.steps, how.decay, how.sharpness, how.focus, how.pick)
    trained = run(jax.tree.map(np.asarray, params), x, *arrays[1:], batches)
    return Ensemble(centre, scale, tuple((np.asarray(w), np.asarray(b)) for w, b in trained))


def shrunk(ensemble: Ensemble, share: float = SHARE) -> Ensemble:
    """The ensemble with this share of its corrections."""
    *layers, (weights, biases) = ensemble.layers
    return replace(ensemble, layers=(*layers, (weights * np.float32(share), biases * np.float32(share))))


def _padded(data: Sequence[Samples], prior: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(features, prior, measured, present), kernels first, padded to the power of two that holds the nests of each (so
    that a tuner's rounds are compiled for few shapes)."""
    most = 1 << max(len(s.measured) - 1 for s in data).bit_length()

    def stacked(rows: Sequence[np.ndarray]) -> np.ndarray:
        out = np.zeros((len(rows), most, *rows[0].shape[1:]), np.float32)
        for k, row in enumerate(rows):
            out[k, : len(row)] = row
        return out

    present = stacked([np.ones(len(s.measured)) for s in data])
    priors = stacked([s.prior - s.measured.min() for s in data]) * prior
    return stacked([s.features for s in data]), priors, stacked([s.measured - s.measured.min() for s in data]), present


def _scaling(data: Sequence[Samples]) -> tuple[np.ndarray, np.ndarray]:
    everything = np.concatenate([s.features for s in data])
    return everything.mean(axis=0), np.maximum(everything.std(axis=0), 0.05).astype(np.float32)


def _fresh(inputs: int, how: Training) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(how.seed)
    sizes = (inputs, *how.hidden, 1)
    layers = []
    for n, m in zip(sizes, sizes[1:], strict=False):
        spread = np.sqrt(2 / n) * (0.05 if m == 1 else 1.0)  # at first the correction is nearly none
        w = rng.standard_normal((how.members, n, m)) * spread
        layers.append((w.astype(np.float32), np.zeros((how.members, m), np.float32)))
    return layers


@cache
def _run(rate: float, steps: int, decay: float, sharpness: float, focus: float, pick: float) -> Any:
    """The whole training as one jitted function of (parameters, features, prior, measured, present, batches)."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=decay)

    def scores(params: Any, x: Any, prior: Any) -> Any:
        y = x
        for k, (w, b) in enumerate(params):
            y = y @ w + b
            y = jax.nn.relu(y) if k < len(params) - 1 else y
        return prior + y[..., 0]

    def loss(params: Any, x: Any, prior: Any, measured: Any, present: Any) -> Any:
        s = scores(params, x, prior)
        apart = measured[:, None, :] - measured[:, :, None]  # > 0 where i is faster than j
        better = sharpness * (s[:, None, :] - s[:, :, None])
        both = present[:, None, :] * present[:, :, None] * (apart > 0)
        near = jnp.exp(-focus * measured)[:, :, None]
        weight = both * jnp.minimum(apart, 1.0) * (0.05 + near)
        ranking = (weight * jax.nn.softplus(-better)).sum((1, 2)) / (weight.sum((1, 2)) + 1e-6)
        chance = jax.nn.softmax(jnp.where(present > 0, -sharpness * s, -jnp.inf), axis=1)
        regret = (chance * jnp.minimum(measured, 1.0) * present).sum(axis=1)
        return ranking.mean() / sharpness + pick * regret.mean()

    @partial(jax.vmap, in_axes=(0, None, None, None, None, 0))
    def gradients(params: Any, x: Any, prior: Any, measured: Any, present: Any, batch: Any) -> Any:
        return jax.grad(loss)(params, x[batch], prior[batch], measured[batch], present[batch])

    @jax.jit
    def run(params: Any, x: Any, prior: Any, measured: Any, present: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(gradients(params, x, prior, measured, present, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    return run
