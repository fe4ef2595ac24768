"""What a fit found, as ``fit.json`` has it: each figure with its definition and its unit. Loads no pyhf."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quantity(_Frozen):
    """A number, what it means, and its unit ("" for none); None where it is withheld, with the reason."""

    value: float | None = Field(allow_inf_nan=False)
    unit: str = ""
    definition: str
    withheld: str = ""

    @classmethod
    def of(cls, value: float | None, definition: str, absent: str, unit: str = "") -> Self:
        """Make one that may not be there, and say why it isn't."""
        return cls(value=value, unit=unit, definition=definition, withheld="" if value is not None else absent)


class ParameterResult(_Frozen):
    """A nuisance parameter: where the fit has it, how well it was ``known`` before, what it does to µ̂.

    ``pull`` is how far it went, ``constraint`` its error afterwards, both in units of ``known``. Impacts are shifts
    of µ̂ with the parameter held at plus or minus its error after the fit, or at plus or minus ``known`` (``…_before``).
    """

    name: str
    value: float
    error: float
    known: float
    pull: float
    constraint: float
    impact_up: float | None = None
    impact_down: float | None = None
    impact_up_before: float | None = None
    impact_down_before: float | None = None


class YieldResult(_Frozen):
    """Events of a process in a region, or of all (``total``), before the fit (µ = 1) and after it."""

    region: str
    process: str
    group: str
    before: float
    before_error: float
    after: float
    after_error: float
    data: float | None = None


class BinResult(_Frozen):
    """A region's bins: events by group before and after the fit, the error of their sum, the data."""

    region: str
    edges: tuple[float, ...]
    before: dict[str, tuple[float, ...]]
    after: dict[str, tuple[float, ...]]
    before_error: tuple[float, ...]
    after_error: tuple[float, ...]
    data: tuple[float, ...] | None


class MassScan(_Frozen):
    """−2 ln λ along m_H."""

    mass: tuple[float, ...]
    twice_delta_nll: tuple[float, ...]


class MassResult(_Frozen):
    """The mass: figures as in the fit, and the likelihood's scan."""

    figures: dict[str, Quantity]
    scan: MassScan
    notes: tuple[str, ...] = ()


class FitPoint(_Frozen):
    """What a fit found when a ``fraction`` of the events had been read: µ̂, from where to where, significances in σ."""

    fraction: float
    mu: float
    low: float
    high: float
    z_observed: float | None
    z_expected: float | None


class FitResult(_Frozen):
    """A fit's figures by name, its nuisance parameters, correlations, yields and bins.

    ``observed`` tells whether it is one of data; if not, ``no_data`` says why, and it is one of what is expected.
    ``points`` are how it came about, where a run was fitted while it went on.
    """

    run_id: str = ""
    spec: str = Field(default="", description="SHA-256 that names what the run computes")
    digest: str = Field(default="", description="SHA-256 of the run's bins")
    observable: str = ""
    unit: str = ""
    luminosity: float | None = Field(default=None, description="fb⁻¹")
    fraction: float = 1.0
    observed: bool
    no_data: str = ""
    figures: dict[str, Quantity]
    parameters: tuple[ParameterResult, ...]
    names: tuple[str, ...]
    correlations: tuple[tuple[float, ...], ...]
    yields: tuple[YieldResult, ...]
    bins: tuple[BinResult, ...]
    mass: MassResult | None = None
    points: tuple[FitPoint, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)

    def after(self, earlier: tuple[FitPoint, ...]) -> Self:
        """Return it with its own point behind earlier ones, those of less of the run."""
        points = [point for point in earlier if point.fraction < self.fraction]
        if (mu := self.value("mu")) is not None:
            low, high = self.reach
            z = {name: self.value(name) for name in ("z_observed", "z_expected")}
            points.append(FitPoint(fraction=self.fraction, mu=mu, low=low, high=high, **z))
        return self.model_copy(update={"points": tuple(points)})

    @property
    def reach(self) -> tuple[float, float]:
        """From where to where µ̂ is within its error; at its bound of 0, from there up."""
        mu, error, up = (self.value(name) or 0.0 for name in ("mu", "mu_error", "mu_up"))
        return (mu, mu + up) if self.value("mu_error") is None else (mu - error, mu + error)

    def value(self, name: str) -> float | None:
        """Return a figure's number; None where it is withheld, or wasn't asked for."""
        figure = self.figures.get(name)
        return None if figure is None else figure.value
