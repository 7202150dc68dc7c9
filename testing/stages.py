"""Random expressions of several stages: rows changed by what was reduced from them, and reduced again; and contractions
of operands that are kept."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from ..ir.expr import Kept, Operand, Scalar, TensorExpr, apply, reduce
from ..ir.index import Axis, Index
from ..ir.operator import Chooser
from ..ir.types import TensorType

#: A value at a row (one index or two) and a column.
Value = Callable[[tuple[Index, ...], Index], Scalar]
#: A value of a row.
RowValue = Callable[[tuple[Index, ...]], Scalar]

ROWS, COLUMNS = (1, 2, 3, 4, 5, 8, 13), (1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 33, 37, 77)


def draw_staged(c: Chooser) -> TensorExpr:
    """Rows of several reductions, or a product of kept operands."""
    return _draw_product(c) if c.integer(0, 3) == 3 else _draw_rows(c)


def _draw_product(c: Chooser) -> TensorExpr:
    """A product of matrices, perhaps of several pairs of them, either of which may be transposed; one or both are kept,
    perhaps changed before."""
    pairs = tuple(c.pick((1, 2, 3)) for _ in range(c.integer(0, 1)))
    rows, columns, depth = c.pick(ROWS), c.pick(COLUMNS), c.pick(COLUMNS)
    across = [bool(c.integer(0, 1)) for _ in range(2)]
    keeps, changes = c.pick(((True, False), (False, True), (True, True))), bool(c.integer(0, 1))
    shapes = [(depth, rows) if across[0] else (rows, depth), (columns, depth) if across[1] else (depth, columns)]

    def element(x: Operand, k: int, pair: tuple[Index, ...], place: tuple[Index, Index]) -> Scalar:
        value = x[(*pair, *(reversed(place) if across[k] else place))]
        value = value * value + 0.5 if changes else value
        return Kept(value, value.dtype) if keeps[k] else value

    def body(x: Operand, y: Operand) -> Callable[..., Scalar]:
        def at(*index: Index) -> Scalar:
            *pair, i, j = index
            step = Index.of(Axis("k", depth))
            product = element(x, 0, tuple(pair), (i, step)) * element(y, 1, tuple(pair), (step, j))
            return reduce("sum", [Axis("k", depth)], product)

        return at

    return TensorExpr.build([TensorType((*pairs, *s)) for s in shapes], (*pairs, rows, columns), body)


def _draw_rows(c: Chooser) -> TensorExpr:
    """Rows of one or two axes, the reduced axis last or first; the result has the operand's shape, or one value a row.

    Values stay positive and of moderate size where operands are between a half and two.
    """
    outer = tuple(c.pick(ROWS) for _ in range(c.integer(1, 2)))
    columns, first = c.pick(COLUMNS), bool(c.integer(0, 2) == 2)
    names = count()

    def placed(rows: tuple[Index, ...], column: Index) -> tuple[Index, ...]:
        return (column, *rows) if first else (*rows, column)

    shape = (columns, *outer) if first else (*outer, columns)
    types = [TensorType(shape), TensorType((columns,))]
    if c.integer(0, 3) == 3:
        types.append(TensorType((columns, columns)))
    steps = [(c.pick(("sum", "max", "min")), c.pick(_MEASURES), c.pick(_CHANGES)) for _ in range(c.integer(1, 3))]
    ends_in_rows, mixes = bool(c.integer(0, 2) == 2), len(types) == 3

    def body(x: Operand, gain: Operand, *weights: Operand) -> Callable[..., Scalar]:
        value: Value = lambda rows, j: x[placed(rows, j)]  # noqa: E731
        row: RowValue = lambda rows: x[placed(rows, Index())]  # noqa: E731
        for kind, measure, change in steps:
            row = _reduced(kind, measure, value, columns, names)
            value = _changed(change, value, row)
        if mixes:
            value = _mixed(value, weights[0], columns, names)

        def at(*index: Index) -> Scalar:
            if ends_in_rows:
                return row(index)
            rows, column = (index[1:], index[0]) if first else (index[:-1], index[-1])
            return value(rows, column) * gain[column]

        return at

    return TensorExpr.build(types, outer if ends_in_rows else shape, body)


_MEASURES: tuple[Callable[[Scalar], Scalar], ...] = (
    lambda v: v,
    lambda v: v * v,
    lambda v: apply("exp", apply("neg", v)),
)
_CHANGES: tuple[Callable[[Scalar, Scalar], Scalar], ...] = (
    lambda v, r: v / (r + 0.5),
    lambda v, r: apply("exp", apply("neg", v / (r + 1.0))),
    lambda v, r: v * apply("rsqrt", r + 0.25),
)


def _reduced(
    kind: str, measure: Callable[[Scalar], Scalar], value: Value, columns: int, names: count[int]
) -> RowValue:
    def at(rows: tuple[Index, ...]) -> Scalar:
        k = Axis(f"k{next(names)}", columns)
        return reduce(kind, [k], measure(value(rows, Index.of(k))))

    return at


def _changed(change: Callable[[Scalar, Scalar], Scalar], value: Value, row: RowValue) -> Value:
    return lambda rows, j: change(value(rows, j), row(rows))


def _mixed(value: Value, weights: Operand, columns: int, names: count[int]) -> Value:
    """The rows times a square matrix."""

    def at(rows: tuple[Index, ...], j: Index) -> Scalar:
        k = Axis(f"k{next(names)}", columns)
        return reduce("sum", [k], value(rows, Index.of(k)) * weights[k, j])

    return at
