"""A pool that grows and shrinks with its backlog, and nodes that come and go with it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.source import MemorySource
from hzzray.messages import Cost, Partial, Task
from hzzray.physics.histogram import Blocks
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from tests.support.chaos import FEW, oracle
from tests.support.ledgers import files
from tests.support.ray_nodes import node_counts, ray_head_of_nodes

SPEC = make_spec(release("toy"), samples=("llll",))


def make_tasks(*entries: int) -> list[Task]:
    """Tasks of so many entries each, in a row, of one file that no worker opens."""
    return [
        Task(
            run_id="run", spec=SPEC.digest, sample="llll", file="llll.root", uuid="u", tree="mini",
            start=start, stop=stop,
        )
        for start, stop in pairwise(accumulate(entries, initial=0))
    ]  # fmt: skip


class SlowWorker:
    """Takes its time; writes down which tasks it began and ended, and when it was made."""

    def __init__(self, name: str, diary: Path, task_s: float) -> None:
        self.name = name
        self._diary = diary / f"{name}.txt"
        self._task_s = task_s
        self._packed = Blocks.zeros(SPEC.shape).pack()

    def _write(self, what: str) -> None:
        with self._diary.open("a") as file:
            file.write(f"{what}\n")

    def usage(self):
        return None  # the pool wants to know only that it answers

    def process(self, task: Task) -> Partial:
        self._write(f"begin {task.task_id}")
        threading.Event().wait(self._task_s)
        self._write(f"end {task.task_id}")
        return self._partial(task, self._task_s)

    def _partial(self, task: Task, spent_s: float) -> Partial:
        return Partial(task, self._packed, Cost(wall_s=spent_s, events=task.entries), self.name)


class Boaster(SlowWorker):
    """Says that it took ``task_s`` for each entry, and takes no time; writes down how many entries came in a call."""

    def process(self, task: Task) -> Partial:
        return self.process_all([task])[0]

    def process_all(self, tasks):
        self._write(" ".join(str(task.entries) for task in tasks))
        return [self._partial(task, self._task_s * task.entries) for task in tasks]


def work(tmp_path, tasks, limits, *, task_s, num_cpus=1, worker=SlowWorker):
    """Run a pool of slow workers over tasks; returns its state, and each worker's state second by second."""
    import ray

    from hzzray.engine.actors import start_reducer
    from hzzray.engine.pool import Pool

    diary = tmp_path / "diary"
    diary.mkdir()
    path = tmp_path / "ledger.db"
    ledger = Ledger.create(path, "run", SPEC, "test")
    ledger.plan(files(tasks))
    actor = ray.remote(concurrency_groups={"monitor": 1})(worker).options(num_cpus=num_cpus)
    seen: list[dict[str, str]] = []

    async def go():
        pool = Pool(
            lambda name: actor.remote(name, diary, task_s),
            partial(start_reducer, ledger),
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
    state, seen, diaries = work(tmp_path, make_tasks(*[10] * 90), limits, task_s=0.3)
    numbers = [len(states) for states in seen]
    assert sum(one != "pending" for one in seen[0].values()) <= 1  # others come once it is known what tasks take
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
    state, seen, diaries = work(tmp_path, make_tasks(*[10] * 12), limits, task_s=0.3, num_cpus=2)
    assert list(diaries) == ["worker-0"] or list(diaries) == ["worker-1"]
    (other,) = {"worker-0", "worker-1"} - set(diaries)
    assert all(states[other] == "pending" for states in seen)
    assert len(seen) >= 2
    assert state.counts.merged == 12


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_can_not_grow_is_asked_for_no_more_than_it_has(tmp_path, monkeypatch):
    """Issue 11, item 40: 32 actors pending where there are three slots; `cpu.csv` had 158 actors of which 3 worked."""
    monkeypatch.setattr("ray.experimental.internal_kv.global_gcs_client", None)  # as a driver before may leave it
    limits = Limits(min_actors=1, max_actors=32, worth_s=0.1, patience_s=0.5)
    state, seen, diaries = work(tmp_path, make_tasks(*[10] * 60), limits, task_s=0.2)
    assert state.counts.merged == 60
    assert max(len(states) for states in seen) == 3
    assert len(diaries) == 3


@pytest.mark.usefixtures("ray_cluster")
def test_only_tasks_that_are_tiny_together_go_in_one_call(tmp_path):
    tasks = make_tasks(*[10] * 60, 100_000, *[10] * 60)
    state, _, diaries = work(tmp_path, tasks, Limits(min_actors=1, max_actors=1), task_s=1e-5, worker=Boaster)
    calls = [line.split() for line in diaries["worker-0"]]
    assert state.counts.merged == len(tasks)
    assert ["100000"] in calls
    assert max(len(call) for call in calls) == 16


@pytest.mark.slow
@pytest.mark.usefixtures("compiled")
def test_nodes_come_for_pending_actors_and_go_when_they_have_ended(toys, tmp_path):
    serial = oracle(tmp_path, toys, make_spec(release("toy"), observables=("m4l",)))
    command = [
        str(Path(sys.executable).with_name("hzzray")), "run", "--source", str(toys), "--runs", str(tmp_path),
        *FEW, "--chunk", "20", "--min-actors", "1", "--max-actors", "3", "--run-id",
    ]  # fmt: skip
    with ray_head_of_nodes(tmp_path) as head, node_counts(head) as nodes, ExitStack() as stack:
        # Each of two runs needs a node, and lasts until there are two.
        for number, run_id in enumerate(("elastic", "another"), 1):
            slow = subprocess.Popen([*command, run_id, "--pace", "600"], env=head.env, stdout=subprocess.DEVNULL)
            stack.callback(slow.wait)
            stack.callback(slow.terminate)
            nodes.wait_for(number)
        stack.close()
        done = head.run(*command, "elastic")
        assert done.returncode == 0, done.stderr
        nodes.wait_for_last(0)
    assert load_json(tmp_path / "elastic").digest == serial
    assert nodes.seen[0] == 0
