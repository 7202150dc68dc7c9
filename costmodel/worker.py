"""Measuring in a process of its own: pinned, warmed, repeated, with a time limit; a crash or a hang ends only it.

`Worker` starts `python -m nestegg.costmodel.worker` and speaks JSON with it, one line a message. A kernel that hangs or
crashes the process is a failed measurement; the next one starts a new process.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ..ir.errors import NesteggError
from ..ir.loops import Lowered
from ..ir.nest import Nest
from ..ir.records import dumps, load_kernel, load_nest
from ..ir.target import Target, available_cpus, host, require_runnable
from .log import Trial
from .measure import Bench, Timer

#: A worker keeps the operands of this many kernels, and the machine code of so many nests of them.
BENCHES, TIMERS = 2, 64


@dataclass(frozen=True)
class Effort:
    """How long to measure: `samples` of at least `min_sample` seconds each after a warming run, the fastest counts.

    `limit`: seconds after which a nest has failed. `give_up`: a nest whose first run takes longer is not run again.
    """

    samples: int = 5
    min_sample: float = 0.002
    limit: float = 10.0
    give_up: float = math.inf


class Measurer(Protocol):
    """What measures nests, here or elsewhere."""

    def measure(self, kernel: Lowered, nests: list[Nest], effort: Effort) -> list[Trial]:
        """A trial of each nest, in order."""
        ...

    def close(self) -> None: ...


class Worker:
    """A measuring process for this machine; `with Worker(...) as w: w.measure(...)`."""

    def __init__(self, target: Target, threads: int = 1, place: int = 0) -> None:
        """place: which of the groups of `threads` CPUs it is bound to, counted from the last."""
        self.target, self.threads, self.place = require_runnable(target), threads, place
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: str | None = None

    def measure(self, kernel: Lowered, nests: list[Nest], effort: Effort = Effort()) -> list[Trial]:
        """A trial of each nest. What crashes or hangs the process is a failed trial; the rest goes on."""
        return [self._one(kernel, n, effort) for n in nests]

    def _one(self, kernel: Lowered, nest: Nest, effort: Effort) -> Trial:
        fresh = self._process is None
        reply = self._ask(kernel, nest, effort)
        if "crash" in reply and not fresh:  # once more in a new process: an earlier nest may have broken this one
            reply = self._ask(kernel, nest, effort)
        if "seconds" in reply:
            return Trial(nest, reply["seconds"])
        return Trial(nest, math.inf, reply.get("error") or reply["crash"])

    def _ask(self, kernel: Lowered, nest: Nest, effort: Effort) -> dict[str, Any]:
        process = self._running()
        text = dumps(kernel)
        message = {"nest": dumps(nest), "effort": {k: v for k, v in asdict(effort).items() if k != "limit"}}
        if text != self._sent:
            message["kernel"] = text
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            self._sent = text
            line = _line(process.stdout, effort.limit)
        except BrokenPipeError:
            line = b""
        except TimeoutError:
            self._end()
            return {"error": f"no result within {effort.limit:g} s"}
        if line:
            return json.loads(line)
        self._end()
        return {"crash": f"the measuring process ended (exit code {process.returncode})"}

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            target = json.dumps(asdict(self.target))
            command = [sys.executable, "-m", f"{__package__}.worker", str(self.threads), str(self.place), target]
            where = Path(__file__).resolve().parents[2]
            path = os.pathsep.join(filter(None, [str(where), os.environ.get("PYTHONPATH", "")]))
            environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._sent = None
            assert self._process.stdout is not None
            if not _line(self._process.stdout, 120.0):
                self._end()
                raise NesteggError(f"the measuring process does not start; try {' '.join(command[:3])} 1 0 '{{}}'")
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    close = _end

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _line(pipe: IO[bytes], seconds: float) -> bytes:
    """A line, or nothing if the pipe ended. Raises `TimeoutError`."""
    until, out = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while not out.endswith(b"\n"):
            if not ready.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            part = os.read(pipe.fileno(), 1 << 16)
            if not part:
                return b""
            out += part
    return out


def _pin(threads: int, place: int) -> None:
    """On the last CPUs: interrupts and other people's work gather on the first."""
    cpus = sorted(os.sched_getaffinity(0))
    end = len(cpus) - place * threads
    os.sched_setaffinity(0, cpus[max(0, end - threads) : end] or cpus)


def _target(text: str) -> Target:
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
    return Target(**made)


class _Stock:
    """Operands and machine code that may be asked for again: rounds over a few nests compile them once."""

    def __init__(self, target: Target, threads: int) -> None:
        self.target, self.threads = target, threads
        self.benches: dict[str, Bench] = {}
        self.timers: dict[tuple[str, str], Timer] = {}

    def timer(self, kernel: str, nest: str) -> Timer:
        if (kernel, nest) not in self.timers:
            bench = self._bench(kernel)
            made = bench.load(load_nest(nest, bench.kernel))
            if len(self.timers) >= TIMERS:
                self.timers.pop(next(iter(self.timers)))
            self.timers[kernel, nest] = made
        return self.timers[kernel, nest]

    def _bench(self, kernel: str) -> Bench:
        if kernel not in self.benches:
            if len(self.benches) >= BENCHES:
                dropped = next(iter(self.benches))
                del self.benches[dropped]
                self.timers = {k: t for k, t in self.timers.items() if k[0] != dropped}
            self.benches[kernel] = Bench(load_kernel(kernel), self.target, self.threads)
        return self.benches[kernel]


def serve() -> None:
    """The measuring process: answers each line of standard input, until it ends."""
    threads = min(int(sys.argv[1]), available_cpus())
    _pin(threads, int(sys.argv[2]))
    target = _target(sys.argv[3]) if sys.argv[3] != "{}" else host()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    print("{}", file=replies, flush=True)
    stock = _Stock(target, threads)
    text = ""
    for line in sys.stdin:
        asked = json.loads(line)
        text = asked.get("kernel", text)
        try:
            reply: dict[str, Any] = {"seconds": stock.timer(text, asked["nest"]).seconds(**asked["effort"])}
        except Exception as e:  # whatever is wrong with a kernel is its failure, not the tuner's
            reply = {"error": f"{type(e).__name__}: {e}"[:500]}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve()
