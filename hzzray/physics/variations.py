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
from hzzray.physics.candidates import Candidates
from hzzray.physics.columns import Reads, Role, Scalar, Step, roles_of
from hzzray.physics.fill import Scratch, Sums, Weights, find_bins
from hzzray.physics.folds import LARGEST, LEAST, MOST, OCTAVES, halve, halver
from hzzray.physics.histogram import MAX_WEIGHT, Shape
from hzzray.physics.jit import entry, inlined, kernel
from hzzray.physics.limbs import CELL, SUMW, SUMW2, Split, make_split, split_weight

# A variation is applied once for each of so many leptons at the most.
_MOST = 15


# --- another weight ---


class _Weighed(NamedTuple):
    """Directions of which events weigh otherwise, those that are made alike together.

    ``first`` (int64, one a direction) is a direction's first cell. ``power`` (float64, shape (kinds, _MOST + 1,
    directions)) is what weights are multiplied by, each kind by the value of a variable, in row ``rows`` (int64, one a
    kind; -1 for once in any case). ``groups`` (int64, shape (groups, 4)) are directions with something else in the
    place of one factor, the last number: from the first number to the second ``spread`` (float64, one a direction)
    times what it is above one, from there to the third row ``other`` (int64, one a direction) of what is read beside.
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
    two that these are made for. Of a lot of events ``x`` (float64, shape (events, directions)) is what they weigh,
    ``event`` and ``candidate`` (int64) are their numbers, ``fits`` tells whether that can go to the folds.
    """

    folds: NDArray[np.float64]
    counts: NDArray[np.int64]
    state: NDArray[np.int64]
    x: NDArray[np.float64]
    event: NDArray[np.int64]
    candidate: NDArray[np.int64]
    fits: NDArray[np.bool_]
    split: Split


_HELD, _OCTAVE, _NO_OCTAVE = 0, 1, -(10**6)

# Events at a time: so few that what they weigh in many directions stays in the first-level cache.
_LOT = 64


def _make_room(cells: int, directions: int) -> _Room:
    return _Room(
        np.zeros((cells, 4, directions)), np.zeros(cells, np.int64), np.array([0, _NO_OCTAVE], np.int64),
        np.zeros((_LOT, directions)), np.zeros(_LOT, np.int64), np.zeros(_LOT, np.int64), np.zeros(_LOT, np.bool_),
        make_split(1),
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
    kinds = list(dict.fromkeys(its.each for its in made if its.factor < 0))
    power = np.ones((len(kinds), _MOST + 1, len(made)))
    for at, its in enumerate(made):
        if its.factor < 0:
            for n in range(1, _MOST + 1):
                power[kinds.index(its.each), n, at] = power[kinds.index(its.each), n - 1, at] * its.scale
    groups = []
    for factor in dict.fromkeys(its.factor for its in made if its.factor >= 0):
        own = [at for at, its in enumerate(made) if its.factor == factor]
        groups.append((own[0], own[0] + sum(made[at].other < 0 for at in own), own[-1] + 1, factor))
    return _Weighed(
        np.array([its.cell for its in made], np.int64),
        power,
        np.array([layout.slots[analysis.index(each)] if each else -1 for each in kinds], np.int64),
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
    for at in range(0, m, _LOT):
        n = min(_LOT, m - at)
        for i in range(n):
            k = s.chosen[at + i]
            while c.first[e + 1] <= k:
                e += 1
            room.event[i] = e
            room.candidate[i] = k
        _scale(n, c.weight, c.values, v.power, v.rows, room.event, room.candidate, room.x)
        for g in range(v.groups.shape[0]):
            _replace(n, start, v.groups[g], weights, others, v.spread, v.other, room.event, room.x)
        if room.state[_HELD] + n * lay.axis_row.size > MOST:
            _settle(v.first, room, t)
        if room.state[_OCTAVE] == _NO_OCTAVE:
            room.state[_OCTAVE] = _octave(n, room.event, c.weight)
        fitting = _look(n, room.state[_OCTAVE], room.x, room.fits)
        for template in range(lay.axis_row.size):
            for i in range(n):
                s.x[i] = c.values[lay.axis_row[template], room.candidate[i]]
            find_bins(n, s.x, lay.axes[template], s.region[at:], lay.axis_cell[template], s.cell)
            _add_folds(n, room.state[_OCTAVE], room.x, room.fits, s.cell, room.folds, room.counts)
            if fitting < n:
                _add_others(n, s.cell, v.first, room, t)
        room.state[_HELD] += n * lay.axis_row.size
        if 4 * fitting < 3 * n:  # what comes now weighs otherwise
            _settle(v.first, room, t)


@kernel
def _scale(
    n: int, weight: NDArray[np.float64], values: NDArray[np.float64], power: NDArray[np.float64],
    rows: NDArray[np.int64], event: NDArray[np.int64], candidate: NDArray[np.int64], x: NDArray[np.float64],
) -> None:  # fmt: skip
    """Multiply what n events weigh by powers that their variables choose."""
    for i in range(n):
        w, own = weight[event[i]], x[i]
        for j in range(own.size):
            own[j] = w
        for kind in range(rows.size):
            times = 1
            if rows[kind] >= 0:
                value = values[rows[kind], candidate[i]]
                times = int(min(max(value, 0.0), float(_MOST)) + 0.5) if not np.isnan(value) else 0
            by = power[kind, times]
            for j in range(own.size):
                own[j] *= by[j]


@kernel
def _replace(
    n: int, start: int, group: NDArray[np.int64], weights: Weights, others: NDArray[np.float64],
    spread: NDArray[np.float64], other: NDArray[np.int64], event: NDArray[np.int64], x: NDArray[np.float64],
) -> None:  # fmt: skip
    """Weigh n events with something else in the place of one factor."""
    begin, middle, end, factor = group[0], group[1], group[2], group[3]
    for i in range(n):
        e = start + event[i]
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
def _octave(n: int, event: NDArray[np.int64], weight: NDArray[np.float64]) -> int:
    """Choose the power of two that folds begin at, by the largest of some weights."""
    largest = 0.0
    for i in range(n):
        largest = max(largest, abs(weight[event[i]]))
    exponent = int((np.float64(largest).view(np.int64) >> 52) & 0x7FF) - 1023
    return min(max(exponent - (OCTAVES - 3), LEAST), LARGEST)


@kernel
def _look(n: int, octave: int, x: NDArray[np.float64], fits: NDArray[np.bool_]) -> int:
    """Tell which of n events weigh what folds of an octave have room for, in all directions; returns how many."""
    least, beyond = 2.0**octave, 2.0 ** (octave + OCTAVES)
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
    n: int, octave: int, x: NDArray[np.float64], fits: NDArray[np.bool_], cell: NDArray[np.int32],
    folds: NDArray[np.float64], counts: NDArray[np.int64],
) -> None:  # fmt: skip
    """Add events that fit to a cell each, in all directions."""
    large, larger = halver(octave)
    for i in range(n):
        if fits[i]:
            own, to = x[i], folds[cell[i]]
            high, low, high2, low2 = to[0], to[1], to[2], to[3]
            for j in range(own.size):
                half, rest = halve(own[j], large)
                half2, rest2 = halve(own[j] * own[j], larger)
                high[j] += half
                low[j] += rest
                high2[j] += half2
                low2[j] += rest2
            counts[cell[i]] += 1


@kernel
def _add_others(n: int, cell: NDArray[np.int32], first: NDArray[np.int64], room: _Room, t: Sums) -> None:
    """Add those that don't fit, one by one."""
    for i in range(n):
        if room.fits[i]:
            continue
        for j in range(first.size):
            w = room.x[i, j]
            if not abs(w) < MAX_WEIGHT:
                t.invalid[2] += 1
                continue
            to = (first[j] + cell[i]) * CELL
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
