"""Baskets, read with care: whatever compression, and what is wrong with a damaged one.

A basket is a TKey header, then its compressed body: entries one after the other (big-endian), and for jagged branches
an int32 count and int32 offsets of the entries (counted from the key's start).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import deflate

_KEY = struct.Struct(">ihiIhh")  # fNbytes, fVersion, fObjlen, fDatime, fKeylen, fCycle
_TAIL = struct.Struct(">hiiii")  # fVersion, fBufferSize, fNevBufSize, fNevBuf, fLast: end of the key, before one flag
_BLOCK_HEADER = 9  # two letters of the algorithm, its method, compressed and uncompressed size in 3 bytes each


class Body(NamedTuple):
    """A decompressed basket: ``data`` with values up to ``border``, entry offsets counted from ``-keylen``."""

    data: bytes | bytearray
    border: int
    keylen: int


def unpack(raw: bytes, entries: int) -> Body:
    """Decompress a basket that holds ``entries`` entries; raises ValueError where it isn't one."""
    if len(raw) < _KEY.size:
        raise ValueError("not a basket")
    nbytes, _, objlen, _, keylen, _ = _KEY.unpack_from(raw)
    if nbytes != len(raw) or not _KEY.size + _TAIL.size < keylen <= nbytes:
        raise ValueError("not a basket")
    _, _, _, held, last = _TAIL.unpack_from(raw, keylen - _TAIL.size - 1)
    if held != entries or not 0 <= last - keylen <= objlen:
        raise ValueError(f"it says {held} entries where {entries} belong")
    body = memoryview(raw)[keylen:]
    data = bytes(body) if len(body) == objlen else decompress(body, objlen)
    return Body(data, last - keylen, keylen)


def decompress(body: memoryview, size: int) -> bytes | bytearray:
    """Join the blocks of a compressed record, each at most 16 MB; raises ValueError where one is damaged."""
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
