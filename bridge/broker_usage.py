"""What the broker itself uses, as its Prometheus plugin tells."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time

import requests
from urllib3.exceptions import HTTPError

from bridge.connection import BrokerError
from bridge.management import TlsAdapter
from bridge.settings import BrokerSettings
from hzzray.engine.monitor import Usage, service
from hzzray.engine.service_usage import is_sound
from hzzray.urls import redact

log = logging.getLogger(__name__)

# A look costs the broker some hundredths of a second of CPU. One that doesn't answer is left alone for longer, and what
# it told is forgotten then; of several nodes behind one name each answers at times.
_EVERY_S, _AWAY_S = 5.0, 30.0
# Nobody has wanted to know for so long: what was told is of another run.
_STALE_S = 5.0
_BYTES = 4 * 2**20
_NODE = re.compile(r'^rabbitmq_identity_info\{.*rabbitmq_node="[^"@]*@([\w.-]{1,255})"', re.MULTILINE)
_LINE = re.compile(r"^(\w+) ([0-9.eE+]+)$", re.MULTILINE)

# CPU of Erlang's threads in user mode: the kernel's part, and helpers of a second process, nobody tells.
_CPU_MS = "erlang_vm_statistics_runtime_milliseconds"
_MEMORY = "rabbitmq_process_resident_memory_bytes"
# Cores that Erlang takes by the container's quota, and the memory at which publishers are blocked.
_CPUS, _MEMORY_LIMIT = "erlang_vm_schedulers_online", "rabbitmq_resident_memory_limit_bytes"


def look(broker: BrokerSettings) -> Usage:
    """Ask the broker what it has used since it began. Raises BrokerError."""
    where = redact(broker.metrics)
    with requests.Session() as session:
        session.trust_env = False
        if broker.tls is not None:
            session.mount("https://", TlsAdapter(broker.tls))
        try:
            with session.get(
                f"{broker.metrics}/metrics", timeout=broker.timeout_s, allow_redirects=False, stream=True
            ) as answer:
                text = answer.raw.read(_BYTES, decode_content=True).decode(errors="replace")
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise BrokerError(f"no metrics of the broker at {where}: {type(error).__name__}") from error
    told = dict(_LINE.findall(text))
    node = _NODE.search(text)
    usage: Usage | None
    try:
        usage = service(
            "broker",
            node[1] if node else broker.host,
            user_s=float(told[_CPU_MS]) / 1000,
            rss=int(float(told[_MEMORY])),
            cpus=float(told.get(_CPUS, 0)),
            memory_limit=int(float(told.get(_MEMORY_LIMIT, 0))),
        )
    except (KeyError, ValueError, OverflowError):
        usage = None
    if usage is None or not is_sound(usage):
        raise BrokerError(f"no metrics of RabbitMQ at {where}")
    return usage


class BrokerUsage:
    """Knows what the broker used, as of some seconds ago; of one that can't be asked, nothing."""

    def __init__(self, broker: BrokerSettings) -> None:
        self._broker = broker
        self._asked: asyncio.Future[Usage | BrokerError] | None = None
        self._told: dict[str, tuple[float, Usage]] = {}
        self._next = 0.0
        self._wanted = -math.inf
        self._said = False

    def __call__(self) -> list[Usage]:
        """Tell what is known, and ask anew when it is time. In an event loop."""
        now = time.monotonic()
        if now - self._wanted > _STALE_S:
            self._told.clear()
            self._asked, self._next = None, now
        self._wanted = now
        if self._asked is None and now >= self._next:
            self._asked = asyncio.ensure_future(asyncio.to_thread(self._ask))
        elif self._asked is not None and self._asked.done():
            answer = self._asked.result()
            if isinstance(answer, Usage):
                self._told[answer.actor] = now, answer
            elif not self._said:
                self._said = True
                log.info("%s", answer)
            self._next = now + (_EVERY_S if isinstance(answer, Usage) else _AWAY_S)
            self._asked = None
        return [usage for at, usage in self._told.values() if now - at < _AWAY_S]

    def _ask(self) -> Usage | BrokerError:
        try:
            return look(self._broker)
        except BrokerError as error:
            return error
