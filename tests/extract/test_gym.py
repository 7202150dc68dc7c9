"""The gym format: there and back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings

from nestegg.extract import FlatEGraph, read_gym, write_gym
from nestegg.ir.errors import EGraphFormatError

from .graphs import egraphs

DATA = Path(__file__).parent / "data"
LEAF = {"op": "x", "cost": 1, "eclass": "a", "children": []}


def same(a: FlatEGraph, b: FlatEGraph) -> bool:
    def named(e: FlatEGraph) -> list:
        return [
            (e.node_name[n], e.op(n), e.class_name[e.node_class[n]], e.node_cost[n])
            + tuple(e.class_name[kid] for kid in e.children(n))
            for n in range(e.n_nodes)
        ]

    return named(a) == named(b) and [a.class_name[r] for r in a.roots] == [b.class_name[r] for r in b.roots]


def test_round_trip_of_a_file(tmp_path: Path) -> None:
    egraph = read_gym(DATA / "set_covering_test.json")
    assert (egraph.n_nodes, egraph.n_classes, len(egraph.roots)) == (14, 10, 1)
    write_gym(egraph, tmp_path / "again.json")
    assert same(egraph, read_gym(tmp_path / "again.json"))


@given(egraphs())
@settings(max_examples=50, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, egraph: FlatEGraph) -> None:
    path = tmp_path_factory.mktemp("gym") / "e.json"
    write_gym(egraph, path)
    assert same(egraph, read_gym(path))


def test_text_form_is_capped() -> None:
    small, large = read_gym(DATA / "set_covering_test.json"), read_gym(DATA / "babble_it10.json")
    assert (
        str(small).startswith("e-graph: 14 e-nodes, 10 e-classes, 1 roots\n")
        and len(str(small).splitlines()) == 11
    )
    assert "left out" in str(large) and len(str(large).splitlines()) < 50


def document(**changes: object) -> dict:
    return {"nodes": {"n": LEAF | changes}, "root_eclasses": ["a"]}


MALFORMED = {
    "missing root": ({"nodes": {"n": LEAF}, "root_eclasses": ["b"]}, "root e-class 'b' has no e-node"),
    "no roots": ({"nodes": {"n": LEAF}, "root_eclasses": []}, "an empty list: name at least one"),
    "roots missing": ({"nodes": {"n": LEAF}}, "'root_eclasses' is missing"),
    "nodes missing": ({"root_eclasses": ["a"]}, "'nodes' is missing"),
    "nodes a list": ({"nodes": [LEAF], "root_eclasses": ["a"]}, "'nodes' is a list"),
    "root not a string": ({"nodes": {"n": LEAF}, "root_eclasses": [["a"]]}, "root e-class"),
    "negative": (document(cost=-1), "e-node 'n' costs -1: give a finite number"),
    "nan": (document(cost=float("nan")), "e-node 'n' costs nan"),
    "infinite": (document(cost=float("inf")), "e-node 'n' costs inf"),
    "huge": (document(cost=10**400), "e-node 'n' costs 1000"),
    "cost text": (document(cost="1"), "e-node 'n' costs 1"),
    "cost bool": (document(cost=True), "e-node 'n' costs True"),
    "child": (document(children=["m"]), "e-node 'n' has the child 'm', which is no e-node"),
    "child type": (document(children=[{}]), "e-node 'n' has the child"),
    "children type": (document(children="n"), "e-node 'n' has a string as children"),
    "eclass": (document(eclass=3), "e-node 'n' has the e-class 3"),
    "op": (document(op=None), "e-node 'n' has the op None"),
    "node type": ({"nodes": {"n": 3}, "root_eclasses": ["a"]}, "e-node 'n' is 3, not an object"),
    "top type": ([], "an empty list, not an object"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path: Path, case: str) -> None:
    content, sentence = MALFORMED[case]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    with pytest.raises(EGraphFormatError) as error:
        read_gym(path)
    assert str(path) in str(error.value) and sentence in str(error.value)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 100000, b'{"nodes": {"n": 1, "n": 2}}', b'{"nodes": NaN}'],
    ids=["empty", "cut", "not utf-8", "deep", "twice", "nan"],
)
def test_not_an_egraph(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with pytest.raises(EGraphFormatError, match=r"bad\.json"):
        read_gym(path)


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(EGraphFormatError, match="cannot be read"):
            read_gym(path)


def test_builder_refuses() -> None:
    from nestegg.extract import EGraphBuilder

    builder = EGraphBuilder()
    with pytest.raises(EGraphFormatError, match="finite cost >= 0"):
        builder.node("a", "f", -1)
    builder.node("a", "f", 1, ["b"])
    with pytest.raises(EGraphFormatError, match="e-class 'b' has no e-node"):
        builder.build()
