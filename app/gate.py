"""Who may talk to the server: requests under its own names alone, and with a password only those who know it.

An ASGI layer around all of Streamlit, its scripts, files and WebSocket included. A page of another site that has its
own name lead here (DNS rebinding) comes under that name, and is refused; one that opens a WebSocket to this server's
name tells its own as Origin. Health checks are answered under any name: kubelets and balancers use addresses.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config

_LOCAL = ("127.0.0.1", "localhost", "::1")
_ANYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 (addresses to listen on that are nobody's name)
_HEALTH = "/_stcore/health"

#: How long one who knew the password is let in [s]; until the server ends, at the most.
SESSION_S = 12 * 3600.0

#: So many wrong tries, of all viewers together, cost nothing; each further one twice the wait before, up to the
#: longest [s].
FREE_TRIES, LONGEST_WAIT_S = 5, 300.0

# Wrong tries are forgotten after so long without one [s].
_FORGIVE_S = 3600.0

_FORM_BYTES = 4096
_PAGE = Path(__file__).with_name("login.html").read_text(encoding="utf-8")

# Pictures of this server only, whatever a text should bring along; and no page of another site around this one.
_POLICY = "img-src 'self' data: blob:; frame-ancestors 'self'"


def allowed_hosts(configured: Iterable[str]) -> tuple[str, ...]:
    """Names that requests may come under: this machine's own, those configured, those that Streamlit was given."""
    own = (config.get_option("server.address"), config.get_option("browser.serverAddress"))
    given = (*configured, *(str(name) for name in own if name and str(name) not in _ANYWHERE))
    return tuple(dict.fromkeys((*_LOCAL, *(name.strip().lower().strip("[]").rstrip(".") for name in given))))


class Lock:
    """The password, and who knew it. Safe to use from several threads. ``clock`` counts seconds.

    Raises ValueError for an empty password.
    """

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        if not password:
            raise ValueError("an empty password keeps nobody out")
        self._password = password.encode()
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._guard = threading.Lock()
        self._wrong = 0
        self._last = -math.inf
        #: What the cookie is called: two servers of one machine share a browser's cookies.
        self.cookie = f"hzzray-{secrets.token_hex(4)}"

    @property
    def wait_s(self) -> float:
        """How long no password is looked at."""
        if self._wrong < FREE_TRIES:
            return 0.0
        wait = min(LONGEST_WAIT_S, 2.0 ** min(self._wrong - FREE_TRIES, 30))
        return max(0.0, self._last + wait - self._clock())

    def opens(self, password: str) -> str | None:
        """Return a token for one who knows the password, None for others, and for everybody while it must be waited."""
        with self._guard:
            now = self._clock()
            if now - self._last > _FORGIVE_S:
                self._wrong = 0
            if self.wait_s:
                return None
            if not hmac.compare_digest(password.encode(), self._password):
                self._wrong += 1
                self._last = now
                return None
            self._wrong = 0
            until = f"{now + SESSION_S:.0f}"
            return f"{until}.{self._sign(until)}"

    def knows(self, token: str) -> bool:
        """Tell whether a token is one of ours that still holds."""
        until, _, signature = token.partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(until).encode()):
            return False
        return self._clock() < float(until)

    def _sign(self, until: str) -> str:
        return hmac.new(self._key, until.encode(), hashlib.sha256).hexdigest()


class Gate:
    """Lets requests through to ``app`` that come under one of ``hosts``; where there is a ``lock``, with its token.

    A name ``*.example.org`` stands for all names that end so, ``*`` for any.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], lock: Lock | None = None) -> None:
        self._app = app
        self._hosts = tuple(hosts)
        self._lock = lock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, or refuse."""
        if scope["type"] not in ("http", "websocket") or _is_health(scope):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not self._is_ours(headers, scope):
            text = "This server doesn't answer to that name. HZZRAY_APP_HOSTS lists the names that it answers to.\n"
            await _refuse(scope, receive, send, PlainTextResponse(text, 403))
        elif self._lock is None or self._lock.knows(_cookie(headers, self._lock.cookie)):
            await self._app(scope, receive, _guarded(send))
        elif scope["type"] == "http" and scope["method"] == "POST":
            await (await _try(self._lock, scope, receive))(scope, receive, send)
        else:
            await _refuse(scope, receive, send, _ask(401))

    def _is_ours(self, headers: Headers, scope: Scope) -> bool:
        host, origin = headers.getlist("host"), headers.getlist("origin")
        if len(host) != 1 or not self._knows(_name(f"//{host[0]}"), scope):
            return False
        return all(urlsplit(each).netloc.lower() == host[0].lower() for each in origin)

    def _knows(self, name: str | None, scope: Scope) -> bool:
        """Tell whether a name is on the list, or the very address that the connection came in at."""
        if name is None:
            return False
        server = scope.get("server")
        if server and _is_address(name) and name == server[0]:
            return True
        return any(host in ("*", name) or (host.startswith("*.") and name.endswith(host[1:])) for host in self._hosts)


def _is_health(scope: Scope) -> bool:
    base = str(config.get_option("server.baseUrlPath") or "").strip("/")
    path: str = scope["path"]
    return scope["type"] == "http" and path == (f"/{base}{_HEALTH}" if base else _HEALTH)


def _name(url: str) -> str | None:
    """Tell the host that a URL names, in lower case; None where it names none, or more than a host and a port."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    if parts.username is not None or parts.path or parts.query or parts.fragment or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _guarded(send: Send) -> Send:
    """Add our policy to what is answered."""

    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            policy = (b"content-security-policy", _POLICY.encode())
            message = {**message, "headers": [*message.get("headers", ()), policy]}
        await send(message)

    return send_with_policy


async def _refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """Answer a request, and turn a WebSocket away before it is one."""
    if scope["type"] == "http":
        await response(scope, receive, send)
        return
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": ""})


async def _try(lock: Lock, scope: Scope, receive: Receive) -> Response:
    """Look at a password: the answer to a right one is the page that was asked for, with a token."""
    body = b""
    more = True
    while more and len(body) <= _FORM_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
    given = parse_qs(body[:_FORM_BYTES].decode(errors="replace")).get("password", [""])[0]
    token = lock.opens(given)
    if token is None:
        if wait := math.ceil(lock.wait_s):
            says = f"Too many wrong tries, of all viewers together: wait {wait} s."
            return _ask(429, says, {"retry-after": str(wait)})
        return _ask(403, "That is not the password.")
    query = scope["query_string"].decode("latin-1")
    # A path alone: two slashes at its beginning would be another server's name.
    path = "/" + scope["path"].lstrip("/\\")
    response = RedirectResponse(path + (f"?{query}" if query else ""), 303)
    response.set_cookie(lock.cookie, token, path="/", httponly=True, samesite="lax", secure=scope["scheme"] == "https")
    return response


def _ask(status: int, says: str = "", headers: dict[str, str] | None = None) -> Response:
    """Ask for the password, on a page of its own."""
    page = _PAGE.replace("<!-- says -->", html.escape(says))
    own = {"cache-control": "no-store", "content-security-policy": _POLICY}
    return HTMLResponse(page, status, own | (headers or {}))
