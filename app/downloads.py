"""A run's files, for whoever asks for them. No Streamlit here."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from hzzray.errors import UsageError
from hzzray.files import OutputError, read_own
from hzzray.runs.result import Result
from hzzray.runs.templates import load_templates, save_root

#: What is sent to a browser is in memory meanwhile: no file is larger [bytes]. A picture is shown, too.
FILE_BYTES, PICTURE_BYTES = 256 * 1024**2, 16 * 1024**2

_MADE = (".root", ".png", ".pdf")
_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = 10_000  # of a picture's side


def is_there(path: Path) -> bool:
    """Tell whether a run has a file: not a link to one, nor what is none."""
    return path.is_file() and not path.is_symlink()


def offers(path: Path) -> bool:
    """Tell whether a file can be had: it is there, or can be made and nothing else has its name."""
    return is_there(path) or (path.suffix in _MADE and not path.exists() and not path.is_symlink())


def content(path: Path, result: Result) -> Callable[[], bytes]:
    """Read a run's file when it is asked for, or make it of the result where the run hasn't yet.

    What is returned raises OutputError for a file that is none of the run's own, or too large.
    """

    def read() -> bytes:
        try:
            return read_own(path, FILE_BYTES)
        except FileNotFoundError:
            return _made(path, result)

    return read


def _made(path: Path, result: Result) -> bytes:
    name = path.name
    with tempfile.TemporaryDirectory() as folder:
        if name.endswith(".root"):
            try:
                found = load_templates(result, path.parent)
            except UsageError:  # there are none yet
                found = {}
            save_root(result, found, Path(folder))
        elif name.endswith((".png", ".pdf")):
            from hzzray.report.plotting import save  # noqa: PLC0415 (matplotlib: only where there is no picture yet)

            save(result, Path(folder))
        else:
            raise OutputError(f"{name}: the run has no such file")
        return (Path(folder) / name).read_bytes()


def picture(path: Path) -> bytes:
    """Read a PNG file; raises OutputError for what isn't one, or more than a page should hold."""
    try:
        read = read_own(path, PICTURE_BYTES)
    except FileNotFoundError as error:
        raise OutputError(f"{path}: it has gone") from error
    if not read.startswith(_PNG) or len(read) < 24 or read[12:16] != b"IHDR":
        raise OutputError(f"{path}: not a picture")
    if max(struct.unpack(">II", read[16:24])) > _PIXELS:
        raise OutputError(f"{path}: a picture of more than {_PIXELS} pixels a side")
    return read
