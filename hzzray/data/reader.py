"""A file and a range of entries in, an analysis' columns out: only the branches that it asks for.

How a branch is read is decided by the type and the shape of what is stored, and by what is asked for. Numbers, lists
of numbers and C arrays of a fixed length go from their baskets' bytes straight to the columns. Any other shape goes
through uproot and awkward, several times slower and to the same numbers.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hzzray.data.casting import cast
from hzzray.data.layout import Branch, Layout, first_line, open_tree, read_layout
from hzzray.data.plausibility import JUDGED, ROLES, mistaken
from hzzray.data.storage import ByteSource, Range, open_bytes
from hzzray.data.unpacking import UNEQUAL, BasketError, Baskets, OffsetsError, Unpacker
from hzzray.errors import DataError, TransientError
from hzzray.parallel import begun
from hzzray.physics.columns import (
    AllOf,
    AnyOf,
    Array,
    Below,
    Jagged,
    Offsets,
    Read,
    Reads,
    Scalar,
    Step,
    Unread,
    empty,
)
from hzzray.urls import is_remote

#: Entries that are turned into columns at once: few enough for the cache, enough to make calls cheap.
STEP = 32_768

#: The same for a remote file, and how many steps are fetched ahead, so that its server always has something to send.
REMOTE_STEP = 65_536
AHEAD = 4


class _Source(NamedTuple):
    """Where numbers come from: a branch, and the shape that it must have.

    It has a list an entry, of ``collection``; where that is None, ``size`` numbers an entry, or one where that is 0.
    """

    branch: str
    collection: str | None = None
    size: int = 0

    @property
    def shape(self) -> str:
        """What an entry must be, in words."""
        if self.collection is not None:
            return "a list of numbers"
        return f"{self.size} numbers" if self.size else "one number"


_Raw = dict[_Source, Baskets]
"""What a step needs of each source that is read from baskets."""


class _Want(NamedTuple):
    """What a step of entries ``start`` to ``stop`` needs of the file.

    ``ranges`` come one after the other; ``places`` are what ``Baskets`` has, without the bytes; ``held`` are those
    baskets that are unpacked when it is read.
    """

    start: int
    stop: int
    ranges: list[Range]
    places: dict[_Source, tuple[list[int], NDArray[np.int64], NDArray[np.int64]]]
    held: dict[_Source, int]


@dataclass(frozen=True, slots=True)
class _Cursor:
    """A source being read: its branch's layout, and what unpacks its baskets, if they have a shape for that.

    ``dtype`` is the stored one in the machine's byte order. Only one column is made of what is read ``once``. Lists
    must be as long as those of ``leader``; where that is empty, they settle the lengths.
    """

    branch: Branch
    fast: bool
    unpacker: Unpacker
    dtype: np.dtype[Any]
    once: bool
    leader: str


@dataclass(frozen=True, slots=True)
class _Range:
    """Entries ``start`` to ``stop`` being read: raw baskets, and columns so far, in more than one type if need be."""

    start: int
    stop: int
    raw: _Raw
    made: dict[tuple[_Source, str, bool], NDArray[Any]] = field(default_factory=dict)

    @property
    def events(self) -> int:
        """How many entries there are."""
        return self.stop - self.start


@dataclass(eq=False, slots=True)
class Buffers:
    """The memory that readers work in, one after the other: new memory costs a page fault every 4 kB."""

    raw: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    offsets: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    arrays: dict[tuple[Any, ...], NDArray[Any]] = field(default_factory=dict)
    unpackers: defaultdict[_Source, Unpacker] = field(default_factory=lambda: defaultdict(Unpacker))

    def room(self, dtype: str, size: int, *owner: object) -> NDArray[Any]:
        """Return an array that its owner alone has, the same from step to step while it is large enough."""
        key = (dtype, *owner)
        array = self.arrays.get(key)
        if array is None or len(array) < size:
            array = self.arrays[key] = np.empty(size * 5 // 4, dtype)
        return array[:size]


class Reader:
    """Reads what an analysis asks for from one file. Buffers are reused: a step's columns live until the next.

    ``known`` are branches that the cached layout is to hold beside those that are read, so that one will do for all who
    read the file. ``buffers`` are those of an earlier reader, which must not be used any more. ``opened``
    gives the file where it is being opened already.

    ``read_s`` and ``bytes_read`` count what input took so far. Raises DataError, naming file and branch, for a file
    that is not what it should be or whose first entries can't be what they are read as, TransientError for faults of
    the network or the disk.
    """

    def __init__(
        self,
        location: str,
        tree: str,
        reads: Reads,
        *,
        known: tuple[str, ...] = (),
        cache: Path | None = None,
        buffers: Buffers | None = None,
        opened: Callable[[], ByteSource] | None = None,
        slow: bool = False,
    ) -> None:
        self._reads = reads
        self._step, self._ahead = (REMOTE_STEP, AHEAD) if is_remote(location) else (STEP, 0)
        self._tree: Any = None
        self._judged = False
        self.read_s = 0.0
        begun = time.perf_counter()
        self._location = location
        self._known = tuple(dict.fromkeys((*known, *reads.branches)))
        self._source = open_bytes(location) if opened is None else opened()
        try:
            self.layout: Layout = read_layout(self._source, tree, self._known, cache)
            self.layout.require(reads.branches, self._source.name, reads.avoidable)
        except BaseException:
            self._source.close()
            raise
        self.read_s += time.perf_counter() - begun
        self._buffers = buffers = buffers or Buffers()
        # The first branch of a collection settles how many entries each event has; the others must agree with it.
        leaders: dict[str | None, str] = {}
        self._cursors: dict[_Source, _Cursor] = {}
        for source, uses in Counter(_sources(reads)).items():
            branch = self.layout.branches[source.branch]
            leader = leaders.setdefault(source.collection, source.branch)
            self._cursors[source] = _Cursor(
                branch,
                not slow and _is_fast(source, branch),
                buffers.unpackers[source],
                _native(branch.dtype or "V"),
                uses == 1,
                leader if leader != source.branch else "",
            )
            self._cursors[source].unpacker.number = -1  # what it holds is another file's
        for collection in leaders:
            if collection is not None and len(buffers.offsets.get(collection, ())) <= self._step:
                buffers.offsets[collection] = np.zeros(self._step + 1, np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """The branches that are read."""
        return self._reads.branches

    @property
    def bytes_read(self) -> int:
        """Bytes transferred so far."""
        return self._source.bytes_read

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def confirm(self) -> None:
        """Make sure that all that was read so far is of one file; raises TransientError where it was written over.

        Servers of one address may tell versions apart each in its own way: then what is there now decides.
        """
        if self._source.is_unchanged():
            return
        with closing(open_bytes(self._location)) as now:
            layout = read_layout(now, self.layout.tree, self._known, None)
        if layout.uuid != self.layout.uuid:
            raise TransientError(f"{self._source.name}: changed while it was read")

    def __enter__(self) -> Self:
        """Use as a context manager closes the file."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self, start: int, stop: int) -> Iterator[Step]:
        """Read entries start to stop as a series of steps, each of at most so many entries."""
        if not 0 <= start <= stop <= self.layout.entries:
            raise DataError(f"{self._source.name}: entries {start} to {stop} of {self.layout.entries} were asked for")
        if start < stop and (start or stop < self._few):
            self._judge()
        borders = [(first, min(first + self._step, stop)) for first in range(start, stop, self._step)]
        wants = self._wants(borders)
        fetching: deque[tuple[_Want, Callable[[], NDArray[np.uint8]]]] = deque()
        for _ in borders:
            while len(fetching) <= min(self._ahead, len(borders) - 1) and (want := next(wants, None)) is not None:
                fetching.append((want, self._begin(want)))
            want, fetched = fetching.popleft()
            step = self._read(want, fetched)
            if not self._judged:
                self._refuse_mistaken(step)
            yield step

    @property
    def _few(self) -> int:
        return min(JUDGED, self._step, self.layout.entries)

    def _judge(self) -> None:
        """Judge a file by its first entries when other ones are read."""
        if self._judged:
            return
        want = next(self._wants([(0, self._few)]))
        try:
            step = self._read(want, partial(self._fetch, want))
        except DataError:  # of damage there tells whoever reads it
            self._judged = True
        else:
            self._refuse_mistaken(step)

    def _refuse_mistaken(self, step: Step) -> None:
        """Refuse a file whose branches can't be what they are read as, by its first entries: the first of a step."""
        judged = [(i, read) for i, read in enumerate(self._reads.columns) if isinstance(read, Jagged) and read.role]
        for i, read in sorted(judged, key=lambda pair: ROLES.index(pair[1].role)):
            values = step.columns[i][: self._buffers.offsets[read.collection][self._few]]
            if what := mistaken(read.role, values):
                raise DataError(f"{self._source.name}: branch {read.branch} can't be the {read.role}: {what}")
        self._judged = True

    def _read(self, want: _Want, fetched: Callable[[], NDArray[np.uint8]]) -> Step:
        raw = self._waited(fetched)
        if any(self._cursors[source].unpacker.number != number for source, number in want.held.items()):
            (want,) = self._wants([(want.start, want.stop)])  # what was to be at hand isn't
            raw = self._waited(partial(self._fetch, want))
        baskets = {source: Baskets(*where[:2], raw, where[2]) for source, where in want.places.items()}
        reads, entries = self._reads, _Range(want.start, want.stop, baskets)
        # A signalling nan becomes a quiet one, what is too large for a float is infinite, and nan is below nothing.
        with np.errstate(invalid="ignore", over="ignore"):
            columns = type(reads.columns)(*(self._column(read, entries) for read in reads.columns))
            factors = self._buffers.room("f8", len(reads.factors) * entries.events, "factors")
            factors = factors.reshape(len(reads.factors), entries.events)
            for row, name in zip(factors, reads.factors, strict=True):
                self._write(_Source(name), entries, row)
            divisor = self._numbers(_Source(reads.divisor), "f8", entries) if reads.divisor else np.empty(0)
            more = tuple(self._column(read, entries) for read in reads.more)
        return Step(entries.events, columns, factors, divisor, more)

    def _column(self, read: Read | Unread, entries: _Range) -> NDArray[Any]:  # noqa: PLR0911 (one for each kind)
        match read:
            case Unread():
                return empty(read)
            case Offsets():  # which the first branch of the collection fills
                return self._offsets(read.collection, entries)
            case Jagged():
                source = _Source(read.branch, read.collection)
                return self._numbers(source, read.dtype, entries, absolute=read.absolute)
            case Scalar():
                return self._numbers(_Source(read.branch), read.dtype, entries)
            case Array():
                numbers = self._numbers(_Source(read.branch, size=read.size), read.dtype, entries)
                return numbers.reshape(entries.events, read.size)
            case AnyOf():
                return reduce(np.bitwise_or, (self._numbers(_Source(name), "u1", entries) for name in read.branches))
            case AllOf():
                every = [self._numbers(_Source(name, read.collection), "u1", entries) for name in read.flags]
                every += [self._is_below(bound, read.collection, entries) for bound in read.bounds]
                return reduce(np.bitwise_and, every)

    def _is_below(self, bound: Below, collection: str, entries: _Range) -> NDArray[np.uint8]:
        values = self._stored(_Source(bound.branch, collection), entries)
        limit: Any = np.float64(bound.below)
        if bound.over is not None:
            limit = limit * self._numbers(_Source(bound.over, collection), "f8", entries)
        return np.asarray(values < limit).view(np.uint8)

    def _offsets(self, collection: str, entries: _Range) -> NDArray[np.int64]:
        return self._buffers.offsets[collection][: entries.events + 1]

    def _numbers(self, source: _Source, dtype: str, entries: _Range, *, absolute: bool = False) -> NDArray[Any]:
        """Return a source's numbers, flat, as ``dtype``; each kind is made once a step."""
        key = (source, dtype, absolute)
        if key not in entries.made:
            size = max(source.size, 1) * entries.events
            if source.collection is not None:
                stored = self._stored(source, entries)
                if stored.dtype == (bool if dtype == "u1" else dtype) and not absolute:
                    return stored.view(dtype)
                size = len(stored)
            entries.made[key] = self._buffers.room(dtype, size, source, absolute)
            self._write(source, entries, entries.made[key], absolute=absolute)
        return entries.made[key]

    def _write(self, source: _Source, entries: _Range, out: NDArray[Any], *, absolute: bool = False) -> None:
        """Write a source's numbers to ``out``, in its type."""
        cursor = self._cursors[source]
        if source.collection is None and cursor.fast and cursor.once and out.dtype.kind == "f":
            self._unpack_flat(source, entries, out)  # no other needs them as they are stored
            return
        try:
            cast(self._stored(source, entries), out, absolute=absolute)
        except ValueError as error:
            raise DataError(f"{self._source.name}: branch {source.branch} {error}") from error

    def _stored(self, source: _Source, entries: _Range) -> NDArray[Any]:
        """Return a source's numbers, flat, in the type that they are stored in; each is read once a step."""
        key = (source, "", False)
        if key not in entries.made:
            cursor = self._cursors[source]
            if not cursor.fast:
                stored = self._through_uproot(source, entries)
            elif source.collection is None:
                stored = self._buffers.room(cursor.dtype.str, max(source.size, 1) * entries.events, source)
                self._unpack_flat(source, entries, stored)
            else:
                stored = self._unpack_jagged(source, entries)
            entries.made[key] = stored
        return entries.made[key]

    def _unpack_flat(self, source: _Source, entries: _Range, out: NDArray[Any]) -> None:
        """Read as many values an entry as all others have."""
        cursor, size = self._cursors[source], max(source.size, 1)
        branch, raw = cursor.branch, entries.raw[source]
        try:
            cursor.unpacker.scalars(raw, branch.embedded, branch.dtype, size, entries.start, entries.stop, out)
        except ValueError as error:
            raise self._damage(source.branch, error) from error

    def _unpack_jagged(self, source: _Source, entries: _Range) -> NDArray[Any]:
        """Read lists of values, flat."""
        cursor = self._cursors[source]
        branch, dtype, leader = cursor.branch, cursor.dtype, cursor.leader
        offsets = self._offsets(source.collection or "", entries)
        words = dtype.itemsize == 4
        key = (words, source)
        out = self._buffers.arrays.get(key)
        items = 1 if words else dtype.itemsize
        room = items * (int(offsets[-1]) if leader else 4 * self._step)
        if out is None or len(out) < room:
            out = np.empty(max(room, items * 4 * self._step), np.uint32 if words else np.uint8)
        try:
            out = cursor.unpacker.copy(
                entries.raw[source], branch.embedded, branch.header, dtype.itemsize,
                entries.start, entries.stop, offsets, out, leader=leader,
            )  # fmt: skip
        except OffsetsError:  # and so it will be with the baskets that follow
            self._cursors[source] = replace(cursor, fast=False)
            return self._through_uproot(source, entries)
        except ValueError as error:
            raise self._damage(source.branch, error) from error
        self._buffers.arrays[key] = out
        return out[: items * int(offsets[-1])].view(dtype if words else branch.dtype)

    def _through_uproot(self, source: _Source, entries: _Range) -> NDArray[Any]:
        """Read a source in whatever shape it has, flat, and settle or check how long its lists are."""
        values, counts = self._parsed(source, entries.start, entries.stop)
        if source.collection is not None:
            offsets, leader = self._offsets(source.collection, entries), self._cursors[source].leader
            if not leader:
                np.cumsum(counts, out=offsets[1:])
            elif not np.array_equal(counts, np.diff(offsets)):
                entry = entries.start + int(np.flatnonzero(counts != np.diff(offsets))[0])
                where = f"{self._source.name}: branch {source.branch}"
                raise DataError(f"{where}: entry {entry} {UNEQUAL} {leader}")
        # Compiled code is made for arrays that are in order and may be written to.
        return np.array(values, _native(values.dtype))

    def _parsed(self, source: _Source, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read a branch with uproot; returns its values, flat, and for lists how many each entry has."""
        import awkward as ak  # noqa: PLC0415 (the slow path alone needs it)

        name, lists = source.branch, source.collection is not None
        begun = time.perf_counter()
        try:
            if self._tree is None:
                self._tree = open_tree(self._source, self.layout.tree)
            branch = self.layout.branches[name]
            if lists and self._tree[name].count_branch is not None and branch.dtype:
                return self._counted(name, start, stop)
            array = self._tree[name].array(entry_start=start, entry_stop=stop)
            counts = ak.to_numpy(ak.num(array)) if lists and array.ndim == 2 else np.empty(0, np.int64)
            values: NDArray[Any] = ak.to_numpy(ak.flatten(array, axis=None))
        except (DataError, TransientError):
            raise
        except Exception as error:  # uproot meets damage with whatever its parser stumbles over
            raise DataError(f"{self._source.name}: branch {name}: unreadable: {first_line(error)}") from error
        finally:
            self.read_s += time.perf_counter() - begun
        fits = array.ndim == 1 + (lists or source.size > 0) and (lists or branch.size == source.size)
        if not fits or values.dtype.kind not in "biuf":
            held = f"{self._source.name}: branch {name} holds {array.type.content} an entry"
            raise DataError(f"{held}, not {source.shape}")
        return values, counts

    def _counted(self, name: str, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read a C array whose lengths another branch counts, with or without offsets in its baskets; as above.

        uproot goes by the counter's baskets, as if they held the same entries.
        """
        branch = self.layout.branches[name]
        values, counts = [np.empty(0, branch.dtype)], [np.empty(0, np.int64)]
        for i in branch.baskets(start, stop):
            begin, end = branch.range(i)
            lengths = self._tree[name].count_branch.array(entry_start=begin, entry_stop=end, library="np").astype(int)
            ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            data = np.asarray(self._tree[name].basket(i).data)
            if ends[-1] * values[0].itemsize != len(data) or (lengths < 0).any():
                raise ValueError(f"basket {i}: {len(data)} bytes of values, where its counter says {ends[-1]} values")
            low, high = max(begin, start) - begin, min(end, stop) - begin
            values.append(data.view(branch.dtype)[ends[low] : ends[high]])
            counts.append(lengths[low:high])
        return np.concatenate(values), np.concatenate(counts)

    def _damage(self, name: str, error: ValueError) -> DataError:
        """Name file, branch and basket of what a damaged one raises."""
        where = f"{name}, basket {error.number}" if isinstance(error, BasketError) else name
        return DataError(f"{self._source.name}: branch {where}: corrupt: {error}")

    def _wants(self, borders: Iterable[tuple[int, int]]) -> Iterator[_Want]:
        """Tell for steps, one after the other, which baskets they need: those that are unpacked by then are at hand.

        They come in the file's order, where branches that fill their baskets together have them side by side: what
        lies in a row is read at once.
        """
        unpacked = {source: cursor.unpacker.number for source, cursor in self._cursors.items()}
        for start, stop in borders:
            want = _Want(start, stop, [], {}, {})
            needed: list[tuple[_Source, list[int], list[int], int]] = []
            wanted: list[tuple[int, int, int]] = []
            rows = 0
            for source, cursor in self._cursors.items():
                if not cursor.fast:
                    continue
                branch = cursor.branch
                numbers = branch.baskets(start, stop)
                if numbers and numbers[0] == unpacked[source]:
                    want.held[source] = numbers[0]
                held = want.held.get(source)
                ends = [*(branch.range(i)[0] for i in numbers), branch.range(numbers[-1])[1]] if numbers else [start]
                needed.append((source, numbers, ends, rows))
                for row, i in enumerate(numbers, rows):
                    if i != held and i not in branch.embedded:
                        wanted.append((*branch.place(i), row))
                rows += len(numbers)
                unpacked[source] = numbers[-1] if numbers else unpacked[source]
            places = [(0, 0)] * rows
            at = first = end = 0
            for seek, size, row in sorted(wanted):
                if seek != end:
                    want.ranges.append((first, end - first))
                    first = seek
                end = seek + size
                places[row] = at, (at := at + size)
            want.ranges.append((first, end - first))
            del want.ranges[0]  # what lay before the first one: nothing
            table = np.array(places, np.int64).reshape(-1, 2)
            for source, numbers, ends, row in needed:
                want.places[source] = numbers, np.array(ends), table[row : row + len(numbers)]
            yield want

    def _begin(self, want: _Want) -> Callable[[], NDArray[np.uint8]]:
        """Begin to fetch a step's baskets, if that is done ahead; returns what waits for them."""
        return begun(self._fetch, [want], 1)[0].result if self._ahead else partial(self._fetch, want)

    def _fetch(self, want: _Want) -> NDArray[np.uint8]:
        """Read the baskets that a step needs, all branches at once."""
        size = sum(length for _, length in want.ranges)
        if self._ahead:  # what is fetched ahead in vain may still come when others use the buffers
            raw = np.empty(size, np.uint8)
        else:
            if size > len(self._buffers.raw):
                self._buffers.raw = np.empty(size * 5 // 4, np.uint8)
            raw = self._buffers.raw
        self._source.read_into(want.ranges, raw.data)
        return raw

    def _waited(self, fetched: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        begun_at = time.perf_counter()
        raw = fetched()
        self.read_s += time.perf_counter() - begun_at
        return raw


def _native(dtype: DTypeLike) -> np.dtype[Any]:
    """Return a type in the machine's byte order."""
    return np.dtype(dtype).newbyteorder("=")


def _sources(reads: Reads) -> Iterator[_Source]:
    """List what is read, in reading order; what is read for several columns several times."""
    for read in reads.wanted:
        match read:
            case Jagged() | AllOf():
                yield from (_Source(name, read.collection) for name in read.branches)
            case Array():
                yield _Source(read.branch, size=read.size)
            case Scalar() | AnyOf():
                yield from map(_Source, read.branches)
    yield from map(_Source, (*reads.factors, *([reads.divisor] if reads.divisor else [])))


def _is_fast(source: _Source, branch: Branch) -> bool:
    """Tell whether a branch has the shape that is asked for, and one that numbers can be copied from."""
    if not branch.dtype or branch.jagged != (source.collection is not None):
        return False
    return branch.size == source.size and np.dtype(branch.dtype).itemsize in (1, 2, 4, 8)
