"""A worker that keeps what it measured hot, under a bound in bytes, and answers re-cuts of it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hzzray import analyses
from hzzray.data.layout import read_layout
from hzzray.data.reader import Reader
from hzzray.data.schema import Schema
from hzzray.data.storage import open_bytes
from hzzray.engine.explore_messages import Candidate, Lepton, Pick, Question, WorkerAnswer
from hzzray.engine.monitor import Usage, measure_host
from hzzray.engine.worker import Worker
from hzzray.errors import DataError, HzzrayError, MissingFileError, TransientError
from hzzray.messages import Cost, Partial, Range, RunSpec, Task
from hzzray.parallel import AT_ONCE, side_by_side
from hzzray.physics import hot_kernels
from hzzray.physics.analysis import Analysis
from hzzray.physics.cached_filler import CachedFiller, Picked, UnmeasuredError
from hzzray.physics.candidate_builder import CandidateBuilder
from hzzray.physics.columns import Jagged, Offsets, Reads, Scalar, Unread, nothing
from hzzray.physics.fill import Sums
from hzzray.physics.filler import Filler
from hzzray.physics.hot_candidates import Hot
from hzzray.physics.hot_weights import extra_weights, needs
from hzzray.urls import redact

#: The part of the memory that an actor may use which its hot candidates may take, unless somebody says otherwise.
SHARE = 0.25

#: What makes events hot: the read digest of their sample, their file's content, where they start and stop.
Key = tuple[str, str, int, int]


def memory_bound() -> int:
    """Tell how many bytes hot candidates may take here: ``SHARE`` of what one CPU's worth of actors may use."""
    around = measure_host()
    return int(SHARE * around.memory_limit / max(1.0, around.cpus))


def read_digest(spec: RunSpec, sample: str, variables: Sequence[str]) -> str:
    """Name what the candidates of a sample are made of, but for the file: not what is cut on or filled.

    The weight of an event is a double that its normalisation, and so the luminosity, is multiplied into first.
    """
    release = spec.release
    made_of = {
        "analysis": spec.analysis.model_dump(mode="json"),
        "parameters": spec.selection.parameters,
        "absolute": spec.selection.absolute_weights,
        "schema": release.schema_.model_dump(mode="json"),
        "role": release.role(release.sample(sample)),
        "norm": release.normalisation(release.sample(sample), spec.luminosity).hex(),
        "variables": list(variables),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


class Store:
    """Hot candidates by key, those that were used last, as many as have room. For several threads."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.nbytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Hot] = OrderedDict()

    def __contains__(self, key: Key) -> bool:
        """Tell whether something is hot."""
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Hot | None:
        """Find what is hot; that is a use of it."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Key, hot: Hot) -> None:
        """Keep something, in the place of what was not used for the longest time; not what is larger than the bound."""
        with self._lock:
            self._forget(key)
            if hot.nbytes > self.bound:
                return
            while self.nbytes + hot.nbytes > self.bound:
                self._forget(next(iter(self._kept)))
            self._kept[key] = hot
            self.nbytes += hot.nbytes

    def _forget(self, key: Key) -> None:
        if (old := self._kept.pop(key, None)) is not None:
            self.nbytes -= old.nbytes


class CacheStatus(NamedTuple):
    """How a worker stands: how many ranges are hot, the bound of their bytes, and what it uses, these bytes too."""

    bound: int
    ranges: int
    usage: Usage


class _Seen(NamedTuple):
    """What is read of an event for people to look at: its leptons, and what the experiment calls it."""

    offsets: Any
    pt: Any
    eta: Any
    phi: Any
    charge: Any
    type: Any
    run: Any
    event: Any


#: What releases call the numbers of a run and of an event.
_RUN = ("runNumber", "run_number", "RunNumber", "run")
_EVENT = ("eventNumber", "event_number", "EventNumber", "event")


def content(file: str, spec: RunSpec, branches: tuple[str, ...], cache: Path | None) -> str:
    """Name a file's content as a planner does for whom some branches count; raises DataError where it can't be read."""
    with closing(open_bytes(file)) as source:
        return read_layout(source, spec.release.schema_.tree, branches, cache).uuid


def renamed(
    files: Mapping[str, str], before: RunSpec, after: RunSpec, analysis: Analysis, cache: Path | None
) -> dict[str, str]:
    """Name contents, by the names that a run has for them, as another one does, for which other branches may count.

    ``files`` are their places, by the first names. One that isn't there, or is another by now, is left out.
    """
    old, new = (analyses.reads(spec, analysis, simulation=True).branches for spec in (before, after))
    if old == new:
        return dict(zip(files, files, strict=True))

    def name(uuid: str) -> str:
        try:
            same = content(files[uuid], before, old, cache) == uuid
            return content(files[uuid], after, new, cache) if same else ""
        except (DataError, TransientError):
            return ""

    found = zip(files, side_by_side(name, list(files), AT_ONCE), strict=True)
    return {uuid: its for uuid, its in found if its}


def details(task: Task, schema: Schema, rows: Sequence[Candidate], cache: Path | None) -> list[Candidate]:
    """Add to candidates of a range what only their file tells; raises DataError where it can't be read."""
    leptons = all(schema.kinematics)
    numbers = (*_RUN, *_EVENT)
    with closing(open_bytes(task.file)) as file:
        there = read_layout(file, schema.tree, numbers, cache).branches

    def jagged(role: str, dtype: Literal["f4", "i4"] = "f4") -> Jagged | Unread:
        read = Jagged(getattr(schema, role), dtype, absolute=role == "type")
        return read if leptons else Unread(read)

    def scalar(names: Sequence[str]) -> Scalar | Unread:
        name = next((name for name in names if name in there), "")
        return Scalar(name, "i8") if name else Unread(Scalar(name, "i8"))

    run, event = scalar(_RUN), scalar(_EVENT)
    offsets = Offsets() if leptons else Unread(Offsets())
    seen = _Seen(
        offsets, jagged("pt"), jagged("eta"), jagged("phi"), jagged("charge", "i4"), jagged("type", "i4"), run, event
    )
    found = []
    with Reader(task.file, schema.tree, Reads(seen), cache=cache) as reader:
        for row in sorted(rows, key=lambda row: row.entry):
            (step,) = reader.steps(row.entry, row.entry + 1)
            columns = step.columns
            chosen = _chosen(row.values, columns, schema.gev) if leptons else ()
            its_run, its_event = (int(column[0]) if len(column) else None for column in (columns.run, columns.event))
            found.append(replace(row, run=its_run, event=its_event, leptons=chosen))
    return found


def _chosen(values: Mapping[str, float], columns: _Seen, gev: float) -> tuple[Lepton, ...]:
    """Find a candidate's leptons in its event: those whose pt and η are the four that were measured."""
    found = []
    pt, eta = columns.pt.astype(np.float64) * gev, columns.eta.astype(np.float64)
    for i in range(1, 5):
        wanted = values.get(f"pt{i}"), values.get(f"eta{i}")
        at = next((k for k in range(len(pt)) if k not in found and (pt[k], eta[k]) == wanted), None)
        if at is None:
            return ()
        found.append(at)
    return tuple(
        Lepton(float(pt[k]), float(eta[k]), float(columns.phi[k]), int(columns.charge[k]), int(columns.type[k]))
        for k in found
    )


class HotWorker(Worker):
    """Measures ranges of a run's files once, keeps them hot, and judges and fills them as often as somebody asks.

    ``tasks`` are all ranges of the run, known by their numbers. ``load`` may be called from one thread while
    another one answers, and ``drop`` and ``cache_status`` from a third.
    """

    def __init__(
        self,
        spec: RunSpec,
        sources: tuple[str, ...],
        tasks: Sequence[Task],
        name: str = "explorer-0",
        cache: Path | None = None,
        places: tuple[str, ...] = (),
        memory: int | None = None,
    ) -> None:
        self._tasks = tuple(tasks)
        self._store = Store(memory_bound() if memory is None else memory)
        self._reading = threading.Lock()
        self._dropped = -1
        self._contents: dict[str, str] = {}
        self._made = 0, 0  # entries and bytes of all that was ever hot
        self._common: dict[str, dict[Range, int]] = {}
        super().__init__(spec, sources, name, cache, places)
        hot_kernels.warm_up()

    def _prepare(self, places: tuple[str, ...]) -> tuple[Filler | DataError, dict[bool, Reads]]:
        filler, own = super()._prepare(places)
        if isinstance(filler, DataError):
            return filler, own
        spec = self._spec
        self._analysis = analysis = analyses.resolve(spec.analysis, (*places, *analyses.allowed()))
        names = analyses.measurable(spec, analysis)
        everything = {kind: analyses.reads_all(spec, analysis, names, simulation=kind) for kind in (False, True)}
        wanted = {bound.variable for cut in spec.selection.cuts for bound in cut.bounds}
        wanted |= {template.observable for template in spec.templates}
        wanted |= {variation.each for variation in spec.variations if variation.each}
        # A file may lack what only other cuts need.
        self._ways = (
            (self._builder(analysis, names, everything), everything),
            (self._builder(analysis, wanted, own), own),
        )
        self._digests = {sample.name: read_digest(spec, sample.name, names) for sample in spec.release.samples}
        return filler, everything

    def _builder(
        self, analysis: Analysis, names: Sequence[str] | set[str], reads: dict[bool, Reads]
    ) -> CandidateBuilder:
        numbers, spec = sorted(analysis.index(name) for name in names), self._spec
        kept = extra_weights(spec.variations, reads[True])
        builder = CandidateBuilder(analysis, spec.selection, numbers, spec.release.schema_.gev, kept)
        builder.warm_up(nothing(analyses.reads(self._spec, analysis, simulation=True)))
        return builder

    def _content(self, task: Task, reader: Reader) -> str:
        """Name the content of a task's file by the branches that the run itself reads, as its planner did."""
        _, (_, own) = self._ways
        if self._reads is own:
            return reader.layout.uuid
        if task.file not in self._contents:
            self._contents = {task.file: content(task.file, self._spec, own[True].branches, self._cache)}
        return self._contents[task.file]

    def close(self) -> None:
        """Let go of the file that is open, if any."""
        super().close()
        self._contents = {}

    def key(self, number: int) -> Key:
        """Name the candidates of a range."""
        task = self._tasks[number]
        return self._digests[task.sample], task.uuid, task.start, task.stop

    def load(self, number: int) -> bool:
        """Measure a range and keep it, where there is room for it beside what is hot; tells whether it is.

        Raises DataError and TransientError as ``process`` does.
        """
        if self.key(number) in self._store:
            return True
        if self._is_full(number):
            return False
        self._heat(number)
        return self.key(number) in self._store

    def _is_full(self, number: int) -> bool:
        """Tell whether a range, if it is like those that are hot, would drive one of them out."""
        entries, nbytes = self._made
        return bool(entries) and self._store.nbytes + self._tasks[number].entries / entries * nbytes > self._store.bound

    def _heat(self, number: int) -> Hot:
        """Measure a range, and keep it hot."""
        if isinstance(self._filler, DataError):
            raise self._filler
        task = self._tasks[number]
        with self._reading, self._meter.working(task):
            hot = self._measure(task)
        self._store.put(self.key(number), hot)
        entries, nbytes = self._made
        self._made = entries + task.entries, nbytes + hot.nbytes
        return hot

    def _measure(self, task: Task) -> Hot:
        (builder, everything), (fewer, own) = self._ways
        try:
            return self._read(task, builder, everything)
        except MissingFileError:
            raise
        except DataError:
            return self._read(task, fewer, own)

    def _read(self, task: Task, builder: CandidateBuilder, reads: dict[bool, Reads]) -> Hot:
        spec = self._spec
        if self._reads is not reads:
            self.close()
            self._take_up(reads)
        sample = spec.release.sample(task.sample)
        norm = spec.release.normalisation(sample, spec.luminosity)
        simulation = self._is_simulation(task)
        reader = self._open(task, simulation=simulation)
        with self._explained(task):
            hot = builder.keep(reader.steps(task.start, task.stop), norm, vary=simulation)
            reader.confirm()
        return hot

    def answer(self, question: Question, numbers: Sequence[int], *, apart: bool = False) -> WorkerAnswer | None:
        """Judge and fill ranges; None where the question was dropped meanwhile.

        What is hot comes first, so that what must be read drives out what was used for this very answer. ``apart`` asks
        for packed blocks, range by range, in place of sums.
        """
        if isinstance(self._filler, DataError):
            raise self._filler
        cached_filler = CachedFiller(self._analysis, question.cuts, question.templates)
        hot = [number for number in numbers if self.key(number) in self._store]
        cold = sorted(set(numbers) - set(hot))
        sums: dict[str, Sums] = {}
        entries: Counter[str] = Counter()
        failed: dict[int, str] = {}
        packed: dict[int, bytes] = {}
        done = []
        for number in (*hot, *cold):
            if question.number <= self._dropped:
                return None
            sample = self._tasks[number].sample
            own = cached_filler.begin() if apart else sums.setdefault(sample, cached_filler.begin())
            try:
                added = cached_filler.add(self._store.get(self.key(number)) or self._heat(number), own)
            except UnmeasuredError as error:
                failed[number] = f"{redact(self._tasks[number].file)}: no branches to measure {error} of"
            except (DataError, TransientError) as error:
                failed[number] = str(error)
            else:
                done.append(number)
                entries[sample] += added
                if apart:
                    packed[number] = cached_filler.end(own, added).pack()
        blocks = {sample: cached_filler.end(own, entries[sample]) for sample, own in sums.items()}
        return WorkerAnswer(blocks, tuple(done), failed, len(cold), packed)

    def lend(self, spec: RunSpec) -> frozenset[Range]:
        """Tell which ranges of a run of another spec are hot: those of the same contents, measured in the same way."""
        common = self._in_common(spec)
        return frozenset(one for one, number in common.items() if self.key(number) in self._store)

    def _in_common(self, spec: RunSpec) -> dict[Range, int]:
        """Tell the number of each range that a run of another spec has in common with this one, by its name there."""
        if spec.digest not in self._common:
            self._common = {spec.digest: self._compare(spec)}
        return self._common[spec.digest]

    def _compare(self, spec: RunSpec) -> dict[Range, int]:
        if isinstance(self._filler, DataError) or spec.analysis != self._spec.analysis:
            return {}
        names = analyses.measurable(spec, self._analysis)
        theirs = {sample.name: read_digest(spec, sample.name, names) for sample in spec.release.samples}
        same = {name for name, digest in self._digests.items() if theirs.get(name) == digest}
        (builder, _), _ = self._ways
        if not needs(spec.variations) <= builder.beside:  # of data nothing varies
            same &= {sample.name for sample in spec.release.samples if spec.release.role(sample) == "data"}
        files = {task.uuid: task.file for task in self._tasks if task.sample in same}
        uuids = renamed(files, self._spec, spec, self._analysis, self._cache)
        return {
            task.range._replace(uuid=uuids[task.uuid]): number
            for number, task in enumerate(self._tasks)
            if task.sample in same and task.uuid in uuids
        }

    def fill(self, spec: RunSpec, tasks: Sequence[Task]) -> list[Partial | HzzrayError]:
        """Fill tasks of a run of another spec with what is hot, exactly as its own workers would.

        In the place of a partial there is a TransientError where nothing is hot, or not all that is asked for.
        """
        if isinstance(self._filler, DataError):
            return [self._filler] * len(tasks)
        common = self._in_common(spec)
        cached_filler = CachedFiller(self._analysis, spec.selection.cuts, spec.templates, spec.variations, spec.varied)
        return [self._filled(cached_filler, task, common.get(task.range) if task.spec == spec.digest else None)
                for task in tasks]  # fmt: skip

    def _filled(self, cached_filler: CachedFiller, task: Task, number: int | None) -> Partial | HzzrayError:
        wall, cpu = time.perf_counter(), time.thread_time()  # another thread may be reading meanwhile
        hot = None if number is None else self._store.get(self.key(number))
        if hot is None:
            return TransientError(f"{redact(task.file)}: entries {task.start} to {task.stop} are not hot")
        with self._meter.working(task):
            sums = cached_filler.begin()
            try:
                with self._explained(task):
                    entries = cached_filler.add(hot, sums, vary=self._is_simulation(task))
                packed = cached_filler.end(sums, entries).pack()
            except UnmeasuredError as error:
                return TransientError(f"{redact(task.file)}: {error} is not hot")
            except DataError as error:
                return error
        cost = Cost(wall_s=time.perf_counter() - wall, cpu_s=time.thread_time() - cpu, events=task.entries)
        self._meter.add(cost)
        return Partial(task, packed, cost, self.name)

    def pick(self, pick: Pick, numbers: Sequence[int]) -> dict[int, Picked]:
        """Find candidates, by range; ranges that can't be read have none."""
        if isinstance(self._filler, DataError):
            raise self._filler
        cached_filler = CachedFiller(self._analysis, pick.cuts, [pick.template])
        found: dict[int, Picked] = {}
        left = pick.limit
        for number in numbers:
            if left == 0:
                break
            if self._tasks[number].sample not in pick.samples:
                continue
            with suppress(DataError, TransientError, UnmeasuredError):
                hot = self._store.get(self.key(number)) or self._heat(number)
                found[number] = cached_filler.pick(hot, pick.low, pick.high, left)
                left = None if left is None else left - found[number].entry.size
        return found

    def describe(self, number: int, picked: Picked) -> list[Candidate]:
        """Tell all that there is to see of some candidates of a range: their leptons are read again."""
        task, regions, names = self._tasks[number], self._analysis.regions, self._analysis.variables
        rows = []
        for i, entry in enumerate(picked.entry.tolist()):
            values = dict(zip((one.name for one in names), picked.values[:, i].tolist(), strict=True))
            rows.append(
                Candidate(
                    sample=task.sample,
                    file=redact(task.file),
                    entry=task.start + entry,
                    region=regions[picked.region[i]],
                    weight=float(picked.weight[i]),
                    values={name: value for name, value in values.items() if not math.isnan(value)},
                )
            )
        try:
            with self._reading:
                self._open(task, simulation=self._is_simulation(task))
                return details(task, self._spec.release.schema_, rows, self._cache)
        except (DataError, TransientError):
            return rows  # what is hot is all that is known

    def drop(self, number: int) -> None:
        """Answer no question up to this one any more."""
        self._dropped = max(self._dropped, number)

    def cache_status(self) -> CacheStatus:
        """Tell how much is hot."""
        own, *_ = self.usage()
        return CacheStatus(self._store.bound, len(self._store), own)

    def usage(self) -> tuple[Usage, ...]:
        """Tell what this process has used so far, bytes of hot candidates too, and its container if it is in one."""
        own, *around = super().usage()
        return replace(own, hot=self._store.nbytes), *around
