"""What a result counts, row by row: the cutflow with its efficiencies, and yields with and without flow bins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hzzray.physics.histogram import Axis
from hzzray.runs.result import Bins, GroupResult, Result, SampleResult

By = Literal["sample", "group"]


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A share of events that pass, in [0, 1] where no weight is negative, and its binomial error; None for 0 of 0."""

    value: float | None
    error: float | None

    def __str__(self) -> str:
        """Write it in per cent."""
        if self.value is None:
            return "–"
        if self.error is None:
            return f"{100 * self.value:.4g}"
        digits = max(0, 1 - math.floor(math.log10(100 * self.error))) if self.error > 0 else 0
        return f"{100 * self.value:.{min(digits, 6)}f} ± {100 * self.error:.{min(digits, 6)}f}"


@dataclass(frozen=True, slots=True)
class CutflowRow:
    """Events that are left after a cut, raw and weighted, and what share that is.

    Attributes
    ----------
    cut
        Its name; the first row's is of all that were read.
    n, yield_
        Raw events, and the sum of their weights as the result scales them.
    absolute, relative
        Share of all, and of those that the row before left, in raw events. Errors are √(ε(1−ε)/N).
    weighted_absolute, weighted_relative
        The same in yields. A cutflow keeps no squares of weights: N is the raw number times (Σw)²/(n·Σw²) of the
        events that pass all cuts (Kish's effective sample size), 1 where none does; samples of a group are added up
        as strata.
    """

    cut: str
    n: int
    yield_: float
    absolute: Efficiency
    relative: Efficiency
    weighted_absolute: Efficiency
    weighted_relative: Efficiency

    def plain(self) -> dict[str, str | int | float | None]:
        """Lay it out flat, as JSON and data frames have it: efficiencies are shares, not per cent."""
        shares = ("absolute", "relative", "weighted_absolute", "weighted_relative")
        rows = {name: getattr(self, name) for name in shares}
        flat = {
            f"{name}{end}": value for name, one in rows.items() for end, value in zip(_ENDS, _pair(one), strict=True)
        }
        return {"cut": self.cut, "n": self.n, "yield": self.yield_, **flat}


_ENDS = ("", "_error")


def _pair(one: Efficiency) -> tuple[float | None, float | None]:
    return one.value, one.error


@dataclass(frozen=True, slots=True)
class _Stratum:
    """One sample's cutflow: raw events, yields, and how much a raw event counts as."""

    n: Sequence[int]
    sumw: Sequence[float]
    effective: float


def cutflow(result: Result, by: By = "sample") -> dict[str, tuple[CutflowRow, ...]]:
    """Tell of each sample, or of each group, what its cuts leave; groups at ``Result.luminosity.simulation``.

    Samples that were not read, or of which it is unknown what part was, are in no group, as in the result.
    """
    if by == "sample":
        return {name: _rows(result.spec.rows, [_stratum(sample, 1.0)]) for name, sample in result.samples.items()}
    flows = {}
    for name, group in result.groups.items():
        members = [
            _stratum(sample, result.side_by_side(sample))
            for sample in result.samples.values()
            if sample.group == name and (sample.luminosity is not None or group.role == "data")
        ]
        flows[name] = _rows(result.spec.rows, members)
    return flows


def _stratum(sample: SampleResult, factor: float) -> _Stratum:
    squares = sample.n_out * sample.yield_error**2
    effective = sample.yield_**2 / squares if squares else 1.0
    return _Stratum([row.n for row in sample.cutflow], [factor * row.yield_ for row in sample.cutflow], effective)


def _rows(cuts: Sequence[str], strata: Sequence[_Stratum]) -> tuple[CutflowRow, ...]:
    def added(at: int) -> tuple[int, float]:
        return sum(one.n[at] for one in strata), sum(one.sumw[at] for one in strata)

    rows = []
    for i, cut in enumerate(cuts):
        before = max(0, i - 1)
        n, sumw = added(i)
        rows.append(
            CutflowRow(
                cut, n, sumw, _raw(strata, i, 0), _raw(strata, i, before), _weighted(strata, i, 0),
                _weighted(strata, i, before),
            )
        )  # fmt: skip
    return tuple(rows)


def _raw(strata: Sequence[_Stratum], at: int, of: int) -> Efficiency:
    passed, whole = (sum(one.n[i] for one in strata) for i in (at, of))
    if not whole:
        return Efficiency(None, None)
    share = passed / whole
    return Efficiency(share, math.sqrt(share * (1 - share) / whole))


def _weighted(strata: Sequence[_Stratum], at: int, of: int) -> Efficiency:
    whole = sum(one.sumw[of] for one in strata)
    if not whole:
        return Efficiency(None, None)
    variance = 0.0
    for one in strata:
        if one.n[of] and one.sumw[of] and one.effective:
            share = one.sumw[at] / one.sumw[of]
            variance += (one.sumw[of] / whole) ** 2 * max(0.0, share * (1 - share)) / (one.n[of] * one.effective)
    return Efficiency(sum(one.sumw[at] for one in strata) / whole, math.sqrt(variance))


@dataclass(frozen=True, slots=True)
class YieldRow:
    """What a sample or a group yields of a result's observable, simulation with √Σw².

    Attributes
    ----------
    events
        Raw events that pass all cuts.
    with_flow, on_axis, in_window
        Yields and their errors: of all that pass, of those on the axis, of those in the significance's window, which
        is None where there is none.
    """

    name: str
    group: str
    role: str
    events: int
    with_flow: tuple[float, float]
    on_axis: tuple[float, float]
    in_window: tuple[float, float] | None

    def plain(self) -> dict[str, str | int | float | None]:
        """Lay it out flat, as JSON and data frames have it."""
        flat: dict[str, str | int | float | None] = {
            "name": self.name, "group": self.group, "role": self.role, "events": self.events,
        }  # fmt: skip
        for name, pair in (("with_flow", self.with_flow), ("on_axis", self.on_axis), ("in_window", self.in_window)):
            flat[name], flat[f"{name}_error"] = (None, None) if pair is None else pair
        return flat


def yields(result: Result, by: By = "group") -> tuple[YieldRow, ...]:
    """Tell what each sample (at the luminosity asked for) or group (at that of the data) yields."""
    rows: dict[str, SampleResult] | dict[str, GroupResult] = result.samples if by == "sample" else result.groups
    window = result.significance.window if result.is_first else None
    inside = Axis(result.edges[0], result.edges[-1], len(result.edges) - 1).window(*window) if window else None

    def row(name: str, bins: SampleResult | GroupResult) -> YieldRow:
        group = bins.group if isinstance(bins, SampleResult) else name
        return YieldRow(
            name=name,
            group=group,
            role=result.groups[group].role,
            events=bins.n_out,
            with_flow=(bins.yield_, bins.yield_error),
            on_axis=_sum(bins, slice(None)),
            in_window=None if inside is None else _sum(bins, inside),
        )

    return tuple(row(name, bins) for name, bins in rows.items())


def _sum(bins: Bins, inside: slice) -> tuple[float, float]:
    return sum(bins.sumw[inside]), math.sqrt(sum(bins.sumw2[inside]))
