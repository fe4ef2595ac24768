"""Variations of simulation, filled in the same pass: events that weigh otherwise, and leptons with another pt.

Chosen candidates and their bins serve all variations of the weight. Events of a cell are taken together, one direction
after the other: cut in two at a place that all share, their weights are whole numbers, which add up without rounding,
several at a time; now and then these go to the exact sums.
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
from hzzray.physics.fast_sums import MOST, OCTAVES, octave_of
from hzzray.physics.fill import LOT, Scratch, Sums, Weights, find_bins
from hzzray.physics.histogram import MAX_WEIGHT, Shape
from hzzray.physics.jit import entry, inlined, kernel
from hzzray.physics.limbs import CELL, SUMW, SUMW2, Split, make_split, split_weight

# A size counts for so many leptons at the most, fewer than this; so many variables may say how many these are.
_TIMES, _VARIABLES = 8, 3

# Events that are noted before they are filled: the more of a cell there are, the less each of them costs, as long as
# all that they need stays in a cache.
_NOTES = 2 * BLOCK


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

    ``held`` (int64, shape (cells, directions, 4)) has the upper and lower halves of weights and of their squares,
    ``counts`` (int64, shape (cells, directions)) how many events that is. ``state`` has how many they are together, the
    power of two that these are made for, and how many events have been noted: of each ``event`` (int64) has its number,
    ``weight`` (float64) what it weighs, ``row`` (int64) that of its powers, ``cell`` (int32, shape (templates, events))
    where it belongs. Of some of them ``order`` (int64) puts those of a ``key`` (int64), a cell and a row, together, and
    ``ends`` (int64, one a key and one more) tells where. In this order ``w`` (float64) is what they weigh, ``own`` what
    a factor is, ``rest`` what they weigh without it, and ``x`` what they weigh in one direction. ``cuts`` (float64,
    shape (6,)) tells where weights are cut in two: see ``_cut``.
    """

    held: NDArray[np.int64]
    counts: NDArray[np.int64]
    state: NDArray[np.int64]
    event: NDArray[np.int64]
    weight: NDArray[np.float64]
    row: NDArray[np.int64]
    cell: NDArray[np.int32]
    key: NDArray[np.int64]
    order: NDArray[np.int64]
    ends: NDArray[np.int64]
    w: NDArray[np.float64]
    own: NDArray[np.float64]
    rest: NDArray[np.float64]
    x: NDArray[np.float64]
    cuts: NDArray[np.float64]
    split: Split


_HELD, _OCTAVE, _NOTED, _NO_OCTAVE = 0, 1, 2, -(10**6)


def _make_room(shape: Shape, v: _Weighed) -> _Room:
    each = shape.block(0)
    cells, directions = each.stop - each.start, len(v.first)
    return _Room(
        held=np.zeros((cells, directions, 4), np.int64),
        counts=np.zeros((cells, directions), np.int64),
        state=np.array([0, _NO_OCTAVE, 0], np.int64),
        event=np.zeros(_NOTES, np.int64),
        weight=np.zeros(_NOTES),
        row=np.zeros(_NOTES, np.int64),
        cell=np.zeros((shape.varied, _NOTES), np.int32),
        key=np.zeros(_NOTES, np.int64),
        order=np.zeros(_NOTES, np.int64),
        ends=np.zeros(cells * len(v.power) + 1, np.int64),
        w=np.zeros(_NOTES),
        own=np.zeros((len(v.groups), _NOTES)),
        rest=np.zeros((len(v.groups), _NOTES)),
        x=np.zeros(_NOTES),
        cuts=np.zeros(6),
        split=make_split(1),
    )


class Direction(NamedTuple):
    """A direction in which events weigh otherwise: its first ``cell``, and what they weigh then, as ``Variation`` says.

    ``scale`` times their weight, to the power of the variable ``each`` where there is one; or, in place of ``factor``,
    ``spread`` times what it is above one, or the ``branch``.
    """

    cell: int
    each: str
    factor: str
    scale: float
    spread: float
    branch: str


def directions_of(variations: Sequence[Variation], shape: Shape) -> list[Direction]:
    """List the directions in which events weigh otherwise."""
    found = []
    number = 0
    for one in variations:
        for up, sign in enumerate((1.0, -1.0)[: len(one.filled)]):
            cell, scale = shape.block(number).start, 1.0 + sign * (one.size or 0.0)
            number += 1
            if one.kind == "weight":
                found.append(Direction(cell, one.each, "", scale, 0.0, ""))
            elif one.kind == "spread":
                found.append(Direction(cell, "", one.factor, 1.0, scale, ""))
            elif one.kind == "branch":
                found.append(Direction(cell, "", one.factor, 1.0, 0.0, one.branches[up]))
    return found


def powers_of(directions: Sequence[Direction]) -> tuple[list[str], NDArray[np.float64]]:
    """Tell what weights are multiplied by (shape (rows, directions)), and which variables make the row, each a digit.

    Raises ValueError where these are too many.
    """
    kinds = list(dict.fromkeys(its.each for its in directions if its.each))
    if len(kinds) > _VARIABLES:
        raise ValueError(f"variations count by {', '.join(kinds)}: {_VARIABLES} variables are the most")
    power = np.ones((_TIMES ** len(kinds), len(directions)))
    digits = np.indices((_TIMES,) * len(kinds)).reshape(len(kinds), len(power))
    for at, its in enumerate(directions):
        powers = np.cumprod([1.0, *[its.scale] * (_TIMES - 1)])
        power[:, at] = powers[digits[kinds.index(its.each)]] if its.each else its.scale
    return kinds, power


def _weighed(
    analysis: Analysis, variations: Sequence[Variation], layout: Layout, shape: Shape, reads: Reads
) -> _Weighed:
    """Turn variations of the weight into numbers, for compiled code; raises ValueError for what can't be."""
    scalars = [read.branch for read in reads.more if isinstance(read, Scalar)]
    factor = {one.factor: factor_of(one, reads) for one in variations if one.factor} | {"": -1}
    made = sorted(directions_of(variations, shape), key=lambda its: (factor[its.factor], its.branch != ""))
    kinds, power = powers_of(made)
    groups = []
    for name in dict.fromkeys(its.factor for its in made if its.factor):
        own = [at for at, its in enumerate(made) if its.factor == name]
        groups.append((own[0], own[0] + sum(not made[at].branch for at in own), own[-1] + 1, factor[name]))
    return _Weighed(
        np.array([its.cell for its in made], np.int64),
        power,
        np.array([layout.slots[analysis.index(each)] for each in kinds], np.int64),
        np.array(groups, np.int64).reshape(-1, 4),
        np.array([its.spread for its in made], np.float64),
        np.array([scalars.index(its.branch) if its.branch else -1 for its in made], np.int64),
    )


def factor_of(one: Variation, reads: Reads) -> int:
    """Find the weight factor that a variation is of; raises ValueError where the release has no such one."""
    if one.factor not in reads.factors:
        known = ", ".join(reads.factors) or "none"
        raise ValueError(f"variation {one.name}: {one.factor} is none of the release's weight factors: {known}")
    return reads.factors.index(one.factor)


@entry
def _note(start: int, c: Candidates, lay: Layout, v: _Weighed, s: Scratch, room: _Room) -> None:
    """Note the events of a block that passed, by what ``judge_and_fill`` left of them."""
    m, first = s.passing[0], room.state[_NOTED]
    e = 0
    for i in range(m):
        k = s.chosen[i]
        while c.first[e + 1] <= k:
            e += 1
        room.event[first + i] = start + e
        room.weight[first + i] = c.weight[e]
        room.row[first + i] = _row(k, c.values, v.rows)
    for template in range(lay.axis_row.size):
        x = c.values[lay.axis_row[template]]
        for at in range(0, m, LOT):
            n = min(LOT, m - at)
            for i in range(n):
                s.x[i] = x[s.chosen[at + i]]
            cell = room.cell[template, first + at : first + at + n]
            find_bins(n, s.x, lay.axes[template], s.region[at:], lay.axis_cell[template], cell)
    room.state[_NOTED] = first + m


@entry
def _fill(weights: Weights, others: NDArray[np.float64], lay: Layout, v: _Weighed, room: _Room, t: Sums) -> None:
    """Add the events that have been noted to the cells of all directions."""
    m, powers = room.state[_NOTED], v.power.shape[0]
    room.state[_NOTED] = 0
    for template in range(lay.axis_row.size):
        cell = room.cell[template]
        _sort(m, cell, lay.axis_cell[template], lay.regions * (int(lay.axes[template, 2]) + 2), powers, room)
        _gather(m, weights, v.groups, room)
        if room.state[_HELD] + m > MOST:
            _settle(v.first, room, t)
        if room.state[_OCTAVE] == _NO_OCTAVE:
            room.state[_OCTAVE] = octave_of(m, room.w)
            _cut(room.state[_OCTAVE], room.cuts)
        room.state[_HELD] += m
        misfits = begin = 0
        while begin < m:
            i = room.order[begin]
            end = room.ends[room.key[i]]
            misfits += _add_alike(begin, end, cell[i], room.row[i], others, weights.absolute, v, room, t)
            begin = end
        if 4 * misfits > m * v.first.size:  # what comes now weighs otherwise
            _settle(v.first, room, t)


@kernel
def _row(k: int, values: NDArray[np.float64], rows: NDArray[np.int64]) -> int:
    """Find the row of powers that a candidate's variables choose."""
    row = 0
    for i in range(rows.size):
        value = values[rows[i], k]
        row = _TIMES * row + (int(min(max(value, 0.0), _TIMES - 1.0) + 0.5) if not np.isnan(value) else 0)
    return row


def rows_of(values: Sequence[NDArray[np.float64]], number: int) -> NDArray[np.int64]:
    """Find the rows of powers that so many candidates' variables choose, as ``_row`` does."""
    row = np.zeros(number, np.int64)
    for value in values:
        digit = np.clip(value, 0.0, _TIMES - 1.0) + 0.5
        row = _TIMES * row + np.where(np.isnan(value), 0.0, digit).astype(np.int64)
    return row


@kernel
def _sort(m: int, cell: NDArray[np.int32], first: int, cells: int, powers: int, room: _Room) -> None:
    """Put those of m events together that belong to a cell, of those from ``first`` on, and have a row of powers.

    After that ``ends`` has where those of each key end.
    """
    ends = room.ends[: cells * powers + 1]
    for k in range(ends.size):
        ends[k] = 0
    for i in range(m):
        room.key[i] = (cell[i] - first) * powers + room.row[i]
        ends[room.key[i] + 1] += 1
    for k in range(1, ends.size):
        ends[k] += ends[k - 1]
    for i in range(m):
        k = room.key[i]
        room.order[ends[k]] = i
        ends[k] += 1


@inlined
def _signed(x: float, absolute: bool) -> float:  # noqa: FBT001
    return abs(x) if absolute else x


@kernel
def _gather(m: int, weights: Weights, groups: NDArray[np.int64], room: _Room) -> None:
    """Put what m events weigh, and what without a factor, in their order."""
    for i in range(m):
        room.w[i] = room.weight[room.order[i]]
    for g in range(groups.shape[0]):
        factor, own, rest = groups[g, 3], room.own[g], room.rest[g]
        for i in range(m):
            e = room.event[room.order[i]]
            without = weights.norm
            for f in range(weights.factors.shape[0]):
                if f != factor:
                    without *= _signed(weights.factors[f, e], weights.absolute)
            if weights.divisor.size:
                without /= _signed(weights.divisor[e], weights.absolute)
            rest[i] = without
            own[i] = _signed(weights.factors[factor, e], weights.absolute)


@kernel
def _cut(octave: int, cuts: NDArray[np.float64]) -> None:
    """Tell where weights are cut that lie within ``OCTAVES`` powers of two, the first of them 2**octave.

    From where on, and below where they lie; what rounds them to units, and what is left of them; both of squares.
    """
    beyond = octave + OCTAVES
    cuts[0], cuts[1] = 2.0**octave, 2.0**beyond
    cuts[2], cuts[3] = 1.5 * 2.0 ** (beyond + 16), 1.5 * 2.0**octave
    cuts[4], cuts[5] = 1.5 * 2.0 ** (2 * beyond + 16), 1.5 * 2.0 ** (2 * octave)


@kernel
def _add_alike(
    begin: int, end: int, cell: int, row: int, others: NDArray[np.float64], absolute: bool,  # noqa: FBT001
    v: _Weighed, room: _Room, t: Sums,
) -> int:  # fmt: skip
    """Add events of one cell and row of powers in all directions; returns how many weights are misfits."""
    w, x, misfits = room.w[begin:end], room.x[: end - begin], 0
    power = v.power[row]
    for j in range(v.groups[0, 0] if v.groups.shape[0] else v.first.size):
        by = power[j]
        for i in range(x.size):
            x[i] = w[i] * by
        misfits += _add(x, j, cell, v.first, room, t)
    for g in range(v.groups.shape[0]):
        rest, own = room.rest[g, begin:end], room.own[g, begin:end]
        for j in range(v.groups[g, 0], v.groups[g, 1]):
            by = v.spread[j]
            for i in range(x.size):
                x[i] = rest[i] * (1.0 + (own[i] - 1.0) * by)
            misfits += _add(x, j, cell, v.first, room, t)
        for j in range(v.groups[g, 1], v.groups[g, 2]):
            for i in range(x.size):
                found = _signed(others[v.other[j], room.event[room.order[begin + i]]], absolute)
                x[i] = rest[i] * (found if np.isfinite(found) else own[i])  # what is no number varies nothing
            misfits += _add(x, j, cell, v.first, room, t)
    return misfits


@inlined
def _add(x: NDArray[np.float64], j: int, cell: int, first: NDArray[np.int64], room: _Room, t: Sums) -> int:
    """Add events of one cell in one direction; returns how many of them are misfits."""
    fitting: int = _add_halves(x, room.cuts, room.held[cell, j])
    room.counts[cell, j] += fitting
    if fitting < x.size:
        _add_misfits(x, room.cuts, (first[j] + cell) * CELL, room.split, t)
    return x.size - fitting


@kernel
def _add_halves(x: NDArray[np.float64], cuts: NDArray[np.float64], held: NDArray[np.int64]) -> int:
    """Add weights to halves, but for misfits: those of a size that these aren't made for; returns how many were added.

    A number that is large enough rounds what is added to it to whole units, and these are the last bits of the sum: so
    they are added as whole numbers, in whatever order, by several at a time. What is left is a number of units too.
    """
    least, beyond, large, small, larger, smaller = cuts[0], cuts[1], cuts[2], cuts[3], cuts[4], cuts[5]
    zero = np.int64(0)
    fitting, high, low, high2, low2 = zero, zero, zero, zero, zero
    for i in range(x.size):
        size = abs(x[i])
        fits = ((size >= least) | (size == 0.0)) & (size < beyond)
        fitting += np.int64(fits)
        w = x[i] if fits else 0.0
        upper = w + large
        lower = (w - (upper - large)) + small
        square = w * w
        upper2 = square + larger
        lower2 = (square - (upper2 - larger)) + smaller
        high += np.float64(upper).view(np.int64)
        low += np.float64(lower).view(np.int64)
        high2 += np.float64(upper2).view(np.int64)
        low2 += np.float64(lower2).view(np.int64)
    held[0] += high - x.size * np.float64(large).view(np.int64)
    held[1] += low - x.size * np.float64(small).view(np.int64)
    held[2] += high2 - x.size * np.float64(larger).view(np.int64)
    held[3] += low2 - x.size * np.float64(smaller).view(np.int64)
    return int(fitting)


@kernel
def _add_misfits(x: NDArray[np.float64], cuts: NDArray[np.float64], to: int, split: Split, t: Sums) -> None:
    """Add misfits to the exact sums of a cell, one by one."""
    least, beyond = cuts[0], cuts[1]
    for i in range(x.size):
        size = abs(x[i])
        if ((size >= least) | (size == 0.0)) & (size < beyond):
            continue
        if not size < MAX_WEIGHT:
            t.invalid[2] += 1
            continue
        t.cells[to] += 1
        _put(x[i], SUMW, to, split, t.cells)
        _put(x[i] * x[i], SUMW2, to, split, t.cells)


@inlined
def _put(x: float, first: int, to: int, split: Split, cells: NDArray[np.int64]) -> None:
    split_weight(x, split, 0, 0, first)
    at = to + np.int64(split.at[0, 0])
    for i in range(3):
        cells[at + i] += split.parts[0, i]


@kernel
def _settle(first: NDArray[np.int64], room: _Room, t: Sums) -> None:
    """Move what is held to where all is summed up."""
    octave = room.state[_OCTAVE]
    unit, unit2 = 2.0 ** (octave + OCTAVES + 16 - 52), 2.0 ** (2 * (octave + OCTAVES) + 16 - 52)
    least, least2 = 2.0 ** (octave - 52), 2.0 ** (2 * octave - 52)
    for cell in range(room.counts.shape[0]):
        for j in range(first.size):
            if room.counts[cell, j]:
                held, to = room.held[cell, j], (first[j] + cell) * CELL
                t.cells[to] += room.counts[cell, j]
                _put(held[0] * unit, SUMW, to, room.split, t.cells)
                _put(held[1] * least, SUMW, to, room.split, t.cells)
                _put(held[2] * unit2, SUMW2, to, room.split, t.cells)
                _put(held[3] * least2, SUMW2, to, room.split, t.cells)
                room.counts[cell, j] = 0
                for half in range(4):
                    held[half] = 0
    room.state[_HELD] = 0
    room.state[_OCTAVE] = _NO_OCTAVE


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
class KinematicShift:
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
        n = shape.varied
        self.layout = layout._replace(
            axis_row=layout.axis_row[:n], axes=layout.axes[:n], axis_cell=layout.axis_cell[:n]
        )
        self.shifted = _shifted(variations, shape, reads)
        self._weighed = _weighed(analysis, variations, layout, shape, reads)
        self._room = _make_room(shape, self._weighed)
        self._scalars = [i for i, read in enumerate(reads.more) if isinstance(read, Scalar)]

    def begin(self) -> None:
        """Forget what was due of events that came to nothing."""
        self._room.held[:] = 0
        self._room.counts[:] = 0
        self._room.state[:] = 0, _NO_OCTAVE, 0

    def weigh(self, start: int, candidates: Candidates, s: Scratch, step: Step, weights: Weights, sums: Sums) -> None:
        """Take a block that was just judged and filled to the directions in which its events weigh otherwise."""
        if len(self._weighed.first):
            if self._room.state[_NOTED] + s.passing[0] > _NOTES:
                self.fill(step, weights, sums)
            _note(start, candidates, self.layout, self._weighed, s, self._room)

    def fill(self, step: Step, weights: Weights, sums: Sums) -> None:
        """Add what was taken of a step, before the next one."""
        if len(self._weighed.first):
            others = np.array([step.more[i] for i in self._scalars]).reshape(len(self._scalars), step.events)
            _fill(weights, others, self.layout, self._weighed, self._room, sums)

    def end(self, sums: Sums) -> None:
        """Add what is still held, when all steps have been filled."""
        _end(self._weighed.first, self._room, sums)


def _shifted(variations: Sequence[Variation], shape: Shape, reads: Reads) -> list[KinematicShift]:
    found = []
    number = 0
    branches = [read.branch for read in reads.more]
    for one in variations:
        for sign in (1.0, -1.0)[: len(one.filled)]:
            if one.kinematic:
                more = branches.index(one.branch) if one.branch else -1
                found.append(KinematicShift(one, sign, shape.block(number), roles_of(reads.columns, one), more))
            number += 1
    return found
