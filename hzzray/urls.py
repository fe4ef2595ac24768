"""Places where files lie, folders or URLs: joined with paths, and shown without their secrets."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from hzzray.errors import UsageError

_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(://[^?#\s]*)\?(?!\*{3}(?:\W|$))[^#\s]*")  # one that is hidden already stays as it is
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DECODINGS = 5  # of a path, until it is as plain as it gets; one that takes more is up to no good


def is_remote(location: str) -> bool:
    """Tell a URL from a path."""
    return "://" in location


def is_pattern(path: str) -> bool:
    """Tell a pattern of files, as ``glob`` has it, from the place of one, whose name may hold all but a ``*``."""
    return "*" in path


def is_inside(location: str, sources: Sequence[str]) -> bool:
    """Tell whether a path or URL lies inside one of some sources: see ``Fence``."""
    return Fence(sources).holds(location)


class Fence:
    """Sources that files must lie inside of. Where a folder's links lead is found out once: ask soon, and many times.

    Of a URL, protocol, login, host and path decide: the query, where a token or a signature travels, is the server's
    business. What can't be a path or a URL is inside of nothing.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = sources
        self._folders: dict[str, str | None] = {}

    def holds(self, location: str) -> bool:
        """Tell whether a path or URL lies inside one of them, whatever links and dots it holds."""
        if is_remote(location):
            place = _place(location)
            return place is not None and any(
                place[0] == host and _is_below(place[1], path) for host, path in self._remote
            )
        path = self._followed(location)
        return path is not None and any(path == root or _is_below(path, root) for root in self._local)

    @cached_property
    def _remote(self) -> list[tuple[str, str]]:
        return [place for source in self._sources if is_remote(source) and (place := _place(source)) is not None]

    @cached_property
    def _local(self) -> list[str]:
        found = (_resolved(source) for source in self._sources if not is_remote(source))
        return [root for root in found if root is not None]

    def _followed(self, path: str) -> str | None:
        """Follow a path's links; those of its folder are known if it was asked for before."""
        folder, name = os.path.split(path)
        try:
            is_plain = stat.S_ISREG(os.lstat(path).st_mode)
        except (OSError, ValueError):
            is_plain = False
        if not is_plain:  # a link, a folder, or nothing
            return _resolved(path)
        if folder not in self._folders:
            self._folders[folder] = _resolved(folder)
        found = self._folders[folder]
        return None if found is None else f"{found.rstrip('/')}/{name}"


def _is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def _place(url: str) -> tuple[str, str] | None:
    """Take a URL apart into what says whose it is, and its path; None where it isn't plain which file it names."""
    if _CONTROL.search(url):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    plain = parts.path
    for _ in range(_DECODINGS):
        if ".." in re.split(r"[/\\]", plain):
            return None
        before, plain = plain, unquote(plain)
        if plain == before:
            return f"{parts.scheme}://{parts.netloc}", parts.path
    return None


def _resolved(path: str) -> str | None:
    """Follow a path's links; None where it can't be a path: with NUL in it, too long, links that lead in a ring."""
    try:
        return str(Path(path).resolve())
    except (OSError, ValueError, RuntimeError):
        return None


def led_by(path: str) -> str:
    """Say which link leads a path elsewhere, and where to; empty where none does."""
    try:
        for part in (*reversed(Path(path).absolute().parents), Path(path).absolute()):
            if part.is_symlink():
                return f"{part} is a link to {part.readlink()}"
    except (OSError, ValueError):
        pass
    return ""


def redact(text: str) -> str:
    """Hide the login and the query (where tokens travel) of every URL in a text."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub("***@", text))


def absolute(place: str) -> str:
    """Say where a folder or file is so that other processes find it too, wherever they are; a URL stays as it is.

    Raises UsageError for an empty text, which would be the folder that somebody happens to be in.
    """
    if not place.strip():
        raise UsageError("no source is named: --source wants a folder or an address")
    return place if is_remote(place) else str(Path(place).expanduser().absolute())


def join(source: str, path: str) -> str:
    """Put a relative path under a source, a folder or a URL whose query is kept; a folder's are absolute then.

    ``path`` is plain text: what a URL of the web can't hold (spaces, µ, ``%``) is percent-encoded.
    """
    if not is_remote(source):
        return str(Path(absolute(source)) / path)
    if not source.startswith(("http://", "https://")):
        base, mark, query = source.partition("?")
        return f"{base.removesuffix('/')}/{path}{mark}{query}"  # root://host//folder: two slashes mean something
    parts = urlsplit(source)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(path)}").geturl()
