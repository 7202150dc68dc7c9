"""Tensors known at compile time, evaluated: what the chosen program reads of weights in the layouts it reads them in.

Which operators make them is settled first. Then each array is let go as soon as its last reader has it, so that memory
is used again, and what has no array in common is evaluated in threads (NumPy and XLA release the interpreter's lock).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..ir.attrs import Attrs
from ..ir.errors import NesteggError
from ..ir.target import available_cpus
from ..rewrite.graph_egraph import GraphEGraph, OpNode

Apply = Callable[[str, Sequence[np.ndarray], Attrs], np.ndarray]
Makers = dict[int, OpNode | None]
"""The operator that makes an e-class, each after those of its operands; None for a constant that is given."""


def constant_values(
    egraph: GraphEGraph,
    wanted: Sequence[int],
    apply: Apply,
    keep: Callable[[int, np.ndarray], np.ndarray] = lambda cls, value: value,
) -> dict[int, np.ndarray]:
    """The arrays of compile-time e-classes, made by any chain of operators from the constants (all are equal).

    `keep` is given each as soon as it is there and returns what is to stand for it: itself, or a copy in its place.
    Raises `NesteggError` if one cannot be evaluated.
    """
    makers = _makers(egraph, wanted)
    parts = _independent(makers)

    def evaluated(part: Sequence[int]) -> dict[int, np.ndarray]:
        return _evaluated(egraph, makers, part, set(wanted), apply, keep)

    if len(parts) < 2 or available_cpus() < 2:
        done = list(map(evaluated, parts))
    else:
        with ThreadPoolExecutor(available_cpus()) as pool:
            done = list(pool.map(evaluated, parts))
    values = {c: value for found in done for c, value in found.items()}
    return {c: values[c] for c in wanted}


def _makers(egraph: GraphEGraph, wanted: Sequence[int]) -> Makers:
    """How the e-classes and all that they are made of are made."""
    makers: Makers = {}
    open_classes: set[int] = set()

    def settle(c: int) -> bool:
        if c in makers:
            return True
        e = egraph.classes[c]
        if e.constant is not None:
            makers[c] = None
            return True
        if c in open_classes:
            return False
        open_classes.add(c)
        found = next((node for node in e.ops if all(map(settle, node.args))), None)
        open_classes.discard(c)
        if found is not None:
            makers[c] = found
        return found is not None

    for c in wanted:
        if not settle(c):
            raise NesteggError(f"constant of e-class {c} cannot be evaluated: its operators are circular")
    return makers


def _independent(makers: Makers) -> list[list[int]]:
    """The e-classes in groups, each in order, that have no computed array in common."""
    group: dict[int, list[int]] = {}
    for c, node in makers.items():
        mine = [c]
        for a in dict.fromkeys(node.args if node else ()):
            other = group[a]
            if makers[a] is not None and other is not mine:
                if len(other) > len(mine):
                    mine, other = other, mine
                mine += other
                group |= dict.fromkeys(other, mine)
        group[c] = mine
    order = {c: k for k, c in enumerate(makers)}
    return [sorted(members, key=order.__getitem__) for members in {id(g): g for g in group.values()}.values()]


def _evaluated(
    egraph: GraphEGraph,
    makers: Makers,
    part: Sequence[int],
    wanted: set[int],
    apply: Apply,
    keep: Callable[[int, np.ndarray], np.ndarray],
) -> dict[int, np.ndarray]:
    """The wanted arrays among a group."""
    readers = Counter(a for c in part if (node := makers[c]) for a in set(node.args))
    values: dict[int, np.ndarray] = {}

    def given(c: int) -> np.ndarray | None:
        number = egraph.classes[c].constant
        return None if number is None else egraph.constants[number]

    for c in part:
        node = makers[c]
        array = given(c)
        if node is not None:
            args = [values[a] if a in values else given(a) for a in node.args]
            array = apply(node.op, [a for a in args if a is not None], node.attrs)
            for a in set(node.args) & values.keys():
                readers[a] -= 1
                if not readers[a] and a not in wanted:
                    del values[a]
        assert array is not None
        if c in wanted:
            values[c] = keep(c, array)
        elif node is not None:
            values[c] = array
    return {c: values[c] for c in part if c in wanted}
