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
