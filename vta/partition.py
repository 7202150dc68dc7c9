"""Which kernels run on the CPU and which on the accelerator: by extraction, with the price of moving tensors.

Each tensor (e-class) is in the extraction's graph once on the CPU and, on the accelerator, once for each layout in
which a kernel reads or writes it (`Place`). Kernels make a tensor from others on their own side; a transfer makes it
from itself on the other side. Outputs are wanted on the CPU. Prices are seconds: what the cost model says of the CPU's
kernels, cycles at the board's clock for the accelerator's, bytes and a synchronisation for a transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

from ..extract import EGraphBuilder, extract
from ..extract.choose import (
    CALL_OVERHEAD,
    EXACT_ROUNDS,
    GREEDY_ROUNDS,
    Candidate,
    KernelCosts,
    Step,
    kernel_candidates,
    loss_budgets,
    undominated,
)
from ..extract.constants import constant_values
from ..extract.result import Extraction
from ..ir.errors import NesteggError, UnsupportedError
from ..ir.nest import Nest
from ..ir.reference import fold
from ..rewrite.graph_egraph import GraphEGraph
from .choose import EFFORT, Tilings
from .config import DEFAULT, Config, Memory
from .network import HANDOVER, offers
from .network import Candidate as Offered
from .offer import Offer, offer
from .timing import BEAT_BYTES, SIM, Board
from .view import View

#: Clock, in megahertz, that `network.HANDOVER` counts cycles of.
HANDOVER_MHZ = 100.0


class Link(NamedTuple):
    """What a transfer of a tensor costs: bytes at `bandwidth` (bytes a second), and `latency` (seconds) to synchronise.
    """

    bandwidth: float
    latency: float

    @staticmethod
    def of(board: Board) -> Link:
        """The link of a board whose CPU and accelerator share DRAM, as those that VTA was published for do.

        Bandwidth: the accelerator's own DRAM port, a beat of 8 bytes every `gap` cycles. Latency: half of
        `network.HANDOVER` (0.2 ms there and back, the host's part of published layer times), which is the host's and
        does not depend on the accelerator's clock.
        """
        return Link(BEAT_BYTES * board.mhz * 1e6 / board.gap, HANDOVER / 2 / (HANDOVER_MHZ * 1e6))

    def seconds(self, size: int) -> float:
        return self.latency + size / self.bandwidth


@dataclass(frozen=True)
class Accelerator:
    """The accelerator to compile for: its configuration, its board (clock and memory), how the CPU reaches it (by
    default `Link.of(board)`), and the programs that are built and timed for each of its kernels.

    host: how many times slower than this machine the CPU beside the accelerator is. What the CPU's kernels are
    predicted to take here is multiplied by it.
    """

    config: Config = DEFAULT
    board: Board = SIM
    link: Link | None = None
    effort: int = EFFORT
    host: float = 1.0

    @property
    def transfers(self) -> Link:
        return self.link or Link.of(self.board)


@dataclass(frozen=True)
class Place:
    """A tensor in the accelerator's DRAM, in a layout (canonical, see `View.canonical`)."""

    tensor: int
    view: View


#: What an e-node of the extraction's graph makes and reads: a tensor on the CPU, or one on the accelerator.
Side: TypeAlias = int | Place


@dataclass(frozen=True, eq=False)
class CpuKernel:
    candidate: Candidate

    @property
    def makes(self) -> Side:
        return self.candidate.owner

    @property
    def reads(self) -> tuple[Side, ...]:
        return self.candidate.args

    @property
    def loss(self) -> float:
        return self.candidate.loss


@dataclass(frozen=True, eq=False)
class VtaKernel:
    """A kernel of the accelerator; `weights` is the tensor, if it is not known before, that the CPU packs for it."""

    owner: int
    args: tuple[int, ...]
    offer: Offer
    loss: float

    @property
    def makes(self) -> Place:
        assert self.offer.work is not None
        return Place(self.owner, self.offer.work.result.canonical)

    @cached_property
    def places(self) -> dict[int, Place]:
        """Where the operands that are activations lie, by their numbers."""
        assert self.offer.work is not None
        views = dict([self.offer.work.source, *self.offer.work.addends.items()])
        return {k: Place(self.args[k], view.canonical) for k, view in views.items()}

    @property
    def weights(self) -> int | None:
        assert self.offer.work is not None
        w = self.offer.work.weights
        unknown = w is not None and w.operand is not None and w.operand not in self.offer.constants
        return self.args[w.operand] if unknown and w is not None and w.operand is not None else None

    @property
    def reads(self) -> tuple[Side, ...]:
        return (*self.places.values(), *(() if self.weights is None else (self.weights,)))


@dataclass(frozen=True)
class Send:
    """The CPU packs a tensor into the accelerator's DRAM."""

    makes: Place
    loss: float = 0.0

    @property
    def reads(self) -> tuple[Side, ...]:
        return (self.makes.tensor,)


@dataclass(frozen=True)
class Fetch:
    """The CPU unpacks a tensor from the accelerator's DRAM."""

    place: Place
    loss: float = 0.0

    @property
    def makes(self) -> Side:
        return self.place.tensor

    @property
    def reads(self) -> tuple[Side, ...]:
        return (self.place,)


@dataclass(frozen=True)
class Widened:
    """A tensor in a wider type: where the accelerator has it, it is the tensor itself."""

    makes: Place
    place: Place
    loss: float = 0.0

    @property
    def reads(self) -> tuple[Side, ...]:
        return (self.place,)


Action: TypeAlias = CpuKernel | VtaKernel | Send | Fetch | Widened


@dataclass(frozen=True)
class Price:
    """Seconds of a kernel; not `exact` if they are a lower bound, since no better program could have used it."""

    seconds: float
    exact: bool

    def __str__(self) -> str:
        return f"{'' if self.exact else 'at least '}{self.seconds * 1e6:.2f} us"


@dataclass(frozen=True)
class Reason:
    """Why a kernel is where it is: its price on both sides, or None where `why_not` says that a side cannot run it."""

    cpu: Price | None
    vta: Price | None
    why_not: str = ""

    def text(self, on_vta: bool) -> str:
        here, there = (self.vta, self.cpu) if on_vta else (self.cpu, self.vta)
        name, other = ("VTA", "the CPU") if on_vta else ("the CPU", "VTA")
        if there is None:
            return f"{here} on {name}; {other} cannot: {self.why_not}"
        assert here is not None
        moves = "" if here.seconds <= there.seconds else "; transfers and what is next to it decide"
        return f"{here} on {name}, {there} on {other}{moves}"


@dataclass(frozen=True, eq=False)
class Partition:
    """The chosen program: `actions` in an order that makes what is read first.

    `prices`: seconds of every action, that of weights which the CPU packs for a kernel (`packing`) not in the kernel's.
    `nests`: loop nests of the CPU's kernels by `Candidate.number` (an alias has
    none). `reasons`: of the kernels, by the action. `loss`: as in `GraphChoice`.
    """

    actions: tuple[Action, ...]
    prices: Mapping[Action, float]
    packing: Mapping[VtaKernel, float]
    nests: Mapping[int, tuple[Nest, float]]
    reasons: Mapping[Action, Reason]
    extraction: Extraction
    loss: float

    def steps(self, actions: Iterable[Action]) -> list[Step]:
        """The CPU's kernels among actions, as the CPU's compiler takes them."""
        found = [a.candidate for a in actions if isinstance(a, CpuKernel)]
        return [Step(c.kernel, c.args, c.owner, *(self.nests.get(c.number) or (None, 0.0))) for c in found]

    def phases(self, known: Iterable[int]) -> list[list[Action]]:
        """The actions in turns of the CPU and of the accelerator, the CPU first (its turn may be empty), each as long
        as it can be. `known`: inputs and constants."""
        ready: set[Side] = set(known)
        waiting, found, on_vta = list(self.actions), [], False
        while waiting:
            turn: list[Action] = []
            for a in waiting:  # in order, so what a later one reads has been made
                if isinstance(a, (VtaKernel, Widened)) == on_vta and ready.issuperset(a.reads):
                    turn.append(a)
                    ready.add(a.makes)
            waiting = [a for a in waiting if a not in turn]
            found.append(turn)
            on_vta = not on_vta
        return found


def partition(
    egraph: GraphEGraph,
    costs: KernelCosts,
    accelerator: Accelerator,
    *,
    method: str = "ilp",
    time_limit: float = 10.0,
    budget: float | None = None,
    tilings: Tilings | None = None,
) -> Partition:
    """Extract the program with the least predicted time on both machines together, whose kernels' losses sum to at most
    `budget` if one is given. Nothing overlaps: while one side works or a tensor moves, the other waits. `time_limit`:
    seconds for all rounds of exact extraction together. `tilings`: the accelerator's schedules that were found before.

    Raises `UnsupportedError` if an output cannot be computed.
    """
    return _Partitioning(egraph, costs, accelerator, method, time_limit, budget, tilings).best()


@dataclass(eq=False)
class _Partitioning:
    egraph: GraphEGraph
    costs: KernelCosts
    accelerator: Accelerator
    method: str
    time_limit: float
    budget: float | None
    tilings: Tilings | None = None
    nests: dict[int, tuple[Nest, float]] = field(default_factory=dict)
    cpu_seconds: dict[int, float] = field(default_factory=dict)
    unusable: set[int] = field(default_factory=set)
    timed: set[VtaKernel] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.cpu = kernel_candidates(self.egraph, self.costs)
        host = self.accelerator.host
        self.cpu_seconds = {c.number: c.least * host for c in self.cpu}
        vta = self.accelerator
        made = offers(self.egraph, vta.config, vta.board, vta.effort, self.tilings)
        self.vta = [VtaKernel(c.owner, c.args, c.offer, c.loss) for c in made if c.offer is not None]
        self.others = self._widened([c for c in made if c.offer is None])
        self.others += self._transfers()

    def _widened(self, made: Sequence[Offered]) -> list[Action]:
        """Conversions on the accelerator, in every layout in which their result is read there. Other shapes are left to
        the CPU."""
        classes = self.egraph.classes
        same = [c for c in made if classes[c.owner].type.shape == classes[c.args[0]].type.shape]
        wanted = {p for k in self.vta for p in k.places.values()}
        found: dict[tuple[Place, Place], Action] = {}
        while True:
            new = {
                (place, Place(c.args[0], place.view)): Widened(place, Place(c.args[0], place.view), c.loss)
                for c in same
                for place in wanted
                if place.tensor == c.owner
            }
            if new.keys() <= found.keys():
                return list(found.values())
            found |= new
            wanted |= {of for _, of in new}

    def _transfers(self) -> list[Action]:
        widened = [w for w in self.others if isinstance(w, Widened)]
        read = {p for k in self.vta for p in k.places.values()} | {w.place for w in widened}
        made = {k.makes for k in self.vta} | {w.makes for w in widened}
        sends = [Send(p) for p in sorted(read, key=_place_order)]
        return [*sends, *(Fetch(p) for p in sorted(made, key=_place_order))]

    # --- prices -----------------------------------------------------------------------------------

    def price(self, a: Action) -> float:
        link, config = self.accelerator.transfers, self.accelerator.config
        if isinstance(a, CpuKernel):
            called = 0.0 if a.candidate.alias else CALL_OVERHEAD * self.accelerator.host
            return self.cpu_seconds[a.candidate.number] + called
        if isinstance(a, VtaKernel):
            return self._vta_seconds(a) + self._packing(a)
        if isinstance(a, Widened):
            return 0.0
        place = a.makes if isinstance(a, Send) else a.place
        return link.seconds(place.view.elements(config) * config.element_bytes(Memory.INP))

    def _packing(self, a: VtaKernel) -> float:
        if a.weights is None:
            return 0.0
        return self.accelerator.transfers.seconds(self.egraph.classes[a.weights].type.nbytes)

    def _vta_seconds(self, a: VtaKernel) -> float:
        return a.offer.seconds if a in self.timed else a.offer.bound / self.accelerator.board.mhz / 1e6

    def _search(self, chosen: Sequence[Action]) -> bool:
        """Replace lower bounds of chosen kernels by prices; whether there were any."""
        todo = {
            a.candidate.number: a.candidate.kernel
            for a in chosen
            if isinstance(a, CpuKernel) and not a.candidate.alias and a.candidate.number not in self.nests
        }
        for n, found in zip(todo, self.costs.search(list(todo.values())), strict=True):
            if found is None:
                self.unusable.add(n)
            else:
                self.nests[n], self.cpu_seconds[n] = found, found[1] * self.accelerator.host
        untimed = [a for a in chosen if isinstance(a, VtaKernel) and a not in self.timed]
        self.timed.update(untimed)
        return bool(todo or untimed)

    # --- extraction -------------------------------------------------------------------------------

    def best(self) -> Partition:
        self._settle("greedy", GREEDY_ROUNDS)
        extraction, chosen, settled = self._settle(self.method, EXACT_ROUNDS)
        if not settled:  # the best program of the kernels searched so far
            extraction, chosen = self._extract(self.method, known=True)
        reasons = {a: self._reason(a) for a in chosen if _is_kernel(a)}
        packing = {a: self._packing(a) for a in chosen if isinstance(a, VtaKernel) and a.weights is not None}
        prices = {a: self._vta_seconds(a) if isinstance(a, VtaKernel) else self.price(a) for a in chosen}
        loss = sum(a.loss for a in chosen)
        actions = tuple(_ordered(chosen, self.egraph))
        return Partition(actions, prices, packing, self.nests, reasons, extraction, loss)

    def _settle(self, method: str, rounds: int) -> tuple[Extraction, list[Action], bool]:
        while True:
            extraction, chosen = self._extract(method)
            rounds -= 1
            searched = self._search(chosen)
            if not searched or not rounds:
                return extraction, chosen, not searched

    def _actions(self, known: bool) -> list[Action]:
        """All that may be chosen; if `known`, only what has its true price."""
        usable = [c for c in self.cpu if c.number not in self.unusable]
        vta = [k for k in self.vta if self.price(k) < float("inf")]
        if known:
            usable = [c for c in usable if c.alias or c.number in self.nests]
            vta = [k for k in vta if k in self.timed]
        return [*(CpuKernel(c) for _, c in undominated(usable, self.cpu_seconds)), *vta, *self.others]

    def _extract(self, method: str, known: bool = False) -> tuple[Extraction, list[Action]]:
        b, actions = EGraphBuilder(), self._actions(known)
        sides: dict[Side, str] = {}

        def name(side: Side) -> str:
            return sides.setdefault(side, f"{'vta' if isinstance(side, Place) else 'cpu'}{len(sides)}")

        for k, a in enumerate(actions):
            b.node(name(a.makes), f"{type(a).__name__}{k}", self.price(a) * 1e6, [name(s) for s in a.reads], str(k))
        losses, made = [a.loss for a in actions], {a.makes for a in actions}
        for side in dict.fromkeys([*(s for a in actions for s in a.reads), *self.egraph.outputs]):
            leaf = not isinstance(side, Place) and _is_leaf(self.egraph, side)
            if leaf or side not in made:
                kind = "leaf" if leaf else "unsupported"
                b.node(name(side), kind, 0.0 if leaf else 1e12, [], kind)
                losses.append(0.0)
        for o in dict.fromkeys(self.egraph.outputs):
            b.root(name(o))
        flat = b.build()
        result = extract(flat, method, self._limit(method), loss_budgets(losses, self.budget))
        names = [flat.node_name[n] for n in result.choice if n >= 0]
        if "unsupported" in names:
            raise UnsupportedError("no kernel computes one of the tensors of this graph; see `graph` for its operators")
        return result, [actions[int(n)] for n in names if n != "leaf"]

    def _limit(self, method: str) -> float:
        """Seconds for a round: an exact one gets half of what is left."""
        if method != "greedy":
            self.time_limit /= 2
        return self.time_limit

    # --- reasons ----------------------------------------------------------------------------------

    def _reason(self, a: Action) -> Reason:
        """The same kernel's prices on both sides: kernels are the same if they make a tensor of the same others."""
        if isinstance(a, VtaKernel):
            usable = [c for c in self.cpu if c.number not in self.unusable]
            twins = [c for c in usable if self._same(c.owner, c.args, a.owner, a.args)]
            cheapest = min(twins, key=lambda c: self.cpu_seconds[c.number], default=None)
            cpu = None if cheapest is None else Price(self.cpu_seconds[cheapest.number], cheapest.number in self.nests)
            return Reason(cpu, Price(self._vta_seconds(a), True), "" if cpu else "no CPU kernel does the same alone")
        assert isinstance(a, CpuKernel)
        c = a.candidate
        here = Price(self.cpu_seconds[c.number], True)
        found = [k for k in self.vta if self._same(c.owner, c.args, k.owner, k.args)]
        possible = [k for k in found if self.price(k) < float("inf")]
        if possible:
            best = min(possible, key=self._vta_seconds)
            return Reason(here, Price(self._vta_seconds(best), best in self.timed))
        return Reason(here, None, found[0].offer.why_not if found else self._refusal(c))

    def _refusal(self, c: Candidate) -> str:
        known = [k for k, a in enumerate(c.args) if self.egraph.classes[a].const]
        values = constant_values(self.egraph, [c.args[k] for k in known], fold)
        made = offer(c.expr, {k: values[c.args[k]] for k in known}, self.accelerator.config)
        return made.reason or "its operands are not known to fit VTA's inputs"

    def _same(self, owner: int, args: Sequence[int], other: int, others: Sequence[int]) -> bool:
        if owner != other:
            return False
        one, two = ({a for a in x if not self.egraph.classes[a].const} for x in (args, others))
        return one == two


def _is_kernel(a: Action) -> bool:
    return isinstance(a, VtaKernel) or (isinstance(a, CpuKernel) and not a.candidate.alias)


def _is_leaf(egraph: GraphEGraph, number: int) -> bool:
    e = egraph.classes[number]
    return e.const or e.input is not None


def _place_order(p: Place) -> tuple[int, str]:
    return p.tensor, repr(p.view)


def _ordered(chosen: Sequence[Action], egraph: GraphEGraph) -> list[Action]:
    """Topological order, depth first from the outputs."""
    makes = {a.makes: a for a in chosen}
    done: dict[Side, Action] = {}
    open_sides: set[Side] = set()

    def visit(side: Side) -> None:
        a = makes.get(side)
        if a is None or side in done:
            return
        if side in open_sides:
            raise NesteggError("extraction chose a program whose tensors need each other")
        open_sides.add(side)
        for s in a.reads:
            visit(s)
        done[side] = a

    for o in egraph.outputs:
        visit(o)
    return list(done.values())
