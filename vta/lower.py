"""Integer kernels to programs of the accelerator, with the tiling that the e-graph's extraction chooses.

    recognise.recognise  a kernel's tensor expression -> the work that it is, or why it cannot run here
    parts                work -> layers in blocks of the configuration
    gemm.fit             is the layer's product one for GEMM, and over which axes?
    schedules.build      its tilings, loop orders, virtual threads: an e-graph
    choose.choose        extraction with the timing model as cost
    conv.py              the instructions of the chosen tiling

`conv2d` and `dense` are the two layers that one writes most, from weights and shapes.

Channels that are no multiple of the block are padded with zeros, images (or rows of a matrix) that are no multiple of
the batch too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ir.expr import Const, Operand, Scalar, TensorExpr, apply, cast, reduce, when
from ..ir.index import Axis, Index
from ..ir.loops import LoopKernel
from ..ir.loops import lower as loop_kernel
from ..ir.types import DTYPES, TensorType
from .analysis import Analysis, analyse
from .choose import EFFORT, Choice, Tilings, choose
from .config import DEFAULT, Config, Memory
from .conv import Buffers, emit
from .errors import ProgramError
from .functional import Counters, run
from .gemm import GemmFit, fit, sums
from .isa import AluOp
from .layer import (
    Addend,
    Bias,
    Epilogue,
    EpilogueStep,
    Immediate,
    Layer,
    Place,
    Window,
    compute_bound,
    identity_elements,
    shift,
)
from .layout import pack
from .legality import PORTABLE_SHIFT
from .program import Program, Segment
from .recognise import IMMEDIATE, Taps, Unsuitable, Work, recognise
from .runtime import Buffer, Builder, Dram
from .schedules import Space, build
from .timing import SIM, Board, simulate
from .tokens import Queue

# --- work in blocks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A layer that makes some of the results, those at `place`: all of them but for transposed convolutions, of which
    each part has the taps `first::step` of rows and columns."""

    layer: Layer
    place: Place
    first: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)


def parts(work: Work, config: Config) -> tuple[Part, ...]:
    """The layers that work takes. A transposed convolution is one of plain convolutions, each of which makes every
    n-th row and column. Raises `Unsuitable` if a window would lie outside of the input."""
    size, step = (work.rows.outputs, work.columns.outputs), (work.rows.dilate, work.columns.dilate)
    found = []
    for row in range(min(step[0], size[0])):
        for column in range(min(step[1], size[1])):
            (first_row, rows), (first_column, columns) = _phase(work.rows, row), _phase(work.columns, column)
            layer = _channels(work, rows, columns, config)
            found.append(Part(layer, Place(size, (row, column), step), (first_row, first_column), step))
    if len(found) == 1 and found[0].layer.rows.trivial and found[0].layer.columns.trivial:
        return (_flat(found[0]),)
    return tuple(found)


def _phase(taps: Taps, phase: int) -> tuple[int, Window]:
    """Of outputs `phase::dilate` the first tap that they read, and the window."""
    d = taps.dilate
    first = (taps.pad - phase) % d
    count = len(range(first, taps.taps, d))
    if count == 0:
        raise Unsuitable(f"has outputs that no tap reaches: {taps.taps} taps over inputs {d} apart")
    outputs = -(-(taps.outputs - phase) // d)
    window = Window(taps.size, outputs, count, taps.stride, (taps.pad - phase - first) // d, taps.spread)
    try:
        for output in range(outputs):
            window.load(output, 1)
    except ProgramError:
        raise Unsuitable("has windows that lie in the padding") from None
    return first, window


def _channels(work: Work, rows: Window, columns: Window, config: Config) -> Layer:
    """Channels in blocks; groups that are smaller than blocks are joined until they are whole ones."""
    n, (inputs, images) = config.block, work.source[1].blocks(config)
    if work.weights is None:
        return Layer(inputs, inputs, rows, columns, images, inputs, True, work.kind, work.zeros)
    outputs, g = work.result.blocks(config)[0], work.groups
    sizes = [work.source[1].sizes[1] // g, work.result.sizes[1] // g]
    joined = math.lcm(*(n // math.gcd(n, size) for size in sizes))
    groups = g // joined if g % joined == 0 else 1
    if sizes == [1, 1]:  # depthwise: whatever their number, a block of outputs reads the block of inputs in its place
        groups = inputs
    return Layer(inputs, outputs, rows, columns, images, groups)


def _flat(part: Part) -> Part:
    """Results that read just the element in their place: all pixels of all images are one row."""
    layer = part.layer
    count = layer.images * layer.rows.outputs * layer.columns.outputs
    flat = replace(layer, rows=Window(1, 1), columns=Window(count, count), images=1)
    return Part(flat, Place((1, count)))


def epilogue(work: Work) -> tuple[list[EpilogueStep], list[tuple[int, ...]]]:
    """The steps after the sums, and the biases that they add, of one number or one a channel. Raises `Unsuitable` if a
    bound is no immediate."""
    steps: list[EpilogueStep] = []
    added: list[tuple[int, ...]] = []
    operands = list(work.addends)
    for operation in work.epilogue:
        value = operation.value
        match operation.name:
            case "shr":
                steps += shift(value, PORTABLE_SHIFT)
            case "addend":
                steps.append(Addend(operands.index(operation.operand), value))
            case "add" if operation.channels or not IMMEDIATE[0] <= value <= IMMEDIATE[1]:
                steps.append(Bias(len(added)))
                added.append(operation.channels or (value,))
            case name:
                steps.append(_immediate(name, value))
    return steps, added


def _immediate(name: str, value: int) -> Immediate:
    if not IMMEDIATE[0] <= value <= IMMEDIATE[1]:
        raise Unsuitable(f"applies {name} with {value}; immediates have 16 bits")
    return Immediate({"max": AluOp.MAX, "min": AluOp.MIN, "add": AluOp.ADD}[name], value)


def bound(work: Work, config: Config) -> int:
    """Cycles below which no program of the work can stay. Raises `Unsuitable`."""
    steps, _ = epilogue(work)
    return sum(compute_bound(part.layer, steps) for part in parts(work, config))


# --- a compiled kernel -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel with its schedules: `choices` has one for each of `parts`, `gemm` says which axes of a part's product
    the instruction covers. `constants` are the arrays of known inputs, by number.

    Call it with the other inputs, in order, to run the functional simulator.
    """

    expr: TensorExpr
    work: Work
    config: Config
    board: Board
    constants: Mapping[int, NDArray[np.integer]]
    parts: tuple[Part, ...]
    epilogue: Epilogue
    biases: tuple[tuple[int, ...], ...]
    gemm: tuple[GemmFit | None, ...]
    choices: tuple[Choice, ...]

    @cached_property
    def _alone(self) -> _Alone:
        return _Alone(self)

    @property
    def program(self) -> Program:
        """The program, inputs that are not known being zeros."""
        return self._alone.program

    @cached_property
    def cycles(self) -> int:
        return simulate(self.program.stream, self.config, self.board).cycles

    @property
    def free(self) -> tuple[int, ...]:
        """The inputs that a call gives."""
        return tuple(k for k in range(len(self.expr.inputs)) if k not in self.constants)

    def bind(self, *arrays: ArrayLike) -> Program:
        """The program with its inputs. Raises `ProgramError` if number, shapes, or ranges of values are wrong."""
        types = [self.expr.inputs[k] for k in self.free]
        values = [np.asarray(a) for a in arrays]
        given, wanted = [v.shape for v in values], [t.shape for t in types]
        if given != wanted or any(v.dtype.kind not in "iu" for v in values):
            found = ", ".join(f"{v.dtype}{list(v.shape)}" for v in values)
            takes = ", ".join(str(list(s)) for s in wanted)
            raise ProgramError(f"inputs {found}: the kernel takes integers of {takes}")
        return self._alone.bind(dict(zip(self.free, values, strict=True)))

    def __call__(self, *arrays: ArrayLike) -> NDArray[np.integer]:
        """The kernel's result, computed by the functional simulator."""
        program = self.bind(*arrays)
        out = program.outputs[0]
        elements = run(program).dram[out.address : out.address + out.size]
        return self.work.result.unpack(elements, self.config).astype(DTYPES[self.expr.type.dtype].numpy)

    @property
    def layouts(self) -> dict[str, str]:
        """How the program's activations lie in DRAM: dimensions, outermost first."""
        views = {f"x{k}": v for k, v in (self.work.source, *self.work.addends.items())} | {"results": self.work.result}
        return {name: view.describe(self.config) for name, view in views.items()}

    def report(self) -> dict[str, Any]:
        """What was chosen and from how many schedules, cycles, utilisation and DRAM traffic (bytes)."""
        found: Analysis = analyse(simulate(self.program.stream, self.config, self.board))
        traffic = Counters.of(self.program.stream, self.config)
        choices, axes = self.choices, [list(g.covered) if g else [] for g in self.gemm]
        return {
            "gemm": {"axes": axes[0], "applied": sum(p.layer.macs for p in self.parts)},
            "parts": len(self.parts),
            "tiling": "; ".join(str(c.tiling) for c in choices),
            "schedules": sum(c.schedules for c in choices),
            "enodes": sum(c.enodes for c in choices),
            "timed": sum(c.timed for c in choices),
            "refused": sum(c.refused for c in choices),
            "estimated_cycles": round(sum(c.estimated for c in choices)),
            "cycles": found.cycles,
            "utilisation": found.utilisation,
            "bound_by": found.bound_by,
            "read_bytes": traffic.inp_bytes + traffic.wgt_bytes + traffic.acc_bytes + traffic.uop_bytes,
            "written_bytes": traffic.out_bytes,
        }

    # --- data -------------------------------------------------------------------------------------

    def weights(self, values: NDArray[np.integer] | None) -> list[bytes]:
        """Of each part its weights as elements. Raises `ProgramError` if a value does not fit."""
        if self.work.weights is None:
            return [identities((self.work.factor,), self.config)] * len(self.parts)
        limit = 1 << (self.config.wgt_bits - 1)
        if values is not None and values.size and not (-limit <= int(values.min()) and int(values.max()) < limit):
            raise ProgramError(f"weights {values.min()} … {values.max()} do not fit {self.config.wgt_bits} bits")
        sizes = self.work.result.sizes[1], self.work.source[1].sizes[1]
        given = self.work.factor if values is None else values
        dense = self.work.weights.dense(given, (*sizes, self.work.rows.taps, self.work.columns.taps))
        return [_pack_weights(dense, part, self.config) for part in self.parts]

    def bias_data(self) -> list[bytes]:
        """Biases as accumulator elements, the same in each row of the batch."""
        blocks = self.work.result.blocks(self.config)[0]
        return [_pack_bias(values, blocks, self.config) for values in self.biases]

    def allocate(self, dram: Dram, name: str, activations: Mapping[int, Buffer], results: Buffer) -> list[Buffers]:
        """Buffers of each part in DRAM: those of the activations are given, constants are placed there."""
        w = self.work.weights
        known = w is None or w.operand is None or w.operand in self.constants
        values = None if w is None or w.operand is None else self.constants.get(w.operand)
        biases = tuple(dram.holding(f"{name}.bias{k}", data) for k, data in enumerate(self.bias_data()))
        factors = identity_elements(self.epilogue)
        eye = dram.holding(f"{name}.identities", identities(factors, self.config)) if factors else None
        addends = tuple(activations[k] for k in self.work.addends)
        found = []
        for k, part in enumerate(self.parts):
            size = part.layer.weight_elements * self.config.element_bytes(Memory.WGT)
            data = self.weights(values)[k] if known else bytes(size)
            weights = dram.holding(f"{name}.weights{k}", data)
            found.append(Buffers(activations[self.work.source[0]], weights, results, eye, biases, addends))
        return found

    def emit(self, builder: Builder, buffers: Sequence[Buffers]) -> list[Queue]:
        """Append the kernel to a stream in which nothing is under way; the tokens that are left at its end."""
        waiting: list[Queue] = []
        for k, (part, choice, operands) in enumerate(zip(self.parts, self.choices, buffers, strict=True)):
            if k:
                builder.drain(waiting)
            waiting = emit(builder, part.layer, choice.tiling, operands, self.epilogue, part.place)
        return waiting


class _Alone:
    """A kernel as a program of its own."""

    def __init__(self, kernel: CompiledKernel) -> None:
        self.kernel = kernel
        config, work = kernel.config, kernel.work
        builder, size = Builder(config), config.element_bytes(Memory.INP)
        views = dict([work.source, *work.addends.items()])
        self.views, self.buffers = views, {}
        for k, view in views.items():
            self.buffers[k] = builder.dram.holding(f"x{k}", bytes(view.elements(config) * size))
        results = builder.dram.buffer("outputs", work.result.elements(config) * size)
        operands = kernel.allocate(builder.dram, "kernel", self.buffers, results)
        self.weights = [b.weights for b in operands]
        waiting = kernel.emit(builder, operands)
        self.program = builder.finish([results], wait_for=waiting)

    def bind(self, values: Mapping[int, NDArray[np.integer]]) -> Program:
        k, data = self.kernel, {}
        for number, view in self.views.items():
            data[self.buffers[number].address] = view.pack(values[number], k.config)
        w = k.work.weights
        if w is not None and w.operand is not None and w.operand in values:
            packed = k.weights(values[w.operand])
            data |= {buffer.address: code for buffer, code in zip(self.weights, packed, strict=True)}
        segments = tuple(Segment(s.address, data.get(s.address, s.data)) for s in self.program.data)
        return replace(self.program, data=segments)


def identities(factors: Sequence[int], config: Config) -> bytes:
    """A weight element for each factor: the identity times it."""
    return pack(np.asarray(factors)[:, None, None] * np.eye(config.block, dtype=np.int64), config, Memory.WGT)


def _pack_weights(dense: NDArray[np.int64], part: Part, config: Config) -> bytes:
    """`[O, C, KH, KW]` as `[O][C / groups][KH][KW]` of weight elements."""
    n, layer, (rows, columns), step = config.block, part.layer, part.first, part.step
    w = _padded(_padded(dense[:, :, rows :: step[0], columns :: step[1]], 0, layer.outputs * n), 1, layer.inputs * n)
    blocks = w.reshape(layer.outputs, n, layer.inputs, n, *w.shape[2:]).transpose(0, 2, 4, 5, 1, 3)
    read = np.arange(layer.outputs)[:, None] // layer.group_outputs * layer.group_inputs + np.arange(layer.group_inputs)
    return pack(np.take_along_axis(blocks, read[:, :, None, None, None, None], 1), config, Memory.WGT)


def _pack_bias(values: Sequence[int], blocks: int, config: Config) -> bytes:
    every = np.asarray(values, np.int64) if len(values) > 1 else np.full(blocks * config.block, values[0], np.int64)
    rows = _padded(every, 0, blocks * config.block).reshape(blocks, 1, config.block)
    return pack(np.repeat(rows, config.batch, 1), config, Memory.ACC)


def _padded(x: NDArray[np.int64], axis: int, size: int) -> NDArray[np.int64]:
    """With zeros behind the axis's end, up to a size."""
    widths = [(0, size - n if k == axis else 0) for k, n in enumerate(x.shape)]
    return np.pad(x, widths)


def compile_kernel(
    expr: TensorExpr,
    constants: Mapping[int, NDArray[np.integer]] | None = None,
    config: Config = DEFAULT,
    board: Board = SIM,
    effort: int = EFFORT,
) -> CompiledKernel:
    """Compile a kernel, given by its tensor expression, for the accelerator.

    `constants`: the arrays of inputs that are known, by number (weights, biases). `effort`: programs that are built
    and timed. Raises `Unsuitable` if the accelerator cannot compute it, `ProgramError` if nothing fits its buffers.
    """
    known = constants or {}
    return compile_work(recognise(expr, config, known), expr, known, config, board, effort)


def compile_work(
    work: Work,
    expr: TensorExpr,
    constants: Mapping[int, NDArray[np.integer]],
    config: Config,
    board: Board = SIM,
    effort: int = EFFORT,
    tilings: Tilings | None = None,
) -> CompiledKernel:
    """As `compile_kernel`, of a kernel that has been recognised. `tilings`: what was chosen before, and where to keep
    what is chosen."""
    steps, biases = epilogue(work)
    found = parts(work, config)
    gemm = tuple(_fit(part.layer, config) for part in found)
    choices = tuple(_chosen(part, steps, config, board, effort, tilings) for part in found)
    return CompiledKernel(expr, work, config, board, constants, found, steps, tuple(biases), gemm, choices)


def _fit(layer: Layer, config: Config) -> GemmFit | None:
    """Where GEMM is the layer's product; a maximum has none but with the identity."""
    if layer.kind == "max":
        return None
    kernel = loop_kernel(sums(layer, config))
    found = fit(kernel, config) if isinstance(kernel, LoopKernel) else None
    if found is None or found.trips * layer.images * layer.groups != layer.macs:
        raise Unsuitable(f"{layer} is no product of {config.name}'s GEMM: {kernel}")
    return found


def _chosen(
    part: Part, steps: Epilogue, config: Config, board: Board, effort: int, tilings: Tilings | None
) -> Choice:
    """The part's schedule, found earlier or now. Numbers in the epilogue do not matter to it."""
    kinds = [s.op.name if isinstance(s, Immediate) else repr(s) for s in steps]
    key = repr((part.layer, part.place, kinds, config, board, effort))
    found = None if tilings is None else tilings.get(key)
    if found is None:
        found = _choose(part, steps, config, board, effort)
        if tilings is not None:
            tilings.put(key, found)
    return found


def _choose(part: Part, steps: Epilogue, config: Config, board: Board, effort: int) -> Choice:
    egraph = build(Space(part.layer, config, tuple(steps)))
    return choose(egraph, partial(_trial, part, steps, config), board, effort)


def _trial(part: Part, steps: Epilogue, config: Config, tiling: Any) -> Program:
    """A part's program without data, which play no part in the timing."""
    builder, layer = Builder(config), part.layer

    def buffer(name: str, elements: int, memory: Memory) -> Buffer:
        return builder.dram.buffer(name, elements * config.element_bytes(memory))

    results = layer.outputs * layer.images * math.prod(part.place.size)
    buffers = Buffers(
        buffer("inputs", layer.input_elements, Memory.INP),
        buffer("weights", layer.weight_elements, Memory.WGT),
        buffer("results", results, Memory.OUT),
        buffer("identities", len(identity_elements(steps)), Memory.WGT),
        tuple(buffer("bias", layer.outputs, Memory.ACC) for s in steps if isinstance(s, Bias)),
        tuple(buffer("addend", results, Memory.INP) for s in steps if isinstance(s, Addend)),
    )
    waiting = emit(builder, layer, tiling, buffers, steps, part.place)
    return builder.finish([buffers.results], wait_for=waiting)


# --- layers from weights and shapes ------------------------------------------------------------------


@dataclass(frozen=True)
class CompiledLayer:
    """A convolution or product of given weights; call it with an input to run the functional simulator."""

    kernel: CompiledKernel
    images: int

    @property
    def program(self) -> Program:
        """The program, its inputs zeros."""
        return self.kernel.program

    @property
    def layer(self) -> Layer:
        return self.kernel.parts[0].layer

    @property
    def choice(self) -> Choice:
        return self.kernel.choices[0]

    @property
    def gemm(self) -> GemmFit:
        found = self.kernel.gemm[0]
        assert found is not None
        return found

    @property
    def layouts(self) -> dict[str, str]:
        """How the program's buffers lie in DRAM: dimensions, outermost first."""
        c, y = self.kernel.config, self.layer
        weights = f"[{y.outputs}][{y.group_inputs}][{y.rows.taps}][{y.columns.taps}][{c.block}][{c.block}]"
        found = self.kernel.layouts
        return {"inputs": found["x0"], "weights": f"{weights} int{c.wgt_bits}", "outputs": found["results"]}

    def bind(self, x: ArrayLike) -> Program:
        """The program with an input: `[images, channels, height, width]` of a convolution (fewer images are allowed),
        `[rows, channels]` of a product. Raises `ProgramError` if shape or range are wrong."""
        return self.kernel.bind(self._filled(x))

    def __call__(self, x: ArrayLike) -> NDArray[np.integer]:
        """The layer's result, computed by the functional simulator."""
        return self.kernel(self._filled(x))[: len(np.asarray(x))]

    def _filled(self, x: ArrayLike) -> NDArray[np.integer]:
        """An input with as many images as the program has."""
        given, shape = np.asarray(x), self.kernel.expr.inputs[0].shape
        short = 0 if given.ndim < 3 or given.shape[1:] != shape[1:] else max(0, self.images - len(given))
        return np.pad(given, [(0, short), *([(0, 0)] * (given.ndim - 1))]) if short < self.images else given

    def report(self) -> dict[str, Any]:
        """See `CompiledKernel.report`."""
        return self.kernel.report()


def conv2d(
    weights: ArrayLike,
    size: tuple[int, int],
    *,
    images: int | None = None,
    stride: int = 1,
    pad: int = 0,
    groups: int = 1,
    bias: ArrayLike | None = None,
    shift: int = 0,
    clip: tuple[int, int] | None = None,
    config: Config = DEFAULT,
    board: Board = SIM,
    effort: int = EFFORT,
) -> CompiledLayer:
    """Compile a convolution of weights `[O, C / groups, K, K]` over inputs of height and width `size`:
    `clip((sum + bias) >> shift)`, `clip` both ends included, by default the range of the outputs' bits.

    `images`: as many as the accelerator's batch by default. `bias`: `[O]` of int32. `effort`: programs that are built
    and timed. Raises `ProgramError` if values or shapes are wrong, or nothing fits.
    """
    w = _integers("weights", weights, config.wgt_bits)
    if w.ndim != 4 or w.shape[2] != w.shape[3] or 0 in w.shape or len(w) % groups:
        raise ProgramError(f"weights of shape {w.shape}: give [outputs, inputs, kernel, kernel], of a square kernel")
    if stride < 1 or pad < 0:
        raise ProgramError(f"stride {stride}, pad {pad}: a stride is at least 1 and padding not negative")
    count = images or config.batch
    x_type = TensorType((count, w.shape[1] * groups, *size), _narrow(config.inp_bits))
    outputs = [(n + 2 * pad - w.shape[2]) // stride + 1 for n in size]
    if min(outputs) < 1 or min(size) < 1:
        raise ProgramError(f"an input of {size[0]}x{size[1]} is smaller than the kernel: there are no results")
    c, dy, dx = Axis("c", w.shape[1]), Axis("dy", w.shape[2]), Axis("dx", w.shape[2])

    def element(x: Operand, k: Operand, *added: Operand) -> Any:
        def at(n: Index, o: Index, y: Index, x_: Index) -> Scalar:
            row, column = y * stride + Index.of(dy) - pad, x_ * stride + Index.of(dx) - pad
            channel = o // (len(w) // groups) * w.shape[1] + Index.of(c)
            read = cast(x[n, channel, row, column], "i32")
            inside = when([(row, 0, size[0]), (column, 0, size[1])], read, Const(0, "i32"))
            products = inside * cast(k[o, Index.of(c), Index.of(dy), Index.of(dx)], "i32")
            return _requantized(reduce("sum", [c, dy, dx], products), [b[o] for b in added], shift, clip, config)

        return at

    return _compile(x_type, w, (count, len(w), *outputs), element, bias, config, board, effort)


def dense(
    weights: ArrayLike,
    rows: int,
    *,
    bias: ArrayLike | None = None,
    shift: int = 0,
    clip: tuple[int, int] | None = None,
    config: Config = DEFAULT,
    board: Board = SIM,
    effort: int = EFFORT,
) -> CompiledLayer:
    """Compile the product of inputs `[rows, C]` and weights `[O, C]`; the rest as `conv2d`.

    Rows are images of one pixel, `config.batch` of them in one element.
    """
    w = _integers("weights", weights, config.wgt_bits)
    if w.ndim != 2 or 0 in w.shape or rows < 1:
        raise ProgramError(f"weights of shape {w.shape}, {rows} rows: give weights [outputs, inputs] and 1 row or more")
    c = Axis("c", w.shape[1])

    def element(x: Operand, k: Operand, *added: Operand) -> Any:
        def at(n: Index, o: Index) -> Scalar:
            total = reduce("sum", [c], cast(x[n, c], "i32") * cast(k[o, c], "i32"))
            return _requantized(total, [b[o] for b in added], shift, clip, config)

        return at

    x_type = TensorType((rows, w.shape[1]), _narrow(config.inp_bits))
    return _compile(x_type, w, (rows, len(w)), element, bias, config, board, effort)


def _requantized(
    total: Scalar, added: Sequence[Scalar], amount: int, clip: tuple[int, int] | None, config: Config
) -> Scalar:
    top = (1 << (config.out_bits - 1)) - 1
    low, high = clip or (-top - 1, top)
    if not 0 <= amount <= 31:
        raise ProgramError(f"shift {amount}: give 0 … 31")
    if not -top - 1 <= low <= high <= top:
        raise ProgramError(f"clip {low} … {high}: results have {config.out_bits} bits, {-top - 1} … {top}")
    for bias in added:
        total = total + bias
    total = apply("shr", total, amount) if amount else total
    return cast(apply("min", apply("max", total, low), high), _narrow(config.out_bits))


def _compile(
    x_type: TensorType,
    w: NDArray[np.int64],
    shape: tuple[int, ...],
    element: Any,
    bias: ArrayLike | None,
    config: Config,
    board: Board,
    effort: int,
) -> CompiledLayer:
    types, constants = [x_type, TensorType(w.shape, _narrow(config.wgt_bits))], {1: w}
    if bias is not None:
        added = _integers("bias", bias, config.acc_bits)
        if added.shape != w.shape[:1]:
            raise ProgramError(f"bias of shape {added.shape}: give one number for each of {len(w)} channels")
        types.append(TensorType(added.shape, "i32"))
        constants[2] = added
    expr = TensorExpr.build(types, shape, element)
    return CompiledLayer(compile_kernel(expr, constants, config, board, effort), shape[0])


def _narrow(bits: int) -> str:
    """The element type that holds numbers of so many bits."""
    return f"i{max(8, bits)}"


def _integers(name: str, values: ArrayLike, bits: int) -> NDArray[np.int64]:
    """Values as int64. Raises `ProgramError` if they are no integers of so many bits."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ProgramError(f"{name}: {array.dtype}; give integers")
    limit = 1 << (bits - 1)
    if array.size and not (-limit <= int(array.min()) and int(array.max()) < limit):
        raise ProgramError(f"{name}: values {array.min()} … {array.max()} do not fit {bits} bits")
    return array.astype(np.int64)
