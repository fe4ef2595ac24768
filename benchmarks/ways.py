"""hzzray's own ways through the file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from task import BINS, GEV, START, STOP, Outcome

from hzzray.data.catalogue import release
from hzzray.data.reader import Reader
from hzzray.physics.histogram import Axis, Histogram
from hzzray.physics.kernels import Columns, cuts, fill
from hzzray.physics.selection import CHANNELS, PRESETS

SELECTION = PRESETS["notebook-2020"]
SCHEMA = release("2020").schema_
AXIS = Axis(START, STOP, BINS)
CUTS = cuts(SELECTION, GEV, 1.0)
ROWS = len(SELECTION.cuts)


def ours(path: Path) -> Outcome:
    """From a file that nothing is known of to the histogram, in this process."""
    histogram = Histogram.zeros(len(CHANNELS), BINS, ROWS)
    with Reader(str(path), SCHEMA, SELECTION, simulation=True) as reader:
        for columns in reader.steps(0, reader.layout.entries):
            histogram += fill(columns, CUTS, AXIS, ROWS)
    return outcome(histogram)


@cache
def steps(path: Path) -> list[Columns]:
    """Columns of the whole file, in memory."""
    with Reader(str(path), SCHEMA, SELECTION, simulation=True) as reader:
        return [Columns(*map(np.copy, columns)) for columns in reader.steps(0, reader.layout.entries)]


def kernel(path: Path) -> Outcome:
    """Select, weigh and fill alone: columns that the first call has put into memory."""
    histogram = Histogram.zeros(len(CHANNELS), BINS, ROWS)
    for columns in steps(path):
        histogram += fill(columns, CUTS, AXIS, ROWS)
    return outcome(histogram)


def outcome(histogram: Histogram) -> Outcome:
    """Say what a histogram holds in the form that all ways share."""
    bins = histogram.sumw.sum(axis=0).floats()[1:-1]
    total = float(histogram.sumw.sum().floats())
    return Outcome(histogram.entries, int(histogram.counts.sum()), total, bins.tolist())
