"""Writes constraints.txt: the versions that pip resolves today for the package with all its extras.

Run it by `make lock`. Versions only: no address of any registry is written.
"""

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Every dependency of nestegg[dev,bench] in the version that the tests ran with. Written by `make lock`.
"""


def requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [req for extra in project["optional-dependencies"].values() for req in extra]
    return project["dependencies"] + extras


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="nestegg-lock-") as folder:
        venv.create(folder, with_pip=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *requirements()], check=True)
        freeze = [*pip, "freeze", "--all", "--exclude", "pip"]
        frozen = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    lines = sorted((line for line in frozen.splitlines() if line), key=str.lower)
    if odd := [line for line in lines if "==" not in line]:
        sys.exit(f"these did not resolve to a plain version: {odd}")
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"constraints.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
