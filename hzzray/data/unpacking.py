"""Baskets to columns: decompress with libdeflate, then copy the values out of the raw bytes, with nothing in between.

What compiled code does here is the usual case: one block of zlib, or none. All else is left to ``baskets``: other
compressions, damage, and everything where the deflate package doesn't show libdeflate's functions.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache
from typing import Any, NamedTuple

import deflate
import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from hzzray.data.baskets import Body, unpack
from hzzray.physics.jit import entry, kernel, one_at_a_time, without_extensions

UNEQUAL = "has another number of values than branch"

# What stopped a copying kernel at a basket.
_NOTHING, _UNUSUAL, _MISFIT, _CROWDED, _SENSELESS = range(5)

# Where an unpacked basket's kernel notes: the end of its values, its key's length, and all its bytes.
_BORDER, _KEYLEN, _SIZE = range(3)

# Room for most baskets; pages that none fills are never made.
_ROOM = 1 << 20

_KEY = 37  # bytes of a basket's key at least: 18 of any key, then its counts, and a flag
_NO_OFFSETS = 80  # what is added to the flag where offsets are left out; see TBasket::Streamer


class BasketError(ValueError):
    """One basket of a branch is damaged; ``number`` says which."""

    def __init__(self, number: int, reason: object) -> None:
        super().__init__(reason)
        self.number = number


class OffsetsError(BasketError):
    """A basket is stored without its entries' offsets (``kGenerateOffsetMap``): the counter's branch tells lengths."""


class Baskets(NamedTuple):
    """Baskets of one branch in a row: ``numbers``, the entries at their ``borders`` (int64, shape (baskets + 1,)).

    Their compressed bytes are in ``raw`` (uint8) at ``places`` (int64, shape (baskets, 2): from, to); a place of (0, 0)
    is that of a basket which isn't in there.
    """

    numbers: list[int]
    borders: NDArray[np.int64]
    raw: NDArray[np.uint8]
    places: NDArray[np.int64]


# Three instructions that Python has no words for.


def _load_be32(_context: Any, data: Any, at: Any) -> Any:  # noqa: ANN401 (numba's and LLVM's own types)
    """Generate one load and one swap, which LLVM can vectorise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        word = builder.bitcast(_byte(context, builder, signature.args[0], *args), ir.IntType(32).as_pointer())
        return builder.bswap(builder.load(word, align=1))

    return nb.types.uint32(data, at), generate


def _copy_bytes(_context: Any, raw: Any, at: Any, data: Any, size: Any) -> Any:  # noqa: ANN401
    """Generate a copy of so many bytes of an array, from one of them on, to the start of another."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        source, start, into, length = args
        first = _byte(context, builder, signature.args[0], source, start)
        goal = _byte(context, builder, signature.args[2], into, ir.Constant(ir.IntType(64), 0))
        cgutils.raw_memcpy(builder, goal, first, length, 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return nb.types.void(raw, at, data, size), generate


def _call_inflate(
    _context: Any,  # noqa: ANN401
    _address: Any,  # noqa: ANN401
    _state: Any,  # noqa: ANN401
    packed: Any,  # noqa: ANN401
    _at: Any,  # noqa: ANN401
    _length: Any,  # noqa: ANN401
    plain: Any,  # noqa: ANN401
    _size: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Generate a call of libdeflate_zlib_decompress; 0 says that exactly as many bytes came out as were asked for.

    Given are its address and state, the compressed array, where in it and how many bytes, the plain array, how many.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
        where, own, source, start, length, into, room = args
        pointer, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [word, pointer, word, pointer, word, word])
        call = builder.inttoptr(where, kind.as_pointer())
        zero = ir.Constant(word, 0)
        first = _byte(context, builder, signature.args[2], source, start)
        goal = _byte(context, builder, signature.args[5], into, zero)
        return builder.call(call, [own, first, length, goal, room, zero])

    word = nb.types.int64
    return nb.types.int32(word, word, packed, word, word, plain, word), generate


def _byte(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:  # noqa: ANN401
    """Generate the address of one byte of an array."""
    first = builder.bitcast(context.make_array(kind)(context, builder, array).data, ir.IntType(8).as_pointer())
    return builder.gep(first, [at])


#: Loads a big-endian uint32 from any byte of an array.
_be32: Any = intrinsic(_load_be32)
_inflate: Any = intrinsic(_call_inflate)
_move: Any = intrinsic(_copy_bytes)


@kernel
def _unpack(  # noqa: PLR0911 (what it isn't sure of it leaves)
    raw: NDArray[np.uint8],
    start: int,
    stop: int,
    entries: int,
    library: int,
    state: int,
    data: NDArray[np.uint8],
    shape: NDArray[np.int64],
) -> bool:
    """Decompress a basket of the usual kind that has room in ``data``; returns whether it was one."""
    if stop - start < _KEY:
        return False
    keylen = np.int64(_be32(raw, start + 14)) >> 16
    size = np.int64(_be32(raw, start + 6))
    body = start + keylen
    if (
        np.int64(_be32(raw, start)) != stop - start
        or not _KEY <= keylen <= min(stop - start, 32767)
        or size > len(data)
    ):
        return False
    border = np.int64(_be32(raw, body - 5)) - keylen
    if np.int64(_be32(raw, body - 9)) != entries or not 0 <= border <= size:
        return False
    shape[_BORDER], shape[_KEYLEN], shape[_SIZE] = border, keylen, size
    packed = stop - body
    if packed == size:
        _move(raw, body, data, size)
        return True
    packed -= 9  # the block's header: algorithm, method, and both sizes in three bytes each
    if library == 0 or packed < 0 or raw[body] != ord("Z") or raw[body + 1] != ord("L"):
        return False
    for i in range(3):
        if raw[body + 3 + i] != (packed >> 8 * i) & 255 or raw[body + 6 + i] != (size >> 8 * i) & 255:
            return False
    if packed >> 24 or size >> 24:
        return False
    return bool(_inflate(library, state, raw, body + 9, packed, data, size) == 0)


@kernel
def _fits(data: NDArray[np.uint8], shape: NDArray[np.int64], entries: int) -> bool:
    """Tell whether nothing but offsets of all entries follows the values, the first of them at the start.

    The border stands in the key, which has no checksum: this is what a wrong one is told by.
    """
    border = shape[_BORDER]
    table = shape[_SIZE] - border
    if table < 8:
        return False
    count = np.int64(_be32(data, border))
    return bool(entries <= count <= entries + 1 and table == 4 * (1 + count)) and bool(
        np.int64(_be32(data, border + 4)) == shape[_KEYLEN]
    )


# The copying kernels follow the entries' offsets, each entry's end being the next one's start, and check that they
# stay inside the values before anything is copied. They are written out, not shared, as a call costs as much as a copy.


@kernel
def _offsets(
    data: NDArray[np.uint8],
    shape: NDArray[np.int64],
    entries: int,
    header: int,
    shift: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
) -> int:
    """Continue ``offsets`` at ``event`` by entries first to last; returns -1, or the entry that makes no sense.

    Values have 2 to the power of ``shift`` bytes.
    """
    border, keylen = shape[_BORDER], shape[_KEYLEN]
    table = border + 4
    total = offsets[event]
    rest = (1 << shift) - 1
    stop: Any = np.int64(_be32(data, table + 4 * first)) - keylen
    for i in range(first, last):
        start = stop
        stop = np.int64(_be32(data, table + 4 * i + 4)) - keylen if i + 1 < entries else border
        length = stop - start - header
        if start < 0 or stop > border or length < 0 or length & rest:
            return i
        total += length >> shift
        event += 1
        offsets[event] = total
    return -1


@kernel
def _words(
    data: NDArray[np.uint8],
    shape: NDArray[np.int64],
    entries: int,
    header: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
    out: NDArray[np.uint32],
) -> int:
    """Copy 32-bit values of entries first to last; returns -1, or the first entry whose length differs."""
    border, keylen = shape[_BORDER], shape[_KEYLEN]
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


@kernel
def _bytes(
    data: NDArray[np.uint8],
    shape: NDArray[np.int64],
    entries: int,
    header: int,
    shift: int,
    first: int,
    last: int,
    offsets: NDArray[np.int64],
    event: int,
    out: NDArray[np.uint8],
) -> int:
    """Copy bytes as they are, 2 to the power of ``shift`` a value; returns -1, or the first entry of another length."""
    border, keylen = shape[_BORDER], shape[_KEYLEN]
    table = border + 4
    at = offsets[event] << shift
    stop: Any = np.int64(_be32(data, table + 4 * first)) - keylen
    for i in range(first, last):
        start = stop
        stop = np.int64(_be32(data, table + 4 * i + 4)) - keylen if i + 1 < entries else border
        event += 1
        following = offsets[event] << shift
        if start < 0 or stop > border or stop - start - header != following - at:
            return i
        for k in range(following - at):
            out[at + k] = data[start + header + k]
        at = following
    return -1


@entry
def _copy(
    baskets: tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]],
    first: int,
    held: int,
    library: tuple[int, int],
    data: NDArray[np.uint8],
    shape: NDArray[np.int64],
    header: int,
    shift: int,
    leads: bool,  # noqa: FBT001
    start: int,
    stop: int,
    offsets: NDArray[np.int64],
    out: NDArray[Any],
) -> tuple[int, int, int]:
    """Go through baskets from ``first`` on, of which ``held`` is unpacked; returns what ended it, where, at what entry.

    Entries start to stop go where ``offsets`` put them; if the branch ``leads``, it makes these offsets.
    """
    raw, borders, places = baskets
    for i in range(first, len(places)):
        begin, end = borders[i], borders[i + 1]
        if i != held and not _unpack(raw, places[i, 0], places[i, 1], end - begin, library[0], library[1], data, shape):
            return _UNUSUAL, i, 0
        if not _fits(data, shape, end - begin):
            return _MISFIT, i, 0
        low, high = max(begin, start), min(end, stop)
        if leads:
            bad = _offsets(data, shape, end - begin, header, shift, low - begin, high - begin, offsets, low - start)
            if bad >= 0:
                return _SENSELESS, i, begin + bad
            if offsets[high - start] << shift > len(out) * out.itemsize:
                return _CROWDED, i, high
        if out.itemsize == 4:
            bad = _words(data, shape, end - begin, header, low - begin, high - begin, offsets, low - start, out)
        else:
            bad = _bytes(data, shape, end - begin, header, shift, low - begin, high - begin, offsets, low - start, out)
        if bad >= 0:
            return _SENSELESS, i, begin + bad
    return _NOTHING, len(places), 0


@entry
def _one(
    baskets: tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]],
    i: int,
    library: tuple[int, int],
    data: NDArray[np.uint8],
    shape: NDArray[np.int64],
) -> bool:
    """Unpack one basket."""
    raw, borders, places = baskets
    entries = borders[i + 1] - borders[i]
    return _unpack(raw, places[i, 0], places[i, 1], entries, library[0], library[1], data, shape)


@cache
def _library() -> Any:  # noqa: ANN401 (what ctypes makes of a library)
    """Return libdeflate as the deflate package brings it; None where its functions are hidden."""
    try:
        library = ctypes.CDLL(deflate._deflate.__file__)  # noqa: SLF001 (the one place where they are)
        library.libdeflate_alloc_decompressor.restype = ctypes.c_void_p
        library.libdeflate_free_decompressor.argtypes = [ctypes.c_void_p]
        library.libdeflate_zlib_decompress.restype = ctypes.c_int
    except (AttributeError, OSError):
        return None
    return library


class Unpacker:
    """Unpacks the baskets of one branch, each into the room of the last, and copies its values out. Of one thread.

    ``number`` is that of the basket which is unpacked, for the next step may need it too; -1 if there is none.
    """

    __slots__ = ("__weakref__", "_data", "_library", "_shape", "number")

    def __init__(self) -> None:
        self.number = -1
        self._data = np.empty(_ROOM, np.uint8)
        self._shape = np.zeros(3, np.int64)
        self._library: tuple[int, int] = (0, 0)
        if (library := _library()) is not None and (state := library.libdeflate_alloc_decompressor()):
            self._library = (ctypes.cast(library.libdeflate_zlib_decompress, ctypes.c_void_p).value or 0, state)
            weakref.finalize(self, library.libdeflate_free_decompressor, state)

    def copy(
        self,
        baskets: Baskets,
        embedded: dict[int, tuple[bytes, int]],
        header: int,
        itemsize: int,
        start: int,
        stop: int,
        offsets: NDArray[np.int64],
        out: NDArray[Any],
        *,
        leader: str,
    ) -> NDArray[Any]:
        """Copy a jagged branch's entries start to stop, flat, to where ``offsets`` (int64) put them; returns ``out``.

        Values of 4 bytes go to uint32, in the machine's order; of 1, 2 or 8 to uint8, as they are. Where ``leader`` is
        empty this branch makes the offsets, and more room than ``out`` has where it needs that; else the branch of that
        name has made them. Raises BasketError for a basket that is none, ValueError for an entry that makes no sense,
        or has another length than the offsets say; OffsetsError where no offsets are stored.
        """
        numbers, borders, raw, places = baskets
        shift = itemsize.bit_length() - 1
        at = 0
        held = 0 if numbers and numbers[0] == self.number else -1
        self.number = -1
        while at < len(numbers):
            what, at, entry_ = _copy(
                (raw, borders, places), at, held, self._library, self._data, self._shape,
                header, shift, not leader, start, stop, offsets, out,
            )  # fmt: skip
            if what == _UNUSUAL:
                self._take(baskets, at, embedded)
                held = at
            elif what == _CROWDED:
                held = at
                items = itemsize // out.itemsize
                grown = np.empty(max(int(offsets[entry_ - start]) * items, len(out) * 3 // 2), out.dtype)
                done = int(offsets[max(int(borders[at]), start) - start]) * items
                grown[:done] = out[:done]
                out = grown
            elif what == _MISFIT:
                if self._has_values_alone(baskets, at, embedded):
                    raise OffsetsError(numbers[at], "it has no entry offsets (kGenerateOffsetMap)")
                raise BasketError(numbers[at], "entry offsets don't fit it")
            elif what == _SENSELESS:
                raise ValueError(f"entry {entry_} {f'{UNEQUAL} {leader}' if leader else 'makes no sense'}")
        self.number = numbers[-1] if numbers else -1
        return out

    def scalars(
        self,
        baskets: Baskets,
        embedded: dict[int, tuple[bytes, int]],
        dtype: str,
        size: int,
        start: int,
        stop: int,
        out: NDArray[Any],
    ) -> None:
        """Copy entries start to stop of a branch with ``size`` values an entry, stored as ``dtype``, flat to ``out``.

        Raises BasketError for a damaged basket.
        """
        numbers, borders, raw, places = baskets
        for i, number in enumerate(numbers):
            if number != self.number:
                self.number = -1
                if not _one((raw, borders, places), i, self._library, self._data, self._shape):
                    self._take(baskets, i, embedded)
                self.number = number
            begin, end = int(borders[i]), int(borders[i + 1])
            border = int(self._shape[_BORDER])
            values = self._data[:border].view(dtype) if border % np.dtype(dtype).itemsize == 0 else ()
            if len(values) != (end - begin) * size:
                raise BasketError(number, f"{border} bytes of values for {end - begin} entries")
            low, high = max(begin, start), min(end, stop)
            out[(low - start) * size : (high - start) * size] = values[(low - begin) * size : (high - begin) * size]

    def _has_values_alone(self, baskets: Baskets, i: int, embedded: dict[int, tuple[bytes, int]]) -> bool:
        """Tell whether the unpacked basket was meant to be stored without offsets."""
        if self._shape[_SIZE] != self._shape[_BORDER]:
            return False
        key_end = int(baskets.places[i, 0] + self._shape[_KEYLEN])
        return baskets.numbers[i] in embedded or bool(baskets.raw[key_end - 1] >= _NO_OFFSETS)

    def _take(self, baskets: Baskets, i: int, embedded: dict[int, tuple[bytes, int]]) -> None:
        """Unpack a basket that isn't of the usual kind, or find out why it can't be."""
        number = baskets.numbers[i]
        if number in embedded:
            body = Body(*embedded[number], 0)
        else:
            start, stop = baskets.places[i].tolist()
            try:
                body = unpack(baskets.raw.data[start:stop], int(baskets.borders[i + 1] - baskets.borders[i]))
            except ValueError as error:
                raise BasketError(number, error) from error
        size = len(body.data)
        if size > len(self._data):
            self._data = np.empty(size * 5 // 4, np.uint8)
        self._data[:size] = np.frombuffer(body.data, np.uint8)
        self._shape[:] = body.border, body.keylen, size


@without_extensions()
def warm_up() -> None:
    """Compile the copying kernels, or load them from numba's cache, by copying nothing."""
    unpacker = Unpacker()
    none = Baskets([], np.zeros(1, np.int64), np.empty(0, np.uint8), np.empty((0, 2), np.int64))
    arrays = none.raw, none.borders, none.places
    own = unpacker._library, unpacker._data, unpacker._shape  # noqa: SLF001 (a kernel's arguments)
    with one_at_a_time("unpacking"):
        for out in (np.empty(0, np.uint32), np.empty(0, np.uint8)):
            _copy(arrays, 0, -1, *own, 0, 0, False, 0, 0, none.borders, out)  # noqa: FBT003
        _one((none.raw, np.zeros(2, np.int64), np.zeros((1, 2), np.int64)), 0, *own)
