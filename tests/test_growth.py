"""A run as it grew: what stood at a moment, from the ledger, is what was told at that moment."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest

from hzzray.engine.ledger import LedgerError
from hzzray.engine.reducer import Reducer
from hzzray.errors import UsageError
from hzzray.runs import tables
from hzzray.runs.folder import RunFolder
from hzzray.runs.growth import Growth, on_the_clock
from hzzray.runs.result import Result, summarise
from hzzray.runs.tables import HISTORY, Recorder, follow
from hzzray.runs.templates import scaled, showing
from tests.support.ledgers import partial, start, tasks


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    """A run of five tasks a sample that nobody has begun."""
    start(tmp_path / "run" / "ledger.db", tasks(5), 5)
    return RunFolder(tmp_path / "run")


def told(result: Result) -> dict:
    """What is told of a run, but for its clock."""
    parts = result.model_dump(exclude={"digest", "cost"})
    return parts | {"edges": result.edges, "read": (result.cost.events, result.cost.cpu_s, result.cost.bytes_read)}


def grow(folder: RunFolder, observable: str) -> list[tuple[Result, Result]]:
    """Merge all samples' tasks by two, in no order; tells what stood after each commit, of two observables."""
    planned = tasks(5)
    order = [planned[i] for i in np.random.default_rng(5).permutation(len(planned))]
    reducer, stood = Reducer(folder.ledger_path), []
    for first in range(0, len(order), 2):
        reducer.merge([partial(one) for one in order[first : first + 2]])
        now = summarise(reducer.snapshot())
        stood.append((now, showing(now, scaled(now, reducer.tables()), observable)))
    reducer.close()
    return stood


@pytest.mark.parametrize("marks", [1, 4, 100])
def test_each_moment_is_what_was_told_then(folder, marks, monkeypatch):
    """Forward, backward and in leaps, of the first observable and of another one: to the last bit."""
    monkeypatch.setattr("hzzray.runs.growth._MARKS", marks)
    stood = grow(folder, "m12")
    growth = Growth(folder, follow(folder.path, HISTORY).rows())
    assert len(growth.times) == 15
    commits = np.unique(growth.times)
    assert len(commits) == len(stood) == 8
    for i in (2, 3, 7, 6, 0, 5, 1, 4):
        first, other = stood[i]
        assert told(growth.at(commits[i])) == told(first)
        assert told(growth.at(commits[i], "m12")) == told(other)
        between = growth.at((commits[i] + np.append(commits, commits[-1] + 2)[i + 1]) / 2)
        assert told(between) == told(first)
        assert between.cost.wall_s > commits[i]
    nothing = growth.at(0.0)
    assert nothing.tasks.merged == nothing.cost.events == sum(row.entries for row in nothing.samples.values()) == 0
    with pytest.raises(UsageError, match="no observable 'colour'; it has m4l"):
        growth.at(1.0, "colour")


def test_the_clock_stands_still_between_two_starts():
    """A row's time of day and the run's seconds; before the first row it runs as any clock."""
    rows = np.zeros(4, [("time_s", float), ("timestamp", "U30")])
    rows["time_s"] = (2.0, 4.0, 4.5, 6.5)
    rows["timestamp"] = [f"2026-05-0{day}T10:00:0{second}.000Z" for day, second in ((1, 2), (1, 4), (3, 0), (3, 2))]

    def at(day: int, second: float) -> float:
        return datetime(2026, 5, day, 10, tzinfo=UTC).timestamp() + second

    moments = [at(1, -5), at(1, 1), at(1, 3), at(1, 4), at(3, 0), at(3, 1), at(3, 9)]
    assert on_the_clock(moments, rows, at(1, 0)).tolist() == pytest.approx([0, 1, 3, 4, 4.5, 5.5, 6.5])
    rows["timestamp"] = ""  # of an earlier version
    assert on_the_clock([at(1, -1), at(1, 7)], rows, at(1, 0)).tolist() == [0, 7]


def test_its_clock_is_that_of_the_history(folder):
    grow(folder, "m12")
    with Recorder(folder.path, "local", started=100.0) as recorder:
        moment = tables.Moment(0, *(0.0,) * 3, 0, *(0.0,) * 5)
        recorder.add_history(0.0, moment)
    growth = Growth(folder, follow(folder.path, HISTORY).rows())
    assert ((growth.times > 90) & (growth.times <= 100)).all()


def test_what_is_not_there_is_told(folder, tmp_path):
    with pytest.raises(UsageError, match="nothing is merged"):
        Growth(folder, follow(folder.path, HISTORY).rows())
    with pytest.raises(UsageError, match="no such run"):
        Growth(RunFolder(tmp_path / "none"), follow(folder.path, HISTORY).rows())
    grow(folder, "m12")
    growth = Growth(folder, follow(folder.path, HISTORY).rows())
    with closing(sqlite3.connect(folder.ledger_path)) as database, database:
        database.execute("UPDATE partials SET blocks = x'00' WHERE task = 3")
    with pytest.raises(LedgerError, match=r"ledger.db: a partial of .* is damaged"):
        growth.at(growth.times[-1])
