"""Winograd's fast convolutions as rules: F(m x m, r x r) computes m x m results of an r x r convolution of stride 1 by
(m + r - 1)^2 multiplications a channel instead of r^2 m^2. Of 3x3 taps, and of the 2x2 that a transposed convolution of
4x4 has for each of its phases (`subpixel.py`).

    conv(x, w) -> A^T [(G w G^T) * (B^T x B)] A      for each tile, the product * summed over channels: a batched dot

The matrices come from interpolation of polynomials at small points (Toom, Cook; Lavin and Gray, CVPR 2016), computed
here in exact fractions. A transform is a `filter_bank` along the rows and one along the columns; layouts, fusion and
stages of their kernels are a matter of the other rules. Each rule states how it amplifies rounding errors, `Tile.gain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from ..ir.attrs import Attrs
from ..ir.operator import Chooser
from ..ir.types import TensorType
from .linear import is_plain_convolution
from .pattern import Environment, op
from .rule import GraphRule, rule

Matrix = tuple[tuple[float, ...], ...]

#: Results of a tile and taps of the convolution along an axis, and the interpolation points beside infinity; a rule for
#: each. Of points with few entries of 0 less, these have the least `Tile.gain` found (F(4, 3) at 0, 1, -1, 2, -2, as is
#: usual, has 31, not 9).
POINTS = {
    (2, 3): "0 1 -1",
    (4, 3): "0 3/4 -3/4 3/2 -3/2",
    (6, 3): "0 1 -1 2 -2 1/2 -1/2",
    (2, 2): "0 1",
    (4, 2): "0 -1 2/3 3/2",
}
#: Amplification of rounding errors (`Tile.gain`) that rules may have if nothing else is said: F(6x6) has more.
ROUNDING_GAIN = 16.0

# What decides where a rule applies, in multiply-adds of vectors at their peak rate:
#: the time in which a byte comes from memory, and from the second- or third-level cache;
FROM_MEMORY, FROM_CACHE = 1.8, 0.6
#: a multiply-add of a transform (measured: 97 us for 264 of them on 784 vectors of channels, 60 % of the peak);
TRANSFORMING = 1.7
#: share of the direct convolution's time from which on it is left alone, and of the best tile's from which on one is.
WORTHWHILE, NEAR = 0.85, 1.1


@dataclass(frozen=True)
class Tile:
    """The algorithm for m results along an axis of a convolution of so many taps."""

    m: int
    taps: int = 3

    @property
    def size(self) -> int:
        """Inputs, and products, of a tile along an axis."""
        return self.m + self.taps - 1

    @property
    def points(self) -> tuple[Fraction, ...]:
        return tuple(map(Fraction, POINTS[self.m, self.taps].split()))

    @cached_property
    def inputs(self) -> Matrix:
        """B^T: the polynomial that is zero at all points but one, and the one that is zero at all of them."""
        rows = [[*_with_roots(q for q in self.points if q != p), Fraction(0)] for p in self.points]
        return _matrix([*rows, _with_roots(self.points)])

    @cached_property
    def weights(self) -> Matrix:
        """G: the weights' polynomial at every point, over the value there of the input's, and at infinity."""
        scale = {p: math.prod(p - q for q in self.points if q != p) for p in self.points}
        rows = [[p**k / scale[p] for k in range(self.taps)] for p in self.points]
        return _matrix([*rows, [Fraction(k == self.taps - 1) for k in range(self.taps)]])

    @cached_property
    def results(self) -> Matrix:
        """A^T: powers of the points."""
        return _matrix([[*(p**k for p in self.points), Fraction(k == self.m - 1)] for k in range(self.m)])

    @cached_property
    def gain(self) -> float:
        """Amplification of rounding errors, against a direct convolution.

        Of inputs and weights that are independent and of variance 1, product a of a tile's T has the variance
        |G_a|^2 |B_a|^2 a channel along each axis, and enters result y with the factor A_ya; a direct convolution's
        products make r. Rounding errors are proportional to what is rounded, so the standard deviation of a
        result's error grows by the root of sum_a A_ya^2 |G_a|^2 |B_a|^2 / r along each of two axes; of the worst
        result, that is the sum itself.
        """
        each = [sum(v * v for v in g) * sum(v * v for v in b) for g, b in zip(self.weights, self.inputs, strict=True)]
        return max(sum(v * v * e for v, e in zip(row, each, strict=True)) / self.taps for row in self.results)

    def work(self, x: TensorType, w: TensorType) -> float:
        """Estimated time of the convolution, in multiply-adds: products (or their weights' way from memory),
        transforms, and what lies between them, written and read."""
        tiles = x.shape[0] * math.prod(self.tiles(x))
        (out, channels), size = w.shape[:2], self.size
        products = size**2 * max(tiles * out * channels, FROM_MEMORY * 4 * out * channels)
        taps, powers = (sum(v != 0 for row in m for v in row) for m in (self.inputs, self.results))
        transforms = channels * 2 * size * taps + out * (size + self.m) * powers
        between = 2 * 4 * size**2 * (channels + out)
        return products + tiles * (TRANSFORMING * transforms + FROM_CACHE * between)

    def tiles(self, x: TensorType) -> tuple[int, int]:
        """Rows and columns of tiles."""
        rows, columns = self.extents(x)
        return -(-rows // self.m), -(-columns // self.m)

    def extents(self, x: TensorType) -> tuple[int, int]:
        """Rows and columns of the convolution's result, without padding."""
        return x.shape[2] - self.taps + 1, x.shape[3] - self.taps + 1


#: The algorithms, one for each entry of `POINTS`.
TILES = tuple(Tile(m, taps) for m, taps in POINTS)


def _with_roots(roots: Iterable[Fraction]) -> list[Fraction]:
    """Coefficients, from the constant up, of the product of (x - r)."""
    out = [Fraction(1)]
    for r in roots:
        out = [above - r * here for above, here in zip([Fraction(0), *out], [*out, Fraction(0)], strict=True)]
    return out


def _matrix(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(tuple(float(v) for v in row) for row in rows)


# --- the rules -------------------------------------------------------------------------------------------------------


def winograd_rules(lanes: int, gain: float = ROUNDING_GAIN) -> tuple[GraphRule, ...]:
    """A rule for each size of tile that amplifies rounding errors by at most `gain`, for whole vectors of channels."""
    allowed = [t for t in TILES if t.gain <= gain]
    return tuple(winograd_rule(t, [o for o in allowed if o.taps == t.taps], lanes) for t in allowed)


def winograd_rule(t: Tile, allowed: Sequence[Tile], lanes: int) -> GraphRule:
    """The rule for tiles of one size, where none of `allowed` does much better."""

    def pays(x: TensorType, w: TensorType, c: Attrs) -> bool:
        """A plain convolution of whole vectors of channels, for which no other tiles save much more work."""
        if not is_plain_convolution(x, w, c, t.taps) or w.shape[0] % lanes or w.shape[1] % lanes:
            return False
        direct = x.shape[0] * math.prod(t.extents(x)) * math.prod(w.shape)
        return t.work(x, w) < WORTHWHILE * direct and t.work(x, w) <= NEAR * min(o.work(x, w) for o in allowed)

    def draw(c: Chooser) -> Environment:
        few = 1 if t.taps == 3 else 4  # with few taps there is less to save: it pays from more channels on
        x = TensorType((c.integer(1, 2), lanes * few, *(c.integer(8, 14) + t.taps - 3 for _ in range(2))))
        w = TensorType((lanes * few * c.integer(1, 2), lanes * few, t.taps, t.taps))
        ones, none = (1, 1), ((0, 0), (0, 0))
        return {"x": x, "w": w, "c": Attrs(strides=ones, padding=none, lhs_dilation=ones, rhs_dilation=ones, groups=1)}

    def missing(x: TensorType) -> tuple[int, ...]:
        """Rows and columns that the last tiles read beyond the input."""
        return (0, 0, *(k * t.m - n for k, n in zip(t.tiles(x), t.extents(x), strict=True)))

    def winograd(x, w, *, c):
        """A convolution of stride 1 is a batch of products between transforms of its tiles."""
        whole = op.pad(x, low=(0,) * 4, high=missing, interior=(0,) * 4, value=0.0)
        filtered = op.filter_bank(
            op.filter_bank(whole, axis=2, filters=t.inputs, stride=t.m), axis=3, filters=t.inputs, stride=t.m
        )
        bank = op.filter_bank(
            op.filter_bank(w, axis=2, filters=t.weights, stride=1), axis=3, filters=t.weights, stride=1
        )
        product = op.dot(
            op.to_tiles(filtered, size=t.size),
            op.to_tiles(bank, size=t.size),
            contract=((2,), (2,)),
            batch=((0,), (0,)),
        )
        image = op.from_tiles(product, size=t.size, tiles=t.tiles)
        results = op.filter_bank(
            op.filter_bank(image, axis=2, filters=t.results, stride=t.size), axis=3, filters=t.results, stride=t.size
        )
        return op.conv(x, w, c) >> op.slice(
            results,
            start=(0,) * 4,
            limit=lambda x, w: (x.shape[0], w.shape[0], *t.extents(x)),
            strides=(1,) * 4,
        )

    winograd.__name__ = f"winograd_{t.m}x{t.m}_of_{t.taps}x{t.taps}"
    return rule("algorithm", when=pays, const=("w",), draw=draw, gain=t.gain)(winograd)
