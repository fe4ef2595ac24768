"""What the pool decides when things go wrong, in orders that real processes take only now and then."""

from __future__ import annotations

import asyncio

import pytest
from ray.exceptions import ActorUnavailableError

from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.pool import Pool
from hzzray.engine.reducer import Reducer
from hzzray.run import make_spec
from hzzray.source import MemorySource
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
    monkeypatch.setattr("hzzray.engine.pool.TOGETHER", 1)  # these workers have a say over each task
    spec = make_spec(release("toy"))
    path = tmp_path / "run" / "ledger.db"
    tasks = plan_run(path, spec, toys, 2_000)

    def run(worker, limits, reducer=Reducer, during=None):
        async def go():
            with Ledger.open(path) as ledger:
                merging = reducer(path)
                pool = Pool(lambda name: Here(worker(spec, name)), lambda: Here(merging), limits)
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
            if pool._open:
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
