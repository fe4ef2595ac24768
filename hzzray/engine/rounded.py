"""Templates in doubles: what watchers are shown of the exact sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hzzray.messages import RunSpec
from hzzray.physics.histogram import Blocks, digest


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """One observable of all samples: ``sumw`` and ``sumw2``, float64, shape (samples, regions, bins + 2).

    ``digest`` names the exact contents. ``variations`` are ``sumw`` under each systematic, by its name with ``_up`` or
    ``_down``.
    """

    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]
    digest: str
    variations: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


Tables = dict[str, Table]
"""By observable; samples in the order of the spec's release."""


Rounded = tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]
"""Of one sample, for each template: sums of weights and of their squares, shape (regions, bins + 2)."""


def rounded(blocks: Blocks) -> Rounded:
    """Round a sample's templates to doubles."""
    histograms = [blocks.histogram(i) for i in range(len(blocks.shape.bins))]
    return tuple((histogram.sumw.floats(), histogram.sumw2.floats()) for histogram in histograms)


def tables(spec: RunSpec, blocks: Mapping[str, Blocks], known: Mapping[str, Rounded] | None = None) -> Tables:
    """Round all templates to doubles; simulation is that of the events that were read (see ``scaled``).

    ``known`` are samples that are rounded already.
    """
    names = [sample.name for sample in spec.release.samples]
    samples = [(known or {}).get(name) or rounded(blocks[name]) for name in names]
    found = {}
    for i, template in enumerate(spec.templates):
        sumw, sumw2 = (np.array([sample[i][which] for sample in samples]) for which in (0, 1))
        exact = digest({name: blocks[name].histogram(i) for name in names})
        found[template.observable] = Table(sumw, sumw2, exact)
    return found
