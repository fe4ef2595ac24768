"""The broker's management plugin: what AMQP can't say or set (policies, users, rates)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote

import requests
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

from bridge.connection import AwayError, BrokerError
from bridge.settings import BrokerSettings, Tls
from hzzray.urls import redact


class ManagementError(BrokerError):
    """The management plugin can't be reached, or doesn't let us do what we ask."""


class NoManagementError(ManagementError, AwayError):
    """Nobody answers at its address, or not yet."""


class Management:
    """The management API as the settings' user; closes its connections when it is left."""

    def __init__(self, broker: BrokerSettings) -> None:
        self._broker = broker
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy, no netrc: the login goes to the broker and nowhere else
        # A connection over which the plugin has refused a request, without reading its body, may answer no other.
        self._session.headers["Connection"] = "close"
        self._session.auth = HTTPBasicAuth(broker.user.encode(), broker.password.get_secret_value().encode())
        if broker.tls is not None:
            self._session.mount("https://", TlsAdapter(broker.tls))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    @property
    def vhost(self) -> str:
        """The virtual host, as it stands in an address."""
        return quote(self._broker.vhost, safe="")

    def get(self, path: str) -> Any:  # noqa: ANN401 (JSON)
        """Ask for what is at a path below ``/api``; None if there is nothing. Raises ManagementError."""
        return self._ask("GET", path, None)

    def send(self, method: str, path: str, body: dict[str, Any]) -> None:
        """PUT or POST something. Raises ManagementError."""
        self._ask(method, path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:  # noqa: ANN401
        broker = self._broker
        where = redact(broker.management)
        url, patience = f"{broker.management}/api/{path}", broker.timeout_s
        try:
            answer = self._session.request(method, url, json=body, timeout=patience, allow_redirects=False)
        except (requests.RequestException, ValueError) as error:
            raise _kind(error)(f"no management plugin at {where}: {_reason(error)}") from error
        try:
            said = answer.json() if answer.content else None
        except ValueError:
            raise ManagementError(f"{where} is no management plugin: {answer.status_code}, and no JSON") from None
        if answer.ok and not answer.is_redirect:
            return said
        reason = " ".join(str(said.get("reason") if isinstance(said, dict) else answer.reason).split())[:500]
        match answer.status_code:
            case HTTPStatus.NOT_FOUND if method == "GET":
                return None
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                raise ManagementError(f"{where} refuses user {broker.user}: {reason}")
            case status:
                raise ManagementError(f"{where}: {method} {path}: {status} {reason}")


class TlsAdapter(HTTPAdapter):
    """Trusts, and proves itself, exactly as the AMQP connection does."""

    def __init__(self, tls: Tls) -> None:
        self._context = tls.context()
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 (of urllib3)
        """Make connections by the settings' own rules."""
        host = None if self._context.check_hostname else False
        super().init_poolmanager(*args, ssl_context=self._context, assert_hostname=host, **options)

    def cert_verify(self, *_: object) -> None:
        """Leave it to the context; requests would add the authorities of its own bundle."""


def _kind(error: Exception) -> type[ManagementError]:
    is_away = isinstance(error, requests.ConnectionError | requests.Timeout)
    is_distrust = isinstance(error, requests.exceptions.SSLError)
    return NoManagementError if is_away and not is_distrust else ManagementError


def _reason(error: Exception) -> str:
    """Return the innermost of an error's many wrappings."""
    inner: object = error
    while isinstance(inner, BaseException):
        deeper = getattr(inner, "reason", None) or next(iter(inner.args), None)
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    return redact(str(inner).rpartition(": ")[2])
