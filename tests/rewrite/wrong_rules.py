"""Deliberately wrong rules, each an easy mistake to make: `test_check.py` has them all refuted."""

from __future__ import annotations

from nestegg import loop_rule, op, rule
from nestegg.ir.attrs import Attrs
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_language import Cat, For, Tile, Vec

# --- graph rules -------------------------------------------------------------------------------------


@rule("algebra")
def transposes_composed_in_the_wrong_order(x, *, a, b):
    """perm of both is a[b[d]], not b[a[d]]."""
    return op.transpose(op.transpose(x, a), b) >> op.transpose(
        x, perm=lambda a, b: tuple(b.perm[p] for p in a.perm)
    )


@rule("algebra", when=lambda a, x: a.perm == tuple(reversed(range(x.rank))) and len(set(x.shape)) <= 1)
def transpose_of_a_square_is_nothing(x, *, a):
    """The same shape is not the same tensor."""
    return op.transpose(x, a) >> x


@rule("algebra")
def reshape_and_transpose_exchanged(x, *, r, t):
    """Row-major order is not kept by a transpose."""
    return op.reshape(op.transpose(x, t), r) >> op.reshape(x, r)


@rule("algebra")
def operands_swapped(x, y):
    """Subtraction does not commute."""
    return op.sub(x, y) >> op.sub(y, x)


@rule("algebra")
def max_distributed_over_mul(x, y, s):
    """Only for s >= 0."""
    return op.mul(op.max(x, y), s) >> op.max(op.mul(x, s), op.mul(y, s))


@rule("algebra")
def broadcasts_added_without_condition(s, t, *, b):
    """Where s and t have different extents, their sum does not exist."""
    return op.add(op.broadcast(s, b), op.broadcast(t, b)) >> op.broadcast(op.add(s, t), b)


def _conv_scale(c):
    n, groups = c.integer(1, 3), c.pick((1, 2))
    x, w = TensorType((1, groups, 3, 3)), TensorType((groups * n, 1, 1, 1))
    attrs = Attrs(
        strides=(1, 1), padding=((0, 0), (0, 0)), lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=groups
    )
    scaled = TensorType((groups * n,))
    return {"x": x, "w": w, "c": attrs, "s": scaled, "b": Attrs(shape=(1, groups * n, 3, 3), dims=(1,))}


@rule("algebra", when=lambda b, s, w: b.dims == (1,) and s.shape == w.shape[1:2], draw=_conv_scale)
def scale_on_the_wrong_axis(x, w, s, *, c, b):
    """The factor belongs to the output channels of the weights: axis 0."""
    return op.mul(op.conv(x, w, c), op.broadcast(s, b)) >> op.conv(
        x, op.mul(w, op.broadcast(s, shape=lambda w: w.shape, dims=(1,))), c
    )


def _plain_conv(c):
    x, w = TensorType((1, 2, c.integer(2, 4), c.integer(2, 4))), TensorType((2, 2, 1, 1))
    attrs = Attrs(
        strides=(1, 1), padding=((0, 0), (0, 0)), lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1
    )
    return {"x": x, "w": w, "c": attrs}


@rule(
    "algorithm",
    when=lambda x, w: x.rank == 4 and w.shape[2:] == (1, 1) and w.shape[1] == x.shape[1],
    draw=_plain_conv,
)
def stride_ignored(x, w, *, c):
    """A 1x1 convolution is a matrix product only without stride, which the sampler never draws."""
    rows = op.dot(
        op.reshape(w, shape=lambda w: w.shape[:2]),
        op.reshape(x, shape=lambda x: (x.shape[0], x.shape[1], x.shape[2] * x.shape[3])),
        contract=((1,), (1,)),
        batch=((), ()),
    )
    image = op.reshape(
        op.transpose(rows, perm=(1, 0, 2)),
        shape=lambda x, w: (x.shape[0], w.shape[0], x.shape[2], x.shape[3]),
    )
    return op.conv(x, w, c) >> image


@rule("algorithm", when=lambda a: a.kind == "max" and set(a.strides) == {1} and set(a.dilation) == {1})
def padding_ignored(x, *, a):
    """A window over the padding is none over the padded tensor: zero is not below everything."""
    padded = op.pad(
        x,
        low=lambda a: tuple(p[0] for p in a.padding),
        high=lambda a: tuple(p[1] for p in a.padding),
        interior=lambda x: (0,) * x.rank,
        value=0.0,
    )
    return op.window(x, a) >> op.window(
        padded,
        kind="max",
        window=lambda a: a.window,
        strides=lambda a: a.strides,
        padding=lambda a: ((0, 0),) * len(a.padding),
        dilation=lambda a: a.dilation,
    )


@rule(
    "algebra", when=lambda x, b: x.rank == 1 and len(b.shape) == 2 and b.shape[0] == b.shape[1] == x.shape[0]
)
def broadcast_along_the_wrong_axis(x, *, b):
    """Rows are not columns, though the shapes agree."""
    return op.broadcast(x, b) >> op.broadcast(x, shape=lambda b: b.shape, dims=lambda b: (1 - b.dims[0],))


@rule("algebra", when=lambda s, x: all(k == 1 for k in s.strides))
def slice_forgets_its_start(x, *, s):
    """The slice begins at `start`."""
    return op.slice(x, s) >> op.slice(
        x,
        start=lambda s: (0,) * len(s.start),
        limit=lambda s: tuple(e - b for b, e in zip(s.start, s.limit, strict=True)),
        strides=lambda s: s.strides,
    )


@rule("layout")
def packs_cancel_whatever_the_axis(x, *, p, u):
    """Only if the axes are the same."""
    return op.unpack(op.pack(x, p), u) >> x


@rule("algebra", when=lambda a, b: a.kind == b.kind)
def reductions_merged_by_concatenating_axes(x, *, a, b):
    """The axes of the second are counted after those of the first are gone."""
    return op.reduce(op.reduce(x, a), b) >> op.reduce(
        x, kind=lambda a: a.kind, axes=lambda a, b: a.axes + b.axes
    )


@rule("algebra", when=lambda w: w.shape[1] % 2 == 0)
def condition_that_raises(x, w, *, d):
    """`w.shape[1]` does not exist for a vector."""
    return op.dot(x, w, d) >> op.dot(x, w, d)


# --- loop rules --------------------------------------------------------------------------------------


@loop_rule("tiling", phase="serial", over="spatial")
def remainder_dropped(b, a):
    """An odd extent loses its last index."""
    return For(a, b.extent(a) // 2, "serial", b.resized(a, 2))


@loop_rule("tiling", phase="serial", over="spatial")
def middle_visited_twice(b, a):
    """The pieces overlap where the extent is odd."""
    half = (b.extent(a) + 1) // 2
    b.require(b.extent(a) > 1)
    return Cat(a, b.extent(a) // 2, b.resized(a, half), b.resized(a, half))


@loop_rule("parallel", phase="parallel", over="reduced")
def reduction_in_parallel(b, a):
    """Threads would add to the same result."""
    f, trips = b.factor(a)
    return For(a, trips, "parallel", b.resized(a, f).into("serial"))


@loop_rule("vectorize", phase="serial", over="contiguous")
def tile_larger_than_the_registers(b, a):
    """No budget is asked for."""
    return Tile(a, b.into("tile", vector=a))


@loop_rule("vectorize", phase="unroll", over="spatial")
def vector_longer_than_a_register(b, a):
    """`lanes` is not looked at."""
    b.require(b.vector.equals(a.number), *(b.extent(x).equals(1) for x in b.space.axes if x != a))
    return Vec(a.number, b.extent(a))


@loop_rule("vectorize", phase="unroll", over="spatial")
def other_axes_forgotten(b, a):
    """A vector covers one axis; the others must be 1."""
    b.require(b.vector.equals(a.number), b.extent(a) <= b.space.lanes)
    return Vec(a.number, b.extent(a))


@loop_rule("tiling", phase="serial", over="spatial")
def loop_of_one_trip(b, a):
    """Equates a block with a loop around itself: the e-graph has a cycle."""
    return For(a, 1, "serial", b)
