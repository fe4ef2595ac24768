"""coffea's way: a processor over plain branches, the iterative executor, one process."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
from coffea import processor
from coffea.nanoevents import BaseSchema
from scikit_hep import select
from task import BINS, START, STOP, TREE, Outcome


class FourLeptons(processor.ProcessorABC):
    """Sums that coffea adds up over its chunks."""

    def process(self, events: ak.Array) -> dict[str, object]:
        """Select one chunk."""
        mass, weight = select(events)
        bins, _ = np.histogram(mass, BINS, (START, STOP), weights=weight.astype(np.float64))
        return {
            "events": len(events),
            "selected": len(mass),
            "total": float(weight.sum(dtype=np.float64)),
            "bins": bins,
        }

    def postprocess(self, accumulator: dict[str, object]) -> dict[str, object]:
        """Leave the sums as they are."""
        return accumulator


def iterative(path: Path) -> Outcome:
    """Run over one file, its metadata not known beforehand."""
    run = processor.Runner(
        processor.IterativeExecutor(status=False, compression=None), schema=BaseSchema, metadata_cache={}
    )
    sums = run({"benchmark": {"treename": TREE, "files": [str(path)]}}, processor_instance=FourLeptons())
    return Outcome(sums["events"], sums["selected"], sums["total"], sums["bins"].tolist())
