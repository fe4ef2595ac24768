"""The runs page: all runs, each with its final numbers and files, and some of them side by side."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import charts, parts, words
from app.client import Row, View
from app.downloads import content
from app.services import services
from hzzray.compare import RunSummary, differences, lines, records, summarise
from hzzray.errors import HzzrayError
from hzzray.physics.selection import CHANNELS
from hzzray.result import Result

_MOST = 6  # runs side by side

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
    if not rows and not wrong:
        parts.nothing("No runs yet", "Every run of this folder is listed here, with its plot, tables and files.")
        return
    everything, side_by_side = st.tabs(["All runs", "Compare"], key="tab", on_change="rerun")
    if everything.open is not False:
        with everything:
            for line in wrong:
                st.warning(words.plain(line), icon=":material/broken_image:")
            chosen = _list(rows)
            if chosen is not None:
                _open(chosen)
    else:
        with side_by_side:
            _compare(rows)


def _list(rows: list[Row]) -> str | None:
    """Show all runs; returns the one that the viewer chose: by default what the address names, or the first."""
    table = pd.DataFrame(
        [
            {
                "run": row.run_id,
                "state": row.phase,
                "environment": row.environment,
                "release": row.release,
                "selection": row.selection,
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
    state = st.dataframe(
        table,
        hide_index=True,
        key="list",
        on_select="rerun",
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
    names = [row.run_id for row in rows]
    picked = [names[i] for i in state.selection.rows if i < len(names)]
    named = [name for name in names if name == st.query_params.get("run")]
    return next(iter(picked + named + names), None)


def _open(run_id: str) -> None:
    """Show one run's end."""
    try:
        view = services().client.view(run_id)
    except HzzrayError as error:
        st.error(words.plain(str(error)))
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"### {run_id}", anchors=False, width="content")
        parts.badge(view.phase)
        st.space("stretch")
        parts.controls(view)
    if view.result is None:
        st.caption("It has no result yet.")
        if view.log:
            st.code(view.log, language=None, wrap_lines=True)
        return
    _downloads(view, view.result)
    left, right = st.columns([1, 1], gap="medium")
    with left:
        plot = services().client.folder(run_id) / "plot.png"
        if plot.exists() and not view.live:
            st.image(plot.read_bytes(), width="stretch")
        else:
            result = view.result
            parts.draw_mass(view.once("plain mass", lambda: charts.mass(result)))
    with right:
        for warning in view.result.warnings[:20]:
            st.warning(words.plain(warning), icon=":material/warning:")
        _numbers(view, view.result)
        _cutflow(view.result)


def _downloads(view: View, result: Result) -> None:
    folder = services().client.folder(view.run_id)
    with st.container(horizontal=True, gap="small", key="downloads"):
        for label, name in (
            ("PNG", "plot.png"), ("PDF", "plot.pdf"), ("ROOT", "histograms.root"), ("JSON", "result.json"),
            ("CSV", "cpu.csv"), ("History", "history.csv"),
        ):  # fmt: skip
            path = folder / name
            can = path.exists() or path.suffix in (".png", ".pdf", ".root")
            st.download_button(
                label, content(path, result), f"{view.run_id}-{name}", _MIMES[path.suffix[1:]],
                key=f"download-{name}", on_click="ignore", icon=":material/download:", disabled=not can, help=name,
            )  # fmt: skip


def _numbers(view: View, result: Result) -> None:
    """Show what the run found and cost."""
    found, summary = result.significance, _summary(view)
    rows = [
        ("status", f"{result.status}: {result.tasks.merged} of {result.tasks.planned} tasks merged"),
        ("luminosity", str(result.luminosity)),
        ("Asimov · observed", f"{words.sigma(found.asimov)} · {words.sigma(found.observed)}"),
        (
            "signal · background · data",
            " · ".join(
                words.NONE if n is None else form.format(n)
                for n, form in ((found.n_signal, "{:.2f}"), (found.n_background, "{:.2f}"), (found.n_data, "{}"))
            ),
        ),
        *(("withheld", words.plain(reason)) for reason in dict.fromkeys(found.withheld.values())),
        ("events · throughput", f"{words.count(summary.events)} · {words.quantity(summary.events_per_s, 'events/s')}"),
        ("wall clock · CPU of tasks", f"{words.seconds(summary.wall_s)} · {words.seconds(summary.cpu_s)}"),
        ("CPU per million events", f"{words.quantity(summary.cpu_s_per_million_events, 's')}"),
        ("read", f"{words.quantity(result.cost.bytes_read, 'B')} in {words.seconds(result.cost.read_s)} of waiting"),
        ("actors · nodes, most", f"{_or_none(summary.actors_max)} · {_or_none(summary.nodes_max)}"),
        ("peak memory of an actor", words.quantity(summary.peak_rss_bytes, "B")),
        ("digest", result.digest[:16]),
        ("versions", ", ".join(f"{name} {value}" for name, value in result.versions.items())),
    ]
    st.table(pd.DataFrame(rows, columns=["what", "value"]), border="horizontal", hide_index=True, hide_header=True)


def _summary(view: View) -> RunSummary:
    return view.once("summary", lambda: summarise(view.run()))


def _or_none(value: int | None) -> str:
    return words.NONE if value is None else str(value)


def _cutflow(result: Result) -> None:
    """Show how many events each cut leaves."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("##### Cutflow", anchors=False, width="content")
        st.space("stretch")
        by = st.segmented_control(
            "by", ["group", "sample"], default="group", required=True, key="by", label_visibility="collapsed"
        )
        of = st.segmented_control(
            "of", ["yield", "raw"], default="yield", required=True, key="of", label_visibility="collapsed",
            help=f"Weighted events of {result.luminosity}, or events as they were counted.",
        )  # fmt: skip
    table = pd.DataFrame({"cut": result.spec.selection.cuts})
    for name, sample in result.samples.items():
        column = sample.group if by == "group" else name
        factor = result.side_by_side(sample)
        values = [row.n if of == "raw" else factor * row.yield_ for row in sample.cutflow]
        table[column] = table[column] + values if column in table else values
    number = st.column_config.NumberColumn(format="localized" if of == "raw" else "%.2f")
    config = {name: number for name in table.columns if name != "cut"}
    st.dataframe(table, hide_index=True, height="content", key="cutflow", column_config=config)
    st.caption(f"Channels: {', '.join(CHANNELS)} together, of all masses. Selection {result.spec.selection.name}.")


def _compare(rows: list[Row]) -> None:
    names = [row.run_id for row in rows if row.events is not None]
    chosen = st.multiselect(
        "Runs to compare", names, default=names[:2], max_selections=_MOST, key="compared",
        placeholder="Choose two or more runs",
    )  # fmt: skip
    views = []
    for name in chosen:
        try:
            views.append(services().client.view(name))
        except HzzrayError as error:
            st.error(words.plain(str(error)))
    found = [view.run() for view in views if view.result is not None]
    if len(found) < 2:
        st.caption("Two runs at least: the same work under Compose and on Kubernetes, say, or with 1 actor and with 8.")
        return
    for line in differences(found):
        (st.success if line.startswith("comparable: ") else st.info)(words.plain(line))
    summaries = [_summary(view) for view in views]
    columns = st.columns(2, gap="medium")
    for place, (field, (title, form)) in zip([*columns, *columns], _BARS.items(), strict=True):
        with place:
            parts.draw(charts.bars(summaries, field, title, form), f"bars-{field}", alt=title)
    st.markdown("##### CPU of all actors over time", anchors=False)
    parts.draw(charts.cpu_of_runs(found), "cpu of runs", alt="CPU of all actors over time, one line a run")
    _table(summaries)


def _table(summaries: list[RunSummary]) -> None:
    names = [summary.run_id for summary in summaries]
    shown = pd.DataFrame(lines(summaries), columns=["figure", *names])
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
