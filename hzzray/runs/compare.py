"""Runs side by side: what the same work cost in different places. One function a figure, with its definition."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from hzzray.engine.monitor import SERVICE, service_of
from hzzray.files import write_whole
from hzzray.runs.folder import load_json
from hzzray.runs.result import Result
from hzzray.runs.tables import SCALE, USAGE, Rows, cpu_percent, of_actors, read_scale, read_usage


@dataclass(frozen=True, eq=False, slots=True)
class LoadedRun:
    """What a run's folder tells: its result, the rows of ``cpu.csv`` and ``scale.csv``, none where it has no such."""

    result: Result
    usage: Rows
    scale: Rows

    @property
    def label(self) -> str:
        """The run's name and environment."""
        return f"{self.result.run_id} ({self.result.environment})"


def load(folders: Iterable[Path]) -> tuple[LoadedRun, ...]:
    """Read runs; raises UsageError naming a folder without a result, OutputError a file that can't be understood."""
    return tuple(LoadedRun(load_json(folder), read_usage(folder), read_scale(folder)) for folder in folders)


def actors_max(run: LoadedRun) -> int | None:
    """Most actors that ran at once."""
    return int(run.scale["actors"].max()) if len(run.scale) else None


def actors_mean(run: LoadedRun) -> float | None:
    """Mean over time of the actors that ran, from the first sample to the run's end; a sample holds until the next."""
    if not len(run.scale):
        return None
    actors, spans = run.scale["actors"], _spans(run)
    return float(np.average(actors, weights=spans)) if spans.any() else float(actors.mean())


def _spans(run: LoadedRun) -> NDArray[np.float64]:
    """Tell how long each sample of ``scale.csv`` holds [s]."""
    times = run.scale["time_s"]
    return np.diff(times, append=max(run.result.cost.wall_s, times.max(initial=0.0)))


def nodes_max(run: LoadedRun) -> int | None:
    """Most nodes at once."""
    return int(run.scale["nodes"].max()) if len(run.scale) else None


def cpu_s_per_million_events(run: LoadedRun) -> float | None:
    """CPU seconds of the tasks for a million events read."""
    return _ratio(1e6 * run.result.cost.cpu_s, run.result.cost.events)


def events_per_s(run: LoadedRun) -> float | None:
    """Throughput: events read over wall-clock time, which has planning and start-up in it."""
    return _ratio(run.result.cost.events, run.result.cost.wall_s)


def events_per_cpu_s(run: LoadedRun) -> float | None:
    """Throughput of a core that is never idle: events read over CPU seconds of the tasks."""
    return _ratio(run.result.cost.events, run.result.cost.cpu_s)


def read_share(run: LoadedRun) -> float | None:
    """Share of the actors' time that went by waiting for input: reading seconds / actor-seconds."""
    return _ratio(run.result.cost.read_s, _actor_seconds(run))


def efficiency(run: LoadedRun) -> float | None:
    """Share of the actors' time that was CPU of tasks: CPU seconds / actor-seconds.

    What is missing to 1 is input, idling and start-up of actors.
    """
    return _ratio(run.result.cost.cpu_s, _actor_seconds(run))


def peak_rss_bytes(run: LoadedRun) -> int | None:
    """Largest resident memory of a single actor at any time: what a worker's memory limit must allow for."""
    actors = of_actors(run.usage)
    return int(actors["rss_bytes"].max()) if len(actors) else None


@dataclass(frozen=True, slots=True)
class ServiceUse:
    """What the containers of one service used in a run, together.

    Attributes
    ----------
    containers
        How many there were at once, at the most.
    cpu_s
        Seconds of CPU in the run; of a service that has ended (the loader), all of its life.
    cpus, memory_limit_bytes
        Cores and bytes that they might use, at the most at once; 0 where there is no limit.
    peak_memory_bytes
        Most memory at once.
    """

    name: str
    containers: int
    cpu_s: float
    cpus: float
    peak_memory_bytes: int
    memory_limit_bytes: int


def services(run: LoadedRun) -> tuple[ServiceUse, ...]:
    """Add up what each service used, by name; nothing of a run that was in no containers."""
    rows = run.usage[np.char.startswith(run.usage["actor"], SERVICE)]
    names = np.array([service_of(name) for name in rows["actor"]], np.str_)
    return tuple(_service(str(name), rows[names == name]) for name in np.unique(names))


def _service(name: str, rows: Rows) -> ServiceUse:
    _, when = np.unique(rows["time_s"], return_inverse=True)
    # Of a container that reported twice at a time the last report counts.
    keys = np.char.add(np.char.add(when.astype(np.str_), " "), rows["actor"])
    _, last = np.unique(keys[::-1], return_index=True)
    rows, when = rows[::-1][last], when[::-1][last]

    def most(field: str) -> float:
        """Sum over the containers of each moment, the largest."""
        return float(np.bincount(when, rows[field]).max())

    ordered = rows[np.argsort(rows["time_s"], kind="stable")]
    used = sum(np.diff(use.edges) @ use.percent / 100 for use in cpu_percent(ordered).values())
    bounded = bool((rows["cpu_limit"] > 0).all()), bool((rows["memory_limit_bytes"] > 0).all())
    return ServiceUse(
        name=name,
        containers=int(np.bincount(when).max()),
        cpu_s=float(used),
        cpus=most("cpu_limit") if bounded[0] else 0.0,
        peak_memory_bytes=int(most("rss_bytes")),
        memory_limit_bytes=int(most("memory_limit_bytes")) if bounded[1] else 0,
    )


def _actor_seconds(run: LoadedRun) -> float:
    """Add up the actors' time: their mean times the span that it is of, from the first sample to the run's end.

    It is 0 where the tasks' CPU exceeds it: of a run that was too short to sample nobody knows it.
    """
    seconds = float(run.scale["actors"] @ _spans(run))
    return seconds if run.result.cost.cpu_s <= seconds else 0.0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run in one row; None is what the run doesn't tell. The functions of the same names say what is meant."""

    run_id: str
    environment: str
    release: str
    selection: str
    status: str
    spec: str
    digest: str
    actors_max: int | None
    actors_mean: float | None
    nodes_max: int | None
    events: int
    wall_s: float
    cpu_s: float
    cpu_s_per_million_events: float | None
    events_per_s: float | None
    events_per_cpu_s: float | None
    read_share: float | None
    efficiency: float | None
    peak_rss_bytes: int | None
    services: tuple[ServiceUse, ...] = ()


def summarise(run: LoadedRun) -> RunSummary:
    """Put a run into one row."""
    result = run.result
    return RunSummary(
        run_id=result.run_id,
        environment=result.environment,
        release=result.spec.release.name,
        selection=result.spec.selection.name,
        status=result.status,
        spec=result.spec.digest,
        digest=result.digest,
        actors_max=actors_max(run),
        actors_mean=actors_mean(run),
        nodes_max=nodes_max(run),
        events=result.cost.events,
        wall_s=result.cost.wall_s,
        cpu_s=result.cost.cpu_s,
        cpu_s_per_million_events=cpu_s_per_million_events(run),
        events_per_s=events_per_s(run),
        events_per_cpu_s=events_per_cpu_s(run),
        read_share=read_share(run),
        efficiency=efficiency(run),
        peak_rss_bytes=peak_rss_bytes(run),
        services=services(run),
    )


def differences(runs: Sequence[LoadedRun]) -> list[str]:
    """Say whether the runs can be compared, each with the first, and what each doesn't tell."""
    said = [line for other in runs[1:] for line in _difference(runs[0], other)]
    for run in runs:
        lacking = [name for name, rows in ((USAGE, run.usage), (SCALE, run.scale)) if not len(rows)]
        if lacking:
            said.append(f"{run.label}: nothing in {' and '.join(lacking)}: some columns and curves are missing")
    return said


def _difference(one: LoadedRun, other: LoadedRun) -> list[str]:
    a, b = one.result, other.result
    names = f"{one.label} and {other.label}"
    parts = [field for field in type(a.spec).model_fields if getattr(a.spec, field) != getattr(b.spec, field)]
    if parts:
        return [f"not comparable: {names} computed different things: another {' and '.join(parts)}"]
    versions = sorted(
        name for name in a.versions.keys() | b.versions.keys() if a.versions.get(name) != b.versions.get(name)
    )
    said = [f"{names}: other versions of {', '.join(versions)}"] if versions else []
    if a.digest == b.digest:
        return [f"comparable: {names} computed the same, to the last bit", *said]
    unfinished = [run.label for run in (one, other) if run.result.status != "complete"]
    if unfinished:
        return [
            f"comparable in part: {names} set out to compute the same; not complete: {', '.join(unfinished)}",
            *said,
        ]
    return [f"not comparable: {names} have the same spec, but different results: their files differ", *said]


_Show = Callable[[float], str]


def _exact(value: float) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _figures(value: float) -> str:
    return _exact(round(value)) if value >= 1000 else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _mebibytes(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"


_NAMES = ("environment", "release", "selection", "status")
_NUMBERS: dict[str, tuple[str, _Show]] = {
    "actors_max": ("actors, most", _exact),
    "actors_mean": ("actors, mean", _figures),
    "nodes_max": ("nodes, most", _exact),
    "events": ("events", _exact),
    "wall_s": ("wall clock [s]", _figures),
    "cpu_s": ("CPU of tasks [s]", _figures),
    "cpu_s_per_million_events": ("CPU [s] per million events", _figures),
    "events_per_s": ("events/s", _figures),
    "events_per_cpu_s": ("events/s/core", _figures),
    "read_share": ("waiting for input", _percent),
    "efficiency": ("efficiency", _percent),
    "peak_rss_bytes": ("peak memory of an actor", _mebibytes),
}


def lines(summaries: Sequence[RunSummary]) -> list[tuple[str, ...]]:
    """Put summaries side by side in words: each line a figure's title with its unit, then what each run has."""
    texts = [(field, *(getattr(row, field) for row in summaries)) for field in _NAMES]
    texts += [(field, *(getattr(row, field)[:12] for row in summaries)) for field in ("spec", "digest")]
    for field, (title, show) in _NUMBERS.items():
        values = [getattr(row, field) for row in summaries]
        texts.append((title, *("–" if value is None else show(value) for value in values)))
    for name in _service_names(summaries):
        uses = [_use(row, name) for row in summaries]
        for title, words in (("CPU [s]", _cpu), ("CPU, mean", _share), ("memory, most", _memory)):
            cells = ("–" if use is None else words(use, row) for use, row in zip(uses, summaries, strict=True))
            texts.append((f"{name}: {title}", *cells))
    return texts


def _service_names(summaries: Sequence[RunSummary]) -> list[str]:
    return sorted({use.name for row in summaries for use in row.services})


def _use(summary: RunSummary, name: str) -> ServiceUse | None:
    return next((use for use in summary.services if use.name == name), None)


def _cpu(use: ServiceUse, _: RunSummary) -> str:
    return _figures(use.cpu_s)


def _share(use: ServiceUse, run: RunSummary) -> str:
    if not run.wall_s:
        return "–"
    cores = use.cpu_s / run.wall_s
    return f"{_percent(cores / use.cpus)} of {use.cpus:g} CPU" if use.cpus else f"{_percent(cores)} of a CPU, no limit"


def _memory(use: ServiceUse, _: RunSummary) -> str:
    limit = f"of {_mebibytes(use.memory_limit_bytes)}" if use.memory_limit_bytes else "no limit"
    return f"{_mebibytes(use.peak_memory_bytes)}, {limit}"


def table(summaries: Sequence[RunSummary]) -> Table:
    """Lay summaries side by side: one column a run."""
    shown = Table("run", *(escape(row.run_id) for row in summaries))
    for column in shown.columns[1:]:
        column.justify = "right"
    for line in lines(summaries):
        shown.add_row(*map(escape, line))
    return shown


def records(summaries: Sequence[RunSummary]) -> list[dict[str, object]]:
    """Make tables of summaries, all with the same columns; what a run doesn't tell is None.

    Columns are ``RunSummary``'s fields and, for each service of any run, ``ServiceUse``'s behind its name, such as
    ``broker_cpu_s``.
    """
    of_runs = [field.name for field in fields(RunSummary) if field.name != "services"]
    of_services = [field.name for field in fields(ServiceUse) if field.name != "name"]
    names = _service_names(summaries)
    return [
        {field: getattr(row, field) for field in of_runs}
        | {f"{name}_{field}": getattr(_use(row, name), field, None) for name in names for field in of_services}
        for row in summaries
    ]


def write_csv(summaries: Sequence[RunSummary], path: Path) -> Path:
    """Write ``records`` of summaries, one line a run. Raises OutputError where the file can't be written."""

    def write(part: Path) -> None:
        rows = records(summaries)
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    return write_whole(path, write)
