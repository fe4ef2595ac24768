"""The command line as a user meets it: exit codes, one-line errors, what is printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console

import hzzray
from hzzray.cli import app
from hzzray.data.catalogue import release
from hzzray.messages import Task
from hzzray.runs.compare import load
from hzzray.runs.cutflow import cutflow
from hzzray.runs.folder import RunFolder, load_json
from hzzray.runs.request import make_spec
from hzzray.runs.run import Settings, keep_settings
from tests.support.chaos import FEW


def test_a_run_from_the_shell_says_what_it_found(toys, tmp_path, compiled):
    """The real thing, in a process of its own: the serial engine prints a table, and writes the plot."""
    command = ["run", "--source", str(toys), "--engine", "serial", "--runs", str(tmp_path), "--run-id", "first"]
    done = subprocess.run(
        [sys.executable, "-m", "hzzray", *command],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "140"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "complete: 12 tasks planned = 12 merged + 0 failed" in done.stdout
    assert "significance: notebook" in done.stdout
    assert f"plot: {tmp_path / 'first' / 'plot.png'}" in done.stdout
    assert (tmp_path / "first" / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "first" / "plot.pdf").read_bytes().startswith(b"%PDF")


@pytest.fixture
def finished(cli, toys, tmp_path):
    code, _, err = cli(
        "run", "--source", toys, "--engine", "serial", "--runs", tmp_path, "--run-id", "done", "--samples", "Zee,data_A"
    )
    assert code == 0, err
    return tmp_path


def test_looking_at_a_run(cli, finished):
    code, out, _ = cli("result", "done", "--json", "--runs", finished)
    assert code == 0
    assert json.loads(out)["status"] == "complete"
    assert "complete: 2 tasks planned" in cli("result", finished / "done")[1]
    assert "done: complete: 2 tasks planned, 2 merged, 0 failed" in cli("status", "done", "--runs", finished)[1]
    assert "no failed tasks" in cli("failures", "done", "--runs", finished)[1]
    assert "done" in cli("runs", "--runs", finished)[1]
    before = (finished / "done" / "plot.png").read_bytes()
    (finished / "done" / "plot.png").unlink()
    assert cli("plot", "done", "--runs", finished)[0] == 0
    assert (finished / "done" / "plot.png").read_bytes() == before
    assert cli("plot", "done", "--channel", "4mu", "--log", "--runs", finished)[0] == 0
    assert (finished / "done" / "plot-4mu-log.png").exists()


@pytest.mark.parametrize("command", ["result", "status", "plot", "failures", "fit", "report", "cutflow", "pause"])
def test_a_run_without_a_name(cli, tmp_path, command):
    code, _, err = cli(command, " ", "--runs", tmp_path)
    assert code == 2
    assert err.startswith("hzzray: no run is named: give a run's id, or its folder")


def test_a_folder_of_runs_that_can_t_be_used_is_named(cli, toys, tmp_path):
    (tmp_path / "taken").write_text("")
    code, _, err = cli("run", "--source", toys, "--engine", "serial", "--runs", tmp_path / "taken" / "runs")
    assert code == 1
    assert err.startswith(f"hzzray: {tmp_path}/taken/runs: the folder of runs can't be written to: Not a directory")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "verb"), [("pause", "pause"), ("drain", "drain"), ("cancel", "cancel"), ("resume", "resume")]
)
def test_nothing_is_asked_of_a_run_that_has_ended(cli, finished, command, verb):
    code, out, err = cli(command, "done", "--runs", finished)
    assert (code, out.strip()) == (0, f"run done is complete: nothing to {verb}"), err
    with RunFolder(finished / "done").ledger() as ledger:
        assert ledger.wished() == "run"
        ledger.wish("pause")  # an older hzzray left it
    assert "done: complete: 2 tasks" in cli("status", "done", "--runs", finished)[1]


def test_what_is_asked_of_a_run_that_goes_on_is_said(cli, tmp_path):
    RunFolder(tmp_path / "live").create_ledger(make_spec(release("toy")))
    code, out, err = cli("drain", "live", "--runs", tmp_path)
    assert (code, out.strip()) == (0, "run live: asked to drain"), err
    with RunFolder(tmp_path / "live").ledger() as ledger:
        assert ledger.wished() == "drain"


@pytest.mark.parametrize("width", [80, 50])
def test_tables_of_commands_lose_nothing(cli, finished, width, monkeypatch):
    import hzzray.cli
    import hzzray.report_cli

    task = Task.model_construct(sample="Zee", file="MC/mc_361106.Zee.4lep.root", start=0, stop=9)
    path = "/a/folder/whose/name/is/longer/than/a/line/has/room/for/if/it/is/a/narrow/one.root"
    monkeypatch.setattr(hzzray.cli, "_failed", lambda _: [hzzray.cli._FailureRow(task, 3, f"{path}: it is damaged")])
    for module in (hzzray.cli, hzzray.report_cli):
        monkeypatch.setattr(module, "console", Console(width=width, force_terminal=True, color_system=None))
    name = "20261126-121839-abc123"
    shutil.copytree(finished / "done", finished / name)
    calls = (("runs",), ("failures", "done"), ("cutflow", "done"))
    said = "".join(cli(*call, "--runs", finished)[1] for call in calls)
    assert "…" not in said
    flows = cutflow(load_json(finished / "done"), "group").values()
    shares = [str(row.weighted_absolute) for rows in flows for row in rows]
    for text in (name, "complete", "2 of 2", task.file, path, "it is damaged", *shares):
        assert text in said


def test_version(cli):
    assert cli("--version")[1].startswith("hzzray 0.")


RUN = ("run", "--engine", "serial")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--source", "{tmp}/nowhere"), "source {tmp}/nowhere: no such folder"),
        (("--source", "{tmp}/empty"), "source {tmp}/empty: the folder is empty"),
        (("--source", "{toys}/MC/mc_361106.Zee.4lep.root"), "is a file; give the folder"),
        (("--source", " "), "no source is named: --source wants a folder or an address"),
        (("--source", "{toys}", "--samples", " ,"), "no sample is named"),
        (("--source", "{toys}", "--variations", " "), "no variation is named: --variations wants NAME,NAME"),
        (("--source", "{toys}", "--samples", "Zee,Zebra"), "release toy has no sample 'Zebra'; it has data_A"),
        (("--source", "{toys}", "--fraction", "0"), "fraction: must be greater than 0, not 0"),
        (("--source", "{toys}", "--fraction", "1.5"), "fraction: must be 1 or less, not 1.5"),
        (("--source", "{toys}", "--fraction", "nan"), "fraction:"),
        (("--source", "{toys}", "--luminosity", "-1"), "luminosity: must be greater than 0, not -1"),
        (("--source", "{toys}", "--luminosity", "inf"), "luminosity:"),
        (("--source", "{toys}", "--selection", "best"), "no selection 'best'; there are notebook-2020"),
        (("--cut", "pt_max=1:"), "analysis h4l has no variable 'pt_max'; it has m4l, m12, m34, pt4l, y4l, pt1, pt2, "),
        (("--cut", "pt_min=25,15"), "--cut pt_min=25,15: expected VARIABLE=LOW:HIGH, such as m12=60:106, pt1=25: or "),
        (("--cut", "m12=60"), "--cut m12=60: expected VARIABLE=LOW:HIGH"),
        (("--cut", "m12"), "--cut m12: expected VARIABLE=LOW:HIGH"),
        (("--cut", "=60:80"), "--cut =60:80: expected VARIABLE=LOW:HIGH"),
        (("--cut", "m12=soft:"), "--cut m12=soft:: expected VARIABLE=LOW:HIGH"),
        (("--cut", "m12=60:106:4"), "--cut m12=60:106:4: expected VARIABLE=LOW:HIGH"),
        (("--cut", "m12=nan:106"), "--cut m12=nan:106: nan is no number to compare with"),
        (("--cut", "m12=:nan"), "--cut m12=:nan: nan is no number to compare with"),
        (("--cut", "m12=106:60"), "--cut m12=106:60: nothing is above 106 and below 60"),
        (("--cut", "m12=60:60"), "--cut m12=60:60: nothing is above 60 and below 60"),
        (
            (
                *("--selection", "notebook-2020", "--cut", "n_leptons=:", "--cut", "flavours=:"),
                *("--cut", "charge=:"),
            ),
            "a selection needs at least one cut",
        ),
        (("--parameter", "pt_min=3"), "analysis h4l has no parameter 'pt_min'; it has electron_pt_min, muon_pt_min, "),
        (("--parameter", "gev=3"), "analysis h4l has no parameter 'gev'; it has electron_pt_min"),
        (("--parameter", "identified"), "--parameter identified: expected NAME=VALUE"),
        (("--parameter", "=1"), "--parameter =1: expected NAME=VALUE"),
        (("--parameter", "isolated=soon"), "--parameter isolated=soon: isolated must be true or false"),
        (("--parameter", "isolated=1"), "--parameter isolated=1: isolated must be true or false"),
        (("--parameter", "muon_pt_min=true"), "--parameter muon_pt_min=true: muon_pt_min must be a number"),
        (("--parameter", "muon_pt_min=nan"), "--parameter muon_pt_min=nan: muon_pt_min must be a number"),
        (("--parameter", "muon_pt_min="), "--parameter muon_pt_min=: muon_pt_min must be a number"),
        (
            ("--selection", "notebook-2020", "--parameter", "muon_pt_min=5"),
            "analysis notebook has no parameter 'muon_pt_min'; it has identified, isolated",
        ),
        (("--observable", "m56=0:1:1"), "--observable m56: analysis h4l has no variable 'm56'; it has m4l, m12"),
        (("--observable", "m56"), "--observable m56: analysis h4l has no variable 'm56'; it has m4l, m12"),
        (
            ("--observable", "m_sfos"),
            "--observable m_sfos: give its axis too: m_sfos=START:STOP:BINS",
        ),
        (("--observable", "m12=40:120"), "--observable m12=40:120: expected START:STOP:BINS, such as 80:250:34"),
        (("--observable", "m12=40:120:0"), "--observable m12=40:120:0: an axis needs start < stop and at least one"),
        (("--observable", "m12=40:120:2.5"), "--observable m12=40:120:2.5: 2.5 is no number of bins"),
        (("--observable", "m12=120:40:40"), "--observable m12=120:40:40: an axis needs start < stop"),
        (("--observable", "m12=nan:40:40"), "--observable m12=nan:40:40: expected START:STOP:BINS"),
        (("--observable", "m12=0:inf:40"), "--observable m12=0:inf:40: expected START:STOP:BINS"),
        (("--observable", "m4l", "--observable", "m4l=80:250:68"), "observable m4l is there twice"),
        (("--observable", "m12", "--window", "81:100"), "window 81 to 100 GeV doesn't lie on bin edges (40 bins from"),
        (("--release", "2019"), "no release '2019'; there are 2020, 2025, toy"),
        (("--source", "{toys}", "--release", "2025"), "no file of release 2025 in {toys}"),
        (("--source", "ftp://host/x"), "sources are folders, http(s):// or root://, not ftp://"),
        (("--source", "{toys}", "--selection", "notebook-2025", "--release", "toy"), "asks for identification"),
        (("--source", "{toys}", "--run-id", "../up"), "run-id: must be of letters"),
        (("--source", "{toys}", "--window", "116:131"), "window 116 to 131 GeV doesn't lie on bin edges (34 bins from"),
        (
            ("--source", "{toys}", "--window", "100:300"),
            "window 100 to 300 GeV leaves the axis: 34 bins from 80 to 250",
        ),
        (("--source", "{toys}", "--window", "115"), "--window 115: expected LOW:HIGH, such as 115:130"),
        (("--source", "{toys}", "--window", "nan:130"), "--window nan:130: expected LOW:HIGH"),
        (("--source", "{toys}", "--axis", "80:250:85"), "116 to 130 GeV does; give --window too"),
        (("--source", "{toys}", "--axis", "80:250"), "--axis 80:250: expected START:STOP:BINS, such as 80:250:34"),
        (("--source", "{toys}", "--axis", "80:250:3.5"), "--axis 80:250:3.5: 3.5 is no number of bins"),
        (("--source", "{toys}", "--axis", "250:80:34"), "an axis needs start < stop"),
        (("--source", "{toys}", "--axis", "80:250:1e9"), "an axis has 10000 bins at most"),
        (("--catalogue", "{tmp}/none.yaml"), "catalogue {tmp}/none.yaml: No such file"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(cli, toys, tmp_path, options, said):
    (tmp_path / "empty").mkdir()
    filled = [option.format(tmp=tmp_path, toys=toys) for option in options]
    code, out, err = cli(*RUN, "--runs", tmp_path / "runs", *filled)
    assert code == 2
    assert said.format(tmp=tmp_path, toys=toys) in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert not (tmp_path / "runs").exists(), "a refused run leaves nothing behind"


@pytest.mark.parametrize("command", ["result", "status", "plot", "failures"])
def test_no_such_run(cli, tmp_path, command):
    code, _, err = cli(command, "absent", "--runs", tmp_path)
    assert code == 2
    assert f"{tmp_path / 'absent'}: no such run" in err


def test_a_file_is_no_run_and_no_folder_of_runs(cli, finished):
    file = finished / "done" / "result.json"
    code, _, err = cli("result", file, "--runs", finished)
    assert (code, err) == (2, f"hzzray: {file} is a file: give a run's id, or its folder (hzzray runs lists them)\n")
    code, said, err = cli("runs", "--runs", file)
    assert (code, said) == (2, "")
    assert "Invalid value for '--runs'" in err


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("plot", "some", "--output", ""), "what follows --output"),
        (("plot", "some", "--output="), "--output"),
        (("kube", "render", ""), "what follows render"),
        (("", "plot"), "what follows hzzray"),
        (("fetch", "", "--release", "toy"), "what follows fetch"),
        (("fetch", "{tmp}/data", "--samples", ""), "what follows --samples"),
    ],
)
def test_what_is_empty_is_nobodys_folder(cli, tmp_path, monkeypatch, words, what):
    """A variable of the shell that isn't set; `fetch "$DATA"` wrote into the folder one was in."""
    monkeypatch.chdir(tmp_path)
    code, _, err = cli(*(word.format(tmp=tmp_path) for word in words))
    assert (code, err) == (2, f"hzzray: {what} is empty: is a variable of the shell not set?\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nothing", [("--broker", ""), ("--broker=",), ("--reason", "")])
def test_no_broker_and_no_reason_are_choices(cli, tmp_path, nothing):
    """The app's own commands say so, of runs that no bridge works on."""
    code, _, err = cli("replay", "absent", *nothing, "--runs", tmp_path)
    assert code == 2
    assert "no such run" in err or "which broker?" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--source", "{toys}", "--samples", ","), "no sample is named"), (("--source", " "), "no source is named")],
)
def test_nothing_is_fetched_that_is_not_named(cli, toys, tmp_path, options, said):
    filled = [option.format(toys=toys) for option in options]
    code, _, err = cli("fetch", tmp_path / "data", "--release", "toy", *filled)
    assert (code, err.startswith(f"hzzray: {said}")) == (2, True), err
    assert not (tmp_path / "data").exists()


def test_a_partial_run_exits_with_3_and_says_why(cli, toys, tmp_path):
    for name in ("data_A", "Zee"):
        sample = release("toy").sample(name)
        (tmp_path / sample.path).parent.mkdir(exist_ok=True)
        (tmp_path / sample.path).write_bytes((toys / sample.path).read_bytes())
    sample = release("toy").sample("llll")
    (tmp_path / sample.path).write_bytes(b"not a ROOT file" * 20)
    code, out, _ = cli(
        "run", "--engine", "serial", "--source", tmp_path, "--samples", "data_A,Zee,llll,Zmumu",
        "--runs", tmp_path / "runs", "--run-id", "x", *FEW,
    )  # fmt: skip
    assert code == 3
    flat = " ".join(out.split())
    assert "partial: 4 tasks planned = 2 merged + 2 failed" in flat
    assert "failed: Zmumu" in flat
    assert "no such file" in flat
    assert f"{tmp_path / sample.path}: not a ROOT file" in " ".join(
        cli("failures", tmp_path / "runs/x")[1].split()
    ) or ("not a ROOT file" in flat)


def test_files_of_another_release_are_named(cli, shared, tmp_path):
    sample = release("2020").sample("Zee")
    (tmp_path / "MC").mkdir()
    (tmp_path / sample.path).write_bytes((shared / "uproot-HZZ.root").read_bytes())
    code, out, _ = cli(
        "run", "--release", "2020", "--engine", "serial", "--source", tmp_path, "--samples", "Zee",
        "--runs", tmp_path / "runs",
    )  # fmt: skip
    assert code == 3
    assert "no tree mini (it has events): is this file of another release?" in " ".join(out.split())


def test_toy_then_run_with_nothing_but_defaults(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli("toy", "--events", "3000")[0] == 0
    code, out, _ = cli("run", "--engine", "serial")
    assert code == 0
    assert "hzzray toy simulation" in out
    assert len(list((tmp_path / "runs").glob("*/plot.png"))) == 1


def test_fetch_then_run(cli, toys, tmp_path):
    code, _, _ = cli("fetch", tmp_path / "data", "--release", "toy", "--source", toys, "--samples", "Zee,data_A")
    assert code == 0
    assert (tmp_path / "data" / release("toy").sample("Zee").path).exists()
    code, _, err = cli("fetch", tmp_path / "data", "--release", "toy")
    assert code == 2
    assert "lies nowhere on the web" in err


def test_a_toy_run_writes_its_files_first(cli, tmp_path):
    folder = tmp_path / "toy-2000"
    command = ("run", "--engine", "serial", "--source", folder, "--events", "2000", "--runs", tmp_path / "runs", *FEW)
    code, out, _ = cli(*command)
    assert (code, "simulating 2000 events" in out) == (0, True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    code, out, _ = cli(*command)
    assert (code, "simulating" in out) == (0, False)


def test_the_package_is_the_command():
    said = subprocess.run([sys.executable, "-m", "hzzray", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("hzzray 0.")


@pytest.mark.parametrize("command", ["run", "publish", "bridge", "queues"])
def test_help_shows_a_brokers_url_as_it_is(cli, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    code, said, err = cli(command, "--help")
    assert code == 0, err
    assert "amqp[s]://USER@HOST[:PORT][/VHOST]" in said


def test_a_comparison_is_written_beside_the_runs(cli, toys, tmp_path, monkeypatch):
    """Issue 11, item 41: in a container there is nowhere else to write to."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for name in ("a", "b"):
        code, _, err = cli("run", "--engine", "serial", "--source", toys, "--runs", runs, "--run-id", name, *FEW)
        assert code == 0, err
    code, out, err = cli("compare", "a", "b", "--runs", runs)
    assert code == 0, err
    assert {path.name for path in runs.iterdir()} == {"a", "b", "compare.csv", "compare.png", "compare.pdf"}
    assert list(elsewhere.iterdir()) == []
    assert str(runs / "compare.csv") in out


def test_a_full_disk_of_runs_is_told(cli, toys, tmp_path, monkeypatch):
    """Issue 11, item 41: only the bridge's log knew; `status` said running."""
    code, _, err = cli("run", "--engine", "serial", "--source", toys, "--runs", tmp_path, "--run-id", "a", *FEW)
    assert (code, err) == (0, "")
    for command in (("status", "a"), ("runs",)):
        assert cli(*command, "--runs", tmp_path)[2] == ""
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr("hzzray.disk.shutil.disk_usage", lambda _: full)
    for command in (("status", "a"), ("runs",)):
        _, _, err = cli(*command, "--runs", tmp_path)
        said = " ".join(err.split())
        assert said == f"the disk of {tmp_path} is full (0.0 MB left): no result can be stored until there is room"


def test_which_broker_is_meant(toys, tmp_path, monkeypatch):
    """Issue 11, item 41: `replay` ignored HZZRAY_BROKER, which is meant where bridges work on the run."""
    from hzzray.cli import _broker_of

    monkeypatch.delenv("HZZRAY_BROKER", raising=False)
    mine, theirs = RunFolder(tmp_path / "mine"), RunFolder(tmp_path / "theirs")
    for folder, bridged in ((mine, False), (theirs, True)):
        settings = Settings(runs=tmp_path, run_id=folder.run_id, sources=(str(toys),), bridged=bridged)
        folder.create_ledger(make_spec(release("toy")))
        with folder.ledger() as ledger:
            keep_settings(ledger, settings)
    assert _broker_of(theirs, None) is None
    monkeypatch.setenv("HZZRAY_BROKER", "amqp://rabbit")
    assert _broker_of(theirs, None) == "amqp://rabbit"
    assert _broker_of(RunFolder(tmp_path / "elsewhere"), None) == "amqp://rabbit"
    assert _broker_of(mine, None) is None
    assert _broker_of(theirs, "memory") is None
    assert _broker_of(mine, "amqp://other") == "amqp://other"


def test_toys_are_written_once_whoever_else_writes_them(cli, tmp_path, monkeypatch):
    """Issue 11, item 36: workers of one machine write toys into the volume that they share."""
    from hzzray import cli as module

    folder = tmp_path / "toy-300"
    command = ("toy", folder, "--events", 300, "--if-absent")
    write = module._write_toys

    def and_another_is_faster(chosen, part, *more):
        write(chosen, folder, *more)
        return write(chosen, part, *more)

    monkeypatch.setattr(module, "_write_toys", and_another_is_faster)
    assert cli(*command)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["toy-300"]
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.root")}
    assert written
    assert cli(*command)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.root")} == written
    (tmp_path / "file").write_text("no folder")
    code, _, err = cli("toy", tmp_path / "file" / "toy", "--events", 300, "--if-absent")
    assert code == 2
    assert "Traceback" not in err


def test_a_dry_run_tells_what_a_run_reads(cli, finished, toys, tmp_path, monkeypatch):
    """The very bytes and tasks of the run that follows; nothing is written."""
    monkeypatch.setenv("COLUMNS", "80")
    command = ("run", "--source", toys, "--engine", "serial", "--runs", finished, "--samples", "Zee,data_A")
    result = json.loads((finished / "done" / "result.json").read_text())
    before = sorted(finished.iterdir())
    code, out, err = cli(*command, "--dry-run", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["files"], said["tasks"], said["events"]) == (2, 2, result["cost"]["events"])
    assert said["bytes"] == pytest.approx(result["cost"]["bytes_read"], rel=0.01)  # and the files' headers
    assert said["basis"].startswith("2 M events/s a core, as in docs/performance.md"), "few events tell no rate"
    code, out, err = cli(*command, "--dry-run", "--fraction", "0.5", "--chunk", "1000")
    assert (code, err) == (0, "")
    assert "50 % of each file, 10 fb⁻¹" in out
    assert max(map(len, out.splitlines())) <= 80
    assert sorted(finished.iterdir()) == before
    assert cli(*command, "--json")[0] == 2


def test_a_dry_runs_time_is_that_of_an_earlier_run(cli, finished, toys):
    path = finished / "done" / "result.json"
    told = json.loads(path.read_text())
    told["cost"] |= {"events": 1_000_000, "cpu_s": 4.0}
    path.write_text(json.dumps(told))
    command = ("run", "--source", toys, "--engine", "serial", "--runs", finished, "--samples", "Zee", "--dry-run")
    said = json.loads(cli(*command, "--json")[1])
    assert said["events_per_s"] == 250_000
    assert said["cpu_s"] == pytest.approx(said["events"] / 250_000)
    assert said["basis"] == "0.25 M events/s a core, as in run done"
    said = json.loads(cli(*command, "--json", "--selection", "notebook-2020")[1])
    assert said["events_per_s"] == 2_000_000, "another analysis' rate is no measure"


def test_a_dry_run_names_what_lacks_and_simulates_nothing(cli, toys, tmp_path, monkeypatch):
    sample = release("toy").sample("data_A")
    (tmp_path / "some" / sample.path).parent.mkdir(parents=True)
    (tmp_path / "some" / sample.path).symlink_to(toys / sample.path)
    code, out, err = cli(
        "run", "--source", tmp_path / "some", "--samples", "data_A,Zee", "--dry-run", "--runs", tmp_path
    )
    assert code == 0
    assert "not read: Zee: " in err
    assert "no such file" in err
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("publish", "--dry-run")
    assert code == 0, "no broker is needed"
    assert "200000 events would be simulated into toy first" in out
    assert not (tmp_path / "toy").exists()
    assert json.loads(cli("run", "--dry-run", "--json")[1]) == {"to_simulate": 200_000, "sources": ["toy"]}


def test_what_commands_tell_is_there_for_programs(cli, toys, tmp_path):
    run = ("run", "--engine", "serial", "--source", toys, "--runs", tmp_path, "--samples", "Zee,data_A", *FEW)
    for name in ("a", "b"):
        assert cli(*run, "--run-id", name)[0] == 0
    status = json.loads(cli("status", "a", "--runs", tmp_path, "--json")[1])
    assert status | {"events": 0} == {
        "run_id": "a", "planned": 2, "merged": 2, "failed": 0, "events": 0, "duplicates": 0, "due": 0,
        "status": "complete", "wish": "run",
    }  # fmt: skip
    assert [row["run"] for row in json.loads(cli("runs", "--runs", tmp_path, "--json")[1])] == ["a", "b"]
    assert json.loads(cli("failures", "a", "--runs", tmp_path, "--json")[1]) == []
    compared = json.loads(cli("compare", "a", "b", "--runs", tmp_path, "--json")[1])
    assert [row["run_id"] for row in compared["runs"]] == ["a", "b"]
    assert compared["differences"][0].startswith("comparable: ")
    flow = json.loads(cli("cutflow", "a", "--runs", tmp_path, "--json", "--sample", "Zee")[1])
    assert flow["samples"].keys() == {"Zee"}
    assert flow["samples"]["Zee"][0]["absolute"] == 1
    code, _, err = cli("cutflow", "a", "--runs", tmp_path, "--sample", "Zoo")
    assert (code, "run a has no sample 'Zoo'; it has data_A, Zee" in err) == (2, True)


def test_what_commands_write_is_told_to_programs(cli, toys, tmp_path):
    """Issue 17: nothing but JSON on standard output, of each command that prints something for people."""
    data = release("toy").sample("data_A")
    source = tmp_path / "some"
    (source / data.path).parent.mkdir(parents=True)
    (source / data.path).symlink_to(toys / data.path)
    run = ("run", "--engine", "serial", "--source", source, "--runs", tmp_path, "--samples", "Zee,data_A", *FEW)
    assert cli(*run, "--run-id", "a")[0] == 3

    def told(*command: object, code: int = 0) -> dict:
        ended, out, err = cli(*command, "--json")
        assert ended == code, err
        return json.loads(out)

    of = ("a", "--runs", tmp_path)
    for command in ("plot", "scale", "report"):
        files = [Path(name) for name in told(command, *of)["files"]]
        assert files, command
        assert all(file.is_file() and file.parent == tmp_path / "a" for file in files), command
    again = told("replay", *of, "--source", toys)
    assert (again["status"], again["planned"], again["merged"], again["failed"]) == ("complete", 2, 2, 0)
    assert again["digest"] == json.loads((tmp_path / "a" / "result.json").read_text())["digest"]
    gone = told("retract", "a", "Zee", "--runs", tmp_path)
    assert (gone["retracted"], gone["status"], gone["failed"]) == (1, "partial", 1)
    files = told("hepdata", *of)["files"]
    assert str(tmp_path / "a" / "hepdata" / "submission.yaml") in files
    fetched = ("fetch", tmp_path / "got", "--release", "toy", "--source", toys, "--samples", "data_A")
    assert told(*fetched) == {"fetched": [data.name], "skipped": [], "failed": {}}
    assert told(*fetched)["skipped"] == [data.name]
    toy = ("toy", tmp_path / "toys", "--events", 100)
    assert told(*toy) == {"folder": str(tmp_path / "toys"), "written": len(list((tmp_path / "toys").rglob("*.root")))}
    assert told(*toy, "--if-absent")["written"] == 0


#: Commands that print nothing, or a log, or what is a file's text anyhow.
WITHOUT_JSON = {
    *("pause", "resume", "drain", "cancel", "prefetch", "bridge", "topology definitions", "cluster up", "cluster down"),
    *(f"kube {name}" for name in ("up", "submit", "forward", "down", "manifests", "chart", "secrets")),
}


def test_each_command_that_tells_something_tells_programs():
    def walk(command, path: str = ""):
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, f"{path} {name}".strip())
        if not hasattr(command, "commands"):
            yield path, any("--json" in option.opts for option in command.params)

    without = {path for path, has in walk(typer.main.get_command(app)) if not has}
    assert without == WITHOUT_JSON


def test_a_failure_for_programs(cli, toys, tmp_path):
    (tmp_path / "MC").mkdir()
    zee, data = (release("toy").sample(name) for name in ("Zee", "data_A"))
    (tmp_path / zee.path).write_bytes(b"not a ROOT file" * 20)
    (tmp_path / data.path).parent.mkdir(exist_ok=True)
    (tmp_path / data.path).symlink_to(toys / data.path)
    run = ("run", "--engine", "serial", "--source", tmp_path, "--samples", "Zee,data_A", "--runs", tmp_path / "runs")
    assert cli(*run, "--run-id", "x")[0] == 3
    (row,) = json.loads(cli("failures", "x", "--runs", tmp_path / "runs", "--json")[1])
    assert (row["sample"], row["file"]) == ("Zee", str(tmp_path / zee.path))
    assert "not a ROOT file" in row["reason"]


def test_a_long_name_is_not_cut_short(cli, finished, monkeypatch):
    monkeypatch.setattr("hzzray.cli.console", Console(width=80, force_terminal=True, color_system=None))
    name = "a-very-long-name-of-a-run" * 2
    (finished / "done").rename(finished / name)
    out = cli("runs", "--runs", finished)[1]
    assert name in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("typed", "found"), [("hzzray ver", "verify"), ("hzzray run --lumi", "--luminosity")])
def test_the_shell_completes_commands_and_options(typed, found):
    said = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'hzzray'; from hzzray.cli import main; main()"],
        capture_output=True, text=True, timeout=60, check=False,
        env={
            **os.environ, "_HZZRAY_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")),
        },
    )  # fmt: skip
    assert said.stdout.split() == [found], said.stderr


def test_a_run_is_called_as_its_folder_is(cli, toys, tmp_path, monkeypatch):
    """A copy's ledger and result have the id of the run that it was copied from, which leads to another folder."""
    run = ("run", "--engine", "serial", "--source", toys, "--runs", tmp_path, "--samples", "Zee,data_A", "--no-plot")
    assert cli(*run, "--run-id", "a")[0] == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    of, in_runs = ("b", "--runs", tmp_path), ("--runs", tmp_path)
    assert [row["run"] for row in json.loads(cli("runs", *in_runs, "--json")[1])] == ["a", "b"]
    assert [run.label for run in load([tmp_path / "a", tmp_path / "b"])] == ["a (local)", "b (local)"]
    for command in ("result", "cutflow", "verify", "status"):
        assert json.loads(cli(command, *of, "--json")[1])["run_id"] == "b"
    assert "run b, complete" in cli("cutflow", *of)[1]
    monkeypatch.chdir(tmp_path / "b")
    assert json.loads(cli("cutflow", ".", "--json")[1])["run_id"] == "b"
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "a" / "result.json").read_bytes()
    assert json.loads(cli("retract", "b", "Zee", *in_runs, "--json")[1])["run_id"] == "b"
    assert json.loads((tmp_path / "b" / "result.json").read_text())["run_id"] == "b"
    assert json.loads(cli("replay", *of, "--json")[1])["run_id"] == "b"
    assert json.loads(cli("status", *of, "--json")[1])["merged"] == 2
    assert (tmp_path / "a" / "result.json").read_bytes() == before
    (tmp_path / "a").rename(tmp_path / "a copy")
    assert json.loads(cli("verify", "a copy", *in_runs, "--json")[1])["equal"]
    code, _, err = cli("replay", "a copy", *in_runs)
    assert (code, "run-id: must be of letters" in err) == (2, True)


INTERRUPTED_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where we run in a background
module = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from hzzray.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["rich.console", "hzzray.runs.request", "hzzray.report.console_table"])
def test_an_interrupt_is_one_line_whenever_it_comes(module, tmp_path):
    """While the command line is imported, and while a command imports what it needs."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, module, "runs", "--runs", tmp_path],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "hzzray: interrupted\n")


def test_what_output_cannot_hold_is_replaced(finished):
    for command in (("result", "done"), ("cutflow", "done"), ("--help",), ("result", "µ")):
        done = subprocess.run(
            [sys.executable, "-m", "hzzray", *command],
            capture_output=True, timeout=60, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "HZZRAY_RUNS": str(finished)},
        )  # fmt: skip
        assert done.returncode == (2 if "µ" in command else 0), done.stderr
        assert b"Traceback" not in done.stderr
        assert b"?" in done.stdout + done.stderr


def test_events_that_are_not_simulated_are_told(cli, toys, tmp_path, capsys):
    said = f"{toys} is there: its events are taken, and no 7 are simulated"
    run = ("run", "--engine", "serial", "--source", toys, "--samples", "data_A", "--events", "7", "--runs", tmp_path)
    code, out, err = cli(*run, "--no-plot")
    assert (code, err.strip(), said in out) == (0, said, False)
    code, out, err = cli(*run, "--dry-run", "--json")
    assert (code, err.strip(), json.loads(out)["files"]) == (0, said, 1)
    hzzray.run("toy", sources=toys, samples="data_A", engine="serial", events=7, runs=tmp_path)
    assert said in capsys.readouterr().err.splitlines()
    _, _, err = cli(*run, "--release", "2020", "--dry-run")
    assert err.startswith("--events simulates into a folder of release toy alone")


@pytest.mark.parametrize("command", [("result", "done"), ("result", "done", "--json"), ("--version",), ("runs",)])
def test_output_that_a_full_disk_cannot_take_is_one_line(finished, command):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hzzray", *command],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
            env={**os.environ, "HZZRAY_RUNS": str(finished)},
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "hzzray: the output can't be written: No space left on device\n")


@pytest.mark.parametrize("option", [("--json",), ("--toys", "5"), ("--output", "there")])
def test_what_a_watched_fit_cannot_do_is_refused(cli, tmp_path, option):
    """It was left out without a word, and --json had no JSON."""
    code, out, err = cli("fit", "one", "--watch", *option, "--runs", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("hzzray: --watch fits quickly, into the run's folder: it goes without --toys")


def test_brackets_in_names_are_no_markup(cli, tmp_path, monkeypatch):
    """A closing tag was a traceback, an opening one was gone from the name, a long path was broken at 80."""
    monkeypatch.chdir(tmp_path)
    folder = Path("[/x] [red]" + "of a long name " * 10)
    code, out, _ = cli("toy", folder, "--events", 20)
    written = len(list(folder.rglob("*.root")))
    assert (code, out) == (0, f"wrote {written} files to {folder}\n")
    run = ("run", "--engine", "serial", "--source", folder, "--runs", folder, "--samples", "Zee,data_A", *FEW)
    code, _, err = cli(*run, "--run-id", "a")
    assert code == 0, err
    (folder / "a").rename(folder / "[a]")
    for command in (("report", "[a]"), ("status", "[a]"), ("cutflow", "[a]"), ("result", "[a]")):
        code, out, err = cli(*command, "--runs", folder)
        assert (code, "[a]" in out) == (0, True), (command, err)


def test_a_dry_run_of_little_is_said_in_words(cli, toys, tmp_path):
    run = ("run", "--source", toys, "--samples", "data_A", "--fraction", "0.01", "--dry-run", "--runs", tmp_path)
    code, out, _ = cli(*run, "--engine", "serial")
    assert (code, "; 1 task, " in out) == (0, True), out
    assert "under a millisecond of CPU, under a millisecond on 1 worker, beside" in out


@pytest.mark.parametrize(
    "command", [("plot", "done"), ("compare", "done"), ("hepdata", "done"), ("plot", "done", "--channel", "4mu")]
)
def test_a_file_is_no_folder_to_write_to(cli, finished, command):
    code, _, err = cli(*command, "--runs", finished, "--output", finished / "mine.png")
    assert (code, err) == (
        2,
        f"hzzray: --output {finished / 'mine.png'} is to be a folder, in which files get names of their own\n",
    )
    assert not (finished / "mine.png").exists()
