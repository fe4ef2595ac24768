"""The numbers of a run, finished or not: what ``result.json`` holds and what every picture is drawn from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from hzzray.data.catalogue import Role
from hzzray.messages import RunSpec

Status = Literal["running", "partial", "complete"]


class Row(BaseModel):
    """A frozen part of a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class Cut(Row):
    """One row of a cutflow: raw and weighted events that are left after the cut."""

    cut: str
    n: int
    yield_: float = Field(alias="yield")


class Bins(Row):
    """Binned yields. ``sumw`` and ``sumw2`` are per bin of ``Result.edges``; what lies outside is in the flow fields."""

    n_out: int
    yield_: float = Field(alias="yield")
    yield_error: float
    sumw: tuple[float, ...]
    sumw2: tuple[float, ...]
    underflow: float
    overflow: float


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
    """Significances of the window counts; None where the counts define none. See ``hzzray.physics.significance``."""

    window: tuple[float, float]
    n_signal: float
    n_background: float
    n_background_error: float
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
    """A run's numbers. While it runs, simulation is scaled by total/processed of each sample; at the end by exactly 1."""

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
