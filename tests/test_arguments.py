"""Arguments of a call: what is taken as it is, what is converted, what is refused and how the error reads."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nestegg
from nestegg.arguments import as_array
from nestegg.compiler import Compiled
from nestegg.ir.errors import CallError
from nestegg.ir.types import TensorType

F23 = TensorType((2, 3))


def sample() -> np.ndarray:
    return np.arange(6, dtype=np.float32).reshape(2, 3)


@cache
def plus_one() -> Compiled:
    return nestegg.optimize(lambda x: x + 1, sample())


class Exporter:
    """An array of a library that speaks only DLPack."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def in_jax(array: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)


@pytest.mark.parametrize("export", [np.asarray, Exporter, memoryview, in_jax])
def test_contiguous_arrays_are_not_copied(export: Any):
    value = export(sample())
    source = np.asarray(value) if not isinstance(value, Exporter) else value.array
    array = as_array(value, F23, "argument 0")
    assert type(array) is np.ndarray
    assert array.ctypes.data == source.ctypes.data
    np.testing.assert_array_equal(np.asarray(plus_one()(value)), sample() + 1)


def test_results_export_dlpack_without_a_copy():
    y = plus_one()(sample())
    assert np.from_dlpack(y).ctypes.data == y.ctypes.data


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    raw[...] = array
    assert not raw.flags.aligned
    return raw


class Subclass(np.ndarray):
    pass


CONVERTED = {
    "Fortran order": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "unaligned": unaligned,
    "strided, by DLPack": lambda a: Exporter(np.repeat(a, 2, axis=1)[:, ::2]),
    "a subclass": lambda a: a.view(Subclass),
    "broadcast": lambda a: np.broadcast_to(np.float32(1), (2, 3)),
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.float32).reshape(2, 3),
}


@pytest.mark.parametrize("convert", CONVERTED.values(), ids=CONVERTED.keys())
def test_other_layouts_are_converted(convert: Any):
    value = convert(sample())
    want = np.asarray(value.array if isinstance(value, Exporter) else value)
    np.testing.assert_array_equal(plus_one()(value), want + 1)


REFUSED = {
    "another dtype": (sample().astype(np.float64), r"argument 0 \(x0\) is float64\[2, 3\]; .*f32\[2,3\] \(without"),
    "big-endian": (sample().astype(">f4"), r"is >f4\[2, 3\]"),
    "another shape": (sample().T, r"is float32\[3, 2\]"),
    "rank 0": (np.float32(1), r"is float32\[\]"),
    "a number": (1.0, r"is float64\[\]"),
    "objects": (np.full((2, 3), None), r"is object\[2, 3\]"),
    "masked": (np.ma.masked_array(sample()), "masked array.*filled"),
    "text": ("x", r"is <U1\[\]"),
    "ragged": (memoryview(b"abc"), r"is uint8\[3\]"),
    "on another device": (Exporter(sample(), (2, 0)), r"Exporter\) does not lie in the CPU's memory"),
}


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_and_why(wrong: Any, message: str):
    for _ in range(2):
        with pytest.raises(CallError, match=message):
            plus_one()(wrong)
    with pytest.raises(CallError, match=message):
        plus_one().verify(wrong)


def test_an_exporter_that_fails_is_named():
    class Broken(Exporter):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("not today")

    with pytest.raises(CallError, match=r"argument 0 \(x0\) \(Broken\) cannot be read as f32\[2,3\]: not today"):
        plus_one()(Broken(sample()))


@pytest.mark.parametrize("args", [(), (sample(), sample()), (None,), ([sample()],), ({"x": sample()},)])
def test_other_structures_are_refused(args: tuple[Any, ...]):
    with pytest.raises(CallError, match="structure"):
        plus_one()(*args)


@pytest.mark.parametrize("args", [(), (sample(), sample())])
def test_onnx_programs_count_their_arguments(args: tuple[Any, ...]):
    from nestegg.ir import zoo

    with pytest.raises(CallError, match=f"{len(args)} arguments given; it takes 1"):
        nestegg.optimize(zoo.onnx_model("mlp"))(*args)


@pytest.mark.parametrize(
    ("value", "dtype", "ok"),
    [
        *((2, d, True) for d in ("f32", "f64", "i32", "i8", "u8", "f16")),
        *((0.5, d, d.startswith("f")) for d in ("f32", "f64", "i32", "u8", "bool")),
        *((True, d, d == "bool") for d in ("bool", "i32", "f32")),
        (300, "u8", False),
        (-1, "u8", False),
        (1, "bool", False),
        (1 << 70, "i64", False),
    ],
)
def test_python_numbers(value: Any, dtype: str, ok: bool):
    want = TensorType((), dtype)
    if not ok:
        with pytest.raises(CallError):
            as_array(value, want, "argument 0")
    else:
        array = as_array(value, want, "argument 0")
        assert array.shape == () and array == value


def test_equal_dtypes_of_other_names():
    x = np.arange(4, dtype=np.longlong)
    assert x.dtype == np.int64
    array = as_array(x, TensorType((4,), "i64"), "argument 0")
    assert array.ctypes.data == x.ctypes.data and array.dtype.num == np.dtype(np.int64).num


def test_trees_in_and_out():
    weights = {"w": sample(), "b": sample()}
    compiled = nestegg.optimize(lambda p, x: {"y": p["w"] * x, "z": [p["b"], x]}, weights, sample())
    x, w = sample(), sample() + 3
    out = compiled({"w": w, "b": x}, np.asfortranarray(x))
    np.testing.assert_array_equal(out["y"], w * x)
    np.testing.assert_array_equal(out["z"][0], x)
    flat = nestegg.optimize(lambda x, y: {"sum": x + y}, sample(), sample())
    np.testing.assert_array_equal(flat(x, w)["sum"], x + w)
    pair = nestegg.optimize(lambda x: (x, x + 1), sample())
    assert type(pair(x)) is tuple and type(pair(np.asfortranarray(x))) is tuple
    single = nestegg.optimize(lambda x: (x + 1,), sample())
    assert type(single(x)) is tuple and type(single(np.asfortranarray(x))) is tuple


def test_a_file_mapped_in_memory(tmp_path: Path):
    x = np.memmap(tmp_path / "x.bin", np.float32, "w+", shape=(2, 3))
    x[...] = sample()
    np.testing.assert_array_equal(plus_one()(x), sample() + 1)
    assert as_array(x, F23, "argument 0").ctypes.data == x.ctypes.data


def test_run_names_what_it_takes():
    x = sample()
    with pytest.raises(CallError, match=r"takes f32\[2,3\], f32\[2,3\]"):
        plus_one().executable.run([x], [x.astype(np.float64)])
