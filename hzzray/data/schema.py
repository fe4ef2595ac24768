"""A release's branch names and units, and which of them a selection needs."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hzzray.physics.selection import PRESETS, Selection


class Bound(BaseModel):
    """A lepton passes where ``branch`` (a number a lepton) is below ``below``, or below that times ``over``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    branch: str
    over: str | None = None
    below: float = Field(allow_inf_nan=False)

    @property
    def branches(self) -> tuple[str, ...]:
        """What is read for it."""
        return (self.branch,) if self.over is None else (self.branch, self.over)


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
    electron_isolation: tuple[Bound, ...] = ()
    muon_isolation: tuple[Bound, ...] = ()
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

    def preset(self, name: str) -> Selection:
        """Find a selection by name, as this release allows; raises KeyError.

        A notebook's is the notebook's, whatever the release. ``h4l`` asks for the trigger, and for identified and
        isolated leptons, wherever the schema says how.
        """
        preset = PRESETS[name]
        if preset.leptons == "first":
            return preset
        return replace(
            preset,
            trigger=bool(self.triggers),
            identified=bool(self.electron_id and self.muon_id),
            isolated=bool(self.electron_isolation and self.muon_isolation),
        )

    def missing(self, selection: Selection) -> tuple[str, ...]:
        """Name what the selection asks for and this schema has no branch for."""
        asked = (
            ("trigger", selection.trigger and not self.triggers),
            ("trigger matching", selection.matched and self.matched is None),
            ("identification", selection.identified and not (self.electron_id and self.muon_id)),
            ("isolation", selection.isolated and not (self.electron_isolation and self.muon_isolation)),
        )
        return tuple(name for name, lacking in asked if lacking)

    def branches(self, selection: Selection, *, simulation: bool) -> tuple[str, ...]:
        """List the branches that a selection reads, each once, in reading order."""
        names = [*self.kinematics, *self.cuts_of(selection)]
        if simulation:
            names += [*self.factors, *([self.divisor] if self.divisor else [])]
        return tuple(dict.fromkeys(names))

    def cuts_of(self, selection: Selection) -> dict[str, str]:
        """Name, for each branch that is read for one cut only, the field of the selection that asks for it."""
        names: dict[str, str] = {}
        if selection.trigger:
            names |= dict.fromkeys(self.triggers, "trigger")
        if selection.matched and self.matched:
            names[self.matched] = "matched"
        if selection.identified:
            names |= dict.fromkeys((*self.electron_id, *self.muon_id), "identified")
        if selection.isolated:
            bounds = (*self.electron_isolation, *self.muon_isolation)
            names |= dict.fromkeys(chain.from_iterable(bound.branches for bound in bounds), "isolated")
        return {name: cut for name, cut in names.items() if name not in self.kinematics}
