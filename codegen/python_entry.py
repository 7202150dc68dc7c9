"""The way from Python into a program, emitted as machine code: `entry.call(*inputs)` costs a fraction of a microsecond.

One pair of C functions (`METH_FASTCALL`) serves all programs; a `Context` says what a program takes and makes. They
check that every argument is exactly an `ndarray` of the wanted dtype (native byte order), shape, C order and
alignment, allocate the results, take an arena from the program's free ones, and run. An argument that does not match
is not an error here: they return None, and the caller converts, or says what is wrong.

What is read directly, and why it holds:

- CPython's object head, `PyMethodDef` and `METH_FASTCALL`: the C API manual, "Common Object Structures". They differ
  without a GIL and in debug builds that trace references, where the ctypes entry is used (`unsupported`).
- NumPy's `PyArrayObject_fields` and the shared part of `PyArray_Descr` (numpy/ndarraytypes.h): extensions compile their
  offsets in (`PyArray_DATA` and so on are inline), so they are fixed for NumPy 2. Unlike the buffer protocol (measured:
  120 ns an array, and no bfloat16) reading them is free. They are checked on an array when the entry is first made.
- `PyArray_Empty` is entry 184 of NumPy's table of functions (numpy/__multiarray_api.h).
"""

from __future__ import annotations

import ctypes
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from ..ir.target import host
from ..ir.types import DTYPES, TensorType
from . import jit
from .llvm_types import I1, I8, I32, I64, POINTER
from .memory import ALIGNMENT, aligned_bytes
from .native import Native
from .structs import address, counting, element, get, put

#: Predicted seconds from which a call releases the GIL. Releasing and taking it costs some 50 ns when nobody waits, but
#: up to `sys.getswitchinterval` (5 ms) when another thread computes in Python, so short calls keep it.
RELEASE_AFTER = 20e-6

_METH_FASTCALL = 0x0080
_C_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x0001, 0x0100, 0x0400
_SWAPPED = ord(">" if sys.byteorder == "little" else "<")
_PYARRAY_EMPTY = 184


class _Object(ctypes.Structure):
    _fields_ = [("refcount", ctypes.c_int64), ("type", ctypes.c_void_p)]


class _Array(ctypes.Structure):
    """NumPy's `PyArrayObject_fields`, as far as it is read."""

    _fields_ = [
        ("head", _Object),
        ("data", ctypes.c_void_p),
        ("nd", ctypes.c_int32),
        ("dimensions", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("descr", ctypes.c_void_p),
        ("flags", ctypes.c_int32),
    ]


class _Descr(ctypes.Structure):
    """NumPy's `PyArray_Descr`, the part that versions 1 and 2 share."""

    _fields_ = [
        ("head", _Object),
        ("typeobj", ctypes.c_void_p),
        ("kind", ctypes.c_int8),
        ("type", ctypes.c_int8),
        ("byteorder", ctypes.c_int8),
        ("former_flags", ctypes.c_int8),
        ("type_num", ctypes.c_int32),
    ]


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int32),
        ("doc", ctypes.c_char_p),
    ]


class _Wanted(ctypes.Structure):
    """What an argument or result must be; `descr` is borrowed."""

    _fields_ = [
        ("descr", ctypes.c_void_p),
        ("dimensions", ctypes.c_void_p),
        ("type_num", ctypes.c_int32),
        ("nd", ctypes.c_int32),
        ("flags", ctypes.c_int32),
    ]


class _Context(ctypes.Structure):
    """A program, as its entry sees it. `free`: arenas that no call uses, linked; the GIL protects it."""

    _fields_ = [
        ("run", ctypes.c_void_p),
        ("constants", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
        ("new_frame", ctypes.c_void_p),
        ("wanted", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("bare", ctypes.c_int8),
        ("releases", ctypes.c_int8),
    ]


class _Frame(ctypes.Structure):
    """The head of an arena, which begins `ALIGNMENT` bytes further on."""

    _fields_ = [("next", ctypes.c_void_p)]


def unsupported() -> str:
    """Why the emitted entry cannot serve this Python and NumPy; empty if it can."""
    if sys.implementation.name != "cpython":
        return f"{sys.implementation.name} is not CPython"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this Python has no GIL"
    if object.__basicsize__ != ctypes.sizeof(_Object):
        return "objects of this Python have another head"
    return "" if _layout_holds() else f"arrays of NumPy {np.__version__} lie otherwise in memory"


def _layout_holds() -> bool:
    """Whether a sample array reads through the declared structs as NumPy says it is."""
    sample = np.zeros((3, 5), np.int16)
    array = _Array.from_address(id(sample))
    descr = _Descr.from_address(array.descr or 0) if array.descr == id(sample.dtype) else None
    return (
        descr is not None
        and (array.head.type, array.data, array.nd) == (id(np.ndarray), sample.ctypes.data, 2)
        and tuple((ctypes.c_int64 * 2).from_address(array.dimensions)) == sample.shape
        and array.flags & (_C_CONTIGUOUS | _ALIGNED | _WRITEABLE) == _C_CONTIGUOUS | _ALIGNED | _WRITEABLE
        and (descr.type_num, descr.byteorder) == (sample.dtype.num, ord(sample.dtype.byteorder))
    )


class PythonEntry:
    """How Python calls a program.

    `call(*inputs)` returns the results in a new tuple (`bare`: the only result itself), `into(*inputs, *outputs)`
    computes into given writeable arrays, which must not overlap others, and returns them so. Both return None if an
    argument is not an exact `ndarray` of the right dtype, shape, C order and alignment, and raise only `MemoryError`.
    Any number of threads may call at once.
    """

    kind = "machine code"

    def __init__(
        self,
        native: Native,
        inputs: Sequence[TensorType],
        outputs: Sequence[TensorType],
        bare: bool = False,
        seconds: float = 0.0,
    ) -> None:
        new_frame = _frame_maker(native.arena)
        shapes = [(ctypes.c_int64 * t.rank)(*t.shape) for t in (*inputs, *outputs)]
        dtypes = [DTYPES[t.dtype].numpy for t in (*inputs, *outputs)]
        wanted = (_Wanted * len(shapes))()
        for k, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
            flags = _C_CONTIGUOUS | _ALIGNED | (_WRITEABLE if k >= len(inputs) else 0)
            wanted[k] = _Wanted(id(dtype), ctypes.addressof(shape), dtype.num, len(shape), flags)
        context = _Context(
            run=native.run,
            constants=native.constants,
            new_frame=id(new_frame),
            wanted=ctypes.addressof(wanted),
            inputs=len(inputs),
            outputs=len(outputs),
            bare=bare,
            releases=seconds >= RELEASE_AFTER,
        )
        # `self` of the functions: the address they use, and all that must live as long as they do.
        own = (ctypes.addressof(context), context, wanted, shapes, dtypes, new_frame, native)
        call, into = _functions()
        function = _python("PyCFunction_NewEx", ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        self.call: Callable[..., Any] = function(ctypes.addressof(call), own, None)
        self.into: Callable[..., Any] = function(ctypes.addressof(into), own, None)


def _frame_maker(size: int) -> Callable[[], int]:
    """A function that makes a frame, which lives as long as the function, and returns its address."""
    frames: list[np.ndarray] = []

    def new_frame() -> int:
        frames.append(aligned_bytes(ALIGNMENT + size))
        return frames[-1].ctypes.data

    return new_frame


@cache
def _python(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function of the C API. `ctypes.pythonapi.name` is not used: its prototype is shared, and JAX sets another."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


@cache
def _functions() -> tuple[_MethodDef, _MethodDef]:
    """`call` and `into`, compiled once for this process and never freed: functions may refer to them until its end."""
    code = jit.compile_object(str(_emit()), host())
    loaded = jit.load_object(code, ("call", "into"), _imports())
    call, into = (
        _MethodDef(name.encode(), loaded.symbols[name], _METH_FASTCALL, doc)
        for name, doc in (
            ("call", b"call(*inputs) -> results, or None if an argument does not match"),
            ("into", b"into(*inputs, *outputs) -> outputs, or None if an argument does not match"),
        )
    )
    return call, into


#: Functions of CPython's stable ABI that the emitted code calls: result, arguments.
_PYTHON: dict[str, tuple[ir.Type, tuple[ir.Type, ...]]] = {
    "Py_IncRef": (ir.VoidType(), (POINTER,)),
    "Py_DecRef": (ir.VoidType(), (POINTER,)),
    "PyEval_SaveThread": (POINTER, ()),
    "PyEval_RestoreThread": (ir.VoidType(), (POINTER,)),
    "PyLong_AsVoidPtr": (POINTER, (POINTER,)),
    "PyObject_CallNoArgs": (POINTER, (POINTER,)),
    "PyTuple_New": (POINTER, (I64,)),
    "PyTuple_GetItem": (POINTER, (POINTER, I64)),
    "PyTuple_SetItem": (I32, (POINTER, I64, POINTER)),
}


def _imports() -> dict[str, int]:
    """Addresses of all that the emitted code refers to."""
    found = {n: ctypes.cast(getattr(ctypes.pythonapi, n), ctypes.c_void_p).value or 0 for n in _PYTHON}
    pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    table = pointer(np._core._multiarray_umath._ARRAY_API, None)  # type: ignore[attr-defined]
    found["PyArray_Empty"] = (ctypes.c_void_p * (_PYARRAY_EMPTY + 1)).from_address(table)[_PYARRAY_EMPTY] or 0
    return found | {"ndarray": id(np.ndarray), "none": id(None)}


def _emit() -> ir.Module:
    """The module of `call` and `into`."""
    module = ir.Module("python_entry")
    module.triple = host().triple
    functions = {n: ir.Function(module, ir.FunctionType(r, a), n) for n, (r, a) in _PYTHON.items()}
    empty = ir.FunctionType(POINTER, (I32, POINTER, POINTER, I32))
    functions["PyArray_Empty"] = ir.Function(module, empty, "PyArray_Empty")
    for name in ("ndarray", "none"):
        ir.GlobalVariable(module, I8, name)
    emitter = _Emitter(module, functions)
    emitter.matches()
    emitter.take_frame()
    for name, given in (("call", False), ("into", True)):
        emitter.entry(name, given)
    return module


class _Emitter:
    """Emits the functions of the entry. Objects are owned by `results`, a tuple, until it is returned."""

    def __init__(self, module: ir.Module, functions: dict[str, ir.Function]) -> None:
        self.module, self.functions = module, functions

    def _function(self, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
        self.functions[name] = ir.Function(self.module, ir.FunctionType(result, arguments), name)
        return self.functions[name]

    def _call(self, b: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
        return b.call(self.functions[name], arguments)

    def matches(self) -> None:
        """`i1 matches(array, wanted)`."""
        f = self._function("matches", I1, (POINTER, POINTER))
        f.linkage = "internal"
        b = ir.IRBuilder(f.append_basic_block("entry"))
        array, wanted = f.args
        no = f.append_basic_block("no")

        def require(condition: ir.Value) -> None:
            holds = b.append_basic_block("holds")
            b.cbranch(condition, holds, no)
            b.position_at_end(holds)

        kind = get(b, array, _Object, "type")
        require(b.icmp_unsigned("==", kind, self.module.get_global("ndarray")))
        for name in ("nd", "flags"):
            want = get(b, wanted, _Wanted, name)
            have = get(b, array, _Array, name)
            require(b.icmp_unsigned("==", b.and_(have, want) if name == "flags" else have, want))
        descr = get(b, array, _Array, "descr")
        require(b.icmp_unsigned("==", get(b, descr, _Descr, "type_num"), get(b, wanted, _Wanted, "type_num")))
        require(b.icmp_unsigned("!=", get(b, descr, _Descr, "byteorder"), ir.Constant(I8, _SWAPPED)))
        have, want = get(b, array, _Array, "dimensions"), get(b, wanted, _Wanted, "dimensions")
        rank = b.sext(get(b, wanted, _Wanted, "nd"), I64)
        with counting(b, rank) as d:
            sizes = (b.load(b.gep(p, [d], source_etype=I64), typ=I64) for p in (have, want))
            require(b.icmp_unsigned("==", *sizes))
        b.ret(ir.Constant(I1, 1))
        b.position_at_end(no)
        b.ret(ir.Constant(I1, 0))

    def take_frame(self) -> None:
        """`ptr take_frame(context)`: a free frame, or a new one; null with a Python error set if there is no memory."""
        f = self._function("take_frame", POINTER, (POINTER,))
        f.linkage = "internal"
        b = ir.IRBuilder(f.append_basic_block("entry"))
        (context,) = f.args
        free = get(b, context, _Context, "free")
        with b.if_then(b.icmp_unsigned("!=", free, ir.Constant(POINTER, None))):
            put(b, get(b, free, _Frame, "next"), context, _Context, "free")
            b.ret(free)
        number = self._call(b, "PyObject_CallNoArgs", get(b, context, _Context, "new_frame"))
        with b.if_then(b.icmp_unsigned("==", number, ir.Constant(POINTER, None)), likely=False):
            b.ret(number)
        made = self._call(b, "PyLong_AsVoidPtr", number)
        self._call(b, "Py_DecRef", number)
        b.ret(made)

    def entry(self, name: str, given: bool) -> None:
        """`PyObject *name(self, args, nargs)`. `given`: the results' arrays follow the inputs."""
        f = self._function(name, POINTER, (POINTER, POINTER, I64))
        b = ir.IRBuilder(f.append_basic_block("entry"))
        null, zero = ir.Constant(POINTER, None), ir.Constant(I64, 0)
        own, args, count = f.args
        refuse, fail, dispose = (f.append_basic_block(n) for n in ("refuse", "fail", "dispose"))

        def require(condition: ir.Value, otherwise: ir.Block) -> None:
            going_on = b.append_basic_block("going_on")
            b.cbranch(condition, going_on, otherwise)
            b.position_at_end(going_on)

        context = self._call(b, "PyLong_AsVoidPtr", self._call(b, "PyTuple_GetItem", own, zero))
        inputs, outputs = get(b, context, _Context, "inputs"), get(b, context, _Context, "outputs")
        both = b.add(inputs, outputs)
        require(b.icmp_signed("==", count, both if given else inputs), refuse)
        wanted, table = get(b, context, _Context, "wanted"), b.alloca(POINTER, both)
        with counting(b, count) as k:
            array = b.load(element(b, args, k), typ=POINTER)
            require(self._call(b, "matches", array, self._nth_wanted(b, wanted, k)), refuse)
            b.store(get(b, array, _Array, "data"), element(b, table, k))
        results = self._call(b, "PyTuple_New", outputs)
        require(b.icmp_unsigned("!=", results, null), fail)
        with counting(b, outputs) as j:
            k = b.add(inputs, j)
            if given:
                array = b.load(element(b, args, k), typ=POINTER)
                self._call(b, "Py_IncRef", array)
            else:
                array = self._new_array(b, self._nth_wanted(b, wanted, k))
                require(b.icmp_unsigned("!=", array, null), dispose)
            self._call(b, "PyTuple_SetItem", results, j, array)
            b.store(get(b, array, _Array, "data"), element(b, table, k))
        frame = self._call(b, "take_frame", context)
        require(b.icmp_unsigned("!=", frame, null), dispose)
        self._run(b, context, table, element(b, table, inputs), frame)
        put(b, get(b, context, _Context, "free"), frame, _Frame, "next")
        put(b, frame, context, _Context, "free")
        with b.if_then(b.icmp_unsigned("!=", get(b, context, _Context, "bare"), ir.Constant(I8, 0))):
            only = self._call(b, "PyTuple_GetItem", results, zero)
            self._call(b, "Py_IncRef", only)
            self._call(b, "Py_DecRef", results)
            b.ret(only)
        b.ret(results)

        b.position_at_end(refuse)
        none = self.module.get_global("none")
        self._call(b, "Py_IncRef", none)
        b.ret(none)
        b.position_at_end(dispose)
        self._call(b, "Py_DecRef", results)
        b.branch(fail)
        b.position_at_end(fail)
        b.ret(null)

    def _nth_wanted(self, b: ir.IRBuilder, wanted: ir.Value, k: ir.Value) -> ir.Value:
        size = ir.Constant(I64, ctypes.sizeof(_Wanted))
        return b.gep(wanted, [b.mul(k, size)], inbounds=True, source_etype=I8)

    def _new_array(self, b: ir.IRBuilder, wanted: ir.Value) -> ir.Value:
        """A new array; null with a Python error set if there is no memory."""
        descr = get(b, wanted, _Wanted, "descr")
        self._call(b, "Py_IncRef", descr)  # PyArray_Empty takes it, even if it fails
        nd, dimensions = get(b, wanted, _Wanted, "nd"), get(b, wanted, _Wanted, "dimensions")
        return self._call(b, "PyArray_Empty", nd, dimensions, descr, ir.Constant(I32, 0))

    def _run(
        self, b: ir.IRBuilder, context: ir.Value, inputs: ir.Value, outputs: ir.Value, frame: ir.Value
    ) -> None:
        """The program, with the GIL released if it takes long."""
        program = ir.FunctionType(ir.VoidType(), [POINTER] * 4)
        run = b.load(address(b, context, _Context, "run"), typ=program.as_pointer())
        constants = get(b, context, _Context, "constants")
        arena = b.gep(frame, [ir.Constant(I64, ALIGNMENT)], inbounds=True, source_etype=I8)
        arguments = (inputs, outputs, constants, arena)
        releases = b.icmp_unsigned("!=", get(b, context, _Context, "releases"), ir.Constant(I8, 0))
        with b.if_else(releases) as (long, short):
            with long:
                state = self._call(b, "PyEval_SaveThread")
                b.call(run, arguments)
                self._call(b, "PyEval_RestoreThread", state)
            with short:
                b.call(run, arguments)
