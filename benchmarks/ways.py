"""hzzray's own ways through the file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from task import BINS, GEV, START, STOP, Outcome

from hzzray.data.catalogue import release
from hzzray.data.reader import Reader
from hzzray.physics.columns import Columns
from hzzray.physics.filler import Filler
from hzzray.physics.histogram import Axis, Histogram
from hzzray.physics.selection import PRESETS

SELECTION = PRESETS["notebook-2020"]
SCHEMA = release("2020").schema_
AXIS = Axis(START, STOP, BINS)


def ours(path: Path) -> Outcome:
    """From a file that nothing is known of to the histogram, in this process."""
    with Reader(str(path), SCHEMA, SELECTION, simulation=True) as reader:
        return outcome(filler().fill(reader.steps(0, reader.layout.entries), 1.0))


@cache
def filler() -> Filler:
    """What fills the histogram, as a worker has it for all of its tasks."""
    return Filler(SELECTION, GEV, AXIS)


@cache
def steps(path: Path) -> list[Columns]:
    """Columns of the whole file, in memory."""
    with Reader(str(path), SCHEMA, SELECTION, simulation=True) as reader:
        return [Columns(*map(np.copy, columns)) for columns in reader.steps(0, reader.layout.entries)]


def kernel(path: Path) -> Outcome:
    """Select, weigh and fill alone: columns that the first call has put into memory."""
    return outcome(filler().fill(steps(path), 1.0))


def outcome(histogram: Histogram) -> Outcome:
    """Say what a histogram holds in the form that all ways share."""
    bins = histogram.sumw.sum(axis=0).floats()[1:-1]
    total = float(histogram.sumw.sum().floats())
    return Outcome(histogram.entries, int(histogram.counts.sum()), total, bins.tolist())
