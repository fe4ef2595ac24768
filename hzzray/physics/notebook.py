"""The notebooks' analysis: an event is judged by its first four leptons, in the file's order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics import four_leptons as fl
from hzzray.physics.analysis import Analysis
from hzzray.physics.candidates import BAD_INPUT, SOUND, Candidates
from hzzray.physics.columns import Columns
from hzzray.physics.four_leptons import VECTOR, Vectors, make_vectors
from hzzray.physics.jit import entry, kernel


class Parameters(NamedTuple):
    """What changes the measuring: GeV a file unit."""

    gev: float


@entry
def measure(
    start: int, stop: int, c: Columns, parameters: Parameters, slots: NDArray[np.int64], out: Candidates
) -> int:
    """Measure events from start on: one candidate each. One that has no four leptons has zeros for them."""
    v = make_vectors()
    leptons = np.empty((4, VECTOR), np.int64)
    events = min(stop - start, out.invalid.size)
    for at in range(0, events, VECTOR):
        n = min(VECTOR, events - at)
        _pick(start + at, n, c, at, v, leptons, out)
        fl.measure_common(n, v, slots, at, out, parameters.gev, False)  # noqa: FBT003
        _measure_events(start + at, n, c, slots, at, out)
    for e in range(events + 1):
        out.first[e] = e
    return events


@kernel
def _pick(
    start: int, n: int, c: Columns, at: int, v: Vectors, leptons: NDArray[np.int64], out: Candidates
) -> None:
    """Take the first four leptons of n events."""
    for i in range(n):
        first, last = c.offsets[start + i], c.offsets[start + i + 1]
        four = last - first >= 4
        for j in range(4):
            leptons[j, i] = first + j if four else -1
        out.invalid[at + i] = SOUND if four or fl.finite(c, first, last) else BAD_INPUT
    fl.gather(n, c, leptons, v)
    for i in range(n):
        zero = np.float32(0.0)
        for j in range(4):
            zero += (v.k[0, j, i] * 0 + v.k[1, j, i] * 0) + (v.k[2, j, i] * 0 + v.k[3, j, i] * 0)
        out.invalid[at + i] |= SOUND if zero == 0 else BAD_INPUT


@kernel
def _measure_events(start: int, n: int, c: Columns, slots: NDArray[np.int64], at: int, out: Candidates) -> None:
    """Measure what an event has beside its four leptons."""
    values = out.values
    if slots[fl.N_LEPTONS] >= 0:
        row = values[slots[fl.N_LEPTONS], at : at + n]
        for i in range(n):
            row[i] = c.offsets[start + i + 1] - c.offsets[start + i]
    if slots[fl.TRIGGERED] >= 0:
        row = values[slots[fl.TRIGGERED], at : at + n]
        for i in range(n):
            row[i] = c.trigger[start + i] != 0
    if slots[fl.N_MATCHED] >= 0:
        row = values[slots[fl.N_MATCHED], at : at + n]
        for i in range(n):
            row[i] = fl.count(c.matched, c.offsets[start + i], c.offsets[start + i + 1])
    if slots[fl.N_IDENTIFIED] >= 0:
        row = values[slots[fl.N_IDENTIFIED], at : at + n]
        for i in range(n):
            number = 0
            for lepton in range(c.offsets[start + i], min(c.offsets[start + i] + 4, c.offsets[start + i + 1])):
                number += fl.is_identified(c, lepton)
            row[i] = number


NOTEBOOK = Analysis("notebook", fl.VARIABLES, fl.REGIONS, measure)
