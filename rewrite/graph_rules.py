"""The shipped rules of graph programs: algebra, layout and algorithm. Fusion rules are in `fusion_rules.py`.

Each rule is an equation over the reals; `nestegg check-rules` tests it in float64 on drawn shapes and attributes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir.attrs import Attrs
from ..ir.intrinsic import Intrinsic
from ..ir.operator import Chooser
from ..ir.types import DTYPES, TensorType
from .fusion_rules import FUSION_RULES, STAGING_RULES, KernelRule
from .linear import is_matmul
from .pattern import Environment, op
from .quantization_rules import INTEGER_RULES
from .reductions import reduction_rules
from .rule import GraphRule, rule
from .strassen import strassen_rules
from .subpixel import transposed_conv_by_phases, transposed_conv_phase_by_phase
from .tensor_rules import packing_rules
from .winograd import ROUNDING_GAIN, winograd_rules

# --- samplers for rules whose condition random instances seldom meet -------------------------------------------------


def _channel_broadcast(c: Chooser) -> Environment:
    n = c.integer(1, 4)
    shape = (c.integer(1, 2), n, *(c.integer(1, 4) for _ in range(c.integer(0, 2))))
    return {"s": TensorType((n,)), "b": Attrs(shape=shape, dims=(1,))}


def _conv_scale(c: Chooser) -> Environment:
    rank = c.integer(1, 2)
    spatial, kernel = tuple(c.integer(2, 5) for _ in range(rank)), tuple(c.integer(1, 2) for _ in range(rank))
    groups = c.pick((1, 1, 2))
    channels, out = groups * c.integer(1, 2), groups * c.integer(1, 3)
    x, w = TensorType((1, channels, *spatial)), TensorType((out, channels // groups, *kernel))
    attrs = Attrs(
        strides=tuple(c.integer(1, 2) for _ in range(rank)),
        padding=tuple((c.integer(0, 1), c.integer(0, 1)) for _ in range(rank)),
        lhs_dilation=(1,) * rank,
        rhs_dilation=(1,) * rank,
        groups=groups,
    )
    from ..ir.operator import operator

    shape = operator("conv").check((x, w), attrs).shape
    return {"x": x, "w": w, "c": attrs, "s": TensorType((out,)), "b": Attrs(shape=shape, dims=(1,))}


def _matmul(c: Chooser, columns: Sequence[int] = (1, 2, 3, 5)) -> Environment:
    m, k, n = c.integer(1, 4), c.integer(1, 4), c.pick(columns)
    return {"x": TensorType((m, k)), "w": TensorType((k, n)), "d": Attrs(contract=((1,), (0,)), batch=((), ()))}


def _matmul_scale(c: Chooser) -> Environment:
    env = _matmul(c)
    shape = (env["x"].shape[0], env["w"].shape[1])
    return {**env, "s": TensorType(shape[1:]), "b": Attrs(shape=shape, dims=(1,))}


# --- algebra ---------------------------------------------------------------------------------------------------------


def is_batch(d: Attrs, x: TensorType, w: TensorType) -> bool:
    """x[b, m, k] @ w[b, n, k] for every b."""
    return x.rank == w.rank == 3 and d.batch == ((0,), (0,)) and d.contract == ((2,), (2,))


def scales_columns(d: Attrs, b: Attrs, x: TensorType, w: TensorType) -> bool:
    """A matmul whose result is multiplied by one factor a column."""
    return is_matmul(d, x, w) and b.dims == (x.rank - 1,)


def scales_channels(b: Attrs, s: TensorType, w: TensorType) -> bool:
    """One factor for each output channel."""
    return b.dims == (1,) and s.shape == w.shape[:1]


@rule("algebra", when=scales_channels, const=("w", "s"), draw=_conv_scale, dominates=True)
def scale_into_conv(x, w, s, *, c, b):
    """A factor per output channel goes into the weights (batch-norm folding, first half)."""
    return op.mul(op.conv(x, w, c), op.broadcast(s, b)) >> op.conv(
        x, op.mul(w, op.broadcast(s, shape=lambda w: w.shape, dims=(0,))), c
    )


@rule("algebra", when=scales_columns, const=("w", "s"), draw=_matmul_scale, dominates=True)
def scale_into_matmul(x, w, s, *, d, b):
    """A factor per column goes into the weights."""
    return op.mul(op.dot(x, w, d), op.broadcast(s, b)) >> op.dot(
        x, op.mul(w, op.broadcast(s, shape=lambda w: w.shape, dims=(1,))), d
    )


@rule("algebra", const=("s", "t"))
def distribute_constant(x, s, t):
    """(x + s) * t -> x*t + s*t: moves a bias out of the way of a factor (batch-norm folding, second half)."""
    return op.mul(op.add(x, s), t) >> op.add(op.mul(x, t), op.mul(s, t))


@rule("algebra", const=("s", "t"))
def add_constants(x, s, t):
    """(x + s) + t -> x + (s + t)"""
    return op.add(op.add(x, s), t) >> op.add(x, op.add(s, t))


@rule("algebra", const=("s", "t"))
def multiply_constants(x, s, t):
    """(x * s) * t -> x * (s * t)"""
    return op.mul(op.mul(x, s), t) >> op.mul(x, op.mul(s, t))


@rule("algebra", when=lambda s: DTYPES[s.dtype].kind in ("float", "int"), const=("s",))
def subtract_constant(x, s):
    """x - s -> x + (-s), so that only additions need rules"""
    return op.sub(x, s) >> op.add(x, op.neg(s))


@rule("algebra", const=("s",), rounds=True)
def divide_by_constant(x, s):
    """x / s -> x * (1 / s): one multiplication, no division (1 is s == s, so that 0 and inf divide as before)"""
    one = op.cast(op.eq(s, s), dtype=lambda s: s.dtype)
    return op.div(x, s) >> op.mul(x, op.div(one, s))


@rule("algebra", rounds=True)
def divide_by_broadcast(x, s, *, b):
    """x / broadcast(s) -> x * broadcast(1 / s): one division for all that s is repeated over"""
    return op.div(x, op.broadcast(s, b)) >> op.mul(x, op.broadcast(op.reciprocal(s), b))


@rule("algebra", when=lambda s, t: s.shape == t.shape, const=("s", "t"))
def add_broadcasts(s, t, *, b):
    """broadcast(s) + broadcast(t) -> broadcast(s + t)"""
    return op.add(op.broadcast(s, b), op.broadcast(t, b)) >> op.broadcast(op.add(s, t), b)


@rule("algebra", when=lambda s, t: s.shape == t.shape, const=("s", "t"))
def multiply_broadcasts(s, t, *, b):
    """broadcast(s) * broadcast(t) -> broadcast(s * t)"""
    return op.mul(op.broadcast(s, b), op.broadcast(t, b)) >> op.broadcast(op.mul(s, t), b)


@rule("algebra", const=("s",))
def negate_broadcast(s, *, b):
    """-broadcast(s) -> broadcast(-s)"""
    return op.neg(op.broadcast(s, b)) >> op.broadcast(op.neg(s), b)


@rule("algebra")
def transpose_transpose(x, *, a, b):
    """Two permutations are one."""
    return op.transpose(op.transpose(x, a), b) >> op.transpose(
        x, perm=lambda a, b: tuple(a.perm[p] for p in b.perm)
    )


@rule("algebra", when=lambda a: a.perm == tuple(range(len(a.perm))))
def transpose_nothing(x, *, a):
    """The identity permutation."""
    return op.transpose(x, a) >> x


@rule("algebra")
def reshape_reshape(x, *, a, b):
    """Only the last shape counts."""
    return op.reshape(op.reshape(x, a), b) >> op.reshape(x, b)


@rule("algebra", when=lambda a, x: a.shape == x.shape)
def reshape_nothing(x, *, a):
    """The same shape."""
    return op.reshape(x, a) >> x


@rule("algebra", when=lambda a, x: set(a.start) == {0} and set(a.strides) == {1} and a.limit == x.shape)
def slice_nothing(x, *, a):
    """The whole tensor."""
    return op.slice(x, a) >> x


@rule("algebra", when=lambda a: {*a.low, *a.high, *a.interior} == {0})
def pad_nothing(x, *, a):
    """No border."""
    return op.pad(x, a) >> x


def _widens(a: Attrs, b: Attrs) -> bool:
    """Two borders of one value, neither between elements nor cutting any off."""
    grows = min((*a.low, *a.high, *b.low, *b.high, 0)) >= 0
    return a.value == b.value and {*a.interior, *b.interior, 0} == {0} and grows


def _pad_twice(c: Chooser) -> Environment:
    x = TensorType(tuple(c.integer(1, 4) for _ in range(c.integer(1, 3))))

    def border() -> Attrs:
        low, high = (tuple(c.integer(0, 2) for _ in x.shape) for _ in range(2))
        return Attrs(low=low, high=high, interior=(0,) * x.rank, value=0.0)

    return {"x": x, "a": border(), "b": border()}


@rule("algebra", when=_widens, draw=_pad_twice)
def pad_pad(x, *, a, b):
    """Two borders of one value are one."""
    return op.pad(op.pad(x, a), b) >> op.pad(
        x,
        low=lambda a, b: tuple(map(sum, zip(a.low, b.low, strict=True))),
        high=lambda a, b: tuple(map(sum, zip(a.high, b.high, strict=True))),
        interior=lambda a: a.interior,
        value=lambda a: a.value,
    )


# --- layout ----------------------------------------------------------------------------------------------------------


def _pack_again(c: Chooser) -> Environment:
    factor = c.integer(1, 4)
    x = TensorType((*(c.integer(1, 3) for _ in range(c.integer(1, 3))), factor))
    axis = c.integer(0, x.rank - 2)
    return {"x": x, "u": Attrs(axis=axis), "p": Attrs(axis=axis, factor=factor)}


@rule("layout", when=lambda p, u: p.axis == u.axis)
def unpack_pack(x, *, p, u):
    """unpack(pack(x)) -> x: a layout and its inverse cancel."""
    return op.unpack(op.pack(x, p), u) >> x


@rule("layout", when=lambda p, u, x: p.axis == u.axis and p.factor == x.shape[-1], draw=_pack_again)
def pack_unpack(x, *, p, u):
    """pack(unpack(x)) -> x: two kernels that agree on a layout hand it over as it is."""
    return op.pack(op.unpack(x, u), p) >> x


def blocked_layouts(lanes: int) -> tuple[GraphRule, ...]:
    """The layout rules for a vector of `lanes` elements: channels, weights and columns in blocks of that many."""

    def conv_like(c: Chooser) -> Environment:
        x = TensorType((1, lanes * c.integer(1, 2), *([c.integer(2, 3)] * 2)))
        groups = c.pick((1, 1, x.shape[1]))
        out = x.shape[1] if groups > 1 else lanes * c.integer(1, 2)
        w = TensorType((out, x.shape[1] // groups, *(c.integer(1, 2) for _ in range(2))))
        attrs = Attrs(strides=(1, 1), padding=((0, 1), (1, 0)), lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=groups)
        return {"x": x, "w": w, "c": attrs}

    def pool_like(c: Chooser) -> Environment:
        x = TensorType((1, lanes * c.integer(1, 2), c.integer(2, 4), c.integer(2, 4)))
        window = (1, 1, c.integer(1, 2), c.integer(1, 2))
        attrs = Attrs(
            kind=c.pick(("max", "sum")), window=window, strides=(1, 1, 2, 1), padding=((0, 0),) * 4, dilation=(1,) * 4
        )
        return {"x": x, "a": attrs}

    def blocks(n: int) -> bool:
        return n % lanes == 0

    def of_floats(x: TensorType) -> bool:
        """An image of floats: integers are laid out as their intrinsics want them (`tensor_rules.py`)."""
        return x.rank == 4 and DTYPES[x.dtype].kind == "float"

    def splits(x: TensorType, w: TensorType, c: Attrs) -> bool:
        """The input's channels come in vector blocks, all of one group, or each a group of its own."""
        return of_floats(x) and blocks(x.shape[1]) and (c.groups == 1 or c.groups == x.shape[1] == w.shape[0])

    @rule("layout", when=splits, draw=conv_like)
    def block_conv_input(x, w, *, c):
        """A convolution may read its input with the channels in vector blocks."""
        return op.conv(x, w, c) >> op.conv(op.unpack(op.pack(x, axis=1, factor=lanes), axis=1), w, c)

    @rule("layout", when=lambda w: w.rank == 4 and blocks(w.shape[0]), draw=conv_like)
    def block_conv_output(x, w, *, c):
        """A convolution may write its result with the channels in vector blocks."""
        return op.conv(x, w, c) >> op.unpack(op.pack(op.conv(x, w, c), axis=1, factor=lanes), axis=1)

    @rule("layout", when=lambda w: of_floats(w) and blocks(w.shape[0]), const=("w",), draw=conv_like)
    def block_conv_weights(x, w, *, c):
        """Constant weights are stored with the output channels in vector blocks, at compile time."""
        return op.conv(x, w, c) >> op.conv(x, op.unpack(op.pack(w, axis=0, factor=lanes), axis=0), c)

    def channelwise(x: TensorType, a: Attrs) -> bool:
        return x.rank == 4 and a.window[1] == 1 and a.strides[1] == 1 and a.padding[1] == (0, 0) and blocks(x.shape[1])

    @rule("layout", when=channelwise, draw=pool_like)
    def block_pool(x, *, a):
        """Pooling may read and write the channels in vector blocks."""
        blocked = op.window(op.unpack(op.pack(x, axis=1, factor=lanes), axis=1), a)
        return op.window(x, a) >> op.unpack(op.pack(blocked, axis=1, factor=lanes), axis=1)

    def overlapping(x: TensorType, a: Attrs) -> bool:
        """Windows along the rows of an image that share elements."""
        return x.rank == 4 and a.axis == 2 and a.stride < len(a.filters[0]) and blocks(x.shape[1])

    def bank_like(c: Chooser) -> Environment:
        x = TensorType((1, lanes * c.integer(1, 2), c.integer(3, 6), c.integer(1, 3)))
        return {"x": x, "a": Attrs(axis=2, filters=((1.0, 0.0, -0.5), (0.0, 2.0, 1.0)), stride=c.integer(1, 2))}

    @rule("layout", when=overlapping, varies=("x",), draw=bank_like)
    def block_filter_input(x, *, a):
        """A filter bank over an image may read it with the channels in vector blocks."""
        return op.filter_bank(x, a) >> op.filter_bank(op.unpack(op.pack(x, axis=1, factor=lanes), axis=1), a)

    def apart(x: TensorType, a: Attrs) -> bool:
        """Windows along the columns of an image that share no element."""
        return x.rank == 4 and a.axis == 3 and a.stride == len(a.filters[0]) and blocks(x.shape[1])

    def apart_like(c: Chooser) -> Environment:
        x = TensorType((1, lanes * c.integer(1, 2), c.integer(1, 3), 3 * c.integer(1, 2)))
        return {"x": x, "a": Attrs(axis=3, filters=((1.0, 0.0, -0.5), (0.0, 2.0, 1.0)), stride=3)}

    @rule("layout", when=apart, varies=("x",), draw=apart_like)
    def block_filter_output(x, *, a):
        """A filter bank that makes an image may write it with the channels in vector blocks."""
        made = op.filter_bank(x, a)
        return made >> op.unpack(op.pack(made, axis=1, factor=lanes), axis=1)

    convolutions = (block_conv_input, block_conv_output, block_conv_weights, block_pool)
    found = (*convolutions, block_filter_input, block_filter_output)
    panels = (make(lanes, n) for make in (_panels, _batch_panels) for n in (1, 2, 3, 4))
    return (*found, *panels)


def _panels(lanes: int, vectors: int) -> GraphRule:
    width = lanes * vectors

    def matmul_like(c: Chooser) -> Environment:
        return _matmul(c, (width, 2 * width))

    def has_panels(d: Attrs, x: TensorType, w: TensorType) -> bool:
        """A matmul with a whole number of panels of columns."""
        return is_matmul(d, x, w) and w.shape[1] % width == 0

    def panel_weights(x, w, *, d):
        """Constant weights of a matmul are stored in panels of columns, each panel contiguous, at compile time."""
        panels = op.pack(op.transpose(w, perm=(1, 0)), axis=0, factor=width)
        product = op.dot(x, w, d)
        return product >> product, w >> op.transpose(op.unpack(panels, axis=0), perm=(1, 0))

    panel_weights.__name__ = f"panel_weights_{width}"
    return rule("layout", when=has_panels, const=("w",), draw=matmul_like)(panel_weights)


def _batch_panels(lanes: int, vectors: int) -> GraphRule:
    width = lanes * vectors

    def batch_like(c: Chooser) -> Environment:
        b, m, k = c.integer(1, 3), c.integer(1, 4), c.integer(1, 4)
        d = Attrs(contract=((2,), (2,)), batch=((0,), (0,)))
        return {"x": TensorType((b, m, k)), "w": TensorType((b, width * c.integer(1, 2), k)), "d": d}

    def has_panels(d: Attrs, x: TensorType, w: TensorType) -> bool:
        """A batch of matmuls by transposed matrices with a whole number of panels of rows."""
        return is_batch(d, x, w) and w.shape[1] % width == 0

    def panel_batch(x, w, *, d):
        """Constant weights of a batch of matmuls are stored in panels, each contiguous, at compile time."""
        product = op.dot(x, w, d)
        return product >> product, w >> op.unpack(op.pack(w, axis=1, factor=width), axis=1)

    panel_batch.__name__ = f"panel_batch_{width}"
    return rule("layout", when=has_panels, const=("w",), draw=batch_like)(panel_batch)


# --- algorithm -------------------------------------------------------------------------------------------------------


def is_padded(c: Attrs) -> bool:
    """A convolution with padding and no dilation of its input."""
    return any(p != (0, 0) for p in c.padding) and set(c.lhs_dilation) == {1}


@rule("algorithm", when=is_padded)
def conv_of_padded(x, w, *, c):
    """A padded convolution is a convolution of a padded tensor: the copy may cost less than tests in the loop."""
    padded = op.pad(
        x,
        low=lambda c: (0, 0, *(p[0] for p in c.padding)),
        high=lambda c: (0, 0, *(p[1] for p in c.padding)),
        interior=lambda x: (0,) * x.rank,
        value=0.0,
    )
    return op.conv(x, w, c) >> op.conv(
        padded,
        w,
        strides=lambda c: c.strides,
        padding=lambda c: ((0, 0),) * len(c.padding),
        lhs_dilation=lambda c: c.lhs_dilation,
        rhs_dilation=lambda c: c.rhs_dilation,
        groups=lambda c: c.groups,
    )


def pads_alike(x: TensorType, c: Attrs, p: Attrs) -> bool:
    """A conversion of integers to wider ones that can also hold the padding before it."""
    kinds = {DTYPES[x.dtype].kind, DTYPES[c.dtype].kind}
    if not kinds <= {"int", "uint"} or DTYPES[c.dtype].size <= DTYPES[x.dtype].size:
        return False
    bounds = np.iinfo(DTYPES[x.dtype].numpy)
    return bounds.min <= p.value <= bounds.max


def _padded_bytes(c: Chooser) -> Environment:
    return {"x": TensorType((c.integer(1, 4),), c.pick(("u8", "i8"))), "c": Attrs(dtype="i32")}


@rule("layout", when=pads_alike, draw=_padded_bytes)
def pad_before_widening(x, *, c, p):
    """pad(cast(x)) -> cast(pad(x)): the padded tensor is stored in the narrow type."""
    return op.pad(op.cast(x, c), p) >> op.cast(op.pad(x, p), c)


ALGEBRA: tuple[GraphRule, ...] = (
    scale_into_conv,
    scale_into_matmul,
    distribute_constant,
    add_constants,
    multiply_constants,
    subtract_constant,
    divide_by_constant,
    divide_by_broadcast,
    add_broadcasts,
    multiply_broadcasts,
    negate_broadcast,
    transpose_transpose,
    transpose_nothing,
    reshape_reshape,
    reshape_nothing,
    slice_nothing,
    pad_nothing,
    pad_pad,
)


def graph_rules(
    lanes: int = 16,
    intrinsics: Sequence[Intrinsic] = (),
    integers: bool = True,
    gain: float = ROUNDING_GAIN,
    threads: int = 1,
) -> tuple[GraphRule | KernelRule, ...]:
    """All shipped graph rules that are equations, for vectors of `lanes` elements, a target's intrinsics and programs
    of so many threads; those on quantized tensors if there are `integers`; of those that amplify rounding errors, if by
    at most `gain`."""
    layouts = (*blocked_layouts(lanes), *packing_rules(intrinsics), *(INTEGER_RULES if integers else ()))
    transposed = (transposed_conv_by_phases, transposed_conv_phase_by_phase)
    fast = (*winograd_rules(lanes, gain), *strassen_rules(lanes, gain))
    algorithms = (conv_of_padded, *transposed, *fast, pad_before_widening)
    kernels = (*FUSION_RULES, *STAGING_RULES)
    return (*ALGEBRA, *algorithms, *reduction_rules(threads), unpack_pack, pack_unpack, *layouts, *kernels)
