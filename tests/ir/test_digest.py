"""Digests of values: equal contents have equal ones, any change another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nestegg.ir.digest import LARGE, digest

WEIGHTS = np.linspace(-1, 1, LARGE, dtype=np.float32)


def test_contents_decide():
    assert digest([WEIGHTS]) == digest([WEIGHTS.copy()])
    assert digest([WEIGHTS[::2]]) == digest([WEIGHTS[::2].copy()]), "an array counts as its elements in order"
    assert digest(["text"]) == digest([b"text"])


@given(st.integers(0, WEIGHTS.nbytes - 1), st.integers(1, 255))
def test_a_changed_byte_of_a_large_array_is_another_digest(place, change):
    changed = WEIGHTS.copy()
    changed.view(np.uint8)[place] ^= change
    assert digest([changed]) != digest([WEIGHTS])


@pytest.mark.parametrize("size", [10, LARGE - 1, LARGE, LARGE + 1])
def test_where_a_part_ends_counts(size):
    data = bytes(size)
    whole = digest([data, data])
    assert whole != digest([data + data])
    assert whole != digest([data[:-1], data + data[:1]])
    assert len(whole) == 64
