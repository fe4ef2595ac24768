"""A Ray cluster of its own, started as its operator would: on 127.0.0.1, on free ports, ended by process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass(frozen=True)
class Head:
    """A head that runs: where it is, for nodes and for clients, and the environment of what talks to it."""

    address: str
    client: str
    dashboard: str
    env: dict[str, str]
    pid: int

    def crash(self) -> None:
        """End all of it at once."""
        for process in [*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def run(self, *command: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in the head's environment."""
        return subprocess.run(
            command, env=self.env | env, capture_output=True, text=True, timeout=timeout, check=False
        )  # fmt: skip


@contextmanager
def ray_head(
    *options: str, port: int | None = None, client: int | None = None, env: dict[str, str] | None = None
) -> Iterator[Head]:
    """Run ``ray start --head`` for a while; nothing of it is left behind."""
    spare, dashboard, agent, spare_client = free_ports(4)
    port, client = port or spare, client or spare_client
    folder = Path(tempfile.mkdtemp(prefix="hz"))  # a short path: Unix sockets are in it
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = kept | {
        "HOME": str(folder),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of it on 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        **(env or {}),
    }
    ports = [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    ports += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
    common = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--object-store-memory=80000000"]
    log = folder / "head.log"
    unwatched = ["--include-log-monitor=false"]  # it reads all logs all the time, for nobody here
    with log.open("w") as output:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *unwatched, f"--temp-dir={folder}", *common, *ports, *options],
            env={key: value for key, value in environment.items() if key != "RAY_ADDRESS"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        until = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield Head(
            f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}", f"http://127.0.0.1:{dashboard}", environment, process.pid
        )
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for member in psutil.wait_procs(family, timeout=5)[1]:
            member.kill()
        shutil.rmtree(folder, ignore_errors=True)
