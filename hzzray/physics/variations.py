"""Variations of simulation, filled in the same pass: events that weigh otherwise, and leptons with another pt.

Chosen candidates and their bins serve all variations of the weight. Their weights, cut at places that all events of a
lot share, add up in doubles without rounding, many variations side by side; now and then they go to the exact sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis, Layout, Variation
from hzzray.physics.candidates import BLOCK, Candidates
from hzzray.physics.columns import Reads, Role, Scalar, Step, roles_of
from hzzray.physics.fill import (
    CELL,
    LOT,
    SUMW,
    SUMW2,
    Scratch,
    Split,
    Sums,
    Weights,
    find_bins,
    make_split,
    split_weight,
)
from hzzray.physics.histogram import MAX_WEIGHT, Shape
from hzzray.physics.jit import entry, inlined, kernel

# A size counts for so many leptons at the most, fewer than this; so many variables may say how many these are.
_TIMES, _VARIABLES = 8, 3

# As of hot candidates (``hot._OCTAVES``): weights within so many powers of two, the first of them from the least to the
# largest one here, and so many of them, add up in doubles without rounding, and so do their squares.
_OCTAVES, _LEAST, _LARGEST = 11, -38, 13
_EVENTS = 2**15


# --- another weight ---


class _Weighed(NamedTuple):
    """Directions of which events weigh otherwise, those that are made alike together.

    ``first`` (int64, one a direction) is a direction's first cell. ``power`` (float64, shape (rows, directions)) is
    what weights are multiplied by, in the row that the candidate's variables ``rows`` (int64, where their values are)
    make together, each a digit. ``groups`` (int64, shape (groups, 4)) are directions with something else in the place
    of one factor, the last number: from the first number to the second ``spread`` (float64, one a direction) times what
    it is above one, from there to the third row ``other`` (int64, one a direction) of what is read beside.
    """

    first: NDArray[np.int64]
    power: NDArray[np.float64]
    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    spread: NDArray[np.float64]
    other: NDArray[np.int64]


class _Room(NamedTuple):
    """What weighing otherwise needs.

    ``folds`` (float64, shape (cells, 4, directions)) has the upper and lower halves of weights and of their squares,
    ``counts`` (int64, one a cell) how many events that is. ``state`` has how many they are together, and the power of
    two that these are made for. Of a block of events ``event`` (int64) has the numbers of those that passed, ``cell``
    (int32) where they belong; ``order`` (int64) puts those of a cell together, ``starts`` (int64, one a cell and one
    more) tells where. Of a lot of them ``x`` (float64, shape (events, directions)) is what they weigh, ``fits`` whether
    that can go to the folds.
    """

    folds: NDArray[np.float64]
    counts: NDArray[np.int64]
    state: NDArray[np.int64]
    event: NDArray[np.int64]
    cell: NDArray[np.int32]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    x: NDArray[np.float64]
    fits: NDArray[np.bool_]
    split: Split


_HELD, _OCTAVE, _NO_OCTAVE = 0, 1, -(10**6)

# Events at a time: so few that what they weigh in many directions stays in the first-level cache.
_LOT = 32


def _make_room(cells: int, directions: int) -> _Room:
    return _Room(
        np.zeros((cells, 4, directions)), np.zeros(cells, np.int64), np.array([0, _NO_OCTAVE], np.int64),
        np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.int32), np.zeros(BLOCK, np.int64), np.zeros(cells + 1, np.int64),
        np.zeros((_LOT, directions)), np.zeros(_LOT, np.bool_), make_split(1),
    )  # fmt: skip


class _Direction(NamedTuple):
    """One of ``_Weighed``, by what it is made of."""

    cell: int
    each: str
    factor: int
    scale: float
    spread: float
    other: int


def _weighed(
    analysis: Analysis, variations: Sequence[Variation], layout: Layout, shape: Shape, reads: Reads
) -> _Weighed:
    """Turn variations of the weight into numbers, for compiled code; raises ValueError for what can't be."""
    scalars = [read.branch for read in reads.more if isinstance(read, Scalar)]
    made: list[_Direction] = []
    number = 0
    for one in variations:
        for up, sign in enumerate((1.0, -1.0)[: len(one.filled)]):
            cell, scale = shape.block(number).start, 1.0 + sign * (one.size or 0.0)
            number += 1
            if one.kind == "weight":
                made.append(_Direction(cell, one.each, -1, scale, 0.0, -1))
            elif one.kind == "spread":
                made.append(_Direction(cell, "", _factor(one, reads), 1.0, scale, -1))
            elif one.kind == "branch":
                made.append(_Direction(cell, "", _factor(one, reads), 1.0, 0.0, scalars.index(one.branches[up])))
    made.sort(key=lambda its: (its.factor, its.other >= 0))
    kinds = list(dict.fromkeys(its.each for its in made if its.each))
    if len(kinds) > _VARIABLES:
        raise ValueError(f"variations count by {', '.join(kinds)}: {_VARIABLES} variables are the most")
    power = np.ones((_TIMES ** len(kinds), len(made)))
    digits = np.indices((_TIMES,) * len(kinds)).reshape(len(kinds), len(power))
    for at, its in enumerate(made):
        powers = np.cumprod([1.0, *[its.scale] * (_TIMES - 1)])
        power[:, at] = powers[digits[kinds.index(its.each)]] if its.each else its.scale
    groups = []
    for factor in dict.fromkeys(its.factor for its in made if its.factor >= 0):
        own = [at for at, its in enumerate(made) if its.factor == factor]
        groups.append((own[0], own[0] + sum(made[at].other < 0 for at in own), own[-1] + 1, factor))
    return _Weighed(
        np.array([its.cell for its in made], np.int64),
        power,
        np.array([layout.slots[analysis.index(each)] for each in kinds], np.int64),
        np.array(groups, np.int64).reshape(-1, 4),
        np.array([its.spread for its in made], np.float64),
        np.array([its.other for its in made], np.int64),
    )


def _factor(one: Variation, reads: Reads) -> int:
    if one.factor not in reads.factors:
        known = ", ".join(reads.factors) or "none"
        raise ValueError(f"variation {one.name}: {one.factor} is none of the release's weight factors: {known}")
    return reads.factors.index(one.factor)


@entry
def _vary_weights(
    start: int, c: Candidates, weights: Weights, others: NDArray[np.float64], lay: Layout, v: _Weighed, s: Scratch,
    room: _Room, t: Sums,
) -> None:  # fmt: skip
    """Add the events of a block that passed, by what ``judge_and_fill`` left of them, to all directions' cells."""
    m = s.passing[0]
    e = 0
    for i in range(m):
        while c.first[e + 1] <= s.chosen[i]:
            e += 1
        room.event[i] = e
    for template in range(lay.axis_row.size):
        _sort(m, template, c, lay, s, room)
        if room.state[_HELD] + m > _EVENTS:
            _settle(v.first, room, t)
        if room.state[_OCTAVE] == _NO_OCTAVE:
            room.state[_OCTAVE] = _octave(m, room.event, c.weight)
        room.state[_HELD] += m
        fitting = 0
        for at in range(0, m, _LOT):
            order = room.order[at : min(at + _LOT, m)]
            _scale(order, s.chosen, c, v.power, v.rows, room.event, room.x)
            for g in range(v.groups.shape[0]):
                _replace(order, start, v.groups[g], weights, others, v.spread, v.other, room.event, room.x)
            own = _look(order.size, room.state[_OCTAVE], room.x, room.fits)
            _add_folds(order, room.state[_OCTAVE], room.x, room.fits, room.cell, room.folds, room.counts)
            if own < order.size:
                _add_others(order, v.first, room, t)
            fitting += own
        if 4 * fitting < 3 * m:  # what comes now weighs otherwise
            _settle(v.first, room, t)


@kernel
def _sort(m: int, template: int, c: Candidates, lay: Layout, s: Scratch, room: _Room) -> None:
    """Find the cells of m events in a template, and put those of a cell together: its sums stay in a cache."""
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        for i in range(n):
            s.x[i] = c.values[lay.axis_row[template], s.chosen[at + i]]
        find_bins(n, s.x, lay.axes[template], s.region[at:], lay.axis_cell[template], room.cell[at:])
    starts = room.starts
    for k in range(starts.size):
        starts[k] = 0
    for i in range(m):
        starts[room.cell[i] + 1] += 1
    for k in range(1, starts.size):
        starts[k] += starts[k - 1]
    for i in range(m):
        k = room.cell[i]
        room.order[starts[k]] = i
        starts[k] += 1


@kernel
def _scale(
    order: NDArray[np.int64], chosen: NDArray[np.int64], c: Candidates, power: NDArray[np.float64],
    rows: NDArray[np.int64], event: NDArray[np.int64], x: NDArray[np.float64],
) -> None:  # fmt: skip
    """Multiply what events weigh by powers that their candidates' variables choose."""
    for i in range(order.size):
        row = 0
        for k in range(rows.size):
            value = c.values[rows[k], chosen[order[i]]]
            digit = int(min(max(value, 0.0), _TIMES - 1.0) + 0.5) if not np.isnan(value) else 0
            row = _TIMES * row + digit
        w, own, by = c.weight[event[order[i]]], x[i], power[row]
        for j in range(own.size):
            own[j] = w * by[j]


@kernel
def _replace(
    order: NDArray[np.int64], start: int, group: NDArray[np.int64], weights: Weights, others: NDArray[np.float64],
    spread: NDArray[np.float64], other: NDArray[np.int64], event: NDArray[np.int64], x: NDArray[np.float64],
) -> None:  # fmt: skip
    """Weigh events with something else in the place of one factor."""
    begin, middle, end, factor = group[0], group[1], group[2], group[3]
    for i in range(order.size):
        e = start + event[order[i]]
        own = _signed(weights.factors[factor, e], weights.absolute)
        rest = weights.norm
        for f in range(weights.factors.shape[0]):
            if f != factor:
                rest *= _signed(weights.factors[f, e], weights.absolute)
        if weights.divisor.size:
            rest /= _signed(weights.divisor[e], weights.absolute)
        out, by, above = x[i, begin:middle], spread[begin:middle], own - 1.0
        for j in range(out.size):
            out[j] = rest * (1.0 + above * by[j])
        for j in range(middle, end):
            found = _signed(others[other[j], e], weights.absolute)
            x[i, j] = rest * (found if np.isfinite(found) else own)  # what is no number varies nothing


@inlined
def _signed(x: float, absolute: bool) -> float:  # noqa: FBT001
    return abs(x) if absolute else x


@kernel
def _octave(m: int, event: NDArray[np.int64], weight: NDArray[np.float64]) -> int:
    """Choose the power of two that folds begin at, by the largest of some weights."""
    largest = 0.0
    for i in range(m):
        largest = max(largest, abs(weight[event[i]]))
    exponent = int((np.float64(largest).view(np.int64) >> 52) & 0x7FF) - 1023
    return min(max(exponent - (_OCTAVES - 3), _LEAST), _LARGEST)


@kernel
def _look(n: int, octave: int, x: NDArray[np.float64], fits: NDArray[np.bool_]) -> int:
    """Tell which of n events weigh what folds of an octave have room for, in all directions; returns how many."""
    least, beyond = 2.0**octave, 2.0 ** (octave + _OCTAVES)
    fitting = 0
    for i in range(n):
        own, good = x[i], 0
        for j in range(own.size):
            size = abs(own[j])
            good += ((size >= least) | (size == 0.0)) & (size < beyond)
        fits[i] = good == own.size
        fitting += fits[i]
    return fitting


@kernel
def _add_folds(
    order: NDArray[np.int64], octave: int, x: NDArray[np.float64], fits: NDArray[np.bool_], cell: NDArray[np.int32],
    folds: NDArray[np.float64], counts: NDArray[np.int64],
) -> None:  # fmt: skip
    """Add events that fit to a cell each, in all directions.

    As in ``hot._settle``, a half is what is left when a number that is large enough was added and taken away again.
    """
    large = 1.5 * 2.0 ** (octave + _OCTAVES + 16)
    larger = 1.5 * 2.0 ** (2 * (octave + _OCTAVES) + 16)
    for i in range(order.size):
        if fits[i]:
            at = cell[order[i]]
            own, to = x[i], folds[at]
            high, low, high2, low2 = to[0], to[1], to[2], to[3]
            for j in range(own.size):
                w = own[j]
                half = (w + large) - large
                w2 = w * w
                half2 = (w2 + larger) - larger
                high[j] += half
                low[j] += w - half
                high2[j] += half2
                low2[j] += w2 - half2
            counts[at] += 1


@kernel
def _add_others(order: NDArray[np.int64], first: NDArray[np.int64], room: _Room, t: Sums) -> None:
    """Add those that don't fit, one by one."""
    for i in range(order.size):
        if room.fits[i]:
            continue
        for j in range(first.size):
            w = room.x[i, j]
            if not abs(w) < MAX_WEIGHT:
                t.invalid[2] += 1
                continue
            to = (first[j] + room.cell[order[i]]) * CELL
            t.cells[to] += 1
            _put(w, SUMW, to, room.split, t.cells)
            _put(w * w, SUMW2, to, room.split, t.cells)


@inlined
def _put(x: float, first: int, to: int, split: Split, cells: NDArray[np.int64]) -> None:
    split_weight(x, split, 0, 0, first)
    at = to + np.int64(split.at[0, 0])
    for i in range(3):
        cells[at + i] += split.parts[0, i]


@kernel
def _settle(first: NDArray[np.int64], room: _Room, t: Sums) -> None:
    """Move what the folds hold to where all is summed up."""
    room.state[_HELD] = 0
    room.state[_OCTAVE] = _NO_OCTAVE
    for cell in range(room.counts.size):
        if room.counts[cell] == 0:
            continue
        folds = room.folds[cell]
        for j in range(first.size):
            to = (first[j] + cell) * CELL
            t.cells[to] += room.counts[cell]
            for half in range(4):
                _put(folds[half, j], SUMW if half < 2 else SUMW2, to, room.split, t.cells)
                folds[half, j] = 0.0
        room.counts[cell] = 0


@entry
def _end(first: NDArray[np.int64], room: _Room, t: Sums) -> None:
    _settle(first, room, t)


# --- another pt ---


@entry
def _ratios_of(
    pt: NDArray[np.float32], kind: NDArray[np.int32], flavour: int, shift: NDArray[np.float32], sign: float,
    out: NDArray[np.float64],
) -> None:  # fmt: skip
    """Tell by what leptons' pt is multiplied to be pt ± ``shift``, 0 at least; what is no number varies nothing."""
    for i in range(pt.size):
        ratio = 1.0 + sign * (np.float64(shift[i]) / np.float64(pt[i]))
        out[i] = max(ratio, 0.0) if kind[i] == flavour and np.isfinite(ratio) else 1.0


@entry
def _ratios_by(kind: NDArray[np.int32], flavour: int, size: float, out: NDArray[np.float64]) -> None:
    """Tell by what leptons' pt is multiplied, where all of a flavour change alike."""
    for i in range(kind.size):
        out[i] = 1.0 + size if kind[i] == flavour else 1.0


@inlined
def _mixed(z: np.uint64) -> np.uint64:
    """Mix bits (the finaliser of SplitMix64: G. Steele, D. Lea, C. Flood, OOPSLA 2014)."""
    z = np.uint64((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    z = np.uint64((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(z ^ (z >> np.uint64(31)))


@inlined
def _halves(z: np.uint64) -> float:
    """Add up the four 16-bit numbers of some bits."""
    mask, total = np.uint64(0xFFFF), 0.0
    for i in range(4):
        total += np.float64((z >> np.uint64(16 * i)) & mask)
    return total


@entry
def _ratios_smeared(
    pt: NDArray[np.float32], eta: NDArray[np.float32], phi: NDArray[np.float32], kind: NDArray[np.int32], flavour: int,
    size: float, out: NDArray[np.float64],
) -> None:  # fmt: skip
    """Tell by what leptons' pt is multiplied to be smeared by a part of it.

    The deviate is the sum of eight numbers that are spread evenly, scaled to a variance of one: nearly normal, and made
    of the lepton's own bits, so that it is the same wherever, and in whatever order, the lepton is read.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    for i in range(pt.size):
        if kind[i] != flavour:
            out[i] = 1.0
            continue
        own = (np.uint64(np.float32(pt[i]).view(np.uint32)) << np.uint64(32)) | np.uint64(
            np.float32(phi[i]).view(np.uint32)
        )
        z = np.uint64(own + golden * np.uint64(np.float32(eta[i]).view(np.uint32)))
        total = _halves(_mixed(z)) + _halves(_mixed(np.uint64(z + golden)))
        deviate = ((total + 4.0) / 65536.0 - 4.0) * 1.224744871391589  # √(12/8)
        out[i] = max(1.0 + size * deviate, 0.0)


@entry
def _multiply(values: NDArray[np.float32], ratios: NDArray[np.float64], out: NDArray[np.float32]) -> None:
    for i in range(values.size):
        out[i] = np.float32(np.float64(values[i]) * ratios[i])


@dataclass(frozen=True, slots=True)
class Shifted:
    """A direction in which leptons have another pt: what ``columns`` it goes by, ``more`` is read beside (-1: none)."""

    variation: Variation
    sign: float
    cells: slice
    columns: dict[Role, int]
    more: int

    def columns_of(self, step: Step) -> Any:  # noqa: ANN401 (an analysis' own NamedTuple)
        """Make the columns that are measured, of those of a step."""
        one, columns = self.variation, step.columns
        role = {name: columns[i] for name, i in self.columns.items()}
        pt, kind = role["pt"], role["type"]
        ratios = np.empty(pt.size)
        size, flavour = self.sign * (one.size or 0.0), one.flavour or 0
        if one.kind == "resolution":
            _ratios_smeared(pt, role["eta"], role["phi"], kind, flavour, size, ratios)
        elif one.branch:
            _ratios_of(pt, kind, flavour, step.more[self.more], self.sign, ratios)
        else:
            _ratios_by(kind, flavour, size, ratios)
        changed = {}
        for name in ("pt", "energy"):
            if name in role:
                field = columns._fields[self.columns[name]]
                changed[field] = np.empty(pt.size, np.float32)
                _multiply(role[name], ratios, changed[field])
        return columns._replace(**changed)

    def sums(self, sums: Sums) -> Sums:
        """Take the cells of this direction out of all; what cuts stop is counted for nobody."""
        cells = sums.cells[self.cells.start * CELL : self.cells.stop * CELL]
        return Sums(cells, np.zeros_like(sums.stopped), np.zeros_like(sums.invalid))


class Varied:
    """What fills the variations of a run beside its nominal templates. For one thread at a time.

    ``layout`` is that of the templates that are varied, ``shifted`` are the directions in which all is measured again.
    Raises ValueError for variations that the analysis, or the release, doesn't allow.
    """

    def __init__(
        self, analysis: Analysis, variations: Sequence[Variation], layout: Layout, shape: Shape, reads: Reads
    ) -> None:
        n, each = shape.varied, shape.block(0)
        self.layout = layout._replace(
            axis_row=layout.axis_row[:n], axes=layout.axes[:n], axis_cell=layout.axis_cell[:n]
        )
        self.shifted = _shifted(variations, shape, reads)
        self._weighed = _weighed(analysis, variations, layout, shape, reads)
        self._room = _make_room(each.stop - each.start, len(self._weighed.first))
        self._scalars = [i for i, read in enumerate(reads.more) if isinstance(read, Scalar)]

    def begin(self) -> None:
        """Forget what was due of events that came to nothing."""
        self._room.folds[:] = 0.0
        self._room.counts[:] = 0
        self._room.state[:] = 0, _NO_OCTAVE

    def others(self, step: Step) -> NDArray[np.float64]:
        """Put the branches that stand in the place of factors together: shape (branches, events)."""
        return np.array([step.more[i] for i in self._scalars]).reshape(len(self._scalars), step.events)

    def weigh(
        self, start: int, candidates: Candidates, weights: Weights, others: NDArray[np.float64], s: Scratch, sums: Sums
    ) -> None:
        """Add a block that was just judged and filled to the directions in which its events weigh otherwise."""
        if len(self._weighed.first):
            _vary_weights(start, candidates, weights, others, self.layout, self._weighed, s, self._room, sums)

    def end(self, sums: Sums) -> None:
        """Add what is still due."""
        _end(self._weighed.first, self._room, sums)


def _shifted(variations: Sequence[Variation], shape: Shape, reads: Reads) -> list[Shifted]:
    found = []
    number = 0
    branches = [read.branch for read in reads.more]
    for one in variations:
        for sign in (1.0, -1.0)[: len(one.filled)]:
            if one.kinematic:
                more = branches.index(one.branch) if one.branch else -1
                found.append(Shifted(one, sign, shape.block(number), roles_of(reads.columns, one), more))
            number += 1
    return found
