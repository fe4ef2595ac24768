"""What four leptons measure: the kinematics that ``notebook`` and ``h4l`` share, in vectors over candidates.

The masses are m² = (ΣE)² - (Σp)² with px = pt cos φ, py = pt sin φ, pz = pt sinh η and E as the file has it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.columns import ELECTRON, MUON
from hzzray.physics.jit import inlined, kernel
from hzzray.physics.lepton_columns import (
    CHARGE,
    DR_MIN,
    DR_OTHER,
    DR_SAME,
    ETA1,
    FLAVOURS,
    M4L,
    M12,
    M34,
    M_SFOS,
    N_ELECTRONS,
    N_MUONS,
    PT1,
    PT4L,
    SFOS_PAIRS,
    VARIABLES,
    Y4L,
    Leptons,
)
from hzzray.physics.maths import log, sincos, sinh

M_Z = 91.1876  # GeV, Particle Data Group

#: Candidates that go through together: their four-momenta fit into the first-level cache.
VECTOR = 128

#: The mass of a pair that isn't there.
NO_MASS = -1.0

#: Pairs of four leptons; two of them one after the other are a pairing.
PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))


class Vectors(NamedTuple):
    """Up to ``VECTOR`` candidates' four leptons, lepton j of candidate i at ``[…, j, i]``, and what they measure.

    ``k`` (float32) has pt, eta, phi, E as in the file, ``p`` (float64) px, py, pz, E in GeV; ``type``, ``charge`` are
    int32. ``m`` (float64) has the masses of ``PAIRS`` [GeV], ``sfos`` (int32) whether they are of one flavour and of
    opposite charges; ``found`` (float64) a row for each of ``VARIABLES``, nan until it is measured; ``region`` (int64)
    is -1 for none.
    """

    k: NDArray[np.float32]
    p: NDArray[np.float64]
    type: NDArray[np.int32]
    charge: NDArray[np.int32]
    m: NDArray[np.float64]
    sfos: NDArray[np.int32]
    found: NDArray[np.float64]
    region: NDArray[np.int64]


_VARIABLES = len(VARIABLES)


@inlined
def make_vectors() -> Vectors:
    """Make room for one lot of candidates."""
    return Vectors(
        np.empty((4, 4, VECTOR), np.float32),
        np.empty((4, 4, VECTOR), np.float64),
        np.empty((4, VECTOR), np.int32),
        np.empty((4, VECTOR), np.int32),
        np.empty((6, VECTOR), np.float64),
        np.empty((6, VECTOR), np.int32),
        np.full((_VARIABLES, VECTOR), np.nan, np.float64),
        np.empty(VECTOR, np.int64),
    )


@inlined
def finite(c: Leptons, first: int, last: int) -> bool:
    """Tell whether no lepton of some holds nan or inf."""
    zero = np.float32(0.0)
    for i in range(first, last):
        zero += (c.pt[i] * 0 + c.eta[i] * 0) + (c.phi[i] * 0 + c.energy[i] * 0)
    return bool(zero == 0)


@inlined
def count(flags: NDArray[np.uint8], first: int, last: int) -> int:
    """Count the flags of some leptons that are set."""
    number = 0
    for i in range(first, last):
        number += flags[i] != 0
    return number


@inlined
def is_identified(c: Leptons, i: int) -> bool:
    """Tell whether a lepton is identified and isolated as its flavour asks for."""
    return bool((c.type[i] == ELECTRON and c.electron_ok[i] != 0) or (c.type[i] == MUON and c.muon_ok[i] != 0))


@kernel
def gather(n: int, c: Leptons, leptons: NDArray[np.int64], v: Vectors) -> None:
    """Copy the leptons of n candidates, numbered by ``leptons`` (shape (4, n or more), -1 for none), into vectors."""
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
def measure_leptons(
    n: int,
    v: Vectors,
    slots: NDArray[np.int64],
    gev: float,
    paired: bool,  # noqa: FBT001
) -> None:
    """Measure of n candidates what is wanted and what four leptons have, and their regions.

    ``paired`` ones are quadruplets of two pairs: they are ranked by their pairs' masses, and their leptons are numbered
    from the hardest on; else these are in the file's order.
    """
    _momenta(n, v.k, v.p, gev)
    _of_four(n, v.p, v.found[M4L])
    if slots[PT4L] >= 0 or slots[Y4L] >= 0:
        _motion(n, v.p, v.found)
    if paired or slots[M12] >= 0 or slots[M34] >= 0 or slots[M_SFOS] >= 0 or slots[SFOS_PAIRS] >= 0:
        _of_two(n, v.p, v.m)
        _find_sfos(n, v)
        if slots[M_SFOS] >= 0:
            _least(n, v)
        _pair_up(n, v)
    _nearest(n, v, slots)
    if _any(slots, PT1, ETA1 + 4):
        _one_by_one(n, v.k, v.found, gev, paired)
    _flavours(n, v)
    if slots[N_ELECTRONS] >= 0 or slots[N_MUONS] >= 0:
        _count_flavours(n, v)


@inlined
def _any(slots: NDArray[np.int64], first: int, last: int) -> bool:
    """Tell whether one of some variables is wanted."""
    wanted = False
    for variable in range(first, last):
        wanted |= slots[variable] >= 0
    return wanted


@kernel
def store(n: int, found: NDArray[np.float64], slots: NDArray[np.int64], values: NDArray[np.float64], at: int) -> None:
    """Copy of n candidates the variables that are wanted into ``values``, from column ``at`` on."""
    for variable in range(slots.size):
        slot = slots[variable]
        if slot >= 0:
            for i in range(n):
                values[slot, at + i] = found[variable, i]


@kernel
def _momenta(n: int, k: NDArray[np.float32], p: NDArray[np.float64], gev: float) -> None:
    """Turn pt, eta, phi, E into px, py, pz, E in GeV."""
    for j in range(4):
        for i in range(n):
            pt = k[0, j, i] * gev
            sine, cosine = sincos(np.float64(k[2, j, i]))
            p[0, j, i] = pt * cosine
            p[1, j, i] = pt * sine
            p[2, j, i] = pt * sinh(np.float64(k[1, j, i]))
            p[3, j, i] = k[3, j, i] * gev


@inlined
def _mass(m2: float) -> float:
    """Root of a squared mass; negative for a spacelike one, as vector and ROOT have it."""
    return math.copysign(math.sqrt(abs(m2)), m2)


@inlined
def _sum_of_four(p: NDArray[np.float64], i: int) -> tuple[float, float, float, float]:
    """Add up the four-momenta of candidate i: px, py, pz, E in GeV."""
    x = (p[0, 0, i] + p[0, 1, i]) + (p[0, 2, i] + p[0, 3, i])
    y = (p[1, 0, i] + p[1, 1, i]) + (p[1, 2, i] + p[1, 3, i])
    z = (p[2, 0, i] + p[2, 1, i]) + (p[2, 2, i] + p[2, 3, i])
    e = (p[3, 0, i] + p[3, 1, i]) + (p[3, 2, i] + p[3, 3, i])
    return x, y, z, e


@kernel
def _of_four(n: int, p: NDArray[np.float64], m4l: NDArray[np.float64]) -> None:
    """Mass of all four leptons in GeV."""
    for i in range(n):
        x, y, z, e = _sum_of_four(p, i)
        m4l[i] = _mass((e * e - x * x) - (y * y + z * z))


@kernel
def _motion(n: int, p: NDArray[np.float64], found: NDArray[np.float64]) -> None:
    """Transverse momentum of all four leptons in GeV, and their rapidity ½ ln((E + pz)/(E - pz))."""
    for i in range(n):
        x, y, z, e = _sum_of_four(p, i)
        found[PT4L, i] = math.sqrt(x * x + y * y)
        found[Y4L, i] = 0.5 * log((e + z) / (e - z)) if e > abs(z) else math.copysign(np.inf, z)


# Loops write one row or two, and read few: only such loops become vectors, as rows might overlap and compilers look
# whether they do, for some pairs of them and no more.


@kernel
def _of_two(n: int, p: NDArray[np.float64], m: NDArray[np.float64]) -> None:
    """Masses of the six pairs in GeV."""
    for pair, (a, b) in enumerate(PAIRS):
        for i in range(n):
            x = p[0, a, i] + p[0, b, i]
            y = p[1, a, i] + p[1, b, i]
            z = p[2, a, i] + p[2, b, i]
            e = p[3, a, i] + p[3, b, i]
            m[pair, i] = _mass((e * e - x * x) - (y * y + z * z))


@kernel
def _find_sfos(n: int, v: Vectors) -> None:
    """Tell which pairs have the same flavour and opposite charges."""
    for pair, (a, b) in enumerate(PAIRS):
        kind, other, charge, opposite, sfos = v.type[a], v.type[b], v.charge[a], v.charge[b], v.sfos[pair]
        for i in range(n):
            sfos[i] = (kind[i] == other[i]) & (charge[i] == -opposite[i]) & (charge[i] != 0)


@kernel
def _least(n: int, v: Vectors) -> None:
    """Find the smallest mass of any SFOS pair in GeV, infinite for none."""
    least = v.found[M_SFOS]
    for i in range(n):
        least[i] = np.inf
    for pair in range(6):
        m, sfos = v.m[pair], v.sfos[pair]
        for i in range(n):  # a mass that is nan is below any bound
            least[i] = m[i] if (sfos[i] != 0) & (not m[i] >= least[i]) else least[i]


@kernel
def _pair_up(n: int, v: Vectors) -> None:
    """Pair four leptons: m12 of the SFOS pair nearest m_Z whose rest is one too, m34 of that, in GeV; -1 for none.

    Of ``sfos`` it leaves in the first row of each pairing whether both pairs are.
    """
    m12, m34 = v.found[M12], v.found[M34]
    for i in range(n):
        m12[i] = NO_MASS
        m34[i] = NO_MASS
    for pair in range(0, 6, 2):
        one, two, first, second = v.m[pair], v.m[pair + 1], v.sfos[pair], v.sfos[pair + 1]
        for i in range(n):
            first[i] &= second[i]  # of both, as the next loop must read few rows
        for i in range(n):
            near, far = _nearer(one[i], two[i])
            taken = (first[i] != 0) & _is_better(near, m12[i])
            m34[i] = far if taken else m34[i]
            m12[i] = near if taken else m12[i]


@inlined
def _nearer(one: float, two: float) -> tuple[float, float]:
    """Order two masses: that which is nearer to m_Z comes first."""
    swapped = abs(two - M_Z) < abs(one - M_Z)
    return two if swapped else one, one if swapped else two


@inlined
def _is_better(mass: float, best: float) -> bool:
    """Tell whether a mass is nearer to m_Z than the best one so far, if there is one."""
    return bool((best == NO_MASS) | (abs(mass - M_Z) < abs(best - M_Z)))


@kernel
def _nearest(n: int, v: Vectors, slots: NDArray[np.int64]) -> None:
    """Find the smallest ΔR of two leptons of the same flavour, of different ones, of any; infinite for no such two."""
    if slots[DR_MIN] < 0 and slots[DR_SAME] < 0 and slots[DR_OTHER] < 0:
        return
    same, other, r2 = v.found[DR_SAME], v.found[DR_OTHER], v.found[DR_MIN]
    for i in range(n):
        same[i] = np.inf
        other[i] = np.inf
    for a, b in PAIRS:
        eta, its_eta, phi, its_phi = v.k[1, a], v.k[1, b], v.k[2, a], v.k[2, b]
        for i in range(n):  # φ the short way round
            across = np.float64(eta[i]) - np.float64(its_eta[i])
            around = np.float64(phi[i]) - np.float64(its_phi[i])
            around -= 2.0 * np.pi * np.rint(around / (2.0 * np.pi))
            r2[i] = across * across + around * around
        kind, its_kind = v.type[a], v.type[b]
        for i in range(n):
            same[i] = r2[i] if (kind[i] == its_kind[i]) & (r2[i] < same[i]) else same[i]
        for i in range(n):
            other[i] = r2[i] if (kind[i] != its_kind[i]) & (r2[i] < other[i]) else other[i]
    for i in range(n):
        same[i] = math.sqrt(same[i])
    for i in range(n):
        other[i] = math.sqrt(other[i])
    for i in range(n):
        r2[i] = min(same[i], other[i])


@kernel
def _one_by_one(n: int, k: NDArray[np.float32], found: NDArray[np.float64], gev: float, by_pt: bool) -> None:  # noqa: FBT001
    """List pt in GeV and η of the four leptons, in the file's order or hardest first (a network of five exchanges)."""
    for j in range(4):
        for i in range(n):
            found[PT1 + j, i] = k[0, j, i] * gev
            found[ETA1 + j, i] = k[1, j, i]
    if not by_pt:
        return
    for a, b in ((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)):
        for i in range(n):
            one, two = found[PT1 + a, i], found[PT1 + b, i]
            eta, far = found[ETA1 + a, i], found[ETA1 + b, i]
            swapped = two > one
            found[PT1 + a, i] = two if swapped else one
            found[PT1 + b, i] = one if swapped else two
            found[ETA1 + a, i] = far if swapped else eta
            found[ETA1 + b, i] = eta if swapped else far


@kernel
def _flavours(n: int, v: Vectors) -> None:
    """Find the regions, by the sum of the lepton types, and the sum of the charges."""
    for i in range(n):
        types = v.type[0, i] + v.type[1, i] + v.type[2, i] + v.type[3, i]
        its = 0 if types == 4 * ELECTRON else 1 if types == 4 * MUON else 2 if types == 2 * (ELECTRON + MUON) else -1
        v.region[i] = its
        v.found[FLAVOURS, i] = its >= 0
        v.found[CHARGE, i] = v.charge[0, i] + v.charge[1, i] + v.charge[2, i] + v.charge[3, i]


@kernel
def _count_flavours(n: int, v: Vectors) -> None:
    """Count the electrons and the muons of the four."""
    for row, kind in ((N_ELECTRONS, ELECTRON), (N_MUONS, MUON)):
        for i in range(n):
            v.found[row, i] = (
                ((v.type[0, i] == kind) + (v.type[1, i] == kind)) + ((v.type[2, i] == kind) + (v.type[3, i] == kind))
            ) * 1.0
