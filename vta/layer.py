"""What the accelerator computes for one layer, in elements: windows, channel blocks, groups, and what follows the sums.

A layer's results are sums of products over windows and channels (or the largest element of a window), to which an
epilogue is applied: operations with immediates, biases, and further operands that are added. Everything that has no
product of its own is one by the identity: data reach the accumulators through GEMM, with a weight element that holds
the identity (times a factor), so that 8-bit data need no widening anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .errors import ProgramError
from .isa import AluOp


@dataclass(frozen=True)
class Window:
    """One of the two axes that windows move along: `size` inputs, `taps` of a window `spread` apart, `stride` from one
    of the `outputs` to the next. The first window begins `pad` before the first input (after it, if negative)."""

    size: int
    outputs: int
    taps: int = 1
    stride: int = 1
    pad: int = 0
    spread: int = 1

    @classmethod
    def of(cls, size: int, taps: int, stride: int, pad: int) -> Window:
        """A window that moves as far as it can, with as much padding after as before."""
        return cls(size, (size + 2 * pad - taps) // stride + 1, taps, stride, pad)

    @property
    def trivial(self) -> bool:
        """Output k reads input k."""
        return (self.taps, self.stride, self.pad, self.size) == (1, 1, 0, self.outputs)

    def reach(self, outputs: int) -> int:
        """Inputs from the first to the last one that so many outputs read, padding included."""
        return (outputs - 1) * self.stride + (self.taps - 1) * self.spread + 1

    def load(self, first: int, count: int) -> tuple[int, int, tuple[int, int]]:
        """Of a run of outputs: the first input that exists, how many do, and the padding around them. Raises
        `ProgramError` if none does."""
        begin = first * self.stride - self.pad
        end = begin + self.reach(count)
        if end <= 0 or begin >= self.size:
            raise ProgramError(f"{self}: outputs {first} … {first + count - 1} read padding only")
        before, after = max(0, -begin), max(0, end - self.size)
        return begin + before, end - begin - before - after, (before, after)

    def inside(self, tap: int, first: int, count: int) -> tuple[int, int]:
        """Those of a run of outputs, counted from its first, whose tap reads an input: begin and end."""
        offset = tap * self.spread - self.pad
        begin = max(first, -(offset // self.stride))
        end = min(first + count, (self.size - 1 - offset) // self.stride + 1)
        return begin - first, max(begin, end) - first


@dataclass(frozen=True)
class Layer:
    """Channels in blocks of the configuration's; activations are `[C][N][H][W]` of elements, N `images` of a batch
    each.

    `groups`: output channels in equal parts, each of which reads a part of the input channels; weights are
    `[O][C / groups][KH][KW]`. `uniform`: one weight element for all taps and channels (then a group is one block in
    and out). `kind`: "sum", or "max" of the window (then `uniform`); `zeros`: padding counts as zeros to a maximum.
    """

    inputs: int
    outputs: int
    rows: Window
    columns: Window
    images: int = 1
    groups: int = 1
    uniform: bool = False
    kind: Literal["sum", "max"] = "sum"
    zeros: bool = True

    @classmethod
    def square(
        cls, inputs: int, outputs: int, height: int, width: int, kernel: int, stride: int = 1, pad: int = 0
    ) -> Layer:
        """A convolution with a square kernel."""
        rows, columns = (Window.of(n, kernel, stride, pad) for n in (height, width))
        return cls(inputs, outputs, rows, columns)

    @property
    def taps(self) -> int:
        return self.rows.taps * self.columns.taps

    @property
    def group_inputs(self) -> int:
        """Input channel blocks that an output reads."""
        return self.inputs // self.groups

    @property
    def group_outputs(self) -> int:
        return self.outputs // self.groups

    @property
    def weight_elements(self) -> int:
        return 1 if self.uniform else self.outputs * self.group_inputs * self.taps

    @property
    def input_elements(self) -> int:
        return self.inputs * self.images * self.rows.size * self.columns.size

    @property
    def results(self) -> int:
        """Elements of the output."""
        return self.outputs * self.images * self.rows.outputs * self.columns.outputs

    @property
    def macs(self) -> int:
        """GEMM iterations that the layer takes at least: its blocks' products."""
        return self.results * self.group_inputs * self.taps


@dataclass(frozen=True)
class Immediate:
    """An ALU operation on every result."""

    op: AluOp
    value: int

    cycles = 1


@dataclass(frozen=True)
class Bias:
    """Adds bias number `number`: one accumulator element for each channel block."""

    number: int

    cycles = 2


@dataclass(frozen=True)
class Addend:
    """Adds operand number `number`, a tensor of the output's shape, times a factor: a product with the identity."""

    number: int
    factor: int = 1

    cycles = 1


EpilogueStep = Immediate | Bias | Addend
Epilogue = Sequence[EpilogueStep]


@dataclass(frozen=True)
class Place:
    """Where results stand in a larger output: every `step`-th row and column from `first` on, of `size`."""

    size: tuple[int, int]
    first: tuple[int, int] = (0, 0)
    step: tuple[int, int] = (1, 1)


def cycles_a_result(layer: Layer, epilogue: Epilogue) -> int:
    """Compute cycles of a result besides its products: reset and epilogue; of a maximum, a copy, its reset and a
    register operation for each tap after the first."""
    maxima = 4 * (layer.taps - 1) if layer.kind == "max" else 0
    return 1 + maxima + sum(step.cycles for step in epilogue)


def products_a_result(layer: Layer) -> int:
    """GEMM iterations of a result that `cycles_a_result` does not count."""
    return 1 if layer.kind == "max" else layer.group_inputs * layer.taps


def compute_bound(layer: Layer, epilogue: Epilogue) -> int:
    """Cycles below which no program of the layer can stay: its compute unit's work."""
    return layer.results * (products_a_result(layer) + cycles_a_result(layer, epilogue))


def biases(epilogue: Epilogue) -> int:
    return sum(isinstance(step, Bias) for step in epilogue)


def addends(epilogue: Epilogue) -> int:
    return sum(isinstance(step, Addend) for step in epilogue)


def identity_elements(epilogue: Epilogue) -> tuple[int, ...]:
    """The factors of the addends, each once: one weight element each."""
    return tuple(dict.fromkeys(step.factor for step in epilogue if isinstance(step, Addend)))


def shift(amount: int, most: int) -> list[Immediate]:
    """A shift right (left, if negative) in steps on which all implementations agree."""
    sign, rest = (1 if amount >= 0 else -1), abs(amount)
    return [Immediate(AluOp.SHR, sign * min(most, rest - done)) for done in range(0, rest, most)]
