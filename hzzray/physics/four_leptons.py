"""What four leptons measure: the kinematics that ``notebook`` and ``h4l`` share, in vectors over candidates.

The masses are m² = (ΣE)² - (Σp)² with px = pt cos φ, py = pt sin φ, pz = pt sinh η and E as the file has it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Variable
from hzzray.physics.candidates import Candidates
from hzzray.physics.columns import Columns
from hzzray.physics.jit import inlined, kernel
from hzzray.physics.maths import log, sincos, sinh

M_Z = 91.1876  # GeV, Particle Data Group

REGIONS = ("4e", "4mu", "2e2mu")

ELECTRON, MUON = 11, 13  # lep_type, from the PDG's numbering

#: Candidates that go through together: their four-momenta fit into the first-level cache.
VECTOR = 128

#: The mass of a pair that isn't there.
NO_MASS = -1.0

#: Which pairs of leptons count: any, of the same flavour, of different ones.
ANY, SAME, OTHER = range(3)

VARIABLES = (
    Variable("m4l", r"$m_{4\ell}$", "GeV"),
    Variable("m12", r"$m_{12}$", "GeV"),
    Variable("m34", r"$m_{34}$", "GeV"),
    Variable("pt4l", r"$p_T^{4\ell}$", "GeV"),
    Variable("y4l", r"$y_{4\ell}$"),
    *(Variable(f"pt{i}", rf"$p_T^{{\ell {i}}}$", "GeV") for i in range(1, 5)),
    *(Variable(f"eta{i}", rf"$\eta^{{\ell {i}}}$") for i in range(1, 5)),
    Variable("dr_min", r"$\Delta R_{min}$"),
    Variable("n_leptons", "leptons"),
    Variable("triggered", "fired a trigger"),
    Variable("n_matched", "leptons that fired a trigger"),
    Variable("n_identified", "identified leptons"),
    Variable("charge", "sum of charges"),
    Variable("flavours", "two pairs of a flavour"),
    Variable("sfos_pairs", "two SFOS pairs"),
    Variable("dr_same", r"$\Delta R_{min}$, same flavour"),
    Variable("dr_other", r"$\Delta R_{min}$, other flavour"),
    Variable("m_sfos", r"smallest $m_{\ell\ell}$ of an SFOS pair", "GeV"),
    Variable("m34_excess", r"$m_{34}$ above its least", "GeV"),
)
(
    M4L, M12, M34, PT4L, Y4L, PT1, _, _, _, ETA1, _, _, _, DR_MIN, N_LEPTONS, TRIGGERED, N_MATCHED, N_IDENTIFIED, CHARGE,
    FLAVOURS, SFOS_PAIRS, DR_SAME, DR_OTHER, M_SFOS, M34_EXCESS,
) = range(len(VARIABLES))  # fmt: skip


class Vectors(NamedTuple):
    """Up to ``VECTOR`` candidates' four leptons: lepton j of candidate i at ``[…, j, i]``.

    ``k`` (float32) has pt, eta, phi, E as in the file, ``p`` (float64) px, py, pz, E in GeV; ``type``, ``charge`` (int32).
    ``m2`` (float64, shape (6, VECTOR)) are the squared masses of ``PAIRS``; ``m4l``, ``m12``, ``m34`` masses, all in GeV.
    """

    k: NDArray[np.float32]
    p: NDArray[np.float64]
    type: NDArray[np.int32]
    charge: NDArray[np.int32]
    m2: NDArray[np.float64]
    m4l: NDArray[np.float64]
    m12: NDArray[np.float64]
    m34: NDArray[np.float64]
    pt: NDArray[np.float64]
    eta: NDArray[np.float64]


@inlined
def make_vectors() -> Vectors:
    """Make room for one lot of candidates."""
    return Vectors(
        np.empty((4, 4, VECTOR), np.float32),
        np.empty((4, 4, VECTOR), np.float64),
        np.empty((4, VECTOR), np.int32),
        np.empty((4, VECTOR), np.int32),
        np.empty((6, VECTOR), np.float64),
        np.empty(VECTOR, np.float64),
        np.empty(VECTOR, np.float64),
        np.empty(VECTOR, np.float64),
        np.empty((4, VECTOR), np.float64),
        np.empty((4, VECTOR), np.float64),
    )


#: Pairs of four leptons; two of them one after the other are a pairing.
PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))


@inlined
def mass(m2: float) -> float:
    """Root of a squared mass; negative for a spacelike one, as vector and ROOT have it."""
    return math.copysign(math.sqrt(abs(m2)), m2)


@kernel
def momenta(n: int, v: Vectors, gev: float) -> None:
    """Turn pt, eta, phi, E into px, py, pz, E in GeV."""
    for j in range(4):
        for i in range(n):
            pt = v.k[0, j, i] * gev
            sine, cosine = sincos(np.float64(v.k[2, j, i]))
            v.p[0, j, i] = pt * cosine
            v.p[1, j, i] = pt * sine
            v.p[2, j, i] = pt * sinh(np.float64(v.k[1, j, i]))
            v.p[3, j, i] = v.k[3, j, i] * gev


@kernel
def of_four(n: int, v: Vectors, m4l: NDArray[np.float64]) -> None:
    """Masses of all four leptons in GeV."""
    p = v.p
    for i in range(n):
        x = (p[0, 0, i] + p[0, 1, i]) + (p[0, 2, i] + p[0, 3, i])
        y = (p[1, 0, i] + p[1, 1, i]) + (p[1, 2, i] + p[1, 3, i])
        z = (p[2, 0, i] + p[2, 1, i]) + (p[2, 2, i] + p[2, 3, i])
        e = (p[3, 0, i] + p[3, 1, i]) + (p[3, 2, i] + p[3, 3, i])
        m4l[i] = mass((e * e - x * x) - (y * y + z * z))


@kernel
def of_two(n: int, v: Vectors) -> None:
    """Squared masses of the six pairs in GeV²."""
    p = v.p
    for pair, (a, b) in enumerate(PAIRS):
        for i in range(n):
            x = p[0, a, i] + p[0, b, i]
            y = p[1, a, i] + p[1, b, i]
            z = p[2, a, i] + p[2, b, i]
            e = p[3, a, i] + p[3, b, i]
            v.m2[pair, i] = (e * e - x * x) - (y * y + z * z)


@inlined
def sfos(v: Vectors, a: int, b: int, i: int) -> bool:
    """Tell whether two leptons have the same flavour and opposite charges."""
    return (v.type[a, i] == v.type[b, i]) & (v.charge[a, i] == -v.charge[b, i]) & (v.charge[a, i] != 0)


@kernel
def z_masses(n: int, v: Vectors) -> None:
    """Pair four leptons: m12 of the SFOS pair nearest m_Z whose rest is one too, m34 of that, in GeV; -1 for none."""
    m12, m34 = v.m12, v.m34
    for i in range(n):
        m12[i] = NO_MASS
        m34[i] = NO_MASS
    for pair in range(0, 6, 2):
        a, b = PAIRS[pair]
        d, e = PAIRS[pair + 1]
        for i in range(n):
            one = mass(v.m2[pair, i])
            two = mass(v.m2[pair + 1, i])
            swapped = abs(two - M_Z) < abs(one - M_Z)
            near = two if swapped else one
            far = one if swapped else two
            better = sfos(v, a, b, i) & sfos(v, d, e, i) & (
                (m12[i] == NO_MASS) | (abs(near - M_Z) < abs(m12[i] - M_Z))
            )
            m12[i] = near if better else m12[i]
            m34[i] = far if better else m34[i]


@inlined
def finite(c: Columns, first: int, last: int) -> bool:
    """Tell whether no lepton of some holds nan or inf."""
    zero = np.float32(0.0)
    for i in range(first, last):
        zero += (c.pt[i] * 0 + c.eta[i] * 0) + (c.phi[i] * 0 + c.energy[i] * 0)
    return bool(zero == 0)


@kernel
def gather(n: int, c: Columns, leptons: NDArray[np.int64], v: Vectors) -> None:
    """Copy the leptons of n candidates, numbered by ``leptons`` (shape (4, VECTOR), -1 for none), into vectors."""
    for j in range(4):
        for i in range(n):
            at = leptons[j, i]
            there = at >= 0
            v.k[0, j, i] = c.pt[at] if there else 0.0
            v.k[1, j, i] = c.eta[at] if there else 0.0
            v.k[2, j, i] = c.phi[at] if there else 0.0
            v.k[3, j, i] = c.energy[at] if there else 0.0
            v.type[j, i] = c.type[at] if there else 0
            v.charge[j, i] = c.charge[at] if there else 0


@inlined
def count(flags: NDArray[np.uint8], first: int, last: int) -> int:
    """Count the flags of some leptons that are set."""
    number = 0
    for i in range(first, last):
        number += flags[i] != 0
    return number


@inlined
def is_identified(c: Columns, i: int) -> bool:
    """Tell whether a lepton is identified and isolated as its flavour asks for."""
    return (c.type[i] == ELECTRON and c.electron_ok[i] != 0) or (c.type[i] == MUON and c.muon_ok[i] != 0)


@kernel
def momenta_of_leptons(n: int, v: Vectors, gev: float) -> None:
    """Copy pt in GeV and η of each lepton, in the file's order."""
    for j in range(4):
        for i in range(n):
            v.pt[j, i] = v.k[0, j, i] * gev
            v.eta[j, i] = v.k[1, j, i]


@kernel
def sort_by_pt(n: int, v: Vectors) -> None:
    """Put pt and η of the four leptons in the order of pt, hardest first: a network of five exchanges."""
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)):
        for i in range(n):
            one, two = v.pt[a, i], v.pt[b, i]
            eta, other = v.eta[a, i], v.eta[b, i]
            swapped = two > one
            v.pt[a, i] = two if swapped else one
            v.pt[b, i] = one if swapped else two
            v.eta[a, i] = other if swapped else eta
            v.eta[b, i] = eta if swapped else other


@inlined
def separation2(v: Vectors, a: int, b: int, i: int) -> float:
    """ΔR² of two leptons, φ the short way round."""
    eta = np.float64(v.k[1, a, i]) - np.float64(v.k[1, b, i])
    phi = np.float64(v.k[2, a, i]) - np.float64(v.k[2, b, i])
    phi -= 2.0 * np.pi * np.rint(phi / (2.0 * np.pi))
    return eta * eta + phi * phi


@inlined
def copy(n: int, source: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Copy n values."""
    for i in range(n):
        out[i] = source[i]


@kernel
def measure_common(  # noqa: C901, PLR0912 (one line a variable)
    n: int, v: Vectors, slots: NDArray[np.int64], at: int, out: Candidates, gev: float, by_pt: bool  # noqa: FBT001
) -> None:
    """Measure of n candidates what both analyses have, into columns from ``at`` on: regions, and what is wanted."""
    for i in range(n):
        types = v.type[0, i] + v.type[1, i] + v.type[2, i] + v.type[3, i]
        out.region[at + i] = (
            0 if types == 4 * ELECTRON else 1 if types == 4 * MUON else 2 if types == 2 * (ELECTRON + MUON) else -1
        )
    momenta(n, v, gev)
    values = out.values
    if slots[M4L] >= 0 or slots[M34_EXCESS] >= 0:
        of_four(n, v, v.m4l)
        if slots[M4L] >= 0:
            copy(n, v.m4l, values[slots[M4L], at:])
    if slots[M12] >= 0 or slots[M34] >= 0 or slots[M34_EXCESS] >= 0 or slots[M_SFOS] >= 0:
        of_two(n, v)
        z_masses(n, v)
        if slots[M12] >= 0:
            copy(n, v.m12, values[slots[M12], at:])
        if slots[M34] >= 0:
            copy(n, v.m34, values[slots[M34], at:])
    if slots[M_SFOS] >= 0:
        smallest_pair(n, v, values[slots[M_SFOS], at : at + n])
    if slots[PT4L] >= 0 or slots[Y4L] >= 0:
        motion(n, v, slots, at, values)
    for slot, kind in ((slots[DR_MIN], ANY), (slots[DR_SAME], SAME), (slots[DR_OTHER], OTHER)):
        if slot >= 0:
            nearest(n, v, kind, values[slot, at : at + n])
    if slots[CHARGE] >= 0:
        row = values[slots[CHARGE], at : at + n]
        for i in range(n):
            row[i] = v.charge[0, i] + v.charge[1, i] + v.charge[2, i] + v.charge[3, i]
    if slots[FLAVOURS] >= 0:
        row = values[slots[FLAVOURS], at : at + n]
        for i in range(n):
            row[i] = out.region[at + i] >= 0
    momenta_of_leptons(n, v, gev)
    if by_pt:
        sort_by_pt(n, v)
    for j in range(4):
        if slots[PT1 + j] >= 0:
            copy(n, v.pt[j], values[slots[PT1 + j], at:])
        if slots[ETA1 + j] >= 0:
            copy(n, v.eta[j], values[slots[ETA1 + j], at:])


@kernel
def smallest_pair(n: int, v: Vectors, out: NDArray[np.float64]) -> None:
    """Find the smallest mass of any SFOS pair in GeV; infinite for none."""
    for i in range(n):
        out[i] = np.inf
    for pair, (a, b) in enumerate(PAIRS):
        for i in range(n):
            m2 = v.m2[pair, i] if sfos(v, a, b, i) else np.inf
            m2 = m2 if m2 == m2 else -np.inf  # noqa: PLR0124 (nan is no mass)
            out[i] = m2 if m2 < out[i] else out[i]
    for i in range(n):
        out[i] = mass(out[i])


@kernel
def motion(n: int, v: Vectors, slots: NDArray[np.int64], at: int, values: NDArray[np.float64]) -> None:
    """Transverse momentum of all four leptons in GeV, and their rapidity ½ ln((E + pz)/(E - pz))."""
    p = v.p
    if slots[PT4L] >= 0:
        row = values[slots[PT4L], at : at + n]
        for i in range(n):
            x = (p[0, 0, i] + p[0, 1, i]) + (p[0, 2, i] + p[0, 3, i])
            y = (p[1, 0, i] + p[1, 1, i]) + (p[1, 2, i] + p[1, 3, i])
            row[i] = math.sqrt(x * x + y * y)
    if slots[Y4L] >= 0:
        row = values[slots[Y4L], at : at + n]
        for i in range(n):
            z = (p[2, 0, i] + p[2, 1, i]) + (p[2, 2, i] + p[2, 3, i])
            e = (p[3, 0, i] + p[3, 1, i]) + (p[3, 2, i] + p[3, 3, i])
            row[i] = 0.5 * log((e + z) / (e - z)) if e > abs(z) else math.copysign(np.inf, z)


@kernel
def nearest(n: int, v: Vectors, kind: int, out: NDArray[np.float64]) -> None:
    """Find the smallest ΔR of two leptons, of any flavour, of the same or of different ones; infinite for no such two."""
    for i in range(n):
        out[i] = np.inf
    for a, b in PAIRS:
        for i in range(n):
            counts = (kind == ANY) | ((v.type[a, i] == v.type[b, i]) == (kind == SAME))
            r2 = separation2(v, a, b, i) if counts else np.inf
            out[i] = r2 if r2 < out[i] else out[i]
    for i in range(n):
        out[i] = math.sqrt(out[i])
