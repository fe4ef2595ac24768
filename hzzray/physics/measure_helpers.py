"""For measuring: what makes a compiled ``measure`` short to write. All of it becomes a part of its caller."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.candidates import SOUND, Candidates
from hzzray.physics.jit import inlined
from hzzray.physics.maths import sincos, sinh


@inlined
def one_each(start: int, stop: int, out: Candidates) -> int:
    """Give each event from ``start`` on one candidate, as many events as have room; returns how many.

    Candidate k is of event ``start + k``, sound, in region 0, and has nan for each variable until something is put.
    """
    events = min(stop - start, out.invalid.size)
    for k in range(events):
        out.first[k] = k
        out.invalid[k] = SOUND
        out.region[k] = 0
        out.rank[0, k] = 0.0
        out.rank[1, k] = 0.0
    out.first[events] = events
    for row in range(out.values.shape[0]):
        for k in range(events):
            out.values[row, k] = np.nan
    return events


@inlined
def put(out: Candidates, slots: NDArray[np.int64], variable: int, k: int, value: float) -> None:
    """Put down a variable, by its number, of candidate k; where nobody asks for the variable nothing happens.

    Raises IndexError for a variable or a candidate that there isn't.
    """
    if not (0 <= variable < slots.size and 0 <= k < out.values.shape[1]):
        raise IndexError("put: no such variable, or no such candidate")
    if slots[variable] >= 0:
        out.values[slots[variable], k] = value


@inlined
def momentum(pt: float, eta: float, phi: float, energy: float, unit: float) -> tuple[float, float, float, float]:
    """Turn pt, η, φ, E of a file into px, py, pz, E, in ``unit`` times the file's unit: with the parameter gev, GeV."""
    sine, cosine = sincos(np.float64(phi))
    scaled = pt * unit
    return scaled * cosine, scaled * sine, scaled * sinh(np.float64(eta)), energy * unit


@inlined
def mass(px: float, py: float, pz: float, energy: float) -> float:
    """Invariant mass √(E² - p²), in the unit of its arguments; negative for a spacelike sum."""
    m2 = (energy * energy - px * px) - (py * py + pz * pz)
    return math.copysign(math.sqrt(abs(m2)), m2)


@inlined
def delta_r(eta1: float, phi1: float, eta2: float, phi2: float) -> float:
    """Separation √(Δη² + Δφ²), φ the short way round."""
    eta = np.float64(eta1) - np.float64(eta2)
    phi = np.float64(phi1) - np.float64(phi2)
    phi -= 2.0 * math.pi * np.rint(phi / (2.0 * math.pi))
    return math.sqrt(eta * eta + phi * phi)
