"""How each contestant computes a case: nestegg and its peers, each prepared as its own documentation advises.

nestegg        `run`: `compiled.executable.run` on aligned arrays; `call`: the Python call; `kernel`: the
               entry in a native loop, without Python (what the machine code itself reaches)
jax            `jax.jit` on device arrays, weights as constants and as arguments, in every layout of the case
numpy          functions with `out=`, where NumPy has them
onnxruntime    a session with I/O bound to the arrays; for convolutions also between its own blocked layouts
openvino       float32 precision (bf16: bfloat16), one stream, tensors shared with the arrays
tvm            Relax from the ONNX model, weights as constants, `tvm.compile` with its default pipeline for this CPU: no
               tuning (MetaSchedule takes hours for a model), so its kernels are the untuned schedules
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from harness import Contestant, Timing, attempt, first_line
from limits import aligned

#: Columns of the tables, in their order.
PEERS = ("jax", "numpy", "onnxruntime", "openvino")

Restore = Callable[[np.ndarray], np.ndarray]


def same(a: np.ndarray) -> np.ndarray:
    return a


@dataclass(frozen=True)
class Form:
    """One JAX formulation: `fn(*inputs)` closes over its weights; `restore` makes the layout canonical."""

    variant: str
    fn: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    restore: Restore = same


@dataclass(frozen=True)
class OnnxForm:
    """One ONNX formulation. `blocked`: let onnxruntime keep its blocked layout at input and output. `precision`: what
    openvino may compute in; onnxruntime computes as the model says and leaves the others out."""

    variant: str
    model: Callable[[], Any]
    inputs: tuple[np.ndarray, ...]
    restore: Restore = same
    blocked: bool = False
    precision: str = "f32"


@dataclass(frozen=True)
class Source:
    """What nestegg is given: a program to import, inputs in its layout, and options (of `nestegg.compiler.Options`)."""

    program: Callable[[], Any]
    inputs: tuple[np.ndarray, ...]
    restore: Restore = same
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Case:
    """What all contestants compute. `flops`, `read`, `written`: operations and bytes it cannot do without."""

    name: str
    flops: float
    read: float
    written: float
    forms: tuple[Form, ...]
    source: Source
    onnx: tuple[OnnxForm, ...] = ()
    numpy: Callable[[], tuple[Callable[[], Any], Callable[[], np.ndarray]]] | None = None
    tolerance: float = 1e-4
    exact: Callable[[], np.ndarray] | None = None

    @cached_property
    def reference(self) -> np.ndarray:
        """The result in float64: by `exact`, or by JAX from the first form."""
        import jax

        if self.exact is not None:
            return self.exact()
        form = self.forms[0]
        with jax.enable_x64(True):
            wide = [a.astype(np.float64) if a.dtype == np.float32 else a for a in form.inputs]
            return form.restore(np.asarray(jax.jit(form.fn)(*wide)))


def page_aligned(a: np.ndarray) -> np.ndarray:
    """A copy that begins at a page."""
    out = aligned(max(a.nbytes, 1))[: a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def contestants(case: Case, names: Sequence[str], threads: int) -> list[Contestant | Timing]:
    """Everyone who is to compute the case, prepared; failures as reports."""
    made: list[Contestant | Timing] = []
    for name in names:
        made += _MAKERS[name](case, threads)
    return made


def nestegg(case: Case, threads: int) -> list[Contestant | Timing]:
    columns = (("nestegg", "run"), ("nestegg call", ""), ("nestegg kernel", ""))
    try:
        import nestegg
        from nestegg.compiler import Options
        from nestegg.ir.types import DTYPES

        program, options = case.source.program(), Options(threads=threads, cache=False, **case.source.options)
        begun = time.perf_counter()
        compiled = nestegg.optimize(program, *case.source.inputs, options=options)
        seconds = time.perf_counter() - begun
    except Exception as error:
        return [Timing(column, variant, error=first_line(error)) for column, variant in columns]
    inputs = [page_aligned(a) for a in case.source.inputs]

    def outputs() -> list[np.ndarray]:
        return [page_aligned(np.zeros(t.shape, DTYPES[t.dtype].numpy)) for t in compiled.graph.output_types]

    def run() -> Contestant:
        execute, out = compiled.executable.run, outputs()
        return Contestant(
            "nestegg",
            "run",
            lambda: execute(inputs, out),
            lambda: case.source.restore(out[0]),
            setup_s=seconds,
        )

    def call() -> Contestant:
        last: list[Any] = [None]

        def once() -> None:
            last[0] = compiled(*inputs)

        return Contestant(
            "nestegg call", "", once, lambda: case.source.restore(np.asarray(last[0])), setup_s=seconds
        )

    def kernel() -> Contestant:
        out = outputs()
        repeat = native_loop(compiled.executable, inputs, out)
        return Contestant(
            "nestegg kernel", "", lambda: repeat(1), lambda: case.source.restore(out[0]), repeat, seconds
        )

    return [attempt(*names, make) for names, make in zip(columns, (run, call, kernel), strict=True)]


def native_loop(
    executable: Any, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
) -> Callable[[int], None]:
    """Calls of a program's entry in a loop of machine code."""
    from nestegg.codegen.memory import aligned_bytes
    from nestegg.costmodel.measure import native_repeat

    native = executable.native
    arena = aligned_bytes(max(native.arena, 1))
    tables = [(ctypes.c_void_p * max(len(a), 1))(*(x.ctypes.data for x in a)) for a in (inputs, outputs)]
    loop = native_repeat()
    keep = (executable, arena, tables, list(inputs), list(outputs))

    def repeat(times: int) -> None:
        loop(native.run, times, keep[2][0], keep[2][1], native.constants, arena.ctypes.data)

    return repeat


def jax(case: Case, threads: int) -> list[Contestant | Timing]:
    made: list[Contestant | Timing] = []
    for form in case.forms:
        variant = f"{form.variant} " if form.variant else ""
        made.append(attempt("jax", f"{variant}constants", lambda f=form: _jax_constants(f)))
        made.append(attempt("jax", f"{variant}arguments", lambda f=form: _jax_arguments(f)))
    return [c for c in made if not (isinstance(c, Timing) and c.error.startswith("NoWeights"))]


class NoWeights(Exception):
    """The form has no constants that could be arguments."""


def _jax_constants(form: Form) -> Contestant:
    import jax

    arrays = [jax.device_put(a) for a in form.inputs]
    return _jax_contestant(form, jax.jit(form.fn).lower(*arrays).compile(), arrays)


def _jax_arguments(form: Form) -> Contestant:
    import jax
    import jax.core

    closed = jax.make_jaxpr(form.fn)(*form.inputs)
    if not any(np.size(c) > 1 for c in closed.consts):
        raise NoWeights

    def fn(consts: Sequence[Any], *inputs: Any) -> Any:
        return jax.core.eval_jaxpr(closed.jaxpr, consts, *inputs)[0]

    arrays = [
        [jax.device_put(np.asarray(c)) for c in closed.consts],
        *(jax.device_put(a) for a in form.inputs),
    ]
    return _jax_contestant(form, jax.jit(fn).lower(*arrays).compile(), arrays)


def _jax_contestant(form: Form, compiled: Any, arrays: list[Any]) -> Contestant:
    last: list[Any] = [None]

    def call() -> None:
        last[0] = compiled(*arrays)
        last[0].block_until_ready()

    return Contestant("jax", "", call, lambda: form.restore(np.asarray(last[0])))


def numpy(case: Case, threads: int) -> list[Contestant | Timing]:
    if case.numpy is None:
        return []

    def make() -> Contestant:
        assert case.numpy is not None
        call, output = case.numpy()
        return Contestant("numpy", "", call, output)

    return [attempt("numpy", "", make)]


def onnxruntime(case: Case, threads: int) -> list[Contestant | Timing]:
    forms = [f for f in case.onnx if f.precision == "f32"]
    return [attempt("onnxruntime", f.variant, lambda f=f: _onnxruntime(f, threads)) for f in forms]


def _session_options(threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


def _onnxruntime(form: OnnxForm, threads: int) -> Contestant:
    import onnxruntime as ort

    options, model = _session_options(threads), form.model().SerializeToString()
    if form.blocked:
        model = _without_reorders(model, threads)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = [page_aligned(a) for a in form.inputs]
    binding = session.io_binding()
    for meta, a in zip(session.get_inputs(), inputs, strict=True):
        binding.bind_ortvalue_input(meta.name, ort.OrtValue.ortvalue_from_numpy(a))
    binding.bind_output(session.get_outputs()[0].name, "cpu")
    session.run_with_iobinding(binding)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, binding.get_outputs()[0])

    def output() -> np.ndarray:
        return form.restore(binding.get_outputs()[0].numpy())

    return Contestant("onnxruntime", form.variant, lambda: session.run_with_iobinding(binding), output)


def _without_reorders(model: bytes, threads: int) -> bytes:
    """The model as onnxruntime optimizes it, but read and written in onnxruntime's own blocked layout.

    Raises `ValueError` if it did not choose that layout.
    """
    import tempfile
    from pathlib import Path

    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = _session_options(threads)
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found = onnx.load(str(path))
    graph = found.graph
    kept = [n for n in graph.node if n.op_type not in ("ReorderInput", "ReorderOutput")]
    if len(kept) == len(graph.node):
        raise ValueError("onnxruntime keeps this convolution in NCHW")
    renamed = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "ReorderInput"}
    finals = {n.input[0]: n.output[0] for n in graph.node if n.op_type == "ReorderOutput"}
    for n in kept:
        for k, name in enumerate(n.input):
            n.input[k] = renamed.get(name, name)
        for k, name in enumerate(n.output):
            n.output[k] = finals.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    del graph.value_info[:]
    return found.SerializeToString()


def openvino(case: Case, threads: int) -> list[Contestant | Timing]:
    forms = [f for f in case.onnx if not f.blocked]
    return [attempt("openvino", f.variant, lambda f=f: _openvino(f, threads)) for f in forms]


def _openvino(form: OnnxForm, threads: int) -> Contestant:
    import openvino as ov

    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": form.precision,
        "ENABLE_CPU_PINNING": False,
    }
    import io

    compiled = core.compile_model(
        core.read_model(io.BytesIO(form.model().SerializeToString())), "CPU", settings
    )
    request, result = compiled.create_infer_request(), compiled.output(0)
    inputs = [page_aligned(a) for a in form.inputs]
    for k, a in enumerate(inputs):
        request.set_input_tensor(k, ov.Tensor(a, shared_memory=True))
    out = page_aligned(np.zeros(tuple(result.shape), result.element_type.to_dtype()))
    request.set_output_tensor(0, ov.Tensor(out, shared_memory=True))

    def call() -> None:
        request.infer(share_outputs=True)

    # the request refers to the arrays' memory: the closures keep them
    return Contestant("openvino", form.variant, call, lambda: (inputs, form.restore(out))[1])


def tvm(case: Case, threads: int) -> list[Contestant | Timing]:
    forms = [f for f in case.onnx if f.precision == "f32" and not f.blocked]
    return [attempt("tvm", f.variant, lambda f=f: _tvm(f, threads)) for f in forms]


def _tvm(form: OnnxForm, threads: int) -> Contestant:
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import llvmlite.binding as llvm
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    target = tvm.target.Target({"kind": "llvm", "mcpu": llvm.get_host_cpu_name(), "num-cores": threads})
    module = from_onnx(form.model(), keep_params_in_input=False)
    machine = relax.VirtualMachine(tvm.compile(module, target), tvm.cpu())
    main, inputs = machine["main"], [tvm.runtime.tensor(a) for a in form.inputs]
    last: list[Any] = [None]

    def call() -> None:
        last[0] = main(*inputs)

    def output() -> np.ndarray:
        first = last[0] if hasattr(last[0], "numpy") else last[0][0]
        return form.restore(first.numpy())

    return Contestant("tvm", form.variant, call, output)


_MAKERS: dict[str, Callable[[Case, int], list[Contestant | Timing]]] = {
    "nestegg": nestegg,
    "jax": jax,
    "numpy": numpy,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "tvm": tvm,
}
