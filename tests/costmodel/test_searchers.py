"""Processes that search schedules beside this one: what is found does not depend on them."""

import jax.numpy as jnp
import numpy as np
import pytest

import nestegg
from nestegg.compiler import Options, compile_graph, import_program
from nestegg.costmodel.searchers import Searchers, kernel_search
from nestegg.extract.search import LEARNED
from nestegg.ir.attrs import Attrs
from nestegg.ir.loops import lower
from nestegg.ir.operator import operator
from nestegg.ir.target import host
from nestegg.ir.types import TensorType
from nestegg.rewrite.loop_rules import LOOP_RULES

DOT = Attrs(contract=((1,), (0,)), batch=((), ()))


def products():
    sizes = ((8, 16, 32), (12, 24, 48), (5, 7, 64), (64, 64, 64))
    types = [(TensorType((m, k)), TensorType((k, n))) for m, k, n in sizes]
    return [lower(operator("dot").expr(t, DOT)) for t in types]


def found(helpers):
    search = kernel_search(host(), 1, LEARNED, helpers=helpers)
    search.search(products())
    figures = {name: (s.matches, s.enodes) for name, s in search.report.rules.items()}
    return search.schedules, (search.report.enodes, search.report.iterations, figures)


def test_a_process_finds_what_is_found_here():
    with Searchers(host(), 1, LEARNED, 1) as helpers:
        assert found(helpers) == found(None)
        assert [c.alive for c in helpers._children] == [True]


def test_another_process_does_take_part():
    groups = [[k] for k in products()]
    here = []
    search = kernel_search(host(), 1, LEARNED)
    with Searchers(host(), 1, LEARNED, 1) as helpers:
        helpers.start()
        helpers.map(groups[:2], search.searched)  # until it is loaded
        both = helpers.map(groups, lambda group: here.append(group) or search.searched(group))
    assert 0 < len(here) < len(groups)
    assert [f.schedules for f in both] == [search.searched(g).schedules for g in groups]


@pytest.mark.parametrize("when", ["before", "while searching"])
def test_a_process_that_ends_leaves_its_kernels_to_this_one(when):
    with Searchers(host(), 1, LEARNED, 1) as helpers:
        helpers.start()
        process = helpers._children[0]._process
        if when == "before":
            process.kill()
            process.wait()

        def here(group):
            process.kill()
            return kernel_search(host(), 1, LEARNED).searched(group)

        groups = [[k] for k in products()]
        schedules = [f.schedules for f in helpers.map(groups, here)]
    assert schedules == [kernel_search(host(), 1, LEARNED).searched(g).schedules for g in groups]


def layers(x, *weights):
    for w in weights:
        x = jnp.tanh(x @ w) - jnp.max(x)
    return x


SHAPES = [(8, 32), (32, 48), (48, 16), (16, 96), (96, 10)]
ARGS = [np.random.default_rng(k).standard_normal(s).astype(np.float32) for k, s in enumerate(SHAPES)]


def test_programs_are_the_same_with_and_without():
    imported = import_program(layers, *ARGS)
    alone, helped = (compile_graph(imported, Options(threads=1, cache=False, searchers=n)) for n in (0, 1))
    assert str(alone.program) == str(helped.program)
    assert alone.found["loops"]["kernels_searched"] > 4


def test_with_rules_of_users_only_this_process_searches(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr("nestegg.costmodel.searchers._Child", refuse)
    with pytest.raises(AssertionError, match="was started"):
        nestegg.optimize(layers, *ARGS, options=Options(threads=1, cache=False, searchers=1))
    mine = (LOOP_RULES[0],)
    nestegg.optimize(layers, *ARGS, options=Options(threads=1, cache=False, searchers=1, rules=mine))
