"""`to_tiles`, `from_tiles`: images cut into square tiles, as the batch of matrices that products of tiles multiply.

Place (a, b) of all tiles is one matrix, a row a tile and a column a channel: what a fast convolution multiplies by its
weights at that place. As layouts they are never read through (`to_tiles`), or always (`from_tiles`).
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
    require(x.rank == 4 and a.size >= 1, f"{x} is not N,C,rows,columns, or size < 1")
    require(x.shape[2] % a.size == 0 and x.shape[3] % a.size == 0, f"tiles of {a.size} do not divide {x}")
    return x.with_shape((a.size**2, x.shape[0] * (x.shape[2] // a.size) * (x.shape[3] // a.size), x.shape[1]))


def _to_expr(t: Types, a: Attrs) -> TensorExpr:
    rows, columns = (n // a.size for n in t[0].shape[2:])

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(place: Index, tile: Index, channel: Index) -> Scalar:
            y = tile // columns % rows * a.size + place // a.size
            return x[(tile // (rows * columns), channel, y, tile % columns * a.size + place % a.size)]

        return at

    return TensorExpr.build(t, _to_type(t, a).shape, body)


def _to_reference(x: Any, size: int) -> Any:
    n, c, rows, columns = x.shape
    cut = x.reshape(n, c, rows // size, size, columns // size, size)
    return cut.transpose(3, 5, 0, 2, 4, 1).reshape(size**2, -1, c)


def _to_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    size = c.integer(1, 3)
    x = known[0] or TensorType((c.integer(1, 2), c.integer(1, 3), *(size * c.integer(1, 3) for _ in range(2))))
    if x.rank != 4:
        raise Reject
    return [x], Attrs(size=size)


def _from_type(t: Types, a: Attrs) -> TensorType:
    x, (rows, columns) = t[0], a.tiles
    require(x.rank == 3 and a.size >= 1 and min(a.tiles) >= 1, f"{x} is not places,tiles,channels, or there are none")
    require(x.shape[0] == a.size**2, f"{x.shape[0]} places are not {a.size} x {a.size}")
    require(x.shape[1] % (rows * columns) == 0, f"{x.shape[1]} tiles are no images of {rows} x {columns}")
    return x.with_shape((x.shape[1] // (rows * columns), x.shape[2], rows * a.size, columns * a.size))


def _from_expr(t: Types, a: Attrs) -> TensorExpr:
    rows, columns = a.tiles

    def body(x: Operand) -> Callable[..., Scalar]:
        def at(image: Index, channel: Index, row: Index, column: Index) -> Scalar:
            tile = (image * rows + row // a.size) * columns + column // a.size
            return x[(row % a.size * a.size + column % a.size, tile, channel)]

        return at

    return TensorExpr.build(t, _from_type(t, a).shape, body)


def _from_reference(x: Any, size: int, tiles: Any) -> Any:
    rows, columns = tiles
    apart = x.reshape(size, size, -1, rows, columns, x.shape[2])
    return apart.transpose(2, 5, 3, 0, 4, 1).reshape(-1, x.shape[2], rows * size, columns * size)


def _from_sample(c: Chooser, known: Known, out: TensorType | None) -> tuple[Sequence[TensorType], Attrs]:
    size, tiles = c.integer(1, 3), (c.integer(1, 3), c.integer(1, 3))
    x = known[0] or TensorType((size**2, c.integer(1, 2) * tiles[0] * tiles[1], c.integer(1, 3)))
    if x.rank != 3:
        raise Reject
    return [x], Attrs(size=size, tiles=tiles)


declare(
    Operator(
        "to_tiles",
        ("size",),
        1,
        _to_type,
        _to_expr,
        _to_reference,
        _to_sample,
        "N,C,rows,columns -> places in a tile of size x size, tiles (of an image, row by row), channels",
        "movement",
        inlining="stored",
    )
)

declare(
    Operator(
        "from_tiles",
        ("size", "tiles"),
        1,
        _from_type,
        _from_expr,
        _from_reference,
        _from_sample,
        "inverse of to_tiles, for images of `tiles` (rows, columns) of them",
        "movement",
        inlining="always",
    )
)
