"""A compiled program as a JAX function, for `jax.jit`, `vmap` and `grad`: XLA calls its machine code directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .codegen.program import Executable
from .codegen.xla_handler import register
from .ir.errors import CallError, UnsupportedError
from .ir.imported import ImportedProgram
from .ir.types import DTYPES, TensorType


def jax_function(imported: ImportedProgram, executable: Executable) -> Callable[..., Any]:
    """See `Compiled.as_jax`."""
    import jax

    run = _differentiable(imported, _custom_call(executable))

    def call(*args: Any) -> Any:
        leaves = imported.flatten(*args)
        typed = [_typed(k, leaf, imported) for k, leaf in enumerate(leaves)]
        for name, t in zip(imported.output_names, executable.outputs, strict=True):
            _require_dtype(f"{imported.source}: result {name}", t)
        return imported.unflatten(run(*typed))

    call.__name__ = call.__qualname__ = imported.source or "nestegg"
    return jax.jit(call)


def _custom_call(executable: Executable) -> Callable[..., tuple[Any, ...]]:
    """XLA's custom call of the program, from flat arguments to flat results."""
    import jax
    import numpy as np

    name = register(executable)
    results = [jax.ShapeDtypeStruct(t.shape, DTYPES[t.dtype].numpy) for t in executable.outputs]
    scratch = [jax.ShapeDtypeStruct((executable.native.arena,), np.uint8)] if executable.native.arena else []

    def call(*leaves: Any) -> tuple[Any, ...]:
        made = jax.ffi.ffi_call(name, [*results, *scratch], vmap_method="sequential")(*leaves)
        return tuple(made[: len(results)])

    return call


def _differentiable(imported: ImportedProgram, run: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """`run` with a backward pass: JAX's, of the function that was optimized."""
    import jax

    def original(*leaves: Any) -> tuple[Any, ...]:
        if imported.function is None:
            raise UnsupportedError(
                f"{imported.source}: has no derivative, because it was not optimized from a JAX function; optimize the "
                "gradient itself (jax.grad of a JAX function), or differentiate a JAX version of the model"
            )
        return tuple(jax.tree.leaves(imported.function(*jax.tree.unflatten(imported.in_tree, leaves))))

    differentiable = jax.custom_vjp(run)
    differentiable.defvjp(
        lambda *leaves: (differentiable(*leaves), leaves),  # not `run`: derivatives of derivatives come here, too
        lambda leaves, cotangents: jax.vjp(original, *leaves)[1](cotangents),
    )
    return differentiable


def _typed(k: int, leaf: Any, imported: ImportedProgram) -> Any:
    """An argument as the input it is for; a Python number takes the input's dtype, as in JAX."""
    import jax
    import jax.numpy as jnp

    name, want = imported.input_names[k], imported.graph.input_types[k]
    dtype = DTYPES[want.dtype].numpy
    _require_dtype(f"{imported.source}: argument {k} ({name})", want)
    value = jnp.asarray(leaf)
    if jax.typeof(value).weak_type and jnp.result_type(value, dtype) == dtype:
        value = value.astype(dtype)
    if value.shape != want.shape or value.dtype != dtype:
        raise CallError(
            f"argument {k} ({name}) is {value.dtype}{list(value.shape)}; this program was optimized for {want}: "
            "convert it, or optimize again for the new type"
        )
    return value


def _require_dtype(what: str, t: TensorType) -> None:
    """Raise `UnsupportedError` for a 64-bit type unless JAX computes in 64 bits."""
    import jax

    dtype = DTYPES[t.dtype].numpy
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UnsupportedError(f"{what} is {t}, which JAX has only with jax_enable_x64: switch it on, or use 32 bits")
