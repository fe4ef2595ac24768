"""The run's SQLite file: what was planned, merged and failed. What it says happened, did; nothing else did.

A merged partial and its task's new state are stored in one durable transaction, so that a result is there if and only
if its task is done, whatever is killed when. Each transaction of the reducer checks that no later one has taken over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import ValidationError

from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import (
    RUN_ID,
    UNREAD,
    Cost,
    Counts,
    Entries,
    Failure,
    Partial,
    PlannedFile,
    RunSpec,
    Task,
    UnreadFile,
    unread_uuid,
)
from hzzray.physics.histogram import Blocks
from hzzray.version import __version__

#: What a run's user wants of it: that it goes on, waits, ends after what is in flight, or ends at once.
Wish = Literal["run", "pause", "drain", "cancel"]

Outcome = Literal["merged", "duplicate", "superseded"]

#: What may have become of a planned task.
TaskState = Literal["due", "merged", "failed", "split"]

_VERSION = 6  # of the tables below, and of what they mean; kept in SQLite's user_version
_APPLICATION = 0x485A5A31  # "HZZ1": tells a ledger from any other SQLite file
_BUSY_S = 30.0
_PAGE = 1000  # tasks that are read at a time

_DUE, _MERGED, _FAILED, _SPLIT = range(4)
_STATES: tuple[TaskState, ...] = ("due", "merged", "failed", "split")

# Partials are numbered as their tasks: in the order of files and entries, which is nearly that of their coming. So a
# commit writes few pages, however many tasks there are; task ids, which are hashes, would each touch a page of its own.
# A file that could not be read is there under what stands for its uuid; its entries in all (``total``) are unknown.
_TABLES = """
CREATE TABLE run (
    run_id TEXT NOT NULL, spec TEXT NOT NULL, environment TEXT NOT NULL, created REAL NOT NULL, made_by TEXT NOT NULL,
    wall_s REAL NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0, wish TEXT NOT NULL DEFAULT 'run',
    duplicates INTEGER NOT NULL DEFAULT 0, settings TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE files (
    uuid TEXT PRIMARY KEY, sample TEXT NOT NULL, path TEXT NOT NULL, planned INTEGER NOT NULL, total INTEGER
);
CREATE TABLE tasks (
    number INTEGER PRIMARY KEY, task_id TEXT NOT NULL UNIQUE, sample TEXT NOT NULL, file TEXT NOT NULL,
    uuid TEXT NOT NULL, tree TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX ranges ON tasks (uuid, start, stop);
CREATE TABLE partials (
    task INTEGER PRIMARY KEY REFERENCES tasks ON DELETE CASCADE, blocks BLOB NOT NULL, worker TEXT NOT NULL,
    wall_s REAL NOT NULL, cpu_s REAL NOT NULL, read_s REAL NOT NULL, bytes_read INTEGER NOT NULL,
    events INTEGER NOT NULL, merged REAL NOT NULL
);
CREATE TABLE failures (task INTEGER PRIMARY KEY REFERENCES tasks ON DELETE CASCADE, body TEXT NOT NULL);
"""


#: What is said of a file whose numbers were taken out.
_RETRACTED = "retracted"

_NEW_TASK = "INTO tasks (task_id, sample, file, uuid, tree, start, stop) VALUES (?, ?, ?, ?, ?, ?, ?)"
_NEW_FILE = "INTO files (uuid, sample, path, planned, total) VALUES (?, ?, ?, ?, ?)"


class Merged(NamedTuple):
    """A partial that is in the sums: its number, when it was committed [Unix s], and what it took."""

    number: int
    at: float
    cost: Cost


class KnownFile(NamedTuple):
    """A file that a run has tasks of: its sample, its place inside a source, its content, the entries to be read."""

    sample: str
    path: str
    uuid: str
    planned: int


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
            raise LedgerError(
                f"{path}: a ledger of version {version}, made by {_maker(database)}; "
                f"hzzray {__version__} reads version {_VERSION}: take another --run-id"
            )
        row = database.execute("SELECT run_id, spec, environment, created FROM run").fetchone()
        if row is None:
            raise LedgerError(f"{path}: a ledger of no run")
        began_as, spec, self.environment, self.created = row
        self._folder = Path(os.path.abspath(path)).parent.name  # noqa: PTH100 (resolve would name what a link leads to)
        #: What the run is called: as its folder, which may be a copy, or as it began where no run can be called so.
        self.run_id: str = self._folder if re.fullmatch(RUN_ID, self._folder) else began_as
        try:
            self.spec = RunSpec.model_validate_json(spec)
        except ValidationError as error:
            raise LedgerError(f"{path}: its spec can't be read: {error.errors()[0]['msg']}") from error
        self._shape = self.spec.shape

    @classmethod
    def create(cls, path: Path, run_id: str, spec: RunSpec, environment: str) -> Ledger:
        """Start a ledger, or open the one that another process was faster with.

        Raises LedgerError where it can't be written.
        """
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Written whole under a name of its own first: a ledger that is there has all its tables, and its run.
            # By chance, not by process id: containers that share a folder may have the same one.
            part = path.with_suffix(f".{secrets.token_hex(8)}.part")
            try:
                with closing(_connect(part)) as database:
                    database.execute("PRAGMA journal_mode = WAL")
                    with database:
                        database.executescript(
                            f"BEGIN; {_TABLES} PRAGMA user_version = {_VERSION}; "
                            f"PRAGMA application_id = {_APPLICATION}; COMMIT;"
                        )
                        database.execute(
                            "INSERT INTO run (run_id, spec, environment, created, made_by) VALUES (?, ?, ?, ?, ?)",
                            (run_id, spec.canonical().decode(), environment, time.time(), __version__),
                        )
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                with suppress(FileExistsError):
                    path.hardlink_to(part)
            finally:
                for leftover in part.parent.glob(f"{part.name}*"):
                    leftover.unlink()
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger; raises UsageError where there is none, LedgerError for a damaged one or another version."""
        if path.is_symlink():
            raise LedgerError(f"{path}: a link: none is followed out of a run's folder")
        if not path.is_file():
            raise UsageError(f"{path.parent}: no such run (it has no {path.name})")
        with _explained(path), ExitStack() as on_error:
            database = on_error.enter_context(closing(_connect(path)))
            ledger = cls(path, database)
            (page,) = ledger._one("PRAGMA page_size")
            log = path.with_name(f"{path.name}-wal")
            if path.stat().st_size % page and not (log.exists() and log.stat().st_size):
                # SQLite would read zeros for what lacks of the last page.
                raise LedgerError(f"{path}: truncated")
            on_error.pop_all()
        return ledger

    @property
    def mark(self) -> str:
        """Eight hexadecimal digits that tell this run from its copies, and from others of the same name."""
        told = f"{self._folder}\0{self.created!r}\0{self.environment}"
        return hashlib.sha256(told.encode()).hexdigest()[:8]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Self:
        """Use as a context manager closes the file."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a run's start and its user write.

    def plan(self, files: Iterable[PlannedFile], unread: Collection[UnreadFile] = ()) -> None:
        """Add files with their tasks, and what can't be read as failures; what could not be before is forgotten.

        Files and tasks that are there already stay. Raises LedgerError when two tasks would read an entry twice, or one
        file would be two samples'.
        """
        planned = list(files)
        with self._transaction() as database:
            for file in planned:
                row = file.uuid, file.sample, file.path, file.planned, file.entries
                database.execute(f"INSERT OR REPLACE {_NEW_FILE}", row)
                database.executemany(f"INSERT OR IGNORE {_NEW_TASK}", map(_row, file.tasks))
            for uuid, sample in {(file.uuid, file.sample) for file in planned}:
                self._refuse_overlaps(uuid, sample)
            still = {file.failure.task.uuid for file in unread}
            for (uuid,) in self._all("SELECT uuid FROM files WHERE uuid LIKE ?", f"{UNREAD}%"):
                if uuid not in still:
                    self._drop(uuid)
            for lacking in unread:
                self._set_unread(lacking.failure, lacking.path, 0 if lacking.again else None)

    def _drop(self, uuid: str) -> None:
        """Forget a file with its tasks; their partials and failures go with them."""
        self._db.execute("DELETE FROM tasks WHERE uuid = ?", (uuid,))
        self._db.execute("DELETE FROM files WHERE uuid = ?", (uuid,))

    def _set_unread(self, failure: Failure, path: str, total: int | None) -> None:
        """Let a failed task stand for a file that can't be read."""
        task = failure.task
        self._db.execute(f"INSERT OR REPLACE {_NEW_FILE}", (task.uuid, task.sample, path, 0, total))
        self._db.execute(f"INSERT OR IGNORE {_NEW_TASK}", _row(task))
        self._set_failed(failure, *self._find(task))

    def relocate(self, files: Iterable[PlannedFile]) -> None:
        """Take note where files lie now that were planned before: elsewhere, perhaps, or under another name."""
        with self._transaction() as database:
            for file in files:
                database.execute(
                    "UPDATE tasks SET file = ? WHERE uuid = ? AND file != ?", (file.file, file.uuid, file.file)
                )
                database.execute("UPDATE files SET path = ? WHERE uuid = ?", (file.path, file.uuid))

    def _refuse_overlaps(self, uuid: str, sample: str) -> None:
        others = self._all("SELECT sample FROM tasks WHERE uuid = ? AND sample != ? LIMIT 1", uuid, sample)
        if others:
            raise LedgerError(f"{self.path}: file {uuid} of sample {sample} is planned for {others[0][0]} already")
        query = "SELECT start, stop FROM tasks WHERE uuid = ? AND state != ? AND stop > start ORDER BY start"
        for (_, stop), (start, _) in pairwise(self._all(query, uuid, _SPLIT)):
            if start < stop:
                raise LedgerError(f"{self.path}: entries {start} to {stop} of file {uuid} are planned twice")

    def forget_failures(self) -> None:
        """Take failures back, so that their tasks are due again."""
        with self._transaction() as database:
            database.execute("DELETE FROM failures")
            database.execute("UPDATE tasks SET state = ? WHERE state = ?", (_DUE, _FAILED))

    def forgive(self, task: Task) -> bool:
        """Take one failure back, so that its task is due again; False where it has none."""
        with self._transaction() as database:
            number, state = self._find(task)
            if state == _FAILED:
                database.execute("DELETE FROM failures WHERE task = ?", (number,))
                database.execute("UPDATE tasks SET state = ? WHERE number = ?", (_DUE, number))
            return state == _FAILED

    def forget_sample(self, sample: str, uuids: Collection[str] | None = None) -> int:
        """Retract a sample, or of its files those named, as if it had never been read; returns how many partials went.

        For files that turned out bad. A failure stands for each until the next start of the run plans it anew. Whatever
        reducer is at work is fenced off.
        """
        gone = 0
        with self._transaction() as database:
            mine = [file for file in self.planned_files() if file.sample == sample]
            for file in mine if uuids is None else (one for one in mine if one.uuid in uuids):
                place, tree, merged = self._one(
                    "SELECT MAX(file), MAX(tree), SUM(state = ?) FROM tasks WHERE uuid = ?", _MERGED, file.uuid
                )
                self._drop(file.uuid)
                task = self._task(sample, place, unread_uuid(sample, file.path), tree, 0, 0)
                self._set_unread(Failure(task=task, reason=_RETRACTED, permanent=False), file.path, None)
                gone += int(merged)
            database.execute("UPDATE run SET epoch = epoch + 1")
        return gone

    def has_merged(self, uuid: str) -> bool:
        """Tell whether anything of a file is in the sums."""
        return bool(self._all("SELECT 1 FROM tasks WHERE uuid = ? AND state = ? LIMIT 1", uuid, _MERGED))

    def abandon(self, failure: Failure) -> bool:
        """Store the failure of a task that never came to a worker; False when it was merged, split or failed before.

        Unlike ``fail`` for whoever delivers tasks: the reducer must be told to reload.
        """
        with self._transaction():
            return self._set_failed(failure, *self._find(failure.task))

    def wish(self, wish: Wish) -> Wish:
        """Leave word for whoever works on the run; returns what was wished before."""
        with self._transaction() as database:
            before = self.wished()
            database.execute("UPDATE run SET wish = ?", (wish,))
        return before

    def keep_settings(self, settings: str) -> None:
        """Remember, as JSON, how the run was last worked on."""
        with self._transaction() as database:
            database.execute("UPDATE run SET settings = ?", (settings,))

    def settings(self) -> str:
        """Tell how the run was last worked on, as JSON."""
        return str(self._one("SELECT settings FROM run")[0])

    def add_wall(self, seconds: float) -> None:
        """Add to the wall-clock time that the run took so far."""
        with self._transaction() as database:
            database.execute("UPDATE run SET wall_s = wall_s + ?", (seconds,))

    # What its reducer writes.

    def take_over(self) -> int:
        """Become the one that writes results: any earlier one is fenced off; returns this one's epoch.

        Raises LedgerError on a damaged file.
        """
        (found,) = self._one("PRAGMA quick_check(1)")
        if found != "ok":
            raise LedgerError(f"{self.path}: damaged: {found}")
        with self._transaction() as database:
            database.execute("UPDATE run SET epoch = epoch + 1")
            epoch: int = self._one("SELECT epoch FROM run")[0]
        self._epoch = epoch
        return epoch

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Store all that is written in the block at once, durably, or nothing of it."""
        with _explained(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Likewise, for the reducer that took over last."""
        with self._transaction() as database:
            (epoch,) = self._one("SELECT epoch FROM run")
            if epoch != self._epoch:
                raise FencedError(f"{self.path}: another process has taken over run {self.run_id}")
            yield database

    def merge(self, partials: Sequence[Partial]) -> list[Outcome]:
        """Store partials with their tasks' new state in one transaction; says of each what became of it.

        Raises LedgerError when a task was never planned, FencedError when a later reducer has taken over; then nothing
        of all was stored.
        """
        now = time.time()
        outcomes: list[Outcome] = []
        with self._writing() as database:
            for partial in partials:
                number, state = self._find(partial.task)
                if state == _SPLIT:
                    outcomes.append("superseded")
                elif state == _MERGED:
                    outcomes.append("duplicate")
                else:
                    if state == _FAILED:  # a failure that is overtaken by a result was none
                        database.execute("DELETE FROM failures WHERE task = ?", (number,))
                    cost = partial.cost
                    costs = cost.wall_s, cost.cpu_s, cost.read_s, cost.bytes_read, cost.events
                    database.execute("UPDATE tasks SET state = ? WHERE number = ?", (_MERGED, number))
                    database.execute(
                        "INSERT INTO partials VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (number, partial.packed, partial.worker, *costs, now),
                    )
                    outcomes.append("merged")
            again = outcomes.count("duplicate")
            if again:
                database.execute("UPDATE run SET duplicates = duplicates + ?", (again,))
        return outcomes

    def _find(self, task: Task) -> tuple[int, int]:
        """Find number and state of a planned task; raises LedgerError where it wasn't."""
        query = "SELECT number, state FROM tasks WHERE task_id = ? AND sample = ?"
        found: tuple[int, int] | None = self._db.execute(query, (task.task_id, task.sample)).fetchone()
        if found is None:
            raise LedgerError(f"{self.path}: task {task.task_id} of sample {task.sample} was never planned")
        return found

    def fail(self, failure: Failure) -> bool:
        """Store a failure; False when its task was merged, split or failed before.

        Raises LedgerError when it was never planned, FencedError when a later reducer has taken over.
        """
        with self._writing():
            return self._set_failed(failure, *self._find(failure.task))

    def _set_failed(self, failure: Failure, number: int, state: int) -> bool:
        if state != _DUE:
            return False
        self._db.execute("UPDATE tasks SET state = ? WHERE number = ?", (_FAILED, number))
        self._db.execute("INSERT INTO failures VALUES (?, ?)", (number, failure.canonical().decode()))
        return True

    def split(self, task: Task, parts: Sequence[Task]) -> bool:
        """Replace a task by parts that tile it; False when it was merged, failed or split otherwise before.

        Raises LedgerError where the parts don't tile it or it was never planned, FencedError when a later reducer has
        taken over.
        """
        if not _tile(task, parts):
            raise LedgerError(f"{self.path}: parts of task {task.task_id} don't tile {task.start} to {task.stop}")
        with self._writing() as database:
            number, state = self._find(task)
            if state == _DUE:
                database.execute("UPDATE tasks SET state = ? WHERE number = ?", (_SPLIT, number))
                database.executemany(f"INSERT {_NEW_TASK}", map(_row, parts))
                return True
            # Asked again, perhaps, by one who missed the answer: the parts are what is to be done all the same.
            marks = ", ".join("?" * len(parts))
            query = f"SELECT COUNT(*) FROM tasks WHERE task_id IN ({marks})"  # noqa: S608 (question marks alone)
            (known,) = database.execute(query, [part.task_id for part in parts]).fetchone()
            return bool(state == _SPLIT and known == len(parts))

    # What anyone may read.

    def look_up(self, task_id: str) -> tuple[Task, TaskState] | None:
        """Find a planned task, as it was planned, and what became of it."""
        rows = self._all(
            "SELECT sample, file, uuid, tree, start, stop, state FROM tasks WHERE task_id = ?", task_id
        )  # fmt: skip
        if not rows:
            return None
        *row, state = rows[0]
        return self._task(*row), _STATES[state]

    def is_merged(self, task_id: str) -> bool:
        """Tell whether a task's result is there."""
        found = self.look_up(task_id)
        return found is not None and found[1] == "merged"

    def parts(self, task: Task) -> list[Task]:
        """Those parts that are due of a task that was split."""
        rows = self._all(
            "SELECT sample, file, uuid, tree, start, stop FROM tasks "
            "WHERE state = ? AND uuid = ? AND start >= ? AND stop <= ? ORDER BY start",
            _DUE, task.uuid, task.start, task.stop,
        )  # fmt: skip
        return [self._task(*row) for row in rows]

    def failure(self, task: Task) -> Failure | None:
        """Tell why a task failed, if it did."""
        rows = self._all("SELECT body FROM failures JOIN tasks ON number = task WHERE task_id = ?", task.task_id)
        return self._failure(rows[0][0]) if rows else None

    def _failure(self, body: str) -> Failure:
        try:
            failure = Failure.model_validate_json(body)
        except ValidationError as error:
            raise LedgerError(f"{self.path}: a failure can't be read: {error.errors()[0]['msg']}") from error
        return failure.model_copy(update={"task": failure.task.model_copy(update={"run_id": self.run_id})})

    def _task(self, sample: str, file: str, uuid: str, tree: str, start: int, stop: int) -> Task:
        return Task(
            run_id=self.run_id, spec=self.spec.digest, sample=sample, file=file, uuid=uuid, tree=tree, start=start,
            stop=stop,
        )  # fmt: skip

    def due(self) -> Iterator[Task]:
        """Planned tasks that are neither merged nor failed, file by file, read a page at a time."""
        after = ("", -1, -1)
        while True:
            rows = self._all(
                "SELECT sample, file, uuid, tree, start, stop FROM tasks "
                "WHERE state = ? AND (uuid, start, stop) > (?, ?, ?) ORDER BY uuid, start, stop LIMIT ?",
                _DUE, *after, _PAGE,
            )  # fmt: skip
            for row in rows:
                yield self._task(*row)
            if len(rows) < _PAGE:
                return
            after = rows[-1][2], rows[-1][4], rows[-1][5]

    def due_files(self) -> list[str]:
        """Files that there are tasks to do of."""
        return [file for (file,) in self._all("SELECT DISTINCT file FROM tasks WHERE state = ?", _DUE)]

    def planned_files(self) -> list[KnownFile]:
        """List the files that could be read when they were planned, in the order in which they were."""
        query = "SELECT sample, path, uuid, planned FROM files WHERE uuid NOT LIKE ? ORDER BY rowid"
        return [KnownFile(*row) for row in self._all(query, f"{UNREAD}%")]

    def laid_out(self) -> tuple[list[PlannedFile], list[UnreadFile]]:
        """Tell the run's plan as it is now, whatever became of its tasks: files, and those that could not be read."""
        query = "SELECT sample, file, uuid, tree, start, stop FROM tasks WHERE state != ? ORDER BY uuid, start, stop"
        tasks: dict[str, list[Task]] = {}
        for row in self._all(query, _SPLIT):
            tasks.setdefault(row[2], []).append(self._task(*row))
        failures = {failure.task.uuid: failure for failure in self.failures()}
        files, unread = [], []
        for uuid, path, total in self._all("SELECT uuid, path, total FROM files ORDER BY rowid"):
            if not uuid.startswith(UNREAD):
                files.append(PlannedFile(path, total, tuple(tasks[uuid])))
            elif uuid in failures:
                unread.append(UnreadFile(path, failures[uuid], again=total == 0))
        return files, unread

    def retracted(self) -> list[UnreadFile]:
        """List the files that were retracted, and not planned anew since."""
        query = "SELECT path, body FROM files JOIN tasks USING (uuid) JOIN failures ON task = number WHERE uuid LIKE ?"
        files = [UnreadFile(path, self._failure(body)) for path, body in self._all(query, f"{UNREAD}%")]
        return [file for file in files if file.failure.reason == _RETRACTED]

    def blocks(self, numbers: Sequence[int] | None = None, template: int | None = None) -> dict[str, Blocks]:
        """Sum up what was merged, of each of the spec's samples.

        All of it, or the partials of some numbers; all templates, or one alone (``Shape.only``).
        """
        shape = self._shape if template is None else self._shape.only(template)
        sums = {sample.name: Blocks.zeros(shape) for sample in self.spec.release.samples}
        with _explained(self.path):
            some = "" if numbers is None else "WHERE task IN (SELECT value FROM json_each(?))"
            query = f"SELECT sample, blocks FROM partials JOIN tasks ON number = task {some} ORDER BY task"  # noqa: S608
            rows = self._db.execute(query, () if numbers is None else (json.dumps(list(numbers)),))
            for sample, group in groupby(rows, key=itemgetter(0)):  # few groups: tasks were planned by sample
                try:
                    sums[sample] += Blocks.total(map(itemgetter(1), group), self._shape, template)
                except ValueError as error:
                    raise LedgerError(f"{self.path}: a partial of {sample} is damaged: {error}") from error
        return sums

    def cost(self) -> Cost:
        """Add up what all that was merged took."""
        sums = ", ".join(f"COALESCE(SUM({field.name}), 0)" for field in fields(Cost))
        return Cost(*self._one(f"SELECT {sums} FROM partials"))  # noqa: S608 (of names of our own)

    def merged(self) -> list[Merged]:
        """List what is in the sums, in the order in which it was committed."""
        names = ", ".join(field.name for field in fields(Cost))
        query = f"SELECT task, merged, {names} FROM partials ORDER BY merged, task"  # noqa: S608 (of names of our own)
        return [Merged(number, at, Cost(*cost)) for number, at, *cost in self._all(query)]

    def failures(self) -> list[Failure]:
        """All failures, in the order of files and entries."""
        failures = [self._failure(body) for (body,) in self._all("SELECT body FROM failures")]
        return sorted(failures, key=lambda failure: (failure.task.file, failure.task.start))

    def counts(self) -> Counts:
        """How far the run is."""
        (events,) = self._one("SELECT COALESCE(SUM(events), 0) FROM partials")
        (duplicates,) = self._one("SELECT duplicates FROM run")
        return self.tally()._replace(events=events, duplicates=duplicates)

    def tally(self) -> Counts:
        """How far the run is by its tasks alone, which is seen soon: not what events they had."""
        by_state = dict(self._all("SELECT state, COUNT(*) FROM tasks WHERE state != ? GROUP BY state", _SPLIT))
        return Counts(sum(by_state.values()), by_state.get(_MERGED, 0), by_state.get(_FAILED, 0))

    def entries(self) -> dict[str, Entries]:
        """Add up the entries of each sample."""
        query = "SELECT sample, SUM(planned), SUM(total) FROM files WHERE uuid NOT LIKE ? GROUP BY sample"
        return {name: Entries(planned, held) for name, planned, held in self._all(query, f"{UNREAD}%")}

    def unopened(self) -> dict[str, int]:
        """Count the files of each sample, where there are some, of which nobody knows how many entries they have."""
        return dict(self._all("SELECT sample, COUNT(*) FROM files WHERE total IS NULL GROUP BY sample"))

    def wished(self) -> Wish:
        """Tell what the run's user wants of it."""
        return self._one("SELECT wish FROM run")[0]  # type: ignore[no-any-return]

    def wall_s(self) -> float:
        """Wall-clock seconds that the run took so far, over all its starts."""
        return float(self._one("SELECT wall_s FROM run")[0])

    def _all(self, query: str, *parameters: object) -> list[Any]:
        with _explained(self.path):
            return self._db.execute(query, parameters).fetchall()

    def _one(self, query: str, *parameters: object) -> Any:  # noqa: ANN401 (a row of what the query asks for)
        return self._all(query, *parameters)[0]


def _row(task: Task) -> tuple[str | int, ...]:
    """Lay a task out as ``_NEW_TASK`` has it."""
    return task.task_id, task.sample, task.file, task.uuid, task.tree, task.start, task.stop


def _tile(task: Task, parts: Sequence[Task]) -> bool:
    """Tell whether parts, each smaller than the task and none of them empty, make it up in this order."""
    borders = [task.start, *(part.stop for part in parts)]
    return (
        len(parts) > 1
        and borders[-1] == task.stop
        and all(part.start == border < part.stop for part, border in zip(parts, borders, strict=False))
        and all(
            (part.spec, part.sample, part.uuid, part.tree) == (task.spec, task.sample, task.uuid, task.tree)
            for part in parts
        )
    )


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_S, check_same_thread=False)
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    return database


def _maker(database: sqlite3.Connection) -> str:
    """Tell which hzzray made a ledger that is of another version than ours."""
    try:
        (version,) = database.execute("SELECT made_by FROM run").fetchone() or ("",)
    except sqlite3.OperationalError:  # it has no such column
        version = ""
    return f"hzzray {version}" if version else "an earlier hzzray"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the ledger in what SQLite or the disk says."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path}: {error}") from error
