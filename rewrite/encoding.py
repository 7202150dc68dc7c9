"""A graph program as terms of its e-graph.

All of it is the right side of one rule whose left side is empty, run once: a command for each row of a table takes
longer. The rule is made as egglog's syntax tree: of a text it would keep a copy for every node.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import Any

import numpy as np

from ..ir.attrs import Attrs
from ..ir.graph import CONSTANT, INPUT, Graph, Node
from .folded import Folded
from .host import Host
from .language import MAX_VARIADIC, SEVERAL, constructor
from .saturate import Engine

#: The name of the rule and of its ruleset.
PROGRAM = "program"


def encode(graph: Graph, engine: Engine, host: Host, values: bool) -> list[np.ndarray]:
    """Put a graph into an e-graph, each tensor with its type and what it is computed from, which the analyses would
    find out too: one layer after the other. With `values`, constants with their arrays. Returns the arrays that `Const`
    terms number."""
    program = _Program(graph, host, values)
    s = program.syntax
    rule = s.Rule(program.span, list(program.actions()), [], PROGRAM, PROGRAM)
    engine.egraph.run_program(s.AddRuleset(program.span, PROGRAM), s.RuleCommand(rule))
    engine.run(f"(run-schedule (run {PROGRAM}))")
    return [graph.constants[k] for k in program.constants]


class _Program:
    """A graph as actions of egglog; tensor k is the variable `x{k}`."""

    def __init__(self, graph: Graph, host: Host, values: bool) -> None:
        from egglog import bindings

        self.graph, self.host, self.values = graph, host, values
        self.syntax, self.span = bindings, bindings.PanicSpan()
        self.constants = [k for k, n in enumerate(graph.nodes) if n.op == CONSTANT]
        self.origins: list[int] = []

    def actions(self) -> Iterator[Any]:
        for k, n in enumerate(self.graph.nodes):
            x = self.var(f"x{k}")
            yield self.let(f"x{k}", self.tensor(k, n))
            yield self.set("node", self.number(k), x)
            yield self.set("ty", x, self.held(n.type))
            yield from self.origin(k, n)
            if n.op in (INPUT, CONSTANT):
                yield self.set("constness", x, self.number(int(n.op == CONSTANT)))
            if n.op == CONSTANT:
                yield self.syntax.Expr_(self.span, self.call("is-const", x))
            if n.op == CONSTANT and self.values:
                yield self.set("value", x, self.held(Folded(given=self.graph.constants[k])))
        for k in dict.fromkeys(self.graph.outputs):
            yield self.set("readers", self.var(f"x{k}"), self.number(SEVERAL))

    def tensor(self, k: int, n: Node) -> Any:
        if n.op == INPUT:
            return self.call("Input", self.number(self.graph.inputs.index(k)))
        if n.op == CONSTANT:
            return self.call("Const", self.call("py-from-int", self.number(self.constants.index(k))))
        return self.applied(n.op, [self.var(f"x{i}") for i in n.inputs], n.attrs)

    def applied(self, op: str, args: list[Any], attrs: Attrs) -> Any:
        """An operator as a term; an n-ary one wider than `MAX_VARIADIC` is chained (concat is associative)."""
        while len(args) > MAX_VARIADIC:
            head = self.call(constructor(op, MAX_VARIADIC), *args[:MAX_VARIADIC], self.held(attrs))
            args = [head, *args[MAX_VARIADIC:]]
        return self.call(constructor(op, len(args)), *args, self.held(attrs))

    def origin(self, k: int, n: Node) -> Iterator[Any]:
        """What tensor k is, and is computed from, as sets of tensors: numbers with a bit for each."""
        own = 0 if n.op in (INPUT, CONSTANT) else 1 << k
        below = reduce(or_, (self.origins[i] for i in n.inputs), 0)
        self.origins.append(own | below)
        for table, tensors in (("own", own), ("below", below)):
            yield self.set(table, self.var(f"x{k}"), self.call("from-string", self.text(str(tensors))))

    def held(self, value: Any) -> Any:
        """A value of the host's."""
        return self.call("py-from-int", self.number(self.host.intern(value)))

    def let(self, name: str, term: Any) -> Any:
        return self.syntax.Let(self.span, name, term)

    def set(self, table: str, key: Any, value: Any) -> Any:
        return self.syntax.Set(self.span, table, [key], value)

    def call(self, name: str, *args: Any) -> Any:
        return self.syntax.Call(self.span, name, list(args))

    def number(self, value: int) -> Any:
        return self.syntax.Lit(self.span, self.syntax.Int(value))

    def text(self, value: str) -> Any:
        return self.syntax.Lit(self.span, self.syntax.String(value))

    def var(self, name: str) -> Any:
        return self.syntax.Var(self.span, name)
