"""What happens in a run that a table of numbers doesn't tell: workers die and come back, tasks are tried again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Kind = Literal[
    "worker came", "worker left", "worker died", "worker back", "task retried", "task split", "task failed",
    "node came", "node left", "more",
]  # fmt: skip

#: Events that are kept of a run while it goes on, and that a pool tells of a second, at the most.
KEPT, A_SECOND = 200, 20

_WHAT = 200  # characters


class Event(NamedTuple):
    """What happened: when [Unix seconds], to whom (a worker, a node, a sample), and what there is to say of it."""

    at: float
    kind: Kind
    who: str
    what: str


class EventLog:
    """Collects a pool's events until they are reported: the first of each second, and how many more there were."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._more = 0
        self._nodes: Mapping[str, str] | None = None

    def tell(self, kind: Kind, who: str, what: str = "") -> None:
        """Take note of what happens now."""
        if len(self._events) < A_SECOND:
            self._events.append(Event(time.time(), kind, who, " ".join(what.split())[:_WHAT]))
        else:
            self._more += 1

    def tell_of_nodes(self, nodes: Mapping[str, str]) -> None:
        """Take note of nodes, names by ids, that came and that went since the last time."""
        known = nodes if self._nodes is None else self._nodes
        for node in nodes.keys() - known.keys():
            self.tell("node came", nodes[node])
        for node in known.keys() - nodes.keys():
            self.tell("node left", known[node])
        self._nodes = nodes

    def drain(self) -> list[Event]:
        """Return what happened since the last time."""
        events, more = self._events, self._more
        self._events, self._more = [], 0
        return [*events, Event(time.time(), "more", "", f"{more} more of these in this second")] if more else events


def kept(events: tuple[Event, ...], new: Iterable[Event]) -> tuple[Event, ...]:
    """Add events to those that are kept, each later than all before: so a reader knows which it has seen.

    What two pools tell of one node is one event.
    """
    for event in new:
        if event.kind.startswith("node") and any(
            (event.kind, event.who) == (old.kind, old.who) and event.at - old.at < KEPT / A_SECOND for old in events
        ):
            continue
        last = events[-1].at if events else 0.0
        events = (*events, event._replace(at=max(event.at, last + 1e-3)))
    return events[-KEPT:]
