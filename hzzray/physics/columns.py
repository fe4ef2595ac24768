"""Columns: what an analysis reads of a range of events, as it says so, and as it gets it.

An analysis has a NamedTuple of its own whose fields are arrays. What each is read from is said by one of the same kind
whose fields are the values below: ``Offsets``, ``Jagged``, ``Scalar``, ``Array``, ``AnyOf``, ``AllOf``.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

ELECTRON, MUON = 11, 13  # types of leptons, from the PDG's numbering

#: Roles of lepton columns whose values are known well enough to tell that a branch is another.
Role = Literal["", "pt", "eta", "phi", "energy", "charge", "type"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What all that is read has in common.

    ``only_for`` names the variables that are made of it: where neither a cut nor a template uses one of them, nothing
    is read and the array is empty; empty means that it is always needed. ``what`` says for people what it is, and
    ``without`` what option does without it, where a release or a file has no such branch.
    """

    only_for: tuple[str, ...] = ()
    what: str = ""
    without: str = ""


@dataclass(frozen=True, slots=True)
class Offsets(_Read):
    """Where each event's entries of a collection begin: int64, shape (events + 1,)."""

    collection: str = ""


@dataclass(frozen=True, slots=True)
class Jagged(_Read):
    """One number for each entry of a collection, flat, shape (entries,), as ``dtype`` (f4, f8, i4, i8 or u1).

    All branches of a collection must have as many entries in each event; the first one settles it. Of u1 what isn't 0
    is 1: flags. ``absolute`` takes the absolute value. ``role`` says what it should look like: see ``data.roles``.
    """

    branch: str
    dtype: str = "f4"
    collection: str = ""
    absolute: bool = False
    role: Role = ""

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read for it."""
        return (self.branch,)


@dataclass(frozen=True, slots=True)
class Scalar(_Read):
    """One number an event, shape (events,), as ``dtype``."""

    branch: str
    dtype: str = "f8"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read for it."""
        return (self.branch,)


@dataclass(frozen=True, slots=True)
class Array(_Read):
    """``size`` numbers an event, a C array of a fixed length: shape (events, size), as ``dtype``."""

    branch: str
    size: int
    dtype: str = "f4"

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read for it."""
        return (self.branch,)


@dataclass(frozen=True, slots=True)
class AnyOf(_Read):
    """Whether one of some flags of an event is set: uint8, shape (events,)."""

    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Below:
    """An entry passes where ``branch`` (a number each) is below ``below``, or below that times ``over``."""

    branch: str
    below: float
    over: str | None = None


@dataclass(frozen=True, slots=True)
class AllOf(_Read):
    """Whether an entry of a collection has some flags set and is below some bounds: uint8, shape (entries,)."""

    flags: tuple[str, ...] = ()
    bounds: tuple[Below, ...] = ()
    collection: str = ""

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read for it."""
        over = [bound.over for bound in self.bounds if bound.over is not None]
        return (*self.flags, *(bound.branch for bound in self.bounds), *over)


Read = Offsets | Jagged | Scalar | Array | AnyOf | AllOf


class Reads(NamedTuple):
    """All that is read of a file: an analysis' ``columns`` (a NamedTuple of Read), and what its events weigh.

    Fields of ``columns`` that nothing needs are None: their arrays are empty. ``factors`` are branches of one number
    an event that are multiplied, ``divisor`` one that the product is divided by, empty for none.
    """

    columns: Any
    factors: tuple[str, ...] = ()
    divisor: str = ""

    @property
    def wanted(self) -> Iterator[Read]:
        """The columns that are read."""
        return (read for read in self.columns if read is not None)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read, each once, in reading order."""
        names = [name for read in self.wanted if not isinstance(read, Offsets) for name in read.branches]
        names += [*self.factors, *([self.divisor] if self.divisor else [])]
        return tuple(dict.fromkeys(names))

    @property
    def avoidable(self) -> dict[str, str]:
        """For branches that only columns with a ``without`` need: the option that does without."""
        needed: dict[str, str] = {}
        always = {*self.factors, self.divisor}
        for read in self.wanted:
            if not isinstance(read, Offsets):
                for name in read.branches:
                    if not read.without:
                        always.add(name)
                    needed.setdefault(name, read.without)
        return {name: option for name, option in needed.items() if name not in always}


def needed(columns: Any, variables: AbstractSet[str]) -> Any:  # noqa: ANN401 (an analysis' own NamedTuple)
    """Put None for what only variables that nobody asks for are made of.

    Raises ValueError with what an asked-for variable needs and this release has no branch for.
    """
    kept = [read if read and (not read.only_for or variables & set(read.only_for)) else None for read in columns]
    lacking = dict.fromkeys(read.what for read in kept if read is not None and _is_lacking(read))
    if lacking:
        raise ValueError(" and ".join(lacking))
    return type(columns)(*kept)


def _is_lacking(read: Read) -> bool:
    return not isinstance(read, Offsets) and not all(read.branches or ("",))


class Step(NamedTuple):
    """A range of events as it is filled: an analysis' columns (arrays), and what the events weigh.

    ``factors`` (float64) has shape (factors, events), ``divisor`` (float64) shape (events,), or (0,) for none.
    """

    events: int
    columns: Any
    factors: Any
    divisor: Any
