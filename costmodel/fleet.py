"""Measuring on several machines at once, through Dask distributed (the `fleet` extra).

A worker is a device: it measures one nest at a time, in a process of its own as `worker.py` does, so start it with one
thread (`dask worker tcp://… --nthreads 1`). Workers whose machine is not the tuner's, or that run several tasks at
once, are passed over and named. When a worker dies its nests are measured by the others.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from ..ir.errors import NesteggError
from ..ir.loops import Lowered
from ..ir.nest import Nest
from ..ir.records import dumps, load_kernel, load_nest
from ..ir.target import Target, host
from .log import Trial, device
from .worker import Effort, Worker

#: How often a nest is given to another worker, if the one that measured it died.
RETRIES = 3
#: Seconds after which a wait for a result looks whether there still are workers.
LOOK = 5.0
#: Seconds to wait for a scheduler with workers.
PATIENCE = 30.0


class FleetError(NesteggError):
    """No scheduler or no fit worker is there, or Dask is not installed."""


class Fleet:
    """A `Measurer` on the workers of the Dask scheduler at `address`. `refused`: the workers passed over, and why.

    Raises `FleetError` if no worker of this machine's kind is there within `patience` seconds.
    """

    def __init__(
        self,
        address: str,
        target: Target,
        threads: int = 1,
        patience: float | None = None,
        warn: Callable[[str], None] = lambda message: print(message, file=sys.stderr),  # noqa: T201
    ) -> None:
        self.address, self.target, self.threads, self.warn = address, target, threads, warn
        self.refused: dict[str, str] = {}
        patience = PATIENCE if patience is None else patience
        self._fit: set[str] = set()
        try:
            distributed = importlib.import_module("distributed")
        except ImportError:
            raise FleetError("--workers needs Dask: pip install 'nestegg[fleet]'") from None
        try:
            self._client = distributed.Client(address, timeout=patience, set_as_default=False)
            self._client.wait_for_workers(1, timeout=patience)
        except (OSError, TimeoutError, ValueError) as e:
            raise FleetError(f"{address}: no Dask scheduler with workers answers ({e})") from None
        if not self.workers():
            self.close()
            raise FleetError(f"{address}: no worker can measure for this machine: {'; '.join(self.refused.values())}")

    def workers(self) -> list[str]:
        """The addresses of the workers that may measure, now; new ones are examined."""
        there: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        new = [w for w in there if w not in self._fit and w not in self.refused]
        kinds: dict[str, Any] = self._client.run(_device, workers=new, on_error="return") if new else {}
        for w in new:
            if (why := self._unfit(kinds.get(w), there[w]["nthreads"])) is None:
                self._fit.add(w)
            else:
                self.refused[w] = f"worker {w}: {why}"
                self.warn(f"nestegg: {self.refused[w]}; it is not used")
        return [w for w in there if w in self._fit]

    def _unfit(self, kind: object, threads: int) -> str | None:
        mine = device(self.target)
        if kind != mine:
            return f"its machine is {kind}, the tuner's {mine}"
        if threads != 1:
            return f"it runs {threads} tasks at once, which would disturb each other; start it with --nthreads 1"
        return None

    def measure(self, kernel: Lowered, nests: list[Nest], effort: Effort = Effort()) -> list[Trial]:  # noqa: B008
        """A trial of each nest. Raises `FleetError` if all workers are gone."""
        if not (workers := self.workers()):
            raise self._gone()
        text = dumps(kernel)
        futures = [
            self._client.submit(
                _measured, text, dumps(n), self.threads, effort,
                workers=workers, allow_other_workers=False, retries=RETRIES, pure=False,
            )
            for n in nests
        ]  # fmt: skip
        found = [self._result(f, workers) for f in futures]
        return [Trial(n, seconds, error) for n, (seconds, error) in zip(nests, found, strict=True)]

    def _result(self, future: Any, workers: list[str]) -> tuple[float, str]:
        """What a task returned; a task that nobody can finish is a `FleetError`, one that failed a failed trial."""
        while True:
            try:
                return future.result(timeout=LOOK)
            except TimeoutError:
                if not set(workers) & set(self.workers()):
                    raise self._gone() from None
            except Exception as e:  # whatever the task raised, or what Dask raises of workers that died of it
                return math.inf, f"{type(e).__name__}: {e}"[:500]

    def _gone(self) -> FleetError:
        return FleetError(f"{self.address}: all workers are gone; start some and run the same command again")

    def close(self) -> None:
        self._client.close()


def _device() -> str:
    """On a worker: what it is."""
    return device(host())


@cache
def _worker(threads: int) -> Worker:
    """On a worker: its measuring process, kept between nests."""
    return Worker(host(), threads)


def _measured(kernel: str, nest: str, threads: int, effort: Effort) -> tuple[float, str]:
    """On a worker: measure one nest."""
    loaded = load_kernel(kernel)
    trial = _worker(threads).measure(loaded, [load_nest(nest, loaded)], effort)[0]
    return trial.seconds, trial.error
