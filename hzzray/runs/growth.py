"""A run as it grew: what stood at any moment of it, summed anew from what its ledger holds and when that was merged."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate
from math import inf

import numpy as np
from numpy.typing import NDArray

from hzzray.engine.ledger import Ledger, Span
from hzzray.engine.rounded import Table, Tables
from hzzray.errors import UsageError
from hzzray.messages import Counts, RunSpec, RunState
from hzzray.physics.histogram import Blocks
from hzzray.runs.folder import RunFolder
from hzzray.runs.result import Result, summarise
from hzzray.runs.tables import Rows
from hzzray.runs.templates import scaled, showing

_BEFORE = -inf  # until when nothing is merged


def on_the_clock(at: Sequence[float], history: Rows, created: float) -> NDArray[np.float64]:
    """Tell times of day [Unix s], in order, by the run's own clock [s], which stands still between its starts.

    The rows of ``history.csv`` have both; where there are none with a time of day, it is since the ledger was
    ``created``.
    """
    rows = history[history["timestamp"] != ""]
    if not len(rows):
        return np.maximum(np.array(at, float) - created, 0.0)
    days = np.array([datetime.fromisoformat(text).timestamp() for text in rows["timestamp"].tolist()])
    times = np.interp(at, np.maximum.accumulate(days), np.maximum.accumulate(rows["time_s"]))
    earlier = np.minimum(np.array(at, float) - days[0], 0.0)  # the first row comes after the first commit
    found: NDArray[np.float64] = np.maximum(times + earlier, 0.0)
    return found


@dataclass(frozen=True, eq=False, slots=True)
class _Sums:
    """One template, by sample, of all that was merged until a commit [Unix s]."""

    until: float
    blocks: dict[str, Blocks]

    def moved(self, ledger: Ledger, template: int, until: float) -> _Sums:
        """Go to another commit by what was merged in between: exact sums are taken back as they were added."""
        if until == self.until:
            return self
        forward = self.until < until
        between = ledger.blocks(Span(min(self.until, until), max(self.until, until)), template)
        moved = {name: self.blocks[name] + new if forward else self.blocks[name] - new for name, new in between.items()}
        return _Sums(until, moved)


class Growth:
    """A run that nobody works on, as it stood at any moment of it. Safe to use from several threads.

    ``history`` has the rows of its ``history.csv``, for its clock. What isn't in the ledger any more (a file's numbers
    that were retracted) is in no moment, and tasks that were split count as their parts from the start; when a task
    failed is not known: no moment has failures. Raises UsageError where there is no ledger or nothing is merged,
    LedgerError where it can't be read.
    """

    def __init__(self, folder: RunFolder, history: Rows) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        with folder.ledger() as ledger:
            commits = ledger.commits()
            if not commits:
                raise UsageError(f"{folder.path}: nothing is merged that could be shown as it grew")
            self._commits = list(commits)
            self._merged = list(accumulate(commits.values()))
            #: Seconds on the run's clock at which something was merged, rising.
            self.times = np.maximum.accumulate(on_the_clock(self._commits, history, ledger.created))
            self._end = RunState(
                version=0, run_id=ledger.run_id, spec=ledger.spec, environment=ledger.environment,
                counts=ledger.counts(), yields={}, digest="", entries=ledger.entries(), failures=(),
                cost=ledger.cost(), wall_s=ledger.wall_s(), unopened=ledger.unopened(),
            )  # fmt: skip
        spec = self._end.spec
        names = [sample.name for sample in spec.release.samples]
        self._nothing = [
            _Sums(_BEFORE, dict.fromkeys(names, Blocks.zeros(spec.shape.only(i)))) for i in range(len(spec.templates))
        ]
        self._sums: dict[int, _Sums] = {}

    @property
    def spec(self) -> RunSpec:
        """The computation that the ledger is of."""
        return self._end.spec

    def at(self, time_s: float, observable: str = "") -> Result:
        """Tell what stood at a time of the run's clock [s], as it was told then: a result of a run that goes on.

        Its bins are those of the first observable, or of another one. Raises UsageError where the run fills no such
        observable, LedgerError where the ledger can't be read.
        """
        i = int(np.searchsorted(self.times, time_s, side="right"))
        until, merged = (self._commits[i - 1], self._merged[i - 1]) if i else (_BEFORE, 0)
        names = [template.observable for template in self.spec.templates]
        chosen = names.index(observable) if observable in names else 0
        with self._lock, self._folder.ledger() as ledger:
            # In memory are the first template and the one that was asked for last.
            self._sums = {
                template: self._sums.get(template, self._nothing[template]).moved(ledger, template, until)
                for template in {0, chosen}
            }
            sums, cost = self._sums, ledger.cost(Span(_BEFORE, until))
        result = summarise(
            replace(
                self._end,
                counts=Counts(self._end.counts.planned, merged, 0, cost.events),
                yields={name: blocks.histogram().yields() for name, blocks in sums[0].blocks.items()},
                cost=cost,
                wall_s=time_s,
            )
        )
        return showing(result, _tables(result, sums[chosen].blocks, observable), observable) if observable else result


def _tables(result: Result, blocks: dict[str, Blocks], observable: str) -> Tables:
    """Round one observable to doubles, numbers as in the result."""
    histograms = [one.histogram() for one in blocks.values()]
    sumw, sumw2 = (np.array([getattr(one, name).floats() for one in histograms]) for name in ("sumw", "sumw2"))
    return scaled(result, {observable: Table(sumw, sumw2, "")})
