"""A file and a range of entries in, an analysis' columns out: only the branches that it asks for.

How a branch is read is decided by the type and the shape of what is stored, and by what is asked for. Numbers, lists
of numbers and C arrays of a fixed length go from their baskets' bytes straight to the columns. Any other shape goes
through uproot and awkward, several times slower and to the same numbers.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hzzray.data.casting import cast
from hzzray.data.layout import Form, Layout, first_line, open_tree, read_layout
from hzzray.data.plausibility import JUDGED, ROLES, mistaken
from hzzray.data.storage import ByteSource, open_bytes
from hzzray.data.unpacking import UNEQUAL, BasketError, OffsetsError, Stored, Unpacker, UnpackingError
from hzzray.data.wants import Finder, Want
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


class _Asked:
    """What a reader is asked for, worked out: ``sources`` in reading order, ``names`` of branches whose layout is kept.

    ``number`` tells which source it is, ``leaders`` the number of the one that settles how long a collection's lists
    are: its first. ``judged`` are columns with a role, by their numbers, the most telling first.
    """

    def __init__(self, reads: Reads, known: tuple[str, ...]) -> None:
        self.reads = reads
        self.known = known
        self.branches = reads.branches
        self.avoidable = reads.avoidable
        self.names = tuple(dict.fromkeys((*known, *self.branches)))
        self.sources = tuple(dict.fromkeys(_sources(reads)))
        self.number = {source: i for i, source in enumerate(self.sources)}
        self.leaders: dict[str | None, int] = {}
        for i, source in enumerate(self.sources):
            self.leaders.setdefault(source.collection, i)
        judged = [(i, read) for i, read in enumerate(reads.columns) if isinstance(read, Jagged) and read.role]
        self.judged = sorted(judged, key=lambda pair: ROLES.index(pair[1].role))


class _Means:
    """What sources of some forms are read with: which are ``fast``, and what unpacks these.

    ``dtypes`` are those of what is unpacked: the stored ones, of 4 bytes in the machine's order.
    """

    def __init__(self, asked: _Asked, forms: tuple[Form, ...], step: int, *, slow: bool) -> None:
        self.made_for = asked, forms, step, slow
        pairs = list(zip(asked.sources, forms, strict=True))
        self.fast = np.array([not slow and _is_fast(source, form) for source, form in pairs], np.bool_)
        stored = [np.dtype(form.dtype or "V1") for form in forms]
        self.dtypes = [_native(dtype) if dtype.itemsize == 4 else dtype for dtype in stored]
        self.unpacker = Unpacker(
            [
                Stored(
                    source.branch, source.collection is not None, form.header, dtype.itemsize, max(source.size, 1),
                    asked.leaders[source.collection] if source.collection is not None else i,
                )
                for i, ((source, form), dtype) in enumerate(zip(pairs, stored, strict=True))
            ],
            step,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Range:
    """Entries ``start`` to ``stop`` being read: columns so far, in more than one type if need be, as stored too."""

    start: int
    stop: int
    made: dict[tuple[_Source, str, bool], NDArray[Any]] = field(default_factory=dict)

    @property
    def events(self) -> int:
        """How many entries there are."""
        return self.stop - self.start


class Buffers:
    """What readers hand on, one to the next: memory, as new one costs a page fault every 4 kB, and what is worked out.

    That is kept for files of the last form, of which the same was asked.
    """

    def __init__(self) -> None:
        self.raw = np.empty(0, np.uint8)
        self._arrays: dict[tuple[Any, ...], NDArray[Any]] = {}
        self._asked: _Asked | None = None
        self._means: _Means | None = None

    def room(self, dtype: str, size: int, *owner: object) -> NDArray[Any]:
        """Return an array that its owner alone has, the same from step to step while it is large enough."""
        key = (dtype, *owner)
        array = self._arrays.get(key)
        if array is None or len(array) < size:
            array = self._arrays[key] = np.empty(size * 5 // 4, dtype)
        return array[:size]

    def asked(self, reads: Reads, known: tuple[str, ...]) -> _Asked:
        """Work out what is asked for, unless it is the very same as before."""
        asked = self._asked
        if asked is None or asked.reads is not reads or asked.known != known:
            asked = self._asked = _Asked(reads, known)
        return asked

    def means(self, asked: _Asked, forms: tuple[Form, ...], step: int, *, slow: bool) -> _Means:
        """Make what sources are read with, unless those before had the same forms; nothing is unpacked there."""
        means = self._means
        if means is None or means.made_for != (asked, forms, step, slow):
            means = self._means = _Means(asked, forms, step, slow=slow)
        means.unpacker.forget()
        return means


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
        self._buffers = buffers = buffers or Buffers()
        self._asked = asked = buffers.asked(reads, known)
        self._source = open_bytes(location) if opened is None else opened()
        try:
            self.layout: Layout = read_layout(self._source, tree, asked.names, cache)
            self.layout.require(asked.branches, self._source.name, asked.avoidable)
        except BaseException:
            self._source.close()
            raise
        self.read_s += time.perf_counter() - begun
        branches = [self.layout.branches[source.branch] for source in asked.sources]
        means = buffers.means(asked, tuple(branch.form for branch in branches), self._step, slow=slow)
        self._unpacker, self._dtypes, self._fast = means.unpacker, means.dtypes, means.fast.copy()
        self._embedded = [branch.embedded for branch in branches]
        self._finder = Finder([branch.table for branch in branches], self._fast)

    @property
    def names(self) -> tuple[str, ...]:
        """The branches that are read."""
        return self._asked.branches

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
            layout = read_layout(now, self.layout.tree, self._asked.names, None)
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
        wants = self._finder.find(borders, self._unpacker.unpacked)
        fetching: deque[tuple[Want, Callable[[], NDArray[np.uint8]]]] = deque()
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
        want = next(self._finder.find([(0, self._few)], self._unpacker.unpacked))
        try:
            step = self._read(want, partial(self._fetch, want))
        except DataError:  # of damage there tells whoever reads it
            self._judged = True
        else:
            self._refuse_mistaken(step)

    def _refuse_mistaken(self, step: Step) -> None:
        """Refuse a file whose branches can't be what they are read as, by its first entries: the first of a step."""
        for i, read in self._asked.judged:
            values = step.columns[i][: self._lengths(read.collection)[self._few]]
            if what := mistaken(read.role, values):
                raise DataError(f"{self._source.name}: branch {read.branch} can't be the {read.role}: {what}")
        self._judged = True

    def _read(self, want: Want, fetched: Callable[[], NDArray[np.uint8]]) -> Step:
        raw, unpacked = self._waited(fetched), self._unpacker.unpacked
        if ((want.held >= 0) & (want.held != unpacked)).any():
            (want,) = self._finder.find([(want.start, want.stop)], unpacked)  # what was to be at hand isn't
            raw = self._waited(partial(self._fetch, want))
        reads, entries = self._reads, _Range(want.start, want.stop)
        self._unpack(want, raw, entries)
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
                return self._lengths(read.collection)[: entries.events + 1]
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

    def _numbers(self, source: _Source, dtype: str, entries: _Range, *, absolute: bool = False) -> NDArray[Any]:
        """Return a source's numbers, flat, as ``dtype``; each kind is made once a step."""
        key = (source, dtype, absolute)
        if key not in entries.made:
            stored = self._stored(source, entries)
            if source.collection is not None and not absolute and stored.dtype == (bool if dtype == "u1" else dtype):
                return stored.view(dtype)
            entries.made[key] = self._buffers.room(dtype, len(stored), source, absolute)
            self._write(source, entries, entries.made[key], absolute=absolute)
        return entries.made[key]

    def _write(self, source: _Source, entries: _Range, out: NDArray[Any], *, absolute: bool = False) -> None:
        """Write a source's numbers to ``out``, in its type."""
        try:
            cast(self._stored(source, entries), out, absolute=absolute)
        except ValueError as error:
            raise DataError(f"{self._source.name}: branch {source.branch} {error}") from error

    def _stored(self, source: _Source, entries: _Range) -> NDArray[Any]:
        """Return a source's numbers, flat, in the type that they are stored in."""
        key = (source, "", False)
        if key not in entries.made:
            i = self._asked.number[source]
            lists = source.collection is not None
            number = int(self._unpacker.offsets(i)[entries.events]) if lists else max(source.size, 1) * entries.events
            entries.made[key] = self._unpacker.values(i, number).view(self._dtypes[i])
        return entries.made[key]

    def _lengths(self, collection: str) -> NDArray[np.int64]:
        """Return where the lists of a collection begin, of as many entries as a step may have."""
        return self._unpacker.offsets(self._asked.leaders[collection])

    def _unpack(self, want: Want, raw: NDArray[np.uint8], entries: _Range) -> None:
        """Read all sources of a step, one after the other, those that aren't fast through uproot."""
        at = 0
        while True:
            try:
                at = self._unpacker.copy(raw, want.baskets, self._embedded, self._fast, at, want.start, want.stop)
            except OffsetsError as error:  # and so it will be with the baskets that follow
                at = error.source
                self._fast[at] = False
            except UnpackingError as error:
                raise self._damage(error) from error
            if at == len(self._fast):
                return
            source = self._asked.sources[at]
            entries.made[source, "", False] = self._through_uproot(source, entries)
            at += 1

    def _through_uproot(self, source: _Source, entries: _Range) -> NDArray[Any]:
        """Read a source in whatever shape it has, flat, and settle or check how long its lists are."""
        values, counts = self._parsed(source, entries.start, entries.stop)
        if source.collection is not None:
            offsets = self._lengths(source.collection)[: entries.events + 1]
            leader = self._asked.sources[self._asked.leaders[source.collection]]
            if source == leader:
                np.cumsum(counts, out=offsets[1:])
            elif not np.array_equal(counts, np.diff(offsets)):
                entry = entries.start + int(np.flatnonzero(counts != np.diff(offsets))[0])
                where = f"{self._source.name}: branch {source.branch}"
                raise DataError(f"{where}: entry {entry} {UNEQUAL} {leader.branch}")
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
            if lists and self._tree[name].count_branch is not None and branch.form.dtype:
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
        fits = array.ndim == 1 + (lists or source.size > 0) and (lists or branch.form.size == source.size)
        if not fits or values.dtype.kind not in "biuf":
            held = f"{self._source.name}: branch {name} holds {array.type.content} an entry"
            raise DataError(f"{held}, not {source.shape}")
        return values, counts

    def _counted(self, name: str, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read a C array whose lengths another branch counts, with or without offsets in its baskets; as above.

        uproot goes by the counter's baskets, as if they held the same entries.
        """
        branch = self.layout.branches[name]
        values, counts = [np.empty(0, branch.form.dtype)], [np.empty(0, np.int64)]
        for i in branch.baskets(start, stop):
            begin, end = branch.range(i)
            lengths = self._tree[name].count_branch.array(entry_start=begin, entry_stop=end, library="np").astype(int)
            ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            data = np.asarray(self._tree[name].basket(i).data)
            if ends[-1] * values[0].itemsize != len(data) or (lengths < 0).any():
                raise ValueError(f"basket {i}: {len(data)} bytes of values, where its counter says {ends[-1]} values")
            low, high = max(begin, start) - begin, min(end, stop) - begin
            values.append(data.view(branch.form.dtype)[ends[low] : ends[high]])
            counts.append(lengths[low:high])
        return np.concatenate(values), np.concatenate(counts)

    def _damage(self, error: UnpackingError) -> DataError:
        """Name file, branch and basket of what a damaged one raises."""
        name = self._asked.sources[error.source].branch
        where = f"{name}, basket {error.number}" if isinstance(error, BasketError) else name
        return DataError(f"{self._source.name}: branch {where}: corrupt: {error}")

    def _begin(self, want: Want) -> Callable[[], NDArray[np.uint8]]:
        """Begin to fetch a step's baskets, if that is done ahead; returns what waits for them."""
        return begun(self._fetch, [want], 1)[0].result if self._ahead else partial(self._fetch, want)

    def _fetch(self, want: Want) -> NDArray[np.uint8]:
        """Read the baskets that a step needs, all branches at once."""
        if self._ahead:  # what is fetched ahead in vain may still come when others use the buffers
            raw = np.empty(want.size, np.uint8)
        else:
            if want.size > len(self._buffers.raw):
                self._buffers.raw = np.empty(want.size * 5 // 4, np.uint8)
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


def _is_fast(source: _Source, form: Form) -> bool:
    """Tell whether a branch has the shape that is asked for, and one that numbers can be copied from."""
    if not form.dtype or form.jagged != (source.collection is not None):
        return False
    return form.size == source.size and np.dtype(form.dtype).itemsize in (1, 2, 4, 8)
