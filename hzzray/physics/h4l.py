"""The discovery paper's analysis (arXiv:1207.7214, section 4.1): every quadruplet of two SFOS pairs is a candidate."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics import four_leptons as fl
from hzzray.physics.analysis import Analysis
from hzzray.physics.candidates import BAD_INPUT, SOUND, Candidates
from hzzray.physics.columns import Columns
from hzzray.physics.four_leptons import M_Z, VECTOR, Vectors, make_vectors
from hzzray.physics.jit import entry, inlined, kernel

#: Leptons of one event that a pairing looks at; the rest, lower in pt, is left out.
MAX_LEPTONS = 16

#: Quadruplets of so many leptons.
_MOST = 1820


class Parameters(NamedTuple):
    """What changes the measuring: GeV a file unit, least pt of leptons in the file's unit, whether they must be identified.

    The least m34 rises linearly from ``m34_low`` to ``m34_high`` while m4l goes through ``m4l_low`` to ``m4l_high`` [GeV].
    """

    gev: float
    electron_pt_min: float
    muon_pt_min: float
    identified: bool
    m34_low: float
    m34_high: float
    m4l_low: float
    m4l_high: float


@entry
def measure(
    start: int, stop: int, c: Columns, parameters: Parameters, slots: NDArray[np.int64], out: Candidates
) -> int:
    """Measure events from start on. One without any such quadruplet has one candidate, of no region, all the same."""
    room = out.region.size
    leptons = np.empty((4, room), np.int64)
    chosen = np.empty(MAX_LEPTONS, np.int64)
    v = make_vectors()
    n = 0
    e = 0
    while start + e < stop and e < out.invalid.size and n + _MOST <= room:
        out.first[e] = n
        n = _candidates(start + e, e, n, c, parameters, slots, chosen, leptons, out)
        e += 1
    out.first[e] = n
    for at in range(0, n, VECTOR):
        size = min(VECTOR, n - at)
        fl.gather(size, c, leptons[:, at:], v)
        fl.measure_common(size, v, slots, at, out, parameters.gev, True)  # noqa: FBT003
        _rank(size, v, slots, at, parameters, out)
    return e


@kernel
def _candidates(
    event: int,
    e: int,
    n: int,
    c: Columns,
    parameters: Parameters,
    slots: NDArray[np.int64],
    chosen: NDArray[np.int64],
    leptons: NDArray[np.int64],
    out: Candidates,
) -> int:
    """List an event's candidates from column ``n`` on, with what the event itself measures; returns where they end."""
    first, last = c.offsets[event], c.offsets[event + 1]
    out.invalid[e] = SOUND if fl.finite(c, first, last) else BAD_INPUT
    accepted = 0
    good = 0
    for i in range(first, last):
        electron = c.type[i] == fl.ELECTRON
        muon = c.type[i] == fl.MUON
        if (electron and c.pt[i] > parameters.electron_pt_min) or (muon and c.pt[i] > parameters.muon_pt_min):
            accepted += 1
            if not parameters.identified or fl.is_identified(c, i):
                if good < MAX_LEPTONS:
                    chosen[good] = i
                good += 1
    end = n
    if out.invalid[e] == SOUND:
        end = _quadruplets(n, min(good, MAX_LEPTONS), c, chosen, leptons)
    paired = end > n
    if not paired:
        for j in range(4):
            leptons[j, n] = -1
        end = n + 1
    for k in range(n, end):
        if slots[fl.N_LEPTONS] >= 0:
            out.values[slots[fl.N_LEPTONS], k] = accepted
        if slots[fl.N_IDENTIFIED] >= 0:
            out.values[slots[fl.N_IDENTIFIED], k] = good
        if slots[fl.TRIGGERED] >= 0:
            out.values[slots[fl.TRIGGERED], k] = c.trigger[event] != 0
        if slots[fl.N_MATCHED] >= 0:
            out.values[slots[fl.N_MATCHED], k] = fl.count(c.matched, first, last)
        if slots[fl.SFOS_PAIRS] >= 0:
            out.values[slots[fl.SFOS_PAIRS], k] = paired
    return end


@kernel
def _quadruplets(n: int, size: int, c: Columns, chosen: NDArray[np.int64], leptons: NDArray[np.int64]) -> int:
    """List quadruplets of two SFOS pairs from column ``n`` on; returns where they end."""
    for a in range(size - 3):
        for b in range(a + 1, size - 2):
            for d in range(b + 1, size - 1):
                for e in range(d + 1, size):
                    p, q, r, s = chosen[a], chosen[b], chosen[d], chosen[e]
                    if (
                        (_sfos(c, p, q) and _sfos(c, r, s))
                        or (_sfos(c, p, r) and _sfos(c, q, s))
                        or (_sfos(c, p, s) and _sfos(c, q, r))
                    ):
                        leptons[0, n], leptons[1, n], leptons[2, n], leptons[3, n] = p, q, r, s
                        n += 1
    return n


@inlined
def _sfos(c: Columns, i: int, j: int) -> bool:
    return c.type[i] == c.type[j] and c.charge[i] == -c.charge[j] and c.charge[i] != 0


@kernel
def _rank(n: int, v: Vectors, slots: NDArray[np.int64], at: int, parameters: Parameters, out: Candidates) -> None:
    """Rank candidates: m12 nearest m_Z, then m34; and measure m34 above its least."""
    rise = parameters.m4l_high - parameters.m4l_low
    for i in range(n):
        out.rank[0, at + i] = abs(v.m12[i] - M_Z)
        out.rank[1, at + i] = abs(v.m34[i] - M_Z)
    if slots[fl.M34_EXCESS] >= 0:
        row = out.values[slots[fl.M34_EXCESS], at : at + n]
        for i in range(n):
            share = min(max((v.m4l[i] - parameters.m4l_low) / rise, 0.0), 1.0)
            row[i] = v.m34[i] - (parameters.m34_low + share * (parameters.m34_high - parameters.m34_low))


H4L = Analysis("h4l", fl.VARIABLES, fl.REGIONS, measure)
