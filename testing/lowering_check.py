"""The property test of the lowering rule: each operator's tensor expression and its JAX reference agree."""

from __future__ import annotations

from ..ir.operator import OPERATORS, Chooser
from ..ir.reference import evaluate_expr
from ..rewrite.pattern import Apply, Var
from .choosing import Outcome, Refuted, search
from .graph_check import side_text
from .instances import Instance, draw_instance
from .values import data_sets, expr_of, first_difference, in_jax


def check_lowering(examples: int, seed: int) -> Outcome[Instance]:
    """Search all operators of the table, families in turn, for an instance where the two meanings differ."""
    families = sorted({o.family for o in OPERATORS.values()})

    def draw(c: Chooser) -> Instance:
        family = c.pick(families)
        return draw_instance(c, c.pick([o for o in OPERATORS.values() if o.family == family]))

    return search(draw, lambda instance: _agrees(instance, seed), examples, seed)


def _agrees(instance: Instance, seed: int) -> None:
    names = tuple(f"x{k}" for k in range(len(instance.types)))
    pattern = Apply(instance.op, tuple(map(Var, names)), tuple(instance.attrs.items()))
    env = dict(zip(names, instance.types, strict=True))
    expr = expr_of(instance.op, instance.attrs, instance.types)
    for arrays in list(data_sets(pattern, env, seed))[:2]:
        want = in_jax([pattern], env, arrays)[0]
        got = evaluate_expr(expr, [arrays[n] for n in names], double=True)
        at = first_difference(want, got)
        if at is not None:
            raise Refuted(
                f"{instance}\n{side_text('JAX reference', want, at)}\n{side_text(str(expr), got, at)}"
            )
