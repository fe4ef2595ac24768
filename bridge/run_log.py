"""The stream of runs: what was announced and accounted for, read in order; and what a bridge remembers of it."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable

from bridge.announcement import Announcement
from bridge.connection import Link
from bridge.consumer import Consumer, Delivery
from bridge.wire import Account, Refusal, read_account, read_announcement
from hzzray.engine.monitor import Usage
from hzzray.errors import UsageError

log = logging.getLogger(__name__)

# Announcements that are read at a time: each may be big.
_STREAM_PREFETCH = 8
# How long nothing must have come before all counts as read, in seconds.
_CALM_S = 0.3
# Accounts of a run, and runs with accounts, that are remembered.
_ACCOUNTS, _ACCOUNTED_RUNS = 8, 1000


class RunLog:
    """Reads the stream of announcements, from its beginning on, in order and each of them once.

    It begins there with each connection: who has lost the stream before may have made another one.
    """

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
        self._read: dict[int, int] = {}
        first = {"x-stream-offset": "first"}
        self._consumer = Consumer(
            link, queue, self._take, self._pass_over, prefetch=_STREAM_PREFETCH, arguments=lambda: first
        )

    @property
    def trouble(self) -> str:
        """Why the stream isn't read; empty where all is well."""
        return self._consumer.trouble

    async def caught_up(self, within_s: float) -> None:
        """Wait until what was announced is read, as far as one can tell."""
        await self._consumer.calm(_CALM_S, within_s)

    def _take(self, delivery: Delivery) -> None:
        offset = (delivery.properties.headers or {}).get("x-stream-offset")
        if isinstance(offset, int):
            what = hash((delivery.properties.type, delivery.properties.correlation_id, delivery.body))
            if self._read.get(offset) == what:  # before the connection was lost
                self._consumer.ack(delivery)
                return
            self._read[offset] = what
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


class Announced:
    """The runs that were announced, and what publishing them took; announcements are kept compressed."""

    def __init__(self) -> None:
        self._announcements: dict[str, bytes] = {}
        self._accounts: dict[str, dict[str, Usage]] = {}

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._announcements

    def runs(self) -> list[str]:
        """Name all whose announcements are kept."""
        return list(self._announcements)

    def of(self, run_id: str) -> Announcement | None:
        """Tell what holds of a run, after all that was announced of it; None where that is not kept."""
        body = self._announcements.get(run_id)
        return Announcement.model_validate_json(zlib.decompress(body)) if body is not None else None

    def merged(self, announcement: Announcement) -> Announcement | None:
        """Tell what holds of a run with this one added; None, and a line in the log, where it is of another spec."""
        before = self.of(announcement.run_id)
        try:
            return announcement if before is None else before.with_later(announcement)
        except UsageError as error:
            log.warning("an announcement is passed over: %s", error)
            return None

    def keep(self, announcement: Announcement) -> None:
        """Remember what holds of a run."""
        self._announcements[announcement.run_id] = zlib.compress(announcement.canonical(), 1)

    def account(self, account: Account) -> None:
        """Take note of what publishing a run took; of that the latest runs are enough."""
        rows = self._accounts.pop(account.run_id, {})
        usage = account.usage
        rows.pop(usage.actor, None)
        self._accounts[account.run_id] = dict([*rows.items(), (usage.actor, usage)][-_ACCOUNTS:])
        while len(self._accounts) > _ACCOUNTED_RUNS:
            del self._accounts[next(iter(self._accounts))]

    def accounts(self, run_id: str) -> list[Usage]:
        """Tell what publishing a run took, by container."""
        return list(self._accounts.get(run_id, {}).values())
