"""How full the queues are, and how fast they move."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pika
from pika.exceptions import ChannelClosedByBroker

from bridge.connection import BrokerError
from bridge.management import Management, ManagementError
from bridge.provision import connected
from bridge.settings import BrokerSettings
from bridge.topology import Queue, Topology

_NAME = "hzzray queues"


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue at one moment.

    Attributes
    ----------
    ready
        Messages that wait, as of now; of a stream all that it holds.
    consumers
        Those who take from it, as of now.
    unacked
        Messages that are with consumers. This and what follows lags by some seconds, and is None where the management
        plugin can't be asked.
    published_per_s, acked_per_s
        Messages that come and go.
    """

    name: str
    ready: int
    consumers: int
    unacked: int | None = None
    published_per_s: float | None = None
    acked_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueuesState:
    """All queues at one moment (seconds since 1970). ``unseen`` says why numbers are missing, if they are."""

    at: float
    tasks: QueueState
    retries: tuple[QueueState, ...]
    dead: QueueState
    runs: QueueState
    unseen: str = ""

    @property
    def all(self) -> tuple[QueueState, ...]:
        """Each queue, in the order of a message's life."""
        return (self.tasks, *self.retries, self.dead, self.runs)

    @property
    def backlog(self) -> int:
        """Tasks that are to be done: they wait, are with a bridge, or will come back."""
        return self.tasks.ready + (self.tasks.unacked or 0) + sum(retry.ready for retry in self.retries)

    @property
    def left_s(self) -> float | None:
        """Seconds until the backlog is done at this pace; None when nothing moves, or nobody knows."""
        if not self.backlog:
            return 0.0
        return self.backlog / self.tasks.acked_per_s if self.tasks.acked_per_s else None


def look(broker: BrokerSettings, topology: Topology) -> QueuesState:
    """Ask for all numbers, once. Raises BrokerError, also when a queue isn't there."""
    with connected(broker, _NAME) as connection, Management(broker) as management:
        return _look(connection, management, topology)


def watch(broker: BrokerSettings, topology: Topology, every_s: float) -> Iterator[QueuesState | BrokerError]:
    """Ask for all numbers again and again, for ever; an error is yielded too, and the next time connects anew."""
    broker = broker.model_copy(update={"wait_s": 0.0})
    while True:
        try:
            with connected(broker, _NAME) as connection, Management(broker) as management:
                while True:
                    yield _look(connection, management, topology)
                    connection.sleep(every_s)
        except BrokerError as error:
            yield error
            time.sleep(every_s)


def _look(connection: pika.BlockingConnection, management: Management, topology: Topology) -> QueuesState:
    rates: dict[str, Mapping[str, Any]] = {}
    unseen = ""
    try:
        for queue in topology.queues:
            rates[queue.name] = management.get(f"queues/{management.vhost}/{queue.name}") or {}
    except ManagementError as error:
        unseen = str(error)
    tasks, *retries, dead, runs = (
        _state(queue, _declared(connection, queue), rates.get(queue.name)) for queue in topology.queues
    )
    return QueuesState(time.time(), tasks, tuple(retries), dead, runs, unseen)


def _declared(connection: pika.BlockingConnection, queue: Queue) -> tuple[int, int]:
    """Ask for messages that are ready, and for consumers."""
    channel = connection.channel()
    try:
        answer = channel.queue_declare(queue.name, passive=True).method
    except ChannelClosedByBroker as error:
        raise BrokerError(f"queue {queue.name}: {error.reply_text}") from error
    channel.close()
    return answer.message_count, answer.consumer_count


def _state(queue: Queue, counts: tuple[int, int], known: Mapping[str, Any] | None) -> QueueState:
    ready, consumers = counts
    if not known:
        return QueueState(queue.name, ready, consumers)
    flow = known.get("message_stats", {})
    unacked = known.get("messages_unacknowledged", 0)
    return QueueState(queue.name, ready, consumers, unacked, _rate(flow, "publish"), _rate(flow, "ack"))


def _rate(flow: Mapping[str, Any], what: str) -> float:
    return float(flow.get(f"{what}_details", {}).get("rate", 0.0))
