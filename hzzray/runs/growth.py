"""A run as it grew: what stood at any moment of it, summed anew from what its ledger holds and when that was merged."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from hzzray.engine.ledger import Ledger
from hzzray.engine.template_tables import Table, Tables
from hzzray.errors import UsageError
from hzzray.messages import Cost, Counts, RunSpec, RunState
from hzzray.physics.histogram import Blocks
from hzzray.runs.folder import RunFolder
from hzzray.runs.result import Result, summarise
from hzzray.runs.tables import Rows
from hzzray.runs.templates import scaled, showing

# How often sums are kept along the way, at the most, and how much memory they may take in all [bytes].
_MARKS, _MARKS_BYTES = 32, 32 * 1024**2


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
            merged = ledger.merged()
            if not merged:
                raise UsageError(f"{folder.path}: nothing is merged that could be shown as it grew")
            self._numbers = [one.number for one in merged]
            self._costs = list(accumulate((one.cost for one in merged), initial=Cost()))
            #: When each merged task was, in seconds of the run's clock, rising.
            self.times = np.maximum.accumulate(on_the_clock([one.at for one in merged], history, ledger.created))
            self._end = RunState(
                version=0, run_id=folder.run_id, spec=ledger.spec, environment=ledger.environment,
                counts=ledger.counts(), yields={}, digest="", entries=ledger.entries(), failures=(),
                cost=ledger.cost(), wall_s=ledger.wall_s(), unopened=ledger.unopened(),
            )  # fmt: skip
        self._marks: dict[int, _Marks] = {}

    @property
    def spec(self) -> RunSpec:
        """The computation that the ledger is of."""
        return self._end.spec

    def at(self, time_s: float, observable: str = "") -> Result:
        """Tell what stood at a time of the run's clock [s], as it was told then: a result of a run that goes on.

        Its bins are those of the first observable, or of another one. Raises UsageError where the run fills no such
        observable, LedgerError where the ledger can't be read.
        """
        merged = int(np.searchsorted(self.times, time_s, side="right"))
        names = [template.observable for template in self.spec.templates]
        chosen = names.index(observable) if observable in names else 0
        with self._lock, self._folder.ledger() as ledger:
            # In memory are the first template and the one that was asked for last.
            self._marks = {
                template: self._marks.get(template) or _marks(ledger, self._numbers, template)
                for template in {0, chosen}
            }
            sums = {template: marks.sums(ledger, self._numbers, merged) for template, marks in self._marks.items()}
        cost = self._costs[merged]
        result = summarise(
            replace(
                self._end,
                counts=Counts(self._end.counts.planned, merged, 0, cost.events),
                yields={name: blocks.histogram().yields() for name, blocks in sums[0].items()},
                cost=cost,
                wall_s=time_s,
            )
        )
        return showing(result, _tables(result, sums[chosen], observable), observable) if observable else result


@dataclass(frozen=True, eq=False, slots=True)
class _Marks:
    """One template by sample, exactly, each time that ``stride`` more tasks were merged; it begins with none."""

    template: int
    stride: int
    blocks: list[dict[str, Blocks]]

    def sums(self, ledger: Ledger, numbers: Sequence[int], merged: int) -> dict[str, Blocks]:
        """Sum up the first tasks that were merged: from the last mark on."""
        last = merged // self.stride
        return _and(self.blocks[last], ledger.blocks(numbers[last * self.stride : merged], self.template))


def _marks(ledger: Ledger, numbers: Sequence[int], template: int) -> _Marks:
    """Go through all that was merged once."""
    spec = ledger.spec
    nothing = Blocks.zeros(spec.shape.only(template))
    sums = dict.fromkeys((sample.name for sample in spec.release.samples), nothing)
    most = min(_MARKS, _MARKS_BYTES // (len(sums) * nothing.cells.nbytes))
    stride = max(1, math.ceil(len(numbers) / max(1, most)))
    blocks = [sums]
    for first in range(0, len(numbers), stride):
        sums = _and(sums, ledger.blocks(numbers[first : first + stride], template))
        blocks.append(sums)
    return _Marks(template, stride, blocks)


def _and(sums: dict[str, Blocks], more: dict[str, Blocks]) -> dict[str, Blocks]:
    """Add; what a sample had stays the same object where there is nothing new of it."""
    return {name: sums[name] + new if new.entries else sums[name] for name, new in more.items()}


def _tables(result: Result, blocks: dict[str, Blocks], observable: str) -> Tables:
    """Round one observable to doubles, numbers as in the result."""
    histograms = [one.histogram() for one in blocks.values()]
    sumw, sumw2 = (np.array([getattr(one, name).floats() for one in histograms]) for name in ("sumw", "sumw2"))
    return scaled(result, {observable: Table(sumw, sumw2, "")})
