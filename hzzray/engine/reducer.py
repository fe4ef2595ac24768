"""Partials to sums: the run's one place where results come together, first in the ledger, then in memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from hzzray.engine.events import Event, kept
from hzzray.engine.ledger import Ledger, Outcome, Wish
from hzzray.engine.metrics import Metrics
from hzzray.engine.monitor import Scale, Usage
from hzzray.engine.source import Congestion
from hzzray.engine.template_tables import Rounded, Tables, rounded, tables
from hzzray.messages import RUN_ID, Cost, Counts, Failure, Partial, RunState, Task
from hzzray.physics.histogram import Blocks, Yields, digest, varied_digest

# A pool that has not reported for so long is gone.
_FORGET_S = 10.0

#: All templates are told no more often than this [s].
TABLES_S = 5.0

#: Who asked for news within so long is still watching [s]: machines may be busy, and templates take a while to write.
WATCHING_S = 10.0


_REDUCER = "reducer:"


class ReducerName(NamedTuple):
    """Whose reducer an actor is: a run's, of this ledger alone, as others of a cluster may call their runs the same."""

    run_id: str
    mark: str

    @classmethod
    def of(cls, ledger: Ledger) -> ReducerName:
        """Name the reducer of a ledger's run."""
        return cls(ledger.run_id, ledger.mark)

    @classmethod
    def read(cls, actor: str) -> ReducerName | None:
        """Tell from an actor's name whose reducer it is; None where it is none."""
        found = re.fullmatch(f"{_REDUCER}({RUN_ID[1:-1]}):([0-9a-f]{{8}})", actor)
        return None if found is None else cls(*found.groups())

    def __str__(self) -> str:
        """Return the actor's name."""
        return f"{_REDUCER}{self.run_id}:{self.mark}"


@dataclass(frozen=True, eq=False, slots=True)
class _Sums:
    """All that was committed up to a version. Replaced as a whole, so that a reader never sees half a commit."""

    version: int
    counts: Counts
    blocks: dict[str, Blocks]
    failures: dict[str, Failure]
    cost: Cost


class Live(NamedTuple):
    """What whoever watches a run sees: how it stands, if that is new, and what its pools told last, taken together.

    ``usages`` has each worker and each driver's machine; it and ``scale`` are empty before the first report.
    ``congestion`` is that of a broker's queues, ``events`` what happened lately, the oldest first. ``tables`` are all
    templates, now and then: they are many.
    """

    state: RunState | None
    usages: tuple[Usage, ...]
    scale: Scale | None
    congestion: Congestion | None
    events: tuple[Event, ...] = ()
    tables: Tables | None = None


class _Report(NamedTuple):
    """What a pool told, and when."""

    at: float
    usages: tuple[Usage, ...]
    scale: Scale
    congestion: Congestion | None


class Reducer:
    """Merges the partials of one run. A plain class: an actor under Ray, called directly by the serial engine.

    Starts from what its ledger holds, so that a restarted one goes on where the last commit was, and fences off any
    earlier one. ``merge``, ``fail`` and ``split`` are for one thread; the rest may be called from another meanwhile.
    Versions of its state rise from commit to commit, over restarts too.
    """

    def __init__(self, path: Path) -> None:
        self._ledger = Ledger.open(path)
        version = self._ledger.take_over() << 32
        self._reading = Ledger.open(path)
        self._metrics = Metrics(self._ledger.run_id, "reducer")
        self._shape = self._ledger.spec.shape
        failures = {failure.task.task_id: failure for failure in self._ledger.failures()}
        self._sums = _Sums(version, self._ledger.counts(), self._ledger.blocks(), failures, self._ledger.cost())
        self._reports: dict[str, _Report] = {}
        self._events: tuple[Event, ...] = ()
        self._watched = -WATCHING_S, 0
        self._shown: dict[str, tuple[Blocks, Yields]] = {}
        self._digest = -1, ""
        self._varied: dict[str, tuple[Blocks, str]] = {}
        self._told_tables = -TABLES_S, -1
        self._rounded: dict[str, tuple[Blocks, Rounded]] = {}

    def __repr__(self) -> str:
        """Return the name that the Ray dashboard shows."""
        return f"{_REDUCER}{self._ledger.run_id}"

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()
        self._reading.close()

    def merge(self, partials: Sequence[Partial]) -> list[Outcome]:
        """Commit partials, all in one transaction, then add them; after that their tasks may be acknowledged.

        Says of each whether it was merged, merged before, or superseded by parts of its task. Raises LedgerError where
        nothing could be stored, ValueError where a partial can't be read; then nothing was.
        """
        fresh = self._totals(partials)  # before the commit: what can't be read must not be stored
        outcomes = self._ledger.merge(partials)
        merged = [partial for partial, outcome in zip(partials, outcomes, strict=True) if outcome == "merged"]
        if len(merged) < len(partials):
            fresh = self._totals(merged)
        sums = self._sums
        overtaken = sums.failures.keys() & {partial.task.task_id for partial in merged}
        self._sums = _Sums(
            version=sums.version + 1,
            counts=sums.counts._replace(
                merged=sums.counts.merged + len(merged),
                failed=sums.counts.failed - len(overtaken),
                events=sums.counts.events + sum(partial.cost.events for partial in merged),
                duplicates=sums.counts.duplicates + outcomes.count("duplicate"),
            ),
            blocks=sums.blocks | {name: sums.blocks[name] + new for name, new in fresh.items()},
            failures={name: failure for name, failure in sums.failures.items() if name not in overtaken},
            cost=sum((partial.cost for partial in merged), sums.cost),
        )
        self._metrics.count("tasks_merged", len(merged))
        self._metrics.count("tasks_duplicate", outcomes.count("duplicate"))
        return outcomes

    def _totals(self, partials: Sequence[Partial]) -> dict[str, Blocks]:
        """Sum partials up by sample."""
        packed: dict[str, list[bytes]] = {}
        for partial in partials:
            packed.setdefault(partial.task.sample, []).append(partial.packed)
        return {sample: Blocks.total(bodies, self._shape) for sample, bodies in packed.items()}

    def fail(self, failure: Failure) -> None:
        """Commit a failure."""
        if self._ledger.fail(failure):
            sums = self._sums
            counts = sums.counts._replace(failed=sums.counts.failed + 1)
            failures = sums.failures | {failure.task.task_id: failure}
            self._sums = replace(sums, version=sums.version + 1, counts=counts, failures=failures)
            self._metrics.count("tasks_failed")

    def split(self, task: Task, parts: Sequence[Task]) -> bool:
        """Commit that a task is replaced by parts of it; False when that came too late."""
        stands = self._ledger.split(task, parts)
        counts = self._ledger.counts()
        if counts != self._sums.counts:
            self._sums = replace(self._sums, version=self._sums.version + 1, counts=counts)
        return stands

    def progress(self) -> tuple[Counts, Wish]:
        """How far the run is, and what its user wants."""
        return self._sums.counts, self._reading.wished()

    def wish(self, wish: Wish) -> None:
        """Leave word for whoever works on the run, from where its ledger is out of reach."""
        self._reading.wish(wish)

    def report(
        self,
        pool: str,
        usages: Sequence[Usage],
        scale: Scale,
        congestion: Congestion | None,
        than: int,
        events: Sequence[Event] = (),
    ) -> Live | None:
        """Take note what a pool's actors use, how big it is, how full the queues are, what happened: for who watches.

        Returns what there is to see to the pool that has reported for the longest time: it keeps the run's files.
        """
        now = time.monotonic()
        self._events = kept(self._events, events)
        reports = self._reports | {pool: _Report(now, tuple(usages), scale, congestion)}
        self._reports = {name: report for name, report in reports.items() if now - report.at < _FORGET_S}
        return self._live(than)._replace(tables=self.news()) if next(iter(self._reports)) == pool else None

    def leave(self, pool: str) -> bool:
        """Take note that a pool is no more; returns whether it was the last one."""
        self._reports = {name: report for name, report in self._reports.items() if name != pool}
        return not self._reports

    def live(self, than: int) -> Live:
        """Return what there is to see, the run's state only where it changed since version ``than``."""
        self._watched = time.monotonic(), than
        return self._live(than)

    def _live(self, than: int) -> Live:
        usages, scale, congestion = _together(list(self._reports.values()))
        return Live(state=self.newer(than), usages=usages, scale=scale, congestion=congestion, events=self._events)

    def reload(self) -> None:
        """Take note of what others wrote into the ledger: tasks that are planned now, failures that were forgiven."""
        failures = {failure.task.task_id: failure for failure in self._ledger.failures()}
        sums = self._sums
        self._sums = replace(sums, version=sums.version + 1, counts=self._ledger.counts(), failures=failures)

    def is_unseen(self) -> bool:
        """Tell whether somebody watches who hasn't seen all yet: worth a moment's wait before the end."""
        asked, than = self._watched
        return time.monotonic() - asked < WATCHING_S and than < self._sums.version

    def newer(self, than: int) -> RunState | None:
        """Return the run as of the last commit, or None when nothing changed since version ``than``."""
        return self.snapshot() if self._sums.version > than else None

    def snapshot(self) -> RunState:
        """Return the run as of the last commit."""
        sums = self._sums
        ledger = self._reading
        if self._digest[0] != sums.version:
            first = {name: blocks.histogram() for name, blocks in sums.blocks.items()}
            self._digest = sums.version, digest(first)
            self._shown = _made_anew(self._shown, sums.blocks, lambda one: one.histogram().yields())
            self._varied = _made_anew(self._varied, sums.blocks, Blocks.varied_sha)
        return RunState(
            version=sums.version,
            run_id=ledger.run_id,
            spec=ledger.spec,
            environment=ledger.environment,
            counts=sums.counts,
            yields={name: yields for name, (_, yields) in self._shown.items()},
            digest=self._digest[1],
            entries=ledger.entries(),
            failures=tuple(sorted(sums.failures.values(), key=lambda failure: (failure.task.file, failure.task.start))),
            cost=sums.cost,
            wall_s=ledger.wall_s(),
            unopened=ledger.unopened(),
            varied_digest=varied_digest({name: sha for name, (_, sha) in self._varied.items()}),
        )

    def tables(self) -> Tables:
        """Return all templates as of the last commit: whoever wants them asks, as they are many."""
        blocks = self._sums.blocks
        self._rounded = _made_anew(self._rounded, blocks, rounded)
        return tables(self._reading.spec, blocks, {name: made for name, (_, made) in self._rounded.items()})

    def news(self) -> Tables | None:
        """Return all templates to who keeps the run's files, if some have changed, and not too often."""
        now, version = time.monotonic(), self._sums.version
        told, last = self._told_tables
        if version == last or now - told < TABLES_S:
            return None
        self._told_tables = now, version
        return self.tables()


_Made = TypeVar("_Made")


def _made_anew(
    last: Mapping[str, tuple[Blocks, _Made]], blocks: Mapping[str, Blocks], make: Callable[[Blocks], _Made]
) -> dict[str, tuple[Blocks, _Made]]:
    """Make something of each sample's blocks, anew only of those that have changed since the last time."""
    return {
        name: last[name] if name in last and last[name][0] is one else (one, make(one)) for name, one in blocks.items()
    }


def _together(reports: Sequence[_Report]) -> tuple[tuple[Usage, ...], Scale | None, Congestion | None]:
    """Add up what several pools of one run told; a machine that several are on counts once."""
    if not reports:
        return (), None, None
    usages: dict[str, Usage] = {}
    for report in reports:
        usages = {usage.actor: usage for usage in report.usages} | usages
    scales = [report.scale for report in reports]
    in_flight = sum(scale.in_flight for scale in scales)
    due = max(scale.waiting + scale.in_flight for scale in scales)
    scale = Scale(
        actors=sum(scale.actors for scale in scales),
        pending=sum(scale.pending for scale in scales),
        nodes=max(scale.nodes for scale in scales),
        waiting=max(0, due - in_flight),
        in_flight=in_flight,
    )
    queues = [report.congestion for report in reports if report.congestion is not None]
    if not queues:
        return tuple(usages.values()), scale, None
    congestion = queues[0]._replace(
        held=sum(queue.held for queue in queues),
        oldest_s=max(queue.oldest_s for queue in queues),
        acked_per_s=sum(queue.acked_per_s for queue in queues),
    )
    return tuple(usages.values()), scale, congestion
