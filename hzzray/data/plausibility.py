"""Branches that can't be what they are read as: such a mistake selects nothing, or nonsense, silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.columns import ELECTRON, MUON, Role

#: The first entries of a file, by which its branches are judged, whatever part of it is read.
JUDGED = 256

# Some of the values may be odd: this part of them is none that a branch of the right kind holds.
_LIMIT = 0.4

_MAX_ETA = 10.0  # of a lepton that a detector at the LHC sees it is below 5

_ODD: dict[Role, tuple[Callable[[NDArray[Any]], NDArray[np.bool_]], str]] = {
    "type": (lambda kind: (kind != ELECTRON) & (kind != MUON), "neither 11 (electron) nor 13 (muon)"),
    "charge": (lambda charge: abs(charge) != 1, "neither 1 nor -1"),
    "pt": (lambda pt: pt < 0, "below 0"),
    "energy": (lambda energy: energy < 0, "below 0"),
    "eta": (lambda eta: abs(eta) > _MAX_ETA, f"beyond ±{_MAX_ETA:g}"),
    "phi": (lambda phi: abs(phi) > 2 * np.pi, "beyond ±2π"),
}

#: Roles that are judged, the most telling first.
ROLES = tuple(_ODD)


def mistaken(role: Role, values: NDArray[Any]) -> str:
    """Say what a column holds that it can't hold in its role; empty where it may be what it is taken for."""
    is_odd, what = _ODD[role]
    odd = is_odd(values)
    if np.count_nonzero(odd) <= _LIMIT * len(odd):
        return ""
    examples = ", ".join(f"{value:g}" for value in np.unique(values[odd])[:3])
    return f"of its first {len(odd)} values {np.count_nonzero(odd)} are {what}: {examples}"
