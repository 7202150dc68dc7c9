"""The shipped rules of loop programs: tiling, order, tails, register tiles, vectors, intrinsics, unrolling, threads.

There is no interchange rule: all orders and all multi-level tilings share the Block e-classes, because peeling any
axis first is a rule for every axis.
"""

from __future__ import annotations

import math

from ..ir.loops import CHAIN
from .loop_language import (
    ALL,
    Block,
    Cat,
    Fit,
    For,
    Intrin,
    LoopAxis,
    LoopRule,
    Seq,
    Size,
    Space,
    Store,
    Tile,
    Vec,
    loop_rule,
)

#: Partial results that a cut reduction may keep on the stack (64 KiB of float32).
PARTIAL_RESULTS = 16384
#: Vectors of a reduction axis that straight-line code takes at a time, each with accumulators of its own.
ABREAST = 4


def _threaded(s: Space) -> bool:
    return s.threads > 1


@loop_rule("stores", phase="store", over="none", when=lambda s: s.overflows)
def store_through_caches(b: Block, a: None) -> str:
    """Block(e) -> Store(cached, Block(e)): lines to be written are brought into the caches first"""
    return Store("cached", b.into("parallel"))


@loop_rule("stores", phase="store", over="none", when=lambda s: s.overflows)
def store_past_caches(b: Block, a: None) -> str:
    """Block(e) -> Store(streamed, Block(e)) where no cache holds the results until they are read again"""
    return Store("streamed", b.into("parallel"))


@loop_rule("parallel", phase="parallel", over="spatial", when=_threaded)
def peel_parallel(b: Block, a: LoopAxis) -> str:
    """Block(e) -> parallel For(a, e_a/f, Block(e with e_a := f))"""
    f, trips = b.factor(a)
    return For(a, trips, "parallel", b.resized(a, f).into(b.space.serial_phase))


@loop_rule("parallel", phase="parallel", over="none")
def run_serially(b: Block, a: None) -> Block:
    """A kernel need not be parallel."""
    return b.into(b.space.serial_phase)


@loop_rule("prefetch", phase="ahead", over="spatial", when=lambda s: s.distant)
def fetch_ahead(b: Block, a: LoopAxis) -> str:
    """Block(e) -> ahead For(a, e_a/f, Block(e with e_a := f)): operands of an iteration are fetched during the last"""
    f, trips = b.factor(a)
    return For(a, trips, "ahead", b.resized(a, f).into("serial"))


@loop_rule("prefetch", phase="ahead", over="none", when=lambda s: s.distant)
def fetch_when_read(b: Block, a: None) -> Block:
    """Nothing need be fetched ahead."""
    return b.into("serial")


@loop_rule("tiling", phase="serial", over="spatial")
def peel(b: Block, a: LoopAxis) -> str:
    """Block(e) -> For(a, e_a/f, Block(e with e_a := f)) for every factor f of e_a"""
    f, trips = b.factor(a)
    return For(a, trips, "serial", b.resized(a, f))


@loop_rule("tiling", phase="serial", over="reduced", when=lambda s: s.blocks_reduction)
def block_reduction(b: Block, a: LoopAxis) -> str:
    """A reduction axis is cut outside the register tile: partial results wait on the stack between the pieces."""
    f, trips = b.factor(a)
    b.require(b.product(b.space.spatial) <= PARTIAL_RESULTS)
    return For(a, trips, "serial", b.resized(a, f))


@loop_rule("tiling", phase="serial", over="reduced", when=lambda s: any(a.part for a in s.axes))
def part_reduction(b: Block, a: LoopAxis) -> str:
    """Block(n) -> Cat(a, q, Block(q), Block(n - q)) along a reduction axis without good factors, outside the register
    tile: partial results wait on the stack between the parts."""
    q, rest = b.cut(a)
    b.require(q.equals(a.part), b.product(b.space.spatial) <= PARTIAL_RESULTS)
    return Cat(a, q, b.resized(a, q), b.resized(a, rest))


@loop_rule("tiling", phase="serial", over="spatial")
def cut_tail(b: Block, a: LoopAxis) -> str:
    """Block(n) -> Cat(a, q, Block(q), Block(n - q)) where n has no good factors: a main part and a tail"""
    q, rest = b.cut(a)
    return Cat(a, q, b.resized(a, q), b.resized(a, rest))


@loop_rule("tiling", phase="serial", over="padded", when=lambda s: any(a.below for a in s.axes))
def cut_lower_border(b: Block, a: LoopAxis) -> str:
    """Block(n) -> Cat(a, f, Block(f), Block(n - f)) at the first indices of a padded axis: the rest needs no test"""
    f = b.border(a)
    b.require(b.extent(a).equals(a.extent), b.touches(a.bit), Size.of(a.below) > 0)
    return Cat(a, f, b.resized(a, f), b.resized(a, b.extent(a) - f).clear_of(a.bit))


@loop_rule("tiling", phase="serial", over="padded", when=lambda s: any(a.above for a in s.axes))
def cut_upper_border(b: Block, a: LoopAxis) -> str:
    """Block(n) -> Cat(a, n - f, Block(n - f), Block(f)) at the last indices of a padded axis, after its first ones"""
    f = b.border(a)
    whole = Size.of(a.extent) - f if a.below else Size.of(a.extent)
    b.require(b.extent(a).equals(whole), b.touches(a.bit + 1), Size.of(a.above) > 0)
    if a.below:
        b.require((b.inside // (1 << a.bit) % 2).equals(1))
    rest = b.extent(a) - f
    return Cat(a, rest, b.resized(a, rest).clear_of(a.bit + 1), b.resized(a, f))


@loop_rule("vectorize", phase="serial", over="contiguous")
def tile_registers(b: Block, a: LoopAxis) -> str:
    """Block(e) -> Tile(a, Block(e)): one accumulator a result, in vectors along `a`, if the registers hold them all"""
    s = b.space
    vectors = (b.extent(a) + (s.lanes - 1)) // s.lanes
    others = b.product([x for x in s.spatial if x != a])
    b.require(others * vectors + vectors + 1 <= s.registers)
    _limit_chain(b, 1)
    return Tile(a, b.into("tile", vector=a))


def _limit_chain(b: Block, accumulators: int) -> None:
    """A tile takes so much of a long sum that each of a result's accumulators takes `Space.chain` terms at most, and
    that there are not many more pieces than that."""
    s = b.space
    if s.chain:
        most = s.chain * accumulators
        depth = math.prod(a.extent for a in s.reduced)
        b.require(b.product(s.reduced) <= most)
        b.require(b.product(s.reduced) >= min(most, -(-depth // CHAIN)))


@loop_rule("vectorize", phase="serial", over="walked")
def tile_lanes(b: Block, a: LoopAxis) -> str:
    """Block(e) -> Tile(a, Block(e)) along a reduction axis: each lane reduces its share, the lanes are combined last"""
    b.require(b.product(b.space.spatial) + 2 <= b.space.registers)
    _limit_chain(b, ABREAST * b.space.lanes)
    return Tile(a, b.into("tile", vector=a))


@loop_rule("tiling", phase="serial", over="sequence")
def run_stages(b: Block, q: tuple[tuple[int, ...], int]) -> str:
    """Block(all stages) -> Seq(Stage 0, Stage 1, …) over the block, if what they leave each other fits the scratch"""
    stages, scratch = q
    b.require(b.product(b.space.axes) * scratch <= b.space.scratch)
    return Seq([b.of_stage(n) for n in stages])


@loop_rule("vectorize", phase="serial", over="none", when=lambda s: not s.spatial and s.stage != ALL)
def tile_scalar(b: Block, a: None) -> str:
    """A kernel with a single result keeps it in a register."""
    _limit_chain(b, 1)
    return Tile(None, b.into("tile"))


@loop_rule("tiling", phase="tile", over="reduced")
def peel_reduction(b: Block, a: LoopAxis) -> str:
    """Block(e) -> For(a, e_a/f, Block(e with e_a := f)) around results held in registers"""
    f, trips = b.factor(a)
    return For(a, trips, "serial", b.resized(a, f))


@loop_rule("tiling", phase="tile", over="walked")
def cut_reduction(b: Block, a: LoopAxis) -> str:
    """Block(n) -> Cat(a, q, Block(q), Block(n - q)) along the vectors: whole ones, and a tail for their first lanes"""
    b.require(b.vector.equals(a.number))
    q, rest = b.cut(a)
    return Cat(a, q, b.resized(a, q), b.resized(a, rest))


@loop_rule("unroll", phase="tile", over="none")
def unroll_rest(b: Block, a: None) -> Block:
    """The rest of the tile becomes straight-line code, if that is short."""
    b.require(b.product(b.space.axes) <= b.space.unroll * b.space.lanes)
    b.require(b.product(b.space.reduced) <= b.space.lanes)
    return b.into("unroll")


@loop_rule("unroll", phase="tile", over="walked")
def unroll_lanes(b: Block, a: LoopAxis) -> Block:
    """A tile vectorised along a reduction axis unrolls a few vectors of it, each with accumulators of its own."""
    s = b.space
    vectors = (b.extent(a) + (s.lanes - 1)) // s.lanes
    b.require(b.vector.equals(a.number), b.product(s.axes) <= s.unroll * s.lanes)
    b.require(b.product(s.reduced) <= ABREAST * s.lanes, b.product(s.spatial) * vectors + 2 <= s.registers)
    return b.into("unroll")


@loop_rule("unroll", phase="unroll")
def unroll(b: Block, a: LoopAxis) -> str:
    """Block(e) -> unrolled For(a, e_a, Block(e with e_a := 1)) for an axis that is not the vector axis"""
    e = b.extent(a)
    b.require(e > 1, b.vector.differs(a.number), *_in_order(b, a))
    return For(a, e, "unroll", b.resized(a, 1))


def _in_order(b: Block, a: LoopAxis) -> list[str]:
    """What comes before `a` in the order of unrolled loops is unrolled already, in which results that share an
    operand's vector stand together; the order depends on the axis of the vectors."""
    orders = {v: b.space.unrolled(v) for v in (-1, *(x.number for x in b.space.axes if x.contiguous))}
    out = []
    for x in b.space.axes:
        after = {v for v, order in orders.items() if order.index(x) >= order.index(a)}
        if len(after) < len(orders):
            others = [b.vector - v for v in sorted(after | {x.number})]
            out.append(math.prod((d * d for d in others), start=b.extent(x) - 1) <= 0)
    return out


@loop_rule("vectorize", phase="unroll")
def split_vectors(b: Block, a: LoopAxis) -> str:
    """Block(n) -> unrolled For(a, n/f, Vec(f)): a row of several vectors"""
    s = b.space
    b.require(b.vector.equals(a.number), *(b.extent(x).equals(1) for x in s.axes if x != a))
    f, trips = b.factor(a)
    b.require(b.extent(a) > s.lanes, f <= s.lanes, trips.equals((b.extent(a) + (s.lanes - 1)) // s.lanes))
    return For(a, trips, "unroll", b.resized(a, f))


@loop_rule("vectorize", phase="unroll")
def vectorize(b: Block, a: LoopAxis) -> str:
    """Block(n) -> Vec(a, n) if n lanes fit a register"""
    s = b.space
    b.require(b.vector.equals(a.number), *(b.extent(x).equals(1) for x in s.axes if x != a))
    b.require(b.extent(a) <= s.lanes)
    return Vec(b, a.number, b.extent(a))


@loop_rule("vectorize", phase="unroll", over="none", when=lambda s: not s.spatial)
def point(b: Block, a: None) -> str:
    """Block(1, …, 1) -> one scalar operation"""
    b.require(b.vector.equals(-1), *(b.extent(x).equals(1) for x in b.space.axes))
    return Vec(b, -1, 1)


@loop_rule("tensorize", phase="serial", over="fitted")
def tensorize(b: Block, f: Fit) -> str:
    """Block(e) -> Tile(lanes, Block(e)) of an intrinsic that computes the update, where e is a multiple of its depth"""
    s = b.space
    lanes = s.axes[f.vector]
    vectors = (b.extent(lanes) + (f.lanes - 1)) // f.lanes
    others = b.product([x for x in s.spatial if x != lanes])
    b.require(others * vectors + vectors + 1 <= s.registers)
    b.require(*((b.extent(a) % f.step(a)).equals(0) for a in s.reduced if f.step(a) > 1))
    return Tile(lanes, b.into("tensor", vector=lanes, fit=f))


@loop_rule("tiling", phase="tensor", over="reduced")
def peel_applications(b: Block, a: LoopAxis) -> str:
    """Block(e) -> For(a, e_a/f, Block(e with e_a := f)) around results held in registers, f a multiple of the depth"""
    f, trips = b.factor(a)
    b.require((f % b.applied.step(a)).equals(0))
    return For(a, trips, "serial", b.resized(a, f))


@loop_rule("unroll", phase="tensor")
def unroll_applications(b: Block, a: LoopAxis) -> str:
    """Block(e) -> unrolled For(a, e_a/n, Block(e with e_a := n)), n what the intrinsic takes, if the code is short"""
    s, f = b.space, b.applied
    if a.number == f.vector:
        return _unroll_lanes_of(b, a)
    order = [x for x in s.unrolled(f.vector) if x.number != f.vector]
    b.require(b.extent(a) > f.step(a), *(b.extent(x).equals(f.step(x)) for x in order[: order.index(a)]))
    b.require(b.product(s.axes) <= s.unroll * s.lanes * f.depth, b.product(s.reduced) <= s.lanes * f.depth)
    return For(a, b.extent(a) // f.step(a), "unroll", b.resized(a, f.step(a)))


def _unroll_lanes_of(b: Block, a: LoopAxis) -> str:
    """The axis of the lanes, last: as few applications as there can be, of equal numbers of lanes."""
    lanes = b.applied.lanes
    f, trips = b.factor(a)
    b.require(*_only(b), b.extent(a) > lanes, f <= lanes, trips.equals((b.extent(a) + (lanes - 1)) // lanes))
    return For(a, trips, "unroll", b.resized(a, f))


def _only(b: Block) -> list[str]:
    """Beside the lanes, the block is what one application takes."""
    return [b.extent(x).equals(b.applied.step(x)) for x in b.space.axes if x.number != b.applied.vector]


@loop_rule("tensorize", phase="tensor", over="none")
def apply_intrinsic(b: Block, _: None) -> str:
    """Block(n, depth) -> one application of the intrinsic, if it has n lanes (those that are too many are dropped)"""
    lanes = b.extent(b.space.axes[b.applied.vector])
    b.require(*_only(b), lanes <= b.applied.lanes)
    return Intrin(b, lanes)


LOOP_RULES: tuple[LoopRule, ...] = (
    store_through_caches,
    store_past_caches,
    peel_parallel,
    run_serially,
    fetch_ahead,
    fetch_when_read,
    peel,
    block_reduction,
    part_reduction,
    cut_tail,
    cut_lower_border,
    cut_upper_border,
    tile_registers,
    tile_lanes,
    run_stages,
    tile_scalar,
    peel_reduction,
    cut_reduction,
    unroll_rest,
    unroll_lanes,
    unroll,
    split_vectors,
    vectorize,
    point,
    tensorize,
    peel_applications,
    unroll_applications,
    apply_intrinsic,
)
