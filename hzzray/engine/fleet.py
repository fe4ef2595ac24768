"""The workers of a pool: which there are, which are wanted, what is in flight to each. It decides, and does nothing."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hzzray.engine.faults import Chance
from hzzray.engine.instructions import (
    EndWorker,
    Instruction,
    LookFor,
    LookForRoom,
    NoAnswer,
    RestartWorker,
    StartWorker,
    Tell,
)
from hzzray.engine.limits import Limits
from hzzray.engine.monitor import State
from hzzray.messages import Task
from hzzray.retry import waits

#: Tasks in flight an actor: one that it computes, one that waits so that it never does.
IN_FLIGHT = 2

_PING_S = 20.0
_DEATHS = 5  # of an actor that never answered, in a row
_FRUITLESS = 20  # restarts by Ray without an answer


@dataclass(eq=False, slots=True)
class OpenTask:
    """A task that the source handed out, until the source is told what became of it.

    ``copies`` are being worked on, of those ``started`` so far: two at the most. It had failed ``tried`` times before.
    It ``is_pending`` until one of them brings a partial, or it is given up, cut or given back: others say nothing then.
    """

    number: int
    task: Task
    tried: int
    copies: int = 0
    started: int = 0
    is_pending: bool = True


@dataclass(eq=False, slots=True)
class Actor:
    """A worker actor: what is in flight to it, its first one since ``since``.

    It is on ``node``, as Ray calls it, or on none yet, and on none of those that it is to ``avoid``.
    ``turn`` goes up each time that it falls, and when its slots are given out anew: those of earlier turns are void.
    ``hung`` is what it was killed over, until it falls. When it last fell, ``fell_with`` was in flight, and it had been
    killed over ``fell_over``. ``pid`` is that of its process when it last told one, and ``fallen`` says that it fell
    since. While it is looked for, ``pauses`` are the waits to come; it was found dead ``deaths`` times, and had been
    restarted ``restarts`` times when that began.
    """

    name: str
    avoid: frozenset[str] = frozenset()
    node: str = ""
    ready: bool = False
    leaving: bool = False
    turn: int = 0
    in_flight: list[OpenTask] = field(default_factory=list)
    since: float = 0.0
    fell_with: tuple[OpenTask, ...] = ()
    hung: OpenTask | None = None
    fell_over: OpenTask | None = None
    pid: int = 0
    fallen: bool = False
    pauses: Iterator[float] = field(default_factory=lambda: iter(()))
    deaths: int = 0
    restarts: int | None = None

    @property
    def state(self) -> State:
        """What the actor is at, for people."""
        if not self.ready:
            return "restarting" if self.turn else "pending"
        if self.leaving:
            return "draining"
        return "working" if self.in_flight else "idle"


class Slot(NamedTuple):
    """A place in flight at an actor, in one of its turns."""

    actor: Actor
    turn: int

    @property
    def holds(self) -> bool:
        """Whether a task may be given there."""
        return self.actor.ready and not self.actor.leaving and self.actor.turn == self.turn


class Fleet:
    """Worker actors whose names begin with ``prefix``, and their free slots. Instructs by ``emit``."""

    def __init__(self, limits: Limits, prefix: str, chance: Chance, emit: Callable[[Instruction], None]) -> None:
        self.limits = limits
        self.actors: list[Actor] = []
        self.free: deque[Slot] = deque()
        self._prefix = prefix
        self._chance = chance
        self._emit = emit
        self._started = 0
        self._enough_since: float | None = None
        self._idle_since: float | None = None

    def __getitem__(self, name: str) -> Actor | None:
        """Find the actor of a name, if it is still there."""
        return next((actor for actor in self.actors if actor.name == name), None)

    @property
    def staying(self) -> int:
        """Workers that there are and that stay, running or not yet."""
        return sum(not actor.leaving for actor in self.actors)

    # Slots.

    def take(self) -> Slot | None:
        """Take the slot that has been free for the longest time, if there is one."""
        while self.free:
            slot = self.free.popleft()
            if slot.holds:
                return slot
        return None

    def take_of_others(self, busy: Actor) -> Slot | None:
        """Take a free slot of any other actor, if there is one."""
        slot = next((slot for slot in self.free if slot.holds and slot.actor is not busy), None)
        if slot is not None:
            self.free.remove(slot)
        return slot

    def renew(self, actor: Actor) -> Slot:
        """Let an idle actor's slots be void: those of its new turn are like the one that is returned."""
        actor.turn += 1
        self.free = deque(slot for slot in self.free if slot.actor is not actor)
        return Slot(actor, actor.turn)

    # How many there are.

    def resize(self, number: int) -> None:
        """Start actors, or let the idlest go, until as many as wanted stay."""
        staying = [actor for actor in self.actors if not actor.leaving]
        for _ in range(len(staying), number):
            self._add()
        surplus = sorted(staying, key=lambda actor: (actor.ready, len(actor.in_flight)))
        for actor in surplus[: max(0, len(staying) - number)]:
            actor.leaving = True

    def bound(self, min_actors: int, max_actors: int) -> None:
        """Change how many there may be, from now on."""
        self.limits = replace(self.limits, min_actors=min_actors, max_actors=max_actors)
        if self.staying:
            self.resize(max(min_actors, min(max_actors, self.staying)))

    def move(self, idle: Collection[Actor], avoid: frozenset[str]) -> None:
        """Let idle actors go and start others in their places, on none of some nodes."""
        for actor in idle:
            actor.leaving = True
            self._add(avoid)

    def _add(self, avoid: frozenset[str] = frozenset()) -> None:
        actor = Actor(f"{self._prefix}{self._started}", avoid)
        self._started += 1
        self.actors.append(actor)
        self._emit(StartWorker(actor.name, avoid))
        self._look_for(actor)

    def fit(self, due: int, task_s: float | None, now: float) -> None:
        """Start actors for the work that is left at once; let them go when fewer have sufficed for a while.

        Beyond those that are to be there anyway, no more than the cluster has slots for, or can grow to.
        """
        wanted = self._wanted(due, task_s)
        if wanted is not None and wanted > self.limits.min_actors:
            self._emit(LookForRoom())
        elif wanted is not None:
            self._fit_to(self.limits.min_actors, now)

    def fit_into(self, slots: float, due: int, task_s: float | None, now: float) -> None:
        """Do so as it is known now how many slots there are."""
        wanted = self._wanted(due, task_s)
        if wanted is not None:
            self._fit_to(max(self.limits.min_actors, int(min(wanted, slots))), now)

    def _wanted(self, due: int, task_s: float | None) -> int | None:
        """Tell how many actors the work that is left is worth; None where their number doesn't follow it."""
        limits = self.limits
        if limits.min_actors == limits.max_actors or task_s is None or not self.staying:
            return None
        return min(math.ceil(due * task_s / limits.worth_s), due, limits.max_actors)

    def _fit_to(self, wanted: int, now: float) -> None:
        if wanted >= self.staying:
            self._enough_since = None
            self.resize(wanted)
        elif self._enough_since is None:
            self._enough_since = now
        elif now - self._enough_since > self.limits.patience_s:
            self.resize(wanted)

    def rest(self, now: float, *, idle: bool) -> None:
        """Let all actors go when there has been nothing to do for a while: others may have use for their slots."""
        if not idle or self.limits.idle_s is None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > self.limits.idle_s:
            self.resize(0)

    def end_the_leaving(self) -> None:
        """End the actors that are leaving and have nothing in flight: one that idles would keep its node."""
        for actor in [actor for actor in self.actors if actor.leaving and not actor.in_flight]:
            self.actors.remove(actor)
            self.free = deque(slot for slot in self.free if slot.actor is not actor)
            self._emit(Tell("worker left", actor.name))
            self._emit(EndWorker(actor.name))

    # Whether they live.

    def _look_for(self, actor: Actor) -> None:
        actor.pauses = waits(*self.limits.back_off_s, self._chance)
        actor.deaths, actor.restarts = 0, None
        self._emit(LookFor(actor.name, 0.0, _PING_S))

    def came(self, actor: Actor, node: str) -> None:
        """Take note that an actor answers: it is there, or back."""
        actor.node = node
        actor.ready = True
        self._emit(Tell("worker back" if actor.turn else "worker came", actor.name))

    def missed(self, actor: Actor, event: NoAnswer) -> str:
        """Look again for an actor that gave no answer; returns why not, where it dies for good again and again.

        It may be long in coming: its demand is what makes the autoscaler add a node.
        """
        if actor.leaving:
            return ""
        actor.restarts = event.before if actor.restarts is None else actor.restarts
        if event.restarts - actor.restarts >= _FRUITLESS:
            return f"{actor.name} can't be kept alive: it ends as soon as it starts"
        wait = next(actor.pauses)
        if event.silent:
            wait = 0.0
        elif not event.restarting:
            actor.deaths += 1
            if actor.deaths >= _DEATHS:
                return f"{actor.name} can't be kept alive: {event.reason}"
            if event.is_dead:  # it could not even be made
                self._emit(StartWorker(actor.name, actor.avoid))
        self._emit(LookFor(actor.name, wait, _PING_S))
        return ""

    def fell(self, slot: Slot) -> None:
        """Take note that an actor fell: its slots are void until it is back."""
        actor, turn = slot
        if actor.turn != turn:
            return
        actor.turn += 1
        actor.ready = False
        actor.fallen = True
        self._emit(Tell("worker died", actor.name, f"with {len(actor.in_flight)} tasks in flight"))
        actor.fell_with = tuple(actor.in_flight)
        actor.fell_over, actor.hung = actor.hung, None
        actor.in_flight.clear()
        if not actor.leaving:
            self._look_for(actor)

    def recognise(self, actor: Actor, pid: int) -> None:
        """Take note that an actor died which had nothing to do: no call failed, but its process is another."""
        if actor.pid not in (0, pid) and not actor.fallen:
            self._emit(Tell("worker died", actor.name, "idle"))
            self._emit(Tell("worker back", actor.name))
        actor.pid, actor.fallen = pid, False

    def kill_the_hung(self, now: float) -> None:
        """Kill actors that take too long over a task."""
        for actor in self.actors:
            late = actor.ready and actor.in_flight and now - actor.since > self.limits.timeout_s
            if late and actor.hung is not actor.in_flight[0]:  # a second kill would hit the actor's next life
                actor.hung = actor.in_flight[0]
                self._emit(RestartWorker(actor.name))
