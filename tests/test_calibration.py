"""Calibration: what it measures, what it refuses, and the file it writes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import nestegg
from nestegg.cli import app
from nestegg.compiler import import_program
from nestegg.ir.calibration import Ranges
from nestegg.ir.errors import CalibrationError

X = np.linspace(-1, 3, 12, dtype=np.float32).reshape(3, 4)
W = np.arange(8, dtype=np.float32).reshape(4, 2)


def program():
    return import_program(lambda x: jnp.maximum(x, 0) @ W, X)


def by_operator(ranges, graph):
    return {graph.nodes[k].op: t for k, t in ranges.tensors.items()}


def test_ranges_gains_and_energies():
    p = program()
    found = by_operator(nestegg.calibrate(p, data=[X]), p.graph)
    assert (found["input"].low, found["input"].high) == (-1, 3)
    assert (found["max"].low, found["max"].high) == (0, 3)
    relu = np.maximum(X, 0)
    y = relu @ W
    assert found["dot"].high == pytest.approx(y.max())
    assert found["dot"].gain == pytest.approx(1 / y.max(), rel=1e-5)
    assert found["dot"].energy == pytest.approx((relu**2).sum(1).mean(), rel=1e-5)
    # Errors of variance 1 in each element of relu(x) are errors of variance sum(w^2) in each column of the result.
    expected = np.sqrt((W**2).sum(0).mean()) / y.max()
    assert found["max"].gain == pytest.approx(expected, rel=0.5)
    assert found["input"].gain < found["max"].gain


def test_percentiles_clip():
    x = np.zeros((1, 10_000), np.float32)
    x[0, 0], x[0, 1] = 100, -1
    p = import_program(lambda x: x * 2, x)
    data = np.clip(np.random.default_rng(0).standard_normal((1, 10_000)), -3, 3).astype(np.float32)
    data[0, 0] = 100
    whole = by_operator(nestegg.calibrate(p, data=[data]), p.graph)["input"]
    most = by_operator(nestegg.calibrate(p, data=[data], method="percentile", percentile=99.9), p.graph)["input"]
    assert whole.high == 100
    assert whole.clipped == 0
    assert most.high < 4
    assert most.clipped == pytest.approx((100 - most.high) ** 2 / 10_000, rel=0.05)


def test_several_samples_widen_the_range():
    p = program()
    samples = np.stack([X, 2 * X])
    found = nestegg.calibrate(p, data={p.input_names[0]: samples})
    assert found.samples == 2
    assert by_operator(found, p.graph)["input"].high == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "the data has no x.*it has nothing"),
        ({"image": X}, "it has image"),
        ({"NAME": X[:2]}, r"data of shape \(2, 4\); give \(3, 4\), or \('samples', 3, 4\)"),
        ({"NAME": np.where(X > 2, np.nan, X)}, "holds nan at"),
        ({"NAME": X.astype(complex)}, "dtype complex128"),
        ({"NAME": np.zeros((0, 3, 4), np.float32)}, "no samples"),
        ([X, X], "2 arrays of data given for 1 inputs"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, message):
    p = program()
    name = p.input_names[0]
    given = {k.replace("NAME", name): v for k, v in data.items()} if isinstance(data, dict) else data
    with pytest.raises(CalibrationError, match=message.replace("no x", f"no {name}")):
        nestegg.calibrate(p, data=given)


def test_methods_and_percentiles_are_checked():
    with pytest.raises(CalibrationError, match="'mean' is not one of minmax, percentile"):
        nestegg.calibrate(program(), data=[X], method="mean")
    with pytest.raises(CalibrationError, match="percentile 30"):
        nestegg.calibrate(program(), data=[X], percentile=30)


def test_a_file_holds_all_of_it(tmp_path):
    ranges = nestegg.calibrate(program(), data=[X])
    ranges.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == ranges


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a file of ranges"),
        ('{"format": "nestegg-ranges-2"}', "is damaged"),
        ('{"format": "nestegg-ranges-1"}', "is not a file of ranges"),
        (None, "nestegg calibrate"),
    ],
)
def test_a_damaged_file_is_refused(text, message, tmp_path):
    path = tmp_path / "ranges.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        Ranges.load(path)


def test_a_range_that_is_no_number_is_refused(tmp_path):
    path = tmp_path / "ranges.json"
    nestegg.calibrate(program(), data=[X]).save(path)
    data = json.loads(path.read_text())
    next(iter(data["tensors"].values()))["high"] = float("nan")
    path.write_text(json.dumps(data))
    with pytest.raises(CalibrationError, match="not a finite range"):
        Ranges.load(path)


# --- the command -----------------------------------------------------------------------------------------------------

FACTORY = """
import jax.numpy as jnp
import numpy as np

W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)

def make():
    return (lambda x: jnp.maximum(x @ W, 0) @ W), (np.ones((32, 64), np.float32),)
"""


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_the_command_line_from_data_to_a_quantized_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calibrated_model.py").write_text(FACTORY)
    model = "calibrated_model:make"
    x = np.random.default_rng(1).standard_normal((4, 32, 64)).astype(np.float32)
    np.savez("inputs.npz", x0=x)
    done = run("calibrate", model, "--data", "inputs.npz", "-o", "ranges.json")
    assert done.exit_code == 0, done.output
    assert "4 samples, minmax" in done.stdout
    done = run("optimize", model, "--ranges", "ranges.json", "--accuracy-budget", "0.1", "--threads", "1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["accuracy"]["budget"] == 0.1
    assert 0 < found["accuracy"]["estimate"] <= 0.1
    assert found["verify"]["bar"] == 0.1
    assert any("vpdpbusd" in k["schedule"] or "i32" in k["computes"] for k in found["kernels"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calibrate", "zoo:mlp", "--data", "nothing.npz", "-o", "r.json"), "cannot be read"),
        (("optimize", "zoo:mlp", "--accuracy-budget", "0.1"), "needs ranges"),
        (("optimize", "zoo:mlp", "--accuracy-budget", "0.1", "--ranges", "none.json"), "nestegg calibrate"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
