"""The command line as a user meets it: exit codes, one-line errors, what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hzzray.data.catalogue import release


def test_a_run_from_the_shell_says_what_it_found(toys, tmp_path):
    """The real thing, in a process of its own: the serial engine prints a table, and writes the plot."""
    command = ["run", "--source", str(toys), "--engine", "serial", "--runs", str(tmp_path), "--run-id", "first"]
    done = subprocess.run(
        [sys.executable, "-c", "from hzzray.cli import main; main()", *command],
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


def test_version(cli):
    assert cli("--version")[1].startswith("hzzray 0.")


RUN = ("run", "--engine", "serial")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--source", "{tmp}/nowhere"), "source {tmp}/nowhere: no such folder"),
        (("--source", "{tmp}/empty"), "source {tmp}/empty: the folder is empty"),
        (("--source", "{toys}/MC/mc_361106.Zee.4lep.root"), "is a file; give the folder"),
        (("--source", "{toys}", "--samples", "Zee,Zebra"), "release toy has no sample 'Zebra'; it has data_A"),
        (("--source", "{toys}", "--fraction", "0"), "fraction: Input should be greater than 0, not 0"),
        (("--source", "{toys}", "--fraction", "1.5"), "fraction: Input should be less than or equal to 1, not 1.5"),
        (("--source", "{toys}", "--fraction", "nan"), "fraction:"),
        (("--source", "{toys}", "--luminosity", "-1"), "luminosity: must be greater than 0, not -1"),
        (("--source", "{toys}", "--luminosity", "inf"), "luminosity:"),
        (("--source", "{toys}", "--selection", "best"), "no selection 'best'; there are notebook-2020"),
        (("--source", "{toys}", "--cut", "pt_max=1"), "no cut 'pt_max' in notebook-2020; there are pt_min, trigger"),
        (("--source", "{toys}", "--cut", "z2_max=1"), "no cut 'z2_max' in notebook-2020; there are pt_min, trigger"),
        (("--source", "{toys}", "--cut", "pt_min=10,20"), "pt_min must fall from the hardest lepton on"),
        (("--source", "{toys}", "--cut", "trigger=soon"), "trigger: Input should be a valid boolean"),
        (("--release", "2019"), "no release '2019'; there are 2020, 2025, toy"),
        (("--source", "{toys}", "--release", "2025"), "no file of release 2025 in {toys}"),
        (("--source", "ftp://host/x"), "sources are folders, http(s):// or root://, not ftp://"),
        (("--source", "{toys}", "--selection", "notebook-2025", "--release", "toy"), "asks for identification"),
        (("--source", "{toys}", "--run-id", "../up"), "run-id: must be of letters"),
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


def test_a_partial_run_exits_with_3_and_says_why(cli, toys, tmp_path):
    for name in ("data_A", "Zee"):
        sample = release("toy").sample(name)
        (tmp_path / sample.path).parent.mkdir(exist_ok=True)
        (tmp_path / sample.path).write_bytes((toys / sample.path).read_bytes())
    sample = release("toy").sample("llll")
    (tmp_path / sample.path).write_bytes(b"not a ROOT file" * 20)
    code, out, _ = cli(
        "run", "--engine", "serial", "--source", tmp_path, "--samples", "data_A,Zee,llll,Zmumu",
        "--runs", tmp_path / "runs", "--run-id", "x",
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
    command = ("run", "--engine", "serial", "--source", folder, "--events", "2000", "--runs", tmp_path / "runs")
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
