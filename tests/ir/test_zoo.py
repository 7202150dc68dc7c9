"""The zoo: both forms of a model are the same function."""

import numpy as np
import pytest

from nestegg.ir import zoo
from nestegg.ir.errors import UnknownNameError
from nestegg.ir.jax_frontend import from_jax
from nestegg.ir.onnx_frontend import from_onnx
from nestegg.ir.reference import evaluate, xla

SMALL = ("mlp", "lenet", "dqn", "lstm_step")
LARGE = ("vgg19", "alexnet", "bert_base")  # weights that take seconds to draw

# Parameters in millions and multiply-adds in billions, as the papers and torchvision's models give them.
PUBLISHED = {
    "resnet18": (11.7, 1.82),
    "resnet50": (25.6, 4.10),
    "mobilenet_v1": (4.2, 0.57),
    "mobilenet_v2": (3.5, 0.31),
    "squeezenet": (1.24, 0.38),
    "shufflenet": (1.9, 0.14),
    "vgg19": (143.7, 19.6),
    "alexnet": (61.0, 0.72),
    "densenet121": (8.0, 2.85),
    "inception_v1": (7.0, 1.58),
    "bert_base": (85.1, 11.2),
}


def programs(name):
    fn, args = zoo.jax_model(name)
    return from_jax(fn, *args), from_onnx(zoo.onnx_model(name)), args


@pytest.mark.parametrize("name", SMALL)
def test_both_forms_agree(name):
    by_jax, by_onnx, args = programs(name)
    (x,), (y,) = evaluate(by_jax.graph, args), evaluate(by_onnx.graph, args)
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert 0.1 < np.abs(x).max() < 100


@pytest.mark.parametrize("name", ["mlp", "lenet", "dqn"])
def test_both_forms_are_the_same_operators(name):
    by_jax, by_onnx, _ = programs(name)
    assert by_jax.graph.operator_counts == by_onnx.graph.operator_counts


@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n not in (*SMALL, *LARGE)])
def test_both_front_ends_import_it(name):
    by_jax, by_onnx, _ = programs(name)
    assert by_jax.graph.output_types == by_onnx.graph.output_types
    for op in ("conv", "dot", "window", "tanh"):
        assert by_jax.graph.operator_counts.get(op) == by_onnx.graph.operator_counts.get(op)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n not in SMALL])
def test_the_forms_of_large_models_agree(name):
    by_jax, by_onnx, args = programs(name)
    (x,), (y,) = xla(by_jax.graph)(*args), xla(by_onnx.graph)(*args)
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(x).max())
    assert np.abs(x).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n not in SMALL])
def test_large_models_compile_and_verify(name):
    import nestegg

    assert nestegg.optimize(f"zoo:{name}").verify().ok


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_published(name):
    info = next(m for m in zoo.models() if m.name == name)
    parameters, macs = PUBLISHED[name]
    assert info.parameters / 1e6 == pytest.approx(parameters, rel=0.02)
    assert info.macs / 1e9 == pytest.approx(macs, rel=0.02)


def test_the_listing_counts_parameters_and_macs(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", None)  # no weights are drawn for it
    info = {m.name: m for m in zoo.models()}
    assert list(info) == list(zoo.ZOO)
    assert (info["mlp"].parameters, info["mlp"].macs) == (669706, 668672)
    assert str(info["dqn"].inputs[0]) == "f32[1,4,84,84]"


def test_a_written_file_is_read_back_and_always_the_same(tmp_path):
    zoo.write("lenet", tmp_path / "a.onnx")
    zoo.write("lenet", tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert from_onnx(tmp_path / "a.onnx").graph.output_types[0].shape == (1, 10)


def test_an_unknown_model_lists_what_there_is():
    with pytest.raises(UnknownNameError, match="'resnet' does not exist; did you mean 'resnet"):
        zoo.find("resnet")
