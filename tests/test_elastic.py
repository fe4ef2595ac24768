"""A pool that grows and shrinks with its backlog, and nodes that come and go with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.messages import Cost, Partial, Task
from hzzray.output import load_json
from hzzray.physics.histogram import Histogram
from hzzray.physics.selection import CHANNELS
from hzzray.run import Settings, execute, make_spec
from hzzray.source import MemorySource
from tests.support.ray_head import free_ports, ray_head

SPEC = make_spec(release("toy"), samples=("llll",))


def make_tasks(number: int) -> list[Task]:
    """Tasks of one file that no worker opens."""
    return [
        Task(
            run_id="run", spec=SPEC.digest, sample="llll", file="llll.root", uuid="u", tree="mini",
            start=10 * i, stop=10 * (i + 1),
        )
        for i in range(number)
    ]  # fmt: skip


class SlowWorker:
    """Takes its time; writes down which tasks it began and ended, and when it was made."""

    def __init__(self, name: str, diary: Path, task_s: float) -> None:
        self.name = name
        self._diary = diary / f"{name}.txt"
        self._task_s = task_s
        self._histogram = Histogram.zeros(len(CHANNELS), SPEC.axis.bins, len(SPEC.selection.cuts)).pack()

    def _write(self, what: str) -> None:
        with self._diary.open("a") as file:
            file.write(f"{what}\n")

    def usage(self):
        return None  # the pool wants to know only that it answers

    def process(self, task: Task) -> Partial:
        self._write(f"begin {task.task_id}")
        threading.Event().wait(self._task_s)
        self._write(f"end {task.task_id}")
        return Partial(task, self._histogram, Cost(wall_s=self._task_s, events=task.entries), self.name)


def work(tmp_path, tasks, limits, *, task_s, num_cpus=1):
    """Run a pool of slow workers over tasks; returns its state, and each worker's state second by second."""
    import ray

    from hzzray.engine.pool import Pool, start_reducer

    diary = tmp_path / "diary"
    diary.mkdir()
    path = tmp_path / "ledger.db"
    Ledger.create(path, "run", SPEC, "test").close()
    with Ledger.open(path) as ledger:
        ledger.plan(tasks, {"llll": (10 * len(tasks), 10 * len(tasks))})
    actor = ray.remote(concurrency_groups={"monitor": 1})(SlowWorker).options(num_cpus=num_cpus)
    seen: list[dict[str, str]] = []

    async def go():
        pool = Pool(
            lambda name: actor.remote(name, diary, task_s),
            partial(start_reducer, path, "run"),
            limits,
            watcher=lambda report: seen.append({row.actor: row.state for row in report.usages if row.state != "up"}),
        )
        return await pool.run(MemorySource(tasks), lambda _: None)

    state = asyncio.run(go())
    lines = {file.stem: file.read_text().splitlines() for file in diary.iterdir()}
    return state, seen, lines


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_pool_follows_its_backlog_and_drains_whom_it_lets_go(tmp_path):
    limits = Limits(min_actors=1, max_actors=3, worth_s=6.0, patience_s=0.5)
    state, seen, diaries = work(tmp_path, make_tasks(90), limits, task_s=0.3)
    numbers = [len(states) for states in seen]
    assert numbers[0] == 1
    assert max(numbers) == 3
    assert numbers[-1] == 1
    # Whom it let go had ended all that it had begun; nothing was done twice.
    assert len(diaries) == 3
    begun = [line.split()[1] for lines in diaries.values() for line in lines if line.startswith("begin")]
    ended = [line.split()[1] for lines in diaries.values() for line in lines if line.startswith("end")]
    assert sorted(begun) == sorted(ended)
    assert len(set(begun)) == len(begun) == 90
    assert state.counts.merged == 90
    assert state.counts.duplicates == 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_pending_actor_takes_no_tasks(tmp_path):
    # Of two that take two of the cluster's three slots each, one waits for ever.
    limits = Limits(min_actors=2, max_actors=2)
    state, seen, diaries = work(tmp_path, make_tasks(12), limits, task_s=0.3, num_cpus=2)
    assert list(diaries) == ["worker-0"] or list(diaries) == ["worker-1"]
    (other,) = {"worker-0", "worker-1"} - set(diaries)
    assert all(states[other] == "pending" for states in seen)
    assert len(seen) >= 2
    assert state.counts.merged == 12


NODES = {
    "cluster_name": "test",
    "max_workers": 3,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 3,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "auth": {},
    **{key: {} for key in ("file_mounts", "head_node", "worker_nodes")},
    **{key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")},
    **{f"{who}_{what}_commands": [] for who in ("head", "worker") for what in ("setup", "start_ray")},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": {}},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 80_000_000},
            "min_workers": 0,
            "max_workers": 3,
            "node_config": {},
        },
    },
}

# Prints the number of live nodes with CPU slots whenever it changes.
COUNT_NODES = """
import time
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
before = None
while True:
    number = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    if number != before:
        print(number, flush=True)
    before = number
    time.sleep(0.5)
"""


def ray_head_of_nodes(folder: Path):
    """A head without slots whose autoscaler starts nodes of one slot on this machine."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    (port,) = free_ports(1)
    config = NODES | {"provider": NODES["provider"] | {"gcs_address": f"127.0.0.1:{port}"}}
    path = folder / "nodes.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    return ray_head(
        "--num-cpus=0",
        f"--autoscaling-config={path}",
        port=port,
        # The autoscaler knows its head by what the provider calls it.
        env={
            "RAY_FAKE_CLUSTER": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        },
    )


@pytest.mark.slow
def test_nodes_come_for_pending_actors_and_go_when_they_have_ended(toys, tmp_path):
    settings = Settings(runs=tmp_path, run_id="serial", sources=(str(toys),), engine="serial")
    serial = execute(make_spec(release("toy")), settings, planned=lambda _: None, progress=lambda _: None)
    with ray_head_of_nodes(tmp_path) as head:
        watch = subprocess.Popen([sys.executable, "-c", COUNT_NODES], env=head.env, stdout=subprocess.PIPE, text=True)
        counts: list[int] = []
        gone = threading.Event()

        def note() -> None:
            for line in watch.stdout:
                counts.append(int(line))
                if counts[-1] == 0 and max(counts) > 0:
                    gone.set()

        reader = threading.Thread(target=note)
        reader.start()
        try:
            done = head.run(
                str(Path(sys.executable).with_name("hzzray")),
                "run", "--source", str(toys), "--runs", str(tmp_path), "--run-id", "elastic", "--chunk", "1",
                "--min-actors", "1", "--max-actors", "3", timeout=200,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert gone.wait(90), counts
        finally:
            watch.kill()
            watch.wait()
            reader.join()
            watch.stdout.close()
    assert load_json(tmp_path / "elastic").digest == serial.digest
    assert counts[0] == counts[-1] == 0
    assert max(counts) >= 2, counts
