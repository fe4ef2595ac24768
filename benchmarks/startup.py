"""Time from ``hzzray run`` to its first commit, against a bare ``ray.init()``: ``python benchmarks/startup.py``."""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

BARE = "import ray, time; ray.init('local', num_cpus=2, logging_level='ERROR'); print(time.time())"
HZZRAY = "from hzzray.cli import main; main()"


def bare_s() -> float:
    """Start Python and a local cluster; returns the seconds until ``ray.init()`` has returned."""
    begun = time.time()
    done = subprocess.run([sys.executable, "-c", BARE], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) - begun


def run_s(toys: Path, runs: Path, number: int) -> float:
    """Run on toys; returns the seconds until the first task was merged."""
    options = [
        "--selection",
        "notebook-2020",
        "--source",
        str(toys),
        "--runs",
        str(runs),
        "--run-id",
        f"run{number}",
        "--actors",
        "2",
    ]
    begun = time.time()
    subprocess.run(
        [sys.executable, "-c", HZZRAY, "run", *options], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL
    )
    with closing(sqlite3.connect(runs / f"run{number}" / "ledger.db")) as ledger:
        (merged,) = ledger.execute("SELECT MIN(merged) FROM partials").fetchone()
    return float(merged) - begun


# Without a token, which a bare ray.init() would write to HOME.
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def main() -> None:
    """Take turns, so that what else the machine does is the same to both, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each (%(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        toys, runs = Path(folder) / "toys", Path(folder) / "runs"
        subprocess.run(
            [sys.executable, "-c", HZZRAY, "toy", str(toys), "--events", "20000"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        run_s(toys, runs, 0)  # compiled kernels and layouts are in their caches from now on
        pairs = [(bare_s(), run_s(toys, runs, 1 + i)) for i in range(options.repeats)]
    bare, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"bare ray.init():                      {bare:5.1f} s")
    print(f"hzzray run to the first merged task:  {ours:5.1f} s")
    print(f"ratio: {statistics.median(b / a for a, b in pairs):.2f} (median of {options.repeats} pairs)")


if __name__ == "__main__":
    main()
