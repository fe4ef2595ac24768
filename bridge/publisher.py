"""Publishing so that nothing is lost: confirmed, many at a time, and again what was not confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import pika
from pika.channel import Channel

from bridge.connection import BrokerError, Link, Mailbox
from bridge.settings import BrokerSettings
from bridge.wire import Letter
from hzzray.retry import waits

log = logging.getLogger(__name__)

#: Letters that may wait for the broker's word at once.
WINDOW = 512

#: How long the broker may take nothing at all before a command gives up, in seconds.
PATIENCE_S = 120.0

_TELL_S = 1.0

# Waits before what the broker refused is sent again, in seconds.
_REFUSED_S = 0.1, 5.0


Progress = Callable[[int, int, str], None]
"""Is told how many messages the broker has, of how many, and why it takes none, if so."""


class PublishError(BrokerError):
    """Something was not published. What was, need not be taken back: publishing again is harmless."""


@dataclass(eq=False, slots=True)
class _Sending:
    """A letter on its way; ``returned`` says why the broker could not route it, if so."""

    letter: Letter
    confirmed: asyncio.Future[None]
    returned: str | None = None


class Publisher:
    """Publishes letters over a link, each until the broker has it for good. Used in the event loop that made it.

    A letter may arrive twice when the connection is lost at the wrong moment, never not at all: its future is done when
    the broker has confirmed it. What the broker refuses (a full queue, one that isn't there) is sent again with
    growing waits, for as long as the caller has patience: ``trouble`` says why nothing moves.
    """

    def __init__(self, link: Link, window: int = WINDOW) -> None:
        self._link = link
        self._window = window
        self._waiting: deque[_Sending] = deque()
        self._pumping = False
        self._done = Mailbox(_confirm)
        self._progress = time.monotonic()
        self._closed = "no connection yet"
        self._blocked = ""
        self._refused = ""
        # On the link's thread:
        self._channel: Channel | None = None
        self._number = 0
        self._in_flight: dict[int, _Sending] = {}
        self._waits = waits(*_REFUSED_S)
        self._held = False
        link.add(self)

    def publish(self, letter: Letter) -> asyncio.Future[None]:
        """Publish a letter; what is returned is done when the broker has it.

        Cancel it to withdraw a letter that has not been sent yet.
        """
        if not self.unconfirmed:
            self._progress = time.monotonic()
        confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Sending(letter, confirmed))
        if not self._pumping:
            self._pumping = True
            self._link.call(self._pump)
        return confirmed

    @property
    def unconfirmed(self) -> int:
        """How many letters the broker has not confirmed."""
        return len(self._waiting) + len(self._in_flight)

    async def settled(self) -> None:
        """Wait until the broker has confirmed all that was published before."""
        waiting = [sending.confirmed for sending in (*self._waiting, *self._in_flight.values())]
        if waiting:
            await asyncio.wait(waiting)

    @property
    def silent_s(self) -> float:
        """Seconds since the broker confirmed something."""
        return time.monotonic() - self._progress

    @property
    def trouble(self) -> str:
        """Why letters don't get through; empty where nothing is known to be wrong."""
        return self._closed or self._blocked or self._refused

    # On the link's thread.

    def opened(self, channel: Channel) -> None:
        """Take a channel, and send what waits once it confirms."""

        def ready(_: Any) -> None:  # noqa: ANN401 (pika's frame)
            self._channel, self._number, self._held = channel, 0, False
            self._closed = ""
            self._pump()

        channel.connection.add_on_connection_blocked_callback(self._block)
        channel.connection.add_on_connection_unblocked_callback(self._unblock)
        channel.add_on_return_callback(self._returned)
        channel.confirm_delivery(self._told, callback=ready)

    def closed(self, reason: str) -> None:
        """Keep what was not confirmed, to send it again in the order that it had."""
        self._closed = f"no connection: {reason}"
        self._channel = None
        self._blocked = ""
        self._again(list(self._in_flight.values()))
        self._in_flight.clear()

    def _again(self, sendings: list[_Sending]) -> None:
        self._waiting.extendleft(reversed(sendings))

    def _pump(self) -> None:
        """Send what waits, as far as the window goes."""
        self._pumping = False
        channel = self._channel
        while (
            self._waiting
            and channel is not None
            and channel.is_open
            and not self._blocked
            and not self._held
            and len(self._in_flight) < self._window
        ):
            sending = self._waiting.popleft()
            if sending.confirmed.cancelled():
                continue
            letter = sending.letter
            self._number += 1
            sending.returned = None
            self._in_flight[self._number] = sending
            channel.basic_publish(letter.exchange, letter.key, letter.body, letter.properties, letter.mandatory)

    def _told(self, frame: Any) -> None:  # noqa: ANN401 (pika's frame)
        """Take note that the broker has, or refuses, a letter or all up to one."""
        tag, is_ack = frame.method.delivery_tag, isinstance(frame.method, pika.spec.Basic.Ack)
        numbers = list(takewhile(tag.__ge__, self._in_flight)) if frame.method.multiple else [tag]
        refused = []
        for sending in [self._in_flight.pop(number) for number in numbers]:
            if is_ack and sending.returned is None:
                self._done.put(sending)
            else:
                refused.append(sending)
        if len(refused) < len(numbers):
            self._progress = time.monotonic()
            self._refused = ""
            self._waits = waits(*_REFUSED_S)
        if refused:
            self._refuse(refused)
        self._pump()

    def _refuse(self, refused: list[_Sending]) -> None:
        """Send again later what the broker would not take."""
        letter = refused[0].letter
        reason = refused[0].returned or "the queue is full"
        self._refused = f"refused by {letter.exchange or 'queue'} {letter.key}: {reason}"
        self._again(refused)
        if not self._held:
            self._held = True
            wait = next(self._waits)
            log.warning("%s; sending again in %.1f s", self._refused, wait)
            self._link.later(wait, self._release)

    def _release(self) -> None:
        self._held = False
        self._pump()

    def _returned(self, _: Channel, method: Any, properties: pika.BasicProperties, __: bytes) -> None:  # noqa: ANN401
        """Mark a letter that no queue took; its confirmation follows."""
        for sending in self._in_flight.values():
            letter = sending.letter
            same = letter.exchange, letter.key, letter.properties.message_id
            if sending.returned is None and same == (method.exchange, method.routing_key, properties.message_id):
                sending.returned = f"no queue takes it ({method.reply_text})"
                return

    def _block(self, _: object, frame: Any) -> None:  # noqa: ANN401
        self._blocked = f"the broker takes nothing for now: {frame.method.reason}"
        log.warning("%s", self._blocked)

    def _unblock(self, *_: object) -> None:
        self._blocked = ""
        log.info("the broker takes messages again")
        self._pump()


def _confirm(sending: _Sending) -> None:
    if not sending.confirmed.done():
        sending.confirmed.set_result(None)


@contextlib.asynccontextmanager
async def connected(broker: BrokerSettings, name: str, within_s: float = PATIENCE_S) -> AsyncIterator[Publisher]:
    """Have a publisher for a while, over a connection of its own; raises BrokerError where there is no broker."""
    link = Link(broker, name)
    publisher = Publisher(link)
    try:
        await link.start(within_s)
        yield publisher
    finally:
        await link.stop()


async def send(
    publisher: Publisher,
    letters: Iterable[Letter],
    number: int,
    what: str,
    *,
    progress: Progress = lambda *_: None,
    patience_s: float | None = None,
) -> None:
    """Publish letters, ``WINDOW`` at a time; when this returns, the broker has them all.

    Raises PublishError, which says how many of the ``number`` it has, when it took none for ``patience_s``.
    """
    sent = confirmed = 0
    moved = asyncio.Event()
    told = time.monotonic()

    def landed(_: object) -> None:
        nonlocal confirmed
        confirmed += 1
        moved.set()

    async def wait() -> None:
        nonlocal told
        moved.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(moved.wait(), _TELL_S)
        if time.monotonic() - told > _TELL_S:
            told = time.monotonic()
            progress(confirmed, number, publisher.trouble)
        if patience_s is not None and publisher.silent_s > patience_s:
            raise PublishError(
                f"{what}: {number - confirmed} of {number} messages were not published: the broker took nothing for "
                f"{patience_s:g} s ({publisher.trouble or 'it gives no answer'}); try again, that is harmless"
            )

    for letter in letters:
        while sent - confirmed >= WINDOW:
            await wait()
        publisher.publish(letter).add_done_callback(landed)
        sent += 1
    while confirmed < sent:
        await wait()
    progress(confirmed, number, "")
