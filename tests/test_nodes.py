"""Nodes that don't have the same files, on a cluster of several nodes (issue 11, item 36)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hzzray.data.catalogue import release
from hzzray.runs.request import make_spec
from tests.support.chaos import oracle

#: Runs in a process of its own: a cluster of two nodes with two slots each, and runs of workers that see what is given.
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
small = {"object_store_memory": 80 * 1024**2, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
for name in "ab":
    cluster.add_node(num_cpus=2, env_vars={"HZZRAY_TEST_NODE": name}, object_store_memory=80 * 1024**2)
ray.init(cluster.address, namespace="hzzray", log_to_driver=False, logging_level="ERROR")

from hzzray.engine.actors import actor_class, start_reducer, worker_options
from hzzray.engine.pool import Pool
from hzzray.engine.sight import unseen
from tests.support.chaos import plan_run
from tests.support.nearsighted import Nearsighted

spec = make_spec(release("toy"))
actor = actor_class(Nearsighted, "monitor")


def run(run_id, has, actors):
    path, vain = folder / run_id / "ledger.db", folder / f"{run_id}-vain"
    vain.mkdir()
    plan_run(path, spec, toys, 500)

    def start(name, avoid=()):
        return actor.options(**worker_options(avoid)).remote(spec, str(toys), name, has, vain)

    async def go():
        with Ledger.open(path) as ledger:
            reducer = start_reducer(path, run_id)
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
print(json.dumps(unseen(files, ["/nowhere", str(toys)])))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_nodes_that_lack_files_do_those_that_they_have(toys, tmp_path):
    """Issue 11, item 36: a volume of toys that one of two nodes has; one that each has a part of; one that none has."""
    serial = oracle(tmp_path, toys, make_spec(release("toy")))
    cases = [("b", 1), ("a", 1), ("b", 4), ("ab", 2), ("*x", 2)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    env = kept | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(toys), str(tmp_path), json.dumps(cases)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    *runs, nowhere = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for case, run in zip(cases[:4], runs, strict=False):
        assert (run["digest"], run["counts"][2]) == (serial, 0), (case, run)
    for run in runs[:3]:
        assert sum(run["vain"].values()) <= 2 * 4, "what was in flight when the first one failed"
    planned, merged, failed = runs[4]["counts"]
    assert merged + failed == planned
    assert merged
    assert failed
    assert len(runs[4]["reasons"]) == 1
    assert runs[4]["reasons"][0].startswith("no such file on any node (")
    assert list(nowhere) == ["/nowhere"], "no worker sees it; it is told before a run begins"
    assert len(nowhere["/nowhere"]) == 2
