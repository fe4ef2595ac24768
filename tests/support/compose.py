"""A Compose project, or a Swarm stack, of this checkout in real containers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
SERVICES = ("rabbitmq", "ray-head", "ray-worker", "bridge", "app")


def docker(
    *command: str, timeout: float = 120, check: bool = True, env: dict[str, str] | None = None, stdin: bytes = b""
) -> str:
    """Run docker; returns what it printed. Fails with what it complained of."""
    done = subprocess.run(
        ["docker", *command], capture_output=True, input=stdin, timeout=timeout, check=False, cwd=ROOT,
        env=_surroundings() | (env or {}),
    )  # fmt: skip
    said = done.stderr.decode(errors="replace")
    assert not check or done.returncode == 0, f"docker {' '.join(command)}: {said[-3000:]}"
    return done.stdout.decode(errors="replace")


def _surroundings() -> dict[str, str]:
    """This process' environment without what the user has chosen for containers of their own."""
    chosen = {line.lstrip("# ").partition("=")[0] for line in (ROOT / ".env.example").read_text().splitlines()}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in chosen and not name.startswith(("HZZRAY_", "COMPOSE_"))
    }


def last_words(container: str) -> str:
    """What a container has said lately, on both its streams."""
    said = subprocess.run(
        ["docker", "logs", "--tail=30", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30,
        check=False,
    )  # fmt: skip
    return said.stdout.decode(errors="replace")


def engine_answers() -> bool:
    """Tell whether there is a Docker Engine with Compose v2 for us."""
    try:
        for command in (("info",), ("compose", "version")):
            docker(*command, timeout=20)
    except (OSError, AssertionError, subprocess.TimeoutExpired):
        return False
    return True


@dataclass(frozen=True)
class Project:
    """One project: its name, its files, and what would stand in its ``.env``; that of the user counts for nothing."""

    name: str
    env: dict[str, str]
    files: Sequence[str] = ("docker-compose.yml",)
    folder: Path = ROOT

    def compose(self, *command: str, timeout: float = 300, check: bool = True, **env: str) -> str:
        """Run docker compose for this project."""
        files = [part for name in self.files for part in ("--file", str(self.folder / name))]
        return docker("compose", "--env-file", os.devnull, "--project-name", self.name, *files, *command,
                      timeout=timeout, check=check, env=self.env | env)  # fmt: skip

    def config(self) -> dict[str, Any]:
        """The project as Compose reads its files; no engine is asked."""
        found: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))
        return found

    def publish(self, run_id: str, **env: str) -> None:
        """Let the loader publish a run."""
        options = [
            part for key, value in (env | {"HZZRAY_RUN_ID": run_id}).items() for part in ("-e", f"{key}={value}")
        ]
        self.compose("run", "--rm", "--no-deps", "-T", *options, "loader")

    def scale(self, number: int) -> None:
        """Have so many workers; nothing else is touched."""
        self.compose(
            "up",
            "--detach",
            "--no-build",
            "--no-deps",
            "--no-recreate",
            "--scale",
            f"ray-worker={number}",
            "ray-worker",
        )

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers."""
        return self.compose("ps", "--all", "--quiet", service).split()

    def inspect(self, service: str) -> list[dict[str, Any]]:
        """What the engine knows of a service's containers."""
        ids = self.containers(service)
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids)) if ids else []
        return found

    def crash(self, service: str) -> None:
        """End all processes of a service's first container at once, and wait until its restart policy has acted."""
        container = self.containers(service)[0]
        before = self._started(container)
        docker("exec", container, "sh", "-c", "kill -9 -1", check=False)
        wait_for(f"{service} to be started again", lambda: self._started(container) not in ("", before))

    def _started(self, container: str) -> str:
        state = json.loads(docker("inspect", container))[0]["State"]
        return str(state["StartedAt"]) if state["Running"] else ""

    def result(self, run_id: str, service: str = "app") -> dict[str, Any] | None:
        """A run's result as it stands, read through a service; None before its first."""
        text = self.compose("exec", "-T", service, "cat", f"/runs/{run_id}/result.json", check=False)
        return json.loads(text) if text else None

    def left_behind(self, run_id: str) -> dict[str, Any]:
        """A run's result while nothing is up."""
        text = self.compose("run", "--rm", "--no-deps", "-T", "app", "cat", f"/runs/{run_id}/result.json")
        result: dict[str, Any] = json.loads(text)
        return result

    def wait_until_under_way(self, run_id: str, service: str = "app") -> None:
        """Wait until some tasks of a run are merged, but not all: it must last longer than this takes."""

        def looked() -> dict[str, Any] | None:
            result = self.result(run_id, service)
            return result if result is not None and result["tasks"]["merged"] else None

        result = wait_for(f"first results of {run_id}", looked, within=180)
        assert result["status"] == "running", f"{run_id} was over too soon"

    def wait_until_over(self, run_id: str, service: str = "app", within: float = 240) -> dict[str, Any]:
        """Wait for a run's end; returns its result."""

        def over() -> dict[str, Any] | None:
            result = self.result(run_id, service)
            return result if result is not None and result["status"] != "running" else None

        return wait_for(f"the end of {run_id}", over, within=within)

    def down(self) -> None:
        """Remove all of it."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


@contextmanager
def swarm() -> Iterator[None]:
    """Make the engine a Swarm of its own for a while, if it is none."""
    state = docker("info", "--format", "{{.Swarm.LocalNodeState}}").strip()
    if state == "active":
        yield
        return
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        yield
    finally:
        docker("swarm", "leave", "--force")


@dataclass(frozen=True)
class Stack:
    """The Swarm's stack of this checkout, and the environment that its file is read with."""

    name: str
    env: dict[str, str]

    def deploy(self) -> None:
        """Start it."""
        docker("stack", "deploy", "--compose-file", "docker-compose.swarm.yml", self.name, env=self.env)

    def scale(self, service: str, number: int) -> None:
        """Have so many of a service's tasks, and wait until they run."""
        name = f"{self.name}_{service}"
        docker("service", "scale", "--detach", f"{name}={number}")
        row = f"{number}/{number}"
        wait_for(f"{row} of {name}", lambda: row in docker("service", "ls", "--filter", f"name={name}"), within=120)

    def inspect(self) -> list[dict[str, Any]]:
        """What the engine knows of its running containers."""
        ids = docker("ps", "--quiet", "--filter", f"label=com.docker.stack.namespace={self.name}").split()
        found: list[dict[str, Any]] = json.loads(docker("inspect", *ids))
        return found

    def result(self, run_id: str) -> dict[str, Any] | None:
        """A run's result as it stands, read through the app; None before its first."""
        ids = docker("ps", "--quiet", "--filter", f"label=com.docker.swarm.service.name={self.name}_app").split()
        text = docker("exec", ids[0], "cat", f"/runs/{run_id}/result.json", check=False) if ids else ""
        return json.loads(text) if text else None

    def wait_until_over(self, run_id: str, within: float) -> dict[str, Any]:
        """Wait for a run's end; returns its result."""

        def over() -> dict[str, Any] | None:
            result = self.result(run_id)
            return result if result is not None and result["status"] != "running" else None

        return wait_for(f"the end of {run_id}", over, within=within)

    def remove(self) -> None:
        """Remove all of it, its volumes too."""
        docker("stack", "rm", self.name, check=False)
        label = f"label=com.docker.stack.namespace={self.name}"
        wait_for("the stack's end", lambda: not docker("ps", "--all", "--quiet", "--filter", label), within=120)
        volumes = docker("volume", "ls", "--quiet", "--filter", label).split()
        if volumes:
            docker("volume", "rm", *volumes, check=False)
