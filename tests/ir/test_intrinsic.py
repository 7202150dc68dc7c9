"""Intrinsics: declared by a tensor expression, found in kernels wherever that is their update."""

import pytest

from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.errors import TypeRuleError, UnknownNameError
from nestegg.ir.intrinsic import INTRINSICS, Intrinsic, all_intrinsics, declare, intrinsic, matches
from nestegg.ir.intrinsics import dot_lanes
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.operator import operator
from nestegg.ir.target import TARGETS
from nestegg.ir.types import TensorType


def product(m: int, k: int, n: int, left: str = "u8", right: str = "i8", depth: int = 4) -> LoopKernel:
    """x[m, k] @ w[k, n] in int32, the weights stored as [k/depth, n, depth]."""
    wide = operator("dot").expr(
        (TensorType((m, k), "i32"), TensorType((k, n), "i32")), Attrs(contract=((1,), (0,)), batch=((), ()))
    )
    x = operator("cast").expr((TensorType((m, k), left),), Attrs(dtype="i32"))
    w = operator("cast").expr((TensorType((k, n), right),), Attrs(dtype="i32"))
    stored = operator("unpack").expr((TensorType((k // depth, n, depth), right),), Attrs(axis=0))
    return lower(compose(compose(wide, 0, x), 1, compose(w, 0, stored)))


def test_a_dot_product_of_bytes_fits_a_packed_matmul():
    kernel = product(6, 32, 48)
    (found,) = matches(intrinsic("vpdpbusd_512"), kernel)
    names = [kernel.axes[a].name for a in found.axes]
    assert names == ["s1", "r1"]  # lanes along the columns; four neighbouring rows of the weights in each
    assert [r.dtype for r in found.operands] == ["u8", "i8"]


@pytest.mark.parametrize(
    "kernel",
    [
        product(6, 32, 48, "i8", "u8"),  # signs the other way round: that x is broadcast makes no difference
        product(6, 32, 48, "i8", "i8"),
        product(6, 32, 48, depth=2),
    ],
    ids=["signs", "signed", "depth"],
)
def test_it_fits_nothing_else(kernel):
    found = list(matches(intrinsic("vpdpbusd_512"), kernel))
    assert all([r.dtype for r in m.operands] == ["u8", "i8"] for m in found)
    assert bool(found) == ({r.dtype for r in kernel.update_reads} == {"u8", "i8"} and kernel.extents[-1] == 4)


def test_operands_in_the_other_order_fit_too():
    (found,) = matches(intrinsic("vpdpbusd_512"), product(6, 32, 48, "i8", "u8"))
    assert [r.input for r in found.operands] == [1, 0]


def test_weights_that_are_not_packed_do_not_fit():
    types = (TensorType((6, 32), "i32"), TensorType((32, 48), "i32"))
    kernel = lower(operator("dot").expr(types, Attrs(contract=((1,), (0,)), batch=((), ()))))
    assert not [m for i in all_intrinsics(16) for m in matches(i, kernel)]


def test_targets_have_the_intrinsics_of_their_features():
    have = {name: {i.name for i in t.intrinsics} for name, t in TARGETS.items()}
    assert "vpdpbusd_512" in have["x86-64-v4+vnni"] and "vpdpbusd_512" not in have["x86-64-v4"]
    assert have["aarch64"] == set() and {"udot", "sdot", "usdot", "bfdot"} <= have["aarch64+dotprod"]
    assert have["x86-64-v3"] and all("256" in name for name in have["x86-64-v3"])


def test_a_declaration_without_a_reduction_is_refused():
    exp = operator("exp").expr((TensorType((16,)),), Attrs())
    with pytest.raises(TypeRuleError, match="needs one axis of lanes and a reduction"):
        Intrinsic("vexp", exp, "x86_64", (), lambda b, acc, x: x)


def test_names_are_unique_and_known():
    with pytest.raises(TypeRuleError, match="'sdot' is declared twice"):
        declare(Intrinsic("sdot", dot_lanes(4, 4, "i8", "i8", "i32"), "aarch64", (), lambda *a: a[0]))
    with pytest.raises(UnknownNameError, match="'vdp4a' does not exist; there are vpdpbusd_512"):
        intrinsic("vdp4a")
    assert list(INTRINSICS) == [i.name for i in INTRINSICS.values()]
