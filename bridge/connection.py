"""Connections to the broker, each kept up on a thread of its own: heartbeats never wait for what else goes on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import pika
import pika.spec
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.exceptions import (
    AMQPError,
    ChannelClosed,
    ConnectionClosed,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from bridge.settings import BrokerSettings
from hzzray.errors import HzzrayError
from hzzray.retry import waits
from hzzray.urls import redact

log = logging.getLogger(__name__)
logging.getLogger("pika").setLevel(logging.CRITICAL)  # it tells of each failure five times; we tell it once

#: First and longest wait before a connection or a channel is tried again, in seconds.
BACK_OFF_S = 0.1, 10.0

# What stood for so long was well: when it is lost, the first wait is a short one again.
_WELL_S = 10.0
_CLOSE_S = 5.0

# Who waits is told of it at once, and again so often.
_TELL_S = 15.0

# How OpenSSL puts it: [SSL: NAME] what is wrong (_ssl.c:1006)
_TLS = re.compile(r"\[SSL: \w+\] (?P<what>.*?) ?\(_ssl\.c:\d+\)")

_NO_VHOST = "there is no such virtual host, or the user may not use it"

_T = TypeVar("_T")


class BrokerError(HzzrayError):
    """The broker can't be reached, or doesn't let us do what we must."""


class AwayError(BrokerError):
    """Nobody answers there, or not yet: another try may find a broker. Refused credentials are no such error."""


class Properties(pika.BasicProperties):  # type: ignore[misc]
    """A message's properties as they came. Where pika can't read them they are empty, and ``unreadable`` says why.

    A header of nan, of a time after the year 9999 or nested too deep would else end the connection each time that the
    message is delivered: for ever.
    """

    unreadable = ""

    def decode(self, encoded: bytes, offset: int = 0) -> Properties:
        """Read what a frame holds."""
        try:
            super().decode(encoded, offset)
        except Exception as error:  # noqa: BLE001 (whatever it is, it came over the wire)
            self.__dict__.update(vars(pika.BasicProperties()))  # of what was read before, nothing counts
            self.unreadable = f"{type(error).__name__}: {error}"
        return self


pika.spec.props[pika.BasicProperties.INDEX] = Properties  # where pika looks for what reads them


class Endpoint(Protocol):
    """Has a channel of a link: another one each time that it was lost. Called on the link's thread."""

    def opened(self, channel: Channel) -> None:
        """Take a channel that is open."""

    def closed(self, reason: str) -> None:
        """Take note that the channel is no more."""


class Mailbox(Generic[_T]):
    """Takes values in any thread, and hands them over in that of an event loop: many at a time, in order.

    Whatever handling one of them raises is logged; the others are handed over all the same.
    """

    def __init__(self, take: Callable[[_T], None]) -> None:
        """Make one for the event loop that runs; ``take`` is called in it."""
        self._loop = asyncio.get_running_loop()
        self._take = take
        self._values: deque[_T] = deque()
        self._called = False

    def put(self, value: _T) -> None:
        """Leave a value."""
        self._values.append(value)
        if not self._called:  # in this order, and taken back before the values are looked at: none is forgotten
            self._called = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._called = False
        while self._values:
            value = self._values.popleft()
            try:
                self._take(value)
            except Exception:  # a mistake of ours: what waits behind the value has no part in it
                log.exception("something that came can't be handled")


class Link:
    """A connection to the broker that is made again whenever it is lost, with channels for its endpoints.

    All of pika's objects live on its thread. From elsewhere, ``call`` brings a function there.
    """

    def __init__(self, broker: BrokerSettings, name: str) -> None:
        """Make one that is not started yet; ``name`` is what the broker's list of connections shows."""
        self.broker = broker
        self._parameters = broker.parameters(name)
        self._name = name
        self._ioloop = IOLoop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._endpoints: list[Endpoint] = []
        self._connection: pika.SelectConnection | None = None
        self._first: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._until = 0.0
        self._waits = waits(*BACK_OFF_S)
        self._since = 0.0
        self._stopping = False

    def add(self, endpoint: Endpoint) -> None:
        """Give an endpoint a channel, from the start on; before the start only."""
        self._endpoints.append(endpoint)

    async def start(self, within_s: float) -> None:
        """Connect for the first time.

        Raises BrokerError when there is no broker within so many seconds, or at once when it won't have us.
        """
        self._until = time.monotonic() + within_s
        self._thread.start()
        self.call(self._connect)
        await asyncio.wrap_future(self._first)

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called on the link's thread."""
        self._ioloop.add_callback_threadsafe(function)

    def later(self, wait_s: float, function: Callable[[], None]) -> None:
        """Have a function called after a while; from the link's thread only."""
        self._ioloop.call_later(wait_s, function)

    async def stop(self) -> None:
        """Close the connection and end the thread; what was written before still goes out."""
        if self._thread.is_alive():
            self.call(self._close)
            await asyncio.to_thread(self._thread.join)
        self._ioloop.close()

    # On the thread.

    def _run(self) -> None:
        while True:
            try:
                self._ioloop.start()
            except Exception:  # whatever it is, no thread that goes silently may take the bridge with it
                log.exception("%s: connecting anew after an unexpected error", self._name)
                self._drop()
            else:
                return

    def _drop(self) -> None:
        if not self._hang_up():
            self._later(self._connect)

    def _connect(self) -> None:
        if self._stopping or (self._connection is not None and not self._connection.is_closed):
            return
        self._connection = pika.SelectConnection(
            self._parameters,
            on_open_callback=self._opened,
            on_open_error_callback=self._failed,
            on_close_callback=self._lost,
            custom_ioloop=self._ioloop,
        )

    def _opened(self, _: pika.SelectConnection) -> None:
        self._since = time.monotonic()
        if not self._first.done():
            self._first.set_result(None)
        else:
            log.info("%s: connected again", self._name)
        for endpoint in self._endpoints:
            self._seat(endpoint, waits(*BACK_OFF_S))

    def _failed(self, _: pika.SelectConnection, error: BaseException) -> None:
        reason = explain(error)
        if self._stopping:
            self._ioloop.stop()
        elif self._first.done():
            self._later(self._connect, reason)
        elif is_final(error) or time.monotonic() > self._until:
            self._first.set_exception(BrokerError(f"no broker at {self.broker}: {reason}"))
            self._close()
        else:
            self._later(self._connect, reason)

    def _lost(self, _: pika.SelectConnection, error: BaseException) -> None:
        if self._stopping:
            self._ioloop.stop()
            return
        if time.monotonic() - self._since > _WELL_S:
            self._waits = waits(*BACK_OFF_S)
        self._later(self._connect, explain(error))

    def _later(self, function: Callable[[], None], reason: str = "") -> None:
        wait = next(self._waits)
        if reason:
            log.warning("%s: %s: %s; trying again in %.1f s", self._name, self.broker, reason, wait)
        self._ioloop.call_later(wait, function)

    def _seat(self, endpoint: Endpoint, pauses: Iterator[float]) -> None:
        """Open a channel for an endpoint, and again when it is closed while the connection stands."""
        connection = self._connection
        if connection is None or not connection.is_open or self._stopping:
            return
        since = time.monotonic()

        def closed(_: Channel, error: BaseException) -> None:
            if self._stopping:
                return
            endpoint.closed(explain(error))
            if connection.is_open:
                again = waits(*BACK_OFF_S) if time.monotonic() - since > _WELL_S else pauses
                self._ioloop.call_later(next(again), lambda: self._seat(endpoint, again))

        def opened(channel: Channel) -> None:
            channel.add_on_close_callback(closed)
            endpoint.opened(channel)

        connection.channel(on_open_callback=opened)

    def _close(self) -> None:
        self._stopping = True
        self._ioloop.call_later(_CLOSE_S, self._ioloop.stop)
        if not self._hang_up():
            self._ioloop.stop()

    def _hang_up(self) -> bool:
        """Begin to close the connection; False where there is none to be closed."""
        if self._connection is None or self._connection.is_closed:
            return False
        if not self._connection.is_closing:
            self._connection.close()
        return True


def awaited(broker: BrokerSettings, attempt: Callable[[], _T]) -> _T:
    """Call until no AwayError comes of it, for ``broker.wait_s`` seconds at the most; the last one goes through.

    That it waits, and for what, is said when it begins and whenever the reason changes.
    """
    until = time.monotonic() + broker.wait_s
    told, told_at = "", 0.0
    pauses = waits(*BACK_OFF_S)
    while True:
        try:
            return attempt()
        except AwayError as error:
            now = time.monotonic()
            if now >= until:
                raise
            if str(error) != told or now - told_at > _TELL_S:
                told, told_at = str(error), now
                log.warning("%s; waiting for it, %.0f s at the most", told, until - now)
            time.sleep(min(next(pauses), until - now))


def explain(error: BaseException) -> str:
    """Say in one line what the broker, or the way to it, had against it."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ConnectionClosed | ChannelClosed):
            return str(cause.reply_text)
        if _is_denial(cause):
            is_password = isinstance(cause, ProbableAuthenticationError)
            return "it refuses the user or the password" if is_password else _NO_VHOST
    said = [str(cause) for cause in causes if str(cause)]
    text = redact(" ".join(said[-1].split())) if said else type(error).__name__
    if tls := _TLS.search(text):
        return f"TLS: {tls['what']}"
    if any(isinstance(cause, IncompatibleProtocolError) for cause in causes):
        return f"nobody speaks AMQP there, or not yet, or it wants TLS or a client's certificate: {text}"
    return text


def _causes(error: BaseException) -> list[BaseException]:
    """Errors behind an error, outermost first: pika wraps them."""
    inner: Any = getattr(error, "exceptions", None) or getattr(error, "exception", None) or ()
    inner = inner if isinstance(inner, list | tuple) else [inner]
    if not inner and isinstance(error, AMQPError):
        inner = [arg for arg in error.args if isinstance(arg, BaseException)]
    return [error, *(cause for one in inner[-1:] for cause in _causes(one))]


def is_final(error: BaseException) -> bool:
    """Whether another try would end the same: wrong password, virtual host or certificate."""
    return any(_is_denial(cause) or _is_distrust(cause) for cause in _causes(error))


def _is_denial(error: BaseException) -> bool:
    # pika calls it so too when the connection breaks at that moment.
    guess = isinstance(error, ProbableAuthenticationError | ProbableAccessDeniedError)
    return guess and "ConnectionClosedByBroker" in str(error) and "is down" not in str(error)  # a vhost that starts


def _is_distrust(error: BaseException) -> bool:
    if isinstance(error, IncompatibleProtocolError):  # so pika calls it when the broker refuses our certificate
        return _TLS.search(str(error)) is not None
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
