"""Whatever comes through the broker is given up with its reason, keeps no place, and stops nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import suppress

import pika
import pytest

from bridge import bridge as service
from bridge.bridge import Bridge, BridgeSettings
from bridge.connection import Mailbox
from bridge.consumer import Delivery
from bridge.dead_letters import read_dead
from bridge.session import Session, Terms
from bridge.settings import BrokerSettings
from bridge.wire import (
    ATTEMPTS,
    REASON,
    RUN,
    Refusal,
    TaskMessage,
    read_announcement,
    read_order,
    read_task,
    task_letter,
)
from hzzray.data.catalogue import release
from hzzray.engine.ledger import Ledger
from hzzray.engine.limits import Limits
from hzzray.messages import WIRE_VERSION
from hzzray.physics.histogram import MAX_BINS, Axis
from hzzray.runs.request import make_spec
from hzzray.urls import is_inside
from tests.support import ledgers
from tests.support.bridges import TOPOLOGY, Bridging, Site
from tests.support.chaos import check_ledger, oracle
from tests.support.damage import UNREADABLE, Raw, damaged
from tests.support.paper_broker import PaperBroker, read
from tests.support.waiting import wait_for

NUMBER = 10_000
THROUGH_THE_BROKER = 800


@pytest.fixture
def quiet():
    """Thousands of warnings are what is expected here."""
    logging.getLogger("bridge").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("bridge").setLevel(logging.NOTSET)


@pytest.fixture
def paper(quiet, tmp_path, monkeypatch):
    """Let a bridge work on what a paper broker holds, with a run that is there, until a condition holds."""
    ledgers.start(tmp_path / "run" / "ledger.db", ledgers.tasks(3), 3)
    broker = PaperBroker(TOPOLOGY)
    monkeypatch.setattr(service, "Link", broker.link)

    def work(condition, within=60.0):
        async def go():
            terms = Terms("", tmp_path, ("/files",), Limits(), heal_s=1e6)
            bridge = Bridge(BrokerSettings.from_url("amqp://nowhere"), TOPOLOGY, terms, BridgeSettings())
            serving = asyncio.create_task(bridge.serve())
            with suppress(TimeoutError):
                async with asyncio.timeout(within):
                    while not condition() and not serving.done():  # noqa: ASYNC110 (on paper)
                        await asyncio.sleep(0.05)
            assert not serving.done(), serving.exception()
            bridge.leave("cancel")
            await serving

        asyncio.run(go())
        assert condition(), {name: len(queue) for name, queue in broker.queues.items()}

    return broker, work


@pytest.mark.parametrize("seed", [1])
def test_ten_thousand_random_damages_are_all_given_up(paper, seed):
    """Issue 11, item 35: 10 000 random damages, seeded; each is a dead letter with its reason, none keeps a place."""
    broker, work = paper
    sent = Counter()
    for letter in damaged(ledgers.tasks(3), seed, NUMBER, TOPOLOGY):
        broker.put(letter.key, letter.body, letter.properties)
        sent[letter.body] += 1
    work(lambda: len(broker.dead()) >= NUMBER)
    letters = broker.dead()
    assert Counter(body for _, body in letters) == sent, "each of them once, as it came"
    assert all(channel.unacked == set() for channel in broker.channels)
    assert not broker.queues[TOPOLOGY.tasks.name]
    for properties, body in letters:
        reason = properties.headers[REASON]
        assert reason
        assert reason.isprintable()
        assert "it can't be handled" not in reason, "that is for what nobody thought of"
        shown = read_dead(Delivery(1, 1, body, properties))
        assert shown.reason == reason
        assert set(properties.headers) <= {"attempt", "unknown", "replay", REASON, ATTEMPTS, RUN}


def test_what_nobody_thought_of_is_given_up_too_and_the_loop_goes_on(paper, monkeypatch):
    """Issue 11, item 35: whatever handling a delivery raises."""
    broker, work = paper
    look_up = Session._look_up

    def fall_over_some(self, ledger, message):
        if message.task.sample == "Zee":
            raise KeyError("oh\0dear")
        return look_up(self, ledger, message)

    monkeypatch.setattr(Session, "_look_up", fall_over_some)
    for _ in range(20):  # more than its places
        for task in ledgers.tasks(3):
            given = task if task.sample == "Zee" else task.model_copy(update={"spec": "0" * 64})
            letter = task_letter(TOPOLOGY, TaskMessage(given))
            broker.put(letter.key, letter.body, letter.properties)
    work(lambda: len(broker.dead()) == 180)
    reasons = Counter(properties.headers[REASON] for properties, _ in broker.dead())
    assert reasons.pop("it can't be handled: KeyError: 'oh\\x00dear'") == 60
    assert sum(number for reason, number in reasons.items() if "not that of run" in reason) == 120
    assert all(channel.unacked == set() for channel in broker.channels)


def test_the_ledger_is_told_before_a_message_that_ends_its_bridges_is_a_dead_letter(paper, monkeypatch, tmp_path):
    broker, work = paper
    known = []

    async def nobody(_):
        """There is no reducer to be told."""

    def put(queue, *message):
        if queue == TOPOLOGY.dead.name:
            with Ledger.open(tmp_path / "run" / "ledger.db") as ledger:
                known.extend(failure.reason for failure in ledger.failures())
        return PaperBroker.put(broker, queue, *message)

    monkeypatch.setattr("bridge.session.reload_reducer", nobody)
    monkeypatch.setattr(broker, "put", put)
    letter = task_letter(TOPOLOGY, TaskMessage(ledgers.tasks(3)[0]))
    letter.properties.headers["x-delivery-count"] = 45
    broker.put(letter.key, letter.body, letter.properties)
    work(broker.dead)
    assert known == ["redelivered 45 times, and never acknowledged"]
    assert [properties.headers[REASON] for properties, _ in broker.dead()] == known


def test_a_mailbox_goes_on_after_what_its_taker_raises(caplog):
    """Issue 11, item 35: the same exception made ``Mailbox._empty`` drop out of its loop."""

    async def go():
        taken = []

        def take(value):
            taken.append(value)
            if value % 2:
                raise ValueError("embedded null byte")

        box = Mailbox(take)
        for value in range(6):
            box.put(value)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return taken

    assert asyncio.run(go()) == list(range(6))
    assert caplog.text.count("ValueError: embedded null byte") == 3


@pytest.mark.parametrize("location", ["/files/a\0b", "\0", "/files/" + "x" * 300, "/files/" + "../" * 3_000])
def test_a_path_that_is_none_lies_nowhere(location, tmp_path):
    """Issue 11, item 35: ``ValueError: embedded null byte`` came from ``urls.is_inside``."""
    (tmp_path / "loop").symlink_to("loop")
    assert is_inside(location, [str(tmp_path)]) is False
    assert is_inside(str(tmp_path / "loop" / "x"), ["/files"]) is False


def test_announcements_and_orders_are_read_or_refused_whatever_they_are():
    """Issue 11, item 35: the same damages in the place of the other messages; values beyond every limit."""
    for letter in damaged(ledgers.tasks(3), 2, 2_000, TOPOLOGY):
        for kind, reader in (("announcement", read_announcement), ("order", read_order), ("task", read_task)):
            properties = read(b"".join(letter.properties.encode()))
            properties.content_type, properties.type = "application/json", kind
            found = reader(letter.body, properties)
            if isinstance(found, Refusal):
                assert found.reason
                assert found.reason.isprintable()
    huge = json.loads(ledgers.SPEC.canonical())
    huge["release"]["axis"]["bins"] = 10**12
    body = json.dumps({"version": WIRE_VERSION, "run_id": "r", "spec": huge, "files": [], "unread": []}).encode()
    refused = read_announcement(body, pika.BasicProperties(content_type="application/json", type="announcement"))
    assert isinstance(refused, Refusal)
    assert f"{MAX_BINS} bins at most" in refused.reason
    assert Axis(0.0, 1.0, MAX_BINS)


@pytest.mark.parametrize(
    "table", [*UNREADABLE, *(b"\1x" + kind for kind in (b"d\x7f\xf8" + bytes(6), b"d\xff\xf0" + bytes(6), b"?"))]
)
def test_headers_that_pika_can_not_read_are_a_reason_and_no_end_of_the_connection(table):
    """Issue 11, item 35: of a time beyond all years, nested too deep, nan, of no known kind."""
    with pytest.raises(Exception):  # noqa: B017, PT011 (each has its own)
        pika.BasicProperties().decode(b"".join(Raw(table, content_type="application/json").encode()))
    found = read_task(b"{}", read(b"".join(Raw(table, content_type="application/json").encode())))
    assert isinstance(found, Refusal)
    assert found.reason.startswith("its properties can't be read: ")


def test_a_task_of_the_far_future_can_be_put_off():
    """Issue 11, item 35: a time of 2⁶⁴ - 1 could be read, and not written again."""
    letter = task_letter(TOPOLOGY, TaskMessage(ledgers.task(1)))
    letter.properties.timestamp = 2**64 - 1
    message = read_task(letter.body, read(b"".join(letter.properties.encode())))
    assert task_letter(TOPOLOGY, message).properties.encode()


@pytest.mark.usefixtures("ray_cluster", "quiet")
def test_damages_through_a_real_broker_end_in_a_complete_run(vhost, toys, tmp_path):
    """Issue 11, item 35: among damages of every kind the run is complete, with the serial digest."""
    spec = make_spec(release("toy"), observables=("m4l",))
    site = Site(vhost, tmp_path / "runs")
    done = site.publish(spec, "r", toys, 500)
    plan = site.plan(spec, "r", toys, 500)
    site.send(*damaged(list(plan.tasks), 3, THROUGH_THE_BROKER, TOPOLOGY))
    site.send_tasks(plan)
    with Bridging(site, toys, prefetch=25) as bridging:
        result = site.wait("r", within=180)
        wait_for("the dead letters", lambda: site.depth(TOPOLOGY.dead.name) >= THROUGH_THE_BROKER, 120)
        wait_for("the acknowledgements", lambda: site.unsettled() == 0, 30)
        assert not bridging.error
    assert site.depth(TOPOLOGY.dead.name) == THROUGH_THE_BROKER
    assert result.digest == oracle(tmp_path / "serial", toys, spec)
    assert check_ledger(site.ledger("r")) == done.tasks
