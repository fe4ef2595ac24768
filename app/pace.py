"""How often pages are drawn again: as often as a few viewers like, and so seldom that many cost a run little."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: The part of all cores that drawing again may take, whoever looks; and cores at the most: Python has one at a time.
SHARE, CORES = 0.05, 0.5

#: Intervals are no longer than this [s].
SELDOM_S = 15.0

# Who wasn't drawn for so many intervals has gone.
_MISSED = 3.0

# An interval stays while the one that it should be is no more than so many times longer or shorter.
_APART = 1.5

# What drawing a page costs at the least [CPU s]: one that says that there is nothing yet soon says more. How much of
# the next one's goes into what it costs, of so many times that at the most: a first one imports. What sending costs
# beside, of that: measured with py-spy.
_LEAST_S, _NEXT, _TIMES, _SENDING = 0.02, 0.1, 4.0, 0.5


class Pace:
    """What all viewers of a server keep to. For several threads.

    ``cores`` are how many there are; ``clock`` counts seconds, ``cpu`` the CPU seconds of the thread that draws.
    """

    def __init__(
        self, cores: float, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.thread_time
    ) -> None:
        self._budget = min(SHARE * cores, CORES)
        self._clock = clock
        self._cpu = cpu
        self._lock = threading.Lock()
        self._leaves: dict[str, float] = {}
        self._cost = _LEAST_S

    @contextmanager
    def drawing(self, viewer: str, interval: float) -> Iterator[None]:
        """Count a viewer whose page is drawn, at that interval [s], and what it costs."""
        begun = self._cpu()
        try:
            yield
        finally:
            cost, now = (1.0 + _SENDING) * (self._cpu() - begun), self._clock()
            with self._lock:
                self._cost += _NEXT * (max(_LEAST_S, min(cost, _TIMES * self._cost)) - self._cost)
                self._leaves[viewer] = now + _MISSED * interval
                self._leaves = {name: until for name, until in self._leaves.items() if until > now}

    def interval(self, at_least: float, until_now: float | None = None) -> float:
        """Tell how often a page is to be drawn [s]; one that has an interval near to it keeps that."""
        wanted = min(max(at_least, len(self._leaves) * self._cost / self._budget), max(at_least, SELDOM_S))
        if until_now is not None and wanted / _APART <= until_now <= wanted * _APART:
            return until_now
        return wanted
