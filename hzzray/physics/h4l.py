"""The discovery paper's analysis (arXiv:1207.7214, section 4.1): every quadruplet of two SFOS pairs is a candidate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hzzray.physics import four_leptons as fl
from hzzray.physics.candidates import BAD_INPUT, SOUND, Candidates
from hzzray.physics.columns import ELECTRON, MUON
from hzzray.physics.four_leptons import M_Z, VECTOR, Vectors, make_vectors
from hzzray.physics.jit import entry, inlined, kernel
from hzzray.physics.lepton_columns import (
    CHARGE,
    M4L,
    M12,
    M34,
    M34_EXCESS,
    N_IDENTIFIED,
    N_LEPTONS,
    N_MATCHED,
    SFOS_PAIRS,
    TRIGGERED,
    VARIABLES,
    Best,
    Leptons,
)

#: Leptons of one event that a pairing looks at; the rest, lower in pt, is left out.
MAX_LEPTONS = 16

#: Quadruplets of so many leptons.
_MOST = 1820

# What four leptons measure; the rest an event has with its candidates.
_OF_QUADRUPLETS = (*range(N_LEPTONS), *range(CHARGE, SFOS_PAIRS), *range(SFOS_PAIRS + 1, len(VARIABLES)))


@entry
def measure(start: int, stop: int, c: Leptons, parameters: Best, slots: NDArray[np.int64], out: Candidates) -> int:
    """Measure events from start on. One without any such quadruplet has one candidate, of no region, all the same."""
    room = out.region.size
    leptons = np.empty((4, room), np.int64)
    where = np.empty(room, np.int64)  # the candidate that a quadruplet is
    chosen = np.empty(MAX_LEPTONS, np.int64)
    v = make_vectors()
    n = m = e = start - start  # for a plain 0, what is called would be compiled for constants first
    while start + e < stop and e < out.invalid.size and n + _MOST <= room:
        out.first[e] = n
        sound = fl.finite(c, c.offsets[start + e], c.offsets[start + e + 1])
        out.invalid[e] = SOUND if sound else BAD_INPUT
        found = _list(start + e, n, m, c, parameters, chosen, leptons, slots, out, sound)
        for k in range(found):
            where[m + k] = n + k
        m += found
        n += max(found, 1)
        e += 1
    out.first[e] = n
    for at in range(0, m, VECTOR):
        size = min(VECTOR, m - at)
        fl.gather(size, c, leptons[:, at:], v)
        fl.measure_leptons(size, v, slots, parameters.gev, True)  # noqa: FBT003
        _judge_pairs(size, v, parameters, where[at:], out)
        for variable in _OF_QUADRUPLETS:
            slot = slots[variable]
            if slot >= 0:
                for i in range(size):
                    out.values[slot, where[at + i]] = v.found[variable, i]
    return e


@kernel
def _list(
    event: int,
    n: int,
    m: int,
    c: Leptons,
    parameters: Best,
    chosen: NDArray[np.int64],
    leptons: NDArray[np.int64],
    slots: NDArray[np.int64],
    out: Candidates,
    sound: bool,  # noqa: FBT001
) -> int:
    """List an event's quadruplets in ``leptons`` from column ``m`` on; returns how many there are.

    Measures what the event itself has for its candidates, which are those from ``n`` on.
    """
    first, last = c.offsets[event], c.offsets[event + 1]
    accepted, good = _accept(first, last, c, parameters, chosen)
    found = _quadruplets(m, min(good, MAX_LEPTONS), c, chosen, leptons) - m if sound else 0
    if found == 0:
        for row in range(out.values.shape[0]):
            out.values[row, n] = np.nan
        out.region[n] = -1
        out.rank[0, n] = 0.0
        out.rank[1, n] = 0.0
    for k in range(n, n + max(found, 1)):
        if slots[N_LEPTONS] >= 0:
            out.values[slots[N_LEPTONS], k] = accepted
        if slots[N_IDENTIFIED] >= 0:
            out.values[slots[N_IDENTIFIED], k] = good
        if slots[TRIGGERED] >= 0:
            out.values[slots[TRIGGERED], k] = c.trigger[event] != 0
        if slots[N_MATCHED] >= 0:
            out.values[slots[N_MATCHED], k] = fl.count(c.matched, first, last)
        if slots[SFOS_PAIRS] >= 0:
            out.values[slots[SFOS_PAIRS], k] = found > 0
    return found


@inlined
def _accept(first: int, last: int, c: Leptons, parameters: Best, chosen: NDArray[np.int64]) -> tuple[int, int]:
    """Choose the leptons to pair; returns how many are in acceptance, and how many of them are identified."""
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
    return accepted, good


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
def _judge_pairs(n: int, v: Vectors, parameters: Best, where: NDArray[np.int64], out: Candidates) -> None:
    """Measure m34 above its least, and tell n candidates' regions and ranks: m12 nearest m_Z, then m34."""
    m4l, m12, m34 = v.found[M4L], v.found[M12], v.found[M34]
    rise = parameters.m4l_high - parameters.m4l_low
    for i in range(n):
        share = min(max((m4l[i] - parameters.m4l_low) / rise, 0.0), 1.0)
        least = parameters.m34_low + share * (parameters.m34_high - parameters.m34_low)
        v.found[M34_EXCESS, i] = m34[i] - least
    for i in range(n):
        out.region[where[i]] = v.region[i]
        out.rank[0, where[i]] = abs(m12[i] - M_Z)
        out.rank[1, where[i]] = abs(m34[i] - M_Z)
