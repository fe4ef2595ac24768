"""Ports of 127.0.0.1 that lead into the cluster, mended when a pod behind one goes."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hzzray.errors import UsageError
from kuberay import app as page
from kuberay import broker, ray
from kuberay.kubectl import Forward, Kubectl, KubeError
from kuberay.values import Values

_WAITS_S = (1.0, 30.0)

# kubectl notices that its pod has gone when somebody wants something of it, and fails him. So we look, this often.
_LOOK_S = 3.0


@dataclass(frozen=True, slots=True)
class Route:
    """A port here and the service's port that it leads to."""

    title: str
    service: str
    port: int
    local: int


def routes(values: Values, *, app: int, dashboard: int, management: int, amqp: int) -> tuple[Route, ...]:
    """List what is forwarded. Raises UsageError for a port that is taken."""
    tls = bool(values.broker.tls_secret)
    chosen = (
        Route("app", f"{values.name}-app", page.PORT, app),
        Route("Ray dashboard", values.head_service, ray.DASHBOARD, dashboard),
        Route(
            "RabbitMQ management",
            values.broker_name,
            broker.MANAGEMENT_TLS if tls else broker.MANAGEMENT,
            management,
        ),
        Route("RabbitMQ", values.broker_name, broker.AMQPS if tls else broker.AMQP, amqp),
    )
    for route in chosen:
        if not _is_free(route.local):
            raise UsageError(f"port {route.local} for the {route.title} is taken: choose another (--help)")
    return chosen


def welcome(values: Values, chosen: Sequence[Route]) -> Iterator[str]:
    """Say where what is, and how to get in."""
    shown, dashboard, management, amqp = chosen
    secure = "s" if values.broker.tls_secret else ""
    password = _reveal(values, f"{values.name}-app", "password")
    token = _reveal(values, values.token_secret, "auth_token")
    admin = _reveal(values, values.broker_name, "admin")
    yield f"app          http://127.0.0.1:{shown.local}   password: {password}"
    yield f"Ray          http://127.0.0.1:{dashboard.local}   token: {token}"
    yield f"management   http{secure}://127.0.0.1:{management.local}   user admin, password: {admin}"
    yield f"broker       amqp{secure}://publisher@127.0.0.1:{amqp.local}"
    yield "Ctrl-C ends"


def _reveal(values: Values, secret: str, key: str) -> str:
    """Write the command that shows a secret: it isn't for this terminal's history."""
    path = f"'{{.data.{key}}}'"
    return f"kubectl -n {values.namespace} get secret {secret} -o jsonpath={path} | base64 -d"


class Forwards:
    """Several routes at once."""

    def __init__(self, kubectl: Kubectl, chosen: Sequence[Route], say: Callable[[str], None]) -> None:
        self._kubectl = kubectl
        self._chosen = chosen
        self._say = say
        self._open: dict[Route, tuple[Forward, ExitStack]] = {}
        self._again: dict[Route, tuple[float, float]] = {}  # when it is tried again, and the wait before that
        self._pods: dict[Route, frozenset[str]] = {}  # behind the service when it was opened
        self._behind: Mapping[str, frozenset[str]] | None = None
        self._looked = 0.0

    def __enter__(self) -> Self:
        """Open all; raises KubeError when one can't be."""
        try:
            self._look()
            for route in self._chosen:
                self._connect(route)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all."""
        self.close()

    def close(self) -> None:
        """End all."""
        for _, stack in self._open.values():
            stack.close()
        self._open.clear()

    def mend(self) -> None:
        """Open again what broke or leads to a pod that has gone, after a wait that grows."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._look()
        for route, (forward, stack) in list(self._open.items()):
            gone = self._behind is not None and not self._pods[route] <= self._now_behind(route)
            if gone or not forward.is_alive():
                self._say(f"{route.title}: lost ({'its pod has gone' if gone else forward.why()}); trying again")
                stack.close()
                del self._open[route]
                self._again[route] = (time.monotonic(), 0.0)
        for route, (due, waited) in list(self._again.items()):
            if time.monotonic() < due:
                continue
            try:
                self._connect(route)
            except KubeError:
                longer = min(max(2 * waited, _WAITS_S[0]), _WAITS_S[1])
                self._again[route] = (time.monotonic() + longer * random.uniform(0.5, 1.0), longer)  # noqa: S311
            else:
                del self._again[route]
                self._say(f"{route.title}: back")

    def _look(self) -> None:
        """See which pods there are; those that are new end a wait."""
        before, self._behind = self._behind, self._kubectl.behind()
        self._looked = time.monotonic()
        for route, (_, waited) in self._again.items():
            if self._now_behind(route) - (before or {}).get(route.service, frozenset()):
                self._again[route] = (time.monotonic(), waited)

    def _now_behind(self, route: Route) -> frozenset[str]:
        return (self._behind or {}).get(route.service, frozenset())

    def _connect(self, route: Route) -> None:
        self._pods[route] = self._now_behind(route)
        with ExitStack() as stack:
            forward = stack.enter_context(self._kubectl.forward(route.service, route.port, route.local))
            self._open[route] = (forward, stack.pop_all())


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
