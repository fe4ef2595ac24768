"""What a run would read, before it does: files, those that lack, events, tasks, bytes, and about how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hzzray import analyses
from hzzray.data.layout import read_layout
from hzzray.data.storage import open_bytes
from hzzray.errors import HzzrayError
from hzzray.messages import PlannedFile, RunSpec
from hzzray.parallel import AT_ONCE, side_by_side
from hzzray.runs.folder import all_runs, load_json
from hzzray.runs.plan import Plan
from hzzray.runs.result import Result

#: Events that a core reads and fills in a second where no earlier run tells: docs/performance.md has how it was
#: measured, of the notebook's selection from a local file.
EVENTS_PER_S = 2.0e6

# Fewer events than these tell nothing of a rate: compiling and opening are in it.
_TELLING = 100_000


@dataclass(frozen=True, slots=True)
class SampleWork:
    """What a run would read of a sample: files, entries, tasks, compressed bytes of the branches that it needs."""

    sample: str
    files: int
    events: int
    tasks: int
    bytes: int
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would read.

    Attributes
    ----------
    samples
        One row each.
    branches
        Names of what is read of each event.
    events_per_s
        The rate of one core that the time is estimated from, and ``basis``, where that is from.
    """

    samples: tuple[SampleWork, ...]
    branches: tuple[str, ...]
    events_per_s: float
    basis: str

    @property
    def files(self) -> int:
        """Files that would be read."""
        return sum(row.files for row in self.samples)

    @property
    def events(self) -> int:
        """Entries that would be read."""
        return sum(row.events for row in self.samples)

    @property
    def tasks(self) -> int:
        """Tasks that would be worked on."""
        return sum(row.tasks for row in self.samples)

    @property
    def bytes(self) -> int:
        """Compressed bytes that would be read: of the tasks' ranges, and of the branches that are needed."""
        return sum(row.bytes for row in self.samples)

    @property
    def unread(self) -> tuple[str, ...]:
        """Why files would not be read, each with its sample."""
        return tuple(f"{row.sample}: {reason}" for row in self.samples for reason in row.unread)

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU that the tasks would take, about; start-up and waiting for input come on top."""
        return self.events / self.events_per_s


def preview(spec: RunSpec, plan: Plan, *, runs: Path, cache: Path | None = None, places: Iterable[str] = ()) -> Preview:
    """Tell what a planned run would read; the time from the latest run of its kind in ``runs``, if any."""
    analysis = analyses.resolve(spec.analysis, (*places, *analyses.allowed()))
    reads = {simulation: analyses.reads(spec, analysis, simulation=simulation).branches for simulation in (False, True)}
    roles = {sample.name: spec.release.role(sample) != "data" for sample in spec.release.samples}
    sizes = list(side_by_side(partial(_bytes, spec, reads, roles, cache), plan.files, AT_ONCE))
    rows = []
    for name in roles:
        mine = [(file, size) for file, size in zip(plan.files, sizes, strict=True) if file.sample == name]
        rows.append(
            SampleWork(
                sample=name,
                files=len(mine),
                events=sum(file.planned for file, _ in mine),
                tasks=sum(len(file.tasks) for file, _ in mine),
                bytes=sum(size for _, size in mine),
                unread=tuple(file.failure.reason for file in plan.unread if file.sample == name),
            )
        )
    rate, basis = _rate(spec, runs)
    return Preview(tuple(rows), reads[True], rate, basis)


def _bytes(
    spec: RunSpec,
    reads: Mapping[bool, tuple[str, ...]],
    simulated: Mapping[str, bool],
    cache: Path | None,
    file: PlannedFile,
) -> int:
    """Add up the baskets of a file's tasks, as the workers will; the layout was cached when the run was planned."""
    source = open_bytes(file.file)
    try:
        layout = read_layout(source, spec.release.schema_.tree, reads[True], cache)
    finally:
        source.close()
    branches = [layout.branches[name] for name in reads[simulated[file.sample]]]
    return sum(
        branch.place(i)[1] for task in file.tasks for branch in branches for i in branch.baskets(task.start, task.stop)
    )


def _rate(spec: RunSpec, runs: Path) -> tuple[float, str]:
    """Find what a core did in an earlier run of the same release and analysis."""
    same = [result for result in _finished(runs) if _kind(result.spec) == _kind(spec)]
    if not same:
        return EVENTS_PER_S, f"{EVENTS_PER_S / 1e6:g} M events/s a core, as in docs/performance.md"
    latest = same[-1]
    rate = latest.cost.events / latest.cost.cpu_s
    return rate, f"{rate / 1e6:.3g} M events/s a core, as in run {latest.run_id}"


def _finished(runs: Path) -> Iterable[Result]:
    for folder in sorted(all_runs(runs), key=lambda one: one.ledger_path.stat().st_mtime):
        try:
            result = load_json(folder.path)
        except HzzrayError:
            continue
        if result.cost.events >= _TELLING and result.cost.cpu_s > 0:
            yield result


def _kind(spec: RunSpec) -> tuple[str, str]:
    return spec.release.name, str(spec.analysis)  # cuts cost next to nothing
