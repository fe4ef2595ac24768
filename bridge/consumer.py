"""Consuming a queue: deliveries into an event loop, acknowledgements back, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pika
from pika.channel import Channel

from bridge.connection import Link, Mailbox

log = logging.getLogger(__name__)

Declare = Callable[[Channel, Callable[[str], None]], None]
"""Declares on a channel a queue to be consumed, then calls the function that it is given with the queue's name."""


class Delivery(NamedTuple):
    """A message as it came. ``generation`` is that of the channel: on another one, the tag is another message's."""

    generation: int
    tag: int
    body: bytes
    properties: pika.BasicProperties


class Consumer:
    """Consumes a queue over a link. Used in the event loop that made it; ``take`` is called there with each delivery.

    What ``take`` raises goes to ``refuse`` with the delivery, which is to settle it: none may keep a place for ever.

    At most ``prefetch`` deliveries are unacknowledged at a time. All are void once the channel is lost: the broker
    delivers them again, to whomever, and ``lost`` is called. A queue that is deleted is waited for.
    """

    def __init__(
        self,
        link: Link,
        queue: str | Declare,
        take: Callable[[Delivery], None],
        refuse: Callable[[Delivery, Exception], None],
        *,
        prefetch: int,
        lost: Callable[[], None] = lambda: None,
        arguments: Callable[[], Mapping[str, Any]] = dict,
        paused: bool = False,
    ) -> None:
        """Consume ``queue`` from when the link starts, unless ``paused``.

        ``arguments`` are asked for each time that consuming begins.
        """
        self._link = link
        self._queue = queue if isinstance(queue, str) else ""
        self._declare = None if isinstance(queue, str) else queue
        self._arguments = arguments
        self._take = take
        self._refuse = refuse
        self._lost = lost
        self._came: Mailbox[Delivery | None] = Mailbox(self._hand_over)  # None: what came before is void
        self._acks: deque[Delivery] = deque()
        self._flushing = False
        self._trouble = "no connection yet"
        # On the link's thread:
        self._prefetch = self._wanted = prefetch
        self._older = 0  # tags up to here were delivered before the prefetch was changed last
        self._stopped = paused
        self._channel: Channel | None = None
        self._generation = 0
        self._stirred = time.monotonic()
        self._tag: str | None = None
        self._out: dict[int, bool] = {}  # deliveries by tag, in their order: whether each is to be acknowledged
        link.add(self)

    def _hand_over(self, delivery: Delivery | None) -> None:
        if delivery is None:
            self._lost()
            return
        try:
            self._take(delivery)
        except Exception as error:  # noqa: BLE001 (whatever is in a message, it can't stop those behind it)
            self._refuse(delivery, error)

    @property
    def trouble(self) -> str:
        """Why nothing is consumed; empty where all is well."""
        return self._trouble

    @property
    def prefetch(self) -> int:
        """How many deliveries may be unacknowledged at a time."""
        return self._prefetch

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a delivery; one of an earlier channel is left alone, as it comes again."""
        self._acks.append(delivery)
        if not self._flushing:
            self._flushing = True
            self._link.call(self._flush)

    def resize(self, prefetch: int) -> None:
        """Change how many deliveries may be unacknowledged at a time.

        Those that are out don't count. Changed again, it waits until these are acknowledged, so that there are never
        more than before and after the change together.
        """

        def change() -> None:
            self._wanted = prefetch
            self._fit()

        self._link.call(change)

    async def calm(self, calm_s: float, within_s: float) -> None:
        """Wait until nothing has come for a moment: what waited in the queue is here then, as far as one can tell."""
        until = time.monotonic() + within_s
        while (now := time.monotonic()) < until and (self._trouble or now - self._stirred < calm_s):  # noqa: ASYNC110
            await asyncio.sleep(calm_s / 10)  # silence is no event

    def pause(self) -> None:
        """Take no more deliveries; those that are out can be acknowledged still."""
        self._link.call(self._stop)

    def resume(self) -> None:
        """Take deliveries again."""
        self._link.call(self._go_on)

    # On the link's thread.

    def opened(self, channel: Channel) -> None:
        """Take a channel: what came on the one before is void."""
        self._generation += 1
        self._channel = channel
        self._tag = None
        self._older = 0
        self._out = {}
        channel.add_on_cancel_callback(self._cancelled)
        if self._declare is None:
            self._consume(channel)
            return

        def declared(queue: str) -> None:
            self._queue = queue
            self._consume(channel)

        self._declare(channel, declared)

    def _consume(self, channel: Channel) -> None:
        if self._stopped or not channel.is_open:
            return
        self._prefetch = self._wanted
        self._older = next(reversed(self._out), 0)

        def begin(_: object) -> None:
            self._tag = channel.basic_consume(
                self._queue, self._deliver, arguments=dict(self._arguments()), callback=began
            )

        def began(_: object) -> None:
            if self._trouble:
                log.info("consuming %s", self._queue)
            self._trouble = ""
            self._stirred = time.monotonic()

        channel.basic_qos(prefetch_count=self._prefetch, callback=begin)

    def closed(self, reason: str) -> None:
        """Take note that deliveries that are out are void."""
        if self._trouble != reason and not self._stopped:
            log.warning("%s: not consumed for now: %s", self._queue, reason)
        self._trouble = reason
        self._channel = None
        self._tag = None
        self._out = {}
        self._generation += 1
        self._came.put(None)

    def _deliver(self, _: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:  # noqa: ANN401
        self._stirred = time.monotonic()
        self._out[method.delivery_tag] = False
        self._came.put(Delivery(self._generation, method.delivery_tag, body, properties))

    def _cancelled(self, _: object) -> None:
        """Begin anew on another channel: the queue was deleted, or is moving."""
        self._trouble = f"the broker cancelled the consumer of {self._queue}"
        log.warning("%s", self._trouble)
        if self._channel is not None and self._channel.is_open:
            self._channel.close(reply_text=self._trouble)

    def _flush(self) -> None:
        """Acknowledge what has gathered: all up to where nothing is missing at once, the others one by one."""
        self._flushing = False
        single = []
        while self._acks:
            delivery = self._acks.popleft()
            if delivery.generation == self._generation and delivery.tag in self._out:
                self._out[delivery.tag] = True
                single.append(delivery.tag)
        channel = self._channel
        if not single or channel is None or not channel.is_open:
            return
        last = 0
        for tag, is_done in self._out.items():
            if not is_done:
                break
            last = tag
        if last:
            channel.basic_ack(last, multiple=True)
        for tag in single:
            if tag > last:
                channel.basic_ack(tag)
        self._out = {tag: False for tag, is_done in self._out.items() if not is_done}
        self._fit()

    def _fit(self) -> None:
        """Begin to consume anew on the same channel where another prefetch is wanted: what is out stays so."""
        channel, tag = self._channel, self._tag
        if self._wanted == self._prefetch or next(iter(self._out), self._older + 1) <= self._older:
            return
        if channel is not None and channel.is_open and tag is not None:
            self._tag = None
            channel.basic_cancel(tag, callback=lambda _: self._consume(channel))

    def _go_on(self) -> None:
        self._stopped = False
        if self._channel is not None and self._queue and self._tag is None:
            self._consume(self._channel)

    def _stop(self) -> None:
        self._stopped = True
        channel, tag = self._channel, self._tag
        if channel is not None and channel.is_open and tag is not None:
            self._tag = None
            channel.basic_cancel(tag)
