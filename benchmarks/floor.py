"""The floor under every reader: decompress the baskets that the selection needs, and nothing else."""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import uproot
from task import BRANCHES, TREE, Outcome

#: A compressed block begins with its algorithm (2 bytes), method (1), and two sizes of 3 bytes each.
BLOCK_HEADER = 9


@cache
def _streams(path: Path) -> tuple[int, list[tuple[bytes, int]]]:
    """Events, and for each compressed block its zlib stream and inflated size.

    A basket begins with ROOT's TKey (io/doc/TFile/datarecord.md), whose length stands at byte 14.
    """
    with uproot.open(path) as file, path.open("rb") as raw:
        tree = file[TREE]
        data = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
        streams = []
        for name in BRANCHES:
            branch = tree[name]
            for index in range(branch.num_baskets):
                start, size = (
                    int(branch.member("fBasketSeek")[index]),
                    int(branch.member("fBasketBytes")[index]),
                )
                key_size = int.from_bytes(data[start + 14 : start + 16], "big")
                streams += _blocks(data[start + key_size : start + size])
        return tree.num_entries, streams


def _blocks(basket: bytes) -> list[tuple[bytes, int]]:
    """Cut a basket into its compressed blocks; raises ValueError where they aren't zlib."""
    found = []
    while basket:
        if basket[:2] != b"ZL":
            raise ValueError(f"a basket is not compressed with zlib: {basket[:2]!r}")
        packed, unpacked = (int.from_bytes(basket[at : at + 3], "little") for at in (3, 6))
        end = BLOCK_HEADER + packed
        found.append((basket[BLOCK_HEADER:end], unpacked))
        basket = basket[end:]
    return found


def _inflate(path: Path, decompress: Callable[[bytes, int], object]) -> Outcome:
    events, streams = _streams(path)
    for stream, size in streams:
        decompress(stream, size)
    return Outcome(events)


def with_zlib(path: Path) -> Outcome:
    """Python's zlib."""
    return _inflate(path, lambda stream, size: zlib.decompress(stream, 15, size))


def with_isal(path: Path) -> Outcome:
    """ISA-L."""
    from isal import isal_zlib  # noqa: PLC0415 (the other decoders do without)

    return _inflate(path, lambda stream, size: isal_zlib.decompress(stream, 15, size))


def with_libdeflate(path: Path) -> Outcome:
    """libdeflate."""
    import deflate  # noqa: PLC0415 (the other decoders do without)

    return _inflate(path, deflate.zlib_decompress)
