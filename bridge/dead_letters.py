"""Dead letters: seen, and sent on their way again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bridge.connection import BrokerError, Link
from bridge.consumer import Consumer, Delivery
from bridge.publisher import Publisher, send
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import ATTEMPTS, REASON, RUN, Refusal, TaskMessage, is_count, one_line, read_task, task_letter
from hzzray.messages import Task

log = logging.getLogger(__name__)

#: Dead letters that are looked at in one go: what the broker hands out without an answer.
MOST = 65_535

_CALM_S = 1.0
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A message that was dead-lettered, and why. ``message`` is None of what was no task."""

    reason: str
    attempts: int
    run_id: str
    message: TaskMessage | None


def read_dead(delivery: Delivery) -> DeadLettered:
    """Read a dead letter; the broker's own say why in its terms."""
    headers = delivery.properties.headers or {}
    message = read_task(delivery.body, delivery.properties)
    task = None if isinstance(message, Refusal) else message
    attempts = headers.get(ATTEMPTS)
    return DeadLettered(
        reason=one_line(
            str(headers.get(REASON) or f"given up by the broker: {headers.get('x-first-death-reason', 'unknown')}")
        ),
        attempts=attempts if is_count(attempts) else 0,
        run_id=one_line(str(headers.get(RUN) or (task.task.run_id if task else ""))),
        message=task,
    )


async def dead_letters(
    broker: BrokerSettings, topology: Topology, wanted: Callable[[DeadLettered], bool]
) -> list[DeadLettered]:
    """Look at the dead letters that are wanted; they stay where they are. Raises BrokerError."""
    async with _dead_queue(broker, topology, wanted) as queue:
        return [letter for _, letter in queue.found]


async def replay(
    broker: BrokerSettings,
    topology: Topology,
    wanted: Callable[[DeadLettered], bool],
    others: Iterable[Task] = (),
    settled: Callable[[Task], bool] = lambda _: False,
) -> int:
    """Publish the tasks of dead letters again, and ``others`` that failed; returns how many.

    Letters leave the dead once their tasks are published, or ``settled`` says that there is nothing to be done for
    them. Raises BrokerError, and PublishError when the broker doesn't take them.
    """
    async with _dead_queue(broker, topology, wanted) as queue:
        tasks = {task.task_id: TaskMessage(task, replay=True) for task in others}
        for _, letter in queue.found:
            if letter.message is not None and not settled(letter.message.task):
                task = letter.message.task
                tasks[task.task_id] = TaskMessage(task, replay=True)
        letters = (task_letter(topology, message) for message in tasks.values())
        await send(queue.publisher, letters, len(tasks), "replay", patience_s=_PATIENCE_S)
        for delivery, letter in queue.found:
            if letter.message is not None:
                queue.consumer.ack(delivery)
    return len(tasks)


class _DeadQueue:
    """The dead letters that are wanted. Those that aren't acknowledged stay where they are."""

    def __init__(self, link: Link, topology: Topology, wanted: Callable[[DeadLettered], bool]) -> None:
        self._wanted = wanted
        self.found: list[tuple[Delivery, DeadLettered]] = []
        self.consumer = Consumer(link, topology.dead.name, self._take, self._leave, prefetch=MOST)
        self.publisher = Publisher(link)

    def _take(self, delivery: Delivery) -> None:
        letter = read_dead(delivery)
        if self._wanted(letter):
            self.found.append((delivery, letter))

    def _leave(self, _: Delivery, error: Exception) -> None:
        log.error("a dead letter is left alone: it can't be handled", exc_info=error)


@asynccontextmanager
async def _dead_queue(
    broker: BrokerSettings, topology: Topology, wanted: Callable[[DeadLettered], bool]
) -> AsyncIterator[_DeadQueue]:
    """Hold the dead letters for a while."""
    link = Link(broker, "hzzray dead letters")
    queue = _DeadQueue(link, topology, wanted)
    try:
        await link.start(broker.wait_s)
        await queue.consumer.calm(_CALM_S, _PATIENCE_S)
        if queue.consumer.trouble:
            raise BrokerError(f"no dead letters from {broker}: {queue.consumer.trouble}")
        yield queue
    finally:
        await link.stop()
