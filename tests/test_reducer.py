"""The reducer: sums that follow the ledger, versions that follow each other, snapshots that are never half a commit."""

from __future__ import annotations

import random
import threading
import time

import pytest

from hzzray.engine.ledger import FencedError, Ledger, LedgerError
from hzzray.engine.monitor import Scale, absent
from hzzray.engine.reducer import Reducer
from hzzray.engine.source import Congestion
from hzzray.messages import Cost, Counts, Failure, Partial
from hzzray.physics.histogram import Blocks, Shape
from hzzray.runs.result import summarise
from tests.support.ledgers import NAMES, digest_of, entries, files, partial, start, sums, task, tasks


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "ledger.db"
    start(path, tasks(60), 60)
    return path


@pytest.fixture
def reducer(path):
    made = Reducer(path)
    yield made
    made.close()


def failure(of, reason="broken"):
    return Failure(task=of, reason=reason, permanent=True)


def test_nothing_yet(reducer):
    state = reducer.snapshot()
    assert state.counts == Counts(180, 0, 0)
    assert state.digest == digest_of(sums([]))
    assert state.entries == entries(60)
    assert reducer.newer(state.version) is None
    assert repr(reducer) == "reducer:run"


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_sums_do_not_depend_on_order_or_batches(reducer, batch):
    order = random.Random(batch).sample(tasks(60), 180)
    first = reducer.snapshot().version
    for i in range(0, 180, batch):
        assert set(reducer.merge([partial(one) for one in order[i : i + batch]])) == {"merged"}
    state = reducer.snapshot()
    assert state.digest == digest_of(sums(tasks(60)))
    assert state.counts == Counts(180, 180, 0, 1800, 0)
    assert state.cost == Cost(180.0, 90.0, 45.0, 18_000, 1800)
    assert state.version - first == -(-180 // batch)


def test_a_second_delivery_is_not_added(reducer):
    first, second, third = (task(i) for i in range(3))
    reducer.merge([partial(first)])
    halves = third.halves()
    assert reducer.split(third, halves)
    outcomes = reducer.merge([partial(one) for one in (first, second, second, third, halves[1])])
    assert outcomes == ["duplicate", "merged", "duplicate", "superseded", "merged"]
    state = reducer.snapshot()
    assert state.digest == digest_of(sums([first, second, halves[1]]))
    assert state.counts == Counts(181, 3, 0, 25, 2)
    assert state.cost.events == 25


@pytest.mark.parametrize("bad", ["stranger", "damaged", "shape"])
def test_what_is_refused_changes_nothing(reducer, bad):
    reducer.merge([partial(task(0))])
    before = reducer.snapshot()
    good = partial(task(1))
    broken = {
        "stranger": partial(task(999)),
        "damaged": Partial(task(2), good.packed[:50], Cost(), "w"),
        "shape": Partial(task(2), Blocks.zeros(Shape(1, (1,), 1)).pack(), Cost(), "w"),
    }[bad]
    with pytest.raises(LedgerError if bad == "stranger" else ValueError, match=r"planned|incomplete|not those of"):
        reducer.merge([good, broken])
    after = reducer.snapshot()
    assert (after.version, after.counts) == (before.version, before.counts)
    assert after.digest == before.digest
    assert reducer.merge([good]) == ["merged"], "nor was the good one of the batch stored"


def test_versions_rise_with_each_change(reducer):
    seen = [reducer.snapshot().version]
    for change in (
        lambda: reducer.merge([partial(task(0))]),
        lambda: reducer.fail(failure(task(1))),
        lambda: reducer.split(task(2), task(2).halves()),
    ):
        assert reducer.newer(seen[-1]) is None
        change()
        state = reducer.newer(seen[-1])
        seen.append(state.version)
    assert [version - seen[0] for version in seen] == [0, 1, 2, 3]
    reducer.fail(failure(task(1)))
    assert reducer.split(task(2), task(2).halves()), "asked again, it stands"
    assert reducer.newer(seen[-1]) is None, "what changes nothing is no news"
    assert reducer.newer(-1).version == seen[-1]


def test_versions_rise_over_a_restart(reducer, path):
    for i in range(3):
        reducer.merge([partial(task(i))])
    seen = reducer.snapshot().version
    again = Reducer(path)
    assert again.newer(seen).counts.merged == 3
    again.close()


def test_who_watches_sees_what_the_pools_told_last(reducer, monkeypatch):
    state, *told = reducer.live(-1)
    assert told == [(), None, None, (), None]
    node, one, two = (absent(name, "pending") for name in ("node:here", "worker-0", "b-worker-0"))
    busy = Congestion(70, 1, 2, 8, 3.0, 5.0, 4.0, 20.0)
    first = reducer.report("a", [one, node], Scale(1, 1, 2, 176, 4), None, state.version)
    assert first[:5] == (None, (one, node), Scale(1, 1, 2, 176, 4), None, ())
    assert reducer.report("b", [two, node], Scale(2, 0, 2, 177, 3), busy, -1) is None, "the first one keeps the files"
    together = reducer.live(state.version)
    assert sorted(usage.actor for usage in together.usages) == ["b-worker-0", "node:here", "worker-0"]
    assert together.scale == Scale(3, 1, 2, 173, 7)
    assert together.congestion == busy
    assert reducer.report("a", [one], Scale(1, 0, 2, 176, 4), busy, -1).congestion == busy._replace(
        held=16, acked_per_s=8
    )
    # One that is silent is forgotten, and another takes its place.
    now = time.monotonic()
    monkeypatch.setattr("hzzray.engine.reducer.time.monotonic", lambda: now + 60)
    assert reducer.report("b", [two], Scale(1, 0, 1, 170, 1), None, state.version) is not None
    assert reducer.report("c", [], Scale(1, 0, 1, 170, 1), None, -1) is None
    assert not reducer.leave("b")
    assert reducer.leave("c")


def test_what_others_write_is_seen_when_it_is_reloaded(reducer, path):
    reducer.fail(failure(task(1)))
    more = [task(number) for number in (100, 101)]
    with Ledger.open(path) as ledger:
        ledger.plan(files(more))
        assert ledger.forgive(task(1))
    before = reducer.snapshot()
    reducer.reload()
    after = reducer.snapshot()
    assert after.version > before.version
    assert after.counts == Counts(182, 0, 0)
    assert not after.failures
    assert after.entries["Zee"] == (1020, 1020)
    reducer.fail(failure(task(1)))
    assert reducer.snapshot().counts == Counts(182, 0, 1)


def test_a_failure_that_is_overtaken_was_none(reducer):
    reducer.fail(failure(task(3), "three"))
    reducer.fail(failure(task(1), "one"))
    state = reducer.snapshot()
    assert [row.reason for row in state.failures] == ["one", "three"]
    assert state.counts.failed == 2
    reducer.merge([partial(task(1)), partial(task(2))])
    later = reducer.snapshot()
    assert [row.reason for row in later.failures] == ["three"]
    assert later.counts == Counts(180, 2, 1, 20, 0)
    assert state.counts.failed == len(state.failures) == 2, "an earlier snapshot stays as it was"


def test_a_restart_goes_on_where_the_ledger_is(reducer, path):
    reducer.merge([partial(one) for one in tasks(60)[:100]])
    reducer.merge([partial(task(0))])
    reducer.split(task(59, sample="llll"), task(59, sample="llll").halves())
    reducer.fail(failure(task(58, sample="llll")))
    before = reducer.snapshot()
    again = Reducer(path)
    after = again.snapshot()
    assert after.digest == before.digest
    for field in ("run_id", "spec", "environment", "counts", "entries", "failures", "cost"):
        assert getattr(after, field) == getattr(before, field), field
    assert summarise(after) == summarise(before)
    again.close()


def test_a_second_reducer_fences_off_the_first(reducer, path):
    reducer.merge([partial(task(0))])
    second = Reducer(path)
    for write in (
        lambda: reducer.merge([partial(task(1))]),
        lambda: reducer.fail(failure(task(1))),
        lambda: reducer.split(task(1), task(1).halves()),
    ):
        with pytest.raises(FencedError):
            write()
    assert reducer.snapshot().counts == Counts(180, 1, 0, 10, 0)
    assert second.merge([partial(task(1))]) == ["merged"]
    assert second.snapshot().digest == digest_of(sums([task(0), task(1)]))
    second.close()


def test_the_users_wish_and_the_counts(reducer, path):
    reducer.merge([partial(task(0))])
    with Ledger.open(path) as user:
        user.wish("pause")
    assert reducer.progress() == (Counts(180, 1, 0, 10, 0), "pause")


def test_snapshots_are_whole_while_another_thread_merges(reducer):
    """Every event of these partials is in a bin: a snapshot must hold as many as it counts, and its failures too."""
    work = tasks(60)
    first = reducer.snapshot().version
    over = threading.Event()
    torn, versions, numbers = [], [], set()

    def look():
        while True:
            last = over.is_set()
            state = reducer.snapshot()
            binned = sum(int(one.n.sum()) for one in state.yields.values())
            events = sum(one.entries for one in state.yields.values())
            seen = (state.counts.events, events, state.cost.events, state.counts.failed)
            if seen != (binned, binned, binned, len(state.failures)):
                torn.append((state.version, binned, *seen, len(state.failures)))
            counts, _ = reducer.progress()
            if counts.events < state.counts.events:
                torn.append("went back")
            versions.append(state.version)
            numbers.add(binned)
            if last:
                return

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(0, 180, 3):
        batch = work[i : i + 3]
        reducer.fail(failure(batch[0]))
        reducer.fail(failure(batch[1]))
        reducer.merge([partial(one) for one in (*batch, batch[0])])
    over.set()
    reader.join()
    assert not torn
    assert versions == sorted(versions)
    assert versions[-1] - first == 180
    assert len(numbers) > 2, "the reader saw the storm"
    state = reducer.snapshot()
    assert state.counts == Counts(180, 180, 0, 1800, 60)
    assert state.digest == digest_of(sums(work))


def test_a_snapshot_is_not_changed_by_what_comes_later(reducer):
    reducer.merge([partial(task(0))])
    state = reducer.snapshot()
    before = state.digest
    reducer.merge([partial(one) for one in tasks(60)[1:50]])
    assert state.digest == before
    assert set(state.yields) == set(NAMES)
