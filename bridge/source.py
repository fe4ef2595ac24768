"""The tasks of one run as a broker delivers them: a TaskSource whose answers reach the broker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bridge.consumer import Delivery
from bridge.settlement import Post
from bridge.wire import TaskMessage, task_letter
from hzzray.engine.source import Congestion
from hzzray.messages import Failure, Task


@dataclass(eq=False, slots=True)
class _Held:
    """A task that is here, and all deliveries of it: one, but for duplicates; none, if the connection was lost."""

    message: TaskMessage
    deliveries: list[Delivery] = field(default_factory=list)
    is_out: bool = False


class RunSource:
    """Tasks of one run that were delivered, until the broker is told what became of them. Lives in the event loop."""

    def __init__(self, post: Post, congestion: Callable[[], Congestion]) -> None:
        self._post = post
        self._congestion = congestion
        self._held: dict[str, _Held] = {}
        self._queue: deque[Task] = deque()
        self._changed = asyncio.Event()
        self._idle_since = time.monotonic()

    @property
    def held(self) -> int:
        """Tasks that are here."""
        return len(self._held)

    @property
    def idle_s(self) -> float:
        """Seconds since there was a task here."""
        return 0.0 if self._held else time.monotonic() - self._idle_since

    async def offered(self, within_s: float) -> bool:
        """Wait until there is a task to be taken; False when none came, or ``wake`` was called."""
        if not self._queue:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), within_s)
        return bool(self._queue)

    def wake(self) -> None:
        """Let ``offered`` wait no longer."""
        self._changed.set()

    def offer(self, message: TaskMessage, delivery: Delivery) -> None:
        """Take in a task that is due."""
        held = self._held.get(message.task.task_id)
        if held is None:
            held = self._held[message.task.task_id] = _Held(message)
            self._queue.append(message.task)
            self._changed.set()
        held.deliveries.append(delivery)

    def lost(self) -> None:
        """Take note that all deliveries are void, and come again. What is being worked on goes on."""
        self._queue.clear()
        self._held = {name: held for name, held in self._held.items() if held.is_out}
        for held in self._held.values():
            held.deliveries.clear()

    def clear(self, settle: Callable[[TaskMessage, Sequence[Delivery]], None], *, all_of_it: bool = True) -> None:
        """Settle what is here in one way: all of it, or what nobody works on."""
        self._queue.clear()
        going = [held for held in self._held.values() if all_of_it or not held.is_out]
        for held in going:
            del self._held[held.message.task.task_id]
            settle(held.message, held.deliveries)
        self._idle_since = time.monotonic()

    # The protocol.

    def tried(self, task: Task) -> int:
        """Tell how often a task had failed when it was delivered."""
        return self._held[task.task_id].message.attempt

    def congestion(self) -> Congestion:
        """Tell how full the queues are."""
        return self._congestion()

    async def get(self) -> Task:
        """Wait for the next task, for ever: who has enough asks no more."""
        while not self._queue:
            self._changed.clear()
            await self._changed.wait()
        task = self._queue.popleft()
        self._held[task.task_id].is_out = True
        return task

    def ack(self, task: Task) -> None:
        """Acknowledge all deliveries of a task."""
        for delivery in self._leave(task).deliveries:
            self._post.done(delivery)

    def retry(self, task: Task, attempts: int = 0) -> None:
        """Put a task off that failed; deliver it again at once where it is not to blame."""
        held = self._held[task.task_id]
        if attempts or not held.deliveries:
            self._leave(task)
            if held.deliveries:
                self._post.retry(replace(held.message, attempt=attempts, replay=False), held.deliveries)
            return
        held.is_out = False
        self._queue.appendleft(task)
        self._changed.set()

    def reject(self, failure: Failure) -> None:
        """Turn all deliveries of a task into dead letters."""
        task = failure.task
        for delivery in self._leave(task).deliveries:
            self._post.bury(delivery, failure.reason, attempts=failure.attempts, run_id=task.run_id)

    def split(self, task: Task, parts: Sequence[Task]) -> None:
        """Publish parts instead of a task."""
        held = self._leave(task)
        letters = [
            task_letter(self._post.topology, TaskMessage(part, published=held.message.published)) for part in parts
        ]
        self._post.replace(letters, held.deliveries)

    def _leave(self, task: Task) -> _Held:
        held = self._held.pop(task.task_id)
        if not self._held:
            self._idle_since = time.monotonic()
            self._changed.set()
        return held
