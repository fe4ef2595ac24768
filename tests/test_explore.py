"""Exploring sessions: re-cuts of a run against runs that read everything."""

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sqlite3
import threading
import time
from types import SimpleNamespace

import hist
import numpy as np
import pyarrow.feather
import pytest
import uhi.io.json
import uproot
from pyarrow import parquet
from ray.exceptions import RayActorError

import hzzray
from hzzray import explore_cli
from hzzray.data.catalogue import release
from hzzray.engine import coordinator
from hzzray.engine.cluster import ClusterError
from hzzray.engine.explore_messages import OvertakenError
from hzzray.engine.hot import HotWorker
from hzzray.engine.ledger import Ledger
from hzzray.engine.worker import Worker
from hzzray.errors import TransientError, UsageError
from hzzray.physics.analysis import RESERVED, Variation
from hzzray.physics.selection import H4L
from hzzray.runs.explore import command
from hzzray.runs.folder import RunFolder, load_json
from hzzray.runs.plan import make_plan
from hzzray.runs.request import RunRequest, make_spec
from hzzray.runs.run import execute, make_settings, settings_for, settings_of
from hzzray.runs.tables import read_usage
from tests.support.waiting import wait_for

CHANGES = {"cuts": ["m12=60:100", "pt1=25:", "m34=12:", "dr_same=:"], "observables": ["m12", "pt4l=0:300:30"]}


def run(runs, toys, run_id, engine="serial", **chosen):
    """Do a run, by default in this process; returns its result."""
    options = {"selection": "h4l", **chosen}
    settings = make_settings(runs=runs, run_id=run_id, sources=(str(toys),), engine=engine, chunk=3_000)
    return execute(make_spec(release("toy"), **options), settings, planned=lambda _: None, progress=lambda _: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, toys):
    """Runs of the toys: the preset, and the same with other cuts and observables."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder, toys, "base")
    run(folder, toys, "other", **CHANGES)
    return folder


CUTS = {"m12": (60, 100), "pt1": (25, None), "m34": (12, None), "dr_same": None}
OBSERVABLES = ["m12", "pt4l=0:300:30"]
DATA = {"data_A", "data_B", "data_C", "data_D"}
WEIGHTS = [one.name for one in release("toy").variations if not one.kinematic]


@pytest.fixture(scope="module")
def session(runs):
    with hzzray.explore("base", runs=runs, engine="serial") as one:
        one.recut()  # all is read: what follows answers from memory
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
    spec, settings = settings_of(RunFolder(folder))
    assert (spec.digest, settings.sources) == (cold.spec.digest, (str(toys),))
    with Ledger.open(folder / "ledger.db") as ledger:
        assert not ledger.counts().due
    with pytest.raises(UsageError, match="run kept exists"):
        session.keep(answer, "kept")


def test_hot_candidates_fill_another_runs_tasks_as_its_own_worker_does(runs, toys):
    (spec, _), (other, _) = (settings_of(RunFolder(runs / name)) for name in ("base", "other"))
    with Ledger.open(runs / "base" / "ledger.db") as base, Ledger.open(runs / "other" / "ledger.db") as ledger:
        tasks, others = ([task for file in one.laid_out()[0] for task in file.tasks] for one in (base, ledger))
    hot = HotWorker(spec, (str(toys),), tasks, name="explorer-0")
    assert hot.lend(other) == frozenset()  # nothing is hot yet
    assert [str(one).endswith("are not hot") for one in hot.fill(other, others)] == [True] * len(others)
    for number in range(len(tasks) - 1):
        hot.load(number)
    assert hot.lend(other) == {task.range for task in others[:-1]}
    *filled, last = hot.fill(other, others)
    assert isinstance(last, TransientError)
    own = Worker(other, (str(toys),))
    for partial, task in zip(filled, others, strict=False):
        assert (partial.task, partial.packed) == (task, own.process(task).packed)
    for changes, lent in (
        ({"luminosity": 5.0}, DATA),  # of which nothing is scaled
        ({"variations": ["all"]}, DATA),  # of which nothing varies; leptons with another pt aren't kept
        ({"variations": ["pileup"]}, DATA),  # what weights are without it isn't kept
        ({"variations": ["trigger", "muon_efficiency"]}, {task.sample for task in others[:-1]}),
        ({"parameters": ["electron_pt_min=9"]}, set()),
    ):
        another = make_spec(release("toy"), selection="h4l", **changes)
        assert {one.sample for one in hot.lend(another)} == lent, changes
    usage = hot.usage()[0]
    assert (usage.tasks, usage.hot) == (len(others) - 1, hot.cache_status().usage.hot)
    assert 0 < usage.hot < usage.rss
    hot.close()
    own.close()


@pytest.mark.parametrize(
    ("before", "asked_for"), [([], [name for name in WEIGHTS if name != "pileup"]), (["all"], WEIGHTS)]
)
def test_variations_of_the_weight_are_filled_of_hot_candidates_too(runs, before, asked_for):
    settings = settings_of(RunFolder(runs / "base"))[1]
    spec = make_spec(release("toy"), selection="h4l", variations=before)
    varied = make_spec(release("toy"), selection="h4l", variations=asked_for, cuts=CHANGES["cuts"])
    tasks, others = (make_plan(one, "r", settings.sources, chunk=3_000).tasks for one in (spec, varied))
    hot = HotWorker(spec, settings.sources, tasks, name="explorer-0")
    some = [number for number, task in enumerate(tasks) if task.sample in ("ggH125_ZZ4lep", "llll", "data_A")]
    for number in some:
        hot.load(number)
    own = Worker(varied, settings.sources)
    asked = [others[number] for number in some]
    for partial, task in zip(hot.fill(varied, asked), asked, strict=True):
        assert (partial.task, partial.packed) == (task, own.process(task).packed)
    hot.close()
    own.close()


def test_a_run_with_other_weights_is_explored_and_lends_them(runs):
    toy = release("toy")
    other = Variation("other", "branch", factor="scaleFactor_PILEUP", branches=("scaleFactor_ELE", "scaleFactor_MUON"))
    spec = make_spec(toy.model_copy(update={"variations": (other,)}), selection="h4l", variations=["other"])
    settings = settings_of(RunFolder(runs / "base"))[1]
    tasks = make_plan(spec, "r", settings.sources, chunk=3_000).tasks
    hot, own = HotWorker(spec, settings.sources, tasks), Worker(spec, settings.sources)
    number = next(i for i, task in enumerate(tasks) if task.sample == "ggH125_ZZ4lep")
    hot.load(number)
    (partial,) = hot.fill(spec, [tasks[number]])
    assert partial.packed == own.process(tasks[number]).packed
    hot.close()
    own.close()


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


@pytest.mark.parametrize("whose", ["named", "gone", "nobody's"])
def test_the_command_line_names_the_catalogue_that_the_release_is_of(tmp_path, toys, whose):
    """It was refused: the release was looked for in our own catalogue alone."""
    catalogue = tmp_path / "my own.yaml"
    catalogue.write_text("mine: {extends: toy, luminosity: 5.0}\n")
    request = RunRequest(release="mine", catalogue=catalogue, sources=(str(toys),), samples=("llll",), run_id="a")
    spec = make_spec(release("mine", catalogue), request)
    settings = settings_for(request, request.sources, tmp_path)
    kept = json.loads(settings.model_dump_json())
    assert make_settings(**kept) == settings
    if whose == "gone":
        catalogue.unlink()
    elif whose == "nobody's":
        settings = make_settings(**{**kept, "catalogue": None})
    line = command(spec, settings)
    words = shlex.split(line, comments=True)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert (options["--release"], options["--samples"], options["--source"]) == ("mine", "llll", str(toys))
    if whose == "named":
        assert options["--catalogue"] == str(catalogue)
        assert "--luminosity" not in options
    else:
        assert line.endswith("  # and --catalogue FILE.yaml, with the file that has release mine")
        assert options["--luminosity"] == "5"


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


def test_what_has_no_room_is_read_again_to_the_same_bits(runs):
    with hzzray.explore("base", runs=runs, engine="serial") as whole:
        whole.recut()
        bound = whole.standing().nbytes // 4
    with hzzray.explore("base", runs=runs, engine="serial", memory=bound) as session:
        answers = [session.recut(CUTS, observables=OBSERVABLES) for _ in range(3)]
        standing = session.standing()
    assert {answer.digest for answer in answers} == {load_json(runs / "other").digest}
    assert 0 < standing.nbytes <= bound == standing.bound
    # What was hot is taken first, before what must be read drives it out.
    assert [0 < answer.read < standing.ranges for answer in answers] == [False, True, True]


def test_candidates_have_their_leptons(session):
    answer = session.recut({}, observables=["m4l"])
    rows = session.candidates(answer, (80, 250), samples=["llll", "ttbar_lep"], limit=30)
    assert len(rows) == 30
    for row in rows:
        assert {row.sample} <= {"llll", "ttbar_lep"}
        assert 80 <= row.values["m4l"] < 250
        assert row.run is not None
        assert row.event is not None
        assert [lepton.pt for lepton in row.leptons] == [row.values[f"pt{i}"] for i in range(1, 5)]
        assert sum(lepton.charge for lepton in row.leptons) == 0
        flavours = {"4e": [11] * 4, "4mu": [13] * 4, "2e2mu": [11, 11, 13, 13]}
        assert sorted(lepton.flavour for lepton in row.leptons) == flavours[row.region]
        vectors = [momentum(lepton) for lepton in row.leptons]
        assert mass(sum(vectors)) == pytest.approx(row.values["m4l"], rel=1e-3)  # of massless leptons
    assert len(session.candidates({}, samples=["llll"], limit=5000)) == 1000
    everything = session.recut(CUTS, observables=["m4l=0:100000:1"], window=(0, 100000))
    data = session.candidates(everything)
    n = sum(everything.result.samples[name].n_out for name in everything.result.samples if name.startswith("data"))
    assert len(data) == n


def momentum(lepton):
    pt, eta, phi = lepton[:3]
    return np.array([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)])


def mass(p):
    return np.sqrt(p[0] ** 2 - (p[1:] ** 2).sum())


NAMED = ("sample", "region", "file")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "root"])
def test_a_skim_has_every_candidate_with_its_weight_and_where_it_is_from(cli, runs, tmp_path, kind):
    out = tmp_path / f"candidates.{kind}"
    cut = ["--cut", "m12=60:100", "--cut", "pt1=25:"]
    code, said, _ = cli("skim", "base", "--runs", runs, "--out", out, "--engine", "serial", *cut)
    assert code == 0
    with hzzray.explore("base", runs=runs, engine="serial") as session:
        answer = session.recut({"m12": (60, 100), "pt1": (25, None)})
        listed = session.candidates(answer, samples=["llll"], limit=50)
    samples = answer.result.samples
    if kind == "root":
        with uproot.open(out) as file:
            columns = file["candidates"].arrays(library="np")
            named = {name: np.array(str(file[f"{name}s"]).split("\n"))[columns[name]] for name in NAMED}
    else:
        read = parquet.read_table if kind == "parquet" else pyarrow.feather.read_table
        columns = read(out).to_pydict()
        named = {name: np.array(columns[name]) for name in NAMED}
    sample = named["sample"]
    assert columns.keys() - {variable.name for variable in H4L.variables} <= {*RESERVED}
    rows = {key: i for i, key in enumerate(zip(named["file"], columns["entry"], strict=True))}
    assert len(rows) == len(sample)
    assert listed
    for one in listed:
        i = rows[one.file, one.entry]
        assert (sample[i], named["region"][i], columns["m12"][i]) == ("llll", one.region, one.values["m12"])
    m12, weight = np.array(columns["m12"]), np.array(columns["weight"])
    assert f"{len(m12)} candidates" in said
    assert ((m12 > 60) & (m12 < 100)).all()
    for name, one in samples.items():
        assert (sample == name).sum() == one.n_out
        assert weight[sample == name].sum() == pytest.approx(one.yield_)
        bins = np.histogram(
            np.array(columns["m4l"])[sample == name], answer.result.edges, weights=weight[sample == name]
        )
        assert bins[0] == pytest.approx(one.sumw)


def test_what_a_skim_is_to_be_must_be_known(cli, runs, tmp_path):
    code, _, said = cli("skim", "base", "--runs", runs, "--out", tmp_path / "skim.csv")
    assert code == 2
    assert "must end in .parquet, .arrow, .feather, .root" in said


def test_the_command_line_answers_once(cli, runs):
    asked = ["--cut", "m12=60:100", "--cut", "pt1=25:", "--cut", "m34=12:", "--cut", "dr_same=:"]
    asked += ["--observable", "m12", "--observable", "pt4l=0:300:30", "--engine", "serial", "--runs", runs]
    code, said, _ = cli("explore", "base", *asked)
    cold = load_json(runs / "other")
    assert code == 0
    assert f"m12 has digest {cold.digest[:16]}" in said
    assert "60 to 62" in said
    assert re.search(r"\d+ to 60 ", said)  # nothing below: one row
    # Issue 17: what is shown takes nothing from the run's own window.
    assert "no significance" not in said
    assert "115 to 130 GeV" in said
    assert "significance: notebook" in said
    code, said, _ = cli("explore", "base", *asked, "--json")
    assert json.loads(said)["digest"] == cold.digest


def test_the_command_line_answers_line_by_line(cli, runs, monkeypatch):
    lines = [
        "--cut m12=60:100 --cut pt1=25: --cut m34=12: --cut dr_same=: --observable m12 --observable pt4l=0:300:30",
        "command", "keep ../up", "keep by-hand", "--cut m5=1:2", "--what 3", "quit", "never",
    ]  # fmt: skip
    monkeypatch.setattr("sys.stdin", lines)
    code, said, trouble = cli("explore", "base", "--engine", "serial", "--runs", runs)
    assert code == 0
    assert "hzzray run --release toy" in said
    assert load_json(runs / "by-hand").digest == load_json(runs / "other").digest
    assert "run-id: must be of letters" in trouble
    assert "has no variable 'm5'" in trouble
    assert "--what: expected --cut" in trouble


WRONG = [
    (("--cut", "m12"), "--cut m12: expected VARIABLE=LOW:HIGH"),
    (("--cut", "m5=1:2"), "has no variable 'm5'"),
    (("--observable", "m5"), "has no variable 'm5'"),
    (("--observable", "m12=1:2"), "expected START:STOP:BINS"),
    (("--axis", "1:2"), "expected START:STOP:BINS"),
    (("--window", "116:131"), "doesn't lie on bin edges"),
    (("--hot-memory", "much"), "expected a size"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_is_asked_wrongly_is_told_before_anything_starts(cli, runs, monkeypatch, options, said):
    monkeypatch.setattr("hzzray.runs.explore.explore", lambda *_, **__: pytest.fail("something was started"))
    calls = [("explore", "base")]
    if options[0] in ("--cut", "--hot-memory"):
        calls.append(("skim", "base", "--out", "x.root"))
    for call in calls:
        code, _, err = cli(*call, *options, "--runs", runs)
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1


def test_bins_that_hold_nothing_are_one_row(cli, runs):
    asked = ["--observable", "m12=0:1000:100", "--engine", "serial", "--runs", runs]
    code, said, _ = cli("explore", "base", *asked)
    assert code == 0
    rows = [line for line in said.splitlines() if " to " in line and "│" in line]
    assert re.search(r"│ 0 to \d+ +│ 0 +│ 0", rows[0])
    assert re.search(r"│ \d+ to 1000 +│ 0 +│ 0", rows[-1])
    assert 3 <= len(rows) < 20


@pytest.mark.parametrize(("size", "bytes_"), [("2GB", 2 * 10**9), ("512MiB", 2**29), ("1000", 1000), ("1.5 kB", 1500)])
def test_memory_is_given_with_its_unit(size, bytes_):
    assert explore_cli._bytes(size) == bytes_
    with pytest.raises(UsageError, match="expected a size"):
        explore_cli._bytes("much")


# --- over Ray ---


def pids(session):
    return [usage.pid for usage in session.usages()]


@pytest.fixture
def shared(runs, ray_cluster):
    with hzzray.explore("base", runs=runs, actors=2) as session:
        yield session
        session._explorer.end()


@pytest.mark.slow
def test_viewers_share_a_session_of_actors(shared, runs):
    answer = shared.recut(CUTS, observables=OBSERVABLES)
    cold = load_json(runs / "other")
    assert (answer.digest, answer.fraction, answer.read) == (cold.digest, 1.0, 0)
    with hzzray.explore("base", runs=runs, actors=2) as other:
        assert other.recut().digest == load_json(runs / "base").digest
        assert pids(other) == pids(shared)
    assert load_json(shared.keep(answer, "kept-by-ray")).digest == cold.digest
    assert len(shared.candidates(answer, samples=["llll"], limit=10)) == 10


def filled_by(runs, run_id):
    """Count a run's tasks by who filled them."""
    with contextlib.closing(sqlite3.connect(runs / run_id / "ledger.db")) as ledger:
        return dict(ledger.execute("SELECT worker, COUNT(*) FROM partials GROUP BY worker"))


@pytest.mark.slow
def test_a_run_is_filled_by_a_session_that_holds_its_candidates(shared, runs, toys, monkeypatch):
    """Its digest is that of a cold run: with all of them there, and with one that dies when it is to begin."""
    # One that comes late takes its share with the next question.
    wait_for("both to hold some", lambda: shared.recut() and [bool(one.hot) for one in shared.usages()] == [True] * 2)
    cold = load_json(runs / "other")
    result = run(runs, toys, "taken", "ray", **CHANGES)
    assert (result.digest, result.status) == (cold.digest, "complete")
    assert set(filled_by(runs, "taken")) <= {"explorer-0", "explorer-1"}
    usage = read_usage(runs / "taken")
    hot = {str(row["actor"]): int(row["hot_bytes"]) for row in usage if row["hot_bytes"]}
    assert hot == {usage.actor: usage.hot for usage in shared.usages()}
    assert sum(hot.values()) == shared.standing().nbytes > 0

    from hzzray.engine.coordinator import lenders

    def lenders_of_whom_one_dies(spec):
        lent = lenders(spec)
        other, most = sorted(lent, key=lambda one: len(one.holds))
        assert most.holds - other.holds  # a range that moved may be hot at both
        (pid,) = [usage.pid for usage in shared.usages() if usage.actor == most.name]
        os.kill(pid, signal.SIGKILL)
        return lent

    monkeypatch.setattr("hzzray.engine.coordinator.lenders", lenders_of_whom_one_dies)
    result = run(runs, toys, "bereaved", "ray", **CHANGES)
    assert (result.digest, result.status) == (cold.digest, "complete")
    workers = filled_by(runs, "bereaved")
    assert {name.partition("-")[0] for name in workers} == {"explorer", "worker"}
    assert sum(workers.values()) == result.tasks.planned
    assert shared.recut().digest == load_json(runs / "base").digest


@pytest.mark.slow
def test_a_newer_question_of_the_same_viewer_overtakes(shared):
    shared.recut()
    ends = []

    def ask(low):
        try:
            ends.append((low, shared.recut({"m12": (low, 106)}, viewer="dragging").digest))
        except OvertakenError:
            ends.append((low, "overtaken"))

    threads = [threading.Thread(target=ask, args=(low,)) for low in range(50, 80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answered = {low: digest for low, digest in ends if digest != "overtaken"}
    assert len(ends) == 30
    assert 0 < len(answered) < 30
    for low, digest in answered.items():
        assert shared.recut({"m12": (low, 106)}).digest == digest


@pytest.mark.slow
def test_answers_are_exact_or_marked_while_actors_are_killed(shared, runs):
    """Each answer's part is what a run of just these files says; in the end all is there again."""
    base = load_json(runs / "base").digest
    assert shared.recut().digest == base
    answers, stop = [], threading.Event()

    def drag():
        while not stop.is_set():
            answers.append(shared.recut(whole=False))

    viewer = threading.Thread(target=drag)
    viewer.start()
    try:
        for pid in pids(shared):
            os.kill(pid, signal.SIGKILL)
            until = time.monotonic() + 60
            before = len(answers)
            while time.monotonic() < until and not any(answer.fraction < 1 for answer in answers[before:]):
                time.sleep(0.01)
            while time.monotonic() < until and not (answers[-1].fraction == 1 and shared.standing().actors == 2):
                time.sleep(0.01)
    finally:
        stop.set()
        viewer.join()
    assert shared.recut().digest == base
    assert any(answer.fraction < 1 for answer in answers)
    for answer in answers:
        events = sum(sample.entries for sample in answer.result.samples.values())
        assert (answer.digest == base) == (answer.fraction == 1)
        assert answer.fraction == pytest.approx(events / sum(task.entries for task in shared.tasks))
        assert answer.result.status == ("complete" if answer.fraction == 1 else "running")


@pytest.mark.slow
def test_no_candidate_is_left_out_as_a_worker_dies(shared, session):
    """Those of its ranges were: a skim lacked them, and said nothing."""
    found_at_once, known = (
        sorted(one.candidates({}), key=lambda row: (row.file, row.entry)) for one in (shared, session)
    )
    assert found_at_once == known
    everything = {number: len(picked.entry) for number, picked in session.picked({})}
    found = {}
    for number, picked in shared.picked({}):
        found[number] = len(picked.entry)
        if number == 1:
            for pid in pids(shared):
                os.kill(pid, signal.SIGKILL)
    assert found == everything


@pytest.mark.slow
def test_a_session_that_nobody_asks_ends_by_itself(runs, ray_cluster):
    import ray

    with hzzray.explore("other", runs=runs, actors=1, idle_s=2.0) as session:
        digest = session.recut().digest
        name = session._explorer._session.name
        until = time.monotonic() + 60
        while time.monotonic() < until and name in {one["name"] for one in ray.util.list_named_actors(True)}:
            time.sleep(0.1)
        assert name not in {one["name"] for one in ray.util.list_named_actors(True)}
        assert session.recut().digest == digest  # and is there again when somebody asks
        session._explorer.end()


@pytest.mark.slow
def test_a_session_that_nobody_ever_asks_ends_by_itself(runs, ray_cluster):
    """Its coordinator, which outlives the viewer, began to count when it was first asked."""
    import ray

    with hzzray.explore("other", runs=runs, actors=1, idle_s=1.0) as session:
        name = session._explorer._session.name
        assert ray.get_actor(name)
    wait_for("its end", lambda: name not in {one["name"] for one in ray.util.list_named_actors(True)}, 30)


class Holder:
    """An actor that has slots."""

    def is_here(self) -> bool:
        return True


@pytest.mark.slow
def test_a_session_that_nobody_asks_gives_way_to_who_waits_for_its_slots(runs, ray_cluster):
    """A run, or another session, had to wait for a quarter of an hour."""
    import ray

    with hzzray.explore("base", runs=runs, actors=2) as session:
        digest = session.recut().digest
        name = session._explorer._session.name
        other = ray.remote(num_cpus=2)(Holder).remote()  # of three slots
        try:
            assert ray.get(other.is_here.remote(), timeout=60)
            assert name not in {one["name"] for one in ray.util.list_named_actors(True)}
        finally:
            ray.kill(other)
        assert session.recut().digest == digest
        session._explorer.end()


@pytest.fixture
def alone(runs):
    """A coordinator of no cluster, with one worker whose process never begins."""
    with hzzray.explore("base", runs=runs, engine="serial") as session:
        own = coordinator.SessionSpec(session.spec, session.sources, session.tasks, None, (), 1, None, 1.0)
    made = coordinator.Coordinator(own)
    made._members = [coordinator._Member("explorer-0", None)]
    return made


def test_a_worker_that_hangs_is_started_anew(alone, monkeypatch):
    """Nobody was ever answered again: each answer waits for those of all workers."""
    monkeypatch.setattr(coordinator, "_PING_S", 0.01)
    killed = []
    monkeypatch.setattr(coordinator, "restart", killed.append)

    async def look():
        (member,) = alone._members
        silent = SimpleNamespace(remote=asyncio.get_running_loop().create_future)
        member.handle = SimpleNamespace(cache_status=SimpleNamespace(options=lambda **_: silent))
        assert [await alone._look_at(member) for _ in range(4)] == [False] * 4
        assert not killed  # it waits for a slot
        member.usage = SimpleNamespace(pid=1)  # it has told that once
        assert [await alone._look_at(member) for _ in range(4)] == [False] * 4
        assert killed == [member.handle]

    asyncio.run(look())


def test_a_question_that_took_long_is_asked_again_as_its_coordinator_dies(alone, monkeypatch):
    """All that it had taken counted as time that the coordinator was away: it failed, where it is to be asked again."""
    joined = iter([None, ValueError("of that name there is one, and then none"), None])
    answers = iter([RayActorError(), RayActorError(), "the answer"])

    def taken(these):
        one = next(these)
        if isinstance(one, Exception):
            raise one
        return one

    def get(_):
        time.sleep(0.3)
        return taken(answers)

    monkeypatch.setattr(coordinator, "_BACK_S", 0.2)
    monkeypatch.setattr(coordinator, "join", lambda _: taken(joined))
    monkeypatch.setattr(coordinator, "ray", SimpleNamespace(get=get))
    assert coordinator.SessionClient(alone._session)._call(lambda _: None) == "the answer"


def test_that_no_worker_comes_is_said(alone, monkeypatch):
    monkeypatch.setattr(coordinator, "_PATIENCE_S", 0.01)
    spec = alone._session.spec

    async def ask():
        alone._services = [asyncio.ensure_future(alone._answer_all())]
        await alone.ask("viewer", spec.selection.cuts, spec.templates, apart=False, whole=True)

    with pytest.raises(ClusterError, match="no worker of the session has come"):
        asyncio.run(ask())
