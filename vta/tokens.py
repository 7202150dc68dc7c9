"""The three units' command queues and the four token queues: who waits for whom, in a program's own order.

Nothing here knows time. Tokens carry no data and queues are counters, so the k-th pop of a queue waits for its k-th
push, whatever the speed of the units; a program deadlocks at every speed or at none.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from . import isa
from .isa import Unit


class Queue(IntEnum):
    """Token queues, from the unit that pushes to the one that pops."""

    L2C = 0
    C2L = 1
    C2S = 2
    S2C = 3

    @property
    def text(self) -> str:
        return ("load->compute", "compute->load", "compute->store", "store->compute")[self]


#: The queue that a token bit of a unit's instruction takes from or adds to. Other bits mean nothing.
POPS: dict[int, tuple[tuple[str, Queue], ...]] = {
    Unit.LOAD: (("pop_next", Queue.C2L),),
    Unit.COMPUTE: (("pop_prev", Queue.L2C), ("pop_next", Queue.S2C)),
    Unit.STORE: (("pop_prev", Queue.C2S),),
}
PUSHES: dict[int, tuple[tuple[str, Queue], ...]] = {
    Unit.LOAD: (("push_next", Queue.L2C),),
    Unit.COMPUTE: (("push_prev", Queue.C2L), ("push_next", Queue.C2S)),
    Unit.STORE: (("push_prev", Queue.S2C),),
}
CONSUMER = {queue: Unit(unit) for unit, bits in POPS.items() for _, queue in bits}
PRODUCER = {queue: Unit(unit) for unit, bits in PUSHES.items() for _, queue in bits}


def _queues(table: dict[int, tuple[tuple[str, Queue], ...]], bits: tuple[str, str]) -> list[tuple[int, ...]]:
    """For every unit and value of two token bits (unit * 4 + first * 2 + second): the queues they mean."""
    found = []
    for unit in Unit:
        for first in (0, 1):
            for second in (0, 1):
                given = dict(zip(bits, (first, second), strict=True))
                found.append(tuple(int(queue) for bit, queue in table[unit] if given[bit]))
    return found


_POPPED = _queues(POPS, ("pop_prev", "pop_next"))
_PUSHED = _queues(PUSHES, ("push_prev", "push_next"))


def token_lists(stream: isa.Stream) -> tuple[list[int], list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Of each instruction: its unit, the `Queue`s it pops before it starts, and those it pushes to at its end."""
    units = isa.units(stream)
    pops, pushes = _bits(stream, units, "pop"), _bits(stream, units, "push")
    return units.tolist(), [_POPPED[code] for code in pops.tolist()], [_PUSHED[code] for code in pushes.tolist()]


def token_sets(stream: isa.Stream, units: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """As `token_lists`, the queues of each instruction as a number with the bit 1 << queue for each."""
    popped, pushed = (np.array([sum(1 << q for q in queues) for queues in t], np.int64) for t in (_POPPED, _PUSHED))
    return popped[_bits(stream, units, "pop")], pushed[_bits(stream, units, "push")]


def _bits(stream: isa.Stream, units: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    """Where the tables have an instruction's queues."""
    return units * 4 + stream[f"{what}_prev"] * 2 + stream[f"{what}_next"]


_UNITS = tuple(Unit)


class Dispatch:
    """Hands out a program's instructions in an order that its tokens allow.

    `capacity` bounds the instructions that fetch may have put before a unit; None is without bound. Fetch is in order:
    the first instruction whose queue is full holds up all behind it.
    """

    def __init__(self, stream: isa.Stream, capacity: int | None = None) -> None:
        self.units, self.pops, self.pushes = token_lists(stream)
        self.tokens: dict[int, int] = dict.fromkeys(Queue, 0)
        #: The instructions of each unit in order, and how many of them have begun.
        self.of_unit = {u: [i for i, unit in enumerate(self.units) if unit == u] for u in Unit}
        self.begun = dict.fromkeys(Unit, 0)
        self.fetched = len(stream) if capacity is None else 0
        self._capacity = capacity
        self._fetched_of = dict.fromkeys(Unit, 0)
        self._fetch()

    def _fetch(self) -> None:
        while self._capacity is not None and self.fetched < len(self.units):
            unit = Unit(self.units[self.fetched])
            if self._fetched_of[unit] - self.begun[unit] >= self._capacity:
                return
            self._fetched_of[unit] += 1
            self.fetched += 1

    def head(self, unit: Unit) -> int | None:
        """The index of the instruction a unit would execute next, if it has been fetched."""
        at, queue = self.begun[unit], self.of_unit[unit]
        return queue[at] if at < len(queue) and queue[at] < self.fetched else None

    def ready(self) -> list[Unit]:
        """The units that could begin an instruction now, the lowest first."""
        return [unit for unit in _UNITS if self._can_begin(unit)]

    def _can_begin(self, unit: Unit) -> bool:
        index = self.head(unit)
        return index is not None and all(self.tokens[q] for q in self.pops[index])

    def begin(self, unit: Unit) -> int:
        """Take the tokens that a unit's next instruction pops; its index."""
        index = self.of_unit[unit][self.begun[unit]]
        for queue in self.pops[index]:
            self.tokens[queue] -= 1
        self.begun[unit] += 1
        self._fetch()
        return index

    def complete(self, index: int) -> None:
        """Add the tokens that an instruction pushes."""
        for queue in self.pushes[index]:
            self.tokens[queue] += 1

    @property
    def stuck(self) -> int | None:
        """If no unit can begin and not all is done: the first instruction that is blocked."""
        waiting = [self.of_unit[u][self.begun[u]] for u in Unit if self.begun[u] < len(self.of_unit[u])]
        return min(waiting) if waiting and not self.ready() else None

    def explain(self) -> str:
        """Each unit's blocked instruction, the queue it waits for, who should push, and the tokens in every queue."""
        parts = [self._blocked(unit) for unit in Unit if self.begun[unit] < len(self.of_unit[unit])]
        tokens = ", ".join(f"{q.text} {self.tokens[q]}" for q in Queue)
        return f"{'; '.join(parts)}; tokens: {tokens}"

    def _blocked(self, unit: Unit) -> str:
        index, name = self.of_unit[unit][self.begun[unit]], unit.name.lower()
        if index >= self.fetched:
            full = Unit(self.units[self.fetched]).name.lower()
            return f"{name}: instruction {index} is not fetched, the {full} queue is full at {self.fetched}"
        waits = [Queue(q) for q in self.pops[index] if not self.tokens[q]]
        return f"{name}: instruction {index} waits for " + " and ".join(
            f"{q.text} ({self._pusher(q, index)})" for q in waits
        )

    def _pusher(self, queue: Queue, blocked: int) -> str:
        producer = PRODUCER[queue]
        for index in self.of_unit[producer][self.begun[producer] :]:
            if queue in self.pushes[index]:
                return f"from instruction {index}"
        return "nobody pushes it"
