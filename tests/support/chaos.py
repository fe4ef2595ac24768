"""Real processes to be killed: drivers attached to a cluster, the actors that Ray made, workers with faults."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import psutil

from hzzray.engine.actors import actor_class, start_reducer
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.pool import Pool
from hzzray.engine.source import MemorySource, TaskSource
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, HzzrayError, TransientError
from hzzray.messages import Cost, Counts, Partial, RunSpec, RunState, Task
from hzzray.physics.histogram import Blocks
from hzzray.runs.plan import make_plan
from hzzray.runs.run import Settings, execute
from tests.support.waiting import wait_for

#: For runs of which nobody looks at plots, and at one observable alone: each costs seconds of CPU.
FEW = ("--no-plot", "--observable", "m4l")

_COMMAND = (sys.executable, "-m", "hzzray", "run")


def actors(*kinds: str) -> list[psutil.Process]:
    """Processes of Ray actors, descendants of this process, by their class: Worker, Reducer."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[0] if process.status() != psutil.STATUS_ZOMBIE else ""
        except (psutil.Error, IndexError):
            continue
        if any(title.split(".")[0] == f"ray::{kind}" for kind in kinds):
            found.append(process)
    return found


def nothing_is_left() -> None:
    """Wait until no actor of a run is there any more."""
    wait_for("the actors' end", lambda: not actors("Worker", "Troubled", "Quick", "Reducer"), 60)


class Driver:
    """`hzzray run` in a process of its own, attached to a cluster; may be killed and started again."""

    def __init__(self, address: str, source: Path, runs: Path, run_id: str, *options: object) -> None:
        self.ledger = runs / run_id / "ledger.db"
        self._command = [*_COMMAND, "--source", source, "--runs", runs, "--run-id", run_id, *FEW, *options]
        self._said = runs / f"{run_id}.{id(self)}.log"
        self._env = {**os.environ, "RAY_ADDRESS": address, "COLUMNS": "200"}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, the first time or again."""
        with self._said.open("ab") as log:
            self._process = subprocess.Popen(list(map(str, self._command)), stdout=log, stderr=log, env=self._env)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def kill(self) -> None:
        """SIGKILL it."""
        self._process.kill()
        self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs, negative when it was killed."""
        return self._process.poll()

    def end(self, within: float = 120.0) -> int:
        """Wait for its exit code."""
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver goes on after {within:g} s: {self.said()[-2000:]}") from None

    def said(self) -> str:
        """Return all that it printed."""
        return self._said.read_text(encoding="utf-8")

    def counts(self) -> Counts:
        """How far its run is, from the ledger."""
        if not self.ledger.exists():
            return Counts(0, 0, 0)
        with Ledger.open(self.ledger) as ledger:
            return ledger.counts()

    def wait_until_merged(self, number: int, within: float = 90.0) -> None:
        """Wait until so many tasks are merged, or the driver ended."""
        wait_for("a ledger", lambda: self.code is not None or self.ledger.exists(), within)
        if self.code is not None:
            return
        with Ledger.open(self.ledger) as ledger:  # which takes ten times as long as the question
            wait_for(f"{number} merged tasks", lambda: self.code is not None or ledger.tally().merged >= number, within)


def check_ledger(path: Path, *, split: bool = False) -> int:
    """Check in a complete run's tables that each planned entry was merged once; returns how many tasks that took."""
    database = sqlite3.connect(path)
    try:
        merged = database.execute(
            "SELECT uuid, start, stop, events FROM tasks JOIN partials ON task = number WHERE state = 1"
            " ORDER BY uuid, start, stop"
        ).fetchall()
        (partials,) = database.execute("SELECT COUNT(*) FROM partials").fetchone()
        states = dict(database.execute("SELECT state, COUNT(*) FROM tasks GROUP BY state").fetchall())
        planned = dict(database.execute("SELECT uuid, planned FROM files").fetchall())
    finally:
        database.close()
    assert set(states) == ({1, 3} if split else {1}), states
    assert len(merged) == partials == states[1]
    assert sum(row[3] for row in merged) == sum(planned.values())
    for uuid, entries in planned.items():
        ranges = [(start, stop) for of, start, stop, _ in merged if of == uuid]
        assert ranges[0][0] == 0, uuid
        assert ranges[-1][1] == entries, uuid
        assert all(left[1] == right[0] for left, right in pairwise(ranges)), uuid
    return partials


#: The mark of tasks that came in one call.
TOGETHER = "together"


class Once:
    """Marks on disk that survive the death of the process: tells how often something has happened before."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def count(self, name: str) -> int:
        """Count one more; returns how many there were before."""
        mine = self._folder / name
        with mine.open("ab") as file:
            file.write(b".")
        return mine.stat().st_size - 1

    def seen(self, name: str) -> int:
        """How many there were."""
        mine = self._folder / name
        return mine.stat().st_size if mine.exists() else 0


class Troubled(Worker):
    """A worker with faults of its own: ``faults`` says by task id what happens to it.

    "die", "hang", "slow", "corrupt"; "flaky 3" fails three times; "hang 1", "slow 1" and "die 1" do so once.
    """

    def __init__(self, spec: RunSpec, source: str, name: str, faults: dict[str, str], marks: Path) -> None:
        super().__init__(spec, (source,), name)
        self._faults = faults
        self._marks = Once(marks)

    def process(self, task: Task) -> Partial:
        before = self._marks.count(task.task_id)
        fault, _, times = self._faults.get(task.task_id, "").partition(" ")
        if fault and before < int(times or sys.maxsize):
            match fault:
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hang":
                    # This thread itself is stopped; of a process' signal another one takes note, when it comes to it.
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
                case "slow":
                    time.sleep(3600)
                case "corrupt":
                    raise DataError(f"{task.file}: basket 7 is corrupt")
                case "flaky":
                    raise TransientError(f"{task.file}: the server said 503")
        return super().process(task)

    def process_all(self, tasks: Sequence[Task]) -> list[Partial | HzzrayError]:
        self._marks.count(TOGETHER)
        return super().process_all(tasks)


class Quick:
    """A worker that reads nothing and finds nothing, as fast as can be."""

    def __init__(self, spec: RunSpec, name: str) -> None:
        self._name = name
        self._packed = Blocks.zeros(spec.shape).pack()

    def usage(self) -> None:
        """Answer that it is alive."""

    def process(self, task: Task) -> Partial:
        return Partial(task, self._packed, Cost(wall_s=1e-4, events=task.entries), self._name)

    def process_all(self, tasks: Sequence[Task]) -> list[Partial]:
        return [self.process(task) for task in tasks]


def starter(plain: type, *given: object) -> Callable[[str], object]:
    """Make what a Pool starts its workers with; they get ``given`` with their name in the place of the ellipsis."""
    actor = actor_class(plain, "monitor").options(num_cpus=1, max_restarts=-1, max_task_retries=0)
    return lambda name: actor.remote(*(name if value is ... else value for value in given))


def oracle(folder: Path, source: Path, spec: RunSpec) -> str:
    """Digest that the serial engine gives; its run is written into a folder."""
    settings = Settings(runs=folder, run_id="serial", sources=(str(source),), engine="serial")
    result = execute(spec, settings, planned=lambda _: None, progress=lambda _: None)
    assert result.status == "complete"
    return result.digest


def pool_run(
    path: Path,
    start: Callable[[str], object],
    limits: Limits,
    *,
    progress: Callable[[Counts], None] = lambda _: None,
    meanwhile: Callable[[Pool], None] = lambda _: None,
    source: TaskSource | None = None,
) -> RunState:
    """Work on what is due in a ledger with workers of one's own."""
    import ray

    async def work() -> RunState:
        with Ledger.open(path) as ledger:
            reducer = start_reducer(ledger)
            pool = Pool(start, lambda: reducer, limits)
            meanwhile(pool)
            try:
                return await pool.run(source or MemorySource(ledger.due()), progress, ledger.counts())
            finally:
                ray.kill(reducer)

    return asyncio.run(work())


def plan_run(path: Path, spec: RunSpec, source: Path, chunk: int) -> list[Task]:
    """Write a ledger with a plan; returns its tasks."""
    plan = make_plan(spec, path.parent.name, (str(source),), chunk=chunk)
    Ledger.create(path, path.parent.name, spec, "test").close()
    with Ledger.open(path) as ledger:
        ledger.plan(plan.files)
    return list(plan.tasks)
