"""Compiled code that judges and fills hot candidates, a column at a time."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.candidates import BLOCK
from hzzray.physics.fast_sums import FOLDS, halve, halver, unfold
from hzzray.physics.fill import LOT, Sums, find_bins
from hzzray.physics.filler import no_sums
from hzzray.physics.histogram import Shape
from hzzray.physics.hot_weights import warm_up as warm_up_weights
from hzzray.physics.jit import entry, inlined, kernel, one_at_a_time, without_extensions
from hzzray.physics.judge import choose
from hzzray.physics.limbs import CELL, SUMW, SUMW2, Split, add_one, add_whole, make_split, split_weight


class Scratch(NamedTuple):
    """What judging and filling a part needs.

    ``folds`` (float64, four an event) are weights and their squares, each cut in two; ``rows`` and ``cells`` (float64,
    ``FOLDS`` each) are sums of them, with a count: of rows of the cutflow, two for each, in turn, and of cells.
    """

    alive: NDArray[np.uint8]
    passed: NDArray[np.int16]
    chosen: NDArray[np.uint32]
    region: NDArray[np.int32]
    cell: NDArray[np.int32]
    x: NDArray[np.float64]
    split: Split
    folds: NDArray[np.float64]
    rows: NDArray[np.float64]
    cells: NDArray[np.float64]


def make_scratch(room: int, shape: Shape) -> Scratch:
    """Make room for so many candidates and blocks of this form."""
    return Scratch(
        np.zeros(room, np.uint8), np.zeros(room, np.int16), np.zeros(room, np.uint32), np.zeros(room, np.int32),
        np.zeros(LOT, np.int32), np.zeros(LOT), make_split(BLOCK), np.zeros(room * 4),
        np.zeros(2 * (shape.rows + 1) * FOLDS), np.zeros(shape.nominal * FOLDS),
    )  # fmt: skip


@entry
def narrow(x: NDArray[Any], low: float, high: float, alive: NDArray[np.uint8]) -> None:
    """Let those live on whose value lies between two bounds."""
    _between(x.size, x, low, high, alive)


@kernel
def _between(n: int, x: NDArray[Any], low: float, high: float, alive: NDArray[np.uint8]) -> None:
    if high == math.inf and low > -math.inf:  # one end alone takes less time, and nan isn't beyond it
        for k in range(n):
            alive[k] &= np.uint8(np.float64(x[k]) > low)
    elif low == -math.inf and high < math.inf:
        for k in range(n):
            alive[k] &= np.uint8(np.float64(x[k]) < high)
    elif high < math.inf:
        for k in range(n):
            alive[k] &= np.uint8((np.float64(x[k]) > low) & (np.float64(x[k]) < high))
    else:
        for k in range(n):
            alive[k] &= np.uint8(not np.isnan(x[k]))


@entry
def narrow_whole(x: NDArray[np.int8], low: int, high: int, alive: NDArray[np.uint8]) -> None:
    """Likewise, of whole numbers: from ``low`` to ``high``."""
    _between_whole(x.size, x, low, high, alive)


@kernel
def _between_whole(n: int, x: NDArray[np.int8], low: int, high: int, alive: NDArray[np.uint8]) -> None:
    least, most = np.int8(low), np.int8(high)
    for k in range(n):
        alive[k] &= np.uint8((x[k] >= least) & (x[k] <= most))


@entry
def advance(n: int, cuts: int, alive: NDArray[np.uint8], passed: NDArray[np.int16]) -> None:
    """Count so many more cuts for those that live."""
    _count_on(n, cuts, alive, passed)


@kernel
def _count_on(n: int, cuts: int, alive: NDArray[np.uint8], passed: NDArray[np.int16]) -> None:
    times = np.int16(cuts)
    for k in range(n):
        passed[k] += np.int16(alive[k]) * times


@entry
def choose_candidates(
    first: NDArray[np.int32], rank: NDArray[np.float64], passed: NDArray[np.int16], out: NDArray[np.uint32]
) -> None:
    """Choose for each event the candidate that counts."""
    choose(first.size - 1, first, rank, passed, out)


# Unsigned numbers index without a look at whether they are negative.
_1, _2, _3, _4, _FOLD, _FOLDS = (np.uint64(number) for number in (1, 2, 3, 4, 4, FOLDS))


@inlined
def _row_of(k: Any, s: Scratch, region: NDArray[np.int8], fit: NDArray[np.bool_], last: int, t: Sums) -> int:  # noqa: ANN401
    """Find the row of the cutflow where an event stops whose candidate counts; more than the last for none."""
    row: int = s.passed[k] + 1
    row = last if (row > last) & (region[k] < 0) else row
    if fit.size and row > last and not fit[k]:
        t.invalid[0] += 1
        row = 1
    return row


@entry
def settle(
    events: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], octave: int,
    s: Scratch, t: Sums,
) -> int:  # fmt: skip
    """Add up the events that a cut stops; moves the others to the front, and returns how many they are.

    ``fit`` tells which candidates have a finite first observable; empty for all. Weights lie within ``OCTAVES`` from
    ``octave`` on, and so do their squares: cut in two at a fixed place, each half of ``MOST`` of them adds up in a
    double without rounding. A half is what is left when a number that is large enough was added and taken away again.
    """
    large, larger = halver(octave)
    m: int = _settle_all(events, region, weight, fit, large, larger, s, t)
    s.rows[2 * FOLDS * (t.stopped.size // CELL) :] = 0.0
    unfold(s.rows, 1, t.stopped, s.split, False)  # noqa: FBT003
    return m


@kernel
def _settle_all(
    events: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], large: float,
    larger: float, s: Scratch, t: Sums,
) -> int:  # fmt: skip
    last = t.stopped.size // CELL - 1
    step = np.uint64(weight.size > 1)
    m = np.uint64(0)
    for i in range(events):
        e = np.uint64(i)
        k = np.uint64(s.chosen[e])
        row = _row_of(k, s, region, fit, last, t)
        w = weight[e * step]
        high, low = halve(w, large)
        higher, lower = halve(w * w, larger)
        # Without a branch, which processors guess wrongly half of the time: those that pass have a row that nobody
        # collects, and those that stop leave their folds where the next one's go.
        to = np.uint64(2 * row + (i & 1)) * _FOLDS
        s.rows[to] += high
        s.rows[to + _1] += low
        s.rows[to + _4] += 1.0
        at = m * _FOLD
        s.folds[at] = high
        s.folds[at + _1] = low
        s.folds[at + _2] = higher
        s.folds[at + _3] = lower
        s.chosen[m] = s.chosen[e]
        s.region[m] = region[k]
        m += np.uint64(row > last)
    return int(m)


@entry
def fill(x: NDArray[Any], m: int, axis: NDArray[np.float64], first: int, s: Scratch) -> None:
    """Fill a template with m chosen candidates."""
    _fill_all(x, m, axis, first, s)


@kernel
def _fill_all(x: NDArray[Any], m: int, axis: NDArray[np.float64], first: int, s: Scratch) -> None:
    step = np.uint64(x.size > 1)
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        chosen = s.chosen[at : at + n]
        for i in range(n):
            s.x[i] = x[np.uint64(chosen[i]) * step]
        find_bins(n, s.x, axis, s.region[at:], first, s.cell)
        _add_folds(n, s.cells, s.cell, s.folds[at * 4 :])


@kernel
def _add_folds(n: int, cells: NDArray[np.float64], cell: NDArray[np.int32], folds: NDArray[np.float64]) -> None:
    """Add as ``fill`` does, but each event counts: with a number for that beside its folds all took a tenth longer."""
    for i in range(n):
        e = np.uint64(i)
        to, of = np.uint64(cell[e]) * _FOLDS, e * _FOLD
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
        cells[to + _4] += 1.0


@entry
def collect(s: Scratch, t: Sums) -> None:
    """Move what was filled of a part to where all is summed up."""
    unfold(s.cells, 0, t.cells, s.split, True)  # noqa: FBT003


@entry
def settle_any(
    begin: int, end: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], s: Scratch,
    t: Sums,
) -> int:  # fmt: skip
    """Likewise of some events, whatever their weights: these are cut at limb borders one by one."""
    m: int = _settle_each(begin, end, region, weight, fit, s, t)
    return m


@kernel
def _settle_each(
    begin: int, end: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], s: Scratch,
    t: Sums,
) -> int:  # fmt: skip
    last = t.stopped.size // CELL - 1
    step = np.int64(weight.size > 1)
    m = 0
    for e in range(begin, end):
        k = s.chosen[e]
        row = _row_of(k, s, region, fit, last, t)
        w = weight[e * step]
        split_weight(w, s.split, m, 0, SUMW)
        split_weight(w * w, s.split, m, 1, SUMW2)
        if row <= last:
            add_one(t.stopped, row, s.split, m)
        else:
            s.chosen[begin + m] = k
            s.region[m] = region[k]
            m += 1
    return m


@entry
def fill_any(
    x: NDArray[Any], begin: int, m: int, axis: NDArray[np.float64], first: int, s: Scratch, cells: NDArray[np.int64]
) -> None:
    """Fill a template with m chosen candidates, those from ``begin`` on."""
    _fill_each(x, begin, m, axis, first, s, cells)


@kernel
def _fill_each(
    x: NDArray[Any], begin: int, m: int, axis: NDArray[np.float64], first: int, s: Scratch, cells: NDArray[np.int64]
) -> None:
    step = np.int64(x.size > 1)
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        for i in range(n):
            s.x[i] = x[s.chosen[begin + at + i] * step]
        find_bins(n, s.x, axis, s.region[at:], first, s.cell)
        for i in range(n):
            add_whole(cells, s.cell[i], s.split, at + i)


@without_extensions()
def warm_up() -> None:
    """Compile what judges and fills, for each type that a column may have, or load it from numba's cache."""
    shape = Shape(1, (1,), 2)
    s, t = make_scratch(1, shape), no_sums(shape)
    axis, none, flags = np.array([0.0, 1.0, 1.0, 1.0]), np.empty(0, np.int8), np.empty(0, np.bool_)
    with one_at_a_time("judging and filling of hot candidates"):
        for dtype in (np.int8, np.float32, np.float64):
            x = np.empty(0, dtype)
            fill(x, 0, axis, 0, s)
            fill_any(x, 0, 0, axis, 0, s, t.cells)
        settle(0, none, np.empty(0), flags, 0, s, t)
        settle_any(0, 0, none, np.empty(0), flags, s, t)
        for values in (np.empty(0, np.float32), np.empty(0)):
            narrow(values, 0.0, 1.0, s.alive)
        narrow_whole(none, 0, 1, s.alive)
        advance(0, 1, s.alive, s.passed)
        choose_candidates(np.zeros(1, np.int32), np.empty((2, 0)), s.passed, s.chosen)
        collect(s, t)
        warm_up_weights()
