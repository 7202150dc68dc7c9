"""The measuring process: times are plausible, and what crashes or hangs it is a failed trial."""

import os
import signal
import threading

import numpy as np
import pytest

import nestegg
from nestegg.costmodel.worker import Effort, Worker
from nestegg.ir.nest import For, Tile, Vec
from nestegg.ir.target import host
from nestegg.rewrite.loop_egraph import build

QUICK = Effort(samples=2, min_sample=1e-4)


@pytest.fixture(scope="module")
def kernel():
    compiled = nestegg.optimize(lambda x, y: x * y, *[np.ones((64, 32), np.float32)] * 2, threads=1)
    return compiled.program.calls[0].kernel


@pytest.fixture(scope="module")
def nests(kernel):
    egraph, rng = build(kernel, host(), 1), np.random.default_rng(0)
    return list(dict.fromkeys(egraph.sample(rng) for _ in range(6)))


def test_nests_are_timed(kernel, nests):
    with Worker(host()) as worker:
        trials = worker.measure(kernel, nests, QUICK)
    assert [t.nest for t in trials] == nests
    assert all(t.ok and 1e-9 < t.seconds < 1.0 for t in trials)


def test_a_nest_that_cannot_be_compiled_fails_alone(kernel, nests):
    wrong = Tile(0, Vec(0, 7))
    with Worker(host()) as worker:
        bad, good = worker.measure(kernel, [wrong, nests[0]], QUICK)
    assert not bad.ok and "does not cover" in bad.error and bad.seconds == float("inf")
    assert good.ok


def test_a_crash_is_contained(kernel, nests, monkeypatch):
    with Worker(host()) as worker:
        monkeypatch.setattr("nestegg.costmodel.worker._line", _killing(worker))
        crashed = worker.measure(kernel, nests[:1], QUICK)[0]
        monkeypatch.undo()
        after = worker.measure(kernel, nests[:1], QUICK)[0]
    assert not crashed.ok and f"exit code -{int(signal.SIGKILL)}" in crashed.error
    assert after.ok


def _killing(worker):
    """Reads a line of the measuring process after killing it."""
    from nestegg.costmodel.worker import _line

    def line(pipe, seconds):
        if worker._process is not None and worker._process.stdout is pipe and worker._sent is not None:
            os.kill(worker._process.pid, signal.SIGKILL)
        return _line(pipe, seconds)

    return line


def test_a_hang_ends_at_the_limit(kernel, nests):
    with Worker(host()) as worker:
        assert worker.measure(kernel, nests[:1], QUICK)[0].ok
        assert worker._process is not None
        stopped = worker._process.pid
        timer = threading.Timer(0.0, os.kill, (stopped, signal.SIGSTOP))
        timer.start()
        timer.join()
        hung = worker.measure(kernel, nests[:1], Effort(limit=0.5))[0]
        after = worker.measure(kernel, nests[1:2], QUICK)[0]
    assert hung.error == "no result within 0.5 s"
    assert after.ok


def test_the_process_is_pinned_and_ends_with_its_owner(kernel, nests):
    with Worker(host()) as worker:
        worker.measure(kernel, nests[:1], QUICK)
        assert worker._process is not None
        process = worker._process
        assert os.sched_getaffinity(process.pid) == {max(os.sched_getaffinity(0))}
    assert process.poll() is not None


def test_a_nest_of_single_points_is_slow_but_measured(kernel):
    slow = For(0, 2048, "serial", Tile(0, Vec(0, 1)))
    with Worker(host()) as worker:
        assert worker.measure(kernel, [slow], QUICK)[0].ok
