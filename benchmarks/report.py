"""What the measurements say: agreement, ratios, tables."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shlex
import statistics
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: Relative difference that is allowed between two sums of float32 products.
TOTAL_TOLERANCE = 1e-5

#: Share of the weight that may stand in another bin: masses are rounded to float32 in some ways.
BINS_TOLERANCE = 1e-4

#: A pass that had the core for less of its time was disturbed.
UNDISTURBED = 0.95


@dataclass(frozen=True)
class Measurement:
    """One way's times, in seconds, and what it found; or the reason why there are none."""

    name: str
    title: str
    events: int = 0
    selected: int | None = None
    total: float | None = None
    bins: list[float] | None = None
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def best(self) -> float:
        """Million events a second of the fastest pass."""
        return self.events / min(self.wall_s) / 1e6

    @property
    def median(self) -> float:
        """Million events a second of the median pass."""
        return self.events / statistics.median(self.wall_s) / 1e6

    @property
    def by_cpu(self) -> float:
        """Million events a second of CPU time, at best: steadier where others use the machine."""
        return self.events / min(self.cpu_s) / 1e6

    @property
    def disturbed(self) -> bool:
        """Tell whether even the fastest pass had to share its core."""
        if not self.wall_s:
            return False
        wall, cpu = min(zip(self.wall_s, self.cpu_s, strict=True))
        return cpu / wall < UNDISTURBED


def disagreements(measurements: list[Measurement]) -> list[str]:
    """Compare each way's result with the first one's, a line for each difference."""
    found = [way for way in measurements if way.selected is not None]
    lines = []
    for way in found[1:]:
        first = found[0]
        if (way.events, way.selected) != (first.events, first.selected):
            lines.append(
                f"{way.name} selects {way.selected} of {way.events} events, "
                f"{first.name} {first.selected} of {first.events}"
            )
        elif not abs(way.total - first.total) <= TOTAL_TOLERANCE * abs(first.total):
            lines.append(f"{way.name} adds the weights up to {way.total!r}, {first.name} to {first.total!r}")
        elif not _moved(way.bins, first.bins) <= BINS_TOLERANCE:
            lines.append(f"{way.name} and {first.name} fill different histograms")
    return lines


def _moved(bins: list[float], others: list[float]) -> float:
    """Share of the weight that two histograms hold in different bins."""
    return sum(abs(a - b) for a, b in zip(bins, others, strict=True)) / sum(map(abs, others))


def agreement(measurements: list[Measurement]) -> str:
    """One sentence on what was compared."""
    found = [way for way in measurements if way.selected is not None]
    if len(found) < 2:
        return "Only one way has a result: nothing to compare." if found else "No way has a result."
    first = found[0]
    return (
        f"{len(found)} ways agree: {first.selected:,} of {first.events:,} events selected, the same number "
        f"by each; weights within {TOTAL_TOLERANCE:g}, histograms within {BINS_TOLERANCE:g}."
    )


def rows(measurements: list[Measurement], ours: str) -> list[tuple[str, ...]]:
    """Title, best and median rate, best rate by CPU time, how many times as fast hzzray is; formatted."""
    reference = _measured(measurements, ours)
    table = []
    for way in measurements:
        if way.reason:
            table.append((way.title, "—", "—", "—", "—"))
            continue
        ratio = f"{reference.best / way.best:.2f}" if reference else "—"
        table.append((way.title, f"{way.best:.2f}", f"{way.median:.2f}", f"{way.by_cpu:.2f}", ratio))
    return table


def _measured(measurements: list[Measurement], name: str) -> Measurement | None:
    return next((way for way in measurements if way.name == name and way.wall_s), None)


def remarks(measurements: list[Measurement]) -> list[str]:
    """Sentences to stand under the table: agreement, disturbances, what is missing."""
    lines = disagreements(measurements) or [agreement(measurements)]
    lines += [f"{way.title}: its core was shared, so its figures are too low" for way in measurements if way.disturbed]
    lines += [f"{way.title}: not measured ({way.reason})" for way in measurements if way.reason]
    return lines


DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"

HEADER = ("way", "best", "median", "best by CPU time", "hzzray is … times as fast")


def plain(title: str, header: tuple[str, ...], lines: list[tuple[str, ...]]) -> Table:
    """Make a table for the terminal: names on the left, numbers on the right."""
    table = Table(title=title)
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def terminal(measurements: list[Measurement], ours: str) -> Table:
    """Make the table for the terminal."""
    return plain("One core, million events a second", HEADER, rows(measurements, ours))


def machine() -> str:
    """Name the processor and its number of cores."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def versions(measurements: list[Measurement]) -> dict[str, str]:
    """Versions of all packages that took part."""
    return dict(sorted(chain.from_iterable(way.versions.items() for way in measurements)))


def markdown(measurements: list[Measurement], ours: str, facts: dict[str, Any]) -> str:
    """Write the section of the documentation that a run replaces."""
    table = grid(HEADER, rows(measurements, ours))
    packages = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"Measured on {facts['date']}: {facts['machine']}. {facts['events']:,} events, "
        f"{facts['megabytes']:.0f} MB, {facts['repeats']} passes each.\n"
        f"Command: `{facts['command']}`. {packages}.\n\n"
        f"{table}\n\n" + "\n".join(f"- {line}" for line in remarks(measurements)) + "\n"
    )


def grid(header: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Write a table in Markdown: names on the left, numbers on the right."""
    cells = [header, ("---", *["---:"] * (len(header) - 1)), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def record(name: str, command: list[str], about: str, body: str) -> None:
    """Replace a section of the document: when, where, ``about`` what and by which command was measured, then a body."""
    section = (
        f"Measured on {dt.datetime.now(tz=dt.UTC).date().isoformat()}: {machine()}{about}\n"
        f"Command: `{shlex.join(['python', *command])}`.\n\n"
        f"{body}\n"
    )
    rewrite(name, section)


def conclude(
    name: str, title: str, lines: list[tuple[str, ...]], about: str, command: list[str], *, whole: bool, intro: str = ""
) -> None:
    """Print what was measured, and replace a section of the document by it after a ``whole`` run."""
    header, console = ("what", "measured"), Console()
    console.print(plain(title, header, lines))
    if whole:
        record(name, command, about, intro + grid(header, lines))
    else:
        console.print(f"{DOCUMENT.name} is left alone: not a full run")


def rewrite(name: str, section: str) -> None:
    """Replace a section of the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(replace_section(text, section, name), encoding="utf-8")


def replace_section(document: str, section: str, name: str = "bench") -> str:
    """Put a section between its markers; raises ValueError where the document lacks them."""
    first, last = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, begin, rest = document.partition(first)
    _, end, tail = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"no {first} … {last} to write between")
    return f"{head}{begin}\n\n{section}\n{end}{tail}"
