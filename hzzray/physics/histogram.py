"""Histograms whose sums are exact, so that no order, chunking or number of workers can change a bit of them.

A double is an integer times a power of two. Here it is cut into 32-bit limbs of one wide fixed-point number, and each
limb is added in an int64 of its own; carries are settled once at the end. Integer addition commutes, so every way to
cut and merge a run gives the same number, and that number is the exact sum: weights of 1e-7 next to weights of 100
lose nothing, nor do their squares. (Two limbs of 2⁻⁵⁰ would keep a square of 1e-14 to a few per cent only.)
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import accumulate, pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

#: Limbs of 32 bits an exact sum has. The least bit is worth 2**-UNIT_BITS; the largest sum is 2**63.
LIMBS = 6
UNIT_BITS = 128
_ONE = 1 << UNIT_BITS
LIMB_BITS = 32

#: Weights from here on are refused: their squares would leave the exact range.
MAX_WEIGHT = 2.0**30

#: Bins that an axis may have: a spec from the wire can't ask for more memory than a worker has.
MAX_BINS = 100_000

_MASK = np.int64(2**LIMB_BITS - 1)


@dataclass(frozen=True, slots=True)
class Axis:
    """A regular axis in GeV. ``bins`` bins of equal width from ``start`` to ``stop``."""

    start: float
    stop: float
    bins: int

    def __post_init__(self) -> None:
        """Refuse an empty axis, or one of more than ``MAX_BINS``; raises ValueError."""
        if not (self.bins > 0 and self.start < self.stop and np.isfinite([self.start, self.stop]).all()):
            raise ValueError(f"an axis needs start < stop and at least one bin, not {self}")
        if self.bins > MAX_BINS:
            raise ValueError(f"an axis has {MAX_BINS} bins at most, not {self.bins}")

    @property
    def edges(self) -> NDArray[np.float64]:
        """Bin edges in GeV, shape (bins + 1,)."""
        return np.linspace(self.start, self.stop, self.bins + 1)

    @property
    def width(self) -> float:
        """Width of a bin in GeV."""
        return (self.stop - self.start) / self.bins

    def window(self, low: float, high: float) -> slice:
        """Bins that a window of GeV consists of; raises ValueError where its ends aren't edges of this axis.

        What is counted in it is what lies between its two ends, never in fewer or more bins.
        """
        asked, form = f"window {low:g} to {high:g} GeV", f"{self.bins} bins from {self.start:g} to {self.stop:g} GeV"
        if not low < high:
            raise ValueError(f"{asked}: a window needs low < high")
        tolerance = 1e-9 * (self.stop - self.start)
        if not (self.start - tolerance <= low and high <= self.stop + tolerance):
            raise ValueError(f"{asked} leaves the axis: {form}")
        first, last = (round((end - self.start) / self.width) for end in (low, high))
        edges = self.edges
        if abs(edges[first] - low) > tolerance or abs(edges[last] - high) > tolerance:
            last = max(last, first + 1) if first < self.bins else last
            first = min(first, last - 1)
            raise ValueError(f"{asked} doesn't lie on bin edges ({form}); {edges[first]:g} to {edges[last]:g} GeV does")
        if first == last:  # narrower than what edges are told apart by
            raise ValueError(f"{asked} holds no bin: {form}")
        return slice(first, last)


@dataclass(frozen=True, eq=False, slots=True)
class ExactSums:
    """An array of exact sums: int64 limbs, shape (…, LIMBS), least significant first."""

    limbs: NDArray[np.int64]

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> Self:
        """Make sums of nothing."""
        return cls(np.zeros((*shape, LIMBS), np.int64))

    def settled(self) -> ExactSums:
        """Return the canonical form: every limb but the last in [0, 2**32). Needed after 2**30 additions at most."""
        limbs = self.limbs.copy()
        while (carries := limbs[..., :-1] >> LIMB_BITS).any():
            limbs[..., :-1] &= _MASK
            limbs[..., 1:] += carries
        return ExactSums(limbs)

    def __add__(self, other: ExactSums) -> ExactSums:
        """Add exactly; the result is settled."""
        return ExactSums(self.limbs + other.limbs).settled()

    def __sub__(self, other: ExactSums) -> ExactSums:
        """Take back exactly what was added; the result is settled."""
        return ExactSums(self.limbs - other.limbs).settled()

    def sum(self, axis: int | tuple[int, ...] | None = None) -> ExactSums:
        """Sum over leading axes (all by default), exactly; the result is settled."""
        leading = tuple(range(self.limbs.ndim - 1)) if axis is None else axis
        return ExactSums(self.settled().limbs.sum(axis=leading)).settled()

    def __getitem__(self, key: Any) -> ExactSums:  # noqa: ANN401 (what numpy takes as an index)
        """Select sums by the leading axes."""
        return ExactSums(self.limbs[key])

    def floats(self) -> NDArray[np.float64]:
        """Round each sum to the nearest double; shape (…)."""
        flat = self.limbs.reshape(-1, LIMBS)
        out = np.array([_nearest(row) for row in flat.tolist()], np.float64)
        return out.reshape(self.limbs.shape[:-1])

    def equal(self, other: ExactSums) -> bool:
        """Tell whether two arrays hold the same numbers."""
        return bool(np.array_equal(self.settled().limbs, other.settled().limbs))


def _nearest(limbs: list[int]) -> float:
    """Round one exact sum to a double."""
    total = 0
    for limb in reversed(limbs):
        total = (total << LIMB_BITS) + limb
    return total / _ONE  # of two integers, and so rounded once


@dataclass(frozen=True, eq=False, slots=True)
class Histogram:
    """What a selection made of some events of one sample. Merged by ``+``, taken back by ``-``, both exact.

    Attributes
    ----------
    counts
        Raw events in each bin, int64, shape (channels, bins + 2): under- and overflow are the first and last bins.
    sumw, sumw2
        Exact sums of weights and of their squares, same shape.
    stopped
        Raw events that each row of the cutflow lost, int64, shape (cuts,). Row i stopped at cut i; none stops at row 0.
    stopped_sumw
        Exact sum of those events' weights, shape (cuts,).
    invalid
        Events with nan or inf, int64, shape (2,): in a lepton, in a weight. They stop at the second row.
    entries
        Events read.
    """

    counts: NDArray[np.int64]
    sumw: ExactSums
    sumw2: ExactSums
    stopped: NDArray[np.int64]
    stopped_sumw: ExactSums
    invalid: NDArray[np.int64]
    entries: int

    @classmethod
    def zeros(cls, channels: int, bins: int, cuts: int) -> Self:
        """Make the histogram of no events."""
        shape = (channels, bins + 2)
        return cls(
            np.zeros(shape, np.int64),
            ExactSums.zeros(shape),
            ExactSums.zeros(shape),
            np.zeros(cuts, np.int64),
            ExactSums.zeros((cuts,)),
            np.zeros(2, np.int64),
            0,
        )

    def __add__(self, other: Histogram) -> Histogram:
        """Merge two histograms of the same shape."""
        return Histogram(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Histogram) -> Histogram:
        """Take back a histogram that was merged before."""
        return Histogram(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def cutflow(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Raw and weighted events that are left after each cut, shape (cuts,) each."""
        passed = int(self.counts.sum())
        lost = self.stopped[::-1].cumsum()[::-1]
        n = passed + np.append(lost[1:], 0)
        weighted = self.sumw.sum()
        yields = []
        for i in range(len(self.stopped) - 1, -1, -1):
            yields.append(float(weighted.floats()))
            weighted = weighted + self.stopped_sumw[i]
        return n, np.array(yields[::-1])

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """The contents as int64 arrays in canonical form, in a fixed order."""
        return (
            self.counts,
            self.sumw.settled().limbs,
            self.sumw2.settled().limbs,
            self.stopped,
            self.stopped_sumw.settled().limbs,
            self.invalid,
            np.array([self.entries], np.int64),
        )

    def to_bytes(self) -> bytes:
        """Write the contents as little-endian int64, in canonical form; ``from_bytes`` reads it back."""
        return b"".join(array.astype("<i8").tobytes() for array in self.arrays)

    def pack(self) -> bytes:
        """Compress the contents for the wire and the ledger: mostly zeros, they shrink thirtyfold."""
        return zlib.compress(self.to_bytes(), 1)

    @classmethod
    def unpack(cls, packed: bytes, channels: int, bins: int, cuts: int) -> Self:
        """Read ``pack``; raises ValueError on damage or another shape."""
        return cls.total((packed,), channels, bins, cuts)

    @classmethod
    def total(cls, packed: Iterable[bytes], channels: int, bins: int, cuts: int) -> Self:
        """Add up what ``pack`` made, at most 2**30 of it; raises ValueError on damage or another shape."""
        return cls._added(map(_decompress, packed), channels, bins, cuts)

    @classmethod
    def from_bytes(cls, data: bytes, channels: int, bins: int, cuts: int) -> Self:
        """Read ``to_bytes``; raises ValueError where the length isn't that of the shape."""
        return cls._added((data,), channels, bins, cuts)

    @classmethod
    def _added(cls, bodies: Iterable[bytes], channels: int, bins: int, cuts: int) -> Self:
        binned = (channels, bins + 2)
        shapes = (binned, (*binned, LIMBS), (*binned, LIMBS), (cuts,), (cuts, LIMBS), (2,), (1,))
        flat = np.zeros(sum(map(math.prod, shapes)), np.int64)
        for body in bodies:
            if len(body) != flat.nbytes:
                raise ValueError(f"a histogram of this shape has {flat.nbytes} bytes, not {len(body)}")
            flat += np.frombuffer(body, "<i8")  # carries can wait: they are settled once for all
        borders = list(accumulate(map(math.prod, shapes), initial=0))
        parts = [flat[i:j].reshape(shape) for (i, j), shape in zip(pairwise(borders), shapes, strict=True)]
        counts, sumw, sumw2, stopped, stopped_sumw, invalid, entries = parts
        return cls(
            counts,
            ExactSums(sumw).settled(),
            ExactSums(sumw2).settled(),
            stopped,
            ExactSums(stopped_sumw).settled(),
            invalid,
            int(entries[0]),
        )


def _decompress(packed: bytes) -> bytes:
    try:
        return zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(str(error)) from error


def digest(histograms: dict[str, Histogram]) -> str:
    """SHA-256 over the names and the exact contents of histograms, whatever their order."""
    sha = hashlib.sha256()
    for name in sorted(histograms):
        body = histograms[name].to_bytes()
        sha.update(f"{name}\0{len(body)}\0".encode())
        sha.update(body)
    return sha.hexdigest()
