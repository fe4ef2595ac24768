"""Tables that lose nothing: no cell ends in "…", and no id, path or number is broken over two lines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from hzzray.report.say import say

# Wider than any table [characters].
_ANY = 100_000

# What text that goes on in the next line takes at the least, if it is as long.
_READABLE = 24


def print_table(console: Console, table: Table, *, spare: Sequence[str] = (), long: Collection[str] = ()) -> None:
    """Print a table whole.

    Where that is no terminal, lines are as wide as it takes. On one that is too narrow, columns named in ``long``, and
    all titles, go on in the next line, between words; then it goes without rules; then columns named in ``spare`` are
    left out, the first of them first, and named below; then each row becomes lines of its own.
    """
    if not console.is_terminal:
        console.print(_Wide(table), crop=False)
        return
    for left_out in (spare[:number] for number in range(len(spare) + 1)):
        shown = _without(console, table, left_out)
        if _fits(console, shown, long) or _fits(console, _bare(shown), long):
            console.print(shown)
            if left_out:
                say(console, f"no room for {', '.join(left_out)}: --json tells", "dim")
            return
    for line in _lines(console, table):
        say(console, line)


@dataclass(frozen=True)
class _Wide:
    """A table that takes the room it likes."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = Measurement.get(console, options.update(width=_ANY), self.table).maximum
        yield from console.render(self.table, options.update(width=max(options.max_width, width)))


def _without(console: Console, table: Table, titles: Collection[str]) -> Table:
    """Leave columns out of a table."""
    if not titles:
        return table
    kept = [column for column in table.columns if _title(console, column) not in titles]
    shown = Table(title=table.title, caption=table.caption, title_justify=table.title_justify)
    for column in kept:
        shown.add_column(column.header, justify=column.justify)
    for row in zip(*(column.cells for column in kept), strict=True):
        shown.add_row(*row)
    return shown


def _bare(table: Table) -> Table:
    """Take the rules away, and the room that they need."""
    table.box, table.pad_edge = None, False
    for column in table.columns:
        column.width = None
    return table


def _fits(console: Console, table: Table, long: Collection[str]) -> bool:
    """Give columns the widths at which all fits on a line, the widest of them less first; False where none do."""
    wanted = Measurement.get(console, console.options.update(width=_ANY), table).maximum
    least, widths = [], []
    for column in table.columns:
        title = _title(console, column)
        header, *cells = (_text(console, one).plain for one in (column.header, *column.cells))
        kept = [word for text in cells for word in (text.split() if title in long else text.splitlines())]
        widths.append(max(map(cell_len, [line for text in (header, *cells) for line in text.splitlines()]), default=0))
        readable = min(_READABLE, widths[-1]) if title in long else 0
        least.append(max(readable, *map(cell_len, ["", *header.split(), *kept])))
    room = console.width - (wanted - sum(widths))
    if sum(least) > room:
        return False
    while sum(widths) > room:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width, column.overflow = width, "fold"
    return True


def _lines(console: Console, table: Table) -> Iterator[Text]:
    """Lay a table out below each other, for a terminal that is narrower than any of its rows."""
    if table.title is not None:
        yield _text(console, table.title)
    first, *others = table.columns
    titles = [_title(console, column) for column in others]
    for head, *cells in zip(*(column.cells for column in (first, *others)), strict=True):
        yield _text(console, head)
        for title, cell in zip(titles, cells, strict=True):
            if text := _text(console, cell):
                yield Text(f"  {title}: ").append(text)
    if table.caption is not None:
        yield _text(console, table.caption)


def _title(console: Console, column: Column) -> str:
    """Write a column's title on one line."""
    return " ".join(_text(console, column.header).plain.split())


def _text(console: Console, cell: object) -> Text:
    return cell if isinstance(cell, Text) else console.render_str(str(cell), highlight=False)
