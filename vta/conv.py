"""A layer, given its tiling, as a stream of instructions: the ground that lowering stands on.

Nothing is chosen here: tile sizes, virtual threads and sharing come from the caller (extraction, with the timing model
as cost). What follows from them is derived: halos and padding, which loops fold into an instruction and which become
micro-ops, which transfers must wait for which computations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from .config import DEFAULT, Config, Memory
from .errors import ProgramError
from .isa import AluOp
from .layer import (
    Addend,
    Bias,
    Epilogue,
    EpilogueStep,
    Immediate,
    Layer,
    Place,
    addends,
    biases,
    identity_elements,
)
from .program import Program
from .runtime import Buffer, Builder, Loop, Uop
from .tokens import Queue

#: Micro-ops in a row that must have different destinations: the pipeline of the HLS design does not look back.
DISTANCE = 3


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile (output channel blocks, rows, columns; input channel blocks), and how tiles overlap in time.

    `threads`: 1, or 2 virtual threads along `axis` ("oc" or "h"), each with a half of every buffer. `share_input`: two
    threads along "oc" read one copy of their common input, and input tiles alternate between the halves.
    `skip_rows`: of a strided layer whose windows are one row without padding, only the rows that it reads are loaded.
    `order`: of the loops over tiles, outermost first; images are gone through innermost, or around the channels where
    those are innermost. What a thread's buffers hold already (the same weights, with `share_input` the same input) is
    not loaded again, so the order decides on the traffic.
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


# --- a layer ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """Where a tile of the output begins, and its size, which may be less at an edge."""

    image: int
    co: int
    y: int
    x: int
    channels: int
    rows: int
    columns: int

    @property
    def area(self) -> int:
        """Results of a channel block."""
        return self.rows * self.columns

    @property
    def results(self) -> int:
        return self.channels * self.area


@dataclass(frozen=True)
class Buffers:
    """A layer's operands in DRAM: inputs `[C][N][H][W]` of INP elements, weights `[O][C / groups][KH][KW]` of WGT
    elements, `results` `[O][N][H'][W']` of OUT elements; `identities`, the WGT elements of the addends' factors;
    `biases`, `[O]` of ACC elements each; `addends`, as the results but INP elements."""

    inputs: Buffer
    weights: Buffer
    results: Buffer
    identities: Buffer | None = None
    biases: tuple[Buffer, ...] = ()
    addends: tuple[Buffer, ...] = ()


def layer_program(
    layer: Layer,
    tiling: Tiling,
    inputs: bytes,
    weights: bytes,
    epilogue: Epilogue = (),
    config: Config = DEFAULT,
    *,
    biases: Sequence[bytes] = (),
    identities: bytes = b"",
    addends: Sequence[bytes] = (),
) -> Program:
    """The program of a layer alone, its operands laid out as `Buffers` says.

    Raises `ProgramError` if a tile does not fit its share of a buffer.
    """
    builder = Builder(config)
    dram, size = builder.dram, config.element_bytes(Memory.OUT)
    buffers = Buffers(
        dram.holding("inputs", inputs),
        dram.holding("weights", weights),
        dram.buffer("outputs", layer.results * size),
        dram.holding("identities", identities) if identities else None,
        tuple(dram.holding(f"bias {k}", data) for k, data in enumerate(biases)),
        tuple(dram.holding(f"addend {k}", data) for k, data in enumerate(addends)),
    )
    waiting = emit(builder, layer, tiling, buffers, epilogue)
    return builder.finish([buffers.results], wait_for=waiting)


def emit(
    builder: Builder, layer: Layer, tiling: Tiling, buffers: Buffers, epilogue: Epilogue, place: Place | None = None
) -> list[Queue]:
    """Append a layer's instructions to a stream whose buffers on chip are free; the tokens that are left at its end.

    `place`: where the results stand in the results' buffer, if they do not fill it. Raises `ProgramError` if a tile
    does not fit its share of a buffer on chip.
    """
    return _Emission(builder, layer, tiling, buffers, epilogue, place).run()


class _Emission:
    def __init__(
        self,
        builder: Builder,
        layer: Layer,
        tiling: Tiling,
        buffers: Buffers,
        epilogue: Epilogue,
        place: Place | None,
    ) -> None:
        self.builder, self.layer, self.tiling, self.buffers, self.epilogue = builder, layer, tiling, buffers, epilogue
        self.place = place or Place((layer.rows.outputs, layer.columns.outputs))
        self.overlap = _Overlap(builder)
        if tiling.skip_rows and (layer.rows.taps > 1 or layer.rows.pad):
            raise ProgramError(f"tiling {tiling}: only windows of one row without padding leave rows to skip")
        self.rows = replace(layer.rows, stride=1) if tiling.skip_rows else layer.rows
        self.row_step = layer.rows.stride if tiling.skip_rows else 1
        self.factors = identity_elements(epilogue)
        self._lay_out()
        # With shared input: how many input tiles were loaded, and which one is there.
        self._input_turn = -1
        self._resident: tuple[int, ...] | None = None
        self._held: dict[tuple[Memory, int], tuple[int, ...]] = {}  # the weights and the bias that a thread has

    def _lay_out(self) -> None:
        """The parts of the buffers on chip. Of the accumulators, a slot has results, biases, and for a maximum a copy
        of the window's element in turn; of the inputs, addends lie behind all slots; of the weights, identities."""
        t, layer, epilogue, depth = self.tiling, self.layer, self.epilogue, self.builder.config.depth
        results = t.co * t.h * t.w
        groups = max(1, t.co // layer.group_outputs)
        self.slot_size = {
            Memory.INP: groups * t.ci * self.rows.reach(t.h) * layer.columns.reach(t.w),
            Memory.WGT: 1 if layer.uniform else t.co * t.ci * layer.taps,
            Memory.ACC: results * (2 if layer.kind == "max" else 1) + t.co * biases(epilogue),
        }
        slots = dict.fromkeys(self.slot_size, t.threads) | {Memory.INP: 2 if t.share_input else t.threads}
        ends = {memory: size * slots[memory] for memory, size in self.slot_size.items()}
        self.addends_at, self.identities_at = ends[Memory.INP], ends[Memory.WGT]
        self.addend_size = results
        ends[Memory.INP] += results * addends(epilogue) * t.threads
        ends[Memory.WGT] += len(self.factors)
        for memory, end in ends.items():
            if end > depth(memory):
                raise ProgramError(f"tiling {t}: {memory.name}: {end} elements do not fit {depth(memory)}")

    def run(self) -> list[Queue]:
        for group in self._groups():
            self._group(group)
        return self.overlap.outstanding

    def _groups(self) -> Iterator[list[_Tile]]:
        """Tiles that are computed together: one for each virtual thread."""
        t, layer = self.tiling, self.layer
        height, width = layer.rows.outputs, layer.columns.outputs
        loops = {
            "image": range(layer.images),
            "co": range(0, layer.outputs, t.co * (t.threads if t.axis == "oc" else 1)),
            "h": range(0, height, t.h * (t.threads if t.axis == "h" else 1)),
            "w": range(0, width, t.w),
        }
        inner = t.order.index("co") if t.order[-1] == "co" else len(t.order)
        order = (*t.order[:inner], "image", *t.order[inner:])
        for at in product(*(loops[name] for name in order)):
            image, co, y, x = (at[order.index(name)] for name in loops)
            tiles = []
            for thread in range(t.threads):
                first_co = co + (thread * t.co if t.axis == "oc" else 0)
                first_y = y + (thread * t.h if t.axis == "h" else 0)
                sizes = (min(t.co, layer.outputs - first_co), min(t.h, height - first_y), min(t.w, width - x))
                if min(sizes) > 0:
                    tiles.append(_Tile(image, first_co, first_y, x, *sizes))
            yield tiles

    def _group(self, tiles: list[_Tile]) -> None:
        # What nothing holds up is reset while the first loads run; the rest when it is needed: the other thread's first
        # product then hides the STORE that the reset waits for.
        early = [thread for thread in range(len(tiles)) if not self.overlap.used(Queue.S2C, ("acc", thread))]
        for thread in early:
            self._reset(thread, tiles[thread])
        for ci in range(0, self.layer.group_inputs, self.tiling.ci):
            count = min(self.tiling.ci, self.layer.group_inputs - ci)
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
        self.builder.gemm([(base, 0, 0)], inner=Loop(tile.results, 1), reset=True)

    # --- loads ------------------------------------------------------------------------------------

    def _load(self, thread: int, tile: _Tile, ci: int, count: int) -> int:
        """Bring a step's input and weights on chip; the slot that holds the input."""
        channels = self._input_channels(tile, ci, count)
        wanted = (tile.image, tile.y, tile.x, tile.rows, tile.columns, *channels)
        shared = self.tiling.share_input
        slot = self._input_turn % 2 if shared else thread
        present = shared and self._resident == wanted
        if shared and not present:
            self._input_turn += 1
            slot, self._resident = self._input_turn % 2, wanted
        held = self._holds(Memory.WGT, thread, () if self.layer.uniform else (tile.co, tile.channels, ci, count))
        places = [*([] if held else [("wgt", thread)]), *([] if present else [("inp", slot)])]
        if not places:
            return slot
        self.overlap.wait(Queue.C2L, *places)
        if not present:
            for k, channel in enumerate(channels):
                self._load_input(slot, tile, k, channel)
        if not held:
            self._load_weights(thread, tile, ci, count)
        self.overlap.done(Queue.L2C, *places)
        return slot

    def _input_channels(self, tile: _Tile, ci: int, count: int) -> list[int]:
        """Input channel blocks of a step: `count` of each group that the tile's channels are in."""
        layer = self.layer
        first, last = tile.co // layer.group_outputs, (tile.co + tile.channels - 1) // layer.group_outputs
        return [group * layer.group_inputs + ci + k for group in range(first, last + 1) for k in range(count)]

    def _holds(self, memory: Memory, thread: int, wanted: tuple[int, ...]) -> bool:
        """Whether a thread's part of a buffer holds what is wanted; from now on it does."""
        held = self._held.get((memory, thread)) == wanted
        self._held[memory, thread] = wanted
        return held

    def _load_input(self, slot: int, tile: _Tile, position: int, channel: int) -> None:
        layer, width = self.layer, self.layer.columns.size
        top, rows, y_pad = layer.rows.load(tile.y, tile.rows)
        left, columns, x_pad = layer.columns.load(tile.x, tile.columns)
        at = slot * self.slot_size[Memory.INP] + position * self._plane(tile)
        offset = ((channel * layer.images + tile.image) * layer.rows.size + top) * width + left
        rows, stride = -(-rows // self.row_step), width * self.row_step
        self.builder.load(Memory.INP, self.buffers.inputs, offset, at, rows, columns, stride, y_pad, x_pad)

    def _plane(self, tile: _Tile) -> int:
        """Elements of one channel of a tile's input."""
        return self.rows.reach(tile.rows) * self.layer.columns.reach(tile.columns)

    def _load_weights(self, thread: int, tile: _Tile, ci: int, count: int) -> None:
        at = thread * self.slot_size[Memory.WGT]
        if self.layer.uniform:
            return self.builder.load(Memory.WGT, self.buffers.weights, 0, at, 1, 1, 1)
        taps, stride = self.layer.taps, self.layer.group_inputs * self.layer.taps
        offset = tile.co * stride + ci * taps
        self.builder.load(Memory.WGT, self.buffers.weights, offset, at, tile.channels, count * taps, stride)

    # --- products ---------------------------------------------------------------------------------

    def _accumulate(self, thread: int, slot: int, tile: _Tile, count: int) -> None:
        weights = ("wgt", thread), ("inp", slot)
        self.overlap.wait(Queue.L2C, *weights)
        if self.layer.kind == "max":
            self._largest(thread, slot, tile)
        else:
            self._sum(thread, slot, tile, count)
        self.overlap.done(Queue.C2L, *weights)

    def _sum(self, thread: int, slot: int, tile: _Tile, count: int) -> None:
        layer, taps = self.layer, self.layer.taps
        plane, line = self._plane(tile), layer.columns.reach(tile.columns)
        in_group = min(tile.channels, layer.group_outputs)
        axes = [
            Axis(tile.channels // in_group, in_group * tile.area, count * plane, in_group * count * taps),
            Axis(in_group, tile.area, 0, count * taps),
            Axis(count, 0, plane, taps),
            Axis(layer.rows.taps, 0, line * layer.rows.spread, layer.columns.taps),
            Axis(layer.columns.taps, 0, layer.columns.spread, 1),
            *self._pixels(tile),
        ]
        if layer.uniform:
            axes = [replace(axis, wgt=0) for axis in axes]
        outer, inner, uops = fold(axes, self._base(thread, slot))
        self.builder.gemm(uops, outer, inner)

    def _base(self, thread: int, slot: int) -> Uop:
        size = self.slot_size
        return thread * size[Memory.ACC], slot * size[Memory.INP], thread * size[Memory.WGT]

    def _pixels(self, tile: _Tile) -> list[Axis]:
        """The loops over a tile's results of one channel, and what they read."""
        line = self.layer.columns.reach(tile.columns)
        rows = Axis(tile.rows, tile.columns, line * self.rows.stride)
        return [rows, Axis(tile.columns, 1, self.layer.columns.stride)]

    def _largest(self, thread: int, slot: int, tile: _Tile) -> None:
        """A maximum over the taps: the first that reads an input for all results is copied to them; of each other one a
        copy is made behind them, and the larger is kept. Without such a first one, all begin as the least number."""
        whole = (0, tile.rows), (0, tile.columns)
        taps = {(dy, dx): self._inside(tile, dy, dx) for dy, dx in product(*map(range, self._kernel))}
        first = next((tap for tap, inside in taps.items() if inside == whole), None)
        acc, inp, wgt = self._base(thread, slot)
        copy = acc + self.slot_size[Memory.ACC] - self.tiling.co * self.tiling.h * self.tiling.w
        if first is None:
            least = -(1 << (self.builder.config.inp_bits - 1))
            self.builder.alu(AluOp.MIN, [(acc, acc, 0)], inner=Loop(tile.results, 1, 1), immediate=least)
        else:
            self._copy_tap(tile, (acc, inp, wgt), first, whole)
        for tap, inside in taps.items():
            if tap == first or any(end == begin for begin, end in inside):
                continue
            self.builder.gemm([(copy, 0, 0)], inner=Loop(tile.results, 1), reset=True)
            self._copy_tap(tile, (copy, inp, wgt), tap, inside)
            self._over(tile, inside, (acc, copy, 0), AluOp.MAX)

    @property
    def _kernel(self) -> tuple[int, int]:
        return self.layer.rows.taps, self.layer.columns.taps

    def _inside(self, tile: _Tile, dy: int, dx: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The rows and columns of a tile's results for which a tap counts."""
        if self.layer.zeros:
            return (0, tile.rows), (0, tile.columns)
        rows, columns = self.layer.rows, self.layer.columns
        return rows.inside(dy, tile.y, tile.rows), columns.inside(dx, tile.x, tile.columns)

    def _copy_tap(
        self, tile: _Tile, base: Uop, tap: tuple[int, int], inside: tuple[tuple[int, int], tuple[int, int]]
    ) -> None:
        line, (first, begin) = self.layer.columns.reach(tile.columns), (inside[0][0], inside[1][0])
        rows, columns = self._pixels(tile)
        offset = tap[0] * line * self.layer.rows.spread + tap[1] * self.layer.columns.spread
        src = offset + first * rows.src + begin * columns.src
        at = (base[0] + first * rows.dst + begin, base[1] + src, base[2])
        sizes = [replace(axis, extent=b - a) for axis, (a, b) in zip((rows, columns), inside, strict=True)]
        outer, inner, uops = fold([Axis(tile.channels, tile.area, self._plane(tile)), *sizes], at)
        self.builder.gemm(uops, outer, inner)

    def _over(
        self, tile: _Tile, inside: tuple[tuple[int, int], tuple[int, int]], base: Uop, op: AluOp
    ) -> None:
        """A register operation on a rectangle of a tile's results, the operands lying as they do."""
        (first, last), (begin, end) = inside
        offset = first * tile.columns + begin
        axes = [
            Axis(tile.channels, tile.area, tile.area),
            Axis(last - first, tile.columns, tile.columns),
            Axis(end - begin, 1, 1),
        ]
        outer, inner, uops = fold(axes, (base[0] + offset, base[1] + offset, 0))
        self.builder.alu(op, uops, outer, inner)

    # --- epilogue ---------------------------------------------------------------------------------

    def _finish(self, thread: int, tile: _Tile) -> None:
        for step in self.epilogue:
            self._apply(thread, tile, step)
        self.overlap.done(Queue.C2S, ("acc", thread))
        self.overlap.wait(Queue.C2S, ("acc", thread))
        base = thread * self.slot_size[Memory.ACC]
        for channel in range(tile.channels):
            self._store(tile, tile.co + channel, base + channel * tile.area)
        self.overlap.done(Queue.S2C, ("acc", thread))

    def _apply(self, thread: int, tile: _Tile, step: EpilogueStep) -> None:
        base = thread * self.slot_size[Memory.ACC]
        match step:
            case Immediate(op, value):
                self.builder.alu(op, [(base, base, 0)], inner=Loop(tile.results, 1, 1), immediate=value)
            case Bias(number):
                self._add_bias(thread, tile, number)
            case Addend(number, factor):
                self._add(thread, tile, number, factor)

    def _add_bias(self, thread: int, tile: _Tile, number: int) -> None:
        """The biases of a tile's channels lie behind its results; each element is added to all results of a channel."""
        base, co = thread * self.slot_size[Memory.ACC], self.tiling.co
        at = base + co * self.tiling.h * self.tiling.w
        if not self._holds(Memory.ACC, thread, (tile.co, tile.channels)):
            for k, bias in enumerate(self.buffers.biases):
                self.builder.load(Memory.ACC, bias, tile.co, at + k * co, 1, tile.channels, tile.channels)
        channels, results = Loop(tile.channels, tile.area, 1), Loop(tile.area, 1, 0)
        self.builder.alu(AluOp.ADD, [(base, at + number * co, 0)], channels, results)

    def _add(self, thread: int, tile: _Tile, number: int, factor: int) -> None:
        """Add an operand: loaded as an input, and multiplied by the identity times a factor."""
        turn = thread * addends(self.epilogue) + number
        at = self.addends_at + turn * self.addend_size
        identity = self.identities_at + self.factors.index(factor)
        self.overlap.wait(Queue.C2L, ("addend", turn))
        if not self.overlap.used(Queue.L2C, "identities"):
            assert self.buffers.identities is not None
            count = len(self.factors)
            self.builder.load(Memory.WGT, self.buffers.identities, 0, self.identities_at, 1, count, count)
        for channel in range(tile.channels):
            offset, (rows, columns, stride) = self._result(tile, tile.co + channel)
            sram = at + channel * tile.area
            self.builder.load(Memory.INP, self.buffers.addends[number], offset, sram, rows, columns, stride)
        self.overlap.done(Queue.L2C, ("addend", turn), "identities")
        self.overlap.wait(Queue.L2C, ("addend", turn), "identities")
        base = thread * self.slot_size[Memory.ACC]
        self.builder.gemm([(base, at, identity)], inner=Loop(tile.results, 1, 1))
        self.overlap.done(Queue.C2L, ("addend", turn))

    def _store(self, tile: _Tile, channel: int, sram: int) -> None:
        offset, (rows, columns, stride) = self._result(tile, channel)
        step = self.place.step[1]
        if step == 1:
            return self.builder.store(self.buffers.results, offset, sram, rows, columns, stride)
        for row in range(rows):  # a STORE's rows of one element are the columns of the results
            self.builder.store(self.buffers.results, offset + row * stride, sram + row * columns, columns, 1, step)

    def _result(self, tile: _Tile, channel: int) -> tuple[int, tuple[int, int, int]]:
        """Of a channel of a tile, where its first result lies in DRAM; its rows, columns, and from row to row."""
        (height, width), (top, left), (down, right) = self.place.size, self.place.first, self.place.step
        row, column = tile.y * down + top, tile.x * right + left
        offset = ((channel * self.layer.images + tile.image) * height + row) * width + column
        return offset, (tile.rows, tile.columns, width * down)
