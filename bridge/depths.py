"""How many messages wait in queues, asked of the broker again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pika.channel import Channel

from bridge.connection import Link


class Depths:
    """Knows how many messages wait in some queues, about ``every_s`` seconds ago. May be asked by any thread."""

    def __init__(self, link: Link, queues: Sequence[str], every_s: float = 1.0) -> None:
        self._link = link
        self._queues = queues
        self._every_s = every_s
        self._ready: Mapping[str, int] = {}
        self._at = -float("inf")
        link.add(self)

    @property
    def age_s(self) -> float:
        """Seconds since the broker told."""
        return time.monotonic() - self._at

    def __getitem__(self, queue: str) -> int:
        """Messages that wait in a queue; 0 before the first answer."""
        return self._ready.get(queue, 0)

    # On the link's thread.

    def opened(self, channel: Channel) -> None:
        """Begin to ask."""
        self._ask(channel, {})

    def closed(self, reason: str) -> None:
        """Nothing is known for now: a queue isn't there, or the broker."""

    def _ask(self, channel: Channel, known: dict[str, int]) -> None:
        if not channel.is_open:
            return
        if len(known) == len(self._queues):
            self._ready, self._at = known, time.monotonic()
            self._link.later(self._every_s, lambda: self._ask(channel, {}))
            return
        queue = self._queues[len(known)]

        def told(frame: Any) -> None:  # noqa: ANN401 (pika's frame)
            self._ask(channel, {**known, queue: frame.method.message_count})

        channel.queue_declare(queue, passive=True, callback=told)
