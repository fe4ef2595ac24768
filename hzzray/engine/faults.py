"""What goes wrong with tasks, actors and the reducer, and what is done about it: values and rules, no effects.

A file that can't be read is given up at once, and a passing fault tried again. All that an actor had in flight when it
died is suspect, and gets an actor to itself, one by one. A task that hangs or needs too much memory is cut in two; what
actors die over again and again is given up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from hzzray.engine.limits import Limits
from hzzray.retry import waits

#: In two floats' bounds, at random: ``random.uniform``, or a seeded one.
Chance = Callable[[float, float], float]

FaultKind = Literal["missing", "data", "memory", "passing", "death", "out of memory"]

# Of the reducer in one call.
_SILENCES = 3


class Fault(NamedTuple):
    """Why a call of a worker brought no partial, and the reason in one line.

    Of its task: a file that is ``missing`` on its node, other ``data`` that can't be read, ``memory`` that it could not
    have, a ``passing`` fault. Of the worker itself: its ``death``, or that it was killed when it ran ``out of memory``.
    """

    kind: FaultKind
    reason: str

    @property
    def is_fall(self) -> bool:
        """Whether it was the worker that failed, rather than its task."""
        return self.kind in ("death", "out of memory")


class TaskHistory(NamedTuple):
    """What is known of the task that a fault is about.

    It was the only one in flight to a worker that fell (``alone``), or the worker was killed as it took too long over
    it (``hung``). It has failed ``tried`` times in a way that may pass, and was to blame for ``crashes``.
    """

    entries: int
    alone: bool
    hung: bool
    tried: int
    crashes: int


class Again(NamedTuple):
    """Try the task again, after ``wait_s``: it has failed ``attempts`` times."""

    attempts: int
    wait_s: float


class Alone(NamedTuple):
    """Let the task have a worker to itself: if that dies too, it is known over what."""

    crashes: int


class SplitTask(NamedTuple):
    """Replace the task by its halves: it is too much for a worker."""

    reason: str
    crashes: int


class GiveUp(NamedTuple):
    """Set the task aside as failed."""

    reason: str
    attempts: int
    permanent: bool


class Search(NamedTuple):
    """Look for the task's file on other nodes."""


Verdict = Again | Alone | SplitTask | GiveUp | Search


def verdict(fault: Fault, trial: TaskHistory, limits: Limits, chance: Chance) -> Verdict:
    """Decide what a failed attempt means for its task."""
    attempts = trial.tried + 1
    match fault.kind:
        case "missing":
            return Search()
        case "data":
            return GiveUp(fault.reason, attempts, permanent=True)
        case "memory":
            return _cut("out of memory", trial, limits)
        case "passing":
            if attempts >= limits.attempts:
                return GiveUp(fault.reason, attempts, permanent=False)
            low, high = limits.back_off_s
            return Again(attempts, min(high, low * 2**attempts) * chance(0.5, 1.0))
        case _:
            return _over_a_fall(fault, trial, limits)


def _over_a_fall(fault: Fault, trial: TaskHistory, limits: Limits) -> Verdict:
    """Decide what the fall of a worker means for a task that was in flight to it."""
    if trial.hung:
        return _cut(f"no result within {limits.timeout_s:g} s", trial, limits)
    if fault.kind == "out of memory" and trial.alone:
        return _cut(f"out of memory: {fault.reason}", trial, limits)
    crashes = trial.crashes + trial.alone
    if trial.alone and crashes >= limits.crashes:
        return GiveUp(f"the worker died over it: {fault.reason}", crashes, permanent=False)
    return Alone(crashes)


def _cut(reason: str, trial: TaskHistory, limits: Limits) -> Verdict:
    crashes = trial.crashes + 1
    if trial.entries < 2 or crashes >= limits.crashes:
        return GiveUp(reason, crashes, permanent=False)
    return SplitTask(reason, crashes)


TroubleKind = Literal["fenced", "refused", "unborn", "ended", "away", "other"]


class Trouble(NamedTuple):
    """Why a call of the reducer failed, and the reason in one line.

    Another reducer has taken the ledger (``fenced``); it ``refused`` what it was called for. Its actor can't be made
    (``unborn``), was ``ended`` for good, is ``away`` and comes back; or it is some ``other`` thing.
    """

    kind: TroubleKind
    reason: str


#: What becomes of the reducer before it is called again: nothing, it is killed and Ray restarts it, it is killed for
#: good so that another goes on from its ledger, or the one that there is now is looked up.
Remedy = Literal["none", "restart", "replace", "find"]


class CallAgain(NamedTuple):
    """Call the reducer again, after a remedy and a wait."""

    remedy: Remedy
    wait_s: float


#: Why the run must end instead; "refused" and "other" are told as they were raised.
Ending = Literal["silent", "unborn", "ended", "away", "refused"]


class Patience:
    """How long a pool bears with its run's reducer. ``shared`` is one that several pools may have started."""

    def __init__(self, limits: Limits, chance: Chance, *, shared: bool) -> None:
        self.limits = limits
        self.chance = chance
        self.shared = shared
        self.replaced = -math.inf

    def call(self, now: float) -> PatientCall:
        """Begin a call: it is made until it succeeds, as all that the reducer does may be done twice."""
        return PatientCall(self, now)


class PatientCall:
    """One call of the reducer, made again and again."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._all = patience
        self._begun = self._asked = now
        self._waits = waits(*patience.limits.back_off_s, patience.chance)
        self._silences = 0

    def asked(self, now: float) -> None:
        """Take note that it is made now."""
        self._asked = now

    def silent(self, now: float) -> CallAgain | Ending:
        """Decide what to do as no answer came for as long as the reducer may be silent."""
        self._silences += 1
        if self._silences == _SILENCES:
            return "silent"
        self._begun = now  # its next life has as long to come
        if self._all.replaced >= self._asked:
            return self._again("none")  # another call has found it silent too, and replaced it
        self._all.replaced = now
        return self._again("restart")  # a fence keeps out what it may write when it comes to

    def failed(self, trouble: Trouble, now: float) -> CallAgain | Ending:
        """Decide what to do about an error."""
        late = now - self._begun > self._all.limits.reducer_s
        shared = self._all.shared
        match trouble.kind:
            case "fenced" if shared and not late:
                return self._again("replace")  # one that begins from the ledger as it is now goes on
            case "fenced" | "refused" | "other":
                return "refused"
            case "unborn":
                return "unborn"
            case "ended":  # for good; from restarts it comes back
                return self._again("find") if shared else "ended"
            case "away":
                return "away" if late else self._again("none")

    def _again(self, remedy: Remedy) -> CallAgain:
        return CallAgain(remedy, next(self._waits))
