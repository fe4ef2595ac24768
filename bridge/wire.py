"""What goes through the broker: announcements of runs, tasks, users' wishes. JSON, versioned, bounded, validated.

Nothing here trusts what it reads: whatever comes is turned into a value, or into a Refusal that says why not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeGuard, TypeVar

import pika
from pydantic import BaseModel, Field, ValidationError, model_validator

from bridge.topology import Queue, Topology
from hzzray.engine.ledger import Wish
from hzzray.engine.monitor import Usage, service, service_of
from hzzray.errors import UsageError
from hzzray.messages import (
    UNREAD,
    WIRE_VERSION,
    Failure,
    Message,
    PlannedFile,
    RunId,
    RunSpec,
    Task,
    UnreadFile,
    unread_uuid,
)
from hzzray.runs.plan import Plan
from hzzray.urls import is_pattern

#: Bytes of a body at the most: of an announcement, which holds a whole plan, and of anything else.
ANNOUNCEMENT_BYTES = 16_000_000
MESSAGE_BYTES = 64 * 1024

#: Headers of a task: how often it was tried in vain; how often nobody knew its run; that a failure of it is forgiven.
ATTEMPT = "attempt"
STRANGE = "strange"
REPLAY = "replay"

#: Headers of a dead letter.
REASON = "x-hzzray-reason"
ATTEMPTS = "x-hzzray-attempts"
RUN = "x-hzzray-run"

#: What the broker counts in quorum queues: deliveries of a message that were not acknowledged.
_RETURNS = "x-delivery-count"

# A name or a place at the most, as in an announcement.
_NAME_CHARACTERS = 4096

# What the clocks of publishers may show: seconds since 1970, up to the year 9999.
_LATEST = 253_402_300_799

_JSON = "application/json"
_COUNT_LIMIT = 1_000_000
_REASON_CHARACTERS = 1000

Name = Annotated[str, Field(min_length=1, max_length=_NAME_CHARACTERS)]
Entry = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Refusal(NamedTuple):
    """Why a message can't be taken for what it should be."""

    reason: str


class PlannedRow(Message):
    """A sample's file, cut into tasks: their borders are ``cuts``, first to last; (0, 0) of a file without entries.

    ``entries`` is how many the file holds, of which the last cut may be fewer. ``path`` is its place in a source; it is
    left out where the sample has one file by definition.
    """

    sample: Name
    file: Name
    uuid: Name
    tree: Name
    cuts: tuple[Entry, ...] = Field(min_length=2)
    entries: Entry
    path: Name | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        rising = all(low < high for low, high in pairwise(self.cuts)) or self.cuts == (0, 0)
        if self.cuts[0] != 0 or not rising or self.cuts[-1] > self.entries:
            raise ValueError(f"the cuts of {self.sample} don't tile it")
        if self.uuid.startswith(UNREAD):
            raise ValueError(f"{self.sample} has no file of uuid {self.uuid}")
        return self


class UnreadRow(Message):
    """A sample's file that could not be planned, and why; ``path`` as in ``PlannedRow``, the rest as in the plan."""

    sample: Name
    file: Name
    tree: Name
    reason: Annotated[str, Field(max_length=_REASON_CHARACTERS)]
    missing: bool
    permanent: bool
    path: Name | None = Field(default=None, exclude_if=lambda value: value is None)
    again: bool = Field(default=False, exclude_if=lambda value: not value)


class Announcement(Message):
    """A run and its whole plan, so that any bridge can take it up and knows when it is complete."""

    version: Literal[2] = WIRE_VERSION
    run_id: RunId
    spec: RunSpec
    files: tuple[PlannedRow, ...]
    unread: tuple[UnreadRow, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        strangers = {row.sample for row in self._rows} - {sample.name for sample in self.spec.release.samples}
        if strangers:
            raise ValueError(f"its spec has no sample {min(strangers)}")
        places = [self._place(row) for row in self._rows]
        if len(set(places)) < len(places):
            raise ValueError("a file of a sample is in it twice")
        if len({row.uuid for row in self.files}) < len(self.files):
            raise ValueError("a file is in it twice")
        return self

    @property
    def _rows(self) -> tuple[PlannedRow | UnreadRow, ...]:
        return (*self.files, *self.unread)

    def _place(self, row: PlannedRow | UnreadRow) -> tuple[str, str]:
        """Tell a file by its sample and its place in a source; raises ValueError where a row should say that."""
        only = self.spec.release.sample(row.sample).only_path
        if (row.path is None) != (only is not None):
            raise ValueError(f"which file of sample {row.sample} is meant is for its spec to say, or for path")
        return row.sample, only or row.path or ""

    @classmethod
    def of(cls, spec: RunSpec, run_id: str, plan: Plan) -> Announcement:
        """Announce a plan."""

        def path(file: PlannedFile | UnreadFile) -> str | None:
            return None if spec.release.sample(file.sample).only_path else file.path

        files = []
        for file in plan.files:
            first, *others = file.tasks
            cuts = (first.start, first.stop, *(task.stop for task in others))
            files.append(
                PlannedRow(
                    sample=file.sample, file=file.file, uuid=file.uuid, tree=first.tree, cuts=cuts,
                    entries=file.entries, path=path(file),
                )
            )  # fmt: skip
        unread = [
            UnreadRow(
                sample=file.sample, file=file.failure.task.file, tree=file.failure.task.tree,
                reason=file.failure.reason[:_REASON_CHARACTERS], missing=file.missing,
                permanent=file.failure.permanent, path=path(file), again=file.again,
            )
            for file in plan.unread
        ]  # fmt: skip
        return cls(run_id=run_id, spec=spec, files=tuple(files), unread=tuple(unread))

    def plan(self) -> Plan:
        """Return the plan as the planner made it."""
        files = []
        for row in self.files:
            tasks = tuple(self._task(row, row.uuid, span) for span in pairwise(row.cuts))
            files.append(PlannedFile(self._place(row)[1], row.entries, tasks))
        unread = []
        for lacking in self.unread:
            sample, path = self._place(lacking)
            task = self._task(lacking, unread_uuid(sample, path), (0, 0))
            failure = Failure(task=task, reason=lacking.reason, permanent=lacking.permanent)
            unread.append(UnreadFile(path, failure, lacking.missing, lacking.again))
        return Plan(tuple(files), tuple(unread))

    def _task(self, row: PlannedRow | UnreadRow, uuid: str, span: tuple[int, int]) -> Task:
        return Task(
            run_id=self.run_id, spec=self.spec.digest, sample=row.sample, file=row.file, uuid=uuid, tree=row.tree,
            start=span[0], stop=span[1],
        )  # fmt: skip

    def with_later(self, later: Announcement) -> Announcement:
        """Add what a later announcement of the same run knows of files that this one could not plan, or hadn't found.

        Not those of a sample of which the later one lacks a file that this one has: they may be another version of it.
        All who read the announcements in their order come to the same plan, whoever made them. Raises UsageError when
        the later one is of another spec.
        """
        if later.spec.digest != self.spec.digest:
            raise UsageError(f"run {self.run_id} was announced with another spec")
        contents, places = {row.uuid for row in self.files}, set(map(self._place, self.files))
        theirs = {row.uuid for row in later.files}
        listed = set(map(later._place, later._rows))
        gone = {row.sample for row in self.files if row.uuid not in theirs and self._place(row) not in listed}
        files = self.files + tuple(
            row
            for row in later.files
            if row.uuid not in contents and self._place(row) not in places and row.sample not in gone
        )
        places |= set(map(self._place, files))
        # What stands for a pattern goes once another look found no fault with it; what a later look finds, stays out.
        unread = [
            row
            for row in self.unread
            if self._place(row) not in places and (self._place(row) in listed or not is_pattern(self._place(row)[1]))
        ]
        places |= set(map(self._place, unread))
        unread += [
            row for row in later.unread if self._place(row) not in places and not is_pattern(self._place(row)[1])
        ]
        return Announcement(run_id=self.run_id, spec=self.spec, files=files, unread=tuple(unread))


class Account(Message):
    """What publishing a run took: all that the publisher's container used in its life. Times in s, sizes in bytes."""

    version: Literal[2] = WIRE_VERSION
    run_id: RunId
    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,255}$")]
    user_s: Amount
    system_s: Amount
    rss: Entry
    cpus: Amount
    memory_limit: Entry

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
    strange
        How often it was put off because nobody knew its run.
    replay
        Whether it shall be tried though it failed before.
    returns
        How often it was delivered to one who went without a word.
    published
        When, in seconds since the epoch; None where it doesn't say.
    """

    task: Task
    attempt: int = 0
    strange: int = 0
    replay: bool = False
    returns: int = 0
    published: float | None = None

    def headers(self) -> dict[str, Any]:
        """Headers of a message that carries it."""
        optional = {STRANGE: self.strange, REPLAY: self.replay}
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
        **{name: theirs[name] for name in (ATTEMPT, STRANGE) if _is_tally(theirs.get(name))},
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
    counts = [headers.get(name, 0) for name in (ATTEMPT, STRANGE, _RETURNS)]
    if not all(map(_is_tally, counts)):
        return Refusal(f"its headers {ATTEMPT} and {STRANGE} must be numbers from 0 on")
    for name in ("sample", "file", "uuid", "tree"):
        if len(getattr(task, name)) > _NAME_CHARACTERS:
            return Refusal(f"{name}: more than {_NAME_CHARACTERS} characters")
    published = properties.timestamp
    return TaskMessage(
        task,
        attempt=counts[0],
        strange=counts[1],
        returns=counts[2],
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
    return "".join(islice(shown, _REASON_CHARACTERS))[:_REASON_CHARACTERS]


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
