"""Graph programs: a DAG of operators with constants, in topological order, as an immutable value.

`GraphBuilder` makes them; equal nodes are shared as they are added (common subexpressions never arise). A graph
prints as one line a node:

    %2 = dot(%0, %1; batch=((),()), contract=((1),(0))) : f32[1,512]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .attrs import EMPTY, Attrs
from .digest import digest
from .errors import TypeRuleError
from .operator import operator
from .types import TensorType, dtype_of

INPUT = "input"
CONSTANT = "constant"


@dataclass(frozen=True)
class Node:
    """An operator applied to earlier nodes; `op` is `input` or `constant` for leaves (their `label` is the name)."""

    op: str
    inputs: tuple[int, ...]
    attrs: Attrs
    type: TensorType
    label: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order; `inputs` and `outputs` are node numbers; `constants` maps node number to array."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, np.ndarray]

    @property
    def input_types(self) -> tuple[TensorType, ...]:
        return tuple(self.nodes[i].type for i in self.inputs)

    @property
    def output_types(self) -> tuple[TensorType, ...]:
        return tuple(self.nodes[o].type for o in self.outputs)

    @cached_property
    def operator_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.op] = counts.get(node.op, 0) + 1
        return dict(sorted(counts.items()))

    def pruned(self) -> Graph:
        """The graph without nodes that no output needs (inputs stay, in order)."""
        live: set[int] = set(self.inputs)
        stack = list(self.outputs)
        while stack:
            n = stack.pop()
            if n not in live or (n in self.inputs and self.nodes[n].inputs):
                live.add(n)
                stack.extend(self.nodes[n].inputs)
        order = sorted(live)
        new = {old: k for k, old in enumerate(order)}
        nodes = tuple(
            Node(n.op, tuple(new[i] for i in n.inputs), n.attrs, n.type, n.label)
            for n in (self.nodes[o] for o in order)
        )
        constants = {new[k]: v for k, v in self.constants.items() if k in new}
        return Graph(nodes, tuple(new[i] for i in self.inputs), tuple(new[o] for o in self.outputs), constants)

    def __str__(self) -> str:
        lines = []
        for k, n in enumerate(self.nodes):
            inside = ", ".join(f"%{i}" for i in n.inputs)
            if n.op in (INPUT, CONSTANT):
                inside = n.label
            attrs = f"; {n.attrs!r}" if len(n.attrs) else ""
            lines.append(f"%{k} = {n.op}({inside}{attrs}) : {n.type}")
        lines.append(f"return {', '.join(f'%{o}' for o in self.outputs)}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Value:
    """A node of a graph under construction; arithmetic on it adds nodes (operands of one shape, or numbers)."""

    builder: GraphBuilder = field(repr=False)
    id: int

    @property
    def type(self) -> TensorType:
        return self.builder.nodes[self.id].type

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> str:
        return self.type.dtype

    def _binary(self, op: str, other: Value | float, swap: bool = False) -> Value:
        rhs = other if isinstance(other, Value) else self.builder.full(self.shape, other, self.dtype)
        return self.builder.op(op, rhs, self) if swap else self.builder.op(op, self, rhs)

    def __add__(self, o: Value | float) -> Value:
        return self._binary("add", o)

    def __radd__(self, o: float) -> Value:
        return self._binary("add", o)

    def __sub__(self, o: Value | float) -> Value:
        return self._binary("sub", o)

    def __rsub__(self, o: float) -> Value:
        return self._binary("sub", o, swap=True)

    def __mul__(self, o: Value | float) -> Value:
        return self._binary("mul", o)

    def __rmul__(self, o: float) -> Value:
        return self._binary("mul", o)

    def __truediv__(self, o: Value | float) -> Value:
        return self._binary("div", o)

    def __rtruediv__(self, o: float) -> Value:
        return self._binary("div", o, swap=True)

    def __neg__(self) -> Value:
        return self.builder.op("neg", self)


class GraphBuilder:
    """Builds a `Graph`. Raises `TypeRuleError` where an operator does not accept its operands."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[int] = []
        self.constants: dict[int, np.ndarray] = {}
        self._seen: dict[Any, int] = {}

    def _add(self, node: Node, key: Any) -> Value:
        if key not in self._seen:
            self._seen[key] = len(self.nodes)
            self.nodes.append(node)
        return Value(self, self._seen[key])

    def input(self, type: TensorType, name: str = "") -> Value:
        label = name or f"x{len(self.inputs)}"
        value = self._add(Node(INPUT, (), EMPTY, type, label), (INPUT, len(self.inputs)))
        self.inputs.append(value.id)
        return value

    def constant(self, array: Any, name: str = "") -> Value:
        """A constant tensor: a copy of the array, or itself if nobody can write to it.

        Raises `TypeRuleError` for a dtype outside the table.
        """
        a = np.asarray(array, order="C")
        if not _is_frozen(a):
            a = a.copy()
            a.setflags(write=False)
        type = TensorType(a.shape, dtype_of(a))
        label = name or f"c{len(self.constants)}"
        value = self._add(Node(CONSTANT, (), EMPTY, type, label), (CONSTANT, type, digest([a])))
        self.constants.setdefault(value.id, a)
        return value

    def full(self, shape: Sequence[int], value: float | bool, dtype: str = "f32") -> Value:
        """A tensor of one value: a scalar constant, broadcast."""
        from .types import DTYPES

        scalar = self.constant(np.asarray(value, DTYPES[dtype].numpy))
        return self.op("broadcast", scalar, shape=tuple(shape), dims=()) if len(shape) else scalar

    def op(self, name: str, *operands: Value, **attrs: Any) -> Value:
        """Apply an operator of the table."""
        if any(v.builder is not self for v in operands):
            raise TypeRuleError(f"{name}: an operand belongs to another graph")
        record = Attrs(**attrs)
        type = operator(name).check(tuple(v.type for v in operands), record)
        inputs = tuple(v.id for v in operands)
        return self._add(Node(name, inputs, record, type), (name, inputs, record))

    def is_constant(self, value: Value) -> bool:
        return value.id in self.constants

    def finish(self, outputs: Sequence[Value]) -> Graph:
        return Graph(
            tuple(self.nodes), tuple(self.inputs), tuple(v.id for v in outputs), dict(self.constants)
        ).pruned()


def _is_frozen(array: np.ndarray) -> bool:
    """The memory cannot be written through the array, nor through one that it is a view of."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return False
        memory = memory.base
    return True
