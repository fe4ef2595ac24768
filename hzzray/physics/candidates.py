"""What measuring makes: the candidates of a block of events, as columns. One event has one candidate or more."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Events that are measured, judged and filled at once.
BLOCK = 4096

#: Candidates that have room beside one for each event of a block: an event may have some thousands.
SPARE = 2048

# Rows that a power of two of bytes lies between would share a few places of a cache.
_APART = 40

#: What makes an event invalid, in bits: nan or inf in what it is made of, a weight that is none, one that is too large.
SOUND, BAD_INPUT, BAD_WEIGHT, TOO_LARGE = 0, 1, 2, 4


class Candidates(NamedTuple):
    """The candidates of at most ``BLOCK`` events: of event e, counted from the block's start, from ``first[e]`` on.

    ``values`` (float64, shape (rows, room or more)) has the variables that are wanted. ``region`` (int64) numbers a
    candidate's region, -1 for none. Of an event's candidates that pass equally many cuts the one counts whose ``rank``
    (float64, shape (2, room)) is the least, the second where the first is equal. ``weight`` (float64) and ``invalid``
    (uint8, bits) belong to events, as ``first`` (int64, shape (BLOCK + 1,)).
    """

    values: NDArray[np.float64]
    region: NDArray[np.int64]
    rank: NDArray[np.float64]
    first: NDArray[np.int64]
    weight: NDArray[np.float64]
    invalid: NDArray[np.uint8]


def make_room(rows: int) -> Candidates:
    """Make room for the candidates of a block with so many variables."""
    room = BLOCK + SPARE
    return Candidates(
        np.zeros((rows, room + _APART)),
        np.zeros(room, np.int64),
        np.zeros((2, room)),
        np.zeros(BLOCK + 1, np.int64),
        np.zeros(BLOCK),
        np.zeros(BLOCK, np.uint8),
    )
