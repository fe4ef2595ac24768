"""Does the broker hold what the topology says? If not, what it lacks; and putting it there, with the rights to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPConnectionError, AMQPError, ChannelClosedByBroker
from pika.spec import ACCESS_REFUSED

from bridge.connection import AwayError, BrokerError, awaited, explain, is_final
from bridge.management import Management, ManagementError
from bridge.settings import BrokerSettings
from bridge.topology import Queue, Topology

# What a policy must say word for word. Lengths and delays are the operator's to choose.
_EXACT = ("dead-letter-exchange", "dead-letter-routing-key", "dead-letter-strategy", "overflow")
_ANY = ("message-ttl", "max-length", "max-length-bytes", "max-age")
_AWAY_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)  # waits for a queue whose node has just started
_APPLIES = {"quorum": {"all", "queues", "quorum_queues"}, "stream": {"all", "queues", "streams"}}


@dataclass(frozen=True, slots=True)
class Check:
    """What a broker lacks, and what could not be seen with this user's rights: one line each."""

    lacks: tuple[str, ...]
    unseen: tuple[str, ...]


@contextmanager
def connected(broker: BrokerSettings, name: str) -> Iterator[pika.BlockingConnection]:
    """Connect for a few questions; for use on one thread, not for long.

    One that isn't there yet is waited for; raises AwayError if none comes, BrokerError at once if it won't have us.
    """
    connection = awaited(broker, lambda: _connect(broker, name))
    try:
        yield connection
    except AMQPConnectionError as error:
        raise BrokerError(f"{broker}: {explain(error)}") from error
    finally:
        if connection.is_open:
            connection.close()


def _connect(broker: BrokerSettings, name: str) -> pika.BlockingConnection:
    try:
        return pika.BlockingConnection(broker.parameters(name))
    except (AMQPError, AMQPConnectorException, OSError) as error:
        kind = BrokerError if is_final(error) else AwayError
        raise kind(f"no broker at {broker}: {explain(error)}") from error


def check(broker: BrokerSettings, topology: Topology) -> Check:
    """Look whether all is there: by AMQP what is declared, by the management plugin how. Raises BrokerError."""
    lacks, unseen = _declared(broker, topology)
    try:
        with Management(broker) as management:
            lacks += _shortcomings(management, topology)
    except ManagementError as error:
        unseen.append(f"bindings and policies: {error}")
    return Check(tuple(lacks), tuple(unseen))


def require(broker: BrokerSettings, topology: Topology) -> None:
    """Raise BrokerError saying what to do, if something that must be declared is not."""
    lacks, _ = _declared(broker, topology)
    if lacks:
        raise BrokerError(
            f"the broker at {broker} lacks {', '.join(lacks)}: an administrator's `hzzray topology apply` makes them"
        )


def apply(broker: BrokerSettings, topology: Topology, passwords: Mapping[str, str] | None = None) -> Check:
    """Put in what is missing, and say what is still wrong; what is there stays.

    Needs an administrator; makes the virtual host if there is none, and the users that have ``passwords``.
    Raises BrokerError.
    """
    definitions = topology.definitions(broker.vhost, passwords)
    with Management(broker) as management:
        if awaited(broker, lambda: management.get(f"vhosts/{management.vhost}")) is None:
            management.send("PUT", f"vhosts/{management.vhost}", {})
            everything = {"configure": ".*", "write": ".*", "read": ".*"}
            management.send("PUT", f"permissions/{management.vhost}/{quote(broker.user, safe='')}", everything)
        del definitions["vhosts"]  # the one that is there keeps its description
        for policy, queue in zip(definitions["policies"], topology.queues, strict=True):
            there = management.get(f"policies/{management.vhost}/{policy['name']}") or {"definition": {}}
            policy["definition"] |= _good(queue, there["definition"])
        management.send("POST", "definitions", definitions)
    return check(broker, topology)


def _declared(broker: BrokerSettings, topology: Topology) -> tuple[list[str], list[str]]:
    """Ask for all exchanges and queues by name."""
    names = [("exchange", name) for name in topology.exchanges] + [("queue", queue.name) for queue in topology.queues]
    lacks, unseen = [], []
    with connected(broker, "hzzray topology") as connection:
        for kind, name in names:
            refusal = _refusal(connection, kind, name)
            if refusal is None:
                continue
            if refusal.reply_code == ACCESS_REFUSED:
                unseen.append(f"{kind} {name}: user {broker.user} may not")
            else:
                lacks.append(f"{kind} {name}" + (f" ({refusal.reply_text})" if _is_away(refusal) else ""))
    return lacks, unseen


def _refusal(connection: pika.BlockingConnection, kind: str, name: str) -> ChannelClosedByBroker | None:
    """Ask for something by name; returns what the broker has against it."""
    for wait in (*_AWAY_S, 0.0):
        channel = connection.channel()  # one each: the broker closes it when the answer is no
        try:
            if kind == "queue":
                channel.queue_declare(name, passive=True)
            else:
                channel.exchange_declare(name, passive=True)
        except ChannelClosedByBroker as error:
            if wait and _is_away(error):
                connection.sleep(wait)
                continue
            return error
        channel.close()
        return None
    return None


def _is_away(refusal: ChannelClosedByBroker) -> bool:
    """Tell a queue that is there, but not back yet since its node started, from one that isn't."""
    return "is down or inaccessible" in refusal.reply_text


def _shortcomings(management: Management, topology: Topology) -> list[str]:
    """Compare what is declared with what should be; what is not declared is known already."""
    policies = management.get(f"policies/{management.vhost}")
    if policies is None:
        raise ManagementError("the management plugin knows no such virtual host: is it this broker's?")
    found = []
    for name, kind in topology.exchanges.items():
        exchange = management.get(f"exchanges/{management.vhost}/{name}")
        if exchange and (exchange["type"], exchange["durable"]) != (kind, True):
            found.append(f"durable {kind} exchange {name}: that one is {_kind(exchange)}; delete it first")
    for queue in topology.queues:
        declared = management.get(f"queues/{management.vhost}/{queue.name}?disable_stats=true")
        if not declared:
            continue
        kind = declared.get("arguments", {}).get("x-queue-type") or declared.get("type", "classic")
        if (kind, declared["durable"]) != (queue.kind, True):
            found.append(f"{queue.kind} queue {queue.name}: that one is {kind}; delete it first")
            continue
        bindings = management.get(f"queues/{management.vhost}/{queue.name}/bindings") or []
        if not any((one["source"], one["routing_key"]) == (queue.exchange, queue.name) for one in bindings):
            found.append(f"the binding of {queue.name} to exchange {queue.exchange}")
        if wrong := _differences(queue, _effective(queue, policies)):
            found.append(f"the policy of {queue.name}: {', '.join(wrong)}")
    return found


def _kind(exchange: Mapping[str, Any]) -> str:
    return f"{'' if exchange['durable'] else 'not durable, '}{exchange['type']}"


def _effective(queue: Queue, policies: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Find the definition of the one policy that counts for a queue. The queue's own record of it lags by seconds."""
    matching = [
        policy
        for policy in policies
        if policy["apply-to"] in _APPLIES[queue.kind] and _matches(policy["pattern"], queue.name)
    ]
    best = max(matching, key=lambda policy: int(policy["priority"]), default=None)
    return {} if best is None else dict(best["definition"])


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:  # RabbitMQ's patterns can do a little more than ours
        return False


def _differences(queue: Queue, actual: Mapping[str, Any]) -> list[str]:
    """Say in which points a policy is not good enough."""
    found = (_fault(key, wanted, actual.get(key)) for key, wanted in queue.policy.items())
    return [fault for fault in found if fault]


def _good(queue: Queue, actual: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what an operator has chosen that is as good as ours."""
    ours = queue.policy
    return {key: value for key, value in actual.items() if key not in ours or not _fault(key, ours[key], value)}


def _fault(key: str, wanted: str | int, value: Any) -> str:  # noqa: ANN401 (JSON)
    """Say what is wrong with one point of a policy; nothing where it will do."""
    if key in _EXACT and value != wanted:
        return f"{key} is {value or 'not set'}, not {wanted}"
    if key in _ANY and value is None:
        return f"{key} is not set"
    if key == "delivery-limit" and (value is None or 0 <= value < int(wanted)):
        return f"{key} is {value or 'not set'}, less than {wanted}"
    return ""
