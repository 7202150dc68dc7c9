"""What rules that look at values or calibrations see of drawn data, and how far a lossy rule may err.

A lossy rule is no equation. What is tested is its own statement: each tensor whose calibration it asks for is taken for
the program's output, and the error that the right side makes there, as a root mean square relative to the largest
magnitude, is at most `FACTOR` times the square root of the losses that it states.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..ir.calibration import Calibrated
from ..rewrite.pattern import RESULT, Apply, Environment, Pattern, calibrated_name, resolve, value_name
from ..rewrite.rule import GraphRule
from .values import Arrays, in_numpy

#: A rounding error is at most sqrt(3) of its standard deviation, and few of them need not average out.
FACTOR = 3.0


def with_data(rule: GraphRule, env: Environment, arrays: Arrays) -> dict[str, object]:
    """The binding with the values and calibrations that the rule asks for, of these arrays."""
    seen: dict[str, object] = {value_name(v): arrays[v] for v in rule.values}
    left = rule.rewrites[0].left
    for name in rule.calibrated:
        value = in_numpy(left, env, arrays) if name == RESULT else arrays[name]
        seen[calibrated_name(name)] = _as_output(value, _energy(left, env, arrays) if name == RESULT else 0.0)
    return {**env, **seen}


def _as_output(value: np.ndarray, energy: float) -> Calibrated:
    """The calibration of a tensor that is the output itself, on this value of it."""
    largest = float(np.abs(value).max(initial=0.0))
    low, high = float(value.min(initial=0.0)), float(value.max(initial=0.0))
    return Calibrated(low, high, 0.0, 1 / largest if largest else 0.0, energy)


def _energy(left: Pattern, env: Environment, arrays: Arrays) -> float:
    """As in `Calibrated`, if the left side is a contraction."""
    if not isinstance(left, Apply) or left.op not in ("conv", "dot"):
        return 0.0
    operands = [in_numpy(a, env, arrays) for a in left.args]
    from ..ir.reference import evaluate_expr
    from ..ir.types import TensorType
    from .values import expr_of

    types = tuple(TensorType(o.shape, "f32") for o in operands)
    contraction = expr_of(left.op, resolve(left, env), types)
    return float(evaluate_expr(contraction, [operands[0] ** 2, np.ones(operands[1].shape)], double=True).mean())


def losses(p: Pattern, env: Environment) -> Iterator[float]:
    """The losses that a side states."""
    if isinstance(p, Apply):
        yield from (loss for a in p.args for loss in losses(a, env))
        yield resolve(p, env).get("loss", 0.0)


def too_far(left: np.ndarray, right: np.ndarray, loss: float) -> tuple[int, ...] | None:
    """Index of the largest error, if the errors are larger than the loss says."""
    if left.shape != right.shape or not np.isfinite(right).all():
        return (0,) * left.ndim
    if not left.size:
        return None
    error = np.abs(right - left)
    relative = math.sqrt(float((error**2).mean())) / max(float(np.abs(left).max()), 1e-30)
    if relative <= FACTOR * math.sqrt(loss) + 1e-9:
        return None
    return tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
