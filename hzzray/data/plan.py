"""Files to tasks: ranges of about a second's work, cut where no basket is split when the file has such places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hzzray import analyses
from hzzray.data.layout import Layout, read_layout
from hzzray.data.storage import open_bytes
from hzzray.errors import DataError, MissingFileError, TransientError, UsageError
from hzzray.messages import Failure, RunSpec, Task
from hzzray.physics.columns import Reads
from hzzray.urls import is_inside, is_remote, join, redact

#: Entries of a task unless the user says otherwise: some tenths of a second on one core. That is much beside the few
#: milliseconds that a task costs, and little beside a run of a few million entries, whose actors are to end together.
CHUNK = 500_000

#: After so many files in a row that a server gave no answer for, it is asked for no more: each costs many seconds.
PATIENCE = 2

# How far from the wished place a cut may lie, as a part of the chunk, to hit a cluster's border.
_SLACK = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a run's tasks, and what could not be planned. Planned tasks are both together.

    ``missing`` names samples that the source lacks. ``entries`` is, for each sample, how many will be read and how many
    its files hold; a sample that couldn't be opened has none.
    """

    tasks: tuple[Task, ...]
    failures: tuple[Failure, ...]
    missing: tuple[str, ...]
    entries: dict[str, tuple[int, int]]


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
    """Open each sample's file once and cut it into tasks.

    A file that is missing everywhere, or that isn't what it should be, becomes a failure with its reason; the others
    are planned. Of several sources the first that has the file, with the branches that are read, is taken. Raises
    UsageError when there is no file at all, or for a chunk below 1; TransientError when no source gives an answer.
    ``places`` are files and folders where the spec's analysis may be, beside those that the environment allows.
    """
    if chunk < 1:
        raise UsageError(f"chunk must be at least 1, not {chunk}")
    tasks: list[Task] = []
    failures: list[Failure] = []
    missing: list[str] = []
    entries: dict[str, tuple[int, int]] = {}
    owners: dict[str, str] = {}
    silent: Counter[str] = Counter()
    analysis = analyses.resolve(spec.analysis, (*places, *analyses.allowed()))
    reads = {simulation: analyses.reads(spec, analysis, simulation=simulation) for simulation in (False, True)}
    for sample in spec.release.samples:
        read = reads[spec.release.role(sample) != "data"]
        names = read.branches
        location, layout, error = _first_found(sample.path, sources, silent, spec, read, reads[True].branches, cache)
        if layout is not None and layout.uuid in owners:
            other = owners[layout.uuid]
            error = DataError(f"{redact(location)}: the file of sample {other} again (same content), left out")
        if error is not None or layout is None:
            if isinstance(error, MissingFileError):
                missing.append(sample.name)
            failures.append(
                Failure(
                    task=_task(spec, run_id, sample.name, location, None, (0, 0)),
                    reason=str(error),
                    permanent=not isinstance(error, TransientError),
                )
            )
            continue
        owners[layout.uuid] = sample.name
        wanted = spec.entries_to_read(layout.entries)
        entries[sample.name] = (wanted, layout.entries)
        clusters = layout.clusters(names)
        baskets = layout.branches[names[0]].starts
        ranges = list(cuts(wanted, chunk, clusters, baskets)) or [(0, 0)]
        tasks += [_task(spec, run_id, sample.name, location, layout, span) for span in ranges]
    if missing and len(missing) == len(spec.release.samples):
        looked = " or ".join(map(redact, sources))
        raise UsageError(f"no file of release {spec.release.name} in {looked}: {failures[0].reason}")
    if not tasks and not any(failure.permanent for failure in failures):
        raise TransientError(f"no file of release {spec.release.name} can be read now: {failures[0].reason}")
    return Plan(tuple(tasks), tuple(failures), tuple(missing), entries)


def _first_found(
    path: str,
    sources: Sequence[str],
    silent: Counter[str],
    spec: RunSpec,
    read: Reads,
    known: tuple[str, ...],
    cache: Path | None,
) -> tuple[str, Layout | None, DataError | TransientError | None]:
    """Read the layout from the first source whose file has what is read of it; else say where none was, and why.

    Of several faults the first counts that is more than a missing file. ``silent`` counts for each source the files in
    a row that it gave no answer for.
    """
    first: tuple[str, DataError | TransientError] | None = None
    for source in sources:
        location = join(source, path)
        if silent[source] >= PATIENCE:
            down = TransientError(f"{redact(source)}: gave no answer for {PATIENCE} files in a row, not asked again")
            first = first or (location, down)
            continue
        try:
            file = open_bytes(location)
            try:
                layout = read_layout(file, spec.release.schema_.tree, known, cache)
                silent[source] = 0
                layout.require(read.branches, file.name, read.avoidable)
                return location, layout, None
            finally:
                file.close()
        except (DataError, TransientError) as error:
            silent[source] = silent[source] + 1 if isinstance(error, TransientError) else 0
            if first is None or isinstance(first[1], MissingFileError):
                first = location, error
    if first is None:
        raise UsageError("no source to read from")
    return first[0], None, first[1]


def _task(spec: RunSpec, run_id: str, sample: str, location: str, layout: Layout | None, span: tuple[int, int]) -> Task:
    """Make a task; one whose file has no layout stands for the whole file, and is named after the sample instead."""
    return Task(
        run_id=run_id,
        spec=spec.digest,
        sample=sample,
        file=location,
        uuid=layout.uuid if layout else f"unread:{sample}",
        tree=layout.tree if layout else spec.release.schema_.tree,
        start=span[0],
        stop=span[1],
    )
