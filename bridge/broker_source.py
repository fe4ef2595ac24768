"""The tasks of one run as a broker delivers them: a TaskSource whose answers reach the broker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bridge.consumer import Delivery
from bridge.settlement import Settlement
from bridge.verdict import Ack, Committed, Failed, GivenUp, Keep, Known, Offer, Split, Verdict, decide
from bridge.wire import TaskMessage
from hzzray.engine.source import Congestion
from hzzray.messages import Failure, Task


@dataclass(eq=False, slots=True)
class _Held:
    """A task that is here, and all deliveries of it: one, but for duplicates; none, if the connection was lost."""

    message: TaskMessage
    deliveries: list[Delivery] = field(default_factory=list)
    is_out: bool = False


class BrokerSource:
    """Tasks of one run that were delivered, until the broker is told what became of them. Lives in the event loop."""

    def __init__(self, settlement: Settlement, congestion: Callable[[], Congestion]) -> None:
        self._settlement = settlement
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

    def release(self, known: Known, *, all_of_it: bool = True) -> bool:
        """Settle what is here, all of it or what nobody works on; tells whether something went that is still due."""
        going = [held for held in self._held.values() if all_of_it or not held.is_out]
        verdicts = [self._settle(held, known) for held in going]
        self._queue = deque(task for task in self._queue if task.task_id in self._held)
        self._idle_since = time.monotonic()
        return Ack(is_due=True) in verdicts

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
        self._settle(self._held[task.task_id], Committed())

    def retry(self, task: Task, attempts: int = 0) -> None:
        """Put a task off that failed; deliver it again at once where it is not to blame."""
        self._settle(self._held[task.task_id], Failed(attempts))

    def reject(self, failure: Failure) -> None:
        """Turn all deliveries of a task into dead letters."""
        self._settle(self._held[failure.task.task_id], GivenUp(failure))

    def split(self, task: Task, parts: Sequence[Task]) -> None:
        """Publish parts instead of a task."""
        self._settle(self._held[task.task_id], Split(tuple(parts)))

    def _settle(self, held: _Held, known: Known) -> Verdict:
        """Decide on a task that is here, and carry that out."""
        verdict, task = decide(held.message, known), held.message.task
        if isinstance(verdict, Offer) and held.deliveries:
            held.is_out = False
            self._queue.appendleft(task)
            self._changed.set()
        elif not isinstance(verdict, Keep):
            del self._held[task.task_id]
            if not self._held:
                self._idle_since = time.monotonic()
                self._changed.set()
            self._settlement.settle(verdict, held.deliveries)
        return verdict
