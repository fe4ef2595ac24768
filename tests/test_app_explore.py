"""The explore page: what it makes of a session's answers, and the page over a session in a process of its own."""

from __future__ import annotations

import dataclasses
import io
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

import hzzray
from app import charts, explore_charts
from app.explore_charts import Slider, Tuning
from app.explore_process import Asked, Question
from app.services import services
from app.sessions import Exploring
from hzzray.data.catalogue import release
from hzzray.engine.cluster import ClusterError
from hzzray.errors import UsageError
from hzzray.physics.analysis import Bound, Cut
from hzzray.runs.folder import load_json
from hzzray.runs.request import bound_text, make_spec
from hzzray.runs.run import execute, make_settings
from hzzray.statistics.significance import asimov
from tests.support.waiting import wait_for
from tests.test_app_pages import MAIN, figures, press
from tests.test_app_pages import words as said


@pytest.fixture(scope="module")
def finished(toys, tmp_path_factory):
    """The folder of a run with the cuts of the discovery paper."""
    runs = tmp_path_factory.mktemp("runs")
    settings = make_settings(runs=runs, run_id="base", sources=(str(toys),), engine="serial", chunk=3_000)
    execute(make_spec(release("toy"), selection="h4l"), settings, planned=lambda _: None, progress=lambda _: None)
    return runs / "base"


@pytest.fixture(scope="module")
def asked(finished):
    with hzzray.explore(finished, engine="serial") as session:
        yield Asked(session, alone=True)


@pytest.fixture(scope="module")
def ask(asked):
    return lambda question: asked.recut(question, "", True)


@pytest.fixture(scope="module")
def sliders(asked, ask):
    return explore_charts.sliders(asked.about(), ask)


def slider(**changes) -> Slider:
    some = np.array([1.0, 4.0])
    usual = {"low": 0.0, "high": 100.0, "step": 0.5, "counts": False, "signal": some, "background": some}
    return Slider("x", "x [GeV]", **{**usual, **changes})


@pytest.mark.parametrize(
    ("bound", "ends", "says"),
    [
        (None, (0, 100), "no cut"),
        (Bound("x", 20), (20, 100), "> 20"),
        (Bound("x", high=20.5), (0, 20.5), "< 20.5"),
        (Bound("x", 20, 30), (20, 30), "20 – 30"),
    ],
)
def test_a_slider_stands_for_a_bound(bound, ends, says):
    one = slider()
    assert (one.ends(bound), one.says(bound)) == (ends, says)
    assert one.bound(ends) == (bound or Bound("x"))


def test_whole_numbers_are_kept_with_their_ends():
    one = slider(low=0.0, high=6.0, step=1.0, counts=True)
    assert one.bound((4.0, 6.0)) == Bound("x", 3.5)
    assert one.bound((2.0, 2.0)) == Bound("x", 1.5, 2.5)
    assert one.ends(Bound("x", 3.5)) == (4.0, 6.0)
    assert [one.says(Bound("x", 3.5)), one.says(Bound("x", 1.5, 2.5))] == ["≥ 4", "2"]


def test_thumbs_that_meet_leave_something_between():
    assert slider().bound((40.0, 40.0)) == Bound("x", 40.0, 40.5)
    assert slider().bound((100.0, 100.0)) == Bound("x", 99.5)


def test_moves_of_one_slider_are_one_step_back():
    own = {"m12": Bound("m12", 50, 106)}
    moved = Tuning().move(Bound("m12", 55, 106), own, 1.0).move(Bound("m12", 60, 106), own, 1.5)
    both = moved.move(Bound("pt1", 25), own, 2.0)
    assert both.cuts == (Bound("m12", 60, 106), Bound("pt1", 25))
    assert both.undo().cuts == (Bound("m12", 60, 106),)
    assert both.undo().undo() == Tuning()
    assert Tuning().undo() == Tuning()
    assert moved.move(Bound("m12", 65, 106), own, 9.0).undo().cuts == moved.cuts  # that was another step
    assert both.move(own["m12"], own, 3.0).cuts == (Bound("pt1", 25),)  # back where it was: no change
    assert both.put((), 4.0).undo().cuts == both.cuts
    assert both.put(both.cuts, 4.0) is both
    assert [moved.bound("m12", own), Tuning().bound("m12", own), Tuning((Bound("m12"),)).bound("m12", own)] == [
        Bound("m12", 60, 106), Bound("m12", 50, 106), None,
    ]  # fmt: skip


def test_a_cut_is_written_so_that_it_can_be_read():
    from hzzray.runs.request import bound_of

    for bound in (Bound("m12", 60.0, 106.25), Bound("pt1", 0.1), Bound("m34"), Bound("y4l", high=-2.0)):
        assert bound_of(bound_text(bound)) == bound
    assert bound_text(Bound("m12", 60.0, 106.25)) == "m12=60:106.25"


def test_each_variable_has_a_slider_with_its_histogram(sliders, asked):
    about = asked.about()
    assert list(sliders) == [variable.name for variable in about.variables]
    own = explore_charts.bounds(about.spec.selection.cuts)
    for name, one in sliders.items():
        assert one.low < one.high, name
        assert (one.high - one.low) / one.step < 400, name
        assert one.signal.sum() > 0, name
        if name in own:  # the cut can be loosened as well as tightened
            assert one.bound(one.ends(own[name])) == own[name], name
    assert sliders["n_leptons"].counts
    assert not sliders["m12"].counts
    assert 100 < sliders["m12"].high < 1000
    assert sliders["m_sfos"].low <= 5 - sliders["m_sfos"].step


def test_what_lies_behind_a_slider(sliders):
    one = sliders["m12"]
    drawn = explore_charts.behind(one, Bound("m12", 50, 106))
    shares = [float(share) for share in re.findall(r'class="away" style="\w+:0;width:([\d.]+)%', drawn)]
    wide = one.high - one.low
    assert shares == pytest.approx([100 * (50 - one.low) / wide, 100 * (one.high - 106) / wide], abs=0.01)
    assert explore_charts.behind(one, None).count("away") == 0
    counted = explore_charts.behind(slider(low=0.0, high=2.0, step=1.0, counts=True), Bound("x", 0.5))
    assert "left:0;width:25.00%" in counted  # to between 0 and 1
    assert explore_charts.silhouette(np.array([1.0, 4.0])) == (
        "polygon(0% 100%, 0.00% 75.0%, 50.00% 75.0%, 50.00% 0.0%, 100.00% 0.0%, 100% 100%)"
    )
    assert explore_charts.silhouette(np.zeros(3)) == "polygon(0 100%, 100% 100%)"


def test_data_of_the_window_are_hidden_and_no_others(ask):
    result = ask(Question()).first
    low, high = result.significance.window
    chart = charts.mass(result)
    hidden = explore_charts.blinded(chart, result, (low, high))
    for kind in ("data", "ratio"):
        before, after = (rows[rows["kind"] == kind] for rows in (chart.rows, hidden.rows))
        inside = (before["lo"] < high) & (before["hi"] > low)
        assert inside.any(), kind
        assert not ((after["lo"] < high) & (after["hi"] > low)).any(), kind
        assert len(after) == (~inside).sum() > 0, kind
    told = [str(value) for value in hidden.rows[hidden.rows["kind"] == "bin"].iloc[:, -1]]
    bins = hidden.rows[hidden.rows["kind"] == "bin"]
    inside = (bins["lo"] < high) & (bins["hi"] > low)
    last = max((name for name in bins.columns if re.fullmatch(r"w\d+", name)), key=lambda name: int(name[1:]))
    assert set(bins.loc[inside, last]) == {"hidden"}, told
    assert "hidden" not in set(bins.loc[~inside, last])
    other = ask(Question((), ("m4l", "m12"))).results["m12"]
    assert not (explore_charts.blinded(charts.mass(other), other, (low, high)).rows["kind"] == "data").any()


def test_counts_of_regions_add_up(ask):
    result = ask(Question()).first
    regions = [explore_charts.counts(result, region) for region in result.spec.analysis.regions]
    everything = explore_charts.counts(result)
    assert everything is result.significance
    for field in ("n_signal", "n_background", "n_data"):
        assert sum(getattr(one, field) for one in regions) == pytest.approx(getattr(everything, field)), field
    one = regions[1]
    assert one.asimov == pytest.approx(asimov(one.n_signal, one.n_background))


def test_a_scan_tells_what_each_threshold_gives(ask, sliders):
    one, own = sliders["pt1"], Bound("pt1", 20.0)
    values = explore_charts.thresholds(one)
    assert len(values) <= explore_charts.THRESHOLDS
    assert values[0] == one.low
    points = []
    for value in values[::6]:
        bound = explore_charts.with_threshold(one, own, value, above=True)
        points.append(explore_charts.point(value, ask(Question((bound,))).first))
        direct = ask(Question((Bound("pt1", value if value > one.low else None),))).first.significance
        assert points[-1].asimov == direct.asimov
    top = explore_charts.best(points)
    assert top.asimov == max(point.asimov for point in points if point.asimov is not None)
    upper = explore_charts.with_threshold(sliders["m12"], Bound("m12", 50, 106), 90.0, above=False)
    assert upper == Bound("m12", 50, 90)
    drawn = explore_charts.scan_chart(points, one, 20.0, above=True).rows
    assert set(drawn["kind"]) == {"scan", "now", "best"}


def test_the_error_of_a_significance_is_that_of_its_counts(ask):
    result = ask(Question()).first
    point = explore_charts.point(0.0, result)
    s, b = point.signal, point.background
    signal = [group for group in result.groups.values() if group.role == "signal"]
    inside = result.spec.axis.window(*result.significance.window)
    s_error = math.sqrt(sum(sum(group.sumw2[inside]) for group in signal))
    b_error = result.significance.n_background_error
    chance = np.random.default_rng(5)
    thrown = [asimov(x, y) for x, y in zip(
        chance.normal(s, 0.1 * s_error, 4000), chance.normal(b, 0.1 * b_error, 4000), strict=True
    )]  # fmt: skip
    assert point.error == pytest.approx(10 * np.std(thrown), rel=0.08)


def test_every_cut_but_one(ask, asked, sliders):
    first = asked.about().spec.templates[0]
    questions = explore_charts.all_but_one(["m12", "m4l"], sliders, (Bound("m12", 60, 106),), first)
    found = ask(questions["m12"])
    bounds = explore_charts.bounds(found.cuts)
    assert "m12" not in bounds
    assert "m34" in bounds
    assert list(ask(questions["m4l"]).results) == ["m4l"]
    chart = explore_charts.but_one_chart(found.results["m12"], sliders["m12"], Bound("m12", 60, 106), data=False)
    assert set(chart.rows["kind"]) == {"stack", "away"}
    assert "data" in set(
        explore_charts.but_one_chart(found.results["m12"], sliders["m12"], None, data=True).rows["kind"]
    )


def test_candidates_as_a_table_and_drawn(asked):
    found = asked.candidates(Question(), (115.0, 130.0), ())
    table = explore_charts.listed(found, ["m4l", "m12"])
    assert table["m4l"].between(115, 130).all()
    assert list(table.columns[:6]) == ["run", "event", "region", "m4l", "m12", "leptons"]
    read = pd.read_csv(io.StringIO(explore_charts.as_csv(found)))
    assert read["m4l"].tolist() == pytest.approx([one.values["m4l"] for one in found])
    one = found[0]
    assert len(one.leptons) == 4
    rows = explore_charts.display(one, "r-phi").rows
    assert np.hypot(rows["x"], rows["y"]).tolist() == pytest.approx([lepton.pt for lepton in one.leptons])
    assert np.arctan2(rows["y"], rows["x"]).tolist() == pytest.approx([lepton.phi for lepton in one.leptons])
    along = explore_charts.display(one, "r-z").rows
    etas = [math.copysign(math.asinh(abs(x) / abs(y)), x) for x, y in zip(along["x"], along["y"], strict=True)]
    assert etas == pytest.approx([lepton.eta for lepton in one.leptons], rel=1e-6)


def test_candidates_without_four_leptons_have_none_to_show(asked):
    """Of dileptons and photons the page offered leptons, and said that they could not be read."""
    found = [dataclasses.replace(one, leptons=()) for one in asked.candidates(Question(), (115.0, 130.0), ())]
    assert "leptons" not in explore_charts.listed(found, ["m4l"])
    measured = [f"{name}{i}" for name in ("pt", "eta") for i in range(1, 5)]
    assert explore_charts.draws_leptons(measured)
    assert not explore_charts.draws_leptons(measured[:-1])


# The page, and the process that answers.


@pytest.fixture
def runs(tmp_path, monkeypatch, finished):
    """An app over a copy of the run, whose sessions do without Ray."""
    monkeypatch.chdir(tmp_path)
    for name in ("HZZRAY_ADDRESS", "HZZRAY_APP_PASSWORD", "HZZRAY_APP_PASSWORD_FILE", "HZZRAY_SOURCES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HZZRAY_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HZZRAY_EXPLORE", "serial")
    shutil.copytree(finished, tmp_path / "runs" / "base")
    services.clear()
    yield tmp_path / "runs"
    services().sessions.close()
    services.clear()


def explored(run_id) -> AppTest:
    """Open the page of a run, and start its session."""
    test = AppTest.from_file(MAIN, default_timeout=120)
    test.query_params["run"] = run_id
    test.run().switch_page("views/explore.py").run()
    press(test, "Start exploring")
    wait_for("the session", lambda: services().sessions.find(run_id).is_ready, 120)
    test.run()
    assert not test.exception, test.exception
    return test


def test_the_page_from_its_start_to_a_kept_run(runs):
    own = load_json(runs / "base")
    test = explored("base")
    assert figures(test)["Expected"] == (f"{own.significance.asimov:.2f} σ", "as in the run")
    assert figures(test)["Data"][0] == str(own.significance.n_data)  # these cuts were run
    assert own.digest[:16] in said(test)
    # Walk of a newcomer: a switch was on, and hid nothing.
    (nothing,) = [toggle for toggle in test.toggle if toggle.label == "Hide the data in the window"]
    assert (nothing.value, nothing.disabled) == (False, True)
    assert nothing.proto.help == "These cuts were run: nothing is hidden."
    assert "These cuts were run: nothing is hidden." in said(test)
    error = f"± {own.significance.n_background_error:.2f} statistics · as in the run"
    assert figures(test)["Background"][1] == error

    one = next(one for one in test.slider if one.key == "slider-base-m12")
    one.set_value((one.value[0], 92.0)).run()
    assert not test.exception, test.exception
    assert figures(test)["Data"][0] == "hidden"
    assert "The data in the window are hidden" in said(test)
    (hide,) = [toggle for toggle in test.toggle if toggle.label == "Hide the data in the window"]
    assert (hide.value, hide.disabled) == (True, False)
    moved = figures(test)["Signal"][0]
    assert moved != f"{own.significance.n_signal:.2f}"
    assert test.query_params["cut"] == "m12=50:92"
    hide = next(toggle for toggle in test.toggle if toggle.key == "blind")
    hide.set_value(False).run()
    assert figures(test)["Data"][0] != "hidden"
    press(test, "Undo")  # the switch goes, and what was chosen stays
    one.set_value((one.value[0], 92.0)).run()
    hide = next(toggle for toggle in test.toggle if toggle.key == "blind")
    assert (hide.value, figures(test)["Data"][0] != "hidden") == (False, True)
    hide.set_value(True).run()

    there = AppTest.from_file(MAIN, default_timeout=120)
    there.query_params["run"] = "base"
    there.run().switch_page("views/actors.py").run()
    (table,) = [one.value for one in there.dataframe if "hot" in one.value]
    assert table["actor"].tolist() == ["explorer-0"]
    assert table["hot"][0] == services().sessions.find("base").standing().nbytes / 2**20 > 0

    press(test, "Undo")
    assert figures(test)["Signal"][0] == f"{own.significance.n_signal:.2f}"
    assert "cut" not in test.query_params
    next(one for one in test.slider if one.key == "slider-base-m12").set_value((50.0, 92.0)).run()
    for tab in ("Cutflow", "Best cut", "Every cut but one", "Events", "Keep as a run"):
        test.session_state["more"] = tab
        test.run()
        assert not test.exception, (tab, test.exception)
        assert not [text for text in said(test).splitlines() if "can't be shown" in text], tab
    name = next(one for one in test.text_input if one.label == "Name of the run to keep")
    name.set_value("kept").run()
    press(test, "Keep this as a run")
    kept = load_json(runs / "kept")
    assert kept.digest in said(test)
    assert figures(test)["Signal"][0] == moved == f"{kept.significance.n_signal:.2f}"
    assert figures(test)["Data"][0] == str(kept.significance.n_data)  # now they were run
    line = next(code.value for code in test.code if code.value.startswith("hzzray run"))
    words = shlex.split(line)
    assert words[words.index("--cut") + 1] == "m12=50:92"


def test_the_address_says_what_is_shown(runs):
    """Who came back from another page had cuts that the address lacked; another run's cuts were taken over."""
    test = explored("base")
    next(one for one in test.slider if one.key == "slider-base-m12").set_value((50.0, 92.0)).run()
    next(one for one in test.text_input if one.key == "window-base").set_value("115:135").run()
    assert test.query_params["cut"] == "m12=50:92"
    moved = figures(test)["Signal"]
    test.switch_page("views/live.py").run()
    test.switch_page("views/explore.py").run()
    assert figures(test)["Signal"] == moved
    assert test.query_params["cut"] == "m12=50:92"

    there = AppTest.from_file(MAIN, default_timeout=120)
    there.query_params |= {"run": "base", "cut": "m12=50:92", "window-base": "115:135"}
    there.run().switch_page("views/explore.py").run()
    assert figures(there)["Signal"] == moved

    shutil.copytree(runs / "base", runs / "other")
    services().sessions.begin(runs / "other")
    wait_for("the session", lambda: services().sessions.find("other").is_ready, 120)
    test.run()
    test.selectbox(key="run").set_value("other").run()
    assert figures(test)["Signal"][1] == "as in the run"
    assert "cut" not in test.query_params
    test.selectbox(key="run").set_value("base").run()
    assert figures(test)["Signal"] == moved
    assert test.query_params["cut"] == "m12=50:92"


def test_a_variable_with_bounds_in_several_rows_is_not_moved_but_taken_away(runs, toys):
    """As ``flavour`` of the example zmumu: one bound can't take the place of two."""
    spec = make_spec(release("toy"), selection="h4l")
    cuts = (*spec.selection.cuts, Cut("heavy Z", (Bound("m12", 70.0),)))
    twice = spec.model_copy(update={"selection": dataclasses.replace(spec.selection, cuts=cuts)})
    sources = (str(toys),)
    settings = make_settings(runs=runs, run_id="twice", sources=sources, engine="serial", chunk=3_000)
    execute(twice, settings, planned=lambda _: None, progress=lambda _: None)
    test = explored("twice")
    assert [one.key for one in test.slider if one.disabled] == ["slider-twice-m12"]
    assert "Several rows have a bound on it: Z1 window, heavy Z." in said(test)
    before = figures(test)["Background"][0]
    next(one for one in test.toggle if one.key == "on-slider-twice-m12").set_value(False).run()
    assert not test.exception, test.exception
    assert figures(test)["Background"][0] != before


@pytest.mark.parametrize(("engine", "starts"), [("serial", "A process and its kernels"), ("ray", "Ray, its workers")])
def test_a_session_that_starts_says_what_goes_on(runs, monkeypatch, engine, starts):
    """Walk of a newcomer: 49 s of "0.0 % of the run is in memory", and no word of Ray or of kernels."""
    monkeypatch.setenv("HZZRAY_EXPLORE", engine)
    services.clear()

    class Loading:
        is_ready, trouble, about, begun, part = False, None, None, 0.0, 0.0

        def loaded(self):
            return self.part

    session = Loading()
    monkeypatch.setattr(services().sessions, "find", lambda _: session)
    test = AppTest.from_file(MAIN, default_timeout=60)
    test.query_params["run"] = "base"
    test.run().switch_page("views/explore.py").run()
    (bar,) = test.get("progress")
    assert bar.proto.text.startswith(f"{starts}")
    assert "The first time kernels are compiled for this machine" in said(test)
    session.about, session.part = object(), 0.5
    test.run()
    (bar,) = test.get("progress")
    assert bar.proto.text == "50.0 % of the run is in memory"
    assert "kernels" not in said(test)


def test_a_session_says_why_it_is_none(runs, tmp_path):
    (runs / "base" / "ledger.db").unlink()
    session = Exploring(runs / "base", "serial", None)
    wait_for("the end", lambda: session.trouble is not None, 60)
    assert "its ledger.db is gone" in session.trouble
    with pytest.raises(ClusterError, match=r"The session has ended: .*its ledger.db is gone"):
        session.recut(Question())
    session.close()


def test_a_session_whose_process_dies_is_told_and_begun_anew(runs):
    sessions = services().sessions
    first = sessions.begin(runs / "base")
    assert sessions.begin(runs / "base") is first
    wait_for("the session", lambda: first.is_ready or first.trouble is not None, 120)
    with pytest.raises(UsageError, match="no variable 'm5'"):
        first.recut(Question((Bound("m5", 1.0),)))
    answered = first.recut(Question((Bound("m12", 60.0),)))
    assert first.recut(Question((Bound("m12", 60.0),))) is answered
    first._process.kill()
    wait_for("word of it", lambda: first.trouble is not None, 30)
    with pytest.raises(ClusterError, match="its process ended"):
        first.recut(Question((Bound("m12", 61.0),)))
    again = sessions.begin(runs / "base")
    assert again is not first
    wait_for("the next session", lambda: again.is_ready, 120)
    assert again.recut(Question((Bound("m12", 60.0),))).digest == answered.digest


def test_a_session_that_nobody_asks_ends(runs, monkeypatch):
    from app import sessions as module

    monkeypatch.setattr(module, "IDLE_S", 0.0)
    monkeypatch.setattr(module, "TICK_S", 0.05)
    mine = module.Sessions("serial")
    session = mine.begin(runs / "base")
    wait_for("its end", lambda: session.trouble is not None, 60)
    assert mine.find("base") is None
    wait_for("its process to end", lambda: session._process.poll() is not None, 10)


def test_the_app_itself_does_without_numerics():
    """What explores is a process of its own: the server would start later, and each of its processes be larger."""
    code = "import sys; import app.services; assert not {'numba', 'ray'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[1])
