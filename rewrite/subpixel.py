"""Transposed convolutions as convolutions of the small image: each result of a stride-2 transposed convolution meets
every second tap, of one of four *phases*, by whether its row and its column are even (Shi et al., CVPR 2016).

    conv(x, w, lhs_dilation=(2, 2)) -> depth_to_space(conv(x, w of every phase as channels of its own))

Along an axis with padding lo before the first element, result 2i + a sums x[i + m + shift] * w[2m + first] over m,
where first = (lo - a) mod 2 and shift = (a + first - lo) / 2. The phases share one window, with zeros where a phase has
no tap, so that they are one convolution, which other rules then block or compute by Winograd's algorithm; or they are
four, without the zeros, which is better where the weights are many and the image is small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..ir.attrs import Attrs
from ..ir.operator import Chooser, operator
from ..ir.types import TensorType
from .pattern import Environment, op
from .rule import rule

SCALE = 2
PHASES = range(SCALE)


@dataclass(frozen=True)
class Axis:
    """A spatial axis of a transposed convolution: `taps` of the filter, padding `low`, `extent` of the small image and
    `results` of them all."""

    taps: int
    low: int
    extent: int
    results: int

    def first(self, phase: int) -> int:
        """The first tap of a phase."""
        return (self.low - phase) % SCALE

    def shift(self, phase: int) -> int:
        """Where a phase's window begins, from its result's place in the small image."""
        return (phase + self.first(phase) - self.low) // SCALE

    def count(self, phase: int) -> int:
        return -(-(self.taps - self.first(phase)) // SCALE)

    @property
    def begin(self) -> int:
        return min(map(self.shift, PHASES))

    @property
    def window(self) -> int:
        return max(self.shift(p) + self.count(p) for p in PHASES) - self.begin

    def zeros(self, phase: int) -> tuple[int, int]:
        """Of the shared window, the elements before and after a phase's taps."""
        before = self.shift(phase) - self.begin
        return before, self.window - before - self.count(phase)

    @property
    def padding(self) -> tuple[int, int]:
        """Of the small image, for the shared window."""
        return self._around(self.begin, self.window)

    def padding_of(self, phase: int) -> tuple[int, int]:
        """Of the small image, for the window of one phase."""
        return self._around(self.shift(phase), self.count(phase))

    def _around(self, begin: int, window: int) -> tuple[int, int]:
        return -begin, self.results // SCALE - self.extent + begin + window - 1


def axes(x: TensorType, w: TensorType, c: Attrs) -> tuple[Axis, Axis]:
    out = operator("conv").infer((x, w), c)
    rows, columns = (
        Axis(w.shape[d], c.padding[d - 2][0], x.shape[d], out.shape[d]) for d in (2, 3)
    )
    return rows, columns


def is_transposed(x: TensorType, w: TensorType, c: Attrs) -> bool:
    """A transposed convolution of stride 2 whose phases are of one size, over an image."""
    plain = x.rank == 4 and c.groups == 1 and {*c.strides, *c.rhs_dilation} == {1} and set(c.lhs_dilation) == {SCALE}
    if not plain:
        return False
    return all(
        a.taps >= SCALE and a.results % SCALE == 0 and a.results > 0 and min(a.padding) >= 0 for a in axes(x, w, c)
    )


def has_phases(x: TensorType, w: TensorType, c: Attrs) -> bool:
    """A transposed convolution whose phases are convolutions of the small image by themselves."""
    return is_transposed(x, w, c) and all(min(a.padding_of(p)) >= 0 for a in axes(x, w, c) for p in PHASES)


def _transposed(c: Chooser) -> Environment:
    x = TensorType((c.integer(1, 2), c.integer(1, 3), c.integer(2, 4), c.integer(2, 4)))
    w = TensorType((c.integer(1, 3), x.shape[1], c.integer(2, 5), c.integer(2, 5)))
    padding = tuple((c.integer(1, 3), c.integer(1, 3)) for _ in range(2))
    return {
        "x": x,
        "w": w,
        "c": Attrs(strides=(1, 1), padding=padding, lhs_dilation=(2, 2), rhs_dilation=(1, 1), groups=1),
    }


def _each(f: Callable[[Axis, int], Any], row: int, column: int) -> Callable[..., tuple[Any, Any]]:
    """A figure of a phase along both axes, as a function of what a rule binds."""

    def of(x: TensorType, w: TensorType, c: Attrs) -> tuple[Any, Any]:
        down, right = axes(x, w, c)
        return f(down, row), f(right, column)

    return of


def _taps(w: Any, row: int, column: int) -> Any:
    """The weights of a phase."""
    first = _each(Axis.first, row, column)
    return op.slice(
        w,
        start=lambda x, w, c: (0, 0, *first(x, w, c)),
        limit=lambda w: w.shape,
        strides=(1, 1, SCALE, SCALE),
    )


def _in_shared_window(w: Any, row: int, column: int) -> Any:
    """The weights of a phase in the window that all phases share."""
    before = _each(lambda a, p: a.zeros(p)[0], row, column)
    after = _each(lambda a, p: a.zeros(p)[1], row, column)
    return op.pad(
        _taps(w, row, column),
        low=lambda x, w, c: (0, 0, *before(x, w, c)),
        high=lambda x, w, c: (0, 0, *after(x, w, c)),
        interior=(0, 0, 0, 0),
        value=0.0,
    )


def _small_conv(x: Any, w: Any, padding: Callable[..., Any]) -> Any:
    return op.conv(x, w, strides=(1, 1), padding=padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1), groups=1)


def _interleaved(made: Any) -> Any:
    """The channels of all phases, one after the other, as the pixels of the large image."""
    return op.depth_to_space(made, scale=SCALE)


BOTH = tuple((a, b) for a in PHASES for b in PHASES)


@rule("algorithm", when=is_transposed, const=("w",), draw=_transposed)
def transposed_conv_by_phases(x, w, *, c):
    """A transposed convolution of stride 2 is a convolution with four times the channels, laid out anew."""
    weights = op.concat(*(_in_shared_window(w, a, b) for a, b in BOTH), axis=0)
    made = _small_conv(x, weights, lambda x, w, c: tuple(a.padding for a in axes(x, w, c)))
    return op.conv(x, w, c) >> _interleaved(made)


@rule("algorithm", when=has_phases, const=("w",), draw=_transposed)
def transposed_conv_phase_by_phase(x, w, *, c):
    """A transposed convolution of stride 2 is four convolutions, whose results are laid out among each other."""
    made = [_small_conv(x, _taps(w, a, b), _each(Axis.padding_of, a, b)) for a, b in BOTH]
    return op.conv(x, w, c) >> _interleaved(op.concat(*made, axis=1))
