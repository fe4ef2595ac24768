"""The keeper of a cluster that stays: ``python -m hzzray.engine.cluster_keeper SLOTS IDLE_S ENDS_WITH_LAST``.

Started by ``hzzray.engine.standing_cluster``, which says what for.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from hzzray.engine import spare_workers, standing_cluster
from hzzray.engine.cluster import cluster
from hzzray.engine.local_cluster import await_dashboard
from hzzray.errors import HzzrayError
from hzzray.files import write_whole
from hzzray.parallel import begun

# It looks whether it is wanted, and once in so many looks whether our own files have changed.
_LOOK_S, _SELDOM = 0.5, 10

# So long after the last run, which has its plots to draw, worker processes are started for the next one.
_REST_S = 3.0

# So often, at the most, what lacks is started between two runs; and for a cluster that is to stay so long at least.
_TRIES, _WORTH_S = 3, 60.0

# How long runs that use it are given word of its end, at the most.
_WORD_S = 3.0

# Without these there is no cluster any more.
_PARTS = ("gcs_server", "raylet")


def main() -> None:
    """Start Ray, write the record, and stay until told to go, or nobody wants the cluster any more."""
    slots, idle_s, ends_with_last = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "1"
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    place = standing_cluster.folder()
    if place is None:
        raise HzzrayError("no folder of caches")
    named = standing_cluster.environment(os.environ)  # before Ray adds to it
    os.environ.update(spare_workers.preloaded() | {"RAY_ADDRESS": "local"})
    with cluster(slots):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: over.set())  # Ray has its own by now
        await_dashboard()  # who joins a cluster learns then where it is
        record = place / standing_cluster.RECORD
        try:
            write_whole(record, lambda path: path.write_text(_record(slots, idle_s, named), encoding="utf-8"), 0o600)
            _stay(place, slots, idle_s, over, ends_with_last=ends_with_last)
            if over.is_set():
                _tell_runs()
        finally:
            record.unlink(missing_ok=True)


def _record(slots: int, idle_s: float, named: str) -> str:
    import ray  # noqa: PLC0415 (its settings are in force by now)

    process = standing_cluster.ProcessIdentity.of(os.getpid())
    return standing_cluster.StandingCluster(
        keeper=process,
        address=ray.get_runtime_context().gcs_address,
        token=os.environ.get("RAY_AUTH_TOKEN", "") if os.environ.get("RAY_AUTH_MODE") == "token" else None,
        slots=slots,
        idle_s=idle_s,
        environment=named,
    ).model_dump_json()


def _tell_runs() -> None:
    """End the named actors, runs' reducers among them: drivers hear of that, and of a cluster that is gone nothing.

    They would go on asking it until Ray ends them in its own words, a minute later.
    """
    import ray  # noqa: PLC0415 (as above)

    def end(_: None) -> None:
        for one in ray.util.list_named_actors(all_namespaces=True):
            with contextlib.suppress(ValueError):  # it has gone
                ray.kill(ray.get_actor(one["name"], one["namespace"]))
        while ray.util.list_named_actors(all_namespaces=True):
            time.sleep(0.05)

    with contextlib.suppress(TimeoutError, RuntimeError, ConnectionError, ray.exceptions.RayError):
        begun(end, [None], 1)[0].result(_WORD_S)


class _Spares:
    """Has worker processes ready for the next run, when the last one has ended."""

    def __init__(self, slots: int, idle_s: float) -> None:
        self._slots, self._idle_s = slots, idle_s
        self.used()

    def used(self) -> None:
        """Take note that a run has some of them, or had until now."""
        self._due = time.monotonic() + _REST_S
        self._tries = _TRIES if self._idle_s > _WORTH_S else 0

    def look(self, raylet: psutil.Process) -> None:
        """Start some if it is time; those of the last run may be on their way out, and so it looks again."""
        if self._tries and time.monotonic() > self._due:
            number = spare_workers.wanted(self._slots)
            self._tries = self._tries - 1 if spare_workers.refill(raylet, number, self._idle_s) else 0
            self._due = time.monotonic() + _REST_S


def _stay(place: Path, slots: int, idle_s: float, over: threading.Event, *, ends_with_last: bool) -> None:
    """Wait until the cluster is not wanted any more, or has fallen down; meanwhile have spare processes for a run."""
    parts = [child for child in psutil.Process().children(recursive=True) if child.name() in _PARTS]
    raylet = next((part for part in parts if part.name() == "raylet"), None)
    if raylet is None:
        return
    spares, ours = _Spares(slots, idle_s), standing_cluster.sources()
    used, is_old = time.monotonic(), False
    for look in itertools.count():
        if over.wait(_LOOK_S) or not all(part.is_running() for part in parts):
            return
        if look % _SELDOM == 0:
            is_old = standing_cluster.sources() != ours  # no run uses it any more: its workers have loaded these
        claims = standing_cluster.claims(place)
        is_idle = is_old or time.monotonic() - used > idle_s
        if any(claim.slots for claim in claims):
            used = time.monotonic()
            spares.used()
        elif (is_idle or (ends_with_last and not claims)) and standing_cluster.retired(place, is_wanted=not is_idle):
            return
        else:
            spares.look(raylet)


if __name__ == "__main__":
    try:
        main()
    except HzzrayError as error:
        sys.exit(str(error))
