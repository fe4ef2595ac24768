"""Which baskets a step of entries needs, where they lie in the file, and where they go in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.data.storage import Range
from hzzray.data.unpacking import BEGIN, END, FROM, NUMBER, TO, Baskets
from hzzray.physics.jit import entry, kernel, one_at_a_time, without_extensions

_START, _SEEK, _SIZE = range(3)  # columns of a branch's table
_NONE = np.zeros((0, 3), np.int64)


class Want(NamedTuple):
    """What entries ``start`` to ``stop`` need of the file: ``ranges``, one after the other, of ``size`` bytes in all.

    That is where ``baskets`` have theirs. Those whose numbers are in ``held`` (int64, one a source, -1 for none) are
    unpacked by the time that it is read.
    """

    start: int
    stop: int
    ranges: list[Range]
    size: int
    baskets: Baskets
    held: NDArray[np.int64]


class Finder:
    """Finds what steps of a file need; ``tables`` are its sources' (see Branch), ``fast`` (bool) tells which count."""

    def __init__(self, tables: Sequence[NDArray[np.int64]], fast: NDArray[np.bool_]) -> None:
        self._table = np.concatenate([_NONE, *tables])
        self._first = np.array([0, *map(len, tables)]).cumsum()
        self._fast = fast

    def find(self, borders: Iterable[tuple[int, int]], unpacked: NDArray[np.int64]) -> Iterator[Want]:
        """Tell for steps, of rising entries, what they need; ``unpacked`` are the numbers of the baskets at hand.

        What one step leaves unpacked is at hand for the next. Baskets come in the file's order, where branches that
        fill them together have them side by side: what lies in a row is read at once.
        """
        at, unpacked = self._first[:-1].copy(), unpacked.copy()
        for start, stop in borders:
            found, first, held, ranges, size = _find(self._table, self._first, self._fast, at, unpacked, start, stop)
            pairs = [(seek, length) for seek, length in ranges.tolist()]
            yield Want(start, stop, pairs, size, Baskets(found, first), held)


@entry
def _find(
    table: NDArray[np.int64], first: NDArray[np.int64], fast: NDArray[np.bool_], at: NDArray[np.int64],
    unpacked: NDArray[np.int64], start: int, stop: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:  # fmt: skip
    """Find the baskets of a step; ``at`` are the rows that the last one began with, and become those of this one."""
    sources = at.size
    rows = np.zeros(sources + 1, np.int64)
    for s in range(sources):
        last = first[s + 1] - 1
        while at[s] < last and table[at[s] + 1, _START] <= start:
            at[s] += 1
        rows[s + 1] = rows[s]
        for r in range(at[s], last if fast[s] else at[s]):
            if table[r, _START] >= stop:
                break
            rows[s + 1] += table[r + 1, _START] > max(table[r, _START], start)
    found = np.zeros((rows[sources], 5), np.int64)
    held = np.full(sources, -1, np.int64)
    for s in range(sources):
        row, r = rows[s], at[s]
        while row < rows[s + 1]:
            if table[r + 1, _START] > max(table[r, _START], start):  # else it is empty
                basket = found[row]
                basket[NUMBER], basket[BEGIN], basket[END] = r - first[s], table[r, _START], table[r + 1, _START]
                if row == rows[s] and basket[NUMBER] == unpacked[s]:
                    held[s] = unpacked[s]
                else:
                    basket[FROM], basket[TO] = table[r, _SEEK], table[r, _SIZE]
                unpacked[s] = basket[NUMBER]
                row += 1
            r += 1
    ranges = np.empty((rows[sources], 2), np.int64)
    number, size = _place(found, np.argsort(found[:, FROM].copy()), ranges)
    return found, rows, held, ranges[:number], size


@kernel
def _place(found: NDArray[np.int64], order: NDArray[np.int64], ranges: NDArray[np.int64]) -> tuple[int, int]:
    """Put baskets one after the other in memory, in the file's order; returns how many ranges and bytes these are."""
    number = size = end = 0
    for row in order:
        basket = found[row]
        if basket[FROM] == 0:  # at hand, or in the tree's record
            continue
        if basket[FROM] != end:
            ranges[number, 0], ranges[number, 1] = basket[FROM], 0
            number += 1
        ranges[number - 1, 1] += basket[TO]
        end = basket[FROM] + basket[TO]
        basket[FROM], basket[TO] = size, size + basket[TO]
        size = basket[TO]
    return number, size


@without_extensions()
def warm_up() -> None:
    """Compile what finds baskets, or load it from numba's cache, by finding none."""
    with one_at_a_time("wants"):
        list(Finder([np.zeros((1, 3), np.int64)], np.ones(1, np.bool_)).find([(0, 1)], np.full(1, -1)))
