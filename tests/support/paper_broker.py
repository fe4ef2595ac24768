"""A broker on paper: a link's channels in this process, with properties that go through pika's own bytes.

It keeps no time (what waits for another try is back at once), and delivers no more than a consumer's prefetch.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from types import SimpleNamespace

import pika
import pika.spec

from bridge.topology import Topology


class PaperBroker:
    """Queues by name, of messages as they are on the wire. Make links to it with ``link``."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self.queues: defaultdict[str, deque[tuple[bytes, bytes]]] = defaultdict(deque)
        self.channels: list[PaperChannel] = []

    def link(self, *_: object) -> PaperLink:
        """Stand in for a bridge's link."""
        return PaperLink(self)

    def put(self, queue: str, body: bytes, properties: pika.BasicProperties) -> None:
        """Take a message in."""
        if queue in {retry.name for retry in self._topology.retries}:
            queue = self._topology.tasks.name
        self.queues[queue].append((b"".join(properties.encode()), body))
        for channel in self.channels:
            channel.stir()

    def dead(self) -> list[tuple[pika.BasicProperties, bytes]]:
        """The dead letters."""
        return [(read(header), body) for header, body in self.queues[self._topology.dead.name]]


def read(header: bytes) -> pika.BasicProperties:
    """Read a message's properties as pika does when they come."""
    return pika.spec.props[pika.BasicProperties.INDEX]().decode(header)


class PaperLink:
    """Has no thread: what it is asked to call is called at once."""

    def __init__(self, broker: PaperBroker) -> None:
        self._broker = broker
        self._endpoints = []

    def add(self, endpoint) -> None:
        self._endpoints.append(endpoint)

    async def start(self, _: float) -> None:
        for endpoint in self._endpoints:
            endpoint.opened(PaperChannel(self._broker))

    def call(self, function) -> None:
        function()

    def later(self, _: float, function) -> None:
        asyncio.get_running_loop().call_later(0.05, function)

    async def stop(self) -> None:
        """There is nothing to be closed."""


class PaperChannel:
    """As much of pika's channel as a bridge uses. Acknowledgements of the broker's come a moment later."""

    is_open = True

    def __init__(self, broker: PaperBroker) -> None:
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._stirred = False
        self._queue = ""
        self._deliver = None
        self._prefetch = self._tag = self._sent = 0
        self.unacked: set[int] = set()
        self.connection = SimpleNamespace(
            add_on_connection_blocked_callback=lambda _: None, add_on_connection_unblocked_callback=lambda _: None
        )
        broker.channels.append(self)

    def add_on_cancel_callback(self, _) -> None:
        """Nothing is cancelled here."""

    def add_on_return_callback(self, _) -> None:
        """Nothing is returned here."""

    def confirm_delivery(self, told, callback) -> None:
        self._told = told
        callback(None)

    def queue_declare(self, queue, callback, **_) -> None:
        count = len(self._broker.queues[queue])
        self._loop.call_soon(callback, SimpleNamespace(method=SimpleNamespace(message_count=count)))

    def queue_bind(self, *_, callback) -> None:
        callback(None)

    def basic_qos(self, prefetch_count, callback) -> None:
        self._prefetch = prefetch_count
        callback(None)

    def basic_consume(self, queue, deliver, callback, **_) -> str:
        self._queue, self._deliver = queue, deliver
        self._loop.call_soon(callback, None)
        self.stir()
        return "consumer"

    def basic_cancel(self, _, callback=lambda _: None) -> None:
        self._deliver = None
        self._loop.call_soon(callback, None)

    def basic_ack(self, tag, multiple=False) -> None:
        self.unacked = {other for other in self.unacked if other != tag and not (multiple and other < tag)}
        self.stir()

    def basic_publish(self, _, key, body, properties, __) -> None:
        self._sent += 1
        self._broker.put(key, body, properties)
        ack = SimpleNamespace(method=pika.spec.Basic.Ack(self._sent, multiple=False))
        self._loop.call_soon(self._told, ack)

    def stir(self) -> None:
        """Deliver soon what may be delivered."""
        if not self._stirred:
            self._stirred = True
            self._loop.call_soon(self._go)

    def _go(self) -> None:
        self._stirred = False
        waiting = self._broker.queues[self._queue]
        while self._deliver is not None and waiting and len(self.unacked) < self._prefetch:
            header, body = waiting.popleft()
            self._tag += 1
            self.unacked.add(self._tag)
            self._deliver(self, SimpleNamespace(delivery_tag=self._tag), read(header), body)
