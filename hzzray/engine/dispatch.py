"""Who works on which task, and what is done about all that goes wrong meanwhile: decided here, carried out by the pool.

A state machine: an event and the time go in, instructions come out. It has no Ray, no asyncio, no clock and no chance
of its own, so that tests can tell it any story.

The source's tasks are given to free slots, two an actor: one task a slot, or several tiny ones. What comes back goes to
the reducer, as many partials together as have gathered since its last commit; only then are they acknowledged. What
goes wrong is told apart (``faults``). A file that one node can't find is looked for on the others.

A task whose candidates somebody holds hot goes to that worker (``lenders``); only what nobody holds makes workers of
the run's own start. What a lender can't do after all goes back to the source, and comes again.

What is held is bounded: no more than ``TOGETHER`` tasks in each slot's call, ``UNCOMMITTED`` partials and what slots
brought beyond them, and ``ASIDE`` tasks that wait for another try or for the reducer's word. Beyond that the source is
asked for no more.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from hzzray.engine.absences import Absences
from hzzray.engine.cluster import Node
from hzzray.engine.commits import UNCOMMITTED, Commits
from hzzray.engine.events import Kind
from hzzray.engine.faults import Again, Alone, Chance, Fault, GiveUp, Search, SplitTask, TaskHistory, verdict
from hzzray.engine.fleet import IN_FLIGHT, Actor, Fleet, OpenTask, Slot
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
    Committed,
    DispatchEvent,
    DrainDue,
    EndWished,
    Exhausted,
    FailureStored,
    Give,
    GlanceDue,
    Instruction,
    Joined,
    LookAtNodes,
    LookDue,
    NoAnswer,
    NodesSeen,
    NoneAtHand,
    Offered,
    ProcessSeen,
    Reject,
    Replace,
    RetryDue,
    Return,
    RoomSeen,
    SplitStored,
    Stop,
    StoreFailure,
    StoreSplit,
    Tell,
    Ticked,
    Wished,
)
from hzzray.engine.ledger import Wish
from hzzray.engine.lenders import PATIENCE_S, Lender, Lenders
from hzzray.engine.limits import Limits
from hzzray.engine.monitor import State
from hzzray.messages import Counts, Failure, Partial, Task
from hzzray.urls import is_remote, redact

#: Tiny tasks go to an actor together, so many at the most, as a call costs a millisecond: about as much work as this.
#: Those of remote files wait for their servers together, for which more work may wait.
TOGETHER = 16
_WORTH_A_CALL_S = 0.02
_WORTH_A_REMOTE_CALL_S = 0.1

# A part of the time that tasks take counts as work, however little they do meanwhile: a call is not to last for ever.
_WORKING = 0.02

#: Tasks that wait for another try or for the reducer's word, at the most, while the source is asked for others.
ASIDE = UNCOMMITTED

# A wish gives way to none that is less firm.
_FIRMNESS: dict[Wish, int] = {"run": 0, "pause": 0, "drain": 1, "cancel": 2}

_SEARCH_S = 1.0
_STRAGGLER_S = 2.0


class _Call(NamedTuple):
    slot: Slot
    deliveries: Sequence[OpenTask]


class WorkerStatus(NamedTuple):
    """How a worker stands: its name, whether it can work, what it is at."""

    name: str
    is_ready: bool
    state: State


class Dispatch:
    """Decides for one pool. ``sources`` are where files lie; workers' names begin with ``prefix``."""

    def __init__(self, limits: Limits, chance: Chance, sources: Sequence[str] = (), *, prefix: str = "worker-") -> None:
        self._out: list[Instruction] = []
        self._emit = self._out.append
        self._now = 0.0
        self._fleet = Fleet(limits, prefix, chance, self._emit)
        self._lenders = Lenders()
        self._commits = Commits(self._emit)
        self._absences = Absences(sources, lambda: self._now)
        self._chance = chance
        self._counts = Counts(0, 0, 0)
        self._state: Literal["new", "feeding", "finishing", "over"] = "new"
        self._wish: Wish = "run"
        self._is_ending = False
        self._until = math.inf
        # What was taken from the source and is not given yet, of which the first so many go together, to this slot.
        self._hand: deque[Offered] = deque()
        self._together = 0
        self._left_s = _WORTH_A_CALL_S
        self._slot: Slot | None = None
        self._asking: Literal["no", "at hand", "for long"] = "no"
        self._more_at_hand = True
        # What is to be done and what was given: deliveries and calls by their numbers.
        self._open: dict[int, OpenTask] = {}
        self._calls: dict[int, _Call] = {}
        self._numbers = 0
        self._suspects: deque[OpenTask] = deque()
        self._aside: set[int] = set()
        self._crashes: dict[str, int] = {}
        self._task_s: float | None = None
        self._work_s = math.inf
        self._task_entries = 1.0
        # The cluster's nodes; what waits for a look at them.
        self._nodes: tuple[Node, ...] = ()
        self._live: frozenset[str] = frozenset()
        self._is_looking = False
        self._missing: list[tuple[OpenTask, str]] = []
        self._search: Literal["no", "looking", "waiting"] = "no"
        self._is_search_timed = False

    # What can be seen of it.

    @property
    def wish(self) -> Wish:
        """What was asked for last."""
        return self._wish

    @property
    def staying(self) -> int:
        """Workers that there are and that stay, running or not yet."""
        return self._fleet.staying

    @property
    def lenders(self) -> list[str]:
        """Workers of others that are there."""
        return [lender.name for lender in self._lenders]

    @property
    def standings(self) -> list[WorkerStatus]:
        """How all workers stand."""
        return [WorkerStatus(actor.name, actor.ready, actor.state) for actor in self._fleet.actors]

    @property
    def in_flight(self) -> int:
        """Tasks that the source was not told about yet."""
        return len(self._open)

    @property
    def held(self) -> int:
        """Tasks that were taken from the source, and that it was not told about yet."""
        return len(self._open) + len(self._hand) + self._lenders.waiting

    @property
    def waiting(self) -> int:
        """Tasks in the backlog that are not in flight."""
        return max(0, self._counts.due - len(self._open))

    # What happens.

    def handle(self, event: DispatchEvent, now: float) -> list[Instruction]:
        """Decide what is to be done about an event at a time, in this order."""
        if self._state == "over":
            return []
        self._now = now
        self._take_in(event, now)
        if self._state not in ("new", "over"):
            self._go_on()
        out = self._out.copy()
        self._out.clear()
        return out

    def _take_in(self, event: DispatchEvent, now: float) -> None:  # noqa: C901, PLR0912, PLR0915 (a table, an event a row)
        match event:
            case Offered():
                self._offered(event)
            case NoneAtHand():
                self._asking, self._more_at_hand = "no", False
            case Answered():
                self._answered(event)
            case Committed():
                self._committed()
            case GlanceDue():
                self._commits.glanced()
            case Ticked():
                self._ticked(event)
            case Broken():
                self._broken(event)
            case RetryDue():
                self._settle(event.delivery, lambda task: Return(task, event.attempts))
            case ProcessSeen():
                if (actor := self._fleet[event.worker]) is not None:
                    self._fleet.recognise(actor, event.pid)
            case Came():
                if (actor := self._fleet[event.worker]) is not None:
                    self._fleet.came(actor, event.node)
                    self._offer(Slot(actor, actor.turn))
            case Joined():
                self._join(event)
            case NoAnswer():
                self._missed(event)
            case FailureStored():
                self._settle(event.delivery, lambda _: Reject(event.failure))
            case SplitStored():
                self._split_stored(event)
            case NodesSeen():
                self._nodes_seen(event)
            case RoomSeen():
                self._room_seen(event)
            case LookDue():
                self._is_search_timed, self._search = False, "no"
            case DrainDue():
                self._until = now
            case Wished():
                self._obey(event.wish)
            case EndWished():
                self._is_ending = True
            case Bounded():
                self._fleet.bound(event.min_actors, event.max_actors)
            case Exhausted():
                self._asking = "no"
                self._finish()
            case Begun():
                self._counts = event.counts
                self._state = "feeding"

    def _go_on(self) -> None:
        """Do what can be done now."""
        if self._is_ending and self._state == "feeding":
            self._finish()
        if self._state == "finishing" and self._is_done():
            if not self._commits.is_storing:  # a commit that has begun is still counted
                self._emit(Stop())
                self._state = "over"
            return
        for slot in self._commits.go_on(at_once=self._is_hungry or len(self._open) < 2):
            self._offer(slot)
        if self._state == "feeding":
            self._feed()

    def _obey(self, wish: Wish) -> None:
        if _FIRMNESS[wish] < _FIRMNESS[self._wish]:
            return  # an end that was begun is not taken back
        self._wish = wish
        self._is_ending = self._is_ending or wish in ("drain", "cancel")

    def _finish(self) -> None:
        """Take no more tasks, and wait for what is in flight and uncommitted; not beyond a bound when draining."""
        if self._state != "feeding":
            return
        self._state = "finishing"
        if self._asking != "no":
            self._asking = "no"
            self._emit(AskNoMore())
        for offer in self._hand:
            self._emit(Return(offer.task))
        self._hand.clear()
        for lender in self._lenders:
            self._give_back(lender)
        if self._is_ending:
            drain_s = self._fleet.limits.drain_s
            self._until = self._now + drain_s
            self._emit(After(drain_s, DrainDue()))

    def _is_done(self) -> bool:
        return not self._open or self._wish == "cancel" or self._now >= self._until

    def _ticked(self, event: Ticked) -> None:
        """Once a second: obey the run's user, replace what hangs, fit the number of actors."""
        self._counts = event.counts
        if event.wish != self._wish:
            self._obey(event.wish)
        fleet = self._fleet
        fleet.kill_the_hung(self._now)
        for lender in [lender for lender in self._lenders if lender.call and self._now - lender.since > PATIENCE_S]:
            self._lose(lender, f"has taken more than {PATIENCE_S:g} s")
        self._chase_stragglers()
        if not self._is_ending:
            fleet.fit(self._counts.due, self._task_s, self._now)
        fleet.rest(self._now, idle=not self._open and self._is_hungry)
        fleet.end_the_leaving()

    def _room_seen(self, event: RoomSeen) -> None:
        if event.slots is not None and not self._is_ending:
            self._fleet.fit_into(event.slots, self._counts.due, self._task_s, self._now)
            self._fleet.end_the_leaving()

    # From the source to the actors.

    @property
    def _is_hungry(self) -> bool:
        """Whether the source has had nothing when it was asked."""
        return self._asking == "for long" and not self._is_ending

    def _feed(self) -> None:
        """Give tasks to lenders that hold them, and others to free slots, as long as there are both."""
        for lender in self._lenders:
            self._serve(lender)
        while self._asking == "no" and not self._lenders.are_full:
            if not self._fleet.staying:  # none yet, or they went when there was nothing to do
                if not self._hand:
                    self._ask()
                    return
                self._fleet.resize(self._fleet.limits.min_actors)
            slot = self._slot
            if slot is None or not slot.holds:
                slot = self._begin_at(self._fleet.take())
            if slot is None:
                if self._lenders and not self._hand:
                    self._ask()
                return
            if not self._hand:
                self._ask()
                return
            if not self._suits(slot, self._hand[0].task):
                slot = self._begin_at(self._find_elsewhere(slot, self._hand[0].task))
            if slot is None or not self._gather(slot):
                return
            given = [self._hand.popleft() for _ in range(self._together)]
            self._begin_at(None)
            self._send(slot, [self._deliver(one) for one in given])

    def _begin_at(self, slot: Slot | None) -> Slot | None:
        """Begin to gather what goes to a slot next."""
        self._slot = slot
        self._together, self._left_s, self._more_at_hand = 0, _WORTH_A_CALL_S, True
        return slot

    def _ask(self) -> None:
        """Ask the source for a task, unless it is paused, or too much waits already."""
        if self._wish != "pause" and self._has_room:
            self._asking = "for long"
            self._emit(Ask())

    @property
    def _has_room(self) -> bool:
        return len(self._aside) + len(self._suspects) < ASIDE

    def _offered(self, offer: Offered) -> None:
        self._asking = "no"
        if self._state != "feeding":
            self._emit(Return(offer.task))
        elif not self._lenders.take(offer):
            self._hand.append(offer)

    def _gather(self, slot: Slot) -> bool:
        """Add more tasks to a tiny one, as many as are at hand; False while it is not known yet whether there are more.

        Files differ in size, and so do tasks: what one takes is told by its entries.
        """
        while self._together < TOGETHER and (self._left_s > 0 or not self._together):
            if self._together == len(self._hand):
                if not self._more_at_hand or not self._has_room:
                    break
                self._asking = "at hand"
                self._emit(Ask(at_hand=True))
                return False
            task = self._hand[self._together].task
            expected_s = self._expected_s(task)
            if self._together and (self._left_s < expected_s or not self._suits(slot, task)):
                break
            if not self._together and is_remote(task.file):
                self._left_s = _WORTH_A_REMOTE_CALL_S
            self._left_s -= expected_s
            self._together += 1
        return True

    def _expected_s(self, task: Task) -> float:
        """Work of a task in seconds, going by those before it."""
        return task.entries / self._task_entries * self._work_s

    def _deliver(self, offer: Offered) -> OpenTask:
        self._numbers += 1
        delivery = self._open[self._numbers] = OpenTask(self._numbers, offer.task, offer.tried)
        return delivery

    def _send(self, slot: Slot, deliveries: Sequence[OpenTask]) -> None:
        actor = slot.actor
        if not actor.in_flight:
            actor.since = self._now
        actor.in_flight.extend(deliveries)
        for delivery in deliveries:
            delivery.copies += 1
            delivery.started += 1
        self._numbers += 1
        self._calls[self._numbers] = _Call(slot, deliveries)
        self._emit(Give(self._numbers, actor.name, tuple(delivery.task for delivery in deliveries)))

    def _offer(self, slot: Slot) -> None:
        """Give a slot back, unless it is void or must wait. An idle actor takes a suspect before all else."""
        actor = slot.actor
        if not slot.holds or self._wish == "cancel" or self._commits.stalls(slot):
            return
        if self._search == "waiting":
            self._search = "no"
        if not actor.in_flight:
            fresh = self._fleet.renew(actor)
            if self._suspects:
                self._send(fresh, [self._suspects.popleft()])
            else:
                self._fleet.free.extend([fresh] * IN_FLIGHT)
        elif not self._suspects:
            self._fleet.free.append(slot)

    def _chase_stragglers(self) -> None:
        """When there is nothing else to do, start old tasks, and what waits behind them, a second time elsewhere.

        The first result counts.
        """
        if not self._is_hungry or self._task_s is None:
            return
        for actor in self._fleet.actors:
            if not actor.in_flight or self._now - actor.since < max(_STRAGGLER_S, 4 * self._task_s):
                continue
            for delivery in actor.in_flight:
                if delivery.is_pending and delivery.started == 1:
                    slot = self._fleet.take_of_others(actor)
                    if slot is not None:
                        self._send(slot, [delivery])

    # Those who hold candidates hot.

    def _join(self, event: Joined) -> None:
        self._lenders.join(event.worker, event.holds)
        self._emit(Tell("worker came", event.worker, f"with {len(event.holds)} ranges of this run hot"))

    def _serve(self, lender: Lender) -> None:
        """Give a lender that has nothing to do what waits for it, unless too much waits for its commit."""
        if lender.call or not lender.waits or self._commits.are_too_many:
            return
        lender.in_flight = [self._deliver(offer) for offer in lender.waits]
        lender.waits.clear()
        for delivery in lender.in_flight:
            delivery.copies = delivery.started = 1
        self._numbers += 1
        lender.call, lender.since = self._numbers, self._now
        self._emit(Give(lender.call, lender.name, tuple(delivery.task for delivery in lender.in_flight)))

    def _served(self, lender: Lender, event: Answered) -> None:
        """Take what a lender has filled. What it doesn't hold any more goes back, and then to others."""
        for delivery, outcome in zip(lender.in_flight, event.outcomes, strict=True):
            delivery.copies = 0
            if isinstance(outcome, Partial):  # of which nothing is learnt of what reading takes
                delivery.is_pending = False
                self._commits.keep(delivery, outcome)
            else:
                lender.holds.discard(delivery.task.range)
                self._settle(delivery.number, Return)
        lender.call, lender.in_flight = 0, ()

    def _lose(self, lender: Lender, why: str) -> None:
        """Do without a lender: a task is never to blame, and what it had is done by others."""
        self._lenders.leave(lender)
        self._emit(Tell("worker left", lender.name, why))
        for delivery in lender.in_flight:
            self._settle(delivery.number, Return)
        self._give_back(lender)

    def _give_back(self, lender: Lender) -> None:
        for offer in lender.waits:
            self._emit(Return(offer.task))
        lender.waits.clear()

    # Where files are.

    def _suits(self, slot: Slot, task: Task) -> bool:
        """Whether a slot's node may have a task's file."""
        return self._absences.may_serve(slot.actor.node, task.file, self._live)

    def _find_elsewhere(self, slot: Slot, task: Task) -> Slot | None:
        """Find a slot for a task whose file is not on that slot's node, which others may use meanwhile."""
        free = self._fleet.free
        free.appendleft(slot)
        found = next((one for one in free if one.holds and self._suits(one, task)), None)
        if found is not None:
            free.remove(found)
            self._search = "no"
        elif self._search == "no":
            self._search = "looking"
            self._look_at_nodes()
        return found

    def _look_at_nodes(self) -> None:
        if not self._is_looking:
            self._is_looking = True
            self._emit(LookAtNodes())

    def _nodes_seen(self, event: NodesSeen) -> None:
        self._is_looking = False
        if event.nodes is not None:  # else those that there were: the cluster's head is away
            self._nodes = event.nodes
            self._live = frozenset(node.id for node in event.nodes)
        missing, self._missing = self._missing, []
        for delivery, reason in missing:
            if self._absences.is_nowhere(delivery.task.file, self._live):
                self._miss(delivery, reason)
            else:
                self._settle(delivery.number, Return)
        if self._search == "looking" and self._state == "feeding" and self._hand:
            self._move(self._hand[0].task)

    def _move(self, task: Task) -> None:
        """See to it that there are actors where a task's file may be, in the place of idle ones.

        Where it can be nowhere the task is given up.
        """
        if self._absences.is_nowhere(task.file, self._live):
            self._search = "no"
            self._miss(self._deliver(self._hand.popleft()), f"{redact(task.file)}: no such file")
            return
        without = frozenset(node for node in self._live if not self._absences.may_serve(node, task.file, self._live))
        actors = self._fleet.actors
        has_hope = any(
            without <= actor.avoid if not actor.ready else actor.node not in without
            for actor in actors
            if not actor.leaving
        )
        room = sum(int(node.free) for node in self._nodes if node.id not in without)
        free = dict.fromkeys(slot.actor for slot in self._fleet.free if slot.holds)
        idle = [actor for actor in free if not actor.in_flight and actor.node in without]
        self._fleet.move(idle[: room if has_hope else max(1, room)], without)
        self._search = "waiting"
        if not self._is_search_timed:
            self._is_search_timed = True
            self._emit(After(_SEARCH_S, LookDue()))

    # From the actors to the reducer.

    def _answered(self, event: Answered) -> None:
        if (lender := self._lenders.calling(event.call)) is not None:
            self._served(lender, event)
            return
        call = self._calls.pop(event.call, None)
        if call is None:
            return
        for delivery in call.deliveries:
            self._land(call.slot, delivery)
        failed: list[tuple[OpenTask, Fault]] = []
        for delivery, outcome in zip(call.deliveries, event.outcomes, strict=True):
            if isinstance(outcome, Partial):
                self._learn(outcome)
                delivery.is_pending = False
                self._commits.keep(delivery, outcome)
            else:
                failed.append((delivery, outcome))
        self._offer(call.slot)
        for delivery, fault in failed:
            self._failed(call.slot.actor, delivery, fault)

    def _learn(self, partial: Partial) -> None:
        """Learn what tasks take."""
        spent, entries = partial.cost.wall_s, max(1, partial.task.entries)
        work = max(spent - partial.cost.read_s, _WORKING * spent)
        if self._task_s is None:
            self._task_s, self._work_s, self._task_entries = spent, work, entries
        else:
            self._work_s = 0.9 * self._work_s + 0.1 * work
            self._task_s = 0.9 * self._task_s + 0.1 * spent
            self._task_entries = 0.9 * self._task_entries + 0.1 * entries

    def _land(self, slot: Slot, delivery: OpenTask) -> None:
        actor = slot.actor
        if delivery in actor.in_flight:  # a fall has taken all off
            actor.in_flight.remove(delivery)
        actor.since = self._now
        delivery.copies -= 1

    def _committed(self) -> None:
        fresh = [delivery for delivery in self._commits.committed() if self._open.pop(delivery.number, None)]
        for delivery in fresh:
            self._crashes.pop(delivery.task.task_id, None)
        if fresh:
            self._emit(Ack(tuple(delivery.task for delivery in fresh)))

    def _settle(self, number: int, tell: Callable[[Task], Instruction]) -> None:
        """Tell the source what became of a delivery: once."""
        self._aside.discard(number)
        delivery = self._open.pop(number, None)
        if delivery is not None:
            delivery.is_pending = False
            self._emit(tell(delivery.task))

    # What goes wrong.

    def _broken(self, event: Broken) -> None:
        """Take note that a call failed. Whatever goes wrong with several tasks together is found out one by one."""
        if (lender := self._lenders.calling(event.call)) is not None:
            self._lose(lender, event.fault.reason)
            return
        call = self._calls.pop(event.call, None)
        if call is None:
            return
        slot, deliveries = call
        if event.fault.is_fall:
            self._fleet.fell(slot)
        for delivery in deliveries:
            self._land(slot, delivery)
        self._offer(slot)
        if len(deliveries) == 1:
            self._failed(slot.actor, deliveries[0], event.fault)
        else:
            for delivery in deliveries:
                self._suspect(delivery)

    def _failed(self, actor: Actor, delivery: OpenTask, fault: Fault) -> None:
        """Do what a failed attempt means for the task."""
        task = delivery.task
        if fault.kind == "missing":
            self._absences.note(actor.node, task.file)
        if not delivery.is_pending or delivery.copies:
            return  # another copy decides
        trial = TaskHistory(
            entries=task.entries,
            alone=actor.fell_with == (delivery,),
            hung=actor.fell_over is delivery,
            tried=delivery.tried,
            crashes=self._crashes.get(task.task_id, 0),
        )
        match verdict(fault, trial, self._fleet.limits, self._chance):
            case Search():
                self._aside.add(delivery.number)
                self._missing.append((delivery, fault.reason))
                self._look_at_nodes()
            case Again(attempts, wait_s):
                self._aside.add(delivery.number)
                self._tell("task retried", task, fault.reason)
                self._emit(After(wait_s, RetryDue(delivery.number, attempts)))
            case Alone(crashes):
                if crashes:
                    self._crashes[task.task_id] = crashes
                self._suspect(delivery)
            case SplitTask(reason, crashes):
                self._cut(delivery, reason, crashes)
            case GiveUp(reason, attempts, permanent):
                self._give_up(delivery, reason, attempts, permanent=permanent)

    def _suspect(self, delivery: OpenTask) -> None:
        """Let a task have an actor to itself: if that dies too, it is known over what."""
        if not delivery.is_pending or delivery.copies:
            return
        self._tell("task retried", delivery.task, "its worker died")
        self._suspects.append(delivery)
        for actor in self._fleet.actors:
            if not actor.in_flight:
                self._offer(Slot(actor, actor.turn))

    def _cut(self, delivery: OpenTask, reason: str, crashes: int) -> None:
        """Replace a task that is too much for a worker by its halves."""
        task = delivery.task
        halves = task.halves()
        for half in halves:
            self._crashes[half.task_id] = crashes
        self._aside.add(delivery.number)
        self._tell("task split", task, reason)
        self._emit(StoreSplit(delivery.number, task, halves))

    def _split_stored(self, event: SplitStored) -> None:
        delivery = self._open[event.delivery]
        self._crashes.pop(delivery.task.task_id, None)
        if event.stands:
            self._settle(event.delivery, lambda task: Replace(task, event.halves))
        else:
            self._settle(event.delivery, lambda task: Ack((task,)))

    def _give_up(self, delivery: OpenTask, reason: str, attempts: int, *, permanent: bool) -> None:
        self._crashes.pop(delivery.task.task_id, None)
        self._aside.add(delivery.number)
        self._tell("task failed", delivery.task, reason)
        failure = Failure(task=delivery.task, reason=reason, permanent=permanent, attempts=attempts)
        self._emit(StoreFailure(delivery.number, failure))

    def _miss(self, delivery: OpenTask, reason: str) -> None:
        """Give up a task whose file no node can find."""
        names = sorted(node.name for node in self._nodes)
        where = f" on any node ({', '.join(names)})" if len(names) > 1 else ""
        self._give_up(delivery, f"{reason}{where}", delivery.tried + 1, permanent=True)

    def _missed(self, event: NoAnswer) -> None:
        actor = self._fleet[event.worker]
        reason = "" if actor is None else self._fleet.missed(actor, event)
        if reason:
            self._emit(Abort(reason))
            self._state = "over"

    def _tell(self, kind: Kind, task: Task, what: str) -> None:
        self._emit(Tell(kind, task.sample, f"entries {task.start} to {task.stop}: {what}"))
