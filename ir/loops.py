"""Kernels as loop computations: one rectangular iteration domain over flat buffers.

`lower` turns a (composed) tensor expression into a `LoopKernel`:

    for every point of the spatial axes:   acc = reduce(update) over the reduction axes;  out[address] = epilogue(acc)

Dimensions disappear: every access is a buffer and an address in elements. Axes that layouts cut (`n//16`, `n%16`) are
split, axes of extent 1 dropped, and neighbouring axes that every access walks as one are merged, so that kernels that
are the same computation are the same value, whatever operators they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from .errors import UnsupportedError
from .expr import Const, IndexValue, Read, Reduce, Scalar, TensorExpr, When, rebuild, walk
from .index import Axis, Index, Quotient, Remainder
from .scalars import neutral
from .types import TensorType

#: `Read(ACCUMULATOR, (), dtype)` in an epilogue is the finished reduction.
ACCUMULATOR = -1


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

    @cached_property
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

    @cached_property
    def update_reads(self) -> tuple[Read, ...]:
        return _reads(self.update) if self.update is not None else ()

    @cached_property
    def epilogue_reads(self) -> tuple[Read, ...]:
        return tuple(r for r in _reads(self.epilogue) if r.input != ACCUMULATOR)

    @cached_property
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


def _reads(s: Scalar) -> tuple[Read, ...]:
    return tuple(dict.fromkeys(n for n in walk(s) if isinstance(n, Read)))


def lower(expr: TensorExpr) -> LoopKernel:
    """The loop computation of a tensor expression with at most one reduction. Raises `UnsupportedError` otherwise."""
    expr = expr.canonical
    if len(expr.reduces) > 1:
        raise UnsupportedError(f"a kernel with {len(expr.reduces)} reductions does not lower to one loop nest: {expr}")
    interior, out_index, axes, fill = _interior(expr)
    update: Scalar | None = None
    kind, reduce_axes = "", ()
    epilogue = interior
    found = next((s for s in walk(interior) if isinstance(s, Reduce)), None)
    if found is not None and any(a.extent == 0 for a in found.axes):  # of no elements: the neutral one
        interior = epilogue = _replace(interior, found, Const(neutral(found.kind, found.dtype), found.dtype))
        found = None
    if found is not None:
        update, kind, reduce_axes = found.body, found.kind, found.axes
        epilogue = _replace(interior, found, Read(ACCUMULATOR, (), found.dtype))
        if {a for s in walk(epilogue) for a in _axes_of(s)} & set(reduce_axes):
            raise UnsupportedError(f"a reduction axis escapes its reduction: {expr}")
    strides = expr.type.strides
    out = _flat(out_index, strides)
    kernel = LoopKernel(expr.inputs, axes, reduce_axes, kind, update, epilogue, out, expr.type, fill)
    kernel = _map_reads(kernel, lambda r: Read(r.input, (_flat(r.index, expr.inputs[r.input].strides),), r.dtype))
    flat = replace(kernel, inputs=tuple(map(_flat_type, expr.inputs)), out_type=_flat_type(expr.type))
    return _canonical(_merge_axes(_split_axes(flat)))


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
    if isinstance(s, IndexValue):
        return set(s.index.axes)
    if isinstance(s, When):
        return {a for i, _, _ in s.bounds for a in i.axes}
    return set()


def _interior(expr: TensorExpr) -> tuple[Scalar, list[Index], tuple[Axis, ...], Const | None]:
    """Take a padding around the whole expression apart: the inner domain, where it is written, and the border value."""
    index = [Index.of(a) for a in expr.axes]
    axes = tuple(a for a in expr.axes if a.extent != 1)
    body = expr.body
    if not (isinstance(body, When) and isinstance(body.otherwise, Const)):
        return body, index, axes, None
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
    return _substitute(body.then, shift), moved, kept, body.otherwise


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
            elif isinstance(n, IndexValue):
                out.append(n.index)
    return out


def _reindex(k: LoopKernel, mapping: dict[Axis, Index], axes: dict[Axis, tuple[Axis, ...]]) -> LoopKernel:
    """Replace axes: `mapping` inside indices, `axes` in the lists of axes."""

    def renew(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(b for a in old for b in axes.get(a, (a,)))

    k = _map_scalars(k, lambda s: _substitute(s, mapping))
    return replace(k, out=k.out.substitute(mapping), spatial=renew(k.spatial), reduce=renew(k.reduce))


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


def _split_axes(k: LoopKernel) -> LoopKernel:
    """Split axes that layouts cut, so that addresses are affine: n -> (n0, n1) for n//16 and n%16."""
    for _ in range(8):
        cuts: dict[Axis, set[int]] = {}
        for index in _indices(k):
            for a, s in _cuts(index).items():
                cuts.setdefault(a, set()).update(s)
        todo = {a: place for a, s in cuts.items() if (place := _chain(a.extent, s))}
        if not todo:
            return k
        mapping: dict[Axis, Index] = {}
        axes: dict[Axis, tuple[Axis, ...]] = {}
        for a, places in todo.items():
            bounds = [*places, a.extent]
            digits = [Axis(f"{a.name}_{d}", bounds[d + 1] // p) for d, p in enumerate(places)]
            total = Index()
            for digit, p in zip(digits, places, strict=True):
                total = total + Index.of(digit) * p
            mapping[a] = total
            axes[a] = tuple(d for d in reversed(digits) if d.extent != 1)
        k = _reindex(k, mapping, axes)
    return k


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
            if isinstance(n, (When, IndexValue)):
                out |= _axes_of(n)
    for index in _indices(k):
        out |= {a for atom, _ in index.terms if not isinstance(atom, Axis) for a in atom.of.axes}
    return out


def _merge_axes(k: LoopKernel) -> LoopKernel:
    """Join axes a, b into one where every address walks them as one (coefficient of a = extent of b times b's)."""
    merged = True
    while merged:
        merged = False
        fixed = _bound_axes(k)
        indices = _indices(k)
        for group in (k.spatial, k.reduce):
            pair = next(
                (
                    (a, b)
                    for a in group
                    for b in group
                    if a != b
                    and not {a, b} & fixed
                    and all(i.coefficient(a) == i.coefficient(b) * b.extent for i in indices)
                ),
                None,
            )
            if pair is not None:
                a, b = pair
                c = Axis(f"{a.name}.{b.name}", a.extent * b.extent)
                k = _join(k, a, b, c)
                merged = True
                break
    return k


def _join(k: LoopKernel, a: Axis, b: Axis, c: Axis) -> LoopKernel:
    k = _reindex(k, {a: Index(), b: Index.of(c)}, {a: (), b: (c,)})
    return k


# --- canonical names ------------------------------------------------------------------------------------------------


def _canonical(k: LoopKernel) -> LoopKernel:
    """Spatial axes by falling stride of the output, reduction axes in order; named s0…, r0…"""
    spatial = sorted(k.spatial, key=lambda a: -abs(k.out.coefficient(a)))
    names = {a: Axis(f"s{d}", a.extent) for d, a in enumerate(spatial)}
    names |= {a: Axis(f"r{d}", a.extent) for d, a in enumerate(k.reduce)}
    k = _reindex(k, {a: Index.of(b) for a, b in names.items()}, {a: (b,) for a, b in names.items()})
    return replace(k, spatial=tuple(names[a] for a in spatial))
