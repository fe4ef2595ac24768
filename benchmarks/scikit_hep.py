"""The notebook's way: uproot, awkward, vector. And uproot's reading alone."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import uproot
import vector
from task import BINS, BRANCHES, FACTORS, GEV, START, STOP, TREE, Outcome


def of_first_four(column: ak.Array) -> ak.Array:
    """Add up what the first four leptons of each event have."""
    return column[:, 0] + column[:, 1] + column[:, 2] + column[:, 3]


def select(events: ak.Array) -> tuple[np.ndarray, np.ndarray]:
    """m4l in GeV and weight of the events that pass, shape (passing,) each; cut by cut as in the notebook."""
    weight = events[FACTORS[0]]
    for factor in FACTORS[1:]:
        weight = weight * events[factor]
    events = ak.with_field(events, weight, "weight")
    events = events[of_first_four(events.lep_charge) == 0]
    types = of_first_four(events.lep_type)
    events = events[(types == 44) | (types == 48) | (types == 52)]
    leptons = vector.zip({"pt": events.lep_pt, "eta": events.lep_eta, "phi": events.lep_phi, "E": events.lep_E})
    return ak.to_numpy(of_first_four(leptons).mass) * GEV, ak.to_numpy(events.weight)


def notebook(path: Path) -> Outcome:
    """Iterate over the tree in uproot's default steps, join what passed, histogram it."""
    with uproot.open(path) as file:
        tree = file[TREE]
        parts = [select(events) for events in tree.iterate(BRANCHES, library="ak")]
        mass, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
        bins, _ = np.histogram(mass, BINS, (START, STOP), weights=weight.astype(np.float64))
        return Outcome(tree.num_entries, len(mass), float(weight.sum(dtype=np.float64)), bins.tolist())


def arrays(path: Path) -> Outcome:
    """Read the branches, no selection."""
    with uproot.open(path) as file:
        return Outcome(len(file[TREE].arrays(BRANCHES, library="ak")))


def arrays_isal(path: Path) -> Outcome:
    """Read the branches with a faster decoder; uproot's call of libdeflate fails with deflate 0.9."""
    # The documented uproot.ZLIB.library governs writing only, as of 5.7.7: reading has a decoder of its own.
    uproot.compression._decompress_ZLIB.library = "isal"  # noqa: SLF001
    return arrays(path)
