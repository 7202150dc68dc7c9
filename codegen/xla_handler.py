"""A program as a custom call of XLA: a handler of its foreign function interface (FFI), emitted as machine code.

The handler passes XLA's own buffers on, so nothing is copied and Python is not involved; the arena is one more result
(`u8[arena]`, if the program needs one), which XLA allocates and reuses as it does its own temporaries. So any number
of XLA's threads may call it at once.

The structs are those of xla/ffi/api/c_api.h, version 0.3, which jaxlib ships (`jax.ffi.include_dir()`); XLA asks a
handler for its version when it is registered, and refuses one that it no longer supports.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading

import numpy as np
from llvmlite import ir

from ..ir.target import host
from . import jit
from .llvm_types import I8, I32, I64, POINTER
from .program import ENTRY, Executable
from .structs import Struct, address, element, get, on_stack, put

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


class Api(ctypes.Structure):
    """`XLA_FFI_Api`, up to the one function that is called."""

    _fields_ = [
        *_HEAD,
        ("api_version", ApiVersion),
        ("internal_api", ctypes.c_void_p),
        ("XLA_FFI_Error_Create", ctypes.c_void_p),
    ]


class ErrorCreateArgs(ctypes.Structure):
    """`XLA_FFI_Error_Create_Args`"""

    _fields_ = [*_HEAD, ("message", ctypes.c_void_p), ("errc", ctypes.c_int32)]


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
            {ENTRY: executable.native.run, _CONSTANTS: executable.native.constants},
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
    b.call(program, [inputs, outputs, constants, arena])
    b.ret(ir.Constant(POINTER, None))
    return module


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
        api = get(b, frame, CallFrame, "api")
        create = ir.FunctionType(POINTER, [POINTER])
        function = b.load(address(b, api, Api, "XLA_FFI_Error_Create"), typ=create.as_pointer())
        args = on_stack(b, ErrorCreateArgs)
        size = ErrorCreateArgs.errc.offset + ErrorCreateArgs.errc.size
        put(b, ir.Constant(I64, size), args, ErrorCreateArgs, "struct_size")
        put(b, ir.Constant(POINTER, None), args, ErrorCreateArgs, "extension")
        put(b, _message(b.module), args, ErrorCreateArgs, "message")
        put(b, ir.Constant(I32, _INVALID_ARGUMENT), args, ErrorCreateArgs, "errc")
        b.ret(b.call(function, [args]))


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
    }
