"""How tasks move: rates, what waits, what is left."""

from __future__ import annotations

import math
import time
from collections import deque

from bridge.depths import Depths
from bridge.settlement import Post
from bridge.topology import Topology
from hzzray.engine.source import Congestion
from hzzray.messages import Counts

# Rates are over about so long.
_OVER_S = 10.0
# What the broker told longer ago tells nothing.
_FRESH_S = 5.0


class Traffic:
    """How full the broker's queues are, and how fast tasks come and go. ``look`` at it about every second."""

    def __init__(self, topology: Topology, depths: Depths, post: Post) -> None:
        self._topology = topology
        self._depths = depths
        self._post = post
        self._published = Rate()
        self._acked = Rate()

    @property
    def acked_per_s(self) -> float:
        """Tasks that this bridge was done with, a second."""
        return self._acked.per_s

    @property
    def is_empty(self) -> bool:
        """Whether the broker has no task that waits; False where it didn't tell lately."""
        return self._depths.age_s < _FRESH_S and not self._depths[self._topology.tasks.name] + self._retrying

    @property
    def _retrying(self) -> int:
        return sum(self._depths[queue.name] for queue in self._topology.retries)

    def look(self) -> None:
        """Take note of what has moved."""
        self._acked.see(self._post.acknowledged)
        # What came is what is there, and what went to this bridge; of several bridges each knows its own part.
        self._published.see(self._depths[self._topology.tasks.name] + self._post.delivered)

    def congestion(self, left_s: float) -> Congestion:
        """Tell how full the queues are; ``left_s`` is for the run that asks."""
        return Congestion(
            waiting=self._depths[self._topology.tasks.name],
            retrying=self._retrying,
            dead=self._depths[self._topology.dead.name],
            held=self._post.held,
            oldest_s=self._post.oldest_s,
            published_per_s=self._published.per_s,
            acked_per_s=self._acked.per_s,
            left_s=left_s,
        )


class Rate:
    """How fast a number grows, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def see(self, number: float) -> None:
        """Take note of the number now."""
        now = time.monotonic()
        self._seen.append((now, number))
        while now - self._seen[0][0] > _OVER_S:
            self._seen.popleft()

    @property
    def per_s(self) -> float:
        """How much it grew a second; 0 where it fell, or nothing can be said yet."""
        if len(self._seen) < 2:
            return 0.0
        (begun, first), (now, last) = self._seen[0], self._seen[-1]
        return max(0.0, (last - first) / (now - begun))


class Pace:
    """How long a run will take, if it goes on as it did."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._due = 0

    def see(self, counts: Counts) -> None:
        """Take note how far the run is now."""
        self._rate.see(counts.merged + counts.failed)
        self._due = counts.due

    @property
    def left_s(self) -> float:
        """Estimated seconds; nan where nothing moves."""
        if not self._due:
            return 0.0
        return self._due / self._rate.per_s if self._rate.per_s else math.nan
