"""Judge candidates by cuts that are data: which row of the cutflow stops an event, or which candidate counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Layout
from hzzray.physics.candidates import Candidates
from hzzray.physics.jit import kernel


@kernel
def count_passed(n: int, c: Candidates, lay: Layout, passed: NDArray[np.int64], alive: NDArray[np.bool_]) -> None:
    """Count the cuts that each of n candidates passes before its first that fails: ``passed``, shape (room,)."""
    for k in range(n):
        alive[k] = True
        passed[k] = 0
    bound = 0
    cuts = lay.bound_cut[lay.bound_cut.size - 1] + 1 if lay.bound_cut.size else 0
    for cut in range(cuts):
        while bound < lay.bound_cut.size and lay.bound_cut[bound] == cut:
            low, high, row = lay.bound_low[bound], lay.bound_high[bound], lay.bound_row[bound]
            no_low, no_high = low == -math.inf, high == math.inf
            for k in range(n):
                x = c.values[row, k]
                alive[k] &= ((x > low) | no_low) & ((x < high) | no_high) & (not np.isnan(x))
            bound += 1
        for k in range(n):
            passed[k] += alive[k]


@kernel
def choose(
    events: int, first: NDArray[Any], rank: NDArray[np.float64], passed: NDArray[Any], chosen: NDArray[Any]
) -> None:
    """Choose for each event the candidate that passes most cuts, of equal ones that of the least rank.

    ``first`` and ``rank`` are as in Candidates; ``first``, ``passed`` and ``chosen`` are whole numbers of any type.
    """
    for e in range(events):
        best = first[e]
        for k in range(best + 1, first[e + 1]):
            better = passed[k] > passed[best] or (
                passed[k] == passed[best]
                and (rank[0, k] < rank[0, best] or (rank[0, k] == rank[0, best] and rank[1, k] < rank[1, best]))
            )
            if better:
                best = k
        chosen[e] = best
