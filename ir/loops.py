"""Kernels as loop computations: one rectangular iteration domain over flat buffers, or several that share axes.

`lower` turns a (composed) tensor expression into a `LoopKernel`:

    for every point of the spatial axes:   acc = reduce(update) over the reduction axes;  out[address] = epilogue(acc)

or, if it takes several reductions, into a `StagedKernel`, whose stages are such computations (`stages.py`).

Dimensions disappear: every access is a buffer and an address in elements. Axes that layouts cut (`n//16`, `n%16`) are
split, axes of extent 1 dropped, and neighbouring axes that every access walks as one are merged, so that kernels that
are the same computation are the same value, whatever operators they came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from .errors import UnsupportedError
from .expr import (
    Apply,
    Bound,
    Cast,
    Const,
    IndexValue,
    Kept,
    Read,
    ReadAt,
    Reduce,
    Scalar,
    TensorExpr,
    Weighted,
    When,
    children,
    rebuild,
    walk,
)
from .index import Axis, Index, Quotient, Remainder
from .lazy import lazy
from .nest import Nest, text
from .scalars import neutral
from .stages import ACCUMULATOR, StageBody, needs_stages, own_indices, take_apart
from .types import DTYPES, TensorType

#: Bytes of results between stages that one block may keep: they stay in the first-level cache, on the stack.
SCRATCH_BYTES = 64 * 1024
#: The same where operands are copied, which many rounds of a stage read: they stay in the second-level cache.
KEPT_BYTES = 256 * 1024
#: Terms that an accumulator takes one after the other at most, in floating point: the error of a chain grows with its
#: length. What is longer is summed by pieces, which is what others do who cut for their caches (a sum over 4096 rows
#: had an error of 3.3e-6, XLA's 2e-7; with this limit 1e-6).
CHAIN = 1024


@dataclass(frozen=True)
class LoopKernel:
    """A kernel over flat buffers.

    `inputs`: the buffers read (flat, as `out_type`). `spatial`, `reduce`: axes, each of extent > 1. `kind`: the
    reduction, or "" for a map (then `update` is None and `epilogue` computes the value). Reads carry one address.
    `out`: address written.
    `fill`: value of the elements of `out_type` that the domain does not write (padding), if any.
    """

    inputs: tuple[TensorType, ...]
    spatial: tuple[Axis, ...]
    reduce: tuple[Axis, ...]
    kind: str
    update: Scalar | None
    epilogue: Scalar
    out: Index
    out_type: TensorType
    fill: Const | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        return self.spatial + self.reduce

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(a.extent for a in self.axes)

    @lazy
    def points(self) -> int:
        """Size of the iteration domain."""
        n = 1
        for a in self.axes:
            n *= a.extent
        return n

    @property
    def accumulator_dtype(self) -> str:
        assert self.update is not None
        return self.update.dtype

    @lazy
    def is_long_sum(self) -> bool:
        """A sum in floating point of more terms than one accumulator may take: pieces of it are summed apart."""
        rounds = self.kind == "sum" and DTYPES[self.accumulator_dtype].kind == "float"
        return rounds and math.prod(a.extent for a in self.reduce) > CHAIN

    @lazy
    def paddings(self) -> tuple[Bound, ...]:
        """Bounds tests that fail where the update is the reduction's neutral element, taking what a padding of 0 is
        multiplied with for finite: such points need not be computed."""
        return tuple(dict.fromkeys(_paddings(self.update, self.kind))) if self.update is not None else ()

    @lazy
    def update_reads(self) -> tuple[Read, ...]:
        return _reads(self.update) if self.update is not None else ()

    @lazy
    def epilogue_reads(self) -> tuple[Read, ...]:
        return tuple(r for r in _reads(self.epilogue) if r.input != ACCUMULATOR)

    @lazy
    def gathers(self) -> tuple[ReadAt, ...]:
        """Reads at computed positions."""
        found = (n for s in (self.update, self.epilogue) if s is not None for n in walk(s))
        return tuple(dict.fromkeys(n for n in found if isinstance(n, ReadAt)))

    @lazy
    def is_alias(self) -> bool:
        """The output is an input's buffer as it stands (a reshape): nothing is computed."""
        e = self.epilogue
        whole = isinstance(e, Read) and len(e.index) == 1 and e.index[0] == self.out and not self.reduce
        if not whole or self.fill is not None or not isinstance(e, Read):
            return False
        source = self.inputs[e.input]
        return source.size == self.out_type.size and source.dtype == self.out_type.dtype

    def __str__(self) -> str:
        head = ", ".join(f"{a}<{a.extent}" for a in self.spatial)
        args = ", ".join(f"x{k}: {t}" for k, t in enumerate(self.inputs))
        lines = [f"({args}) -> {self.out_type}", f"for {head}:"]
        if self.update is not None:
            lines.append(f"  acc = {self.kind}({', '.join(f'{a}<{a.extent}' for a in self.reduce)}) {self.update}")
        text = str(self.epilogue).replace("x-1[]", "acc")
        lines.append(f"  out[{self.out}] = {text}" + (f"   (elsewhere {self.fill})" if self.fill else ""))
        return "\n".join(lines)


def _paddings(s: Scalar, kind: str) -> tuple[Bound, ...]:
    if isinstance(s, When) and isinstance(s.otherwise, Const) and s.otherwise.value == neutral(kind, s.dtype):
        return (*s.bounds, *_paddings(s.then, kind))
    if kind == "sum" and (isinstance(s, Cast) or (isinstance(s, Apply) and s.fn == "mul")):
        return tuple(b for a in children(s) for b in _paddings(a, kind))
    return ()


def _reads(s: Scalar) -> tuple[Read, ...]:
    return tuple(dict.fromkeys(n for n in walk(s) if isinstance(n, Read)))


@dataclass(frozen=True)
class StagedKernel:
    """A kernel of several stages over `shared` axes.

    A stage is a `LoopKernel` whose first spatial axes are the shared ones. Its input `len(inputs) + n` is the result
    of stage n, addressed within the block of the shared axes that the stages are run over (`in_block`): the shared
    axes outermost, or innermost (`across`) where the output is contiguous along one of them. `sequences`: the ways to
    compute the kernel, each the numbers of its stages in order; the last one writes the output. `room`: bytes that the
    results between the stages may take in a block.
    """

    inputs: tuple[TensorType, ...]
    shared: tuple[Axis, ...]
    stages: tuple[LoopKernel, ...]
    sequences: tuple[tuple[int, ...], ...]
    out_type: TensorType
    fill: Const | None = None
    across: bool = False
    room: int = SCRATCH_BYTES

    is_alias = False

    @property
    def extents(self) -> tuple[int, ...]:
        return tuple(a.extent for a in self.shared)

    @lazy
    def points(self) -> int:
        """Points of the stages that compute the kernel, in the first sequence."""
        return sum(self.stages[n].points for n in self.sequences[0])

    @lazy
    def frame(self) -> LoopKernel:
        """The shared axes alone: what loops around all stages run over."""
        nothing = Const(0, self.out_type.dtype)
        return LoopKernel(self.inputs, self.shared, (), "", None, nothing, Index(), self.out_type, self.fill)

    @lazy
    def results(self) -> tuple[LoopKernel, ...]:
        """The stages that write the output."""
        return tuple(self.stages[q[-1]] for q in self.sequences)

    def is_scratch(self, buffer: int) -> bool:
        """The buffer (an input of a stage) is another stage's result."""
        return buffer >= len(self.inputs)

    def elements(self, stage: int) -> int:
        """Results of a stage for one point of the shared axes."""
        return self.stages[stage].out_type.size // math.prod(self.extents)

    def scratch_bytes(self, sequence: Sequence[int]) -> int:
        """Bytes that the results between the stages of a sequence take for one point of the shared axes."""
        return sum(self.elements(n) * DTYPES[self.stages[n].out_type.dtype].size for n in sequence[:-1])

    def in_block(self, number: int, block: Sequence[int], last: bool) -> LoopKernel:
        """A stage with its scratch addresses for a block of these shared extents (`last`: it writes the output)."""
        stage = self.stages[number]

        def address(index: Index, elements: int) -> Index:
            stride = elements
            if self.across:
                stride, whole, here = 1, math.prod(self.extents), math.prod(block)
                own = [(a, c if a in self.shared else c // whole * here) for a, c in index.terms]
                index = Index(tuple(own), index.constant // whole * here)
            for a, n in reversed(list(zip(self.shared, block, strict=True))):
                index = index + Index.of(a) * (stride - index.coefficient(a))
                stride *= n
            return index

        def read(r: Read) -> Scalar:
            if not self.is_scratch(r.input):
                return r
            return replace(r, index=(address(r.index[0], self.elements(r.input - len(self.inputs))),))

        stage = _map_reads(stage, read)
        return stage if last else replace(stage, out=address(stage.out, self.elements(number)))

    def __str__(self) -> str:
        head = f"for {', '.join(f'{a}<{a.extent}' for a in self.shared)}:" if self.shared else "once:"
        lines = [f"stages in order {' or '.join(map(str, self.sequences))}", head]
        for k, stage in enumerate(self.stages):
            lines += [f"  stage {k}:", *(f"    {line}" for line in str(stage).splitlines()[1:])]
        return "\n".join(lines)


Lowered = LoopKernel | StagedKernel


def described(kernel: Lowered, nest: Nest) -> str:
    """A nest of the kernel as indented lines."""
    if isinstance(kernel, LoopKernel):
        return text(nest, [a.name for a in kernel.axes])
    own = [[a.name for a in k.axes] for k in kernel.stages]
    return text(nest, [a.name for a in kernel.shared], own=own)


@lru_cache(8192)
def lower(expr: TensorExpr) -> Lowered:
    """The loop computation of a tensor expression. Raises `UnsupportedError` if it has none (`stages.py` says when)."""
    found = _one_reduction(expr)
    if not isinstance(found, LoopKernel):
        return _lower_stages(expr.canonical, *found)
    kernel = _map_reads(found, lambda r: Read(r.input, (_flat(r.index, expr.inputs[r.input].strides),), r.dtype))
    flat = replace(kernel, inputs=tuple(map(_flat_type, expr.inputs)), out_type=_flat_type(expr.type))
    (split,), _ = _split_axes([flat], ())
    (merged,), _ = _merge_axes([split], ())
    return _canonical(merged, ())


def by_dimension(expr: TensorExpr) -> LoopKernel:
    """As `lower`, but every read has an index for each dimension of its buffer, and axes are not merged.

    Raises `UnsupportedError` for a computation of several stages.
    """
    found = _one_reduction(expr)
    if not isinstance(found, LoopKernel):
        raise UnsupportedError(f"several reductions, one after the other: {expr}")
    (split,), _ = _split_axes([found], ())
    return split


def _one_reduction(expr: TensorExpr) -> LoopKernel | tuple[Scalar, tuple[Axis, ...], Index, Const | None]:
    """The loop computation with an index for each dimension; or, of one that takes stages, what they are made of."""
    expr = expr.canonical
    interior, out_index, axes, fill = _interior(expr)
    interior = _without_empty_reductions(interior)
    out = _flat(out_index, expr.type.strides)
    if needs_stages(interior, axes):
        interior, out, axes = _split_body(interior, out, axes)
        return interior, axes, out, fill
    update: Scalar | None = None
    kind, reduce_axes = "", ()
    epilogue = interior
    found = next((s for s in walk(interior) if isinstance(s, Reduce)), None)
    if found is not None:
        update, kind, reduce_axes = _guarded(interior, found), found.kind, found.axes
        epilogue = _replace(interior, found, Read(ACCUMULATOR, (), found.dtype))
        if {a for s in walk(epilogue) for a in _axes_of(s)} & set(reduce_axes):
            raise UnsupportedError(f"a reduction axis escapes its reduction: {expr}")
    return LoopKernel(expr.inputs, axes, reduce_axes, kind, update, epilogue, out, expr.type, fill)


def _guarded(body: Scalar, reduction: Reduce) -> Scalar:
    """What a reduction in `body` combines, under the bounds tests that stand around it there: where they fail, it may
    read outside its operands, and its result is not used."""
    around = _tests_around(body, reduction)
    if len(around) > 1 and any(around):
        raise UnsupportedError(f"a reduction under several bounds tests: {reduction}")
    (bounds,) = around if len(around) == 1 else ((),)
    if not bounds:
        return reduction.body
    nothing = Const(neutral(reduction.kind, reduction.dtype), reduction.dtype)
    return When(bounds, reduction.body, nothing, reduction.dtype)


def _tests_around(body: Scalar, part: Scalar) -> set[tuple[Bound, ...]]:
    """The bounds that hold wherever `body` uses `part`, once for each different way down to it."""
    if body == part:
        return {()}
    found = {t for c in children(body) for t in _tests_around(c, part)}
    if not found or not isinstance(body, When):
        return found
    if _tests_around(body.otherwise, part):
        raise UnsupportedError(f"a reduction where a bounds test fails: {body}")
    return {(*body.bounds, *t) for t in found}


def _without_empty_reductions(body: Scalar) -> Scalar:
    """A reduction of no elements is its neutral one."""
    empty = next((s for s in walk(body) if isinstance(s, Reduce) and any(a.extent == 0 for a in s.axes)), None)
    if empty is None:
        return body
    return _without_empty_reductions(_replace(body, empty, Const(neutral(empty.kind, empty.dtype), empty.dtype)))


def _lower_stages(
    expr: TensorExpr, body: Scalar, axes: tuple[Axis, ...], out: Index, fill: Const | None
) -> Lowered:
    staging = take_apart(body, axes, len(expr.inputs))
    room = KEPT_BYTES if any(isinstance(s, Kept) for s in walk(body)) else SCRATCH_BYTES
    flat_shared = _strides([a.extent for a in staging.shared])
    points = math.prod(a.extent for a in staging.shared)
    own = [math.prod(a.extent for a in s.own) for s in staging.stages]
    scratch = tuple(
        TensorType((points * n,), s.epilogue.dtype) for n, s in zip(own, staging.stages, strict=True)
    )
    buffers = (*map(_flat_type, expr.inputs), *scratch)
    across = bool(staging.shared) and out.coefficient(staging.shared[-1]) == 1

    def address(number: int, index: Sequence[Index]) -> Index:
        shared = _flat([Index.of(a) for a in staging.shared], flat_shared)
        inside = _flat(index, _strides([a.extent for a in staging.stages[number].own]))
        return shared + inside * points if across else shared * own[number] + inside

    def read(r: Read) -> Scalar:
        n = r.input - len(expr.inputs)
        return replace(r, index=(address(n, r.index) if n >= 0 else _flat(r.index, expr.inputs[r.input].strides),))

    def kernel(number: int, s: StageBody) -> LoopKernel:
        last = any(q[-1] == number for q in staging.sequences)
        where = out if last else address(number, [Index.of(a) for a in s.own])
        made = _flat_type(expr.type) if last else scratch[number]
        k = LoopKernel(buffers, (*staging.shared, *s.own), s.reduce, s.kind, s.update, s.epilogue, where, made)
        names = {a: Axis(f"{a.name} of {number}", a.extent) for a in (*s.own, *s.reduce)}
        return _reindex(
            _map_reads(k, read), {a: Index.of(b) for a, b in names.items()}, {a: (b,) for a, b in names.items()}
        )

    split, shared = _split_axes([kernel(n, s) for n, s in enumerate(staging.stages)], staging.shared)
    merged, shared = _merge_axes(split, shared)
    stages = tuple(_canonical(k, shared) for k in merged)
    if len(stages) == 1:  # reductions that differed in the names of their axes
        return replace(stages[0], inputs=tuple(map(_flat_type, expr.inputs)), fill=fill)
    named = stages[0].spatial[: len(shared)]
    staged = StagedKernel(
        tuple(map(_flat_type, expr.inputs)), named, stages, staging.sequences, _flat_type(expr.type), fill, across, room
    )
    fitting = tuple(q for q in staging.sequences if staged.scratch_bytes(q) <= room)
    if not fitting:
        least = min(map(staged.scratch_bytes, staging.sequences))
        raise UnsupportedError(f"stages would keep {least} bytes between them, more than {room}: {expr}")
    crooked = [r for k in stages for r in _reads_of(k) if staged.is_scratch(r.input) and not r.index[0].is_affine]
    if crooked:
        raise UnsupportedError(f"a stage reads another's result at {crooked[0].index[0]}, not along its axes: {expr}")
    return replace(staged, sequences=fitting)


def _strides(extents: Sequence[int]) -> tuple[int, ...]:
    return TensorType(tuple(extents)).strides


def _reads_of(k: LoopKernel) -> tuple[Read, ...]:
    return (*k.update_reads, *k.epilogue_reads)


def _flat_type(t: TensorType) -> TensorType:
    return t.with_shape((t.size,))


def _flat(index: Sequence[Index], strides: Sequence[int]) -> Index:
    total = Index()
    for i, s in zip(index, strides, strict=True):
        total = total + i * s
    return total


def _axes_of(s: Scalar) -> set[Axis]:
    if isinstance(s, Read):
        return {a for i in s.index for a in i.axes}
    if isinstance(s, (IndexValue, Weighted)):
        return set(s.index.axes)
    if isinstance(s, ReadAt):
        return set(s.base.axes)
    if isinstance(s, When):
        return {a for i, _, _ in s.bounds for a in i.axes}
    return set()


def _interior(expr: TensorExpr) -> tuple[Scalar, list[Index], tuple[Axis, ...], Const | None]:
    """Take a padding around the whole expression apart: the inner domain, where it is written, and the border value."""
    index = [Index.of(a) for a in expr.axes]
    axes = tuple(a for a in expr.axes if a.extent != 1)
    body = expr.body
    if not (isinstance(body, When) and isinstance(fill := body.otherwise, Const)):
        return body, index, axes, None
    while isinstance(body.then, When) and body.then.otherwise == fill:  # padding around padding
        body = When((*body.bounds, *body.then.bounds), body.then.then, fill, body.dtype)
    window: dict[Axis, tuple[int, int]] = {a: (0, a.extent) for a in axes}
    for i, lo, hi in body.bounds:
        if len(i.terms) != 1 or i.terms[0][1] != 1 or not isinstance(i.terms[0][0], Axis):
            return body, index, axes, None
        a = i.terms[0][0]
        window[a] = (max(window[a][0], lo - i.constant), min(window[a][1], hi - i.constant))
    if any(hi <= lo for lo, hi in window.values()):
        return body, index, axes, None
    inner = {a: Axis(f"{a.name}i", hi - lo) for a, (lo, hi) in window.items()}
    shift = {a: Index.of(inner[a]) + window[a][0] for a in axes}
    moved = [i.substitute(shift) for i in index]
    kept = tuple(b for b in inner.values() if b.extent != 1)
    return _substitute(body.then, shift), moved, kept, fill


def _substitute(s: Scalar, mapping: dict[Axis, Index]) -> Scalar:
    def go(n: Scalar) -> Scalar:
        return rebuild(n, go, lambda i: i.substitute(mapping))

    return go(s)


def _replace(s: Scalar, old: Scalar, new: Scalar) -> Scalar:
    def go(n: Scalar) -> Scalar:
        return new if n == old else rebuild(n, go, lambda i: i)

    return go(s)


def _map_scalars(k: LoopKernel, f: Callable[[Scalar], Scalar]) -> LoopKernel:
    return replace(k, update=None if k.update is None else f(k.update), epilogue=f(k.epilogue))


def _map_reads(k: LoopKernel, f: Callable[[Read], Scalar]) -> LoopKernel:
    def go(n: Scalar) -> Scalar:
        if isinstance(n, Read):
            return n if n.input == ACCUMULATOR else f(n)
        return rebuild(n, go, lambda i: i)

    return _map_scalars(k, go)


def _indices(k: LoopKernel) -> list[Index]:
    """Every index expression of the kernel: addresses, bounds, index values."""
    out = [k.out]
    for s in (k.update, k.epilogue):
        for n in walk(s) if s is not None else ():
            if isinstance(n, Read):
                out += n.index
            elif isinstance(n, When):
                out += [i for i, _, _ in n.bounds]
            elif isinstance(n, (IndexValue, Weighted)):
                out.append(n.index)
            elif isinstance(n, ReadAt):
                out.append(n.base)
    return out


def _all_indices(ks: Sequence[LoopKernel]) -> list[Index]:
    return [i for k in ks for i in _indices(k)]


def _reindex(k: LoopKernel, mapping: dict[Axis, Index], axes: dict[Axis, tuple[Axis, ...]]) -> LoopKernel:
    """Replace axes: `mapping` inside indices, `axes` in the lists of axes."""

    k = _map_scalars(k, lambda s: _substitute(s, mapping))
    out = k.out.substitute(mapping)
    return replace(k, out=out, spatial=_renewed(k.spatial, axes), reduce=_renewed(k.reduce, axes))


def _renewed(old: tuple[Axis, ...], axes: dict[Axis, tuple[Axis, ...]]) -> tuple[Axis, ...]:
    return tuple(b for a in old for b in axes.get(a, (a,)))


# --- splitting ------------------------------------------------------------------------------------------------------


def _cuts(index: Index) -> dict[Axis, set[int]]:
    """Axis -> places at which a quotient or remainder of that axis alone cuts it."""
    found: dict[Axis, set[int]] = {}
    for atom, _ in index.terms:
        if isinstance(atom, (Quotient, Remainder)):
            inner = atom.of
            if len(inner.terms) == 1 and inner.terms[0][1] == 1 and isinstance(inner.terms[0][0], Axis):
                found.setdefault(inner.terms[0][0], set()).add(atom.by)
            for a, s in _cuts(inner).items():
                found.setdefault(a, set()).update(s)
    return found


def _split_axes(
    ks: Sequence[LoopKernel], shared: tuple[Axis, ...]
) -> tuple[list[LoopKernel], tuple[Axis, ...]]:
    """Split axes that layouts cut, so that addresses are affine: n -> (n0, n1) for n//16 and n%16."""
    ks = list(ks)
    for _ in range(8):
        mapping, axes = _digits(_all_indices(ks))
        if not mapping:
            break
        ks = [_reindex(k, mapping, axes) for k in ks]
        shared = _renewed(shared, axes)
    return ks, shared


def _split_body(
    body: Scalar, out: Index, axes: tuple[Axis, ...]
) -> tuple[Scalar, Index, tuple[Axis, ...]]:
    """The same of an expression before it is taken apart: a stage that needs only a digit of an axis runs over that."""
    for _ in range(8):
        mapping, digits = _digits([out, *(i for s in walk(body) for i in own_indices(s))], axes)
        if not mapping:
            break
        body, out, axes = _substitute(body, mapping), out.substitute(mapping), _renewed(axes, digits)
    return body, out, axes


def _digits(
    indices: Sequence[Index], only: Sequence[Axis] | None = None
) -> tuple[dict[Axis, Index], dict[Axis, tuple[Axis, ...]]]:
    """Axes (of all, or of some) that the indices cut, as sums of their digits, and these digits."""
    cuts: dict[Axis, set[int]] = {}
    for index in indices:
        for a, s in _cuts(index).items():
            cuts.setdefault(a, set()).update(s)
    mapping: dict[Axis, Index] = {}
    axes: dict[Axis, tuple[Axis, ...]] = {}
    for a, s in cuts.items():
        places = _chain(a.extent, s) if only is None or a in only else []
        if not places:
            continue
        bounds = [*places, a.extent]
        digits = [Axis(f"{a.name}_{d}", bounds[d + 1] // p) for d, p in enumerate(places)]
        total = Index()
        for digit, p in zip(digits, places, strict=True):
            total = total + Index.of(digit) * p
        mapping[a] = total
        axes[a] = tuple(d for d in reversed(digits) if d.extent != 1)
    return mapping, axes


def _chain(extent: int, cuts: set[int]) -> list[int]:
    """The longest chain 1 | c1 | c2 … | extent among the cuts; empty if there is no cut to make."""
    places = [1]
    for c in sorted(cuts):
        if c > 1 and c < extent and extent % c == 0 and c % places[-1] == 0:
            places.append(c)
    return places if len(places) > 1 else []


# --- merging --------------------------------------------------------------------------------------------------------


def _bound_axes(k: LoopKernel) -> set[Axis]:
    """Axes that occur otherwise than linearly in an address: they cannot be merged."""
    out: set[Axis] = set()
    for s in (k.update, k.epilogue):
        for n in walk(s) if s is not None else ():
            if isinstance(n, (When, IndexValue, Weighted)):
                out |= _axes_of(n)
    for index in _indices(k):
        out |= {a for atom, _ in index.terms if not isinstance(atom, Axis) for a in atom.of.axes}
    return out


def _merge_axes(
    ks: Sequence[LoopKernel], shared: tuple[Axis, ...]
) -> tuple[list[LoopKernel], tuple[Axis, ...]]:
    """Join axes a, b into one where every address walks them as one (coefficient of a = extent of b times b's)."""
    ks = list(ks)
    while pair := _mergeable(ks, shared):
        a, b = pair
        c = Axis(f"{a.name}.{b.name}", a.extent * b.extent)
        axes: dict[Axis, tuple[Axis, ...]] = {a: (), b: (c,)}
        ks = [_reindex(k, {a: Index(), b: Index.of(c)}, axes) for k in ks]
        shared = _renewed(shared, axes)
    return ks, shared


def _mergeable(ks: Sequence[LoopKernel], shared: tuple[Axis, ...]) -> tuple[Axis, Axis] | None:
    fixed = set().union(*map(_bound_axes, ks))
    indices = _all_indices(ks)
    groups = [shared] if shared else []
    for k in ks:
        groups += [k.spatial[len(shared) :], k.reduce]
    pairs = ((a, b) for group in groups for a in group for b in group if a != b and not {a, b} & fixed)
    return next(
        ((a, b) for a, b in pairs if all(i.coefficient(a) == i.coefficient(b) * b.extent for i in indices)), None
    )


# --- canonical names ------------------------------------------------------------------------------------------------


def _canonical(k: LoopKernel, shared: tuple[Axis, ...]) -> LoopKernel:
    """Shared axes, then spatial axes by falling stride of the output, then reduction axes; named s0…, r0…"""
    spatial = [*shared, *sorted(k.spatial[len(shared) :], key=lambda a: -abs(k.out.coefficient(a)))]
    names = {a: Axis(f"s{d}", a.extent) for d, a in enumerate(spatial)}
    names |= {a: Axis(f"r{d}", a.extent) for d, a in enumerate(k.reduce)}
    k = _reindex(k, {a: Index.of(b) for a, b in names.items()}, {a: (b,) for a, b in names.items()})
    return replace(k, spatial=tuple(names[a] for a in spatial))
