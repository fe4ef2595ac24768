"""What a run says while it goes on and when it ends: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hzzray.messages import Counts
from hzzray.result import Result

_PLAIN_EVERY_S = 2.0

# Events of which not one has four electrons and muons: no accident.
_MANY = 10


class RunProgress:
    """Shows tasks done and events a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._first: int | None = None
        self._said = 0.0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]tasks"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._row = self._bar.add_task("tasks", total=None, note="")

    def start(self) -> None:
        """Begin to draw, and to count time from here."""
        self._begun = time.monotonic()
        if self._bar:
            self._bar.start()

    def stop(self) -> None:
        """End drawing."""
        if self._bar:
            self._bar.stop()

    def __call__(self, counts: Counts) -> None:
        """Show counts: tasks planned, merged and failed, events merged."""
        planned, merged, failed, events, _ = counts
        if self._first is None:
            self._first = events
        rate = (events - self._first) / max(time.monotonic() - self._begun, 1e-3)
        note = f"{_count(events)} events, {_count(rate)}/s" + (f", [red]{failed} failed[/]" if failed else "")
        if self._bar:
            self._bar.update(self._row, completed=merged + failed, total=planned, note=note)
        elif time.monotonic() - self._said > _PLAIN_EVERY_S or merged + failed == planned:
            self._said = time.monotonic()
            plain = f"{merged} of {planned} tasks merged, {failed} failed, {_count(events)} events, {_count(rate)}/s"
            self._console.print(plain, highlight=False)


@contextmanager
def run_progress(console: Console) -> Iterator[RunProgress]:
    """Show a run's progress until the block ends."""
    progress = RunProgress(console)
    try:
        yield progress
    finally:
        progress.stop()


@contextmanager
def published(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """Show how many of a run's tasks are published until the block ends, and why it doesn't go on if it doesn't."""
    with Progress(
        TextColumn("[bold]published"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[trouble]}"),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        row = bar.add_task("published", total=None, trouble="")

        def show(done: int, total: int, trouble: str) -> None:
            bar.update(row, completed=done, total=total, trouble=trouble)
            if not console.is_terminal:
                console.print(
                    f"{done} of {total} tasks published" + (f"; {trouble}" if trouble else ""), highlight=False
                )

        yield show


def _count(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.3g} "


def summary(result: Result, console: Console) -> None:
    """Print a run's numbers: yields of each group, in all and in the window, and what they signify."""
    low, high = result.significance.window
    table = Table(title=f"{result.spec.release.title}, {result.spec.selection.name}, run {result.run_id}")
    table.add_column("group")
    for title in ("events", "yield", f"in {low:g} to {high:g} GeV"):
        table.add_column(title, justify="right")
    edges = result.edges
    inside = [i for i in range(len(edges) - 1) if edges[i] >= low - 1e-9 and edges[i + 1] <= high + 1e-9]
    for name, group in result.groups.items():
        window = sum(group.sumw[i] for i in inside)
        error = sum(group.sumw2[i] for i in inside) ** 0.5
        is_data = group.role == "data"
        table.add_row(
            name,
            f"{group.n_out}",
            f"{group.yield_:.0f}" if is_data else f"{group.yield_:.2f} ± {group.yield_error:.2f}",
            f"{window:.0f}" if is_data else f"{window:.2f} ± {error:.2f}",
        )
    console.print(table)
    console.print(_meaning(result), highlight=False)
    for warning in warnings(result):
        console.print(f"[yellow]{warning}[/]", highlight=False)
    cost = result.cost
    tasks = result.tasks
    console.print(
        f"{result.status}: {tasks.planned} tasks planned = {tasks.merged} merged + {tasks.failed} failed; "
        f"{_count(cost.events)}events in {cost.wall_s:.1f} s of wall clock and {cost.cpu_s:.1f} s of CPU; "
        f"digest {result.digest[:16]}",
        highlight=False,
    )


def _meaning(result: Result) -> str:
    z = result.significance
    values = (
        ("notebook", z.notebook),
        ("s/√b", z.s_over_sqrt_b),
        ("Asimov", z.asimov),
        ("Asimov with σ_b = √0.3·b", z.asimov_sigma),
        ("observed", z.observed),
    )
    return "significance: " + ", ".join(f"{name} {'–' if value is None else f'{value:.2f}'}" for name, value in values)


def warnings(result: Result) -> list[str]:
    """List what a reader of the numbers must know: what is missing, failed or left out."""
    said = [f"failed: {row.sample}, entries {row.start} to {row.stop}: {row.reason}" for row in result.failures]
    for name, sample in result.samples.items():
        for where, n in sample.invalid.items():
            if n:
                said.append(f"{name}: {n} of {sample.entries} events left out: nan or inf in a {where}")
        for before, row in pairwise(sample.cutflow):
            if row.cut in ("four leptons", "flavour") and row.n == 0 and before.n >= _MANY:
                said.append(f"{name}: none of {before.n} events passes {row.cut!r}: is the release's schema right?")
        if sample.planned == 0 and name not in result.missing:
            said.append(f"{name}: its file has no entries")
    return said
