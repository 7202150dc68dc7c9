"""`nestegg vta` as its users meet it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from nestegg.cli import app

DATA = Path(__file__).parent / "vta" / "data"
PROGRAM = """
.dram 0x20000
.uops 0x2000
uop 0 0 0
.code 0x1000
load.uop dram=0x800 y=1 x=1 stride=1
load.acc dram=0x400 y=1 x=2 stride=2
alu.add uop=0:1 iter=1,2 dst=0,1 src=0,1 imm=1 push_next
store.out dram=0x1100 y=1 x=2 stride=2 pop_prev push_prev
load.uop pop_next
finish
.data 0x10000 05
.output result 0x11000 32 {sha256}
"""


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["vta", *map(str, args)])


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "add.vta"
    path.write_text(PROGRAM.format(sha256=""))
    return path


def test_run(text, tmp_path):
    result = run("run", text, "--json", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["counters"]["alu_uops"] == 2
    assert found["timing"]["cycles"] > 0
    data = (tmp_path / "out" / "result.bin").read_bytes()
    assert data == b"\x06" + b"\x01" * 31
    shown = run("run", text, "--board", "pynq").stdout
    assert found["outputs"][0]["sha256"] in shown and "cycles" in shown


def test_an_output_that_is_not_as_recorded(text):
    text.write_text(PROGRAM.format(sha256="0" * 64))
    result = run("run", text)
    assert result.exit_code == 1
    assert "NOT as expected" in result.stdout


def test_asm_and_disasm(text, tmp_path):
    folder = tmp_path / "program"
    assert run("asm", text, "-o", folder).exit_code == 0
    again = tmp_path / "again.vta"
    again.write_text(run("disasm", folder).stdout)
    assert run("run", folder).stdout == run("run", again).stdout == run("run", text).stdout
    lines = run("disasm", folder / "insns.bin").stdout.splitlines()
    assert len(lines) == 6 and lines[-1] == "finish"


def test_check(text):
    legal = run("check", text)
    assert legal.exit_code == 0 and "6 instructions, 0 errors, 0 warnings" in legal.stdout
    text.write_text(PROGRAM.format(sha256="").replace(" push_next", ""))
    wrong = run("check", text)
    assert wrong.exit_code == 1
    assert "V1501 instruction 3: deadlock" in wrong.stdout and "nobody pushes it" in wrong.stdout
    (finding,) = json.loads(run("check", text, "--json").stdout)["findings"]
    assert (finding["code"], finding["index"], finding["error"]) == ("V1501", 3, True)
    refused = run("trace", text, "-o", text.with_suffix(".json"))
    assert refused.exit_code == 2 and "V1501" in refused.stderr


def test_mul_needs_the_extension(text):
    text.write_text(PROGRAM.format(sha256="").replace("alu.add", "alu.mul"))
    assert run("check", text).exit_code == 1
    assert run("check", text, "--isa-ext").exit_code == 0
    assert "V1301" in run("run", text).stderr
    assert run("run", text, "--profile", "fsim").exit_code == 0


@pytest.mark.parametrize("suffix", ["json", "html", "png"])
def test_trace(text, tmp_path, suffix):
    if suffix == "png":
        pytest.importorskip("matplotlib")
    path = tmp_path / f"trace.{suffix}"
    result = run("trace", text, "-o", path, "--board", "64,1")
    assert result.exit_code == 0, result.output
    assert path.stat().st_size > 500


def test_vectors():
    result = run("vectors", DATA / "fuzz_vectors.json.gz", "--json")
    assert result.exit_code == 0
    programs = json.loads(result.stdout)["programs"]
    assert len(programs) == 48
    assert all(p["output_equal"] and p["cycles"] == p["recorded_cycles"] for p in programs)
    assert set(programs[0]["cycles"]) == {"16,1", "64,1", "40,2"}


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("run", "nowhere.vta"), "neither a program's folder nor assembly text"),
        (("run", "{text}", "--profile", "other"), "choose strict"),
        (("run", "{text}", "--board", "64"), "choose sim, pynq, or write LATENCY,GAP"),
        (("trace", "{text}", "-o", "x.svg"), "let the name end in .json"),
        (("vectors", "{text}"), "no vectors can be read"),
        (("disasm", "nowhere.bin"), "cannot be read"),
        (("disasm", "{text}", "--config", "1x8_i8w8a32_15_15_18_17"), "a micro-op has 32 bits"),
    ],
)
def test_mistakes_are_one_line(text, args, why):
    result = run(*(a.format(text=text) for a in args))
    assert result.exit_code == 2, result.output
    assert why in result.stderr and len(result.stderr.splitlines()) == 1


MODEL = """
import jax.numpy as jnp
import numpy as np
from jax import lax

WEIGHTS = np.random.default_rng(0).integers(-128, 128, (20, 16, 3, 3)).astype(np.int8)


def network(x):
    y = lax.conv_general_dilated(x, WEIGHTS, (1, 1), [(1, 1)] * 2, preferred_element_type=jnp.int32)
    y = jnp.clip(y >> 9, 0, 127).astype(jnp.int8)
    return lax.reduce_window(y, np.int8(-128), lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def integers():
    return network, (np.zeros((1, 16, 6, 6), np.int8),)


def floats():
    return jnp.tanh, (np.zeros((4,), np.float32),)


def dense():
    return lambda x: x @ (WEIGHTS[:, :, 0, 0].T / np.float32(128)), (np.zeros((1, 16), np.float32),)
"""


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    """A module of two models in the working folder; its name."""
    (tmp_path / "vta_models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "vta_models"


def test_a_model_is_compiled_and_run(model):
    result = run("run", f"{model}:integers", "--json", "--config", "1x32_i8w8a32_15_15_18_17")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["exact"] and found["config"].startswith("1x32") and len(found["kernels"]) == 2
    assert "equal to the integer reference" in run("run", f"{model}:integers").stdout
    refused = run("run", f"{model}:floats")
    assert refused.exit_code == 2 and "computes in f32" in refused.output


def test_a_dumped_model_is_run_again(model, tmp_path):
    where = tmp_path / "dump"
    options = ["optimize", f"{model}:integers", "--target", "vta", "--dump", str(where), "--json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["exact"]
    assert {p.name for p in where.iterdir()} == {"insns.bin", "uops.bin", "dram.bin", "meta.json", "layouts.json"}
    again = run("run", where, "--json")
    assert again.exit_code == 0, again.output
    outputs = json.loads(again.stdout)["outputs"]
    assert outputs and all(o["expected"] for o in outputs)
    assert run("check", where).exit_code == 0
    wrong = CliRunner().invoke(app, ["optimize", f"{model}:integers", "--dump", str(where)])
    assert wrong.exit_code == 2 and "--target vta" in wrong.output


def test_a_model_of_floats_is_partitioned(model):
    np.savez("inputs.npz", x0=np.random.default_rng(0).standard_normal((4, 1, 16)).astype(np.float32))
    made = CliRunner().invoke(app, ["calibrate", f"{model}:dense", "--data", "inputs.npz", "-o", "ranges.json"])
    assert made.exit_code == 0, made.output
    options = ["optimize", f"{model}:dense", "--target", "vta", "--ranges", "ranges.json", "--accuracy-budget", "0.2"]
    result = CliRunner().invoke(app, [*options, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["verify"]["ok"] and found["kernels"] and all(k["reason"] for k in found["kernels"])
    assert "kernels of the accelerator" in CliRunner().invoke(app, options).stdout
    wrong = CliRunner().invoke(app, [*options, "--report", "report.html"])
    assert wrong.exit_code == 2 and "for a CPU alone" in wrong.output


@pytest.mark.parametrize("text", ["speed=3", "mhz=fast", "host=0", "board=moon", "config=1x16"])
def test_an_accelerator_that_does_not_exist_is_refused(model, text):
    options = ["optimize", f"{model}:integers", "--target", "vta", "--accelerator", text]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2 and text.partition("=")[2].partition("x")[0] in result.output
    wrong = CliRunner().invoke(app, ["optimize", f"{model}:integers", "--accelerator", "mhz=200"])
    assert wrong.exit_code == 2 and "--target vta" in wrong.output


def test_a_slower_host_gives_more_to_the_accelerator():
    from nestegg.cli_vta import accelerator_named

    found = accelerator_named("board=pynq,mhz=200,latency=1e-5,host=50,config=1x32_i8w8a32_15_15_18_17")
    assert (found.board.latency, found.board.mhz, found.host, found.config.block) == (40, 200, 50, 32)
    assert found.transfers.latency == 1e-5 and found.transfers.bandwidth == 8 * 200e6 / 2


def test_explore(model, tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--blocks", "16,32", "--batches", "1", "--halvings", "0", "--effort", "2"]
    result = run("explore", f"{model}:integers", *options, "--json", "--png", tmp_path / "e.png")
    assert result.exit_code == 0, result.output
    points = json.loads(result.stdout)["points"]
    assert {p["macs"] for p in points} == {256, 1024} and any(p["best"] for p in points)
    assert (tmp_path / "e.png").exists()
    assert "beaten by none" in run("explore", f"{model}:integers", *options).stdout
    assert run("explore", f"{model}:integers", "--blocks", "12").exit_code == 2
