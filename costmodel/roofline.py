"""The analytic cost model: cycles of the register tile against bytes moved between the levels of memory.

A partial nest is remembered as (cycles, bytes into L1, into L2, into L3, threads), and, of a kernel that reads from
memory, the streams that it begins (`streams.py`). Traffic follows the usual reuse
argument: a block whose footprint fits a cache brings each line in once; a loop around a block that fits brings in again
only what changes with the loop; a loop around one that does not fit brings in everything each time. (Compare Williams
et al., "Roofline", CACM 2009, and the footprint features of Zheng et al., "Ansor", OSDI 2020.)

A parallel loop costs what its busiest thread does. Each thread fills caches of its own, with all of what does not
change with the loop; memory is shared, and its bytes are counted as if one thread drew them at `SHARED_MEMORY` times
its rate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, cached_property, reduce

import numpy as np

from ..ir.expr import Apply, Bound, Const, Read, Scalar, Weighted, When, cost, walk
from ..ir.index import Axis
from ..ir.intrinsic import intrinsic
from ..ir.loops import LoopKernel, Lowered, StagedKernel
from ..ir.nest import AHEAD, CACHED, KINDS, PARALLEL, SERIAL, UNROLL, WAYS
from ..ir.target import LINE, Target
from ..rewrite.loop_egraph import FOR, INTRIN, TIPS, LoopEGraph
from ..rewrite.loop_language import ALL, Fit, LoopAxis, border, space
from .access import SCATTERED, Access, BoundsTest, access, footprint
from .hoped import hoped_cycles, tiled_cycles
from .streams import BROKEN, START, STORED, STORED_ROWS, Streams

SPLIT = 1.6  # what a vector costs that lies across two cache lines, as many do where rows do not begin at one
LOOP = 2.0  # cycles to enter a loop; its rounds count beside vector arithmetic (maps of 1 to 16 vectors: the same)
#: What a map's straight-line code for several vectors takes, in terms of a loop over one: 1.06 gelu, 1.01 exp of 1M.
SEVERAL = 1.01
TILE_OVERHEAD = 6.0  # cycles to enter and leave a register tile
LANES_COMBINED = 12.0  # cycles to combine the lanes of a vector; the last one's result is also waited for
FORK_JOIN = 3000.0  # cycles to hand work to the pool and wait: measured 450 hot, and 20 us (70,000) after a pause
TASK = 90.0  # cycles to claim one task, when threads contend
BETWEEN_CORES = 4.0  # bytes a cycle out of another core's cache (layer norm 128x768: rows regrouped 43 us, else 24)
WAITING = 0.05  # share of a task that threads wait for the last one: a thread gets several tasks where that is free
SHARED_MEMORY = 1.25  # what all threads together draw from memory, in terms of one: measured 1.1 reading, 1.6 copying
WARM = 0.8  # share of a cache that a working set may fill
MASKED = 1.01  # what a vector takes that is not full: of nests that are alike otherwise, those of full ones are faster
SINGLE = 1.5  # cycles of an element that is loaded or stored by itself, and put into a vector or taken out
#: Cycles of an element that fills a vector and is loaded under bounds tests, which nothing hides: of 1 to 4, this has
#: the least regret on the training family (ResNet-18's 56x56x64 of stride 2 takes 4.5 in a nest that keeps all tests).
TESTED = 2.0
OVERLAP = 0.25  # share of the lesser costs that the greatest does not hide
DISPLACED = 0.3  # share of what the last cache alone can hold that is gone when a program comes back to it
HIDDEN = 0.25  # share of what is fetched ahead that is waited for (4 MB of weights from memory: 250 us, then 80)
FETCH = 0.05  # cycles to ask for a line (beside multiply-adds: measured less than 0.5 % of them)
PACKED = 0.25  # share of what comes from scratch that is read over and over into the first cache and is waited for
OVER_AND_OVER = 8  # readings of each of its elements
LOOPED = 2.5  # cycles of straight-line code around loops, in those of straight-line code alone: measured 2 to 2.7
# What is remembered of every partial nest: cycles, bytes into L1, L2 and L3, threads, whether it begins with a loop.
STATE = 6

THROUGH_CACHES = WAYS.index(CACHED)
SERIAL_KIND, PARALLEL_KIND, UNROLL_KIND, AHEAD_KIND = map(KINDS.index, (SERIAL, PARALLEL, UNROLL, AHEAD))


def scalar_cost(s: Scalar | None, target: Target) -> float:
    """Cost of a scalar expression in fused multiply-adds (a product under a sum is free; tests count as loads)."""
    return 0.0 if s is None else cost(s, target.tables)


class Roofline:
    """The model: `Roofline(target, threads)`."""

    name = "roofline"

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.target, self.threads = target, threads

    def scorer(self, egraph: LoopEGraph) -> Scorer | StagedScorer:
        k = egraph.kernel
        if isinstance(k, StagedKernel):
            return StagedScorer(egraph, self.target, self.threads)
        return Scorer(egraph, self.target, self.threads, k)

    def bound(self, kernel: Lowered) -> float:
        """The best register tile of any shape, at no cost for the loops around it, and every buffer moved once; on one
        thread, or on all after a fork."""
        if isinstance(kernel, StagedKernel):
            rates = [Rates(k, self.target) for k in kernel.stages]
            whole = np.array([kernel.extents], np.int64).reshape(1, len(kernel.shared))
            moved = float(shared_footprint(kernel, rates, whole)[0].sum())
            cycles = min(sum(rates[n].best_tile() for n in q) for q in kernel.sequences)
        else:
            rate = Rates(kernel, self.target)
            whole = np.array([kernel.extents], np.int64).reshape(1, len(kernel.axes))
            moved = sum(float(footprint(a, whole)[0]) for a in rate.accesses)
            cycles = rate.best_tile()
        waited = HIDDEN if space(kernel, self.target).distant else 1.0
        return self._lower_bound(cycles, moved, waited)

    def _lower_bound(self, cycles: float, moved: float, waited: float) -> float:
        """`waited`: the share of what comes from beyond the second cache that no fetching ahead hides."""
        t = self.target
        alone = np.array([cycles, moved, *(waited * moved * cold(moved, t.caches[k]) for k in (1, 2))])
        if self.threads == 1:
            return float(seconds(t, alone))
        sharing = np.array([*[self.threads] * 3, min(self.threads, SHARED_MEMORY)])
        together = alone / sharing + np.array([FORK_JOIN, 0, 0, 0])
        return float(min(seconds(t, alone), seconds(t, together)))


def update_cost(kernel: LoopKernel, target: Target) -> float:
    """Fused multiply-adds per point of the reduction, at least one."""
    extra = scalar_cost(kernel.update, target)
    multiplies = isinstance(kernel.update, Weighted) or (isinstance(kernel.update, Apply) and kernel.update.fn == "mul")
    product = multiplies and kernel.kind == "sum"
    return max(1.0, extra if product else extra + 1.0)


def cold(bytes: float, capacity: float) -> float:
    """Share of a kernel's operands that a cache does not hold already: none up to half of it, all from 1.5 times it."""
    return min(max(bytes / capacity - 0.5, 0.0), 1.0)


def missing(kernel: Lowered, target: Target) -> float:
    """Share of a kernel's operands that come from memory. What a reduction uses once is likely to be gone from the last
    cache when a program comes back to it (MobileNet's last layer, 4 MB of weights: 75 us alone, 460 in the program);
    of what only the last cache holds, some is (its first layer, 2 MB: 0.20 ms alone and 0.50 in the program, where it
    walks its image column after column)."""
    operands = (*kernel.inputs, kernel.out_type)
    reduces = isinstance(kernel, LoopKernel) and kernel.update is not None
    used_once = reduces and kernel.points <= 2 * sum(t.size for t in operands)
    near, far = (cold(sum(t.nbytes for t in operands), target.caches[k]) for k in (1, 2))
    return near if used_once else max(far, DISPLACED * near)


def seconds(t: Target, state: np.ndarray) -> np.ndarray:
    """Time of (cycles, bytes into L1, into L2, into L3, …) on the last axis: the greatest, and a share of the rest."""
    return _seconds(t, *(state[..., k] for k in range(4)))


def _seconds(t: Target, cycles: np.ndarray, *moved: np.ndarray) -> np.ndarray:
    """`seconds` of cycles and of bytes into L1, L2 and L3."""
    costs = [cycles, *(m / b for m, b in zip(moved, t.bandwidth, strict=True))]
    most = reduce(np.maximum, costs)
    return (most + OVERLAP * (reduce(np.add, costs) - most)) / (t.ghz * 1e9)


class Rates:
    """Cycles of straight-line code and of finishing a register tile, for arrays of blocks (one row of extents each)."""

    def __init__(self, kernel: LoopKernel, target: Target) -> None:
        self.kernel, self.t = kernel, target
        self.space = space(kernel, target)
        self.lanes = self.space.lanes
        self.spatial = len(kernel.spatial)
        bits = {kernel.axes[a.number]: a for a in self.space.axes if a.bit >= 0}
        self.ends = [(a.number, a.extent, 3 << a.bit) for a in bits.values()]
        self.updates = [_read(kernel, kernel.update, r, bits) for r in kernel.update_reads]
        self.extras = [_read(kernel, kernel.epilogue, r, bits) for r in kernel.epilogue_reads]
        self.extras += [replace(access(kernel, g.base, g.dtype), affine=False) for g in kernel.gathers]
        self.out = access(kernel, kernel.out, kernel.epilogue.dtype)
        self.accesses = [*self.updates, *self.extras, self.out]
        self.buffers = [r.input for r in (*kernel.update_reads, *kernel.epilogue_reads, *kernel.gathers)]
        self.paddings = [t for t in dict.fromkeys(t for a in self.updates for t in a.tests) if t.skips]
        self.update_cost, self.epilogue_cost = update_cost(kernel, target), scalar_cost(kernel.epilogue, target)
        table = kernel.update if isinstance(kernel.update, Weighted) else None
        self.weights = [k for k, a in enumerate(kernel.axes) if table is not None and a in table.index.axes]
        self.filled = 1.0 if table is None else scalar_cost(replace(table, arg=Const(0, table.dtype)), target)
        self._tiles: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def by_buffer(self, whole: Lowered) -> list[tuple[int, Access]]:
        """The accesses of a kernel, or of this stage of one, to its inputs and (as the number after) to its output."""
        inputs = len(whole.inputs)
        found = [p for p in zip(self.buffers, self.accesses, strict=False) if p[0] < inputs]
        writes = not isinstance(whole, StagedKernel) or self.kernel in whole.results
        return [*found, (inputs, self.out)] if writes else found

    def _along(self, domain: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Extent along the vector axis."""
        if not domain.shape[1]:
            return np.ones(len(domain), np.int64)
        return np.where(v >= 0, domain[np.arange(len(v)), np.maximum(v, 0)], 1)

    def _others(self, domain: np.ndarray, v: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Product of the extents of the axes `which`, without the vector axis."""
        kept = np.where(which[None, :], domain, 1).astype(float)
        if kept.shape[1]:
            at = np.arange(len(v))
            kept[at, np.maximum(v, 0)] = np.where(v >= 0, 1.0, kept[at, np.maximum(v, 0)])
        return kept.prod(axis=1)

    def loads(
        self, a: Access, domain: np.ndarray, v: np.ndarray, inside: np.ndarray, unit: int = 1, repeat: float = 0.5
    ) -> np.ndarray:
        """Cycles of load ports for the distinct elements that straight-line code over a block reads.

        `unit`: neighbouring elements that a lane takes (`domain` counts units then). `repeat`: cost of filling a vector
        with a single one, in full-width loads (arithmetic takes it from memory as part of the instruction).
        """
        count = self._others(domain, v, a.strides != 0)
        tested = self._tested(a, domain, v, inside)
        once = (tested + (1 - tested) * self._shared(a, domain, v)) * count
        along = self._along(domain, v)
        stride = np.where(v >= 0, a.strides[np.maximum(v, 0)], 0) if len(a.strides) else np.zeros(len(v))
        split = SPLIT if a.splits(self.t.vector_bytes) else 1.0
        contiguous = split * once * -(-along // self.lanes) / self.t.loads_per_cycle
        broadcast = count * repeat / self.t.loads_per_cycle
        gathered = count * along * SINGLE
        cycles = np.where(stride == 0, broadcast, np.where(stride == a.size * unit, contiguous, gathered))
        if not a.affine:
            cycles = cycles + gathered
        return cycles * (1 + tested) + 0.5 * count * tested

    def _tests(self, a: Access, domain: np.ndarray, v: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Cycles that the bounds tests of an access take beside everything else: of elements that fill vectors, as
        those of a vector are one mask."""
        count = self._others(domain, v, a.strides != 0)
        repeated = (v < 0) | (a.strides[np.maximum(v, 0)] == 0) if len(a.strides) else np.ones(len(v), bool)
        return np.where(repeated, TESTED * count * self._tested(a, domain, v, inside), 0.0)

    def _tested(self, a: Access, domain: np.ndarray, v: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Share of the vectors of blocks for which bounds are tested where an access is read."""
        free = np.ones(len(domain))
        for t in a.tests:
            free = free * (1 - t.made(domain, v, self.lanes, inside))
        return 1 - free

    def _shared(self, a: Access, domain: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Share of the vectors that results of a block read which is loaded: of overlapping windows each vector once,
        where registers hold the results and, beside them, a window of both operands."""
        window = self.space.window
        if window is None or not a.strides[window.axis] or a.strides[window.along] % a.strides[window.axis]:
            return np.ones(len(domain))
        move = a.strides[window.along] // a.strides[window.axis]
        size, results = domain[:, window.axis], domain[:, window.along]
        distinct = np.minimum(move * (results - 1) + size, results * size)
        held = self.vectors(domain, v) + 2 * size <= self.t.registers
        return np.where(held, distinct / (results * size), 1.0)

    def _loads_of_tile(self, a: Access, results: np.ndarray, v: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Cycles of loads for the epilogue of register tiles: what lies across their vectors is read as rows."""
        cycles = self.loads(a, results, v, inside)
        if a.tested or not a.affine:
            return cycles
        stride = np.where(v >= 0, a.strides[np.maximum(v, 0)], 0) if len(a.strides) else np.zeros(len(v))
        gathers = (stride != 0) & (stride != a.size)
        share = np.minimum(1.0, self._across(a, results, v, self.t.loads_per_cycle) / SINGLE)
        return np.where(gathers, cycles * share, cycles)

    def _across(self, a: Access, results: np.ndarray, v: np.ndarray, rate: float) -> np.ndarray:
        """Cycles an element of rows that lie across the vectors, transposed in registers (`codegen/transposing.py`):
        a row is an instruction, and log2(lanes) shuffles make a vector; none where there is no such row."""
        unit = [k for k in range(self.spatial) if a.strides[k] == a.size]
        along = self._along(results, v)
        if not unit:
            return np.full(len(v), np.inf)
        lanes = np.minimum(along, self.lanes)
        rows = np.where(v == unit[0], 1, np.minimum(results[:, unit[0]], lanes))
        length = 2.0 ** np.floor(np.log2(rows))
        fits = (length > 1) & (lanes & (lanes - 1) == 0)
        shuffles = np.log2(np.maximum(lanes, 2)) / np.maximum(lanes, 1)
        return np.where(fits, 1 / (rate * length) + shuffles / self.t.loads_per_cycle, np.inf)

    def region(self, domain: np.ndarray, v: np.ndarray, inside: np.ndarray, fit: np.ndarray) -> np.ndarray:
        """Cycles of the straight-line code that fills a block; `fit`: which of the space's intrinsics it applies, or -1
        for vectors."""
        out = np.zeros(len(domain))
        for number in np.unique(fit) if self.kernel.update is not None else ():
            rows = fit == number
            applied = self.space.fits[number] if number >= 0 else None
            out[rows] = self._region(domain[rows], v[rows], inside[rows], applied)
        return out

    def _done(self, domain: np.ndarray) -> np.ndarray:
        """Share of a block's points that straight-line code computes: entries of 0 of a table of weights leave none,
        where the code knows the entries, nor do paddings. Elsewhere each entry is loaded first, which costs about as
        much again."""
        whole = np.array([self.kernel.extents[k] for k in self.weights], np.int64)
        known = (domain[:, self.weights] == whole).all(axis=1)
        done = np.where(known, self.filled, 2.0 if self.weights else 1.0)
        for t in self.paddings:
            done = done * np.where(t.known(domain), t.share, 1.0)
        return done

    def rounds_made(self, axis: np.ndarray, body: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Share of their rounds that loops over `axis` make around the blocks `body`: those in which paddings' tests
        hold."""
        made = np.ones(len(axis))
        for t in self.paddings:
            clips = (axis == t.looped) & t.left_to_loop(body) & ~t.inside(inside)
            made = made * np.where(clips, t.share, 1.0)
        return made

    def _region(self, domain: np.ndarray, v: np.ndarray, inside: np.ndarray, fit: Fit | None) -> np.ndarray:
        unit, repeat, each = 1, 0.5, self.update_cost
        if fit is not None:
            unit, repeat, each = fit.depth, intrinsic(fit.name).repeat, 1.0 / intrinsic(fit.name).rate
            domain = domain // [fit.step(a) for a in self.space.axes]
        every = np.ones(domain.shape[1], bool)
        operations = self._done(domain) * self._others(domain, v, every) * -(-self._along(domain, v) // self.lanes)
        arithmetic = operations * each / self.t.fma_per_cycle
        loads = sum((self.loads(a, domain, v, inside, unit, repeat) for a in self.updates), np.zeros(len(v)))
        depth = domain[:, self.spatial :].prod(axis=1)
        across = v >= self.spatial
        along = self._along(domain, v)
        chain = np.where(across, depth / np.maximum(along, 1), depth)  # along the vectors each has its accumulator
        latency = self.t.latency * chain
        front_end = operations * 1.3 / 4.0
        spill = np.where(operations > 512, operations * 0.3, 0.0)  # falls out of the micro-op cache
        tests = sum((self._tests(a, domain, v, inside) for a in self.updates), np.zeros(len(v)))
        most = np.maximum(np.maximum(arithmetic, loads), np.maximum(latency, front_end))
        masked = np.where((along > 1) & (along % self.lanes != 0), MASKED, 1.0)
        return masked * (most + 0.1 * loads + spill + tests)

    def finish(self, domain: np.ndarray, v: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Cycles of the epilogue and the stores of a register tile (the reduction axes of `domain` do not count)."""
        results = domain.copy()
        results[:, self.spatial :] = 1
        along = self._along(results, v)
        rows = self._others(results, v, np.ones(domain.shape[1], bool))
        vectors = rows * -(-along // self.lanes)
        work = vectors * self.epilogue_cost / self.t.fma_per_cycle
        loads = sum((self._loads_of_tile(a, results, v, inside) for a in self.extras), np.zeros(len(v)))
        # The epilogue of a reduction waits for it; a map's loads run ahead of its arithmetic.
        waits = 1.0 if self.kernel.update is not None else OVERLAP
        work = np.maximum(work, loads) + waits * np.minimum(work, loads)
        if self.kernel.update is None:
            work = work * np.where(vectors > 1, SEVERAL, 1.0)
        stride = np.where(v >= 0, self.out.strides[np.maximum(v, 0)], 0) if domain.shape[1] else np.zeros(len(v))
        scattered = (stride != self.out.size) & (along > 1)
        split = SPLIT if self.out.splits(self.t.vector_bytes) else 1.0
        each = np.minimum(SINGLE, self._across(self.out, results, v, self.t.stores_per_cycle))
        store = np.where(scattered, rows * along * each, split * vectors / self.t.stores_per_cycle)
        overhead = TILE_OVERHEAD if self.kernel.update is not None else 0.0
        waited = self.t.latency * math.log2(self.lanes)
        overhead = overhead + np.where(v >= self.spatial, rows * LANES_COMBINED + waited, 0.0)
        return np.maximum(work, store) + 0.3 * np.minimum(work, store) + overhead

    def vectors(self, domain: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Vector registers that the results of a block take."""
        results = domain.copy()
        results[:, self.spatial :] = 1
        rows = self._others(results, v, np.ones(domain.shape[1], bool))
        return rows * -(-self._along(results, v) // self.lanes)

    def best_tile(self) -> float:
        """Cycles of the whole domain at the rate of the best register tile, whether or not its extents divide."""
        results = float(np.prod([a.extent for a in self.kernel.spatial], initial=1.0))
        if not results:
            return 0.0
        shapes, update, finish = self.tiles(-1)
        return float(((update + finish) / shapes.prod(axis=1)).min()) * results

    def tiles(self, clear: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(extents along every spatial axis, cycles of the whole reduction, cycles to finish) of register tiles of
        every shape that keep clear of the ends `clear` of padded axes."""
        if clear not in self._tiles:
            self._tiles[clear] = self._tiles_of_every_shape(clear)
        return self._tiles[clear]

    def _tiles_of_every_shape(self, clear: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        k = self.kernel
        extents = [a.extent for a in k.spatial]
        depth = float(np.prod([a.extent for a in k.reduce], initial=1.0))
        vectors: list[tuple[int, int]] = [(a.number, -1) for a in self.space.axes if a.contiguous] or [(-1, -1)]
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for axis, fit in [*vectors, *((f.vector, f.number) for f in self.space.fits)]:
            most = self.lanes * self.t.registers  # no tile is longer
            shapes = _tile_shapes(tuple(min(n, most) for n in extents), axis, self.lanes, self.t.registers)
            domain = np.ones((len(shapes), len(k.axes)), np.int64)
            if extents:
                domain[:, : self.spatial] = shapes
            if axis >= self.spatial:
                domain[:, axis] = min(self.lanes, k.axes[axis].extent)
            if fit >= 0:
                domain[:, self.spatial :] = [self.space.fits[fit].step(a) for a in self.space.reduced]
            v, which = np.full(len(shapes), axis), np.full(len(shapes), fit)
            if self.weights:  # the code knows them where it holds the whole reduction
                domain[:, self.spatial :] = [a.extent for a in k.reduce]
            elif (window := self.space.window) is not None:
                domain[:, window.axis] = min(k.axes[window.axis].extent, self.t.registers // 4)
            inside = np.full(len(v), clear)
            finish = self.finish(domain, v, inside)
            for within in self._straight_line(domain):
                made = math.prod(
                    (self.rounds_made(np.full(len(v), a), within, inside) for a in range(self.spatial, len(k.axes))),
                    start=depth / within[:, self.spatial :].prod(axis=1),
                )
                found.append((shapes, self.region(within, v, inside, which) * made, finish))
        shapes, update, finish = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return shapes, update, finish


    def _straight_line(self, domain: np.ndarray) -> list[np.ndarray]:
        """What straight-line code of register tiles may cover of the reduction: the axes of paddings' tests each alone,
        in a loop that skips what does not pass, or the whole of them, so that the code knows."""
        out = [domain]
        for axis in sorted({k for t in self.paddings for k in t.axes if k >= self.spatial}):
            whole = [d.copy() for d in out]
            for d in whole:
                d[:, axis] = self.kernel.axes[axis].extent
            out += whole
        return out


@cache
def _tile_sizes(extent: int, most: int) -> tuple[int, ...]:
    return tuple(range(1, min(extent, most) + 1))


@cache
def _tile_shapes(extents: tuple[int, ...], vector: int, lanes: int, registers: int) -> np.ndarray:
    """All register tiles of at most `registers` results: extents along every spatial axis (not to be written to)."""
    shapes: list[tuple[int, ...]] = [()]
    used: list[int] = [1]
    for k, n in enumerate(extents):
        grown, taken = [], []
        for shape, u in zip(shapes, used, strict=True):
            if k == vector:
                most = min(n, lanes * registers)
                options = [(s, -(-s // lanes)) for s in {min(n, lanes), most, *range(lanes, most + 1, lanes)}]
            else:
                options = [(s, s) for s in _tile_sizes(n, registers // u)]
            for s, vectors in options:
                if u * vectors < registers:
                    grown.append((*shape, s))
                    taken.append(u * vectors)
        shapes, used = grown, taken
    return np.array(shapes, np.int64).reshape(len(shapes), len(extents))


class Scorer:
    """The roofline on one loop e-graph; per-class quantities are computed once, for all classes together."""

    written = -1  # the output's column of `print`

    def __init__(self, egraph: LoopEGraph, target: Target, threads: int, whole: Lowered) -> None:
        """`egraph`: of a kernel, or one stage's part of the e-graph of the kernel `whole`."""
        self.g, self.t, self.threads = egraph, target, threads
        k = egraph.kernel
        assert isinstance(k, LoopKernel)
        self.rates = Rates(k, target)
        self.missing = missing(whole, target)
        self.streams = self._streams(whole) if self.missing else None
        self.stored = 0.0
        if self.streams is not None and egraph.space.overflows:
            self.streams, self.stored = replace(self.streams, written=STORED_ROWS), STORED
        self.width = STATE + (len(whole.inputs) + 1 if self.missing else 0)
        self.print = np.stack([footprint(a, egraph.domain) for a in self.rates.accesses], axis=1)
        self.lines = np.stack([footprint(a, egraph.domain, 1.0) for a in self.rates.accesses], axis=1)
        self.varies = np.stack([a.strides != 0 for a in self.rates.accesses], axis=1)
        #: Accesses of the reduction that have neighbours along some axis of the results.
        loaded = [bool((a.strides[: len(k.spatial)] == a.size).any()) for a in self.rates.updates]
        self.in_vectors = np.array(loaded + [False] * (len(self.rates.accesses) - len(loaded)))
        self.near = self._near(whole)
        self.whole = self.print.sum(axis=1)
        self.depth = np.prod(egraph.domain[:, len(k.spatial) :], axis=1)
        self.full_depth = int(np.prod([a.extent for a in k.reduce], initial=1))

    def _near(self, whole: Lowered) -> np.ndarray | None:
        """The share of each access's traffic into the first cache that is waited for; None: all of it."""
        points, inputs = self.rates.kernel.points, self.rates.kernel.inputs
        scratch = [
            b >= len(whole.inputs) and points >= OVER_AND_OVER * inputs[b].size for b in self.rates.buffers
        ]
        if not any(scratch):
            return None
        return np.array([PACKED if s else 1.0 for s in scratch] + [1.0] * (len(self.rates.accesses) - len(scratch)))

    def _streams(self, whole: Lowered) -> Streams:
        return Streams.of(self.rates.by_buffer(whole), self.g.domain, len(whole.inputs) + 1)

    def leaf(self, nodes: np.ndarray) -> np.ndarray:
        g = self.g
        owner = g.owner[nodes]
        v, fit = self._leaves(nodes)
        region = self.rates.region(g.domain[owner], v, g.inside[owner], fit)
        return self._moved_once(owner, np.where(g.entered[owner], region, 0.0))

    def unopened(self, nodes: np.ndarray) -> np.ndarray:
        """States of blocks as if filled with the best register tile there is for them, and everything moved once."""
        return self._moved_once(self.g.owner[nodes], self._hoped(nodes))

    def _moved_once(self, owner: np.ndarray, cycles: np.ndarray) -> np.ndarray:
        """States of blocks that take so many cycles and move all that they touch once, on one thread."""
        state = np.zeros((len(owner), self.width))
        state[:, 0] = cycles
        state[:, 1:4] = self.whole[owner][:, None]
        state[:, 4] = 1.0
        if self.streams is not None:
            state[:, STATE:] = self.streams.rows[owner]
        return state

    def _hoped(self, nodes: np.ndarray) -> np.ndarray:
        """Cycles of blocks with the best register tile there is for each."""
        g, owner = self.g, self.g.owner[nodes]
        return hoped_cycles(self.rates, g.count[nodes], g.axis[nodes], g.domain[owner], g.inside[owner])

    def loop(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        g = self.g
        owner, trips = g.owner[nodes], g.count[nodes].astype(float)
        out = body.copy(order="K")
        serial = (g.kind[nodes] == SERIAL_KIND) | (g.kind[nodes] == AHEAD_KIND)
        parallel = g.kind[nodes] == PARALLEL_KIND
        rounds = np.where(parallel, np.ceil(trips / self.threads), trips)
        threads = trips / rounds
        each, once = np.where(parallel, TASK, 0.0), np.where(parallel, FORK_JOIN, LOOP)
        made = self.rates.rounds_made(g.axis[nodes], g.domain[g.child[nodes]], g.inside[owner])
        turns = rounds * made + np.where(parallel, WAITING, 0.0)
        looped = turns[:, None] * (body[:, :, 0] + each[:, None]) + (once + self._regrouped(nodes, threads))[:, None]
        # An unrolled loop at the top of straight-line code stands for the whole of it.
        region = np.zeros(len(nodes))
        top = ~serial & ~parallel & g.entered[owner]
        if top.any():
            at = owner[top]
            v, fit = self._leaves(self._leaf_of(nodes[top]))
            region[top] = self.rates.region(g.domain[at], v, g.inside[at], fit)
        straight = region[:, None] * np.where(body[:, :, 5] > 0, LOOPED, 1.0)
        out[:, :, 0] = np.where((serial | parallel)[:, None], looped, straight)
        again = self._again(nodes, rounds)
        near = again if self.near is None else self._again(nodes, rounds, self.near)
        for level, bytes_again in enumerate((near, again)):
            out[:, :, level + 1] = self._moved(nodes, body[:, :, level + 1], level, rounds, bytes_again)
        again = self._again(nodes, trips) if parallel.any() else again
        out[:, :, 3] = self._moved(nodes, body[:, :, 3], 2, trips, again) / np.minimum(threads, SHARED_MEMORY)[:, None]
        self._fetch_ahead(nodes, out)
        out[:, :, 4] *= threads[:, None]
        out[:, :, 5] = np.maximum(body[:, :, 5], (serial | parallel)[:, None])
        if self.streams is not None:
            child = g.child[nodes]
            step = g.domain[child, g.axis[nodes]]
            kept = self.whole[child] <= self.t.caches[2] * WARM
            begun = self.streams.loop(g.axis[nodes], step, trips, child, kept, body[:, :, STATE:])
            out[:, :, STATE:] = begun / np.minimum(threads, SHARED_MEMORY)[:, None, None]
        return out

    def _fetch_ahead(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """In `ahead` loops, what comes from beyond the second cache is hardly waited for, of operands that vectors load
        and that are others in the next iteration; if that cache has room for these beside what it is to hold now."""
        g = self.g
        ahead = g.kind[nodes] == AHEAD_KIND
        if not ahead.any():
            return
        touched, others = self.print[g.child[nodes]], self.varies[g.axis[nodes]]
        fetched = (touched * (self.in_vectors & others)).sum(axis=1)
        moved = (touched * np.where(others, g.count[nodes][:, None], 1.0)).sum(axis=1)
        share = fetched * g.count[nodes] / np.maximum(moved, 1.0)
        room = touched.sum(axis=1) + fetched <= self.t.caches[1] * WARM
        share = np.where(ahead, share, 0.0)[:, None]
        out[:, :, 0] += FETCH / LINE * share * out[:, :, 1]
        out[:, :, 2:4] *= 1 - (1 - HIDDEN) * np.where(room[:, None], share, 0.0)[:, :, None]

    def _regrouped(self, nodes: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Cycles to move results between cores for loops that do not divide them into contiguous parts.

        Loops around a kernel's neighbours are likely to divide their tensors so, and the pool gives a thread the same
        part each time.
        """
        strides = self.rates.out.strides
        apart = strides[self.g.axis[nodes]] < strides.max(initial=0)
        results = self.print[self.g.owner[nodes], self.written]
        return np.where(apart, results / threads * (1 - 1 / threads) / BETWEEN_CORES, 0.0)

    def _again(self, nodes: np.ndarray, turns: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
        """Bytes that `turns` rounds of the loops `nodes` bring in, if what their bodies touch stays until the next one:
        lines that neighbouring rounds share (overlapping windows, parts of a line) come once. Of every access its share
        counts, if given."""
        g = self.g
        owner, child, others = g.owner[nodes], g.child[nodes], self.varies[g.axis[nodes]].T
        new = np.minimum(1.0, self.lines[owner] / (self.lines[child] * g.count[nodes][:, None])).T
        touched = (self.print[child] if shares is None else self.print[child] * shares).T
        return reduce(np.add, (t * np.where(o, turns * n, 1.0) for t, o, n in zip(touched, others, new, strict=True)))

    def _moved(
        self, nodes: np.ndarray, inner: np.ndarray, level: int, turns: np.ndarray, again: np.ndarray
    ) -> np.ndarray:
        """Bytes into a cache over `turns` rounds of the loops `nodes`, whose bodies move `inner` bytes each, or `again`
        all together where the cache holds what they touch."""
        g = self.g
        owner, child = g.owner[nodes], g.child[nodes]
        whole = self.whole[owner]
        whole = np.where(turns == g.count[nodes], whole, np.minimum(again, whole))  # a thread's part of the block
        capacity = self.t.caches[level] * WARM
        moved = np.where((self.whole[child] <= capacity)[:, None], again[:, None], turns[:, None] * inner)
        return np.where((whole <= capacity)[:, None], whole[:, None], moved)

    def _leaves(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Vector axis of each leaf, and number of its intrinsic (-1: vectors)."""
        applies, axis = self.g.op[nodes] == INTRIN, self.g.axis[nodes]
        lanes = np.array([f.vector for f in self.rates.space.fits] or [-1])
        fit = np.where(applies, axis, -1)
        return np.where(applies, lanes[fit], axis), fit

    def _leaf_of(self, nodes: np.ndarray) -> np.ndarray:
        """The leaf below unrolled nodes, or a block not opened yet: what their straight-line code consists of."""
        g = self.g
        current = nodes.copy()
        while (inner := ~np.isin(g.op[current], TIPS)).any():
            current = np.where(inner, self._straight[np.maximum(g.child[current], 0)], current)
        return current

    @cached_property
    def _straight(self) -> np.ndarray:
        """For each class, its first e-node of straight-line code (or any, if it has none)."""
        g = self.g
        first = np.zeros(len(g.level), np.int64)
        first[g.owner] = np.arange(g.enodes)
        nodes = np.flatnonzero(np.isin(g.op, TIPS) | ((g.op == FOR) & (g.kind == UNROLL_KIND)))[::-1]
        first[g.owner[nodes]] = nodes
        return first

    def tile(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        g = self.g
        owner, v = g.owner[nodes], g.axis[nodes]
        domain = g.domain[owner]
        partial = self.depth[owner] < self.full_depth
        again = self.rates.vectors(domain, v) * (1 / self.t.loads_per_cycle + 1 / self.t.stores_per_cycle)
        out = body.copy(order="K")
        out[:, :, 5] = 0.0
        out[:, :, 0] += (self.rates.finish(domain, v, g.inside[owner]) + np.where(partial, again, 0.0))[:, None]
        return out

    def cat(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        out = first + second
        out[..., 4] = np.maximum(first, second)[..., 4]
        return out

    def seq(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Two stages over a block: what fits a cache all together comes in once."""
        out = self.cat(nodes, first, second)
        whole = self.whole[self.g.owner[nodes]]
        for level in range(3):
            fits = whole <= self.t.caches[level] * WARM
            once = np.minimum(out[:, :, level + 1], whole[:, None])
            out[:, :, level + 1] = np.where(fits[:, None], once, out[:, :, level + 1])
        kept = (whole <= self.t.caches[2] * WARM)[:, None, None]
        out[:, :, STATE:] = np.where(kept, np.maximum(first, second), out)[:, :, STATE:]
        return out

    def stage(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        return body

    def store(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        """Lines that are stored through the caches are brought in first."""
        g, out = self.g, body.copy(order="K")
        cached = self.print[g.owner[nodes], self.written] * (g.kind[nodes] == THROUGH_CACHES)
        out[:, :, 3] += cached[:, None] / np.minimum(np.maximum(body[:, :, 4], 1.0), SHARED_MEMORY)
        return out

    def score(self, owners: np.ndarray, states: np.ndarray) -> np.ndarray:
        return _seconds(self.t, *self._warm(states, self.whole[owners, None]))

    def total(self, state: np.ndarray) -> float:
        """Seconds of a whole nest whose operands lie in the smallest cache that holds them."""
        return float(_seconds(self.t, *self._warm(state, self.whole[self.g.root])))

    def _warm(self, states: np.ndarray, touched: np.ndarray) -> list[np.ndarray]:
        """(cycles, bytes into L1, into L2, into L3) of nests over blocks that touch so many bytes: without the traffic
        of operands that a cache holds, as it holds those of the whole kernel; with what waiting for memory adds."""
        warm, whole = [states[..., k] for k in range(4)], float(self.whole[self.g.root])
        threads = np.maximum(states[..., 4], 1.0)  # the rows of nests not found yet are zero
        for level, sharing in ((1, threads), (2, np.minimum(threads, SHARED_MEMORY))):
            if whole <= self.t.caches[level] * 1.5:
                missing = touched * cold(whole, self.t.caches[level]) / sharing
                warm[level + 1] = np.minimum(warm[level + 1], missing)
        if self.streams is not None:
            streams = reduce(np.add, (states[..., k] for k in range(STATE, states.shape[-1])))
            begun = np.minimum(START * streams, BROKEN * states[..., 3])
            warm[3] = warm[3] + self.missing * (begun + self.stored * states[..., -1])
        return warm


def _read(kernel: LoopKernel, s: Scalar | None, read: Read, padded: dict[Axis, LoopAxis]) -> Access:
    """A read of an expression, with the tests that it stands under."""
    around = [n for n in walk(s) if isinstance(n, When) and read in walk(n.then)] if s is not None else []
    tests = tuple(_test(kernel, b, padded) for n in around for b in n.bounds)
    return replace(access(kernel, read.index[0], read.dtype), tests=tests)


def _test(kernel: LoopKernel, bound: Bound, padded: dict[Axis, LoopAxis]) -> BoundsTest:
    index, lo, hi = bound
    clear: int | None = None
    found = border(kernel, *bound)
    if found is not None and (found[0] in padded or not any(found[1:])):
        clear = sum(1 << padded[found[0]].bit + end for end, width in enumerate(found[1:]) if width)
    if not index.is_affine:
        return BoundsTest((), (), clear)
    axes = [k for k, a in enumerate(kernel.axes) if a in index.axes]
    steps = {k: index.coefficient(kernel.axes[k]) for k in axes}
    values = np.full(1, index.constant)
    for k in axes:
        values = np.add.outer(values, steps[k] * np.arange(kernel.extents[k])).reshape(-1)
    share = float(((values >= lo) & (values < hi)).mean())
    skips = bound in kernel.paddings
    looped = [k for k in axes if k >= len(kernel.spatial) and steps[k] > 0]
    extents = tuple(kernel.extents[k] for k in axes)
    return BoundsTest(
        tuple(axes), extents, clear, looped[-1] if skips and looped else -1, share, skips,
        tuple(steps.values()), index.constant, lo, hi,
    )  # fmt: skip


def over_blocks(stage: LoopKernel, blocks: np.ndarray) -> np.ndarray:
    """The extents of a stage over blocks of the shared axes: of its own axes the whole."""
    own = np.array([a.extent for a in stage.axes[blocks.shape[1] :]], np.int64)
    return np.concatenate([blocks, np.broadcast_to(own, (len(blocks), len(own)))], axis=1)


def shared_footprint(
    kernel: StagedKernel, rates: list[Rates], blocks: np.ndarray, scattered: float = SCATTERED
) -> np.ndarray:
    """Bytes of cache lines of every buffer (inputs, output, then all scratch) that the stages touch over blocks of the
    shared axes: of a buffer that several stages read, the most that one of them does."""
    buffers = len(kernel.inputs)
    out = np.zeros((len(blocks), buffers + 2))
    for k, r in zip(kernel.stages, rates, strict=True):
        domain = over_blocks(k, blocks)
        for number, a in r.by_buffer(kernel):
            out[:, number] = np.maximum(out[:, number], footprint(a, domain, scattered))
    points = blocks.prod(axis=1)
    out[:, -1] = np.minimum(points * max(map(kernel.scratch_bytes, kernel.sequences)), kernel.room)
    return out


class _FrameScorer(Scorer):
    """The loops around all stages, which share their buffers."""

    written = -2  # before the scratch

    def __init__(self, egraph: LoopEGraph, kernel: StagedKernel, rates: list[Rates], target: Target, threads: int):
        self.stage_rates, self.shared, self.sequences = rates, len(kernel.shared), kernel.sequences
        super().__init__(replace(egraph, kernel=kernel.frame), target, threads, kernel)
        axes = self.shared
        self.print = shared_footprint(kernel, rates, egraph.domain[:, :axes])
        self.lines = shared_footprint(kernel, rates, egraph.domain[:, :axes], 1.0)
        self.near = None
        self.varies = np.zeros((max(axes, 1), self.print.shape[1]), bool)
        for r in rates:
            for number, a in r.by_buffer(kernel):
                self.varies[:axes, number] |= a.strides[:axes] != 0
        self.whole = self.print.sum(axis=1)
        self.in_vectors = np.arange(self.print.shape[1]) < len(kernel.inputs)

    def _streams(self, whole: Lowered) -> Streams:
        assert isinstance(whole, StagedKernel)
        blocks, buffers = self.g.domain[:, : len(whole.shared)], len(whole.inputs) + 1
        parts = [Streams.of(r.by_buffer(whole), over_blocks(r.kernel, blocks), buffers) for r in self.stage_rates]
        return Streams.joined(parts, blocks.shape[1])

    def _hoped(self, nodes: np.ndarray) -> np.ndarray:
        blocks = self.g.domain[self.g.owner[nodes]][:, : self.shared]
        nowhere = np.zeros(len(blocks), np.int64)
        stages = np.stack([tiled_cycles(r, over_blocks(r.kernel, blocks), nowhere) for r in self.stage_rates])
        return np.stack([stages[list(q)].sum(axis=0) for q in self.sequences]).min(axis=0)


class StagedScorer:
    """The roofline on the e-graph of a kernel of several stages: a scorer for each, and one for what is around them."""

    def __init__(self, egraph: LoopEGraph, target: Target, threads: int) -> None:
        kernel = egraph.kernel
        assert isinstance(kernel, StagedKernel)
        self.g, self.t = egraph, target
        self.parts: dict[int, Scorer] = {}
        for n, k in enumerate(kernel.stages):
            own = replace(egraph, kernel=k, domain=egraph.domain[:, : len(k.axes)])
            self.parts[n] = Scorer(own, target, threads, kernel)
        rates = [s.rates for s in self.parts.values()]
        self.parts[ALL] = _FrameScorer(egraph, kernel, rates, target, threads)
        self.width = self.parts[ALL].width

    def _by_stage(self, nodes: np.ndarray, step: str, *states: np.ndarray) -> np.ndarray:
        """Each node by the scorer of its class's stage."""
        stage = self.g.stage[self.g.owner[nodes]]
        shape = states[0].shape if states else (len(nodes), self.width)
        out = np.zeros(shape)
        for n in np.unique(stage):
            here = stage == n
            out[here] = getattr(self.parts[int(n)], step)(nodes[here], *(s[here] for s in states))
        return out

    def leaf(self, nodes: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "leaf")

    def unopened(self, nodes: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "unopened")

    def loop(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "loop", body)

    def tile(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "tile", body)

    def cat(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "cat", first, second)

    def seq(self, nodes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "seq", first, second)

    def stage(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        return body

    def store(self, nodes: np.ndarray, body: np.ndarray) -> np.ndarray:
        return self._by_stage(nodes, "store", body)

    def score(self, owners: np.ndarray, states: np.ndarray) -> np.ndarray:
        return self.parts[ALL].score(owners, states)

    def total(self, state: np.ndarray) -> float:
        return self.parts[ALL].total(state)
