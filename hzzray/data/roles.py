"""Branches that can't be what the schema takes them for: such a mistake selects nothing, or nonsense, silently."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.columns import ELECTRON, MUON, Columns

#: The first entries of a file, by which its branches are judged, whatever part of it is read.
JUDGED = 256

# Some of the leptons may be odd: this part of them is none that a branch of the right kind holds.
_LIMIT = 0.4

_MAX_ETA = 10.0  # of a lepton that a detector at the LHC sees it is below 5


def mistaken(columns: Columns) -> tuple[str, str] | None:
    """Find a lepton column that can't be what it is taken for; returns its role in the schema, and what it holds."""
    if not len(columns.pt):
        return None
    kind, charge = columns.type, columns.charge
    checks: tuple[tuple[str, NDArray[np.bool_], NDArray[np.generic], str], ...] = (
        ("type", (kind != ELECTRON) & (kind != MUON), kind, "neither 11 (electron) nor 13 (muon)"),
        ("charge", abs(charge) != 1, charge, "neither 1 nor -1"),
        ("pt", columns.pt < 0, columns.pt, "below 0"),
        ("energy", columns.energy < 0, columns.energy, "below 0"),
        ("eta", abs(columns.eta) > _MAX_ETA, columns.eta, f"beyond ±{_MAX_ETA:g}"),
        ("phi", abs(columns.phi) > 2 * np.pi, columns.phi, "beyond ±2π"),
    )
    for role, odd, values, what in checks:
        if odd.mean() > _LIMIT:
            examples = ", ".join(f"{value:g}" for value in np.unique(values[odd])[:3])
            return role, f"of its first {len(odd)} values {np.count_nonzero(odd)} are {what}: {examples}"
    return None
