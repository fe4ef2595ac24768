"""Who may talk to the app's server: its own names alone, and those who know the password."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import pytest

from app.gate import FREE_TRIES, LONGEST_WAIT_S, SESSION_S, Gate, Lock, allowed_hosts

LOCAL = ("127.0.0.1", "localhost", "::1")
SERVER = ("10.4.0.7", 8501)


async def inside(scope, receive, send):
    """The app behind the gate: says that it was reached."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def ask(gate, headers=(), *, kind="http", path="/", method="GET", body=b"", query=b""):
    """Send a request; returns status (101 of a WebSocket that is let in, 403 of one that isn't), headers, body."""
    said = []

    async def receive():
        if kind == "websocket":
            return {"type": "websocket.connect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        said.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "path": path, "query_string": query, "headers": raw, "server": SERVER, "scheme": "http"}
    asyncio.run(gate({**scope, "method": method} if kind == "http" else scope, receive, send))
    if kind == "websocket":
        return {"websocket.accept": 101, "websocket.close": 403}[said[0]["type"]], {}, b""
    sent = {name.decode(): value.decode() for name, value in said[0]["headers"]}
    return said[0]["status"], sent, b"".join(message.get("body", b"") for message in said[1:])


HOSTS = [
    ("127.0.0.1:8501", True),
    ("localhost:9000", True),
    ("LOCALHOST", True),
    ("[::1]:8501", True),
    ("10.4.0.7:8501", True),  # the very address that the connection came in at
    ("hzzray.example.org", True),
    ("lab.example.com:8443", True),
    ("example.com", False),
    ("10.4.0.8:8501", False),
    ("evil.example", False),
    ("evil.example:8501", False),
    ("localhost.evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("evil.example@localhost", False),
    ("localhost/evil.example", False),
    ("localhost:port", False),
    ("", False),
]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(("host", "let_in"), HOSTS)
def test_a_foreign_name_is_refused(kind, host, let_in):
    """Issue 11, item 14: a page of another site whose name leads here (DNS rebinding) could drive the app."""
    gate = Gate(inside, (*LOCAL, "hzzray.example.org", "*.example.com"))
    headers = [("host", host), ("origin", f"http://{host}")]
    status, _, body = ask(gate, headers, kind=kind, path="/_stcore/stream")
    assert status == ({"http": 200, "websocket": 101}[kind] if let_in else 403)
    assert let_in or b"inside" not in body


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_a_foreign_page_is_refused_under_our_name(kind):
    """Issue 11, item 14: the Origin of another site, or of another server of this machine."""
    gate = Gate(inside, LOCAL)
    for origin in ("http://evil.example", "http://localhost:3000", "null", "https://localhost.evil.example:8501"):
        assert ask(gate, [("host", "localhost:8501"), ("origin", origin)], kind=kind)[0] == 403, origin
    own = [("host", "localhost:8501"), ("origin", "http://localhost:8501")]
    assert ask(gate, own, kind=kind)[0] == {"http": 200, "websocket": 101}[kind]


def test_a_request_without_or_with_two_names_is_refused():
    gate = Gate(inside, LOCAL)
    assert ask(gate)[0] == ask(gate, [("host", "localhost"), ("host", "evil.example")])[0] == 403


def test_health_checks_are_answered_under_any_name():
    """Issue 11, item 14: kubelets and balancers ask by address, and know no password."""
    gate = Gate(inside, LOCAL, Lock("open sesame"))
    assert ask(gate, [("host", "172.17.0.9:8501")], path="/_stcore/health")[0] == 200
    assert ask(gate, [("host", "172.17.0.9:8501")], path="/_stcore/health/../stream")[0] == 403


def test_any_name_where_the_list_says_so():
    assert ask(Gate(inside, ("*",)), [("host", "node-7.cluster:8501")])[0] == 200


def test_the_list_has_what_streamlit_was_given(monkeypatch):
    given = {"server.address": "192.168.1.5", "browser.serverAddress": "hzzray.example."}
    monkeypatch.setattr("app.gate.config.get_option", given.get)
    assert allowed_hosts(["A.example", "[fd00::1]"]) == (
        *LOCAL, "a.example", "fd00::1", "192.168.1.5", "hzzray.example"
    )  # fmt: skip
    monkeypatch.setattr("app.gate.config.get_option", {"server.address": "0.0.0.0"}.get)
    assert allowed_hosts([]) == LOCAL


def test_pictures_come_from_here_alone_and_no_site_frames_us():
    """Issue 11, item 13: whatever a text of a run should bring along, nothing is fetched from elsewhere."""
    _, headers, _ = ask(Gate(inside, LOCAL), [("host", "localhost")])
    assert "img-src 'self' data: blob:" in headers["content-security-policy"]
    assert "frame-ancestors 'self'" in headers["content-security-policy"]


# The password.

HOME = [("host", "localhost:8501")]


def give(gate, password, path="/", query=b""):
    return ask(gate, HOME, method="POST", path=path, query=query, body=urlencode({"password": password}).encode())


def with_cookie(headers):
    return [*HOME, ("cookie", headers["set-cookie"].partition(";")[0])]


def test_nothing_is_seen_without_the_password():
    """Issue 11, item 14: not a page, a file or a WebSocket."""
    gate = Gate(inside, LOCAL, Lock("open sesame"))
    status, _, body = ask(gate, HOME)
    assert (status, b"Password" in body, b"inside" in body) == (401, True, False)
    assert ask(gate, HOME, path="/media/x")[0] == 401
    assert ask(gate, HOME, kind="websocket")[0] == 403
    assert ask(gate, [*HOME, ("cookie", "hzzray-0=1.2; x")])[0] == 401


def test_who_knows_it_is_let_in_until_the_server_ends():
    """Issue 11, item 14: a reload asked again. The token is in no script's reach, and not the password."""
    gate = Gate(inside, LOCAL, Lock("open sesame"))
    status, headers, _ = give(gate, "open sesame", path="/actors", query=b"run=one")
    assert (status, headers["location"]) == (303, "/actors?run=one")
    assert "HttpOnly" in headers["set-cookie"]
    assert "SameSite=lax" in headers["set-cookie"]
    assert "sesame" not in str(headers)
    for _ in range(2):
        assert ask(gate, with_cookie(headers))[2] == b"inside"
    assert ask(gate, with_cookie(headers), kind="websocket")[0] == 101
    later = Gate(inside, LOCAL, Lock("open sesame"))
    assert ask(later, with_cookie(headers))[0] == 401


def test_a_token_ends_and_can_not_be_made():
    now = [100.0]
    lock = Lock("open sesame", lambda: now[0])
    token = lock.opens("open sesame")
    assert lock.knows(token)
    until, _, signature = token.partition(".")
    for forged in ("", ".", f"{float(until) + 1:.0f}.{signature}", f"{until}.", f"inf.{signature}", "ä.ü"):
        assert not lock.knows(forged)
    now[0] += SESSION_S + 1
    assert not lock.knows(token)


def test_wrong_tries_cost_time_over_all_sessions():
    """Issue 11, item 14: each new session had its own second; now all viewers' tries are bounded together."""
    now = [0.0]
    gate = Gate(inside, LOCAL, lock := Lock("open sesame", lambda: now[0]))
    for _ in range(FREE_TRIES - 1):
        assert give(gate, "sesame")[0] == 403
    status, headers, body = give(gate, "sesame")
    assert (status, headers["retry-after"]) == (429, "1")
    assert b"Too many wrong tries" in body
    assert give(gate, "open sesame")[0] == 429  # not looked at
    before = lock._wrong
    for _ in range(3600):  # an hour of a try a second
        lock.opens("guess")
        now[0] += 1
    assert lock._wrong - before < 3600 / LONGEST_WAIT_S + 10
    now[0] += LONGEST_WAIT_S
    assert give(gate, "open sesame")[0] == 303


def test_the_answer_leads_nowhere_else():
    gate = Gate(inside, LOCAL, Lock("open sesame"))
    for path in ("//evil.example/", "/\\evil.example", "///evil.example"):
        assert give(gate, "open sesame", path=path)[1]["location"].startswith("/evil.example")


def test_a_body_without_end_is_not_read():
    gate, read = Gate(inside, LOCAL, Lock("open sesame")), []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"x" * 4096, "more_body": True}

    async def send(_):
        pass

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "scheme": "http", "server": SERVER}
    asyncio.run(gate({**scope, "headers": [(b"host", b"localhost")]}, receive, send))
    assert len(read) == 2


def test_an_empty_password_is_none():
    with pytest.raises(ValueError, match="empty"):
        Lock("")
