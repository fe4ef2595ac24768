"""Weights, cut where the limbs of exact sums meet, and added to cells of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.histogram import LIMB_BITS, LIMBS, UNIT_BITS
from hzzray.physics.jit import entry, inlined

_FULL = np.int64(2**LIMB_BITS - 1)

#: Numbers of a cell: its count, the limbs of Σw, those of Σw². One limb more than a sum has takes zeros from beyond.
COUNT, SUMW, SUMW2, CELL = 0, 1, 2 + LIMBS, 16


class Split(NamedTuple):
    """Weights and their squares, cut at limb borders: three ``parts`` of each (int64), ``at`` which limb."""

    parts: NDArray[np.int64]
    at: NDArray[np.uint64]


def make_split(events: int) -> Split:
    """Make room for the parts of so many weights."""
    return Split(np.zeros((events, 6), np.int64), np.zeros((events, 2), np.uint64))


@inlined
def split_weight(x: float, split: Split, i: int, which: int, first: int) -> None:
    """Cut a finite double's mantissa at limb borders, into row i of ``split``; ``first`` is where its limbs begin.

    Bits below the least one (2**-128) are rounded to nearest, ties to even: once for each value, whatever the order.
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
            mantissa = 0
        else:
            cut = mantissa & ((1 << -place) - 1)
            half = 1 << (-place - 1)
            mantissa >>= -place
            if cut > half or (cut == half and mantissa & 1):
                mantissa += 1
        place = 0
    shift = place & 31
    low = (mantissa & _FULL) << shift
    high = (mantissa >> LIMB_BITS) << shift
    sign = 1 if bits >= 0 else -1
    split.at[i, which] = first + (place >> 5)
    split.parts[i, 3 * which] = sign * (low & _FULL)
    split.parts[i, 3 * which + 1] = sign * (((low >> LIMB_BITS) & _FULL) + (high & _FULL))
    split.parts[i, 3 * which + 2] = sign * (high >> LIMB_BITS)


# Unsigned numbers index without a look at whether they are negative.
_ONE, _TWO = np.uint64(1), np.uint64(2)


@inlined
def add_whole(cells: NDArray[np.int64], cell: int, w: Split, i: int) -> None:
    """Add the event of row i of a split to one cell: its count, its weight, the weight's square."""
    here = np.uint64(cell) * np.uint64(CELL)
    cells[here] += 1
    to = here + w.at[i, 0]
    cells[to] += w.parts[i, 0]
    cells[to + _ONE] += w.parts[i, 1]
    cells[to + _TWO] += w.parts[i, 2]
    to = here + w.at[i, 1]
    cells[to] += w.parts[i, 3]
    cells[to + _ONE] += w.parts[i, 4]
    cells[to + _TWO] += w.parts[i, 5]


@inlined
def add_one(cells: NDArray[np.int64], row: int, w: Split, m: int) -> None:
    """Add the event of row m of a split to one cell: its count and its weight, not the square."""
    cells[row * CELL] += 1
    first = row * CELL + np.int64(w.at[m, 0])
    for i in range(3):
        cells[first + i] += w.parts[m, i]


@entry
def move_settled(sums: NDArray[np.int64], rows: NDArray[np.int64], at: NDArray[np.int64]) -> int:
    """Move what accumulators hold, settled, to ``rows``, and put the number of each one's cell in ``at``.

    A row is a cell's count and the limbs of both sums, each but the last without what is beyond its bits, or lacking,
    as ``histogram`` settles them. A cell that has counted nothing has none; returns how many have one.
    """
    n = 0
    for cell in range(sums.size // CELL):
        here = cell * CELL
        if sums[here + COUNT]:
            at[n] = cell
            rows[n, 0] = sums[here + COUNT]
            _settle(sums, here + SUMW, rows, n, 1)
            _settle(sums, here + SUMW2, rows, n, 1 + LIMBS)
            for i in range(CELL):
                sums[here + i] = 0
            n += 1
    return n


@inlined
def _settle(sums: NDArray[np.int64], of: int, rows: NDArray[np.int64], row: int, first: int) -> None:
    carry = np.int64(0)
    for limb in range(LIMBS - 1):
        total = sums[of + limb] + carry
        carry = total >> LIMB_BITS
        rows[row, first + limb] = total & _FULL
    rows[row, first + LIMBS - 1] = sums[of + LIMBS - 1] + carry
