"""The mass of the Higgs boson, from the bins of m4l in all regions. Formulas: arXiv:1007.1727.

**Signal.** Simulation is of 125 GeV. At a mass m each of its events is taken at m4l · m/125: the peak moves, and its
width grows with it. In bins that is done on the cumulative distribution, F_m(x) = F(x · 125/m), with F a monotone cubic
(Fritsch and Carlson, SIAM J. Numer. Anal. 17 (1980) 238) through its values at the bins' edges.

**Background.** In narrow bins it is few simulated events. Within ``RANGE`` that of each group and region is taken as a
straight line in m4l, which has the same yield and the same mean.

**Fit.** Free are m_H and the signal's strength, the same in all regions, and a factor of each background group, held by
what is stated of its normalisation and by its simulation's statistics. Likelihoods are Poisson's, minimised by MINUIT.

**Interval.** Up to where −2 ln λ is 1, which is right of many events (Wilks, Ann. Math. Stat. 9 (1938) 60). Of a few,
pseudo-experiments find the height at which it holds the true mass in 68.3 % of cases.

Importing this loads scipy and iminuit: import it where a mass is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from iminuit import Minuit
from numpy.typing import NDArray
from scipy import optimize
from scipy.interpolate import PchipInterpolator

from hzzray.errors import HzzrayError
from hzzray.statistics.fit_result import MassResult, MassScan, Quantity
from hzzray.statistics.model_inputs import ModelInputs, Process
from hzzray.statistics.progress import Progress, quiet
from hzzray.statistics.workspace import directions

#: The mass that signal is simulated with, where it is looked for, and what part of the axis is fitted [GeV].
SIMULATED, LOW, HIGH = 125.0, 115.0, 135.0
RANGE = (105.0, 145.0)

#: With wider bins the shape between their edges is a guess, and a warning is due; still wider ones aren't fitted [GeV].
WIDE, WIDEST = 1.0, 5.0

#: Masses that −2 ln λ is looked at for an interval, how exactly its ends are found between them [GeV], and how often it
#: holds the truth.
STEPS, PRECISION, COVERAGE = 81, 1e-4, 0.6827

#: Of fewer events than these the interval of many covers too little, as pseudo-experiments showed: docs/statistics.md.
FEW = 60.0

#: The figure that says how high −2 ln λ is at an interval's ends, and how many pseudo-experiments can tell it.
HEIGHT, LEAST_TOYS = "mass_height", 50

#: With less q₀ no mass is told, as there is no signal to tell it by; nor so near to an end of where it is looked for
#: [GeV].
LEAST_Q0, EDGE = 1.0, 0.05

Vector = NDArray[np.float64]


class MassError(HzzrayError):
    """A mass that can't be fitted, and why."""


class MassFit(NamedTuple):
    """Where −2 ln L is least: m_H with its errors [GeV], the strength, how much worse no signal fits.

    ``down`` and ``up`` reach to the farthest masses where −2 ln λ is as high as asked for, None where there is none in
    the range: a few events may have several minima. ``error`` is that of the curvature; ``factors``, the backgrounds'.
    """

    mass: float
    error: float
    down: float | None
    up: float | None
    strength: float
    q0: float
    twice_nll: float
    factors: tuple[float, ...]

    @property
    def untold(self) -> str:
        """Why this is no mass; empty where it is one."""
        if self.q0 < LEAST_Q0:
            return f"the data have no signal to tell a mass by: −2 ln λ of none is {self.q0:.2g}"
        if not LOW + EDGE < self.mass < HIGH - EDGE:
            return f"the data fit best at an end of where it is looked for, {LOW:g} to {HIGH:g} GeV"
        return ""

    @property
    def width(self) -> float:
        """The mean of both; of a few events the curvature says less. That, where there are none [GeV]."""
        return self.error if self.up is None or self.down is None else (self.up + self.down) / 2


@dataclass(frozen=True, eq=False)
class MassModel:
    """What is expected for a mass.

    ``edges`` and ``signal``, shape (regions, bins), are of the whole axis; ``backgrounds``, shape (groups, regions,
    bins), of the bins in ``inside``. Each group's factor was measured to be as ``measured`` says, ± ``known``.
    """

    edges: Vector
    inside: slice
    signal: Vector
    backgrounds: NDArray[np.float64]
    known: Vector
    measured: Vector

    @classmethod
    def of(cls, inputs: ModelInputs) -> MassModel:
        """Take it from a run's inputs; raises MassError where these don't do."""
        edges = inputs.edges
        width = float(edges[1] - edges[0])
        if inputs.observable != "m4l":
            raise MassError(f"a mass is fitted to m4l, not to {inputs.observable}")
        first, last = np.searchsorted(edges, (RANGE[0] - 1e-9, RANGE[1] + 1e-9))
        inside = slice(int(first), int(last) - 1)
        covered = edges[inside.stop] - edges[inside.start] if inside.stop > inside.start else 0.0
        if width > WIDEST or covered < HIGH - LOW or edges[inside.start] > LOW or edges[inside.stop] < HIGH:
            raise MassError(
                f"a mass needs m4l from {LOW:g} to {HIGH:g} GeV in bins of {WIDEST:g} GeV at most: --axis 80:250:340"
            )
        signal = np.maximum(inputs.total("signal"), 0.0)
        if not signal[:, inside].any():
            raise MassError("no signal is expected where a mass could be told")
        centres = (edges[1:] + edges[:-1])[inside] / 2
        backgrounds, known = [], []
        for group in dict.fromkeys(one.group for one in inputs.processes if one.role == "background"):
            members = [one for one in inputs.processes if one.group == group]
            sumw, sumw2 = (sum((getattr(m, f)[:, inside] for m in members), np.zeros(1)) for f in ("sumw", "sumw2"))
            if sumw.sum() > 0:
                backgrounds.append(straight(sumw, centres))
                known.append(math.hypot(_stated(members, inside), math.sqrt(sumw2.sum()) / sumw.sum()))
        if not backgrounds:
            raise MassError("no background is expected where a mass could be told")
        return cls(edges, inside, signal, np.array(backgrounds), np.array(known), np.ones(len(known)))

    @cached_property
    def _cumulative(self) -> list[PchipInterpolator]:
        sums = np.concatenate((np.zeros((len(self.signal), 1)), np.cumsum(self.signal, axis=1)), axis=1)
        return [PchipInterpolator(self.edges, row) for row in sums]

    def signal_at(self, mass: float) -> NDArray[np.float64]:
        """Expect so much signal of µ = 1 in the bins inside, shape (regions, bins)."""
        within = self.edges[self.inside.start : self.inside.stop + 1]
        at = np.clip(within * SIMULATED / mass, self.edges[0], self.edges[-1])
        found: NDArray[np.float64] = np.maximum([np.diff(curve(at)) for curve in self._cumulative], 0.0)
        return found

    def expected(self, mass: float, strength: float, factors: Vector) -> NDArray[np.float64]:
        """Expect so many events in the bins inside, shape (regions, bins)."""
        total: NDArray[np.float64] = strength * self.signal_at(mass) + np.tensordot(factors, self.backgrounds, axes=1)
        return total

    def twice_nll(self, data: NDArray[np.float64], mass: float, strength: float, factors: Vector) -> float:
        """−2 ln L of counts of shape (regions, bins), without what doesn't depend on the parameters."""
        expected = np.maximum(self.expected(mass, strength, factors), 1e-12)
        constraint = float((((factors - self.measured) / self.known) ** 2).sum())
        return 2.0 * float((expected - data * np.log(expected)).sum()) + constraint

    def fit(self, data: NDArray[np.float64], *, errors: bool = True) -> MassFit:
        """Fit counts of shape (regions, bins inside); raises MassError where MINUIT finds no minimum.

        A few events may pull to several masses: it begins at each of some, and the deepest minimum counts. ``errors``
        take longer than all else: they reach to where −2 ln λ is 1.
        """
        starts = (self._minuit(data, mass) for mass in np.linspace(LOW + 3, HIGH - 3, 5))
        found = [minuit.migrad() for minuit in starts]
        valid = [minuit for minuit in found if minuit.valid]
        if not valid:
            raise MassError("the fit of the mass does not converge")
        best = min(valid, key=lambda minuit: float(minuit.fval))
        none = self._minuit(data, SIMULATED, strength=0.0).migrad()
        best.hesse()
        values = best.values
        q0 = max(float(none.fval - best.fval), 0.0)
        factors = tuple(float(value) for value in values[2:])
        fitted = MassFit(values[0], float(best.errors[0]), None, None, values[1], q0, float(best.fval), factors)
        return self.reaching(data, fitted, 1.0) if errors else fitted

    def reaching(self, data: NDArray[np.float64], fitted: MassFit, height: float) -> MassFit:
        """Let the errors of a fit of these counts reach to where −2 ln λ has a height."""
        down, up = self._interval(data, fitted, height)
        return fitted._replace(down=down, up=up)

    def toy(self, truth: MassFit, rng: np.random.Generator) -> tuple[MassModel, NDArray[np.float64]]:
        """Throw a pseudo-experiment of ``truth``: what was measured of the backgrounds before, and the counts."""
        factors = np.array(truth.factors)
        counts = rng.poisson(self.expected(truth.mass, truth.strength, factors)).astype(float)
        return replace(self, measured=rng.normal(factors, self.known)), counts

    def heights(self, truth: MassFit, toys: int, seed: int, progress: Progress = quiet) -> Vector:
        """Return −2 ln λ of the true mass in pseudo-experiments, sorted.

        Those in which no mass would be told (see ``untold``) are left out, and those whose fit doesn't converge.
        """
        rng = np.random.default_rng(seed)
        heights = []
        for i in range(toys):
            model, counts = self.toy(truth, rng)
            with suppress(MassError):
                found = model.fit(counts, errors=False)
                held = model.at(counts, truth.mass, found)
                if not found.untold and held.valid:
                    heights.append(max(float(held.fval) - found.twice_nll, 0.0))
            progress("pseudo-experiments of the mass", i + 1, toys)
        return np.sort(heights)

    def _minuit(self, data: NDArray[np.float64], mass: float, *, strength: float | None = None) -> Minuit:
        """Prepare a fit that begins at a mass; with the ``strength`` given, both are held."""

        def objective(at: Vector) -> float:
            return self.twice_nll(data, at[0], at[1], at[2:])

        names = ["mass", "strength", *(f"background {i}" for i in range(len(self.known)))]
        begin = [mass, 1.0 if strength is None else strength, *np.ones(len(self.known))]
        minuit = Minuit(objective, np.array(begin), name=names)
        minuit.errordef, minuit.tol = Minuit.LEAST_SQUARES, 1e-2
        minuit.limits = [(LOW, HIGH), (0.0, 100.0), *[(1e-3, 1.0 + 10.0 * max(k, 0.1)) for k in self.known]]
        minuit.errors = [0.5, 0.3, *np.maximum(self.known, 0.01)]
        minuit.fixed = [strength is not None, strength is not None, *[False] * len(self.known)]
        return minuit

    def at(self, data: NDArray[np.float64], mass: float, start: MassFit | None = None) -> Minuit:
        """Fit with the mass held, all else free, beginning from a fit if one is given."""
        minuit = self._minuit(data, mass)
        if start is not None:
            minuit.values[1:] = (start.strength, *start.factors)
        minuit.fixed["mass"] = True
        return minuit.migrad()

    def _interval(self, data: NDArray[np.float64], best: MassFit, height: float) -> tuple[float | None, float | None]:
        """Return how far down and up the farthest masses lie where −2 ln λ is so high: between steps that it is beyond.

        Of a few events there may be several minima, and so all steps are looked at.
        """

        def above(mass: float) -> float:
            return float(self.at(data, mass, best).fval) - best.twice_nll - height

        masses = np.linspace(LOW, HIGH, STEPS)
        inside = [best.mass, *(mass for mass in masses if above(mass) <= 0.0)]
        first, last = min(inside), max(inside)
        lower, higher = masses[masses < first], masses[masses > last]
        down = best.mass - _crossing(above, first, lower[-1]) if len(lower) else None
        up = _crossing(above, last, higher[0]) - best.mass if len(higher) else None
        return down, up

    def scan(self, data: NDArray[np.float64], best: MassFit, points: int = 61) -> MassScan:
        """Scan −2 ln λ along the mass, all else at its best for each."""
        reach = float(np.clip(3.5 * best.width, 1.0, HIGH - LOW))
        masses = np.linspace(max(LOW, best.mass - reach), min(HIGH, best.mass + reach), points)
        heights = [max(float(self.at(data, float(mass)).fval) - best.twice_nll, 0.0) for mass in masses]
        return MassScan(mass=tuple(masses.tolist()), twice_delta_nll=tuple(heights))


def _crossing(above: Callable[[float], float], inside: float, outside: float) -> float:
    """Find where a function is 0, between where it is below and where it is above."""
    if above(inside) >= 0.0:
        return inside
    found: float = optimize.brentq(above, inside, outside, xtol=PRECISION)
    return found


def _stated(members: list[Process], inside: slice) -> float:
    """Tell how well the sum of some processes is known, relative, from what is stated of their normalisation."""
    total = sum(float(one.sumw[:, inside].sum()) for one in members)
    stated = dict.fromkeys(one for member in members for one in member.uncertainties)
    moved = (
        one.relative * sum(float(member.sumw[:, inside].sum()) for member in members if one in member.uncertainties)
        for one in stated
    )
    return math.hypot(*(move / total for move in moved))


def straight(sumw: NDArray[np.float64], centres: Vector) -> NDArray[np.float64]:
    """Take contents of shape (regions, bins) as straight lines of the same yields and means, nowhere below 0."""
    x = (centres - centres.mean()) / (np.ptp(centres) / 2 + (centres[1] - centres[0]) / 2)
    yields = np.maximum(sumw.sum(axis=1, keepdims=True), 0.0)
    slope = (sumw * x).sum(axis=1, keepdims=True) / np.where(yields > 0, yields, 1.0) / (x**2).mean()
    line: NDArray[np.float64] = yields / len(x) * (1.0 + np.clip(slope, -1.0, 1.0) * x)
    return line


class Reach(NamedTuple):
    """How far an interval reaches: the height of −2 ln λ, and how that was found of how many pseudo-experiments."""

    height: float = 1.0
    how: str = ""


def reach_of(heights: Vector, toys: int, seed: int) -> Reach:
    """Take the height below which COVERAGE of some pseudo-experiments lie, the next one counted with them.

    Raises MassError where they are too few to say so.
    """
    rank = math.ceil((len(heights) + 1) * COVERAGE)
    if len(heights) < LEAST_TOYS:
        raise MassError(
            f"{len(heights)} of {toys} pseudo-experiments tell a mass; {LEAST_TOYS} or more say how far its interval"
            " reaches"
        )
    return Reach(
        float(heights[rank - 1]),
        f"−2 ln λ below which {COVERAGE:.1%} of {len(heights)} pseudo-experiments have their own mass (of {toys}, seed"
        f" {seed}: the others tell none)",
    )


def fit_mass(inputs: ModelInputs, *, toys: int = 0, seed: int = 1, progress: Progress = quiet) -> MassResult:
    """Fit the mass and say all that follows; raises MassError where the inputs don't do.

    Without data, or where these tell no mass, figures are withheld with the reason. With ``toys``
    the interval is that of so many pseudo-experiments of what was found.
    """
    model = MassModel.of(inputs)
    asimov = model.expected(SIMULATED, 1.0, np.ones(len(model.known)))
    expected = model.fit(asimov)
    counts = None if inputs.data is None else inputs.data[:, model.inside]
    found = None if counts is None else model.fit(counts, errors=False)
    why, reach, notes = inputs.no_data, Reach(), []
    if found is not None and found.untold:
        why, found = found.untold, None
    if found is not None and counts is not None and toys:
        try:
            reach = reach_of(model.heights(found, toys, seed, progress), toys, seed)
        except MassError as error:
            notes.append(f"the mass: {error}")
    elif found is not None and asimov.sum() < FEW:
        notes.append(
            f"the mass: {asimov.sum():.0f} events are expected; of so few its interval holds the truth in some 60 % of"
            " cases, not in 68; --toys 300 finds how far it must reach"
        )
    if found is not None and counts is not None:
        found = model.reaching(counts, found, reach.height)
    shown, of = (found, counts) if found is not None and counts is not None else (expected, asimov)
    figures = dict(_figures(found, expected, why, reach)) | dict(_scale_figures(inputs, model.inside))
    width = float(model.edges[1] - model.edges[0])
    if width > WIDE:
        guess = f"the mass: bins of {width:g} GeV, between their edges the shape is a guess (0.3 GeV off when tried)"
        notes.insert(0, f"{guess}; --axis 80:250:340")
    return MassResult(figures=figures, scan=model.scan(of, shown), notes=tuple(notes))


def _figures(found: MassFit | None, expected: MassFit, why: str, reach: Reach) -> Iterator[tuple[str, Quantity]]:
    figure: Callable[..., Quantity] = partial(Quantity.of, unit="GeV")
    yield "mass", figure(None if found is None else found.mass, "m_H where −2 ln λ is least", why)
    error = "the mean of mass_up and mass_down, the curvature's error where one is open: statistics, µ, backgrounds"
    yield "mass_error", figure(None if found is None else found.width, error, why)
    if reach.how:
        yield HEIGHT, Quantity(value=reach.height, definition=reach.how)
    rule = f"{reach.height:.2f}, {HEIGHT}" if reach.how else "1"
    for name, width in (("up", found and found.up), ("down", found and found.down)):
        absent = why or f"none from {LOW:g} to {HIGH:g} GeV"
        yield f"mass_{name}", figure(width, f"to the farthest mass where −2 ln λ is {rule}, {name}", absent)
    said = "mass_error of what is expected of µ = 1 at 125 GeV, to where −2 ln λ is 1"
    yield "mass_error_expected", figure(expected.width, said, "")
    yield "mass_expected", figure(expected.mass, "m_H fitted to these: 125 GeV but for interpolation", "")


def _scale_figures(inputs: ModelInputs, inside: slice) -> Iterator[tuple[str, Quantity]]:
    scales = list(_scales(inputs, inside))
    none = "the run has no variations of lepton energies"
    moved = "what lepton energies' variations move the signal's mean by, in quadrature"
    yield "mass_scale", Quantity.of(math.hypot(*scales) if scales else None, moved, none, unit="GeV")


def _scales(inputs: ModelInputs, inside: slice) -> Iterator[float]:
    """Tell how far each variation moves the mean of the signal's m4l [GeV]."""
    centres = ((inputs.edges[1:] + inputs.edges[:-1]) / 2)[inside]
    signals = [one for one in inputs.processes if one.role == "signal"]
    names = dict.fromkeys(name for one in signals for name in one.variations)
    nominal = inputs.total("signal")
    varied = {name: sum((one.variations.get(name, one.sumw) for one in signals), np.zeros(1)) for name in names}
    for up, down in directions(varied, nominal).values():
        means = [(shape[:, inside] * centres).sum() / max(shape[:, inside].sum(), 1e-12) for shape in (up, down)]
        yield abs(means[0] - means[1]) / 2
