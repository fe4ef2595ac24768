"""Tables lose nothing: on a terminal, however narrow, and in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from hzzray.report.console_table import print_table

ID = "20261126-121839-abc123"
REASON = "the file is not a ROOT file: it ends too early and nobody knows why"


def table() -> Table:
    made = Table("run", "release", "why", title="runs")
    made.add_column("yield\\[%]", justify="right")
    made.add_row(ID, "toy", REASON, "87.72 ± 0.12")
    made.add_row("short", "2020", "", "1 ± 0")
    return made


def printed(width: int, *, terminal: bool, **how) -> list[str]:
    out = io.StringIO()
    print_table(Console(file=out, width=width, force_terminal=terminal, color_system=None), table(), **how)
    return out.getvalue().splitlines()


def test_a_pipe_has_lines_as_wide_as_it_takes():
    lines = printed(40, terminal=False, spare=("release",), long={"why"})
    (row,) = [line for line in lines if ID in line]
    assert all(text in row for text in ("toy", REASON, "87.72 ± 0.12"))


def test_a_table_that_fits_stays_as_it_is():
    lines = printed(200, terminal=True)
    assert any("┏" in line for line in lines)
    assert any(ID in line and REASON in line for line in lines)


@pytest.mark.parametrize("width", range(20, 120, 7))
def test_nothing_is_cut_or_broken_on_any_terminal(width):
    lines = printed(width, terminal=True, spare=("release",), long={"why"})
    text = "\n".join(lines)
    assert "…" not in text
    assert ID in text
    assert "87.72 ± 0.12" in text
    assert all(word in text for word in REASON.split())
    words = re.findall(r"no room for (.*): --json", text)
    assert ("toy" in text) == (words == [])
    stacked = f"  why: {REASON}" in lines
    assert stacked or all(len(line) <= width for line in lines)


def test_columns_go_in_their_order_before_rows_are_stacked():
    how = {"terminal": True, "spare": ("release",), "long": {"why"}}
    assert not any("no room" in line for line in printed(80, **how))
    assert "no room for release: --json tells" in printed(70, **how)
    assert "  release: toy" in printed(60, **how)
