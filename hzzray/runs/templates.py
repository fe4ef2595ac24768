"""All templates of a run: ``templates.json`` and ``histograms.root``, and a result that shows another observable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hzzray.engine.template_tables import Table, Tables
from hzzray.errors import UsageError
from hzzray.files import OutputError, read_own, write_whole
from hzzray.physics.analysis import Template
from hzzray.runs.result import Bins, GroupResult, Result, SampleResult, binned

TEMPLATES, HISTOGRAMS = "templates.json", "histograms.root"

#: Templates of a hundred samples with twenty observables are smaller [bytes].
_MOST_BYTES = 128 * 1024**2


def scaled(result: Result, found: Tables) -> Tables:
    """Scale simulation as the result does: numbers as in the result, which all else here takes and gives."""
    scales = np.array([result.samples[sample.name].scale for sample in result.spec.release.samples])[:, None, None]
    return {
        name: Table(
            table.sumw * scales,
            table.sumw2 * scales**2,
            table.digest,
            {direction: sumw * scales for direction, sumw in table.variations.items()},
            {direction: sumw2 * scales**2 for direction, sumw2 in table.variations2.items()},
        )
        for name, table in found.items()
    }


#: What templates.json calls the templates without a variation.
NOMINAL = "nominal"


def save_templates(result: Result, found: Tables, folder: Path) -> Path:
    """Write ``templates.json``: of each observable a histogram of samples, regions and bins, numbers as in the result.

    Those that are varied have an axis before these: ``nominal``, then each variation up and down.
    ``hist.Hist(json.load(file, object_hook=uhi.io.json.object_hook)["m12"])`` reads one.
    """
    text = as_json(result, found)
    return write_whole(folder / TEMPLATES, lambda path: path.write_text(text, encoding="utf-8"))


def as_json(result: Result, found: Tables) -> str:
    """Lay templates out as ``templates.json`` has them."""
    spec = result.spec
    histograms = {}
    for template in (one for one in spec.templates if one.observable in found):
        table = found[template.observable]
        values, variances = _stacked(table)
        varied = [_categories("variation", [NOMINAL, *table.variations])] if table.variations else []
        histograms[template.observable] = {
            "uhi_schema": 1,
            "writer_info": {"hzzray": {"version": result.versions["hzzray"]}},
            "metadata": {"run": result.run_id, "spec": spec.digest, "digest": table.digest},
            "axes": [
                *varied,
                _categories("dataset", [sample.name for sample in spec.release.samples]),
                _categories("region", spec.analysis.regions),
                {
                    "type": "variable",  # a regular one's readers have edges of their own, which rounding moves
                    "edges": template.axis.edges.tolist(),
                    "underflow": True,
                    "overflow": True,
                    "circular": False,
                    "metadata": {"name": template.observable, "label": template.label, "unit": template.unit},
                },
            ],
            "storage": {
                "type": "weighted",
                "values": values.tolist(),
                "variances": variances.tolist(),
            },
        }
    return json.dumps(histograms, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _stacked(table: Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Put variations behind the nominal numbers, along one more leading axis."""
    if not table.variations:
        return table.sumw, table.sumw2
    both = (table.sumw, table.variations), (table.sumw2, table.variations2)
    values, variances = (np.array([nominal, *varied.values()]) for nominal, varied in both)
    return values, variances


def as_hist(result: Result, found: Tables, observable: str = "", *, by: Literal["sample", "group"] = "sample") -> Any:  # noqa: ANN401 (hist has no types)
    """Lay an observable out as a weighted ``hist.Hist``: axes sample or group, region, and the observable.

    Samples are as in ``templates.json``, where their axis is called dataset, and an axis of variations is the first one
    if there are some; groups as in the result: all of one luminosity. By default it is the first observable. Raises
    UsageError where the run didn't fill it.
    """
    import hist  # noqa: PLC0415 (a second to import)
    import uhi.io.json  # noqa: PLC0415

    name = observable or result.spec.templates[0].observable
    shown = showing(result, found, name)
    if by == "sample":
        return hist.Hist(json.loads(as_json(result, {name: found[name]}), object_hook=uhi.io.json.object_hook)[name])
    template, regions = shown.observable, result.spec.analysis.regions
    made = hist.Hist(
        hist.axis.StrCategory(shown.groups, name="group"),
        hist.axis.StrCategory(regions, name="region"),
        hist.axis.Variable(template.axis.edges, name=name, label=template.label),
        storage=hist.storage.Weight(),
    )
    view = made.view(flow=True)
    for i, group in enumerate(shown.groups.values()):
        for j, bins in enumerate(group.channels[region] for region in regions):
            view.value[i, j] = bins.underflow, *bins.sumw, bins.overflow
            view.variance[i, j] = bins.underflow_sumw2, *bins.sumw2, bins.overflow_sumw2
    return made


def _categories(name: str, values: list[str] | tuple[str, ...]) -> dict[str, object]:
    return {"type": "category_str", "categories": list(values), "flow": False, "metadata": {"name": name}}


_Numbers = Annotated[list[list[list[float]]] | list[list[list[list[float]]]], Field(union_mode="left_to_right")]


class _Storage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["weighted"]
    values: _Numbers
    variances: _Numbers


class _Histogram(BaseModel):
    model_config = ConfigDict(frozen=True)

    metadata: dict[str, str]
    storage: _Storage


_FORM = TypeAdapter(dict[Annotated[str, Field(max_length=100)], _Histogram])


def load_templates(result: Result, folder: Path) -> Tables:
    """Read ``templates.json``, numbers as in the result.

    Raises UsageError where there is none, OutputError where it can't be understood or isn't of this run.
    """
    path = folder / TEMPLATES
    try:
        read = _FORM.validate_json(read_own(path, _MOST_BYTES))
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: no templates: the run has not got so far yet, or is of an earlier version"
        ) from error
    except ValidationError as error:
        raise OutputError(f"{path}: {error.errors()[0]['msg']}") from error
    spec = result.spec
    found = {}
    for i, template in enumerate(spec.templates):
        directions = spec.directions if i < spec.shape.varied else ()
        histogram = read.get(template.observable)
        if histogram is None:
            raise OutputError(f"{path}: no observable {template.observable}, which its run has")
        wanted: tuple[int, ...] = (len(spec.release.samples), len(spec.analysis.regions), template.axis.bins + 2)
        wanted = (1 + len(directions), *wanted) if directions else wanted
        try:
            arrays = [np.array(numbers, float) for numbers in (histogram.storage.values, histogram.storage.variances)]
        except ValueError:  # lists of several lengths
            arrays = []
        if not arrays or any(array.shape != wanted or not np.isfinite(array).all() for array in arrays):
            raise OutputError(f"{path}: {template.observable} isn't {wanted} numbers, as its run has")
        exact = histogram.metadata.get("digest", "")
        (sumw, *varied), (sumw2, *varied2) = arrays if directions else ([arrays[0]], [arrays[1]])
        found[template.observable] = Table(
            sumw, sumw2, exact, dict(zip(directions, varied, strict=True)), dict(zip(directions, varied2, strict=True))
        )
    return found


def showing(result: Result, found: Tables, observable: str) -> Result:
    """Return a result that shows another of its observables; numbers that belong to the first stay the first's.

    Raises UsageError where the run didn't fill it.
    """
    spec = result.spec
    names = [template.observable for template in spec.templates]
    if observable not in names:
        raise UsageError(f"run {result.run_id} has no observable {observable!r}; it has {', '.join(names)}")
    if observable == result.observable.observable:
        return result
    return _with_bins(result, spec.templates[names.index(observable)], found[observable])


def _with_bins(result: Result, template: Template, table: Table) -> Result:
    """Return a result whose bins are those of a table."""
    spec, observable = result.spec, template.observable
    samples: dict[str, SampleResult] = {}
    members: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {name: [] for name in result.groups}
    for i, sample in enumerate(spec.release.samples):
        old = result.samples[sample.name]
        samples[sample.name] = old.model_copy(update=_shown(old, table.sumw[i], table.sumw2[i], spec.analysis.regions))
        if old.luminosity is None and result.groups[sample.group].role != "data":
            continue  # as in the result: it may stand beside nothing
        factor = result.side_by_side(old)
        members[sample.group].append((table.sumw[i] * factor, table.sumw2[i] * factor**2))
    groups: dict[str, GroupResult] = {}
    nothing = np.zeros((len(spec.analysis.regions), template.axis.bins + 2))
    for name, group in result.groups.items():
        sumw = sum((w for w, _ in members[name]), nothing)
        sumw2 = sum((w2 for _, w2 in members[name]), nothing)
        groups[name] = group.model_copy(update=_shown(group, sumw, sumw2, spec.analysis.regions))
    edges = tuple(template.axis.edges.tolist())
    return result.model_copy(update={"shown": observable, "edges": edges, "samples": samples, "groups": groups})


def _shown(
    old: SampleResult | GroupResult,
    sumw: NDArray[np.float64],
    sumw2: NDArray[np.float64],
    regions: tuple[str, ...],
) -> dict[str, object]:
    """Lay out bins in place of those of another observable; events are the same ones."""
    channels = {
        region: Bins.model_validate(binned(old.channels[region].n_out, sumw[i], sumw2[i]))
        for i, region in enumerate(regions)
    }
    together = Bins.model_validate(binned(old.n_out, sumw.sum(axis=0), sumw2.sum(axis=0)))
    return {**dict(together), "channels": channels}  # by the fields' own names, not those that they are written by


def save_root(result: Result, found: Tables, folder: Path) -> Path:
    """Write ``histograms.root``: a full TH1D for each observable, sample and group, all regions together and each.

    Names are ``samples/NAME/all``, ``samples/NAME/4e`` and so on; likewise under ``groups``. Those of the second
    observable and of later ones, as far as they are among ``found``, are in a folder of its name. In a name, what is no
    letter, digit, dot, hyphen or underscore becomes an underscore; titles have it as it was. In folders
    ``variations/electron_scale_up`` and so on there is the same with that variation, numbers of entries as without it.
    """
    import uproot  # noqa: PLC0415 (a second to import)

    def write(path: Path) -> None:
        with uproot.recreate(path) as file:
            there = [template for template in result.spec.templates[1:] if template.observable in found]
            for i, template in enumerate((result.spec.templates[0], *there)):
                shown = showing(result, found, template.observable)
                folder = f"{template.observable}/" if i else ""
                for one in _histograms(shown):
                    file[f"{folder}{one.name}"] = _filled(one.bins, template, one.title)
                table = found.get(template.observable, _NOTHING)
                for name, sumw in table.variations.items():
                    varied = Table(sumw, table.variations2[name], table.digest)
                    for one in _histograms(_with_bins(result, template, varied)):
                        place = f"variations/{name}/{folder}{one.name}"
                        file[place] = _filled(one.bins, template, f"{one.title}, {name}")

    return write_whole(folder / HISTOGRAMS, write)


_NOTHING = Table(np.empty(0), np.empty(0), "")


class _Named(NamedTuple):
    """A histogram of the ROOT file, and its place in there."""

    name: str
    bins: Bins
    title: str


def _histograms(result: Result) -> Iterator[_Named]:
    """List what is shown."""
    tables: dict[str, dict[str, SampleResult | GroupResult]]
    tables = {"samples": {**result.samples}, "groups": {**result.groups}}
    for folder, rows in tables.items():
        for key, (name, row) in zip(_keys(rows), rows.items(), strict=True):
            for region, bins in (("all", row), *row.channels.items()):
                title = name if region == "all" else f"{name}, {region.replace('mu', '#mu')}"
                yield _Named(f"{folder}/{key}/{region}", bins, title)


def _keys(names: Iterable[str]) -> list[str]:
    """Make names that a path in a ROOT file, and what is typed to get there, can hold; each once."""
    keys: list[str] = []
    for name in names:
        key = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.") or "unnamed"
        numbered = (f"{key}_{number}" for number in count(2))
        keys.append(next(free for free in chain((key,), numbered) if free not in keys))
    return keys


def _filled(bins: Bins, template: Template, title: str) -> object:
    """Make a TH1D that ROOT has nothing to guess of: raw entries, errors of the flow bins, sums for mean and width.

    Those sums leave the flow bins out and take bins at their centres, as ``TH1::ResetStats`` does: nothing else is
    known of an event that is in a bin.
    """
    from uproot.writing.identify import to_TAxis, to_TH1x  # noqa: PLC0415 (a second to import)

    axis, unit = template.axis, f" {template.unit}" if template.unit else ""
    centres = (axis.edges[1:] + axis.edges[:-1]) / 2
    sumw, sumw2 = np.array(bins.sumw), np.array(bins.sumw2)
    flow2 = np.array([bins.underflow_sumw2, bins.overflow_sumw2], np.float64)  # nan where an old result lacks them
    return to_TH1x(
        fName=None,
        fTitle=title,
        data=np.array([bins.underflow, *sumw, bins.overflow]),
        fEntries=float(bins.n_out),
        fTsumw=sumw.sum(),
        fTsumw2=sumw2.sum(),
        fTsumwx=(sumw * centres).sum(),
        fTsumwx2=(sumw * centres**2).sum(),
        fSumw2=np.array([flow2[0], *sumw2, flow2[1]]),
        fXaxis=to_TAxis("xaxis", _in_root(template), axis.bins, axis.start, axis.stop),
        fYaxis=to_TAxis("yaxis", f"Events / {axis.width:g}{unit}", 1, 0.0, 1.0),
    )


def _in_root(template: Template) -> str:
    """Turn an axis' label from LaTeX into ROOT's own form of it."""
    label = (template.label or template.observable).replace("$", "").replace(r"\ell", "#it{l}").replace("\\", "#")
    return f"{label} [{template.unit}]" if template.unit else label
