"""Compiled programs inside JAX: jit, loops, vmap, derivatives, without copies, and errors where there is no way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nestegg
from nestegg.codegen import xla_handler
from nestegg.compiler import Compiled
from nestegg.ir.errors import CallError, UnsupportedError

W = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
Y = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)


def layer(x: Any, y: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jnp.tanh(jax.nn.softmax(x @ W) @ W + y)


@cache
def compiled_layer() -> Compiled:
    compiled = nestegg.optimize(layer, X, Y)
    assert compiled.executable.native.arena, "the tests want a program with temporaries"
    return compiled


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-5, atol=1e-5)


def test_as_jax_is_a_jax_function():
    import jax

    f = compiled_layer().as_jax()
    y = f(X, Y)
    assert isinstance(y, jax.Array)
    close(y, layer(X, Y))
    close(jax.jit(lambda x: 2 * f(x, x) + 1)(X), 2 * layer(X, X) + 1)


def test_the_compiled_program_itself_works_on_traced_and_jax_arguments():
    import jax
    import jax.numpy as jnp

    compiled = compiled_layer()
    close(jax.jit(compiled)(X, Y), layer(X, Y))
    y = compiled(jnp.asarray(X), Y)
    assert isinstance(y, jax.Array)
    close(y, layer(X, Y))


def test_loops():
    import jax

    f = compiled_layer().as_jax()

    def run(g: Callable[..., Any]) -> tuple[Any, Any]:
        looped = jax.lax.fori_loop(0, 5, lambda i, x: g(x, Y), jax.numpy.asarray(X))
        return looped, jax.lax.scan(lambda x, y: (g(x, y), x.sum()), X, np.stack([Y] * 3))[1]

    for got, want in zip(jax.jit(lambda: run(f))(), run(layer), strict=True):
        close(got, want)


def test_vmap_runs_once_for_each_element():
    import jax

    f, xs = compiled_layer().as_jax(), np.stack([X, Y, -X])
    close(jax.vmap(f, (0, None))(xs, Y), jax.vmap(layer, (0, None))(xs, Y))
    twice = jax.vmap(jax.vmap(f, (0, None)), (None, 0))
    close(twice(xs, xs), jax.vmap(jax.vmap(layer, (0, None)), (None, 0))(xs, xs))


def test_derivatives_are_those_of_the_original():
    import jax

    f = compiled_layer().as_jax()

    def loss(g: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, y: (g(x, y) ** 2).sum()

    for got, want in zip(jax.grad(loss(f), (0, 1))(X, Y), jax.grad(loss(layer), (0, 1))(X, Y), strict=True):
        close(got, want)
    per_example = jax.vmap(jax.grad(loss(f)), (0, None))
    close(per_example(np.stack([X, Y]), Y), jax.vmap(jax.grad(loss(layer)), (0, None))(np.stack([X, Y]), Y))
    close(jax.jacrev(jax.grad(loss(f)))(X, Y), jax.hessian(loss(layer))(X, Y))
    assert "custom_vjp" in str(jax.make_jaxpr(f)(X, Y)), "the forward pass is the program, not the original"


def test_derivatives_with_pytrees_and_integers():
    import jax

    def model(p: dict[str, Any], n: Any) -> dict[str, Any]:
        return {"y": p["w"] * p["b"] + n, "n": n + 1}

    p, n = {"w": np.ones((3,), np.float32), "b": np.float32([1, 2, 3])}, np.int32([1, 2, 3])
    f = nestegg.optimize(model, p, n).as_jax()
    got, want = (jax.grad(lambda q, g=g: g(q, n)["y"].sum())(p) for g in (f, model))
    assert got.keys() == want.keys()
    for key in want:
        close(got[key], want[key])
    np.testing.assert_array_equal(f(p, n)["n"], n + 1)


def test_a_program_from_onnx_has_no_derivative():
    import jax

    from nestegg.ir import zoo

    compiled = nestegg.optimize(zoo.onnx_model("mlp"))
    (x,) = compiled.example_inputs()
    f = compiled.as_jax()
    close(f(x), compiled(x))
    with pytest.raises(UnsupportedError, match="no derivative, because it was not optimized from a JAX function"):
        jax.grad(lambda x: f(x).sum())(x)


def test_forward_mode_is_refused_by_jax():
    import jax

    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(compiled_layer().as_jax(), (X, Y), (X, Y))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[:2], r"argument 0 \(x0\) is float32\[2, 8\].*optimized for f32\[4,8\]"),
        (X.astype(np.int32), r"int32\[4, 8\]"),
        (np.float32(0), r"float32\[\]"),
    ],
)
def test_wrong_arguments_are_named(x: Any, message: str):
    import jax

    for call in (compiled_layer().as_jax(), jax.jit(compiled_layer())):
        with pytest.raises(CallError, match=message):
            call(x, Y)
    with pytest.raises(CallError, match="structure"):
        compiled_layer().as_jax()(X)


def test_64_bit_types_want_64_bit_jax():
    import jax

    x = np.float64([1, 2])
    with jax.enable_x64(True):
        compiled = nestegg.optimize(lambda x: x * 3, x)
        np.testing.assert_array_equal(compiled.as_jax()(x), 3 * x)
    with pytest.raises(UnsupportedError, match="jax_enable_x64"):
        compiled.as_jax()(x)
    np.testing.assert_array_equal(compiled(x), 3 * x)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "int16", "int8", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (0, 3)])
def test_dtypes_and_shapes(dtype: str, shape: tuple[int, ...]):
    x = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    compiled = nestegg.optimize(lambda x: x | x if x.dtype == bool else x + x, x)
    want = x | x if dtype == "bool" else x + x
    for got in (compiled.as_jax()(x), compiled(x)):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(np.asarray(got), want)


def test_python_numbers_are_weakly_typed():
    f = nestegg.optimize(lambda x, s: x * s, X, np.float32(2))
    for call in (f, f.as_jax()):
        close(call(X, 3), X * 3)
        close(call(X, 0.5), X * 0.5)


@cache
def address_program() -> Compiled:
    """A program that says where its argument and result lie: machine code in the place of a kernel's."""
    compiled = nestegg.optimize(lambda x: x + 1, np.zeros((1 << 12,), np.int32))
    text = """
    define void @run(ptr %inputs, ptr %outputs, ptr %constants, ptr %arena) {
      %x = load ptr, ptr %inputs
      %y = load ptr, ptr %outputs
      %i = ptrtoint ptr %x to i64
      %o = ptrtoint ptr %y to i64
      store i64 %i, ptr %y
      %next = getelementptr i64, ptr %y, i64 1
      store i64 %o, ptr %next
      ret void
    }
    """
    from dataclasses import replace

    from nestegg.codegen import jit
    from nestegg.codegen.python_entry import PythonEntry
    from nestegg.ir.target import host

    loaded = jit.load_object(jit.compile_object(text, host()), ("run",))
    e = compiled.executable
    e.native = replace(e.native, run=loaded.symbols["run"])
    e.entry = PythonEntry(e.native, e.inputs, e.outputs, bare=True)
    return compiled


def addresses(y: Any) -> tuple[int, int]:
    return tuple(np.asarray(y).view(np.int64)[:2].tolist())


def test_nothing_is_copied_from_or_to_jax():
    import jax
    import jax.numpy as jnp

    x = jnp.zeros((1 << 12,), jnp.int32)
    y = jax.jit(address_program().as_jax())(x)
    assert addresses(y) == (x.unsafe_buffer_pointer(), y.unsafe_buffer_pointer())
    assert np.asarray(x).ctypes.data == x.unsafe_buffer_pointer()


def test_calls_from_several_threads():
    import jax

    f = jax.jit(compiled_layer().as_jax())
    want = {k: np.asarray(layer(X * k, Y)) for k in range(4)}
    errors: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for _ in range(100):
                close(f(X * k, Y), want[k])
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in want]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[0]


def test_independent_calls_in_one_program():
    """XLA may run them at once, each with its own arena."""
    import jax

    f = compiled_layer().as_jax()
    xs = [X * k for k in range(6)]
    results = jax.jit(lambda arrays: [f(x, Y) for x in arrays])(xs)
    for got, x in zip(results, xs, strict=True):
        close(got, layer(x, Y))


def test_equal_programs_share_a_name_and_others_do_not():
    a, b = (nestegg.optimize(lambda x: x * 2, X) for _ in range(2))
    c = nestegg.optimize(lambda x: x + np.float32(np.arange(8)), X)
    d = nestegg.optimize(lambda x: x + np.float32(np.arange(1, 9)), X)
    names = [xla_handler.register(p.executable) for p in (a, b, c, d)]
    assert names[0] == names[1] and len(set(names)) == 3
    close(d.as_jax()(X), X + np.arange(1, 9))


def test_a_handler_refuses_another_number_of_buffers():
    import jax

    name = xla_handler.register(compiled_layer().executable)
    wrong = jax.jit(jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((4, 8), np.float32)))
    with pytest.raises(Exception, match="another number of buffers"):
        wrong(X).block_until_ready()


def test_a_program_that_ends_with_an_exception_ends_cleanly(tmp_path: Path):
    """Machine code, arenas and handlers outlive whatever the interpreter tears down first."""
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, nestegg\n"
        "x = np.ones((4, 8), np.float32)\n"
        "compiled = nestegg.optimize(lambda x: (x @ x.T) @ x, x)\n"
        "entry, function = compiled.executable.entry.call, compiled.as_jax()\n"
        "compiled(x), function(x), entry(x)\n"
        "class AtTheEnd:\n"
        "    def __del__(self): entry(x)\n"
        "last = AtTheEnd()\n"
        "def fail(compiled): raise RuntimeError('meant')\n"
        "fail(compiled)\n"
    )
    run = subprocess.run([sys.executable, "-P", str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert run.stderr.rstrip().endswith("RuntimeError: meant"), run.stderr


def test_parallel_loops_run_on_the_threads_of_xla(tmp_path: Path):
    """Called by XLA, a program starts no workers; called by itself, it does."""
    script = tmp_path / "threads.py"
    script.write_text("""
import os
import jax, numpy as np, nestegg
from nestegg.ir.nest import parallel

x = np.ones((128, 128), np.float32)
compiled = nestegg.optimize(lambda x: x @ x, x, threads=2)
assert any(parallel(c.nest) for c in compiled.program.calls)
inside = jax.jit(lambda x: compiled.as_jax()(x) + 1)
assert inside(x)[0, 0] == 129
counts = []
for call in (inside, compiled):
    for _ in range(50):
        call(x)
    counts.append(len(os.listdir("/proc/self/task")))
assert counts[1] == counts[0] + 1, counts
""")
    run = subprocess.run([sys.executable, "-P", str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_struct_layouts_are_those_of_the_header_that_jaxlib_ships(tmp_path: Path):
    import shutil

    import jax

    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to read the header with")
    fields = {
        f"{name}.{renamed}": getattr(struct, field).offset
        for name, struct in xla_handler.layouts().items()
        for field, *_ in struct._fields_
        if (renamed := {"extension": "extension_start"}.get(field, field))
    }
    paths = {"args.buffers": "args.args", "rets.buffers": "rets.rets"}
    for path, theirs in paths.items():
        side = path.split(".")[0]
        offset = getattr(xla_handler.CallFrame, side).offset + xla_handler.Buffers.buffers.offset
        fields[f"XLA_FFI_CallFrame.{theirs}"] = offset
    fields["XLA_FFI_Metadata_Extension.metadata"] = xla_handler.MetadataExtension.metadata.offset
    fields["XLA_FFI_Metadata_Extension.extension_base.type"] = xla_handler.MetadataExtension.type.offset
    prints = "\n".join(
        f'printf("{name} %zu\\n", offsetof({name.split(".")[0]}, {name.split(".", 1)[1]}));' for name in fields
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <stdbool.h>\n"
        '#include "xla/ffi/api/c_api.h"\nint main(void) {\n'
        'printf("version %d %d\\n", XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);\n' + prints + "\nreturn 0; }\n"
    )
    program = tmp_path / "offsets"
    subprocess.run([compiler, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    major, minor = map(int, lines[0].split()[1:])
    assert major == xla_handler.API_VERSION[0] and minor >= xla_handler.API_VERSION[1]
    assert {name: int(at) for name, at in (line.split() for line in lines[1:])} == fields


def test_a_decorated_function_may_be_traced():
    import jax

    @nestegg.jit
    def scaled(parameters, x):
        return parameters["w"] * x + 2

    x = np.arange(6, dtype=np.float32)
    np.testing.assert_allclose(jax.jit(lambda a: scaled({"w": a}, a))(x), x * x + 2)
    np.testing.assert_allclose(jax.grad(lambda a: scaled({"w": a}, a).sum())(x), 2 * x)
    assert len(scaled.compiled) == 1
