"""Who answers re-cuts of a run: one worker in this process, or all actors of a session that viewers share."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hzzray.engine.hot import Candidate, HotWorker, Pick, Question, Share
from hzzray.errors import HzzrayError
from hzzray.physics.analysis import Cut, Template
from hzzray.physics.histogram import Blocks
from hzzray.physics.hot import Picked


class OvertakenError(HzzrayError):
    """A question that a newer one of the same viewer overtook: nobody waits for its answer any more."""


class Standing(NamedTuple):
    """How a session stands: ranges that can be answered for, those that can't be read, all; bytes that are hot."""

    ready: int
    failed: int
    ranges: int
    hot_ranges: int
    nbytes: int
    bound: int
    actors: int

    @property
    def is_whole(self) -> bool:
        """Whether an answer covers all that can be read."""
        return self.ready + self.failed >= self.ranges


@dataclass(frozen=True, eq=False, slots=True)
class Heard:
    """An answer as its parts gave it: exact blocks by sample, and the numbers of the ranges that they are of.

    ``failed`` says of ranges why they can't be read, ``read`` counts those that were not hot, and ``packed`` has blocks
    range by range where they were asked for so.
    """

    blocks: dict[str, Blocks]
    done: tuple[int, ...]
    failed: dict[int, str]
    read: int = 0
    packed: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, shares: Sequence[Share]) -> Heard:
        """Merge what workers answered."""
        blocks: dict[str, Blocks] = {}
        failed: dict[int, str] = {}
        packed: dict[int, bytes] = {}
        for share in shares:
            for sample, own in share.blocks.items():
                blocks[sample] = blocks[sample] + own if sample in blocks else own
            failed |= share.failed
            packed |= share.packed
        done = tuple(sorted(number for share in shares for number in share.done))
        if len(set(done)) != len(done):
            raise HzzrayError("a range was answered for twice")
        return cls(blocks, done, failed, sum(share.read for share in shares), packed)


class Explorer(Protocol):
    """Answers questions about a run's ranges."""

    def ask(
        self, viewer: str, cuts: tuple[Cut, ...], templates: tuple[Template, ...], *, apart: bool, whole: bool
    ) -> Heard:
        """Answer; where ``whole``, after all that can be read was. Raises OvertakenError."""

    def pick(self, pick: Pick) -> list[Candidate]:
        """Find candidates."""

    def picked(self, pick: Pick) -> Iterator[tuple[int, Picked]]:
        """Find candidates, however many, range by range."""

    def standing(self) -> Standing:
        """Tell how much is ready."""

    def close(self) -> None:
        """Let go of it."""


class Alone:
    """One worker in this process: without Ray, and for one viewer."""

    def __init__(self, worker: HotWorker, ranges: int) -> None:
        self._worker = worker
        self._ranges = ranges
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._heard = Heard({}, (), {})

    def ask(
        self,
        viewer: str,  # noqa: ARG002 (there is one)
        cuts: tuple[Cut, ...],
        templates: tuple[Template, ...],
        *,
        apart: bool = False,
        whole: bool = True,  # noqa: ARG002 (it always is)
    ) -> Heard:
        """Answer; another question that was asked before, of another thread, is dropped."""
        question = Question(next(self._numbers), cuts, templates)
        self._worker.drop(question.number - 1)
        with self._lock:
            share = self._worker.answer(question, range(self._ranges), apart=apart)
        if share is None:
            raise OvertakenError("overtaken by a newer question")
        self._heard = Heard.of([share])
        return self._heard

    def pick(self, pick: Pick) -> list[Candidate]:
        """Find candidates."""
        with self._lock:
            found = self._worker.pick(pick, range(self._ranges))
            return [row for number, picked in found.items() for row in self._worker.describe(number, picked)]

    def picked(self, pick: Pick) -> Iterator[tuple[int, Picked]]:
        """Find candidates, however many, range by range."""
        for number in range(self._ranges):
            with self._lock:
                yield from self._worker.pick(pick, [number]).items()

    def standing(self) -> Standing:
        """Tell how much is hot; the rest is read when somebody asks."""
        warmth = self._worker.warmth()
        failed = len(self._heard.failed)
        return Standing(self._ranges - failed, failed, self._ranges, warmth.ranges, warmth.nbytes, warmth.bound, 1)

    def close(self) -> None:
        """Let go of open files."""
        self._worker.drop(next(self._numbers))
        self._worker.close()
