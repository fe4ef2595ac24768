"""Files that others read too: each is written whole or not at all, and none is followed out of its folder."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hzzray.errors import HzzrayError


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
