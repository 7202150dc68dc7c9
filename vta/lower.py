"""Integer layers to programs of the accelerator, with the tiling that the e-graph's extraction chooses.

    conv2d, dense     weights and shapes -> `CompiledLayer`: program, layouts, what was chosen
    gemm.fit          is the layer's kernel one for GEMM, and over which axes?
    schedules.build   its tilings, loop orders, virtual threads: an e-graph
    choose.choose     extraction with the timing model as cost
    conv.py           the program of the chosen tiling

Channels that are no multiple of the block are padded with zeros, images (or rows of a matrix) that are no multiple of
the batch too. Results are shifted right, clipped and stored with as many bits as inputs have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..ir.loops import LoopKernel, lower
from .analysis import Analysis, analyse
from .choose import EFFORT, Choice, choose
from .config import DEFAULT, Config, Memory
from .conv import Conv2d, convolution_program, macs
from .errors import ProgramError
from .functional import Counters, run
from .gemm import GemmFit, convolution, fit
from .isa import AluOp
from .layout import pack, unpack
from .program import Program, Segment
from .schedules import Space, build
from .timing import SIM, Board, simulate

#: The largest amount on which all implementations agree; larger shifts are several.
MAX_SHIFT = 15


@dataclass(frozen=True)
class CompiledLayer:
    """A layer as a program. `layer` is in blocks; `channels` and `filters` are the real numbers of input and output
    channels; `gemm` says which axes of the kernel the instruction covers, `choice` what extraction chose.

    Call it with an input to run the functional simulator.
    """

    layer: Conv2d
    channels: int
    filters: int
    rows: int | None
    config: Config
    board: Board
    gemm: GemmFit
    choice: Choice

    @property
    def program(self) -> Program:
        """The program, its inputs zeros."""
        return self.choice.program

    @property
    def input_shape(self) -> tuple[int, ...]:
        if self.rows is not None:
            return self.rows, self.channels
        return self.config.batch, self.channels, self.layer.height, self.layer.width

    @property
    def layouts(self) -> dict[str, str]:
        """How the program's buffers lie in DRAM: dimensions, outermost first."""
        c, y = self.config, self.layer
        inner = f"[{c.batch}][{c.block}]"
        return {
            "inputs": f"[{y.inputs}][{y.height}][{y.width}]{inner} int{c.inp_bits}",
            "weights": f"[{y.outputs}][{y.inputs}][{y.kernel}][{y.kernel}][{c.block}][{c.block}] int{c.wgt_bits}",
            "outputs": f"[{y.outputs}][{y.out_height}][{y.out_width}]{inner} int{c.out_bits}",
        }

    def bind(self, x: ArrayLike) -> Program:
        """The program with an input: `[batch, channels, height, width]` of a convolution (fewer images are allowed),
        `[rows, channels]` of a product. Raises `ProgramError` if shape or range are wrong."""
        data = pack(self._blocked(_integers("input", x, self.config.inp_bits)), self.config, Memory.INP)
        first, *others = self.program.data
        assert len(first.data) == len(data), "the inputs are the program's first buffer"
        return replace(self.program, data=(Segment(first.address, data), *others))

    def __call__(self, x: ArrayLike) -> NDArray[np.int64]:
        """The layer's result, computed by the functional simulator."""
        program = self.bind(x)
        out = program.outputs[0]
        dram = run(program).dram[out.address : out.address + out.size]
        return self._unblocked(unpack(dram, self.config, Memory.OUT), len(np.asarray(x)))

    def report(self) -> dict[str, Any]:
        """What was chosen and from how many schedules, cycles, utilisation and DRAM traffic (bytes)."""
        found: Analysis = analyse(simulate(self.program.stream, self.config, self.board))
        traffic = Counters.of(self.program.stream, self.config)
        return {
            "gemm": {"axes": list(self.gemm.covered), "applied": self.gemm.trips},
            "tiling": str(self.choice.tiling),
            "schedules": self.choice.schedules,
            "enodes": self.choice.enodes,
            "timed": self.choice.timed,
            "refused": self.choice.refused,
            "estimated_cycles": round(self.choice.estimated),
            "cycles": self.choice.cycles,
            "utilisation": found.utilisation,
            "bound_by": found.bound_by,
            "read_bytes": traffic.inp_bytes + traffic.wgt_bytes + traffic.acc_bytes + traffic.uop_bytes,
            "written_bytes": traffic.out_bytes,
        }

    def _blocked(self, x: NDArray[np.int64]) -> NDArray[np.int64]:
        """An input as elements `[C][H][W][batch][block]`."""
        c, layer = self.config, self.layer
        if self.rows is not None:
            if x.shape != (self.rows, self.channels):
                raise ProgramError(f"input of shape {x.shape}: the layer takes {self.input_shape}")
            x = _padded(_padded(x, 0, layer.width * c.batch), 1, layer.inputs * c.block)
            return x.reshape(1, layer.width, c.batch, layer.inputs, c.block).transpose(3, 0, 1, 2, 4)
        if x.ndim != 4 or x.shape[1:] != self.input_shape[1:] or not 0 < len(x) <= c.batch:
            raise ProgramError(f"input of shape {x.shape}: the layer takes {self.input_shape}, or fewer images")
        x = _padded(_padded(x, 0, c.batch), 1, layer.inputs * c.block)
        return x.reshape(c.batch, layer.inputs, c.block, *x.shape[2:]).transpose(1, 3, 4, 0, 2)

    def _unblocked(self, elements: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        c, layer = self.config, self.layer
        y = elements.reshape(layer.outputs, layer.out_height, layer.out_width, c.batch, c.block)
        if self.rows is not None:
            return y.transpose(1, 2, 3, 0, 4).reshape(-1, layer.outputs * c.block)[: self.rows, : self.filters]
        y = y.transpose(3, 0, 4, 1, 2).reshape(c.batch, -1, layer.out_height, layer.out_width)
        return y[:count, : self.filters]


def conv2d(
    weights: ArrayLike,
    size: tuple[int, int],
    *,
    stride: int = 1,
    pad: int = 0,
    bias: ArrayLike | None = None,
    shift: int = 0,
    clip: tuple[int, int] | None = None,
    config: Config = DEFAULT,
    board: Board = SIM,
    effort: int = EFFORT,
) -> CompiledLayer:
    """Compile a convolution of weights `[O, C, K, K]` over inputs of height and width `size`:
    `clip((sum + bias) >> shift)`, `clip` both ends included, by default the range of the outputs' bits.

    `bias`: `[O]` of int32. `effort`: programs that are built and timed. Raises `ProgramError` if values or shapes are
    wrong, or nothing fits.
    """
    w = _integers("weights", weights, config.wgt_bits)
    if w.ndim != 4 or w.shape[2] != w.shape[3] or 0 in w.shape:
        raise ProgramError(f"weights of shape {w.shape}: give [outputs, inputs, kernel, kernel], of a square kernel")
    if stride < 1 or pad < 0:
        raise ProgramError(f"stride {stride}, pad {pad}: a stride is at least 1 and padding not negative")
    filters, channels = w.shape[:2]
    o, c = -(-filters // config.block), -(-channels // config.block)
    layer = Conv2d(c, o, *size, w.shape[2], stride, pad)
    if min(layer.out_height, layer.out_width) < 1 or min(size) < 1:
        raise ProgramError(f"an input of {size[0]}x{size[1]} is smaller than the kernel: there are no results")
    return _compile(layer, (channels, filters, None), w, bias, _epilogue(shift, clip, config), config, board, effort)


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

    It is a 1x1 convolution whose columns are the rows, `config.batch` of them in one element.
    """
    w = _integers("weights", weights, config.wgt_bits)
    if w.ndim != 2 or 0 in w.shape or rows < 1:
        raise ProgramError(f"weights of shape {w.shape}, {rows} rows: give weights [outputs, inputs] and 1 row or more")
    filters, channels = w.shape
    o, c = -(-filters // config.block), -(-channels // config.block)
    layer = Conv2d(c, o, 1, -(-rows // config.batch), 1)
    numbers, epilogue = (channels, filters, rows), _epilogue(shift, clip, config)
    return _compile(layer, numbers, w[:, :, None, None], bias, epilogue, config, board, effort)


def _compile(
    layer: Conv2d,
    numbers: tuple[int, int, int | None],
    weights: NDArray[np.int64],
    bias: ArrayLike | None,
    epilogue: list[tuple[AluOp, int]],
    config: Config,
    board: Board,
    effort: int,
) -> CompiledLayer:
    kernel = lower(convolution(layer, config))
    found = fit(kernel, config) if isinstance(kernel, LoopKernel) else None
    if found is None or found.trips != macs(layer):
        raise ProgramError(f"{layer} is no product of {config.name}'s GEMM: {kernel}")
    inputs = bytes(layer.inputs * layer.height * layer.width * config.element_bytes(Memory.INP))
    packed, added = _pack_weights(weights, layer, config), _pack_bias(bias, weights.shape[0], layer, config)
    egraph = build(Space(layer, config, bool(added)))
    make = partial(
        convolution_program,
        layer, inputs=inputs, weights=packed, epilogue=epilogue, config=config, bias=added,
    )  # fmt: skip
    choice = choose(egraph, len(epilogue), make, board, effort)
    return CompiledLayer(layer, *numbers, config, board, found, choice)


def _epilogue(shift: int, clip: tuple[int, int] | None, config: Config) -> list[tuple[AluOp, int]]:
    """Requantization: shifts, then both bounds."""
    top = (1 << (config.out_bits - 1)) - 1
    low, high = clip or (-top - 1, top)
    if not 0 <= shift <= 31:
        raise ProgramError(f"shift {shift}: give 0 … 31")
    if not -top - 1 <= low <= high <= top:
        raise ProgramError(f"clip {low} … {high}: results have {config.out_bits} bits, {-top - 1} … {top}")
    amounts = [min(MAX_SHIFT, shift - done) for done in range(0, shift, MAX_SHIFT)]
    return [*((AluOp.SHR, n) for n in amounts), (AluOp.MAX, low), (AluOp.MIN, high)]


def _pack_weights(w: NDArray[np.int64], layer: Conv2d, config: Config) -> bytes:
    """`[O, C, K, K]` as `[O][C][K][K]` of weight elements."""
    n, k = config.block, layer.kernel
    w = _padded(_padded(w, 0, layer.outputs * n), 1, layer.inputs * n)
    blocks = w.reshape(layer.outputs, n, layer.inputs, n, k, k).transpose(0, 2, 4, 5, 1, 3)
    return pack(blocks, config, Memory.WGT)


def _pack_bias(bias: ArrayLike | None, filters: int, layer: Conv2d, config: Config) -> bytes:
    """`[O]` as accumulator elements, the same in each row of the batch; nothing without a bias."""
    if bias is None:
        return b""
    values = _integers("bias", bias, config.acc_bits)
    if values.shape != (filters,):
        raise ProgramError(f"bias of shape {values.shape}: give one number for each of {filters} channels")
    rows = _padded(values, 0, layer.outputs * config.block).reshape(layer.outputs, 1, config.block)
    return pack(np.repeat(rows, config.batch, 1), config, Memory.ACC)


def _integers(name: str, values: ArrayLike, bits: int) -> NDArray[np.int64]:
    """Values as int64. Raises `ProgramError` if they are no integers of so many bits."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ProgramError(f"{name}: {array.dtype}; give integers")
    limit = 1 << (bits - 1)
    if array.size and not (-limit <= int(array.min()) and int(array.max()) < limit):
        raise ProgramError(f"{name}: values {array.min()} … {array.max()} do not fit {bits} bits")
    return array.astype(np.int64)


def _padded(x: NDArray[np.int64], axis: int, size: int) -> NDArray[np.int64]:
    """With zeros behind the axis's end, up to a size."""
    widths = [(0, size - n if k == axis else 0) for k, n in enumerate(x.shape)]
    return np.pad(x, widths)
