"""Measuring on Dask workers: processes on loopback, one of them killed while it measures."""

import os
import signal
import threading

import numpy as np
import pytest

import nestegg
from nestegg.costmodel.fleet import Fleet, FleetError
from nestegg.costmodel.worker import Effort
from nestegg.ir.target import host
from nestegg.rewrite.loop_egraph import build

distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def kernel():
    compiled = nestegg.optimize(lambda x: (x * 2.0).sum(0), np.ones((24, 32), np.float32), threads=1)
    return compiled.program.calls[0].kernel


@pytest.fixture(scope="module")
def nests(kernel):
    egraph, rng = build(kernel, host(), 1), np.random.default_rng(0)
    return list(dict.fromkeys(egraph.sample(rng) for _ in range(12)))


@pytest.fixture
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as made:
        yield made


def test_a_fleet_measures_what_one_process_measures(cluster, kernel, nests):
    fleet = Fleet(cluster.scheduler_address, host())
    try:
        trials = fleet.measure(kernel, nests[:4], Effort(samples=2, min_sample=1e-4))
    finally:
        fleet.close()
    assert [t.nest for t in trials] == nests[:4]
    assert all(t.ok and 0 < t.seconds < 1 for t in trials)


def test_a_worker_that_dies_costs_nothing(cluster, kernel, nests):
    fleet = Fleet(cluster.scheduler_address, host())
    victim = next(iter(fleet._client.run(os.getpid).values()))
    timer = threading.Timer(0.5, lambda: os.kill(victim, signal.SIGKILL))
    timer.start()
    try:
        trials = fleet.measure(kernel, nests, Effort(samples=5, min_sample=0.03))
    finally:
        timer.join()
        fleet.close()
    assert [t.nest for t in trials] == nests
    assert all(t.ok for t in trials)


def test_workers_that_would_measure_wrongly_are_named(kernel):
    warnings = []
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as made, pytest.raises(FleetError, match="--nthreads 1"):
        Fleet(made.scheduler_address, host(), warn=warnings.append)
    assert "runs 2 tasks at once" in warnings[0]


def test_a_worker_of_another_cpu_is_refused(cluster, monkeypatch):
    monkeypatch.setattr("nestegg.costmodel.fleet.device", lambda target: "another-cpu")
    with pytest.raises(FleetError, match="the tuner's another-cpu"):
        Fleet(cluster.scheduler_address, host(), warn=lambda message: None)


def test_no_scheduler_is_said_in_one_line():
    with pytest.raises(FleetError, match="no Dask scheduler"):
        Fleet("tcp://127.0.0.1:9", host(), patience=0.5)
