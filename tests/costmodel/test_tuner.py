"""Tuning: every trial is kept, none is repeated, and the next compilation uses the best."""

import math

import jax
import numpy as np
import pytest

import nestegg
from nestegg.costmodel.log import LogError, Trial, TuningLog
from nestegg.costmodel.pick import Learned, candidates
from nestegg.costmodel.roofline import Roofline
from nestegg.costmodel.tuner import STRATEGIES, Tuner, operations, shares
from nestegg.costmodel.worker import Effort, Worker
from nestegg.extract.beam import swept
from nestegg.ir.errors import NesteggError
from nestegg.ir.target import host
from nestegg.rewrite.loop_egraph import build

W = np.ones((40, 48), np.float32)
X = np.ones((24, 40), np.float32)


def model(x):
    return jax.nn.relu(x @ W)


def other_model(x):
    return jax.nn.relu(x @ W).sum(0)


@pytest.fixture(scope="module")
def kernel():
    return nestegg.optimize(model, X, threads=1).program.calls[0].kernel


class Pretended:
    """A measurer that takes the roofline's word, but finds one in five nests to crash."""

    def __init__(self):
        self.seen = []

    def measure(self, kernel, nests, effort):
        self.seen += nests
        return [
            Trial(n, math.inf, "crashed") if len(str(n)) % 5 == 0 else Trial(n, 1e-6 * (1 + len(str(n)) % 97))
            for n in nests
        ]

    def close(self):
        pass


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_nest_is_measured_twice_whoever_failed(kernel, strategy, tmp_path):
    measurer = Pretended()
    for _ in range(2):  # the second goes on where the first ended
        with TuningLog(tmp_path / "log.sqlite") as log:
            tuner = Tuner(kernel, host(), 1, log, measurer, strategy=strategy)
            for _ in range(2):
                assert tuner.step()
            kept = log.trials(kernel, host(), 1)
    assert len(measurer.seen) == len(set(measurer.seen)) == len(kept) == 32
    assert {t.nest for t in kept} == set(measurer.seen)
    p = tuner.progress
    assert (p.trials, p.failed) == (32, sum(not t.ok for t in kept))
    assert p.best == min(t.seconds for t in kept) and p.gflops == pytest.approx(2 * 24 * 40 * 48 / p.best / 1e9)


def test_an_unknown_strategy_is_named(kernel, tmp_path):
    with pytest.raises(NesteggError, match="'luck' does not exist; choose random"), TuningLog(tmp_path / "l") as log:
        Tuner(kernel, host(), 1, log, Pretended(), strategy="luck")


def test_what_was_tuned_is_used_wherever_the_kernel_is(kernel, tmp_path):
    path = tmp_path / "log.sqlite"
    before = nestegg.optimize(model, X, threads=1)
    usual = before.program.calls[0].nest
    egraph = build(kernel, host(), 1)
    better = next(n for n in iter(lambda: egraph.sample(np.random.default_rng(4)), None) if n != usual)
    with TuningLog(path) as log:
        log.add(kernel, host(), 1, Trial(usual, 4e-6))
        log.add(kernel, host(), 1, Trial(better, 2e-6))
    compiled = nestegg.optimize(model, X, threads=1, log=path)
    (row,) = compiled.report().to_json()["kernels"]
    assert compiled.program.calls[0].nest == better
    assert row["chosen_by"] == "tuned" and row["gain"] >= 2.0
    assert row["predicted_us"] <= before.report().to_json()["kernels"][0]["predicted_us"]
    assert compiled.verify().ok
    untuned = nestegg.optimize(model, X, threads=1, log=path, cost_model="roofline")
    assert untuned.program.calls[0].nest == better


def test_the_default_log_is_where_the_platform_keeps_data(kernel, tmp_path, monkeypatch):
    from nestegg.costmodel.log import default_log

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_log() == tmp_path / "nestegg" / "tuning.sqlite"
    assert nestegg.optimize(model, X, threads=1).found["kernels"][0]["chosen_by"] != "tuned"
    assert not default_log().exists()
    with TuningLog(default_log()) as log:
        log.add(kernel, host(), 1, Trial(nestegg.optimize(model, X, threads=1).program.calls[0].nest, 1e-6))
    assert nestegg.optimize(model, X, threads=1).found["kernels"][0]["chosen_by"] == "tuned"


def test_a_log_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(LogError, match="there is no such tuning log"):
        nestegg.optimize(model, X, threads=1, log=tmp_path / "none.sqlite")
    with pytest.raises(NesteggError, match="cost model 'guess' does not exist; choose learned or roofline"):
        nestegg.optimize(model, X, threads=1, cost_model="guess")


def test_the_learned_pick_is_among_the_candidates(kernel):
    sweep = swept(build(kernel, host(), 1), Roofline(host(), 1))
    found = candidates(sweep, kernel)
    assert found == candidates(sweep, kernel) and found[0] == sweep.best(sweep.egraph.root)[0].nest
    pick = Learned(host(), 1).pick(kernel, sweep)
    assert pick.nest in found
    assert (pick.by == "roofline") == (pick.nest == found[0]) and pick.gain >= 1.0


def test_the_real_thing(kernel, tmp_path):
    path = tmp_path / "log.sqlite"
    with TuningLog(path) as log, Worker(host()) as worker:
        tuner = Tuner(kernel, host(), 1, log, worker, effort=Effort(samples=2, min_sample=2e-4))
        while len(tuner.trials) < 16:
            tuner.step(16 - len(tuner.trials))
    assert tuner.progress.failed == 0 and 0 < tuner.progress.best < 1e-3
    assert nestegg.optimize(model, X, threads=1, log=path).verify().ok


def test_operations_and_shares():
    layer = nestegg.optimize(lambda x: jax.nn.softmax(x, -1), X, threads=1).program.calls[0].kernel
    assert operations(layer) >= 2 * X.size
    assert shares([4e-6, 1e-6], 100, 8) == [8 + 56, 8 + 28]
    assert shares([1.0, 1.0, 1.0], 10, 8) == [8, 2, 0]
