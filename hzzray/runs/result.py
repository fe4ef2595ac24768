"""The numbers of a run, finished or not: what ``result.json`` holds and what every picture is drawn from."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hzzray.data.catalogue import Role, Sample
from hzzray.messages import SPEC_VERSION, Entries, RunSpec, RunState, Status
from hzzray.physics.analysis import Template
from hzzray.physics.histogram import Axis, Yields
from hzzray.runs.tables import Moment
from hzzray.statistics import significance as z
from hzzray.statistics.scaling import Need, Reading, Scaling, reading, scaling
from hzzray.urls import redact
from hzzray.version import __version__

# So many events, none of which passes a cut that any sample's events pass, say that something is wrong.
_MANY = 10


class _Frozen(BaseModel):
    """A frozen part of a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class CutCount(_Frozen):
    """One row of a cutflow: raw and weighted events that are left after the cut."""

    cut: str
    n: int
    yield_: float = Field(alias="yield")


class Bins(_Frozen):
    """Binned yields. ``sumw`` and ``sumw2`` are per bin of ``Result.edges``; the rest is in the flow fields.

    ``n_out`` and the ``n_…flow`` fields are raw events. The results of earlier versions lack those that may be None.
    """

    n_out: int
    yield_: float = Field(alias="yield")
    yield_error: float
    sumw: tuple[float, ...]
    sumw2: tuple[float, ...]
    underflow: float
    overflow: float
    underflow_sumw2: float | None = None
    overflow_sumw2: float | None = None
    n_underflow: int | None = None
    n_overflow: int | None = None


class SampleResult(Bins):
    """One sample: all channels together, and each of them. Errors are √Σw² of the simulation's statistics.

    ``entries`` counts events read, ``planned`` those to read, ``total`` those of its files or, where some of them
    (``unopened``) could not be opened, those that the release states. ``invalid`` counts events with nan or inf (in a
    lepton, in a weight), which no cut after the second row sees. Simulation is that of the run's luminosity: what was
    read times ``scale``, total/entries. Data are what was read. ``luminosity`` [fb⁻¹] is what the numbers stand for;
    None where nothing was read, where the catalogue doesn't say, or where it is unknown what part of all was read.
    """

    group: str
    entries: int
    planned: int
    total: int | None = None
    unopened: int = 0
    scale: float = 1.0
    luminosity: float | None = None
    invalid: dict[str, int]
    cutflow: tuple[CutCount, ...]
    channels: dict[str, Bins]


class GroupResult(Bins):
    """Samples stacked as one; simulation is scaled to ``Result.luminosity.simulation``."""

    role: Role
    colour: str
    channels: dict[str, Bins]


class Significance(_Frozen):
    """Counts of the window and their significances, simulation at ``Result.luminosity.simulation``.

    None where no window was chosen, their ingredients were not read, or where the counts define none: ``withheld`` has
    the reason, by field.
    ``sigma_b`` is the uncertainty of the background that the ``…_sigma`` ones take: in quadrature the simulation's
    statistical one, ``n_background_error``, and what is stated of normalisations, ``n_background_stated``
    (``Release.stated_error``). The notebooks' √0.3·b is in ``notebook`` and ``asimov_notebook`` alone. See
    ``hzzray.statistics.significance``.
    """

    window: tuple[float, float] | None
    n_signal: float | None
    n_background: float | None
    n_background_error: float | None
    n_background_stated: float | None = None
    sigma_b: float | None
    n_data: int | None
    notebook: float | None
    s_over_sqrt_b: float | None
    s_over_sqrt_b_sigma: float | None
    asimov: float | None
    asimov_sigma: float | None
    observed: float | None
    observed_sigma: float | None
    asimov_notebook: float | None = None
    withheld: dict[str, str] = Field(default_factory=dict)

    @property
    def unread(self) -> dict[str, str]:
        """Those of ``withheld`` that lack something of the run, rather than a window."""
        return {name: why for name, why in self.withheld.items() if why != NO_WINDOW}


class Luminosity(_Frozen):
    """What the numbers that stand side by side stand for, in fb⁻¹.

    ``asked`` is the run's, ``simulation`` that which groups and significances are scaled to, ``data`` that of the data
    that were read: None where none were, or where the catalogue doesn't say.
    """

    asked: float = Field(gt=0, allow_inf_nan=False)
    simulation: float = Field(gt=0, allow_inf_nan=False)
    data: float | None = Field(gt=0, allow_inf_nan=False)

    @property
    def compared(self) -> bool:
        """Whether data and simulation are of one luminosity."""
        return self.data is not None and math.isclose(self.data, self.simulation, rel_tol=1e-9)

    def __str__(self) -> str:
        """Say it in one line."""
        if self.data is None:
            return f"{self.asked:.4g} fb⁻¹: simulation alone"
        if not self.compared:
            return f"simulation {self.simulation:.4g} fb⁻¹, data {self.data:.4g} fb⁻¹: not compared"
        if math.isclose(self.data, self.asked, rel_tol=1e-9):
            return f"{self.data:.4g} fb⁻¹"
        return f"{self.data:.4g} of {self.asked:.4g} fb⁻¹: the data that were read, simulation scaled to them"


class Tasks(_Frozen):
    """Tasks planned, merged and failed. A finished run has planned = merged + failed."""

    planned: int
    merged: int
    failed: int


class CostResult(_Frozen):
    """What the run took: seconds of wall clock and, summed over workers, of CPU and of reading; bytes read."""

    wall_s: float
    cpu_s: float
    read_s: float
    bytes_read: int
    events: int
    events_per_s: float


class FailureRow(_Frozen):
    """A failed task as the result lists it."""

    sample: str
    file: str
    start: int
    stop: int
    reason: str


class Result(_Frozen):
    """A run's numbers, finished or not. Everything in ``groups`` and ``significance`` is of one luminosity."""

    run_id: str
    spec: RunSpec
    environment: str
    status: Status
    tasks: Tasks
    digest: str
    variations_digest: str = Field(
        default="", exclude_if=lambda value: not value, description="SHA-256 of the exact bins of all variations"
    )
    fraction: float = Field(description="entries read / entries of the run's samples")
    luminosity: Luminosity
    shown: str = Field(default="", exclude=True, description="an observable that isn't the first, where one is shown")
    edges: tuple[float, ...]
    samples: dict[str, SampleResult]
    groups: dict[str, GroupResult]
    significance: Significance
    missing: tuple[str, ...]
    warnings: tuple[str, ...] = Field(default=(), description="what a reader of the numbers must know, but failures")
    failures: tuple[FailureRow, ...]
    cost: CostResult
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _of_this_version(cls, values: object) -> object:
        """Refuse a result of another version, by the version that made it."""
        found = values if isinstance(values, dict) else {}
        spec, made_by = found.get("spec"), found.get("versions")
        of = spec.get("version") if isinstance(spec, dict) else SPEC_VERSION
        if of != SPEC_VERSION:
            maker = made_by.get("hzzray") if isinstance(made_by, dict) else None
            raise ValueError(
                f"a result of version {str(of)[:9]}, made by hzzray {str(maker)[:20]}; "
                f"hzzray {__version__} reads version {SPEC_VERSION}"
            )
        return values

    @property
    def observable(self) -> Template:
        """The template whose bins these are: the spec's first, or what ``templates.showing`` put in its place."""
        chosen = self.shown or self.spec.templates[0].observable
        return next(template for template in self.spec.templates if template.observable == chosen)

    @property
    def is_first(self) -> bool:
        """Whether these are the bins that the window, the significance and the digest belong to."""
        return self.observable is self.spec.templates[0]

    @property
    def is_whole(self) -> bool:
        """Whether the stack lacks nothing of what the run is to predict: so that data may be divided by it."""
        unread = self.significance.unread
        signals = any(self.groups[sample.group].role == "signal" for sample in self.samples.values())
        return "n_background" not in unread and not (signals and "n_signal" in unread)

    def unread(self, group: str) -> list[str] | None:
        """Name the samples of a group that are not in its numbers; None where that is all of them.

        Nothing was read of them, or of simulation an unknown part.
        """
        members = {name: sample for name, sample in self.samples.items() if sample.group == group}
        simulated = self.groups[group].role != "data"
        lacking = [
            name
            for name, sample in members.items()
            if (not sample.entries and sample.total != 0) or (simulated and sample.unopened and sample.total is None)
        ]
        return None if len(lacking) == len(members) else lacking

    def side_by_side(self, sample: SampleResult) -> float:
        """Tell the factor from a sample's numbers to those of its group."""
        simulated = self.groups[sample.group].role != "data"
        return self.luminosity.simulation / self.luminosity.asked if simulated else 1.0


def binned(n_out: int, sumw: NDArray[np.float64], sumw2: NDArray[np.float64]) -> dict[str, Any]:
    """Lay out sums with flow bins, shape (bins + 2,), as ``Bins``."""
    return {
        "n_out": n_out,
        "yield": float(sumw.sum()),
        "yield_error": float(np.sqrt(sumw2.sum())),
        "sumw": tuple(sumw[1:-1].tolist()),
        "sumw2": tuple(sumw2[1:-1].tolist()),
        "underflow": float(sumw[0]),
        "overflow": float(sumw[-1]),
        "underflow_sumw2": float(sumw2[0]),
        "overflow_sumw2": float(sumw2[-1]),
    }


@dataclass(frozen=True, eq=False, slots=True)
class _RegionYields:
    """Yields by channel and bin with flow bins, shape (channels, bins + 2)."""

    n: NDArray[np.int64]
    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]

    def scaled(self, factor: float) -> _RegionYields:
        """Scale the weights."""
        return _RegionYields(self.n, self.sumw * factor, self.sumw2 * factor**2)

    def bins(self) -> dict[str, Any]:
        """Lay out all channels together as ``Bins``."""
        n, sumw, sumw2 = (array.sum(axis=0) for array in (self.n, self.sumw, self.sumw2))
        flow = {"n_underflow": int(n[0]), "n_overflow": int(n[-1])}
        return {**binned(int(n.sum()), sumw, sumw2), **flow}

    def channels(self, regions: Sequence[str]) -> dict[str, Bins]:
        """Lay out each channel."""
        return {
            name: Bins.model_validate(_RegionYields(self.n[[i]], self.sumw[[i]], self.sumw2[[i]]).bins())
            for i, name in enumerate(regions)
        }


def _total(parts: Iterable[_RegionYields], regions: Sequence[str], axis: Axis) -> _RegionYields:
    shape = (len(regions), axis.bins + 2)
    total = _RegionYields(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))
    for part in parts:
        total = _RegionYields(total.n + part.n, total.sumw + part.sumw, total.sumw2 + part.sumw2)
    return total


#: Why there are no figures where all that they need was read.
NO_WINDOW = "no window is chosen to count in (--window LOW:HIGH)"

#: What each figure is made of.
_NEEDS: dict[str, tuple[Need, ...]] = {
    "n_signal": ("signal",),
    "n_background": ("background",),
    "n_background_error": ("background",),
    "n_background_stated": ("background",),
    "sigma_b": ("background",),
    "n_data": ("data",),
    **dict.fromkeys(
        ("notebook", "s_over_sqrt_b", "s_over_sqrt_b_sigma", "asimov", "asimov_sigma", "asimov_notebook"),
        ("signal", "background"),
    ),
    **dict.fromkeys(("observed", "observed_sigma"), ("data", "background", "comparison")),
}


class _Counts(NamedTuple):
    """What is counted in a window: signal, background with its errors by statistics and as stated, data."""

    s: float
    b: float
    b_error: float
    b_stated: float
    n: int


def significance(
    axis: Axis,
    window: tuple[float, float] | None,
    groups: Sequence[tuple[Role, Bins]],
    lacking: Mapping[Need, str] | None = None,
    stated: Callable[[slice], float] = lambda _: 0.0,
) -> Significance:
    """Count signal, background and data in a window of GeV, and say what the counts mean.

    ``lacking`` says of what there is none, and why: figures that need it are withheld. ``stated`` tells, of bins, how
    well the background is known beside the simulation's statistics [events]. Raises ValueError where the window doesn't
    lie on bin edges.
    """
    if window is None:
        needs: tuple[Need, ...] = ("signal", "background", "data")
        nothing = _Counts(0.0, 0.0, 0.0, 0.0, 0)
        return _meaning(None, nothing, dict.fromkeys(needs, NO_WINDOW) | dict(lacking or {}))
    inside = axis.window(*window)

    def count(role: Role, field: Literal["sumw", "sumw2"]) -> float:
        return float(sum(sum(getattr(bins, field)[inside]) for its_role, bins in groups if its_role == role))

    counts = _Counts(
        count("signal", "sumw"),
        count("background", "sumw"),
        count("background", "sumw2") ** 0.5,
        stated(inside),
        round(count("data", "sumw")),
    )
    return _meaning(window, counts, lacking or {})


def _meaning(window: tuple[float, float] | None, counts: _Counts, lacking: Mapping[Need, str]) -> Significance:
    s, b, b_error, b_stated, n = counts
    sigma_b = math.hypot(b_error, b_stated)
    figures: dict[str, float | None] = {
        "n_signal": s,
        "n_background": b,
        "n_background_error": b_error,
        "n_background_stated": b_stated,
        "sigma_b": sigma_b,
        "n_data": n,
        "notebook": z.notebook(s + b, b),
        "s_over_sqrt_b": z.s_over_sqrt_b(s, b),
        "s_over_sqrt_b_sigma": z.s_over_sqrt_b_sigma(s, b, sigma_b),
        "asimov": z.asimov(s, b),
        "asimov_sigma": z.asimov_sigma(s, b, sigma_b),
        "asimov_notebook": z.asimov_sigma(s, b, z.NOTEBOOK * abs(b)),
        "observed": z.observed(n, b),
        "observed_sigma": z.observed_sigma(n, b, sigma_b),
    }
    withheld = {}
    for name, value in figures.items():
        reasons = [lacking[need] for need in _NEEDS[name] if need in lacking]
        if reasons:
            withheld[name] = "; ".join(dict.fromkeys(reasons))
        elif value is None:
            withheld[name] = f"not defined for {'' if 'observed' in name else f's = {s:.3g}, '}b = {b:.3g}"
    kept = {name: None if name in withheld else value for name, value in figures.items()}
    return Significance.model_validate({"window": window, **kept, "withheld": withheld})


def _counts(found: Significance, factor: float = 1.0) -> _Counts:
    """Take the counts out of a result again, simulation times a factor."""
    simulated = (found.n_signal, found.n_background, found.n_background_error, found.n_background_stated)
    s, b, error, stated = (factor * (n or 0.0) for n in simulated)
    return _Counts(s, b, error, stated, found.n_data or 0)


def with_background_uncertainty(result: Result, relative: float) -> Result:
    """Count with another uncertainty of the background: so much of it, beside the simulation's statistics."""
    found = result.significance
    counts = _counts(found)._replace(b_stated=relative * abs(found.n_background or 0.0))
    made = _meaning(found.window, counts, {})
    absent = {**dict.fromkeys(found.withheld), "withheld": made.withheld | found.withheld}
    return result.model_copy(update={"significance": made.model_copy(update=absent)})


def expected_in_full(result: Result) -> Significance:
    """Tell what simulation lets expect of all the luminosity that was asked for.

    Data are compared at their own luminosity alone (``Result.significance``), never here.
    """
    found, luminosity = result.significance, result.luminosity
    lacking: dict[Need, str] = {"comparison": "data are compared at their own luminosity"}
    for need in ("signal", "background", "data"):
        if f"n_{need}" in found.withheld:
            lacking[need] = found.withheld[f"n_{need}"]
    return _meaning(found.window, _counts(found, luminosity.asked / luminosity.simulation), lacking)


def to_read(result: Result) -> int:
    """Count the entries that a run is to read, where files could not be opened those that the release states."""
    due = 0
    for sample in result.samples.values():
        is_planned = sample.planned and (not sample.unopened or sample.total is None)
        due += sample.planned if is_planned else result.spec.entries_to_read(sample.total or 0)
    return due


def share_read(result: Result) -> float:
    """Tell what part was read of all that is to be read, in [0, 1]."""
    due = to_read(result)
    return sum(sample.entries for sample in result.samples.values()) / due if due else 0.0


def moment(result: Result) -> Moment:
    """Put what a run has found by now into one row."""
    found = result.significance
    values = (found.notebook, found.s_over_sqrt_b, found.asimov, found.asimov_sigma, found.observed)
    return Moment(
        result.cost.events,
        share_read(result),
        _or_nan(found.n_signal),
        _or_nan(found.n_background),
        found.n_data or 0,
        *map(_or_nan, values),
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def summarise(state: RunState) -> Result:
    """Turn a run's state into its numbers; ``hzzray.statistics.scaling`` decides what they stand for."""
    spec = state.spec
    release = spec.release
    status = state.counts.status
    readings = {
        sample.name: reading(
            spec,
            sample,
            state.yields[sample.name].entries,
            state.entries.get(sample.name),
            state.unopened.get(sample.name, 0),
        )
        for sample in release.samples
    }
    standing = scaling(spec, readings, running=status == "running")
    parts: dict[str, _RegionYields] = {}
    samples: dict[str, SampleResult] = {}
    for sample in release.samples:
        yields, read = state.yields[sample.name], readings[sample.name]
        planned = state.entries.get(sample.name, Entries()).planned
        luminosity = standing.samples.get(sample.name)
        simulated = release.role(sample) != "data"
        scale = read.scale if simulated else 1.0
        sums = _RegionYields(yields.n, yields.sumw, yields.sumw2).scaled(scale)
        unopened = state.unopened.get(sample.name, 0)
        about = {"planned": planned, "total": read.total, "unopened": unopened, "luminosity": luminosity}
        samples[sample.name] = _sample(spec, sample, yields, sums, scale, about)
        if luminosity is not None or not simulated:  # what is known to be of some luminosity may stand beside others
            parts[sample.name] = sums.scaled(standing.simulation / spec.luminosity if simulated else 1.0)
    groups = {}
    for group in release.groups:
        members = (parts[name] for name in parts if release.sample(name).group == group.name)
        regions = spec.analysis.regions
        total = _total(members, regions, spec.axis)
        groups[group.name] = GroupResult.model_validate(
            {
                "role": group.role,
                "colour": group.colour,
                "channels": total.channels(spec.analysis.regions),
                **total.bins(),
            }
        )
    rows = [(group.role, group) for group in groups.values()]
    background = {name: part for name, part in parts.items() if release.role(release.sample(name)) == "background"}

    def stated(inside: slice) -> float:
        yields = {name: float(part.sumw[:, 1:-1][:, inside].sum()) for name, part in background.items()}
        return release.stated_error(yields)

    counts = state.counts
    in_all = sum(
        state.entries.get(name, Entries()).held if read.total is None else read.total for name, read in readings.items()
    )
    cost = state.cost
    return Result(
        run_id=state.run_id,
        spec=spec,
        environment=state.environment,
        status=status,
        tasks=Tasks(planned=counts.planned, merged=counts.merged, failed=counts.failed),
        digest=state.digest,
        variations_digest=state.varied_digest,
        fraction=sum(read.entries for read in readings.values()) / in_all if in_all else 0.0,
        luminosity=Luminosity(asked=spec.luminosity, simulation=standing.simulation, data=standing.data),
        edges=tuple(spec.axis.edges.tolist()),
        samples=samples,
        groups=groups,
        significance=significance(spec.axis, spec.window, rows, standing.lacking, stated),
        missing=tuple(sample.name for sample in release.samples if sample.name not in state.entries),
        warnings=tuple(_warnings(spec, samples, readings, standing, running=status == "running")),
        failures=tuple(
            FailureRow(
                sample=failure.task.sample,
                file=redact(failure.task.file),
                start=failure.task.start,
                stop=failure.task.stop,
                reason=failure.reason,
            )
            for failure in state.failures
        ),
        cost=CostResult(
            wall_s=state.wall_s,
            cpu_s=cost.cpu_s,
            read_s=cost.read_s,
            bytes_read=cost.bytes_read,
            events=cost.events,
            events_per_s=cost.events / state.wall_s if state.wall_s else 0.0,
        ),
        versions=versions(),
    )


def _warnings(
    spec: RunSpec,
    samples: Mapping[str, SampleResult],
    readings: Mapping[str, Reading],
    standing: Scaling,
    *,
    running: bool,
) -> Iterable[str]:
    """List what a reader of the numbers must know, sample by sample: what was left out, scaled, or isn't as stated."""
    if "comparison" in standing.lacking:
        yield f"data and simulation are not compared: {standing.lacking['comparison']}"
    for sample in spec.release.samples:
        name, row, read = sample.name, samples[sample.name], readings[sample.name]
        stated = None if spec.release.entries_vary else sample.entries
        if read.opened and stated is not None and read.total != stated:
            yield (
                f"{name}: {_its_files(sample, 'has', 'have')} {read.total} entries, the release states {stated}; "
                "taken as it is: right if it was skimmed, wrong if a part is lacking"
            )
        for where, n in row.invalid.items():
            if n:
                held = "what is measured" if spec.analysis.module and where == "lepton" else f"a {where}"
                yield f"{name}: {n} of {row.entries} events left out: nan or inf in {held}"
        for (before, cut), made in zip(pairwise(row.cutflow), spec.selection.cuts, strict=True):
            if made.basic and cut.n == 0 and before.n >= _MANY:
                yield f"{name}: none of {before.n} events passes {cut.cut!r}: is the release's schema right?"
        if read.opened and not read.total:
            yield f"{name}: {_its_files(sample, 'has', 'have')} no entries"
        if row.unopened and row.entries:
            known = f"a part of the {read.total} that the release states"
            part = "an unknown part of the sample" if read.total is None else known
            yield f"{name}: {row.unopened} of its files left out; the others are taken for {part}"
        if not running and 0 < row.entries < row.planned:
            done = "scaled up" if spec.release.role(sample) != "data" else "it stands for less luminosity"
            yield f"{name}: {row.entries} of {row.planned} entries were read: {done}"


def _its_files(sample: Sample, one: str, several: str) -> str:
    return f"its file {one}" if sample.only_path else f"its files {several}"


def _sample(
    spec: RunSpec, sample: Sample, yields: Yields, sums: _RegionYields, scale: float, about: Mapping[str, object]
) -> SampleResult:
    lepton, weight = yields.invalid.tolist()
    rows = zip(spec.rows, yields.left.tolist(), (yields.left_sumw * scale).tolist(), strict=True)
    return SampleResult.model_validate(
        {
            "group": sample.group,
            "entries": yields.entries,
            "scale": scale,
            "invalid": {"lepton": lepton, "weight": weight},
            "cutflow": [{"cut": cut, "n": raw, "yield": weighted} for cut, raw, weighted in rows],
            "channels": sums.channels(spec.analysis.regions),
            **about,
            **sums.bins(),
        }
    )


@cache
def versions() -> dict[str, str]:
    """Versions of what computed a result."""
    packages = ("numpy", "numba", "uproot", "ray")
    own = {"hzzray": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in packages}


def environment() -> str:
    """Name where this runs, for comparisons: ``HZZRAY_ENVIRONMENT``, or local."""
    return os.environ.get("HZZRAY_ENVIRONMENT") or "local"
