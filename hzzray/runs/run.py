"""One run, start to end: spec, ledger, plan, engine, result."""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hzzray.cache import cache_folder
from hzzray.engine.cluster import usable_cpus, write_dashboard_file
from hzzray.engine.ledger import KnownFile, Ledger, Wish
from hzzray.engine.limits import Limits
from hzzray.engine.metrics import Metrics
from hzzray.engine.monitor import Scale
from hzzray.engine.reducer import Live
from hzzray.engine.source import MemorySource
from hzzray.engine.template_tables import tables
from hzzray.errors import HzzrayError, UsageError
from hzzray.messages import RUN_ID, Counts, PlannedFile, RunSpec, RunState, Task
from hzzray.parallel import aside
from hzzray.physics.histogram import digest, varied_digest
from hzzray.runs.folder import RunFolder, named, save_json
from hzzray.runs.plan import CHUNK, Plan, check_source, make_plan, readable
from hzzray.runs.request import Engine, RunRequest, checked
from hzzray.runs.result import Result, moment, summarise
from hzzray.runs.tables import Recorder
from hzzray.runs.templates import save_root, save_templates, scaled
from hzzray.statistics.scaling import names
from hzzray.urls import absolute, redact

#: Parts of a run that takes its time: each has a part of every file.
_SLICES = 100


class StoppedError(HzzrayError):
    """The user ended a run before it was finished. What is merged is kept."""


# Workers of a cluster that stays are in another folder than whoever asks for a run.
_Places = Annotated[tuple[str, ...], AfterValidator(lambda places: tuple(map(absolute, places)))]


class Settings(BaseModel):
    """Where and how a run is done; what it computes is its spec. With a ``pace_s`` it takes that long at least [s].

    One that is ``bridged`` gets its tasks through a broker. ``analyses`` are files that its workers may use, beside
    what their own environment allows; ``catalogue`` is the user's file that its release was looked for in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: Path
    run_id: Annotated[str, Field(pattern=RUN_ID)]
    sources: _Places
    engine: Engine = "ray"
    limits: Limits = Limits()
    chunk: int = CHUNK
    pace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    bridged: bool = False
    analyses: _Places = ()
    catalogue: Path | None = None

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.run_id


def make_settings(**chosen: object) -> Settings:
    """Put settings together; raises UsageError naming what is wrong."""
    return checked(Settings, chosen)


def settings_for(request: RunRequest, sources: tuple[str, ...], runs: Path) -> Settings:
    """Make the settings of a run that somebody asks for, to be read from ``sources`` and kept in ``runs``."""
    return make_settings(
        runs=runs,
        run_id=request.run_id or new_run_id(),
        sources=sources,
        engine=request.engine,
        limits=limits_for(request),
        chunk=request.chunk or CHUNK,
        pace_s=request.pace,
        analyses=request.analyses,
        catalogue=request.catalogue and request.catalogue.resolve(),
    )


def limits_for(request: RunRequest) -> Limits:
    """Make the limits of a pool of the actors that somebody asks for: one a CPU where nothing is said."""
    usual = request.actors or usable_cpus()
    least = request.min_actors or min(usual, request.max_actors or usual)
    return Limits(min_actors=least, max_actors=request.max_actors or max(usual, least))


def settings_of(folder: RunFolder) -> tuple[RunSpec, Settings]:
    """Tell what a run computes, and how it was last worked on; raises UsageError where there is no such run.

    They lead to this folder, whatever it is called: a copy's ledger has the id of the run that it was copied from.
    """
    with folder.ledger() as ledger:
        kept = make_settings(**json.loads(ledger.settings()), runs=folder.path.parent, run_id=ledger.run_id)
        return ledger.spec, kept.model_copy(update={"run_id": folder.run_id})


def keep_settings(ledger: Ledger, settings: Settings) -> None:
    """Leave word in a run's ledger how it is worked on; where the folder is, it tells itself."""
    ledger.keep_settings(settings.model_dump_json(exclude={"runs", "run_id"}))


def new_run_id() -> str:
    """Name a run after the time, with two bytes of chance for runs of the same second."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class Ended(NamedTuple):
    """How the work on a run has ended: its result, whose files are written, and what made it end before its time."""

    result: Result
    why: str


class Transport(Protocol):
    """How a run's tasks come to workers: without one they go from memory to actors, or are done here."""

    @property
    def is_bridged(self) -> bool:
        """Whether they go through a broker."""

    def check(self) -> None:
        """Refuse to begin where nothing could be carried; raises HzzrayError."""

    def agree(self, spec: RunSpec, run_id: str, plan: Plan) -> Plan:
        """Tell what holds of a plan, of all that have planned this run; raises UsageError where they don't agree."""

    def work(self, ledger: Ledger, settings: Settings, progress: Callable[[Counts], None]) -> Ended:
        """Do what is due."""


def execute(
    spec: RunSpec,
    settings: Settings,
    *,
    planned: Callable[[Plan], None],
    progress: Callable[[Counts], None],
    transport: Transport | None = None,
) -> Result:
    """Do a run, or the rest of one, and write its files.

    A run folder that exists is resumed when its spec is the same: what is merged stays, what failed is tried again.
    Raises UsageError when the spec is another, StoppedError when the user ended it before it was finished, and what the
    ``transport`` raises.
    """
    by = transport or _Memory(Clock())
    for source in settings.sources:
        check_source(source)
    by.check()
    cache = cache_folder()
    folder = RunFolder(settings.folder.resolve())
    if folder.has_ledger:
        check_same(folder, spec)
    plan = make_plan(
        spec, settings.run_id, settings.sources, chunk=settings.chunk, cache=cache, places=settings.analyses
    )
    agreed = by.agree(spec, settings.run_id, plan)
    if not folder.has_ledger:  # a run that can't be planned leaves nothing behind
        folder.create_ledger(spec)
        check_same(folder, spec)  # another process may have been faster
    with folder.ledger() as ledger:
        record(ledger, agreed)
        ledger.relocate(plan.files)  # who planned it first may have its files elsewhere
        keep_settings(ledger, settings.model_copy(update={"bridged": settings.bridged or by.is_bridged}))
        planned(plan)
        mine = settings.model_copy(update={"sources": readable(settings.sources, plan)})
        result, why = by.work(ledger, mine, progress)
    if result.status == "running":
        left = result.tasks.planned - result.tasks.merged - result.tasks.failed
        said = f"{why}, " if why else ""
        raise StoppedError(f"run {settings.run_id}: {said}{left} tasks left; the same --run-id goes on with them")
    return result


class Clock:
    """Tells the ledger how long a run goes on, in time: a driver that is killed can't do so in the end.

    This start of it has ``begun`` when the clock was made.
    """

    def __init__(self) -> None:
        self.begun = self._told = time.monotonic()

    def before(self, ledger: Ledger) -> float:
        """Tell how long the run went on before this start, in seconds."""
        return ledger.wall_s() - (self._told - self.begun)

    def tell(self, ledger: Ledger) -> None:
        """Add what has passed since the last time."""
        now = time.monotonic()
        ledger.add_wall(now - self._told)
        self._told = now


def check_same(folder: RunFolder, spec: RunSpec) -> None:
    """Refuse to go on with a run of another spec; raises UsageError that says what differs."""
    with folder.ledger() as ledger:
        began = ledger.spec
    mine, its = spec.release.background_uncertainty, began.release.background_uncertainty
    if began.digest == spec.digest and mine != its:
        raise UsageError(
            f"run {folder.run_id} in {folder.path.parent} counts with another --background-uncertainty; leave it as it "
            f"was, and ask `hzzray result {folder.run_id} --background-uncertainty` for others"
        )
    if began.digest != spec.digest:
        names = {"templates": "observables or axis"}
        fields = ("release", "analysis", "selection", "templates", "window", "luminosity", "fraction", "variations")
        differing = [names.get(field, field) for field in fields if getattr(began, field) != getattr(spec, field)]
        if "analysis" in differing and str(began.analysis) == str(spec.analysis):
            differing[differing.index("analysis")] = f"content of {spec.analysis.module}.py"
        raise UsageError(
            f"run {folder.run_id} in {folder.path.parent} exists with another {' and '.join(differing)}; "
            "take another --run-id, or the same choices to resume it"
        )


def record(ledger: Ledger, plan: Plan) -> None:
    """Write the plan of a start into the ledger: what failed before is tried again.

    A file that was planned before keeps its tasks, however it would be cut today: ranges never overlap. One that is
    another by now, or was written over, is planned anew where nothing of the old one was merged. Raises UsageError
    where something was. A file that a pattern finds for the first time is planned in addition.
    """
    stale: dict[str, set[str]] = {}
    for new, old in _replaced(ledger, plan):
        if ledger.has_merged(old.uuid):
            raise UsageError(_mixed(ledger, new, old))
        stale.setdefault(old.sample, set()).add(old.uuid)
    for sample, uuids in stale.items():
        ledger.forget_sample(sample, uuids)
    ledger.take_over()
    ledger.wish("run")
    ledger.forget_failures()
    ledger.relocate(plan.files)
    add_plan(ledger, plan)


def add_plan(ledger: Ledger, plan: Plan) -> None:
    """Write into the ledger what a plan has of files that were not planned before, and what it could not plan."""
    known = ledger.planned_files()
    contents = {(file.sample, file.uuid) for file in known}
    places = {(file.sample, file.path) for file in known}
    mixed = {new.uuid for new, old in _replaced(ledger, plan) if new.sample == old.sample}
    fresh = [file for file in plan.files if (file.sample, file.uuid) not in contents and file.uuid not in mixed]
    ledger.plan(fresh, [file for file in plan.unread if (file.sample, file.path) not in places])


def _replaced(ledger: Ledger, plan: Plan) -> Iterator[tuple[PlannedFile, KnownFile]]:
    """Find the files of a run that a plan has others for: to read both might count events twice.

    A file that is new to a sample takes the place of the one that lay there or, as it may be another version under
    another name, of one that lies nowhere any more; and of itself, where it was another sample's.
    """
    known = ledger.planned_files()
    contents = {(file.sample, file.uuid) for file in known}
    fresh = [file for file in plan.files if (file.sample, file.uuid) not in contents]
    there = {(file.sample, file.uuid) for file in plan.files}
    for old in known:
        if (old.sample, old.uuid) in there:
            continue
        is_gone = (old.sample, old.path) not in plan.places
        for new in fresh:
            if new.uuid == old.uuid or (new.sample == old.sample and (is_gone or new.path == old.path)):
                yield new, old


def _mixed(ledger: Ledger, new: PlannedFile, old: KnownFile) -> str:
    """Say why a run can't go on with a file instead of the one that it has read, and what can be done."""
    run, sample = RunFolder(ledger.path.parent).run_id, ledger.spec.release.sample(old.sample)
    hint = f"hzzray retract {run} {sample.name}" + ("" if sample.only_path else f" --file {shlex.quote(old.path)}")
    what = f"another file than the one that run {run} began with, or another content"
    if new.sample == old.sample and new.path != old.path:
        what = f"not one that run {run} began with, and {old.path} of the same sample, which it has read, is gone"
    return f"{redact(new.file)}: {what}; take another --run-id, or retract what was read of it: {hint}"


@dataclass(frozen=True, slots=True)
class _Memory:
    """The transport of a run that is planned and done by one driver."""

    clock: Clock
    is_bridged: ClassVar[bool] = False

    def check(self) -> None:
        """Memory carries all."""

    def agree(self, spec: RunSpec, run_id: str, plan: Plan) -> Plan:  # noqa: ARG002
        """Nobody else has planned it."""
        return plan

    def work(self, ledger: Ledger, settings: Settings, progress: Callable[[Counts], None]) -> Ended:
        """Do what is due, with actors or in this process. A cluster ends while the run's files are written."""
        with ThreadPoolExecutor(1) as beside, ExitStack() as stack:
            wish = _work(ledger, settings, progress, self.clock, stack)
            self.clock.tell(ledger)
            ending = beside.submit(stack.pop_all().close)
            result = finish(ledger)
            ending.result()
            return Ended(result, wish)


def _work(
    ledger: Ledger, settings: Settings, progress: Callable[[Counts], None], clock: Clock, stack: ExitStack
) -> Wish:
    """Do what is due, on a cluster that ends with the stack; returns what the run's user wished last."""
    if not ledger.counts().due:
        return "run"
    if settings.engine == "serial":
        from hzzray.engine.serial import run_serial  # noqa: PLC0415 (compiled kernels are loaded here, or by the actors)

        tasks, interval_s = _in_time(ledger, settings)
        with Journal(ledger, clock) as journal:
            return run_serial(
                ledger,
                tasks,
                settings.sources,
                cache=cache_folder(),
                places=settings.analyses,
                progress=progress,
                watcher=journal.write,
                interval_s=interval_s,
            )
    from hzzray.engine.cluster import cluster  # noqa: PLC0415

    stack.enter_context(cluster(settings.limits.max_actors))
    from hzzray.engine.sight import require_visible  # noqa: PLC0415 (imports Ray)

    require_visible(ledger.due_files(), settings.sources)
    return asyncio.run(_with_ray(ledger, settings, progress, clock))


def _in_time(ledger: Ledger, settings: Settings) -> tuple[Iterable[Task], float]:
    """Order what is due, and say how much time is to be between two tasks.

    File by file is fastest. A run that takes its time for people to watch goes through all simulation side by side, and
    through the data one after the other as they were taken: what it shows at any moment is a fair part of the whole.
    In slices, as a worker that comes back to a file reads a basket again.
    """
    if not settings.pace_s:
        return ledger.due(), 0.0
    tasks = list(ledger.due())
    release = ledger.spec.release
    lines = {sample.name: "" if release.role(sample) == "data" else sample.name for sample in release.samples}
    lengths: Counter[str] = Counter()
    before: dict[str, int] = {}
    known = ledger.planned_files()
    for name, line in lines.items():
        for file in (one for one in known if one.sample == name):
            before[file.uuid] = lengths[line]
            lengths[line] += file.planned

    def slice_of(task: Task) -> int:
        return _SLICES * (before.get(task.uuid, 0) + task.start) // max(1, lengths[lines[task.sample]])

    tasks.sort(key=slice_of)
    return tasks, settings.pace_s / max(1, len(tasks))


async def _with_ray(ledger: Ledger, settings: Settings, progress: Callable[[Counts], None], clock: Clock) -> Wish:
    from hzzray.engine.actors import start_reducer, worker_starter  # noqa: PLC0415 (imports Ray)
    from hzzray.engine.coordinator import lenders  # noqa: PLC0415
    from hzzray.engine.pool import Pool  # noqa: PLC0415
    from hzzray.engine.service_usage import Services  # noqa: PLC0415

    start = worker_starter(ledger.spec, settings.sources, cache_folder(), settings.analyses)
    find = partial(start_reducer, ledger)
    with Journal(ledger, clock) as journal:
        metrics, around = Metrics(ledger.run_id, "pool"), Services(settings.runs)
        lent = await aside(lenders, ledger.spec)
        pool = Pool(
            start, find, settings.limits, journal.write, metrics, around=around, sources=settings.sources, lent=lent
        )
        tasks, interval_s = _in_time(ledger, settings)
        source = MemorySource(tasks, interval_s=interval_s)
        with signals(pool.obey):
            state = await pool.run(source, progress, ledger.counts())
        journal.end(state)
    return pool.wish


class Journal:
    """Keeps a run's folder up to date while the run goes on, and its ledger's clock. Use as a context manager."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._recorder = Recorder(ledger.path.parent, ledger.environment, clock.before(ledger))
        self._entrance: list[Path] = []

    def __enter__(self) -> Self:
        """Use as a context manager closes the files."""
        return self

    def __exit__(self, *_: object) -> None:
        self._recorder.close()
        for path in self._entrance:
            path.unlink(missing_ok=True)

    def write(self, live: Live) -> None:
        """Write down how the run goes."""
        if not self._entrance:  # a cluster's dashboard may come after it
            self._entrance = write_dashboard_file(self._ledger.path.parent)
        now = time.monotonic() - self._clock.begun
        self._recorder.add(now, live.usages)
        if live.scale is not None:
            self._recorder.add_scale(now, live.scale)
        if live.congestion is not None:
            self._recorder.add_queue(now, live.congestion)
        self._recorder.add_events(now, live.events)
        self._clock.tell(self._ledger)
        if live.state is not None:
            result = _show(self._ledger.path.parent, live.state.with_wall(self._ledger.wall_s()))
            self._recorder.add_history(now, moment(result))
            if live.tables is not None:
                save_templates(result, scaled(result, live.tables), self._ledger.path.parent)

    def end(self, state: RunState) -> None:
        """Write down how the run stands now that its workers have gone: the last rows are those of its end."""
        now = time.monotonic() - self._clock.begun
        self._recorder.add_scale(now, Scale(actors=0, pending=0, nodes=0, waiting=state.counts.due, in_flight=0))
        self._recorder.add_history(now, moment(summarise(state)))


def _show(folder: Path, state: RunState) -> Result:
    """Let whoever shares the run's folder see how it goes."""
    result = named(summarise(state), folder)
    save_json(result, folder)
    return result


def finish(ledger: Ledger) -> Result:
    """Write the files that a run leaves, finished or not: all of them of what its ledger holds now."""
    blocks = ledger.blocks()
    first = {name: one.histogram() for name, one in blocks.items()}
    state = RunState(
        version=0,
        run_id=ledger.run_id,
        spec=ledger.spec,
        environment=ledger.environment,
        counts=ledger.counts(),
        yields={name: histogram.yields() for name, histogram in first.items()},
        digest=digest(first),
        entries=ledger.entries(),
        failures=tuple(ledger.failures()),
        cost=ledger.cost(),
        wall_s=ledger.wall_s(),
        unopened=ledger.unopened(),
        varied_digest=varied_digest({name: one.varied_sha() for name, one in blocks.items()}),
    )
    folder = ledger.path.parent
    result = _show(folder, state)
    found = scaled(result, tables(ledger.spec, blocks))
    save_templates(result, found, folder)
    save_root(result, found, folder)
    return result


def retract(folder: RunFolder, sample: str, path: str | None = None) -> tuple[int, Result]:
    """Take a sample's results out of a run, or those of its file at ``path`` alone, and write the run's files anew.

    That is exact. Returns how many merged tasks went, and the result without them. Raises UsageError where there is no
    such run, sample or file.
    """
    with folder.ledger() as ledger:
        ledger.spec.release.sample(sample)
        places = {file.path: file.uuid for file in ledger.planned_files() if file.sample == sample}
        if path is not None and path not in places:
            raise UsageError(
                f"run {folder.run_id} has read no {path} of sample {sample}; it has {names(places) or 'read none'}"
            )
        gone = ledger.forget_sample(sample, None if path is None else {places[path]})
        return gone, finish(ledger)


@contextmanager
def signals(obey: Callable[[Wish], None]) -> Iterator[None]:
    """Drain on SIGTERM and on the first Ctrl-C; the second one ends at once."""
    loop = asyncio.get_running_loop()
    wishes: Iterator[Wish] = chain(["drain"], repeat("cancel"))
    handlers: dict[int, Callable[[], None]] = {
        signal.SIGINT: lambda: obey(next(wishes)),
        signal.SIGTERM: lambda: obey("drain"),
    }
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # signals are the main thread's business
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
