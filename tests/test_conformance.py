"""ONNX' backend tests through the runner of `benchmarks/`: some in machine code, and what befalls a bad one."""

import faulthandler
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("onnx_conformance", ROOT / "benchmarks" / "onnx_conformance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnx_conformance"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tests(runner):
    return {t.name: t for t in runner.load(["node", "real"])}


COMPILED = [
    *(
        "test_gather_1",
        "test_gather_elements_1",
        "test_gathernd_example_int32_batch_dim1",
        "test_scatter_elements_with_axis",
    ),
    *("test_bitshift_right_uint16", "test_mod_int64_fmod", "test_top_k_smallest"),
    *("test_gridsample_bilinear", "test_qlinearmatmul_2D_uint8_float32"),
    *("test_gru_seq_length", "test_einsum_batch_matmul", "test_attention_4d_fp16", "test_nllloss_NC"),
    *("test_resize_upsample_sizes_cubic", "test_convtranspose_pads", "test_add_uint64"),
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled(runner, tests, name):
    outcome = runner.run(tests[name], reference=False)
    assert (outcome.status, outcome.detail) == ("pass", "")


@pytest.mark.parametrize(
    "name",
    ["test_bvlc_alexnet", "test_densenet121", "test_inception_v1", "test_inception_v2", "test_resnet50"]
    + ["test_shufflenet", "test_squeezenet", "test_vgg19", "test_zfnet512"],
)
def test_the_light_models_import(tests, runner, name):
    from nestegg.ir.onnx_frontend import from_onnx

    model, _ = runner._model_on_disk(tests[name].case)
    assert from_onnx(model).graph.output_types[0].shape in ((1, 1000), (1, 1000, 1, 1))


def test_inputs_are_fixed_only_where_they_decide_shapes(runner, tests):
    reshaped = runner.run(tests["test_reshape_reordered_all_dims"], reference=True)
    assert (reshaped.status, reshaped.fixed, reshaped.left) == ("pass", ["shape"], 1)
    gathered = runner.run(tests["test_gather_1"], reference=True)
    assert (gathered.status, gathered.fixed, gathered.left) == ("pass", [], 2)


def test_what_is_not_supported_is_counted_as_that(runner, tests):
    outcome = runner.run(tests["test_nonzero_example"], reference=True)
    assert outcome.status == "unsupported"
    assert "operator NonZero is not supported" in outcome.detail


def test_a_wrong_result_is_counted_as_wrong(runner, tests):
    case = tests["test_abs"].case
    ((inputs, outputs),) = case.data_sets
    changed = SimpleNamespace(**{**vars(case), "data_sets": [(inputs, [outputs[0] + np.float32(0.01)])]})
    outcome = runner.run(runner.Test("test_abs", "node", changed), reference=True)
    assert outcome.status == "wrong"
    assert "Mismatched elements" in outcome.detail


def test_a_crash_and_an_endless_test_are_errors(runner, monkeypatch):
    def run(test, reference):
        if test.name == "crash":
            faulthandler.disable()  # its report would stand in the log of tests that pass
            os.abort()
        if test.name == "endless":
            time.sleep(60)
        return runner.Outcome(test.name, test.kind, "pass")

    monkeypatch.setattr(runner, "run", run)
    made = [runner.Test(n, "node", None) for n in ("a", "crash", "endless", "z")]
    outcomes = {o.name: o for o in runner.run_all(made, True, 2, limit=2.0)}
    assert {n: o.status for n, o in outcomes.items()} == {
        "a": "pass",
        "crash": "error",
        "endless": "error",
        "z": "pass",
    }
    assert outcomes["crash"].detail == "the process ended with code -6"
    assert outcomes["endless"].detail == "took longer than 2 s"


def test_the_table_has_a_row_a_kind_and_one_for_all(runner):
    made = [runner.Outcome("a", "node", "pass", fixed=["shape"], left=1), runner.Outcome("b", "node", "wrong")]
    table = runner.markdown(made).splitlines()
    assert table[2].startswith("| node | 2 | 1 | 1 | 0 | 0 | 50.0 | 1 |")
    assert table[3].startswith("| all | 2 |")


def test_a_log_is_taken_up_again(runner, tmp_path, monkeypatch):
    def run(test, reference):
        return runner.Outcome(test.name, test.kind, "pass", detail=str(os.getpid()))

    monkeypatch.setattr(runner, "run", run)
    log, made = tmp_path / "log.jsonl", [runner.Test(n, "node", None) for n in "ab"]
    first = runner.run_all(made[:1], True, 1, 60.0, log)
    both = runner.run_all(made, True, 1, 60.0, log)
    assert both[0].detail == first[0].detail
    assert [o.name for o in both] == ["a", "b"]
