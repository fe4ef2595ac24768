"""The tables of a run's folder, appended to and followed while it goes on: use, pool, queues, findings.

``cpu.csv``, ``scale.csv``, ``queue.csv``, ``history.csv`` and ``events.csv``.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, get_type_hints

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hzzray.engine.events import Event
from hzzray.engine.monitor import NODE, SERVICE, Scale, Usage
from hzzray.engine.source import Congestion
from hzzray.files import OutputError, open_own

#: The tables' files.
USAGE, SCALE, QUEUE, HISTORY, EVENTS = "cpu.csv", "scale.csv", "queue.csv", "history.csv", "events.csv"

Rows = NDArray[np.void]
"""Rows of a file as a structured array of shape (rows,), its fields named as the file's columns."""


class Moment(NamedTuple):
    """What a run has found at some time: events read, their share of those to read, and what they signify.

    A row of ``history.csv``, with the numbers of ``Result.significance``; nan is a figure that is withheld.
    """

    events: int
    share: float
    n_signal: float
    n_background: float
    n_data: int
    notebook: float
    s_over_sqrt_b: float
    asimov: float
    asimov_sigma: float
    observed: float


_USAGE: dict[str, DTypeLike] = {
    "time_s": np.float64,
    "environment": np.str_,
    "actor": np.str_,
    "node": np.str_,
    "pid": np.int64,
    "state": np.str_,
    "sample": np.str_,
    "user_s": np.float64,
    "system_s": np.float64,
    "rss_bytes": np.int64,
    "events": np.int64,
    "bytes_read": np.int64,
    "read_s": np.float64,
    "tasks": np.int64,
    "actor_id": np.str_,
    "cpu_limit": np.float64,
    "memory_limit_bytes": np.int64,
    "hot_bytes": np.int64,
    "timestamp": np.str_,
}
_SCALE: dict[str, DTypeLike] = {
    "time_s": np.float64,
    "environment": np.str_,
    "actors": np.int64,
    "pending": np.int64,
    "nodes": np.int64,
    "waiting": np.int64,
    "in_flight": np.int64,
    "timestamp": np.str_,
}
_QUEUE: dict[str, DTypeLike] = {
    "time_s": np.float64,
    "environment": np.str_,
    **{name: np.dtype(kind) for name, kind in get_type_hints(Congestion).items()},
    "timestamp": np.str_,
}
_HISTORY: dict[str, DTypeLike] = {
    "time_s": np.float64,
    "environment": np.str_,
    **{name: np.dtype(kind) for name, kind in get_type_hints(Moment).items()},
    "timestamp": np.str_,
}
_EVENTS: dict[str, DTypeLike] = {
    "time_s": np.float64,
    "environment": np.str_,
    "at": np.float64,
    "kind": np.str_,
    "who": np.str_,
    "what": np.str_,
}
_COLUMNS = {USAGE: _USAGE, SCALE: _SCALE, QUEUE: _QUEUE, HISTORY: _HISTORY, EVENTS: _EVENTS}
# Files of earlier versions lack these: they are read as 0 or empty, and not written there.
_LATER = frozenset({"cpu_limit", "memory_limit_bytes", "hot_bytes", "timestamp"})
_EVENTS_BYTES = 1024**2  # of the file, after which no more is written
_TAIL_BYTES = 64 * 1024  # holds any last line
_ROW_BYTES = 128  # of a file, about
_GULP_BYTES = 8 * 1024**2  # of what is new in a table that is followed, read at a time
_TEXT = 256  # characters of a name in a table, at the most: each row of a table takes as much memory as the longest


def of_actors(rows: Rows) -> Rows:
    """Return the rows of worker actors."""
    return rows[~(np.char.startswith(rows["actor"], NODE) | np.char.startswith(rows["actor"], SERVICE))]


class Recorder:
    """Appends to a run's ``cpu.csv``, ``scale.csv`` and ``history.csv``, and keeps nothing. Use as a context manager.

    There is ``queue.csv`` too, of a run whose tasks come through a broker, and ``events.csv`` where something happened.

    ``time_s`` is the run's own clock: seconds that the run has been going, over all its starts, without the pauses
    between them. It goes on from ``started``, the seconds of earlier starts (the ledger's wall time), or from the last
    row where that is later: a driver that was killed told its ledger nothing. ``timestamp`` is when a row was written,
    by the wall clock, in UTC.

    A line that a kill cut short is removed before the next is written. Lines reach the system at once; a power cut may
    cost the last seconds of them.

    Raises OutputError where a file can't be written, or is not one of these.
    """

    def __init__(self, folder: Path, environment: str, started: float = 0.0) -> None:
        self._folder = folder
        self._environment = environment
        self._queue: _Appender | None = None
        self._events: _Appender | None = None
        self._told = 0.0
        self._usage = _Appender(folder / USAGE, _COLUMNS[USAGE])
        self._scale = _Appender(folder / SCALE, _COLUMNS[SCALE])
        self._history = _Appender(folder / HISTORY, _COLUMNS[HISTORY])
        #: The run's clock at the beginning of this start, in seconds.
        self.started = max(started, *(file.last_time for file in (self._usage, self._scale, self._history)))

    def add(self, time_s: float, usages: Iterable[Usage]) -> None:
        """Append what was used up to ``time_s`` seconds after this start."""
        self._usage.write([self._row(time_s, astuple(usage)) for usage in usages])

    def add_scale(self, time_s: float, scale: Scale) -> None:
        """Append how big the pool is."""
        self._scale.write([self._row(time_s, scale)])

    def add_history(self, time_s: float, moment: Moment) -> None:
        """Append what the run has found."""
        self._history.write([self._row(time_s, moment, digits=None)])

    def add_queue(self, time_s: float, congestion: Congestion) -> None:
        """Append how full the broker's queues are."""
        if self._queue is None:
            self._queue = _Appender(self._folder / QUEUE, _COLUMNS[QUEUE])
        self._queue.write([self._row(time_s, congestion)])

    def _row(self, time_s: float, values: tuple[Any, ...], digits: int | None = 3) -> tuple[Any, ...]:
        if digits is not None:
            values = tuple(round(value, digits) if isinstance(value, float) else value for value in values)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return (round(self.started + time_s, 3), self._environment, *values, now)

    def add_events(self, time_s: float, events: Iterable[Event]) -> None:
        """Append what happened that isn't there yet, as long as the file is small."""
        if self._events is None and events:
            known = follow(self._folder, EVENTS).rows()
            self._told = float(known["at"][-1]) if len(known) else 0.0  # in whole milliseconds, as they are written
            self._events = _Appender(self._folder / EVENTS, _COLUMNS[EVENTS])
        new = [event for event in events if round(event.at, 3) > self._told]
        if self._events is None or not new or self._events.size > _EVENTS_BYTES:
            return
        first = (round(self.started + time_s, 3), self._environment)
        self._events.write([(*first, f"{event.at:.3f}", *event[1:]) for event in new])
        self._told = round(new[-1].at, 3)

    def close(self) -> None:
        """Close the files."""
        for file in (self._usage, self._scale, self._history, self._queue, self._events):
            if file is not None:
                file.close()

    def __enter__(self) -> Self:
        """Use as a context manager closes the files."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Appender:
    """One CSV file that is only ever added to, by whole lines."""

    def __init__(self, path: Path, columns: dict[str, DTypeLike]) -> None:
        self._path = path
        header = _lines([tuple(columns)])
        self._kept = [True] * len(columns)
        try:
            self._file = open(path, "a+b", buffering=0, opener=_own)  # noqa: SIM115 (Path has no opener)
            self._end = _whole_lines(self._file)
            self._file.truncate(self._end)
            self._file.seek(0)
            if self._end:
                header = self._file.read(_TAIL_BYTES).split(b"\n", 1)[0] + b"\n"
                names = _columns(header, columns)
                if names is None:
                    self._file.close()
                    raise OutputError(f"{path}: its columns are others than this hzzray's; move it away")
                self._kept = [name in names for name in columns]
            self.last_time = self._last_time() if self._end > len(header) else 0.0
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}") from error
        if not self._end:
            self._append(header)

    def _last_time(self) -> float:
        self._file.seek(max(0, self._end - _TAIL_BYTES))
        last = self._file.read().splitlines()[-1]
        try:
            return float(last.split(b",", 1)[0])
        except ValueError as error:
            self._file.close()
            raise OutputError(f"{self._path}: its last line can't be read; move the file away") from error

    @property
    def size(self) -> int:
        return self._end

    def write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        self._append(_lines([list(compress(row, self._kept)) for row in rows]))

    def _append(self, lines: bytes) -> None:
        left = lines
        try:
            while left:  # a disk that fills up takes a part, and says why only at the next
                left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(self._end)
            raise OutputError(f"{self._path}: {error.strerror or error}") from error
        self._end += len(lines)

    def close(self) -> None:
        self._file.close()


def _own(path: str, flags: int) -> int:
    """Open a file that isn't a link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _lines(rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _columns(header: bytes, columns: dict[str, DTypeLike]) -> tuple[str, ...] | None:
    """Read a header: the names of ours that it has, in our order; None where it is not a table of ours."""
    found = header.decode(errors="replace").rstrip("\n").split(",")
    expected = tuple(name for name in columns if name in found or name not in _LATER)
    return expected if tuple(found) == expected else None


def _whole_lines(file: io.FileIO) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, io.SEEK_END)
    while end:
        start = max(0, end - _TAIL_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_usage(folder: Path) -> Rows:
    """Read a run's ``cpu.csv``, in the order of time; no rows where there is no file.

    Fields: time_s [s], environment, actor, node, pid, state, sample, user_s [s], system_s [s], rss_bytes, events,
    bytes_read, read_s [s], tasks, actor_id, cpu_limit [cores], memory_limit_bytes (a limit of 0 is none),
    hot_bytes (of rss_bytes, of an exploring session's worker), timestamp
    (UTC, ISO 8601). Files of earlier versions lack the last four: 0 or empty then. Raises
    OutputError for a file that is no such table. A last line that isn't whole is left out, so that the file of a run
    that goes on can be read at any time.
    """
    return follow(folder, USAGE).rows()


def read_scale(folder: Path) -> Rows:
    """Read a run's ``scale.csv`` as ``read_usage`` does its file.

    Fields: time_s [s], environment, and the numbers of actors that run, actors that are pending, nodes, tasks that
    wait, tasks in flight; timestamp.
    """
    return follow(folder, SCALE).rows()


def follow(folder: Path, table: str, limit: int | None = None) -> Follower:
    """Follow one of a run's tables, for a run that goes on; its rows are as those of ``read_usage``.

    ``HISTORY`` and ``QUEUE`` have time_s [s], environment, the fields of ``Moment`` (nan is a significance that isn't
    defined) or of ``hzzray.engine.source.Congestion``, and timestamp; of a run without a broker there is no ``QUEUE``.
    ``EVENTS`` tells what happened, in words.
    """
    return Follower(folder / table, _COLUMNS[table], limit)


class Follower:
    """Reads a table that grows: each time only what is new. Not for two threads at once.

    With a ``limit`` it keeps about that many of the last rows, and begins so near the end of a long file.
    """

    def __init__(self, path: Path, columns: dict[str, DTypeLike], limit: int | None = None) -> None:
        self._path = path
        self._columns = columns
        self._limit = limit
        self._header = _lines([tuple(columns)])
        self._names = tuple(columns)  # those that the file has
        self._file = 0, 0  # which it is: device and inode
        self._at = 0
        self._rows = self.none()

    def none(self) -> Rows:
        """Return a table without rows."""
        return self._table([], 0)

    def rows(self) -> Rows:
        """Return the rows there are now; raises OutputError for a file that is no such table."""
        try:
            with open_own(self._path) as file:
                about = os.fstat(file.fileno())
                if (about.st_dev, about.st_ino) != self._file or about.st_size < self._at:  # another file, or a new one
                    self._file, self._at, self._rows = (about.st_dev, about.st_ino), 0, self._rows[:0]
                self._read(file, about.st_size)
        except FileNotFoundError:
            self._at, self._rows = 0, self._rows[:0]
        except OSError as error:
            raise OutputError(f"{self._path}: {error.strerror or error}") from error
        return self._rows

    def _read(self, file: BinaryIO, size: int) -> None:
        if not self._at:
            header = file.readline(len(self._header))
            if not header.endswith(b"\n") and self._header.startswith(header):
                return  # not whole yet
            names = _columns(header, self._columns)
            if names is None:
                raise OutputError(f"{self._path}: its columns are not {', '.join(self._columns)}")
            self._names = names
            self._at = len(header)
            if self._limit and size - self._at > self._limit * _ROW_BYTES:
                file.seek(size - self._limit * _ROW_BYTES)
                self._at = file.tell() + len(file.readline(_TAIL_BYTES))
        file.seek(self._at)
        most = max(_GULP_BYTES, self._limit * _ROW_BYTES) if self._limit else size
        text = file.read(min(size - self._at, most))  # what is more comes the next time
        whole = text[: text.rfind(b"\n") + 1]
        if not whole and len(text) > _TAIL_BYTES:
            raise OutputError(f"{self._path}: a line of more than {_TAIL_BYTES // 1024} KiB")
        if whole:
            try:
                lines = list(csv.reader(io.StringIO(whole.decode(errors="replace"))))
            except csv.Error as error:
                raise OutputError(f"{self._path}: {error}") from error
            fresh = self._table(lines, len(self._rows))
            self._rows = np.concatenate([self._rows, fresh]) if len(self._rows) else fresh
            if self._limit and len(self._rows) > 2 * self._limit:
                self._rows = self._rows[-self._limit :].copy()
            self._at += len(whole)

    def _table(self, rows: Sequence[Sequence[str]], before: int) -> Rows:
        for number, row in enumerate(rows, start=before + 2):
            if len(row) != len(self._names):
                raise OutputError(f"{self._path}: line {number} has {len(row)} columns, not {len(self._names)}")
        values = dict(zip(self._names, zip(*rows, strict=True), strict=True)) if rows else {}
        arrays = {}
        for name, kind in self._columns.items():
            absent = ("" if np.dtype(kind).kind == "U" else "0",) * len(rows)
            arrays[name] = _column(self._path, name, kind, values.get(name, absent))
        table = np.empty(len(rows), [(name, array.dtype) for name, array in arrays.items()])
        for name, array in arrays.items():
            table[name] = array
        return table


def _column(path: Path, name: str, kind: DTypeLike, texts: Sequence[str]) -> NDArray[Any]:
    if max(map(len, texts), default=0) > _TEXT:
        raise OutputError(f"{path}: column {name} has a text of more than {_TEXT} characters")
    try:
        values = np.array(texts, np.str_).astype(kind)
    except ValueError as error:
        raise OutputError(f"{path}: column {name} has what is no number") from error
    except OverflowError as error:
        raise OutputError(f"{path}: column {name} has a number that is too large") from error
    if name == "time_s" and not np.isfinite(values).all():
        raise OutputError(f"{path}: column {name} has what is no time")
    return values


class CpuUse(NamedTuple):
    """CPU use of one actor: ``percent`` of one core, shape (n,), between the ``edges`` in seconds, shape (n + 1,)."""

    edges: NDArray[np.float64]
    percent: NDArray[np.float64]


def cpu_percent(rows: Rows) -> dict[str, CpuUse]:
    """CPU use over time of each actor, in per cent of one core, from rows of ``cpu.csv``.

    Between two samples of an actor it is 100 · Δ(user + system) / Δtime: a process with several busy threads is above
    100, and a node reaches 100 times its cores. The counters of a new process (another node or pid, or counters that
    fell) start from 0, at the last sample of the process before it; of an actor's first process, at the actor's first
    row if it was pending then, else at the start of the run. The integral over time is thus all the CPU that was seen;
    what a process used between its last sample and its death nobody saw.
    """
    actors, whose = np.unique(rows["actor"], return_inverse=True)
    order = np.argsort(whose, kind="stable")
    parts = np.split(rows[order], np.cumsum(np.bincount(whose, minlength=len(actors)))[:-1]) if len(rows) else []
    return {str(actor): _use(own) for actor, own in zip(actors, parts, strict=True) if np.any(own["pid"])}


def _use(rows: Rows) -> CpuUse:
    first, samples = rows[0], rows[rows["pid"] > 0]
    begun = first["time_s"] if first["pid"] == 0 else 0.0
    # Of samples at one time the last one counts: it has what the others had.
    samples = samples[np.append(np.diff(samples["time_s"]) > 0, True)]
    total = samples["user_s"] + samples["system_s"]
    used = np.diff(total, prepend=0.0)
    new = (samples["pid"][1:] != samples["pid"][:-1]) | (samples["node"][1:] != samples["node"][:-1]) | (used[1:] < 0)
    used[1:][new] = total[1:][new]
    edges = np.insert(samples["time_s"], 0, begun)
    spans = np.diff(edges)
    return CpuUse(edges, np.divide(100 * used, spans, out=np.zeros_like(used), where=spans > 0))
