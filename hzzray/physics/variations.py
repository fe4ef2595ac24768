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
from hzzray.physics.fill import CELL, LOT, SUMW, SUMW2, Scratch, Split, Sums, Weights, find_bins, make_split
from hzzray.physics.fill import split_weight as cut
from hzzray.physics.histogram import MAX_WEIGHT, Shape
from hzzray.physics.jit import entry, inlined, kernel

# A variation is applied once for each of so many leptons at the most.
_MOST = 15

# As of hot candidates (``hot._OCTAVES``): weights within so many powers of two, the first of them from the least to the
# largest one here, and so many of them, add up in doubles without rounding, and so do their squares.
_OCTAVES, _LEAST, _LARGEST = 11, -38, 13
_EVENTS = 2**15


# --- another weight ---


class _Weighed(NamedTuple):
    """Directions of which events weigh otherwise. All arrays have one entry a direction, unless said otherwise.

    ``first`` is a direction's first cell. ``power`` (float64, shape (kinds, _MOST + 1, directions)) is what weights are
    multiplied by, each kind by the value of a variable in ``rows`` (one a kind; -1 for once in any case). ``replaced``
    numbers the directions, and ``factor`` the factors, in whose place stands another: 1 + (f - 1) · ``spread``, or row
    ``other`` of what is read beside (-1 for none): all one a replaced direction.
    """

    first: NDArray[np.int64]
    power: NDArray[np.float64]
    rows: NDArray[np.int64]
    replaced: NDArray[np.int64]
    factor: NDArray[np.int64]
    spread: NDArray[np.float64]
    other: NDArray[np.int64]


class _Room(NamedTuple):
    """What weighing otherwise needs.

    ``folds`` (float64, shape (cells, 4, directions)) has the upper and lower halves of weights and of their squares,
    ``counts`` (int64, one a cell) how many events that is. ``events`` has each passing event's number, ``state`` how
    many events are in the folds and the power of two that these are made for; ``x`` is what an event weighs in each
    direction, ``parts`` (shape (4, directions)) the halves of that.
    """

    folds: NDArray[np.float64]
    counts: NDArray[np.int64]
    events: NDArray[np.int64]
    state: NDArray[np.int64]
    x: NDArray[np.float64]
    parts: NDArray[np.float64]
    split: Split


_HELD, _OCTAVE, _NO_OCTAVE = 0, 1, -(10**6)


def _make_room(cells: int, directions: int) -> _Room:
    return _Room(
        np.zeros((cells, 4, directions)), np.zeros(cells, np.int64), np.zeros(BLOCK, np.int64),
        np.array([0, _NO_OCTAVE], np.int64), np.zeros(directions), np.zeros((4, directions)), make_split(1),
    )  # fmt: skip


def _weighed(
    analysis: Analysis, variations: Sequence[Variation], layout: Layout, shape: Shape, reads: Reads
) -> _Weighed:
    """Turn variations of the weight into numbers, for compiled code; raises ValueError for what can't be."""
    first: list[int] = []
    replaced: list[tuple[int, int, float, int]] = []
    kinds: dict[str, list[tuple[int, float]]] = {}
    scalars = [read.branch for read in reads.more if isinstance(read, Scalar)]
    number = 0
    for one in variations:
        for direction, sign in zip(one.filled, (1.0, -1.0), strict=False):
            if not one.kinematic:
                at = len(first)
                first.append(shape.block(number).start)
                if one.kind == "weight":
                    kinds.setdefault(one.each, []).append((at, 1.0 + sign * (one.size or 0.0)))
                else:
                    factor = _factor(one, reads)
                    other = scalars.index(one.branches[one.directions.index(direction)]) if one.branches else -1
                    replaced.append((at, factor, 1.0 + sign * (one.size or 0.0), other))
            number += 1
    power = np.ones((len(kinds), _MOST + 1, len(first)))
    for kind, scales in enumerate(kinds.values()):
        for at, scale in scales:
            for n in range(1, _MOST + 1):
                power[kind, n, at] = power[kind, n - 1, at] * scale
    rows = [layout.slots[analysis.index(each)] if each else -1 for each in kinds]
    replaced.sort(key=lambda row: row[1])  # the rest of a weight serves all that replace one factor
    columns = [np.array(column) for column in zip(*replaced, strict=True)] or [np.empty(0)] * 4
    at, factor, spread, other = columns
    return _Weighed(
        np.array(first, np.int64), power, np.array(rows, np.int64), at.astype(np.int64), factor.astype(np.int64),
        spread.astype(np.float64), other.astype(np.int64),
    )  # fmt: skip


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
        room.events[i] = e
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        if room.state[_HELD] + n * lay.axis_row.size > _EVENTS:
            _settle(v, room, t)
        if room.state[_OCTAVE] == _NO_OCTAVE:
            room.state[_OCTAVE] = _octave(n, room.events[at:], c.weight)
        slow = 0
        for template in range(lay.axis_row.size):
            for i in range(n):
                s.x[i] = c.values[lay.axis_row[template], s.chosen[at + i]]
            find_bins(n, s.x, lay.axes[template], s.region[at:], lay.axis_cell[template], s.cell)
            for i in range(n):
                event = room.events[at + i]
                _weigh(start + event, s.chosen[at + i], c.weight[event], c, weights, others, v, room)
                slow += _add(s.cell[i], v, room, t)
        room.state[_HELD] += n * lay.axis_row.size
        if 4 * slow > n * lay.axis_row.size:  # what comes now weighs otherwise
            _settle(v, room, t)


@kernel
def _octave(n: int, events: NDArray[np.int64], weight: NDArray[np.float64]) -> int:
    """Choose the power of two that folds begin at, by the largest of some weights."""
    largest = 0.0
    for i in range(n):
        largest = max(largest, abs(weight[events[i]]))
    exponent = int((np.float64(largest).view(np.int64) >> 52) & 0x7FF) - 1023
    return min(max(exponent - (_OCTAVES - 3), _LEAST), _LARGEST)


@kernel
def _weigh(
    event: int, k: int, w: float, c: Candidates, weights: Weights, others: NDArray[np.float64], v: _Weighed, room: _Room
) -> None:
    """Tell what an event weighs in each direction."""
    x = room.x
    for j in range(x.size):
        x[j] = w
    for kind in range(v.rows.size):
        n = 1
        if v.rows[kind] >= 0:
            value = c.values[v.rows[kind], k]
            n = int(min(max(value, 0.0), float(_MOST)) + 0.5) if value == value else 0
        power = v.power[kind, n]
        for j in range(x.size):
            x[j] *= power[j]
    rest = 0.0
    for i in range(v.replaced.size):
        f = v.factor[i]
        own = abs(weights.factors[f, event]) if weights.absolute else weights.factors[f, event]
        if i == 0 or f != v.factor[i - 1]:
            rest = _rest(f, event, weights)
        factor = 1.0 + (own - 1.0) * v.spread[i]
        if v.other[i] >= 0:
            other = others[v.other[i], event]
            other = abs(other) if weights.absolute else other
            factor = other if np.isfinite(other) else own  # what is no number varies nothing
        x[v.replaced[i]] = rest * factor


@inlined
def _rest(factor: int, event: int, weights: Weights) -> float:
    """Tell what an event weighs without one of its factors."""
    rest = weights.norm
    for f in range(weights.factors.shape[0]):
        if f != factor:
            own = weights.factors[f, event]
            rest *= abs(own) if weights.absolute else own
    if weights.divisor.size:
        own = weights.divisor[event]
        rest /= abs(own) if weights.absolute else own
    return rest


@kernel
def _add(cell: int, v: _Weighed, room: _Room, t: Sums) -> int:
    """Add an event to a cell of each direction; returns 0, or 1 where its weights are none for the folds."""
    x, parts = room.x, room.parts
    octave = room.state[_OCTAVE]
    least, beyond = 2.0**octave, 2.0 ** (octave + _OCTAVES)
    odd = 0
    for j in range(x.size):
        size = abs(x[j])
        odd += not (((size >= least) & (size < beyond)) | (size == 0.0))
    if odd:
        _add_slowly(cell, v, room, t)
        return 1
    # As in ``hot._settle``: what is left when a number that is large enough was added and taken away again.
    large = 1.5 * 2.0 ** (octave + _OCTAVES + 16)
    larger = 1.5 * 2.0 ** (2 * (octave + _OCTAVES) + 16)
    high, low, high2, low2 = parts[0], parts[1], parts[2], parts[3]
    for j in range(x.size):
        high[j] = (x[j] + large) - large
    for j in range(x.size):
        low[j] = x[j] - ((x[j] + large) - large)
    for j in range(x.size):
        high2[j] = (x[j] * x[j] + larger) - larger
    for j in range(x.size):
        low2[j] = x[j] * x[j] - ((x[j] * x[j] + larger) - larger)
    folds = room.folds[cell].reshape(-1)
    flat = parts.reshape(-1)
    for j in range(flat.size):
        folds[j] += flat[j]
    room.counts[cell] += 1
    return 0


@kernel
def _add_slowly(cell: int, v: _Weighed, room: _Room, t: Sums) -> None:
    for j in range(room.x.size):
        x = room.x[j]
        if not abs(x) < MAX_WEIGHT:
            t.invalid[2] += 1
            continue
        to = (v.first[j] + cell) * CELL
        t.cells[to] += 1
        _put(x, SUMW, to, room.split, t)
        _put(x * x, SUMW2, to, room.split, t)


@inlined
def _put(x: float, first: int, to: int, split: Split, t: Sums) -> None:
    cut(x, split, 0, 0, first)
    at = to + np.int64(split.at[0, 0])
    for i in range(3):
        t.cells[at + i] += split.parts[0, i]


@kernel
def _settle(v: _Weighed, room: _Room, t: Sums) -> None:
    """Move what the folds hold to where all is summed up."""
    room.state[_HELD] = 0
    room.state[_OCTAVE] = _NO_OCTAVE
    for cell in range(room.counts.size):
        if room.counts[cell] == 0:
            continue
        folds = room.folds[cell]
        for j in range(v.first.size):
            to = (v.first[j] + cell) * CELL
            t.cells[to] += room.counts[cell]
            for half in range(4):
                _put(folds[half, j], SUMW if half < 2 else SUMW2, to, room.split, t)
                folds[half, j] = 0.0
        room.counts[cell] = 0


@entry
def _end(v: _Weighed, room: _Room, t: Sums) -> None:
    _settle(v, room, t)


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
        size = self.sign * (one.size or 0.0)
        if one.kind == "resolution":
            _ratios_smeared(pt, role["eta"], role["phi"], kind, one.flavour, size, ratios)
        elif one.branch:
            _ratios_of(pt, kind, one.flavour, step.more[self.more], self.sign, ratios)
        else:
            _ratios_by(kind, one.flavour, size, ratios)
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
        _end(self._weighed, self._room, sums)


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
