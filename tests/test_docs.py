"""What README and docs/ say is true: their Python runs, their commands, options and links exist.

The code of docs/writing-a-rule.md is run by test_testing.py.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from nestegg.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_HERE = [p for p in PAGES if p.name != "writing-a-rule.md" and "```python" in p.read_text()]
EXAMPLES = [ROOT / "examples" / name for name in ("quickstart.py", "onnx_model.py")]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run(code: Path, folder: Path) -> str:
    """Run a file in a process of its own: pages declare operators and targets, which are global."""
    command = [sys.executable, "-P", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", RUN_HERE, ids=lambda p: p.stem)
def test_the_code_of_a_page_runs(page, tmp_path):
    code = tmp_path / "page.py"
    code.write_text("\n".join(blocks(page, "python")))
    run(code, tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(example, tmp_path):
    assert "ok=True" in run(example, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_and_options_exist(page):
    commands = get_command(app).commands
    lines = [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line[:2] == "$ "]
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        if program != "nestegg":
            continue
        command = commands[words[0]]
        if isinstance(command, TyperGroup):
            command = command.commands[words[1]]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {w for w in words if w.startswith("-")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_and_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    rooms = r"ir|rewrite|extract|costmodel|codegen|testing|vta|tests|examples|benchmarks"
    files = re.findall(rf"`((?:{rooms})/[\w/.-]*)`", text)
    missing += [file for file in files if not (ROOT / file).exists()]
    assert not missing


def test_the_picture_names_functions_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = blocks(ROOT / "docs" / "architecture.md", "text")[0]
    modules = set(re.findall(r"\b(?:ir|rewrite|extract|costmodel|codegen)/[a-z_]+", picture))
    assert len(modules) > 8
    assert all((ROOT / f"{m}.py").is_file() for m in modules)
    source = "\n".join(p.read_text() for p in ROOT.glob("[a-z]*/*.py")) + (ROOT / "compiler.py").read_text()
    values = ("GraphEGraph", "KernelSearch", "LoopEGraph", "Roofline", "GraphChoice", "Program", "Executable")
    functions = ("from_jax", "from_onnx", "jax_model", "lower", "choose", "extract_nests", "plan_program")
    for name in values + functions:
        assert name in text
        assert re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), name


def test_the_house_map_has_every_room():
    text = (ROOT / "README.md").read_text()
    rooms = [p.parent.name for p in ROOT.glob("*/__init__.py") if not p.parent.name.startswith(".")]
    assert [room for room in rooms if f"`{room}/`" not in text] == []
