"""Columns: what an analysis reads of a range of events, as it says so, and as it gets it.

An analysis has a NamedTuple of its own whose fields are arrays. What each is read from is said by one of the same kind
whose fields are the values below: ``Offsets``, ``Jagged``, ``Scalar``, ``Array``, ``AnyOf``, ``AllOf``, ``Unread``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Variation

ELECTRON, MUON = 11, 13  # types of leptons, from the PDG's numbering

#: Roles of lepton columns whose values are known well enough to tell that a branch is another.
Role = Literal["", "pt", "eta", "phi", "energy", "charge", "type"]

#: Types that a column of numbers may have, whatever the file's is. Integers must hold every number of the branch,
#: floats round. Of u1 what isn't 0 is 1: flags.
Dtype = Literal["f4", "f8", "i4", "i8", "u1"]


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

    def __post_init__(self) -> None:
        """Refuse what can't be read, whatever the file; raises ValueError."""
        dtype, size = getattr(self, "dtype", "f4"), getattr(self, "size", 1)
        if dtype not in get_args(Dtype):
            raise ValueError(f"a column can't be {dtype!r}: it is one of {', '.join(get_args(Dtype))}")
        if size < 1:
            raise ValueError(f"an array of {size} numbers an event")


@dataclass(frozen=True, slots=True)
class Offsets(_Read):
    """Where each event's entries of a collection begin: int64, shape (events + 1,)."""

    collection: str = ""


@dataclass(frozen=True, slots=True)
class _OfOne(_Read):
    """What is read of one branch."""

    branch: str

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read for it."""
        return (self.branch,)


@dataclass(frozen=True, slots=True)
class Jagged(_OfOne):
    """One number for each entry of a collection, flat, shape (entries,), as ``dtype``.

    All branches of a collection must have as many entries in each event; the first one settles it. ``absolute`` takes
    the absolute value. ``role`` says what it should look like: see ``data.plausibility``.
    """

    dtype: Dtype = "f4"
    collection: str = ""
    absolute: bool = False
    role: Role = ""


@dataclass(frozen=True, slots=True)
class Scalar(_OfOne):
    """One number an event, shape (events,), as ``dtype``."""

    dtype: Dtype = "f8"


@dataclass(frozen=True, slots=True)
class Array(_OfOne):
    """``size`` numbers an event, a C array of a fixed length: shape (events, size), as ``dtype``."""

    size: int
    dtype: Dtype = "f4"


@dataclass(frozen=True, slots=True)
class AnyOf(_Read):
    """Whether one of some flags of an event is set: uint8, shape (events,)."""

    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Below:
    """An entry passes where ``branch`` (a number each) is below ``below``, or below that times ``over``: in float64."""

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


@dataclass(frozen=True, slots=True)
class Unread:
    """What nothing needs: the array is empty, and of the type that it would have."""

    read: Read


class Reads(NamedTuple):
    """All that is read of a file: an analysis' ``columns`` (a NamedTuple of Read), and what its events weigh.

    ``factors`` are branches of one number an event that are multiplied, ``divisor`` one that the product is divided by,
    empty for none. ``more`` is what variations need beside.
    """

    columns: Any
    factors: tuple[str, ...] = ()
    divisor: str = ""
    more: tuple[Jagged | Scalar, ...] = ()

    @property
    def wanted(self) -> Iterator[Read]:
        """The columns that are read."""
        return (read for read in (*self.columns, *self.more) if not isinstance(read, Unread))

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that are read, each once, in reading order."""
        names = [name for read in self.wanted for name in _branches(read)]
        names += [*self.factors, *([self.divisor] if self.divisor else [])]
        return tuple(dict.fromkeys(names))

    @property
    def avoidable(self) -> dict[str, str]:
        """For branches that only columns with a ``without`` need: the option that does without."""
        needed: dict[str, str] = {}
        always = {*self.factors, self.divisor}
        for read in self.wanted:
            for name in _branches(read):
                if not read.without:
                    always.add(name)
                needed.setdefault(name, read.without)
        return {name: option for name, option in needed.items() if name not in always}


def needed(columns: Any, variables: AbstractSet[str]) -> Any:  # noqa: ANN401 (an analysis' own NamedTuple)
    """Leave unread what only variables that nobody asks for are made of.

    Where a collection's offsets are read and nothing else of it, its first branch is read too: that settles them.
    Raises ValueError with what an asked-for variable needs and this release has no branch for.
    """
    kept = [
        read if isinstance(read, Unread) or not read.only_for or variables & set(read.only_for) else Unread(read)
        for read in columns
    ]
    settled = {read.collection for read in kept if isinstance(read, Jagged | AllOf)}
    for collection in {read.collection for read in kept if isinstance(read, Offsets)} - settled:
        kept = _with_a_branch_of(kept, collection)
    lacking = dict.fromkeys(
        read.what or f"column {name}"
        for name, read in zip(columns._fields, kept, strict=True)
        if not isinstance(read, Unread) and _is_lacking(read)
    )
    if lacking:
        raise ValueError(" and ".join(lacking))
    return type(columns)(*kept)


def _with_a_branch_of(columns: list[Read | Unread], collection: str) -> list[Read | Unread]:
    """Read the first branch that there is of a collection; raises ValueError where there is none."""
    for i, unread in enumerate(columns):
        if isinstance(unread, Unread) and isinstance(unread.read, Jagged | AllOf):
            read = unread.read
            if read.collection == collection and read.branches and not _is_lacking(read):
                return [*columns[:i], read, *columns[i + 1 :]]
    raise ValueError(f"the offsets of collection {collection!r}")


def _branches(read: Read) -> tuple[str, ...]:
    return () if isinstance(read, Offsets) else read.branches


def _is_lacking(read: Read) -> bool:
    return not isinstance(read, Offsets) and not all(read.branches or ("",))


def reads_more(columns: Any, variations: Sequence[Variation]) -> tuple[Jagged | Scalar, ...]:  # noqa: ANN401
    """Say what variations need beside an analysis' columns; raises ValueError for one that these don't allow."""
    found: dict[str, Jagged | Scalar] = {}
    for one in variations:
        if one.kinematic:
            pt = columns[roles_of(columns, one)["pt"]]
            if one.branch:
                found[one.branch] = Jagged(one.branch, collection=pt.collection)
        found |= {branch: Scalar(branch) for branch in one.branches}

    def without(branch: str) -> str:
        names = [one.name for one in variations if branch in (one.branch, *one.branches)]
        return f"--variations other than {', '.join(names)}"

    return tuple(replace(read, without=without(branch)) for branch, read in found.items())


def roles_of(columns: Any, variation: Variation) -> dict[Role, int]:  # noqa: ANN401 (an analysis' own NamedTuple)
    """Find the columns that a kinematic variation goes by, and that it changes: energy only where it is read.

    Raises ValueError where one is lacking.
    """
    there = {read.role: i for i, read in reversed(list(enumerate(columns))) if isinstance(read, Jagged) and read.role}
    needed: tuple[Role, ...] = ("pt", "type", *(("eta", "phi") if variation.kind == "resolution" else ()))
    lacking = [role for role in needed if role not in there]
    if lacking:
        raise ValueError(f"variation {variation.name} needs columns with the roles {', '.join(lacking)}")
    return {role: there[role] for role in (*needed, "energy") if role in there}


class Step(NamedTuple):
    """A range of events as it is filled: an analysis' columns (arrays), and what the events weigh.

    ``factors`` (float64) has shape (factors, events), ``divisor`` (float64) shape (events,), or (0,) for none. ``more``
    are columns too.
    """

    events: int
    columns: Any
    factors: NDArray[np.float64]
    divisor: NDArray[np.float64]
    more: tuple[NDArray[Any], ...] = ()


def empty(read: Read | Unread) -> NDArray[Any]:
    """Make the array of a column that has no entries: of the type, and the number of dimensions, that it always has."""
    match read:
        case Unread():
            return empty(read.read)
        case Offsets():
            return np.zeros(1, np.int64)
        case Array():
            return np.empty((0, read.size), read.dtype)
        case Jagged() | Scalar():
            return np.empty(0, read.dtype)
        case AnyOf() | AllOf():
            return np.empty(0, np.uint8)


def nothing(reads: Reads) -> Step:
    """Make a step of no events: what compiled code gets to compile itself for."""
    columns = type(reads.columns)(*map(empty, reads.columns))
    return Step(0, columns, np.empty((len(reads.factors), 0)), np.empty(0), tuple(map(empty, reads.more)))
