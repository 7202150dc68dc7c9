"""Installs a built wheel in a clean environment and checks what is in it; `make wheel` runs it.

The dependencies are lent by the environment that runs this (one path line, so its own editable nestegg is
not found), which makes the check a matter of seconds. What it proves: every module and data file of the
source tree is in the wheel and nothing else is, every module imports, and the command answers.
"""

import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import nestegg
home = pathlib.Path(nestegg.__file__).parent
assert str(home).startswith(sys.prefix), f"imported {home}, not the installed wheel"
names = [m.name for m in pkgutil.walk_packages([str(home)], "nestegg.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(f"imported nestegg and {len(names)} modules from the wheel")
"""


def expected_files() -> set[str]:
    """What the wheel must hold, read off the tree: the declared packages' modules and data."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files: set[Path] = set()
    for package in tool["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        patterns = ["*.py", *tool["package-data"].get(package, [])]
        files.update(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {f"nestegg/{path.relative_to(ROOT).as_posix()}" for path in files}


def check_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = expected_files()
    if found != expected:
        sys.exit(
            f"{wheel.name} is not what the tree says: missing {sorted(expected - found)}, "
            f"too much {sorted(found - expected)}"
        )
    print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size / 1024:.0f} KiB")


def check_installed(wheel: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="nestegg-wheel-") as folder:
        venv.create(folder, with_pip=False)
        python = f"{folder}/bin/python"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
        site = sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder})
        Path(site, "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([python, "-I", "-c", IMPORT_ALL], check=True, cwd=folder)
        if (ROOT / "cli.py").exists():
            command = [f"{folder}/bin/nestegg", "--help"]
            answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if answer.returncode != 0:
                sys.exit(f"`nestegg --help` of the installed wheel failed:\n{answer.stdout}{answer.stderr}")
            print("nestegg --help answers")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: check_wheel.py dist/NAME.whl")
    wheel = Path(sys.argv[1]).resolve()
    check_contents(wheel)
    check_installed(wheel)


if __name__ == "__main__":
    main()
