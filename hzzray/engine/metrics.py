"""Metrics of a run for Ray's dashboard and Prometheus, as ``ray_hzzray_…`` on each node's ``/metrics``.

In a process without Ray (the serial engine's) nothing is counted, and Ray isn't imported.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ray.util import metrics

Count = Literal["events", "bytes_read", "tasks_merged", "tasks_failed", "tasks_duplicate", "tasks_retried"]
Level = Literal[
    "tasks_in_flight",
    "tasks_waiting",
    "actors",
    "queue_waiting",
    "queue_retrying",
    "queue_dead",
    "queue_held",
    "queue_oldest_seconds",
    "queue_published_per_second",
    "queue_acked_per_second",
    "seconds_left",
    "service_cpu_seconds",
    "service_memory_bytes",
]
Spread = Literal["task_seconds"]

_COUNTS: dict[Count, str] = {
    "events": "Events read.",
    "bytes_read": "Bytes read.",
    "tasks_merged": "Tasks merged.",
    "tasks_failed": "Tasks given up.",
    "tasks_duplicate": "Partials of tasks that were merged before, and so left out.",
    "tasks_retried": "Tasks tried again.",
}
_LEVELS: dict[Level, str] = {
    "tasks_in_flight": "Tasks that actors have.",
    "tasks_waiting": "Tasks that wait for an actor.",
    "actors": "Worker actors that run.",
    "queue_waiting": "Messages that wait in the broker for a bridge.",
    "queue_retrying": "Messages that wait in the broker to be tried again.",
    "queue_dead": "Messages that were given up.",
    "queue_held": "Messages that this bridge has and that are not acknowledged.",
    "queue_oldest_seconds": "Age of the oldest task that this bridge has.",
    "queue_published_per_second": "Tasks published a second.",
    "queue_acked_per_second": "Tasks acknowledged by this bridge a second.",
    "seconds_left": "Estimated time until the run has no task left.",
    "service_cpu_seconds": "CPU of a service's container since the run's start.",
    "service_memory_bytes": "Memory of a service's container.",
}

#: The levels of a Congestion, and the field that each is.
QUEUE_LEVELS: dict[Level, str] = {
    "queue_waiting": "waiting",
    "queue_retrying": "retrying",
    "queue_dead": "dead",
    "queue_held": "held",
    "queue_oldest_seconds": "oldest_s",
    "queue_published_per_second": "published_per_s",
    "queue_acked_per_second": "acked_per_s",
    "seconds_left": "left_s",
}
_SPREADS: dict[Spread, str] = {"task_seconds": "Wall-clock seconds of a task."}
_BOUNDARIES = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
_TAGS = ("run", "actor")


class Metrics:
    """What one actor of one run counts; ``actor`` is its readable name, such as ``worker-3`` or ``pool``."""

    def __init__(self, run: str, actor: str) -> None:
        self.run = run
        self._tags = {"run": run, "actor": actor}

    def count(self, name: Count, by: float = 1) -> None:
        """Add to a counter; by 0 is nothing."""
        if by and _is_ray_here():
            _counter(name).inc(by, self._tags)

    def level(self, name: Level, value: float) -> None:
        """Set a gauge; do so every second, since Ray forgets its value once Prometheus has asked for it."""
        if _is_ray_here() and not math.isnan(value):
            _gauge(name).set(value, self._tags)

    def observe(self, name: Spread, value: float) -> None:
        """Add a value to a histogram."""
        if _is_ray_here():
            _histogram(name).observe(value, self._tags)


def _is_ray_here() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


# Ray wants each metric made once a process.


@cache
def _counter(name: Count) -> metrics.Counter:
    from ray.util.metrics import Counter  # noqa: PLC0415

    return Counter(f"hzzray_{name}", _COUNTS[name], _TAGS)


@cache
def _gauge(name: Level) -> metrics.Gauge:
    from ray.util.metrics import Gauge  # noqa: PLC0415

    return Gauge(f"hzzray_{name}", _LEVELS[name], _TAGS)


@cache
def _histogram(name: Spread) -> metrics.Histogram:
    from ray.util.metrics import Histogram  # noqa: PLC0415

    return Histogram(f"hzzray_{name}", _SPREADS[name], _BOUNDARIES, _TAGS)
