"""A run as HTML: a card for a notebook, and a report in one file that opens anywhere, without a network or a script."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hzzray.engine.monitor import is_actor
from hzzray.engine.template_tables import Tables
from hzzray.errors import HzzrayError
from hzzray.files import write_whole
from hzzray.messages import Counts
from hzzray.report import fit_figures, fit_text
from hzzray.report.console import FIGURES, warnings
from hzzray.report.plotting import figure
from hzzray.report.run_tables import of_count
from hzzray.report.style import png
from hzzray.report.timelines import comparison_figure
from hzzray.runs import compare
from hzzray.runs.cutflow import By, CutflowRow, cutflow, yields
from hzzray.runs.explore import command
from hzzray.runs.fit_run import FIT, load_fit, systematic
from hzzray.runs.folder import RunFolder
from hzzray.runs.record import Record, embedded, record_of
from hzzray.runs.result import Result
from hzzray.runs.run import settings_of
from hzzray.runs.tables import cpu_percent
from hzzray.runs.templates import load_templates, showing
from hzzray.urls import redact

#: What the file is called in a run's folder, and how large it may become [bytes]: a mail takes it.
REPORT, MOST_BYTES = "report.html", 2_000_000

# Of the pictures, whatever else there is; the first and the actors' come in any case.
_PICTURES_BYTES = 1_100_000
_DPI, _SMALL_DPI, _FIT_DPI = 100, 60, 75

# Of a fit's pictures.
_FIT_BYTES = 500_000

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #555; --line: #c8c8c8; --page: #fff; --mark: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eee; --soft: #b8b8b8; --line: #555; --page: #17191c; --mark: #7cb8f5; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .8rem 0; display: block; overflow-x: auto; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; background: #fff; } details img { max-width: 31rem; }
details .wide img { max-width: 100%; }
code, pre { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
.big { font-size: 1.15rem; } .soft { color: var(--soft); }
.warn { border-left: 4px solid #c77700; padding-left: .7rem; }
summary { cursor: pointer; color: var(--mark); }
@media print { details { display: none; } }
"""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", *, numbers: bool = True) -> str:
    """Lay rows out, all but the first column to the right if they are ``numbers``; all is text, whatever it holds."""

    def cells(tag: str, row: Sequence[object], *, scope: str = "") -> str:
        return "".join(
            f'<{tag}{scope} class="{"n" if i and numbers else "t"}">{escape(str(cell))}</{tag}>'
            for i, cell in enumerate(row)
        )

    head = cells("th", columns, scope=' scope="col"')
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(fig: Figure, alt: str, dpi: int = _DPI) -> str:
    """Put a figure into the page itself."""
    return image(png(fig, dpi), alt)


def image(drawn: bytes, alt: str) -> str:
    """Put a picture (PNG) into the page itself."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(drawn).decode()}">'


def headline(result: Result) -> str:
    """Say in one line what a run found."""
    found = result.significance
    if found.window is None or found.asimov is None:
        return next(iter(found.withheld.values()), "no significance")
    low, high = found.window
    unit = f" {result.observable.unit}".rstrip()
    seen = "" if found.observed is None else f", {found.observed:.2f} σ observed"
    return f"{low:g} to {high:g}{unit}: {found.asimov:.2f} σ expected{seen}"


def standing(result: Result) -> str:
    """Say in one line how a run stands."""
    tasks = result.tasks
    return f"{result.status}: {tasks.planned} tasks planned = {tasks.merged} merged + {tasks.failed} failed"


def card(result: Result, drawn: bytes | None = None) -> str:
    """Show a run in a notebook: its picture, yields, significance and digest; some 100 kB, and no script."""
    title = f"{result.spec.release.title}, {result.spec.selection.name}"
    said = "".join(f"<div>⚠ {escape(line)}</div>" for line in warnings(result)[:5])
    shown = image(drawn if drawn is not None else png(figure(result)), f"{title}: {headline(result)}")
    return (
        f"<div><p><b>{escape(title)}</b>, run <code>{escape(result.run_id)}</code><br>{escape(standing(result))}<br>"
        f"{escape(headline(result))}; luminosity {escape(str(result.luminosity))}</p>{said}"
        f'<div style="max-width:40rem">{shown}</div>{_yields(result, "group")}'
        f"<p><small>digest <code>{escape(result.digest)}</code></small></p></div>"
    )


def live(run_id: str, counts: Counts, drawn: bytes | None) -> str:
    """Show a run that goes on: how far it is, and its picture by now."""
    done = counts.merged + counts.failed
    failed = f", {counts.failed} failed" if counts.failed else ""
    shown = f'<div style="max-width:40rem">{image(drawn, "the plot by now")}</div>' if drawn is not None else ""
    return (
        f"<div><p>run <code>{escape(run_id)}</code>: {done} of {counts.planned} tasks{failed}, {counts.events} events "
        f'<progress value="{done}" max="{max(1, counts.planned)}"></progress></p>{shown}</div>'
    )


def save_report(folder: RunFolder, path: Path | None = None) -> Path:
    """Write a run's report; by default ``report.html`` in its folder. Raises UsageError where there is no result.

    Where ``path`` is a folder, it is written into that.
    """
    text = report(folder)
    where = path or folder.path
    return write_whole(
        where / REPORT if where.is_dir() else where, lambda part: part.write_text(text, encoding="utf-8")
    )


def report(folder: RunFolder) -> str:
    """Tell all of a run in one page: at most ``MOST_BYTES``, pictures that would not fit are left out and named."""
    record = record_of(folder)
    result = record.result
    found = _templates(result, folder.path)
    sections = {
        "Result": _result(result, found),
        "Yields": _yields(result, "group") + _details("Samples", lambda: _yields(result, "sample")),
        "Cutflow": _cutflow(result),
        "Significance": _significance(result),
        "Fit": _fit(result, folder.path),
        "Cost": _cost(result) + _actors(folder.path, result),
        "Provenance": _provenance(folder, record),
    }
    rest = _embedded_size(record) + sum(len(text.encode()) for text in sections.values())
    sections["Result"] += _others(result, found, min(_PICTURES_BYTES, MOST_BYTES - rest - 20_000))
    title = escape(f"{result.spec.release.title}, {result.spec.selection.name}: run {result.run_id}")
    body = "".join(f"<h2>{name}</h2>{text}" for name, text in sections.items() if text)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{body}"
        f"{embedded(record)}</body></html>\n"
    )


def _embedded_size(record: Record) -> int:
    return len(embedded(record).encode())


def _templates(result: Result, folder: Path) -> Tables:
    """Read a run's templates; none where only the result is known."""
    try:
        return load_templates(result, folder)
    except HzzrayError:
        return {}


def _figure(result: Result, found: Tables, channel: str | None = None) -> Figure:
    """Draw a result, with the systematic uncertainty that its run has measured."""
    band = systematic(result, found, result.observable.observable, channel) if found else None
    return figure(result, channel=channel, systematic=band)


def _result(result: Result, found: Tables) -> str:
    said = "".join(f"<li>{escape(line)}</li>" for line in warnings(result))
    wrong = f'<div class="warn"><p>What a reader of the numbers must know:</p><ul>{said}</ul></div>' if said else ""
    return (
        f'<p class="big">{escape(headline(result))}</p><p>{escape(standing(result))}. '
        f"Luminosity {escape(str(result.luminosity))}; {100 * result.fraction:.4g} % of the events read "
        f"({100 * result.spec.fraction:.4g} % asked for).<br>"
        f'<span class="soft">digest</span> <code>{escape(result.digest)}</code></p>{wrong}'
        f"{picture(_figure(result, found), headline(result))}"
    )


def _others(result: Result, found: Tables, room: int) -> str:
    """Show regions and other observables, as many as there is room for."""
    shown = _pictures(_figures(result, found), room, _SMALL_DPI, "plot")
    return f"<details><summary>Regions and other observables</summary>{shown}</details>" if shown else ""


def _pictures(figures: Iterable[tuple[str, Callable[[], Figure]]], room: int, dpi: int, command: str) -> str:
    """Show pictures while there is room for them, and name the others."""
    shown: list[str] = []
    left_out: list[str] = []
    for name, drawn in figures:
        text = "" if left_out else picture(drawn(), name, dpi)
        if left_out or len(text) > room:
            left_out.append(name)
            continue
        room -= len(text)
        shown.append(text)
    if left_out:
        shown.append(
            f"<p>No room here for {escape(', '.join(left_out))}: <code>hzzray {command}</code> draws them.</p>"
        )
    return "".join(shown)


def _figures(result: Result, found: Tables) -> Iterator[tuple[str, Callable[[], Figure]]]:
    for region in result.spec.analysis.regions:
        yield region, partial(_figure, result, found, region)
    for template in result.spec.templates[1:] if found else ():
        yield template.observable, lambda name=template.observable: _figure(showing(result, found, name), found)  # type: ignore[misc]


def _details(title: str, text: Callable[[], str]) -> str:
    return f"<details><summary>{escape(title)}</summary>{text()}</details>"


def _yields(result: Result, by: By) -> str:
    rows = yields(result, by)
    edges, window = result.edges, result.significance.window if result.is_first else None
    unit = f" {result.observable.unit}".rstrip()
    columns = [by, "events", "with flow", f"{edges[0]:g} to {edges[-1]:g}{unit}"]
    columns += [f"{window[0]:g} to {window[1]:g}{unit}"] if window else []

    def number(pair: tuple[float, float], role: str) -> str:
        return f"{pair[0]:.0f}" if role == "data" else f"{pair[0]:.2f} ± {pair[1]:.2f}"

    return table(
        columns,
        (
            (
                row.name,
                row.events,
                *(number(pair, row.role) for pair in (row.with_flow, row.on_axis, row.in_window) if pair),
            )
            for row in rows
        ),
        f"Yields of {result.observable.observable}: with flow is all that pass, on the axis and beyond",
    )


def _cutflow(result: Result) -> str:
    def one(name: str, rows: Sequence[CutflowRow]) -> str:
        return table(
            ("cut", "events", "absolute [%]", "relative [%]", "yield", "weighted absolute [%]"),
            ((row.cut, row.n, row.absolute, row.relative, f"{row.yield_:.2f}", row.weighted_absolute) for row in rows),
            name,
        )

    groups = "".join(one(name, rows) for name, rows in cutflow(result, "group").items())
    samples = cutflow(result)
    return (
        "<p>Absolute: of all events read. Relative: of those before the cut. Errors are binomial.</p>"
        f"{groups}{_details('Samples', lambda: ''.join(one(name, rows) for name, rows in samples.items()))}"
    )


def _significance(result: Result) -> str:
    found = result.significance
    numbers = {"n_signal": "signal s", "n_background": "background b", "sigma_b": "σ_b", "n_data": "data n", **FIGURES}
    rows = []
    for name, title in numbers.items():
        value = getattr(found, name)
        rows.append((title, "–" if value is None else f"{value:.4g}", found.withheld.get(name, "")))
    return table(("figure", "value", "why not"), rows, headline(result))


def _fit(result: Result, folder: Path) -> str:
    """Show the fit of a run, where there is one: what the command line says of it, and its pictures."""
    if not (folder / FIT).exists():
        return ""
    try:
        fitted = load_fit(folder)
    except HzzrayError as error:
        return f"<p>{escape(str(error))}</p>"
    if fitted.digest != result.digest:
        again = f"hzzray fit {result.run_id}"
        return f"<p>{FIT} is of other bins than the run has: <code>{escape(again)}</code> fits these.</p>"
    drawn = fit_figures.figures(fitted, result)
    notes = "".join(f"<li>{escape(note)}</li>" for note in fit_text.notes(fitted))
    columns, rows = fit_text.events(fitted)
    return (
        table(("figure", "value"), fit_text.rows(fitted), fit_text.title(fitted), numbers=False)
        + table(columns, rows, "Events")
        + (f"<ul>{notes}</ul>" if notes else "")
        + _details(
            "Pictures of the fit", lambda: f'<div class="wide">{_pictures(drawn, _FIT_BYTES, _FIT_DPI, "fit")}</div>'
        )
    )


def _cost(result: Result) -> str:
    cost = result.cost
    return table(
        ("what", "how much"),
        (
            ("wall clock", f"{cost.wall_s:.1f} s"),
            ("CPU of the tasks", f"{cost.cpu_s:.2f} s"),
            ("waiting for input", f"{cost.read_s:.2f} s"),
            ("bytes read", f"{cost.bytes_read / 1e6:.1f} MB"),
            ("events", f"{cost.events}"),
            ("events a second", f"{of_count(cost.events_per_s)}/s"),
            ("events a second of CPU", f"{of_count(cost.events / cost.cpu_s)}/s" if cost.cpu_s else "–"),
        ),
    )


def _actors(folder: Path, result: Result) -> str:
    """Show what each actor used, where the run's folder has it."""
    try:
        (run,) = compare.load([folder])
    except HzzrayError as error:
        return f"<p>{escape(str(error))}</p>"
    uses = {name: use for name, use in cpu_percent(run.usage).items() if is_actor(name)}
    if not uses:
        return ""
    rows = []
    for name, use in sorted(uses.items(), key=lambda item: (len(item[0]), item[0])):
        own = run.usage[run.usage["actor"] == name]
        seconds = float(np.diff(use.edges) @ use.percent / 100)
        rows.append((name, f"{seconds:.2f} s", own["events"].max(), f"{own['rss_bytes'].max() / 1e6:.0f} MB"))
    drawn = picture(comparison_figure([run]), f"CPU over time of each actor of run {result.run_id}", _SMALL_DPI + 20)
    return drawn + table(("actor", "CPU", "events", "most memory"), rows)


def _provenance(folder: RunFolder, record: Record) -> str:
    result = record.result
    spec = result.spec
    rows = [
        ("release", spec.release.name),
        ("selection", spec.selection.name),
        ("analysis", str(spec.analysis)),
        ("spec digest", spec.digest),
        ("environment", result.environment),
        *((name, version) for name, version in result.versions.items()),
        *(("source", redact(source)) for source in record.sources),
    ]
    files = table(
        ("sample", "file", "entries", "content"),
        ((file.sample, file.path, file.entries, file.uuid) for file in record.files),
        numbers=False,
    )
    whole = escape(json.dumps(spec.model_dump(mode="json"), ensure_ascii=False, indent=1))
    return (
        table(("what", "which"), rows, numbers=False)
        + _command(folder)
        + (_details(f"{len(record.files)} files", lambda: files) if record.files else "")
        + _details("The whole spec", lambda: f"<pre>{whole}</pre>")
        + f"<p><code>hzzray verify {REPORT}</code> computes it again and compares to the last bit.</p>"
    )


def _command(folder: RunFolder) -> str:
    try:
        spec, settings = settings_of(folder)
        redacted = settings.model_copy(update={"sources": tuple(map(redact, settings.sources))})
        return f"<p>Made by: <code>{escape(command(spec, redacted))}</code></p>"
    except HzzrayError:
        return ""  # a result without its ledger, or a run that no line makes
