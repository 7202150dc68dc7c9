"""The property test of a graph rule: where it applies, both sides have one type and one value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..ir.errors import NesteggError, TypeRuleError
from ..ir.operator import Reject
from ..rewrite.pattern import Environment, Pattern, Rewrite, type_of
from ..rewrite.rule import GraphRule
from .choosing import Outcome, Refuted, search
from .instances import binding_text, draw_binding
from .lossy_check import losses, too_far, with_data
from .values import Arrays, data_sets, first_difference, in_jax, in_numpy, says_something

Binding = dict[str, Any]
Sides = Callable[[Rewrite, Environment, Arrays], tuple[np.ndarray, np.ndarray]]

SHOWN_ELEMENTS = 12
#: Of the data sets of a binding, the one of independent reals.
UNIFORM = slice(1, 2)


def check_graph_rule(rule: GraphRule, examples: int, jax_examples: int, seed: int) -> Outcome[Binding]:
    """Search for a binding that refutes the rule: all of them in NumPy, then some again in JAX."""
    outcome = search(
        lambda c: draw_binding(c, rule), lambda env: _holds(rule, env, seed, _by_numpy), examples, seed
    )
    if outcome.failure is None:
        _again_in_jax(rule, outcome, jax_examples, seed)
    elif outcome.smallest is not None:
        outcome.failure += _second_opinion(rule, outcome.smallest, seed)
    return outcome


def _holds(rule: GraphRule, env: Binding, seed: int, sides: Sides, data: slice = slice(None)) -> None:
    """Raise `Refuted` if the rule applies and is wrong for the binding, `Reject` if it does not apply."""
    looks = bool(rule.values or rule.calibrated)
    if not looks:
        _applies(rule, env)
    informative = False
    for rewrite in rule.rewrites:
        for arrays in list(_data(rule, env, seed))[UNIFORM if rule.lossy else data]:
            seen = with_data(rule, env, arrays) if looks else env
            if looks and not rule.holds(seen):
                continue
            _same_type(rewrite, seen)
            left, right = sides(rewrite, seen, arrays)
            at = _difference(rule, rewrite, seen, left, right)
            if at is not None:
                raise Refuted(_values_text(rewrite, env, arrays, left, right, at))
            informative |= says_something(left)
    if not informative:
        raise Reject


def _data(rule: GraphRule, env: Binding, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Arrays that suit the first left side; for a rule that looks at constants, such of zeros too."""
    yield from data_sets(rule.rewrites[0].left, env, seed)
    if rule.values:
        arrays = next(data_sets(rule.rewrites[0].left, env, seed))
        yield {n: np.zeros_like(a) if n in rule.values else a for n, a in arrays.items()}


def _difference(
    rule: GraphRule, rewrite: Rewrite, env: Environment, left: np.ndarray, right: np.ndarray
) -> tuple[int, ...] | None:
    if not rule.lossy or rewrite.left == rewrite.right:
        return first_difference(left, right)
    return too_far(left, right, sum(losses(rewrite.right, env)))


def _applies(rule: GraphRule, env: Binding) -> None:
    try:
        applies = rule.holds(env)
    except Exception as e:
        raise Refuted(f"{binding_text(env)}\nthe condition raises {type(e).__name__}: {e}") from None
    if not applies:
        raise Reject


def _same_type(rewrite: Rewrite, env: Binding) -> None:
    want = type_of(rewrite.left, env)
    try:
        got = type_of(rewrite.right, env)
    except NesteggError as e:
        what = "ill-typed" if isinstance(e, TypeRuleError) else "refused"
        raise Refuted(f"{binding_text(env)}\nthe right side {rewrite.right} is {what}: {e}") from None
    except Exception as e:
        raise Refuted(
            f"{binding_text(env)}\na function of the right side raises {type(e).__name__}: {e}"
        ) from None
    if want != got:
        raise Refuted(f"{binding_text(env)}\nleft  {rewrite.left} : {want}\nright {rewrite.right} : {got}")


def _by_numpy(rewrite: Rewrite, env: Environment, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    return in_numpy(rewrite.left, env, arrays), in_numpy(rewrite.right, env, arrays)


def _by_jax(rewrite: Rewrite, env: Environment, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    left, right = in_jax([rewrite.left, rewrite.right], env, arrays)
    return left, right


def _again_in_jax(rule: GraphRule, outcome: Outcome[Binding], count: int, seed: int) -> None:
    """Hold some of the bindings that passed against the operators' JAX references too."""
    for env in spread(outcome.passed, count):
        try:
            _holds(rule, env, seed, _by_jax, slice(1, 2))
        except Reject:
            continue
        except Refuted as found:
            outcome.failure, outcome.smallest = f"{found}\n(by the JAX references only)", env
            return


def _second_opinion(rule: GraphRule, env: Binding, seed: int) -> str:
    """What JAX says of a counterexample: if it disagrees, an operator's declaration is at fault."""
    try:
        _holds(rule, env, seed, _by_jax)
    except Refuted:
        return ""
    except Reject:
        pass
    return (
        "\n(the JAX references of both sides agree: an operator's tensor expression is wrong, not the rule)"
    )


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` items, evenly from all."""
    if len(items) <= count:
        return list(items)
    return [items[k * len(items) // count] for k in range(count)]


# --- counterexamples as text -------------------------------------------------------------------------


def _values_text(
    rewrite: Rewrite,
    env: Environment,
    arrays: Arrays,
    left: np.ndarray,
    right: np.ndarray,
    at: tuple[int, ...],
) -> str:
    lines = [binding_text(env)]
    lines += [f"{n} = {_array_text(a)}" for n, a in arrays.items() if a.size <= SHOWN_ELEMENTS]
    lines.append(f"left  {side_text(rewrite.left, left, at)}")
    lines.append(f"right {side_text(rewrite.right, right, at)}")
    return "\n".join(lines)


def side_text(side: Pattern | str, value: np.ndarray, at: tuple[int, ...]) -> str:
    where = f"[{', '.join(map(str, at))}]" if at else ""
    return f"{side}{' at ' + where if where else ''} = {value[at]:.6g}"


def _array_text(a: np.ndarray) -> str:
    return np.array2string(a, precision=3, separator=", ", max_line_width=1000).replace("\n", "")
