"""What becomes of a delivery: the table of docs/messaging.md, row by row. Pure: no broker, no ledger, no clock.

Others gather what is known of a delivery, and carry out what is decided here: :mod:`bridge.settlement` towards the
broker, :mod:`bridge.session` towards the run's ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from bridge.wire import Refusal, TaskMessage
from hzzray.engine.ledger import TaskState, Wish
from hzzray.errors import HzzrayError
from hzzray.messages import Failure, Task
from hzzray.urls import redact

#: How often a message's run may be unknown before it is a dead letter: the announcement may be on its way.
MAX_UNKNOWN: Final = 8

#: A message that was redelivered so often, because no bridge acknowledged it, is a dead letter: it may be what ends
#: them. The broker's own limit is higher, so that nothing is given up behind the ledger's back.
MAX_REDELIVERIES: Final = 40


# What is known of a delivery.


@dataclass(frozen=True, slots=True)
class UnservedRun:
    """Its run is none of this bridge's, or can't be served for now."""


@dataclass(frozen=True, slots=True)
class InLedger:
    """What the run's ledger holds of its task.

    Attributes
    ----------
    spec
        Digest of the run's spec.
    task
        The task of that id as it was planned; None where there is none.
    is_inside
        Whether the message's own path lies inside the sources, where it is another one than the plan's.
    parts
        Of a task that was split, the parts that are due.
    failure
        Of a task that failed, why.
    wish
        What the run's user wants of the run.
    """

    spec: str
    task: Task | None
    state: TaskState = "due"
    is_inside: bool = True
    parts: tuple[Task, ...] = ()
    failure: Failure | None = None
    wish: Wish = "run"


@dataclass(frozen=True, slots=True)
class Committed:
    """Its result is in the ledger, or was before."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed in a way that may pass, ``attempts`` times so far; 0 where the task is not to blame."""

    attempts: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It failed for good, and the ledger says so."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Split:
    """Parts took its place in the ledger."""

    parts: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    """Nobody works on it any more: by the user's wish or, if that is ``run``, as the pool has nothing to do."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Handling it raised an error."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Leaving:
    """The bridge comes to its end."""


Known = UnservedRun | InLedger | Committed | Failed | GivenUp | Split | Stopped | Unhandled | Leaving
"""What is known of a delivery when its fate is decided: as it comes, or once it was worked on."""


# What is decided.


@dataclass(frozen=True, slots=True)
class Ack:
    """Acknowledge it; where it ``is_due`` still, the ledger knows: it is published again when the run goes on.

    Where that ``forgives``, its failure leaves the ledger before.
    """

    is_due: bool = False
    forgives: bool = False


@dataclass(frozen=True, slots=True)
class Requeue:
    """Publish it to a retry queue, then acknowledge; its delay grows with ``tries``; None is for the longest one."""

    message: TaskMessage
    tries: int | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Publish it as it came to the dead letters, then acknowledge; a ``failure`` is stored in the ledger before."""

    reason: str
    attempts: int = 0
    run_id: str = ""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Replace:
    """Publish parts in its place, then acknowledge; just that where none of them is due."""

    parts: tuple[TaskMessage, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """Offer it to the run's pool, unacknowledged; where that ``forgives``, its failure leaves the ledger before."""

    message: TaskMessage
    forgives: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave it unacknowledged: the broker redelivers it, to another bridge or later."""


Verdict = Ack | Requeue | DeadLetter | Replace | Offer | Keep


def decide(message: TaskMessage | Refusal, known: Known | None = None) -> Verdict:  # noqa: C901, PLR0911, PLR0912
    """Decide what becomes of a message's delivery: the first row that fits.

    Nothing need be known of a message that can't be read; where nothing is of a task's, its run is unknown.
    """
    if isinstance(known, Leaving):
        return Keep()
    if isinstance(message, Refusal):
        return DeadLetter(message.reason)
    run_id = message.task.run_id
    match known:
        case None if message.unknown < MAX_UNKNOWN:
            return Requeue(replace(message, unknown=message.unknown + 1), message.unknown + 1)
        case None:
            return DeadLetter(f"run {run_id} was never announced", run_id=run_id)
        case UnservedRun():
            return Requeue(message)
        case InLedger():
            return _by_ledger(message, known)
        case Committed():
            return Ack()
        case Failed(attempts=0):
            return Offer(message)
        case Failed(attempts=attempts):
            return Requeue(replace(message, attempt=attempts, replay=False), attempts)
        case GivenUp(failure=failure):
            return DeadLetter(failure.reason, failure.attempts, run_id)
        case Split(parts=parts):
            return _replaced(message, parts)
        case Stopped(wish="run"):
            return Requeue(message)
        case Stopped():
            return Ack(is_due=True)
        case Unhandled(error=HzzrayError()):
            return Requeue(message)
        case Unhandled(error=error):
            return DeadLetter(unhandled(error))
    assert_never(known)


def _by_ledger(message: TaskMessage, found: InLedger) -> Verdict:  # noqa: PLR0911 (rows of the same table)
    """Decide on a task whose run is served here, as it comes."""
    given, task, run_id = message.task, found.task, message.task.run_id
    if given.spec != found.spec:
        reason = f"its spec {given.spec[:12]} is not that of run {run_id}, {found.spec[:12]}"
        return DeadLetter(reason, message.attempt, run_id)
    if task is None or given.sample != task.sample:
        return DeadLetter(f"run {run_id} has no such task in its plan", message.attempt, run_id)
    if not found.is_inside:
        reason = f"{redact(given.file)}: outside the sources that this bridge may read"
        return DeadLetter(reason, message.attempt, run_id)
    if found.state == "merged":
        return Ack()
    if found.state == "split":
        return _replaced(message, found.parts)
    if found.state == "failed" and not message.replay:
        failure = found.failure
        reason, attempts = (failure.reason, failure.attempts) if failure else ("failed before", message.attempt)
        return DeadLetter(reason, attempts, run_id)
    if found.wish != "run":
        return Ack(is_due=True, forgives=found.state == "failed")
    if message.redeliveries >= MAX_REDELIVERIES:
        return _too_often(message, task)
    return Offer(replace(message, task=task), forgives=found.state == "failed")


def unhandled(error: Exception) -> str:
    """Say why a message is given up for a reason that nobody thought of."""
    return f"it can't be handled: {type(error).__name__}: {error}"


def _replaced(message: TaskMessage, parts: Sequence[Task]) -> Replace:
    return Replace(tuple(TaskMessage(part, published=message.published) for part in parts))


def _too_often(message: TaskMessage, task: Task) -> DeadLetter:
    times = message.redeliveries
    reason = f"redelivered {times} times, and never acknowledged"
    return DeadLetter(reason, times, task.run_id, Failure(task=task, reason=reason, permanent=False, attempts=times))
