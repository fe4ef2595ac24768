"""Ray's settings in each way to have it: a cluster of one's own, one to attach to, one to submit jobs to."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from hzzray.runs.folder import load_json
from tests.support.chaos import FEW, oracle
from tests.support.ray_head import RAY, free_ports, ray_head

ROOT = Path(__file__).parents[1]
HZZRAY = str(Path(sys.executable).with_name("hzzray"))

LOOK_AROUND = """
import json, os, time, urllib.error, urllib.request
import psutil
import ray.util  # before the settings are made: they must hold all the same
from hzzray.engine.cluster import cluster

def sockets():
    me = psutil.Process()
    return [c.laddr.ip for p in (me, *me.children(recursive=True)) for c in p.net_connections("inet")
            if c.status == psutil.CONN_LISTEN or not c.raddr]

def dashboard():
    me = psutil.Process()
    return {c.laddr.port for p in me.children(recursive=True) if "dashboard.py" in " ".join(p.cmdline())
            for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}

def refusals():
    found = set()
    for port in dashboard():
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/jobs/", timeout=10).read()
        except urllib.error.HTTPError as error:
            found.add(error.code)
    return sorted(found)

with cluster(1):
    import ray
    @ray.remote(num_cpus=1)
    def threads():
        import numba
        return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")} | {
            "numba": numba.config.NUMBA_NUM_THREADS}
    seen = {"threads": ray.get(threads.remote()), "listening": sockets(), "refusals": refusals(),
            "store": ray.cluster_resources()["object_store_memory"], "cpus": ray.cluster_resources()["CPU"],
            "usage": os.environ["RAY_USAGE_STATS_ENABLED"]}
seen["left"] = sorted(name for name in os.environ if name.startswith("RAY_"))
print(json.dumps(seen))
"""


def bare_environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user who set nothing of Ray's."""
    ours = ("RAY_", "OMP_", "NUMBA_NUM", "HZZRAY_DASHBOARD")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def digest(toys, tmp_path_factory):
    from hzzray.data.catalogue import release
    from hzzray.runs.request import make_spec

    return oracle(tmp_path_factory.mktemp("serial"), toys, make_spec(release("toy"), observables=("m4l",)))


@pytest.mark.slow
def test_a_cluster_of_ones_own_is_for_this_machine_and_this_user_only(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOOK_AROUND],
        env=bare_environment(tmp_path), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    addresses = [ip_address(text) for text in seen["listening"]]
    assert len(addresses) > 5
    assert {str(getattr(address, "ipv4_mapped", None) or address) for address in addresses} <= {"127.0.0.1", "::1"}
    assert 401 in seen["refusals"]
    assert not (tmp_path / ".ray").exists()
    assert set(seen["threads"].values()) == {"1", 1}
    assert seen["store"] <= 128 * 1024**2
    assert seen["cpus"] == 1
    assert seen["usage"] == "0"
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & set(seen["left"])


WRONG = {
    "127.0.0.1:{port}": "no answer within 10 s",
    "nowhere": "no answer within 10 s",
    "ray://127.0.0.1:{port}": "start it there, or by ray job submit",
}


def test_a_wrong_address_is_one_line_and_soon(toys, tmp_path):
    """All at once, as they wait for answers that don't come."""
    (port,) = free_ports(1)
    begun = time.monotonic()
    running = {}
    for wrong, reason in WRONG.items():
        address = wrong.format(port=port)
        running[address, reason] = subprocess.Popen(
            [HZZRAY, "run", "--source", str(toys), "--runs", str(tmp_path)],
            env=bare_environment(tmp_path, RAY_ADDRESS=address),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        for (address, reason), process in running.items():
            _, said = process.communicate(timeout=100)
            assert process.returncode == 1
            (line,) = said.splitlines()
            assert line.startswith(f"hzzray: no Ray cluster at RAY_ADDRESS={address}: ")
            assert reason in line
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    assert time.monotonic() - begun < 30


@pytest.fixture(scope="module")
def head():
    """A cluster that takes nobody without its token."""
    with ray_head("--num-cpus=2", env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}) as running:
        yield running


def submit(head, *arguments, name, env_vars=None, **env):
    runtime = json.dumps({"env_vars": {"HZZRAY_CACHE": os.environ["HZZRAY_CACHE"], **(env_vars or {})}})
    options = ["--address", head.dashboard, "--submission-id", name, "--runtime-env-json", runtime]
    if "--no-wait" in arguments:
        options.append("--no-wait")
    command = [part for part in arguments if part != "--no-wait"]
    return head.run(RAY, "job", "submit", *options, "--", HZZRAY, *map(str, command), **env)


@pytest.mark.slow
def test_a_submitted_job_gives_the_serial_digest(head, toys, digest, tmp_path):
    # A variable that the job sets too is the job's: Ray would refuse the run otherwise.
    done = submit(
        head, "run", "--source", toys, "--runs", tmp_path, "--run-id", "job", "--chunk", 2000, *FEW,
        name="whole", env_vars={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    result = load_json(tmp_path / "job")
    assert result.digest == digest
    assert result.status == "complete"


@pytest.mark.slow
def test_a_job_that_fails_says_so(head, tmp_path):
    done = submit(head, "run", "--source", tmp_path / "absent", "--runs", tmp_path, name="failing")
    assert done.returncode == 1
    assert "no such folder" in done.stdout


@pytest.mark.slow
def test_a_wrong_token_is_refused(head, toys, tmp_path):
    wrong = {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
    done = submit(head, "run", "--source", toys, "--runs", tmp_path, name="wrong", **wrong)
    assert done.returncode != 0
    done = head.run(HZZRAY, "run", "--source", str(toys), "--runs", str(tmp_path), **wrong)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("it answers, but lets nobody in without its token (RAY_AUTH_TOKEN)")


@pytest.mark.slow
def test_an_attached_run_gives_the_serial_digest(head, toys, digest, tmp_path):
    done = head.run(HZZRAY, "run", "--source", str(toys), "--runs", str(tmp_path), "--run-id", "attached", *FEW)
    assert done.returncode == 0, done.stderr
    assert load_json(tmp_path / "attached").digest == digest


@pytest.mark.slow
def test_a_job_that_is_stopped_drains_and_can_be_resumed(head, toys, digest, tmp_path):
    from hzzray.engine.ledger import Ledger

    run = ("run", "--source", toys, "--runs", tmp_path, "--run-id", "job", "--actors", 1, "--chunk", 40, *FEW)
    path = tmp_path / "job" / "ledger.db"
    begun = submit(head, *run, "--pace", 30, "--no-wait", name="stopped", env_vars={"RAY_JOB_STOP_WAIT_TIME_S": "60"})
    assert begun.returncode == 0, begun.stderr

    def merged() -> int:
        if not path.exists():
            return 0
        with Ledger.open(path) as ledger:
            return ledger.counts().merged

    until = time.monotonic() + 60
    while not merged():
        assert time.monotonic() < until
        time.sleep(0.1)
    head.run(RAY, "job", "stop", "--address", head.dashboard, "stopped")
    said = head.run(RAY, "job", "logs", "--address", head.dashboard, "stopped").stdout
    with Ledger.open(path) as ledger:
        counts = ledger.counts()
    assert 0 < counts.merged < counts.planned
    # It ended by itself, with its files written and its last word said.
    assert "the same --run-id goes on with them" in said
    assert load_json(tmp_path / "job").status == "running"
    done = submit(head, *run, name="resumed")
    assert done.returncode == 0, done.stdout + done.stderr
    result = load_json(tmp_path / "job")
    assert result.digest == digest
    assert result.status == "complete"
