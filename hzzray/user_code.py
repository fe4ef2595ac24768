"""What went wrong in a Python file of the user's own, in one line: where, and the cause."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

# Numba's messages are pages; they begin with which of its passes failed.
_PASS = re.compile(r"Failed in .* mode pipeline")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300


def error_summary(error: BaseException, file: str) -> str:
    """Say in which line of a file an error has its cause, if in any, and what it is: ``line 12: TypeError: …``."""
    text = _COLOUR.sub("", error.msg if isinstance(error, SyntaxError) else str(error))
    lines = [line.strip() for line in text.splitlines()]
    said = [line for line in lines if line and not _PASS.match(line)] or [""]
    cause = said[0]
    if cause.endswith(":") and len(said) > 1:
        cause = f"{cause} {said[1].removeprefix('>>> ')}"
    cause = cause if len(cause) <= _LONGEST else cause[:_LONGEST] + "…"
    cause += _meant(error)
    line = _raised(error, file) or _mentioned(text, file) or _located(error, file)
    where = f"line {line}: " if line else ""
    return where + ": ".join(part for part in (type(error).__name__, cause) if part)


def _meant(error: BaseException) -> str:
    """Name what somebody may have meant by an attribute that there isn't."""
    if not isinstance(error, AttributeError) or not error.name or error.obj is None:
        return ""
    near = get_close_matches(error.name, [name for name in dir(error.obj) if not name.startswith("_")])
    return f"; there is {', '.join(near)}" if near else ""


def _raised(error: BaseException, file: str) -> int:
    """Find the last line of a file on an error's way up; of what can't be parsed the line that can't."""
    if isinstance(error, SyntaxError):
        return error.lineno or 0
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _mentioned(text: str, file: str) -> int:
    """Find the line of a file that a compiler's message names first: the innermost."""
    name = re.escape(Path(file).name)
    found = re.search(rf'{name}(?:", line (\d+)| \((\d+)\)|:(\d+))', text)
    return int(next(group for group in found.groups() if group)) if found else 0


def _located(error: BaseException, file: str) -> int:
    """Find the line that numba has for an error."""
    place = getattr(error, "loc", None)
    return int(place.line) if place is not None and place.filename == file else 0
