"""`nestegg.testing` as its users see it: the strategies give what they say, the documentation's code runs."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestegg import load_rules
from nestegg.ir.loops import StagedKernel
from nestegg.ir.nest import extents
from nestegg.ir.operator import OPERATORS, Reject, operator
from nestegg.ir.reference import evaluate
from nestegg.ir.types import DTYPES
from nestegg.testing import (
    HypothesisChooser,
    check_rules,
    graphs,
    inputs_of,
    kernels,
    operator_instances,
    schedules,
    tensor_types,
    tensors,
)
from nestegg.testing.choosing import Refuted, search

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "writing-a-rule.md").read_text()


@given(graphs(max_nodes=5).flatmap(lambda g: st.tuples(st.just(g), inputs_of(g))))
@settings(max_examples=15)
def test_graphs_are_well_conditioned(case):
    graph, args = case
    single, double = evaluate(graph, args), evaluate(graph, args, double=True)
    for a, b in zip(single, double, strict=True):
        assert np.isfinite(b).all()
        assert np.abs(b).max() < 200
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@given(graphs(max_nodes=6))
@settings(max_examples=60)
def test_graphs_are_small_and_in_float32(graph):
    assert 1 <= len(graph.inputs) <= 2
    assert graph.outputs
    assert {n.type.dtype for n in graph.nodes} == {"f32"}
    assert max(n.type.size for n in graph.nodes) <= 20_000


def test_graphs_use_the_operator_table():
    seen: set[str] = set()

    @given(graphs(max_nodes=8))
    @settings(max_examples=200, database=None)
    def collect(graph):
        seen.update(graph.operator_counts)

    collect()
    assert len(seen & set(OPERATORS)) >= 25


@given(tensor_types(dtypes=("f32", "i8", "bool"), max_rank=3, max_extent=4))
def test_tensor_types_obey_their_bounds(t):
    assert t.rank <= 3
    assert all(1 <= n <= 4 for n in t.shape)


@given(tensor_types(dtypes=tuple(DTYPES)).flatmap(lambda t: st.tuples(st.just(t), tensors(t, (0.5, 3.5)))))
def test_tensors_have_their_type_and_domain(case):
    t, a = case
    assert (a.shape, a.dtype) == (t.shape, DTYPES[t.dtype].numpy)
    if DTYPES[t.dtype].kind == "float":
        assert ((a >= 0.5) & (a <= 3.5)).all()


@pytest.mark.parametrize("name", ["conv", "dot", "concat", "pad", "select", "window"])
def test_operator_instances_are_legal(name):
    @given(operator_instances(name))
    @settings(max_examples=15, database=None)
    def legal(instance):
        assert operator(name).check(instance.types, instance.attrs) == instance.result

    legal()


def test_kernels_have_all_sorts_of_extents():
    seen: set[int] = set()
    kinds: set[str] = set()

    @given(kernels())
    @settings(max_examples=200, database=None)
    def collect(kernel):
        for stage in kernel.stages if isinstance(kernel, StagedKernel) else (kernel,):
            seen.update(stage.extents)
            kinds.add(stage.kind)

    collect()
    assert {2, 3, 5, 7, 13, 17} <= seen
    assert {"", "sum", "max"} <= kinds


@given(kernels().flatmap(lambda k: st.tuples(st.just(k), schedules(k))))
@settings(max_examples=10)
def test_a_schedule_of_a_kernel(case):
    kernel, nest = case
    assert extents(nest, len(kernel.axes)) == kernel.extents


# --- search --------------------------------------------------------------------------------------------


def test_search_shrinks():
    def test(pair):
        if pair[0] + pair[1] > 10:
            raise Refuted(str(pair))

    outcome = search(lambda c: (c.integer(0, 20), c.integer(0, 20)), test, 200, seed=0)
    assert outcome.failure is not None
    assert sum(outcome.smallest) == 11


def test_search_that_finds_no_case_is_empty():
    def draw(c):
        raise Reject

    assert search(draw, lambda case: None, 20, seed=0).examples == 0


def test_an_error_in_a_test_is_not_hidden():
    def test(case):
        raise KeyError("a mistake in the test")

    with pytest.raises(KeyError, match="a mistake"):
        search(lambda c: c.integer(0, 3), test, 20, seed=0)


def test_empty_range_is_rejected():
    with pytest.raises(Reject):
        HypothesisChooser(lambda strategy: 0).integer(2, 1)


# --- documentation -------------------------------------------------------------------------------------


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_on_writing_rules(tmp_path):
    # From a file, so that rules know their lines as they do for a reader who copies the page.
    file = tmp_path / "page.py"
    file.write_text("\n".join(fences("python")))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(file.read_text(), str(file), "exec"), {})
    assert printed.getvalue().strip() == fences("text")[0].strip()
    assert {r.name for r in load_rules(file)} == {
        "add_constants", "halve", "forgets_the_sign", "transpose_twice",
    }  # fmt: skip


def test_the_example_file_of_rules_holds():
    found = load_rules(ROOT / "examples" / "my_rules.py")
    assert {r.level for r in found} == {"graph", "loop"}
    for check in check_rules(found, examples=40):
        assert check.ok, check


def test_importing_testing_does_not_load_jax():
    code = "import sys, nestegg.testing; print({'jax', 'llvmlite'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
