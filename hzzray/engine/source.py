"""Where tasks come from: a protocol that a broker's consumer meets too, and the embedded default, a queue in memory."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from hzzray.messages import Failure, Task


class Congestion(NamedTuple):
    """How full the queues are that tasks come through.

    Attributes
    ----------
    waiting, retrying, dead
        Messages of all runs that wait for a taker, that wait to be tried again, that were given up.
    held
        Messages that were taken and are not acknowledged.
    oldest_s
        Seconds since the task was taken that is held for the longest time.
    published_per_s, acked_per_s
        Messages that come and that are done with, a second.
    left_s
        Estimated time until the run has no task left, in seconds; nan where nothing can be said yet.
    """

    waiting: int
    retrying: int
    dead: int
    held: int
    oldest_s: float
    published_per_s: float
    acked_per_s: float
    left_s: float


class TaskSource(Protocol):
    """Delivers tasks, and is told what became of each: exactly one of ack, retry, reject, split for every delivery.

    ``get`` has one caller at a time; the others never wait.
    """

    def tried(self, task: Task) -> int:
        """Tell how often a task that was delivered had failed before, here or elsewhere, in a way that may pass."""

    def congestion(self) -> Congestion | None:
        """Tell how full the queues are that the tasks come from, where they are not the ledger itself."""

    async def get(self) -> Task | None:
        """Wait for the next task; None when there will be no more."""

    def ack(self, task: Task) -> None:
        """Take note that the task's result is committed."""

    def retry(self, task: Task, attempts: int = 0) -> None:
        """Take back a task, to deliver it again: after ``attempts`` that failed in a way that may pass, if any did."""

    def reject(self, failure: Failure) -> None:
        """Take note that the task is given up, and its failure committed."""

    def split(self, task: Task, parts: Sequence[Task]) -> None:
        """Take note that parts replace the task; deliver them."""


class MemorySource:
    """Tasks of one process, first in, first out. Ends when every task was acknowledged or rejected.

    Takes from ``tasks`` only what is asked for, so that a long plan needn't be in memory. ``interval_s`` is the least
    time between two tasks.
    """

    def __init__(self, tasks: Iterable[Task], *, interval_s: float = 0.0) -> None:
        self._planned = iter(tasks)
        self._interval_s = interval_s
        self._next = time.monotonic()
        self._again: deque[Task] = deque()
        self._tried: dict[str, int] = {}
        self._out = 0
        self._changed = asyncio.Event()

    def tried(self, task: Task) -> int:
        """Tell how often a task has failed."""
        return self._tried.get(task.task_id, 0)

    def congestion(self) -> None:
        """Tell nothing: what waits is in the ledger."""

    async def get(self) -> Task | None:
        """Take the next task, or wait for one that comes back while others are being worked on."""
        if (early := self._next - time.monotonic()) > 0:
            await asyncio.sleep(early)
        while True:
            task = self._again.popleft() if self._again else next(self._planned, None)
            if task is not None:
                self._out += 1
                self._next = time.monotonic() + self._interval_s
                return task
            if not self._out:
                return None
            self._changed.clear()
            await self._changed.wait()

    def ack(self, task: Task) -> None:
        """Forget a task whose result is committed."""
        self._done(task)

    def retry(self, task: Task, attempts: int = 0) -> None:
        """Put a task at the front of the queue again."""
        self._again.append(task)
        self._done(task)
        if attempts:
            self._tried[task.task_id] = attempts

    def reject(self, failure: Failure) -> None:
        """Forget a task that was given up."""
        self._done(failure.task)

    def split(self, task: Task, parts: Sequence[Task]) -> None:
        """Deliver parts instead of a task."""
        self._again.extend(parts)
        self._done(task)

    def _done(self, task: Task) -> None:
        self._tried.pop(task.task_id, None)
        self._out -= 1
        self._changed.set()
