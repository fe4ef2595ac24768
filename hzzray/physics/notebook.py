"""The notebooks' analysis: an event is judged by its first four leptons, in the file's order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hzzray.physics import four_leptons as fl
from hzzray.physics.candidates import BAD_INPUT, SOUND, Candidates
from hzzray.physics.four_leptons import NO_MASS, VECTOR, Vectors, make_vectors
from hzzray.physics.jit import entry, kernel
from hzzray.physics.lepton_columns import (
    M12,
    N_IDENTIFIED,
    N_LEPTONS,
    N_MATCHED,
    SFOS_PAIRS,
    TRIGGERED,
    Leptons,
    Notebook,
)


@entry
def measure(start: int, stop: int, c: Leptons, parameters: Notebook, slots: NDArray[np.int64], out: Candidates) -> int:
    """Measure events from start on: one candidate each. One that has no four leptons has zeros for them."""
    v = make_vectors()
    leptons = np.empty((4, VECTOR), np.int64)
    events = min(stop - start, out.invalid.size)
    for at in range(0, events, VECTOR):
        n = min(VECTOR, events - at)
        _pick(start + at, n, c, leptons, v, out.invalid, at)
        fl.measure_leptons(n, v, slots, parameters.gev, False)  # noqa: FBT003
        _measure_events(start + at, n, c, parameters, slots, v.found)
        fl.store(n, v.found, slots, out.values, at)
        for i in range(n):
            out.region[at + i] = v.region[i]
    for e in range(events + 1):
        out.first[e] = e
    return events


@kernel
def _pick(
    start: int, n: int, c: Leptons, leptons: NDArray[np.int64], v: Vectors, invalid: NDArray[np.uint8], at: int
) -> None:
    """Take the first four leptons of n events."""
    for i in range(n):
        first, last = c.offsets[start + i], c.offsets[start + i + 1]
        four = last - first >= 4
        for j in range(4):
            leptons[j, i] = first + j if four else -1
        invalid[at + i] = SOUND if four or fl.finite(c, first, last) else BAD_INPUT
    fl.gather(n, c, leptons, v)
    for i in range(n):
        zero = np.float32(0.0)
        for j in range(4):
            zero += (v.k[0, j, i] * 0 + v.k[1, j, i] * 0) + (v.k[2, j, i] * 0 + v.k[3, j, i] * 0)
        invalid[at + i] |= SOUND if zero == 0 else BAD_INPUT


@kernel
def _measure_events(
    start: int, n: int, c: Leptons, parameters: Notebook, slots: NDArray[np.int64], found: NDArray[np.float64]
) -> None:
    """Measure what an event has beside its four leptons."""
    for i in range(n):
        found[N_LEPTONS, i] = c.offsets[start + i + 1] - c.offsets[start + i]
    if slots[TRIGGERED] >= 0:
        for i in range(n):
            found[TRIGGERED, i] = c.trigger[start + i] != 0
    if slots[N_MATCHED] >= 0:
        for i in range(n):
            found[N_MATCHED, i] = fl.count(c.matched, c.offsets[start + i], c.offsets[start + i + 1])
    if slots[SFOS_PAIRS] >= 0:
        for i in range(n):
            found[SFOS_PAIRS, i] = found[M12, i] != NO_MASS
    selective = parameters.identified or parameters.isolated
    if slots[N_IDENTIFIED] >= 0:
        for i in range(n):
            first = c.offsets[start + i]
            found[N_IDENTIFIED, i] = 0.0
            for lepton in range(first, min(first + 4, c.offsets[start + i + 1])):
                found[N_IDENTIFIED, i] += fl.is_identified(c, lepton) if selective else 1.0
