"""Columns: a range of events as an analysis reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ELECTRON, MUON = 11, 13  # types of leptons, from the PDG's numbering


class Columns(NamedTuple):
    """A range of events as the kernels read it. Pt and energy in the file's unit, ``gev`` GeV each.

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
