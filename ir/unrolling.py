"""What the front ends share to unroll loops: a slice of each step, the results of all steps stacked, a limit.

Control flow does not reach the graph: loops whose number of steps is known while importing are written out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import canonical as ir
from .errors import UnsupportedError
from .graph import GraphBuilder, Value

MAX_STEPS = 1024
Known = Value | np.ndarray


def require_steps(steps: int, what: str) -> int:
    """`steps`, if that many may be written out. Raises `UnsupportedError`."""
    if steps > MAX_STEPS:
        raise UnsupportedError(f"{what} runs {steps} steps; at most {MAX_STEPS} are unrolled: shorten the sequence")
    return steps


def at_step(x: Known, step: int, axis: int = 0) -> Known:
    """x[step] along an axis, which disappears."""
    if isinstance(x, np.ndarray):
        return x.take(step, axis)
    start = [step if d == axis else 0 for d in range(x.type.rank)]
    limit = [step + 1 if d == axis else n for d, n in enumerate(x.shape)]
    return ir.reshape(ir.slice_(x, start, limit), [n for d, n in enumerate(x.shape) if d != axis])


def stacked(builder: GraphBuilder, parts: Sequence[Known], axis: int = 0) -> Known:
    """Results of all steps along a new axis."""
    if all(isinstance(p, np.ndarray) for p in parts):
        return np.stack([p for p in parts if isinstance(p, np.ndarray)], axis)
    values = [p if isinstance(p, Value) else builder.constant(p) for p in parts]
    shape = [*values[0].shape[:axis], 1, *values[0].shape[axis:]]
    return ir.concat([ir.reshape(v, shape) for v in values], axis)


def chosen(builder: GraphBuilder, condition: Value, then: Known, otherwise: Known) -> Value:
    """Of two results of one type, the one that a single condition chooses when the program runs."""
    values = [v if isinstance(v, Value) else builder.constant(v) for v in (then, otherwise)]
    if values[0].type != values[1].type:
        raise UnsupportedError(f"the branches yield {values[0].type} and {values[1].type}; they must agree")
    return ir.select(ir.reshape(condition, ()), *values)
