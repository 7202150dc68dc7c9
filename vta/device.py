"""The accelerator's part of a partitioned program: kernels as streams over one DRAM, and what the CPU moves there.

A tensor has a buffer for each layout in which it is read or written. It is the functional simulator that runs: exact,
without time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .config import Config, Memory
from .functional import run
from .lower import CompiledKernel
from .partition import Action, Place, Send, VtaKernel, Widened
from .program import Program
from .runtime import Buffer, Builder, Dram
from .tokens import Queue


class Weights(NamedTuple):
    """A tensor that is no constant and that a kernel reads as weights: the CPU packs it before the stream runs."""

    tensor: int
    buffers: tuple[Buffer, ...]
    kernel: CompiledKernel


@dataclass(frozen=True, eq=False)
class Stream:
    """A program that runs kernels one after another."""

    program: Program
    kernels: tuple[VtaKernel, ...]
    weights: tuple[Weights, ...]


@dataclass(eq=False)
class _Open:
    """A stream that is not closed yet: closing one places its code behind all data."""

    builder: Builder
    waiting: list[Queue] = field(default_factory=list)
    results: list[Buffer] = field(default_factory=list)
    kernels: list[VtaKernel] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)

    def close(self) -> Stream:
        program = self.builder.finish(self.results, self.waiting)
        return Stream(program, tuple(self.kernels), tuple(self.weights))


class Device:
    """The accelerator's memory and the streams of its turns, in order (None for a turn without kernels)."""

    def __init__(self, config: Config, turns: Sequence[Sequence[Action]]) -> None:
        self.config, self.dram = config, Dram()
        self.buffers: dict[Place, Buffer] = {}
        opened = [self._emitted(turn) for turn in turns]
        closed = [o.close() if o.kernels else None for o in opened]
        size = max((s.program.dram_bytes for s in closed if s is not None), default=0)
        self.streams = tuple(
            None if s is None else replace(s, program=replace(s.program, dram_bytes=size)) for s in closed
        )

    @cached_property
    def programs(self) -> tuple[Program, ...]:
        return tuple(s.program for s in self.streams if s is not None)

    def image(self) -> NDArray[np.uint8]:
        """DRAM with all that is known before the program runs; empty if the accelerator has nothing to do."""
        return self.programs[0].image() if self.programs else np.zeros(0, np.uint8)

    def write(self, dram: NDArray[np.uint8], place: Place, values: NDArray[Any]) -> None:
        """Pack a tensor. Raises `ProgramError` if a value does not fit the accelerator's inputs."""
        self._put(dram, self.buffers[place], place.view.pack(values, self.config))

    def read(self, dram: NDArray[np.uint8], place: Place) -> NDArray[np.int64]:
        """The tensor that lies at a place, as the CPU sees it."""
        buffer = self.buffers[place]
        return place.view.unpack(dram[buffer.address : buffer.address + buffer.size], self.config)

    def write_weights(self, stream: Stream, dram: NDArray[np.uint8], values: Mapping[int, NDArray[Any]]) -> None:
        """Pack the weights that are no constants, whose tensors' values are given."""
        for w in stream.weights:
            for buffer, data in zip(w.buffers, w.kernel.weights(values[w.tensor]), strict=True):
                self._put(dram, buffer, data)

    def run(self, stream: Stream, dram: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """DRAM after a stream, by the functional simulator."""
        return run(stream.program, before=dram).dram

    @staticmethod
    def _put(dram: NDArray[np.uint8], buffer: Buffer, data: bytes) -> None:
        dram[buffer.address : buffer.address + len(data)] = np.frombuffer(data, np.uint8)

    # --- building ---------------------------------------------------------------------------------

    def _buffer(self, place: Place) -> Buffer:
        if place not in self.buffers:
            size = place.view.elements(self.config) * self.config.element_bytes(Memory.INP)
            self.buffers[place] = self.dram.holding(f"t{place.tensor}", bytes(size))
        return self.buffers[place]

    def _emitted(self, turn: Sequence[Action]) -> _Open:
        stream = _Open(Builder(self.config, self.dram))
        for a in turn:
            if isinstance(a, Send):
                self._buffer(a.makes)
            elif isinstance(a, Widened):
                self.buffers[a.makes] = self._buffer(a.place)
            elif isinstance(a, VtaKernel):
                self._emit(a, stream)
        return stream

    def _emit(self, a: VtaKernel, stream: _Open) -> None:
        kernel = a.offer.kernel
        assert kernel is not None, "extraction has the cycles of every kernel that it chose"
        activations = {k: self._buffer(place) for k, place in a.places.items()}
        result = self._buffer(a.makes)
        operands = kernel.allocate(self.dram, f"t{a.owner}", activations, result)
        if a.weights is not None:
            stream.weights.append(Weights(a.weights, tuple(o.weights for o in operands), kernel))
        if stream.kernels:
            stream.builder.drain(stream.waiting)
        stream.waiting = kernel.emit(stream.builder, operands)
        stream.results.append(result)
        stream.kernels.append(a)
