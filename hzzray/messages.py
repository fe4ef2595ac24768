"""What travels: the run's spec, its tasks, what came of them. Frozen, named by content, validated JSON on the wire."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Literal, NamedTuple, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hzzray.data.catalogue import CONCLUDING, Release
from hzzray.physics.analysis import Template, Variation, shape_of
from hzzray.physics.histogram import Axis, Shape, Yields
from hzzray.physics.selection import Selection

#: Version of the messages' form, and of what their fields mean; another one is refused.
WIRE_VERSION: Literal[2] = 2

#: Version of a spec's form. It is a part of what names a computation.
SPEC_VERSION: Literal[2] = 2

#: Cells that all templates of a sample may have: a spec from the wire can't ask for more memory than a worker has.
MAX_CELLS = 2**19

#: A task whose file could not be read when it was planned has this instead of a uuid, and which file of which sample.
UNREAD = "unread:"

Status = Literal["running", "partial", "complete"]

#: What a run may be called: it names a folder, an actor and a routing key.
RUN_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

RunId = Annotated[str, Field(pattern=RUN_ID)]


class Message(BaseModel):
    """A frozen value with a canonical JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> bytes:
        """JSON with sorted keys and no spaces: equal values give equal bytes."""
        return _json(self.model_dump(mode="json", by_alias=True))


def _json(body: object) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class AnalysisRef(Message):
    """Which analysis: one of ours by ``name``, or the user's own in a file ``module``.py whose SHA-256 is ``source``.

    ``regions`` and ``title`` are the analysis' own, for whoever shows results without it.
    """

    name: str = Field(min_length=1, max_length=100)
    module: str = Field(default="", pattern=r"^[A-Za-z0-9_]{0,100}$")
    source: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    regions: tuple[str, ...] = Field(min_length=1, max_length=100)
    title: str = Field(default="", max_length=200)

    def __str__(self) -> str:
        """Return the name that people know it by."""
        return f"{self.module}.py:{self.name}" if self.module else self.name


class RunSpec(Message):
    """What a run computes: nothing of where or how. Self-contained, so that any worker anywhere can take it up.

    ``release`` holds just the samples of this run. ``templates`` are what is filled: the first has the digest and the
    significance, which is counted in ``window``, on its bins' edges, or not at all where that is None. ``luminosity``
    is in fb⁻¹. ``fraction`` in (0, 1] is the leading part of each file's entries that is read; what that stands for is
    decided in ``hzzray.statistics.scaling``. Simulation has ``variations`` of the first ``varied`` templates.
    """

    version: Literal[2] = SPEC_VERSION
    release: Release
    analysis: AnalysisRef
    selection: Selection
    templates: tuple[Template, ...] = Field(min_length=1)
    window: tuple[float, float] | None = None
    luminosity: float = Field(gt=0, allow_inf_nan=False)
    fraction: float = Field(gt=0, le=1)
    # Left out where there are none: a spec of before has the digest that it had.
    variations: tuple[Variation, ...] = Field(default=(), max_length=1000, exclude_if=lambda value: not value)
    varied: int = Field(default=1, ge=1, exclude_if=lambda value: value == 1)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        names = [template.observable for template in self.templates]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"observable {twice} is there twice")
        directions = [name for variation in self.variations for name in variation.directions]
        again = next((name for name in directions if directions.count(name) > 1), None)
        if again is not None:
            raise ValueError(f"variation {again} is there twice")
        if self.varied > len(self.templates):
            raise ValueError(f"{self.varied} observables are to be varied, of {len(self.templates)}")
        if self.shape.cells > MAX_CELLS:
            where = "regions and variations" if self.variations else "regions"
            raise ValueError(f"the observables have {self.shape.cells} bins in all {where}, {MAX_CELLS} at most")
        if self.window is not None:
            self.axis.window(*self.window)  # refuses one that is not of whole bins
        return self

    @property
    def axis(self) -> Axis:
        """The first template's axis."""
        return self.templates[0].axis

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the cutflow's rows."""
        return self.selection.rows

    @property
    def shape(self) -> Shape:
        """The form of what is filled of each sample."""
        cuts = self.selection.cuts
        return shape_of(self.analysis.regions, cuts, self.templates, self.variations, self.varied)

    @property
    def directions(self) -> tuple[str, ...]:
        """Names of all that variations give, each up and down."""
        return tuple(name for variation in self.variations for name in variation.directions)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form without what is concluded in the end: the name of this computation."""
        body = self.model_dump(mode="json", by_alias=True, exclude={"release": set(CONCLUDING)})
        return hashlib.sha256(_json(body)).hexdigest()

    def entries_to_read(self, entries: int) -> int:
        """How many leading entries of a file the fraction stands for; at least one where there is any."""
        return min(entries, max(1, int(entries * self.fraction)))


class Range(NamedTuple):
    """Entries of a file's content, read as a sample's: what tasks of several runs may have in common."""

    sample: str
    uuid: str
    start: int
    stop: int


class Task(Message):
    """A range of entries of one file. ``file`` is a path or URL; the id depends on content, never on place or time.

    ``uuid`` names the file's content (see Layout): another file, or what is written in this one's place, has another.
    """

    version: Literal[2] = WIRE_VERSION
    run_id: RunId
    spec: str = Field(pattern=r"^[0-9a-f]{64}$")
    sample: str
    file: str
    uuid: str
    tree: str
    start: int = Field(ge=0)
    stop: int = Field(ge=0, lt=2**63)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.stop < self.start:
            raise ValueError(f"stop {self.stop} is before start {self.start}")
        return self

    @cached_property
    def task_id(self) -> str:
        """Hash of spec digest, content's uuid, tree, start and stop; 32 hexadecimal digits."""
        identity = f"{self.spec}\0{self.uuid}\0{self.tree}\0{self.start}\0{self.stop}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    @property
    def range(self) -> Range:
        """Which events it is of."""
        return Range(self.sample, self.uuid, self.start, self.stop)

    @property
    def entries(self) -> int:
        """Entries in the range."""
        return self.stop - self.start

    def halves(self) -> tuple[Task, Task]:
        """Cut the range in two that tile it; raises ValueError where there is nothing to cut."""
        if self.entries < 2:
            raise ValueError(f"task {self.task_id} has {self.entries} entries: it can't be cut in two")
        middle = (self.start + self.stop) // 2
        # Not dict(self), which holds the id too, once it was asked for.
        same = {name: getattr(self, name) for name in Task.model_fields}
        return Task(**{**same, "stop": middle}), Task(**{**same, "start": middle})


@dataclass(frozen=True, slots=True)
class Cost:
    """What work took: seconds of wall clock, of CPU, of waiting for input; bytes and events read."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    read_s: float = 0.0
    bytes_read: int = 0
    events: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Add up what two pieces of work took."""
        return Cost(
            self.wall_s + other.wall_s,
            self.cpu_s + other.cpu_s,
            self.read_s + other.read_s,
            self.bytes_read + other.bytes_read,
            self.events + other.events,
        )


@dataclass(frozen=True, slots=True)
class Partial:
    """What a worker made of one task; ``packed`` are its blocks (see Blocks.pack). Travels inside Ray only."""

    task: Task
    packed: bytes
    cost: Cost
    worker: str


class Counts(NamedTuple):
    """How far a run is: tasks planned, merged and failed, events merged, and deliveries that were merged before."""

    planned: int
    merged: int
    failed: int
    events: int = 0
    duplicates: int = 0

    @property
    def due(self) -> int:
        """Tasks that are neither merged nor failed."""
        return self.planned - self.merged - self.failed

    @property
    def status(self) -> Status:
        """Complete when all planned tasks are merged, partial when the others failed, else running.

        A run that nothing is planned of yet is running too.
        """
        if self.due or not self.planned:
            return "running"
        return "partial" if self.failed else "complete"


class Entries(NamedTuple):
    """Entries of a sample, in those of its files that could be opened: how many are to be read, how many they hold."""

    planned: int = 0
    held: int = 0

    def __add__(self, other: Entries) -> Entries:  # type: ignore[override]
        """Add up those of two files."""
        return Entries(self.planned + other.planned, self.held + other.held)


class Failure(Message):
    """A task that could not be done, and why. ``permanent`` ones are not worth another try as things are."""

    task: Task
    reason: str
    permanent: bool
    attempts: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of a sample, cut into tasks, one at least.

    ``path`` is its place inside a source, wherever that lies: by this one start of a run knows the next one's files.
    ``entries`` is how many it holds; its tasks tile the first ones.
    """

    path: str
    entries: int
    tasks: tuple[Task, ...]

    @property
    def sample(self) -> str:
        """Whose file it is."""
        return self.tasks[0].sample

    @property
    def file(self) -> str:
        """Where it lies: a path or URL."""
        return self.tasks[0].file

    @property
    def uuid(self) -> str:
        """The name of its content."""
        return self.tasks[0].uuid

    @property
    def planned(self) -> int:
        """How many entries are to be read."""
        return self.tasks[-1].stop


@dataclass(frozen=True, slots=True)
class UnreadFile:
    """A file of a sample that can't be planned, or a pattern that stands for files which can't, and why.

    No source has one that is ``missing``. One that is there ``again`` has the content of another file of its sample:
    nothing is lacking without it.
    """

    path: str
    failure: Failure
    missing: bool = False
    again: bool = False

    @property
    def sample(self) -> str:
        """Whose file it is."""
        return self.failure.task.sample


def unread_uuid(sample: str, path: str) -> str:
    """Name the content of a file that could not be read, after its sample and its place instead."""
    return f"{UNREAD}{quote(sample)}:{path}"


@dataclass(frozen=True, eq=False, slots=True)
class RunState:
    """A run as its reducer knows it: yields by sample, what is planned, what failed, what it took.

    ``yields`` are those of the first template, ``digest`` names its exact contents, ``varied_digest`` those of all
    variations, where there are some. ``entries`` are those of each
    sample's files that could be opened; ``unopened`` counts the others, where there are some.
    """

    version: int
    run_id: str
    spec: RunSpec
    environment: str
    counts: Counts
    yields: dict[str, Yields]
    digest: str
    entries: dict[str, Entries]
    failures: tuple[Failure, ...]
    cost: Cost
    wall_s: float
    unopened: Mapping[str, int] = field(default_factory=dict)
    varied_digest: str = ""

    def with_wall(self, seconds: float) -> RunState:
        """Return a copy that took this long."""
        return replace(self, wall_s=seconds)
