"""Register tiles that are read or written across their vectors."""

import numpy as np
import pytest

from nestegg.codegen.transposing import runs_along
from nestegg.costmodel.measure import Bench
from nestegg.ir.attrs import Attrs
from nestegg.ir.compose import compose
from nestegg.ir.loops import LoopKernel, lower
from nestegg.ir.nest import SERIAL, UNROLL, Cat, For, Nest, Tile, Vec
from nestegg.ir.operator import operator
from nestegg.ir.target import host
from nestegg.ir.types import TensorType

ROWS, COLUMNS = 32, 21


def transposition(dtype: str, negated: bool) -> LoopKernel:
    expr = operator("transpose").expr((TensorType((COLUMNS, ROWS), dtype),), Attrs(perm=(1, 0)))
    if negated:
        expr = compose(operator("neg").expr((expr.type,), Attrs()), 0, expr)
    kernel = lower(expr)
    assert isinstance(kernel, LoopKernel) and [a.extent for a in kernel.axes] == [ROWS, COLUMNS]
    return kernel


def tiled(vector: int, lanes: int, width: int) -> Nest:
    """Tiles of `width` vectors of `lanes`; the columns are 21 = 16 + 5 or 20 + 1."""
    extents = [ROWS, COLUMNS]

    def block(sizes: list[int]) -> Nest:
        other, n = 1 - vector, min(lanes, sizes[vector])
        w = width if sizes[1 - vector] % width == 0 else 1
        body: Nest = Tile(vector, For(other, w, UNROLL, Vec(vector, n)) if w > 1 else Vec(vector, n))
        for axis, step in ((vector, n), (other, w)):
            body = For(axis, sizes[axis] // step, SERIAL, body) if sizes[axis] > step else body
        return body

    main = COLUMNS // (lanes if vector else width) * (lanes if vector else width) or COLUMNS
    if main == COLUMNS:
        return block(extents)
    return Cat(1, main, block([ROWS, main]), block([ROWS, COLUMNS - main]))


@pytest.mark.parametrize("dtype", ["f32", "f64", "i8", "u16", "bf16", "bool"])
@pytest.mark.parametrize("vector", [0, 1])
@pytest.mark.parametrize(("lanes", "width"), [(16, 16), (16, 8), (8, 7), (4, 2), (2, 4)])
def test_transpositions(dtype: str, vector: int, lanes: int, width: int):
    negated = dtype not in ("bool", "u16")
    kernel = transposition(dtype, negated)
    bench = Bench(kernel, host())
    bench.load(tiled(vector, lanes, width)).run(1)
    x, out = bench.inputs[0].reshape(COLUMNS, ROWS), bench.output.reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(out, -x.T if negated else x.T)
    assert x.any()


def test_runs_are_powers_of_two():
    slots = {(0, k): 8 for k in (0, 1, 2, 3, 4, 5, 6, 9, 10, 12)} | {(1, 0): 8, (1, 1): 5, (2, 0): 1, (2, 1): 1}
    found = [[s[1] for s in run] for run, _ in runs_along(slots, 1)]
    assert found == [[0, 1, 2, 3], [4, 5], [9, 10]]
    assert [[s[1] for s in r] for r, _ in runs_along({(0, k): 2 for k in range(4)}, 1)] == [[0, 1], [2, 3]]
