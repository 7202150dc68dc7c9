"""The memory plan: tensors alive together never overlap, and the arena is close to the largest live set."""

from hypothesis import given
from hypothesis import strategies as st

from nestegg.codegen.memory import ALIGNMENT, Lifetime, plan


def test_a_chain_uses_two_places():
    found = plan([Lifetime(k, 640, k, k + 1) for k in range(5)])
    assert (found.peak, found.live, found.total) == (1280, 1280, 3200)


def test_what_first_fit_by_size_scatters_is_placed_without_gaps():
    """One layer of an encoder: 131072 bytes live through it, 917504 twice, 524288 twice in between."""
    sizes = {0: (131072, 0, 6), 1: (917504, 1, 2), 2: (524288, 2, 3), 3: (524288, 3, 4), 4: (917504, 4, 5)}
    found = plan([Lifetime(name, *life) for name, life in sizes.items()])
    assert found.peak == found.live == 131072 + 917504 + 524288


lives = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 12), st.integers(0, 6)).map(lambda t: (t[0], t[1], t[1] + t[2])),
    max_size=24,
)


@given(lives)
def test_tensors_alive_together_do_not_overlap(given_lives):
    tensors = [Lifetime(k, *life) for k, life in enumerate(given_lives)]
    found = plan(tensors)
    ends = {t.name: found.offsets[t.name] + t.size for t in tensors}
    assert all(at % ALIGNMENT == 0 for at in found.offsets.values())
    assert found.live <= found.peak <= found.total and all(end <= found.peak for end in ends.values())
    for a in tensors:
        for b in tensors[: a.name]:
            if a.first <= b.last and b.first <= a.last:
                assert ends[a.name] <= found.offsets[b.name] or ends[b.name] <= found.offsets[a.name]
