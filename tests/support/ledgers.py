"""Ledgers with made-up tasks, and partials that follow from their tasks alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.reducer import Reducer
from hzzray.messages import Cost, Failure, Partial, PlannedFile, RunSpec, Task, UnreadFile, unread_uuid
from hzzray.physics.histogram import LIMB_BITS, Blocks, digest
from hzzray.runs.request import make_spec

SPEC = make_spec(release("toy"), selection="notebook-2020", samples=("data_A", "Zee", "llll"))
NAMES = tuple(sample.name for sample in SPEC.release.samples)
EVENTS = 10


def task(number: int, *, sample: str = "Zee", start: int | None = None, stop: int | None = None, **changes) -> Task:
    """Make the task of some entries of a sample's file; by default EVENTS of them, the number-th ones."""
    first = number * EVENTS if start is None else start
    fields = {"run_id": "run", "spec": SPEC.digest, "sample": sample, "file": f"/files/{sample}.root"}
    own = {"uuid": f"uuid-{sample}", "tree": "mini", "start": first, "stop": first + EVENTS if stop is None else stop}
    return Task(**{**fields, **own, **changes})


def tasks(number: int) -> list[Task]:
    """Make so many tasks for each sample."""
    return [task(i, sample=name) for name in NAMES for i in range(number)]


def files(of: Iterable[Task], totals: Mapping[str, int] | None = None) -> list[PlannedFile]:
    """Sort tasks into their files, each with as many entries as its uuid's total, or as its tasks reach."""
    grouped = [tuple(group) for _, group in groupby(of, key=lambda task: (task.sample, task.uuid))]
    known = totals or {}
    return [PlannedFile(Path(group[0].file).name, known.get(group[0].uuid, group[-1].stop), group) for group in grouped]


def unread(sample: str, reason: str = "broken", *, missing: bool = False, path: str = "") -> UnreadFile:
    """Make a file of a sample that could not be read."""
    path = path or f"{sample}.root"
    lacking = task(0, sample=sample, uuid=unread_uuid(sample, path), stop=0, file=f"/files/{path}")
    return UnreadFile(path, Failure(task=lacking, reason=reason, permanent=True), missing)


def entries(number: int) -> dict[str, tuple[int, int]]:
    """Entries planned and in all, for ``tasks``."""
    return dict.fromkeys(NAMES, (number * EVENTS, number * EVENTS))


def blocks(of: Task, spec: RunSpec = SPEC) -> Blocks:
    """Fill blocks as a worker might: each of the task's events is in a bin of each template, which depends on it."""
    rng = np.random.default_rng([of.start, of.stop, NAMES.index(of.sample)])
    filled = Blocks.zeros(spec.shape)
    for template in range(len(spec.templates)):
        view = filled.histogram(template)
        at = tuple(rng.integers(length, size=of.entries) for length in view.counts.shape)
        np.add.at(view.counts, at, 1)
        for sums in (view.sumw, view.sumw2):
            np.add.at(sums.limbs, at, rng.integers(0, 2**LIMB_BITS, (of.entries, sums.limbs.shape[-1])))
    return replace(filled, entries=of.entries) + Blocks.zeros(spec.shape)


def partial(of: Task) -> Partial:
    """Make the partial of a task."""
    return Partial(of, blocks(of).pack(), Cost(1.0, 0.5, 0.25, 100, of.entries), "worker-0")


def sums(of: Iterable[Task]) -> dict[str, Blocks]:
    """Add the blocks of tasks up, by sample: what a run that merged these must hold."""
    total = {name: Blocks.zeros(SPEC.shape) for name in NAMES}
    for one in of:
        total[one.sample] += blocks(one)
    return total


def digest_of(of: Mapping[str, Blocks]) -> str:
    """Digest of the first template: a run's."""
    return digest({name: made.histogram() for name, made in of.items()})


def contents(of: Mapping[str, Blocks]) -> str:
    """Digest of all templates."""
    templates = range(len(SPEC.templates))
    return digest({f"{name} {i}": made.histogram(i) for name, made in of.items() for i in templates})


def start(path: Path, planned: Iterable[Task], number: int = 0) -> None:
    """Create a ledger with tasks."""
    with Ledger.create(path, "run", SPEC, "local") as ledger:
        ledger.plan(files(planned, {f"uuid-{name}": number * EVENTS for name in NAMES} if number else None))


def work(path: Path, batch: int) -> None:
    """Merge all that is due, in batches; write a line after each commit."""
    reducer = Reducer(path)
    with Ledger.open(path) as ledger:
        due = list(ledger.due())
    for i in range(0, len(due), batch):
        reducer.merge([partial(one) for one in due[i : i + batch]])
        print(i, flush=True)
    reducer.close()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
