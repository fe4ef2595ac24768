"""One run, start to end: spec, ledger, plan, engine, result."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from hzzray.data.catalogue import Release
from hzzray.data.layout import cache_folder
from hzzray.data.plan import CHUNK, Plan, check_source, make_plan
from hzzray.engine.ledger import Ledger
from hzzray.errors import UsageError
from hzzray.messages import RunSpec, Task
from hzzray.output import save_json, save_root
from hzzray.physics.selection import PRESETS
from hzzray.result import Result, RunState, environment, summarise

Engine = Literal["ray", "serial"]
Counts = tuple[int, int, int, int]
"""Tasks planned, merged and failed; events merged."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how a run is done; what it computes is its spec."""

    runs: Path
    run_id: str
    sources: tuple[str, ...]
    engine: Engine = "ray"
    actors: int = 1
    chunk: int = CHUNK

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.run_id


def make_spec(
    release: Release,
    *,
    samples: tuple[str, ...] = (),
    selection: str | None = None,
    luminosity: float | None = None,
    fraction: float = 1.0,
) -> RunSpec:
    """Put a spec together, the release's defaults where nothing is chosen; raises UsageError naming what is wrong."""
    preset = selection or release.selection
    if preset not in PRESETS:
        raise UsageError(f"no selection {preset!r}; there are {', '.join(PRESETS)}")
    chosen = samples or tuple(sample.name for sample in release.samples if sample.default)
    try:
        return RunSpec(
            release=release.only(chosen),
            selection=PRESETS[preset],
            luminosity=release.luminosity if luminosity is None else luminosity,
            fraction=fraction,
            axis=release.axis,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = f", not {first['input']!r}" if field else ""
        raise UsageError(f"{field}: {first['msg']}{given}".lstrip(": ").replace("Value error, ", "")) from error


def new_run_id() -> str:
    """Name a run after the time, with two bytes of chance for runs of the same second."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def execute(
    spec: RunSpec, settings: Settings, *, planned: Callable[[Plan], None], progress: Callable[[Counts], None]
) -> Result:
    """Do a run, or the rest of one, and write its files.

    A run folder that exists is resumed when its spec is the same: what is merged stays, what failed is tried again.
    Raises UsageError when the spec is another.
    """
    begun = time.monotonic()
    for source in settings.sources:
        check_source(source)
    cache = cache_folder()
    path = settings.folder / "ledger.db"
    with _ledger(path, spec, settings.run_id) as ledger:
        plan = make_plan(spec, settings.run_id, settings.sources, chunk=settings.chunk, cache=cache)
        due = _record(ledger, plan)
    planned(plan)
    try:
        state = _work(path, spec, settings, due, cache, progress)
    finally:
        with Ledger.open(path) as ledger:
            ledger.add_wall(time.monotonic() - begun)
            wall_s = ledger.wall_s()
    result = summarise(state.with_wall(wall_s))
    save_json(result, settings.folder)
    save_root(result, settings.folder)
    return result


def _ledger(path: Path, spec: RunSpec, run_id: str) -> Ledger:
    """Start the run's ledger, or open that of a run of the same spec."""
    if not path.exists():
        return Ledger.create(path, run_id, spec, environment())
    ledger = Ledger.open(path)
    if ledger.spec.digest != spec.digest:
        ledger.close()
        differing = [
            field
            for field in ("release", "selection", "luminosity", "fraction", "axis")
            if getattr(ledger.spec, field) != getattr(spec, field)
        ]
        raise UsageError(
            f"run {run_id} in {path.parent.parent} exists with another {' and '.join(differing)}; "
            "take another --run-id, or the same choices to resume it"
        )
    return ledger


def _record(ledger: Ledger, plan: Plan) -> list[Task]:
    """Write a plan into the ledger; returns the tasks that are due.

    A file that was planned before keeps its tasks, however it would be cut today: ranges never overlap.
    """
    ledger.forget_failures()
    known = ledger.planned_files()
    for task in plan.tasks:
        if known.get(task.sample, task.uuid) != task.uuid:
            raise UsageError(
                f"{task.file}: another file than the one that run {ledger.run_id} began with; take another --run-id"
            )
    fresh = [task for task in plan.tasks if task.sample not in known]
    unread = [failure for failure in plan.failures if failure.task.sample not in known]
    ledger.plan([*fresh, *(failure.task for failure in unread)], plan.entries)
    for failure in unread:
        ledger.fail(failure)
    return ledger.due()


def _work(
    path: Path,
    spec: RunSpec,
    settings: Settings,
    due: list[Task],
    cache: Path | None,
    progress: Callable[[Counts], None],
) -> RunState:
    if settings.engine == "serial" or not due:
        from hzzray.engine.serial import run_serial  # noqa: PLC0415 (compiled kernels are loaded here, or by the actors)

        return run_serial(path, spec, due, settings.sources, cache=cache, progress=progress)
    from hzzray.engine.cluster import connect, disconnect  # noqa: PLC0415

    connect(settings.actors)
    try:
        return _with_ray(path, spec, settings, due, cache, progress)
    finally:
        disconnect()


def _with_ray(
    path: Path,
    spec: RunSpec,
    settings: Settings,
    due: list[Task],
    cache: Path | None,
    progress: Callable[[Counts], None],
) -> RunState:
    import asyncio  # noqa: PLC0415

    from hzzray.engine.pool import Pool  # noqa: PLC0415 (imports Ray, which reads its settings as it is imported)
    from hzzray.source import MemorySource  # noqa: PLC0415

    async def work() -> RunState:
        pool = Pool(path.resolve(), spec, settings.sources, settings.actors, cache)
        return await pool.run(MemorySource(due), progress)

    return asyncio.run(work())
