"""Exploring sessions: re-cuts of a run against runs that read everything."""

import json
import shlex

import hist
import numpy as np
import pytest
import uhi.io.json

import hzzray
from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.errors import UsageError
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from hzzray.runs.run import execute, make_settings, settings_of


def run(runs, toys, run_id, **chosen):
    """Do a run in this process; returns its result."""
    options = {"selection": "h4l", **chosen}
    settings = make_settings(runs=runs, run_id=run_id, sources=(str(toys),), engine="serial", chunk=3_000)
    return execute(make_spec(release("toy"), **options), settings, planned=lambda _: None, progress=lambda _: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, toys):
    """Runs of the toys: the preset, and the same with other cuts and observables."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder, toys, "base")
    changes = {"cuts": ["m12=60:100", "pt1=25:", "m34=12:", "dr_same=:"], "observables": ["m12", "pt4l=0:300:30"]}
    run(folder, toys, "other", **changes)
    return folder


CUTS = {"m12": (60, 100), "pt1": (25, None), "m34": (12, None), "dr_same": None}
OBSERVABLES = ["m12", "pt4l=0:300:30"]


@pytest.fixture(scope="module")
def session(runs):
    with hzzray.explore("base", runs=runs, engine="serial") as one:
        yield one


def test_without_changes_the_run_is_answered(session, runs):
    answer = session.recut()
    cold = load_json(runs / "base")
    assert (answer.digest, answer.fraction, answer.failed) == (cold.digest, 1.0, ())
    assert answer.spec == cold.spec


def test_a_recut_is_what_a_run_of_it_is(session, runs):
    answer = session.recut(CUTS, observables=OBSERVABLES)
    cold = load_json(runs / "other")
    assert answer.spec.digest == cold.spec.digest
    assert answer.digest == cold.digest
    assert answer.read == 0
    same = {"run_id", "cost"}
    assert answer.result.model_dump(exclude=same) == cold.model_dump(exclude=same)


def test_a_histogram_is_that_of_the_runs_file(session, runs):
    answer = session.recut(CUTS, observables=OBSERVABLES)
    file = json.loads((runs / "other" / "templates.json").read_text(), object_hook=uhi.io.json.object_hook)
    for name in ("m12", "pt4l"):
        assert answer.hist(name) == hist.Hist(file[name])
    assert answer.hist() == answer.hist("m12")
    assert answer.hist("m12").sum().value > 0
    with pytest.raises(UsageError, match="no observable 'm4l' in this answer; it has m12, pt4l"):
        answer.hist("m4l")


def test_a_recut_is_kept_as_a_run_of_the_same_digest(session, runs, toys):
    answer = session.recut(CUTS, observables=OBSERVABLES)
    folder = session.keep(answer, "kept")
    kept, cold = load_json(folder), load_json(runs / "other")
    assert (kept.digest, kept.status, kept.tasks.merged) == (cold.digest, "complete", kept.tasks.planned)
    assert (folder / "templates.json").read_text().replace("kept", "other") == (
        runs / "other" / "templates.json"
    ).read_text()
    spec, settings = settings_of(folder)
    assert (spec.digest, settings.sources) == (cold.spec.digest, (str(toys),))
    with Ledger.open(folder / "ledger.db") as ledger:
        assert not ledger.counts().due
    with pytest.raises(UsageError, match="run kept exists"):
        session.keep(answer, "kept")


def test_its_command_line_makes_it(session, runs, toys):
    answer = session.recut(CUTS, observables=OBSERVABLES)
    words = shlex.split(session.command(answer))
    assert words[:4] == ["hzzray", "run", "--release", "toy"]
    options = list(zip(words[2::2], words[3::2], strict=True))
    assert ("--source", str(toys)) in options
    cuts = [value for name, value in options if name == "--cut"]
    observables = [value for name, value in options if name == "--observable"]
    (selection,) = [value for name, value in options if name == "--selection"] or ["h4l"]
    made = make_spec(release("toy"), selection=selection, cuts=cuts, observables=observables)
    assert made.digest == load_json(runs / "other").spec.digest


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cuts": {"m5": (1, 2)}}, "analysis h4l has no variable 'm5'"),
        ({"cuts": {"m12": (100, 60)}}, "nothing is above 100 and below 60"),
        ({"cuts": {"m12": 60}}, r"cut on m12: expected \(low, high\) or None, not 60"),
        ({"cuts": {"m12": (np.nan, 60)}}, "nan is no number"),
        ({"observables": ["m12=1:2"]}, "expected START:STOP:BINS"),
        ({"observables": ["charge"]}, "give its axis too"),
        ({"axis": (80, 250, 33)}, "give a window too"),
        ({"window": (117, 130)}, "doesn't lie on bin edges"),
    ],
)
def test_mistakes_are_told_in_one_line(session, asked, said):
    with pytest.raises(UsageError, match=said):
        session.recut(**asked)


def test_there_must_be_such_a_run(runs):
    with pytest.raises(UsageError, match="no such run"):
        hzzray.explore("nothing", runs=runs, engine="serial")
