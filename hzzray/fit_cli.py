"""Commands that conclude from a run: ``hzzray fit``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hzzray.errors import UsageError
from hzzray.options import AsJson, Run, Runs, output_folder, tell_files
from hzzray.report.say import say

if TYPE_CHECKING:
    from hzzray.statistics.fit_result import FitResult

app = typer.Typer()
console = Console(emoji=False)
errors = Console(emoji=False, stderr=True)

#: Most pseudo-experiments of one fit; each takes a second or so.
MOST_TOYS = 100_000

#: How often `--watch` looks for something new, and how long it waits for it [s].
LOOK_S, SILENCE_S = 1.0, 120.0


@app.command()
def fit(
    run_name: Run,
    observable: Annotated[str | None, typer.Option(help="Another one than the run's first, such as m12.")] = None,
    toys: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_TOYS,
            help="Pseudo-experiments for the observed significance, about a second each, and the mass' interval.",
        ),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the pseudo-experiments.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Strength and significance alone.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Of a run that goes on: quickly, again and again, of what was read so far.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print fit.json.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder to write to. Default: the run's.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Fit a run: signal strength, significance, limit, mass; workspace.json, fit.json and pictures."""
    from hzzray.report.fit_progress import fit_progress  # noqa: PLC0415
    from hzzray.runs.fit_run import FIT, WORKSPACE, fit_run, has_full_fit, require_fit  # noqa: PLC0415
    from hzzray.runs.folder import find_run, load_json  # noqa: PLC0415

    if watch and (toys or as_json or output is not None):
        raise UsageError("--watch fits quickly, into the run's folder: it goes without --toys, --json and --output")
    require_fit()
    folder = find_run(run_name, runs).path
    if watch:
        _watch(folder, observable)
        return
    into = output_folder(output, folder)
    with fit_progress(errors if as_json else console) as progress:
        fitted = fit_run(folder, observable, quick=quick, toys=toys, seed=seed, into=into, progress=progress)
    if as_json:
        typer.echo(fitted.model_dump_json(indent=1))
        return
    show(fitted, console)
    if quick and has_full_fit(into, fitted):
        say(console, f"{into / FIT}: the full fit of the same bins stays")
        return
    from hzzray.report.fit_figures import save_all  # noqa: PLC0415

    for written in (into / WORKSPACE, into / FIT, *save_all(fitted, load_json(folder), into)):
        say(console, written)


def _watch(folder: Path, observable: str | None) -> None:
    """Fit a run quickly whenever it has written new templates, until it ends; ``fit-live.json`` has the last one.

    A process of its own, behind all others: nothing waits for it. It ends, too, when the run is silent for long.
    """
    from hzzray.report.fit_text import lines  # noqa: PLC0415
    from hzzray.runs.fit_run import (  # noqa: PLC0415
        FIT_LIVE,
        described,
        earlier_points,
        inputs,
        read_run,
        save_fit,
        unfitted,
    )
    from hzzray.runs.folder import load_json  # noqa: PLC0415
    from hzzray.runs.templates import TEMPLATES  # noqa: PLC0415
    from hzzray.statistics.fit import FitError, Wanted, run_fit  # noqa: PLC0415
    from hzzray.statistics.workspace import ModelError, make  # noqa: PLC0415

    os.nice(10)
    quick, seen, since = Wanted(limits=False, impacts=False), None, time.monotonic()
    while time.monotonic() - since < SILENCE_S:
        result = load_json(folder)
        path = folder / TEMPLATES
        stamp = path.stat().st_mtime_ns if path.exists() else None
        if stamp is not None and stamp != seen:
            seen, since = stamp, time.monotonic()
            try:
                result, tables = read_run(folder)
                found = inputs(result, tables, observable)
                fitted = run_fit(make(found), has_data=found.data is not None, no_data=found.no_data, wanted=quick)
                fitted = described(fitted, result, found.observable)
            except (ModelError, FitError) as error:
                fitted = unfitted(result, str(error))
            fitted = fitted.after(earlier_points(folder, result))
            save_fit(fitted, folder, FIT_LIVE)
            said = lines(fitted)[:2] if fitted.figures else [fitted.no_data]
            read = f"{100 * fitted.fraction:.0f} % read"
            say(console, f"{read}: {'; '.join(said)}")
        if result.status != "running":
            return
        time.sleep(LOOK_S)


@app.command()
def hepdata(
    run_name: Run,
    observable: Annotated[
        list[str] | None, typer.Option(help="Another one than the run's first, such as m12. Several times.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write to. Default: hepdata in the run's.")] = None,
    as_json: AsJson = False,
    runs: Runs = Path("runs"),
) -> None:
    """Write a run's spectra, and what `hzzray fit` found, as HEPData takes them: submission.yaml and tables."""
    from hzzray.runs.fit_run import FIT, load_fit, read_run  # noqa: PLC0415
    from hzzray.runs.folder import find_run  # noqa: PLC0415
    from hzzray.runs.hepdata import write_hepdata  # noqa: PLC0415

    folder = find_run(run_name, runs).path
    into = output_folder(output, folder / "hepdata")
    result, tables = read_run(folder)
    fitted = load_fit(folder) if (folder / FIT).exists() else None
    if fitted is not None and fitted.digest != result.digest:
        raise UsageError(f"{folder / FIT} is of other bins than the run has: hzzray fit {result.run_id}")
    names = list(dict.fromkeys([result.spec.templates[0].observable, *(observable or ())]))
    tell_files(write_hepdata(result, tables, names, fitted, into), console, as_json=as_json)


def show(fitted: FitResult, into: Console) -> None:
    """Print a fit's figures and yields, and what there is to know of them; ``fit.json`` has their definitions."""
    from hzzray.report import fit_text  # noqa: PLC0415
    from hzzray.report.console_table import print_table  # noqa: PLC0415

    say(into, fit_text.title(fitted))
    for line in fit_text.lines(fitted):
        say(into, f"  {line}")
    columns, rows = fit_text.events(fitted)
    events = Table(columns[0], title="events")
    for title in columns[1:]:
        events.add_column(title, justify="right")
    for row in rows:
        events.add_row(*map(escape, row))
    print_table(into, events)
    for note in fit_text.notes(fitted):
        say(into, note, "yellow")
