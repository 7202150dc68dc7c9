"""A convolution, given its tiling, as a stream of instructions: the ground that lowering stands on.

Nothing is chosen here: tile sizes, virtual threads and sharing come from the caller (extraction, with the timing model
as cost). What follows from them is derived: halos and padding, which loops fold into an instruction and which become
micro-ops, which transfers must wait for which computations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from .config import DEFAULT, Config, Memory
from .errors import ProgramError
from .isa import AluOp
from .program import Program
from .runtime import Buffer, Builder, Loop, Uop
from .tokens import Queue

#: Micro-ops in a row that must have different destinations: the pipeline of the HLS design does not look back.
DISTANCE = 3
Epilogue = Sequence[tuple[AluOp, int]]


@dataclass(frozen=True)
class Conv2d:
    """A square-kernel convolution; channels in blocks of the configuration's, activations `[C][H][W]` of elements."""

    inputs: int
    outputs: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    pad: int = 0

    @property
    def out_height(self) -> int:
        return (self.height + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def out_width(self) -> int:
        return (self.width + 2 * self.pad - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile (output channel blocks, rows, columns; input channel blocks), and how tiles overlap in time.

    `threads`: 1, or 2 virtual threads along `axis` ("oc" or "h"), each with a half of every buffer. `share_input`: two
    threads along "oc" read one copy of their common input, and input tiles alternate between the halves.
    `skip_rows`: of a strided 1x1 convolution without padding, only the rows that it reads are loaded. `order`: of the
    loops over tiles, outermost first. What a thread's buffers hold already (the same weights, with `share_input` the
    same input) is not loaded again, so the order decides on the traffic.
    """

    co: int
    h: int
    w: int
    ci: int = 1
    threads: int = 1
    axis: str = "oc"
    share_input: bool = False
    skip_rows: bool = False
    order: tuple[str, str, str] = ("co", "h", "w")


# --- folding --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A loop of a tile: its iterations, and what each adds to the indices of destination, source and weight."""

    extent: int
    dst: int = 0
    src: int = 0
    wgt: int = 0

    def holds(self, inner: Axis) -> bool:
        """Whether this loop around `inner` is one loop with the inner one's steps."""
        steps = (inner.dst * inner.extent, inner.src * inner.extent, inner.wgt * inner.extent)
        return steps == (self.dst, self.src, self.wgt)

    @property
    def loop(self) -> Loop:
        return Loop(self.extent, self.dst, self.src, self.wgt)


def fold(axes: Sequence[Axis], base: Uop = (0, 0, 0)) -> tuple[Loop, Loop, tuple[Uop, ...]]:
    """A nest of loops as one instruction: outer and inner loop, and micro-ops for all other loops.

    Loops that are one are merged, the two longest go into the instruction, and one whose steps change the destination
    stays innermost among the micro-ops, so that `DISTANCE` in a row differ, if there is one of that length.
    """
    merged = _merged([a for a in axes if a.extent > 1])
    kept = min((a for a in merged if a.dst and a.extent >= DISTANCE), key=lambda a: a.extent, default=None)
    others = sorted((a for a in merged if a is not kept), key=lambda a: -a.extent)
    folded = [*others[:2], Axis(1), Axis(1)][:2]
    unrolled = [*others[2:], *([kept] if kept else [])]
    uops = []
    for at in product(*(range(a.extent) for a in unrolled)):
        steps = list(zip(at, unrolled, strict=True))
        dst, src, wgt = (sum(i * getattr(a, name) for i, a in steps) for name in ("dst", "src", "wgt"))
        uops.append((base[0] + dst, base[1] + src, base[2] + wgt))
    return folded[0].loop, folded[1].loop, tuple(uops)


def _merged(axes: list[Axis]) -> list[Axis]:
    """Adjacent loops, outer ones first, as one where they are."""
    found: list[Axis] = []
    for axis in axes:
        if found and found[-1].holds(axis):
            axis = replace(axis, extent=axis.extent * found.pop().extent)
        found.append(axis)
    return found


# --- overlap --------------------------------------------------------------------------------------


@dataclass
class _Overlap:
    """Tokens by need: who uses a place on chip is remembered, and whoever reuses it waits for just that."""

    builder: Builder
    pushed: dict[Queue, int] = field(default_factory=lambda: dict.fromkeys(Queue, 0))
    popped: dict[Queue, int] = field(default_factory=lambda: dict.fromkeys(Queue, 0))
    marks: dict[tuple[Queue, object], int] = field(default_factory=dict)

    def done(self, queue: Queue, *places: object) -> None:
        """The producer's last instruction was the last to use these places so far."""
        self.builder.push(queue)
        self.pushed[queue] += 1
        self.marks |= {(queue, place): self.pushed[queue] for place in places}

    def wait(self, queue: Queue, *places: object) -> None:
        """The consumer's next instruction needs these places."""
        needed = max(self.marks.get((queue, place), 0) for place in places)
        for _ in range(needed - self.popped[queue]):
            self.builder.pop(queue)
        self.popped[queue] = max(needed, self.popped[queue])

    def used(self, queue: Queue, place: object) -> bool:
        """Whether the producer has used a place before."""
        return (queue, place) in self.marks

    @property
    def outstanding(self) -> list[Queue]:
        return [q for q in Queue for _ in range(self.pushed[q] - self.popped[q])]


# --- the convolution ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """Where a tile of the output begins, and its size, which may be less at an edge."""

    co: int
    y: int
    x: int
    channels: int
    rows: int
    columns: int


def convolution_program(
    layer: Conv2d,
    tiling: Tiling,
    inputs: bytes,
    weights: bytes,
    epilogue: Epilogue = (),
    config: Config = DEFAULT,
    bias: bytes = b"",
) -> Program:
    """The program of a layer: `inputs` `[C][H][W]` of INP elements, `weights` `[O][C][K][K]` of WGT elements; output
    `[O][H'][W']` of OUT elements. `bias`: nothing, or `[O]` of ACC elements, added to the sums. `epilogue`: ALU
    operations with an immediate on every result.

    Raises `ProgramError` if a tile does not fit its share of a buffer.
    """
    return _Convolution(layer, tiling, inputs, weights, epilogue, config, bias).program()


class _Convolution:
    def __init__(
        self,
        layer: Conv2d,
        tiling: Tiling,
        inputs: bytes,
        weights: bytes,
        epilogue: Epilogue,
        config: Config,
        bias: bytes,
    ) -> None:
        self.layer, self.tiling, self.epilogue = layer, tiling, epilogue
        self.builder = Builder(config)
        dram, size = self.builder.dram, config.element_bytes(Memory.OUT)
        self.inputs, self.weights = dram.holding("inputs", inputs), dram.holding("weights", weights)
        self.result = dram.buffer("outputs", layer.outputs * layer.out_height * layer.out_width * size)
        self.bias = dram.holding("bias", bias) if bias else None
        self.overlap = _Overlap(self.builder)
        if tiling.skip_rows and (layer.kernel > 1 or layer.pad):
            raise ProgramError(f"tiling {tiling}: only a 1x1 convolution without padding has rows to skip")
        self.row_step = layer.stride if tiling.skip_rows else 1
        sizes = {
            Memory.INP: tiling.ci * self._input_rows(tiling.h) * self._input_columns(tiling.w),
            Memory.WGT: tiling.co * tiling.ci * layer.kernel**2,
            Memory.ACC: tiling.co * (tiling.h * tiling.w + bool(bias)),
        }
        self.slot_size = sizes
        for memory, needed in sizes.items():
            slots = 2 if tiling.threads == 2 or (tiling.share_input and memory == Memory.INP) else 1
            if needed * slots > config.depth(memory):
                have = f"{slots} x {needed} elements do not fit {config.depth(memory)}"
                raise ProgramError(f"tiling {tiling}: {memory.name}: {have}")
        # With shared input: how many input tiles were loaded, and which one is there.
        self._input_turn = -1
        self._resident: tuple[int, ...] | None = None
        self._held: dict[tuple[Memory, int], tuple[int, ...]] = {}  # the weights and the bias that a thread has

    def program(self) -> Program:
        for group in self._groups():
            self._group(group)
        return self.builder.finish([self.result], wait_for=self.overlap.outstanding)

    def _groups(self) -> Iterator[list[_Tile]]:
        """Tiles that are computed together: one for each virtual thread."""
        t, height, width = self.tiling, self.layer.out_height, self.layer.out_width
        loops = {
            "co": range(0, self.layer.outputs, t.co * (t.threads if t.axis == "oc" else 1)),
            "h": range(0, height, t.h * (t.threads if t.axis == "h" else 1)),
            "w": range(0, width, t.w),
        }
        for at in product(*(loops[name] for name in t.order)):
            co, y, x = (at[t.order.index(name)] for name in loops)
            tiles = []
            for thread in range(t.threads):
                first_co = co + (thread * t.co if t.axis == "oc" else 0)
                first_y = y + (thread * t.h if t.axis == "h" else 0)
                sizes = (min(t.co, self.layer.outputs - first_co), min(t.h, height - first_y), min(t.w, width - x))
                if min(sizes) > 0:
                    tiles.append(_Tile(first_co, first_y, x, *sizes))
            yield tiles

    def _group(self, tiles: list[_Tile]) -> None:
        # What nothing holds up is reset while the first loads run; the rest when it is needed: the other thread's first
        # product then hides the STORE that the reset waits for.
        early = [thread for thread in range(len(tiles)) if not self.overlap.used(Queue.S2C, ("acc", thread))]
        for thread in early:
            self._reset(thread, tiles[thread])
        for ci in range(0, self.layer.inputs, self.tiling.ci):
            count = min(self.tiling.ci, self.layer.inputs - ci)
            for thread, tile in enumerate(tiles):
                slot = self._load(thread, tile, ci, count)
                if ci == 0 and thread not in early:
                    self._reset(thread, tile)
                self._accumulate(thread, slot, tile, count)
        for thread, tile in enumerate(tiles):
            self._finish(thread, tile)

    def _reset(self, thread: int, tile: _Tile) -> None:
        base = thread * self.slot_size[Memory.ACC]
        self.overlap.wait(Queue.S2C, ("acc", thread))
        results = tile.channels * tile.rows * tile.columns
        self.builder.gemm([(base, 0, 0)], inner=Loop(results, 1), reset=True)

    def _load(self, thread: int, tile: _Tile, ci: int, count: int) -> int:
        """Bring a step's input and weights on chip; the slot that holds the input."""
        wanted = (tile.y, tile.x, tile.rows, tile.columns, ci)
        shared = self.tiling.share_input
        slot = self._input_turn % 2 if shared else thread
        present = shared and self._resident == wanted
        if shared and not present:
            self._input_turn += 1
            slot, self._resident = self._input_turn % 2, wanted
        held = self._holds(Memory.WGT, thread, (tile.co, tile.channels, ci, count))
        places = [*([] if held else [("wgt", thread)]), *([] if present else [("inp", slot)])]
        if not places:
            return slot
        self.overlap.wait(Queue.C2L, *places)
        if not present:
            for channel in range(count):
                self._load_input(slot, tile, ci, channel)
        if not held:
            self._load_weights(thread, tile, ci, count)
        self.overlap.done(Queue.L2C, *places)
        return slot

    def _holds(self, memory: Memory, thread: int, wanted: tuple[int, ...]) -> bool:
        """Whether a thread's part of a buffer holds what is wanted; from now on it does."""
        held = self._held.get((memory, thread)) == wanted
        self._held[memory, thread] = wanted
        return held

    def _load_input(self, slot: int, tile: _Tile, ci: int, channel: int) -> None:
        layer = self.layer
        top, rows, y_pad = _window(tile.y, tile.rows, layer.height, layer)
        left, columns, x_pad = _window(tile.x, tile.columns, layer.width, layer)
        rows, stride = -(-rows // self.row_step), layer.width * self.row_step
        at = slot * self.slot_size[Memory.INP] + channel * self._plane(tile)
        offset = ((ci + channel) * layer.height + top) * layer.width + left
        self.builder.load(Memory.INP, self.inputs, offset, at, rows, columns, stride, y_pad, x_pad)

    def _input_rows(self, rows: int) -> int:
        """Input rows that a number of output rows needs on chip."""
        return (rows - 1) * (self.layer.stride // self.row_step) + self.layer.kernel

    def _input_columns(self, columns: int) -> int:
        return (columns - 1) * self.layer.stride + self.layer.kernel

    def _plane(self, tile: _Tile) -> int:
        """Elements of one channel of a tile's input."""
        return self._input_rows(tile.rows) * self._input_columns(tile.columns)

    def _load_weights(self, thread: int, tile: _Tile, ci: int, count: int) -> None:
        area = self.layer.kernel**2
        at = thread * self.slot_size[Memory.WGT]
        offset = (tile.co * self.layer.inputs + ci) * area
        stride = self.layer.inputs * area
        self.builder.load(Memory.WGT, self.weights, offset, at, tile.channels, count * area, stride)

    def _accumulate(self, thread: int, slot: int, tile: _Tile, count: int) -> None:
        k, s = self.layer.kernel, self.layer.stride
        line = self._input_columns(tile.columns)
        axes = [
            Axis(tile.channels, tile.rows * tile.columns, 0, count * k * k),
            Axis(count, 0, self._plane(tile), k * k),
            Axis(k, 0, line, k),
            Axis(k, 0, 1, 1),
            Axis(tile.rows, tile.columns, line * (s // self.row_step)),
            Axis(tile.columns, 1, s),
        ]
        base = (
            thread * self.slot_size[Memory.ACC],
            slot * self.slot_size[Memory.INP],
            thread * self.slot_size[Memory.WGT],
        )
        outer, inner, uops = fold(axes, base)
        self.overlap.wait(Queue.L2C, ("wgt", thread), ("inp", slot))
        self.builder.gemm(uops, outer, inner)
        self.overlap.done(Queue.C2L, ("wgt", thread), ("inp", slot))

    def _finish(self, thread: int, tile: _Tile) -> None:
        base, area = thread * self.slot_size[Memory.ACC], tile.rows * tile.columns
        if self.bias is not None:
            self._add_bias(thread, tile, self.bias)
        for op, immediate in self.epilogue:
            self.builder.alu(op, [(base, base, 0)], inner=Loop(tile.channels * area, 1, 1), immediate=immediate)
        self.overlap.done(Queue.C2S, ("acc", thread))
        self.overlap.wait(Queue.C2S, ("acc", thread))
        height, width = self.layer.out_height, self.layer.out_width
        for channel in range(tile.channels):
            offset = ((tile.co + channel) * height + tile.y) * width + tile.x
            sram = base + channel * area
            self.builder.store(self.result, offset, sram, tile.rows, tile.columns, width)
        self.overlap.done(Queue.S2C, ("acc", thread))


    def _add_bias(self, thread: int, tile: _Tile, bias: Buffer) -> None:
        """The bias of a tile's channels lies behind its results; each element is added to all results of a channel."""
        base, area = thread * self.slot_size[Memory.ACC], tile.rows * tile.columns
        at = base + self.slot_size[Memory.ACC] - self.tiling.co
        if not self._holds(Memory.ACC, thread, (tile.co, tile.channels)):
            self.builder.load(Memory.ACC, bias, tile.co, at, 1, tile.channels, tile.channels)
        channels, results = Loop(tile.channels, area, 1), Loop(area, 1, 0)
        self.builder.alu(AluOp.ADD, [(base, at, 0)], channels, results)


def _window(first: int, count: int, size: int, layer: Conv2d) -> tuple[int, int, tuple[int, int]]:
    """Of a run of outputs along one axis: the first input that exists, how many do, and the padding around them."""
    begin = first * layer.stride - layer.pad
    end = begin + (count - 1) * layer.stride + layer.kernel
    before, after = max(0, -begin), max(0, end - size)
    return begin + before, end - begin - before - after, (before, after)


def macs(layer: Conv2d) -> int:
    """GEMM iterations that a layer takes at least: its blocks' multiplications."""
    return math.prod((layer.outputs, layer.inputs, layer.out_height, layer.out_width, layer.kernel**2))
