"""Kernels and nests survive being written and read; what is not one is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.nest import Cat, For, Vec
from nestegg.ir.operator import operator
from nestegg.ir.records import SerialError, digest, dumps, load_kernel, load_nest
from nestegg.ir.types import TensorType
from nestegg.testing.strategies import kernels, schedules, staged_exprs


def matmul(m: int, k: int, n: int) -> LoopKernel:
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    kernel = lower(operator("dot").expr((TensorType((m, k)), TensorType((k, n))), attrs))
    assert isinstance(kernel, LoopKernel)
    return kernel


def test_a_nest_as_text():
    assert dumps(For(0, 4, "serial", Vec(1, 8))) == '{"For":[0,4,"serial",{"Vec":[1,8]}]}'


@given(kernels(), st.data())
def test_what_is_written_is_read(kernel, data):
    again = load_kernel(dumps(kernel))
    assert (again, digest(again)) == (kernel, digest(kernel))
    nest = data.draw(schedules(kernel))
    assert load_nest(dumps(nest), again) == nest


@given(staged_exprs(), st.data())
def test_kernels_of_stages_are_read_too(expr, data):
    kernel = lower(expr)
    assert load_kernel(dumps(kernel)) == kernel
    nest = data.draw(schedules(kernel))
    assert load_nest(dumps(nest), kernel) == nest


def test_equal_kernels_have_one_digest_and_others_another():
    assert digest(matmul(4, 5, 6)) == digest(matmul(4, 5, 6)) != digest(matmul(4, 5, 7))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[[]]", "null", "3", '{"os.system": ["ls"]}', '{"Axis": ["s0"]}', '{"Axis": ["s0", 4, 5]}',
        '{"Vec": [0, 16], "Tile": []}', "[" * 5000, '{"Vec": [0, 16]}', '{"LoopKernel": []}',
    ],
)  # fmt: skip
def test_what_is_no_kernel_is_refused(text):
    with pytest.raises(SerialError):
        load_kernel(text)


@pytest.mark.parametrize(
    "nest",
    [
        Vec(0, 4),
        For(0, 4, "serial", Vec(1, 6)),
        For(0, 4, "sideways", For(2, 5, "serial", Vec(1, 6))),
        For(9, 4, "serial", Vec(1, 6)),
        For(0, 4, "serial", Cat(2, 3, For(2, 2, "serial", Vec(1, 6)), For(2, 3, "serial", Vec(1, 6)))),
        For(2, 5, "serial", Cat(0, 2, For(0, 2, "serial", Vec(1, 6)), For(0, 2, "serial", Vec(1, 3)))),
    ],
)
def test_a_nest_of_another_domain_is_refused(nest):
    with pytest.raises(SerialError):
        load_nest(dumps(nest), matmul(4, 5, 6))
