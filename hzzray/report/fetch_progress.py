"""What a download shows while it goes on: moving bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hzzray.data.fetch import FetchStep
from hzzray.data.fetch import Progress as Report
from hzzray.report.say import say


@contextmanager
def bar(files: int, console: Console | None = None) -> Iterator[Report]:
    """Show the transfers of so many files; yields what ``fetch`` calls as its ``progress``.

    A terminal shows a bar for each file under way (name, bytes, rate, time left) and one for all of them.
    Each finished file leaves one line; elsewhere those lines are all.
    """
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[size]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Transfers(bars, files)


class _Transfers:
    def __init__(self, bars: Progress, files: int) -> None:
        self._bars = bars
        self._files = files
        self._ended = 0
        self._bytes = 0  # came over the wire, of all files
        self._began = time.monotonic()
        self._moving: dict[str, tuple[TaskID, FetchStep]] = {}
        self._all = bars.add_task(f"0 of {files} files", total=files, size="", rate="")

    def __call__(self, step: FetchStep) -> None:
        if step.outcome is not None:
            self._end(step)
        else:
            self._move(step)
        self._files = max(self._files, self._ended + len(self._moving))  # a pattern is more than one, as it turns out
        shares = (last.done / last.total for _, last in self._moving.values() if last.total)
        self._bars.update(
            self._all,
            description=f"{self._ended} of {self._files} files",
            total=self._files,
            completed=self._ended + sum(shares),
            size=decimal(self._bytes),
            rate=f"{decimal(round(self._bytes / max(time.monotonic() - self._began, 1e-3)))}/s",
        )

    def _move(self, step: FetchStep) -> None:
        if step.name in self._moving:
            task, last = self._moving[step.name]
            self._bytes += max(0, step.done - last.done)
        else:
            task = self._bars.add_task(step.name, total=step.total, size="", rate="")
        self._moving[step.name] = task, step
        whole = "" if step.total is None else f"/{decimal(step.total)}"
        speed = next(row.speed for row in self._bars.tasks if row.id == task)
        self._bars.update(
            task,
            completed=step.done,
            total=step.total,
            size=decimal(step.done) + whole,
            rate=f"{decimal(round(speed))}/s" if speed else "",
        )

    def _end(self, step: FetchStep) -> None:
        self._ended += 1
        if step.name in self._moving:
            self._bars.remove_task(self._moving.pop(step.name)[0])
        size = "" if step.outcome == "failed" else f"  {decimal(step.done)}"
        say(self._bars.console, f"{step.outcome:8}{step.name}{size}")
