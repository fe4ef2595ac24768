"""Hot candidates: what was measured of events, kept compact, to be judged and filled again by other cuts and templates.

Sums don't depend on an order, so candidates are kept as it suits: column by column, each in the smallest type that
holds all of its numbers exactly. Events that no cuts could ever fill, of no region, are only counted, by what cuts can
tell of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.candidates import BLOCK

#: Candidates of a part at the most, about: their columns go through the second-level cache together.
PART = 32_768

#: Events of a part at the most.
MOST = PART + BLOCK

# Values that a column is tried by first: most that need a larger type show it here.
_TRIED = 64


class Column(NamedTuple):
    """One variable of some candidates: one value where all have the same. And between what its values lie.

    ``values`` is int8, float32 or float64, each of which turns into the very double that was measured. ``holes`` tells
    whether there is nan among them, which ``least`` and ``most`` leave out.
    """

    values: NDArray[Any]
    least: float
    most: float
    holes: bool

    @property
    def step(self) -> int:
        """How far a value is from the next: 0 where there is one."""
        return int(self.values.size > 1)

    def passes(self, low: float, high: float) -> bool:
        """Tell whether all lie between two bounds."""
        return not self.holes and (self.least > low or low == -math.inf) and (self.most < high or high == math.inf)

    @property
    def finite(self) -> bool:
        """Whether all are finite."""
        return not self.holes and -math.inf < self.least and self.most < math.inf


class Part(NamedTuple):
    """Some candidates: ``columns``, one a variable (None where it was not measured), and ``region`` (int8).

    Each belongs to an event of its own, or, where there is a ``first`` (int32, one more than events), those of an event
    are together, with their ``rank`` (float64, shape (2, candidates)). Events have a ``weight`` and their ``entry``,
    counted from where the range starts (uint32); ``beside`` is what was kept of an event for its variations. Weights
    are 2**octave or more and less than that times 2**OCTAVES, whatever their sign; None where there is no such power of
    two.
    """

    columns: tuple[Column | None, ...]
    region: NDArray[np.int8]
    weight: Column
    entry: NDArray[np.uint32]
    first: NDArray[np.int32] | None
    rank: NDArray[np.float64]
    octave: int | None
    beside: tuple[Column, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        arrays = [column.values for column in (*self.columns, self.weight, *self.beside) if column is not None]
        arrays += [self.region, self.entry, self.rank, *([] if self.first is None else [self.first])]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False, slots=True)
class Hot:
    """All that is kept of a range of events.

    ``counted`` events can't be filled whatever the cuts: ``classes`` (float64, shape (variables, classes)) has what
    cuts can tell of them, ``sums`` (int64, shape (classes, 1 + LIMBS)) how many there are of each, and the limbs of
    what they weigh. Of those that are ``invalid`` there are so many, likewise: they stop at the first cut. ``beside``
    names what was kept beside weights.
    """

    entries: int
    parts: tuple[Part, ...]
    classes: NDArray[np.float64]
    sums: NDArray[np.int64]
    invalid: NDArray[np.int64]
    invalid_sums: NDArray[np.int64]
    measured: frozenset[int]
    beside: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self.parts) + self.classes.nbytes + self.sums.nbytes

    @property
    def candidates(self) -> int:
        """Candidates that are kept."""
        return sum(part.region.size for part in self.parts)


def shrink(values: NDArray[np.float64]) -> Column:
    """Keep values in the smallest type that has room for each of them to the last bit."""
    if not values.size:
        return Column(values, math.inf, -math.inf, holes=False)
    # Signs of zeros, and bits of nan, are kept too.
    bits = values.view(np.int64)
    kept: NDArray[Any] = values
    if (bits[:_TRIED] == bits[0]).all() and (bits == bits[0]).all():
        kept = values[:1].copy()
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            for dtype in (np.int8, np.float32):
                if _holds(values[:_TRIED], dtype) and _holds(values, dtype):
                    kept = values.astype(dtype)
                    break
            else:
                kept = values.copy()  # of its own, lest it keeps alive what it is a part of
    least, most = float(kept.min()), float(kept.max())
    holes = math.isnan(least)
    if holes:
        sound = kept[~np.isnan(kept)]
        least, most = (float(sound.min()), float(sound.max())) if sound.size else (math.inf, -math.inf)
    return Column(kept, least, most, holes)


def _holds(values: NDArray[np.float64], dtype: type[np.int8 | np.float32]) -> bool:
    return bool((values.astype(dtype).astype(np.float64).view(np.int64) == values.view(np.int64)).all())
