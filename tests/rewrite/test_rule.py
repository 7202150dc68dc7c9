"""How rules are written, and how wrong ones are refused: at once, naming file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nestegg import NesteggError, load_rules, loop_rule, op, rule
from nestegg.ir.attrs import Attrs
from nestegg.ir.errors import RuleError
from nestegg.ir.graph import GraphBuilder
from nestegg.ir.types import TensorType
from nestegg.rewrite.graph_egraph import build
from nestegg.rewrite.graph_rules import reshape_reshape
from nestegg.rewrite.loop_language import Block, For, LoopAxis, Space
from nestegg.rewrite.rule import GraphRule

HERE = re.escape(__file__)


@rule("algebra", when=lambda b: b.dims == (1,), const=("w", "s"))
def scale_into_weights(x, w, s, *, d, b):
    """A factor per column goes into the weights."""
    return op.mul(op.dot(x, w, d), op.broadcast(s, b)) >> op.dot(
        x, op.mul(w, op.broadcast(s, shape=lambda w: w.shape, dims=(1,))), d
    )


def test_a_rule_is_read_off_its_declaration():
    r = scale_into_weights
    assert isinstance(r, GraphRule)
    assert (r.name, r.kind, r.level) == ("scale_into_weights", "algebra", "graph")
    assert r.doc == "A factor per column goes into the weights."
    assert r.variables == ("x", "w", "s", "d", "b")
    assert r.condition == "w constant and s constant and b.dims == (1,)"
    assert r.where.startswith(__file__)
    assert str(r).startswith("scale_into_weights: mul(dot(x, w, d), broadcast(s, b)) -> dot(x, mul(w, ")


def test_condition_sees_types_and_attributes():
    assert scale_into_weights.holds({"b": Attrs(shape=(2, 3), dims=(1,))})
    assert not scale_into_weights.holds({"b": Attrs(shape=(2, 3), dims=(0,))})


def refused(message: str) -> pytest.RaisesExc:
    return pytest.raises(RuleError, match=rf"^{HERE}:\d+: rule \w+: {message}")


def test_bare_variable_on_the_left():
    with refused("the left side of a rule is a bare variable"):

        @rule("algebra")
        def everything(x):
            return x >> op.neg(op.neg(x))


def test_unbound_tensor():
    with refused("the right side uses y, which the left side does not bind"):

        @rule("algebra")
        def unbound(x, y):
            return op.neg(x) >> op.sub(x, y)


def test_unbound_record():
    with refused("the right side uses b, which"):

        @rule("algebra")
        def unbound(x, *, a, b):
            return op.reshape(x, a) >> op.reshape(x, b)


def test_unbound_variable_of_a_condition():
    with refused("a condition or attribute asks for z, which"):

        @rule("algebra", when=lambda z: z.rank == 2)
        def unbound(x):
            return op.neg(op.neg(x)) >> x


def test_unbound_variable_of_an_attribute():
    with refused("a condition or attribute asks for shape, which"):

        @rule("algebra")
        def unbound(x, *, a):
            return op.reshape(x, a) >> op.reshape(x, shape=lambda shape: shape)


def test_unbound_constant():
    with refused("const names w, which"):

        @rule("algebra", const=("w",))
        def unbound(x):
            return op.neg(op.neg(x)) >> x


def test_function_on_the_left():
    with refused("attributes on the left side are fixed values or one record variable"):

        @rule("algebra")
        def computed(x):
            return op.reshape(x, shape=lambda x: x.shape) >> x


def test_unknown_kind():
    with refused("kind 'magic' is not one of algebra, "):

        @rule("magic")
        def odd(x):
            return op.neg(op.neg(x)) >> x


def test_unknown_operator():
    with refused("operator 'negate' does not exist"):

        @rule("algebra")
        def odd(x):
            return op.negate(x) >> x


def test_wrong_number_of_operands():
    with refused("add takes 2 operands, 1 given"):

        @rule("algebra")
        def odd(x):
            return op.add(x) >> x


def test_missing_attributes():
    with refused(r"broadcast has attributes \(shape, dims\), given \(shape\)"):

        @rule("algebra")
        def odd(x):
            return op.neg(x) >> op.broadcast(x, shape=(1,))


def test_operand_that_is_no_pattern():
    with refused("add: every operand is a tensor variable or an operator"):

        @rule("algebra")
        def odd(x):
            return op.neg(x) >> op.add(x, 1.0)


def test_body_without_an_arrow():
    with refused("the body must return `left >> right`"):

        @rule("algebra")
        def odd(x):
            return op.neg(x)


# --- loop rules ----------------------------------------------------------------------------------------

SPACE = Space((LoopAxis(0, 8, False, True), LoopAxis(1, 4, True, False)), 4, 16, 64, 1, False)


def test_a_loop_rule_has_one_instance_an_axis():
    @loop_rule("tiling", phase="serial", over="any")
    def peel(b: Block, a: LoopAxis) -> str:
        """Block(e) -> For(a, e_a/f, Block(f))"""
        f, trips = b.factor(a)
        return For(a, trips, "serial", b.resized(a, f))

    assert (peel.kind, peel.level, peel.condition) == ("tiling", "loop", "serial phase, any axis")
    first, second = peel.instances(SPACE)
    made = "(union b (For 0 t 1 (Block stage 3 i v f e1)))"
    assert first == f"(rule ((= b (Block stage 3 i v e0 e1)) (div e0 f t)) ({made}) :ruleset peel)"
    assert "(div e1 f t)" in second


@pytest.mark.parametrize(
    ("kind", "phase", "over", "message"),
    [
        ("magic", "serial", "any", "kind 'magic' is not one of"),
        ("tiling", "later", "any", "phase 'later' is not one of store, parallel, ahead, serial, tile, unroll"),
        ("tiling", "serial", "all", "over 'all' is not one of any, spatial"),
    ],
)
def test_loop_rule_refused(kind, phase, over, message):
    with refused(message):
        loop_rule(kind, phase=phase, over=over)(lambda_named())


def lambda_named():
    def odd(b, a):
        return b

    return odd


def test_loop_rule_of_the_wrong_arity():
    with refused("a loop rule takes a block and an axis"):

        @loop_rule("tiling", phase="serial")
        def odd(b):
            return b


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b, a: None, "returns None, not a nest or a block"),
        (lambda b, a: b.extent(a) + "x", "TypeError|returns"),
        (lambda b, a: b.require(b.extent(a) == 4), "write `x.equals"),
        (lambda b, a: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_loop_rule_that_fails_names_its_line(make, message):
    def odd(b, a):
        return make(b, a)

    with refused(f".*({message})"):
        loop_rule("tiling", phase="serial")(odd).instances(SPACE)


# --- files of rules ------------------------------------------------------------------------------------

FILE = '''
from nestegg import loop_rule, op, rule
from nestegg.rewrite.graph_rules import reshape_reshape
from nestegg.rewrite.loop_language import For

@rule("algebra")
def negate_twice(x):
    """-(-x) -> x"""
    return op.neg(op.neg(x)) >> x

@loop_rule("tiling", phase="serial", over="spatial")
def halve(b, a):
    """Block(2n) -> For(a, 2, Block(n))"""
    b.require((b.extent(a) % 2).equals(0))
    return For(a, 2, "serial", b.resized(a, b.extent(a) // 2))
'''


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my_rules.py"
    file.write_text(text)
    return file


def test_a_file_of_rules_of_both_levels(tmp_path):
    found = load_rules(write(tmp_path, FILE))
    assert [(r.name, r.level) for r in found] == [("negate_twice", "graph"), ("halve", "loop")]
    assert all(r.where.startswith(str(tmp_path)) for r in found)
    assert reshape_reshape.name not in {r.name for r in found}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"my_rules\.py: declares no rule"),
        ("from nestegg import rule\n\nx = (\n", r"my_rules\.py:3: '\(' was never closed"),
        ("import nestegg\n\ny = 1 / 0\n", r"my_rules\.py:3: ZeroDivisionError"),
        (
            "from nestegg import op, rule\n\n@rule('algebra')\ndef f(x):\n    return x >> x\n",
            r"my_rules\.py:3: rule f: ",
        ),
    ],
)
def test_errors_of_a_file_name_its_line(tmp_path, text, message):
    with pytest.raises(NesteggError, match=message):
        load_rules(write(tmp_path, text))


def test_two_rules_of_one_name_in_a_file(tmp_path):
    again = FILE[FILE.index("@rule") : FILE.index("@loop_rule")]
    with pytest.raises(
        RuleError, match=r"my_rules\.py:\d+: rule negate_twice is declared at .*my_rules\.py:6 already"
    ):
        load_rules(write(tmp_path, FILE + "\nfirst = negate_twice\n" + again))


def test_a_rule_with_two_names_counts_once(tmp_path):
    assert len(load_rules(write(tmp_path, FILE + "\nsame = negate_twice\n"))) == 2


def test_missing_file(tmp_path):
    with pytest.raises(RuleError, match="no such file of rules"):
        load_rules(tmp_path / "absent.py")


# --- in the e-graph ------------------------------------------------------------------------------------


def negated() -> object:
    b = GraphBuilder()
    x = b.input(TensorType((3, 4)))
    return b.finish([b.op("neg", b.op("neg", x))])


def test_a_rule_at_work():
    @rule("algebra")
    def negate_twice(x):
        return op.neg(op.neg(x)) >> x

    egraph = build(negated(), [negate_twice])
    assert egraph.classes[egraph.outputs[0]].input == 0
    assert egraph.report.rules["negate_twice"].matches > 0


def test_two_rules_of_one_name_are_refused():
    def make():
        @rule("algebra")
        def same(x):
            return op.neg(op.neg(x)) >> x

        return same

    with pytest.raises(RuleError, match=r"rule same is declared at .*test_rule\.py:\d+ already"):
        build(negated(), [make(), make()])


def test_a_rule_that_changes_the_type_is_stopped():
    @rule("algebra")
    def flatten(x):
        return op.neg(x) >> op.reshape(x, shape=lambda x: (x.size,))

    with pytest.raises(RuleError, match=r"test_rule\.py:\d+: rule flatten: rewrites f32\[3,4\] to f32\[12\]"):
        build(negated(), [flatten])


def test_an_exception_in_a_condition_is_reported():
    @rule("algebra", when=lambda x: x.shape[5] == 1)
    def odd(x):
        return op.neg(op.neg(x)) >> x

    with pytest.raises(RuleError, match=r"test_rule\.py:\d+: rule odd: IndexError"):
        build(negated(), [odd])


def test_the_equations_of_a_file_are_two_rules_each(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from nestegg import equation, op\n\n@equation('algebra')\ndef turned(x, y):\n"
        "    \"\"\"-(x - y) = y - x\"\"\"\n    return op.neg(op.sub(x, y)) >> op.sub(y, x)\n"
    )
    assert [r.name for r in load_rules(file)] == ["turned", "turned_back"]
