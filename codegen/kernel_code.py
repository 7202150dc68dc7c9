"""A kernel and its nest as one LLVM function: loops over memory, register tiles as SSA values, fused epilogues.

Nothing is decided here. Loops, their order, tiles, unrolling and vectors are the nest's; the operators are the
kernel's expressions. Results of a tile are carried through its reduction loops by phis and never touch memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from llvmlite import ir

from ..ir.errors import NesteggError
from ..ir.expr import Bound, Scalar, Weighted
from ..ir.index import Axis
from ..ir.intrinsic import Match, intrinsic, matches
from ..ir.loops import LoopKernel, Lowered, StagedKernel
from ..ir.nest import (
    AHEAD,
    PARALLEL,
    SERIAL,
    STREAMED,
    UNROLL,
    Cat,
    For,
    Intrin,
    Nest,
    Seq,
    Stage,
    Store,
    Tile,
    Vec,
    extents,
    stages,
)
from ..ir.scalars import COMBINERS
from ..ir.target import LINE
from ..ir.types import DTYPES
from .gaps import Gap, gaps
from .llvm_types import (
    I32,
    I64,
    POINTER,
    constant,
    first_lanes,
    lanes_of,
    load,
    memory_type,
    neutral_element,
    offset,
    splat,
    store,
    widened,
)
from .pool import emit_fork_join
from .scalar_code import Position, ScalarCode
from .scalar_ops import emit_scalar
from .transposing import runs_along

#: Bytes of stack that partial results of a cut reduction may take.
STACK_LIMIT = 256 * 1024

Slot = tuple[int, ...]
Accumulators = dict[Slot, ir.Value]


@dataclass(frozen=True)
class Rounds:
    """The rounds `first` to `end - 1` of a loop, one at least; `holding`: bounds tests that hold in all of them."""

    first: ir.Value
    end: ir.Value
    holding: tuple[Bound, ...] = ()

    @staticmethod
    def all(trips: int) -> Rounds:
        return Rounds(ir.Constant(I64, 0), ir.Constant(I64, trips))

    def within(self, at: Position) -> Position:
        """A position in them."""
        return replace(at, holding=(*at.holding, *self.holding))


class KernelCode:
    """Emits `void name(ptr input0, …, ptr output)` into a module."""

    def __init__(
        self, module: ir.Module, name: str, kernel: Lowered, nest: Nest, lanes: int, threads: int = 1
    ) -> None:
        self.whole, self.nest, self.lanes = kernel, nest, lanes
        self.threads, self.forks, self.in_task, self.streamed = threads, 0, False, False
        self.fetching: tuple[int, int] | None = None  # axis and step of the `ahead` loop around this place
        arguments = [POINTER] * (len(kernel.inputs) + 1)
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
        self.function.linkage = "internal"
        for argument in self.function.args:
            argument.add_attribute("noalias")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._enter(kernel.frame if isinstance(kernel, StagedKernel) else kernel, self.function.args)

    def _enter(self, kernel: LoopKernel, buffers: Sequence[ir.Value], streamed: bool = False) -> None:
        """Turn to a kernel, or to a stage of one: what follows are its loops, over its buffers."""
        self.kernel, self.rank, self.spatial = kernel, len(kernel.axes), len(kernel.spatial)
        self.code = ScalarCode(self.builder, kernel, buffers, streamed)
        self.partial: tuple[ir.Value, tuple[int, ...], Position] | None = None

    def emit(self) -> ir.Function:
        if self.kernel.fill is not None:
            self._fill()
        if self.whole.points and self.kernel.out_type.size:
            reads = [self.function.args[r.input] for r in self.code.reads]
            start = Position((*reads, self.function.args[-1]), (None,) * self.rank, (0,) * self.rank, (0,) * self.rank)
            if isinstance(self.nest, Store):
                self._store(self.nest, start)
            else:
                self._memory(self.nest, start)
        self.builder.ret_void()
        return self.function

    def _store(self, nest: Store, start: Position) -> None:
        """Results past the caches, if they begin at a cache line as they should: a caller's own memory may not."""
        if nest.how != STREAMED:
            self._memory(nest.body, start)
            return
        b = self.builder
        place = b.ptrtoint(self.function.args[-1], I64)
        aligned = b.icmp_unsigned("==", b.and_(place, ir.Constant(I64, LINE - 1)), ir.Constant(I64, 0))
        with b.if_else(aligned) as (streamed, cached):
            with streamed:
                self.streamed = self.code.streamed = True
                self._memory(nest.body, start)
                b.fence("seq_cst")
                self.streamed = self.code.streamed = False
            with cached:
                self._memory(nest.body, start)

    # --- loops -------------------------------------------------------------------------------------------------------

    def _loop(
        self,
        rounds: int | Rounds,
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
    ) -> list[ir.Value]:
        """A loop of one round or more; `body(index, values)` returns the next values. Returns the values after the last
        round."""
        rounds = rounds if isinstance(rounds, Rounds) else Rounds.all(rounds)
        b = self.builder
        before = b.block
        head = b.append_basic_block("loop")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        phis = [b.phi(v.type) for v in carried]
        index.add_incoming(rounds.first, before)
        for phi, v in zip(phis, carried, strict=True):
            phi.add_incoming(v, before)
        after = list(body(index, list(phis)))
        following = b.add(index, ir.Constant(I64, 1), flags=("nuw", "nsw"))
        again = b.icmp_unsigned("<", following, rounds.end)
        latch = b.block
        done = b.append_basic_block("done")
        b.cbranch(again, head, done)
        index.add_incoming(following, latch)
        for phi, v in zip(phis, after, strict=True):
            phi.add_incoming(v, latch)
        b.position_at_end(done)
        return after

    def _advance(self, at: Position, axis: int, index: ir.Value, step: int, trips: int) -> Position:
        """The position inside a loop of `trips` over `axis`: pointers and the axis's index move on by index * step."""
        b = self.builder
        a = self.kernel.axes[axis]
        scaled: dict[int, ir.Value] = {}

        def times(k: int) -> ir.Value:
            if k not in scaled:
                scaled[k] = index if k == 1 else b.mul(index, ir.Constant(I64, k))
            return scaled[k]

        pointers = []
        for pointer, (address, dtype) in zip(at.pointers, self.code.accesses, strict=True):
            c = address.coefficient(a) if address.is_affine else 0
            pointers.append(offset(b, pointer, times(c * step), dtype) if c else pointer)
        outer = at.loops[axis]
        moved = times(step) if outer is None else b.add(outer, times(step))
        loops = tuple(moved if k == axis else v for k, v in enumerate(at.loops))
        reach = tuple(r + (trips - 1) * step if k == axis else r for k, r in enumerate(at.reach))
        even = math.gcd(at.even, self._stride(a) * step)
        return replace(at, pointers=tuple(pointers), loops=loops, reach=reach, even=even)

    def _stride(self, a: Axis) -> int:
        """Bytes between results along an axis."""
        return self.kernel.out.coefficient(a) * DTYPES[self.kernel.out_type.dtype].size

    def _memory(self, nest: Nest, at: Position) -> None:
        """Loops over memory, down to the register tiles."""
        if isinstance(nest, (For, Cat)) and nest.axis >= self.spatial and self.partial is None:
            self._cut_reduction(nest, at)
        elif isinstance(nest, Tile):
            self._tile(nest, at)
        elif isinstance(nest, Seq):
            self._stages(nest, at)
        elif isinstance(nest, Cat):
            self._memory(nest.first, at)
            self._memory(nest.second, at.shifted(nest.axis, nest.at))
        elif isinstance(nest, For):
            step = extents(nest.body, self.rank)[nest.axis]
            if nest.kind == UNROLL:
                for t in range(nest.trips):
                    self._memory(nest.body, at.shifted(nest.axis, t * step))
            elif nest.kind == PARALLEL and self.threads > 1 and not self.in_task and self.partial is None:
                self._parallel_loop(nest, at, step)
            else:
                self._memory_loop(nest, at, step)
        else:
            raise NesteggError("a nest reached its vector operation outside a register tile")

    def _memory_loop(self, nest: For, at: Position, step: int) -> None:
        rounds = self._rounds(nest, at)

        def body(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            inside = rounds.within(self._advance(at, nest.axis, index, step, nest.trips))
            ahead = self._distances(nest.axis, step) if nest.kind == AHEAD else at.ahead
            self._memory(nest.body, replace(inside, ahead=ahead))
            return []

        around = self.fetching
        self.fetching = (nest.axis, step) if nest.kind == AHEAD else around
        self._loop(rounds, [], body)
        self.fetching = around

    def _rounds(self, nest: For, at: Position) -> Rounds:
        """The rounds of a loop. A reduction loop makes those in which a padding's test holds: the first such test that
        is one and the same all over its body, and that some round passes wherever the loop is."""
        covered = extents(nest.body, self.rank)
        for index, lo, hi in self.kernel.paddings if nest.axis >= self.spatial else ():
            step = index.coefficient(self.kernel.axes[nest.axis]) if index.is_affine else 0
            fixed = all(covered[k] == 1 for k, a in enumerate(self.kernel.axes) if a in index.axes)
            least, most = self.code.range(index, at, -1, 1)  # in the first round
            furthest = most + step * (nest.trips - 1)
            tested = least < lo or furthest >= hi
            passes = least + step * (nest.trips - 1) >= lo and most < hi and hi - lo >= step
            if step > 0 and fixed and tested and passes:
                return self._passing((index, lo, hi), self.code.index(index, at), step, nest.trips)
        return Rounds.all(nest.trips)

    def _passing(self, bound: Bound, first: ir.Value, step: int, trips: int) -> Rounds:
        """The rounds t in which lo <= first + t * step < hi."""
        b, (_, lo, hi) = self.builder, bound

        def before(to: int) -> ir.Value:
            """Rounds that begin before the index is `to`: 0 at least."""
            left = emit_scalar("max", b, [b.sub(ir.Constant(I64, to), first), ir.Constant(I64, 0)], "i64")
            return left if step == 1 else b.udiv(b.add(left, ir.Constant(I64, step - 1)), ir.Constant(I64, step))

        end = emit_scalar("min", b, [before(hi), ir.Constant(I64, trips)], "i64")
        return Rounds(before(lo), end, (bound,))

    def _distances(self, axis: int, step: int) -> tuple[int, ...]:
        """Bytes by which every access moves in `step` steps along an axis."""
        a = self.kernel.axes[axis]
        return tuple(
            i.coefficient(a) * step * DTYPES[dtype].size if i.is_affine else 0 for i, dtype in self.code.accesses
        )

    def _parallel_loop(self, nest: For, at: Position, step: int) -> None:
        """The outermost parallel loop: its body becomes a function of its own, which the pool calls for each index."""
        opened = [k for k, v in enumerate(at.loops) if v is not None]
        values = [*self.code.buffers, *at.pointers, *(v for v in at.loops if v is not None)]
        types, name = [*(v.type for v in values), I64], f"{self.function.name}_parallel{self.forks}"
        body = ir.Function(self.function.module, ir.FunctionType(ir.VoidType(), types), name)
        body.linkage = "internal"
        first, last = len(self.code.buffers), len(self.code.buffers) + len(at.pointers)
        for argument in body.args[first:last]:
            argument.add_attribute("noalias")
        loops = dict(zip(opened, body.args[last:-1], strict=True))
        inside = replace(at, pointers=tuple(body.args[first:last]), loops=tuple(map(loops.get, range(self.rank))))

        outside = self.builder, self.code
        self.builder = ir.IRBuilder(body.append_basic_block("entry"))
        self.code = ScalarCode(self.builder, self.kernel, body.args[:first], self.streamed)
        self.in_task = True
        self._memory(nest.body, self._advance(inside, nest.axis, body.args[-1], step, nest.trips))
        if self.streamed:
            self.builder.fence("seq_cst")
        self.builder.ret_void()
        self.in_task, self.forks = False, self.forks + 1
        self.builder, self.code = outside
        emit_fork_join(self.builder, body, values, nest.trips, self.threads)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _stages(self, nest: Seq, at: Position) -> None:
        """Stages over one block; what they leave each other lies on the stack."""
        whole, frame, code, partial = self.whole, self.kernel, self.code, self.partial
        assert isinstance(whole, StagedKernel)
        block, order = extents(nest, len(frame.axes)), stages(nest)
        buffers, out = list(code.buffers[: len(whole.inputs)]), code.buffers[len(whole.inputs)]
        scratch: dict[int, ir.Value] = {}
        for s in order[:-1]:
            elements = whole.elements(s.number) * math.prod(block)
            scratch[s.number] = self._stack(whole.stages[s.number].out_type.dtype, elements)
        buffers += [scratch.get(n, out) for n in range(len(whole.stages))]
        for s in order:
            kernel = whole.in_block(s.number, block, s is order[-1])
            self._enter(kernel, [*buffers, scratch.get(s.number, out)], self.streamed and s is order[-1])
            start = self._start_of_stage(at, set(scratch.values()))
            self._memory(s.body, replace(start, ahead=self._fetched_by(s, order)))
        self.kernel, self.rank, self.spatial = frame, len(frame.axes), len(frame.spatial)
        self.code, self.partial = code, partial

    def _start_of_stage(self, at: Position, scratch: set[ir.Value]) -> Position:
        """Where a stage begins: inputs and output at the block's place, scratch at its start."""
        b, shared = self.builder, len(at.loops)
        pointers = []
        for buffer, (address, dtype) in zip(self.code.accessed, self.code.accesses, strict=True):
            pointer = buffer
            for axis, loop, fixed in zip(self.kernel.axes, at.loops, at.fixed, strict=False):
                step = address.coefficient(axis)
                if buffer in scratch:
                    pointer = offset(b, pointer, -fixed * step, dtype)
                elif address.is_affine and loop is not None and step:
                    pointer = offset(b, pointer, b.mul(loop, ir.Constant(I64, step)), dtype)
            pointers.append(pointer)
        own = self.rank - shared
        zeros = (0,) * own
        looped = [a for a, loop in zip(self.kernel.axes, at.loops, strict=False) if loop is not None]
        even = math.gcd(LINE, *map(self._stride, looped))
        return Position(tuple(pointers), (*at.loops, *(None,) * own), (*at.fixed, *zeros), (*at.reach, *zeros), even)

    def _fetched_by(self, stage: Stage, order: Sequence[Stage]) -> tuple[int, ...]:
        """Of every access of a stage in an `ahead` loop, how far on it will be an iteration later, if the stage is the
        last to read that input: the next rows come while it computes (softmax of 8192x1024: 23 -> 29 GB/s; 17 where
        the first stage asks, which computes too little)."""
        whole = self.whole
        assert isinstance(whole, StagedKernel)
        if self.fetching is None:
            return ()
        following = [whole.stages[s.number] for s in order[order.index(stage) + 1 :]]
        later = {r.input for k in following for r in (*k.update_reads, *k.epilogue_reads)}
        asks = [r.input < len(whole.inputs) and r.input not in later for r in self.code.reads]
        distances = self._distances(*self.fetching)
        return tuple(d if wanted else 0 for d, wanted in zip(distances, [*asks, False], strict=True))

    def _stack(self, dtype: str, elements: int) -> ir.Value:
        """Room for some elements on the stack, aligned to a cache line."""
        with self.builder.goto_entry_block():
            memory = self.builder.alloca(memory_type(dtype), ir.Constant(I32, elements))
            memory.align = LINE
            memory.type = POINTER  # llvmlite's allocas still have typed pointers
        return memory

    # --- register tiles ----------------------------------------------------------------------------------------------

    def _slots(self, nest: Nest, at: Slot, vector: int) -> dict[Slot, int]:
        """The accumulators of a tile and their lanes: offset along every spatial axis, then a number that tells apart
        the vectors of a row which is reduced along its vectors."""
        if isinstance(nest, Vec):
            return {at: nest.lanes}
        if isinstance(nest, Intrin):
            return {at: nest.sizes[0]}
        if isinstance(nest, Cat):
            first, second = self._slots(nest.first, at, vector), self._slots(nest.second, at, vector)
            return {k: max(first.get(k, 1), second.get(k, 1)) for k in first | second}
        if not isinstance(nest, For):
            raise NesteggError(f"a {type(nest).__name__} may not occur inside a register tile")
        out: dict[Slot, int] = {}
        moves = nest.axis < self.spatial or (nest.kind == UNROLL and nest.axis == vector)
        for t in range(nest.trips if moves else 1):
            out |= self._slots(nest.body, self._slot_at(nest, at, t, vector), vector)
        return out

    def _slot_at(self, nest: For, slot: Slot, t: int, vector: int) -> Slot:
        """The slot in round t of a loop of a tile."""
        if nest.axis < self.spatial:
            step = extents(nest.body, self.rank)[nest.axis]
            return tuple(x + t * step if k == nest.axis else x for k, x in enumerate(slot))
        if nest.kind == UNROLL and nest.axis == vector:
            return (*slot[:-1], slot[-1] * nest.trips + t)
        return slot

    def _tile(self, nest: Tile, at: Position) -> None:
        origin = (0,) * (self.spatial + 1)
        slots = self._slots(nest.body, origin, nest.vector)
        self.code.fresh()
        if self.kernel.update is None:
            self._finish_tile(at, nest.vector, slots, None)
            return
        if nest.vector >= self.spatial:
            self._tile_lanes(nest, at, slots)
            return
        dtype, kind = self.kernel.accumulator_dtype, self.kernel.kind
        goes_on = self.partial is not None and not self.kernel.is_long_sum
        start: Accumulators = {
            s: self._load_partial(self._at(at, s), nest.vector, n) if goes_on else neutral_element(kind, dtype, n)
            for s, n in slots.items()
        }
        done = self._reduce(nest.body, at, origin, start, nest.vector)
        self.code.fresh()
        if self.partial is None:
            self._finish_tile(at, nest.vector, slots, done)
            return
        keep = self._store_partial if goes_on else self._add_partial
        for slot, lanes in slots.items():
            keep(done[slot], self._at(at, slot), nest.vector, lanes)

    def _tile_lanes(self, nest: Tile, at: Position, slots: dict[Slot, int]) -> None:
        """A tile vectorised along a reduction axis: lanes hold partial results, combined when the tile is done."""
        dtype, kind = self.kernel.accumulator_dtype, self.kernel.kind
        start: Accumulators = {s: neutral_element(kind, dtype, n) for s, n in slots.items()}
        done = self._reduce(nest.body, at, (0,) * (self.spatial + 1), start, nest.vector)
        self.code.fresh()
        rows: dict[Slot, list[ir.Value]] = {}
        for slot, value in done.items():
            rows.setdefault(slot[:-1], []).append(value)
        for slot, parts in rows.items():
            here = self._at(at, slot)
            result = self._across(self._merged(parts))
            if self.partial is None:
                self._finish(here, -1, 1, result)
            else:
                self._add_partial(result, here, -1, 1)

    def _merged(self, parts: list[ir.Value]) -> ir.Value:
        """Partial results of one row combined in pairs; narrower ones count for the first lanes."""
        width = max(map(lanes_of, parts))
        parts = [self._widened(p, width) for p in parts]
        combine, dtype = COMBINERS[self.kernel.kind], self.kernel.accumulator_dtype
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            odd = parts[-1:] if len(parts) % 2 else []
            parts = [emit_scalar(combine, self.builder, list(p), dtype) for p in pairs] + odd
        return parts[0]

    def _widened(self, value: ir.Value, lanes: int) -> ir.Value:
        """The value in the first lanes of a vector, the neutral element in the others."""
        have = lanes_of(value)
        if have == lanes:
            return value
        neutral = neutral_element(self.kernel.kind, self.kernel.accumulator_dtype, lanes)
        if have == 1:
            return self.builder.insert_element(neutral, value, ir.Constant(I32, 0))
        rest = neutral_element(self.kernel.kind, self.kernel.accumulator_dtype, have)
        places = [ir.Constant(I32, min(k, have)) for k in range(lanes)]
        return self.builder.shuffle_vector(value, rest, ir.Constant(ir.VectorType(I32, lanes), places))

    def _across(self, value: ir.Value) -> ir.Value:
        """All lanes of a vector combined: by halves while they pair up, then one by one."""
        b, combine, dtype = self.builder, COMBINERS[self.kernel.kind], self.kernel.accumulator_dtype
        while (lanes := lanes_of(value)) > 1 and lanes % 2 == 0:
            halves = []
            for first in (0, lanes // 2):
                places = [ir.Constant(I32, first + k) for k in range(lanes // 2)]
                mask = ir.Constant(ir.VectorType(I32, lanes // 2), places)
                halves.append(b.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask))
            if lanes == 2:
                halves = [b.extract_element(value, ir.Constant(I32, k)) for k in (0, 1)]
            value = emit_scalar(combine, b, halves, dtype)
        if lanes_of(value) == 1:
            return value
        total = b.extract_element(value, ir.Constant(I32, 0))
        for k in range(1, lanes_of(value)):
            total = emit_scalar(combine, b, [total, b.extract_element(value, ir.Constant(I32, k))], dtype)
        return total

    def _at(self, at: Position, slot: Slot) -> Position:
        return replace(at, fixed=tuple(f + (slot[k] if k < self.spatial else 0) for k, f in enumerate(at.fixed)))

    def _reduce(
        self, nest: Nest, at: Position, slot: Slot, acc: Accumulators, vector: int, apart: bool = True
    ) -> Accumulators:
        """The tile's body applied to its accumulators; `apart`: each round of an unrolled reduction loads its own."""
        if isinstance(nest, Vec):
            assert self.kernel.update is not None
            here = self._at(at, slot)
            if self._adds_nothing(self.kernel.update, here, vector, nest.lanes):
                return acc
            value = splat(self.builder, self.code.value(self.kernel.update, here, vector, nest.lanes), nest.lanes)
            value = self._widened(value, lanes_of(acc[slot]))
            combine = COMBINERS[self.kernel.kind]
            merged = emit_scalar(combine, self.builder, [acc[slot], value], self.kernel.accumulator_dtype)
            return {**acc, slot: merged}
        if isinstance(nest, Intrin):
            return {**acc, slot: self._apply(nest, self._at(at, slot), acc[slot])}
        if isinstance(nest, Cat):
            acc = self._reduce(nest.first, at, slot, acc, vector)
            self._fence()
            return self._reduce(nest.second, at.shifted(nest.axis, nest.at), slot, acc, vector)
        assert isinstance(nest, For)
        step = extents(nest.body, self.rank)[nest.axis]
        if nest.kind == SERIAL:
            return self._reduction_loop(nest, at, slot, acc, vector, step)
        for t in range(nest.trips):
            moved = self._slot_at(nest, slot, t, vector)
            if nest.axis < self.spatial:  # reductions further in are over windows of what neighbouring results load
                acc = self._reduce(nest.body, at, moved, acc, vector, apart=False)
            else:
                if t and (apart or nest.axis == vector):
                    self._fence()
                acc = self._reduce(nest.body, at.shifted(nest.axis, t * step), moved, acc, vector, apart)
        return acc

    def _adds_nothing(self, update: Scalar, at: Position, vector: int, lanes: int) -> bool:
        """A product with an entry of 0 of a table, to be summed, or a padding with the neutral element."""
        if any(self.code.known(b, at, vector, lanes) is False for b in self.kernel.paddings):
            return True
        if not isinstance(update, Weighted) or self.kernel.kind != "sum":
            return False
        return self.code.weight(update, at, vector, lanes) == 0

    def _apply(self, nest: Intrin, at: Position, accumulator: ir.Value) -> ir.Value:
        """The accumulator after one application of an intrinsic; lanes that the nest leaves out hold anything."""
        match = self._match(nest)
        vector, lanes = nest.axes[0], nest.sizes[0]
        unit = match.intrinsic.depth
        registers = [
            widened(self.builder, self.code.register(r, at, vector, lanes, unit), match.intrinsic.lanes * unit)
            for r in match.operands
        ]
        whole = widened(self.builder, accumulator, match.intrinsic.lanes)
        return first_lanes(self.builder, match.intrinsic.emit(self.builder, whole, *registers), lanes)

    def _match(self, nest: Intrin) -> Match:
        found = (m for m in matches(intrinsic(nest.name), self.kernel) if m.axes == nest.axes)
        match = next(found, None)
        if match is None:
            raise NesteggError(f"intrinsic {nest.name} does not compute the update of {self.kernel}")
        return match

    def _fence(self) -> None:
        """Keep loads of one reduction point from merging with the next one's: LLVM would hold them in registers that
        the accumulators need (3x3 convolution of 64 channels: 311 stack references in 252 multiply-adds; with this
        and the order of `Space.unrolled` together, 40 to 117 GFLOP/s)."""
        self.code.fresh()
        barrier = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
        self.builder.call(barrier, [])

    def _reduction_loop(
        self, nest: For, at: Position, slot: Slot, acc: Accumulators, vector: int, step: int
    ) -> Accumulators:
        keys = list(acc)
        rounds = self._rounds(nest, self._at(at, slot))

        def body(index: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
            self.code.fresh()
            inside = rounds.within(self._advance(at, nest.axis, index, step, nest.trips))
            after = self._reduce(nest.body, inside, slot, dict(zip(keys, values, strict=True)), vector)
            return [after[k] for k in keys]

        out = self._loop(rounds, [acc[k] for k in keys], body)
        self.code.fresh()
        return dict(zip(keys, out, strict=True))

    def _finish_tile(self, at: Position, vector: int, slots: dict[Slot, int], done: Accumulators | None) -> None:
        """The results of a register tile. What lies across its vectors in memory is read and written as whole rows."""
        for read, axis in self.code.across(vector):
            for run, lanes in runs_along(slots, axis):
                self.code.read_across(read, [self._at(at, s) for s in run], vector, lanes)
        left = dict(slots)
        axis = self.code.written_across(vector)
        for run, lanes in runs_along(slots, axis) if axis is not None else ():
            places = [self._at(at, s) for s in run]
            values = [
                self.code.value(self.kernel.epilogue, p, vector, lanes, done and done[s])
                for s, p in zip(run, places, strict=True)
            ]
            self.code.write_across(values, places[0], vector, lanes)
            for s in run:
                del left[s]
        for slot, lanes in left.items():
            self._finish(self._at(at, slot), vector, lanes, done and done[slot])

    def _finish(self, at: Position, vector: int, lanes: int, accumulator: ir.Value | None) -> None:
        value = self.code.value(self.kernel.epilogue, at, vector, lanes, accumulator)
        self.code.write(value, at, vector, lanes)

    # --- reductions cut outside the tile: partial results in a block on the stack -----------------------------------
    #
    # A piece of a short sum goes on where the last one stopped, so that all nests add in the same order and a main part
    # and a tail make the same of equal columns (a softmax of numbers as large as 1e10 shows whether they do). Of a long
    # sum, each piece is a chain of its own, which rounds less.

    def _cut_reduction(self, nest: For | Cat, at: Position) -> None:
        block = extents(nest, self.rank)[: self.spatial]
        dtype = self.kernel.accumulator_dtype
        count = 1
        for n in block:
            count *= n
        if count * DTYPES[dtype].size > STACK_LIMIT:
            raise NesteggError(f"partial results of {count} elements do not fit the stack; the nest is not legal")
        memory = self._stack(dtype, count)
        self.partial = (memory, block, at)
        fill = neutral_element(self.kernel.kind, dtype, 1)

        def clear(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            store(self.builder, fill, offset(self.builder, memory, index, dtype), dtype)
            return []

        self._loop(count, [], clear)
        self._memory(nest, at)
        self._finish_block(at, block)
        self.partial = None

    def _partial_pointer(self, at: Position, lane: int = 0, vector: int = -1) -> ir.Value:
        """Where the partial result of a position lies: row-major in the block where the cut began."""
        assert self.partial is not None
        b = self.builder
        memory, block, origin = self.partial
        total: ir.Value = ir.Constant(I64, 0)
        for k in range(self.spatial):
            here: ir.Value = ir.Constant(I64, at.fixed[k] - origin.fixed[k] + (lane if k == vector else 0))
            loop, base = at.loops[k], origin.loops[k]
            if loop is not None and loop is not base:
                here = b.add(here, loop if base is None else b.sub(loop, base))
            total = b.add(b.mul(total, ir.Constant(I64, block[k])), here)
        return offset(b, memory, total, self.kernel.accumulator_dtype)

    def _load_partial(self, at: Position, vector: int, lanes: int) -> ir.Value:
        dtype = self.kernel.accumulator_dtype
        if lanes == 1 or vector == self.spatial - 1:
            return load(self.builder, self._partial_pointer(at), dtype, lanes)
        out: ir.Value = constant(0, dtype, lanes)
        for k in range(lanes):
            element = load(self.builder, self._partial_pointer(at, k, vector), dtype)
            out = self.builder.insert_element(out, element, ir.Constant(I32, k))
        return out

    def _add_partial(self, value: ir.Value, at: Position, vector: int, lanes: int) -> None:
        """Combine a tile's results with those of the pieces before."""
        before = self._load_partial(at, vector, lanes)
        combine, dtype = COMBINERS[self.kernel.kind], self.kernel.accumulator_dtype
        self._store_partial(emit_scalar(combine, self.builder, [before, value], dtype), at, vector, lanes)

    def _store_partial(self, value: ir.Value, at: Position, vector: int, lanes: int) -> None:
        dtype = self.kernel.accumulator_dtype
        if lanes == 1 or vector == self.spatial - 1:
            store(self.builder, value, self._partial_pointer(at), dtype)
            return
        for k in range(lanes):
            element = self.builder.extract_element(value, ir.Constant(I32, k))
            store(self.builder, element, self._partial_pointer(at, k, vector), dtype)

    def _finish_block(self, at: Position, block: tuple[int, ...], axis: int = 0) -> None:
        """Epilogue over a block of finished partial results."""
        if axis == self.spatial:
            self.code.fresh()
            self._finish(at, -1, 1, self._load_partial(at, -1, 1))
            return
        last = axis == self.spatial - 1
        lanes = self.lanes if last and block[axis] % self.lanes == 0 else 1
        if block[axis] == 1:
            self._finish_block(at, block, axis + 1)
            return

        def body(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            inside = self._advance(at, axis, index, lanes, block[axis] // lanes)
            if lanes > 1:
                self.code.fresh()
                self._finish(inside, axis, lanes, self._load_partial(inside, axis, lanes))
            else:
                self._finish_block(inside, block, axis + 1)
            return []

        self._loop(block[axis] // lanes, [], body)

    # --- padding -----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Write the border value wherever the nest does not write."""
        writer = self.whole.results[0] if isinstance(self.whole, StagedKernel) else self.whole
        for gap in gaps(writer.out, writer.spatial, self.whole.out_type.size, self.lanes):
            self._fill_gap(gap, offset(self.builder, self.function.args[-1], gap.start, self.whole.out_type.dtype))

    def _fill_gap(self, gap: Gap, at: ir.Value) -> None:
        dtype = self.whole.out_type.dtype
        if not gap.loops:
            self._fill_run(gap.length, at)
            return
        (stride, trips), *inner = gap.loops

        def body(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            here = offset(self.builder, at, self.builder.mul(index, ir.Constant(I64, stride)), dtype)
            self._fill_gap(replace(gap, loops=tuple(inner)), here)
            return []

        self._loop(trips, [], body)

    def _fill_run(self, length: int, at: ir.Value) -> None:
        assert self.whole.fill is not None
        fill, dtype = self.whole.fill.value, self.whole.out_type.dtype
        whole, rest = divmod(length, self.lanes)

        def body(index: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            where = self.builder.mul(index, ir.Constant(I64, self.lanes))
            store(self.builder, constant(fill, dtype, self.lanes), offset(self.builder, at, where, dtype), dtype)
            return []

        if whole:
            self._loop(whole, [], body)
        if rest:
            store(self.builder, constant(fill, dtype, rest), offset(self.builder, at, length - rest, dtype), dtype)
