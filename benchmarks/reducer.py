"""How fast results become durable: commits of the ledger, and the reducer's actor under 1 000 simulated workers.

Run by hand or by ``make bench-engine``. Writes its section of docs/performance.md when it is a full run.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
from rich.console import Console

from hzzray.data.catalogue import release
from hzzray.engine.actors import start_reducer
from hzzray.engine.cluster import cluster
from hzzray.engine.commits import BATCH
from hzzray.engine.ledger import Ledger
from hzzray.engine.reducer import Reducer
from hzzray.messages import Cost, Partial, PlannedFile, RunSpec, Task
from hzzray.physics.histogram import LIMB_BITS, Blocks
from hzzray.runs.request import make_spec

FULL_TASKS = 100_000

#: Of partials that are larger than that there are fewer, and they come less often: some GB of disk, and no more.
SMALL_BYTES = 20_000
MOST_OF_LARGE = 5
WORKERS = 1_000

#: Batch sizes, and how many commits of each are timed at the beginning and at the end.
COMMITS = {1: 500, 16: 200, 256: 40}

#: Seconds a task takes each simulated worker: what is offered is WORKERS over it.
TASK_S = (4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05)
STEP_S = 4.0

#: A reducer that commits less of what is offered is saturated.
KEEPS_UP = 0.9

EVENTS = 100
KINDS = 64

#: What partials are of: what the reducer was first built for, and a run's default.
SPECS = {
    "one observable": make_spec(release("toy"), selection="notebook-2020", observables=("m4l",)),
    "the default ones": make_spec(release("toy"), selection="notebook-2020"),
}


def packed(spec: RunSpec, seed: int) -> bytes:
    """Pack all templates of some thousand events, with products of float32 for weights."""
    rng = np.random.default_rng(seed)
    made = Blocks.zeros(spec.shape)
    for template, bins in enumerate(spec.shape.bins):
        view = made.histogram(template)
        where = rng.normal(0.5, 0.25, 2000).clip(0, 1) * (bins + 1)
        at = rng.integers(spec.shape.regions, size=2000), where.astype(int)
        np.add.at(view.counts, at, 1)
        for sums, low, high in ((view.sumw, 2, 4), (view.sumw2, 1, 4)):
            np.add.at(sums.limbs[..., low:high], at, rng.integers(0, 2**LIMB_BITS, (2000, high - low)))
    return made.pack()


def planned(path: Path, spec: RunSpec, number: int) -> list[Partial]:
    """Create a ledger of so many tasks; returns their partials."""
    names = [sample.name for sample in spec.release.samples]
    each = -(-number // len(names))
    tasks = [
        Task(
            run_id="bench", spec=spec.digest, sample=name, file=f"/data/{name}.root", uuid=f"uuid-{name}", tree="mini",
            start=i * EVENTS, stop=(i + 1) * EVENTS,
        )
        for name in names
        for i in range(each)
    ][:number]  # fmt: skip
    files = [(name, tuple(task for task in tasks if task.sample == name)) for name in names]
    with Ledger.create(path, "bench", spec, "bench") as ledger:
        ledger.plan(PlannedFile(f"{name}.root", each * EVENTS, of) for name, of in files if of)
    bodies = [packed(spec, i) for i in range(KINDS)]
    cost = Cost(1.0, 1.0, 0.1, 1000, EVENTS)
    return [Partial(task, bodies[i % KINDS], cost, "worker-0") for i, task in enumerate(tasks)]


def rate(reducer: Reducer, partials: list[Partial], batch: int) -> tuple[float, float]:
    """Merge in batches; returns tasks per second of wall clock (median commit) and of CPU."""
    times = []
    cpu = time.process_time()
    for i in range(0, len(partials), batch):
        begun = time.perf_counter()
        reducer.merge(partials[i : i + batch])
        times.append(time.perf_counter() - begun)
    return batch / statistics.median(times), len(partials) / (time.process_time() - cpu)


def commits(folder: Path, spec: RunSpec, tasks: int) -> list[tuple[str, ...]]:
    """Time the first and the last commits of a run of many tasks, for each batch size."""
    lines = []
    for batch, number in COMMITS.items():
        timed = min(batch * number, tasks // 3)
        path = folder / f"commits-{batch}" / "ledger.db"
        partials = planned(path, spec, tasks)
        reducer = Reducer(path)
        first, first_by_cpu = rate(reducer, partials[:timed], batch)
        rate(reducer, partials[timed:-timed], 4 * BATCH)
        last, last_by_cpu = rate(reducer, partials[-timed:], batch)
        reducer.close()
        begun = time.perf_counter()
        Reducer(path).close()
        again = time.perf_counter() - begun
        shutil.rmtree(path.parent)
        rates = (f"{number:,.0f}" for number in (first, last, first_by_cpu, last_by_cpu))
        lines.append((f"{batch}", *rates, f"{again:.1f}"))
    return lines


async def offer(reducer: Any, partials: list[Partial], task_s: float) -> tuple[tuple[str, ...], float, bool]:
    """Let WORKERS deliver at random, one task each in task_s seconds on average; commit as the pool does."""
    rng = np.random.default_rng(1)
    due = np.cumsum(rng.exponential(task_s / WORKERS, len(partials)))
    due = due[due < STEP_S]
    latencies, batches = [], []
    begun, at = time.perf_counter(), 0
    while at < len(due):
        ready = int(np.searchsorted(due, time.perf_counter() - begun))
        if ready == at:
            await asyncio.sleep(max(0.0, due[at] - (time.perf_counter() - begun)))
            continue
        batch = slice(at, min(ready, at + BATCH))
        await reducer.merge.remote(partials[batch])
        latencies += (time.perf_counter() - begun - due[batch]).tolist()
        batches.append(batch.stop - batch.start)
        at = batch.stop
    done = at / (time.perf_counter() - begun)
    keeps_up = done > KEEPS_UP * len(due) / STEP_S
    median, high = np.quantile(latencies, [0.5, 0.99]) * 1000
    line = (
        f"{task_s:g}", f"{len(due) / STEP_S:,.0f}", f"{done:,.0f}", f"{statistics.mean(batches):.0f}", f"{median:.0f}",
        f"{high:.0f}",
    )  # fmt: skip
    return line, done, keeps_up


async def saturation(path: Path, partials: list[Partial], steps: Sequence[float]) -> tuple[list[tuple[str, ...]], str]:
    """Raise the load on the reducer's actor until it keeps up no more; returns rows, and what they come to."""
    reducer = start_reducer(Ledger.open(path))
    await reducer.merge.remote(partials[:1])
    lines = []
    used, most, bearable = 1, 0.0, math.inf
    for task_s in steps:
        room = partials[used : used + int(1.2 * STEP_S * WORKERS / task_s) + 100]
        line, done, keeps_up = await offer(reducer, room, task_s)
        used += len(room)
        lines.append(line)
        most = max(most, done)
        if not keeps_up:
            break
        bearable = task_s
    return lines, (
        f"The actor commits {most:,.0f} tasks a second at most. It keeps up with {WORKERS:,} workers whose tasks take "
        f"{bearable:g} s or longer."
    )


COMMIT_HEADER = (
    "partials in a commit", "first, tasks/s", "last, tasks/s", "first, tasks a CPU second", "last, tasks a CPU second",
    "starting again, s",
)  # fmt: skip
LOAD_HEADER = (
    "s a task of 1 000 workers", "offered, tasks/s", "committed, tasks/s", "partials in a commit",
    "median wait, ms", "99 % wait, ms",
)  # fmt: skip


def main() -> int:
    """Measure, print, and write the document's section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tasks", type=int, default=FULL_TASKS, help="tasks in a ledger, fewer of large partials (%(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="where ledgers are written: the disk that is measured")
    options = parser.parse_args()
    if options.tasks < 1000:
        parser.error("--tasks must be 1000 at least")
    console = Console()
    parts = []
    for of, spec in SPECS.items():
        size = statistics.mean(len(packed(spec, i)) for i in range(KINDS))
        about = f"Partials of {of}: {size:,.0f} bytes."
        console.print(about, highlight=False)
        steps = TASK_S if size <= SMALL_BYTES else TASK_S[:MOST_OF_LARGE]
        tasks = max(1000, int(options.tasks * min(1.0, SMALL_BYTES / size)))
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="hzzray-") as name:
            folder = Path(name)
            with console.status("commits"):
                first = commits(folder, spec, tasks)
            console.print(report.plain(f"Commits, from the first to the {tasks:,}th task", COMMIT_HEADER, first))
            path = folder / "actor" / "ledger.db"
            needed = int(1.3 * STEP_S * sum(WORKERS / task_s for task_s in steps)) + 100 * len(steps)
            with console.status("the reducer's actor"), cluster(1):
                load, verdict = asyncio.run(saturation(path, planned(path, spec, needed), steps))
        console.print(report.plain("The reducer's actor under 1,000 simulated workers", LOAD_HEADER, load))
        console.print(verdict, highlight=False)
        parts.append(
            f"**{about}** The ledger alone, in one process, up to {tasks:,} tasks "
            "(first and last commits, medians):\n\n"
            f"{report.grid(COMMIT_HEADER, first)}\n\n"
            "The actor under Ray; partials are made up, and come at random as from 1 000 workers. A wait is from a "
            f"partial's coming to its commit:\n\n{report.grid(LOAD_HEADER, load)}\n\n{verdict}"
        )
    if options.tasks < FULL_TASKS:
        console.print(f"{report.DOCUMENT.name} is left alone: not a full run")
        return 0
    report.record("engine", ["benchmarks/reducer.py", *sys.argv[1:]], ".", "\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
