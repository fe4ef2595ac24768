"""Where tasks come from: a protocol that a broker's consumer meets too, and the embedded default, a queue in memory."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

from hzzray.messages import Failure, Task


class TaskSource(Protocol):
    """Delivers tasks, and is told what became of each: exactly one of ack, retry, reject, split for every delivery.

    ``get`` has one caller at a time; the others never wait.
    """

    async def get(self) -> Task | None:
        """Wait for the next task; None when there will be no more."""

    def ack(self, task: Task) -> None:
        """Take note that the task's result is committed."""

    def retry(self, task: Task) -> None:
        """Take back a task that failed in a way that may pass, to deliver it again."""

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
        self._out = 0
        self._changed = asyncio.Event()

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

    def ack(self, task: Task) -> None:  # noqa: ARG002 (a queue in memory needs no name for what left it)
        """Forget a task whose result is committed."""
        self._done()

    def retry(self, task: Task) -> None:
        """Put a task at the front of the queue again."""
        self._again.append(task)
        self._done()

    def reject(self, failure: Failure) -> None:  # noqa: ARG002
        """Forget a task that was given up."""
        self._done()

    def split(self, task: Task, parts: Sequence[Task]) -> None:  # noqa: ARG002
        """Deliver parts instead of a task."""
        self._again.extend(parts)
        self._done()

    def _done(self) -> None:
        self._out -= 1
        self._changed.set()
