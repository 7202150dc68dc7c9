"""The tuning log: what is added is there, whoever else writes; what is damaged is named, and the rest is read."""

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nestegg.costmodel.log import LogError, Trial, TuningLog, device
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import lower
from nestegg.ir.nest import For, Tile, Vec
from nestegg.ir.operator import operator
from nestegg.ir.records import dumps
from nestegg.ir.target import TARGETS, host
from nestegg.ir.types import TensorType


def kernel(n=8):
    attrs = Attrs(contract=((1,), (0,)), batch=((), ()))
    return lower(operator("dot").expr((TensorType((4, 3)), TensorType((3, n))), attrs))


def nest(n=8, inner=1):
    return For(0, 4 // inner, "serial", Tile(1, For(2, 3, "serial", For(0, inner, "unroll", Vec(1, n)))))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.sqlite"


def test_the_best_of_what_was_added(path):
    with TuningLog(path) as log:
        log.add(kernel(), host(), 1, Trial(nest(), 2e-6))
        log.add(kernel(), host(), 1, Trial(nest(inner=2), 1e-6))
        log.add(kernel(), host(), 1, Trial(nest(inner=4), math.inf, "it crashed"))
    with TuningLog(path) as log:
        assert [t.seconds for t in log.trials(kernel(), host(), 1)] == [2e-6, 1e-6, math.inf]
        assert log.best(kernel(), host(), 1) == Trial(nest(inner=2), 1e-6)
        assert log.everything(host(), 1) == {kernel(): log.trials(kernel(), host(), 1)}
        assert log.best(kernel(16), host(), 1) is log.best(kernel(), host(), 2) is None
        assert not log.refused


def test_trials_belong_to_a_machine(path):
    with TuningLog(path) as log:
        log.add(kernel(), TARGETS["x86-64-v3"], 1, Trial(nest(), 1e-6))
        assert not log.trials(kernel(), host(), 1)
        assert log.devices() == [device(TARGETS["x86-64-v3"])] != [device(host())]
    assert device(replace(host(), name="renamed")) == device(host())


def test_of_a_nest_measured_again_the_faster_time_stays(path):
    with TuningLog(path) as log:
        for seconds in (2e-6, 1e-6, 3e-6):
            log.add(kernel(), host(), 1, Trial(nest(), seconds))
        log.add(kernel(), host(), 1, Trial(nest(), math.inf, "it crashed"))
        assert [t.seconds for t in log.trials(kernel(), host(), 1)] == [1e-6]
        assert not log.refused


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("update trials set seconds = seconds / 2 where id = 2", "row 2: its checksum"),
        ("update trials set nest = '[]' where id = 2", "row 2: its checksum"),
        ("update trials set checksum = 'x' where id = 2", "row 2: its checksum"),
        ("update kernels set kernel = 'junk'", "is not in the log, or not of this version"),
        ("delete from kernels", "is not in the log, or not of this version"),
    ],
)
def test_damaged_rows_are_named_and_the_rest_goes_on(path, statement, reason):
    with TuningLog(path) as log:
        for inner in (1, 2, 4):
            log.add(kernel(), host(), 1, Trial(nest(inner=inner), inner * 1e-6))
        log._db.execute(statement)
        left = log.everything(host(), 1)
        assert sum(map(len, left.values())) == (2 if "row 2" in reason else 0)
        assert reason in log.refused[0] and str(path) in log.refused[0]


def test_a_foreign_row_with_a_good_checksum_is_refused_for_its_nest(path):
    with TuningLog(path) as log:
        log.add(kernel(), host(), 1, Trial(nest(n=4), 1e-6))  # covers another domain
        assert not log.trials(kernel(), host(), 1)
        assert "does not cover the domain" in log.refused[0]


def test_other_files_are_refused(path, tmp_path):
    path.write_text("not a database, but long enough that SQLite looks at it" * 50)
    with pytest.raises(LogError, match="--log"):
        TuningLog(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("create table t (x)")
    db.close()
    with pytest.raises(LogError, match="another program's database"):
        TuningLog(other)
    with pytest.raises(LogError, match="--log"):
        TuningLog(tmp_path)


def _writers(path, count, trials):
    """Processes that add `trials` nests each, all different."""
    code = (
        "import sys\n"
        "from nestegg.costmodel.log import Trial, TuningLog\n"
        "from nestegg.ir.nest import For\n"
        "from nestegg.ir.records import load_kernel, load_nest\n"
        "from nestegg.ir.target import host\n"
        "from dataclasses import replace\n"
        "kernel = load_kernel(sys.argv[2]); nest = load_nest(sys.argv[3], kernel)\n"
        "log = TuningLog(sys.argv[1])\n"
        "for k in range(int(sys.argv[5])):\n"
        "    body = nest\n"
        "    for _ in range(k): body = For(0, 1, 'serial', body)\n"
        "    log.add(kernel, host(), 1 + int(sys.argv[4]), Trial(body, 1e-6 + k))\n"
        "    print(k, flush=True)\n"
    )
    arguments = [str(path), dumps(kernel()), dumps(nest())]
    return [
        subprocess.Popen([sys.executable, "-c", code, *arguments, str(n), str(trials)], stdout=subprocess.PIPE)
        for n in range(count)
    ]


def test_two_tuners_on_one_log(path):
    for process in _writers(path, 2, 60):
        process.communicate()
        assert process.returncode == 0
    with TuningLog(path) as log:
        assert [len(log.trials(kernel(), host(), n)) for n in (1, 2)] == [60, 60]
        assert not log.refused
        assert log._db.execute("pragma integrity_check").fetchone() == ("ok",)


def test_killed_while_it_writes(path):
    (process,) = _writers(path, 1, 10**6)
    assert process.stdout is not None
    seen = 0
    until = time.monotonic() + 60
    while seen < 40 and time.monotonic() < until:
        seen = int(process.stdout.readline()) + 1
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].split()
    told = int(rest[-1]) + 1 if rest else seen
    with TuningLog(path) as log:
        kept = len(log.trials(kernel(), host(), 1))
        assert kept in (told, told + 1)
        log.add(kernel(), host(), 1, Trial(nest(inner=2), 1e-6))
        assert len(log.trials(kernel(), host(), 1)) == kept + 1 and not log.refused
