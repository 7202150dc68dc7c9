"""What a call costs besides the computation: a sum or product of four numbers, by all peers, in interleaved rounds.

    python benchmarks/calls.py [--rounds 15] [--json | --markdown]

Every contestant gets the arrays it likes best (JAX its own, the others NumPy's) and waits for the result. `in a jit`
is one call among a thousand in a `fori_loop` inside `jax.jit`: what the custom call itself costs, without Python.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import pin

if TYPE_CHECKING:
    from harness import Contestant, Timing

SIZE = 4
LOOP = 1000
#: Case -> number of arguments.
CASES = {"1 input": 1, "2 inputs": 2}


def program(count: int) -> Callable[..., Any]:
    return (lambda x: x * 2 + 1) if count == 1 else (lambda x, y: x * y + 1)


def contestants(count: int) -> list[Contestant | Timing]:
    """Everyone who calls the program of so many arguments."""
    import jax
    import numpy as np
    from harness import attempt

    import nestegg

    fn = program(count)
    arrays = [np.arange(SIZE, dtype=np.float32) + k for k in range(count)]
    on_device = [jax.device_put(a) for a in arrays]
    compiled = nestegg.optimize(fn, *arrays, cache=False)
    out = np.empty(SIZE, np.float32)
    as_jax, jitted = compiled.as_jax(), jax.jit(fn)
    run_into = compiled.executable.run
    session, names = onnx_session(count)
    feed = dict(zip(names, arrays, strict=True))
    ways: Sequence[tuple[str, str, Callable[[], Any]]] = (
        ("nestegg", "compiled(...)", lambda: compiled(*arrays)),
        ("nestegg", "executable.run", lambda: (run_into(arrays, [out]), out)[1]),
        ("nestegg", "as_jax", lambda: as_jax(*on_device).block_until_ready()),
        ("jax.jit", "JAX arrays", lambda: jitted(*on_device).block_until_ready()),
        ("jax.jit", "NumPy arrays", lambda: jitted(*arrays).block_until_ready()),
        ("onnxruntime", "run", lambda: session.run(None, feed)[0]),
    )
    made = [attempt(column, variant, lambda c=call: _checked(c)) for column, variant, call in ways]
    for column, f in (("nestegg", as_jax), ("jax.jit", fn)):
        made.append(attempt(column, "in a jit", lambda f=f: in_jit(f, on_device)))
    return made


def _checked(call: Callable[[], Any]) -> Contestant:
    import numpy as np
    from harness import Contestant

    return Contestant("", "", call, lambda: np.asarray(call()))


def in_jit(f: Callable[..., Any], arrays: Sequence[Any]) -> Contestant:
    """`LOOP` calls, each of which needs the one before."""
    import jax
    from harness import Contestant

    rest = arrays[1:]
    looped = jax.jit(lambda x: jax.lax.fori_loop(0, LOOP, lambda i, y: f(y * 0.5, *rest), x))
    return Contestant("", "", lambda: looped(arrays[0]).block_until_ready(), None)


def onnx_session(count: int) -> tuple[Any, list[str]]:
    """onnxruntime's session of the same program."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    names = [f"x{k}" for k in range(count)]
    values = {"one": 1.0} | ({"two": 2.0} if count == 1 else {})
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in values.items()]
    nodes = [
        helper.make_node("Mul", [names[0], "two" if count == 1 else names[1]], ["product"]),
        helper.make_node("Add", ["product", "one"], ["y"]),
    ]
    *inputs, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [SIZE]) for n in (*names, "y"))
    graph = helper.make_graph(nodes, "calls", inputs, [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), names


def main(
    rounds: Annotated[int, typer.Option(help="samples a contestant")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print a table for docs/results.md")] = False,
) -> None:
    """Time calls of tiny programs, in microseconds."""
    pinned = pin(1)
    import numpy as np
    from harness import Plan, markdown, run, show, versions

    rows: dict[tuple[str, str], dict[str, float | str]] = {}
    for case, count in CASES.items():
        arrays = [np.arange(SIZE, dtype=np.float64) + k for k in range(count)]
        for t in run(contestants(count), program(count)(*arrays), Plan(rounds=rounds)):
            per = LOOP if t.variant == "in a jit" else 1
            rows.setdefault((t.column, t.variant), {})[case] = t.error or round(t.median * 1e6 / per, 3)
    command = " ".join(["python", "benchmarks/calls.py", *sys.argv[1:]])
    about = {"command": command, "machine": str(pinned), "versions": versions("numpy", "jax", "onnxruntime")}
    if as_json:
        print(json.dumps(about | {"us": [{"who": w, "how": h, **cells} for (w, h), cells in rows.items()]}))
        return
    table = [[f"{who}, {how}", *(str(cells[c]) for c in CASES)] for (who, how), cells in rows.items()]
    notes = [f"`{command}`", f"{pinned}; {', '.join(f'{n} {v}' for n, v in about['versions'].items())}"]
    if as_markdown:
        print(markdown("calls: microseconds", ["calls", *CASES], table, notes))
    else:
        show("calls: microseconds", ["calls", *CASES], table, notes)


if __name__ == "__main__":
    typer.run(main)
