"""The fused kernel: select, pair, compute masses, weigh and fill in one pass over an event range, without the GIL.

Events go through in blocks that fit the first-level cache: a scalar pass picks the leptons that can matter, a vector
pass turns them into four-momenta, a scalar pass judges the event, and its weight is added exactly (see histogram.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.histogram import LIMB_BITS, LIMBS, MAX_WEIGHT, UNIT_BITS, Axis, Histogram
from hzzray.physics.jit import entry, inlined, kernel, without_extensions
from hzzray.physics.maths import sincos, sinh
from hzzray.physics.selection import CHANNELS, MAX_LEPTONS, Selection

M_Z = 91.1876  # GeV, Particle Data Group

_BLOCK = 128  # events; times MAX_LEPTONS, the scratch stays below 100 kB

ELECTRON, MUON = 11, 13  # lep_type, from the PDG's numbering
FOUR_ELECTRONS, TWO_OF_EACH, FOUR_MUONS = 44, 48, 52  # four lepton types added up

_FULL = np.int64(2**LIMB_BITS - 1)


class WeightError(ValueError):
    """Events that weigh more than exact sums can hold: they are normalised to something else than they should be."""


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
    """A selection as numbers: ``pt1`` to ``pt4`` and the leptons' ``…_pt_min`` in the file's unit, the rest in GeV."""

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
    pt1, pt2, pt3, pt4 = [threshold / gev for threshold in selection.pt_min] + [0.0] * (4 - len(selection.pt_min))
    z1_low, z1_high = selection.z1_window
    z2_low, z2_high = selection.z2_min
    from_low, from_high = selection.z2_min_from
    return Cuts(
        selection.leptons == "best",
        selection.trigger,
        selection.matched,
        selection.identified or selection.isolated,
        selection.absolute_weights,
        len(selection.pt_min),
        pt1,
        pt2,
        pt3,
        pt4,
        selection.electron_pt_min / gev,
        selection.muon_pt_min / gev,
        float(z1_low),
        float(z1_high),
        float(selection.z2_max),
        float(z2_low),
        float(z2_high),
        float(from_low),
        float(from_high),
        float(selection.dr_same) ** 2,
        float(selection.dr_other) ** 2,
        float(selection.sfos_mass_min) ** 2,
        float(gev),
        float(norm),
    )


@kernel
def add_exact(sums: NDArray[np.int64], at: int, x: float) -> None:
    """Add a finite double to row ``at`` of exact sums, shape (n, LIMBS): its mantissa, cut at limb borders.

    Carries are left open. Bits below the least one (2**-128) are rounded to nearest, ties to even: once for each
    value, whatever the order.
    """
    bits = np.float64(x).view(np.int64)
    exponent = int((bits >> 52) & 0x7FF)
    mantissa = int(bits & 0xFFFFFFFFFFFFF)
    if exponent > 0:
        mantissa |= 1 << 52
    else:
        exponent = 1
    place = exponent - 1075 + UNIT_BITS
    if place < 0:
        if place < -54:
            return
        cut = mantissa & ((1 << -place) - 1)
        half = 1 << (-place - 1)
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


@inlined
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


@inlined
def _mass(m2: float) -> float:
    """Root of a squared mass; negative for a spacelike one, as vector and ROOT have it."""
    return math.sqrt(m2) if m2 >= 0.0 else -math.sqrt(-m2)


class _Scratch(NamedTuple):
    """What a block of events needs between the steps.

    Event e has the weight ``weights[e]`` (float64), of the leptons in play those ``at[e]`` to ``at[e + 1]`` (int64)
    and in ``rows[e]`` (int64) the row of the cutflow that stopped it, or -1. ``chosen`` (int64) numbers the leptons in
    play; ``k`` (float32) has their pt, eta, phi, E as in the file in its rows, ``p`` (float64) px, py, pz, E in GeV;
    ``type`` and ``charge`` (int32) are theirs.
    """

    weights: NDArray[np.float64]
    at: NDArray[np.int64]
    rows: NDArray[np.int64]
    chosen: NDArray[np.int64]
    k: NDArray[np.float32]
    p: NDArray[np.float64]
    type: NDArray[np.int32]
    charge: NDArray[np.int32]


class _Sums(NamedTuple):
    """The accumulators (see Histogram), flat: cells of (channel, bin), or rows of the cutflow.

    ``invalid`` counts weights that are too large too, behind the others.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    sumw: NDArray[np.int64]
    sumw2: NDArray[np.int64]
    stopped: NDArray[np.int64]
    stopped_sumw: NDArray[np.int64]
    invalid: NDArray[np.int64]


@kernel
def _weigh(start: int, size: int, c: Columns, cut: Cuts, s: _Scratch) -> None:
    """Weights of a block of events: the norm times the factors, over the divisor if there is one."""
    s.weights[:size] = cut.norm
    for f in range(c.factors.shape[0]):
        for e in range(size):
            x = c.factors[f, start + e]
            s.weights[e] *= abs(x) if cut.absolute else x
    if c.divisor.size:
        for e in range(size):
            x = c.divisor[start + e]
            s.weights[e] /= abs(x) if cut.absolute else x


@inlined
def _finite(c: Columns, first: int, last: int) -> bool:
    zero = np.float32(0.0)
    for i in range(first, last):
        zero += (c.pt[i] * 0 + c.eta[i] * 0) + (c.phi[i] * 0 + c.energy[i] * 0)
    return bool(zero == 0)


@inlined
def _hard_enough(c: Columns, first: int, cut: Cuts) -> bool:
    """Compare the first four leptons with the thresholds, in the file's order."""
    return (
        (cut.n_pt < 1 or c.pt[first] > cut.pt1)
        and (cut.n_pt < 2 or c.pt[first + 1] > cut.pt2)
        and (cut.n_pt < 3 or c.pt[first + 2] > cut.pt3)
        and (cut.n_pt < 4 or c.pt[first + 3] > cut.pt4)
    )


@inlined
def _any(flags: NDArray[np.uint8], first: int, last: int) -> bool:
    found = False
    for i in range(first, last):
        found |= flags[i] != 0
    return found


@inlined
def _stopped_early(c: Columns, event: int, identified: int, cut: Cuts) -> int:  # noqa: PLR0911 (each cut ends it)
    """Find the row that stops an event for what is known without masses; -1 for none. It has four leptons."""
    first = c.offsets[event]
    row = 2
    if cut.trigger:
        if not c.trigger[event]:
            return row
        row += 1
    if cut.matched:
        if not _any(c.matched, first, c.offsets[event + 1]):
            return row
        row += 1
    if cut.n_pt and not cut.best:
        if not _hard_enough(c, first, cut):
            return row
        row += 1
    if cut.identified:
        if identified < 4:
            return row
        row += 1
    if not cut.best:
        types = c.type[first] + c.type[first + 1] + c.type[first + 2] + c.type[first + 3]
        if types != FOUR_ELECTRONS and types != FOUR_MUONS and types != TWO_OF_EACH:  # noqa: PLR1714 (sets are slow)
            return row
        if c.charge[first] + c.charge[first + 1] + c.charge[first + 2] + c.charge[first + 3] != 0:
            return row + 1
    return -1


@inlined
def _look_at(c: Columns, i: int, cut: Cuts) -> tuple[bool, bool]:
    """Tell whether a lepton is in acceptance, and whether it is identified and isolated too, as far as is asked for."""
    electron = c.type[i] == ELECTRON
    muon = c.type[i] == MUON
    accepted = True
    if cut.best:
        accepted = (electron and c.pt[i] > cut.electron_pt_min) or (muon and c.pt[i] > cut.muon_pt_min)
    if not cut.identified:
        return accepted, accepted
    return accepted, accepted and ((electron and c.electron_ok[i] != 0) or (muon and c.muon_ok[i] != 0))


@inlined
def _too_large(c: Columns, event: int) -> bool:
    """Tell a weight that is too large from one that nan, inf or a division by 0 has spoilt."""
    finite = c.divisor.size == 0 or (np.isfinite(c.divisor[event]) and c.divisor[event] != 0.0)
    for f in range(c.factors.shape[0]):
        finite &= np.isfinite(c.factors[f, event])
    return bool(finite)


@kernel
def _pick(start: int, size: int, c: Columns, cut: Cuts, s: _Scratch, invalid: NDArray[np.int64]) -> None:
    """Copy a block's leptons in play to the scratch; settle the events that stop without masses."""
    choosy = cut.best or cut.identified
    for e in range(size):
        event = start + e
        first = c.offsets[event]
        last = c.offsets[event + 1] if cut.best else min(c.offsets[event + 1], first + 4)
        s.at[e + 1] = s.at[e]
        s.rows[e] = 1
        finite = _finite(c, first, last)
        sound = abs(s.weights[e]) < MAX_WEIGHT
        if not finite:
            invalid[0] += 1
        if not sound:
            invalid[2 if _too_large(c, event) else 1] += 1
            s.weights[e] = 0.0
        if not finite or not sound or last - first < 4:
            continue
        n = s.at[e]
        accepted = 4
        identified = 4
        if choosy:
            accepted = 0
            identified = 0
            for i in range(first, last):
                in_play, good = _look_at(c, i, cut)
                accepted += in_play
                identified += good
                if in_play and (good or not cut.best) and n - s.at[e] < MAX_LEPTONS:
                    s.chosen[n] = i
                    n += 1
        else:
            for i in range(4):
                s.chosen[n + i] = first + i
            n += 4
        if accepted >= 4:
            s.rows[e] = _stopped_early(c, event, identified, cut)
            if s.rows[e] < 0:
                s.at[e + 1] = n
    for i in range(s.at[size]):
        lepton = s.chosen[i]
        s.k[0, i] = c.pt[lepton]
        s.k[1, i] = c.eta[lepton]
        s.k[2, i] = c.phi[lepton]
        s.k[3, i] = c.energy[lepton]
        s.type[i] = c.type[lepton]
        s.charge[i] = c.charge[lepton]


@kernel
def _momenta(n: int, k: NDArray[np.float32], p: NDArray[np.float64], gev: float) -> None:
    """Turn pt, eta, phi, E of n leptons into px, py, pz, E in GeV; arrays of its own, so that it vectorises."""
    for i in range(n):
        pt = k[0, i] * gev
        sine, cosine = sincos(np.float64(k[2, i]))
        p[0, i] = pt * cosine
        p[1, i] = pt * sine
        p[2, i] = pt * sinh(np.float64(k[1, i]))
        p[3, i] = k[3, i] * gev


@kernel
def _m2(p: NDArray[np.float64], i: int, j: int) -> float:
    """Squared mass of two leptons in GeV²."""
    x = p[0, i] + p[0, j]
    y = p[1, i] + p[1, j]
    z = p[2, i] + p[2, j]
    e = p[3, i] + p[3, j]
    return float((e * e - x * x) - (y * y + z * z))


@kernel
def _m2_of_four(p: NDArray[np.float64], i: int, j: int, k: int, m: int) -> float:
    """Squared mass of four leptons in GeV²."""
    x = (p[0, i] + p[0, j]) + (p[0, k] + p[0, m])
    y = (p[1, i] + p[1, j]) + (p[1, k] + p[1, m])
    z = (p[2, i] + p[2, j]) + (p[2, k] + p[2, m])
    e = (p[3, i] + p[3, j]) + (p[3, k] + p[3, m])
    return float((e * e - x * x) - (y * y + z * z))


@inlined
def _sfos(s: _Scratch, a: int, b: int) -> bool:
    return bool(s.type[a] == s.type[b] and s.charge[a] == -s.charge[b] and s.charge[a] != 0)


@inlined
def _pair(q: tuple[int, int, int, int], s: _Scratch) -> tuple[bool, float, float]:
    """Pair four leptons; returns (whether two SFOS pairs are there, m12 of the pair nearest m_Z, m34 of the other)."""
    q0, q1, q2, q3 = q
    found = False
    m12 = 0.0
    m34 = 0.0
    for a, b, d, e in ((q0, q1, q2, q3), (q0, q2, q1, q3), (q0, q3, q1, q2)):
        if _sfos(s, a, b) and _sfos(s, d, e):
            one = _mass(_m2(s.p, a, b))
            two = _mass(_m2(s.p, d, e))
            if abs(two - M_Z) < abs(one - M_Z):
                one, two = two, one
            if not found or abs(one - M_Z) < abs(m12 - M_Z):
                m12 = one
                m34 = two
            found = True
    return found, m12, m34


@inlined
def _hard_four(q: tuple[int, int, int, int], s: _Scratch, cut: Cuts) -> bool:
    """Compare four leptons, hardest first, with the thresholds: one above the first, two above the second."""
    above1 = above2 = above3 = above4 = 0
    for a in q:
        above1 += s.k[0, a] > cut.pt1
        above2 += s.k[0, a] > cut.pt2
        above3 += s.k[0, a] > cut.pt3
        above4 += s.k[0, a] > cut.pt4
    return (
        (cut.n_pt < 1 or above1 >= 1)
        and (cut.n_pt < 2 or above2 >= 2)
        and (cut.n_pt < 3 or above3 >= 3)
        and (cut.n_pt < 4 or above4 >= 4)
    )


@inlined
def _far_apart(s: _Scratch, a: int, b: int, cut: Cuts) -> bool:
    eta = np.float64(s.k[1, a]) - np.float64(s.k[1, b])
    phi = np.float64(s.k[2, a]) - np.float64(s.k[2, b])
    phi -= 2.0 * np.pi * np.rint(phi / (2.0 * np.pi))
    return bool(eta * eta + phi * phi > (cut.dr2_same if s.type[a] == s.type[b] else cut.dr2_other))


@inlined
def _judge(q: tuple[int, int, int, int], s: _Scratch, cut: Cuts) -> tuple[int, float, float, float]:
    """Judge one quadruplet; returns (cuts passed, -1 for no two pairs; |m12 - mZ|; |m34 - mZ|; m4l), in GeV."""
    q0, q1, q2, q3 = q
    paired, m12, m34 = _pair(q, s)
    if not paired:
        return -1, 0.0, 0.0, 0.0
    m4l = _mass(_m2_of_four(s.p, q0, q1, q2, q3))
    apart = True
    heavy = True
    for a, b in ((q0, q1), (q0, q2), (q0, q3), (q1, q2), (q1, q3), (q2, q3)):
        apart &= _far_apart(s, a, b, cut)
        heavy &= not _sfos(s, a, b) or _m2(s.p, a, b) >= cut.sfos_m2_min
    rise = min(max((m4l - cut.z2_from_low) / (cut.z2_from_high - cut.z2_from_low), 0.0), 1.0)
    z2_low = cut.z2_min_low + rise * (cut.z2_min_high - cut.z2_min_low)
    passed = 0
    if _hard_four(q, s, cut):
        passed += 1 if cut.n_pt else 0
        if apart:
            passed += 1
            if heavy:
                passed += 1
                if cut.z1_low < m12 < cut.z1_high:
                    passed += 1
                    if z2_low < m34 < cut.z2_high:
                        passed += 1
    return passed, abs(m12 - M_Z), abs(m34 - M_Z), m4l


@inlined
def _best(first: int, last: int, s: _Scratch, cut: Cuts) -> tuple[int, float, int]:
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
                    n, one, two, m4l = _judge((a, b, d, e), s, cut)
                    if n >= 0 and (n > passed or (n == passed and (one < far or (one == far and two < near)))):
                        passed, far, near, mass = n, one, two, m4l
                        types = s.type[a] + s.type[b] + s.type[d] + s.type[e]
    return passed, mass, types


@kernel
def _settle(size: int, s: _Scratch, cut: Cuts, t: _Sums) -> None:
    """Judge a block's events by their masses and add them up."""
    pairs_row = t.stopped.size - 5 - (1 if cut.n_pt else 0)
    for e in range(size):
        row = s.rows[e]
        mass = 0.0
        flavour = 0
        if row < 0:
            i = s.at[e]
            if cut.best:
                passed, mass, flavour = _best(i, s.at[e + 1], s, cut)
                if pairs_row + 1 + passed < t.stopped.size:
                    row = pairs_row + 1 + passed
            else:
                mass = _mass(_m2_of_four(s.p, i, i + 1, i + 2, i + 3))
                flavour = s.type[i] + s.type[i + 1] + s.type[i + 2] + s.type[i + 3]
            if row < 0 and not np.isfinite(mass):
                t.invalid[0] += 1
                row = 1
        if row >= 0:
            t.stopped[row] += 1
            add_exact(t.stopped_sumw, row, s.weights[e])
        else:
            channel = 0 if flavour == FOUR_ELECTRONS else 1 if flavour == FOUR_MUONS else 2
            cell = channel * (t.edges.size + 1) + _bin(mass, t.edges)
            t.counts[cell] += 1
            add_exact(t.sumw, cell, s.weights[e])
            add_exact(t.sumw2, cell, s.weights[e] * s.weights[e])


@entry
def _run(c: Columns, cut: Cuts, t: _Sums) -> None:
    """Take all events through the steps, block by block."""
    leptons = _BLOCK * MAX_LEPTONS
    s = _Scratch(
        np.empty(_BLOCK, np.float64),
        np.zeros(_BLOCK + 1, np.int64),
        np.empty(_BLOCK, np.int64),
        np.empty(leptons, np.int64),
        np.empty((4, leptons), np.float32),
        np.empty((4, leptons), np.float64),
        np.empty(leptons, np.int32),
        np.empty(leptons, np.int32),
    )
    for start in range(0, c.offsets.size - 1, _BLOCK):
        size = min(_BLOCK, c.offsets.size - 1 - start)
        _weigh(start, size, c, cut, s)
        _pick(start, size, c, cut, s, t.invalid)
        _momenta(s.at[size], s.k, s.p, cut.gev)
        _settle(size, s, cut, t)


def fill(columns: Columns, cut: Cuts, axis: Axis, n_cuts: int) -> Histogram:
    """Fill a histogram with a range of events; ``n_cuts`` is ``len(selection.cuts)``.

    The masses are m² = (ΣE)² - (Σp)² with px = pt cos φ, py = pt sin φ, pz = pt sinh η and E as the file has it. Raises
    WeightError where weights of MAX_WEIGHT or more come out of finite factors.
    """
    h = Histogram.zeros(len(CHANNELS), axis.bins, n_cuts)
    sumw, sumw2 = h.sumw.limbs.reshape(-1, LIMBS), h.sumw2.limbs.reshape(-1, LIMBS)
    invalid, events = np.zeros(3, np.int64), len(columns.offsets) - 1
    _run(
        columns,
        cut,
        _Sums(axis.edges, h.counts.reshape(-1), sumw, sumw2, h.stopped, h.stopped_sumw.limbs, invalid),
    )
    if invalid[2]:
        raise WeightError(f"{invalid[2]} of {events} events weigh {MAX_WEIGHT:.3g} or more, too large")
    return Histogram(
        h.counts,
        h.sumw.settled(),
        h.sumw2.settled(),
        h.stopped,
        h.stopped_sumw.settled(),
        invalid[:2],
        events,
    )


@without_extensions()
def warm_up() -> None:
    """Compile the kernel, or load it from numba's cache, by running it over no events."""
    f4, i4, u1 = np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.uint8)
    offsets, factors, divisor = np.zeros(1, np.int64), np.empty((0, 0)), np.empty(0)
    nothing = Columns(offsets, f4, f4, f4, f4, i4, i4, u1, u1, u1, u1, factors, divisor)
    selection = Selection("nothing")
    fill(nothing, cuts(selection, 1.0, 1.0), Axis(0.0, 1.0, 1), len(selection.cuts))
