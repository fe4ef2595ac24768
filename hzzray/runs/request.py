"""What somebody asks of a run, by whatever way, and the spec that it makes.

``RunRequest`` is the one home of a run's options: commands, the app, Compose and values.yaml have theirs from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hzzray import analyses
from hzzray.data.catalogue import Release
from hzzray.errors import UsageError
from hzzray.messages import RUN_ID, RunSpec
from hzzray.physics.analysis import Analysis, Bound, Template, Variable, Variation
from hzzray.physics.histogram import Axis
from hzzray.physics.selection import PRESETS, Selection, changed, preset, select

_Model = TypeVar("_Model", bound=BaseModel)

# What pydantic finds wrong, in our words.
_RULES = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "too_short": "must have {min_length} values",
    "too_long": "must have {max_length} values",
    "missing": "must be given",
    "extra_forbidden": "must be left out: nobody knows it",
}


def _number_as_text(value: object) -> object:
    """Take numbers for text, as YAML reads ``release: 2020``."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def separated(value: object) -> object:
    """Split a text at its commas; another value stays."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _several(value: object) -> object:
    """Take one text or path for a list of one."""
    some = (value,) if isinstance(value, str | Path) else value
    return tuple(str(one) if isinstance(one, Path) else one for one in some) if isinstance(some, Sequence) else some


def cut_texts(cuts: Mapping[str, Any]) -> tuple[str, ...]:
    """Write cuts as options have them: of ``{"m12": (60, 106)}`` ``m12=60:106``; None at an end is no bound there.

    None for both takes a cut away. Raises UsageError for bounds that are none.
    """
    texts = []
    for variable, ends in cuts.items():
        try:
            low, high = (None if end is None else float(end) for end in (ends if ends is not None else (None, None)))
        except (TypeError, ValueError):
            raise UsageError(f"cut on {variable}: expected (low, high) or None, not {ends!r}") from None
        texts.append(_bound_text(str(variable), low, high))
    return tuple(texts)


def _cuts(value: object) -> object:
    return cut_texts(value) if isinstance(value, Mapping) else _several(value)


def colons(numbers: str | Sequence[float] | None) -> str | None:
    """Write numbers as options have them: (80, 250, 34) as ``80:250:34``; a text stays."""
    return ":".join(map(str, numbers)) if isinstance(numbers, tuple | list) else numbers  # type: ignore[return-value]


def _assignments(value: object) -> object:
    """Write what is given to names as options have it: of ``{"m12": (40, 120, 40), "isolated": False}`` two texts."""
    if not isinstance(value, Mapping):
        return _several(value)
    return tuple(
        f"{name}={str(given).lower() if isinstance(given, bool) else colons(given)}" for name, given in value.items()
    )


@dataclass(frozen=True, slots=True)
class Option:
    """How a field of a request is asked for in words; its description is the help.

    Attributes
    ----------
    flag
        Option of a command.
    metavar
        What is shown in place of its value.
    is_list
        Whether several values go with one flag, separated by commas, instead of each with its own.
    is_work
        Whether it says how the work is done: of a run that is published, that is the bridges' own choice.
    envvar
        Variable of the environment that commands take it from too.
    """

    flag: str
    metavar: str | None = None
    is_list: bool = False
    is_work: bool = False
    envvar: str | None = None

    @property
    def variable(self) -> str:
        """Variable of the environment that the loader of Compose takes it from."""
        return f"HZZRAY_{self.flag.removeprefix('--').replace('-', '_').upper()}"


Engine = Literal["ray", "serial"]
Actors = Annotated[int | None, Field(ge=1)]


class RunRequest(BaseModel):
    """A run as somebody asks for it: what it computes, of what, and how. What is empty or None wasn't asked for.

    Python's own values do as well as texts: ``cuts={"m12": (60, 106)}``, ``observables={"m12": (40, 120, 40)}``,
    ``parameters={"isolated": False}``, ``axis=(80, 250, 34)``, ``window=(115, 130)``, one source or path alone.

    Where it is kept, and which broker its tasks go through, is said by whoever does it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    release: Annotated[str, BeforeValidator(_number_as_text), Option("--release")] = Field(
        "toy", description="2020, 2025, toy, or one of your catalogue."
    )
    sources: Annotated[tuple[str, ...], BeforeValidator(_several), Option("--source")] = Field(
        (),
        description="Folder, http(s):// or root:// address that is laid out as the release. Several times: each file "
        "comes from the first that has it. Default: the release's own address; for toy the folder toy, written if "
        "absent.",
    )
    samples: Annotated[tuple[str, ...], BeforeValidator(separated), Option("--samples", is_list=True)] = Field(
        (), description="Names, separated by commas. Default: all of the release."
    )
    selection: Annotated[str | None, Option("--selection")] = Field(
        None, description="notebook-2020, notebook-2020-pt, notebook-2025 or h4l. Default: the release's."
    )
    analysis: Annotated[str | None, Option("--analysis", "FILE.py:NAME")] = Field(
        None, description="An analysis of your own (docs/analysis.md)."
    )
    cuts: Annotated[tuple[str, ...], BeforeValidator(_cuts), Option("--cut", "VARIABLE=LOW:HIGH")] = Field(
        (), description="A cut, changed or new: m12=60:106, pt1=25: or m12=: for none. Several times."
    )
    parameters: Annotated[tuple[str, ...], BeforeValidator(_assignments), Option("--parameter", "NAME=VALUE")] = Field(
        (), description="What changes the measuring: electron_pt_min=10. Several times."
    )
    observables: Annotated[
        tuple[str, ...], BeforeValidator(_assignments), Option("--observable", "NAME=START:STOP:BINS")
    ] = Field(
        (),
        description="What is filled, instead of the analysis' own set: m12=40:120:40. Several times; the first one "
        "counts.",
    )
    variations: Annotated[
        tuple[str, ...], BeforeValidator(separated), Option("--variations", "none|all|NAME,NAME", is_list=True)
    ] = Field(
        (),
        description="Systematics of the release's simulation that are filled too, up and down: of the observables that "
        "are asked for, else of the first one. Default: none.",
    )
    luminosity: Annotated[float | None, Option("--luminosity")] = Field(
        None, gt=0, allow_inf_nan=False, description="fb⁻¹. Default: the release's."
    )
    fraction: Annotated[float, Option("--fraction")] = Field(
        1.0, gt=0, le=1, description="Leading part of each file to read, in (0, 1]."
    )
    axis: Annotated[str | None, BeforeValidator(colons), Option("--axis", "START:STOP:BINS")] = Field(
        None, description="Bins of the first observable: 80:250:34."
    )
    window: Annotated[str | None, BeforeValidator(colons), Option("--window", "LOW:HIGH")] = Field(
        None, description="Where the significance is counted, on bin edges: 115:130."
    )
    background_uncertainty: Annotated[float | None, Option("--background-uncertainty")] = Field(
        None,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Of the background, relative, in the counting significances, beside the simulation's statistics: "
        "0.3. Default: the release's, or what it states of normalisations.",
    )
    engine: Annotated[Engine, Option("--engine", is_work=True)] = Field(
        "ray", description="ray, or serial for one process."
    )
    actors: Annotated[Actors, Option("--actors", is_work=True)] = Field(
        None, description="Worker actors. Default: one a CPU."
    )
    min_actors: Annotated[Actors, Option("--min-actors", is_work=True)] = Field(
        None, description="Fewest workers of an elastic pool."
    )
    max_actors: Annotated[Actors, Option("--max-actors", is_work=True)] = Field(
        None, description="Most workers; the backlog decides in between."
    )
    chunk: Annotated[int | None, Option("--chunk")] = Field(
        None, ge=1, description="Entries of a task, about. Default: 500 000."
    )
    events: Annotated[int | None, Option("--events")] = Field(
        None, ge=1, description="Simulate this many into the source of toy, if there is no such folder."
    )
    pace: Annotated[float, Option("--pace", is_work=True)] = Field(
        0.0, ge=0, allow_inf_nan=False, description="Take this long at least [s], so that people can watch."
    )
    run_id: Annotated[str | None, Option("--run-id")] = Field(
        None, pattern=RUN_ID, description="Name of the run. One that exists is resumed."
    )
    catalogue: Annotated[Path | None, Option("--catalogue", envvar="HZZRAY_CATALOGUE")] = Field(
        None, description="YAML file with releases or samples of your own."
    )
    openmagic: Annotated[bool, Option("--openmagic")] = Field(
        default=False, description="Take the samples' places from atlasopenmagic (release 2025; an extra)."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_empty(cls, given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if value is not None and value != ""}

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(f"{self.min_actors} actors at least are more than {self.max_actors} at most")
        return self

    @classmethod
    def of(cls, **chosen: object) -> Self:
        """Make a request; raises UsageError naming what is wrong."""
        return checked(cls, chosen)

    @property
    def analyses(self) -> tuple[str, ...]:
        """The file of an analysis of the user's own: workers may use it, as it was asked for."""
        return (str(Path(self.analysis.rpartition(":")[0]).resolve()),) if self.analysis else ()

    def words(self, *, published: bool = False) -> list[str]:
        """Lay the request out as options of ``hzzray run`` or ``publish``: what isn't the default, and the release."""
        words: list[str] = []
        for name, field, option in options(published=published):
            value = getattr(self, name)
            if value == field.get_default() and not (name == "release" and name in self.model_fields_set):
                continue
            if isinstance(value, bool):
                words.append(option.flag)
            elif option.is_list:
                words += [option.flag, ",".join(value)]
            elif isinstance(value, tuple):
                words += [word for one in value for word in (option.flag, one)]
            else:
                words += [option.flag, repr(value).removesuffix(".0") if isinstance(value, float) else str(value)]
        return words


class Asked(NamedTuple):
    """A field of RunRequest with all that is known of it."""

    name: str
    field: FieldInfo
    option: Option


def options(*, published: bool = False) -> Iterator[Asked]:
    """All options of a run, or those of one that is published; in the order of the help."""
    for name, field in RunRequest.model_fields.items():
        option = next(one for one in field.metadata if isinstance(one, Option))
        if not (published and option.is_work):
            yield Asked(name, field, option)


def make_spec(release: Release, request: RunRequest | None = None, **chosen: Any) -> RunSpec:  # noqa: ANN401
    """Make the spec of a run of a release, the release's defaults where nothing is asked for.

    Parameters
    ----------
    release
        Which, as it stands in the catalogue: the request knows no more than its name.
    request
        What is asked for; without it fields of one may be ``chosen`` by name.

    Raises
    ------
    UsageError
        Naming the option that is wrong.
    """
    asked = request or RunRequest.of(**chosen)
    selection, analysis = asked.selection, asked.analysis
    if selection and analysis:
        raise UsageError("--selection is of our analyses: it doesn't go with --analysis")
    samples = asked.samples or tuple(sample.name for sample in release.samples if sample.default)
    if analysis:
        made, ref = analyses.load(analysis)
        selected, own, its_window = select(made), made.templates, made.window
    else:
        name = selection or release.selection
        if name not in PRESETS:
            raise UsageError(f"no selection {name!r}; there are {', '.join(PRESETS)}")
        made, selected = preset(name, release.schema_)
        ref = analyses.reference(made)
        first, *rest = made.templates
        own, its_window = (replace(first, axis=release.axis), *rest), release.window
    templates = _templates(made, own, asked.observables, asked.axis)
    if templates[0].observable != own[0].observable:
        its_window = None
    variations = _variations(release, asked.variations)
    try:
        spec = RunSpec(
            release=_concluding(release.only(samples), asked).model_copy(update={"variations": ()}),
            analysis=ref,
            selection=_changed(made, selected, asked.cuts, asked.parameters),
            templates=templates,
            window=_window(asked.window) if asked.window else its_window,
            luminosity=release.luminosity if asked.luminosity is None else asked.luminosity,
            fraction=asked.fraction,
            variations=variations,
            varied=len(templates) if variations and asked.observables else 1,
        )
    except ValidationError as error:
        axis_alone = (asked.axis or asked.observables) and not asked.window and "window" in str(error)
        raise UsageError(mistake(error) + ("; give --window too" if axis_alone else "")) from error
    analyses.reads(spec, made, simulation=True)  # refuses what the release has no branches for
    if analysis:
        analyses.filler(spec, made)  # refuses what can't be compiled, and leaves the rest in the cache
    return spec


def _concluding(release: Release, asked: RunRequest) -> Release:
    """Lay over a release what is asked for of conclusions."""
    if asked.background_uncertainty is None:
        return release
    return release.model_copy(update={"background_uncertainty": asked.background_uncertainty})


def change_spec(
    spec: RunSpec,
    analysis: Analysis,
    cuts: Sequence[Bound] = (),
    *,
    observables: Sequence[str] = (),
    axis: str | None = None,
    window: str | None = None,
) -> RunSpec:
    """Change cuts and templates of a spec, nothing of what is measured; raises UsageError naming what is wrong.

    What comes of it has no variations.

    ``cuts`` take the place of those that the spec has on the same variables (see ``selection.changed``). The rest is
    as in ``make_spec``; an observable without an axis gets the one that the spec has, else the analysis' own.
    """
    own = [*spec.templates, *analysis.templates]
    names = [template.observable for template in own]
    known = [template for i, template in enumerate(own) if template.observable not in names[:i]]
    chosen = observables or [template.observable for template in spec.templates]
    templates = _templates(analysis, known, chosen, axis)
    its_window = spec.window if templates[0].observable == spec.templates[0].observable else None
    try:
        made = RunSpec(
            **{
                **{name: getattr(spec, name) for name in RunSpec.model_fields},
                "selection": changed(analysis, spec.selection, cuts, {}),
                "templates": templates,
                "window": _window(window) if window else its_window,
                **NOMINAL,
            }
        )
    except ValidationError as error:
        raise UsageError(mistake(error) + ("" if window else "; give a window too")) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    analyses.reads(made, analysis, simulation=True)  # refuses what the release has no branches for
    return made


#: What a spec has that asks for no variations.
NOMINAL: dict[str, Any] = {"variations": (), "varied": 1}


def _variations(release: Release, asked: Sequence[str]) -> tuple[Variation, ...]:
    """Choose variations of a release; raises UsageError with the names there are."""
    if asked in ((), ("none",)):
        return ()
    known = [one.name for one in release.variations]
    for name in asked:
        if name not in (*known, "all"):
            has = f"it has {', '.join(known)}" if known else "it states none"
            raise UsageError(f"--variations: release {release.name} has no {name!r}; {has}")
    chosen = [one for one in release.variations if one.name in asked or ("all" in asked and one.default)]
    if not chosen:
        raise UsageError(f"--variations {','.join(asked)}: release {release.name} states none")
    # What is said of a size's source is no part of what is computed, nor is it who asked for it.
    return tuple(replace(one, source="", default=True) for one in chosen)


def _templates(
    analysis: Analysis, own: Sequence[Template], observables: Sequence[str], axis: str | None
) -> tuple[Template, ...]:
    """Choose templates, with the labels of their variables; raises UsageError naming what is wrong."""
    wanted = []
    known = {template.observable: template.axis for template in own}
    for text in observables:
        name, equals, form = text.partition("=")
        if not equals and name not in known:
            _variable(analysis, name, f"--observable {text}")
            raise UsageError(f"--observable {text}: give its axis too: {name}=START:STOP:BINS")
        wanted.append((name, _axis(form, f"--observable {text}") if equals else known[name]))
    wanted = wanted or list(known.items())
    if axis:
        wanted[0] = wanted[0][0], _axis(axis, f"--axis {axis}")
    found = []
    for name, its_axis in wanted:
        variable = _variable(analysis, name, f"--observable {name}")
        found.append(Template(name, its_axis, variable.label, variable.unit))
    return tuple(found)


def _variable(analysis: Analysis, name: str, option: str) -> Variable:
    try:
        return analysis.variable(name)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _axis(text: str, option: str) -> Axis:
    start, stop, bins = _numbers(text, option, "START:STOP:BINS, such as 80:250:34", 3)
    if bins != int(bins):
        raise UsageError(f"{option}: {bins:g} is no number of bins")
    try:
        return Axis(start, stop, int(bins))
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _window(text: str) -> tuple[float, float]:
    low, high = _numbers(text, f"--window {text}", "LOW:HIGH, such as 115:130", 2)
    return low, high


def _numbers(text: str, option: str, form: str, count: int) -> list[float]:
    """Read finite numbers between colons; raises UsageError naming the option."""
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option}: expected {form}")
    return numbers


def _changed(analysis: Analysis, selection: Selection, cuts: Sequence[str], parameters: Sequence[str]) -> Selection:
    """Change a selection; raises UsageError for what it hasn't, or can't be."""
    try:
        bounds = [bound_of(text) for text in cuts]
        return changed(analysis, selection, bounds, dict(_parameter(selection, text) for text in parameters))
    except ValueError as error:
        raise UsageError(str(error)) from error


def number_text(value: float) -> str:
    """Write a number as short as it can be to be the same again."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def bound_text(bound: Bound) -> str:
    """Write a cut as the command line has it: what ``bound_of`` reads."""
    return _bound_text(bound.variable, bound.low, bound.high)


def _bound_text(variable: str, *ends: float | None) -> str:
    low, high = ("" if end is None else number_text(end) for end in ends)
    return f"{variable}={low}:{high}"


def bound_of(text: str) -> Bound:
    """Read a cut as the command line has it: ``m12=60:106``; raises UsageError naming what is wrong."""
    variable, _, ends = text.partition("=")
    low, colon, high = ends.partition(":")
    try:
        least, most = float(low or "-inf"), float(high or "inf")
    except ValueError:
        colon = ""
    if not variable or not colon:
        raise UsageError(f"--cut {text}: expected VARIABLE=LOW:HIGH, such as m12=60:106, pt1=25: or m12=: for no cut")
    if math.isnan(least) or math.isnan(most):
        raise UsageError(f"--cut {text}: nan is no number to compare with")
    if not least < most:
        raise UsageError(f"--cut {text}: nothing is above {least:g} and below {most:g}")
    return Bound(variable, least if math.isfinite(least) else None, most if math.isfinite(most) else None)


def _parameter(selection: Selection, text: str) -> tuple[str, bool | float]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--parameter {text}: expected NAME=VALUE")
    if isinstance(selection.parameters.get(name), bool):
        if value.lower() not in ("true", "false"):
            raise UsageError(f"--parameter {text}: {name} must be true or false")
        return name, value.lower() == "true"
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--parameter {text}: {name} must be a number")
    if isinstance(selection.parameters.get(name), int) and number != int(number):
        raise UsageError(f"--parameter {text}: {name} must be a whole number")
    return name, number


def checked(model: type[_Model], given: Mapping[str, object]) -> _Model:
    """Make a model of what a user has given; raises UsageError naming what is wrong."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UsageError(mistake(error)) from error


def mistake(error: ValidationError) -> str:
    """Say in one line what pydantic found wrong first."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]).replace("_", "-")
    shown = repr(first["input"])
    given = f", not {shown if len(shown) < 80 else shown[:80] + '…'}" if field else ""
    return f"{field}: {_rule(first)}{given}".lstrip(": ")


def _rule(error: ErrorDetails) -> str:
    """Say in our words what a value must be."""
    bounds = {name: f"{bound:g}" for name, bound in error.get("ctx", {}).items() if isinstance(bound, int | float)}
    kind = error["type"]
    if kind == "string_pattern_mismatch":
        return "must be of letters, digits, dots, dashes and underscores, 64 at most, a letter or digit first"
    if kind in _RULES:
        return _RULES[kind].format(**bounds)
    if kind.partition("_")[0] in ("int", "float"):
        return "must be a whole number" if kind.startswith("int") else "must be a number"
    return error["msg"].removeprefix("Value error, ")
