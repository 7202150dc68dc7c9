"""Strassen's product as rules: a product of matrices by 7 products of their quarters instead of 8 (Strassen, "Gaussian
elimination is not optimal", 1969).

    dot(x, w) -> C (A x * B w)      A, B: sums of the quarters of x and of w; *: products; C: the result's quarters

The sums are `filter_bank`s over the quarters; those of constant weights are made when the program is compiled. Layouts,
fusion and stages of the kernels are a matter of the other rules, and whether it pays is extraction's. Convolutions of
1x1 are products of their pixels. As with Winograd's convolutions, the rules state how they amplify rounding errors.

One level: two were tried (49 products for 64) and never measured faster, up to 2048x2048.
"""

from __future__ import annotations

import math

from ..ir.attrs import Attrs
from ..ir.operator import Chooser
from ..ir.types import TensorType
from .linear import is_matmul, is_plain_convolution
from .pattern import Environment, Pattern, op
from .rule import GraphRule, rule
from .winograd import FROM_CACHE, FROM_MEMORY, ROUNDING_GAIN, TRANSFORMING, Matrix

#: The sums of x's quarters 11, 12, 21, 22; of those of w transposed (11, 21, 12, 22 of w); and which products make up
#: each quarter of the result.
LEFT: Matrix = (
    (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0),
    (1.0, 1.0, 0.0, 0.0), (-1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0),
)  # fmt: skip
RIGHT: Matrix = (
    (1.0, 0.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, -1.0), (-1.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 1.0),
)  # fmt: skip
RESULT: Matrix = (
    (1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0),
    (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0), (1.0, -1.0, 1.0, 0.0, 0.0, 1.0, 0.0),
)  # fmt: skip
#: Products, for each of the plain product's; and terms of the sums, for each element of x and of the result.
SHARE, TERMS = 7 / 8, 3
#: Bytes of weights from which on they are taken to come from memory.
CACHED = 8e6
#: Share of the plain product's time from which on it is left alone.
WORTHWHILE = 0.97


def gain() -> float:
    """Amplification of rounding errors against a plain product, as `winograd.Tile.gain`: of independent elements of
    variance 1, product a has the variance |LEFT_a|^2 |RIGHT_a|^2 for each that is summed, where the plain product has
    one for each of two quarters; the root of the worst quarter's."""
    each = [sum(v * v for v in a) * sum(v * v for v in b) for a, b in zip(LEFT, RIGHT, strict=True)]
    return math.sqrt(max(sum(v * v * e for v, e in zip(row, each, strict=True)) for row in RESULT) / 2)


def pays(rows: int, depth: int, columns: int, lanes: int) -> bool:
    """Quarters are whole vectors, and their products much less work than the whole, in multiply-adds (as
    `winograd.Tile.work`): products, the weights' way to them, the sums, and what is written and read for them."""
    if rows % 2 or depth % (2 * lanes) or columns % (2 * lanes):
        return False
    products, between = rows * depth * columns, rows * (depth + columns)
    sums = between * (TRANSFORMING * TERMS + FROM_CACHE * 8 * len(LEFT) / 4)
    work = SHARE * products + _weights(depth * columns * len(LEFT) / 4) + sums
    return work < WORTHWHILE * (products + _weights(depth * columns))


def _weights(elements: float) -> float:
    """Time in which so many weights come from a cache that holds them, or else from memory, in multiply-adds."""
    return 4 * elements * (FROM_CACHE if 4 * elements < CACHED else FROM_MEMORY)


def strassen_rules(lanes: int, most: float = ROUNDING_GAIN) -> tuple[GraphRule, ...]:
    """The rules for vectors of `lanes` elements, if rounding errors may be amplified by `most` and that is enough."""
    return (product_rule(lanes), pointwise_rule(lanes)) if gain() <= most else ()


def _products(matrix: Pattern, turned: Pattern) -> Pattern:
    """The product of a matrix and of one given by its columns, by quarters."""
    left, right = (
        op.filter_bank(op.to_quarters(m), axis=0, filters=table, stride=4)
        for m, table in ((matrix, LEFT), (turned, RIGHT))
    )
    made = op.dot(left, right, contract=((2,), (2,)), batch=((0,), (0,)))
    return op.from_quarters(op.filter_bank(made, axis=0, filters=RESULT, stride=len(LEFT)))


def product_rule(lanes: int) -> GraphRule:
    """The rule for products of matrices."""

    def worthwhile(d: Attrs, x: TensorType, w: TensorType) -> bool:
        """A product of float32 with constant weights of which the quarters are whole vectors and it saves work."""
        plain = is_matmul(d, x, w) and x.rank >= 2 and x.dtype == w.dtype == "f32"
        return plain and pays(math.prod(x.shape[:-1]), w.shape[0], w.shape[1], lanes)

    def draw(c: Chooser) -> Environment:
        x = TensorType((128, 512) if c.integer(0, 1) else (2, 64, 512))
        return {"x": x, "w": TensorType((512, 512)), "d": Attrs(contract=((x.rank - 1,), (0,)), batch=((), ()))}

    def strassen(x, w, *, d):
        """A product with constant weights is the sums of 7 products of sums of its operands' quarters."""
        made = _products(
            op.reshape(x, shape=lambda x: (math.prod(x.shape[:-1]), x.shape[-1])), op.transpose(w, perm=(1, 0))
        )
        return op.dot(x, w, d) >> op.reshape(made, shape=lambda x, w: (*x.shape[:-1], w.shape[1]))

    return rule("algorithm", when=worthwhile, const=("w",), draw=draw, gain=gain())(strassen)


def pointwise_rule(lanes: int) -> GraphRule:
    """The rule for convolutions of 1x1."""

    def worthwhile(x: TensorType, w: TensorType, c: Attrs) -> bool:
        """A convolution of 1x1 of which the quarters are whole vectors and it saves work."""
        return is_plain_convolution(x, w, c, 1) and pays(x.size // x.shape[1], w.shape[1], w.shape[0], lanes)

    def draw(c: Chooser) -> Environment:
        ones, none = (1, 1), ((0, 0), (0, 0))
        return {
            "x": TensorType((1, 512, 8, 16)),
            "w": TensorType((512, 512, 1, 1)),
            "c": Attrs(strides=ones, padding=none, lhs_dilation=ones, rhs_dilation=ones, groups=1),
        }

    def strassen_pointwise(x, w, *, c):
        """A convolution of 1x1 is a product of its pixels by its channels, made of 7 products of quarters."""
        pixels = op.reshape(op.transpose(x, perm=(0, 2, 3, 1)), shape=lambda x: (x.size // x.shape[1], x.shape[1]))
        made = _products(pixels, op.reshape(w, shape=lambda w: w.shape[:2]))
        images = op.reshape(made, shape=lambda x, w: (x.shape[0], *x.shape[2:], w.shape[0]))
        return op.conv(x, w, c) >> op.transpose(images, perm=(0, 3, 1, 2))

    return rule("algorithm", when=worthwhile, const=("w",), draw=draw, gain=gain())(strassen_pointwise)
