"""One call from columns to a histogram, as tests of single events like it."""

from functools import lru_cache
from typing import NamedTuple

from hzzray.physics.analysis import Template
from hzzray.physics.filler import Filler
from hzzray.physics.histogram import Blocks
from tests.support.form import Form


class Cuts(NamedTuple):
    """A selection, GeV a file unit, the weight common to all events."""

    form: Form
    gev: float
    norm: float


def cuts(form, gev, norm):
    return Cuts(form, gev, norm)


@lru_cache(16)
def filler(form, gev, templates):
    """What fills some templates by a form."""
    analysis, selection = form.produced()
    return Filler(analysis, selection, templates, gev)


def fill_blocks(step, cut, axis, rows) -> Blocks:
    """Fill m4l on an axis with a range of events; ``rows`` is how many the cutflow has to have."""
    blocks = filler(cut.form, cut.gev, (Template("m4l", axis),)).fill([step], cut.norm)
    assert blocks.shape.rows == rows
    return blocks


def fill(step, cut, axis, rows):
    """Likewise, shown as a histogram."""
    return fill_blocks(step, cut, axis, rows).histogram()
