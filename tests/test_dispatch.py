"""What is decided about tasks and workers, told as stories in virtual time: no Ray, no broker, no clock."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hzzray.engine.dispatch import Dispatch
from hzzray.engine.faults import CallAgain, Fault, Patience, Trouble
from hzzray.engine.instructions import (
    Abort,
    Ack,
    After,
    Answered,
    AskNoMore,
    Begun,
    Came,
    Committed,
    DrainDue,
    Give,
    LookFor,
    LookForRoom,
    NoAnswer,
    Offered,
    RoomSeen,
    StartWorker,
    Stop,
    Ticked,
    Wished,
)  # fmt: skip
from hzzray.engine.limits import Limits
from hzzray.messages import Cost, Counts, Partial
from tests.support.stories import FILES, NATURES, TASKS, Story, World, a_story

STORIES = 10_000


@pytest.fixture(scope="module", autouse=True)
def small():
    """Let the bounds be so small that a story of some tasks reaches them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hzzray.engine.commits.UNCOMMITTED", 3)
        patch.setattr("hzzray.engine.commits.BATCH", 2)
        patch.setattr("hzzray.engine.dispatch.ASIDE", 3)
        patch.setattr("hzzray.engine.dispatch.TOGETHER", 2)
        patch.setattr("hzzray.engine.lenders.BATCH", 2)
        yield


def play(story: Story, seed: int = 0) -> World:
    world = World(story, Random(seed))
    world.play()
    return world


def test_random_stories_end_well():
    """Whatever dies, hangs, is slow, is lacking or is asked for: see the assertions of World."""
    ends = Counter[str]()
    for seed in range(STORIES):
        chance = Random(seed)
        world = World(a_story(chance), chance)
        try:
            world.play()
        except Exception as error:
            raise AssertionError(f"story {seed}, {world.story}: {error!r}") from error
        ends[world.dispatch.wish] += 1
        ends["failed"] += bool(world.failures)
        ends["split"] += bool(world.replaced)
        ends["died"] += any(told.kind == "worker died" for told in world.happened)
        ends["filled"] += bool(world.filled)
    kinds = ("run", "drain", "cancel", "failed", "split", "died", "filled")
    assert all(ends[kind] > STORIES / 50 for kind in kinds), ends


TIMES = st.floats(0.0, 8.0)
NODES = ("n0", "n1", "n2")
SOME_STORIES = st.builds(
    Story,
    natures=st.lists(st.sampled_from(NATURES), min_size=1, max_size=12).map(tuple),
    large=st.sampled_from((1, 4, 8)),
    lacking=st.tuples(*(st.frozensets(st.sampled_from(NODES)) for _ in FILES)),
    nodes=st.integers(1, 3).map(lambda number: NODES[:number]),
    actors=st.sampled_from(((1, 1), (2, 2), (1, 4))),
    task_s=st.sampled_from((0.001, 0.05, 0.5)),
    deaths=st.lists(TIMES, max_size=3).map(tuple),
    wishes=st.lists(st.tuples(TIMES, st.sampled_from(("run", "drain", "cancel"))), max_size=2).map(tuple),
    idle_s=st.sampled_from((None, 1.0)),
    lenders=st.lists(
        st.tuples(st.frozensets(st.integers(0, 11)), st.one_of(st.just(math.inf), TIMES), st.booleans()), max_size=2
    ).map(tuple),
    cool=st.frozensets(st.integers(0, 11), max_size=3),
)


@given(SOME_STORIES, st.integers(0, 1_000))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_stories_that_can_be_shrunk(story, seed):
    play(story, seed)


def test_a_dispatch_has_no_ray_no_clock_and_no_chance():
    code = (
        "import sys\n"
        "sys.modules['tornado'] = None\n"  # where that is installed, tenacity brings it, and it asyncio
        "import hzzray.engine.dispatch\n"
        "of = ('dispatch', 'fleet', 'lenders', 'commits', 'faults', 'absences', 'instructions')\n"
        "held = {name for one in of for name in vars(sys.modules[f'hzzray.engine.{one}'])}\n"
        "assert not held & {'time', 'random', 'asyncio', 'ray'}, held\n"
        "assert not {'ray', 'asyncio'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@given(
    held=st.lists(st.frozensets(st.integers(0, 19), min_size=1), min_size=1, max_size=3),
    cool=st.frozensets(st.integers(0, 19)),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=100, deadline=None)
def test_what_is_held_hot_is_filled_there_and_the_rest_is_read(held, cool, seed):
    """Whoever holds it: each task once, and no worker is started where there is nothing to read."""
    lenders = tuple((some, math.inf, False) for some in held)
    world = play(Story(("fine",) * 20, lenders=lenders, cool=cool, task_s=0.05), seed)
    hot = set().union(*held)
    assert {number for number in range(20) if TASKS[number].task_id in world.filled} == hot - cool
    assert len(world.merged) == 20
    assert bool(world.workers) == bool(set(range(20)) - (hot - cool))
    joined = [told for told in world.happened if told.kind == "worker came" and told.who.startswith("explorer")]
    assert [told.what for told in joined] == [f"with {len(some)} ranges of this run hot" for some in held]


@pytest.mark.parametrize("seed", range(10))
def test_what_is_held_hot_waits_for_no_worker_that_reads(seed):
    held = frozenset(range(2, 20))
    world = play(Story((*["slow"] * 2, *["fine"] * 18), actors=(1, 1), lenders=((held, math.inf, False),)), seed)
    assert len(world.filled) == 18
    assert max(world.filled.values()) < 4.0 < world.now


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_what_a_lender_takes_along_is_read_by_workers_of_the_run(seed, silent):
    """It dies, or says nothing any more, while tasks are in flight to it and others wait for it."""
    everything = frozenset(range(20))
    world = play(Story(("corrupt", *["fine"] * 19), lenders=((everything, 0.05, silent),)), seed)
    assert len(world.merged) + len(world.failures) == 20
    assert 0 < len(world.filled) < 20
    assert world.dispatch.lenders == []
    (left,) = [told for told in world.happened if told.kind == "worker left" and told.who == "explorer-0"]
    assert left.what == ("has taken more than 30 s" if silent else "it was killed")


@pytest.mark.parametrize("seed", range(20))
def test_poison_in_a_call_of_many_takes_nobody_with_it(seed):
    world = play(Story(("fine", "fine", "fine", "poison", "fine", "fine"), actors=(1, 1), task_s=0.001), seed)
    (failure,) = world.failures.values()
    assert failure.task == TASKS[3]
    assert (failure.reason, failure.attempts) == ("the worker died over it: its process died", world.limits.crashes)
    assert len(world.merged) == 5


@pytest.mark.parametrize("seed", range(20))
def test_who_dies_beside_a_culprit_is_not_blamed(seed):
    """What is in flight with it, in a call of its own, fails before it or after it."""
    world = play(Story(("poison", *["fine"] * 6), actors=(1, 1), task_s=0.5, crashes=2), seed)
    assert [(failure.task, failure.attempts) for failure in world.failures.values()] == [(TASKS[0], 2)]
    assert len(world.merged) == 6
    (died, *_) = [told for told in world.happened if told.kind == "worker died"]
    assert died.what == "with 2 tasks in flight"


@pytest.mark.parametrize("seed", range(20))
def test_what_hangs_among_others_is_killed_again_when_it_hangs_alone(seed):
    """It was killed for the first one in flight once only: alone at the same actor, the same task hung for ever."""
    world = play(Story(("fine", "fine", "hang", "fine"), actors=(1, 1), task_s=0.001, large=8), seed)
    assert len(world.merged) == 5
    assert len(world.replaced) == 1


@pytest.mark.parametrize("seed", range(20))
def test_no_more_actors_are_moved_to_where_a_file_is_than_there_may_be(seed):
    """Each second that the new one took to start, another was started in the place of the one that had left."""
    story = Story(("fine",) * 8, lacking=(frozenset({"n0"}),) * 3, nodes=("n0", "n1"), actors=(1, 1))
    world = play(story, seed)
    assert len(world.merged) == 8
    assert sum(told.kind == "worker came" for told in world.happened) <= 2


def test_a_duplicate_is_told_to_nobody():
    """A straggler's second copy brings what the first has brought; World sees that its task is told of once."""
    world = play(Story(("slow",) * 2 + ("fine",) * 6, actors=(2, 2)), 3)
    assert sum(world.attempts.values()) > 8
    assert len(world.merged) == 8


def begun(limits: Limits) -> tuple[Dispatch, str]:
    """Begin with one task and one worker, which is looked for; returns its name too."""
    dispatch = Dispatch(limits, lambda _, high: high)
    dispatch.handle(Begun(Counts(1, 0, 0)), 0.0)
    start, look = dispatch.handle(Offered(TASKS[0], 0), 0.0)
    assert isinstance(start, StartWorker)
    assert isinstance(look, LookFor)
    return dispatch, start.worker


def working(limits: Limits) -> tuple[Dispatch, int]:
    """Begin, and have one task in flight; returns the number of its call too."""
    dispatch, worker = begun(limits)
    give = dispatch.handle(Came(worker, "n0"), 0.0)[1]
    assert isinstance(give, Give)
    return dispatch, give.call


def test_a_cancelled_run_is_not_talked_into_draining():
    dispatch, _ = working(Limits(drain_s=1e6))
    assert dispatch.handle(Wished("cancel"), 1.0)[-1] == Stop()
    assert dispatch.handle(Wished("drain"), 1.0) == dispatch.handle(Wished("run"), 1.0) == []
    assert dispatch.wish == "cancel"
    dispatch, call = working(Limits(drain_s=1e6))
    dispatch.handle(Wished("drain"), 1.0)
    assert dispatch.handle(Wished("run"), 1.0) == [], "an end that was begun is not taken back"
    dispatch.handle(Answered(call, (partial(1.0),)), 2.0)
    assert dispatch.handle(Committed(), 3.0) == [Ack((TASKS[0],)), Stop()]


def test_a_drain_waits_for_no_longer_than_its_bound():
    dispatch, _ = working(Limits(drain_s=0.1))
    assert dispatch.handle(Wished("drain"), 1.0) == [AskNoMore(), After(0.1, DrainDue())]
    assert dispatch.handle(DrainDue(), 1.1) == [Stop()]
    assert dispatch.in_flight == 1


def partial(wall_s: float) -> Partial:
    return Partial(TASKS[0], b"", Cost(wall_s=wall_s), "worker-0")


@pytest.mark.parametrize(
    ("place", "read_s", "together"), [("", 0.0, 1), ("", 0.049, 2), ("https://x/", 0.049, 2), ("https://x/", 0.0, 2)]
)
def test_tasks_that_mostly_wait_for_their_files_go_together(place, read_s, together):
    """Issue 16, item 2: a remote file's round trips were taken for work, so that each was waited for alone."""
    task = TASKS[0].model_copy(update={"file": f"{place}a.root"})
    dispatch, call = working(Limits())
    dispatch.handle(Answered(call, (Partial(task, b"", Cost(wall_s=0.05, read_s=read_s), "worker-0"),)), 1.0)
    given = []
    for _ in range(4):
        given += [one for one in dispatch.handle(Offered(task, 0), 1.0) if isinstance(one, Give)]
    assert len(given[0].tasks) == together


@pytest.mark.parametrize(("slots", "most"), [(4, 4), (0, 1), (math.inf, 6)])
def test_a_pool_asks_for_what_the_cluster_has_or_can_grow_to(slots, most):
    """Issue 11, item 40: it asked for 32 actors wherever the cluster can't grow."""
    dispatch, call = working(Limits(min_actors=1, max_actors=6, worth_s=1.0))
    dispatch.handle(Answered(call, (partial(10.0),)), 1.0)
    assert dispatch.handle(Ticked(Counts(17, 0, 0), "run"), 1.0) == [LookForRoom()]
    started = [one for one in dispatch.handle(RoomSeen(slots), 1.0) if isinstance(one, StartWorker)]
    assert dispatch.staying == 1 + len(started) == most


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("actors", [1, 2, 4])
def test_a_node_without_the_files_of_a_source_gets_no_more_of_it(actors, seed):
    """Issue 11, item 36: such a node failed at once and took the next task, 2 300 of 7 502."""
    lacking = (frozenset({"n0"}), frozenset({"n0"}), frozenset())
    world = play(Story(("fine",) * 17, lacking=lacking, nodes=("n0", "n1"), actors=(actors, actors)), seed)
    assert len(world.merged) == 17
    assert world.vain["n0"] <= 2 * actors, "what was in flight there when the first one failed"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("actors", [1, 2])
def test_files_that_each_node_has_a_part_of_are_found(actors, seed):
    """Issue 11, item 36: two nodes of which each has what the other lacks."""
    lacking = (frozenset({"n0"}), frozenset({"n1"}), frozenset({"n0"}))
    world = play(Story(("fine",) * 17, lacking=lacking, nodes=("n0", "n1"), actors=(actors, actors)), seed)
    assert len(world.merged) == 17
    assert world.vain.total() <= 4 * len(FILES)


@pytest.mark.parametrize("seed", range(5))
def test_a_file_that_no_node_has_is_given_up_and_the_reason_names_them(seed):
    """Issue 11, item 36: tried on each node, then failed."""
    lacking = (frozenset({"n0", "n1"}), frozenset(), frozenset())
    world = play(Story(("fine",) * 12, lacking=lacking, nodes=("n0", "n1"), actors=(2, 2)), seed)
    failures = world.failures.values()
    assert [failure.task for failure in sorted(failures, key=lambda one: int(one.task.uuid))] == list(TASKS[:12:3])
    assert {failure.reason for failure in failures} == {f"{FILES[0]}: no such file on any node (N0, N1)"}
    assert all(failure.permanent and failure.attempts == 1 for failure in failures)
    assert len(world.merged) == 8
    assert set(world.vain) == {"n0", "n1"}


def test_on_one_node_a_missing_file_fails_at_once():
    """Issue 11, item 36: where there is no other node, all is as before."""
    world = play(Story(("fine",) * 12, lacking=(frozenset({"n0"}),) * 3, actors=(2, 2)))
    assert len(world.failures) == 12 >= world.vain.total()
    assert all(failure.reason == f"{failure.task.file}: no such file" for failure in world.failures.values())


def missed(worker: str, **what: object) -> NoAnswer:
    return NoAnswer(**{
        "worker": worker, "silent": False, "restarting": False, "is_dead": False, "reason": "no", "before": 0,
        "restarts": 0, **what,
    })  # fmt: skip


def test_a_worker_is_looked_for_with_longer_and_longer_waits():
    dispatch, worker = begun(Limits(back_off_s=(0.1, 0.5)))
    waits = [dispatch.handle(missed(worker, restarting=True), 0.0)[0].after_s for _ in range(5)]
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert dispatch.handle(missed(worker, silent=True), 0.0)[0].after_s == 0.0, "it was waited for already"
    told, give, *_ = dispatch.handle(Came(worker, "n0"), 9.0)
    assert told.kind == "worker came"
    assert give == Give(give.call, worker, (TASKS[0],))


def test_a_worker_that_dies_for_good_is_made_anew_and_given_up_in_the_end():
    dispatch, worker = begun(Limits())
    for _ in range(4):
        start, look = dispatch.handle(missed(worker, is_dead=True), 0.0)
        assert start == StartWorker(worker, frozenset())
        assert isinstance(look, LookFor)
    assert dispatch.handle(missed(worker, is_dead=True), 0.0) == [Abort(f"{worker} can't be kept alive: no")]
    assert dispatch.handle(Came(worker, "n0"), 0.0) == [], "it is over"


def test_a_worker_that_restarts_for_ever_is_given_up():
    dispatch, worker = begun(Limits())
    assert isinstance(dispatch.handle(missed(worker, silent=True, before=3, restarts=22), 0.0)[0], LookFor)
    (end,) = dispatch.handle(missed(worker, silent=True, before=22, restarts=23), 0.0)
    assert end == Abort(f"{worker} can't be kept alive: it ends as soon as it starts")


def test_the_reducer_is_borne_with():
    """What is done about each error of the reducer's, alone and where pools share it."""
    limits = Limits(reducer_s=10.0, back_off_s=(1.0, 4.0))
    alone, shared = (Patience(limits, lambda _, high: high, shared=shared) for shared in (False, True))

    def after(patience: Patience, kind: str, now: float = 5.0) -> object:
        return patience.call(0.0).failed(Trouble(kind, "so"), now)

    again = CallAgain("none", 1.0)
    assert [after(one, "away") for one in (alone, shared)] == [again, again]
    assert [after(one, "away", 11.0) for one in (alone, shared)] == ["away", "away"]
    assert [after(one, "ended") for one in (alone, shared)] == ["ended", CallAgain("find", 1.0)]
    assert [after(one, "fenced") for one in (alone, shared)] == ["refused", CallAgain("replace", 1.0)]
    assert after(shared, "fenced", 11.0) == "refused"
    assert {after(one, kind) for one in (alone, shared) for kind in ("refused", "other")} == {"refused"}
    assert [after(one, "unborn") for one in (alone, shared)] == ["unborn", "unborn"]


def test_a_silent_reducer_is_restarted_once_for_all_calls_and_given_up_at_the_third_time():
    patience = Patience(Limits(back_off_s=(1.0, 4.0)), lambda _, high: high, shared=False)
    one, other = patience.call(0.0), patience.call(0.0)
    for call in (one, other):
        call.asked(1.0)
    assert one.silent(10.0) == CallAgain("restart", 1.0)
    assert other.silent(10.5) == CallAgain("none", 1.0), "it has been"
    one.asked(11.0)
    assert one.silent(20.0) == CallAgain("restart", 2.0)
    assert one.failed(Trouble("away", "it restarts"), 25.0) == CallAgain("none", 4.0), (
        "its next life has as long to come"
    )
    one.asked(21.0)
    assert one.silent(30.0) == "silent"


def test_faults_are_told_apart_by_where_they_are():
    assert [Fault(kind, "").is_fall for kind in ("missing", "data", "memory", "passing", "death", "out of memory")] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
