"""Baskets, read with care: whatever compression, and what is wrong with a damaged one.

A basket is a TKey header, then its compressed body: entries one after the other (big-endian), and for jagged branches
an int32 count and int32 offsets of the entries (counted from the key's start).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

import deflate

_KEY = struct.Struct(">ihiIhh")  # fNbytes, fVersion, fObjlen, fDatime, fKeylen, fCycle
_TAIL = struct.Struct(">hiiii")  # fVersion, fBufferSize, fNevBufSize, fNevBuf, fLast: end of the key, before one flag
_BLOCK_HEADER = 9  # two letters of the algorithm, its method, compressed and uncompressed size in 3 bytes each


class Body(NamedTuple):
    """A decompressed basket: ``data`` with values up to ``border``, entry offsets counted from ``-keylen``."""

    data: bytes | bytearray | memoryview
    border: int
    keylen: int


def unpack(raw: bytes | memoryview, entries: int) -> Body:
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
    data = body if len(body) == objlen else decompress(body, objlen)
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
    if algorithm == b"XZ":
        return _whole(_unxz(block, size), size)
    import cramjam  # noqa: PLC0415 (the releases use zlib; uproot needs it too)

    if algorithm == b"ZS":
        return _into(size, "ZSTD", cramjam.zstd.decompress_into, block)
    if algorithm != b"L4":
        raise ValueError(f"unknown compression {algorithm!r}")
    import xxhash  # noqa: PLC0415 (uproot needs it too)

    payload = block[8:]  # behind its checksum: the one algorithm that leaves that to ROOT
    if xxhash.xxh64(payload).digest() != block[:8]:
        raise ValueError("LZ4: wrong checksum")
    return _into(size, "LZ4", cramjam.lz4.decompress_block_into, payload)


def _unxz(block: memoryview, size: int) -> bytes:
    """Decompress no more than is promised, and one byte: what damage makes might be without an end."""
    import lzma  # noqa: PLC0415 (some builds of Python have none)

    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        data = stream.decompress(block, size + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"LZMA: {error}") from error
    if not stream.eof and len(data) <= size:
        raise ValueError("LZMA: the stream has no end")
    return data


def _into(
    size: int, name: str, inflate: Callable[[memoryview, bytearray], int], block: memoryview
) -> bytes | bytearray:
    """Decompress with one of cramjam's functions, to as many bytes as are promised and no more."""
    data = bytearray(size)
    try:
        came = inflate(block, data)
    except Exception as error:  # of which the library has several
        raise ValueError(f"{name}: {error}") from error
    return _whole(data[:came] if came != size else data, size)


def _whole(data: bytes | bytearray, size: int) -> bytes | bytearray:
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes came out of a block where {size} were promised")
    return data
