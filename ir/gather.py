"""The operator `gather`: elements at positions that another tensor holds. The one read that is not an index map.

ONNX' Gather, GatherElements and GatherND and JAX' gather are compositions with it (`indexing.py`). Positions out of
range are moved to the nearest end, as JAX does with `mode="clip"`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .attrs import Attrs
from .expr import Operand, Scalar, TensorExpr
from .index import Index
from .operator import Chooser, Known, Operator, Reject, Types, declare, require
from .types import DTYPES, TensorType


def _free(rank: int, a: Attrs) -> list[int]:
    """The axes of x that appear in the result as they are."""
    taken = {*a.axes, *(d for d, _ in a.aligned)}
    return [d for d in range(rank) if d not in taken]


def gather_type(t: Types, a: Attrs) -> TensorType:
    x, where = t
    own = [*a.axes, *(d for d, _ in a.aligned)]
    require(DTYPES[where.dtype].kind in ("int", "uint"), f"positions are integers, {where.dtype} given")
    require(where.rank >= 1 and where.shape[-1] == len(a.axes), f"the last axis of {where} is one position an axis")
    require(len(set(own)) == len(own) and all(0 <= d < x.rank for d in own), f"axes {tuple(own)} of {x}")
    require(all(0 <= p < where.rank - 1 for _, p in a.aligned), f"aligned {a.aligned} exceeds the rank of {where}")
    require(all(where.shape[p] <= x.shape[d] for d, p in a.aligned), f"{where} exceeds {x} along an aligned axis")
    require(all(x.shape[d] > 0 for d in a.axes), f"{x} has no elements to read along axes {a.axes}")
    return x.with_shape((*where.shape[:-1], *(x.shape[d] for d in _free(x.rank, a))))


def gather_expr(t: Types, a: Attrs) -> TensorExpr:
    lead = t[1].rank - 1

    def body(x: Operand, where: Operand) -> Callable[..., Scalar]:
        def at(*i: Index) -> Scalar:
            fixed = {d: i[p] for d, p in a.aligned} | dict(zip(_free(t[0].rank, a), i[lead:], strict=True))
            return x.at(fixed, {d: where[(*i[:lead], k)] for k, d in enumerate(a.axes)})

        return at

    return TensorExpr.build(t, gather_type(t, a).shape, body)


def gather_reference(x: Any, where: Any, axes: Any, aligned: Any) -> Any:
    import jax.numpy as jnp

    lead, rank = where.ndim - 1, x.ndim
    free = [d for d in range(rank) if d not in axes and d not in [d for d, _ in aligned]]

    def along(values: Any, place: int) -> Any:
        return values.reshape([-1 if k == place else 1 for k in range(lead + len(free))])

    index: list[Any] = [None] * rank
    for k, d in enumerate(axes):
        index[d] = jnp.clip(where[..., k].astype("int64"), 0, x.shape[d] - 1).reshape(
            where.shape[:-1] + (1,) * len(free)
        )
    for d, p in aligned:
        index[d] = along(jnp.arange(where.shape[p]), p)
    for k, d in enumerate(free):
        index[d] = along(jnp.arange(x.shape[d]), lead + k)
    return x[tuple(index)]


def gather_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    x = known[0] or TensorType(tuple(c.integer(1, 5) for _ in range(c.integer(1, 3))))
    if x.rank == 0 or known[1] is not None:
        raise Reject
    axes = tuple(d for d in range(x.rank) if c.integer(0, 1)) or (c.integer(0, x.rank - 1),)
    rest = [d for d in range(x.rank) if d not in axes and c.integer(0, 1)]
    lead = [c.integer(1, x.shape[d]) for d in rest] + [c.integer(1, 4) for _ in range(c.integer(0, 1))]
    aligned = tuple((d, p) for p, d in enumerate(rest))
    return [x, TensorType((*lead, len(axes)), c.pick(("i32", "i64")))], Attrs(axes=axes, aligned=aligned)


declare(
    Operator(
        name="gather",
        attrs=("axes", "aligned"),
        arity=2,
        infer=gather_type,
        expr=gather_expr,
        reference=gather_reference,
        sample=gather_sample,
        doc="elements of x at computed positions: the last axis of the second operand holds a position for each of "
        "`axes`; aligned (d, p): axis d of x goes with axis p of the positions; result axes: positions, rest of x",
        family="indexed",
    )
)
