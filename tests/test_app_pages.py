"""The logic of each page, without a browser: what it shows of runs in each state, and what it does when asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import streamlit as st
import uproot
from streamlit.testing.v1 import AppTest

from app import charts, replay
from app.client import SILENCE_S
from app.formatting import JOINER, count, sigma
from app.formatting import seconds as spans
from app.services import services
from bridge.connection import BrokerError
from bridge.dead_letters import DeadLettered
from hzzray.data.catalogue import release
from hzzray.engine.events import Event
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.monitor import Scale, Usage, service
from hzzray.engine.source import Congestion
from hzzray.runs.folder import RunFolder, load_json, save_json
from hzzray.runs.growth import Growth
from hzzray.runs.request import RunRequest, make_spec
from hzzray.runs.result import FailureRow, Luminosity, expected_in_full, moment
from hzzray.runs.run import Settings, StoppedError, execute
from hzzray.runs.tables import HISTORY, Recorder, follow
from tests.support.usage import record

MAIN = str(Path(__file__).parents[1] / "app" / "pages.py")


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory) -> Path:
    """The folder of a complete run."""
    runs = tmp_path_factory.mktemp("finished")
    settings = Settings(runs=runs, run_id="done", sources=(str(toys),), engine="serial", limits=Limits())
    execute(make_spec(release("toy")), settings, planned=lambda _: None, progress=lambda _: None)
    return runs / "done"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty folder of runs, and an app that looks at it."""
    monkeypatch.chdir(tmp_path)
    for name in ("HZZRAY_ADDRESS", "HZZRAY_APP_PASSWORD", "HZZRAY_APP_PASSWORD_FILE", "HZZRAY_SOURCES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HZZRAY_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs").mkdir()
    services.clear()
    yield tmp_path / "runs"
    services.clear()


@pytest.fixture
def run(runs, finished):
    """Put a run into a state: copies the complete one, with another status and another name."""

    def put(name: str = "one", *, status: str = "complete", wish: str = "run", old: bool = False, **changes) -> Path:
        folder = shutil.copytree(finished, runs / name)
        result = load_json(folder).model_copy(update={"run_id": name, "status": status, **changes})
        save_json(result, folder)
        with Ledger.open(folder / "ledger.db") as ledger:
            ledger.wish(wish)
        return long_ago(folder) if old else folder

    return put


def long_ago(folder: Path) -> Path:
    """Let a run's folder be one that nobody has written in for a while."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 2 * SILENCE_S,) * 2)
    return folder


def look(page: str = "live", *, guided: bool = False, **query: str) -> AppTest:
    """Open a page, as one who has closed the guide to a first visit, or as one who hasn't."""
    test = AppTest.from_file(MAIN, default_timeout=60)
    if not guided:
        test.session_state["guide-open"] = False
    for name, value in query.items():
        test.query_params[name] = value
    test.run()
    if page != "live":
        test.switch_page(f"views/{page}.py").run()
    assert not test.exception, test.exception
    return test


def look_at_definitions() -> AppTest:
    """Open the live page, and on it what is behind "more": nobody pays for what is closed."""
    test = look()
    assert not test.table
    test.session_state["more-definitions"] = True
    return test.run()


def said(test: AppTest) -> str:
    """All that a page says, as Markdown."""
    kinds = ("title", "markdown", "caption", "error", "success", "warning", "info", "code")
    return " ".join(str(element.value) for kind in kinds for element in getattr(test, kind))


def words(test: AppTest) -> str:
    """All that a page says, as its reader sees it."""
    return re.sub(r"\\(.)", r"\1", said(test)).replace(JOINER, "")


def figures(test: AppTest) -> dict[str, tuple[str, str]]:
    return {metric.label: (metric.value, metric.delta) for metric in test.metric}


def buttons(test: AppTest) -> list[str]:
    return [button.label for button in test.button]


def press(test: AppTest, label: str) -> AppTest:
    next(button for button in test.button if button.label == label).click().run()
    assert not test.exception, test.exception
    return test


def test_an_empty_folder_says_what_to_do(runs):
    for page in ("live", "actors", "runs", "failures"):
        test = look(page)
        assert "No runs yet" in words(test), page
        assert "Higgs boson" in words(test), page  # issue 11, item 43: said neither this nor the other
        assert "ATLAS" in words(test), page
        assert "A sketch of what a run will draw" in words(test), page
        assert buttons(test) == ["Launch a run"], page


def test_a_complete_run(run):
    result = load_json(run())
    test = look()
    shown = figures(test)
    events = count(result.cost.events)
    assert shown["Events read"] == (events, f"100 % of {events}")
    assert shown["Significance so far"][0] == f"{result.significance.asimov:.2f} σ"
    assert shown["Tasks"] == ("12 / 12", "none failed")
    assert "Wall clock" in shown
    assert result.digest in words(test)
    assert buttons(test) == []
    samples = test.dataframe[0].value
    assert samples["time left"].unique().tolist() == ["done"]
    assert samples["read"].tolist() == [sample.entries for sample in result.samples.values()]
    table = look_at_definitions().table[0].value
    assert table["so far [σ]"].tolist()[2] == table["all events [σ]"].tolist()[2] == f"{result.significance.asimov:.2f}"


def half_read(folder: Path) -> dict:
    """Change a result to one of a run that is half through: 5 fb⁻¹ of 10."""
    result = load_json(folder)
    samples = {
        name: sample.model_copy(update={"planned": 2 * sample.entries}) for name, sample in result.samples.items()
    }
    luminosity = Luminosity(asked=10.0, simulation=5.0, data=5.0)
    return {"samples": samples, "luminosity": luminosity, "cost": result.cost.model_copy(update={"wall_s": 4.0})}


def test_a_run_that_goes_on(run, finished):
    folder = run(status="running", **half_read(finished))
    record(folder, "local", 2, 4)
    result = load_json(folder)
    test = look()
    shown = figures(test)
    events = result.cost.events
    assert shown["Events read"] == (count(events), f"50.0 % of {count(2 * events)}")
    assert shown["Time left"][1] == "after 4.0 s"
    so_far, with_all = result.significance.asimov, expected_in_full(result).asimov
    assert so_far < with_all
    assert shown["Significance so far"] == (f"{so_far:.2f} σ", f"{with_all:.2f} σ with all events")
    assert buttons(test) == ["Pause", "Drain", "Cancel"]
    press(test, "Pause")
    assert buttons(test) == ["Resume", "Drain", "Cancel"]
    press(test, "Resume")
    press(test, "Drain")
    assert buttons(test) == []
    with Ledger.open(folder / "ledger.db") as ledger:
        assert ledger.wished() == "drain"


@pytest.fixture(scope="module")
def halfway(toys, tmp_path_factory) -> Path:
    """The folder of a run that was stopped after 17 tasks of many, all samples side by side."""
    runs = tmp_path_factory.mktemp("halfway")
    settings = Settings(runs=runs, run_id="halfway", sources=(str(toys),), engine="serial", chunk=500, pace_s=0.01)

    def stop(counts):
        if counts.merged == 16:
            with Ledger.open(settings.folder / "ledger.db") as ledger:
                ledger.wish("cancel")

    with pytest.raises(StoppedError):
        execute(make_spec(release("toy")), settings, planned=lambda _: None, progress=stop)
    return settings.folder


def test_a_stopped_run_shows_the_same_everywhere(runs, halfway):
    """Issue 11, items 3, 5: the Live page, its plot and the Runs page compare data with as much simulation."""
    folder = shutil.copytree(halfway, runs / "halfway")
    result = load_json(folder)
    found, luminosity = result.significance, result.luminosity
    assert 0 < luminosity.data == luminosity.simulation < 10
    test = look()
    card = figures(test)[f"Data in {found.window[0]:g}–{found.window[1]:g} GeV"]
    assert card == (str(found.n_data), f"{found.n_signal:.1f} signal + {found.n_background:.1f} background")
    assert figures(test)["Significance so far"][0] == f"{found.asimov:.2f} σ"
    assert look_at_definitions().table[0].value["so far [σ]"].tolist()[-1] == f"{found.observed:.2f}"
    assert str(luminosity) in words(test)
    assert test.toggle(key="scaled").value
    test.toggle(key="scaled").set_value(False).run()
    assert f"simulation 10 fb⁻¹, data {luminosity.data:.4g} fb⁻¹ read so far: no ratio" in words(test)
    assert not test.exception
    table = dict(look("runs").table[0].value.to_numpy().tolist())
    assert table["luminosity"] == str(luminosity)
    assert table["significance, expected (Asimov) · observed"] == f"{found.asimov:.2f} σ · {found.observed:.2f} σ"
    assert table["signal · background · data"].endswith(f"{found.n_background:.2f} · {found.n_data}")


def test_a_run_as_it_grew(runs, halfway):
    """Issue 17: a slider over the time of a run that has ended; all of the page is as it stood."""
    folder = long_ago(shutil.copytree(halfway, runs / "halfway"))
    result = load_json(folder)
    test = look()
    at_the_end = figures(test)
    assert not test.slider or all(slider.label != "Time since the run's start" for slider in test.slider)
    test.toggle(key="grew").set_value(True).run()
    assert not test.exception
    assert figures(test) == at_the_end
    rows = follow(folder, HISTORY).rows()
    growth = Growth(RunFolder(folder), rows)
    for i in (14, 4):
        then = growth.at(growth.times[i] + 1e-3)
        slider = test.slider(key="at")
        slider.set_value(float(growth.times[i] + 1e-3)).run()
        assert not test.exception
        shown = figures(test)
        assert shown["Events read"][0] == count(then.cost.events)
        assert shown["Significance so far"][0] == sigma(then.significance.asimov)
        card = shown[f"Data in {then.significance.window[0]:g}–{then.significance.window[1]:g} GeV"]
        assert card[0] == count(then.significance.n_data)
        assert shown["Tasks"][0] == f"{then.tasks.merged} / {then.tasks.planned}" != at_the_end["Tasks"][0]
        assert str(then.luminosity) in words(test)
        assert f"{then.tasks.merged} of {then.tasks.planned} tasks merged" in words(test)
        read = test.dataframe[0].value["read"].tolist()
        assert read == [sample.entries for sample in then.samples.values()]
    test.selectbox(key="observable").set_value("m12").run()
    assert not test.exception
    assert "not filled yet" not in words(test)
    assert "Resume" in buttons(test)  # what can be done is of the run as it is
    assert result.cost.events == load_json(folder).cost.events
    test.toggle(key="grew").set_value(False).run()
    assert figures(test) == at_the_end


def test_a_replay_plays(runs, halfway, monkeypatch):
    long_ago(shutil.copytree(halfway, runs / "halfway"))
    now = [1000.0]
    monkeypatch.setattr("app.replay.time.monotonic", lambda: now[0])
    test = look(grew="true")
    end = test.slider(key="at").value
    assert end == test.slider(key="at").max
    press(test, "Play")
    assert test.slider(key="at").value == 0
    assert figures(test)["Tasks"][0].startswith("0 / ")
    now[0] += replay.LASTS_S / 2
    test.run()
    assert test.slider(key="at").value == pytest.approx(end / 2, abs=test.slider(key="at").step)
    assert "Pause" in buttons(test)
    assert "at" not in test.query_params  # no entry of each moment to go back through
    assert test.slider(key="at").disabled  # what a browser says of it that is behind ended replays half way
    press(test, "Pause")
    now[0] += replay.LASTS_S
    test.run()
    paused = test.slider(key="at").value
    assert paused == pytest.approx(end / 2, abs=test.slider(key="at").step)
    assert float(test.query_params["at"]) == paused
    press(test, "Play")
    now[0] += replay.LASTS_S
    test.run()
    assert test.slider(key="at").value == end
    assert "Play" in buttons(test)
    assert "at" not in test.query_params
    assert not test.exception


def test_a_moment_is_in_the_address_the_first_one_too(runs, halfway):
    """A link to the start of a run showed its end."""
    long_ago(shutil.copytree(halfway, runs / "halfway"))
    for start in ("0", "0.0"):
        test = look(grew="true", at=start)
        assert test.slider(key="at").value == 0
        assert figures(test)["Tasks"][0].startswith("0 / ")
    test = look(grew="true", at="99999")
    assert test.slider(key="at").value == test.slider(key="at").max


def test_a_run_whose_ledger_is_elsewhere_has_no_replay(run):
    (run() / "ledger.db").unlink()
    assert "As it grew" not in [toggle.label for toggle in look().toggle]


def test_a_slider_has_steps_that_people_read():
    assert replay.scale(0.52) == (0.52, 0.001, 3)
    assert replay.scale(2.345) == (2.35, 0.01, 2)
    assert replay.scale(60.0) == (60.0, 0.1, 1)
    assert replay.scale(5000.1) == (5010.0, 10.0, 0)
    assert replay.scale(0.0) == (0.001, 0.00001, 5)


def test_the_plot_grows_with_the_data(halfway, finished):
    """Issue 11, item 5: simulation stood at full scale from the first second; a switch puts it there."""

    def peak(folder: Path, **options) -> float:
        rows = charts.mass(load_json(folder), **options).rows
        return rows[rows["kind"] == "stack"]["y1"].max()

    part = load_json(halfway).luminosity.simulation / 10
    assert peak(halfway) == pytest.approx(part * peak(halfway, scaled=False))
    assert peak(halfway, scaled=False) == pytest.approx(peak(finished), rel=0.5)
    kinds = {scaled: set(charts.mass(load_json(halfway), scaled=scaled).rows["kind"]) for scaled in (True, False)}
    assert kinds[True] - kinds[False] == {"ratio"}


def test_a_figure_that_is_withheld_gives_its_reason(run, finished):
    """Issue 11, items 4, 22: on the Live page and on the Runs page; warnings too."""
    result = load_json(finished)
    reasons = {"asimov": "not read: llll", "observed": "not read: llll", "n_background": "not read: llll"}
    lacking = dict.fromkeys(reasons) | {"withheld": reasons}
    warning = "Zee: its file has 89 entries, the release states 898"
    run(significance=result.significance.model_copy(update=lacking), warnings=(warning,))
    test = look()
    assert figures(test)["Significance so far"] == ("–", r"not read\: llll")
    # Walk of a newcomer: a paragraph a reason, which named no figure.
    assert "Withheld:\n\n- b, expected (Asimov), observed: not read: llll" in words(test)
    assert warning in words(test)
    test = look("runs")
    assert ["withheld", r"b, expected (Asimov), observed\: not read\: llll"] in test.table[0].value.to_numpy().tolist()
    assert warning in words(test)


def test_of_many_warnings_it_is_told_how_many_there_are(run):
    run(warnings=tuple(f"Zee: warning number {i}" for i in range(23)))
    shown = words(look())
    assert "warning number 19" in shown
    assert "warning number 20" not in shown
    assert "3 more warnings: result.json has them all." in shown


@pytest.mark.parametrize(
    ("state", "label"),
    [
        ({"status": "running", "old": True}, "Resume"),
        ({"status": "running", "old": True, "wish": "cancel"}, "Resume"),
        ({"status": "partial"}, "Try what failed again"),
    ],
)
def test_a_run_that_has_stopped_can_go_on(run, runs, monkeypatch, state, label):
    run(**state)
    started = []
    monkeypatch.setattr("app.launcher.Launcher._start", lambda _, *what: started.append(what))
    test = press(look(), label)
    assert started == [("one", ["replay", "one", "--runs", str(runs)])]
    assert buttons(test) == [label]


def test_a_run_of_elsewhere_is_resumed_elsewhere(run):
    folder = run(status="running", old=True)
    (folder / "ledger.db").unlink()
    test = look()
    assert [button.disabled for button in test.button] == [True]


def test_a_run_that_could_not_begin_says_why(runs):
    (runs / "bad").mkdir()
    (runs / "bad" / "run.log").write_text("hzzray: source /x: no such folder\n")
    test = look()
    assert "could not begin" in words(test)
    assert "source /x: no such folder" in words(test)


def test_what_the_viewer_chooses_of_the_plot(run):
    run()
    test = look()
    test.segmented_control(key="channel").set_value("4mu").run()
    test.toggle(key="log").set_value(True).run()
    test.pills(key="groups-toy").set_value(["Data"]).run()
    test.slider(key="span-80-250").set_value((110.0, 140.0)).run()
    assert not test.exception
    test.switch_page("views/actors.py").run().switch_page("views/live.py").run()
    assert test.segmented_control(key="channel").value == "4mu"
    assert test.pills(key="groups-toy").value == ["Data"]


def test_the_address_names_the_run(run):
    run("one")
    run("two")
    assert look(run="one").selectbox(key="run").value == "one"
    assert look(run="two").selectbox(key="run").value == "two"
    assert look(run="../two").selectbox(key="run").value == "../two"


def address(test: AppTest) -> dict[str, list[str]]:
    return {name: [values] if isinstance(values, str) else list(values) for name, values in test.query_params.items()}


def test_the_address_says_what_is_shown(run):
    """Issue 11, item 10: ``/?run=A`` became ``/`` where A was the newest, so that a reload showed a later run."""
    run("one")
    for page in ("live", "actors", "failures"):
        assert address(look(page))["run"] == ["one"], page
    run("two")
    for asked in ("one", "two"):
        test = look(run=asked)
        assert (test.selectbox(key="run").value, address(test)["run"]) == (asked, [asked])


def test_a_later_run_does_not_take_the_page(run):
    """Issue 11, item 10."""
    run("one")
    test = look()
    time.sleep(0.02)
    run("two")
    assert test.run().selectbox(key="run").value == "one"
    assert address(test)["run"] == ["one"]


def test_a_folder_that_no_run_can_be_called_is_told(run):
    run("one")
    run("copy 2")
    said = words(look(run="copy 2"))
    assert "The folder 'copy 2' is there, but isn't shown" in said
    assert "Rename the folder." in said
    assert "There is no run" not in said


@pytest.mark.parametrize("name", ["nosuch", "../one", "<b>x</b>", "x" * 500])
@pytest.mark.parametrize("page", ["live", "actors", "runs", "failures"])
def test_an_unknown_run_is_told(run, page, name):
    """Issue 11, item 10: another run was shown without a word."""
    run("one")
    test = look(page, run=name)
    assert "There is no run" in words(test)
    assert figures(test) == {}
    assert len(test.dataframe) == (page == "runs")  # the list of those that there are
    if len(name) < 200:
        assert address(test)["run"] == [name]


def test_who_hears_the_plot_is_told_what_it_shows(run):
    """Of whatever observable, of whatever analysis it was the mass of four leptons."""
    run()
    test = look()
    assert test.get("vega_lite_chart")[0].proto.alt.startswith("m₄ℓ [GeV]: ")
    test.selectbox(key="observable").set_value("m12").run()
    assert test.get("vega_lite_chart")[0].proto.alt.startswith("m₁₂ [GeV]: ")


def test_what_is_chosen_of_the_plot_is_in_the_address(run):
    """Issue 11, item 10: a reload lost region and logarithm."""
    run()
    test = look(run="one", channel="2e2µ", log="true")
    assert test.segmented_control(key="channel").value == "2e2mu"
    assert test.toggle(key="log").value
    assert (address(test)["channel"], address(test)["log"]) == (["2e2µ"], ["true"])


def test_the_runs_page_opens_what_the_address_names(run):
    """Issue 11, item 10."""
    run("one")
    run("two")
    test = look("runs", run="one")
    assert test.selectbox(key="run").value == "one"
    test = look("runs")
    test.session_state["tab"] = "Compare"
    test.run()
    assert sorted(address(test)["compared"]) == ["one", "two"]


def test_a_damaged_result_is_named(run):
    (run("one") / "result.json").write_text("{")
    run("two")
    assert "result.json" in words(look(run="one"))
    assert "result.json" in words(look("runs"))


def published(runs: Path, tasks: int = 205) -> Path:
    """What the process leaves that publishes a run."""
    (runs / "far").mkdir()
    (runs / "far" / "run.log").write_text(f"planning\npublished run far: {tasks} tasks\n")
    return runs / "far"


def test_a_run_waits_for_a_bridge_however_long(runs):
    """Issue 11, item 12: "failed" after 120 s, though its 205 tasks were safe in the queue."""
    folder = published(runs)
    past = time.time() - 86_400
    os.utime(folder / "run.log", (past, past))
    test = look()
    assert "Waiting for a bridge: 205 tasks in the queue" in words(test)
    assert "waiting" in words(test)
    assert look("runs").dataframe[0].value["state"].tolist() == ["waiting"]


def test_a_run_that_was_not_published_whole_has_failed(runs):
    """Issue 11, item 12: only the publisher's last word counts."""
    folder = published(runs)
    with (folder / "run.log").open("a") as log:
        log.write("hzzray: no broker at 127.0.0.1\n")
    assert "could not begin" in words(look())


def test_a_run_that_has_ended_shows_no_present(run):
    """Issue 11, item 15: "complete", with 8 in flight and 26 waiting."""
    folder = run()
    record(folder, "local", 2, 8)
    with Recorder(folder, "local") as recorder:
        recorder.add_queue(8.0, Congestion(26, 5, 2, 8, 3.0, 5.0, 4.0, 20.0))
    test = look("actors")
    shown = figures(test)
    assert not {"In flight", "Queue depth", "Oldest in flight"} & shown.keys()
    assert shown["Actors"] == ("2", "at most, none now")
    table = test.dataframe[0].value
    assert set(table["state"]) == {"ended"}
    assert table["cpu"].isna().all()


def test_what_happened_and_how_often_actors_came_back(run):
    """Issue 11, item 15: no count of restarts, and no list of what happened."""
    folder = run(status="running")
    (folder / "cpu.csv").unlink()
    record(folder, "local", 2, 8)
    with Recorder(folder, "local") as recorder:
        recorder.add(9.0, [Usage("worker-0", "n", 999, "idle", "")])
        recorder.add_events(
            9.0,
            [
                Event(1.0, "worker died", "worker-0", "with 2 tasks in flight"),
                Event(2.0, "worker back", "worker-0", ""),
                Event(3.0, "task retried", "Zee", "entries 0 to 9: its worker died"),
            ],
        )
    test = look("actors")
    assert figures(test)["Restarts"] == ("1", "of 1 actors")
    events = test.dataframe[-1].value
    assert events["what"].tolist() == ["task retried", "worker back", "worker died"]
    assert events["more"][0] == "entries 0 to 9: its worker died"


def test_the_dashboard_is_that_of_the_runs_own_cluster(run):
    """Issue 11, item 11: always port 8265, another run's, and a token that nobody was told of."""
    folder = run(status="running")
    record(folder, "local", 2, 4)
    test = look("actors")
    assert "Ray dashboard" not in str(test.get("link_button"))
    (folder / "dashboard.json").write_text('{"url": "http://127.0.0.1:8266", "token": "file"}')
    (folder / "cpu.csv").touch()
    services.clear()
    test = look("actors")
    assert "http://127.0.0.1:8266" in words(test)
    assert str(folder / "ray-token") in words(test)
    result = load_json(folder)
    save_json(result.model_copy(update={"status": "complete"}), folder)
    services.clear()
    assert "8266" not in words(look("actors"))  # it has gone with its run


def test_a_paused_run_says_no_time(run, finished):
    """Issue 11, item 15: "time left" went on while paused."""
    folder = run(status="running", wish="pause", **half_read(finished))
    result = load_json(folder)
    with Recorder(folder, "local") as recorder:
        for time_s, events in ((1.0, 10_000), (2.0, 20_000)):
            recorder.add_history(time_s, moment(result)._replace(events=events))
    test = look()
    assert figures(test)["Time left"][0] == "paused"
    assert test.dataframe[0].value["time left"].unique().tolist() == ["–"]


def test_one_significance_is_in_front(run):
    """Issue 11, item 43: the others are behind "more", each with its formula."""
    result = load_json(run())
    test = look_at_definitions()
    shown = figures(test)
    assert shown["Expected"][0] == f"{result.significance.asimov:.2f} σ"
    assert shown["Observed"][0] == f"{result.significance.observed:.2f} σ"
    (more,) = (block for block in test.expander if "More definitions" in block.label)
    table = more.table[0].value
    assert len(table) == 6
    assert table["formula"].str.contains("√").all()


def test_other_definitions_have_the_pages_width(run):
    """Walk of a newcomer: in a third of the page "so far [σ]" took three lines."""
    run()
    test = look()
    assert "More definitions" in str([block.label for block in test.expander])
    assert "More definitions" not in str([block.label for column in test.columns for block in column.expander])


def test_a_figure_has_a_line_where_all_have(run, finished):
    """Walk of a newcomer: cards with an empty half beside others with a line, and a chart of one dot in a corner."""
    folder = run(status="running", **half_read(finished))
    result = load_json(folder)

    def lines() -> list[int]:
        services.clear()
        return [len(metric.proto.chart_data) for metric in look().metric[:6]]

    (folder / HISTORY).unlink()
    assert lines() == [0] * 6
    assert "No curve over time: there is one moment of it; more comes." in words(look())
    record(folder, "local", 2, 4)
    with Recorder(folder, "local") as recorder:
        for time_s in range(4):
            recorder.add_history(time_s, moment(result)._replace(events=1000 * time_s))
    assert all(lines())
    assert "No curve over time" not in words(look())


def test_cpu_is_told_with_what_it_was_for(run):
    """Walk of a newcomer: "CPU of tasks 0.4 s" beside a chart of 60 % for 134 s, and no word of why."""
    folder = run()
    (folder / "cpu.csv").unlink(missing_ok=True)
    record(folder, "local", 2, 8)
    tasks = load_json(folder).cost.cpu_s
    shown = figures(look("actors"))
    used = 0.8 * (8 + 7)
    assert shown["CPU of tasks"][0] == spans(tasks)
    assert shown["CPU of workers"] == (spans(used), f"{spans(used - tasks)} beside tasks")
    assert "they start, load or compile their kernels" in words(look("actors"))
    assert figures(look())["Wall clock"][1] == f"{spans(tasks)} of CPU in tasks"
    table = dict(look("runs").table[0].value.to_numpy().tolist())
    assert table["CPU of workers, with their start and kernels"] == spans(used)


def test_an_error_is_told_with_what_it_holds(run):
    """Walk of a newcomer: ± 0.76 on one page, ± 1.34 on another, of the same background."""
    found = load_json(run()).significance
    parts = f"(statistics {found.n_background_error:.2f}, normalisations {found.n_background_stated:.2f})"
    assert f"b = {found.n_background:.2f} ± {found.sigma_b:.2f} {parts}" in words(look())
    run("two", significance=found.model_copy(update={"n_background_stated": None}))
    assert f"± {found.sigma_b:.2f} (statistics of simulation)" in words(look(run="two"))


def test_a_first_page_says_that_it_loads(run, monkeypatch):
    """Walk of a newcomer: for up to 9 s there was nothing but the menu."""
    run()
    assert "Loading" not in words(look())

    def stuck(_):
        raise RuntimeError("where it takes its time")

    monkeypatch.setattr("hzzray.disk.full_disk", stuck)
    assert "Loading…" in words(AppTest.from_file(MAIN).run())


def test_the_server_imports_what_pages_need_before_a_viewer_comes():
    """And nothing that takes long: see ``test_the_app_itself_does_without_numerics``."""
    code = (
        "import sys, app.main; assert not {'numba', 'ray'} & sys.modules.keys(); "
        "assert {'app.charts', 'app.fit_summary', 'app.replay', 'app.services'} <= sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(MAIN).parents[1])


def test_a_page_has_headings_in_their_order(run):
    """Issue 11, item 15: only headings of the fifth level."""
    record(run(), "local", 2, 4)
    for page in ("live", "actors", "runs", "failures", "launch"):
        levels = [len(found[1]) for each in look(page).markdown if (found := re.match(r"(#+) ", each.value))]
        assert levels.count(1) == 1, page
        assert set(levels) <= {1, 2}, page


def test_actors(run):
    folder = run(status="running")
    record(folder, "local", 2, 8)
    test = look("actors")
    shown = figures(test)
    assert shown["Actors"] == ("2", "all up")
    assert shown["Nodes"][0] == "2"
    assert shown["CPU of all actors"][0] == "160 %"
    table = test.dataframe[0].value
    assert table["actor"].tolist() == ["worker-0", "worker-1"]
    assert table["cpu"].tolist() == pytest.approx([80, 80])
    assert table["pid"].tolist() == [100, 101]
    assert len(table["spark"][0]) == 60
    assert "hot" not in table


def test_hot_candidates_are_told_beside_the_memory_that_they_are_part_of(run):
    folder = run(status="running")
    with Recorder(folder, "local") as recorder:
        for second in range(1, 4):
            own = Usage("worker-0", "n", 9, "working", "Zee", user_s=0.5 * second, rss=2**27)
            recorder.add(second, [own, Usage("explorer-0", "n", 10, "idle", "", 1.0, rss=2**28, hot=3 * 2**24)])
    test = look("actors")
    table = test.dataframe[0].value.set_index("actor")
    assert table.loc[["worker-0", "explorer-0"], ["memory", "hot"]].to_numpy().tolist() == [[128, 0], [256, 48]]
    assert figures(test)["Memory"][1] == "resident, 50.3 MB of it hot"


def test_services(run):
    """Issue 11, item 37: CPU and memory of each service, by name, with its limits."""
    folder = run(status="running", environment="compose")
    limits = {"cpus": 2.0, "memory_limit": 2**30}
    with Recorder(folder, "compose") as recorder:
        for second in range(1, 9):
            worker = Usage("worker-0", "w", 9, "working", "Zee", user_s=0.5 * second, rss=2**27)
            bridge = service("bridge", "b", user_s=0.25 * second, system_s=0.25 * second, rss=2**28, **limits)
            # The broker tells every five seconds.
            broker = service("broker", "rabbit", user_s=0.4 * (second // 5 * 5), rss=2**27)
            loader = service("loader", "l", user_s=30.0, rss=2**26, state="ended", cpus=1.0)
            recorder.add(second, [worker, service("head", "h"), bridge, broker, loader])
            recorder.add_scale(second, Scale(1, 0, 4, 0, 1))
    test = look("actors")
    assert test.dataframe[0].value["actor"].tolist() == ["worker-0"]
    assert figures(test)["Nodes"] == ("4", "bridge: CPU 50 %")
    table = test.dataframe[1].value.set_index("service")
    assert table.index.tolist() == ["bridge", "broker", "head", "loader"]
    bridge = table.loc["bridge"]
    assert bridge[["cpu", "cpus", "share", "used", "memory", "limit", "full"]].tolist() == pytest.approx(
        [50, 2.0, 0.25, 4.0, 256, 1024, 0.25]
    )
    assert table.loc["broker", "cpu"] == pytest.approx(40)  # over the last 5 s, in which it told once
    assert table.loc["loader", ["state", "used"]].tolist() == ["ended", pytest.approx(30.0)]
    assert pd.isna(table.loc["loader", "cpu"])
    assert pd.isna(table.loc["head", "cpus"])
    assert "what RabbitMQ tells of itself" in words(test)


def test_a_full_disk_is_told_on_each_page(run, monkeypatch):
    """Issue 11, item 41."""
    run()
    monkeypatch.setattr("hzzray.disk.full_disk", lambda _: "the disk of runs is full")
    for page in ("live", "runs"):
        assert "the disk of runs is full" in words(look(page)), page


def test_no_actors(run):
    """The serial engine records its process, too: where there is nothing, nobody knows why."""
    (run() / "cpu.csv").unlink()
    said = words(look("actors"))
    assert "Nothing is recorded of this run's actors: its folder has no rows of cpu.csv." in said
    assert "serial" not in said


def test_the_list_of_runs_and_one_of_them(run, finished):
    run("one")
    run("two", status="partial", environment="compose")
    test = look("runs")
    rows = test.dataframe[0].value
    assert sorted(zip(rows["run"], rows["state"], rows["environment"], strict=True)) == [
        ("one", "complete", "local"),
        ("two", "partial", "compose"),
    ]
    result = load_json(finished)
    cuts = test.dataframe[1].value
    assert cuts["cut"].tolist() == list(result.spec.rows)
    assert cuts["Signal (mH = 125 GeV)"].tolist()[-1] == pytest.approx(result.groups["Signal (mH = 125 GeV)"].yield_)
    test.segmented_control(key="by").set_value("sample").run()
    test.segmented_control(key="of").set_value("raw").run()
    cuts = test.dataframe[1].value
    assert cuts["llll"].tolist() == [row.n for row in result.samples["llll"].cutflow]


def test_files_that_a_run_has_not_written_yet_are_made(run, tmp_path):
    from app.downloads import content

    folder = run(status="running")
    result = load_json(folder)
    (folder / "histograms.root").unlink()
    made = {name: content(folder / name, result)() for name in ("histograms.root", "plot.png", "plot.pdf")}
    assert content(folder / "result.json", result)() == (folder / "result.json").read_bytes()
    assert made["plot.png"].startswith(b"\x89PNG")
    assert made["plot.pdf"].startswith(b"%PDF")
    (tmp_path / "read.root").write_bytes(made["histograms.root"])
    with uproot.open(tmp_path / "read.root") as file:
        assert file["groups/Data/all"].values().sum() == sum(result.groups["Data"].sumw)
    assert not (folder / "plot.png").exists()


def test_runs_side_by_side(run):
    for name, environment in (("one", "compose"), ("two", "kuberay"), ("three", "local")):
        record(run(name, environment=environment), environment, 2, 5)
    test = look("runs")
    test.tabs  # noqa: B018
    test.session_state["tab"] = "Compare"
    test.run()
    assert not test.exception
    assert len(test.multiselect(key="compared").value) == 2
    test.multiselect(key="compared").set_value(["one", "two"]).run()
    assert "comparable: one (compose) and two (kuberay) computed the same, to the last bit" in words(test)
    table = test.dataframe[0].value.set_index("figure")
    assert table.loc["environment"].tolist() == ["compose", "kuberay"]
    test.multiselect(key="compared").set_value(["one"]).run()
    assert "Two runs at least" in words(test)


def test_failures(run, toys):
    folder = run(status="partial")
    with Ledger.open(folder / "ledger.db") as ledger:
        ledger.forget_sample("Zee")
    test = look("failures")
    table = test.dataframe[0].value
    assert table["sample"].tolist() == ["Zee"]
    assert table["reason"].tolist() == ["retracted"]
    assert "**1** of 12 tasks failed" in words(test)
    assert buttons(test) == ["Try what failed again"]


def test_dead_letters_are_looked_at_when_asked_for(run, monkeypatch):
    run()
    monkeypatch.setenv("HZZRAY_BROKER", "amqp://127.0.0.1:1")
    services.clear()
    asked = []

    async def dead_letters(broker, topology, wanted):
        asked.append(broker)
        letters = [DeadLettered(reason=f"of {name}", attempts=5, run_id=name, message=None) for name in ("one", "two")]
        return [letter for letter in letters if wanted(letter)]

    monkeypatch.setattr("bridge.dead_letters.dead_letters", dead_letters)
    test = look("failures")
    assert asked == []
    test.toggle(key="dead-one").set_value(True).run()
    assert test.dataframe[0].value["reason"].tolist() == ["of one"]

    async def refused(*_):
        raise BrokerError("127.0.0.1: connection refused")

    monkeypatch.setattr("bridge.dead_letters.dead_letters", refused)
    st.cache_data.clear()
    assert "127.0.0.1: connection refused" in words(test.run())


def test_nothing_failed(run):
    run()
    test = look("failures")
    assert "Nothing failed" in words(test)
    assert buttons(test) == []


# Launching.


@pytest.fixture
def started(monkeypatch):
    """What would be started."""
    commands = []
    monkeypatch.setattr("app.launcher.Launcher._start", lambda _, *what: commands.append(what))
    return commands


def start_button(test: AppTest):
    return next(button for button in test.button if button.label == "Start")


def test_toys_are_offered_where_there_is_no_data(runs, started):
    test = look("launch")
    assert test.selectbox(key="source-toy").value == "data/toy-200000"
    assert "200 k toy events are simulated first" in words(test)
    test.text_input(key="run name").set_value("first").run()
    test.number_input(key="actors").set_value(2).run()
    press(test, "Start")
    ((run_id, options),) = started
    assert run_id == "first"
    assert " ".join(options) == (
        "run --release toy --source data/toy-200000 --actors 2 --chunk 5000 --events 200000 --pace 30 --run-id first"
        f" --runs {runs}"
    )


def test_mistakes_are_said_at_once(run, runs, started):
    run("taken")
    test = look("launch")
    for name, text in (("../up", "run-id: must be of letters"), ("taken", "there is a run taken")):
        test.text_input(key="run name").set_value(name).run()
        assert text in words(test)
        assert start_button(test).disabled
    test.text_input(key="run name").set_value("mine").run()
    assert not start_button(test).disabled
    test.selectbox(key="selection-toy").set_value("notebook-2025").run()
    assert "asks for identification" in words(test)
    test.selectbox(key="selection-toy").set_value("h4l").run()
    test.toggle(key="change-h4l").set_value(True).run()
    cut = "cut-h4l-False-True-{}".format  # h4l of a release that has no flags of identification, but isolation
    test.text_input(key=cut("m12")).set_value("106 : 50").run()
    assert "nothing is above 106 and below 50" in words(test)
    test.text_input(key=cut("m12")).set_value("60:106").run()
    test.text_input(key=cut("dr_same")).set_value("").run()
    test.text_input(key="more-h4l-False-True").set_value("m56=1:").run()
    assert "has no variable 'm56'" in words(test)
    test.text_input(key="more-h4l-False-True").set_value("pt4l=20: eta1=-2:2").run()
    test.number_input(key="parameter-h4l-False-True-electron_pt_min").set_value(10.0).run()
    test.multiselect(key="observables-h4l").set_value(["m12"]).run()
    assert "--selection" not in words(test)  # it is the release's own
    said = "--cut dr_same=: --cut m12=60:106 --cut pt4l=20: --cut eta1=-2:2 --parameter electron_pt_min=10"
    assert f"{said} --observable m4l --observable m12" in words(test)
    assert "h4l*" in words(test)
    assert started == []


def test_what_is_there_is_looked_at_first(runs, toys, tmp_path, started):
    """Issue 11, item 2: "12 samples, 943 k events" where 7 of 12 files exist."""
    shutil.copytree(toys, tmp_path / "data" / "mine")
    for name in ("data_C", "data_D", "Zmumu", "llll", "ttbar_lep"):
        (tmp_path / "data" / "mine" / release("2020").sample(name).path).unlink()
    test = look("launch")
    test.selectbox(key="release").set_value("2020").run()
    shown = words(test)
    assert "**7 of 12** samples of ATLAS Open Data 2020, about 387 k events" in shown
    assert "not there: data_C, data_D, Zmumu, ttbar_lep and 1 more" in shown
    test.selectbox(key="source-2020").set_value("").run()
    shown = words(test)
    assert "**12** samples of ATLAS Open Data 2020, about 943 k events as the release states" in shown
    assert "what is there is seen when the run begins" in shown


def test_bins_and_window_are_chosen(runs, started):
    """Issue 11, item 1: --axis and --window on the Launch page."""
    test = look("launch")
    assert "--axis" not in words(test)
    test.text_input(key="axis-toy").set_value("80:250:170").run()
    assert "--axis 80:250:170" in words(test)
    test.text_input(key="window-toy").set_value("116:131.5").run()
    assert "window 116 to 131.5 GeV doesn't lie on bin edges" in words(test)
    assert start_button(test).disabled
    test.text_input(key="window-toy").set_value("116 : 131").run()
    test.text_input(key="run name").set_value("mine").run()
    press(test, "Start")
    assert "--axis 80:250:170 --window 116:131" in " ".join(started[0][1])


def test_the_launch_page_asks_for_all_of_a_request(runs, started, monkeypatch):
    """But for a file to run (no path is taken from a page), the server's catalogue, and its engine."""
    asked = set()
    of = RunRequest.of

    def spied(**chosen):
        asked.update(chosen)
        return of(**chosen)

    monkeypatch.setattr(RunRequest, "of", spied)
    test = look("launch")
    test.toggle(key="elastic").set_value(True).run()
    assert asked == RunRequest.model_fields.keys() - {"analysis", "catalogue", "engine"}
    test.selectbox(key="release").set_value("2025").run()
    assert "--openmagic" not in words(test)
    test.toggle(key="openmagic").set_value(True).run()
    assert "hzzray run --release 2025 " in words(test)
    assert "--openmagic" in words(test)


def test_other_releases_and_samples(runs, toys, tmp_path, started):
    shutil.copytree(toys, tmp_path / "data" / "mine")
    test = look("launch")
    test.selectbox(key="release").set_value("2020").run()
    assert test.selectbox(key="source-2020").options == ["data/mine", "CERN: atlas-opendata.web.cern.ch"]
    test.toggle(key="every-2020").set_value(False).run()
    test.multiselect(key="samples-2020").set_value([]).run()
    assert "no sample is chosen" in words(test)  # issue 11, item 15: meant all twelve
    assert start_button(test).disabled
    test.multiselect(key="samples-2020").set_value(["Zee", "llll"]).run()
    test.slider(key="fraction").set_value(50).run()
    test.toggle(key="elastic").set_value(True).run()
    test.slider(key="actors between").set_value((1, 8)).run()
    test.text_input(key="run name").set_value("real").run()
    press(test, "Start")
    assert started[0][1][:5] == ["run", "--release", "2020", "--source", "data/mine"]
    assert " ".join(started[0][1][5:]) == (
        f"--samples Zee,llll --fraction 0.5 --min-actors 1 --max-actors 8 --run-id real --runs {runs}"
    )
    test = look("launch")
    test.selectbox(key="release").set_value("2025").run()
    assert test.selectbox(key="source-2025").options == ["CERN: opendata.cern.ch"]
    assert test.selectbox(key="selection-2025").value == "notebook-2025"


def test_a_cluster_that_is_looked_at_from_outside_takes_no_runs(runs, monkeypatch):
    monkeypatch.setenv("HZZRAY_ADDRESS", "ray://127.0.0.1:1")
    monkeypatch.setattr("app.watch.Watch._keep_going", lambda _: None)
    test = look("launch")
    assert "Runs start on its nodes" in words(test)
    assert "Connecting to the cluster at ray://127.0.0.1:1" in words(test)
    assert buttons(test) == []


def test_a_broker_takes_runs_and_takes_them_up_again(run, runs, monkeypatch, started):
    monkeypatch.setenv("HZZRAY_BROKER", "amqp://me:secret@127.0.0.1:1")
    services.clear()
    test = look("launch")
    test.text_input(key="run name").set_value("far").run()
    press(test, "Start")
    assert started.pop() == (
        "far", ["publish", "--release", "toy", "--source", "data/toy-200000", "--events", "200000", "--run-id", "far"]
    )  # fmt: skip
    assert "secret" not in words(test)
    folder = run("one", status="partial")
    with Recorder(folder, "local") as recorder:
        recorder.add_scale(1.0, Scale(1, 0, 1, 0, 0))
        recorder.add_queue(1.0, Congestion(1234, 5, 2, 8, 3.0, 5.0, 4.0, 20.0))
    press(look(run="one"), "Try what failed again")
    assert started.pop() == ("one", ["replay", "one", "--broker", "", "--runs", str(runs)])
    folder = run("two", status="running")
    record(folder, "local", 1, 2)
    with Recorder(folder, "local") as recorder:
        recorder.add_queue(1.0, Congestion(1234, 5, 2, 8, 3.0, 5.0, 4.0, 20.0))
    shown = figures(look("actors", run="two"))
    assert shown["Queue depth"] == ("1\u202f234 tasks", "5 wait for another try")
    assert shown["Oldest in flight"][0] == "3.0 s"
    assert shown["Dead letters"][0] == "2"


# Who may look.


def test_a_password_file_that_is_none_lets_nobody_in(run, monkeypatch):
    run()
    monkeypatch.setenv("HZZRAY_APP_PASSWORD_FILE", "/none")
    services.clear()
    test = look()
    assert "HZZRAY_APP_PASSWORD_FILE=/none" in words(test)
    assert figures(test) == {}


def test_failure_texts_are_no_markup(run):
    """A file's name or an error may hold anything."""
    bad = FailureRow(sample="Zee", file="f", start=0, stop=1, reason="[x](http://y) :red[z] $w$")
    run("one", status="partial", failures=(bad,))
    assert rf"\[x\](http\:{JOINER}//y) \:red\[z\] \$w\$" in said(look(run="one"))


def test_a_first_visit_is_guided_until_it_is_closed(run):
    """Who comes by a link, which names a run, is shown that run and nothing else."""
    run("one")
    page = look(guided=True)
    assert not page.exception
    text = " ".join(one.value for one in page.markdown)
    for said in ("A lepton pair", "Why a peak", "What σ is"):
        assert said in text
    page.button(key="guide-close").click().run()
    assert "Why a peak" not in " ".join(one.value for one in page.markdown)
    page.run()
    assert "Why a peak" not in " ".join(one.value for one in page.markdown)
    assert "Why a peak" not in " ".join(one.value for one in look(guided=True, run="one").markdown)


def test_without_a_run_there_is_no_guide_yet(run):
    """It comes with the first run: who launches that from the empty page arrives at an address that names it."""
    page = look(guided=True)
    assert "Why a peak" not in " ".join(one.value for one in page.markdown)
    run("one")
    page.query_params["run"] = "one"
    page.run()
    assert "Why a peak" in " ".join(one.value for one in page.markdown)
