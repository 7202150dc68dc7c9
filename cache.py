"""The cache on disk: compiled programs and kernels' schedules, each an entry that is whole or is not read.

    FOLDER/programs/GRAPH/CONTEXT      machine code and packed constants of a graph
    FOLDER/kernels/KE/KEY              the best nest of a kernel, or estimates of many

GRAPH is a digest of the imported graph with its constants; CONTEXT and KEY are digests of all else that decides the
result: options, target, rules, and nestegg's own source. So nothing is ever stale, and what a change leaves behind is
removed when the folder outgrows its limit, the least recently used first.

An entry is one file: a line with the format and the header's size and digest, the header (JSON: the entry's name,
sizes and digests of the parts), the parts, each at a multiple of 64 bytes. It is written under another name and then
renamed. What does not agree with its digests is not used, and a warning names it. Parts are bytes: reading an entry
runs nothing in it. They are mapped, not copied: constants are the pages of the file that the system has in memory
already.

The folder is `nestegg` in the user's cache folder (`XDG_CACHE_HOME`); `NESTEGG_CACHE_DIR` chooses another.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from .codegen.memory import ALIGNMENT
from .ir.digest import bytes_of, digest
from .ir.errors import NesteggError

FORMAT = "nestegg-entry-3"
#: The folder is kept below this many bytes.
LIMIT = 4 << 30
LARGEST_HEADER = 1 << 24  # bytes
KINDS = ("programs", "kernels")


@dataclass(frozen=True)
class Usage:
    """What the folder holds: entries and bytes by kind."""

    folder: Path
    entries: dict[str, int]
    bytes: dict[str, int]


class Cache:
    """Entries in a folder. Raises nothing on reading or writing: what fails is a miss, and a warning says why."""

    def __init__(self, folder: str | Path | None = None, limit: int = LIMIT) -> None:
        chosen = folder or os.environ.get("NESTEGG_CACHE_DIR") or platformdirs.user_cache_dir("nestegg")
        self.folder, self.limit = Path(chosen), limit
        self._written = 0

    def read(self, name: str, until: str = "") -> dict[str, np.ndarray] | None:
        """The parts of an entry (as bytes, aligned to 64), or None if there is none, or none that is whole.

        With `until`, only the parts up to that one.
        """
        path = self.folder / name
        try:
            _require_own(self.folder)
            with path.open("rb") as file:
                parts = _read(file, name, until)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            warnings.warn(f"cache entry {path} is not used: {e}", stacklevel=2)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # what is used stays
        return parts

    def write(self, name: str, parts: Mapping[str, bytes | np.ndarray]) -> None:
        """Keep an entry. Whoever reads at the same time finds the old one or the new one."""
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _require_own(self.folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
                try:
                    self._written += _write(file, name, parts)
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as e:
            warnings.warn(f"cache entry {path} is not kept: {e}", stacklevel=2)
            return
        if self._written > self.limit // 16:
            self._written = 0
            self.evict()

    def siblings(self, name: str) -> list[str]:
        """Names of the other entries beside one."""
        path = self.folder / name
        found = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
        return [str(p.relative_to(self.folder)) for p in found if p != path and not p.name.startswith(".")]

    def usage(self) -> Usage:
        files = {kind: [s for _, s in self._files(kind)] for kind in KINDS}
        return Usage(
            self.folder,
            {kind: len(found) for kind, found in files.items()},
            {kind: sum(s.st_size for s in found) for kind, found in files.items()},
        )

    def clear(self) -> Usage:
        """Remove everything; what there was. Raises `NesteggError` if the folder cannot be written."""
        before = self.usage()
        try:
            for kind in KINDS:
                if (self.folder / kind).is_dir():
                    shutil.rmtree(self.folder / kind)
        except OSError as e:
            raise NesteggError(f"{e.filename}: cannot be removed ({e.strerror}); remove it by hand") from None
        return before

    def evict(self) -> int:
        """Remove the least recently used entries until the folder is within its limit; how many those were."""
        files = sorted((f for kind in KINDS for f in self._files(kind)), key=lambda f: f[1].st_mtime)
        total, removed = sum(s.st_size for _, s in files), 0
        for path, s in files:
            if total <= self.limit:
                break
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            total, removed = total - s.st_size, removed + 1
        return removed

    def _files(self, kind: str) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in sorted((self.folder / kind).rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found.append((path, path.stat()))
        return found


def _require_own(folder: Path) -> None:
    """Machine code is loaded from a folder only if nobody else may write there. Raises `PermissionError`."""
    s = folder.stat()
    if s.st_uid != os.geteuid() or s.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to, or can be written by, others; run chmod go-w, or choose another")


def _write(file: Any, entry: str, parts: Mapping[str, bytes | np.ndarray]) -> int:
    views = {name: bytes_of(p) for name, p in parts.items()}
    sizes = {name: [len(v), digest([parts[name]])] for name, v in views.items()}
    header = json.dumps({"entry": entry, "parts": sizes}).encode()
    file.write(f"{FORMAT} {len(header)} {digest([header])}\n".encode() + header)
    for v in views.values():
        file.write(bytes(-file.tell() % ALIGNMENT))
        file.write(v)
    file.flush()
    return sum(map(len, views.values()))


def _read(file: Any, entry: str, until: str) -> dict[str, np.ndarray]:
    """The parts of the open file of an entry. Raises `ValueError` saying what is wrong with it."""
    first = file.readline(256).split()
    if len(first) != 3 or first[0] != FORMAT.encode():
        raise ValueError(f"it is not of the format {FORMAT}")
    header = file.read(min(int(first[1]), LARGEST_HEADER))
    if digest([header]) != first[2].decode():
        raise ValueError("its header does not agree with its digest")
    described = json.loads(header)
    if described["entry"] != entry:
        raise ValueError(f"it is the entry {described['entry']}, moved here")
    parts, end = {}, file.tell()
    whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    for name, (size, wanted) in described["parts"].items():
        start = end + -end % ALIGNMENT
        parts[name], end = whole[start : start + size], start + size
        if parts[name].size != size or digest([parts[name]]) != wanted:
            raise ValueError(f"its part {name!r} does not agree with its digest")
        if name == until:
            break
    return parts


def text_of(part: np.ndarray) -> str:
    """A part that is text."""
    return part.tobytes().decode()


def source_digest(root: Path, skip: Sequence[str] = ("tests", "benchmarks", "examples", "docs")) -> str:
    """Digest of the modules and data under a package's folder: what decides how it compiles."""
    files = sorted(root.glob("*.py"))
    for folder in sorted(root.iterdir()):
        if (folder / "__init__.py").is_file() and folder.name not in skip:
            files += sorted(f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts)
    return digest(p for f in files for p in (str(f.relative_to(root)), f.read_bytes()))
