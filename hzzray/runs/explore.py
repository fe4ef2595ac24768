"""Explore a run: move a cut, take another observable or another binning, and have every number again, exactly."""

from __future__ import annotations

import math
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

from hzzray import analyses
from hzzray.cache import cache_folder
from hzzray.data.catalogue import Release, release
from hzzray.engine.explore import Explorer, InProcess
from hzzray.engine.explore_messages import Candidate, MergedAnswer, Pick, SessionStatus
from hzzray.engine.hot import renamed
from hzzray.engine.monitor import Usage
from hzzray.engine.template_tables import Tables, tables
from hzzray.errors import UsageError
from hzzray.messages import Cost, Counts, Failure, Partial, PlannedFile, RunSpec, RunState, Task, UnreadFile
from hzzray.physics.analysis import Analysis, Bound, Template
from hzzray.physics.cached_filler import Picked
from hzzray.physics.histogram import Blocks, digest
from hzzray.runs.folder import RunFolder, find_run
from hzzray.runs.plan import CHUNK, Plan, readable
from hzzray.runs.request import bound_of, bound_text, change_spec, colons, cut_texts, make_spec, number_text
from hzzray.runs.result import Result, environment, summarise
from hzzray.runs.run import Settings, finish, keep_settings, make_settings, new_run_id, settings_of
from hzzray.runs.templates import as_hist, scaled

#: A session that nobody asks anything for so long ends by itself [s].
IDLE_S = 900.0

#: Candidates that are listed at once, at the most: the leptons of each are read again.
MOST_CANDIDATES = 1000

Ends = tuple[float | None, float | None]
"""Between what a variable must lie; None for no bound."""


@dataclass(frozen=True)
class Answer:
    """What a re-cut gives: the numbers of a run with other cuts or templates, of all of its events or a part.

    Attributes
    ----------
    spec
        What a run of the same would compute.
    state
        The run's state as it would be.
    blocks
        Exact sums by sample.
    fraction
        The part of the run's events that is in them: 1 where nothing is lacking.
    failed
        Why ranges of entries could not be read, by file and range.
    seconds
        From question to answer.
    read
        Ranges that were not hot, and so were read again.
    """

    spec: RunSpec
    state: RunState
    blocks: dict[str, Blocks]
    fraction: float
    failed: tuple[str, ...]
    seconds: float
    read: int

    @property
    def digest(self) -> str:
        """SHA-256 of the first observable's exact bins: that of a run with these cuts, where nothing is lacking."""
        return self.state.digest

    @cached_property
    def result(self) -> Result:
        """The numbers as every run has them: yields, cutflow, significance."""
        return summarise(self.state)

    @cached_property
    def tables(self) -> Tables:
        """All templates, numbers as in the result: what ``runs.templates.showing`` takes."""
        return scaled(self.result, tables(self.spec, self.blocks))

    def hist(self, observable: str = "") -> Any:  # noqa: ANN401 (hist has no types)
        """Return an observable as a ``hist.Hist`` (weighted), axes dataset, region and the observable itself.

        By default the first one. Raises UsageError for one that was not asked for.
        """
        names = [template.observable for template in self.spec.templates]
        if observable and observable not in names:
            raise UsageError(f"no observable {observable!r} in this answer; it has {', '.join(names)}")
        return as_hist(self.result, self.tables, observable)


class Session:
    """An exploring session of a run. Use as a context manager, or ``close`` it.

    What is measured stays the run's: its files, analysis and parameters.
    """

    def __init__(self, folder: RunFolder, start: Callable[[Session, ExitStack], Explorer]) -> None:
        #: The run's own spec, and how it was done.
        self.spec, self.settings = settings_of(folder)
        with folder.ledger() as ledger:
            self._files, self._unread = ledger.laid_out()
            self._entries, self._unopened = ledger.entries(), ledger.unopened()
        self._tasks = tuple(task for file in self._files for task in file.tasks)
        if not self._tasks:
            raise UsageError(f"run {self.run_id}: none of its files could be read: there is nothing to explore")
        places = (*self.settings.analyses, *analyses.allowed())
        #: The analysis: its variables, and the axes of its templates.
        self.analysis: Analysis = analyses.resolve(self.spec.analysis, places)
        #: Variables that cuts and observables may use: those that the release has branches for.
        self.variables = analyses.measurable(self.spec, self.analysis)
        self._viewer = secrets.token_hex(8)
        with ExitStack() as stack:
            self._explorer = start(self, stack)
            self._stack = stack.pop_all()

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.settings.run_id

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The ranges of the run's files that are explored."""
        return self._tasks

    @property
    def sources(self) -> tuple[str, ...]:
        """Places that all of these may be read from."""
        return readable(self.settings.sources, Plan(tuple(self._files), tuple(self._unread)))

    def __enter__(self) -> Self:
        """Use as a context manager closes the session."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the session: one that is shared goes on for the others, until it is idle for long."""
        self._stack.close()

    def change(
        self,
        cuts: Mapping[str, Ends | None] | Sequence[Bound] = (),
        *,
        observables: Sequence[str] = (),
        axis: str | Sequence[float] | None = None,
        window: str | Sequence[float] | None = None,
    ) -> RunSpec:
        """Tell what a re-cut would compute (see ``recut``); raises UsageError naming what is wrong."""
        return change_spec(
            self.spec, self.analysis, _bounds(cuts), observables=observables, axis=colons(axis), window=colons(window)
        )

    def recut(
        self,
        cuts: Mapping[str, Ends | None] | Sequence[Bound] = (),
        *,
        observables: Sequence[str] = (),
        axis: str | Sequence[float] | None = None,
        window: str | Sequence[float] | None = None,
        viewer: str = "",
        whole: bool = True,
    ) -> Answer:
        """Judge and fill all events anew.

        Parameters
        ----------
        cuts
            By variable its bounds, in the place of those that the run has: ``{"m12": (60, 106)}``. None at either end
            is no bound there; None for both takes the cut away, all that one can do where several rows cut on it. A
            variable that the run doesn't cut on becomes a cut of its own, the last one.
        observables
            What is filled: names, each with an axis of its own or that of the run: ``"m12"``, ``"m12=40:120:40"``. By
            default all that the run has; the first one has digest and significance.
        axis
            START:STOP:BINS of the first observable, or the three numbers.
        window
            LOW:HIGH where the significance is counted, on the first observable's bin edges, or the two numbers.
        viewer
            Whose question this is, by default the session's: a newer one of the same viewer overtakes it.
        whole
            Wait until all that can be read is; else the answer is of what is ready, and says which part that is.

        Raises UsageError naming what is wrong, OvertakenError where a newer question overtook this one.
        """
        spec = self.change(cuts, observables=observables, axis=axis, window=window)
        return self.answer(spec, viewer=viewer, whole=whole)

    def answer(self, spec: RunSpec, *, viewer: str = "", whole: bool = True) -> Answer:
        """Answer for a spec that ``change`` made."""
        begun = time.perf_counter()
        heard = self._ask(spec, viewer=viewer, whole=whole)
        return self._answer(spec, heard, time.perf_counter() - begun)

    def _ask(self, spec: RunSpec, *, viewer: str = "", whole: bool = True, apart: bool = False) -> MergedAnswer:
        return self._explorer.ask(viewer or self._viewer, spec.selection.cuts, spec.templates, apart=apart, whole=whole)

    def _answer(self, spec: RunSpec, heard: MergedAnswer, seconds: float) -> Answer:
        shape = spec.shape
        blocks = {sample.name: Blocks.zeros(shape) for sample in spec.release.samples} | heard.blocks
        first = {name: one.histogram() for name, one in blocks.items()}
        events = sum(self._tasks[number].entries for number in heard.done)
        state = RunState(
            version=0,
            run_id=self.run_id,
            spec=spec,
            environment=environment(),
            counts=Counts(
                planned=len(self._tasks) + len(self._unread),
                merged=len(heard.done),
                failed=len(heard.failed) + len(self._unread),
                events=events,
            ),
            yields={name: histogram.yields() for name, histogram in first.items()},
            digest=digest(first),
            entries=self._entries,
            failures=(*(file.failure for file in self._unread), *self._failures(heard)),
            cost=Cost(wall_s=seconds, events=events),
            wall_s=seconds,
            unopened=self._unopened,
        )
        total = sum(task.entries for task in self._tasks)
        failed = tuple(failure.reason for failure in self._failures(heard))
        return Answer(spec, state, blocks, events / total if total else 1.0, failed, seconds, heard.read)

    def _failures(self, heard: MergedAnswer) -> list[Failure]:
        return [
            Failure(task=self._tasks[number], reason=reason, permanent=False)
            for number, reason in sorted(heard.failed.items())
        ]

    def standing(self) -> SessionStatus:
        """Tell how much is ready and hot."""
        return self._explorer.standing()

    def usages(self) -> list[Usage]:
        """Tell what the session's workers use: CPU, memory, and how much of that is hot candidates."""
        return self._explorer.usages()

    def candidates(
        self,
        what: Answer | RunSpec | Mapping[str, Ends | None],
        window: tuple[float, float] | None = None,
        *,
        observable: str = "",
        samples: Sequence[str] = (),
        limit: int = MOST_CANDIDATES,
        whole: bool = True,
    ) -> list[Candidate]:
        """List candidates that are filled, with their leptons, ``MOST_CANDIDATES`` at the most.

        Parameters
        ----------
        what
            An answer, its spec, or cuts as ``recut`` takes them.
        window
            What the observable must lie in, from the first end on and below the second; None for everything.
        observable
            The one that the window is of; by default the first.
        samples
            Of these alone; by default of the data.
        limit
            So many at the most.
        whole
            Wait until all that can be read is, as ``recut`` does.

        Raises UsageError naming what is wrong.
        """
        spec = self._spec_of(what)
        release = spec.release
        names = samples or [one.name for one in release.samples if release.role(one) == "data"]
        template = self._template(spec, observable)
        low, high = window or (-math.inf, math.inf)
        pick = Pick(
            spec.selection.cuts,
            template,
            frozenset(release.sample(name).name for name in names),
            low,
            high,
            max(0, min(limit, MOST_CANDIDATES)),
        )
        return self._explorer.pick(pick, whole=whole)

    def picked(self, what: Answer | RunSpec | Mapping[str, Ends | None]) -> Iterator[tuple[int, Picked]]:
        """Give all candidates that are filled, range after range: a range's number in ``tasks``, and arrays."""
        spec = self._spec_of(what)
        samples = frozenset(sample.name for sample in spec.release.samples)
        return self._explorer.picked(Pick(spec.selection.cuts, spec.templates[0], samples))

    def _template(self, spec: RunSpec, observable: str) -> Template:
        if not observable:
            return spec.templates[0]
        if observable not in self.variables:
            raise UsageError(f"no variable {observable!r}; there are {', '.join(self.variables)}")
        return Template(observable, spec.axis)  # of which only the observable matters

    def _spec_of(self, what: Answer | RunSpec | Mapping[str, Ends | None]) -> RunSpec:
        return what if isinstance(what, RunSpec) else what.spec if isinstance(what, Answer) else self.change(what)

    def keep(self, what: Answer | RunSpec | Mapping[str, Ends | None], run_id: str | None = None) -> Path:
        """Write a re-cut as a run of its own, whose digest is that of a run that reads everything; returns its folder.

        Ranges that could not be read are its failures, as in a run. Raises UsageError for a name that is none, and for
        that of a run.
        """
        spec = self._spec_of(what)
        own = self.settings.model_dump()
        settings = make_settings(**{**own, "run_id": run_id or new_run_id(), "bridged": False})
        kept = RunFolder(settings.folder.resolve())
        if kept.ledger_path.exists():
            raise UsageError(f"run {settings.run_id} exists in {settings.runs}: take another name")
        begun = time.perf_counter()
        heard = self._ask(spec, viewer=f"keep-{secrets.token_hex(4)}", apart=True)
        ids = {"run_id": settings.run_id, "spec": spec.digest}
        uuids = self._contents(spec)
        kept.create_ledger(spec)
        with kept.ledger() as ledger:
            renamed = {task.task_id: _renamed(task, {**ids, "uuid": uuids[task.uuid]}) for task in self._tasks}
            ledger.plan(
                [
                    PlannedFile(file.path, file.entries, tuple(renamed[task.task_id] for task in file.tasks))
                    for file in self._files
                ],
                [_unread(file, ids) for file in self._unread],
            )
            keep_settings(ledger, settings)
            ledger.take_over()
            partials = []
            for number in heard.done:
                task = renamed[self._tasks[number].task_id]
                partials.append(Partial(task, heard.packed[number], Cost(events=task.entries), "explore"))
            ledger.merge(partials)
            for failure in self._failures(heard):
                ledger.fail(failure.model_copy(update={"task": renamed[failure.task.task_id]}))
            ledger.add_wall(time.perf_counter() - begun)
            finish(ledger)
        return settings.folder

    def _contents(self, spec: RunSpec) -> dict[str, str]:
        """Name the files' contents as a run of a spec does, for which other branches may count."""
        files = {file.uuid: file.file for file in self._files}
        # One that is there no more keeps its name: who goes on with the run will see.
        return {uuid: uuid for uuid in files} | renamed(files, self.spec, spec, self.analysis, cache_folder())

    def command(self, what: Answer | RunSpec) -> str:
        """Tell the command line that makes such a run from nothing; raises UsageError where there is none."""
        return command(what.spec if isinstance(what, Answer) else what, self.settings)


def _renamed(task: Task, ids: Mapping[str, str]) -> Task:
    same = {name: getattr(task, name) for name in Task.model_fields}
    return Task(**{**same, **ids})


def _unread(file: UnreadFile, ids: Mapping[str, str]) -> UnreadFile:
    failure = file.failure.model_copy(update={"task": _renamed(file.failure.task, ids)})
    return UnreadFile(file.path, failure, file.missing, file.again)


def _bounds(cuts: Mapping[str, Ends | None] | Sequence[Bound]) -> list[Bound]:
    """Read cuts as somebody gives them; raises UsageError naming what is wrong."""
    return [bound_of(text) for text in cut_texts(cuts)] if isinstance(cuts, Mapping) else list(cuts)


def command(spec: RunSpec, settings: Settings) -> str:
    """Write the ``hzzray run …`` line that makes a run of a spec; raises UsageError where no line does.

    Where the release's catalogue isn't there, a comment says that it must be given.
    """
    whole = _release_of(spec, settings)
    known = whole or spec.release
    own = spec.analysis.module
    chosen: dict[str, Any] = {}
    if own:
        place = next((place for place in settings.analyses if Path(place).name == f"{own}.py"), f"{own}.py")
        chosen["analysis"] = f"{place}:{spec.analysis.name}"
    elif (name := spec.selection.name.removesuffix("*")) != known.selection:
        chosen["selection"] = name
    samples = tuple(sample.name for sample in spec.release.samples)
    if whole is None or samples != tuple(sample.name for sample in known.samples if sample.default):
        chosen["samples"] = samples
    if whole is None or spec.luminosity != known.luminosity:
        chosen["luminosity"] = spec.luminosity
    if spec.fraction != 1.0:
        chosen["fraction"] = spec.fraction
    base = make_spec(known, **chosen)
    chosen["cuts"] = _changed_cuts(base, spec)
    chosen["parameters"] = [
        f"{name}={str(value).lower() if isinstance(value, bool) else number_text(value)}"
        for name, value in spec.selection.parameters.items()
        if value != base.selection.parameters.get(name)
    ]
    chosen |= _changed_templates(base, spec)
    if make_spec(known, **chosen).digest != spec.digest:
        raise UsageError(f"no command line makes just this of release {known.name}: keep it as a run instead")
    options = [("release", spec.release.name), *(("source", source) for source in settings.sources)]
    if whole and settings.catalogue:
        options.insert(1, ("catalogue", str(settings.catalogue)))
    for name, value in chosen.items():
        if name == "samples":
            options.append((name, ",".join(value)))
        elif isinstance(value, list):
            options += [(name.removesuffix("s"), one) for one in value]
        else:
            options.append((name, number_text(value) if isinstance(value, float) else value))
    if settings.chunk != CHUNK:
        options.append(("chunk", str(settings.chunk)))
    line = shlex.join(["hzzray", "run", *(part for name, value in options for part in (f"--{name}", value))])
    return line if whole else f"{line}  # and --catalogue FILE.yaml, with the file that has release {known.name}"


def _release_of(spec: RunSpec, settings: Settings) -> Release | None:
    """Find a run's release, with all of its samples; None where it is of a catalogue that isn't known, or there."""
    catalogue = settings.catalogue or os.environ.get("HZZRAY_CATALOGUE")
    try:
        return release(spec.release.name, Path(catalogue) if catalogue else None)
    except UsageError:
        return None


def _changed_cuts(base: RunSpec, spec: RunSpec) -> list[str]:
    before, after = (
        {bound.variable: bound for cut in one.selection.cuts for bound in cut.bounds} for one in (base, spec)
    )
    gone = [Bound(variable) for variable in before if variable not in after]
    moved = [bound for variable, bound in after.items() if before.get(variable) != bound]
    return [bound_text(bound) for bound in (*gone, *moved)]


def _changed_templates(base: RunSpec, spec: RunSpec) -> dict[str, Any]:
    found: dict[str, Any] = {}
    axes = [":".join(map(number_text, astuple(template.axis))) for template in spec.templates]
    if spec.templates != base.templates:
        if spec.templates[1:] == base.templates[1:] and spec.templates[0].observable == base.templates[0].observable:
            found["axis"] = axes[0]
        else:
            names = [template.observable for template in spec.templates]
            found["observables"] = [f"{name}={axis}" for name, axis in zip(names, axes, strict=True)]
    same = spec.templates[0].observable == base.templates[0].observable
    if spec.window is not None and spec.window != (base.window if same else None):
        found["window"] = ":".join(map(number_text, spec.window))
    return found


def change(
    run: str | Path,
    cuts: Mapping[str, Ends | None] | Sequence[Bound] = (),
    *,
    runs: str | Path = "runs",
    observables: Sequence[str] = (),
    axis: str | Sequence[float] | None = None,
    window: str | Sequence[float] | None = None,
) -> RunSpec:
    """Tell what a re-cut of a run would compute, as ``Session.change`` does, before there is a session."""
    spec, settings = settings_of(find_run(str(run), Path(runs)))
    analysis = analyses.resolve(spec.analysis, (*settings.analyses, *analyses.allowed()))
    return change_spec(spec, analysis, _bounds(cuts), observables=observables, axis=colons(axis), window=colons(window))


def explore(
    run: str | Path,
    *,
    runs: str | Path = "runs",
    engine: Literal["ray", "serial"] = "ray",
    actors: int | None = None,
    memory: int | None = None,
    idle_s: float = IDLE_S,
) -> Session:
    """Explore a run: start a session, or join the one that there is.

    Parameters
    ----------
    run
        A run's id, or its folder.
    runs
        The folder of runs.
    engine
        ``ray``: actors on the cluster of ``RAY_ADDRESS``, or on this machine; ``serial``: this process alone.
    actors
        How many; by default one a CPU.
    memory
        Bytes of hot candidates an actor; by default a quarter of the memory that it may use.
    idle_s
        A session that nobody asks anything for so long ends by itself.

    Raises UsageError where there is no such run.
    """
    folder = find_run(str(run), Path(runs))
    if engine == "serial":
        return Session(folder, partial(_alone, memory))
    return Session(folder, partial(_together, actors, memory, idle_s))


def _together(actors: int | None, memory: int | None, idle_s: float, session: Session, stack: ExitStack) -> Explorer:
    """Join the session that viewers of a run share, on the cluster, or start it."""
    from hzzray.engine.cluster import cluster, usable_cpus  # noqa: PLC0415

    stack.enter_context(cluster(actors or usable_cpus()))
    from hzzray.engine.coordinator import SessionClient, SessionSpec  # noqa: PLC0415 (imports Ray)

    settings = session.settings
    shared = SessionSpec(
        session.spec, session.sources, session.tasks, cache_folder(), settings.analyses, actors, memory, idle_s
    )
    explorer = SessionClient(shared)
    stack.callback(explorer.close)
    return explorer


def _alone(memory: int | None, session: Session, stack: ExitStack) -> Explorer:
    from hzzray.engine.hot import HotWorker  # noqa: PLC0415 (imports numba)

    worker = HotWorker(
        session.spec,
        session.sources,
        session.tasks,
        cache=cache_folder(),
        places=session.settings.analyses,
        memory=memory,
    )
    explorer = InProcess(worker, len(session.tasks))
    stack.callback(explorer.close)
    return explorer
