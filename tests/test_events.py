"""What happens in a run: told by pools, kept by the reducer, written down once."""

from __future__ import annotations

from itertools import pairwise

from hzzray.engine.events import A_SECOND, KEPT, Event, EventLog, kept
from hzzray.runs.tables import EVENTS, Recorder, follow


def test_an_event_log_tells_the_first_of_a_second_and_how_many_more():
    """Issue 11, item 15: a list of what happened, small whatever happens."""
    log = EventLog()
    for number in range(A_SECOND + 5):
        log.tell("task retried", "Zee", f"entries {number}:\nits worker died {'x' * 999}")
    events = log.drain()
    assert len(events) == A_SECOND + 1
    assert events[-1].what == "5 more of these in this second"
    assert max(len(event.what) for event in events) == 200
    assert "\n" not in events[0].what
    assert log.drain() == []


def test_what_is_kept_is_in_order_and_bounded():
    events: tuple[Event, ...] = ()
    for number in range(KEPT + 50):
        events = kept(events, [Event(100.0, "worker died", f"worker-{number}", "")])
    assert len(events) == KEPT
    assert all(before.at < after.at for before, after in pairwise(events))


def test_what_two_pools_tell_of_a_node_is_one_event():
    one = kept((), [Event(1.0, "node left", "n", "")])
    assert kept(one, [Event(1.5, "node left", "n", "")]) == one
    assert len(kept(one, [Event(60.0, "node left", "n", "")])) == 2


def test_each_event_is_written_once(tmp_path):
    """Issue 11, item 15: by whichever driver keeps the files, however often it is told."""
    first = Event(10.0004, "worker died", "worker-0", "with 2 tasks in flight")
    second = Event(11.0006, "worker back", "worker-0", "")
    with Recorder(tmp_path, "local") as recorder:
        recorder.add_events(1.0, [])
        assert not (tmp_path / "events.csv").exists()
        recorder.add_events(1.0, [first])
        recorder.add_events(2.0, [first, second])
    with Recorder(tmp_path, "local") as recorder:
        recorder.add_events(3.0, [first, second])
    rows = follow(tmp_path, EVENTS).rows()
    assert rows["kind"].tolist() == ["worker died", "worker back"]
    assert rows["what"][0] == "with 2 tasks in flight"


def test_the_file_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr("hzzray.runs.tables._EVENTS_BYTES", 1000)
    with Recorder(tmp_path, "local") as recorder:
        for number in range(100):
            recorder.add_events(1.0, [Event(float(number + 1), "task retried", "Zee", "x" * 200)])
    assert (tmp_path / "events.csv").stat().st_size < 1500
