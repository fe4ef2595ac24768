"""What every way has to do, and what it reports: selection notebook-2020, weight, m4l, histogram."""

from __future__ import annotations

from dataclasses import dataclass

TREE = "mini"
FACTORS = ("mcWeight", "scaleFactor_PILEUP", "scaleFactor_ELE", "scaleFactor_MUON", "scaleFactor_LepTRIGGER")
LEPTONS = ("lep_pt", "lep_eta", "lep_phi", "lep_E", "lep_charge", "lep_type")
BRANCHES = FACTORS + LEPTONS

#: m4l from 80 to 250 GeV in bins of 5 GeV; the file's unit is MeV.
BINS, START, STOP = 34, 80.0, 250.0
GEV = 0.001


@dataclass(frozen=True)
class Outcome:
    """What one pass over the file gave. A way that stops before the selection leaves the later fields empty.

    Attributes
    ----------
    events
        Events read.
    selected
        Events that passed.
    total
        Sum of their weights.
    bins
        Sum of weights in each bin of m4l, without under- and overflow.
    """

    events: int
    selected: int | None = None
    total: float | None = None
    bins: list[float] | None = None
