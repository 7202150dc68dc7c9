"""Which kernels of the graph the accelerator computes: their tensor expressions taken apart.

A kernel fits if it is, in integers,

    out = epilogue(sum of x · w over channels and windows)      convolutions and products of any kind, window sums
    out = epilogue(max of x over windows)                        pooling
    out = epilogue(x)                                            elementwise operators

where x has at most as many bits as the accelerator's inputs, and the epilogue is additions of constants (one number, or
one a channel) and of tensors of the output's shape, shifts, minima and maxima. What an operator is called plays no
part. `recognise` gives the `Work` that a kernel is, or raises `Unsuitable`, whose message is the reason for a report.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import NesteggError, UnsupportedError
from ..ir.expr import Apply, Cast, Const, Read, Scalar, TensorExpr, When, walk
from ..ir.index import Axis, Index, Quotient, Remainder
from ..ir.loops import LoopKernel, by_dimension
from ..ir.stages import ACCUMULATOR
from ..ir.types import DTYPES
from .config import Config
from .view import View

Arrays = Mapping[int, NDArray[np.integer]]
Range = tuple[int, int]
INT32: Range = (-(1 << 31), (1 << 31) - 1)
IMMEDIATE: Range = (-(1 << 15), (1 << 15) - 1)


class Unsuitable(NesteggError):
    """A kernel that the accelerator cannot compute; the message is the reason."""


def _require(kept: bool, reason: str) -> None:
    if not kept:
        raise Unsuitable(reason)


# --- what is recognised ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """One of the two axes of windows, in elements of the tensor (see `layer.Window`); `dilate`: inputs stand so far
    apart, with zeros between them (a transposed convolution)."""

    size: int = 1
    outputs: int = 1
    taps: int = 1
    stride: int = 1
    pad: int = 0
    spread: int = 1
    dilate: int = 1


@dataclass(frozen=True)
class Operation:
    """A step of the epilogue: "min", "max", "shr", "add" with a number or one a channel, or "addend": the tensor
    `operand` times a factor."""

    name: str
    value: int = 0
    channels: tuple[int, ...] = ()
    operand: int = -1

    def range(self, before: Range, operand: Range = (0, 0)) -> Range:
        """Least and largest result for operands of the range `before`; all of int32 if it may wrap."""
        lo, hi = before
        match self.name:
            case "min":
                return min(lo, self.value), min(hi, self.value)
            case "max":
                return max(lo, self.value), max(hi, self.value)
            case "shr" if self.value >= 0:
                return lo >> self.value, hi >> self.value
            case "shr":
                return _in_int32(lo << -self.value, hi << -self.value)
            case "add":
                added = self.channels or (self.value,)
                return _in_int32(lo + min(added), hi + max(added))
        ends = [end * self.value for end in operand]
        return _in_int32(lo + min(ends), hi + max(ends))


def _in_int32(lo: int, hi: int) -> Range:
    return (lo, hi) if INT32[0] <= lo and hi <= INT32[1] else INT32


@dataclass(frozen=True, eq=False)
class Weights:
    """Where the weights of a product come from: input number `operand` (None: all are `Work.factor`), and for each
    output channel, input channel and tap that has one, its position in that input's array."""

    operand: int | None
    outputs: NDArray[np.int64]
    inputs: NDArray[np.int64]
    source: NDArray[np.int64]

    def dense(self, values: NDArray[np.integer] | int, shape: tuple[int, int, int, int]) -> NDArray[np.int64]:
        """`[outputs, inputs, row taps, column taps]` of an array's values or of one number; zeros where an output does
        not read an input."""
        found = np.zeros(shape, np.int64)
        rows, columns = (np.arange(n).reshape(s) for n, s in ((shape[2], (-1, 1)), (shape[3], (1, -1))))
        given = self._given(values)
        found[self.outputs[..., None, None], self.inputs[..., None, None], rows, columns] = given
        return found


    def sums(self, values: NDArray[np.integer] | int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each output channel the sum of its positive weights, and of its negative ones."""
        given = np.broadcast_to(self._given(values), self.source.shape)
        at, taps = self.outputs.reshape(-1), (given.ndim - 2, given.ndim - 1)
        signs = np.maximum(given, 0, dtype=np.int64), np.minimum(given, 0, dtype=np.int64)
        positive, negative = (np.bincount(at, part.sum(taps).reshape(-1), outputs) for part in signs)
        return positive.astype(np.int64), negative.astype(np.int64)

    def _given(self, values: NDArray[np.integer] | int) -> NDArray[np.integer] | int:
        return values if isinstance(values, int) else values.reshape(-1)[self.source]


@dataclass(frozen=True, eq=False)
class Work:
    """A kernel as the accelerator computes it, for any size of its blocks.

    `source`: number and view of the input that windows move over; `result`: the output's view. `weights`: None where
    channels stay apart and all taps count alike (then `kind` may be "max"; `zeros`: padding is zeros to it). `factor`:
    what everything is multiplied by if no operand says so. `groups`: equal runs of channels that are apart. `addends`:
    views of the operands that are added.
    """

    source: tuple[int, View]
    result: View
    rows: Taps
    columns: Taps
    kind: Literal["sum", "max"]
    zeros: bool
    weights: Weights | None
    factor: int
    groups: int
    epilogue: tuple[Operation, ...]
    addends: Mapping[int, View] = field(default_factory=dict)

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """The inputs that lie in DRAM as activations."""
        return self.source[0], *self.addends


# --- operands ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Operand:
    """An integer tensor read at an index for each dimension, with zeros (or what counts for nothing) around it."""

    read: Read
    bounds: tuple[tuple[Index, int, int], ...] = ()
    outside: int = 0


def _operand(s: Scalar) -> _Operand | None:
    """A scalar that is an element of an input, converted to wider integers or not at all, padded or not."""
    if isinstance(s, When) and isinstance(s.otherwise, Const):
        inner, outside = _operand(s.then), int(s.otherwise.value)
        return None if inner is None or inner.bounds else replace(inner, bounds=s.bounds, outside=outside)
    if isinstance(s, Cast) and _widens(s):
        return _operand(s.arg)
    return _Operand(s) if isinstance(s, Read) and s.input != ACCUMULATOR else None


def _widens(s: Cast) -> bool:
    before, after = DTYPES[s.arg.dtype], DTYPES[s.dtype]
    return before.kind == after.kind == "int" and before.size <= after.size


# --- recognition -------------------------------------------------------------------------------------


def recognise(
    expr: TensorExpr, config: Config, constants: Arrays | None = None, narrow: Collection[int] = ()
) -> Work:
    """The work that a kernel is for a configuration. `constants`: the arrays of inputs that are known; `narrow`: inputs
    of a wider type whose values are known to fit the accelerator's inputs.

    Raises `Unsuitable`, saying why, if the accelerator cannot compute it.
    """
    return _Recognition(expr, config, constants or {}, narrow).work()


def of_floats(expr: TensorExpr) -> str:
    """The reason not to compute a kernel that has floats; "" if it has none."""
    found = sorted({t.dtype for t in (*expr.inputs, expr.type) if DTYPES[t.dtype].kind == "float"})
    return f"computes in {', '.join(found)}; the accelerator has integers only" if found else ""


class _Recognition:
    def __init__(self, expr: TensorExpr, config: Config, constants: Arrays, narrow: Collection[int]) -> None:
        self.expr, self.config, self.constants, self.narrow = expr, config, constants, narrow
        refusal = of_floats(expr)
        _require(not refusal, refusal)
        try:
            self.kernel: LoopKernel = by_dimension(expr)
        except UnsupportedError:
            raise Unsuitable("takes several reductions one after the other") from None
        _require(self.kernel.fill is None, "writes a border around its results")
        _require(not self.kernel.gathers, "reads at computed positions")
        # Of a "max" reduction only windows are left to be reduced, of "sum" channels too.
        kind = self.kernel.kind or "sum"
        _require(kind in ("sum", "max"), f"reduces by {kind}; the accelerator sums, or takes a maximum")
        self.kind: Literal["sum", "max"] = "max" if kind == "max" else "sum"

    def work(self) -> Work:
        k = self.kernel
        base, steps = self._chain(k.epilogue)
        product = self._product(k.update if isinstance(base, Read) and base.input == ACCUMULATOR else base)
        x, w, factor = product
        self.x, self.w = x, w
        self._check_padding(x)
        self.in_w = {a for i in w.read.index for a in i.axes} if w else set()
        dims = [self._dimension(d) for d in range(len(x.read.index))]
        source = self._roles(dims)
        rows, columns = (self._taps(source.shape, dims, role) for role in (source.row, source.column))
        result = self._result(source, dims)
        weights, groups = self._weights(source, result, rows, columns)
        work = Work(
            (x.read.input, source), result, rows, columns, self.kind, x.outside == 0, weights, factor, groups, (), {}
        )
        return self._with_epilogue(work, steps)

    # --- the product ------------------------------------------------------------------------------

    def _product(self, s: Scalar | None) -> tuple[_Operand, _Operand | None, int]:
        """x and w of GEMM's sum(x · w); of a window's sum or maximum, or an elementwise operator, x and a number."""
        assert s is not None
        s, factor = _scaled(s) if self.kind == "sum" else (s, 1)
        single, limit = _operand(s), 1 << (self.config.wgt_bits - 1)
        if single is not None:
            _require(single.read.input not in self.constants, "computes on constants only")
            self._require_narrow(single.read)
            reason = f"weights {factor} … {factor} do not fit {self.config.wgt_bits} bits"
            _require(-limit <= factor < limit, reason)
            return single, None, factor
        _require(self.kind == "sum", "takes the maximum of something computed")
        pair = [_operand(a) for a in s.args] if isinstance(s, Apply) and s.fn == "mul" else [None]
        operands = [o for o in pair if o is not None]
        _require(len(operands) == 2, f"sums {s}; GEMM sums products of two integer operands")
        x, w = operands
        if x.read.input in self.constants or (w.bounds and not x.bounds):
            x, w = w, x
        _require(not w.bounds, "pads both operands of a product")
        _require(x.read.input not in self.constants, "computes on constants only")
        _require(x.read.input != w.read.input, "multiplies a tensor by itself")
        self._require_narrow(x.read)
        values = self.constants.get(w.read.input)
        if values is None:
            self._require_narrow(w.read)
        else:
            found = (int(values.min()), int(values.max())) if values.size else (0, 0)
            reason = f"weights {found[0]} … {found[1]} do not fit {self.config.wgt_bits} bits"
            _require(-limit <= found[0] and found[1] < limit, reason)
        return x, w, 1

    def _require_narrow(self, read: Read) -> None:
        dtype, most = DTYPES[read.dtype], max(8, self.config.inp_bits)
        fits = dtype.kind == "int" and (dtype.size * 8 <= most or read.input in self.narrow)
        _require(fits, f"operand x{read.input} is {read.dtype}; the accelerator takes signed integers of {most} bits")

    def _check_padding(self, x: _Operand) -> None:
        lowest = -(1 << (self.config.inp_bits - 1))
        fits = x.outside == 0 or (self.kind == "max" and x.outside <= lowest)
        _require(fits, f"pads with {x.outside}; LOAD pads with zeros")

    # --- dimensions -------------------------------------------------------------------------------

    def _dimension(self, d: int) -> _Dimension:
        """Which axes walk along a dimension of x, and how far it is padded."""
        index = self.x.read.index[d]
        bounds = [b for b in self.x.bounds if b[0].axes and b[0].axes == index.axes]
        spatial = tuple(a for a in self.kernel.spatial if a in index.axes and a not in self.in_w)
        grouped = tuple(a for a in self.kernel.spatial if a in index.axes and a in self.in_w)
        reduced = tuple(a for a in self.kernel.reduce if a in index.axes)
        return _Dimension(index, tuple(bounds), spatial, grouped, reduced)

    def _roles(self, dims: Sequence[_Dimension]) -> View:
        """The roles of x's dimensions: channels as below; of the others the last two are rows and columns."""
        shape, channel = self.expr.inputs[self.x.read.input].shape, self._channels(dims)
        others = [d for d in range(len(dims)) if d not in channel]
        windows = [d for d in others if dims[d].reduced]
        plain = next((k for k, d in enumerate(others) if d in windows), len(others))
        count = min(plain, max(len(others) - 2, 1))
        image, moved = others[:count], others[count:]
        _require(len(moved) <= 2, "moves windows along more than two dimensions")
        row, column = moved[:-1], moved[-1:]
        # A dimension of one element has a role if windows move along it, into its padding.
        roles = [[d for d in role if shape[d] > 1 or dims[d].index.axes] for role in (image, channel, row, column)]
        return View(shape, *map(tuple, roles))

    def _channels(self, dims: Sequence[_Dimension]) -> tuple[int, ...]:
        """Those dimensions of x that a product reduces without a window moving along them; of tensors of three
        dimensions or more the second alone if it may be that, as in all operators with windows."""
        pure = [d for d, dim in enumerate(dims) if dim.reduced and not dim.spatial]
        free = [d for d, dim in enumerate(dims) if not dim.reduced]
        many = len(dims) > 2 and (1 in pure or dims[1].is_constant or bool(dims[1].grouped))
        if len(dims) > 1 and (many or (1 in free and (self.w is None or not pure))):
            return (1,)
        return tuple(pure if pure and self.kind == "sum" else free[-1:])

    def _taps(self, shape: tuple[int, ...], dims: Sequence[_Dimension], role: tuple[int, ...]) -> Taps:
        return dims[role[0]].taps(shape[role[0]]) if role else Taps()

    def _result(self, source: View, dims: Sequence[_Dimension]) -> View:
        """The output's view: its dimensions have the roles of the axes that walk along them."""
        images = [self._whole(dims[d], source.shape[d]) for d in source.image]
        walks = {a: "row" for d in source.row for a in dims[d].spatial}
        walks |= {a: "column" for d in source.column for a in dims[d].spatial}
        walks |= dict.fromkeys(images, "image")
        shape, at = self.expr.type.shape, self._output_dimensions()
        roles: dict[str, list[int]] = {"image": [], "channel": [], "row": [], "column": []}
        channel_axes = {a for d in source.channel for a in dims[d].spatial} | self.in_w
        for d, axes in enumerate(at):
            kinds = {"channel" if a in channel_axes else walks.get(a, "") for a in axes}
            if not kinds:
                continue
            _require(len(kinds) == 1 and "" not in kinds, f"dimension {d} of the results is of no one kind")
            roles[kinds.pop()].append(d)
        found = View(shape, *(tuple(roles[r]) for r in ("image", "channel", "row", "column")))
        order = [a for d in found.image for a in at[d]]
        _require(order == images, "transposes images")
        _require(len(found.row) <= 1 and len(found.column) <= 1, "splits rows or columns")
        return found

    def _whole(self, dim: _Dimension, extent: int) -> Axis:
        """The one axis that walks along all of a dimension, step by step."""
        whole = len(dim.spatial) == 1 and dim.index == Index.of(dim.spatial[0]) and dim.spatial[0].extent == extent
        _require(whole, f"walks along images by {dim.index}")
        return dim.spatial[0]

    def _output_dimensions(self) -> list[list[Axis]]:
        """The axes of each dimension of the output, outermost first."""
        found: list[list[Axis]] = [[] for _ in self.expr.type.shape]
        strides = self.expr.type.strides
        for axis in sorted(self.kernel.spatial, key=lambda a: -self.kernel.out.coefficient(a)):
            c = self.kernel.out.coefficient(axis)
            _require(c > 0, f"writes along {axis} by {self.kernel.out}")
            sizes = [d for d, n in enumerate(self.expr.type.shape) if n > 1 and strides[d] <= c]
            found[sizes[0]].append(axis)
        return found

    # --- weights ----------------------------------------------------------------------------------

    def _weights(self, source: View, result: View, rows: Taps, columns: Taps) -> tuple[Weights | None, int]:
        """Which weight each output channel, input channel and tap has; how many groups of channels are apart."""
        at, dims = self._output_dimensions(), [self._dimension(d) for d in range(len(source.shape))]
        outer = [a for d in result.channel for a in at[d]]
        inner = [a for d in source.channel for a in dims[d].reduced]
        moved = [dims[role[0]].reduced if role else () for role in (source.row, source.column)]
        window = [reduced[0] if reduced else Axis("", 1) for reduced in moved]
        shared = [a for a in outer if any(a in dims[d].index.axes for d in source.channel)]
        outer = [*shared, *(a for a in outer if a not in shared)]
        axes = [*outer, *inner]
        known = {*axes, *window, *(a for d in dims for a in d.spatial)}
        alone = [str(a) for a in self.kernel.axes if a not in known]
        _require(not alone, f"repeats or reduces along {', '.join(alone)}, where its operands do not move")
        grid = _grid([*axes, *(Axis(f"tap {k}", 1) if a.extent == 1 else a for k, a in enumerate(window))])
        size = [a.extent for a in axes]

        def position(index: Sequence[Index], shape: Sequence[int], extent: Sequence[int]) -> NDArray[np.int64]:
            flat, step = np.zeros(1, np.int64), 1
            for i, n in zip(reversed(index), reversed(shape), strict=True):
                flat, step = flat + np.asarray(i.evaluate(grid)) * step, step * n
            return np.broadcast_to(flat, extent)

        out_at = [self._position_in(d, at[d]) for d in result.channel]
        every = [*size, rows.taps, columns.taps]
        o = position(out_at, [result.shape[d] for d in result.channel], every)[..., 0, 0]
        c = position([self.x.read.index[d] for d in source.channel], [source.shape[d] for d in source.channel], every)
        c = c[..., 0, 0]
        _require(0 <= int(c.min()) and int(c.max()) < source.sizes[1], "pads channels")
        whole = result.sizes[1] == source.sizes[1] == o.size
        if self.w is None and not inner and whole and np.array_equal(o, c):
            return None, source.sizes[1]
        _require(self.kind == "sum", "takes maxima over channels, or moves them")
        if self.w is None:
            return Weights(None, o, c, np.zeros(every, np.int64)), 1
        shape = self.expr.inputs[self.w.read.input].shape
        weights = Weights(self.w.read.input, o, c, position(self.w.read.index, shape, every))
        return weights, self._groups(o, c, math.prod(a.extent for a in shared), result, source)

    def _position_in(self, d: int, axes: Sequence[Axis]) -> Index:
        """The index of an output dimension, from the address that its axes make."""
        stride = self.expr.type.strides[d]
        return sum((Index.of(a) * (self.kernel.out.coefficient(a) // stride) for a in axes), Index())

    def _groups(self, o: NDArray, c: NDArray, groups: int, result: View, source: View) -> int:
        """The number of groups, if each is a run of channels of both tensors; else all channels are one group."""
        outputs, inputs = result.sizes[1], source.sizes[1]
        if groups == 1 or outputs % groups or inputs % groups:
            return 1
        number = np.arange(groups)[:, None]
        runs = (o.reshape(groups, -1) // (outputs // groups) == number).all()
        return groups if runs and (c.reshape(groups, -1) // (inputs // groups) == number).all() else 1

    # --- epilogue ---------------------------------------------------------------------------------

    def _chain(self, s: Scalar) -> tuple[Scalar, list[Scalar]]:
        """A scalar as a chain of operations, each on the result of the one before: the base, then outwards."""
        steps: list[Scalar] = []
        while True:
            inner = self._inner(s)
            if inner is None:
                return s, steps[::-1]
            steps.append(s)
            s = inner

    def _inner(self, s: Scalar) -> Scalar | None:
        """The operand of a step on which the chain goes on; None at its base."""
        if isinstance(s, Read):
            return None
        if isinstance(s, Cast):
            return None if self.kernel.update is None and _operand(s) else s.arg
        if isinstance(s, When) and _operand(s):
            return None
        _require(isinstance(s, Apply), f"computes {type(s).__name__.lower()} of its results")
        assert isinstance(s, Apply)
        if self.kernel.update is None and s.fn == "mul" and all(_operand(a) or _number(a) is not None for a in s.args):
            return None
        reaching = [a for a in s.args if self._reaches(a)]
        if len(reaching) > 1 and self.kernel.update is None:  # two tensors: the longer chain is the base
            reaching.sort(key=lambda a: -sum(1 for _ in walk(a)))
        _require(bool(reaching), "computes on constants only")
        return reaching[0]

    def _reaches(self, s: Scalar) -> bool:
        """Whether the base may lie inside: the accumulator, or in a map a tensor that is not known."""
        inside = [n for n in walk(s) if isinstance(n, Read)]
        if self.kernel.update is not None:
            return any(r.input == ACCUMULATOR for r in inside)
        return any(r.input not in self.constants for r in inside)

    def _with_epilogue(self, work: Work, steps: Sequence[Scalar]) -> Work:
        operations: list[Operation] = []
        start = bound = self._base_range(work)
        addends: dict[int, View] = {}
        half = 1 << (self.config.inp_bits - 1)
        for n, step in enumerate(steps):
            assert isinstance(step, (Apply, Cast))
            if isinstance(step, Apply):
                operation = self._operation(work, step, addends)
                bound = operation.range(bound, (-half, half - 1))
                operations.append(operation)
            _require(DTYPES[step.dtype].kind == "int" and step.dtype != "i64", f"computes in {step.dtype}")
            bits = DTYPES[step.dtype].size * 8
            fits = -(1 << (bits - 1)) <= bound[0] and bound[1] < 1 << (bits - 1)
            last = n == len(steps) - 1 and bits == self.config.out_bits  # STORE cuts bits off
            _require(fits or last, f"results {bound[0]} … {bound[1]} are cut to {bits} bits before the end")
            bound = bound if fits else (-half, half - 1)
        reason = f"results {bound[0]} … {bound[1]} do not fit the {self.config.out_bits} bits that STORE writes"
        _require(-half <= bound[0] and bound[1] < half, reason)
        operand = (-half, half - 1)
        small = with_small_factors(operations, start, operand, self.config.wgt_bits)
        return replace(work, epilogue=simplified(small, start, operand), addends=addends)

    def _base_range(self, work: Work) -> Range:
        """Least and largest sum, whatever the inputs are."""
        half = 1 << (self.config.inp_bits - 1)
        lo, hi = -half, half - 1
        taps = work.rows.taps * work.columns.taps
        if work.weights is None:
            ends = (lo, hi) if work.kind == "max" else (lo * taps * work.factor, hi * taps * work.factor)
            return _in_int32(min(ends), max(ends))
        values = work.factor if work.weights.operand is None else self.constants.get(work.weights.operand)
        if values is None:
            count = work.weights.source.size // max(1, work.result.sizes[1])
            most = count * half << (self.config.wgt_bits - 1)
            return _in_int32(-most, most)
        positive, negative = work.weights.sums(values, work.result.sizes[1])
        least, most = positive * lo + negative * hi, positive * hi + negative * lo
        return _in_int32(int(least.min()), int(most.max()))

    def _operation(self, work: Work, s: Apply, addends: dict[int, View]) -> Operation:
        base = self._inner(s)
        others = [a for a in s.args if a is not base]
        other = others[0] if others else None
        first = bool(s.args) and s.args[0] is base
        number = int(other.value) if isinstance(other, Const) else None
        match s.fn:
            case "add" | "sub" if first or s.fn == "add":
                assert other is not None
                return self._addition(work, other, -1 if s.fn == "sub" else 1, addends)
            case "max" | "min" if number is not None:
                return Operation(s.fn, number)
            case "shr" | "shl" if first and number is not None:
                _require(0 <= number < 32, f"shifts by {number}")
                return Operation("shr", number if s.fn == "shr" else -number)
            case "mul" if number is not None and number > 0 and number & (number - 1) == 0:
                return Operation("shr", 1 - number.bit_length())
        what = "" if number is None else f" with {number}"
        raise Unsuitable(f"applies {s.fn}{what} to results; the ALU adds, shifts by constants, and takes MIN and MAX")

    def _addition(self, work: Work, s: Scalar, sign: int, addends: dict[int, View]) -> Operation:
        if isinstance(s, Const):
            return Operation("add", sign * int(s.value))
        s, factor = _scaled(s)
        operand = _operand(s)
        _require(operand is not None and not operand.bounds, f"adds {s}; a tensor or constant can be added")
        assert operand is not None
        read, values = operand.read, self.constants.get(operand.read.input)
        if values is not None:
            return self._channel_constants(work, read, values * (sign * factor))
        self._require_narrow(read)
        dilated = work.rows.dilate > 1 or work.columns.dilate > 1
        _require(not dilated, "adds a tensor to a transposed convolution")
        shape = self.expr.inputs[read.input].shape
        flat = sum((i * n for i, n in zip(read.index, self.expr.inputs[read.input].strides, strict=True)), Index())
        same = shape == self.expr.type.shape and flat == self.kernel.out
        _require(same, f"adds x{read.input} in another layout than its results'")
        addends[read.input] = work.result
        return Operation("addend", sign * factor, operand=read.input)

    def _channel_constants(self, work: Work, read: Read, values: NDArray[np.integer]) -> Operation:
        at = self._output_dimensions()
        axes = [a for d in work.result.channel for a in at[d]]
        walked = {a for i in read.index for a in i.axes}
        _require(walked <= set(axes), f"adds constants x{read.input} that differ along rows, columns or images")
        grid = _grid(axes)
        index = tuple(np.asarray(i.evaluate(grid)) for i in read.index)
        found = np.broadcast_to(values[index], [a.extent for a in axes]).reshape(-1)
        _require(INT32[0] <= int(found.min()) and int(found.max()) <= INT32[1], "adds constants of more than 32 bits")
        if (found == found[0]).all():
            return Operation("add", int(found[0]))
        return Operation("add", channels=tuple(found.tolist()))


@dataclass(frozen=True)
class _Dimension:
    """A dimension of x: its index, the bounds on it, and the axes that walk along it: of the output alone, of the
    output and the weights, reduced."""

    index: Index
    bounds: tuple[tuple[Index, int, int], ...]
    spatial: tuple[Axis, ...]
    grouped: tuple[Axis, ...]
    reduced: tuple[Axis, ...]

    @property
    def is_constant(self) -> bool:
        return not self.index.axes

    def taps(self, size: int) -> Taps:
        """The window that moves along the dimension."""
        one_each = len(self.spatial) <= 1 and len(self.reduced) <= 1 and not self.grouped
        _require(one_each, f"walks along rows or columns by {self.index}")
        affine, dilate, offset = self.index, 1, 0
        if not affine.is_affine:
            affine, dilate, offset = self._dilation()
        stride, spread = (affine.coefficient(axes[0]) if axes else 1 for axes in (self.spatial, self.reduced))
        _require(stride > 0 and spread > 0, f"walks backwards along rows or columns, by {self.index}")
        _require(dilate == 1 or stride == spread == 1, f"spreads inputs {dilate} apart and walks by {self.index}")
        for i, lo, hi in self.bounds:
            if any(isinstance(a, Remainder) for a, _ in i.terms):
                continue
            moved = self.index.constant - i.constant
            whole = i.terms == self.index.terms and lo + moved == 0 and hi + moved == size
            _require(whole, f"tests {lo} <= {i} < {hi}, which is not where its input ends")
        outputs, count = (axes[0].extent if axes else 1 for axes in (self.spatial, self.reduced))
        return Taps(size, outputs, count, stride, -affine.constant - offset * dilate, spread, dilate)

    def _dilation(self) -> tuple[Index, int, int]:
        """Of an index (a // by) + constant, tested to be a whole quotient: a, by, constant."""
        term = self.index.terms[0][0] if len(self.index.terms) == 1 and self.index.terms[0][1] == 1 else None
        _require(isinstance(term, Quotient), f"walks along rows or columns by {self.index}")
        assert isinstance(term, Quotient)
        whole = any(len(i.terms) == 1 and isinstance(i.terms[0][0], Remainder) and hi == 1 for i, _, hi in self.bounds)
        _require(whole and term.of.is_affine, f"walks along rows or columns by {self.index}")
        return term.of, term.by, self.index.constant


def _last_two(dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """Row and column of up to two dimensions; one alone is the column."""
    return list(dims[:-1]), list(dims[-1:])


def _grid(axes: Sequence[Axis]) -> dict[Axis, NDArray[np.int64]]:
    """Each axis's indices, in a dimension of their own."""
    return {
        a: np.arange(a.extent).reshape([-1 if k == d else 1 for k in range(len(axes))]) for d, a in enumerate(axes)
    }


def _number(s: Scalar) -> int | None:
    """The value of a constant, converted to wider integers or not."""
    if isinstance(s, Cast) and _widens(s):
        return _number(s.arg)
    return int(s.value) if isinstance(s, Const) else None


def _scaled(s: Scalar) -> tuple[Scalar, int]:
    """An operand times a constant: the operand and the constant."""
    if isinstance(s, Apply) and s.fn in ("mul", "shl"):
        left, right = (_number(a) for a in s.args)
        if right is not None:
            return s.args[0], right if s.fn == "mul" else 1 << right
        if left is not None and s.fn == "mul":
            return s.args[1], left
    return s, 1


# --- addends' factors as weights ----------------------------------------------------------------------


def with_small_factors(
    steps: Sequence[Operation], start: Range, operand: Range, bits: int
) -> tuple[Operation, ...]:
    """An equal epilogue whose addends' factors are weights of so many bits, for sums in the range `start`:

        (x + y * 2**r + c) >> s   ->  (((x + c) >> k) + y * 2**(r - k)) >> (s - k)

    which is exact, since y * 2**r has k zeros at its end. Raises `Unsuitable` where there is no such shift, or where
    the sum may leave int32.
    """
    found: list[Operation] = []
    for first, group in _sums_and_shifts(steps):
        large = max((abs(a.value) for a in group if a.name == "addend"), default=0)
        k = max(0, large.bit_length() - (bits - 1))
        if k:
            addends = [a for a in group if a.name == "addend"]
            reason = f"adds a tensor times {large}: no weight of {bits} bits"
            _require(first is not None and first.value >= k, reason)
            assert first is not None
            _require(all(a.value % (1 << k) == 0 for a in addends), reason)
            _require(_range_of([*found, *group], start, operand) != INT32, f"{reason}, and the sum may leave int32")
            group = [
                *(a for a in group if a.name == "add"),
                Operation("shr", k),
                *(replace(a, value=a.value >> k) for a in addends),
            ]
            first = replace(first, value=first.value - k)
        found += group if first is None else [*group, first]
    return tuple(found)


def _sums_and_shifts(steps: Sequence[Operation]) -> list[tuple[Operation | None, list[Operation]]]:
    """Runs of additions, each with the shift to the right behind it; other steps are runs of their own."""
    found: list[tuple[Operation | None, list[Operation]]] = []
    run: list[Operation] = []
    for step in steps:
        if step.name in ("add", "addend"):
            run.append(step)
            continue
        shifts = step.name == "shr" and step.value > 0
        found += [(step, run)] if shifts else [(None, run), (None, [step])]
        run = []
    return [*found, (None, run)]


def _range_of(steps: Sequence[Operation], start: Range, operand: Range) -> Range:
    bound = start
    for step in steps:
        bound = step.range(bound, operand)
    return bound


# --- fewer operations --------------------------------------------------------------------------------


def simplified(steps: Sequence[Operation], start: Range, operand: Range) -> tuple[Operation, ...]:
    """An equal epilogue of fewer operations, for sums in the range `start` and addends in `operand`.

        max(a), min(b), max(c)   ->  max(max(a, c)), min(b)    c <= b: both bounds of a clip and then those of another
        min(b), max(a), min(c)   ->  min(min(b, c)), max(a)    c >= a
        add(a), add(b)           ->  add(a + b)
        shr(a), shr(b)           ->  shr(a + b)                both to the right
        max(a), min(b), add(0)   ->                            that change nothing, by the range of what comes before
    """
    kept: list[Operation] = []
    for step in steps:
        kept.append(step)
        while len(kept) > 1 and (joined := _joined(kept)) is not None:
            kept = joined
    found, bound = [], start
    for step in kept:
        after = step.range(bound, operand)
        idle = (step.name in ("min", "max") and after == bound) or step in (Operation("add"), Operation("shr"))
        found += [] if idle else [step]
        bound = after
    return tuple(found)


def _joined(steps: list[Operation]) -> list[Operation] | None:
    """The list with its last operation joined to one before it, if it can be."""
    *before, a, b = steps
    if a.name == b.name and a.name in ("min", "max"):
        return [*before, replace(a, value=max(a.value, b.value) if a.name == "max" else min(a.value, b.value))]
    if a.name == b.name == "shr" and a.value >= 0 and b.value >= 0:
        return [*before, Operation("shr", min(31, a.value + b.value))]
    if a.name == b.name == "add":
        return [*before, _sum(a, b)]
    if before and {a.name, b.name} == {"min", "max"} and before[-1].name == b.name:
        inside = b.value <= a.value if b.name == "max" else b.value >= a.value
        if inside:
            return [*(_joined([*before, b]) or []), a]
    return None


def _sum(a: Operation, b: Operation) -> Operation:
    count = max(len(a.channels), len(b.channels))
    if not count:
        return Operation("add", a.value + b.value)
    values = [np.asarray(o.channels or [o.value] * count, np.int64) for o in (a, b)]
    return Operation("add", channels=tuple((values[0] + values[1]).tolist()))
