"""Fill templates with what was judged: a weight is cut in two once, then added to one cell of each template.

Sums of such folds are exact, and go to the limbs of exact sums now and then. A weight that is too far from the others
goes there at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Layout
from hzzray.physics.candidates import BAD_INPUT, BAD_WEIGHT, BLOCK, SPARE, TOO_LARGE, Candidates
from hzzray.physics.fast_sums import FOLDS, MOST, OCTAVES, halve, halver, octave_of, unfold
from hzzray.physics.histogram import MAX_WEIGHT, Shape
from hzzray.physics.jit import entry, inlined, kernel
from hzzray.physics.judge import choose, count_passed
from hzzray.physics.limbs import CELL, SUMW, SUMW2, Split, add_one, add_whole, make_split, split_weight

#: What became of a block.
FINE, UNEVEN, NOWHERE = 0, 1, 2

#: Events that all templates take before the next ones come: what they weigh stays in the first-level cache.
LOT = 512


class Sums(NamedTuple):
    """Accumulators (int64): ``cells``, shape (cells · CELL,), likewise ``stopped``, one for each row of the cutflow.

    ``invalid`` (shape (3,)) counts events with nan or inf in what they are made of, in a weight, and weights too large.
    """

    cells: NDArray[np.int64]
    stopped: NDArray[np.int64]
    invalid: NDArray[np.int64]


class Scratch(NamedTuple):
    """What judging and filling a block needs.

    After that ``passing`` (one number) is how many events passed, ``chosen`` has their candidates, rising, and
    ``region`` these candidates' regions. Of those that passed ``folds`` (float64, ``FOLDS`` each) are weights and their
    squares, each cut in two, and 1; zeros for the ``odd`` ones, whose weights are in ``split``. ``rows`` and ``cells``
    (float64, ``FOLDS`` each) are sums of folds: of rows of the cutflow, two for each, in turn, and of cells. ``state``
    says of how many events they hold something, and the octave of these events' weights.
    """

    passed: NDArray[np.int64]
    alive: NDArray[np.bool_]
    chosen: NDArray[np.int64]
    region: NDArray[np.int32]
    cell: NDArray[np.int32]
    x: NDArray[np.float64]
    split: Split
    passing: NDArray[np.int64]
    folds: NDArray[np.float64]
    odd: NDArray[np.int64]
    rows: NDArray[np.float64]
    cells: NDArray[np.float64]
    state: NDArray[np.int64]


_HELD, _OCTAVE = 0, 1

# Unsigned numbers index without a look at whether they are negative.
_1, _2, _3, _4, _FOLDS = (np.uint64(number) for number in (1, 2, 3, 4, FOLDS))


def make_scratch(shape: Shape) -> Scratch:
    """Make room for what a block needs, whose templates are those of a shape."""
    room = BLOCK + SPARE
    return Scratch(
        np.zeros(room, np.int64), np.zeros(room, np.bool_), np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.int32),
        np.zeros(LOT, np.int32), np.zeros(LOT), make_split(BLOCK), np.zeros(1, np.int64), np.zeros((BLOCK + 1) * FOLDS),
        np.zeros(BLOCK, np.int64), np.zeros(2 * (shape.rows + 1) * FOLDS), np.zeros(shape.nominal * FOLDS),
        np.zeros(2, np.int64),
    )  # fmt: skip


def forget(s: Scratch) -> None:
    """Forget what blocks have left in folds: of events that came to nothing."""
    if s.state[_HELD]:
        s.rows[:], s.cells[:], s.state[:] = 0.0, 0.0, 0


@kernel
def find_bins(
    n: int, x: NDArray[np.float64], axis: NDArray[np.float64], region: NDArray[np.int32], first: int,
    cell: NDArray[np.int32],
) -> None:  # fmt: skip
    """Find the cells of n values: of a region's bins 0 below, bins + 1 from the last edge on, and for nan.

    ``axis`` is start, stop, number of bins and step; edge k is k · step + start, as ``numpy.linspace`` has it.
    """
    start, stop, bins, step = axis[0], axis[1], axis[2], axis[3]
    scale, width, at_first = bins / (stop - start), np.int32(bins) + np.int32(2), np.int32(first)
    for i in range(n):
        # The guess may be off by one where rounding puts a value on the other side of an edge.
        k = np.floor(min(max((x[i] - start) * scale, 0.0), bins - 1.0))
        up = 1.0 if x[i] >= (k + 1.0) * step + start else 0.0
        down = 1.0 if x[i] < k * step + start else 0.0
        k += up - down
        k = min(k, bins - 1.0) + 1.0
        k = k if x[i] < stop else bins + 1.0  # nan too
        k = 0.0 if x[i] < start else k
        cell[i] = at_first + region[i] * width + np.int32(k)


class Weights(NamedTuple):
    """What events weigh: ``norm`` times ``factors`` (float64, shape (factors, events)), over ``divisor``.

    The divisor (float64) has shape (events,), or (0,) for none. ``absolute`` takes the absolute value of each, as the
    2025 notebook does.
    """

    factors: NDArray[np.float64]
    divisor: NDArray[np.float64]
    norm: float
    absolute: bool


@kernel
def _weigh_all(start: int, events: int, weights: Weights, out: Candidates) -> None:
    """Weigh events from ``start`` on. What is no weight counts as nothing, and makes its event invalid."""
    w = out.weight
    for e in range(events):
        w[e] = weights.norm
    for f in range(weights.factors.shape[0]):
        for e in range(events):
            x = weights.factors[f, start + e]
            w[e] *= abs(x) if weights.absolute else x
    if weights.divisor.size:
        for e in range(events):
            x = weights.divisor[start + e]
            w[e] /= abs(x) if weights.absolute else x
    for e in range(events):
        if not abs(w[e]) < MAX_WEIGHT:
            out.invalid[e] |= TOO_LARGE if _is_finite(start + e, weights) else BAD_WEIGHT
            w[e] = 0.0


@kernel
def weigh(start: int, events: int, weights: Weights, regions: int, out: Candidates) -> int:
    """Weigh a block of events, from event ``start`` of the weights on.

    Returns ``FINE``. ``UNEVEN``, with nothing done, where an event has no candidate, or more than there is room for;
    ``NOWHERE`` where a candidate is of none of the ``regions``.
    """
    if not _is_whole(events, out):
        return UNEVEN
    if not _has_place(out.first[events], out.region, regions):
        return NOWHERE
    _weigh_all(start, events, weights, out)
    return FINE


@inlined
def _is_finite(event: int, weights: Weights) -> bool:
    """Tell a weight that is too large from one that nan, inf or a division by 0 has spoilt."""
    finite = weights.divisor.size == 0 or (np.isfinite(weights.divisor[event]) and weights.divisor[event] != 0.0)
    for f in range(weights.factors.shape[0]):
        finite &= np.isfinite(weights.factors[f, event])
    return bool(finite)


@entry
def judge_and_fill(start: int, events: int, c: Candidates, weights: Weights, lay: Layout, s: Scratch, t: Sums) -> int:
    """Weigh, judge and add up a block of events; returns what ``weigh`` does, with nothing added but for FINE.

    Much of it stays in the scratch until ``settle``.
    """
    became = weigh(start, events, weights, lay.regions, c)
    if became != FINE:
        return int(became)
    count_passed(c.first[events], c, lay, s.passed, s.alive)
    choose(events, c.first, c.rank, s.passed, s.chosen)
    if s.state[_HELD] + events > MOST:
        _settle(s, t)
    if s.state[_HELD] == 0:
        s.state[_OCTAVE] = octave_of(events, c.weight)
    s.state[_HELD] += events
    m, odd = _stop(events, c, lay, s, t)
    s.passing[0] = m
    first_odd, next_odd = 0, 0
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        while next_odd < odd and s.odd[next_odd] < at + n:
            next_odd += 1
        begin, end = s.chosen[at], s.chosen[at + n - 1] + 1  # they rise
        for template in range(lay.axis_row.size):
            x = c.values[lay.axis_row[template], begin:end]
            if end - begin != n:
                _pick(n, x, s.chosen[at:], begin, s.x)
                x = s.x[:n]
            find_bins(n, x, lay.axes[template], s.region[at:], lay.axis_cell[template], s.cell)
            _add_folds(n, s.cells, s.cell, s.folds[at * FOLDS :])
            for i in range(first_odd, next_odd):
                add_whole(t.cells, s.cell[s.odd[i] - at], s.split, i)
        first_odd = next_odd
    if 4 * odd > m:  # what comes now weighs otherwise
        _settle(s, t)
    return FINE


@kernel
def _pick(n: int, x: NDArray[np.float64], chosen: NDArray[np.int64], begin: int, out: NDArray[np.float64]) -> None:
    """Copy the values of n candidates, where ``x`` starts with that of candidate ``begin``."""
    for i in range(n):
        out[i] = x[np.uint64(chosen[i] - begin)]


@inlined
def _is_whole(events: int, c: Candidates) -> bool:
    """Tell whether each event has a candidate at least, and all have room: who measured may be anybody."""
    whole = c.first[0] == 0 and c.first[events] <= c.region.size
    for e in range(events):
        whole &= c.first[e] < c.first[e + 1]
    return bool(whole)


@inlined
def _has_place(n: int, region: NDArray[np.int64], regions: int) -> bool:
    """Tell whether the regions of n candidates are those that there are, or -1 for none."""
    least, most = -1, -1
    for k in range(n):
        least = min(least, region[k])
        most = max(most, region[k])
    return bool((least == -1) & (most < regions))


@kernel
def _stop(events: int, c: Candidates, lay: Layout, s: Scratch, t: Sums) -> tuple[int, int]:
    """Add up the events that a cut stops; moves those that pass to the front of the scratch.

    Returns how many pass, and how many of these are odd ones.
    """
    octave = s.state[_OCTAVE]
    least, beyond = 2.0**octave, 2.0 ** (octave + OCTAVES)
    by, square_by = halver(octave)
    last = t.stopped.size // CELL - 1
    m, odd = 0, 0
    for e in range(events):
        k = s.chosen[e]
        row = s.passed[k] + 1
        if c.invalid[e]:
            t.invalid[0] += (c.invalid[e] & BAD_INPUT) != 0
            t.invalid[1] += (c.invalid[e] & BAD_WEIGHT) != 0
            t.invalid[2] += (c.invalid[e] & TOO_LARGE) != 0
            row = 1
        elif row > last and c.region[k] < 0:
            row = last  # there is no place for it
        elif row > last and not np.isfinite(c.values[lay.axis_row[0], k]):
            t.invalid[0] += 1
            row = 1
        w = c.weight[e]
        fits = ((abs(w) >= least) & (abs(w) < beyond)) | (w == 0.0)
        folded, one = (w, 1.0) if fits else (0.0, 0.0)
        high, low = halve(folded, by)
        square_high, square_low = halve(folded * folded, square_by)
        # Without a branch, which processors guess wrongly half of the time: those that pass have a row that nobody
        # collects, and those that stop leave their folds where the next one's go.
        to = (2 * row + (e & 1)) * FOLDS
        s.rows[to] += high
        s.rows[to + 1] += low
        s.rows[to + 4] += one
        at = m * FOLDS
        s.folds[at] = high
        s.folds[at + 1] = low
        s.folds[at + 2] = square_high
        s.folds[at + 3] = square_low
        s.folds[at + 4] = one
        s.chosen[m] = k
        s.region[m] = c.region[k]
        if not fits:
            split_weight(w, s.split, odd, 0, SUMW)
            split_weight(w * w, s.split, odd, 1, SUMW2)
            if row > last:
                s.odd[odd] = m
                odd += 1
            else:
                add_one(t.stopped, row, s.split, odd)
        m += row > last
    return m, odd


@kernel
def _add_folds(n: int, cells: NDArray[np.float64], cell: NDArray[np.int32], folds: NDArray[np.float64]) -> None:
    for i in range(n):
        e = np.uint64(i)
        to, of = np.uint64(cell[e]) * _FOLDS, e * _FOLDS
        # All are read before one is written, so that they can be added together.
        one, two, three, four = cells[to], cells[to + _1], cells[to + _2], cells[to + _3]
        one += folds[of]
        two += folds[of + _1]
        three += folds[of + _2]
        four += folds[of + _3]
        cells[to] = one
        cells[to + _1] = two
        cells[to + _2] = three
        cells[to + _3] = four
        cells[to + _4] += folds[of + _4]


@entry
def settle(s: Scratch, t: Sums) -> None:
    """Move what blocks have left in folds to the exact sums that they are of."""
    _settle(s, t)


@kernel
def _settle(s: Scratch, t: Sums) -> None:
    if s.state[_HELD]:
        s.rows[2 * FOLDS * (t.stopped.size // CELL) :] = 0.0
        unfold(s.rows, 1, t.stopped, s.split, False)  # noqa: FBT003
        unfold(s.cells[: t.cells.size // CELL * FOLDS], 0, t.cells, s.split, True)  # noqa: FBT003
        s.state[_HELD] = 0
