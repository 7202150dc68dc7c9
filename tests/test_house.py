"""The house rules that a machine can check: the packages, the direction of imports, a light front door.

What it does not check: style (ruff), types (pyright), or anything a room does.
"""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# One floor a row, lowest first; a module imports from its own floor's room and from the floors below it.
# Rooms that share a row do not know each other. Root modules that are not named here stand on TOP_FLOOR.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("ir",),
    ("rewrite",),
    ("extract",),
    ("codegen",),
    ("vta",),  # its functional simulator's inner loops are machine code from codegen/jit
    ("costmodel",),
    ("*",),  # compiler, testing, zoo, report, ...: they may know each other
    ("__init__",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: level for level, row in enumerate(FLOORS) for room in row}
TOP_FLOOR = FLOOR["*"]
NOT_PACKAGE = {"tests", "benchmarks", "examples", "docs", "build", "dist", "out"}
HEAVY = ("egglog", "jax", "jaxlib", "llvmlite", "onnx", "scipy", "highspy", "hypothesis")


class Import(NamedTuple):
    """One import statement of the package; `target` is a dotted name, inside the package if `inside`."""

    file: Path
    line: int
    target: str
    inside: bool

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def package_folders() -> list[Path]:
    """The root and every folder under it that is a package by its __init__.py."""
    folders = [ROOT]
    for folder in folders:
        folders += sorted(
            child
            for child in folder.iterdir()
            if (child / "__init__.py").exists() and not child.name.startswith(".")
            if not (folder == ROOT and child.name in NOT_PACKAGE)
        )
    return folders


def module_files() -> list[Path]:
    return [file for folder in package_folders() for file in sorted(folder.glob("*.py"))]


def imports_of(file: Path, source: str | None = None) -> list[Import]:
    """Every import of a module at any depth, function bodies and `if TYPE_CHECKING` included.

    `from ..ir import graph` in rewrite/rule.py is "ir.graph", inside; `import numpy as np` is "numpy", not.
    """
    package = file.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(source or file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found += [Import(file, node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append(Import(file, node.lineno, node.module or "", False))
        elif isinstance(node, ast.ImportFrom):
            up = node.level - 1
            assert up <= len(package), f"{file}:{node.lineno}: a relative import leaves the package"
            base = [*package[: len(package) - up], *([node.module] if node.module else [])]
            found += [Import(file, node.lineno, ".".join([*base, alias.name]), True) for alias in node.names]
    return found


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a path or of a dotted name inside the package; the front door's names are in `__init__`."""
    head = parts[0].removesuffix(".py") if parts else "__init__"
    is_module = (ROOT / head).is_dir() or (ROOT / f"{head}.py").is_file()
    return head if is_module else "__init__"


def wrong_direction(statement: Import) -> bool:
    if not statement.inside:
        return False
    source = room_of(statement.file.relative_to(ROOT).parts)
    target = room_of(tuple(statement.target.split(".")))
    here, there = FLOOR.get(source, TOP_FLOOR), FLOOR.get(target, TOP_FLOOR)
    return source != target and (there > here or (there == here and here != TOP_FLOOR))


def tracked_files() -> list[Path]:
    """What git has or would add; without git, what lies in the package's folders."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]
    return [path for folder in package_folders() for path in folder.iterdir() if path.is_file()]


def test_every_package_folder_is_declared():
    declared = PROJECT["tool"]["setuptools"]["packages"]
    found = [".".join(("nestegg", *folder.relative_to(ROOT).parts)) for folder in package_folders()]
    assert sorted(declared) == sorted(found), "pyproject.toml: [tool.setuptools] packages"


def test_every_folder_with_modules_is_a_package():
    rooms = {folder for folder in package_folders() if folder != ROOT}
    missing = {
        module.parent.relative_to(ROOT).as_posix()
        for room in rooms
        for module in room.rglob("*.py")
        if module.parent not in rooms and "__pycache__" not in module.parts
    }
    assert not missing, "these folders hold modules and no __init__.py, so no wheel would hold them"


def test_no_module_hides_the_standard_library():
    # `python some_script.py` at the root puts the root on sys.path, where a types.py would break everything.
    names = {path.stem for path in ROOT.glob("*.py")} | {folder.name for folder in package_folders()[1:]}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize(
    ("file", "line", "refused"),
    [
        ("rewrite/rule.py", "from ..ir import graph", False),
        ("ir/graph.py", "from ..rewrite import rule", True),
        ("ir/graph.py", "def f():\n    from ..rewrite.rule import law", True),
        ("ir/graph.py", "from . import errors", False),
        ("vta/kernels.py", "from ..codegen import jit", False),
        ("codegen/emit.py", "from ..vta.isa import encode", True),
        ("costmodel/measure.py", "from ..codegen import emit", False),
        ("extract/beam.py", "from ..costmodel import roofline", True),
        ("ir/graph.py", "from .. import optimize", True),
        ("cli.py", "from . import __version__", False),
        ("compiler.py", "from .extract.beam import search", False),
        ("ir/graph.py", "import numpy as np", False),
    ],
)
def test_the_direction_check_sees_what_it_should(file, line, refused):
    assert [wrong_direction(found) for found in imports_of(ROOT / file, line)] == [refused]


def test_imports_run_one_way():
    statements = [statement for file in module_files() for statement in imports_of(file)]
    wrong = [f"{s.where} imports {s.target}" for s in statements if wrong_direction(s)]
    assert not wrong, "a room imports only from the floors below it:\n" + "\n".join(wrong)


def test_the_package_imports_itself_relatively():
    wrong = [
        f"{s.where} imports {s.target}"
        for file in module_files()
        for s in imports_of(file)
        if not s.inside and s.target.split(".")[0] == "nestegg"
    ]
    assert not wrong, "inside the package write `from .` or `from ..`:\n" + "\n".join(wrong)


def test_third_party_imports_are_declared_dependencies():
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    declared = {plain(re.match(r"[\w.-]+", req)[0]) for req in PROJECT["project"]["dependencies"]}
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        f"{s.where} imports {s.target}"
        for file in module_files()
        for s in imports_of(file)
        if not s.inside and (top := s.target.split(".")[0]) not in sys.stdlib_module_names
        if not declared & {plain(name) for name in providers.get(top, [top])}
    }
    assert not undeclared, "pyproject.toml: dependencies lacks these:\n" + "\n".join(sorted(undeclared))


def test_importing_nestegg_is_light():
    code = "import json, sys, nestegg; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)} & set(HEAVY)
    assert not loaded, "`import nestegg` loads these; load them where they are used"


def test_constraints_pin_every_declared_dependency():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+-]+", line) for line in lines), "name==version on every line"
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(req for extra in extras for req in extra)]
    missing = {re.match(r"[\w.-]+", req)[0].lower() for req in wanted} - pinned
    assert not missing, "run `make lock`"


def test_no_registry_address_is_tracked():
    spoken = (b"index url", b"extra index url", b"find links", b"trusted host")
    options = [words.replace(b" ", b"-") for words in spoken]
    hosts = rb"(?:https?|file)://[^\s\"'<>]*(?:pypi|python-?hosted|npmjs|deb\.debian|/simple\b)"
    address = re.compile(hosts + rb"|--(?:" + b"|".join(options) + rb")[= ]")
    here = Path(__file__).resolve()
    found = [
        f"{path.relative_to(ROOT)}: {match.group().decode(errors='replace')}"
        for path in tracked_files()
        if path != here
        for match in address.finditer(path.read_bytes())
    ]
    assert not found
