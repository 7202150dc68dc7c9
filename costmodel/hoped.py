"""What the register tiles of a block that is still to be filled may take at best, by the roofline's rates.

Guided saturation opens the blocks first that promise most. A promise that no nest can keep sends it astray, so the
tiles that count are those into which the block's extents divide, where rules do not cut them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ..ir.loops import LoopKernel
from ..ir.target import Target
from ..rewrite.loop_egraph import cuts
from ..rewrite.loop_language import PHASES
from ..rewrite.loop_rules import ABREAST

if TYPE_CHECKING:
    from .roofline import Rates

_TILE, _TENSOR = PHASES.index("tile"), PHASES.index("tensor")
#: Tiles of so many shapes are tried at a time.
_AT_ONCE = 1 << 22


def hoped_cycles(
    rates: Rates, phase: np.ndarray, v: np.ndarray, domain: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """Cycles of blocks, shape (n,): blocks of these phases and vector axes, of extents `domain` (n, axes)."""
    registers = (phase == _TILE) | (phase >= _TENSOR)
    out = np.zeros(len(phase))
    out[~registers] = tiled_cycles(rates, domain[~registers], inside[~registers])
    if registers.any():
        at = np.flatnonzero(registers)
        fit = np.where(phase[at] >= _TENSOR, phase[at] - _TENSOR, -1)
        out[at] = _in_registers(rates, v[at], domain[at], inside[at], fit)
    return out


def tiled_cycles(rates: Rates, domain: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Cycles of blocks of these extents, each filled with the best register tile for it."""
    blocks = np.concatenate([domain, _clear(rates, domain, inside)[:, None]], axis=1)
    distinct, which = np.unique(blocks, axis=0, return_inverse=True)
    known = _known(rates.kernel, rates.t)
    keys = list(map(tuple, distinct.tolist()))
    new = np.array([k for k, key in enumerate(keys) if key not in known], np.int64)
    for clear in np.unique(distinct[new, -1]):
        here = new[distinct[new, -1] == clear]
        found = _best_tiles(rates, distinct[here, :-1], int(clear))
        known.update(zip((keys[k] for k in here), found.tolist(), strict=True))
    return np.array([known[key] for key in keys])[which.reshape(-1)]


@lru_cache(maxsize=16)
def _known(kernel: LoopKernel, target: Target) -> dict[tuple[int, ...], float]:
    """Cycles of the kernel's blocks (extents, ends that they may keep clear of), as they were asked for: a saturation
    asks again in every round."""
    return {}


def _clear(rates: Rates, domain: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The ends of padded axes that blocks keep clear of, or still may: borders are cut off before an axis is peeled."""
    for axis, extent, ends in rates.ends:
        inside = inside | np.where(2 * domain[:, axis] > extent, ends, 0)
    return inside


def _best_tiles(rates: Rates, domain: np.ndarray, clear: int) -> np.ndarray:
    shapes, update, finish = rates.tiles(clear)
    reduced = float(np.prod([a.extent for a in rates.kernel.reduce], initial=1.0))
    share = domain[:, rates.spatial :].prod(axis=1) / reduced
    best = np.zeros(len(domain))
    for k in range(0, len(domain), rows := max(1, _AT_ONCE // len(shapes))):
        part = domain[k : k + rows]
        tiles = np.ones((len(part), len(shapes)))
        for a in rates.space.spatial:
            along, size = part[:, a.number, None], shapes[None, :, a.number]
            kept = (along % size == 0) | (size > along) | bool(cuts(a.extent, rates.lanes, a))
            tiles *= np.where(kept, -(-along // size), np.inf)
        best[k : k + rows] = (tiles * (share[k : k + rows, None] * update + finish)).min(axis=1)
    return best


def _in_registers(
    rates: Rates, v: np.ndarray, domain: np.ndarray, inside: np.ndarray, fit: np.ndarray
) -> np.ndarray:
    """Cycles of blocks whose results are in registers already: one step of the reduction, as often as there are."""
    step = domain.copy()
    step[:, rates.spatial :] = 1
    across = np.flatnonzero(v >= rates.spatial)
    step[across, v[across]] = np.minimum(domain[across, v[across]], ABREAST * rates.lanes)
    for number in np.unique(fit[fit >= 0]):
        applied = rates.space.fits[number]
        step[fit == number, rates.spatial :] = [applied.step(a) for a in rates.space.reduced]
    rounds = domain[:, rates.spatial :].prod(axis=1) / step[:, rates.spatial :].prod(axis=1)
    return rates.region(step, v, inside, fit) * rounds
