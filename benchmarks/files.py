"""Small files against one of the same content, and a remote file against its line: ``python benchmarks/files.py``.

Files are read by one worker, in this process; HTTP servers of 127.0.0.1 run in processes of their own, on the
same cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import report
from rich.console import Console

from hzzray import analyses
from hzzray.data import toy
from hzzray.data.catalogue import release
from hzzray.engine.worker import Worker
from hzzray.messages import Partial, RunSpec, Task
from hzzray.physics.histogram import Blocks
from hzzray.runs.plan import Plan, make_plan
from hzzray.runs.request import make_spec

SAMPLE = "ggH125_ZZ4lep"
EVENTS = 500
TOGETHER = 16
LATENCY_S = 0.02
RATE = 100e6
ROOT = Path(__file__).parents[1]


class Measured(NamedTuple):
    """What was done, in how long, with how much CPU of this process, by how many requests and bytes."""

    made: Any
    wall_s: float
    cpu_s: float
    requests: int = 0
    bytes: int = 0


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path, rate: float = 0.0) -> None:
        command = [sys.executable, "-m", "tests.support.http_server", str(folder), "--latency", str(LATENCY_S)]
        self._process = subprocess.Popen(
            [*command, "--rate", str(rate)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.url = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def counts(self) -> dict[str, float]:
        """Tell requests and bytes since the last time."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._line())
        return found

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def serving(folder: Path, rate: float = 0.0) -> Iterator[Server]:
    """Serve a folder for the length of the block."""
    server = Server(folder, rate)
    try:
        yield server
    finally:
        server.stop()


def measured(work: Callable[[], Any], server: Server | None = None) -> Measured:
    """Do something, and measure it."""
    if server is not None:
        server.counts()
    wall, used = time.perf_counter(), os.times()
    made = work()
    wall, now = time.perf_counter() - wall, os.times()
    counts = server.counts() if server is not None else {}
    cpu = now.user + now.system - used.user - used.system
    return Measured(made, wall, cpu, int(counts.get("requests", 0)), int(counts.get("bytes", 0)))


def write(folder: Path, files: int) -> None:
    """Write some small files and a large one of the same events."""
    known = release("2020")
    sample = known.sample(SAMPLE)
    blocks = list(toy.simulation(known, sample, toy.process_of(known, sample), files * EVENTS, 7))
    whole = toy.number(toy.rechunk(blocks, 100_000), known, sample)
    toy.write(folder / "big.root", "mini", whole, uuid.uuid4(), None)
    for i, chunk in enumerate(toy.number(toy.rechunk(blocks, EVENTS), known, sample)):
        toy.write(folder / f"small/{i:05}.root", "mini", [chunk], uuid.uuid4(), None)


def spec(path: str | tuple[str, ...]) -> RunSpec:
    """Make the spec of a run of these files."""
    known = release("2020")
    samples = tuple(one.model_copy(update={"path": path}) if one.name == SAMPLE else one for one in known.samples)
    return make_spec(known.model_copy(update={"samples": samples}), samples=(SAMPLE,), selection="notebook-2020")


def read(worker: Worker, tasks: tuple[Task, ...]) -> list[bytes]:
    """Let a worker read that is given tiny tasks by the call."""
    packed = []
    for i in range(0, len(tasks), TOGETHER):
        for made in worker.process_all(tasks[i : i + TOGETHER]):
            if not isinstance(made, Partial):
                raise made
            packed.append(made.packed)
    worker.close()
    return packed


def small_files(folder: Path, files: int, scratch: Path) -> tuple[list[tuple[str, ...]], bool]:
    """Plan and read small files and the large one, here and over HTTP; returns a table, and whether all agree."""
    events = files * EVENTS
    runs = spec("big.root"), spec(tuple(f"small/{i:05}.root" for i in range(files)))
    rows, digests = [], set()
    with serving(folder) as server:
        for where, source, asked in (("local", str(folder), None), ("HTTP, 20 ms", server.url, server)):
            cache = scratch / where
            planned = [measured(partial(make_plan, run, "r", [source], cache=cache), asked) for run in runs]
            plans: list[Plan] = [one.made for one in planned]
            workers = [Worker(run, (source,), cache=cache) for run in runs]
            read(workers[0], plans[0].tasks[:1])
            pairs = zip(workers, plans, strict=True)
            done = [measured(partial(read, worker, plan.tasks), asked) for worker, plan in pairs]
            shape = analyses.filler(runs[0], analyses.resolve(runs[0].analysis, ())).shape
            digests |= {Blocks.total(one.made, shape).pack() for one in done}
            big, small = done
            rows.append(
                (
                    where,
                    f"{planned[1].wall_s / files * 1e3:.1f}",
                    f"{planned[1].cpu_s / files * 1e3:.1f}",
                    f"{events / big.wall_s:,.0f}",
                    f"{events / small.wall_s:,.0f}",
                    f"{big.wall_s / small.wall_s:.2f}",
                    f"{big.cpu_s / small.cpu_s:.2f}",
                    f"{(planned[1].requests + small.requests) / files:.2f}" if asked else "",
                )
            )
    return rows, len(digests) == 1


def remote(folder: Path, scratch: Path) -> list[tuple[str, ...]]:
    """Read the large file through a line of 100 MB/s and 20 ms."""
    run = spec("big.root")
    rows = []
    with serving(folder, RATE) as server:
        plan = make_plan(run, "r", [server.url], cache=scratch / "remote")
        tasks = (plan.tasks[0].model_copy(update={"stop": plan.tasks[-1].stop}),)
        here = make_plan(run, "r", [str(folder)], cache=scratch / "remote")
        local = Worker(run, (str(folder),))
        needed = sum(local.process(task).cost.bytes_read for task in here.tasks)
        for _ in range(3):
            worker = Worker(run, (server.url,), cache=scratch / "remote")
            one = measured(partial(read, worker, tasks), server)
            rows.append(
                (
                    f"{one.bytes / one.wall_s / 1e6:.0f}",
                    f"{one.bytes / one.wall_s / RATE:.2f}",
                    f"{one.cpu_s:.2f}",
                    f"{one.bytes / needed:.3f}",
                    str(one.requests),
                )
            )
    return sorted(rows, reverse=True, key=lambda row: float(row[1]))


def main() -> None:
    """Measure what is asked for, and write its section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("files", "remote"))
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="files that such a run has written, or is to write and leave")
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    folder = options.folder or scratch / "files"
    try:
        if not (folder / "big.root").is_file():
            write(folder, options.files)
        load = f" Load {os.getloadavg()[0]:.1f}."
        if options.what == "files":
            rows, agree = small_files(folder, options.files, scratch)
            header = (
                "files", "planning, ms a file", "CPU, ms", "one large file, events/s", "small files, events/s",
                "ratio", "by CPU time", "requests a file",
            )  # fmt: skip
            if not agree:
                sys.exit("small files and the large one give different histograms")
            about = f".{load} {options.files:,} files of {EVENTS} events; one worker."
        else:
            rows = remote(folder, scratch)
            header = ("MB/s", "of the line", "CPU, s", "bytes, of those needed", "requests")
            about = f".{load} One worker, server on the same cores; line of 100 MB/s, 20 ms. Three passes."
        Console().print(report.plain(options.what, header, rows))
        report.record(options.what, ["benchmarks/files.py", options.what], about, report.grid(header, rows))
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
