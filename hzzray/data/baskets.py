"""Baskets to columns: decompress with libdeflate, then copy the values out of the raw bytes, with nothing in between.

A basket is a TKey header, then its compressed body: entries one after the other (big-endian), and for jagged branches
an int32 count and int32 offsets of the entries (counted from the key's start).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import deflate
import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from hzzray.physics.jit import entry

_KEY = struct.Struct(">ihiIhh")  # fNbytes, fVersion, fObjlen, fDatime, fKeylen, fCycle
_TAIL = struct.Struct(">hiiii")  # fVersion, fBufferSize, fNevBufSize, fNevBuf, fLast: end of the key, before one flag
_TABLE = struct.Struct(">ii")  # number of offsets, and the first of them
_BLOCK_HEADER = 9  # two letters of the algorithm, its method, compressed and uncompressed size in 3 bytes each

UNEQUAL = "has another number of leptons than the branch of pt"


class Body:
    """A decompressed basket: ``data`` (uint8) with values up to ``border``, entry offsets counted from ``-keylen``."""

    __slots__ = ("_raw", "border", "data", "entries", "first", "keylen")

    def __init__(self, data: bytes | bytearray, border: int, keylen: int, first: int, entries: int) -> None:
        self._raw = data
        self.data = np.frombuffer(data, np.uint8)
        self.data.flags.writeable = False  # one kind of array, one compiled kernel
        self.border = border
        self.keylen = keylen
        self.first = first
        self.entries = entries

    @property
    def has_offsets(self) -> bool:
        """Tell whether nothing but offsets of all entries follows the values, the first of them at the start.

        The border stands in the key, which has no checksum: this is what a wrong one is told by.
        """
        size = len(self._raw) - self.border
        if size < _TABLE.size:
            return False
        count, start = _TABLE.unpack_from(self._raw, self.border)
        return self.entries <= count <= self.entries + 1 and size == 4 * (1 + count) and bool(start == self.keylen)


def unpack(raw: bytes, first: int, entries: int) -> Body:
    """Decompress a basket that holds ``entries`` entries from ``first`` on; raises ValueError where it isn't one."""
    if len(raw) < _KEY.size:
        raise ValueError("not a basket")
    nbytes, _, objlen, _, keylen, _ = _KEY.unpack_from(raw)
    if nbytes != len(raw) or not _KEY.size + _TAIL.size < keylen <= nbytes:
        raise ValueError("not a basket")
    _, _, _, held, last = _TAIL.unpack_from(raw, keylen - _TAIL.size - 1)
    if held != entries or not 0 <= last - keylen <= objlen:
        raise ValueError(f"it says {held} entries where {entries} belong")
    body = memoryview(raw)[keylen:]
    data = bytes(body) if len(body) == objlen else _decompress(body, objlen)
    return Body(data, last - keylen, keylen, first, entries)


def _decompress(body: memoryview, size: int) -> bytes | bytearray:
    """Join the blocks of a compressed record, each at most 16 MB; raises ValueError where one is damaged."""
    head = bytes(body[:_BLOCK_HEADER])
    if head[:2] == b"ZL" and int.from_bytes(head[3:], "little") == (size << 24) + len(body) - _BLOCK_HEADER:
        return _block(b"ZL", body[_BLOCK_HEADER:], size)  # nearly always: one block, of zlib, of both sizes
    blocks = []
    at = 0
    done = 0
    while done < size:
        head = bytes(body[at : at + _BLOCK_HEADER])
        if len(head) < _BLOCK_HEADER:
            raise ValueError("a compressed block is missing")
        packed = int.from_bytes(head[3:6], "little")
        plain = int.from_bytes(head[6:9], "little")
        block = body[at + _BLOCK_HEADER : at + _BLOCK_HEADER + packed]
        if len(block) != packed or plain == 0:
            raise ValueError("a compressed block is cut short")
        blocks.append(_block(head[:2], block, plain))
        at += _BLOCK_HEADER + packed
        done += plain
    if done != size:
        raise ValueError(f"{done} bytes came out where {size} were promised")
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _block(algorithm: bytes, block: memoryview, size: int) -> bytes | bytearray:
    if algorithm == b"ZL":
        try:
            inflated = deflate.zlib_decompress(block, size)  # a bytearray: as good, and no copy is made
        except deflate.DeflateError as error:
            raise ValueError(f"zlib: {error}") from error
        return _whole(inflated, size)
    import uproot  # noqa: PLC0415 (the releases use zlib; a cold start needn't wait for uproot)

    other = {b"XZ": uproot.LZMA, b"L4": uproot.LZ4, b"ZS": uproot.ZSTD}.get(algorithm)
    if other is None:
        raise ValueError(f"unknown compression {algorithm!r}")
    payload = bytes(block)
    if algorithm == b"L4":  # the one algorithm that leaves its checksum to ROOT
        import xxhash  # noqa: PLC0415 (uproot needs it too)

        payload = payload[8:]
        if xxhash.xxh64(payload).digest() != block[:8]:
            raise ValueError("LZ4: wrong checksum")
    try:
        data = bytes(other(1).decompress(payload, size))
    except Exception as error:  # each library has its own
        raise ValueError(f"{other.__name__}: {error}") from error
    return _whole(data, size)


def _whole(data: bytes | bytearray, size: int) -> bytes | bytearray:
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes came out of a block where {size} were promised")
    return data


def _load_be32(_context: Any, data: Any, at: Any) -> Any:  # noqa: ANN401 (numba's and LLVM's own types)
    """Generate one load and one swap, which LLVM can vectorise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        array = context.make_array(signature.args[0])(context, builder, args[0])
        first = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        word = builder.bitcast(builder.gep(first, [args[1]]), ir.IntType(32).as_pointer())
        return builder.bswap(builder.load(word, align=1))

    return nb.types.uint32(data, at), generate


#: Loads a big-endian uint32 from any byte of an array.
_be32: Any = intrinsic(_load_be32)


# The copying kernels follow the entries' offsets, each entry's end being the next one's start, and check that they
# stay inside the values before anything is copied. They are written out, not shared, as a call costs as much as a copy.


@entry
def _offsets(
    data: NDArray[np.uint8],
    border: int,
    keylen: int,
    entries: int,
    header: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
) -> int:
    """Continue ``offsets`` at ``event`` by entries first to last; returns -1, or the entry that makes no sense."""
    table = border + 4
    total = offsets[event]
    stop: Any = np.int64(_be32(data, table + 4 * first)) - keylen
    for i in range(first, last):
        start = stop
        stop = np.int64(_be32(data, table + 4 * i + 4)) - keylen if i + 1 < entries else border
        length = stop - start - header
        if start < 0 or stop > border or length < 0 or length % 4:
            return i
        total += length // 4
        event += 1
        offsets[event] = total
    return -1


@entry
def _words(
    data: NDArray[np.uint8],
    border: int,
    keylen: int,
    entries: int,
    header: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
    out: NDArray[np.uint32],
) -> int:
    """Copy 32-bit values of entries first to last; returns -1, or the first entry whose length differs."""
    table = border + 4
    at = offsets[event]
    stop: Any = np.int64(_be32(data, table + 4 * first)) - keylen
    for i in range(first, last):
        start = stop
        stop = np.int64(_be32(data, table + 4 * i + 4)) - keylen if i + 1 < entries else border
        event += 1
        following = offsets[event]
        n = following - at
        if start < 0 or stop > border or stop - start - header != 4 * n:
            return i
        start += header
        if n == 4:  # the usual number: one vector load, shuffle and store
            out[at] = _be32(data, start)
            out[at + 1] = _be32(data, start + 4)
            out[at + 2] = _be32(data, start + 8)
            out[at + 3] = _be32(data, start + 12)
        else:
            for k in range(n):
                out[at + k] = _be32(data, start + 4 * k)
        at = following
    return -1


@entry
def _flags(
    data: NDArray[np.uint8],
    border: int,
    keylen: int,
    entries: int,
    header: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
    out: NDArray[np.uint8],
) -> int:
    """Copy one-byte values of entries first to last; returns -1, or the first entry whose length differs."""
    table = border + 4
    at = offsets[event]
    stop: Any = np.int64(_be32(data, table + 4 * first)) - keylen
    for i in range(first, last):
        start = stop
        stop = np.int64(_be32(data, table + 4 * i + 4)) - keylen if i + 1 < entries else border
        event += 1
        following = offsets[event]
        if start < 0 or stop > border or stop - start - header != following - at:
            return i
        for k in range(following - at):
            out[at + k] = data[start + header + k]
        at = following
    return -1


def copy_offsets(body: Body, header: int, first: int, last: int, offsets: NDArray[np.int64], event: int) -> None:
    """Continue the lepton offsets (int64) after ``event`` by file entries first to last, of 32-bit values.

    Raises ValueError on a damaged basket.
    """
    shape = body.data, body.border, body.keylen, body.entries, header
    bad = _offsets(*shape, first - body.first, last - body.first, offsets, event)
    if bad >= 0:
        raise ValueError(f"entry {body.first + bad} makes no sense")


def copy_values(
    body: Body,
    header: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
    out: NDArray[np.uint32] | NDArray[np.uint8],
) -> None:
    """Copy file entries first to last to where ``offsets`` from ``event`` on put them in ``out``, flat.

    Values have the size of out's dtype. Raises ValueError where an entry has another length than the offsets say.
    """
    copy: Callable[..., int] = _flags if out.dtype == np.uint8 else _words
    shape = body.data, body.border, body.keylen, body.entries, header
    bad = copy(*shape, first - body.first, last - body.first, offsets, event, out)
    if bad >= 0:
        raise ValueError(f"entry {body.first + bad} {UNEQUAL}")


def warm_up() -> None:
    """Compile the copying kernels, or load them from numba's cache, by copying nothing."""
    data, offsets = np.zeros(4, np.uint8), np.zeros(1, np.int64)
    data.flags.writeable = False
    shape = data, 0, 0, 0, 0, 0, 0, offsets, 0
    _offsets(*shape)
    _words(*shape, np.empty(0, np.uint32))
    _flags(*shape, np.empty(0, np.uint8))


def scalars(body: Body, dtype: str, first: int, last: int) -> NDArray[np.generic]:
    """View file entries first to last of a branch with one value an entry, as stored."""
    values = body.data[: body.border].view(dtype)
    if len(values) != body.entries:
        raise ValueError(f"{len(values)} values for {body.entries} entries")
    return values[first - body.first : last - body.first]
