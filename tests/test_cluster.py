"""The cluster of a process's own: nobody else reaches it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hzzray.engine.cluster import ClusterError, cluster, has_autoscaler, visit

LISTENING = '''
import ipaddress, os, psutil, subprocess, sys
from hzzray.engine.cluster import cluster
from hzzray.engine.local_cluster import await_dashboard

DRIVER = """
from hzzray.engine.cluster import cluster

with cluster(1):
    import ray
    print("driver", len(ray.nodes()))
"""

for time in range(2):  # another cluster, of another token
    with cluster(1):
        import ray
        ray.get(ray.remote(lambda: None).remote())
        await_dashboard()
        here = psutil.Process()
        for process in [here, *here.children(recursive=True)]:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(connection.laddr.ip)
                    address = getattr(address, "ipv4_mapped", None) or address
                    print(time, process.name(), address, address.is_loopback)
        keys = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
        others = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        subprocess.run([sys.executable, "-c", DRIVER], env=others | keys, check=True)
'''


def test_local_clusters_one_after_the_other_listen_on_loopback_alone(tmp_path):
    own = ("RAY_", "HZZRAY_DASHBOARD")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    environment["HOME"] = str(tmp_path)  # whoever has a token of their own there gets none made
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    listening = done.stdout.splitlines()
    assert [line for line in listening if line.startswith("driver")] == ["driver 1", "driver 1"]
    listening = [line for line in listening if not line.startswith("driver")]
    for time in range(2):
        assert any(line.startswith(f"{time} gcs_server") for line in listening)
    assert [line for line in listening if not line.endswith("True")] == []


SLOW = (
    "The current node timed out during startup. This could happen because some of the raylet failed to startup or the "
    "GCS has become overloaded."
)


@pytest.fixture
def slow_starts(monkeypatch):
    """Let Ray be too slow for itself so many times, in a process that uses none; what it left behind is in a list."""
    left = []

    def set_up(times):
        def init(**_):
            if len(left) < times:
                words = ["/site-packages/ray/raylet", "-c", "import time; time.sleep(60)"]
                left.append(subprocess.Popen(words, executable=sys.executable))
                raise Exception(SLOW)  # noqa: TRY002 (as Ray does)

        monkeypatch.setattr("ray.init", init)
        return left

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("hzzray.engine.cluster._reread_settings", lambda: None)
    monkeypatch.setattr("hzzray.engine.cluster._await_answer", lambda _: None)
    yield set_up
    for process in left:
        process.kill()
        process.wait()


def own():
    with cluster(1):
        pass


def attached():
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    try:
        own()
    finally:
        del os.environ["RAY_ADDRESS"]


def visited():
    with visit("127.0.0.1:1"):
        pass


@pytest.mark.parametrize("use", [own, attached, visited])
def test_a_start_that_was_too_slow_is_tried_once_more(slow_starts, use, caplog):
    """Issue 11, items 16 and 27: a bare ``Exception`` of 20 frames under load."""
    left = slow_starts(1)
    use()
    assert len(left) == 1
    left[0].wait(5)  # what it left behind is ended
    assert "trying once more" in caplog.text


@pytest.mark.parametrize("use", [own, attached, visited])
def test_a_start_that_is_always_too_slow_is_one_line(slow_starts, use):
    """Issue 11, items 16 and 27: one line, and no third try."""
    left = slow_starts(9)
    with pytest.raises(ClusterError, match=r"Ray cluster .*: The current node timed out during startup") as told:
        use()
    assert "\n" not in str(told.value)
    assert len(left) == 2


def test_a_command_says_so_in_one_line(slow_starts, cli, toys, tmp_path):
    """Issue 11, items 16 and 27: exit code 1 and no traceback."""
    slow_starts(9)
    code, _, err = cli("run", "--source", toys, "--runs", tmp_path)
    assert code == 1
    assert "a local Ray cluster can't be started: The current node timed out during startup" in " ".join(err.split())
    assert "Traceback" not in err


def status(*types):
    return json.dumps(
        {"autoscaler_report": {"node_type_mapping": {str(i): kind for i, kind in enumerate(types)}}}
    ).encode()


@pytest.mark.parametrize(
    ("of_monitor", "version", "grows"),
    [
        (None, None, False),  # no monitor: a cluster whose head was started without
        (status(), None, False),
        (status("node_5e2b274e", "node_00ff"), None, False),  # what `ray start --head` leaves
        (status("ray.head.default"), None, True),
        (status("node_5e2b274e", "worker"), None, True),
        (None, b"v2", True),
        (b"no JSON", None, False),
        (b"[]", None, False),
        (b"null", None, False),
    ],
)
def test_whether_a_cluster_can_grow(of_monitor, version, grows):
    """Issue 11, item 40: the decision, from what Ray 2.60 leaves in each case."""
    assert has_autoscaler(of_monitor, version) is grows
