"""Tasks to partials: a plain class, wrapped by ``ray.remote`` at the edge and called directly by the serial engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from hzzray import analyses
from hzzray.data import unpacking, wants
from hzzray.data.reader import Buffers, Reader
from hzzray.data.storage import ByteSource, open_bytes
from hzzray.engine.cluster import actor_id
from hzzray.engine.metrics import Metrics
from hzzray.engine.monitor import Meter, Usage, measure_host
from hzzray.errors import DataError, HzzrayError, MissingFileError, UsageError
from hzzray.messages import Cost, Partial, RunSpec, Task
from hzzray.parallel import begun
from hzzray.physics.columns import Reads
from hzzray.physics.filler import Filler, MeasureError, WeightError
from hzzray.urls import Fence, is_remote, led_by, redact


class Worker:
    """Computes tasks of one run. Reads only files inside ``sources``; keeps the last file open for its next range.

    ``places`` are files and folders whose analyses it may use, beside those that its environment allows
    (``HZZRAY_ANALYSES``): tasks of another one are refused.
    """

    def __init__(
        self,
        spec: RunSpec,
        sources: tuple[str, ...],
        name: str = "worker-0",
        cache: Path | None = None,
        places: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._spec = spec
        self._sources = sources
        self._cache = cache
        self._reader: Reader | None = None
        self._buffers = Buffers()
        self._location = ""
        self._opening: dict[str, Future[ByteSource]] = {}
        self._fence: Fence | None = None
        self._counted = (0.0, 0)
        self._meter = Meter(name, actor_id=actor_id())
        self._told = self._meter.usage()
        self._run_id = ""
        self._filler, reads = self._prepare(places)
        self._take_up(reads)
        unpacking.warm_up()
        wants.warm_up()

    def _prepare(self, places: tuple[str, ...]) -> tuple[Filler | DataError, dict[bool, Reads]]:
        """Find the analysis and compile it; returns what fills, or why every task must be refused, and what is read."""
        spec = self._spec
        try:
            analysis = analyses.resolve(spec.analysis, (*places, *analyses.allowed()))
            reads = {simulation: analyses.reads(spec, analysis, simulation=simulation) for simulation in (False, True)}
            return analyses.filler(spec, analysis), reads
        except DataError as error:
            return error, {}
        except UsageError as error:
            return DataError(str(error)), {}

    def _take_up(self, reads: dict[bool, Reads]) -> None:
        """Read this of data and of simulation from now on; of either's files a layout is kept that does for both."""
        self._reads = reads
        self._known = reads[True].branches if reads else ()

    def __repr__(self) -> str:
        """Return the name that the Ray dashboard shows."""
        return self.name

    def usage(self) -> tuple[Usage, ...]:
        """Tell what this process has used so far, and its container if it is in one; answers during a task too."""
        usage = self._meter.usage()
        metrics = Metrics(self._run_id, self.name)  # here and not with each task, as tasks may be tiny
        metrics.count("events", usage.events - self._told.events)
        metrics.count("bytes_read", usage.bytes_read - self._told.bytes_read)
        self._told = usage
        around = measure_host()
        return (usage, around) if around.is_service else (usage,)

    def process(self, task: Task) -> Partial:
        """Run the selection over a task's entries.

        Raises DataError for a task that isn't this run's, leads outside the sources, or whose file is not what it was
        when it was planned; TransientError for faults of input that may pass.
        """
        return self._work(task, Reader.confirm)

    def _work(self, task: Task, confirm: Callable[[Reader], object]) -> Partial:
        with self._meter.working(task):
            made = self._compute(task, confirm)
        self._meter.add(made.cost)
        self._run_id = task.run_id
        Metrics(task.run_id, self.name).observe("task_seconds", made.cost.wall_s)
        return made

    def process_all(self, tasks: Sequence[Task]) -> list[Partial | HzzrayError]:
        """Process small tasks in one call; returns for each its partial, or what it failed with.

        Remote files are opened side by side, and so are their servers asked in the end whether they have changed: what
        either takes is mostly the way there and back.
        """
        held = self._location if self._reader is not None else ""
        remote = [task.file for task in tasks if is_remote(task.file) and task.file != held]
        self._fence = fence = Fence(self._sources)
        files = [file for file in dict.fromkeys(remote) if fence.holds(file)]
        self._opening = dict(zip(files, begun(open_bytes, files, len(files)), strict=True))
        later: dict[int, Reader] = {}
        try:
            outcomes = [self._outcome(task, partial(later.setdefault, i)) for i, task in enumerate(tasks)]
            readers = list(dict.fromkeys(later.values()))
            confirming = dict(zip(readers, begun(Reader.confirm, readers, len(readers)), strict=True))
            for i, reader in later.items():
                try:
                    confirming[reader].result()
                except HzzrayError as error:
                    outcomes[i] = error
                    self.close()
        finally:
            self._opening, self._fence = {}, None
        return outcomes

    def _outcome(self, task: Task, later: Callable[[Reader], object]) -> Partial | HzzrayError:
        try:
            return self._work(task, later) if is_remote(task.file) else self.process(task)
        except HzzrayError as error:
            return error

    def _compute(self, task: Task, confirm: Callable[[Reader], object]) -> Partial:
        wall, cpu = time.perf_counter(), time.process_time()
        spec = self._spec
        if task.spec != spec.digest:
            raise DataError(
                f"task {task.task_id} belongs to another computation ({task.spec[:12]}, not {spec.digest[:12]})"
            )
        if isinstance(self._filler, DataError):
            raise self._filler
        sample = spec.release.sample(task.sample)
        simulation = self._is_simulation(task)
        reader = self._open(task, simulation=simulation)
        norm = spec.release.normalisation(sample, spec.luminosity)
        with self._explained(task):
            packed = self._filler.pack(reader.steps(task.start, task.stop), norm, vary=simulation)
            confirm(reader)
        read_s, bytes_read = self._counted  # by earlier tasks of this file; opening it counts for its first one
        self._counted = reader.read_s, reader.bytes_read
        cost = Cost(
            wall_s=time.perf_counter() - wall,
            cpu_s=time.process_time() - cpu,
            read_s=reader.read_s - read_s,
            bytes_read=reader.bytes_read - bytes_read,
            events=task.entries,
        )
        return Partial(task, packed, cost, self.name)

    def _is_simulation(self, task: Task) -> bool:
        release = self._spec.release
        return release.role(release.sample(task.sample)) != "data"

    @contextmanager
    def _explained(self, task: Task) -> Iterator[None]:
        """Name file and sample in what goes wrong while a task's entries are read and measured."""
        spec = self._spec
        try:
            yield
        except WeightError as error:
            sample = spec.release.sample(task.sample)
            what = "xsec and sumw" if sample.xsec is not None else f"branch {spec.release.schema_.divisor}"
            raise DataError(f"{redact(task.file)}: {error}: check {what} of sample {sample.name}") from error
        except MeasureError as error:
            raise DataError(f"{redact(task.file)}: analysis {spec.analysis}: {error}") from error
        except HzzrayError:
            self.close()  # the next try opens the file anew: it may have been put right, or replaced
            raise

    def _open(self, task: Task, *, simulation: bool) -> Reader:
        if self._reader is None or self._location != task.file:
            if not (self._fence or Fence(self._sources)).holds(task.file):
                link = led_by(task.file)
                why = f" ({link}: add that to the sources)" if link else ""
                raise DataError(f"{redact(task.file)}: outside the sources that this worker may read{why}")
            self.close()
            opening = self._opening.pop(task.file, None)
            self._reader = Reader(
                task.file,
                self._spec.release.schema_.tree,
                self._reads[simulation],
                known=self._known,
                cache=self._cache,
                buffers=self._buffers,
                opened=None if opening is None else opening.result,
            )
            self._location = task.file
            self._counted = (0.0, 0)
        if self._content(task, self._reader) != task.uuid:
            self.close()
            # The planned one isn't there, but may be on another node.
            raise MissingFileError(f"{redact(task.file)}: another file since it was planned (its content changed)")
        return self._reader

    def _content(self, task: Task, reader: Reader) -> str:  # noqa: ARG002 (see HotWorker)
        """Name the content of a task's file, as the run's planner did."""
        return reader.layout.uuid

    def close(self) -> None:
        """Let go of the file that is open, if any."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
