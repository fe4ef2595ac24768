"""What a run says while it goes on and when it ends: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
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
from hzzray.physics.histogram import Axis
from hzzray.report.console_table import print_table
from hzzray.report.run_tables import cutflow_summary, failure_lines, of_count
from hzzray.report.say import say
from hzzray.runs.result import Result, Significance
from hzzray.statistics.scaling import names

_PLAIN_EVERY_S = 2.0

# How often what has not changed is said again [s]: workers that start and compile may take minutes.
_SAME_EVERY_S = 30.0

# Said while nothing has come of any task: first, and from then on.
_STARTING = "workers start; the first time kernels are compiled for this machine, which takes a minute or some"
_STILL = "no worker has done one yet, after"


class RunProgress:
    """Shows tasks done and events a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._first: int | None = None
        self._said = 0.0
        self._last: tuple[int, int] | None = None
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
        done = f"{of_count(events).strip()} events"
        if events > self._first:  # else nobody knows how fast it is
            done += f", {of_count((events - self._first) / max(time.monotonic() - self._begun, 1e-3))}/s"
        note = done + (f", [red]{failed} failed[/]" if failed else "")
        if self._bar:
            self._bar.update(self._row, completed=merged + failed, total=planned, note=note)
        else:
            self._say(planned, merged, failed, done)

    def _say(self, planned: int, merged: int, failed: int, done: str) -> None:
        """Say it in a line: now and then, in the end, and seldom where nothing has changed."""
        waited = time.monotonic() - self._said
        every = _SAME_EVERY_S if self._last == (merged, failed) else _PLAIN_EVERY_S
        if waited <= every and merged + failed < planned:
            return
        again, self._said, self._last = self._last is not None, time.monotonic(), (merged, failed)
        said = f"{merged} of {planned} tasks merged, {failed} failed, {done}"
        if not merged + failed and planned:
            passed = f"{time.monotonic() - self._begun:.0f} s"
            said = f"{planned} tasks: {_STILL} {passed}" if again else f"{planned} tasks: {_STARTING}"
        say(self._console, said)


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
                say(console, f"{done} of {total} tasks published" + (f"; {trouble}" if trouble else ""))

        yield show


def summary(result: Result, console: Console) -> None:
    """Print a run's numbers: yields of each group, in all and in the window, and what they signify.

    Events and yields are of all that pass; the plot has those on its axis.
    """
    window, edges = result.significance.window, result.edges
    unit = f" {result.observable.unit}".rstrip()
    axis = Axis(edges[0], edges[-1], len(edges) - 1)
    shown = {f"{edges[0]:g} to {edges[-1]:g}{unit}": slice(None)}
    if window is not None and result.is_first:
        shown[f"{window[0]:g} to {window[1]:g}{unit}"] = axis.window(*window)
    table = Table(
        title=escape(f"{result.spec.release.title}, {result.spec.selection.name}, run {result.run_id}"),
        caption="events and yield: on the axis and beyond, with flow; ranges: without flow",
    )
    table.add_column("group")
    for title in ("events", "yield", *shown):
        table.add_column(title, justify="right")
    for name, group in result.groups.items():
        ranges = [
            (group.yield_, group.yield_error**2),
            *((sum(group.sumw[bins]), sum(group.sumw2[bins])) for bins in shown.values()),
        ]
        is_data = group.role == "data"
        lacking = result.unread(name)
        if lacking is None:
            table.add_row(escape(name), *["–"] * (2 + len(shown)))
            continue
        cells = (f"{w:.0f}" if is_data else f"{w:.2f} ± {w2**0.5:.2f}" for w, w2 in ranges)
        if is_data and result.luminosity.data is not None and not result.luminosity.compared:
            name = f"{name} ({result.luminosity.data:.4g} fb⁻¹)"  # noqa: PLW2901
        if lacking:
            name = f"{name}, without {names(lacking)}"  # noqa: PLW2901
        table.add_row(escape(name), f"{group.n_out}", *cells)
    print_table(console, table, long={"group"})
    for line in (f"luminosity: {result.luminosity}", *_fraction(result), *_meaning(result)):
        say(console, line, is_prose=True)
    if result.cost.events:
        print_table(console, cutflow_summary(result))
    for warning in [*failure_lines(result), *result.warnings]:
        say(console, warning, "yellow", is_prose=True)
    cost = result.cost
    tasks = result.tasks
    say(
        console,
        f"{result.status}: {tasks.planned} tasks planned = {tasks.merged} merged + {tasks.failed} failed; "
        f"{of_count(cost.events).strip()} events in {cost.wall_s:.1f} s of wall clock and {cost.cpu_s:.1f} s of CPU; "
        f"digest {result.digest[:16]}",
        is_prose=True,
    )


def _fraction(result: Result) -> list[str]:
    """Say what part of each file was asked for, and what part of all events that came to."""
    if result.spec.fraction == 1:
        return []
    return [
        f"fraction: {100 * result.spec.fraction:.3g} % of each file; {100 * result.fraction:.3g} % of all events read"
    ]


#: Significances as people are told them, by their names in a result.
FIGURES = {
    "notebook": "notebook",
    "s_over_sqrt_b": "s/√b",
    "asimov": "Asimov",
    "asimov_sigma": "Asimov with σ_b",
    "asimov_notebook": "Asimov with the notebooks' σ_b = √0.3·b",
    "observed": "observed",
    "observed_sigma": "observed with σ_b",
}


_FORMS = {"asimov_sigma": "asimov", "asimov_notebook": "asimov", "observed_sigma": "observed"}


def _meaning(result: Result) -> list[str]:
    """Say the significances, and why those that are withheld are."""
    found = result.significance
    values = [(title, name, getattr(found, name)) for name, title in FIGURES.items()]
    said = ", ".join(f"{title} {'–' if value is None else f'{value:.2f}'}" for title, _, value in values)
    why: dict[str, list[str]] = {}
    for title, name, value in values:
        # Another form of one that is withheld is withheld with it.
        if value is None and (name not in _FORMS or getattr(found, _FORMS[name]) is not None):
            why.setdefault(found.withheld.get(name, "not defined"), []).append(title)
    if found.window is None:
        return [f"no significance: {reason}" for reason in why]
    absent = [f"no {', '.join(titles)}: {reason}" for reason, titles in why.items()]
    return [f"significance: {said}", *_sigma_b(found), *absent]


def _sigma_b(found: Significance) -> list[str]:
    """Say what the background's uncertainty is made of."""
    b, error, stated = found.n_background, found.n_background_error, found.n_background_stated
    if not b or found.sigma_b is None or error is None or stated is None:
        return []
    parts = f"simulation's statistics {error:.2f}, stated {stated:.2f}"
    return [f"background uncertainty: σ_b = {found.sigma_b:.2f}, {100 * found.sigma_b / abs(b):.0f} %: {parts}"]


def warnings(result: Result) -> list[str]:
    """List what a reader of the numbers must know: what is missing, failed, left out, or not as it should be."""
    failed = [f"failed: {row.sample}, entries {row.start} to {row.stop}: {row.reason}" for row in result.failures]
    return [*failed, *result.warnings]
