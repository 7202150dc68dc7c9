"""Rules that lay matrices out as an intrinsic's registers want them, derived from the intrinsic's declaration.

An intrinsic whose second register holds `depth` elements of the reduction for each lane wants its weights as
[k/depth, n, depth] (in panels: [n/panel, k/depth, panel, depth]), so that a register is one load. Where k is no
multiple of the depth, both operands are padded with zeros. Where only unsigned bytes can be multiplied with signed
ones, signed ones are made unsigned by adding 128, and 128 times the sums of the weights' columns is taken off again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..ir.attrs import Attrs
from ..ir.intrinsic import Intrinsic
from ..ir.operator import Chooser
from ..ir.types import TensorType
from .pattern import Environment, Pattern, Record, Rewrite, Var, op
from .rule import GraphRule, rule

#: Widths of panels of constant weights, in vectors.
PANELS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Operands:
    """What an intrinsic multiplies: element types of its registers, of its accumulator, and its layout."""

    left: str
    right: str
    accumulator: str
    lanes: int
    depth: int

    @staticmethod
    def of(i: Intrinsic) -> Operands:
        left, right = (t.dtype for t in i.expr.inputs)
        return Operands(left, right, i.kernel.accumulator_dtype, i.lanes, i.depth)

    @property
    def name(self) -> str:
        return f"{self.left}_{self.right}_{self.lanes}x{self.depth}"


def packing_rules(intrinsics: Iterable[Intrinsic]) -> tuple[GraphRule, ...]:
    """The layout rules of every intrinsic of two operands."""
    wanted = dict.fromkeys(Operands.of(i) for i in intrinsics if len(i.expr.inputs) == 2)
    signed = {o.depth for o in wanted if (o.left, o.right) == ("i8", "i8")}
    offsets = [_offset(o) for o in wanted if (o.left, o.right) == ("u8", "i8") and o.depth > max(signed, default=0)]
    return (*(r for o in wanted for r in _rules(o)), *offsets)


def _rules(o: Operands) -> Iterator[GraphRule]:
    for vectors in PANELS:
        yield _panels(o, vectors * o.lanes)
    yield _one_panel(o)
    yield _packed(o)
    yield _padded_depth(o)
    yield _conv_weights(o)
    yield _conv_input(o)
    yield _padded_channels(o)


def _multiplies(o: Operands, x: TensorType, w: TensorType, c: Attrs, e: Attrs, d: Attrs) -> bool:
    """x[…, k] @ w[k, n] of the intrinsic's types."""
    types = (x.dtype, w.dtype, c.dtype, e.dtype) == (o.left, o.right, o.accumulator, o.accumulator)
    return types and d.batch == ((), ()) and w.rank == 2 and d.contract == ((x.rank - 1,), (0,))


def _drawn(o: Operands, columns: int, aligned: bool) -> Callable[[Chooser], Environment]:
    def draw(c: Chooser) -> Environment:
        m, n, rest = c.integer(1, 3), columns * c.integer(1, 2), 0 if aligned else c.integer(1, o.depth - 1)
        k = o.depth * c.integer(1, 3) - rest
        wide = Attrs(dtype=o.accumulator)
        product = Attrs(contract=((1,), (0,)), batch=((), ()))
        return {"x": TensorType((m, k), o.left), "w": TensorType((k, n), o.right), "c": wide, "e": wide, "d": product}

    return draw


def _panels(o: Operands, width: int) -> GraphRule:
    def fits(x: TensorType, w: TensorType, c: Attrs, e: Attrs, d: Attrs) -> bool:
        """A product of the intrinsic's types with whole panels of columns and whole registers of rows."""
        return _multiplies(o, x, w, c, e, d) and w.shape[0] % o.depth == 0 and w.shape[1] % width == 0

    def panels(x, w, *, c, e, d):
        """Constant weights are stored in panels of columns, each made of an intrinsic's registers."""
        return _where_multiplied(x, w, c, e, d), w >> _again(o, w, width)

    panels.__name__ = f"panels_{o.name}_{width}"
    return rule("layout", when=fits, const=("w",), draw=_drawn(o, width, True))(panels)


def _where_multiplied(x: Var, w: Var, c: Record, e: Record, d: Record) -> Rewrite:
    """The product, as it is: the layout is a rewrite of the weights alone, so that layouts do not multiply products."""
    product = op.dot(op.cast(x, c), op.cast(w, e), d)
    return product >> product


def _again(o: Operands, w: Pattern, width: Any) -> Pattern:
    """The weights, unpacked from panels [n/width, k/depth, width, depth]."""
    panels = op.pack(op.transpose(w, perm=(1, 0)), axis=0, factor=width)
    registers = op.pack(panels, axis=1, factor=o.depth)
    return op.transpose(op.unpack(op.unpack(registers, axis=1), axis=0), perm=(1, 0))


def _one_panel(o: Operands) -> GraphRule:
    def uneven(x: TensorType, w: TensorType, c: Attrs, e: Attrs, d: Attrs) -> bool:
        """A product of the intrinsic's types whose columns make no whole panels."""
        return _multiplies(o, x, w, c, e, d) and w.shape[0] % o.depth == 0 and w.shape[1] % o.lanes != 0

    def one_panel(x, w, *, c, e, d):
        """Constant weights are stored as one panel of all columns."""
        return _where_multiplied(x, w, c, e, d), w >> _again(o, w, lambda w: w.shape[1])

    one_panel.__name__ = f"panel_{o.name}"
    return rule("layout", when=uneven, const=("w",), draw=_drawn(o, 1, True))(one_panel)


def _packed(o: Operands) -> GraphRule:
    def fits(x: TensorType, w: TensorType, c: Attrs, e: Attrs, d: Attrs) -> bool:
        """A product of the intrinsic's types with whole registers of rows."""
        return _multiplies(o, x, w, c, e, d) and w.shape[0] % o.depth == 0

    def packed(x, w, *, c, e, d):
        """An operand that is not constant may be packed as an intrinsic's registers first: neighbouring rows of a
        column together."""
        again = op.unpack(op.pack(w, axis=0, factor=o.depth), axis=0)
        return _where_multiplied(x, w, c, e, d), w >> again

    packed.__name__ = f"pack_{o.name}"
    return rule("layout", when=fits, varies=("w",), draw=_drawn(o, 1, True))(packed)


def _padded_depth(o: Operands) -> GraphRule:
    def uneven(x: TensorType, w: TensorType, c: Attrs, e: Attrs, d: Attrs) -> bool:
        """A product of the intrinsic's types whose reduction leaves a register part empty."""
        return _multiplies(o, x, w, c, e, d) and w.shape[0] % o.depth != 0

    def pad_depth(x, w, *, c, e, d):
        """Zeros fill the reduction up to whole registers."""
        left = op.pad(
            x,
            low=lambda x: (0,) * x.rank,
            high=lambda x: (*(0,) * (x.rank - 1), -x.shape[-1] % o.depth),
            interior=lambda x: (0,) * x.rank,
            value=0.0,
        )
        right = op.pad(w, low=(0, 0), high=lambda w: (-w.shape[0] % o.depth, 0), interior=(0, 0), value=0.0)
        return op.dot(op.cast(x, c), op.cast(w, e), d) >> op.dot(op.cast(left, c), op.cast(right, e), d)

    pad_depth.__name__ = f"pad_{o.name}"
    return rule("layout", when=uneven, draw=_drawn(o, 1, False))(pad_depth)


def _convolves(o: Operands, x: TensorType, w: TensorType, c: Attrs, e: Attrs, a: Attrs) -> bool:
    """A convolution of the intrinsic's types, without padding, groups or a dilated input."""
    types = (x.dtype, w.dtype, c.dtype, e.dtype) == (o.left, o.right, o.accumulator, o.accumulator)
    return types and a.groups == 1 and set(a.lhs_dilation) == {1} and all(p == (0, 0) for p in a.padding)


def _drawn_conv(o: Operands, outputs: int, channels: int, rest: int = 0) -> Callable[[Chooser], Environment]:
    def draw(c: Chooser) -> Environment:
        depth = channels * c.integer(1, 2) - rest
        kernel = tuple(c.integer(1, 2) for _ in range(2))
        wide, ones = Attrs(dtype=o.accumulator), (1, 1)
        return {
            "x": TensorType((1, depth, *(n + c.integer(0, 1) for n in kernel)), o.left),
            "w": TensorType((outputs, depth, *kernel), o.right),
            "c": wide,
            "e": wide,
            "a": Attrs(strides=ones, padding=((0, 0),) * 2, lhs_dilation=ones, rhs_dilation=ones, groups=1),
        }

    return draw


def _conv_weights(o: Operands) -> GraphRule:
    def fits(x: TensorType, w: TensorType, c: Attrs, e: Attrs, a: Attrs) -> bool:
        """A convolution of the intrinsic's types with whole registers of output and of input channels."""
        return _convolves(o, x, w, c, e, a) and w.shape[0] % o.lanes == 0 and w.shape[1] % o.depth == 0

    def conv_registers(x, w, *, c, e, a):
        """Constant weights of a convolution are stored as an intrinsic's registers: [O/lanes, I/depth, kernel, lanes,
        depth]."""
        registers = op.pack(op.pack(w, axis=0, factor=o.lanes), axis=1, factor=o.depth)
        product = op.conv(op.cast(x, c), op.cast(w, e), a)
        return product >> product, w >> op.unpack(op.unpack(registers, axis=1), axis=0)

    conv_registers.__name__ = f"conv_registers_{o.name}"
    return rule("layout", when=fits, const=("w",), draw=_drawn_conv(o, o.lanes, o.depth))(conv_registers)


def _conv_input(o: Operands) -> GraphRule:
    def block(x: TensorType) -> int:
        return o.lanes if x.shape[1] % o.lanes == 0 else o.depth

    def fits(x: TensorType, w: TensorType, c: Attrs, e: Attrs, a: Attrs) -> bool:
        """A convolution of the intrinsic's types with whole registers of input channels."""
        return _convolves(o, x, w, c, e, a) and x.shape[1] % o.depth == 0

    def conv_blocks(x, w, *, c, e, a):
        """A convolution by an intrinsic reads its input with the channels innermost, in blocks."""
        product = op.conv(op.cast(x, c), op.cast(w, e), a)
        return product >> product, x >> op.unpack(op.pack(x, axis=1, factor=block), axis=1)

    conv_blocks.__name__ = f"conv_blocks_{o.name}"
    return rule("layout", when=fits, varies=("x",), draw=_drawn_conv(o, 1, o.depth))(conv_blocks)


def _padded_channels(o: Operands) -> GraphRule:
    def high(x: TensorType) -> tuple[int, ...]:
        return (0, -x.shape[1] % o.depth, *(0,) * (x.rank - 2))

    def uneven(x: TensorType, w: TensorType, c: Attrs, e: Attrs, a: Attrs) -> bool:
        """A convolution of the intrinsic's types whose input channels leave a register part empty."""
        return _convolves(o, x, w, c, e, a) and x.shape[1] % o.depth != 0

    def pad_channels(x, w, *, c, e, a):
        """Zeros fill the input channels up to whole registers."""
        nothing = lambda x: (0,) * x.rank  # noqa: E731
        left = op.pad(x, low=nothing, high=high, interior=nothing, value=0.0)
        right = op.pad(w, low=nothing, high=high, interior=nothing, value=0.0)
        return op.conv(op.cast(x, c), op.cast(w, e), a) >> op.conv(op.cast(left, c), op.cast(right, e), a)

    pad_channels.__name__ = f"pad_channels_{o.name}"
    return rule("layout", when=uneven, const=("w",), draw=_drawn_conv(o, 1, o.depth, 1))(pad_channels)


def _offset(o: Operands) -> GraphRule:
    def signed(x: TensorType, w: TensorType, c: Attrs, e: Attrs, d: Attrs) -> bool:
        """A product of signed bytes."""
        return _multiplies(replace(o, left=o.right), x, w, c, e, d)

    def make_unsigned(x, w, *, c, e, d):
        """x @ w -> (x + 128) @ w - 128 * sums of the columns of w: the left operand is unsigned then."""
        nothing = op.cast(op.slice(w, start=(0, 0), limit=(0, 0), strides=(1, 1)), c)
        number = op.pad(nothing, low=(1, 1), high=(0, 0), interior=(0, 0), value=128.0)
        half = op.reshape(number, shape=())
        shifted = op.add(op.cast(x, c), op.broadcast(half, shape=lambda x: x.shape, dims=()))
        product = op.dot(op.cast(op.cast(shifted, dtype=o.left), c), op.cast(w, e), d)
        sums = op.reduce(op.cast(w, e), kind="sum", axes=(0,))
        taken = op.mul(sums, op.broadcast(half, shape=lambda w: w.shape[1:], dims=()))
        spread = op.broadcast(
            taken, shape=lambda x, w: (*x.shape[:-1], w.shape[1]), dims=lambda x: (x.rank - 1,)
        )
        return op.dot(op.cast(x, c), op.cast(w, e), d) >> op.sub(product, spread)

    make_unsigned.__name__ = f"offset_{o.right}_{o.right}_{o.lanes}x{o.depth}"
    draw = _drawn(replace(o, left=o.right), 1, True)
    return rule("algorithm", when=signed, const=("w",), draw=draw)(make_unsigned)
