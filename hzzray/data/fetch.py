"""Bring a release's files from the web, a storage or a folder to this machine: resumed, and checked.

A file is written to ``name.part`` and gets its name only when it is whole. Beside it, ``name.part.json`` says
which content of which place the bytes belong to: a later attempt adds to them or starts again, but never
glues two contents together.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import aiohttp
import fsspec
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random
from yarl import URL

from hzzray.data.catalogue import Release, Sample
from hzzray.data.header import header_of
from hzzray.data.storage import REDIRECT_LOOP, matching
from hzzray.errors import DataError, HzzrayError, TransientError, UsageError, in_one_line
from hzzray.urls import absolute, is_pattern, is_remote, join, redact

#: Bytes that are read at a time.
CHUNK = 1 << 18
#: Longest wait between two attempts, in s.
LONGEST_WAIT = 30.0

Outcome = Literal["fetched", "skipped", "failed"]


class FetchStep(NamedTuple):
    """How far a file is, in bytes. ``total`` is None where unknown, ``outcome`` while it moves.

    ``name`` is the sample's; of a sample of several files, with the file's path behind it.
    """

    name: str
    done: int
    total: int | None
    outcome: Outcome | None = None


Progress = Callable[[FetchStep], None]


@dataclass(frozen=True)
class FetchReport:
    """What became of each file, by name (see ``FetchStep``), in order; ``failed`` maps to the reason, in one line."""

    fetched: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]


def fetch(
    release: Release,
    samples: tuple[Sample, ...],
    folder: Path,
    *,
    sources: tuple[str, ...] = (),
    progress: Progress = lambda _: None,
    attempts: int = 5,
    backoff: float = 1.0,
    timeout: float = 30.0,
    jobs: int = 4,
) -> FetchReport:
    """Bring samples' files to their paths in ``folder``; a file that is there and whole stays as it is.

    Parameters
    ----------
    release, samples
        What to fetch; the release's sources are tried in turn for each file. Of a pattern, all that they list.
    folder
        Where to; made if it isn't there.
    sources
        The only sources to try instead: ``http(s)://`` or ``root://`` bases, or folders.
    progress
        Called in this thread with each step.
    attempts
        Tries for each file and source. Network faults, 408, 429 and 5xx are tried again, other refusals are
        final.
    backoff
        First wait between tries in s; it doubles up to 30 s, with jitter.
    timeout
        Longest silence of a server in s.
    jobs
        Files under way at once.

    Raises
    ------
    UsageError
        If there is no source, or the one given can't be one. All other faults are in the report.
    """
    for source in sources:
        _check_source(source)
    sources = sources or release.sources
    if not sources:
        raise UsageError(f"release {release.name} lies nowhere on the web; name a place with --source")
    limits = AsyncRetrying(
        stop=stop_after_attempt(attempts),
        wait=wait_exponential(multiplier=backoff, max=LONGEST_WAIT) + wait_random(0, backoff),
        retry=retry_if_exception_type(TransientError),
        reraise=True,
    )
    silence = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
    files = [file for sample in samples for file in _files(sample, sources)]
    outcomes = asyncio.run(_fetch_all(sources, files, folder, progress, limits, silence, jobs))
    return FetchReport(
        fetched=tuple(name for name, (was, _) in outcomes.items() if was == "fetched"),
        skipped=tuple(name for name, (was, _) in outcomes.items() if was == "skipped"),
        failed={name: reason for name, (was, reason) in outcomes.items() if was == "failed"},
    )


class _File(NamedTuple):
    """A file to bring; ``trouble`` is there of a pattern whose files can't be told."""

    name: str
    path: str
    trouble: str = ""


def _files(sample: Sample, sources: tuple[str, ...]) -> list[_File]:
    """List a sample's files, each once, those of a pattern as the sources have them."""
    if sample.only_path is not None:
        return [_File(sample.name, sample.only_path)]
    found: dict[str, str] = {}
    for path in sample.paths:
        troubles = []
        places = [] if is_pattern(path) else [path]
        for source in sources if is_pattern(path) else ():
            try:
                places += matching(source, path)
            except HzzrayError as error:
                troubles.append(redact(str(error)))
        if not places and not troubles:
            troubles.append("no file matches")
        found |= dict.fromkeys(sorted(places), "")
        if troubles:
            found[path] = troubles[0]
    return [_File(f"{sample.name} {path}", path, trouble) for path, trouble in found.items()]


def check_root(path: Path) -> None:
    """Check by its header that a file is a whole ROOT file, as whoever reads it does. Raises DataError."""
    try:
        header_of(path)
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}") from error


class _UnreachableError(TransientError):
    """Nobody answers there: no use asking for the next file."""


class _Content(NamedTuple):
    """Which bytes a place offers: equal values, equal bytes. ``validator`` is "" where there is none."""

    place: str
    validator: str
    size: int | None


class _Body(NamedTuple):
    """An open transfer: which content, from which byte on, and the bytes."""

    content: _Content
    offset: int
    chunks: AsyncIterator[bytes]


class _Part:
    """A file under way, held by one process at a time. Raises DataError if another one has it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have finished: then what we opened bears the file's last name by now.
            ours = self._path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except BlockingIOError:
            ours = False
        if not ours:
            self._file.close()
            raise DataError(f"{target} is being fetched by another process")
        self.size = self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.size == 0:
            self._path.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)
        self._file.close()

    def content(self, place: str) -> _Content | None:
        """Tell what the bytes here are a part of, if they came from this place and that can be validated."""
        try:
            noted = _Content(*json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return noted if self.size and noted.place == place else None

    def begin(self, content: _Content, offset: int) -> None:
        """Go on at the end (``offset`` is the size), or start again for a content."""
        if offset == 0:
            self.discard()
            if content.validator:
                self._note.write_text(json.dumps(content), encoding="utf-8")

    def discard(self) -> None:
        """Forget the bytes. The note goes first: a crash in between leaves bytes that nobody trusts."""
        self._note.unlink(missing_ok=True)
        self._file.truncate(0)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._file.write(chunk)
        self.size += len(chunk)

    def finish(self, content: _Content) -> None:
        """Check the whole, give it its name; raises TransientError, or DataError and forgets the bytes."""
        self._file.flush()
        if content.size is not None and self.size < content.size:
            raise TransientError(f"the transfer ended after {self.size} of {content.size} bytes")
        if content.size is not None and self.size > content.size:
            self.discard()
            raise TransientError(f"{self.size} bytes came where {content.size} were promised")
        try:
            check_root(self._path)
        except DataError:
            self.discard()
            raise
        os.fsync(self._file.fileno())
        self._path.replace(self._target)
        self._note.unlink(missing_ok=True)


@dataclass
class _Transfers:
    """What the transfers of one call share. ``dead`` has the sources that nobody answers at, and why."""

    session: aiohttp.ClientSession
    sources: tuple[str, ...]
    folder: Path
    progress: Progress
    limits: AsyncRetrying
    dead: dict[str, str] = field(default_factory=dict)

    async def fetch(self, file: _File) -> tuple[Outcome, str]:
        """Bring one file; returns what became of it and, if it failed, why."""
        target = self.folder / file.path
        try:
            if file.trouble:
                raise DataError(file.trouble)
            outcome = "skipped" if _is_whole(target) else await self._from_any_source(file, target)
            size = target.stat().st_size
        except HzzrayError as error:
            self.progress(FetchStep(file.name, 0, None, "failed"))
            return "failed", redact(str(error))
        except OSError as error:  # of our own disk: those of the source are HzzrayErrors
            self.progress(FetchStep(file.name, 0, None, "failed"))
            return "failed", f"{error.filename or target}: {error.strerror}"
        self.progress(FetchStep(file.name, size, size, outcome))
        return outcome, ""

    async def _from_any_source(self, file: _File, target: Path) -> Outcome:
        reasons = []
        with _Part(target) as part:
            for source in self.sources:
                if source not in self.dead:
                    try:
                        attempt = self.limits.wraps(self._attempt)
                        await attempt(join(source, file.path), part, file.name)
                    except _UnreachableError as error:
                        self.dead[source] = str(error)
                    except HzzrayError as error:
                        reasons.append(f"{redact(source)}: {error}")
                    else:
                        return "fetched"
                if source in self.dead:
                    reasons.append(f"{redact(source)}: {self.dead[source]}")
        raise DataError("; ".join(reasons))

    async def _attempt(self, url: str, part: _Part, name: str) -> None:
        if url.startswith(("http://", "https://")):
            transfer = _open_http(self.session, url, part)
        else:
            transfer = _open_storage(url, part, self.session.timeout.sock_read)
        try:
            async with transfer as body:
                part.begin(body.content, body.offset)
                self.progress(FetchStep(name, part.size, body.content.size))
                async for chunk in body.chunks:
                    part.write(chunk)
                    self.progress(FetchStep(name, part.size, body.content.size))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _UnreachableError(in_one_line(error)) from error
        except aiohttp.InvalidURL as error:
            raise DataError("is no URL") from error
        except aiohttp.TooManyRedirects as error:
            raise DataError(REDIRECT_LOOP) from error
        except aiohttp.ClientPayloadError as error:
            raise TransientError(f"the connection was cut after {part.size} bytes") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientError(in_one_line(error)) from error
        part.finish(body.content)


@asynccontextmanager
async def _open_http(session: aiohttp.ClientSession, url: str, part: _Part) -> AsyncIterator[_Body]:
    place = redact(url)
    have = part.content(place)
    headers = {"Range": f"bytes={part.size}-", "If-Range": have.validator} if have else {}
    # With a query it is sent as it is: what was signed must come as it was signed.
    async with session.get(URL(url, encoded="?" in url), headers=headers) as response:
        if response.status == 200:
            content, offset = _Content(place, _validator(response), response.content_length), 0
        elif response.status == 206 and have and _continues(response, have, part.size):
            content, offset = have, part.size
        elif response.status in {206, 416}:
            part.discard()
            raise TransientError("the file has changed while it was fetched")
        else:
            again = response.status in {408, 429} or response.status >= 500
            raise (TransientError if again else DataError)(f"HTTP {response.status} {response.reason}")
        yield _Body(content, offset, response.content.iter_chunked(CHUNK))


def _validator(response: aiohttp.ClientResponse) -> str:
    """Read what names the content: an ETag unless it is weak, else the date of change, else ""."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _continues(response: aiohttp.ClientResponse, have: _Content, size: int) -> bool:
    """Tell whether a partial answer goes on where our bytes end; not every server heeds If-Range."""
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    header = "ETag" if have.validator.startswith('"') else "Last-Modified"
    same = response.headers.get(header, have.validator) == have.validator
    return span is not None and same and (int(span[1]), int(span[2])) == (size, have.size)


@asynccontextmanager
async def _open_storage(url: str, part: _Part, timeout: float | None) -> AsyncIterator[_Body]:  # noqa: ASYNC109
    """Open a file of a folder or behind ``root://``, which give a size and a date of change.

    ``timeout`` goes to XRootD, which waits for ever without one, and counts in whole seconds.
    """
    filesystem, path = _storage(url, timeout)
    try:
        facts = await asyncio.to_thread(filesystem.info, path)
        file = await asyncio.to_thread(filesystem.open, path, "rb")
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(error.strerror or in_one_line(error)) from error
    except OSError as error:
        # XRootD's errors carry no errno, only the server's text.
        final = "No such file" in str(error)
        raise (DataError if final else TransientError)(in_one_line(error)) from error
    content = _Content(redact(url), str(facts.get("mtime") or ""), facts["size"])
    offset = part.size if part.content(content.place) == content else 0
    with file:
        yield _Body(content, offset, _chunks(file, offset))


async def _chunks(file: BinaryIO, offset: int) -> AsyncIterator[bytes]:
    try:
        await asyncio.to_thread(file.seek, offset)
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
    except OSError as error:
        raise TransientError(in_one_line(error)) from error


def _storage(url: str, timeout: float | None = None) -> tuple[Any, str]:
    """Find the file system of a folder or of ``root://``, and what a path is called there.

    Not by fsspec's own way, which takes ``::`` in a name for a chain of file systems.
    """
    if not is_remote(url):
        return fsspec.filesystem("file"), os.path.realpath(url)  # of a link, the date of what it leads to
    try:
        kind = fsspec.get_filesystem_class("root")
    except ImportError as error:
        raise UsageError("root:// needs an extra: pip install 'hzzray[xrootd]'") from error
    options = kind._get_kwargs_from_urls(url) | ({"timeout": math.ceil(timeout)} if timeout else {})  # noqa: SLF001
    return kind(**options), kind._strip_protocol(url)  # noqa: SLF001 (XRootD refuses whole URLs)


def _check_source(source: str) -> None:
    scheme, separator, _ = source.partition("://")
    if not separator:
        if not Path(absolute(source)).is_dir():
            raise UsageError(f"--source {source} is no folder")
    elif scheme == "root":
        _storage(source)
    elif scheme not in {"http", "https"}:
        raise UsageError(f"--source {redact(source)}: expected http(s)://, root:// or a folder")


def _is_whole(path: Path) -> bool:
    try:
        check_root(path)
    except DataError:
        return False
    return True


async def _fetch_all(
    sources: tuple[str, ...],
    files: list[_File],
    folder: Path,
    progress: Progress,
    limits: AsyncRetrying,
    silence: aiohttp.ClientTimeout,
    jobs: int,
) -> dict[str, tuple[Outcome, str]]:
    slots = asyncio.Semaphore(jobs)
    # Bytes are wanted as they lie there: a compressed transfer has other ranges and another length.
    plain = {"Accept-Encoding": "identity"}
    async with aiohttp.ClientSession(timeout=silence, headers=plain, auto_decompress=False, trust_env=True) as session:
        transfers = _Transfers(session, sources, folder, progress, limits)

        async def one(file: _File) -> tuple[Outcome, str]:
            async with slots:
                return await transfers.fetch(file)

        outcomes = await asyncio.gather(*(one(file) for file in files))
    return {file.name: outcome for file, outcome in zip(files, outcomes, strict=True)}
