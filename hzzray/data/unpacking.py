"""Baskets to columns: decompress with libdeflate, then copy the values out of the raw bytes, with nothing in between.

What compiled code does here is the usual case: one block of zlib, or none. All else is left to ``baskets``: other
compressions, damage, and everything where the deflate package doesn't show libdeflate's functions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import deflate
import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from numpy.typing import NDArray

from hzzray.data.baskets import Body, unpack
from hzzray.physics.jit import entry, kernel, one_at_a_time, without_extensions

UNEQUAL = "has another number of values than branch"

# What stopped the copying kernel at a basket.
_NOTHING, _UNUSUAL, _MISFIT, _CROWDED, _SENSELESS, _UNEVEN = range(6)

# Where an unpacked basket's kernel notes: the end of its values, its key's length, and all its bytes.
_BORDER, _KEYLEN, _SIZE = range(3)

# Room for most baskets; pages that none fills are never made.
_ROOM = 1 << 20

_KEY = 37  # bytes of a basket's key at least: 18 of any key, then its counts, and a flag
_NO_OFFSETS = 80  # what is added to the flag where offsets are left out; see TBasket::Streamer


class UnpackingError(ValueError):
    """A branch can't be read from its baskets; ``source`` says which one of those that are, by its number."""

    def __init__(self, source: int, reason: object) -> None:
        super().__init__(reason)
        self.source = source


class BasketError(UnpackingError):
    """One basket of a branch is damaged; ``number`` says which."""

    def __init__(self, source: int, number: int, reason: object) -> None:
        super().__init__(source, reason)
        self.number = number


class OffsetsError(BasketError):
    """A basket is stored without its entries' offsets (``kGenerateOffsetMap``): the counter's branch tells lengths."""


#: What the columns of ``Baskets.table`` are.
NUMBER, BEGIN, END, FROM, TO = range(5)


class Baskets(NamedTuple):
    """Baskets of some sources, one source after the other: those of source s are rows ``first[s]`` on (int64).

    Of each ``table`` (int64, shape (baskets, 5)) has its number, the entries that it begins with and ends before, and
    the bytes of what was read where it lies, compressed: from, to. Where these are 0 it isn't in there.
    """

    table: NDArray[np.int64]
    first: NDArray[np.int64]


class Stored(NamedTuple):
    """How a source's values are stored in baskets, each of ``itemsize`` bytes, and whose lists are as long as its own.

    An entry is a list behind ``header`` bytes, if it is ``jagged``, else ``size`` values. The lists' lengths are
    settled by the source number ``leader``, which may be this one; ``branch`` is what it is called.
    """

    branch: str
    jagged: bool
    header: int
    itemsize: int
    size: int
    leader: int


# What Python has no words for.


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


def _array_at(dtype: Any) -> Any:  # noqa: ANN401
    """Make an intrinsic that makes an array of what lies at an address: so many numbers of a type."""

    def typed(_context: Any, address: Any, size: Any) -> Any:  # noqa: ANN401
        kind = nb.types.Array(dtype, 1, "C")

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:  # noqa: ANN401
            array = context.make_array(kind)(context, builder)
            first = builder.inttoptr(args[0], context.get_data_type(dtype).as_pointer())
            width = context.get_constant(nb.types.intp, dtype.bitwidth // 8)
            populate_array(array, data=first, shape=(args[1],), strides=(width,), itemsize=width, meminfo=None)  # type: ignore[no-untyped-call]
            return array._getvalue()  # noqa: SLF001 (numba's own way)

        return kind(address, size), generate

    return intrinsic(typed)


#: Loads a big-endian uint32 from any byte of an array.
_be32: Any = intrinsic(_load_be32)
_bytes_at: Any = _array_at(nb.types.uint8)
_words_at: Any = _array_at(nb.types.uint32)
_numbers_at: Any = _array_at(nb.types.int64)
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


# Numbers of a source: its memory for an unpacked basket, for values and for offsets, each an address and (but for the
# last) its bytes; the basket that is unpacked, -1 for none, and its shape; how values are stored: see ``Stored``.
_DATA, _DATA_ROOM, _OUT, _OUT_ROOM, _OFFSETS, _UNPACKED, _SHAPE, _JAGGED, _HEADER, _SHIFT, _VALUES, _LEADS = (
    0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13,
)  # fmt: skip


@kernel
def _copy_one(
    raw: NDArray[np.uint8], table: NDArray[np.int64], begin_row: int, end_row: int, library: int, state: int,
    start: int, stop: int, own: NDArray[np.int64],
) -> tuple[int, int, int]:  # fmt: skip
    """Go through baskets of one source; returns what ended it, at which of them and at what entry."""
    data = _bytes_at(own[_DATA], own[_DATA_ROOM])
    out = _bytes_at(own[_OUT], own[_OUT_ROOM])
    words = _words_at(own[_OUT], own[_OUT_ROOM] >> 2)
    offsets = _numbers_at(own[_OFFSETS], stop - start + 1)
    shape = own[_SHAPE : _SHAPE + 3]
    header, shift = own[_HEADER], own[_SHIFT]
    for row in range(begin_row, end_row):
        number, begin, end = table[row, NUMBER], table[row, BEGIN], table[row, END]
        entries = end - begin
        if own[_UNPACKED] != number:
            own[_UNPACKED] = -1
            if not _unpack(raw, table[row, FROM], table[row, TO], entries, library, state, data, shape):
                return _UNUSUAL, row, 0
            own[_UNPACKED] = number
        low, high = max(begin, start), min(end, stop)
        if not own[_JAGGED]:
            each = own[_VALUES]
            if shape[_BORDER] != entries * each << shift:
                return _UNEVEN, row, 0
            _flat(data, (low - begin) * each << shift, (low - start) * each, (high - low) * each, shift, out, words)
            continue
        if not _fits(data, shape, entries):
            return _MISFIT, row, 0
        first, last, event = low - begin, high - begin, low - start
        bad = -1
        if own[_LEADS]:
            bad = _offsets(data, shape, entries, header, shift, first, last, offsets, event)
        if bad < 0 and offsets[high - start] << shift > len(out):
            return _CROWDED, row, high
        if bad < 0 and shift == 2:
            bad = _words(data, shape, entries, header, first, last, offsets, event, words)
        elif bad < 0:
            bad = _bytes(data, shape, entries, header, shift, first, last, offsets, event, out)
        if bad >= 0:
            return _SENSELESS, row, begin + bad
    return _NOTHING, end_row, 0


@kernel
def _flat(
    data: NDArray[np.uint8], start: int, first: int, number: int, shift: int, out: NDArray[np.uint8],
    words: NDArray[np.uint32],
) -> None:  # fmt: skip
    """Copy so many values from byte ``start`` on to the ``first`` place on; those of 4 bytes in the machine's order."""
    if shift == 2:
        for i in range(number):
            words[first + i] = _be32(data, start + 4 * i)
    else:
        for i in range(number << shift):
            out[(first << shift) + i] = data[start + i]


@entry
def _copy(
    raw: NDArray[np.uint8], table: NDArray[np.int64], first: NDArray[np.int64], fast: NDArray[np.bool_], library: int,
    state: int, start: int, stop: int, sources: NDArray[np.int64], s: int, row: int,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Copy what entries start to stop hold, from a row of source s on; returns what ended it, where, at what entry.

    It ends at a source that isn't ``fast`` too.
    """
    while s < len(fast) and fast[s]:
        became, row, entry_ = _copy_one(
            raw, table, max(row, first[s]), first[s + 1], library, state, start, stop, sources[s]
        )
        if became != _NOTHING:
            return became, s, row, entry_
        s += 1
    return _NOTHING, s, row, 0


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
    """Unpacks baskets of some sources, each into the room of its source's last, and copies values out. Of one thread.

    Steps have ``entries`` at the most. A source's leader comes before it, or is it itself.
    """

    __slots__ = ("__weakref__", "_data", "_library", "_numbers", "_offsets", "_out", "_stored")

    def __init__(self, stored: Sequence[Stored], entries: int) -> None:
        self._stored = tuple(stored)
        self._data = [np.empty(_ROOM, np.uint8) for _ in stored]
        self._out = [np.empty((4 if one.jagged else one.size) * one.itemsize * entries, np.uint8) for one in stored]
        leaders = {one.leader for one in stored if one.jagged}
        self._offsets = {leader: np.zeros(entries + 1, np.int64) for leader in leaders}
        self._library: tuple[int, int] = (0, 0)
        if (library := _library()) is not None and (state := library.libdeflate_alloc_decompressor()):
            self._library = (ctypes.cast(library.libdeflate_zlib_decompress, ctypes.c_void_p).value or 0, state)
            weakref.finalize(self, library.libdeflate_free_decompressor, state)
        self._numbers = np.zeros((len(stored), _LEADS + 1), np.int64)
        for s, one in enumerate(stored):
            own = self._numbers[s]
            own[_JAGGED], own[_HEADER], own[_SHIFT] = one.jagged, one.header, one.itemsize.bit_length() - 1
            own[_VALUES], own[_LEADS] = one.size, one.leader == s
            own[_OFFSETS] = self._offsets[one.leader].ctypes.data if one.jagged else 0
            self._note(s)
        self.forget()

    def _note(self, source: int) -> None:
        """Take note of where a source's memory is."""
        data, out = self._data[source], self._out[source]
        self._numbers[source, _DATA : _OUT_ROOM + 1] = data.ctypes.data, len(data), out.ctypes.data, len(out)

    @property
    def unpacked(self) -> NDArray[np.int64]:
        """The number of each source's basket that is unpacked, for the next step may need it too; -1 for none."""
        return self._numbers[:, _UNPACKED]

    def forget(self) -> None:
        """Forget what is unpacked: what comes now is of another file."""
        self._numbers[:, _UNPACKED] = -1

    def offsets(self, source: int) -> NDArray[np.int64]:
        """Where each entry's list begins, from 0 on: in the memory that all sources with a leader have in common."""
        return self._offsets[self._stored[source].leader]

    def values(self, source: int, number: int) -> NDArray[np.uint8]:
        """So many values of a source, as bytes: those of 4 in the machine's order, others as they are stored."""
        return self._out[source][: number * self._stored[source].itemsize]

    def copy(
        self,
        raw: NDArray[np.uint8],
        baskets: Baskets,
        embedded: Sequence[Mapping[int, tuple[bytes, int]]],
        fast: NDArray[np.bool_],
        source: int,
        start: int,
        stop: int,
    ) -> int:
        """Copy entries start to stop of all sources from one on, up to one that isn't ``fast``; returns its number.

        A leader makes its offsets; others' lists must be as long. Raises BasketError for a basket that is none,
        OffsetsError where no offsets are stored, else UnpackingError for an entry that makes no sense, or has another
        length than its leader's.
        """
        row = 0
        while True:
            became, source, row, entry_ = _copy(
                raw, *baskets, fast, *self._library, start, stop, self._numbers, source, row
            )
            if became == _NOTHING:
                return source
            if became == _UNUSUAL:
                self._take(source, raw, baskets.table[row].tolist(), embedded[source])
            elif became == _CROWDED:
                self._grow(source, int(self.offsets(source)[entry_ - start]))
            else:
                raise self._error(became, source, raw, baskets.table[row].tolist(), embedded[source], entry_)

    def _grow(self, source: int, values: int) -> None:
        """Make room for so many values and more; what is there is kept."""
        out = self._out[source]
        grown = self._out[source] = np.empty(max(values * self._stored[source].itemsize, len(out) * 3 // 2), np.uint8)
        grown[: len(out)] = out
        self._note(source)

    def _error(
        self, became: int, source: int, raw: NDArray[np.uint8], basket: Sequence[int],
        embedded: Mapping[int, tuple[bytes, int]], entry_: int,
    ) -> UnpackingError:  # fmt: skip
        """Tell what is wrong with a basket, or with an entry in it."""
        one, number, shape = self._stored[source], basket[NUMBER], self._numbers[source, _SHAPE:]
        if became == _SENSELESS:
            leader = self._stored[one.leader].branch
            wrong = "makes no sense" if one.leader == source else f"{UNEQUAL} {leader}"
            return UnpackingError(source, f"entry {entry_} {wrong}")
        if became == _UNEVEN:
            entries = basket[END] - basket[BEGIN]
            return BasketError(source, number, f"{shape[_BORDER]} bytes of values for {entries} entries")
        if shape[_SIZE] == shape[_BORDER] and (
            number in embedded or raw[basket[FROM] + int(shape[_KEYLEN]) - 1] >= _NO_OFFSETS
        ):  # it was meant to be stored so
            return OffsetsError(source, number, "it has no entry offsets (kGenerateOffsetMap)")
        return BasketError(source, number, "entry offsets don't fit it")

    def _take(
        self, source: int, raw: NDArray[np.uint8], basket: Sequence[int], embedded: Mapping[int, tuple[bytes, int]]
    ) -> None:
        """Unpack a basket that isn't of the usual kind, or find out why it can't be."""
        number = basket[NUMBER]
        if number in embedded:
            body = Body(*embedded[number], 0)
        else:
            try:
                body = unpack(raw.data[basket[FROM] : basket[TO]], basket[END] - basket[BEGIN])
            except ValueError as error:
                raise BasketError(source, number, error) from error
        size = len(body.data)
        if size > len(self._data[source]):
            self._data[source] = np.empty(size * 5 // 4, np.uint8)
            self._note(source)
        self._data[source][:size] = np.frombuffer(body.data, np.uint8)
        self._numbers[source, _UNPACKED : _SHAPE + 3] = number, body.border, body.keylen, size


@without_extensions()
def warm_up() -> None:
    """Compile the copying kernels, or load them from numba's cache, by copying nothing."""
    none = Baskets(np.zeros((0, 5), np.int64), np.zeros(2, np.int64))
    unpacker = Unpacker([Stored("", False, 0, 4, 1, 0)], 1)  # noqa: FBT003
    with one_at_a_time("unpacking"):
        unpacker.copy(np.empty(0, np.uint8), none, [{}], np.ones(1, np.bool_), 0, 0, 0)
