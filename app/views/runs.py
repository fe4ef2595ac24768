"""The runs page: all runs, each with its final numbers and files, and some of them side by side."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import charts, formatting, widgets
from app.actor_rows import all_used_s
from app.client import RunRow, View
from app.downloads import content, is_there, offers, picture
from app.services import services
from hzzray.errors import HzzrayError
from hzzray.runs.compare import RunSummary, differences, lines, records, summarise
from hzzray.runs.folder import RESULT
from hzzray.runs.result import Result
from hzzray.runs.tables import HISTORY, SCALE, USAGE
from hzzray.runs.templates import HISTOGRAMS

_MOST = 6  # runs side by side
_COMPARED, _SEEN = "compared", "compared last"

# What a comparison shows as bars: fields of RunSummary, their titles, and their form in d3's terms.
_BARS = {
    "events_per_s": ("throughput [events/s]", "~s"),
    "wall_s": ("wall clock [s]", ".3~r"),
    "cpu_s_per_million_events": ("CPU [s] per million events", ".3~r"),
    "efficiency": ("CPU of tasks / time of actors", ".1~%"),
}

_MIMES = {
    "png": "image/png",
    "pdf": "application/pdf",
    "root": "application/octet-stream",
    "json": "application/json",
    "csv": "text/csv",
}


def main() -> None:
    """Show the list and what is chosen of it."""
    rows, wrong = services().client.rows()
    if not rows and not wrong and "run" not in st.query_params:
        widgets.nothing("All runs", "No runs yet. Every run of this folder is listed here, with its plot and files.")
        return
    widgets.heading(1, "Runs")
    everything, side_by_side = st.tabs(["All runs", "Compare"], key="tab", on_change="rerun", bind="query-params")
    if everything.open is not False:
        with everything:
            widgets.wrong(wrong)
            with widgets.part("The list of runs"):
                _list(rows)
            _open([row.run_id for row in rows])
    else:
        with side_by_side, widgets.part("The comparison"):
            _compare(rows)


def _list(rows: list[RunRow]) -> None:
    """Show all runs; a click on one opens it."""
    table = pd.DataFrame(
        [
            {
                "run": row.run_id,
                "state": row.phase,
                "environment": _short(row.environment),
                "release": _short(row.release),
                "selection": _short(row.selection),
                "events": row.events,
                "wall": row.wall_s,
                "rate": None if row.events_per_s is None else row.events_per_s / 1e3,
                "asimov": row.asimov,
                "done": row.merged / row.planned if row.planned else None,
                "changed": pd.Timestamp(row.seen, unit="s", tz="UTC"),
            }
            for row in rows
        ]
    )
    column = st.column_config
    names = [row.run_id for row in rows]
    st.dataframe(
        table,
        hide_index=True,
        key="list",
        on_select=lambda: _choose(names),
        selection_mode="single-row",
        height="content" if len(rows) <= 8 else 330,
        placeholder="–",
        column_config={
            "events": column.NumberColumn("events", format="compact"),
            "wall": column.NumberColumn("wall clock [s]", format="%.1f"),
            "rate": column.NumberColumn("kevents/s", format="%.0f"),
            "asimov": column.NumberColumn("Asimov [σ]", format="%.2f"),
            "done": column.ProgressColumn("merged", format="percent", min_value=0, max_value=1),
            "changed": column.DatetimeColumn("changed", format="calendar"),
        },
    )


def _choose(names: list[str]) -> None:
    """Open the run whose row was clicked."""
    for i in st.session_state["list"].selection.rows[:1]:
        if i < len(names):
            widgets.show_run(names[i])


def _short(text: str | None) -> str | None:
    return None if text is None else formatting.short(text)


def _open(names: list[str]) -> None:
    """Show the end of the run that the address names."""
    head = st.container(horizontal=True, vertical_alignment="center", gap="small")
    with head:
        run_id = widgets.pick(names)
    view = widgets.look_at(run_id)
    if view is None:
        return
    with head:
        widgets.heading(2, formatting.plain(view.run_id))
        widgets.badge(view.phase)
        st.space("stretch")
        widgets.controls(view)
    if view.result is None:
        if view.wrong is None:
            st.caption("It has no result yet.")
        if view.log:
            st.code(view.log, language=None, wrap_lines=True)
        return
    widgets.wrong(view.trouble(USAGE, SCALE))
    with widgets.part("The run's files"):
        _downloads(view, view.result)
    left, right = st.columns([1, 1], gap="medium")
    with left, widgets.part("The mass spectrum"):
        _plot(view, view.result)
    with right:
        for warning in view.result.warnings[:20]:
            st.warning(formatting.plain(warning), icon=":material/warning:")
        with widgets.part("The run's numbers"):
            _numbers(view, view.result)
        with widgets.part("The cutflow"):
            _cutflow(view.result)


def _plot(view: View, result: Result) -> None:
    """Show the run's own picture, or a chart of its result where there is none, or none that is a picture."""
    plot = services().client.folder(view.run_id).path / "plot.png"
    if not view.live and (is_there(plot) or plot.is_symlink()):
        with widgets.part("The run's picture"):
            st.image(view.once("plot", lambda: picture(plot)), width="stretch")
            return
    widgets.draw_mass(view.once("plain mass", lambda: charts.mass(result)), result.observable)


def _downloads(view: View, result: Result) -> None:
    folder = services().client.folder(view.run_id).path
    with st.container(horizontal=True, gap="small", key="downloads"):
        for label, name in (
            ("PNG", "plot.png"), ("PDF", "plot.pdf"), ("ROOT", HISTOGRAMS), ("JSON", RESULT), ("CSV", USAGE),
            ("History", HISTORY),
        ):  # fmt: skip
            path = folder / name
            can = offers(path)
            st.download_button(
                label, content(path, result), f"{view.run_id}-{name}", _MIMES[path.suffix[1:]],
                key=f"download-{name}", on_click="ignore", icon=":material/download:", disabled=not can, help=name,
            )  # fmt: skip


def _numbers(view: View, result: Result) -> None:
    """Show what the run found and cost."""
    found, summary = result.significance, _summary(view)
    read, waited = formatting.quantity(result.cost.bytes_read, "B"), formatting.seconds(result.cost.read_s)
    rows = [
        ("status", f"{result.status}: {result.tasks.merged} of {result.tasks.planned} tasks merged"),
        ("luminosity", str(result.luminosity)),
        (
            "significance, expected (Asimov) · observed",
            f"{formatting.sigma(found.asimov)} · {formatting.sigma(found.observed)}",
        ),
        (
            "signal · background · data",
            " · ".join(
                formatting.NONE if n is None else form.format(n)
                for n, form in ((found.n_signal, "{:.2f}"), (found.n_background, "{:.2f}"), (found.n_data, "{}"))
            ),
        ),
        *(("withheld", formatting.plain(line)) for line in formatting.withheld(found.withheld)),
        (
            "events · throughput",
            f"{formatting.count(summary.events)} · {formatting.quantity(summary.events_per_s, 'events/s')}",
        ),
        ("wall clock · CPU of tasks", f"{formatting.seconds(summary.wall_s)} · {formatting.seconds(summary.cpu_s)}"),
        *_cpu_of_workers(view),
        ("CPU per million events", f"{formatting.quantity(summary.cpu_s_per_million_events, 's')}"),
        ("read", f"{read} in {waited} of waiting"),
        ("actors · nodes, most", f"{_or_none(summary.actors_max)} · {_or_none(summary.nodes_max)}"),
        ("peak memory of an actor", formatting.quantity(summary.peak_rss_bytes, "B")),
        ("digest", formatting.plain(result.digest[:16])),
        ("versions", formatting.plain(", ".join(f"{name} {value}" for name, value in result.versions.items()))),
    ]
    st.table(pd.DataFrame(rows, columns=["what", "value"]), border="horizontal", hide_index=True, hide_header=True)


def _cpu_of_workers(view: View) -> list[tuple[str, str]]:
    """Say what the workers' processes used, where they were watched."""
    if not len(view.usage):
        return []
    used = all_used_s(view.uses)
    return [("CPU of workers, with their start and kernels", formatting.seconds(used))]


def _summary(view: View) -> RunSummary:
    return view.once("summary", lambda: summarise(view.run()))


def _or_none(value: int | None) -> str:
    return formatting.NONE if value is None else str(value)


def _cutflow(result: Result) -> None:
    """Show how many events each cut leaves."""
    with st.container(horizontal=True, vertical_alignment="center"):
        widgets.heading(2, "Cutflow")
        st.space("stretch")
        by = st.segmented_control(
            "by",
            ["group", "sample"],
            default="group",
            required=True,
            key="by",
            bind="query-params",
            label_visibility="collapsed",
        )
        of = st.segmented_control(
            "of", ["yield", "raw"], default="yield", required=True, key="of", label_visibility="collapsed",
            bind="query-params",
            help=f"Weighted events of {result.luminosity}, or events as they were counted.",
        )  # fmt: skip
    table = pd.DataFrame({"cut": [formatting.short(cut) for cut in result.spec.rows]})
    for name, sample in result.samples.items():
        column = formatting.short(sample.group if by == "group" else name)
        factor = result.side_by_side(sample)
        values = [row.n if of == "raw" else factor * row.yield_ for row in sample.cutflow]
        table[column] = table[column] + values if column in table else values
    number = st.column_config.NumberColumn(format="localized" if of == "raw" else "%.2f")
    config = {name: number for name in table.columns if name != "cut"}
    st.dataframe(table, hide_index=True, height="content", key="cutflow", column_config=config)
    name = formatting.plain(result.spec.selection.name)
    regions = ", ".join(map(formatting.plain, result.spec.analysis.regions))
    st.caption(f"Regions: {regions} together, in the plot's range and beyond. Selection {name}.")


def _chosen() -> None:
    """Write into the address what is compared: that it is nothing, too."""
    st.query_params[_COMPARED] = st.session_state[_COMPARED] or [""]


def _compare(rows: list[RunRow]) -> None:
    names = [row.run_id for row in rows if row.events is not None]
    given = st.query_params.get_all(_COMPARED) or st.session_state.get(_SEEN) or names[:2]
    for name in given:
        if name and name not in names:
            widgets.unknown(name)
    st.session_state[_COMPARED] = st.session_state[_SEEN] = [name for name in given if name in names][:_MOST]
    chosen = st.multiselect(
        "Runs to compare", names, max_selections=_MOST, key=_COMPARED, placeholder="Choose two or more runs",
        on_change=_chosen,
    )  # fmt: skip
    if not st.query_params.get_all(_COMPARED):
        _chosen()
    views = []
    for name in chosen:
        try:
            views.append(services().client.view(name))
        except HzzrayError as error:
            st.error(formatting.plain(str(error)))
    widgets.wrong([line for view in views for line in view.trouble(USAGE, SCALE)])
    views = [view for view in views if view.result is not None]
    found = [view.run() for view in views]
    if len(found) < 2:
        st.caption("Two runs at least: the same work under Compose and on Kubernetes, say, or with 1 actor and with 8.")
        return
    for line in differences(found):
        (st.success if line.startswith("comparable: ") else st.info)(formatting.plain(line))
    summaries = [_summary(view) for view in views]
    columns = st.columns(2, gap="medium")
    for place, (field, (title, form)) in zip([*columns, *columns], _BARS.items(), strict=True):
        with place:
            widgets.draw(charts.bars(summaries, field, title, form), f"bars-{field}", alt=title)
    widgets.heading(2, "CPU of all actors over time")
    with widgets.part("CPU over time"):
        widgets.draw(charts.cpu_of_runs(found), "cpu of runs", alt="CPU of all actors over time, one line a run")
    _table(summaries)


def _table(summaries: list[RunSummary]) -> None:
    names = [summary.run_id for summary in summaries]
    cells = [[formatting.short(cell) for cell in line] for line in lines(summaries)]
    shown = pd.DataFrame(cells, columns=["figure", *names])
    st.dataframe(shown, hide_index=True, height="content", key="side by side")
    whole = pd.DataFrame(records(summaries))
    st.download_button(
        "CSV",
        whole.to_csv(index=False),
        "compare.csv",
        "text/csv",
        on_click="ignore",
        icon=":material/download:",
        key="csv",
    )


main()
