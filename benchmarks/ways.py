"""hzzray's own ways through the file."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import numpy as np
from task import BINS, GEV, START, STOP, Outcome

from hzzray.data.catalogue import release
from hzzray.data.plan import make_plan
from hzzray.data.reader import Reader
from hzzray.messages import RunSpec
from hzzray.physics.histogram import Axis, Histogram
from hzzray.physics.kernels import Columns, cuts, fill
from hzzray.physics.selection import CHANNELS, PRESETS

SELECTION = PRESETS["notebook-2020"]
SCHEMA = release("2020").schema_
AXIS = Axis(START, STOP, BINS)
CUTS = cuts(SELECTION, GEV, 1.0)
ROWS = len(SELECTION.cuts)

_lasting = ExitStack()


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


def on_ray(path: Path) -> Outcome:
    """Plan, process on an actor for each core, merge and commit; the first call starts Ray and the actors."""
    from hzzray.engine.ledger import Ledger  # noqa: PLC0415 (the other ways need no Ray)
    from hzzray.engine.pool import Pool, start_reducer  # noqa: PLC0415
    from hzzray.source import MemorySource  # noqa: PLC0415

    spec = on_ray_spec(path)
    with tempfile.TemporaryDirectory() as folder:
        ledger_path = Path(folder) / "ledger.db"
        with Ledger.create(ledger_path, "bench", spec, "bench") as ledger:
            plan = make_plan(spec, "bench", (str(path.parent),), chunk=50_000)
            ledger.plan(plan.tasks, plan.entries)

        async def work() -> Histogram:
            pool = Pool(workers(path), start_reducer(ledger_path))
            state = await pool.run(MemorySource(plan.tasks), lambda _: None)
            return state.histograms["bench"]

        return outcome(asyncio.run(work()))


def on_ray_spec(path: Path) -> RunSpec:
    """Make the spec of a release that has this file alone; its norm is 1."""
    base = release("2020")
    sample = base.sample("Zee").model_copy(update={"name": "bench", "path": path.name, "xsec": 1e-3, "sumw": 1.0})
    alone = base.model_copy(update={"samples": (sample,)})
    return RunSpec(release=alone, selection=SELECTION, luminosity=1.0, fraction=1.0, axis=AXIS)


@cache
def workers(path: Path) -> list[object]:
    """Start a Ray cluster of this machine, for the rest of this process, and its worker actors."""
    from hzzray.engine.cluster import cluster, usable_cpus  # noqa: PLC0415
    from hzzray.engine.pool import start_workers  # noqa: PLC0415

    _lasting.enter_context(cluster(usable_cpus()))
    return start_workers(on_ray_spec(path), (str(path.parent),), usable_cpus(), None)


def outcome(histogram: Histogram) -> Outcome:
    """Say what a histogram holds in the form that all ways share."""
    bins = histogram.sumw.sum(axis=0).floats()[1:-1]
    total = float(histogram.sumw.sum().floats())
    return Outcome(histogram.entries, int(histogram.counts.sum()), total, bins.tolist())
