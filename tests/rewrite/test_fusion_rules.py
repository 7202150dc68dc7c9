"""What e-matching asks of kernels before a fusion rule's condition: it leaves out nothing that the rule would fuse."""

import pytest
from hypothesis import given, settings

from nestegg.ir.attrs import Attrs
from nestegg.ir.types import TensorType
from nestegg.rewrite.fusion_rules import FUSION_RULES
from nestegg.rewrite.kernel import ANY, GENUS_AT, TRAITS, WIDTH_AT, about, genus, of_operator, width
from nestegg.testing.choosing import drawn_by
from nestegg.testing.kernels import draw_pair, draw_tree

PRODUCT = of_operator("dot", Attrs(contract=((1,), (0,)), batch=((), ())), TensorType((4, 8)), TensorType((8, 6)))


def test_what_is_said_of_a_kernel():
    said = int(about(PRODUCT))
    assert {name for n, name in enumerate(TRAITS) if said >> n & 1} == {
        "open", "open_computing", "open_reduction", "open_of_few_joins", "making", "reducing", "reducing_unmoved"
    }  # fmt: skip
    assert said >> GENUS_AT & 3 == genus(PRODUCT) == 2
    assert said >> WIDTH_AT == width(PRODUCT)


@settings(max_examples=200, deadline=None)
@given(drawn_by(draw_pair))
def test_traits_leave_out_nothing_that_the_condition_takes(pair):
    consumer, i, producer = (pair[0].kernel, pair[1], pair[2].kernel)
    for rule in FUSION_RULES:
        if rule.when(consumer, i, producer):
            for trait, kernel in ((rule.consumer, consumer), (rule.producer, producer)):
                assert trait == ANY or TRAITS[trait](kernel), f"{rule.name}: {trait} of {kernel.expr}"


@settings(max_examples=50, deadline=None)
@given(drawn_by(draw_tree), drawn_by(draw_tree))
def test_a_wider_kernel_fuses_more_operators(one, other):
    few, many = sorted((one.kernel, other.kernel), key=lambda k: k.operators)
    assert width(few) > 0
    assert few.operators == many.operators or width(few) < width(many)


@pytest.mark.parametrize("rule", FUSION_RULES, ids=lambda r: r.name)
def test_every_trait_exists(rule):
    assert {rule.consumer, rule.producer} <= {ANY, *TRAITS}
