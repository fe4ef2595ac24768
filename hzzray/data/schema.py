"""A release's branch names and units, and which of them a selection needs."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hzzray.physics.selection import Selection

#: The lepton branches that every selection reads, by their role.
KINEMATICS = ("pt", "eta", "phi", "energy", "charge", "type")


class Schema(BaseModel):
    """How a release names the analysis' columns. Frozen; written in YAML as part of a release.

    Attributes
    ----------
    tree
        The TTree's name.
    gev
        GeV a file unit: 0.001 for MeV, 1 for GeV. Applies to pt and energy.
    pt, eta, phi, energy, charge, type
        Jagged branches, one entry a lepton. ``type`` is 11 (e) or 13 (µ), of either sign: a pdgId will do. ``charge``
        is ±1. No two of them are the same branch.
    triggers
        Flags of which one must be set, one entry an event.
    matched
        Jagged flag: this lepton fired a trigger.
    electron_id, muon_id
        Jagged flags that must all be set for an electron, a muon to count as identified and isolated.
    factors
        Weight factors of simulation, multiplied.
    divisor
        Branch that the product is divided by, if the file carries its own normalisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tree: str
    gev: float = Field(gt=0)
    pt: str
    eta: str
    phi: str
    energy: str
    charge: str
    type: str
    triggers: tuple[str, ...] = ()
    matched: str | None = None
    electron_id: tuple[str, ...] = ()
    muon_id: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    divisor: str | None = None

    @model_validator(mode="after")
    def _different(self) -> Self:
        roles: dict[str, str] = {}
        for role, branch in zip(KINEMATICS, self.kinematics, strict=True):
            if branch in roles:
                raise ValueError(f"{roles[branch]} and {role} are both {branch}")
            roles[branch] = role
        return self

    @property
    def kinematics(self) -> tuple[str, ...]:
        """The six lepton branches that every selection reads, pt first."""
        return (self.pt, self.eta, self.phi, self.energy, self.charge, self.type)

    def missing(self, selection: Selection) -> tuple[str, ...]:
        """Name what the selection asks for and this schema has no branch for."""
        asked = (
            ("trigger", selection.trigger and not self.triggers),
            ("trigger matching", selection.matched and self.matched is None),
            ("identification", selection.identified and not (self.electron_id and self.muon_id)),
        )
        return tuple(name for name, lacking in asked if lacking)

    def branches(self, selection: Selection, *, simulation: bool) -> tuple[str, ...]:
        """List the branches that a selection reads, each once, in reading order."""
        names = list(self.kinematics)
        if selection.trigger:
            names += self.triggers
        if selection.matched and self.matched:
            names.append(self.matched)
        if selection.identified:
            names += [*self.electron_id, *self.muon_id]
        if simulation:
            names += [*self.factors, *([self.divisor] if self.divisor else [])]
        return tuple(dict.fromkeys(names))
