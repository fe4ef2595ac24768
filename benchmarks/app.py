"""What the app costs a run, and how old what it shows is: ``python benchmarks/app.py``, with viewers in a real browser.

A run of toy files that takes its time, watched by several viewers at once: from each task's commit to the moment when
the page counts it, and the CPU that the server and its viewers' browser use. Then runs as fast as they can
be, with nobody watching and with all viewers, in turns: what is left of their throughput. The browser is on the same
cores, which it rarely is in life; its CPU is given apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import report
from scaling import rate
from watching import Spent, ages_of, finish, serve_toys, start

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.app import App, Viewer, chromium

FULL_EVENTS = 5_000_000
GOALS = "goals: at most 5 % of the run's throughput, an update within 1.5 s at the median"

# Notes in the page when its count of merged tasks changes, and to what.
WATCH = """
window.seen = [];
window.setInterval(() => {
  for (const metric of document.querySelectorAll("[data-testid=stMetric]")) {
    const found = metric.innerText.match(/^Tasks[\\s\\S]*?(\\d+) \\/ (\\d+)/);
    const last = window.seen.length ? window.seen[window.seen.length - 1][1] : -1;
    if (found && Number(found[1]) !== last) window.seen.push([Date.now() / 1000, Number(found[1])]);
  }
}, 20);
"""


def watched(app: App, viewers: list[Viewer], toys: Path, pace: float, chromium_pid: int) -> tuple[list[float], dict]:
    """Watch a run that takes its time; returns the ages of what was shown, and shares of one core."""
    run = start(app, toys, "--chunk", 10_000, "--pace", pace)
    viewers[0].page.evaluate(WATCH)
    began = time.perf_counter()
    spent = Spent({"app": app.process.pid, "browser": chromium_pid})
    spent.start()
    finish(run)
    took = time.perf_counter() - began
    cpu = {name: seconds / took for name, seconds in spent.stop().items()}
    viewers[0].page.wait_for_timeout(3000)
    return ages_of(app, "watched", viewers[0].page.evaluate("window.seen")), cpu


def fast(app: App, toys: Path) -> float:
    """Do a run as fast as can be; returns its events/s."""
    finish(start(app, toys))
    return rate(app.runs / "watched" / "ledger.db")


def open_viewers(stack: ExitStack, browser, app: App, number: int) -> list[Viewer]:
    """Open the live page of the watched run several times."""
    viewers = []
    for _ in range(number):
        viewers.append(Viewer(browser, app).open("/?run=watched"))
        stack.callback(viewers[-1].close)
    return viewers


def main() -> int:
    """Measure, print, and write the document's section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=FULL_EVENTS, help="events of the run (%(default)s)")
    parser.add_argument("--viewers", type=int, default=3)
    parser.add_argument("--pace", type=float, default=60.0, help="seconds that the watched run takes (%(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="fast runs with and without viewers (%(default)s)")
    options = parser.parse_args()
    with chromium() as browser, serve_toys(options.events) as (app, toys):
        (main_pid,) = {child.pid for child in psutil.Process().children() if "node" in child.name()}
        rates: dict[int, list[float]] = {0: [], options.viewers: []}
        with ExitStack() as stack:
            viewers = open_viewers(stack, browser, app, options.viewers)
            found, cpu = watched(app, viewers, toys, options.pace, main_pid)
        for _ in range(options.repeat):
            for number, times in rates.items():
                with ExitStack() as stack:
                    open_viewers(stack, browser, app, number)
                    times.append(fast(app, toys))
    alone, seen = (statistics.median(times) for times in rates.values())
    cores = os.cpu_count() or 1
    slow = statistics.quantiles(found, n=20)[-1]
    lines = [
        ("from commit to screen, median, s", f"{statistics.median(found):.2f}"),
        ("from commit to screen, 95 %, s", f"{slow:.2f}"),
        ("CPU of the app, of one core", f"{cpu['app']:.1%}"),
        (f"CPU of the app, of the machine's {cores}", f"{cpu['app'] / cores:.1%}"),
        (f"CPU of the browser with {options.viewers} viewers, of one core", f"{cpu['browser']:.1%}"),
        ("a fast run, nobody watching, events/s", f"{alone:,.0f}"),
        (f"a fast run, {options.viewers} viewers and their browser on the same cores, events/s", f"{seen:,.0f}"),
        ("the same, of its throughput", f"{seen / alone:.1%}"),
    ]
    title = f"{options.events:,} events, {options.viewers} viewers; {GOALS}"
    about = f"; 2 actors, {options.viewers} viewers in Chromium on the same cores. {GOALS.capitalize()}."
    command = ["benchmarks/app.py", *sys.argv[1:]]
    report.conclude("app", title, lines, about, command, whole=options.events >= FULL_EVENTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
