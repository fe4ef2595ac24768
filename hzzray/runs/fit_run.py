"""A run's templates → what a fit needs, and what it leaves: ``workspace.json`` and ``fit.json``.

Loads no pyhf, but where a fit is made.
"""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from hzzray.data.catalogue import Role
from hzzray.engine.template_tables import Tables
from hzzray.errors import UsageError
from hzzray.files import OutputError, read_own, write_whole
from hzzray.runs.folder import RunFolder, load_json
from hzzray.runs.result import Result
from hzzray.runs.templates import load_templates, showing
from hzzray.statistics.fit_result import FitPoint, FitResult
from hzzray.statistics.model_inputs import ModelInputs, Process
from hzzray.statistics.progress import Progress, quiet
from hzzray.statistics.workspace import ModelError, directions

if TYPE_CHECKING:
    from hzzray.statistics.workspace import Workspace

Vector = NDArray[np.float64]

FIT, WORKSPACE = "fit.json", "workspace.json"

#: The quick fit of a run that goes on, of what it has read so far.
FIT_LIVE = "fit-live.json"

# Who works on a run writes its result once a second, templates less often: how often, and how far apart, both are read
# before they are taken for those of two moments [s].
_TRIES, _APART_S = 25, 0.2

_MOST_BYTES = 64 * 1024**2


#: The observable that a mass is fitted to.
MASS_OF = "m4l"


def require_fit() -> None:
    """Refuse to fit without what it takes; raises UsageError that says how to get it."""
    lacking = [name for name in ("pyhf", "iminuit") if find_spec(name) is None]
    if lacking:
        raise UsageError(f"a fit needs {' and '.join(lacking)}: pip install 'hzzray[fit]'")


def fit_run(
    folder: Path,
    observable: str | None = None,
    *,
    quick: bool = False,
    toys: int = 0,
    seed: int = 1,
    into: Path | None = None,
    progress: Progress = quiet,
) -> FitResult:
    """Fit a run, and write ``workspace.json`` and ``fit.json`` into its folder or another one.

    By default it is the first observable. A ``quick`` fit has strength and significance alone: no limit, no impacts, no
    mass; a full one of the same bins that is there stays. ``toys`` pseudo-experiments give the observed significance
    and the mass' interval, too. ``progress`` is told what is done, how far it is, and how long it will be.

    Raises
    ------
    UsageError
        Without pyhf, where the run has no result or no such observable.
    ModelError, FitError
        Where no model can be made of the run, or its fit doesn't converge.
    """
    require_fit()
    from hzzray.statistics.fit import Wanted, run_fit  # noqa: PLC0415 (pyhf: seconds to import)
    from hzzray.statistics.workspace import make  # noqa: PLC0415

    result, tables = read_run(folder)
    found = inputs(result, tables, observable)
    workspace = make(found)
    save_workspace(workspace, into or folder)
    wanted = Wanted(toys=toys, seed=seed, limits=not quick, impacts=not quick)
    fitted = run_fit(
        workspace, has_data=found.data is not None, no_data=found.no_data, wanted=wanted, progress=progress
    )
    if found.observable == MASS_OF and not quick:
        progress("mass", 0, 1)
        fitted = _with_mass(fitted, found, toys, seed, progress)
        progress("mass", 1, 1)
    fitted = described(fitted, result, found.observable)
    if not (quick and has_full_fit(into or folder, fitted)):
        save_fit(fitted, into or folder)
    return fitted


def has_full_fit(folder: Path, quick: FitResult) -> bool:
    """Tell whether a folder has a fit of the same bins, with all that a quick one leaves out: it isn't replaced."""
    try:
        found = load_fit(folder)
    except (UsageError, OutputError):
        return False
    return "limit_expected" in found.figures and (found.digest, found.observable) == (quick.digest, quick.observable)


def _with_mass(fitted: FitResult, found: ModelInputs, toys: int, seed: int, progress: Progress) -> FitResult:
    """Fit the mass, too; where it can't be, say why."""
    from hzzray.statistics.mass import MassError, fit_mass  # noqa: PLC0415

    try:
        return fitted.model_copy(update={"mass": fit_mass(found, toys=toys, seed=seed, progress=progress)})
    except MassError as error:
        return fitted.model_copy(update={"notes": (*fitted.notes, f"no mass: {error}")})


def read_run(folder: Path) -> tuple[Result, Tables]:
    """Read a run's result and templates, of one moment; raises as the readers of both, ModelError if they never are."""
    for _ in range(_TRIES):
        result = load_json(folder)
        found = load_templates(result, folder)
        if _of_one_moment(result, found) or result.status != "running":
            return result, found
        time.sleep(_APART_S)
    raise ModelError(f"run {result.run_id} goes on, and its templates are of another moment than its result: ask again")


def _of_one_moment(result: Result, found: Tables) -> bool:
    table = found[result.spec.templates[0].observable]
    shown = np.array([result.samples[sample.name].sumw for sample in result.spec.release.samples])
    return np.allclose(table.sumw.sum(axis=1)[:, 1:-1], shown, rtol=1e-9, atol=1e-12)


def inputs(result: Result, found: Tables, observable: str | None = None) -> ModelInputs:
    """Take a model's inputs from a run, whole or not, by the rules of docs/statistics.md.

    All simulation is that of the luminosity of the data that were read, each sample scaled by the inverse of its share.

    Raises
    ------
    UsageError
        Where the run has no such observable.
    ModelError
        Where signal or background was not read, or an unknown part of it: it can't be scaled.
    """
    spec = result.spec
    name = observable or spec.templates[0].observable
    template = next((one for one in spec.templates if one.observable == name), None)
    if template is None or name not in found:
        known = ", ".join(one.observable for one in spec.templates)
        raise UsageError(f"run {result.run_id} has no observable {name!r}; it has {known}")
    withheld = result.significance.unread
    for needed in ("background", "signal"):
        if why := withheld.get(f"n_{needed}"):
            raise ModelError(f"run {result.run_id} can't be fitted: {why}")
    table = found[name]
    processes, data = [], np.zeros(table.sumw.shape[1:])[:, 1:-1]
    for i, sample in enumerate(spec.release.samples):
        role: Role = result.groups[sample.group].role
        if role == "data":
            data = data + table.sumw[i][:, 1:-1]
            continue
        factor = result.side_by_side(result.samples[sample.name])
        processes.append(
            Process(
                sample.name,
                sample.group,
                role,
                factor * table.sumw[i][:, 1:-1],
                factor**2 * table.sumw2[i][:, 1:-1],
                {key: factor * sumw[i][:, 1:-1] for key, sumw in table.variations.items()},
                tuple(one for one in spec.release.uncertainties if one.moves(sample)),
            )
        )
    why = withheld.get("n_data", "")
    if not why and not result.luminosity.compared:
        why = withheld.get("observed", "data and simulation are of different luminosities")
    return ModelInputs(
        name, template.unit, spec.analysis.regions, template.axis.edges, tuple(processes), None if why else data, why
    )


def systematic(
    result: Result,
    found: Tables,
    observable: str,
    region: str | None = None,
    *,
    group: str | None = None,
    scaled: bool = True,
) -> Vector | None:
    """Tell the simulation's systematic uncertainty in each bin of an observable, shape (bins,), in events.

    Each variation's larger direction, and each uncertainty of normalisations, of all simulation together, or of one
    group; different ones in quadrature. They are ``scaled`` to the data that were read, or as simulated. None of a run
    without variations, or of a region that there isn't.
    """
    table, release = found[observable], result.spec.release
    if not table.variations or region not in (None, *result.spec.analysis.regions):
        return None
    regions = slice(None) if region is None else [result.spec.analysis.regions.index(region)]
    samples = [sample for sample in release.samples if release.role(sample) != "data" and group in (None, sample.group)]
    factors = {one.name: result.side_by_side(result.samples[one.name]) if scaled else 1.0 for one in samples}
    which = [i for i, sample in enumerate(release.samples) if sample in samples]

    def bins(sumw: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.array([factors[sample.name] for sample in samples])[:, None]
        summed: NDArray[np.float64] = scale * sumw[which][:, regions, 1:-1].sum(axis=1)
        return summed

    nominal = bins(table.sumw)
    varied = {name: bins(sumw).sum(axis=0) for name, sumw in table.variations.items()}
    pairs = directions(varied, nominal.sum(axis=0)).values()
    moved = [np.maximum(*(abs(one - nominal.sum(axis=0)) for one in pair)) for pair in pairs]
    moved += [
        one.relative * nominal[[one.moves(sample) for sample in samples]].sum(axis=0) for one in release.uncertainties
    ]
    total: Vector = np.sqrt(sum((shift**2 for shift in moved), np.zeros(nominal.shape[1])))
    return total


def drawn(
    result: Result, folder: Path, observable: str | None = None, region: str | None = None
) -> tuple[Result, Vector | None]:
    """Take what a plot shows of a run: one of its observables, by default the first, and its systematic uncertainty.

    That is None where the run has measured none. Raises as ``load_templates`` and ``showing``.
    """
    if observable is None and not result.spec.variations:
        return result, None
    found = load_templates(result, folder)
    shown = result if observable is None else showing(result, found, observable)
    return shown, systematic(shown, found, shown.observable.observable, region)


def unfitted(result: Result, why: str) -> FitResult:
    """Say that there is no fit of a run yet, and why."""
    nothing = FitResult(
        observed=False, no_data=why, figures={}, parameters=(), names=(), correlations=(), yields=(), bins=()
    )
    return described(nothing, result, result.spec.templates[0].observable)


def described(fitted: FitResult, result: Result, template: str) -> FitResult:
    """Say of which run a fit is."""
    unit = next(one.unit for one in result.spec.templates if one.observable == template)
    return fitted.model_copy(
        update={
            "run_id": result.run_id,
            "spec": result.spec.digest,
            "digest": result.digest,
            "observable": template,
            "unit": unit,
            "luminosity": result.luminosity.simulation,
            "fraction": result.fraction,
            "versions": result.versions | fitted.versions,
        }
    )


def save_workspace(workspace: Workspace, folder: Path) -> Path:
    """Write ``workspace.json``, which pyhf and cabinetry load as it is."""
    text = json.dumps(workspace.document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return write_whole(folder / WORKSPACE, lambda path: path.write_text(text, encoding="utf-8"))


def save_fit(fitted: FitResult, folder: Path, name: str = FIT) -> Path:
    """Write ``fit.json``."""
    text = fitted.model_dump_json(indent=1) + "\n"
    return write_whole(folder / name, lambda path: path.write_text(text, encoding="utf-8"))


def earlier_points(folder: Path, result: Result) -> tuple[FitPoint, ...]:
    """Read what quick fits found of a run so far; none where they are of another run, or can't be read."""
    try:
        found = load_fit(folder, FIT_LIVE)
    except (UsageError, OutputError):
        return ()
    return found.points if found.spec == result.spec.digest else ()


def load_fit(folder: Path, name: str = FIT) -> FitResult:
    """Read ``fit.json``; raises UsageError where there is none, OutputError where it can't be understood."""
    path = folder / name
    try:
        found = FitResult.model_validate_json(read_own(path, _MOST_BYTES))
        return found.model_copy(update={"run_id": RunFolder(folder).run_id})
    except FileNotFoundError as error:
        raise UsageError(f"{folder}: no fit yet: hzzray fit {RunFolder(folder).run_id}") from error
    except ValidationError as error:
        raise OutputError(f"{path}: {error.errors()[0]['msg']}") from error
