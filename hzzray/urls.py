"""Places where files lie, folders or URLs: joined with paths, and shown without their secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(://[^?#\s]*)\?[^#\s]*")


def is_remote(location: str) -> bool:
    """Tell a URL from a path."""
    return "://" in location


def is_inside(location: str, sources: Sequence[str]) -> bool:
    """Tell whether a path or URL lies inside one of some sources, whatever links and dots it holds."""
    if is_remote(location):
        safe = ".." not in location.split("/")
        return safe and any(is_remote(root) and location.startswith(root.rstrip("/") + "/") for root in sources)
    try:
        path = Path(location).resolve()
    except (ValueError, OSError, RuntimeError):  # no path at all: a NUL in it, a link that leads to itself
        return False
    return any(not is_remote(root) and path.is_relative_to(Path(root).resolve()) for root in sources)


def redact(text: str) -> str:
    """Hide the login and the query (where tokens travel) of every URL in a text."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub("***@", text))


def join(source: str, path: str) -> str:
    """Put a relative path under a source, a folder or a URL whose query is kept.

    ``path`` is plain text: what a URL of the web can't hold (spaces, µ, ``%``) is percent-encoded.
    """
    if not is_remote(source):
        return str(Path(source).expanduser() / path)
    if not source.startswith(("http://", "https://")):
        return f"{source.removesuffix('/')}/{path}"  # root://host//folder: two slashes mean something
    parts = urlsplit(source)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(path)}").geturl()
