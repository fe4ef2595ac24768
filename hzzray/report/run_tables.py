"""What commands print of a run: what it would read, its cutflow, its failures."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from hzzray.runs.cutflow import CutflowRow, cutflow
from hzzray.runs.preview import Preview
from hzzray.runs.result import Result

#: Failures that a summary names one by one; `hzzray failures` has the rest.
MOST_FAILURES = 10


def of_bytes(number: float) -> str:
    """Write a number of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def of_count(number: float) -> str:
    """Write three figures of a number, ready for a unit: ``4.95 k``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.3g} "


def about(seconds: float) -> str:
    """Write a span of time that is roughly known."""
    if seconds < 1e-3:
        return "under a millisecond"
    if seconds < 0.9995:
        return f"about {1e3 * seconds:.3g} ms"
    return f"about {seconds:.3g} s" if seconds < 999.5 else f"about {seconds:.0f} s"


def counted(number: int, what: str) -> str:
    """Write a number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def preview_table(found: Preview) -> Table:
    """Lay out what a run would read, one line a sample."""
    table = Table("sample", caption="bytes: compressed, of the branches that are read")
    for title in ("files", "not read", "events", "tasks", "bytes"):
        table.add_column(title, justify="right")
    for row in found.samples:
        unread = f"[yellow]{len(row.unread)}[/]" if row.unread else "0"
        table.add_row(
            escape(row.sample), f"{row.files}", unread, f"{row.events}", f"{row.tasks}", of_bytes(row.bytes)
        )  # fmt: skip
    table.add_section()
    table.add_row(
        "all", f"{found.files}", f"{len(found.unread)}", f"{found.events}", f"{found.tasks}", of_bytes(found.bytes)
    )
    return table


def cutflow_table(name: str, rows: Sequence[CutflowRow]) -> Table:
    """Lay out a sample's or a group's cutflow; efficiencies in per cent, with binomial errors."""
    table = Table(title=escape(name), title_justify="left")
    table.add_column("cut")
    for title in ("events", "of all\n[%]", "of before\n[%]", "yield", "yield, of\nall [%]"):
        table.add_column(title.replace("[", r"\["), justify="right")
    for row in rows:
        table.add_row(
            escape(row.cut), f"{row.n}", f"{row.absolute}", f"{row.relative}", f"{row.yield_:.2f}",
            f"{row.weighted_absolute}",
        )  # fmt: skip
    return table


def cutflow_summary(result: Result) -> Table:
    """Lay out raw events that are left after each cut, one column a group."""
    flows = cutflow(result, "group")
    table = Table("cut", title="events left after each cut", title_justify="left")
    for name in flows:
        table.add_column(escape(name), justify="right")
    for i, cut in enumerate(result.spec.rows):
        table.add_row(escape(cut), *(f"{rows[i].n}" for rows in flows.values()))
    return table


def failure_lines(result: Result) -> list[str]:
    """Name the tasks that failed, the first of them, and say how many more there are."""
    said = [f"failed: {row.sample}, entries {row.start} to {row.stop}: {row.reason}" for row in result.failures]
    if len(said) > MOST_FAILURES:
        more = len(said) - MOST_FAILURES
        said = [*said[:MOST_FAILURES], f"and {more} failed tasks more: hzzray failures {result.run_id}"]
    return said
