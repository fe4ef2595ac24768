"""What actors, services and machines use, measured where they run; how big a pool is.

Counters are cumulative, as the system's own are: a sample that is lost or late loses nothing but detail.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from hzzray.engine.cgroup import ROOT, Container, container
from hzzray.messages import Cost, Task

State = Literal["idle", "working", "pending", "restarting", "draining", "up", "ended"]

#: What an actor's name begins with in the rows of a machine, and in those of a service's container.
NODE, SERVICE = "node:", "service:"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process, container or machine used since it began, in the order of the columns of ``cpu.csv``.

    ``user_s`` and ``system_s`` are seconds of CPU of all its threads, ``rss`` its resident memory in bytes now. Events,
    bytes read, seconds of reading and tasks are those of finished tasks. ``pid`` 0 is an actor without a process.
    ``actor_id`` is Ray's, which its dashboard knows it by. ``cpus`` and ``memory_limit`` are cores and bytes that a
    container may use or a machine has; 0 says nothing. ``hot`` are the bytes of ``rss`` that an exploring session's
    candidates take.
    """

    actor: str
    node: str
    pid: int
    state: State
    sample: str
    user_s: float = 0.0
    system_s: float = 0.0
    rss: int = 0
    events: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    tasks: int = 0
    actor_id: str = ""
    cpus: float = 0.0
    memory_limit: int = 0
    hot: int = 0

    @property
    def is_service(self) -> bool:
        """Whether this is a container of a service."""
        return self.actor.startswith(SERVICE)


class Scale(NamedTuple):
    """How big a pool is: actors that run and that are pending, nodes; tasks that wait and that are in flight."""

    actors: int
    pending: int
    nodes: int
    waiting: int
    in_flight: int


def absent(actor: str, state: State) -> Usage:
    """Usage of an actor that has no process (it is pending) or gives no answer (it restarts)."""
    return Usage(actor=actor, node="", pid=0, state=state, sample="")


class Meter:
    """A worker's account of itself. Written by the thread that works, read at any time by another.

    Each field is one reference to a value that never changes, and so is always seen whole.
    """

    def __init__(self, name: str, node: str = "", actor_id: str = "") -> None:
        """Begin; ``node`` is by default the host's name, ``actor_id`` Ray's id of the actor, if it is one."""
        self._name = name
        self._actor_id = actor_id
        self._node = node or socket.gethostname()
        self._process = psutil.Process()
        self._doing: tuple[State, str] = ("idle", "")
        self._done = (0, Cost())

    @contextmanager
    def working(self, task: Task) -> Iterator[None]:
        """Say that a task is being worked on, until the block ends."""
        self._doing = ("working", task.sample)
        try:
            yield
        finally:
            self._doing = ("idle", "")

    def add(self, cost: Cost) -> None:
        """Count a finished task."""
        tasks, done = self._done
        self._done = (tasks + 1, done + cost)

    def usage(self) -> Usage:
        """Measure now. Takes well under a millisecond, and the GIL only for moments."""
        state, sample = self._doing
        tasks, done = self._done
        with self._process.oneshot():
            cpu, rss = self._process.cpu_times(), self._process.memory_info().rss
        return Usage(
            actor=self._name,
            node=self._node,
            pid=self._process.pid,
            state=state,
            sample=sample,
            user_s=cpu.user,
            system_s=cpu.system,
            rss=rss,
            events=done.events,
            bytes_read=done.bytes_read,
            read_s=done.read_s,
            tasks=tasks,
            actor_id=self._actor_id,
        )


def service(name: str, host: str, **used: Any) -> Usage:  # noqa: ANN401 (fields of a Usage)
    """Make the row of a service's container; it has the process 1."""
    return Usage(**{"actor": f"{SERVICE}{name}@{host}", "node": host, "pid": 1, "state": "up", "sample": "", **used})


def measure_host(root: Path = ROOT) -> Usage:
    """Measure where this process runs, all processes together: its container if it is in one, else the machine.

    A container's row bears the name of its service (``HZZRAY_SERVICE``), a machine's its own. CPU counts from when
    either began; the machine's memory is what is not available.
    """
    host, name, found = socket.gethostname(), os.environ.get("HZZRAY_SERVICE", ""), container(root)
    if found is None:
        cpu, memory = psutil.cpu_times(), psutil.virtual_memory()
        total, cpus = memory.total, float(psutil.cpu_count() or 0)
        found = Container(cpu.user + cpu.nice, cpu.system, total - memory.available, cpus, total)
        name = ""
    row = service(
        name,
        host,
        user_s=found.user_s,
        system_s=found.system_s,
        rss=found.memory,
        cpus=found.cpus,
        memory_limit=found.memory_limit,
    )
    return row if name else replace(row, actor=NODE + host)


class CpuBaseline:
    """Counts the CPU of containers and machines from when it first saw them: what was before is no run's.

    Those that have ended count whole: what they did was for the run alone.
    """

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, float]] = {}

    def __call__(self, usage: Usage) -> Usage:
        """Count a row so; one whose counters fell is another's, of the same name, and counts from 0."""
        if usage.state == "ended":
            return usage
        user_s, system_s = self._first.setdefault(usage.actor, (usage.user_s, usage.system_s))
        if usage.user_s + usage.system_s < user_s + system_s:
            user_s, system_s = self._first[usage.actor] = 0.0, 0.0
        return replace(usage, user_s=usage.user_s - user_s, system_s=usage.system_s - system_s)


def is_actor(name: str) -> bool:
    """Whether an ``actor`` of ``cpu.csv`` is a worker actor: no machine, no service."""
    return not name.startswith((NODE, SERVICE))


def service_of(name: str) -> str:
    """Name the service of a container's row: worker of ``service:worker@host``; empty of other rows."""
    return name.removeprefix(SERVICE).partition("@")[0] if name.startswith(SERVICE) else ""
