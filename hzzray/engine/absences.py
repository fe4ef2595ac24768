"""Which nodes lack planned files. Nodes are names, files are paths or URLs: nothing here looks at either.

A file that was planned is somewhere: that one node can't find it says something of the node. It gets no more tasks of
that file, and none of its whole source either, as a folder that one node has and another lacks is lacking whole. Else
such a node, which fails faster than others work, would draw one task after the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

#: How long a file that no node has is not looked for on all of them again, in seconds: it may be put there.
LOST_S = 10.0


class Absences:
    """What was not found where. ``sources`` are folders and addresses that files lie in, ``clock`` gives seconds."""

    def __init__(self, sources: Sequence[str], clock: Callable[[], float]) -> None:
        self._sources = sources
        self._clock = clock
        self._lacking: defaultdict[str, set[str]] = defaultdict(set)
        self._lost: dict[str, float] = {}

    def note(self, node: str, file: str) -> None:
        """Take note that a node can't find a file."""
        if not self._is_lost(file):
            self._lacking[file].add(node)

    def may_serve(self, node: str, file: str, live: Collection[str]) -> bool:
        """Tell whether a node may be asked for a file; ``live`` are the nodes that there are, empty before it is known.

        Of nodes that all lack something of its source, it may be on any that was not asked for it. What is on none may
        be asked for anywhere.
        """
        if not self._lacking or self._is_lost(file):
            return True
        source = self._source(file)
        wary = set().union(*(nodes for one, nodes in self._lacking.items() if self._source(one) == source))
        return node not in wary or (bool(live) and wary.issuperset(live) and node not in self._lacking[file])

    def is_nowhere(self, file: str, live: Collection[str]) -> bool:
        """Tell whether each node lacks a file; if so, that says nothing of these nodes any more."""
        if not self._is_lost(file):
            if not live or not self._lacking[file].issuperset(live):
                return False
            self._lost[file] = self._clock() + LOST_S
            del self._lacking[file]
        return True

    def _is_lost(self, file: str) -> bool:
        return self._clock() < self._lost.get(file, 0.0)

    def _source(self, file: str) -> str:
        return next((source for source in self._sources if file.startswith(source)), file)
