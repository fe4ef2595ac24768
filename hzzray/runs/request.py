"""What somebody asks for, to a spec: the options of a run that say what it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hzzray import analyses
from hzzray.data.catalogue import Release
from hzzray.errors import UsageError
from hzzray.messages import RunSpec
from hzzray.physics.analysis import Analysis, Bound, Template, Variable
from hzzray.physics.histogram import Axis
from hzzray.physics.selection import PRESETS, Selection, changed, preset, select

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


def make_spec(
    release: Release,
    *,
    samples: tuple[str, ...] = (),
    selection: str | None = None,
    analysis: str | None = None,
    luminosity: float | None = None,
    fraction: float = 1.0,
    cuts: Sequence[str] = (),
    parameters: Sequence[str] = (),
    observables: Sequence[str] = (),
    axis: str | None = None,
    window: str | None = None,
) -> RunSpec:
    """Put a spec together, the release's defaults where nothing is chosen; raises UsageError naming what is wrong.

    Parameters
    ----------
    selection, analysis
        A preset, or ``FILE.py:NAME`` of an analysis of the user's own; not both.
    cuts, parameters
        Changes of the selection: ``VARIABLE=LOW:HIGH`` with either end empty for none, and ``NAME=VALUE``.
    observables
        What is filled instead of the analysis' own templates: ``NAME=START:STOP:BINS``, or a template's ``NAME`` alone.
    axis
        START:STOP:BINS of the first observable.
    window
        LOW:HIGH of the first observable, where the significance is counted: on its bins' edges.
    """
    if selection and analysis:
        raise UsageError("--selection is of our analyses: it doesn't go with --analysis")
    chosen = samples or tuple(sample.name for sample in release.samples if sample.default)
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
    templates = _templates(made, own, observables, axis)
    if templates[0].observable != own[0].observable:
        its_window = None
    try:
        spec = RunSpec(
            release=release.only(chosen),
            analysis=ref,
            selection=_changed(made, selected, cuts, parameters),
            templates=templates,
            window=_window(window) if window else its_window,
            luminosity=release.luminosity if luminosity is None else luminosity,
            fraction=fraction,
        )
    except ValidationError as error:
        axis_alone = (axis or observables) and not window and "window" in str(error)
        raise UsageError(mistake(error) + ("; give --window too" if axis_alone else "")) from error
    analyses.reads(spec, made, simulation=True)  # refuses what the release has no branches for
    if analysis:
        analyses.filler(spec, made)  # refuses what can't be compiled, and leaves the rest in the cache
    return spec


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
            }
        )
    except ValidationError as error:
        raise UsageError(mistake(error) + ("" if window else "; give a window too")) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    analyses.reads(made, analysis, simulation=True)  # refuses what the release has no branches for
    return made


def bound_of(text: str) -> Bound:
    """Read a cut as the command line has it: ``m12=60:106``; raises UsageError naming what is wrong."""
    return _bound(text)


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
        bounds = [_bound(text) for text in cuts]
        return changed(analysis, selection, bounds, dict(_parameter(selection, text) for text in parameters))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _bound(text: str) -> Bound:
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
