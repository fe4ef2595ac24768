"""A cluster of several nodes: which don't have the same files (issue 11, item 36), which go (issue 14)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hzzray.data.catalogue import release
from hzzray.runs.request import make_spec
from hzzray.runs.run import execute, make_settings
from tests.support.chaos import oracle

#: Runs in a process of its own: a cluster of two nodes with a slot each, and runs of workers that see what is given.
SCRIPT = """
import asyncio, json, os, sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.runs.result import summarise
from hzzray.runs.request import make_spec
from hzzray.engine.source import MemorySource

toys, folder, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
small = {"object_store_memory": 80 * 1024**2, "include_dashboard": False, "include_log_monitor": False,
         "dashboard_agent_listen_port": 0}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
for name in "ab":
    cluster.add_node(num_cpus=1, env_vars={"HZZRAY_TEST_NODE": name}, **small)
ray.init(cluster.address, namespace="hzzray", log_to_driver=False, logging_level="ERROR")

from hzzray.engine.actors import actor_class, start_reducer, worker_options
from hzzray.engine.pool import Pool
from hzzray.engine.sight import unreachable
from tests.support.chaos import plan_run
from tests.support.nearsighted import Nearsighted

spec = make_spec(release("toy"), observables=("m4l",))
actor = actor_class(Nearsighted, "monitor")


def run(run_id, has, actors):
    path, vain = folder / run_id / "ledger.db", folder / f"{run_id}-vain"
    vain.mkdir()
    plan_run(path, spec, toys, 500)

    def start(name, avoid=()):
        return actor.options(**worker_options(avoid)).remote(spec, str(toys), name, has, vain)

    async def go():
        with Ledger.open(path) as ledger:
            reducer = start_reducer(ledger)
            limits = Limits(min_actors=actors, max_actors=actors)
            pool = Pool(start, lambda: reducer, limits, sources=(str(toys),))
            return await pool.run(MemorySource(ledger.due()), lambda _: None)

    state = asyncio.run(go())
    asked = {file.name: file.stat().st_size for file in vain.iterdir()}
    return {
        "counts": state.counts[:3], "digest": summarise(state).digest, "vain": asked,
        "reasons": sorted({failure.reason.partition(": ")[2] for failure in state.failures}),
    }


for number, (has, actors) in enumerate(cases):
    print(json.dumps(run(f"r{number}", has, actors)))
files = ["/nowhere/a.root", "https://x/a.root", *map(str, toys.rglob("*.root"))]
print(json.dumps(unreachable(files, ["/nowhere", str(toys)])))
ray.shutdown()
cluster.shutdown()
"""


def in_a_process(script: str, home: Path, *arguments: object) -> list[Any]:
    """Let a script have Ray of its own; returns what it printed of JSON, a line each."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env = kept | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HOME": str(home),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_nodes_that_lack_files_do_those_that_they_have(toys, tmp_path):
    """Issue 11, item 36: a volume of toys that one of two nodes has; one that each has a part of; one that none has."""
    serial = oracle(tmp_path, toys, make_spec(release("toy"), observables=("m4l",)))
    cases = [("b", 1), ("a", 1), ("b", 2), ("ab", 2), ("*x", 2)]
    *runs, nowhere = in_a_process(SCRIPT, tmp_path, toys, tmp_path, json.dumps(cases))
    for case, run in zip(cases[:4], runs, strict=False):
        assert (run["digest"], run["counts"][2]) == (serial, 0), (case, run)
    for run in runs[:3]:
        assert sum(run["vain"].values()) <= 2 * 2, "calls that were in flight when the first one failed"
    planned, merged, failed = runs[4]["counts"]
    assert merged + failed == planned
    assert merged
    assert failed
    assert len(runs[4]["reasons"]) == 1
    assert runs[4]["reasons"][0].startswith("no such file on any node (")
    assert list(nowhere) == ["/nowhere"], "no worker sees it; it is told before a run begins"
    assert len(nowhere["/nowhere"]) == 2


#: Runs in a process of its own: a session of two workers on a node each, of which one goes, and another one comes.
EXPLORING = """
import json, sys, threading
import ray
from ray.cluster_utils import Cluster

import hzzray
from tests.support.waiting import wait_for

small = {"object_store_memory": 80 * 1024**2, "include_dashboard": False, "include_log_monitor": False,
         "dashboard_agent_listen_port": 0}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
first, _ = (cluster.add_node(num_cpus=1, **small) for _ in range(2))
ray.init(cluster.address, namespace="hzzray", log_to_driver=False, logging_level="ERROR")
answers, stop = [], threading.Event()


def drag(session):
    low = 50.0
    while not stop.is_set():
        low = 51.0 if low == 50.0 else 50.0
        answers.append((low, session.recut({"m12": (low, 106.0)}, whole=False)))


with hzzray.explore("base", runs=sys.argv[1], actors=2) as session:
    exact = {low: session.recut({"m12": (low, 106.0)}).digest for low in (50.0, 51.0)}
    wait_for("both workers", lambda: session.standing().actors == 2)
    viewer = threading.Thread(target=drag, args=(session,))
    viewer.start()
    try:
        cluster.remove_node(first, allow_graceful=False)
        wait_for("a part", lambda: answers and answers[-1][1].fraction < 1)
        wait_for("all of it, on one node", lambda: answers[-1][1].fraction == 1)
        alone = session.standing().actors
        cluster.add_node(num_cpus=1, **small)
        wait_for("the worker on a new node", lambda: session.standing().actors == 2)
        seen = len(answers)
        wait_for("another answer", lambda: len(answers) > seen + 1)
    finally:
        stop.set()
        viewer.join()
    told = {(low, one.digest, one.fraction, one.result.status) for low, one in answers}
    failed = answers[-1][1].failed
    print(json.dumps({"exact": [*exact.items()], "alone": alone, "told": sorted(told), "failed": failed}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_session_outlives_a_node_and_says_what_its_answers_are_of(toys, tmp_path, compiled):
    """Issue 14: while re-cuts go on a node is lost, with a worker and what it held, and another one comes."""
    settings = make_settings(runs=tmp_path, run_id="base", sources=(str(toys),), engine="serial", chunk=1_000)
    spec = make_spec(release("toy"), selection="h4l")
    execute(spec, settings, planned=lambda _: None, progress=lambda _: None)
    (said,) = in_a_process(EXPLORING, tmp_path, tmp_path)
    exact = dict(said["exact"])
    assert said["alone"] == 1
    for low, digest, fraction, status in said["told"]:
        assert (digest == exact[low]) == (fraction == 1.0), (low, fraction)
        assert status == ("complete" if fraction == 1.0 else "running")
    assert any(0 < fraction < 1 for _, _, fraction, _ in said["told"])
    assert said["failed"] == []
