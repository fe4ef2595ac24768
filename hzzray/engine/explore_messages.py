"""What is asked of an exploring session and what it answers: values, without the numerics that make the answers."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hzzray.errors import HzzrayError
from hzzray.messages import Partial, Range, Task
from hzzray.physics.analysis import Cut, Template
from hzzray.physics.histogram import Blocks


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: other cuts and templates of a run. ``number`` tells it from all others."""

    number: int
    cuts: tuple[Cut, ...]
    templates: tuple[Template, ...]


@dataclass(frozen=True, eq=False, slots=True)
class WorkerAnswer:
    """What a worker answers of its ranges, by their numbers: ``blocks`` by sample, and which ranges they are of.

    ``failed`` says of ranges why they can't be read; ``read`` counts those that were not hot. Where blocks were asked
    for range by range, ``packed`` has them.
    """

    blocks: dict[str, Blocks]
    done: tuple[int, ...]
    failed: dict[int, str]
    read: int = 0
    packed: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pick:
    """Which candidates are wanted: those that are filled by some cuts, of some samples.

    The first observable lies from ``low`` on and below ``high``; ``limit`` is how many a worker gives at the most.
    """

    cuts: tuple[Cut, ...]
    template: Template
    samples: frozenset[str]
    low: float = -math.inf
    high: float = math.inf
    limit: int | None = None


class Lepton(NamedTuple):
    """A lepton of a candidate: pt [GeV], η, φ, charge, and 11 for an electron, 13 for a muon."""

    pt: float
    eta: float
    phi: float
    charge: int
    flavour: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate as people look at it.

    ``run`` and ``event`` are the experiment's numbers, None where the file doesn't say; ``entry`` is the one in
    ``file``. ``weight`` is what the event weighs of what was read (``SampleResult.scale`` scales it to all).
    ``values`` has the analysis' variables, those that were measured. ``leptons`` are the chosen four, hardest first or
    in the file's order as the analysis has them; of an analysis that is not of four leptons there are none.
    """

    sample: str
    file: str
    entry: int
    region: str
    weight: float
    values: dict[str, float]
    run: int | None = None
    event: int | None = None
    leptons: tuple[Lepton, ...] = ()


class LentWorker(NamedTuple):
    """A session's worker as a run knows it: its actor, which ranges of the run it holds hot, and what fills them.

    ``fill`` returns for each task its partial, or what it failed with; it raises RayError where the worker is gone.
    """

    name: str
    handle: Any
    holds: frozenset[Range]
    fill: Callable[[Sequence[Task]], Awaitable[Sequence[Partial | HzzrayError]]]


class OvertakenError(HzzrayError):
    """A question that a newer one of the same viewer overtook: nobody waits for its answer any more."""


class SessionStatus(NamedTuple):
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
class MergedAnswer:
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
    def of(cls, shares: Sequence[WorkerAnswer]) -> MergedAnswer:
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
