"""The cache on disk: a program compiled once is loaded the next time, and nothing that is not whole is ever used."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nestegg
from nestegg.cache import Cache, digest
from nestegg.compiler import Options, compile_graph, import_program
from nestegg.costmodel.roofline import Roofline
from nestegg.extract.search import Estimate, KernelSearch
from nestegg.ir.expr import TensorExpr
from nestegg.ir.target import available_cpus
from nestegg.ir.target import target as target_named
from nestegg.ir.types import TensorType
from nestegg.stored import ScheduleStore, context

X = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)


def layer(x):
    import jax.numpy as jnp

    return jnp.maximum(x @ (np.ones((8, 16), np.float32) / 8), 0) * 2


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NESTEGG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entries(folder: Path, kind: str = "") -> list[Path]:
    return sorted(p for p in (folder / kind).rglob("*") if p.is_file())


def test_the_second_optimize_loads_machine_code(monkeypatch):
    first = nestegg.optimize(layer, X)
    monkeypatch.setattr("nestegg.compiler.build", None)  # no e-graph is built again
    second = nestegg.optimize(layer, X)
    assert not first.cached["hit"] and second.cached["hit"]
    assert second.executable.code.object == first.executable.code.object
    np.testing.assert_array_equal(second(X), first(X))
    assert second.verify().ok
    assert str(second.program) == str(first.program)


def test_the_report_of_a_loaded_program_is_that_of_its_compilation(tmp_path):
    first, second = nestegg.optimize(layer, X), nestegg.optimize(layer, X)
    volatile = {"seconds", "compile_s", "cache"}
    reports = [{k: v for k, v in c.report().to_json().items() if k not in volatile} for c in (first, second)]
    assert reports[0] == reports[1]
    second.dump_to(tmp_path / "stages")
    assert "call(" in (tmp_path / "stages" / "egraph.txt").read_text()
    assert (tmp_path / "stages" / "module.o").read_bytes() == first.program.object


def test_a_kernel_of_another_model_is_not_searched_again():
    nestegg.optimize(lambda x: layer(x) + 1, X)
    other = nestegg.optimize(lambda x: layer(x) + 1, X[:, ::-1] * 2, threads=None)
    assert other.cached["hit"], "inputs are no part of the program"
    taller = nestegg.optimize(lambda x: (layer(x) + 1, np.float32(2) * x), X)
    assert taller.found["loops"]["kernels_remembered"] > 0


def test_what_decides_the_program_decides_the_entry(tmp_path):
    nestegg.optimize(layer, X)
    others = available_cpus() % 2 + 1
    assert nestegg.optimize(layer, X, threads=others).cached["why"].startswith("other threads than")
    rules = tmp_path / "mine.py"
    text = (
        "from nestegg import op, rule\n@rule('algebra')\ndef double(x):\n    '''x + x -> x + x'''\n"
        "    return op.add(x, x) >> op.add(x, x)\n"
    )
    rules.write_text(text)
    assert "graph rules" in nestegg.optimize(layer, X, rules=[rules]).cached["why"]
    assert nestegg.optimize(layer, X, rules=[rules]).cached["hit"]
    rules.write_text(text + "# changed\n")
    assert not nestegg.optimize(layer, X, rules=[rules]).cached["hit"]
    imported = import_program(layer, X)
    assert "graph options" in compile_graph(imported, Options(extraction="greedy")).cached["why"]


def test_constants_are_part_of_the_graph():
    def times(c):
        return lambda x: x * np.full(8, c, np.float32)

    nestegg.optimize(times(2), X)
    other = nestegg.optimize(times(3), X)
    assert other.cached["why"] == "no program of this graph is kept"
    np.testing.assert_array_equal(other(X), X * 3)


def test_without_the_cache_nothing_is_read_or_written(folder):
    assert nestegg.optimize(layer, X, cache=False).cached["why"] == "it was not asked"
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "endless", "moved"])
def test_an_entry_that_is_not_whole_is_named_and_not_used(folder, damage):
    first = nestegg.optimize(layer, X)
    (entry,) = entries(folder, "programs")
    data = entry.read_bytes()
    middle = len(data) // 2
    entry.write_bytes(
        {
            "truncated": data[:middle],
            "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "empty": b"",
            "foreign": b"\x80\x04 a pickle, perhaps",
            "endless": re.sub(rb" \d+ ", b" 99999999999999 ", data, count=1),
            "moved": entries(folder, "kernels")[0].read_bytes(),
        }[damage]
    )
    with pytest.warns(UserWarning, match=entry.name):
        again = nestegg.optimize(layer, X)
    assert not again.cached["hit"]
    np.testing.assert_array_equal(again(X), first(X))
    assert nestegg.optimize(layer, X).cached["hit"], "the entry was made anew"


def test_a_folder_that_others_may_write_is_not_trusted(folder):
    nestegg.optimize(layer, X)
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match="can be written by"):
        assert not nestegg.optimize(layer, X).cached["hit"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NESTEGG_CACHE_DIR", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="is not"):
        assert nestegg.optimize(layer, X)(X).shape == (4, 16)


def test_schedules_found_again_are_those_found_before(folder):
    def nests(compiled):
        return [c.nest for c in compiled.program.calls]

    first = nestegg.optimize(layer, X)
    for entry in entries(folder, "programs"):
        entry.unlink()
    searched = KernelSearch.searched
    try:
        KernelSearch.searched = None  # every schedule is remembered
        second = nestegg.optimize(layer, X)
    finally:
        KernelSearch.searched = searched
    assert nests(second) == nests(first)
    assert second.found["loops"]["kernels_remembered"] == second.found["loops"]["kernels_searched"]


def test_kernels_estimated_before_are_not_estimated_again(folder, monkeypatch):
    first = nestegg.optimize(layer, X)
    for entry in entries(folder, "programs"):
        entry.unlink()
    monkeypatch.setattr(Roofline, "bound", None)
    second = nestegg.optimize(layer, X)
    assert str(second.program) == str(first.program)
    assert not second.cached["hit"]


def test_estimates_are_kept_beside_those_of_others(monkeypatch):
    machine = target_named("cpu")
    store = ScheduleStore(Cache(), context(machine, 1, {}, [], []))
    exprs = [TensorExpr.build([TensorType((n,))], (n,), lambda x: lambda i: x[i] * 2) for n in (3, 4, 5)]
    made = [Estimate(f"{n}", staged=bool(n % 2), bound=n * 1e-6) for n in range(3)]
    store.put_estimates({exprs[0]: made[0]})
    store.put_estimates({exprs[1]: made[1]})
    assert store.estimates(exprs) == [made[0], made[1], None]
    assert ScheduleStore(Cache(), context(machine, 2, {}, [], [])).estimates(exprs) == [None] * 3
    monkeypatch.setattr("nestegg.stored.MOST_ESTIMATES", 2)
    store.put_estimates({exprs[2]: made[2]})
    assert store.estimates(exprs) == [None, None, made[2]]


def test_processes_at_once_leave_one_whole_entry(folder):
    code = (
        "import numpy as np, nestegg\n"
        "f = nestegg.optimize(lambda x: x * np.float32(3) + 1, np.ones((4, 8), np.float32))\n"
        "assert (f(np.ones((4, 8), np.float32)) == 4).all()"
    )
    env = {**os.environ, "NESTEGG_CACHE_DIR": str(folder)}
    running = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], env=env) for _ in range(2)]
    assert [p.wait() for p in running] == [0, 0]
    assert len(entries(folder, "programs")) == 1


@given(st.dictionaries(st.text("abc", min_size=1), st.binary(max_size=200), min_size=1))
def test_what_is_written_is_read(tmp_path_factory, parts):
    cache = Cache(tmp_path_factory.mktemp("entries"))
    cache.write("programs/a/b", parts)
    found = cache.read("programs/a/b")
    assert found is not None
    assert {k: v.tobytes() for k, v in found.items()} == parts


@given(st.binary(min_size=1, max_size=60), st.data())
def test_no_changed_byte_passes(tmp_path_factory, content, data):
    cache = Cache(tmp_path_factory.mktemp("entries"))
    cache.write("programs/a/b", {"x": content})
    path = cache.folder / "programs/a/b"
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cache.read("programs/a/b")
    assert found is None or found["x"].tobytes() == content


def test_digests_know_where_parts_end():
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest([np.arange(5)]) == digest([np.arange(5).tobytes()])


def test_the_least_recently_used_goes_first(folder):
    cache = Cache(folder)
    for k, name in enumerate(("programs/a/a", "programs/b/b", "kernels/c/c")):
        cache.write(name, {"x": bytes(1000)})
        os.utime(folder / name, (k, k))
    assert cache.read("programs/a/a"), "reading makes it recent"
    assert Cache(folder, limit=2800).evict() == 1
    assert [p.name for p in entries(folder)] == ["c", "a"]


def test_the_command_says_what_is_kept_and_removes_it(folder):
    nestegg.optimize(layer, X)

    def run(*args):
        command = [sys.executable, "-m", "nestegg.cli", "cache", *args, "--json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    held = run("info")
    assert held["folder"] == str(folder)
    assert held["entries"]["programs"] == 1 and held["bytes"]["programs"] > 100
    assert run("clear") == held
    assert run("info")["entries"] == {"programs": 0, "kernels": 0}


def test_what_is_read_is_the_file_itself(tmp_path):
    cache = Cache(tmp_path / "own")
    block = np.arange(1000, dtype=np.uint8)
    cache.write("programs/a", {"text": b"abc", "block": block})
    parts = cache.read("programs/a")
    assert parts is not None
    np.testing.assert_array_equal(parts["block"], block)
    assert not parts["block"].flags.writeable and parts["block"].ctypes.data % 64 == 0
    cache.write("programs/a", {"text": b"abc", "block": block + 1})
    np.testing.assert_array_equal(parts["block"], block)  # a new entry is a new file: who reads the old one keeps it
