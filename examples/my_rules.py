"""Rules of one's own. `nestegg check-rules --rules examples/my_rules.py` tests them, and
`nestegg optimize zoo:dqn --rules examples/my_rules.py` uses them beside the shipped ones.

`docs/writing-a-rule.md` explains how they are written.
"""

from nestegg import loop_rule, op, rule
from nestegg.rewrite.loop_language import For


@rule("algebra")
def negation_into_subtraction(x, y):
    """x + (-y) -> x - y"""
    return op.add(x, op.neg(y)) >> op.sub(x, y)


@rule("algebra", when=lambda a, b: a.kind == b.kind and a.kind in ("max", "min"))
def one_reduction_after_another(x, *, a, b):
    """max over some axes of a max over others -> one max over all"""

    def all_axes(x, a, b):
        left = [d for d in range(x.rank) if d not in a.axes]
        return tuple(sorted((*a.axes, *(left[d] for d in b.axes))))

    return op.reduce(op.reduce(x, a), b) >> op.reduce(x, kind=lambda a: a.kind, axes=all_axes)


@loop_rule("tiling", phase="serial", over="spatial")
def halve(b, a):
    """Block(2n) -> For(a, 2, Block(n)): two passes, each over half of an axis"""
    b.require((b.extent(a) % 2).equals(0))
    return For(a, 2, "serial", b.resized(a, b.extent(a) // 2))
