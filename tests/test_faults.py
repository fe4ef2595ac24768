"""When things go wrong in orders that real processes take only now and then; see also ``test_dispatch``."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorUnavailableError

from bridge.bridge import Bridge, BridgeSettings
from bridge.session import Terms
from bridge.settings import BrokerSettings
from hzzray.data.catalogue import release
from hzzray.engine.absences import LOST_S, Absences
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.pool import Pool
from hzzray.engine.reducer import Reducer
from hzzray.engine.source import MemorySource
from hzzray.runs.request import make_spec
from tests.support.bridges import TOPOLOGY
from tests.support.chaos import Quick, check_ledger, plan_run


class Here:
    """An actor's handle whose methods run in this process when they are awaited."""

    def __init__(self, plain):
        self._plain = plain

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
    monkeypatch.setattr("hzzray.engine.pool.node_of", lambda _: "here")
    monkeypatch.setattr("hzzray.engine.dispatch.TOGETHER", 1)  # these workers have a say over each task
    spec = make_spec(release("toy"))
    path = tmp_path / "run" / "ledger.db"
    tasks = plan_run(path, spec, toys, 2_000)

    def run(worker, limits, reducer):
        async def go():
            with Ledger.open(path) as ledger:
                merging = reducer(path)
                pool = Pool(lambda name: Here(worker(spec, name)), lambda: Here(merging), limits)
                try:
                    async with asyncio.timeout(30):
                        return await pool.run(MemorySource(ledger.due()), lambda _: None)
                finally:
                    merging.close()

        return asyncio.run(go())

    run.tasks, run.path = tasks, path
    return run


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


def test_what_nodes_lack():
    """Issue 11, item 36: the decision, without a pool."""
    now = 100.0
    absences = Absences(("/data/", "https://x/"), lambda: now)
    live = {"a", "b"}
    assert absences.may_serve("a", "/data/1", live)
    absences.note("a", "/data/1")
    assert not absences.may_serve("a", "/data/1", live)
    assert not absences.may_serve("a", "/data/2", live), "nothing else of that source"
    assert not absences.may_serve("a", "/data/2", set()), "nor before it is known which nodes there are"
    assert absences.may_serve("a", "https://x/1", live)
    assert absences.may_serve("b", "/data/1", live)
    absences.note("b", "/data/2")
    assert absences.may_serve("a", "/data/2", live), "both lack something: each file may be where it was not looked for"
    assert not absences.may_serve("b", "/data/2", live)
    assert not absences.is_nowhere("/data/2", live)
    absences.note("a", "/data/2")
    assert absences.is_nowhere("/data/2", live)
    assert absences.may_serve("a", "/data/2", live), "it fails at once, wherever"
    absences.note("a", "/data/2")
    assert absences.is_nowhere("/data/2", live)
    assert absences.may_serve("b", "/data/1", live), "it says nothing of b"
    assert not absences.may_serve("a", "/data/3", live)
    now += LOST_S
    assert not absences.is_nowhere("/data/2", live), "it is looked for anew"
    assert absences.may_serve("b", "/data/2", live)


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
