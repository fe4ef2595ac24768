"""A run's files: each is written whole or not at all. And the first of them, ``result.json``."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from hzzray.errors import HzzrayError, UsageError
from hzzray.result import Result

#: A result of a hundred times as many samples and bins as any release has is smaller [bytes].
RESULT_BYTES = 32 * 1024**2


class OutputError(HzzrayError):
    """A file of the run that can't be written or read."""


@contextmanager
def open_own(path: Path) -> Iterator[BinaryIO]:
    """Open a file of a run's folder to read: one that lies there itself, whoever may have put what into the folder.

    Raises FileNotFoundError where there is none, OutputError naming it for anything else: a link, which could lead out
    of the folder, a pipe, which would be waited for, a folder, a file that may not be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "a link: none is followed out of a run's folder" if error.errno == errno.ELOOP else error.strerror
        raise OutputError(f"{path}: {why}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OutputError(f"{path}: not a file")
    with os.fdopen(handle, "rb") as file:
        yield file


def read_own(path: Path, most: int) -> bytes:
    """Read a file of a run's folder whole, as ``open_own`` does; raises OutputError where it has more bytes."""
    try:
        with open_own(path) as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    if len(content) > most:
        raise OutputError(f"{path}: too large: more than {most / 2**20:g} MiB")
    return content


def write_whole(path: Path, write: Callable[[Path], object], mode: int = 0o644) -> Path:
    """Write a file under another name in its folder, then move it into place; raises OutputError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
        os.close(handle)
        try:
            write(Path(part))
            Path(part).chmod(mode)
            Path(part).replace(path)
        finally:
            Path(part).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error
    return path


def save_json(result: Result, folder: Path) -> Path:
    """Write ``result.json``."""
    text = result.model_dump_json(by_alias=True, indent=1) + "\n"
    return write_whole(folder / "result.json", lambda path: path.write_text(text, encoding="utf-8"))


def load_json(folder: Path) -> Result:
    """Read ``result.json``; raises UsageError where there is none, OutputError where it can't be understood."""
    path = folder / "result.json"
    try:
        return Result.model_validate_json(read_own(path, RESULT_BYTES))
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: no such run, or one that has no result yet") from error
    except ValidationError as error:
        raise OutputError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
