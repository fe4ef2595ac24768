"""What a broker must hold for us: exchanges, queues, policies, users. One description, from which all else is derived.

docs/messaging.md shows it in one picture. Each queue is reached through :attr:`Queue.exchange` with its own name as
routing key. Queues have no arguments but their type: limits, delays and dead-lettering are policies, so that they can
be changed while messages wait.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bridge.settings import DEFAULT_PREFIX

DELAYS_S = (1.0, 5.0, 30.0, 120.0)
DELIVERY_LIMIT = 50  # each crash of a bridge counts against all messages that it had prefetched
_LOOKS = 1_000_000  # so does each look at dead letters, of which a broker without a limit of ours drops some after 20

_MAX_MESSAGES = 1_000_000
_MAX_BYTES = 2**30
_RUNS_MAX_BYTES = 4 * 2**30
_RUNS_SEGMENT_BYTES = 64 * 2**20  # what a stream's limits are kept in steps of
_RUNS_MAX_AGE = "90D"

Kind = Literal["quorum", "stream"]
Policy = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue: where to publish for it, and the policy that it needs."""

    name: str
    exchange: str
    policy: Policy
    kind: Kind = "quorum"

    @property
    def arguments(self) -> dict[str, str]:
        """What it is declared with."""
        return {"x-queue-type": self.kind}


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a password, and what they may: patterns of names, as RabbitMQ's permissions have them."""

    name: str
    configure: str
    write: str
    read: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Topology:
    """The names under one prefix. ``delays_s`` are the retry queues' delays, in seconds."""

    prefix: str = DEFAULT_PREFIX
    delays_s: tuple[float, ...] = DELAYS_S

    @property
    def exchange(self) -> str:
        """Where publishers send tasks and announcements, and what has waited comes back."""
        return self.prefix

    @property
    def bridge_exchange(self) -> str:
        """Where only bridges send: what is to wait, and what has failed."""
        return f"{self.prefix}.bridge"

    @property
    def control(self) -> str:
        """The fanout exchange of control messages."""
        return f"{self.prefix}.control"

    def control_queue(self, name: str) -> str:
        """Name the queue on which one bridge receives control messages: exclusive, so it ends with its connection."""
        return f"{self.control}.{name}"

    @property
    def exchanges(self) -> dict[str, str]:
        """All exchanges, durable, with their types."""
        return {self.exchange: "direct", self.bridge_exchange: "direct", self.control: "fanout"}

    @property
    def tasks(self) -> Queue:
        """What is to be done. Its limits push back on publishers; what it can't deliver goes to the dead letters."""
        policy = _bounded() | _dead_letter(self.bridge_exchange, f"{self.prefix}.dead")
        return Queue(f"{self.prefix}.tasks", self.exchange, policy | {"delivery-limit": DELIVERY_LIMIT})

    @property
    def retries(self) -> tuple[Queue, ...]:
        """Where a task waits before it is tried again, shortest delay first.

        One queue a delay: a message's own time to live would wait for those before it. Publish to them afresh, without
        the ``x-death`` header: up to 3.13 the broker takes one for a loop and drops the message.
        """
        back = _bounded() | _dead_letter(self.exchange, f"{self.prefix}.tasks")
        return tuple(
            Queue(f"{self.prefix}.retry.{number}", self.bridge_exchange, back | {"message-ttl": round(delay * 1000)})
            for number, delay in enumerate(self.delays_s, 1)
        )

    @property
    def dead(self) -> Queue:
        """What has failed for good. Full, it refuses more: nothing is dropped in silence, however often it is seen."""
        return Queue(f"{self.prefix}.dead", self.bridge_exchange, _bounded() | {"delivery-limit": _LOOKS})

    @property
    def runs(self) -> Queue:
        """The announcements of all runs: a stream that every bridge reads from its beginning."""
        limits: Policy = {
            "max-length-bytes": _RUNS_MAX_BYTES,
            "max-age": _RUNS_MAX_AGE,
            "stream-max-segment-size-bytes": _RUNS_SEGMENT_BYTES,
        }
        return Queue(f"{self.prefix}.runs", self.exchange, limits, kind="stream")

    @property
    def queues(self) -> tuple[Queue, ...]:
        """All queues that must be there."""
        return (self.tasks, *self.retries, self.dead, self.runs)

    @property
    def users(self) -> tuple[User, ...]:
        """Who there is, and the least that each needs.

        To write to a queue's name sends nothing to it: it lets its depth be asked (RabbitMQ 4.3 wants some permission).
        """
        p = re.escape(self.prefix)
        publisher = User("publisher", "^$", rf"^{p}(\.control|\.tasks)?$", rf"^{p}\.runs$")
        bridge = User(
            "bridge",
            configure=rf"^{p}\.control\..+$",
            write=rf"^{p}(\.bridge|\.retry\.[0-9]+|\.control(\..+)?)?$",
            read=rf"^{p}\.(tasks|runs|dead|control(\..+)?)$",
            tags=("management",),
        )
        return (User("admin", ".*", ".*", ".*", ("administrator",)), publisher, bridge)

    def definitions(self, vhost: str = "/", passwords: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Describe it as RabbitMQ's definitions: what ``load_definitions`` reads, and the management API takes.

        With ``passwords``, by user, these users are in it, their passwords salted and hashed.
        """
        passwords = passwords or {}
        users = [user for user in self.users if user.name in passwords]
        queues = self.queues
        return {
            "vhosts": [{"name": vhost}],
            "users": [
                {
                    "name": user.name,
                    "password_hash": hash_password(passwords[user.name]),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": ",".join(user.tags),
                }
                for user in users
            ],
            "permissions": [
                {"user": user.name, "vhost": vhost, "configure": user.configure, "write": user.write, "read": user.read}
                for user in users
            ],
            "exchanges": [
                {
                    "name": name,
                    "vhost": vhost,
                    "type": kind,
                    "durable": True,
                    "auto_delete": False,
                    "internal": False,
                    "arguments": {},
                }
                for name, kind in self.exchanges.items()
            ],
            "policies": [
                {
                    "name": queue.name,
                    "vhost": vhost,
                    "pattern": f"^{re.escape(queue.name)}$",
                    "apply-to": "queues",
                    "priority": 10,
                    "definition": dict(queue.policy),
                }
                for queue in queues
            ],
            "queues": [
                {
                    "name": queue.name,
                    "vhost": vhost,
                    "durable": True,
                    "auto_delete": False,
                    "arguments": queue.arguments,
                }
                for queue in queues
            ],
            "bindings": [
                {
                    "source": queue.exchange,
                    "vhost": vhost,
                    "destination": queue.name,
                    "destination_type": "queue",
                    "routing_key": queue.name,
                    "arguments": {},
                }
                for queue in queues
            ],
        }


def hash_password(password: str, salt: bytes | None = None) -> str:
    """Hash a password as RabbitMQ does: four bytes of salt, and the SHA-256 of salt and password, in base64."""
    salt = salt or secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode("ascii")


def _bounded() -> dict[str, str | int]:
    return {"max-length": _MAX_MESSAGES, "max-length-bytes": _MAX_BYTES, "overflow": "reject-publish"}


def _dead_letter(exchange: str, key: str) -> dict[str, str | int]:
    return {
        "dead-letter-exchange": exchange,
        "dead-letter-routing-key": key,
        "dead-letter-strategy": "at-least-once",
    }
