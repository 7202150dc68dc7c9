"""The analytic cost model: cycles of the register tile against bytes moved between the levels of memory.

A partial nest is remembered as (cycles, bytes into L1, into L2, into L3). Traffic follows the usual reuse argument: a
block whose footprint fits a cache brings each line in once; a loop around a block that fits brings in again only what
changes with the loop; a loop around one that does not fit brings in everything each time. (Compare Williams et al.,
"Roofline", CACM 2009, and the footprint features of Zheng et al., "Ansor", OSDI 2020.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ir.expr import Apply, Cast, Read, Scalar, When, walk
from ..ir.index import Index
from ..ir.loops import LoopKernel
from ..ir.nest import KINDS, PARALLEL, SERIAL
from ..ir.scalars import scalar
from ..ir.target import Target
from ..ir.types import DTYPES
from ..rewrite.loop_egraph import LoopEGraph
from ..rewrite.loop_language import PHASES

LINE = 64  # bytes
LOOP_OVERHEAD = 1.0  # cycles an iteration
TILE_OVERHEAD = 6.0  # cycles to enter and leave a register tile
FORK_JOIN = 3000.0  # cycles to hand work to the pool and wait
OVERLAP = 0.25  # share of the lesser costs that the greatest does not hide

SERIAL_KIND, PARALLEL_KIND = KINDS.index(SERIAL), KINDS.index(PARALLEL)
TILE_PHASE = PHASES.index("tile")


@dataclass(frozen=True)
class Access:
    """One access of a kernel: stride of every axis in bytes, element size, whether bounds are tested, and its kind."""

    strides: np.ndarray
    size: int
    guarded: bool
    affine: bool


def access(kernel: LoopKernel, address: Index, dtype: str, guarded: bool) -> Access:
    size = DTYPES[dtype].size
    strides = np.array([abs(address.coefficient(a)) * size for a in kernel.axes], np.int64)
    for atom, c in address.terms:  # an axis under a quotient or remainder: count it as strided
        for k, a in enumerate(kernel.axes):
            if not address.is_affine and a != atom and atom not in kernel.axes and a in atom.of.axes:  # type: ignore[union-attr]
                strides[k] = max(strides[k], abs(c) * size, size * 2)
    return Access(strides, size, guarded, address.is_affine)


def scalar_cost(s: Scalar | None) -> float:
    """Cost of a scalar expression in fused multiply-adds (a product under a sum is free)."""
    total = 0.0
    for n in walk(s) if s is not None else ():
        if isinstance(n, Apply):
            total += scalar(n.fn).cost
        elif isinstance(n, (Cast, When)):
            total += 1.0
    return total


def footprint(a: Access, domain: np.ndarray) -> np.ndarray:
    """Bytes of whole cache lines that an access touches over blocks of the given extents (one row a block).

    Axes are taken from the smallest stride up: a stride within the run so far extends it (so overlapping windows
    count once), a larger one starts rows; rows whose own starts overlap (a sliding window) extend likewise.
    """
    run = np.full(len(domain), float(a.size))
    rows, pitch = np.ones(len(domain)), np.zeros(len(domain))
    outer = np.ones(len(domain))
    for k in np.argsort(a.strides, kind="stable"):
        stride = float(a.strides[k])
        if stride == 0:
            continue
        e = domain[:, k].astype(float)
        grows = (stride <= np.maximum(run, LINE)) & (pitch == 0)
        slides = ~grows & (pitch > 0) & (stride <= pitch * rows) & (stride % np.maximum(pitch, 1) == 0)
        starts = ~grows & ~slides & (e > 1)
        run = np.where(grows, run + stride * (e - 1), run)
        rows = np.where(slides, rows + (stride / np.maximum(pitch, 1)) * (e - 1), rows)
        outer = np.where(starts, outer * rows, outer)
        rows = np.where(starts, e, rows)
        pitch = np.where(starts, stride, pitch)
    return outer * rows * np.maximum(run, LINE)


class Roofline:
    """The model: `Roofline(target, threads)`."""

    name = "roofline"

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.target, self.threads = target, threads

    def scorer(self, egraph: LoopEGraph) -> Scorer:
        return Scorer(egraph, self.target, self.threads)

    def bound(self, kernel: LoopKernel) -> float:
        """Arithmetic at full rate, and every buffer moved once at the bandwidth of L2."""
        t = self.target
        size = max(DTYPES[kernel.epilogue.dtype].size, 1)
        results = np.prod([a.extent for a in kernel.spatial], initial=1.0)
        work = kernel.points * update_cost(kernel) + results * scalar_cost(kernel.epilogue) if kernel.reduce else (
            results * scalar_cost(kernel.epilogue)
        )
        cycles = work / t.lanes(size) / t.fma_per_cycle
        moved = min(kernel.out_type.nbytes, results * size) / t.bandwidth[0]
        return max(cycles, moved) / self.threads / (t.ghz * 1e9)


def update_cost(kernel: LoopKernel) -> float:
    """Fused multiply-adds per point of the reduction, at least one."""
    extra = scalar_cost(kernel.update)
    product = isinstance(kernel.update, Apply) and kernel.update.fn == "mul" and kernel.kind == "sum"
    return max(1.0, extra if product else extra + 1.0)


class Scorer:
    """The roofline on one loop e-graph; per-class quantities are computed once, for all classes together."""

    width = 4

    def __init__(self, egraph: LoopEGraph, target: Target, threads: int) -> None:
        self.g, self.t, self.threads = egraph, target, threads
        k = self.kernel = egraph.kernel
        self.updates = [access(k, r.index[0], r.dtype, _guarded(k.update, r)) for r in k.update_reads]
        self.extras = [access(k, r.index[0], r.dtype, _guarded(k.epilogue, r)) for r in k.epilogue_reads]
        self.out = access(k, k.out, k.epilogue.dtype, False)
        self.accesses = [*self.updates, *self.extras, self.out]
        self.print = np.stack([footprint(a, egraph.domain) for a in self.accesses], axis=1)
        self.whole = self.print.sum(axis=1)
        self.results = np.prod(egraph.domain[:, : len(k.spatial)], axis=1)
        self.depth = np.prod(egraph.domain[:, len(k.spatial) :], axis=1)
        self.full_depth = int(np.prod([a.extent for a in k.reduce], initial=1))
        self.lanes = egraph.space.lanes

    # --- straight-line code -----------------------------------------------------------------------------------------

    def _vectors(self, domain: np.ndarray, v: np.ndarray) -> np.ndarray:
        along = np.where(v >= 0, domain[np.arange(len(v)), np.maximum(v, 0)], 1)
        return -(-along // self.lanes)

    def _loads(self, a: Access, domain: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Cycles of load ports for the distinct elements that straight-line code over a block reads."""
        moves = a.strides != 0
        at = np.arange(len(v))
        vv = np.maximum(v, 0)
        others = np.where(moves[None, :], domain, 1).astype(float)
        others[at, vv] = 1
        count = others.prod(axis=1)
        stride = np.where(v >= 0, a.strides[vv], 0)
        along = np.where(v >= 0, domain[at, vv], 1)
        contiguous = count * -(-along // self.lanes) / self.t.loads_per_cycle
        broadcast = count * 0.5 / self.t.loads_per_cycle
        gathered = count * along * 1.5
        cycles = np.where(stride == 0, broadcast, np.where(stride == a.size, contiguous, gathered))
        if not a.affine:
            cycles = cycles + gathered
        return cycles * (1 if not a.guarded else 3) + (2.0 * count if a.guarded else 0)

    def _region(self, classes: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Cycles of the straight-line code that fills a block."""
        if self.kernel.update is None:
            return np.zeros(len(classes))
        domain = self.g.domain[classes]
        at = np.arange(len(v))
        others = domain.astype(float).copy()
        others[at, np.maximum(v, 0)] = np.where(v >= 0, 1, others[at, np.maximum(v, 0)])
        operations = others.prod(axis=1) * self._vectors(domain, v)
        arithmetic = operations * update_cost(self.kernel) / self.t.fma_per_cycle
        loads = sum((self._loads(a, domain, v) for a in self.updates), np.zeros(len(v)))
        latency = self.t.latency * self.depth[classes]
        front_end = operations * 1.3 / 4.0
        spill = np.where(operations > 512, operations * 0.3, 0.0)  # falls out of the micro-op cache
        return np.maximum(np.maximum(arithmetic, loads), np.maximum(latency, front_end)) + 0.1 * loads + spill

    # --- steps ------------------------------------------------------------------------------------------------------

    def leaf(self, nodes: np.ndarray) -> np.ndarray:
        g = self.g
        owner = g.owner[nodes]
        state = np.zeros((len(nodes), self.width))
        state[:, 0] = np.where(g.phase[owner] <= TILE_PHASE, self._region(owner, g.axis[nodes]), 0.0)
        state[:, 1:] = self.whole[owner][:, None]
        return state

    def loop(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        g = self.g
        owner, child, trips = g.owner[nodes], g.child[nodes], g.count[nodes].astype(float)
        out = np.empty_like(body)
        serial = g.kind[nodes] == SERIAL_KIND
        parallel = g.kind[nodes] == PARALLEL_KIND
        rounds = np.where(parallel, np.ceil(trips / self.threads), trips)
        looped = rounds[:, None] * (body[:, :, 0] + LOOP_OVERHEAD) + np.where(parallel, FORK_JOIN, 2.0)[:, None]
        # An unrolled loop at the top of straight-line code stands for the whole of it.
        top = ~serial & ~parallel & (g.phase[owner] <= TILE_PHASE)
        region = np.zeros(len(nodes))
        if top.any():
            region[top] = self._region(owner[top], self._vector_of(nodes[top]))
        out[:, :, 0] = np.where((serial | parallel)[:, None], looped, region[:, None])
        varies = np.stack([a.strides != 0 for a in self.accesses], axis=1)[g.axis[nodes]]
        again = (self.print[child] * np.where(varies, trips[:, None], 1.0)).sum(axis=1)
        share = np.where(parallel, rounds / trips, 1.0)
        for level in range(3):
            capacity = self.t.caches[level] * 0.8
            fits, inner_fits = self.whole[owner] <= capacity, self.whole[child] <= capacity
            moved = np.where(
                inner_fits[:, None], again[:, None], trips[:, None] * body[:, :, level + 1]
            )
            out[:, :, level + 1] = np.where(fits[:, None], self.whole[owner][:, None], moved) * share[:, None]
        return out

    def _vector_of(self, nodes: np.ndarray) -> np.ndarray:
        """The vector axis of unrolled nodes: that of the Vec below them."""
        g = self.g
        v = np.full(len(nodes), -1, np.int64)
        current = nodes.copy()
        for _ in range(64):
            leafs = g.op[current] == 3
            v = np.where(leafs, g.axis[current], v)
            if leafs.all():
                break
            first = self._first_node[np.maximum(g.child[current], 0)]
            current = np.where(leafs, current, first)
        return v

    @property
    def _first_node(self) -> np.ndarray:
        if not hasattr(self, "_first"):
            g = self.g
            self._first = np.zeros(len(g.phase), np.int64)
            unrolled = np.flatnonzero((g.op == 3) | ((g.op == 0) & (g.kind == KINDS.index("unroll"))))
            self._first[g.owner[unrolled][::-1]] = unrolled[::-1]
        return self._first

    def tile(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        g = self.g
        owner, v = g.owner[nodes], g.axis[nodes]
        domain = g.domain[owner].copy()
        domain[:, len(self.kernel.spatial) :] = 1
        rows = domain.astype(float)
        at, vv = np.arange(len(v)), np.maximum(v, 0)
        along = np.where(v >= 0, domain[at, vv], 1)
        rows[at, vv] = np.where(v >= 0, 1, rows[at, vv]) if domain.shape[1] else 1
        vectors = rows.prod(axis=1) * self._vectors(domain, v)
        cost = scalar_cost(self.kernel.epilogue)
        final = vectors * cost / self.t.fma_per_cycle
        final = final + sum((self._loads(a, domain, v) for a in self.extras), np.zeros(len(v)))
        stride = np.where(v >= 0, self.out.strides[vv], 0)
        scattered = (stride != self.out.size) & (along > 1)
        store = np.where(scattered, rows.prod(axis=1) * along * 1.5, vectors / self.t.stores_per_cycle)
        partial = self.depth[owner] < self.full_depth
        spill = np.where(partial, vectors * (1 / self.t.loads_per_cycle + 1 / self.t.stores_per_cycle), 0.0)
        out = body.copy()
        overhead = TILE_OVERHEAD if self.kernel.update is not None else 0.0
        out[:, :, 0] += (np.maximum(final, store) + 0.3 * np.minimum(final, store) + spill + overhead)[:, None]
        return out

    def cat(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return first + second

    def score(self, owners: np.ndarray, states: np.ndarray) -> np.ndarray:
        return self._seconds(states)

    def total(self, state: np.ndarray) -> float:
        """Seconds of a whole nest whose operands are where they fit (warm)."""
        warm = state.copy()
        for level in (1, 2):
            if self.whole[self.g.root] <= self.t.caches[level] * 0.8:
                warm[level + 1] = 0.0
        return float(self._seconds(warm))

    def _seconds(self, states: np.ndarray) -> np.ndarray:
        costs = np.stack(
            [states[..., 0], *(states[..., k + 1] / b for k, b in enumerate(self.t.bandwidth))], axis=-1
        )
        most = costs.max(axis=-1)
        return (most + OVERLAP * (costs.sum(axis=-1) - most)) / (self.t.ghz * 1e9)


def _guarded(s: Scalar | None, read: Read) -> bool:
    """The read stands under a bounds test."""
    for n in walk(s) if s is not None else ():
        if isinstance(n, When) and any(m == read for m in walk(n.then)):
            return True
    return False
