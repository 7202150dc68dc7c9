"""The thread pool: every task runs once, whoever calls, however long after, and in a forked child too."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import nestegg
from nestegg.codegen.jit import compile_object, load_object
from nestegg.codegen.pool import CLOSE, ENTRY, MAX_THREADS, OPEN, VISIT, pool_llvm, pool_symbols
from nestegg.ir.nest import parallel
from nestegg.ir.target import TARGETS, host

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
#: Big enough for the cost model to divide the work.
SIZE = 128


def fork_join(task: Callable[[int], None], count: int, threads: int) -> None:
    """`task(index)` for every index, by the pool; tasks are Python functions, so one runs at a time."""
    call = ctypes.CFUNCTYPE(None, TASK, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(pool_symbols()[ENTRY])
    call(TASK(lambda _, index: task(index)), None, count, threads)


@pytest.fixture(scope="module")
def product() -> nestegg.Compiled:
    """A matrix product that runs on two threads."""
    a = np.ones((SIZE, SIZE), np.float32)
    compiled = nestegg.optimize(lambda x, y: x @ y, a, a, threads=2)
    assert any(parallel(c.nest) for c in compiled.program.calls)
    return compiled


def check(product: nestegg.Compiled, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, SIZE, SIZE)).astype(np.float32)
    np.testing.assert_allclose(product(x, y), x @ y, rtol=1e-4, atol=1e-4)


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked child that does some work; 0 if nothing was raised. It has ten seconds."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1


@pytest.mark.parametrize("threads", [1, 2, 3, MAX_THREADS + 1])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_every_task_runs_once(count, threads):
    ran = Counter[int]()
    fork_join(lambda index: ran.update([index]), count, threads)
    assert ran == Counter(range(count))


def test_two_threads_run_tasks():
    """Each task waits for the other: one thread alone would never finish."""
    both = threading.Barrier(2, timeout=10)
    broken = []

    def meet(index: int) -> None:
        try:
            both.wait()
        except threading.BrokenBarrierError:
            broken.append(index)

    fork_join(meet, 2, 2)
    assert not broken


def test_no_more_threads_than_asked_for():
    fork_join(lambda index: None, 9, 4)  # three workers exist from here on
    who = set()
    fork_join(lambda index: (time.sleep(0.002), who.add(threading.get_ident())), 20, 2)
    assert len(who) <= 2


def visits() -> tuple[Callable[[], int], Callable[[int], None], Callable[[int], None]]:
    """Open, visit and close."""
    at = pool_symbols()
    return (
        ctypes.CFUNCTYPE(ctypes.c_int64)(at[OPEN]),
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(at[VISIT]),
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(at[CLOSE]),
    )


def test_while_a_visit_is_open_visitors_run_tasks_and_workers_do_not():
    open_visit, visit, close = visits()
    fork_join(lambda index: None, 9, 3)  # workers exist
    time.sleep(0.05)  # and sleep
    number = open_visit()
    assert number and not open_visit(), "one visit at a time"
    visitor = threading.Thread(target=visit, args=(number,))
    who, both = set(), threading.Barrier(2, timeout=10)

    def task(index: int) -> None:
        who.add(threading.get_ident())
        if index < 2:
            both.wait()

    visitor.start()
    fork_join(task, 2, 2)
    assert who == {threading.get_ident(), visitor.ident}
    close(number)
    visitor.join(10)
    assert not visitor.is_alive()
    fork_join(lambda index: None, 9, 3)


def test_visitors_that_come_late_or_on_the_caller_s_own_thread_leave():
    open_visit, visit, close = visits()
    late = open_visit()
    close(late)
    number = open_visit()
    assert number > late
    close(late)  # no visit's number any more
    visit(late)
    visit(number)
    assert not open_visit(), "still open"
    close(number)


def test_a_task_may_fork_in_turn():
    ran = Counter[tuple[int, int]]()
    fork_join(lambda i: fork_join(lambda j: ran.update([(i, j)]), 3, 2), 4, 2)
    assert ran == Counter((i, j) for i in range(4) for j in range(3))


def test_calls_with_gaps_between_them(product):
    for k, gap in enumerate((0, 0, 1e-5, 1e-4, 3e-4, 1e-3, 0.02) * 6):
        time.sleep(gap)
        check(product, k)


def test_concurrent_callers(product):
    """One of them has the pool; the others run their tasks themselves."""
    failed = []

    def caller(k: int) -> None:
        try:
            for n in range(30):
                check(product, 100 * k + n)
        except AssertionError as error:
            failed.append(error)

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for t in callers:
        t.start()
    for t in callers:
        t.join()
    assert not failed


def test_two_programs_share_the_pool(product):
    a = np.arange(SIZE * SIZE * 4, dtype=np.float32).reshape(SIZE, -1) / 1e5
    other = nestegg.optimize(lambda x: (x @ x.T) + 1, a, threads=2)
    assert any(parallel(c.nest) for c in other.program.calls)
    before = len(os.listdir("/proc/self/task"))
    for k in range(20):
        check(product, k)
        np.testing.assert_allclose(other(a), a @ a.T + 1, rtol=1e-4)
    assert len(os.listdir("/proc/self/task")) <= max(before, 2)


def test_a_forked_child_computes(product):
    check(product, 0)
    assert in_child(lambda: [check(product, k) for k in range(5)]) == 0  # type: ignore[arg-type, return-value]
    check(product, 1)


def test_a_forked_child_has_workers_of_its_own(product):
    check(product, 0)
    assert in_child(test_two_threads_run_tasks) == 0


def test_a_child_forked_during_a_call_computes(product):
    """The fork happens while another thread's call owns the pool and has tasks unclaimed."""
    inside, leave = threading.Event(), threading.Event()
    caller = threading.Thread(target=lambda: fork_join(lambda index: (inside.set(), leave.wait(10)), 8, 2))
    caller.start()
    assert inside.wait(10)
    assert in_child(lambda: check(product, 2)) == 0
    leave.set()
    caller.join()
    check(product, 3)


def test_one_thread_touches_no_pool():
    a = np.ones((SIZE, SIZE), np.float32)
    compiled = nestegg.optimize(lambda x, y: x @ y, a, a, threads=1)
    assert not compiled.program.forks
    assert ENTRY not in compiled.program.llvm


@pytest.mark.parametrize("target", [*TARGETS.values(), host()], ids=lambda t: t.name)
def test_the_pool_compiles_for(target):
    assert compile_object(pool_llvm(target), target)[:4] == b"\x7fELF"


def test_a_program_is_linked_with_the_pool(product):
    """Ahead of time: the program's object leaves only the pool's entry undefined, and the pool's defines it."""
    symbols = load_object(compile_object(pool_llvm(host()), host()), (ENTRY,)).symbols
    loaded = load_object(product.program.object, ("nestegg_run",), symbols)
    x, y = np.random.default_rng(0).standard_normal((2, SIZE, SIZE)).astype(np.float32)
    out, arena = np.empty_like(x), np.empty(max(product.program.memory.peak, 1), np.uint8)
    tables = (ctypes.c_void_p * 2)(x.ctypes.data, y.ctypes.data), (ctypes.c_void_p * 1)(out.ctypes.data)
    loaded.function("nestegg_run", *[ctypes.c_void_p] * 4)(*tables, None, arena.ctypes.data)
    np.testing.assert_allclose(out, x @ y, rtol=1e-4, atol=1e-4)
