"""The interface between loop extraction and a cost model. `compiler.py` hands over a model; none is imported here.

A model scores *partial* nests bottom-up. What it must remember of a partial nest is a row of `width` floats (its
state); everything about the block that the nest covers it can compute from the e-graph's arrays beforehand.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from ..ir.loops import Lowered
from ..rewrite.loop_egraph import LoopEGraph


class NestScorer(Protocol):
    """A cost model set up for one e-graph. `nodes` are numbers of e-nodes; states have shape (len(nodes), k, width)."""

    width: int

    def leaf(self, nodes: np.ndarray) -> np.ndarray:
        """States of vector operations, shape (n, width)."""
        ...

    def unopened(self, nodes: np.ndarray) -> np.ndarray:
        """States of blocks that are still to be filled (e-nodes UNOPENED), shape (n, width): such as the best nests of
        them might have."""
        ...

    def loop(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        """States of loops around bodies."""
        ...

    def tile(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        """States of register tiles around bodies."""
        ...

    def cat(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """States of two nests, one after the other."""
        ...

    def seq(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """States of two stages (or a stage and those after it), one after the other over the same block."""
        ...

    def stage(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        """States of stages of a kernel that has several."""
        ...

    def store(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        """States of whole kernels that store their results one way or the other."""
        ...

    def score(self, owners: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Predicted seconds of partial nests of the e-classes `owners`, shape (n, k)."""
        ...

    def total(self, state: np.ndarray) -> float:
        """Predicted seconds of a whole nest at the root."""
        ...


@runtime_checkable
class NotingScorer(NestScorer, Protocol):
    """A scorer that looks closer at the best few partial nests of every block, and remembers more of them.

    `score` chooses which few; `refine` orders them. `notes`: floats that it remembers of a partial nest besides.
    """

    notes: int

    def note(
        self, nodes: np.ndarray, states: np.ndarray, below: np.ndarray, beside: np.ndarray, dearer: np.ndarray
    ) -> np.ndarray:
        """Notes of partial nests, shape (n, notes), from those of their parts; `dearer`: where the first part costs
        more than the second (or is the only one). States have shape (n, width)."""
        ...

    def refine(self, owners: np.ndarray, states: np.ndarray, notes: np.ndarray) -> np.ndarray:
        """Predicted seconds of partial nests of the e-classes `owners`, shape (n,)."""
        ...


class CostModel(Protocol):
    """A model of kernels on a target."""

    name: str

    def scorer(self, egraph: LoopEGraph) -> NestScorer: ...

    def bound(self, kernel: Lowered) -> float:
        """Seconds that no nest of the kernel is predicted to beat."""
        ...
