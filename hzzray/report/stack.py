"""What the figure of a result shows, whoever draws it: the stack by group, its uncertainty, the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.errors import UsageError
from hzzray.runs.result import Bins, GroupResult, Result
from hzzray.statistics.significance import poisson_interval


class Layer(NamedTuple):
    """One group of the stack: its yield and the square of its statistical error in each bin, shape (bins,)."""

    name: str
    colour: str
    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Contents:
    """What is drawn: arrays of shape (bins,), simulation by group from the bottom of the stack up; edges in GeV.

    ``divisible`` tells whether data over simulation means something: both are of one luminosity, and no sample lacks.
    """

    edges: NDArray[np.float64]
    simulation: list[Layer]
    data: NDArray[np.float64] | None
    divisible: bool = True
    systematic: NDArray[np.float64] | None = None

    @property
    def total(self) -> NDArray[np.float64]:
        """The stack's height."""
        return sum((layer.sumw for layer in self.simulation), np.zeros(len(self.edges) - 1))

    @property
    def error(self) -> NDArray[np.float64]:
        """The stack's uncertainty: √Σw² by statistics and, where it is known, the ``systematic`` one in quadrature."""
        statistics = np.sqrt(sum((layer.sumw2 for layer in self.simulation), np.zeros(len(self.edges) - 1)))
        return statistics if self.systematic is None else np.hypot(statistics, self.systematic)

    @property
    def width(self) -> float:
        """Width of a bin in GeV."""
        return float(self.edges[1] - self.edges[0])

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres of the bins in GeV."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def highest(self) -> NDArray[np.float64]:
        """The top of what is drawn in each bin."""
        top = self.total + self.error
        if self.data is None:
            return top
        return np.maximum(top, np.where(self.data > 0, poisson_interval(self.data)[1], 0.0))


def contents(result: Result, channel: str | None = None, *, scaled: bool = True) -> Contents:
    """Take from a result what its figure shows, of one flavour category (``4e``, ``4mu``, ``2e2mu``) or of all.

    Data that can't be compared with the simulation (``Luminosity.compared``) are not shown beside it. Not ``scaled`` to
    the data that were read, simulation is that of the luminosity asked for. Raises UsageError if the result has no such
    channel.
    """
    edges = np.array(result.edges)
    simulation: list[Layer] = []
    data = None
    factor = 1.0 if scaled else result.luminosity.asked / result.luminosity.simulation
    # Sorting is stable: within a role, groups keep the catalogue's order.
    for name, group in sorted(result.groups.items(), key=lambda item: item[1].role == "signal"):
        bins = _bins(result, group, channel)
        sumw = np.array(bins.sumw)
        if group.role != "data":
            simulation.append(Layer(name, group.colour, factor * sumw, factor**2 * np.array(bins.sumw2)))
        elif result.luminosity.compared:
            data = sumw if data is None else data + sumw
    return Contents(edges, simulation, data, divisible=result.is_whole and factor == 1.0)


def _bins(result: Result, group: GroupResult, channel: str | None) -> Bins:
    if channel is None:
        return group
    if channel not in group.channels:
        raise UsageError(f"run {result.run_id} has no channel {channel!r}; it has {', '.join(group.channels)}")
    return group.channels[channel]
