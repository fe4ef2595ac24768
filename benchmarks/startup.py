"""What a short run takes from the command on: to its first merged task, to its plot, to its end.

``python benchmarks/startup.py``: alone, and on a cluster that stays, each against a bare ``ray.init()``; with
``--app``, in Chromium, from *Start* on the app's Launch page.
"""

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
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.app import Viewer, chromium, serve_app
from tests.support.waiting import wait_for

BARE = "import ray, time; ray.init('local', num_cpus=2, logging_level='ERROR'); print(time.time())"
HZZRAY = (sys.executable, "-m", "hzzray")

#: As a user has it: an address, given or of a cluster that was started by hand, would be used.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


class Times(NamedTuple):
    """Seconds since the command."""

    merged: float
    plot: float
    end: float
    cpu: float


def bare_s() -> float:
    """Start Python and a local cluster; returns the seconds until ``ray.init()`` has returned."""
    begun = time.time()
    # Without a token, which a bare ray.init() would write to HOME.
    env = ENVIRONMENT | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([sys.executable, "-c", BARE], env=env, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) - begun


def run_s(toys: Path, runs: Path, number: int, env: dict[str, str]) -> Times:
    """Run on toys."""
    folder = runs / f"run{number}"
    options = ("--source", str(toys), "--runs", str(runs), "--run-id", folder.name, "--actors", "2")
    begun, before = time.time(), os.times()
    subprocess.run([*HZZRAY, "run", *options], env=env, check=True, stdout=subprocess.DEVNULL)
    end, after = time.time(), os.times()
    merged = first_merged(folder)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Times(merged - begun, (folder / "plot.png").stat().st_mtime - begun, end - begun, cpu)


def first_merged(folder: Path) -> float:
    """Tell when a run's first task was merged, in Unix seconds."""
    with closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        (merged,) = ledger.execute("SELECT MIN(merged) FROM partials").fetchone()
    return float(merged)


def app_s(toys: Path, place: Path, starts: int) -> list[float]:
    """Press Start so many times, after each run's end; returns how long each took to the first merged task [s]."""
    found = []
    with serve_app(place, HZZRAY_SOURCES=str(toys)) as app, chromium() as browser:
        for number in range(starts):
            viewer = Viewer(browser, app).open("/launch")
            viewer.page.get_by_label("Name of the run").fill(f"run{number}")
            viewer.page.get_by_text(f"--run-id run{number}").wait_for()
            begun = time.time()
            viewer.page.get_by_role("button", name="Start").click()
            folder = app.runs / f"run{number}"
            wait_for("its end", (folder / "plot.png").exists, 240)
            found.append(first_merged(folder) - begun)
            viewer.close()
    return found


def main() -> None:
    """Take turns, so that what else the machine does is the same to all, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="starts of each (%(default)s)")
    parser.add_argument("--events", type=int, default=20_000, help="simulated toy events (%(default)s)")
    parser.add_argument("--app", action="store_true", help="measure the app's Start alone")
    options = parser.parse_args()
    if options.app:
        # The cluster that the app keeps ends a little after it.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            toys = Path(folder) / "toys"
            toy = (*HZZRAY, "toy", str(toys), "--events", str(options.events))
            subprocess.run(toy, check=True, stdout=subprocess.DEVNULL)
            first, *others = app_s(toys, Path(folder) / "app", options.repeats + 1)
        print(f"from Start to the first merged task: {first:.1f} s the first time; then", *(f"{s:.1f}" for s in others))
        return
    alone = ENVIRONMENT | {"RAY_ADDRESS": "local"}
    bare: list[float] = []
    cold: list[Times] = []
    warm: list[Times] = []
    with tempfile.TemporaryDirectory() as folder:
        toys, runs = Path(folder) / "toys", Path(folder) / "runs"
        toy = (*HZZRAY, "toy", str(toys), "--events", str(options.events))
        subprocess.run(toy, check=True, stdout=subprocess.DEVNULL)
        run_s(toys, runs, 0, alone)  # compiled kernels and layouts are in their caches from now on
        try:
            for number in range(1, 2 * options.repeats, 2):
                subprocess.run([*HZZRAY, "cluster", "down"], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
                bare.append(bare_s())
                cold.append(run_s(toys, runs, number, alone))
                up = (*HZZRAY, "cluster", "up", "--slots", "2")
                subprocess.run(up, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
                warm.append(run_s(toys, runs, number + 1, ENVIRONMENT))
        finally:
            subprocess.run([*HZZRAY, "cluster", "down"], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    init = statistics.median(bare)
    print(f"median of {options.repeats} [s]              first merged     plot      end   driver's CPU")
    print(f"bare ray.init()                                           {init:6.1f}")
    for name, times in (("hzzray run", cold), ("hzzray run, cluster up", warm)):
        merged, plot, end, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:28s}      {merged:6.1f}   {plot:6.1f}   {end:6.1f}         {cpu:6.1f}")


if __name__ == "__main__":
    main()
