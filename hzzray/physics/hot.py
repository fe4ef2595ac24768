"""Hot candidates: what was measured of events, kept compact, to be judged and filled again by other cuts and templates.

What is filled of them is what ``Filler`` fills of the same events, to the last bit. Sums don't depend on an order, so
candidates are kept as it suits: column by column, each in the smallest type that holds all of its numbers exactly.
Events that no cuts could ever fill, of no region, are only counted, by what cuts can tell of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis, Cut, Template, shape_of
from hzzray.physics.candidates import BAD_INPUT, BAD_WEIGHT, BLOCK, TOO_LARGE, Candidates, make_room
from hzzray.physics.columns import Step
from hzzray.physics.fill import (
    CELL,
    COUNT,
    FINE,
    LOT,
    NOWHERE,
    SUMW,
    SUMW2,
    UNEVEN,
    Split,
    Sums,
    Weights,
    add,
    add_one,
    find_bins,
    has_place,
    is_whole,
    split_weight,
    weigh,
)
from hzzray.physics.filler import exact, no_sums, refuse_misplaced, refuse_too_large, run_measure
from hzzray.physics.histogram import LIMBS, Blocks
from hzzray.physics.jit import entry, one_at_a_time, without_extensions
from hzzray.physics.selection import Selection, parameters_of

#: Candidates of a part at the most, about: their columns go through the second-level cache together.
PART = 32_768

#: Events that are filled at once.
CHUNK = 4096

# Values that a column is tried by first: most that need a larger type show it here.
_TRIED = 64


class Column(NamedTuple):
    """One variable of some candidates: one value where all have the same. And between what its values lie.

    ``values`` is int8, float32 or float64, each of which turns into the very double that was measured. ``holes`` tells
    whether there is nan among them, which ``least`` and ``most`` leave out.
    """

    values: NDArray[Any]
    least: float
    most: float
    holes: bool

    @property
    def step(self) -> int:
        """How far a value is from the next: 0 where there is one."""
        return int(self.values.size > 1)

    def passes(self, low: float, high: float) -> bool:
        """Tell whether all lie between two bounds."""
        return not self.holes and self.least > low and (self.most < high or high == math.inf)

    @property
    def finite(self) -> bool:
        """Whether all are finite."""
        return not self.holes and -math.inf < self.least and self.most < math.inf


class Part(NamedTuple):
    """Some candidates: ``columns``, one a variable (None where it was not measured), and ``region`` (int8).

    Each belongs to an event of its own, or, where there is a ``first`` (int32, one more than events), those of an event
    are together, with their ``rank`` (float64, shape (2, candidates)). Events have a ``weight`` and their ``entry``,
    counted from where the range starts (uint32).
    """

    columns: tuple[Column | None, ...]
    region: NDArray[np.int8]
    weight: Column
    entry: NDArray[np.uint32]
    first: NDArray[np.int32] | None
    rank: NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        arrays = [column.values for column in (*self.columns, self.weight) if column is not None]
        arrays += [self.region, self.entry, self.rank, *([] if self.first is None else [self.first])]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False, slots=True)
class Hot:
    """All that is kept of a range of events.

    ``counted`` events can't be filled whatever the cuts: ``classes`` (float64, shape (variables, classes)) has what
    cuts can tell of them, ``sums`` (int64, shape (classes, 1 + LIMBS)) how many there are of each, and the limbs of
    what they weigh. Of those that are ``invalid`` there are so many, likewise: they stop at the first cut.
    """

    entries: int
    parts: tuple[Part, ...]
    classes: NDArray[np.float64]
    sums: NDArray[np.int64]
    invalid: NDArray[np.int64]
    invalid_sums: NDArray[np.int64]
    measured: frozenset[int]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self.parts) + self.classes.nbytes + self.sums.nbytes

    @property
    def candidates(self) -> int:
        """Candidates that are kept."""
        return sum(part.region.size for part in self.parts)


def shrink(values: NDArray[np.float64]) -> Column:
    """Keep values in the smallest type that has room for each of them to the last bit."""
    if not values.size:
        return Column(values, math.inf, -math.inf, holes=False)
    # Signs of zeros, and bits of nan, are kept too.
    bits = values.view(np.int64)
    kept: NDArray[Any] = values
    if (bits[:_TRIED] == bits[0]).all() and (bits == bits[0]).all():
        kept = values[:1].copy()
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            for dtype in (np.int8, np.float32):
                if _holds(values[:_TRIED], dtype) and _holds(values, dtype):
                    kept = values.astype(dtype)
                    break
    least, most = float(kept.min()), float(kept.max())
    holes = math.isnan(least)
    if holes:
        sound = kept[~np.isnan(kept)]
        least, most = (float(sound.min()), float(sound.max())) if sound.size else (math.inf, -math.inf)
    return Column(kept, least, most, holes)


def _holds(values: NDArray[np.float64], dtype: type[np.int8 | np.float32]) -> bool:
    return bool((values.astype(dtype).astype(np.float64).view(np.int64) == values.view(np.int64)).all())


# --- keeping ---


@entry
def _weigh(start: int, events: int, c: Candidates, weights: Weights, regions: int) -> int:
    """Weigh a block of events; returns what ``judge_and_fill`` would."""
    if not is_whole(events, c):
        return UNEVEN
    if not has_place(c.first[events], c.region, regions):
        return NOWHERE
    weigh(start, events, weights, c)
    return FINE


@entry
def _sum_up(w: NDArray[np.float64], which: NDArray[np.int64], split: Split, sums: NDArray[np.int64]) -> None:
    """Add weights to the cells that they are of, each with its count."""
    for i in range(w.size):
        split_weight(w[i], split, 0, 0, SUMW)
        add_one(sums, which[i], split, 0)


def _make_split(events: int) -> Split:
    return Split(np.zeros((events, 6), np.int64), np.zeros((events, 2), np.uint64))


class _Kept(NamedTuple):
    """What is kept of a block: values (float64, shape (variables, candidates)) and the rest, as Part has it."""

    values: NDArray[np.float64]
    region: NDArray[np.int64]
    weight: NDArray[np.float64]
    entry: NDArray[np.int64]
    number: NDArray[np.int64]
    rank: NDArray[np.float64]


class Keeper:
    """Measures events and keeps what is needed to judge and fill them by whatever cuts and templates.

    ``variables`` are the numbers of those that are measured. Works in memory of its own: one thread at a time. Raises
    ValueError for parameters that the analysis doesn't know.
    """

    def __init__(self, analysis: Analysis, selection: Selection, variables: Sequence[int], gev: float) -> None:
        self._measure = analysis.compiled()
        self._parameters = parameters_of(analysis, selection, gev)
        self._absolute = selection.absolute_weights
        self._regions = len(analysis.regions)
        self._variables = tuple(variables)
        self._slots = np.full(len(analysis.variables), -1, np.int64)
        self._slots[list(self._variables)] = range(len(self._variables))
        self._candidates = make_room(len(self._variables))
        self._split = _make_split(1)

    def keep(self, steps: Iterable[Step], norm: float) -> Hot:
        """Keep what a series of steps holds, whose events weigh ``norm`` times their factors.

        Raises WeightError and MeasureError as ``Filler.fill`` does.
        """
        made = _Making(self._slots, self._split)
        for step in steps:
            weights = Weights(step.factors, step.divisor, norm, self._absolute)
            start, invalid = 0, Sums(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(3, np.int64))
            while start < step.events:
                measured = self._run(start, min(start + BLOCK, step.events), step.columns, weights)
                flags = self._candidates.invalid[:measured]
                for i, flag in enumerate((BAD_INPUT, BAD_WEIGHT, TOO_LARGE)):
                    invalid.invalid[i] += np.count_nonzero(flags & flag)
                made.take(self._candidates, measured)
                start += measured
            refuse_too_large(invalid, step.events)
            made.invalid += invalid.invalid[:2]
        return made.whole(frozenset(self._variables))

    def _run(self, start: int, stop: int, columns: object, weights: Weights) -> int:
        c = self._candidates
        measured = run_measure(self._measure, start, stop, columns, self._parameters, self._slots, c)
        refuse_misplaced(_weigh(start, measured, c, weights, self._regions), c, measured, self._regions)
        return measured

    @without_extensions()
    def warm_up(self, nothing: Step) -> None:
        """Compile what runs, or load it from numba's cache."""
        with one_at_a_time(f"hot {self._measure.__module__} {self._measure.__name__}"):
            self._run(0, 0, nothing.columns, Weights(nothing.factors, nothing.divisor, 1.0, self._absolute))
            _sum_up(np.empty(0), np.empty(0, np.int64), self._split, np.empty(0, np.int64))


# Odd numbers to tell rows of values apart by; what is told apart wrongly is noticed.
_ODD = np.random.default_rng(0).integers(2**62, size=1024, dtype=np.int64) * 2 + 1


class _Making:
    """A range's hot candidates while they are gathered."""

    def __init__(self, slots: NDArray[np.int64], split: Split) -> None:
        self._slots = slots
        self._split = split
        self._parts: list[Part] = []
        self._single: list[_Kept] = []
        self._waiting = 0
        self._multiple: list[_Kept] = []
        self._classes: dict[bytes, NDArray[np.int64]] = {}
        self._invalid_sums = np.zeros(CELL, np.int64)
        self.invalid = np.zeros(2, np.int64)
        self.entries = 0

    def take(self, c: Candidates, events: int) -> None:
        """Take the next events of a block."""
        first, number = c.first[:events], np.diff(c.first[: events + 1])
        sound, single = c.invalid[:events] == 0, number == 1
        region = c.region[first]
        if not sound.all():
            w = c.weight[:events][~sound]
            _sum_up(w, np.zeros(w.size, np.int64), self._split, self._invalid_sums)
        fillable = sound & single & (region >= 0)
        no_region = np.flatnonzero(sound & single & (region < 0))
        if no_region.size:
            fillable[self._count(c, no_region)] = True
        at = np.flatnonzero(fillable)
        k = first[at]
        self._single.append(
            _Kept(c.values[:, k], c.region[k], c.weight[at], at + self.entries, number[at], np.empty((2, 0)))
        )
        self._waiting += at.size
        if self._waiting >= PART:
            self._seal()
        several = sound & ~single
        if several.any():
            at = np.flatnonzero(several)
            k = np.flatnonzero(np.repeat(several, number))
            self._multiple.append(
                _Kept(c.values[:, k], c.region[k], c.weight[at], at + self.entries, number[at], c.rank[:, k])
            )
        self.entries += events

    def _count(self, c: Candidates, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count events that are alike, as far as cuts can tell; returns those that are like no other one."""
        bits = np.ascontiguousarray(c.values[:, c.first[events]]).view(np.int64)
        marks = np.zeros(events.size, np.int64)
        for row, odd in zip(bits, _ODD, strict=False):
            marks = (marks ^ row ^ (marks >> 29)) * odd
        _, example, which, count = np.unique(marks, return_index=True, return_inverse=True, return_counts=True)
        alike = (bits == bits[:, example[which]]).all(axis=0) & (count[which] > 1)
        sums = np.zeros((example.size, CELL), np.int64)
        _sum_up(c.weight[events[alike]], which[alike], self._split, sums.reshape(-1))
        for i in np.flatnonzero(sums[:, COUNT]):
            key = bits[:, example[i]].tobytes()
            self._classes[key] = self._classes[key] + sums[i] if key in self._classes else sums[i]
        rare: NDArray[np.int64] = events[~alike]
        return rare

    def _seal(self) -> None:
        kept, self._single, self._waiting = self._single, [], 0
        if kept and sum(one.region.size for one in kept):
            self._parts.append(self._part(kept, several=False))

    def _part(self, kept: Sequence[_Kept], *, several: bool) -> Part:
        values = np.concatenate([one.values for one in kept], axis=1)
        number = np.concatenate([one.number for one in kept])
        return Part(
            tuple(shrink(values[slot]) if slot >= 0 else None for slot in self._slots.tolist()),
            np.concatenate([one.region for one in kept]).astype(np.int8),
            shrink(np.concatenate([one.weight for one in kept])),
            np.concatenate([one.entry for one in kept]).astype(np.uint32),
            np.concatenate([[0], np.cumsum(number)]).astype(np.int32) if several else None,
            np.concatenate([one.rank for one in kept], axis=1),
        )

    def whole(self, measured: frozenset[int]) -> Hot:
        """Return all that was gathered."""
        self._seal()
        if self._multiple:
            self._parts.append(self._part(self._multiple, several=True))
        rows = np.frombuffer(b"".join(self._classes), np.float64).reshape(
            len(self._classes), int((self._slots >= 0).sum())
        )
        classes = np.full((self._slots.size, len(rows)), np.nan)
        for variable, slot in enumerate(self._slots.tolist()):
            if slot >= 0 and len(rows):
                classes[variable] = rows[:, slot]
        used = [COUNT, *range(SUMW, SUMW + LIMBS)]
        sums = np.array(list(self._classes.values()), np.int64).reshape(-1, CELL)[:, used]
        return Hot(
            self.entries, tuple(self._parts), classes, sums, self.invalid, self._invalid_sums[used], measured
        )  # fmt: skip


# --- judging and filling ---


class _Scratch(NamedTuple):
    """What judging and filling a part needs; grows with the largest."""

    alive: NDArray[np.uint8]
    passed: NDArray[np.int16]
    chosen: NDArray[np.int32]
    region: NDArray[np.int32]
    cell: NDArray[np.int32]
    x: NDArray[np.float64]
    split: Split


def _make_scratch(room: int) -> _Scratch:
    return _Scratch(
        np.zeros(room, np.uint8), np.zeros(room, np.int16), np.zeros(room, np.int32), np.zeros(CHUNK, np.int32),
        np.zeros(LOT, np.int32), np.zeros(LOT), _make_split(CHUNK),
    )  # fmt: skip


@entry
def _narrow(x: NDArray[Any], low: float, high: float, alive: NDArray[np.uint8]) -> None:
    """Let those live on whose value lies between two bounds."""
    open_end = high == math.inf
    for k in range(x.size):
        value = np.float64(x[k])
        alive[k] &= np.uint8((value > low) & ((value < high) | open_end))


@entry
def _narrow_whole(x: NDArray[np.int8], low: int, high: int, alive: NDArray[np.uint8]) -> None:
    """Likewise, of whole numbers: from ``low`` to ``high``."""
    least, most = np.int8(low), np.int8(high)
    for k in range(x.size):
        alive[k] &= np.uint8((x[k] >= least) & (x[k] <= most))


@entry
def _advance(n: int, cuts: int, alive: NDArray[np.uint8], passed: NDArray[np.int16]) -> None:
    """Count so many more cuts for those that live."""
    times = np.int16(cuts)
    for k in range(n):
        passed[k] += np.int16(alive[k]) * times


@entry
def _choose(
    first: NDArray[np.int32], rank: NDArray[np.float64], passed: NDArray[np.int16], out: NDArray[np.int32]
) -> None:
    """Choose for each event the candidate that counts, as ``judge.choose`` does."""
    for e in range(first.size - 1):
        best = first[e]
        for k in range(best + 1, first[e + 1]):
            better = passed[k] > passed[best] or (
                passed[k] == passed[best]
                and (rank[0, k] < rank[0, best] or (rank[0, k] == rank[0, best] and rank[1, k] < rank[1, best]))
            )
            if better:
                best = k
        out[e] = best


@entry
def _settle(
    begin: int, end: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], s: _Scratch,
    t: Sums,
) -> int:  # fmt: skip
    """Add up the events, of those from ``begin`` to ``end``, that a cut stops; moves the others to the front.

    ``fit`` tells which candidates have a finite first observable; empty for all.
    """
    last = t.stopped.size // CELL - 1
    step = np.int64(weight.size > 1)
    m = 0
    for e in range(begin, end):
        k = s.chosen[e]
        row = s.passed[k] + 1
        if row > last and region[k] < 0:
            row = last
        elif row > last and fit.size and not fit[k]:
            t.invalid[0] += 1
            row = 1
        w = weight[e * step]
        split_weight(w, s.split, m, 0, SUMW)
        if row <= last:
            add_one(t.stopped, row, s.split, m)
        else:
            split_weight(w * w, s.split, m, 1, SUMW2)
            s.chosen[begin + m] = k
            s.region[m] = region[k]
            m += 1
    return m


@entry
def _fill(
    x: NDArray[Any], begin: int, m: int, axis: NDArray[np.float64], first: int, s: _Scratch, cells: NDArray[np.int64]
) -> None:
    """Fill a template with m chosen candidates, those from ``begin`` on."""
    step = np.int64(x.size > 1)
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        for i in range(n):
            s.x[i] = x[s.chosen[begin + at + i] * step]
        find_bins(n, s.x, axis, s.region[at:], first, s.cell)
        add(n, cells, s.cell, s.split.parts[at:], s.split.at[at:])


class UnmeasuredError(ValueError):
    """A variable that hot candidates lack: their file has nothing to measure it of."""


class Picked(NamedTuple):
    """Some candidates, each of an event of its own.

    ``entry`` (int64) counts from where the range starts; ``region`` is int64, ``weight`` float64. ``values`` (float64)
    has shape (variables, candidates), nan where a variable was not measured.
    """

    entry: NDArray[np.int64]
    region: NDArray[np.int64]
    weight: NDArray[np.float64]
    values: NDArray[np.float64]


class Refiller:
    """Judges and fills hot candidates by some cuts and templates: what is filled is exactly what ``Filler`` fills.

    Works in memory of its own: one thread at a time. Raises ValueError for variables that the analysis doesn't have.
    """

    def __init__(self, analysis: Analysis, cuts: Sequence[Cut], templates: Sequence[Template]) -> None:
        #: The form of what is filled.
        self.shape = shape_of(analysis.regions, cuts, templates)
        self._cuts = [
            [
                (
                    analysis.index(bound.variable),
                    -math.inf if bound.low is None else bound.low,
                    math.inf if bound.high is None else bound.high,
                )
                for bound in cut.bounds
            ]
            for cut in cuts
        ]
        self._observables = [
            (
                analysis.index(template.observable),
                np.array([template.axis.start, template.axis.stop, template.axis.bins, template.axis.width]),
                self.shape.slice(i).start,
            )
            for i, template in enumerate(templates)
        ]
        wanted = {variable for cut in self._cuts for variable, _, _ in cut} | {row[0] for row in self._observables}
        self._wanted = {variable: analysis.variables[variable].name for variable in wanted}
        self._s = _make_scratch(PART + BLOCK)

    def fill(self, hot: Iterable[Hot]) -> Blocks:
        """Fill blocks with what is hot; raises UnmeasuredError where a variable is lacking."""
        sums = self.begin()
        return self.end(sums, sum(self.add(one, sums) for one in hot))

    def begin(self) -> Sums:
        """Begin with sums of nothing."""
        return no_sums(self.shape)

    def add(self, hot: Hot, sums: Sums) -> int:
        """Add what is hot, and return how many events that is; raises UnmeasuredError, with nothing added."""
        self._require(hot)
        for part in hot.parts:
            self._fill(part, sums)
        self._add_counted(hot, sums)
        return hot.entries

    def end(self, sums: Sums, entries: int) -> Blocks:
        """Make blocks of what was added."""
        return exact(self.shape, sums, entries)

    def pick(self, hot: Hot, low: float = -math.inf, high: float = math.inf, limit: int | None = None) -> Picked:
        """Pick the candidates that are filled, the first observable's value from ``low`` on and below ``high``.

        ``limit`` is how many at the most, in no order; raises UnmeasuredError where a variable is lacking.
        """
        self._require(hot)
        first = self._observables[0][0]
        found = [Picked(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty((len(hot.classes), 0)))]
        left = limit
        for part in hot.parts:
            chosen, passed = self.judge(part)
            x = np.broadcast_to(_column(part, first).values.astype(np.float64), part.region.shape)[chosen]
            fits = (passed[chosen] == len(self._cuts)) & (part.region[chosen] >= 0) & np.isfinite(x)
            events = np.flatnonzero(fits & (x >= low) & (x < high))[:left]
            found.append(_picked(part, events, chosen[events]))
            if left is not None:
                left -= events.size
        return Picked(*(np.concatenate(arrays, axis=-1) for arrays in zip(*found, strict=True)))

    def _require(self, hot: Hot) -> None:
        lacking = [name for variable, name in self._wanted.items() if variable not in hot.measured]
        if lacking:
            raise UnmeasuredError(", ".join(lacking))

    def _fill(self, part: Part, sums: Sums) -> None:
        events, weight = part.entry.size, part.weight.values
        self.judge(part)
        s = self._s
        columns = [(_column(part, variable).values, axis, first) for variable, axis, first in self._observables]
        fit = np.empty(0, np.bool_)
        if not _column(part, self._observables[0][0]).finite:
            fit = np.broadcast_to(np.isfinite(columns[0][0]), part.region.shape).copy()
        for begin in range(0, events, CHUNK):
            m = _settle(begin, min(begin + CHUNK, events), part.region, weight, fit, s, sums)
            if m:
                for x, axis, first in columns:
                    _fill(x, begin, m, axis, first, s, sums.cells)

    def judge(self, part: Part) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Tell which candidate of each event counts, and how many cuts each candidate passes before one that stops it.

        Both live until the next call.
        """
        n = part.region.size
        if n > self._s.alive.size:
            self._s = _make_scratch(n)
        s = self._s
        alive, passed = s.alive[:n], s.passed[:n]
        alive[:] = 1
        passed[:] = 0
        due = 0
        for cut in self._cuts:
            for variable, low, high in cut:
                column = _column(part, variable)
                if column.passes(low, high):
                    continue
                if due:
                    _advance(n, due, alive, passed)
                    due = 0
                _narrow_by(column, low, high, alive)
            due += 1
        _advance(n, due, alive, passed)
        if part.first is None:
            s.chosen[:n] = np.arange(n, dtype=np.int32)
        else:
            _choose(part.first, part.rank, passed, s.chosen)
        return s.chosen[: part.entry.size], passed

    def _add_counted(self, hot: Hot, sums: Sums) -> None:
        """Add what is only counted: it stops at the first cut that it fails, or at the last one."""
        stopped = sums.stopped.reshape(-1, CELL)[:, COUNT : SUMW + LIMBS]
        alive, passed = np.ones(len(hot.sums), bool), np.zeros(len(hot.sums), np.int64)
        for cut in self._cuts:
            for variable, low, high in cut:
                x = hot.classes[variable]
                alive &= (x > low) & ((x < high) | (high == math.inf))
            passed += alive
        np.add.at(stopped, np.minimum(passed + 1, len(self._cuts)), hot.sums)
        stopped[1] += hot.invalid_sums
        sums.invalid[:2] += hot.invalid


def _picked(part: Part, events: NDArray[np.int64], chosen: NDArray[np.int32]) -> Picked:
    rows = [
        np.full(events.size, np.nan) if column is None else column.values[chosen * column.step].astype(np.float64)
        for column in part.columns
    ]
    return Picked(
        part.entry[events].astype(np.int64),
        part.region[chosen].astype(np.int64),
        part.weight.values[events * part.weight.step],
        np.array(rows),
    )


def _column(part: Part, variable: int) -> Column:
    column = part.columns[variable]
    if column is None:
        raise UnmeasuredError(f"variable {variable}")
    return column


def _narrow_by(column: Column, low: float, high: float, alive: NDArray[np.uint8]) -> None:
    if not column.step:
        alive[:] = 0  # all have the same value, which doesn't pass
    elif column.values.dtype == np.int8:
        least = max(math.floor(max(low, -129.0)) + 1, -128)
        most = min(math.ceil(min(high, 128.0)) - 1, 127)
        if least > 127 or most < -128:
            alive[:] = 0
        else:
            _narrow_whole(column.values, least, most, alive)
    else:
        _narrow(column.values, low, high, alive)
