"""The data loader: plans a run, announces it, publishes its tasks. Killed half way and started again, it does no harm.

An announcement goes to a stream, which keeps an order: of several for one run the first decides, and all who read the
stream come to the same plan. So a publisher appends its own, reads up to it, and publishes what then holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from bridge.connection import BrokerError, Link
from bridge.consumer import Consumer, Delivery
from bridge.publisher import WINDOW, Outbox
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from bridge.wire import (
    Account,
    Announcement,
    Letter,
    Order,
    Refusal,
    TaskMessage,
    account_letter,
    announcement_letter,
    order_letter,
    read_account,
    read_announcement,
    task_letter,
)
from hzzray.engine.monitor import place
from hzzray.errors import UsageError
from hzzray.messages import RunSpec
from hzzray.runs.plan import Plan
from hzzray.urls import redact

log = logging.getLogger(__name__)

#: How long the broker may take nothing at all before a publisher gives up, in seconds.
PATIENCE_S = 120.0

# Announcements that are read at a time: each may be big.
_STREAM_PREFETCH = 8
_TELL_S = 1.0
_ANSWER_S = 3.0
_CALM_S = 0.3


class PublishError(BrokerError):
    """Something was not published. What was, need not be taken back: publishing again is harmless."""


@dataclass(frozen=True, slots=True)
class Published:
    """What came of publishing a run: how many tasks, and what of its plan no task stands for."""

    run_id: str
    tasks: int
    plan: Plan


Progress = Callable[[int, int, str], None]
"""Is told how many tasks the broker has, of how many, and why it takes none, if so."""


class RunLog:
    """Reads the stream of announcements, from its beginning on, in order and each of them once."""

    def __init__(
        self,
        link: Link,
        queue: str,
        announced: Callable[[Announcement, str], None],
        accounted: Callable[[Account], None] = lambda _: None,
    ) -> None:
        """Read over ``link`` from when that starts; ``announced`` gets each announcement, and its mark."""
        self._announced = announced
        self._accounted = accounted
        self._next: int | None = None
        self._consumer = Consumer(
            link, queue, self._take, self._pass_over, prefetch=_STREAM_PREFETCH, arguments=self._where
        )

    @property
    def trouble(self) -> str:
        """Why the stream isn't read; empty where all is well."""
        return self._consumer.trouble

    async def caught_up(self, within_s: float) -> None:
        """Wait until what was announced is read, as far as one can tell."""
        await self._consumer.calm(_CALM_S, within_s)

    def _where(self) -> dict[str, int | str]:
        return {"x-stream-offset": "first" if self._next is None else self._next}

    def _take(self, delivery: Delivery) -> None:
        offset = (delivery.properties.headers or {}).get("x-stream-offset")
        if isinstance(offset, int):
            if self._next is not None and offset < self._next:  # read before the connection was lost
                self._consumer.ack(delivery)
                return
            self._next = offset + 1
        read = read_account if delivery.properties.type == "account" else read_announcement
        message = read(delivery.body, delivery.properties)
        if isinstance(message, Refusal):
            log.warning("an announcement is passed over: %s", message.reason)
        elif isinstance(message, Account):
            self._accounted(message)
        else:
            self._announced(message, str(delivery.properties.correlation_id))
        self._consumer.ack(delivery)

    def _pass_over(self, delivery: Delivery, error: Exception) -> None:
        log.error("an announcement is passed over: it can't be handled", exc_info=error)
        self._consumer.ack(delivery)


async def publish(
    broker: BrokerSettings,
    topology: Topology,
    spec: RunSpec,
    run_id: str,
    plan: Plan,
    *,
    progress: Progress = lambda *_: None,
    patience_s: float = PATIENCE_S,
) -> Published:
    """Announce a run and publish its tasks, all of them confirmed by the broker when this returns.

    Raises UsageError when the run was announced with another spec, PublishError when the broker took nothing for
    ``patience_s``, BrokerError when there is none.
    """
    async with connected(broker, f"hzzray publish {run_id}", patience_s) as outbox:
        mine = Announcement.of(spec, run_id, plan)
        holds = (await announce(broker, topology, outbox, mine, patience_s)).plan()
        # Bridges that listen take the run up at once, also one that was paused or cancelled.
        go_on = order_letter(topology, Order(run_id=run_id, wish="run"), mandatory=False)
        await send(outbox, [go_on], 1, f"run {run_id}", patience_s=patience_s)
        letters = (task_letter(topology, TaskMessage(task)) for task in holds.tasks)
        await send(outbox, letters, len(holds.tasks), f"run {run_id}", progress=progress, patience_s=patience_s)
        if (around := place()).is_service:
            account = account_letter(topology, Account.of(run_id, around))
            await send(outbox, [account], 1, f"run {run_id}", patience_s=patience_s)
    return Published(run_id, len(holds.tasks), holds)


async def order(broker: BrokerSettings, topology: Topology, what: Order) -> None:
    """Tell all bridges what a user wants; raises BrokerError when there is none that listens."""
    async with connected(broker, "hzzray order", _ANSWER_S) as outbox:
        try:
            await send(outbox, [order_letter(topology, what)], 1, "an order", patience_s=_ANSWER_S)
        except PublishError as error:
            raise BrokerError(f"no bridge takes orders at {broker}: {outbox.trouble or error}") from error


@contextlib.asynccontextmanager
async def connected(broker: BrokerSettings, name: str, within_s: float = PATIENCE_S) -> AsyncIterator[Outbox]:
    """Have an outbox for a while, over a connection of its own; raises BrokerError where there is no broker."""
    link = Link(broker, name)
    outbox = Outbox(link)
    try:
        await link.start(within_s)
        yield outbox
    finally:
        await link.stop()


async def announce(
    broker: BrokerSettings, topology: Topology, outbox: Outbox, mine: Announcement, patience_s: float = PATIENCE_S
) -> Announcement:
    """Announce a run; returns what holds of it, after all that was announced before.

    Raises UsageError when it was announced with another spec or other files, PublishError when it can't be published.
    """
    mark = secrets.token_hex(16)
    holds: asyncio.Future[Announcement] = asyncio.get_running_loop().create_future()
    before: list[Announcement] = []

    def read(announcement: Announcement, its_mark: str) -> None:
        if announcement.run_id == mine.run_id and not holds.done():
            try:
                before.append(before.pop().with_later(announcement) if before else announcement)
            except UsageError as error:
                if its_mark == mark:
                    holds.set_exception(error)
                return
            if its_mark == mark:
                holds.set_result(before[0])

    await send(outbox, [announcement_letter(topology, mine, mark)], 1, f"run {mine.run_id}", patience_s=patience_s)
    reader = Link(broker, f"hzzray publish {mine.run_id}: runs")
    run_log = RunLog(reader, topology.runs.name, read)
    try:
        await reader.start(patience_s)
        announced = await asyncio.wait_for(holds, patience_s)
    except TimeoutError:
        raise PublishError(
            f"run {mine.run_id}: announced, but {topology.runs.name} can't be read: {run_log.trouble or 'it is silent'}"
        ) from None
    finally:
        await reader.stop()
    contents = {(row.sample, row.uuid) for row in announced.files}
    for row in mine.files:
        if (row.sample, row.uuid) not in contents:
            raise UsageError(
                f"{redact(row.file)}: another file than the one that run {mine.run_id} was announced with, or another "
                "content; take another --run-id"
            )
    return announced


async def send(
    outbox: Outbox,
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
            progress(confirmed, number, outbox.trouble)
        if patience_s is not None and outbox.silent_s > patience_s:
            raise PublishError(
                f"{what}: {number - confirmed} of {number} messages were not published: the broker took nothing for "
                f"{patience_s:g} s ({outbox.trouble or 'it gives no answer'}); try again, that is harmless"
            )

    for letter in letters:
        while sent - confirmed >= WINDOW:
            await wait()
        outbox.publish(letter).add_done_callback(landed)
        sent += 1
    while confirmed < sent:
        await wait()
    progress(confirmed, number, "")
