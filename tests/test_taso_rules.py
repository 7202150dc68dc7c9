"""Rules of the form of TASO's are derived, told unsound, or not derived, as `benchmarks/taso_rules.py` says."""

import importlib.util
import sys
from pathlib import Path

import pytest

from nestegg.ir.errors import RuleError
from nestegg.rewrite.pattern import op
from nestegg.rewrite.rule import equation

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def taso():
    spec = importlib.util.spec_from_file_location("taso_rules", ROOT / "benchmarks" / "taso_rules.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["taso_rules"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def matmul(*inputs):
    return {"op": "matmul", "inputs": [list(i) for i in inputs], "params": {"activation": "none"}}


def add(*inputs):
    return {"op": "ew_add", "inputs": [list(i) for i in inputs], "params": {}}


def conv(*inputs, activation="none"):
    params = {"kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1, "pad": "same", "activation": activation}
    return {"op": "conv2d", "inputs": [list(i) for i in inputs], "params": params}


def concat(*inputs, axis):
    params = {"num_inputs": 2, "axis": axis, "num_dim": 4}
    return {"op": "concat", "inputs": [list(i) for i in inputs], "params": params}


def split(x, axis):
    return {"op": "split", "inputs": [list(x)], "params": {"num_outputs": 2, "axis": axis}}


A, B, C = (-1, 0), (-2, 0), (-3, 0)


def substitution(src, dst, *outputs):
    names = ("src_op", "src_tensor", "dst_op", "dst_tensor")
    return {"src": src, "dst": dst, "outputs": [dict(zip(names, o, strict=True)) for o in outputs]}


def test_distributivity_is_derived(taso):
    left, right = [matmul(A, B), matmul(A, C), add((0, 0), (1, 0))], [add(B, C), matmul(A, (0, 0))]
    verdict = taso.judge(0, substitution(left, right, (2, 0, 1, 0)), 4, 2000)
    assert verdict.status == "derived" and verdict.iterations == 1
    assert verdict.rule == "((v1 @ v2) + (v1 @ v3)) -> (v1 @ (v2 + v3))"


def test_two_outputs_must_both_be_found(taso):
    left = [conv(A, B, activation="relu"), conv(A, C, activation="relu")]
    right = [concat(B, C, axis=0), conv(A, (0, 0), activation="relu"), split((1, 0), axis=1)]
    assert taso.judge(0, substitution(left, right, (0, 0, 2, 0), (1, 0, 2, 1)), 4, 4000).status == "derived"


def test_groups_follow_from_the_types(taso):
    left = [conv(A, B), conv(C, (-4, 0)), concat((0, 0), (1, 0), axis=1)]
    right = [concat(A, C, axis=1), concat(B, (-4, 0), axis=0), conv((0, 0), (1, 0))]
    assert taso.judge(0, substitution(left, right, (2, 0, 2, 0)), 4, 4000).status == "derived"


def test_what_does_not_hold_is_refuted_with_numbers(taso):
    verdict = taso.judge(0, substitution([matmul(A, B)], [matmul(B, A)], (0, 0, 0, 0)), 4, 2000)
    assert verdict.status == "unsound"
    assert "on the left" in verdict.detail and "on the right" in verdict.detail


def test_what_one_round_does_not_reach_is_not_derived(taso):
    """(a @ b) @ (c @ d) = a @ ((b @ c) @ d) takes two steps, the second on what the first made."""
    pair = [matmul(A, B), matmul(C, (-4, 0)), matmul((0, 0), (1, 0))]
    inner = [matmul(B, C), matmul((0, 0), (-4, 0)), matmul(A, (1, 0))]
    substituted = substitution(pair, inner, (2, 0, 2, 0))
    assert taso.judge(0, substituted, 0, 2000).status == "not derived"
    assert taso.judge(0, substituted, 4, 2000).status == "derived"


def test_an_equation_is_two_rules():
    @equation("algebra")
    def doubled(a, b):
        """a + b = a + b, the other way round"""
        return op.add(a, b) >> op.add(b, a)

    there, back = doubled
    assert (there.name, back.name) == ("doubled", "doubled_back")
    assert str(back.rewrites[0]) == "add(b, a) -> add(a, b)"


def test_both_sides_of_an_equation_bind_the_same():
    with pytest.raises(RuleError, match="one side alone has b"):

        @equation("algebra")
        def loses(a, b):
            """a * b = a * a"""
            return op.mul(a, b) >> op.mul(a, a)
