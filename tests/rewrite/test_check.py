"""Rules are checked: shipped ones hold, wrong ones are refuted with small shapes, vacuous ones noticed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nestegg import loop_rule, op, rule
from nestegg.ir.attrs import Attrs
from nestegg.ir.errors import RuleError, UnknownNameError
from nestegg.ir.operator import OPERATORS
from nestegg.ir.types import TensorType
from nestegg.rewrite.catalogue import all_rules
from nestegg.rewrite.fusion_rules import FusionRule
from nestegg.rewrite.loop_language import For
from nestegg.rewrite.rule import load_rules
from nestegg.testing import check_rule, check_rules_command, shipped_rules, to_json
from nestegg.testing.values import expr_of

WRONG = Path(__file__).parent / "wrong_rules.py"
RULES = {r.name: r for r in shipped_rules()}
FIELDS = ["name", "kind", "level", "status", "examples", "counterexample"]


@rule("algebra")
def add_commutes(x, y):
    """x + y -> y + x"""
    return op.add(x, y) >> op.add(y, x)


def test_a_rule_is_checked():
    check = check_rule(add_commutes, examples=20)
    assert (check.name, check.kind, check.level, check.status) == (
        "add_commutes",
        "algebra",
        "graph",
        "tested",
    )
    assert check.examples >= 10
    assert check.counterexample is None


@pytest.mark.parametrize("name", RULES)
def test_shipped_rule_holds(name):
    check = check_rule(RULES[name], examples=25)
    assert check.status in ("tested", "proved"), check.counterexample
    assert check.examples >= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_shipped_rule_holds_on_many_instances(name):
    check = check_rule(RULES[name], examples=300, seed=1)
    assert check.ok, check.counterexample


@pytest.mark.slow
@pytest.mark.parametrize(
    "r", [r for n in (2, 4, 8) for r in all_rules(n) if r.kind == "layout"], ids=lambda r: r.name
)
def test_layout_rules_hold_for_other_vectors(r):
    assert check_rule(r, examples=300).ok


def extents(text: str) -> list[int]:
    """Every extent of every type and block that a counterexample names."""
    return [
        int(n)
        for shape in re.findall(r"(?:[fiu]\d+|bool|Block)\[([\d,]*)\]", text)
        for n in shape.split(",")
        if n
    ]


@pytest.mark.parametrize("wrong", load_rules(WRONG), ids=lambda r: r.name)
def test_wrong_rule_is_refuted_with_small_shapes(wrong):
    check = check_rule(wrong, examples=200)
    assert check.status == "refuted"
    assert check.counterexample is not None
    assert max(extents(check.counterexample), default=1) <= (4 if check.level == "graph" else 9), (
        check.counterexample
    )


def test_there_are_many_wrong_rules():
    assert len(load_rules(WRONG)) >= 20


def test_counterexample_names_binding_and_element():
    wrong = {r.name: r for r in load_rules(WRONG)}["operands_swapped"]
    check = check_rule(wrong)
    assert check.counterexample is not None
    binding, x, y, left, right = check.counterexample.split("\n")
    assert binding == "x: f32[], y: f32[]"
    a, b = float(x.removeprefix("x = ")), float(y.removeprefix("y = "))
    assert left == f"left  sub(x, y) = {a - b:.6g}"
    assert right == f"right sub(y, x) = {b - a:.6g}"


def test_vacuous_graph_rule():
    @rule("algebra", when=lambda x: x.rank == 9)
    def never(x, y):
        return op.add(x, y) >> op.add(y, x)

    check = check_rule(never, examples=20)
    assert (check.status, check.examples, check.ok) == ("vacuous", 0, False)


def test_vacuous_fusion_rule():
    assert check_rule(FusionRule("never", lambda k, i, p: False), examples=5).status == "vacuous"


def test_vacuous_loop_rule():
    @loop_rule("tiling", phase="serial")
    def never(b, a):
        b.require(b.extent(a) < 0)
        f, trips = b.factor(a)
        return For(a, trips, "serial", b.resized(a, f))

    assert check_rule(never, examples=10).status == "vacuous"


def test_fusion_condition_that_raises_is_refuted():
    check = check_rule(FusionRule("odd", lambda k, i, p: k.expr.inputs[i].shape[7] > 0), examples=10)
    assert check.status == "refuted"
    assert "IndexError" in check.counterexample


def test_the_authors_sampler_is_not_trusted_alone():
    def only_scalars(c):
        return {"x": TensorType(()), "a": Attrs(axes=(), kind="sum")}

    @rule("algebra", draw=only_scalars)
    def reduction_is_nothing(x, *, a):
        return op.tanh(op.reduce(x, a)) >> op.reduce(op.tanh(x), a)

    assert check_rule(reduction_is_nothing).status == "refuted"


def test_the_same_seed_gives_the_same_verdict():
    wrong = next(r for r in load_rules(WRONG) if r.name == "max_distributed_over_mul")
    first, second = check_rule(wrong, seed=3), check_rule(wrong, seed=3)
    assert (first.counterexample, first.examples) == (second.counterexample, second.examples)


def test_rules_hold_in_every_dtype_they_match():
    @rule("algebra")
    def subtract_is_add(x, s):
        return op.sub(x, s) >> op.add(x, op.neg(s))

    check = check_rule(subtract_is_add)
    assert check.status == "refuted"
    assert "neg does not take u8 operands" in check.counterexample


def test_where_the_left_side_is_undefined_nothing_is_asked():
    @rule("algebra")
    def divide(x, s):
        return op.div(x, s) >> op.mul(x, op.div(op.div(s, s), s))

    assert check_rule(divide, examples=40).status == "tested"


def test_an_operator_declared_wrongly_is_told_from_a_wrong_rule(monkeypatch):
    monkeypatch.setitem(OPERATORS, "tanh", replace(OPERATORS["tanh"], expr=OPERATORS["cos"].expr))
    expr_of.cache_clear()

    @rule("algebra")
    def odd(x):
        return op.tanh(op.neg(x)) >> op.neg(op.tanh(x))

    check = check_rule(odd, examples=20)
    assert check.status == "refuted"
    assert "the JAX references of both sides agree" in check.counterexample
    expr_of.cache_clear()


def test_json_has_exactly_these_fields():
    found = to_json([check_rule(add_commutes, examples=5)])
    assert list(found) == ["rules"]
    assert [list(r) for r in found["rules"]] == [FIELDS]
    json.dumps(found)


def test_command_checks_one_rule_by_name():
    (found,) = check_rules_command("peel", None, 10)["rules"]
    assert (found["name"], found["level"], found["status"]) == ("peel", "loop", "tested")


def test_command_checks_the_rules_of_a_file():
    found = check_rules_command("operands_swapped", WRONG, 20)["rules"]
    assert [(r["name"], r["status"]) for r in found] == [("operands_swapped", "refuted")]


def test_command_refuses_unknown_names():
    with pytest.raises(UnknownNameError, match="rule 'pell' does not exist"):
        check_rules_command("pell", None, 5)


def test_command_refuses_a_name_taken_twice(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from nestegg import op, rule\n"
        "@rule('algebra')\n"
        "def add_constants(x, y):\n    return op.add(x, y) >> op.add(y, x)\n"
    )
    with pytest.raises(
        RuleError, match=r"mine\.py:2: rule add_constants is declared at .*graph_rules\.py:\d+ already"
    ):
        check_rules_command(None, file, 5)


def test_catalogue_rows_are_complete():
    for r in shipped_rules():
        assert r.name.isidentifier()
        assert r.level in ("graph", "loop")
        assert r.condition
        assert r.doc, r.name
        assert re.fullmatch(r".+\.py:\d+", r.where), r.where
