"""A program as a custom call of XLA: a handler of its foreign function interface (FFI), emitted as machine code.

The handler passes XLA's own buffers on, so nothing is copied and Python is not involved; the arena is one more result
(`u8[arena]`, if the program needs one), which XLA allocates and reuses as it does its own temporaries. So any number
of XLA's threads may call it at once.

Parallel loops run on XLA's threads: the handler opens a visit of the thread pool (`pool.py`) and hands as many tasks
to XLA's pool as the program wants threads beside the caller's. Where XLA has no pool, our own workers run them.

The structs are those of xla/ffi/api/c_api.h, version 0.3, which jaxlib ships (`jax.ffi.include_dir()`); XLA asks a
handler for its version when it is registered, and refuses one that it no longer supports.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from llvmlite import ir

from ..ir.target import host
from . import jit
from .llvm_types import I8, I32, I64, POINTER
from .pool import CLOSE, OPEN, VISIT, pool_symbols
from .program import ENTRY, Executable
from .structs import Struct, address, counting, element, get, on_stack, put

API_VERSION = (0, 3)
_METADATA = 1  # XLA_FFI_Extension_Metadata
_INVALID_ARGUMENT = 3  # XLA_FFI_Error_Code_INVALID_ARGUMENT
_HEAD = [("struct_size", ctypes.c_int64), ("extension", ctypes.c_void_p)]
_HANDLER = "handler"
_CONSTANTS = "constants"


class ApiVersion(ctypes.Structure):
    """`XLA_FFI_Api_Version`"""

    _fields_ = [*_HEAD, ("major_version", ctypes.c_int32), ("minor_version", ctypes.c_int32)]


class Metadata(ctypes.Structure):
    """`XLA_FFI_Metadata`"""

    _fields_ = [
        ("struct_size", ctypes.c_int64),
        ("api_version", ApiVersion),
        ("traits", ctypes.c_int32),
        ("state_type_id", ctypes.c_int64),
    ]


class MetadataExtension(ctypes.Structure):
    """`XLA_FFI_Metadata_Extension`, its base in place."""

    _fields_ = [
        ("struct_size", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.c_void_p),
    ]


class Buffers(ctypes.Structure):
    """`XLA_FFI_Args` and `XLA_FFI_Rets`; `buffers` is called `args` and `rets` there."""

    _fields_ = [*_HEAD, ("size", ctypes.c_int64), ("types", ctypes.c_void_p), ("buffers", ctypes.c_void_p)]


class CallFrame(ctypes.Structure):
    """`XLA_FFI_CallFrame`, as far as it is read."""

    _fields_ = [
        *_HEAD,
        ("api", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
        ("stage", ctypes.c_int32),
        ("args", Buffers),
        ("rets", Buffers),
    ]


class Buffer(ctypes.Structure):
    """`XLA_FFI_Buffer`"""

    _fields_ = [
        *_HEAD,
        ("dtype", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.c_void_p),
    ]


_FUNCTIONS = (
    "Error_Create",
    "Error_GetMessage",
    "Error_Destroy",
    "Handler_Register",
    "Stream_Get",
    "Type_Register",
    "ExecutionContext_Get",
    "State_Set",
    "State_Get",
    "DeviceMemory_Allocate",
    "DeviceMemory_Free",
    "ThreadPool_Schedule",
    "ThreadPool_NumThreads",
)


class Api(ctypes.Structure):
    """`XLA_FFI_Api`, up to the last function that is called."""

    _fields_ = [
        *_HEAD,
        ("api_version", ApiVersion),
        ("internal_api", ctypes.c_void_p),
        *((f"XLA_FFI_{name}", ctypes.c_void_p) for name in _FUNCTIONS),
    ]


class ErrorCreateArgs(ctypes.Structure):
    """`XLA_FFI_Error_Create_Args`"""

    _fields_ = [*_HEAD, ("message", ctypes.c_void_p), ("errc", ctypes.c_int32)]


class ErrorDestroyArgs(ctypes.Structure):
    """`XLA_FFI_Error_Destroy_Args`"""

    _fields_ = [*_HEAD, ("error", ctypes.c_void_p)]


class ScheduleArgs(ctypes.Structure):
    """`XLA_FFI_ThreadPool_Schedule_Args`"""

    _fields_ = [*_HEAD, ("ctx", ctypes.c_void_p), ("task", ctypes.c_void_p), ("data", ctypes.c_void_p)]


class NumThreadsArgs(ctypes.Structure):
    """`XLA_FFI_ThreadPool_NumThreads_Args`"""

    _fields_ = [*_HEAD, ("ctx", ctypes.c_void_p), ("num_threads", ctypes.c_void_p)]


#: Handlers of this process by name, with what they run. XLA keeps a handler for ever, so they are never freed.
_registered: dict[str, Executable] = {}
_lock = threading.Lock()


def register(executable: Executable) -> str:
    """Make a program known to XLA (for CPU), and return its name there.

    The name is a digest of the machine code and the constants: an XLA program that was cached on disk finds, in
    another process, either the very same program or none.
    """
    import jax

    name = f"nestegg_{_digest(executable)}"
    with _lock:
        if name in _registered:
            return name
        loaded = jit.load_object(
            jit.compile_object(str(_emit(executable)), host()),
            (_HANDLER,),
            {ENTRY: executable.native.run, _CONSTANTS: executable.native.constants, **pool_symbols()},
        )
        handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(loaded.symbols[_HANDLER])
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
        _registered[name] = executable
        return name


def _digest(executable: Executable) -> str:
    digest = hashlib.sha256(executable.program.object)
    for types in (executable.inputs, executable.outputs):
        digest.update(str([str(t) for t in types]).encode())
    for constant in executable.program.constants:
        digest.update(np.ascontiguousarray(constant).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def _emit(executable: Executable) -> ir.Module:
    """`XLA_FFI_Error *handler(XLA_FFI_CallFrame *)`."""
    module = ir.Module("xla_handler")
    module.triple = host().triple
    program = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 4), ENTRY)
    constants = ir.GlobalVariable(module, I8, _CONSTANTS)
    handler = ir.Function(module, ir.FunctionType(POINTER, [POINTER]), _HANDLER)
    b = ir.IRBuilder(handler.append_basic_block("entry"))
    (frame,) = handler.args
    _answer_metadata(b, get(b, frame, CallFrame, "extension"))
    counts = len(executable.inputs), len(executable.outputs) + bool(executable.native.arena)
    sides = tuple(address(b, frame, CallFrame, name) for name in ("args", "rets"))
    for side, count in zip(sides, counts, strict=True):
        _require_count(b, frame, side, count)
    inputs, outputs = (_pointers(b, side, count) for side, count in zip(sides, counts, strict=True))
    arena = b.load(element(b, outputs, len(executable.outputs)), typ=POINTER) if executable.native.arena else constants
    with _visited(b, frame, executable.program.threads if executable.program.forks else 1):
        b.call(program, [inputs, outputs, constants, arena])
    b.ret(ir.Constant(POINTER, None))
    return module


@contextmanager
def _visited(b: ir.IRBuilder, frame: ir.Value, threads: int) -> Iterator[None]:
    """Around code whose parallel loops want so many threads: XLA's, if it has a pool and no other visit is open."""
    if threads < 2:
        yield
        return
    entry = {
        OPEN: ir.FunctionType(I64, []),
        VISIT: ir.FunctionType(ir.VoidType(), [POINTER]),
        CLOSE: ir.FunctionType(ir.VoidType(), [I64]),
    }
    functions = {name: ir.Function(b.module, kind, name) for name, kind in entry.items()}
    visit = b.call(functions[OPEN], [])
    sent = b.alloca(I64)
    b.store(ir.Constant(I64, 0), sent)
    with b.if_then(b.icmp_unsigned("!=", visit, ir.Constant(I64, 0))):
        available = _pool_threads(b, frame)
        few = b.icmp_signed("<", available, ir.Constant(I64, threads - 1))
        with counting(b, b.select(few, available, ir.Constant(I64, threads - 1))):
            refused = _schedule(b, frame, functions[VISIT], visit)
            b.store(b.add(b.load(sent, typ=I64), b.zext(b.not_(refused), I64)), sent)
        with b.if_then(b.icmp_unsigned("==", b.load(sent, typ=I64), ir.Constant(I64, 0))):
            b.call(functions[CLOSE], [visit])
    yield
    b.call(functions[CLOSE], [visit])  # closed already, it is no visit's number


def _pool_threads(b: ir.IRBuilder, frame: ir.Value) -> ir.Value:
    """How many threads XLA's pool has; 0 if there is none."""
    count = b.alloca(I64)
    b.store(ir.Constant(I64, 0), count)
    ctx = get(b, frame, CallFrame, "ctx")
    failed = _ask(b, frame, "ThreadPool_NumThreads", NumThreadsArgs, {"ctx": ctx, "num_threads": count})
    return b.select(failed, ir.Constant(I64, 0), b.load(count, typ=I64))


def _schedule(b: ir.IRBuilder, frame: ir.Value, task: ir.Function, visit: ir.Value) -> ir.Value:
    """Hand a task to XLA's pool; returns whether it was refused."""
    values = {"ctx": get(b, frame, CallFrame, "ctx"), "task": task, "data": b.inttoptr(visit, POINTER)}
    return _ask(b, frame, "ThreadPool_Schedule", ScheduleArgs, values)


def _ask(b: ir.IRBuilder, frame: ir.Value, name: str, struct: Struct, values: Mapping[str, ir.Value]) -> ir.Value:
    """Call a function of XLA's interface; returns whether it failed (and lets go of the error)."""
    error = _call_api(b, frame, name, struct, values)
    failed = b.icmp_unsigned("!=", error, ir.Constant(POINTER, None))
    with b.if_then(failed, likely=False):
        _call_api(b, frame, "Error_Destroy", ErrorDestroyArgs, {"error": error})
    return failed


def _call_api(b: ir.IRBuilder, frame: ir.Value, name: str, struct: Struct, values: Mapping[str, ir.Value]) -> ir.Value:
    """Call a function of XLA's interface; returns the error, or null (of one that returns nothing, whatever)."""
    api = get(b, frame, CallFrame, "api")
    kind = ir.FunctionType(POINTER, [POINTER])
    function = b.load(address(b, api, Api, f"XLA_FFI_{name}"), typ=kind.as_pointer())
    args = on_stack(b, struct)
    last = struct._fields_[-1][0]
    size = getattr(struct, last).offset + getattr(struct, last).size
    put(b, ir.Constant(I64, size), args, struct, "struct_size")
    put(b, ir.Constant(POINTER, None), args, struct, "extension")
    for field, value in values.items():
        put(b, value, args, struct, field)
    return b.call(function, [args])


def _answer_metadata(b: ir.IRBuilder, extension: ir.Value) -> None:
    """If XLA asks which version of its interface this was made for, say so and return."""
    null = ir.Constant(POINTER, None)
    with b.if_then(b.icmp_unsigned("!=", extension, null)):
        asked = b.icmp_unsigned("==", get(b, extension, MetadataExtension, "type"), ir.Constant(I32, _METADATA))
        with b.if_then(asked):
            reply = get(b, extension, MetadataExtension, "metadata")
            version = address(b, reply, Metadata, "api_version")
            for name, value in zip(("major_version", "minor_version"), API_VERSION, strict=True):
                put(b, ir.Constant(I32, value), version, ApiVersion, name)
            put(b, ir.Constant(I32, 0), reply, Metadata, "traits")
            put(b, ir.Constant(I64, 0), reply, Metadata, "state_type_id")  # stateless
            b.ret(null)


def _require_count(b: ir.IRBuilder, frame: ir.Value, side: ir.Value, count: int) -> None:
    """Return an error unless there are `count` buffers. (That their types are right is the XLA program's promise.)"""
    with b.if_then(b.icmp_unsigned("!=", get(b, side, Buffers, "size"), ir.Constant(I64, count)), likely=False):
        values = {"message": _message(b.module), "errc": ir.Constant(I32, _INVALID_ARGUMENT)}
        b.ret(_call_api(b, frame, "Error_Create", ErrorCreateArgs, values))


def _message(module: ir.Module) -> ir.Value:
    name = "message"
    if name not in module.globals:
        text = bytearray(b"nestegg: called with another number of buffers than the program takes and makes\0")
        value = ir.Constant(ir.ArrayType(I8, len(text)), text)
        variable = ir.GlobalVariable(module, value.type, name)
        variable.linkage, variable.global_constant, variable.initializer = "internal", True, value
    return module.get_global(name)


def _pointers(b: ir.IRBuilder, side: ir.Value, count: int) -> ir.Value:
    """A table of the buffers' data."""
    table = b.alloca(POINTER, max(count, 1))
    buffers = get(b, side, Buffers, "buffers")
    for k in range(count):
        buffer = b.load(element(b, buffers, k), typ=POINTER)
        b.store(get(b, buffer, Buffer, "data"), element(b, table, k))
    return table


def layouts() -> dict[str, Struct]:
    """The structs by their names in XLA's header (for a test to compare them with it)."""
    return {
        "XLA_FFI_Api_Version": ApiVersion,
        "XLA_FFI_Metadata": Metadata,
        "XLA_FFI_Buffer": Buffer,
        "XLA_FFI_CallFrame": CallFrame,
        "XLA_FFI_Api": Api,
        "XLA_FFI_Error_Create_Args": ErrorCreateArgs,
        "XLA_FFI_Error_Destroy_Args": ErrorDestroyArgs,
        "XLA_FFI_ThreadPool_Schedule_Args": ScheduleArgs,
        "XLA_FFI_ThreadPool_NumThreads_Args": NumThreadsArgs,
    }
