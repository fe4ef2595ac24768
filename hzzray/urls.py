"""Places where files lie, folders or URLs: joined with paths, and shown without their secrets."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, urlsplit

_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(://[^?#\s]*)\?[^#\s]*")


def redact(text: str) -> str:
    """Hide the login and the query (where tokens travel) of every URL in a text."""
    return _QUERY.sub(r"\1?***", _LOGIN.sub("***@", text))


def join(source: str, path: str) -> str:
    """Put a relative path under a source, a folder or a URL whose query is kept.

    ``path`` is plain text: what a URL of the web can't hold (spaces, µ, ``%``) is percent-encoded.
    """
    if "://" not in source:
        return str(Path(source).expanduser() / path)
    if not source.startswith(("http://", "https://")):
        return f"{source.removesuffix('/')}/{path}"  # root://host//folder: two slashes mean something
    parts = urlsplit(source)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(path)}").geturl()
