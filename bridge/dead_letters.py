"""Dead letters: seen, and sent on their way again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bridge.connection import BrokerError, Link
from bridge.consumer import Consumer, Delivery
from bridge.loader import send
from bridge.publisher import Outbox
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
class DeadLetter:
    """What was given up, and why. ``message`` is None of what was no task."""

    reason: str
    attempts: int
    run_id: str
    message: TaskMessage | None


def read_dead(delivery: Delivery) -> DeadLetter:
    """Read a dead letter; the broker's own say why in its terms."""
    headers = delivery.properties.headers or {}
    message = read_task(delivery.body, delivery.properties)
    task = None if isinstance(message, Refusal) else message
    attempts = headers.get(ATTEMPTS)
    return DeadLetter(
        reason=one_line(
            str(headers.get(REASON) or f"given up by the broker: {headers.get('x-first-death-reason', 'unknown')}")
        ),
        attempts=attempts if is_count(attempts) else 0,
        run_id=one_line(str(headers.get(RUN) or (task.task.run_id if task else ""))),
        message=task,
    )


async def dead_letters(
    broker: BrokerSettings, topology: Topology, wanted: Callable[[DeadLetter], bool]
) -> list[DeadLetter]:
    """Look at the dead letters that are wanted; they stay where they are. Raises BrokerError."""
    async with _graveyard(broker, topology, wanted) as graveyard:
        return [letter for _, letter in graveyard.found]


async def replay(
    broker: BrokerSettings,
    topology: Topology,
    wanted: Callable[[DeadLetter], bool],
    others: Iterable[Task] = (),
    settled: Callable[[Task], bool] = lambda _: False,
) -> int:
    """Publish the tasks of dead letters again, and ``others`` that failed; returns how many.

    Letters leave the dead once their tasks are published, or ``settled`` says that there is nothing to be done for
    them. Raises BrokerError, and PublishError when the broker doesn't take them.
    """
    async with _graveyard(broker, topology, wanted) as graveyard:
        tasks = {task.task_id: TaskMessage(task, replay=True) for task in others}
        for _, letter in graveyard.found:
            if letter.message is not None and not settled(letter.message.task):
                task = letter.message.task
                tasks[task.task_id] = TaskMessage(task, replay=True)
        letters = (task_letter(topology, message) for message in tasks.values())
        await send(graveyard.outbox, letters, len(tasks), "replay", patience_s=_PATIENCE_S)
        for delivery, letter in graveyard.found:
            if letter.message is not None:
                graveyard.consumer.ack(delivery)
    return len(tasks)


class _Graveyard:
    """The dead letters that are wanted. Those that aren't acknowledged stay where they are."""

    def __init__(self, link: Link, topology: Topology, wanted: Callable[[DeadLetter], bool]) -> None:
        self._wanted = wanted
        self.found: list[tuple[Delivery, DeadLetter]] = []
        self.consumer = Consumer(link, topology.dead.name, self._take, self._leave, prefetch=MOST)
        self.outbox = Outbox(link)

    def _take(self, delivery: Delivery) -> None:
        letter = read_dead(delivery)
        if self._wanted(letter):
            self.found.append((delivery, letter))

    def _leave(self, _: Delivery, error: Exception) -> None:
        log.error("a dead letter is left alone: it can't be handled", exc_info=error)


@asynccontextmanager
async def _graveyard(
    broker: BrokerSettings, topology: Topology, wanted: Callable[[DeadLetter], bool]
) -> AsyncIterator[_Graveyard]:
    """Hold the dead letters for a while."""
    link = Link(broker, "hzzray dead letters")
    graveyard = _Graveyard(link, topology, wanted)
    try:
        await link.start(broker.wait_s)
        await graveyard.consumer.calm(_CALM_S, _PATIENCE_S)
        if graveyard.consumer.trouble:
            raise BrokerError(f"no dead letters from {broker}: {graveyard.consumer.trouble}")
        yield graveyard
    finally:
        await link.stop()
