"""`nestegg tune` as its users meet it: it can be killed and goes on, and `optimize` uses what it found."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from nestegg.cli import app

FACTORY = """
import jax
import numpy as np

W = np.ones((40, 48), np.float32)

def make():
    return (lambda x: jax.nn.relu(x @ W)), (np.ones((24, 40), np.float32),)
"""


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "tuned_model.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return "tuned_model:make"


def tuned(*args):
    done = run("tune", *args, "--threads", 1, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_model_is_tuned_and_the_next_compilation_uses_it(model, tmp_path):
    log = tmp_path / "log.sqlite"
    found = tuned(model, "--trials", 12, "--log", log)
    (kernel,) = found["kernels"]
    assert (kernel["trials"], kernel["failed"]) == (12, 0) and kernel["best_us"] > 0
    again = tuned(model, "--trials", 12, "--log", log)
    assert again["kernels"][0]["best_us"] == kernel["best_us"] and again["kernels"][0]["trials"] == 12
    by_name = tuned(kernel["kernel"], "--trials", 16, "--log", log)
    assert by_name["kernels"][0]["trials"] == 16
    done = run("optimize", model, "--threads", 1, "--log", log, "--json")
    (row,) = json.loads(done.stdout)["kernels"]
    assert row["chosen_by"] == "tuned"


def test_the_table_says_what_was_found(model, tmp_path):
    done = run("tune", model, "--trials", 8, "--threads", 1, "--log", tmp_path / "log.sqlite", "--strategy", "roofline")
    assert done.exit_code == 0, done.output
    assert "GFLOP/s" in done.stdout and f"8 trials in {tmp_path}" in done.stdout.replace("\n", "")


def test_killed_while_it_measures_it_goes_on(model, tmp_path):
    log = tmp_path / "log.sqlite"
    arguments = [model, "--trials", "500", "--threads", "1", "--log", str(log)]
    command = [sys.executable, "-m", "nestegg.cli", "tune", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while _rows(log) < 10 and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = _rows(log)
    assert kept >= 10
    found = tuned(model, "--trials", kept + 8, "--log", log)
    assert found["kernels"][0]["trials"] == kept + 8 == _rows(log)


def _rows(log):
    if not log.exists():
        return 0
    try:
        with sqlite3.connect(log, timeout=10) as db:
            found = db.execute("select count(*) from trials").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0
    db.close()
    return found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model"], "no such model"),
        (["zoo:mlp", "--trials", "0"], "give numbers above 0"),
        (["zoo:mlp", "--log", "/proc/none/log.sqlite"], "--log"),
        (["tuned_model:make", "--strategy", "luck"], "choose random, roofline, scratch, transferred"),
        (["tuned_model:make", "--workers", "tcp://127.0.0.1:9"], "no Dask scheduler"),
    ],
)
def test_mistakes_are_one_line(model, arguments, message, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    if "--workers" in arguments:
        pytest.importorskip("distributed")
        monkeypatch.setattr("nestegg.costmodel.fleet.PATIENCE", 0.3)
    done = run("tune", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_damaged_row_is_named_and_the_rest_goes_on(model, tmp_path):
    log = tmp_path / "log.sqlite"
    tuned(model, "--trials", 9, "--log", log)
    with sqlite3.connect(log) as db:
        db.execute("update trials set seconds = 1e-12 where id = 3")
    db.close()
    done = run("tune", model, "--trials", 10, "--threads", 1, "--log", log, "--json")
    assert done.exit_code == 0
    assert f"refused {log}, row 3" in done.stderr
    assert json.loads(done.stdout)["kernels"][0]["best_us"] > 1e-3
