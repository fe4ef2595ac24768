"""Where the broker is and how to talk to it: one URL, and an environment that keeps the secrets."""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, SecretStr

from hzzray.errors import UsageError

if TYPE_CHECKING:
    import pika

DEFAULT_PREFIX = "hzzray"

_PORTS = {"amqp": 5672, "amqps": 5671}
_MANAGEMENT = {"amqp": "http://{}:15672", "amqps": "https://{}:15671"}
_METRICS = "http://{}:15692"
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)
_NO = {"0", "no", "off", "false"}


class Tls(BaseModel):
    """How the broker proves who it is, and we to it.

    Attributes
    ----------
    authority
        PEM file of the authorities to trust. Default: the system's.
    certificate, key
        PEM files of the client's certificate, for a broker that asks for one.
    check_host
        Whether the broker's certificate must name its host.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    check_host: bool = True

    def context(self) -> ssl.SSLContext:
        """Make what a connection needs. Raises UsageError naming the file that is no good."""
        try:
            context = ssl.create_default_context(cafile=self.authority)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"no certificates of authorities in {self.authority}: {_why(error)}") from error
        context.check_hostname = self.check_host
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
            except (OSError, ssl.SSLError) as error:
                files = f"{self.certificate} and {self.key}" if self.key else f"{self.certificate}"
                raise UsageError(f"no certificate with its key in {files}: {_why(error)}") from error
        return context


class BrokerSettings(BaseModel):
    """A broker as one of its users sees it.

    Attributes
    ----------
    prefix
        What the names of all exchanges and queues begin with.
    tls
        None for plain ``amqp://``.
    management
        Address of the management plugin.
    metrics
        Address of the Prometheus plugin.
    heartbeat_s
        After about twice that without a sign of life, either side gives the connection up.
    timeout_s
        Longest wait for a connection, and for an answer of the management plugin.
    wait_s
        How long a broker that isn't there (yet) is waited for, before anything is done with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int
    vhost: str
    user: str
    password: SecretStr
    management: str
    metrics: str = ""
    prefix: str = DEFAULT_PREFIX
    tls: Tls | None = None
    heartbeat_s: int = 30
    timeout_s: float = 10.0
    wait_s: float = 30.0

    @classmethod
    def from_url(
        cls, url: str | None = None, *, prefix: str = DEFAULT_PREFIX, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Read ``amqp[s]://USER[:PASSWORD]@HOST[:PORT][/VHOST]`` and what the environment adds to it.

        Without a URL it is ``HZZRAY_BROKER``. The password, if the URL has none, is ``HZZRAY_BROKER_PASSWORD`` or
        in the file ``HZZRAY_BROKER_PASSWORD_FILE``; neither user nor password means guest. For ``amqps`` there are
        the files ``HZZRAY_BROKER_CA``, ``HZZRAY_BROKER_CERT`` and ``HZZRAY_BROKER_KEY``, and
        ``HZZRAY_BROKER_CHECK_HOST=no``. ``HZZRAY_BROKER_MANAGEMENT`` is the management plugin's address, if it isn't
        the usual one, ``HZZRAY_BROKER_METRICS`` the Prometheus plugin's, ``HZZRAY_BROKER_WAIT`` the seconds to wait for
        a broker that isn't there yet. Raises UsageError.
        """
        parts = _split(url or environ.get("HZZRAY_BROKER") or "")
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"{prefix!r} can't begin queues' names: letters, digits, - and _, with dots in between")
        host = parts.hostname or ""
        user, password = _login(parts, environ)
        return cls(
            host=host,
            port=parts.port or _PORTS[parts.scheme],
            vhost=unquote(parts.path.removeprefix("/")) or "/",
            user=user,
            password=SecretStr(password),
            management=environ.get("HZZRAY_BROKER_MANAGEMENT", "").rstrip("/")
            or _MANAGEMENT[parts.scheme].format(_bracketed(host)),
            metrics=environ.get("HZZRAY_BROKER_METRICS", "").rstrip("/") or _METRICS.format(_bracketed(host)),
            prefix=prefix,
            tls=_tls(parts.scheme, environ),
            wait_s=_seconds("HZZRAY_BROKER_WAIT", environ, cls.model_fields["wait_s"].default),
        )

    def __str__(self) -> str:
        """Show where it is, without login."""
        scheme = "amqp" if self.tls is None else "amqps"
        port = "" if self.port == _PORTS[scheme] else f":{self.port}"
        return f"{scheme}://{_bracketed(self.host)}{port}" + ("" if self.vhost == "/" else f"/{self.vhost}")

    def parameters(self, name: str, *, blocked_s: float | None = None) -> pika.ConnectionParameters:
        """Make pika's parameters of one try to connect.

        ``name`` is what the broker's list of connections shows. With ``blocked_s`` a connection that the broker blocks
        that long (an alarm) is given up. Raises UsageError for bad TLS files.
        """
        import pika  # noqa: PLC0415 (an extra: settings can be read without it)

        return pika.ConnectionParameters(
            host=self.host,
            port=self.port,
            virtual_host=self.vhost,
            credentials=pika.PlainCredentials(self.user, self.password.get_secret_value()),
            ssl_options=None if self.tls is None else pika.SSLOptions(self.tls.context(), self.host),
            heartbeat=self.heartbeat_s,
            socket_timeout=self.timeout_s,
            stack_timeout=self.timeout_s,
            blocked_connection_timeout=blocked_s,
            connection_attempts=1,
            client_properties={"connection_name": name},
        )


def password_from(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Find a password in the variable ``name``, or in the file that ``name_FILE`` names; None if neither is set."""
    if value := environ.get(name):
        return value
    if not (path := environ.get(f"{name}_FILE")):
        return None
    try:
        value = Path(path).read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}_FILE: can't read {path}: {_why(error)}") from error
    if not value:
        raise UsageError(f"{name}_FILE: {path} is empty")
    return value


def _split(url: str) -> SplitResult:
    """Cut a URL in parts that are all there and in order. No error shows more of it than its host."""
    if not url:
        raise UsageError("which broker? --broker amqp[s]://USER@HOST[:PORT][/VHOST], or HZZRAY_BROKER")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("the broker's URL has no number for port, or a / # ? % in its password not as %2F …") from None
    if parts.scheme not in _PORTS:
        raise UsageError(f"a broker's URL begins with amqp:// or amqps://, not {parts.scheme!r}")
    if not parts.hostname or port == 0:
        raise UsageError("the broker's URL names no host, or port 0")
    if parts.query or parts.fragment:
        raise UsageError(f"the URL of the broker at {parts.hostname} may have no ? or # (in a password: %3F, %23)")
    if "/" in parts.path.removeprefix("/"):
        raise UsageError(f"the URL of the broker at {parts.hostname}: a slash in the virtual host's name is %2F")
    return parts


def _login(parts: SplitResult, environ: Mapping[str, str]) -> tuple[str, str]:
    password = unquote(parts.password) if parts.password else password_from("HZZRAY_BROKER_PASSWORD", environ)
    if not parts.username:
        return "guest", password or "guest"
    user = unquote(parts.username)
    if password is None:
        raise UsageError(f"no password for the broker's user {user}: HZZRAY_BROKER_PASSWORD, or …_PASSWORD_FILE")
    return user, password


def _tls(scheme: str, environ: Mapping[str, str]) -> Tls | None:
    files = {
        field: Path(environ[name])
        for field, name in (
            ("authority", "HZZRAY_BROKER_CA"),
            ("certificate", "HZZRAY_BROKER_CERT"),
            ("key", "HZZRAY_BROKER_KEY"),
        )
        if environ.get(name)
    }
    if scheme == "amqp":
        if files:
            raise UsageError("HZZRAY_BROKER_CA, _CERT or _KEY is set, but the broker's URL is amqp://, without TLS")
        return None
    if "key" in files and "certificate" not in files:
        raise UsageError("HZZRAY_BROKER_KEY is set, but not HZZRAY_BROKER_CERT")
    check_host = environ.get("HZZRAY_BROKER_CHECK_HOST", "").lower() not in _NO
    return Tls.model_validate({**files, "check_host": check_host})


def _seconds(name: str, environ: Mapping[str, str], default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(f"{name} is a number of seconds, 0 or more, not {text!r}")
    return seconds


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _no_passphrase() -> str:
    """Answer where OpenSSL would ask at the terminal, and wait."""
    raise UsageError("the key of HZZRAY_BROKER_KEY needs a passphrase; give one without")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
