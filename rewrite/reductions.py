"""Long reductions to few results, divided over threads: loops over results are what may run in parallel, so parts of
the input get results of their own.

    reduce(x) -> reduce(reduce(x by parts))

The kernel of the parts is lowered, fused with what makes `x` and scheduled as any other. Whether it pays is a matter
of extraction.
"""

from __future__ import annotations

import math

from ..ir.attrs import Attrs
from ..ir.operator import Chooser
from ..ir.types import TensorType
from .pattern import Environment, op
from .rule import GraphRule, rule

#: Elements below which the rule is not tried: a fork and join takes longer than reading them.
LEAST = 1 << 14


def reduction_rules(threads: int) -> tuple[GraphRule, ...]:
    """The rule for programs of so many threads; none for one."""
    return (by_parts(threads),) if threads > 1 else ()


def by_parts(threads: int) -> GraphRule:
    """The rule: a part for each thread."""

    def divided(x: TensorType, a: Attrs) -> int | None:
        """The first axis that is reduced and has a multiple of the parts."""
        return next((d for d in sorted(a.axes) if x.shape[d] and x.shape[d] % threads == 0), None)

    def long(x: TensorType, a: Attrs) -> bool:
        """Fewer results than threads, of many elements that can be divided."""
        results = math.prod(n for d, n in enumerate(x.shape) if d not in a.axes)
        return results < threads and x.size >= LEAST and divided(x, a) is not None

    def parts(x: TensorType, a: Attrs) -> tuple[int, ...]:
        d = divided(x, a)
        assert d is not None, "the condition holds"
        return (*x.shape[:d], threads, x.shape[d] // threads, *x.shape[d + 1 :])

    def within(x: TensorType, a: Attrs) -> tuple[int, ...]:
        """The axes reduced within a part."""
        d = divided(x, a)
        assert d is not None, "the condition holds"
        return tuple(axis + (axis >= d) for axis in a.axes)

    def across(x: TensorType, a: Attrs) -> tuple[int, ...]:
        """Where the parts' axis is among the results."""
        d = divided(x, a)
        return (sum(axis not in a.axes for axis in range(d or 0)),)

    def draw(c: Chooser) -> Environment:
        axes, shape = c.pick((((0,), (LEAST,)), ((0, 2), (8, 1, LEAST // 4)), ((1, 2), (1, 3, LEAST))))
        shape = tuple(n * threads if d == axes[-1] else n for d, n in enumerate(shape))
        return {"x": TensorType(shape), "a": Attrs(kind=c.pick(("sum", "max", "min")), axes=axes)}

    @rule("algorithm", when=long, draw=draw)
    def reduce_by_parts(x, *, a):
        """reduce(x) -> reduce(reduce(x by parts)), a part for each thread, where threads outnumber results"""
        parted = op.reduce(op.reshape(x, shape=parts), kind=lambda a: a.kind, axes=within)
        return op.reduce(x, a) >> op.reduce(parted, kind=lambda a: a.kind, axes=across)

    return reduce_by_parts
