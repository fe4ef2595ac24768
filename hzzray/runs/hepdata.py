"""A run and its fit as HEPData takes them (hepdata-submission.readthedocs.io): ``submission.yaml``, a file a table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from hzzray.engine.template_tables import Tables
from hzzray.files import write_whole
from hzzray.runs.fit_run import systematic
from hzzray.runs.result import Bins, Result
from hzzray.runs.templates import showing
from hzzray.statistics.fit_result import FitResult
from hzzray.statistics.significance import poisson_interval

SUBMISSION = "submission.yaml"

# What is said of our own analyses; what one of the user's own is of, who submits it says.
_REACTION = "P P --> HIGGS < Z0 Z0 < LEPTON+ LEPTON- LEPTON+ LEPTON- > > X"
_PHRASES = ("Higgs boson", "four-lepton final state")

Column = dict[str, Any]


class _Table(NamedTuple):
    """A table: its name, what it is, what it is over, and its columns."""

    name: str
    description: str
    over: list[Column]
    columns: list[Column]
    observables: tuple[str, ...] = ("N",)


def write_hepdata(
    result: Result, found: Tables, observables: Sequence[str], fitted: FitResult | None, folder: Path
) -> list[Path]:
    """Write a submission: spectra of some observables, and what a fit found; returns the paths, its own first.

    Raises UsageError for an observable that the run hasn't, OutputError where the folder can't be written.
    """
    tables = [table for name in observables for table in _spectra(showing(result, found, name), found)]
    if fitted is not None:
        tables += _of_fit(fitted)
    about = [_about(result)]
    paths = []
    for table in tables:
        file = f"{re.sub(r'[^a-z0-9]+', '-', table.name.lower()).strip('-')}.yaml"
        about.append(
            {
                "name": table.name,
                "description": table.description,
                "keywords": _keywords(result, table),
                "data_file": file,
            }
        )
        body = {"independent_variables": table.over, "dependent_variables": table.columns}
        paths.append(_write(folder / file, [body]))
    return [_write(folder / SUBMISSION, about), *paths]


def _write(path: Path, documents: Sequence[object]) -> Path:
    text = yaml.safe_dump_all(documents, allow_unicode=True, sort_keys=False, width=120)
    return write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _about(result: Result) -> dict[str, object]:
    release = result.spec.release
    said = (
        f"{release.title}, selection {result.spec.selection.name}, {result.luminosity}. Made by hzzray "
        f"{result.versions.get('hzzray', '')} of run {result.run_id}, {result.status}; "
        f"the bins' SHA-256 is {result.digest}."
    )
    return {"comment": said}


def _keywords(result: Result, table: _Table) -> list[dict[str, object]]:
    number = re.match(r"([\d.]+)\s*TeV", result.spec.release.sqrt_s)
    energy = [1000.0 * float(number[1])] if number else []
    ours = not result.spec.analysis.module
    keywords: list[tuple[str, Sequence[object]]] = [
        ("reactions", [_REACTION] if ours else []), ("observables", list(table.observables)), ("cmenergies", energy),
        ("phrases", [*(_PHRASES if ours else ()), "ATLAS Open Data"]),
    ]  # fmt: skip
    return [{"name": name, "values": list(values)} for name, values in keywords if values]


def _spectra(shown: Result, found: Tables) -> Iterator[_Table]:
    """Make a table of an observable's bins for all regions together, and one for each."""
    template = shown.observable
    bins = [{"low": low, "high": high} for low, high in pairwise(shown.edges)]
    over = [{"header": {"name": template.observable, "units": template.unit}, "values": bins}]
    for region in ("all", *shown.spec.analysis.regions):
        qualifiers = [
            {"name": "region", "value": region},
            {"name": "luminosity", "value": f"{shown.luminosity.simulation:.6g}", "units": "fb^-1"},
        ]
        columns = []
        only = None if region == "all" else region
        for name, group in shown.groups.items():
            content: Bins = group if only is None else group.channels[only]
            if group.role == "data":
                values = _counts(content)
            else:
                moved = systematic(shown, found, template.observable, only, group=name, scaled=False)
                values = _expected(content, moved)
            columns.append({"header": {"name": f"Events: {name}"}, "qualifiers": qualifiers, "values": values})
        where = "all regions together" if region == "all" else f"region {region}"
        errors = "statistical and systematic errors" if shown.spec.variations else "the statistical error"
        said = f"Events in bins of {template.observable}, {where}; of simulation, {errors}."
        yield _Table(f"{template.observable} {region}", said, over, columns)


def _counts(content: Bins) -> list[Column]:
    low, high = poisson_interval(np.round(content.sumw))
    return [
        {"value": round(n), "errors": [{"asymerror": {"minus": float(a - n), "plus": float(b - n)}, "label": "stat"}]}
        for n, a, b in zip(content.sumw, low, high, strict=True)
    ]


def _expected(content: Bins, systematic: NDArray[np.float64] | None) -> list[Column]:
    moved = np.zeros(len(content.sumw)) if systematic is None else systematic
    return [
        _value(w, ("stat", math.sqrt(w2)), ("sys", by))
        for w, w2, by in zip(content.sumw, content.sumw2, moved, strict=True)
    ]


def _value(value: float, *errors: tuple[str, float]) -> Column:
    """Make a value with its errors; one of 0 is none."""
    told = [{"symerror": float(error), "label": label} for label, error in errors if error > 0]
    return {"value": float(value), **({"errors": told} if told else {})}


def _named(name: str, values: Sequence[str]) -> list[Column]:
    return [{"header": {"name": name}, "values": [{"value": value} for value in values]}]


def _of_fit(fitted: FitResult) -> Iterator[_Table]:
    known = {name: figure for name, figure in fitted.figures.items() if figure.value is not None}
    if fitted.mass is not None:
        known |= {name: figure for name, figure in fitted.mass.figures.items() if figure.value is not None}
    of = "data" if fitted.observed else "the events that are expected of mu = 1"
    units = {"σ": "sigma", "": "1"}
    over = [
        *_named("Figure", list(known)),
        *_named("Unit", [units.get(figure.unit, figure.unit) for figure in known.values()]),
        *_named("Definition", [figure.definition for figure in known.values()]),
    ]
    values = [{"value": figure.value} for figure in known.values()]
    column = {"header": {"name": "Value"}, "values": values}
    yield _Table("Fit", f"What the fit of {of} found.", over, [column], ("MU",))
    rows = fitted.yields
    over = [*_named("Region", [row.region for row in rows]), *_named("Process", [row.process for row in rows])]
    columns = [
        {
            "header": {"name": f"Events {when} the fit"},
            "values": [_value(getattr(row, when), ("sys", getattr(row, f"{when}_error"))) for row in rows],
        }
        for when in ("before", "after")
    ]
    yield _Table("Yields", "Events by region and process, before the fit and after it.", over, columns)
    if any(row.impact_up is not None for row in fitted.parameters):
        over = _named("Nuisance parameter", [row.name for row in fitted.parameters])
        names = ("pull", "constraint", "impact_up", "impact_down", "impact_up_before", "impact_down_before")
        columns = [
            {
                "header": {"name": name.replace("_", " ")},
                "values": [{"value": float(getattr(row, name) or 0.0)} for row in fitted.parameters],
            }
            for name in names
        ]
        said = "Pull and constraint of each nuisance parameter, and what it moves mu by, after the fit and before."
        yield _Table("Impacts", said, over, columns, ("MU",))
    if fitted.mass is not None:
        scan = fitted.mass.scan
        over = [{"header": {"name": "Higgs boson mass", "units": "GeV"}, "values": [{"value": m} for m in scan.mass]}]
        column = {
            "header": {"name": "-2 ln(lambda)"},
            "values": [{"value": height} for height in scan.twice_delta_nll],
        }
        yield _Table("Mass scan", f"The likelihood of {of} along the mass.", over, [column], ("MASS",))
