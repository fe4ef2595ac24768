# ruff: noqa: D102 (of protocols, whose members Schema explains)
"""What ``notebook`` and ``h4l`` read and measure of four leptons: names and numbers alone, nothing that is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Template, Variable
from hzzray.physics.columns import AllOf, AnyOf, Below, Jagged, Offsets, Read, Unread
from hzzray.physics.histogram import Axis

#: Flavour categories.
CHANNELS = ("4e", "4mu", "2e2mu")

#: What plots say.
TITLE = r"$H \rightarrow ZZ^{*} \rightarrow 4\ell$"

VARIABLES = (
    Variable("m4l", r"$m_{4\ell}$", "GeV"),
    Variable("m12", r"$m_{12}$", "GeV"),
    Variable("m34", r"$m_{34}$", "GeV"),
    Variable("pt4l", r"$p_T^{4\ell}$", "GeV"),
    Variable("y4l", r"$y_{4\ell}$"),
    *(Variable(f"pt{i}", rf"$p_T^{{\ell_{i}}}$", "GeV") for i in range(1, 5)),
    *(Variable(f"eta{i}", rf"$\eta^{{\ell_{i}}}$") for i in range(1, 5)),
    Variable("dr_min", r"smallest $\Delta R$"),
    Variable("n_leptons", "leptons"),
    Variable("triggered", "fired a trigger"),
    Variable("n_matched", "leptons that fired a trigger"),
    Variable("n_identified", "identified leptons"),
    Variable("charge", "sum of charges"),
    Variable("flavours", "two pairs of a flavour"),
    Variable("sfos_pairs", "two SFOS pairs"),
    Variable("dr_same", r"smallest $\Delta R$, same flavour"),
    Variable("dr_other", r"smallest $\Delta R$, other flavour"),
    Variable("m_sfos", r"smallest $m_{\ell\ell}$ of an SFOS pair", "GeV"),
    Variable("n_electrons", "electrons of the four"),
    Variable("n_muons", "muons of the four"),
    Variable("m34_excess", r"$m_{34}$ above its least", "GeV"),
)
(
    M4L, M12, M34, PT4L, Y4L, PT1, _, _, _, ETA1, _, _, _, DR_MIN, N_LEPTONS, TRIGGERED, N_MATCHED, N_IDENTIFIED,
    CHARGE, FLAVOURS, SFOS_PAIRS, DR_SAME, DR_OTHER, M_SFOS, N_ELECTRONS, N_MUONS, M34_EXCESS,
) = range(len(VARIABLES))  # fmt: skip

#: What is filled unless somebody asks for something else; the axis of the first is the release's.
TEMPLATES = tuple(
    Template(observable, Axis(*axis))
    for observable, axis in {
        "m4l": (80.0, 250.0, 34),
        "m12": (40.0, 120.0, 40),
        "m34": (0.0, 120.0, 40),
        "pt4l": (0.0, 200.0, 40),
        "y4l": (-2.5, 2.5, 25),
        "pt1": (0.0, 200.0, 40),
        "pt2": (0.0, 160.0, 40),
        "pt3": (0.0, 120.0, 40),
        "pt4": (0.0, 80.0, 40),
        **{f"eta{i}": (-2.8, 2.8, 28) for i in range(1, 5)},
        "dr_min": (0.0, 4.0, 40),
        "n_leptons": (3.5, 9.5, 6),
    }.items()
)


class Leptons(NamedTuple):
    """A range of events' leptons. Pt and energy in the file's unit.

    ``offsets`` (int64, shape (events + 1,)) cuts the lepton columns into events. Lepton columns (pt, eta, phi, energy
    float32; charge, type int32; matched, electron_ok, muon_ok uint8) have shape (leptons,), ``trigger`` (uint8)
    (events,). Columns that nothing needs have length 0.
    """

    offsets: NDArray[np.int64]
    pt: NDArray[np.float32]
    eta: NDArray[np.float32]
    phi: NDArray[np.float32]
    energy: NDArray[np.float32]
    charge: NDArray[np.int32]
    type: NDArray[np.int32]
    trigger: NDArray[np.uint8]
    matched: NDArray[np.uint8]
    electron_ok: NDArray[np.uint8]
    muon_ok: NDArray[np.uint8]


class IsolationBound(Protocol):
    """A bound on isolation: ``hzzray.data.schema.Bound``."""

    @property
    def branch(self) -> str: ...
    @property
    def over(self) -> str | None: ...
    @property
    def below(self) -> float: ...


class Names(Protocol):
    """How a release names its branches: ``hzzray.data.schema.Schema``."""

    @property
    def pt(self) -> str: ...
    @property
    def eta(self) -> str: ...
    @property
    def phi(self) -> str: ...
    @property
    def energy(self) -> str: ...
    @property
    def charge(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def triggers(self) -> tuple[str, ...]: ...
    @property
    def matched(self) -> str | None: ...
    @property
    def electron_id(self) -> tuple[str, ...]: ...
    @property
    def muon_id(self) -> tuple[str, ...]: ...
    @property
    def electron_isolation(self) -> Sequence[IsolationBound]: ...
    @property
    def muon_isolation(self) -> Sequence[IsolationBound]: ...


class Notebook(NamedTuple):
    """What changes the notebooks' measuring: GeV a file unit, and what makes a lepton an identified one."""

    gev: float = 1.0
    identified: bool = True
    isolated: bool = False


class Best(NamedTuple):
    """What changes what ``h4l`` measures: GeV a file unit, what leptons count, and which m34 is too small.

    Leptons must have some pt [GeV] and, where asked for, be identified and isolated. The least m34 rises linearly from
    ``m34_low`` to ``m34_high`` while m4l goes from ``m4l_low`` to ``m4l_high`` [GeV].
    """

    gev: float = 1.0
    electron_pt_min: float = 7.0
    muon_pt_min: float = 6.0
    identified: bool = True
    isolated: bool = True
    m34_low: float = 17.5
    m34_high: float = 50.0
    m4l_low: float = 120.0
    m4l_high: float = 190.0


def columns(names: Names, parameters: Notebook | Best) -> Leptons:
    """Say what is read: an analysis' ``columns`` (see there)."""
    read: dict[str, Read | Unread] = {
        "offsets": Offsets(),
        **{role: Jagged(getattr(names, role), role=role, what="leptons") for role in ("pt", "eta", "phi", "energy")},
        "charge": Jagged(names.charge, "i4", role="charge", what="leptons"),
        # A pdgId is negative for one of the charges.
        "type": Jagged(names.type, "i4", role="type", absolute=True, what="leptons"),
        "trigger": AnyOf(names.triggers, only_for=("triggered",), what="trigger", without="--cut triggered=:"),
        "matched": Jagged(
            names.matched or "", "u1", only_for=("n_matched",), what="trigger matching", without="--cut n_matched=:"
        ),
        "electron_ok": _good(names.electron_id, names.electron_isolation, parameters),
        "muon_ok": _good(names.muon_id, names.muon_isolation, parameters),
    }
    return Leptons(**read)  # type: ignore[arg-type]  # what each array is read from


def _good(flags: tuple[str, ...], bounds: Sequence[IsolationBound], parameters: Notebook | Best) -> AllOf | Unread:
    if not (parameters.identified or parameters.isolated):
        return Unread(AllOf())
    asked = {"identified": parameters.identified, "isolated": parameters.isolated}
    below = tuple(Below(bound.branch, bound.below, bound.over) for bound in bounds)
    return AllOf(
        (flags or ("",)) if parameters.identified else (),
        (below or (Below("", 0.0),)) if parameters.isolated else (),
        # The leptons of h4l are the identified ones, whatever is wanted of them.
        only_for=("n_identified",) if isinstance(parameters, Notebook) else (),
        what="identification" if parameters.identified and not flags else "isolation",
        without=" ".join(f"--parameter {name}=false" for name, wanted in asked.items() if wanted),
    )
