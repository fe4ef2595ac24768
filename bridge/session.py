"""A bridge's session of one run: what its ledger says of each delivery, the pool that works on them, its files."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from bridge.announcement import Announcement
from bridge.broker_source import BrokerSource
from bridge.consumer import Delivery
from bridge.publisher import send
from bridge.queues import Forecast, Traffic
from bridge.settlement import Settlement
from bridge.verdict import (
    Ack,
    DeadLetter,
    InLedger,
    Known,
    Leaving,
    Offer,
    Stopped,
    Unhandled,
    UnservedRun,
    Verdict,
    decide,
)
from bridge.wire import TaskMessage, task_letter
from hzzray.cache import cache_folder
from hzzray.engine.actors import join_reducer, reload_reducer, worker_starter
from hzzray.engine.ledger import Ledger, Wish
from hzzray.engine.limits import Limits
from hzzray.engine.metrics import Metrics
from hzzray.engine.monitor import Usage
from hzzray.engine.pool import Pool
from hzzray.engine.reducer import Live
from hzzray.engine.sight import unreachable
from hzzray.errors import HzzrayError
from hzzray.messages import Counts, Task
from hzzray.parallel import aside
from hzzray.runs.folder import RunFolder
from hzzray.runs.run import Clock, Journal, Settings, add_plan, finish, keep_settings
from hzzray.urls import is_inside

log = logging.getLogger(__name__)

# How long a run that has nothing here keeps its pool, and its ledger open.
_REST_S = 30.0
_LOOK_S = 1.0
_SOON_S = 0.1
_HEAL_LONGEST_S = 3600.0
# Files of messages that are remembered as being inside the sources or not.
_PLACES = 1024


@dataclass(frozen=True, slots=True)
class Terms:
    """How a bridge serves runs.

    Attributes
    ----------
    name
        What its workers' names begin with.
    runs
        Folder of runs.
    sources
        Folders and addresses that tasks may lead to.
    heal_s
        How long nothing may move, with tasks due and the queues empty, before these tasks are published again.
    draws
        Whether it draws the plots of runs that have ended.
    analyses
        Files of analyses that its workers may use, beside those that their own environment allows.
    """

    name: str
    runs: Path
    sources: tuple[str, ...]
    limits: Limits
    heal_s: float = 30.0
    draws: bool = True
    analyses: tuple[str, ...] = ()


class Session:
    """One run, from its first delivery until there is nothing more to do for it here.

    ``progress`` is told about every second how far the run is; ``around`` tells what is used around its workers.
    """

    def __init__(
        self,
        run_id: str,
        terms: Terms,
        settlement: Settlement,
        traffic: Traffic,
        announced: Announcement | None,
        progress: Callable[[Counts], None],
        around: Callable[[], Iterable[Usage]],
    ) -> None:
        self.run_id = run_id
        self._folder = RunFolder(terms.runs.resolve() / run_id)
        self._terms = terms
        self._settlement = settlement
        self._traffic = traffic
        self._announced = announced
        self._progress = progress
        self._around = around
        self._limits = terms.limits
        self._ledger: Ledger | None = None
        self._early: list[tuple[TaskMessage, Delivery]] = []
        self._pace = Forecast()
        self._source = self._new_source()
        self._pool: Pool | None = None
        self._stall = _Stall(terms.heal_s)
        self._background: set[asyncio.Task[None]] = set()
        self._early_wish: Wish | None = None
        self._has_withdrawn = False
        self._leaving = False
        #: Whether it has come to its end, or its user ended it, and its files say so.
        self.is_over = False
        self._is_allowed = lru_cache(_PLACES)(partial(is_inside, sources=terms.sources))

    @property
    def actors(self) -> int:
        """Workers that there are for it."""
        return self._pool.actors if self._pool is not None else 0

    @property
    def is_busy(self) -> bool:
        """Whether it has a pool, or will have."""
        return self._pool is not None or self._source.held > 0

    def bound(self, actors: int) -> None:
        """Let it have so many workers at the most."""
        limits = replace(self._terms.limits, min_actors=min(actors, self._terms.limits.min_actors), max_actors=actors)
        if limits != self._limits:
            self._limits = limits
            if self._pool is not None:
                self._pool.bound(limits.min_actors, limits.max_actors)

    # Deliveries and orders.

    def take(self, message: TaskMessage, delivery: Delivery) -> None:
        """Take a delivery of this run's."""
        if self._ledger is None:
            self._early.append((message, delivery))
        else:
            self._answer(self._ledger, message, delivery)

    def lost(self) -> None:
        """Take note that all deliveries are void."""
        self._early.clear()
        self._source.lost()

    def obey(self, wish: Wish) -> None:
        """Do what the run's user wants, and leave word of it in the ledger."""
        if self._ledger is None:
            self._early_wish = wish
            return
        before = self._ledger.wish(wish)
        if self._pool is not None:
            self._pool.obey(wish)
        if wish == "run" != before:
            self._has_withdrawn = False
            self._republish()

    def leave(self, wish: Wish) -> None:
        """Drain or cancel, for the bridge is about to end; the run goes on elsewhere, or later."""
        self._leaving = True
        self._source.wake()
        if self._pool is not None:
            self._pool.obey(wish)

    def plan_more(self, announced: Announcement) -> None:
        """Take in what a later announcement adds."""
        self._announced = announced
        if self._ledger is not None:
            self._plan(self._ledger, announced)
            self._in_background(reload_reducer(self._ledger))

    def _plan(self, ledger: Ledger, announced: Announcement) -> None:
        """Write into the ledger what was announced, where that is of its spec.

        What was retracted since stays out: it was announced before somebody knew, and is announced at each start.
        """
        if announced.spec.digest == ledger.spec.digest:
            add_plan(ledger, announced.plan().instead(ledger.retracted()))
        else:
            log.warning("run %s: its ledger is of another spec than its announcement", self.run_id)

    def _answer(self, ledger: Ledger, message: TaskMessage, delivery: Delivery) -> None:
        """Have decided what becomes of a delivery, and carry that out: it is settled whatever that raises."""
        try:
            self._carry_out(decide(message, self._look_up(ledger, message)), ledger, message.task, delivery)
        except Exception as error:
            if isinstance(error, HzzrayError):
                log.warning("run %s: a task is requeued: %s", self.run_id, error)
            else:
                log.exception("a message is dead-lettered: it can't be handled")
            self._settlement.settle(decide(message, Unhandled(error)), [delivery])

    def _look_up(self, ledger: Ledger, message: TaskMessage) -> InLedger:
        """Find what the ledger holds of a message's task."""
        given, spec = message.task, ledger.spec.digest
        found = ledger.look_up(given.task_id) if given.spec == spec else None
        if found is None:
            return InLedger(spec, None)
        task, state = found
        return InLedger(
            spec,
            task,
            state,
            is_inside=given.file == task.file or self._is_allowed(given.file),
            parts=tuple(ledger.parts(task)) if state == "split" else (),
            failure=ledger.failure(task) if state == "failed" else None,
            wish=ledger.wished(),
        )

    def _carry_out(self, verdict: Verdict, ledger: Ledger, task: Task, delivery: Delivery) -> None:
        """Carry out what was decided on a delivery: first in the ledger, then towards pool and broker."""
        if isinstance(verdict, DeadLetter) and verdict.failure is not None:
            ledger.abandon(verdict.failure)
            self._in_background(reload_reducer(ledger))
        elif isinstance(verdict, Offer | Ack) and verdict.forgives and ledger.forgive(task):
            self._in_background(reload_reducer(ledger))
        if isinstance(verdict, Offer):
            self._source.offer(verdict.message, delivery)
        elif isinstance(verdict, Ack) and verdict.is_due:
            self._has_withdrawn = True
        self._settlement.settle(verdict, [delivery])

    def _release(self, known: Known, *, all_of_it: bool = True) -> None:
        """Let go of what is here: all of it, or what nobody works on."""
        if self._source.release(known, all_of_it=all_of_it):
            self._has_withdrawn = True

    # Its pool.

    async def serve(self) -> None:
        """Work on the run as long as there is something to do for it here.

        Whatever it raises when that can't be done now, what was delivered is requeued then.
        """
        try:
            announced = self._announced
            with await asyncio.to_thread(self._open) as ledger:
                self._ledger = ledger
                if self._announced is not None and self._announced is not announced:  # more came meanwhile
                    self.plan_more(self._announced)
                if self._early_wish is not None:
                    self.obey(self._early_wish)
                early, self._early = self._early, []
                for message, delivery in early:
                    self._answer(ledger, message, delivery)
                while await self._has_work(ledger):
                    await self._work(ledger)
        except Exception:
            for message, delivery in self._early:
                self._settlement.settle(decide(message, UnservedRun()), [delivery])
            self._release(UnservedRun())
            raise
        finally:
            self._ledger = None
            for task in self._background:
                task.cancel()

    def _open(self) -> Ledger:
        """Open the run's ledger, written first from the announcement if there is none."""
        announced = self._announced
        if announced is not None and not self._folder.has_ledger:
            self._folder.create_ledger(announced.spec)
        ledger = self._folder.ledger()
        if announced is not None:
            self._plan(ledger, announced)
        if ledger.settings() == "{}":
            terms = self._terms
            settings = Settings(
                runs=terms.runs, run_id=self.run_id, sources=terms.sources, limits=terms.limits, bridged=True
            )
            keep_settings(ledger, settings)
        if ledger.tally().status not in {"running", self._folder.shown_status}:
            self._finish()  # a bridge ended before it could
        return ledger

    async def _has_work(self, ledger: Ledger) -> bool:
        """Wait for something to do; False where there is no need to wait longer."""
        until = time.monotonic() + _REST_S
        while not await self._source.offered(_LOOK_S):
            counts, wish = ledger.tally(), ledger.wished()
            is_live = counts.due > 0 and wish == "run"
            self.is_over = not counts.due or wish in {"drain", "cancel"}
            if self._leaving or (not is_live and time.monotonic() > until):
                return False
            self._republish_lost(counts, is_live=is_live)
        return not self._leaving

    async def _work(self, ledger: Ledger) -> None:
        """Let a pool work on what is delivered, until the run is finished, or nothing comes for a while."""
        with ExitStack() as stack:
            clock = Clock()
            journal: Journal | None = None

            def watch(live: Live) -> None:
                nonlocal journal
                if journal is None:  # of several bridges' pools, it is this one that keeps the files now
                    journal = stack.enter_context(Journal(ledger, clock))
                journal.write(live)

            self._in_background(self._warn_of_unreachable(ledger.due_files()))
            self._pool = pool = Pool(
                worker_starter(ledger.spec, self._terms.sources, cache_folder(), self._terms.analyses),
                partial(join_reducer, ledger),
                self._limits,
                watch,
                Metrics(self.run_id, f"{self._terms.name}pool"),
                shared=True,
                prefix=f"{self._terms.name}worker-",
                around=self._around,
                sources=self._terms.sources,
            )
            ending = asyncio.create_task(self._end_soon(pool))
            try:
                state = await pool.run(self._source, partial(self._follow, pool))
            finally:
                ending.cancel()
                self._pool = None
            if journal is not None:
                clock.tell(ledger)
                journal.end(state)
        self._release(Leaving() if self._leaving else Stopped(pool.wish))
        if not self._leaving:
            self._source = self._new_source()
        await asyncio.to_thread(self._finish)
        self._progress(state.counts)
        self.is_over = not state.counts.due or pool.wish in {"drain", "cancel"}

    def _new_source(self) -> BrokerSource:
        return BrokerSource(self._settlement, lambda: self._traffic.congestion(self._pace.left_s))

    def _follow(self, pool: Pool, counts: Counts) -> None:
        """See how far the run is, about once a second."""
        self._progress(counts)
        self._pace.see(counts)
        if not counts.due or self._source.idle_s > _REST_S:
            pool.end()
        elif pool.wish == "pause":
            self._release(Stopped(pool.wish), all_of_it=False)
        self._republish_lost(counts, is_live=pool.wish == "run")

    async def _warn_of_unreachable(self, files: Sequence[str]) -> None:
        """Say so when no worker sees what the run reads: each of its tasks is about to fail."""
        for source, nodes in (await aside(unreachable, files, self._terms.sources)).items():
            log.warning("run %s: no worker sees %s (on %s)", self.run_id, source, ", ".join(nodes))

    async def _end_soon(self, pool: Pool) -> None:
        """End the pool soon after the last task, rather than when it looks itself."""
        while True:
            await asyncio.sleep(_SOON_S)
            if 0 < self._source.idle_s < _LOOK_S and not (await pool.look())[0].due:
                pool.end()

    def _finish(self) -> None:
        """Write the run's files, in whatever thread."""
        with self._folder.ledger() as ledger:
            result = finish(ledger)
        if self._terms.draws:
            from hzzray.report.plotting import save  # noqa: PLC0415 (matplotlib: the first task needn't wait for it)

            save(result, self._folder.path)
        tasks = result.tasks
        log.info(
            "run %s: %s: %d of %d tasks merged, %d failed: %s",
            self.run_id, result.status, tasks.merged, tasks.planned, tasks.failed, self._folder.path,
        )  # fmt: skip

    # What is published again.

    def _republish_lost(self, counts: Counts, *, is_live: bool) -> None:
        """Publish again what is due and was withdrawn, or has left the queues without a trace: deleted, purged."""
        moves = self._source.held or self._early or not self._traffic.is_empty or not is_live or not counts.due
        is_lost = self._stall.is_over(counts, moves=bool(moves))
        if is_lost:
            log.warning("run %s: nothing moves, and the queues are empty", self.run_id)
        if is_lost or (is_live and self._has_withdrawn):
            self._has_withdrawn = False
            self._republish()

    def _republish(self) -> None:
        """Publish all that is due, for it may have left the queues. What is there twice does no harm."""
        if self._ledger is not None:
            self._in_background(self._publish(self._ledger))

    async def _publish(self, ledger: Ledger) -> None:
        number = ledger.tally().due
        log.info("run %s: publishing the %d tasks that are due", self.run_id, number)
        letters = (task_letter(self._settlement.topology, TaskMessage(task)) for task in ledger.due())
        await send(self._settlement.publisher, letters, number, f"run {self.run_id}")

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done meanwhile."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("run %s: %s", self.run_id, error)


class _Stall:
    """Notices when nothing has changed for a while; for longer, the more often in vain."""

    def __init__(self, first_s: float) -> None:
        self._first_s = self._wait_s = first_s
        self._since = time.monotonic()
        self._seen: Counts | None = None

    def is_over(self, counts: Counts, *, moves: bool) -> bool:
        """Tell whether it is time to do something."""
        now = time.monotonic()
        if counts[:3] != (self._seen or ())[:3]:
            self._seen, self._wait_s, self._since = counts, self._first_s, now
        elif moves:
            self._since = now
        elif now - self._since > self._wait_s:
            self._wait_s, self._since = min(_HEAL_LONGEST_S, 2 * self._wait_s), now
            return True
        return False
