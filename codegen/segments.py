"""Functions as polynomials in pieces, whose coefficients are looked up in registers.

[0, top] is cut into 16 segments about the multiples of a width. Adding 1.5 * 2**23 widths to an operand leaves its
segment in the low bits of the sum; less the segment's centre, it is the argument of a polynomial whose coefficients
are 16 entries of a table each. So a segment takes three additions and, for each coefficient, a lookup and a fused
multiply-add, which other units execute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from llvmlite import ir

from .lanes import SIXTEEN, Lanes


@dataclass(frozen=True)
class Segments:
    """`function` on [0, top], top < 15.5 * width (a power of two), by polynomials of a degree."""

    function: Callable[[float], float]
    width: float
    top: float
    degree: int

    @cached_property
    def coefficients(self) -> np.ndarray:
        """[degree + 1, 16] float32, those of the constants first: for each segment, of the polynomial that equals the
        function at the Chebyshev nodes, by float64."""
        return np.array([self._polynomial(k) for k in range(SIXTEEN)]).T.astype(np.float32)

    def _polynomial(self, segment: int) -> np.ndarray:
        centre, count = segment * self.width, self.degree + 1
        low, high = max(centre - self.width / 2, 0.0), min(centre + self.width / 2, self.top)
        nodes = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(count) + 0.5) / count)
        values = [self.function(x) for x in nodes]
        powers = np.arange(count)
        scaled = np.linalg.solve(((nodes[:, None] - centre) / self.width) ** powers, values)
        return scaled / self.width**powers

    def emit(self, v: Lanes, x: ir.Value) -> ir.Value:
        """The function of x in [0, top], or NaN of NaN, on a target with `tables`."""
        shift = v.like(1.5 * 2.0**23 * self.width, x)
        shifted = v.b.fadd(x, shift)  # not to be fused with a product that x may be
        rest = v.b.fsub(x, v.b.fsub(shifted, shift))
        segment = v.bits(shifted)
        *others, value = (v.lookup(row, segment) for row in self.coefficients)
        for coefficient in reversed(others):
            value = v.fma(value, rest, coefficient)
        return value
