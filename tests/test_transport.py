"""Connection, publisher and consumer against a real broker, and a way to it that can be made bad."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections import Counter

import pika
import pytest

from bridge.connection import BrokerError, Link
from bridge.consumer import Consumer
from bridge.publisher import Publisher, PublishError, send
from bridge.settings import BrokerSettings
from bridge.wire import Letter
from hzzray.data.catalogue import release
from hzzray.errors import UsageError
from hzzray.runs.request import make_spec
from tests.support.bridges import Site
from tests.support.proxy import Proxy
from tests.support.root_files import columns, write
from tests.support.waiting import wait_for

QUORUM = {"x-queue-type": "quorum"}


@contextlib.contextmanager
def channel_of(vhost):
    """Have a channel of one who may do all."""
    connection = pika.BlockingConnection(pika.URLParameters(vhost.url))
    try:
        yield connection.channel()
    finally:
        connection.close()


@pytest.fixture
def admin(vhost):
    with channel_of(vhost) as channel:
        yield channel


@pytest.fixture
def settings(vhost):
    return BrokerSettings.from_url(vhost.url, environ={})


@pytest.fixture
def proxy(broker):
    with Proxy(broker.port) as between:
        yield between


@pytest.fixture
def through(settings, proxy):
    """Settings by way of the proxy, with short heartbeats."""
    return settings.model_copy(update={"port": proxy.port, "heartbeat_s": 2, "timeout_s": 2.0})


def declare(channel, name, **arguments):
    channel.queue_declare(name, durable=True, arguments=QUORUM | arguments)


def letter(number, queue="q"):
    return Letter("", queue, b"%d" % number, pika.BasicProperties(message_id=str(number), delivery_mode=2))


@contextlib.asynccontextmanager
async def running(settings, *make):
    """Start a link with what is made on it."""
    link = Link(settings, "test")
    try:
        made = [one(link) for one in make]
        await link.start(10)
        yield made[0] if len(made) == 1 else made
    finally:
        await link.stop()


async def until(condition, within=20.0):
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


class Sink:
    """Takes deliveries, acknowledges them in any order, and knows which came."""

    def __init__(self, link, queue="q", prefetch=50, **more):
        self.came = Counter()
        self.held = []
        self.most = 0
        self.losses = 0
        self.keep = False
        self.consumer = Consumer(link, queue, self.take, self.refuse, prefetch=prefetch, lost=self.lost, **more)

    def lost(self):
        self.losses += 1
        self.held.clear()

    def take(self, delivery):
        self.came[delivery.body] += 1
        self.held.append(delivery)
        self.most = max(self.most, len(self.held))
        if not self.keep:
            self.ack_all()

    def refuse(self, delivery, error):
        raise error

    def ack_all(self):
        random.shuffle(self.held)
        while self.held:
            self.consumer.ack(self.held.pop())


def depth(channel, queue="q"):
    return channel.queue_declare(queue, passive=True).method.message_count


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_what_is_confirmed_is_there_and_what_is_acknowledged_is_gone(admin, settings):
    declare(admin, "q")

    async def work():
        async with running(settings, Publisher, Sink) as (publisher, sink):
            await send(publisher, map(letter, range(3000)), 3000, "it")
            await until(lambda: len(sink.came) == 3000)
            assert set(sink.came.values()) == {1}
            assert not publisher.unconfirmed
            assert not publisher.trouble
        assert sink.most <= 50

    run(work())
    wait_for("the acknowledgements", lambda: depth(admin) == 0, 10)


def test_prefetch_is_changed_live_and_nothing_is_delivered_twice_for_it(admin, settings):
    declare(admin, "q")

    async def work():
        async with running(settings, Publisher) as publisher:
            await send(publisher, map(letter, range(100)), 100, "it")
        async with running(settings, lambda link: Sink(link, prefetch=3)) as sink:
            sink.keep = True
            await until(lambda: len(sink.held) == 3)
            sink.consumer.resize(20)
            await until(lambda: len(sink.held) == 23)
            sink.consumer.resize(5)
            for delivery in sink.held[:2]:  # one of before the change is still out
                sink.held.remove(delivery)
                sink.consumer.ack(delivery)
            await asyncio.sleep(0.2)
            assert (len(sink.held), sink.consumer.prefetch) == (21, 20)
            while sink.held:
                sink.consumer.ack(sink.held.pop(0))
            await until(lambda: sink.consumer.prefetch == 5 and len(sink.held) >= 5)
            while sink.held:
                sink.consumer.ack(sink.held.pop(0))
            await until(lambda: len(sink.held) == 5)
            await asyncio.sleep(0.2)  # nothing more may come
            assert len(sink.held) == 5
            sink.keep = False
            sink.ack_all()
            await until(lambda: len(sink.came) == 100)
            assert set(sink.came.values()) == {1}

    run(work())
    wait_for("the acknowledgements", lambda: depth(admin) == 0, 10)


def test_a_stale_acknowledgement_touches_no_other_message(admin, settings):
    declare(admin, "q")

    async def work():
        async with running(settings, Publisher) as publisher:
            await send(publisher, map(letter, range(4)), 4, "it")
        async with running(settings, lambda link: Sink(link, prefetch=2)) as sink:
            sink.keep = True
            await until(lambda: len(sink.held) == 2)
            stale = list(sink.held)
            sink.consumer._link.call(sink.consumer._channel.close)
            await until(lambda: sink.losses == 1 and len(sink.held) == 2)
            for delivery in stale:
                sink.consumer.ack(delivery)
            await asyncio.sleep(0.3)
            assert len(sink.held) == 2  # else the broker had sent the next ones

    run(work())
    wait_for("what was not acknowledged", lambda: depth(admin) == 4, 10)


def test_what_comes_after_a_loss_is_not_lost_with_it(admin, settings):
    """The loop was busy while a channel was lost and another one delivered: it heard of the loss last."""
    declare(admin, "q")

    async def work():
        async with running(settings, Publisher) as publisher:
            await send(publisher, map(letter, range(2)), 2, "it")
        async with running(settings, lambda link: Sink(link, prefetch=2)) as sink:
            sink.keep = True
            consumer = sink.consumer
            wait_for("what comes first", lambda: len(consumer._out) == 2, 10)  # and the loop stands still
            first = consumer._generation
            consumer._link.call(consumer._channel.close)
            wait_for("what comes again", lambda: consumer._generation > first + 1 and len(consumer._out) == 2, 10)
            await until(lambda: sink.losses)
            await asyncio.sleep(0.1)
            assert {delivery.generation for delivery in sink.held} == {consumer._generation}
            assert len(sink.held) == 2

    run(work())


def test_a_full_queue_makes_the_publisher_wait_and_give_up_in_time(admin, settings):
    declare(admin, "q", **{"x-max-length": 100, "x-overflow": "reject-publish"})
    said = []

    async def work():
        async with running(settings, Publisher) as publisher:
            with pytest.raises(PublishError) as caught:
                await send(
                    publisher, map(letter, range(1000)), 1000, "run r", progress=lambda *what: said.append(what),
                    patience_s=2.5,
                )  # fmt: skip
            assert "of 1000 messages were not published" in str(caught.value)
            assert "refused by queue q: the queue is full" in str(caught.value)
            assert any("full" in trouble for _, _, trouble in said)
        # It goes on once somebody consumes.
        async with running(settings, Publisher, Sink) as (publisher, sink):
            await send(publisher, map(letter, range(1000)), 1000, "run r", patience_s=20)
            await until(lambda: len(sink.came) == 1000)

    run(work())


def test_an_unroutable_message_is_no_success(settings):
    async def work():
        async with running(settings, Publisher) as publisher:
            with pytest.raises(PublishError, match=r"no queue takes it \(NO_ROUTE\)"):
                await send(publisher, [letter(1)], 1, "it", patience_s=0.5)

    run(work())


def test_publishing_waits_while_the_broker_is_blocked(broker, admin, settings):
    declare(admin, "q")

    async def work():
        async with running(settings, Publisher, Sink) as (publisher, sink):
            with broker.memory_alarm():
                done = asyncio.ensure_future(send(publisher, map(letter, range(10)), 10, "it"))
                await until(lambda: "takes nothing for now" in publisher.trouble)
                assert not done.done()
            await done
            await until(lambda: len(sink.came) == 10)

    run(work())


def test_a_deleted_queue_is_waited_for(admin, settings):
    declare(admin, "q")

    async def work():
        async with running(settings, Publisher, Sink) as (publisher, sink):
            await send(publisher, map(letter, range(10)), 10, "it")
            await until(lambda: len(sink.came) == 10)
            admin.queue_delete("q")
            await until(lambda: "no queue 'q'" in sink.consumer.trouble)
            late = asyncio.ensure_future(send(publisher, map(letter, range(10, 20)), 10, "it"))
            await until(lambda: "NO_ROUTE" in publisher.trouble)
            declare(admin, "q")
            await until(lambda: len(sink.came) == 20)
            await late
            assert not sink.consumer.trouble

    run(work())


@pytest.mark.parametrize("way", ["reset", pytest.param("stall", marks=pytest.mark.slow), "delay"])
def test_a_bad_way_to_the_broker_loses_nothing(way, admin, settings, through, proxy):
    declare(admin, "q")

    async def trouble():
        for _ in range({"reset": 6, "stall": 2, "delay": 1}[way]):
            await asyncio.sleep(0.3)
            if way == "reset":
                proxy.reset()
            elif way == "stall":
                proxy.stall()
                await asyncio.sleep(5)  # for longer than two heartbeats
                proxy.resume()
            else:
                proxy.delay(0.05)

    async def work():
        async with running(through, Publisher) as publisher, running(through, Sink) as sink:
            bad = asyncio.ensure_future(trouble())
            await send(publisher, map(letter, range(4000)), 4000, "it")
            while not bad.done():
                await send(publisher, map(letter, range(50)), 50, "it")
                await asyncio.sleep(0.05)
            await until(lambda: len(sink.came) == 4000)
            await until(lambda: depth(admin) == 0)
            if way != "delay":
                assert sink.losses

    run(work())


def test_the_first_connection_is_waited_for_and_explained(settings, vhost):
    async def refused(how):
        begun = time.monotonic()
        link = Link(how, "test")
        with pytest.raises(BrokerError) as caught:
            await link.start(1.0)
        await link.stop()
        return str(caught.value), time.monotonic() - begun

    async def work():
        with Proxy(1) as nobody:
            said, took = await refused(settings.model_copy(update={"port": nobody.port}))
        assert said.startswith("no broker at amqp://127.0.0.1:")
        assert took > 0.9
        for changes, reason in (
            ({"password": "wrong"}, "it refuses the user or the password"),
            ({"vhost": "nowhere"}, "there is no such virtual host, or the user may not use it"),
        ):
            other = BrokerSettings.model_validate(settings.model_dump() | changes)
            said, took = await refused(other)
            assert said.endswith(reason)
            assert took < 0.9
            assert "wrong" not in said

    run(work())


def test_an_unexpected_error_on_the_thread_is_outlived(admin, settings, caplog):
    declare(admin, "q")

    def fail():
        raise ZeroDivisionError

    async def work():
        async with running(settings, Publisher, Sink) as (publisher, sink):
            await send(publisher, map(letter, range(10)), 10, "it")
            sink.consumer._link.call(fail)
            await send(publisher, map(letter, range(10, 20)), 10, "it")
            await until(lambda: len(sink.came) == 20)

    run(work())
    assert "ZeroDivisionError" in caplog.text


def test_a_published_run_is_not_published_again_with_other_content(vhost, toys, tmp_path):
    """Issue 11, item 19: through a broker too, a file that was written over is another one."""
    site, folder = Site(vhost, tmp_path / "runs"), tmp_path / "toys"
    shutil.copytree(toys, folder)
    spec = make_spec(release("toy"))
    tasks = site.publish(spec, "r", folder).tasks
    assert site.publish(spec, "r", toys).tasks == tasks, "the same bytes elsewhere"
    write(folder / release("toy").sample("Zee").path, columns(300))
    with pytest.raises(UsageError, match=r"Zee.*: another file than the one that run r was announced with"):
        site.publish(spec, "r", folder)
