"""What may stand side by side: the share of each sample that was read, and the luminosity that it stands for.

The one rule (docs/statistics.md): a data sample stands for its luminosity times the share of it that was read; each
simulated sample is scaled by the inverse of its share, and all of them to the luminosity of the data that were read.
What was not read at all, or nobody knows what part of, can't be scaled: figures that need it are withheld, with the
reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import fsum, isclose
from typing import Literal

from hzzray.data.catalogue import Role, Sample
from hzzray.messages import Entries, RunSpec

#: What a figure may need: the counts of a role, and that data and simulation are of one luminosity.
Need = Literal["signal", "background", "data", "comparison"]

_MOST_NAMES = 4  # that are listed one by one


@dataclass(frozen=True, slots=True)
class Reading:
    """How far a sample was read.

    ``entries`` were read; ``total`` are those of its files or, where these were not all ``opened``, those that the
    release states; None where it states none.
    """

    entries: int
    total: int | None
    opened: bool

    @property
    def any(self) -> bool:
        """Whether there is something to scale: some entry was read, or its files have none."""
        return self.entries > 0 or (self.opened and self.total == 0)

    @property
    def known(self) -> bool:
        """Whether there is something to scale, and something to scale it by."""
        return self.any and self.total is not None

    @property
    def share(self) -> float:
        """Part of the sample that was read, in [0, 1], where that is known."""
        if not self.any:
            return 0.0
        return self.entries / self.total if self.total else 1.0

    @property
    def scale(self) -> float:
        """Factor from what was read to the whole sample; 1 where there is nothing to scale."""
        return self.total / self.entries if self.total and self.entries else 1.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a run's numbers stand for, in fb⁻¹.

    ``simulation`` is what all simulation is scaled to; ``data`` what the data that were read stand for: None where
    that isn't known, or none were. ``lacking`` says why figures that need something must be withheld.
    """

    simulation: float
    data: float | None
    samples: dict[str, float | None]
    lacking: dict[Need, str]


def reading(spec: RunSpec, sample: Sample, entries: int, opened: Entries | None, unopened: int = 0) -> Reading:
    """Tell how far a sample was read.

    ``opened`` are those of its files, if some were opened; ``unopened`` counts the others.
    The files' own entries are the whole, not those that the release states: files of selected events have fewer, and
    their weights still give the sample's yield. That the two differ is told (``Result.warnings``). Where not all were
    opened, those that the release states are the whole, unless the others have more than that.
    """
    if opened is not None and not unopened:
        return Reading(entries, opened.held, opened=True)
    stated = None if spec.release.entries_vary else sample.entries
    if stated is not None and opened is not None and stated < opened.held:
        stated = None
    return Reading(entries, stated, opened=False)


def scaling(spec: RunSpec, readings: Mapping[str, Reading], *, running: bool) -> Scaling:
    """Decide what a run's numbers stand for, from how far each of its samples was read."""
    release = spec.release
    data = [sample for sample in release.samples if release.role(sample) == "data"]
    simulated = [sample for sample in release.samples if release.role(sample) != "data"]
    read = [sample for sample in data if readings[sample.name].any]
    unknown = [sample.name for sample in read if sample.luminosity is None]
    unsure = [sample.name for sample in read if not readings[sample.name].known]
    standing = {
        sample.name: None
        if sample.luminosity is None or sample.name in unsure
        else sample.luminosity * readings[sample.name].share
        for sample in read
    }
    luminosity = None if unknown or unsure or not read else fsum(one for one in standing.values() if one is not None)
    chosen = fsum(sample.luminosity or 0.0 for sample in data)
    asked = spec.luminosity
    if luminosity is not None and isclose(luminosity, asked, rel_tol=1e-9):
        luminosity = asked  # sums of decimal fractions: a whole run is scaled by 1 exactly
    same = any(isclose(asked, one, rel_tol=1e-9) for one in (release.luminosity, chosen, luminosity or 0.0))
    compared = luminosity is not None and (same or not simulated)
    lacking: dict[Need, str] = {}
    yet = " yet" if running else ""
    for role in ("signal", "background"):
        why = _lacking(spec, role, readings, yet)
        if why:
            lacking[role] = why
    if not read:
        lacking["data"] = f"no data sample was read{yet}" if data else "no data sample is in this run"
    elif unknown:
        lacking["comparison"] = f"the catalogue doesn't say what luminosity {names(unknown)} stands for"
    elif unsure:
        lacking["comparison"] = _unsure(unsure)
    elif not compared:
        lacking["comparison"] = (
            f"the data are {luminosity:.4g} fb⁻¹, simulation is scaled to the {asked:.4g} fb⁻¹ asked for"
        )
    shown = luminosity if compared and luminosity is not None else asked
    whole = {sample.name: asked if readings[sample.name].known else None for sample in simulated}
    return Scaling(shown, luminosity, standing | whole, lacking)


def _lacking(spec: RunSpec, role: Role, readings: Mapping[str, Reading], yet: str) -> str:
    """Say what of a role was not read: samples, or a whole group of background; nothing where all was."""
    release = spec.release
    samples = [sample for sample in release.samples if release.role(sample) == role]
    if not samples:
        return f"no {role} sample is in this run"
    unread = [sample.name for sample in samples if not readings[sample.name].any]
    unsure = [sample.name for sample in samples if readings[sample.name].any and not readings[sample.name].known]
    if unread or unsure:
        return "; ".join([f"not read{yet}: {names(unread)}"] * bool(unread) + [_unsure(unsure)] * bool(unsure))
    filled = {sample.group for sample in samples}
    empty = [group.name for group in release.groups if group.role == role and group.name not in filled]
    # Several groups of one role add up to a prediction: one without samples would count as nothing.
    return f"no sample of {names(empty)} is in this run" if empty else ""


def _unsure(samples: list[str]) -> str:
    """Say why samples that were read in part can't be scaled."""
    return f"what part of {names(samples)} was read is unknown: not all files were opened"


def names(found: Iterable[str]) -> str:
    """List a few names; of many the first ones, and how many more there are."""
    listed = list(found)
    more = len(listed) - _MOST_NAMES
    return ", ".join(listed[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
