"""A graph program as an e-graph: encoded, saturated in phases, and read back once as plain arrays of e-nodes.

Phases: rewrites over operators (algebra, layout, algorithm, users' rules), then every operator becomes a kernel, then
kernels fuse, at last the widest of each tensor into kernels of several stages. What comes back holds, for each
e-class, the ways to have that tensor: as an input, as a constant made at compile time, or as a kernel applied to
other e-classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..ir.attrs import Attrs
from ..ir.calibration import Ranges
from ..ir.graph import Graph
from ..ir.types import TensorType
from .encoding import encode
from .fusion_rules import FusionRule, KernelRule, StagingRule
from .host import Host, prelude
from .kernel import Kernel
from .language import (
    Term,
    analyses,
    constructor,
    count_readers,
    declarations,
    lowering_rules,
    merging_rules,
    reachable,
    render,
    widest_kernels,
)
from .rule import GraphRule, distinct
from .saturate import EggRule, Engine, Limits, SaturationReport, saturate

GRAPH_LIMITS = Limits(nodes=50_000, iterations=24, seconds=20.0)


@dataclass(frozen=True)
class CallNode:
    """A kernel applied to e-classes."""

    kernel: Kernel
    args: tuple[int, ...]


@dataclass(frozen=True)
class OpNode:
    """An operator applied to e-classes (kept to evaluate constants)."""

    op: str
    attrs: Attrs
    args: tuple[int, ...]


@dataclass
class EClass:
    """One tensor: its type, the e-nodes that make it, and the input number or constant if it is one."""

    type: TensorType
    const: bool = False
    input: int | None = None
    constant: int | None = None
    calls: list[CallNode] = field(default_factory=list)
    ops: list[OpNode] = field(default_factory=list)


@dataclass
class GraphEGraph:
    """The saturated e-graph. `constants` are the arrays that `EClass.constant` indexes; `outputs` are e-classes."""

    classes: list[EClass]
    outputs: tuple[int, ...]
    constants: list[np.ndarray]
    report: SaturationReport

    @property
    def enodes(self) -> int:
        return sum(len(c.calls) + len(c.ops) + (c.input is not None) + (c.constant is not None) for c in self.classes)


def _phases(
    rewrites: Sequence[GraphRule], kernels: Sequence[KernelRule], terms: Sequence[Term], host: Host
) -> list[list[EggRule]]:
    fusing = [(r, *render([r], host)) for r in kernels if isinstance(r, FusionRule)]
    staging = render([r for r in kernels if isinstance(r, StagingRule)], host)
    merging = merging_rules(host)
    first = [*merging, *(egg for r, egg in fusing if r.dominates)]
    middle = [*merging, *(egg for r, egg in fusing if not r.widest and not r.sole)]
    last = [[*merging, *widest_kernels(), egg] for r, egg in fusing if r.widest]
    return [render(rewrites, host), lowering_rules(host, terms), [count_readers()], first, middle, *last, staging]


def build(
    graph: Graph,
    rules: Sequence[GraphRule | KernelRule],
    limits: Limits = GRAPH_LIMITS,
    ranges: Ranges | None = None,
) -> GraphEGraph:
    """Encode and saturate; `ranges` are what lossy rules know of the graph's tensors.

    Raises `RuleError` if a rule's function fails or its sides differ in type.
    """
    kernels = [r for r in distinct(rules) if isinstance(r, KernelRule)]
    terms, rewrites = reachable(graph, [r for r in rules if isinstance(r, GraphRule)])
    phases = partial(_phases, rewrites, kernels, terms)
    return _saturated(graph, terms, phases, limits, any(r.values for r in rewrites), ranges)


def explore(graph: Graph, rules: Sequence[GraphRule], limits: Limits = GRAPH_LIMITS) -> GraphEGraph:
    """Saturate with rules of operators alone: what terms a program may be, none of them made a kernel."""
    terms, rewrites = reachable(graph, distinct(rules))
    asks_values = any(r.values for r in rewrites)
    return _saturated(graph, terms, lambda host: [render(rewrites, host)], limits, asks_values, None)


def _saturated(
    graph: Graph,
    terms: Sequence[Term],
    phases_in: Callable[[Host], list[list[EggRule]]],
    limits: Limits,
    asks_values: bool,
    ranges: Ranges | None,
) -> GraphEGraph:
    engine = Engine()
    with Host() as host:
        texts = [declarations(host, terms), analyses(host, terms, asks_values)]
        phases = phases_in(host)
        texts += {r.name: r.text for phase in phases for r in phase}.values()
        engine.load(prelude(host), *texts)
        constants = encode(graph, engine, host, asks_values)
        if ranges is not None:
            numbers = {k: host.intern(t) for k, t in ranges.tensors.items()}
            engine.load(*(f"(set (calibrated (node {k})) (py-from-int {n}))" for k, n in numbers.items()))
        counted = {"Input", "Const", "Call"} | {constructor(*t) for t in terms}

        def raise_error() -> None:
            if host.error is not None:
                raise host.error

        report = saturate(
            engine, phases, limits, analyses="analyses", counted=counted, after_step=raise_error
        )
        raise_error()
        return _read_back(graph, terms, engine, host, constants, report)


def _read_back(
    graph: Graph,
    terms: Sequence[Term],
    engine: Engine,
    host: Host,
    constants: list[np.ndarray],
    report: SaturationReport,
) -> GraphEGraph:
    egraph = engine.egraph
    tables = egraph.freeze().functions

    def python(value: Any) -> Any:
        return egraph.value_to_pyobject(value)

    classes: list[EClass] = []
    number: dict[Any, int] = {}
    for row in tables["ty"].rows:
        number[row.inputs[0]] = len(classes)
        classes.append(EClass(host.value(python(row.output))))
    for row in tables["is-const"].rows:
        classes[number[row.inputs[0]]].const = True
    for row in tables["Input"].rows:
        classes[number[row.output]].input = egraph.value_to_i64(row.inputs[0])
    for row in tables["Const"].rows:
        classes[number[row.output]].constant = python(row.inputs[0])
    for row in tables["Call"].rows:
        if row.subsumed:
            continue
        kernel = host.value(python(row.inputs[0]))
        args = tuple(number[v] for v in egraph.value_to_vec(row.inputs[1]))
        classes[number[row.output]].calls.append(CallNode(kernel, args))
    for name, n in terms:
        for row in tables[constructor(name, n)].rows:
            attrs = host.value(python(row.inputs[-1]))
            args = tuple(number[v] for v in row.inputs[:-1])
            classes[number[row.output]].ops.append(OpNode(name, attrs, args))
    nodes = {egraph.value_to_i64(row.inputs[0]): number[row.output] for row in tables["node"].rows}
    return GraphEGraph(classes, tuple(nodes[o] for o in graph.outputs), constants, report)
