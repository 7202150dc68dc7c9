"""`to_quarters`, `from_quarters`: a matrix cut in halves along both sides, as a batch of its quarters 11, 12, 21, 22.

What fast products of matrices add up and multiply (`rewrite/strassen.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .attrs import Attrs
from .expr import Operand, Scalar, TensorExpr
from .index import Index
from .operator import Chooser, Known, Operator, Reject, Types, declare, require
from .types import TensorType


def _to_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(x.rank == 2 and not any(n % 2 for n in x.shape), f"{x} is not a matrix of even sides")
    return x.with_shape((4, x.shape[0] // 2, x.shape[1] // 2))


def _to_expr(t: Types, a: Attrs) -> TensorExpr:
    rows, columns = (n // 2 for n in t[0].shape)

    def body(x: Operand) -> Callable[..., Scalar]:
        return lambda quarter, i, j: x[(quarter // 2 * rows + i, quarter % 2 * columns + j)]

    return TensorExpr.build(t, _to_type(t, a).shape, body)


def _to_reference(x: Any) -> Any:
    rows, columns = (n // 2 for n in x.shape)
    return x.reshape(2, rows, 2, columns).transpose(0, 2, 1, 3).reshape(4, rows, columns)


def _to_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0] or TensorType((2 * c.integer(1, 4), 2 * c.integer(1, 4)))
    if x.rank != 2:
        raise Reject
    return [x], Attrs()


def _from_type(t: Types, a: Attrs) -> TensorType:
    x = t[0]
    require(x.rank == 3 and x.shape[0] == 4, f"{x} is not four quarters of a matrix")
    return x.with_shape((x.shape[1] * 2, x.shape[2] * 2))


def _from_expr(t: Types, a: Attrs) -> TensorExpr:
    _, rows, columns = t[0].shape

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(i: Index, j: Index) -> Scalar:
            return x[(i // rows * 2 + j // columns, i % rows, j % columns)]

        return at

    return TensorExpr.build(t, _from_type(t, a).shape, body)


def _from_reference(x: Any) -> Any:
    _, rows, columns = x.shape
    return x.reshape(2, 2, rows, columns).transpose(0, 2, 1, 3).reshape(2 * rows, 2 * columns)


def _from_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0] or TensorType((4, c.integer(1, 4), c.integer(1, 4)))
    if x.rank != 3:
        raise Reject
    return [x], Attrs()


declare(
    Operator(
        "to_quarters",
        (),
        1,
        _to_type,
        _to_expr,
        _to_reference,
        _to_sample,
        "a matrix cut in halves along both sides -> its quarters (11, 12, 21, 22), their rows and columns",
        "movement",
        inlining="always",
    )
)

declare(
    Operator(
        "from_quarters",
        (),
        1,
        _from_type,
        _from_expr,
        _from_reference,
        _from_sample,
        "inverse of to_quarters",
        "movement",
        inlining="always",
    )
)
