"""The property test of a fusion rule: the fused kernel computes what running producer and consumer does."""

from __future__ import annotations

import numpy as np

from ..ir.operator import Chooser, Reject
from ..rewrite.fusion_rules import FusionRule
from .choosing import Outcome, Refuted, search
from .graph_check import side_text, spread
from .kernels import Tree, compose, draw_pair, lowered
from .values import data_sets, first_difference, in_jax, in_numpy, says_something

Pair = tuple[Tree, int, Tree]


def check_fusion_rule(rule: FusionRule, examples: int, jax_examples: int, seed: int) -> Outcome[Pair]:
    """Search for kernels that the rule fuses and should not."""

    def draw(c: Chooser) -> Pair:
        pair = draw_pair(c)
        if not _applies(rule, pair):
            raise Reject
        return pair

    outcome = search(draw, lambda pair: _holds(pair, seed), examples, seed)
    for pair in spread(outcome.passed, jax_examples) if outcome.failure is None else ():
        try:
            _agrees_with_jax(pair, seed)
        except Refuted as found:
            outcome.failure = f"{found}\n(by the JAX references only)"
    return outcome


def _applies(rule: FusionRule, pair: Pair) -> bool:
    """Whether the rule fuses the pair; an exception in its condition counts, so that the test reports it."""
    consumer, i, producer = pair
    try:
        return bool(rule.when(consumer.kernel, i, producer.kernel))
    except Exception as e:
        raise Refuted(f"{_pair_text(pair)}\nthe condition raises {type(e).__name__}: {e}") from None


def _pair_text(pair: Pair) -> str:
    consumer, i, producer = pair
    return f"consumer {consumer}\nproducer {producer}\nof operand {i}"


def _holds(pair: Pair, seed: int) -> None:
    consumer, i, producer = pair
    fused = compose(consumer, i, producer)
    informative = False
    for arrays in data_sets(fused.pattern, fused.env, seed):
        want = in_numpy(fused.pattern, fused.env, arrays)
        _compare(pair, want, fused.value(arrays))
        informative |= says_something(want)
    if not informative:
        raise Reject
    if lowered(consumer) and lowered(producer) and not lowered(fused):
        raise Refuted(
            f"{_pair_text(pair)}\neach lowers to a loop nest, the fused kernel does not: {fused.kernel.expr}"
        )


def _agrees_with_jax(pair: Pair, seed: int) -> None:
    fused = compose(*pair)
    arrays = list(data_sets(fused.pattern, fused.env, seed))[1]
    _compare(pair, in_jax([fused.pattern], fused.env, arrays)[0], fused.value(arrays))


def _compare(pair: Pair, want: np.ndarray, got: np.ndarray) -> None:
    at = first_difference(want, got)
    if at is not None:
        raise Refuted(f"{_pair_text(pair)}\n{side_text('both', want, at)}\n{side_text('fused', got, at)}")
