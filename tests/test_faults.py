"""What the pool decides when things go wrong, in orders that real processes take only now and then."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import replace
from itertools import cycle

import pytest
from ray.exceptions import ActorUnavailableError

from bridge.bridge import Bridge, BridgeSettings
from bridge.session import Terms
from bridge.settings import BrokerSettings
from hzzray.data.catalogue import release
from hzzray.engine.absences import LOST_S, Absences
from hzzray.engine.cluster import Node
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.pool import Pool
from hzzray.engine.reducer import Reducer
from hzzray.engine.source import MemorySource
from hzzray.errors import MissingFileError
from hzzray.runs.request import make_spec
from tests.support.bridges import TOPOLOGY
from tests.support.chaos import Quick, check_ledger, plan_run


class Here:
    """An actor's handle whose methods run in this process when they are awaited. It is on a node of that name."""

    def __init__(self, plain, node="here"):
        self._plain = plain
        self.node = node

    def __getattr__(self, name):
        return Method(getattr(self._plain, name))


class Method:
    def __init__(self, bound):
        self._bound = bound

    def options(self, **_):
        return self

    async def remote(self, *args):
        answer = self._bound(*args)
        return await answer if asyncio.iscoroutine(answer) or asyncio.isfuture(answer) else answer


def lost():
    return ActorUnavailableError("its process died", None)


@pytest.fixture
def work(toys, tmp_path, monkeypatch):
    """Let a pool work through a plan with workers and a reducer of this process; returns its final state."""
    monkeypatch.setattr("ray.kill", lambda *_, **__: None)
    monkeypatch.setattr("hzzray.engine.pool.restarts", lambda _: 0)
    monkeypatch.setattr("hzzray.engine.pool.node_of", lambda handle: handle.node)
    monkeypatch.setattr("hzzray.engine.dispatch.TOGETHER", 1)  # these workers have a say over each task
    spec = make_spec(release("toy"))
    path = tmp_path / "run" / "ledger.db"
    plan_run(path, spec, toys, 2_000)
    with Ledger.open(path) as ledger:
        tasks = list(ledger.due())  # in the order of their giving: the last one has nobody beside it

    def run(worker, limits, reducer=Reducer, during=None, nodes=("here",)):
        turns = cycle(nodes)
        slots = [Node(node, node, 2.0, 2.0) for node in nodes]
        monkeypatch.setattr("hzzray.engine.pool.working_nodes", lambda: slots)

        def start(name, avoid=()):
            made = worker(spec, name)
            made.node = next(node for node in turns if node not in avoid)
            return Here(made, made.node)

        async def go():
            with Ledger.open(path) as ledger:
                merging = reducer(path)
                pool = Pool(start, lambda: Here(merging), limits, sources=(str(toys),))
                try:
                    async with asyncio.timeout(30):
                        return await pool.run(MemorySource(ledger.due()), during(pool) if during else lambda _: None)
                finally:
                    merging.close()

        return asyncio.run(go())

    run.tasks, run.path = tasks, path
    return run


@pytest.mark.parametrize("order", [1, -1])
def test_who_dies_beside_a_culprit_is_not_blamed(work, order):
    poison = work.tasks[0]

    class Worker(Quick):
        """Dies over one task: the first time as soon as another one waits behind it; its calls fail in either order."""

        dies_with = 2

        def __init__(self, *given):
            super().__init__(*given)
            self._waiting = []

        async def process(self, task):
            if task != poison and not self._waiting:
                return super().process(task)
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(answer)
            if len(self._waiting) == self.dies_with:
                for call in self._waiting[::order]:  # once all are awaited
                    asyncio.get_running_loop().call_soon(call.set_exception, lost())
                self._waiting = []
                self.dies_with = 1
            return await answer

    state = work(Worker, Limits(crashes=2, back_off_s=(0.001, 0.01)))
    assert [(failure.task, failure.attempts) for failure in state.failures] == [(poison, 2)]
    assert state.counts.merged == len(work.tasks) - 1


def test_a_split_whose_answer_was_lost_still_brings_the_halves(work):
    class Worker(Quick):
        def process(self, task):
            if task == work.tasks[0]:
                raise _as_ray(MemoryError())
            return super().process(task)

    class Forgetful(Reducer):
        """Dies after it has committed a split, before it says so."""

        alive = True

        def split(self, task, parts):
            answer = super().split(task, parts)
            if self.alive:
                self.close()
                self.__init__(work.path)
                self.alive = False
                raise lost()
            return answer

    state = work(Worker, Limits(back_off_s=(0.001, 0.01)), Forgetful)
    assert state.counts.status == "complete"
    assert state.counts.planned == len(work.tasks) + 1
    check_ledger(work.path, split=True)


def _as_ray(error):
    from ray.exceptions import RayTaskError

    return RayTaskError("process", "", error)


def test_a_cancelled_run_is_not_talked_into_draining(work):
    class Never(Quick):
        async def process(self, task):
            await asyncio.Event().wait()

    def during(pool):
        def progress(_):
            if pool._dispatch.in_flight:
                pool.obey("cancel")
                pool.obey("drain")
                pool.obey("run")

        return progress

    state = work(Never, Limits(drain_s=1e6), during=during)
    assert state.counts.merged == 0


def test_a_drain_waits_for_no_longer_than_its_bound(work):
    class Last(Quick):
        """Never finishes the last task."""

        async def process(self, task):
            if task == work.tasks[-1]:
                await asyncio.Event().wait()
            return Quick.process(self, task)

    def during(pool):
        return lambda counts: pool.obey("drain") if counts.due == 1 else None

    state = work(Last, Limits(drain_s=0.1), during=during)
    assert state.counts.due == 1


def nearsighted(has):
    """Make workers that find what ``has`` says of their node and a file; counts what each node was asked in vain."""
    vain = Counter()

    class Nearsighted(Quick):
        node = ""

        def process(self, task):
            if not has(self.node, task.file):
                vain[self.node] += 1
                raise _as_ray(MissingFileError(f"{task.file}: no such file"))
            return super().process(task)

    return Nearsighted, vain


QUICKLY = {"back_off_s": (0.001, 0.01)}


@pytest.mark.parametrize("nodes", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_a_node_without_the_files_of_a_source_gets_no_more_of_it(work, nodes, actors):
    """Issue 11, item 36: such a node failed at once and took the next task, 2 300 of 7 502."""
    worker, vain = nearsighted(lambda node, _: node == "b")
    state = work(worker, Limits(min_actors=actors, max_actors=actors, **QUICKLY), nodes=nodes)
    assert state.counts.status == "complete"
    assert vain["a"] <= 2 * actors, "what was in flight there when the first one failed"


@pytest.mark.parametrize("actors", [1, 2])
def test_files_that_each_node_has_a_part_of_are_found(work, actors):
    """Issue 11, item 36: two nodes of which each has what the other lacks."""
    files = sorted({task.file for task in work.tasks})
    worker, vain = nearsighted(lambda node, file: (files.index(file) < len(files) / 2) == (node == "b"))
    state = work(worker, Limits(min_actors=actors, max_actors=actors, **QUICKLY), nodes=("a", "b"))
    assert state.counts.status == "complete"
    assert vain.total() <= 4 * len(files)


def test_a_file_that_no_node_has_is_given_up_and_the_reason_names_them(work):
    """Issue 11, item 36: tried on each node, then failed."""
    gone = work.tasks[0].file
    worker, vain = nearsighted(lambda node, file: file != gone)
    state = work(worker, Limits(min_actors=2, max_actors=2, **QUICKLY), nodes=("a", "b"))
    lost = [task for task in work.tasks if task.file == gone]
    assert {failure.task for failure in state.failures} == set(lost)
    assert {failure.reason for failure in state.failures} == {f"{gone}: no such file on any node (a, b)"}
    assert all(failure.permanent and failure.attempts == 1 for failure in state.failures)
    assert state.counts.merged == len(work.tasks) - len(lost)
    assert set(vain) == {"a", "b"}


def test_on_one_node_a_missing_file_fails_at_once(work):
    """Issue 11, item 36: where there is no other node, all is as before."""
    worker, vain = nearsighted(lambda *_: False)
    state = work(worker, Limits(min_actors=2, max_actors=2, **QUICKLY))
    assert state.counts.failed == len(work.tasks) >= vain.total()
    assert all(failure.reason == f"{failure.task.file}: no such file" for failure in state.failures)


def test_what_nodes_lack():
    """Issue 11, item 36: the decision, without a pool."""
    now = 100.0
    absences = Absences(("/data/", "https://x/"), lambda: now)
    live = {"a", "b"}
    assert absences.may("a", "/data/1", live)
    absences.note("a", "/data/1")
    assert not absences.may("a", "/data/1", live)
    assert not absences.may("a", "/data/2", live), "nothing else of that source"
    assert absences.may("a", "https://x/1", live)
    assert absences.may("b", "/data/1", live)
    absences.note("b", "/data/2")
    assert absences.may("a", "/data/2", live), "both lack something: each file may be where it was not looked for"
    assert not absences.may("b", "/data/2", live)
    assert not absences.is_nowhere("/data/2", live)
    absences.note("a", "/data/2")
    assert absences.is_nowhere("/data/2", live)
    assert absences.may("a", "/data/2", live), "it fails at once, wherever"
    absences.note("a", "/data/2")
    assert absences.is_nowhere("/data/2", live)
    assert absences.may("b", "/data/1", live), "it says nothing of b"
    assert not absences.may("a", "/data/3", live)
    now += LOST_S
    assert not absences.is_nowhere("/data/2", live), "it is looked for anew"
    assert absences.may("b", "/data/2", live)


@pytest.mark.parametrize(("slots", "most"), [(4, 4), (0, 1), (math.inf, 6)])
def test_a_pool_asks_for_what_the_cluster_has_or_can_grow_to(work, monkeypatch, slots, most):
    """Issue 11, item 40: it asked for 32 actors wherever the cluster can't grow."""
    monkeypatch.setattr("hzzray.engine.pool.room", lambda: slots)
    made = []

    class Busy(Quick):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

        async def process(self, task):
            await asyncio.sleep(0.2)
            partial = super().process(task)
            return replace(partial, cost=replace(partial.cost, wall_s=10.0))

    work(Busy, Limits(min_actors=1, max_actors=6, worth_s=1.0, **QUICKLY))
    assert len(made) == most


def test_a_bridge_shares_what_the_cluster_has(monkeypatch, tmp_path):
    """Issue 11, item 40: of 32 actors on 4 slots, three runs at once asked for 10 each."""
    bounds = []

    class Run:
        is_busy = True
        bound = bounds.append

    bridge = Bridge(
        BrokerSettings.from_url("amqp://nowhere"),
        TOPOLOGY,
        Terms("", tmp_path, (), Limits(max_actors=32)),
        BridgeSettings(),
    )
    monkeypatch.setattr("bridge.bridge.room", lambda: 4)
    bridge._sessions = dict.fromkeys("abc", Run)
    asyncio.run(bridge._share())
    assert bounds == [1, 1, 1]
    bounds.clear()
    bridge._sessions.popitem()
    asyncio.run(bridge._share())
    assert bounds == [2, 2]
