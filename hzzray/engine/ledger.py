"""The run's SQLite file: what was planned, merged and failed. What it says happened, did; nothing else did.

Each merged partial is stored with its task's id in one transaction, so that a result is there if and only if its task
is done, whatever is killed when.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import Cost, Failure, Partial, RunSpec, Task
from hzzray.physics.histogram import Histogram
from hzzray.physics.selection import CHANNELS

_VERSION = 1  # of the tables below; kept in SQLite's user_version
_APPLICATION = 0x485A5A31  # "HZZ1": tells a ledger from any other SQLite file
_BUSY_S = 30.0

_TABLES = """
CREATE TABLE run (
    run_id TEXT NOT NULL, spec TEXT NOT NULL, environment TEXT NOT NULL, created REAL NOT NULL, wall_s REAL NOT NULL
);
CREATE TABLE entries (sample TEXT PRIMARY KEY, planned INTEGER NOT NULL, total INTEGER NOT NULL);
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY, sample TEXT NOT NULL, uuid TEXT NOT NULL, body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE partials (
    task_id TEXT PRIMARY KEY REFERENCES tasks, sample TEXT NOT NULL, histogram BLOB NOT NULL, worker TEXT NOT NULL,
    wall_s REAL NOT NULL, cpu_s REAL NOT NULL, read_s REAL NOT NULL, bytes_read INTEGER NOT NULL,
    events INTEGER NOT NULL, merged REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE failures (task_id TEXT PRIMARY KEY REFERENCES tasks, body TEXT NOT NULL) WITHOUT ROWID;
"""


class LedgerError(HzzrayError):
    """A ledger that can't be used: damaged, of another version, or the disk's fault."""


class Ledger:
    """One run's ledger. Use as a context manager, from one thread at a time."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._db = database
        self.run_id, spec, self.environment, self.created = database.execute(
            "SELECT run_id, spec, environment, created FROM run"
        ).fetchone()
        try:
            self.spec = RunSpec.model_validate_json(spec)
        except ValidationError as error:
            raise LedgerError(f"{path}: its spec can't be read: {error.errors()[0]['msg']}") from error

    @classmethod
    def create(cls, path: Path, run_id: str, spec: RunSpec, environment: str) -> Ledger:
        """Start a ledger where there is none; raises LedgerError where it can't be written."""
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            database = _connect(path)
            with database:
                database.executescript(
                    f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; PRAGMA application_id = {_APPLICATION}; COMMIT;"
                )
                database.execute(
                    "INSERT INTO run VALUES (?, ?, ?, ?, 0)",
                    (run_id, spec.canonical().decode(), environment, time.time()),
                )
            return cls(path, database)

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger; raises UsageError where there is none, LedgerError for a damaged one or another version."""
        if not path.is_file():
            raise UsageError(f"{path.parent}: no such run (it has no {path.name})")
        with _explained(path):
            database = _connect(path)
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if application != _APPLICATION:
                raise LedgerError(f"{path}: not a ledger of hzzray")
            if version != _VERSION:
                raise LedgerError(f"{path}: a ledger of version {version}; this hzzray reads version {_VERSION}")
            return cls(path, database)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Ledger:
        """Use as a context manager closes the file."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(self, tasks: Iterable[Task], entries: dict[str, tuple[int, int]]) -> None:
        """Add planned tasks and each sample's (planned, total) entries. Tasks that are there already stay."""
        with _explained(self.path), self._db:
            self._db.executemany(
                "INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?)",
                ((task.task_id, task.sample, task.uuid, task.canonical().decode()) for task in tasks),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)",
                ((name, *pair) for name, pair in entries.items()),
            )

    def forget_failures(self) -> None:
        """Take failures back, so that their tasks are due again; those of files that were never read go for good."""
        with _explained(self.path), self._db:
            self._db.execute(
                "DELETE FROM tasks WHERE uuid LIKE 'unread:%' AND task_id IN (SELECT task_id FROM failures)"
            )
            self._db.execute("DELETE FROM failures")

    def merge(self, partial: Partial) -> bool:
        """Store a partial and its task's id in one transaction; False when the task was merged before.

        Raises LedgerError when the task was never planned.
        """
        task, cost = partial.task, partial.cost
        blob = zlib.compress(partial.histogram.to_bytes(), 1)
        with _explained(self.path), self._db:
            if not self._db.execute("SELECT 1 FROM tasks WHERE task_id = ?", (task.task_id,)).fetchone():
                raise LedgerError(f"{self.path}: task {task.task_id} of sample {task.sample} was never planned")
            added = self._db.execute(
                "INSERT OR IGNORE INTO partials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    task.task_id,
                    task.sample,
                    blob,
                    partial.worker,
                    cost.wall_s,
                    cost.cpu_s,
                    cost.read_s,
                    cost.bytes_read,
                    cost.events,
                    time.time(),
                ),
            )
            self._db.execute("DELETE FROM failures WHERE task_id = ?", (task.task_id,))
        return added.rowcount == 1

    def fail(self, failure: Failure) -> None:
        """Store a failure, unless its task was merged after all."""
        with _explained(self.path), self._db:
            self._db.execute(
                "INSERT OR REPLACE INTO failures SELECT ?, ? WHERE NOT EXISTS "
                "(SELECT 1 FROM partials WHERE task_id = ?)",
                (failure.task.task_id, failure.canonical().decode(), failure.task.task_id),
            )

    def add_wall(self, seconds: float) -> None:
        """Add to the wall-clock time that the run took so far."""
        with _explained(self.path), self._db:
            self._db.execute("UPDATE run SET wall_s = wall_s + ?", (seconds,))

    def due(self) -> list[Task]:
        """Planned tasks that are neither merged nor failed, in the order of files and entries."""
        rows = self._db.execute(
            "SELECT body FROM tasks WHERE task_id NOT IN (SELECT task_id FROM partials) "
            "AND task_id NOT IN (SELECT task_id FROM failures)"
        )
        tasks = [Task.model_validate_json(body) for (body,) in rows]
        return sorted(tasks, key=lambda task: (task.file, task.start))

    def planned_files(self) -> dict[str, str]:
        """For each sample with planned entries, the uuid of its file."""
        rows = self._db.execute("SELECT DISTINCT sample, uuid FROM tasks WHERE uuid NOT LIKE 'unread:%'")
        return dict(rows.fetchall())

    def partials(self) -> Iterator[tuple[str, Histogram, Cost]]:
        """All that was merged: sample, histogram, cost."""
        shape = (len(CHANNELS), self.spec.axis.bins, len(self.spec.selection.cuts))
        rows = self._db.execute(
            "SELECT sample, histogram, wall_s, cpu_s, read_s, bytes_read, events, task_id FROM partials"
        )
        for sample, blob, *cost, task_id in rows:
            try:
                histogram = Histogram.from_bytes(zlib.decompress(blob), *shape)
            except (ValueError, zlib.error) as error:
                raise LedgerError(f"{self.path}: partial of task {task_id} is damaged: {error}") from error
            yield sample, histogram, Cost(*cost)

    def failures(self) -> list[Failure]:
        """All failures, in the order of files and entries."""
        rows = self._db.execute("SELECT body FROM failures").fetchall()
        failures = [Failure.model_validate_json(body) for (body,) in rows]
        return sorted(failures, key=lambda failure: (failure.task.file, failure.task.start))

    def counts(self) -> tuple[int, int, int]:
        """Tasks planned, merged, failed."""
        query = "SELECT (SELECT COUNT(*) FROM tasks), (SELECT COUNT(*) FROM partials), (SELECT COUNT(*) FROM failures)"
        planned, merged, failed = self._db.execute(query).fetchone()
        return planned, merged, failed

    def entries(self) -> dict[str, tuple[int, int]]:
        """Entries planned and in all, of each sample whose file was read."""
        return {name: (planned, total) for name, planned, total in self._db.execute("SELECT * FROM entries")}

    def wall_s(self) -> float:
        """Wall-clock seconds that the run took so far, over all its starts."""
        (seconds,) = self._db.execute("SELECT wall_s FROM run").fetchone()
        return float(seconds)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    return database


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the ledger in what SQLite or the disk says."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path}: {error}") from error
