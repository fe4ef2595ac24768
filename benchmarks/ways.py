"""hzzray's own ways through the file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from task import BINS, START, STOP, Outcome

from hzzray import analyses
from hzzray.data.catalogue import release
from hzzray.data.reader import Reader
from hzzray.physics.columns import Step
from hzzray.physics.filler import Filler
from hzzray.physics.histogram import Blocks
from hzzray.runs.request import make_spec

SPEC = make_spec(
    release("2020"), selection="notebook-2020", observables=[f"m4l={START}:{STOP}:{BINS}"], window=f"{START}:{STOP}"
)
ANALYSIS = analyses.resolve(SPEC.analysis, ())
READS = analyses.reads(SPEC, ANALYSIS, simulation=True)
TREE = SPEC.release.schema_.tree


def ours(path: Path) -> Outcome:
    """From a file that nothing is known of to the histogram, in this process."""
    with Reader(str(path), TREE, READS) as reader:
        return outcome(filler().fill(reader.steps(0, reader.layout.entries), 1.0))


@cache
def filler() -> Filler:
    """What fills the histogram, as a worker has it for all of its tasks."""
    return analyses.filler(SPEC, ANALYSIS)


@cache
def steps(path: Path) -> list[Step]:
    """Columns of the whole file, in memory."""
    with Reader(str(path), TREE, READS) as reader:
        return [_copied(step) for step in reader.steps(0, reader.layout.entries)]


def _copied(step: Step) -> Step:
    columns = type(step.columns)(*map(np.copy, step.columns))
    return Step(step.events, columns, step.factors.copy(), step.divisor.copy())


def kernel(path: Path) -> Outcome:
    """Select, weigh and fill alone: columns that the first call has put into memory."""
    return outcome(filler().fill(steps(path), 1.0))


def outcome(blocks: Blocks) -> Outcome:
    """Say what a histogram holds in the form that all ways share."""
    histogram = blocks.histogram()
    bins = histogram.sumw.sum(axis=0).floats()[1:-1]
    total = float(histogram.sumw.sum().floats())
    return Outcome(histogram.entries, int(histogram.counts.sum()), total, bins.tolist())
