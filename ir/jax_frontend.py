"""JAX front end: a Python function, traced to a jaxpr, becomes a graph.

Arguments and results are pytrees, so flax- and equinox-style parameter trees, `jax.grad` and `jax.vmap` work
as they are. Nested calls (jit, custom derivatives, checkpoint) are inlined. What each primitive becomes
stands in `jax_primitives.py`; scalars and integer index arithmetic on constants are computed while importing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from .errors import ImportFailure, NesteggError, TypeRuleError, UnsupportedError
from .graph import GraphBuilder, Value
from .imported import ImportedProgram
from .types import TensorType, dtype_of, is_damaged

Known = Value | np.ndarray
"""What a jaxpr variable stands for: a node of the graph, or an array known while importing."""

_CALLS = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "core_closed_call", "named_call"),
        *("remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    }
)


def from_jax(fn: Callable[..., Any], *example_args: Any) -> ImportedProgram:
    """Import `fn` at the shapes and dtypes of `example_args` (pytrees of arrays, or of
    `jax.ShapeDtypeStruct`).

    Every array in the arguments becomes an input; arrays the function closes over become constants. Raises
    `ImportFailure` if JAX cannot trace the function, `UnsupportedError` for a primitive outside the operator
    table.
    """
    import jax

    name = getattr(fn, "__name__", type(fn).__name__)
    try:
        closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*example_args)
    except NesteggError:
        raise
    except Exception as e:
        first = str(e).strip().split("\n")[0]
        raise ImportFailure(
            f"{name}: JAX could not trace it at these arguments: {type(e).__name__}: {first}"
        ) from e
    paths, in_tree = jax.tree_util.tree_flatten_with_path(example_args)
    outs, out_tree = jax.tree_util.tree_flatten_with_path(out_shape)
    importer = JaxImporter(name)
    names = tuple(_path_name("x", path) for path, _ in paths)
    for var, label in zip(closed.jaxpr.invars, names, strict=True):
        importer.write(var, importer.builder.input(importer.type_of(var.aval, f"argument {label}"), label))
    results = importer.run(closed.jaxpr, closed.consts)
    graph = importer.builder.finish([importer.value(r) for r in results])
    out_names = tuple(_path_name("y", path) for path, _ in outs)
    return ImportedProgram(graph, names, out_names, in_tree, out_tree, name, fn)


def _path_name(prefix: str, path: Sequence[Any]) -> str:
    parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return prefix + ".".join(parts)


class JaxImporter:
    """Interprets jaxprs over a `GraphBuilder`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.builder = GraphBuilder()
        self.env: dict[Any, Known] = {}
        self.place = ""

    def type_of(self, aval: Any, what: str) -> TensorType:
        try:
            return TensorType(tuple(int(n) for n in aval.shape), dtype_of(aval.dtype))
        except (TypeRuleError, TypeError) as e:
            raise UnsupportedError(f"{self.name}: {what}: {e}") from None

    def value(self, x: Known) -> Value:
        """`x` as a node of the graph."""
        if isinstance(x, Value):
            return x
        try:
            return self.builder.constant(x)
        except TypeRuleError as e:
            raise UnsupportedError(f"{self.name}: a constant of shape {x.shape}: {e}") from None

    def read(self, atom: Any) -> Known:
        if hasattr(atom, "val"):
            return np.asarray(atom.val, atom.aval.dtype)
        return self.env[atom]

    def write(self, var: Any, x: Known) -> None:
        self.env[var] = x

    def run(self, jaxpr: Any, consts: Sequence[Any]) -> list[Known]:
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            self.write(var, const if isinstance(const, Value) else self.checked(np.asarray(const)))
        for eqn in jaxpr.eqns:
            outs = self.equation(eqn, [self.read(v) for v in eqn.invars])
            for var, out in zip(eqn.outvars, outs, strict=True):
                self.write(var, out)
        return [self.read(v) for v in jaxpr.outvars]

    def checked(self, array: np.ndarray) -> np.ndarray:
        """Refuses weights that are not finite; a mask's infinities, or one (the start of a maximum), are legitimate."""
        if array.size > 1 and is_damaged(array):
            raise ImportFailure(
                f"{self.name}: a constant of shape {array.shape} holds values that are not finite; "
                "repair the weights, or mask with a large finite number"
            )
        return array

    def equation(self, eqn: Any, ins: list[Known]) -> Sequence[Known]:
        from .jax_primitives import PRIMITIVES

        name = eqn.primitive.name
        if name in _CALLS:
            return self.call(eqn, ins)
        if name.startswith(("random_", "threefry", "rng_")):
            self.refuse(eqn, "draw random numbers outside of the function, and pass them as an argument")
        if all(isinstance(x, np.ndarray) for x in ins) and _is_small(eqn):
            return self.fold(eqn, ins)
        if name not in PRIMITIVES:
            self.refuse(eqn, "it has no counterpart in the operator table; rewrite the function without it")
        try:
            out = PRIMITIVES[name](self, eqn.params, *ins)
        except (UnsupportedError, TypeRuleError) as e:
            self.refuse(eqn, str(e))
        outs = out if isinstance(out, (list, tuple)) else [out]
        for var, x in zip(eqn.outvars, outs, strict=True):
            got = (x.shape, dtype_of(x.dtype) if isinstance(x, np.ndarray) else x.dtype)
            if got != (tuple(var.aval.shape), dtype_of(var.aval.dtype)):
                self.refuse(eqn, f"it yields {var.aval}, its import {got}; please report this")
        return outs

    def call(self, eqn: Any, ins: list[Known]) -> Sequence[Known]:
        """Inline a nested jaxpr."""
        inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
        place, self.place = self.place, _place(eqn) or self.place
        outs = self.inline(inner, ins)
        self.place = place
        return outs

    def inline(self, inner: Any, ins: Sequence[Known]) -> list[Known]:
        """The results of a (closed) jaxpr on operands, in a scope of its own."""
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, [])
        outer, self.env = self.env, {}
        for var, x in zip(jaxpr.invars, ins, strict=True):
            self.write(var, x)
        outs = self.run(jaxpr, consts)
        self.env = outer
        return outs

    def fold(self, eqn: Any, ins: Sequence[Any]) -> Sequence[Known]:
        outs = eqn.primitive.bind(*ins, **eqn.params)
        return [np.asarray(o) for o in (outs if eqn.primitive.multiple_results else [outs])]

    def refuse(self, eqn: Any, why: str) -> NoReturn:
        """Raise `UnsupportedError` naming function, place, primitive, operand types."""
        types = ", ".join(str(v.aval) if hasattr(v, "aval") else "?" for v in eqn.invars)
        place = _place(eqn) or self.place
        where = f"{self.name}{f' ({place})' if place else ''}"
        raise UnsupportedError(
            f"{where}: JAX primitive {eqn.primitive.name}({types}) is not supported: {why}"
        ) from None


def _is_small(eqn: Any) -> bool:
    """Scalars and index arithmetic are computed at import; arithmetic on weights stays in the graph, for the
    rules.
    """
    avals = [v.aval for v in eqn.outvars]
    return all(hasattr(a, "shape") and (a.size <= 1 or a.dtype.kind in "iub") for a in avals)


def _is_ours(file: str) -> bool:
    """The file is nestegg's own, and not one of the programs that lie beside the package in its repository."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inside = os.path.relpath(file, root).split(os.sep)[0]
    return inside not in ("..", "tests", "examples", "benchmarks")


def _place(eqn: Any) -> str:
    """`file:line` of the user's code that made the equation; empty if unknown."""
    import jax

    library = os.path.dirname(jax.__file__)
    frames = getattr(getattr(eqn.source_info, "traceback", None), "frames", ())
    for frame in frames:
        if not frame.file_name.startswith((library, "<")) and not _is_ours(frame.file_name):
            return f"{os.path.basename(frame.file_name)}:{frame.line_num}"
    return ""
