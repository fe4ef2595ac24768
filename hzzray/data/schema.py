"""A release's branch names and units."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BranchBound(BaseModel):
    """A lepton passes where ``branch`` (a number a lepton) is below ``below``, or below that times ``over``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    branch: str
    over: str | None = None
    below: float = Field(allow_inf_nan=False)


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
        is ±1. No two of them are the same branch. Empty where the files have no leptons: then no analysis of ours does.
    triggers
        Flags of which one must be set, one entry an event.
    matched
        Jagged flag: this lepton fired a trigger.
    electron_id, muon_id
        Jagged flags that must all be set for an electron, a muon to count as identified and isolated.
    electron_isolation, muon_isolation
        Jagged numbers that must all be below their bounds, where a release has no flags of isolation.
    factors
        Weight factors of simulation, multiplied.
    divisor
        Branch that the product is divided by, if the file carries its own normalisation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tree: str
    gev: float = Field(gt=0)
    pt: str = ""
    eta: str = ""
    phi: str = ""
    energy: str = ""
    charge: str = ""
    type: str = ""
    triggers: tuple[str, ...] = ()
    matched: str | None = None
    electron_id: tuple[str, ...] = ()
    muon_id: tuple[str, ...] = ()
    electron_isolation: tuple[BranchBound, ...] = ()
    muon_isolation: tuple[BranchBound, ...] = ()
    factors: tuple[str, ...] = ()
    divisor: str | None = None

    @model_validator(mode="after")
    def _different(self) -> Self:
        roles: dict[str, str] = {}
        for role, branch in zip(KINEMATICS, self.kinematics, strict=True):
            if branch and branch in roles:
                raise ValueError(f"{roles[branch]} and {role} are both {branch}")
            roles[branch] = role
        return self

    @property
    def kinematics(self) -> tuple[str, ...]:
        """The six lepton branches that every selection reads, pt first."""
        return (self.pt, self.eta, self.phi, self.energy, self.charge, self.type)
