"""How the algorithms that a program consists of amplify rounding errors: what their rules stated, read off kernels."""

from __future__ import annotations

from functools import cache

from ..ir.expr import Weighted, walk
from ..ir.loops import LoopKernel, Lowered, StagedKernel
from . import strassen
from .winograd import TILES


@cache
def _gains() -> dict[tuple[float, ...], float]:
    """The tables of results of all fast algorithms, and what each amplifies."""
    return {sum(t.results, ()): t.gain for t in TILES} | {sum(strassen.RESULT, ()): strassen.gain()}


def gain_of(kernel: Lowered) -> float:
    """The gain of the fast algorithm whose results a kernel computes; 1 if it computes none's."""
    loops: tuple[LoopKernel, ...] = kernel.stages if isinstance(kernel, StagedKernel) else (kernel,)
    tables = {n.table for k in loops for n in walk(k.update or k.epilogue) if isinstance(n, Weighted)}
    return max((_gains()[t] for t in tables if t in _gains()), default=1.0)
