"""What an event must be to count: a frozen value, and the presets that reproduce the published analyses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

#: Flavour categories, in the order of every array's channel axis.
CHANNELS = ("4e", "4mu", "2e2mu")

#: Leptons of one event that a pairing looks at; the rest, lower in pt, is left out.
MAX_LEPTONS = 16


@dataclass(frozen=True, slots=True)
class Selection:
    """Cuts on a four-lepton event. Energies and masses in GeV.

    ``leptons`` says which four leptons an event is judged by: ``first`` takes the first four of the file, as the
    notebooks do; ``best`` builds every quadruplet of two same-flavour, opposite-sign pairs and keeps the best
    (arXiv:1207.7214, section 4.1).

    Attributes
    ----------
    pt_min
        Thresholds on the leading leptons, hardest first; empty for none. An event passes above, not at, them.
    trigger
        Ask for ``trigE | trigM``.
    matched
        Ask for at least one lepton that fired the trigger.
    identified
        Ask for leptons with the release's flags of identification and isolation (muons of 2025: medium and loose;
        electrons: loose and loose).
    isolated
        Ask for isolated leptons, by numbers and bounds: where a release has no flags for it.
    electron_pt_min, muon_pt_min
        ``best`` only: leptons below are not looked at.
    z1_window, z2_max
        ``best`` only: bounds on m12, and the upper bound on m34.
    z2_min, z2_min_from
        ``best`` only: the lower bound on m34 rises linearly over ``z2_min`` while m4l goes through ``z2_min_from``.
    dr_same, dr_other
        ``best`` only: smallest ΔR between leptons of the same and of different flavour.
    sfos_mass_min
        ``best`` only: smallest mass of any same-flavour, opposite-sign pair (the J/ψ veto).
    absolute_weights
        Take the absolute value of every weight factor, as the 2025 notebook does.
    """

    name: str
    leptons: Literal["first", "best"] = "first"
    pt_min: tuple[float, ...] = ()
    trigger: bool = False
    matched: bool = False
    identified: bool = False
    isolated: bool = False
    electron_pt_min: float = 0.0
    muon_pt_min: float = 0.0
    z1_window: tuple[float, float] = (50.0, 106.0)
    z2_max: float = 115.0
    z2_min: tuple[float, float] = (17.5, 50.0)
    z2_min_from: tuple[float, float] = (120.0, 190.0)
    dr_same: float = 0.1
    dr_other: float = 0.2
    sfos_mass_min: float = 5.0
    absolute_weights: bool = False

    def __post_init__(self) -> None:
        """Refuse what no event could mean; raises ValueError."""
        if len(self.pt_min) > 4:
            raise ValueError(f"pt_min names {len(self.pt_min)} thresholds; an event has four leptons to judge")
        if list(self.pt_min) != sorted(self.pt_min, reverse=True):
            raise ValueError(f"pt_min must fall from the hardest lepton on, not {self.pt_min}")
        for field in ("z1_window", "z2_min_from"):
            low, high = getattr(self, field)
            if not low < high:
                raise ValueError(f"{field} must rise, not {low} to {high}")

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the cutflow's rows, in order; the first two hold for every selection.

        ``four leptons`` asks for finite numbers too and, for ``best``, counts leptons in acceptance only;
        ``identification`` for isolation too, where both are asked for.
        """
        asked = [
            ("trigger", self.trigger),
            ("trigger-matched", self.matched),
            ("pt", self.leptons == "first" and bool(self.pt_min)),
            ("identification", self.identified),
            ("isolation", self.isolated and not self.identified),
        ]
        common = ("all", "four leptons", *(name for name, on in asked if on))
        if self.leptons == "first":
            return (*common, "flavour", "charge")
        pt = ("pt",) if self.pt_min else ()
        return (*common, "two SFOS pairs", *pt, "delta R", "J/psi veto", "Z1 window", "Z2 window")

    @property
    def changeable(self) -> tuple[str, ...]:
        """Names of the fields that can be changed, and matter to what leptons the selection looks at."""
        of_best = (
            "electron_pt_min", "muon_pt_min", "z1_window", "z2_max", "z2_min", "z2_min_from", "dr_same", "dr_other",
            "sfos_mass_min",
        )  # fmt: skip
        common = ("pt_min", "trigger", "matched", "identified", "isolated", "absolute_weights")
        return common if self.leptons == "first" else (*common, *of_best)

    def with_changes(self, **changes: object) -> Selection:
        """Return a copy with other cuts, named after its origin so that results tell them apart."""
        return dataclasses.replace(self, **{"name": f"{self.name}*", **changes})  # type: ignore[arg-type]


#: By name. Of ``h4l`` this is what every release has branches for: ``Schema.preset`` adds the rest.
PRESETS = {
    preset.name: preset
    for preset in (
        Selection("notebook-2020"),
        Selection("notebook-2020-pt", pt_min=(30.0, 20.0, 10.0)),
        Selection(
            "notebook-2025",
            pt_min=(20.0, 15.0, 10.0),
            trigger=True,
            matched=True,
            identified=True,
            absolute_weights=True,
        ),
        Selection("h4l", leptons="best", pt_min=(20.0, 15.0, 10.0), electron_pt_min=7.0, muon_pt_min=6.0),
    )
}
