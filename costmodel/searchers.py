"""Processes that search kernels' schedules beside this one, each a group of one space at a time.

Processes and not threads, since egglog and Python hold the interpreter's lock. They are started as
`python -m nestegg.costmodel.searchers`, not by `multiprocessing`, which would run a user's script again in each; they
load neither JAX nor the graph. What they are told and answer is a line of JSON. What is found does not depend on who
finds it: they search as `KernelSearch` does, with the shipped rules and models. If one ends, its group is searched
here, where the cause shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread

from ..extract.search import LEARNED, BestOfSweep, Found, Group, KernelSchedule, KernelSearch
from ..ir.serial import KERNELS
from ..ir.target import Target, available_cpus
from ..rewrite.saturate import RuleStats, SaturationReport
from .pick import Learned
from .roofline import Roofline

CODEC = KERNELS.extended(KernelSchedule, Target)


def kernel_search(target: Target, threads: int, cost_model: str, **options: object) -> KernelSearch:
    """A search under the roofline, whose nests the learned model picks if that is the `cost_model`; `options` are
    `KernelSearch`'s."""
    picker = Learned(target, threads) if cost_model == LEARNED else BestOfSweep()
    return KernelSearch(Roofline(target, threads), target, threads, picker=picker, **options)  # type: ignore[arg-type]


#: Groups asked for at once that are worth starting processes: each takes half a second to load.
WORTH_STARTING = 4


class Searchers:
    """`count` searching processes, by default one for each CPU but the one of this process. They are started when there
    is enough to search. To be closed."""

    def __init__(self, target: Target, threads: int, cost_model: str, count: int | None = None) -> None:
        self._how = [CODEC.dumps(target), str(threads), cost_model]
        self._count = available_cpus() - 1 if count is None else count
        self._children: list[_Child] = []

    def start(self) -> None:
        """Start the processes, if they are not there yet."""
        self._children += [_Child(self._how) for _ in range(self._count - len(self._children))]

    def map(self, groups: Sequence[Group], here: Callable[[Group], Found]) -> list[Found]:
        """What is found of each group, by the processes and `here` at once."""
        found: dict[int, Found] = {}
        waiting = deque(range(len(groups)))

        def work(search: Callable[[Group], Found]) -> None:
            while waiting:
                try:
                    k = waiting.popleft()
                except IndexError:  # another was quicker
                    return
                try:
                    found[k] = search(groups[k])
                except _Ended:
                    waiting.appendleft(k)
                    return

        if len(groups) >= WORTH_STARTING:
            self.start()
        able = [c for c in self._children if c.alive] if len(groups) > 1 else []
        helping = [Thread(target=work, args=(c.search,), daemon=True) for c in able]
        for t in helping:
            t.start()
        work(here)
        for t in helping:
            t.join()
        work(here)  # what a process left behind that ended
        return [found[k] for k in range(len(groups))]

    def close(self) -> None:
        """End the processes."""
        for c in self._children:
            c.end()

    def __enter__(self) -> Searchers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Ended(Exception):
    """The process did not answer."""


class _Child:
    """One process, and the pipes to it."""

    def __init__(self, how: list[str]) -> None:
        where = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, *how],
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def search(self, group: Group) -> Found:
        """What the process finds. Raises `_Ended` if it is no more, or cannot."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(CODEC.dumps(tuple(group)), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except (BrokenPipeError, ValueError):  # ended, or closed by `end`
            raise _Ended from None
        if not line.endswith("\n"):
            raise _Ended
        return _read(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what was not read any more
                    pipe.close()


def _written(found: Found) -> str:
    return json.dumps([CODEC.dumps(found.schedules), asdict(found.report)])


def _read(line: str) -> Found:
    schedules, report = json.loads(line)
    rules = {name: RuleStats(**stats) for name, stats in report.pop("rules").items()}
    return Found(CODEC.loads(schedules), SaturationReport(**report, rules=rules))


def serve(target: str, threads: str, cost_model: str) -> None:
    """A searching process: answers each line of standard input, until it ends. What fails ends it."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    search = kernel_search(CODEC.loads(target), int(threads), cost_model)
    for line in sys.stdin:
        print(_written(search.searched(CODEC.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
