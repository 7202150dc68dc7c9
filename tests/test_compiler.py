"""The whole pipeline on small programs: optimized graphs compute what the reference does."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nestegg
from nestegg.compiler import Options, compile_graph
from nestegg.ir.errors import CallError, RuleError
from nestegg.ir.imported import ImportedProgram
from nestegg.ir.loops import StagedKernel
from nestegg.ir.nest import parallel
from nestegg.ir.reference import evaluate
from nestegg.testing import graphs, inputs_of


def test_optimize_a_jax_function():
    import jax.numpy as jnp

    w = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)

    def f(x):
        return jnp.maximum(x @ w, 0) * 2

    compiled = nestegg.optimize(f, np.zeros((3, 8), np.float32))
    assert compiled.verify().ok
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(compiled(x), np.maximum(x @ w, 0) * 2, rtol=1e-5, atol=1e-5)
    assert len(compiled.program.calls) == 1, "matmul, activation and factor are one kernel"


def test_jit_specialises_by_shape():
    @nestegg.jit
    def f(x, y):
        return {"sum": x + y}

    for n in (3, 5):
        x = np.arange(n, dtype=np.float32)
        np.testing.assert_array_equal(f(x, x)["sum"], 2 * x)
    assert len(f.compiled) == 2


def test_jax_arrays_in_jax_arrays_out():
    import jax.numpy as jnp

    compiled = nestegg.optimize(lambda x: x * 3, jnp.ones((4,)))
    assert type(compiled(jnp.ones((4,)))).__module__.startswith("jax")


@pytest.mark.parametrize(
    "wrong", [np.zeros((4,), np.float32), np.zeros((3,), np.float64), np.zeros((3, 1), np.float32)]
)
def test_wrong_arguments_are_named(wrong: np.ndarray) -> None:
    compiled = nestegg.optimize(lambda x: x + 1, np.zeros((3,), np.float32))
    with pytest.raises(CallError, match=r"argument 0 .*optimized for f32\[3\]"):
        compiled(wrong)


def test_outputs_may_be_inputs_constants_and_each_other():
    c = np.arange(4, dtype=np.float32)
    compiled = nestegg.optimize(lambda x: (x, c, x + c, x + c, x.reshape(2, 2)), np.zeros((4,), np.float32))
    x = np.float32([1, 2, 3, 4])
    a, b, d, e, f = compiled(x)
    for got, want in ((a, x), (b, c), (d, x + c), (e, x + c), (f, x.reshape(2, 2))):
        np.testing.assert_array_equal(got, want)


def test_empty_tensors():
    add = nestegg.optimize(lambda x: x + 1, np.zeros((0, 3), np.float32))
    assert add(np.zeros((0, 3), np.float32)).shape == (0, 3)
    assert add.report().to_json()["kernels"]
    product = nestegg.optimize(lambda x, y: x @ y, np.zeros((3, 0), np.float32), np.zeros((0, 2), np.float32))
    np.testing.assert_array_equal(product(np.zeros((3, 0), np.float32), np.zeros((0, 2), np.float32)), np.zeros((3, 2)))


@pytest.mark.parametrize("name", ["mlp", "lenet", "dqn"])
def test_zoo_models_from_both_front_ends(name: str) -> None:
    from nestegg.ir import zoo

    ours, theirs = nestegg.optimize(f"zoo:{name}"), nestegg.optimize(zoo.onnx_model(name))
    report = ours.verify()
    assert report.ok, report
    x = ours.example_inputs()
    np.testing.assert_allclose(np.asarray(ours(*x)), np.asarray(theirs(*x)), rtol=1e-4, atol=1e-5)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(graphs(max_nodes=4).flatmap(lambda g: st.tuples(st.just(g), inputs_of(g))))
def test_optimized_random_graphs(case) -> None:
    graph, args = case
    names = tuple(f"x{k}" for k in range(len(graph.inputs)))
    program = ImportedProgram(graph, names, tuple(f"y{k}" for k in range(len(graph.outputs))))
    compiled = compile_graph(program, Options())
    want = evaluate(graph, args, double=True)
    outputs = compiled(*args)
    for got, exact in zip(outputs if isinstance(outputs, tuple) else (outputs,), want, strict=True):
        scale = max(np.abs(exact).max(initial=0), 1.0)
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5 * scale)


def test_division_by_a_constant_zero_is_infinite():
    by = np.float32([0, 2, 4, -0.5])
    compiled = nestegg.optimize(lambda x: x / by, np.ones((4,), np.float32))
    np.testing.assert_array_equal(compiled(np.float32([1, 1, 3, 1])), np.float32([np.inf, 0.5, 0.75, -2]))


@pytest.mark.parametrize(
    "function",
    [lambda x: x.sum(), lambda x: x.sum(axis=0), lambda x: (x * x).mean(axis=1), lambda x: x[:, :40].T @ x[:, :48]],
    ids=["all", "columns", "rows", "product"],
)
def test_long_sums_are_as_accurate_as_xla(function) -> None:
    """Terms of one sign: the rounding errors of a long chain of additions do not cancel."""
    x = np.random.default_rng(0).random((4096, 512), np.float32)
    report = nestegg.optimize(function, x, threads=1).verify(x)
    assert report.ok, report


def test_a_single_result_is_computed_by_two_threads() -> None:
    x = np.random.default_rng(0).random((2048, 1024), np.float32)
    compiled = nestegg.optimize(lambda x: (x + 1).max() + 1, x, threads=2)
    assert any(parallel(c.nest) for c in compiled.program.calls)
    assert compiled(x) == np.float32(x.max() + 1) + 1


def test_a_softmax_of_large_scaled_numbers_is_finite() -> None:
    """What a product's rounding loses must not come back in the difference to the maximum."""
    import jax

    x = np.full((3, 1000), 1.2345678e12, np.float32)
    compiled = nestegg.optimize(lambda x: jax.nn.softmax(x.sum(axis=0) * np.float32(1 / 169)), x, threads=1)
    np.testing.assert_allclose(compiled(x), np.full(1000, 1e-3), rtol=1e-5)


def test_a_greedy_program_that_is_better_is_taken(monkeypatch):
    """Exact extraction that its time limit stops may find less than greedy extraction's longer local search."""
    from nestegg import compiler
    from nestegg.extract import choose

    extract, chosen = choose._extract, []

    def stopped(egraph, candidates, seconds, method, *rest):
        found, its = extract(egraph, candidates, seconds, "greedy", *rest)
        return (found if method == "greedy" else replace(found, cost=2 * found.cost, method="ilp")), its

    def recorded(*args, **options):
        chosen.append(choose.choose(*args, **options))
        return chosen[-1]

    monkeypatch.setattr(choose, "_extract", stopped)
    monkeypatch.setattr(compiler, "choose", recorded)
    nestegg.optimize("zoo:mlp", cache=False, threads=1)
    assert chosen and all(c.extraction.cost == c.greedy_cost for c in chosen)


@pytest.mark.parametrize("transposed", [False, True])
def test_an_operand_that_is_read_across_or_a_power_of_two_apart_is_copied_first(transposed: bool) -> None:
    a, b = (np.random.default_rng(k).standard_normal((512, 512), np.float32) for k in (0, 1))
    y = b if transposed else np.ascontiguousarray(b.T)
    compiled = nestegg.optimize(lambda a, b: a @ b.T if transposed else a @ b, a, y, threads=1, target="x86-64-v3")
    (call,) = compiled.program.calls
    assert isinstance(call.kernel, StagedKernel)
    assert [k.kind for k in call.kernel.stages] == ["", "sum"]
    np.testing.assert_allclose(compiled(a, y), a.astype(np.float64) @ b.T, rtol=1e-4, atol=1e-4)


def test_a_convolution_of_no_images():
    x, w = np.zeros((0, 3, 5, 5), np.float32), np.ones((4, 3, 3, 3), np.float32)
    import jax.lax

    y = nestegg.optimize(lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME"), x, w)(x, w)
    assert y.shape == (0, 4, 5, 5)


def test_programs_are_compiled_in_several_threads_at_once():
    x = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)

    def optimized(k: int) -> np.ndarray:
        return nestegg.optimize(lambda a: (a @ a.T * k)[:, :k] + 1, x, threads=1, cache=False)(x)

    with ThreadPoolExecutor(4) as pool:
        for k, y in zip(range(1, 7), pool.map(optimized, range(1, 7)), strict=True):
            np.testing.assert_allclose(y, (x @ x.T * k)[:, :k] + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_program_is_not_copied_into_another_process(copied):
    compiled = nestegg.optimize(lambda x: x + 1, np.zeros(3, np.float32))
    with pytest.raises(CallError, match="optimize the function there again"):
        copied(compiled)


@pytest.mark.parametrize(("rules", "says"), [([3], "rules holds a int"), ("nosuch.py", "no such file of rules")])
def test_what_is_no_rule_is_refused(rules, says):
    with pytest.raises(RuleError, match=says):
        nestegg.optimize(lambda x: x + 1, np.zeros(3, np.float32), rules=rules)
