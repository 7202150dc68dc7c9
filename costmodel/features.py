"""Features of partial nests for the learned cost model: fixed in number, and the same for every kernel.

Per loop level and per buffer, as AutoTVM describes them (Chen et al., "Learning to Optimize Tensor Programs", NeurIPS
2018): how long the loop is and of what kind, what its body touches of every buffer, with which stride the buffer is
walked, how often the whole block is entered. Besides: the register tile, how full its vectors are, the epilogue's
share, the machine, and the roofline's own terms, because the model learns a correction to the roofline.

They are gathered bottom-up, as extraction goes (`extract/costmodel.py: NotingScorer`). What a nest's features need of
its parts is a row of notes (`NOTES`: the register tile, then the loops around it, the innermost first); the features
of a partial nest are its notes and what its block and the roofline's state say of it (`FEATURES`). Quantities of many
magnitudes are logarithms to base 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ..extract.beam import Sweep
from ..extract.costmodel import NestScorer
from ..ir.loops import Lowered, StagedKernel
from ..ir.nest import Nest
from ..ir.target import Target
from ..rewrite.loop_egraph import CAT, FOR, LEAVES, SEQ, TILE, LoopEGraph, of_nests
from ..rewrite.loop_language import ALL
from .roofline import PARALLEL_KIND, UNROLL_KIND, Access, Roofline, Scorer, StagedScorer, seconds

#: Loop levels told apart, from the innermost; those farther out are taken together with the last.
LEVELS = 7
#: Buffers told apart at a level: the result, then the operands of the largest footprints.
BUFFERS = ("out", "first", "second")

_TILE = (
    "operations", "along_lanes", "rows", "lane_use", "depth", "contiguous", "repeated", "gathered", "tested",
    "split", "intrinsic", "across", "arithmetic_share", "loads_share", "latency_share", "registers", "finish_share",
    "pressure", "instructions", "partial", "scattered_out", "tiled",
)  # fmt: skip
_LEVEL = (
    "trips", "reduces", "parallel", "in_registers", "outer_trips", "touched",
    *(f"{what}_{b}" for b in BUFFERS for what in ("touched", "stride")),
)  # fmt: skip
_SHAPE = ("loops", "cuts", "cut_share", "stages", "leaf_lanes", "loops_in_unrolled", "split_in_registers")
_BLOCK = (
    "points", "slack", "cycles_share", "l2_share", "l3_share", "memory_share", "l2_bytes", "l3_bytes", "memory_bytes",
    "whole_bytes", "whole_l1", "whole_l2", "whole_l3", "of_kernel", "epilogue_cost", "update_cost", "reduction_depth",
    "accesses", "element", "is_map",
)  # fmt: skip
_MACHINE = (
    "threads", "vector_bytes", "register_count", "fma", "load_ports", "store_ports", "latency", "l1", "l2", "l3",
    "l2_rate", "l3_rate", "memory_rate",
)  # fmt: skip

_NESTS = (*_TILE, *_SHAPE, *(f"loop{k}_{name}" for k in range(LEVELS) for name in _LEVEL))
#: What is noted besides is no feature: which axis the last loop was over (one more than its number).
NOTES = (*_NESTS, "axis")
FEATURES = (*_NESTS, *_BLOCK, *_MACHINE)
#: Names the features; weights say which they were trained on.
VERSION = hashlib.blake2b(" ".join(("2", *FEATURES)).encode(), digest_size=6).hexdigest()

_AT = {name: k for k, name in enumerate(NOTES)}
_FIRST_LOOP = _AT["loop0_trips"]
#: The note that every nest has which ends in a vector operation.
LEAF_LANES = _AT["leaf_lanes"]


class FeatureScorer:
    """The roofline on an e-graph, with notes of every partial nest and features from them. A `NotingScorer`.

    `refine` gives the roofline's own seconds; `mlp.LearnedScorer` corrects them.
    """

    notes = len(NOTES)

    def __init__(self, egraph: LoopEGraph, target: Target, threads: int) -> None:
        self.g, self.t = egraph, target
        self.base: NestScorer = Roofline(target, threads).scorer(egraph)
        self.width = self.base.width
        self.leaf, self.loop, self.tile = self.base.leaf, self.base.loop, self.base.tile
        self.cat, self.seq, self.stage = self.base.cat, self.base.seq, self.base.stage
        self.store, self.unopened = self.base.store, self.base.unopened
        self.score, self.total = self.base.score, self.base.total
        parts = self.base.parts if isinstance(self.base, StagedScorer) else {egraph.space.stage: self.base}
        assert all(isinstance(p, Scorer) for p in parts.values())
        self._parts = {n: _Part(p, egraph, n) for n, p in parts.items()}
        self._machine = machine_features(target, threads)

    def note(
        self,
        nodes: np.ndarray,
        states: np.ndarray,
        below: np.ndarray,
        beside: np.ndarray,
        dearer: np.ndarray,
    ) -> np.ndarray:
        """Notes of partial nests, shape (n, notes): of e-nodes `nodes` in these states, over parts with the notes
        `below` and `beside`. `dearer`: the first part costs more than the second."""
        g = self.g
        out = np.where(dearer[:, None], below, beside)
        stage = g.stage[g.owner[nodes]]
        for n in np.unique(stage):
            here = np.flatnonzero(stage == n)
            self._parts[int(n)].note(nodes[here], states[here], out, here)
        joins = np.isin(g.op[nodes], (CAT, SEQ))
        if joins.any():
            for name, op in (("cuts", CAT), ("stages", SEQ)):
                k = _AT[name]
                both = below[:, k] + beside[:, k] + (g.op[nodes] == op)
                out[joins, k] = both[joins]
        return out

    def features(self, owners: np.ndarray, states: np.ndarray, notes: np.ndarray) -> np.ndarray:
        """Features of partial nests of the e-classes `owners`, shape (n, len(FEATURES)), float32."""
        block = np.zeros((len(owners), len(_BLOCK)), np.float32)
        stage = self.g.stage[owners]
        for n in np.unique(stage):
            here = stage == n
            block[here] = self._parts[int(n)].block(owners[here], states[here])
        mine = notes[:, : len(_NESTS)]
        return np.concatenate([mine, block, np.broadcast_to(self._machine, (len(owners), len(_MACHINE)))], axis=1)

    def refine(self, owners: np.ndarray, states: np.ndarray, notes: np.ndarray) -> np.ndarray:
        """Predicted seconds of partial nests, shape (n,)."""
        return self.score(owners, states[:, None, :])[:, 0]


class _Part:
    """Notes and features in one stage of a kernel (or around all stages)."""

    def __init__(self, scorer: Scorer, egraph: LoopEGraph, stage: int) -> None:
        self.s, self.g, self.rates = scorer, egraph, scorer.rates
        self.kernel = scorer.rates.kernel
        axes = len(self.kernel.axes)
        self.domain = egraph.domain[:, :axes]
        mine = scorer.print[egraph.stage == stage] if stage != ALL else scorer.print
        written = scorer.written % scorer.print.shape[1]
        largest = np.argsort(-mine.max(axis=0, initial=0.0), kind="stable")
        self.columns = [written, *(int(c) for c in largest if c != written)][: len(BUFFERS)]
        frame = isinstance(egraph.kernel, StagedKernel) and stage == ALL
        self.strides = scorer.varies * 64.0 if frame else np.stack([a.strides for a in self.rates.accesses], axis=1)
        self.points = self.domain.prod(axis=1, dtype=float)
        self.all_points = float(np.prod([a.extent for a in self.kernel.axes], initial=1.0))
        self.ideal = max(self.rates.update_cost if self.kernel.update is not None else self.rates.epilogue_cost, 0.5)

    def note(self, nodes: np.ndarray, states: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        """Complete `out[rows]`, which holds the notes of the nodes' first parts."""
        g = self.g
        op, kind, entered = g.op[nodes], g.kind[nodes], g.entered[g.owner[nodes]]
        leaves, unrolled = np.isin(op, LEAVES), (op == FOR) & (kind == UNROLL_KIND)
        straight = leaves | unrolled
        out[rows[leaves], _AT["leaf_lanes"]] = g.count[nodes[leaves]] / self.rates.lanes
        around = rows[unrolled]
        out[around, _AT["loops_in_unrolled"]] = np.maximum(
            out[around, _AT["loops_in_unrolled"]], out[around, _AT["loops"]]
        )
        if (top := straight & entered).any():
            out[rows[top], : _AT["partial"]] = self._region(nodes[top])
        if (tiles := op == TILE).any():
            self._tile(nodes[tiles], states[tiles], out, rows[tiles])
        if (loops := (op == FOR) & ~straight).any():
            self._loop(nodes[loops], out, rows[loops])
        if (cuts := op == CAT).any():
            small = self.points[g.other[nodes[cuts]]] / self.points[g.owner[nodes[cuts]]]
            out[rows[cuts], _AT["cut_share"]] = np.minimum(small, 1 - small)

    def _region(self, nodes: np.ndarray) -> np.ndarray:
        """The straight-line code that begins at these nodes: the first columns of the notes."""
        r, g = self.rates, self.g
        at = g.owner[nodes]
        domain, inside = self.domain[at], g.inside[at]
        v, fit = self.s._leaves(self.s._leaf_of(nodes))
        along = r._along(domain, v)
        rows = r._others(domain, v, np.ones(domain.shape[1], bool))
        vectors = -(-along // r.lanes)
        operations, depth = rows * vectors, domain[:, r.spatial :].prod(axis=1)
        loads = np.zeros((3, len(nodes)))
        tested, split, cycles = np.zeros(len(nodes)), np.zeros(len(nodes)), np.zeros(len(nodes))
        for a in r.updates if self.kernel.update is not None else r.extras:
            count = r._others(domain, v, a.strides != 0)
            stride = a.strides[np.maximum(v, 0)] if len(a.strides) else np.zeros(len(v))
            stride = np.where(v >= 0, stride, 0)
            kinds = stride == a.size, stride == 0, (stride != 0) & (stride != a.size)
            for k, (which, each) in enumerate(zip(kinds, (vectors, 1, along), strict=True)):
                loads[k] += np.where(which, count * each, 0.0)
            tested += _tested(a, inside)
            split += a.splits(self.s.t.vector_bytes)
            cycles += r.loads(a, domain, v, inside)
        arithmetic = operations * self.ideal / self.s.t.fma_per_cycle
        latency = self.s.t.latency * np.where(v >= r.spatial, depth / np.maximum(along, 1), depth)
        whole = np.maximum(arithmetic, 1e-3)
        # What straight-line code may want to hold at once: its results, every vector it loads, and one operand beside.
        held = r.vectors(domain, v) + loads[0] + 1
        instructions = operations * self.ideal + loads.sum(axis=0) * (1 + tested)
        columns = (
            _log(operations), _log(along / r.lanes), _log(rows), along / (vectors * r.lanes), _log(depth),
            *map(_log, loads + 1), tested, split, fit >= 0, v >= r.spatial, _log(arithmetic),
            _log(cycles / whole + 0.01), _log(latency / whole + 0.01), r.vectors(domain, v) / self.s.t.registers,
            np.zeros(len(nodes)), _log(held / self.s.t.registers), _log(instructions),
        )  # fmt: skip
        return np.stack(columns, axis=1)

    def _tile(self, nodes: np.ndarray, states: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        r, g = self.rates, self.g
        owner, v = g.owner[nodes], g.axis[nodes]
        domain = self.domain[owner]
        finish = r.finish(domain, v, g.inside[owner])
        out_stride = np.where(v >= 0, r.out.strides[np.maximum(v, 0)], 0) if len(r.out.strides) else np.zeros(len(v))
        out[rows, _AT["registers"]] = r.vectors(domain, v) / self.s.t.registers
        out[rows, _AT["finish_share"]] = finish / np.maximum(states[:, 0], 1e-3)
        out[rows, _AT["partial"]] = self.s.depth[owner] < self.s.full_depth
        out[rows, _AT["scattered_out"]] = out_stride != r.out.size
        out[rows, _AT["tiled"]] = 1.0
        out[rows, _AT["axis"]] = 0.0

    def _loop(self, nodes: np.ndarray, out: np.ndarray, rows: np.ndarray) -> None:
        s, g = self.s, self.g
        owner, child, axis = g.owner[nodes], g.child[nodes], g.axis[nodes]
        level = np.minimum(out[rows, _AT["loops"]], LEVELS - 1).astype(np.int64)
        first = _FIRST_LOOP + level * len(_LEVEL)
        columns = [
            _log(g.count[nodes]) + out[rows, first], axis >= self.rates.spatial, g.kind[nodes] == PARALLEL_KIND,
            out[rows, _AT["tiled"]] == 0, _log(self.all_points / self.points[owner]), _log(s.whole[child]),
        ]  # fmt: skip
        for k in range(len(BUFFERS)):
            if k < len(self.columns):
                c = self.columns[k]
                columns += [_log(s.print[child, c] + 1), _log(self.strides[axis, c] + 1)]
            else:
                columns += [np.zeros(len(nodes))] * 2
        out[rows[:, None], first[:, None] + np.arange(len(_LEVEL))] = np.stack(columns, axis=1)
        out[rows, _AT["split_in_registers"]] += (out[rows, _AT["axis"]] == axis + 1) & (out[rows, _AT["tiled"]] == 0)
        out[rows, _AT["axis"]] = axis + 1
        out[rows, _AT["loops"]] += 1

    def block(self, owners: np.ndarray, states: np.ndarray) -> np.ndarray:
        """What the block and the roofline say: the columns `_BLOCK`."""
        t, r = self.s.t, self.rates
        whole, n = self.s.whole[owners], len(owners)
        rates = np.array([1.0, *t.bandwidth])
        costs = states[:, :4] / rates
        total = np.maximum(seconds(t, states) * t.ghz * 1e9, 1e-3)
        ideal = self.points[owners] * self.ideal / (r.lanes * t.fma_per_cycle)
        columns = (
            _log(self.points[owners]), _log(total / ideal), *(_log(costs[:, k] / total + 1e-3) for k in range(4)),
            *(_log(states[:, k] + 1) for k in (1, 2, 3)), _log(whole), *(_log(whole / c) for c in t.caches),
            _log(self.all_points / self.points[owners]), np.full(n, r.epilogue_cost), np.full(n, r.update_cost),
            np.full(n, np.log2(self.s.full_depth)), np.full(n, len(r.accesses)), np.full(n, r.out.size),
            np.full(n, self.kernel.update is None),
        )  # fmt: skip
        return np.stack(columns, axis=1)


def _tested(a: Access, inside: np.ndarray) -> np.ndarray:
    """1 where the bounds of an access are tested in blocks that keep clear of the ends `inside`."""
    if not a.tested:
        return np.zeros(len(inside))
    return np.ones(len(inside)) if a.clear is None else ((inside & a.clear) != a.clear).astype(float)


def _log(x: np.ndarray) -> np.ndarray:
    return np.log2(np.maximum(x, 1e-6))


def machine_features(t: Target, threads: int) -> np.ndarray:
    """What the model is told of the machine: the columns `_MACHINE`."""
    numbers = (
        threads, t.vector_bytes, t.registers, t.fma_per_cycle, t.loads_per_cycle, t.stores_per_cycle, t.latency,
        *t.caches, *t.bandwidth,
    )  # fmt: skip
    return np.log2(np.array(numbers, np.float32))


def describe(
    kernel: Lowered, target: Target, threads: int, nests: Sequence[Nest]
) -> tuple[np.ndarray, np.ndarray]:
    """(features, the roofline's seconds) of whole nests of a kernel: shapes (n, len(FEATURES)) and (n,).

    Raises `NesteggError` if a nest applies an intrinsic that the target lacks.
    """
    egraph, roots = of_nests(kernel, target, threads, nests)
    scorer = FeatureScorer(egraph, target, threads)
    sweep = Sweep(egraph, scorer, width=1)
    sweep.run()
    states, notes = sweep.state[roots, 0], sweep.note[roots, 0]
    # They all cover the root's block; the scorer knows the operands to be warm there only.
    return scorer.features(roots, states, notes), scorer.refine(np.full(len(roots), egraph.root), states, notes)
