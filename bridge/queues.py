"""How full the queues are and how fast they move: for whoever looks (``hzzray queues``), and for a bridge at work."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pika
from pika.channel import Channel
from pika.exceptions import ChannelClosedByBroker

from bridge.connection import BrokerError, Link
from bridge.management import Management, ManagementError
from bridge.provision import connected
from bridge.settings import BrokerSettings
from bridge.settlement import Settlement
from bridge.topology import Queue, Topology
from hzzray.engine.source import Congestion
from hzzray.messages import Counts

_NAME = "hzzray queues"

# A bridge's rates are over about so long, in seconds; what the broker told longer ago tells nothing.
_OVER_S = 10.0
_FRESH_S = 5.0


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
    return QueueState(queue.name, ready, consumers, unacked, _per_s(flow, "publish"), _per_s(flow, "ack"))


def _per_s(flow: Mapping[str, Any], what: str) -> float:
    return float(flow.get(f"{what}_details", {}).get("rate", 0.0))


# For a bridge at work.


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


class Traffic:
    """How full the queues are that a bridge takes from, and how fast tasks come and go. ``look`` about every second."""

    def __init__(self, link: Link, topology: Topology, settlement: Settlement) -> None:
        """Ask over a link from when that starts."""
        self._topology = topology
        self._depths = Depths(link, [queue.name for queue in (topology.tasks, *topology.retries, topology.dead)])
        self._settlement = settlement
        self._published = Rate()
        self._acked = Rate()

    @property
    def acked_per_s(self) -> float:
        """Tasks that this bridge acknowledged, a second."""
        return self._acked.per_s

    @property
    def is_empty(self) -> bool:
        """Whether the broker has no task that waits; False where it didn't tell lately."""
        return self._depths.age_s < _FRESH_S and not self._depths[self._topology.tasks.name] + self._retrying

    @property
    def _retrying(self) -> int:
        return sum(self._depths[queue.name] for queue in self._topology.retries)

    def look(self) -> None:
        """Take note of what has moved."""
        self._acked.see(self._settlement.acknowledged)
        # What came is what is there, and what went to this bridge; of several bridges each knows its own part.
        self._published.see(self._depths[self._topology.tasks.name] + self._settlement.delivered)

    def congestion(self, left_s: float) -> Congestion:
        """Tell how full the queues are; ``left_s`` is for the run that asks."""
        return Congestion(
            waiting=self._depths[self._topology.tasks.name],
            retrying=self._retrying,
            dead=self._depths[self._topology.dead.name],
            held=self._settlement.unacked,
            oldest_s=self._settlement.oldest_s,
            published_per_s=self._published.per_s,
            acked_per_s=self._acked.per_s,
            left_s=left_s,
        )


class Rate:
    """How fast a number grows, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def see(self, number: float) -> None:
        """Take note of the number now."""
        now = time.monotonic()
        self._seen.append((now, number))
        while now - self._seen[0][0] > _OVER_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """How much it grew a second; 0 where it fell, or nothing can be said yet."""
        if len(self._seen) < 2:
            return 0.0
        (begun, first), (now, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (now - begun))


class Forecast:
    """How long a run will take, if it goes on as it did."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._due = 0

    def see(self, counts: Counts) -> None:
        """Take note how far the run is now."""
        self._rate.see(counts.merged + counts.failed)
        self._due = counts.due

    @property
    def left_s(self) -> float:
        """Estimated seconds; nan where nothing moves."""
        if not self._due:
            return 0.0
        return self._due / self._rate.per_s if self._rate.per_s else math.nan
