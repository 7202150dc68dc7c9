"""Both entries of a program: what they take, what they refuse, that nothing leaks, and calls from several threads."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from nestegg.codegen import jit, python_entry
from nestegg.codegen.ctypes_entry import CtypesEntry
from nestegg.codegen.memory import aligned_bytes
from nestegg.codegen.native import Native
from nestegg.codegen.python_entry import PythonEntry, unsupported
from nestegg.ir.target import host
from nestegg.ir.types import DTYPES, TensorType

F23 = TensorType((2, 3))
#: y = (x + c) through the arena, on six f32, slowly enough for calls to overlap: `x` is copied to the arena many times.
ADD = """
define void @run(ptr %inputs, ptr %outputs, ptr %constants, ptr %arena) {
entry:
  %x = load ptr, ptr %inputs
  %y = load ptr, ptr %outputs
  %c = load float, ptr %constants
  br label %copy
copy:
  %i = phi i64 [0, %entry], [%next, %copy]
  %k = urem i64 %i, 6
  %from = getelementptr float, ptr %x, i64 %k
  %to = getelementptr float, ptr %arena, i64 %k
  %v = load volatile float, ptr %from
  store volatile float %v, ptr %to
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, 6000
  br i1 %more, label %copy, label %sum
sum:
  %j = phi i64 [0, %copy], [%following, %sum]
  %at = getelementptr float, ptr %arena, i64 %j
  %out = getelementptr float, ptr %y, i64 %j
  %a = load volatile float, ptr %at
  %s = fadd float %a, %c
  store float %s, ptr %out
  %following = add i64 %j, 1
  %again = icmp ult i64 %following, 6
  br i1 %again, label %sum, label %done
done:
  ret void
}
"""
#: Writes nothing: for types that only have to be accepted.
NOTHING = "define void @run(ptr %inputs, ptr %outputs, ptr %constants, ptr %arena) { ret void }"

Make = Callable[..., PythonEntry | CtypesEntry]


@pytest.fixture(params=["machine code", "ctypes"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes an entry of each kind for a program in LLVM IR."""

    def entry(text: str, inputs: list[TensorType], outputs: list[TensorType], bare: bool = False, seconds: float = 0.0):
        loaded = jit.load_object(jit.compile_object(text, host()), ("run",))
        constants = aligned_bytes(64)
        constants.view(np.float32)[0] = 100
        native = Native(loaded.symbols["run"], constants.ctypes.data, 64, constants)
        if request.param == "ctypes":
            return CtypesEntry(native, inputs, outputs, bare)
        return PythonEntry(native, inputs, outputs, bare, seconds)

    return entry


def sample() -> np.ndarray:
    return np.arange(6, dtype=np.float32).reshape(2, 3)


def test_machine_code_serves_this_python():
    assert unsupported() == ""


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["keeps the GIL", "releases the GIL"])
def test_call_and_into(make: Make, seconds: float):
    entry = make(ADD, [F23], [F23], seconds=seconds)
    x = sample()
    (y,) = entry.call(x)
    np.testing.assert_array_equal(y, x + 100)
    assert type(y) is np.ndarray and y.dtype == np.float32 and y.flags.owndata and y.flags.writeable
    given = np.empty_like(x)
    (same,) = entry.into(x, given)
    assert same is given
    np.testing.assert_array_equal(given, x + 100)


def test_bare(make: Make):
    entry = make(ADD, [F23], [F23], bare=True)
    np.testing.assert_array_equal(entry.call(sample()), sample() + 100)


class Subclass(np.ndarray):
    pass


def unaligned() -> np.ndarray:
    return np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3)


REFUSED = {
    "another dtype": sample().astype(np.float64),
    "as wide an integer": sample().astype(np.int32),
    "big-endian": sample().astype(">f4"),
    "another shape": np.zeros((3, 2), np.float32),
    "a shape of higher rank": np.zeros((2, 3, 1), np.float32),
    "rank 0": np.float32(1).reshape(()),
    "Fortran order": np.asfortranarray(sample()),
    "strided": np.zeros((2, 6), np.float32)[:, ::2],
    "unaligned": unaligned(),
    "objects": np.full((2, 3), None),
    "a subclass": sample().view(Subclass),
    "masked": np.ma.masked_array(sample()),
    "a NumPy scalar": np.float32(1),
    "a list": [[0.0] * 3] * 2,
    "None": None,
}


@pytest.mark.parametrize("wrong", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(make: Make, wrong: object):
    entry = make(ADD, [F23, F23], [F23])
    before = sys.getrefcount(wrong), sys.getrefcount(None)
    for _ in range(100):
        assert entry.call(sample(), wrong) is None
        assert entry.into(sample(), sample(), wrong) is None
    after = sys.getrefcount(wrong), sys.getrefcount(None)
    assert all(abs(a - b) < 50 for a, b in zip(after, before, strict=True)), "a count grew or shrank with the calls"


def test_wrong_numbers_of_arguments_are_refused(make: Make):
    entry, x = make(ADD, [F23], [F23]), sample()
    assert entry.call() is None and entry.call(x, x) is None
    assert entry.into(x) is None and entry.into(x, x, x) is None


def test_inputs_may_be_read_only_and_outputs_not(make: Make):
    entry, x = make(ADD, [F23], [F23]), sample()
    x.flags.writeable = False
    np.testing.assert_array_equal(entry.call(x)[0], x + 100)
    assert entry.into(sample(), x) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_only_that(make: Make, dtype: str):
    entry = make(NOTHING, [TensorType((4,), dtype)], [TensorType((2,), dtype)])
    for other in DTYPES:
        results = entry.call(np.zeros(4, DTYPES[other].numpy))
        assert (results is not None) == (other == dtype)
    (y,) = entry.call(np.zeros(4, DTYPES[dtype].numpy))
    assert y.dtype == DTYPES[dtype].numpy and y.shape == (2,)


def test_a_copy_of_a_dtype_is_the_dtype(make: Make):
    import pickle

    x = pickle.loads(pickle.dumps(np.array([1.0], np.float32)))
    x = x.view(np.dtype(np.float32, metadata={"unit": "m"}))
    assert make(NOTHING, [TensorType((1,))], []).call(x) == ()


def test_ranks_empty_tensors_and_no_arguments(make: Make):
    shapes = [(), (0, 3), (1, 1, 1, 1, 1), (2,)]
    types = [TensorType(s) for s in shapes]
    results = make(NOTHING, types, types).call(*(np.zeros(s, np.float32) for s in shapes))
    assert [r.shape for r in results] == shapes
    assert make(NOTHING, [], []).call() == ()
    assert make(NOTHING, [], [F23]).call()[0].shape == (2, 3)


def test_many_arguments(make: Make):
    types = [TensorType((k,)) for k in range(300)]
    arrays = [np.zeros(k, np.float32) for k in range(300)]
    assert len(make(NOTHING, types, types).call(*arrays)) == 300
    arrays[299] = np.zeros(1, np.float32)
    assert make(NOTHING, types, types).call(*arrays) is None


@pytest.mark.parametrize("bare", [False, True])
def test_nothing_leaks(make: Make, bare: bool):
    entry, x, given = make(ADD, [F23], [F23], bare, seconds=1.0), sample(), np.empty((2, 3), np.float32)

    def use(times: int) -> None:
        for _ in range(times):
            entry.call(x)
            entry.into(x, given)
            entry.call(None)

    use(10)
    counts = [sys.getrefcount(o) for o in (x, given, x.dtype)]
    tracemalloc.start()
    try:
        use(10)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        use(3000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    smallest = 16  # bytes that the interpreter allocates for an object, at least; other code may keep a few KB
    assert grown < 3000 * smallest, f"{grown} bytes more after 3000 rounds"
    assert all(abs(sys.getrefcount(o) - c) < 100 for o, c in zip((x, given, x.dtype), counts, strict=True))


def test_functions_outlive_their_entry():
    loaded = jit.load_object(jit.compile_object(ADD, host()), ("run",))
    constants = aligned_bytes(64)
    constants.view(np.float32)[0] = 1
    call = PythonEntry(Native(loaded.symbols["run"], constants.ctypes.data, 64, constants), [F23], [F23]).call
    del constants
    gc.collect()
    np.testing.assert_array_equal(call(sample())[0], sample() + 1)


def test_results_die_with_their_last_reference(make: Make):
    (y,) = make(ADD, [F23], [F23]).call(sample())
    other = sample()
    assert sys.getrefcount(y) == sys.getrefcount(other)


def test_out_of_memory_is_an_exception(make: Make):
    huge = TensorType((1 << 40, 1 << 10))
    entry = make(NOTHING, [], [F23, huge])
    for _ in range(3):
        with pytest.raises(MemoryError):
            entry.call()


def test_a_failing_arena_is_an_exception(monkeypatch: pytest.MonkeyPatch):
    def fail(size: int) -> np.ndarray:
        raise MemoryError(f"no {size} bytes")

    loaded = jit.load_object(jit.compile_object(NOTHING, host()), ("run",))
    entry = PythonEntry(Native(loaded.symbols["run"], 0, 128), [F23], [F23])
    x = sample()
    with monkeypatch.context() as patch:
        patch.setattr(python_entry, "aligned_bytes", fail)
        for _ in range(3):
            with pytest.raises(MemoryError, match="no 192 bytes"):
                entry.call(x)
    assert len(entry.call(x)) == 1


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["keeps the GIL", "releases the GIL"])
def test_threads(make: Make, seconds: float):
    entry = make(ADD, [F23], [F23], bare=True, seconds=seconds)
    wrong: list[str] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        x = sample() * (number + 1)
        start.wait()
        for _ in range(500):
            y = entry.call(x)
            if not np.array_equal(y, x + 100):
                wrong.append(f"thread {number}: {y}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]


@pytest.mark.skipif(not hasattr(sys, "setswitchinterval"), reason="needs CPython's GIL")
def test_long_programs_release_the_gil():
    """Another thread runs Python while the program waits for what that thread writes."""
    wait = """
    define void @run(ptr %inputs, ptr %outputs, ptr %constants, ptr %arena) {
    entry:
      %x = load ptr, ptr %inputs
      br label %loop
    loop:
      %v = load volatile float, ptr %x
      %go = fcmp oeq float %v, 0.0
      br i1 %go, label %loop, label %done
    done:
      ret void
    }
    """
    loaded = jit.load_object(jit.compile_object(wait, host()), ("run",))
    entry = PythonEntry(Native(loaded.symbols["run"], 0, 0), [TensorType((1,))], [], seconds=1.0)
    x = np.zeros(1, np.float32)
    called = threading.Thread(target=entry.call, args=(x,), daemon=True)
    called.start()
    x[0] = 1
    called.join(timeout=20)
    assert not called.is_alive()


def test_the_layout_check_sees_another_layout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(python_entry._Array, "nd", python_entry._Array.flags)
    assert "NumPy" in unsupported()


def test_other_pythons_use_ctypes(monkeypatch: pytest.MonkeyPatch):
    import nestegg

    monkeypatch.setattr(python_entry.sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    compiled = nestegg.optimize(lambda x: x + 1, sample())
    assert compiled.executable.entry.kind == "ctypes: this Python has no GIL"
    np.testing.assert_array_equal(compiled(sample()), sample() + 1)
