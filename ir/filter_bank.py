"""`filter_bank`: every window of an axis through a bank of linear filters with constant taps.

It is what fast convolutions are made of (Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast
algorithms for convolutional neural networks", CVPR 2016): their transforms of inputs, weights and results are filter
banks along one axis after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .attrs import Attrs
from .expr import Operand, Scalar, TensorExpr, Weighted, reduce
from .index import Axis, Index
from .operator import Chooser, Known, Operator, Reject, Types, declare, require
from .types import DTYPES, TensorType


def _type(t: Types, a: Attrs) -> TensorType:
    x, taps = t[0], len(a.filters[0])
    require(DTYPES[x.dtype].kind == "float", f"{x} is not of a float type")
    require(0 <= a.axis < x.rank, f"axis {a.axis} exceeds the rank of {x}")
    require(taps > 0 and all(len(f) == taps for f in a.filters), "filters need one number of taps, at least 1")
    require(a.stride >= 1 and x.shape[a.axis] >= taps, f"{taps} taps exceed axis {a.axis} of {x}, or stride < 1")
    windows = (x.shape[a.axis] - taps) // a.stride + 1
    return x.with_shape((*x.shape[: a.axis], windows * len(a.filters), *x.shape[a.axis + 1 :]))


def _expr(t: Types, a: Attrs) -> TensorExpr:
    count, tap = len(a.filters), Axis("k", len(a.filters[0]))
    table = tuple(float(v) for row in a.filters for v in row)

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            place = i[a.axis]
            where = (*i[: a.axis], place // count * a.stride + Index.of(tap), *i[a.axis + 1 :])
            entry = (place % count if count > 1 else Index()) * tap.extent + Index.of(tap)
            return reduce("sum", [tap], Weighted(table, entry, x[where], t[0].dtype))

        return at

    return TensorExpr.build(t, _type(t, a).shape, body)


def _reference(x: Any, axis: int, filters: Any, stride: int) -> Any:
    windows = (x.shape[axis] - len(filters[0])) // stride + 1
    before = (slice(None),) * axis
    taps = [x[(*before, slice(k, k + stride * (windows - 1) + 1, stride))] for k in range(len(filters[0]))]
    made = [_weighed(row, taps) for row in filters]
    stacked = x.__array_namespace__().stack(made, axis=axis + 1)  # of JAX, or of NumPy where constants are folded
    return stacked.reshape((*x.shape[:axis], windows * len(filters), *x.shape[axis + 1 :]))


def _weighed(row: Sequence[float], taps: Sequence[Any]) -> Any:
    """The sum of the taps that have a weight: an entry of 0 takes nothing of its operand."""
    parts = [tap if v == 1 else v * tap for v, tap in zip(row, taps, strict=True) if v != 0]
    return sum(parts[1:], parts[0]) if parts else taps[0] * 0


def _sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0] or TensorType(tuple(c.integer(1, 6) for _ in range(c.integer(1, 3))))
    if not x.rank or not x.size:
        raise Reject
    axis = c.integer(0, x.rank - 1)
    taps = c.integer(1, min(4, x.shape[axis]))
    filters = tuple(tuple(c.pick((0.0, 1.0, -1.0, 0.5, -2.0)) for _ in range(taps)) for _ in range(c.integer(1, 4)))
    return [x], Attrs(axis=axis, filters=filters, stride=c.integer(1, 3))


declare(
    Operator(
        "filter_bank",
        ("axis", "filters", "stride"),
        1,
        _type,
        _expr,
        _reference,
        _sample,
        "windows of an axis, `stride` apart, each replaced in place by its products with all rows of `filters`",
        "reduction",
    )
)
