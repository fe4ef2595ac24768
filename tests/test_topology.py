"""The broker holds what we need, users may do what they must and no more, messages go where they should."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import time
from contextlib import contextmanager
from uuid import uuid4

import pika
import pytest
from pika.exceptions import (
    AMQPConnectionError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    UnroutableError,
)

from bridge.connection import BrokerError, is_final
from bridge.management import Management, ManagementError
from bridge.provision import apply, check, require
from bridge.settings import BrokerSettings
from bridge.topology import DELIVERY_LIMIT, Topology, hash_password
from tests.support.proxy import Proxy
from tests.support.rabbit import Broker, Vhost, free_ports
from tests.support.waiting import wait_for

TOPOLOGY = Topology(delays_s=(0.3, 2.5))
PASSWORDS = {"admin": "an admin's", "publisher": "a publisher's / @ ü", "bridge": "a bridge's"}
PERSISTENT = pika.BasicProperties(delivery_mode=2)


def settings(vhost, user=None):
    """Settings of a user of the topology, or of one who may do all."""
    url = vhost.url if user is None else vhost.url_for(user, PASSWORDS[user])
    environ = {"HZZRAY_BROKER_MANAGEMENT": vhost.broker.management_url}
    return BrokerSettings.from_url(url, environ=environ)


@contextmanager
def channel_of(vhost, user=None):
    with pika.BlockingConnection(settings(vhost, user).parameters("test")) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def put(channel, queue, body=b"work", **properties):
    channel.basic_publish(
        queue.exchange, queue.name, body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True
    )


def fill(channel, queue):
    """Publish numbered messages, ten at most, until the broker refuses; returns those that it took."""
    bodies = [f"{queue.name} {number}".encode() for number in range(10)]
    for number, body in enumerate(bodies):
        try:
            put(channel, queue, body)
        except NackError:
            return bodies[:number]
    return bodies


def take(channel, queue, within=10.0):
    """Take and acknowledge a queue's next message."""
    method, properties, body = wait_for(
        f"a message in {queue.name}", lambda: (got := channel.basic_get(queue.name))[0] and got, within
    )
    channel.basic_ack(method.delivery_tag)
    return properties, body


@pytest.fixture
def provisioned(vhost):
    """A virtual host with the topology and its users, made as a user would."""
    assert apply(settings(vhost), TOPOLOGY, PASSWORDS) == check(settings(vhost), TOPOLOGY)
    return vhost


# The description


def test_passwords_are_hashed_as_rabbitmq_says():
    # The example of RabbitMQ's documentation.
    assert hash_password("test12", bytes.fromhex("908DC60A")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"
    one, other = hash_password("same"), hash_password("same")
    assert one != other
    raw = base64.b64decode(one)
    assert raw[4:] == hashlib.sha256(raw[:4] + b"same").digest()


def test_definitions_hold_no_password_and_no_feature_that_newer_brokers_refuse():
    definitions = TOPOLOGY.definitions("/", PASSWORDS)
    text = json.dumps(definitions)
    assert not any(password in text for password in PASSWORDS.values())
    assert all(queue["durable"] and not queue["auto_delete"] for queue in definitions["queues"])
    assert {frozenset(queue["arguments"]) for queue in definitions["queues"]} == {frozenset({"x-queue-type"})}
    assert not any(
        key.startswith(("ha-", "queue-m", "max-in-memory")) for p in definitions["policies"] for key in p["definition"]
    )
    assert all(
        p["definition"]["overflow"] == "reject-publish"
        for p in definitions["policies"]
        if "dead-letter-strategy" in p["definition"]  # at least once needs it
    )
    assert definitions["users"][1]["tags"] == ""


def test_policies_are_for_one_queue_each():
    topologies = [Topology(prefix, (1.0,) * 10) for prefix in ("hzzray", "hzzray.tasks", "my.hzzray", "hzzrayX")]
    names = [queue.name for topology in topologies for queue in topology.queues]
    for topology in topologies:
        for policy in topology.definitions()["policies"]:
            assert [name for name in names if re.search(policy["pattern"], name)] == [policy["name"]]


def test_no_broker_counts_its_own_number_of_deliveries():
    """RabbitMQ 4 drops what was delivered 20 times where nothing else is said: dead letters, by looking at them."""
    limits = {queue.name: queue.policy.get("delivery-limit", 0) for queue in (TOPOLOGY.tasks, TOPOLOGY.dead)}
    assert limits["hzzray.tasks"] == DELIVERY_LIMIT
    assert limits["hzzray.dead"] >= 100_000  # 3.10 knows no number for none


def test_prefixes_keep_apart(vhost):
    ours, theirs = Topology("one.run", (1.0,)), Topology("one", (1.0,))
    assert not {q.name for q in ours.queues} & {q.name for q in theirs.queues}
    apply(settings(vhost), ours)
    lacks = check(settings(vhost), theirs).lacks
    assert "queue one.tasks" in lacks
    assert "exchange one" in lacks


# Putting it there, and checking


def test_an_empty_broker_is_told_what_it_lacks_and_gets_it(vhost):
    broker = settings(vhost)
    before = check(broker, TOPOLOGY)
    wanted = {f"queue {q.name}" for q in TOPOLOGY.queues} | {f"exchange {name}" for name in TOPOLOGY.exchanges}
    assert set(before.lacks) == wanted
    with pytest.raises(BrokerError, match=r"lacks exchange hzzray, .*queue hzzray\.tasks.*topology apply"):
        require(broker, TOPOLOGY)
    assert apply(broker, TOPOLOGY).lacks == ()
    require(broker, TOPOLOGY)
    assert apply(broker, TOPOLOGY) == check(broker, TOPOLOGY)  # again changes nothing
    assert check(broker, TOPOLOGY).unseen == ()


def test_a_missing_virtual_host_is_made(broker):
    vhost = Vhost(broker, f"new/{uuid4()}", broker.starts)
    try:
        with pytest.raises(BrokerError, match=r"no broker at .*: .*virtual host"):
            check(settings(vhost), TOPOLOGY)
        assert apply(settings(vhost), TOPOLOGY).lacks == ()
    finally:
        vhost.delete()


def test_a_broker_that_comes_late_is_waited_for(provisioned, monkeypatch, caplog):
    """Issue 11, item 28: one connection without a retry, and so every Pod that was faster than the broker ended."""
    (dead,) = free_ports(1)
    find = socket.getaddrinfo
    with Proxy(dead) as booting:  # takes connections, and drops them
        ports = iter([None, None, dead, booting.port])

        def resolve(host, port, *rest, **more):
            if host != "broker.late.svc":
                return find(host, port, *rest, **more)
            there = next(ports, provisioned.broker.port)
            if there is None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return find("127.0.0.1", there, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        late = settings(provisioned, "publisher").model_copy(update={"host": "broker.late.svc"})
        require(late, TOPOLOGY)
    name, refused, silent = (record.getMessage() for record in caplog.records)
    assert "Name or service not known; waiting for it, 30 s at the most" in name
    assert "Connection refused; waiting for it" in refused
    assert "nobody speaks AMQP there, or not yet" in silent


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "wrong"}, "it refuses the user or the password"),
        ({"user": "nobody"}, "it refuses the user or the password"),
        ({"vhost": "nowhere"}, "there is no such virtual host, or the user may not use it"),
    ],
)
def test_who_is_refused_is_told_at_once(provisioned, wrong, said, caplog):
    """Issue 11, item 28: to wait for what will never be would hide a user's mistake."""
    mistaken = BrokerSettings.model_validate(settings(provisioned, "publisher").model_dump() | wrong)
    with pytest.raises(BrokerError, match=said):
        require(mistaken, TOPOLOGY)
    assert not caplog.records


@pytest.mark.parametrize(
    ("said", "final"),
    [
        ("NOT_ALLOWED - vhost nowhere not found", True),
        ("NOT_ALLOWED - access to vhost '/' refused for user 'ann': vhost '/' is down", False),
    ],
)
def test_a_virtual_host_that_is_not_up_yet_is_waited_for(said, final):
    """Issue 11, item 28: a node that boots refuses it so, and takes it a moment later."""
    assert is_final(ProbableAccessDeniedError(repr(ConnectionClosedByBroker(530, said)))) is final


def test_each_wrong_thing_is_found(provisioned):
    vhost, broker = provisioned, settings(provisioned)

    def lacks():
        (line,) = check(broker, TOPOLOGY).lacks
        return line

    tasks = TOPOLOGY.tasks
    vhost.api("DELETE", f"bindings/e/hzzray/q/{tasks.name}/{tasks.name}")
    assert lacks() == "the binding of hzzray.tasks to exchange hzzray"
    apply(broker, TOPOLOGY)

    vhost.api("DELETE", "policies/hzzray.retry.1")
    assert "the policy of hzzray.retry.1: " in lacks()
    assert "message-ttl is not set" in lacks()
    apply(broker, TOPOLOGY)

    louder = {"pattern": "tasks", "apply-to": "all", "priority": 99, "definition": dict(tasks.policy)}
    louder["definition"] |= {"delivery-limit": 3, "overflow": "drop-head", "max-length": 7}
    vhost.api("PUT", "policies/louder", louder)
    line = lacks()
    assert "overflow is drop-head, not reject-publish" in line
    assert "delivery-limit is 3" in line
    assert "max-length" not in line  # the operator's to choose
    vhost.api("DELETE", "policies/louder")

    forgetful = {"pattern": "dead", "apply-to": "all", "priority": 99}
    vhost.api("PUT", "policies/forgetful", forgetful | {"definition": {**TOPOLOGY.dead.policy, "delivery-limit": 100}})
    assert "the policy of hzzray.dead: delivery-limit is 100, less than" in lacks()
    vhost.api("DELETE", "policies/forgetful")

    vhost.api("DELETE", "queues/hzzray.dead")
    assert lacks() == "queue hzzray.dead"
    vhost.api("PUT", "queues/hzzray.dead", {"durable": True, "arguments": {"x-queue-type": "classic"}})
    assert lacks() == "quorum queue hzzray.dead: that one is classic; delete it first"
    vhost.api("DELETE", "queues/hzzray.dead")
    apply(broker, TOPOLOGY)

    vhost.api("DELETE", "exchanges/hzzray.control")
    vhost.api("PUT", "exchanges/hzzray.control", {"type": "direct", "durable": True})
    assert lacks() == "durable fanout exchange hzzray.control: that one is direct; delete it first"


def test_what_an_operator_has_chosen_stays(provisioned):
    """`apply` took lengths and delays back to ours, each time that Compose started."""
    chosen = {**TOPOLOGY.tasks.policy, "max-length": 5000, "delivery-limit": 90, "overflow": "drop-head"}
    policy = {"pattern": "^hzzray\\.tasks$", "apply-to": "queues", "priority": 12}
    provisioned.api("PUT", "policies/hzzray.tasks", policy | {"definition": chosen})
    assert apply(settings(provisioned), TOPOLOGY).lacks == ()
    there = provisioned.api("GET", "policies/hzzray.tasks")
    assert there["definition"] == {**chosen, "overflow": "reject-publish"}


def test_without_the_management_plugin_the_rest_is_checked(provisioned):
    nowhere = settings(provisioned).model_copy(update={"management": "http://127.0.0.1:1"})
    found = check(nowhere, TOPOLOGY)
    assert found.lacks == ()
    (unseen,) = found.unseen
    assert unseen.startswith("bindings and policies: no management plugin at http://127.0.0.1:1: ")
    with pytest.raises(ManagementError, match="no management plugin at"):
        apply(nowhere.model_copy(update={"wait_s": 0.0}), TOPOLOGY)


def test_something_else_on_the_management_port_is_told(provisioned):
    other = settings(provisioned).model_copy(update={"management": provisioned.broker.prometheus_url})
    assert "is it this broker's?" in check(other, TOPOLOGY).unseen[0]


# Users


def test_a_publisher_can_publish_and_nothing_else(provisioned):
    vhost = provisioned
    with channel_of(vhost, "publisher") as channel:
        put(channel, TOPOLOGY.tasks)
        put(channel, TOPOLOGY.runs)
        channel.basic_publish(TOPOLOGY.control, "", b"pause")
        assert channel.queue_declare(TOPOLOGY.tasks.name, passive=True).method.message_count >= 0
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(
            TOPOLOGY.runs.name, lambda *_: channel.stop_consuming(), arguments={"x-stream-offset": "first"}
        )
        channel.start_consuming()
    everywhere = [TOPOLOGY.tasks, *TOPOLOGY.retries, TOPOLOGY.dead, TOPOLOGY.runs]
    refused(vhost, "publisher", lambda c: put(c, TOPOLOGY.retries[0]))
    refused(vhost, "publisher", lambda c: put(c, TOPOLOGY.dead))
    refused(vhost, "publisher", lambda c: c.basic_publish("", TOPOLOGY.tasks.name, b""))
    refused(vhost, "publisher", lambda c: c.basic_get(TOPOLOGY.tasks.name))
    refused(vhost, "publisher", lambda c: c.basic_get(TOPOLOGY.dead.name))
    refused(vhost, "publisher", lambda c: c.queue_declare("hzzray.control.mine", exclusive=True))
    refused(vhost, "publisher", lambda c: c.queue_bind(TOPOLOGY.tasks.name, TOPOLOGY.exchange, "other"))
    for queue in everywhere:
        refused(vhost, "publisher", lambda c, name=queue.name: c.queue_delete(name))
    refused(vhost, "publisher", lambda c: c.queue_purge(TOPOLOGY.tasks.name))
    refused_by_management(vhost, "publisher")


def test_a_bridge_can_do_its_work_and_not_change_the_topology(provisioned):
    vhost = provisioned
    with channel_of(vhost, "bridge") as channel:
        put(channel, TOPOLOGY.tasks)
        assert take(channel, TOPOLOGY.tasks)[1] == b"work"
        for queue in (*TOPOLOGY.retries, TOPOLOGY.dead):
            put(channel, queue)
            assert channel.queue_declare(queue.name, passive=True).method.message_count >= 0
        assert take(channel, TOPOLOGY.dead)[1] == b"work"
        mine = TOPOLOGY.control_queue("bridge-1")
        channel.queue_declare(mine, exclusive=True, auto_delete=True)
        channel.queue_bind(mine, TOPOLOGY.control)
        channel.basic_publish(TOPOLOGY.control, "", b"pause")
        assert wait_for("the control message", lambda: channel.basic_get(mine, auto_ack=True)[2]) == b"pause"
    refused(vhost, "bridge", lambda c: c.queue_declare("hzzray.mine", durable=True))
    refused(vhost, "bridge", lambda c: c.queue_declare("mine", exclusive=True))
    refused(vhost, "bridge", lambda c: c.exchange_declare("hzzray", "topic"))
    refused(vhost, "bridge", lambda c: c.exchange_delete("hzzray"))
    refused(vhost, "bridge", lambda c: c.exchange_delete("hzzray.control"))
    refused(vhost, "bridge", lambda c: c.queue_bind(TOPOLOGY.tasks.name, TOPOLOGY.exchange, "other"))
    refused(vhost, "bridge", lambda c: c.queue_unbind(TOPOLOGY.tasks.name, TOPOLOGY.exchange, TOPOLOGY.tasks.name))
    refused(vhost, "bridge", lambda c: c.basic_publish("", TOPOLOGY.tasks.name, b""))
    refused(vhost, "bridge", lambda c: c.basic_get(TOPOLOGY.retries[0].name))
    for queue in TOPOLOGY.queues:
        refused(vhost, "bridge", lambda c, name=queue.name: c.queue_delete(name))
    refused_by_management(vhost, "bridge")
    assert check(settings(vhost, "bridge"), TOPOLOGY).lacks == ()
    assert check(settings(vhost, "bridge"), TOPOLOGY).unseen == ()


def test_nobody_of_ours_sees_another_virtual_host(provisioned, broker):
    other = broker.new_vhost()
    try:
        for user in ("publisher", "bridge", "admin"):
            with pytest.raises(AMQPConnectionError), channel_of(other, user):
                pass
    finally:
        other.delete()


def refused(vhost, user, action):
    """Expect the broker to say 403."""
    with channel_of(vhost, user) as channel, pytest.raises(ChannelClosedByBroker) as caught:
        action(channel)
    assert caught.value.reply_code == 403, caught.value


def refused_by_management(vhost, user):
    """Expect the management plugin to let a user change nothing: no policy, user, permission, virtual host."""
    with pytest.raises(ManagementError, match=f"refuses user {user}: "):
        apply(settings(vhost, user), TOPOLOGY)
    with Management(settings(vhost, user)) as management:
        for path, body in (
            (f"policies/{management.vhost}/hzzray.tasks", {"pattern": ".*", "definition": {"max-length": 1}}),
            (f"users/{user}", {"password": "x", "tags": "administrator"}),
            (f"permissions/{management.vhost}/{user}", {"configure": ".*", "write": ".*", "read": ".*"}),
            ("vhosts/mine", {}),
        ):
            with pytest.raises(ManagementError, match="refuses user"):
                management.send("PUT", path, body)


# Where messages go


def test_what_nothing_takes_is_returned(provisioned):
    with channel_of(provisioned) as channel, pytest.raises(UnroutableError):
        channel.basic_publish(TOPOLOGY.exchange, "hzzray.dead", b"", PERSISTENT, mandatory=True)


def test_a_retry_waits_its_delay_and_comes_back(provisioned):
    with channel_of(provisioned) as channel:
        for queue in reversed(TOPOLOGY.retries):
            put(channel, queue, queue.name.encode(), message_id=queue.name, headers={"attempt": 1})
        began = time.monotonic()
        first, body = take(channel, TOPOLOGY.tasks)
        assert body == b"hzzray.retry.1"
        assert time.monotonic() - began >= 0.2
        assert (first.message_id, first.headers["attempt"], first.delivery_mode) == (body.decode(), 1, 2)
        _, body = take(channel, TOPOLOGY.tasks)
        assert body == b"hzzray.retry.2"
        assert time.monotonic() - began >= 2.4
        # The same task once more, without x-death: it isn't taken for a loop.
        put(channel, TOPOLOGY.retries[0], b"again", headers={"attempt": 2})
        assert take(channel, TOPOLOGY.tasks)[1] == b"again"


def test_what_is_rejected_or_returned_too_often_goes_to_the_dead_letters(provisioned):
    with channel_of(provisioned) as channel:
        put(channel, TOPOLOGY.tasks, b"rejected")
        method, _, _ = wait_for("it", lambda: (got := channel.basic_get(TOPOLOGY.tasks.name))[0] and got)
        channel.basic_reject(method.delivery_tag, requeue=False)
        properties, body = take(channel, TOPOLOGY.dead)
        assert (body, properties.headers["x-first-death-reason"]) == (b"rejected", "rejected")


@pytest.mark.slow
def test_a_message_that_kills_each_consumer_ends_in_the_dead_letters(provisioned):
    limit = 20  # sooner than ours, or this takes long
    policy = {"pattern": r"^hzzray\.tasks$", "priority": 99, "definition": dict(TOPOLOGY.tasks.policy)}
    policy["definition"]["delivery-limit"] = limit
    provisioned.api("PUT", "policies/sooner", policy)
    counts = []

    def crash():
        with channel_of(provisioned) as victim:
            method, properties, _ = victim.basic_get(TOPOLOGY.tasks.name)
            if method:
                counts.append((properties.headers or {}).get("x-delivery-count", 0))
        return channel.queue_declare(TOPOLOGY.dead.name, passive=True).method.message_count

    with channel_of(provisioned) as channel:
        put(channel, TOPOLOGY.tasks, b"poison")
        wait_for("the dead letter", crash)
        properties, body = take(channel, TOPOLOGY.dead)
    assert counts == list(range(limit + 1))
    assert (body, properties.headers["x-first-death-reason"]) == (b"poison", "delivery_limit")


def test_a_full_queue_refuses_and_dead_letters_wait_for_room(provisioned):
    def limit(queue, number):
        policy = {"pattern": f"^{queue.name}$", "priority": 99}
        policy["definition"] = dict(queue.policy) | {"max-length": number}
        provisioned.api("PUT", f"policies/small-{queue.name}", policy)

    limit(TOPOLOGY.tasks, 2)
    limit(TOPOLOGY.dead, 1)
    with channel_of(provisioned) as channel:
        sent, dead = fill(channel, TOPOLOGY.tasks), fill(channel, TOPOLOGY.dead)
        assert 2 <= len(sent) < 10  # the broker takes one or two above the limit
        assert 1 <= len(dead) < 10
        for _ in sent:
            method, _, _ = channel.basic_get(TOPOLOGY.tasks.name)
            channel.basic_reject(method.delivery_tag, requeue=False)
        with pytest.raises(NackError):  # still full: the dead letters were refused
            put(channel, TOPOLOGY.dead, b"late")
        bodies = [take(channel, TOPOLOGY.dead, within=60)[1] for _ in sent + dead]
        assert sorted(bodies) == sorted(sent + dead)  # none dropped for lack of room, none doubled


def test_a_dead_letter_waits_for_a_queue_that_is_away(provisioned):
    provisioned.api("DELETE", "queues/hzzray.dead")
    with channel_of(provisioned) as channel:
        put(channel, TOPOLOGY.tasks, b"bad")
        method, _, _ = wait_for("it", lambda: (got := channel.basic_get(TOPOLOGY.tasks.name))[0] and got)
        channel.basic_reject(method.delivery_tag, requeue=False)
        channel.queue_declare(TOPOLOGY.tasks.name, passive=True)  # the broker has seen it by now
        apply(settings(provisioned), TOPOLOGY)
        assert take(channel, TOPOLOGY.dead, within=60)[1] == b"bad"


@pytest.mark.slow
def test_what_is_confirmed_outlives_a_crash_of_the_broker(broker, provisioned):
    time.sleep(2)  # a quorum queue's first second may be lost with the node (rabbitmq-server#15725)
    with channel_of(provisioned) as channel:
        for queue in (TOPOLOGY.tasks, TOPOLOGY.dead, TOPOLOGY.runs):
            for number in range(20):
                put(channel, queue, str(number).encode())
    broker.restart()
    require(settings(provisioned), TOPOLOGY)
    with channel_of(provisioned, "bridge") as channel:
        for queue in (TOPOLOGY.tasks, TOPOLOGY.dead):
            assert [take(channel, queue)[1] for _ in range(20)] == [str(number).encode() for number in range(20)]
        channel.basic_qos(prefetch_count=20)
        arguments = {"x-stream-offset": "first"}
        announced = []
        for method, _, body in channel.consume(TOPOLOGY.runs.name, arguments=arguments, inactivity_timeout=20):
            announced.append(body)
            channel.basic_ack(method.delivery_tag)
            if len(announced) == 20:
                break
        assert announced == [str(number).encode() for number in range(20)]


# A broker that loads the definitions when it starts


@pytest.mark.slow
def test_a_broker_loads_the_definitions_when_it_starts(tmp_path, cli, monkeypatch):
    for user, password in PASSWORDS.items():
        secret = tmp_path / user
        secret.write_text(password + "\n")
        monkeypatch.setenv(f"HZZRAY_{user.upper()}_PASSWORD_FILE", str(secret))
    file = tmp_path / "definitions.json"
    code, _, said = cli("topology", "definitions", "--vhost", "physics", "--output", file)
    assert (code, said) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    folder = tmp_path / "node"
    folder.mkdir()
    node = Broker(folder, f"load_definitions = {file}\n", login=("admin", PASSWORDS["admin"]))
    vhost = Vhost(node, "physics")
    try:
        node.start()
        for user in ("admin", "bridge"):
            found = check(settings(vhost, user), Topology())
            assert (found.lacks, found.unseen) == ((), ())
        with channel_of(vhost, "publisher") as channel:
            put(channel, TOPOLOGY.tasks)
        with channel_of(vhost, "bridge") as channel:
            assert take(channel, TOPOLOGY.tasks)[1] == b"work"
        with pytest.raises(AMQPConnectionError), channel_of(vhost):  # no guest with a known password
            pass
    finally:
        node.kill()
        node.stop()
