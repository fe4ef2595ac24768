"""Partials on their way to the reducer: how many go together, when, and how many may wait before workers must."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hzzray.engine.fleet import OpenTask, Slot
from hzzray.engine.instructions import After, Commit, GlanceDue, Instruction
from hzzray.messages import Partial

#: Partials in one commit at the most, and how many may wait for theirs before workers get no more tasks. With others on
#: their way, a commit waits for them a little: each costs some milliseconds of CPU, and a wait for the disk.
BATCH = 256
_GROUP_S = 0.05
_GROUP_GLANCES = 5
UNCOMMITTED = 1024


class Commits:
    """Partials that wait for their commit, in the order in which they came. Instructs by ``emit``."""

    def __init__(self, emit: Callable[[Instruction], None]) -> None:
        self._emit = emit
        self._waiting: deque[tuple[OpenTask, Partial]] = deque()
        self._stalled: dict[Slot, None] = {}
        self._storing: list[OpenTask] = []
        self._glances = 0
        self._glancing = False

    @property
    def is_storing(self) -> bool:
        """Whether the reducer has some that it hasn't said are stored."""
        return bool(self._storing)

    def keep(self, delivery: OpenTask, partial: Partial) -> None:
        """Take in a partial."""
        self._waiting.append((delivery, partial))

    @property
    def are_too_many(self) -> bool:
        """Whether more partials wait than may before others get something to do."""
        return len(self._waiting) > UNCOMMITTED

    def stalls(self, slot: Slot) -> bool:
        """Keep a slot back, if there are too many partials, until there are fewer."""
        if not self.are_too_many:
            return False
        self._stalled[slot] = None
        return True

    def glanced(self) -> None:
        """Take note that a commit has waited a little."""
        self._glancing = False

    def go_on(self, *, at_once: bool) -> list[Slot]:
        """Commit what has gathered since the last commit; returns the slots that were kept back, when they may be free.

        It waits for others a little, but not where it is to be ``at_once``.
        """
        if self._storing or self._glancing or not self._waiting:
            return []
        if not at_once and self._glances < _GROUP_GLANCES:
            self._glances += 1
            self._glancing = True
            self._emit(After(_GROUP_S / _GROUP_GLANCES, GlanceDue()))
            return []
        self._glances = 0
        batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        self._storing = [delivery for delivery, _ in batch]
        self._emit(Commit(tuple(partial for _, partial in batch)))
        if self.are_too_many:
            return []
        freed, self._stalled = self._stalled, {}
        return list(freed)

    def committed(self) -> list[OpenTask]:
        """Take note that the last commit is done; returns whose partials it stored."""
        stored, self._storing = self._storing, []
        return stored
