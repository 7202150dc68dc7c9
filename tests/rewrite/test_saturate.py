"""The driver: saturation, limits that hold and are reported, the same result every time."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from nestegg.ir.attrs import Attrs
from nestegg.ir.graph import Graph, GraphBuilder
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.operator import operator
from nestegg.ir.target import TARGETS
from nestegg.ir.types import TensorType
from nestegg.rewrite import graph_egraph, loop_egraph
from nestegg.rewrite.graph_rules import graph_rules
from nestegg.rewrite.saturate import EggRule, Engine, Limits, RuleStats, SaturationReport, saturate

GROW = EggRule("grow", "algebra", "grow", "(ruleset grow) (rule ((= n (S x))) ((S n)) :ruleset grow)")
TARGET = TARGETS["x86-64-v3"]


def naturals() -> Engine:
    engine = Engine()
    engine.run("(datatype N (Z) (S N)) " + GROW.text + " (let $root (S (Z)))")
    return engine


def test_saturated():
    engine = Engine()
    swap = EggRule(
        "swap", "algebra", "swap", "(ruleset swap) (rule ((= e (A x y))) ((union e (A y x))) :ruleset swap)"
    )
    engine.run("(datatype N (V i64) (A N N)) " + swap.text + " (let $root (A (V 1) (V 2)))")
    report = saturate(engine, [[swap]], Limits(), counted=("A",))
    assert (report.stopped_by, report.enodes) == ("saturated", 2)
    assert report.rules["swap"].enodes == 1
    assert report.rules["swap"].matches >= 1
    assert report.growth == [2, 2]


def test_limit_of_iterations():
    report = saturate(naturals(), [[GROW]], Limits(iterations=5), counted=("S",))
    assert (report.stopped_by, report.iterations, report.enodes) == ("iterations", 5, 6)


def test_limit_of_nodes():
    report = saturate(naturals(), [[GROW]], Limits(nodes=9, iterations=100), counted=("S",))
    assert (report.stopped_by, report.enodes) == ("nodes", 10)


def test_limit_of_seconds():
    report = saturate(
        naturals(), [[GROW]], Limits(iterations=10**9, nodes=10**9, seconds=0.05), counted=("S",)
    )
    assert report.stopped_by == "seconds"
    assert report.seconds < 5


def test_a_later_phase_runs_after_a_limit_of_iterations():
    mark = EggRule("mark", "algebra", "mark", "(ruleset mark) (rule ((= n (S x))) ((T x)) :ruleset mark)")
    engine = naturals()
    engine.run("(relation T (N)) " + mark.text)
    report = saturate(engine, [[GROW], [mark]], Limits(iterations=3), counted=("S", "T"))
    assert report.stopped_by == "iterations"
    assert report.rules["mark"].matches > 0


def test_reports_add_up():
    total = SaturationReport()
    total.absorb(SaturationReport("nodes", 2, 10, 0.5, {"r": RuleStats("r", "algebra", 3, 4, 0.1)}))
    total.absorb(SaturationReport("saturated", 1, 5, 0.5, {"r": RuleStats("r", "algebra", 1, 1, 0.1)}))
    assert (total.stopped_by, total.iterations, total.enodes) == ("nodes", 3, 15)
    assert (total.rules["r"].matches, total.rules["r"].enodes) == (4, 5)


# --- both levels ---------------------------------------------------------------------------------------


def mlp() -> Graph:
    rng, b = np.random.default_rng(0), GraphBuilder()
    x = b.input(TensorType((2, 16)))
    for _ in range(3):
        w = b.constant(rng.normal(size=(16, 16)).astype(np.float32))
        x = b.op("dot", x, w, contract=((1,), (0,)), batch=((), ()))
        bias = b.constant(rng.normal(size=16).astype(np.float32))
        x = b.op("max", x + b.op("broadcast", bias, shape=x.shape, dims=(1,)), b.full(x.shape, 0.0))
    return b.finish([x])


def matmul(m: int, k: int, n: int) -> LoopKernel:
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    return lower(operator("dot").expr((TensorType((m, k)), TensorType((k, n))), attrs))


def without_seconds(report: SaturationReport) -> SaturationReport:
    return replace(report, seconds=0.0, rules={n: replace(s, seconds=0.0) for n, s in report.rules.items()})


def test_graph_saturation_is_deterministic():
    first, second = (graph_egraph.build(mlp(), graph_rules(8)) for _ in range(2))
    assert first.report.stopped_by == "saturated"
    assert without_seconds(first.report) == without_seconds(second.report)
    assert first.classes == second.classes
    assert first.outputs == second.outputs


def test_loop_saturation_is_deterministic():
    first, second = (loop_egraph.build(matmul(24, 17, 32), TARGET) for _ in range(2))
    assert first.report.stopped_by == "saturated"
    assert without_seconds(first.report) == without_seconds(second.report)
    for f in fields(first):
        column = getattr(first, f.name)
        if isinstance(column, np.ndarray):
            assert np.array_equal(column, getattr(second, f.name)), f.name


@pytest.mark.parametrize("nodes", [10, 100])
def test_a_graph_cut_short_says_so_and_still_computes(nodes):
    egraph = graph_egraph.build(mlp(), graph_rules(8), Limits(nodes=nodes))
    assert egraph.report.stopped_by == "nodes"
    tensors = [c for c in egraph.classes if c.ops and not c.const]
    assert tensors and all(c.calls for c in tensors), "every operator has a kernel"


@pytest.mark.parametrize("limits", [Limits(nodes=200), Limits(iterations=2)])
def test_a_loop_egraph_cut_short_says_so(limits):
    egraph = loop_egraph.build(matmul(64, 64, 64), TARGET, limits=limits)
    assert egraph.report.stopped_by in ("nodes", "iterations")


def test_every_phase_of_a_big_kernel_is_within_the_limits():
    egraph = loop_egraph.build(matmul(512, 512, 512), TARGET)
    assert egraph.report.stopped_by == "saturated"
    assert egraph.enodes < loop_egraph.LOOP_LIMITS.nodes
    assert egraph.programs[egraph.root] > 10**9


def test_a_rule_that_finds_too_much_backs_off_and_comes_back():
    engine = Engine()
    engine.load("(sort N)", "(constructor Leaf (i64) N)", "(constructor Pair (N N) N)", "(ruleset pairs)")
    pairs = EggRule("pairs", "algebra", "pairs", "(rule ((= a (Leaf i)) (= b (Leaf j))) ((Pair a b)) :ruleset pairs)")
    grow = EggRule(
        "grow", "algebra", "grow", "(ruleset grow)\n(rule ((= a (Leaf i)) (< i 20)) ((Leaf (+ i 1))) :ruleset grow)"
    )
    engine.load(pairs.text, grow.text, "(Leaf 0)")
    report = saturate(engine, [[pairs, grow]], Limits(matches=10))
    assert report.stopped_by == "saturated"
    assert report.rules["pairs"].banned > 0 and report.rules["grow"].banned == 0
    assert report.rules["pairs"].enodes == 21 * 21, "what it found while it sat out is found in the end"
    free = Engine()
    free.load("(sort N)", "(constructor Leaf (i64) N)", "(constructor Pair (N N) N)", "(ruleset pairs)")
    free.load(pairs.text, grow.text, "(Leaf 0)")
    assert saturate(free, [[pairs, grow]], Limits()).rules["pairs"].banned == 0


def test_a_rule_is_not_run_while_a_table_it_needs_is_empty():
    grow = EggRule("grow", "algebra", "grow", GROW.text, ("T",))
    mark = EggRule("mark", "algebra", "mark", "(ruleset mark) (rule ((= n (S x))) ((T x)) :ruleset mark)")
    engine = Engine()
    engine.load("(datatype N (Z) (S N)) (relation T (N))", grow.text, mark.text, "(S (Z))")
    report = saturate(engine, [[grow]], Limits(iterations=3))
    assert report.stopped_by == "saturated" and report.rules["grow"].matches == 0
    report = saturate(engine, [[mark, grow]], Limits(iterations=3))
    assert report.rules["grow"].matches > 0
