"""A run's announcement: its spec and its whole plan, and how a later one adds to it. JSON, bounded, validated."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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

#: Characters of a name or a place, and of a reason, at the most.
NAME_CHARACTERS = 4096
REASON_CHARACTERS = 1000

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]


class AnnouncedFile(Message):
    """A sample's file, cut into tasks: their borders are ``cuts``, first to last; (0, 0) of a file without entries.

    ``entries`` is how many the file holds, of which the last cut may be fewer. ``path`` is its place in a source; it is
    left out where the sample has one file by definition.
    """

    sample: Name
    file: Name
    uuid: Name
    tree: Name
    cuts: tuple[Natural, ...] = Field(min_length=2)
    entries: Natural
    path: Name | None = Field(default=None, exclude_if=lambda value: value is None)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        rising = all(low < high for low, high in pairwise(self.cuts)) or self.cuts == (0, 0)
        if self.cuts[0] != 0 or not rising or self.cuts[-1] > self.entries:
            raise ValueError(f"the cuts of {self.sample} don't tile it")
        if self.uuid.startswith(UNREAD):
            raise ValueError(f"{self.sample} has no file of uuid {self.uuid}")
        return self


class AnnouncedUnread(Message):
    """A sample's file that could not be planned, and why; ``path`` as in ``AnnouncedFile``, the rest as in the plan."""

    sample: Name
    file: Name
    tree: Name
    reason: Annotated[str, Field(max_length=REASON_CHARACTERS)]
    missing: bool
    permanent: bool
    path: Name | None = Field(default=None, exclude_if=lambda value: value is None)
    again: bool = Field(default=False, exclude_if=lambda value: not value)


class Announcement(Message):
    """A run and its whole plan, so that any bridge can take it up and knows when it is complete."""

    version: Literal[2] = WIRE_VERSION
    run_id: RunId
    spec: RunSpec
    files: tuple[AnnouncedFile, ...]
    unread: tuple[AnnouncedUnread, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = {file.sample for file in self._all_files} - {sample.name for sample in self.spec.release.samples}
        if unknown:
            raise ValueError(f"its spec has no sample {min(unknown)}")
        places = [self._place(file) for file in self._all_files]
        if len(set(places)) < len(places):
            raise ValueError("a file of a sample is in it twice")
        if len({file.uuid for file in self.files}) < len(self.files):
            raise ValueError("a file is in it twice")
        return self

    @property
    def _all_files(self) -> tuple[AnnouncedFile | AnnouncedUnread, ...]:
        return (*self.files, *self.unread)

    def _place(self, file: AnnouncedFile | AnnouncedUnread) -> tuple[str, str]:
        """Tell a file by its sample and its place in a source; raises ValueError where a file should say that."""
        only = self.spec.release.sample(file.sample).only_path
        if (file.path is None) != (only is not None):
            raise ValueError(f"which file of sample {file.sample} is meant is for its spec to say, or for path")
        return file.sample, only or file.path or ""

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
                AnnouncedFile(
                    sample=file.sample, file=file.file, uuid=file.uuid, tree=first.tree, cuts=cuts,
                    entries=file.entries, path=path(file),
                )
            )  # fmt: skip
        unread = [
            AnnouncedUnread(
                sample=file.sample, file=file.failure.task.file, tree=file.failure.task.tree,
                reason=file.failure.reason[:REASON_CHARACTERS], missing=file.missing,
                permanent=file.failure.permanent, path=path(file), again=file.again,
            )
            for file in plan.unread
        ]  # fmt: skip
        return cls(run_id=run_id, spec=spec, files=tuple(files), unread=tuple(unread))

    def plan(self) -> Plan:
        """Return the plan as the planner made it."""
        files = []
        for file in self.files:
            tasks = tuple(self._task(file, file.uuid, span) for span in pairwise(file.cuts))
            files.append(PlannedFile(self._place(file)[1], file.entries, tasks))
        unread = []
        for lacking in self.unread:
            sample, path = self._place(lacking)
            task = self._task(lacking, unread_uuid(sample, path), (0, 0))
            failure = Failure(task=task, reason=lacking.reason, permanent=lacking.permanent)
            unread.append(UnreadFile(path, failure, lacking.missing, lacking.again))
        return Plan(tuple(files), tuple(unread))

    def _task(self, file: AnnouncedFile | AnnouncedUnread, uuid: str, span: tuple[int, int]) -> Task:
        return Task(
            run_id=self.run_id, spec=self.spec.digest, sample=file.sample, file=file.file, uuid=uuid, tree=file.tree,
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
        contents, places = {file.uuid for file in self.files}, set(map(self._place, self.files))
        theirs = {file.uuid for file in later.files}
        listed = set(map(later._place, later._all_files))
        gone = {file.sample for file in self.files if file.uuid not in theirs and self._place(file) not in listed}
        files = self.files + tuple(
            file
            for file in later.files
            if file.uuid not in contents and self._place(file) not in places and file.sample not in gone
        )
        places |= set(map(self._place, files))
        # What stands for a pattern goes once another look found no fault with it; what a later look finds, stays out.
        unread = [
            file
            for file in self.unread
            if self._place(file) not in places and (self._place(file) in listed or not is_pattern(self._place(file)[1]))
        ]
        places |= set(map(self._place, unread))
        unread += [
            file for file in later.unread if self._place(file) not in places and not is_pattern(self._place(file)[1])
        ]
        return Announcement(run_id=self.run_id, spec=self.spec, files=files, unread=tuple(unread))
