"""Runs that are watched: started in an app's folder, what processes spend meanwhile, how old what is shown is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from tests.support.app import App, serve_app


class Spent(threading.Thread):
    """Adds up the CPU seconds of processes and all that they start, by name, until it is stopped."""

    def __init__(self, roots: dict[str, int]) -> None:
        super().__init__(daemon=True)
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self._last: dict[str, dict[int, float]] = {name: {} for name in roots}
        self._first: dict[str, dict[int, float]] = {name: {} for name in roots}
        self._over = threading.Event()

    def run(self) -> None:
        """Look several times a second, so that little of what ends in between is missed."""
        while not self._over.wait(0.25):
            for name, root in self._roots.items():
                try:
                    family = [root, *root.children(recursive=True)]
                except psutil.NoSuchProcess:
                    continue
                for process in family:
                    try:
                        times = process.cpu_times()
                    except psutil.NoSuchProcess:
                        continue
                    self._first[name].setdefault(process.pid, times.user + times.system)
                    self._last[name][process.pid] = times.user + times.system

    def stop(self) -> dict[str, float]:
        """End; returns the CPU seconds by name."""
        self._over.set()
        self.join()
        return {
            name: sum(last - self._first[name][pid] for pid, last in processes.items())
            for name, processes in self._last.items()
        }


def environment_of(app: App) -> dict[str, str]:
    """Make the environment of commands that share the app's cache."""
    return os.environ | {"HZZRAY_CACHE": str(app.folder / "cache")}


@contextmanager
def serve_toys(events: int) -> Iterator[tuple[App, Path]]:
    """Serve the app, in a folder of its own, and toys of so many events; whose caches are filled."""
    with tempfile.TemporaryDirectory(prefix="hzzray-", ignore_cleanup_errors=True) as name:
        toys = Path(name) / "toys"
        write_toys(toys, release("toy"), events=events)
        with serve_app(Path(name) / "app", HZZRAY_SOURCES=str(toys)) as app:
            finish(start(app, toys))
            yield app, toys


def start(app: App, toys: Path, *options: object, name: str = "watched", actors: int = 2) -> subprocess.Popen[bytes]:
    """Start a run, in the place of an earlier one of its name."""
    shutil.rmtree(app.runs / name, ignore_errors=True)
    places = ("--source", toys, "--runs", app.runs, "--run-id", name)
    command = ("run", "--selection", "notebook-2020", *places, "--actors", actors, *options)
    return subprocess.Popen(
        [sys.executable, "-m", "hzzray", *map(str, command)],
        env=environment_of(app),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def finish(run: subprocess.Popen[bytes]) -> None:
    """Wait for a run's end."""
    if run.wait(600):
        raise SystemExit(f"the run failed (exit code {run.returncode})")


def ages_of(app: App, name: str, seen: list[list[float]]) -> list[float]:
    """Seconds from each commit of a run to the page that counts it, of those since it first counted some."""
    with closing(sqlite3.connect(app.runs / name / "ledger.db")) as ledger:
        merged = [row[0] for row in ledger.execute("SELECT merged FROM partials ORDER BY merged")]
    found = []
    shown = int(seen[0][1]) if seen else 0
    for at, count in seen[1:]:
        found += [at - when for when in merged[shown : int(count)]]
        shown = max(shown, int(count))
    return found
