"""Workers of an exploring session that hold what a run wants hot: they come first for that, and are not the run's own.

A lender is given nothing but what it holds, as there is next to no work in that, one call of some tasks at a time. What
it has let go of meanwhile, and whatever it has when it falls or is slow, the run's own workers read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from hzzray.engine.fleet import OpenTask
from hzzray.engine.instructions import Offered
from hzzray.messages import Range

#: Tasks in one call of a lender at the most, and how long it may take: a viewer's question may be in its way [s].
BATCH = 16
PATIENCE_S = 30.0


@dataclass(eq=False, slots=True)
class Lender:
    """A worker of others: what it ``holds``, what ``waits`` for it, its call's number (0: none) since when, of what."""

    name: str
    holds: set[Range]
    waits: list[Offered] = field(default_factory=list)
    call: int = 0
    since: float = 0.0
    in_flight: Sequence[OpenTask] = ()


class Lenders:
    """The lenders of a pool."""

    def __init__(self) -> None:
        self._there: dict[str, Lender] = {}

    def __iter__(self) -> Iterator[Lender]:
        return iter(list(self._there.values()))

    def __len__(self) -> int:
        return len(self._there)

    @property
    def waiting(self) -> int:
        """Tasks that wait for their lender."""
        return sum(len(lender.waits) for lender in self)

    @property
    def are_full(self) -> bool:
        """Whether no more tasks are to be taken: the next one may be of a lender that has enough."""
        return any(len(lender.waits) >= BATCH for lender in self)

    def join(self, name: str, holds: Collection[Range]) -> None:
        """Add a lender."""
        self._there[name] = Lender(name, set(holds))

    def take(self, offer: Offered) -> bool:
        """Keep a task for the lender that holds it; False where none does."""
        found = next((lender for lender in self if offer.task.range in lender.holds), None)
        if found is not None:
            found.waits.append(offer)
        return found is not None

    def calling(self, call: int) -> Lender | None:
        """Find whom a call was given to."""
        return next((lender for lender in self if lender.call == call), None)

    def leave(self, lender: Lender) -> None:
        """Do without a lender; what it has is for the caller to see to."""
        self._there.pop(lender.name, None)
