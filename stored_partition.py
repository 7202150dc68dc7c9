"""Programs for a CPU and an accelerator in the cache: what was chosen, the constants, and the CPU's machine code.

Streams are not kept: they are emitted again from the kernels, whose tilings are in the cache too (`TilingStore`). Nor
is the e-graph: of it there are the types of its classes, its inputs and outputs, and the arrays that are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cache import Cache, text_of
from .codegen.program import MachineCode
from .extract.choose import Candidate
from .extract.result import Extraction
from .ir.expr import TensorExpr
from .ir.graph import Graph
from .ir.nest import Nest
from .ir.serial import KERNELS
from .ir.types import DTYPES, TensorType
from .rewrite.graph_egraph import EClass, GraphEGraph
from .rewrite.saturate import SaturationReport
from .stored import Context, TilingStore, graph_digest
from .vta.offer import offer
from .vta.partition import (
    Accelerator,
    Action,
    CpuKernel,
    Fetch,
    Partition,
    Place,
    Price,
    Reason,
    Send,
    VtaKernel,
    Widened,
)
from .vta.view import View

Values = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class _OnCpu:
    candidate: Candidate
    nest: Nest | None
    seconds: float


@dataclass(frozen=True)
class _OnVta:
    """A kernel of the accelerator; `known`: its operands that are constants, `narrow`: see `vta.offer`."""

    owner: int
    args: tuple[int, ...]
    expr: TensorExpr
    loss: float
    known: tuple[int, ...]
    narrow: tuple[int, ...]


@dataclass(frozen=True)
class _Row:
    """An action with its price, what the CPU takes to pack its weights (-1: nothing), and the reason for its side."""

    action: _OnCpu | _OnVta | Send | Fetch | Widened
    seconds: float
    packing: float
    reason: Reason | None


@dataclass(frozen=True)
class _Plan:
    types: tuple[TensorType, ...]
    inputs: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]
    known: tuple[int, ...]
    rows: tuple[_Row, ...]
    extraction: tuple[Any, ...]
    loss: float


_PLANS = KERNELS.extended(
    TensorExpr, Candidate, View, Place, Send, Fetch, Widened, Price, Reason, _OnCpu, _OnVta, _Row, _Plan
)


@dataclass(frozen=True, eq=False)
class StoredPartition:
    """An e-graph without e-nodes, what was chosen from it, and the machine code of the CPU's turns."""

    egraph: GraphEGraph
    partition: Partition
    codes: tuple[MachineCode, ...]


class PartitionStore:
    """Partitioned programs in the cache: one graph under one context, for one accelerator."""

    def __init__(self, cache: Cache, graph: Graph, where: Context, accelerator: Accelerator) -> None:
        self.cache, self.accelerator, self.tilings = cache, accelerator, TilingStore(cache)
        self.context = Context({**where.parts, "accelerator": repr(accelerator)})
        self.name = f"programs/{graph_digest(graph)[:40]}/{self.context.whole[:40]}"

    def get(self) -> StoredPartition | None:
        parts = self.cache.read(self.name)
        if parts is None:
            return None
        plan = _PLANS.loads(text_of(parts["plan"]))
        values = {
            k: parts[f"constant {k}"].view(DTYPES[plan.types[k].dtype].numpy).reshape(plan.types[k].shape)
            for k in plan.known
        }
        count = sum(name.startswith("code ") for name in parts)
        codes = tuple(MachineCode(parts[f"code {k}"].tobytes(), parts[f"packed {k}"]) for k in range(count))
        return StoredPartition(_egraph(plan, values), self._partition(plan, values), codes)

    def put(self, egraph: GraphEGraph, partition: Partition, values: Values, codes: Sequence[MachineCode]) -> None:
        """Keep a program. `values`: the constants that its kernels read, by e-class."""
        parts: dict[str, bytes | np.ndarray] = {
            "context": json.dumps(dict(self.context.parts)).encode(),
            "plan": _PLANS.dumps(_plan(egraph, partition, values)).encode(),
        }
        parts |= {f"constant {k}": np.ascontiguousarray(v) for k, v in values.items()}
        for k, code in enumerate(codes):
            parts |= {f"code {k}": code.object, f"packed {k}": code.constants}
        self.cache.write(self.name, parts)

    def _partition(self, plan: _Plan, values: Values) -> Partition:
        actions = {row: self._action(row.action, values) for row in plan.rows}
        nests = {
            row.action.candidate.number: (row.action.nest, row.action.seconds)
            for row in plan.rows
            if isinstance(row.action, _OnCpu) and row.action.nest is not None
        }
        return Partition(
            tuple(actions.values()),
            {a: row.seconds for row, a in actions.items()},
            {a: row.packing for row, a in actions.items() if isinstance(a, VtaKernel) and row.packing >= 0},
            nests,
            {a: row.reason for row, a in actions.items() if row.reason is not None},
            Extraction(np.zeros(0, np.int32), *plan.extraction),
            plan.loss,
        )

    def _action(self, a: Any, values: Values) -> Action:
        if isinstance(a, _OnCpu):
            return CpuKernel(a.candidate)
        if isinstance(a, _OnVta):
            vta, known = self.accelerator, {k: values[a.args[k]] for k in a.known}
            made = offer(a.expr, known, vta.config, vta.board, vta.effort, a.narrow, self.tilings)
            return VtaKernel(a.owner, a.args, made, a.loss)
        return a


def _plan(egraph: GraphEGraph, partition: Partition, values: Values) -> _Plan:
    e, rows = partition.extraction, []
    for a in partition.actions:
        packing = partition.packing.get(a, -1.0) if isinstance(a, VtaKernel) else -1.0
        rows.append(_Row(_plain(a, partition), partition.prices[a], packing, partition.reasons.get(a)))
    return _Plan(
        tuple(c.type for c in egraph.classes),
        tuple((k, c.input) for k, c in enumerate(egraph.classes) if c.input is not None),
        tuple(egraph.outputs),
        tuple(values),
        tuple(rows),
        (e.cost, e.bound, e.method, e.seconds, e.optimal, e.limit),
        partition.loss,
    )


def _plain(a: Action, partition: Partition) -> Any:
    if isinstance(a, CpuKernel):
        c = a.candidate
        return _OnCpu(c, *(partition.nests.get(c.number) or (None, 0.0)))
    if isinstance(a, VtaKernel):
        return _OnVta(a.owner, a.args, a.offer.expr, a.loss, tuple(sorted(a.offer.constants)), a.offer.narrow)
    return a


def _egraph(plan: _Plan, values: Values) -> GraphEGraph:
    places, inputs = {k: place for place, k in enumerate(values)}, dict(plan.inputs)
    classes = [
        EClass(t, const=k in places, input=inputs.get(k), constant=places.get(k)) for k, t in enumerate(plan.types)
    ]
    return GraphEGraph(classes, plan.outputs, list(values.values()), SaturationReport())
