"""Synthetic digits: images of seven-segment-like strokes, moved, slanted and noisy, for tests of trained networks."""

from __future__ import annotations

import numpy as np

#: The strokes of each digit: pairs of points (x, y) in the unit square, y downwards.
_CORNERS = {"a": (0, 0), "b": (1, 0), "c": (0, 0.5), "d": (1, 0.5), "e": (0, 1), "f": (1, 1)}
STROKES = (
    "ab ef ae bf",
    "bf",
    "ab bd cd ce ef",
    "ab bf cd ef",
    "ac cd bf",
    "ab ac cd df ef",
    "ab ae cd df ef",
    "ab bf",
    "ab cd ef ae bf",
    "ab ac cd bf ef",
)
SIZE = 28


def digits(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images f32[count, 1, 28, 28] in 0..1 and their labels i32[count]; the same seed draws the same ones."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).astype(np.int32)
    images = np.stack([_drawn(int(label), rng) for label in labels])
    return images[:, None].astype(np.float32), labels


def _drawn(label: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    width, height = rng.uniform(9, 13), rng.uniform(15, 20)
    left, top = rng.uniform(5, 9), rng.uniform(3, 6)
    slant, thick = rng.uniform(-0.2, 0.2), rng.uniform(0.9, 1.6)
    distance = np.full((SIZE, SIZE), np.inf)
    for a, b in STROKES[label].split():
        ends = np.array([_CORNERS[a], _CORNERS[b]]) * (width, height)
        ends[:, 0] += left + slant * (height - ends[:, 1])
        ends[:, 1] += top
        distance = np.minimum(distance, _to_segment(x, y, ends[0], ends[1]))
    ink = np.clip(1.5 + thick - distance, 0, 1)
    return np.clip(ink + rng.normal(0, 0.1, ink.shape), 0, 1)


def _to_segment(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The distance of each pixel to a segment."""
    along = b - a
    t = np.clip(((x - a[0]) * along[0] + (y - a[1]) * along[1]) / (along**2).sum(), 0, 1)
    return np.hypot(x - a[0] - t * along[0], y - a[1] - t * along[1])
