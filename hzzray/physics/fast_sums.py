"""Sums of weights in doubles, without rounding: quicker than exact sums, to which they go now and then.

Weights that lie within ``OCTAVES`` powers of two, and their squares, are cut in two halves each, at a place that all of
them share: so each half of ``MOST`` of them adds up in a double to the last bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.jit import inlined, kernel
from hzzray.physics.limbs import CELL, SUMW, SUMW2, Split, split_weight

#: Weights are 2**octave or more and less than that times 2**OCTAVES, whatever their sign, or nothing; ``octave`` is
#: from ``LEAST`` to ``LARGEST``: bits below the least of exact sums are none of theirs or of their squares.
OCTAVES, LEAST, LARGEST = 11, -38, 13

#: So many weights at the most: 52 bits of a double less the 36 that a half has.
MOST = 2**16

#: Numbers of a sum of folds: two of weights, two of their squares, the count; a cache line.
FOLDS = 8


@inlined
def halver(octave: int) -> tuple[float, float]:
    """Make what weights of an octave are cut in two by, and what their squares are."""
    return 1.5 * 2.0 ** (octave + OCTAVES + 16), 1.5 * 2.0 ** (2 * (octave + OCTAVES) + 16)


@inlined
def halve(x: float, by: float) -> tuple[float, float]:
    """Cut a number in two: the first half is what is left when a large one was added and taken away again."""
    high = (x + by) - by
    return high, x - high


@kernel
def octave_of(n: int, weights: NDArray[np.float64]) -> int:
    """Choose an octave by the largest of n weights: there is some room above it."""
    largest = 0.0
    for i in range(n):
        largest = max(largest, abs(weights[i]))
    exponent = int((np.float64(largest).view(np.int64) >> 52) & 0x7FF) - 1023
    return min(max(exponent - (OCTAVES - 3), LEAST), LARGEST)


@kernel
def unfold(
    folds: NDArray[np.float64],
    doubled: int,
    cells: NDArray[np.int64],
    split: Split,
    squares: bool,  # noqa: FBT001
) -> None:
    """Move sums of folds (float64, ``FOLDS`` each) to the exact sums that they are of; 2**doubled are of the same."""
    for i in range(folds.size // FOLDS):
        first = i * FOLDS
        if folds[first + 4] != 0.0:
            to = (i >> doubled) * CELL
            cells[to] += np.int64(folds[first + 4])
            for which in range(4 if squares else 2):
                split_weight(folds[first + which], split, 0, 0, SUMW if which < 2 else SUMW2)
                at = to + np.int64(split.at[0, 0])
                for j in range(3):
                    cells[at + j] += split.parts[0, j]
                folds[first + which] = 0.0
            folds[first + 4] = 0.0
