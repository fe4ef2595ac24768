"""Exact sums as fractions."""

from fractions import Fraction

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
