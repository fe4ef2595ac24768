"""Runs of a cluster elsewhere: written down here as their own driver would, by a process that may die."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from app.client import Client
from app.mirror import Mirror, UnansweredError
from app.watch import Watch
from hzzray.data.catalogue import release
from hzzray.engine.cluster import ClusterError
from hzzray.engine.ledger import Ledger
from hzzray.engine.monitor import Scale, Usage
from hzzray.engine.reducer import Live, Reducer, ReducerName
from hzzray.engine.worker import Worker
from hzzray.runs.folder import load_json
from hzzray.runs.request import make_spec
from tests.support.chaos import plan_run
from tests.support.waiting import wait_for

FAR = ReducerName("far", "0123abcd")
USAGE = Usage("worker-0", "n", 7, "working", "llll", 1.0, 0.5, 2**20, 100, 1000, 0.1, 1, "abc")


@pytest.fixture
def elsewhere(toys, tmp_path):
    """A reducer of another machine, and what is due to it."""
    path = tmp_path / "elsewhere" / "far" / "ledger.db"
    tasks = plan_run(path, make_spec(release("toy")), toys, 5_000)
    reducer = Reducer(path)
    worker = Worker(make_spec(release("toy")), (str(toys),))
    yield reducer, tasks, worker
    worker.close()
    reducer.close()


def test_a_run_of_elsewhere_looks_as_one_of_here(elsewhere, tmp_path, monkeypatch):
    monkeypatch.setattr("app.client._FRESH_S", 0.0)
    reducer, tasks, worker = elsewhere
    asked = []

    def ask(sought: ReducerName, method: str, *args: object):
        if method == "live":
            asked.extend(args)  # the version that is known
        return getattr(reducer, method)(*args)

    mirror, client = Mirror(tmp_path / "here", ask), Client(tmp_path / "here")
    assert mirror.look({FAR}) == ["far"]
    view = client.view("far")
    assert (view.phase, view.result.tasks.merged, len(view.usage)) == ("running", 0, 0)
    reducer.merge([worker.process(task) for task in tasks[:3]])
    reducer.report("a", [USAGE], Scale(1, 0, 1, 2, 3), None, -1)
    mirror.wish("far", "pause")
    mirror.look({FAR})
    view = client.view("far")
    assert (view.phase, view.result.tasks.merged) == ("paused", 3)
    assert view.usage["actor_id"].tolist() == ["abc"]
    assert view.scale["in_flight"].tolist() == [3]
    assert view.history["events"].tolist() == [0, sum(task.entries for task in tasks[:3])]
    before = (tmp_path / "here" / "far" / "result.json").stat().st_mtime_ns
    mirror.look({FAR})
    assert (tmp_path / "here" / "far" / "result.json").stat().st_mtime_ns == before  # nothing is new
    assert asked[-1] > asked[0] == -1
    reducer.merge([worker.process(task) for task in tasks[3:]])
    reducer.wish("run")
    assert reducer.is_unseen()
    mirror.look({FAR})
    mirror.look({FAR})
    assert not reducer.is_unseen()
    view = client.view("far")
    assert view.phase == "complete"
    assert view.result.digest == load_json(tmp_path / "here" / "far").digest
    assert (tmp_path / "here" / "far" / "histograms.root").exists()
    assert mirror.look(set()) == []
    assert mirror.look({FAR}) == ["far"]
    assert mirror.look(set()) == []


def test_a_run_of_here_is_left_to_its_driver(tmp_path):
    with a_ledger(tmp_path / "here" / "far") as ledger:
        sought = ReducerName("far", ledger.mark)
    assert Mirror(tmp_path / "here", lambda *_: pytest.fail("asked")).look({sought}) == []
    assert not (tmp_path / "here" / "far" / "result.json").exists()


def test_runs_that_are_called_the_same_have_folders_of_their_own(elsewhere, tmp_path):
    """One of here, and two of other people's."""
    reducer, tasks, worker = elsewhere
    asked = []

    def ask(sought: ReducerName, method: str, *args: object):
        asked.append((sought.mark, method, *args))
        return getattr(reducer, method)(*args)

    mirror = Mirror(tmp_path, ask)
    others = {FAR, ReducerName("far", "0123abce")}
    assert mirror.look(others) == ["far", "far-0123abce"]
    mirror.wish("far-0123abce", "drain")
    mirror.look(others)
    assert [mark for mark, method, *_ in asked if method == "wish"] == ["0123abce"]
    a_ledger(tmp_path / "far").close()  # somebody here begins one of that name
    reducer.merge([worker.process(task) for task in tasks[:3]])
    assert mirror.look(others) == ["far-0123abcd", "far-0123abce"]
    assert load_json(tmp_path / "far").tasks.merged == 0
    assert load_json(tmp_path / "far-0123abcd").tasks.merged == 3
    assert mirror.look(set()) == []


def test_a_ledger_that_cannot_be_read_keeps_its_name(elsewhere, tmp_path):
    reducer, _, _ = elsewhere
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "ledger.db").write_bytes(b"no database")
    mirror = Mirror(tmp_path, lambda _, method, *args: getattr(reducer, method)(*args))
    assert mirror.look({FAR}) == ["far-0123abcd"]
    assert mirror.look(set()) == []


def a_ledger(folder) -> Ledger:
    return Ledger.create(folder / "ledger.db", folder.name, make_spec(release("toy")), "local")


def test_a_wish_is_passed_on_when_the_reducer_is_back(tmp_path):
    asked = []

    def ask(sought: ReducerName, method: str, *args: object):
        asked.append((method, *args))
        raise UnansweredError

    mirror = Mirror(tmp_path, ask)
    mirror.wish("far", "pause")
    assert mirror.look({FAR}) == mirror.look({FAR}) == []
    assert asked == [("wish", "pause")] * 2
    assert not (tmp_path / "far").exists()
    mirror.look(set())  # it has ended
    mirror.look({FAR})
    assert asked[2:] == [("live", -1)]


def test_nobody_watches_nobody_is_waited_for(elsewhere, monkeypatch):
    reducer, tasks, worker = elsewhere
    assert not reducer.is_unseen()
    assert isinstance(reducer.live(-1), Live)
    reducer.merge([worker.process(tasks[0])])
    assert reducer.is_unseen()
    monkeypatch.setattr("hzzray.engine.reducer.WATCHING_S", 0.0)
    assert not reducer.is_unseen()


# The process.


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Watch with a mirror that does as it is told by a script."""
    watches = []

    def start(script: str) -> Watch:
        path = tmp_path / "mirror.py"
        path.write_text(script)
        monkeypatch.setattr("app.watch.COMMAND", ("-u", str(path)))
        watches.append(Watch("ray://far:10001", tmp_path / "runs"))
        return watches[-1]

    monkeypatch.setattr("app.watch._FIRST_S", 0.05)
    yield start
    for each in watches:
        each.close()
    wait_for("the mirrors' end", lambda: not mirrors())


def mirrors() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if any("mirror" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


ECHO = """
import json, sys, time
print("a library's greeting")
print(json.dumps({"runs": ["far"]}), flush=True)
for line in sys.stdin:
    open(sys.argv[2] + ".said", "a").write(line)
    print(json.dumps({"runs": ["far"]}), flush=True)
"""


def test_a_mirror_that_is_killed_is_started_again(watch, tmp_path):
    watched = watch(ECHO)
    assert "Connecting" in (watched.trouble or "Connecting")
    wait_for("contact", lambda: watched.trouble is None)
    watched.wish("far", "pause")
    said = tmp_path / "runs.said"
    wait_for("the wish", lambda: said.exists() and said.read_text() == '{"run": "far", "wish": "pause"}\n')
    (first,) = mirrors()
    first.send_signal(signal.SIGKILL)
    wait_for("another mirror", lambda: [process.pid for process in mirrors()] not in ([first.pid], []))
    wait_for("contact", lambda: watched.trouble is None)


def test_a_cluster_that_is_not_there_is_said_to_be(watch):
    watched = watch("""import sys; print('{"error": "no answer"}'); sys.exit(1)""")
    wait_for(
        "word of it",
        lambda: watched.trouble == "No contact with the cluster at ray://far:10001: no answer. Trying again…",
    )
    with pytest.raises(ClusterError, match="No contact"):
        watched.wish("far", "drain")


def test_a_mirror_that_hangs_is_ended(watch, monkeypatch):
    monkeypatch.setattr("app.watch.SILENCE_S", 1.0)
    watched = watch("""import time; print('{"runs": []}', flush=True); time.sleep(600)""")
    wait_for("contact", lambda: watched.trouble is None)
    (first,) = mirrors()
    wait_for("a banner", lambda: watched.trouble is not None)
    wait_for("its end", lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)


def test_an_address_where_nobody_answers(tmp_path):
    """The real mirror: it says why it ends."""
    watched = Watch("127.0.0.1:9", tmp_path)
    try:
        begun = time.monotonic()
        wait_for("word of it", lambda: "no Ray cluster at 127.0.0.1:9: no answer within" in (watched.trouble or ""), 60)
        assert time.monotonic() - begun > 5  # it was given its time
    finally:
        watched.close()
