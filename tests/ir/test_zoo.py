"""The zoo: both forms of a model are the same function."""

import numpy as np
import pytest

from nestegg.ir import zoo
from nestegg.ir.errors import UnknownNameError
from nestegg.ir.jax_frontend import from_jax
from nestegg.ir.onnx_frontend import from_onnx
from nestegg.ir.reference import evaluate


def programs(name):
    fn, args = zoo.jax_model(name)
    return from_jax(fn, *args), from_onnx(zoo.onnx_model(name)), args


@pytest.mark.parametrize("name", ["mlp", "lenet", "dqn"])
def test_both_forms_agree(name):
    by_jax, by_onnx, args = programs(name)
    (x,), (y,) = evaluate(by_jax.graph, args), evaluate(by_onnx.graph, args)
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert by_jax.graph.operator_counts == by_onnx.graph.operator_counts
    assert 0.1 < np.abs(x).max() < 100


def test_resnet18_imports_from_both():
    by_jax, by_onnx, _ = programs("resnet18")
    assert by_jax.graph.output_types == by_onnx.graph.output_types
    assert by_onnx.graph.operator_counts["conv"] == 20
    assert by_onnx.graph.operator_counts["rsqrt"] == 20


@pytest.mark.slow
def test_resnet18_forms_agree():
    by_jax, by_onnx, args = programs("resnet18")
    (x,), (y,) = evaluate(by_jax.graph, args), evaluate(by_onnx.graph, args)
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_the_listing_counts_parameters_and_macs():
    info = {m.name: m for m in zoo.models()}
    assert list(info) == list(zoo.ZOO)
    assert (info["mlp"].parameters, info["mlp"].macs) == (669706, 668672)
    assert info["resnet18"].macs == pytest.approx(1.82e9, rel=0.01)
    assert str(info["dqn"].inputs[0]) == "f32[1,4,84,84]"


def test_a_written_file_is_read_back_and_always_the_same(tmp_path):
    zoo.write("lenet", tmp_path / "a.onnx")
    zoo.write("lenet", tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert from_onnx(tmp_path / "a.onnx").graph.output_types[0].shape == (1, 10)


def test_an_unknown_model_lists_what_there_is():
    with pytest.raises(UnknownNameError, match="'resnet' does not exist; did you mean 'resnet18'"):
        zoo.find("resnet")
