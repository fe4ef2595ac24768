"""The keeper of a cluster that stays: ``python -m hzzray.engine.cluster_keeper SLOTS IDLE_S ENDS_WITH_LAST``.

Started by ``hzzray.engine.standing_cluster``, which says what for.
"""

from __future__ import annotations

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

_LOOK_S = 0.5

# So long after the last run, which has its plots to draw, worker processes are started for the next one.
_REST_S = 3.0

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
    os.environ.update(spare_workers.PRELOADED | {"RAY_ADDRESS": "local"})
    with cluster(slots):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: over.set())  # Ray has its own by now
        await_dashboard()  # who joins a cluster learns then where it is
        record = place / standing_cluster.RECORD
        try:
            write_whole(record, lambda path: path.write_text(_record(slots, idle_s, named), encoding="utf-8"), 0o600)
            _stay(place, slots, idle_s, over, ends_with_last=ends_with_last)
        finally:
            record.unlink(missing_ok=True)


def _record(slots: int, idle_s: float, named: str) -> str:
    import ray  # noqa: PLC0415 (its settings are in force by now)

    process = standing_cluster.Process.of(os.getpid())
    return standing_cluster.Standing(
        keeper=process,
        address=ray.get_runtime_context().gcs_address,
        token=os.environ.get("RAY_AUTH_TOKEN", "") if os.environ.get("RAY_AUTH_MODE") == "token" else None,
        slots=slots,
        idle_s=idle_s,
        environment=named,
    ).model_dump_json()


def _stay(place: Path, slots: int, idle_s: float, over: threading.Event, *, ends_with_last: bool) -> None:
    """Wait until the cluster is not wanted any more, or has fallen down; meanwhile have spare processes for a run."""
    parts = [child for child in psutil.Process().children(recursive=True) if child.name() in _PARTS]
    (raylet,) = (part for part in parts if part.name() == "raylet")
    wanted = slots + 1  # the reducer takes no slot
    used = looked = time.monotonic()
    is_full = False
    while not over.wait(_LOOK_S) and all(part.is_running() for part in parts):
        claims = standing_cluster.claims(place)
        is_idle = time.monotonic() - used > idle_s
        if any(claim.slots for claim in claims):
            used = looked = time.monotonic()
            is_full = False
        elif not is_full and time.monotonic() - looked > _REST_S:
            is_full = not spare_workers.refill(
                raylet, wanted, idle_s
            )  # those of the last run may have been on their way out
            looked = time.monotonic()
        elif (is_idle or (ends_with_last and not claims)) and standing_cluster.retired(place, is_wanted=not is_idle):
            return


if __name__ == "__main__":
    try:
        main()
    except HzzrayError as error:
        sys.exit(str(error))
