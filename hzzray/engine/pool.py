"""Tasks to actors, and their partials to the reducer: bounded, elastic, and indifferent to what dies meanwhile.

One dispatcher gives the source's tasks to free slots, two an actor: one task a slot, or several tiny ones. What comes
back goes through one committer, which hands the reducer as many partials as have gathered since its last commit; only
then are they acknowledged. What goes wrong is told apart: a bad file is given up at once, and a passing fault tried
again; all that an actor had in flight when it died is suspect, and gets an actor to itself, one by one; a task that
hangs or needs too much memory is cut in two; what actors die over again and again is set aside with its reason. A file
that one node can't find is looked for on the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

from hzzray.engine.absences import Absences
from hzzray.engine.cluster import ClusterError, Node, node_of, restarts, room, working_nodes
from hzzray.engine.events import Diary
from hzzray.engine.ledger import FencedError, LedgerError, Wish
from hzzray.engine.limits import Limits
from hzzray.engine.metrics import QUEUE_LEVELS, Metrics
from hzzray.engine.monitor import Scale, Since, State, Usage, absent, place
from hzzray.engine.reducer import WATCHING_S, Live, Reducer
from hzzray.engine.source import TaskSource
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, HzzrayError, MissingFileError, first_of
from hzzray.messages import Counts, Failure, Partial, RunSpec, RunState, Task
from hzzray.retry import waits
from hzzray.urls import redact

_T = TypeVar("_T")


Watcher = Callable[[Live], None]
"""Is told about every second how the run goes, all its pools together, the run's state where it changed."""

Handle = Any
"""An actor's handle: Ray types its methods' arguments, not what awaits them."""

Starter = Callable[..., Handle]
"""Starts a worker actor of a name, the first argument; on none of the nodes whose ids are the second one, if given."""

#: Tasks in flight an actor: one that it computes, one that waits so that it never does.
IN_FLIGHT = 2

#: Tiny tasks go to an actor together, so many at the most, as a call costs a millisecond: about as much work as this.
TOGETHER = 16
_WORTH_A_CALL_S = 0.02

#: Partials in one commit at the most, and how many may wait for theirs before workers get no more tasks. With others on
#: their way, a commit waits for them a little: each costs some milliseconds of CPU, and a wait for the disk.
BATCH = 256
_GROUP_S = 0.05
_GROUP_GLANCES = 5
UNCOMMITTED = 1024

#: What questions about the cluster end in while its head is away.
AWAY = (RayError, RuntimeError, ConnectionError)

# What the reducer answers from a thread of its own, whatever it commits meanwhile.
_READS = ("progress", "snapshot", "newer", "report", "leave", "live", "wish", "is_unseen")

# The label by which Ray knows its nodes.
_NODE_ID = "ray.io/node-id"

# A wish gives way to none that is less firm.
_FIRMNESS: dict[Wish, int] = {"run": 0, "pause": 0, "drain": 1, "cancel": 2}

_TICK_S = 1.0
_STRAGGLER_S = 2.0
_PING_S = 20.0
_GLANCE_S = 0.1
_DEATHS = 5  # of an actor that was never heard of, in a row
_FRUITLESS = 20  # restarts by Ray without an answer
_SILENCES = 3  # of the reducer, in one call


@dataclass(eq=False, slots=True)
class _Delivery:
    """A task that the source handed out, until the source is told what became of it.

    ``copies`` are being worked on, of those ``started`` so far: two at the most.
    """

    task: Task
    copies: int = 0
    started: int = 0
    settled: bool = False


@dataclass(eq=False, slots=True)
class _Actor:
    """A worker actor as the pool sees it: what flies to it, its first one since ``since``.

    It is on ``node``, as Ray calls it, or on none yet, and on none of those that it is to ``avoid``.
    ``turn`` goes up each time that it falls, and when its slots are given out anew: those of earlier turns are void.
    ``fell_with`` is what flew to it when it last fell, ``hung`` what it was last killed over. ``pid`` is that of its
    process when it last told one, and ``fallen`` says that it fell since.
    """

    name: str
    handle: Handle
    avoid: frozenset[str] = frozenset()
    node: str = ""
    ready: bool = False
    leaving: bool = False
    turn: int = 0
    flying: list[_Delivery] = field(default_factory=list)
    since: float = 0.0
    fell_with: tuple[_Delivery, ...] = ()
    hung: _Delivery | None = None
    pid: int = 0
    fallen: bool = False

    @property
    def state(self) -> State:
        """What the actor is at, for people."""
        if not self.ready:
            return "restarting" if self.turn else "pending"
        if self.leaving:
            return "draining"
        return "working" if self.flying else "idle"


Slot = tuple[_Actor, int]
"""A place in flight at an actor, in one of its turns."""


class Pool:
    """Worker actors and the reducer actor of one run. ``start`` makes its worker actors.

    ``reducer`` gives the reducer's handle. A pool that is the run's only one asks for it once: a reducer that was ended
    for good means that another process took over. With ``shared``, several pools work on the run, each may have
    started the reducer, and when its owner goes the others ask for it again.

    ``watcher``, if there is one, is told about every second how the run goes; of several pools that of the oldest.
    Workers' names begin with ``prefix``, by which the pool is known too; their files lie in ``sources``. ``around``
    tells what is used around the workers: by this machine, or by the services of a deployment.
    """

    def __init__(
        self,
        start: Starter,
        reducer: Callable[[], Handle],
        limits: Limits,
        watcher: Watcher | None = None,
        metrics: Metrics | None = None,
        *,
        shared: bool = False,
        prefix: str = "worker-",
        around: Callable[[], Iterable[Usage]] = lambda: [place()],
        sources: Sequence[str] = (),
    ) -> None:
        self._start = start
        self._find_reducer = reducer
        self._reducer = reducer()
        self._shared = shared
        self._prefix = prefix
        self._limits = limits
        self._watcher = watcher
        self._around = around
        self._since = Since()
        self._absences = Absences(sources)
        self._nodes: list[Node] = []
        self._live: frozenset[str] = frozenset()
        self._diary = Diary()
        self._met: dict[str, str] | None = None
        self._version = -1
        self._replaced = -math.inf
        self._metrics = metrics or Metrics("", "pool")
        self._actors: list[_Actor] = []
        self._started = 0
        self._free: asyncio.Queue[Slot] = asyncio.Queue()
        self._done: asyncio.Queue[tuple[_Delivery, Partial]] = asyncio.Queue(UNCOMMITTED)
        self._committing = asyncio.Lock()
        self._open: set[_Delivery] = set()
        self._attempts: set[asyncio.Task[None]] = set()
        self._revivals: set[asyncio.Task[None]] = set()
        self._settled = asyncio.Event()
        self._going = asyncio.Event()
        self._going.set()
        self._ending = asyncio.Event()
        self._wish: Wish = "run"
        self._hungry = False
        self._suspects: deque[_Delivery] = deque()
        self._crashes: dict[str, int] = {}
        self._counts = Counts(0, 0, 0)
        self._task_s: float | None = None
        self._task_entries = 1.0
        self._enough_since: float | None = None
        self._idle_since: float | None = None

    @property
    def wish(self) -> Wish:
        """What was asked for last."""
        return self._wish

    def obey(self, wish: Wish) -> None:
        """Go on, pause, drain or cancel; may be called from a signal handler of the event loop."""
        if _FIRMNESS[wish] < _FIRMNESS[self._wish]:
            return  # an end that was begun is not taken back
        self._wish = wish
        if wish == "pause":
            self._going.clear()
        else:
            self._going.set()
        if wish in ("drain", "cancel"):
            self._ending.set()

    async def run(self, source: TaskSource, progress: Callable[[Counts], None]) -> RunState:
        """Work until the source ends, or until the run's user wants an end; returns the run as it stands then.

        Raises LedgerError when results can't be stored, ClusterError when workers or reducer can't be kept alive.
        """
        self._source = source
        try:
            async with asyncio.TaskGroup() as self._group:
                self._counts, _ = await self._call("progress")
                progress(self._counts)
                self._ended = self._group.create_task(self._ending.wait())
                services: list[asyncio.Task[Any]] = [
                    self._ended,
                    self._group.create_task(self._commit()),
                    self._group.create_task(self._watch(progress)),
                ]
                await self._dispatch()
                await self._finish()
                async with self._committing:  # a commit that has begun is still counted
                    for task in services:
                        task.cancel()
                self._abandon()
        except BaseExceptionGroup as group:
            raise first_of(group) from group
        finally:
            for actor in self._actors:
                ray.kill(actor.handle)
        state: RunState = await self._call("snapshot")
        progress(state.counts)
        for _ in range(round(WATCHING_S / _GLANCE_S)):
            if not await self._call("is_unseen"):
                break
            await asyncio.sleep(_GLANCE_S)
        if self._shared and await self._call("leave", self._prefix):
            ray.kill(self._reducer)
        return state

    async def look(self) -> tuple[Counts, Wish]:
        """See how the run stands now, and what its user wants: sooner than ``progress`` is told."""
        counts, wish = await self._call("progress")
        return counts, wish

    def end(self) -> None:
        """Take no more tasks, and end when nothing is in flight: there is nothing left to do."""
        self._ending.set()

    def bound(self, min_actors: int, max_actors: int) -> None:
        """Change how many workers there may be, from now on: others may have use for their slots."""
        self._limits = replace(self._limits, min_actors=min_actors, max_actors=max_actors)
        if self.actors:
            self._resize(max(min_actors, min(max_actors, self.actors)))

    @property
    def actors(self) -> int:
        """Workers that there are and that stay, running or not yet."""
        return sum(not actor.leaving for actor in self._actors)

    # From the source to the actors.

    async def _dispatch(self) -> None:
        """Give tasks to free slots until the source ends, or an end is wished."""
        task: Task | None = None
        while not self._ending.is_set():
            if not self.actors:  # none yet, or they went when there was nothing to do
                task = task or await self._next()
                if task is None:
                    return
                self._resize(self._limits.min_actors)
            slot = self._free.get_nowait() if self._free.qsize() else await self._unless_ending(self._free.get())
            if slot is None or not _holds(slot):
                continue
            if task is None:
                task = await self._next()
                if task is None:
                    return
            if not self._suits(slot, task):
                slot = await self._elsewhere(slot, task)
                if slot is None:
                    task = None
                    continue
            if _holds(slot):  # the actor may have fallen while the source was waited for
                tasks, task = await self._gather(task, slot)
                deliveries = [_Delivery(one) for one in tasks]
                self._open.update(deliveries)
                self._send(slot, deliveries)
        if task is not None:
            self._source.retry(task)

    async def _next(self) -> Task | None:
        """Take the source's next task; None when there will be no more, or an end is wished before."""
        if not self._going.is_set():
            await self._unless_ending(self._going.wait())
        self._hungry = True
        task = await self._unless_ending(self._source.get())
        self._hungry = False
        return task

    def _suits(self, slot: Slot, task: Task) -> bool:
        """Whether a slot's node may have a task's file."""
        return self._absences.may(slot[0].node, task.file, self._live)

    async def _elsewhere(self, slot: Slot, task: Task) -> Slot | None:
        """Find a slot for a task whose file is not on that slot's node, which others may use meanwhile.

        None where no node has it, and the task was given up; or where an end is wished, and it went back.
        """
        aside = [slot]
        try:
            while not self._ending.is_set():
                while self._free.qsize():
                    aside.append(self._free.get_nowait())
                for one in aside:
                    if _holds(one) and self._suits(one, task):
                        aside.remove(one)
                        return one
                if not await self._move(aside, task):
                    return None
                if (more := await self._unless_ending(self._free.get(), _TICK_S)) is not None:
                    aside.append(more)
            self._source.retry(task)
            return None
        finally:
            for one in filter(_holds, aside):
                self._free.put_nowait(one)

    async def _move(self, aside: Sequence[Slot], task: Task) -> bool:
        """See to it that there are actors where a task's file may be, in the place of idle ones.

        False when it can be nowhere: then the task is given up.
        """
        nodes = await self._look_at_nodes()
        if self._absences.is_nowhere(task.file, self._live):
            delivery = _Delivery(task)
            self._open.add(delivery)
            await self._miss(delivery, f"{redact(task.file)}: no such file", self._source.tried(task) + 1, nodes)
            return False
        without = frozenset(node for node in self._live if not self._absences.may(node, task.file, self._live))
        has_hope = any(
            without <= actor.avoid if not actor.ready else actor.node not in without
            for actor in self._actors
            if not actor.leaving
        )
        room = sum(int(node.free) for node in nodes if node.id not in without)
        idle = list(dict.fromkeys(actor for actor, _ in aside if not actor.flying and actor.node in without))
        for actor in idle[: room if has_hope else max(1, room)]:
            actor.leaving = True
            self._add_actor(without)
        return True

    async def _look_at_nodes(self) -> list[Node]:
        """See which nodes there are; while the cluster's head is away, those that there were."""
        with contextlib.suppress(*AWAY):
            self._nodes = await asyncio.to_thread(working_nodes)
            self._live = frozenset(node.id for node in self._nodes)
        return self._nodes

    async def _gather(self, first: Task, slot: Slot) -> tuple[list[Task], Task | None]:
        """Add more tasks to a tiny one, as many as are at hand; returns also the first that was too much to go along.

        Files differ in size, and so do tasks: what one takes is told by its entries.
        """
        tasks = [first]
        left_s = _WORTH_A_CALL_S - self._expected_s(first)
        while len(tasks) < TOGETHER and left_s > 0:
            coming = asyncio.ensure_future(self._source.get())
            await asyncio.sleep(0)  # what is at hand comes at once
            task = coming.result() if coming.done() else None
            coming.cancel()
            if task is None:
                break
            left_s -= self._expected_s(task)
            if left_s < 0 or not self._suits(slot, task):
                return tasks, task
            tasks.append(task)
        return tasks, None

    def _expected_s(self, task: Task) -> float:
        """Time that a task will take, going by those before it."""
        return task.entries / self._task_entries * self._task_s if self._task_s is not None else math.inf

    async def _unless_ending(self, awaited: Awaitable[_T], within_s: float | None = None) -> _T | None:
        """Wait for something; None when an end is wished before, or it takes too long."""
        wanted = asyncio.ensure_future(awaited)
        try:
            await asyncio.wait({wanted, self._ended}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
            return wanted.result() if wanted.done() else None
        finally:
            wanted.cancel()

    def _send(self, slot: Slot, deliveries: Sequence[_Delivery]) -> None:
        actor, _ = slot
        if not actor.flying:
            actor.since = time.monotonic()
        actor.flying.extend(deliveries)
        for delivery in deliveries:
            delivery.copies += 1
            delivery.started += 1
        attempt = self._attempt(slot, deliveries[0]) if len(deliveries) == 1 else self._attempt_all(slot, deliveries)
        self._attempts.add(task := self._group.create_task(attempt))
        task.add_done_callback(self._attempts.discard)

    async def _attempt(self, slot: Slot, delivery: _Delivery) -> None:
        """See one task through at one actor."""
        actor, _ = slot
        try:
            partial: Partial = await actor.handle.process.remote(delivery.task)
        except RayError as error:
            if _is_fall(error):
                self._fell(slot)
            self._land(slot, delivery)
            self._offer(slot)
            await self._faulty(actor, delivery, error)
        else:
            self._land(slot, delivery)
            await self._keep(delivery, partial)
            self._offer(slot)

    async def _attempt_all(self, slot: Slot, deliveries: Sequence[_Delivery]) -> None:
        """See several tiny tasks through at one actor. Whatever goes wrong with them all is found out one by one."""
        actor, _ = slot
        try:
            outcomes = await actor.handle.process_all.remote([delivery.task for delivery in deliveries])
        except RayError as error:
            if _is_fall(error):
                self._fell(slot)
            for delivery in deliveries:
                self._land(slot, delivery)
            self._offer(slot)
            for delivery in deliveries:
                self._suspect(delivery)
            return
        for delivery in deliveries:
            self._land(slot, delivery)
        failed = []
        for delivery, outcome in zip(deliveries, outcomes, strict=True):
            if isinstance(outcome, Partial):
                await self._keep(delivery, outcome)
            else:
                failed.append((delivery, outcome))
        self._offer(slot)
        for delivery, fault in failed:
            await self._faulty(actor, delivery, fault)

    async def _keep(self, delivery: _Delivery, partial: Partial) -> None:
        """Queue a partial for its commit, when there is room."""
        spent, entries = partial.cost.wall_s, max(1, partial.task.entries)
        if self._task_s is None:
            self._task_s, self._task_entries = spent, entries
        else:
            self._task_s = 0.9 * self._task_s + 0.1 * spent
            self._task_entries = 0.9 * self._task_entries + 0.1 * entries
        await self._done.put((delivery, partial))

    def _land(self, slot: Slot, delivery: _Delivery) -> None:
        actor, _ = slot
        if delivery in actor.flying:  # a fall has taken all off
            actor.flying.remove(delivery)
        actor.since = time.monotonic()
        delivery.copies -= 1

    def _offer(self, slot: Slot) -> None:
        """Give a slot back, unless it is void. An actor that has nothing in flight takes a suspect before all else."""
        actor, _ = slot
        if not _holds(slot):
            return
        if actor.flying:
            if not self._suspects:
                self._free.put_nowait(slot)
            return
        actor.turn += 1
        if self._suspects:
            self._send((actor, actor.turn), [self._suspects.popleft()])
        else:
            for _ in range(IN_FLIGHT):
                self._free.put_nowait((actor, actor.turn))

    # From the actors to the reducer.

    async def _commit(self) -> None:
        """Hand the reducer what has gathered since its last commit, again and again."""
        while True:
            batch = [await self._done.get()]
            await self._wait_for_others()
            while len(batch) < BATCH and not self._done.empty():
                batch.append(self._done.get_nowait())
            async with self._committing:
                await self._call("merge", [partial for _, partial in batch])
                for delivery, _ in batch:
                    self._crashes.pop(delivery.task.task_id, None)
                    self._settle(delivery, self._source.ack, delivery.task)

    async def _wait_for_others(self) -> None:
        """Let more partials come, unless the source hands out no more before it is told of these."""
        for _ in range(_GROUP_GLANCES):
            if self._hungry or len(self._open) < 2:
                return
            await asyncio.sleep(_GROUP_S / _GROUP_GLANCES)

    def _settle(self, delivery: _Delivery, tell: Callable[..., None], *told: object) -> None:
        """Tell the source what became of a delivery: once, whichever of its copies came first."""
        if delivery.settled:
            return
        delivery.settled = True
        self._open.discard(delivery)
        tell(*told)
        self._settled.set()

    async def _call(self, method: str, *args: object) -> Any:  # noqa: ANN401 (whatever the reducer returns)
        """Call the reducer, again while it is being restarted: all that it does may be done twice."""
        begun = time.monotonic()
        patience = self._limits.reducer_s
        pauses = waits(*self._limits.back_off_s)
        silences = 0
        while True:
            bound = getattr(self._reducer, method)
            asked = time.monotonic()
            try:
                return await asyncio.wait_for(bound.remote(*args), patience)
            except TimeoutError as error:
                silences += 1
                if silences == _SILENCES:
                    raise ClusterError(f"the reducer gives no answer within {patience:g} s") from error
                begun = time.monotonic()  # its next life has as long to come
                if self._replaced < asked:  # or another call has found it silent too, and replaced it
                    self._replaced = begun
                    ray.kill(self._reducer, no_restart=False)  # a fence keeps out what it may write when it comes to
            except RayError as error:
                self._bear(error, time.monotonic() - begun)
            await asyncio.sleep(next(pauses))

    def _bear(self, error: RayError, since_s: float) -> None:
        """See to it that the reducer can be called again after an error; raises what can't be borne, or for so long."""
        cause = _cause(error)
        if isinstance(cause, FencedError) and self._shared and since_s < self._limits.reducer_s:
            ray.kill(self._reducer)  # one that begins from the ledger as it is now goes on
        elif isinstance(error, RayTaskError):
            raise cause if isinstance(cause, HzzrayError) else error
        elif isinstance(error, ActorDiedError):  # for good; from restarts it comes back
            if error.actor_init_failed:
                raise LedgerError(f"the reducer can't start: {_reason(error)}") from error
            if not self._shared:
                raise FencedError("the reducer was ended: another process has taken over the run") from error
            self._reducer = self._find_reducer()
        elif not isinstance(error, RayActorError):
            raise error
        elif since_s > self._limits.reducer_s:
            raise ClusterError(f"the reducer can't be kept alive: {_first_line(error)}") from error

    # What goes wrong.

    async def _faulty(self, actor: _Actor, delivery: _Delivery, error: Exception) -> None:
        """Decide what a failed attempt means for the task."""
        cause = _cause(error)
        alone = actor.fell_with == (delivery,)
        if isinstance(cause, MissingFileError):
            self._absences.note(actor.node, delivery.task.file)
        if delivery.settled or delivery.copies:
            return  # another copy decides
        if _is_fall(error):
            await self._fallen(actor, delivery, cause, alone=alone)
            return
        attempts = self._source.tried(delivery.task) + 1
        if isinstance(cause, MissingFileError):
            nodes = await self._look_at_nodes()
            if self._absences.is_nowhere(delivery.task.file, self._live):
                await self._miss(delivery, str(cause), attempts, nodes)
            else:
                self._settle(delivery, self._source.retry, delivery.task)
        elif isinstance(cause, DataError):
            await self._give_up(delivery, str(cause), attempts, permanent=True)
        elif isinstance(cause, MemoryError):
            await self._cut(delivery, "out of memory")
        else:
            reason = str(cause) if isinstance(cause, HzzrayError) else _first_line(cause)
            if attempts >= self._limits.attempts:
                await self._give_up(delivery, reason, attempts, permanent=False)
            else:
                self._diary.tell("task retried", delivery.task.sample, f"{_range(delivery.task)}: {reason}")
                low, high = self._limits.back_off_s
                await asyncio.sleep(min(high, low * 2**attempts) * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
                self._settle(delivery, self._source.retry, delivery.task, attempts)

    async def _fallen(self, actor: _Actor, delivery: _Delivery, cause: Exception, *, alone: bool) -> None:
        """Decide what the fall of an actor means for a task that flew to it, ``alone`` or with others."""
        if actor.hung is delivery:
            await self._cut(delivery, f"no result within {self._limits.timeout_s:g} s")
        elif isinstance(cause, OutOfMemoryError) and alone:
            await self._cut(delivery, f"out of memory: {_first_line(cause)}")
        elif alone and (crashes := self._count_crash(delivery)) >= self._limits.crashes:
            reason = f"the worker died over it: {_first_line(cause)}"
            await self._give_up(delivery, reason, crashes, permanent=False)
        else:
            self._suspect(delivery)

    def _suspect(self, delivery: _Delivery) -> None:
        """Let a task have an actor to itself: if that dies too, it is known over what."""
        if delivery.settled or delivery.copies:
            return
        self._diary.tell("task retried", delivery.task.sample, f"{_range(delivery.task)}: its worker died")
        self._suspects.append(delivery)
        for actor in self._actors:
            if not actor.flying:
                self._offer((actor, actor.turn))

    def _count_crash(self, delivery: _Delivery) -> int:
        name = delivery.task.task_id
        self._crashes[name] = self._crashes.get(name, 0) + 1
        return self._crashes[name]

    async def _give_up(self, delivery: _Delivery, reason: str, attempts: int, *, permanent: bool) -> None:
        self._crashes.pop(delivery.task.task_id, None)
        failure = Failure(task=delivery.task, reason=reason, permanent=permanent, attempts=attempts)
        self._diary.tell("task failed", delivery.task.sample, f"{_range(delivery.task)}: {reason}")
        await self._call("fail", failure)
        self._settle(delivery, self._source.reject, failure)

    async def _miss(self, delivery: _Delivery, reason: str, attempts: int, nodes: Sequence[Node]) -> None:
        """Give up a task whose file no node can find."""
        where = f" on any node ({', '.join(sorted(node.name for node in nodes))})" if len(nodes) > 1 else ""
        await self._give_up(delivery, f"{reason}{where}", attempts, permanent=True)

    async def _cut(self, delivery: _Delivery, reason: str) -> None:
        """Replace a task that is too much for a worker by its halves; give up one that can't be cut further."""
        task = delivery.task
        crashes = self._count_crash(delivery)
        if task.entries < 2 or crashes >= self._limits.crashes:
            await self._give_up(delivery, reason, crashes, permanent=False)
            return
        halves = task.halves()
        for half in halves:
            self._crashes[half.task_id] = crashes
        self._diary.tell("task split", task.sample, f"{_range(task)}: {reason}")
        if await self._call("split", task, halves):
            self._settle(delivery, self._source.split, task, halves)
        else:
            self._settle(delivery, self._source.ack, task)

    # The actors themselves.

    def _resize(self, number: int) -> None:
        """Start actors, or let the idlest go, until as many as wanted stay."""
        staying = [actor for actor in self._actors if not actor.leaving]
        for _ in range(len(staying), number):
            self._add_actor()
        surplus = sorted(staying, key=lambda actor: (actor.ready, len(actor.flying)))[: max(0, len(staying) - number)]
        for actor in surplus:
            actor.leaving = True

    def _add_actor(self, avoid: frozenset[str] = frozenset()) -> None:
        """Start one more actor, on none of some nodes."""
        name = f"{self._prefix}{self._started}"
        self._started += 1
        actor = _Actor(name, self._make(name, avoid), avoid)
        self._actors.append(actor)
        self._revivals.add(self._group.create_task(self._revive(actor)))

    def _make(self, name: str, avoid: frozenset[str]) -> Handle:
        return self._start(name, avoid) if avoid else self._start(name)

    def _fell(self, slot: Slot) -> None:
        """Take note that an actor fell: its slots are void until it is back."""
        actor, turn = slot
        if actor.turn != turn:
            return
        actor.turn += 1
        actor.ready = False
        actor.fallen = True
        self._diary.tell("worker died", actor.name, f"with {len(actor.flying)} tasks in flight")
        actor.fell_with = tuple(actor.flying)
        actor.flying.clear()
        if not actor.leaving:
            self._revivals.add(self._group.create_task(self._revive(actor)))

    async def _revive(self, actor: _Actor) -> None:
        """Wait until an actor answers, then offer its slots. Raises ClusterError when it dies for good again and again.

        It may be long in coming: its demand is what makes the autoscaler add a node.
        """
        deaths = 0
        restarted = await asyncio.to_thread(restarts, actor.handle)
        for wait in waits(*self._limits.back_off_s):
            try:
                await asyncio.wait_for(self._usage(actor), _PING_S)
                break
            except (TimeoutError, RayError) as error:
                if actor.leaving:
                    return
                if await asyncio.to_thread(restarts, actor.handle) - restarted >= _FRUITLESS:
                    raise ClusterError(f"{actor.name} can't be kept alive: it ends as soon as it starts") from error
                if isinstance(error, TimeoutError):
                    continue
                if not isinstance(error, ActorUnavailableError):
                    deaths += 1
                    if deaths >= _DEATHS:
                        raise ClusterError(f"{actor.name} can't be kept alive: {_reason(error)}") from error
                    if isinstance(error, ActorDiedError):  # it could not even be made
                        actor.handle = self._make(actor.name, actor.avoid)
            await asyncio.sleep(wait)
        actor.node = await asyncio.to_thread(node_of, actor.handle)
        actor.ready = True
        self._diary.tell("worker back" if actor.turn else "worker came", actor.name)
        self._offer((actor, actor.turn))

    async def _usage(self, actor: _Actor) -> tuple[Usage, ...]:
        usage: tuple[Usage, ...] = await actor.handle.usage.options(concurrency_group="monitor").remote()
        return usage

    async def _watch(self, progress: Callable[[Counts], None]) -> None:
        """Once a second: see how the run stands, obey its user, replace what hangs, fit the number of actors."""
        while True:
            self._counts, wish = await self._call("progress")
            progress(self._counts)
            if wish != self._wish:
                self.obey(wish)
            self._free_the_hung()
            self._chase_stragglers()
            await self._fit()
            self._rest()
            self._bury()
            if self._watcher is not None:
                await self._report(self._watcher)
            await asyncio.sleep(_TICK_S)

    def _free_the_hung(self) -> None:
        now = time.monotonic()
        for actor in self._actors:
            late = actor.ready and actor.flying and now - actor.since > self._limits.timeout_s
            if late and actor.hung is not actor.flying[0]:  # a second kill would hit the actor's next life
                actor.hung = actor.flying[0]
                ray.kill(actor.handle, no_restart=False)

    def _chase_stragglers(self) -> None:
        """When there is nothing else to do, start old tasks, and what waits behind them, a second time elsewhere.

        The first result counts.
        """
        if not self._hungry or self._task_s is None:
            return
        now = time.monotonic()
        for actor in self._actors:
            if not actor.flying or now - actor.since < max(_STRAGGLER_S, 4 * self._task_s):
                continue
            for delivery in actor.flying:
                if not delivery.settled and delivery.started == 1 and (slot := self._spare(actor)):
                    self._send(slot, [delivery])

    def _spare(self, busy: _Actor) -> Slot | None:
        """Take a free slot of any other actor, if there is one."""
        for _ in range(self._free.qsize()):
            slot = self._free.get_nowait()
            if _holds(slot) and slot[0] is not busy:
                return slot
            self._offer(slot)
        return None

    async def _fit(self) -> None:
        """Start actors for the work that is left at once; let them go when fewer have sufficed for a while.

        Beyond those that are to be there anyway, no more than the cluster has slots for, or can grow to.
        """
        limits = self._limits
        staying = self.actors
        if limits.min_actors == limits.max_actors or self._ending.is_set() or self._task_s is None or not staying:
            return
        work_s = self._counts.due * self._task_s
        wanted = min(math.ceil(work_s / limits.worth_s), self._counts.due, limits.max_actors)
        if wanted > limits.min_actors:
            try:
                wanted = int(min(wanted, await asyncio.to_thread(room)))
            except AWAY:
                return
        wanted = max(limits.min_actors, wanted)
        if wanted >= staying:
            self._enough_since = None
            self._resize(wanted)
        elif self._enough_since is None:
            self._enough_since = time.monotonic()
        elif time.monotonic() - self._enough_since > limits.patience_s:
            self._resize(wanted)

    def _rest(self) -> None:
        """Let all actors go when there has been nothing to do for a while: others may have use for their slots."""
        idle_s = self._limits.idle_s
        if self._open or not self._hungry or idle_s is None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
        elif time.monotonic() - self._idle_since > idle_s:
            self._resize(0)

    def _bury(self) -> None:
        """End the actors that are leaving and have nothing in flight: one that idles would keep its node."""
        for actor in [actor for actor in self._actors if actor.leaving and not actor.flying]:
            self._actors.remove(actor)
            self._diary.tell("worker left", actor.name)
            ray.kill(actor.handle)

    async def _report(self, watcher: Watcher) -> None:
        answers = await asyncio.gather(
            *(asyncio.wait_for(self._usage(actor), _TICK_S) for actor in self._actors if actor.ready),
            return_exceptions=True,
        )
        usages = {usage.actor: usage for answer in answers if isinstance(answer, tuple) for usage in answer}
        for actor in self._actors:
            if actor.name in usages:
                self._recognise(actor, usages[actor.name].pid)
        rows = [usages.pop(actor.name, absent(actor.name, actor.state)) for actor in self._actors]
        usages |= {usage.actor: usage for usage in self._around()}
        rows.extend(self._since(usage) for usage in usages.values())
        ready = sum(actor.ready for actor in self._actors)
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        self._meet(nodes)
        scale = Scale(
            actors=ready,
            pending=len(self._actors) - ready,
            nodes=len(nodes),
            waiting=max(0, self._counts.due - len(self._open)),
            in_flight=len(self._open),
        )
        congestion = self._source.congestion()
        events = self._diary.tear_off()
        live: Live | None = await self._call("report", self._prefix, rows, scale, congestion, self._version, events)
        if live is not None:
            self._version = live.state.version if live.state is not None else self._version
            watcher(live)
        for usage in filter(lambda usage: usage.is_service, rows):
            metrics = Metrics(self._metrics.run, usage.actor)
            metrics.level("service_cpu_seconds", usage.user_s + usage.system_s)
            metrics.level("service_memory_bytes", usage.rss)
        for name, value in zip(QUEUE_LEVELS, congestion or (), strict=False):
            self._metrics.level(name, value)
        self._metrics.level("actors", scale.actors)
        self._metrics.level("tasks_waiting", scale.waiting)
        self._metrics.level("tasks_in_flight", scale.in_flight)

    def _recognise(self, actor: _Actor, pid: int) -> None:
        """Take note that an actor died which had nothing to do: no call failed, but its process is another."""
        if actor.pid not in (0, pid) and not actor.fallen:
            self._diary.tell("worker died", actor.name, "idle")
            self._diary.tell("worker back", actor.name)
        actor.pid, actor.fallen = pid, False

    def _meet(self, nodes: dict[str, str]) -> None:
        """Take note of nodes, by their ids, that came and that went."""
        known = nodes if self._met is None else self._met
        for node in nodes.keys() - known.keys():
            self._diary.tell("node came", nodes[node])
        for node in known.keys() - nodes.keys():
            self._diary.tell("node left", known[node])
        self._met = nodes

    async def _finish(self) -> None:
        """Wait for what is in flight and uncommitted, if it is wanted still; not beyond a bound when draining."""
        until = time.monotonic() + self._limits.drain_s if self._ending.is_set() else math.inf
        while self._open and self.wish != "cancel" and time.monotonic() < until:
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), 0.2)

    def _abandon(self) -> None:
        """Drop what is left in flight: it is not acknowledged, and so will be done another time."""
        for task in (*self._attempts, *self._revivals):
            task.cancel()


def _cause(error: Exception) -> Exception:
    """Tell what went wrong, wherever: in the task itself, or on the way to it."""
    return error.cause if isinstance(error, RayTaskError) else error


def _is_fall(error: Exception) -> bool:
    """Whether it was the actor that failed, rather than its task."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, RayActorError | OutOfMemoryError)
    return isinstance(error, RayError)


def _holds(slot: Slot) -> bool:
    actor, turn = slot
    return actor.ready and not actor.leaving and actor.turn == turn


def _reason(error: RayError) -> str:
    """Say in one line why an actor died: in its constructor, what that raised."""
    cause = _cause(error)
    if isinstance(cause, RayActorError) and cause.actor_init_failed:
        return str(cause).strip().splitlines()[-1]
    return _first_line(cause)


def _range(task: Task) -> str:
    return f"entries {task.start} to {task.stop}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _actor_class(plain: type, group: str, methods: Sequence[str] = ()) -> Any:  # noqa: ANN401 (Ray's own says less)
    """Wrap a plain class, with a thread that answers calls of a group while the others work.

    ``methods`` are of the group whoever calls them: a client from outside the cluster can't say so.
    """
    remote: Any = ray.remote
    for name in methods:
        ray.method(concurrency_group=group)(getattr(plain, name))
    return remote(concurrency_groups={group: 1})(plain)


def worker_starter(
    spec: RunSpec, sources: tuple[str, ...], cache: Path | None, places: tuple[str, ...] = ()
) -> Starter:
    """Make what starts a worker actor. It is restarted when it dies, with nothing lost but what it was at.

    It may use analyses in ``places``, beside those that its node's environment allows.
    """
    actor = _actor_class(Worker, "monitor")

    def start(name: str, avoid: Collection[str] = ()) -> Handle:
        return actor.options(**worker_options(avoid)).remote(spec, sources, name, cache, places)

    return start


def worker_options(avoid: Collection[str] = ()) -> dict[str, Any]:
    """Make the options that worker actors are started with, on none of some nodes."""
    options: dict[str, Any] = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": 0}
    if avoid:
        elsewhere = NotIn(*avoid)  # type: ignore[no-untyped-call]
        options["scheduling_strategy"] = NodeLabelSchedulingStrategy({_NODE_ID: elsewhere})
    return options


def start_reducer(path: Path, run_id: str) -> Handle:
    """Start the reducer of a run on this node, where its ledger is; one that is there already is ended.

    Raises ClusterError when the earlier one won't go.
    """
    name = _reducer_name(run_id)
    for wait in itertools.islice(waits(0.05, 1.0), 20):
        with contextlib.suppress(ValueError):  # there is none of that name
            ray.kill(ray.get_actor(name))
        with contextlib.suppress(ValueError):  # the name is still taken
            return _reducer(path, name)
        time.sleep(wait)
    raise ClusterError(f"an earlier {name} of this cluster won't end")


def join_reducer(path: Path, run_id: str) -> Handle:
    """Find the reducer that another process of this cluster has started for a run, or start it on this node."""
    return _reducer(path, _reducer_name(run_id), get_if_exists=True)


async def reload_reducer(run_id: str) -> None:
    """Let the reducer of a run, if there is one, take note of what was planned or forgiven in its ledger.

    One that dies meanwhile does so as it begins again.
    """
    try:
        await ray.get_actor(_reducer_name(run_id)).reload.remote()
    except (ValueError, RayActorError):
        return


def _reducer_name(run_id: str) -> str:
    return f"reducer:{run_id}"


def _reducer(path: Path, name: str, *, get_if_exists: bool = False) -> Handle:
    """Start a reducer: it waits for the disk more than it computes, and so takes no CPU slot."""
    node = ray.get_runtime_context().get_node_id()
    actor = _actor_class(Reducer, "read", _READS).options(
        name=name,
        get_if_exists=get_if_exists,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )
    return actor.remote(path)
