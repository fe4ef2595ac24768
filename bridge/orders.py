"""Users' orders: a wish for a run, or how many tasks to hold; sent to all bridges, received by each."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Any

from pika.channel import Channel

from bridge.connection import BrokerError, Link
from bridge.consumer import Consumer, Delivery
from bridge.publisher import PublishError, connected, send
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import Order, Refusal, order_letter, read_order

log = logging.getLogger(__name__)

_PREFETCH = 16
_ANSWER_S = 3.0


async def order(broker: BrokerSettings, topology: Topology, what: Order) -> None:
    """Tell all bridges what a user wants; raises BrokerError when there is none that listens."""
    async with connected(broker, "hzzray order", broker.wait_s) as publisher:
        try:
            await send(publisher, [order_letter(topology, what)], 1, "an order", patience_s=_ANSWER_S)
        except PublishError as error:
            raise BrokerError(f"no bridge takes orders at {broker}: {publisher.trouble or error}") from error


class Orders:
    """Receives the orders of users over a link, for as long as that stands, on a queue of its own."""

    def __init__(self, link: Link, topology: Topology, name: str, take: Callable[[Order], None]) -> None:
        """Receive them as bridge ``name``; ``take`` gets each."""
        self._topology = topology
        self._name = name
        self._take = take
        self._consumer = Consumer(link, self._declare, self._receive, self._pass_over, prefetch=_PREFETCH)

    def _declare(self, channel: Channel, then: Callable[[str], None]) -> None:
        """Declare the queue; another one each time, as the last may not be gone yet."""
        name = self._topology.control_queue(f"{self._name}.{secrets.token_hex(4)}")

        def bind(_: Any) -> None:  # noqa: ANN401 (pika's frame)
            channel.queue_bind(name, self._topology.control, callback=lambda _: then(name))

        channel.queue_declare(name, exclusive=True, auto_delete=True, callback=bind)

    def _receive(self, delivery: Delivery) -> None:
        self._consumer.ack(delivery)
        order = read_order(delivery.body, delivery.properties)
        if isinstance(order, Refusal):
            log.warning("an order is passed over: %s", order.reason)
        else:
            self._take(order)

    def _pass_over(self, _: Delivery, error: Exception) -> None:
        log.error("an order is passed over: it can't be handled", exc_info=error)
