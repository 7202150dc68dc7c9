"""A network of integer kernels, compiled and run whole on the accelerator.

    compile_network   a graph -> its e-graph -> offers for the kernels -> extraction -> `Network`
    Network           streams for one DRAM, and what the CPU moves between them; call it to run the simulator

Extraction is that of the CPU (`extract/`): prices are the offers' lower bounds first, and the timing model's cycles for
the kernels of the best program, until it has none but those. Kernels that follow each other are one stream; a tensor
keeps its blocked layout where its reader sees it as its writer does, else the stream ends and the CPU packs it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..extract import EGraphBuilder, extract
from ..extract.choose import REPEATS, canonical_call
from ..extract.constants import constant_values
from ..ir.compose import is_map, reads_at, reads_once
from ..ir.errors import NesteggError, UnsupportedError
from ..ir.expr import Cast, Read, TensorExpr, walk
from ..ir.graph import Graph
from ..ir.index import Index
from ..ir.loops import lower
from ..ir.reference import fold
from ..ir.types import DTYPES, TensorType
from ..rewrite.fusion_rules import FUSION_RULES, FusionRule, KernelRule
from ..rewrite.graph_egraph import GraphEGraph, build
from ..rewrite.graph_rules import ALGEBRA
from ..rewrite.kernel import MAX_STAGE_INPUTS, Kernel
from ..rewrite.rule import GraphRule
from .choose import EFFORT, InMemory, Tilings
from .config import DEFAULT, Config, Memory
from .errors import ProgramError
from .functional import run
from .lower import CompiledKernel
from .offer import Offer, offer
from .program import Output, Program, Segment
from .recognise import Unsuitable, of_floats
from .runtime import Buffer, Builder, Dram
from .timing import SIM, Board, simulate
from .tokens import Queue
from .view import View

#: Cycles that it costs to end a stream, let the CPU pass over a tensor and start another: 0.2 ms at 100 MHz, the host's
#: part of published layer times (see `timing.BOARDS`).
HANDOVER = 20_000
#: Rounds of extraction and search.
ROUNDS = 20

Values = Mapping[int, NDArray[Any]]


def wide_prologue(consumer: Kernel, i: int, producer: Kernel) -> bool:
    """What has more bits than the accelerator stores is computed where it is read: by the ALU, or, of a narrow tensor
    that is added to sums, as a factor of GEMM's identity."""
    expr, inputs = consumer.expr, len(consumer.expr.inputs) + len(producer.expr.inputs) - 1
    wide = producer.expr.type.dtype == WIDE and inputs <= MAX_STAGE_INPUTS
    if not wide or i >= len(expr.inputs) or reads_at(expr, i) or not reads_once(expr, i):
        return False
    made = producer.expr.type
    if not is_map(expr) and any(t.dtype == WIDE and t.size == made.size for t in producer.expr.inputs):
        return False  # a sum of sums: an epilogue, if anything
    if _has_floats(expr) or _has_floats(producer.expr):
        return False
    return all(index.axes <= set(expr.axes) for r in expr.reads if r.input == i for index in r.index)


def _has_floats(expr: TensorExpr) -> bool:
    return any(DTYPES[s.dtype].kind == "float" for s in walk(expr.body))


#: The type of sums, which the accelerator does not store.
WIDE = "i32"
#: The accelerator's own rule of fusion.
WIDE_PROLOGUE = FusionRule("fuse_wide_prologue", wide_prologue, "any", "light")
#: The rules of the CPU's graphs that say what an operator is, and none about its layouts: those are the accelerator's.
RULES = (*ALGEBRA, *FUSION_RULES, WIDE_PROLOGUE)


def beside_the_cpu(rules: Iterable[GraphRule | KernelRule]) -> list[GraphRule | KernelRule]:
    """The CPU's rules for a graph of which the accelerator may compute a part, and the accelerator's own.

    Kernels that sum in integers end in integers: those that go on in floats, which multiply with every form that the
    CPU's kernels of floats have, are left out. The accelerator cannot run them, and a CPU is as fast in floats as with
    signed bytes (`vpdpbusd` wants one operand unsigned).
    """
    ends = {r.name for r in FUSION_RULES if r.producer in ("reducing", "reducing_unmoved")}
    return [WIDE_PROLOGUE, *(_in_integers(r) if isinstance(r, FusionRule) and r.name in ends else r for r in rules)]


def _in_integers(rule: FusionRule) -> FusionRule:
    def when(consumer: Kernel, i: int, producer: Kernel) -> bool:
        mixes = producer.expr.type.dtype == WIDE and _has_floats(consumer.expr)
        return not mixes and rule.when(consumer, i, producer)

    return replace(rule, when=when)


# --- which kernels -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to make the tensor of an e-class: by an offer, or (`offer` None) as another one in another shape or type,
    of which only a shape takes the CPU. `loss`: what its approximations cost (`GraphRule.loss`)."""

    owner: int
    args: tuple[int, ...]
    offer: Offer | None
    loss: float = 0.0


class _Choosing:
    """Extraction of a network from its e-graph. Reasons are kept for tensors that nothing makes."""

    def __init__(
        self, egraph: GraphEGraph, config: Config, board: Board, effort: int, tilings: Tilings | None = None
    ) -> None:
        self.egraph, self.config, self.board, self.effort = egraph, config, board, effort
        self.tilings = tilings or InMemory()
        self.reasons: dict[int, list[str]] = {}
        self.values = _constants(egraph)
        self.numbers = {c: v.flat[0].item() for c, v in self.values.items() if _is_number(egraph, c)}
        #: E-classes whose values fit the accelerator's inputs, whatever their type: it makes them, or could.
        self.narrow: set[int] = set()
        self.candidates = self._offered()

    def _offered(self) -> list[Candidate]:
        """What can be made, again and again until no tensor is found to be narrow that was not."""
        found: list[Candidate] = []
        todo = [(owner, *call) for owner in range(len(self.egraph.classes)) for call in self._calls(owner)]
        refused: list[tuple[int, TensorExpr, tuple[int, ...], float]] = []
        while todo:
            before = set(self.narrow)
            for call in todo:
                made = self._candidate(*call)
                if made is None:
                    refused.append(call)
                else:
                    found.append(made)
                    self.narrow.add(made.owner)
            # Only those can do better that read a tensor that has become narrow since.
            new = self.narrow - before
            todo = [call for call in refused if new.intersection(call[2])]
            refused = [call for call in refused if not new.intersection(call[2])]
        return found

    def _calls(self, owner: int) -> list[tuple[TensorExpr, tuple[int, ...], float]]:
        """The kernels of a tensor in integers, each once, with the least loss that any derivation of it has."""
        e = self.egraph.classes[owner]
        if e.const or e.input is not None:
            return []
        losses: dict[tuple[TensorExpr, tuple[int, ...]], float] = {}
        for call in e.calls:
            refusal = of_floats(call.kernel.expr)
            if refusal:
                self.reasons.setdefault(owner, []).append(refusal)
            elif owner not in call.args:
                key = canonical_call(call, self.numbers)
                losses[key] = min(call.kernel.loss, losses.get(key, call.kernel.loss))
        return [(*key, loss) for key, loss in losses.items()]

    def _candidate(self, owner: int, expr: TensorExpr, args: tuple[int, ...], loss: float) -> Candidate | None:
        if _is_reshape(expr) or (_is_conversion(expr) and self._is_narrow(args[0])):
            return Candidate(owner, args, None, loss) if self._is_narrow(args[0]) else None
        known = {k: self.values[a] for k, a in enumerate(args) if a in self.values}
        narrow = frozenset(k for k, a in enumerate(args) if a in self.narrow)
        made = offer(expr, known, self.config, self.board, self.effort, narrow, self.tilings)
        if made.reason:
            self.reasons.setdefault(owner, []).append(made.reason)
            return None
        return Candidate(owner, args, made, loss)

    def _is_narrow(self, number: int) -> bool:
        dtype = DTYPES[self.egraph.classes[number].type.dtype]
        return number in self.narrow or (dtype.kind == "int" and dtype.size * 8 <= max(8, self.config.inp_bits))

    def best(self) -> list[Candidate]:
        """The program with the fewest cycles, in order. Raises `Unsuitable` if there is none."""
        exact: dict[int, float] = {}
        chosen: list[int] = []
        for _ in range(ROUNDS):
            prices = {k: exact.get(k, self._bound(c)) for k, c in enumerate(self.candidates)}
            chosen = self._extract(prices)
            todo = [k for k in chosen if k not in exact]
            if not todo:
                break
            for k in todo:
                made = self.candidates[k].offer
                exact[k] = made.cycles if made is not None else prices[k]
        return self._ordered([self.candidates[k] for k in chosen])

    def _bound(self, c: Candidate) -> float:
        if c.offer is not None:
            return c.offer.bound
        same = self.egraph.classes[c.owner].type.shape == self.egraph.classes[c.args[0]].type.shape
        return 0.0 if same else HANDOVER

    def _extract(self, prices: Mapping[int, float]) -> list[int]:
        egraph, b = self.egraph, EGraphBuilder()
        for k, c in enumerate(self.candidates):
            if prices[k] < float("inf"):
                b.node(f"c{c.owner}", f"kernel{k}", prices[k], [f"c{a}" for a in c.args], str(k))
        made = {c.owner for k, c in enumerate(self.candidates) if prices[k] < float("inf")}
        for a in {a for c in self.candidates for a in c.args} | set(egraph.outputs):
            e = egraph.classes[a]
            if e.const or e.input is not None:
                b.node(f"c{a}", "leaf", 0.0, [], "leaf")
            elif a not in made:
                b.node(f"c{a}", "none", 1e15, [], f"none {a}")
        for o in dict.fromkeys(egraph.outputs):
            b.root(f"c{o}")
        flat = b.build()
        names = [flat.node_name[n] for n in extract(flat, "ilp", 10.0).choice if n >= 0]
        missing = [int(name.split()[1]) for name in names if name.startswith("none")]
        if missing:
            raise Unsuitable(self._explain(missing[0]))
        return [int(name) for name in names if name != "leaf"]

    def _explain(self, owner: int) -> str:
        found = [c.offer.why_not for c in self.candidates if c.owner == owner and c.offer is not None]
        reasons = list(dict.fromkeys([*filter(None, found), *self.reasons.get(owner, [])])) or ["no kernel makes it"]
        return f"nothing on {self.config.name} makes the tensor {self.egraph.classes[owner].type}: {'; '.join(reasons)}"

    def _ordered(self, chosen: Sequence[Candidate]) -> list[Candidate]:
        makes, found = {c.owner: c for c in chosen}, {}

        def visit(owner: int) -> None:
            if owner in makes and owner not in found:
                for a in makes[owner].args:
                    visit(a)
                found[owner] = makes[owner]

        for o in self.egraph.outputs:
            visit(o)
        return list(found.values())


def _is_number(egraph: GraphEGraph, number: int) -> bool:
    """A constant that is one number, or one repeated; not weights that happen to be equal."""
    e = egraph.classes[number]
    repeats = [n.args[0] for n in e.ops if n.op in REPEATS]
    return e.type.size == 1 or any(egraph.classes[a].type.size == 1 for a in repeats)


def _is_reshape(expr: TensorExpr) -> bool:
    try:
        return lower(expr).is_alias
    except UnsupportedError:
        return False


def _is_conversion(expr: TensorExpr) -> bool:
    """Each element of a tensor in a wider integer type: on the accelerator, the tensor itself."""
    s = expr.body
    if not (isinstance(s, Cast) and isinstance(s.arg, Read) and len(expr.inputs) == 1):
        return False
    kinds = {DTYPES[d].kind for d in (s.dtype, s.arg.dtype)}
    wider = DTYPES[s.dtype].size >= DTYPES[s.arg.dtype].size
    return kinds == {"int"} and wider and s.arg.index == tuple(map(Index.of, expr.axes))


def _constants(egraph: GraphEGraph) -> dict[int, NDArray[Any]]:
    """The arrays of the tensors of integers that are known and that kernels read."""
    known = {k for k, e in enumerate(egraph.classes) if e.const and DTYPES[e.type.dtype].kind != "float"}
    wanted = known & {a for e in egraph.classes for call in e.calls for a in call.args}
    return constant_values(egraph, sorted(wanted), fold)


# --- the compiled network ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A kernel of the network, with the tensors (e-classes) that it reads and makes."""

    kernel: CompiledKernel
    args: tuple[int, ...]
    result: int


@dataclass(frozen=True, eq=False)
class Transfer:
    """The CPU writes a tensor into a buffer, as activations or as weights."""

    tensor: int
    buffers: tuple[Buffer, ...]
    pack: Callable[[NDArray[Any]], list[bytes]]


@dataclass(frozen=True)
class _Home:
    """Where a tensor lies in DRAM."""

    buffer: Buffer
    view: View


@dataclass(frozen=True, eq=False)
class Network:
    """A compiled network: `actions` are streams (each a `Program` of the common DRAM) and transfers between them.

    Call it with the inputs to run the functional simulator; results are those of the graph, bit by bit.
    """

    config: Config
    board: Board
    steps: tuple[Step, ...]
    actions: tuple[Program | Transfer, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    types: Mapping[int, TensorType]
    homes: Mapping[int, _Home]
    shapes_of: Mapping[int, int] = field(default_factory=dict)

    @property
    def programs(self) -> tuple[Program, ...]:
        return tuple(a for a in self.actions if isinstance(a, Program))

    @cached_property
    def cycles(self) -> int:
        """Cycles of all streams by the timing model; the CPU's work between them is not counted."""
        return sum(simulate(p.stream, self.config, self.board).cycles for p in self.programs)

    @property
    def utilisation(self) -> float:
        """The share of the cycles in which the multipliers work on sums of products or windows."""
        return sum(p.layer.macs for s in self.steps for p in s.kernel.parts) / self.cycles

    def __call__(self, *inputs: ArrayLike) -> list[NDArray[Any]]:
        """The outputs. Raises `ProgramError` if inputs are wrong in number, shape or range."""
        return self._execute(inputs)[0]

    def _execute(self, inputs: Sequence[ArrayLike]) -> tuple[list[NDArray[Any]], list[Program]]:
        """The outputs, and every stream with the data that it found in DRAM and what it left in the outputs' place."""
        given = self._given(inputs)
        dram, bound = self.programs[0].image(), []
        for action in self.actions:
            if isinstance(action, Program):
                before = with_data(action, dram)
                dram = run(action, before=dram).dram
                bound.append(replace(before, outputs=tuple(recorded(o, dram) for o in before.outputs)))
            else:
                packed = action.pack(self._tensor(action.tensor, dram, given))
                for buffer, data in zip(action.buffers, packed, strict=True):
                    dram[buffer.address : buffer.address + len(data)] = np.frombuffer(data, np.uint8)
        return [self._tensor(o, dram, given) for o in self.outputs], bound

    def _given(self, inputs: Sequence[ArrayLike]) -> dict[int, NDArray[Any]]:
        arrays = [np.asarray(x) for x in inputs]
        wanted = [self.types[i] for i in self.inputs]
        if [a.shape for a in arrays] != [t.shape for t in wanted] or any(a.dtype.kind not in "iu" for a in arrays):
            found = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
            raise ProgramError(f"inputs {found}: the network takes {', '.join(map(str, wanted))}")
        return dict(zip(self.inputs, arrays, strict=True))

    def _tensor(self, number: int, dram: NDArray[np.uint8], given: Values) -> NDArray[Any]:
        type_, source = self.types[number], number
        while source in self.shapes_of:
            source = self.shapes_of[source]
        if source in given:
            return given[source].reshape(type_.shape)
        home = self.homes[source]
        raw = dram[home.buffer.address : home.buffer.address + home.buffer.size]
        return home.view.unpack(raw, self.config).astype(DTYPES[type_.dtype].numpy).reshape(type_.shape)

    def report(self) -> dict[str, Any]:
        """Cycles and utilisation in all and of each kernel, and what the CPU does in between."""
        rows = [
            {
                "result": _summary(s.kernel),
                "kernel": str(s.kernel.expr),
                "layouts": s.kernel.layouts,
                **s.kernel.report(),
            }
            for s in self.steps
        ]
        return {
            "config": self.config.name,
            "cycles": self.cycles,
            "utilisation": self.utilisation,
            "streams": len(self.programs),
            "packed_by_the_cpu": [str(self.types[a.tensor]) for a in self.actions if isinstance(a, Transfer)],
            "kernels": rows,
        }

    def dump(self, folder: Path, *inputs: ArrayLike) -> list[NDArray[Any]]:
        """Write every stream with its data, so that it can be run on any other VTA; returns the outputs.

        A stream is a folder of `insns.bin`, `uops.bin`, `dram.bin`, `meta.json` (`program.py`), `folder` itself if it
        is the only one. Outputs have the digest of what they should hold, and `layouts.json` says how tensors lie.
        """
        results, programs = self._execute(inputs)
        names = [""] if len(programs) == 1 else [f"{k:02d}" for k in range(len(programs))]
        for name, program in zip(names, programs, strict=True):
            program.save(folder / name)
        described = {
            "config": self.config.name,
            "streams": names,
            "tensors": [self._described(t) for t in (*self.inputs, *(s.result for s in self.steps)) if t in self.homes],
            "outputs": [
                {"type": str(self.types[o]), "values": r.tolist()} for o, r in zip(self.outputs, results, strict=True)
            ],
        }
        (folder / "layouts.json").write_text(json.dumps(described, indent=1) + "\n")
        return results

    def _described(self, tensor: int) -> dict[str, Any]:
        home = self.homes[tensor]
        roles = {name: list(getattr(home.view, name)) for name in ("image", "channel", "row", "column")}
        return {
            "tensor": tensor,
            "type": str(self.types[tensor]),
            "address": home.buffer.address,
            "layout": home.view.describe(self.config),
            "dimensions": roles,
            "role": "output" if tensor in self.outputs else "input" if tensor in self.inputs else "between",
        }


def _summary(kernel: CompiledKernel) -> str:
    """A kernel in a few words: what it makes, by windows of what size, over which channels."""
    work, shape = kernel.work, "x".join(map(str, kernel.expr.type.shape))
    over = "" if work.weights is None else f" over {work.source[1].sizes[1] // work.groups} channels"
    window = f"{work.rows.taps}x{work.columns.taps}"
    return f"{kernel.expr.type.dtype}[{shape}] = {work.kind} of {window}{over}"


def with_data(program: Program, dram: NDArray[np.uint8]) -> Program:
    """The program with what DRAM holds in the place of its data."""
    data = tuple(Segment(s.address, dram[s.address : s.address + len(s.data)].tobytes()) for s in program.data)
    return replace(program, data=data)


def recorded(output: Output, dram: NDArray[np.uint8]) -> Output:
    """The output with the digest of what DRAM holds in its place."""
    held = dram[output.address : output.address + output.size].tobytes()
    return output._replace(sha256=hashlib.sha256(held).hexdigest())


# --- streams -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stream:
    """A stream that is not closed yet: closing one places its code behind all data."""

    builder: Builder
    waiting: list[Queue]
    results: list[Buffer]


class _Linking:
    """Kernels in order to streams over one DRAM."""

    def __init__(self, choosing: _Choosing, order: Sequence[Candidate]) -> None:
        self.config, self.board, self.order = choosing.config, choosing.board, order
        self.egraph, self.known = choosing.egraph, choosing.values
        self.dram = Dram()
        self.actions: list[_Stream | Transfer] = []
        self.steps: list[Step] = []
        self.homes: dict[int, _Home] = {}
        self.copies: list[tuple[int, _Home]] = []
        self.shapes_of: dict[int, int] = {}
        self.builder = Builder(self.config, self.dram)
        self.waiting: list[Queue] | None = None  # None: the stream has nothing yet
        self.written: set[int] = set()  # by the stream that is being built
        self.results: list[Buffer] = []

    def network(self) -> Network:
        for c in self.order:
            if c.offer is None:
                self.shapes_of[c.owner] = c.args[0]
            else:
                self._kernel(c, c.offer)
        self._end_stream()
        types = {k: e.type for k, e in enumerate(self.egraph.classes)}
        inputs = sorted((e.input, k) for k, e in enumerate(self.egraph.classes) if e.input is not None)
        closed = [a.builder.finish(a.results, a.waiting) if isinstance(a, _Stream) else a for a in self.actions]
        size = max(p.dram_bytes for p in closed if isinstance(p, Program))
        actions = tuple(replace(a, dram_bytes=size) if isinstance(a, Program) else a for a in closed)
        return Network(
            *(self.config, self.board, tuple(self.steps), actions, tuple(k for _, k in inputs), self.egraph.outputs),
            *(types, self.homes, self.shapes_of),
        )

    def _kernel(self, c: Candidate, made: Offer) -> None:
        kernel = made.kernel
        assert kernel is not None, "extraction has the cycles of every kernel that it chose"
        views = dict([kernel.work.source, *kernel.work.addends.items()])
        activations = {k: self._activation(c.args[k], view) for k, view in views.items()}
        weights = self._packed_weights(c, kernel)
        size = kernel.work.result.elements(self.config) * self.config.element_bytes(Memory.OUT)
        results = self.dram.holding(f"t{c.owner}", bytes(size))
        buffers = kernel.allocate(self.dram, f"t{c.owner}", activations, results)
        if weights is not None:
            self._transfer(weights[0], tuple(b.weights for b in buffers), weights[1])
        if self.waiting is not None:
            self.builder.drain(self.waiting)
        self.waiting = kernel.emit(self.builder, buffers)
        self.homes[c.owner] = _Home(results, kernel.work.result)
        self.written.add(c.owner)
        self.results.append(results)
        self.steps.append(Step(kernel, c.args, c.owner))

    def _packed_weights(self, c: Candidate, kernel: CompiledKernel) -> tuple[int, Callable[..., list[bytes]]] | None:
        """The tensor that has to be packed as weights when the network runs, and how."""
        w = kernel.work.weights
        if w is None or w.operand is None or w.operand in kernel.constants:
            return None
        return c.args[w.operand], kernel.weights

    def _activation(self, tensor: int, view: View) -> Buffer:
        """The buffer in which a tensor lies as a kernel sees it; the CPU packs it if there is none."""
        tensor = self._same_shape(tensor)
        homes = [self.homes[tensor]] if tensor in self.homes else []
        homes += [home for t, home in self.copies if t == tensor]
        for home in homes:
            if home.view.same(view):
                return home.buffer
        size = view.elements(self.config) * self.config.element_bytes(Memory.INP)
        buffer = self.dram.holding(f"t{tensor} packed", bytes(size))
        self._transfer(tensor, (buffer,), lambda x: [view.pack(x, self.config)])
        self.copies.append((tensor, _Home(buffer, view)))
        if self.egraph.classes[tensor].input is not None:
            self.homes.setdefault(tensor, _Home(buffer, view))
        return buffer

    def _same_shape(self, tensor: int) -> int:
        """The tensor of which this is another type."""
        types = self.egraph.classes
        while tensor in self.shapes_of and types[self.shapes_of[tensor]].type.shape == types[tensor].type.shape:
            tensor = self.shapes_of[tensor]
        return tensor

    def _transfer(self, tensor: int, buffers: tuple[Buffer, ...], pack: Callable[..., list[bytes]]) -> None:
        source = tensor
        while source in self.shapes_of:
            source = self.shapes_of[source]
        transfer = Transfer(tensor, buffers, pack)
        if source in self.written:  # else what it reads is there before the stream begins
            self._end_stream()
        self.actions.append(transfer)

    def _end_stream(self) -> None:
        if self.waiting is not None:
            self.actions.append(_Stream(self.builder, self.waiting, self.results))
        self.builder, self.waiting, self.written, self.results = Builder(self.config, self.dram), None, set(), []


def compile_network(
    graph: Graph, config: Config = DEFAULT, board: Board = SIM, effort: int = EFFORT, tilings: Tilings | None = None
) -> Network:
    """Compile a graph of integer operators (what quantization makes) for the accelerator, all of it.

    `effort`: programs that are built and timed for each layer; `tilings`: schedules that were found before. Raises
    `Unsuitable`, naming a tensor and the reasons, if one cannot be made there, `ProgramError` if a layer does not fit
    the accelerator's buffers.
    """
    return compile_egraph(network_egraph(graph), config, board, effort, tilings)


def offers(
    egraph: GraphEGraph,
    config: Config = DEFAULT,
    board: Board = SIM,
    effort: int = EFFORT,
    tilings: Tilings | None = None,
) -> list[Candidate]:
    """What the accelerator can make of an e-graph's tensors, and of which others: what a partition chooses from.
    Schedules are not searched yet; `tilings`: those that were found before."""
    return _Choosing(egraph, config, board, effort, tilings).candidates


def network_egraph(graph: Graph) -> GraphEGraph:
    """The kernels that a graph may be made of, the same for every configuration."""
    return build(graph, RULES)


def compile_egraph(
    egraph: GraphEGraph, config: Config, board: Board = SIM, effort: int = EFFORT, tilings: Tilings | None = None
) -> Network:
    """As `compile_network`, of a graph whose e-graph is there."""
    choosing = _Choosing(egraph, config, board, effort, tilings)
    order = choosing.best()
    if not any(c.offer is not None for c in order):
        raise NesteggError("the graph computes nothing: its outputs are inputs or constants")
    return _Linking(choosing, order).network()
