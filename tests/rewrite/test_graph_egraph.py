"""The graph e-graph: whatever program is picked out of it computes what the graph does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestegg.extract.constants import constant_values
from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import streams
from nestegg.ir.graph import Graph, GraphBuilder
from nestegg.ir.operator import operator
from nestegg.ir.reference import evaluate, evaluate_expr
from nestegg.ir.types import TensorType, dtype_of
from nestegg.rewrite.graph_egraph import CallNode, GraphEGraph, build
from nestegg.rewrite.graph_rules import graph_rules
from nestegg.rewrite.language import MAX_VARIADIC, reachable
from nestegg.rewrite.rule import GraphRule
from nestegg.rewrite.saturate import Limits
from nestegg.testing import graphs, inputs_of

RULES = graph_rules(2)  # blocks of two elements: layouts apply to small tensors
LIMITS = Limits(nodes=300, iterations=2)


def conv_net() -> Graph:
    rng, b = np.random.default_rng(0), GraphBuilder()

    def constant(*shape: int):
        return b.constant(rng.normal(size=shape).astype(np.float32))

    x = b.input(TensorType((1, 2, 5, 5)))
    attrs = {"padding": ((1, 1), (1, 1)), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "groups": 1}
    y = b.op("conv", x, constant(4, 2, 3, 3), strides=(2, 2), **attrs)
    y = y * b.op("broadcast", constant(4), shape=y.shape, dims=(1,))
    y = b.op("max", y + b.op("broadcast", constant(4), shape=y.shape, dims=(1,)), b.full(y.shape, 0.0))
    y = b.op("reshape", y, shape=(1, 36))
    y = b.op("dot", y, constant(36, 4), contract=((1,), (0,)), batch=((), ()))
    return b.finish([y])


def fold(op: str, args: list[np.ndarray], attrs: Attrs) -> np.ndarray:
    """An operator on constants, in float64."""
    types = tuple(TensorType(a.shape, "f32" if a.dtype.kind == "f" else dtype_of(a)) for a in args)
    return evaluate_expr(operator(op).expr(types, attrs), [a.astype(np.float64) for a in args], double=True)


class Picker:
    """Evaluates programs of an e-graph: for each e-class one of its ways, at random, without cycles."""

    def __init__(self, egraph: GraphEGraph, args: list[np.ndarray], rng: np.random.Generator) -> None:
        self.egraph, self.args, self.rng = egraph, [a.astype(np.float64) for a in args], rng
        known = [k for k, c in enumerate(egraph.classes) if c.const]
        self.known = constant_values(egraph, known, fold)
        self.height = self._heights()
        self.done: dict[int, np.ndarray] = {}

    def _heights(self) -> list[float]:
        """Least number of calls under each e-class; infinite if no kernels make it."""
        height = [np.inf] * len(self.egraph.classes)
        changed = True
        while changed:
            changed = False
            for k, c in enumerate(self.egraph.classes):
                ways = [0.0] if c.input is not None or c.const else []
                ways += [1 + sum(height[a] for a in call.args) for call in c.calls]
                best = min(ways, default=np.inf)
                if best < height[k]:
                    height[k], changed = best, True
        return height

    def value(self, k: int, path: frozenset[int] = frozenset()) -> np.ndarray:
        """The e-class's value by a random choice, or a shortest one where others go in circles."""
        if k not in self.done:
            self.done[k] = self._value(k, path | {k})
        return self.done[k]

    def _value(self, k: int, path: frozenset[int]) -> np.ndarray:
        c = self.egraph.classes[k]
        if c.input is not None:
            return self.args[c.input]
        if c.const:
            return self.known[k]
        safe = [call for call in c.calls if 1 + sum(self.height[a] for a in call.args) <= self.height[k]]
        free = [call for call in c.calls if self._reaches_leaves(call, path)]
        call = (free or safe)[self.rng.integers(len(free or safe))]
        return evaluate_expr(call.kernel.expr, [self.value(a, path) for a in call.args], double=True)

    def _reaches_leaves(self, call: CallNode, path: frozenset[int]) -> bool:
        return all(a not in path and np.isfinite(self.height[a]) and self._clear(a, path) for a in call.args)

    def _clear(self, k: int, path: frozenset[int]) -> bool:
        """The e-class can be made without anything on the path."""
        if k in self.done:
            return True
        c = self.egraph.classes[k]
        if c.input is not None or c.const:
            return True
        lower = [call for call in c.calls if 1 + sum(self.height[a] for a in call.args) <= self.height[k]]
        return any(all(a not in path and self._clear(a, path) for a in call.args) for call in lower)


def check(
    graph: Graph, args: list[np.ndarray], egraph: GraphEGraph, rng: np.random.Generator, times: int
) -> None:
    want = evaluate(graph, args, double=True)
    for _ in range(times):
        pick = Picker(egraph, args, rng)
        for o, w in zip(egraph.outputs, want, strict=True):
            got = pick.value(o)
            assert got.shape == w.shape
            np.testing.assert_allclose(got, w, rtol=1e-8, atol=1e-8)


def test_every_program_of_a_network_computes_the_same():
    graph = conv_net()
    egraph = build(graph, RULES, Limits(nodes=3000))
    rng = np.random.default_rng(1)
    check(graph, [rng.normal(size=(1, 2, 5, 5))], egraph, rng, times=60)


def test_every_kind_of_rule_fires_on_a_network():
    report = build(conv_net(), RULES, Limits(nodes=3000)).report
    assert {s.kind for s in report.rules.values() if s.matches} >= {
        "algebra",
        "layout",
        "algorithm",
        "lowering",
        "fusion",
    }


@settings(max_examples=15)
@given(graphs(max_nodes=5).flatmap(lambda g: st.tuples(st.just(g), inputs_of(g))), st.integers(0, 999))
def test_every_program_of_a_random_graph_computes_the_same(case, seed):
    graph, args = case
    egraph = build(graph, RULES, LIMITS)
    assert [egraph.classes[o].type for o in egraph.outputs] == list(graph.output_types)
    for c in egraph.classes:
        for call in c.calls:
            assert call.kernel.expr.type == c.type
            assert call.kernel.expr.inputs == tuple(egraph.classes[a].type for a in call.args)
    check(graph, list(args), egraph, np.random.default_rng(seed), times=4)


@pytest.mark.slow
@settings(max_examples=60)
@given(graphs(max_nodes=8).flatmap(lambda g: st.tuples(st.just(g), inputs_of(g))), st.integers(0, 999))
def test_every_program_of_many_random_graphs_computes_the_same(case, seed):
    graph, args = case
    check(
        graph,
        list(args),
        build(graph, RULES, Limits(nodes=1000, iterations=3)),
        np.random.default_rng(seed),
        times=20,
    )


def test_constants_are_known_at_compile_time():
    b = GraphBuilder()
    x = b.input(TensorType((3,)))
    c = b.op("exp", b.constant(np.ones(3, np.float32)))
    egraph = build(b.finish([x * c]), RULES)
    assert not egraph.classes[egraph.outputs[0]].const
    assert any(k.const and not k.calls for k in egraph.classes), "constants are evaluated, not compiled"


def calls_of(egraph: GraphEGraph, result: int = 0) -> list[CallNode]:
    return egraph.classes[egraph.outputs[result]].calls


def chain(b: GraphBuilder, x, *ops: str):
    for op in ops:
        x = b.op(op, x)
    return x


def test_what_one_map_alone_reads_is_computed_there():
    b = GraphBuilder()
    x = b.input(TensorType((4, 6)))
    egraph = build(b.finish([chain(b, x, "exp", "tanh", "neg", "sin")]), RULES)
    (call,) = calls_of(egraph)
    assert call.kernel.operators == 4 and call.kernel.unit


def test_what_two_read_is_stored_or_computed_again():
    b = GraphBuilder()
    shared = chain(b, b.input(TensorType((4, 6))), "neg")
    egraph = build(b.finish([chain(b, shared, "exp"), chain(b, shared, "sin")]), RULES)
    assert {call.kernel.operators for call in calls_of(egraph)} == {1, 2}


def test_a_map_of_several_operators_is_one_epilogue():
    b = GraphBuilder()
    x, w = b.input(TensorType((4, 6))), b.input(TensorType((6, 3)))
    y = b.op("dot", x, w, contract=((1,), (0,)), batch=((), ()))
    egraph = build(b.finish([chain(b, y, "neg", "exp", "tanh")]), RULES)
    assert [(c.kernel.operators, c.kernel.closed) for c in calls_of(egraph)] == [(3, False), (4, True)]


def test_a_part_of_a_reduction_or_of_a_concatenation_is_no_epilogue():
    b = GraphBuilder()
    x, w = b.input(TensorType((4, 6))), b.input(TensorType((6, 9)))
    y = b.op("dot", x, w, contract=((1,), (0,)), batch=((), ()))
    third = b.op("exp", b.op("slice", y, start=(0, 0), limit=(4, 3), strides=(1, 1)))
    joined = b.op("concat", y, x, axis=1)
    egraph = build(b.finish([third, joined]), RULES)
    assert not any(c.kernel.closed for k in (0, 1) for c in calls_of(egraph, k))


def test_operands_that_are_one_tensor_are_one_before_anything_fuses():
    """Half of the readings of a tensor are never computed again while the other half reads it from memory."""
    b = GraphBuilder()
    x, m = b.input(TensorType((4, 6))), b.input(TensorType((4, 6)))
    centred = x - m
    egraph = build(b.finish([centred * centred, chain(b, centred, "exp")]), RULES)
    assert sorted(len(c.args) for c in calls_of(egraph)) == [1, 2]


def test_operands_of_nested_concatenations_are_read_as_they_are_stored():
    b = GraphBuilder()
    joined = b.input(TensorType((4, 2)))
    for _ in range(3):
        blocked = b.op("transpose", b.input(TensorType((3, 4))), perm=(1, 0))
        joined = b.op("concat", joined, blocked, axis=1)
    calls = calls_of(build(b.finish([joined]), RULES))
    turned = [sum(t.shape[0] == 3 for t in c.kernel.expr.inputs) for c in calls]
    assert max(turned) == 1 and max(len(c.args) for c in calls) == 4


def test_what_reads_an_alias_reads_what_it_is_an_alias_of():
    b = GraphBuilder()
    x = b.input(TensorType((4, 6)))
    flat = b.op("reshape", x, shape=(24,))
    egraph = build(b.finish([b.op("reduce", flat, kind="sum", axes=(0,)), chain(b, flat, "exp")]), RULES)
    (source,) = (k for k, c in enumerate(egraph.classes) if c.input is not None)
    assert {call.args for k in (0, 1) for call in calls_of(egraph, k)} == {(source,)}


def test_a_layout_of_an_alias_is_still_that_layout():
    """A reader goes through both, as through the layout alone."""
    b = GraphBuilder()
    x = b.input(TensorType((24,)))
    turned = b.op("transpose", b.op("reshape", x, shape=(4, 6)), perm=(1, 0))
    egraph = build(b.finish([chain(b, turned, "exp")]), RULES)
    (source,) = (k for k, c in enumerate(egraph.classes) if c.input is not None)
    assert (source,) in {call.args for call in calls_of(egraph)}


def test_readers_of_aliases_are_readers():
    """A map is not computed in each of several readers because they see it under another shape."""
    b = GraphBuilder()
    shared = b.op("reshape", chain(b, b.input(TensorType((4, 6))), "neg"), shape=(24,))
    egraph = build(b.finish([chain(b, shared, "exp"), chain(b, shared, "sin")]), RULES)
    assert {call.kernel.operators for call in calls_of(egraph)} == {1, 2}


def test_tensors_that_are_aliases_of_each_other_are_computed():
    b = GraphBuilder()
    x = b.input(TensorType((4, 6)))
    row = b.op("reshape", chain(b, x, "exp"), shape=(24,))
    back = b.op("reshape", row, shape=(4, 6))
    graph = b.finish([back + x, chain(b, row, "tanh")])
    rng = np.random.default_rng(1)
    check(graph, [rng.standard_normal((4, 6))], build(graph, RULES), rng, times=5)


def test_no_reduction_is_computed_again_beside_an_operand_that_needs_its_result():
    b = GraphBuilder()
    x, w = b.input(TensorType((4, 6))), b.input(TensorType((6, 3)))
    product = b.op("dot", x, w, contract=((1,), (0,)), batch=((), ()))
    greatest = b.op("reduce", product, kind="max", axes=(1,))
    below = product - b.op("broadcast", greatest, shape=(4, 3), dims=(0,))
    egraph = build(b.finish([below, product - b.input(TensorType((4, 3)))]), RULES)
    contracts = [any(not streams(c.kernel.expr) for c in calls_of(egraph, k)) for k in (0, 1)]
    assert contracts == [False, True]


def test_only_what_a_graph_can_reach_is_looked_for():
    b = GraphBuilder()
    parts = [chain(b, b.input(TensorType((2, 3))), "exp") for _ in range(9)]
    graph = b.finish([b.op("concat", *parts, axis=1)])
    terms, rules = reachable(graph, [r for r in RULES if isinstance(r, GraphRule)])
    assert {("exp", 1), ("concat", MAX_VARIADIC), ("concat", 4)} <= set(terms)  # of six, then of that and three
    assert not {op for op, _ in terms} & {"conv", "dot", "erf"}
    assert not any("conv" in str(w.left) for r in rules for w in r.rewrites)
    assert build(graph, RULES).report.stopped_by == "saturated"


@pytest.mark.parametrize(("reader", "exact"), [("round", True), ("floor", True), ("exp", False)])
def test_a_quotient_that_is_rounded_is_not_computed_as_a_product(reader: str, exact: bool):
    """-2.5 / 0.019607844 rounds to -127; times the reciprocal it is -127.5, which rounds to -128."""
    b = GraphBuilder()
    x, s = b.input(TensorType((4,))), b.input(TensorType(()))
    y = chain(b, x / b.op("broadcast", s, shape=(4,), dims=()), reader)
    egraph = build(b.finish([y]), RULES)
    inverses = [n for c in egraph.classes for n in c.ops if n.op == "reciprocal"]
    assert (not inverses) is exact
