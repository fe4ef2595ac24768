"""Fill templates with what was judged: a weight is cut into limbs once, then added to one cell of each template."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Layout
from hzzray.physics.candidates import BAD_INPUT, BAD_WEIGHT, BLOCK, SPARE, TOO_LARGE, Candidates
from hzzray.physics.histogram import LIMB_BITS, LIMBS, MAX_WEIGHT, UNIT_BITS
from hzzray.physics.jit import entry, inlined, kernel
from hzzray.physics.judge import choose, count_passed

_FULL = np.int64(2**LIMB_BITS - 1)

#: Numbers of a cell: its count, the limbs of Σw, those of Σw². One limb more than a sum has takes zeros from beyond.
COUNT, SUMW, SUMW2, CELL = 0, 1, 2 + LIMBS, 16

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


class Split(NamedTuple):
    """Weights and their squares, cut at limb borders: three ``parts`` of each (int64), ``at`` which limb."""

    parts: NDArray[np.int64]
    at: NDArray[np.uint64]


class Scratch(NamedTuple):
    """What judging and filling a block needs.

    After that ``passing`` (one number) is how many events passed, ``chosen`` has their candidates, rising, and
    ``region`` these candidates' regions.
    """

    passed: NDArray[np.int64]
    alive: NDArray[np.bool_]
    chosen: NDArray[np.int64]
    region: NDArray[np.int32]
    cell: NDArray[np.int32]
    x: NDArray[np.float64]
    split: Split
    passing: NDArray[np.int64]


def make_split(events: int) -> Split:
    """Make room for the parts of so many weights."""
    return Split(np.zeros((events, 6), np.int64), np.zeros((events, 2), np.uint64))


def make_scratch() -> Scratch:
    """Make room for what a block needs."""
    room = BLOCK + SPARE
    return Scratch(
        np.zeros(room, np.int64), np.zeros(room, np.bool_), np.zeros(BLOCK, np.int64), np.zeros(BLOCK, np.int32),
        np.zeros(LOT, np.int32), np.zeros(LOT), make_split(BLOCK), np.zeros(1, np.int64),
    )  # fmt: skip


@inlined
def split_weight(x: float, split: Split, i: int, which: int, first: int) -> None:
    """Cut a finite double's mantissa at limb borders, into row i of ``split``; ``first`` is where its limbs begin.

    Bits below the least one (2**-128) are rounded to nearest, ties to even: once for each value, whatever the order.
    """
    bits = np.float64(x).view(np.int64)
    exponent = int((bits >> 52) & 0x7FF)
    mantissa = int(bits & 0xFFFFFFFFFFFFF)
    if exponent > 0:
        mantissa |= 1 << 52
    else:
        exponent = 1
    place = exponent - 1075 + UNIT_BITS
    if place < 0:
        if place < -54:
            mantissa = 0
        else:
            cut = mantissa & ((1 << -place) - 1)
            half = 1 << (-place - 1)
            mantissa >>= -place
            if cut > half or (cut == half and mantissa & 1):
                mantissa += 1
        place = 0
    shift = place & 31
    low = (mantissa & _FULL) << shift
    high = (mantissa >> LIMB_BITS) << shift
    sign = 1 if bits >= 0 else -1
    split.at[i, which] = first + (place >> 5)
    split.parts[i, 3 * which] = sign * (low & _FULL)
    split.parts[i, 3 * which + 1] = sign * (((low >> LIMB_BITS) & _FULL) + (high & _FULL))
    split.parts[i, 3 * which + 2] = sign * (high >> LIMB_BITS)


# Unsigned numbers index without a look at whether they are negative.
_ONE, _TWO = np.uint64(1), np.uint64(2)


@kernel
def add(
    n: int, cells: NDArray[np.int64], cell: NDArray[np.int32], parts: NDArray[np.int64], at: NDArray[np.uint64]
) -> None:
    """Add to each of n cells one event: its count, its weight, the weight's square."""
    for i in range(n):
        e = np.uint64(i)
        here = np.uint64(cell[e]) * np.uint64(CELL)
        cells[here] += 1
        to = here + at[e, 0]
        cells[to] += parts[e, 0]
        cells[to + _ONE] += parts[e, 1]
        cells[to + _TWO] += parts[e, 2]
        to = here + at[e, 1]
        cells[to] += parts[e, 3]
        cells[to + _ONE] += parts[e, 4]
        cells[to + _TWO] += parts[e, 5]


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
    """Weigh, judge and add up a block of events; returns what ``weigh`` does, with nothing added but for FINE."""
    became = weigh(start, events, weights, lay.regions, c)
    if became != FINE:
        return int(became)
    count_passed(c.first[events], c, lay, s.passed, s.alive)
    choose(events, c.first, c.rank, s.passed, s.chosen)
    m = _settle(events, c, lay, s, t)
    s.passing[0] = m
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        begin, end = s.chosen[at], s.chosen[at + n - 1] + 1  # they rise
        for template in range(lay.axis_row.size):
            x = c.values[lay.axis_row[template], begin:end]
            if end - begin != n:
                for i in range(n):
                    s.x[i] = x[s.chosen[at + i] - begin]
                x = s.x[:n]
            find_bins(n, x, lay.axes[template], s.region[at:], lay.axis_cell[template], s.cell)
            add(n, t.cells, s.cell, s.split.parts[at:], s.split.at[at:])
    return FINE


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
def _settle(events: int, c: Candidates, lay: Layout, s: Scratch, t: Sums) -> int:
    """Add up the events that a cut stops; moves those that pass to the front of the scratch, and returns how many."""
    last = t.stopped.size // CELL - 1
    m = 0
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
        split_weight(w, s.split, m, 0, SUMW)
        split_weight(w * w, s.split, m, 1, SUMW2)
        if row <= last:
            add_one(t.stopped, row, s.split, m)
        else:
            s.chosen[m] = k
            s.region[m] = c.region[k]
            m += 1
    return m


@inlined
def add_one(cells: NDArray[np.int64], row: int, w: Split, m: int) -> None:
    """Add the event of row m of a split to one cell: its count and its weight, not the square."""
    cells[row * CELL] += 1
    first = row * CELL + np.int64(w.at[m, 0])
    for i in range(3):
        cells[first + i] += w.parts[m, i]
