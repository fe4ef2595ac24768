"""Made-up runs with known use of CPU."""

from __future__ import annotations

from pathlib import Path

from hzzray.engine.monitor import NODE, Scale, Usage, absent
from hzzray.runs.folder import save_json
from hzzray.runs.result import Result
from hzzray.runs.tables import Recorder
from tests.support.result import make_result

MIB = 2**20


def make_run(folder: Path, run_id: str, environment: str = "local", *, wall_s: float = 10.0, **changes) -> Result:
    """Write the result of a run of 2 million events, 15 s of CPU, 2 s of reading."""
    cost = {
        "wall_s": wall_s,
        "cpu_s": 15.0,
        "read_s": 2.0,
        "bytes_read": 10**8,
        "events": 2_000_000,
        "events_per_s": 2_000_000 / wall_s,
    }
    result = make_result(run_id=run_id, environment=environment, cost=cost, **changes)
    save_json(result, folder)
    return result


def record(folder: Path, environment: str, actors: int, seconds: int, *, share: float = 0.8) -> None:
    """Write rows once a second: actors that come one after the other, each busy for a share of the time."""
    with Recorder(folder, environment) as recorder:
        for time_s in range(1, seconds + 1):
            up = min(time_s, actors)
            usages = [_usage(i, (time_s - i) * share, (100 + i + time_s) * MIB) for i in range(up)]
            pending = [absent(f"worker-{i}", "pending") for i in range(up, actors)]
            node = Usage(f"{NODE}n", "n", 1, "up", "", 3.0 * time_s, 0.5 * time_s, 10_000 * MIB)
            recorder.add(time_s, [*usages, *pending, node])
            recorder.add_scale(time_s, Scale(up, actors - up, 1 + (time_s > 5), (seconds - time_s) * 20, 2 * up))


def _usage(i: int, cpu_s: float, rss: int) -> Usage:
    return Usage(f"worker-{i}", f"node-{i % 2}", 100 + i, "working", "llll", 0.9 * cpu_s, 0.1 * cpu_s, rss)
