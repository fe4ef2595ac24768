"""The discovery paper's analysis (arXiv:1207.7214, section 4.1): every quadruplet of two SFOS pairs is a candidate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hzzray.physics import four_leptons as fl
from hzzray.physics.candidates import BAD_INPUT, SOUND, Candidates
from hzzray.physics.columns import ELECTRON, MUON
from hzzray.physics.four_leptons import M_Z, VECTOR, Vectors, make_vectors
from hzzray.physics.jit import entry, kernel
from hzzray.physics.leptons import (
    M4L,
    M12,
    M34,
    M34_EXCESS,
    N_IDENTIFIED,
    N_LEPTONS,
    N_MATCHED,
    SFOS_PAIRS,
    TRIGGERED,
    Best,
    Leptons,
)

#: Leptons of one event that a pairing looks at; the rest, lower in pt, is left out.
MAX_LEPTONS = 16

#: Quadruplets of so many leptons.
_MOST = 1820

# What an event measures beside its candidates: rows of a scratch that has a column for each candidate.
_ABOUT = (N_LEPTONS, N_IDENTIFIED, TRIGGERED, N_MATCHED, SFOS_PAIRS)
_ACCEPTED, _GOOD, _TRIGGERED, _MATCHED, _PAIRED = range(len(_ABOUT))


@entry
def measure(start: int, stop: int, c: Leptons, parameters: Best, slots: NDArray[np.int64], out: Candidates) -> int:
    """Measure events from start on. One without any such quadruplet has one candidate, of no region, all the same."""
    room = out.region.size
    leptons = np.empty((4, room), np.int64)
    about = np.empty((len(_ABOUT), room), np.float64)
    chosen = np.empty(MAX_LEPTONS, np.int64)
    v = make_vectors()
    n = 0
    e = 0
    while start + e < stop and e < out.invalid.size and n + _MOST <= room:
        out.first[e] = n
        out.invalid[e] = SOUND if fl.finite(c, c.offsets[start + e], c.offsets[start + e + 1]) else BAD_INPUT
        n = _list(start + e, n, c, parameters, chosen, leptons, about, out.invalid[e] == SOUND)
        e += 1
    out.first[e] = n
    for at in range(0, n, VECTOR):
        size = min(VECTOR, n - at)
        fl.gather(size, c, leptons[:, at:], v)
        fl.measure_leptons(size, v, slots, parameters.gev, True, out.region, at)  # noqa: FBT003
        _measure_more(size, v, about, at, parameters, out.rank)
        fl.store(size, v.found, slots, out.values, at)
    return e


@kernel
def _list(
    event: int,
    n: int,
    c: Leptons,
    parameters: Best,
    chosen: NDArray[np.int64],
    leptons: NDArray[np.int64],
    about: NDArray[np.float64],
    sound: bool,  # noqa: FBT001
) -> int:
    """List an event's candidates from column ``n`` on, with what the event itself measures; returns where they end."""
    first, last = c.offsets[event], c.offsets[event + 1]
    electron_pt_min, muon_pt_min = parameters.electron_pt_min / parameters.gev, parameters.muon_pt_min / parameters.gev
    selective = parameters.identified or parameters.isolated
    accepted = 0
    good = 0
    for i in range(first, last):
        least = electron_pt_min if c.type[i] == ELECTRON else muon_pt_min
        if (c.type[i] == ELECTRON or c.type[i] == MUON) and c.pt[i] > least:
            accepted += 1
            if not selective or fl.is_identified(c, i):
                if good < MAX_LEPTONS:
                    chosen[good] = i
                good += 1
    end = _quadruplets(n, min(good, MAX_LEPTONS), c, chosen, leptons) if sound else n
    paired = end > n
    if not paired:
        for j in range(4):
            leptons[j, n] = -1
        end = n + 1
    for k in range(n, end):
        about[_ACCEPTED, k] = accepted
        about[_GOOD, k] = good
        about[_TRIGGERED, k] = c.trigger.size > 0 and c.trigger[event] != 0
        about[_MATCHED, k] = fl.count(c.matched, first, last) if c.matched.size > 0 else 0
        about[_PAIRED, k] = paired
    return end


@kernel
def _quadruplets(n: int, size: int, c: Leptons, chosen: NDArray[np.int64], leptons: NDArray[np.int64]) -> int:
    """List quadruplets of two SFOS pairs from column ``n`` on; returns where they end."""
    for a in range(size - 3):
        for b in range(a + 1, size - 2):
            for d in range(b + 1, size - 1):
                for e in range(d + 1, size):
                    p, q, r, s = chosen[a], chosen[b], chosen[d], chosen[e]
                    if _paired(c, p, q, r, s) or _paired(c, p, r, q, s) or _paired(c, p, s, q, r):
                        leptons[0, n], leptons[1, n], leptons[2, n], leptons[3, n] = p, q, r, s
                        n += 1
    return n


@kernel
def _paired(c: Leptons, i: int, j: int, k: int, m: int) -> bool:
    """Tell whether two leptons are an SFOS pair, and two others too."""
    return bool(
        c.type[i] == c.type[j] and c.charge[i] == -c.charge[j] and c.charge[i] != 0
        and c.type[k] == c.type[m] and c.charge[k] == -c.charge[m] and c.charge[k] != 0
    )  # fmt: skip


@kernel
def _measure_more(
    n: int, v: Vectors, about: NDArray[np.float64], at: int, parameters: Best, rank: NDArray[np.float64]
) -> None:
    """Measure m34 above its least and what the event has; rank candidates: m12 nearest m_Z, then m34."""
    m4l, m12, m34 = v.found[M4L], v.found[M12], v.found[M34]
    rise = parameters.m4l_high - parameters.m4l_low
    for i in range(n):
        rank[0, at + i] = abs(m12[i] - M_Z)
        rank[1, at + i] = abs(m34[i] - M_Z)
        share = min(max((m4l[i] - parameters.m4l_low) / rise, 0.0), 1.0)
        least = parameters.m34_low + share * (parameters.m34_high - parameters.m34_low)
        v.found[M34_EXCESS, i] = m34[i] - least
    for row in range(len(_ABOUT)):
        for i in range(n):
            v.found[_ABOUT[row], i] = about[row, at + i]
