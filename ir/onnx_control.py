"""ONNX' If, Loop and Scan: branches chosen while importing (or both computed), loops of known length unrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canonical import constant_of
from .errors import UnsupportedError
from .graph import GraphBuilder, Value
from .onnx_ops import Known, not_constant
from .unrolling import at_step, chosen, require_steps, stacked

Body = Callable[[Any, Mapping[str, Any]], list[Any]]
"""(subgraph, names it may read beside those around it) -> its outputs."""


@dataclass(frozen=True, eq=False)
class ControlFlow:
    """A node with subgraphs: its attributes and operands, and how to import a subgraph."""

    attrs: Mapping[str, Any]
    ins: Sequence[Known | None]
    outputs: int
    body: Body
    builder: GraphBuilder


def _array(x: Known | None, what: str) -> np.ndarray:
    if isinstance(x, Value):
        known = constant_of(x)
        if known is None:
            raise not_constant(x, what)
        return known
    if x is None:
        raise UnsupportedError(f"{what} is missing; run onnx.checker on the model")
    return x


def conditional(c: ControlFlow) -> list[Known]:
    """If: one branch, or a choice between the results of both."""
    branches = [c.attrs["then_branch"], c.attrs["else_branch"]]
    condition = c.ins[0]
    if isinstance(condition, Value) and constant_of(condition) is None:
        both = [c.body(b, {}) for b in branches]
        return [chosen(c.builder, condition, t, o) for t, o in zip(*both, strict=True)]
    return c.body(branches[0 if _array(condition, "the condition").item() else 1], {})


def loop(c: ControlFlow) -> list[Known]:
    """Loop: as often as its trip count and its condition, which must be known at each step, say."""
    graph = c.attrs["body"]
    names = [i.name for i in graph.input]
    trips = None if c.ins[0] is None else int(_array(c.ins[0], "the trip count").item())
    going = c.ins[1] is None or bool(_array(c.ins[1], "the condition").item())
    state: list[Any] = list(c.ins[2:])
    rows: list[list[Known]] = []
    step = 0
    while going and (trips is None or step < trips):
        require_steps(step + 1, "the Loop")
        given = dict(zip(names, [np.array(step, np.int64), np.array(True), *state], strict=True))
        out = c.body(graph, given)
        state, row = out[1 : 1 + len(state)], out[1 + len(state) :]
        rows.append(row)
        going = bool(_array(out[0], "the condition of the Loop after a step").item())
        step += 1
    if not rows and c.outputs > len(state):
        raise UnsupportedError("a Loop of no steps has results of no known shape; export the model without it")
    return [*state, *(stacked(c.builder, column) for column in zip(*rows, strict=True))]


def scan(c: ControlFlow) -> list[Known]:
    """Scan (from opset 9): one step for each slice of the scanned operands."""
    graph, count = c.attrs["body"], c.attrs["num_scan_inputs"]
    if len(graph.input) != len(c.ins):
        raise UnsupportedError("a Scan over a batch (opset 8) is not supported; export the model with opset 9 or later")
    names = [i.name for i in graph.input]
    scanned = [x for x in c.ins[len(c.ins) - count :] if x is not None]
    state: list[Any] = list(c.ins[: len(c.ins) - count])
    axes = [a % len(x.shape) for a, x in zip(c.attrs.get("scan_input_axes") or [0] * count, scanned, strict=True)]
    backward = c.attrs.get("scan_input_directions") or [0] * count
    steps = require_steps(scanned[0].shape[axes[0]], "the Scan")
    rows: list[list[Known]] = []
    for step in range(steps):
        places = [steps - 1 - step if back else step for back in backward]
        slices = [at_step(x, p, a) for x, p, a in zip(scanned, places, axes, strict=True)]
        out = c.body(graph, dict(zip(names, [*state, *slices], strict=True)))
        state, row = out[: len(state)], out[len(state) :]
        rows.append(row)
    return [*state, *_results(c, [list(column) for column in zip(*rows, strict=True)])]


def _results(c: ControlFlow, columns: list[list[Known]]) -> list[Known]:
    backward = c.attrs.get("scan_output_directions") or [0] * len(columns)
    axes = c.attrs.get("scan_output_axes") or [0] * len(columns)
    out = []
    for column, back, axis in zip(columns, backward, axes, strict=True):
        rank = len(column[0].shape) + 1
        out.append(stacked(c.builder, column[::-1] if back else column, axis % rank))
    return out


CONTROL: dict[str, Callable[[ControlFlow], list[Known]]] = {"If": conditional, "Loop": loop, "Scan": scan}
