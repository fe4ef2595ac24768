"""The fused kernel: select, pair, compute masses, weigh and fill in one pass over an event range, without the GIL.

Events go through in blocks that fit the first-level cache: a scalar pass picks the leptons that can matter, a vector
pass turns them into four-momenta, a scalar pass judges the event, and its weight is added exactly (see histogram.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from hzzray.physics.histogram import LIMB_BITS, LIMBS, MAX_WEIGHT, UNIT_BITS, Axis, Histogram
from hzzray.physics.maths import sincos, sinh
from hzzray.physics.selection import CHANNELS, MAX_LEPTONS, Selection

M_Z = 91.1876  # GeV, Particle Data Group

_BLOCK = 128  # events; times MAX_LEPTONS, the scratch stays below 100 kB

# Helpers take arrays one by one, never the tuple: taking an array out of a tuple costs a reference count each time.
kernel = nb.njit(nogil=True, cache=True, error_model="numpy", _nrt=False)

ELECTRON, MUON = 11, 13  # lep_type, from the PDG's numbering
FOUR_ELECTRONS, TWO_OF_EACH, FOUR_MUONS = 44, 48, 52  # four lepton types added up

_FULL = np.int64(2**LIMB_BITS - 1)


class Columns(NamedTuple):
    """A range of events as the kernel reads it. Pt and energy in the file's unit, ``gev`` GeV each.

    ``offsets`` (int64, shape (events + 1,)) cuts the lepton columns into events. Lepton columns (pt, eta, phi, energy
    float32; charge, type int32; matched, electron_ok, muon_ok uint8) have shape (leptons,); ``trigger`` (uint8) and the
    columns of ``factors`` (float64, shape (factors, events)) one value an event. Columns that a selection doesn't use
    have length 0. ``divisor`` (float64) has shape (events,), or (0,) for none.
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
    factors: NDArray[np.float64]
    divisor: NDArray[np.float64]


class Cuts(NamedTuple):
    """A selection as numbers. ``pt_min``, ``electron_pt_min`` and ``muon_pt_min`` in the file's unit, the rest in GeV."""

    best: bool
    trigger: bool
    matched: bool
    identified: bool
    absolute: bool
    n_pt: int
    pt1: float
    pt2: float
    pt3: float
    pt4: float
    electron_pt_min: float
    muon_pt_min: float
    z1_low: float
    z1_high: float
    z2_high: float
    z2_min_low: float
    z2_min_high: float
    z2_from_low: float
    z2_from_high: float
    dr2_same: float
    dr2_other: float
    sfos_m2_min: float
    gev: float
    norm: float


def cuts(selection: Selection, gev: float, norm: float) -> Cuts:
    """Lay out a selection for the kernel; ``gev`` is GeV a file unit, ``norm`` the weight common to all events."""
    pt = [threshold / gev for threshold in selection.pt_min] + [0.0] * (4 - len(selection.pt_min))
    return Cuts(
        selection.leptons == "best",
        selection.trigger,
        selection.matched,
        selection.identified,
        selection.absolute_weights,
        len(selection.pt_min),
        *pt,
        selection.electron_pt_min / gev,
        selection.muon_pt_min / gev,
        *map(float, selection.z1_window),
        float(selection.z2_max),
        *map(float, selection.z2_min),
        *map(float, selection.z2_min_from),
        float(selection.dr_same) ** 2,
        float(selection.dr_other) ** 2,
        float(selection.sfos_mass_min) ** 2,
        float(gev),
        float(norm),
    )


@kernel
def add_exact(sums: NDArray[np.int64], at: int, x: float) -> None:
    """Add a finite double to row ``at`` of exact sums, shape (n, LIMBS): its mantissa, cut at limb borders.
    Carries are left open.

    Bits below the least one (2**-128) are rounded to nearest, ties to even: once for each value, in whatever order.
    """
    bits = np.float64(x).view(np.int64)
    exponent = (bits >> 52) & 0x7FF
    mantissa = bits & 0xFFFFFFFFFFFFF
    if exponent > 0:
        mantissa |= 1 << 52
    else:
        exponent = 1
    place = exponent - 1075 + UNIT_BITS
    if place < 0:
        if place < -54:
            return
        cut = mantissa & ((np.int64(1) << -place) - 1)
        half = np.int64(1) << (-place - 1)
        mantissa >>= -place
        if cut > half or (cut == half and mantissa & 1):
            mantissa += 1
        place = 0
    limb = place >> 5
    shift = place & 31
    low = (mantissa & _FULL) << shift
    high = (mantissa >> LIMB_BITS) << shift
    sign = 1 if bits >= 0 else -1
    sums[at, limb] += sign * (low & _FULL)
    sums[at, limb + 1] += sign * (((low >> LIMB_BITS) & _FULL) + (high & _FULL))
    if limb + 2 < LIMBS:
        sums[at, limb + 2] += sign * (high >> LIMB_BITS)


@kernel
def _bin(mass: float, edges: NDArray[np.float64]) -> int:
    """Index with flow bins: 0 below, bins + 1 at or above the last edge."""
    bins = edges.size - 1
    if mass < edges[0]:
        return 0
    if not mass < edges[bins]:
        return bins + 1
    i = min(int((mass - edges[0]) / (edges[bins] - edges[0]) * bins), bins - 1)
    if mass < edges[i]:
        i -= 1
    elif mass >= edges[i + 1]:
        i += 1
    return i + 1


@kernel
def _mass(m2: float) -> float:
    """Root of a squared mass; negative for a spacelike one, as vector and ROOT have it."""
    return math.sqrt(m2) if m2 >= 0.0 else -math.sqrt(-m2)


@kernel
def _weigh(
    start: int,
    size: int,
    factors: NDArray[np.float64],
    divisor: NDArray[np.float64],
    cut: Cuts,
    weights: NDArray[np.float64],
) -> None:
    """Weights of a block of events: the norm times the factors, over the divisor if there is one."""
    weights[:size] = cut.norm
    for f in range(factors.shape[0]):
        for e in range(size):
            x = factors[f, start + e]
            weights[e] *= abs(x) if cut.absolute else x
    if divisor.size:
        for e in range(size):
            x = divisor[start + e]
            weights[e] /= abs(x) if cut.absolute else x


@kernel
def _finite(
    first: int,
    last: int,
    pt: NDArray[np.float32],
    eta: NDArray[np.float32],
    phi: NDArray[np.float32],
    energy: NDArray[np.float32],
) -> bool:
    zero = np.float32(0.0)
    for i in range(first, last):
        zero += (pt[i] * 0 + eta[i] * 0) + (phi[i] * 0 + energy[i] * 0)
    return bool(zero == 0)


@kernel
def _hard_enough(pt: NDArray[np.float32], first: int, cut: Cuts) -> bool:
    """Compare the first four leptons with the thresholds, in the file's order."""
    return (
        (cut.n_pt < 1 or pt[first] > cut.pt1)
        and (cut.n_pt < 2 or pt[first + 1] > cut.pt2)
        and (cut.n_pt < 3 or pt[first + 2] > cut.pt3)
        and (cut.n_pt < 4 or pt[first + 3] > cut.pt4)
    )


@kernel
def _any(flags: NDArray[np.uint8], first: int, last: int) -> bool:
    for i in range(first, last):
        if flags[i]:
            return True
    return False


@kernel
def _stopped_early(
    event: int,
    offsets: NDArray[np.int64],
    pt: NDArray[np.float32],
    charge: NDArray[np.int32],
    kind: NDArray[np.int32],
    trigger: NDArray[np.uint8],
    matched: NDArray[np.uint8],
    identified: int,
    cut: Cuts,
) -> int:
    """Find the row that stops an event for what is known without masses; -1 for none. It has four leptons."""
    first = offsets[event]
    row = 2
    if cut.trigger:
        if not trigger[event]:
            return row
        row += 1
    if cut.matched:
        if not _any(matched, first, offsets[event + 1]):
            return row
        row += 1
    if cut.n_pt and not cut.best:
        if not _hard_enough(pt, first, cut):
            return row
        row += 1
    if cut.identified:
        if identified < 4:
            return row
        row += 1
    if not cut.best:
        types = kind[first] + kind[first + 1] + kind[first + 2] + kind[first + 3]
        if types != FOUR_ELECTRONS and types != FOUR_MUONS and types != TWO_OF_EACH:  # noqa: PLR1714 (sets are slow)
            return row
        if charge[first] + charge[first + 1] + charge[first + 2] + charge[first + 3] != 0:
            return row + 1
    return -1


@kernel
def _m2(p: NDArray[np.float64], i: int, j: int) -> float:
    """Squared mass of two leptons; p holds px, py, pz, E in its rows."""
    x = p[0, i] + p[0, j]
    y = p[1, i] + p[1, j]
    z = p[2, i] + p[2, j]
    e = p[3, i] + p[3, j]
    return (e * e - x * x) - (y * y + z * z)


@kernel
def _m2_of_four(p: NDArray[np.float64], i: int, j: int, k: int, m: int) -> float:
    """Squared mass of four leptons; p holds px, py, pz, E in its rows."""
    x = (p[0, i] + p[0, j]) + (p[0, k] + p[0, m])
    y = (p[1, i] + p[1, j]) + (p[1, k] + p[1, m])
    z = (p[2, i] + p[2, j]) + (p[2, k] + p[2, m])
    e = (p[3, i] + p[3, j]) + (p[3, k] + p[3, m])
    return (e * e - x * x) - (y * y + z * z)


@kernel
def _sfos(kind: NDArray[np.int32], charge: NDArray[np.int32], a: int, b: int) -> bool:
    return bool(kind[a] == kind[b] and charge[a] == -charge[b] and charge[a] != 0)


@kernel
def _judge(
    q: tuple[int, int, int, int],
    k: NDArray[np.float32],
    kind: NDArray[np.int32],
    charge: NDArray[np.int32],
    p: NDArray[np.float64],
    cut: Cuts,
) -> tuple[int, float, float, float]:
    """Judge one quadruplet; returns (cuts passed, -1 for no two pairs; |m12 - mZ|; |m34 - mZ|; m4l), in GeV.

    ``k`` holds pt, eta and phi of the leptons as the file has them in its rows, ``p`` their px, py, pz, E in GeV.
    """
    q0, q1, q2, q3 = q
    found = False
    m12 = 0.0
    m34 = 0.0
    for a, b, d, e in ((q0, q1, q2, q3), (q0, q2, q1, q3), (q0, q3, q1, q2)):
        if _sfos(kind, charge, a, b) and _sfos(kind, charge, d, e):
            one = _mass(_m2(p, a, b))
            two = _mass(_m2(p, d, e))
            if abs(two - M_Z) < abs(one - M_Z):
                one, two = two, one
            if not found or abs(one - M_Z) < abs(m12 - M_Z):
                m12 = one
                m34 = two
            found = True
    if not found:
        return -1, 0.0, 0.0, 0.0
    m4l = _mass(_m2_of_four(p, q0, q1, q2, q3))
    far = abs(m12 - M_Z)
    near = abs(m34 - M_Z)
    passed = 0
    if cut.n_pt:
        above1 = above2 = above3 = above4 = 0
        for a in q:
            above1 += k[0, a] > cut.pt1
            above2 += k[0, a] > cut.pt2
            above3 += k[0, a] > cut.pt3
            above4 += k[0, a] > cut.pt4
        good = above1 >= 1
        good &= cut.n_pt < 2 or above2 >= 2
        good &= cut.n_pt < 3 or above3 >= 3
        good &= cut.n_pt < 4 or above4 >= 4
        if not good:
            return passed, far, near, m4l
        passed += 1
    pairs = ((q0, q1), (q0, q2), (q0, q3), (q1, q2), (q1, q3), (q2, q3))
    for a, b in pairs:
        eta = np.float64(k[1, a]) - np.float64(k[1, b])
        phi = np.float64(k[2, a]) - np.float64(k[2, b])
        phi -= 2.0 * np.pi * np.rint(phi / (2.0 * np.pi))
        if not eta * eta + phi * phi > (cut.dr2_same if kind[a] == kind[b] else cut.dr2_other):
            return passed, far, near, m4l
    passed += 1
    for a, b in pairs:
        if _sfos(kind, charge, a, b) and _m2(p, a, b) < cut.sfos_m2_min:
            return passed, far, near, m4l
    passed += 1
    if not cut.z1_low < m12 < cut.z1_high:
        return passed, far, near, m4l
    passed += 1
    rise = min(max((m4l - cut.z2_from_low) / (cut.z2_from_high - cut.z2_from_low), 0.0), 1.0)
    if not cut.z2_min_low + rise * (cut.z2_min_high - cut.z2_min_low) < m34 < cut.z2_high:
        return passed, far, near, m4l
    return passed + 1, far, near, m4l


@kernel
def _best(
    first: int,
    last: int,
    k: NDArray[np.float32],
    kind: NDArray[np.int32],
    charge: NDArray[np.int32],
    p: NDArray[np.float64],
    cut: Cuts,
) -> tuple[int, float, int]:
    """Find the best quadruplet of some leptons; returns (cuts passed or -1, m4l in GeV, sum of the four types).

    The best one passes most cuts; among equals m12 is nearest m_Z, then m34.
    """
    passed = -1
    far = 0.0
    near = 0.0
    mass = 0.0
    types = 0
    for a in range(first, last - 3):
        for b in range(a + 1, last - 2):
            for d in range(b + 1, last - 1):
                for e in range(d + 1, last):
                    n, one, two, m4l = _judge((a, b, d, e), k, kind, charge, p, cut)
                    if n >= 0 and (n > passed or (n == passed and (one < far or (one == far and two < near)))):
                        passed, far, near, mass = n, one, two, m4l
                        types = kind[a] + kind[b] + kind[d] + kind[e]
    return passed, mass, types


@kernel
def _momenta(n: int, k: NDArray[np.float32], p: NDArray[np.float64], gev: float) -> None:
    """Turn pt, eta, phi, E (rows of k) of n leptons into px, py, pz, E in GeV (rows of p)."""
    for i in range(n):
        pt = k[0, i] * gev
        sine, cosine = sincos(np.float64(k[2, i]))
        p[0, i] = pt * cosine
        p[1, i] = pt * sine
        p[2, i] = pt * sinh(np.float64(k[1, i]))
        p[3, i] = k[3, i] * gev


@kernel
def _pick(
    start: int,
    size: int,
    offsets: NDArray[np.int64],
    pt: NDArray[np.float32],
    eta: NDArray[np.float32],
    phi: NDArray[np.float32],
    energy: NDArray[np.float32],
    charge: NDArray[np.int32],
    kind: NDArray[np.int32],
    trigger: NDArray[np.uint8],
    matched: NDArray[np.uint8],
    electron_ok: NDArray[np.uint8],
    muon_ok: NDArray[np.uint8],
    cut: Cuts,
    weights: NDArray[np.float64],
    k: NDArray[np.float32],
    types: NDArray[np.int32],
    charges: NDArray[np.int32],
    at: NDArray[np.int64],
    rows: NDArray[np.int64],
    invalid: NDArray[np.int64],
) -> None:
    """Copy a block's leptons in play to the scratch; settle the events that stop without masses.

    Event e of the block gets the scratch's leptons ``at[e]`` to ``at[e + 1]``, and the row where it stopped or -1.
    """
    for e in range(size):
        event = start + e
        first = offsets[event]
        last = offsets[event + 1] if cut.best else min(offsets[event + 1], first + 4)
        at[e + 1] = at[e]
        rows[e] = 1
        finite = _finite(first, last, pt, eta, phi, energy)
        sound = abs(weights[e]) < MAX_WEIGHT
        if not finite:
            invalid[0] += 1
        if not sound:
            invalid[1] += 1
            weights[e] = 0.0
        if not finite or not sound or last - first < 4:
            continue
        n = at[e]
        accepted = 0
        identified = 0
        for i in range(first, last):
            if cut.best:
                threshold = cut.electron_pt_min if kind[i] == ELECTRON else cut.muon_pt_min
                if (kind[i] != ELECTRON and kind[i] != MUON) or not pt[i] > threshold:
                    continue
            accepted += 1
            if cut.identified:
                if (kind[i] == ELECTRON and electron_ok[i]) or (kind[i] == MUON and muon_ok[i]):
                    identified += 1
                elif cut.best:
                    continue
            if n - at[e] < MAX_LEPTONS:
                k[0, n] = pt[i]
                k[1, n] = eta[i]
                k[2, n] = phi[i]
                k[3, n] = energy[i]
                types[n] = kind[i]
                charges[n] = charge[i]
                n += 1
        if accepted >= 4:
            rows[e] = _stopped_early(event, offsets, pt, charge, kind, trigger, matched, identified, cut)
            if rows[e] < 0:
                at[e + 1] = n


@kernel
def _settle(
    size: int,
    k: NDArray[np.float32],
    types: NDArray[np.int32],
    charges: NDArray[np.int32],
    p: NDArray[np.float64],
    at: NDArray[np.int64],
    rows: NDArray[np.int64],
    weights: NDArray[np.float64],
    cut: Cuts,
    edges: NDArray[np.float64],
    counts: NDArray[np.int64],
    sumw: NDArray[np.int64],
    sumw2: NDArray[np.int64],
    stopped: NDArray[np.int64],
    stopped_sumw: NDArray[np.int64],
    invalid: NDArray[np.int64],
) -> None:
    """Judge a block's events by their masses and add them up: in cells of (channel, bin), or rows of the cutflow."""
    pairs_row = stopped.size - 5 - (1 if cut.n_pt else 0)
    for e in range(size):
        row = rows[e]
        mass = 0.0
        flavour = 0
        if row < 0:
            i = at[e]
            if cut.best:
                passed, mass, flavour = _best(i, at[e + 1], k, types, charges, p, cut)
                if pairs_row + 1 + passed < stopped.size:
                    row = pairs_row + 1 + passed
            else:
                mass = _mass(_m2_of_four(p, i, i + 1, i + 2, i + 3))
                flavour = types[i] + types[i + 1] + types[i + 2] + types[i + 3]
            if row < 0 and not np.isfinite(mass):
                invalid[0] += 1
                row = 1
        if row >= 0:
            stopped[row] += 1
            add_exact(stopped_sumw, row, weights[e])
        else:
            channel = 0 if flavour == FOUR_ELECTRONS else 1 if flavour == FOUR_MUONS else 2
            cell = channel * (edges.size + 1) + _bin(mass, edges)
            counts[cell] += 1
            add_exact(sumw, cell, weights[e])
            add_exact(sumw2, cell, weights[e] * weights[e])


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _run(
    offsets: NDArray[np.int64],
    pt: NDArray[np.float32],
    eta: NDArray[np.float32],
    phi: NDArray[np.float32],
    energy: NDArray[np.float32],
    charge: NDArray[np.int32],
    kind: NDArray[np.int32],
    trigger: NDArray[np.uint8],
    matched: NDArray[np.uint8],
    electron_ok: NDArray[np.uint8],
    muon_ok: NDArray[np.uint8],
    factors: NDArray[np.float64],
    divisor: NDArray[np.float64],
    cut: Cuts,
    edges: NDArray[np.float64],
    counts: NDArray[np.int64],
    sumw: NDArray[np.int64],
    sumw2: NDArray[np.int64],
    stopped: NDArray[np.int64],
    stopped_sumw: NDArray[np.int64],
    invalid: NDArray[np.int64],
) -> None:
    """Take all events through the steps, block by block; the scratch holds pt, eta, phi, E and four-momenta."""
    k = np.empty((4, _BLOCK * MAX_LEPTONS), np.float32)
    p = np.empty((4, _BLOCK * MAX_LEPTONS), np.float64)
    types = np.empty(_BLOCK * MAX_LEPTONS, np.int32)
    charges = np.empty(_BLOCK * MAX_LEPTONS, np.int32)
    at = np.zeros(_BLOCK + 1, np.int64)
    rows = np.empty(_BLOCK, np.int64)
    weights = np.empty(_BLOCK, np.float64)
    for start in range(0, offsets.size - 1, _BLOCK):
        size = min(_BLOCK, offsets.size - 1 - start)
        _weigh(start, size, factors, divisor, cut, weights)
        _pick(
            start, size, offsets, pt, eta, phi, energy, charge, kind, trigger, matched, electron_ok, muon_ok, cut,
            weights, k, types, charges, at, rows, invalid,
        )  # fmt: skip
        _momenta(at[size], k, p, cut.gev)
        _settle(
            size, k, types, charges, p, at, rows, weights, cut, edges,
            counts, sumw, sumw2, stopped, stopped_sumw, invalid,
        )  # fmt: skip


def fill(columns: Columns, cut: Cuts, axis: Axis, n_cuts: int) -> Histogram:
    """Fill a histogram with a range of events; ``n_cuts`` is ``len(selection.cuts)``.

    The masses are m² = (ΣE)² - (Σp)² with px = pt cos φ, py = pt sin φ, pz = pt sinh η and E as the file has it.
    """
    h = Histogram.zeros(len(CHANNELS), axis.bins, n_cuts)
    cells = h.sumw.limbs.reshape(-1, LIMBS), h.sumw2.limbs.reshape(-1, LIMBS)
    _run(*columns, cut, axis.edges, h.counts.reshape(-1), *cells, h.stopped, h.stopped_sumw.limbs, h.invalid)
    entries = len(columns.offsets) - 1
    return Histogram(
        h.counts, h.sumw.settled(), h.sumw2.settled(), h.stopped, h.stopped_sumw.settled(), h.invalid, entries
    )


def warm_up() -> None:
    """Compile the kernel, or load it from numba's cache, by running it over no events."""
    f4, i4, u1 = np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.uint8)
    offsets, factors, divisor = np.zeros(1, np.int64), np.empty((0, 0)), np.empty(0)
    nothing = Columns(offsets, f4, f4, f4, f4, i4, i4, u1, u1, u1, u1, factors, divisor)
    selection = Selection("nothing")
    fill(nothing, cuts(selection, 1.0, 1.0), Axis(0.0, 1.0, 1), len(selection.cuts))
