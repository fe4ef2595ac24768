"""What a dispatch is told, and what it answers with: the words that it and the pool share.

Calls and deliveries have numbers, workers names. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from hzzray.engine.cluster import Node
from hzzray.engine.events import Kind
from hzzray.engine.faults import Fault
from hzzray.engine.ledger import Wish
from hzzray.messages import Counts, Failure, Partial, Range, Task

# Events.


@dataclass(frozen=True, slots=True)
class Begun:
    """The reducer is there, and says how the run stands. Nothing is instructed before."""

    counts: Counts


@dataclass(frozen=True, slots=True)
class Offered:
    """The source gave the task that it was asked for, which had failed so often before."""

    task: Task
    tried: int


@dataclass(frozen=True, slots=True)
class NoneAtHand:
    """The source has no task now."""


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The source will have no more tasks."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker of others is there that holds some ranges hot: it fills these sooner than anybody reads them."""

    worker: str
    holds: frozenset[Range]


@dataclass(frozen=True, slots=True)
class Came:
    """A worker that was looked for answers, from a node: it can work."""

    worker: str
    node: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A worker that was looked for is ``silent``, or fails: while it restarts, for good (``is_dead``), otherwise.

    ``before`` and ``restarts`` are how often it had been restarted when it was looked for, and how often by now.
    """

    worker: str
    silent: bool
    restarting: bool
    is_dead: bool
    reason: str
    before: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A call of a worker brought, for each of its tasks, a partial or a fault."""

    call: int
    outcomes: tuple[Partial | Fault, ...]


@dataclass(frozen=True, slots=True)
class Broken:
    """A call of a worker failed as a whole."""

    call: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class Committed:
    """The reducer has stored the partials that it was given."""


@dataclass(frozen=True, slots=True)
class FailureStored:
    """The reducer has stored a failure."""

    delivery: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class SplitStored:
    """The reducer has stored that halves replace a task, if that ``stands``: it may have come too late."""

    delivery: int
    halves: tuple[Task, Task]
    stands: bool


@dataclass(frozen=True, slots=True)
class NodesSeen:
    """The cluster's nodes were looked at; None where it can't be said now which there are."""

    nodes: tuple[Node, ...] | None


@dataclass(frozen=True, slots=True)
class RoomSeen:
    """The cluster has room for so many workers, in all; None where it can't be said now."""

    slots: float | None


@dataclass(frozen=True, slots=True)
class Ticked:
    """A second has passed; how the run stands, and what its ledger says that its user wants."""

    counts: Counts
    wish: Wish


@dataclass(frozen=True, slots=True)
class Wished:
    """The run is to go on, pause, drain or cancel."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class EndWished:
    """No more tasks are to be taken: there is nothing left to do."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """There may be so many workers from now on."""

    min_actors: int
    max_actors: int


@dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A worker told its process' number."""

    worker: str
    pid: int


@dataclass(frozen=True, slots=True)
class GlanceDue:
    """A commit has waited for other partials to come along."""


@dataclass(frozen=True, slots=True)
class RetryDue:
    """A delivery that failed has waited to be tried again, after so many attempts."""

    delivery: int
    attempts: int


@dataclass(frozen=True, slots=True)
class LookDue:
    """A task whose file is on no free worker's node has waited for another worker."""


@dataclass(frozen=True, slots=True)
class DrainDue:
    """An end has waited for what is in flight."""


DispatchEvent = (
    Offered | NoneAtHand | Answered | Committed | GlanceDue | Ticked | Broken | RetryDue | ProcessSeen | Came | NoAnswer
    | FailureStored | SplitStored | NodesSeen | RoomSeen | LookDue | DrainDue | Wished | EndWished | Bounded | Exhausted
    | Begun | Joined
)  # fmt: skip


# Instructions.


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the source for its next task: Offered or Exhausted; with ``at_hand`` only for one that comes at once."""

    at_hand: bool = False


@dataclass(frozen=True, slots=True)
class AskNoMore:
    """Let the source be: no task is wanted any more."""


@dataclass(frozen=True, slots=True)
class Give:
    """Call a worker with tasks: Answered or Broken."""

    call: int
    worker: str
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start a worker's actor, on none of some nodes; another one takes the place of an earlier one of its name."""

    worker: str
    avoid: frozenset[str]


@dataclass(frozen=True, slots=True)
class LookFor:
    """See whether a worker answers ``within_s``, after a wait: Came or NoAnswer."""

    worker: str
    after_s: float
    within_s: float


@dataclass(frozen=True, slots=True)
class RestartWorker:
    """Kill a worker's process; Ray starts it anew."""

    worker: str


@dataclass(frozen=True, slots=True)
class EndWorker:
    """Kill a worker for good."""

    worker: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Let the reducer store partials: Committed."""

    partials: tuple[Partial, ...]


@dataclass(frozen=True, slots=True)
class StoreFailure:
    """Let the reducer store a failure: FailureStored."""

    delivery: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class StoreSplit:
    """Let the reducer store that halves replace a task: SplitStored."""

    delivery: int
    task: Task
    halves: tuple[Task, Task]


@dataclass(frozen=True, slots=True)
class Ack:
    """Tell the source that results are committed."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Return:
    """Give the source a task back, after so many attempts that failed in a way that may pass."""

    task: Task
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Reject:
    """Tell the source that a task is given up."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Replace:
    """Tell the source that parts replace a task."""

    task: Task
    parts: tuple[Task, Task]


@dataclass(frozen=True, slots=True)
class LookAtNodes:
    """See which nodes there are: NodesSeen."""


@dataclass(frozen=True, slots=True)
class LookForRoom:
    """See how many workers the cluster has room for: RoomSeen."""


@dataclass(frozen=True, slots=True)
class After:
    """Come back with an event in some seconds."""

    seconds: float
    event: GlanceDue | RetryDue | LookDue | DrainDue


@dataclass(frozen=True, slots=True)
class Tell:
    """Take note of what happened, for people."""

    kind: Kind
    who: str
    what: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """All is done that was wanted: end."""


@dataclass(frozen=True, slots=True)
class Abort:
    """End with an error: workers can't be kept alive."""

    reason: str


Instruction = (
    Ask | Give | Ack | Commit | After | Return | AskNoMore | StartWorker | LookFor | RestartWorker | EndWorker
    | StoreFailure | StoreSplit | Reject | Replace | LookAtNodes | LookForRoom | Tell | Stop | Abort
)  # fmt: skip
