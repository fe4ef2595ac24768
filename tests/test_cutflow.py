"""Cutflows with efficiencies, yields with and without flow, and what commands print of them."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from hzzray.messages import Counts
from hzzray.report.console import RunProgress, summary
from hzzray.report.run_tables import (
    MOST_FAILURES,
    about,
    counted,
    cutflow_table,
    failure_lines,
    of_bytes,
    of_count,
    preview_table,
)
from hzzray.runs.cutflow import Efficiency, cutflow, yields
from hzzray.runs.preview import Preview, SampleWork
from hzzray.runs.result import Result
from tests.support.result import make_result


def sample(group: str, flow, *, n_out: int, yield_: float, error: float, **about) -> dict[str, object]:
    bins = {"sumw": (yield_,), "sumw2": (error**2,), "underflow": 0.0, "overflow": 0.0}
    own = {"n_out": n_out, "yield": yield_, "yield_error": error, **bins}
    rows = [{"cut": cut, "n": n, "yield": y} for cut, n, y in flow]
    return {
        "group": group, "entries": flow[0][1], "planned": flow[0][1], "luminosity": 10.0, "channels": {},
        "invalid": {"lepton": 0, "weight": 0}, "cutflow": rows, **own, **about,
    }  # fmt: skip


SIGNAL = "Signal (mH = 125 GeV)"
FLOW_A = [("all", 1000, 10.0), ("two", 500, 6.0), ("three", 250, 3.0)]
FLOW_B = [("all", 100, 30.0), ("two", 10, 3.0), ("three", 0, 0.0)]


@pytest.fixture
def two() -> Result:
    """Two samples of one group: equal weights as far as their own squares tell in B, uneven ones in A."""
    made = make_result("toy")
    samples = {
        # Σw² of 250 events with weights that count as half as many: (3.0)² / (250 · Σw²) = 1/2.
        "A": sample(SIGNAL, FLOW_A, n_out=250, yield_=3.0, error=math.sqrt(9 / 125)),
        "B": sample(SIGNAL, FLOW_B, n_out=0, yield_=0.0, error=0.0),
    }
    return Result.model_validate({**made.model_dump(by_alias=True), "samples": samples})


@pytest.fixture(autouse=True)
def _three_rows(monkeypatch):
    monkeypatch.setattr("hzzray.messages.RunSpec.rows", property(lambda _: ("all", "two", "three")))


def test_efficiencies_are_binomial(two):
    rows = cutflow(two)["A"]
    assert [row.n for row in rows] == [1000, 500, 250]
    assert rows[0].absolute == Efficiency(1.0, 0.0)
    assert rows[2].absolute.value == 0.25
    assert rows[2].absolute.error == pytest.approx(math.sqrt(0.25 * 0.75 / 1000))
    assert rows[2].relative.value == 0.5
    assert rows[2].relative.error == pytest.approx(math.sqrt(0.5 * 0.5 / 500))


def test_weighted_ones_count_events_by_their_weights(two):
    rows = cutflow(two)["A"]
    assert rows[2].weighted_absolute.value == pytest.approx(0.3)
    assert rows[2].weighted_absolute.error == pytest.approx(math.sqrt(0.3 * 0.7 / 500)), "1000 events count as 500"
    assert rows[1].weighted_relative.value == pytest.approx(0.6)
    unweighted = cutflow(two)["B"][1].weighted_absolute
    assert unweighted.error == pytest.approx(math.sqrt(0.1 * 0.9 / 100)), "where none passes, weights are equal"
    assert cutflow(two)["B"][2].weighted_relative == Efficiency(0.0, 0.0)


def test_a_groups_samples_are_strata(two):
    rows = cutflow(two, "group")[SIGNAL]
    assert [row.n for row in rows] == [1100, 510, 250]
    assert rows[1].yield_ == pytest.approx(9.0)
    assert rows[1].weighted_absolute.value == pytest.approx(9 / 40)
    a, b = math.sqrt(0.6 * 0.4 / 500), math.sqrt(0.1 * 0.9 / 100)
    assert rows[1].weighted_absolute.error == pytest.approx(math.hypot(a * 10 / 40, b * 30 / 40))
    nothing = cutflow(two, "group")["Data"]
    assert (nothing[0].n, nothing[0].absolute, nothing[0].weighted_absolute) == (
        0,
        Efficiency(None, None),
        Efficiency(None, None),
    )


def test_a_sample_that_stands_for_nothing_is_in_no_group(two):
    samples = {name: one.model_dump(by_alias=True) for name, one in two.samples.items()}
    samples["B"]["luminosity"] = None
    alone = Result.model_validate({**two.model_dump(by_alias=True), "samples": samples})
    assert [row.n for row in cutflow(alone, "group")[SIGNAL]] == [1000, 500, 250]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (Efficiency(0.5, 0.0123), "50.0 ± 1.2"),
        (Efficiency(0.98765, 0.00063), "98.765 ± 0.063"),
        (Efficiency(1.0, 0.0), "100 ± 0"),
        (Efficiency(0.25, None), "25"),
        (Efficiency(None, None), "–"),
    ],
)
def test_an_efficiency_in_per_cent(share, text):
    assert str(share) == text


def test_yields_with_flow_and_without():
    result = make_result("toy")
    rows = {row.name: row for row in yields(result)}
    for name, group in result.groups.items():
        row = rows[name]
        assert (row.with_flow, row.events, row.role) == ((group.yield_, group.yield_error), group.n_out, group.role)
        assert row.on_axis == pytest.approx((sum(group.sumw), math.sqrt(sum(group.sumw2))))
    assert rows["Data"].in_window[0] == result.significance.n_data
    plain = rows["Data"].plain()
    assert plain.keys() >= {"name", "with_flow", "with_flow_error", "on_axis", "in_window", "in_window_error"}


def printed(*shown, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), emoji=False)
    for one in shown:
        console.print(one)
    return console.file.getvalue().splitlines()


def test_tables_fit_80_columns_and_lose_no_word(two):
    rows = tuple(SampleWork(f"sample_{i}", 10, 123456789, 247, 10**10 * (i + 1), ("gone",) * i) for i in range(2))
    found = Preview(rows, ("lep_pt",), 2e6, "")
    flow = cutflow(two)["A"]
    for table in (preview_table(found), cutflow_table("A [x]", flow)):
        lines = printed(table)
        assert max(map(len, lines)) <= 80
        assert "…" not in "\n".join(lines)
    lines = printed(cutflow_table("A [x]", flow))
    assert lines[0].strip() == "A [x]"
    assert any("500 │ 50.0 ± 1.6 │ 50.0 ± 1.6 │  6.00 │ 60.0 ± 2.2" in line for line in lines)
    text = "\n".join(printed(preview_table(found)))
    assert "123456789" in text
    assert "246913578" in text
    assert "30 GB" in text


def test_a_summary_has_the_cutflow_and_the_first_failures(two):
    failures = tuple(
        {"sample": "A", "file": f"f{i}.root", "start": i, "stop": i + 1, "reason": "damaged"} for i in range(25)
    )
    broken = Result.model_validate({**two.model_dump(by_alias=True), "failures": failures, "status": "partial"})
    lines = failure_lines(broken)
    assert len(lines) == MOST_FAILURES + 1
    assert lines[0] == "failed: A, entries 0 to 1: damaged"
    assert lines[-1] == f"and 15 failed tasks more: hzzray failures {two.run_id}"
    console = Console(width=80, file=io.StringIO(), emoji=False, force_terminal=True, color_system=None)
    summary(broken, console)
    text = console.file.getvalue()
    assert "events left after each cut" in text
    assert "250" in next(line for line in text.splitlines() if line.startswith("│ three"))
    assert lines[-1] in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_that_starts_for_long_says_so_once():
    """A stranger's first run said "0 of 12 tasks merged" ninety times while kernels were compiled."""
    console = Console(width=120, file=io.StringIO(), emoji=False)
    progress = RunProgress(console)
    for _ in range(50):
        progress(Counts(12, 0, 0))
    progress._said -= 3
    progress(Counts(12, 0, 0))
    (said,) = console.file.getvalue().splitlines()
    assert said.startswith("12 tasks: workers start")
    for merged in (5, 5, 12):
        progress(Counts(12, merged, 0, 100))
    lines = [line.partition(",")[0] for line in console.file.getvalue().splitlines()]
    assert lines[1:] == ["5 of 12 tasks merged", "12 of 12 tasks merged"]


def test_what_takes_long_says_how_long_and_no_rate_that_nobody_knows():
    console = Console(width=60, file=io.StringIO(), emoji=False)
    progress = RunProgress(console)
    progress(Counts(12, 0, 0))
    for _ in range(2):
        progress._said -= 31
        progress._begun -= 31
        progress(Counts(12, 0, 0))
    assert console.file.getvalue().splitlines()[1:] == [
        "12 tasks: no worker has done one yet, after 31 s",
        "12 tasks: no worker has done one yet, after 62 s",
    ]
    serial = RunProgress(console)  # the first that it hears of is the first task's end
    serial(Counts(12, 1, 0, 100))
    serial._begun -= 1000
    serial._said -= 3
    serial(Counts(12, 2, 0, 300))
    first, second = console.file.getvalue().splitlines()[3:]
    assert first == "1 of 12 tasks merged, 0 failed, 100 events"
    assert second == "2 of 12 tasks merged, 0 failed, 300 events, 0.2 /s"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (of_count(4953.2), "4.95 k"),
        (of_count(999.7), "1 k"),
        (of_count(12), "12 "),
        (of_bytes(999.7), "1 kB"),
        (about(4.13e-5), "under a millisecond"),
        (about(0.0413), "about 41.3 ms"),
        (about(3.21), "about 3.21 s"),
        (about(4953.2), "about 4953 s"),
        (counted(1, "task"), "1 task"),
        (counted(2, "task"), "2 tasks"),
    ],
)
def test_numbers_are_written_for_people(written, text):
    assert written == text
