"""The run's SQLite file: what was planned, merged and failed. What it says happened, did; nothing else did.

A merged partial and its task's new state are stored in one durable transaction, so that a result is there if and only
if its task is done, whatever is killed when. Each transaction of the reducer checks that no later one has taken over.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import Cost, Counts, Failure, Partial, RunSpec, Task
from hzzray.physics.histogram import Histogram
from hzzray.physics.selection import CHANNELS

#: What a run's user wants of it: that it goes on, waits, ends after what is in flight, or ends at once.
Wish = Literal["run", "pause", "drain", "cancel"]

Outcome = Literal["merged", "duplicate", "superseded"]

_VERSION = 2  # of the tables below; kept in SQLite's user_version
_APPLICATION = 0x485A5A31  # "HZZ1": tells a ledger from any other SQLite file
_BUSY_S = 30.0
_PAGE = 1000  # tasks that are read at a time

_DUE, _MERGED, _FAILED, _SPLIT = range(4)

#: A task whose file could not be read when it was planned has this instead of a uuid, and its sample's name.
UNREAD = "unread:"

_TABLES = """
CREATE TABLE run (
    run_id TEXT NOT NULL, spec TEXT NOT NULL, environment TEXT NOT NULL, created REAL NOT NULL,
    wall_s REAL NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, wish TEXT NOT NULL DEFAULT 'run',
    duplicates INTEGER NOT NULL DEFAULT 0, settings TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE entries (sample TEXT PRIMARY KEY, planned INTEGER NOT NULL, total INTEGER NOT NULL);
CREATE TABLE tasks (
    task_id TEXT PRIMARY KEY, sample TEXT NOT NULL, file TEXT NOT NULL, uuid TEXT NOT NULL, tree TEXT NOT NULL,
    start INTEGER NOT NULL, stop INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX ranges ON tasks (uuid, start, stop);
CREATE TABLE partials (
    merge INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE REFERENCES tasks, sample TEXT NOT NULL,
    histogram BLOB NOT NULL, worker TEXT NOT NULL, wall_s REAL NOT NULL, cpu_s REAL NOT NULL, read_s REAL NOT NULL,
    bytes_read INTEGER NOT NULL, events INTEGER NOT NULL, merged REAL NOT NULL
);
CREATE TABLE failures (task_id TEXT PRIMARY KEY REFERENCES tasks, body TEXT NOT NULL) WITHOUT ROWID;
"""


class LedgerError(HzzrayError):
    """A ledger that can't be used or written: damaged, of another version, or the disk's fault."""


class FencedError(LedgerError):
    """A later reducer has taken over the run: this one may write no more."""


class Ledger:
    """One run's ledger. Use as a context manager. Safe to hand from thread to thread, not to share between two."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._db = database
        self._epoch: int | None = None
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise LedgerError(f"{path}: not a ledger of hzzray")
        if version != _VERSION:
            raise LedgerError(f"{path}: a ledger of version {version}; this hzzray reads version {_VERSION}")
        row = database.execute("SELECT run_id, spec, environment, created FROM run").fetchone()
        if row is None:
            raise LedgerError(f"{path}: a ledger of no run")
        self.run_id, spec, self.environment, self.created = row
        try:
            self.spec = RunSpec.model_validate_json(spec)
        except ValidationError as error:
            raise LedgerError(f"{path}: its spec can't be read: {error.errors()[0]['msg']}") from error
        self._shape = len(CHANNELS), self.spec.axis.bins, len(self.spec.selection.cuts)

    @classmethod
    def create(cls, path: Path, run_id: str, spec: RunSpec, environment: str) -> Ledger:
        """Start a ledger where there is none; raises LedgerError where it can't be written."""
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written whole under another name first: a ledger that is there has all its tables, and its run.
            part = path.with_suffix(".part")
            part.unlink(missing_ok=True)
            database = _connect(part)
            with database:
                database.executescript(
                    f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; "
                    f"PRAGMA application_id = {_APPLICATION}; COMMIT;"
                )
                database.execute(
                    "INSERT INTO run (run_id, spec, environment, created) VALUES (?, ?, ?, ?)",
                    (run_id, spec.canonical().decode(), environment, time.time()),
                )
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            database.close()
            part.rename(path)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger; raises UsageError where there is none, LedgerError for a damaged one or another version."""
        if not path.is_file():
            raise UsageError(f"{path.parent}: no such run (it has no {path.name})")
        with _explained(path):
            database = _connect(path)
            try:
                return cls(path, database)
            except BaseException:
                database.close()
                raise

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        """Use as a context manager closes the file."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a run's start and its user write.

    def plan(self, tasks: Iterable[Task], entries: dict[str, tuple[int, int]]) -> None:
        """Add planned tasks and each sample's (planned, total) entries. Tasks that are there already stay.

        Raises LedgerError when two tasks would read an entry twice.
        """
        rows = [(task.task_id, task.sample, task.file, task.uuid, task.tree, task.start, task.stop) for task in tasks]
        with _explained(self.path), self._db:
            self._db.executemany(
                "INSERT OR IGNORE INTO tasks (task_id, sample, file, uuid, tree, start, stop) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", ((name, *pair) for name, pair in entries.items())
            )
            for uuid in {row[3] for row in rows}:
                self._refuse_overlaps(uuid)

    def relocate(self, files: dict[str, str]) -> None:
        """Take note where files lie now, by uuid: elsewhere, perhaps, than when the run began."""
        with _explained(self.path), self._db:
            self._db.executemany(
                "UPDATE tasks SET file = ? WHERE uuid = ? AND file != ?",
                ((file, uuid, file) for uuid, file in files.items()),
            )

    def _refuse_overlaps(self, uuid: str) -> None:
        query = "SELECT start, stop FROM tasks WHERE uuid = ? AND state != ? AND stop > start ORDER BY start"
        for (_, stop), (start, _) in pairwise(self._db.execute(query, (uuid, _SPLIT)).fetchall()):
            if start < stop:
                raise LedgerError(f"{self.path}: entries {start} to {stop} of file {uuid} are planned twice")

    def forget_failures(self) -> None:
        """Take failures back, so that their tasks are due again; those of files that were never read go for good."""
        with _explained(self.path), self._db:
            self._db.execute("DELETE FROM failures")
            self._db.execute("UPDATE tasks SET state = ? WHERE state = ?", (_DUE, _FAILED))
            self._db.execute("DELETE FROM tasks WHERE uuid LIKE ?", (f"{UNREAD}%",))

    def forget_sample(self, sample: str) -> int:
        """Retract all of a sample, as if it had never been planned; returns how many partials went.

        For a file that turned out bad: the next start of the run plans the sample anew. No reducer may be at work.
        """
        with _explained(self.path), self._db:
            mine = "SELECT task_id FROM tasks WHERE sample = ?"
            gone = self._db.execute(f"DELETE FROM partials WHERE task_id IN ({mine})", (sample,)).rowcount  # noqa: S608
            self._db.execute(f"DELETE FROM failures WHERE task_id IN ({mine})", (sample,))  # noqa: S608
            self._db.execute("DELETE FROM tasks WHERE sample = ?", (sample,))
            self._db.execute("DELETE FROM entries WHERE sample = ?", (sample,))
            self._db.execute("UPDATE run SET epoch = epoch + 1")
        return gone

    def wish(self, wish: Wish) -> None:
        """Leave word for whoever works on the run."""
        with _explained(self.path), self._db:
            self._db.execute("UPDATE run SET wish = ?", (wish,))

    def keep_settings(self, settings: str) -> None:
        """Remember, as JSON, how the run was last worked on."""
        with _explained(self.path), self._db:
            self._db.execute("UPDATE run SET settings = ?", (settings,))

    def settings(self) -> str:
        """Tell how the run was last worked on, as JSON."""
        (settings,) = self._db.execute("SELECT settings FROM run").fetchone()
        return str(settings)

    def add_wall(self, seconds: float) -> None:
        """Add to the wall-clock time that the run took so far."""
        with _explained(self.path), self._db:
            self._db.execute("UPDATE run SET wall_s = wall_s + ?", (seconds,))

    # What its reducer writes.

    def take_over(self) -> None:
        """Become the one that writes results: any earlier one is fenced off. Raises LedgerError on a damaged file."""
        with _explained(self.path):
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise LedgerError(f"{self.path}: damaged: {found}")
            with self._db:
                (self._epoch,) = self._db.execute("UPDATE run SET epoch = epoch + 1 RETURNING epoch").fetchone()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with _explained(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            (epoch,) = self._db.execute("SELECT epoch FROM run").fetchone()
            if epoch != self._epoch:
                raise FencedError(f"{self.path}: another process has taken over run {self.run_id}")
            yield self._db

    def merge(self, partials: Sequence[Partial]) -> list[Outcome]:
        """Store partials with their tasks' new state in one transaction; says of each what became of it.

        Raises LedgerError when a task was never planned, FencedError when a later reducer has taken over; then nothing
        of all was stored.
        """
        now = time.time()
        outcomes: list[Outcome] = []
        with self._writing() as database:
            for partial in partials:
                task, cost = partial.task, partial.cost
                # A failure that is overtaken by a result was none.
                won = database.execute(
                    "UPDATE tasks SET state = ? WHERE task_id = ? AND state IN (?, ?)",
                    (_MERGED, task.task_id, _DUE, _FAILED),
                ).rowcount
                if not won:
                    outcomes.append(self._why_not(task))
                    continue
                database.execute("DELETE FROM failures WHERE task_id = ?", (task.task_id,))
                database.execute(
                    "INSERT INTO partials VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        task.task_id,
                        task.sample,
                        partial.packed,
                        partial.worker,
                        cost.wall_s,
                        cost.cpu_s,
                        cost.read_s,
                        cost.bytes_read,
                        cost.events,
                        now,
                    ),
                )
                outcomes.append("merged")
            again = outcomes.count("duplicate")
            if again:
                database.execute("UPDATE run SET duplicates = duplicates + ?", (again,))
        return outcomes

    def _why_not(self, task: Task) -> Outcome:
        row = self._db.execute("SELECT state FROM tasks WHERE task_id = ?", (task.task_id,)).fetchone()
        if row is None:
            raise LedgerError(f"{self.path}: task {task.task_id} of sample {task.sample} was never planned")
        return "superseded" if row[0] == _SPLIT else "duplicate"

    def fail(self, failure: Failure) -> bool:
        """Store a failure; False when its task was merged, split or failed before."""
        with self._writing() as database:
            query = "UPDATE tasks SET state = ? WHERE task_id = ? AND state = ?"
            new = database.execute(query, (_FAILED, failure.task.task_id, _DUE)).rowcount == 1
            if new:
                body = failure.canonical().decode()
                database.execute("INSERT OR REPLACE INTO failures VALUES (?, ?)", (failure.task.task_id, body))
        return new

    def split(self, task: Task, parts: Sequence[Task]) -> bool:
        """Replace a task by parts that tile it; False when it was merged, failed or split otherwise before.

        Raises LedgerError where the parts don't tile it.
        """
        borders = [task.start, *(part.stop for part in parts)]
        tiled = all(part.start == border for part, border in zip(parts, borders, strict=False))
        alike = all(
            (part.spec, part.sample, part.uuid, part.tree) == (task.spec, task.sample, task.uuid, task.tree)
            for part in parts
        )
        if not (parts and tiled and alike and borders[-1] == task.stop):
            raise LedgerError(f"{self.path}: parts of task {task.task_id} don't tile {task.start} to {task.stop}")
        with self._writing() as database:
            query = "UPDATE tasks SET state = ? WHERE task_id = ? AND state = ?"
            new = database.execute(query, (_SPLIT, task.task_id, _DUE)).rowcount == 1
            if new:
                database.executemany(
                    "INSERT INTO tasks (task_id, sample, file, uuid, tree, start, stop) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (
                        (part.task_id, part.sample, part.file, part.uuid, part.tree, part.start, part.stop)
                        for part in parts
                    ),
                )
                return True
            # Asked again, perhaps, by one who missed the answer: the parts are what is to be done all the same.
            marks = ", ".join("?" * len(parts))
            query = f"SELECT COUNT(*) FROM tasks WHERE task_id IN ({marks})"  # noqa: S608 (question marks alone)
            (known,) = database.execute(query, [part.task_id for part in parts]).fetchone()
            return bool(known == len(parts))

    # What anyone may read.

    def due(self) -> Iterator[Task]:
        """Planned tasks that are neither merged nor failed, file by file, read a page at a time."""
        after = ("", -1, -1)
        while True:
            rows = self._db.execute(
                "SELECT sample, file, uuid, tree, start, stop FROM tasks "
                "WHERE state = ? AND (uuid, start, stop) > (?, ?, ?) ORDER BY uuid, start, stop LIMIT ?",
                (_DUE, *after, _PAGE),
            ).fetchall()
            for sample, file, uuid, tree, start, stop in rows:
                yield Task(
                    run_id=self.run_id,
                    spec=self.spec.digest,
                    sample=sample,
                    file=file,
                    uuid=uuid,
                    tree=tree,
                    start=start,
                    stop=stop,
                )
            if len(rows) < _PAGE:
                return
            after = rows[-1][2], rows[-1][4], rows[-1][5]

    def planned_files(self) -> dict[str, str]:
        """For each sample with planned entries, the uuid of its file."""
        rows = self._db.execute("SELECT DISTINCT sample, uuid FROM tasks WHERE uuid NOT LIKE ?", (f"{UNREAD}%",))
        return dict(rows.fetchall())

    def partials(self) -> Iterator[tuple[str, Histogram, Cost]]:
        """All that was merged: sample, histogram, cost."""
        rows = self._db.execute(
            "SELECT sample, histogram, wall_s, cpu_s, read_s, bytes_read, events, task_id FROM partials ORDER BY merge"
        )
        for sample, packed, *cost, task_id in rows:
            try:
                histogram = Histogram.unpack(packed, *self._shape)
            except ValueError as error:
                raise LedgerError(f"{self.path}: partial of task {task_id} is damaged: {error}") from error
            yield sample, histogram, Cost(*cost)

    def failures(self) -> list[Failure]:
        """All failures, in the order of files and entries."""
        rows = self._db.execute("SELECT body FROM failures").fetchall()
        failures = [Failure.model_validate_json(body) for (body,) in rows]
        return sorted(failures, key=lambda failure: (failure.task.file, failure.task.start))

    def failed(self) -> int:
        """How many tasks stand as failed."""
        (number,) = self._db.execute("SELECT COUNT(*) FROM failures").fetchone()
        return int(number)

    def counts(self) -> Counts:
        """How far the run is."""
        with _explained(self.path):
            rows = self._db.execute("SELECT state, COUNT(*) FROM tasks WHERE state != ? GROUP BY state", (_SPLIT,))
            by_state = dict(rows.fetchall())
            (events,) = self._db.execute("SELECT COALESCE(SUM(events), 0) FROM partials").fetchone()
            (duplicates,) = self._db.execute("SELECT duplicates FROM run").fetchone()
        planned = sum(by_state.values())
        return Counts(planned, by_state.get(_MERGED, 0), by_state.get(_FAILED, 0), events, duplicates)

    def entries(self) -> dict[str, tuple[int, int]]:
        """Entries planned and in all, of each sample whose file was read."""
        return {name: (planned, total) for name, planned, total in self._db.execute("SELECT * FROM entries")}

    def wished(self) -> Wish:
        """Tell what the run's user wants of it."""
        with _explained(self.path):
            (wish,) = self._db.execute("SELECT wish FROM run").fetchone()
        return wish  # type: ignore[no-any-return]

    def wall_s(self) -> float:
        """Wall-clock seconds that the run took so far, over all its starts."""
        (seconds,) = self._db.execute("SELECT wall_s FROM run").fetchone()
        return float(seconds)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
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
