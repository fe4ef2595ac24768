"""Metrics reach each node's Prometheus endpoint; without Ray they are nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.request
from typing import get_args

import pytest

from hzzray.engine import metrics
from hzzray.engine.metrics import QUEUE_LEVELS, Metrics
from hzzray.engine.source import Congestion

PATIENCE_S = 60.0  # Ray reports every ten seconds


class Actor:
    def __init__(self, name):
        self.metrics = Metrics("a-run", name)

    def work(self):
        self.metrics.count("events", 5)
        self.metrics.count("events", 0)
        self.metrics.observe("task_seconds", 0.2)


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Values of this run by name and actor; those of a histogram's bins apart."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    values = {}
    for line in text.splitlines():
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        if line.startswith("ray_hzzray_") and labels.get("run") == "a-run" and "le" not in labels:
            values[line.partition("{")[0], labels["actor"]] = float(line.split()[-1])
    return values


def test_each_figure_of_the_queues_has_a_level_of_its_own():
    assert sorted(QUEUE_LEVELS.values()) == sorted(Congestion._fields)
    assert QUEUE_LEVELS["queue_oldest_seconds"] == "oldest_s"


def test_what_is_counted_is_on_the_endpoint(ray_cluster):
    import ray

    actors = [ray.remote(Actor).options(num_cpus=0).remote(f"worker-{i}") for i in range(2)]
    ray.get([actor.work.remote() for actor in actors])
    pool = Metrics("a-run", "pool")
    pool.count("tasks_merged")
    pool.count("tasks_merged", 2)
    expected = {
        ("ray_hzzray_events_total", "worker-0"): 5,
        ("ray_hzzray_events_total", "worker-1"): 5,
        ("ray_hzzray_task_seconds_count", "worker-0"): 1,
        ("ray_hzzray_task_seconds_sum", "worker-0"): 0.2,
        ("ray_hzzray_tasks_merged_total", "pool"): 3,
        ("ray_hzzray_tasks_waiting", "pool"): 7,
    }
    port = ray.nodes()[0]["MetricsExportPort"]
    end, seen = time.monotonic() + PATIENCE_S, {}
    while not expected.keys() <= seen.keys() and time.monotonic() < end:
        pool.level("tasks_waiting", 7)
        seen |= scrape(port)
        threading.Event().wait(0.2)
    assert {key: seen.get(key) for key in expected} == pytest.approx(expected)
    for actor in actors:
        ray.kill(actor)


@pytest.mark.parametrize(
    ("names", "descriptions"),
    [
        (metrics.Count, metrics._COUNTS),
        (metrics.Level, metrics._LEVELS),
        (metrics.Spread, metrics._SPREADS),
    ],
)
def test_each_name_has_its_description(names, descriptions):
    assert set(get_args(names)) == set(descriptions)


def test_without_ray_nothing_is_imported_and_nothing_fails():
    code = (
        "import sys\n"
        "from hzzray.engine import metrics\n"
        "m = metrics.Metrics('r', 'serial')\n"
        "m.count('events', 3); m.level('actors', 1); m.observe('task_seconds', 0.1)\n"
        "assert 'ray' not in sys.modules\n"
        "import ray\n"
        "m.count('events', 3); m.level('actors', 1); m.observe('task_seconds', 0.1)\n"
        "assert not metrics._counter.cache_info().currsize\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
