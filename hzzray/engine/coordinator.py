"""Exploring sessions over Ray: one for all viewers of a run, its ranges spread over actors that keep them hot.

A coordinator (an actor of a name that the run's viewers know) deals the ranges out, asks all workers the newest
question, and merges what they answer. A worker that dies takes its ranges along: until others have loaded them, answers
are of a part, and say so. Nothing is kept that a later session needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hzzray.engine.actors import AWAY, restart, waiting
from hzzray.engine.cluster import ClusterError, working_nodes
from hzzray.engine.explore_messages import (
    Candidate,
    LentWorker,
    MergedAnswer,
    OvertakenError,
    Pick,
    Question,
    SessionStatus,
    WorkerAnswer,
)
from hzzray.engine.hot import HotWorker
from hzzray.engine.monitor import Usage
from hzzray.errors import HzzrayError, MissingFileError, TransientError
from hzzray.messages import Range, RunSpec, Task
from hzzray.parallel import aside
from hzzray.physics.analysis import Cut, Template
from hzzray.physics.cached_filler import Picked
from hzzray.retry import waits

#: How often a range is tried that fails in a way that may pass, and how long after [s].
ATTEMPTS = 4
_AGAIN_S = 1.0

_TICK_S = 1.0
_PING_S = 20.0
_SILENCES = 3  # of a worker that has answered before, until it is started anew

#: How long a session may make no progress in loading before it answers of what there is [s].
_PATIENCE_S = 120.0

#: Who waits for slots gets those of a session that nobody has asked for so long, having waited for so many looks [s].
_SPARE_S = 5.0
_LOOKS = 4

#: How often a question is asked again whose answer lacks what a worker took along.
_AGAIN = 5

# A coordinator that died is back so soon, or there is none [s].
_BACK_S = 60.0

# What coordinators' names begin with.
_PREFIX = "explore:"

_OVERTAKEN = "a newer question overtook this one"
_NO_WORKER = (
    f"no worker of the session has come in {2 * _PATIENCE_S:g} s: others have the cluster's slots, or it has none"
)

# How many ranges more than another one a worker may have.
_UNEVEN = 2


class SessionSpec(NamedTuple):
    """What a session explores, and how: the arguments of its workers, how many there are (None: one a CPU slot)."""

    spec: RunSpec
    sources: tuple[str, ...]
    tasks: tuple[Task, ...]
    cache: Path | None
    places: tuple[str, ...]
    actors: int | None
    memory: int | None
    idle_s: float

    @property
    def name(self) -> str:
        """Name of the session's coordinator: another one where the run has become another."""
        ids = "\0".join(task.task_id for task in self.tasks)
        return f"{_PREFIX}{self.tasks[0].run_id}:{hashlib.sha256(ids.encode()).hexdigest()[:12]}"


@dataclass(eq=False, slots=True)
class _Member:
    """A worker actor, the ranges that it answers for, and what it used when it last told; it was ``silent`` since."""

    name: str
    handle: Any
    mine: set[int] = field(default_factory=set)
    ready: bool = False
    usage: Usage | None = None
    bound: int = 0
    hot: int = 0
    silent: int = 0


@dataclass(eq=False, slots=True)
class _Asked:
    """A viewer's question, until it is answered or overtaken; ``number`` is 0 until it is asked."""

    cuts: tuple[Cut, ...]
    templates: tuple[Template, ...]
    apart: bool
    answer: asyncio.Future[MergedAnswer]
    number: int = 0


class Coordinator:
    """Answers all viewers of a run. An actor, whose methods run side by side in one thread."""

    def __init__(self, session: SessionSpec) -> None:
        self._session = session
        self._numbers = itertools.count(1)
        self._members: list[_Member] = []
        self._waiting: deque[int] = deque(range(len(session.tasks)))
        self._tried: Counter[int] = Counter()
        self._lacking: dict[int, set[str]] = {}
        self._failed: dict[int, str] = {}
        self._turns: dict[str, int] = {}  # of each viewer who waits, the newest question's
        self._pending: dict[str, _Asked] = {}
        self._current: tuple[str, _Asked] | None = None
        self._fresh = asyncio.Event()
        self._progress = asyncio.Condition()
        self._used = time.monotonic()
        self._others: Counter[str] = Counter()
        self._services: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._tasks: Any = None

    def __repr__(self) -> str:
        """Return the name that the Ray dashboard shows."""
        return self._session.name

    # What viewers ask.

    async def ask(
        self, viewer: str, cuts: tuple[Cut, ...], templates: tuple[Template, ...], *, apart: bool, whole: bool
    ) -> MergedAnswer:
        """Answer a viewer's newest question.

        Raises OvertakenError where a newer one came meanwhile, ClusterError where no worker comes.
        """
        self._begin()
        self._overtake(viewer)
        turn = self._turns[viewer] = next(self._numbers)
        try:
            for again in range(_AGAIN):
                if whole:
                    await self._loaded(viewer, turn)
                    if again and not any(member.ready for member in self._members):
                        raise ClusterError(_NO_WORKER)
                if self._turns.get(viewer) != turn:
                    raise OvertakenError(_OVERTAKEN)
                asked = _Asked(cuts, templates, apart, asyncio.get_running_loop().create_future())
                self._pending[viewer] = asked
                self._fresh.set()
                merged = await asked.answer
                if not whole or len(merged.done) + len(merged.failed) >= len(self._session.tasks):
                    break
            return merged
        finally:
            self._used = time.monotonic()
            if self._turns.get(viewer) == turn:
                del self._turns[viewer]

    def _overtake(self, viewer: str) -> None:
        """Drop the question that a viewer asked before, if it isn't answered yet."""
        overtaken = [self._pending.pop(viewer)] if viewer in self._pending else []
        if self._current is not None and self._current[0] == viewer:
            overtaken.append(self._current[1])
            for member in self._members:
                member.handle.drop.options(concurrency_group="monitor").remote(self._current[1].number)
        for asked in overtaken:
            if not asked.answer.done():
                asked.answer.set_exception(OvertakenError(_OVERTAKEN))

    async def _loaded(self, viewer: str, turn: int) -> None:
        """Wait until all that can be read is ready, a question is overtaken, or nothing goes on any more."""
        while not self._is_whole and self._turns.get(viewer) == turn and await self._moves():
            pass

    async def _moves(self) -> bool:
        """Wait until a range is ready, or can't be read; False where none is for too long."""
        before = len(self._failed), self._ready
        async with self._progress:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._progress.wait(), _PATIENCE_S)
                return True
        return before != (len(self._failed), self._ready)

    @property
    def _is_whole(self) -> bool:
        return len(self._failed) + self._ready >= len(self._session.tasks)

    @property
    def _ready(self) -> int:
        """Ranges that some worker answers for."""
        return sum(len(member.mine) for member in self._members)

    async def pick(self, pick: Pick, *, whole: bool) -> list[Candidate]:
        """Find candidates; where ``whole``, after all that can be read was."""
        self._begin()
        for _ in range(_AGAIN):
            while whole and not self._is_whole and await self._moves():
                self._used = time.monotonic()
            found: list[Candidate] = []
            # At one moment, as a question is dealt out: ranges move from one worker to another.
            parts = [(member, sorted(member.mine)) for member in self._members if member.mine]
            lacking = len(self._session.tasks) - len(self._failed) - sum(len(numbers) for _, numbers in parts)
            for member, numbers in parts:
                lacking += len(numbers)
                with self._fallible(member):
                    picked: dict[int, Picked] = await member.handle.pick.remote(pick, numbers)
                    for number, some in picked.items():
                        found += await member.handle.describe.remote(number, some)
                    lacking -= len(numbers)
                if pick.limit is not None and len(found) >= pick.limit:
                    return found[: pick.limit]
            if not whole or not lacking:
                break
        return found[: pick.limit]

    async def picked(self, pick: Pick, number: int) -> Picked | None:
        """Find the candidates of one range, once somebody has it; None where it can't be read.

        Raises ClusterError where nobody has it for too long.
        """
        self._begin()
        while number not in self._failed:
            self._used = time.monotonic()
            for member in [one for one in self._members if number in one.mine]:
                with self._fallible(member):
                    found: dict[int, Picked] = await member.handle.pick.remote(pick, [number])
                    return found.get(number)
            if not await self._moves():
                raise ClusterError(f"no worker of the session has read anything in {_PATIENCE_S:g} s")
        return None

    async def standing(self) -> SessionStatus:
        """Tell how much is ready, and how much of it is hot."""
        return SessionStatus(
            ready=self._ready,
            failed=len(self._failed),
            ranges=len(self._session.tasks),
            hot_ranges=sum(member.hot for member in self._members),
            nbytes=sum(usage.hot for usage in await self.usages()),
            bound=sum(member.bound for member in self._members),
            actors=sum(member.ready for member in self._members),
        )

    async def lend(self, spec: RunSpec) -> list[tuple[str, Any, frozenset[Range]]]:
        """Tell of each worker that is there which ranges of a run of another spec it holds hot, and its handle."""
        self._used = time.monotonic()
        ready = [member for member in self._members if member.ready]
        calls = [member.handle.lend.options(concurrency_group="monitor").remote(spec) for member in ready]
        held = await asyncio.gather(*map(_future, calls), return_exceptions=True)
        pairs = zip(ready, held, strict=True)
        return [(one.name, one.handle, holds) for one, holds in pairs if isinstance(holds, frozenset) and holds]

    async def usages(self) -> list[Usage]:
        """Tell what the workers that are there use."""
        return [member.usage for member in self._members if member.ready and member.usage is not None]

    async def attend(self) -> None:
        """See from now on whether somebody asks for something: a session that nobody does ends."""
        if self._watching is None:
            self._watching = asyncio.ensure_future(self._watch())

    async def end(self) -> None:
        """End the session."""
        self._end()

    # What goes on meanwhile.

    def _begin(self) -> None:
        """Start workers, if there are none yet: a coordinator that died begins anew."""
        self._used = time.monotonic()
        if self._services:
            return
        session = self._session
        self._tasks = ray.put(session.tasks)  # kept: a worker that Ray starts again takes it once more
        remote: Any = ray.remote
        actor = remote(concurrency_groups={"load": 1, "monitor": 1})(HotWorker)
        number = session.actors or max(1, sum(int(node.cpus) for node in working_nodes()))
        for i in range(number):
            name = f"explorer-{i}"
            handle = actor.options(num_cpus=1, max_restarts=-1, max_task_retries=0).remote(
                session.spec, session.sources, self._tasks, name, session.cache, session.places, session.memory
            )
            self._members.append(_Member(name, handle))
        going = (self._answer_all(), *map(self._load, self._members))
        self._services = [asyncio.ensure_future(service) for service in going]

    async def _answer_all(self) -> None:
        """Ask all workers the newest question that waits, one after the other."""
        while True:
            await self._fresh.wait()
            if not self._pending:
                self._fresh.clear()
                continue
            viewer = next(reversed(self._pending))  # asked last
            asked = self._pending.pop(viewer)
            if asked.answer.done():
                continue
            asked.number = next(self._numbers)
            self._current = viewer, asked
            question = Question(asked.number, asked.cuts, asked.templates)
            # All at once, before anything else goes on: ranges move from one worker to another.
            parts = [(member, sorted(member.mine)) for member in self._members if member.mine]
            try:
                shares = await asyncio.gather(
                    *(self._share(member, question, numbers, apart=asked.apart) for member, numbers in parts)
                )
                merged = MergedAnswer.of([share for share in shares if share is not None])
            except HzzrayError as error:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            else:
                if not asked.answer.done():
                    asked.answer.set_result(replace(merged, failed=self._failed | merged.failed))
            self._current = None
            self._used = time.monotonic()

    async def _share(
        self, member: _Member, question: Question, numbers: Sequence[int], *, apart: bool
    ) -> WorkerAnswer | None:
        """Ask one worker; None where it fell, or the question was dropped."""
        shares: list[WorkerAnswer | None] = []
        with self._fallible(member):
            shares.append(await member.handle.answer.remote(question, numbers, apart=apart))
        return shares[0] if shares else None

    @contextlib.contextmanager
    def _fallible(self, member: _Member) -> Iterator[None]:
        """Take note that a worker fell, where what is asked of it fails for that."""
        try:
            yield
        except RayTaskError as error:
            if isinstance(error.cause, HzzrayError):
                raise error.cause from error
            self._fell(member)
        except RayError:
            self._fell(member)

    def _fell(self, member: _Member) -> None:
        """Give a worker's ranges to whoever loads them first."""
        member.ready = False
        self._waiting.extend(sorted(member.mine))
        member.mine.clear()
        member.hot = 0

    async def _load(self, member: _Member) -> None:
        """Let a worker load one range after the other, as long as there are some; for ever."""
        pauses = waits(0.1, 2.0)
        while True:
            if not member.ready:
                await self._revive(member)
            number = self._next(member)
            if number is None:
                await asyncio.sleep(0.05 if self._waiting else next(pauses))
                continue
            pauses = waits(0.1, 2.0)
            try:
                await member.handle.load.options(concurrency_group="load").remote(number)
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                await self._blame(member, number, cause)
                continue
            for other in self._members:
                other.mine.discard(number)
            member.mine.add(number)
            await self._tell()

    def _next(self, member: _Member) -> int | None:
        """Choose what a worker loads next: what nobody has, else one of those of which another has too many."""
        for _ in range(len(self._waiting)):
            number = self._waiting.popleft()
            if member.name not in self._lacking.get(number, ()):
                return number
            self._waiting.append(number)
        richest = max(self._members, key=lambda one: len(one.mine))
        if len(richest.mine) - len(member.mine) > _UNEVEN:
            movable = (number for number in richest.mine if member.name not in self._lacking.get(number, ()))
            return next(movable, None)
        return None

    async def _blame(self, member: _Member, number: int, cause: BaseException) -> None:
        """Decide what becomes of a range that a worker could not load."""
        if any(number in other.mine for other in self._members):
            self._lacking.setdefault(number, set()).add(member.name)  # it is well where it is
        elif isinstance(cause, MissingFileError):
            self._lacking.setdefault(number, set()).add(member.name)
            if len(self._lacking[number]) == len(self._members):
                self._failed[number] = str(cause)
            else:
                self._waiting.append(number)
        elif isinstance(cause, TransientError) and self._tried[number] + 1 < ATTEMPTS:
            self._tried[number] += 1
            self._waiting.append(number)
            await asyncio.sleep(_AGAIN_S)
        elif isinstance(cause, HzzrayError):
            self._failed[number] = str(cause)
        elif isinstance(cause, RayError) and self._tried[number] + 1 < ATTEMPTS:
            self._tried[number] += 1  # it may be this very range that workers die of
            self._waiting.append(number)
            self._fell(member)
        else:
            self._failed[number] = f"workers fail over it: {type(cause).__name__}: {cause}".splitlines()[0]
            self._fell(member)
        await self._tell()

    async def _tell(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    async def _revive(self, member: _Member) -> None:
        """Wait until a worker answers: for the first time, or because Ray has started it again."""
        for wait in waits(0.05, 2.0):
            if await self._look_at(member):
                member.ready = True
                return
            await asyncio.sleep(wait)

    async def _look_at(self, member: _Member) -> bool:
        """Ask a worker how it stands; tells whether it answered. One that has another process has nothing hot."""
        try:
            call = member.handle.cache_status.options(concurrency_group="monitor").remote()
            status = await asyncio.wait_for(_future(call), _PING_S)
        except RayError:
            return False
        except TimeoutError:
            member.silent += 1
            if member.usage is not None and member.silent % _SILENCES == 0:
                restart(member.handle)  # it hangs, and whoever waits for its answer with it
            return False
        member.silent = 0
        if member.ready and member.usage is not None and member.usage.pid != status.usage.pid:
            self._fell(member)
        member.bound, member.hot, member.usage = status
        return True

    async def _watch(self) -> None:
        """See that workers are there; end the session when nobody has asked anything for long, or others need them."""
        while True:
            await asyncio.sleep(_TICK_S)
            for member in self._members:
                if member.ready and not await self._look_at(member):
                    self._fell(member)
            idle_s = 0.0 if self._turns else time.monotonic() - self._used
            if idle_s > self._session.idle_s or (idle_s > _SPARE_S and await self._stand_in_the_way()):
                self._end()

    async def _stand_in_the_way(self) -> bool:
        """Tell whether somebody has waited for a while for slots as the workers here have."""
        others: set[str] = set()
        with contextlib.suppress(*AWAY):
            others = await aside(waiting, [member.handle for member in self._members])
        self._others = Counter({one: self._others[one] + 1 for one in others})
        return any(looks >= _LOOKS for looks in self._others.values()) and any(one.ready for one in self._members)

    def _end(self) -> None:
        for member in self._members:
            ray.kill(member.handle)
        ray.kill(ray.get_runtime_context().current_actor)


async def _future(ref: Any) -> Any:  # noqa: ANN401 (Ray's references have no types)
    return await ref


def join(session: SessionSpec) -> Any:  # noqa: ANN401 (an actor's handle)
    """Find the coordinator that a run's viewers share, or start it, on this node."""
    actor: Any = ray.remote(Coordinator)
    node = ray.get_runtime_context().get_node_id()
    coordinator = actor.options(
        name=session.name,
        get_if_exists=True,
        lifetime="detached",  # viewers come and go
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1000,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
    ).remote(session)
    coordinator.attend.remote()
    return coordinator


def lenders(spec: RunSpec) -> list[LentWorker]:
    """Find the workers of this cluster's sessions that hold hot what a run of a spec would measure again.

    A session that doesn't answer soon lends nothing.
    """
    found: dict[str, LentWorker] = {}
    with contextlib.suppress(*AWAY):
        for name in ray.util.list_named_actors():
            if not name.startswith(_PREFIX):
                continue
            with contextlib.suppress(ValueError, RayError):
                coordinator: Any = ray.get_actor(name)
                lent: list[tuple[str, Any, frozenset[Range]]] = ray.get(coordinator.lend.remote(spec), timeout=_PING_S)
                for worker, actor, holds in lent:
                    found.setdefault(worker, LentWorker(worker, actor, holds, _filling(actor, spec)))
    return list(found.values())


def _filling(handle: Any, spec: RunSpec) -> Callable[[Sequence[Task]], Any]:  # noqa: ANN401
    kept = ray.put(spec)
    return lambda tasks: _future(handle.fill.remote(kept, list(tasks)))


class SessionClient:
    """A viewer's way to a session. One that has ended, as it was idle, is started again by the next question."""

    def __init__(self, session: SessionSpec) -> None:
        self._session = session
        self._coordinator = join(session)

    def ask(
        self, viewer: str, cuts: tuple[Cut, ...], templates: tuple[Template, ...], *, apart: bool, whole: bool
    ) -> MergedAnswer:
        """Ask; raises OvertakenError, and ClusterError where there is no session any more."""
        merged: MergedAnswer = self._call(
            lambda handle: handle.ask.remote(viewer, cuts, templates, apart=apart, whole=whole)
        )
        return merged

    def pick(self, pick: Pick, *, whole: bool) -> list[Candidate]:
        """Find candidates."""
        found: list[Candidate] = self._call(lambda handle: handle.pick.remote(pick, whole=whole))
        return found

    def picked(self, pick: Pick) -> Iterator[tuple[int, Picked]]:
        """Find candidates, however many, range by range."""
        for number in range(len(self._session.tasks)):
            found: Picked | None = self._call(lambda handle, number=number: handle.picked.remote(pick, number))
            if found is not None:
                yield number, found

    def standing(self) -> SessionStatus:
        """Tell how much is ready."""
        standing: SessionStatus = self._call(lambda handle: handle.standing.remote())
        return standing

    def usages(self) -> list[Usage]:
        """Tell what the workers that are there use; that starts no session again."""
        usages: list[Usage] = []
        with contextlib.suppress(RayError):
            usages = ray.get(self._coordinator.usages.remote(), timeout=_PING_S)
        return usages

    def close(self) -> None:
        """Leave the session to the others."""

    def end(self) -> None:
        """End the session, for all."""
        with contextlib.suppress(RayError):
            ray.get(self._coordinator.end.remote(), timeout=_PING_S)

    def _call(self, ask: Callable[..., Any]) -> Any:  # noqa: ANN401
        until = 0.0
        for wait in waits(0.05, 2.0):
            asked = time.monotonic()
            try:
                return ray.get(ask(self._coordinator))
            except RayTaskError as error:
                if isinstance(error.cause, HzzrayError):
                    raise error.cause from None
                raise
            except RayError as error:
                now = time.monotonic()
                if not until or now - asked > _BACK_S:  # it was there until now
                    until = now + _BACK_S
                elif now > until:
                    raise ClusterError(f"the session of {self._session.name} is gone: {error}") from error
            time.sleep(wait)
            with contextlib.suppress(ValueError):  # it ended while we looked for it
                self._coordinator = join(self._session)
        raise AssertionError
