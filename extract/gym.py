"""The extraction-gym JSON format: e-graphs that others made, and ours for others.

``{"nodes": {id: {"op", "cost", "eclass", "children": [node ids]}}, "root_eclasses": [class ids]}``; a child
is named by *any* node of its class; `cost` defaults to 1 and `children` to none, as in egraph-serialize.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import EGraphFormatError
from .flat import FlatEGraph
from .result import validate


def read_gym(path: str | Path) -> FlatEGraph:
    """The e-graph of a gym file; classes are numbered in order of their first node.

    Raises `EGraphFormatError`, naming file and node, for anything but a well-formed e-graph: not a file, not
    JSON, a wrong type, a negative or non-finite cost, a child that is no node, a root that has no node.
    """
    document = _load(path)
    nodes = document.get("nodes")
    if not isinstance(nodes, dict):
        raise EGraphFormatError(
            f"{path}: 'nodes' is {_kind(nodes)}, not an object of e-nodes: is this a gym e-graph?"
        )
    classes: dict[str, int] = {}
    for name, node in nodes.items():
        classes.setdefault(_eclass(path, name, node), len(classes))
    kids = [_children(path, name, node, nodes) for name, node in nodes.items()]
    home = {name: classes[node["eclass"]] for name, node in nodes.items()}
    return FlatEGraph(
        node_class=np.array(list(home.values()), np.int32),
        node_cost=np.array([_cost(path, name, node) for name, node in nodes.items()], np.float64),
        child_ptr=np.cumsum([0] + [len(k) for k in kids]).astype(np.int32),
        child_class=np.array([home[kid] for node_kids in kids for kid in node_kids], np.int32),
        roots=_roots(path, document.get("root_eclasses"), classes),
        node_name=tuple(nodes),
        class_name=tuple(classes),
        node_op=tuple(_op(path, name, node) for name, node in nodes.items()),
    )


def write_gym(egraph: FlatEGraph, path: str | Path) -> None:
    """Write `egraph` so that `read_gym` gives it back; a child is named by the first node of its class."""
    first = [egraph.node_name[egraph.nodes_of(cls)[0]] for cls in range(egraph.n_classes)]
    nodes = {
        egraph.node_name[node]: {
            "op": egraph.op(node),
            "cost": float(egraph.node_cost[node]),
            "eclass": egraph.class_name[egraph.node_class[node]],
            "children": [first[kid] for kid in egraph.children(node)],
        }
        for node in range(egraph.n_nodes)
    }
    document = {"nodes": nodes, "root_eclasses": [egraph.class_name[root] for root in egraph.roots]}
    Path(path).write_text(json.dumps(document, indent=1), encoding="utf-8")


def extract_file(path: str | Path, method: str = "ilp", time_limit: float = 20.0) -> dict[str, Any]:
    """Extract from a gym file: ``{"cost", "bound", "seconds", "valid"}``, the cost being recounted here from
    the choice and not taken from the extractor."""
    from . import extract  # the front door imports this file

    egraph = read_gym(path)
    result = extract(egraph, method=method, time_limit=time_limit)
    chosen = result.choice[result.choice >= 0]
    return {
        "cost": float(egraph.node_cost[chosen].sum()),
        "bound": result.bound,
        "seconds": result.seconds,
        "valid": validate(egraph, result.choice),
    }


def _load(path: str | Path) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EGraphFormatError(f"{path}: cannot be read as text: {error}") from error
    try:
        document = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise EGraphFormatError(f"{path}: is not a JSON e-graph: {error}") from error
    if not isinstance(document, dict):
        raise EGraphFormatError(
            f"{path}: holds {_kind(document)}, not an object with 'nodes' and 'root_eclasses'"
        )
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return result


def _eclass(path: str | Path, name: str, node: Any) -> str:
    if not isinstance(node, dict):
        raise EGraphFormatError(f"{path}: e-node {name!r} is {_kind(node)}, not an object")
    if not isinstance(node.get("eclass"), str):
        raise EGraphFormatError(
            f"{path}: e-node {name!r} has the e-class {node.get('eclass')!r}: give a string"
        )
    return node["eclass"]


def _op(path: str | Path, name: str, node: Mapping[str, Any]) -> str:
    if not isinstance(node.get("op"), str):
        raise EGraphFormatError(f"{path}: e-node {name!r} has the op {node.get('op')!r}: give a string")
    return node["op"]


def _cost(path: str | Path, name: str, node: Mapping[str, Any]) -> float:
    cost = node.get("cost", 1.0)
    try:
        value = math.nan if isinstance(cost, bool) or not isinstance(cost, int | float) else float(cost)
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value >= 0.0):
        raise EGraphFormatError(f"{path}: e-node {name!r} costs {str(cost)[:40]}: give a finite number >= 0")
    return value


def _children(path: str | Path, name: str, node: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[str]:
    kids = node.get("children", [])
    if not isinstance(kids, list):
        raise EGraphFormatError(
            f"{path}: e-node {name!r} has {_kind(kids)} as children: give a list of node ids"
        )
    for kid in kids:
        if not isinstance(kid, str) or kid not in nodes:
            raise EGraphFormatError(
                f"{path}: e-node {name!r} has the child {kid!r}, which is no e-node of this file"
            )
    return kids


def _roots(path: str | Path, names: Any, classes: Mapping[str, int]) -> tuple[int, ...]:
    if not isinstance(names, list) or not names:
        raise EGraphFormatError(
            f"{path}: 'root_eclasses' is {_kind(names)}: name at least one e-class to extract"
        )
    for name in names:
        if not isinstance(name, str) or name not in classes:
            raise EGraphFormatError(f"{path}: the root e-class {name!r} has no e-node in this file")
    return tuple(dict.fromkeys(classes[name] for name in names))


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list" if value else "an empty list",
        str: "a string",
        type(None): "missing",
    }
    return names.get(type(value), f"{value!r}")
