"""What the services of a deployment use, for a run's folder: each by the way that leads from it to the run's driver.

Workers tell of their containers as they tell of themselves. This process reads its own; a small actor is the head's;
services that share the folder of runs leave word there. Elsewhere than in a deployment there is the machine alone.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hzzray.engine.monitor import SERVICE, Usage, measure_host, service_of
from hzzray.files import OutputError, write_whole

#: Folder within that of the runs in which services leave word.
WORD = ".services"

# How often word is left, and for how long it holds [s].
_EVERY_S = 2.0
_HOLDS_S = 10.0
_WORD_BYTES = 4096
_MOST = 100

# How long a head that gives no answer is left alone, and after how long without a question an answer is too old [s].
_AGAIN_S, _STALE_S = 15.0, 5.0

_HEAD = "node:__internal_head__"
_NAME = re.compile(rf"{SERVICE}[\w.-]{{1,64}}@[\w.-]{{1,255}}", re.ASCII)
_read = TypeAdapter(Usage).validate_json
_write = TypeAdapter(Usage).dump_json


class Services:
    """Tells what is used around the workers of a run. In a process that uses Ray; ``also`` tells of more of it."""

    def __init__(self, runs: Path, also: Callable[[], Iterable[Usage]] = tuple) -> None:
        self._runs = runs
        self._also = also
        self._head = _Head()

    def __call__(self) -> list[Usage]:
        """Tell what is known now, without waiting for anybody."""
        here = measure_host()
        if not here.is_service:
            return [here, *self._also()]
        head = [] if here.actor.startswith(f"{SERVICE}head@") else self._head.usage()
        return [*read_service_usage(self._runs), *head, *self._also(), here]


class _Gauge:
    """An actor where there is none of the run's own."""

    def usage(self) -> Usage:
        """Measure the container."""
        return measure_host()


class _Head:
    """The container of Ray's head, through an actor there that is asked again whenever it has answered."""

    def __init__(self) -> None:
        self._gauge: Any = None
        self._asked: Any = None
        self._last: list[Usage] = []
        self._not_before = self._wanted = -math.inf

    def usage(self) -> list[Usage]:
        """Return its last answer; nothing before the first, or where the head is in no container of a service's."""
        import ray  # noqa: PLC0415 (the app leaves word without)
        from ray.exceptions import RayError  # noqa: PLC0415

        if time.monotonic() - self._wanted > _STALE_S:  # of another run: what was used since then is not this one's
            self._asked, self._last = None, []
        self._wanted = time.monotonic()
        if time.monotonic() < self._not_before:
            return self._last
        try:
            if self._gauge is None:
                self._gauge = _start_gauge()
            if self._asked is None:
                self._asked = self._gauge.usage.remote()
            if ray.wait([self._asked], timeout=0)[0]:
                answer: Usage = ray.get(self._asked)
                self._last, self._asked = [answer] if answer.is_service else [], None
        except (RayError, LookupError):  # it is away, or none is known: actors are restarted, heads come back
            self._asked, self._last = None, []
            self._not_before = time.monotonic() + _AGAIN_S
        return self._last


def _start_gauge() -> Any:  # noqa: ANN401 (an actor's handle)
    """Start the actor on the head's node, without a slot; raises LookupError where no head is known."""
    import ray  # noqa: PLC0415
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    head = next((node["NodeID"] for node in nodes if node["Alive"] and _HEAD in node["Resources"]), None)
    if head is None:
        raise LookupError
    strategy = NodeAffinitySchedulingStrategy(head, soft=False)
    remote: Any = ray.remote
    return remote(_Gauge).options(num_cpus=0, max_restarts=-1, scheduling_strategy=strategy).remote()


def write_usage(runs: Path, usage: Usage) -> None:
    """Leave word in the folder of runs of what a service uses; raises OutputError where that can't be written."""
    write_whole(runs / WORD / f"{service_of(usage.actor)}.json", lambda path: path.write_bytes(_write(usage)))


def read_service_usage(runs: Path) -> list[Usage]:
    """Read what services have left word of lately; what can't be understood is passed over."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((runs / WORD).glob("*.json"))[:_MOST]:
            with contextlib.suppress(OSError, ValidationError):
                if path.is_symlink() or not path.is_file() or time.time() - path.stat().st_mtime > _HOLDS_S:
                    continue
                with path.open("rb") as file:
                    usage = _read(file.read(_WORD_BYTES))
                if _NAME.fullmatch(usage.actor) and is_sound(usage):
                    found.append(usage)
    return found


def is_sound(usage: Usage) -> bool:
    """Whether a row that came from elsewhere has numbers that a table can hold."""
    times, sizes = (usage.user_s, usage.system_s, usage.cpus), (usage.rss, usage.memory_limit, usage.pid)
    return all(math.isfinite(value) and value >= 0 for value in times) and all(0 <= value < 2**62 for value in sizes)


def report_usage(runs: Path) -> threading.Event:
    """Leave word from now on, until what is returned is set; none where this process is no service in a container."""
    ended = threading.Event()

    def go_on() -> None:
        while (usage := measure_host()).is_service and not ended.is_set():
            with contextlib.suppress(OutputError):  # a full disk is told elsewhere
                write_usage(runs, usage)
            ended.wait(_EVERY_S)

    threading.Thread(target=go_on, name="services", daemon=True).start()
    return ended
