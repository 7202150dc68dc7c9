"""The table of scalar functions: what a tensor expression may apply to single elements.

One row declares a function's name, arity, result dtype, accepted kinds, JAX reference and rough cost in
floating-point operations. Elementwise operators (`ops.py`) and the emitters of `codegen/` are keyed by these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import TypeRuleError, UnknownNameError
from .types import DTYPES


@dataclass(frozen=True)
class ScalarFn:
    """A scalar function.

    `result` is "same" (dtype of the last operand) or "bool". `kinds` are the operand kinds accepted. `cost` is in
    units of one fused multiply-add on a vector lane and feeds the roofline model; `table_cost`, where it is another, is
    that on targets with `Target.tables`. `domain` is the open interval from
    which property tests draw operands (None: all of the dtype). `steps`: the result jumps where the operand passes some
    value, so that an error in its last bit may become one of a whole step.
    """

    name: str
    arity: int
    jax: Callable[..., Any]
    kinds: frozenset[str]
    result: str = "same"
    cost: float = 1.0
    table_cost: float | None = None
    domain: tuple[float, float] | None = None
    infix: str | None = None
    steps: bool = False

    def price(self, tables: bool) -> float:
        """Its cost on a target with or without `Target.tables`."""
        return self.cost if self.table_cost is None or not tables else self.table_cost

    def dtype(self, dtypes: tuple[str, ...]) -> str:
        """Result dtype. Raises `TypeRuleError` for operands of the wrong number, kind or differing dtypes."""
        if len(dtypes) != self.arity:
            raise TypeRuleError(f"{self.name} takes {self.arity} operands, {len(dtypes)} given")
        values = dtypes[1:] if self.name == "select" else dtypes
        if self.name == "select" and dtypes[0] != "bool":
            raise TypeRuleError(f"select takes a bool condition, {dtypes[0]} given")
        if len(set(values)) != 1:
            raise TypeRuleError(f"{self.name} takes operands of one dtype, {', '.join(dtypes)} given; cast first")
        if DTYPES[values[0]].kind not in self.kinds:
            raise TypeRuleError(f"{self.name} does not take {values[0]} operands")
        return "bool" if self.result == "bool" else values[-1]


def _lax(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        import jax.lax

        return getattr(jax.lax, name)(*args)

    return call


def _reciprocal(a: Any) -> Any:
    import jax.lax

    return jax.lax.integer_pow(a, -1)


def _round(a: Any) -> Any:
    import jax.numpy as jnp

    return jnp.round(a)


def _select(c: Any, a: Any, b: Any) -> Any:
    import jax.numpy as jnp

    return jnp.where(c, a, b)


def _shift_right(a: Any, b: Any) -> Any:
    import jax.lax
    import jax.numpy as jnp

    signed = jnp.issubdtype(a.dtype, jnp.signedinteger)
    return (jax.lax.shift_right_arithmetic if signed else jax.lax.shift_right_logical)(a, b)


_F = frozenset({"float"})
_N = frozenset({"float", "int", "uint"})
_S = frozenset({"float", "int"})
_A = frozenset({"float", "int", "uint", "bool"})
_I = frozenset({"int", "uint", "bool"})
_W = frozenset({"int", "uint"})

_ROWS = (
    ScalarFn("add", 2, _lax("add"), _N, infix="+"),
    ScalarFn("sub", 2, _lax("sub"), _N, infix="-"),
    ScalarFn("mul", 2, _lax("mul"), _N, infix="*"),
    ScalarFn("div", 2, _lax("div"), _F, cost=8, infix="/"),
    ScalarFn("max", 2, _lax("max"), _N),
    ScalarFn("min", 2, _lax("min"), _N),
    ScalarFn("pow", 2, _lax("pow"), _F, cost=40, domain=(0.1, 4.0)),
    ScalarFn("neg", 1, _lax("neg"), _S),
    ScalarFn("abs", 1, _lax("abs"), _S),
    ScalarFn("sign", 1, _lax("sign"), _S, cost=2, steps=True),
    ScalarFn("floor", 1, _lax("floor"), _F, steps=True),
    ScalarFn("round", 1, _round, _F, steps=True),
    ScalarFn("ceil", 1, _lax("ceil"), _F, steps=True),
    ScalarFn("sqrt", 1, _lax("sqrt"), _F, cost=10, domain=(0.0, 100.0)),
    ScalarFn("rsqrt", 1, _lax("rsqrt"), _F, cost=16, domain=(0.01, 100.0)),
    ScalarFn("reciprocal", 1, _reciprocal, _F, cost=8, domain=(0.01, 100.0)),
    ScalarFn("exp", 1, _lax("exp"), _F, cost=12, table_cost=10, domain=(-20.0, 20.0)),
    ScalarFn("log", 1, _lax("log"), _F, cost=16, domain=(1e-6, 1e6)),
    ScalarFn("log1p", 1, _lax("log1p"), _F, cost=20, domain=(-0.9, 1e6)),
    ScalarFn("tanh", 1, _lax("tanh"), _F, cost=18),
    ScalarFn("logistic", 1, _lax("logistic"), _F, cost=22, table_cost=16),
    ScalarFn("erf", 1, _lax("erf"), _F, cost=24, table_cost=13),
    ScalarFn("sin", 1, _lax("sin"), _F, cost=20, domain=(-50.0, 50.0)),
    ScalarFn("cos", 1, _lax("cos"), _F, cost=20, domain=(-50.0, 50.0)),
    ScalarFn("eq", 2, _lax("eq"), _A, result="bool", infix="==", steps=True),
    ScalarFn("ne", 2, _lax("ne"), _A, result="bool", infix="!=", steps=True),
    ScalarFn("lt", 2, _lax("lt"), _N, result="bool", infix="<", steps=True),
    ScalarFn("le", 2, _lax("le"), _N, result="bool", infix="<=", steps=True),
    ScalarFn("gt", 2, _lax("gt"), _N, result="bool", infix=">", steps=True),
    ScalarFn("ge", 2, _lax("ge"), _N, result="bool", infix=">=", steps=True),
    ScalarFn("and", 2, _lax("bitwise_and"), _I, infix="&"),
    ScalarFn("or", 2, _lax("bitwise_or"), _I, infix="|"),
    ScalarFn("xor", 2, _lax("bitwise_xor"), _I, infix="^"),
    ScalarFn("not", 1, _lax("bitwise_not"), _I),
    ScalarFn("shl", 2, _lax("shift_left"), _W, cost=2),
    ScalarFn("shr", 2, _shift_right, _W, cost=2),
    ScalarFn("quotient", 2, _lax("div"), _W, cost=24),
    ScalarFn("select", 3, _select, _A),
)
SCALARS: dict[str, ScalarFn] = {row.name: row for row in _ROWS}

#: Reduction kind -> the scalar function that combines two partial results.
COMBINERS = {"sum": "add", "max": "max", "min": "min", "prod": "mul"}


def scalar(name: str) -> ScalarFn:
    if name not in SCALARS:
        raise UnknownNameError(f"scalar function {name!r} does not exist; see nestegg.ir.scalars.SCALARS")
    return SCALARS[name]


def neutral(kind: str, dtype: str) -> float | int:
    """The neutral element of a reduction kind (`sum` 0, `prod` 1, `max` the dtype's smallest, `min` its largest)."""
    import numpy as np

    if kind in ("sum", "prod"):
        return 0 if kind == "sum" else 1
    if DTYPES[dtype].kind == "float":
        return float("-inf") if kind == "max" else float("inf")
    if dtype == "bool":
        return kind == "min"
    info = np.iinfo(DTYPES[dtype].numpy)
    return int(info.min if kind == "max" else info.max)
