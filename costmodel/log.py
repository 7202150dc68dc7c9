"""The tuning log: what was measured, of which kernel, on which machine. One SQLite file that several tuners may share.

Every trial is its own transaction (write-ahead logging), so whoever is killed loses at most the trial in flight, and
two tuners on one log do not get in each other's way. Every row carries a checksum of its contents and is decoded by
`ir/records.py`: a row that was damaged or written by something else is refused and named, and the rest is read.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

from ..ir.errors import NesteggError
from ..ir.loops import Lowered
from ..ir.nest import Nest
from ..ir.records import SerialError, digest, dumps, load_kernel, load_nest
from ..ir.target import Target

#: Marks a SQLite file as a tuning log ("nest"), and the version of its tables.
APPLICATION, VERSION = 0x6E657374, 1
#: Seconds to wait for another tuner's transaction.
BUSY = 30.0
OK, FAILED = "ok", "failed"

_TABLES = """
create table if not exists kernels (digest text primary key, kernel text not null);
create table if not exists trials (
  id integer primary key, kernel text not null, device text not null, threads integer not null, nest text not null,
  status text not null, seconds real, error text not null, at real not null, checksum text not null,
  unique (kernel, device, threads, nest)
);
"""


class LogError(NesteggError):
    """A file is not a tuning log of this version, or cannot be opened."""


@dataclass(frozen=True)
class Trial:
    """One measured nest. `seconds`: of one run, infinite if it failed; `error`: why it failed."""

    nest: Nest
    seconds: float
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error


@cache
def device(target: Target) -> str:
    """The machine that measurements are of: LLVM's name of its CPU, and a digest of all that is known of the target."""
    import llvmlite.binding as llvm

    known = hashlib.blake2b(repr(astuple(target)[1:]).encode(), digest_size=4).hexdigest()
    return f"{llvm.get_host_cpu_name()}-{known}"


def default_log() -> Path:
    """Where `nestegg tune` writes and `optimize` looks unless told otherwise."""
    import platformdirs

    return Path(platformdirs.user_data_dir("nestegg")) / "tuning.sqlite"


class TuningLog:
    """A log, made if it is not there. `refused`: the rows passed over so far, each with the reason.

    Raises `LogError` if the file is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.refused = Path(path), []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            self._open()
        except (sqlite3.Error, OSError) as e:
            raise LogError(f"{self.path}: not a tuning log that can be opened ({e}); name another with --log") from None

    refused: list[str]

    def _open(self) -> None:
        application = self._db.execute("pragma application_id").fetchone()[0]
        version = self._db.execute("pragma user_version").fetchone()[0]
        empty = not self._db.execute("select count(*) from sqlite_master").fetchone()[0]
        if not empty and (application, version) != (APPLICATION, VERSION):
            what = f"version {version}" if application == APPLICATION else "another program's database"
            raise LogError(f"{self.path}: {what}, not a tuning log of version {VERSION}; name another with --log")
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        with self._transaction():
            self._db.execute(f"pragma application_id={APPLICATION}")
            self._db.execute(f"pragma user_version={VERSION}")
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._db.execute("rollback")
            raise
        self._db.execute("commit")

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> TuningLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, kernel: Lowered, target: Target, threads: int, trial: Trial) -> None:
        """Append a trial. Of a nest that was measured before, the faster time stays: what disturbs only slows down."""
        status = OK if trial.ok else FAILED
        seconds = trial.seconds if math.isfinite(trial.seconds) else None
        row = (digest(kernel), device(target), threads, dumps(trial.nest), status, seconds, trial.error)
        with self._transaction():
            self._db.execute("insert or ignore into kernels values (?, ?)", (row[0], dumps(kernel)))
            self._db.execute(
                "insert into trials (kernel, device, threads, nest, status, seconds, error, at, checksum)"
                " values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set seconds = excluded.seconds,"
                " at = excluded.at, checksum = excluded.checksum"
                " where status = 'ok' and excluded.status = 'ok' and excluded.seconds < seconds",
                (*row, time.time(), _checksum(row)),
            )

    def trials(self, kernel: Lowered, target: Target, threads: int) -> list[Trial]:
        """All trials of a kernel on this machine, in the order they were made."""
        where = "where kernel = ? and device = ? and threads = ? order by id"
        return [t for _, t in self._read(where, (digest(kernel), device(target), threads), {digest(kernel): kernel})]

    def best(self, kernel: Lowered, target: Target, threads: int) -> Trial | None:
        """The fastest trial of a kernel on this machine, if there is one."""
        where = "where kernel = ? and device = ? and threads = ? and status = 'ok' order by seconds"
        found = self._read(where, (digest(kernel), device(target), threads), {digest(kernel): kernel})
        return next((t for _, t in found), None)

    def everything(self, target: Target, threads: int) -> dict[Lowered, list[Trial]]:
        """All kernels measured on this machine, with their trials."""
        out: dict[Lowered, list[Trial]] = {}
        known: dict[str, Lowered | None] = {}
        where = "where device = ? and threads = ? order by id"
        for kernel, trial in self._read(where, (device(target), threads), known):
            out.setdefault(kernel, []).append(trial)
        return out

    def measured(self, target: Target, threads: int) -> tuple[set[str], str]:
        """The digests of the kernels with trials on this machine, and a name of what is there now."""
        query = "select kernel, count(*), min(seconds) from trials where device = ? and threads = ? group by kernel"
        rows = self._db.execute(query, (device(target), threads)).fetchall()
        return {r[0] for r in rows}, hashlib.blake2b(repr(sorted(rows)).encode(), digest_size=12).hexdigest()

    def kernel(self, name: str) -> Lowered | None:
        """The kernel of this digest, if the log holds it."""
        return self._kernel(name)

    def devices(self) -> list[str]:
        """The machines that the log holds trials of."""
        return [r[0] for r in self._db.execute("select distinct device from trials order by device")]

    def _read(
        self, where: str, values: tuple[object, ...], kernels: dict[str, Lowered | None]
    ) -> Iterator[tuple[Lowered, Trial]]:
        query = "select id, kernel, device, threads, nest, status, seconds, error, checksum from trials "
        try:
            for number, *row, checksum in self._db.execute(query + where, values):
                if (found := self._decoded(number, tuple(row), checksum, kernels)) is not None:
                    yield found
        except sqlite3.DatabaseError as e:
            self._refuse(f"the rest of the table: {e}")

    def _decoded(
        self, number: int, row: tuple[object, ...], checksum: object, kernels: dict[str, Lowered | None]
    ) -> tuple[Lowered, Trial] | None:
        name, _, _, text, status, seconds, error = row
        try:
            if checksum != _checksum(row):
                raise SerialError("its checksum does not match: it was damaged, or not written by nestegg")
            if name not in kernels:
                kernels[str(name)] = self._kernel(str(name))
            kernel = kernels[str(name)]
            if kernel is None:
                raise SerialError(f"kernel {name} is not in the log, or not of this version")
            nest = load_nest(str(text), kernel)
            timed = isinstance(seconds, float) and math.isfinite(seconds) and seconds > 0
            if timed != (status == OK):
                raise SerialError(f"status {status!r} with {seconds} seconds")
        except SerialError as e:
            self._refuse(f"row {number}: {e}")
            return None
        return kernel, Trial(nest, float(seconds) if isinstance(seconds, float) else math.inf, str(error))

    def _kernel(self, name: str) -> Lowered | None:
        found = self._db.execute("select kernel from kernels where digest = ?", (name,)).fetchone()
        try:
            kernel = None if found is None else load_kernel(str(found[0]))
        except SerialError:
            return None
        return kernel if kernel is not None and digest(kernel) == name else None

    def _refuse(self, why: str) -> None:
        message = f"{self.path}, {why}"
        if message not in self.refused:
            self.refused.append(message)


def _checksum(row: tuple[object, ...]) -> str:
    return hashlib.blake2b(repr(row).encode(), digest_size=8).hexdigest()
