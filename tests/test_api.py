"""What scripts and notebooks call: ``hzzray.run``, ``hzzray.open_run`` and the ``Run`` that they return."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import threading

import hist
import numpy as np
import pytest
import uhi.io.json

import hzzray
from hzzray import api
from hzzray.errors import UsageError
from hzzray.runs.request import RunRequest
from hzzray.runs.run import StoppedError

CUTS = {"m12": (60, 106), "pt1": (25, None)}


@pytest.fixture(scope="module")
def run(toys, tmp_path_factory, compiled):
    """A run of few events, in this process."""
    return hzzray.run(
        sources=toys, runs=tmp_path_factory.mktemp("runs"), run_id="mine", selection="h4l", cuts=CUTS,
        observables={"m4l": (80, 250, 34), "m12": (40, 120, 40)}, engine="serial", progress=False,
    )  # fmt: skip


def test_importing_it_is_light():
    """What a notebook's first line costs, and what the command line's help waits for."""
    said = subprocess.run(
        [sys.executable, "-c", "import hzzray, sys; dir(hzzray); print(sorted({'numpy', 'ray'} & sys.modules.keys()))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "[]"


def test_it_is_the_command_lines_own_run(run, cli, toys, tmp_path):
    code, _, err = cli(
        "run", "--source", toys, "--runs", tmp_path, "--run-id", "cli", "--engine", "serial", "--selection", "h4l",
        "--cut", "m12=60:106", "--cut", "pt1=25:", "--observable", "m4l=80:250:34", "--observable", "m12=40:120:40",
    )  # fmt: skip
    assert code == 0, err
    theirs = hzzray.open_run("cli", runs=tmp_path)
    assert (theirs.digest, theirs.spec.digest, theirs.status) == (run.digest, run.spec.digest, "complete")
    assert {path.name for path in run.path.iterdir()} == {path.name for path in theirs.path.iterdir()}
    assert hzzray.open_run(run.path) == run


def test_all_options_of_a_run_are_its_parameters():
    names = list(inspect.signature(hzzray.run).parameters)
    assert names[:3] == ["release", "runs", "progress"]
    assert set(names) - {"runs", "progress"} == set(RunRequest.model_fields)
    for name in RunRequest.model_fields:
        assert name in hzzray.run.__doc__, name
    assert {"run", "open_run", "explore", "Run"} <= set(dir(hzzray))


def test_its_histograms_are_those_of_the_file(run):
    file = json.loads((run.path / "templates.json").read_text(), object_hook=uhi.io.json.object_hook)
    assert run.observables == ("m4l", "m12")
    assert run.hist() == run.hist("m4l") == hist.Hist(file["m4l"])
    assert run.hist("m12") == hist.Hist(file["m12"])
    assert run.hist("m12").sum(flow=True).value > 0
    with pytest.raises(UsageError, match="has no observable 'm34'; it has m4l, m12"):
        run.hist("m34")


def test_a_histogram_by_group_is_that_of_the_result(run):
    result = run.result
    made = run.hist("m4l", by="group")
    assert [axis.name for axis in made.axes] == ["group", "region", "m4l"]
    for i, group in enumerate(result.groups.values()):
        shown = made[i, sum, :].view(flow=True)
        np.testing.assert_allclose(shown.value, [group.underflow, *group.sumw, group.overflow], rtol=1e-12)
        np.testing.assert_allclose(shown.variance[1:-1], group.sumw2, rtol=1e-12)
    other = run.hist("m12", by="group")
    assert other.shape == (len(result.groups), 3, 40)
    np.testing.assert_allclose(other.sum(flow=True).value, made.sum(flow=True).value, rtol=1e-12)


def test_its_tables_are_data_frames(run):
    result = run.result
    flow = run.cutflow("sample")
    zee = result.samples["Zee"]
    assert list(flow.loc["Zee"].index) == list(result.spec.rows)
    assert list(flow.loc["Zee"]["n"]) == [row.n for row in zee.cutflow]
    assert flow.loc["Zee", "all"]["absolute"] == 1
    yields = run.yields()
    assert list(yields.index) == list(result.samples)
    assert yields.loc["llll", "with_flow"] == result.samples["llll"].yield_
    assert yields.loc["llll", "on_axis"] == pytest.approx(sum(result.samples["llll"].sumw))
    groups = run.yields("group")
    assert groups[groups.role == "background"]["in_window"].sum() == pytest.approx(run.significance.n_background)
    assert run.yields("group", observable="m12")["in_window"].isna().all()


def test_without_pandas_it_says_what_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="data frames need pandas: pip install pandas"):
        run.yields()


def test_it_tells_itself(run, tmp_path):
    lines = repr(run).splitlines()
    assert lines[0] == "Run mine (toy, h4l*)"
    assert lines[1] == "complete: 12 tasks planned = 12 merged + 0 failed"
    assert re.fullmatch(r"115 to 130 GeV: \d\.\d\d σ expected, -?\d\.\d\d σ observed", lines[2])
    assert run.digest[:16] in lines[3]
    assert repr(api.Run(tmp_path / "gone")) == f"Run gone: {tmp_path}/gone: no such run, or one that has no result yet"
    assert "no such run" in api.Run(tmp_path / "gone")._repr_html_()


def test_in_a_notebook_it_is_one_self_contained_card(run):
    shown = run._repr_html_()
    assert "data:image/png;base64," in shown
    assert run.digest in shown
    assert "σ expected" in shown
    assert not re.search(r"<script|https?://|<link", shown)
    assert len(shown) < 300_000
    assert run.plot("m12", channel="4mu", log=True)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"cut": {"m12": (1, 2)}}, "no option 'cut': did you mean cuts?"),
        ({"colour": "red"}, "no option 'colour'; there are release, sources, samples"),
        ({"cuts": {"m12": 60}}, r"cut on m12: expected \(low, high\) or None, not 60"),
        ({"cuts": {"m12": ("a", "b")}}, r"cut on m12: expected \(low, high\) or None, not \('a', 'b'\)"),
        ({"cuts": {"m12": (float("nan"), 60)}}, "nan is no number to compare with"),
        ({"cuts": {"m12": (106, 60)}}, "nothing is above 106 and below 60"),
        ({"observables": {"m56": (0, 1, 1)}}, "has no variable 'm56'"),
        ({"axis": (80, 250)}, "expected START:STOP:BINS"),
        ({"fraction": 2}, "fraction: must be 1 or less, not 2"),
        ({"selection": "best"}, "no selection 'best'"),
        ({"sources": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_mistakes_get_one_line(chosen, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        hzzray.run(runs=tmp_path / "runs", engine="serial", progress=False, **{"sources": tmp_path, **chosen})
    assert "\n" not in str(caught.value)
    assert caught.value._render_traceback_() == [f"UsageError: {caught.value}"]
    assert not (tmp_path / "runs").exists()


def test_no_such_run(tmp_path):
    with pytest.raises(UsageError, match="absent: no such run"):
        hzzray.open_run("absent", runs=tmp_path)


def test_without_files_toys_are_simulated_and_progress_is_told(tmp_path, monkeypatch, capfd, compiled):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HZZRAY_RUNS", str(tmp_path / "kept"))
    made = hzzray.run("toy", events=300, engine="serial", samples=["Zee", "data_A"])
    assert made.status == "complete"
    assert made.path.parent == tmp_path / "kept"
    out, err = capfd.readouterr()
    assert out == ""
    assert "simulating 300 events" in err
    assert "2 of 2 tasks merged, 0 failed" in err


def test_an_interrupt_drains_and_the_same_call_goes_on(toys, tmp_path, monkeypatch, compiled):
    few = ("data_A", "Zee", "llll")
    options = {"sources": toys, "runs": tmp_path, "run_id": "stopped", "engine": "serial", "samples": few, "chunk": 700}
    pressed = threading.Event()
    heard = threading.Event()

    class Impatient(api._Silence):
        def hear(self, counts):
            heard.set()
            pressed.wait(20)  # so that something is left when it is heard of

        def look(self):
            if heard.is_set() and not pressed.is_set():
                threading.Timer(0.5, pressed.set).start()
                raise KeyboardInterrupt

    monkeypatch.setattr(api, "_Silence", Impatient)
    with pytest.raises(StoppedError, match="tasks left; the same --run-id goes on with them"):
        hzzray.run(progress=False, **options)
    monkeypatch.undo()
    assert hzzray.open_run("stopped", runs=tmp_path).status == "running"
    whole = hzzray.run(progress=False, **options)
    assert whole.status == "complete"
    assert whole.digest == hzzray.run(progress=False, **options | {"run_id": "straight"}).digest
