"""The learned cost model: an ensemble of small perceptrons that correct the roofline.

    log seconds = log (the roofline's seconds) + mean over the ensemble of MLP(features)

The spread of the ensemble says how sure that is. Weights are trained by `fit.py` (JAX, optax) and kept as a NumPy
archive without pickled objects; it names the version of the features that it was trained on, and another is refused.
Inference is NumPy: a forward pass of some thousand nests takes milliseconds, less than XLA takes to compile one.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..ir.errors import NesteggError
from ..ir.target import Target
from ..rewrite.loop_egraph import LoopEGraph
from .features import FEATURES, LEAF_LANES, VERSION, FeatureScorer
from .roofline import Roofline

#: Standard deviations beyond which a feature is taken to be no farther: the model has seen nothing there.
CLIP = 4.0
#: The weights that come with nestegg: `python benchmarks/training.py fit` makes them.
SHIPPED = Path(__file__).parent / "weights" / "costmodel.npz"


class WeightsError(NesteggError):
    """A file does not hold weights of this version's cost model."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Perceptrons of the same shape. `layers`: (weights, biases) of shape (members, from, to), (members, to), float32;
    the last has one column. `centre`, `scale`: of the features, shape (len(FEATURES),)."""

    centre: np.ndarray
    scale: np.ndarray
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def members(self, features: np.ndarray) -> np.ndarray:
        """Every member's correction of the logarithm of the roofline's seconds, shape (members, n)."""
        x = np.clip((features - self.centre) / self.scale, -CLIP, CLIP).astype(np.float32)
        y = np.broadcast_to(x, (len(self.layers[0][0]), *x.shape))
        for k, (w, b) in enumerate(self.layers):
            y = y @ w + b[:, None, :]
            if k < len(self.layers) - 1:
                y = np.maximum(y, 0.0)
        return y[:, :, 0]

    def correction(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean, standard deviation) over the members, shape (n,) each."""
        found = self.members(features)
        return found.mean(axis=0), found.std(axis=0)

    def save(self, path: str | Path) -> None:
        """Write the weights as a NumPy archive."""
        arrays = {"centre": self.centre, "scale": self.scale, "features": np.array(VERSION)}
        for k, (w, b) in enumerate(self.layers):
            arrays |= {f"weights{k}": w, f"biases{k}": b}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: str | Path) -> Ensemble:
        """Read weights. Raises `WeightsError` if they are damaged or of another version of the features."""
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as found:
                arrays = dict(found)
            version = str(arrays["features"])
            layers = tuple(
                (arrays[f"weights{k}"], arrays[f"biases{k}"]) for k in range(sum(n.startswith("w") for n in arrays))
            )
            made = Ensemble(arrays["centre"], arrays["scale"], layers)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise WeightsError(f"{path}: not weights of the cost model ({type(e).__name__}: {e})") from None
        if version != VERSION:
            raise WeightsError(
                f"{path}: trained on features of version {version}, and this nestegg has {VERSION}; train them again "
                "with `python benchmarks/training.py fit`"
            )
        if not layers or made.centre.shape != (len(FEATURES),) or not all(np.isfinite(w).all() for w, _ in layers):
            raise WeightsError(f"{path}: not weights of the cost model (shapes or values are wrong)")
        return made


@cache
def shipped() -> Ensemble:
    """The weights that come with nestegg. Raises `WeightsError`."""
    return Ensemble.load(SHIPPED)


class LearnedScorer(FeatureScorer):
    """The learned model on one e-graph: the roofline chooses a shortlist of every block, the ensemble orders it."""

    def __init__(self, egraph: LoopEGraph, target: Target, threads: int, ensemble: Ensemble) -> None:
        super().__init__(egraph, target, threads)
        self.ensemble = ensemble

    def refine(self, owners: np.ndarray, states: np.ndarray, notes: np.ndarray) -> np.ndarray:
        correction, _ = self.ensemble.correction(self.features(owners, states, notes))
        filled = notes[:, LEAF_LANES] > 0  # of blocks that are still to be filled, only the roofline knows what to hope
        return super().refine(owners, states, notes) * np.exp(np.where(filled, correction, 0.0))


class LearnedModel:
    """The model: `LearnedModel(target, threads, ensemble)`. A `CostModel`: a beam under it is guided at every block."""

    name = "learned"

    def __init__(self, target: Target, threads: int = 1, ensemble: Ensemble | None = None) -> None:
        self.target, self.threads = target, threads
        self.ensemble = ensemble or shipped()
        self.bound = Roofline(target, threads).bound

    def scorer(self, egraph: LoopEGraph) -> LearnedScorer:
        return LearnedScorer(egraph, self.target, self.threads, self.ensemble)
