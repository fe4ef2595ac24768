"""Exact sums as fractions."""

from fractions import Fraction

import numpy as np

from hzzray.physics.limbs import Split, split_weight

UNIT = Fraction(1, 2**128)


def value(limbs):
    """One exact sum, shape (limbs,), as a fraction."""
    return sum(int(limb) << (32 * i) for i, limb in enumerate(limbs)) * UNIT


def rounded(x):
    """What a double counts for: the nearest multiple of the least bit, ties to even."""
    return round(Fraction(float(x)) / UNIT) * UNIT


def exact_sum(numbers):
    """Sum doubles as an exact sum should."""
    return sum(map(rounded, numbers), Fraction(0))


def add_exact(sums, at, x):
    """Add a double to row ``at`` of exact sums, shape (n, limbs), as the kernel cuts it up."""
    split = Split(np.zeros((1, 6), np.int64), np.zeros((1, 2), np.uint64))
    split_weight(float(x), split, 0, 0, 0)
    for limb, part in enumerate(split.parts[0, :3].tolist(), int(split.at[0, 0])):
        if part:
            sums[at, limb] += part
