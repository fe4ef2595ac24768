"""A world for a Dispatch in virtual time: workers, nodes, a source and a reducer that fail in ways of a story's own.

It does what the dispatch instructs, tells it what comes of it, and watches that what must never be never is.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from hzzray.engine import commits, dispatch, lenders
from hzzray.engine.cluster import Node
from hzzray.engine.dispatch import Dispatch
from hzzray.engine.faults import Fault
from hzzray.engine.fleet import IN_FLIGHT
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
    EndWorker,
    Exhausted,
    FailureStored,
    Give,
    Instruction,
    Joined,
    LookAtNodes,
    LookFor,
    LookForRoom,
    NoAnswer,
    NodesSeen,
    NoneAtHand,
    Offered,
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
from hzzray.engine.limits import Limits
from hzzray.messages import Cost, Counts, Failure, Partial, Task

ENTRIES = 16
FILES = ("/data/a.root", "/data/b.root", "https://x/c.root")

#: Tasks that every story takes some of.
TASKS = tuple(
    Task(
        run_id="run", spec="0" * 64, sample="llll", file=FILES[number % 3], uuid=str(number), tree="mini",
        start=0, stop=ENTRIES,
    )
    for number in range(40)
)  # fmt: skip

#: What a task is like: "fine", or how it fails, and in "large" ones with more than so many entries only.
NATURES = ("fine", "slow", "flaky", "hopeless", "corrupt", "poison", "hang", "memory", "oom")

LIMITS = Limits(timeout_s=6.0, attempts=4, back_off_s=(0.1, 2.0), drain_s=500.0)
NOTICED_S = 0.02
KILLED = Fault("death", "it was killed")


@dataclass(frozen=True)
class Story:
    """What happens: natures of tasks, by number; nodes that lack each file; deaths of whatever worker, and wishes.

    A task may be to blame for ``crashes`` more than there are deaths of no task's making. ``late`` tasks come at that
    time. ``bounds`` are changes of how many workers there may be. ``lenders`` hold tasks hot, by number, each of them
    until it is gone, or silent from then on; what is ``cool`` they have let go of meanwhile.
    """

    natures: tuple[str, ...]
    large: int = 4
    lacking: tuple[frozenset[str], ...] = (frozenset(),) * 3
    nodes: tuple[str, ...] = ("n0",)
    actors: tuple[int, int] = (2, 2)
    task_s: float = 0.1
    deaths: tuple[float, ...] = ()
    freezes: tuple[float, ...] = ()
    wishes: tuple[tuple[float, str], ...] = ()
    bounds: tuple[tuple[float, int, int], ...] = ()
    late: tuple[tuple[int, float], ...] = ()
    idle_s: float | None = None
    crashes: int = 3
    lenders: tuple[tuple[frozenset[int], float, bool], ...] = ()
    cool: frozenset[int] = frozenset()


def a_story(chance: Random) -> Story:
    """Make one up."""
    number = len(TASKS) if chance.random() < 0.02 else chance.randint(1, 9)
    guilty = chance.choice((0.0, 0.1, 0.4, 0.9))
    kinds = chance.choice((NATURES[1:], chance.choices(NATURES[1:])))
    nodes = tuple(f"n{n}" for n in range(chance.choice((1, 1, 2, 3))))
    low = chance.randint(1, 3)
    wishes: tuple[tuple[float, str], ...] = ()
    if chance.random() < 0.4:
        at = chance.uniform(0.0, 6.0)
        wished = chance.choices(("pause", "run", "drain", "cancel"), k=3)
        wishes = tuple((at + n, wish) for n, wish in enumerate((*wished, "run")))  # takes back a pause, no end
    lacking = tuple(frozenset(one for one in nodes if chance.random() < 0.4) for _ in FILES)
    return Story(
        natures=tuple(chance.choice(kinds) if chance.random() < guilty else "fine" for _ in range(number)),
        large=chance.choice((1, 4, 8)),
        lacking=lacking if chance.random() < 0.3 else (frozenset(),) * 3,
        nodes=nodes,
        actors=(low, low + chance.choice((0, 0, 3))),
        task_s=chance.choice((0.001, 0.05, 0.5)),
        deaths=tuple(chance.uniform(0.0, 8.0) for _ in range(chance.choice((0, 0, 1, 3)))),
        freezes=(chance.uniform(0.0, 8.0),) if chance.random() < 0.1 else (),
        wishes=wishes,
        bounds=((chance.uniform(0.0, 5.0), 1, 2),) if chance.random() < 0.1 else (),
        late=tuple((n, chance.uniform(0.0, 9.0)) for n in range(number) if chance.random() < chance.choice((0.0, 0.2))),
        idle_s=chance.choice((None, None, 1.0)),
        crashes=chance.choice((1, 1, 3)),
        lenders=tuple(
            (
                frozenset(n for n in range(number) if chance.random() < 0.7),
                chance.choice((math.inf, chance.uniform(0.0, 3.0))),
                chance.random() < 0.2,
            )
            for _ in range(chance.choice((0, 0, 1, 2)))
        ),
        cool=frozenset(n for n in range(number) if chance.random() < 0.1),
    )


@dataclass(eq=False)
class _Worker:
    """A simulated actor: it works on its calls one by one, in the order of their coming, in one of its lives."""

    name: str
    node: str | None
    life: int = 0
    calls: deque[Give] = field(default_factory=deque)
    frozen: bool = False
    died: float = -1.0


class World:
    """Plays one story. ``play`` returns when the dispatch stops; AssertionError says what it did and must not."""

    def __init__(self, story: Story, chance: Random) -> None:
        self.story = story
        self.chance = chance
        low, high = story.actors
        crashes = len(story.deaths) + len(story.freezes) + story.crashes
        self.limits = replace(LIMITS, min_actors=low, max_actors=high, idle_s=story.idle_s, crashes=crashes)
        self.dispatch = Dispatch(self.limits, chance.uniform, ("/data/", "https://x/"))
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.stopped = self.aborted = ""
        self.wish = "run"
        self.workers: dict[str, _Worker] = {}
        self.given: set[str] = set()
        self.happened: list[Tell] = []
        self.filled: dict[str, float] = {}  # tasks that lenders have filled, and when
        self.lenders = {f"explorer-{n}": lender for n, lender in enumerate(story.lenders)}
        self.flying_to_lenders: dict[str, Give] = {}
        self.vain: Counter[str] = Counter()  # how often a node was asked for a file that it lacks
        # The source.
        late = dict(story.late)
        self.nature = {task.task_id: nature for task, nature in zip(TASKS, story.natures, strict=False)}
        self.queue: deque[Task] = deque(task for n, task in enumerate(TASKS[: len(self.nature)]) if n not in late)
        self.to_come = len(late)
        for number, at in story.late:
            self._at(at, lambda task=TASKS[number]: self._arrive(task))
        self.out: dict[str, Task] = {}
        self.tried: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.asking = False
        # The reducer.
        self.merged: dict[str, Task] = {}
        self.failures: dict[str, Failure] = {}
        self.replaced: set[str] = set()
        self.waiting_for_commit = 0
        self.is_storing = False
        self.most_workers = 0

    @property
    def planned(self) -> int:
        """Tasks of the run, with halves in the place of what was cut."""
        return len(self.nature) - len(self.replaced)

    def play(self) -> None:
        """Let it happen."""
        story = self.story
        for name, (holds, *_) in self.lenders.items():
            held = frozenset(TASKS[number].range for number in holds)
            self._at(0.0, lambda name=name, held=held: self.tell(Joined(name, held)))
        self._at(0.0, lambda: self.tell(Begun(self._counts())))
        self._at(0.0, self._tick)
        for at in story.deaths:
            self._at(at, self._kill_some)
        for at in story.freezes:
            self._at(at, self._freeze_some)
        for at, wish in story.wishes:
            self._at(at, lambda wish=wish: self._want(wish))
        for at, low, high in story.bounds:
            self._at(at, lambda low=low, high=high: self.tell(Bounded(low, high)))
        while self._heap and not self.stopped:
            self.now, _, happen = heapq.heappop(self._heap)
            assert self.now < 2_000, f"it doesn't end: {self._counts()}, out {len(self.out)}, {self.dispatch.standings}"
            happen()
        assert self.stopped, "nothing more happens, and it was not told to stop"
        self._check_the_end()

    def tell(self, event: DispatchEvent) -> None:
        """Tell the dispatch of an event, and do what it says."""
        if self.stopped:
            return
        for instruction in self.dispatch.handle(event, self.now):
            assert not self.stopped
            self._do(instruction)
        self._check()

    # What must hold all the time.

    def _check(self) -> None:
        self.most_workers = max(self.most_workers, len(self.workers))
        slots = self.most_workers * IN_FLIGHT * dispatch.TOGETHER + 2 * len(self.lenders) * lenders.BATCH
        held = self.dispatch.held
        assert held == len(self.out), "each task that was taken is held until the source is told what became of it"
        assert held <= dispatch.ASIDE + commits.UNCOMMITTED + commits.BATCH + 2 * slots + dispatch.TOGETHER + 1
        assert self.waiting_for_commit <= commits.UNCOMMITTED + commits.BATCH + slots

    def _check_given(self, give: Give) -> None:
        worker = self.workers[give.worker]
        wish = self.dispatch.wish
        assert wish != "cancel", "nothing is given after a cancel"
        if wish == "drain":
            assert self.given.issuperset(task.task_id for task in give.tasks), "nothing new is given when draining"
        assert len(worker.calls) < IN_FLIGHT
        assert 1 <= len(give.tasks) <= dispatch.TOGETHER
        flying = Counter(task.task_id for call in self._flying() for task in call.tasks)
        assert all(flying[task.task_id] < 2 for task in give.tasks), "no more than two copies at once"
        assert all(task.task_id in self.out for task in give.tasks)

    def _check_given_to_lender(self, give: Give) -> None:
        holds, *_ = self.lenders[give.worker]
        assert self.dispatch.wish not in ("drain", "cancel"), "nothing new is given at the end"
        assert give.worker in self.dispatch.lenders, "nothing is given to who is known to be gone"
        assert give.worker not in self.flying_to_lenders, "one call at a time"
        assert holds.issuperset(self._root(task) for task in give.tasks), "a lender gets what it holds"
        assert 1 <= len(give.tasks) <= lenders.BATCH
        flying = {task.task_id for call in self._flying() for task in call.tasks}
        assert flying.isdisjoint(task.task_id for task in give.tasks), "lenders get no second copies"
        assert all(task.task_id in self.out for task in give.tasks)

    def _flying(self) -> list[Give]:
        return [call for worker in self.workers.values() for call in worker.calls]

    def _check_the_end(self) -> None:
        assert not self.aborted, self.aborted
        assert all(failure.reason for failure in self.failures.values())
        assert not self.merged.keys() & self.failures.keys()
        blamed = {self._root(failure.task) for failure in self.failures.values()}
        assert all(self._may_fail(root) for root in blamed), f"innocent, and set aside: {self.failures.values()}"
        if self.dispatch.wish == "cancel":
            return
        assert not self.out, "what was begun is ended, and the source knows what became of it"
        if self.dispatch.wish == "run":
            assert self._counts().due == 0, "each task is merged, or failed with a reason"
            done = [*self.merged.values(), *(failure.task for failure in self.failures.values())]
            entries = Counter[str]()
            for task in done:
                entries[task.uuid] += task.entries
            assert entries == {task.uuid: task.entries for task in TASKS[: len(self.story.natures)]}

    def _root(self, task: Task) -> int:
        return int(task.uuid)

    def _may_fail(self, number: int) -> bool:
        """Whether a task fails by itself: the others must not be given up whatever they are beside."""
        gone = self.story.lacking[number % 3].issuperset(self.story.nodes)
        return gone or self.story.natures[number] in ("hopeless", "corrupt", "poison", "hang", "memory", "oom")

    # What is instructed.

    def _do(self, instruction: Instruction) -> None:  # noqa: C901 (a table)
        match instruction:
            case Ask(at_hand):
                self._ask(at_hand=at_hand)
            case AskNoMore():
                assert self.asking
                self.asking = False
            case Give() if instruction.worker in self.lenders:
                self._check_given_to_lender(instruction)
                self.given |= {task.task_id for task in instruction.tasks}
                self.flying_to_lenders[instruction.worker] = instruction
                self._soon(lambda: self._fill(instruction), 0.02)
            case Give():
                self._check_given(instruction)
                self.given |= {task.task_id for task in instruction.tasks}
                worker = self.workers[instruction.worker]
                if self.now - worker.died < NOTICED_S:  # before anybody here knows
                    self._soon(lambda: self.tell(Broken(instruction.call, KILLED)), NOTICED_S)
                    return
                worker.calls.append(instruction)
                if len(worker.calls) == 1:
                    self._work(worker)
            case StartWorker(name, avoid):
                free = [node for node in self.story.nodes if node not in avoid]
                self.workers[name] = _Worker(name, self.chance.choice(free) if free else None)
                assert self.dispatch.staying <= max(self.story.actors[1], *(high for *_, high in self.story.bounds), 0)
            case LookFor(name, after_s, within_s):
                self._look_for(name, after_s, within_s)
            case RestartWorker(name):
                self._die(self.workers[name])
            case EndWorker(name):
                assert not self.workers.pop(name).calls, "who is let go has ended what it began"
            case Commit(partials):
                assert not self.is_storing, "one commit at a time"
                self.is_storing = True
                self._soon(lambda: self._merge(partials), 0.05)
            case StoreFailure(delivery, failure):
                self._soon(lambda: self._fail(delivery, failure), 0.05)
            case StoreSplit():
                self._soon(lambda: self._split(instruction), 0.05)
            case After(seconds, event):
                self._at(self.now + seconds, lambda: self.tell(event))
            case LookAtNodes():
                nodes = tuple(Node(node, node.upper(), 4.0, 2.0) for node in self.story.nodes)
                self._soon(lambda: self.tell(NodesSeen(nodes if self.chance.random() < 0.9 else None)), 0.05)
            case LookForRoom():
                slots = self.chance.choice((None, 2.0, float("inf")))
                self._soon(lambda: self.tell(RoomSeen(slots)), 0.05)
            case Tell():
                self.happened.append(instruction)
            case Stop():
                assert not self.is_storing, "a commit that has begun is counted"
                self.stopped = "done"
            case Abort(reason):
                self.stopped = self.aborted = reason
            case _:
                self._settle(instruction)

    # The source.

    def _settle(self, instruction: Instruction) -> None:
        match instruction:
            case Ack(tasks):
                for task in tasks:
                    assert task.task_id in self.merged or task.task_id in self.replaced
                    self._leave(task)
            case Return(task, attempts):
                self._leave(task)
                self.queue.append(task)
                if attempts:
                    self.tried[task.task_id] = attempts
            case Reject(failure):
                assert failure.task.task_id in self.failures
                self._leave(failure.task)
            case Replace(task, parts):
                assert task.task_id in self.replaced
                self.queue.extend(parts)
                self._leave(task)
        self._serve()

    def _leave(self, task: Task) -> None:
        del self.out[task.task_id]  # KeyError: it was told twice
        self.tried.pop(task.task_id, None)

    def _arrive(self, task: Task) -> None:
        self.to_come -= 1
        self.queue.append(task)
        self._serve()

    def _ask(self, *, at_hand: bool) -> None:
        assert not self.asking, "the source has one caller at a time"
        assert self.dispatch.wish not in ("drain", "cancel")
        assert at_hand or self.dispatch.wish != "pause"
        self.asking = True
        if at_hand:
            self._soon(self._serve_at_hand, 0.0)
        else:
            self._serve()

    def _serve_at_hand(self) -> None:
        if self.asking and self.queue:
            self._give_out()
        elif self.asking:
            self.asking = False
            self.tell(NoneAtHand())

    def _serve(self) -> None:
        """See to who waits for a task, when the dispatch has said all."""
        self._soon(self._serve_now, 0.0)

    def _serve_now(self) -> None:
        if not self.asking:
            return
        if self.queue:
            self._give_out()
        elif not self.out and not self.to_come:
            self.asking = False
            self.tell(Exhausted())

    def _give_out(self) -> None:
        task = self.queue.popleft()
        self.asking = False
        assert task.task_id not in self.out
        self.out[task.task_id] = task
        self.tell(Offered(task, self.tried[task.task_id]))

    # The workers.

    def _look_for(self, name: str, after_s: float, within_s: float) -> None:
        worker = self.workers[name]
        life = worker.life

        def answer() -> None:
            if self.workers.get(name) is not worker:
                return
            if worker.node is None or worker.frozen:
                self._at(self.now + within_s, lambda: self.tell(_silent(name)))
            elif worker.life != life or self.chance.random() < 0.1:
                self.tell(NoAnswer(name, False, True, False, "it restarts", 0, 1))
            else:
                worker.died = -1.0
                self.tell(Came(name, worker.node))

        self._at(self.now + after_s + self.chance.uniform(0.0, 1.0), answer)

    def _work(self, worker: _Worker) -> None:
        """Let a worker take up its next call, and do what its tasks make it do."""
        call, life = worker.calls[0], worker.life
        outcomes: list[Partial | Fault] = []
        spent = 0.0
        for task in call.tasks:
            nature = self._nature(task)
            seconds = self.story.task_s * self.chance.uniform(0.5, 1.5)
            if nature == "slow" and not self.attempts[task.task_id]:
                seconds += 4.5
            self.attempts[task.task_id] += 1
            spent += seconds
            outcome = self._outcome(worker, task, nature, seconds)
            if outcome == "hang":
                worker.frozen = True
                return
            if isinstance(outcome, Fault) and (outcome.is_fall or outcome.kind == "memory" or len(call.tasks) == 1):
                self._at(self.now + spent, lambda fault=outcome: self._break(worker, call, life, fault))
                return
            outcomes.append(outcome)
        self._at(self.now + spent, lambda: self._answer(worker, call, life, tuple(outcomes)))

    def _nature(self, task: Task) -> str:
        nature = self.story.natures[self._root(task)]
        return "fine" if nature in ("hang", "memory", "oom") and task.entries <= self.story.large else nature

    def _outcome(self, worker: _Worker, task: Task, nature: str, seconds: float) -> Partial | Fault | str:
        if worker.node in self.story.lacking[self._root(task) % 3]:
            self.vain[worker.node] += 1
            return Fault("missing", f"{task.file}: no such file")
        match nature:
            case "flaky" if self.attempts[task.task_id] < self.limits.attempts:
                return Fault("passing", "the server said 503")
            case "hopeless":
                return Fault("passing", "the server said 503")
            case "corrupt":
                return Fault("data", "basket 7 is corrupt")
            case "poison":
                return Fault("death", "its process died")
            case "oom":
                return Fault("out of memory", "the node was full")
            case "memory":
                return Fault("memory", "MemoryError")
            case "hang":
                return "hang"
            case _:
                return Partial(task, b"", Cost(wall_s=seconds, events=task.entries), worker.name)

    def _answer(self, worker: _Worker, call: Give, life: int, outcomes: tuple[Partial | Fault, ...]) -> None:
        if worker.life != life or worker.frozen:
            return
        worker.calls.remove(call)
        self.waiting_for_commit += sum(isinstance(one, Partial) for one in outcomes)
        event = Answered(call.call, outcomes)
        if worker.calls:
            self._work(worker)
        self.tell(event)
        if self.chance.random() < 0.1:
            self._soon(lambda: self.tell(event), 1.0)  # twice, and late

    def _fill(self, call: Give) -> None:
        """Let a lender fill what it holds: whatever the files are like, as it doesn't read them."""
        _, gone, silent = self.lenders[call.worker]
        if self.now >= gone and silent:
            self._at(self.now + 60.0, lambda: self.tell(Answered(call.call, tuple(map(_hot, call.tasks)))))  # too late
            return
        del self.flying_to_lenders[call.worker]
        if self.now >= gone:
            self.tell(Broken(call.call, KILLED))
            return
        outcomes = tuple(
            Fault("passing", "it is not hot") if self._root(task) in self.story.cool else _hot(task)
            for task in call.tasks
        )
        filled = [one.task for one in outcomes if isinstance(one, Partial)]
        self.filled |= dict.fromkeys((task.task_id for task in filled), self.now)
        self.waiting_for_commit += len(filled)
        self.tell(Answered(call.call, outcomes))

    def _break(self, worker: _Worker, call: Give, life: int, fault: Fault) -> None:
        if worker.life != life or worker.frozen:
            return
        if fault.is_fall:
            self._die(worker, fault)
            return
        worker.calls.remove(call)
        if worker.calls:
            self._work(worker)
        self.tell(Broken(call.call, fault))

    def _die(self, worker: _Worker, fault: Fault = KILLED) -> None:
        """Let all that flies to a worker fail, in any order; Ray starts it anew."""
        worker.life += 1
        worker.frozen = False
        worker.died = self.now
        calls = list(worker.calls)
        worker.calls.clear()
        self.chance.shuffle(calls)
        for call in calls:
            self._soon(lambda call=call: self.tell(Broken(call.call, fault)), NOTICED_S)

    def _kill_some(self) -> None:
        if self.workers:
            self._die(self.chance.choice(list(self.workers.values())))

    def _freeze_some(self) -> None:
        busy = [worker for worker in self.workers.values() if worker.calls]
        if busy:
            self.chance.choice(busy).frozen = True

    # The reducer.

    def _merge(self, partials: tuple[Partial, ...]) -> None:
        if self.chance.random() < 0.03:  # it is replaced, and told again
            self._soon(lambda: self._merge(partials), 20.0)
            if self.chance.random() < 0.5:
                return
        else:
            self._soon(lambda: self._committed(len(partials)), 0.0)
        for partial in partials:
            task = partial.task
            if task.task_id not in self.replaced:
                self.merged[task.task_id] = task
                self.failures.pop(task.task_id, None)

    def _committed(self, number: int) -> None:
        self.waiting_for_commit -= number
        self.is_storing = False
        self.tell(Committed())

    def _fail(self, delivery: int, failure: Failure) -> None:
        assert failure.task.task_id not in self.merged, "a task that is merged is given up"
        self.failures[failure.task.task_id] = failure
        self.tell(FailureStored(delivery, failure))

    def _split(self, split: StoreSplit) -> None:
        stands = split.task.task_id not in self.merged
        if stands:
            self.replaced.add(split.task.task_id)
            self.nature |= dict.fromkeys((half.task_id for half in split.halves), "half")
        self.tell(SplitStored(split.delivery, split.halves, stands))

    # Time.

    def _counts(self) -> Counts:
        return Counts(self.planned, len(self.merged), len(self.failures))

    def _tick(self) -> None:
        self.tell(Ticked(self._counts(), self.wish))
        self._at(self.now + 1.0, self._tick)

    def _want(self, wish: str) -> None:
        self.wish = wish
        if self.chance.random() < 0.5:
            self.tell(Wished(wish))  # else it is seen with the next tick

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._order), happen))

    def _soon(self, happen: Callable[[], None], within_s: float) -> None:
        self._at(self.now + (self.chance.uniform(0.0, within_s) if within_s else 0.0), happen)


def _hot(task: Task) -> Partial:
    return Partial(task, b"", Cost(wall_s=0.001, events=task.entries), "explorer")


def _silent(name: str) -> NoAnswer:
    return NoAnswer(name, True, False, False, "TimeoutError", 0, 0)
