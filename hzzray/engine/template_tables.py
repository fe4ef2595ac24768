"""Templates in doubles: what watchers are shown of the exact sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.messages import RunSpec
from hzzray.physics.histogram import Blocks, digest


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """One observable of all samples: ``sumw`` and ``sumw2``, float64, shape (samples, regions, bins + 2).

    ``digest`` names the exact contents. ``variations`` has by name and direction (``electron_scale_up``) what ``sumw``
    is then, ``variations2`` what ``sumw2`` is; data, which isn't varied, is in all of them as it is.
    """

    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]
    digest: str
    variations: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    variations2: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


Tables = dict[str, Table]
"""By observable; samples in the order of the spec's release."""


class RoundedSums(NamedTuple):
    """Sums of weights and of their squares in doubles, shape (…, regions, bins + 2)."""

    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]


class OneRounded(NamedTuple):
    """A template of one sample, and its directions as they are filled: one a row, none where it isn't varied."""

    nominal: RoundedSums
    filled: tuple[RoundedSums, ...] = ()


Rounded = tuple[OneRounded, ...]
"""Of one sample, for each template."""


def rounded(blocks: Blocks) -> Rounded:
    """Round a sample's templates to doubles."""
    shape = blocks.shape
    made = []
    for i in range(len(shape.bins)):
        histogram = blocks.histogram(i)
        exact = [blocks.varied(i, k) for k in range(shape.directions)] if i < shape.varied else []
        filled = tuple(RoundedSums(w.floats(), w2.floats()) for w, w2 in exact)
        made.append(OneRounded(RoundedSums(histogram.sumw.floats(), histogram.sumw2.floats()), filled))
    return tuple(made)


def tables(spec: RunSpec, blocks: Mapping[str, Blocks], known: Mapping[str, Rounded] | None = None) -> Tables:
    """Round all templates to doubles; simulation is that of the events that were read (see ``scaled``).

    ``known`` are samples that are rounded already.
    """
    names = [sample.name for sample in spec.release.samples]
    samples = [(known or {}).get(name) or rounded(blocks[name]) for name in names]
    found = {}
    for i, template in enumerate(spec.templates):
        exact = digest({name: blocks[name].histogram(i) for name in names})
        sumw, sumw2 = _together([sample[i].nominal for sample in samples])
        varied = _varied(spec, [sample[i] for sample in samples]) if i < spec.shape.varied else {}
        found[template.observable] = Table(
            sumw,
            sumw2,
            exact,
            {name: sums.sumw for name, sums in varied.items()},
            {name: sums.sumw2 for name, sums in varied.items()},
        )
    return found


def _together(samples: Sequence[RoundedSums]) -> RoundedSums:
    return RoundedSums(np.array([sums.sumw for sums in samples]), np.array([sums.sumw2 for sums in samples]))


def _varied(spec: RunSpec, samples: Sequence[OneRounded]) -> dict[str, RoundedSums]:
    """Lay out the directions of a template, the ones that aren't filled too: as far below nominal as up is above."""
    release = spec.release
    is_data = [release.role(sample) == "data" for sample in release.samples]
    found: dict[str, RoundedSums] = {}
    number = 0
    for variation in spec.variations:
        for direction in variation.filled:
            parts = zip(samples, is_data, strict=True)
            found[direction] = _together([one.nominal if data else one.filled[number] for one, data in parts])
            number += 1
        for direction in variation.directions[len(variation.filled) :]:
            up, nominal = found[variation.filled[0]], _together([one.nominal for one in samples])
            found[direction] = RoundedSums(2.0 * nominal.sumw - up.sumw, up.sumw2)
    return found
