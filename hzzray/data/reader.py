"""A file and a range of entries in, the analysis' columns out: only the branches that the selection needs.

Branches of the shapes that the releases have go from their baskets' bytes straight to the columns. Any other shape goes
through uproot and awkward, several times slower and to the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hzzray.data.baskets import UNEQUAL, Body, copy_offsets, copy_values, scalars, unpack
from hzzray.data.layout import Branch, Layout, first_line, open_tree, read_layout
from hzzray.data.schema import Schema
from hzzray.data.storage import Range, open_bytes
from hzzray.errors import DataError, TransientError
from hzzray.physics.kernels import Columns
from hzzray.physics.selection import Selection

#: Entries that are turned into columns at once: few enough for the cache, enough to make calls cheap.
STEP = 32_768

#: The same for a remote file, where a request costs more than a cache miss.
REMOTE_STEP = 262_144


_Raw = dict[tuple[str, int], bytes | Body]
"""Baskets by branch and number: as they were read, or decompressed already."""


@dataclass(slots=True)
class _Cursor:
    """A branch being read: its layout and the last basket decompressed, which the next step may need too."""

    name: str
    branch: Branch
    fast: bool
    number: int = -1
    body: Body | None = None


class Reader:
    """Reads the columns of one selection from one file. Buffers are reused: a step's columns live until the next.

    ``read_s`` and ``bytes_read`` count what input took so far. Raises DataError, naming file and branch, for a file
    that is not what it should be, TransientError for faults of the network or the disk.
    """

    def __init__(
        self,
        location: str,
        schema: Schema,
        selection: Selection,
        *,
        simulation: bool,
        cache: Path | None = None,
        slow: bool = False,
    ) -> None:
        self._schema = schema
        self._selection = selection
        self._simulation = simulation
        self._step = REMOTE_STEP if "://" in location else STEP
        self._tree: Any = None
        self.read_s = 0.0
        names = schema.branches(selection, simulation=simulation)
        begun = time.perf_counter()
        self._source = open_bytes(location)
        try:
            known = schema.branches(selection, simulation=True)
            self.layout: Layout = read_layout(self._source, schema.tree, known, cache)
            self.layout.require(names, self._source.name)
        except BaseException:
            self._source.close()
            raise
        self.read_s += time.perf_counter() - begun
        found = self.layout.branches
        self._cursors = {
            name: _Cursor(name, found[name], not slow and self._is_fast(name, found[name])) for name in names
        }
        self._offsets = np.zeros(self._step + 1, np.int64)
        self._leptons: dict[str, NDArray[Any]] = {}
        self._events: dict[str, NDArray[np.float64]] = {}

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

    def __enter__(self) -> Self:
        """Use as a context manager closes the file."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self, start: int, stop: int) -> Iterator[Columns]:
        """Read entries start to stop as a series of columns, each of at most a step's entries."""
        if not 0 <= start <= stop <= self.layout.entries:
            raise DataError(f"{self._source.name}: entries {start} to {stop} of {self.layout.entries} were asked for")
        for first in range(start, stop, self._step):
            yield self._columns(first, min(first + self._step, stop))

    def _columns(self, start: int, stop: int) -> Columns:
        schema, selection = self._schema, self._selection
        raw = self._fetch(start, stop)
        offsets = self._offsets[: stop - start + 1]
        # The first branch settles how many leptons each event has; the others must agree with it.
        pt = self._jagged(schema.pt, np.float32, raw, start, stop)
        eta, phi, energy = (
            self._jagged(name, np.float32, raw, start, stop) for name in (schema.eta, schema.phi, schema.energy)
        )
        charge, kind = (self._jagged(name, np.int32, raw, start, stop) for name in (schema.charge, schema.type))
        # Electrons and muons share some flags: each is read once.
        flag = {name: self._jagged(name, np.uint8, raw, start, stop) for name in self._cursors if self._is_flag(name)}

        def flags(names: tuple[str, ...], *, used: bool) -> NDArray[np.uint8]:
            if not used:
                return np.empty(0, np.uint8)
            both: NDArray[np.uint8] = reduce(np.bitwise_and, [flag[name] for name in names])
            return both

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
            flags((schema.matched or "",), used=selection.matched),
            flags(schema.electron_id, used=selection.identified),
            flags(schema.muon_id, used=selection.identified),
            values(schema.factors, used=self._simulation),
            divisor[0] if len(divisor) else np.empty(0),
        )

    def _buffer(self, names: tuple[str, ...], events: int) -> NDArray[np.float64]:
        """Rows of float64, one a branch, reused from step to step; shape (branches, events)."""
        key = ",".join(names)
        if key not in self._events or self._events[key].shape[1] != events:
            self._events[key] = np.empty((len(names), events))
        return self._events[key]

    def _scalar(self, name: str, raw: _Raw, start: int, stop: int, out: NDArray[np.float64]) -> None:
        """Read one value an entry into ``out``, float64, shape (stop - start,)."""
        dtype = self._cursors[name].branch.dtype
        with np.errstate(invalid="ignore"):  # a signalling nan becomes a quiet one
            if not self._cursors[name].fast:
                out[:], _ = self._through_uproot(name, start, stop, lists=False)
                return
            with self._blame(name):
                for body, first, last in self._bodies(name, raw, start, stop):
                    out[first - start : last - start] = scalars(body, dtype, first, last)

    def _jagged(self, name: str, dtype: type[Any], raw: _Raw, start: int, stop: int) -> NDArray[Any]:
        """Read one value a lepton, flat, shape (leptons,), as ``dtype``."""
        leads = name == self._schema.pt
        offsets = self._offsets
        if not self._cursors[name].fast:
            return self._jagged_through_uproot(name, dtype, start, stop)
        branch = self._cursors[name].branch
        store: type[Any] = np.uint8 if dtype is np.uint8 else np.uint32
        out: NDArray[Any] = self._leptons.get(name, np.empty(0, store))
        with self._blame(name):
            for body, first, last in self._bodies(name, raw, start, stop):
                if leads:
                    copy_offsets(body, branch.header, first, last, offsets, first - start)
                needed = int(offsets[last - start])
                if needed > len(out):
                    grown = np.empty(max(needed, len(out) * 3 // 2, 4 * self._step), store)
                    grown[: offsets[first - start]] = out[: offsets[first - start]]
                    out = grown
                copy_values(body, branch.header, first, last, offsets, first - start, out)
        self._leptons[name] = out
        return out[: offsets[stop - start]].view(dtype)

    def _jagged_through_uproot(self, name: str, dtype: type[Any], start: int, stop: int) -> NDArray[Any]:
        values, counts = self._through_uproot(name, start, stop, lists=True)
        offsets = self._offsets[: stop - start + 1]
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

    @contextmanager
    def _blame(self, name: str) -> Iterator[None]:
        """Name file and branch in what a damaged basket raises."""
        try:
            yield
        except ValueError as error:
            raise self._corrupt(name, error) from error

    def _corrupt(self, name: str, reason: object) -> DataError:
        return DataError(f"{self._source.name}: branch {name}: corrupt: {reason}")

    def _fetch(self, start: int, stop: int) -> _Raw:
        """Read the baskets that a step needs, all branches at once; a cursor's own is at hand."""
        wanted: dict[tuple[str, int], Range] = {}
        held: _Raw = {}
        for name, cursor in self._cursors.items():
            branch = cursor.branch
            for i in branch.baskets(start, stop) if cursor.fast else ():
                if i == cursor.number and cursor.body is not None:
                    held[name, i] = cursor.body
                elif i not in branch.embedded:
                    wanted[name, i] = branch.place(i)
        begun = time.perf_counter()
        parts = self._source.read(list(wanted.values()))
        self.read_s += time.perf_counter() - begun
        return held | dict(zip(wanted, parts, strict=True))

    def _is_flag(self, name: str) -> bool:
        return name == self._schema.matched or name in self._schema.electron_id + self._schema.muon_id

    def _is_fast(self, name: str, branch: Branch) -> bool:
        """Tell whether a branch has a shape that its column can be copied from."""
        schema = self._schema
        if self._is_flag(name):
            return branch.jagged and branch.dtype == "|b1"
        if name in (schema.charge, schema.type):
            return branch.jagged and branch.dtype in (">i4", ">u4")
        if name in schema.kinematics:
            return branch.jagged and branch.dtype == ">f4"
        return not branch.jagged and branch.dtype != ""

    def _bodies(self, name: str, raw: _Raw, start: int, stop: int) -> Iterator[tuple[Body, int, int]]:
        """Decompress the baskets of a branch that hold entries start to stop, each with the entries wanted of it."""
        cursor = self._cursors[name]
        branch = cursor.branch
        for i in branch.baskets(start, stop):
            begin, end = branch.range(i)
            if i in branch.embedded:
                data, border = branch.embedded[i]
                body = Body(data, border, 0, begin, end - begin)
            else:
                found = raw[name, i]
                try:
                    body = found if isinstance(found, Body) else unpack(found, begin, end - begin)
                except ValueError as error:
                    raise self._corrupt(f"{name}, basket {i}", error) from error
            if branch.jagged and not body.has_offsets:
                raise self._corrupt(f"{name}, basket {i}", "entry offsets don't fit it")
            cursor.number, cursor.body = i, body
            yield body, max(begin, start), min(end, stop)
