"""Ranges of files behind ``http(s)://``: few requests, a bounded number at a time, and none that hardly moves.

aiohttp and fsspec cost half a second to import, and only remote runs need them: ``storage`` imports this when one does.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, TypeVar

import aiohttp
import fsspec
from fsspec.asyn import sync

from hzzray.errors import DataError
from hzzray.urls import redact

#: Requests that this process has open at a time, to all servers.
AT_ONCE = 64

#: Bytes a second that an answer must bring, in each of the times that a silent one is waited for: less is a stall.
PACE = 1000

IGNORES_RANGES = "the server ignores byte ranges; fetch the files first (hzzray fetch)"

#: What goes wrong with requests.
FAULTS: tuple[type[Exception], ...] = (OSError, ValueError, aiohttp.ClientError)

_SIZE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")

_Made = TypeVar("_Made")


class Head(NamedTuple):
    """What a server says of a file, its first bytes among it. ``size`` is None where it doesn't say."""

    size: int | None
    headers: Mapping[str, str]
    data: bytes


class _Client:
    """A session with its connections; it lives in fsspec's event loop, which has a thread of its own."""

    def __init__(self, *, encoded: bool) -> None:
        # In the environment are proxies; what was signed must come as it was signed.
        self._fs = fsspec.filesystem("http", client_kwargs={"trust_env": True}, encoded=encoded)
        self._gate = asyncio.Semaphore(AT_ONCE)

    def run(self, coroutine: Coroutine[Any, Any, _Made]) -> _Made:
        """Wait for what runs in the loop."""

        async def started() -> _Made:
            return await coroutine

        made: _Made = sync(self._fs.loop, started)
        return made

    async def state(self, url: str, limits: aiohttp.ClientTimeout) -> Head:
        """Ask what a server says of a file without its bytes; one that doesn't answer to that, for its first."""
        with suppress(aiohttp.ClientResponseError):
            async with self._gate, await self._answer("HEAD", url, limits, "") as response:
                response.raise_for_status()
                if response.content_length is not None and not response.headers.get("Content-Encoding"):
                    return Head(response.content_length, response.headers, b"")
        return await self.get(url, 0, 1, limits)

    async def _answer(self, method: str, url: str, limits: aiohttp.ClientTimeout, span: str) -> aiohttp.ClientResponse:
        session = await self._fs.set_session()
        headers = {"Accept-Encoding": "identity", **({"Range": span} if span else {})}
        async with asyncio.timeout(limits.sock_read):  # an answer's head may come letter by letter, or redirect
            response: aiohttp.ClientResponse = await session.request(
                method, self._fs.encode_url(url), headers=headers, timeout=limits, allow_redirects=True
            )
        return response

    async def get(self, url: str, start: int, length: int, limits: aiohttp.ClientTimeout) -> Head:
        """Get a range; fewer bytes at the file's end. Where the server sends all of the file instead, no ``data``."""
        async with (
            self._gate,
            await self._answer("GET", url, limits, f"bytes={start}-{start + length - 1}") as response,
        ):
            if response.status == 404:
                raise FileNotFoundError(url)
            response.raise_for_status()
            if response.status != 206:
                response.close()  # or the rest of it would be waited for
                return Head(response.content_length, response.headers, b"")
            told = _SIZE.fullmatch(response.headers.get("Content-Range", ""))
            size = int(told[1]) if told else None
            return Head(size, response.headers, await _body(response, length, limits.sock_read or math.inf))


async def _body(response: aiohttp.ClientResponse, length: int, wait_s: float) -> bytes:
    """Read an answer of ``length`` bytes at the most; raises TimeoutError where it stalls."""
    clock = asyncio.get_running_loop().time
    data = bytearray()
    before, until = 0, clock() + wait_s
    async for part in response.content.iter_any():
        data += part
        if len(data) > length:
            response.close()
            break
        if clock() >= until:
            if len(data) - before < PACE * wait_s and len(data) < length:
                raise TimeoutError(f"stalled: {len(data) - before} bytes came in {wait_s:g} s")
            before, until = len(data), clock() + wait_s
    return bytes(data)


@cache
def _client(_process: int, encoded: bool) -> _Client:  # noqa: FBT001 (a key)
    return _Client(encoded=encoded)


class Web:
    """A file behind a URL: what to ask its server. ``connect_s`` and ``read_s`` bound waiting for it."""

    faults: tuple[type[Exception], ...] = FAULTS

    def __init__(self, url: str, connect_s: float, read_s: float) -> None:
        self._url = url
        self._limits = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)

    @property
    def _own(self) -> _Client:
        return _client(os.getpid(), "?" in self._url)

    def info(self) -> dict[str, Any]:
        """Ask for the size and the marks of a version."""
        head = self._own.run(self._own.state(self._url, self._limits))
        return _said(head)

    def head(self, length: int) -> tuple[dict[str, Any], bytes] | None:
        """Ask for the same with the first bytes; None where the server doesn't answer to that, as for an empty file."""
        try:
            head = self._own.run(self._own.get(self._url, 0, length, self._limits))
        except aiohttp.ClientResponseError as error:
            if error.status == 416:
                return None
            raise
        return (_said(head), head.data[:length]) if head.size is not None else None

    def fetch(self, spans: Sequence[tuple[int, int]]) -> list[bytes | Exception]:
        """Get ranges side by side; what goes wrong with one is its result."""

        async def all_of_them() -> list[Any]:
            own, url, limits = self._own, self._url, self._limits
            return await asyncio.gather(*(_whole(own, url, *span, limits) for span in spans), return_exceptions=True)

        parts = self._own.run(all_of_them())
        for part in parts:
            if isinstance(part, BaseException) and not isinstance(part, Exception):
                raise part
        return parts


def _said(head: Head) -> dict[str, Any]:
    marks = {name: head.headers.get(name) for name in ("ETag", "Last-Modified")}  # in whatever case they came
    return {**marks, "size": head.size}


async def _whole(client: _Client, url: str, start: int, length: int, limits: aiohttp.ClientTimeout) -> bytes:
    head = await client.get(url, start, length, limits)
    if "Content-Range" not in head.headers:
        raise DataError(f"{redact(url)}: {IGNORES_RANGES}")
    return head.data
