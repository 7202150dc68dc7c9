"""Calibration: the ranges of a program's tensors on example data, and how much its outputs suffer from errors in them.

Both are measured on the imported graph under JAX. The effect on the outputs comes from reverse mode: the gradient of
random combinations of the outputs with respect to every tensor at once estimates the Frobenius norm of each Jacobian
(Hutchinson's estimator), which is what independent rounding errors are multiplied by.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .compiler import import_program
from .ir.calibration import Calibrated, Ranges, digest
from .ir.errors import CalibrationError
from .ir.graph import CONSTANT, INPUT, Graph
from .ir.imported import ImportedProgram
from .ir.reference import apply_reference
from .ir.types import DTYPES, is_float

#: Random combinations of the outputs for each sample, and samples used for them at most.
PROBES, GAIN_SAMPLES = 4, 8

METHODS = ("minmax", "percentile")


def calibrate(
    source: Any,
    *example_args: Any,
    data: Mapping[str, Any] | str | Path | Sequence[Any],
    method: str = "minmax",
    percentile: float = 99.99,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
) -> Ranges:
    """Measure the ranges of a program's tensors.

    data: arrays by input name (or an `.npz` of them, or a sequence in the inputs' order), each of the input's shape, or
    with one more leading axis of samples. method: `minmax`, or `percentile`: that much of each tensor's elements lies
    below the upper bound, and above the lower one. Raises `CalibrationError` for data that does not fit.
    """
    if method not in METHODS:
        raise CalibrationError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if not 50 < percentile <= 100:
        raise CalibrationError(f"percentile {percentile} is not above 50 and at most 100")
    imported = import_program(source, *example_args, shapes=shapes, constants=constants)
    samples = samples_of(imported, data)
    program = _Instrumented(imported.graph)
    bounds = program.bounds(samples, percentile if method == "percentile" else 100.0)
    tensors = program.measured(samples, bounds)
    elements = sum(t.size for t in imported.graph.output_types)
    name = f"percentile {percentile:g}" if method == "percentile" else method
    return Ranges(digest(imported.graph), name, len(samples), 1 + math.sqrt(2 * math.log(max(elements, 2))), tensors)


# --- data ------------------------------------------------------------------------------------------------------------


def samples_of(imported: ImportedProgram, data: Any) -> list[list[np.ndarray]]:
    """The samples as lists of arrays in the order of the graph's inputs. Raises `CalibrationError`."""
    named = _named(imported, data)
    missing = [n for n in imported.input_names if n not in named]
    if missing:
        raise CalibrationError(
            f"the data has no {', '.join(missing)}: give an array for each input ({', '.join(imported.input_names)}); "
            f"it has {', '.join(named) or 'nothing'}"
        )
    columns = [
        _column(name, np.asarray(named[name]), want)
        for name, want in zip(imported.input_names, imported.graph.input_types, strict=True)
    ]
    counts = {len(c) for c in columns}
    if len(counts) > 1:
        shown = ", ".join(f"{n}: {len(c)}" for n, c in zip(imported.input_names, columns, strict=True))
        raise CalibrationError(f"the inputs have different numbers of samples ({shown}): give as many of each")
    if counts == {0}:
        raise CalibrationError("the data has no samples: give at least one")
    return [list(sample) for sample in zip(*columns, strict=True)]


def _named(imported: ImportedProgram, data: Any) -> Mapping[str, Any]:
    if isinstance(data, (str, Path)):
        try:
            with np.load(data, allow_pickle=False) as file:
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise CalibrationError(f"{data} is one array: save arrays by input name with np.savez")
                return dict(file)
        except (OSError, ValueError, zipfile.BadZipFile) as e:
            raise CalibrationError(f"{data} cannot be read as .npz: {e}") from None
    if isinstance(data, Mapping):
        return data
    if len(data) != len(imported.input_names):
        raise CalibrationError(f"{len(data)} arrays of data given for {len(imported.input_names)} inputs")
    return dict(zip(imported.input_names, data, strict=True))


def _column(name: str, array: np.ndarray, want: Any) -> np.ndarray:
    """An input's samples, stacked. Raises `CalibrationError`."""
    if array.shape == want.shape:
        array = array[None]
    if array.shape[1:] != want.shape or array.ndim != want.rank + 1:
        raise CalibrationError(
            f"{name}: data of shape {array.shape}; give {want.shape}, or {('samples', *want.shape)} for several"
        )
    kind = DTYPES[want.dtype].kind
    if array.dtype.kind not in "biuf" or (kind != "float" and array.dtype.kind == "f"):
        raise CalibrationError(f"{name}: data of dtype {array.dtype}; the input is {want.dtype}")
    if is_float(array) and not np.isfinite(array).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise CalibrationError(f"{name}: the data holds {array[at]} at {at}: remove what is not a finite number")
    return array.astype(DTYPES[want.dtype].numpy)


# --- measuring -------------------------------------------------------------------------------------------------------


class _Instrumented:
    """A graph whose tensors can be looked at and moved."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.fixed: set[int] = set()
        for k, n in enumerate(graph.nodes):
            if n.op == CONSTANT or (n.op != INPUT and all(i in self.fixed for i in n.inputs)):
                self.fixed.add(k)
        self.watched = [
            k for k, n in enumerate(graph.nodes) if k not in self.fixed and n.type.dtype in ("f32", "f64")
        ]
        self.constants = {k: graph.constants[k] for k in sorted(graph.constants)}

    def _run(self, inputs: Sequence[Any], constants: Mapping[int, Any], moved: Mapping[int, Any]) -> dict[int, Any]:
        env: dict[int, Any] = dict(zip(self.graph.inputs, inputs, strict=True)) | dict(constants)
        for k, n in enumerate(self.graph.nodes):
            if n.op not in (INPUT, CONSTANT):
                env[k] = apply_reference(n.op, [env[i] for i in n.inputs], n.attrs)
            if k in moved:
                env[k] = env[k] + moved[k]
        return env

    def bounds(self, samples: Sequence[Sequence[np.ndarray]], percentile: float) -> dict[int, tuple[float, float]]:
        """The range of each tensor: its extremes over all samples, or the mean of the samples' percentiles."""
        import jax
        import jax.numpy as jnp

        def both(a: Any) -> Any:
            if percentile >= 100:
                return jnp.stack([a.min(), a.max()])
            return jnp.percentile(a, jnp.asarray([100 - percentile, percentile]))

        @jax.jit
        def look(inputs: Any, constants: Any) -> Any:
            env = self._run(inputs, constants, {})
            return {k: both(env[k]) for k in self.watched if self.graph.nodes[k].type.size}

        seen: list[dict[int, Any]] = []
        with jax.enable_x64(True):
            seen += [jax.device_get(look(s, self.constants)) for s in samples]
        out = {}
        for k in seen[0]:
            pairs = np.array([s[k] for s in seen], np.float64)
            extremes = pairs[:, 0].min(), pairs[:, 1].max()
            low, high = extremes if percentile >= 100 else pairs.mean(axis=0)
            if np.isfinite([low, high]).all():
                out[k] = (float(low), float(high))
        return out

    def measured(
        self, samples: Sequence[Sequence[np.ndarray]], bounds: Mapping[int, tuple[float, float]]
    ) -> dict[int, Calibrated]:
        """Gains, energies and what the bounds clip, over the first samples."""
        import jax
        import jax.numpy as jnp

        some = samples[:GAIN_SAMPLES]
        rng = np.random.default_rng(0)
        outputs = [o for o in self.graph.outputs if DTYPES[self.graph.nodes[o].type.dtype].kind == "float"]
        zeros = {k: np.zeros(self.graph.nodes[k].type.shape, np.float32) for k in bounds}

        @jax.jit
        def look(inputs: Any, constants: Any, moved: Any, signs: Any) -> Any:
            def combined(moved: Any) -> Any:
                env = self._run(inputs, constants, moved)
                total = 0.0
                for o, sign in zip(outputs, signs, strict=True):
                    largest = jax.lax.stop_gradient(jnp.maximum(jnp.abs(env[o]).max(), 1e-30))
                    total += (env[o] * sign).sum() / (largest * math.sqrt(env[o].size))
                return total, env

            gradients, env = jax.grad(combined, has_aux=True)(moved)
            squares = {k: (g.astype(jnp.float32) ** 2).sum() for k, g in gradients.items()}
            clipped = {k: ((env[k] - env[k].clip(*bounds[k])) ** 2).mean() for k in bounds}
            energies = self._energies(env)
            return squares, clipped, energies, self._scaled(energies)

        total: dict[int, np.ndarray] = {k: np.zeros(4) for k in bounds}
        count = len(some) * PROBES
        with jax.enable_x64(True):
            for sample in some:
                for _ in range(PROBES):
                    shapes = [self.graph.nodes[o].type.shape for o in outputs]
                    signs = [rng.choice([-1.0, 1.0], shape).astype(np.float32) for shape in shapes]
                    found = jax.device_get(look(sample, self.constants, zeros, signs))
                    for k in bounds:
                        total[k] += [float(part.get(k, 0.0)) for part in found]
        return {
            k: Calibrated(*bounds[k], clipped / count, math.sqrt(square / count), energy / count, scaled / count)
            for k, (square, clipped, energy, scaled) in total.items()
        }

    def _energies(self, env: Mapping[int, Any]) -> dict[int, Any]:
        """Mean sum of squares of what each product's or convolution's result is computed from."""
        import jax.numpy as jnp

        out: dict[int, Any] = {}
        for k, n in enumerate(self.graph.nodes):
            if k in self.fixed or not n.inputs:
                continue
            x = env[n.inputs[0]]
            if n.op == "conv":
                shape = self.graph.nodes[n.inputs[1]].type.shape
                ones = jnp.ones((n.attrs.groups, *shape[1:]), x.dtype)
                out[k] = apply_reference("conv", [x * x, ones], n.attrs).mean()
            elif n.op == "dot":
                out[k] = (x * x).sum(axis=n.attrs.contract[0]).mean()
        return out

    def _scaled(self, energies: Mapping[int, Any]) -> dict[int, Any]:
        """The energies of products and convolutions that are multiplied by constants, by the node that does it."""
        out: dict[int, Any] = {}
        for k, n in enumerate(self.graph.nodes):
            factors = [i for i in n.inputs if i in energies] if n.op == "mul" else []
            if len(factors) == 1 and self.fixed.issuperset(set(n.inputs) - {factors[0]}):
                out[k] = energies[factors[0]]
        return out
