"""A tree's record as ROOT writes it today, without uproot: it takes a millisecond where uproot takes tens.

What branches hold isn't told here but by uproot, from the first file that has such ones (``layout``); and all of a file
is left to it where anything is of another form than is known here. Big-endian throughout; see ROOT's TDirectoryFile,
TKey, TTree, TBranch, TLeaf and TBufferFile.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.data.baskets import decompress
from hzzray.data.storage import ByteSource

#: Bytes at a file's start that hold its header, and usually its root directory.
START = 1024

_COUNTED = 0x40000000  # of a byte count
_NEW_CLASS = 0xFFFFFFFF
_OFFSET = 2  # of references to places in a record
_REFERENCED = 1 << 4  # a TObject's bit: two bytes more

# What a leaf may be to be told from others by what is kept of it here.
_LEAVES = re.compile(r"TLeaf[OBSILFD]")
_CLASSES = re.compile(r"(?:vector|ROOT::VecOps::RVec)<(?:float|double|bool|(?:unsigned )?(?:char|short|int|long))>")


class Kind(NamedTuple):
    """All that decides what a branch holds: equal for branches that hold the same."""

    branch: str
    leaf: str
    title: str
    numbers: tuple[int, ...]
    is_counted: bool
    holds: str = ""
    types: tuple[int, ...] = ()


class Stored(NamedTuple):
    """A branch's kind, its baskets (as ``layout.Branch`` has them), and whether compression has not paid."""

    kind: Kind
    starts: NDArray[np.int64]
    seeks: NDArray[np.int64]
    sizes: NDArray[np.int64]
    is_plain: bool


class TreeRecord(NamedTuple):
    """A tree's record: its bytes as they lie in the file, its entries, all branches' names, and some of these."""

    raw: bytes
    entries: int
    names: tuple[str, ...]
    branches: dict[str, Stored]


class _UnknownError(Exception):
    """Something has a form that isn't known here."""


#: What goes wrong with bytes that aren't what they are read as.
UNKNOWN = (_UnknownError, struct.error, IndexError, ValueError)


def read_record(source: ByteSource, tree: str, names: tuple[str, ...]) -> TreeRecord | None:
    """Find a tree's record and the branches of these names in it; None where uproot must. Raises as ``source`` does."""
    try:
        seek, length = _find(source, tree)
        (raw,) = source.read([(seek, length)])
        return Parser(raw).tree(names)
    except UNKNOWN:
        return None


def _find(source: ByteSource, tree: str) -> tuple[int, int]:
    """Go by the header and the root directory's list of keys to a tree's newest one; where it is, and its bytes."""
    (start,) = source.read([(0, min(START, source.size))])
    big = struct.unpack_from(">i", start, 4)[0] >= 1_000_000
    begin = struct.unpack_from(">i", start, 8)[0]
    name_bytes = struct.unpack_from(">i", start, 36 if big else 28)[0]
    at = begin + name_bytes
    version, _, _, keys_bytes = struct.unpack_from(">hIIi", start, at)
    keys_seek = struct.unpack_from(">qqq" if version > 1000 else ">iii", start, at + 18)[2]
    if not 0 < keys_seek <= source.size - keys_bytes or keys_bytes < 0:
        raise _UnknownError
    (listed,) = source.read([(keys_seek, keys_bytes)])
    at = struct.unpack_from(">h", listed, 14)[0]
    (number,) = struct.unpack_from(">i", listed, at)
    at += 4
    found: dict[int, tuple[int, int]] = {}
    for _ in range(number):
        nbytes, version, _, _, keylen, cycle = struct.unpack_from(">ihiIhh", listed, at)
        seek = struct.unpack_from(">q" if version > 1000 else ">i", listed, at + 18)[0]
        kind, place = _string(listed, at + (34 if version > 1000 else 26))
        name, _ = _string(listed, place)
        at += keylen
        if name == tree:
            if kind != "TTree" or cycle in found:
                raise _UnknownError
            found[cycle] = seek, nbytes
    if not found:
        raise _UnknownError
    seek, length = found[max(found)]
    if not 0 < seek <= source.size - length or length <= 0:
        raise _UnknownError
    return seek, length


def _string(data: bytes, at: int) -> tuple[str, int]:
    """Read a TString; returns it, and where it ends."""
    length = data[at]
    at += 1
    if length == 255:
        (length,) = struct.unpack_from(">i", data, at)
        at += 4
    if not 0 <= length <= len(data) - at:
        raise _UnknownError
    return data[at : at + length].decode(), at + length


class Parser:
    """Goes through one record. Each method reads from a place, and those that read a thing return where it ends."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        nbytes, _, objlen, _, self._keylen, _ = struct.unpack_from(">ihiIhh", raw)
        body = memoryview(raw)[self._keylen :]
        if nbytes != len(raw) or not 0 < objlen < 1 << 31:
            raise _UnknownError
        self._data = bytes(body) if len(body) == objlen else bytes(decompress(body, objlen))

    def tree(self, names: tuple[str, ...]) -> TreeRecord:
        """Read TTree, version 20."""
        at, _ = self._object(0, 20)
        for _ in range(4):  # TNamed, TAttLine, TAttFill, TAttMarker
            at = self._skip(at)
        (entries,) = struct.unpack_from(">q", self._data, at)
        (ranges,) = struct.unpack_from(">i", self._data, at + 64)
        at += 68 + 6 * 8
        if not 0 <= ranges < len(self._data):
            raise _UnknownError
        at += 2 * (1 + 8 * ranges)
        at = self._skip(at)  # fIOFeatures
        at, number = self._array(at)
        found: dict[str, Stored] = {}
        listed = []
        wanted = frozenset(names)
        for _ in range(number):
            at, kind, end = self._any(at)
            name = self._branch_name(at, kind)
            listed.append(name)
            if name in wanted:
                found[name] = self._branch(at, kind, end)
            at = end
        if len(set(listed)) != len(listed):
            raise _UnknownError
        return TreeRecord(self._raw, entries, tuple(listed), {name: found[name] for name in names if name in found})

    def _object(self, at: int, version: int) -> tuple[int, int]:
        """Read an object's byte count and version, which must be this; returns where it goes on, and where it ends."""
        count, found = struct.unpack_from(">IH", self._data, at)
        end = at + 4 + (count & ~_COUNTED)
        if not count & _COUNTED or found != version or end > len(self._data):
            raise _UnknownError
        return at + 6, end

    def _skip(self, at: int) -> int:
        (count,) = struct.unpack_from(">I", self._data, at)
        if not count & _COUNTED:
            raise _UnknownError
        return int(at + 4 + (count & ~_COUNTED))

    def _array(self, at: int) -> tuple[int, int]:
        """Read the head of a TObjArray; returns where its objects begin, and how many they are."""
        at, _ = self._object(at, 3)
        at = self._plain_object(at)
        _, at = _string(self._data, at)
        number, _ = struct.unpack_from(">ii", self._data, at)
        if not 0 <= number <= len(self._data):
            raise _UnknownError
        return at + 8, number

    def _plain_object(self, at: int) -> int:
        """Skip a TObject."""
        _, _, bits = struct.unpack_from(">hII", self._data, at)
        return at + 10 + (2 if bits & _REFERENCED else 0)

    def _any(self, at: int) -> tuple[int, str, int]:
        """Read the head of an object of any class; returns where it begins, its class, where it ends."""
        count, tag = struct.unpack_from(">II", self._data, at)
        end = at + 4 + (count & ~_COUNTED)
        if not count & _COUNTED or count == _NEW_CLASS or end > len(self._data):
            raise _UnknownError
        if tag == _NEW_CLASS:
            name, begin = self._class(at + 8)
            return begin, name, end
        place = (tag & 0x7FFFFFFF) - _OFFSET - self._keylen
        if not tag >> 31 or place < 0 or struct.unpack_from(">I", self._data, place)[0] != _NEW_CLASS:
            raise _UnknownError
        return at + 8, self._class(place + 4)[0], end

    def _class(self, at: int) -> tuple[str, int]:
        stop = self._data.index(0, at, at + 128)
        return self._data[at:stop].decode(), stop + 1

    def _named(self, at: int) -> tuple[str, str, int]:
        """Read a TNamed: name and title."""
        at, end = self._object(at, 1)
        name, at = _string(self._data, self._plain_object(at))
        title, at = _string(self._data, at)
        return name, title, end

    def _base(self, at: int, kind: str) -> tuple[int, int]:
        """Go into a branch, to its TBranch; returns where that begins, and where what is more than that does."""
        if kind == "TBranchElement":
            at, _ = self._object(at, 10)
        elif kind != "TBranch":
            raise _UnknownError
        return self._object(at, 13)

    def _branch_name(self, at: int, kind: str) -> str:
        if kind not in ("TBranch", "TBranchElement"):
            raise _UnknownError
        return self._named(self._base(at, kind)[0])[0]

    def _branch(self, at: int, kind: str, end: int) -> Stored:
        """Read a branch, all of whose baskets are stored apart."""
        data = self._data
        at, more = self._base(at, kind)
        _, _, at = self._named(at)
        at = self._skip(at)  # TAttFill
        _, _, _, written, _ = struct.unpack_from(">iiiiq", data, at)
        at = self._skip(at + 24)  # fIOFeatures
        _, most, _, entries, _, total, zipped = struct.unpack_from(">iIiqqqq", data, at)
        at += 44
        _, branches = self._array(at)
        at = self._skip(at)
        if branches:
            raise _UnknownError
        place, leaves = self._array(at)
        at = self._skip(at)
        at = self._skip(at)  # fBaskets
        arrays = []
        for size in (4, 8, 8):
            if size * most > len(data) - at or data[at] not in (0, 1):
                raise _UnknownError
            arrays.append(np.frombuffer(data, f">i{size}", most, at + 1).astype(np.int64))
            at += 1 + size * most
        sizes, starts, seeks = arrays
        number = min(written, next(iter(np.flatnonzero(seeks == 0).tolist()), most))
        if leaves != 1 or number >= most or number < 0 or (starts[number] if number else 0) != entries:
            raise _UnknownError
        first = starts[: number + 1].copy()
        if not number:
            first[:] = 0
        _, at = _string(data, at)  # fFileName
        if at != more:
            raise _UnknownError
        leaf = self._leaf(place, kind)
        if kind == "TBranchElement":
            holds, at = _string(data, at)
            _, at = _string(data, at)
            clones, at = _string(data, at)
            _, version, _, type_, streamed, _ = struct.unpack_from(">IHiiii", data, at)
            if not _CLASSES.fullmatch(holds) or clones:
                raise _UnknownError
            leaf = leaf._replace(holds=holds, types=(version, type_, streamed))
        elif more != end:
            raise _UnknownError
        return Stored(leaf, first, seeks[:number], sizes[:number], zipped >= total)

    def _leaf(self, at: int, branch: str) -> Kind:
        at, kind, _ = self._any(at)
        if not (kind == "TLeafElement" if branch == "TBranchElement" else _LEAVES.fullmatch(kind)):
            raise _UnknownError
        at, _ = self._object(at, 1)
        at, end = self._object(at, 2)
        _, title, at = self._named(at)
        length, width, offset, ranged, unsigned = struct.unpack_from(">iiiBB", self._data, at)
        (counter,) = struct.unpack_from(">I", self._data, at + 14)
        types = struct.unpack_from(">ii", self._data, end) if kind == "TLeafElement" else ()
        return Kind(branch, kind, title, (length, width, offset, ranged, unsigned, *types), counter != 0)
