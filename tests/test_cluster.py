"""The cluster of a process's own: nobody else reaches it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

LISTENING = """
import ipaddress, psutil
from hzzray.engine.cluster import cluster

with cluster(1):
    import ray
    ray.get(ray.remote(lambda: None).remote())
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                address = ipaddress.ip_address(connection.laddr.ip)
                address = getattr(address, "ipv4_mapped", None) or address
                print(process.name(), address, address.is_loopback)
"""


def test_a_local_cluster_listens_on_loopback_alone():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
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
    assert any(line.startswith("gcs_server") for line in listening)
    assert [line for line in listening if not line.endswith("True")] == []
