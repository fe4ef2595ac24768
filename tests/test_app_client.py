"""What pages know of runs: each state of a folder, read once, and what charts and tables make of it."""

from __future__ import annotations

import json
import math
import os
import re
import time

import numpy as np
import pytest

from app import charts, formatting
from app.actor_rows import actors, all_used_s
from app.client import SILENCE_S, Client
from app.launcher import Choices, Launcher, lacking, places, toy_folder
from app.settings import read_settings
from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.monitor import Usage, absent
from hzzray.errors import UsageError
from hzzray.report.stack import contents
from hzzray.runs.folder import save_json
from hzzray.runs.request import make_spec
from hzzray.runs.result import SampleResult, moment
from hzzray.runs.tables import HISTORY, Recorder, cpu_percent, follow, read_usage
from hzzray.statistics.significance import poisson_interval
from tests.support.result import make_result, with_groups
from tests.support.usage import MIB, make_run, record


def ended_long_ago(folder):
    past = time.time() - 2 * SILENCE_S
    for path in folder.iterdir():
        os.utime(path, (past, past))


def ledger(folder, run_id="run", wish="run"):
    Ledger.create(folder / "ledger.db", run_id, make_spec(release("toy")), "local").close()
    with Ledger.open(folder / "ledger.db") as made:
        made.wish(wish)


@pytest.mark.parametrize(
    ("wish", "live", "ended"),
    [
        ("run", "running", "interrupted"),
        ("pause", "paused", "interrupted"),
        ("drain", "draining", "stopped"),
        ("cancel", "draining", "stopped"),
    ],
)
def test_a_run_that_is_not_finished(tmp_path, wish, live, ended):
    make_run(tmp_path / "run", "run", status="running")
    ledger(tmp_path / "run", wish=wish)
    assert Client(tmp_path).view("run").phase == live
    assert Client(tmp_path).view("run").live
    ended_long_ago(tmp_path / "run")
    assert Client(tmp_path).view("run").phase == ended
    assert not Client(tmp_path).view("run").live


@pytest.mark.parametrize("status", ["complete", "partial"])
def test_a_finished_run_stays_finished(tmp_path, status):
    make_run(tmp_path / "run", "run", status=status)
    assert Client(tmp_path).view("run").phase == status
    ended_long_ago(tmp_path / "run")
    assert Client(tmp_path).view("run").phase == status


def test_a_run_without_a_result(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.log").write_text("x" * 9000 + "\nhzzray: no such folder")
    view = Client(tmp_path, lambda _: time.time() - 1).view("run")
    assert (view.phase, view.result) == ("starting", None)
    view = Client(tmp_path).view("run")
    assert view.phase == "failed"
    assert view.log.endswith("no such folder")
    assert len(view.log) <= 4096
    ledger(tmp_path / "run")
    assert Client(tmp_path).view("run").phase == "starting"  # planned from a terminal
    ended_long_ago(tmp_path / "run")
    assert Client(tmp_path).view("run").phase == "interrupted"


def test_a_replay_starts_before_its_first_result(tmp_path):
    make_run(tmp_path / "run", "run", status="partial")
    assert Client(tmp_path, lambda _: time.time() + 1).view("run").phase == "starting"
    assert Client(tmp_path, lambda _: time.time() - 60).view("run").phase == "partial"


def test_viewers_share_what_was_read(tmp_path, monkeypatch):
    make_run(tmp_path / "run", "run")
    client, read = Client(tmp_path), []
    monkeypatch.setattr("app.client.load_json", lambda folder: read.append(folder) or make_result())
    monkeypatch.setattr("app.client._FRESH_S", 0.0)
    first = client.view("run")
    assert client.view("run") is first
    made = [first.once("x", object) for _ in range(2)]
    assert made[0] is made[1]
    save_json(make_result(run_id="run", seed=4), tmp_path / "run")
    assert client.view("run") is not first
    assert len(read) == 2


def test_tables_are_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr("app.client._FRESH_S", 0.0)
    make_run(tmp_path / "run", "run", status="running")
    client = Client(tmp_path)
    assert len(client.view("run").usage) == 0
    record(tmp_path / "run", "local", 2, 5)
    view = client.view("run")
    assert (len(view.usage), len(view.scale), len(view.history)) == (len(read_usage(tmp_path / "run")), 5, 0)
    (tmp_path / "run" / "cpu.csv").write_text("something else\n")
    assert len(client.view("run").usage) == 0  # no reason to show nothing of the run


def test_the_list_of_runs(tmp_path):
    make_run(tmp_path / "old", "old", "compose")
    ended_long_ago(tmp_path / "old")
    make_run(tmp_path / "new", "new", "kuberay", status="running")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("{}")
    (tmp_path / ".part").mkdir()
    (tmp_path / "empty").mkdir()
    client = Client(tmp_path)
    rows, wrong = client.rows()
    assert [(row.run_id, row.phase, row.environment) for row in rows] == [
        ("bad", "unreadable", None),
        ("new", "running", "kuberay"),
        ("old", "complete", "compose"),
    ]
    assert [str(tmp_path / "bad") in line for line in wrong] == [True]
    assert client.rows()[0] == rows
    with pytest.raises(UsageError, match="no run 'empty'"):  # nor is it one that could not begin
        client.view("empty")
    assert Client(tmp_path / "none").rows() == ([], [])


@pytest.mark.parametrize("name", ["..", "../run", "run/../run", "", ".", "run\0", "none"])
def test_only_names_of_runs_lead_to_a_folder(tmp_path, name):
    make_run(tmp_path / "runs" / "run", "run")
    with pytest.raises(UsageError, match="no run"):
        Client(tmp_path / "runs").view(name)


def test_a_result_that_can_not_be_read(tmp_path):
    make_run(tmp_path / "run", "run")
    """Issue 11, item 13: it costs its own part of the page; what the other files tell is still shown."""
    (tmp_path / "run" / "result.json").write_text(json.dumps({"run_id": 3}))
    record(tmp_path / "run", "local", 2, 5)
    view = Client(tmp_path).view("run")
    assert (view.phase, view.result, len(view.scale)) == ("unreadable", None, 5)
    assert "result.json" in view.wrong


# What is drawn.


def rows_of(chart, kind):
    return chart.rows[chart.rows["kind"] == kind]


@pytest.mark.parametrize("channel", [None, "4mu"])
def test_the_plot_shows_the_contents(channel):
    result = make_result()
    shown, chart = contents(result, channel), charts.mass(result, channel=channel)
    stack = rows_of(chart, "stack")
    for layer in shown.simulation:
        drawn = stack[stack["group"] == layer.name]
        assert (drawn["y1"] - drawn["y0"]).to_numpy() == pytest.approx(layer.sumw)
    assert stack.groupby("lo")["y1"].max().to_numpy() == pytest.approx(shown.total)
    band = rows_of(chart, "band")
    assert ((band["y1"] - band["y0"]) / 2).to_numpy() == pytest.approx(shown.error)
    points, seen = rows_of(chart, "data"), shown.data > 0
    assert points["y"].to_numpy() == pytest.approx(shown.data[seen])
    assert points["y1"].to_numpy() == pytest.approx(poisson_interval(shown.data)[1][seen])
    words_of = rows_of(chart, "bin").iloc[8]
    assert words_of["w0"] == "120–125 GeV"
    assert words_of["w1"].startswith(f"{shown.simulation[0].sumw[8]:.3g} ± ")


def test_hidden_groups_are_left_out_of_the_sum():
    result = make_result()
    chart = charts.mass(result, hidden=("Background ZZ*", charts.DATA))
    assert set(rows_of(chart, "stack")["group"]) == {"Background Z,ttbar", "Signal (mH = 125 GeV)"}
    assert len(rows_of(chart, "data")) == len(rows_of(chart, "ratio")) == 0
    shown = [layer.sumw for layer in contents(result).simulation if layer.name != "Background ZZ*"]
    assert rows_of(chart, "stack").groupby("lo")["y1"].max().to_numpy() == pytest.approx(sum(shown))


def test_new_numbers_leave_the_specification_as_it_is():
    for log in (False, True):
        first, second = (charts.mass(make_result(seed=seed), log=log) for seed in (1, 2))
        assert first.spec == second.spec  # the browser keeps the plot, and the reader's zoom
        assert not first.rows.equals(second.rows)


@pytest.mark.parametrize(("width", "columns"), [(400, 2), (600, 3), (719, 3), (720, 5)])
def test_a_legend_has_room(width, columns):
    """Five columns were cut at 600 pixels."""
    (said,) = set(re.findall(r"'columns': {'expr': '(.*?)'}", str(charts.mass(make_result()).spec)))
    *steps, most = said.split(" : ")
    limits = [re.fullmatch(r"width < (\d+) \? (\d+)", step).groups() for step in steps]
    assert next((int(found) for limit, found in limits if width < int(limit)), int(most)) == columns


def test_the_mass_range_is_what_is_shown():
    chart = charts.mass(make_result(), span=(110, 140))
    assert rows_of(chart, "stack")["lo"].min() == 110
    assert rows_of(chart, "stack")["hi"].max() == 140
    (axis,) = (layer["encoding"]["x"] for layer in chart.spec["layer"] if layer.get("name") == "hover")
    assert axis["scale"]["domain"] == [110, 140]


def test_nothing_to_draw_is_drawn():
    result = make_result()
    empty = with_groups(result, **dict.fromkeys(result.groups, 0.0))
    for log in (False, True):
        chart = charts.mass(empty, log=log)
        assert len(rows_of(chart, "data")) == 0
        assert np.isfinite(rows_of(chart, "stack")[["y0", "y1"]].to_numpy()).all()


def test_a_logarithm_has_no_zero():
    chart = charts.mass(make_result(), log=True)
    assert (rows_of(chart, "stack")[["y0", "y1"]].to_numpy() > 0).all()
    assert (rows_of(chart, "data")["y0"] > 0).all()


def test_the_history_ends_with_the_result(tmp_path):
    data = make_result().groups["Data"].model_dump(exclude={"role", "colour"})
    read = SampleResult(**data, group="Data", entries=9, planned=9, invalid={}, cutflow=())
    result, name = make_result(samples={"data_A": read}), charts.SIGNIFICANCES["asimov"]
    now = moment(result)

    def drawn(rows):
        table = charts.history(rows, result).rows
        return table[table["which"] == name][["t", "z"]].to_numpy().tolist()

    assert drawn(follow(tmp_path, HISTORY).rows()) == [[result.cost.wall_s, now.asimov]]
    with Recorder(tmp_path, "local") as recorder:
        recorder.add_history(1.0, now._replace(events=5, asimov=math.nan))
        recorder.add_history(2.0, now._replace(events=6, asimov=0.5))
    assert drawn(follow(tmp_path, HISTORY).rows()) == [[2.0, 0.5], [3.0, now.asimov]]
    with Recorder(tmp_path, "local") as recorder:
        recorder.add_history(2.5, now)
    assert drawn(follow(tmp_path, HISTORY).rows())[-1] == [4.5, pytest.approx(now.asimov, abs=1e-3)]


def test_all_charts_count_from_the_runs_start(tmp_path):
    make_run(tmp_path / "run", "run", wall_s=147.0)
    record(tmp_path / "run", "local", 2, 147)
    view = Client(tmp_path).view("run")
    for chart in (charts.cpu(cpu_percent(view.usage)), charts.steps(view.scale, {"actors": "actors"}, "n")):
        assert chart.spec["encoding"]["x"]["title"] == "time since the run's start [s]"
        assert chart.spec["encoding"]["x"]["scale"]["padding"] > 0  # a point at its end was cut in two


def test_a_ratio_beyond_its_panel_is_an_arrow():
    """Walk of a newcomer: a dot on the panel's edge, as if the ratio were 2; the picture of the run has arrows."""
    result = make_result()
    total = contents(result).total
    data = np.round(total) + 1
    data[3] = np.ceil(2.5 * total[3])
    data[8] = np.ceil(40 * total[8]) + 40  # of this one the error bar is beyond, too
    chart = charts.mass(with_groups(result, Data=data))
    ratio = rows_of(chart, "ratio").set_index("lo")
    assert len(ratio) == (total > 0).sum()
    beyond = data / total > 2
    assert beyond[[3, 8]].all()
    arrows = np.isin(ratio.index, result.edges[:-1]) & ratio["up"].notna().to_numpy()
    assert (arrows == beyond[total > 0]).all()
    assert (ratio["y"].isna() == arrows).all()
    assert ratio["up"][arrows].tolist() == [1.9] * int(arrows.sum())
    assert ratio[["y0", "y1"]].to_numpy().max() == 2.0
    lower = json.dumps(chart.spec["layer"][1])
    assert "triangle-up" in lower
    assert "Data / Pred." in lower  # as the picture has it
    assert "isValid(datum.up)" in lower


def test_cpu_is_averaged_over_the_steps(tmp_path):
    record(tmp_path, "local", 3, 400, share=0.8)
    uses = cpu_percent(read_usage(tmp_path))
    chart = charts.cpu(uses)
    assert chart.rows["actor"].unique().tolist() == ["worker-0", "worker-1", "worker-2"]
    assert len(chart.rows) <= 3 * 240
    spent = (chart.rows["percent"] * (chart.rows["t1"] - chart.rows["t"])).sum() / 100
    assert spent == pytest.approx(0.8 * (399 + 398 + 397), rel=0.01)
    many = {f"worker-{i}": uses["worker-0"] for i in range(12)}
    assert charts.cpu(many).rows["actor"].unique().tolist() == ["12 actors"]
    assert len(charts.cpu({}).rows) == 0


def test_long_runs_are_thinned(tmp_path):
    record(tmp_path, "local", 1, 3000)
    client = Client(tmp_path.parent)
    make_run(tmp_path, tmp_path.name)
    chart = charts.steps(client.view(tmp_path.name).scale, {"actors": "actors"}, "n")
    assert 200 < len(chart.rows) <= 240
    assert chart.rows["t"].iloc[-1] == 3000


def test_actors_as_they_are_now(tmp_path):
    def busy(name, time_s, events, pid=7):
        return Usage(name, "n", pid, "working", "llll", 0.5 * time_s, 0, 90 * MIB, events, 10 * events, 0, 3, "abc")

    with Recorder(tmp_path, "local") as recorder:
        for time_s in range(1, 11):
            recorder.add(time_s, [busy("worker-10", time_s, 1000 * time_s), busy("worker-9", time_s, 0)])
        recorder.add(11, [absent("worker-10", "restarting"), busy("worker-9", 11, 2000, pid=8)])
    rows = read_usage(tmp_path)
    first, second = actors(rows, cpu_percent(rows))
    assert (first.name, first.pid, first.state, first.tasks) == ("worker-9", 8, "working", 3)
    assert first.events_per_s == pytest.approx(2000 / 5)
    assert first.actor_id == second.actor_id == "abc"  # it is the same actor when it is back
    assert (second.name, second.pid, second.state, second.cpu) == ("worker-10", 0, "restarting", 0.0)
    assert second.events_per_s == pytest.approx(4000 / 5)
    assert second.spark[-5] == 50
    assert actors(rows[:0], {}) == []


def test_actors_of_a_run_that_has_ended_are_all_there_were(tmp_path):
    """Walk of a newcomer: tasks done added up to less than the run's; those of an earlier end or life were left out."""
    with Recorder(tmp_path, "local") as recorder:
        for time_s, name, pid, tasks in ((1, "worker-0", 7, 4), (2, "worker-1", 8, 3), (3, "worker-1", 9, 2)):
            recorder.add(time_s, [Usage(name, "n", pid, "working", "llll", float(time_s), tasks=tasks)])
    rows = read_usage(tmp_path)
    uses = cpu_percent(rows)
    assert [(one.name, one.tasks) for one in actors(rows, uses)] == [("worker-1", 5)]
    assert [(one.name, one.tasks) for one in actors(rows, uses, ended=True)] == [("worker-0", 4), ("worker-1", 5)]
    assert all_used_s(uses) == pytest.approx(1 + 2 + 3)


# Words.


def test_what_is_withheld_is_said_once_of_each_figure():
    """Walk of a newcomer: five paragraphs that repeated the same samples and named no figure."""
    assert formatting.withheld({}) == []
    signal, background = "not read: ggH, VBF", "not read: llll"
    both = f"{signal}; {background}"
    reasons = {"n_signal": signal, "n_background": background, "n_background_error": background, "sigma_b": background}
    reasons |= {"notebook": both, "asimov": both, "observed": f"no data; {background}", "observed_sigma": "no data"}
    assert formatting.withheld(reasons) == [
        f"s: {signal}",
        f"b, σ_b: {background}",
        "expected (Asimov), notebook: as s and b",
        f"observed: no data; {background}",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1 k"), (1234, "1.23 k"), (999_999, "1 M"), (2.5e6, "2.5 M"),
     (0.123456, "0.123"), (None, "–"), (float("nan"), "–"), (-1500, "-1.5 k")],
)  # fmt: skip
def test_counts(value, text):
    assert formatting.count(value) == text


def test_words_have_units():
    assert formatting.quantity(1.5e6, "B/s") == "1.5 MB/s"
    assert formatting.quantity(12, "s") == "12 s"
    assert formatting.quantity(None, "s") == "–"
    assert [formatting.seconds(value) for value in (0.25, 59, 61, 7321, None)] == [
        "0.2 s", "59 s", "1 min 01 s", "2 h 02 min", "–",
    ]  # fmt: skip
    assert [formatting.percent(value) for value in (0, 0.5, 0.99999, 1)] == ["0.0 %", "50.0 %", "99.9 %", "100 %"]
    assert formatting.sigma(1.234) == "1.23 σ"
    assert formatting.number(1234567) == "1\u202f234\u202f567"


# Launching.


def choices(**changes):
    """Choices as the Launch page makes them."""
    return Choices.of(**{"release": release("toy"), "run_id": "mine", "actors": 1, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_id": "../up"}, "run-id: must be of letters"),
        ({"run_id": "taken"}, "there is a run taken"),
        ({"samples": ("Zebra",)}, "no sample 'Zebra'"),
        ({"samples": ()}, "no sample is chosen"),
        ({"fraction": 2.0}, "fraction: must be 1 or less, not 2.0"),
        ({"selection": "h4l", "cuts": ("m12=50:x",)}, "--cut m12=50:x: expected VARIABLE=LOW:HIGH"),
        ({"selection": "notebook-2025"}, "asks for identification"),
        ({"cuts": ("m12=106:50",)}, "--cut m12=106:50: nothing is above 106 and below 50"),
        ({"luminosity": 0.0}, "luminosity: must be greater than 0"),
        ({"min_actors": 3, "max_actors": 2}, "3 actors at least are more than 2"),
        ({"sources": ["/etc"]}, "/etc is outside the sources"),
        ({"sources": ["{root}/../elsewhere"]}, "is outside the sources"),
        ({"sources": ["https://other.example/x"]}, "is outside the sources"),
        ({"sources": ["{root}/none"]}, "no such folder"),
    ],
)
def test_choices_that_can_not_be(tmp_path, changes, said):
    root = tmp_path / "data"
    root.mkdir()
    make_run(tmp_path / "runs" / "taken", "taken")
    ledger(tmp_path / "runs" / "taken", "taken")
    changes = {name: [value[0].format(root=root)] if name == "sources" else value for name, value in changes.items()}
    with pytest.raises(UsageError, match=said):
        choices(**changes).check(tmp_path / "runs", [str(root)])


def test_choices_that_can(tmp_path, toys):
    assert choices(sources=[str(toys)]).check(tmp_path, [str(toys)]).release.name == "toy"
    assert choices(sources=[str(tmp_path / "toy-7")], events=7).check(tmp_path, [str(tmp_path)])
    own = release("2020")
    assert choices(release=own).check(tmp_path, [])
    assert choices(release=own, sources=[own.sources[0]]).check(tmp_path, [])


def test_choices_are_options_of_the_command():
    assert choices().command() == ["run", "--release", "toy", "--actors", "1", "--run-id", "mine"]
    many = choices(
        sources=["data/toy-9"], events=9, samples=("Zee", "llll"), selection="notebook-2020", cuts=("pt1=20:",),
        luminosity=5.0, fraction=0.5, actors=None, min_actors=1, max_actors=4, chunk=1000, pace=30.0,
    )  # fmt: skip
    assert " ".join(many.command()) == (
        "run --release toy --source data/toy-9 --samples Zee,llll --selection notebook-2020 --cut pt1=20: "
        "--luminosity 5 --fraction 0.5 --min-actors 1 --max-actors 4 --chunk 1000 --events 9 --pace 30 --run-id mine"
    )


def test_places_hold_files_of_the_release(tmp_path, toys):
    file = release("toy").samples[0].path
    for name in ("data/toy", "data/.hidden", "elsewhere"):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_bytes((toys / file).read_bytes())
    (tmp_path / "data" / "other").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")  # leads out of the sources
    home = str(tmp_path / "data")
    assert places(release("toy"), [home, "https://host/x"]) == [f"{home}/toy", "https://host/x"]
    assert places(release("2025"), [home, str(tmp_path / "none")]) == []
    assert toy_folder("data", 1000) == "data/toy-1000"


def test_a_run_whose_samples_are_several_files_is_told_what_a_folder_lacks(tmp_path):
    for path in ("MC/a.root", "MC/b.root", "Data/d.1.root"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"root")
    paths = {"Zee": ("MC/a.root", "MC/b.root"), "Zmumu": ("MC/a.root", "MC/c.root"), "data_A": "Data/d.*.root",
             "data_B": "Data/e.*.root"}  # fmt: skip
    toy = release("toy").only(tuple(paths))
    samples = tuple(one.model_copy(update={"path": paths[one.name]}) for one in toy.samples)
    mine = toy.model_copy(update={"samples": samples})
    assert lacking(make_spec(mine), str(tmp_path)) == ["data_B", "Zmumu"]
    assert places(mine, [str(tmp_path)]) == [str(tmp_path)]
    assert places(mine.only(("data_B",)), [str(tmp_path)]) == []


def test_a_launched_run_is_done(tmp_path, toys):
    """In a process of its own, which the app may outlive or not; its words are kept."""
    launcher = Launcher(tmp_path)
    launcher._start(
        "mine", ["run", "--engine", "serial", "--source", str(toys), "--run-id", "mine", "--runs", str(tmp_path)]
    )
    assert launcher.started("mine") == pytest.approx(time.time(), abs=5)
    until = time.monotonic() + 60
    while launcher.started("mine") is not None:
        assert time.monotonic() < until
        time.sleep(0.05)
    view = Client(tmp_path, launcher.started).view("mine")
    assert view.phase == "complete"
    assert "complete: " in (tmp_path / "mine" / "run.log").read_text()
    (tmp_path / "mine" / "result.json").unlink()
    (tmp_path / "mine" / "ledger.db").unlink()
    launcher.run(choices(sources=[str(tmp_path / "none")]))
    while launcher.started("mine") is not None:
        time.sleep(0.05)
    assert "no such folder" in Client(tmp_path).view("mine").log


# The environment.


def test_settings_are_read_from_the_environment(tmp_path):
    plain = read_settings({})
    assert (str(plain.runs), plain.sources, plain.address, plain.password) == ("runs", ("data", "toy"), None, None)
    assert (plain.dashboard, plain.hosts) == (None, ())
    (tmp_path / "password").write_text("open sesame\n")
    full = read_settings(
        {
            "HZZRAY_RUNS": "/runs", "HZZRAY_SOURCES": "/a, https://b/c ,", "HZZRAY_ADDRESS": "ray://head:10001",
            "HZZRAY_DASHBOARD": "https://ray.example/", "HZZRAY_APP_HOSTS": "a.example, *.b.example",
            "HZZRAY_APP_PASSWORD": "other",
            "HZZRAY_APP_PASSWORD_FILE": str(tmp_path / "password"), "HZZRAY_BROKER": "amqp://u:p@h/",
        }
    )  # fmt: skip
    assert (full.sources, full.address, full.password) == (("/a", "https://b/c"), "ray://head:10001", "open sesame")
    assert full.dashboard == "https://ray.example"
    assert read_settings({"HZZRAY_DASHBOARD": "none"}).dashboard is None
    assert full.hosts == ("a.example", "*.b.example")
    assert "sesame" not in repr(full)
    assert "amqp" not in repr(full)


@pytest.mark.parametrize(("name", "said"), [("none", "No such file"), ("empty", "the file is empty")])
def test_a_password_file_that_is_none(tmp_path, name, said):
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(UsageError, match=said):
        read_settings({"HZZRAY_APP_PASSWORD_FILE": str(tmp_path / name)})
