"""The bridge: takes tasks from the broker to pools of workers, and answers when their results are safe."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from functools import partial

from pydantic import BaseModel, ConfigDict, Field
from ray.exceptions import RayError

from bridge.announcement import Announcement
from bridge.broker_usage import BrokerUsage
from bridge.connection import BrokerError, Link
from bridge.consumer import Consumer, Delivery
from bridge.orders import Orders
from bridge.publisher import Publisher
from bridge.queues import Traffic
from bridge.run_log import Announced, RunLog
from bridge.session import Session, Terms
from bridge.settings import BrokerSettings
from bridge.settlement import Settlement
from bridge.topology import Topology
from bridge.verdict import DeadLetter, Leaving, UnservedRun, decide, unhandled
from bridge.wire import Order, Refusal, read_task
from hzzray.engine.actors import AWAY
from hzzray.engine.cluster import room
from hzzray.engine.fleet import IN_FLIGHT
from hzzray.engine.ledger import Wish
from hzzray.engine.monitor import Usage
from hzzray.engine.service_usage import Services
from hzzray.errors import HzzrayError, first_of
from hzzray.messages import Counts
from hzzray.parallel import aside
from hzzray.runs.folder import RunFolder
from hzzray.runs.run import signals

log = logging.getLogger(__name__)

#: Deliveries that a bridge holds at the most, whatever the pace.
PREFETCH = 1024

# Work to have at hand, in seconds at the present pace; and how much more or less is worth a change.
_AHEAD_S = 0.5
_CHANGE = 1.5
_TICK_S = 1.0
_CONNECT_S = 60.0
_SOON_S = 0.1
_FLUSH_S = 10.0
_READ_S = 10.0
# Waits before a run is tried again that can't be served.
_UNSERVED_S = 5.0, 300.0


class BridgeSettings(BaseModel):
    """What a bridge does beside its terms for runs.

    Attributes
    ----------
    prefetch
        Deliveries to hold; None for as many as suit the pace.
    until
        Run after whose end the bridge ends.
    only_it
        Whether to serve that run alone.
    patience_s
        How long the broker may be away before a bridge that waits for a run's end gives up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefetch: int | None = Field(default=None, ge=1, le=65_535)
    until: str | None = None
    only_it: bool = False
    patience_s: float = 300.0


class Bridge:
    """Serves all runs whose tasks come through a broker. In a process that uses Ray.

    ``progress`` is told how far the run is that is waited for, if one is.
    """

    def __init__(
        self,
        broker: BrokerSettings,
        topology: Topology,
        terms: Terms,
        settings: BridgeSettings,
        progress: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._topology = topology
        self._terms = terms
        self._settings = settings
        self._progress = progress
        self._name = f"{socket.gethostname()}.{os.getpid()}"
        self._sessions: dict[str, Session] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._announced = Announced()
        self._services = Services(terms.runs, BrokerUsage(broker))
        self._unserved: dict[str, tuple[float, float]] = {}
        self._fixed = settings.prefetch
        self._ending = asyncio.Event()
        self._wish: Wish = "drain"

    async def serve(self) -> None:
        """Serve until the run that is waited for has ended, or ``leave`` is called.

        Raises BrokerError when the broker can't be reached at first; later it is waited for.
        """
        incoming = Link(self._broker, f"hzzray bridge {self._name}: in")
        outgoing = Link(self._broker, f"hzzray bridge {self._name}: out")
        self._tasks = Consumer(
            incoming, self._topology.tasks.name, self._take, self._refuse,
            prefetch=self._fitting(0.0), lost=self._lost, paused=True,
        )  # fmt: skip
        self._orders = Orders(incoming, self._topology, self._name, self._obey)
        run_log = RunLog(incoming, self._topology.runs.name, self._learn, self._announced.account)
        self._settlement = Settlement(self._topology, self._tasks, Publisher(outgoing), Publisher(outgoing))
        self._traffic = Traffic(incoming, self._topology, self._settlement)
        try:
            for link in (outgoing, incoming):
                await link.start(_CONNECT_S)
            async with asyncio.TaskGroup() as self._group:
                if not self._settings.only_it:  # of that one, there is the ledger
                    await run_log.caught_up(_READ_S)
                self._take_up()
                self._tasks.resume()
                await self._watch()
                await self._end()
        except BaseExceptionGroup as group:
            raise first_of(group) from group
        finally:
            for link in (incoming, outgoing):
                await link.stop()

    @property
    def prefetch(self) -> int:
        """How many tasks it holds at the most."""
        return self._tasks.prefetch

    @property
    def trouble(self) -> str:
        """Why no tasks come; empty where all is well."""
        return self._tasks.trouble

    def leave(self, wish: Wish) -> None:
        """End: after what is in flight (drain), or at once (cancel). The runs go on elsewhere, or later."""
        self._wish = wish
        self._ending.set()
        for session in self._sessions.values():
            session.leave(wish)

    # What comes from the broker.

    def _take(self, delivery: Delivery) -> None:
        """Bring a task to its run's session, or settle it where there is none."""
        self._settlement.came(delivery)
        message = read_task(delivery.body, delivery.properties)
        if isinstance(message, Refusal):
            log.warning("a message is dead-lettered: %s", message.reason)
            self._settlement.settle(decide(message), [delivery])
            return
        session = self._session(message.task.run_id)
        if isinstance(session, Session):
            session.take(message, delivery)
        else:
            self._settlement.settle(decide(message, session), [delivery])

    def _refuse(self, delivery: Delivery, error: Exception) -> None:
        """Settle a task's delivery that can't be handled; that may be as the bridge itself comes to its end."""
        verdict = decide(Refusal(unhandled(error)), Leaving() if self._ending.is_set() else None)
        if isinstance(verdict, DeadLetter):
            log.error("a message is dead-lettered: it can't be handled", exc_info=error)
        self._settlement.settle(verdict, [delivery])

    def _lost(self) -> None:
        """Forget deliveries of a connection that is gone: they come again."""
        self._settlement.lost()
        for session in self._sessions.values():
            session.lost()

    def _learn(self, announcement: Announcement, _: str) -> None:
        """Take note of a run."""
        run_id = announcement.run_id
        holds = self._announced.merged(announcement)
        if holds is None:
            return
        if not self._is_done_with(holds):
            self._announced.keep(holds)
        if run_id in self._sessions:
            self._sessions[run_id].plan_more(holds)

    def _around(self, run_id: str) -> list[Usage]:
        """Tell what is used around a run's workers; a publisher that is a service still counts as that."""
        return [*self._announced.accounts(run_id), *self._services()]

    def _obey(self, order: Order) -> None:
        """Do what a user wants."""
        if order.prefetch is not None:
            self._fixed = order.prefetch or None
            self._tasks.resize(self._fitting(self._traffic.acked_per_s))
        elif order.run_id is not None and order.wish is not None:
            if self._is_anothers(order.run_id) or not self._is_known(order.run_id):
                log.warning("%s: no such run here", order.run_id)
                return
            log.info("run %s: %s", order.run_id, order.wish)
            (self._sessions.get(order.run_id) or self._open(order.run_id)).obey(order.wish)

    # The runs.

    def _folder(self, run_id: str) -> RunFolder:
        return RunFolder(self._terms.runs / run_id)

    def _is_anothers(self, run_id: str) -> bool:
        return self._settings.only_it and run_id != self._settings.until

    def _is_known(self, run_id: str) -> bool:
        return run_id in self._announced or self._folder(run_id).has_ledger

    def _is_done_with(self, holds: Announcement) -> bool:
        """Whether a run is complete, with its files, and nothing that was announced of it is to be planned yet."""
        folder = self._folder(holds.run_id)
        if not folder.has_ledger:
            return False
        try:
            with folder.ledger() as ledger:
                if ledger.tally().status != "complete" or folder.shown_status != "complete":
                    return False
                planned = {file.uuid for file in ledger.planned_files()}
                return ledger.spec.digest != holds.spec.digest or planned.issuperset(file.uuid for file in holds.files)
        except HzzrayError as error:
            log.warning("run %s: %s", holds.run_id, error)
            return False

    def _session(self, run_id: str) -> Session | UnservedRun | None:
        """Find a run's session, or begin one; None where nothing is known of the run."""
        if run_id in self._sessions:
            return self._sessions[run_id]
        if self._is_anothers(run_id) or time.monotonic() < self._unserved.get(run_id, (0.0, 0.0))[0]:
            return UnservedRun()
        return self._open(run_id) if self._is_known(run_id) else None

    def _open(self, run_id: str) -> Session:
        """Begin to serve a run."""
        progress = self._progress if run_id == self._settings.until else lambda _: None
        around = partial(self._around, run_id)
        announcement = self._announced.of(run_id)
        session = Session(run_id, self._terms, self._settlement, self._traffic, announcement, progress, around)
        self._sessions[run_id] = session
        task = self._group.create_task(self._serve(session))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return session

    async def _serve(self, session: Session) -> None:
        """Serve a run; one that can't be served now is left alone for a while."""
        run_id = session.run_id
        try:
            await session.serve()
            self._unserved.pop(run_id, None)
        except Exception as error:
            if run_id == self._settings.until:
                self._ending.set()
                raise
            if not isinstance(error, HzzrayError | RayError):  # what is wrong with one run is no other's business
                log.exception("run %s: an unexpected error", run_id)
            _, wait = self._unserved.get(run_id, (0.0, 0.0))
            wait = min(max(2 * wait, _UNSERVED_S[0]), _UNSERVED_S[1])
            self._unserved[run_id] = time.monotonic() + wait, wait
            log.error("run %s can't be served for %.0f s: %s", run_id, wait, error)  # noqa: TRY400 (a line is enough)
        finally:
            del self._sessions[run_id]

    def _take_up(self) -> None:
        """Serve runs that a bridge has left, though none of their tasks may come: they may be lost."""
        left = [run_id for run_id in self._announced.runs() if self._folder(run_id).has_ledger]
        until = self._settings.until
        if until is not None and self._is_known(until):
            left.append(until)
        for run_id in left:
            if run_id not in self._sessions and not self._is_anothers(run_id):
                self._open(run_id)

    # The bridge itself.

    async def _watch(self) -> None:
        """See to the size of things, about once a second, until the end."""
        away_since = time.monotonic()
        while not self._ending.is_set() and not self._is_over():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _SOON_S if self._settings.until else _TICK_S)
            self._traffic.look()
            await self._share()
            wanted, is_now = self._fitting(self._traffic.acked_per_s), self._tasks.prefetch
            if not is_now / _CHANGE < wanted < is_now * _CHANGE:
                self._tasks.resize(wanted)
            if not self._tasks.trouble:
                away_since = time.monotonic()
            elif self._settings.until and time.monotonic() - away_since > self._settings.patience_s:
                raise BrokerError(f"no tasks from {self._broker}: {self._tasks.trouble}")

    def _is_over(self) -> bool:
        """Whether the run that is waited for has ended."""
        session = self._sessions.get(self._settings.until or "")
        return session is not None and session.is_over

    async def _share(self) -> None:
        """Let runs that are busy at once share the workers that there can be."""
        busy = [session for session in self._sessions.values() if session.is_busy]
        most: float = self._terms.limits.max_actors
        if len(busy) > 1:
            with contextlib.suppress(*AWAY):
                most = min(most, await aside(room))
        for session in busy:
            session.bound(max(1, int(most) // len(busy)))

    def _fitting(self, per_s: float) -> int:
        """Tell how many deliveries suit the workers and their pace, in tasks a second."""
        if self._fixed is not None:
            return self._fixed
        actors = sum(session.actors for session in self._sessions.values())
        slots = 2 * IN_FLIGHT * max(actors, self._terms.limits.min_actors)
        return min(PREFETCH, max(slots, math.ceil(_AHEAD_S * per_s)))

    async def _end(self) -> None:
        """Let go of everything, within bounds; what is not acknowledged is delivered again."""
        self._tasks.pause()
        self.leave(self._wish)
        if self._serving:
            await asyncio.wait(self._serving, timeout=self._terms.limits.drain_s + _FLUSH_S)
        for task in self._serving:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settlement.flushed(), _FLUSH_S)


def serve_until(bridge: Bridge) -> None:
    """Serve in an event loop of its own; SIGTERM and Ctrl-C end it in good order, a second Ctrl-C at once."""

    async def serve() -> None:
        with signals(bridge.leave):
            await bridge.serve()

    asyncio.run(serve())
