"""Where tasks come from: a protocol that a broker's consumer meets too, and the embedded default, a queue in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from hzzray.messages import Failure, Task


class TaskSource(Protocol):
    """Delivers tasks and is told what became of each: exactly one of ack, retry, reject for every delivery."""

    async def get(self) -> Task | None:
        """Wait for the next task; None when there will be no more."""

    def ack(self, task: Task) -> None:
        """Take note that the task's result is committed."""

    def retry(self, task: Task) -> None:
        """Take back a task that failed in a way that may pass, to deliver it again."""

    def reject(self, failure: Failure) -> None:
        """Take note that the task is given up, and its failure committed."""


class MemorySource:
    """Tasks of one process, first in, first out. Ends when every task was acknowledged or rejected."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._waiting = deque(tasks)
        self._out = 0
        self._changed = asyncio.Event()

    async def get(self) -> Task | None:
        """Take the next task, or wait for one that comes back while others are being worked on."""
        while not self._waiting:
            if not self._out:
                return None
            self._changed.clear()
            await self._changed.wait()
        self._out += 1
        return self._waiting.popleft()

    def ack(self, task: Task) -> None:  # noqa: ARG002 (a queue in memory needs no name for what left it)
        """Forget a task whose result is committed."""
        self._done()

    def retry(self, task: Task) -> None:
        """Put a task at the end of the queue again."""
        self._waiting.append(task)
        self._done()

    def reject(self, failure: Failure) -> None:  # noqa: ARG002
        """Forget a task that was given up."""
        self._done()

    def _done(self) -> None:
        self._out -= 1
        self._changed.set()
