"""A private RabbitMQ node: real, durable, on 127.0.0.1, in a folder of its own; may be killed and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import requests

from tests.support.certificates import Certificates
from tests.support.waiting import wait_for

_BIN = Path("/usr/lib/rabbitmq/bin")  # not the wrapper in sbin: that one insists on its own user
USER, PASSWORD = "guest", "guest"  # may all, from this machine only

_CONFIG = """
listeners.tcp.1 = 127.0.0.1:{amqp}
listeners.ssl.1 = 127.0.0.1:{amqps}
ssl_options.cacertfile = {authority}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
management.ssl.ip = 127.0.0.1
management.ssl.port = {management_tls}
management.ssl.cacertfile = {authority}
management.ssl.certfile = {certificate}
management.ssl.keyfile = {key}
management.ssl.verify = verify_peer
management.ssl.fail_if_no_peer_cert = true
prometheus.tcp.ip = 127.0.0.1
prometheus.tcp.port = {prometheus}
collect_statistics_interval = 1000
disk_free_limit.absolute = 50MB
raft.wal_max_size_bytes = 33554432
log.console = false
"""


def is_installed() -> bool:
    """Tell whether this machine has RabbitMQ."""
    return (_BIN / "rabbitmq-server").exists()


def free_ports(number: int) -> list[int]:
    """Find ports that nobody listens on: below those of clients, above those of Ray's workers."""
    found: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1_000):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no free ports")


@dataclass(frozen=True)
class Vhost:
    """A virtual host: a broker's topology is in one, so that tests share a node and nothing else."""

    broker: Broker
    name: str
    start: int = 0  # which of the broker's starts it was made after

    @property
    def url(self) -> str:
        """Where to connect, as one who may do all."""
        return self.url_for(USER, PASSWORD)

    @property
    def tls_url(self) -> str:
        """The same, by TLS: the broker asks for a client's certificate."""
        return self.url_for(USER, PASSWORD, tls=True)

    def url_for(self, user: str, password: str | None = None, *, tls: bool = False) -> str:
        """Where to connect as somebody."""
        login = user if password is None else f"{user}:{quote(password, safe='')}"
        scheme, port = ("amqps", self.broker.tls_port) if tls else ("amqp", self.broker.port)
        return f"{scheme}://{login}@127.0.0.1:{port}/{quote(self.name, safe='')}"

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Ask the management API for what is in this host: ``api("GET", "queues", "hzzray.tasks")``."""
        kind, _, rest = path.partition("/")
        return self.broker.api(method, "/".join([kind, quote(self.name, safe=""), *([rest] if rest else [])]), body)

    def delete(self) -> None:
        """Take it away with all that is in it, if the node hasn't been started again since.

        RabbitMQ 3.10 can't always: a quorum queue that is deleted before it has a leader takes the processes for dead
        letters of all queues with it.
        """
        if self.start == self.broker.starts:
            self.broker.api("DELETE", f"vhosts/{quote(self.name, safe='')}")


class Broker:
    """A node in a folder. ``start`` it, ``kill`` (SIGKILL) and ``start`` it again: what is durable is still there.

    Its TLS listener wants clients' certificates of :attr:`certificates`. ``config`` is added to rabbitmq.conf,
    ``login`` is an administrator's user and password.
    """

    def __init__(self, folder: Path, config: str = "", login: tuple[str, str] = (USER, PASSWORD)) -> None:
        self.folder = folder
        self.starts = 0
        self._login = login
        self.port, self.tls_port, self._management, self._management_tls, *others = free_ports(7)
        self._prometheus, self._dist, self._epmd_port = others
        self.certificates = Certificates(folder / "tls")
        self._node: subprocess.Popen[bytes] | None = None
        self._epmd: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        server = self.certificates.server
        text = _CONFIG.format(
            amqp=self.port,
            amqps=self.tls_port,
            management=self._management,
            management_tls=self._management_tls,
            prometheus=self._prometheus,
            authority=self.certificates.authority,
            certificate=server.certificate,
            key=server.key,
        )
        (folder / "rabbitmq.conf").write_text(text + config, encoding="ascii")
        (folder / "enabled_plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n", encoding="ascii")
        # Sooner than by itself: dead letters that found no room try again, queues tell their numbers.
        hurry = "{dead_letter_worker_publisher_confirm_timeout, 1000}, {quorum_tick_interval, 1000}"
        (folder / "advanced.config").write_text(f"[{{rabbit, [{hurry}]}}].\n", encoding="ascii")
        (folder / "env.conf").write_text("", encoding="ascii")

    @property
    def url(self) -> str:
        """Where to connect, as one who may do all, in the default virtual host."""
        return Vhost(self, "/").url

    @property
    def management_url(self) -> str:
        """Address of the management plugin."""
        return f"http://127.0.0.1:{self._management}"

    @property
    def management_tls_url(self) -> str:
        """The same by TLS: it asks for a client's certificate too."""
        return f"https://127.0.0.1:{self._management_tls}"

    @property
    def prometheus_url(self) -> str:
        """Address of the prometheus plugin."""
        return f"http://127.0.0.1:{self._prometheus}"

    @cached_property
    def _env(self) -> dict[str, str]:
        folder = self.folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"hzzray{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",  # an idle node is idle
            "RUNNING_UNDER_SYSTEMD": "true",  # our child is the broker itself
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": str(folder / "erl_crash.dump"),
        }

    def start(self) -> Self:
        """Start the node, the first time or again; returns when it takes connections."""
        self.starts += 1
        with (self.folder / "output.log").open("ab") as log:
            if self._epmd is None:  # ours, so that it can be ended: the one that Erlang starts would outlive it
                self._epmd = subprocess.Popen(["epmd"], env=self._env, stdout=log, stderr=log)
                wait_for("epmd", lambda: _listens(self._epmd_port), 10)
            self._node = subprocess.Popen(
                [_BIN / "rabbitmq-server"], env=self._env, stdout=log, stderr=log, start_new_session=True
            )
        wait_for("RabbitMQ", self._is_up, 120)
        return self

    def _is_up(self) -> bool:
        assert self._node is not None
        assert self._node.poll() is None, (self.folder / "output.log").read_text(encoding="utf-8")[-4000:]
        try:
            return bool(self.api("GET", f"health/checks/port-listener/{self.port}"))
        except requests.RequestException:
            return False

    def kill(self) -> None:
        """Crash the node: SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the node in good order, and what belongs to it."""
        self._end(signal.SIGTERM)
        if self._epmd is not None:
            self._epmd.terminate()
            self._epmd.wait(10)
            self._epmd = None

    def restart(self) -> None:
        """Crash the node and start it again."""
        self.kill()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        node, self._node = self._node, None
        if node is None:
            return
        node.send_signal(number)
        try:
            node.wait(30)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl (it takes more than a second)."""
        done = subprocess.run(
            [_BIN / "rabbitmqctl", "--quiet", *arguments],
            env=self._env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Ask the management API; returns what its JSON says, None when it says nothing."""
        answer = requests.request(method, f"{self.management_url}/api/{path}", json=body, auth=self._login, timeout=10)
        answer.raise_for_status()
        return json.loads(answer.content) if answer.content else None

    def new_vhost(self) -> Vhost:
        """Make a virtual host."""
        vhost = Vhost(self, f"test-{next(self._numbers)}", self.starts)
        self.api("PUT", f"vhosts/{vhost.name}")
        vhost.api("PUT", f"permissions/{USER}", {"configure": ".*", "write": ".*", "read": ".*"})
        return vhost

    def blocks_publishers(self) -> bool:
        """Tell whether an alarm is on: publishers wait then, consumers don't."""
        check = f"{self.management_url}/api/health/checks/local-alarms"
        return not requests.get(check, auth=self._login, timeout=10).ok

    @contextmanager
    def memory_alarm(self) -> Iterator[None]:
        """Let the broker think that its memory is full, for a while."""
        self.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            wait_for("the alarm", self.blocks_publishers, 15)
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", "0.4")
            wait_for("the alarm's end", lambda: not self.blocks_publishers(), 15)


def _listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0
