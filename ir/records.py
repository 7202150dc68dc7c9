"""Kernels and nests as records of a log: their texts, the digest that names a kernel, and what is refused when read.

The texts are those of `serial.KERNELS`. A nest is only taken with its kernel, whose domain it must cover.
"""

from __future__ import annotations

import hashlib

from . import nest
from .errors import NesteggError
from .loops import LoopKernel, Lowered, StagedKernel
from .nest import KINDS, WAYS, Cat, For, Intrin, Nest, Seq, Stage, Store, Tile, Vec
from .serial import KERNELS


class SerialError(NesteggError):
    """A text is not a kernel or a nest, or the nest is not one of the kernel's."""


def dumps(value: Lowered | Nest) -> str:
    """The value as one line of JSON; equal values give equal texts."""
    return KERNELS.dumps(value)


def _value(text: str) -> object:
    try:
        return KERNELS.loads(text)
    except NesteggError as e:
        raise SerialError(str(e)) from None


def load_kernel(text: str) -> Lowered:
    """The kernel that `dumps` wrote. Raises `SerialError`."""
    found = _value(text)
    if not isinstance(found, (LoopKernel, StagedKernel)):
        raise SerialError(f"holds a {type(found).__name__}, not a kernel")
    return found


def load_nest(text: str, kernel: Lowered) -> Nest:
    """The nest that `dumps` wrote. Raises `SerialError` if it does not cover the kernel's domain."""
    found = _value(text)
    try:
        covered = _covers(found, kernel)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError, IndexError) as e:
        raise SerialError(f"not a nest ({type(e).__name__}: {e})") from None
    if not covered:
        raise SerialError("the nest does not cover the domain of the kernel it stands with")
    return found  # type: ignore[return-value]


def _covers(n: Nest, kernel: Lowered) -> bool:
    if isinstance(n, Store):
        if n.how not in WAYS:
            raise ValueError(f"results stored {n.how!r}")
        return _covers(n.body, kernel)
    if isinstance(kernel, LoopKernel):
        return _block(n, len(kernel.axes)) == kernel.extents
    return _staged_block(n, kernel) == kernel.extents


def _block(n: Nest, rank: int) -> tuple[int, ...]:
    """`nest.extents`, of a nest that may be wrong: every part is looked at."""
    if isinstance(n, (Vec, Intrin)):
        if isinstance(n, Vec) and not (-1 <= n.axis < rank and n.lanes >= 1):
            raise ValueError(str(n))
        return nest.extents(n, rank)
    if isinstance(n, Tile):
        return _block(n.body, rank)
    if isinstance(n, Cat):
        first, second = _block(n.first, rank), _block(n.second, rank)
        return _joined(n, first, second)
    if not isinstance(n, For):
        raise TypeError(f"{type(n).__name__} in a kernel of one stage")
    return _looped(n, _block(n.body, rank))


def _staged_block(n: Nest, kernel: StagedKernel) -> tuple[int, ...]:
    shared = len(kernel.shared)
    if isinstance(n, Stage):
        stage = kernel.stages[n.number]
        block = _block(n.body, len(stage.axes))
        if block[shared:] != stage.extents[shared:]:
            raise ValueError(f"stage {n.number} covers {block}")
        return block[:shared]
    if isinstance(n, Seq):
        first, second = _staged_block(n.first, kernel), _staged_block(n.second, kernel)
        if first != second:
            raise ValueError("stages over different blocks")
        return first
    if isinstance(n, Cat):
        return _joined(n, _staged_block(n.first, kernel), _staged_block(n.second, kernel))
    if not isinstance(n, For):
        raise TypeError(f"{type(n).__name__} outside the stages")
    return _looped(n, _staged_block(n.body, kernel))


def _joined(n: Cat, first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    rest = [(a, b) for k, (a, b) in enumerate(zip(first, second, strict=True)) if k != n.axis]
    if first[n.axis] != n.at or any(a != b for a, b in rest):
        raise ValueError(f"cut at {n.at}, of blocks {first} and {second}")
    return tuple(a + b if k == n.axis else a for k, (a, b) in enumerate(zip(first, second, strict=True)))


def _looped(n: For, body: tuple[int, ...]) -> tuple[int, ...]:
    if n.kind not in KINDS or not 0 <= n.axis < len(body) or n.trips < 1:
        raise ValueError(f"loop over axis {n.axis}, {n.trips} trips, {n.kind}")
    return tuple(e * n.trips if k == n.axis else e for k, e in enumerate(body))


def digest(kernel: Lowered) -> str:
    """The kernel's name in a log: equal for equal kernels, whichever model they come from."""
    return hashlib.blake2b(dumps(kernel).encode(), digest_size=12).hexdigest()
