"""Random kernels: operators composed as fusion composes them, and the tree they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..ir.attrs import Attrs
from ..ir.errors import TypeRuleError, UnsupportedError
from ..ir.loops import Lowered, lower
from ..ir.operator import OPERATORS, Chooser, Reject, operator
from ..ir.reference import evaluate_expr
from ..ir.types import TensorType
from ..rewrite.fusion_rules import FUSION_RULES, FusionRule
from ..rewrite.kernel import Kernel, fuse, of_operator
from ..rewrite.pattern import Apply, Pattern, Var
from .choosing import retried
from .instances import draw_instance, obliging

#: Extents of drawn kernels: small, odd and prime ones among them, and some beyond a vector.
EXTENTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17, 19, 24)
#: Operators that a producer or consumer is drawn from, by role.
ROLES = ("contraction", "elementwise", "reduction", "movement", "broadcast", "filter_bank")


@dataclass(frozen=True)
class Tree:
    """A kernel and the operators it is composed of. `names`: its variables, in the order of inputs."""

    kernel: Kernel
    pattern: Pattern
    names: tuple[str, ...]

    @property
    def env(self) -> dict[str, TensorType]:
        return dict(zip(self.names, self.kernel.expr.inputs, strict=True))

    @property
    def type(self) -> TensorType:
        return self.kernel.expr.type

    def __str__(self) -> str:
        return f"{self.pattern} with {', '.join(f'{n}: {t}' for n, t in self.env.items())}"

    def value(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """The kernel's own value (by its composed expression), floats in float64."""
        return evaluate_expr(self.kernel.expr, [arrays[n] for n in self.names], double=True)


def one_operator(
    c: Chooser, op: str, prefix: str, known: Sequence[TensorType | None] = (), out: TensorType | None = None
) -> Tree:
    """A kernel of one operator; its variables are named with the prefix."""
    made = draw_instance(c, operator(op), known, out)
    names = tuple(f"{prefix}{k}" for k in range(len(made.types)))
    pattern = Apply(op, tuple(map(Var, names)), tuple(made.attrs.items()))
    return Tree(of_operator(op, made.attrs, *made.types), pattern, names)


def compose(consumer: Tree, i: int, producer: Tree) -> Tree:
    """The two kernels fused; the producer's variables take the place of the consumer's."""
    kernel = fuse(consumer.kernel, i, producer.kernel)
    names = (*consumer.names[:i], *producer.names, *consumer.names[i + 1 :])
    return Tree(kernel, substituted(consumer.pattern, consumer.names[i], producer.pattern), names)


def substituted(p: Pattern, name: str, by: Pattern) -> Pattern:
    if isinstance(p, Var):
        return by if p.name == name else p
    return replace(p, args=tuple(substituted(a, name, by) for a in p.args))


def draw_op(c: Chooser, roles: Sequence[str] = ROLES) -> str:
    role = c.pick(roles)
    names = [n for n, o in OPERATORS.items() if role in (n, o.family)]
    return c.pick(names)


def consumer_of(c: Chooser, producer: TensorType, prefix: str) -> tuple[Tree, int]:
    """A kernel of one operator that takes a tensor of that type, and where."""
    op = draw_op(c, ("elementwise", "contraction", "reduction", "movement"))
    arity = operator(op).arity
    known: list[TensorType | None] = [None] * (c.integer(1, 3) if arity is None else arity)
    if not known:
        raise Reject
    i = c.integer(0, len(known) - 1)
    known[i] = producer
    return one_operator(c, op, prefix, known), i


def producer_for(c: Chooser, wanted: TensorType, prefix: str) -> Tree:
    """A kernel of one operator whose result has that type."""
    role = c.pick(("broadcast", "movement", "elementwise", "cast"))
    names = [n for n, o in OPERATORS.items() if role in (n, o.family) and obliging(n)]
    return one_operator(c, c.pick(names), prefix, (), wanted)


def rule_for(consumer: Tree, i: int, producer: Tree) -> FusionRule | None:
    return next((r for r in FUSION_RULES if r.when(consumer.kernel, i, producer.kernel)), None)


def draw_pair(c: Chooser) -> tuple[Tree, int, Tree]:
    """A consumer, a position and a producer; either may already be a fusion of two."""
    if c.integer(0, 1):
        consumer = retried(lambda c: one_operator(c, draw_op(c), "x"), c)
        consumer = with_prologue(c, consumer, "p")
        i = c.integer(0, len(consumer.names) - 1)
        return consumer, i, producer_for(c, consumer.kernel.expr.inputs[i], "y")
    producer = retried(lambda c: one_operator(c, draw_op(c), "y"), c)
    producer = with_prologue(c, producer, "q")
    consumer, i = retried(lambda c: consumer_of(c, producer.type, "x"), c)
    return consumer, i, producer


def with_prologue(c: Chooser, tree: Tree, prefix: str) -> Tree:
    """Perhaps a producer inlined, if a fusion rule says so."""
    if not tree.names or c.integer(0, 1) == 0:
        return tree
    i = c.integer(0, len(tree.names) - 1)
    try:
        producer = producer_for(c, tree.kernel.expr.inputs[i], prefix)
    except (Reject, TypeRuleError):
        return tree
    return compose(tree, i, producer) if rule_for(tree, i, producer) else tree


def draw_tree(c: Chooser) -> Tree:
    """A kernel as fusion makes them: an operator, perhaps prologues, perhaps epilogues."""
    tree = _contraction(c) if c.integer(0, 2) == 0 else retried(lambda c: one_operator(c, draw_op(c), "x"), c)
    for k in range(c.integer(0, 2)):
        tree = with_prologue(c, tree, f"p{k}")
    for k in range(c.integer(0, 2)):
        try:
            consumer, i = consumer_of(c, tree.type, f"e{k}")
        except (Reject, TypeRuleError):
            continue
        if rule_for(consumer, i, tree):
            tree = compose(consumer, i, tree)
    return tree


def _contraction(c: Chooser) -> Tree:
    """A matrix product with extents from a wider range than the samplers'."""
    m, k, n = (c.pick(EXTENTS) for _ in range(3))
    attrs = Attrs(contract=((1,), (c.pick((0, 1)),)), batch=((), ()))
    y = (k, n) if attrs.contract[1] == (0,) else (n, k)
    pattern = Apply("dot", (Var("x0"), Var("x1")), tuple(attrs.items()))
    kernel = of_operator("dot", attrs, TensorType((m, k)), TensorType(y))
    return Tree(kernel, pattern, ("x0", "x1"))


def lowered(tree: Tree) -> Lowered | None:
    """The tree's kernel as one loop nest, if it is one."""
    try:
        return lower(tree.kernel.expr)
    except UnsupportedError:
        return None
