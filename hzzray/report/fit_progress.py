"""What a fit shows while it goes on: moving bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hzzray.report.say import say
from hzzray.statistics.progress import Progress as Report

#: How often a plain line is printed [s]: most fits end before the first one.
EVERY_S = 10.0


@contextmanager
def fit_progress(console: Console) -> Iterator[Report]:
    """Show how far a fit's parts are, until the block ends; yields what is told of each."""
    with _bars(console) if console.is_terminal else _plain(console) as told:
        yield told


@contextmanager
def _bars(console: Console) -> Iterator[Report]:
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(TextColumn("[bold]{task.description}"), *columns, console=console) as bars:
        rows: dict[str, int] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in rows:
                rows[what] = bars.add_task(what, total=total)
            bars.update(rows[what], completed=done)  # type: ignore[arg-type]

        yield told


@contextmanager
def _plain(console: Console) -> Iterator[Report]:
    begun, over = time.monotonic(), Event()
    last = ("fit", 0, 1)

    def told(what: str, done: int, total: int) -> None:
        nonlocal last
        last = what, done, total

    def tell() -> None:  # by the clock: a part may take minutes between two steps
        while not over.wait(EVERY_S):
            what, done, total = last
            count = f" {done} of {total}" if total > 1 else ""
            say(console, f"{what}{count}, {time.monotonic() - begun:.0f} s")

    telling = Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield told
    finally:
        over.set()
        telling.join()
