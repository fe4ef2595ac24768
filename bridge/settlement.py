"""Carries verdicts out towards the broker; no delivery is acknowledged before what stands for it is safe."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bridge.consumer import Consumer, Delivery
from bridge.publisher import Publisher
from bridge.topology import Topology
from bridge.verdict import Ack, DeadLetter, Keep, Offer, Replace, Requeue, Verdict
from bridge.wire import Letter, dead_letter, task_letter


class Settlement:
    """Settles deliveries of one consumer, and counts them. Dead letters have a publisher of their own."""

    def __init__(self, topology: Topology, consumer: Consumer, publisher: Publisher, dead_publisher: Publisher) -> None:
        self.topology = topology
        self.publisher = publisher
        self._consumer = consumer
        self._dead_publisher = dead_publisher
        self._unacked: dict[tuple[int, int], float] = {}
        #: Deliveries that came, and that were acknowledged, so far.
        self.delivered = 0
        self.acknowledged = 0

    @property
    def unacked(self) -> int:
        """Deliveries that are not acknowledged."""
        return len(self._unacked)

    @property
    def oldest_s(self) -> float:
        """Seconds since the task was taken that is held for the longest time."""
        return time.monotonic() - min(self._unacked.values()) if self._unacked else 0.0

    async def flushed(self) -> None:
        """Wait until the broker has confirmed all letters."""
        await self.publisher.settled()
        await self._dead_publisher.settled()

    def came(self, delivery: Delivery) -> None:
        """Take note of a delivery."""
        self.delivered += 1
        self._unacked[delivery[:2]] = time.monotonic()

    def lost(self) -> None:
        """Take note that all deliveries are void: the broker redelivers them."""
        self._unacked.clear()

    def settle(self, verdict: Verdict, deliveries: Sequence[Delivery]) -> None:
        """Carry out what was decided on all deliveries of a task. Where they are void, it comes again by itself."""
        match verdict:
            case Ack():
                self._publish_instead([], deliveries)
            case Requeue(message=message, tries=tries) if deliveries:
                queues = self.topology.retries
                queue = queues[-1] if tries is None else queues[min(max(tries, 1), len(queues)) - 1]
                self._publish_instead([task_letter(self.topology, message, queue)], deliveries)
            case Replace(parts=parts):
                self._publish_instead([task_letter(self.topology, part) for part in parts], deliveries)
            case DeadLetter():
                for delivery in deliveries:
                    self._dead_letter(verdict, delivery)
            case Requeue() | Offer() | Keep():
                pass  # the broker need not be told

    def _dead_letter(self, verdict: DeadLetter, delivery: Delivery) -> None:
        letter = dead_letter(
            self.topology,
            delivery.body,
            delivery.properties,
            reason=verdict.reason,
            attempts=verdict.attempts,
            run_id=verdict.run_id,
        )
        self._publish_instead([letter], [delivery], self._dead_publisher)

    def _publish_instead(
        self, letters: Sequence[Letter], deliveries: Sequence[Delivery], publisher: Publisher | None = None
    ) -> None:
        """Acknowledge deliveries once the broker has confirmed all letters that stand for them."""
        left = len(letters)

        def confirmed(_: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                for delivery in deliveries:
                    self._ack(delivery)

        for letter in letters:
            (publisher or self.publisher).publish(letter).add_done_callback(confirmed)
        if not letters:
            confirmed(None)

    def _ack(self, delivery: Delivery) -> None:
        if self._unacked.pop(delivery[:2], None) is not None:
            self.acknowledged += 1
            self._consumer.ack(delivery)
