"""A ROOT file's header: what a file is told to be whole by, wherever its bytes are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from hzzray.errors import DataError

#: Bytes at a file's start that hold its header.
HEADER = 128

_SHORTEST = 24  # up to the place of the free list, which says whether the file was closed


class Header(NamedTuple):
    """What a header says: where the file ends and where its free list lies (bytes), and its UUID as 32 digits."""

    end: int
    free: int
    uuid: str


def read_header(head: bytes, size: int) -> Header:
    """Read the header of a file of ``size`` bytes; ``head`` is its first HEADER bytes.

    Big-endian: "root", ``fVersion`` and ``fBEGIN`` (int32), ``fEND`` and ``fSeekFree`` (int32, or int64 from version
    1 000 000 on) and so on; see ROOT's class TFile. More bytes than ``fEND`` are no fault: ROOT reads such files too,
    an update that was broken off leaves them.

    Raises DataError, which leaves it to the caller to name the file, for what isn't a ROOT file, is shorter than it
    says, or was never closed.
    """
    if len(head) < _SHORTEST or head[:4] != b"root":
        raise DataError(f"not a ROOT file (it begins with {bytes(head[:4])!r})")
    big = int.from_bytes(head[4:8], "big", signed=True) >= 1_000_000
    width = 8 if big else 4
    end, free = (int.from_bytes(head[at : at + width], "big", signed=True) for at in (12, 12 + width))
    if end > size:
        raise DataError(f"truncated: {size} bytes, {end} by its header")
    if end < size and free == 0:  # what closes a file writes its free list
        raise DataError(f"never closed: {size} bytes, {end} by its header: its writer was ended, or still writes")
    # Between the free list's place and the UUID: its size, number, units, compression, info record, UUID's version.
    return Header(end, free, (head[59:75] if big else head[47:63]).hex())


def header_of(path: Path) -> Header:
    """Read the header of a file on this machine; raises OSError, and DataError as above."""
    with path.open("rb") as file:
        return read_header(file.read(HEADER), os.fstat(file.fileno()).st_size)
