"""The numbers of a run, finished or not: what ``result.json`` holds and what every picture is drawn from."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hzzray import __version__
from hzzray.data.catalogue import Role, Sample
from hzzray.messages import Cost as TotalCost
from hzzray.messages import Counts, Failure, RunSpec, Status
from hzzray.physics import significance as z
from hzzray.physics.histogram import Axis, Histogram, digest
from hzzray.physics.selection import CHANNELS
from hzzray.urls import redact


class Row(BaseModel):
    """A frozen part of a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class Cut(Row):
    """One row of a cutflow: raw and weighted events that are left after the cut."""

    cut: str
    n: int
    yield_: float = Field(alias="yield")


class Bins(Row):
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

    ``entries`` counts events read, ``planned`` those to read, ``invalid`` those with nan or inf (in a lepton, in a
    weight), which no cut after the second row sees.
    """

    group: str
    entries: int
    planned: int
    invalid: dict[str, int]
    cutflow: tuple[Cut, ...]
    channels: dict[str, Bins]


class GroupResult(Bins):
    """Samples stacked as one."""

    role: Role
    colour: str
    channels: dict[str, Bins]


class Significance(Row):
    """Significances of the window counts; None where the counts define none. See ``hzzray.physics.significance``.

    ``sigma_b`` is the uncertainty of the background that the ``…_sigma`` ones take: √0.3·b, as the notebook has it.
    ``n_background_error`` is the simulation's statistical one alone.
    """

    window: tuple[float, float]
    n_signal: float
    n_background: float
    n_background_error: float
    sigma_b: float
    n_data: int
    notebook: float | None
    s_over_sqrt_b: float | None
    s_over_sqrt_b_sigma: float | None
    asimov: float | None
    asimov_sigma: float | None
    observed: float | None
    observed_sigma: float | None


class Tasks(Row):
    """Tasks planned, merged and failed. A finished run has planned = merged + failed."""

    planned: int
    merged: int
    failed: int


class Cost(Row):
    """What the run took: seconds of wall clock and, summed over workers, of CPU and of reading; bytes read."""

    wall_s: float
    cpu_s: float
    read_s: float
    bytes_read: int
    events: int
    events_per_s: float


class FailureRow(Row):
    """A failed task as the result lists it."""

    sample: str
    file: str
    start: int
    stop: int
    reason: str


class Result(Row):
    """A run's numbers. While it runs, simulation is scaled by total/processed of each sample; at the end by 1."""

    run_id: str
    spec: RunSpec
    environment: str
    status: Status
    tasks: Tasks
    digest: str
    fraction: float = Field(description="entries read / entries of the planned files")
    edges: tuple[float, ...]
    samples: dict[str, SampleResult]
    groups: dict[str, GroupResult]
    significance: Significance
    missing: tuple[str, ...]
    failures: tuple[FailureRow, ...]
    cost: Cost
    versions: dict[str, str]


@dataclass(frozen=True, eq=False, slots=True)
class RunState:
    """A run as its reducer knows it: exact histograms by sample, what is planned, what failed, what it took.

    ``entries`` are, by sample, entries planned and entries in the files.
    """

    version: int
    run_id: str
    spec: RunSpec
    environment: str
    counts: Counts
    histograms: dict[str, Histogram]
    entries: dict[str, tuple[int, int]]
    failures: tuple[Failure, ...]
    cost: TotalCost
    wall_s: float

    def with_wall(self, seconds: float) -> RunState:
        """Return a copy that took this long."""
        return replace(self, wall_s=seconds)


@dataclass(frozen=True, eq=False, slots=True)
class _Sums:
    """Yields by channel and bin with flow bins, shape (channels, bins + 2)."""

    n: NDArray[np.int64]
    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]

    def bins(self) -> dict[str, Any]:
        """Lay out all channels together as ``Bins``."""
        n, sumw, sumw2 = (array.sum(axis=0) for array in (self.n, self.sumw, self.sumw2))
        return {
            "n_out": int(n.sum()),
            "yield": float(sumw.sum()),
            "yield_error": float(np.sqrt(sumw2.sum())),
            "sumw": tuple(sumw[1:-1].tolist()),
            "sumw2": tuple(sumw2[1:-1].tolist()),
            "underflow": float(sumw[0]),
            "overflow": float(sumw[-1]),
            "underflow_sumw2": float(sumw2[0]),
            "overflow_sumw2": float(sumw2[-1]),
            "n_underflow": int(n[0]),
            "n_overflow": int(n[-1]),
        }

    def channels(self) -> dict[str, Bins]:
        """Lay out each channel."""
        return {
            name: Bins.model_validate(_Sums(self.n[[i]], self.sumw[[i]], self.sumw2[[i]]).bins())
            for i, name in enumerate(CHANNELS)
        }


def _sums(histogram: Histogram, scale: float) -> _Sums:
    return _Sums(histogram.counts, histogram.sumw.floats() * scale, histogram.sumw2.floats() * scale**2)


def _total(parts: Iterable[_Sums], axis: Axis) -> _Sums:
    shape = (len(CHANNELS), axis.bins + 2)
    total = _Sums(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape))
    for part in parts:
        total = _Sums(total.n + part.n, total.sumw + part.sumw, total.sumw2 + part.sumw2)
    return total


def significance(axis: Axis, window: tuple[float, float], groups: Sequence[tuple[Role, Bins]]) -> Significance:
    """Count signal, background and data in a window of GeV, and say what the counts mean."""
    inside = axis.window(*window)

    def count(role: Role, field: Literal["sumw", "sumw2"]) -> float:
        return float(sum(sum(getattr(bins, field)[inside]) for its_role, bins in groups if its_role == role))

    error = count("background", "sumw2") ** 0.5
    return _meaning(window, count("signal", "sumw"), count("background", "sumw"), error, round(count("data", "sumw")))


def _meaning(window: tuple[float, float], s: float, b: float, b_error: float, n: int) -> Significance:
    sigma_b = float(np.sqrt(0.3)) * abs(b)
    return Significance(
        window=window,
        n_signal=s,
        n_background=b,
        n_background_error=b_error,
        sigma_b=sigma_b,
        n_data=n,
        notebook=z.notebook(s + b, b),
        s_over_sqrt_b=z.s_over_sqrt_b(s, b),
        s_over_sqrt_b_sigma=z.s_over_sqrt_b_sigma(s, b, sigma_b),
        asimov=z.asimov(s, b),
        asimov_sigma=z.asimov_sigma(s, b, sigma_b),
        observed=z.observed(n, b),
        observed_sigma=z.observed_sigma(n, b, sigma_b),
    )


def scaled(found: Significance, factor: float) -> Significance:
    """Tell what a part of the events (or a multiple) would signify: simulation scaled, data as they are."""
    s, b, error = (factor * count for count in (found.n_signal, found.n_background, found.n_background_error))
    return _meaning(found.window, s, b, error, found.n_data)


def so_far(result: Result) -> Significance:
    """Tell what the events that were read until now signify.

    A result's own significance is that of the run's end: simulation is scaled to what is planned. Here it is scaled to
    the share that was read; for the observed ones, to the share of the data that was read.
    """
    data = [sample for sample in result.samples.values() if result.groups[sample.group].role == "data"]
    seen = scaled(result.significance, _share(data))
    expected = scaled(result.significance, _share(list(result.samples.values())))
    return expected.model_copy(update={"observed": seen.observed, "observed_sigma": seen.observed_sigma})


def _share(samples: Sequence[SampleResult]) -> float:
    planned = sum(sample.planned for sample in samples)
    return sum(sample.entries for sample in samples) / planned if planned else 0.0


class Moment(NamedTuple):
    """What a run has found at some time: events read, their share of those to read, and what they signify.

    A row of ``history.csv``; nan is a significance that the counts don't define.
    """

    events: int
    share: float
    n_signal: float
    n_background: float
    n_data: int
    notebook: float
    s_over_sqrt_b: float
    asimov: float
    asimov_sigma: float
    observed: float


def moment(result: Result) -> Moment:
    """Put what a run has found by now into one row."""
    found = so_far(result)
    values = (found.notebook, found.s_over_sqrt_b, found.asimov, found.asimov_sigma, found.observed)
    return Moment(
        result.cost.events,
        _share(list(result.samples.values())),
        found.n_signal,
        found.n_background,
        found.n_data,
        *(math.nan if value is None else value for value in values),
    )


def summarise(state: RunState) -> Result:
    """Turn a run's state into its numbers."""
    spec = state.spec
    release = spec.release
    status = state.counts.status
    running = status == "running"
    parts: dict[str, _Sums] = {}
    samples: dict[str, SampleResult] = {}
    for sample in release.samples:
        histogram = state.histograms[sample.name]
        planned, _ = state.entries.get(sample.name, (0, 0))
        simulated = release.role(sample) != "data"
        scale = planned / histogram.entries if running and simulated and histogram.entries else 1.0
        parts[sample.name] = _sums(histogram, scale)
        samples[sample.name] = _sample(spec, sample, histogram, parts[sample.name], planned, scale)
    groups = {}
    for group in release.groups:
        total = _total((parts[sample.name] for sample in release.samples if sample.group == group.name), spec.axis)
        groups[group.name] = GroupResult.model_validate(
            {"role": group.role, "colour": group.colour, "channels": total.channels(), **total.bins()}
        )
    counts = state.counts
    in_files = sum(total for _, total in state.entries.values())
    cost = state.cost
    return Result(
        run_id=state.run_id,
        spec=spec,
        environment=state.environment,
        status=status,
        tasks=Tasks(planned=counts.planned, merged=counts.merged, failed=counts.failed),
        digest=digest(state.histograms),
        fraction=sum(histogram.entries for histogram in state.histograms.values()) / in_files if in_files else 0.0,
        edges=tuple(spec.axis.edges.tolist()),
        samples=samples,
        groups=groups,
        significance=significance(spec.axis, release.window, [(group.role, group) for group in groups.values()]),
        missing=tuple(sample.name for sample in release.samples if sample.name not in state.entries),
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
        cost=Cost(
            wall_s=state.wall_s,
            cpu_s=cost.cpu_s,
            read_s=cost.read_s,
            bytes_read=cost.bytes_read,
            events=cost.events,
            events_per_s=cost.events / state.wall_s if state.wall_s else 0.0,
        ),
        versions=versions(),
    )


def _sample(
    spec: RunSpec, sample: Sample, histogram: Histogram, sums: _Sums, planned: int, scale: float
) -> SampleResult:
    n, yields = histogram.cutflow()
    lepton, weight = histogram.invalid.tolist()
    rows = zip(spec.selection.cuts, n.tolist(), (yields * scale).tolist(), strict=True)
    return SampleResult.model_validate(
        {
            "group": sample.group,
            "entries": histogram.entries,
            "planned": planned,
            "invalid": {"lepton": lepton, "weight": weight},
            "cutflow": [{"cut": cut, "n": raw, "yield": weighted} for cut, raw, weighted in rows],
            "channels": sums.channels(),
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
