"""Files to tasks: ranges of about a second's work, cut where no basket is split when the file has such places."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from hzzray import analyses
from hzzray.data.catalogue import Sample
from hzzray.data.layout import read_layout
from hzzray.data.storage import matching, open_bytes
from hzzray.errors import DataError, MissingFileError, TransientError, UsageError
from hzzray.messages import Entries, Failure, PlannedFile, RunSpec, Task, UnreadFile, unread_uuid
from hzzray.parallel import AT_ONCE, side_by_side
from hzzray.physics.columns import Reads
from hzzray.urls import is_inside, is_pattern, is_remote, join, redact

#: Entries of a task unless the user says otherwise: some tenths of a second on one core. That is much beside the few
#: milliseconds that a task costs, and little beside a run of a few million entries, whose actors are to end together.
CHUNK = 500_000

#: After so many files in a row that a server gave no answer for, it is asked for no more: each costs many seconds.
PATIENCE = 2

# Files of servers that are opened at a time: what that takes is mostly round trips.
_REMOTE_AT_ONCE = 32

# How far from the wished place a cut may lie, as a part of the chunk, to hit a cluster's border.
_SLACK = 0.5


@dataclass(frozen=True)
class Plan:
    """All files of a run: those that are cut into tasks, and those that could not be planned.

    Planned tasks are both together.
    """

    files: tuple[PlannedFile, ...]
    unread: tuple[UnreadFile, ...]

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """What is to be read, file by file."""
        return tuple(task for file in self.files for task in file.tasks)

    def instead(self, unread: Sequence[UnreadFile]) -> Plan:
        """Have some files for ones that could not be planned, whether they could or not."""
        places = {(file.sample, file.path) for file in unread}
        files = tuple(file for file in self.files if (file.sample, file.path) not in places)
        others = tuple(file for file in self.unread if (file.sample, file.path) not in places)
        return Plan(files, (*others, *unread))

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What could not be planned."""
        return tuple(file.failure for file in self.unread)

    @property
    def missing(self) -> tuple[str, ...]:
        """Samples of which no source has any file."""
        found = {file.sample for file in self.files} | {file.sample for file in self.unread if not file.missing}
        return tuple(dict.fromkeys(file.sample for file in self.unread if file.sample not in found))

    @cached_property
    def places(self) -> set[tuple[str, str]]:
        """All of its files, by sample and path."""
        return {(file.sample, file.path) for file in self.files} | {(file.sample, file.path) for file in self.unread}

    @cached_property
    def entries(self) -> dict[str, Entries]:
        """Add up the entries of each sample."""
        sums: dict[str, Entries] = {}
        for file in self.files:
            sums[file.sample] = sums.get(file.sample, Entries()) + Entries(file.planned, file.entries)
        return sums


def cuts(stop: int, chunk: int, clusters: NDArray[np.int64], baskets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut entries 0 to stop into ranges near ``chunk`` long.

    A border of ``clusters`` (entries where no basket is split) is preferred when one is near, then one of ``baskets``
    (where those of one branch aren't), else the exact place.
    """
    start = 0
    while start < stop:
        wished = start + chunk
        end = stop if wished >= stop else _nearest(wished, chunk, (clusters, baskets))
        end = min(end, stop)
        yield start, end
        start = end


def _nearest(wished: int, chunk: int, choices: Iterable[NDArray[np.int64]]) -> int:
    for borders in choices:
        near = borders[np.abs(borders - wished) <= _SLACK * chunk]
        if len(near):
            return int(near[np.argmin(np.abs(near - wished))])
    return wished


def check_source(source: str) -> None:
    """Refuse a source that can't hold anything: no folder, or an empty one. Raises UsageError naming it."""
    if is_remote(source):
        return
    folder = Path(source)
    if not folder.exists():
        raise UsageError(f"source {source}: no such folder")
    if not folder.is_dir():
        raise UsageError(f"source {source}: is a file; give the folder that holds the release's files")
    if not any(folder.iterdir()):
        raise UsageError(f"source {source}: the folder is empty")


def readable(sources: Sequence[str], plan: Plan) -> tuple[str, ...]:
    """Add to sources what links in them lead to: of a plan of the user's own, all files may be read."""
    files = {task.file for task in plan.tasks if not is_remote(task.file)}
    return (*sources, *sorted(str(Path(file).resolve()) for file in files if not is_inside(file, sources)))


def make_plan(
    spec: RunSpec,
    run_id: str,
    sources: Sequence[str],
    *,
    chunk: int = CHUNK,
    cache: Path | None = None,
    places: Sequence[str] = (),
) -> Plan:
    """Open each file of each sample once, some at a time, and cut it into tasks.

    A file that is missing everywhere, or that isn't what it should be, becomes a failure with its reason; the others
    are planned. Of several sources the first that has the file, with the branches that are read, is taken. A pattern's
    files are those that any source has. Raises UsageError when there is no file at all, for a chunk below 1, and for a
    pattern at a source that can't be listed; TransientError when no source gives an answer. ``places`` are files and
    folders where the spec's analysis may be, beside those that the environment allows.
    """
    if chunk < 1:
        raise UsageError(f"chunk must be at least 1, not {chunk}")
    if not sources:
        raise UsageError("no source to read from")
    analysis = analyses.resolve(spec.analysis, (*places, *analyses.allowed()))
    reads = {simulation: analyses.reads(spec, analysis, simulation=simulation) for simulation in (False, True)}
    search = _Search(spec, reads, sources, chunk, cache)
    samples = spec.release.samples
    at_once = _REMOTE_AT_ONCE if any(map(is_remote, sources)) else AT_ONCE
    wanted = [one for some in side_by_side(search.files, samples, at_once) for one in some]
    files: list[PlannedFile] = []
    unread: list[UnreadFile] = []
    owners: dict[str, PlannedFile] = {}
    for one, found in zip(wanted, side_by_side(search.open, wanted, at_once), strict=True):
        name, path, again = one.sample.name, one.path, False
        if isinstance(found, _Cut) and (owner := owners.get(found.uuid)):
            again = owner.sample == name
            found = _Absence(found.location, _twice(found.location, owner, spec))  # noqa: PLW2901
        if isinstance(found, _Absence):
            task = _task(spec, run_id, name, found.location, unread_uuid(name, path), spec.release.schema_.tree, (0, 0))
            permanent = not isinstance(found.error, TransientError)
            failure = Failure(task=task, reason=str(found.error), permanent=permanent)
            unread.append(UnreadFile(path, failure, isinstance(found.error, MissingFileError), again))
            continue
        tasks = (
            _task(spec, run_id, name, found.location, found.uuid, found.tree, span) for span in found.spans or [(0, 0)]
        )
        owners[found.uuid] = PlannedFile(path, found.entries, tuple(tasks))
        files.append(owners[found.uuid])
    plan = Plan(tuple(files), tuple(unread))
    if plan.missing and len(plan.missing) == len(samples):
        looked = " or ".join(map(redact, sources))
        raise UsageError(f"no file of release {spec.release.name} in {looked}: {plan.failures[0].reason}")
    if not files and not any(failure.permanent for failure in plan.failures):
        raise TransientError(f"no file of release {spec.release.name} can be read now: {plan.failures[0].reason}")
    return plan


class _Wanted(NamedTuple):
    """A file to look for; ``absence`` is there of a pattern whose files can't be told."""

    sample: Sample
    path: str
    absence: _Absence | None = None


class _Absence(NamedTuple):
    """Why a file can't be planned, and which."""

    location: str
    error: DataError | TransientError


class _Cut(NamedTuple):
    """A file that was found, and the ranges of entries that it is cut into."""

    location: str
    uuid: str
    tree: str
    entries: int
    spans: list[tuple[int, int]]


_Answer = TypeVar("_Answer")


class _Source:
    """A place to read from that several threads ask.

    One that gives no answer is asked for ``PATIENCE`` files. Until it has given one, it is asked for one at a time.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._lock = Lock()
        self._has_answered = False
        self._silent = 0

    def ask(self, question: Callable[[], _Answer]) -> _Answer:
        """Ask something; raises as the question does, and TransientError where there is no use in asking."""
        with self._lock:
            if not self._has_answered:
                return self._ask(question)
        return self._ask(question)

    def _ask(self, question: Callable[[], _Answer]) -> _Answer:
        if self._silent >= PATIENCE:
            place = redact(self.place)
            raise TransientError(f"{place}: gave no answer for {PATIENCE} files in a row, not asked again")
        try:
            answer = question()
        except TransientError:
            self._silent += 1
            raise
        except DataError:
            self._silent, self._has_answered = 0, True
            raise
        self._silent, self._has_answered = 0, True
        return answer


class _Search:
    """Finds files at sources. Its methods may be called from several threads."""

    def __init__(
        self, spec: RunSpec, reads: Mapping[bool, Reads], sources: Sequence[str], chunk: int, cache: Path | None
    ) -> None:
        self._spec = spec
        self._reads = reads  # of data, of simulation
        self._sources = [_Source(place) for place in sources]
        self._chunk = chunk
        self._cache = cache

    def files(self, sample: Sample) -> list[_Wanted]:
        """List a sample's files, each once, those of a pattern by name."""
        wanted: dict[str, _Wanted] = {}
        for path in sample.paths:
            for one in self._matching(sample, path) if is_pattern(path) else [_Wanted(sample, path)]:
                wanted.setdefault(one.path, one)
        return list(wanted.values())

    def _matching(self, sample: Sample, pattern: str) -> list[_Wanted]:
        """List the files that sources have of a pattern; what keeps one from telling stands for the pattern."""
        found: set[str] = set()
        absence: _Absence | None = None
        for source in self._sources:
            try:
                found.update(source.ask(partial(matching, source.place, pattern)))
            except (DataError, TransientError) as error:
                absence = absence or _Absence(join(source.place, pattern), error)
        if not found and absence is None:
            location = join(self._sources[0].place, pattern)
            absence = _Absence(location, MissingFileError(f"{redact(location)}: no file matches"))
        listed = [_Wanted(sample, path) for path in sorted(found)]
        return listed if absence is None else [_Wanted(sample, pattern, absence), *listed]

    def open(self, wanted: _Wanted) -> _Cut | _Absence:
        """Cut a file of the first source that has it, with the branches that are read; else say why not.

        Of several faults the first counts that is more than a missing file.
        """
        if wanted.absence is not None:
            return wanted.absence
        absences = []
        for source in self._sources:
            location = join(source.place, wanted.path)
            try:
                return source.ask(partial(self._cut, wanted.sample, location))
            except (DataError, TransientError) as error:
                absences.append(_Absence(location, error))
        return next((one for one in absences if not isinstance(one.error, MissingFileError)), absences[0])

    def _cut(self, sample: Sample, location: str) -> _Cut:
        spec = self._spec
        read = self._reads[spec.release.role(sample) != "data"]
        names = read.branches
        file = open_bytes(location)
        try:
            layout = read_layout(file, spec.release.schema_.tree, self._reads[True].branches, self._cache)
            layout.require(names, file.name, read.avoidable)
        finally:
            file.close()
        wanted = spec.entries_to_read(layout.entries)
        if wanted <= self._chunk:
            spans = [(0, wanted)] if wanted else []
        else:
            spans = list(cuts(wanted, self._chunk, layout.clusters(names), layout.branches[names[0]].starts))
        return _Cut(location, layout.uuid, layout.tree, layout.entries, spans)


def _twice(location: str, owner: PlannedFile, spec: RunSpec) -> DataError:
    """Say that a file is there again, which another sample has, or another place."""
    sample = spec.release.sample(owner.sample)
    what = f"the file of sample {sample.name}" if sample.only_path else f"{owner.path} of sample {sample.name}"
    return DataError(f"{redact(location)}: {what} again (same content), left out")


def _task(spec: RunSpec, run_id: str, sample: str, location: str, uuid: str, tree: str, span: tuple[int, int]) -> Task:
    return Task(
        run_id=run_id, spec=spec.digest, sample=sample, file=location, uuid=uuid, tree=tree, start=span[0], stop=span[1]
    )  # fmt: skip
