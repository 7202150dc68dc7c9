"""How a layer may be cut for the accelerator, as an e-graph: tiles, their order, virtual threads, steps of reduction.

The loop language of `rewrite/` ends in registers; its blocks know no memory that a program fills itself, and no two
threads that share a buffer. So the accelerator's memory levels have a language of their own, in the same form: blocks
of a layer (extents in GEMM blocks of output channels, rows and columns, and of input channels), rules with conditions
on them, an acyclic e-graph.

    Block(phase, slots, inputs, o, y, x, c)   loops -> steps -> chip; `slots` copies of a thread's results and weights,
                                              `inputs` of its input: the conditions of Tile ask for room for all of them
    For(axis, size, block)                    a loop over blocks of that size; each axis once, the last may be smaller
    Threads(count, axis, share, block)        one virtual thread, or two along an axis; whether they share their input
    Tile(slots, inputs, skip, o, y, x, c)     loads, then GEMM; `skip`: rows that are not read are not loaded
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..rewrite.loop_language import Size
from ..rewrite.saturate import EggRule, Engine, Limits, SaturationReport, saturate
from .config import Config, Memory
from .layer import Epilogue, Layer, Window, addends, biases, identity_elements

#: Axes by number: output channel blocks, rows, columns, input channel blocks.
AXES = ("co", "h", "w", "ci")
CHANNELS, ROWS, COLUMNS, REDUCED = range(4)
PHASES = ("loops", "steps", "chip")
LIMITS = Limits(nodes=400_000, iterations=16, seconds=30.0)


@dataclass(frozen=True)
class Space:
    """What rules may ask of layer, epilogue and accelerator."""

    layer: Layer
    config: Config
    epilogue: Epilogue = ()

    @property
    def extents(self) -> tuple[int, int, int, int]:
        """Of the axes; input channels are those of a group."""
        layer = self.layer
        return layer.outputs, layer.rows.outputs, layer.columns.outputs, layer.group_inputs

    @property
    def may_skip_rows(self) -> bool:
        rows = self.layer.rows
        return rows.taps == 1 and rows.pad == 0 and rows.stride > 1


@dataclass
class Block:
    """A block with symbolic extents, as a rule sees it; conditions accumulate as the rule asks."""

    space: Space
    phase: str
    slots: Size
    inputs: Size
    extents: tuple[Size, ...]
    facts: list[str] = field(default_factory=list)

    def require(self, *facts: str) -> None:
        self.facts.extend(facts)

    def size(self, axis: int) -> Size:
        """f for every useful size of tiles of the whole axis; the block must not have been cut along it."""
        self.require(self.extents[axis].equals(self.space.extents[axis]), f"(useful {axis} f)")
        return Size("f")

    def resized(self, axis: int, size: Size) -> Block:
        return replace(self, extents=tuple(size if k == axis else e for k, e in enumerate(self.extents)))

    def into(self, phase: str, slots: int | None = None, inputs: int | None = None) -> Block:
        new = replace(self, phase=phase)
        if slots is not None and inputs is not None:
            new = replace(new, slots=Size.of(slots), inputs=Size.of(inputs))
        return new

    def results(self) -> Size:
        """Accumulators of the block: results, biases, and of a maximum a copy of one element of each window."""
        o, y, x, _ = self.extents
        return o * (y * x * (2 if self.space.layer.kind == "max" else 1) + biases(self.space.epilogue))

    def window(self, channels: Size, skip: int = 0) -> Size:
        """Input elements of the block, with their padding, of so many input channels of each group."""
        o, y, x, _ = self.extents
        layer = self.space.layer
        groups = (o + (layer.group_outputs - 1)) // layer.group_outputs if layer.groups > 1 else Size.of(1)
        rows = replace(layer.rows, stride=1) if skip else layer.rows
        return groups * channels * _reach(rows, y) * _reach(layer.columns, x)

    def addends(self) -> Size:
        o, y, x, _ = self.extents
        return o * y * x * addends(self.space.epilogue)

    def weights(self, channels: Size) -> Size:
        return Size.of(1) if self.space.layer.uniform else self.extents[CHANNELS] * channels * self.space.layer.taps

    def fits(self, channels: Size, skip: int = 0) -> list[str]:
        """The block's data, as often as virtual threads need them, and so many input channels fit their buffers."""
        depth = self.space.config.depth
        inputs = self.window(channels, skip) * self.inputs + self.addends() * self.slots
        weights = self.weights(channels) * self.slots + len(identity_elements(self.space.epilogue))
        return [
            self.results() * self.slots <= depth(Memory.ACC),
            inputs <= depth(Memory.INP),
            weights <= depth(Memory.WGT),
        ]

    def whole_groups(self) -> str:
        """The block's output channels are whole groups, or equal parts of one."""
        o, group = self.extents[CHANNELS], self.space.layer.group_outputs
        return ((o % group) * (Size.of(group) % o)).equals(0)

    @property
    def text(self) -> str:
        parts = (self.slots, self.inputs, *self.extents)
        return f"(Block {PHASES.index(self.phase)} {' '.join(p.text for p in parts)})"


def _reach(window: Window, outputs: Size) -> Size:
    """`Window.reach` of a symbolic number of outputs."""
    return (outputs - 1) * window.stride + window.reach(1)


@dataclass(frozen=True)
class ScheduleRule:
    """A rule: what a block of a phase may be, for each of the `choices` that a layer admits."""

    name: str
    kind: str
    phase: str
    choices: Callable[[Space], Iterator[tuple[int, ...]]]
    make: Callable[..., str]

    def render(self, space: Space) -> EggRule:
        forms = [f"(ruleset {self.name})"]
        for choice in self.choices(space):
            block = Block(space, self.phase, Size("s"), Size("n"), tuple(Size(name) for name in "oyxc"))
            before, made = block.text, self.make(block, *choice)
            forms.append(f"(rule ((= b {before}) {' '.join(block.facts)}) ((union b {made})) :ruleset {self.name})")
        return EggRule(self.name, self.kind, self.name, "\n".join(forms))


RULES: list[ScheduleRule] = []


def _rule(kind: str, phase: str, choices: Callable[[Space], Iterator[tuple[int, ...]]]):
    def decorate(make: Callable[..., str]) -> Callable[..., str]:
        RULES.append(ScheduleRule(make.__name__, kind, phase, choices, make))
        return make

    return decorate


@_rule("tiling", "loops", lambda s: iter([(CHANNELS,), (ROWS,), (COLUMNS,)]))
def tile(b: Block, axis: int) -> str:
    """Block(e) -> For(a, f, Block(e with e_a := f)): all tile sizes, and in what order their loops stand"""
    f = b.size(axis)
    return f"(For {axis} {f.text} {b.resized(axis, f).text})"


@_rule("parallel", "loops", lambda s: iter([(0,), (1,)]))
def one_thread(b: Block, share: int) -> str:
    """Block(e) -> Threads(1, Block(e)); `share`: input tiles alternate between two places and stay while they can"""
    inner = b.into("steps", 1, 1 + share)
    b.require(*inner.fits(Size("1"), int(b.space.may_skip_rows)))
    return f"(Threads 1 0 {share} {inner.text})"


@_rule("parallel", "loops", lambda s: iter([(CHANNELS, 0), (CHANNELS, 1), (ROWS, 0)]))
def two_threads(b: Block, axis: int, share: int) -> str:
    """Block(e) -> Threads(2, a, Block(e with e_a := e_a / 2)): each thread has a half of every buffer"""
    e, whole = b.extents[axis], b.space.extents[axis]
    # An odd block can be halved only where it is the whole axis: then the second thread's tile is the smaller one.
    b.require(e > 1, ((e % 2) * (Size.of(whole) - e)).equals(0))
    inner = b.resized(axis, (e + 1) // 2).into("steps", 2, 2)
    if b.space.layer.groups > 1:
        b.require(inner.whole_groups())
    b.require(*inner.fits(Size("1"), int(b.space.may_skip_rows)))
    return f"(Threads 2 {axis} {share} {inner.text})"


@_rule("tiling", "steps", lambda s: iter([()]))
def reduce_in_steps(b: Block) -> str:
    """Block(e) -> For(ci, f, Block(e with e_ci := f)): the accumulators stay, input and weights come in steps"""
    f = b.size(REDUCED)
    b.require(*b.fits(f, int(b.space.may_skip_rows)))
    return f"(For {REDUCED} {f.text} {b.resized(REDUCED, f).into('chip').text})"


@_rule("tensorize", "chip", lambda s: iter([(0,), (1,)] if s.may_skip_rows else [(0,)]))
def compute(b: Block, skip: int) -> str:
    """Block(e) -> Tile(e): loads, then one GEMM instruction, where the data fit the buffers"""
    b.require(*b.fits(b.extents[REDUCED], skip))
    parts = (b.slots, b.inputs, Size.of(skip), *b.extents)
    return f"(Tile {' '.join(p.text for p in parts)})"


def useful(space: Space, axis: int) -> list[int]:
    """Sizes that cut an axis into equal parts, the last one possibly smaller: one size for each number of parts, and
    even ones for two threads. Channels of groups are cut into whole groups, and a group into divisors."""
    n, group = space.extents[axis], space.layer.group_outputs
    if axis == CHANNELS and space.layer.groups > 1:
        parts = {f for f in range(1, group) if group % f == 0}
        return sorted(parts | {group * f for f in _equal_parts(space.layer.groups, pairs=True) if group * f < n})
    whole = {n} if axis == REDUCED else set()
    return sorted({f for f in _equal_parts(n, pairs=axis in (CHANNELS, ROWS)) if f < n} | whole)


def _equal_parts(n: int, pairs: bool) -> set[int]:
    counts = range(1, n + 1)
    return {-(-n // t) for t in counts} | ({2 * -(-n // (2 * t)) for t in counts} if pairs else set())


DECLARATIONS = """
(sort N)
(constructor Block (i64 i64 i64 i64 i64 i64 i64) N)
(constructor For (i64 i64 N) N)
(constructor Threads (i64 i64 i64 N) N)
(constructor Tile (i64 i64 i64 i64 i64 i64 i64) N)
(relation useful (i64 i64))
"""
CONSTRUCTORS = ("For", "Threads", "Tile")


@dataclass(frozen=True)
class Node:
    """An e-node: its constructor, its numbers, and the e-class below it (-1: none)."""

    op: str
    numbers: tuple[int, ...]
    child: int


@dataclass(frozen=True)
class ScheduleEGraph:
    """The saturated e-graph: e-nodes by e-class, the class of the whole layer, and what saturation did."""

    space: Space
    nodes: dict[int, list[Node]]
    root: int
    report: SaturationReport

    def programs(self) -> int:
        """How many schedules it holds."""
        count: dict[int, int] = {}

        def of(c: int) -> int:
            if c not in count:
                count[c] = sum(1 if n.child < 0 else of(n.child) for n in self.nodes.get(c, ()))
            return count[c]

        return of(self.root)


def build(space: Space, rules: Sequence[ScheduleRule] = RULES, limits: Limits = LIMITS) -> ScheduleEGraph:
    """Saturate the schedules of a layer."""
    engine = Engine()
    rendered = [r.render(space) for r in rules]
    facts = "\n".join(f"(useful {axis} {f})" for axis in range(len(AXES)) for f in useful(space, axis))
    engine.run("\n".join([DECLARATIONS, *(r.text for r in rendered), facts]))
    engine.run(f"(let $root (Block 0 0 0 {' '.join(map(str, space.extents))}))")
    report = saturate(engine, [rendered], limits, counted=("Block", *CONSTRUCTORS))
    return _read_back(space, engine, report)


def _read_back(space: Space, engine: Engine, report: SaturationReport) -> ScheduleEGraph:
    tables = {name: f.rows for name, f in engine.egraph.freeze().functions.items()}
    classes: dict[object, int] = {}
    nodes: dict[int, list[Node]] = {}

    def number(v: object) -> int:
        return classes.setdefault(v, len(classes))

    root = number(tables["$root"][0].output)
    for op in CONSTRUCTORS:
        for row in tables[op]:
            inputs, child = list(row.inputs), -1
            if op != "Tile":
                child = number(inputs.pop())
            values = tuple(engine.egraph.value_to_i64(v) for v in inputs)
            nodes.setdefault(number(row.output), []).append(Node(op, values, child))
    return ScheduleEGraph(space, nodes, root, report)
