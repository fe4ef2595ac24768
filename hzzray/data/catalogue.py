"""Releases and their samples: what exists, what it is normalised to, where its files lie.

The two ATLAS releases and the toy one are package data (``releases/*.yaml``). A user adds a release, or samples to one,
in a YAML file of the same form, named by ``--catalogue`` or ``HZZRAY_CATALOGUE``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from math import fsum, hypot
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hzzray.data.schema import Schema
from hzzray.errors import UsageError
from hzzray.physics.analysis import Variation
from hzzray.physics.histogram import Axis
from hzzray.physics.selection import PRESETS
from hzzray.urls import is_pattern

Role = Literal["data", "background", "signal"]

# Of HTML 4: known without matplotlib.
_HTML_COLOURS = frozenset({
    "aqua", "black", "blue", "fuchsia", "gray", "green", "lime", "maroon",
    "navy", "olive", "purple", "red", "silver", "teal", "white", "yellow",
})  # fmt: skip


class Frozen(BaseModel):
    """A validated value that never changes and refuses what it doesn't know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Group(Frozen):
    """Samples that are stacked as one: the legend's entry."""

    name: str
    role: Role
    colour: str


class Sample(Frozen):
    """One dataset: files of collisions, or of simulation with what it is normalised to.

    ``path`` is a file's place inside a source, or several; one with ``*`` is a pattern of such places (with ``?`` and
    ``[…]`` too, ``**`` for folders of any depth). One path stays plain text: specs keep the digests that they had.
    ``xsec`` is in pb. Simulation without ``xsec`` carries its normalisation in the file (``Schema.divisor``).
    ``entries`` is what the release states. ``luminosity`` [fb⁻¹] is what a data sample stands for: where the catalogue
    states none, its part, by entries, of what the others leave of the release's. A sample with ``default: false`` is
    read only when it is asked for by name.
    """

    name: str
    group: str
    path: str | tuple[str, ...]
    dsid: int | None = None
    entries: int | None = Field(default=None, ge=0)
    xsec: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    sumw: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    red_eff: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    default: bool = True
    # Left out where it is None: a spec of before has the digest that it had.
    luminosity: float | None = Field(default=None, gt=0, allow_inf_nan=False, exclude_if=lambda value: value is None)

    @field_validator("path", mode="before")
    @classmethod
    def _one_or_several(cls, path: object) -> object:
        """Take a list of one path for that path."""
        several = path if isinstance(path, list | tuple) else (path,)
        if not several or not all(isinstance(one, str) and one for one in several):
            raise ValueError("expected a path, or a list of paths")
        return several[0] if len(several) == 1 else tuple(several)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.xsec is None) != (self.sumw is None):
            raise ValueError(f"sample {self.name}: xsec and sumw go together")
        for path in self.paths:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"sample {self.name}: path must stay inside the source, not {path}")
        twice = _twice(self.paths)
        if twice is not None:
            raise ValueError(f"sample {self.name}: path {twice} is there twice")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The places of its files inside a source, and patterns of such."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def only_path(self) -> str | None:
        """The place of its file, where it is one by its very definition; None where it may be several."""
        (first, *others) = self.paths
        return None if others or is_pattern(first) else first


#: Fields of a release that say what is concluded from counts, not what is counted: they name no computation.
CONCLUDING = frozenset({"uncertainties", "background_uncertainty"})

#: The uncertainty that moves all of simulation together; HistFactory has a modifier of its own for it.
LUMINOSITY = "lumi"


class Uncertainty(Frozen):
    """How well the normalisation of some simulation is known: by ``up`` and ``down``, relative, one standard deviation.

    It moves all samples of these ``groups`` and these ``samples`` together; without any, all of simulation. ``source``
    says who found it. In YAML ``relative: 0.017`` is both directions.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")
    up: float = Field(gt=0, le=10, allow_inf_nan=False)
    down: float = Field(gt=0, lt=1, allow_inf_nan=False)
    groups: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    source: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _of_both_directions(cls, given: object) -> object:
        if not isinstance(given, dict) or "relative" not in given:
            return given
        if given.keys() & {"up", "down"}:
            raise ValueError("relative is both up and down: give it, or these")
        both = given["relative"]
        return {"up": both, "down": both} | {name: value for name, value in given.items() if name != "relative"}

    @property
    def relative(self) -> float:
        """The mean of both directions."""
        return (self.up + self.down) / 2

    def moves(self, sample: Sample) -> bool:
        """Tell whether it moves a sample of simulation."""
        return not (self.groups or self.samples) or sample.group in self.groups or sample.name in self.samples


class Release(Frozen):
    """A release: its schema, groups, samples and the defaults that its notebook uses, which an analysis of ours takes.

    ``window`` (GeV) is where the significance is counted: from a bin's edge to another's. ``sources`` are the folders
    of the web that hold its files. ``variations`` are the systematics that are known of its simulation. Where
    ``entries_vary``, files may have any number of entries: those of the samples are proportions. ``uncertainties`` are
    of what simulation is normalised to; ``background_uncertainty``, relative, takes their place in the counting
    significances where it is given.
    """

    name: str
    title: str
    sqrt_s: str
    luminosity: float = Field(gt=0, allow_inf_nan=False, description="fb⁻¹ of the whole data")
    selection: str = "h4l"
    axis: Axis = Axis(80.0, 250.0, 34)
    window: tuple[float, float] = (115.0, 130.0)
    schema_: Schema = Field(alias="schema")
    sources: tuple[str, ...] = ()
    groups: tuple[Group, ...]
    samples: tuple[Sample, ...]
    entries_vary: bool = Field(default=False, exclude_if=lambda value: not value)
    # Left out of a run's spec, which has its own.
    variations: tuple[Variation, ...] = Field(default=(), exclude_if=lambda value: not value)
    uncertainties: tuple[Uncertainty, ...] = Field(default=(), exclude_if=lambda value: not value)
    background_uncertainty: float | None = Field(
        default=None, ge=0, le=10, allow_inf_nan=False, exclude_if=lambda value: value is None
    )

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="after")
    def _check(self) -> Self:
        groups = {group.name for group in self.groups}
        for sample in self.samples:
            if sample.group not in groups:
                raise ValueError(f"sample {sample.name} is in group {sample.group!r}, which the release lacks")
            if self.role(sample) != "data" and sample.xsec is None and self.schema_.divisor is None:
                raise ValueError(f"sample {sample.name} needs xsec and sumw: the files carry no normalisation")
            if self.role(sample) != "data" and sample.luminosity is not None:
                raise ValueError(f"sample {sample.name} is simulation: it has no luminosity of its own")
        for uncertainty in self.uncertainties:
            unknown = {*uncertainty.groups} - groups or {*uncertainty.samples} - {one.name for one in self.samples}
            if unknown:
                raise ValueError(f"uncertainty {uncertainty.name}: the release lacks {', '.join(sorted(unknown))}")
            if uncertainty.name == LUMINOSITY and (uncertainty.groups or uncertainty.samples):
                raise ValueError(f"uncertainty {LUMINOSITY} is of all simulation: leave out groups and samples")
        for kind, named in (
            ("group", [group.name for group in self.groups]),
            ("sample", [sample.name for sample in self.samples]),
            ("variation", [variation.name for variation in self.variations]),
            ("uncertainty", [uncertainty.name for uncertainty in self.uncertainties]),
        ):
            twice = _twice(named)
            if twice is not None:
                raise ValueError(f"{kind} {twice} is there twice")
        self.axis.window(*self.window)  # refuses one that is not of whole bins
        return self

    def role(self, sample: Sample) -> Role:
        """Tell whether a sample is data, background or signal."""
        return next(group.role for group in self.groups if group.name == sample.group)

    def sample(self, name: str) -> Sample:
        """Find a sample; raises UsageError with the names there are."""
        for sample in self.samples:
            if sample.name == name:
                return sample
        known = ", ".join(sample.name for sample in self.samples)
        raise UsageError(f"release {self.name} has no sample {name!r}; it has {known}")

    def only(self, names: tuple[str, ...]) -> Release:
        """Return the release restricted to some samples, in the release's order; raises UsageError on unknown ones."""
        for name in names:
            self.sample(name)
        kept = tuple(sample for sample in self.samples if sample.name in names)
        moved = tuple(
            one.model_copy(update={"samples": tuple(name for name in one.samples if name in names)})
            for one in self.uncertainties
            if not one.samples or one.groups or {*one.samples} & {*names}
        )
        return self.model_copy(update={"samples": kept, "uncertainties": moved})

    def normalisation(self, sample: Sample, luminosity: float) -> float:
        """Weight common to a sample's events, at a luminosity in fb⁻¹: lumi·1000·xsec/(sumw·red_eff); data: 1."""
        if self.role(sample) == "data":
            return 1.0
        if sample.xsec is None or sample.sumw is None:
            return luminosity * 1000.0
        return luminosity * 1000.0 * sample.xsec / (sample.sumw * sample.red_eff)

    def stated_error(self, yields: Mapping[str, float]) -> float:
        """Tell how well the sum of some samples' yields is known, from what is stated.

        Each uncertainty moves its samples together, and different ones add in quadrature. ``background_uncertainty``,
        where it is given, is that of the whole sum instead.
        """
        if self.background_uncertainty is not None:
            return self.background_uncertainty * abs(fsum(yields.values()))
        moved = [[self.sample(name) for name in yields if one.moves(self.sample(name))] for one in self.uncertainties]
        sums = [fsum(yields[sample.name] for sample in samples) for samples in moved]
        return hypot(*(one.relative * total for one, total in zip(self.uncertainties, sums, strict=True)))


def _with_luminosities(release: Release) -> Release:
    """Share out what the stated luminosities leave of the release's, by entries; what can't be told stays None."""
    data = [sample for sample in release.samples if release.role(sample) == "data" and sample.default]
    unstated = [sample for sample in data if sample.luminosity is None]
    left = release.luminosity - fsum(sample.luminosity or 0.0 for sample in data)
    entries = [sample.entries or 0 for sample in unstated] if len(unstated) > 1 else [1]
    if not unstated or not all(entries) or left <= 1e-9 * release.luminosity:
        return release
    shares = {sample.name: left * n / sum(entries) for sample, n in zip(unstated, entries, strict=True)}
    samples = tuple(
        sample.model_copy(update={"luminosity": shares[sample.name]}) if sample.name in shares else sample
        for sample in release.samples
    )
    return release.model_copy(update={"samples": samples})


def _twice(names: Iterable[object]) -> object | None:
    """Find a name that is there twice."""
    return next((name for name, n in Counter(names).items() if n > 1), None)


_ONE = {"groups": "group", "samples": "sample", "uncertainties": "uncertainty"}


def _rows(body: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Key samples or groups of a release by name; raises ValueError where they have none, or the same."""
    rows = body.get(key) or []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows
    ):
        raise ValueError(f"{key}: expected a list of mappings, each with a name")
    twice = _twice(row["name"] for row in rows)
    if twice is not None:
        raise ValueError(f"{_ONE[key]} {twice} is there twice")
    return {row["name"]: row for row in rows}


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Lay a release over what it ``extends``: samples, groups, uncertainties by name; axis, schema, the rest by key."""
    merged = {**base, **extra}
    for key in ("groups", "samples", "uncertainties"):
        if key == "uncertainties" and key not in base and key not in extra:
            continue
        rows = _rows(base, key)
        for name, row in _rows(extra, key).items():
            rows[name] = {**rows.get(name, {}), **row}
        merged[key] = list(rows.values())
    for key in ("axis", "schema"):
        if isinstance(base.get(key), dict) and isinstance(extra.get(key), dict):
            merged[key] = {**base[key], **extra[key]}
    return merged


_Known = dict[str, dict[str, Any] | UsageError]
"""Releases as YAML has them, by name; those that are not what they should be, as what is to be said of them."""


def _load(text: str, origin: str, known: _Known) -> _Known:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that there isn't
        raise UsageError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{origin}: expected a mapping of release names to releases")
    found: _Known = {}
    for name, body in document.items():
        try:
            found[str(name)] = {**_extended(body, {**known, **found}), "name": str(name)}
        except ValueError as error:
            found[str(name)] = UsageError(f"{origin}: release {name}: {error}")
    return found


def _extended(body: object, known: _Known) -> dict[str, Any]:
    """Lay a release over what it extends; raises ValueError where it can't be."""
    if not isinstance(body, dict):
        raise ValueError("expected a mapping")  # noqa: TRY004 (a mistake of the user's like the others)
    own = {key: value for key, value in body.items() if key != "extends"}
    if body.get("extends") is None:
        return _merge({}, own)
    parent = str(body["extends"])
    base = known.get(parent)
    if base is None:
        raise ValueError(f"extends {parent}, which is unknown")
    if isinstance(base, UsageError):
        raise ValueError(f"extends {parent}, which has a mistake itself")  # noqa: TRY004
    return _merge(base, own)


def _release(body: dict[str, Any] | UsageError, origin: str) -> Release:
    if isinstance(body, UsageError):
        raise body
    try:
        made = _with_luminosities(Release.model_validate(body))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{origin}: release {body['name']}: {where}: {first['msg']}".replace(": : ", ": ")) from error
    if made.selection not in PRESETS:
        raise UsageError(
            f"{origin}: release {made.name}: selection: no {made.selection!r}; there are {', '.join(PRESETS)}"
        )
    for group in made.groups:
        if not is_colour(group.colour):
            raise UsageError(
                f"{origin}: release {made.name}: group {group.name}: {group.colour!r} is not a colour; "
                "write #rrggbb, or a name that CSS has"
            )
    return made


def is_colour(text: str) -> bool:
    """Tell whether both matplotlib and a browser take a text for a colour."""
    if text.lower() in _HTML_COLOURS or re.fullmatch(r"#(?:[0-9a-fA-F]{3,4}|[0-9a-fA-F]{6}|[0-9a-fA-F]{8})", text):
        return True
    from matplotlib.colors import CSS4_COLORS  # noqa: PLC0415 (slow to load, and the usual ones needn't wait)

    return text.lower() in CSS4_COLORS


@cache
def _builtin() -> _Known:
    known: _Known = {}
    for file in sorted(resources.files("hzzray.data").joinpath("releases").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            known |= _load(file.read_text(encoding="utf-8"), file.name, known)
    return known


def _all(extra: Path | None) -> dict[str, tuple[dict[str, Any] | UsageError, str]]:
    """Read what there is, the user's file over the package's, each with where it is from."""
    known = {name: (body, "hzzray's own catalogue") for name, body in _builtin().items()}
    if extra is None:
        return known
    try:
        text = extra.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"catalogue {extra}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"catalogue {extra} is not UTF-8 text") from error
    return known | {name: (body, str(extra)) for name, body in _load(text, str(extra), _builtin()).items()}


def releases(extra: Path | None = None) -> dict[str, Release]:
    """Read all releases that can be used, the user's file over the package's; what ails the others: ``mistakes``.

    Raises UsageError for a file that can't be read at all.
    """
    return {name: found for name, found in _read(extra).items() if isinstance(found, Release)}


def mistakes(extra: Path | None = None) -> tuple[str, ...]:
    """Say in a line each why releases can't be used; raises as ``releases``."""
    return tuple(str(found) for found in _read(extra).values() if isinstance(found, UsageError))


def _read(extra: Path | None) -> dict[str, Release | UsageError]:
    read: dict[str, Release | UsageError] = {}
    for name, found in _all(extra).items():
        try:
            read[name] = _release(*found)
        except UsageError as error:
            read[name] = error
    return read


def release(name: str, extra: Path | None = None) -> Release:
    """Find a release by name; raises UsageError naming file and field of a mistake, or the names there are.

    Mistakes in other releases of the user's file don't matter.
    """
    known = _all(extra)
    if name not in known:
        raise UsageError(f"no release {name!r}; there are {', '.join(known)}")
    return _release(*known[name])
