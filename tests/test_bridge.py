"""Runs through a real broker: whatever comes, and however often, the result is the serial one."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.connection import BrokerError
from bridge.dead_letters import dead_letters, replay
from bridge.orders import order
from bridge.provision import apply
from bridge.session import Session
from bridge.wire import Letter, Order, TaskMessage, dead_letter, task_letter
from hzzray.data.catalogue import release
from hzzray.data.toy import write_toys
from hzzray.engine.monitor import service
from hzzray.errors import UsageError
from hzzray.messages import Task
from hzzray.runs.folder import RunFolder
from hzzray.runs.request import make_spec
from hzzray.runs.run import execute, retract, settings_of
from hzzray.runs.tables import read_usage
from tests.support.bridges import PASSWORDS, TOPOLOGY, Bridging, Site
from tests.support.chaos import FEW, check_ledger, oracle
from tests.support.http_server import serve
from tests.support.proxy import Proxy
from tests.support.root_files import columns, cut_up, damage, write
from tests.support.waiting import wait_for

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def spec():
    return make_spec(release("toy"), observables=("m4l",))


@pytest.fixture(scope="module")
def digest(toys, spec, tmp_path_factory):
    return oracle(tmp_path_factory.mktemp("serial"), toys, spec)


@pytest.fixture
def site(vhost, tmp_path):
    return Site(vhost, tmp_path / "runs")


def everything_is_settled(site):
    wait_for("the acknowledgements", lambda: site.unsettled() == 0, 20)


def test_a_published_run_is_done(site, spec, toys, digest):
    done = site.publish(spec, "r", toys, 500)
    with Bridging(site, toys, actors=2, draws=True):
        result = site.wait("r")
        everything_is_settled(site)
        wait_for("the plot", (site.runs / "r" / "plot.png").exists)
    assert result.digest == digest
    assert check_ledger(site.ledger("r")) == done.tasks
    assert {path.name for path in (site.runs / "r").iterdir()} >= {
        "plot.png",
        "histograms.root",
        "cpu.csv",
        "queue.csv",
    }
    assert not site.reasons()


def test_what_publishing_took_is_in_the_runs_folder(site, spec, toys, digest, monkeypatch):
    """Issue 11, item 37: the loader's container has ended before a bridge takes the run up."""
    loader = service("loader", "abc", user_s=2.5, system_s=0.5, rss=5, cpus=1.0, memory_limit=7)
    monkeypatch.setattr("bridge.loader.measure_host", lambda: loader)
    site.publish(spec, "r", toys, 500)
    with Bridging(site, toys):
        assert site.wait("r").digest == digest
    rows = read_usage(site.runs / "r")
    told = rows[rows["actor"] == "service:loader@abc"]
    assert len(told)
    assert set(told[["state", "user_s", "system_s", "cpu_limit", "memory_limit_bytes"]].tolist()) == {
        ("ended", 2.5, 0.5, 1.0, 7)
    }
    assert not site.reasons()  # nothing of it is a task


def test_a_bridge_may_be_there_first_and_ends_with_a_run(site, spec, toys, digest):
    with Bridging(site, toys, until="r") as bridging:
        site.publish(spec, "r", toys)
        bridging.join()
    assert site.wait("r", within=1).digest == digest


def test_duplicates_and_two_bridges(site, spec, many, many_digest):
    for chunk in (20, 20, 50):  # the first plan holds, however the others would cut
        done = site.publish(spec, "r", many, chunk)
    with Bridging(site, many, actors=1, name="a-") as one, Bridging(site, many, actors=1, name="b-") as two:
        result = site.wait("r")
        everything_is_settled(site)
        assert not one.error
        assert not two.error
    assert result.digest == many_digest
    assert check_ledger(site.ledger("r")) == done.tasks
    assert not site.reasons()
    workers = {row["actor"].split("-")[0] for row in read_usage(site.runs / "r") if "worker" in row["actor"]}
    assert workers == {"a", "b"}, "both worked, and one of them wrote down what both used"


def test_another_spec_under_the_same_name_is_refused(site, spec, toys):
    site.publish(spec, "r", toys)
    with pytest.raises(UsageError, match="announced with another spec"):
        site.publish(make_spec(release("toy"), fraction=0.5), "r", toys)


def test_another_spec_that_is_announced_of_a_run_in_hand_changes_nothing_of_it(site, spec, toys, digest):
    """A bridge that began when the run was complete knew its ledger alone: the other plan's samples went into it."""
    few = make_spec(release("toy"), observables=("m4l",), samples=("Zee", "llll"))
    site.publish(few, "r", toys)
    with Bridging(site, toys):
        site.wait("r")
        everything_is_settled(site)
    with Bridging(site, toys) as bridging:
        site.order("r", "run")
        wait_for("a session", lambda: "r" in bridging.bridge._sessions, 20)
        before = site.counts("r")
        site.announce(spec, "r", site.plan(spec, "r", toys, 2_000))
        site.publish(spec, "other", toys)  # behind it in the stream
        assert site.wait("other").digest == digest
        assert site.counts("r") == before


def bad_messages(plan, outside):
    """Make 200 messages of all the kinds that nobody should send."""
    good = [task_letter(TOPOLOGY, TaskMessage(task)) for task in plan.tasks]
    chance = random.Random(1)

    def changed(letter, body=None, **properties):
        kept = {name: getattr(letter.properties, name) for name in ("content_type", "type", "message_id", "headers")}
        made = type(letter.properties)(**(kept | properties), delivery_mode=2)
        return Letter(letter.exchange, letter.key, letter.body if body is None else body, made)

    def forged(task, **changes):
        other = Task.model_validate(task.model_dump() | changes)
        return task_letter(TOPOLOGY, TaskMessage(other))

    def kinds(letter, task):
        cut = chance.randrange(1, len(letter.body))
        return [
            changed(letter, chance.randbytes(chance.randrange(1, 200))),
            changed(letter, letter.body[:cut]),
            changed(letter, b"x" * 70_000),
            changed(letter, letter.body.replace(b'"version":2', b'"version":9')),
            changed(letter, content_type="application/x-python-pickle"),
            changed(letter, type="order"),
            changed(letter, message_id="0" * 32),
            changed(letter, headers={"attempt": "often"}),
            forged(task, spec="0" * 64),
            forged(task, start=task.start + 1),
            forged(task, sample="Zee" if task.sample != "Zee" else "llll"),
            forged(task, file=str(outside)),
            forged(task, file=f"{task.file}/../../../etc/passwd"),
        ]

    made = []
    while len(made) < 200:
        number = chance.randrange(len(good))
        made += kinds(good[number], plan.tasks[number])
    return made[:200]


def test_malformed_messages_are_given_up_with_their_reasons_and_the_rest_goes_on(site, spec, toys, digest, tmp_path):
    plan = site.plan(spec, "r", toys, 500)
    bad = bad_messages(plan, tmp_path / "elsewhere.root")
    site.publish(spec, "r", toys, 500)
    site.send(*bad)
    site.send_tasks(plan)
    with Bridging(site, toys):
        assert site.wait("r").digest == digest
        reasons = site.reasons(len(bad))
        everything_is_settled(site)
    assert reasons.total() == 200
    kinds = Counter()
    for reason, number in reasons.items():
        kinds[next(kind for kind in REASONS if kind in reason)] += number
    assert set(kinds) == set(REASONS)


REASONS = (
    "too big", "version 9", "content type", "a message of type 'order'", "message_id is not the id", "headers attempt",
    "its spec 000000000000 is not that of run r", "run r has no such task in its plan", "outside the sources",
    "Invalid JSON",
)  # fmt: skip


@pytest.fixture
def folder(toys, tmp_path):
    """A copy of the toys that may be spoilt."""
    return shutil.copytree(toys, tmp_path / "toys")


def dead(site, run_id="r"):
    return asyncio.run(dead_letters(site.settings("bridge"), TOPOLOGY, lambda letter: letter.run_id == run_id))


def bring_back(site, reason="", run_id="r"):
    def wanted(letter):
        return letter.run_id == run_id and reason in letter.reason

    return asyncio.run(replay(site.settings("bridge"), TOPOLOGY, wanted))


def test_what_fails_is_a_dead_letter_and_is_replayed(site, spec, folder, digest):
    plan = site.plan(spec, "r", folder, 500)
    repair = damage(folder / release("toy").sample("Zee").path)
    site.publish_plan(spec, "r", plan)
    site.publish_plan(spec, "r", plan)
    broken = sum(task.sample == "Zee" for task in plan.tasks)
    with Bridging(site, folder):
        result = site.wait("r", "partial")
        site.wait_for_dead(2 * broken)
        everything_is_settled(site)
        assert result.tasks.failed == broken
        assert result.tasks.merged == len(plan.tasks) - broken
        letters = dead(site)
        assert len(letters) == 2 * broken, "a second copy of what has failed joins the first"
        assert {letter.message.task.sample for letter in letters} == {"Zee"}
        assert all(letter.attempts == 1 and "Zee" in letter.reason for letter in letters)
        assert bring_back(site, "another reason") == 0
        repair()
        assert bring_back(site) == broken
        assert site.wait("r").digest == digest
        everything_is_settled(site)
    assert not site.reasons()
    assert check_ledger(site.ledger("r")) == len(plan.tasks)


def test_what_is_replayed_of_a_paused_run_is_done_when_it_goes_on(site, spec, folder, digest):
    """The dead letters were gone, and their tasks failed still: none was done, whatever one resumed."""
    plan = site.plan(spec, "r", folder, 2_000)
    repair = damage(folder / release("toy").sample("Zee").path)
    site.publish_plan(spec, "r", plan)
    with Bridging(site, folder):
        broken = site.wait("r", "partial").tasks.failed
        site.wait_for_dead(broken)
        repair()
        site.order("r", "pause")
        assert bring_back(site) == broken
        everything_is_settled(site)
        assert site.counts("r").due == broken
        site.order("r", "run")
        assert site.wait("r").digest == digest
        everything_is_settled(site)
    assert not site.reasons()


def test_a_task_that_was_done_meanwhile_is_not_done_again_by_a_replay(site, spec, toys, digest):
    plan = site.plan(spec, "r", toys, 2_000)
    task = plan.tasks[0]
    site.send(dead_letter(TOPOLOGY, task.canonical(), task_letter(TOPOLOGY, TaskMessage(task)).properties,
                          reason="once", attempts=5, run_id="r"))  # fmt: skip
    site.publish_plan(spec, "r", plan)
    with Bridging(site, toys):
        site.wait("r")
        assert bring_back(site) == 1
        everything_is_settled(site)
    assert not site.reasons()
    assert site.wait("r").digest == digest
    assert check_ledger(site.ledger("r")) == len(plan.tasks)


def test_files_that_a_bridge_may_not_read_fail_with_that_reason(site, spec, toys, tmp_path):
    done = site.publish(spec, "r", toys)
    with Bridging(site, tmp_path / "elsewhere"):
        result = site.wait("r", "partial")
        reasons = site.reasons(done.tasks)
        everything_is_settled(site)
    assert result.tasks.failed == done.tasks
    assert all("outside the sources that this worker may read" in failure.reason for failure in result.failures)
    assert reasons.total() == done.tasks


def test_a_sample_that_was_missing_is_planned_by_a_later_publisher(site, spec, folder, digest):
    path = folder / release("toy").sample("Zee").path
    path.rename(tmp := path.with_suffix(".away"))
    site.publish(spec, "r", folder, 500)
    with Bridging(site, folder):
        result = site.wait("r", "partial")
        assert result.missing == ("Zee",)
        tmp.rename(path)
        site.publish(spec, "r", folder, 300)
        assert site.wait("r").digest == digest
        everything_is_settled(site)


def test_what_was_retracted_stays_out_until_the_run_is_started_anew(site, spec, toys, digest):
    """It was announced before it was known to be bad: the next start of a bridge read it again."""
    folder = RunFolder(site.runs / "r")
    site.publish(spec, "r", toys)
    with Bridging(site, toys):
        assert site.wait("r").digest == digest
        everything_is_settled(site)
    gone, left = retract(folder, "Zee")
    with Bridging(site, toys):
        site.publish(spec, "r", toys)
        assert site.reasons(gone).total() == gone
        everything_is_settled(site)
    assert (site.counts("r").failed, site.wait("r", "partial").digest) == (1, left.digest)
    assert execute(*settings_of(folder), planned=lambda _: None, progress=lambda _: None).digest == digest


def test_a_file_that_a_pattern_finds_later_is_planned_by_a_later_publisher(site, folder, digest, in_parts):
    """A sample of three files; the first publisher sees one, the second all, a third another in the place of one."""
    spec, bring = in_parts
    site.publish(spec, "r", folder, 500)
    with Bridging(site, folder):
        first = site.wait("r")
        bring(0, 2)
        assert site.publish(spec, "r", folder, 300).tasks > first.tasks.planned
        wait_for("the digest of all events", lambda: site.wait("r").digest == digest, 60)
        everything_is_settled(site)
    write(folder / "Zee/1.root", columns(100, seed=1))
    with pytest.raises(UsageError, match="another file than the one that run r was announced with"):
        site.publish(spec, "r", folder)


@pytest.fixture
def in_parts(folder):
    """A spec whose Zee is of three files, which lie in the folder but for two; and what brings these there."""
    toy = release("toy")
    zee = folder / toy.sample("Zee").path
    cut_up(zee, *(folder / f"Zee/{i}.root" for i in range(3)))
    zee.unlink()
    samples = tuple(one.model_copy(update={"path": "Zee/*.root"}) if one.name == "Zee" else one for one in toy.samples)
    for i in (0, 2):
        (folder / f"Zee/{i}.root").rename(folder / f"{i}.away")

    def bring(*parts):
        for i in parts:
            (folder / f"{i}.away").rename(folder / f"Zee/{i}.root")

    return make_spec(toy.model_copy(update={"samples": samples}), observables=("m4l",)), bring


def test_a_run_that_is_complete_takes_in_what_is_announced_later(site, folder, digest, in_parts, monkeypatch):
    """Nobody works on it any more: the tasks of its new files became dead letters, as none of its plan."""
    monkeypatch.setattr("bridge.session._REST_S", 0.5)
    spec, bring = in_parts

    def complete(tasks):
        wait_for("all that is planned", lambda: site.wait("r").tasks.planned == tasks, 60)

    first = site.publish(spec, "r", folder, 500).tasks
    with Bridging(site, folder) as bridging:
        complete(first)
        wait_for("the session's end", lambda: not bridging.bridge._sessions, 20)
        bring(0)
        second = site.publish(spec, "r", folder, 300).tasks
        assert second > first
        complete(second)
    bring(2)
    assert site.publish(spec, "r", folder, 300).tasks > second
    with Bridging(site, folder):  # which knows it from the announcements alone
        wait_for("the digest of all events", lambda: site.wait("r").digest == digest, 60)
        everything_is_settled(site)
    assert not site.reasons()


def test_what_is_announced_while_a_ledger_is_opened_is_planned(site, folder, digest, in_parts, monkeypatch):
    """It was forgotten: the tasks of its new files became dead letters."""
    opened = Session._open

    def slowly(session):
        before = session._announced
        ledger = opened(session)
        wait_for("a later announcement", lambda: session._announced is not before, 20)
        return ledger

    monkeypatch.setattr(Session, "_open", slowly)
    spec, bring = in_parts
    site.publish(spec, "r", folder, 500)
    with Bridging(site, folder) as bridging:
        wait_for("a session", lambda: "r" in bridging.bridge._sessions, 20)
        bring(0, 2)
        site.publish(spec, "r", folder, 300)
        assert site.wait("r").digest == digest
        everything_is_settled(site)
    assert not site.reasons()


def test_faults_that_pass_are_put_off_and_counted(site, spec, toys, digest, tmp_path):
    with serve(toys) as server:
        plan = site.plan(spec, "r", server.url, 1_000_000)
        site.publish_plan(spec, "r", plan)
        path = release("toy").sample("Zee").path
        server.reset()
        server.fail(path, status=503, times=12)  # more than a worker tries by itself
        with Bridging(site, server.url):
            wait_for("another try", lambda: any(site.depth(queue.name) for queue in TOPOLOGY.retries), 60)
            assert site.wait("r").digest == digest
            everything_is_settled(site)
        assert [request.status for request in server.log if request.path == path][:12] == [503] * 12


def test_a_message_that_ends_its_bridges_is_given_up(site, spec, toys):
    plan = site.plan(spec, "r", toys, 2_000)
    site.announce(spec, "r", plan)
    first, *others = [task_letter(TOPOLOGY, TaskMessage(task)) for task in plan.tasks]
    first.properties.headers["x-delivery-count"] = 45
    site.send(first, *others)
    with Bridging(site, toys):
        result = site.wait("r", "partial")
        reasons = site.reasons(1)
        everything_is_settled(site)
    assert [failure.reason for failure in result.failures] == ["redelivered 45 times, and never acknowledged"]
    assert list(reasons) == [failure.reason for failure in result.failures]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Toys for a run that lasts for a while."""
    made = tmp_path_factory.mktemp("many")
    write_toys(made, release("toy"), events=20_000, seed=5)
    return made


@pytest.fixture(scope="module")
def many_digest(many, spec, tmp_path_factory):
    return oracle(tmp_path_factory.mktemp("serial"), many, spec)


def stands_still(site):
    before = site.counts("r")
    time.sleep(1.5)
    return site.counts("r") == before


@pytest.mark.slow
def test_orders_reach_a_live_run(site, spec, many, many_digest):
    site.publish(spec, "r", many, 10)
    with Bridging(site, many) as bridging:
        for wish in ("pause", "cancel"):
            site.wait_until_merged("r", site.counts("r").merged + 100)
            site.order("r", wish)
            wait_for("a standstill", lambda: stands_still(site))
            wait_for("an empty queue", lambda: site.unsettled() == 0, 20)
            assert site.counts("r").due
            site.order("r", "run")
        asyncio.run(order(site.settings("publisher"), TOPOLOGY, Order(prefetch=7)))
        wait_for("the prefetch", lambda: bridging.bridge.prefetch == 7, 60)
        asyncio.run(order(site.settings("publisher"), TOPOLOGY, Order(prefetch=0)))
        wait_for("the prefetch", lambda: bridging.bridge.prefetch != 7, 60)
        assert site.wait("r").digest == many_digest
        everything_is_settled(site)
    check_ledger(site.ledger("r"))


def test_an_order_without_a_bridge_says_so(site):
    with pytest.raises(BrokerError, match="no bridge takes orders"):
        site.order("r", "pause")


def test_what_is_announced_to_a_broker_that_lost_all_is_heard_of(site, spec, toys, digest):
    """A live bridge read on from where it was in the stream before: what was announced in the new one was unknown."""
    plan = site.plan(spec, "r", toys, 2_000)
    for _ in range(3):
        site.announce(spec, "r", plan)
    with Bridging(site, toys) as bridging:
        wait_for("the run", lambda: "r" in bridging.bridge._announced, 20)
        site.vhost.api("DELETE", f"queues/{TOPOLOGY.runs.name}")
        apply(site.settings("guest"), TOPOLOGY)
        site.publish(spec, "other", toys)
        assert site.wait("other").digest == digest
        everything_is_settled(site)
    assert not site.reasons()


def test_a_paused_run_blocks_no_other(site, spec, many, toys, digest):
    site.publish(spec, "r", many, 10)
    with Bridging(site, many, toys):
        site.wait_until_merged("r", 50)
        site.order("r", "pause")
        site.publish(spec, "other", toys)
        assert site.wait("other").digest == digest
        assert site.counts("r").due


@pytest.mark.slow
def test_a_queue_deleted_under_its_consumer_is_filled_again(site, spec, many, many_digest):
    site.publish(spec, "r", many, 10)
    with Bridging(site, many, heal_s=1.0) as bridging:
        site.wait_until_merged("r", 100)
        site.vhost.api("DELETE", f"queues/{TOPOLOGY.tasks.name}")
        wait_for("word of it", lambda: "no queue" in bridging.bridge.trouble, 20)
        left = site.counts("r").due
        assert left
        apply(site.settings("guest"), TOPOLOGY)
        assert site.wait("r").digest == many_digest
        everything_is_settled(site)
    check_ledger(site.ledger("r"))


@pytest.mark.slow
def test_a_memory_alarm_holds_up_publishers_alone(broker, site, spec, many, many_digest, toys, digest):
    site.publish(spec, "r", many, 10)
    with Bridging(site, many, toys), ThreadPoolExecutor(1) as pool:
        site.wait_until_merged("r", 100)
        with broker.memory_alarm():
            publishing = pool.submit(site.publish, spec, "other", toys)
            site.wait_until_merged("r", site.counts("r").merged + 500)
            assert not publishing.done()
            assert not site.ledger("other").exists()
        publishing.result(60)
        assert site.wait("r").digest == many_digest
        assert site.wait("other").digest == digest
        everything_is_settled(site)
    check_ledger(site.ledger("r"))


@pytest.mark.slow
def test_a_bridge_that_leaves_is_followed_by_another(site, spec, many, many_digest):
    site.publish(spec, "r", many, 10)
    for _ in range(2):
        with Bridging(site, many) as bridging:
            site.wait_until_merged("r", site.counts("r").merged + 100)
            bridging.leave()
            bridging.join()
        assert site.counts("r").due
    with Bridging(site, many):
        assert site.wait("r").digest == many_digest
        everything_is_settled(site)
    check_ledger(site.ledger("r"))


@pytest.mark.slow
def test_a_bad_way_to_the_broker_costs_nothing(broker, site, spec, many, many_digest):
    site.publish(spec, "r", many, 10)
    with Proxy(broker.port) as proxy:
        through = site.settings("bridge", port=proxy.port, heartbeat_s=2, timeout_s=2.0)
        with Bridging(site, many, settings=through):
            for trouble in ("reset", "delay", "stall", "reset"):
                site.wait_until_merged("r", min(site.counts("r").merged + 300, 3_500))
                match trouble:
                    case "reset":
                        proxy.reset()
                    case "delay":
                        proxy.delay(0.05)
                    case "stall":
                        proxy.delay(0)
                        proxy.stall()
                        time.sleep(5)
                        proxy.resume()
            assert site.wait("r").digest == many_digest
            everything_is_settled(site)
    check_ledger(site.ledger("r"))
    assert not site.reasons()


def test_a_run_through_the_broker_in_one_command(cli, site, folder, digest, monkeypatch):
    monkeypatch.setenv("HZZRAY_BROKER_MANAGEMENT", site.vhost.broker.management_url)
    monkeypatch.setenv("HZZRAY_BROKER_PASSWORD", PASSWORDS["bridge"])
    monkeypatch.setenv("COLUMNS", "300")
    broker = ("--broker", site.vhost.url_for("bridge"))
    options = ("--chunk", 1000, "--actors", 2, *FEW, *broker)
    command = ("run", "--source", folder, "--runs", site.runs, "--run-id", "r", *options)
    repair = damage(folder / release("toy").sample("Zee").path)
    code, out, err = cli(*command)
    assert code == 3, out + err
    assert "partial" in out
    code, out, err = cli("failures", "r", *broker)
    assert code == 0, err
    assert "Zee" in out
    repair()
    code, out, err = cli(*command)
    assert code == 0, out + err
    assert site.wait("r").digest == digest
    code, out, err = cli(*command, "--fraction", 0.5)
    assert code == 2
    assert "another fraction" in err
    code, _, err = cli(*command[:-2], "--broker", site.vhost.url_for("bridge").replace("test", "nowhere"))
    assert code == 1
    assert "there is no such virtual host, or the user may not use it" in err


def test_the_two_halves_by_command(cli, site, folder, digest, monkeypatch):
    monkeypatch.setenv("HZZRAY_BROKER_MANAGEMENT", site.vhost.broker.management_url)
    monkeypatch.setenv("HZZRAY_BROKER", site.vhost.url)
    monkeypatch.setenv("HZZRAY_SOURCES", str(folder))
    repair = damage(folder / release("toy").sample("Zee").path)
    code, out, err = cli("publish", "--source", folder, "--run-id", "r", "--chunk", 1000)
    assert code == 0, err
    assert "published run r: " in out
    serve_it = ("bridge", "--runs", site.runs, "--actors", 2, "--until-complete", "r")
    code, _, err = cli(*serve_it)
    assert code == 3, err
    repair()
    site.wait_for_dead(1)
    # Issue 11, item 41: a run of bridges goes back to their broker, and its dead letters with it.
    code, out, err = cli("replay", "r", "--runs", site.runs)
    assert code == 0, err
    assert "tasks published again" in out
    assert site.depth(TOPOLOGY.dead.name) == 0
    code, _, err = cli(*serve_it)
    assert code == 0, err
    assert site.wait("r").digest == digest
    code, _, err = cli("pause", "r", "--broker", site.vhost.url)
    assert code == 1
    assert "no bridge takes orders" in err


def test_a_copy_of_a_run_is_a_run_of_its_own(cli, site, folder, digest, monkeypatch):
    """Its tasks were published, and its dead letters kept, as the original's: it never ended."""
    monkeypatch.setenv("HZZRAY_BROKER_MANAGEMENT", site.vhost.broker.management_url)
    monkeypatch.setenv("HZZRAY_BROKER", site.vhost.url)
    options = (*FEW, "--chunk", 1000, "--actors", 2, "--broker", site.vhost.url)
    command = ("run", "--source", folder, "--runs", site.runs, *options)
    repair = damage(folder / release("toy").sample("Zee").path)
    assert cli(*command, "--run-id", "r")[0] == 3
    shutil.copytree(site.runs / "r", site.runs / "copy")
    site.reasons(1)
    assert cli(*command, "--run-id", "copy")[0] == 3
    _, out, err = cli("failures", "copy", "--runs", site.runs, "--broker", site.vhost.url)
    assert "Zee" in out, err
    repair()
    with Bridging(site, folder):
        assert cli("replay", "copy", "--runs", site.runs, "--broker", site.vhost.url)[0] == 0
        assert site.wait("copy").digest == digest
        everything_is_settled(site)
    assert site.counts("r").failed
    assert not site.reasons()


def test_a_broker_without_the_topology_is_refused(cli, vhost, toys, tmp_path, monkeypatch):
    monkeypatch.setenv("HZZRAY_BROKER_MANAGEMENT", vhost.broker.management_url)
    for command in (("run", "--runs", tmp_path), ("publish",), ("bridge", "--runs", tmp_path)):
        source = () if command[0] == "bridge" else ("--source", toys)
        code, _, err = cli(*command, *source, "--broker", vhost.url)
        assert code == 1, command
        assert "`hzzray topology apply`" in err
        assert len(err.strip().splitlines()) == 1
