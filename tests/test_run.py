"""Runs end to end: the published numbers, the digest that nothing changes, resuming, the files of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from threading import Event
from uuid import UUID

import numpy as np
import psutil
import pytest
import uproot

from hzzray.data.catalogue import Sample, release
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.errors import UsageError
from hzzray.messages import Counts
from hzzray.physics.selection import preset
from hzzray.runs.folder import RunFolder, load_json
from hzzray.runs.plan import make_plan
from hzzray.runs.request import make_spec
from hzzray.runs.run import Ended, Settings, StoppedError, _in_time, execute, finish, retract, settings_of
from hzzray.runs.tables import HISTORY, follow, read_scale, read_usage
from tests.support.chaos import FEW, plan_run
from tests.support.http_server import serve
from tests.support.ledgers import digest_of
from tests.support.root_files import columns, cut_up, write
from tests.support.waiting import wait_for


def run(folder, sources, spec, *, run_id="run", **settings):
    actors = settings.pop("actors", 1)
    chosen = {"engine": "serial", "limits": Limits(min_actors=actors, max_actors=actors), **settings}
    return execute(
        spec,
        Settings(runs=folder, run_id=run_id, sources=tuple(map(str, sources)), **chosen),
        planned=lambda _: None,
        progress=lambda _: None,
    )


def test_a_head_that_gives_no_answer_holds_up_no_task(ray_cluster, toys, toy_spec, serial, tmp_path, monkeypatch):
    """A question to one that is gone blocked the loop for a minute, until Ray ended the process in its own words."""
    import ray

    over, asked, answered = Event(), [], []
    nodes = ray.nodes

    def ask():
        asked.append(time.monotonic())
        if len(asked) > 1:
            answered.append(over.wait(60))
        return nodes()

    monkeypatch.setattr("ray.nodes", ask)
    try:
        result = run(tmp_path, [toys], toy_spec, engine="ray", chunk=100, pace_s=3.0)
        assert len(asked) > 1
        assert not answered, "the run has ended, and it still waits"
    finally:
        over.set()
    assert result.digest == serial.digest


@pytest.fixture(scope="module")
def toy_spec():
    return make_spec(release("toy"), observables=("m4l",))


@pytest.fixture(scope="module")
def serial(toys, toy_spec, tmp_path_factory):
    return run(tmp_path_factory.mktemp("serial"), [toys], toy_spec)


def test_no_dashboard_is_started_where_none_is_wanted(ray_cluster):
    commands = [one.as_dict(["cmdline"], ad_value=[]) for one in psutil.Process().children(recursive=True)]
    started = [" ".join(command["cmdline"]) for command in commands]  # of those that have just ended, nothing
    assert any("gcs_server" in command for command in started)
    assert not [command for command in started if "dashboard/dashboard.py" in command]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("actors", "chunk"), [(1, 2_000_000), (2, 3_000), (3, 517)])
def test_ray_gives_the_serial_digest(toys, toy_spec, serial, tmp_path, actors, chunk):
    result = run(tmp_path, [toys], toy_spec, engine="ray", actors=actors, chunk=chunk)
    assert result.status == "complete"
    assert result.digest == serial.digest
    assert result.samples == serial.samples
    assert result.tasks.planned == result.tasks.merged >= len(result.samples)


@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_the_serial_digest_of_variations(toys, tmp_path):
    spec = make_spec(release("toy"), samples=("Zee", "WH125_ZZ4lep", "data_A"), variations="all,electron_resolution")
    alone = run(tmp_path / "serial", [toys], spec)
    shared_out = run(tmp_path / "ray", [toys], spec, engine="ray", actors=2, chunk=311)
    assert shared_out.tasks.merged > alone.tasks.merged
    assert (shared_out.digest, shared_out.variations_digest) == (alone.digest, alone.variations_digest)
    assert alone.variations_digest


def test_a_worker_imports_none_of_the_packages_that_extend_numba_and_leaves_them_to_others(toys, toy_spec, tmp_path):
    tasks = make_plan(toy_spec, "r", (str(toys),), cache=tmp_path).tasks
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hzzray.engine.worker import Worker\n"
        "from hzzray.messages import RunSpec, Task\n"
        "spec, *tasks = sys.stdin\n"
        "worker = Worker(RunSpec.model_validate_json(spec), (sys.argv[1],), cache=Path(sys.argv[2]))\n"
        "print(sum(worker.process(Task.model_validate_json(task)).cost.events for task in tasks))\n"
        "print([name for name in ('awkward', 'vector', 'pyarrow', 'uproot') if name in sys.modules])\n"
        "import awkward, numba\n"
        "print(numba.njit(lambda array: len(array[1]))(awkward.Array([[1], [2, 3]])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(toys), str(tmp_path)],
        input="\n".join(one.model_dump_json() for one in (toy_spec, *tasks)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split("\n")[:3] == [str(sum(task.entries for task in tasks)), "[]", "2"]


@pytest.mark.parametrize("chunk", [333, 5_000])
def test_chunks_do_not_change_the_digest(toys, toy_spec, serial, tmp_path, chunk):
    result = run(tmp_path, [toys], toy_spec, chunk=chunk)
    assert result.tasks.planned > serial.tasks.planned
    assert result.digest == serial.digest


def test_other_choices_have_another_digest(toys, toy_spec, serial, tmp_path):
    for i, changes in enumerate(({"luminosity": 10.5}, {"fraction": 0.5}, {"selection": "notebook-2020"})):
        spec = make_spec(release("toy"), **changes)
        assert spec.digest != toy_spec.digest
        assert run(tmp_path, [toys], spec, run_id=f"run{i}").digest != serial.digest


PUBLISHED = [
    ("notebook-2020", "selection_charge_type"),
    ("notebook-2020-pt", "selection_charge_type_pt_30_20_10"),
]


@pytest.mark.parametrize(("preset", "key"), PUBLISHED)
def test_published_numbers_of_2020(shared, tmp_path, preset, key):
    reference = json.loads((shared / "reference.json").read_text())["2020"][key]
    spec = make_spec(release("2020"), selection=preset, luminosity=10.0)
    result = run(tmp_path, [shared / "atlas2020-13tev"], spec)
    checked = 0
    for name, row in result.samples.items():
        wanted = reference.get(name, {})
        if name in result.missing:
            continue
        if "n_out" in wanted:
            assert row.n_out == wanted["n_out"], name
            checked += 1
        if "yield" in wanted:
            assert row.yield_ == pytest.approx(wanted["yield"], rel=1e-5), name
            checked += 1
    assert checked == (8 if key == "selection_charge_type" else 5)
    assert set(result.missing) == {"data_C", "data_D", "Zmumu", "llll", "ttbar_lep"}
    assert result.status == "partial"


def test_a_tenth_of_a_sample_has_about_a_tenth_of_the_published_yield(shared, tmp_path):
    # The ggH and VBF files there hold the selected events of the first tenth of the released ones.
    reference = json.loads((shared / "reference.json").read_text())["2020"]["selection_charge_type"]
    names = ("ggH125_ZZ4lep", "VBFH125_ZZ4lep")
    result = run(
        tmp_path, [shared / "atlas2020-13tev"], make_spec(release("2020"), samples=names, observables=("m4l",))
    )
    for name in names:
        assert result.samples[name].yield_ == pytest.approx(reference[name]["yield_released"] / 10, rel=0.02)


@pytest.mark.parametrize(
    ("sample", "loose", "isolated", "yield_"),
    [("data_A", 13, 13, None), ("data_B", 43, 37, None), ("Zee", 59, 37, 4.94)],
)
def test_h4l_on_real_files_with_isolation_and_without(shared, tmp_path, sample, loose, isolated, yield_):
    """Issue 11, item 7: h4l of 2020 asked for nothing but kinematics; Z→ee+jets gave 9.22 ± 1.5 of 10 fb⁻¹."""
    for cuts, name, wanted in (((), "h4l", isolated), (("triggered=:",), "h4l*", loose)):
        bare = ("isolated=false",) if cuts else ()
        spec = make_spec(release("2020"), samples=(sample,), selection="h4l", cuts=cuts, parameters=bare)
        row = run(tmp_path / name, [shared / "atlas2020-13tev"], spec).samples[sample]
        assert (spec.selection.name, row.n_out) == (name, wanted)
        if yield_ and not cuts:
            assert row.yield_ == pytest.approx(yield_, abs=0.01)


def test_h4l_on_a_file_without_isolation_says_what_does_without(shared, tmp_path):
    """Issue 11, item 7: the rewritten signal files of ../shared have the branches of the notebook alone."""
    spec = make_spec(release("2020"), samples=("WH125_ZZ4lep",), selection="h4l")
    (failure,) = run(tmp_path, [shared / "atlas2020-13tev"], spec).failures
    assert failure.reason.endswith(
        "mc_341964.WH125_ZZ4lep.4lep.root: tree mini has no branches lep_ptcone30, lep_etcone20, which the selection "
        "reads: --parameter isolated=false does without"
    )


def test_2025_data(shared, tmp_path):
    spec = make_spec(release("2025"), samples=("data15_periodD",))
    result = run(tmp_path, [shared / "atlas2025-13tev-beta"], spec)
    row = result.samples["data15_periodD"]
    assert row.entries == release("2025").sample("data15_periodD").entries
    assert [cut.cut for cut in row.cutflow] == list(spec.rows)
    n = [cut.n for cut in row.cutflow]
    assert n == sorted(n, reverse=True)
    assert n[0] == row.entries
    assert row.n_out == n[-1]
    assert result.status == "complete"


def test_http_gives_the_local_digest(shared, tmp_path):
    folder = shared / "atlas2020-13tev"
    spec = make_spec(release("2020"), samples=("data_A", "Zee", "WH125_ZZ4lep"))
    local = run(tmp_path, [folder], spec)
    with serve(folder) as server:
        remote = run(tmp_path, [server.url], spec, run_id="remote")
    assert remote.digest == local.digest
    assert remote.status == "complete"


def test_a_run_that_is_complete_is_not_done_again(toys, toy_spec, serial, tmp_path):
    run(tmp_path, [toys], toy_spec)
    moved = tmp_path / "other"
    shutil.copytree(toys, moved)
    again = run(tmp_path, [moved], toy_spec)
    assert again.digest == serial.digest
    assert again.cost.events == serial.cost.events


def test_a_run_that_goes_on_shows_in_its_folder(toys, toy_spec, serial, tmp_path, monkeypatch):
    monkeypatch.setattr("hzzray.engine.serial._TELL_S", 0.0)
    settings = Settings(runs=tmp_path, run_id="run", sources=(str(toys),), engine="serial", chunk=1_000)
    seen = []

    def look(counts):
        if counts.merged > 1:  # as of the task before
            seen.append((load_json(settings.folder), counts))

    assert execute(toy_spec, settings, planned=lambda _: None, progress=look).digest == serial.digest
    assert len(seen) > 2
    assert all((live.status, live.tasks.merged) == ("running", counts.merged - 1) for live, counts in seen)


def test_resuming_finishes_what_is_left(toys, toy_spec, serial, tmp_path):
    settings = Settings(runs=tmp_path, run_id="run", sources=(str(toys),), engine="serial", chunk=2_000)
    seen = []

    class Stop(BaseException):
        pass

    def interrupt(counts):
        seen.append(counts)
        if counts.merged == 4:
            raise Stop

    with pytest.raises(Stop):
        execute(toy_spec, settings, planned=lambda _: None, progress=interrupt)
    with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
        planned, merged, failed, *_ = ledger.counts()
    assert (merged, failed) == (4, 0)
    # Cut otherwise than before: what was planned stays, so that no range is read twice.
    result = run(tmp_path, [toys], toy_spec, chunk=700)
    assert (result.tasks.planned, result.tasks.merged) == (planned, planned)
    assert result.digest == serial.digest


def test_another_spec_in_a_run_folder_is_refused(toys, toy_spec, tmp_path):
    run(tmp_path, [toys], toy_spec)
    with pytest.raises(UsageError, match=r"exists with another luminosity"):
        run(tmp_path, [toys], make_spec(release("toy"), luminosity=3.0, observables=("m4l",)))


def test_another_file_under_a_name_is_refused(toys, toy_spec, tmp_path):
    from hzzray.data.toy import write_toys

    run(tmp_path, [toys], toy_spec)
    other = tmp_path / "other"
    write_toys(other, release("toy"), events=2_000, seed=9)
    with pytest.raises(UsageError, match=r"another file than the one that run run began with"):
        run(tmp_path, [other], toy_spec)


def test_a_missing_file_makes_a_partial_run_and_its_return_a_complete_one(toys, toy_spec, serial, tmp_path):
    folder = tmp_path / "toys"
    shutil.copytree(toys, folder)
    path = folder / release("toy").sample("llll").path
    path.rename(path.with_suffix(".away"))
    lacking = run(tmp_path, [folder], toy_spec)
    assert lacking.status == "partial"
    assert lacking.missing == ("llll",)
    assert lacking.tasks.planned == lacking.tasks.merged + lacking.tasks.failed
    assert [(row.sample, row.reason) for row in lacking.failures] == [("llll", f"{path}: no such file")]
    path.with_suffix(".away").rename(path)
    assert run(tmp_path, [folder], toy_spec).digest == serial.digest


def test_a_damaged_file_is_listed_and_the_rest_goes_on(toys, toy_spec, serial, tmp_path):
    folder = tmp_path / "toys"
    shutil.copytree(toys, folder)
    path = folder / release("toy").sample("Zee").path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    result = run(tmp_path, [folder], toy_spec)
    assert result.status == "partial"
    (row,) = result.failures
    assert row.sample == "Zee"
    assert "truncated" in row.reason
    assert str(path) in row.reason
    path.write_bytes(whole)
    assert run(tmp_path, [folder], toy_spec).digest == serial.digest


@pytest.mark.usefixtures("ray_cluster")
def test_a_basket_damaged_after_planning_fails_its_task_alone(toys, toy_spec, tmp_path):
    folder = tmp_path / "toys"
    shutil.copytree(toys, folder)
    path = folder / release("toy").sample("Zee").path
    with uproot.open(path) as file:
        branch = file["mini"]["lep_eta"]
        seek, size = int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0])
    body = bytearray(path.read_bytes())
    body[seek + size // 2 : seek + size // 2 + 40] = bytes(40)
    path.write_bytes(body)
    result = run(tmp_path, [folder], toy_spec, engine="ray", actors=2)
    (row,) = result.failures
    assert row.sample == "Zee"
    assert "branch lep_eta, basket 0: corrupt" in row.reason
    assert result.tasks.merged == result.tasks.planned - 1


def test_the_fraction_reads_the_leading_entries(toys, tmp_path):
    spec = make_spec(release("toy"), fraction=0.25, samples=("llll", "data_A"))
    result = run(tmp_path, [toys], spec)
    for name in ("llll", "data_A"):
        with uproot.open(toys / release("toy").sample(name).path) as file:
            entries = file["mini"].num_entries
        assert result.samples[name].entries == int(entries * 0.25)
    assert result.fraction == pytest.approx(0.25, rel=0.01)
    assert result.status == "complete"


def test_the_files_of_a_run_agree(toys, toy_spec, tmp_path):
    result = run(tmp_path, [toys], toy_spec)
    folder = tmp_path / "run"
    written = json.loads((folder / "result.json").read_text())
    assert written["digest"] == result.digest
    assert written["tasks"] == {"planned": 12, "merged": 12, "failed": 0}
    assert np.allclose(written["edges"], np.arange(80, 251, 5))
    for name, sample in written["samples"].items():
        assert len(sample["sumw"]) == len(sample["sumw2"]) == 34, name
        total = sum(sample["sumw"]) + sample["underflow"] + sample["overflow"]
        assert total == pytest.approx(sample["yield"], rel=1e-12), name
        assert sample["cutflow"][-1]["n"] == sample["n_out"], name
        assert sample["cutflow"][-1]["yield"] == pytest.approx(sample["yield"], rel=1e-12), name
        assert sample["cutflow"][0]["n"] == sample["entries"], name
    for name, group in written["groups"].items():
        members = [sample for sample in written["samples"].values() if sample["group"] == name]
        assert np.allclose(group["sumw"], np.sum([sample["sumw"] for sample in members], axis=0), rtol=1e-12), name
    with uproot.open(folder / "histograms.root") as file:
        for name, sample in written["samples"].items():
            histogram = file[f"samples/{name}/all"]
            assert histogram.classname == "TH1D"
            assert np.array_equal(histogram.values(), sample["sumw"]), name
            assert np.allclose(histogram.variances(), sample["sumw2"], rtol=1e-14), name
            channels = [file[f"samples/{name}/{channel}"].values() for channel in ("4e", "4mu", "2e2mu")]
            assert np.allclose(np.sum(channels, axis=0), sample["sumw"], rtol=1e-12), name


def test_weights_too_large_are_told(toys, tmp_path):
    """Issue 11, item 25: events of 2**30 and more were left out as "nan or inf in a weight", exit 0."""
    chosen = release("toy").only(("data_A", "Zee", "llll"))
    heavy = [one.model_copy(update={"sumw": 1e-6}) if one.name == "Zee" else one for one in chosen.samples]
    result = run(tmp_path, [toys], make_spec(chosen.model_copy(update={"samples": tuple(heavy)})))
    assert (result.status, result.tasks.failed) == ("partial", 1)
    (failure,) = result.failures
    assert failure.sample == "Zee"
    assert re.search(r"\d+ of \d+ events weigh 1.07e\+09 or more, too large: check xsec and sumw of", failure.reason)
    assert result.samples["Zee"].invalid == {"lepton": 0, "weight": 0}
    assert result.samples["llll"].n_out > 0


@pytest.mark.timeout(900)
def test_a_serial_run_drains_on_sigterm_and_keeps_its_files(toys, serial, tmp_path):
    """Issue 11, item 26: it died, without cpu.csv, scale.csv and history.csv; the README promises them, and exit 1."""
    command = [sys.executable, "-m", "hzzray", "run", "--source", toys, "--engine", "serial", "--runs", tmp_path, *FEW]
    command = [*map(str, command), "--run-id", "run", "--chunk", "1000"]
    folder = tmp_path / "run"
    with subprocess.Popen([*command, "--pace", "90"], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for("rows of cpu.csv", lambda: len(read_usage(folder)), within=200)
        finally:
            process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "run run: drain, " in errors
    assert "the same --run-id goes on with them" in " ".join(errors.split())
    assert load_json(folder).status == "running"
    merged = load_json(folder).tasks.merged
    assert 0 < merged < load_json(folder).tasks.planned
    assert follow(folder, HISTORY).rows()["events"][-1] == load_json(folder).cost.events
    scale = read_scale(folder)
    assert (scale["actors"][-1], scale["waiting"][-1]) == (1, load_json(folder).tasks.planned - merged)
    assert {row["actor"].partition(":")[0] for row in read_usage(folder)} == {"worker-0", "node"}
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert load_json(folder).digest == serial.digest
    assert read_usage(folder)["tasks"].max() >= 1


def test_the_window_counts_are_those_of_the_bins(toys, toy_spec, serial):
    z = serial.significance
    low, high = release("toy").window
    inside = [i for i, edge in enumerate(serial.edges[:-1]) if low <= edge and serial.edges[i + 1] <= high]
    signal = sum(serial.groups["Signal (mH = 125 GeV)"].sumw[i] for i in inside)
    assert z.n_signal == pytest.approx(signal)
    assert z.n_data == sum(serial.groups["Data"].sumw[i] for i in inside)
    assert z.s_over_sqrt_b == pytest.approx(z.n_signal / z.n_background**0.5)


#: The toy release without names for trigger and isolation; it has none for identification.
KINEMATICS_ALONE = release("toy").schema_.model_copy(
    update={"triggers": (), "electron_isolation": (), "muon_isolation": ()}
)


def test_cuts_of_a_preset_can_be_changed():
    cuts = ["pt1=25:", "pt2=15:", "pt3=:", "m12=60:100", "m_sfos=8:", "y4l=-1:1"]
    chosen = make_spec(release("toy"), selection="h4l", cuts=cuts, parameters=["electron_pt_min=10", "isolated=FALSE"])
    selection = chosen.selection
    bounds = {bound.variable: (bound.low, bound.high) for cut in selection.cuts for bound in cut.bounds}
    assert [bounds[name] for name in ("pt1", "pt2", "m12", "m_sfos")] == [
        *((25.0, None), (15.0, None), (60.0, 100.0), (8.0, None)),
    ]
    assert "pt3" not in bounds
    assert selection.rows[-1] == "y4l"
    assert (selection.name, bounds["m34"]) == ("h4l*", (None, 115.0))
    changed = {name: selection.parameters[name] for name in ("electron_pt_min", "muon_pt_min", "isolated")}
    assert changed == {"electron_pt_min": 10.0, "muon_pt_min": 6.0, "isolated": False}
    assert make_spec(release("toy"), selection="h4l").selection.name == "h4l"
    bare = make_spec(release("toy"), selection="notebook-2020-pt", cuts=["pt1=:", "pt2=:", "pt3=:"]).selection
    assert dataclasses.replace(bare, name="notebook-2020") == preset("notebook-2020", release("toy").schema_)[1]


@pytest.mark.parametrize(("name", "asked"), [("2020", "isolation"), ("toy", "isolation"), ("2025", "identification")])
def test_h4l_asks_for_what_the_release_has(name, asked):
    """Issue 11, item 7: identification, isolation and the trigger, by release; its name stays."""
    selection = make_spec(release(name), selection="h4l").selection
    assert selection.name == "h4l"
    assert selection.rows[:4] == ("all", "four leptons", "trigger", asked)
    cuts, parameters = ["triggered=:", "n_identified=:"], ["identified=false", "isolated=false"]
    bare = make_spec(release(name), selection="h4l", cuts=cuts, parameters=parameters).selection
    assert dataclasses.replace(bare, name="h4l") == preset("h4l", KINEMATICS_ALONE)[1]


def test_h4l_of_a_release_with_kinematics_alone_asks_for_nothing_else():
    """Issue 11, item 7."""
    toy = release("toy")
    bare = KINEMATICS_ALONE
    made = make_spec(toy.model_copy(update={"schema_": bare}), selection="h4l").selection
    assert made == preset("h4l", bare)[1]
    assert made.rows[:3] == ("all", "four leptons", "two SFOS pairs")
    with pytest.raises(UsageError, match="asks for isolation, which release toy has no branch for"):
        make_spec(toy.model_copy(update={"schema_": bare}), selection="h4l", parameters=["isolated=true"])


@pytest.mark.parametrize("name", ["notebook-2020", "notebook-2020-pt", "notebook-2025"])
def test_a_notebook_s_preset_is_the_notebook_s_whatever_the_release(name):
    """Issue 11, item 7: the published numbers stay."""
    assert make_spec(release("2025"), selection=name).selection == preset(name, KINEMATICS_ALONE)[1]


def test_a_paced_run_goes_through_all_files_side_by_side(toys, toy_spec, tmp_path):
    plan_run(path := tmp_path / "run" / "ledger.db", toy_spec, toys, 500)
    settings = Settings(runs=tmp_path, run_id="run", sources=(str(toys),))
    with Ledger.open(path) as ledger:
        due = list(ledger.due())
        assert list(_in_time(ledger, settings)[0]) == due
        tasks, interval_s = _in_time(ledger, settings.model_copy(update={"pace_s": 60.0}))
    assert interval_s == pytest.approx(60 / len(due))
    assert {task.task_id for task in tasks} == {task.task_id for task in due}
    data = [task.sample for task in tasks if task.sample.startswith("data_")]
    assert data == ["data_A", "data_B", "data_C", "data_D"]
    assert 0.4 < [task.sample for task in tasks].index("data_D") / len(tasks) < 0.7  # it has half of the data
    half, whole = Counter(), Counter()
    for i, task in enumerate(tasks):
        whole[task.sample] += 1
        half[task.sample] += i < len(tasks) / 2
    large = [name for name in whole if whole[name] > 4]
    assert len(large) > 2
    assert all(0.3 < half[name] / whole[name] < 0.7 for name in large)


@pytest.mark.usefixtures("ray_cluster")
def test_a_paced_run_takes_its_time_and_keeps_its_history(toys, toy_spec, serial, tmp_path):
    result = run(tmp_path, [toys], toy_spec, engine="ray", actors=2, chunk=2_000, pace_s=3.0)
    assert result.digest == serial.digest
    assert result.cost.wall_s > 2.5
    history = follow(tmp_path / "run", HISTORY).rows()
    assert len(history) >= 2
    assert (np.diff(history["events"]) >= 0).all()
    assert history["n_signal"][-1] > 0
    assert 0 <= history["share"][0] < history["share"][-1] <= 1
    usage = read_usage(tmp_path / "run")
    ids = {(row["actor"], row["actor_id"]) for row in usage[usage["pid"] > 0] if row["actor_id"]}
    assert {name for name, _ in ids} == {"worker-0", "worker-1"}
    assert len({actor_id for _, actor_id in ids}) == 2
    # What actors say adds up to what the run says, and all is on one clock.
    last = [usage[usage["actor"] == name][-1] for name in ("worker-0", "worker-1")]
    assert sum(row["tasks"] for row in last) == result.tasks.merged
    assert sum(row["events"] for row in last) == result.cost.events
    with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
        written = datetime.fromisoformat(str(history["timestamp"][0])).timestamp()
        assert written - history["time_s"][0] < ledger.created + 0.1, "planning and Ray's start count"
    assert result.cost.wall_s - 1.0 < history["time_s"][-1] <= result.cost.wall_s


# Files: links, several sources, tokens, and what is written over.


def linked(files, folder):
    """A folder of links to all files of another one."""
    for file in files.rglob("*.root"):
        link = folder / file.relative_to(files)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    return folder


def test_a_folder_of_links_is_run(toys, toy_spec, serial, tmp_path):
    """Issue 11, item 17."""
    result = run(tmp_path, [linked(toys, tmp_path / "links")], toy_spec)
    assert (result.status, result.digest) == ("complete", serial.digest)


def test_a_link_to_a_released_file_gives_its_events(shared, tmp_path):
    """Issue 11, item 17: 27 events for a link to data_A."""
    links = linked(shared / "atlas2020-13tev" / "Data", tmp_path / "links" / "Data").parent
    result = run(tmp_path, [links], make_spec(release("2020"), samples=("data_A",), observables=("m4l",)))
    assert (result.status, result.samples["data_A"].n_out) == ("complete", 27)


def test_several_sources_are_read_together(cli, toys, serial, tmp_path):
    """Issue 11, item 17: each file comes from the first source that has it, be it a folder, a link or a server."""
    samples = [sample for sample in release("toy").samples if sample.default]
    halves = [tmp_path / "a", tmp_path / "b"]
    for i, sample in enumerate(samples):
        (halves[i % 2] / sample.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toys / sample.path, halves[i % 2] / sample.path)
    with serve(halves[1]) as web:
        sources = ("--source", halves[0], "--source", web.url)
        code, _, err = cli("run", "--engine", "serial", *FEW, *sources, "--runs", tmp_path / "runs", "--run-id", "run")
    assert code == 0, err
    assert load_json(tmp_path / "runs" / "run").digest == serial.digest
    shutil.move(halves[0], tmp_path / "away")
    (halves[0]).mkdir()
    (halves[0] / "other").write_text("")
    with Ledger.open(tmp_path / "runs" / "run" / "ledger.db") as ledger:
        ledger.forget_sample("data_A")
    again = ("--source", halves[0], "--source", halves[1], "--source", tmp_path / "away")
    assert cli("replay", "run", *again, "--runs", tmp_path / "runs")[0] == 0
    assert load_json(tmp_path / "runs" / "run").digest == serial.digest
    code, _, err = cli("run", "--source", "a", "--source", "b", "--events", "10")
    assert (code, err.strip()) == (2, "hzzray: --events goes with one --source")


def test_a_source_with_a_token_is_read_and_the_token_shown_nowhere(cli, toys, serial, tmp_path):
    """Issue 11, item 18: a signature or a token in the query of the source's address."""
    folder = tmp_path / "toys"
    shutil.copytree(toys, folder)
    bad = folder / release("toy").sample("Zee").path
    whole = bad.read_bytes()
    bad.write_bytes(whole[:5000])
    with serve(folder) as web:
        web.token = "sig=s3cret%2Fx&user=lovelace"
        source = f"{web.url.rstrip('/')}?{web.token}"
        command = ("run", "--engine", "serial", "--source", source, "--runs", tmp_path, "--run-id", "run", *FEW)
        code, out, err = cli(*command)
        assert code == 3, err
        (failure,) = load_json(tmp_path / "run").failures
        assert failure.reason.startswith(f"{web.url}{release('toy').sample('Zee').path}?***: truncated: 5000 bytes")
        for name in ("failures", "status"):
            out += "".join(map(str, cli(name, "run", "--runs", tmp_path)))
        shown = out + err + (tmp_path / "run" / "result.json").read_text()
        assert "s3cret" not in shown
        assert "lovelace" not in shown
        bad.write_bytes(whole)
        assert cli(*command)[0] == 0
    assert load_json(tmp_path / "run").digest == serial.digest


SAME = UUID(int=7)


def rewritable(folder, *, seed, events=2_000):
    """A source with one file of a fixed UUID, whose content follows from the seed."""
    sample = release("2020").sample("Zee")
    write(folder / sample.path, columns(events, seed=seed, least=4), identity=SAME, basket=500)
    return folder


@pytest.fixture
def of_one(tmp_path):
    """What a fresh run finds of the file of a seed."""
    spec = make_spec(release("2020"), samples=("Zee",), observables=("m4l",))

    def count(seed):
        result = run(tmp_path / "fresh", [rewritable(tmp_path / f"fresh{seed}", seed=seed)], spec, run_id=f"r{seed}")
        return result.samples["Zee"].n_out

    return spec, count


class Stop(BaseException):
    """What ends a run as a kill does."""


def stop_after(number):
    def progress(counts):
        if counts.merged == number:
            raise Stop

    return progress


def started(spec, folder, source, number):
    """Begin a run of two tasks, and end it after some."""
    settings = Settings(runs=folder, run_id="run", sources=(str(source),), engine="serial", chunk=1_000)
    with pytest.raises(Stop):
        execute(spec, settings, planned=lambda _: stop_after(number)(Counts(2, 0, 0)), progress=stop_after(number))


OTHER = r"another file than the one that run run began with, or another content; take another --run-id, or retract"


def test_a_file_written_over_after_the_first_of_two_tasks_is_refused(of_one, tmp_path):
    """Issue 11, item 19: 2 000 entries, stopped after the first task, written over under the same UUID: never a mix."""
    spec, count = of_one
    before, after = count(1), count(2)
    assert before != after
    source = rewritable(tmp_path / "source", seed=1)
    started(spec, tmp_path, source, 1)
    rewritable(source, seed=2)
    with pytest.raises(UsageError, match=OTHER):
        run(tmp_path, [source], spec)
    with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
        assert ledger.counts()[:3] == (2, 1, 0), "what was merged stays"
    assert retract(RunFolder(tmp_path / "run"), "Zee")[0] == 1
    result = run(tmp_path, [source], spec, chunk=1_000)
    assert (result.status, result.samples["Zee"].n_out) == ("complete", after)


def test_a_run_is_begun_in_one_way_whatever_carries_its_tasks(toys, tmp_path):
    """Issue 13: checked, planned, agreed on, written down; then the transport works, and says what ended it."""
    began = []

    class Paper:
        is_bridged = True

        def check(self):
            began.append("check")

        def agree(self, spec, run_id, plan):
            assert not (tmp_path / "run").exists(), "what nobody agrees to leaves nothing behind"
            began.append("agree")
            return plan

        def work(self, ledger, settings, progress):
            began.append(ledger.counts()[:3])
            return Ended(finish(ledger), "drain")

    settings = Settings(runs=tmp_path, run_id="run", sources=(str(toys),))
    with pytest.raises(StoppedError, match="run run: drain, 12 tasks left; the same --run-id goes on"):
        execute(
            make_spec(release("toy")), settings, progress=lambda _: None, transport=Paper(),
            planned=lambda plan: began.append(len(plan.tasks)),
        )  # fmt: skip
    assert began == ["check", "agree", 12, (12, 0, 0)]
    kept = settings_of(RunFolder(tmp_path / "run"))
    assert kept == (make_spec(release("toy")), settings.model_copy(update={"bridged": True}))


def test_a_file_written_over_after_it_was_merged_is_refused(cli, of_one, tmp_path):
    """Issue 11, item 19: new content was ignored, with exit 0."""
    spec, count = of_one
    source = rewritable(tmp_path / "source", seed=1)
    assert run(tmp_path, [source], spec).status == "complete"
    rewritable(source, seed=2)
    command = ("run", "--engine", "serial", *FEW, "--release", "2020", "--samples", "Zee", "--source", source)
    code, _, err = cli(*command, "--runs", tmp_path, "--run-id", "run")
    assert code == 2
    path = source / release("2020").sample("Zee").path
    assert err.startswith(f"hzzray: {path}: another file than the one that run run began with")
    assert len(err.splitlines()) == 1
    assert cli("retract", "run", "Zee", "--runs", tmp_path)[0] == 0
    assert cli(*command, "--runs", tmp_path, "--run-id", "run")[0] == 0
    assert load_json(tmp_path / "run").samples["Zee"].n_out == count(2)


def test_a_file_written_over_before_anything_was_merged_is_read_anew(of_one, tmp_path):
    """Issue 11, item 19."""
    spec, _ = of_one
    source = rewritable(tmp_path / "source", seed=1)
    started(spec, tmp_path, source, 0)
    rewritable(source, seed=2, events=1_700)
    result = run(tmp_path, [source], spec, chunk=1_000)
    assert (result.status, result.tasks.planned, result.samples["Zee"].entries) == ("complete", 2, 1_700)
    fresh = run(tmp_path, [source], spec, run_id="fresh")
    assert (result.digest, result.samples) == (fresh.digest, fresh.samples)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_written_over_between_two_tasks_of_a_run_is_no_mix(of_one, tmp_path, in_place):
    """Issue 11, item 19: by a worker that holds the file open; one that is replaced is read on as it was."""
    spec, count = of_one
    source = rewritable(tmp_path / "source", seed=1)
    other = rewritable(tmp_path / "other", seed=2)
    path = release("2020").sample("Zee").path

    def swap(counts):
        if counts.merged == 1 and (other / path).exists():
            if in_place:
                (source / path).write_bytes((other / path).read_bytes())
                (other / path).unlink()
            else:
                (other / path).replace(source / path)

    settings = Settings(runs=tmp_path, run_id="run", sources=(str(source),), engine="serial", chunk=1_000)
    result = execute(spec, settings, planned=lambda _: None, progress=swap)
    if in_place:
        assert (result.status, result.tasks.merged) == ("partial", 1)
        assert result.failures[0].reason.endswith("another file since it was planned (its content changed)")
    else:
        assert (result.status, result.samples["Zee"].n_out) == ("complete", count(1))


def test_two_files_of_one_uuid_are_both_read(tmp_path):
    """Issue 11, item 20: 300 and 500 events."""
    names = ("Zee", "Zmumu")
    for name, events in zip(names, (300, 500), strict=True):
        path = tmp_path / "source" / release("2020").sample(name).path
        write(path, columns(events, seed=events), identity=SAME)
    result = run(tmp_path, [tmp_path / "source"], make_spec(release("2020"), samples=names, observables=("m4l",)))
    assert result.status == "complete"
    assert [result.samples[name].entries for name in names] == [300, 500]


# Samples of several files.


@pytest.fixture
def apart(toys, tmp_path):
    """Toys whose Zee and data_D are three files each, in the order of their events."""
    folder = tmp_path / "apart"
    shutil.copytree(toys, folder)
    for name in ("Zee", "data_D"):
        path = folder / release("toy").sample(name).path
        cut_up(path, *(folder / f"{name}/{i}.root" for i in range(3)))
        path.unlink()
    return folder


def spec_of(path, data="data_D/*.root"):
    """The toy release's spec where Zee, and data_D, lie elsewhere."""
    toy = release("toy")
    paths = {"Zee": path, "data_D": data}
    samples = tuple(
        Sample.model_validate(one.model_dump() | {"path": paths.get(one.name, one.path)}) for one in toy.samples
    )
    return make_spec(toy.model_copy(update={"samples": samples}), observables=("m4l",))


LISTED = ["Zee/2.root", "Zee/0.root", "Zee/1.root"]
PATTERN = "Zee/*.root"


@pytest.mark.parametrize("path", [LISTED, PATTERN])
@pytest.mark.parametrize("chunk", [2_000_000, 517])
def test_the_events_of_several_files_give_the_digest_of_one(apart, serial, tmp_path, path, chunk):
    result = run(tmp_path, [apart], spec_of(path), chunk=chunk)
    assert (result.status, result.digest) == ("complete", serial.digest)
    for name in ("Zee", "data_D"):
        assert result.samples[name] == serial.samples[name]
    assert result.significance == serial.significance
    if chunk > 1_000_000:
        assert result.tasks.planned == serial.tasks.planned + 4


@pytest.mark.usefixtures("ray_cluster")
def test_several_files_on_ray(apart, serial, tmp_path):
    result = run(tmp_path, [apart], spec_of(LISTED), engine="ray", actors=2, chunk=1_000)
    assert (result.status, result.digest) == ("complete", serial.digest)


def test_a_run_of_several_files_that_was_stopped_goes_on(apart, serial, tmp_path):
    """Elsewhere, and cut otherwise; files that were begun keep their tasks."""
    spec = spec_of(PATTERN)
    settings = Settings(runs=tmp_path, run_id="run", sources=(str(apart),), engine="serial", chunk=300)
    with pytest.raises(Stop):
        execute(spec, settings, planned=lambda _: None, progress=stop_after(7))
    moved = apart.rename(tmp_path / "moved")
    result = run(tmp_path, [moved], spec, chunk=90)
    assert (result.status, result.digest) == ("complete", serial.digest)


def test_a_file_of_several_that_is_missing_is_named_and_read_when_it_returns(apart, serial, tmp_path):
    spec = spec_of(LISTED)
    path = apart / "Zee/0.root"
    path.rename(apart / "away")
    lacking = run(tmp_path, [apart], spec)
    assert (lacking.status, lacking.missing) == ("partial", ())
    assert [(row.sample, row.file, row.reason) for row in lacking.failures] == [
        ("Zee", str(path), f"{path}: no such file")
    ]
    assert lacking.tasks.failed == 1
    zee = lacking.samples["Zee"]
    assert (zee.unopened, zee.total, zee.luminosity) == (1, None, None)
    assert 0 < zee.entries < serial.samples["Zee"].entries
    assert lacking.significance.withheld["n_background"] == (
        "what part of Zee was read is unknown: not all files were opened"
    )
    (apart / "away").rename(path)
    again = run(tmp_path, [apart], spec)
    assert (again.status, again.digest) == ("complete", serial.digest)


@pytest.mark.parametrize("first", [0, 2])
def test_a_file_that_a_pattern_finds_later_is_read_in_addition(apart, serial, tmp_path, first):
    spec, away = spec_of(PATTERN), tmp_path / "away"
    (apart / f"Zee/{first}.root").rename(away)
    fewer = run(tmp_path, [apart], spec)
    assert fewer.status == "complete", "a pattern stands for what is there"
    away.rename(apart / f"Zee/{first}.root")
    more = run(tmp_path, [apart], spec)
    assert (more.status, more.digest) == ("complete", serial.digest)
    assert more.tasks.planned == fewer.tasks.planned + 1
    assert more.samples["Zee"].total == serial.samples["Zee"].total


def test_a_file_of_a_list_that_was_read_may_go(apart, serial, tmp_path):
    run(tmp_path, [apart], spec_of(LISTED))
    (apart / "Zee/1.root").unlink()
    result = run(tmp_path, [apart], spec_of(LISTED))
    assert (result.status, result.digest, result.failures) == ("complete", serial.digest, ())


def test_a_file_that_a_pattern_finds_no_more_stays_in_what_was_read(apart, serial, tmp_path):
    spec = spec_of(PATTERN)
    run(tmp_path, [apart], spec)
    (apart / "Zee/1.root").unlink()
    (apart / "Zee/2.root").rename(apart / "Zee/renamed.root")  # known by its content
    result = run(tmp_path, [apart], spec)
    assert (result.status, result.digest) == ("complete", serial.digest)
    with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
        assert [file.path for file in ledger.planned_files() if file.sample == "Zee"] == [
            "Zee/0.root", "Zee/1.root", "Zee/renamed.root",
        ]  # fmt: skip


def test_a_damaged_file_that_a_pattern_finds_no_more_is_forgotten(apart, tmp_path):
    """A fresh run would not know of it."""
    spec = spec_of(PATTERN)
    (apart / "Zee/1.root").write_bytes(b"root, but for the rest")
    assert run(tmp_path, [apart], spec).tasks.failed == 1
    (apart / "Zee/1.root").unlink()
    result = run(tmp_path, [apart], spec)
    assert (result.status, result.tasks.failed, result.samples["Zee"].unopened) == ("complete", 0, 0)
    assert result.digest == run(tmp_path, [apart], spec, run_id="fresh").digest


@pytest.mark.parametrize(("path", "name"), [(LISTED, "1.root"), (PATTERN, "1.root"), (PATTERN, "1.v2.root")])
def test_another_content_of_one_of_several_files_is_refused_until_that_file_is_retracted(
    cli, apart, tmp_path, path, name
):
    """Also under another name, where the file that was read is there no more: perhaps it is that in another version."""
    spec = spec_of(path)
    before = run(tmp_path, [apart], spec)
    (apart / "Zee/1.root").unlink()
    write(apart / "Zee" / name, columns(700, seed=5, least=4))
    with pytest.raises(UsageError, match="retract what was read of it: ") as refused:
        run(tmp_path, [apart], spec)
    assert str(refused.value).startswith(f"{apart / 'Zee' / name}: ")
    hint = str(refused.value).partition("read of it: hzzray ")[2]
    assert hint == "retract run Zee --file Zee/1.root"
    with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
        assert ledger.counts().merged == before.tasks.merged, "what was merged stays"
    code, out, err = cli(*hint.split(), "--runs", tmp_path)
    assert (code, err) == (0, "")
    assert "1 merged tasks of Zee/1.root retracted; partial" in " ".join(out.split())
    result = run(tmp_path, [apart], spec)
    fresh = run(tmp_path, [apart], spec, run_id="fresh")
    assert (result.status, result.digest, result.samples) == ("complete", fresh.digest, fresh.samples)
    assert result.digest != before.digest
    code, _, err = cli("retract", "run", "Zee", "--file", "Zee/9.root", "--runs", tmp_path)
    assert code == 2
    assert err.startswith("hzzray: run run has read no Zee/9.root of sample Zee; it has Zee/")


def test_a_file_written_over_of_which_nothing_was_merged_is_read_anew_and_the_others_stay(apart, tmp_path):
    spec = spec_of(LISTED)
    settings = Settings(runs=tmp_path, run_id="run", sources=(str(apart),), engine="serial")
    with pytest.raises(Stop):
        execute(spec, settings, planned=lambda _: stop_after(0)(Counts(0, 0, 0)), progress=lambda _: None)
    write(apart / "Zee/1.root", columns(700, seed=5, least=4))
    result = run(tmp_path, [apart], spec)
    fresh = run(tmp_path, [apart], spec, run_id="fresh")
    assert (result.status, result.digest, result.samples) == ("complete", fresh.digest, fresh.samples)


def test_a_copy_among_several_files_is_named_and_costs_no_figure(apart, serial, tmp_path):
    shutil.copy(apart / "Zee/0.root", apart / "Zee/3.root")
    result = run(tmp_path, [apart], spec_of(PATTERN))
    assert (result.status, result.digest) == ("partial", serial.digest)
    (row,) = result.failures
    assert row.reason == f"{apart}/Zee/3.root: Zee/0.root of sample Zee again (same content), left out"
    assert (result.significance, result.samples["Zee"]) == (serial.significance, serial.samples["Zee"])
    (apart / "Zee/3.root").rename(apart / "Zee/00.root")
    assert run(tmp_path, [apart], spec_of(PATTERN)).failures[0].file == f"{apart}/Zee/00.root"
    (apart / "Zee/0.root").rename(apart / "Zee/4.root")  # the first by name is another now
    assert run(tmp_path, [apart], spec_of(PATTERN)).failures[0].file == f"{apart}/Zee/4.root"
    (apart / "Zee/00.root").unlink()
    again = run(tmp_path, [apart], spec_of(PATTERN))
    assert (again.status, again.digest) == ("complete", serial.digest)


def test_a_paced_run_goes_through_a_sample_of_several_files_as_through_one(apart, tmp_path):
    spec = spec_of(LISTED)
    plan_run(path := tmp_path / "run" / "ledger.db", spec, apart, 100)
    settings = Settings(runs=tmp_path, run_id="run", sources=(str(apart),), pace_s=60.0)
    with Ledger.open(path) as ledger:
        tasks, _ = _in_time(ledger, settings)
    files = [task.file for task in tasks if task.sample == "Zee"]
    assert [file.removeprefix(f"{apart}/") for file in dict.fromkeys(files)] == LISTED
    assert files == sorted(files, key=[f"{apart}/{path}" for path in LISTED].index), "one after the other"
    last = max(i for i, task in enumerate(tasks) if task.file == files[0])
    assert last < 0.7 * len(tasks), "the second file's turn comes while others go on"


# Retracted.


def check_retracted(cli, folder, sample, left):
    """Let the command line retract a sample; all files of the run then say what its ledger says."""
    pictures = [folder / name for name in ("plot.png", "plot.pdf")]
    for picture in pictures:
        picture.write_bytes(b"of before")
    code, out, err = cli("retract", folder.name, sample, "--runs", folder.parent)
    assert code == 0, err
    result = load_json(folder)
    with Ledger.open(folder / "ledger.db") as ledger:
        counts = ledger.counts()
        assert result.digest == digest_of(ledger.blocks())
    assert (result.status, *result.tasks.model_dump().values()) == (counts.status, *counts[:3])
    assert f"retracted; {counts.status}: {counts.planned} tasks planned, {counts.merged} merged" in " ".join(
        out.split()
    )
    assert result.samples[sample].n_out == 0
    assert [(row.sample, row.reason) for row in result.failures] == [(sample, "retracted")]
    assert sum(row.n_out for row in result.samples.values()) == left
    with uproot.open(folder / "histograms.root") as file:
        for name, row in result.samples.items():
            assert np.array_equal(file[f"samples/{name}/all"].values(), row.sumw), name
    assert all(picture.read_bytes() != b"of before" for picture in pictures)


def test_what_is_retracted_is_gone_from_all_files(cli, toys, toy_spec, tmp_path):
    """Issue 11, item 21."""
    before = run(tmp_path, [toys], toy_spec)
    left = sum(row.n_out for name, row in before.samples.items() if name != "Zee")
    check_retracted(cli, tmp_path / "run", "Zee", left)
    again = run(tmp_path, [toys], toy_spec)
    assert (again.status, again.digest) == ("complete", before.digest)


def test_a_retracted_period_of_released_data(cli, shared, tmp_path):
    """Issue 11, item 21: 113 events of data_A and data_B, 86 of data_B alone."""
    result = run(tmp_path, [shared / "atlas2020-13tev"], make_spec(release("2020"), samples=("data_A", "data_B")))
    assert sum(row.n_out for row in result.samples.values()) == 113
    check_retracted(cli, tmp_path / "run", "data_A", 86)
