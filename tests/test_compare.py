"""Runs side by side: known numbers, what can't be compared, what isn't there, figures."""

from __future__ import annotations

import csv
import io
import logging

import numpy as np
import pytest
from rich.console import Console

from hzzray.engine.monitor import Scale, service
from hzzray.errors import UsageError
from hzzray.files import OutputError
from hzzray.report import timelines
from hzzray.runs import compare
from hzzray.runs.result import Tasks
from hzzray.runs.tables import CpuUse, Recorder, read_scale
from tests.support.result import make_result
from tests.support.usage import MIB, make_run, record


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """matplotlib tells of missing glyphs and failed layouts in its log."""
    yield
    assert [row.message for row in caplog.get_records("call") if row.levelno >= logging.WARNING] == []


@pytest.fixture
def folders(tmp_path):
    """Two runs of the same: on Compose with 2 actors, on KubeRay with 12; a third without its CSV files."""
    names = tmp_path / "first-run", tmp_path / "second-run", tmp_path / "third-run"
    make_run(names[0], "first-run", "compose", wall_s=10.0)
    record(names[0], "compose", actors=2, seconds=9)
    make_run(names[1], "second-run", "kuberay", wall_s=20.0)
    record(names[1], "kuberay", actors=12, seconds=19, share=0.5)
    make_run(names[2], "third-run")
    return names


def test_known_numbers(folders):
    row = compare.summarise(compare.load(folders)[0])
    assert (row.run_id, row.environment, row.release, row.selection) == (
        *("first-run", "compose", "2020", "notebook-2020"),
    )
    assert (row.status, row.events, row.wall_s, row.cpu_s) == ("complete", 2_000_000, 10.0, 15.0)
    assert (row.actors_max, row.nodes_max) == (2, 2)
    mean = (1 * 1 + 8 * 2) / 9  # one actor in the second after 1 s, two from 2 s to 10 s
    assert row.actors_mean == pytest.approx(mean)
    assert row.cpu_s_per_million_events == pytest.approx(7.5)
    assert row.events_per_s == pytest.approx(200_000)
    assert row.events_per_cpu_s == pytest.approx(2_000_000 / 15)
    assert row.read_share == pytest.approx(2 / (9 * mean))  # of the 9 s that the mean is of
    assert row.efficiency == pytest.approx(15 / (9 * mean))
    assert row.peak_rss_bytes == (100 + 1 + 9) * MIB  # of worker-1, not of the node


def test_what_a_run_does_not_tell_is_left_open(folders):
    run = compare.load(folders)[2]
    row = compare.summarise(run)
    unknown = {"actors_max", "actors_mean", "nodes_max", "read_share", "efficiency", "peak_rss_bytes"}
    assert {field for field in row.__dataclass_fields__ if getattr(row, field) is None} == unknown
    assert row.cpu_s_per_million_events == pytest.approx(7.5)
    assert compare.differences([run]) == [
        "third-run (local): nothing in cpu.csv and scale.csv: some columns and curves are missing"
    ]


def test_a_run_of_nothing_has_no_ratios(tmp_path):
    make_run(tmp_path, "empty")
    run = compare.load([tmp_path])[0]
    cost = run.result.cost.model_copy(update={"wall_s": 0.0, "cpu_s": 0.0, "events": 0})
    row = compare.summarise(compare.LoadedRun(run.result.model_copy(update={"cost": cost}), run.usage, run.scale))
    assert (row.cpu_s_per_million_events, row.events_per_s, row.events_per_cpu_s) == (None, None, None)


def test_one_sample_is_the_mean(tmp_path):
    make_run(tmp_path, "short", wall_s=1.0)
    with Recorder(tmp_path, "local") as recorder:
        recorder.add_scale(1.0, Scale(actors=3, pending=0, nodes=1, waiting=0, in_flight=0))
    row = compare.summarise(compare.load([tmp_path])[0])
    assert (row.actors_mean, row.read_share, row.efficiency) == (3, None, None)


def test_shares_of_a_run_that_was_too_short_to_sample_are_withheld(tmp_path):
    make_run(tmp_path, "short", wall_s=4.0)  # with 15 s of CPU, of which two samples saw one actor for a second
    with Recorder(tmp_path, "local") as recorder:
        for time_s, actors in ((2.9, 1), (3.9, 0)):
            recorder.add_scale(time_s, Scale(actors=actors, pending=0, nodes=1, waiting=0, in_flight=0))
    row = compare.summarise(compare.load([tmp_path])[0])
    assert row.actors_mean == pytest.approx(1 / 1.1)
    assert (row.read_share, row.efficiency) == (None, None)


def said(tmp_path, **changes):
    """What is said of two runs, the second of them changed."""
    make_run(tmp_path / "a", "a")
    make_run(tmp_path / "b", "b", **changes)
    for name in "ab":
        record(tmp_path / name, "local", 1, 2)
    return compare.differences(compare.load([tmp_path / "a", tmp_path / "b"]))


def test_the_same_is_comparable(tmp_path):
    assert said(tmp_path) == ["comparable: a (local) and b (local) computed the same, to the last bit"]


def test_other_specs_are_not_comparable(tmp_path):
    spec = make_result().spec.model_copy(update={"luminosity": 5.0, "fraction": 0.5})
    assert said(tmp_path, spec=spec) == [
        "not comparable: a (local) and b (local) computed different things: another luminosity and fraction"
    ]


def test_another_digest_is_not_comparable(tmp_path):
    (line,) = said(tmp_path, digest="1" * 64)
    assert line.startswith("not comparable: a (local) and b (local) have the same spec, but different results")


def test_a_partial_run_is_named(tmp_path):
    tasks = Tasks(planned=24, merged=23, failed=1)
    assert said(tmp_path, digest="1" * 64, status="partial", tasks=tasks) == [
        "comparable in part: a (local) and b (local) set out to compute the same; not complete: b (local)"
    ]


def test_other_versions_are_named(tmp_path):
    lines = said(tmp_path, versions={"hzzray": "0", "numba": "1"})
    assert lines[1:] == ["a (local) and b (local): other versions of numba"]


def test_each_run_is_compared_with_the_first(folders):
    lines = compare.differences(compare.load(folders))
    assert [line.split(":")[0] for line in lines] == ["comparable", "comparable", "third-run (local)"]
    assert "first-run (compose) and third-run (local)" in lines[1]


def test_table(folders):
    text = io.StringIO()
    Console(file=text, width=120).print(compare.table([compare.summarise(run) for run in compare.load(folders)]))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines() if "│" in line]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["environment"] == ["compose", "kuberay", "local"]
    assert cells["wall clock [s]"] == ["10", "20", "10"]
    assert cells["CPU [s] per million events"] == ["7.5", "7.5", "7.5"]
    assert cells["actors, most"] == ["2", "12", "–"]
    assert cells["efficiency"] == ["88.2 %", "9.3 %", "–"]
    assert cells["peak memory of an actor"] == ["110 MiB", "130 MiB", "–"]


def test_names_are_no_markup(tmp_path):
    make_run(tmp_path, "r", "[red]x[/red]")
    text = io.StringIO()
    Console(file=text, width=120).print(compare.table([compare.summarise(*compare.load([tmp_path]))]))
    assert "[red]x[/red]" in text.getvalue()


def test_csv(folders, tmp_path):
    summaries = [compare.summarise(run) for run in compare.load(folders)]
    path = compare.write_csv(summaries, tmp_path / "compare.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run_id"] for row in rows] == ["first-run", "second-run", "third-run"]
    assert [float(row["efficiency"]) for row in rows[:2]] == [row.efficiency for row in summaries[:2]]
    assert rows[2]["efficiency"] == ""
    assert list(rows[0]) == [name for name in summaries[0].__dataclass_fields__ if name != "services"]


@pytest.fixture
def served(tmp_path):
    """A run of 10 s in containers: two workers, of which one comes later, a bridge without limits, a loader before."""
    make_run(tmp_path / "served", "served", "compose", wall_s=10.0)
    with Recorder(tmp_path / "served", "compose") as recorder:
        for second in range(1, 11):
            worker = {"cpus": 1.0, "memory_limit": 1000 * MIB}
            usages = [
                service("worker", "a", user_s=0.5 * second, rss=(100 + second) * MIB, **worker),
                service("bridge", "b", user_s=0.1 * second, system_s=0.1 * second, rss=50 * MIB),
                service("loader", "l", user_s=6.0, system_s=1.0, rss=30 * MIB, state="ended", cpus=1.0),
            ]
            if second > 5:
                usages.append(service("worker", "c", user_s=0.2 * (second - 5), rss=10 * MIB, **worker))
            recorder.add(second, usages)
    return tmp_path / "served"


def test_each_service_is_added_up(served):
    """Issue 11, item 37: CPU and memory of each service, by name, with its limits."""
    loaded = compare.load([served])[0]
    uses = {use.name: use for use in compare.services(loaded)}
    assert list(uses) == ["bridge", "loader", "worker"]
    worker = uses["worker"]
    assert worker.cpu_s == pytest.approx(5.0 + 1.0)
    assert (worker.containers, worker.cpus, worker.memory_limit_bytes) == (2, 2.0, 2000 * MIB)
    assert worker.peak_memory_bytes == (110 + 10) * MIB
    bridge = uses["bridge"]
    assert bridge.cpu_s == pytest.approx(2.0)
    assert (bridge.containers, bridge.cpus, bridge.memory_limit_bytes) == (1, 0.0, 0)
    assert uses["loader"].cpu_s == pytest.approx(7.0)
    assert compare.peak_rss_bytes(loaded) is None  # that is of actors


def test_services_are_in_the_table_and_the_csv(served, folders, tmp_path):
    """Issue 11, item 37."""
    summaries = [compare.summarise(run) for run in compare.load([served, folders[0]])]
    cells = {title: values for title, *values in compare.lines(summaries)}
    assert cells["worker: CPU [s]"] == ["6", "–"]
    assert cells["worker: CPU, mean"] == ["30.0 % of 2 CPU", "–"]
    assert cells["worker: memory, most"] == ["120 MiB, of 2000 MiB", "–"]
    assert cells["bridge: CPU, mean"] == ["20.0 % of a CPU, no limit", "–"]
    with compare.write_csv(summaries, tmp_path / "c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["worker_cpu_s"]) == pytest.approx(6.0)
    assert (rows[0]["worker_containers"], rows[0]["worker_cpus"]) == ("2", "2.0")
    assert rows[1]["worker_cpu_s"] == ""


def test_services_are_no_actors_in_figures(served):
    """Issue 11, item 37: a container's CPU has its actors' in it, and isn't stacked on them."""
    assert texts(timelines.comparison_figure(compare.load([served]))).count("no CPU recorded") == 1


def test_no_such_run(folders, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: no such run"):
        compare.load([folders[0], tmp_path / "nowhere"])


def test_a_file_that_is_something_else(folders):
    (folders[0] / "cpu.csv").write_text("a,b\n")
    with pytest.raises(OutputError, match=r"first-run/cpu\.csv: its columns"):
        compare.load(folders)


def texts(fig):
    found = [text.get_text() for axes in fig.axes for text in axes.texts]
    for axes in fig.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()]
        if legend := axes.get_legend():
            found += [text.get_text() for text in legend.get_texts()]
    return found


def test_comparison_figure(folders):
    fig = timelines.comparison_figure(compare.load(folders))
    shown = texts(fig)
    expected = {"first-run (compose)", "second-run (kuberay)", "third-run (local)", "worker-0", "worker-1", "12 actors"}
    expected |= {"actors, first-run", "nodes, second-run", "CPU [% of one core]", "Time since the run's start [s]"}
    assert expected <= set(shown)
    assert shown.count("no CPU recorded") == 1
    assert "node:n" not in shown
    assert {axes.get_xlim() for axes in fig.axes} == {(0.0, 20.0)}
    assert len({axes.get_ylim() for axes in fig.axes[:3]}) == 1
    # Two actors, each 80 % of a core: the upper one stands on the lower.
    lower, upper = fig.axes[0].patches
    assert lower.get_data().values[-1] == pytest.approx(80)
    assert upper.get_data().values[-1] == pytest.approx(160)
    assert upper.get_data().baseline[-1] == pytest.approx(80)
    assert lower.get_facecolor() != upper.get_facecolor()
    assert fig.axes[1].patches[0].get_data().values[-1] == pytest.approx(12 * 50)


def test_scale_figure(folders):
    run = compare.load(folders)[1]
    fig = timelines.scale_figure(run)
    assert fig.get_suptitle() == "second-run (kuberay)"
    lines = {line.get_label(): line for axes in fig.axes for line in axes.lines}
    assert set(lines) == {"actors", "pending actors", "nodes", "waiting", "in flight"}
    rows = read_scale(folders[1])
    for label, field in (("actors", "actors"), ("pending actors", "pending"), ("in flight", "in_flight")):
        times, values = lines[label].get_data()
        assert times.tolist() == [*rows["time_s"], 20.0]
        assert values.tolist() == [*rows[field], rows[field][-1]]
    assert texts(timelines.scale_figure(compare.load(folders)[2])).count("nothing recorded") == 2


def test_stacked_steps_keep_their_area():
    uses = [
        CpuUse(np.array([0.0, 1.0, 3.0]), np.array([50.0, 100.0])),
        CpuUse(np.array([2.0, 2.5, 4.0]), np.array([10.0, 20.0])),
    ]
    edges, heights = timelines.stacked(uses)
    assert edges.tolist() == [0, 1, 2, 2.5, 3, 4]
    assert heights.tolist() == [[50, 100, 100, 100, 0], [0, 0, 10, 20, 20]]


def test_pictures_are_written_and_the_same_each_time(folders, tmp_path):
    runs = compare.load(folders)
    paths = (*timelines.save_comparison(runs, tmp_path), *timelines.save_scale(runs[0], tmp_path))
    assert [path.name for path in paths] == ["compare.png", "compare.pdf", "scale.png", "scale.pdf"]
    first = [path.read_bytes() for path in paths]
    assert first[0].startswith(b"\x89PNG")
    assert first[1].startswith(b"%PDF")
    timelines.save_comparison(runs, tmp_path)
    timelines.save_scale(runs[0], tmp_path)
    assert [path.read_bytes() for path in paths] == first


def test_the_style_is_not_the_callers(folders):
    import matplotlib as mpl

    run = compare.load(folders)[0]

    def picture():
        buffer = io.BytesIO()
        timelines.scale_figure(run).savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()

    before = picture()
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "lines.linewidth": 9, "axes.facecolor": "red"}):
        assert picture() == before
