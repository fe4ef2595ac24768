"""A file and a range of entries in, the analysis' columns out: only the branches that the selection needs.

Branches of the shapes that the releases have go from their baskets' bytes straight to the columns. Any other shape goes
through uproot and awkward, several times slower and to the same numbers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hzzray.data.layout import Branch, Layout, first_line, open_tree, read_layout
from hzzray.data.roles import JUDGED, mistaken
from hzzray.data.schema import Bound, Schema
from hzzray.data.storage import Range, open_bytes
from hzzray.data.unpacking import UNEQUAL, BasketError, Baskets, OffsetsError, Unpacker
from hzzray.errors import DataError, TransientError
from hzzray.physics.columns import Columns
from hzzray.physics.selection import Selection

#: Entries that are turned into columns at once: few enough for the cache, enough to make calls cheap.
STEP = 32_768

#: The same for a remote file, where a request costs more than a cache miss.
REMOTE_STEP = 262_144


_Raw = dict[str, Baskets]
"""What a step needs of each branch that is read from its baskets."""


@dataclass(frozen=True, slots=True)
class _Cursor:
    """A branch being read: its layout, and what unpacks its baskets, if they have a shape for that."""

    branch: Branch
    fast: bool
    unpacker: Unpacker


@dataclass(eq=False, slots=True)
class Buffers:
    """The memory that readers of one schema work in, one after the other: new memory costs a page fault every 4 kB."""

    raw: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    leptons: dict[str, NDArray[Any]] = field(default_factory=dict)
    events: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    unpackers: defaultdict[str, Unpacker] = field(default_factory=lambda: defaultdict(Unpacker))


class Reader:
    """Reads the columns of one selection from one file. Buffers are reused: a step's columns live until the next.

    ``buffers`` are those of an earlier reader, which must not be used any more.

    ``read_s`` and ``bytes_read`` count what input took so far. Raises DataError, naming file and branch, for a file
    that is not what it should be or whose first entries can't be what the schema says, TransientError for faults of
    the network or the disk.
    """

    def __init__(
        self,
        location: str,
        schema: Schema,
        selection: Selection,
        *,
        simulation: bool,
        cache: Path | None = None,
        buffers: Buffers | None = None,
        slow: bool = False,
    ) -> None:
        self._schema = schema
        self._selection = selection
        self._simulation = simulation
        self._step = REMOTE_STEP if "://" in location else STEP
        self._tree: Any = None
        self._judged = False
        self.read_s = 0.0
        names = schema.branches(selection, simulation=simulation)
        begun = time.perf_counter()
        self._location = location
        self._known = schema.branches(selection, simulation=True)
        self._source = open_bytes(location)
        try:
            self.layout: Layout = read_layout(self._source, schema.tree, self._known, cache)
            self.layout.require(names, self._source.name, schema.cuts_of(selection))
        except BaseException:
            self._source.close()
            raise
        self.read_s += time.perf_counter() - begun
        self._buffers = buffers = buffers or Buffers()
        if len(buffers.offsets) <= self._step:
            buffers.offsets = np.zeros(self._step + 1, np.int64)
        found = self.layout.branches
        self._cursors = {
            name: _Cursor(
                found[name],
                not slow and self._is_fast(name, found[name]),
                buffers.unpackers[name],
            )
            for name in names
        }
        for cursor in self._cursors.values():
            cursor.unpacker.number = -1  # what it holds is another file's

    @property
    def names(self) -> tuple[str, ...]:
        """The branches that are read."""
        return tuple(self._cursors)

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

    def steps(self, start: int, stop: int) -> Iterator[Columns]:
        """Read entries start to stop as a series of columns, each of at most a step's entries."""
        if not 0 <= start <= stop <= self.layout.entries:
            raise DataError(f"{self._source.name}: entries {start} to {stop} of {self.layout.entries} were asked for")
        if start < stop:
            self._judge()
        for first in range(start, stop, self._step):
            yield self._columns(first, min(first + self._step, stop))

    def _judge(self) -> None:
        """Refuse a file whose branches can't be what the schema says: by its first entries, whatever part is read."""
        if self._judged:
            return
        try:
            mistake = mistaken(self._columns(0, min(JUDGED, self._step, self.layout.entries)))
        except DataError:  # of damage there tells whoever reads it
            mistake = None
        if mistake is not None:
            role, what = mistake
            name = getattr(self._schema, role)
            raise DataError(f"{self._source.name}: branch {name} can't be the schema's {role}: {what}")
        self._judged = True

    def _columns(self, start: int, stop: int) -> Columns:
        schema, selection = self._schema, self._selection
        raw = self._fetch(start, stop)
        offsets = self._buffers.offsets[: stop - start + 1]
        # The first branch settles how many leptons each event has; the others must agree with it.
        pt = self._jagged(schema.pt, np.float32, raw, start, stop)
        eta, phi, energy = (
            self._jagged(name, np.float32, raw, start, stop) for name in (schema.eta, schema.phi, schema.energy)
        )
        charge, kind = (self._jagged(name, np.int32, raw, start, stop) for name in (schema.charge, schema.type))
        np.abs(kind, out=kind)  # a pdgId is negative for one of the charges
        # Electrons and muons share some flags: each is read once.
        flag = {name: self._jagged(name, np.uint8, raw, start, stop) for name in self._cursors if self._is_flag(name)}
        number = dict(zip(schema.kinematics, (pt, eta, phi, energy, charge, kind), strict=True))
        number |= {
            name: self._jagged(name, np.float32, raw, start, stop) for name in self._cursors if self._is_bounded(name)
        }

        def passes(bound: Bound) -> NDArray[np.uint8]:
            with np.errstate(invalid="ignore"):  # nan is below nothing
                scale = 1.0 if bound.over is None else number[bound.over].astype(np.float64)
                return np.asarray(number[bound.branch] < np.float64(bound.below) * scale).view(np.uint8)

        def good(flags: tuple[str, ...], bounds: tuple[Bound, ...]) -> NDArray[np.uint8]:
            every = [flag[name] for name in flags] if selection.identified else []
            every += map(passes, bounds if selection.isolated else ())
            return reduce(np.bitwise_and, every) if every else np.empty(0, np.uint8)

        def values(names: tuple[str, ...], *, used: bool) -> NDArray[Any]:
            rows = self._buffer(names if used else (), stop - start)
            for row, name in zip(rows, names, strict=False):
                self._scalar(name, raw, start, stop, row)
            return rows

        divisor = values((schema.divisor,) if schema.divisor else (), used=self._simulation)
        return Columns(
            offsets,
            pt,
            eta,
            phi,
            energy,
            charge,
            kind,
            np.asarray(values(schema.triggers, used=selection.trigger).any(axis=0), np.uint8),
            flag[schema.matched] if selection.matched and schema.matched else np.empty(0, np.uint8),
            good(schema.electron_id, schema.electron_isolation),
            good(schema.muon_id, schema.muon_isolation),
            values(schema.factors, used=self._simulation),
            divisor[0] if len(divisor) else np.empty(0),
        )

    def _buffer(self, names: tuple[str, ...], events: int) -> NDArray[np.float64]:
        """Rows of float64, one a branch, reused from step to step; shape (branches, events)."""
        key = ",".join(names)
        if key not in self._buffers.events or self._buffers.events[key].shape[1] != events:
            self._buffers.events[key] = np.empty((len(names), events))
        return self._buffers.events[key]

    def _scalar(self, name: str, raw: _Raw, start: int, stop: int, out: NDArray[np.float64]) -> None:
        """Read one value an entry into ``out``, float64, shape (stop - start,)."""
        cursor = self._cursors[name]
        branch = cursor.branch
        with np.errstate(invalid="ignore"), self._blame(name):  # a signalling nan becomes a quiet one
            if cursor.fast:
                cursor.unpacker.scalars(raw[name], branch.embedded, branch.dtype, start, stop, out)
            else:
                out[:], _ = self._through_uproot(name, start, stop, lists=False)

    def _jagged(self, name: str, dtype: type[Any], raw: _Raw, start: int, stop: int) -> NDArray[Any]:
        """Read one value a lepton, flat, shape (leptons,), as ``dtype``."""
        cursor = self._cursors[name]
        if not cursor.fast:
            return self._jagged_through_uproot(name, dtype, start, stop)
        leads = name == self._schema.pt
        branch = cursor.branch
        out = self._buffers.leptons.get(name, np.empty(0, np.uint8))
        room = 4 * self._step if leads else int(self._buffers.offsets[stop - start])
        if len(out) < room:
            out = np.empty(max(room, 4 * self._step), np.uint8 if dtype is np.uint8 else np.uint32)
        with self._blame(name):
            try:
                out = cursor.unpacker.copy(
                    raw[name], branch.embedded, branch.header, start, stop, self._buffers.offsets, out, leads=leads
                )
            except OffsetsError:  # and so it will be with the baskets that follow
                self._cursors[name] = replace(cursor, fast=False)
                return self._jagged_through_uproot(name, dtype, start, stop)
        self._buffers.leptons[name] = out
        return out[: self._buffers.offsets[stop - start]].view(dtype)

    def _jagged_through_uproot(self, name: str, dtype: type[Any], start: int, stop: int) -> NDArray[Any]:
        values, counts = self._through_uproot(name, start, stop, lists=True)
        offsets = self._buffers.offsets[: stop - start + 1]
        if name == self._schema.pt:
            np.cumsum(counts, out=offsets[1:])
        elif not np.array_equal(counts, np.diff(offsets)):
            entry = start + int(np.flatnonzero(counts != np.diff(offsets))[0])
            raise DataError(f"{self._source.name}: branch {name}: entry {entry} {UNEQUAL}")
        if dtype is np.uint8:
            return np.asarray(values != 0).view(np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):  # what has no place is told below, or is inf
            cast: NDArray[Any] = values.astype(dtype)
        if dtype is np.int32 and not np.array_equal(cast, values):
            raise DataError(f"{self._source.name}: branch {name} holds numbers that are no 32-bit integers")
        return cast

    def _through_uproot(self, name: str, start: int, stop: int, *, lists: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """Read a branch in whatever shape it has; returns its values, flat, and for lists how many each entry has."""
        import awkward as ak  # noqa: PLC0415 (the slow path alone needs it)

        begun = time.perf_counter()
        try:
            if self._tree is None:
                self._tree = open_tree(self._source, self.layout.tree)
            if lists and self._tree[name].count_branch is not None and self.layout.branches[name].dtype:
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
        if array.ndim != 1 + lists or values.dtype.kind not in "biuf":
            needed = "a list of numbers" if lists else "one number"
            raise DataError(f"{self._source.name}: branch {name} holds {array.type.content} an entry, not {needed}")
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

    @contextmanager
    def _blame(self, name: str) -> Iterator[None]:
        """Name file, branch and basket in what a damaged one raises."""
        try:
            yield
        except ValueError as error:
            where = f"{name}, basket {error.number}" if isinstance(error, BasketError) else name
            raise DataError(f"{self._source.name}: branch {where}: corrupt: {error}") from error

    def _fetch(self, start: int, stop: int) -> _Raw:
        """Read the baskets that a step needs, all branches at once; those that are unpacked are at hand."""
        ranges: list[Range] = []
        needed = {}
        at = 0
        for name, cursor in self._cursors.items():
            if not cursor.fast:
                continue
            branch = cursor.branch
            numbers = branch.baskets(start, stop)
            held = cursor.unpacker.number if numbers[:1] == [cursor.unpacker.number] else -1
            borders = [*(branch.range(i)[0] for i in numbers), branch.range(numbers[-1])[1]] if numbers else [start]
            places = []
            for i in numbers:
                if i == held or i in branch.embedded:
                    places.append((0, 0))
                    continue
                ranges.append(place := branch.place(i))
                places.append((at, at := at + place[1]))
            needed[name] = numbers, np.array(borders), np.array(places, np.int64).reshape(-1, 2)
        if at > len(self._buffers.raw):
            self._buffers.raw = np.empty(at * 5 // 4, np.uint8)
        begun = time.perf_counter()
        self._source.read_into(ranges, self._buffers.raw.data)
        self.read_s += time.perf_counter() - begun
        return {
            name: Baskets(numbers, borders, self._buffers.raw, places)
            for name, (numbers, borders, places) in needed.items()
        }

    def _is_flag(self, name: str) -> bool:
        return name == self._schema.matched or name in self._schema.electron_id + self._schema.muon_id

    def _is_bounded(self, name: str) -> bool:
        """Tell whether a branch has a number a lepton that only a bound asks for."""
        bounds = self._schema.electron_isolation + self._schema.muon_isolation
        return name not in self._schema.kinematics and any(name in bound.branches for bound in bounds)

    def _is_fast(self, name: str, branch: Branch) -> bool:
        """Tell whether a branch has a shape that its column can be copied from."""
        schema = self._schema
        if self._is_flag(name):
            return branch.jagged and branch.dtype == "|b1"
        if name in (schema.charge, schema.type):
            return branch.jagged and branch.dtype in (">i4", ">u4")
        if name in schema.kinematics or self._is_bounded(name):
            return branch.jagged and branch.dtype == ">f4"
        return not branch.jagged and branch.dtype != ""
