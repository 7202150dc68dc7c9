"""Numbers for tests, and what patterns, kernels and nests mean in NumPy and JAX; float64 throughout."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..ir.attrs import Attrs
from ..ir.expr import Read, Reduce, Scalar, TensorExpr, rebuild
from ..ir.graph import GraphBuilder
from ..ir.index import Axis, Index
from ..ir.loops import ACCUMULATOR, LoopKernel, Lowered, StagedKernel
from ..ir.nest import Nest, points, visits
from ..ir.operator import operator
from ..ir.reference import evaluate, evaluate_expr
from ..ir.scalars import COMBINERS, SCALARS, neutral
from ..ir.types import DTYPES, TensorType, is_float
from ..rewrite.pattern import Environment, Pattern, Var, instantiate, resolve

Domain = tuple[float, float]
Arrays = Mapping[str, np.ndarray]

DOMAIN: Domain = (-2.0, 2.0)
RTOL = 1e-9


# --- data --------------------------------------------------------------------------------------------


def array_of(type: TensorType, seed: int, domain: Domain = DOMAIN, style: str = "uniform") -> np.ndarray:
    """An array of the type with values inside `domain`. Floats are float64.

    `style`: `uniform`; `integers`, small ones, which read easily and hold zeros; or `one value` everywhere.
    """
    rng = np.random.default_rng(seed)
    dtype, kind = DTYPES[type.dtype].numpy, DTYPES[type.dtype].kind
    lo, hi = domain
    if kind == "bool":
        return rng.integers(0, 2, type.shape).astype(bool)
    if kind in ("int", "uint") or style != "uniform":
        least, most = (0 if kind == "uint" else max(-3, math.ceil(lo))), min(3, math.floor(hi))
        shape = type.shape if style != "one value" else ()
        values = np.broadcast_to(rng.integers(least, most + 1, shape), type.shape)
        return np.array(values, np.float64 if kind == "float" else dtype)
    lo, hi = max(lo, -4.0), min(hi, 4.0)
    return np.asarray(rng.uniform(lo + 0.01 * (hi - lo), hi, type.shape))


def data_sets(pattern: Pattern, env: Environment, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Arrays for a binding's tensors, the most readable set first; a function of binding and seed."""
    wanted = domains(pattern)
    names = [n for n, t in env.items() if isinstance(t, TensorType)]
    start = zlib.crc32(repr(sorted(env.items(), key=lambda p: p[0])).encode()) + seed
    for k, style in enumerate(("integers", "uniform", "one value")):
        yield {
            n: array_of(env[n], start + 101 * k + 7 * d, wanted.get(n, DOMAIN), style)
            for d, n in enumerate(names)
        }


def domains(pattern: Pattern) -> dict[str, Domain]:
    """Tensor variables to which a function of restricted domain is applied directly."""
    found: dict[str, Domain] = {}
    if isinstance(pattern, Var):
        return found
    own = SCALARS[pattern.op].domain if pattern.op in SCALARS else None
    for a in pattern.args:
        inner = {a.name: own} if isinstance(a, Var) and own is not None else domains(a)
        for name, (lo, hi) in inner.items():
            had = found.get(name, (lo, hi))
            found[name] = (max(lo, had[0]), min(hi, had[1]))
    return found


# --- patterns ----------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def expr_of(op: str, attrs: Attrs, types: tuple[TensorType, ...]) -> TensorExpr:
    return operator(op).expr(types, attrs)


def in_numpy(pattern: Pattern, env: Environment, arrays: Arrays) -> np.ndarray:
    """The pattern's value by its operators' tensor expressions. Raises `TypeRuleError` if ill-typed."""
    return _in_numpy(pattern, env, arrays)[1]


def _in_numpy(pattern: Pattern, env: Environment, arrays: Arrays) -> tuple[TensorType, np.ndarray]:
    if isinstance(pattern, Var):
        return env[pattern.name], arrays[pattern.name]
    parts = [_in_numpy(a, env, arrays) for a in pattern.args]
    attrs = resolve(pattern, env)
    types = tuple(t for t, _ in parts)
    result = operator(pattern.op).check(types, attrs)
    return result, evaluate_expr(expr_of(pattern.op, attrs, types), [v for _, v in parts], double=True)


def in_jax(patterns: Sequence[Pattern], env: Environment, arrays: Arrays) -> list[np.ndarray]:
    """The patterns' values by the JAX references of their operators, in float64."""
    builder = GraphBuilder()
    values = {n: builder.input(t, n) for n, t in env.items() if isinstance(t, TensorType)}
    graph = builder.finish([instantiate(p, env, builder, values) for p in patterns])
    return evaluate(graph, [arrays[n] for n in values], double=True)


def first_difference(want: np.ndarray, got: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first element that differs. Where `want` is not finite, nothing is asked."""
    if want.shape != got.shape:
        return (0,) * want.ndim
    if want.dtype.kind in "biu":
        wrong = np.asarray(want != got)
    else:
        finite = np.isfinite(want)
        scale = max(1.0, float(np.max(np.abs(want[finite]), initial=0.0)))
        with np.errstate(invalid="ignore"):
            close = np.abs(want - got) <= RTOL * np.abs(want) + RTOL * scale
        wrong = np.asarray(finite & ~close)
    return tuple(int(k) for k in np.argwhere(wrong)[0]) if wrong.any() else None


def says_something(value: np.ndarray) -> bool:
    """Some element is finite (or an integer)."""
    return value.size == 0 or not is_float(value) or bool(np.isfinite(value).any())


# --- kernels and nests -------------------------------------------------------------------------------


def evaluate_kernel(kernel: Lowered, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """What a loop kernel writes, whatever the order of its loops: a flat array, floats in float64."""
    if isinstance(kernel, StagedKernel):
        return _in_stages(kernel, kernel.sequences[0], arrays, evaluate_kernel)
    inline = kernel.epilogue
    if kernel.update is not None:
        total: Scalar = kernel.update
        if kernel.reduce:
            total = Reduce(kernel.kind, kernel.reduce, kernel.update, kernel.update.dtype)
        inline = _with_accumulator(kernel.epilogue, total)
    return _written(kernel, _over(kernel, kernel.spatial, inline, arrays))


def evaluate_nest(kernel: Lowered, nest: Nest, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """What the kernel writes if its points are visited by `nest`, one by one and in that order."""
    if not isinstance(kernel, StagedKernel):
        return _visited(kernel, list(points(nest, len(kernel.axes))), arrays)
    seen: dict[int, list[tuple[int, ...]]] = {}
    for n, p in visits(nest, [len(k.axes) for k in kernel.stages], len(kernel.shared)):
        seen.setdefault(n, []).append(p)
    return _in_stages(kernel, tuple(seen), arrays, lambda k, a: _visited(k, seen[kernel.stages.index(k)], a))


def _in_stages(
    kernel: StagedKernel,
    sequence: Sequence[int],
    arrays: Sequence[np.ndarray],
    evaluated: Callable[[LoopKernel, Sequence[np.ndarray]], np.ndarray],
) -> np.ndarray:
    """Each stage after the other over the whole of the shared axes."""
    buffers = [np.reshape(a, -1) for a in arrays]
    buffers += [np.full(k.out_type.size, np.nan) for k in kernel.stages]
    for n in sequence:
        buffers[len(kernel.inputs) + n] = evaluated(kernel.stages[n], buffers)
    result = buffers[len(kernel.inputs) + sequence[-1]]
    if kernel.fill is None:
        return result
    written = kernel.stages[sequence[-1]]
    where = _written(replace(written, fill=None), np.ones([a.extent for a in written.spatial]))
    return np.where(np.isnan(where), kernel.fill.value, result)


def _visited(kernel: LoopKernel, visited: Sequence[tuple[int, ...]], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The kernel's updates at these points, in this order, and then its epilogue."""
    rank = len(kernel.axes)
    where = tuple(np.array([p[a] for p in visited], np.int64) for a in range(rank))
    results = where[: len(kernel.spatial)]
    shape = tuple(a.extent for a in kernel.spatial)
    if kernel.update is None:
        each = _over(kernel, kernel.axes, kernel.epilogue, arrays)
        values = np.full(shape, np.nan if each.dtype.kind == "f" else 0, each.dtype)
        values[results] = each[where]
        return _written(kernel, values)
    each = _over(kernel, kernel.axes, kernel.update, arrays)
    totals = np.full((*shape, 1), neutral(kernel.kind, kernel.update.dtype), each.dtype)
    combine = {"add": np.add, "max": np.maximum, "min": np.minimum, "mul": np.multiply}[
        COMBINERS[kernel.kind]
    ]
    combine.at(totals, (*results, np.zeros(len(visited), np.int64)), each[where])
    finished = TensorType(shape, kernel.update.dtype)
    read = Read(len(kernel.inputs), tuple(map(Index.of, kernel.spatial)), finished.dtype)
    inline = _with_accumulator(kernel.epilogue, read)
    return _written(kernel, _over(kernel, kernel.spatial, inline, arrays, totals[..., 0]))


def _over(
    kernel: LoopKernel, axes: tuple[Axis, ...], body: Scalar, arrays: Sequence[np.ndarray], *more: np.ndarray
) -> np.ndarray:
    """A scalar of the kernel at every point of some axes; `more`: operands after the kernel's inputs."""
    flat = tuple(TensorType((t.size,), t.dtype) for t in kernel.inputs)
    extra = tuple(TensorType(m.shape, body.dtype) for m in more)
    expr = TensorExpr((*flat, *extra), axes, body)
    return evaluate_expr(expr, [*(np.reshape(a, -1) for a in arrays), *more], double=True)


def _with_accumulator(s: Scalar, value: Scalar) -> Scalar:
    def go(n: Scalar) -> Scalar:
        return value if isinstance(n, Read) and n.input == ACCUMULATOR else rebuild(n, go, lambda i: i)

    return go(s)


def _written(kernel: LoopKernel, values: np.ndarray) -> np.ndarray:
    rank = values.ndim
    grid = {
        a: np.arange(a.extent).reshape([-1 if k == d else 1 for k in range(rank)])
        for d, a in enumerate(kernel.spatial)
    }
    fill = kernel.fill.value if kernel.fill is not None else (np.nan if is_float(values) else 0)
    out = np.full(kernel.out_type.size, fill, values.dtype)
    out[np.broadcast_to(np.asarray(kernel.out.evaluate(grid)), values.shape)] = values
    return out
