"""Scalar expressions of a kernel as LLVM values: reads, bounds tests, functions, at one position of the nest.

A value is uniform (one scalar for all lanes) or a vector along the tile's vector axis; uniform values are repeated
only where a vector needs them, so that broadcasts stay loads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llvmlite import ir

from ..ir.expr import Apply, Bound, Cast, Const, IndexValue, Read, ReadAt, Scalar, Weighted, When, children
from ..ir.index import Axis, Index, Quotient
from ..ir.loops import ACCUMULATOR, LoopKernel
from ..ir.target import LINE
from ..ir.types import DTYPES
from .llvm_types import (
    I64,
    POINTER,
    constant,
    fetch,
    lanes_of,
    load,
    load_repeated,
    offset,
    register_type,
    splat,
    store,
)
from .scalar_ops import emit_cast, emit_scalar
from .transposing import restored, transposed


@dataclass(frozen=True)
class Position:
    """Where in the iteration domain code is being emitted.

    `pointers`: for each access, its pointer advanced by the loops so far. `loops`: for each axis, the sum of its
    loops' indices (None if no loop of it is open). `fixed`: for each axis, the part known at compile time. `reach`:
    for each axis, the greatest value that `loops` takes. `even`: the loops move the output's pointer by multiples of so
    many bytes (a divisor of a cache line). `ahead`: how many bytes further on each access will be an iteration of the
    enclosing `ahead` loop later (0: no further; empty: there is no such loop). `holding`: bounds tests that hold here,
    because loops go no further.
    """

    pointers: tuple[ir.Value, ...]
    loops: tuple[ir.Value | None, ...]
    fixed: tuple[int, ...]
    reach: tuple[int, ...]
    even: int = LINE
    ahead: tuple[int, ...] = ()
    holding: tuple[Bound, ...] = ()

    def shifted(self, axis: int, by: int) -> Position:
        if by == 0:
            return self
        return replace(self, fixed=tuple(f + by if k == axis else f for k, f in enumerate(self.fixed)))


class ScalarCode:
    """Emits the scalar expressions of one kernel.

    Loads from the same address within a piece of straight-line code are emitted once: call `fresh` at its start.
    `streamed`: results are stored past the caches where they fill a vector's place (the output begins at a cache line).
    """

    def __init__(
        self, builder: ir.IRBuilder, kernel: LoopKernel, buffers: Sequence[ir.Value], streamed: bool = False
    ) -> None:
        self.builder, self.kernel, self.buffers, self.streamed = builder, kernel, buffers, streamed
        self.axes = {a: k for k, a in enumerate(kernel.axes)}
        self.reads = list(dict.fromkeys((*kernel.update_reads, *kernel.epilogue_reads)))
        self.number = {r: k for k, r in enumerate(self.reads)}
        self._loaded: dict[tuple[object, ...], ir.Value] = {}

    # --- accesses: one for each distinct read, then the output ------------------------------------------------------

    @property
    def accesses(self) -> list[tuple[Index, str]]:
        """(address, dtype) of every access; the last is the output."""
        return [*((r.index[0], r.dtype) for r in self.reads), (self.kernel.out, self.kernel.out_type.dtype)]

    @property
    def accessed(self) -> list[ir.Value]:
        """The start of the buffer of every access."""
        return [*(self.buffers[r.input] for r in self.reads), self.buffers[-1]]

    def fresh(self) -> None:
        """Forget loaded values: a new piece of straight-line code begins."""
        self._loaded = {}

    def _static(self, address: Index, at: Position) -> int:
        """The part of an affine address known at compile time."""
        return address.constant + sum(c * at.fixed[self.axes[a]] for a, c in address.terms)  # type: ignore[index]

    def pointer(self, access: int, at: Position, lane: int = 0, vector: int = -1) -> ir.Value:
        """Pointer of an access at a position (`lane` steps along the vector axis)."""
        address, dtype = self.accesses[access]
        if address.is_affine:
            static = self._static(address, at)
            if lane and vector >= 0:
                static += lane * address.coefficient(self.kernel.axes[vector])
            return offset(self.builder, at.pointers[access], static, dtype)
        moved = at.shifted(vector, lane) if lane else at
        return offset(self.builder, at.pointers[access], self.index(address, moved), dtype)

    # --- indices -----------------------------------------------------------------------------------------------------

    def index(self, index: Index, at: Position) -> ir.Value:
        """An index as an i64; parts known at compile time are folded."""
        known = {a: Index.of(at.fixed[k]) for a, k in self.axes.items() if at.loops[k] is None}
        return self._index(index.substitute(known), at)

    def _index(self, index: Index, at: Position) -> ir.Value:
        total: ir.Value | None = None
        static = index.constant
        for atom, c in index.terms:
            if isinstance(atom, Axis):
                k = self.axes[atom]
                static += c * at.fixed[k]
                value = at.loops[k]
                assert value is not None
            else:
                inner = self._index(atom.of, at)
                by = ir.Constant(I64, atom.by)
                value = self._floor_div(inner, by) if isinstance(atom, Quotient) else self._floor_mod(inner, by)
            if c != 1:
                value = self.builder.mul(value, ir.Constant(I64, c))
            total = value if total is None else self.builder.add(total, value)
        if total is None:
            return ir.Constant(I64, static)
        return self.builder.add(total, ir.Constant(I64, static)) if static else total

    def _floor_mod(self, value: ir.Value, by: ir.Constant) -> ir.Value:
        b = self.builder
        rest = b.srem(value, by)
        negative = b.icmp_signed("<", rest, ir.Constant(I64, 0))
        return b.select(negative, b.add(rest, by), rest)

    def _floor_div(self, value: ir.Value, by: ir.Constant) -> ir.Value:
        return self.builder.sdiv(self.builder.sub(value, self._floor_mod(value, by)), by)

    def _lane_indices(self, index: Index, at: Position, vector: int, lanes: int) -> ir.Value:
        """An index that changes along the vector axis, as a vector of i64."""
        axis = self.kernel.axes[vector]
        if all(not isinstance(a, Axis) and axis in a.of.axes for a, _ in index.terms) or not index.is_affine:
            out: ir.Value = ir.Constant(ir.VectorType(I64, lanes), ir.Undefined)
            for k in range(lanes):
                value = self.index(index, at.shifted(vector, k))
                out = self.builder.insert_element(out, value, ir.Constant(I64, k))
            return out
        c = index.coefficient(axis)
        steps = ir.Constant(ir.VectorType(I64, lanes), [ir.Constant(I64, c * k) for k in range(lanes)])
        return self.builder.add(splat(self.builder, self.index(index, at), lanes), steps)

    # --- values ------------------------------------------------------------------------------------------------------

    def value(
        self,
        s: Scalar,
        at: Position,
        vector: int,
        lanes: int,
        accumulator: ir.Value | None = None,
        mask: ir.Value | None = None,
    ) -> ir.Value:
        """The expression at a position, uniform or over `lanes` steps along axis `vector`.

        `mask`: where it is needed; reads outside are not performed.
        """
        b = self.builder

        def go(n: Scalar, where: ir.Value | None = mask) -> ir.Value:
            return self.value(n, at, vector, lanes, accumulator, where)

        if isinstance(s, Read):
            if s.input == ACCUMULATOR:
                assert accumulator is not None
                return accumulator
            return self._read(s, at, vector, lanes, mask)
        if isinstance(s, ReadAt):
            return self._gather(s, go(s.offset), at, vector, lanes, mask)
        if isinstance(s, Const):
            return constant(s.value, s.dtype)
        if isinstance(s, Apply):
            args = self._alike([go(a) for a in s.args])
            return emit_scalar(s.fn, b, args, s.args[-1].dtype)
        if isinstance(s, Cast):
            return emit_cast(b, go(s.arg), s.arg.dtype, s.dtype)
        if isinstance(s, IndexValue):
            if vector >= 0 and lanes > 1 and self.kernel.axes[vector] in s.index.axes:
                return emit_cast(b, self._lane_indices(s.index, at, vector, lanes), "i64", s.dtype)
            return emit_cast(b, self.index(s.index, at), "i64", s.dtype)
        if isinstance(s, Weighted):
            return self._weighted(s, go(s.arg), at, vector, lanes)
        if isinstance(s, When):
            inside = self._inside(s.bounds, at, vector, lanes)
            if isinstance(inside, bool):
                return go(s.then) if inside else go(s.otherwise)
            need = inside if mask is None else b.and_(*self._alike([mask, inside]))
            then, otherwise = self._alike([go(s.then, need), go(s.otherwise)])
            width = max(lanes_of(inside), lanes_of(then))
            return b.select(splat(b, inside, width), splat(b, then, width), splat(b, otherwise, width))
        raise AssertionError(f"{type(s).__name__} does not occur inside a lowered kernel")

    def weight(self, s: Weighted, at: Position, vector: int, lanes: int) -> float | None:
        """The entry of the table, if it is known at compile time and one for all lanes."""
        across = lanes > 1 and vector >= 0 and self.kernel.axes[vector] in s.index.axes
        if across or any(at.loops[self.axes[a]] is not None for a in s.index.axes):
            return None
        place = s.index.evaluate({a: at.fixed[k] for a, k in self.axes.items()})
        assert isinstance(place, int)
        return s.table[place]

    def _weighted(self, s: Weighted, value: ir.Value, at: Position, vector: int, lanes: int) -> ir.Value:
        b, known = self.builder, self.weight(s, at, vector, lanes)
        if known is not None:
            return self._times(known, value, s.dtype)
        weight, value = self._alike([self._entries(s, at, vector, lanes), value])
        nothing = constant(0, s.dtype, lanes_of(weight))
        counts = emit_scalar("ne", b, [weight, nothing], s.dtype)
        return b.select(counts, emit_scalar("mul", b, [weight, value], s.dtype), nothing)

    def _times(self, factor: float, value: ir.Value, dtype: str) -> ir.Value:
        if factor == 0:
            return constant(0, dtype, lanes_of(value))
        if factor == 1:
            return value
        if factor == -1:
            return emit_scalar("neg", self.builder, [value], dtype)
        return emit_scalar("mul", self.builder, [value, constant(factor, dtype, lanes_of(value))], dtype)

    def _entries(self, s: Weighted, at: Position, vector: int, lanes: int) -> ir.Value:
        """The table's entries at a position, or over the lanes."""
        b, table = self.builder, self._table(s)
        if lanes == 1 or vector < 0 or self.kernel.axes[vector] not in s.index.axes:
            return load(b, offset(b, table, self.index(s.index, at), s.dtype), s.dtype)
        out: ir.Value = ir.Constant(register_type(s.dtype, lanes), ir.Undefined)
        for k in range(lanes):
            place = self.index(s.index, at.shifted(vector, k))
            out = b.insert_element(out, load(b, offset(b, table, place, s.dtype), s.dtype), ir.Constant(I64, k))
        return out

    def _table(self, s: Weighted) -> ir.Value:
        """The table in memory, once a module."""
        module = self.builder.module
        entries = [constant(v, s.dtype) for v in s.table]
        made = ir.Constant(ir.ArrayType(entries[0].type, len(entries)), entries)
        name = f"table_{s.dtype}_{hashlib.sha256(str(made).encode()).hexdigest()[:16]}"
        if name not in module.globals:
            table = ir.GlobalVariable(module, made.type, name)
            table.linkage, table.global_constant, table.initializer, table.align = "internal", True, made, LINE
            table.type = POINTER  # llvmlite's globals still have typed pointers
        return module.globals[name]

    def _alike(self, values: Sequence[ir.Value]) -> list[ir.Value]:
        width = max(lanes_of(v) for v in values)
        return [splat(self.builder, v, width) for v in values]

    def known(self, bound: Bound, at: Position, vector: int, lanes: int) -> bool | None:
        """Whether a bounds test holds, for all lanes and all rounds of the loops around; None if that is not known."""
        index, lo, hi = bound
        least, most = self.range(index, at, vector if self._varies(index, vector, lanes) else -1, lanes)
        if most < lo or least >= hi:
            return False
        return True if bound in at.holding or (lo <= least and most < hi) else None

    def _inside(self, bounds: Sequence[Bound], at: Position, vector: int, lanes: int) -> ir.Value | bool:
        """The conjunction of the bounds, or its value if it is known at compile time."""
        b = self.builder
        result: ir.Value | None = None
        known = [self.known(bound, at, vector, lanes) for bound in bounds]
        if False in known:
            return False
        for index, lo, hi in (bound for bound, holds in zip(bounds, known, strict=True) if not holds):
            varies = self._varies(index, vector, lanes)
            v = self._lane_indices(index, at, vector, lanes) if varies else self.index(index, at)
            # lo <= v < hi as one unsigned comparison
            width = lanes_of(v)
            low = splat(b, ir.Constant(I64, lo), width)
            test = b.icmp_unsigned("<", b.sub(v, low), splat(b, ir.Constant(I64, hi - lo), width))
            result = test if result is None else b.and_(*self._alike([result, test]))
        return True if result is None else result

    def range(self, index: Index, at: Position, vector: int, lanes: int) -> tuple[int, int]:
        """Least and greatest value of an index over the loops around a position and the lanes there."""
        here: dict[Axis, Index] = {}
        for a, k in self.axes.items():
            extent = at.reach[k] + (lanes if k == vector else 1)
            here[a] = (Index.of(Axis(a.name, extent)) if extent > 1 else Index()) + at.fixed[k]
        return index.substitute(here).range

    def _read(self, r: Read, at: Position, vector: int, lanes: int, mask: ir.Value | None) -> ir.Value:
        key = self._key(r, at, vector, lanes, mask)
        if key not in self._loaded:
            varies = self._varies(r.index[0], vector, lanes)
            self._loaded[key] = self._load(r, self.number[r], at, vector, lanes if varies else 1, mask)
        return self._loaded[key]

    def _varies(self, address: Index, vector: int, lanes: int) -> bool:
        return vector >= 0 and lanes > 1 and self.kernel.axes[vector] in address.axes

    def _key(self, r: Read, at: Position, vector: int, lanes: int, mask: ir.Value | None) -> tuple[object, ...]:
        """Reads of equal keys within a piece of straight-line code are of equal elements."""
        access, address = self.number[r], r.index[0]
        place = self._static(address, at) if address.is_affine else at.fixed
        along = (vector, lanes) if self._varies(address, vector, lanes) else (-1, 1)
        return (access, at.pointers[access], place, *along, mask)

    def _load(self, r: Read, access: int, at: Position, vector: int, lanes: int, mask: ir.Value | None) -> ir.Value:
        b = self.builder
        address = r.index[0]
        if lanes == 1:
            if mask is not None and lanes_of(mask) > 1:
                mask = self._any(mask)
            return load(b, self._guarded(access, self.pointer(access, at), mask), r.dtype)
        contiguous = address.is_affine and address.coefficient(self.kernel.axes[vector]) == 1
        enough = self.kernel.inputs[r.input].size >= lanes
        if contiguous and (mask is None or (lanes_of(mask) == 1 and enough)):
            if mask is None:
                self._fetch_ahead(access, at)
            return load(b, self._guarded(access, self.pointer(access, at), mask), r.dtype, lanes)
        out: ir.Value = ir.Constant(register_type(r.dtype, lanes), ir.Undefined)
        for k in range(lanes):
            lane = ir.Constant(I64, k)
            test = mask if mask is None or lanes_of(mask) == 1 else b.extract_element(mask, lane)
            element = load(b, self._guarded(access, self.pointer(access, at, k, vector), test), r.dtype)
            out = b.insert_element(out, element, lane)
        return out

    def _fetch_ahead(self, access: int, at: Position) -> None:
        """What an enclosing `ahead` loop comes to in its next iteration."""
        if at.ahead and at.ahead[access]:
            fetch(self.builder, self.pointer(access, at), at.ahead[access])

    def register(self, r: Read, at: Position, vector: int, lanes: int, unit: int) -> ir.Value:
        """`unit` neighbouring elements for each of `lanes` steps along the vector axis; where the read does not move
        along it, the same ones for each."""
        access, address = self.number[r], r.index[0]
        moves = bool(address.coefficient(self.kernel.axes[vector]))
        key = (access, at.pointers[access], self._static(address, at), moves, lanes, unit)
        if key not in self._loaded:
            pointer = self.pointer(access, at)
            if moves:
                self._fetch_ahead(access, at)
            self._loaded[key] = (
                load(self.builder, pointer, r.dtype, lanes * unit)
                if moves
                else load_repeated(self.builder, pointer, r.dtype, unit, lanes)
            )
        return self._loaded[key]

    def _gather(
        self, r: ReadAt, computed: ir.Value, at: Position, vector: int, lanes: int, mask: ir.Value | None
    ) -> ir.Value:
        """Loads at `base + computed`, lane by lane where that changes along the vector axis."""
        b = self.builder
        varies = lanes > 1 and vector >= 0 and self.kernel.axes[vector] in r.base.axes
        base = self._lane_indices(r.base, at, vector, lanes) if varies else self.index(r.base, at)
        place = b.add(*self._alike([base, computed]))
        if mask is not None:
            place, mask = self._alike([place, mask])
            place = b.select(mask, place, constant(0, "i64", lanes_of(place)))
        if lanes_of(place) == 1:
            return load(b, offset(b, self.buffers[r.input], place, r.dtype), r.dtype)
        out: ir.Value = ir.Constant(register_type(r.dtype, lanes), ir.Undefined)
        for k in range(lanes):
            lane = ir.Constant(I64, k)
            pointer = offset(b, self.buffers[r.input], b.extract_element(place, lane), r.dtype)
            out = b.insert_element(out, load(b, pointer, r.dtype), lane)
        return out

    def _any(self, mask: ir.Value) -> ir.Value:
        b = self.builder
        bits = b.bitcast(mask, ir.IntType(lanes_of(mask)))
        return b.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    def _guarded(self, access: int, pointer: ir.Value, mask: ir.Value | None) -> ir.Value:
        """The pointer where `mask` holds, else the start of the buffer, which is always readable."""
        if mask is None:
            return pointer
        start = self.buffers[self.reads[access].input]
        return self.builder.select(mask, pointer, start)

    def write(self, value: ir.Value, at: Position, vector: int, lanes: int) -> None:
        """Store one result, or `lanes` results along the vector axis."""
        b = self.builder
        access = len(self.reads)
        address, dtype = self.accesses[access]
        if lanes == 1:
            store(b, value, self.pointer(access, at), dtype)
            return
        value = splat(b, value, lanes)
        if address.is_affine and address.coefficient(self.kernel.axes[vector]) == 1:
            store(b, value, self.pointer(access, at), dtype, self._streamed_to(at))
            return
        for k in range(lanes):
            element = b.extract_element(value, ir.Constant(I64, k))
            store(b, element, self.pointer(access, at, k, vector), dtype)

    def _streamed_to(self, at: Position) -> int | None:
        """The bytes of which a place of the output is known to be a multiple, if results are streamed."""
        if not self.streamed:
            return None
        return math.gcd(at.even, self._static(self.kernel.out, at) * DTYPES[self.kernel.out_type.dtype].size)

    # --- rows of a register tile that lie across its vectors ---------------------------------------------------------

    def across(self, vector: int) -> list[tuple[Read, int]]:
        """The reads of the epilogue that move along the vector axis by more than an element, each with the axis along
        which its neighbours lie. Only reads that are performed everywhere."""
        if vector < 0:
            return []
        found = ((r, self._rows(r.index[0], r.dtype, vector)) for r in _unconditional(self.kernel.epilogue))
        return [(r, axis) for r, axis in found if axis is not None]

    def written_across(self, vector: int) -> int | None:
        """The axis along which neighbouring results lie, if it is another than the vectors'."""
        return self._rows(self.kernel.out, self.kernel.out_type.dtype, vector) if vector >= 0 else None

    def _rows(self, address: Index, dtype: str, vector: int) -> int | None:
        if not address.is_affine or dtype == "bool":
            return None
        axes = self.kernel.axes[: len(self.kernel.spatial)]
        along = address.coefficient(self.kernel.axes[vector])
        unit = [k for k, a in enumerate(axes) if k != vector and address.coefficient(a) == 1]
        return unit[0] if unit and along not in (0, 1) else None

    def read_across(self, r: Read, places: Sequence[Position], vector: int, lanes: int) -> None:
        """Load a read at neighbouring places, `lanes` steps along the vector axis each: rows, transposed."""
        access = self.number[r]
        pointers = [self.pointer(access, places[0], k, vector) for k in range(lanes)]
        rows = [load(self.builder, p, r.dtype, len(places)) for p in pointers]
        for at, value in zip(places, transposed(self.builder, rows), strict=True):
            self._loaded[self._key(r, at, vector, lanes, None)] = value

    def write_across(self, values: Sequence[ir.Value], at: Position, vector: int, lanes: int) -> None:
        """Store the results of neighbouring places, the first of which is `at`, as rows."""
        b, access, dtype = self.builder, len(self.reads), self.kernel.out_type.dtype
        for k, row in enumerate(restored(b, [splat(b, v, lanes) for v in values])):
            store(b, row, self.pointer(access, at, k, vector), dtype, self._streamed_to(at.shifted(vector, k)))


def _unconditional(s: Scalar) -> list[Read]:
    """The distinct reads of an expression that stand under no bounds test (nor under weights, which may be 0)."""
    if isinstance(s, (When, Weighted)):
        return []
    if isinstance(s, Read):
        return [s] if s.input != ACCUMULATOR else []
    return list(dict.fromkeys(r for c in children(s) for r in _unconditional(c)))
