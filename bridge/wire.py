"""Messages as they go through the broker: written as letters, read back. JSON, versioned, bounded, validated.

Nothing here trusts what it reads: whatever comes is turned into a value, or into a Refusal that says why not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeGuard, TypeVar

import pika
from pydantic import BaseModel, Field, ValidationError, model_validator

from bridge.announcement import NAME_CHARACTERS, REASON_CHARACTERS, Announcement, Natural
from bridge.topology import Queue, Topology
from hzzray.engine.ledger import Wish
from hzzray.engine.monitor import Usage, service, service_of
from hzzray.errors import UsageError
from hzzray.messages import WIRE_VERSION, Message, RunId, Task
from hzzray.runs.request import checked

#: Bytes of a body at the most: of an announcement, which holds a whole plan, and of anything else.
ANNOUNCEMENT_BYTES = 16_000_000
MESSAGE_BYTES = 64 * 1024

#: Headers of a task: how often it was tried in vain; how often its run was unknown; that a failure of it is forgiven.
ATTEMPT = "attempt"
UNKNOWN = "unknown"
REPLAY = "replay"

#: Headers of a dead letter.
REASON = "x-hzzray-reason"
ATTEMPTS = "x-hzzray-attempts"
RUN = "x-hzzray-run"

# What the broker counts in quorum queues: deliveries of a message that were not acknowledged.
_DELIVERY_COUNT = "x-delivery-count"

# What the clocks of publishers may show: seconds since 1970, up to the year 9999.
_LATEST = 253_402_300_799

_JSON = "application/json"
_COUNT_LIMIT = 1_000_000

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Refusal(NamedTuple):
    """Why a message can't be taken for what it should be."""

    reason: str


class Account(Message):
    """What publishing a run took: all that the publisher's container used in its life. Times in s, sizes in bytes."""

    version: Literal[2] = WIRE_VERSION
    run_id: RunId
    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,255}$")]
    user_s: Amount
    system_s: Amount
    rss: Natural
    cpus: Amount
    memory_limit: Natural

    @classmethod
    def of(cls, run_id: str, usage: Usage) -> Account:
        """Give account of a service's container."""
        return cls(
            run_id=run_id, service=service_of(usage.actor), host=usage.node, user_s=usage.user_s,
            system_s=usage.system_s, rss=usage.rss, cpus=usage.cpus, memory_limit=usage.memory_limit,
        )  # fmt: skip

    @property
    def usage(self) -> Usage:
        """The row of the container, which has ended."""
        used = self.model_dump(exclude={"version", "run_id", "service", "host"})
        return service(self.service, self.host, **used, state="ended")


class Order(Message):
    """What a user wants of the bridges: a wish for a run, or a number of tasks to hold (0: as many as suit)."""

    version: Literal[2] = WIRE_VERSION
    run_id: RunId | None = None
    wish: Wish | None = None
    prefetch: Annotated[int, Field(ge=0, le=65_535)] | None = None

    @classmethod
    def of(cls, **wanted: object) -> Self:
        """Make an order; raises UsageError naming what is wrong."""
        return checked(cls, wanted)

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if (self.wish is None) != (self.run_id is None) or (self.wish is None) == (self.prefetch is None):
            raise ValueError("an order is a run's wish or a prefetch")
        return self


@dataclass(frozen=True, slots=True)
class TaskMessage:
    """A task as it was delivered.

    Attributes
    ----------
    attempt
        How often it was tried in vain.
    unknown
        How often it was requeued because its run was unknown.
    replay
        Whether it shall be tried though it failed before.
    redeliveries
        How often it was delivered to a bridge that ended without an acknowledgement.
    published
        When, in seconds since the epoch; None where it doesn't say.
    """

    task: Task
    attempt: int = 0
    unknown: int = 0
    replay: bool = False
    redeliveries: int = 0
    published: float | None = None

    def headers(self) -> dict[str, Any]:
        """Headers of a message that carries it."""
        optional = {UNKNOWN: self.unknown, REPLAY: self.replay}
        return {ATTEMPT: self.attempt, **{name: value for name, value in optional.items() if value}}


@dataclass(frozen=True, slots=True)
class Letter:
    """A message to be published: where to, and what. Unless it is ``mandatory``, it may go where nobody is."""

    exchange: str
    key: str
    body: bytes
    properties: pika.BasicProperties
    mandatory: bool = True


def task_letter(topology: Topology, message: TaskMessage, queue: Queue | None = None) -> Letter:
    """Write a task as a durable message, for the queue of tasks or another one."""
    queue = queue or topology.tasks
    task = message.task
    properties = _properties("task", task.task_id, message.headers(), message.published)
    return Letter(queue.exchange, queue.name, task.canonical(), properties)


def announcement_letter(topology: Topology, announcement: Announcement, mark: str) -> Letter:
    """Write an announcement for the stream of runs; ``mark`` tells it from others of the same run.

    Raises UsageError for a plan too big for one message.
    """
    body = announcement.canonical()
    if len(body) > ANNOUNCEMENT_BYTES:
        raise UsageError(
            f"run {announcement.run_id}: its plan takes {len(body)} bytes, more than the {ANNOUNCEMENT_BYTES} of a "
            "message: take a bigger --chunk"
        )
    properties = _properties("announcement", announcement.run_id, {})
    properties.correlation_id = mark
    return Letter(topology.runs.exchange, topology.runs.name, body, properties)


def account_letter(topology: Topology, account: Account) -> Letter:
    """Write an account for the stream of runs, where it stands behind the run's announcement."""
    properties = _properties("account", account.run_id, {})
    return Letter(topology.runs.exchange, topology.runs.name, account.canonical(), properties)


def order_letter(topology: Topology, order: Order, *, mandatory: bool = True) -> Letter:
    """Write an order to all bridges that listen."""
    properties = _properties("order", order.run_id or "", {})
    return Letter(topology.control, "", order.canonical(), properties, mandatory)


def dead_letter(
    topology: Topology, body: bytes, properties: pika.BasicProperties, *, reason: str, attempts: int, run_id: str
) -> Letter:
    """Write a message that is given up as it came, with the reason; of its headers, those that make sense."""
    theirs = _headers(properties)
    headers = {
        **{name: theirs[name] for name in (ATTEMPT, UNKNOWN) if _is_tally(theirs.get(name))},
        **({REPLAY: True} if theirs.get(REPLAY) is True else {}),
        REASON: one_line(reason),
        ATTEMPTS: attempts,
        RUN: run_id,
    }
    kept = pika.BasicProperties(
        content_type=properties.content_type,
        type=properties.type,
        message_id=properties.message_id,
        timestamp=properties.timestamp,
        delivery_mode=pika.DeliveryMode.Persistent.value,
        headers=headers,
    )
    return Letter(topology.dead.exchange, topology.dead.name, body, kept)


def _properties(kind: str, name: str, headers: dict[str, Any], published: float | None = None) -> pika.BasicProperties:
    return pika.BasicProperties(
        content_type=_JSON,
        type=kind,
        message_id=name,
        timestamp=int(time.time() if published is None else published),
        delivery_mode=pika.DeliveryMode.Persistent.value,
        headers=headers,
    )


def read_task(body: bytes, properties: pika.BasicProperties) -> TaskMessage | Refusal:
    """Read a task's message."""
    task = _read(Task, "task", body, properties, MESSAGE_BYTES)
    if isinstance(task, Refusal):
        return task
    if properties.message_id != task.task_id:
        return Refusal(f"its message_id is not the id of its task, {task.task_id}")
    headers = _headers(properties)
    counts = [headers.get(name, 0) for name in (ATTEMPT, UNKNOWN, _DELIVERY_COUNT)]
    if not all(map(_is_tally, counts)):
        return Refusal(f"its headers {ATTEMPT} and {UNKNOWN} must be numbers from 0 on")
    for name in ("sample", "file", "uuid", "tree"):
        if len(getattr(task, name)) > NAME_CHARACTERS:
            return Refusal(f"{name}: more than {NAME_CHARACTERS} characters")
    published = properties.timestamp
    return TaskMessage(
        task,
        attempt=counts[0],
        unknown=counts[1],
        redeliveries=counts[2],
        replay=headers.get(REPLAY) is True,
        published=float(published) if is_count(published) and published <= _LATEST else None,
    )


def read_announcement(body: bytes, properties: pika.BasicProperties) -> Announcement | Refusal:
    """Read an announcement."""
    return _read(Announcement, "announcement", body, properties, ANNOUNCEMENT_BYTES)


def read_account(body: bytes, properties: pika.BasicProperties) -> Account | Refusal:
    """Read an account."""
    return _read(Account, "account", body, properties, MESSAGE_BYTES)


def read_order(body: bytes, properties: pika.BasicProperties) -> Order | Refusal:
    """Read an order."""
    return _read(Order, "order", body, properties, MESSAGE_BYTES)


_Model = TypeVar("_Model", bound=BaseModel)


def _read(
    model: type[_Model], kind: str, body: bytes, properties: pika.BasicProperties, limit: int
) -> _Model | Refusal:
    if wrong := _wrong_cover(kind, body, properties, limit):
        return Refusal(one_line(wrong))
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        return Refusal(_mistake(error))
    except (ArithmeticError, MemoryError, RecursionError) as error:  # a value that no check was ready for
        return Refusal(one_line(f"it can't be read: {type(error).__name__}: {error}"))


def _wrong_cover(kind: str, body: bytes, properties: pika.BasicProperties, limit: int) -> str:
    """Say what is wrong with a message before its body is looked at; nothing, if all is well."""
    if unreadable := getattr(properties, "unreadable", ""):
        return f"its properties can't be read: {unreadable}"
    if len(body) > limit:
        return f"too big: {len(body)} bytes, where {limit} are allowed"
    if properties.content_type != _JSON:
        return f"its content type is {_shown(properties.content_type)}, not {_JSON}"
    if properties.content_encoding is not None:
        return f"its content encoding {_shown(properties.content_encoding)} is not known here"
    if properties.type != kind:
        return f"a message of type {_shown(properties.type)}, not {kind}"
    return ""


def one_line(text: str) -> str:
    """Show a text that came from anywhere in one bounded line, with nothing in it that a terminal would obey."""
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return "".join(islice(shown, REASON_CHARACTERS))[:REASON_CHARACTERS]


def is_count(value: object) -> TypeGuard[int]:
    """Tell a number from 0 on. RabbitMQ 4 sends 64 bits, for which pika has a kind of int of its own."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_tally(value: object) -> TypeGuard[int]:
    """Tell how often something may have happened to a message."""
    return is_count(value) and value <= _COUNT_LIMIT


def _headers(properties: pika.BasicProperties) -> Mapping[str, Any]:
    return properties.headers or {}


def _mistake(error: ValidationError) -> str:
    """Say in one line what is wrong with a body; an unknown version first, since all else follows from it."""
    wrong = error.errors(include_url=False, include_context=False)
    for one in wrong:
        if one["loc"] == ("version",):
            return f"version {_shown(one['input'])}: this hzzray reads version {WIRE_VERSION}"
    field = ".".join(str(part) for part in wrong[0]["loc"])
    message = wrong[0]["msg"].removeprefix("Value error, ")
    return one_line(f"{field}: {message}" if field else message)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
