"""Partials to sums: the run's one place where results come together, in memory and, first, in the ledger."""

from __future__ import annotations

from pathlib import Path

from hzzray.engine.ledger import Ledger
from hzzray.messages import Cost, Failure, Partial
from hzzray.physics.histogram import Histogram
from hzzray.physics.selection import CHANNELS
from hzzray.result import RunState


class Reducer:
    """Merges the partials of one run. A plain class: an actor under Ray, called directly by the serial engine.

    Starts from what its ledger holds, so that a restarted one goes on where the last commit was.
    """

    def __init__(self, path: Path) -> None:
        self._ledger = ledger = Ledger.open(path)
        spec = ledger.spec
        empty = Histogram.zeros(len(CHANNELS), spec.axis.bins, len(spec.selection.cuts))
        self._histograms = {sample.name: empty for sample in spec.release.samples}
        self._cost = Cost()
        self._version = 0
        for sample, histogram, cost in ledger.partials():
            self._add(sample, histogram, cost)

    def __repr__(self) -> str:
        """Return the name that the Ray dashboard shows."""
        return f"reducer:{self._ledger.run_id}"

    def _add(self, sample: str, histogram: Histogram, cost: Cost) -> None:
        self._histograms[sample] += histogram
        self._cost += cost
        self._version += 1

    def merge(self, partial: Partial) -> bool:
        """Commit a partial, then add it; False when its task was merged before. After that it may be acknowledged."""
        new = self._ledger.merge(partial)
        if new:
            self._add(partial.task.sample, partial.histogram, partial.cost)
        return new

    def fail(self, failure: Failure) -> None:
        """Commit a failure."""
        self._ledger.fail(failure)
        self._version += 1

    def counts(self) -> tuple[int, int, int, int]:
        """Tasks planned, merged, failed; events merged."""
        return *self._ledger.counts(), self._cost.events

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    def snapshot(self) -> RunState:
        """Return the run as it stands."""
        ledger = self._ledger
        return RunState(
            version=self._version,
            run_id=ledger.run_id,
            spec=ledger.spec,
            environment=ledger.environment,
            counts=ledger.counts(),
            histograms=dict(self._histograms),
            entries=ledger.entries(),
            failures=tuple(ledger.failures()),
            cost=self._cost,
            wall_s=ledger.wall_s(),
        )
