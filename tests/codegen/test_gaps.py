"""What a kernel leaves of its output: every element that is not written, once."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.codegen.gaps import Gap, gaps
from nestegg.ir.index import Axis, Index


def elements(gap: Gap) -> list[int]:
    starts = [sum(at) for at in product(*(range(0, s * n, s) for s, n in gap.loops))]
    return [gap.start + s + k for s in starts for k in range(gap.length)]


def written(out: Index, axes: list[Axis]) -> Counter[int]:
    places = product(*(range(a.extent) for a in axes))
    return Counter(int(out.evaluate(dict(zip(axes, p, strict=True)))) for p in places)  # type: ignore[call-overload]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=4), st.integers(0, 5), st.integers(0, 5))
def test_gaps_of_nested_boxes(extents: list[tuple[int, int]], before: int, after: int) -> None:
    """Axes from the innermost outwards, each with so many elements between its steps."""
    axes, out, stride, size = list[Axis](), Index.of(before), 1, before + 1
    for extent, apart in extents:
        axes.append(Axis(f"a{len(axes)}", extent))
        stride = stride + apart
        out, size = out + Index.of(axes[-1]) * stride, size + stride * (extent - 1)
        stride *= extent
    found = gaps(out, axes, size + after, 1)
    filled = Counter(k for g in found for k in elements(g))
    assert filled + written(out, axes) == Counter(range(size + after))


def test_a_padded_image_leaves_its_border():
    rows, columns = Axis("y", 6), Axis("x", 30)
    found = gaps(Index.of(rows) * 32 + Index.of(columns) + 33, [rows, columns], 8 * 32, 16)
    assert found == [Gap(63, 2, ((32, 5),)), Gap(0, 33), Gap(63 + 5 * 32, 33)]


@pytest.mark.parametrize("extent", [0, 3])
def test_what_is_no_box_is_filled_whole(extent: int) -> None:
    axis, other = Axis("a", extent), Axis("b", 4)
    assert gaps(Index.of(axis) * 2 + Index.of(other), [axis, other], 20, 4) == [Gap(0, 20)]
