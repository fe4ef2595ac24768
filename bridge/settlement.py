"""What becomes of deliveries: done, put off, replaced or given up; never before what stands for them is safe."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from bridge.consumer import Consumer, Delivery
from bridge.publisher import Outbox
from bridge.topology import Topology
from bridge.wire import Letter, TaskMessage, dead_letter, task_letter

log = logging.getLogger(__name__)


class Post:
    """Settles deliveries of one consumer, and counts them. ``graves`` takes the dead letters, ``outbox`` the others."""

    def __init__(self, topology: Topology, consumer: Consumer, outbox: Outbox, graves: Outbox) -> None:
        self.topology = topology
        self.outbox = outbox
        self._consumer = consumer
        self._graves = graves
        self._held: dict[tuple[int, int], float] = {}
        #: Deliveries that came, and that were acknowledged, so far.
        self.delivered = 0
        self.acknowledged = 0

    @property
    def held(self) -> int:
        """Deliveries that are not acknowledged."""
        return len(self._held)

    @property
    def oldest_s(self) -> float:
        """Seconds since the task was taken that is held for the longest time."""
        return time.monotonic() - min(self._held.values()) if self._held else 0.0

    async def settled(self) -> None:
        """Wait until the broker has confirmed all letters."""
        await self.outbox.settled()
        await self._graves.settled()

    def come(self, delivery: Delivery) -> None:
        """Take note of a delivery."""
        self.delivered += 1
        self._held[delivery[:2]] = time.monotonic()

    def lost(self) -> None:
        """Take note that all deliveries are void."""
        self._held.clear()

    def is_valid(self, delivery: Delivery) -> bool:
        """Whether a delivery can still be acknowledged; one that can't comes again."""
        return delivery[:2] in self._held

    def done(self, delivery: Delivery) -> None:
        """Acknowledge a delivery."""
        if self._held.pop(delivery[:2], None) is not None:
            self.acknowledged += 1
            self._consumer.ack(delivery)

    def retry(self, message: TaskMessage, deliveries: Sequence[Delivery]) -> None:
        """Put a task that failed off; for longer, the more often it did."""
        self._put_off(message, message.attempt, deliveries)

    def park(self, message: TaskMessage, deliveries: Sequence[Delivery]) -> None:
        """Put a task off for a while through no fault of its own."""
        self._put_off(message, len(self.topology.retries) - 1, deliveries)

    def put_off_stranger(self, message: TaskMessage, delivery: Delivery) -> None:
        """Put a task off whose run nobody knows; for longer, the more often it was."""
        again = replace(message, strange=message.strange + 1)
        self._put_off(again, again.strange, [delivery])

    def _put_off(self, message: TaskMessage, times: int, deliveries: Sequence[Delivery]) -> None:
        if not deliveries:
            return  # it comes again by itself
        queues = self.topology.retries
        queue = queues[min(max(times, 1), len(queues)) - 1]
        self.replace([task_letter(self.topology, message, queue)], deliveries)

    def replace(self, letters: Sequence[Letter], deliveries: Sequence[Delivery]) -> None:
        """Publish letters in the place of deliveries."""
        self._send(self.outbox, letters, deliveries)

    def bury(self, delivery: Delivery, reason: str, *, attempts: int = 0, run_id: str = "") -> None:
        """Give a delivery up: a dead letter says why."""
        letter = dead_letter(
            self.topology, delivery.body, delivery.properties, reason=reason, attempts=attempts, run_id=run_id
        )
        self._send(self._graves, [letter], [delivery])

    def refuse(self, delivery: Delivery, error: Exception) -> None:
        """Give a delivery up that can't be handled, for a reason that nobody thought of."""
        log.error("a message is given up: it can't be handled", exc_info=error)
        self.bury(delivery, f"it can't be handled: {type(error).__name__}: {error}")

    def _send(self, outbox: Outbox, letters: Sequence[Letter], deliveries: Sequence[Delivery]) -> None:
        left = len(letters)

        def confirmed(_: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                for delivery in deliveries:
                    self.done(delivery)

        for letter in letters:
            outbox.publish(letter).add_done_callback(confirmed)
        if not letters:
            confirmed(None)
