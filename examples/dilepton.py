"""Z → ℓℓ: the mass of an event's two leading leptons, of one flavour and opposite charge.

    hzzray run --release 2020 --analysis examples/dilepton.py:zmumu

The columns go by what a release calls its branches, so that it runs on toys, on 2020 and on 2025. docs/analysis.md
goes through a file like this one.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hzzray.physics import (
    ELECTRON,
    MUON,
    Analysis,
    Axis,
    Bound,
    Cut,
    Jagged,
    Offsets,
    Template,
    Variable,
    delta_r,
    entry,
    mass,
    momentum,
    one_each,
    put,
)

REGIONS = ("ee", "mumu")

VARIABLES = (
    Variable("m_ll", r"$m_{\ell\ell}$", "GeV"),
    Variable("pt_ll", r"$p_T^{\ell\ell}$", "GeV"),
    Variable("pt1", r"$p_T^{\ell_1}$", "GeV"),
    Variable("pt2", r"$p_T^{\ell_2}$", "GeV"),
    Variable("eta1", r"$\eta^{\ell_1}$"),
    Variable("eta2", r"$\eta^{\ell_2}$"),
    Variable("dr", r"$\Delta R(\ell, \ell)$"),
    Variable("n_leptons", "leptons"),
    Variable("charge", "sum of charges"),
    Variable("flavour", "flavour: 11 e, 13 µ, 0 one of each"),
)
M_LL, PT_LL, PT1, PT2, ETA1, ETA2, DR, N_LEPTONS, CHARGE, FLAVOUR = range(len(VARIABLES))


class Columns(NamedTuple):
    """What is read: one number a lepton, and where each event's leptons begin."""

    offsets: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    energy: np.ndarray
    charge: np.ndarray
    type: np.ndarray


class Parameters(NamedTuple):
    """What changes the measuring; ``gev`` comes from the release."""

    gev: float = 1.0
    pt_min: float = 7.0


def columns(schema, parameters):
    return Columns(
        offsets=Offsets(),
        pt=Jagged(schema.pt, role="pt"),
        eta=Jagged(schema.eta, role="eta"),
        phi=Jagged(schema.phi, role="phi"),
        energy=Jagged(schema.energy, role="energy"),
        charge=Jagged(schema.charge, "i4", role="charge"),
        type=Jagged(schema.type, "i4", role="type", absolute=True),  # some releases have the PDG's signs
    )


@entry
def measure(start, stop, c, p, slots, out):
    events = one_each(start, stop, out)
    for k in range(events):
        # The two hardest: files aren't always sorted.
        first, second, n = -1, -1, 0
        for i in range(c.offsets[start + k], c.offsets[start + k + 1]):
            if c.pt[i] * p.gev > p.pt_min:
                n += 1
                if first < 0 or c.pt[i] > c.pt[first]:
                    first, second = i, first
                elif second < 0 or c.pt[i] > c.pt[second]:
                    second = i
        put(out, slots, N_LEPTONS, k, n)
        if n < 2:
            continue
        x1, y1, z1, e1 = momentum(c.pt[first], c.eta[first], c.phi[first], c.energy[first], p.gev)
        x2, y2, z2, e2 = momentum(c.pt[second], c.eta[second], c.phi[second], c.energy[second], p.gev)
        put(out, slots, M_LL, k, mass(x1 + x2, y1 + y2, z1 + z2, e1 + e2))
        put(out, slots, PT_LL, k, np.sqrt((x1 + x2) ** 2 + (y1 + y2) ** 2))
        put(out, slots, PT1, k, c.pt[first] * p.gev)
        put(out, slots, PT2, k, c.pt[second] * p.gev)
        put(out, slots, ETA1, k, c.eta[first])
        put(out, slots, ETA2, k, c.eta[second])
        put(out, slots, DR, k, delta_r(c.eta[first], c.phi[first], c.eta[second], c.phi[second]))
        put(out, slots, CHARGE, k, c.charge[first] + c.charge[second])
        flavour = c.type[first] if c.type[first] == c.type[second] else 0
        put(out, slots, FLAVOUR, k, flavour)
        out.region[k] = 0 if flavour == ELECTRON else 1 if flavour == MUON else -1
    return events


zll = Analysis(
    "zll",
    VARIABLES,
    REGIONS,
    columns,
    Parameters(),
    measure,
    cuts=(
        Cut("two leptons", (Bound("n_leptons", 1.5),), basic=True),
        Cut("pt", (Bound("pt1", 25.0), Bound("pt2", 15.0))),
        Cut("opposite charge", (Bound("charge", -0.5, 0.5),)),
        Cut("same flavour", (Bound("flavour", 0.5),)),
        Cut("Z window", (Bound("m_ll", 66.0, 116.0),)),
    ),
    templates=(
        Template("m_ll", Axis(66.0, 116.0, 50)),
        Template("pt_ll", Axis(0.0, 200.0, 40)),
        Template("pt1", Axis(0.0, 200.0, 40)),
        Template("pt2", Axis(0.0, 160.0, 40)),
        Template("eta1", Axis(-2.8, 2.8, 28)),
        Template("eta2", Axis(-2.8, 2.8, 28)),
        Template("dr", Axis(0.0, 5.0, 50)),
    ),
    title=r"$Z \rightarrow \ell\ell$",
)

# Analyses are values: one of a single flavour is the same with another cut.
zee = replace(
    zll, name="zee", cuts=(*zll.cuts, Cut("electrons", (Bound("flavour", 10.5, 11.5),))), title=r"$Z \rightarrow ee$"
)
zmumu = replace(
    zll, name="zmumu", cuts=(*zll.cuts, Cut("muons", (Bound("flavour", 12.5, 13.5),))), title=r"$Z \rightarrow \mu\mu$"
)
