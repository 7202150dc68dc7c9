"""A tensor of the graph as activations of the accelerator: which of its dimensions are images, channels, rows, columns.

In DRAM, activations lie as `[C][N][H][W]` of elements of batch x block lanes, channels and images padded with zeros to
whole elements. Two kernels that see a tensor alike share its buffer; otherwise it is packed anew, on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import Config, Memory
from .errors import ProgramError
from .layout import pack, unpack


@dataclass(frozen=True)
class View:
    """Dimensions of a tensor of `shape` by their role, each role's in order; those of one element have none."""

    shape: tuple[int, ...]
    image: tuple[int, ...] = ()
    channel: tuple[int, ...] = ()
    row: tuple[int, ...] = ()
    column: tuple[int, ...] = ()

    @property
    def order(self) -> tuple[int, ...]:
        return self.image + self.channel + self.row + self.column

    @property
    def canonical(self) -> View:
        """The same layout, without roles of dimensions of one element: those do not matter."""
        roles = (self.image, self.channel, self.row, self.column)
        return View(self.shape, *(tuple(d for d in role if self.shape[d] > 1) for role in roles))

    def same(self, other: View) -> bool:
        """Whether both lie alike."""
        return self.canonical == other.canonical

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Images, channels, rows, columns."""
        roles = (self.image, self.channel, self.row, self.column)
        images, channels, rows, columns = (math.prod(self.shape[d] for d in dims) for dims in roles)
        return images, channels, rows, columns

    def blocks(self, config: Config) -> tuple[int, int]:
        """Channel blocks, and images in batches."""
        images, channels, _, _ = self.sizes
        return -(-channels // config.block), -(-images // config.batch)

    def elements(self, config: Config) -> int:
        """Elements of the tensor's buffer."""
        _, _, rows, columns = self.sizes
        return math.prod(self.blocks(config)) * rows * columns

    def describe(self, config: Config) -> str:
        """The layout in DRAM: sizes, outermost first."""
        (channels, images), (_, _, rows, columns) = self.blocks(config), self.sizes
        return f"[{channels}][{images}][{rows}][{columns}][{config.batch}][{config.block}] int{config.inp_bits}"

    def pack(self, values: NDArray[np.integer], config: Config) -> bytes:
        """The tensor as elements. Raises `ProgramError` if a value does not fit the accelerator's inputs."""
        limit = 1 << (config.inp_bits - 1)
        if values.size and not (-limit <= int(values.min()) and int(values.max()) < limit):
            found = f"{values.min()} … {values.max()}"
            raise ProgramError(f"values {found} do not fit the {config.inp_bits} bits of {config.name}'s inputs")
        images, channels, rows, columns = self.sizes
        x = values.reshape(self.shape).transpose(self._all).reshape(images, channels, rows, columns)
        c, n = self.blocks(config)
        x = np.pad(x, ((0, n * config.batch - images), (0, c * config.block - channels), (0, 0), (0, 0)))
        x = x.reshape(n, config.batch, c, config.block, rows, columns).transpose(2, 0, 4, 5, 1, 3)
        return pack(x, config, Memory.INP)

    def unpack(self, code: NDArray[np.uint8], config: Config) -> NDArray[np.int64]:
        """The tensor that elements hold."""
        images, channels, rows, columns = self.sizes
        (c, n) = self.blocks(config)
        lanes = unpack(code, config, Memory.OUT).reshape(c, n, rows, columns, config.batch, config.block)
        x = lanes.transpose(1, 4, 0, 5, 2, 3).reshape(n * config.batch, c * config.block, rows, columns)
        x = x[:images, :channels].reshape([self.shape[d] for d in self._all])
        return x.transpose(np.argsort(self._all))

    @property
    def _all(self) -> tuple[int, ...]:
        """All dimensions: those without a role, of one element each, first."""
        return (*(d for d in range(len(self.shape)) if d not in self.order), *self.order)
