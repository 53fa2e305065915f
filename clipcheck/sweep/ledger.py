"""Store the findings of a sweep in an SQLite file, so that it can be resumed.

Only the leading process of a sweep writes to it, in one transaction for each event, which is on the
disk before the next job starts. A verdict has a unique key (`clipcheck.sweep.identity`); a second
one with the same key is dropped. An attempt without a verdict is repeated by the next sweep.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipcheck.errors import LedgerError
from clipcheck.results.document import convert_to, parse_json, to_json
from clipcheck.sweep.found import Found, JobCost
from clipcheck.system.locks import file_lock

if TYPE_CHECKING:
    from filelock import BaseFileLock

SCHEMA = 1

_Kept = TypeVar("_Kept")

_APPLICATION = 0x636C6970
"""SQLite's application id of clipcheck's files: ``clip``."""

_TABLES = """
CREATE TABLE files (
    path TEXT PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL, facts TEXT NOT NULL
) STRICT;
CREATE TABLE sources (
    source TEXT PRIMARY KEY, sha256 TEXT NOT NULL, size INTEGER NOT NULL
) STRICT;
CREATE TABLE runs (
    run INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, engine TEXT NOT NULL,
    workers INTEGER NOT NULL
) STRICT;
CREATE TABLE attempts (
    attempt INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs, task TEXT NOT NULL,
    label TEXT NOT NULL, started REAL NOT NULL, ended REAL, fate TEXT, worker TEXT, reason TEXT
) STRICT;
CREATE TABLE verdicts (
    key TEXT PRIMARY KEY, attempt INTEGER NOT NULL REFERENCES attempts, judged REAL NOT NULL,
    content TEXT NOT NULL, reference TEXT NOT NULL, backend TEXT NOT NULL, device TEXT NOT NULL,
    dtype TEXT NOT NULL, found TEXT NOT NULL, cost TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A stored verdict.

    Attributes:
        key: see `clipcheck.sweep.identity.key_of`.
        content: SHA-256 of the file, or its source.
        reference: SHA-256 or source of the reference; empty for the file itself.
        cost: of its job.
    """

    key: str
    content: str
    reference: str
    backend: str
    device: str
    dtype: str
    found: Found
    cost: JobCost


class Ledger:
    """An open ledger, locked against other processes.

    Args:
        path: of the file, which is created if it does not exist.

    Raises:
        LedgerError: it is no ledger, has another schema, is damaged, in use, or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _locked(path)
        try:
            with self._telling():
                self._connection = _connected(path)
        except LedgerError:
            self._lock.release()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._lock.release()

    def begin_run(self, engine: str, workers: int) -> int:
        """Record the start of a sweep, and mark open attempts of a killed one as interrupted.

        Returns:
            Number of the run.
        """
        with self._writing() as database:
            database.execute("UPDATE attempts SET fate = 'interrupted' WHERE fate IS NULL")
            cursor = database.execute(
                "INSERT INTO runs (started, engine, workers) VALUES (?, ?, ?)",
                (time.time(), engine, workers),
            )
        return int(cursor.lastrowid or 0)

    def end_run(self, run: int) -> None:
        """Record the end of a run."""
        with self._writing() as database:
            database.execute("UPDATE runs SET ended = ? WHERE run = ?", (time.time(), run))

    def begin_attempt(self, run: int, task: str, label: str) -> int:
        """Record the start of a job.

        Args:
            run: of the job.
            task: identifies the work, in all sweeps.
            label: name of the checkpoint.

        Returns:
            Number of the attempt.
        """
        with self._writing() as database:
            cursor = database.execute(
                "INSERT INTO attempts (run, task, label, started) VALUES (?, ?, ?, ?)",
                (run, task, label, time.time()),
            )
        return int(cursor.lastrowid or 0)

    def end_attempt(
        self, attempt: int, fate: str, worker: str, reason: str, verdicts: Sequence[Verdict] = ()
    ) -> None:
        """Record the end of a job and its verdicts, in one transaction.

        A verdict whose key exists already is dropped.
        """
        now = time.time()
        with self._writing() as database:
            database.execute(
                "UPDATE attempts SET ended = ?, fate = ?, worker = ?, reason = ? WHERE attempt = ?",
                (now, fate, worker, reason, attempt),
            )
            database.executemany(
                "INSERT INTO verdicts VALUES (:key, :attempt, :judged, :content, :reference, "
                ":backend, :device, :dtype, :found, :cost) ON CONFLICT (key) DO NOTHING",
                [
                    {
                        **vars(each),
                        "attempt": attempt,
                        "judged": now,
                        "found": to_json(each.found, indent=None),
                        "cost": to_json(each.cost, indent=None),
                    }
                    for each in verdicts
                ],
            )

    def times(self, task: str, fate: str) -> int:
        """Count the attempts at a task with this fate, in all sweeps."""
        (count,) = self._row(
            "SELECT count(*) FROM attempts WHERE task = ? AND fate = ?", (task, fate)
        )
        return int(count)

    def verdict(self, key: str) -> Verdict | None:
        """Return the verdict under a key, or None."""
        row = self._row(
            "SELECT key, content, reference, backend, device, dtype, found, cost FROM verdicts "
            "WHERE key = ?",
            (key,),
        )
        if row is None:
            return None
        told = dict(row)
        found = self._decoded(told.pop("found"), Found)
        cost = self._decoded(told.pop("cost"), JobCost)
        return Verdict(**told, found=found, cost=cost)

    def facts(self, path: str, size: int, changed: int, kind: type[_Kept]) -> _Kept | None:
        """Return the stored facts of an unchanged file, or None."""
        row = self._row(
            "SELECT facts FROM files WHERE path = ? AND size = ? AND changed = ?",
            (path, size, changed),
        )
        return None if row is None else self._decoded(row[0], kind)

    def keep_facts(self, path: str, size: int, changed: int, facts: object) -> None:
        """Store the facts of a file."""
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                (path, size, changed, to_json(facts, indent=None)),
            )

    def source(self, source: str) -> tuple[str, int] | None:
        """Return SHA-256 and bytes of what was fetched from this source before, or None."""
        row = self._row("SELECT sha256, size FROM sources WHERE source = ?", (source,))
        return None if row is None else (str(row[0]), int(row[1]))

    def keep_source(self, source: str, sha256: str, size: int) -> None:
        """Store SHA-256 and bytes of what was fetched from a source."""
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (source, sha256, size)
            )

    def _decoded(self, text: str, kind: type[_Kept]) -> _Kept:
        try:
            return convert_to(parse_json(text), kind)
        except ValueError as error:
            raise LedgerError(
                f"expected an entry that this version of clipcheck wrote, but {error}",
                remedy="Name another ledger with --ledger; then everything is judged again.",
                path=self.path,
            ) from error

    def _row(self, query: str, values: Sequence[object]) -> Any:
        with self._telling():
            return self._connection.execute(query, values).fetchone()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._telling(), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(
                f"expected a ledger that can be read and written, found one that cannot ({error})",
                remedy="Free disk space or change permissions; if it is damaged, name another "
                "with --ledger: then everything is judged again.",
                path=self.path,
            ) from error


def _locked(path: Path) -> BaseFileLock:
    from filelock import Timeout

    if not path.absolute().parent.is_dir():
        raise LedgerError(
            "expected a folder for the ledger, found none",
            remedy="Create the folder, or name another ledger with --ledger.",
            path=path,
        )
    try:
        lock = file_lock(path.with_name(f"{path.name}.lock"))
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LedgerError(
            "expected a ledger that is not in use, found that another sweep has it open",
            remedy="Wait for it to end, or name another ledger with --ledger.",
            path=path,
        ) from error
    except OSError as error:
        raise LedgerError(
            f"cannot be written ({error.strerror or error})",
            remedy="Name another ledger with --ledger, or change the permissions of this one.",
            path=path,
        ) from error
    return lock


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (schema,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application != _APPLICATION:
            raise _foreign(path, "another SQLite file")
        if tables and schema != SCHEMA:
            raise _foreign(path, f"one with schema {schema}; this clipcheck has {SCHEMA}")
        connection.execute("PRAGMA journal_mode = WAL")
        # A reported verdict must survive a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        if not tables:
            # One transaction: if creation is killed, the file is empty.
            connection.executescript(
                f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION}; "
                f"PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _foreign(path: Path, found: str) -> LedgerError:
    return LedgerError(
        f"expected the ledger of a sweep, found {found}",
        remedy="Name another file with --ledger.",
        path=path,
    )
