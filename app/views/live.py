"""The live page: the plot grows, the significance climbs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import streamlit as st
from numpy.typing import NDArray

from app import charts, fit_summary, formatting, replay, widgets
from app.client import View
from app.guide import guide
from app.services import services
from hzzray.report import fit_text
from hzzray.runs.result import Result, Significance, expected_in_full, moment, to_read
from hzzray.runs.tables import HISTORY, SCALE, Rows

# Of a run, so many of its warnings are shown.
_MOST_WARNINGS = 20

# The significance in front, expected and observed.
_FRONT = {"asimov": "expected (Asimov)", "observed": "observed"}

# The other ones: what they are called, and how they are made of the window's counts (hzzray.statistics.significance).
_NAMES = {
    "notebook": "notebook",
    "s_over_sqrt_b": "s/√b",
    "asimov": "Asimov, in front",
    "asimov_sigma": "Asimov with σ_b",
    "asimov_notebook": "Asimov with the notebooks' σ_b = √0.3·b",
}
_FORMULAS = {
    "notebook": "(s + b) / √(b + 0.3·b²), as the notebooks publish it",
    "s_over_sqrt_b": "s / √b",
    "asimov": "√(2·((s + b)·ln(1 + s/b) − s))",
    "asimov_sigma": "√(2·((s + b)·ln((s + b)(b + σ²)/(b² + (s + b)σ²)) − (b²/σ²)·ln(1 + σ²s/(b(b + σ²))))), σ = σ_b",
    "asimov_notebook": "the same, σ = √0.3·b",
    "observed": "±√(2·(n·ln(n/b) − n + b))",
}

# A rate is taken over this long [s].
_RATE_S = 8.0


def show(view: View) -> None:
    """Show a run as it stands."""
    if view.result is None:
        _waiting(view)
        return
    view = replay.shown(view)
    if view.result is None:
        return
    result = view.result
    if view.live and view.past is None and not result.cost.events:
        st.caption("The actors are starting: the first results come within seconds.")
    widgets.wrong(view.trouble(HISTORY, SCALE))
    with widgets.part("What the run has found"):
        _figures(view, result)
    left, right = st.columns([1.9, 1], gap="medium")
    with left, widgets.part("The spectrum"):
        _spectrum(view, result)
    with right, widgets.part("The significance"):
        _significance(view, result)
    with widgets.part("The other significances"):
        _definitions(view, result)
    with widgets.part("The list of samples"):
        _samples(view, result)
    with widgets.part("The run's end"):
        _end(view, result)


def _waiting(view: View) -> None:
    with st.container(border=True):
        if view.phase == "starting":
            widgets.heading(2, ":material/hourglass_top: Getting ready")
            st.caption("Files are planned, Ray and its actors start: 5 to 20 seconds on a laptop.")
            st.progress(0.0)
        elif view.phase == "waiting":
            tasks = formatting.number(view.published or 0)
            widgets.heading(2, f":material/schedule: Waiting for a bridge: {tasks} tasks in the queue")
            st.caption(
                "The broker keeps them, however long it takes. A bridge takes them when it comes: `hzzray bridge`."
            )
        else:
            widgets.heading(2, f"This run {'could not begin' if view.phase == 'failed' else 'has no result'}")
        if view.log:
            st.code(view.log, language=None, wrap_lines=True)


def _figures(view: View, result: Result) -> None:
    """Show the run in six numbers."""
    now = moment(result)
    rate, left_s = progress(view, result)
    found, full = result.significance, expected_in_full(result)
    trends = _trends(view)
    with st.container(horizontal=True, gap="small", key="figures"):
        widgets.figure(
            "Events read",
            formatting.count(now.events),
            f"{formatting.percent(now.share)} of {formatting.count(to_read(result))}",
            trend=trends.get("events"),
        )
        widgets.figure(
            "Significance so far",
            formatting.sigma(found.asimov),
            _expected(found, full),
            trend=trends.get("asimov"),
            says="Asimov: the median significance expected of the Higgs boson, with as much luminosity as was read.",
        )
        widgets.figure(
            f"Data in {_window(result)}",
            formatting.count(found.n_data),
            _predicted(result, found),
            trend=trends.get("n_data"),
            says="Collisions seen in the window, and what simulation expects of as much luminosity.",
        )
        speed = formatting.quantity(result.cost.bytes_read / max(result.cost.wall_s, 1e-9), "B/s")
        widgets.figure("Throughput", formatting.quantity(rate, "ev/s"), f"{speed} on average", trend=trends.get("pace"))
        merged, planned_tasks, failed = result.tasks.merged, result.tasks.planned, result.tasks.failed
        widgets.figure(
            "Tasks",
            f"{merged} / {planned_tasks}",
            f"{failed or 'none'} failed",
            trend=trends.get("waiting"),
            bad=failed > 0,
            says="Merged and planned. The line: tasks that wait for an actor.",
        )
        wall = formatting.seconds(result.cost.wall_s)
        line, says = trends.get("actors"), "The line: actors that are up."
        if view.live:
            left = "paused" if view.phase == "paused" else formatting.seconds(left_s)
            widgets.figure("Time left", left, f"after {wall}", trend=line, says=says)
        else:
            cpu = f"{formatting.seconds(result.cost.cpu_s)} of CPU in tasks"
            widgets.figure("Wall clock", wall, cpu, trend=line, says=f"From the run's start to its end. {says}")


def _window(result: Result) -> str:
    """Name the window that is counted in."""
    window = result.significance.window
    if window is None:
        return "the window"
    return f"{window[0]:g}–{window[1]:g} {formatting.plain(result.spec.templates[0].unit)}".rstrip()


def _expected(found: Significance, full: Significance) -> str:
    """Say what is to come, or why there is nothing to say."""
    if found.asimov is None:
        return _why(found, "asimov")
    return f"{formatting.sigma(full.asimov)} with all events"


def _predicted(result: Result, found: Significance) -> str:
    """Say what stands beside the data in the window, or why nothing does."""
    if found.n_signal is None or found.n_background is None:
        return _why(found, "asimov")
    if not result.luminosity.compared:
        return _why(found, "observed")
    return f"{found.n_signal:.1f} signal + {found.n_background:.1f} background"


def _why(found: Significance, figure: str) -> str:
    return formatting.plain(found.withheld.get(figure, "not defined"))


def _trends(view: View) -> dict[str, list[float]]:
    """Tell the lines of all figures, or of none: one that lacks its line among others has an empty half."""
    rows, scale = view.history, view.scale
    lines = {name: _tail(rows[name]) for name in ("events", "asimov", "n_data")}
    lines |= {"pace": _pace(rows)} | {name: _tail(scale[name]) for name in ("waiting", "actors")}
    return lines if all(len(line) > 1 for line in lines.values()) else {}


def _tail(values: NDArray[Any]) -> list[float]:
    return [float(value) for value in values[~np.isnan(values)][-60:]]


def _pace(rows: Rows) -> list[float]:
    """Events a second between the rows."""
    spans = np.diff(rows["time_s"])
    return _tail(np.diff(rows["events"])[spans > 0] / spans[spans > 0])


def progress(view: View, result: Result) -> tuple[float, float | None]:
    """Events a second, lately or, of a run that has ended, on average; and seconds left of one that goes on.

    A run that is paused does none, and nobody knows how long.
    """
    rows = view.history
    if view.phase == "paused":
        return 0.0, None
    if not view.live or len(rows) < 2:
        return result.cost.events_per_s, None
    late = rows[rows["time_s"] >= rows["time_s"][-1] - _RATE_S]
    span = float(late["time_s"][-1] - late["time_s"][0])
    rate = float(late["events"][-1] - late["events"][0]) / span if span else 0.0
    left = sum(sample.planned - sample.entries for sample in result.samples.values())
    return rate, left / rate if rate else None


def _spectrum(view: View, first: Result) -> None:
    """Show the spectrum of an observable with what the viewer chooses of it."""
    templates = {template.observable: template for template in first.spec.templates}
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        name = st.selectbox(
            "Observable", list(templates), key="observable", bind="query-params", label_visibility="collapsed",
            format_func=lambda name: formatting.axis(name, templates[name].label, templates[name].unit), width=160,
        )  # fmt: skip
        channel = st.segmented_control(
            "Channel", ["all", *first.spec.analysis.regions], default="all", required=True, key="channel",
            format_func=lambda name: formatting.plain(name.replace("mu", "µ")), label_visibility="collapsed",
            bind="query-params",
        )  # fmt: skip
        log = st.toggle("Log scale", key="log", bind="query-params")
        scaled = st.toggle(
            "Scale simulation to the data read", value=True, key="scaled", bind="query-params",
            help="Off: simulation is that of all the luminosity asked for.",
        )  # fmt: skip
        st.space("stretch")
        result, wrong = view.showing(name)
        if result is None:
            st.caption(formatting.plain(wrong or "not filled yet"))
            result = first
        hidden, span = _shown(result)
    chart = view.once(
        ("mass", name, channel, hidden, log, span, scaled),
        lambda: charts.mass(
            result, channel=None if channel == "all" else channel, hidden=hidden, log=log, span=span, scaled=scaled
        ),
    )
    widgets.draw_mass(chart, result.observable)
    st.caption(_standing(result, scaled=scaled))


def _shown(result: Result) -> tuple[tuple[str, ...], tuple[float, float]]:
    """Let the viewer choose what is shown; returns the groups that are not, and the range of the axis."""
    groups = [charts.DATA, *(name for name, group in result.groups.items() if group.role != "data")]
    low, high = result.edges[0], result.edges[-1]
    template = result.observable
    with st.popover("View", icon=":material/tune:"):
        shown = st.pills(
            "Groups", groups, selection_mode="multi", default=groups, key=f"groups-{result.spec.release.name}",
            format_func=formatting.plain, bind="query-params",
        )  # fmt: skip
        span = st.slider(
            f"Range of {formatting.plain(formatting.axis(template.observable, template.label, template.unit))}",
            low, high, (low, high), step=result.edges[1] - result.edges[0], key=f"span-{low:g}-{high:g}",
            bind="query-params",
        )  # fmt: skip
        st.caption("In the plot: drag to move, Ctrl + wheel or pinch to zoom, double-click to reset.")
    return tuple(name for name in groups if name not in shown), span


def _standing(result: Result, *, scaled: bool) -> str:
    """Say what luminosity the plot stands for."""
    luminosity = result.luminosity
    said = [f"Luminosity: {luminosity}"]
    if not scaled and luminosity.compared and luminosity.data is not None and luminosity.data < luminosity.asked:
        said = [f"simulation {luminosity.asked:.4g} fb⁻¹, data {luminosity.data:.4g} fb⁻¹ read so far: no ratio"]
    if result.spec.fraction < 1:
        asked, done = formatting.percent(result.spec.fraction), formatting.percent(result.fraction)
        said.append(f"{asked} of each file asked for, {done} read")
    if not result.is_whole:
        said.append(_why(result.significance, "asimov"))
    return f"{' · '.join(said)}."


def _significance(view: View, result: Result) -> None:
    """Show one significance in front, as expected and as observed; the other definitions behind it, with formulas."""
    now = result.significance
    widgets.heading(2, "Significance")
    with st.container(horizontal=True, gap="small", key="significance"):
        widgets.figure("Expected", formatting.sigma(now.asimov), "of the events so far" if view.live else "Asimov")
        widgets.figure("Observed", formatting.sigma(now.observed), "in the data so far" if view.live else "in data")
    st.caption(_counts(result))
    if view.past is None:
        _fitted(view)
    if now.withheld:
        lines = [f"- {formatting.plain(line)}" for line in formatting.withheld(now.withheld)]
        st.caption("\n".join(["Withheld:", "", *lines]))
    _over_time(view, result, "history", "Expected and observed significance over the time of the run", _FRONT)


def _over_time(view: View, result: Result, key: str, alt: str, shown: dict[str, str]) -> None:
    """Draw how significances grew, of two moments at least: one is no curve, and its figure stands above."""
    chart = view.once(key, lambda: charts.history(view.history, result, shown))
    if chart.rows["t"].nunique() > 1:
        widgets.draw(chart, key, alt=alt)
    elif len(chart.rows):
        more = "more comes" if view.live else "the run was too short for more"
        st.caption(f"No curve over time: there is one moment of it; {more}.")


def _definitions(view: View, result: Result) -> None:
    """Show the other definitions of a significance, each with its formula, to who wants to see them."""
    with st.container(key="definitions"):
        more = st.expander(
            "More definitions, each with its formula", icon=":material/function:", key="more-definitions",
            on_change="rerun",
        )  # fmt: skip
    if not more.open:
        return
    with more:
        st.table(view.once("definitions", lambda: _defined(result)), border="horizontal", hide_index=True)
        st.caption("s, b: signal and background in the window; n: data there; σ_b: the error of b, docs/statistics.md.")
        _over_time(
            view, result, "all-of-history", "Significances in four definitions over the time of the run",
            charts.SIGNIFICANCES,
        )  # fmt: skip


def _defined(result: Result) -> pd.DataFrame:
    now, full = result.significance, expected_in_full(result)
    return pd.DataFrame(
        [
            (title, formatting.plain(_FORMULAS[field]), _plain(getattr(now, field)), _plain(getattr(full, field)))
            for field, title in _NAMES.items()
        ]
        + [("observed in data", formatting.plain(_FORMULAS["observed"]), _plain(now.observed), formatting.NONE)],
        columns=["definition", "formula", "so far [σ]", "all events [σ]"],
    )


def _fitted(view: View) -> None:
    """Show what a fit makes of it: of what was read so far while the run goes on."""
    if view.live and not st.toggle(
        "Fit what was read so far",
        key=f"fit-{view.run_id}",
        disabled=not services().fitter.able,
        help="Signal strength and significance from all regions' shapes, every few seconds, by a process of its own.",
    ):
        return
    found = fit_summary.load(view, live=view.live)
    if view.live and (found is None or not found.figures):
        why = "the first comes within seconds" if found is None else formatting.plain(found.no_data)
        st.caption(f"No fit yet: {why}.")
    if found is not None and found.value("mu") is not None:
        with st.container(horizontal=True, gap="small", key="fitted"):
            below = f"fit of {formatting.percent(found.fraction)} of the events" if view.live else "fit of all regions"
            widgets.figure("Signal strength µ̂", fit_text.strength(found), below)
            z = found.value("z_observed")
            expected = f"{formatting.sigma(found.value('z_expected'))} expected"
            widgets.figure("Significance of the fit", formatting.sigma(z), expected)


def _plain(value: float | None) -> str:
    return formatting.NONE if value is None else f"{value:.2f}"


def _counts(result: Result) -> str:
    found = result.significance
    counts = [
        "s = –" if found.n_signal is None else f"s = {found.n_signal:.2f}",
        "b = –" if found.n_background is None else f"b = {found.n_background:.2f} ± {found.sigma_b:.2f} ({_of(found)})",
        "n = –" if found.n_data is None else f"n = {found.n_data}",
    ]
    return f"{_window(result)}: {', '.join(counts)}"


def _of(found: Significance) -> str:
    """Say what the error of the background holds."""
    if not found.n_background_stated:
        return "statistics of simulation"
    return f"statistics {found.n_background_error:.2f}, normalisations {found.n_background_stated:.2f}"


def _samples(view: View, result: Result) -> None:
    """Show how far each sample is."""
    widgets.heading(2, "Samples")
    st.dataframe(
        view.once("samples", lambda: _progress_of_samples(view, result)),
        hide_index=True,
        height="content",
        key="samples",
        column_config={
            "progress": st.column_config.ProgressColumn("progress", format="percent", min_value=0, max_value=1),
            "read": st.column_config.NumberColumn("events read", format="localized"),
            "planned": st.column_config.NumberColumn("of", format="localized"),
            "selected": st.column_config.NumberColumn("selected", format="localized"),
            "yield": st.column_config.NumberColumn(
                "yield [events]", format="%.2f", help="Of all masses; the plot has those on its axis."
            ),
            "time left": st.column_config.TextColumn("time left", help="If all actors worked on this sample alone."),
        },
    )


def _progress_of_samples(view: View, result: Result) -> pa.Table:
    rate, _ = progress(view, result)
    rows = []
    for name, sample in result.samples.items():
        left = sample.planned - sample.entries
        share = sample.entries / sample.planned if sample.planned else (0.0 if name in result.missing else 1.0)
        yielded = sample.yield_ * result.side_by_side(sample)
        if name in result.missing:
            remaining = "missing"
        elif not left:
            lacking = f"{sample.unopened} file{'s' if sample.unopened > 1 else ''} left out"
            remaining = lacking if sample.unopened else "done"
        else:
            remaining = formatting.seconds(left / rate) if view.live and rate else formatting.NONE
        texts = formatting.short(name), formatting.short(sample.group)
        rows.append((*texts, share, sample.entries, sample.planned, sample.n_out, yielded, remaining))
    columns = ["sample", "group", "progress", "read", "planned", "selected", "yield", "time left"]
    return pa.Table.from_pandas(pd.DataFrame(rows, columns=columns))


def _end(view: View, result: Result) -> None:
    """Say how the run ended."""
    if view.phase == "complete":
        st.success(
            f"Complete: all {result.tasks.planned} tasks merged. Digest {formatting.plain(result.digest)}",
            icon=":material/verified:",
        )
    for warning in result.warnings[:_MOST_WARNINGS]:
        st.warning(formatting.plain(warning), icon=":material/warning:")
    if (more := len(result.warnings) - _MOST_WARNINGS) > 0:
        st.caption(f"{more} more warnings: result.json has them all.")
    if result.failures or result.missing:
        with st.expander(
            f"{len(result.failures)} failed tasks, {len(result.missing)} missing samples", icon=":material/report:"
        ):
            for row in result.failures[:20]:
                sample, reason = formatting.plain(row.sample, 100), formatting.plain(row.reason)
                st.markdown(f"**{sample}**, entries {row.start}–{row.stop}: {reason}")
            st.page_link("views/failures.py", label="All of them", icon=":material/arrow_forward:")


guide(runs=bool(services().client.run_ids()))
widgets.live("Live", show, often=replay.is_playing())
