"""Everything is killed, at any moment, and the result is the same to the last bit.

Processes are real: drivers are the command line, attached to the session's cluster; actors are killed by pid. More of
it: HZZRAY_CHAOS_ROUNDS (default 1, each of 5 kills) and HZZRAY_CHAOS_SEED.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import signal
import time
from collections import Counter
from functools import partial

import psutil
import pytest
import ray

from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.actors import join_reducer
from hzzray.engine.cluster import ClusterError
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.engine.pool import Pool
from hzzray.engine.reducer import ReducerName
from hzzray.engine.source import MemorySource
from hzzray.engine.worker import Worker
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from tests.support.chaos import (
    TOGETHER,
    Driver,
    Once,
    Quick,
    Troubled,
    actors,
    check_ledger,
    nothing_is_left,
    oracle,
    plan_run,
    pool_run,
    starter,
    wait_for,
)

ROUNDS = int(os.environ.get("HZZRAY_CHAOS_ROUNDS", "1"))
SEED = int(os.environ.get("HZZRAY_CHAOS_SEED", "1"))
KILLS = 5

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def spec():
    return make_spec(release("toy"), observables=("m4l",))


@pytest.fixture(scope="module")
def address(ray_cluster):
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Toys enough for a run that outlives its killers for a while."""
    folder = tmp_path_factory.mktemp("many")
    write_toys(folder, release("toy"), events=80_000, seed=5)
    return folder


@pytest.fixture(scope="module")
def many_digest(many, spec, tmp_path_factory):
    return oracle(tmp_path_factory.mktemp("serial"), many, spec)


@pytest.fixture(scope="module")
def toys_digest(toys, spec, tmp_path_factory):
    return oracle(tmp_path_factory.mktemp("serial"), toys, spec)


def digest_of(driver):
    return load_json(driver.ledger.parent).digest


@pytest.mark.timeout(400 * ROUNDS)
def test_kills_at_random_moments(address, many, many_digest, tmp_path):
    chance = random.Random(SEED)
    print(f"HZZRAY_CHAOS_SEED={SEED}")
    kills = Counter()
    number = 0
    while kills.total() < KILLS * ROUNDS or len(kills) < 3:
        with Driver(address, many, tmp_path, f"r{number}", "--chunk", 20, "--actors", 2) as driver:
            while driver.code != 0:
                if driver.code is not None:
                    assert driver.code == -signal.SIGKILL, driver.said()
                    driver.start()
                if kills.total() >= KILLS * ROUNDS and len(kills) == 3:
                    driver.end()
                elif kind := kill_something(driver, chance):
                    kills[kind] += 1
                    print(f"run {number}: killed a {kind} at {driver.counts()}")
        number += 1
        assert digest_of(driver) == many_digest
        counts = driver.counts()
        assert check_ledger(driver.ledger) == counts.planned == counts.merged
    print(f"{dict(kills)} in {number} runs")
    nothing_is_left()


def kill_something(driver, chance):
    """Kill something at a random moment; says what, or None when there was nothing to kill any more."""
    kind = chance.choices(("worker", "reducer", "driver"), (6, 3, 2))[0]
    # Mostly the run gets some way in between; at times what has just been restarted is hit again.
    if kind == "driver" or chance.random() < 0.7:
        driver.wait_until_merged(driver.counts().merged + chance.randrange(1, 250))
    time.sleep(chance.uniform(0, 0.5))
    if driver.code is not None:
        return None
    if kind == "driver":
        driver.kill()
        return kind
    victims = actors(kind.capitalize())
    if not victims:
        return None
    try:
        chance.choice(victims).kill()
    except psutil.NoSuchProcess:
        return None
    return kind


@pytest.fixture
def nodes():
    """A cluster of several nodes on this machine, ended with all that it started."""
    from ray.cluster_utils import Cluster

    several = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 0, **SMALL})
    try:
        yield several
    finally:
        several.shutdown()
        del several
        gc.collect()  # Ray forgets to close a socket; let that be said in this test, which doesn't mind


SMALL = {
    "object_store_memory": 80 * 1024**2,
    "include_dashboard": False,
    "include_log_monitor": False,
    "dashboard_agent_listen_port": 0,  # several on one machine would wait for the fixed one, for seconds
}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(600)
def test_whole_nodes_are_killed(nodes, many, many_digest, tmp_path):
    first, second = (nodes.add_node(num_cpus=1, **SMALL) for _ in range(2))
    with Driver(nodes.address, many, tmp_path, "nodes", "--chunk", 20, "--actors", 2) as driver:
        driver.wait_until_merged(300)
        nodes.remove_node(first, allow_graceful=False)
        driver.wait_until_merged(driver.counts().merged + 300)  # the other one goes on
        nodes.remove_node(second, allow_graceful=False)
        nodes.add_node(num_cpus=1, **SMALL)
        assert driver.end() == 0, driver.said()
    assert digest_of(driver) == many_digest
    check_ledger(driver.ledger)


# Workers with faults of their own: the pool in this process, tasks chosen from the plan.


@pytest.fixture
def troubled(toys, spec, tmp_path):
    """Plan a run over the toys, and work on it with workers that have faults; returns state, ledger's path, marks."""

    def work(faults, limits, chunk=2_000, **more):
        path = tmp_path / "run" / "ledger.db"
        tasks = plan_run(path, spec, toys, chunk)
        (tmp_path / "marks").mkdir()
        by_id = {tasks[index].task_id: fault for index, fault in faults.items()}
        start = starter(Troubled, spec, str(toys), ..., by_id, tmp_path / "marks")
        state = pool_run(path, start, limits, **more)
        nothing_is_left()
        return state, path, tasks, Once(tmp_path / "marks")

    return work


def digest(state):
    from hzzray.runs.result import summarise

    return summarise(state).digest


TWO = {"min_actors": 2, "max_actors": 2}


def test_a_worker_that_hangs_is_killed_and_its_task_cut(troubled, toys_digest):
    state, path, tasks, marks = troubled({3: "hang"}, Limits(**TWO, timeout_s=6.0))  # others may be slow, but not so
    assert state.counts.status == "complete"
    assert state.counts.planned > len(tasks)  # on a very busy machine others are cut too
    assert digest(state) == toys_digest
    check_ledger(path, split=True)
    assert marks.seen(tasks[3].task_id) in (1, 2)  # the other actor may have tried it as a straggler
    assert all(marks.seen(half.task_id) == 1 for half in tasks[3].halves())
    # What waited behind it was innocent, and is whole.
    assert all(marks.seen(task.task_id) <= 2 for task in tasks)


def test_a_task_that_always_hangs_is_cut_down_and_set_aside(toys, spec, tmp_path):
    path = tmp_path / "run" / "ledger.db"
    task, *others = plan_run(path, spec, toys, 2_000)
    poisoned, pieces = {}, [task]
    while pieces:  # all that holds the first entry hangs
        piece = pieces.pop()
        poisoned[piece.task_id] = "hang"
        if piece.entries > 1:
            pieces.append(piece.halves()[0])
    (tmp_path / "marks").mkdir()
    start = starter(Troubled, spec, str(toys), ..., poisoned, tmp_path / "marks")
    state = pool_run(path, start, Limits(**TWO, timeout_s=6.0, crashes=3))  # others may be slow, but not so
    assert state.counts.status == "partial"
    assert state.counts.due == 0
    (failure,) = state.failures
    assert (failure.task.uuid, failure.task.start) == (task.uuid, 0)
    assert failure.task.stop == task.entries // 4
    assert "no result within 6 s" in failure.reason
    # All others, which may have been cut too: on a busy machine they take as long.
    assert state.counts.events == sum(other.entries for other in others) + task.entries - failure.task.entries
    nothing_is_left()


def test_poison_is_set_aside_with_its_reason(troubled, toys_digest):
    state, _, tasks, marks = troubled({5: "die"}, Limits(**TWO, crashes=3))
    assert state.counts.status == "partial"
    (failure,) = state.failures
    assert failure.task == tasks[5]
    assert "the worker died over it" in failure.reason
    assert failure.attempts == 3
    assert not failure.permanent
    assert marks.seen(tasks[5].task_id) in (3, 4), "once beside others, if there were any, then alone"
    assert state.counts.merged == len(tasks) - 1
    assert digest(state) != toys_digest


def test_what_waits_behind_poison_is_not_blamed(troubled):
    # One actor, so that the same neighbours wait behind the poison each time that it kills.
    state, _, tasks, _ = troubled({0: "die"}, Limits(crashes=2))
    assert [failure.task for failure in state.failures] == tasks[:1]
    assert state.counts.merged == len(tasks) - 1


def test_passing_faults_are_tried_again_and_lasting_ones_are_not(troubled, toys_digest):
    faults = {0: "flaky 1", 4: "flaky 3", 7: "flaky 9", 9: "corrupt"}
    state, _, tasks, marks = troubled(faults, Limits(**TWO, attempts=5, back_off_s=(0.01, 0.1)))
    flaky, corrupt = sorted(state.failures, key=lambda failure: failure.permanent)
    assert (flaky.task, flaky.attempts, flaky.permanent) == (tasks[7], 5, False)
    assert "the server said 503" in flaky.reason
    assert (corrupt.task, corrupt.attempts, corrupt.permanent) == (tasks[9], 1, True)
    assert "basket 7 is corrupt" in corrupt.reason
    assert [marks.seen(tasks[index].task_id) for index in (0, 4, 7, 9)] == [2, 4, 5, 1]
    assert state.counts.merged == len(tasks) - 2


def test_passing_faults_alone_leave_no_trace(troubled, toys_digest):
    chance = random.Random(SEED)
    faults = {index: f"flaky {chance.randrange(1, 4)}" for index in chance.sample(range(12), 5)}
    state, path, *_ = troubled(faults, Limits(**TWO, back_off_s=(0.01, 0.1)))
    assert digest(state) == toys_digest
    check_ledger(path)


def test_tiny_tasks_go_together_and_fail_alone(troubled, monkeypatch):
    monkeypatch.setattr("hzzray.engine.dispatch._WORTH_A_CALL_S", 10.0)  # tiny they are, however slow the machine
    faults = {150: "corrupt", 300: "die", 450: "flaky 2", 600: "hang 1"}
    limits = Limits(**TWO, timeout_s=6.0, crashes=2, back_off_s=(0.01, 0.1))
    state, _, tasks, marks = troubled(faults, limits, chunk=20)
    assert {failure.task for failure in state.failures} == {tasks[150], tasks[300]}
    assert state.counts.due == 0
    # Each may have been tried once more than it takes, beside one that killed its worker.
    assert marks.seen(tasks[450].task_id) >= 3
    assert marks.seen(tasks[300].task_id) >= 3, "once among others, then alone until it was given up"
    assert marks.seen(tasks[600].task_id) >= 2
    assert len(tasks) / 32 < marks.seen(TOGETHER) < len(tasks) / 8, "most went in calls of many"


def test_stragglers_are_started_twice_and_merged_once(troubled, toys_digest, monkeypatch):
    monkeypatch.setattr("hzzray.engine.dispatch._WORTH_A_CALL_S", 0.0)  # none go together, however quick the machine
    # With what waits behind it, at an actor that hangs in its first task for an hour.
    state, path, tasks, marks = troubled({0: "slow 1"}, Limits(**TWO))
    assert state.counts.status == "complete"
    assert digest(state) == toys_digest
    assert check_ledger(path) == len(tasks)
    assert marks.seen(tasks[0].task_id) == 2
    assert sum(marks.seen(task.task_id) for task in tasks) <= len(tasks) + 2


class Stillborn(Worker):
    """A worker whose process ends as it starts."""

    def __init__(self, *_given):
        os.kill(os.getpid(), signal.SIGSEGV)


def test_workers_that_can_not_start_end_the_run_with_one_line(toys, spec, tmp_path, monkeypatch):
    monkeypatch.setattr("hzzray.engine.fleet._PING_S", 1.0)
    monkeypatch.setattr("hzzray.engine.fleet._FRUITLESS", 3)
    path = tmp_path / "run" / "ledger.db"
    plan_run(path, spec, toys, 2_000)
    with pytest.raises(ClusterError, match="worker-0 can't be kept alive: it ends as soon as it starts"):
        pool_run(path, starter(Stillborn, ...), Limits())
    nothing_is_left()


def test_a_reducer_that_hangs_is_replaced(toys, toys_digest, spec, tmp_path):
    path = tmp_path / "run" / "ledger.db"
    tasks = plan_run(path, spec, toys, 100)
    stopped = []

    def stop_it(counts):
        if counts.merged and not stopped:
            (reducer,) = actors("Reducer")
            reducer.suspend()
            stopped.append(reducer)

    workers = starter(Worker, spec, (str(toys),), ...)
    state = pool_run(path, workers, Limits(reducer_s=10.0), progress=stop_it)
    (old,) = stopped
    wait_for("the old reducer's end", lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE, 60)
    assert state.counts.merged == len(tasks)
    assert digest(state) == toys_digest
    check_ledger(path)


def test_idle_actors_go_and_come_back_with_the_next_task(toys, toys_digest, spec, tmp_path):
    path = tmp_path / "run" / "ledger.db"
    tasks = plan_run(path, spec, toys, 2_000)

    class Trickle(MemorySource):
        """A queue whose last tasks come when all actors have gone. A call that is given up takes none of them."""

        given = 0

        async def get(self):
            if self.given == len(tasks) - 2:
                await asyncio.to_thread(wait_for, "the workers' end", lambda: not actors("Worker"), 60)
            task = await super().get()
            self.given += 1
            return task

    workers = starter(Worker, spec, (str(toys),), ...)
    state = pool_run(path, workers, Limits(**TWO, idle_s=1.0), source=Trickle(tasks))
    assert state.counts.merged == len(tasks)
    assert digest(state) == toys_digest


def test_two_pools_share_a_run_and_the_reducer(toys, toys_digest, spec, tmp_path):
    path = tmp_path / "run" / "ledger.db"
    tasks = plan_run(path, spec, toys, 100)
    workers = starter(Worker, spec, (str(toys),), ...)
    ledger = Ledger.open(path)

    async def both():
        sources = MemorySource(tasks[::2]), MemorySource(tasks[1::2])
        # Each takes the reducer that is there; when that is killed for good, they find themselves another.
        pools = [Pool(workers, partial(join_reducer, ledger), Limits(), shared=True) for _ in sources]
        killed = []

        def kill(counts):
            if counts.merged and not killed:
                killed.extend(actors("Reducer"))
                ray.kill(ray.get_actor(str(ReducerName.of(ledger))))

        await asyncio.gather(*(pool.run(source, kill) for pool, source in zip(pools, sources, strict=True)))
        assert len(killed) == 1
        reducer = join_reducer(ledger)
        state = await reducer.snapshot.remote()
        ray.kill(reducer)
        return state

    state = asyncio.run(both())
    assert state.counts.merged == len(tasks)
    assert digest(state) == toys_digest
    check_ledger(path)


# Several drivers at once, and what their users and the system ask of them.

RUN = ("--chunk", 25, "--actors", 1)
LASTING = (*RUN, "--pace", 8)  # some seconds, after which somebody has seen it
UNENDING = (*RUN, "--pace", 90)  # others come before it ends, however busy the machine


def test_two_runs_at_once_on_one_cluster(address, toys, toys_digest, tmp_path):
    """Of two people who call theirs the same, in folders of their own."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    one, two = (Driver(address, toys, folder, "same", *RUN, "--pace", 5) for folder in folders)
    with one, two:
        assert [one.end(), two.end()] == [0, 0], one.said() + two.said()
    for driver in (one, two):
        assert digest_of(driver) == toys_digest
        check_ledger(driver.ledger)
    nothing_is_left()


def test_a_second_driver_of_a_run_takes_it_over(address, toys, toys_digest, tmp_path):
    with (
        Driver(address, toys, tmp_path, "same", *RUN, "--pace", 15) as first,
        Driver(address, toys, tmp_path, "same", *RUN, "--pace", 15) as second,
    ):
        # Only one of them may win: the later one; and the earlier one stops while that goes on, and says why.
        wait_for("one of them to stop", lambda: {first.code, second.code} != {None})
        loser, winner = (first, second) if second.code is None else (second, first)
        assert (loser.code, winner.end()) == (1, 0), first.said() + second.said()
    assert "another process has taken over" in loser.said().strip().splitlines()[-1]
    assert "Traceback" not in loser.said()
    assert digest_of(first) == toys_digest
    check_ledger(first.ledger)
    nothing_is_left()


def test_a_live_run_is_taken_over(address, toys, toys_digest, tmp_path):
    with Driver(address, toys, tmp_path, "same", *UNENDING) as first:
        first.wait_until_merged(100)
        with Driver(address, toys, tmp_path, "same", *RUN) as second:
            assert first.end(60) == 1
            assert "another process has taken over" in first.said().strip().splitlines()[-1]
            assert second.end() == 0, second.said()
    assert digest_of(second) == toys_digest
    check_ledger(second.ledger)


def test_pause_resume_drain_and_cancel(cli, address, toys, toys_digest, tmp_path):
    with Driver(address, toys, tmp_path, "run", *LASTING) as driver:
        driver.wait_until_merged(100)
        assert cli("pause", "run", "--runs", tmp_path)[0] == 0
        wait_for("a pause", lambda: is_still(driver))
        paused = driver.counts()
        assert paused.due
        seen = load_json(driver.ledger.parent)
        assert (seen.status, seen.tasks.merged) == ("running", paused.merged), "the run's folder shows it live"
        assert "asked to pause" in cli("status", "run", "--runs", tmp_path)[1]
        assert cli("resume", "run", "--runs", tmp_path)[0] == 0
        driver.wait_until_merged(paused.merged + 100)
        for wish in ("drain", "cancel"):
            assert cli(wish, "run", "--runs", tmp_path)[0] == 0
            assert driver.end(30) == 1
            left = driver.counts().due
            assert f"run run: {wish}, {left} tasks left; the same --run-id goes on with them" in driver.said()
            assert left
            driver.start()
            driver.wait_until_merged(driver.counts().merged + 100)
        assert driver.end() == 0, driver.said()
    assert digest_of(driver) == toys_digest
    check_ledger(driver.ledger)


def is_still(driver):
    before = driver.counts()
    time.sleep(2)
    return driver.counts() == before


def test_signals_drain_a_run_that_resumes_and_a_second_interrupt_ends_it_at_once(address, toys, toys_digest, tmp_path):
    with Driver(address, toys, tmp_path, "run", *LASTING) as driver:
        for number in (signal.SIGTERM, signal.SIGINT):
            driver.wait_until_merged(driver.counts().merged + 100)
            driver.signal(number)
            assert driver.end(25) == 1  # what is in flight takes far less than the bound of 30 s
            left = driver.counts().due
            assert left
            assert f"run run: drain, {left} tasks left" in driver.said()
            driver.start()
        driver.wait_until_merged(driver.counts().merged + 100)
        for worker in actors("Worker"):
            worker.suspend()  # so that there is something that a drain waits for, once a task is given to it
        wait_for("a standstill", lambda: is_still(driver))
        driver.signal(signal.SIGINT)
        time.sleep(1)  # two signals at once are one
        assert driver.code is None
        driver.signal(signal.SIGINT)
        assert driver.end(20) == 1
        assert "run run: cancel" in driver.said()
        driver.start()
        assert driver.end() == 0, driver.said()
    assert "Traceback" not in driver.said()
    assert digest_of(driver) == toys_digest
    check_ledger(driver.ledger)
    nothing_is_left()


def test_a_corrupt_file_among_good_ones_is_listed_and_replayed(cli, address, toys, toys_digest, tmp_path, monkeypatch):
    folder = tmp_path / "toys"
    shutil.copytree(toys, folder)
    path = folder / release("toy").sample("Zee").path
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes(len(whole) - 1000))
    with Driver(address, folder, tmp_path, "run", "--chunk", 500, "--actors", 2) as driver:
        assert driver.end() == 3, driver.said()
    counts = driver.counts()
    assert counts.failed
    assert counts.merged == counts.planned - counts.failed
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = cli("failures", "run", "--runs", tmp_path)
    assert code == 0
    assert "Zee" in out
    path.write_bytes(whole)
    code, out, err = cli("replay", "run", "--runs", tmp_path)
    assert code == 0, out + err
    assert digest_of(driver) == toys_digest
    check_ledger(driver.ledger)


@pytest.mark.timeout(400)
def test_memory_is_flat_over_20_000_tiny_tasks(spec, toys, tmp_path):
    """Driver and reducer need no more at the end than at the start, but for what SQLite and Python keep."""
    path = tmp_path / "run" / "ledger.db"
    planned = len(plan_run(path, spec, toys, 1))
    assert planned > 20_000
    sizes, begun = {}, []

    def progress(counts):
        (reducer,) = actors("Reducer")
        if counts.merged >= 2_000:
            begun.append((time.monotonic(), counts.merged))
            sizes[counts.merged] = (psutil.Process().memory_info().rss, reducer.memory_info().rss)

    state = pool_run(path, starter(Quick, spec, ...), Limits(**TWO), progress=progress)
    assert state.counts.merged == planned
    (first_at, first), (last_at, last) = begun[0], begun[-1]
    print(
        f"{(last - first) / (last_at - first_at):.0f} tasks/s",
        {n: [b >> 20 for b in both] for n, both in sizes.items()},
    )
    assert last - first > 5_000
    for before, after in zip(sizes[first], sizes[last], strict=True):
        assert after - before < 30 * 2**20
    nothing_is_left()
