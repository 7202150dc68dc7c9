"""The rules of quantization: equations hold, lossy ones err no more than they say."""

import numpy as np
import pytest

from nestegg import op, rule
from nestegg.ir.calibration import Calibrated
from nestegg.ir.errors import NesteggError, RuleError
from nestegg.rewrite.quantization_rules import INTEGER_RULES, Scheme, quantization_rules
from nestegg.testing import check_rule

LOSSY = [r for scales in ("any", "power-of-two") for r in quantization_rules(scales)]
BOTH_SIGNS = Calibrated(-1.0, 3.0, 0.0, 1.0)
POSITIVE = Calibrated(0.0, 3.0, 0.0, 1.0)


def test_what_is_lossy_says_so():
    """`test_check.py` checks every rule; here, that a lossy one is checked as such, and no other is."""
    assert all(r.lossy and "calibrated" in r.condition for r in LOSSY if r.kind == "precision")
    assert not any(r.lossy for r in INTEGER_RULES)
    assert len({r.name for r in [*LOSSY, *INTEGER_RULES]}) == len(LOSSY) + len(INTEGER_RULES)
    found = check_rule(LOSSY[0], examples=10)
    assert found.status == "tested", found.counterexample


def test_schemes():
    unsigned, signed = Scheme(), Scheme(power_of_two=True)
    assert (unsigned.zero(BOTH_SIGNS), unsigned.low(BOTH_SIGNS), unsigned.high(BOTH_SIGNS)) == (128, 1, 255)
    assert (unsigned.zero(POSITIVE), unsigned.low(POSITIVE), unsigned.high(POSITIVE)) == (0, 0, 255)
    assert unsigned.scale(POSITIVE) == pytest.approx(3 / 255)
    assert (signed.zero(BOTH_SIGNS), signed.low(BOTH_SIGNS), signed.high(BOTH_SIGNS)) == (0, -127, 127)
    assert signed.scale(BOTH_SIGNS) == 2**-5  # 3 / 127 rounded up to a power of two
    assert signed.scale(Calibrated(0.0, 0.0, 0.0, 0.0)) == 1.0


def test_scales_have_two_kinds():
    with pytest.raises(NesteggError, match="'any' or 'power-of-two'"):
        quantization_rules("some")


def test_a_rule_that_understates_its_loss_is_refuted():
    @rule("precision", when=lambda x: x.dtype == "f32", calibrated=("x",))
    def claims_too_much(x, y):
        """Rounds to steps of the whole range and says that this costs nothing."""
        steps = {"scale": lambda x_calibrated: x_calibrated.magnitude or 1.0, "zero": 0}
        q = op.quantize(x, **steps, low=-1, high=1, dtype="i8", rounding="even", loss=0.0)
        whole = op.add(x, y)
        return whole >> whole, x >> op.dequantize(q, **steps, dtype="f32", loss=0.0)

    found = check_rule(claims_too_much, examples=30)
    assert found.status == "refuted"
    assert "quantize" in found.counterexample


def test_a_rule_may_ask_only_for_what_it_matches():
    with pytest.raises(RuleError, match="calibrated names y"):

        @rule("precision", calibrated=("y",))
        def unknown(x):
            return op.neg(x) >> op.neg(x)


def test_a_condition_may_look_at_constants():
    @rule("algebra", when=lambda z_value: not z_value.any(), const=("z",), values=("z",))
    def add_nothing(x, z):
        """x + 0 -> x"""
        return op.add(x, z) >> x

    assert check_rule(add_nothing, examples=20).ok

    @rule("algebra", when=lambda z_value: not np.all(z_value == 1), const=("z",), values=("z",))
    def add_anything(x, z):
        """x + z -> x"""
        return op.add(x, z) >> x

    assert check_rule(add_anything, examples=20).status == "refuted"
