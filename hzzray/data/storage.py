"""Bytes of a file by range, wherever it lies: a local folder, ``http(s)://`` or ``root://``."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from glob import glob
from importlib import import_module
from io import FileIO
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from hzzray.errors import DataError, HzzrayError, MissingFileError, TransientError, UsageError
from hzzray.retry import retrying
from hzzray.urls import is_remote, join, redact

#: Seconds to connect and to wait for more bytes, before a remote read counts as failed.
CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 60.0

#: How often a remote read is tried.
ATTEMPTS = 4

#: A remote file of so many bytes, or fewer, is read as a whole: on a fast line that takes as long as one more answer.
WHOLE = 1 << 18

# A remote folder whose last so many files were that small holds small ones: the next is asked for as a whole at once.
_ALIKE = 4

# Where that isn't so: what every file is told by, its header.
_AHEAD = 128

# Gaps between ranges are read along, for fewer requests: the smallest first, all of them at most this part of what is
# wanted.
_GAPS = 0.05

# What servers tell versions of a file by, as fsspec calls it: those of the web, then XRootD's.
_MARKS = ("ETag", "Last-Modified", "mtime")

Range = tuple[int, int]
"""Where bytes start, and how many."""


class ByteSource(Protocol):
    """A file that is read by ranges. ``bytes_read`` counts what was transferred, gaps included.

    ``version`` tells what is there now from what was before or will be; empty where the storage doesn't say.
    """

    name: str
    size: int
    version: str
    bytes_read: int

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges, in the order given; raises DataError when bytes are missing, TransientError on I/O faults."""

    def read_into(self, ranges: Sequence[Range], out: memoryview) -> None:
        """Read ranges to one after the other in ``out``, which has room for them; raises as ``read``."""

    def is_unchanged(self) -> bool:
        """Tell whether all that was read so far is sure to be of one version; raises as ``read``."""

    def close(self) -> None:
        """Let go of the file."""


class LocalBytes:
    """A file of this machine."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.bytes_read = 0
        try:
            self._file = FileIO(path)
        except FileNotFoundError as error:
            raise MissingFileError(f"{path}: no such file") from error
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        except ValueError as error:  # a name that no file can have
            raise DataError(f"{path!r}: {error}") from error
        self.size, self._changed = self._state()
        self.version = str(self._changed)

    def _state(self) -> tuple[int, int]:
        """Size and time of the last change, by which a file that is written over is told."""
        state = os.fstat(self._file.fileno())
        return state.st_size, state.st_mtime_ns

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges; raises DataError beyond the file's end, TransientError on faults or when it has changed."""
        _check_within(self, ranges)  # before room is made for them
        out = memoryview(bytearray(sum(length for _, length in ranges)))
        self.read_into(ranges, out)
        ends = accumulate(length for _, length in ranges)
        return [bytes(out[end - length : end]) for end, (_, length) in zip(ends, ranges, strict=True)]

    def read_into(self, ranges: Sequence[Range], out: memoryview) -> None:
        """Read ranges to one after the other in ``out``; raises as ``read``."""
        _check_within(self, ranges)
        file = self._file.fileno()
        at = 0
        try:
            for start, length in ranges:
                came = os.preadv(file, (out[at : at + length],), start)
                at += length
                self.bytes_read += came
                if came != length:
                    break
            changed = self._state() != (self.size, self._changed)
        except OSError as error:
            raise TransientError(f"{self.name}: {error.strerror}") from error
        if changed:
            raise TransientError(f"{self.name}: changed while it was read")
        if ranges and came != length:
            raise TransientError(f"{self.name}: {came} bytes came at {start} where {length} were asked for")

    def is_unchanged(self) -> bool:
        """Each read has made sure of it."""
        return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


#: What is said where aiohttp gave up following redirects; its own text and status say nothing.
REDIRECT_LOOP = "the server redirects from one address to the next without an end"


class RemoteBytes:
    """A file behind a URL. Faults that may pass are tried again, with back-off and jitter.

    Of the web, the first ``ahead`` bytes come with the answer that tells the file's size, and are kept. Where any are,
    a small file is read as a whole.
    """

    def __init__(self, url: str, ahead: int = 0) -> None:
        self.name = redact(url)
        self.bytes_read = 0
        self._remote = _remote(url)
        self._counting = Lock()  # several may read
        self._head = b""
        self._kept = 0 if not ahead else WHOLE
        self.size, self.version = self._begin(ahead) if ahead else self._state()

    def _begin(self, ahead: int) -> tuple[int, str]:
        """Ask for the first bytes, and for the size and the version with them."""
        begun: tuple[dict[str, Any], bytes] | None = self._try(lambda: self._remote.head(ahead))
        if begun is None:
            return self._state()
        info, head = begun
        size = int(info["size"])
        self.bytes_read += len(head)
        if len(head) == min(ahead, size):  # else ranges are asked for, and tell what is wrong with that server
            self._head = head
        return size, _version(info)

    def _state(self) -> tuple[int, str]:
        """Ask for the size, and for what the server tells versions by."""
        info: dict[str, Any] = self._try(self._remote.info)
        if info.get("size") is None:
            raise DataError(f"{self.name}: the server doesn't tell the file's size")
        return int(info["size"]), _version(info)

    def read(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges, neighbours together; raises DataError where bytes are missing, TransientError on faults."""
        _check_within(self, ranges)
        head = self._head
        if len(head) < self.size <= self._kept and any(start + length > len(head) for start, length in ranges):
            (rest,) = self._try(lambda: self._transfer([(len(head), self.size - len(head))]))
            head = self._head = head + rest
        spans = _coalesced([(start, length) for start, length in ranges if start + length > len(head)])
        parts: list[bytes] = self._try(lambda: self._transfer(spans)) if spans else []
        starts = [start for start, _ in spans]
        out = []
        for start, length in ranges:
            if start + length <= len(head):
                out.append(head[start : start + length])
                continue
            i = bisect_right(starts, start) - 1
            out.append(parts[i][start - starts[i] : start - starts[i] + length])
        return out

    def read_into(self, ranges: Sequence[Range], out: memoryview) -> None:
        """Read ranges to one after the other in ``out``; raises as ``read``."""
        at = 0
        for part in self.read(ranges):
            out[at : at + len(part)] = part
            at += len(part)

    def _transfer(self, spans: Sequence[Range]) -> list[bytes]:
        parts = self._remote.fetch(spans)
        with self._counting:
            self.bytes_read += sum(len(part) for part in parts if isinstance(part, bytes))
        for (start, length), part in zip(spans, parts, strict=True):
            if isinstance(part, BaseException):
                raise part
            if len(part) != length:
                raise TransientError(f"{self.name}: {len(part)} bytes came at {start} where {length} were asked for")
        return [part for part in parts if isinstance(part, bytes)]

    def is_unchanged(self) -> bool:
        """Ask the server again; one that can't tell versions apart is never sure."""
        return bool(self.version) and self._state() == (self.size, self.version)

    def close(self) -> None:
        """Nothing is held open between reads."""

    def _try(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (whatever the call returns)
        return retrying(ATTEMPTS)(_answer, self.name, self._remote.faults, call)


def _version(info: dict[str, Any]) -> str:
    return " ".join(str(info[mark]) for mark in _MARKS if info.get(mark))


def _answer(name: str, faults: tuple[type[Exception], ...], call: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return what a storage answers to a call; its faults as errors of ours that name the file."""
    try:
        return call()
    except HzzrayError:
        raise
    except faults as error:
        # fsspec calls whatever goes wrong as it asks for a file's size a missing file, and keeps the cause.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = getattr(cause, "status", None)
        if isinstance(cause, FileNotFoundError) or status in (404, 410):
            raise MissingFileError(f"{name}: no such file") from error
        if type(cause).__name__ == "TooManyRedirects":  # aiohttp is loaded for remote files alone
            raise DataError(f"{name}: {REDIRECT_LOOP}") from error
        reason = " ".join(redact(str(cause) or type(cause).__name__).split())
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            raise DataError(f"{name}: {reason}") from error
        raise TransientError(f"{name}: {reason}") from error


def _check_within(source: ByteSource, ranges: Sequence[Range]) -> None:
    """Raise DataError where a range isn't inside the file."""
    for start, length in ranges:
        if not 0 <= start <= start + length <= source.size:
            raise DataError(
                f"{source.name}: truncated or corrupt: it has {source.size} bytes, {length} are needed at {start}"
            )


def _coalesced(ranges: Sequence[Range]) -> list[Range]:
    """Join ranges that touch, then those with the smallest gaps between them."""
    spans: list[tuple[int, int]] = []  # from, to
    for start, length in sorted(set(ranges)):
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], start + length))
        else:
            spans.append((start, start + length))
    gaps = sorted((after[0] - before[1], i) for i, (before, after) in enumerate(pairwise(spans)))
    left = _GAPS * sum(stop - start for start, stop in spans)
    joined = set()
    for gap, i in gaps:
        left -= gap
        if left < 0:
            break
        joined.add(i)
    starts = [start for i, (start, _) in enumerate(spans) if i - 1 not in joined]
    stops = [stop for i, (_, stop) in enumerate(spans) if i not in joined]
    return [(start, stop - start) for start, stop in zip(starts, stops, strict=True)]


class Remote(Protocol):
    """How a remote file's server is asked; raises its own errors, ``faults``."""

    faults: tuple[type[Exception], ...]

    def info(self) -> dict[str, Any]:
        """Ask for ``size``, and for what tells the file's version."""

    def head(self, length: int) -> tuple[dict[str, Any], bytes] | None:
        """Ask for the same with the first bytes; None where that can't be asked."""

    def fetch(self, spans: Sequence[Range]) -> Sequence[bytes | Exception]:
        """Get ranges; what goes wrong with one is its result."""


class _Xrootd:
    """A file behind ``root://``, through fsspec."""

    faults: tuple[type[Exception], ...] = (OSError, ValueError)

    def __init__(self, url: str) -> None:
        self._fs = _xrootd(url)
        self._path = self._fs._strip_protocol(url)  # noqa: SLF001 (XRootD refuses whole URLs)

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = self._fs.info(self._path)
        return found

    def head(self, length: int) -> None:  # noqa: ARG002
        return None

    def fetch(self, spans: Sequence[Range]) -> list[bytes | Exception]:
        starts = [start for start, _ in spans]
        ends = [start + length for start, length in spans]
        # Errors are asked for as results: some versions of fsspec return them whatever they are told.
        parts: list[bytes | Exception] = self._fs.cat_ranges([self._path] * len(spans), starts, ends, on_error="return")
        return parts


def _xrootd(url: str) -> Any:  # noqa: ANN401 (fsspec's file system)
    """Get the fsspec file system of a server, with timeouts."""
    import fsspec  # noqa: PLC0415 (half a second, and only remote runs need it)

    try:
        import_module("fsspec_xrootd")
    except ImportError as error:
        raise UsageError(f"{redact(url)}: root:// needs an extra: pip install 'hzzray[xrootd]'") from error
    host = url.split("://", 1)[1].split("/", 1)[0]
    return fsspec.filesystem("root", hostid=host, timeout=int(READ_TIMEOUT))


def _remote(url: str) -> Remote:
    """Tell by a URL's protocol how it is read; raises UsageError for one that isn't served."""
    protocol = url.split("://", 1)[0].lower()
    if protocol in ("http", "https"):
        from hzzray.data.web import Web  # noqa: PLC0415 (half a second, and only remote runs need it)

        return Web(url, CONNECT_TIMEOUT, READ_TIMEOUT)
    if protocol == "root":
        return _Xrootd(url)
    raise UsageError(f"{redact(url)}: sources are folders, http(s):// or root://, not {protocol}://")


def open_bytes(location: str) -> ByteSource:
    """Open a path or URL; raises DataError where there is no such file, UsageError for an unknown protocol."""
    if not is_remote(location):
        return LocalBytes(location)
    folder = location.partition("?")[0].rpartition("/")[0]
    source = RemoteBytes(location, _ahead(list(_sizes.get(folder, {}).values())))
    with _noting:  # others were opened meanwhile
        last = {one: size for one, size in _sizes.get(folder, {}).items() if one != location}
        _sizes[folder] = dict([*last.items(), (location, source.size)][-_ALIKE:])
    return source


# The last sizes of files in each remote folder, by their places.
_sizes: dict[str, dict[str, int]] = {}
_noting = Lock()


def _ahead(sizes: Sequence[int]) -> int:
    """Guess how much of a file is worth reading at once, by the last ones of its folder."""
    return min(WHOLE, max(sizes) * 5 // 4) if len(sizes) == _ALIKE and max(sizes) <= WHOLE else _AHEAD


def matching(source: str, pattern: str) -> list[str]:
    """List the files of a source that match a pattern (see ``is_pattern``), by their places in it, sorted.

    Raises UsageError for a source of the web, which can't be listed; as ``open_bytes`` otherwise.
    """
    if not is_remote(source):
        folder = Path(source).expanduser()
        found = glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 (it leaves hidden files out)
        return sorted(place for place in found if not (folder / place).is_dir())
    name = redact(join(source, pattern))
    if source.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"{redact(source)}: a server of the web can't list its files: instead of {pattern}, write the list of them"
        )
    if not source.lower().startswith("root://"):
        _remote(source)
    filesystem = _xrootd(source)
    whole = filesystem._strip_protocol(join(source.partition("?")[0], pattern))  # noqa: SLF001 (as in RemoteBytes)
    listed = retrying(ATTEMPTS)(_answer, name, _Xrootd.faults, lambda: filesystem.glob(whole, detail=True))
    start = whole.removesuffix(pattern)
    found = sorted(place for place, about in listed.items() if about["type"] != "directory")
    for place in found:
        if not place.startswith(start) or ".." in place.split("/"):
            raise DataError(f"{name}: the server lists {place!r}, which lies elsewhere")
    return [place.removeprefix(start) for place in found]


class SeekableBytes:
    """A byte source as the file object that uproot reads metadata from, in blocks so that requests are few."""

    _BLOCK = 8192

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._at = 0
        self._blocks: dict[int, bytes] = {}

    def seek(self, at: int, whence: int = os.SEEK_SET) -> int:
        """Move as a file does; raises ValueError for a place before the start."""
        goal = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence] + at
        if goal < 0:
            raise ValueError(f"{self._source.name}: there is no byte {goal}")
        self._at = goal
        return goal

    def tell(self) -> int:
        """Where the next read starts."""
        return self._at

    def read(self, length: int = -1) -> bytes:
        """Read as a file does: fewer bytes at its end."""
        stop = self._source.size if length < 0 else min(self._at + length, self._source.size)
        start, self._at = self._at, max(self._at, stop)
        if stop <= start:
            return b""
        blocks = range(start // self._BLOCK, (stop - 1) // self._BLOCK + 1)
        absent = [i for i in blocks if i not in self._blocks]
        if absent:
            first, last = absent[0] * self._BLOCK, min((absent[-1] + 1) * self._BLOCK, self._source.size)
            (data,) = self._source.read([(first, last - first)])
            for i in range(absent[0], absent[-1] + 1):
                self._blocks[i] = data[i * self._BLOCK - first : (i + 1) * self._BLOCK - first]
        joined = b"".join(self._blocks[i] for i in blocks)
        return joined[start - blocks[0] * self._BLOCK : stop - blocks[0] * self._BLOCK]

    @property
    def closed(self) -> bool:
        """Never: the source is closed by its owner."""
        return False
