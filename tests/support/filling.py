"""One call from columns to a histogram, as tests of single events like it."""

from functools import cache
from typing import NamedTuple

from hzzray.physics.filler import Filler
from hzzray.physics.selection import Selection


class Cuts(NamedTuple):
    """A selection, GeV a file unit, the weight common to all events."""

    selection: Selection
    gev: float
    norm: float


def cuts(selection, gev, norm):
    return Cuts(selection, gev, norm)


@cache
def _filler(selection, gev, axis):
    return Filler(selection, gev, axis)


def fill(columns, cut, axis, rows):
    """Fill a histogram with a range of events; ``rows`` is how many the cutflow has to have."""
    histogram = _filler(cut.selection, cut.gev, axis).fill([columns], cut.norm)
    assert len(histogram.stopped) == rows
    return histogram
