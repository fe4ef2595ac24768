"""A run's worker actors and its reducer: what the dispatch decides is done here, and what comes of it told to it.

Nothing is decided here (see ``dispatch``).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, assert_never

import ray
from ray.exceptions import RayError

from hzzray.engine import actors
from hzzray.engine.actors import AWAY, Handle, Starter, fault_of, no_answer, node_of, own_error, restarts, trouble_of
from hzzray.engine.cluster import ClusterError, room, working_nodes
from hzzray.engine.dispatch import Dispatch
from hzzray.engine.events import EventLog
from hzzray.engine.explore_messages import LentWorker
from hzzray.engine.faults import CallAgain, Ending, Fault, Patience
from hzzray.engine.instructions import (
    Abort,
    Ack,
    After,
    Answered,
    Ask,
    AskNoMore,
    Begun,
    Bounded,
    Broken,
    Came,
    Commit,
    Committed,
    DispatchEvent,
    EndWished,
    EndWorker,
    Exhausted,
    FailureStored,
    Give,
    Instruction,
    Joined,
    LookAtNodes,
    LookFor,
    LookForRoom,
    NodesSeen,
    NoneAtHand,
    Offered,
    ProcessSeen,
    Reject,
    Replace,
    RestartWorker,
    Return,
    RoomSeen,
    SplitStored,
    StartWorker,
    Stop,
    StoreFailure,
    StoreSplit,
    Tell,
    Ticked,
    Wished,
)
from hzzray.engine.ledger import FencedError, LedgerError, Wish
from hzzray.engine.limits import Limits
from hzzray.engine.metrics import QUEUE_LEVELS, Metrics
from hzzray.engine.monitor import CpuBaseline, Scale, Usage, absent, measure_host
from hzzray.engine.reducer import WATCHING_S, Live
from hzzray.engine.source import MemorySource, TaskSource
from hzzray.errors import first_of
from hzzray.messages import Counts, Partial, RunState
from hzzray.parallel import aside

Watcher = Callable[[Live], None]
"""Is told about every second how the run goes, all its pools together, the run's state where it changed."""

_TICK_S = 1.0
_GLANCE_S = 0.1


class Pool:
    """Worker actors and the reducer actor of one run. ``start`` makes its worker actors.

    ``reducer`` gives the reducer's handle. A pool that is the run's only one asks for it once: a reducer that was ended
    for good means that another process took over. With ``shared``, several pools work on the run, each may have
    started the reducer, and when its owner goes the others ask for it again.

    ``watcher``, if there is one, is told about every second how the run goes; of several pools that of the oldest.
    Workers' names begin with ``prefix``, by which the pool is known too; their files lie in ``sources``. ``around``
    tells what is used around the workers: by this machine, or by the services of a deployment. ``lent`` are workers of
    others that fill what they hold hot.
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
        around: Callable[[], Iterable[Usage]] = lambda: [measure_host()],
        sources: Sequence[str] = (),
        lent: Iterable[LentWorker] = (),
    ) -> None:
        self._start = start
        self._reducer = _ReducerCalls(reducer, Patience(limits, random.uniform, shared=shared))
        self._shared = shared
        self._prefix = prefix
        self._watcher = watcher
        self._around = around
        self._metrics = metrics or Metrics("", "pool")
        self._dispatch = Dispatch(limits, random.uniform, sources, prefix=prefix)
        self._source: TaskSource = MemorySource(())  # none yet
        self._workers: dict[str, Handle] = {}
        self._lent = {one.name: one for one in lent}
        self._group = asyncio.TaskGroup()
        self._jobs: set[asyncio.Task[None]] = set()
        self._asking: asyncio.Task[None] | None = None
        self._events: deque[DispatchEvent] = deque()
        self._is_telling = False
        self._over = asyncio.Event()
        self._aborted = ""
        self._event_log = EventLog()
        self._cpu_baseline = CpuBaseline()
        self._version = -1
        self._names: dict[str, str] = {}
        self._asked: asyncio.Task[list[dict[str, Any]]] | None = None

    @property
    def wish(self) -> Wish:
        """What was asked for last."""
        return self._dispatch.wish

    @property
    def actors(self) -> int:
        """Workers that there are and that stay, running or not yet."""
        return self._dispatch.staying

    def obey(self, wish: Wish) -> None:
        """Go on, pause, drain or cancel; may be called from a signal handler of the event loop."""
        self._tell(Wished(wish))

    def end(self) -> None:
        """Take no more tasks, and end when nothing is in flight: there is nothing left to do."""
        self._tell(EndWished())

    def bound(self, min_actors: int, max_actors: int) -> None:
        """Change how many workers there may be, from now on: others may have use for their slots."""
        self._tell(Bounded(min_actors, max_actors))

    async def look(self) -> tuple[Counts, Wish]:
        """See how the run stands now, and what its user wants: sooner than ``progress`` is told."""
        counts, wish = await self._reducer.call("progress")
        return counts, wish

    async def run(
        self, source: TaskSource, progress: Callable[[Counts], None], known: Counts | None = None
    ) -> RunState:
        """Work until the source ends, or until the run's user wants an end; returns the run as it stands then.

        Who has ``known`` how the run stands needn't wait for the reducer to tell: workers start beside it.
        Raises LedgerError when results can't be stored, ClusterError when workers or reducer can't be kept alive.
        """
        self._source = source
        try:
            async with self._group:
                for lent in self._lent.values():
                    self._tell(Joined(lent.name, lent.holds))
                if known is not None:
                    self._tell(Begun(known))
                counts, _ = await self.look()
                progress(counts)
                if known is None:
                    self._tell(Begun(counts))
                self._do(self._watch(progress))
                await self._over.wait()
                for job in self._jobs:  # what is in flight is not acknowledged, and so will be done another time
                    job.cancel()
                if self._aborted:
                    raise ClusterError(self._aborted)
                if self._watcher is not None:  # once more: what was done since the last second is told too
                    await self._report(self._watcher)
        except BaseExceptionGroup as group:
            raise first_of(group) from group
        finally:
            for worker in self._workers.values():
                actors.end(worker)
        state: RunState = await self._reducer.call("snapshot")
        progress(state.counts)
        for _ in range(round(WATCHING_S / _GLANCE_S)):
            if not await self._reducer.call("is_unseen"):
                break
            await asyncio.sleep(_GLANCE_S)
        if self._shared and await self._reducer.call("leave", self._prefix):
            self._reducer.end()
        return state

    # What is instructed.

    def _tell(self, event: DispatchEvent) -> None:
        """Let the dispatch know of an event, and do what it says; what comes of that at once is told after it."""
        self._events.append(event)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._events:
                for instruction in self._dispatch.handle(self._events.popleft(), time.monotonic()):
                    self._carry_out(instruction)
        finally:
            self._is_telling = False

    def _carry_out(self, instruction: Instruction) -> None:  # noqa: C901, PLR0912 (a table)
        match instruction:
            case Ask(at_hand):
                if at_hand:
                    self._ask_at_once()
                else:
                    self._asking = self._do(self._ask())
            case Give():
                self._do(self._give(instruction))
            case Ack(tasks):
                for task in tasks:
                    self._source.ack(task)
            case Commit(partials):
                self._do(self._store(Committed(), "merge", partials))
            case After(seconds, event):
                self._do(self._tell_later(seconds, event))
            case Return(task, attempts):
                self._source.retry(task, attempts)
            case Reject(failure):
                self._source.reject(failure)
            case Replace(task, parts):
                self._source.split(task, parts)
            case StoreFailure(delivery, failure):
                self._do(self._store(FailureStored(delivery, failure), "fail", failure))
            case StoreSplit():
                self._do(self._split(instruction))
            case StartWorker(name, avoid):
                self._workers[name] = self._start(name, avoid) if avoid else self._start(name)
            case LookFor():
                self._do(self._look_for(instruction))
            case RestartWorker(name):
                actors.restart(self._workers[name])
            case EndWorker(name):
                actors.end(self._workers.pop(name))
            case LookAtNodes():
                self._do(self._look_at_nodes())
            case LookForRoom():
                self._do(self._look_for_room())
            case Tell(kind, who, what):
                self._event_log.tell(kind, who, what)
            case AskNoMore():
                if self._asking is not None:
                    self._asking.cancel()
            case Stop():
                self._over.set()
            case Abort(reason):
                self._aborted = reason
                self._over.set()
            case _:
                assert_never(instruction)

    def _do(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let a job be done meanwhile; what it raises ends the run."""
        task = self._group.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task

    async def _tell_later(self, seconds: float, event: DispatchEvent) -> None:
        await asyncio.sleep(seconds)
        self._tell(event)

    async def _ask(self) -> None:
        """Get the source's next task."""
        task = await self._source.get()
        self._tell(Exhausted() if task is None else Offered(task, self._source.tried(task)))

    def _ask_at_once(self) -> None:
        """Get the source's next task if it is there: without a job, which costs more than all else of a tiny task."""
        getting = self._source.get()
        task = None
        try:
            getting.send(None)
        except StopIteration as done:
            task = done.value
        finally:
            getting.close()
        self._tell(NoneAtHand() if task is None else Offered(task, self._source.tried(task)))

    async def _give(self, give: Give) -> None:
        """Call a worker with tasks."""
        outcomes: Sequence[Partial | Exception]
        try:
            if give.worker in self._lent:
                outcomes = await self._lent[give.worker].fill(give.tasks)
            elif len(give.tasks) == 1:
                outcomes = [await self._workers[give.worker].process.remote(give.tasks[0])]
            else:
                outcomes = await self._workers[give.worker].process_all.remote(list(give.tasks))
        except RayError as error:
            self._tell(Broken(give.call, fault_of(error)))
        else:
            self._tell(Answered(give.call, tuple(_outcome(one) for one in outcomes)))

    async def _store(self, then: Committed | FailureStored, method: str, what: object) -> None:
        await self._reducer.call(method, what)
        self._tell(then)

    async def _split(self, split: StoreSplit) -> None:
        stands = await self._reducer.call("split", split.task, split.halves)
        self._tell(SplitStored(split.delivery, split.halves, stands))

    async def _look_for(self, look: LookFor) -> None:
        """See whether a worker answers, and on which node it is."""
        await asyncio.sleep(look.after_s)
        if (worker := self._workers.get(look.worker)) is None:
            return
        before = await aside(restarts, worker)
        try:
            await _usage(worker, look.within_s)
        except (TimeoutError, RayError) as error:
            now = await aside(restarts, worker)
            self._tell(no_answer(look.worker, error, before, now))
        else:
            self._tell(Came(look.worker, await aside(node_of, worker)))

    async def _look_at_nodes(self) -> None:
        try:
            nodes = tuple(await aside(working_nodes))
        except AWAY:
            nodes = None
        self._tell(NodesSeen(nodes))

    async def _look_for_room(self) -> None:
        try:
            slots = await aside(room)
        except AWAY:
            slots = None
        self._tell(RoomSeen(slots))

    # What is told, to whom.

    async def _watch(self, progress: Callable[[Counts], None]) -> None:
        """Once a second: see how the run stands, and tell of it."""
        while True:
            counts, wish = await self.look()
            progress(counts)
            self._tell(Ticked(counts, wish))
            if self._watcher is not None:
                await self._report(self._watcher)
            await asyncio.sleep(_TICK_S)

    async def _report(self, watcher: Watcher) -> None:
        usages = await self._usages()
        standings = self._dispatch.standings
        rows = [usages.pop(one.name, absent(one.name, one.state)) for one in standings]
        usages |= {usage.actor: usage for usage in self._around()}
        rows.extend(self._cpu_baseline(usage) for usage in usages.values())
        ready = sum(one.is_ready for one in standings)
        nodes = await self._live_nodes()
        self._event_log.tell_of_nodes(nodes)
        scale = Scale(
            actors=ready + len(self._dispatch.lenders),
            pending=len(standings) - ready,
            nodes=len(nodes),
            waiting=self._dispatch.waiting,
            in_flight=self._dispatch.in_flight,
        )
        congestion = self._source.congestion()
        events = self._event_log.drain()
        live: Live | None = await self._reducer.call(
            "report", self._prefix, rows, scale, congestion, self._version, events
        )
        if live is not None:
            self._version = live.state.version if live.state is not None else self._version
            watcher(live)
        for usage in filter(lambda usage: usage.is_service, rows):
            metrics = Metrics(self._metrics.run, usage.actor)
            metrics.level("service_cpu_seconds", usage.user_s + usage.system_s)
            metrics.level("service_memory_bytes", usage.rss)
        if congestion is not None:
            for name, of in QUEUE_LEVELS.items():
                self._metrics.level(name, getattr(congestion, of))
        self._metrics.level("actors", scale.actors)
        self._metrics.level("tasks_waiting", scale.waiting)
        self._metrics.level("tasks_in_flight", scale.in_flight)

    async def _live_nodes(self) -> dict[str, str]:
        """Tell the names of the nodes by their ids; as they were last seen where Ray's head gives no answer.

        A question to one that is gone blocks for a minute: nothing is to wait with it.
        """
        if self._asked is None:
            self._asked = asyncio.ensure_future(aside(ray.nodes))
        await asyncio.wait([self._asked], timeout=_TICK_S)
        if self._asked.done():
            rows, self._asked = self._asked.result(), None
            self._names = {node["NodeID"]: node["NodeManagerHostname"] for node in rows if node["Alive"]}
        return self._names

    async def _usages(self) -> dict[str, Usage]:
        """Ask the workers what they have used, and what is used around them; by name."""
        ready = [self._workers[one.name] for one in self._dispatch.standings if one.is_ready]
        ready += [self._lent[name].handle for name in self._dispatch.lenders]
        answers = await asyncio.gather(*(_usage(worker, _TICK_S) for worker in ready), return_exceptions=True)
        usages = {usage.actor: usage for answer in answers if isinstance(answer, tuple) for usage in answer}
        for name in self._workers.keys() & usages.keys():
            self._tell(ProcessSeen(name, usages[name].pid))
        return usages


class _ReducerCalls:
    """Calls of a run's reducer, again while it is being restarted: all that it does may be done twice."""

    def __init__(self, find: Callable[[], Handle], patience: Patience) -> None:
        self._find = find
        self._patience = patience
        self._actor = find()

    async def call(self, method: str, *args: object) -> Any:  # noqa: ANN401 (whatever the reducer returns)
        """Call a method until there is an answer; raises what the dispatch's patience ends in."""
        within_s = self._patience.limits.reducer_s
        call = self._patience.call(time.monotonic())
        while True:
            bound = getattr(self._actor, method)
            call.asked(time.monotonic())
            try:
                return await asyncio.wait_for(bound.remote(*args), within_s)
            except TimeoutError as error:
                await self._again(call.silent(time.monotonic()), error, f"within {within_s:g} s")
            except RayError as error:
                trouble = trouble_of(error)
                await self._again(call.failed(trouble, time.monotonic()), error, trouble.reason)

    async def _again(self, decided: CallAgain | Ending, error: Exception, why: str) -> None:
        """Do what is to be done before another call; raises where there is to be none."""
        match decided:
            case CallAgain(remedy, wait_s):
                if remedy == "find":
                    self._actor = self._find()
                elif remedy == "restart":
                    actors.restart(self._actor)
                elif remedy == "replace":
                    actors.end(self._actor)
                await asyncio.sleep(wait_s)
            case "silent":
                raise ClusterError(f"the reducer gives no answer {why}") from error
            case "away":
                raise ClusterError(f"the reducer can't be kept alive: {why}") from error
            case "unborn":
                raise LedgerError(f"the reducer can't start: {why}") from error
            case "ended":
                told = "the reducer was ended: another process has taken over the run, or has ended the cluster"
                raise FencedError(told) from error
            case "refused":
                raise own_error(error)

    def end(self) -> None:
        """Kill the reducer."""
        actors.end(self._actor)


def _outcome(outcome: Partial | Exception) -> Partial | Fault:
    return outcome if isinstance(outcome, Partial) else fault_of(outcome)


async def _usage(worker: Handle, within_s: float) -> tuple[Usage, ...]:
    """Ask a worker what it has used. The limit is set in here: a coroutine that is cancelled unborn complains."""
    async with asyncio.timeout(within_s):
        usage: tuple[Usage, ...] = await worker.usage.options(concurrency_group="monitor").remote()
    return usage
