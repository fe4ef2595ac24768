"""Selections of four leptons as a form with a field for each cut: what the oracle reads, what production makes of it.

Every number is written here once more, and the names of cuts and variables too: nothing comes from the presets that are
judged by it.
"""

from dataclasses import dataclass, replace
from typing import Literal

from hzzray.physics.analysis import Analysis, Bound, Cut
from hzzray.physics.selection import H4L, NOTEBOOK, Selection


@dataclass(frozen=True)
class Form:
    """Cuts on a four-lepton event, in GeV; ``first`` judges the first four leptons, ``best`` the best quadruplet."""

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

    @property
    def cuts(self) -> tuple[str, ...]:
        """Names of the cutflow's rows."""
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

    def with_changes(self, **changes: object) -> "Form":
        return replace(self, **changes)

    def here(self, schema) -> "Form":
        """Ask for the trigger, for identified and isolated leptons wherever a release says how."""
        return replace(
            self,
            trigger=bool(schema.triggers),
            identified=bool(schema.electron_id and schema.muon_id),
            isolated=bool(schema.electron_isolation and schema.muon_isolation),
        )

    def produced(self) -> tuple[Analysis, Selection]:
        """What production is told to do the same."""
        best = self.leptons == "best"
        bounds = {
            "four leptons": (Bound("n_leptons", 3.5),),
            "trigger": (Bound("triggered", 0.5),),
            "trigger-matched": (Bound("n_matched", 0.5),),
            "pt": tuple(Bound(f"pt{i + 1}", least) for i, least in enumerate(self.pt_min)),
            "identification": (Bound("n_identified", 3.5),),
            "isolation": (Bound("n_identified", 3.5),),
            "flavour": (Bound("flavours", 0.5),),
            "charge": (Bound("charge", -0.5, 0.5),),
            "two SFOS pairs": (Bound("sfos_pairs", 0.5),),
            "delta R": (Bound("dr_same", self.dr_same), Bound("dr_other", self.dr_other)),
            "J/psi veto": (Bound("m_sfos", self.sfos_mass_min),),
            "Z1 window": (Bound("m12", *self.z1_window),),
            "Z2 window": (Bound("m34_excess", 0.0), Bound("m34", None, self.z2_max)),
        }
        cuts = tuple(Cut(name, bounds[name]) for name in self.cuts[1:])
        parameters: dict[str, bool | float] = {"identified": self.identified, "isolated": self.isolated}
        if best:
            parameters |= {
                "electron_pt_min": self.electron_pt_min,
                "muon_pt_min": self.muon_pt_min,
                "m34_low": self.z2_min[0],
                "m34_high": self.z2_min[1],
                "m4l_low": self.z2_min_from[0],
                "m4l_high": self.z2_min_from[1],
            }
        return H4L if best else NOTEBOOK, Selection(self.name, parameters, cuts, self.absolute_weights)


#: The presets, of ``h4l`` what every release has branches for: ``here`` adds the rest.
FORMS = {
    form.name: form
    for form in (
        Form("notebook-2020"),
        Form("notebook-2020-pt", pt_min=(30.0, 20.0, 10.0)),
        Form(
            "notebook-2025",
            pt_min=(20.0, 15.0, 10.0),
            trigger=True,
            matched=True,
            identified=True,
            absolute_weights=True,
        ),
        Form("h4l", leptons="best", pt_min=(20.0, 15.0, 10.0), electron_pt_min=7.0, muon_pt_min=6.0),
    )
}
