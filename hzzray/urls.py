"""Places where files lie, folders or URLs: joined with paths, and shown without their secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
    """Tell whether a path or URL lies inside one of some sources, whatever links and dots it holds.

    Of a URL, protocol, login, host and path decide: the query, where a token or a signature travels, is the server's
    business. What can't be a path or a URL is inside of nothing.
    """
    if is_remote(location):
        place = _place(location)
        return place is not None and any(
            root is not None and place[0] == root[0] and place[1].startswith(root[1].rstrip("/") + "/")
            for root in map(_place, filter(is_remote, sources))
        )
    path = _resolved(location)
    roots = [_resolved(source) for source in sources if not is_remote(source)]
    return path is not None and any(root is not None and path.is_relative_to(root) for root in roots)


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


def _resolved(path: str) -> Path | None:
    """Follow a path's links; None where it can't be a path: with NUL in it, too long, links that lead in a ring."""
    try:
        return Path(path).resolve()
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
