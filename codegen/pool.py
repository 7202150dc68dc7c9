"""The thread pool: fork and join of a parallel loop, one small LLVM module that needs only pthreads.

    void nestegg_parallel(void (*task)(void *context, i64 index), void *context, i64 count, i64 threads)

calls `task(context, 0 … count - 1)` on at most `threads` threads, of which the caller is one, and returns when all
calls are done. There is one pool in a process; programs declare the entry as external and are given its address (an
object file is linked with the object of `pool_llvm`). A pool of our own because a fork and join of OpenMP's takes
several times as long, and neither of its libraries may be counted on where a program runs.

How it works. Each thread has its part of the tasks, always the same for the same count, so that what it wrote in one
loop lies in its cache in the next; who is done helps others. A part is a word, `epoch << 32 | tasks not yet claimed`,
counted down by compare-and-swap: who succeeds has read the job that belongs to the word, since a later job has another
epoch. The caller waits for finished *tasks*, never for workers, so a worker that is descheduled before it has claimed
anything costs nothing, and in a forked child, which has no workers, a call still completes. A caller that finds the
pool busy (another thread's call, or a task that forks in turn) runs its tasks itself. Workers start with the first call
that wants them, look for work for a while, then sleep on a semaphore each; semaphores rather than a condition variable,
because posting one is safe in a forked child whatever other threads did. Before the caller wakes a worker it bars it
from its own CPU: the kernel likes to put it there, where it would wait for the caller's time slice to end.

Threads of another pool can take the workers' place: inside `jax.jit`, XLA's (`xla_handler.py`), whose cores workers of
ours would contend for.

    i64 nestegg_pool_open(void)            a visit begins; its number, or 0 while there is another
    void nestegg_pool_visit(void *visit)   what a visiting thread calls: helps until the visit is closed
    void nestegg_pool_close(i64 visit)

While a visit is open no worker is started or woken. A visitor that comes late finds another number and leaves; so does
one on the thread that opened the visit, for a pool may run a task on the thread that hands it over.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from llvmlite import ir

from ..ir.target import Target, host
from . import jit
from .llvm_types import I64, POINTER

ENTRY = "nestegg_parallel"
FORKED = "nestegg_pool_forked"
OPEN, VISIT, CLOSE = VISITS = ("nestegg_pool_open", "nestegg_pool_visit", "nestegg_pool_close")

#: Threads of one job at most; what a program asks for beyond is not used.
MAX_THREADS = 256
#: How long a worker looks for work before it sleeps, in nanoseconds: longer than the serial parts between the loops
#: of a program, short enough not to take a core from others.
SPIN_NS = 60_000
#: Bytes of a worker's stack, where partial results of cut reductions lie (64 KiB each). Not the usual 8 MiB: 255 of
#: those split the address space, and the JIT needs the sections of an object within 2 GiB of each other.
STACK = 1 << 20

_PAUSE = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}


def pool_llvm(target: Target) -> str:
    """The pool's module as LLVM IR (Linux: `sched_getcpu`, unnamed semaphores; 64-bit, little-endian)."""
    declaration, pause = _PAUSE.get(target.triple.split("-")[0], ("", ""))
    values = {"MAX_THREADS": MAX_THREADS, "SPIN_NS": SPIN_NS, "STACK": STACK}
    values |= {"FLAG_BYTES": 4 * MAX_THREADS, "WORD_BYTES": 64 * MAX_THREADS}
    text = _MODULE.replace("PAUSE", pause)
    for name, value in values.items():
        text = text.replace(name, str(value))
    return f"{text}{declaration}\n"


_MODULE = """
@words = internal global [MAX_THREADS x [8 x i64]] zeroinitializer, align 64  ; epoch << 32 | tasks not yet claimed
@epoch = internal global i64 0, align 64       ; number of the job
@unfinished = internal global i64 0, align 64  ; tasks of the job not yet done
@task = internal global ptr null, align 64     ; the job; written only while no task is unclaimed
@context = internal global ptr null
@count = internal global i64 0
@threads = internal global i64 0
@busy = internal global i32 0, align 64        ; a caller owns the pool
@started = internal global i64 0               ; workers running, numbered from 1; written by the owner
@most = internal global i64 MAX_THREADS        ; lowered when the system refuses a thread
@allowed = internal global [128 x i8] zeroinitializer, align 64  ; CPUs of the thread that started the workers
@handles = internal global [MAX_THREADS x i64] zeroinitializer, align 64
@kept_off = internal global [MAX_THREADS x i32] zeroinitializer, align 64  ; the CPU that a worker stays away from
@asleep = internal global [MAX_THREADS x i32] zeroinitializer, align 64
@semaphores = internal global [MAX_THREADS x [64 x i8]] zeroinitializer, align 64
@visit = internal global i64 0, align 64       ; the visit that is open, or 0
@visits = internal global i64 0                ; so many were asked for
@visitors = internal global i64 0              ; threads that came to the visit
@visited = internal global i64 0               ; the thread that opened it

define void @nestegg_parallel(ptr %task, ptr %context, i64 %count, i64 %threads) {
entry:
  %lock = cmpxchg ptr @busy, i32 0, i32 1 acquire monotonic
  %mine = extractvalue { i32, i1 } %lock, 1
  %fits = icmp ult i64 %count, 4294967296
  br i1 %mine, label %owner, label %alone
owner:
  br i1 %fits, label %publish, label %alone_owner
publish:
  %most = load i64, ptr @most
  %fewer = icmp ult i64 %threads, %most
  %wanted = select i1 %fewer, i64 %threads, i64 %most
  %visit = load atomic i64, ptr @visit monotonic, align 8
  %open = icmp ne i64 %visit, 0
  br i1 %open, label %hand_out, label %own
own:
  call void @start(i64 %wanted)
  br label %hand_out
hand_out:
  store atomic ptr %task, ptr @task monotonic, align 8
  store atomic ptr %context, ptr @context monotonic, align 8
  store atomic i64 %count, ptr @count monotonic, align 8
  store atomic i64 %wanted, ptr @threads monotonic, align 8
  store atomic i64 %count, ptr @unfinished monotonic, align 8
  %old = load atomic i64, ptr @epoch monotonic, align 8
  %epoch = add i64 %old, 1
  call void @deal(i64 %epoch, i64 %count, i64 %wanted)
  store atomic i64 %epoch, ptr @epoch seq_cst, align 8
  %few = icmp ult i64 %count, %wanted
  %useful = select i1 %few, i64 %count, i64 %wanted
  br i1 %open, label %work, label %rouse
rouse:
  call void @wake(i64 %useful)
  br label %work
work:
  %parts = call i64 @take_part(i64 0)
  br label %wait
wait:
  %rounds = phi i64 [ 0, %work ], [ %more, %patient ], [ %more, %yield ]
  %left = load atomic i64, ptr @unfinished acquire, align 8
  %done = icmp eq i64 %left, 0
  br i1 %done, label %release, label %patience
patience:
  PAUSE
  %more = add i64 %rounds, 1
  %long = icmp ugt i64 %more, 4096
  br i1 %long, label %yield, label %patient
patient:
  br label %wait
yield:                                          ; who holds the last task may be waiting for this CPU
  %yielded = call i32 @sched_yield()
  br label %wait
release:
  store atomic i32 0, ptr @busy release, align 4
  ret void
alone:
  call void @run_alone(ptr %task, ptr %context, i64 %count)
  ret void
alone_owner:
  call void @run_alone(ptr %task, ptr %context, i64 %count)
  store atomic i32 0, ptr @busy release, align 4
  ret void
}

define internal void @run_alone(ptr %task, ptr %context, i64 %count) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %done
body:
  call void %task(ptr %context, i64 %i)
  %next = add i64 %i, 1
  br label %loop
done:
  ret void
}

; Publishes each thread's part of the tasks.
define internal void @deal(i64 %epoch, i64 %count, i64 %threads) {
entry:
  %high = shl i64 %epoch, 32
  br label %loop
loop:
  %part = phi i64 [ 0, %entry ], [ %next, %loop ]
  %first = phi i64 [ 0, %entry ], [ %end, %loop ]
  %next = add i64 %part, 1
  %end = call i64 @end_of(i64 %part, i64 %count, i64 %threads)
  %tasks = sub i64 %end, %first
  %new = or i64 %high, %tasks
  %word = getelementptr [8 x i64], ptr @words, i64 %part
  store atomic i64 %new, ptr %word release, align 8
  %more = icmp ult i64 %next, %threads
  br i1 %more, label %loop, label %done
done:
  ret void
}

; Part k is the tasks from end_of(k - 1) to end_of(k).
define internal i64 @end_of(i64 %part, i64 %count, i64 %threads) {
entry:
  %next = add i64 %part, 1
  %scaled = mul i64 %next, %count
  %end = udiv i64 %scaled, %threads
  ret i64 %end
}

; Claims and runs tasks until none is left, first of the thread's own part, then of others'. The caller is number 0.
; Returns how many threads the job is for.
define internal i64 @take_part(i64 %number) {
entry:
  %parts = load atomic i64, ptr @threads acquire, align 8
  br label %choose
choose:
  %away = phi i64 [ 0, %entry ], [ %farther, %empty ]
  %more = icmp ult i64 %away, %parts
  %sum = add i64 %number, %away
  %wraps = icmp uge i64 %sum, %parts
  %wrapped = sub i64 %sum, %parts
  %part = select i1 %wraps, i64 %wrapped, i64 %sum
  %address = getelementptr [8 x i64], ptr @words, i64 %part
  %may = icmp ult i64 %number, %parts
  %go = and i1 %more, %may
  br i1 %go, label %look, label %out
look:
  %word = load atomic i64, ptr %address acquire, align 8
  %left = and i64 %word, 4294967295
  %none = icmp eq i64 %left, 0
  br i1 %none, label %empty, label %read
read:
  %task = load atomic ptr, ptr @task monotonic, align 8
  %context = load atomic ptr, ptr @context monotonic, align 8
  %count = load atomic i64, ptr @count monotonic, align 8
  %threads = load atomic i64, ptr @threads monotonic, align 8
  %same = icmp eq i64 %threads, %parts            ; else a later job, for which this thread may not be wanted
  br i1 %same, label %claim, label %out
claim:
  %less = sub i64 %word, 1
  %swap = cmpxchg ptr %address, i64 %word, i64 %less acq_rel monotonic
  %won = extractvalue { i64, i1 } %swap, 1
  br i1 %won, label %run, label %look
run:
  %end = call i64 @end_of(i64 %part, i64 %count, i64 %threads)
  %index = sub i64 %end, %left
  call void %task(ptr %context, i64 %index)
  %before = atomicrmw sub ptr @unfinished, i64 1 acq_rel
  br label %look
empty:
  %farther = add i64 %away, 1
  br label %choose
out:
  ret i64 %parts
}

; Workers 1 … threads - 1, those that do not run yet.
define internal void @start(i64 %threads) {
entry:
  %attributes = alloca [128 x i8], align 16
  %running = load i64, ptr @started
  %first = icmp eq i64 %running, 0
  br i1 %first, label %ask, label %loop
ask:
  %asked = call i32 @sched_getaffinity(i32 0, i64 128, ptr @allowed)
  br label %loop
loop:
  %have = load i64, ptr @started
  %number = add i64 %have, 1
  %more = icmp ult i64 %number, %threads
  br i1 %more, label %create, label %done
create:
  %semaphore = getelementptr [64 x i8], ptr @semaphores, i64 %number
  %a = call i32 @sem_init(ptr %semaphore, i32 0, i32 0)
  %b = call i32 @pthread_attr_init(ptr %attributes)
  %c = call i32 @pthread_attr_setstacksize(ptr %attributes, i64 STACK)
  %handle = getelementptr i64, ptr @handles, i64 %number
  %argument = inttoptr i64 %number to ptr
  %error = call i32 @pthread_create(ptr %handle, ptr %attributes, ptr @worker, ptr %argument)
  %d = call i32 @pthread_attr_destroy(ptr %attributes)
  %failed = icmp ne i32 %error, 0
  br i1 %failed, label %refused, label %created
created:
  %last = getelementptr i32, ptr @kept_off, i64 %number
  store i32 -1, ptr %last
  call void @keep_off(i64 %number)
  store i64 %number, ptr @started
  br label %loop
refused:
  store i64 %number, ptr @most
  br label %done
done:
  ret void
}

; Wakes those of the workers 1 … threads - 1 that sleep.
define internal void @wake(i64 %threads) {
entry:
  br label %loop
loop:
  %k = phi i64 [ 1, %entry ], [ %next, %step ]
  %more = icmp ult i64 %k, %threads
  br i1 %more, label %look, label %done
look:
  %flag = getelementptr i32, ptr @asleep, i64 %k
  %sleeps = load atomic i32, ptr %flag seq_cst, align 4
  %idle = icmp ne i32 %sleeps, 0
  br i1 %idle, label %claim, label %step
claim:
  %swap = cmpxchg ptr %flag, i32 1, i32 0 seq_cst monotonic
  %won = extractvalue { i32, i1 } %swap, 1
  br i1 %won, label %post, label %step
post:
  call void @keep_off(i64 %k)
  %semaphore = getelementptr [64 x i8], ptr @semaphores, i64 %k
  %posted = call i32 @sem_post(ptr %semaphore)
  br label %step
step:
  %next = add i64 %k, 1
  br label %loop
done:
  ret void
}

define internal ptr @worker(ptr %argument) {
entry:
  %signals = alloca [128 x i8], align 16
  call void @llvm.memset.p0.i64(ptr align 16 %signals, i8 -1, i64 128, i1 false)
  %masked = call i32 @pthread_sigmask(i32 2, ptr %signals, ptr null)  ; SIG_SETMASK: signals are others' business
  %number = ptrtoint ptr %argument to i64
  %flag = getelementptr i32, ptr @asleep, i64 %number
  %semaphore = getelementptr [64 x i8], ptr @semaphores, i64 %number
  br label %awake
awake:
  %known = phi i64 [ 0, %entry ], [ %job, %work ], [ %seen, %stay ], [ %seen, %wait ]  ; the last job taken part in
  %from = call i64 @now()
  br label %poll
poll:
  %seen = phi i64 [ %known, %awake ], [ %job, %work ], [ %seen, %idle ], [ %seen, %clock ]
  %polls = phi i64 [ 0, %awake ], [ %polls, %work ], [ %polls_more, %idle ], [ 0, %clock ]
  %job = load atomic i64, ptr @epoch acquire, align 8
  %new = icmp ne i64 %job, %seen
  br i1 %new, label %work, label %idle
work:
  %parts = call i64 @take_part(i64 %number)
  %wanted = icmp ult i64 %number, %parts
  br i1 %wanted, label %awake, label %poll
idle:
  PAUSE
  %polls_more = add i64 %polls, 1
  %many = icmp uge i64 %polls_more, 32
  br i1 %many, label %clock, label %poll
clock:
  %time = call i64 @now()
  %spent = sub i64 %time, %from
  %tired = icmp ugt i64 %spent, SPIN_NS
  br i1 %tired, label %sleep, label %poll
sleep:                                          ; first say so, then look again: the caller does it the other way round
  store atomic i32 1, ptr %flag seq_cst, align 4
  %last = load atomic i64, ptr @epoch seq_cst, align 8
  %nothing = icmp eq i64 %last, %seen
  br i1 %nothing, label %wait, label %stay
stay:
  %swap = cmpxchg ptr %flag, i32 1, i32 0 seq_cst monotonic
  %won = extractvalue { i32, i1 } %swap, 1
  br i1 %won, label %awake, label %wait
wait:
  %waited = call i32 @sem_wait(ptr %semaphore)
  %interrupted = icmp ne i32 %waited, 0
  br i1 %interrupted, label %wait, label %awake
}

; Keeps a worker off the CPU that this thread runs on.
define internal void @keep_off(i64 %number) {
entry:
  %others = alloca [128 x i8], align 16
  %cpu = call i32 @sched_getcpu()
  %known = icmp ult i32 %cpu, 1024
  %last = getelementptr i32, ptr @kept_off, i64 %number
  %before = load i32, ptr %last
  %moved = icmp ne i32 %before, %cpu
  %must = and i1 %known, %moved
  br i1 %must, label %move, label %done
move:
  call void @llvm.memcpy.p0.p0.i64(ptr align 16 %others, ptr align 16 @allowed, i64 128, i1 false)
  %byte = lshr i32 %cpu, 3
  %bit = and i32 %cpu, 7
  %place = getelementptr i8, ptr %others, i32 %byte
  %bits = load i8, ptr %place
  %bit8 = trunc i32 %bit to i8
  %one = shl i8 1, %bit8
  %without = xor i8 %one, -1
  %kept = and i8 %bits, %without
  store i8 %kept, ptr %place
  %slot = getelementptr i64, ptr @handles, i64 %number
  %handle = load i64, ptr %slot
  %refused = call i32 @pthread_setaffinity_np(i64 %handle, i64 128, ptr %others)  ; where no other CPU is allowed
  store i32 %cpu, ptr %last
  br label %done
done:
  ret void
}

define internal i64 @now() {
entry:
  %time = alloca { i64, i64 }, align 16
  %a = call i32 @clock_gettime(i32 1, ptr %time)  ; CLOCK_MONOTONIC
  %seconds = load i64, ptr %time
  %rest = getelementptr { i64, i64 }, ptr %time, i32 0, i32 1
  %nanoseconds = load i64, ptr %rest
  %whole = mul i64 %seconds, 1000000000
  %total = add i64 %whole, %nanoseconds
  ret i64 %total
}

define i64 @nestegg_pool_open() {
entry:
  %before = atomicrmw add ptr @visits, i64 1 monotonic
  %number = add i64 %before, 1
  %swap = cmpxchg ptr @visit, i64 0, i64 %number acquire monotonic
  %won = extractvalue { i64, i1 } %swap, 1
  br i1 %won, label %opened, label %taken
opened:
  %self = call i64 @pthread_self()
  store atomic i64 %self, ptr @visited monotonic, align 8
  store atomic i64 0, ptr @visitors release, align 8
  ret i64 %number
taken:
  ret i64 0
}

define void @nestegg_pool_close(i64 %number) {
entry:
  %swap = cmpxchg ptr @visit, i64 %number, i64 0 release monotonic
  ret void
}

define void @nestegg_pool_visit(ptr %argument) {
entry:
  %visit = ptrtoint ptr %argument to i64
  %now = load atomic i64, ptr @visit acquire, align 8
  %due = icmp eq i64 %now, %visit
  br i1 %due, label %who, label %leave
who:
  %self = call i64 @pthread_self()
  %opener = load atomic i64, ptr @visited monotonic, align 8
  %same = icmp eq i64 %self, %opener
  br i1 %same, label %leave, label %join
join:
  %before = atomicrmw add ptr @visitors, i64 1 monotonic
  %number = add i64 %before, 1
  br label %poll
poll:
  %seen = phi i64 [ 0, %join ], [ %job, %work ], [ %seen, %idle ], [ %seen, %yield ]
  %polls = phi i64 [ 0, %join ], [ 0, %work ], [ %more, %idle ], [ %more, %yield ]
  %current = load atomic i64, ptr @visit monotonic, align 8
  %goes_on = icmp eq i64 %current, %visit
  br i1 %goes_on, label %look, label %leave
look:
  %job = load atomic i64, ptr @epoch acquire, align 8
  %new = icmp ne i64 %job, %seen
  br i1 %new, label %work, label %idle
work:
  %parts = call i64 @take_part(i64 %number)
  br label %poll
idle:
  PAUSE
  %more = add i64 %polls, 1
  %long = icmp ugt i64 %more, 4096
  br i1 %long, label %yield, label %poll
yield:                                          ; a long serial part: others may have the core
  %yielded = call i32 @sched_yield()
  br label %poll
leave:
  ret void
}

; For a forked child, before it does anything else: workers and callers of the parent do not exist here.
define void @nestegg_pool_forked() {
entry:
  store i64 0, ptr @started
  store i64 MAX_THREADS, ptr @most
  call void @llvm.memset.p0.i64(ptr align 64 @words, i8 0, i64 WORD_BYTES, i1 false)
  call void @llvm.memset.p0.i64(ptr align 64 @asleep, i8 0, i64 FLAG_BYTES, i1 false)
  store atomic i64 0, ptr @visit monotonic, align 8
  store atomic i32 0, ptr @busy release, align 4
  ret void
}

declare i64 @pthread_self()
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_setaffinity_np(i64, i64, ptr)
declare i32 @pthread_attr_init(ptr)
declare i32 @pthread_attr_setstacksize(ptr, i64)
declare i32 @pthread_attr_destroy(ptr)
declare i32 @pthread_sigmask(i32, ptr, ptr)
declare i32 @sem_init(ptr, i32, i32)
declare i32 @sem_post(ptr)
declare i32 @sem_wait(ptr)
declare i32 @sched_getcpu()
declare i32 @sched_yield()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @clock_gettime(i32, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""


_lock = threading.Lock()
_loaded: list[jit.Loaded] = []


def pool_symbols() -> dict[str, int]:
    """Addresses of this process's pool, by the names of its entries; it is compiled and loaded at the first use.

    After `os.fork` the child's pool begins anew. (Where C code forks without telling Python, the child's calls run on
    their caller alone.)
    """
    with _lock:
        if not _loaded:
            pool = jit.load_object(jit.compile_object(pool_llvm(host()), host()), (ENTRY, FORKED, *VISITS))
            os.register_at_fork(after_in_child=pool.function(FORKED))
            _loaded.append(pool)
        return {name: _loaded[0].symbols[name] for name in (ENTRY, *VISITS)}


def emit_fork_join(
    builder: ir.IRBuilder, body: ir.Function, values: Sequence[ir.Value], trips: int, threads: int
) -> None:
    """Calls `body(*values, index)` for every index below `trips`, in parallel.

    The values travel in a context on the caller's stack; a task of the pool unpacks them.
    """
    module = builder.module
    context_type = ir.LiteralStructType([v.type for v in values])
    task = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER, I64]), f"{body.name}_task")
    task.linkage = "internal"
    inside = ir.IRBuilder(task.append_basic_block("entry"))
    packed = inside.load(task.args[0], typ=context_type)
    inside.call(body, [*(inside.extract_value(packed, k) for k in range(len(values))), task.args[1]])
    inside.ret_void()

    with builder.goto_entry_block():
        context = builder.alloca(context_type)
        context.type = POINTER  # llvmlite's allocas still have typed pointers
    whole: ir.Value = ir.Constant(context_type, ir.Undefined)
    for k, v in enumerate(values):
        whole = builder.insert_value(whole, v, k)
    builder.store(whole, context)
    entry = module.globals.get(ENTRY) or ir.Function(
        module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER, I64, I64]), ENTRY
    )
    builder.call(entry, [task, context, ir.Constant(I64, trips), ir.Constant(I64, threads)])
