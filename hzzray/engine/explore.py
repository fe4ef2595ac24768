"""Who answers re-cuts of a run: one worker in this process, or all actors of a session that viewers share."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Protocol

from hzzray.engine.explore_messages import Candidate, MergedAnswer, OvertakenError, Pick, Question, SessionStatus
from hzzray.engine.hot import HotWorker
from hzzray.engine.monitor import Usage
from hzzray.physics.analysis import Cut, Template
from hzzray.physics.cached_filler import Picked


class Explorer(Protocol):
    """Answers questions about a run's ranges."""

    def ask(
        self, viewer: str, cuts: tuple[Cut, ...], templates: tuple[Template, ...], *, apart: bool, whole: bool
    ) -> MergedAnswer:
        """Answer; where ``whole``, after all that can be read was. Raises OvertakenError."""

    def pick(self, pick: Pick, *, whole: bool) -> list[Candidate]:
        """Find candidates; where ``whole``, after all that can be read was."""

    def picked(self, pick: Pick) -> Iterator[tuple[int, Picked]]:
        """Find candidates, however many, range by range."""

    def standing(self) -> SessionStatus:
        """Tell how much is ready."""

    def usages(self) -> list[Usage]:
        """Tell what the workers that are there use, hot candidates too."""

    def close(self) -> None:
        """Let go of it."""


class InProcess:
    """One worker in this process: without Ray, and for one viewer."""

    def __init__(self, worker: HotWorker, ranges: int) -> None:
        self._worker = worker
        self._ranges = ranges
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._merged = MergedAnswer({}, (), {})

    def ask(
        self,
        viewer: str,  # noqa: ARG002 (there is one)
        cuts: tuple[Cut, ...],
        templates: tuple[Template, ...],
        *,
        apart: bool = False,
        whole: bool = True,  # noqa: ARG002 (it always is)
    ) -> MergedAnswer:
        """Answer; another question that was asked before, of another thread, is dropped."""
        question = Question(next(self._numbers), cuts, templates)
        self._worker.drop(question.number - 1)
        with self._lock:
            share = self._worker.answer(question, range(self._ranges), apart=apart)
        if share is None:
            raise OvertakenError("overtaken by a newer question")
        self._merged = MergedAnswer.of([share])
        return self._merged

    def pick(self, pick: Pick, *, whole: bool = True) -> list[Candidate]:  # noqa: ARG002 (as above)
        """Find candidates."""
        with self._lock:
            found = self._worker.pick(pick, range(self._ranges))
            return [row for number, picked in found.items() for row in self._worker.describe(number, picked)]

    def picked(self, pick: Pick) -> Iterator[tuple[int, Picked]]:
        """Find candidates, however many, range by range."""
        for number in range(self._ranges):
            with self._lock:
                yield from self._worker.pick(pick, [number]).items()

    def standing(self) -> SessionStatus:
        """Tell how much is hot; the rest is read when somebody asks."""
        status = self._worker.cache_status()
        failed = len(self._merged.failed)
        return SessionStatus(
            self._ranges - failed,
            failed,
            self._ranges,
            status.ranges,
            status.usage.hot,
            status.bound,
            1,
        )

    def usages(self) -> list[Usage]:
        """Tell what the worker uses."""
        return [self._worker.cache_status().usage]

    def close(self) -> None:
        """Let go of open files."""
        self._worker.drop(next(self._numbers))
        self._worker.close()
