"""What actors use: measured while they work, kept whatever is killed, read back as rates."""

from __future__ import annotations

import math
import os
import resource
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from hzzray.engine.monitor import CpuBaseline, Meter, Scale, Usage, absent, is_actor, measure_host, service, service_of
from hzzray.engine.source import Congestion
from hzzray.files import OutputError
from hzzray.messages import Cost, Task
from hzzray.runs.tables import (
    HISTORY,
    QUEUE,
    SCALE,
    USAGE,
    Moment,
    Recorder,
    cpu_percent,
    follow,
    of_actors,
    read_scale,
    read_usage,
)
from tests.test_cgroup import V2

TASK = Task(run_id="r", spec="0" * 64, sample="ggH, 4ℓ", file="f.root", uuid="u", tree="t", start=0, stop=10)


def used(actor="worker-0", user=0.0, system=0.0, *, pid=7, node="n", **changes) -> Usage:
    return Usage(actor, node, pid, "working", "Zee", user, system, **changes)


def record(folder, *samples, started=0.0):
    """Append (time, usage…) samples in one start of a run."""
    with Recorder(folder, "local", started) as recorder:
        for time_s, *usages in samples:
            recorder.add(time_s, usages)
        return recorder.started


def busy(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(10_000))


@pytest.fixture(scope="module")
def kernel():
    import numba

    @numba.njit("f8(i8, b1[:])", nogil=True)
    def kernel(n, over):
        x = 1.0
        for i in range(n):
            x += 1.0 / (x + i)
        over[0] = True
        return x

    return kernel


def test_a_meter_answers_while_a_kernel_runs(kernel):
    n, over = 10_000_000, np.zeros(1, np.bool_)
    begun = time.thread_time()
    kernel(n, over)
    assert over[0]
    over[0] = False
    n = int(n * 1.5 / (time.thread_time() - begun))  # 1.5 s of CPU
    meter = Meter("worker-0")
    working = threading.Event()

    def work():
        with meter.working(TASK):
            working.set()
            kernel(n, over)
        meter.add(Cost(events=10, bytes_read=5, read_s=0.5))

    thread = threading.Thread(target=work)
    before = meter.usage()
    thread.start()
    working.wait()
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        usage = meter.usage()
        took.append(time.perf_counter() - begun)
        assert (usage.state, usage.sample, usage.tasks, usage.events) == ("working", TASK.sample, 0, 0)
    assert not over[0]  # said by the kernel itself: with the GIL in its hands, the thread lives on a moment longer
    assert np.median(took) < 0.05
    thread.join()
    after = meter.usage()
    assert (after.state, after.sample) == ("idle", "")
    assert (after.tasks, after.events, after.bytes_read, after.read_s) == (1, 10, 5, 0.5)
    assert after.user_s - before.user_s > 0.7
    assert after.pid == os.getpid()
    assert after.rss > 10_000_000


def test_a_failed_task_leaves_the_meter_idle():
    meter = Meter("worker-0", node="abc")
    with pytest.raises(RuntimeError), meter.working(TASK):
        raise RuntimeError
    usage = meter.usage()
    assert (usage.actor, usage.node, usage.state, usage.tasks) == ("worker-0", "abc", "idle", 0)


def test_cpu_is_what_the_system_says(tmp_path):
    meter, baseline = Meter("worker-0"), CpuBaseline()
    here = f"node:{socket.gethostname()}"

    def usages():
        return [meter.usage(), baseline(measure_host(tmp_path))]  # no control groups there: the machine

    with Recorder(tmp_path, "local") as recorder:
        begun, times = time.perf_counter(), os.times()
        recorder.add(0.0, usages())
        threads = [threading.Thread(target=busy, args=(0.3,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        recorder.add(seconds, usages())
        now = os.times()
    cpu = now.user + now.system - times.user - times.system
    assert cpu > 0.5  # of both threads
    use = cpu_percent(read_usage(tmp_path))
    assert set(use) == {"worker-0", here}
    # The first sample has all that came before, in no time: nothing can be said of it.
    assert use["worker-0"].percent == pytest.approx([0.0, 100 * cpu / seconds], rel=0.2)
    assert use[here].percent[-1] > 0.8 * use["worker-0"].percent[-1]
    rows = read_usage(tmp_path)
    machine = rows[rows["actor"] == here]
    assert (machine["rss_bytes"] > rows[rows["actor"] == "worker-0"]["rss_bytes"]).all()
    assert machine["user_s"][0] == 0  # since it was first seen, not since the machine began
    assert (machine["cpu_limit"] >= 1).all()
    assert (machine["memory_limit_bytes"] > machine["rss_bytes"]).all()


def test_rows_come_back(tmp_path):
    usage = Usage("a,b", 'no"de', 7, "idle", "ℓ\nx", 1.25, 0.5, 2**40, 2**41, 2**42, 0.125, 3, "0a1b", 1.5, 2**33, 9)
    with Recorder(tmp_path, "KubeRay, here") as recorder:
        recorder.add(1.0, [usage, absent("worker-1", "pending")])
        recorder.add_scale(1.0, Scale(actors=1, pending=2, nodes=3, waiting=4, in_flight=5))
        recorder.add_history(1.0, Moment(10, 0.5, 1.0, 2.0, 3, 4.0, 5.0, 6.0, 7.0, math.nan))
    rows = read_usage(tmp_path)
    names = ("time_s", "environment", "actor", "node", "pid", "state", "sample", "user_s", "system_s", "rss_bytes")
    names += ("events", "bytes_read", "read_s", "tasks", "actor_id", "cpu_limit", "memory_limit_bytes")
    names += ("hot_bytes", "timestamp")
    assert rows.dtype.names == names
    assert rows[0].item()[:-1] == (
        *(1.0, "KubeRay, here", "a,b", 'no"de', 7, "idle", "ℓ\nx", 1.25, 0.5, 2**40),
        *(2**41, 2**42, 0.125, 3, "0a1b", 1.5, 2**33, 9),
    )
    assert rows[1].item()[:-1] == (
        1.0,
        "KubeRay, here",
        "worker-1",
        "",
        0,
        "pending",
        "",
        0.0,
        0.0,
        0,
        0,
        0,
        0.0,
        0,
        "",
        0.0,
        0,
        0,
    )
    assert read_scale(tmp_path)[0].item()[:-1] == (1.0, "KubeRay, here", 1, 2, 3, 4, 5)
    history = follow(tmp_path, HISTORY).rows()[0]
    assert history.item()[:-2] == (1.0, "KubeRay, here", 10, 0.5, 1.0, 2.0, 3, 4.0, 5.0, 6.0, 7.0)
    assert np.isnan(history["observed"])


def test_rows_tell_when_they_were_written(tmp_path):
    """Issue 11, item 26: files counted seconds from a start that they didn't tell."""
    before = datetime.now(UTC)
    with Recorder(tmp_path, "local") as recorder:
        recorder.add(1.0, [used()])
        recorder.add_scale(1.0, Scale(actors=1, pending=0, nodes=1, waiting=0, in_flight=0))
        recorder.add_history(1.0, Moment(10, 0.5, 1.0, 2.0, 3, 4.0, 5.0, 6.0, 7.0, math.nan))
        recorder.add_queue(1.0, Congestion(*range(len(Congestion._fields))))
    for rows in (follow(tmp_path, table).rows() for table in (USAGE, SCALE, HISTORY, QUEUE)):
        (text,) = rows["timestamp"]
        assert text.endswith("Z")
        assert before - timedelta(milliseconds=1) <= datetime.fromisoformat(text) <= datetime.now(UTC)


def test_files_of_earlier_versions_are_read_and_go_on(tmp_path):
    """Issue 11, item 26: those have no column of timestamps."""
    record(tmp_path, (1.0, used(user=1.0)))
    path = tmp_path / "cpu.csv"
    path.write_text("".join(line.rpartition(",")[0] + "\n" for line in path.read_text().splitlines()))
    assert "timestamp" not in path.read_text()
    record(tmp_path, (1.0, used(user=2.0)))
    rows = read_usage(tmp_path)
    assert rows["time_s"].tolist() == [1.0, 2.0]
    assert rows["timestamp"].tolist() == ["", ""]
    assert rows["actor_id"].tolist() == [used().actor_id] * 2
    assert {line.count(",") for line in path.read_text().splitlines()} == {len(rows.dtype) - 2}


def test_no_file_is_no_rows(tmp_path):
    for rows, field in ((read_usage(tmp_path), "user_s"), (read_scale(tmp_path), "nodes")):
        assert rows.shape == (0,)
        assert rows[field].sum() == 0
    assert cpu_percent(read_usage(tmp_path)) == {}
    record(tmp_path)
    assert read_usage(tmp_path).shape == read_scale(tmp_path).shape == (0,)


def test_rows_are_there_before_the_recorder_ends(tmp_path):
    with Recorder(tmp_path, "local") as recorder:
        recorder.add(1.0, [used()])
        recorder.add_scale(1.0, Scale(actors=1, pending=0, nodes=1, waiting=0, in_flight=0))
        assert len(read_usage(tmp_path)) == len(read_scale(tmp_path)) == 1


def test_a_resumed_run_goes_on_in_time(tmp_path):
    assert record(tmp_path, (1.0, used()), (2.0, used())) == 0.0
    assert record(tmp_path, (1.0, used()), started=2.5) == 2.5
    # This time the ledger knew nothing of the last start, as after a SIGKILL of the driver.
    assert record(tmp_path, (1.0, used()), started=2.5) == 3.5
    assert read_usage(tmp_path)["time_s"].tolist() == [1.0, 2.0, 3.5, 4.5]
    assert (tmp_path / "cpu.csv").read_text().count("time_s") == 1


def test_cut_anywhere_a_file_has_its_whole_lines_and_goes_on(tmp_path):
    record(tmp_path, *((float(t), used(user=t)) for t in range(1, 4)))
    path = tmp_path / "cpu.csv"
    text = path.read_bytes()
    for size in range(len(text) + 1):
        path.write_bytes(text[:size])
        whole = max(text[:size].count(b"\n") - 1, 0)
        assert read_usage(tmp_path)["time_s"].tolist() == [1.0, 2.0, 3.0][:whole]
        record(tmp_path, (0.5, used()))
        assert read_usage(tmp_path)["time_s"].tolist() == [*[1.0, 2.0, 3.0][:whole], whole + 0.5]


def test_a_follower_reads_on(tmp_path):
    follower = follow(tmp_path, USAGE)
    assert follower.rows().shape == (0,)
    record(tmp_path, (1.0, used()))
    assert follower.rows()["actor"].tolist() == ["worker-0"]
    with (tmp_path / "cpu.csv").open("a") as file:
        file.write("1.5,local,half a li")
    assert follower.rows()["time_s"].tolist() == [1.0]
    record(tmp_path, (1.0, used(actor="a-longer-name")))
    assert follower.rows()["actor"].tolist() == ["worker-0", "a-longer-name"]
    assert follower.rows().tolist() == read_usage(tmp_path).tolist()
    (tmp_path / "cpu.csv").unlink()
    assert follower.rows().shape == (0,)
    record(tmp_path, (7.0, used()))
    assert follower.rows()["time_s"].tolist() == [7.0]


def test_a_follower_of_a_long_file_keeps_its_end(tmp_path):
    record(tmp_path, *((float(t), used()) for t in range(1000)))
    follower = follow(tmp_path, USAGE, limit=50)
    rows = follower.rows()
    assert 50 <= len(rows) < 200
    assert rows["time_s"].tolist() == [float(t) for t in range(1000 - len(rows), 1000)]
    record(tmp_path, *((float(t), used()) for t in range(1, 301)))
    assert follower.rows()["time_s"].tolist() == [float(t) for t in range(1250, 1300)]


def test_a_long_half_line_is_removed(tmp_path):
    record(tmp_path, (1.0, used()))
    with (tmp_path / "cpu.csv").open("a") as file:
        file.write("2.0," + "x" * 200_000)
    assert record(tmp_path, (1.0, used())) == 1.0
    assert read_usage(tmp_path)["time_s"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", r"cpu\.csv: its columns are"),
        ("HEADER1.0,local\n", r"cpu\.csv: line 2 has 2 columns, not 19"),
        ("HEADERx,local,a,n,7,idle,,0,0,0,0,0,0,0,,0,0,0,\n", r"cpu\.csv: column time_s has what is no number"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, text, said):
    record(tmp_path)
    path = tmp_path / "cpu.csv"
    path.write_text(text.replace("HEADER", path.read_text()))
    with pytest.raises(OutputError, match=said):
        read_usage(tmp_path)


@pytest.mark.parametrize(("text", "said"), [("a,b\n1,2\n", "its columns"), ("HEADERx\n", "its last line")])
def test_nothing_is_added_to_what_is_no_such_table(tmp_path, text, said):
    record(tmp_path)
    path = tmp_path / "cpu.csv"
    path.write_text(text.replace("HEADER", path.read_text()))
    before = path.read_bytes()
    with pytest.raises(OutputError, match=rf"cpu\.csv: {said}"):
        Recorder(tmp_path, "local")
    assert path.read_bytes() == before


@contextmanager
def files_of_at_most(size):
    """Let the system refuse to make files larger, as a full disk does: in the midst of a line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_where_a_file_can_not_grow_it_keeps_whole_lines(tmp_path):
    path = tmp_path / "cpu.csv"
    with Recorder(tmp_path, "local") as recorder:
        recorder.add(1.0, [used()])
        before = path.read_bytes()
        with files_of_at_most(len(before) + 10), pytest.raises(OutputError, match=r"cpu\.csv: File too large"):
            recorder.add(2.0, [used()])
        assert path.read_bytes() == before
        recorder.add(3.0, [used()])
    assert read_usage(tmp_path)["time_s"].tolist() == [1.0, 3.0]


def test_no_folder(tmp_path):
    with pytest.raises(OutputError, match=r"none/cpu\.csv: No such file or directory"):
        Recorder(tmp_path / "none", "local")


def percents(folder, actor="worker-0"):
    edges, percent = cpu_percent(read_usage(folder))[actor]
    assert len(edges) == len(percent) + 1
    return edges.tolist(), percent.tolist()


def test_cpu_use_is_the_slope(tmp_path):
    record(
        tmp_path, (2.0, used(user=1.0, system=0.5)), (3.0, used(user=2.0, system=0.5)), (5.0, used(user=2.0, system=1))
    )
    assert percents(tmp_path) == ([0.0, 2.0, 3.0, 5.0], [75.0, 100.0, 25.0])


@pytest.mark.parametrize("new", [{"pid": 8}, {"node": "m"}, {}])
def test_a_new_process_starts_from_zero(tmp_path, new):
    """Another pid or node tells; in containers both may be the same, and counters that fell tell."""
    record(tmp_path, (1.0, used(user=1.0)), (2.0, absent("worker-0", "restarting")), (3.0, used(user=0.5, **new)))
    assert percents(tmp_path) == ([0.0, 1.0, 3.0], [100.0, 25.0])


def test_a_pending_actor_counts_from_there(tmp_path):
    record(tmp_path, (10.0, absent("worker-1", "pending")), (11.0, used("worker-1", 0.5), used(user=5.5)))
    assert percents(tmp_path, "worker-1") == ([10.0, 11.0], [50.0])
    assert percents(tmp_path) == ([0.0, 11.0], [50.0])


def test_an_actor_that_never_ran_has_no_use(tmp_path):
    record(tmp_path, (1.0, absent("worker-1", "pending"), used()), (1.0, used(user=0.5)))
    assert set(cpu_percent(read_usage(tmp_path))) == {"worker-0"}
    assert percents(tmp_path) == ([0.0, 1.0], [50.0])


def test_the_integral_is_all_that_was_used(tmp_path):
    random = np.random.default_rng(5)
    spent = dict.fromkeys(("worker-0", "worker-1", "worker-2"), 0.0)
    count, pid = dict.fromkeys(spent, 0.0), dict.fromkeys(spent, 1)
    time_s = 0.0
    with Recorder(tmp_path, "local") as recorder:
        for _ in range(50):
            time_s += round(random.uniform(0.5, 1.5), 3)
            usages = []
            for actor in spent:
                if random.random() < 0.2:
                    count[actor], pid[actor] = 0.0, pid[actor] + 1
                step = round(random.uniform(0, 1), 2)
                spent[actor] += step
                count[actor] += step
                usages.append(used(actor, user=count[actor], pid=pid[actor]))
            recorder.add(time_s, random.permutation(usages))
    for actor, (edges, percent) in cpu_percent(read_usage(tmp_path)).items():
        assert np.diff(edges) @ percent / 100 == pytest.approx(spent[actor])


def test_a_table_of_an_older_hzzray_is_read_and_goes_on(tmp_path):
    """Issue 11, item 37: the columns of limits are new; a run that was begun without them is not to be refused."""
    record(tmp_path, (1.0, used(user=0.5, cpus=2.0, memory_limit=5)))
    path = tmp_path / "cpu.csv"
    old = [line.rsplit(",", 4)[0] for line in path.read_text().splitlines()]
    path.write_text("\n".join(old) + "\n")
    assert read_usage(tmp_path)[["user_s", "cpu_limit", "memory_limit_bytes"]].tolist() == [(0.5, 0.0, 0)]
    record(tmp_path, (1.0, used(user=0.75, cpus=2.0, memory_limit=5)))
    assert path.read_text().splitlines()[0] == old[0]
    rows = read_usage(tmp_path)
    assert rows[["time_s", "user_s", "cpu_limit"]].tolist() == [(1.0, 0.5, 0.0), (2.0, 0.75, 0.0)]


# Services' containers.


def test_where_a_process_runs_is_its_container(tmp_path, monkeypatch):
    """Issue 11, item 37: a node's CPU in a container is the container's, under its service's name where it has one."""
    for name, text in V2.items():
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("HZZRAY_SERVICE", raising=False)
    host = socket.gethostname()
    usage = measure_host(tmp_path)
    assert usage.actor == f"node:{host}"
    assert (usage.user_s, usage.system_s, usage.rss) == (4.0, 3.253517, 138379264 - 17264640)
    assert (usage.cpus, usage.memory_limit) == (1.5, 2**30)
    monkeypatch.setenv("HZZRAY_SERVICE", "bridge")
    usage = measure_host(tmp_path)
    assert (usage.actor, usage.node, usage.is_service) == (f"service:bridge@{host}", host, True)
    # A name, but no container: that would be the machine's figures.
    assert not measure_host(tmp_path / "nowhere").is_service


def test_cpu_before_the_run_is_not_the_runs():
    baseline = CpuBaseline()
    assert baseline(service("head", "h", user_s=3000.0, system_s=500.0)).user_s == 0
    later = baseline(service("head", "h", user_s=3001.0, system_s=500.5))
    assert (later.user_s, later.system_s) == (1.0, 0.5)
    again = baseline(service("head", "h", user_s=2.0, system_s=0.5))  # the container was started again
    assert (again.user_s, again.system_s) == (2.0, 0.5)
    assert baseline(service("head", "h", user_s=4.0, system_s=0.5)).user_s == 4.0
    done = service("loader", "l", user_s=7.0, state="ended")
    assert baseline(done) == baseline(done) == done


def test_actors_are_told_from_machines_and_services(tmp_path):
    record(tmp_path, (1.0, used(), service("worker", "h"), replace(used(), actor="node:h")))
    rows = read_usage(tmp_path)
    assert of_actors(rows)["actor"].tolist() == ["worker-0"]
    assert [is_actor(name) for name in rows["actor"]] == [True, False, False]
    assert [service_of(name) for name in rows["actor"]] == ["", "worker", ""]
