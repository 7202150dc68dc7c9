"""VTA's matrix instruction by its meaning, and where in a kernel it fits.

One micro-op of GEMM is, for the default configuration, the tensor expression

    (x0: i8[1,16], x1: i8[16,16]) -> i32[1,16]: out[n, o] = sum(i) i32(x0[n, i]) * i32(x1[o, i])

over elements of the input and the weight buffer. A kernel whose update is that, with operands that lie in whole
elements, is one for the accelerator: layers are written over blocked layouts (`sums`), and which of the lowered
kernel's axes the instruction covers follows from the expressions. Padding is no part of the instruction: LOAD writes
the zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..ir.expr import Const, Operand, Read, Scalar, TensorExpr, When, cast, rebuild, reduce, when
from ..ir.index import Axis, Index
from ..ir.intrinsic import Axes, places
from ..ir.loops import LoopKernel, lower
from ..ir.types import TensorType
from .config import Config
from .layer import Layer, Window

ACCUMULATOR = "i32"


def _dtype(bits: int) -> str:
    """The type that lanes of so many bits have in expressions: narrow ones are those of the next whole byte."""
    return f"i{max(8, bits)}"


def gemm(config: Config) -> TensorExpr:
    """What one micro-op of GEMM adds to an element of the accumulators."""
    n, i = config.block, Axis("i", config.block)
    inp, wgt = TensorType((config.batch, n), _dtype(config.inp_bits)), TensorType((n, n), _dtype(config.wgt_bits))

    def element(x: Operand, w: Operand) -> Callable[..., Scalar]:
        return lambda b, o: reduce("sum", [i], cast(x[b, i], ACCUMULATOR) * cast(w[o, i], ACCUMULATOR))

    return TensorExpr.build([inp, wgt], (config.batch, n), element)


def sums(layer: Layer, config: Config) -> TensorExpr:
    """The sums of one image and one group of a layer over blocked layouts: `[C][H][W][batch][block]` of inputs and
    `[O][C][KH][KW][block][block]` of weights to `[O][H'][W'][batch][block]` of int32."""
    n, outputs, inputs, rows, columns = config.block, layer.group_outputs, layer.group_inputs, layer.rows, layer.columns
    types = [
        TensorType((inputs, rows.size, columns.size, config.batch, n), _dtype(config.inp_bits)),
        TensorType((outputs, inputs, rows.taps, columns.taps, n, n), _dtype(config.wgt_bits)),
    ]
    c, dy, dx, i = Axis("c", inputs), Axis("dy", rows.taps), Axis("dx", columns.taps), Axis("i", n)

    def place(window: Window, output: Index, tap: Axis) -> Index:
        return output * window.stride + Index.of(tap) * window.spread - window.pad

    def element(x: Operand, w: Operand) -> Callable[..., Scalar]:
        def result(o: Index, y: Index, x_: Index, b: Index, j: Index) -> Scalar:
            row, column = place(rows, y, dy), place(columns, x_, dx)
            inside = [(row, 0, rows.size), (column, 0, columns.size)]
            read = x[Index.of(c), row, column, b, i]
            padded = when(inside, read, Const(0, read.dtype))
            weight = w[o, Index.of(c), Index.of(dy), Index.of(dx), j, i]
            return reduce("sum", [c, dy, dx, i], cast(padded, ACCUMULATOR) * cast(weight, ACCUMULATOR))

        return result

    return TensorExpr.build(types, (outputs, rows.outputs, columns.outputs, config.batch, n), element)


@dataclass(frozen=True)
class GemmFit:
    """GEMM in a kernel: `covered` are the kernel's axes that it takes a block of, `trips` how often it is applied."""

    covered: tuple[str, ...]
    trips: int


def fit(kernel: LoopKernel, config: Config) -> GemmFit | None:
    """Where GEMM is the kernel's update; None if it is not, or if operands or results do not lie in whole elements."""
    own = lower(gemm(config))
    assert isinstance(own, LoopKernel)
    bare = _without_padding(kernel)
    for axes, _ in places(own, bare, _whole_elements):
        whole = all(theirs.extent % mine.extent == 0 for mine, theirs in axes.items())
        results = ((own.out.coefficient(m), bare.out.coefficient(axes[m])) for m in own.spatial)
        if whole and all(mine == theirs for mine, theirs in results):
            return GemmFit(tuple(a.name for a in axes.values()), kernel.points // own.points)
    return None


def _whole_elements(own: Read, other: Read, axes: Axes) -> bool:
    element, address = own.index[0], other.index[0]
    return all(element.coefficient(mine) == address.coefficient(theirs) for mine, theirs in axes.items())


def _without_padding(kernel: LoopKernel) -> LoopKernel:
    """The kernel that reads zeros where this one tests bounds."""
    def bare(s: Scalar) -> Scalar:
        if isinstance(s, When) and isinstance(s.otherwise, Const) and s.otherwise.value == 0:
            return bare(s.then)
        return rebuild(s, bare, lambda i: i)

    return replace(kernel, update=None if kernel.update is None else bare(kernel.update))
