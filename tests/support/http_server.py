"""A static HTTP/1.1 server for tests and benchmarks: ranges, validators, counts, a line's limits, faults on demand.

``python -m tests.support.http_server FOLDER`` serves in a process of its own, so that its work is not its clients':
it prints its URL, and for each line that it reads the counts since the last one, as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import socket
import sys
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 16


class Request(NamedTuple):
    """One request as it was answered; ``range`` and ``if_range`` are the headers, "" where absent."""

    method: str
    path: str
    range: str
    if_range: str
    status: int


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request: an error status, or a body held at ``after`` bytes and then cut.

    A status that redirects leads back to where it came from.
    """

    status: int | None = None
    after: int | None = None
    hold: threading.Event | None = None
    cut: bool = True


class Server(ThreadingHTTPServer):
    """Serves a folder. Paths are relative to it and decoded (``MC/a b.root``). Counts last until ``reset``.

    ``ranges`` switches Range support, ``validators`` the headers ETag and Last-Modified. With a ``token``, a request
    whose query it isn't is refused.

    ``latency_s`` is what a round trip takes: a connection waits for it once, and each request. ``rate`` is that of the
    line which all answers share, in bytes a second. With ``drip_s`` a body's bytes come one by one, so far apart.
    """

    daemon_threads = False
    block_on_close = True
    request_queue_size = 128  # connections beyond the default of 5 at once would wait for a second

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.ranges = True
        self.validators = True
        self.token = ""
        self.latency_s = 0.0
        self.rate = 0.0
        self.drip_s = 0.0
        self._is_over = threading.Event()
        self._line = threading.Lock()
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._log: list[Request] = []
        self._bytes: Counter[str] = Counter()
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._holds: list[threading.Event] = []
        self._connections: set[socket.socket] = set()

    @property
    def log(self) -> list[Request]:
        """All requests so far, in order of their answers."""
        with self._lock:
            return list(self._log)

    @property
    def requests(self) -> Counter[str]:
        """Number of requests by path; ``.total()`` sums them."""
        return Counter(request.path for request in self.log)

    @property
    def bytes_sent(self) -> Counter[str]:
        """Body bytes by path, counted just before they are sent; ``.total()`` sums them."""
        with self._lock:
            return Counter(self._bytes)

    def reset(self) -> None:
        """Forget counts and pending faults."""
        with self._lock:
            self._log.clear()
            self._bytes.clear()
            self._faults.clear()

    def fail(
        self,
        path: str,
        *,
        status: int | None = None,
        after: int | None = None,
        hold: threading.Event | None = None,
        cut: bool = True,
        times: int = 1,
    ) -> None:
        """Let the next ``times`` requests of a path fail, after the faults already queued for it.

        Give ``status`` for an error answer (GET and HEAD), or ``after`` for a GET whose body stops after so
        many bytes: it waits for the event ``hold``, if given, and is then cut (``cut=False``: goes on).
        """
        with self._lock:
            self._faults[path].extend([Fault(status, after, hold, cut)] * times)
            if hold is not None:
                self._holds.append(hold)

    def take(self, path: str, method: str) -> Fault:
        """Take the fault that a request is to meet; HEAD leaves those of bodies to GET."""
        with self._lock:
            queue = self._faults[path]
            if not queue or (method == "HEAD" and queue[0].status is None):
                return Fault()
            return queue.popleft()

    def note(self, request: Request) -> None:
        """Count a request."""
        with self._lock:
            self._log.append(request)

    def count(self, path: str, sent: int) -> None:
        """Count body bytes."""
        with self._lock:
            self._bytes[path] += sent

    def wait(self, seconds: float) -> None:
        """Wait, but not beyond the server's end."""
        if seconds > 0:
            self._is_over.wait(seconds)

    def pass_line(self, length: int) -> None:
        """Wait until so many bytes are through the line, which others use too."""
        if self.rate:
            with self._line:
                self._free_at = max(self._free_at, time.monotonic()) + length / self.rate
                free_at = self._free_at
            self.wait(free_at - time.monotonic())

    def connected(self, connection: socket.socket, *, alive: bool) -> None:
        """Keep track of open connections, to end those kept alive by clients."""
        with self._lock:
            (self._connections.add if alive else self._connections.discard)(connection)

    def stop(self) -> None:
        """End the server, its held answers and its connections; returns when every thread has ended."""
        self.shutdown()
        self._is_over.set()
        with self._lock:
            for hold in self._holds:
                hold.set()
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # it would hold bodies back for the heads' receipts
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connected(self.connection, alive=True)
        self.server.wait(self.server.latency_s)

    def finish(self) -> None:
        self.server.connected(self.connection, alive=False)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.wait(self.server.latency_s)
        path = unquote(urlsplit(self.path).path).lstrip("/")
        file = self.server.folder / path
        fault = self.server.take(path, self.command)
        if fault.status is not None:
            again = {"Location": self.path} if 300 <= fault.status < 400 else {}
            self._refuse(path, fault.status, again)
            return
        if self.server.token and urlsplit(self.path).query != self.server.token:
            self._refuse(path, HTTPStatus.FORBIDDEN)
            return
        if not file.resolve().is_relative_to(self.server.folder.resolve()) or not file.is_file():
            self._refuse(path, HTTPStatus.NOT_FOUND)
            return
        stamp = file.stat()
        size = stamp.st_size
        validators = {
            "ETag": f'"{stamp.st_mtime_ns:x}-{stamp.st_size:x}"',
            "Last-Modified": formatdate(stamp.st_mtime, usegmt=True),
        }
        if not self.server.validators:
            validators = {}
        span = self._range(size, validators)
        start, stop = span or (0, size)
        if span and start >= stop:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            self._refuse(path, status, {"Content-Range": f"bytes */{size}"})
            return
        headers = validators | {
            "Content-Length": str(stop - start),
            "Content-Type": "application/octet-stream",
        }
        if self.server.ranges:
            headers["Accept-Ranges"] = "bytes"
        if span:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self._head(path, HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK, headers)
        if body:
            with file.open("rb") as opened:
                opened.seek(start)
                self._send(path, opened.read(stop - start), fault)

    def _range(self, size: int, validators: dict[str, str]) -> tuple[int, int] | None:
        """Read the Range header: first byte and end of what to send; None where the whole is to be sent."""
        condition = self.headers.get("If-Range")
        match = re.fullmatch(r"bytes=(\d+)-(\d*)|bytes=-(\d+)", self.headers.get("Range", ""))
        if not self.server.ranges or match is None or condition not in {None, *validators.values()}:
            return None
        first, last, tail = match.groups()
        if tail is not None:
            return max(0, size - int(tail)), size
        return int(first), min(size, int(last) + 1) if last else size

    def _refuse(self, path: str, status: int, headers: dict[str, str] | None = None) -> None:
        text = f"{status}\n".encode()
        self._head(path, status, {"Content-Length": str(len(text)), "Content-Type": "text/plain", **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(text)

    def _head(self, path: str, status: int, headers: dict[str, str]) -> None:
        asked = self.headers.get("Range", ""), self.headers.get("If-Range", "")
        self.server.note(Request(self.command, path, *asked, int(status)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: str, content: bytes, fault: Fault) -> None:
        held = len(content) if fault.after is None else fault.after
        self._write(path, content[:held])
        if fault.after is None:
            return
        if fault.hold is not None:
            fault.hold.wait()
        if fault.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._write(path, content[held:])

    def _write(self, path: str, content: bytes) -> None:
        size = 1 if self.server.drip_s else BLOCK
        for start in range(0, len(content), size):
            block = content[start : start + size]
            if start:
                self.server.wait(self.server.drip_s)
            self.server.pass_line(len(block))
            self.server.count(path, len(block))
            self.wfile.write(block)


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Serve a folder on a free port of 127.0.0.1 for the length of the block."""
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def main() -> None:
    """Serve a folder until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds a round trip")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second of the line; 0 for no limit")
    options = parser.parse_args()
    with serve(options.folder) as server:
        server.latency_s, server.rate = options.latency, options.rate
        print(server.url, flush=True)
        for _ in sys.stdin:
            used = resource.getrusage(resource.RUSAGE_SELF)
            counts = {
                "requests": server.requests.total(),
                "bytes": server.bytes_sent.total(),
                "cpu_s": used.ru_utime + used.ru_stime,
            }
            server.reset()
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
