"""The local cluster that stays between runs: who may use it, and when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hzzray.data.catalogue import release
from hzzray.engine import cluster_keeper, spare_workers, standing_cluster
from hzzray.engine.ledger import Ledger
from hzzray.engine.standing_cluster import Claim, ProcessIdentity, StandingCluster, StandingError, claimed
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from tests.support.chaos import FEW, oracle
from tests.support.waiting import wait_for


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of caches of the test's own, with kernels of all tests."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", os.environ["HZZRAY_CACHE"])
    monkeypatch.setenv("HZZRAY_CACHE", str(tmp_path / "cache"))
    place = standing_cluster.folder()
    (place / "claims").mkdir(parents=True)
    return place


def put(place: Path, slots: int = 2, **changes: object) -> StandingCluster:
    """Write a record whose keeper is this process."""
    record = StandingCluster(
        keeper=ProcessIdentity.of(os.getpid()), address="127.0.0.1:1", token="", slots=slots, idle_s=1.0,
        environment=standing_cluster.environment(os.environ),
    ).model_copy(update=changes)  # fmt: skip
    (place / standing_cluster.RECORD).write_text(record.model_dump_json())
    return record


def test_slots_are_claimed_once(place):
    record = put(place, slots=2)
    with claimed(1) as first, claimed(1) as second, claimed(1) as third:
        assert (first, second, third) == (record, record, None)
        assert [claim.slots for claim in standing_cluster.users()] == [1, 1]
    assert standing_cluster.users() == []
    with claimed(2) as again:
        assert again == record


def test_a_claim_ends_with_its_process(place):
    record = put(place, slots=1)
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim = Claim(process=ProcessIdentity.of(sleeper.pid), slots=1, what="another")
    (place / "claims" / "1.json").write_text(claim.model_dump_json())
    with claimed(1) as mine:
        assert mine is None
    sleeper.kill()  # it stays a zombie until it is waited for
    wait_for("its end", lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_ZOMBIE)
    with claimed(1) as mine:
        assert mine == record
    sleeper.wait()
    sleeper.stdin.close()


def test_a_process_of_the_same_number_is_another_one(place):
    process = ProcessIdentity.of(os.getpid())
    put(place, keeper=process.model_copy(update={"started": process.started - 1}))
    assert standing_cluster.find() is None


@pytest.mark.parametrize("name", ["HZZRAY_CATALOGUE", "PYTHONPATH", "AWS_PROFILE", "https_proxy", "RAY_AUTH_MODE"])
def test_workers_have_the_environment_of_who_runs_or_the_cluster_is_not_used(place, monkeypatch, name):
    put(place)
    monkeypatch.setenv(name, "changed")
    with claimed(1) as mine:
        assert mine is None
    monkeypatch.undo()


def test_workers_have_loaded_what_runs_now_or_the_cluster_is_not_used(place, tmp_path, monkeypatch):
    """They wait with our modules loaded: after an update a run would mix both."""
    monkeypatch.setattr(standing_cluster, "_PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text("x = 1")
    record = put(place)
    with claimed(1) as mine:
        assert mine == record
    (tmp_path / "module.py").write_text("x = 12")
    with claimed(1) as mine:
        assert mine is None


def test_a_cluster_whose_processes_do_not_come_up_is_not_asked_for_ever(monkeypatch):
    """A keeper that asks again and again would fill the machine: it gives up until the next run."""
    asked = []
    monkeypatch.setattr(spare_workers, "refill", lambda *wanted: asked.append(wanted) or True)
    monkeypatch.setattr(cluster_keeper, "_REST_S", -1.0)
    spares = cluster_keeper._Spares(2, 1800.0)
    for _ in range(10):
        spares.look(psutil.Process())
    assert len(asked) == 3
    spares.used()
    spares.look(psutil.Process())
    assert len(asked) == 4
    passing = cluster_keeper._Spares(2, 5.0)
    passing.look(psutil.Process())
    assert len(asked) == 4


def test_a_users_own_modules_stay_preloaded(monkeypatch):
    monkeypatch.setenv("RAY_preload_python_modules", "theirs")
    assert spare_workers.preloaded() == {"RAY_preload_python_modules": "theirs,hzzray.engine.worker_modules"}
    monkeypatch.delenv("RAY_preload_python_modules")
    assert spare_workers.preloaded() == {"RAY_preload_python_modules": "hzzray.engine.worker_modules"}


def test_spare_processes_leave_memory_for_others(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 2**30))
    assert spare_workers.wanted(1) == 2
    assert spare_workers.wanted(64) == 3


def test_what_a_shell_changes_all_the_time_matters_not(place, monkeypatch):
    record = put(place)
    monkeypatch.setenv("OLDPWD", "/elsewhere")
    with claimed(1) as mine:
        assert mine == record


@pytest.mark.parametrize("content", ["", "{}", "null", '{"keeper": 3}', "\0"])
def test_a_record_that_cannot_be_read_is_none(place, content):
    (place / standing_cluster.RECORD).write_text(content)
    (place / "claims" / "broken.json").write_text(content)
    assert standing_cluster.find() is None
    assert standing_cluster.users() == []
    assert not standing_cluster.down()


def test_in_use_it_is_not_ended(place):
    put(place)
    with claimed(1), pytest.raises(StandingError, match=rf"in use by .*\(process {os.getpid()}\); --force"):
        standing_cluster.down()


def test_without_a_folder_of_caches_there_is_none(monkeypatch, cli):
    monkeypatch.setenv("HZZRAY_CACHE", "")
    with claimed(1) as mine:
        assert mine is None
    code, _, said = cli("cluster", "up")
    assert code == 1
    assert "HZZRAY_CACHE" in said


@pytest.mark.parametrize("text", ["", "soon", "3 days", "-1m"])
def test_a_time_that_is_none(place, cli, text):
    code, _, said = cli("cluster", "up", "--idle", text)
    assert code == 2
    assert f"--idle {text}" in said


def hzzray(*words: object) -> list[str]:
    return [str(Path(sys.executable).with_name("hzzray")), *map(str, words)]


def done(*words: object, code: int = 0) -> str:
    """Run a command to its end; returns what it printed."""
    ended = subprocess.run(hzzray(*words), capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def two(processes: list[psutil.Process]) -> list[psutil.Process] | None:
    return processes if len(processes) == 2 else None


def merged(folder: Path) -> int:
    """How many tasks of a run are merged; 0 while there is no ledger."""
    if not (folder / "ledger.db").exists():
        return 0
    with Ledger.open(folder / "ledger.db") as ledger:
        return ledger.counts().merged


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_runs_use_a_cluster_that_stays_and_do_without_when_it_is_ended_under_them(place, toys, tmp_path, monkeypatch):
    """Whoever asks is in another folder than the cluster, says from there where files lie, and has a token of Ray's."""
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    digest = oracle(tmp_path / "oracle", toys, make_spec(release("toy"), observables=("m4l",)))
    monkeypatch.chdir(tmp_path)
    source = os.path.relpath(toys)
    run = ("run", "--source", source, "--runs", "here", "--actors", 1, "--chunk", 1000, "--run-id", "run", *FEW)
    try:
        assert "started: 1 slots at 127.0.0.1" in done("cluster", "up", "--slots", 1)
        record = standing_cluster.find()
        assert (place / standing_cluster.RECORD).stat().st_mode & 0o077 == 0
        assert "is there already" in done("cluster", "up")
        parts = {child.name(): child for child in psutil.Process(record.keeper.pid).children()}
        gcs, raylet = parts["gcs_server"], parts["raylet"]
        # For the worker and the reducer of the run that comes first.
        ready = wait_for("processes that are ready", lambda: two(spare_workers.waiting(raylet)), 60)
        slow = subprocess.Popen(
            hzzray(*run, "--pace", 600), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            wait_for("a merged task", lambda: merged(tmp_path / "here" / "run"))
            (user,) = standing_cluster.users()
            assert (user.process.pid, user.slots) == (slow.pid, 1)
            assert {one.cmdline()[0].partition(".")[0] for one in ready} == {"ray::Worker", "ray::Reducer"}
            assert json.loads(done("cluster", "status", "--json"))["users"][0]["pid"] == slow.pid
            assert f"(process {slow.pid})" in done("cluster", "down", code=1)
            assert gcs.is_running()
            assert "ended" in done("cluster", "down", "--force")
            assert not gcs.is_running()
            said, _ = slow.communicate(timeout=120)
            assert slow.returncode != 0
            assert "Traceback" not in said
            assert "ended the cluster" in said.strip().splitlines()[-1]
        finally:
            slow.kill()
            slow.communicate()
        done(*run)
        assert load_json(tmp_path / "here" / "run").digest == digest
        assert "no cluster that stays" in done("cluster", "status", code=1)
    finally:
        standing_cluster.down(force=True)


@pytest.mark.slow
def test_one_that_is_kept_for_a_process_ends_with_it(place):
    keeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        record, is_new = standing_cluster.up(1, kept_for=keeper.pid)
        assert is_new
        family = [psutil.Process(record.keeper.pid), *psutil.Process(record.keeper.pid).children()]
        keeper.send_signal(signal.SIGKILL)
        keeper.wait()
        wait_for("the cluster's end", lambda: standing_cluster.find() is None, 60)
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        keeper.kill()
        keeper.wait()
        keeper.stdin.close()
        standing_cluster.down(force=True)
