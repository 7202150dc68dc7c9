"""The `nestegg` command as its users meet it: output, exit codes, and one line for every mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import nestegg
from nestegg.cli import app

GYM = Path(__file__).parent / "extract" / "data"

FACTORIES = """
import jax.numpy as jnp
import numpy as np

print("hello from the user's module")

def make():
    def affine(x, w):
        return jnp.maximum(x @ w, 0) + 1
    return affine, (np.ones((4, 8), np.float32), np.ones((8, 16), np.float32))

def half_made():
    return 3

def failing():
    raise ValueError("no weights here")

def unsupported():
    return (lambda x: jnp.linalg.cholesky(x)), (np.eye(3, dtype=np.float32),)
"""

RULE = """
import nestegg
from nestegg import op

@nestegg.rule("algebra"{condition})
def mine(x, y):
    '''{doc}'''
    return {sides}
"""


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def refused(result: Result) -> str:
    """The one line that a refusal prints; nothing goes to stdout."""
    assert result.exit_code == 2, result.output
    assert not result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("nestegg: ")
    return lines[0]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with a module of model factories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    (tmp_path / "factories.py").write_text(FACTORIES)
    return tmp_path


@pytest.fixture(scope="module")
def mlp(tmp_path_factory) -> tuple[dict, Path]:
    """`nestegg optimize zoo:mlp`, run once: the JSON object, and the folder with report and stages."""
    folder = tmp_path_factory.mktemp("mlp")
    result = run(
        *("optimize", "zoo:mlp", "--no-cache", "--json", "--report", folder / "out" / "mlp.html"),
        *("--dump-phases-to", folder / "stages"),
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout), folder


# --- optimize --------------------------------------------------------------------------------------


def test_optimize_verifies_a_model(mlp):
    found, _ = mlp
    verify = found["verify"]
    assert verify["ok"]
    assert verify["max_rel_err"] <= 4 * verify["xla_rel_err"] + 1e-6
    assert found["fallbacks"] == []


def test_the_json_object_has_every_promised_key(mlp):
    found, _ = mlp
    assert found.keys() >= {"verify", "graph", "kernels", "extraction", "compile_s", "fallbacks"}
    assert found["verify"].keys() == {"ok", "max_rel_err", "xla_rel_err", "bar"}
    assert found["graph"].keys() >= {"enodes", "eclasses", "seconds", "stopped_by", "rules"}
    assert found["extraction"].keys() >= {"cost", "bound", "gap"}
    for rule in found["graph"]["rules"] + found["loops"]["rules"]:
        assert rule.keys() >= {"name", "kind", "matches", "seconds"}
    for kernel in found["kernels"]:
        assert kernel.keys() >= {"name", "enodes", "programs", "schedule", "predicted_us"}
        assert kernel["predicted_us"] > 0
    assert 0 < found["compile_s"]
    assert found["measured_us"] > 0


def test_rules_of_both_levels_took_part(mlp):
    found, _ = mlp
    for level in ("graph", "loops"):
        kinds = {r["kind"] for r in found[level]["rules"] if r["matches"]}
        assert len(kinds) >= 3, (level, kinds)


def test_every_stage_is_dumped(mlp):
    found, folder = mlp
    stages = folder / "stages"
    names = {p.name for p in stages.iterdir()}
    assert names >= {"graph.txt", "egraph.txt", "chosen.txt", "kernels.txt", "module.ll", "module.o"}
    assert "dot(" in (stages / "graph.txt").read_text()
    assert "define" in (stages / "module.ll").read_text()
    assert (stages / "module.o").read_bytes()[:4] == b"\x7fELF"
    for kernel in found["kernels"]:
        assert kernel["schedule"].splitlines()[0] in (stages / "kernels.txt").read_text()


def test_the_page_shows_the_kernels_and_the_rules(mlp):
    found, folder = mlp
    page = (folder / "out" / "mlp.html").read_text()
    for kernel in found["kernels"]:
        assert f"<b>{kernel['name']}</b>" in page
        assert kernel["schedule"] in page
    assert "fuse_residual_epilogue" in page
    assert "verify ok" in page


def test_a_factory_is_a_model_and_its_prints_do_not_disturb(here):
    result = run("optimize", "factories:make", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["verify"]["ok"]
    assert found["source"] == "affine"
    assert "hello" in result.stderr


def test_without_json_a_table_is_printed(here):
    result = run("optimize", "factories:make")
    assert result.exit_code == 0, result.output
    assert "verify ok" in result.stdout
    assert "max(sum(x0 * x1), 0) + 1" in result.stdout
    assert "\x1b[" not in result.stdout
    for word in ("kernel0", "programs", "extraction", "loop rules", "memory", "compiled"):
        assert word in result.stdout


def test_a_rule_of_ones_own_takes_part(here):
    rules = here / "rules.py"
    rules.write_text(RULE.format(condition="", doc="x + y -> y + x", sides="op.add(x, y) >> op.add(y, x)"))
    result = run("optimize", "factories:make", "--rules", rules, "--json")
    assert result.exit_code == 0, result.output
    mine = [r for r in json.loads(result.stdout)["graph"]["rules"] if r["name"] == "mine"]
    assert mine
    assert mine[0]["matches"] > 0


def test_a_wrong_rule_is_caught_by_the_verification(here):
    rules = here / "rules.py"
    rules.write_text(RULE.format(condition="", doc="max(x, y) -> x", sides="op.max(x, y) >> x"))
    result = run("optimize", "factories:make", "--rules", rules)
    assert result.exit_code == 1, result.output
    assert "verify FAILED" in result.stdout


# --- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nosuch.onnx", "nosuch.onnx: no such file"),
        ("nosuch", "nosuch: no such model; give an .onnx file, zoo:NAME or package.module:factory"),
        ("zoo:dqm", "did you mean 'dqn'?"),
        ("nosuch_module:make", "No module named 'nosuch_module'"),
        ("factories:nosuch", "has no attribute 'nosuch'"),
        ("factories:half_made", "gives int; let it return (fn, example_args)"),
        ("factories:failing", "ValueError: no weights here"),
        ("factories:unsupported", "cholesky"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused_in_one_line(here, model, says):
    result = run("optimize", model, "--json")
    result.stderr_bytes = result.stderr_bytes.replace(b"hello from the user's module\n", b"")
    assert says in refused(result)


def test_a_malformed_onnx_file_is_refused(here):
    (here / "broken.onnx").write_bytes(b"this is not a protocol buffer")
    assert "broken.onnx" in refused(run("optimize", here / "broken.onnx"))


def test_an_unsupported_onnx_operator_is_named(here):
    from onnx import TensorProto, helper

    node = helper.make_node("NonMaxSuppression", ["x", "x"], ["y"], name="suppress")
    tensors = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 4))]
    out = [helper.make_tensor_value_info("y", TensorProto.INT64, (1, 3))]
    graph = helper.make_graph([node], "g", tensors, out)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (here / "nms.onnx").write_bytes(model.SerializeToString())
    assert "NonMaxSuppression" in refused(run("optimize", here / "nms.onnx"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "pdp11"], "target 'pdp11' does not exist"),
        (["--threads", 0], "threads=0: give 1 to 256"),
        (["--shape", "x=1,a"], "--shape x=1,a: write it as name=1,3,224,224"),
        (["--shape", "1,2"], "--shape 1,2: write it as"),
        (["--rules", "nosuch.py"], "nosuch.py: no such file of rules"),
        (["--report", "factories.py/x.html"], "cannot be written"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(here, options, says):
    assert says in refused(run("optimize", "zoo:mlp", *options))


def test_a_bad_file_of_rules_names_its_line(here):
    rules = here / "rules.py"
    rules.write_text(RULE.format(condition="", doc="z is bound by nothing", sides="op.add(x, x) >> y"))
    line = refused(run("optimize", "zoo:mlp", "--rules", rules))
    assert f"{rules}:5: rule mine" in line
    rules.write_text("import nestegg\n\nnestegg.rule(\n")
    assert f"{rules}:3:" in refused(run("check-rules", "--rules", rules))


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--shape", "x=1,2"], "for ONNX models"), (["--shape", "x=1,2", "--shape", "x=2,2"], "another shape before")],
)
def test_shapes_that_would_not_be_heeded_are_refused(options, message):
    assert message in refused(run("optimize", "zoo:mlp", *options))


def test_what_exceeds_the_memory_is_one_line(monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError("Unable to allocate 2.18 TiB")

    monkeypatch.setattr("nestegg.cli.imported_model", exhausted, raising=False)
    monkeypatch.setattr("nestegg.cli_models.imported_model", exhausted)
    assert "the memory does not suffice" in refused(run("optimize", "zoo:mlp"))


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "nestegg", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"nestegg {nestegg.__version__}"


def test_a_call_with_the_wrong_shape_names_the_argument():
    compiled = nestegg.optimize(lambda x: x + 1, np.zeros((2, 3), np.float32))
    with pytest.raises(nestegg.NesteggError, match=r"argument 0 \(x0\) is float32\[3, 2\].*f32\[2,3\]"):
        compiled(np.zeros((3, 2), np.float32))
    with pytest.raises(nestegg.NesteggError, match="float64"):
        compiled(np.zeros((2, 3)))


# --- the other commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["greedy", "ilp", "tree"])
@pytest.mark.parametrize("name", ["set_covering_test", "tensat_vgg_acyclic"])
def test_extract_from_gym_files(name, method):
    result = run("extract", GYM / f"{name}.json", "--method", method, "--time-limit", 10, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found.keys() >= {"cost", "bound", "seconds", "valid"}
    assert found["valid"]
    assert found["bound"] <= found["cost"] * (1 + 1e-9)


def test_extract_prints_a_line_and_refuses_what_is_no_egraph(tmp_path):
    result = run("extract", GYM / "set_covering_test.json")
    assert result.exit_code == 0
    assert "optimal" in result.stdout
    (tmp_path / "bad.json").write_text("{}")
    assert "'nodes'" in refused(run("extract", tmp_path / "bad.json"))
    assert "--time-limit" in refused(run("extract", GYM / "set_covering_test.json", "--time-limit", -1))


def test_rules_are_listed_with_their_source():
    result = run("rules", "--json")
    assert result.exit_code == 0, result.output
    rules = json.loads(result.stdout)["rules"]
    assert {r["level"] for r in rules} == {"graph", "loop"}
    assert len({r["name"] for r in rules}) == len(rules) > 30
    root = Path(nestegg.__file__).parent
    for r in rules:
        file, line = r["where"].rsplit(":", 1)
        assert (root / file).is_file(), r
        assert int(line) > 0
        assert r["doc"], r
        assert r["condition"], r
    text = run("rules").stdout
    assert "unpack(pack(x)) -> x" in text
    assert "rewrite/loop_rules.py:" in text


def test_check_rules_passes_a_rule_and_refutes_another(here):
    result = run("check-rules", "--rule", "unpack_pack", "--examples", 8, "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rules"]
    assert row.keys() >= {"name", "kind", "level", "status", "examples", "counterexample"}
    assert row["status"] in ("tested", "proved")

    wrong = here / "wrong.py"
    wrong.write_text(RULE.format(condition="", doc="x - y -> y - x", sides="op.sub(x, y) >> op.sub(y, x)"))
    result = run("check-rules", "--rules", wrong, "--examples", 8)
    assert result.exit_code == 1
    assert "refuted" in result.stdout
    never = ", when=lambda x: False"
    wrong.write_text(
        RULE.format(condition=never, doc="x", sides="op.neg(op.neg(op.add(x, y))) >> op.add(x, y)")
    )
    result = run("check-rules", "--rules", wrong, "--examples", 8, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["rules"][0]["status"] == "vacuous"


def test_check_rules_refuses_unknown_names():
    assert "rule 'nosuch' does not exist" in refused(run("check-rules", "--rule", "nosuch"))
    assert "--examples 0" in refused(run("check-rules", "--examples", 0))


def test_the_zoo_is_listed_and_written(here):
    listing = json.loads(run("zoo", "--json").stdout)["models"]
    assert {"mlp", "lenet", "dqn"} <= {m["name"] for m in listing}
    assert "784-512-512-10" in run("zoo").stdout
    result = run("zoo", "lenet", "-o", here / "new" / "lenet.onnx")
    assert result.exit_code == 0, result.output
    import onnx

    onnx.checker.check_model(onnx.load(here / "new" / "lenet.onnx"))
    assert "lenett" in refused(run("zoo", "lenett"))
    assert "say which model" in refused(run("zoo", "-o", "x.onnx"))


# --- as a process ----------------------------------------------------------------------------------


def nestegg_process(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "nestegg.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)


def test_help_is_quick_and_loads_nothing_heavy():
    assert min(_seconds_of_help() for _ in range(3)) < 1
    code = "import json, sys, nestegg.cli; print(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not {"jax", "egglog", "onnx", "llvmlite", "scipy", "hypothesis"} & set(json.loads(loaded))


def _seconds_of_help() -> float:
    """CPU seconds: others may be at work."""
    begun = os.times()
    result = nestegg_process("--help")
    assert result.returncode == 0
    assert "check-rules" in result.stdout
    ended = os.times()
    return ended.children_user + ended.children_system - begun.children_user - begun.children_system


def test_version():
    assert nestegg_process("--version").stdout == f"nestegg {nestegg.__version__}\n"


def test_a_refusal_is_one_line_and_code_2():
    result = nestegg_process("optimize", "nosuch.onnx", "--json")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_no_color_is_respected():
    plain = nestegg_process("zoo", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert "\x1b[3" not in plain.replace("\x1b[1m", "").replace("\x1b[0m", "")
