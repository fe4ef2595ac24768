"""What a statistical model is made of: counts by process, region and bin, and how well each is known. Arrays alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hzzray.data.catalogue import Role, Uncertainty


@dataclass(frozen=True, eq=False, slots=True)
class Process:
    """One simulated process, at the luminosity of the data that it stands beside.

    ``sumw`` and ``sumw2`` are the expected events and the squares of their statistical errors, float64, shape
    (regions, bins), without flow bins. ``variations`` are ``sumw`` under a systematic, by its name with ``_up`` or
    ``_down``; ``uncertainties`` those of its normalisation.
    """

    name: str
    group: str
    role: Role
    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]
    variations: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    uncertainties: tuple[Uncertainty, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class ModelInputs:
    """All of a model: ``edges`` of the observable's bins, shape (bins + 1,); ``data``, counts of (regions, bins).

    ``data`` are None where none may stand beside the simulation: ``no_data`` says why.
    """

    observable: str
    unit: str
    regions: tuple[str, ...]
    edges: NDArray[np.float64]
    processes: tuple[Process, ...]
    data: NDArray[np.float64] | None
    no_data: str = ""

    def total(self, *roles: Role) -> NDArray[np.float64]:
        """Sum up the events expected of some roles, shape (regions, bins)."""
        nothing = np.zeros((len(self.regions), len(self.edges) - 1))
        return sum((process.sumw for process in self.processes if process.role in roles), nothing)
