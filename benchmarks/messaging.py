"""How fast tasks go through the broker: published, and on to their acknowledgement; what a real run pays for it.

Run by hand or by ``make bench-messaging``; needs RabbitMQ on this machine, of which it starts a node of its own. Writes
its section of docs/performance.md when it is a full run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import report
from machine import settle, warm
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from bridge.loader import publish
from bridge.provision import apply
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.ledger import Ledger
from hzzray.messages import Counts
from hzzray.runs.folder import load_json
from hzzray.runs.plan import make_plan
from hzzray.runs.request import make_spec
from tests.support.rabbit import Broker

FULL_TASKS = 100_000
FULL_EVENTS = 40_000_000
TOPOLOGY = Topology()

#: What is asked for on two cores: tasks/s from publisher to acknowledgement, published/s, and the price of a real run.
GOALS = "goals: 5 000 published/s, 800 tasks/s, a real run at most 1.05 times as long"


def counts(path: Path) -> Counts:
    """How far a run is."""
    if not path.exists():
        return Counts(0, 0, 0)
    with Ledger.open(path) as ledger:
        return ledger.tally()


def hzzray(env: dict[str, str], *words: object) -> subprocess.Popen[bytes]:
    """Start a command; what it prints is of no interest unless it fails."""
    return subprocess.Popen(
        [sys.executable, "-m", "hzzray", *map(str, words)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def through(folder: Path, broker: Broker, tasks: int, actors: int) -> tuple[float, float, list[tuple[float, int]]]:
    """Publish tiny tasks, then serve them; returns published/s, tasks/s, and the bridge's memory in MiB as tasks go."""
    source, runs = folder / "tiny", folder / "runs"
    write_toys(source, release("toy"), events=tasks, seed=1)
    where = BrokerSettings.from_url(broker.url, environ={"HZZRAY_BROKER_MANAGEMENT": broker.management_url})
    apply(where, TOPOLOGY)
    spec = make_spec(release("toy"), selection="notebook-2020")
    plan = make_plan(spec, "tiny", (str(source),), chunk=1)
    time.sleep(2)  # a quorum queue's first second is its election
    begun = time.perf_counter()
    asyncio.run(publish(where, TOPOLOGY, spec, "tiny", plan))
    published = len(plan.tasks) / (time.perf_counter() - begun)
    env = os.environ | {"HZZRAY_BROKER": broker.url}
    bridge = hzzray(env, "bridge", "--runs", runs, "--source", source, "--actors", actors, "--until-complete", "tiny")
    path, process = runs / "tiny" / "ledger.db", psutil.Process(bridge.pid)
    seen: list[tuple[float, int, float]] = []
    while bridge.poll() is None:
        merged = counts(path).merged
        if merged:
            seen.append((time.perf_counter(), merged, process.memory_info().rss / 2**20))
            if merged >= len(plan.tasks):
                break
        time.sleep(0.5)
    if bridge.wait(120):
        raise SystemExit(f"the bridge failed: {load_json(runs / 'tiny').status}")
    # From when the workers are warm to when few tasks are left.
    steady = [row for row in seen if 0.1 < row[1] / len(plan.tasks) < 0.95] or seen
    (first_at, first, _), (last_at, last, _) = steady[0], steady[-1]
    rate = (last - first) / max(last_at - first_at, 1e-9)
    return published, rate, [(memory, merged) for _, merged, memory in seen]


def compared(
    folder: Path, broker: Broker, toys: Path | None, events: int, actors: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Time a real run in memory and through the broker, in turns; returns wall-clock seconds of the whole commands."""
    source = toys or folder / "real"
    if toys is None:
        write_toys(source, release("toy"), events=events, seed=2)
    command = (
        "run",
        "--selection",
        "notebook-2020",
        "--source",
        source,
        "--runs",
        folder / "runs",
        "--actors",
        actors,
        "--chunk",
        events // 40,
    )
    took: dict[str, list[float]] = {"memory": [], broker.url: []}
    digests = set()
    env = dict(os.environ)
    for number in range(repeats + 1):  # the first of each is not counted: caches are cold
        for way, times in took.items():
            name = f"{'memory' if way == 'memory' else 'broker'}-{number}"
            settle()
            warm(source)
            begun = time.perf_counter()
            if hzzray(env, *command, "--run-id", name, "--broker", way).wait():
                raise SystemExit(f"a run failed ({name})")
            if number:
                times.append(time.perf_counter() - begun)
            digests.add(load_json(folder / "runs" / name).digest)
    if len(digests) != 1:
        raise SystemExit("the results differ")
    return took["memory"], took[broker.url]


def main() -> int:
    """Measure, print, and write the document's section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=FULL_TASKS, help="tiny tasks that are queued (%(default)s)")
    parser.add_argument("--events", type=int, default=FULL_EVENTS, help="events of the real run (%(default)s)")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--toys", type=Path, help="toy files of so many events that are there already")
    parser.add_argument("--folder", type=Path, help="where everything is written: some GB for a full run")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="hzzray-") as name:
        folder = Path(name)
        (folder / "rabbit").mkdir()
        broker = Broker(folder / "rabbit").start()
        try:
            with console.status("tiny tasks"):
                published, rate, memory = through(folder, broker, options.tasks, options.actors)
            with console.status("real runs"):
                plain, brokered = compared(
                    folder, broker, options.toys, options.events, options.actors, options.repeats
                )
        finally:
            broker.kill()
            broker.stop()
    ratio = statistics.median(brokered) / statistics.median(plain)
    sizes = [size for size, _ in memory]
    lines = [
        ("published and confirmed, tasks/s", f"{published:,.0f}"),
        ("published to acknowledged, tasks/s", f"{rate:,.0f}"),
        ("bridge's memory, MiB, first … last", f"{sizes[0]:.0f} … {sizes[-1]:.0f} (most {max(sizes):.0f})"),
        (f"run of {options.events:,} events in memory, s", f"{statistics.median(plain):.1f}"),
        ("the same through the broker, s", f"{statistics.median(brokered):.1f}"),
        ("ratio", f"{ratio:.3f}"),
    ]
    words = ["TOYS" if word == str(options.toys) else word for word in sys.argv[1:]]  # no path of this machine
    about = f"; {options.actors} actors, broker and bridge on the same cores. {GOALS.capitalize()}."
    report.conclude(
        "messaging",
        f"{options.tasks:,} tiny tasks; {GOALS}",
        lines,
        about,
        ["benchmarks/messaging.py", *words],
        whole=options.tasks >= FULL_TASKS and options.events >= FULL_EVENTS,
        intro=f"{options.tasks:,} tasks of one event each are queued before the bridge begins.\n\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
